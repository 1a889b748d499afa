//! Identities: topics, partitions, log groups.

use std::fmt;

/// A topic's identity, a UUID of version 8: 62 random bits above, the topic's serial number below.
///
/// The serial number is never used twice in a data directory, so an entry of a topic that the
/// metadata does not know can be told apart: below the next serial it belongs to a deleted topic,
/// at or above it is corruption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TopicId {
    /// The high 64 bits.
    pub hi: u64,
    /// The low 64 bits: two variant bits, then the serial number.
    pub lo: u64,
}

const VARIANT: u64 = 0b10 << 62;
const SERIAL_MASK: u64 = (1 << 62) - 1;

impl TopicId {
    /// Makes the identity of the topic with this serial number.
    pub fn new(random: u64, serial: u64) -> Self {
        let hi = (random & !0xf000) | 0x8000;
        Self {
            hi,
            lo: VARIANT | (serial & SERIAL_MASK),
        }
    }

    /// The topic's serial number.
    pub fn serial(self) -> u64 {
        self.lo & SERIAL_MASK
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hi, lo) = (self.hi, self.lo);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            hi >> 32,
            (hi >> 16) & 0xffff,
            hi & 0xffff,
            lo >> 48,
            lo & 0xffff_ffff_ffff
        )
    }
}

impl std::str::FromStr for TopicId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let groups: Vec<&str> = text.split('-').collect();
        if groups.iter().map(|g| g.len()).ne([8, 4, 4, 4, 12]) {
            return Err(());
        }
        let hex: String = groups.concat();
        if !hex
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return Err(());
        }
        let hi = u64::from_str_radix(&hex[..16], 16).map_err(|_| ())?;
        let lo = u64::from_str_radix(&hex[16..], 16).map_err(|_| ())?;
        Ok(Self { hi, lo })
    }
}

/// A partition of a topic. Its number is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PartitionId {
    /// The topic.
    pub topic: TopicId,
    /// The partition's number, from 0.
    pub partition: u32,
}

impl PartitionId {
    /// The name of the partition's directory: `<topic uuid>-<number>`.
    pub fn dir_name(self) -> String {
        format!("{}-{}", self.topic, self.partition)
    }

    /// The opposite of [`Self::dir_name`].
    pub fn from_dir_name(name: &str) -> Option<Self> {
        let (topic, partition) = (name.get(..36)?, name.get(36..)?.strip_prefix('-')?);
        let id = Self {
            topic: topic.parse().ok()?,
            partition: partition.parse().ok()?,
        };
        (id.dir_name() == name).then_some(id)
    }

    /// The log group of this partition, of `groups` in the data directory: consecutive
    /// partitions of a topic go to consecutive groups, and so to different shards.
    pub fn group(self, groups: u16) -> GroupId {
        debug_assert!(groups > 0);
        let mixed =
            (self.topic.hi ^ self.topic.lo.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let start = (mixed >> 33) % u64::from(groups);
        let group = (start + u64::from(self.partition)) % u64::from(groups);
        GroupId(group as u16)
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A log group: what is numbered, snapshotted and (later) replicated by itself.
///
/// A data directory with `n` groups has the data groups `0..n` and the metadata group `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u16);

impl GroupId {
    /// The shard that hosts this group when there are `shards` of them and `groups` data groups.
    /// The metadata group lives on shard 0.
    pub fn shard(self, groups: u16, shards: u16) -> u16 {
        if self.0 >= groups { 0 } else { self.0 % shards }
    }

    /// The name of the group's snapshot file.
    pub fn snapshot_name(self) -> String {
        format!("{:05}.snapshot", self.0)
    }
}

impl From<&crate::wire::TopicId> for TopicId {
    fn from(id: &crate::wire::TopicId) -> Self {
        Self {
            hi: id.hi(),
            lo: id.lo(),
        }
    }
}
impl From<TopicId> for crate::wire::TopicId {
    fn from(id: TopicId) -> Self {
        Self::new(id.hi, id.lo)
    }
}
impl From<&crate::wire::PartitionRef> for PartitionId {
    fn from(r: &crate::wire::PartitionRef) -> Self {
        Self {
            topic: r.topic().into(),
            partition: r.partition(),
        }
    }
}
impl From<PartitionId> for crate::wire::PartitionRef {
    fn from(id: PartitionId) -> Self {
        Self::new(&id.topic.into(), id.partition)
    }
}
impl From<TopicId> for crate::store::IdT {
    fn from(id: TopicId) -> Self {
        Self {
            hi: id.hi,
            lo: id.lo,
        }
    }
}
impl From<&crate::store::IdT> for TopicId {
    fn from(id: &crate::store::IdT) -> Self {
        Self {
            hi: id.hi,
            lo: id.lo,
        }
    }
}
impl From<TopicId> for crate::wire::TopicIdT {
    fn from(id: TopicId) -> Self {
        Self {
            hi: id.hi,
            lo: id.lo,
        }
    }
}
impl From<&crate::wire::TopicIdT> for TopicId {
    fn from(id: &crate::wire::TopicIdT) -> Self {
        Self {
            hi: id.hi,
            lo: id.lo,
        }
    }
}
impl From<PartitionId> for crate::wire::PartitionRefT {
    fn from(id: PartitionId) -> Self {
        Self {
            topic: id.topic.into(),
            partition: id.partition,
        }
    }
}
impl From<&crate::wire::PartitionRefT> for PartitionId {
    fn from(id: &crate::wire::PartitionRefT) -> Self {
        Self {
            topic: (&id.topic).into(),
            partition: id.partition,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_names_round_trip() {
        let id = PartitionId {
            topic: TopicId::new(0x0123_4567_89ab_cdef, 77),
            partition: 12,
        };
        assert_eq!(PartitionId::from_dir_name(&id.dir_name()), Some(id));
        assert_eq!(id.topic.serial(), 77);
    }

    #[test]
    fn foreign_directory_names_are_not_partitions() {
        for name in [
            "",
            "lost+found",
            "0123-1",
            "01234567-89ab-8def-8000-00000000004d-01",
        ] {
            assert_eq!(PartitionId::from_dir_name(name), None, "{name}");
        }
    }

    #[test]
    fn partitions_of_a_topic_spread_evenly_over_groups() {
        let topic = TopicId::new(99, 1);
        let mut seen = [0; 64];
        for partition in 0..128 {
            seen[usize::from(PartitionId { topic, partition }.group(64).0)] += 1;
        }
        assert!(seen.iter().all(|&n| n == 2), "{seen:?}");
    }
}
