//! The shortest round trip over loopback TCP.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::panic::resume_unwind;

use crate::cpu;
use crate::error::BenchError;
use crate::latency::Latency;
use crate::limits::pace::Pace;

/// What both sides do while nothing has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Look again, with `sched_yield` in between.
    Polling,
    /// Sleep in the kernel until something has.
    Blocking,
}

/// The round trip of `bytes` bytes between two threads on these CPUs.
///
/// # Errors
/// When there is no such CPU, or loopback does not work; [`BenchError::Interrupted`].
pub fn echo(
    client_cpu: usize,
    server_cpu: usize,
    bytes: usize,
    waiting: Waiting,
    pace: &mut Pace<'_>,
) -> Result<Latency, BenchError> {
    let what = "cannot measure the echo over loopback TCP";
    let (client, server) = connected().map_err(BenchError::io(what))?;
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            cpu::pin(server_cpu)?;
            serve(&server, bytes, waiting)
        });
        let asked = cpu::on(Some(client_cpu), || ask(client, bytes, waiting, pace));
        let served = server.join().unwrap_or_else(|panic| resume_unwind(panic));
        served.map_err(BenchError::io(what))?;
        asked.map_err(BenchError::io(what))?
    })
}

/// Two ends of a connection. They are made before there are threads: one that fails closes its end,
/// so that the other does not wait for it.
pub(super) fn connected() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    Ok((one, other))
}

/// Sends back what comes until the peer is gone.
fn serve(stream: &TcpStream, bytes: usize, waiting: Waiting) -> io::Result<()> {
    prepare(stream, waiting)?;
    let mut buffer = vec![0; bytes];
    while receive(stream, &mut buffer)? {
        send(stream, &buffer)?;
    }
    Ok(())
}

fn ask(
    stream: TcpStream,
    bytes: usize,
    waiting: Waiting,
    pace: &mut Pace<'_>,
) -> Result<Latency, BenchError> {
    let what = "cannot measure the echo over loopback TCP";
    prepare(&stream, waiting).map_err(BenchError::io(what))?;
    let (question, mut answer) = (vec![7; bytes], vec![0; bytes]);
    pace.latency(what, || {
        send(&stream, &question)?;
        if receive(&stream, &mut answer)? {
            return Ok(());
        }
        Err(ErrorKind::UnexpectedEof.into())
    })
}

fn prepare(stream: &TcpStream, waiting: Waiting) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(waiting == Waiting::Polling)
}

/// Fills the buffer; whether the peer is still there.
fn receive(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<bool> {
    let mut have = 0;
    while have < buffer.len() {
        match stream.read(&mut buffer[have..]) {
            Ok(0) => return Ok(false),
            Ok(bytes) => have += bytes,
            Err(error) => go_on(error)?,
        }
    }
    Ok(true)
}

/// Sends all of it.
pub(super) fn send(mut stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) => go_on(error)?,
        }
    }
    Ok(())
}

/// Yields if it was only too early, and lets a signal be.
pub(super) fn go_on(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::WouldBlock => std::thread::yield_now(),
        ErrorKind::Interrupted => {}
        _ => return Err(error),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_echo_returns_what_was_sent() {
        for waiting in [Waiting::Polling, Waiting::Blocking] {
            let (client, server) = connected().expect("loopback works");
            let served = std::thread::spawn(move || serve(&server, 5, waiting));
            for word in [b"hello", b"world"] {
                send(&client, word).expect("sent");
                let mut answer = [0; 5];
                assert!(receive(&client, &mut answer).expect("received"));
                assert_eq!(&answer, word, "{waiting:?}");
            }
            drop(client);
            let ended = served.join().expect("no panic");
            assert!(ended.is_ok(), "{waiting:?}: {ended:?}");
        }
    }

    #[test]
    fn sockets_block_only_if_asked_to() {
        for (waiting, blocks) in [(Waiting::Polling, false), (Waiting::Blocking, true)] {
            let (client, _server) = connected().expect("loopback works");
            prepare(&client, waiting).expect("prepared");
            let flags = rustix::fs::fcntl_getfl(&client).expect("flags");
            assert_eq!(!flags.contains(rustix::fs::OFlags::NONBLOCK), blocks);
        }
    }

    #[test]
    fn a_cpu_that_is_not_there_ends_both_sides() {
        for (client, server) in [(0, 1023), (1023, 0)] {
            let mut pace = Pace::new(Duration::from_secs(3600));
            let ended = echo(client, server, 128, Waiting::Blocking, &mut pace);
            let error = ended.expect_err("no machine here has it").to_string();
            assert!(error.contains("1023"), "{error}");
        }
    }
}
