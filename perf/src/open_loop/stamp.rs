//! What every record of a measurement carries, so that none can get lost, change or come twice
//! unnoticed.
//!
//! ```text
//! the value of a record, little endian
//!   0 CRC-32C of all that follows u32 | 4 run u32 | 8 publisher u32 | 12 partition u32
//!  16 sequence u64: counts the publisher's records of that partition, from 0
//!  24 due u64: when the schedule wanted it sent, ns since the run began; u64::MAX: not to be timed
//!  32 filling
//! ```

/// Bytes of the smallest record.
pub const STAMP_BYTES: usize = 32;
/// The time of records that are not timed: those that were there before the run, and those due in the
/// warm-up.
pub const NOT_TIMED: u64 = u64::MAX;

/// Who sent a record, which of its records it is, and when it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The measurement: records of another one do not count.
    pub run: u32,
    /// Its publisher.
    pub publisher: u32,
    /// The partition that it was sent to.
    pub partition: u32,
    /// Its number among the publisher's records of that partition.
    pub sequence: u64,
    /// When it was due, in ns since the run began, or [`NOT_TIMED`].
    pub due_ns: u64,
}

impl Stamp {
    /// Writes it to the start of a value whose filling is there already.
    ///
    /// # Panics
    /// When the value is smaller than [`STAMP_BYTES`].
    pub fn write(&self, value: &mut [u8]) {
        value[4..8].copy_from_slice(&self.run.to_le_bytes());
        value[8..12].copy_from_slice(&self.publisher.to_le_bytes());
        value[12..16].copy_from_slice(&self.partition.to_le_bytes());
        value[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        value[24..32].copy_from_slice(&self.due_ns.to_le_bytes());
        let crc = crc32c::crc32c(&value[4..]);
        value[..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads it; `None` when the value is not what was written.
    #[must_use]
    pub fn read(value: &[u8]) -> Option<Self> {
        let (head, _) = value.split_first_chunk::<STAMP_BYTES>()?;
        let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| head[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| head[at + i]));
        (u32_at(0) == crc32c::crc32c(&value[4..])).then(|| Self {
            run: u32_at(4),
            publisher: u32_at(8),
            partition: u32_at(12),
            sequence: u64_at(16),
            due_ns: u64_at(24),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        run: 1,
        publisher: 2,
        partition: 3,
        sequence: 4,
        due_ns: 5,
    };

    #[test]
    fn what_was_written_is_read() {
        for bytes in [STAMP_BYTES, 100] {
            let mut value = vec![9; bytes];
            STAMP.write(&mut value);
            assert_eq!(Stamp::read(&value), Some(STAMP));
        }
    }

    #[test]
    fn a_value_that_changed_in_any_bit_or_lost_a_byte_is_not_read() {
        let mut value = vec![9; 40];
        STAMP.write(&mut value);
        for bit in 0..value.len() * 8 {
            value[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Stamp::read(&value), None, "bit {bit}");
            value[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(Stamp::read(&value[..39]), None);
        assert_eq!(Stamp::read(&value[..STAMP_BYTES - 1]), None);
    }
}
