//! `ringtide repair`: mends what is derived or proven, and nothing else.

use std::fs;
use std::path::Path;

use ringtide_system_tests::{Broker, Cli, Finished, Setup, exit};

use crate::directory::{after_a_kill, after_a_stop, stamps};

/// In a record batch, in bytes.
const BASE_OFFSET_AT: u64 = 0;
const LEADER_EPOCH_AT: u64 = 12;

fn repair(dir: &Path) -> Finished {
    let dir = dir.to_str().expect("a path of text");
    Cli::without_server().run(&["repair", "--data-dir", dir])
}

fn start(dir: &Path) -> Broker {
    Setup::new().shards(2).data_dir(dir).start()
}

#[test]
fn a_sound_directory_is_left_as_it_is() {
    for directory in [after_a_stop(), after_a_kill()] {
        let copy = directory.copy();
        let before = stamps(copy.path());
        repair(copy.path()).ok();
        assert!(stamps(copy.path()) == before);
    }
}

#[test]
fn a_running_broker_is_named() {
    let broker = Broker::start();
    let refused = repair(broker.data_dir()).failed();
    assert_eq!(refused.code(), exit::DIRECTORY_LOCKED, "{refused:?}");
    assert!(refused.stderr.contains("running"), "{}", refused.stderr);
}

#[test]
fn a_damaged_index_is_removed_and_built_anew() {
    let directory = after_a_stop();
    let (name, bytes) = directory.files("partitions/", ".index")[0];
    let copy = directory.copy_with(bytes.len() as u64 / 2, 0, name);
    let mended = repair(copy.path()).ok();
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
        // The base offset is negative with the first of its bits flipped.
        for (byte, bit) in [
            (BASE_OFFSET_AT, 7),
            (BASE_OFFSET_AT + 3, 1),
            (LEADER_EPOCH_AT + 3, 1),
        ] {
            let copy = directory.copy_with(position + byte, bit, &segment.file);
            repair(copy.path()).ok();
            let path = copy.path().join(&segment.file);
            let (_, was) = directory.files("", &segment.file)[0];
            assert!(fs::read(path).expect("a file") == was);
        }
    }
}

#[test]
fn damage_is_left_as_it_is_with_advice() {
    let stop = after_a_stop();
    let segment = stop.sealed_segment();
    let (position, bytes) = segment.batches[segment.batches.len() / 2];
    let (snapshot, contents) = stop.files("groups/", ".snapshot")[0];
    for copy in [
        stop.copy_with(position + bytes / 2, 3, &segment.file),
        stop.copy_with(contents.len() as u64 - 1, 0, snapshot),
    ] {
        let before = stamps(copy.path());
        let told = repair(copy.path()).failed();
        assert_eq!(told.code(), exit::PROBLEMS_FOUND, "{told:?}");
        assert!(told.stderr.contains("restore"), "{told:?}");
        assert!(stamps(copy.path()) == before, "nothing is changed");
    }
}
