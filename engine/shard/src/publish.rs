//! From a publish request to entries in the log: the checks, the offset, the one copy.

use ringtide_io::Now;
use ringtide_log::producers::Verdict;
use ringtide_log::wal::{EntryClass, EntryMeta, RESERVED_CHUNKS};
use ringtide_schema::batch;
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::{FLAG_MORE, FLAG_RESPONSE, Op};
use ringtide_schema::ids::PartitionId;
use ringtide_schema::limits::MAX_PUBLISH_PARTS;
use ringtide_schema::topic::{TimestampType, Visibility};
use ringtide_schema::wal::EntryKind;
use ringtide_schema::wire::{PublishRequest, PublishResponse, PublishResponseArgs, PublishResult};
use ringtide_session::{Frame, envelope};

use crate::commit::Answer;
use crate::fault::Fault;
use crate::mail::{Part, PartDone};
use crate::requests::{Handled, Place, bad_envelope};
use crate::session::{Multi, SessionKey};
use crate::settings::{READERS_WAIT_NS, SMALL_BATCH_BYTES};
use crate::{Fx, Shard};

/// A session remembers the pending durable publishes of this many partitions before it looks which
/// are still pending.
const PRUNE_DURABLE: usize = 1024;
const ACKS_NONE: u8 = 0;
const ACKS_DURABLE: u8 = 2;

/// What became of a batch.
enum Outcome {
    /// No room now: offer it again.
    Busy,
    /// Answered when the entry is durable, or at once if there is none to wait for.
    Result {
        result: PublishResult,
        wait: Option<u64>,
        message: Option<String>,
    },
}

/// Where the answer to a part goes.
#[derive(Clone, Copy)]
enum Asker {
    Single { key: SessionKey, correlation: u64 },
    Part { key: SessionKey, publish: u64 },
}

impl Shard {
    pub(crate) fn publish(
        &mut self,
        key: SessionKey,
        frame: &Frame<'_>,
        now: Now,
        fx: &mut Fx,
    ) -> Result<Handled, Fault> {
        let request = envelope::<PublishRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
        let acks = request.acks();
        let parts = request.parts().map(|p| p.into_iter()).into_iter().flatten();
        let count = request.parts().map_or(0, |p| p.len());
        if acks > ACKS_DURABLE {
            let message = format!("acks {acks} is unknown: 0 none, 1 accepted, 2 durable");
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
        if count == 0 || count > MAX_PUBLISH_PARTS {
            let message = format!("a publish has 1 to {MAX_PUBLISH_PARTS} parts, not {count}");
            let code = match count {
                0 => ErrorCode::InvalidRequest,
                _ => ErrorCode::TooMany,
            };
            return Err(Fault::new(code, message));
        }
        let named: usize = parts.clone().map(|p| p.batch_bytes() as usize).sum();
        if named != frame.payload.len() {
            let message = format!(
                "the parts name {named} bytes of batches, the payload has {}",
                frame.payload.len()
            );
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
        if count == 1
            && let Some(part) = request.parts().map(|p| p.get(0))
        {
            let id = PartitionId::from(part.partition());
            let asker = Asker::Single {
                key,
                correlation: frame.header.correlation,
            };
            return match self.locate(id)? {
                Place::Here(i) => Ok(self.publish_part(asker, 0, i, acks, frame.payload, now, fx)),
                Place::Shard(shard) => self.forward(key, shard, Op::Publish, frame, fx),
            };
        }
        let (done, publish) = self.begin_multi(key, frame.header.correlation, count, acks);
        let mut rest = frame.payload;
        for (part, named) in parts.enumerate() {
            let (bytes, after) = rest.split_at(named.batch_bytes() as usize);
            rest = after;
            if part < done as usize {
                continue;
            }
            let id = PartitionId::from(named.partition());
            let part = part as u32;
            match self.locate(id) {
                Ok(Place::Here(i)) => {
                    let asker = Asker::Part { key, publish };
                    let handled = self.publish_part(asker, part, i, acks, bytes, now, fx);
                    if handled == Handled::Blocked {
                        return Ok(self.pause_multi(key, part, publish));
                    }
                }
                Ok(Place::Shard(_)) if self.is_stopping => {
                    let fault = Fault::shutting_down();
                    self.part_done(key, publish, refused(part, fault.code), Some(fault.message));
                }
                Ok(Place::Shard(shard)) => {
                    let mail = || Part {
                        publish,
                        part,
                        acks,
                        partition: id,
                        batch: bytes.to_vec(),
                    };
                    if !self.forward_part(key, shard, mail, fx) {
                        return Ok(self.pause_multi(key, part, publish));
                    }
                }
                Err(fault) => {
                    self.part_done(key, publish, refused(part, fault.code), Some(fault.message));
                }
            }
        }
        Ok(if acks == ACKS_NONE {
            Handled::Done
        } else {
            Handled::Later
        })
    }

    /// Registers a request of several parts, or finds the one that was blocked.
    fn begin_multi(
        &mut self,
        key: SessionKey,
        correlation: u64,
        count: usize,
        acks: u8,
    ) -> (u32, u64) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return (0, 0);
        };
        if let Some(resume) = session.resume.take() {
            return resume;
        }
        self.next_publish += 1;
        let answered = acks != ACKS_NONE;
        let multi = Multi {
            correlation,
            remaining: count as u32,
            results: Vec::new(),
            message: None,
            answered,
        };
        session.multis.insert(self.next_publish, multi);
        (0, self.next_publish)
    }

    /// A part of a request of several found no room: the request goes on there.
    fn pause_multi(&mut self, key: SessionKey, part: u32, publish: u64) -> Handled {
        if let Some(session) = self.sessions.get_mut(&key) {
            session.resume = Some((part, publish));
        }
        Handled::Blocked
    }

    /// A part that another shard sent for one of its connections.
    pub(crate) fn publish_forwarded(
        &mut self,
        key: SessionKey,
        part: &Part,
        now: Now,
        fx: &mut Fx,
    ) -> Handled {
        let &Part { publish, acks, .. } = part;
        let asker = Asker::Part { key, publish };
        match self.locate(part.partition) {
            Ok(Place::Here(i)) => {
                self.publish_part(asker, part.part, i, acks, &part.batch, now, fx)
            }
            Ok(Place::Shard(_)) => {
                unreachable!("{key:?} sent a part that is not for this shard: all place alike")
            }
            Err(fault) => {
                let result = refused(part.part, fault.code);
                self.part_done(key, publish, result, Some(fault.message));
                Handled::Later
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one part of a request, spelled out"
    )]
    fn publish_part(
        &mut self,
        asker: Asker,
        part: u32,
        i: usize,
        acks: u8,
        bytes: &[u8],
        now: Now,
        fx: &mut Fx,
    ) -> Handled {
        let outcome = match self.append(part, i, bytes, now, fx) {
            Ok(outcome) => outcome,
            Err(fault) => Outcome::Result {
                result: refused(part, fault.code),
                wait: None,
                message: Some(fault.message),
            },
        };
        let (result, wait, message) = match outcome {
            Outcome::Busy => return Handled::Blocked,
            Outcome::Result {
                result,
                wait,
                message,
            } => (result, wait, message),
        };
        let (Asker::Single { key, .. } | Asker::Part { key, .. }) = asker;
        if let Some(message) = &message
            && let Some(session) = self.sessions.get_mut(&key)
        {
            session.log_refusal(Op::Publish, result.error(), message);
        }
        if acks == ACKS_NONE {
            if let Asker::Part { publish, .. } = asker {
                self.part_done(key, publish, result, message);
            }
            return Handled::Done;
        }
        let id = self.partitions[i]
            .as_ref()
            .map(|h| h.log.id())
            .unwrap_or_default();
        let committed = self.wal.committed();
        let session = self.sessions.get_mut(&key);
        // Answers of one partition leave in order: nothing overtakes a durable one.
        let wait = if acks == ACKS_DURABLE {
            if let (Some(session), Some(seq)) = (session, wait) {
                if session.durable.len() >= PRUNE_DURABLE {
                    session.durable.retain(|_, seq| *seq > committed);
                }
                let last = session.durable.entry(id).or_insert(seq);
                *last = seq.max(*last);
                Some(seq)
            } else {
                wait.or_else(|| self.durable_before(key, id, committed))
            }
        } else {
            self.durable_before(key, id, committed)
        };
        let wait = wait.filter(|&seq| seq > committed);
        if let Some(seq) = wait {
            self.wal.want(seq);
        }
        self.give(asker, result, message, wait);
        Handled::Later
    }

    fn durable_before(&self, key: SessionKey, id: PartitionId, committed: u64) -> Option<u64> {
        let durable = &self.sessions.get(&key)?.durable;
        if durable.is_empty() {
            return None;
        }
        durable.get(&id).copied().filter(|&seq| seq > committed)
    }

    /// Answers now, or when the entry is durable.
    fn give(
        &mut self,
        asker: Asker,
        result: PublishResult,
        message: Option<String>,
        wait: Option<u64>,
    ) {
        let answer = match asker {
            Asker::Single { key, correlation } => Answer::Publish {
                key,
                correlation,
                result,
                message,
            },
            Asker::Part { key, publish } => Answer::Part {
                key,
                publish,
                result,
                message,
            },
        };
        match wait {
            Some(seq) => self.wait_for(seq, answer),
            None => self.answer(answer),
        }
    }

    /// Checks a batch, gives it its offset and copies it into the log.
    fn append(
        &mut self,
        part: u32,
        i: usize,
        bytes: &[u8],
        now: Now,
        fx: &mut Fx,
    ) -> Result<Outcome, Fault> {
        if self.is_stopping {
            return Err(Fault::shutting_down());
        }
        if let Some(message) = &self.upkeep.disk_full {
            return Err(Fault::new(ErrorCode::DiskFull, message.clone()));
        }
        let Some(Some(held)) = self.partitions.get_mut(i) else {
            return Err(Fault::new(
                ErrorCode::UnknownPartition,
                "the partition was deleted",
            ));
        };
        let config = *held.log.config();
        let mut header = batch::check_publish(bytes, config.max_batch_bytes as usize)?;
        if config.timestamp_type == TimestampType::Create
            && let Some(ahead) = config.timestamp_max_ahead_ms
            && header.max_timestamp_ms > now.wall_ms.saturating_add_unsigned(ahead)
        {
            let message = format!(
                "timestamp {} is more than {ahead} ms (timestamp-max-ahead-ms) ahead of the \
                 broker's clock, which says {}: check the clocks",
                header.max_timestamp_ms, now.wall_ms
            );
            return Err(Fault::new(ErrorCode::TimestampTooFarAhead, message));
        }
        let epoch = self.settings.leader_epoch;
        let result = |duplicate, base_offset, append_time_ms| {
            PublishResult::new(part, 0, duplicate, epoch, base_offset, append_time_ms)
        };
        let producer = header.producer_id;
        let fault = |code, message: String| {
            Err(Fault::new(
                code,
                format!("producer {producer}, {}: {message}", held.log.id()),
            ))
        };
        match held.log.check_producer(&header) {
            Verdict::New => {}
            Verdict::Duplicate {
                base_offset,
                append_time_ms,
            } => {
                let wait = held.log.seq_of(base_offset);
                let result = result(true, base_offset, append_time_ms);
                return Ok(Outcome::Result {
                    result,
                    wait,
                    message: None,
                });
            }
            Verdict::DuplicateTooOld => {
                // Where it lies is not known any more: what is known to be durable is all of it.
                let wait = held.log.latest().checked_sub(1);
                let wait = wait.and_then(|last| held.log.seq_of(last));
                let sequence = header.base_sequence;
                let id = held.log.id();
                return Ok(Outcome::Result {
                    result: refused(part, ErrorCode::DuplicateSequence),
                    wait,
                    message: Some(format!(
                        "producer {producer}, {id}: sequence {sequence} was appended before"
                    )),
                });
            }
            Verdict::OutOfOrder { expected } => {
                let sequence = header.base_sequence;
                let message = format!("sequence {sequence} came where {expected} is next");
                return fault(ErrorCode::OutOfOrderSequence, message);
            }
            Verdict::Unknown => {
                let sequence = header.base_sequence;
                let message = format!("nothing is known of it, and sequence {sequence} is not 0");
                return fault(ErrorCode::UnknownProducer, message);
            }
            Verdict::Fenced { epoch } => {
                return fault(ErrorCode::ProducerFenced, format!("epoch {epoch} was seen"));
            }
        }
        if self.wal.room(EntryClass::Ordinary, bytes.len()).is_err()
            || !room_for_small(&mut self.arena, &self.pool, bytes)
        {
            return Ok(Outcome::Busy);
        }
        let base_offset = held.log.latest();
        let group_id = held.log.group();
        let group = self.groups.entry(group_id).or_default();
        let meta = EntryMeta {
            kind: EntryKind::Batch,
            class: EntryClass::Ordinary,
            group: group_id,
            group_index: group.last_index + 1,
            partition: held.log.id(),
            base_offset,
            append_time_ms: now.wall_ms,
        };
        let fill = |target: &mut [u8]| {
            target.copy_from_slice(bytes);
            if config.timestamp_type == TimestampType::Append {
                batch::stamp_append_time(target, now.wall_ms);
            }
            batch::assign(target, base_offset, epoch as i32);
        };
        let Ok(entry) = self
            .wal
            .append(meta, bytes.len(), fill, now.mono_ns, &mut fx.disk)
        else {
            return Ok(Outcome::Busy);
        };
        group.last_index += 1;
        if config.timestamp_type == TimestampType::Append {
            header.max_timestamp_ms = now.wall_ms;
        }
        let kept = match &mut self.arena {
            Some(arena) if bytes.len() < SMALL_BATCH_BYTES => {
                let at = arena.len();
                arena.append(&entry.payload);
                arena.slice(at..at + bytes.len())
            }
            _ => entry.payload,
        };
        held.log
            .append(&header, epoch, entry.seq, kept, now.wall_ms);
        self.appended.push_back((entry.seq, i, held.log.latest()));
        match config.visible {
            Visibility::Accepted => self.wake(i),
            Visibility::Durable if held.watchers.is_empty() => {}
            Visibility::Durable => self.wal.want_by(now.mono_ns + READERS_WAIT_NS),
        }
        let append_time_ms = now.wall_ms;
        let result = result(false, base_offset, append_time_ms);
        Ok(Outcome::Result {
            result,
            wait: Some(entry.seq),
            message: None,
        })
    }

    /// Answers a publish of one part.
    pub(crate) fn answer_publish(
        &mut self,
        key: SessionKey,
        correlation: u64,
        result: PublishResult,
        message: Option<&str>,
    ) {
        // Answers leave in the order in which they came to be.
        if self
            .sessions
            .get(&key)
            .is_some_and(|s| !s.multis.is_empty())
        {
            self.flush_multis(key);
        }
        self.reply(key, Op::Publish, FLAG_RESPONSE, correlation, |b| {
            let message = message.map(|m| b.create_string(m));
            let results = Some(b.create_vector(&[result]));
            PublishResponse::create(b, &PublishResponseArgs { results, message })
        });
        self.finish(key, Op::Publish);
    }

    /// A part of a request of several has its answer, which leaves at the end of the turn: to the
    /// peer, or to the shard that sent the part.
    pub(crate) fn part_done(
        &mut self,
        key: SessionKey,
        publish: u64,
        result: PublishResult,
        message: Option<String>,
    ) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        if let SessionKey::Remote(..) = key {
            session.parts.push(PartDone {
                at: session.out.len(),
                publish,
                result,
                message,
            });
            return self.mark_ready(key);
        }
        let Some(multi) = session.multis.get_mut(&publish) else {
            return;
        };
        multi.remaining -= 1;
        if !multi.answered {
            if multi.remaining == 0 {
                session.multis.remove(&publish);
            }
            return;
        }
        multi.results.push(result);
        multi.message = multi.message.take().or(message);
        self.mark_ready(key);
    }

    /// Puts the gathered answers of requests of several parts into the session's `out`.
    pub(crate) fn flush_multis(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let mut finished = 0;
        let encoder = &mut self.encoder;
        let out = &mut session.out;
        session.multis.retain(|_, multi| {
            if multi.results.is_empty() {
                return true;
            }
            let more = if multi.remaining > 0 { FLAG_MORE } else { 0 };
            let flags = FLAG_RESPONSE | more;
            encoder.frame(out, Op::Publish, flags, multi.correlation, 0, |b| {
                let message = multi.message.take().map(|m| b.create_string(&m));
                let results = Some(b.create_vector(&multi.results));
                PublishResponse::create(b, &PublishResponseArgs { results, message })
            });
            multi.results.clear();
            finished += u32::from(multi.remaining == 0);
            multi.remaining > 0
        });
        for _ in 0..finished {
            session.finish(Op::Publish);
        }
    }
}

/// A part that was refused.
fn refused(part: u32, code: ErrorCode) -> PublishResult {
    PublishResult::new(part, code as u16, false, 0, 0, -1)
}

/// Makes room for a small batch's packed copy; without memory for it, the batch must wait.
fn room_for_small(
    arena: &mut Option<ringtide_io::Chunk>,
    pool: &ringtide_io::Pool,
    bytes: &[u8],
) -> bool {
    if bytes.len() >= SMALL_BATCH_BYTES || arena.as_ref().is_some_and(|a| a.room() >= bytes.len()) {
        return true;
    }
    // The log's own next chunk comes first: one more must be free beside this one.
    let Some(chunk) = pool.take_above(RESERVED_CHUNKS + 1) else {
        return false;
    };
    *arena = Some(chunk);
    true
}
