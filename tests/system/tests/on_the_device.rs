//! At the moment of an acknowledgement the batch is on the device: not in the broker, not in the page cache, not
//! under way. A disk that records what it is told says what is on its medium right then, its cache left out. And another
//! process reads the blocks of the log with direct I/O, from the files, and from the block device that they lie on:
//! reading files could make the kernel write first what it still holds.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_system_tests::{
    Broker, MountedDisk, Random, RecordedDisk, Setup, Topic, data_root, extents, single, skip, wait,
};

/// The log of the broker under test: three slots of one shard.
const SLOTS: usize = 3;
const SLOT_BYTES: u64 = 4 << 20;
/// Publishes that wait for their acknowledgement at the same time.
const IN_FLIGHT: usize = 6;
/// Of them, in all, while others are under way.
const PUBLISHES: usize = 100;
/// Of them one after the other, each looked for by another process.
const ROUNDS: usize = 8;
const DURABLE: u8 = 2;
const ACCEPTED: u8 = 1;
/// What of a batch the broker does not assign begins here, and in the log a batch begins at a multiple of 8.
const UNCHANGED: usize = 16;

/// Bytes of a file or a device.
struct Extent {
    position: u64,
    bytes: u64,
}

impl Extent {
    /// Read by another process, past the page cache.
    fn read(&self, path: &Path) -> Vec<u8> {
        let output = Command::new("dd")
            .arg(format!("if={}", path.display()))
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

/// Where the slots are on the device. They never move: a slot is written whole before it has its name.
fn on_device(slots: &[PathBuf]) -> Result<Vec<Extent>, String> {
    let mut found = Vec::new();
    for slot in slots {
        found.extend(extents(slot)?.into_iter().map(|range| Extent {
            position: range.start,
            bytes: range.end - range.start,
        }));
    }
    let bytes: u64 = found.iter().map(|extent| extent.bytes).sum();
    if bytes == SLOTS as u64 * SLOT_BYTES {
        return Ok(found);
    }
    Err(format!("{bytes} bytes of the log were found on the device"))
}

/// Whether the log holds this batch.
fn holds(log: &[u8], batch: &[u8]) -> bool {
    const STEP: usize = 8;
    let wanted = &batch[UNCHANGED..];
    let begins_in = |first: usize, block: &[u8]| {
        (0..block.len())
            .step_by(STEP)
            .any(|at| block[at] == wanted[0] && log[first + at..].starts_with(wanted))
    };
    // Most of it was never written to.
    let blocks = log.chunks_exact(BLOCK_BYTES).enumerate();
    blocks
        .filter(|&(_, block)| *block != [0; BLOCK_BYTES])
        .any(|(number, block)| begins_in(number * BLOCK_BYTES, block))
}

fn batch(random: &mut Random) -> Vec<u8> {
    let bytes = match random.below(4) {
        0 => 100_000 + random.below(400_000),
        1 => 2000 + random.below(10_000),
        _ => 16 + random.below(300),
    };
    single(random.bytes(bytes as usize))
}

/// Publishes, and looks for each batch as soon as its acknowledgement is there. `log` gives the bytes of all slots as
/// they are on the device when it is called.
fn acknowledged_batches_are_there(broker: &Broker, topic: &Topic, log: impl Fn() -> Vec<u8>) {
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
            let log = log();
            let published = results[0].as_ref().expect("an acknowledgement");
            assert!(
                holds(&log, &batch),
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
fn a_batch_is_on_the_medium_when_it_is_acknowledged() {
    let name = "a_batch_is_on_the_medium_when_it_is_acknowledged";
    let mut random = Random::new(29);
    let disk = RecordedDisk::blank_ext4(40 << 20)
        .and_then(|image| RecordedDisk::mount(image, &mut random));
    let disk = match disk {
        Ok(disk) => disk,
        Err(reason) => return skip(name, &reason),
    };
    let (broker, topic) = start(&disk.path().join("data"));
    let extents = match on_device(&slots(broker.data_dir())) {
        Ok(extents) => extents,
        Err(reason) => return skip(name, &reason),
    };
    let log = |events| {
        let medium = disk.trace().medium(events);
        let of_extent = |e: &Extent| &medium[e.position as usize..][..e.bytes as usize];
        extents.iter().map(of_extent).collect::<Vec<_>>().concat()
    };

    // Always some under way, each noted with how much had happened to the disk when its answer was there.
    let mut peer = broker.peer();
    let mut under_way = VecDeque::new();
    let mut answered = Vec::new();
    for number in 0..PUBLISHES + IN_FLIGHT {
        if number >= IN_FLIGHT {
            let (correlation, batch) = under_way.pop_front().expect("a publish");
            let results = peer.published(correlation, 1).expect("an answer");
            let events = disk.trace().len();
            results[0].as_ref().expect("an acknowledgement");
            answered.push((events, batch));
        }
        if number < PUBLISHES {
            let batch = batch(&mut random);
            let parts = [(topic.partition(0), batch.clone())];
            under_way.push_back((peer.send_publish(DURABLE, &parts), batch));
        }
    }
    for (number, (events, batch)) in answered.iter().enumerate() {
        assert!(
            holds(&log(*events), batch),
            "batch {number} was acknowledged and was not on the medium"
        );
    }

    // The search can fail: what is only accepted is seldom there yet.
    wait::for_it("an accepted batch that is not on the medium yet", || {
        let batch = single(random.bytes(100));
        peer.publish_with(ACCEPTED, topic.partition(0), batch.clone())
            .expect("accepted");
        let events = disk.trace().len();
        !holds(&log(events), &batch)
    });
}

#[test]
fn another_process_reads_an_acknowledged_batch_from_the_block_device() {
    let name = "another_process_reads_an_acknowledged_batch_from_the_block_device";
    let disk = match MountedDisk::ext4(96 << 20) {
        Ok(disk) => disk,
        Err(reason) => return skip(name, &reason),
    };
    let device = disk.device();
    let (broker, topic) = start(&disk.path().join("data"));
    let extents = match on_device(&slots(broker.data_dir())) {
        Ok(extents) => extents,
        Err(reason) => return skip(name, &reason),
    };
    let read = |extent: &Extent| extent.read(&device);
    let log = || extents.iter().map(read).collect::<Vec<_>>().concat();
    acknowledged_batches_are_there(&broker, &topic, log);
}

#[test]
fn another_process_reads_an_acknowledged_batch_from_the_log_past_the_page_cache() {
    let dir = tempfile::tempdir_in(data_root()).expect("a directory");
    let (broker, topic) = start(&dir.path().join("data"));
    let slots = slots(broker.data_dir());
    let whole = Extent {
        position: 0,
        bytes: SLOT_BYTES,
    };
    let log = || {
        let read = |slot: &PathBuf| whole.read(slot);
        slots.iter().map(read).collect::<Vec<_>>().concat()
    };
    acknowledged_batches_are_there(&broker, &topic, log);
}
