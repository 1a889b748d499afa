//! Starting and joining the shards of a broker.
#![expect(
    unsafe_code,
    reason = "a longer listen queue, and buffers registered with the ring"
)]

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use glommio_ng::{CpuSet, ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};
use ringtide_io::{Fatal, FatalReason, Logic};

use crate::config::ShardConfig;
use crate::disk::Disk;
use crate::executor::{Parts, Shard};
use crate::jobs::Jobs;
use crate::mailbox::{Mailboxes, mesh};
use crate::net::Net;
use crate::ring::Ring;
use crate::wake::{StopSignal, Wake};

/// Connections that the kernel keeps for a shard that has not accepted them yet.
const LISTEN_BACKLOG: i32 = 4096;

/// Binds a listening socket, so that an address in use is known before any shard starts.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    // std sets SO_REUSEADDR, and listens with a short queue; listening again lengthens it.
    let listener = TcpListener::bind(address)?;
    // SAFETY: no pointers; the descriptor is open.
    if unsafe { libc::listen(listener.as_raw_fd(), LISTEN_BACKLOG) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(listener)
}

/// One shard to start: how it is driven, where it listens, and what makes its logic, on the
/// shard's own thread.
pub type ShardStart<L> = (ShardConfig, TcpListener, Box<dyn FnOnce() -> L + Send>);

/// Why the shards could not be started. Those that had begun were stopped again.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The shards are not numbered 0, 1, 2 and so on.
    #[error("shard {found} in place {place}: shards are numbered from 0 without a gap")]
    Numbering {
        /// Where it is in the list.
        place: usize,
        /// Its number.
        found: u16,
    },
    /// No thread for a shard, or not on its CPU.
    #[error("cannot start the thread of shard {shard} on CPU {cpu}: {message}")]
    Thread {
        /// Which shard.
        shard: u16,
        /// The CPU it was to run on.
        cpu: usize,
        /// The system's words.
        message: String,
    },
    /// No ring for a shard.
    #[error("cannot set up io_uring for shard {shard}: {error}; `ringtide doctor` tells more")]
    Ring {
        /// Which shard.
        shard: u16,
        /// The system's words.
        error: io::Error,
    },
}

/// Shards at work.
pub struct Running {
    threads: Vec<Thread>,
}

/// The thread of a shard.
struct Thread {
    shard: u16,
    cpu: usize,
    handle: ExecutorJoinHandle<()>,
    /// Told once: that the shard has begun, or why it could not.
    begun: mpsc::Receiver<io::Result<()>>,
    ended: mpsc::Receiver<Ended>,
}

/// How a shard ended.
struct Ended {
    result: Result<(), Fatal>,
    /// A thread of its executor hangs in the kernel: it is left with the process.
    is_left: bool,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Running({} shards)", self.threads.len())
    }
}

impl Running {
    /// Waits until all shards have ended. A shard that ended because another failed is `Ok`.
    pub fn join(self) -> Vec<Result<(), Fatal>> {
        self.threads.into_iter().map(Thread::join).collect()
    }
}

impl Thread {
    /// Waits until the shard has begun. One that could not has ended when this returns.
    fn begun(self) -> Result<Self, StartError> {
        let (shard, cpu) = (self.shard, self.cpu);
        match self.begun.recv() {
            Ok(Ok(())) => Ok(self),
            Ok(Err(error)) => {
                let _ = self.handle.join();
                Err(StartError::Ring { shard, error })
            }
            // It ended without a word; its thread has the reason.
            Err(mpsc::RecvError) => {
                let message = match self.handle.join() {
                    Err(error) => error.to_string(),
                    Ok(()) => "it ended before it had begun".into(),
                };
                Err(StartError::Thread {
                    shard,
                    cpu,
                    message,
                })
            }
        }
    }

    fn join(self) -> Result<(), Fatal> {
        let ended = self.ended.recv().ok();
        if ended.as_ref().is_some_and(|ended| ended.is_left) {
            drop(self.handle);
        } else if let Err(error) = self.handle.join() {
            return Err(Fatal {
                reason: FatalReason::Invariant,
                message: format!("the thread of shard {} ended: {error}", self.shard),
            });
        }
        ended.map_or(Ok(()), |ended| ended.result)
    }
}

/// What all shards share.
struct Common {
    wakes: Vec<Arc<Wake>>,
    failed: Arc<AtomicBool>,
    stop: StopSignal,
    /// CPUs without a shard: for the kernel's workers and for blocking work.
    other_cpus: Vec<usize>,
}

/// Starts the shards, one thread each. When this returns, every one of them listens.
///
/// A failure that is fatal for one ends all of them.
pub fn run<L>(shards: Vec<ShardStart<L>>, stop: StopSignal) -> Result<Running, StartError>
where
    L: Logic + 'static,
{
    for (place, (config, ..)) in shards.iter().enumerate() {
        if usize::from(config.shard) != place {
            return Err(StartError::Numbering {
                place,
                found: config.shard,
            });
        }
    }
    let wakes: io::Result<Vec<_>> = shards.iter().map(|_| Wake::new().map(Arc::new)).collect();
    let wakes = wakes.map_err(|error| StartError::Ring { shard: 0, error })?;
    let slots = shards
        .iter()
        .map(|(config, ..)| config.mailbox_slots)
        .max()
        .unwrap_or(1);
    let taken: Vec<usize> = shards.iter().map(|(config, ..)| config.cpu).collect();
    let other_cpus = crate::probe::cpus::allowed()
        .into_iter()
        .filter(|cpu| !taken.contains(cpu))
        .collect();
    let common = Arc::new(Common {
        failed: Arc::new(AtomicBool::new(false)),
        stop,
        other_cpus,
        wakes: wakes.clone(),
    });
    for wake in &wakes {
        common.stop.register(wake.clone());
    }

    let mut threads = Vec::new();
    let mut start_error = None;
    for ((config, listener, logic), mail) in shards.into_iter().zip(mesh(&wakes, slots)) {
        let (shard, cpu) = (config.shard, config.cpu);
        let builder = LocalExecutorBuilder::new(Placement::Fixed(cpu))
            .name(&format!("shard-{shard}"))
            .io_memory(64 << 10)
            .ring_depth(64)
            .preempt_timer(crate::host::PREEMPT_TIMER)
            .blocking_thread_pool_placement(job_threads(&config, &common.other_cpus));
        let common = common.clone();
        let (say_begun, begun) = mpsc::channel();
        let (say_ended, ended) = mpsc::channel();
        let handle = builder.spawn(move || async move {
            let (result, may_go) = serve(config, listener, logic, mail, &common, say_begun).await;
            let is_left = !may_go;
            // Nobody may care any more.
            let _ = say_ended.send(Ended { result, is_left });
            if is_left {
                std::future::pending::<()>().await;
            }
        });
        match handle {
            Ok(handle) => threads.push(Thread {
                shard,
                cpu,
                handle,
                begun,
                ended,
            }),
            Err(error) => {
                let message = error.to_string();
                start_error = Some(StartError::Thread {
                    shard,
                    cpu,
                    message,
                });
                break;
            }
        }
    }
    let mut running = Running {
        threads: Vec::new(),
    };
    for thread in threads {
        match thread.begun() {
            Ok(thread) => running.threads.push(thread),
            Err(error) => start_error = start_error.or(Some(error)),
        }
    }
    match start_error {
        None => Ok(running),
        Some(error) => {
            common.fail();
            running.join();
            Err(error)
        }
    }
}

impl Common {
    fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
        self.wakes.iter().for_each(|wake| wake.wake_if_parked());
    }
}

/// Ends all shards if the one that holds it panics.
struct EndAllOnPanic<'a>(&'a Common);

impl Drop for EndAllOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail();
        }
    }
}

fn job_threads(config: &ShardConfig, cpus: &[usize]) -> PoolPlacement {
    let threads = config.job_threads.max(1);
    let online = CpuSet::online().map(|set| set.filter(|cpu| cpus.contains(&cpu.cpu)));
    match online {
        Ok(set) if !set.is_empty() => PoolPlacement::Fenced(threads, set),
        _ => PoolPlacement::Unbound(threads),
    }
}

/// The life of one shard, on its own thread: its result, and whether the thread may end.
async fn serve<L: Logic>(
    config: ShardConfig,
    listener: TcpListener,
    logic: Box<dyn FnOnce() -> L + Send>,
    mail: Mailboxes<L::Mail>,
    common: &Common,
    say_begun: mpsc::Sender<io::Result<()>>,
) -> (Result<(), Fatal>, bool) {
    let parts = set_up(&config, listener, logic, mail, common);
    let parts = match parts {
        Ok(parts) => parts,
        Err(error) => {
            let _ = say_begun.send(Err(error));
            return (Ok(()), true);
        }
    };
    let _ = say_begun.send(Ok(()));
    let mut shard = Shard::new(&config, parts);
    // Dropped before the shard, which may take a while.
    let _end_all = EndAllOnPanic(common);
    let result = shard.turns().await;
    if result.is_err() {
        common.fail();
    }
    (result, shard.end().await)
}

fn set_up<L: Logic>(
    config: &ShardConfig,
    listener: TcpListener,
    logic: Box<dyn FnOnce() -> L + Send>,
    mail: Mailboxes<L::Mail>,
    common: &Common,
) -> io::Result<Parts<L>> {
    let wake = common.wakes[usize::from(config.shard)].clone();
    let ring = Ring::new(config.ring_entries, config.completion_entries)?;
    ring.bound_workers(config.io_wq_workers, &common.other_cpus)?;
    let net = Net::new(config, listener)?;
    // SAFETY: `Shard` drops its ring before its buffers, and neither while an operation is
    // outstanding.
    unsafe { ring.register_buffers(&net.receive)? };
    Ok(Parts {
        ring,
        net,
        disk: Disk::new(Jobs::new(wake.clone())),
        logic: logic(),
        mail,
        wake,
        stop: common.stop.clone(),
        failed: common.failed.clone(),
    })
}
