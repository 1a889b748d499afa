//! The shortest round trip over loopback TCP.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::cpu;
use crate::latency::{Latency, Recorder};

/// The round trip of `bytes` bytes between two threads on these CPUs, both busy-polling, for
/// `duration` after a tenth of it as warm-up.
///
/// # Errors
/// When there is no such CPU, or loopback does not work.
pub fn echo(
    client_cpu: usize,
    server_cpu: usize,
    bytes: usize,
    duration: Duration,
) -> io::Result<Latency> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            cpu::pin(server_cpu)?;
            let (stream, _) = listener.accept()?;
            serve(&stream, bytes)
        });
        let client = scope.spawn(move || {
            cpu::pin(client_cpu)?;
            ask(&TcpStream::connect(address)?, bytes, duration)
        });
        let broken = |_| io::Error::other("a thread of the echo panicked");
        let latency = client.join().map_err(broken)??;
        server.join().map_err(broken)??;
        Ok(latency)
    })
}

fn serve(stream: &TcpStream, bytes: usize) -> io::Result<()> {
    prepare(stream)?;
    let mut buffer = vec![0; bytes];
    while receive(stream, &mut buffer)? {
        send(stream, &buffer)?;
    }
    Ok(())
}

fn ask(stream: &TcpStream, bytes: usize, duration: Duration) -> io::Result<Latency> {
    prepare(stream)?;
    let (question, mut answer) = (vec![7; bytes], vec![0; bytes]);
    let mut recorder = Recorder::new();
    let began = Instant::now();
    let (warm, end) = (began + duration / 10, began + duration + duration / 10);
    loop {
        let asked = Instant::now();
        if asked >= end {
            break;
        }
        send(stream, &question)?;
        if !receive(stream, &mut answer)? {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if asked >= warm {
            recorder.record(asked.elapsed());
        }
    }
    recorder
        .summary()
        .ok_or_else(|| io::Error::other("the echo answered nothing in time"))
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)
}

/// Fills the buffer; whether the peer is still there.
fn receive(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<bool> {
    let mut have = 0;
    while have < buffer.len() {
        match stream.read(&mut buffer[have..]) {
            Ok(0) => return Ok(false),
            Ok(bytes) => have += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn send(mut stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_takes_some_time() {
        let latency = echo(0, 0, 128, Duration::from_millis(50)).expect("loopback works");
        assert!(0 < latency.p50 && latency.p50 <= latency.p99, "{latency:?}");
    }
}
