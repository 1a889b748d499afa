//! Sockets that never block.

use std::io::{self, ErrorKind, PipeReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// A connection that is being made, to one of the addresses of a host after the other.
pub(crate) enum Connecting {
    /// The host's name is being looked up.
    LookedUp {
        addresses: Receiver<io::Result<Vec<SocketAddr>>>,
        /// Hung up when they are there.
        done: PipeReader,
    },
    /// The socket waits for its peer.
    Asked {
        stream: TcpStream,
        /// Those to be tried after it, the next one last.
        rest: Vec<SocketAddr>,
    },
}

impl Connecting {
    /// Begins. A name is looked up by a thread of its own, because the system's resolver blocks for
    /// as long as it likes.
    pub(crate) fn begin(host: &str, port: u16) -> io::Result<Self> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Self::next(vec![(address, port).into()], ErrorKind::NotFound.into());
        }
        let host = host.to_owned();
        Self::look_up(move || Ok((host.as_str(), port).to_socket_addrs()?.collect()))
    }

    fn look_up(
        resolve: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, addresses) = sync_channel(1);
        let (done, hang_up) = io::pipe()?;
        let thread = std::thread::Builder::new().name("ringtide-resolve".into());
        thread.spawn(move || {
            // Nobody listens any more when the connection was given up.
            let _ = sender.send(resolve());
            drop(hang_up);
        })?;
        Ok(Self::LookedUp { addresses, done })
    }

    fn next(mut rest: Vec<SocketAddr>, mut error: io::Error) -> io::Result<Self> {
        while let Some(address) = rest.pop() {
            match start(address) {
                Ok(stream) => return Ok(Self::Asked { stream, rest }),
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }

    /// Whether it is made; `Err` when there is no further address to try.
    pub(crate) fn proceed(self) -> io::Result<Result<TcpStream, Self>> {
        let (stream, rest) = match self {
            Self::LookedUp { ref addresses, .. } => {
                return match addresses.try_recv() {
                    Ok(found) => {
                        let mut found = found?;
                        found.reverse();
                        Self::next(found, ErrorKind::NotFound.into()).map(Err)
                    }
                    Err(TryRecvError::Empty) => Ok(Err(self)),
                    Err(gone @ TryRecvError::Disconnected) => Err(io::Error::other(gone)),
                };
            }
            Self::Asked { stream, rest } => (stream, rest),
        };
        let mut fds = [PollFd::new(&stream, PollFlags::OUT)];
        if wait(&mut fds, Some(Duration::ZERO))? == 0 {
            return Ok(Err(Self::Asked { stream, rest }));
        }
        match rustix::net::sockopt::socket_error(&stream)? {
            Ok(()) => {
                stream.set_nodelay(true)?;
                Ok(Ok(stream))
            }
            Err(errno) => Self::next(rest, errno.into()).map(Err),
        }
    }
}

impl AsFd for Connecting {
    /// Waited on for [`PollFlags::OUT`]; that somebody hung up is always told.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::LookedUp { done, .. } => done.as_fd(),
            Self::Asked { stream, .. } => stream.as_fd(),
        }
    }
}

fn start(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// Waits until one of the sockets is ready, or the time has passed; how many are ready.
pub(crate) fn wait(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout.map(|t| Timespec {
        tv_sec: t.as_secs().min(86_400) as i64,
        tv_nsec: t.subsec_nanos().into(),
    });
    match rustix::event::poll(fds, timeout.as_ref()) {
        Err(rustix::io::Errno::INTR) => Ok(0),
        ready => Ok(ready?),
    }
}

/// Sends what the socket takes; how many bytes that was.
pub(crate) fn write(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => sent += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(sent)
}

/// Reads what there is, once; 0 when there is nothing.
pub(crate) fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    match stream.read(buffer) {
        Ok(0) => Err(io::Error::new(
            ErrorKind::UnexpectedEof,
            "the server closed it",
        )),
        Ok(n) => Ok(n),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc::channel;

    use super::*;

    fn proceed_to_the_end(mut connecting: Connecting) -> io::Result<TcpStream> {
        loop {
            wait(&mut [PollFd::new(&connecting, PollFlags::OUT)], None)?;
            match connecting.proceed()? {
                Ok(stream) => return Ok(stream),
                Err(waiting) => connecting = waiting,
            }
        }
    }

    #[test]
    fn a_look_up_holds_nobody_up_and_wakes_who_waits_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (answer, resolver) = channel();
        let look_up = move || resolver.recv().map_err(io::Error::other);
        let connecting = Connecting::look_up(look_up).expect("begun");
        let mut fds = [PollFd::new(&connecting, PollFlags::OUT)];
        assert_eq!(wait(&mut fds, Some(Duration::ZERO)).expect("polled"), 0);
        let waiting = connecting.proceed().expect("no error");
        let connecting = waiting.expect_err("nothing was found yet");
        answer.send(vec![address]).expect("the thread waits");
        let stream = proceed_to_the_end(connecting).expect("connected");
        assert_eq!(stream.peer_addr().expect("a peer"), address);
    }

    #[test]
    fn the_addresses_of_a_name_are_tried_in_turn() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let nobody: SocketAddr = "127.0.0.1:1".parse().expect("an address");
        let found = move || Ok(vec![nobody, address]);
        let connecting = Connecting::look_up(found).expect("begun");
        let stream = proceed_to_the_end(connecting).expect("connected");
        assert_eq!(stream.peer_addr().expect("a peer"), address);
    }

    #[test]
    fn a_name_that_is_not_found_is_an_error() {
        let connecting = Connecting::look_up(|| Err(ErrorKind::NotFound.into())).expect("begun");
        let error = proceed_to_the_end(connecting).expect_err("nowhere to go");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
