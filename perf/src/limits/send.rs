//! Sending files over loopback TCP as fast as it goes.

use std::fs::File;
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::sendfile;

use crate::cpu;
use crate::error::BenchError;
use crate::limits::echo;
use crate::limits::pace::Pace;
use crate::limits::scratch;
use crate::pipe::READ_BYTES;

/// Bytes of the file that is made to be sent: more than most processors keep in caches.
const FILE_BYTES: u64 = 128 << 20;

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

/// Bytes a second of the fastest way to send a file that is in the page cache, from one CPU to a
/// reader on another, both polling. The file has no name in the directory, and goes in the end.
///
/// # Errors
/// When there is no such CPU, or the file cannot be made; [`BenchError::Interrupted`].
pub fn fastest_sending(
    dir: &Path,
    sender_cpu: usize,
    reader_cpu: usize,
    pace: &mut Pace<'_>,
) -> Result<u64, BenchError> {
    let what = format!(
        "cannot write the file of {} MiB that is to be sent in {}; choose a directory with room \
         for it",
        FILE_BYTES >> 20,
        dir.display()
    );
    let file = [cached(dir, FILE_BYTES).map_err(BenchError::io(what))?];
    let what = "cannot measure sending a file over loopback TCP";
    let mut fastest = 0;
    for how in Sending::ALL {
        let rate = pace.bytes_per_s(Sending::ALL.len(), what, || {
            send_open(&file, how, sender_cpu, reader_cpu)
        })?;
        fastest = fastest.max(rate);
    }
    Ok(fastest)
}

/// A file without a name whose bytes are on the device and in the page cache.
fn cached(dir: &Path, bytes: u64) -> io::Result<File> {
    let file = scratch::nameless(dir, |path| {
        File::options().read(true).write(true).open(path)
    })?;
    let piece = vec![7; 1 << 20];
    for position in (0..bytes).step_by(piece.len()) {
        file.write_all_at(&piece, position)?;
    }
    // Else the system might write it while it is sent.
    file.sync_data()?;
    Ok(file)
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
    let files: Vec<File> = files.iter().map(File::open).collect::<Result<_, _>>()?;
    send_open(&files, how, sender_cpu, reader_cpu)
}

fn send_open(
    files: &[File],
    how: Sending,
    sender_cpu: usize,
    reader_cpu: usize,
) -> io::Result<(Duration, u64)> {
    let (to, from) = echo::connected()?;
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            cpu::pin(reader_cpu)?;
            take(&from)
        });
        let sender = scope.spawn(move || {
            cpu::pin(sender_cpu)?;
            to.set_nonblocking(true)?;
            let began = Instant::now();
            for file in files {
                send(&to, file, how)?;
            }
            Ok::<_, io::Error>(began)
        });
        let sent = sender.join().unwrap_or_else(|panic| resume_unwind(panic));
        let taken = reader.join().unwrap_or_else(|panic| resume_unwind(panic));
        // A reader that failed is why the sender failed.
        let (ended, bytes) = taken?;
        Ok((ended - sent?, bytes))
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
                    Err(errno) => echo::go_on(errno.into())?,
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
                echo::send(stream, &buffer[..bytes])?;
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
            Err(error) => echo::go_on(error)?,
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

    #[test]
    fn the_file_to_be_sent_is_whole_and_has_no_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = cached(dir.path(), 3 << 20).expect("written");
        assert_eq!(file.metadata().expect("open").len(), 3 << 20);
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 0);
    }

    #[test]
    fn a_cpu_that_is_not_there_ends_both_sides() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = [cached(dir.path(), 8 << 20).expect("written")];
        for (sender, reader) in [(0, 1023), (1023, 0)] {
            let ended = send_open(&file, Sending::ALL[0], sender, reader);
            let error = ended.expect_err("no machine here has it").to_string();
            assert!(error.contains("1023"), "{error}");
        }
    }
}
