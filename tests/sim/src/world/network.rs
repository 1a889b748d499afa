//! The network of a run: connections that are made, carry bytes late and cut anywhere, and break.

use ringtide_io::{Body, ConnId, Disconnect, Egress, Logic as _, NetOp};

use super::{Event, MS, SECOND, US, World};
use crate::host::{Node, Socket};

/// What happens to a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Break {
    /// It breaks on both sides.
    Reset,
    /// Nothing arrives for a while, in either direction.
    Stall,
    /// The client's host is gone; its shard hears nothing of that, and what it sends does not leave.
    HalfOpen,
}

/// A connection that a client made.
pub(super) struct Conn {
    pub(super) client: usize,
    pub(super) link: usize,
    pub(super) shard: u16,
    /// Bytes of one direction keep their order.
    to_shard_ns: u64,
    to_client_ns: u64,
    /// The client's side is gone.
    pub(super) is_half_open: bool,
}

impl World {
    pub(super) fn connect(&mut self, client: usize, link: usize, shard: u16) {
        let now = self.instant();
        let is_up = self
            .broker
            .as_ref()
            .is_some_and(|b| b.nodes.len() > usize::from(shard));
        if !is_up {
            let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            self.actors[client]
                .client
                .connect_failed(link, &refused, now);
            return;
        }
        self.next_conn += 1;
        let id = ConnId(self.next_conn);
        let conn = Conn {
            client,
            link,
            shard,
            to_shard_ns: 0,
            to_client_ns: 0,
            is_half_open: false,
        };
        self.conns.insert(id, conn);
        self.actors[client].conns.insert(link, id);
        let peer = ([192, 0, 2, client as u8], 1024 + (id.0 % 60_000) as u16).into();
        if let Some((node, at)) = self.node(shard) {
            node.sockets.insert(id, Socket::default());
            node.shard.accepted(id, peer, at, &mut node.fx);
        }
        self.actors[client].client.connected(link, now);
    }

    pub(super) fn lost(&mut self, client: usize, link: usize, conn: ConnId) {
        if self.conns.get(&conn).is_some_and(|c| !c.is_half_open) {
            self.conns.remove(&conn);
            self.tell_lost(client, link, conn);
        }
    }

    fn tell_lost(&mut self, client: usize, link: usize, conn: ConnId) {
        let now = self.instant();
        if self.actors[client].conns.get(&link) == Some(&conn) {
            self.actors[client].conns.remove(&link);
            self.actors[client]
                .client
                .lost(link, "connection reset", now);
        }
    }

    /// Something happens to one of the connections.
    pub(super) fn break_one(&mut self, how: Break) {
        let whole = self.conns.iter_mut().filter(|(_, c)| !c.is_half_open);
        let nth = self.random.below(whole.count() as u64) as usize;
        let mut whole = self.conns.iter_mut().filter(|(_, c)| !c.is_half_open);
        let Some((&id, conn)) = whole.nth(nth) else {
            return;
        };
        self.is_well = false;
        let (client, link) = (conn.client, conn.link);
        match how {
            Break::Reset => {
                self.hang_up(id, Disconnect::Error(104));
                let wait = self.latency();
                self.at(wait, Event::Lost(client, link, id));
            }
            Break::Stall => {
                let until_ns = self.now.mono_ns + self.random.between(100 * MS, 4 * SECOND);
                conn.to_shard_ns = conn.to_shard_ns.max(until_ns);
                conn.to_client_ns = conn.to_client_ns.max(until_ns);
            }
            Break::HalfOpen => {
                conn.is_half_open = true;
                self.tell_lost(client, link, id);
                let wait = self.random.between(100 * MS, 20 * SECOND);
                self.at(wait, Event::HangUp(id));
            }
        }
    }

    /// The shard's side of a connection ends.
    pub(super) fn hang_up(&mut self, conn: ConnId, why: Disconnect) {
        let Some(shard) = self.conns.get(&conn).map(|c| c.shard) else {
            return;
        };
        if let Some((node, now)) = self.node(shard)
            && node.sockets.remove(&conn).is_some()
        {
            node.shard.disconnected(conn, why, now, &mut node.fx);
        }
    }

    /// An egress left: its bytes are on their way, in pieces.
    pub(super) fn sent(&mut self, id: ConnId, mut egress: Egress) {
        let whole = self.conns.get(&id).filter(|c| !c.is_half_open);
        let Some(shard) = whole.map(|c| c.shard) else {
            return;
        };
        let mut bytes = egress.head.clone();
        match std::mem::take(&mut egress.body) {
            Body::Nothing => {}
            Body::Memory(slices) => slices.iter().for_each(|s| bytes.extend_from_slice(s)),
            Body::File {
                file,
                position,
                bytes: count,
            } => match self.disk.range(shard, file, position, count) {
                Some(range) => bytes.extend(range),
                None => return self.hang_up(id, Disconnect::FileTooShort),
            },
        }
        self.carry(id, &bytes, false);
        let is_there = self.socket(id).map(|s| s.is_sending = false).is_some();
        if let (true, Some((node, now))) = (is_there, self.node(shard)) {
            node.shard.sent(id, egress, now, &mut node.fx);
        }
    }

    /// Bytes travel: cut anywhere, late, in order.
    pub(super) fn carry(&mut self, id: ConnId, bytes: &[u8], is_to_shard: bool) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let most = match self.random.below(4) {
                0 => self.random.between(1, 100),
                1 => self.random.between(1, 5_000),
                _ => rest.len() as u64,
            };
            let (piece, after) = rest.split_at((most as usize).min(rest.len()));
            rest = after;
            let latency = self.latency();
            let now_ns = self.now.mono_ns;
            let Some(conn) = self.conns.get_mut(&id) else {
                return;
            };
            let last = match is_to_shard {
                true => &mut conn.to_shard_ns,
                false => &mut conn.to_client_ns,
            };
            *last = (*last).max(now_ns + latency);
            let time = *last;
            let event = match is_to_shard {
                true => Event::ToShard(id, piece.to_vec()),
                false => Event::ToClient(id, piece.to_vec()),
            };
            self.at_time(time, event);
        }
    }

    pub(super) fn net(&mut self, node: &mut Node, op: NetOp) {
        let (NetOp::Send(id, _)
        | NetOp::Pause(id)
        | NetOp::Resume(id)
        | NetOp::Close(id)
        | NetOp::Abort(id)) = &op;
        let id = *id;
        let Some(socket) = node.sockets.get_mut(&id) else {
            return;
        };
        match op {
            NetOp::Send(_, egress) => {
                assert!(!socket.is_sending, "two egresses of {id:?}");
                socket.is_sending = true;
                let latency = self.latency();
                self.at(latency, Event::Sent(id, egress));
            }
            NetOp::Pause(_) => socket.is_paused = true,
            NetOp::Resume(_) => {
                socket.is_paused = false;
                node.is_due = true;
            }
            NetOp::Close(_) | NetOp::Abort(_) => {
                // What was sent arrives before the end.
                node.sockets.remove(&id);
                node.shard
                    .disconnected(id, Disconnect::Asked, self.now, &mut node.fx);
                if let Some(conn) = self.conns.get(&id) {
                    let (client, link) = (conn.client, conn.link);
                    let time = conn.to_client_ns.max(self.now.mono_ns + US);
                    self.at_time(time, Event::Lost(client, link, id));
                }
            }
        }
    }
}
