//! Showing one file of a data directory to a person, with the result of every check.
//!
//! Each function writes lines until the file ends or something in it cannot be read; the last line
//! then says what and where. Only the file itself is looked at, so that it may be a copy.

use std::io::{self, Write};
use std::path::Path;

use ringtide_schema::index::{ENTRY_BYTES, HEADER_BYTES, IndexView};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::{
    EntryHeader, FRAME_CLOSING, FRAME_HEADER_BYTES, FrameError, FrameHeader, MAX_FRAME_BYTES,
    SlotHeader,
};
use ringtide_schema::{ids::PartitionId, snapshot};

use super::scan::{Contents, Scan};
use super::segments::parse_name;
use crate::files::{self, AlignedBuf, FileError};

/// Why a file could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The lines cannot be written.
    #[error("cannot write what was found: {0}")]
    Out(#[from] io::Error),
}

/// Shows a slot of the write-ahead log: its header, each frame, each entry.
pub fn wal(path: &Path, out: &mut dyn Write) -> Result<(), InspectError> {
    let file = files::open_read(path, false)?;
    let bytes = files::file_bytes(&file, path)?;
    let mut buf = AlignedBuf::zeroed(MAX_FRAME_BYTES);
    let got = files::read_at(&file, path, &mut buf[..BLOCK_BYTES], 0)?;
    let slot = match SlotHeader::decode(&buf[..got]) {
        Ok(slot) => {
            writeln!(
                out,
                "slot of {bytes} bytes, data directory {}, shard {}, generation {}, start {}",
                slot.data_directory, slot.shard, slot.generation, slot.incarnation
            )?;
            if slot.slot_bytes != bytes {
                writeln!(out, "BAD its header says {} bytes", slot.slot_bytes)?;
            }
            Some(slot)
        }
        Err(error) => {
            writeln!(out, "BAD at byte 0: {error}")?;
            None
        }
    };
    let mut position = BLOCK_BYTES as u64;
    let mut previous: Option<(FrameHeader, u32)> = None;
    while position < bytes {
        let got = files::read_at(&file, path, &mut buf[..BLOCK_BYTES], position)?;
        let (header, crc) = match FrameHeader::decode(&buf[..got]) {
            Ok(decoded) => decoded,
            Err(FrameError::Magic) if buf[..got].iter().all(|&b| b == 0) => {
                writeln!(out, "end at byte {position}: never written")?;
                return Ok(());
            }
            Err(error) => {
                writeln!(out, "end at byte {position}: {error}")?;
                return Ok(());
            }
        };
        let stale = slot.is_some_and(|slot| {
            (header.incarnation, header.generation) != (slot.incarnation, slot.generation)
        });
        if stale {
            writeln!(
                out,
                "end at byte {position}: a frame of start {}, generation {}",
                header.incarnation, header.generation
            )?;
            return Ok(());
        }
        let closing = if header.flags & FRAME_CLOSING != 0 {
            ", closing"
        } else {
            ""
        };
        writeln!(
            out,
            "frame {} at byte {position}: {} bytes, {} entries from {}, committed {}, crc {crc:#010x}{closing}",
            header.frame_seq,
            header.disk_bytes(),
            header.entry_count,
            header.first_seq,
            header.committed
        )?;
        if let Some((before, crc)) = previous
            && (before.frame_seq + 1 != header.frame_seq || header.previous_crc != crc)
        {
            writeln!(
                out,
                "BAD at byte {position}: it does not follow frame {}",
                before.frame_seq
            )?;
            return Ok(());
        }
        let end = FRAME_HEADER_BYTES + header.entries_bytes as usize;
        let got = files::read_at(&file, path, &mut buf[..end], position)?;
        if !entries(&buf[..got], &header, position, out)? {
            return Ok(());
        }
        previous = Some((header, crc));
        position += header.disk_bytes() as u64;
    }
    writeln!(out, "end at byte {position}: the slot is full")?;
    Ok(())
}

fn entries(
    frame: &[u8],
    header: &FrameHeader,
    position: u64,
    out: &mut dyn Write,
) -> Result<bool, InspectError> {
    let mut at = FRAME_HEADER_BYTES;
    for seq in header.first_seq..header.next_seq() {
        let place = position + at as u64;
        let (entry, payload) =
            match EntryHeader::decode(&frame[at.min(frame.len())..], header.incarnation) {
                Ok(decoded) => decoded,
                Err(error) => {
                    writeln!(out, "BAD at byte {place}: {error}")?;
                    return Ok(false);
                }
            };
        writeln!(
            out,
            "  entry {} at byte {place}: {:?}, group {} index {}, {} offset {}, {} bytes, ok",
            entry.seq,
            entry.kind,
            entry.group.0,
            entry.group_index,
            entry.partition,
            entry.base_offset,
            payload.len()
        )?;
        if entry.seq != seq {
            writeln!(out, "BAD at byte {place}: entry {seq} was to come")?;
            return Ok(false);
        }
        at += entry.disk_bytes();
    }
    Ok(true)
}

/// Shows a segment: each batch with its position, and the whole.
pub fn segment(path: &Path, out: &mut dyn Write) -> Result<(), InspectError> {
    let bytes = files::bytes_at(path)?;
    let base = path
        .file_name()
        .and_then(|name| parse_name(&name.to_string_lossy()));
    let mut scan = Scan::open(path, bytes, Vec::new())?;
    let mut contents = Contents::new(base.map_or(0, |(base, _)| base));
    let mut expected = base.map(|(base, _)| base);
    loop {
        let position = scan.position();
        let (header, batch) = match scan.next()? {
            None => break,
            Some(Ok(found)) => found,
            Some(Err(error)) => {
                writeln!(
                    out,
                    "BAD at byte {position}: {error} (of a segment that is not sealed, the last \
                     batch may go on in the snapshot, and zeros may follow)"
                )?;
                break;
            }
        };
        writeln!(
            out,
            "batch at byte {position}: offsets {}..={}, {} records, {} bytes, {}, epoch {}, \
             timestamps {}..={}, producer {} epoch {} sequence {}, crc ok",
            header.base_offset,
            header.last_offset(),
            header.record_count,
            header.batch_bytes,
            header.attributes.codec(),
            header.leader_epoch,
            header.base_timestamp_ms,
            header.max_timestamp_ms,
            header.producer_id,
            header.producer_epoch,
            header.base_sequence
        )?;
        if let Some(expected) = expected
            && header.base_offset != expected
        {
            writeln!(out, "BAD at byte {position}: offset {expected} was to come")?;
        }
        expected = Some(header.next_offset());
        contents.add(&header, batch);
    }
    writeln!(
        out,
        "{} bytes of {bytes}: {} batches, {} records, next offset {}, prefix crc {:#010x}",
        scan.position(),
        contents.batches,
        contents.records,
        contents.next_offset,
        contents.prefix_crc
    )?;
    Ok(())
}

/// Shows an index: each entry.
pub fn index(path: &Path, out: &mut dyn Write) -> Result<(), InspectError> {
    let bytes = whole(path)?;
    let view = match IndexView::check(&bytes) {
        Ok(view) => view,
        Err(error) => {
            writeln!(out, "BAD at byte 0: {error}")?;
            return Ok(());
        }
    };
    writeln!(
        out,
        "index of the segment from offset {}, {} bytes of it covered, {} entries, crc ok",
        view.base_offset,
        view.covered_bytes,
        view.len()
    )?;
    for i in 0..view.len() {
        let entry = view.get(i);
        let offset = view.base_offset + u64::from(entry.relative_offset);
        let before = match entry.max_timestamp_before_ms {
            i64::MIN => "none".to_owned(),
            ms => ms.to_string(),
        };
        writeln!(
            out,
            "entry at byte {}: offset {offset} at byte {} of the log, timestamp {}, latest before {before}",
            HEADER_BYTES + i * ENTRY_BYTES,
            entry.position,
            entry.timestamp_ms
        )?;
    }
    Ok(())
}

/// Shows the snapshot of a log group.
pub fn snapshot(path: &Path, out: &mut dyn Write) -> Result<(), InspectError> {
    let bytes = whole(path)?;
    let group = match snapshot::decode(&bytes) {
        Ok(group) => group,
        Err(error) => {
            writeln!(out, "BAD at byte 0: {error}")?;
            return Ok(());
        }
    };
    writeln!(
        out,
        "snapshot of group {} up to index {}, term {}, start {}, next topic serial {}, crc ok",
        group.group, group.group_index, group.term, group.incarnation, group.next_topic_serial
    )?;
    for topic in group.topics.iter().flatten() {
        let id = topic
            .id
            .as_ref()
            .map(ringtide_schema::ids::TopicId::from)
            .unwrap_or_default();
        writeln!(
            out,
            "topic {:?} {id}: {} partitions, {:?}",
            topic.name, topic.partitions, topic.config
        )?;
    }
    for stored in group.partitions.iter().flatten() {
        let topic = stored.topic.as_ref().map(Into::into).unwrap_or_default();
        let id = PartitionId {
            topic,
            partition: stored.partition,
        };
        writeln!(
            out,
            "partition {id}: offsets {}..{}, tail of {} bytes",
            stored.log_start,
            stored.next_offset,
            stored.tail.as_ref().map_or(0, Vec::len)
        )?;
        for s in stored.segments.iter().flatten() {
            writeln!(
                out,
                "  segment from {} to {}: {} bytes, {}, start {}, latest {}, prefix crc {:#010x}",
                s.base_offset,
                s.next_offset,
                s.bytes,
                if s.sealed { "sealed" } else { "open" },
                s.incarnation,
                s.max_timestamp_ms,
                s.prefix_crc
            )?;
        }
        for epoch in stored.epochs.iter().flatten() {
            writeln!(out, "  epoch {} from {}", epoch.epoch, epoch.start_offset)?;
        }
        for producer in stored.producers.iter().flatten() {
            let batches: Vec<_> = producer
                .batches
                .iter()
                .flatten()
                .map(|b| (b.base_sequence, b.base_offset))
                .collect();
            writeln!(
                out,
                "  producer {} epoch {}: {batches:?}",
                producer.id, producer.epoch
            )?;
        }
        for c in stored.committed.iter().flatten() {
            writeln!(
                out,
                "  consumer {:?}: {} (epoch {}, {} ms)",
                c.consumer, c.offset, c.leader_epoch, c.time_ms
            )?;
        }
    }
    Ok(())
}

fn whole(path: &Path) -> Result<Vec<u8>, InspectError> {
    match files::read_whole(path)? {
        Some(bytes) => Ok(bytes),
        // Absent: let opening say so.
        None => Err(files::open_read(path, false).err().map_or_else(
            || io::Error::from(io::ErrorKind::NotFound).into(),
            InspectError::from,
        )),
    }
}
