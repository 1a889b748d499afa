//! Connections: accepting, receiving, pausing, closing. What they send is in [`crate::egress`].
//!
//! A connection ends in one way only: the socket is shut down, what the kernel still holds is
//! cancelled, and once every completion was collected the descriptor is closed and the logic told,
//! once.
#![expect(unsafe_code, reason = "socket calls, and memory given to the ring")]

use std::collections::VecDeque;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::time::Duration;

use io_uring::{opcode, squeue, types};
use ringtide_io::{ConnId, Disconnect, Effects, Logic, NetOp, Now};

use crate::config::{CatchUp, ShardConfig};
use crate::egress::{Outgoing, Step};
use crate::files::Files;
use crate::memory::{FileBuffers, ReceiveBuffers};
use crate::ring::{Completion, RECEIVE_GROUP, Ring};
use crate::token::{Kind, MAX_SLOTS, Token};

/// What is needed to hand events to the logic.
pub(crate) struct Deliver<'a, L: Logic> {
    pub logic: &'a mut L,
    pub fx: &'a mut Effects<L::Mail>,
    pub now: Now,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Receiving {
    Off,
    Armed,
    Cancelling,
}

struct Conn {
    id: ConnId,
    socket: OwnedFd,
    receiving: Receiving,
    paused: bool,
    /// Receives a buffer at a time: it was paused before, and would fill many before it is heard that it is too much.
    is_one_by_one: bool,
    out: Box<Outgoing>,
    /// When the egress began, or last went on with its file.
    sending_since_ns: u64,
    close_after_send: bool,
    /// All is sent; the peer's end is waited for.
    lingering: bool,
    /// Set when closing began.
    ending: Option<Disconnect>,
    /// Its last completion was collected.
    quiet: bool,
}

impl Conn {
    fn token(&self, kind: Kind) -> Token {
        Token::new(kind, slot_of(self.id), generation_of(self.id))
    }
}

/// Bits of a connection's number that say its slot; the others count connections.
const SLOT_BITS: u32 = 20;
const _: () = assert!(1 << SLOT_BITS <= MAX_SLOTS);

fn slot_of(id: ConnId) -> u32 {
    id.0 as u32 & ((1 << SLOT_BITS) - 1)
}

fn generation_of(id: ConnId) -> u32 {
    (id.0 >> SLOT_BITS) as u32
}

/// How often it is said at the most that no more connections are taken.
const SAY_FULL_NS: u64 = 60_000_000_000;
/// How long accepting rests after the system had no descriptor or memory for another connection.
const ACCEPT_REST_NS: u64 = 100_000_000;

/// How long a connection that we close is read for the peer's end.
const LINGER_NS: u64 = 1_000_000_000;
/// An idle peer is asked after this long whether it is still there, and again at this interval,
/// until it has been silent for the time that a peer may take nothing.
const KEEP_ALIVE: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(20)];

/// The sockets of a shard.
pub(crate) struct Net {
    listener: TcpListener,
    accepting: Receiving,
    accept_again_ns: Option<u64>,
    /// No more connections: the shard ends.
    closed: bool,
    /// When it may be said again that there is no room.
    say_full_ns: u64,
    say_no_memory_ns: u64,
    conns: Vec<Option<Conn>>,
    free: Vec<u32>,
    open: usize,
    accepted: u64,
    max_connections: usize,
    catch_up: CatchUp,
    send_buffer: Option<usize>,
    peer_timeout: Duration,
    pub receive: ReceiveBuffers,
    /// Receives to arm again now that all buffers are back.
    rearm: Vec<ConnId>,
    file_buffers: FileBuffers,
    /// Egresses that wait for a file buffer.
    starved: VecDeque<ConnId>,
    /// Egresses that go on without waiting for the kernel.
    ready: VecDeque<ConnId>,
    /// Bytes of files that may still be sent in this turn.
    file_allowance: usize,
    /// Connections whose last completion was collected.
    gone: Vec<ConnId>,
    /// Connections that linger, and until when, in this order.
    lingering: VecDeque<(u64, ConnId)>,
}

impl Net {
    pub fn new(config: &ShardConfig, listener: TcpListener) -> std::io::Result<Self> {
        Ok(Self {
            listener,
            accepting: Receiving::Off,
            accept_again_ns: None,
            closed: false,
            say_full_ns: 0,
            say_no_memory_ns: 0,
            conns: Vec::new(),
            free: Vec::new(),
            open: 0,
            accepted: 0,
            max_connections: config.max_connections.clamp(1, 1 << SLOT_BITS),
            catch_up: config.catch_up,
            send_buffer: config.socket_send_buffer,
            peer_timeout: config.peer_timeout,
            receive: ReceiveBuffers::new(config.recv_buffers, config.recv_buffer_bytes)?,
            rearm: Vec::new(),
            file_buffers: FileBuffers::new(config.file_buffers)?,
            starved: VecDeque::new(),
            ready: VecDeque::new(),
            file_allowance: 0,
            gone: Vec::new(),
            lingering: VecDeque::new(),
        })
    }

    fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(slot_of(id) as usize)?.as_mut()?;
        (conn.id == id).then_some(conn)
    }

    /// The connection that a completion is about. A slot is not used again before all completions
    /// of its connection were collected, so that it is always there.
    fn of(&mut self, token: Token) -> &mut Conn {
        let conn = self.conns[token.slot as usize]
            .as_mut()
            .expect("completion of an empty slot");
        assert_eq!(
            generation_of(conn.id),
            token.generation,
            "completion of an earlier connection"
        );
        conn
    }

    // Accepting

    fn has_room(&self) -> bool {
        !self.closed && self.open < self.max_connections
    }

    fn accept_token() -> Token {
        Token::new(Kind::Accept, 0, 0)
    }

    /// Accepts one more where nothing speaks against it. A multishot accept would take all that wait, however many have
    /// room, and each is an open file.
    pub fn accept(&mut self, ring: &mut Ring) {
        if self.accepting != Receiving::Off || !self.has_room() || self.accept_again_ns.is_some() {
            return;
        }
        let entry =
            opcode::Accept::new(types::Fd(self.listener.as_raw_fd()), null_mut(), null_mut())
                .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
                .build();
        // SAFETY: the entry points to no memory; the listener lives as long as the ring.
        unsafe { ring.push(entry, Self::accept_token()) };
        self.accepting = Receiving::Armed;
    }

    /// No new connections from now on: who tries is refused by the kernel.
    pub fn close_listener(&mut self, ring: &mut Ring) {
        self.closed = true;
        // SAFETY: no pointers; the descriptor is open. It stays so until nothing uses it any more.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if self.accepting == Receiving::Armed {
            ring.cancel(Self::accept_token());
            self.accepting = Receiving::Cancelling;
        }
    }

    /// When accepting is to be tried again, or the first lingering connection has had its time.
    pub fn deadline_ns(&self) -> Option<u64> {
        let lingers = self.lingering.front().map(|&(until_ns, _)| until_ns);
        self.accept_again_ns.into_iter().chain(lingers).min()
    }

    pub fn on_accept<L: Logic>(
        &mut self,
        completion: Completion,
        ring: &mut Ring,
        to: &mut Deliver<'_, L>,
    ) {
        self.accepting = Receiving::Off;
        if completion.result >= 0 {
            // SAFETY: a descriptor that the kernel just made for us.
            let socket = unsafe { OwnedFd::from_raw_fd(completion.result) };
            if self.has_room() {
                self.add(socket, ring, to);
            }
        } else if matches!(
            -completion.result,
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EINVAL
        ) {
            self.accept_again_ns = Some(to.now.mono_ns + ACCEPT_REST_NS);
            let lacks_files = matches!(-completion.result, libc::EMFILE | libc::ENFILE);
            let lacks_memory = matches!(-completion.result, libc::ENOBUFS | libc::ENOMEM);
            if lacks_files && !self.closed {
                to.logic.lacks_files(to.now, to.fx);
            }
            if lacks_memory && !self.closed && to.now.mono_ns >= self.say_no_memory_ns {
                self.say_no_memory_ns = to.now.mono_ns + SAY_FULL_NS;
                tracing::warn!(
                    "the kernel has no memory for another connection: those that come wait"
                );
            }
        }
        if self.has_room() {
            self.accept(ring);
        } else {
            self.say_full(to.now.mono_ns);
        }
    }

    fn say_full(&mut self, now_ns: u64) {
        if !self.closed && now_ns >= self.say_full_ns {
            self.say_full_ns = now_ns + SAY_FULL_NS;
            tracing::warn!(
                connections = self.open,
                "a shard has all connections that max-connections and the limit of open files leave it: \
                 others wait until one ends"
            );
        }
    }

    fn add<L: Logic>(&mut self, socket: OwnedFd, ring: &mut Ring, to: &mut Deliver<'_, L>) {
        let stream = TcpStream::from(socket);
        // A peer that is gone already shows here; so it does in what follows.
        let Ok(peer) = stream.peer_addr() else { return };
        let _ = stream.set_nodelay(true);
        let socket = OwnedFd::from(stream);
        if let Some(bytes) = self.send_buffer {
            set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes);
        }
        // A peer that takes nothing of what waits for it, or is gone without a word.
        let millis = self.peer_timeout.as_millis() as usize;
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, millis);
        let [idle, interval] = KEEP_ALIVE.map(|d| d.as_secs() as usize);
        set_option(&socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, idle);
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, interval);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            self.conns.len() as u32 - 1
        });
        self.accepted += 1;
        self.open += 1;
        let id = ConnId(self.accepted << SLOT_BITS | u64::from(slot));
        let conn = Conn {
            id,
            socket,
            receiving: Receiving::Off,
            paused: false,
            is_one_by_one: false,
            out: Box::default(),
            sending_since_ns: 0,
            close_after_send: false,
            lingering: false,
            ending: None,
            quiet: false,
        };
        arm(self.conns[slot as usize].insert(conn), ring);
        to.logic.accepted(id, peer, to.now, to.fx);
    }

    // Receiving

    pub fn on_recv<L: Logic>(
        &mut self,
        completion: Completion,
        ring: &mut Ring,
        to: &mut Deliver<'_, L>,
    ) {
        let timeout = self.peer_timeout;
        let conn = self.of(completion.token);
        let (id, lingering) = (conn.id, conn.lingering);
        // The kernel says why it gave up a peer at most once, and not always here.
        let waited_ns = to.now.mono_ns.saturating_sub(conn.sending_since_ns);
        let gave_up = !conn.out.is_idle() && u128::from(waited_ns) >= timeout.as_nanos();
        if !completion.more() {
            conn.receiving = Receiving::Off;
        }
        let open = conn.ending.is_none() && !conn.close_after_send;
        if let Some(buffer) = completion.buffer() {
            if open && completion.result > 0 {
                let bytes = self.receive.received(buffer, completion.result as usize);
                to.logic.received(id, bytes, to.now, to.fx);
            }
            self.receive.give(buffer);
        }
        match completion.result {
            0 if lingering => self.end(id, Disconnect::Asked, ring),
            0 if gave_up => self.end(id, Disconnect::Error(libc::ETIMEDOUT), ring),
            0 => self.end(id, Disconnect::Peer, ring),
            1.. if completion.more() => {}
            1.. => self.rearm.push(id),
            failure => match -failure {
                libc::ENOBUFS | libc::EINTR | libc::EAGAIN => self.rearm.push(id),
                libc::ECANCELED => self.rearm.push(id),
                errno => self.end(id, Disconnect::Error(errno), ring),
            },
        }
        self.finish_if_quiet(id);
    }

    /// After all completions of a turn: buffers are back, receives go on, connections that have
    /// ended are reported. Whether anything was.
    pub fn settle<L: Logic>(&mut self, ring: &mut Ring, to: &mut Deliver<'_, L>) -> bool {
        self.receive.publish();
        while let Some(id) = self.rearm.pop() {
            if let Some(conn) = self.conn(id) {
                arm(conn, ring);
            }
        }
        if self.accept_again_ns.is_some_and(|at| at <= to.now.mono_ns) {
            self.accept_again_ns = None;
            self.accept(ring);
        }
        while let Some(&(until_ns, id)) = self.lingering.front()
            && until_ns <= to.now.mono_ns
        {
            self.lingering.pop_front();
            self.end(id, Disconnect::Asked, ring);
        }
        let any = !self.gone.is_empty();
        while let Some(id) = self.gone.pop() {
            self.forget(id, ring, to);
        }
        any
    }

    // Sending

    /// Whether an egress can go on at once.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.gone.is_empty() || !self.rearm.is_empty()
    }

    /// Whether an egress waits for its turn to send from a file.
    pub fn has_files_to_send(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Goes on with the egresses that are ready, in their order, as far as `allowance` goes.
    pub fn send_files<L: Logic>(
        &mut self,
        allowance: usize,
        ring: &mut Ring,
        to: &mut Deliver<'_, L>,
    ) {
        self.file_allowance = allowance;
        for _ in 0..self.ready.len() {
            if self.file_allowance == 0 {
                break;
            }
            let Some(id) = self.ready.pop_front() else {
                break;
            };
            self.step(id, None, ring, to);
        }
    }

    /// An operation of an egress completed: a send, a wait for room, or a read of a file.
    pub fn on_egress<L: Logic>(
        &mut self,
        completion: Completion,
        ring: &mut Ring,
        to: &mut Deliver<'_, L>,
    ) {
        let id = self.of(completion.token).id;
        self.step(id, Some(completion), ring, to);
    }

    fn step<L: Logic>(
        &mut self,
        id: ConnId,
        completion: Option<Completion>,
        ring: &mut Ring,
        to: &mut Deliver<'_, L>,
    ) {
        let Some(conn) = self.conns[slot_of(id) as usize]
            .as_mut()
            .filter(|conn| conn.id == id)
        else {
            return;
        };
        if let Some(completion) = completion {
            conn.out.collected(completion.token.kind);
        }
        if conn.ending.is_some() {
            self.finish_if_quiet(id);
            return;
        }
        if completion.is_none() {
            conn.sending_since_ns = to.now.mono_ns;
        }
        let token = conn.token(Kind::Send);
        let result = completion.map(|completion| (completion.token.kind, completion.result));
        let fd = conn.socket.as_raw_fd();
        let (buffers, allowance) = (&mut self.file_buffers, &mut self.file_allowance);
        match conn.out.step(result, fd, token, ring, buffers, allowance) {
            Step::Waiting => {}
            Step::Again => self.ready.push_back(id),
            Step::Starved => self.starved.push_back(id),
            Step::Sent(egress) => {
                let close = conn.close_after_send;
                to.logic.sent(id, egress, to.now, to.fx);
                if close {
                    self.linger(id, to.now, ring);
                }
            }
            Step::Failed(why) => self.end(id, why, ring),
        }
        self.feed();
    }

    /// Lets those who waited for a file buffer go on, where there are buffers now.
    fn feed(&mut self) {
        for _ in 0..self.file_buffers.free().min(self.starved.len()) {
            self.ready.extend(self.starved.pop_front());
        }
    }

    // What the logic asks for

    pub fn apply(&mut self, op: NetOp, files: &Files, now: Now, ring: &mut Ring) {
        match op {
            NetOp::Send(id, egress) => {
                let buffers = &mut self.file_buffers;
                let conn = self
                    .conns
                    .get_mut(slot_of(id) as usize)
                    .and_then(Option::as_mut);
                let Some(conn) = conn.filter(|conn| conn.id == id) else {
                    return;
                };
                if conn.ending.is_some() || conn.close_after_send {
                    return;
                }
                conn.sending_since_ns = now.mono_ns;
                let token = conn.token(Kind::Send);
                let fd = conn.socket.as_raw_fd();
                match conn
                    .out
                    .begin(egress, self.catch_up, files, fd, token, ring, buffers)
                {
                    Step::Waiting => {}
                    Step::Starved => self.starved.push_back(id),
                    Step::Again => self.ready.push_back(id),
                    Step::Sent(_) => unreachable!("an egress cannot end before it was submitted"),
                    Step::Failed(why) => self.end(id, why, ring),
                }
            }
            NetOp::Pause(id) => {
                let Some(conn) = self.conn(id).filter(|conn| !conn.close_after_send) else {
                    return;
                };
                conn.paused = true;
                conn.is_one_by_one = true;
                if conn.receiving == Receiving::Armed {
                    conn.receiving = Receiving::Cancelling;
                    ring.cancel(conn.token(Kind::Recv));
                }
            }
            NetOp::Resume(id) => {
                let Some(conn) = self.conn(id) else { return };
                conn.paused = false;
                arm(conn, ring);
            }
            NetOp::Close(id) => {
                let Some(conn) = self.conn(id) else { return };
                conn.close_after_send = true;
                if conn.out.is_idle() {
                    self.linger(id, now, ring);
                }
            }
            NetOp::Abort(id) => self.end(id, Disconnect::Asked, ring),
        }
    }

    // Ending

    /// Says that no more follows, and reads until the peer's end: to close a socket with something
    /// unread in it resets the connection, and a peer may lose to that what it was sent last.
    fn linger(&mut self, id: ConnId, now: Now, ring: &mut Ring) {
        let Some(conn) = self.conn(id) else { return };
        if conn.ending.is_some() || conn.lingering {
            return;
        }
        conn.lingering = true;
        conn.paused = false;
        arm(conn, ring);
        // SAFETY: no pointers; the descriptor is open. That the peer is gone already is no matter.
        unsafe { libc::shutdown(conn.socket.as_raw_fd(), libc::SHUT_WR) };
        self.lingering.push_back((now.mono_ns + LINGER_NS, id));
    }

    /// Shuts a connection down; `disconnected` follows when the kernel let go of it.
    fn end(&mut self, id: ConnId, why: Disconnect, ring: &mut Ring) {
        let Some(conn) = self.conn(id) else { return };
        if conn.ending.is_some() {
            return;
        }
        conn.ending = Some(why);
        // SAFETY: no pointers; the descriptor is open. That the peer is gone already is no matter.
        unsafe { libc::shutdown(conn.socket.as_raw_fd(), libc::SHUT_RDWR) };
        if conn.receiving == Receiving::Armed {
            conn.receiving = Receiving::Cancelling;
            ring.cancel(conn.token(Kind::Recv));
        }
        if let Some(kind) = conn.out.under_way() {
            ring.cancel(conn.token(kind));
        }
        self.finish_if_quiet(id);
    }

    fn finish_if_quiet(&mut self, id: ConnId) {
        let Some(conn) = self.conn(id) else { return };
        if conn.ending.is_some()
            && conn.receiving == Receiving::Off
            && conn.out.under_way().is_none()
            && !conn.quiet
        {
            conn.quiet = true;
            self.gone.push(id);
        }
    }

    fn forget<L: Logic>(&mut self, id: ConnId, ring: &mut Ring, to: &mut Deliver<'_, L>) {
        let conn = self.conns[slot_of(id) as usize]
            .take()
            .expect("it was there when it ended");
        assert_eq!(conn.id, id);
        self.free.push(slot_of(id));
        self.open -= 1;
        let Conn {
            socket,
            mut out,
            ending,
            ..
        } = conn;
        out.release(&mut self.file_buffers);
        self.starved.retain(|starved| *starved != id);
        drop(socket);
        self.feed();
        to.logic
            .disconnected(id, ending.unwrap_or(Disconnect::Asked), to.now, to.fx);
        self.accept(ring);
    }

    /// Ends all connections, for the end of the shard.
    pub fn end_all(&mut self, ring: &mut Ring) {
        self.close_listener(ring);
        for slot in 0..self.conns.len() {
            if let Some(id) = self.conns[slot].as_ref().map(|conn| conn.id) {
                self.end(id, Disconnect::Asked, ring);
            }
        }
    }
}

/// Arms the receive of a connection that is open, not paused, and has none.
fn arm(conn: &mut Conn, ring: &mut Ring) {
    if conn.receiving != Receiving::Off || conn.paused || conn.ending.is_some() {
        return;
    }
    let fd = types::Fd(conn.socket.as_raw_fd());
    let entry = match conn.is_one_by_one {
        false => opcode::RecvMulti::new(fd, RECEIVE_GROUP).build(),
        // The length is that of the buffer.
        true => opcode::Recv::new(fd, null_mut(), 0)
            .buf_group(RECEIVE_GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT),
    };
    // SAFETY: the entry points to no memory; buffers come from the registered group. The
    // descriptor stays open until this operation's last completion.
    unsafe { ring.push(entry, conn.token(Kind::Recv)) };
    conn.receiving = Receiving::Armed;
}

/// Sets an option whose value is an int. A refusal leaves the default.
fn set_option(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: usize) {
    let value = libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX);
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the option's value is an int, passed with its size.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            length,
        )
    };
}
