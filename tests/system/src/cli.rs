//! The client commands, run as a user runs them: with arguments, pipes and an exit code.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::wait::{self, PATIENCE};

/// Runs commands of the binary against one broker.
#[derive(Clone, Debug)]
pub struct Cli {
    server: Option<String>,
    env: Vec<(String, String)>,
}

/// A command that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output as text.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text on standard output")
    }

    /// Standard output, line by line.
    #[must_use]
    pub fn lines(&self) -> Vec<&str> {
        self.text().lines().collect()
    }

    /// The exit code.
    ///
    /// # Panics
    /// When it was killed.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().expect("an exit code")
    }

    /// This, if it succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "the command failed: {self:?}");
        self
    }

    /// This, if it failed of its own accord and said something.
    ///
    /// # Panics
    /// When it succeeded, crashed or kept silent.
    #[track_caller]
    pub fn failed(self) -> Self {
        assert!(
            self.status.code().is_some_and(|c| c != 0),
            "it did not fail: {self:?}"
        );
        assert!(!self.stderr.contains("panicked at"), "it crashed: {self:?}");
        assert!(
            !self.stderr.trim().is_empty(),
            "it failed without a word: {self:?}"
        );
        self
    }
}

impl Cli {
    /// Commands for the broker at this address.
    #[must_use]
    pub fn new(server: SocketAddr) -> Self {
        Self {
            server: Some(server.to_string()),
            env: Vec::new(),
        }
    }

    /// Commands that name no broker.
    #[must_use]
    pub fn without_server() -> Self {
        Self {
            server: None,
            env: Vec::new(),
        }
    }

    /// With a variable set.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// A command that is not started yet, its standard streams piped.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(crate::binary());
        command
            .args(args)
            .env_remove("RINGTIDE_SERVER")
            .env_remove("RUST_LOG");
        if let Some(server) = &self.server {
            command.args(["--server", server]);
        }
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts a command and leaves it running.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(&self, args: &[&str]) -> Running {
        Running::new(self.command(args).spawn().expect("the binary starts"))
    }

    /// Runs a command to its end, with nothing on its standard input.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Finished {
        self.feed(args, b"")
    }

    /// Runs a command to its end, with this on its standard input.
    #[must_use]
    pub fn feed(&self, args: &[&str], stdin: &[u8]) -> Finished {
        let mut running = self.start(args);
        running.write(stdin);
        running.finish()
    }

    /// Starts a command in a folder and leaves it running.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_in(&self, folder: &Path, args: &[&str]) -> Running {
        let child = self
            .command(args)
            .current_dir(folder)
            .spawn()
            .expect("the binary starts");
        Running::new(child)
    }

    /// Runs a command in a folder.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run_in(&self, folder: &Path, args: &[&str]) -> Finished {
        let child = self
            .command(args)
            .current_dir(folder)
            .spawn()
            .expect("the binary starts");
        Running::new(child).finish()
    }
}

/// A command that is running. It is killed when this is dropped.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Option<Receiver<Vec<u8>>>,
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    fn new(mut child: Child) -> Self {
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut stderr = child.stderr.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            loop {
                let mut line = Vec::new();
                match stdout.read_until(b'\n', &mut line) {
                    Ok(n) if n > 0 => {
                        if sender.send(line).is_err() {
                            return;
                        }
                    }
                    _ => return,
                }
            }
        });
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        Self {
            stdin: child.stdin.take(),
            child,
            lines: Some(lines),
            stderr: Some(stderr),
        }
    }

    /// Writes to its standard input. A command that has ended shows that otherwise.
    pub fn write(&mut self, bytes: &[u8]) {
        if let Some(stdin) = &mut self.stdin {
            let _ = stdin.write_all(bytes).and_then(|()| stdin.flush());
        }
    }

    /// Waits until it has read all that was written to its standard input.
    ///
    /// # Panics
    /// When it does not.
    pub fn has_read(&self) {
        let stdin = self.stdin.as_ref().expect("an open standard input");
        wait::for_it("the reading of the input", || {
            rustix::io::ioctl_fionread(stdin).expect("a pipe") == 0
        });
    }

    /// The next line of its standard output, without its end; `None` at the end.
    ///
    /// # Panics
    /// When neither comes.
    pub fn line(&mut self) -> Option<Vec<u8>> {
        match self.receive(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the command printed nothing"),
        }
    }

    /// The next line of its standard output, without its end, if one comes within `patience`.
    pub fn line_within(&mut self, patience: Duration) -> Option<Vec<u8>> {
        self.receive(patience).ok()
    }

    fn receive(&mut self, patience: Duration) -> Result<Vec<u8>, RecvTimeoutError> {
        let lines = self.lines.as_ref().ok_or(RecvTimeoutError::Disconnected)?;
        let mut line = lines.recv_timeout(patience)?;
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        Ok(line)
    }

    /// Reads no more of its standard output and closes it at its next line.
    pub fn hang_up(&mut self) {
        self.lines = None;
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// When the system cannot tell.
    pub fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("a child can be asked")
            .is_none()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended and been waited for.
    pub fn signal(&mut self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("a running command");
    }

    /// Closes its standard input and waits for its end.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        drop(self.stdin.take());
        self.finish_open()
    }

    /// Waits for its end, its standard input still open.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn finish_open(mut self) -> Finished {
        let mut stdout = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while let Some(lines) = &self.lines {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) => stdout.extend_from_slice(&line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let _ = self.child.kill();
                    panic!(
                        "the command did not end; it printed: {}",
                        stdout.escape_ascii()
                    );
                }
            }
        }
        let status = wait::until("the end of a command", || {
            self.child.try_wait().expect("a child")
        });
        let stderr = self
            .stderr
            .take()
            .map(|t| t.join().expect("a reader"))
            .unwrap_or_default();
        Finished {
            status,
            stdout,
            stderr,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
