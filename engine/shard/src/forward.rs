//! Requests for partitions of other shards: the way there, the work there, the way back.
//!
//! The owner keeps a session for each connection that forwards to it, from `Came` to `Gone`. What a
//! connection sent is handled in order: behind what found no room, everything waits. Its answers
//! come back in the order in which they were given, parts of a publish among whole frames.

use ringtide_io::{ConnId, Now};
use ringtide_schema::frame::{FLAG_ERROR, FrameHeader, Op};
use ringtide_session::Frame;

use crate::fault::Fault;
use crate::mail::{Forwarded, Mail, Part, Reply};
use crate::requests::Handled;
use crate::session::{SessionKey, Tally};
use crate::settings::{MAX_FORWARDED, MAX_FORWARDED_IN_ALL};
use crate::{Fx, Shard};

impl Shard {
    /// Hands a request to the shard that it is for. At the end that may be gone already.
    pub(crate) fn forward(
        &mut self,
        key: SessionKey,
        shard: u16,
        op: Op,
        frame: &Frame<'_>,
        fx: &mut Fx,
    ) -> Result<Handled, Fault> {
        if self.is_stopping {
            return Err(Fault::shutting_down());
        }
        let request = || {
            let header = FrameHeader::encode(&frame.header);
            Forwarded::Request([&header[..], frame.envelope, frame.payload].concat())
        };
        Ok(match self.mail_request(key, shard, op, request, fx) {
            true => Handled::Later,
            false => Handled::Blocked,
        })
    }

    /// Hands a part of a publish to its shard, unless there is no room.
    pub(crate) fn forward_part(
        &mut self,
        key: SessionKey,
        shard: u16,
        part: impl FnOnce() -> Part,
        fx: &mut Fx,
    ) -> bool {
        let part = || Forwarded::Part(part());
        self.mail_request(key, shard, Op::Publish, part, fx)
    }

    fn mail_request(
        &mut self,
        key: SessionKey,
        shard: u16,
        op: Op,
        request: impl FnOnce() -> Forwarded,
        fx: &mut Fx,
    ) -> bool {
        let SessionKey::Local(conn) = key else {
            unreachable!("{key:?} sent a request that is not for this shard: all place alike");
        };
        let Some(session) = self.sessions.get_mut(&key) else {
            return false;
        };
        let is_full = op != Op::Fetch && self.forwarded >= MAX_FORWARDED_IN_ALL;
        if is_full || session.forwarded.all() >= MAX_FORWARDED {
            return false;
        }
        session.forwarded.add(op);
        self.forwarded += u32::from(op != Op::Fetch);
        if !session.known_to.contains(&shard) {
            session.known_to.push(shard);
            let peer = session.peer.clone();
            fx.mail.push((shard, Mail::Came { conn, peer }));
        }
        let request = request();
        fx.mail.push((shard, Mail::Forwarded { conn, request }));
        true
    }

    /// A connection of another shard asks for something.
    pub(crate) fn forwarded(
        &mut self,
        from: u16,
        conn: ConnId,
        request: Forwarded,
        now: Now,
        fx: &mut Fx,
    ) {
        let key = SessionKey::Remote(from, conn);
        if let Some(session) = self.sessions.get_mut(&key) {
            session.waiting.push_back(request);
            self.serve_forwarded(key, now, fx);
        }
    }

    /// Handles what another shard sent, up to what finds no room.
    pub(crate) fn serve_forwarded(&mut self, key: SessionKey, now: Now, fx: &mut Fx) {
        loop {
            let Some(session) = self.sessions.get_mut(&key) else {
                return;
            };
            if session.assembler.is_blocked() {
                return;
            }
            match session.waiting.pop_front() {
                None => return,
                Some(Forwarded::Request(frame)) => self.feed(key, &frame, now, fx),
                Some(Forwarded::Part(part)) => {
                    if self.publish_forwarded(key, &part, now, fx) != Handled::Blocked {
                        continue;
                    }
                    if let Some(session) = self.sessions.get_mut(&key) {
                        session.waiting.push_front(Forwarded::Part(part));
                    }
                    return self.mark_blocked(key);
                }
            }
        }
    }

    /// What became of forwarded requests.
    pub(crate) fn replied(&mut self, from: u16, conn: ConnId, reply: Reply) {
        let key = SessionKey::Local(conn);
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let Reply {
            bytes,
            parts,
            finished,
            is_delivery,
        } = reply;
        assert!(
            session.in_flight >= finished.all(),
            "answers without requests"
        );
        session.in_flight -= finished.all();
        if is_delivery {
            session.drained_to.push(from);
        }
        let parts_done = parts.len() as u32;
        let done = Tally {
            others: finished.others + parts_done,
            ..finished
        };
        session.forwarded.remove(done);
        self.forwarded -= done.others;
        if !session.remote_subscriptions.is_empty() {
            for number in ended_subscriptions(&bytes) {
                let subscriptions = &mut session.remote_subscriptions;
                if subscriptions.get(&number) == Some(&from) {
                    subscriptions.remove(&number);
                }
            }
        }
        let mut taken = 0;
        for part in parts {
            self.take_frames(key, &bytes[taken..part.at]);
            taken = part.at;
            self.part_done(key, part.publish, part.result, part.message);
        }
        self.take_frames(key, &bytes[taken..]);
        self.mark_ready(key);
    }

    /// Puts whole frames behind everything that was answered before.
    fn take_frames(&mut self, key: SessionKey, frames: &[u8]) {
        if frames.is_empty() {
            return;
        }
        self.flush_multis(key);
        if let Some(session) = self.sessions.get_mut(&key) {
            session.out.extend_from_slice(frames);
        }
    }

    /// The last delivery was sent.
    pub(crate) fn drained(&mut self, from: u16, conn: ConnId) {
        let key = SessionKey::Remote(from, conn);
        if let Some(session) = self.sessions.get_mut(&key) {
            session.is_undrained = false;
        }
        self.mark_ready(key);
    }
}

/// Subscriptions that were refused or have ended, by the frames that say so.
fn ended_subscriptions(mut frames: &[u8]) -> Vec<u64> {
    let (subscribe, push) = (Op::Subscribe as u8, Op::Push as u8);
    let mut ended = Vec::new();
    while let Ok(Some(header)) = FrameHeader::decode(frames) {
        let is_end = header.flags & FLAG_ERROR != 0;
        if is_end && (header.op == subscribe || header.op == push) {
            ended.push(header.correlation);
        }
        frames = &frames[header.frame_bytes()..];
    }
    ended
}
