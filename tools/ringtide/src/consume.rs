//! `ringtide consume`: records to standard output.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringtide_client::sync::{Client, Consumer};
use ringtide_client::{Batch, ConsumerOptions, Error, OffsetAt, Start, Topic};
use ringtide_schema::topic::check_consumer_name;

use crate::cli::{ConsumeArgs, From, OutputArg};
use crate::connect::connect;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::progress::{Progress, grouped, rate};
use crate::record_json::{self, Printed};
use crate::signals::stop_flag;

/// What is gathered before it is written.
const WRITE_BYTES: usize = 256 << 10;
/// How long records are waited for before signals and the connection are looked at.
const LOOK_AROUND: Duration = Duration::from_millis(200);
/// How often the place of a named consumer is committed while it reads.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How long the broker may be away before a command that is to end gives up.
const GIVE_UP: Duration = Duration::from_secs(30);

/// One partition that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    partition: u32,
    /// Where to go on.
    next: u64,
    /// Where to end: the next offset that was to be written when reading began.
    end: u64,
    /// The epoch of what was read last.
    epoch: u32,
    /// What was committed, if anything was by this run.
    committed: Option<u64>,
}

/// Runs the command.
pub(crate) fn run(args: &ConsumeArgs) -> Result<(), Failure> {
    let from = check(args)?;
    let client = connect(&args.server)?;
    let topic = client.topic(&args.topic)?;
    let mut places = places(&client, &topic, args, from)?;
    if !args.follow {
        places.retain(|place| place.next < place.end);
    }
    let mut reading = Reading {
        client: &client,
        topic: &topic,
        args,
        places,
        out: io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map_err(output::failure)?
            .into(),
        buffer: Vec::with_capacity(WRITE_BYTES + (WRITE_BYTES >> 2)),
        records: 0,
        bytes: 0,
        commit_at: Instant::now() + COMMIT_EVERY,
        progress: Progress::beside_output(),
    };
    let ended = if reading.is_done() {
        Ok(())
    } else {
        reading.read_all()
    };
    let written = reading.flush().and_then(|()| Ok(reading.commit()?));
    reading.progress.clear();
    // What was asked for and not delivered decides the code, unless something worse happened.
    let records = reading.records;
    let fewer = args.count.filter(|&count| records < count);
    match (ended.and(written), fewer) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(count)) => Err(Failure::new(
            Exit::FewerThanAsked,
            format!(
                "{} has {records} records there, {count} were asked for",
                args.topic
            ),
        )),
        (Err(failure), Some(_)) if failure.exit == Exit::Done => {
            Err(Failure::new(Exit::FewerThanAsked, failure.message))
        }
        (Err(failure), _) => Err(failure),
    }
}

/// Where to begin, if the arguments go together.
fn check(args: &ConsumeArgs) -> Result<From, Failure> {
    if let Some(name) = &args.name {
        check_consumer_name(name)
            .map_err(|why| Failure::usage(format!("--name {name:?} is impossible: {why}")))?;
    }
    match (args.from, &args.name) {
        (Some(From::Committed), None) => Err(Failure::usage(
            "--from committed needs --name CONSUMER: whose place it is",
        )),
        (None, Some(_)) => Ok(From::Committed),
        (from, _) => Ok(from.unwrap_or(From::Earliest)),
    }
}

/// Resolves where to begin and where to end in each partition.
fn places(
    client: &Client,
    topic: &Topic,
    args: &ConsumeArgs,
    from: From,
) -> Result<Vec<Place>, Failure> {
    let count = topic.partitions();
    let partitions = match args.partition {
        Some(partition) if partition >= count => {
            let name = &topic.name;
            return Err(Failure::failed(format!(
                "{name} has no partition {partition}: it has {count}, numbered from 0"
            )));
        }
        Some(partition) => partition..partition + 1,
        None => 0..count,
    };
    partitions
        .map(|partition| {
            let state = client.describe_partition(&topic.name, partition)?;
            let (earliest, end) = (state.earliest, state.latest);
            let next = match from {
                From::Earliest => earliest,
                From::Latest => end,
                From::Offset(offset) if offset > end => {
                    return Err(Error::OffsetOutOfRange {
                        topic: topic.name.clone(),
                        partition,
                        offset,
                        earliest: earliest.cast_signed(),
                        latest: end.cast_signed(),
                    }
                    .into());
                }
                From::Offset(offset) => offset,
                From::Time(ms) => {
                    client
                        .list_offsets(&topic.name, partition, OffsetAt::Timestamp(ms))?
                        .offset
                }
                From::Committed => {
                    let name = args.name.as_deref().unwrap_or_default();
                    let committed = client.read_offset(name, &topic.name, partition)?;
                    let committed = committed.map_or(earliest, |committed| committed.offset);
                    within(topic, partition, committed, earliest, end)
                }
            };
            Ok(Place {
                partition,
                next,
                end,
                epoch: state.leader_epoch,
                committed: None,
            })
        })
        .collect()
}

/// A committed place, moved to where there is something to read, with a word about it.
fn within(topic: &Topic, partition: u32, committed: u64, earliest: u64, end: u64) -> u64 {
    let name = &topic.name;
    if committed < earliest {
        output::say(format_args!(
            "{name}/{partition}: records {committed} to {} were removed before they were read; \
             going on at {earliest}",
            earliest - 1
        ));
    } else if committed > end {
        output::say(format_args!(
            "{name}/{partition}: the committed offset {committed} is past the end; going on at \
             {end}"
        ));
    }
    committed.clamp(earliest, end)
}

struct Reading<'a> {
    client: &'a Client,
    topic: &'a Topic,
    args: &'a ConsumeArgs,
    places: Vec<Place>,
    out: File,
    buffer: Vec<u8>,
    /// Delivered so far.
    records: u64,
    bytes: u64,
    commit_at: Instant,
    progress: Progress,
}

impl Reading<'_> {
    fn is_done(&self) -> bool {
        let enough = self.args.count.is_some_and(|count| self.records >= count);
        enough || (!self.args.follow && self.places.iter().all(|place| place.next >= place.end))
    }

    fn read_all(&mut self) -> Result<(), Failure> {
        // Who follows the whole topic gets what is added to it, and that from its first record on.
        let mut options = ConsumerOptions::new().start(Start::Earliest);
        if !self.args.follow || self.args.partition.is_some() {
            let partitions = self.places.iter().map(|place| place.partition);
            options = options.partitions(partitions.collect::<Vec<_>>());
        }
        let mut consumer = self.client.consumer(&self.topic.name, options)?;
        for place in &self.places {
            consumer.seek(place.partition, Start::Offset(place.next))?;
        }
        let stop = if self.args.follow {
            stop_flag()?
        } else {
            Arc::default()
        };
        let mut outage = Outage::default();
        while !self.is_done() && !stop.load(Ordering::Relaxed) {
            if self.take(&mut consumer, Duration::ZERO)? {
                if self.buffer.len() >= WRITE_BYTES {
                    self.flush()?;
                }
            } else {
                // Nothing more is here: what was gathered is wanted now.
                self.flush()?;
                if self.take(&mut consumer, LOOK_AROUND)? {
                    outage = Outage::default();
                } else {
                    outage.look(self.client, self.args.follow)?;
                    self.look_at_ends()?;
                }
            }
            let due = self.args.name.is_some() && Instant::now() >= self.commit_at;
            // While the broker is away a commit would only keep everything else waiting.
            if due && self.client.trouble().is_none() {
                self.flush()?;
                put_off(self.commit())?;
            }
            let (records, bytes) = (self.records, self.bytes);
            self.progress
                .tick(|elapsed| format!("{} records, {}", grouped(records), rate(bytes, elapsed)));
        }
        Ok(())
    }

    /// What was accepted, but not durable, when reading began may have gone with a crash of the
    /// broker: then the end is nearer than it was.
    fn look_at_ends(&mut self) -> Result<(), Failure> {
        if self.args.follow || self.client.trouble().is_some() {
            return Ok(());
        }
        for place in self
            .places
            .iter_mut()
            .filter(|place| place.next < place.end)
        {
            let state = self
                .client
                .describe_partition(&self.args.topic, place.partition)?;
            place.end = place.end.min(state.latest);
        }
        Ok(())
    }

    /// Takes a batch, if there is one in time.
    fn take(&mut self, consumer: &mut Consumer, wait: Duration) -> Result<bool, Failure> {
        let Some(batch) = consumer.poll(wait)? else {
            return Ok(false);
        };
        self.add(&batch);
        Ok(true)
    }

    /// Gathers the records of a batch that are wanted.
    fn add(&mut self, batch: &Batch<'_>) {
        let partition = batch.partition();
        let of_batch = |place: &Place| place.partition == partition;
        let index = self.places.iter().position(of_batch).unwrap_or_else(|| {
            self.places.push(Place {
                partition,
                next: 0,
                end: u64::MAX,
                epoch: batch.leader_epoch(),
                committed: None,
            });
            self.places.len() - 1
        });
        let place = &mut self.places[index];
        let end = if self.args.follow {
            u64::MAX
        } else {
            place.end
        };
        for record in batch.records() {
            if record.offset >= end || self.args.count.is_some_and(|count| self.records >= count) {
                return;
            }
            match self.args.output {
                OutputArg::Value => {
                    self.buffer
                        .extend_from_slice(record.value.unwrap_or_default());
                    self.buffer.push(b'\n');
                }
                OutputArg::Json => record_json::write(
                    Printed {
                        partition,
                        offset: record.offset,
                        timestamp_ms: record.timestamp_ms,
                        key: record.key,
                        value: record.value,
                    },
                    record.headers().map(|header| (header.key, header.value)),
                    &mut self.buffer,
                ),
            }
            self.records += 1;
            self.bytes += record.value.map_or(0, <[u8]>::len) as u64;
            place.next = record.offset + 1;
            place.epoch = batch.leader_epoch();
        }
        // Offsets may have gaps, the last one too.
        place.next = place.next.max(batch.next_offset());
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.out.write_all(&self.buffer).map_err(output::failure)?;
        self.buffer.clear();
        Ok(())
    }

    /// Commits what was written.
    fn commit(&mut self) -> Result<(), Error> {
        let Some(name) = &self.args.name else {
            return Ok(());
        };
        self.commit_at = Instant::now() + COMMIT_EVERY;
        for place in &mut self.places {
            if place.committed != Some(place.next) {
                let Place {
                    partition,
                    next,
                    epoch,
                    ..
                } = *place;
                self.client
                    .commit_offset(name, self.topic, partition, next, epoch)?;
                place.committed = Some(next);
            }
        }
        Ok(())
    }
}

/// A commit that failed for now is made up for by the next one, or by that at the end.
fn put_off(committed: Result<(), Error>) -> Result<(), Error> {
    committed.or_else(|error| {
        if error.is_retriable() {
            Ok(())
        } else {
            Err(error)
        }
    })
}

/// How long the broker has been away.
#[derive(Default)]
struct Outage {
    since: Option<Instant>,
}

impl Outage {
    /// Looks whether the connection is in trouble. Who follows is told once and waits; who wants to
    /// end is not kept for ever.
    fn look(&mut self, client: &Client, follow: bool) -> Result<(), Failure> {
        let Some(error) = client.trouble() else {
            self.since = None;
            return Ok(());
        };
        match self.since {
            None => {
                self.since = Some(Instant::now());
                if follow {
                    output::say(format_args!("{error}; trying again"));
                }
            }
            Some(since) if !follow && since.elapsed() >= GIVE_UP => {
                let message = format!("{error}; gave up after {} s", GIVE_UP.as_secs());
                return Err(Failure::new(Exit::Unreachable, message));
            }
            Some(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use ringtide_client::ErrorCode;

    fn args(line: &[&str]) -> ConsumeArgs {
        let line = [&["ringtide", "consume", "t"], line].concat();
        match crate::cli::Cli::parse_from(line).command {
            crate::cli::Command::Consume(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_name_means_to_go_on_where_it_was_unless_told_otherwise() {
        assert_eq!(check(&args(&[])).expect("fine"), From::Earliest);
        assert_eq!(
            check(&args(&["--name", "n"])).expect("fine"),
            From::Committed
        );
        let from = check(&args(&["--name", "n", "--from", "latest"])).expect("fine");
        assert_eq!(from, From::Latest);
    }

    #[test]
    fn a_commit_on_the_way_may_fail_for_now_but_not_for_good() {
        let away = Error::Timeout {
            what: "commit".into(),
            after: Duration::from_secs(15),
            why: "away".into(),
        };
        let refused = |code| Error::Broker {
            code,
            what: "commit".into(),
            message: "".into(),
        };
        assert!(put_off(Err(away)).is_ok());
        assert!(put_off(Err(refused(ErrorCode::ShuttingDown))).is_ok());
        assert!(put_off(Err(refused(ErrorCode::UnknownTopic))).is_err());
    }

    #[test]
    fn committed_needs_a_name_and_a_name_must_be_legal() {
        for line in [&["--from", "committed"][..], &["--name", "a/b"]] {
            assert_eq!(check(&args(line)).expect_err("usage").exit, Exit::Usage);
        }
    }
}
