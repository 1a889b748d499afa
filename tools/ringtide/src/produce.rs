//! `ringtide produce`: standard input to records.
//!
//! One thread reads, the other cuts lines, sends and collects acknowledgements, so that a slow
//! input is sent line by line as it comes, and a fast one in full batches. A signal ends the reading:
//! what was read by then is published like everything else, and what became of it decides the exit
//! code.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringtide_client::sync::Producer;
use ringtide_client::{Acks, Codec, Delivered, Error, ProducerOptions, Record};
use ringtide_schema::batch::HEADER_BYTES;
use ringtide_schema::record::RECORD_OVERHEAD_MAX_BYTES;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::cli::{AcksArg, CompressionArg, ProduceArgs};
use crate::connect::{connect, exit_of, of_topic};
use crate::exit::{Exit, Failure};
use crate::ledger::{Done, Ledger};
use crate::lines::{Line, LineError, Splitter};
use crate::output;
use crate::progress::{Progress, rate};
use crate::signals::stop_flag;

/// What is read at once.
const READ_BYTES: usize = 256 << 10;
/// What a pipe may hold (the most that a user may ask for by default).
const PIPE_BYTES: usize = 1 << 20;
/// Pieces of input that may wait for the sending thread.
const PIECES: usize = 4;
/// How long an acknowledgement is waited for before the input is looked at again.
const LOOK_AT_INPUT: Duration = Duration::from_millis(1);
/// How long acknowledgements are waited for when there is no input to look at.
const LOOK_AT_PROGRESS: Duration = Duration::from_millis(100);

/// How long the input is waited for before the reading thread looks whether it is to end.
const LOOK_AT_STOP: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// Batches that are taken for each partition: more would only wait here, and grow old.
const BATCHES_AHEAD: usize = 16;
/// What is taken at the most.
const MOST_AHEAD: usize = 32 << 20;
/// How long a record is tried.
const GIVE_UP: Duration = Duration::from_secs(30);
/// How long acknowledgements are waited for after a signal.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Runs the command.
pub(crate) fn run(args: &ProduceArgs) -> Result<(), Failure> {
    if args.offsets && args.acks == AcksArg::None {
        return Err(Failure::usage(
            "--offsets needs acknowledgements: use --acks accepted or --acks durable with it",
        ));
    }
    let client = connect(&args.server)?;
    let topic = client.topic(&args.topic).map_err(of_topic(&args.topic))?;
    if let Some(partition) = args.partition.filter(|&p| p >= topic.partitions()) {
        let (name, count) = (&topic.name, topic.partitions());
        return Err(Failure::failed(format!(
            "{name} has no partition {partition}: it has {count}, numbered from 0"
        )));
    }
    let options = ProducerOptions::new()
        .acks(match args.acks {
            AcksArg::None => Acks::None,
            AcksArg::Accepted => Acks::Accepted,
            AcksArg::Durable => Acks::Durable,
        })
        .codec(match args.compression {
            CompressionArg::None => Codec::None,
            CompressionArg::Lz4 => Codec::Lz4,
            CompressionArg::Zstd => Codec::Zstd,
        })
        .batch_bytes(args.batch as usize)
        .buffer_bytes(MOST_AHEAD.min(
            topic.settings.max_batch_bytes as usize
                + BATCHES_AHEAD * args.batch as usize * topic.partitions() as usize,
        ))
        .delivery_timeout(GIVE_UP);
    let done = match args.acks {
        AcksArg::None => Done::Sent,
        _ => Done::Acknowledged,
    };
    let limit = topic.settings.max_batch_bytes as usize - HEADER_BYTES - RECORD_OVERHEAD_MAX_BYTES;
    let stop = stop_flag()?;
    let mut publishing = Publishing {
        producer: client.producer(&args.topic, options)?,
        partition: args.partition,
        ledger: Ledger::new(args.offsets, done),
        out: args
            .offsets
            .then(|| Offsets::open().map_err(output::failure))
            .transpose()?,
        progress: if args.offsets {
            Progress::beside_output()
        } else {
            Progress::new()
        },
        bytes: 0,
        losses: 0,
        now_ms: 0,
        stop: Arc::clone(&stop),
        stopped: None,
    };
    let mut splitter = Splitter::new(args.key_separator.as_deref(), limit);
    let ended = publishing.take_input(&mut splitter, &Input::start(stop)?);
    publishing.settle();
    let unprinted = publishing.out.and_then(|out| out.failed);
    match (publishing.ledger.failure(), ended) {
        (None, Ok(())) => unprinted.map_or(Ok(()), |error| {
            let mut failure = output::failure(error);
            if failure.exit != Exit::Done {
                failure.message += &format!("; {}", publishing.ledger.counted());
            }
            Err(failure)
        }),
        (Some(failure), Ok(()) | Err(Stop::Failed)) => Err(failure),
        (failure, Err(stop)) => {
            let counted = publishing.ledger.counted();
            let mut message = stop.to_string();
            let exit = match (&failure, &stop) {
                (Some(failure), _) => failure.exit,
                (None, Stop::Send { error, .. }) => exit_of(error),
                (None, _) => Exit::Failed,
            };
            match failure {
                Some(failure) => message = format!("{message}. {failure}"),
                None => message += &format!("; before it: {counted}"),
            }
            Err(Failure::new(exit, message))
        }
    }
}

/// Why no more input is taken.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error(transparent)]
    Line(#[from] LineError),
    #[error("line {number}: {error}")]
    Send { number: u64, error: Error },
    #[error("cannot read standard input: {0}")]
    Read(#[from] io::Error),
    /// A signal came before the line was whole, or could be sent.
    #[error("ended by a signal: line {number} and what follows it was not published")]
    Signal { number: u64 },
    /// A record failed; the ledger knows which and why.
    #[error("a record was not acknowledged")]
    Failed,
}

struct Publishing {
    producer: Producer,
    partition: Option<u32>,
    ledger: Ledger,
    out: Option<Offsets>,
    progress: Progress,
    bytes: u64,
    /// As the producer counts them, those that were told.
    losses: u64,
    now_ms: i64,
    /// Raised by a signal.
    stop: Arc<AtomicBool>,
    /// When that was first seen.
    stopped: Option<Instant>,
}

impl Publishing {
    /// Sends all input, as it comes.
    fn take_input(&mut self, splitter: &mut Splitter, input: &Input) -> Result<(), Stop> {
        loop {
            let piece = if self.producer.held_bytes() == 0 {
                input.pieces.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                input.pieces.try_recv()
            };
            match piece {
                Ok(piece) => {
                    let Piece { buffer, bytes } = piece?;
                    self.now_ms = now_ms();
                    self.bytes += bytes as u64;
                    splitter.feed(&buffer[..bytes], |line| self.send(line))?;
                    let _ = input.spare.send(buffer);
                    self.collect(Duration::ZERO);
                }
                Err(TryRecvError::Empty) => self.collect(LOOK_AT_INPUT),
                Err(TryRecvError::Disconnected) => break,
            }
            if self.ledger.has_failed() {
                return Err(Stop::Failed);
            }
        }
        if self.stop.load(Ordering::Relaxed) {
            // Whether the line would have ended there, nobody knows.
            return match splitter.begun_line() {
                Some(number) => Err(Stop::Signal { number }),
                None => Ok(()),
            };
        }
        self.now_ms = now_ms();
        splitter.end(|line| self.send(line))
    }

    /// Whether a signal came, and the time after it is over.
    fn is_out_of_time(&mut self) -> bool {
        self.stop.load(Ordering::Relaxed)
            && self.stopped.get_or_insert_with(Instant::now).elapsed() >= STOP_PATIENCE
    }

    fn send(&mut self, line: Line<'_>) -> Result<(), Stop> {
        let mut record = Record::new(line.value).timestamp_ms(self.now_ms);
        record.key = line.key;
        record.partition = self.partition;
        loop {
            match self.producer.send(&record) {
                Ok(ticket) => {
                    self.ledger.sent(line.number, ticket);
                    return Ok(());
                }
                Err(Error::BufferFull { .. }) => {
                    self.collect(LOOK_AT_PROGRESS);
                    if self.ledger.has_failed() {
                        return Err(Stop::Failed);
                    }
                    if self.is_out_of_time() {
                        let number = line.number;
                        return Err(Stop::Signal { number });
                    }
                }
                Err(error) => {
                    return Err(Stop::Send {
                        number: line.number,
                        error,
                    });
                }
            }
        }
    }

    /// Waits until every record that was sent has an outcome, or the time after a signal is over.
    fn settle(&mut self) {
        while self.producer.held_bytes() > 0 && !self.is_out_of_time() {
            self.collect(LOOK_AT_PROGRESS);
        }
        self.collect(Duration::ZERO);
        if self.producer.held_bytes() > 0 {
            self.ledger.give_up(Error::OutcomeUnknown {
                what: "publishing the last lines".into(),
                why: "a signal ended the command before they were acknowledged".into(),
            });
            self.print_offsets();
        }
        self.progress.clear();
    }

    /// Collects outcomes, and waits for some if there are none.
    fn collect(&mut self, wait: Duration) {
        let ledger = &mut self.ledger;
        let each = |Delivered { ticket, result, .. }| {
            ledger.delivered(ticket, result.map(|ack| ack.offset));
        };
        if wait.is_zero() {
            self.producer.poll(each);
        } else {
            self.producer.wait(wait, each);
        }
        let losses = self.producer.losses();
        if losses > self.losses {
            self.losses = losses;
            self.progress.clear();
            output::say(
                "the broker ended and lost records that it had acknowledged as accepted, which is \
                 less than durable; records that came later have their offsets now",
            );
        }
        self.print_offsets();
        let (ledger, bytes) = (&self.ledger, self.bytes);
        self.progress
            .tick(|elapsed| format!("{}, {}", ledger.counted(), rate(bytes, elapsed)));
    }

    fn print_offsets(&mut self) {
        if let Some(out) = &mut self.out {
            self.ledger.write_offsets(&mut out.lines);
            out.flush();
        }
    }
}

/// Standard output for offsets.
struct Offsets {
    out: File,
    lines: Vec<u8>,
    /// Why nothing more is printed.
    failed: Option<io::Error>,
}

impl Offsets {
    fn open() -> io::Result<Self> {
        let out = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self {
            out: out.into(),
            lines: Vec::new(),
            failed: None,
        })
    }

    /// Writes what there is. When that is not possible any more the records matter still, so only
    /// the printing ends.
    fn flush(&mut self) {
        if self.failed.is_none() && !self.lines.is_empty() {
            self.failed = self.out.write_all(&self.lines).err();
        }
        self.lines.clear();
    }
}

/// Input as it was read.
struct Piece {
    buffer: Vec<u8>,
    /// How much of the buffer was read.
    bytes: usize,
}

/// Standard input, read by a thread of its own.
struct Input {
    pieces: Receiver<io::Result<Piece>>,
    /// Buffers to be used again.
    spare: Sender<Vec<u8>>,
}

impl Input {
    fn start(stop: Arc<AtomicBool>) -> Result<Self, Failure> {
        let (give, pieces) = sync_channel(PIECES);
        let (spare, spares) = channel();
        std::thread::Builder::new()
            .name("input".into())
            .spawn(move || read_input(&give, &spares, &stop))
            .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
        Ok(Self { pieces, spare })
    }
}

/// Reads to the end, or until `stop` is raised; what was read is always given.
fn read_input(give: &SyncSender<io::Result<Piece>>, spares: &Receiver<Vec<u8>>, stop: &AtomicBool) {
    // A larger pipe means fewer changes between its writer and this thread. It is a favour that
    // the system may refuse, and that only a pipe can do.
    let _ = rustix::pipe::fcntl_setpipe_size(io::stdin(), PIPE_BYTES);
    let stdin = io::stdin();
    let mut input = stdin.lock();
    while !stop.load(Ordering::Relaxed) {
        let waited = poll(
            &mut [PollFd::new(&stdin, PollFlags::IN)],
            Some(&LOOK_AT_STOP),
        );
        if matches!(waited, Ok(0) | Err(Errno::INTR)) {
            continue;
        }
        let mut buffer = spares.try_recv().unwrap_or_else(|_| vec![0; READ_BYTES]);
        let piece = match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(bytes) => Ok(Piece { buffer, bytes }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let last = piece.is_err();
        if give.send(piece).is_err() || last {
            return;
        }
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
