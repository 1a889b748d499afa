//! A broker process of our own, on a data directory of our own.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::BenchError;
use crate::pipe::Pipe;

/// A start or a stop that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// How brokers are started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The binary.
    pub binary: PathBuf,
    /// The CPUs of its shards.
    pub cpus: Vec<usize>,
}

/// A running broker; killed when dropped.
pub struct Broker {
    child: Child,
    pid: Pid,
    /// HOST:PORT.
    pub server: String,
    /// From starting the process until it answered hello.
    pub ready_after: Duration,
}

impl Launch {
    /// Starts a broker and waits until it answers.
    pub fn start(&self, data_dir: &Path, idle: &str, more: &[&str]) -> Result<Broker, BenchError> {
        let port = free_port()?;
        let server = format!("127.0.0.1:{port}");
        let log_path = data_dir.with_extension("log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(BenchError::io(format!(
                "cannot write {}",
                log_path.display()
            )))?;
        let log_too = log
            .try_clone()
            .map_err(BenchError::io("cannot share the broker's log"))?;
        let cpus: Vec<String> = self.cpus.iter().map(usize::to_string).collect();
        let cpus = cpus.join(",");
        let mut command = Command::new(&self.binary);
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--listen", &server, "--cpus", &cpus, "--idle", idle])
            .args(more)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too);
        let began = Instant::now();
        let binary = self.binary.display();
        let mut child = command.spawn().map_err(BenchError::io(format!(
            "cannot start {binary}; build it with `cargo build --release`, or name it in RINGTIDE_BIN"
        )))?;
        let pid = Pid::from_child(&child);
        loop {
            if let Ok(_hello) = Pipe::connect(&server, None) {
                let ready_after = began.elapsed();
                return Ok(Broker {
                    child,
                    pid,
                    server,
                    ready_after,
                });
            }
            let ended = child
                .try_wait()
                .map_err(BenchError::io("cannot watch the broker"))?;
            if ended.is_some() || began.elapsed() > PATIENCE {
                let _ = child.kill();
                let log = std::fs::read_to_string(&log_path).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(5).collect();
                let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(not_started(ended, &tail));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Why there is no broker. The code 2 is of its settings, which are the caller's.
fn not_started(ended: Option<ExitStatus>, said: &str) -> BenchError {
    let how = ended.map_or_else(
        || format!("it does not answer after {PATIENCE:?}"),
        in_words,
    );
    let why = format!("{how}; the end of what it said:\n{said}");
    match ended.and_then(|status| status.code()) {
        Some(2) => BenchError::Usage(format!("the broker did not start: {why}")),
        _ => BenchError::NotStarted(why),
    }
}

fn in_words(ended: ExitStatus) -> String {
    match (ended.code(), ended.signal()) {
        (Some(code), _) => format!("it ended with code {code}"),
        (None, Some(signal)) => format!("signal {signal} ended it"),
        (None, None) => "it ended".into(),
    }
}

/// A number that a file of a process has in the line that begins with the key.
fn number_of(pid: u32, file: &str, key: &str) -> Result<u64, BenchError> {
    let path = format!("/proc/{pid}/{file}");
    let text =
        std::fs::read_to_string(&path).map_err(BenchError::io(format!("cannot read {path}")))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| BenchError::Wrong(format!("{path} has no {key}")))
}

/// Resident memory of a process here, in bytes, and the files that it has open.
///
/// # Errors
/// When it is gone, or another user's.
pub fn memory_and_files(pid: u32) -> Result<(u64, u64), BenchError> {
    let memory = number_of(pid, "status", "VmRSS:")? * 1024;
    let dir = format!("/proc/{pid}/fd");
    let files = std::fs::read_dir(&dir).map_err(BenchError::io(format!("cannot read {dir}")))?;
    Ok((memory, files.count() as u64))
}

fn free_port() -> Result<u16, BenchError> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    Ok(listener.map_err(BenchError::io("no port is free"))?.port())
}

impl Broker {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) -> Result<(), BenchError> {
        kill_process(self.pid, signal)
            .map_err(|errno| BenchError::io("cannot signal the broker")(errno.into()))
    }

    /// Runs `work` while the broker stands still and takes no part of any CPU.
    pub fn paused<T>(&self, work: impl FnOnce() -> T) -> Result<T, BenchError> {
        self.signal(Signal::STOP)?;
        // Until the shard's thread has left its CPU.
        std::thread::sleep(Duration::from_millis(20));
        let result = work();
        self.signal(Signal::CONT)?;
        std::thread::sleep(Duration::from_millis(20));
        Ok(result)
    }

    /// Asks it to end and waits until it has.
    pub fn stop(mut self) -> Result<(), BenchError> {
        self.signal(Signal::TERM)?;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let ended: Option<ExitStatus> = self
                .child
                .try_wait()
                .map_err(BenchError::io("cannot watch the broker"))?;
            match ended {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(BenchError::Wrong(format!("the broker ended with {status}")));
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        Err(BenchError::Wrong(format!(
            "the broker did not end within {PATIENCE:?}"
        )))
    }

    /// Ends it at once.
    pub fn kill(mut self) {
        self.end();
    }

    /// Ends it at once, and waits until it has.
    pub fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Resident memory of the process, in bytes.
    pub fn resident_bytes(&self) -> Result<u64, BenchError> {
        self.number("status", "VmRSS:").map(|kib| kib * 1024)
    }

    /// Bytes that the process had written to devices by now.
    pub fn written_bytes(&self) -> Result<u64, BenchError> {
        self.number("io", "write_bytes:")
    }

    fn number(&self, file: &str, key: &str) -> Result<u64, BenchError> {
        number_of(self.child.id(), file, key)
    }

    /// Time on a CPU of all threads there are.
    pub fn cpu_time(&self) -> Result<Duration, BenchError> {
        let dir = format!("/proc/{}/task", self.child.id());
        let tasks =
            std::fs::read_dir(&dir).map_err(BenchError::io(format!("cannot read {dir}")))?;
        let mut total = Duration::ZERO;
        for task in tasks.flatten() {
            // A thread may end while it is looked at.
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let ns = text
                .split_whitespace()
                .next()
                .and_then(|ns| ns.parse().ok());
            total += Duration::from_nanos(ns.unwrap_or(0));
        }
        Ok(total)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_broker_ended_that_did_not_start_is_said_in_words() {
        let exited = |code: i32| Some(ExitStatus::from_raw(code << 8));
        for (ended, words) in [
            (exited(2), "it ended with code 2;"),
            (exited(14), "it ended with code 14;"),
            (Some(ExitStatus::from_raw(9)), "signal 9 ended it;"),
            (None, "it does not answer after 120s;"),
        ] {
            let error = not_started(ended, "the address is in use");
            let is_of_a_setting = matches!(error, BenchError::Usage(_));
            assert_eq!(is_of_a_setting, ended == exited(2), "{error:?}");
            let said = error.to_string();
            assert!(said.contains(words) && said.ends_with("in use"), "{said}");
        }
    }
}
