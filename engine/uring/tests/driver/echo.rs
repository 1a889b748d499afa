//! A logic that sends back what it receives, one egress at a time.

use std::collections::HashMap;
use std::net::SocketAddr;

use ringtide_io::{
    Body, ConnId, Disconnect, DiskDone, DiskError, Effects, Egress, Logic, NetOp, Now, OpId,
};

#[derive(Default)]
pub struct Echo {
    conns: HashMap<ConnId, State>,
    spare: Vec<Vec<u8>>,
    dirty: Vec<ConnId>,
    stopping: bool,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    sending: bool,
}

type Fx = Effects<()>;

impl Logic for Echo {
    type Mail = ();

    fn accepted(&mut self, conn: ConnId, _: SocketAddr, _: Now, _: &mut Fx) {
        self.conns.insert(conn, State::default());
    }

    fn received(&mut self, conn: ConnId, bytes: &[u8], _: Now, _: &mut Fx) {
        let state = self.conns.get_mut(&conn).expect("a known connection");
        if state.waiting.is_empty() {
            if state.waiting.capacity() == 0 {
                state.waiting = self.spare.pop().unwrap_or_default();
            }
            self.dirty.push(conn);
        }
        state.waiting.extend_from_slice(bytes);
    }

    fn sent(&mut self, conn: ConnId, mut egress: Egress, _: Now, _: &mut Fx) {
        egress.head.clear();
        self.spare.push(egress.head);
        let state = self.conns.get_mut(&conn).expect("a known connection");
        state.sending = false;
        if !state.waiting.is_empty() {
            self.dirty.push(conn);
        }
    }

    fn disconnected(&mut self, conn: ConnId, _: Disconnect, _: Now, _: &mut Fx) {
        assert!(self.conns.remove(&conn).is_some(), "disconnected twice");
    }

    fn disk(&mut self, _: OpId, _: Result<DiskDone, DiskError>, _: Now, _: &mut Fx) {}

    fn mail(&mut self, _: u16, (): (), _: Now, _: &mut Fx) {}

    fn turn(&mut self, _: Now, fx: &mut Fx) {
        for conn in self.dirty.drain(..) {
            let Some(state) = self.conns.get_mut(&conn) else {
                continue;
            };
            if state.sending || state.waiting.is_empty() {
                continue;
            }
            state.sending = true;
            let head = std::mem::replace(&mut state.waiting, self.spare.pop().unwrap_or_default());
            fx.net.push(NetOp::Send(
                conn,
                Egress {
                    head,
                    body: Body::Nothing,
                },
            ));
        }
    }

    fn deadline_ns(&self) -> Option<u64> {
        None
    }

    fn stop(&mut self, _: Now, fx: &mut Fx) {
        self.stopping = true;
        fx.net
            .extend(self.conns.keys().map(|&conn| NetOp::Close(conn)));
    }

    fn is_stopped(&self) -> bool {
        self.stopping && self.conns.is_empty()
    }
}
