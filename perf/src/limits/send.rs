//! Sending files over loopback TCP as fast as it goes.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::sendfile;

use crate::cpu;
use crate::pipe::READ_BYTES;

/// How a file gets into a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// sendfile(2), this many bytes at a time.
    Sendfile(usize),
    /// Read into memory, this many bytes at a time, and sent from there.
    ReadAndSend(usize),
}

impl Sending {
    /// The ways that are tried; which is the fastest depends on the caches of the machine.
    pub const ALL: [Self; 4] = [
        Self::Sendfile(256 << 10),
        Self::Sendfile(1 << 20),
        Self::ReadAndSend(64 << 10),
        Self::ReadAndSend(256 << 10),
    ];
}

/// Sends the files over a socket from one CPU to a reader on another, both polling; how long that
/// took, until the last byte was read, and how much it was.
///
/// # Errors
/// When there is no such CPU, or a file cannot be read.
pub fn send_files(
    files: &[PathBuf],
    how: Sending,
    sender_cpu: usize,
    reader_cpu: usize,
) -> io::Result<(Duration, u64)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            cpu::pin(reader_cpu)?;
            let (stream, _) = listener.accept()?;
            take(&stream)
        });
        let sender = scope.spawn(move || {
            cpu::pin(sender_cpu)?;
            let stream = TcpStream::connect(address)?;
            stream.set_nonblocking(true)?;
            let began = Instant::now();
            for path in files {
                send(&stream, &File::open(path)?, how)?;
            }
            Ok::<_, io::Error>(began)
        });
        let broken = |_| io::Error::other("a thread of the measurement panicked");
        let began = sender.join().map_err(broken)??;
        let (ended, bytes) = reader.join().map_err(broken)??;
        Ok((ended - began, bytes))
    })
}

fn send(stream: &TcpStream, file: &File, how: Sending) -> io::Result<()> {
    match how {
        Sending::Sendfile(piece) => {
            let mut position = 0;
            loop {
                match sendfile(stream, file, Some(&mut position), piece) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(rustix::io::Errno::AGAIN) => std::thread::yield_now(),
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Sending::ReadAndSend(piece) => {
            let (mut buffer, mut position) = (vec![0; piece], 0);
            loop {
                let bytes = file.read_at(&mut buffer, position)?;
                if bytes == 0 {
                    return Ok(());
                }
                position += bytes as u64;
                let (mut stream, mut rest) = (stream, &buffer[..bytes]);
                while !rest.is_empty() {
                    match stream.write(rest) {
                        Ok(sent) => rest = &rest[sent..],
                        Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                        Err(e) => return Err(e),
                    }
                }
            }
        }
    }
}

/// Reads until the peer has sent all; when that was, and how much it was.
fn take(mut stream: &TcpStream) -> io::Result<(Instant, u64)> {
    stream.set_nonblocking(true)?;
    let (mut buffer, mut total) = (vec![0; READ_BYTES], 0);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((Instant::now(), total)),
            Ok(bytes) => total += bytes as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_sends_every_byte() {
        let dir = tempfile::tempdir().expect("a directory");
        let files: Vec<PathBuf> = [0, 1, 300_000]
            .into_iter()
            .map(|bytes| {
                let path = dir.path().join(bytes.to_string());
                std::fs::write(&path, vec![1; bytes]).expect("written");
                path
            })
            .collect();
        for how in Sending::ALL {
            let (_, bytes) = send_files(&files, how, 0, 0).expect("sent");
            assert_eq!(bytes, 300_001, "{how:?}");
        }
    }
}
