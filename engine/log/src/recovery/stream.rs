//! Slots read ahead of whoever checks them.
//!
//! A thread reads one slot after the other in large direct reads into a few buffers that go round;
//! the checking side sees a window of the slot it is in. What is left of a window is copied in
//! front of the next one, so that a frame is always one slice.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::Scope;

use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::MAX_FRAME_BYTES;

use crate::files::{self, AlignedBuf, FileError};

/// Bytes of one read.
const READ_BYTES: usize = 2 << 20;
/// Buffers that go round: one is looked at, one waits, one is being read.
const BUFFERS: usize = 3;
/// Room in front of what was read for what is left of the window before.
const CARRY_BYTES: usize = MAX_FRAME_BYTES;

struct Piece {
    slot: usize,
    position: u64,
    bytes: usize,
    buf: AlignedBuf,
}

/// The checking side.
pub(super) struct Stream {
    pieces: Receiver<Result<Piece, FileError>>,
    empty: Sender<AlignedBuf>,
    current: Option<Piece>,
    /// Where the window lies in the buffer and in the slot.
    window: Range<usize>,
    slot: usize,
    position: u64,
    /// The last piece of the slot has been taken.
    ended: bool,
}

impl Stream {
    /// Begins to read the slots, each from its first frame on.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        slots: Vec<(PathBuf, u64)>,
        direct: bool,
    ) -> Self {
        let (empty, empties) = channel();
        for _ in 0..BUFFERS {
            // The receiver lives until the thread below has begun.
            let _ = empty.send(AlignedBuf::zeroed(CARRY_BYTES + READ_BYTES));
        }
        let (full, pieces) = sync_channel(BUFFERS);
        scope.spawn(move || read(&slots, direct, &empties, &full));
        Self {
            pieces,
            empty,
            current: None,
            window: 0..0,
            slot: 0,
            position: 0,
            ended: false,
        }
    }

    /// Up to `len` bytes (no more than the largest frame) at `position` of the slot with this
    /// number: fewer only where the slot ends. Positions never go back.
    pub(super) fn at(
        &mut self,
        slot: usize,
        position: u64,
        len: usize,
    ) -> Result<&[u8], FileError> {
        assert!(len <= CARRY_BYTES);
        assert!(slot > self.slot || (slot == self.slot && position >= self.position));
        if slot > self.slot {
            (self.slot, self.position, self.window, self.ended) = (slot, position, 0..0, false);
        }
        let skip = usize::try_from(position - self.position).unwrap_or(usize::MAX);
        self.window.start = self.window.start.saturating_add(skip).min(self.window.end);
        self.position = position;
        while self.window.len() < len && self.more()? {}
        let Some(piece) = &self.current else {
            return Ok(&[]);
        };
        let end = self.window.end.min(self.window.start + len);
        Ok(&piece.buf[self.window.start..end])
    }

    /// Extends the window by the next piece; false at the end of the slot.
    fn more(&mut self) -> Result<bool, FileError> {
        let held = self.window.len();
        while !self.ended {
            let Ok(next) = self.pieces.recv() else {
                return Ok(false);
            };
            let mut next = next?;
            assert!(
                next.slot <= self.slot,
                "a slot is asked for before the next one is"
            );
            let end = next.position + next.bytes as u64;
            self.ended = next.slot == self.slot && next.bytes < READ_BYTES;
            if next.slot < self.slot || end <= self.position {
                let _ = self.empty.send(next.buf);
                continue;
            }
            let start = if held > 0 {
                let start = CARRY_BYTES - held;
                if let Some(current) = &self.current {
                    next.buf[start..CARRY_BYTES].copy_from_slice(&current.buf[self.window.clone()]);
                }
                start
            } else {
                let skip = self.position.saturating_sub(next.position);
                CARRY_BYTES + usize::try_from(skip).unwrap_or(usize::MAX).min(next.bytes)
            };
            self.window = start..CARRY_BYTES + next.bytes;
            if let Some(old) = self.current.replace(next) {
                // The reader may have ended already.
                let _ = self.empty.send(old.buf);
            }
            return Ok(true);
        }
        Ok(false)
    }
}

fn read(
    slots: &[(PathBuf, u64)],
    direct: bool,
    empties: &Receiver<AlignedBuf>,
    full: &SyncSender<Result<Piece, FileError>>,
) {
    let result = (|| {
        for (slot, (path, bytes)) in slots.iter().enumerate() {
            let file = files::open_read(path, direct)?;
            let mut position = BLOCK_BYTES as u64;
            loop {
                let Ok(mut buf) = empties.recv() else {
                    return Ok(());
                };
                let left = usize::try_from(bytes.saturating_sub(position)).unwrap_or(usize::MAX);
                let want = left.min(READ_BYTES);
                let target = &mut buf[CARRY_BYTES..CARRY_BYTES + want];
                let got = files::read_at(&file, path, target, position)?;
                if full
                    .send(Ok(Piece {
                        slot,
                        position,
                        bytes: got,
                        buf,
                    }))
                    .is_err()
                {
                    return Ok(());
                }
                if got < READ_BYTES {
                    break;
                }
                position += got as u64;
            }
        }
        Ok(())
    })();
    if let Err(error) = result {
        // Nobody listens any more: then nobody wants to know either.
        let _ = full.send(Err(error));
    }
}
