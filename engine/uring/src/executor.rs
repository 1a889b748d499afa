//! The shard loop: one turn after the other until the logic has stopped.
//!
//! ```text
//! enter the ring (submit what the last turn made, let completions happen; skipped if in vain)
//!   ─► completions ─► mail ─► finished jobs ─► the logic's `turn` ─► its effects ─► again
//! nothing happened: let other threads of the core run; after a while, sleep
//! ```
//!
//! Effects never call the logic: what ends at once is reported in the next turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringtide_io::{
    DiskDone, DiskError, DiskOp, Effects, Fatal, FatalReason, FileId, Logic, Now, OpId,
};

use crate::clock;
use crate::config::{IdlePolicy, ShardConfig};
use crate::disk::Disk;
use crate::host;
use crate::mailbox::Mailboxes;
use crate::memory::FILE_BUFFER_BYTES;
use crate::net::{Deliver, Net};
use crate::ring::{Completion, Ring};
use crate::token::Kind;
use crate::wake::{StopSignal, Wake};

/// What a turn sends of files, of all connections together, while operations of the disk are under
/// way: they are seen completed, and the next ones begun, between two turns.
const FILE_BYTES_BESIDE_DISK: usize = 32 << 10;
/// Letting go of the core for longer than this was not for threads of the kernel.
const LONG_YIELD_NS: u64 = 1_500_000;
/// So many times as long the shard holds on to the core then.
const YIELD_REST: u64 = 4;
/// So often it is looked whether anything of the disk is late.
const LOOK_NS: u64 = 1_000_000;
/// How long the shard sleeps then, and what its timer adds (50 us unless the host was told otherwise).
const NAP: Duration = Duration::from_micros(20);
/// For so long after an operation of the disk, another one is expected.
const BESIDE_DISK_NS: u64 = 10_000_000;
/// How long the end of a shard waits for the kernel to let go of its memory.
const DRAIN_NS: u64 = 5_000_000_000;
/// How long it waits for blocking work on files.
const REAP_NS: u64 = 5_000_000_000;
const REAP_PAUSE: Duration = Duration::from_micros(200);

/// One shard with all that it owns.
pub(crate) struct Shard<L: Logic> {
    // First, so that the kernel has let go of the memory before it goes.
    ring: Ring,
    net: Net,
    disk: Disk,
    logic: L,
    fx: Effects<L::Mail>,
    mail: Mailboxes<L::Mail>,
    wake: Arc<Wake>,
    stop: StopSignal,
    /// Some shard has failed: all end.
    failed: Arc<AtomicBool>,
    idle: IdlePolicy,
    /// The logic was told to stop.
    stopping: bool,
    completions: Vec<Completion>,
    /// When operations of the disk were last seen under way.
    disk_worked_ns: u64,
    /// When a working loop lets go of the core again.
    next_yield_ns: u64,
    /// When it looks again whether anything of the disk is late.
    next_look_ns: u64,
    /// Files to close at the end of the turn.
    closing: Vec<FileId>,
}

/// What the parts of a shard are made of.
pub(crate) struct Parts<L: Logic> {
    pub ring: Ring,
    pub net: Net,
    pub disk: Disk,
    pub logic: L,
    pub mail: Mailboxes<L::Mail>,
    pub wake: Arc<Wake>,
    pub stop: StopSignal,
    pub failed: Arc<AtomicBool>,
}

/// What a turn came to.
#[derive(Default)]
struct Turn {
    /// Something happened that others wait for: the next turn follows at once.
    busy: bool,
    /// A peer or another shard was heard: worth to keep looking for more.
    heard: bool,
}

impl<L: Logic> Shard<L> {
    pub fn new(config: &ShardConfig, parts: Parts<L>) -> Self {
        let Parts {
            ring,
            net,
            disk,
            logic,
            mail,
            wake,
            stop,
            failed,
        } = parts;
        Self {
            ring,
            net,
            disk,
            logic,
            fx: Effects::default(),
            mail,
            wake,
            stop,
            failed,
            idle: config.idle,
            stopping: false,
            completions: Vec::with_capacity(256),
            disk_worked_ns: 0,
            next_yield_ns: 0,
            next_look_ns: 0,
            closing: Vec::new(),
        }
    }

    /// Lets go of all connections, waits for what the kernel and blocking work on files hold, and gives whether the
    /// executor may go as well: a thread that is at a job panics when it finds the executor gone.
    pub async fn end(mut self) -> bool {
        self.drain();
        let give_up_ns = clock::mono_ns() + REAP_NS;
        while !self.disk.jobs.are_reaped() && clock::mono_ns() < give_up_ns {
            host::give_a_turn().await;
            std::thread::sleep(REAP_PAUSE);
        }
        let may_go = self.disk.jobs.are_reaped();
        if self.ring.outstanding() > 0 {
            tracing::warn!("the kernel still holds memory of a shard; it is left to it");
            std::mem::forget(self);
        }
        may_go
    }

    /// Runs until the logic has stopped, or something fatal happened.
    pub async fn turns(&mut self) -> Result<(), Fatal> {
        self.wake.arm(&mut self.ring);
        self.net.accept(&mut self.ring);
        let mut heard_ns = clock::mono_ns();
        // The logic was told of sends after its turn.
        let mut sent_files = false;
        loop {
            if self.ring.wants_enter() {
                self.enter()?;
            }
            let now = clock::now();
            let mut turn = self.events(now);
            turn.busy |= std::mem::take(&mut sent_files);
            if !self.stopping && self.stop.is_stopped() {
                self.stopping = true;
                turn.busy = true;
                self.net.close_listener(&mut self.ring);
                self.logic.stop(now, &mut self.fx);
            }
            if self.failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let due = self.deadline_ns().is_some_and(|at| at <= now.mono_ns);
            if turn.busy || due {
                self.logic.turn(now, &mut self.fx);
                turn.busy |= self.carry_out(now)?;
            }
            sent_files = self.send_files(now)?;
            turn.busy |= sent_files;
            turn.busy |= self.mail.flush();
            if turn.heard {
                heard_ns = now.mono_ns;
            }
            let working = turn.busy || self.ring.wants_enter() || self.net.has_ready();
            if self.stopping && !working && self.logic.is_stopped() && self.is_quiet() {
                return Ok(());
            }
            if self.disk.jobs.want_a_turn() {
                host::give_a_turn().await;
                self.disk.jobs.reap().await;
            }
            if working {
                if self.disk.is_working() || self.disk.jobs.under_way() > 0 {
                    self.let_kernel_work(now);
                }
                continue;
            }
            let spin = match self.idle {
                IdlePolicy::Spin => true,
                IdlePolicy::Park => false,
                IdlePolicy::Adaptive { budget } => {
                    u128::from(now.mono_ns.saturating_sub(heard_ns)) < budget.as_nanos()
                }
            };
            if spin {
                self.let_go(now);
            } else {
                self.park()?;
            }
        }
    }

    /// Threads of the kernel complete and flush this core's writes. Under a loop that never lets go
    /// they wait for the scheduler's tick, for milliseconds; where other programs want the core as
    /// well, letting go costs as much, so that it is done rarely.
    fn let_kernel_work(&mut self, now: Now) {
        let before_ns = clock::mono_ns();
        if before_ns < self.next_yield_ns {
            return;
        }
        self.let_go(now);
        let away_ns = clock::mono_ns() - before_ns;
        if away_ns > LONG_YIELD_NS {
            self.next_yield_ns = before_ns + YIELD_REST * away_ns;
        }
    }

    /// Yields; sleeps for a moment if anything of the disk is late. Linux 6.18 was seen not to run a thread of the kernel
    /// for seconds beside one that yields all the time (`docs/adr/0004-naps.md`).
    fn let_go(&mut self, now: Now) {
        let must_sleep = now.mono_ns >= self.next_look_ns && {
            self.next_look_ns = now.mono_ns + LOOK_NS;
            self.disk.is_late(now.mono_ns)
        };
        match must_sleep {
            true => std::thread::sleep(NAP),
            false => std::thread::yield_now(),
        }
    }

    /// Everything that has happened, told to the logic.
    fn events(&mut self, now: Now) -> Turn {
        let mut turn = Turn::default();
        let Self {
            ring,
            net,
            disk,
            logic,
            fx,
            mail,
            completions,
            wake,
            ..
        } = self;
        completions.clear();
        ring.collect(completions);
        let mut to = Deliver { logic, fx, now };
        for &completion in completions.iter() {
            match completion.token.kind {
                Kind::Accept => net.on_accept(completion, ring, &mut to),
                Kind::Recv => net.on_recv(completion, ring, &mut to),
                Kind::Send | Kind::Writable | Kind::FileRead => {
                    net.on_egress(completion, ring, &mut to);
                }
                Kind::Disk => {
                    if let Some((op, result)) = disk.completed(completion, ring) {
                        to.disk(op, result);
                    }
                }
                Kind::Cancel => continue,
                Kind::Wake => {
                    wake.clear();
                    if !completion.more() {
                        wake.arm(ring);
                    }
                    continue;
                }
            }
            turn.busy = true;
            turn.heard |= matches!(completion.token.kind, Kind::Accept | Kind::Recv);
        }
        for (op, result) in disk.ended.drain(..) {
            turn.busy = true;
            to.disk(op, result);
        }
        if disk.jobs.has_results() {
            turn.busy = true;
            for (op, result) in disk.finished_jobs(now.mono_ns) {
                to.disk(op, result);
            }
        }
        let Deliver { logic, fx, .. } = &mut to;
        if mail.receive(|from, mail| logic.mail(from, mail, now, fx)) {
            turn.busy = true;
            turn.heard = true;
        }
        turn.busy |= net.settle(ring, &mut to);
        turn
    }

    /// Carries out what the logic wants done. Whether there was anything.
    fn carry_out(&mut self, now: Now) -> Result<bool, Fatal> {
        if let Some(fatal) = self.fx.fatal.take() {
            return Err(fatal);
        }
        let fx = &mut self.fx;
        let any = !(fx.net.is_empty() && fx.disk.is_empty() && fx.mail.is_empty());
        // A long turn is none of the disk's time.
        let disk_ns = match fx.disk.is_empty() {
            true => now.mono_ns,
            false => clock::mono_ns(),
        };
        for (op, what) in fx.disk.drain(..) {
            match what {
                // A send of the same turn may still be of this file.
                DiskOp::Close { file } => self.closing.push(file),
                what => self.disk.start(op, what, disk_ns, &mut self.ring),
            }
        }
        for op in fx.net.drain(..) {
            self.net.apply(op, &self.disk.files, now, &mut self.ring);
        }
        for file in self.closing.drain(..) {
            self.disk.files.close(file);
        }
        for (to, mail) in fx.mail.drain(..) {
            self.mail.send(to, mail);
        }
        Ok(any)
    }

    /// Sends from files, once everything else of the turn is on its way: a range takes as long to
    /// send as a device to write. Whether there was anything to send.
    fn send_files(&mut self, now: Now) -> Result<bool, Fatal> {
        if !self.net.has_files_to_send() {
            return Ok(false);
        }
        if self.ring.wants_enter() {
            self.enter()?;
        }
        if self.disk.is_working() {
            self.disk_worked_ns = now.mono_ns;
        }
        let allowance = if now.mono_ns < self.disk_worked_ns + BESIDE_DISK_NS {
            FILE_BYTES_BESIDE_DISK
        } else {
            FILE_BUFFER_BYTES
        };
        let Self {
            net,
            ring,
            logic,
            fx,
            ..
        } = self;
        net.send_files(allowance, ring, &mut Deliver { logic, fx, now });
        Ok(true)
    }

    fn enter(&mut self) -> Result<(), Fatal> {
        let entered = self.ring.enter();
        entered.map_err(|error| broken(format!("io_uring_enter: {error}")))
    }

    fn deadline_ns(&self) -> Option<u64> {
        match (self.logic.deadline_ns(), self.net.deadline_ns()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Whether nothing of the shard waits outside the ring.
    fn is_quiet(&self) -> bool {
        !self.mail.has_work() && self.disk.jobs.under_way() == 0 && self.disk.ended.is_empty()
    }

    /// Sleeps until there is work or the logic's deadline has come.
    ///
    /// The thread sleeps on the shard's own ring. Other tasks of the executor stand still
    /// meanwhile; the only ones are those that hand jobs over, and they are through by then.
    fn park(&mut self) -> Result<(), Fatal> {
        let timeout = match self.deadline_ns() {
            None => None,
            Some(at) => match at.checked_sub(clock::mono_ns()) {
                None | Some(0) => return Ok(()),
                Some(left) => Some(Duration::from_nanos(left)),
            },
        };
        self.wake.announce_parking();
        let must_not_sleep = self.mail.has_work()
            || self.disk.jobs.has_results()
            || !self.disk.ended.is_empty()
            || self.stopping != self.stop.is_stopped()
            || self.failed.load(Ordering::SeqCst);
        let slept = if must_not_sleep {
            Ok(())
        } else {
            self.ring.wait(timeout)
        };
        self.wake.awake();
        slept.map_err(|error| broken(format!("io_uring_enter: {error}")))
    }

    /// Cancels what the kernel still does and waits until it has let go of all memory.
    fn drain(&mut self) {
        self.net.end_all(&mut self.ring);
        self.ring.cancel_all();
        let until_ns = clock::mono_ns() + DRAIN_NS;
        while self.ring.outstanding() > 0 && clock::mono_ns() < until_ns {
            if self.ring.wait(Some(Duration::from_millis(100))).is_err() {
                break;
            }
            self.completions.clear();
            self.ring.collect(&mut self.completions);
        }
    }
}

impl<L: Logic> Deliver<'_, L> {
    fn disk(&mut self, op: OpId, result: Result<DiskDone, DiskError>) {
        self.logic.disk(op, result, self.now, self.fx);
    }
}

fn broken(message: String) -> Fatal {
    Fatal {
        reason: FatalReason::Invariant,
        message,
    }
}
