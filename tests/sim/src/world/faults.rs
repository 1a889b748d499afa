//! The faults of a run: when they come, and what they do to the broker.

use ringtide_io::Logic as _;

use super::{Break, Event, MS, SECOND, World};
use crate::disk::{Step, Ticket};

/// What is let loose on the broker.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Kill,
    PowerCut,
    Stop,
    /// The next operation of the disk fails.
    DiskError,
    /// There is no space for a while.
    DiskFull,
    /// Next to no file can be opened for a while.
    FewFiles,
    /// The next read of the disk fails.
    ReadError,
    /// A bit of a file is another one.
    Rot,
}

/// A crash that waits for an operation of the disk: moments that are rare, and the worst.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ambush {
    pub(super) fault: Fault,
    step: Step,
    /// Operations of this kind that pass first.
    left: u64,
    /// It comes before the operation has ended, not behind it.
    pub(super) before: bool,
}

impl World {
    pub(super) fn next_fault(&mut self) {
        if self.faults_left == 0 {
            return;
        }
        let fault = match self.random.below(12) {
            0..3 => Fault::PowerCut,
            3..5 => Fault::Kill,
            5 => Fault::DiskError,
            6 => Fault::DiskFull,
            7 => Fault::FewFiles,
            8 => Fault::ReadError,
            9 => Fault::Rot,
            _ => Fault::Stop,
        };
        if matches!(fault, Fault::PowerCut | Fault::Kill) && self.random.percent(50) {
            let steps = Step::ALL;
            self.ambush = Some(Ambush {
                fault,
                step: steps[self.random.below(steps.len() as u64) as usize],
                left: match self.random.percent(50) {
                    true => self.random.below(4),
                    false => self.random.below(40),
                },
                before: self.random.percent(50),
            });
            self.at(2 * SECOND, Event::Spring);
        } else {
            let after = self.random.between(MS, 1_500 * MS);
            self.at(after, Event::Fault(fault));
        }
        for _ in 0..self.random.below(3) {
            let after = self.random.between(MS, 1_500 * MS);
            let how = match self.random.below(4) {
                0 | 1 => Break::Reset,
                2 => Break::Stall,
                _ => Break::HalfOpen,
            };
            self.at(after, Event::Break(how));
        }
    }

    /// The ambush that this operation, which is about to end, runs into.
    pub(super) fn caught(&mut self, ticket: Ticket) -> Option<Ambush> {
        let ambush = self.ambush.as_mut()?;
        if self.faults_left == 0 || self.disk.step(ticket)? != ambush.step {
            return None;
        }
        match ambush.left.checked_sub(1) {
            Some(left) => {
                ambush.left = left;
                None
            }
            None => self.ambush.take(),
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        if self.faults_left == 0 {
            return;
        }
        if self.broker.is_none() {
            // It is down already: later.
            self.at(100 * MS, Event::Fault(fault));
            return;
        }
        self.outcome.faults += 1;
        self.faults_left -= 1;
        self.is_well = false;
        match fault {
            Fault::Kill => self.disk.kill(),
            Fault::PowerCut => self.disk.cut_power(),
            Fault::DiskError => {
                self.disk.fails_next = true;
                return self.next_fault();
            }
            Fault::DiskFull => {
                self.disk.room = Some(self.random.below(2 << 20));
                let again = self.random.between(50 * MS, 3 * SECOND);
                self.at(again, Event::Room);
                return self.next_fault();
            }
            Fault::FewFiles => {
                let most = self.random.below(self.disk.open_files() as u64 + 4);
                self.disk.most_open = Some(most as usize);
                // Who reads from more partitions at once than there are files is refused.
                self.oracle.reads_fail = true;
                let again = self.random.between(50 * MS, 3 * SECOND);
                self.at(again, Event::Files);
                return self.next_fault();
            }
            Fault::ReadError => {
                self.disk.fails_next_read = true;
                self.oracle.reads_fail = true;
                return self.next_fault();
            }
            Fault::Rot => {
                if let Some(path) = self.disk.rot(|path| self.oracle.place_of(path).is_some()) {
                    self.oracle.damaged(&path);
                    if let Some(tell) = &mut self.tell {
                        tell(&format!("             a bit of {} rots", path.display()));
                    }
                }
                return self.next_fault();
            }
            Fault::Stop => {
                let now = self.now;
                let broker = self.broker.as_mut().expect("it runs");
                for node in &mut broker.nodes {
                    node.shard.stop(now, &mut node.fx);
                    node.is_due = true;
                }
                return;
            }
        }
        self.oracle.crashed();
        self.ended(matches!(fault, Fault::PowerCut));
    }

    /// The broker is gone. Who was connected learns of it, unless the whole host is gone.
    pub(super) fn ended(&mut self, is_silent: bool) {
        self.broker = None;
        self.epoch += 1;
        self.conns.retain(|_, conn| !conn.is_half_open);
        let conns: Vec<_> = self
            .conns
            .iter()
            .map(|(&id, c)| (id, c.client, c.link))
            .collect();
        for (conn, client, link) in conns {
            let wait = match is_silent && self.random.percent(50) {
                // Until the host is back and refuses what it does not know.
                true => self.random.between(500 * MS, 5 * SECOND),
                false => self.latency(),
            };
            self.at(wait, Event::Lost(client, link, conn));
        }
        let wait = self.random.between(MS, SECOND);
        self.at(wait, Event::Start);
    }
}
