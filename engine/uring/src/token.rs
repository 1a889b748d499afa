//! What a completion is about, packed into the 64 bits that the kernel hands back.
//!
//! ```text
//! 63      56 55              32 31                            0
//! +---------+------------------+------------------------------+
//! | kind    | slot             | generation                   |
//! +---------+------------------+------------------------------+
//! ```
//!
//! The generation tells the users of a slot apart: a completion for an earlier one is recognised.

/// What kind of operation completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Accept = 1,
    Recv = 2,
    /// Send or sendmsg.
    Send = 3,
    /// Waiting until a socket takes more.
    Writable = 4,
    /// Reading a range of a file that is to be sent.
    FileRead = 5,
    /// A disk operation of the logic.
    Disk = 6,
    /// A cancellation; what it cancels completes by itself.
    Cancel = 7,
    /// Another thread made work for the shard.
    Wake = 8,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Accept,
        Self::Recv,
        Self::Send,
        Self::Writable,
        Self::FileRead,
        Self::Disk,
        Self::Cancel,
        Self::Wake,
    ];
}

/// The most slots of a table: 24 bits.
pub(crate) const MAX_SLOTS: usize = 1 << 24;

/// An operation given to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub kind: Kind,
    pub slot: u32,
    pub generation: u32,
}

impl Token {
    pub fn new(kind: Kind, slot: u32, generation: u32) -> Self {
        debug_assert!((slot as usize) < MAX_SLOTS);
        Self {
            kind,
            slot,
            generation,
        }
    }

    pub fn pack(self) -> u64 {
        (self.kind as u64) << 56 | u64::from(self.slot) << 32 | u64::from(self.generation)
    }

    /// # Panics
    /// If these are not bits that `pack` gave.
    pub fn unpack(bits: u64) -> Self {
        let number = (bits >> 56) as usize;
        assert!(
            (1..=Kind::ALL.len()).contains(&number),
            "completion with user data {bits:#x}"
        );
        Self {
            kind: Kind::ALL[number - 1],
            slot: (bits >> 32) as u32 & (MAX_SLOTS as u32 - 1),
            generation: bits as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_round_trips() {
        for kind in Kind::ALL {
            let token = Token::new(kind, MAX_SLOTS as u32 - 1, u32::MAX - 7);
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
