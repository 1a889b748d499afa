//! How long a replay takes beside reading the log and writing the same bytes.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use common::Builder;
use ringtide_log::files::{self, AlignedBuf};
use ringtide_log::recovery::{RecoverOptions, recover};
use ringtide_schema::batch::{Codec, assign};
use ringtide_schema::ids::PartitionId;
use ringtide_schema::record::BatchBuilder;

const SLOT_BYTES: u64 = 64 << 20;
const SLOTS: usize = 16;
const PIECE: usize = 256 << 10;

/// Run alone: `cargo test --release -p ringtide-log --test replay_speed -- --ignored --nocapture`.
#[test]
#[ignore = "writes 3 GiB, and is only worth something in a release build on an idle machine"]
fn a_replay_takes_little_longer_than_reading_and_writing_its_bytes() {
    for (partitions, batch_bytes, frame_bytes) in [
        (8, 16 << 10, 1 << 20),
        (64, 100 << 10, 1 << 20),
        (1000, 4 << 10, 256 << 10),
    ] {
        measure(partitions, batch_bytes, frame_bytes);
    }
}

fn measure(partitions: u32, batch_bytes: usize, frame_bytes: usize) {
    let mut b = Builder::with_slots(64, 1, SLOT_BYTES);
    let topic = b.topic("t", partitions, 256 << 20);
    b.frame(0);
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push(1, None, Some(&vec![7; batch_bytes]), &[]);
    let mut batch = Vec::new();
    builder.finish(-1, -1, -1, &mut batch).expect("one record");
    let mut offsets = vec![0; partitions as usize];
    let (mut pending, mut batches, mut partition) = (0, 0_u64, 0);
    while b.logs[0].slots.len() <= SLOTS {
        let id = PartitionId { topic, partition };
        let offset = &mut offsets[partition as usize];
        assign(&mut batch, *offset, 1);
        *offset += 1;
        b.publish_batch(id, &batch);
        // What was published is not compared here.
        b.expected.clear();
        partition = (partition + 1) % partitions;
        batches += 1;
        pending += batch.len() + 80;
        if pending + batch.len() >= frame_bytes {
            b.frame(0);
            pending = 0;
        }
    }
    b.store();
    let slots: Vec<_> = (0..b.logs[0].slots.len())
        .map(|i| b.slot_path(0, i))
        .collect();
    b.logs[0].slots = Vec::new();
    for path in &slots {
        let file = files::open_read(path, false).expect("opened");
        file.sync_all().expect("synced");
    }

    let began = Instant::now();
    let mut buf = AlignedBuf::zeroed(2 << 20);
    let mut read = 0;
    for path in &slots {
        let file = files::open_read(path, true).expect("opened");
        for position in (0..SLOT_BYTES).step_by(buf.len()) {
            read += files::read_at(&file, path, &mut buf, position).expect("read");
        }
    }
    let reading = began.elapsed();

    let path = b.dir().join("written");
    let began = Instant::now();
    let file = files::open_write(&path, true, true).expect("opened");
    for position in (0..batches * batch.len() as u64).step_by(PIECE) {
        file.write_all_at(&buf[..PIECE], position).expect("written");
    }
    file.sync_data().expect("synced");
    let writing = began.elapsed();
    fs::remove_file(&path).expect("removed");

    let options = RecoverOptions {
        direct: true,
        slot_bytes: SLOT_BYTES,
        ..b.options()
    };
    let recovered = recover(b.dir(), options, &mut |_| {}).expect("nothing is wrong");
    let took = recovered.summary.duration;
    assert_eq!(
        recovered.summary.batches,
        batches - recovered.summary.log_ends.len() as u64 + 1
    );
    println!(
        "{partitions} partitions, batches of {} bytes: read {} MiB in {reading:?}, write {} MiB in \
         {writing:?}, replay in {took:?}: {:.2} of both",
        batch.len(),
        read >> 20,
        (batches * batch.len() as u64) >> 20,
        took.as_secs_f64() / (reading + writing).as_secs_f64()
    );
}

/// Run as above.
#[test]
#[ignore = "is only worth something in a release build on an idle machine"]
fn a_start_after_a_clean_stop_does_not_depend_on_the_log() {
    let mut b = Builder::with_slots(64, 1, SLOT_BYTES);
    let topic = b.topic("t", 1000, 256 << 20);
    b.frame(0);
    for partition in 0..1000 {
        b.publish(PartitionId { topic, partition }, 2000);
        b.frame(0);
    }
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    println!(
        "1000 partitions with one batch each: {:?}",
        recovered.summary.duration
    );
    b.store_clean(&recovered);
    let clean = b.recover().expect("nothing is wrong");
    assert!(clean.summary.was_clean);
    println!("the same after a clean stop: {:?}", clean.summary.duration);
}
