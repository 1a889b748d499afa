//! The shard as its driver sees it: events in, effects out.

use std::net::SocketAddr;

use ringtide_io::{
    ConnId, Disconnect, DiskDone, DiskError, DiskOp, Egress, FatalReason, Logic, NetOp, Now, OpId,
    is_unreadable,
};
use ringtide_log::partition::PartitionOp;
use ringtide_log::wal::WAL_OP;

use crate::mail::Mail;
use crate::open_files::Relief;
use crate::session::{Session, SessionKey, Timer};
use crate::upkeep::fatal;
use crate::{Fx, Pending, Shard};

/// The errno of a connection that the peer reset, on Linux.
const ECONNRESET: i32 = 104;
const ETIMEDOUT: i32 = 110;
/// Peers that do not take their last answers within this long are cut off at the end.
const CLOSE_WITHIN_NS: u64 = 2_000_000_000;

impl Logic for Shard {
    type Mail = Mail;

    fn accepted(&mut self, conn: ConnId, peer: SocketAddr, _now: Now, _fx: &mut Fx) {
        self.connections += 1;
        self.sessions.insert(
            SessionKey::Local(conn),
            Session::new(peer.to_string().into(), false),
        );
    }

    fn received(&mut self, conn: ConnId, bytes: &[u8], now: Now, fx: &mut Fx) {
        self.feed(SessionKey::Local(conn), bytes, now, fx);
    }

    fn sent(&mut self, conn: ConnId, egress: Egress, _now: Now, fx: &mut Fx) {
        let key = SessionKey::Local(conn);
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        session.is_sending = false;
        session.reading = None;
        session.spare = egress.head;
        session.spare.clear();
        if session.spare.capacity() > 16 << 10 {
            session.spare = Vec::new();
        }
        for shard in session.drained_to.drain(..) {
            fx.mail.push((shard, Mail::Drained { conn }));
        }
        self.mark_ready(key);
    }

    fn disconnected(&mut self, conn: ConnId, why: Disconnect, now: Now, fx: &mut Fx) {
        let key = SessionKey::Local(conn);
        self.take_the_rest(key, now, fx);
        let Some(session) = self.sessions.get(&key) else {
            return;
        };
        match why {
            // A reset is how many clients end.
            Disconnect::Peer | Disconnect::Asked | Disconnect::Error(ECONNRESET) => {
                tracing::debug!(peer = &*session.peer, ?why, "disconnected");
            }
            Disconnect::Error(ETIMEDOUT) => tracing::warn!(
                peer = &*session.peer,
                "disconnected: for too long it took nothing of what was sent, or did not answer"
            ),
            _ => tracing::warn!(peer = &*session.peer, ?why, "disconnected"),
        }
        for shard in session.known_to.clone() {
            fx.mail.push((shard, Mail::Gone { conn }));
        }
        let reading = session.reading.clone();
        let is_lost = match why {
            Disconnect::FileTooShort => true,
            Disconnect::File(errno) => is_unreadable(errno),
            _ => false,
        };
        if let (true, Some(reading)) = (is_lost, reading) {
            self.read_failed(reading);
        }
        self.forget(key);
    }

    fn disk(&mut self, op: OpId, result: Result<DiskDone, DiskError>, now: Now, fx: &mut Fx) {
        if op.0 & WAL_OP != 0 {
            match result {
                Ok(_) if self.wal.completed(op, now.mono_ns, &mut fx.disk) => self.committed(fx),
                Ok(_) => {}
                Err(e) => fatal(fx, FatalReason::Wal, e.message),
            }
            return;
        }
        match self.ops.remove(&op) {
            Some(Pending::Partition(i, op)) => {
                if let Some(files) = self.orphans.get(&i) {
                    for &file in files {
                        fx.disk.push((OpId(0), DiskOp::Close { file }));
                    }
                    if !self.has_ops(i) {
                        self.orphans.remove(&i);
                    }
                }
                self.partition_done(i, op, result, now, fx);
            }
            Some(Pending::OpenSlot(file, path)) => self.slot_opened(file, path, result, now, fx),
            Some(Pending::CreateSlot(path)) => self.slot_made(path, result, now, fx),
            Some(Pending::RemoveSlot(path)) => self.slot_removed(path, result, fx),
            Some(Pending::Snapshot(group)) => self.snapshot_written(group, result, now, fx),
            Some(Pending::Search {
                number,
                bytes: want,
            }) => match result {
                Ok(DiskDone::Read { chunk, bytes }) if bytes == want => {
                    let read = chunk.slice(chunk.len() - bytes..chunk.len());
                    self.search_read(number, Ok(&read), fx);
                }
                Ok(_) => self.search_read(number, Err("the file is too short".into()), fx),
                Err(e) => self.search_read(number, Err(e.message), fx),
            },
            Some(Pending::RemoteRead {
                key,
                reply,
                bytes: want,
                rest,
            }) => match result {
                Ok(DiskDone::Read { chunk, bytes }) if bytes == want => {
                    let read = chunk.slice(chunk.len() - bytes..chunk.len());
                    self.remote_read_done(key, reply, Some((&read, rest)), fx);
                }
                result => {
                    let error = result.err();
                    if error.as_ref().is_some_and(|e| !e.is_unreadable())
                        && let Some(session) = self.sessions.get_mut(&key)
                    {
                        session.reading = None;
                    }
                    let error = error.map_or("the file is too short".into(), |e| e.message);
                    tracing::error!(error, "what another shard's peer reads cannot be read");
                    self.remote_read_done(key, reply, None, fx);
                }
            },
            None => {}
        }
    }

    fn lacks_files(&mut self, now: Now, fx: &mut Fx) {
        if self.give_up_files(now, fx) != Relief::Now {
            self.say_connections_wait(now);
        }
    }

    fn mail(&mut self, from: u16, mail: Mail, now: Now, fx: &mut Fx) {
        match mail {
            Mail::Came { conn, peer } => {
                let key = SessionKey::Remote(from, conn);
                self.sessions.insert(key, Session::new(peer, true));
            }
            Mail::Forwarded { conn, request } => self.forwarded(from, conn, request, now, fx),
            Mail::Reply { conn, reply } => self.replied(from, conn, reply),
            Mail::Drained { conn } => self.drained(from, conn),
            Mail::Gone { conn } => self.forget(SessionKey::Remote(from, conn)),
            Mail::Broken { conn } => {
                if let Some(session) = self.sessions.get(&SessionKey::Local(conn)) {
                    let peer = &*session.peer;
                    tracing::error!(peer, "disconnecting: a segment could not be read for it");
                }
                fx.net.push(NetOp::Abort(conn));
            }
            Mail::Change { number, change } => {
                self.apply(&change, fx);
                fx.mail.push((from, Mail::ChangeDone { number }));
            }
            Mail::ChangeDone { number } => self.change_done(number),
            Mail::LacksFiles => drop(self.close_some(now, fx)),
        }
    }

    fn turn(&mut self, now: Now, fx: &mut Fx) {
        self.turn += 1;
        if self.started_ns.is_none() {
            self.started_ns = Some(now.mono_ns);
            self.start(now, fx);
        }
        self.retry_blocked(now, fx);
        if self.pool.free_chunks() > 0 {
            for key in std::mem::take(&mut self.short_of_memory) {
                self.mark_ready(key);
            }
        }
        self.wal.turn(now.mono_ns, &mut fx.disk);
        while let Some(&(deadline, key, timer)) = self.timers.first() {
            if deadline > now.mono_ns {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Fetch(_) => self.mark_ready(key),
                Timer::Frame => self.frame_due(key, now),
            }
        }
        self.pump_ready(now, fx);
        self.upkeep(now, fx);
        self.pump_ready(now, fx);
        if self.is_stopping {
            self.drain(now, fx);
        }
    }

    fn deadline_ns(&self) -> Option<u64> {
        if self.is_behind {
            return Some(0);
        }
        let mut deadline = self.upkeep_deadline_ns();
        if let Some(wal) = self.wal.deadline_ns() {
            deadline = deadline.min(wal);
        }
        if let Some(&(timer, ..)) = self.timers.first() {
            deadline = deadline.min(timer);
        }
        if self.is_stopping {
            deadline = deadline.min(self.give_up_ns.unwrap_or(0));
        }
        Some(deadline)
    }

    fn stop(&mut self, _now: Now, _fx: &mut Fx) {
        self.is_stopping = true;
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped
    }
}

impl Shard {
    fn pump_ready(&mut self, now: Now, fx: &mut Fx) {
        let mut ready = std::mem::take(&mut self.ready);
        for key in ready.drain(..) {
            if let Some(session) = self.sessions.get_mut(&key) {
                session.is_ready = false;
                self.pump(key, now, fx);
            }
        }
        // What became ready meanwhile has its turn next; the buffer is used again.
        ready.append(&mut self.ready);
        self.ready = ready;
    }

    /// Everything of a peer that is gone.
    fn forget(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.remove(&key) else {
            return;
        };
        self.connections -= u32::from(matches!(key, SessionKey::Local(_)));
        self.forwarded -= session.forwarded.others;
        self.partial_bytes -= session.partial_bytes;
        for fetch in session.fetches {
            let timer = Timer::Fetch(fetch.correlation);
            self.timers.remove(&(fetch.deadline_ns, key, timer));
            self.unwatch(fetch.partition, key);
        }
        for subscription in session.subscriptions.values() {
            self.unwatch(subscription.partition, key);
        }
        if let Some(due_ns) = session.frame_timer_ns {
            self.timers.remove(&(due_ns, key, Timer::Frame));
        }
        if session.is_blocked {
            self.blocked.retain(|k| *k != key);
        }
        self.short_of_memory.remove(&key);
        // A search that reads ends when it has read: the read's memory counts as its own.
        self.searches
            .retain(|_, s| s.key != key || s.reading.is_some());
    }

    /// Whether no file is left that retention gave up: no snapshot names them any more, and a start after a
    /// clean stop does not look for them.
    fn is_cleared(&mut self, fx: &mut Fx) -> bool {
        let held_seq = self.wal.committed();
        for i in 0..self.partitions.len() {
            let closed = self.with_log(i, fx, |log, ops| log.remove_files(held_seq, ops));
            for file in closed.unwrap_or_default() {
                fx.disk.push((OpId(0), DiskOp::Close { file }));
            }
        }
        let is_removal = |p: &Pending| matches!(p, Pending::Partition(_, PartitionOp::Remove));
        let mut held = self.partitions.iter().flatten();
        !self.ops.values().any(is_removal) && !held.any(|held| held.log.is_removing())
    }

    /// The way to the end: the log is written, everything is in segments and snapshots, then the
    /// connections are closed.
    fn drain(&mut self, now: Now, fx: &mut Fx) {
        if self.wal.appended() > self.wal.committed() {
            self.wal.want(self.wal.appended());
            return;
        }
        let is_quiet = self.waiters.is_empty()
            && self.control.is_idle()
            && self.checkpoint.is_none()
            && self.wal.is_idle()
            && self.writers_are_idle()
            && !self.slots_are_coming();
        let is_saved = self
            .groups
            .values()
            .all(|g| g.snapshot_index == g.last_index);
        if !is_quiet || !is_saved || !self.is_cleared(fx) {
            return;
        }
        let give_up = *self.give_up_ns.get_or_insert(now.mono_ns + CLOSE_WITHIN_NS);
        let is_answered = |(key, s): (&SessionKey, &Session)| match key {
            SessionKey::Local(_) => s.forwarded.others == 0,
            SessionKey::Remote(..) => s.out.is_empty() && s.parts.is_empty() && !s.is_sending,
        };
        if now.mono_ns < give_up && !self.sessions.iter().all(is_answered) {
            return;
        }
        let open: Vec<SessionKey> = self
            .sessions
            .keys()
            .filter(|k| matches!(k, SessionKey::Local(_)))
            .copied()
            .collect();
        for key in &open {
            let SessionKey::Local(conn) = *key else {
                continue;
            };
            if now.mono_ns >= give_up {
                fx.net.push(NetOp::Abort(conn));
            } else if self.sessions.get(key).is_some_and(|s| !s.is_closing) {
                self.close(*key);
            }
        }
        self.pump_ready(now, fx);
        self.is_stopped = open.is_empty();
    }
}
