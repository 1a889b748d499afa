//! What leaves a shard: answers first, then fetches, then subscriptions in turn. Batches are taken
//! from the log only when the session's one egress is free, so a slow peer holds one delivery.

use std::ops::Range;

use ringtide_io::net::{Body, Slices};
use ringtide_io::{DiskOp, Egress, NetOp, Now, Slice};
use ringtide_log::partition::{FileRange, Plan};
use ringtide_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringtide_schema::frame::{FLAG_RESPONSE, Op};
use ringtide_schema::limits::{MAX_DELIVERY_BYTES, MAX_MEMORY_DELIVERY_BYTES, MAX_PAYLOAD_BYTES};
use ringtide_schema::wire;

use crate::failed_reads::{self, Reading, Trust};
use crate::fault::Fault;
use crate::mail::{Mail, Reply};
use crate::session::SessionKey;
use crate::settings::MAX_LOOKS_A_TURN;
use crate::{Fx, Pending, Shard};

/// Payloads up to this size are copied behind their header instead of being sent from where they
/// lie: one short vector is sent faster than two.
const INLINE_BYTES: usize = 8 << 10;
/// An egress is sent when its head has grown to this.
const HEAD_BYTES: usize = 64 << 10;

/// What a session sends next, beside its answers.
enum Next {
    /// Nothing now.
    Nothing,
    /// More was put into the head.
    Inline,
    /// A body, whose header is at the end of the head.
    Body(Source),
}

/// Where batches are.
enum Source {
    Nothing,
    Memory(Slices),
    File(FileRange),
}

/// What there is for a reader at an offset.
enum Supply {
    /// Nothing yet.
    AtEnd,
    /// Something, once an index, a file or memory for it is there.
    Later,
    /// Batches, from the first offset of the first to that after the last.
    Batches {
        source: Source,
        bytes: usize,
        offsets: Range<u64>,
    },
    /// Nothing any more.
    Lost(Fault),
}

impl Shard {
    /// Sends what the session has to send, if its egress is free.
    pub(crate) fn pump(&mut self, key: SessionKey, now: Now, fx: &mut Fx) {
        self.flush_multis(key);
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        if session.is_sending {
            return;
        }
        let spare = std::mem::take(&mut session.spare);
        let mut head = std::mem::replace(&mut session.out, spare);
        let answers_bytes = head.len();
        let may_deliver = !session.is_closing && !session.is_undrained;
        let mut source = Source::Nothing;
        session.begin_to_look();
        // At fetches, at subscriptions: neither takes the turn of the other.
        let mut looks = [MAX_LOOKS_A_TURN; 2];
        while may_deliver && head.len() < HEAD_BYTES {
            match self.next_delivery(key, &mut head, &mut looks, now, fx) {
                Next::Nothing => break,
                Next::Inline => {}
                Next::Body(next) => {
                    source = next;
                    break;
                }
            }
        }
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        if looks.contains(&0) && !session.is_ready {
            session.is_ready = true;
            session.is_going_on = true;
            self.ready.push(key);
            self.is_behind = true;
        }
        let finished = std::mem::take(&mut session.finished);
        let SessionKey::Remote(shard, conn) = key else {
            let body = match source {
                Source::Nothing => Body::Nothing,
                Source::Memory(slices) => Body::Memory(slices),
                Source::File(range) => {
                    // The frame goes on with what is sent next.
                    session.out.extend_from_slice(&range.rest);
                    range.file.map_or(Body::Nothing, |file| Body::File {
                        file,
                        position: range.position,
                        bytes: range.bytes,
                    })
                }
            };
            return self.send(key, Egress { head, body }, fx);
        };
        let mut reply = Reply {
            is_delivery: head.len() > answers_bytes,
            bytes: head,
            parts: std::mem::take(&mut session.parts),
            finished,
        };
        if reply.bytes.is_empty() && reply.parts.is_empty() && reply.finished.all() == 0 {
            return;
        }
        session.is_undrained |= reply.is_delivery;
        match source {
            Source::Nothing => {}
            Source::Memory(slices) => {
                slices.iter().for_each(|s| reply.bytes.extend_from_slice(s));
            }
            Source::File(range) => {
                session.is_sending = true;
                return self.read_for_remote(key, reply, range, fx);
            }
        }
        fx.mail.push((shard, Mail::Reply { conn, reply }));
    }

    /// Sends to a peer of this shard; with nothing to send, a session that is closing ends.
    fn send(&mut self, key: SessionKey, egress: Egress, fx: &mut Fx) {
        let (Some(session), SessionKey::Local(conn)) = (self.sessions.get_mut(&key), key) else {
            return;
        };
        if !egress.head.is_empty() {
            session.is_sending = true;
            fx.net.push(NetOp::Send(conn, egress));
        } else {
            session.spare = egress.head;
            if session.is_closing {
                session.is_sending = true;
                fx.net.push(NetOp::Close(conn));
            }
        }
    }

    /// A file range cannot go through a mailbox: it is read first.
    fn read_for_remote(&mut self, key: SessionKey, reply: Reply, range: FileRange, fx: &mut Fx) {
        let (Some(into), Some(file)) = (self.pool.take(), range.file) else {
            unreachable!("`supply` has looked for a chunk, and `deliver` for a file");
        };
        let FileRange {
            position,
            bytes,
            rest,
            ..
        } = range;
        let op = self.op(Pending::RemoteRead {
            key,
            reply,
            bytes,
            rest,
        });
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

    /// The read for a connection of another shard ended. Without the bytes that its peer was
    /// promised, the connection is closed.
    pub(crate) fn remote_read_done(
        &mut self,
        key: SessionKey,
        mut reply: Reply,
        read: Option<(&[u8], Vec<u8>)>,
        fx: &mut Fx,
    ) {
        let (Some(session), SessionKey::Remote(shard, conn)) = (self.sessions.get_mut(&key), key)
        else {
            return;
        };
        session.is_sending = false;
        let reading = session.reading.take();
        self.mark_ready(key);
        if let (None, Some(reading)) = (&read, reading) {
            self.read_failed(reading);
        }
        let mail = match read {
            Some((read, rest)) => {
                reply.bytes.extend_from_slice(read);
                reply.bytes.extend_from_slice(&rest);
                Mail::Reply { conn, reply }
            }
            None => Mail::Broken { conn },
        };
        fx.mail.push((shard, mail));
    }

    fn next_delivery(
        &mut self,
        key: SessionKey,
        head: &mut Vec<u8>,
        [fetches, subscriptions]: &mut [usize; 2],
        now: Now,
        fx: &mut Fx,
    ) -> Next {
        match self.next_fetch(key, head, fetches, now, fx) {
            Next::Nothing => self.next_push(key, head, subscriptions, fx),
            next => next,
        }
    }

    fn next_fetch(
        &mut self,
        key: SessionKey,
        head: &mut Vec<u8>,
        looks: &mut usize,
        now: Now,
        fx: &mut Fx,
    ) -> Next {
        loop {
            let Some(session) = self.sessions.get_mut(&key) else {
                return Next::Nothing;
            };
            if session.fetches_to_look_at == 0 || *looks == 0 {
                return Next::Nothing;
            }
            session.fetches_to_look_at -= 1;
            *looks -= 1;
            session.fetches.rotate_left(1);
            let at = session.fetches.len() - 1;
            let f = &session.fetches[at];
            let (i, offset, max_bytes) = (f.partition, f.offset, f.max_bytes);
            let (min_bytes, correlation) = (f.min_bytes, f.correlation);
            let is_due = now.mono_ns >= f.deadline_ns;
            let visible = self.held(i).map_or(0, |h| h.log.visible());
            let (source, bytes, offsets) = match self.supply(key, i, offset, max_bytes, fx) {
                Supply::AtEnd if is_due || min_bytes == 0 => (Source::Nothing, 0, offset..offset),
                Supply::Batches {
                    source,
                    bytes,
                    offsets,
                } => {
                    let is_growing = matches!(source, Source::Memory(_)) && offsets.end >= visible;
                    if is_growing && bytes < min_bytes && !is_due {
                        continue;
                    }
                    (source, bytes, offsets)
                }
                Supply::AtEnd | Supply::Later => continue,
                Supply::Lost(fault) => {
                    self.end_fetch(key, at);
                    self.encoder
                        .error(head, Op::Fetch, correlation, &fault.to_wire());
                    return Next::Inline;
                }
            };
            let Some(Some(held)) = self.partitions.get(i) else {
                return Next::Nothing;
            };
            let answer = wire::FetchResponseT {
                earliest: held.log.earliest(),
                visible: held.log.visible(),
                leader_epoch: held.log.leader_epoch(),
                first_offset: offsets.start,
                next_offset: offsets.end,
            };
            self.end_fetch(key, at);
            return self.deliver(head, Op::Fetch, correlation, source, bytes, |b| {
                answer.pack(b)
            });
        }
    }

    fn next_push(
        &mut self,
        key: SessionKey,
        head: &mut Vec<u8>,
        looks: &mut usize,
        fx: &mut Fx,
    ) -> Next {
        loop {
            let Some(session) = self.sessions.get_mut(&key) else {
                return Next::Nothing;
            };
            if session.subscriptions_to_look_at == 0 || *looks == 0 {
                return Next::Nothing;
            }
            session.subscriptions_to_look_at -= 1;
            *looks -= 1;
            let Some((number, s)) = session.turn_of_subscription() else {
                return Next::Nothing;
            };
            if s.credit <= 0 {
                continue;
            }
            let (i, offset) = (s.partition, s.next_offset);
            let max_bytes = MAX_DELIVERY_BYTES.min(s.credit as usize);
            let (source, bytes, offsets) = match self.supply(key, i, offset, max_bytes, fx) {
                Supply::AtEnd | Supply::Later => continue,
                Supply::Batches {
                    source,
                    bytes,
                    offsets,
                } => (source, bytes, offsets),
                Supply::Lost(fault) => {
                    self.end_subscription(key, number, head, &fault);
                    return Next::Inline;
                }
            };
            let (first_offset, next_offset) = (offsets.start, offsets.end);
            let visible = self.held(i).map_or(0, |h| h.log.visible());
            assert!(
                next_offset <= visible,
                "delivering {next_offset} past the visible {visible}"
            );
            if let Some(session) = self.sessions.get_mut(&key)
                && let Some(s) = session.subscriptions.get_mut(&number)
            {
                s.next_offset = next_offset;
                s.credit -= bytes as i64;
                if next_offset < visible {
                    // There is more for it, after all others.
                    session.subscriptions_to_look_at = session.subscriptions.len();
                }
            }
            return self.deliver(head, Op::Push, number, source, bytes, |b| {
                let push = wire::PushArgs {
                    visible,
                    first_offset,
                    next_offset,
                };
                wire::Push::create(b, &push)
            });
        }
    }

    /// Looks for what a reader is due at an offset; asks for what it waits for.
    fn supply(
        &mut self,
        key: SessionKey,
        i: usize,
        offset: u64,
        max_bytes: usize,
        fx: &mut Fx,
    ) -> Supply {
        let turn = self.turn;
        let max_bytes = match key {
            SessionKey::Local(_) => max_bytes,
            // A range of a file is read into memory for it.
            SessionKey::Remote(..) => max_bytes.min(MAX_MEMORY_DELIVERY_BYTES),
        };
        let Some(held) = self.held(i) else {
            return Supply::Lost(self.out_of_range(i, offset));
        };
        let id = held.log.id();
        let (max_bytes, is_least) = match held.failed_reads.trust(offset) {
            Trust::Whole => (max_bytes, false),
            Trust::Least => (1, true),
            Trust::Nothing(offsets) => {
                return Supply::Lost(failed_reads::refusal(held.log.id(), &offsets));
            }
        };
        let plan = self.with_log(i, fx, |log, ops| log.plan(offset, max_bytes, turn, ops));
        let (source, bytes, offsets) = match plan {
            Some(Plan::AtEnd) => return Supply::AtEnd,
            Some(Plan::Wait) => return Supply::Later,
            Some(Plan::Memory {
                slices,
                bytes,
                offsets,
            }) => (Source::Memory(slices), bytes, offsets),
            Some(Plan::File { range, offsets }) => {
                let is_remote = matches!(key, SessionKey::Remote(..));
                if is_remote && range.file.is_some() && self.pool.free_chunks() == 0 {
                    self.short_of_memory.insert(key);
                    return Supply::Later;
                }
                let bytes = range.len();
                if let Some(session) = self.sessions.get_mut(&key) {
                    session.reading = range.file.map(|_| Reading {
                        partition: i,
                        offsets: offset..offsets.end,
                        is_least,
                    });
                }
                (Source::File(range), bytes, offsets)
            }
            Some(Plan::Unreadable { next_offset }) => {
                return Supply::Lost(failed_reads::refusal(id, &(offset..next_offset)));
            }
            Some(Plan::OutOfRange) | None => return Supply::Lost(self.out_of_range(i, offset)),
        };
        assert!(bytes <= MAX_PAYLOAD_BYTES, "a delivery of {bytes} bytes");
        Supply::Batches {
            source,
            bytes,
            offsets,
        }
    }

    /// Puts the header of a delivery into the head, and the body if it is small. A peer that does
    /// not read holds what it is sent: past half of the shard's memory it is sent a copy, so that
    /// batches are not kept by the slowest.
    fn deliver<T>(
        &mut self,
        head: &mut Vec<u8>,
        op: Op,
        correlation: u64,
        source: Source,
        bytes: usize,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> Next {
        self.encoder
            .frame(head, op, FLAG_RESPONSE, correlation, bytes, build);
        let is_plenty = self.pool.free_chunks() * 2 > self.pool.chunks();
        match source {
            Source::Nothing => Next::Inline,
            Source::Memory(slices) if !is_plenty || bytes <= INLINE_BYTES => {
                slices
                    .iter()
                    .for_each(|s: &Slice| head.extend_from_slice(s));
                Next::Inline
            }
            Source::File(range) if range.file.is_none() => {
                head.extend_from_slice(&range.rest);
                Next::Inline
            }
            source => Next::Body(source),
        }
    }
}
