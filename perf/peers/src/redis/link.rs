//! A connection to Redis that never blocks. Commands are packed and replies parsed by the crate `redis`;
//! here is only when sockets are read and written. Replies come in the order of the commands.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use redis::{Cmd, Parser, Value};
use ringtide_perf::BenchError;

/// Bytes asked for in one read.
const READ_BYTES: usize = 64 << 10;

/// One connection, over a socket that does not block.
pub struct Link<S> {
    stream: BufReader<S>,
    parser: Parser,
    server: String,
    /// What the socket has not taken, from `sent` on.
    out: Vec<u8>,
    sent: usize,
}

impl Link<TcpStream> {
    /// Connects.
    pub fn connect(server: &str) -> Result<Self, BenchError> {
        let connect = || -> std::io::Result<TcpStream> {
            let stream = TcpStream::connect(server)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let stream = connect().map_err(BenchError::io(format!(
            "cannot connect to redis at {server}"
        )))?;
        Ok(Self::over(stream, server))
    }
}

impl AsFd for Link<TcpStream> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

impl<S: Read + Write> Link<S> {
    /// Over a socket that is connected.
    pub fn over(stream: S, server: &str) -> Self {
        Self {
            stream: BufReader::with_capacity(READ_BYTES, stream),
            parser: Parser::new(),
            server: server.into(),
            out: Vec::new(),
            sent: 0,
        }
    }

    /// Gathers a command, until [`Self::flush`].
    pub fn gather(&mut self, command: &Cmd) {
        command.write_packed_command(&mut self.out);
    }

    /// Bytes that the socket has not taken.
    pub fn unsent_bytes(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Sends what was gathered, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<(), BenchError> {
        while self.sent < self.out.len() {
            match self.stream.get_mut().write(&self.out[self.sent..]) {
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.lost()(error)),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Hands out the replies that have arrived; how many.
    pub fn poll(&mut self, mut each: impl FnMut(Value)) -> Result<usize, BenchError> {
        let mut replies = 0;
        loop {
            match self.parser.parse_value(&mut self.stream) {
                Ok(reply) => {
                    replies += 1;
                    each(reply);
                }
                // The rest has not arrived yet; the parser keeps what has.
                Err(error) if error.is_timeout() => return Ok(replies),
                Err(error) => return Err(self.lost()(std::io::Error::other(error))),
            }
        }
    }

    fn lost(&self) -> impl FnOnce(std::io::Error) -> BenchError + use<S> {
        BenchError::io(format!(
            "the connection to redis at {} was lost",
            self.server
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io;

    use super::*;

    /// A socket that gives what was planted piece by piece, and takes a few bytes at a time.
    #[derive(Default)]
    struct Fake {
        pieces: VecDeque<Vec<u8>>,
        is_closed: bool,
        taken: Vec<u8>,
        room: usize,
    }

    impl Read for Fake {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let Some(piece) = self.pieces.pop_front() else {
                return match self.is_closed {
                    true => Ok(0),
                    false => Err(ErrorKind::WouldBlock.into()),
                };
            };
            into[..piece.len()].copy_from_slice(&piece);
            Ok(piece.len())
        }
    }

    impl Write for Fake {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(std::mem::take(&mut self.room));
            if taken == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.taken.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn replies(link: &mut Link<Fake>) -> Vec<Value> {
        let mut out = Vec::new();
        link.poll(|reply| out.push(reply)).expect("connected");
        out
    }

    #[test]
    fn a_reply_is_handed_out_once_its_last_byte_is_there() {
        let text = b"*2\r\n$3\r\nabc\r\n:7\r\n+OK\r\n";
        for cut in 1..text.len() {
            let mut link = Link::over(Fake::default(), "fake");
            link.stream.get_mut().pieces.push_back(text[..cut].to_vec());
            let mut all = replies(&mut link);
            link.stream.get_mut().pieces.push_back(text[cut..].to_vec());
            all.extend(replies(&mut link));
            let array = Value::Array(vec![Value::BulkString(b"abc".into()), Value::Int(7)]);
            assert_eq!(all, [array, Value::Okay], "cut at {cut}");
        }
    }

    #[test]
    fn what_the_socket_does_not_take_is_sent_later_and_in_order() {
        let mut link = Link::over(Fake::default(), "fake");
        link.gather(redis::cmd("PING").arg(1));
        let whole = link.unsent_bytes();
        for left in (0..whole).rev() {
            link.stream.get_mut().room = 1;
            link.flush().expect("connected");
            assert_eq!(link.unsent_bytes(), left);
        }
        let taken = &link.stream.get_ref().taken;
        assert_eq!(taken, b"*2\r\n$4\r\nPING\r\n$1\r\n1\r\n");
    }

    #[test]
    fn a_connection_that_ends_is_lost_and_says_whose_it_was() {
        let mut link = Link::over(Fake::default(), "host:1");
        link.stream.get_mut().is_closed = true;
        let error = link.poll(|_| ()).expect_err("it ended").to_string();
        assert!(error.contains("redis at host:1"), "{error}");
    }
}
