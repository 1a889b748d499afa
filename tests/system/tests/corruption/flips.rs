//! One flipped bit, in every field of every structure on disk: `verify` names the file and the place, the
//! broker refuses or serves, and what is served is what was published.
//!
//! The fields and what each flip leads to are in `fields.rs`; docs/DURABILITY.md has the same as a table.
//! `RINGTIDE_SEED` chooses other bits of the same fields.

use ringtide_schema::batch::HEADER_BYTES;
use ringtide_schema::index;
use ringtide_schema::wal::{ENTRY_HEADER_BYTES, EntryKind, FRAME_HEADER_BYTES};
use ringtide_system_tests::{Cli, Random, Setup, exit};

use crate::directory::{self, Directory, after_a_kill, after_a_stop};
use crate::fields::{
    BATCH, ENTRY, FRAME, Field, IDENTITY, INDEX, INDEX_ENTRY, Means, SLOT, SNAPSHOT,
};

/// A place where a bit is flipped.
struct Flip {
    /// Below the data directory.
    file: String,
    what: String,
    byte: u64,
    bit: u32,
    /// What `verify` must say of where it is.
    told_at: Option<u64>,
    means: Means,
}

/// A flip in each of the fields of a structure that begins at `start`.
fn flips(
    random: &mut Random,
    file: &str,
    of: &str,
    start: u64,
    told_at: Option<u64>,
    fields: &[Field],
) -> Vec<Flip> {
    let flip = |field: &Field| Flip {
        file: file.to_owned(),
        what: format!("{of}: {}", field.name),
        byte: start + field.at + random.below(field.bytes),
        bit: random.below(8) as u32,
        told_at,
        means: field.means,
    };
    fields.iter().map(flip).collect()
}

/// A flip in the body of something.
fn body(random: &mut Random, at: std::ops::Range<u64>, means: Means) -> Vec<Field> {
    let middle = at.start + random.below(at.end - at.start);
    [
        ("first byte", at.start),
        ("within", middle),
        ("last byte", at.end - 1),
    ]
    .map(|(name, at)| Field {
        name,
        at,
        bytes: 1,
        means,
    })
    .into()
}

/// Makes each flip in a copy of its own.
fn each(directory: &Directory, flips: &[Flip]) {
    assert!(!flips.is_empty());
    for flip in flips {
        eprintln!(
            "{}: {}, bit {} of byte {}: {:?}",
            flip.file, flip.what, flip.bit, flip.byte, flip.means
        );
        check(directory, flip);
    }
}

fn check(directory: &Directory, flip: &Flip) {
    let copy = directory.copy_with(flip.byte, flip.bit, &flip.file);
    let path = copy.path().join(&flip.file);
    let path = path.to_str().expect("a path of text");
    let before = directory::stamps(copy.path());

    let data_dir = copy.path().to_str().expect("a path of text");
    let verified = Cli::without_server().run(&["verify", "--data-dir", data_dir]);
    let said = format!("{}{}", verified.text(), verified.stderr);
    let place = match flip.told_at {
        Some(at) => vec![path.to_owned(), format!("at byte {at}")],
        None => vec![path.to_owned()],
    };
    let says = |class: &str| {
        let of_class = |line: &&&str| line.starts_with(class);
        let lines = verified.lines();
        let found = lines
            .iter()
            .filter(of_class)
            .any(|line| place.iter().all(|word| line.contains(word)));
        assert!(found, "no {class} names {place:?}: {said}");
    };
    match flip.means {
        Means::Refused | Means::Unreadable | Means::Told => {
            assert_eq!(verified.code(), exit::PROBLEMS_FOUND, "{said}");
            says("PROBLEM");
        }
        Means::Mends => {
            assert_eq!(verified.code(), exit::DONE, "{said}");
            says("note");
        }
        Means::Nothing => {
            assert_eq!(verified.code(), exit::DONE, "{said}");
            assert!(!verified.text().contains("PROBLEM"), "{said}");
        }
    }

    let started = Setup::new().shards(2).data_dir(copy.path()).try_start();
    let mut broker = match (started, flip.means) {
        (Err(refusal), Means::Refused) => {
            refusal.says(&[path]);
            let codes = [exit::DIRECTORY_UNUSABLE, exit::DIRECTORY_CORRUPT].map(Some);
            assert!(codes.contains(&refusal.status.code()), "{refusal:?}");
            let advice = ["restore", "Restore"];
            assert!(
                advice.iter().any(|a| refusal.said.contains(a)),
                "{refusal:?}"
            );
            let after = directory::stamps(copy.path());
            assert!(before == after, "a start that is refused changes nothing");
            return;
        }
        (Err(refusal), _) => panic!("the broker refused: {refusal:?}"),
        (Ok(_), Means::Refused) => panic!("the broker started"),
        (Ok(broker), _) => broker,
    };
    let read = broker.cli().run(&["consume", "t", "--output", "json"]);
    let missing = directory.missing(&read);
    if matches!(flip.means, Means::Unreadable) {
        read.clone().failed();
        assert!(
            missing > 0,
            "what is damaged was delivered: {}",
            read.stderr
        );
        assert!(
            read.stderr.contains("t/"),
            "no partition is named: {}",
            read.stderr
        );
    } else {
        assert_eq!((read.code(), missing), (exit::DONE, 0), "{}", read.stderr);
    }
    broker.kill();
}

#[test]
fn a_flipped_bit_of_the_identity_is_refused() {
    let random = &mut Random::from_env(1);
    for directory in [after_a_stop(), after_a_kill()] {
        each(
            directory,
            &flips(random, "identity", "identity", 0, None, IDENTITY),
        );
    }
}

#[test]
fn a_flipped_bit_of_a_snapshot_is_refused() {
    let random = &mut Random::from_env(2);
    for directory in [after_a_stop(), after_a_kill()] {
        let snapshots = directory.files("groups/", ".snapshot");
        // All of one; a body of each, the metadata's among them.
        let (first, bytes) = snapshots[0];
        each(
            directory,
            &flips(random, first, "snapshot", 0, None, SNAPSHOT),
        );
        for (name, bytes) in snapshots {
            let header = ringtide_schema::snapshot::HEADER_BYTES as u64;
            let fields = body(random, header..bytes.len() as u64, Means::Refused);
            each(
                directory,
                &flips(random, name, "snapshot body", 0, None, &fields),
            );
        }
        assert!(!bytes.is_empty());
    }
}

#[test]
fn a_flipped_bit_of_a_slots_header_mends_itself() {
    let random = &mut Random::from_env(3);
    let directory = after_a_kill();
    for slot in directory.live_slots() {
        each(
            directory,
            &flips(random, &slot.file, "slot header", 0, None, SLOT),
        );
    }
}

#[test]
fn a_flipped_bit_of_a_frame_header_is_refused() {
    let random = &mut Random::from_env(4);
    let directory = after_a_kill();
    for slot in directory.live_slots() {
        let frame = &slot.frames[slot.frames.len() / 2];
        let at = Some(frame.position);
        each(
            directory,
            &flips(random, &slot.file, "frame", frame.position, at, FRAME),
        );
    }
}

#[test]
fn a_flipped_bit_of_any_frame_of_the_log_is_refused() {
    let random = &mut Random::from_env(5);
    let directory = after_a_kill();
    for slot in directory.live_slots() {
        let (closing, frames) = slot.frames.split_last().expect("frames");
        for frame in frames {
            let any = Field {
                name: "any of the header",
                at: 0,
                bytes: FRAME_HEADER_BYTES as u64,
                means: Means::Refused,
            };
            let at = Some(frame.position);
            each(
                directory,
                &flips(random, &slot.file, "frame", frame.position, at, &[any]),
            );
        }
        // It says nothing but that what is before it was committed.
        assert!(closing.entries.is_empty());
        let last = Field {
            name: "any of the header",
            at: 0,
            bytes: FRAME_HEADER_BYTES as u64,
            means: Means::Nothing,
        };
        each(
            directory,
            &flips(
                random,
                &slot.file,
                "closing frame",
                closing.position,
                None,
                &[last],
            ),
        );
    }
}

#[test]
fn a_flipped_bit_of_an_entry_is_refused() {
    let random = &mut Random::from_env(6);
    let directory = after_a_kill();
    let mut kinds = Vec::new();
    for slot in directory.live_slots() {
        let entries = slot
            .frames
            .iter()
            .flat_map(|f| f.entries.iter().map(move |e| (f, e)));
        for (frame, entry) in entries {
            let kind = entry.header.kind;
            if kinds.contains(&kind) {
                continue;
            }
            kinds.push(kind);
            let told = Some(frame.position);
            let name = format!("entry {kind:?}");
            if kind == EntryKind::Batch {
                each(
                    directory,
                    &flips(random, &slot.file, &name, entry.position, told, ENTRY),
                );
            }
            let header = ENTRY_HEADER_BYTES as u64;
            let payload = header..header + u64::from(entry.header.payload_bytes);
            let fields = body(random, payload, Means::Refused);
            each(
                directory,
                &flips(random, &slot.file, &name, entry.position, told, &fields),
            );
        }
    }
    for kind in [EntryKind::Batch, EntryKind::Meta, EntryKind::CommitOffset] {
        assert!(kinds.contains(&kind), "no {kind:?} in the log");
    }
}

#[test]
fn a_flipped_bit_of_a_stored_batch_is_never_served() {
    let random = &mut Random::from_env(7);
    let stop = after_a_stop();
    let (sealed, open) = (stop.sealed_segment(), stop.open_segment());
    for (directory, segment) in [
        (stop, sealed),
        (stop, open),
        (after_a_kill(), after_a_kill().sealed_segment()),
    ] {
        let batches = &segment.batches;
        let (start, bytes) = batches[batches.len() / 2];
        let of = if segment.is_sealed { "sealed" } else { "open" };
        each(
            directory,
            &flips(random, &segment.file, of, start, Some(start), BATCH),
        );
        let fields = body(random, HEADER_BYTES as u64..bytes, Means::Unreadable);
        each(
            directory,
            &flips(random, &segment.file, of, start, Some(start), &fields),
        );
    }
}

#[test]
fn a_flipped_bit_of_an_index_mends_itself() {
    let random = &mut Random::from_env(8);
    for directory in [after_a_stop(), after_a_kill()] {
        let (name, bytes) = directory.files("partitions/", ".index")[0];
        each(directory, &flips(random, name, "index", 0, None, INDEX));
        let (header, entry) = (index::HEADER_BYTES as u64, index::ENTRY_BYTES as u64);
        let last = bytes.len() as u64 - entry;
        assert!(last > header, "more than one entry");
        for start in [header, last] {
            each(
                directory,
                &flips(random, name, "index entry", start, None, INDEX_ENTRY),
            );
        }
    }
}
