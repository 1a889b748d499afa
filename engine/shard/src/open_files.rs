//! Fewer files may be open than a shard could use: whose are closed, and who waits for one.
//!
//! A file that nobody uses in a turn is closed for whoever lacks one, in its own shard at once and in others when they
//! are asked. Who lacks one asks again soon, so that nobody needs to be told of files that are closed elsewhere.

use ringtide_io::{DiskOp, Now, OpId};

use crate::mail::Mail;
use crate::settings::{
    CLOSE_UNUSED_NS, FILES_PLEA_NS, LACK_FILES_PATIENCE_NS, LACK_FILES_RETRY_NS, UPKEEP_NS,
};
use crate::{Fx, Shard};

/// When another file can be opened, where that failed because there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relief {
    /// Files were closed.
    Now,
    /// Files are used or being synced, and can be closed soon.
    Soon,
    /// The shard has none.
    Elsewhere,
}

/// What a shard knows of the files that it has open, and of who waits for one.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles {
    /// Partitions that wait for a file, and when they ask for it again.
    pub(crate) lacking: Vec<usize>,
    pub(crate) ask_again_ns: u64,
    /// The first and the last time that a file was asked for and the shard had none to close.
    pub(crate) without: Option<(u64, u64)>,
    /// The turns of the last two looks at upkeep: who opened a file has so long to use it.
    pub(crate) last_turns: [u64; 2],
    /// When files were last closed for others.
    pub(crate) relieved_ns: u64,
    /// The turn in which there was last none to close, and whether the shard had any then.
    pub(crate) vain_turn: Option<u64>,
    pub(crate) has_some: bool,
    /// When it may be said again that connections wait.
    pub(crate) next_word_ns: u64,
    /// The same of readers.
    pub(crate) next_read_word_ns: u64,
    /// When other shards may be asked again to close files.
    pub(crate) next_plea_ns: u64,
    /// The turn at which files were looked at last, to see which are used.
    pub(crate) unused_turn: u64,
    pub(crate) next_unused_ns: u64,
}

impl Shard {
    /// No more files can be opened: those that nobody uses in this turn are closed; without any, other shards are asked to do
    /// the same.
    pub(crate) fn give_up_files(&mut self, now: Now, fx: &mut Fx) -> Relief {
        if self.close_some(now, fx) {
            return Relief::Now;
        }
        if now.mono_ns >= self.upkeep.files.next_plea_ns {
            self.upkeep.files.next_plea_ns = now.mono_ns + FILES_PLEA_NS;
            let others = (0..self.settings.shards).filter(|&shard| shard != self.settings.shard);
            fx.mail
                .extend(others.map(|shard| (shard, Mail::LacksFiles)));
        }
        // What failed now may have been asked for before files were closed.
        let is_relieved = now.mono_ns < self.upkeep.files.relieved_ns + UPKEEP_NS;
        match is_relieved || self.upkeep.files.has_some {
            true => Relief::Soon,
            false => Relief::Elsewhere,
        }
    }

    /// Says now and then why nobody can connect.
    pub(crate) fn say_connections_wait(&mut self, now: Now) {
        if now.mono_ns >= self.upkeep.files.next_word_ns {
            self.upkeep.files.next_word_ns = now.mono_ns + CLOSE_UNUSED_NS;
            tracing::warn!(
                "as many files are open as may be: connections wait until some are closed"
            );
        }
    }

    /// Closes the files that nobody uses in this turn, and if there are none has the others synced. Whether some were closed.
    pub(crate) fn close_some(&mut self, now: Now, fx: &mut Fx) -> bool {
        let opened_before = self.upkeep.files.last_turns[0];
        // Many may fail in a turn, and one look finds all that there is.
        if self.upkeep.files.vain_turn == Some(self.turn) {
            return false;
        }
        let found = self.close_files(self.turn, opened_before, fx);
        if found {
            self.upkeep.files.relieved_ns = now.mono_ns;
            return true;
        }
        self.upkeep.files.vain_turn = Some(self.turn);
        let mut held = self.partitions.iter().flatten();
        self.upkeep.files.has_some = held.any(|held| held.log.has_open_files());
        // On a full disk what is to be written stands before a sync.
        if self.upkeep.disk_full.is_none() {
            self.sync_all();
        }
        false
    }

    /// Closes the files that were not used since a turn, and those that were opened before another and never used; whether
    /// there were any.
    fn close_files(&mut self, before: u64, opened_before: u64, fx: &mut Fx) -> bool {
        let mut closed = Vec::new();
        for held in self.partitions.iter_mut().flatten() {
            // Who is queued is about to use it, unless there is nowhere to write to.
            if !held.is_queued || self.upkeep.disk_full.is_some() {
                closed.extend(held.log.take_idle_file(before));
            }
            closed.extend(held.log.close_readers(before, opened_before));
        }
        let found = !closed.is_empty();
        let close = |file| (OpId(0), DiskOp::Close { file });
        fx.disk.extend(closed.into_iter().map(close));
        found
    }

    /// A partition's writer or readers go on when there may be a file for it. False if the shard has none to close, and,
    /// for readers, has had none for a while: other shards are asked meanwhile.
    pub(crate) fn wait_for_a_file(
        &mut self,
        i: usize,
        is_writer: bool,
        now: Now,
        fx: &mut Fx,
    ) -> bool {
        let relief = self.give_up_files(now, fx);
        if relief != Relief::Elsewhere {
            self.upkeep.files.without = None;
        } else if is_writer || self.was_long_without_files(now) {
            return false;
        }
        if let Some(held) = self.held(i) {
            held.wants_sync |= is_writer;
        }
        if self.upkeep.files.lacking.is_empty() {
            self.upkeep.files.ask_again_ns = now.mono_ns + LACK_FILES_RETRY_NS;
        }
        self.upkeep.files.lacking.push(i);
        if self.upkeep.is_for_files {
            let soon = now.mono_ns + LACK_FILES_RETRY_NS;
            self.upkeep.retry_at_ns = self.upkeep.retry_at_ns.min(soon);
        }
        if relief == Relief::Now {
            self.open_again(fx);
        }
        true
    }

    /// Notes that there was no file to close. Whether that has gone on for as long as readers wait.
    pub(crate) fn was_long_without_files(&mut self, now: Now) -> bool {
        let now_ns = now.mono_ns;
        let goes_on = |&(_, last_ns): &(u64, u64)| now_ns < last_ns + LACK_FILES_PATIENCE_NS;
        let before = self.upkeep.files.without.filter(goes_on);
        let since_ns = before.map_or(now_ns, |(first_ns, _)| first_ns);
        self.upkeep.files.without = Some((since_ns, now_ns));
        now_ns >= since_ns + LACK_FILES_PATIENCE_NS
    }

    /// Who waits for a file asks again.
    pub(crate) fn open_again(&mut self, fx: &mut Fx) {
        for i in std::mem::take(&mut self.upkeep.files.lacking) {
            if self.held(i).is_some_and(|held| held.wants_sync) {
                self.queue_writer(i, true);
            }
            self.wake(i);
            self.step_searches(i, fx);
        }
    }

    /// Closes what nobody has used from one look to the next, since another shard or a connection may need a file, and
    /// gives up the indexes that go with it.
    pub(crate) fn close_unused_files(&mut self, now: Now, fx: &mut Fx) {
        if now.mono_ns < self.upkeep.files.next_unused_ns {
            return;
        }
        self.upkeep.files.next_unused_ns = now.mono_ns + CLOSE_UNUSED_NS;
        let before = self.upkeep.files.unused_turn;
        self.upkeep.files.unused_turn = self.turn;
        self.close_files(before, before, fx);
        for held in self.partitions.iter_mut().flatten() {
            held.log.unload_indexes();
        }
    }
}
