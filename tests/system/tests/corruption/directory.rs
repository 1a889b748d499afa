//! Data directories that real brokers left, kept in memory, and what was published to them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use ringtide_schema::batch::Header;
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::snapshot;
use ringtide_schema::wal::{
    ENTRY_HEADER_BYTES, EntryHeader, FRAME_CLOSING, FRAME_HEADER_BYTES, FrameHeader, SlotHeader,
};
use ringtide_system_tests::{Broker, Finished, Setup, batch, data_root, exit, table, wait};
use tempfile::TempDir;

const PARTITIONS: u32 = 4;
const SHARDS: usize = 2;

/// A data directory that no broker runs on.
pub struct Directory {
    files: Vec<(String, Vec<u8>)>,
    /// Values by partition and offset.
    published: Vec<Vec<String>>,
    slots: Vec<Slot>,
}

/// A slot that a start would read, of one shard.
pub struct Slot {
    pub file: String,
    pub frames: Vec<Frame>,
}

pub struct Frame {
    pub position: u64,
    pub header: FrameHeader,
    pub entries: Vec<Entry>,
}

pub struct Entry {
    /// In the slot.
    pub position: u64,
    pub header: EntryHeader,
}

/// A segment as far as it was synced.
pub struct Segment {
    pub file: String,
    pub is_sealed: bool,
    /// Where each whole batch begins, and its bytes.
    pub batches: Vec<(u64, u64)>,
}

/// A directory after a clean stop.
pub fn after_a_stop() -> &'static Directory {
    static MADE: OnceLock<Directory> = OnceLock::new();
    MADE.get_or_init(|| {
        let (mut broker, published) = filled();
        assert_eq!(broker.stop(), exit::DONE);
        Directory::load(broker.data_dir(), published)
    })
}

/// A directory whose broker was killed: what it published last is in the log alone, and a closing frame vouches
/// for it on every shard.
pub fn after_a_kill() -> &'static Directory {
    static MADE: OnceLock<Directory> = OnceLock::new();
    MADE.get_or_init(|| {
        let (mut broker, mut published) = filled();
        assert_eq!(broker.stop(), exit::DONE);
        broker.restart();
        publish(&broker, &mut published, 6);
        let mut peer = broker.peer();
        peer.create_topic("u", 1);
        for partition in 0..PARTITIONS {
            let topic = peer.topic("t").expect("a topic");
            let mut owner = broker.peer_at(topic.shard(partition));
            let id = topic.partition(partition);
            let far = published[partition as usize].len() as u64;
            for (name, offset) in [("near", 3), ("far", far)] {
                let stored = owner.commit_offset(name, id, offset);
                stored.expect("a stored offset");
            }
        }
        publish(&broker, &mut published, 2);
        wait::for_it("closing frames", || {
            let slots = live_slots(&load(broker.data_dir()));
            let closed = |slot: &&Slot| {
                let last = slot.frames.last();
                last.is_some_and(|frame| frame.header.flags & FRAME_CLOSING != 0)
            };
            slots.iter().filter(closed).count() == SHARDS
        });
        broker.kill();
        Directory::load(broker.data_dir(), published)
    })
}

/// A broker with sealed and open segments in every partition.
fn filled() -> (Broker, Vec<Vec<String>>) {
    let broker = Setup::new()
        .shards(SHARDS)
        .args(&["--log-groups", "4"])
        .start();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(96 << 10)
    });
    broker
        .peer()
        .create_topic_with("t", PARTITIONS, settings)
        .expect("a new topic");
    let mut published = vec![Vec::new(); PARTITIONS as usize];
    publish(&broker, &mut published, 25);
    (broker, published)
}

/// Publishes this many batches to each partition.
fn publish(broker: &Broker, published: &mut [Vec<String>], batches: usize) {
    let topic = broker.peer().topic("t").expect("a topic");
    for (partition, published) in (0..).zip(published) {
        let mut peer = broker.peer_at(topic.shard(partition));
        for _ in 0..batches {
            let from = published.len();
            let values: Vec<String> = (from..from + 8)
                .map(|n| format!("{partition} {n} {}", "record ".repeat(80 + n % 7)))
                .collect();
            let published_at = peer
                .publish(topic.partition(partition), batch(&values))
                .expect("an acknowledgement");
            assert_eq!(published_at.base_offset, from as u64);
            published.extend(values);
        }
    }
}

impl Directory {
    fn load(path: &Path, published: Vec<Vec<String>>) -> Self {
        let files = load(path);
        let slots = live_slots(&files);
        Self {
            files,
            published,
            slots,
        }
    }

    /// Files of a folder, by name.
    pub fn files(&self, below: &str, ends: &str) -> Vec<(&str, &[u8])> {
        let wanted =
            |(name, _): &&(String, Vec<u8>)| name.starts_with(below) && name.ends_with(ends);
        let found = self.files.iter().filter(wanted);
        found.map(|(name, bytes)| (&name[..], &bytes[..])).collect()
    }

    /// The slots that a start would read.
    pub fn live_slots(&self) -> &[Slot] {
        assert_eq!(self.slots.len(), SHARDS, "one of each shard");
        &self.slots
    }

    /// A segment that is sealed.
    pub fn sealed_segment(&self) -> Segment {
        self.segments(true).swap_remove(0)
    }

    /// All that are sealed, in the order in which `repair` comes upon them.
    pub fn sealed_segments(&self) -> Vec<Segment> {
        self.segments(true)
    }

    /// A segment that a broker would continue, with whole batches before its synced position.
    pub fn open_segment(&self) -> Segment {
        self.segments(false).swap_remove(0)
    }

    fn segments(&self, is_sealed: bool) -> Vec<Segment> {
        let mut found = Vec::new();
        let groups = self.files("groups/", ".snapshot");
        let snapshots = groups
            .iter()
            .map(|(_, b)| snapshot::decode(b).expect("whole"));
        let partitions = snapshots.flat_map(|s| s.partitions.unwrap_or_default());
        for stored in partitions {
            let topic = stored.topic.as_ref().expect("a topic").into();
            let id = ringtide_schema::ids::PartitionId {
                topic,
                partition: stored.partition,
            };
            for segment in stored.segments.iter().flatten() {
                if segment.sealed != is_sealed {
                    continue;
                }
                let file = format!(
                    "partitions/{}/{:020}.log",
                    id.dir_name(),
                    segment.base_offset
                );
                let (_, bytes) = self.files("", &file)[0];
                let mut batches = Vec::new();
                let mut at = 0;
                while let Ok(header) = Header::peek(&bytes[at..])
                    && at + header.batch_bytes <= segment.bytes as usize
                {
                    batches.push((at as u64, header.batch_bytes as u64));
                    at += header.batch_bytes;
                }
                if batches.len() > 2 {
                    found.push(Segment {
                        file,
                        is_sealed,
                        batches,
                    });
                }
            }
        }
        found
    }

    /// A copy.
    pub fn copy(&self) -> TempDir {
        let copy = TempDir::with_prefix_in("copy-", data_root()).expect("a folder");
        for (name, bytes) in &self.files {
            write(&copy.path().join(name), bytes);
        }
        copy
    }

    /// A copy with one bit changed.
    pub fn copy_with(&self, byte: u64, bit: u32, file: &str) -> TempDir {
        let copy = self.copy();
        flip(&copy.path().join(file), byte, bit);
        copy
    }

    /// How many published records were not delivered.
    ///
    /// # Panics
    /// When one was delivered that was not published, or twice.
    pub fn missing(&self, read: &Finished) -> usize {
        let mut left: Vec<Vec<Option<&str>>> = self
            .published
            .iter()
            .map(|values| values.iter().map(|value| Some(&value[..])).collect())
            .collect();
        for line in read.lines() {
            let record: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let number = |key: &str| record[key].as_u64().expect("a number") as usize;
            let (partition, offset) = (number("partition"), number("offset"));
            let published = left[partition][offset].take();
            assert_eq!(
                record["value"].as_str(),
                published,
                "{partition} at {offset}"
            );
        }
        left.iter().flatten().flatten().count()
    }
}

/// Changes one bit of a file.
pub fn flip(path: &Path, byte: u64, bit: u32) {
    let file = File::options().read(true).write(true).open(path);
    let file = file.expect("a file");
    let mut one = [0];
    file.read_exact_at(&mut one, byte).expect("a byte");
    file.write_all_at(&[one[0] ^ 1 << bit], byte)
        .expect("written");
}

/// The slots that a start would read of a directory whose broker was killed.
pub fn slots_of(path: &Path) -> Vec<Slot> {
    live_slots(&load(path))
}

/// Writes a file without the blocks of it that are zeros.
fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let file = File::create(path).expect("a file");
    file.set_len(bytes.len() as u64).expect("a length");
    let zeros = [0; BLOCK_BYTES];
    for (block, at) in bytes.chunks(BLOCK_BYTES).zip((0..).step_by(BLOCK_BYTES)) {
        if block != &zeros[..block.len()] {
            file.write_all_at(block, at).expect("written");
        }
    }
}

fn load(path: &Path) -> Vec<(String, Vec<u8>)> {
    let name = |file: &PathBuf| {
        let name = file.strip_prefix(path).expect("below");
        name.to_str().expect("a path of text").to_owned()
    };
    let paths = paths_below(path).into_iter();
    paths
        .map(|path| (name(&path), fs::read(&path).expect("a file")))
        .collect()
}

/// All files of a folder, with their lengths and when each was changed last.
pub fn stamps(folder: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let stamp = |path: PathBuf| {
        let of = path.metadata().expect("a file");
        (path, of.len(), of.modified().expect("a time"))
    };
    paths_below(folder).into_iter().map(stamp).collect()
}

/// All files of a folder, by name.
fn paths_below(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_none_or(|e| e != "tmp") {
                // A slot that is being made may be renamed meanwhile.
                out.push(path);
            }
        }
    }
    out.sort();
    out
}

/// The slots of the last start, with their frames.
fn live_slots(files: &[(String, Vec<u8>)]) -> Vec<Slot> {
    let slots = files.iter().filter(|(name, _)| name.starts_with("wal/"));
    let headed = slots.filter_map(|(name, bytes)| {
        let header = SlotHeader::decode(&bytes[..BLOCK_BYTES]).ok()?;
        Some((name, bytes, header))
    });
    let headed: Vec<_> = headed.collect();
    let newest = headed.iter().map(|(.., header)| header.incarnation).max();
    let live = headed
        .iter()
        .filter(|(.., header)| Some(header.incarnation) == newest);
    live.map(|(name, bytes, header)| Slot {
        file: (*name).clone(),
        frames: frames(bytes, header),
    })
    .collect()
}

fn frames(slot: &[u8], of: &SlotHeader) -> Vec<Frame> {
    let mut out = Vec::new();
    let mut position = BLOCK_BYTES;
    while let Some((header, _)) = slot
        .get(position..)
        .and_then(|b| FrameHeader::decode(b).ok())
    {
        if (header.incarnation, header.generation) != (of.incarnation, of.generation) {
            break;
        }
        let mut at = position + FRAME_HEADER_BYTES;
        let mut entries = Vec::new();
        for _ in 0..header.entry_count {
            let Ok((entry, _)) = EntryHeader::decode(&slot[at..], header.incarnation) else {
                break;
            };
            entries.push(Entry {
                position: at as u64,
                header: entry,
            });
            at += entry.disk_bytes().max(ENTRY_HEADER_BYTES);
        }
        out.push(Frame {
            position: position as u64,
            header,
            entries,
        });
        position += header.disk_bytes();
    }
    out
}
