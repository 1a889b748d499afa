//! Ranges of segments that could not be read while they were sent. A peer that was promised such bytes can only be
//! disconnected, and would come back for them for ever: so what failed is remembered here for a while. Who asks for
//! it again is given as little at a time as can be read, and is told where even that failed. Only what is lost on its
//! device counts ([`ringtide_io::is_unreadable`]), or in a file that is too short: what the host was short of may be there
//! when the peer comes back.

use std::ops::Range;

use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::ids::PartitionId;

use crate::Shard;
use crate::fault::Fault;
use crate::settings::{FAILED_READ_NS, MAX_FAILED_READS};

/// A range of a segment's file on its way to a peer.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Index of the partition.
    pub partition: usize,
    /// What the peer was promised.
    pub offsets: Range<u64>,
    /// No less could be read at once.
    pub is_least: bool,
}

#[derive(Debug)]
struct FailedRead {
    offsets: Range<u64>,
    is_least: bool,
    /// Then it is tried as if it had not failed: what is wrong with a device may pass.
    until_ns: u64,
}

/// What could not be read of a partition, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct FailedReads(Vec<FailedRead>);

/// How a reader is served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// As it asks.
    Whole,
    /// With as little as can be read at once.
    Least,
    /// Not at all: these offsets cannot be read.
    Nothing(Range<u64>),
}

impl FailedReads {
    /// How much to read at an offset.
    pub(crate) fn trust(&self, offset: u64) -> Trust {
        let mut trust = Trust::Whole;
        for failed in self.0.iter().filter(|f| f.offsets.contains(&offset)) {
            if failed.is_least {
                return Trust::Nothing(failed.offsets.clone());
            }
            trust = Trust::Least;
        }
        trust
    }

    fn add(&mut self, failed: FailedRead) {
        if self.0.len() == MAX_FAILED_READS {
            self.0.remove(0);
        }
        self.0.push(failed);
    }

    /// Forgets what is due to be tried again.
    pub(crate) fn expire(&mut self, now_ns: u64) {
        self.0.retain(|failed| now_ns < failed.until_ns);
    }
}

impl Shard {
    /// What a peer was promised could not be read.
    pub(crate) fn read_failed(&mut self, reading: Reading) {
        // Looked at by the upkeep, whose next time is close enough to now.
        let until_ns = self.upkeep.next_ns + FAILED_READ_NS;
        let Some(held) = self.held(reading.partition) else {
            return;
        };
        let Reading {
            offsets, is_least, ..
        } = reading;
        tracing::error!(
            partition = %held.log.id(),
            from = offsets.start,
            to = offsets.end - 1,
            "records cannot be read from their segment; see the kernel log"
        );
        held.failed_reads.add(FailedRead {
            offsets,
            is_least,
            until_ns,
        });
    }
}

/// What a reader is told.
pub(crate) fn refusal(partition: PartitionId, offsets: &Range<u64>) -> Fault {
    let (from, to, next) = (offsets.start, offsets.end - 1, offsets.end);
    let message = format!(
        "offsets {from} to {to} of {partition} cannot be read from their segment (see the broker's log); read on from {next}"
    );
    Fault::new(ErrorCode::DataUnreadable, message)
}
