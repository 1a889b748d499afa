//! The hash by which keyed records find their partition.
//!
//! Kafka's default partitioner hashes keys with a 32-bit MurmurHash2 of a fixed seed. Using the same
//! one means that a key goes to the same partition whichever client wrote it.
//!
//! Source: `org.apache.kafka.common.utils.Utils.murmur2` and `BuiltInPartitioner`, Kafka 4.0.

const SEED: u32 = 0x9747_b28c;
const MULTIPLIER: u32 = 0x5bd1_e995;
const SHIFT: u32 = 24;

/// Kafka's MurmurHash2 of `bytes`, signed as Kafka has it.
#[must_use]
pub fn murmur2(bytes: &[u8]) -> i32 {
    // Kafka mixes in the low 32 bits of the length; keys are far shorter.
    let mut hash = SEED ^ bytes.len() as u32;
    let (words, tail) = bytes.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        k ^= k >> SHIFT;
        k = k.wrapping_mul(MULTIPLIER);
        hash = hash.wrapping_mul(MULTIPLIER) ^ k;
    }
    if !tail.is_empty() {
        for (index, &byte) in tail.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * index);
        }
        hash = hash.wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^= hash >> 15;
    hash.cast_signed()
}

/// The partition, in `0..partitions`, of a record with this key.
///
/// # Panics
/// When `partitions` is zero.
#[must_use]
pub fn partition_for_key(key: &[u8], partitions: u32) -> u32 {
    assert!(partitions > 0, "a topic has at least one partition");
    (murmur2(key) & i32::MAX).cast_unsigned() % partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Kafka's `UtilsTest.testMurmur2`.
    const KAFKA: [(&[u8], i32); 6] = [
        (b"21", -973_932_308),
        (b"foobar", -790_332_482),
        (b"a-little-bit-long-string", -985_981_536),
        (b"a-little-bit-longer-string", -1_486_304_829),
        (
            b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
            -58_897_971,
        ),
        (b"abc", 479_470_107),
    ];

    #[test]
    fn hashes_as_kafka_does() {
        for (key, hash) in KAFKA {
            assert_eq!(murmur2(key), hash, "{}", key.escape_ascii());
        }
    }

    #[test]
    fn a_negative_hash_loses_its_sign_bit_rather_than_its_sign() {
        assert_eq!(partition_for_key(b"21", 1000), 0x45f2_f8ec % 1000);
        assert_ne!(partition_for_key(b"21", 1000), 973_932_308 % 1000);
    }
}
