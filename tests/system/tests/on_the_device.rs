//! At the moment of an acknowledgement the batch is on the device: not in the broker, not in the page cache, not
//! under way. Another process reads the blocks of the log right then, with direct I/O, from the block device that
//! the file system lies on: reading the files themselves could make the kernel write first what it still holds.

use std::path::{Path, PathBuf};
use std::process::Command;

use ringtide_system_tests::{
    Broker, MountedDisk, Random, Setup, Topic, data_root, single, skip, wait,
};

/// The log of the broker under test: three slots of one shard.
const SLOTS: usize = 3;
const SLOT_BYTES: u64 = 4 << 20;
/// Publishes that wait for their acknowledgement at the same time.
const IN_FLIGHT: usize = 6;
const ROUNDS: usize = 8;
const DURABLE: u8 = 2;
const ACCEPTED: u8 = 1;
/// What of a batch the broker does not assign begins here, and in the log a batch begins at a multiple of 8.
const UNCHANGED: usize = 16;

/// Bytes of a file or a device, at some position.
struct Extent {
    path: PathBuf,
    position: u64,
    bytes: u64,
}

impl Extent {
    /// Read by another process, past the page cache.
    fn read(&self) -> Vec<u8> {
        let output = Command::new("dd")
            .arg(format!("if={}", self.path.display()))
            .args([
                "bs=1M",
                "status=none",
                "iflag=direct,skip_bytes,count_bytes",
            ])
            .arg(format!("skip={}", self.position))
            .arg(format!("count={}", self.bytes))
            .output()
            .expect("dd runs");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout.len() as u64, self.bytes);
        output.stdout
    }
}

fn slots(data_dir: &Path) -> Vec<PathBuf> {
    wait::until("every slot of the log", || {
        let slots: Vec<PathBuf> = std::fs::read_dir(data_dir.join("wal"))
            .ok()?
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|e| e == "wal"))
            .collect();
        (slots.len() == SLOTS).then_some(slots)
    })
}

/// The slots as files.
fn as_files(slots: &[PathBuf]) -> Vec<Extent> {
    let whole = |path: &PathBuf| Extent {
        path: path.clone(),
        position: 0,
        bytes: SLOT_BYTES,
    };
    slots.iter().map(whole).collect()
}

/// Where the slots are on the device. They never move: a slot is written whole before it has its name.
fn on_device(slots: &[PathBuf], device: &Path) -> Result<Vec<Extent>, String> {
    const BLOCK: u64 = 4096;
    let mut extents = Vec::new();
    for slot in slots {
        let output = Command::new("filefrag")
            .args(["-v", "-b4096"])
            .arg(slot)
            .output()
            .map_err(|error| format!("filefrag cannot be run: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // "  0:        0..    1023:      34816..     35839:   1024:             last,eof"
        for line in text.lines() {
            let fields: Vec<&str> = line.split(':').map(str::trim).collect();
            let [number, _, physical, blocks, ..] = fields[..] else {
                continue;
            };
            let first = physical.split("..").next().unwrap_or_default().trim();
            if let (Ok(_), Ok(first), Ok(blocks)) = (
                number.parse::<u32>(),
                first.parse::<u64>(),
                blocks.parse::<u64>(),
            ) {
                extents.push(Extent {
                    path: device.into(),
                    position: first * BLOCK,
                    bytes: blocks * BLOCK,
                });
            }
        }
    }
    let bytes: u64 = extents.iter().map(|extent| extent.bytes).sum();
    if bytes == SLOTS as u64 * SLOT_BYTES {
        return Ok(extents);
    }
    Err(format!("{bytes} bytes of the log were found on the device"))
}

/// Whether these bytes lie in the extents. They may go on in the next.
fn is_there(extents: &[Extent], batch: &[u8]) -> bool {
    const STEP: usize = 8;
    let bytes = extents
        .iter()
        .map(Extent::read)
        .collect::<Vec<_>>()
        .concat();
    let wanted = &batch[UNCHANGED..];
    let (first, _) = wanted.split_at(STEP);
    // Few places begin like it; the rest is compared there only.
    let mut places = (0..).step_by(STEP).zip(bytes.chunks_exact(STEP));
    places.any(|(at, piece)| piece == first && bytes[at..].starts_with(wanted))
}

fn batch(random: &mut Random) -> Vec<u8> {
    let bytes = match random.below(4) {
        0 => 100_000 + random.below(400_000),
        1 => 2000 + random.below(10_000),
        _ => 16 + random.below(300),
    };
    single(random.bytes(bytes as usize))
}

/// Publishes, and looks for each batch as soon as its acknowledgement is there.
fn acknowledged_batches_are_there(broker: &Broker, topic: &Topic, extents: &[Extent]) {
    let mut random = Random::from_env(23);
    let mut peer = broker.peer();
    for round in 0..ROUNDS {
        let sent: Vec<(u64, Vec<u8>)> = (0..=round % IN_FLIGHT)
            .map(|_| {
                let batch = batch(&mut random);
                let parts = [(topic.partition(0), batch.clone())];
                (peer.send_publish(DURABLE, &parts), batch)
            })
            .collect();
        for (correlation, batch) in sent {
            let results = peer.published(correlation, 1).expect("an answer");
            let published = results[0].as_ref().expect("an acknowledgement");
            assert!(
                is_there(extents, &batch),
                "the batch at offset {} was acknowledged and is not on the device",
                published.base_offset
            );
        }
    }
}

fn start(data_dir: &Path) -> (Broker, Topic) {
    let slots = SLOTS.to_string();
    let broker = Setup::new()
        .args(&["--wal-slots", &slots])
        .data_dir(data_dir)
        .start();
    let topic = broker.peer().create_topic("looked-for", 1);
    (broker, topic)
}

#[test]
fn a_batch_is_in_the_log_on_the_device_when_it_is_acknowledged() {
    let name = "a_batch_is_in_the_log_on_the_device_when_it_is_acknowledged";
    let disk = match MountedDisk::ext4(96 << 20) {
        Ok(disk) => disk,
        Err(reason) => return skip(name, &reason),
    };
    let device = disk.device();
    let (broker, topic) = start(&disk.path().join("data"));
    let extents = match on_device(&slots(broker.data_dir()), &device) {
        Ok(extents) => extents,
        Err(reason) => return skip(name, &reason),
    };
    acknowledged_batches_are_there(&broker, &topic, &extents);

    // The search can fail: what is only accepted is answered before it is written, at least once in many times.
    let mut random = Random::new(29);
    let mut peer = broker.peer();
    wait::for_it("an accepted batch that is not on the device yet", || {
        let batch = batch(&mut random);
        peer.publish_with(ACCEPTED, topic.partition(0), batch.clone())
            .expect("accepted");
        !is_there(&extents, &batch)
    });
}

#[test]
fn another_process_reads_an_acknowledged_batch_from_the_log_past_the_page_cache() {
    let dir = tempfile::tempdir_in(data_root()).expect("a directory");
    let (broker, topic) = start(&dir.path().join("data"));
    let extents = as_files(&slots(broker.data_dir()));
    acknowledged_batches_are_there(&broker, &topic, &extents);
}
