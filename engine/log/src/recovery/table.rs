//! What recovery does at a position of the write-ahead log: the decision table.
//!
//! A position is where the next frame of a shard's chain must begin. Three questions are asked of
//! it, and their answers alone decide:
//!
//! | found at the position | next slot begins with the frame | otherwise, no evidence | otherwise, committed past it |
//! |-----------------------|---------------------------------|------------------------|------------------------------|
//! | absent                | next slot                       | end of log             | refuse: lost                 |
//! | torn                  | next slot                       | end of log             | refuse: lost                 |
//! | stale                 | next slot                       | end of log             | refuse: lost                 |
//! | corrupt               | refuse: corrupt                 | refuse: corrupt        | refuse: corrupt              |
//! | valid                 | continue                        | continue               | continue                     |
//!
//! *Torn* is anything that an interrupted write can leave, above all stale bytes of the slot's
//! earlier use; *corrupt* is what no interruption can: a whole frame of this very slot and start
//! that is not the one that belongs here. Whether frames without evidence follow ([`Place`]) is
//! told apart only for the report: several writes are in flight at a time, so a hole in an
//! unacknowledged tail is normal.

/// What lies at the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Zeros, or the end of the slot.
    Absent,
    /// Bytes that are no frame, or the right frame's header without all of its entries.
    Torn,
    /// A frame of the slot's earlier use.
    Stale,
    /// A frame of this use of the slot, but not the one that belongs here.
    Corrupt,
    /// The frame that belongs here.
    Valid,
}

/// What follows the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The next slot begins with the frame that was expected here.
    NextSlotContinues,
    /// Later frames of this chain lie further on.
    FramesFollow,
    /// Nothing of this chain is found further on.
    Last,
}

/// Whether anything shows that what belongs at the position had been committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Nothing does.
    None,
    /// A later frame or a snapshot does.
    Committed,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Apply the frame and look behind it.
    Continue,
    /// Look at the beginning of the next slot.
    NextSlot,
    /// What came before is everything that was acknowledged.
    EndOfLog,
    /// Do not start.
    Refuse(Refusal),
}

/// Why not to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Acknowledged entries are gone.
    Lost,
    /// The log contradicts itself.
    Corrupt,
}

/// The table.
pub const fn decide(found: Found, place: Place, evidence: Evidence) -> Decision {
    match (found, place, evidence) {
        (Found::Valid, _, _) => Decision::Continue,
        (Found::Corrupt, _, _) => Decision::Refuse(Refusal::Corrupt),
        (Found::Absent | Found::Torn | Found::Stale, Place::NextSlotContinues, _) => {
            Decision::NextSlot
        }
        (_, Place::FramesFollow | Place::Last, Evidence::None) => Decision::EndOfLog,
        (_, Place::FramesFollow | Place::Last, Evidence::Committed) => {
            Decision::Refuse(Refusal::Lost)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Decision::{Continue, EndOfLog, NextSlot, Refuse};

    const FOUND: [Found; 5] = [
        Found::Absent,
        Found::Torn,
        Found::Stale,
        Found::Corrupt,
        Found::Valid,
    ];
    const LOST: Decision = Refuse(Refusal::Lost);
    const CORRUPT: Decision = Refuse(Refusal::Corrupt);

    /// Rows in the order of `FOUND`; columns: next slot continues, frames follow, last; each
    /// without and with evidence.
    const EXPECTED: [[Decision; 6]; 5] = [
        [NextSlot, NextSlot, EndOfLog, LOST, EndOfLog, LOST],
        [NextSlot, NextSlot, EndOfLog, LOST, EndOfLog, LOST],
        [NextSlot, NextSlot, EndOfLog, LOST, EndOfLog, LOST],
        [CORRUPT; 6],
        [Continue; 6],
    ];

    #[test]
    fn every_combination_leads_where_the_table_says() {
        let mut seen = 0;
        for (found, row) in FOUND.into_iter().zip(EXPECTED) {
            let places = [Place::NextSlotContinues, Place::FramesFollow, Place::Last];
            let columns = places
                .into_iter()
                .flat_map(|p| [Evidence::None, Evidence::Committed].map(|e| (p, e)));
            for ((place, evidence), expected) in columns.zip(row) {
                let decision = decide(found, place, evidence);
                assert_eq!(decision, expected, "{found:?} {place:?} {evidence:?}");
                seen += 1;
            }
        }
        assert_eq!(seen, 30);
    }

    #[test]
    fn evidence_of_commitment_never_lets_the_log_end() {
        for found in FOUND {
            for place in [Place::NextSlotContinues, Place::FramesFollow, Place::Last] {
                assert_ne!(decide(found, place, Evidence::Committed), EndOfLog);
            }
        }
    }
}
