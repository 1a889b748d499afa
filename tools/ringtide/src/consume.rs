//! `ringtide consume`: records to standard output.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringtide_client::sync::{Client, Consumer};
use ringtide_client::{Batch, ConsumerOptions, Error, ErrorCode, OffsetAt, Start, Topic};
use ringtide_schema::topic::check_consumer_name;

use crate::cli::{ConsumeArgs, From, OutputArg};
use crate::connect::{connect, exit_of, of_topic};
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
    /// The last commit failed, and is to be made up for.
    put_off: bool,
    /// Something there cannot be read.
    is_stopped: bool,
}

/// Runs the command.
pub(crate) fn run(args: &ConsumeArgs) -> Result<(), Failure> {
    let from = check(args)?;
    let client = connect(&args.server)?;
    let topic = client.topic(&args.topic).map_err(of_topic(&args.topic))?;
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
        told: false,
        failed: None,
        progress: Progress::beside_output(),
    };
    let ended = if reading.is_done() {
        Ok(())
    } else {
        reading.read_all()
    };
    let written = reading.flush().and_then(|()| match reading.commit(true) {
        // What was read is gone: the place before it stands.
        Err(Error::OffsetOutOfRange { .. }) => Ok(()),
        committed => Ok(committed?),
    });
    reading.progress.clear();
    // What was asked for and not delivered decides the code, unless something worse happened.
    let records = reading.records;
    let fewer = args.count.filter(|&count| records < count);
    let is_enough = args.count.is_some() && fewer.is_none();
    match (ended.and(written), reading.failed, fewer) {
        (Err(failure), _, Some(_)) if failure.exit == Exit::Done => {
            Err(Failure::new(Exit::FewerThanAsked, failure.message))
        }
        (Err(failure), ..) => Err(failure),
        (Ok(()), Some(exit), _) if !is_enough => {
            let message = "not everything was read: what could not be is above";
            Err(Failure::new(exit, message))
        }
        (Ok(()), None, Some(count)) => Err(Failure::new(
            Exit::FewerThanAsked,
            format!(
                "{} has {records} records there, {count} were asked for",
                args.topic
            ),
        )),
        (Ok(()), ..) => Ok(()),
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
                From::Offset(offset) if !(earliest..=end).contains(&offset) => {
                    let name = &topic.name;
                    return Err(Failure::failed(format!(
                        "--from {offset} is out of range in {name}/{partition}, which begins at \
                         {earliest} and ends before {end}: give an offset within, or name the \
                         partition that is meant with --partition"
                    )));
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
                    within(&topic.name, partition, committed, earliest, end)
                }
            };
            Ok(Place {
                partition,
                next,
                end,
                epoch: state.leader_epoch,
                committed: None,
                put_off: false,
                is_stopped: false,
            })
        })
        .collect()
}

/// A place, moved to where there is something to read, with a word about it.
fn within(topic: &str, partition: u32, place: u64, earliest: u64, end: u64) -> u64 {
    if place < earliest {
        output::say(format_args!(
            "{topic}/{partition}: records {place} to {} were removed before they were read; going on at {earliest}",
            earliest - 1
        ));
    } else if place > end {
        output::say(format_args!(
            "{topic}/{partition}: offset {place} is past the end; going on at {end}"
        ));
    }
    place.clamp(earliest, end)
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
    /// That commits fail was said.
    told: bool,
    /// Some partitions were not read to their end: with this code.
    failed: Option<Exit>,
    progress: Progress,
}

impl Reading<'_> {
    fn is_done(&self) -> bool {
        let enough = self.args.count.is_some_and(|count| self.records >= count);
        enough || (!self.args.follow && !self.places.iter().any(|place| self.goes_on(place)))
    }

    /// Whether there is more to be read of a partition.
    fn goes_on(&self, place: &Place) -> bool {
        !place.is_stopped && (self.args.follow || place.next < place.end)
    }

    /// Which place is that in a partition; one that was added since is read from its beginning.
    fn place(&mut self, partition: u32) -> usize {
        let known = self.places.iter().position(|p| p.partition == partition);
        known.unwrap_or_else(|| {
            self.places.push(Place {
                partition,
                next: 0,
                end: u64::MAX,
                epoch: 0,
                committed: None,
                put_off: false,
                is_stopped: false,
            });
            self.places.len() - 1
        })
    }

    /// Partitions cannot be read further. The others are, if there are any.
    fn stopped(&mut self, partitions: &[u32], error: &Error) -> Result<(), Failure> {
        let failure = Failure::new(exit_of(error), words(error));
        let mut is_wanted = partitions.is_empty();
        for &partition in partitions {
            let follow = self.args.follow;
            let index = self.place(partition);
            let place = &mut self.places[index];
            is_wanted |= !place.is_stopped && (follow || place.next < place.end);
            place.is_stopped = true;
        }
        if !is_wanted {
            // Everything that was asked for of it is there.
            return Ok(());
        }
        if !self.places.iter().any(|place| self.goes_on(place)) {
            return Err(failure);
        }
        output::say(format_args!("{failure}; the other partitions go on"));
        self.failed.get_or_insert(failure.exit);
        Ok(())
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
            let mut taken = self.take(&mut consumer, Duration::ZERO)?;
            if taken {
                if self.buffer.len() >= WRITE_BYTES {
                    self.flush()?;
                }
            } else {
                // Nothing more is here: what was gathered is wanted now.
                self.flush()?;
                taken = self.take(&mut consumer, LOOK_AROUND)?;
                if !taken {
                    let trouble = self.client.trouble().or_else(|| consumer.trouble());
                    outage.look(trouble, self.args.follow)?;
                    self.look_at_ends()?;
                }
            }
            if taken {
                outage.since = None;
            }
            let due = self.args.name.is_some() && Instant::now() >= self.commit_at;
            // While the broker is away a commit would only keep everything else waiting.
            if due && (taken || self.client.trouble().is_none()) {
                self.flush()?;
                let committed = self.commit(self.client.trouble().is_none());
                self.put_off(committed)?;
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
            .filter(|place| !place.is_stopped && place.next < place.end)
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
        match consumer.poll(wait) {
            Ok(Some(batch)) => {
                self.add(&batch);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => {
                if !self.move_within(consumer, &error)? {
                    self.stopped(&consumer.stopped(), &error)?;
                }
                Ok(true)
            }
        }
    }

    /// What comes next in a partition is not there any more: retention has removed it, or it was only accepted
    /// and went with a crash of the broker. Whether reading goes on where there is something.
    fn move_within(&mut self, consumer: &mut Consumer, error: &Error) -> Result<bool, Failure> {
        let Error::OffsetOutOfRange { partition, .. } = *error else {
            return Ok(false);
        };
        let index = self.place(partition);
        let place = &mut self.places[index];
        let topic = &self.args.topic;
        match self.client.describe_partition(topic, partition) {
            Ok(state) => {
                place.next = within(topic, partition, place.next, state.earliest, state.latest);
                place.end = place.end.min(state.latest);
                place.epoch = state.leader_epoch;
            }
            // The refusal comes again when somebody is there.
            Err(error) if is_out_of_reach(&error) => {}
            Err(error) => return Err(error.into()),
        }
        consumer.seek(partition, Start::Offset(place.next))?;
        Ok(true)
    }

    /// Gathers the records of a batch that are wanted.
    fn add(&mut self, batch: &Batch<'_>) {
        let partition = batch.partition();
        let index = self.place(partition);
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

    /// Commits what was written; those that were put off only if `again`.
    fn commit(&mut self, again: bool) -> Result<(), Error> {
        let Some(name) = &self.args.name else {
            return Ok(());
        };
        let (client, topic) = (self.client, self.topic);
        // The time that a shard which is away takes is taken once.
        let mut away: Vec<(String, Error)> = Vec::new();
        let outcome = commit_each(&mut self.places, again, |place| {
            let partition = place.partition;
            let owner = client.owner(topic, partition)?;
            if let Some((_, error)) = away.iter().find(|(server, _)| *server == owner) {
                return Err(error.clone());
            }
            let outcome = client.commit_offset(name, topic, partition, place.next, place.epoch);
            if let Err(error) = &outcome
                && is_out_of_reach(error)
            {
                away.push((owner, error.clone()));
            }
            outcome
        });
        self.commit_at = Instant::now() + COMMIT_EVERY;
        outcome
    }

    /// A commit that found nobody is made up for by a later one, or by that at the end.
    fn put_off(&mut self, committed: Result<(), Error>) -> Result<(), Error> {
        if let Err(error) = committed {
            if !may_be_put_off(&error) {
                return Err(error);
            }
            if is_out_of_reach(&error) && !self.told {
                self.told = true;
                output::say(format_args!("{error}; trying again"));
            }
        }
        self.told &= self.places.iter().any(|place| place.put_off);
        Ok(())
    }
}

/// What cannot be read, and how to go on behind it.
fn words(error: &Error) -> String {
    match error {
        Error::BadBatch {
            topic,
            partition,
            offset,
            next: Some(next),
            why,
        } => format!(
            "the batch at offset {offset} of {topic}/{partition} cannot be read: {why}; what follows can be with \
             --partition {partition} --from {next}"
        ),
        _ => error.to_string(),
    }
}

/// Commits each place that has moved; the error is the first of them.
fn commit_each(
    places: &mut [Place],
    again: bool,
    mut commit: impl FnMut(&Place) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut outcome = Ok(());
    for place in places {
        if place.committed == Some(place.next) || (place.put_off && !again) {
            continue;
        }
        let committed = commit(place);
        place.put_off = committed.is_err();
        if committed.is_ok() {
            place.committed = Some(place.next);
        }
        // A place that is past the end is found by reading too: another error says more.
        outcome = match (outcome, committed) {
            (Ok(()) | Err(Error::OffsetOutOfRange { .. }), Err(error)) => Err(error),
            (outcome, _) => outcome,
        };
    }
    outcome
}

/// Whether it was only that nobody was there to do it, or that the place is past the end, which reading
/// finds too.
fn may_be_put_off(error: &Error) -> bool {
    is_out_of_reach(error) || matches!(error, Error::OffsetOutOfRange { .. })
}

/// Whether it was only that nobody was there to do it.
fn is_out_of_reach(error: &Error) -> bool {
    match error {
        Error::Timeout { .. } | Error::Disconnected { .. } | Error::Connect { .. } => true,
        Error::Broker { code, .. } => {
            matches!(
                code,
                ErrorCode::ShuttingDown | ErrorCode::Overloaded | ErrorCode::DiskFull
            )
        }
        _ => false,
    }
}

/// How long the broker has been away, or has refused to give what it has.
#[derive(Default)]
struct Outage {
    /// With nothing to read meanwhile.
    since: Option<Instant>,
    told: bool,
}

impl Outage {
    /// Looks at why nothing comes, unless it is that nothing more is there. Who follows is told once and waits; who
    /// wants to end is not kept for ever.
    fn look(&mut self, trouble: Option<Error>, follow: bool) -> Result<(), Failure> {
        let Some(error) = trouble else {
            *self = Self::default();
            return Ok(());
        };
        if follow && !self.told {
            self.told = true;
            output::say(format_args!("{error}; trying again"));
        }
        match self.since {
            None => self.since = Some(Instant::now()),
            Some(since) if !follow && since.elapsed() >= GIVE_UP => {
                let message = format!("{error}; gave up after {} s", GIVE_UP.as_secs());
                return Err(Failure::new(exit_of(&error), message));
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

    fn away() -> Error {
        Error::Timeout {
            what: "commit".into(),
            after: Duration::from_secs(15),
            why: "away".into(),
        }
    }

    #[test]
    fn a_commit_that_found_nobody_may_be_put_off_and_one_that_was_refused_may_not() {
        let refused = |code| Error::Broker {
            code,
            what: "commit".into(),
            message: "".into(),
        };
        assert!(is_out_of_reach(&away()));
        assert!(is_out_of_reach(&refused(ErrorCode::ShuttingDown)));
        assert!(is_out_of_reach(&refused(ErrorCode::Overloaded)));
        assert!(is_out_of_reach(&refused(ErrorCode::DiskFull)));
        assert!(!is_out_of_reach(&refused(ErrorCode::TooMany)));
        assert!(!is_out_of_reach(&refused(ErrorCode::UnknownTopic)));
    }

    #[test]
    fn a_partition_that_is_away_does_not_keep_those_behind_it_from_being_committed() {
        let place = |partition| Place {
            partition,
            next: 5,
            end: 9,
            epoch: 1,
            committed: None,
            put_off: false,
            is_stopped: false,
        };
        let mut places = [place(0), place(1), place(2)];
        let mut asked = Vec::new();
        let mut commit = |places: &mut [Place], again| {
            let outcome = commit_each(places, again, |place| {
                asked.push(place.partition);
                (place.partition != 1).then_some(()).ok_or_else(away)
            });
            (outcome.is_ok(), std::mem::take(&mut asked))
        };
        assert_eq!(commit(&mut places, true), (false, vec![0, 1, 2]));
        assert_eq!(
            places.map(|place| place.committed),
            [Some(5), None, Some(5)]
        );
        assert_eq!(commit(&mut places, false), (true, vec![]));
        assert_eq!(commit(&mut places, true), (false, vec![1]));
    }

    #[test]
    fn committed_needs_a_name_and_a_name_must_be_legal() {
        for line in [&["--from", "committed"][..], &["--name", "a/b"]] {
            assert_eq!(check(&args(line)).expect_err("usage").exit, Exit::Usage);
        }
    }
}
