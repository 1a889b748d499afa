//! Moves bytes between the core and its sockets, one turn at a time.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::core::Core;
use crate::options::Idle;
use crate::sync::socket::{self, Connecting};

/// What is read at once.
pub(crate) const READ_BYTES: usize = 1 << 20;

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
    ///
    /// What has arrived is read first: who calls late has not been answered late.
    pub(crate) fn turn(&mut self) -> bool {
        let now = Instant::now();
        let mut arrived = false;
        for link in 0..self.sockets.len() {
            // It ends: what the broker may send is bounded by credit and by what was asked for.
            while let read @ 1.. = self.read(link, now) {
                arrived = true;
                if read < READ_BYTES {
                    break;
                }
            }
        }
        self.core.tick(now);
        self.connect(now);
        self.write(now);
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

    /// How many bytes were read; 1 stands for news of another kind.
    fn read(&mut self, link: usize, now: Instant) -> usize {
        match std::mem::replace(&mut self.sockets[link], Socket::None) {
            Socket::None => 0,
            Socket::Connecting(connecting) => match connecting.proceed() {
                Ok(Err(connecting)) => {
                    self.sockets[link] = Socket::Connecting(connecting);
                    0
                }
                Ok(Ok(stream)) => {
                    self.sockets[link] = Socket::Up(stream);
                    self.core.connected(link, now);
                    1
                }
                Err(error) => {
                    self.core.connect_failed(link, &error, now);
                    1
                }
            },
            Socket::Up(stream) => {
                let read = socket::read(&stream, &mut self.buffer);
                self.sockets[link] = Socket::Up(stream);
                match read {
                    Ok(0) => 0,
                    Ok(bytes) => {
                        self.core.received(link, &self.buffer[..bytes], now);
                        bytes
                    }
                    Err(error) => {
                        self.core.lost(link, &error.to_string(), now);
                        1
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::call::Request;
    use crate::core::served::serve;
    use crate::options::Options;

    #[test]
    fn an_answer_that_has_arrived_counts_however_late_it_is_looked_at() {
        let timeout = Duration::from_millis(50);
        let served = serve(1);
        let options = Options::new().request_timeout(timeout);
        let core = Core::new(&served.servers, options, 1).expect("a server");
        let mut driver = Driver::new(core);
        let first = driver.core.call(Request::Ping, Instant::now());
        while driver.core.take_answer(first).is_none() {
            driver.turn();
        }
        let call = driver.core.call(Request::Ping, Instant::now());
        driver.turn();
        let sent = Instant::now();
        let Some(Socket::Up(stream)) = driver.sockets.first() else {
            panic!("the connection is gone");
        };
        while stream.peek(&mut [0; 64]).is_err() || sent.elapsed() <= timeout {
            std::thread::yield_now();
        }
        driver.turn();
        assert!(driver.core.take_answer(call).is_some_and(|a| a.is_ok()));
    }
}
