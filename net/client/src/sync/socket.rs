//! Sockets that never block.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// A connection that is being made, to one of the addresses of a host after the other.
pub(crate) struct Connecting {
    stream: TcpStream,
    rest: Vec<SocketAddr>,
}

impl Connecting {
    /// Begins. Looking up a name may block; an address does not.
    pub(crate) fn begin(host: &str, port: u16) -> io::Result<Self> {
        let mut addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
        addresses.reverse();
        Self::next(addresses, ErrorKind::NotFound.into())
    }

    fn next(mut rest: Vec<SocketAddr>, mut error: io::Error) -> io::Result<Self> {
        while let Some(address) = rest.pop() {
            match start(address) {
                Ok(stream) => return Ok(Self { stream, rest }),
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }

    /// Whether it is made; `Err` when there is no further address to try.
    pub(crate) fn proceed(self) -> io::Result<Result<TcpStream, Self>> {
        let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
        if wait(&mut fds, Some(Duration::ZERO))? == 0 {
            return Ok(Err(self));
        }
        match rustix::net::sockopt::socket_error(&self.stream)? {
            Ok(()) => {
                self.stream.set_nodelay(true)?;
                Ok(Ok(self.stream))
            }
            Err(errno) => Self::next(self.rest, errno.into()).map(Err),
        }
    }
}

impl AsFd for Connecting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
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
