//! What readers ask for: fetches and subscriptions, their credit and their end. `deliver` sends what
//! they are due.

use std::ops::Range;

use ringtide_io::Now;
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::{FLAG_ERROR, FLAG_RESPONSE, Op};
use ringtide_schema::limits::{
    MAX_CREDIT_BYTES, MAX_DELIVERY_BYTES, MAX_FETCH_WAIT_MS, MAX_MEMORY_DELIVERY_BYTES,
};
use ringtide_schema::wire;
use ringtide_session::{Frame, envelope};

use crate::fault::Fault;
use crate::requests::{Handled, Place, bad_envelope, partition_of};
use crate::session::{PendingFetch, SessionKey, Subscription, Timer};
use crate::settings::{MAX_SUBSCRIPTIONS, READERS_WAIT_NS};
use crate::{Fx, Shard};

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
            Place::Shard(shard) => return self.forward(key, shard, Op::Fetch, frame, fx),
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
            min_bytes: (request.min_bytes() as usize)
                .min(max_bytes)
                .min(MAX_MEMORY_DELIVERY_BYTES),
            deadline_ns,
        };
        if let Some(session) = self.sessions.get_mut(&key) {
            session.fetches.push_back(fetch);
        }
        if wait_ms > 0 {
            self.timers
                .insert((deadline_ns, key, Timer::Fetch(correlation)));
        }
        self.watch(i, key, now);
        self.mark_ready(key);
        Ok(Handled::Later)
    }

    pub(crate) fn subscribe(
        &mut self,
        key: SessionKey,
        frame: &Frame<'_>,
        now: Now,
        fx: &mut Fx,
    ) -> Result<Handled, Fault> {
        let request =
            envelope::<wire::SubscribeRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
        let id = partition_of(request.partition())?;
        let number = frame.header.correlation;
        let credit = u64::from(request.credit_bytes());
        check_credit(credit)?;
        let place = self.locate(id)?;
        let Some(session) = self.sessions.get(&key) else {
            return Ok(Handled::Done);
        };
        let is_taken = session.remote_subscriptions.contains_key(&number)
            || session.subscriptions.contains_key(&number);
        if is_taken {
            let message = format!("subscription {number} exists on this connection");
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
        let have = match place {
            Place::Here(_) => session.subscriptions.len(),
            Place::Shard(_) => session.remote_subscriptions.len(),
        };
        if have >= MAX_SUBSCRIPTIONS {
            let message = format!("a connection has at most {MAX_SUBSCRIPTIONS} subscriptions");
            return Err(Fault::new(ErrorCode::TooMany, message));
        }
        let i = match place {
            Place::Here(i) => i,
            Place::Shard(shard) => {
                let handled = self.forward(key, shard, Op::Subscribe, frame, fx)?;
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
        let credit = credit as i64;
        let subscription = Subscription {
            partition: i,
            next_offset,
            credit,
        };
        session.subscriptions.insert(number, subscription);
        self.watch(i, key, now);
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
            return self.forward(key, shard, Op::Credit, frame, fx);
        }
        // A credit may cross the end of its subscription on the way: that is no fault.
        let Some(s) = session.subscriptions.get_mut(&number) else {
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
            let handled = self.forward(key, shard, Op::Unsubscribe, frame, fx)?;
            if handled == Handled::Later
                && let Some(session) = self.sessions.get_mut(&key)
            {
                session.remote_subscriptions.remove(&number);
            }
            return Ok(handled);
        }
        let Some(ended) = session.subscriptions.remove(&number) else {
            let message = format!("there is no subscription {number} on this connection");
            return Err(Fault::new(ErrorCode::UnknownSubscription, message));
        };
        self.unwatch(ended.partition, key);
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

    pub(crate) fn watch(&mut self, i: usize, key: SessionKey, now: Now) {
        let Some(held) = self.held(i) else { return };
        held.watchers.add(key);
        if held.log.visible() < held.log.latest() {
            self.wal.want_by(now.mono_ns + READERS_WAIT_NS);
        }
    }

    pub(crate) fn unwatch(&mut self, i: usize, key: SessionKey) {
        if let Some(held) = self.held(i) {
            held.watchers.remove(key);
        }
    }

    /// Takes an answered fetch out.
    pub(crate) fn end_fetch(&mut self, key: SessionKey, at: usize) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let Some(fetch) = session.fetches.remove(at) else {
            return;
        };
        session.fetches_to_look_at = session.fetches.len();
        session.finish(Op::Fetch);
        let timer = Timer::Fetch(fetch.correlation);
        self.timers.remove(&(fetch.deadline_ns, key, timer));
        self.unwatch(fetch.partition, key);
    }

    /// Ends a subscription with an error in a push frame.
    pub(crate) fn end_subscription(
        &mut self,
        key: SessionKey,
        number: u64,
        head: &mut Vec<u8>,
        fault: &Fault,
    ) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let Some(ended) = session.subscriptions.remove(&number) else {
            return;
        };
        self.unwatch(ended.partition, key);
        let flags = FLAG_RESPONSE | FLAG_ERROR;
        let error = fault.to_wire();
        self.encoder
            .frame(head, Op::Push, flags, number, 0, |b| error.pack(b));
    }

    pub(crate) fn out_of_range(&mut self, i: usize, offset: u64) -> Fault {
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

    /// These offsets cannot be had any more: everybody who is there is told.
    pub(crate) fn fail_watchers(
        &mut self,
        i: usize,
        watchers: impl IntoIterator<Item = SessionKey>,
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
            while let Some(number) = self.sessions.get(&key).and_then(|s| {
                let mut all = s.subscriptions.iter();
                let is_there =
                    |s: &Subscription| s.partition == i && offsets.contains(&s.next_offset);
                all.find(|(_, s)| is_there(s)).map(|(number, _)| *number)
            }) {
                let mut out = Vec::new();
                self.end_subscription(key, number, &mut out, fault);
                if let Some(session) = self.sessions.get_mut(&key) {
                    session.out.extend_from_slice(&out);
                }
            }
            self.mark_ready(key);
        }
    }
}

fn check_credit(bytes: u64) -> Result<(), Fault> {
    if bytes <= MAX_CREDIT_BYTES {
        return Ok(());
    }
    let message = format!("credit of {bytes} bytes is over the limit of {MAX_CREDIT_BYTES}");
    Err(Fault::new(ErrorCode::TooMany, message))
}
