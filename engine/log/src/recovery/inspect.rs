//! Showing one file of a data directory to a person, with the result of every check.
//!
//! Each function writes lines until the file ends or something in it cannot be read, which it says
//! with its place, and gives the number of places that are damaged: those of lines that begin with
//! `BAD`. What an interrupted write leaves behind, or one that is still to be continued, is none.
//! Only the file itself is read, so that it may be a copy; names beside a segment tell whether it is
//! sealed.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use ringtide_schema::index::{ENTRY_BYTES, HEADER_BYTES, IndexView};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::{
    EntryHeader, FRAME_CLOSING, FRAME_HEADER_BYTES, FrameError, FrameHeader, MAX_FRAME_BYTES,
    SlotError, SlotHeader,
};
use ringtide_schema::{ids::PartitionId, snapshot};

use super::scan::{Contents, Scan};
use super::segments::parse_name;
use super::slots::is_slot_length;
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
pub fn wal(path: &Path, out: &mut dyn Write) -> Result<u64, InspectError> {
    let mut bad = 0;
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
                bad += 1;
                writeln!(out, "BAD its header says {} bytes", slot.slot_bytes)?;
            }
            Some(slot)
        }
        Err(SlotError::Blank) if is_slot_length(bytes) => {
            writeln!(
                out,
                "slot of {bytes} bytes, free: its header is blank, what follows was given up"
            )?;
            None
        }
        Err(_) if !is_slot_length(bytes) => {
            writeln!(
                out,
                "BAD it has {bytes} bytes, which no slot is made with, and no header: it was cut"
            )?;
            return Ok(bad + 1);
        }
        Err(error) => {
            bad += 1;
            writeln!(out, "BAD at byte 0: {error}")?;
            None
        }
    };
    let mut usage = slot.map(|slot| (slot.incarnation, slot.generation));
    let mut position = BLOCK_BYTES as u64;
    let mut previous: Option<(FrameHeader, u32)> = None;
    // The entry that comes next, once that is known.
    let mut next_seq = None;
    let why = loop {
        if position >= bytes {
            writeln!(out, "end at byte {position}: the slot is full")?;
            return Ok(bad);
        }
        let got = files::read_at(&file, path, &mut buf[..BLOCK_BYTES], position)?;
        let (header, crc) = match FrameHeader::decode(&buf[..got]) {
            Ok(decoded) => decoded,
            Err(FrameError::Magic) if buf[..got].iter().all(|&b| b == 0) => {
                break "never written".to_owned();
            }
            Err(FrameError::Magic) => {
                break "no frame begins here, as in what an earlier use of the slot left"
                    .to_owned();
            }
            Err(error) => break error.to_string(),
        };
        let found = (header.incarnation, header.generation);
        let usage = *usage.get_or_insert(found);
        if found.0 > usage.0 {
            writeln!(
                out,
                "end at byte {position}: start {} was beginning the slot",
                found.0
            )?;
            return Ok(bad);
        }
        if usage != found {
            break format!("a frame of start {}, generation {}", found.0, found.1);
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
            && (before.frame_seq.checked_add(1) != Some(header.frame_seq)
                || header.previous_crc != crc)
        {
            writeln!(
                out,
                "BAD at byte {position}: it does not follow frame {}",
                before.frame_seq
            )?;
            return Ok(bad + 1);
        }
        next_seq = Some(header.first_seq);
        let end = FRAME_HEADER_BYTES + header.entries_bytes as usize;
        let got = files::read_at(&file, path, &mut buf[..end], position)?;
        if let Some(why) = entries(&buf[..got], &header, position, out)? {
            break why;
        }
        next_seq = Some(header.next_seq());
        previous = Some((header, crc));
        position += header.disk_bytes() as u64;
    };
    let shown = match slot {
        Some(slot) => {
            let rest = Rest {
                file: &file,
                path,
                from: position + BLOCK_BYTES as u64,
                bytes,
            };
            rest.shows_committed(&slot, next_seq, &mut buf)?
        }
        None => None,
    };
    match shown {
        Some(Shown::Newer(incarnation)) => {
            writeln!(
                out,
                "end at byte {position}: start {incarnation} was beginning the slot"
            )?;
        }
        Some(Shown::Committed { at, committed }) => {
            bad += 1;
            writeln!(
                out,
                "BAD at byte {position}: {why}; the frame at byte {at} says that entries up to \
                 {committed} were committed"
            )?;
        }
        None => writeln!(out, "end at byte {position}: {why}")?,
    }
    Ok(bad)
}

/// What tells damage from what an interrupted write leaves.
enum Shown {
    /// A later start was writing over the slot: its own header was not there yet.
    Newer(u64),
    /// The frame at this position says that everything up to this entry was committed.
    Committed { at: u64, committed: u64 },
}

/// What lies behind the place where the frames of a slot end.
struct Rest<'a> {
    file: &'a File,
    path: &'a Path,
    from: u64,
    bytes: u64,
}

impl Rest<'_> {
    /// A frame of a later start; else the first frame of the slot that says that the entry which
    /// should have come next was committed, or that before its own if nothing is known of the next.
    /// Without one the frames end as an interrupted write leaves them.
    fn shows_committed(
        &self,
        slot: &SlotHeader,
        mut next_seq: Option<u64>,
        buf: &mut [u8],
    ) -> Result<Option<Shown>, FileError> {
        let mut position = self.from;
        let mut shown = None;
        while position < self.bytes {
            let got = files::read_at(self.file, self.path, buf, position)?;
            for block in buf[..got].chunks(BLOCK_BYTES) {
                let at = position;
                position += BLOCK_BYTES as u64;
                let Ok((header, _)) = FrameHeader::decode(block) else {
                    continue;
                };
                if header.incarnation > slot.incarnation {
                    return Ok(Some(Shown::Newer(header.incarnation)));
                }
                let committed = header.committed;
                if shown.is_none()
                    && (header.incarnation, header.generation)
                        == (slot.incarnation, slot.generation)
                    && committed
                        >= *next_seq.get_or_insert(header.first_seq.saturating_sub(1).max(1))
                {
                    shown = Some(Shown::Committed { at, committed });
                }
            }
            if got < buf.len() {
                break;
            }
        }
        Ok(shown)
    }
}

/// Shows the entries of a frame; gives why they end before they should, if they do.
fn entries(
    frame: &[u8],
    header: &FrameHeader,
    position: u64,
    out: &mut dyn Write,
) -> Result<Option<String>, InspectError> {
    let mut at = FRAME_HEADER_BYTES;
    for seq in header.first_seq..header.next_seq() {
        let place = position + at as u64;
        let (entry, payload) =
            match EntryHeader::decode(&frame[at.min(frame.len())..], header.incarnation) {
                Ok(decoded) => decoded,
                Err(error) => {
                    return Ok(Some(format!(
                        "its entry {seq} at byte {place} is not whole: {error}"
                    )));
                }
            };
        if entry.seq != seq {
            let found = entry.seq;
            return Ok(Some(format!(
                "its entry at byte {place} is number {found} where {seq} was to come"
            )));
        }
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
        at += entry.disk_bytes();
    }
    Ok(None)
}

/// Shows a segment: each batch with its position, and the whole.
pub fn segment(path: &Path, out: &mut dyn Write) -> Result<u64, InspectError> {
    let mut bad = 0;
    let bytes = files::bytes_at(path)?;
    let base = path
        .file_name()
        .and_then(|name| parse_name(&name.to_string_lossy()))
        .map(|(base, _)| base);
    let mut scan = Scan::open(path, bytes, Vec::new())?;
    let mut contents = Contents::new(base.unwrap_or(0));
    let mut position = 0;
    loop {
        // A file of another name begins at the offset that its first batch has.
        let begins_anywhere = base.is_none() && position == 0;
        let next = match begins_anywhere {
            true => scan.next()?,
            false => scan.next_at_any_offset()?,
        };
        let (header, batch) = match next {
            None => break,
            Some(Ok(found)) => found,
            Some(Err(error)) => {
                let behind = scan.behind(contents.next_offset)?;
                let why = match (behind, sealed_by(path, base)?) {
                    (Some(at), _) => Some(format!("a whole batch follows at byte {at}")),
                    (None, Some(name)) => {
                        Some(format!("the segment is sealed: {name} is beside it"))
                    }
                    // A segment that was copied under another name begins with a batch.
                    (None, None) if begins_anywhere => {
                        Some("it is not a segment, or its first batch is damaged".to_owned())
                    }
                    (None, None) => None,
                };
                match why {
                    Some(why) => {
                        bad += 1;
                        writeln!(out, "BAD at byte {position}: {error}; {why}")?;
                    }
                    None => writeln!(
                        out,
                        "unfinished end at byte {position}: {error}; the segment is still open, and \
                         the rest of what it holds is in the snapshot or in the write-ahead log"
                    )?,
                }
                break;
            }
        };
        if begins_anywhere {
            contents.next_offset = header.base_offset;
        }
        let last_delta = u64::from(header.last_offset_delta);
        writeln!(
            out,
            "batch at byte {position}: offsets {}..={}, {} records, {} bytes, {}, epoch {}, \
             timestamps {}..={}, producer {} epoch {} sequence {}, crc ok",
            header.base_offset,
            header.base_offset.saturating_add(last_delta),
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
        let expected = contents.next_offset;
        if header.base_offset != expected {
            bad += 1;
            writeln!(out, "BAD at byte {position}: offset {expected} was to come")?;
        }
        contents.add(&header, batch);
        position = scan.position();
    }
    writeln!(
        out,
        "{position} bytes of {bytes}: {} batches, {} records, next offset {}, prefix crc {:#010x}",
        contents.batches, contents.records, contents.next_offset, contents.prefix_crc
    )?;
    Ok(bad)
}

/// The name beside a segment that shows that it is sealed: its index, or a later segment.
fn sealed_by(path: &Path, base: Option<u64>) -> Result<Option<String>, FileError> {
    let Some(base) = base else {
        return Ok(None);
    };
    let shows = |name: &String| match parse_name(name) {
        Some((other, true)) => other > base,
        Some((other, false)) => other == base,
        None => false,
    };
    let beside = files::list(files::parent(path))?.unwrap_or_default();
    Ok(beside.into_iter().map(|listed| listed.name).find(shows))
}

/// Shows an index: each entry.
pub fn index(path: &Path, out: &mut dyn Write) -> Result<u64, InspectError> {
    let bytes = whole(path)?;
    let view = match IndexView::check(&bytes) {
        Ok(view) => view,
        Err(error) => {
            writeln!(out, "BAD at byte 0: {error}")?;
            return Ok(1);
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
    Ok(0)
}

/// Shows the snapshot of a log group.
pub fn snapshot(path: &Path, out: &mut dyn Write) -> Result<u64, InspectError> {
    let bytes = whole(path)?;
    let group = match snapshot::decode(&bytes) {
        Ok(group) => group,
        Err(error) => {
            writeln!(out, "BAD at byte 0: {error}")?;
            return Ok(1);
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
    Ok(0)
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
