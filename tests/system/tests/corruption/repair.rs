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
fn segments_that_cannot_be_read_are_named_and_another_is_mended_and_keeps_its_index() {
    let stop = after_a_stop();
    let sealed = stop.sealed_segments();
    let [first, second, wrong, ..] = &sealed[..] else {
        panic!("{} sealed segments", sealed.len());
    };
    // The index has an entry for the first batch.
    let copy = stop.copy_with(BASE_OFFSET_AT, 7, &wrong.file);
    for unreadable in [first, second] {
        let path = copy.path().join(&unreadable.file);
        fs::remove_file(&path).expect("removed");
        fs::create_dir(&path).expect("what cannot be read");
    }
    let told = repair(copy.path()).failed();
    assert_eq!(told.code(), exit::DIRECTORY_UNUSABLE, "{told:?}");
    for unreadable in [first, second] {
        assert!(told.stderr.contains(&unreadable.file), "{told:?}");
    }
    let log = fs::read_to_string(copy.path().join("repair.log")).expect("a log of repairs");
    for text in [told.text(), &log] {
        let is_mended = |line: &str| line.contains("wrote") && line.contains(&wrong.file);
        assert!(text.lines().any(is_mended), "{text}");
    }
    let index = wrong.file.replace(".log", ".index");
    for file in [&wrong.file, &index] {
        let (_, was) = stop.files("", file)[0];
        assert!(fs::read(copy.path().join(file)).expect("a file") == was);
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
