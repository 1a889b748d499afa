//! Moves bytes between the core and its sockets, one turn at a time.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::core::Core;
use crate::options::Idle;
use crate::sync::socket::{self, Connecting};

/// What is read at once.
pub(crate) const READ_BYTES: usize = 256 << 10;

enum Socket {
    None,
    Connecting(Connecting),
    Up(TcpStream),
}

/// The core with its sockets.
pub(crate) struct Driver {
    pub(crate) core: Core,
    /// By link.
    sockets: Vec<Socket>,
    buffer: Vec<u8>,
}

impl Driver {
    pub(crate) fn new(core: Core) -> Self {
        Self {
            core,
            sockets: Vec::new(),
            buffer: vec![0; READ_BYTES],
        }
    }

    /// Looks after timers, sockets and what arrived, without waiting; whether anything arrived.
    pub(crate) fn turn(&mut self) -> bool {
        let now = Instant::now();
        self.core.tick(now);
        self.connect(now);
        self.write(now);
        let mut arrived = false;
        for link in 0..self.sockets.len() {
            arrived |= self.read(link, now);
        }
        if arrived {
            self.core.tick(now);
            self.write(now);
        }
        arrived
    }

    fn connect(&mut self, now: Instant) {
        if self.sockets.len() < self.core.links() {
            self.sockets.resize_with(self.core.links(), || Socket::None);
        }
        for (link, socket) in self.sockets.iter_mut().enumerate() {
            if self.core.take_close(link) {
                *socket = Socket::None;
            }
        }
        while let Some((link, host, port)) = self.core.next_connect(now) {
            match Connecting::begin(&host, port) {
                Ok(connecting) => self.sockets[link] = Socket::Connecting(connecting),
                Err(error) => self.core.connect_failed(link, &error, now),
            }
        }
    }

    /// Sends what the core has to send.
    pub(crate) fn write(&mut self, now: Instant) {
        for (link, socket) in self.sockets.iter_mut().enumerate() {
            let output = self.core.output(link);
            if output.is_empty() {
                continue;
            }
            let Socket::Up(stream) = socket else { continue };
            match socket::write(stream, output) {
                Ok(sent) => self.core.sent(link, sent),
                Err(error) => self.core.lost(link, &error.to_string(), now),
            }
        }
    }

    fn read(&mut self, link: usize, now: Instant) -> bool {
        match std::mem::replace(&mut self.sockets[link], Socket::None) {
            Socket::None => false,
            Socket::Connecting(connecting) => match connecting.proceed() {
                Ok(Err(connecting)) => {
                    self.sockets[link] = Socket::Connecting(connecting);
                    false
                }
                Ok(Ok(stream)) => {
                    self.sockets[link] = Socket::Up(stream);
                    self.core.connected(link, now);
                    true
                }
                Err(error) => {
                    self.core.connect_failed(link, &error, now);
                    true
                }
            },
            Socket::Up(stream) => {
                let read = socket::read(&stream, &mut self.buffer);
                self.sockets[link] = Socket::Up(stream);
                match read {
                    Ok(0) => false,
                    Ok(bytes) => {
                        self.core.received(link, &self.buffer[..bytes], now);
                        true
                    }
                    Err(error) => {
                        self.core.lost(link, &error.to_string(), now);
                        true
                    }
                }
            }
        }
    }

    /// What the thread does after a turn in which nothing arrived.
    pub(crate) fn idle(&mut self, until: Option<Instant>) {
        match self.core.options().idle {
            Idle::Spin => std::thread::yield_now(),
            Idle::Park => self.park(until),
        }
    }

    fn park(&mut self, until: Option<Instant>) {
        if self.core.is_restless() {
            return;
        }
        let until = crate::core::connection::earlier(self.core.next_deadline(), until);
        let timeout = until.map(|at| at.saturating_duration_since(Instant::now()));
        let Self { core, sockets, .. } = self;
        let fds = sockets
            .iter()
            .enumerate()
            .filter_map(|(link, socket)| match socket {
                Socket::None => None,
                Socket::Connecting(connecting) => Some((connecting.as_fd(), PollFlags::OUT)),
                Socket::Up(stream) if core.output(link).is_empty() => {
                    Some((stream.as_fd(), PollFlags::IN))
                }
                Socket::Up(stream) => Some((stream.as_fd(), PollFlags::IN | PollFlags::OUT)),
            });
        let mut fds: Vec<PollFd<'_>> = fds
            .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags))
            .collect();
        // Nothing to wait for and no timer: come back soon rather than never.
        let timeout = timeout.or(fds.is_empty().then_some(Duration::from_millis(10)));
        if socket::wait(&mut fds, timeout).is_err() {
            std::thread::yield_now();
        }
    }
}
