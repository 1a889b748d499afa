//! Questions about a partition, and the offsets that named consumers keep there.

use ringtide_io::{DiskOp, Now};
use ringtide_log::partition::{FileRange, TimePlan};
use ringtide_log::wal::{EntryClass, EntryMeta};
use ringtide_schema::batch::{BatchError, Batches, check_stored};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::{FLAG_RESPONSE, Op};
use ringtide_schema::limits::{
    MAX_CONSUMERS_PER_GROUP, MAX_CONSUMERS_PER_PARTITION, SEARCH_INFLATED_BYTES,
};
use ringtide_schema::record::records;
use ringtide_schema::store::{CommitOffsetT, CommittedT};
use ringtide_schema::topic::check_consumer_name;
use ringtide_schema::wal::EntryKind;
use ringtide_schema::wire;
use ringtide_session::{Frame, envelope};

use crate::commit::Answer;
use crate::fault::Fault;
use crate::requests::{Handled, Place, bad_envelope, partition_of};
use crate::session::SessionKey;
use crate::settings::MAX_SEARCHES;
use crate::{Fx, Held, Pending, Shard};

/// What a search reads.
#[derive(Debug)]
pub(crate) struct Searched {
    /// Its first offset.
    first_offset: u64,
    /// Where to go on if it is not in there.
    otherwise: u64,
    /// The bytes that follow what is read.
    rest: Vec<u8>,
}

/// A search for the first record at or after a time.
#[derive(Debug)]
pub(crate) struct Search {
    pub(crate) key: SessionKey,
    correlation: u64,
    partition: usize,
    timestamp_ms: i64,
    /// Nothing before this offset is late enough.
    offset: u64,
    /// The base offset of the segment that it waits for unless it reads.
    waits_for: u64,
    /// A read is under way.
    pub(crate) reading: Option<Searched>,
}

impl Shard {
    pub(crate) fn describe_partition(
        &mut self,
        key: SessionKey,
        frame: &Frame<'_>,
        fx: &mut Fx,
    ) -> Result<Handled, Fault> {
        let request =
            envelope::<wire::DescribePartitionRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
        let i = match self.locate(partition_of(request.partition())?)? {
            Place::Here(i) => i,
            Place::Shard(shard) => {
                return self.forward(key, shard, Op::DescribePartition, frame, fx);
            }
        };
        let shard = self.settings.shard;
        let leader_epoch = self.settings.leader_epoch;
        let Some(held) = self.held(i) else {
            return Ok(Handled::Done);
        };
        let (segments, bytes) = held.log.size();
        let answer = wire::DescribePartitionResponseT {
            earliest: held.log.earliest(),
            visible: held.log.visible(),
            committed: held.log.committed(),
            latest: held.log.latest(),
            leader_epoch,
            shard,
            log_group: held.log.group().0,
            segments,
            bytes,
        };
        let correlation = frame.header.correlation;
        self.reply(
            key,
            Op::DescribePartition,
            FLAG_RESPONSE,
            correlation,
            |b| answer.pack(b),
        );
        Ok(Handled::Done)
    }

    pub(crate) fn list_offsets(
        &mut self,
        key: SessionKey,
        frame: &Frame<'_>,
        fx: &mut Fx,
    ) -> Result<Handled, Fault> {
        let request =
            envelope::<wire::ListOffsetsRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
        let i = match self.locate(partition_of(request.partition())?)? {
            Place::Here(i) => i,
            Place::Shard(shard) => return self.forward(key, shard, Op::ListOffsets, frame, fx),
        };
        let Some(held) = self.held(i) else {
            return Ok(Handled::Done);
        };
        let (earliest, visible) = (held.log.earliest(), held.log.visible());
        let correlation = frame.header.correlation;
        match request.at() {
            -1 => self.answer_offset(key, correlation, i, visible, -1),
            -2 => self.answer_offset(key, correlation, i, earliest, -1),
            at if at < 0 => {
                let message = format!("{at} is not -1 (latest), -2 (earliest) or a time from 0");
                return Err(Fault::new(ErrorCode::InvalidRequest, message));
            }
            timestamp_ms => {
                if self.searches.len() >= MAX_SEARCHES {
                    return Ok(Handled::Blocked);
                }
                self.next_search += 1;
                let search = Search {
                    key,
                    correlation,
                    partition: i,
                    timestamp_ms,
                    offset: earliest,
                    waits_for: earliest,
                    reading: None,
                };
                self.searches.insert(self.next_search, search);
                self.step_search(self.next_search, fx);
            }
        }
        Ok(Handled::Later)
    }

    fn answer_offset(
        &mut self,
        key: SessionKey,
        correlation: u64,
        i: usize,
        offset: u64,
        timestamp_ms: i64,
    ) {
        let leader_epoch = self.partitions[i]
            .as_ref()
            .map_or(0, |h| h.log.leader_epoch());
        self.reply(key, Op::ListOffsets, FLAG_RESPONSE, correlation, |b| {
            wire::ListOffsetsResponseT {
                offset,
                timestamp_ms,
                leader_epoch,
            }
            .pack(b)
        });
        self.finish(key, Op::ListOffsets);
    }

    /// Searches that wait for the partition go on.
    pub(crate) fn step_searches(&mut self, i: usize, fx: &mut Fx) {
        for number in self.waiting_searches(i) {
            self.step_search(number, fx);
        }
    }

    /// Searches that wait for a segment of the partition are given up.
    pub(crate) fn refuse_searches(&mut self, i: usize, base_offset: u64, fault: &Fault) {
        for number in self.waiting_searches(i) {
            let waits_for = self.searches.get(&number).map(|s| s.waits_for);
            if waits_for == Some(base_offset) {
                self.end_search(number, Err(fault.clone()));
            }
        }
    }

    fn waiting_searches(&self, i: usize) -> Vec<u64> {
        let is_waiting = |s: &Search| s.partition == i && s.reading.is_none();
        let searches = self.searches.iter();
        let waiting = searches.filter(|(_, s)| is_waiting(s));
        waiting.map(|(&number, _)| number).collect()
    }

    fn step_search(&mut self, number: u64, fx: &mut Fx) {
        let Some(s) = self.searches.get(&number) else {
            return;
        };
        if !self.sessions.contains_key(&s.key) {
            self.searches.remove(&number);
            return;
        }
        let (i, timestamp_ms, offset, turn) = (s.partition, s.timestamp_ms, s.offset, self.turn);
        let plan = self.with_log(i, fx, |log, ops| {
            log.plan_time(timestamp_ms, offset, turn, ops)
        });
        match plan {
            None => self.end_search(
                number,
                Err(Fault::new(ErrorCode::UnknownTopic, "the topic was deleted")),
            ),
            Some(TimePlan::Wait(base_offset)) => {
                if let Some(s) = self.searches.get_mut(&number) {
                    s.waits_for = base_offset;
                }
            }
            Some(TimePlan::None) => self.end_search(number, Ok(None)),
            Some(TimePlan::Unreadable {
                first_offset,
                next_offset,
            }) => {
                let last = next_offset.saturating_sub(1);
                let message = format!(
                    "offsets {first_offset} to {last} cannot be searched for a time: there is damage among them; see the \
                     broker's log, and read by offset"
                );
                let fault = Fault::new(ErrorCode::DataUnreadable, message);
                self.end_search(number, Err(fault));
            }
            Some(TimePlan::Batch(bytes)) => {
                let first = Batches::new(&bytes).next().and_then(Result::ok);
                let first_offset = first.map_or(0, |(header, _)| header.base_offset);
                let found = first_at_or_after(&bytes, first_offset, timestamp_ms, offset);
                self.end_search(number, found);
            }
            Some(TimePlan::File {
                range,
                first_offset,
                otherwise,
            }) => {
                let FileRange {
                    file,
                    position,
                    bytes,
                    rest,
                } = range;
                let Some(file) = file else {
                    if let Some(s) = self.searches.get_mut(&number) {
                        s.reading = Some(Searched {
                            first_offset,
                            otherwise,
                            rest: Vec::new(),
                        });
                    }
                    return self.search_read(number, Ok(&rest), fx);
                };
                let Some(into) = self.pool.take().filter(|c| c.room() >= bytes) else {
                    let fault = Fault::new(ErrorCode::Overloaded, "no memory for the search");
                    return self.end_search(number, Err(fault));
                };
                if let Some(s) = self.searches.get_mut(&number) {
                    s.reading = Some(Searched {
                        first_offset,
                        otherwise,
                        rest,
                    });
                }
                let op = self.op(Pending::Search { number, bytes });
                fx.disk.push((
                    op,
                    DiskOp::Read {
                        file,
                        position,
                        bytes,
                        into,
                    },
                ));
            }
        }
    }

    /// The range that a search asked for was read, or not.
    pub(crate) fn search_read(&mut self, number: u64, read: Result<&[u8], String>, fx: &mut Fx) {
        let Some(s) = self.searches.get_mut(&number) else {
            return;
        };
        let (timestamp_ms, offset) = (s.timestamp_ms, s.offset);
        let Some(Searched {
            first_offset: first,
            otherwise,
            rest,
        }) = s.reading.take()
        else {
            return;
        };
        let found = match read {
            Ok(bytes) if rest.is_empty() => first_at_or_after(bytes, first, timestamp_ms, offset),
            Ok(bytes) => first_at_or_after(&[bytes, &rest].concat(), first, timestamp_ms, offset),
            Err(message) => Err(Fault::new(ErrorCode::DataUnreadable, message)),
        };
        match found {
            Ok(None) => {
                s.offset = otherwise.max(offset);
                self.step_search(number, fx);
            }
            found => self.end_search(number, found),
        }
    }

    fn end_search(&mut self, number: u64, found: Result<Option<(u64, i64)>, Fault>) {
        let Some(s) = self.searches.remove(&number) else {
            return;
        };
        match found {
            Ok(found) => {
                let end = self.partitions[s.partition]
                    .as_ref()
                    .map_or(0, |h| h.log.visible());
                let (offset, time) = found.unwrap_or((end, -1));
                self.answer_offset(s.key, s.correlation, s.partition, offset, time);
            }
            Err(fault) => self.refuse(s.key, Op::ListOffsets, s.correlation, &fault),
        }
    }

    pub(crate) fn commit_offset(
        &mut self,
        key: SessionKey,
        frame: &Frame<'_>,
        now: Now,
        fx: &mut Fx,
    ) -> Result<Handled, Fault> {
        let request =
            envelope::<wire::CommitOffsetRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
        let consumer = consumer_name(request.consumer())?;
        let i = match self.locate(partition_of(request.partition())?)? {
            Place::Here(i) => i,
            Place::Shard(shard) => return self.forward(key, shard, Op::CommitOffset, frame, fx),
        };
        if self.is_stopping {
            return Err(Fault::shutting_down());
        }
        let Some(Some(held)) = self.partitions.get_mut(i) else {
            return Ok(Handled::Done);
        };
        let (offset, latest) = (request.offset(), held.log.latest());
        if offset > latest {
            let message = format!(
                "offset {offset} of {} is past its end {latest}",
                held.log.id()
            );
            return Err(Fault {
                range: Some((held.log.earliest(), latest)),
                ..Fault::new(ErrorCode::OffsetOutOfRange, message)
            });
        }
        let is_new = held.log.consumer(consumer).is_none();
        if is_new && held.consumers_at_most() >= MAX_CONSUMERS_PER_PARTITION {
            let message = format!(
                "{} keeps offsets of {MAX_CONSUMERS_PER_PARTITION} consumers, which is the limit",
                held.log.id()
            );
            return Err(Fault::new(ErrorCode::TooMany, message));
        }
        if is_new && self.consumers_in_group(i) >= MAX_CONSUMERS_PER_GROUP {
            let message = format!(
                "the broker keeps {MAX_CONSUMERS_PER_GROUP} offsets of consumers in a log group, \
                 which is the limit: delete topics that are not needed"
            );
            return Err(Fault::new(ErrorCode::TooMany, message));
        }
        let Some(Some(held)) = self.partitions.get_mut(i) else {
            return Ok(Handled::Done);
        };
        let entry = CommitOffsetT {
            consumer: consumer.to_owned(),
            offset,
            leader_epoch: request.leader_epoch(),
            time_ms: now.wall_ms,
        };
        let payload = pack(|b| entry.pack(b));
        let group_id = held.log.group();
        let group = self.groups.entry(group_id).or_default();
        let meta = EntryMeta {
            kind: EntryKind::CommitOffset,
            class: EntryClass::Ordinary,
            group: group_id,
            group_index: group.last_index + 1,
            partition: held.log.id(),
            base_offset: offset,
            append_time_ms: now.wall_ms,
        };
        let fill = |target: &mut [u8]| target.copy_from_slice(&payload);
        let ops = &mut fx.disk;
        let appended = match self.wal.append(meta, payload.len(), fill, now.mono_ns, ops) {
            Ok(appended) => appended,
            Err(busy) => return self.no_room(busy),
        };
        group.last_index += 1;
        held.commits_under_way += 1;
        let committed = CommittedT {
            consumer: entry.consumer,
            offset,
            leader_epoch: entry.leader_epoch,
            time_ms: entry.time_ms,
        };
        self.wal.want(appended.seq);
        let answer = Answer::CommitOffset {
            key,
            correlation: frame.header.correlation,
            partition: i,
            committed,
        };
        self.wait_for(appended.seq, answer);
        Ok(Handled::Later)
    }

    /// Offsets of consumers that are kept for all partitions in the log group of this one.
    fn consumers_in_group(&self, i: usize) -> usize {
        let held = |i: usize| self.partitions.get(i).and_then(Option::as_ref);
        let group = held(i).and_then(|h| self.groups.get(&h.log.group()));
        let partitions = group.map_or(&[][..], |g| &g.partitions);
        let counts = partitions.iter().filter_map(|&i| held(i));
        counts.map(|held| held.consumers_at_most()).sum()
    }

    pub(crate) fn read_offset(
        &mut self,
        key: SessionKey,
        frame: &Frame<'_>,
        fx: &mut Fx,
    ) -> Result<Handled, Fault> {
        let request =
            envelope::<wire::ReadOffsetRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
        let consumer = consumer_name(request.consumer())?;
        let i = match self.locate(partition_of(request.partition())?)? {
            Place::Here(i) => i,
            Place::Shard(shard) => return self.forward(key, shard, Op::ReadOffset, frame, fx),
        };
        let committed = self.held(i).and_then(|h| h.log.consumer(consumer));
        let answer = wire::ReadOffsetResponseT {
            offset: committed.map_or(-1, |c| c.offset as i64),
            leader_epoch: committed.map_or(0, |c| c.leader_epoch),
        };
        let correlation = frame.header.correlation;
        self.reply(key, Op::ReadOffset, FLAG_RESPONSE, correlation, |b| {
            answer.pack(b)
        });
        Ok(Handled::Done)
    }
}

impl Held {
    /// Named consumers, those on their way included.
    fn consumers_at_most(&self) -> usize {
        self.log.consumers() + self.commits_under_way
    }
}

fn consumer_name(name: Option<&str>) -> Result<&str, Fault> {
    let name = name.unwrap_or_default();
    check_consumer_name(name).map_err(|e| {
        Fault::new(
            ErrorCode::InvalidConsumerName,
            format!("consumer name {name:?}: {e}"),
        )
    })?;
    Ok(name)
}

/// A FlatBuffer of its own, for an entry of the log.
pub(crate) fn pack<T>(
    build: impl FnOnce(
        &mut ringtide_schema::flatbuffers::FlatBufferBuilder<'static>,
    ) -> ringtide_schema::flatbuffers::WIPOffset<T>,
) -> Vec<u8> {
    let mut builder = ringtide_schema::flatbuffers::FlatBufferBuilder::new();
    let root = build(&mut builder);
    builder.finish_minimal(root);
    builder.finished_data().to_vec()
}

/// The first record from `offset` on at or after a time: its offset and timestamp. The first batch of the range
/// begins at `first_offset`. Headers can lie: of one that has no such record in spite of its header, or cannot be
/// inflated here, it is where its records may begin.
fn first_at_or_after(
    bytes: &[u8],
    first_offset: u64,
    timestamp_ms: i64,
    offset: u64,
) -> Result<Option<(u64, i64)>, Fault> {
    let unreadable = |from: u64, e: BatchError| {
        Fault::new(
            ErrorCode::DataUnreadable,
            format!(
                "the stored batch from offset {from} on is damaged ({e}), so that what is at or after a time \
                 cannot be told there; read by offset"
            ),
        )
    };
    let mut scratch = Vec::new();
    let mut expected = first_offset;
    for batch in Batches::new(bytes) {
        let from = expected;
        let (header, batch) = batch.map_err(|e| unreadable(from, e))?;
        if header.base_offset != expected {
            let base = header.base_offset;
            return Err(unreadable(from, BatchError::WrongOffset { base, expected }));
        }
        expected = header.next_offset();
        if header.next_offset() <= offset {
            continue;
        }
        if header.max_timestamp_ms < timestamp_ms {
            // Only if that is what was written.
            check_stored(batch).map_err(|e| unreadable(from, e))?;
            continue;
        }
        scratch.clear();
        let begin = (header.base_offset.max(offset), header.max_timestamp_ms);
        let Ok(records) = records(batch, &mut scratch, SEARCH_INFLATED_BYTES) else {
            check_stored(batch).map_err(|e| unreadable(from, e))?;
            return Ok(Some(begin));
        };
        let mut late = records
            .filter(|r| r.timestamp_ms >= timestamp_ms)
            .peekable();
        if late.peek().is_none() {
            return Ok(Some(begin));
        }
        if let Some(r) = late.find(|r| r.offset >= offset) {
            return Ok(Some((r.offset, r.timestamp_ms)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use ringtide_schema::batch::{Codec, assign};
    use ringtide_schema::record::BatchBuilder;

    use super::*;

    #[test]
    fn a_search_by_time_never_answers_from_a_damaged_batch() {
        // Three batches of three records; timestamps are ten times the offsets.
        let (mut bytes, mut truth) = (Vec::new(), Vec::new());
        for base in [0_u64, 3, 6] {
            let mut builder = BatchBuilder::new(Codec::None);
            for offset in base..base + 3 {
                builder.push(offset as i64 * 10, None, Some(b"value"), &[]);
                truth.push((offset, offset as i64 * 10));
            }
            let mut batch = Vec::new();
            builder.finish(-1, -1, -1, &mut batch).expect("records");
            assign(&mut batch, base, 1);
            bytes.extend(batch);
        }
        let (mut refused, mut answered) = (0, 0);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            for timestamp_ms in [-1, 0, 25, 30, 79, 80] {
                let expected = truth
                    .iter()
                    .copied()
                    .find(|(_, time)| *time >= timestamp_ms);
                match first_at_or_after(&damaged, 0, timestamp_ms, 0) {
                    Ok(found) => {
                        answered += 1;
                        assert_eq!(found, expected, "bit {bit}, time {timestamp_ms}");
                    }
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(refused > 0 && answered > 0);
    }
}
