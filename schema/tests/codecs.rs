//! The codecs of files: whatever is written is read back the same, and bytes that nobody wrote are
//! refused or read, never a crash, even with a right checksum over them.

use proptest::collection::vec;
use proptest::prelude::*;
use ringtide_schema::identity::{IDENTITY_BYTES, Identity};
use ringtide_schema::ids::{GroupId, PartitionId, TopicId};
use ringtide_schema::index::{self, IndexEntry, IndexError, IndexView};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::{
    ENTRY_HEADER_BYTES, EntryHeader, EntryKind, FRAME_HEADER_BYTES, FrameHeader, MAX_FRAME_BYTES,
    SlotHeader,
};
use ringtide_schema::{snapshot, store};

fn topic_id() -> impl Strategy<Value = TopicId> {
    any::<(u64, u64)>().prop_map(|(hi, lo)| TopicId { hi, lo })
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

/// Writes the checksum of `0..at` to `at`.
fn seal(bytes: &mut [u8], at: usize) {
    let crc = crc32c::crc32c(&bytes[..at]);
    put(bytes, at, &crc.to_le_bytes());
}

prop_compose! {
    fn slot_header()(
        data_directory in topic_id(),
        shard: u16,
        generation: u64,
        incarnation: u64,
        slot_bytes: u64,
    ) -> SlotHeader {
        SlotHeader { data_directory, shard, generation, incarnation, slot_bytes }
    }
}

prop_compose! {
    fn frame_header()(
        (flags, shard, generation, incarnation) in any::<(u8, u16, u64, u64)>(),
        (frame_seq, committed, first_seq, previous_crc) in any::<(u64, u64, u64, u32)>(),
        entry_count in 0..1000_u32,
        spare in 0..1_000_000_u32,
    ) -> FrameHeader {
        let least = entry_count * ENTRY_HEADER_BYTES as u32;
        let entries_bytes = if entry_count == 0 { 0 } else { least + spare };
        FrameHeader {
            flags, shard, generation, incarnation, frame_seq, committed, first_seq, entries_bytes,
            entry_count, previous_crc,
        }
    }
}

prop_compose! {
    fn entry()(
        kind in prop::sample::select(vec![
            EntryKind::Batch, EntryKind::Meta, EntryKind::CommitOffset, EntryKind::LogStart,
        ]),
        (group, seq, group_index, term) in any::<(u16, u64, u64, u64)>(),
        topic in topic_id(),
        (partition, base_offset, append_time_ms) in any::<(u32, u64, i64)>(),
        payload in vec(any::<u8>(), 0..300),
    ) -> (EntryHeader, Vec<u8>) {
        let header = EntryHeader {
            kind,
            group: GroupId(group),
            seq,
            group_index,
            term,
            partition: PartitionId { topic, partition },
            base_offset,
            append_time_ms,
            payload_bytes: payload.len() as u32,
            payload_crc: crc32c::crc32c(&payload),
        };
        (header, payload)
    }
}

prop_compose! {
    /// Entries as a writer makes them, ascending from the first batch on.
    fn index_entries()(
        steps in vec((1..1_000_u32, 1..100_000_u32), 0..20),
        times in vec(any::<(i64, i64)>(), 20),
    ) -> Vec<IndexEntry> {
        let mut place = (0, 0);
        let mut before_ms = i64::MIN;
        let entries = steps.iter().zip(times).map(|(step, (timestamp_ms, latest_ms))| {
            let (relative_offset, position) = place;
            let max_timestamp_before_ms = before_ms;
            before_ms = before_ms.max(latest_ms);
            place = (relative_offset + step.0, position + step.1);
            IndexEntry { relative_offset, position, timestamp_ms, max_timestamp_before_ms }
        });
        entries.collect()
    }
}

prop_compose! {
    fn identity()(
        data_directory in topic_id(),
        (groups, incarnation, leader_epoch) in (1..=u16::MAX, 1..u64::MAX, 1..i32::MAX as u32),
        (clean, shards, slot_bytes, snapshots_crc) in any::<(bool, u32, u64, u32)>(),
    ) -> Identity {
        Identity { data_directory, groups, clean, incarnation, leader_epoch, shards, slot_bytes, snapshots_crc }
    }
}

fn id() -> impl Strategy<Value = store::IdT> {
    any::<(u64, u64)>().prop_map(|(hi, lo)| store::IdT { hi, lo })
}

prop_compose! {
    fn segment()(
        (base_offset, next_offset, bytes, max_timestamp_ms) in any::<(u64, u64, u64, i64)>(),
        (incarnation, format, sealed, prefix_crc) in any::<(u64, u16, bool, u32)>(),
    ) -> store::SegmentT {
        store::SegmentT {
            base_offset,
            next_offset,
            bytes,
            max_timestamp_ms,
            incarnation,
            format,
            sealed,
            prefix_crc,
        }
    }
}

prop_compose! {
    fn producer()(
        (id, epoch) in any::<(i64, i16)>(),
        batches in vec(any::<(u64, i64, i32, u32)>(), 0..5),
    ) -> store::ProducerT {
        let batch = |(base_offset, append_time_ms, base_sequence, records)| store::ProducerBatchT {
            base_offset,
            append_time_ms,
            base_sequence,
            records,
        };
        store::ProducerT { id, epoch, batches: Some(batches.into_iter().map(batch).collect()) }
    }
}

prop_compose! {
    fn partition()(
        topic in id(),
        (partition, log_start, next_offset) in any::<(u32, u64, u64)>(),
        segments in vec(segment(), 0..4),
        tail in vec(any::<u8>(), 0..200),
        epochs in vec(any::<(u64, u32)>(), 0..4),
        producers in vec(producer(), 0..3),
        committed in vec((".{0,20}", any::<(u64, u32, i64)>()), 0..3),
    ) -> store::PartitionT {
        let epoch = |(start_offset, epoch)| store::EpochStartT { start_offset, epoch };
        let commit = |(consumer, (offset, leader_epoch, time_ms))| store::CommittedT {
            consumer, offset, leader_epoch, time_ms,
        };
        store::PartitionT {
            topic: Some(topic),
            partition,
            log_start,
            next_offset,
            segments: Some(segments),
            tail: Some(tail),
            epochs: Some(epochs.into_iter().map(epoch).collect()),
            producers: Some(producers),
            committed: Some(committed.into_iter().map(commit).collect()),
        }
    }
}

prop_compose! {
    fn group()(
        (group, group_index, term) in any::<(u16, u64, u64)>(),
        (incarnation, next_topic_serial) in any::<(u64, u64)>(),
        partitions in vec(partition(), 0..3),
        topics in vec((id(), ".{0,20}", any::<u32>()), 0..3),
    ) -> store::GroupSnapshotT {
        let config = ringtide_schema::topic::TopicConfig::default();
        let topic = |(id, name, partitions)| store::TopicT {
            id: Some(id), name, partitions, config: Box::new(config.to_store()),
        };
        store::GroupSnapshotT {
            group,
            group_index,
            term,
            incarnation,
            partitions: Some(partitions),
            topics: Some(topics.into_iter().map(topic).collect()),
            next_topic_serial,
        }
    }
}

proptest! {
    #[test]
    fn a_slot_header_is_read_as_it_was_written(header in slot_header()) {
        let mut block = [0xff; BLOCK_BYTES];
        header.encode(&mut block);
        prop_assert_eq!(SlotHeader::decode(&block), Ok(header));
    }

    #[test]
    fn a_frame_header_is_read_as_it_was_written(header in frame_header()) {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let crc = header.encode(&mut bytes);
        prop_assert_eq!(FrameHeader::decode(&bytes), Ok((header, crc)));
    }

    #[test]
    fn an_entry_is_read_as_it_was_written((header, payload) in entry(), incarnation: u64) {
        let mut bytes = vec![0; header.disk_bytes()];
        header.encode(incarnation, &mut bytes);
        put(&mut bytes, ENTRY_HEADER_BYTES, &payload);
        prop_assert_eq!(EntryHeader::decode(&bytes, incarnation), Ok((header, &payload[..])));
    }

    #[test]
    fn an_index_is_read_as_it_was_written(
        base_offset: u64,
        behind in 1..1_000_000_u32,
        entries in index_entries(),
    ) {
        let covered_bytes = entries.last().map_or(0, |last| last.position + behind);
        let bytes = index::encode(base_offset, covered_bytes, &entries);
        let view = IndexView::check(&bytes).expect("just written");
        prop_assert_eq!((view.base_offset, view.covered_bytes), (base_offset, covered_bytes));
        let read: Vec<_> = (0..view.len()).map(|i| view.get(i)).collect();
        prop_assert_eq!(read, entries);
    }

    #[test]
    fn an_identity_is_read_as_it_was_written(identity in identity()) {
        prop_assert_eq!(Identity::decode(&identity.encode()), Ok(identity));
    }

    #[test]
    fn a_snapshot_is_read_as_it_was_written(group in group()) {
        prop_assert_eq!(snapshot::decode(&snapshot::encode(&group)), Ok(group));
    }

    #[test]
    fn bytes_that_nobody_wrote_are_no_crash(bytes in vec(any::<u8>(), 0..200), incarnation: u64) {
        let _ = SlotHeader::decode(&bytes);
        let _ = FrameHeader::decode(&bytes);
        let _ = EntryHeader::decode(&bytes, incarnation);
        let _ = IndexView::check(&bytes).map(|view| view.len());
        let _ = Identity::decode(&bytes);
        let _ = snapshot::decode(&bytes);
    }

    #[test]
    fn a_forged_slot_header_says_what_is_in_it(mut bytes in vec(any::<u8>(), 60..200)) {
        put(&mut bytes, 0, b"RTWALSLT");
        put(&mut bytes, 8, &1_u16.to_le_bytes());
        seal(&mut bytes, 56);
        let header = SlotHeader::decode(&bytes).expect("all that is checked is right");
        let mut again = [0; BLOCK_BYTES];
        header.encode(&mut again);
        prop_assert_eq!(SlotHeader::decode(&again), Ok(header));
    }

    #[test]
    fn a_forged_frame_header_is_within_the_bounds_or_refused(
        mut bytes in vec(any::<u8>(), FRAME_HEADER_BYTES..200),
        small in 0..3_000_000_u32,
        count in 0..40_000_u32,
    ) {
        put(&mut bytes, 0, b"RTFR\x01");
        put(&mut bytes, 48, &small.to_le_bytes());
        put(&mut bytes, 52, &count.to_le_bytes());
        seal(&mut bytes, 60);
        if let Ok((header, _)) = FrameHeader::decode(&bytes) {
            prop_assert!(header.disk_bytes() <= MAX_FRAME_BYTES);
            prop_assert!(header.entry_count as usize * ENTRY_HEADER_BYTES <= small as usize);
        }
    }

    #[test]
    fn a_forged_entry_stays_within_its_bytes(
        mut bytes in vec(any::<u8>(), ENTRY_HEADER_BYTES..300),
        entry_bytes in 0..400_u32,
        incarnation: u64,
    ) {
        put(&mut bytes, 0, &entry_bytes.to_le_bytes());
        put(&mut bytes, 60, &(incarnation as u32).to_le_bytes());
        if let Some(payload) = bytes.get(ENTRY_HEADER_BYTES..entry_bytes as usize) {
            let crc = crc32c::crc32c(payload);
            put(&mut bytes, 8, &crc.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[8..ENTRY_HEADER_BYTES]);
        let crc = crc32c::crc32c_append(crc, &bytes[..4]);
        put(&mut bytes, 4, &crc.to_le_bytes());
        if let Ok((header, payload)) = EntryHeader::decode(&bytes, incarnation) {
            prop_assert_eq!(payload.len(), header.payload_bytes as usize);
            prop_assert!(ENTRY_HEADER_BYTES + payload.len() <= bytes.len());
        }
    }

    #[test]
    fn a_forged_identity_is_possible_or_refused(mut bytes in vec(any::<u8>(), IDENTITY_BYTES)) {
        put(&mut bytes, 0, b"RTDATADR");
        put(&mut bytes, 8, &1_u16.to_le_bytes());
        put(&mut bytes, 13, &[0; 3]);
        bytes[12] &= 1;
        seal(&mut bytes, 60);
        if let Ok(identity) = Identity::decode(&bytes) {
            prop_assert_eq!(&identity.encode()[..], &bytes[..]);
        }
    }

    #[test]
    fn a_forged_index_gives_as_many_entries_as_it_has(
        mut bytes in vec(any::<u8>(), index::HEADER_BYTES..200),
        count in 0..8_u32,
    ) {
        put(&mut bytes, 0, b"RTINDEX1");
        put(&mut bytes, 8, &1_u16.to_le_bytes());
        put(&mut bytes, 12, &count.to_le_bytes());
        put(&mut bytes, 36, &[0; 4]);
        bytes.resize(index::HEADER_BYTES + count as usize * index::ENTRY_BYTES, 7);
        let crc = crc32c::crc32c(&bytes[..32]);
        let crc = crc32c::crc32c_append(crc, &bytes[index::HEADER_BYTES..]);
        put(&mut bytes, 32, &crc.to_le_bytes());
        match IndexView::check(&bytes) {
            Ok(view) => {
                let entries: Vec<_> = (0..view.len()).map(|i| view.get(i)).collect();
                prop_assert_eq!(entries.len(), count as usize);
            }
            Err(error) => prop_assert!(matches!(error, IndexError::Order(_)), "{error}"),
        }
    }

    #[test]
    fn a_forged_body_of_a_snapshot_is_no_crash(body in vec(any::<u8>(), 0..300)) {
        let mut bytes = snapshot::encode(&store::GroupSnapshotT::default());
        bytes.truncate(snapshot::HEADER_BYTES);
        put(&mut bytes, 12, &(body.len() as u32).to_le_bytes());
        put(&mut bytes, 16, &crc32c::crc32c(&body).to_le_bytes());
        seal(&mut bytes, 20);
        bytes.extend_from_slice(&body);
        let _ = snapshot::decode(&bytes);
    }

    #[test]
    fn a_snapshot_with_changed_bytes_and_right_checksums_is_no_crash(
        group in group(),
        changes in vec(any::<(prop::sample::Index, u8)>(), 1..8),
    ) {
        let mut bytes = snapshot::encode(&group);
        for (at, value) in changes {
            let at = snapshot::HEADER_BYTES + at.index(bytes.len() - snapshot::HEADER_BYTES);
            bytes[at] = value;
        }
        let crc = crc32c::crc32c(&bytes[snapshot::HEADER_BYTES..]);
        put(&mut bytes, 16, &crc.to_le_bytes());
        seal(&mut bytes, 20);
        let _ = snapshot::decode(&bytes);
    }
}
