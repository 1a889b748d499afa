//! Log lines: human on a terminal, JSON otherwise or on request, to standard error.
//!
//! A line is formatted where it arises and written by a thread of its own, so that a terminal or
//! pipe that does not take it never holds up a shard. Between them is a bounded queue; a line that
//! finds it full is dropped, and the number of dropped lines is written as soon as there is room.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::config::LogFormat;
use crate::exit::Failure;

/// Lines that may wait to be written.
const QUEUED_LINES: usize = 4096;
/// How long a closing log waits for a reader that takes nothing.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Keeps the writing thread; what is queued is written before it is gone.
pub(crate) struct LogGuard {
    queue: SyncSender<Message>,
    thread: Option<JoinHandle<()>>,
    done: Receiver<()>,
}

enum Message {
    Line(Vec<u8>),
    /// Answered once everything before it is written.
    Flush(SyncSender<()>),
    Close,
}

/// Writes what is queued, for those who end the process without dropping the guard.
#[derive(Clone)]
pub(crate) struct LogFlusher(SyncSender<Message>);

impl LogFlusher {
    /// Waits until what was logged is written, but not long for a reader that takes nothing.
    pub(crate) fn flush(&self) {
        let (written, wait) = sync_channel(1);
        if self.0.try_send(Message::Flush(written)).is_ok() {
            let _ = wait.recv_timeout(CLOSE_WAIT);
        }
    }
}

impl LogGuard {
    /// A handle that does not keep the log open.
    pub(crate) fn flusher(&self) -> LogFlusher {
        LogFlusher(self.queue.clone())
    }
}

/// Starts logging for the whole process.
pub(crate) fn start(level: tracing::Level, format: LogFormat) -> Result<LogGuard, Failure> {
    let json = match format {
        LogFormat::Json => true,
        LogFormat::Human => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let (writer, guard) = queue(io::stderr(), json)
        .map_err(|error| Failure::failed(format!("cannot start the log's thread: {error}")))?;
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(writer);
    let installed = if json {
        tracing::subscriber::set_global_default(builder.json().flatten_event(true).finish())
    } else {
        let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        tracing::subscriber::set_global_default(
            builder.with_ansi(colour).with_target(false).finish(),
        )
    };
    installed.map_err(|error| Failure::failed(format!("cannot start logging: {error}")))?;
    Ok(guard)
}

/// The queue with its thread, writing to `out`.
fn queue(out: impl Write + Send + 'static, json: bool) -> io::Result<(Queue, LogGuard)> {
    let (queue, lines) = sync_channel(QUEUED_LINES);
    let (finished, done) = sync_channel(1);
    let dropped = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&dropped);
    let thread = std::thread::Builder::new()
        .name("log".into())
        .spawn(move || {
            write_lines(&lines, &counter, out, json);
            let _ = finished.send(());
        })?;
    Ok((
        Queue {
            queue: queue.clone(),
            dropped,
        },
        LogGuard {
            queue,
            thread: Some(thread),
            done,
        },
    ))
}

/// Writes until told to close. A line that cannot be written is lost: there is nowhere to say so.
fn write_lines(lines: &Receiver<Message>, dropped: &AtomicU64, mut out: impl Write, json: bool) {
    loop {
        let message = lines.recv_timeout(Duration::from_secs(1));
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = out.write_all(dropped_note(lost, json).as_bytes());
        }
        match message {
            Ok(Message::Line(line)) => drop(out.write_all(&line)),
            Ok(Message::Flush(written)) => {
                let _ = out.flush();
                let _ = written.send(());
            }
            Ok(Message::Close) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    let _ = out.flush();
}

fn dropped_note(lost: u64, json: bool) -> String {
    let words = "log lines were dropped because they were not read fast enough";
    if json {
        format!("{{\"level\":\"WARN\",\"message\":\"{words}\",\"dropped\":{lost}}}\n")
    } else {
        format!(" WARN {words} dropped={lost}\n")
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        // The writer may be stuck behind a reader that takes nothing; ending matters more.
        let told = self.queue.try_send(Message::Close).is_ok();
        if told
            && self.done.recv_timeout(CLOSE_WAIT).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Makes writers that queue what they are given as one line.
#[derive(Clone)]
struct Queue {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            to: self,
            bytes: Vec::new(),
        }
    }
}

/// One log line while it is formatted.
struct Line<'a> {
    to: &'a Queue,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = Message::Line(std::mem::take(&mut self.bytes));
        if let Err(TrySendError::Full(_)) = self.to.queue.try_send(line) {
            self.to.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .expect("not poisoned")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Takes nothing until it is told to.
    struct Stuck {
        gate: Receiver<()>,
        open: bool,
        out: Shared,
        entered: Sender<()>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !self.open {
                let _ = self.entered.send(());
                self.gate.recv().expect("the test opens the gate");
                self.open = true;
            }
            self.out.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn say(queue: &Queue, text: &str) {
        queue
            .make_writer()
            .write_all(text.as_bytes())
            .expect("memory takes it");
    }

    #[test]
    fn what_was_logged_is_written_before_the_guard_is_gone() {
        let out = Shared::default();
        let (queue, guard) = queue(out.clone(), true).expect("a thread");
        for i in 0..100 {
            say(&queue, &format!("{i}\n"));
        }
        drop(guard);
        let text = String::from_utf8(out.0.lock().expect("not poisoned").clone()).expect("text");
        assert_eq!(text.lines().count(), 100);
        assert!(text.ends_with("99\n"));
    }

    #[test]
    fn a_flush_waits_for_what_was_logged_before_it() {
        let out = Shared::default();
        let (queue, guard) = queue(out.clone(), true).expect("a thread");
        say(&queue, "before\n");
        guard.flusher().flush();
        assert_eq!(*out.0.lock().expect("not poisoned"), b"before\n");
    }

    #[test]
    fn a_reader_that_takes_nothing_holds_nobody_up_and_drops_are_counted() {
        let out = Shared::default();
        let (open, gate) = channel();
        let (entered, inside) = channel();
        let stuck = Stuck {
            gate,
            open: false,
            out: out.clone(),
            entered,
        };
        let (queue, guard) = queue(stuck, true).expect("a thread");
        say(&queue, "first\n");
        inside
            .recv()
            .expect("the writer is stuck in the first line");
        for _ in 0..QUEUED_LINES + 7 {
            say(&queue, "more\n");
        }
        open.send(()).expect("the writer waits");
        // Room again, once the writer has taken a line: the close message must find some.
        while queue
            .queue
            .try_send(Message::Line(b"last\n".to_vec()))
            .is_err()
        {
            std::thread::yield_now();
        }
        while queue.queue.try_send(Message::Close).is_err() {
            std::thread::yield_now();
        }
        assert!(guard.done.recv().is_ok());
        let text = String::from_utf8(out.0.lock().expect("not poisoned").clone()).expect("text");
        assert!(text.contains("\"dropped\":7}"), "{}", &text[..200]);
        assert!(text.ends_with("last\n"));
    }
}
