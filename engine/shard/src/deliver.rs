//! What leaves a shard: answers first, then fetches, then subscriptions in turn. Batches are taken
//! from the log only when the session's one egress is free, so a slow peer holds no memory.

use std::ops::Range;

use ringtide_io::net::Body;
use ringtide_io::{Egress, NetOp, Now, Slice};
use ringtide_log::partition::Plan;
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::{FLAG_ERROR, FLAG_RESPONSE, Op};
use ringtide_schema::limits::{
    MAX_CREDIT_BYTES, MAX_DELIVERY_BYTES, MAX_FETCH_WAIT_MS, MAX_PAYLOAD_BYTES,
};
use ringtide_schema::wire;
use ringtide_session::{Frame, envelope};

use crate::fault::Fault;
use crate::mail::Mail;
use crate::requests::{Handled, Place, bad_envelope, partition_of};
use crate::session::{PendingFetch, SessionKey, Subscription};
use crate::settings::MAX_SUBSCRIPTIONS;
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
    Body(Body),
}

impl Shard {
    pub(crate) fn fetch(
        &mut self,
        key: SessionKey,
        frame: &Frame<'_>,
        now: Now,
        fx: &mut Fx,
    ) -> Result<Handled, Fault> {
        let request = envelope::<wire::FetchRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
        let id = partition_of(request.partition())?;
        let i = match self.locate(id)? {
            Place::Here(i) => i,
            Place::Shard(shard) => return self.forward(key, shard, frame, fx),
        };
        self.check_offset(i, request.offset())?;
        let wait_ms = request.max_wait_ms();
        if wait_ms > MAX_FETCH_WAIT_MS {
            let message = format!("max_wait_ms {wait_ms} is over the limit of {MAX_FETCH_WAIT_MS}");
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
        let max_bytes = (request.max_bytes() as usize).min(MAX_DELIVERY_BYTES);
        let deadline_ns = now.mono_ns + u64::from(wait_ms) * 1_000_000;
        let correlation = frame.header.correlation;
        let fetch = PendingFetch {
            correlation,
            partition: i,
            offset: request.offset(),
            max_bytes,
            min_bytes: (request.min_bytes() as usize).min(max_bytes),
            deadline_ns,
        };
        if let Some(session) = self.sessions.get_mut(&key) {
            session.fetches.push(fetch);
        }
        if wait_ms > 0 {
            self.timers.insert((deadline_ns, key, correlation));
        }
        self.watch(i, key);
        self.mark_ready(key);
        Ok(Handled::Later)
    }

    pub(crate) fn subscribe(
        &mut self,
        key: SessionKey,
        frame: &Frame<'_>,
        fx: &mut Fx,
    ) -> Result<Handled, Fault> {
        let request =
            envelope::<wire::SubscribeRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
        let id = partition_of(request.partition())?;
        let number = frame.header.correlation;
        let credit = u64::from(request.credit_bytes());
        check_credit(credit)?;
        let i = match self.locate(id)? {
            Place::Here(i) => i,
            Place::Shard(shard) => {
                let many =
                    |s: &crate::session::Session| s.remote_subscriptions.len() >= MAX_SUBSCRIPTIONS;
                if self.sessions.get(&key).is_some_and(many) {
                    return Err(too_many_subscriptions());
                }
                let handled = self.forward(key, shard, frame, fx)?;
                if handled == Handled::Later
                    && let Some(session) = self.sessions.get_mut(&key)
                {
                    session.remote_subscriptions.insert(number, shard);
                }
                return Ok(handled);
            }
        };
        let next_offset = match request.offset() {
            -1 => self.held(i).map_or(0, |h| h.log.visible()),
            -2 => self.held(i).map_or(0, |h| h.log.earliest()),
            offset if offset < 0 => {
                let message =
                    format!("offset {offset} is not -1 (latest), -2 (earliest) or from 0");
                return Err(Fault::new(ErrorCode::InvalidRequest, message));
            }
            offset => offset as u64,
        };
        self.check_offset(i, next_offset)?;
        let Some(session) = self.sessions.get_mut(&key) else {
            return Ok(Handled::Done);
        };
        if session.subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return Err(too_many_subscriptions());
        }
        if session.subscriptions.iter().any(|s| s.number == number) {
            let message = format!("subscription {number} exists on this connection");
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
        let credit = credit as i64;
        session.subscriptions.push(Subscription {
            number,
            partition: i,
            next_offset,
            credit,
        });
        self.watch(i, key);
        self.reply(key, Op::Subscribe, FLAG_RESPONSE, number, |b| {
            wire::SubscribeResponseT {
                offset: next_offset,
            }
            .pack(b)
        });
        Ok(Handled::Done)
    }

    pub(crate) fn credit(
        &mut self,
        key: SessionKey,
        frame: &Frame<'_>,
        fx: &mut Fx,
    ) -> Result<Handled, Fault> {
        let request = envelope::<wire::Credit<'_>>(frame.envelope).map_err(bad_envelope)?;
        let (number, bytes) = (request.subscription(), u64::from(request.bytes()));
        let Some(session) = self.sessions.get_mut(&key) else {
            return Ok(Handled::Done);
        };
        if let Some(&shard) = session.remote_subscriptions.get(&number) {
            return self.forward(key, shard, frame, fx);
        }
        // A credit may cross the end of its subscription on the way: that is no fault.
        let Some(s) = session
            .subscriptions
            .iter_mut()
            .find(|s| s.number == number)
        else {
            return Ok(Handled::Done);
        };
        check_credit(bytes + s.credit.max(0) as u64)?;
        s.credit += bytes as i64;
        self.mark_ready(key);
        Ok(Handled::Done)
    }

    pub(crate) fn unsubscribe(
        &mut self,
        key: SessionKey,
        frame: &Frame<'_>,
        fx: &mut Fx,
    ) -> Result<Handled, Fault> {
        let request =
            envelope::<wire::UnsubscribeRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
        let number = request.subscription();
        let Some(session) = self.sessions.get_mut(&key) else {
            return Ok(Handled::Done);
        };
        if let Some(&shard) = session.remote_subscriptions.get(&number) {
            let handled = self.forward(key, shard, frame, fx)?;
            if handled == Handled::Later
                && let Some(session) = self.sessions.get_mut(&key)
            {
                session.remote_subscriptions.remove(&number);
            }
            return Ok(handled);
        }
        let Some(at) = session
            .subscriptions
            .iter()
            .position(|s| s.number == number)
        else {
            let message = format!("there is no subscription {number} on this connection");
            return Err(Fault::new(ErrorCode::UnknownSubscription, message));
        };
        let partition = session.subscriptions.remove(at).partition;
        self.unwatch(partition, key);
        self.reply(
            key,
            Op::Unsubscribe,
            FLAG_RESPONSE,
            frame.header.correlation,
            |b| wire::UnsubscribeResponse::create(b, &wire::UnsubscribeResponseArgs {}),
        );
        Ok(Handled::Done)
    }

    fn check_offset(&mut self, i: usize, offset: u64) -> Result<(), Fault> {
        let Some(held) = self.held(i) else {
            return Ok(());
        };
        let (earliest, latest) = (held.log.earliest(), held.log.latest());
        if (earliest..=latest).contains(&offset) {
            return Ok(());
        }
        Err(Fault {
            range: Some((earliest, latest)),
            ..Fault::new(
                ErrorCode::OffsetOutOfRange,
                format!(
                    "offset {offset} of {} is outside {earliest} to {latest}",
                    held.log.id()
                ),
            )
        })
    }

    pub(crate) fn watch(&mut self, i: usize, key: SessionKey) {
        if let Some(held) = self.held(i) {
            held.watchers.push(key);
        }
    }

    pub(crate) fn unwatch(&mut self, i: usize, key: SessionKey) {
        if let Some(held) = self.held(i)
            && let Some(at) = held.watchers.iter().position(|k| *k == key)
        {
            held.watchers.swap_remove(at);
        }
    }

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
        let is_closing = session.is_closing;
        let mut body = Body::Nothing;
        while !is_closing && head.len() < HEAD_BYTES {
            match self.next_delivery(key, &mut head, now, fx) {
                Next::Nothing => break,
                Next::Inline => {}
                Next::Body(next) => {
                    body = next;
                    break;
                }
            }
        }
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let finished = std::mem::take(&mut session.finished);
        if head.is_empty() && (finished == 0 || matches!(key, SessionKey::Local(_))) {
            session.spare = head;
            if let (true, SessionKey::Local(conn)) = (is_closing, key) {
                fx.net.push(NetOp::Close(conn));
                session.is_sending = true;
            }
            return;
        }
        session.is_sending = true;
        match key {
            SessionKey::Local(conn) => fx.net.push(NetOp::Send(conn, Egress { head, body })),
            SessionKey::Remote(shard, conn) => {
                session.is_sending = !head.is_empty();
                match body {
                    Body::Nothing => {}
                    Body::Memory(slices) => slices.iter().for_each(|s| head.extend_from_slice(s)),
                    Body::File {
                        file,
                        position,
                        bytes,
                    } => {
                        session.finished = finished;
                        return self.read_for_remote(key, head, file, position, bytes, fx);
                    }
                }
                fx.mail.push((
                    shard,
                    Mail::Reply {
                        conn,
                        bytes: head,
                        finished,
                    },
                ));
            }
        }
    }

    /// A file range cannot go through a mailbox: it is read first.
    fn read_for_remote(
        &mut self,
        key: SessionKey,
        head: Vec<u8>,
        file: ringtide_io::FileId,
        position: u64,
        bytes: usize,
        fx: &mut Fx,
    ) {
        let Some(into) = self.pool.take().filter(|c| c.room() >= bytes) else {
            self.break_remote(key, fx);
            return;
        };
        let op = self.op(Pending::RemoteRead { key, head, bytes });
        fx.disk.push((
            op,
            ringtide_io::DiskOp::Read {
                file,
                position,
                bytes,
                into,
            },
        ));
    }

    /// The read for a connection of another shard ended.
    pub(crate) fn remote_read_done(
        &mut self,
        key: SessionKey,
        mut head: Vec<u8>,
        read: Option<&[u8]>,
        fx: &mut Fx,
    ) {
        let Some(read) = read else {
            return self.break_remote(key, fx);
        };
        let SessionKey::Remote(shard, conn) = key else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let finished = std::mem::take(&mut session.finished);
        head.extend_from_slice(read);
        fx.mail.push((
            shard,
            Mail::Reply {
                conn,
                bytes: head,
                finished,
            },
        ));
    }

    /// The peer was promised bytes that cannot be had: its connection is closed.
    fn break_remote(&mut self, key: SessionKey, fx: &mut Fx) {
        if let SessionKey::Remote(shard, conn) = key {
            fx.mail.push((shard, Mail::Broken { conn }));
        }
    }

    fn next_delivery(
        &mut self,
        key: SessionKey,
        head: &mut Vec<u8>,
        now: Now,
        fx: &mut Fx,
    ) -> Next {
        match self.next_fetch(key, head, now, fx) {
            Next::Nothing => self.next_push(key, head, fx),
            next => next,
        }
    }

    fn next_fetch(&mut self, key: SessionKey, head: &mut Vec<u8>, now: Now, fx: &mut Fx) -> Next {
        let mut at = 0;
        loop {
            let Some(f) = self.sessions.get(&key).and_then(|s| s.fetches.get(at)) else {
                return Next::Nothing;
            };
            let (i, offset, max_bytes) = (f.partition, f.offset, f.max_bytes);
            let (min_bytes, correlation) = (f.min_bytes, f.correlation);
            let is_due = now.mono_ns >= f.deadline_ns;
            let turn = self.turn;
            let visible = self.held(i).map_or(0, |h| h.log.visible());
            let plan = self.with_log(i, fx, |log, ops| log.plan(offset, max_bytes, turn, ops));
            let body = match plan {
                Some(Plan::Wait) => {
                    self.want_readable(i);
                    at += 1;
                    continue;
                }
                Some(Plan::AtEnd) if !is_due && min_bytes > 0 => {
                    at += 1;
                    continue;
                }
                Some(Plan::Memory {
                    bytes, next_offset, ..
                }) if bytes < min_bytes && next_offset >= visible && !is_due => {
                    at += 1;
                    continue;
                }
                Some(Plan::AtEnd) => Body::Nothing,
                Some(Plan::Memory { slices, .. }) => Body::Memory(slices),
                Some(Plan::File {
                    file,
                    position,
                    bytes,
                    ..
                }) => Body::File {
                    file,
                    position,
                    bytes,
                },
                Some(Plan::OutOfRange) | None => {
                    let fault = self.out_of_range(i, offset);
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
            };
            let bytes = body_bytes(&body);
            self.end_fetch(key, at);
            self.encoder
                .frame(head, Op::Fetch, FLAG_RESPONSE, correlation, bytes, |b| {
                    answer.pack(b)
                });
            let is_plenty = self.pool.free_chunks() * 2 > self.pool.chunks();
            return inline_or_body(head, body, is_plenty);
        }
    }

    /// Takes an answered fetch out.
    fn end_fetch(&mut self, key: SessionKey, at: usize) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let fetch = session.fetches.remove(at);
        session.finish();
        self.timers
            .remove(&(fetch.deadline_ns, key, fetch.correlation));
        self.unwatch(fetch.partition, key);
    }

    fn next_push(&mut self, key: SessionKey, head: &mut Vec<u8>, fx: &mut Fx) -> Next {
        let count = self.sessions.get(&key).map_or(0, |s| s.subscriptions.len());
        for _ in 0..count {
            let Some(session) = self.sessions.get_mut(&key) else {
                return Next::Nothing;
            };
            let at = session.next_subscription % session.subscriptions.len();
            session.next_subscription = at + 1;
            let s = &session.subscriptions[at];
            if s.credit <= 0 {
                continue;
            }
            let (i, offset, number) = (s.partition, s.next_offset, s.number);
            let max_bytes = MAX_DELIVERY_BYTES.min(s.credit as usize);
            let turn = self.turn;
            let plan = self.with_log(i, fx, |log, ops| log.plan(offset, max_bytes, turn, ops));
            let (body, next_offset) = match plan {
                Some(Plan::AtEnd) => continue,
                Some(Plan::Wait) => {
                    self.want_readable(i);
                    continue;
                }
                Some(Plan::Memory {
                    slices,
                    next_offset,
                    ..
                }) => (Body::Memory(slices), next_offset),
                Some(Plan::File {
                    file,
                    position,
                    bytes,
                    next_offset,
                }) => (
                    Body::File {
                        file,
                        position,
                        bytes,
                    },
                    next_offset,
                ),
                Some(Plan::OutOfRange) | None => {
                    let fault = self.out_of_range(i, offset);
                    self.end_subscription(key, at, head, &fault);
                    return Next::Inline;
                }
            };
            let visible = self.partitions[i].as_ref().map_or(0, |h| h.log.visible());
            assert!(
                next_offset <= visible,
                "delivering {next_offset} past the visible {visible}"
            );
            let bytes = body_bytes(&body);
            if let Some(s) = self
                .sessions
                .get_mut(&key)
                .map(|s| &mut s.subscriptions[at])
            {
                s.next_offset = next_offset;
                s.credit -= bytes as i64;
            }
            self.encoder
                .frame(head, Op::Push, FLAG_RESPONSE, number, bytes, |b| {
                    wire::Push::create(b, &wire::PushArgs { visible })
                });
            let is_plenty = self.pool.free_chunks() * 2 > self.pool.chunks();
            return inline_or_body(head, body, is_plenty);
        }
        Next::Nothing
    }

    /// Ends a subscription with an error in a push frame.
    fn end_subscription(&mut self, key: SessionKey, at: usize, head: &mut Vec<u8>, fault: &Fault) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let ended = session.subscriptions.remove(at);
        self.unwatch(ended.partition, key);
        let flags = FLAG_RESPONSE | FLAG_ERROR;
        let error = fault.to_wire();
        self.encoder
            .frame(head, Op::Push, flags, ended.number, 0, |b| error.pack(b));
    }

    fn out_of_range(&mut self, i: usize, offset: u64) -> Fault {
        match self.check_offset(i, offset) {
            Err(fault) => fault,
            Ok(()) if self.held(i).is_none() => {
                Fault::new(ErrorCode::UnknownTopic, "the topic was deleted")
            }
            Ok(()) => Fault::new(
                ErrorCode::DataUnreadable,
                format!("offset {offset} could not be found in its segment; see the broker's log"),
            ),
        }
    }

    /// A reader waits for a partition's index, file, or first write-out.
    pub(crate) fn want_readable(&mut self, i: usize) {
        if self.held(i).is_some_and(|h| h.log.needs_flush()) {
            self.queue_writer(i, false);
        }
    }

    /// These offsets cannot be had any more: everybody who is there is told.
    pub(crate) fn fail_watchers(
        &mut self,
        i: usize,
        watchers: Vec<SessionKey>,
        offsets: Range<u64>,
        fault: &Fault,
    ) {
        for key in watchers {
            while let Some(at) = self.sessions.get(&key).and_then(|s| {
                let is_there = |f: &PendingFetch| f.partition == i && offsets.contains(&f.offset);
                s.fetches.iter().position(is_there)
            }) {
                let correlation = self.sessions[&key].fetches[at].correlation;
                self.end_fetch(key, at);
                if let Some(session) = self.sessions.get_mut(&key) {
                    let error = fault.to_wire();
                    self.encoder
                        .error(&mut session.out, Op::Fetch, correlation, &error);
                }
            }
            while let Some(at) = self.sessions.get(&key).and_then(|s| {
                let is_there =
                    |s: &Subscription| s.partition == i && offsets.contains(&s.next_offset);
                s.subscriptions.iter().position(is_there)
            }) {
                let mut out = Vec::new();
                self.end_subscription(key, at, &mut out, fault);
                if let Some(session) = self.sessions.get_mut(&key) {
                    session.out.extend_from_slice(&out);
                }
            }
            self.mark_ready(key);
        }
    }
}

fn too_many_subscriptions() -> Fault {
    let message = format!("a connection has at most {MAX_SUBSCRIPTIONS} subscriptions");
    Fault::new(ErrorCode::TooMany, message)
}

fn check_credit(bytes: u64) -> Result<(), Fault> {
    if bytes <= MAX_CREDIT_BYTES {
        return Ok(());
    }
    let message = format!("credit of {bytes} bytes is over the limit of {MAX_CREDIT_BYTES}");
    Err(Fault::new(ErrorCode::TooMany, message))
}

fn body_bytes(body: &Body) -> usize {
    let bytes = match body {
        Body::Nothing => 0,
        Body::Memory(slices) => slices.iter().map(|s| s.len()).sum(),
        Body::File { bytes, .. } => *bytes,
    };
    assert!(bytes <= MAX_PAYLOAD_BYTES, "a delivery of {bytes} bytes");
    bytes
}

/// A peer that does not read holds what it is sent: past half of the shard's memory it is sent a
/// copy, so that batches are not kept by the slowest.
fn inline_or_body(head: &mut Vec<u8>, body: Body, is_plenty: bool) -> Next {
    match body {
        Body::Nothing => Next::Inline,
        Body::Memory(slices)
            if !is_plenty
                || slices.iter().map(|s: &Slice| s.len()).sum::<usize>() <= INLINE_BYTES =>
        {
            slices.iter().for_each(|s| head.extend_from_slice(s));
            Next::Inline
        }
        body => Next::Body(body),
    }
}
