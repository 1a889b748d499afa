//! `ringtide repair`: mends indexes, says what a cut would lose, and cuts only when it is told to.

use std::fs;
use std::path::Path;

use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::wal::FRAME_HEADER_BYTES;
use ringtide_system_tests::{Broker, Cli, Finished, Setup, exit, single};
use tempfile::TempDir;

use crate::directory::{Directory, after_a_kill, after_a_stop, stamps};

/// In a record batch, in bytes.
const BASE_OFFSET_AT: u64 = 0;
const LEADER_EPOCH_AT: u64 = 12;

fn repair(dir: &Path, flags: &[&str]) -> Finished {
    let dir = dir.to_str().expect("a path of text");
    Cli::without_server().run(&[&["repair", "--data-dir", dir], flags].concat())
}

fn verified(dir: &Path) -> Finished {
    let dir = dir.to_str().expect("a path of text");
    Cli::without_server().run(&["verify", "--data-dir", dir])
}

fn start(dir: &Path) -> Broker {
    Setup::new().shards(2).data_dir(dir).start()
}

/// What was kept of a cut: paths below the directory for it.
fn kept(dir: &Path) -> Vec<String> {
    let paths = stamps(dir).into_iter().map(|(path, ..)| path);
    let kept = paths.filter(|path| path.to_string_lossy().contains("/repaired-"));
    kept.map(|path| path.to_string_lossy().into_owned())
        .collect()
}

/// A copy with a damaged batch in the middle of a sealed segment, the partition, and the batch's first offset.
fn damaged_segment(of: &Directory) -> (TempDir, u32, u64) {
    let segment = of.sealed_segment();
    let middle = segment.batches.len() / 2;
    let (position, bytes) = segment.batches[middle];
    let copy = of.copy_with(position + bytes / 2, 3, &segment.file);
    // Eight records to a batch.
    (
        copy,
        segment.partition,
        segment.base_offset + 8 * middle as u64,
    )
}

#[test]
fn a_sound_directory_is_left_as_it_is() {
    for directory in [after_a_stop(), after_a_kill()] {
        let copy = directory.copy();
        let before = stamps(copy.path());
        repair(copy.path(), &["--truncate", "--yes"]).ok();
        assert!(stamps(copy.path()) == before);
    }
}

#[test]
fn a_running_broker_is_named() {
    let broker = Broker::start();
    let refused = repair(broker.data_dir(), &[]).failed();
    assert_eq!(refused.code(), exit::DIRECTORY_LOCKED, "{refused:?}");
    assert!(refused.stderr.contains("running"), "{}", refused.stderr);
}

#[test]
fn a_damaged_index_is_removed_and_built_anew() {
    let directory = after_a_stop();
    let (name, bytes) = directory.files("partitions/", ".index")[0];
    let copy = directory.copy_with(bytes.len() as u64 / 2, 0, name);
    let mended = repair(copy.path(), &[]).ok();
    assert!(mended.text().contains(name), "{mended:?}");
    assert!(!copy.path().join(name).exists());
    let log = fs::read_to_string(copy.path().join("repair.log")).expect("a log of repairs");
    assert!(log.contains(name), "{log}");

    let broker = start(copy.path());
    let read = broker.cli().run(&["consume", "t", "--output", "json"]).ok();
    assert_eq!(directory.missing(&read), 0);
}

#[test]
fn an_offset_or_epoch_that_the_segments_checksum_proves_is_written_as_it_was() {
    let stop = after_a_stop();
    let (sealed, open) = (stop.sealed_segment(), stop.open_segment());
    for (directory, segment) in [
        (stop, sealed),
        (stop, open),
        (after_a_kill(), after_a_kill().sealed_segment()),
    ] {
        let (position, _) = segment.batches[1];
        for field in [BASE_OFFSET_AT, LEADER_EPOCH_AT] {
            let copy = directory.copy_with(position + field + 3, 1, &segment.file);
            repair(copy.path(), &[]).ok();
            let path = copy.path().join(&segment.file);
            let (_, was) = directory.files("", &segment.file)[0];
            assert!(fs::read(path).expect("a file") == was);
        }
    }
}

#[test]
fn without_truncate_nothing_is_cut_and_what_would_be_lost_is_said() {
    let (copy, partition, first_lost) = damaged_segment(after_a_stop());
    let before = stamps(copy.path());
    let told = repair(copy.path(), &[]).failed();
    assert_eq!(told.code(), exit::PROBLEMS_FOUND, "{told:?}");
    let last = after_a_stop().published(partition).len() - 1;
    let words = [
        format!("t/{partition}"),
        format!("offsets {first_lost} to {last}"),
    ];
    assert!(
        words.iter().all(|word| told.text().contains(word)),
        "{words:?}: {told:?}"
    );
    assert!(told.stderr.contains("--truncate"), "{told:?}");
    assert!(stamps(copy.path()) == before, "nothing is changed");

    // Nobody can be asked.
    let refused = repair(copy.path(), &["--truncate"]).failed();
    assert_eq!(refused.code(), exit::USAGE, "{refused:?}");
    assert!(refused.stderr.contains("--yes"), "{refused:?}");
    assert!(stamps(copy.path()) == before, "nothing is changed");
}

#[test]
fn a_damaged_partition_is_cut_at_its_first_damaged_batch() {
    for directory in [after_a_stop(), after_a_kill()] {
        let (copy, partition, first_lost) = damaged_segment(directory);
        repair(copy.path(), &["--truncate", "--yes"]).ok();
        verified(copy.path()).ok();
        assert!(!kept(copy.path()).is_empty(), "what is cut is kept");
        let log = fs::read_to_string(copy.path().join("repair.log")).expect("a log of repairs");
        assert!(log.contains(&format!("t/{partition}")), "{log}");

        let mut broker = start(copy.path());
        let read = broker.cli().run(&["consume", "t", "--output", "json"]).ok();
        let lost = directory.published(partition).len() as u64 - first_lost;
        assert_eq!(directory.missing(&read) as u64, lost);
        goes_on_at(&broker, partition, first_lost);
        broker.kill();
        broker.restart();
        let read = broker
            .cli()
            .run(&["consume", "t", "--partition", &partition.to_string()])
            .ok();
        assert_eq!(read.lines().len() as u64, first_lost + 1);
    }
}

/// The next record has the first lost offset; what lies behind is out of range, and nobody has read it.
fn goes_on_at(broker: &Broker, partition: u32, offset: u64) {
    let topic = broker.peer().topic("t").expect("a topic");
    let mut owner = broker.peer_at(topic.shard(partition));
    let id = topic.partition(partition);
    let beyond = owner.fetch(id, offset + 1).expect_err("lost");
    assert_eq!(beyond.code(), ErrorCode::OffsetOutOfRange);
    let published = owner
        .publish(id, single("after"))
        .expect("an acknowledgement");
    assert_eq!(published.base_offset, offset);
    assert!(
        published.leader_epoch > 1,
        "offsets that are given again have a new epoch"
    );
}

#[test]
fn a_damaged_log_is_cut_at_its_first_damaged_frame() {
    let directory = after_a_kill();
    for slot in directory.live_slots() {
        for number in [0, slot.frames.len() / 2] {
            let frame = &slot.frames[number];
            let within_entries = frame.position + FRAME_HEADER_BYTES as u64 + 100;
            let copy = directory.copy_with(within_entries, 1, &slot.file);
            let told = repair(copy.path(), &[]).failed();
            assert_eq!(told.code(), exit::PROBLEMS_FOUND, "{told:?}");
            repair(copy.path(), &["--truncate", "--yes"]).ok();
            verified(copy.path()).ok();
            let name = &slot.file;
            assert!(kept(copy.path()).iter().any(|path| path.ends_with(name)));

            let broker = start(copy.path());
            let read = broker.cli().run(&["consume", "t", "--output", "json"]).ok();
            let lost: u64 = slot.frames[number..]
                .iter()
                .flat_map(|frame| &frame.entries)
                .map(|entry| u64::from(entry.records))
                .sum();
            assert!(lost > 0);
            assert_eq!(
                directory.missing(&read) as u64,
                lost,
                "frame {number}: {told:?}"
            );
        }
    }
}

#[test]
fn a_consumer_that_was_further_goes_on_where_the_partition_ends() {
    let directory = after_a_kill();
    let (copy, partition, first_lost) = damaged_segment(directory);
    let whole = directory.copy();
    let before = start(whole.path());
    let committed = |broker: &Broker| {
        let topic = broker.peer().topic("t").expect("a topic");
        let mut owner = broker.peer_at(topic.shard(partition));
        owner
            .read_offset("far", topic.partition(partition))
            .expect("an offset")
    };
    assert!(committed(&before) > first_lost as i64);
    repair(copy.path(), &["--truncate", "--yes"]).ok();
    assert_eq!(committed(&start(copy.path())), first_lost as i64);
}

#[test]
fn what_was_kept_can_be_inspected_and_a_second_repair_finds_nothing_to_do() {
    let (copy, _, first_lost) = damaged_segment(after_a_stop());
    repair(copy.path(), &["--truncate", "--yes"]).ok();
    let name = format!("{first_lost:020}.log");
    let kept = kept(copy.path());
    let cut = kept.iter().find(|path| path.ends_with(&name));
    let cut = cut.unwrap_or_else(|| panic!("no {name} among {kept:?}"));
    let shown = Cli::without_server()
        .run(&["inspect", "segment", cut])
        .failed();
    let damage = format!("{shown:?}");
    assert!(shown.text().starts_with("BAD at byte 0"), "{damage}");
    assert!(shown.text().contains("a whole batch follows"), "{damage}");

    let before = stamps(copy.path());
    repair(copy.path(), &["--truncate", "--yes"]).ok();
    assert!(stamps(copy.path()) == before);
    let dir = copy.path().to_str().expect("a path of text");
    let doctor = Cli::without_server().run(&["doctor", "--data-dir", dir]);
    assert_ne!(doctor.code(), exit::DIRECTORY_UNUSABLE, "{doctor:?}");
}

#[test]
fn what_no_cut_mends_is_left_with_advice() {
    let directory = after_a_stop();
    let (name, bytes) = directory.files("groups/", ".snapshot")[0];
    let copy = directory.copy_with(bytes.len() as u64 - 1, 0, name);
    let before = stamps(copy.path());
    let told = repair(copy.path(), &["--truncate", "--yes"]).failed();
    assert_eq!(told.code(), exit::PROBLEMS_FOUND, "{told:?}");
    assert!(told.stderr.contains("restore"), "{told:?}");
    assert!(stamps(copy.path()) == before, "nothing is changed");
}
