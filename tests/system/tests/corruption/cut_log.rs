//! `ringtide repair --cut-log`: gives up what lies behind the damage of a log, when it is told to and not before.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;

use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::ids::PartitionId;
use ringtide_schema::wal::{ENTRY_HEADER_BYTES, EntryKind};
use ringtide_system_tests::{
    Broker, Cli, Fault, Finished, MountedDisk, Peer, data_root, exit, skip, wait,
};
use tempfile::TempDir;

use crate::directory::{flip, slots_of, stamps};

const PUBLISHED: u64 = 20;
/// The record in whose entry a bit flips.
const DAMAGED: u64 = 12;

/// A broker with records, each in a frame of its own.
fn published() -> (Broker, PartitionId) {
    let broker = Broker::start();
    let mut peer = broker.peer();
    let partition = peer.create_topic("t", 1).partition(0);
    for n in 0..PUBLISHED {
        assert_eq!(peer.put(partition, format!("record {n}")), n);
        let consumer = if n < DAMAGED { "near" } else { "far" };
        if n + 1 == DAMAGED || n + 1 == PUBLISHED {
            let stored = peer.commit_offset(consumer, partition, n);
            stored.expect("a stored offset");
        }
    }
    (broker, partition)
}

/// Kills the broker and flips a bit of its log; gives the slot's name.
fn killed_and_damaged(broker: &mut Broker) -> String {
    broker.kill();
    let slots = slots_of(broker.data_dir());
    let [slot] = &slots[..] else {
        panic!("more than one slot")
    };
    let mut entries = slot.frames.iter().flat_map(|frame| &frame.entries);
    let damaged = entries
        .find(|entry| (entry.header.kind, entry.header.base_offset) == (EntryKind::Batch, DAMAGED));
    let at = damaged.expect("in the log").position + ENTRY_HEADER_BYTES as u64;
    flip(&broker.data_dir().join(&slot.file), at + 20, 3);
    slot.file.clone()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

fn cut_log(dir: &Path, more: &[&str]) -> Finished {
    let args = [&["repair", "--cut-log", "--data-dir", text(dir)], more].concat();
    Cli::without_server().run(&args)
}

/// A place for what is kept, not there yet.
fn place() -> (TempDir, PathBuf) {
    let home = TempDir::with_prefix_in("kept-", data_root()).expect("a folder");
    let path = home.path().join("kept");
    (home, path)
}

/// `consume --follow` whose words can be read while it runs.
struct Follower {
    child: Child,
    said: PathBuf,
    printed: PathBuf,
    _home: TempDir,
}

impl Follower {
    fn start(broker: &Broker) -> Self {
        let home = TempDir::with_prefix_in("follower-", data_root()).expect("a folder");
        let [said, printed] = ["said", "printed"].map(|name| home.path().join(name));
        let args = [
            "consume", "t", "--follow", "--from", "earliest", "--output", "json",
        ];
        let mut command = broker.cli().command(&args);
        command
            .stderr(File::create(&said).expect("a file"))
            .stdout(File::create(&printed).expect("a file"));
        Self {
            child: command.spawn().expect("the binary starts"),
            said,
            printed,
            _home: home,
        }
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.printed).expect("a file");
        text.lines().map(str::to_owned).collect()
    }

    fn was_told(&self, words: &str) -> bool {
        let said = fs::read_to_string(&self.said).expect("a file");
        said.contains(words)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn values(peer: &mut Peer, partition: PartitionId, end: u64) -> Vec<String> {
    let records = peer.fetch_to(partition, 0, end);
    records
        .iter()
        .map(|record| record.text().to_owned())
        .collect()
}

#[test]
fn a_log_that_is_cut_is_served_up_to_its_damage_and_readers_of_more_are_told() {
    let (mut broker, partition) = published();
    let follower = Follower::start(&broker);
    wait::for_it("all records at the consumer", || {
        follower.lines().len() as u64 == PUBLISHED
    });
    let slot = killed_and_damaged(&mut broker);
    let dir = broker.data_dir().to_owned();
    let (_home, kept) = place();
    let refusal = broker.restart_refused();
    refusal.says(&[slot.as_str()]);
    assert_eq!(refusal.status.code(), Some(exit::DIRECTORY_CORRUPT));

    // Without a word that confirms it nothing is changed.
    let before = stamps(&dir);
    let planned = cut_log(&dir, &["--keep", text(&kept)]).failed();
    assert_eq!(planned.code(), exit::DIRECTORY_CORRUPT, "{planned:?}");
    for words in [
        "t/0: 7 records, offsets 13 to 19",
        &slot,
        "committed by far",
    ] {
        assert!(planned.text().contains(words), "{words}: {planned:?}");
    }
    assert!(stamps(&dir) == before && !kept.exists());

    let cut = cut_log(&dir, &["--keep", text(&kept), "--yes"]).ok();
    assert!(cut.text().contains("its next one is 12"), "{cut:?}");
    let was = fs::read(kept.join(&slot)).expect("a slot");
    assert_ne!(was, fs::read(dir.join(&slot)).expect("a slot"));
    let log = fs::read_to_string(dir.join("repair.log")).expect("a log of repairs");
    assert!(log.contains(text(&kept)) && log.contains(&slot), "{log}");
    let verified = Cli::without_server().run(&["verify", "--data-dir", text(&dir)]);
    let said = verified.ok().text().to_owned();
    assert!(said.contains("was cut on"), "{said}");
    assert!(!said.contains("nothing that was acknowledged"), "{said}");
    let again = cut_log(&dir, &["--keep", text(&kept.join("more")), "--yes"]).ok();
    assert!(again.text().contains("nothing to cut"), "{again:?}");

    broker.restart();
    let mut peer = broker.peer();
    let expected: Vec<String> = (0..DAMAGED).map(|n| format!("record {n}")).collect();
    assert_eq!(values(&mut peer, partition, DAMAGED), expected);
    match peer.fetch(partition, PUBLISHED) {
        Err(Fault::Refused(refused)) => {
            assert_eq!(refused.code, ErrorCode::OffsetOutOfRange);
            assert_eq!((refused.earliest, refused.latest), (0, DAMAGED as i64));
        }
        other => panic!("an offset past the end was served: {other:?}"),
    }
    for (consumer, offset) in [("near", 11), ("far", -1)] {
        assert_eq!(peer.read_offset(consumer, partition), Ok(offset));
    }
    wait::for_it("word to the consumer that had read more", || {
        follower.was_told("offset 20 is past the end; going on at 12")
    });
    assert_eq!(peer.put(partition, "new"), DAMAGED);
    wait::for_it("the new record at the consumer", || {
        follower.lines().len() as u64 == PUBLISHED + 1
    });
    let last = follower.lines().pop().expect("a line");
    assert!(
        last.contains(r#""offset":12"#) && last.contains("new"),
        "{last}"
    );
    let epochs: Vec<i32> = peer
        .fetch_to(partition, 0, DAMAGED + 1)
        .iter()
        .map(|record| record.leader_epoch)
        .collect();
    assert!(
        epochs[..12].iter().all(|&epoch| epoch < epochs[12]),
        "{epochs:?}"
    );
}

#[test]
fn a_cut_that_was_interrupted_is_said_to_be_made_with_what_it_kept_and_its_ends() {
    let (mut broker, _) = published();
    killed_and_damaged(&mut broker);
    let dir = broker.data_dir().to_owned();
    let (_home, kept) = place();
    cut_log(&dir, &["--keep", text(&kept), "--yes"]).ok();
    // As if it had been killed before it could say so.
    let log = fs::read_to_string(dir.join("repair.log")).expect("a log of repairs");
    let begun = log.lines().next().expect("a line");
    fs::write(dir.join("repair.log"), format!("{begun}\n")).expect("written");
    let (_other, more) = place();
    let args = ["--keep", text(&more), "--yes"];
    let finished = cut_log(&dir, &args).ok();
    for words in ["is made", text(&kept), "its next one is 12"] {
        assert!(finished.text().contains(words), "{words}: {finished:?}");
    }
    assert!(!more.exists());
    let again = cut_log(&dir, &args).ok();
    assert!(again.text().starts_with("nothing to cut"), "{again:?}");
}

#[test]
fn a_place_to_keep_what_is_cut_must_be_named_be_empty_and_lie_outside() {
    let (mut broker, _) = published();
    killed_and_damaged(&mut broker);
    let dir = broker.data_dir();
    let before = stamps(dir);
    let (home, kept) = place();
    fs::create_dir(&kept).expect("made");
    fs::write(kept.join("file"), "").expect("written");
    let inside = dir.join("kept");
    let file = kept.join("file");
    let through = home.path().join("link");
    std::os::unix::fs::symlink(dir, &through).expect("made");
    for (place, words) in [
        (&kept, "not empty"),
        (&inside, "in the data directory"),
        (&through.join("kept"), "in the data directory"),
        (&file, "not a directory"),
        (&home.path().join("absent/../kept-too"), "without `..`"),
    ] {
        let refused = cut_log(dir, &["--yes", "--keep", text(place)]).failed();
        assert_eq!(refused.code(), exit::USAGE, "{refused:?}");
        assert!(refused.stderr.contains(words), "{words}: {refused:?}");
    }
    let unnamed = cut_log(dir, &["--yes"]).failed();
    assert_eq!(unnamed.code(), exit::USAGE, "{unnamed:?}");
    assert!(unnamed.stderr.contains("--keep"), "{unnamed:?}");
    assert!(stamps(dir) == before);
}

#[test]
fn a_log_in_use_or_without_damage_is_not_cut() {
    let (mut broker, _) = published();
    let dir = broker.data_dir().to_owned();
    let (_home, kept) = place();
    let args = ["--yes", "--keep", text(&kept)];
    let refused = cut_log(&dir, &args).failed();
    assert_eq!(refused.code(), exit::DIRECTORY_LOCKED, "{refused:?}");
    broker.kill();
    let before = stamps(&dir);
    let told = cut_log(&dir, &args).ok();
    assert!(told.text().contains("nothing to cut"), "{told:?}");
    assert_eq!(stamps(&dir).len(), before.len());
    let identity = dir.join("identity");
    flip(&identity, 20, 0);
    for begun in [
        "",
        "now cutting the write-ahead log: here; what it takes is in there\n",
    ] {
        fs::write(dir.join("repair.log"), begun).expect("written");
        let refused = cut_log(&dir, &args).failed();
        assert_eq!(refused.code(), exit::DIRECTORY_CORRUPT, "{refused:?}");
        assert!(
            refused.stderr.contains("no cut of the log mends"),
            "{refused:?}"
        );
        let said = refused.stderr.contains("A cut was begun on now")
            && refused.stderr.contains("what it takes is in there");
        assert_eq!(said, !begun.is_empty(), "{refused:?}");
    }
    assert!(!kept.exists());
}

#[test]
fn copies_that_find_no_space_are_not_begun() {
    let disk = match MountedDisk::ext4(4 << 20) {
        Ok(disk) => disk,
        Err(why) => return skip("copies_that_find_no_space_are_not_begun", &why),
    };
    let mut fill = File::create(disk.path().join("fill")).expect("a file");
    while disk.free_bytes() > 64 << 10 {
        let written = fill
            .write_all(&[1; 16 << 10])
            .and_then(|()| fill.sync_all());
        written.expect("there is space");
    }
    let (mut broker, _) = published();
    killed_and_damaged(&mut broker);
    let dir = broker.data_dir();
    let before = stamps(dir);
    let kept = disk.path().join("kept");
    let refused = cut_log(dir, &["--yes", "--keep", text(&kept)]).failed();
    assert_eq!(refused.code(), exit::FAILED, "{refused:?}");
    assert!(refused.stderr.contains("are free in"), "{refused:?}");
    assert!(stamps(dir) == before && !kept.exists());
}
