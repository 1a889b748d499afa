//! Files: what was written is read back, failures are typed.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ringtide_io::{DiskErrorKind, DiskOp, Fatal, FatalReason, FileId, OpId, OpenMode};
use ringtide_schema::index::{self, IndexEntry, IndexView};
use ringtide_uring::IdlePolicy;

use crate::remote::{Done, Event, PATIENCE, Shard};

/// Not on a memory file system, which may know no direct I/O.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory")
}

#[test]
fn a_segment_is_written_synced_sealed_and_read() {
    let directory = directory();
    let path = directory.path().join("topic/partition/0.log");
    let index_path = directory.path().join("topic/partition/0.index");
    let mut shard = Shard::start(|_| {});
    assert_eq!(
        shard
            .open(1, &path, OpenMode::Append { keep_bytes: 0 })
            .expect("open"),
        0
    );
    for (i, fill) in [1u8, 2, 3].into_iter().enumerate() {
        let written = shard.disk(move |cx| DiskOp::Write {
            file: FileId(1),
            position: i as u64 * 8192,
            data: cx.slice(&[fill; 8192]),
        });
        written.expect("write");
    }
    shard
        .disk(|_| DiskOp::Sync { file: FileId(1) })
        .expect("sync");
    let sealed_index = index_path.clone();
    let first = IndexEntry {
        relative_offset: 0,
        position: 0,
        timestamp_ms: 0,
        max_timestamp_before_ms: i64::MIN,
    };
    let index = index::encode(0, 20_000, &[first]);
    let sealed = shard.disk(move |_| DiskOp::Seal {
        file: FileId(1),
        bytes: 20_000,
        index_path: sealed_index,
        index,
    });
    sealed.expect("seal");
    shard.command(|cx| {
        cx.fx
            .disk
            .push((OpId(0), DiskOp::Close { file: FileId(1) }))
    });
    assert_eq!(shard.open(2, &path, OpenMode::Read).expect("open"), 20_000);
    let read = shard.disk(|cx| DiskOp::Read {
        file: FileId(2),
        position: 16_000,
        bytes: 10_000,
        into: cx.chunk(),
    });
    let Ok(Done::Read(bytes)) = read else {
        panic!("{read:?}")
    };
    assert_eq!(bytes.len(), 4000, "fewer at the end of the file");
    assert!(bytes[..384].iter().all(|&b| b == 2) && bytes[384..].iter().all(|&b| b == 3));
    let (log_path, sealed_index) = (path.clone(), index_path);
    let index = shard.disk(move |_| DiskOp::LoadIndex {
        index_path: sealed_index,
        log_path,
        base_offset: 0,
        bytes: 20_000,
        tail: Vec::new(),
        next_offset: 1,
        keep: true,
    });
    let Ok(Done::IndexFile(bytes)) = index else {
        panic!("{index:?}")
    };
    assert_eq!(
        IndexView::check(&bytes).expect("checked").covered_bytes,
        20_000
    );
}

#[test]
fn opening_for_append_cuts_to_what_was_synced() {
    let directory = directory();
    let path = directory.path().join("0.log");
    fs::write(&path, vec![5; 12_000]).expect("write");
    let mut shard = Shard::start(|_| {});
    assert_eq!(
        shard
            .open(1, &path, OpenMode::Append { keep_bytes: 8192 })
            .expect("open"),
        8192
    );
    assert_eq!(fs::metadata(&path).expect("there").len(), 8192);
    let error = shard
        .open(2, &path, OpenMode::Append { keep_bytes: 9000 })
        .expect_err("too short");
    assert_eq!(error.kind, DiskErrorKind::Corrupt);
}

#[test]
fn failures_are_typed_and_name_the_file() {
    let directory = directory();
    let path = directory.path().join("absent");
    let mut shard = Shard::start(|_| {});
    for mode in [OpenMode::Read, OpenMode::Wal] {
        let error = shard.open(1, &path, mode).expect_err("absent");
        assert_eq!(error.kind, DiskErrorKind::NotFound);
        assert!(error.message.contains("absent"), "{}", error.message);
    }
    let error = shard
        .disk(|_| DiskOp::Sync { file: FileId(9) })
        .expect_err("never opened");
    assert_eq!(error.kind, DiskErrorKind::Os(libc::EBADF));
    let path = directory.path().join("read-only");
    fs::write(&path, [0; 4096]).expect("write");
    shard.open(3, &path, OpenMode::Read).expect("open");
    let write = |cx: &mut crate::remote::Context<'_>| DiskOp::Write {
        file: FileId(3),
        position: 0,
        data: cx.slice(&[1; 4096]),
    };
    let error = shard.disk(write).expect_err("not open for writing");
    assert_eq!(error.kind, DiskErrorKind::Os(libc::EBADF));
    assert!(error.message.contains("read-only"), "{}", error.message);
}

#[test]
fn a_slot_is_created_full_of_zeros_and_written() {
    let directory = directory();
    let path = directory.path().join("wal/slot-0");
    let slot = path.clone();
    let mut shard = Shard::start(|_| {});
    shard
        .disk(move |_| DiskOp::CreateSlot {
            path: slot,
            bytes: 1 << 20,
        })
        .expect("create");
    assert!(fs::read(&path).expect("there").iter().all(|&b| b == 0));
    assert_eq!(shard.open(1, &path, OpenMode::Wal).expect("open"), 1 << 20);
    let written = shard.disk(|cx| DiskOp::Write {
        file: FileId(1),
        position: 4096,
        data: cx.slice(&[7; 4096]),
    });
    written.expect("write");
    assert!(
        fs::read(&path).expect("there")[4096..8192]
            .iter()
            .all(|&b| b == 7)
    );
}

#[test]
fn small_files_are_replaced_and_removed() {
    let directory = directory();
    let path = directory.path().join("a/b/snapshot");
    let mut shard = Shard::start(|_| {});
    for contents in [&b"first"[..], b"second"] {
        let target = path.clone();
        let contents = contents.to_vec();
        let copy = contents.clone();
        shard
            .disk(move |_| DiskOp::Replace {
                path: target,
                contents: copy,
            })
            .expect("replace");
        assert_eq!(fs::read(&path).expect("there"), contents);
    }
    let (file, absent) = (path, directory.path().join("a/b/absent"));
    let whole = directory.path().join("a");
    let removed = shard.disk(move |_| DiskOp::Remove {
        paths: vec![file, absent],
        and_directory: Some(whole),
    });
    removed.expect("remove");
    assert!(!directory.path().join("a").exists());
}

#[test]
fn an_index_that_is_missing_or_wrong_is_built_from_the_segment() {
    use ringtide_schema::compress::Codec;
    use ringtide_schema::record::BatchBuilder;

    let directory = directory();
    let (log, index) = (
        directory.path().join("100.log"),
        directory.path().join("100.index"),
    );
    let mut contents = Vec::new();
    let mut positions = Vec::new();
    for i in 0..200i64 {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(1_000_000 + i, None, Some(&[i as u8; 1000]), &[]);
        let mut batch = Vec::new();
        builder.finish(-1, -1, -1, &mut batch).expect("a batch");
        ringtide_schema::batch::assign(&mut batch, 100 + i as u64, 1);
        positions.push(contents.len());
        contents.extend_from_slice(&batch);
    }
    fs::write(&log, &contents).expect("write");
    let bytes = contents.len() as u64;
    let mut shard = Shard::start(|_| {});
    for wrong in [None, Some(vec![1, 2, 3]), Some(index::encode(100, 5, &[]))] {
        match wrong {
            None => assert!(!index.exists()),
            Some(wrong) => fs::write(&index, wrong).expect("write"),
        }
        let (index_path, log_path) = (index.clone(), log.clone());
        let built = shard.disk(move |_| DiskOp::LoadIndex {
            index_path,
            log_path,
            base_offset: 100,
            bytes,
            tail: Vec::new(),
            next_offset: 300,
            keep: true,
        });
        let Ok(Done::IndexBuilt(entries, covered)) = built else {
            panic!("{built:?}")
        };
        assert_eq!(covered, bytes);
        assert_eq!(entries[0].position, 0);
        assert_eq!(entries[0].max_timestamp_before_ms, i64::MIN);
        for pair in entries.windows(2) {
            assert!(pair[1].position - pair[0].position >= index::INTERVAL_BYTES);
            let batch = pair[1].relative_offset as usize;
            assert_eq!(pair[1].position as usize, positions[batch]);
            assert_eq!(
                pair[1].max_timestamp_before_ms,
                1_000_000 + batch as i64 - 1
            );
        }
        let (index_path, log_path) = (index.clone(), log.clone());
        let again = shard.disk(move |_| DiskOp::LoadIndex {
            index_path,
            log_path,
            base_offset: 100,
            bytes,
            tail: Vec::new(),
            next_offset: 300,
            keep: true,
        });
        let Ok(Done::IndexFile(file)) = again else {
            panic!("{again:?}")
        };
        assert_eq!(IndexView::check(&file).expect("good").len(), entries.len());
    }
    // Around damage the segment can be read, and no index is kept that has it.
    for at in [16, 7, 8, 10, 24] {
        let mut damaged = contents.clone();
        damaged[positions[50] + at] ^= 0x01;
        fs::write(&log, &damaged).expect("write");
        fs::remove_file(&index).or_else(absent).expect("remove");
        let (index_path, log_path) = (index.clone(), log.clone());
        let built = shard.disk(move |_| DiskOp::LoadIndex {
            index_path,
            log_path,
            base_offset: 100,
            bytes,
            tail: Vec::new(),
            next_offset: 300,
            keep: true,
        });
        let Ok(Done::IndexBuilt(entries, covered)) = built else {
            panic!("{built:?}")
        };
        assert_eq!(covered, bytes);
        let places = entries.iter().map(|e| (e.is_damaged(), e.relative_offset));
        let places: Vec<_> = places.collect();
        assert!(
            places
                .windows(2)
                .any(|two| two == [(true, 50), (false, 51)])
        );
        assert!(!index.exists());
    }
    // Behind a batch that is not what was published no time is believed: its largest timestamp, or a record, is damaged.
    for at in [35, 700] {
        let mut damaged = contents.clone();
        damaged[positions[50] + at] ^= 0x01;
        fs::write(&log, &damaged).expect("write");
        fs::remove_file(&index).or_else(absent).expect("remove");
        let (index_path, log_path) = (index.clone(), log.clone());
        let built = shard.disk(move |_| DiskOp::LoadIndex {
            index_path,
            log_path,
            base_offset: 100,
            bytes,
            tail: Vec::new(),
            next_offset: 300,
            keep: true,
        });
        let Ok(Done::IndexBuilt(entries, covered)) = built else {
            panic!("{built:?}")
        };
        assert_eq!(covered, bytes);
        assert!(entries.len() > 4);
        for entry in &entries[1..] {
            let before = match entry.relative_offset {
                batch @ ..=50 => 1_000_000 + i64::from(batch) - 1,
                _ => i64::MAX,
            };
            assert_eq!(entry.max_timestamp_before_ms, before);
        }
        assert!(!index.exists());
    }
    fs::write(&log, &contents[..positions[50]]).expect("write");
    let error = shard
        .disk(move |_| DiskOp::LoadIndex {
            index_path: index,
            log_path: log,
            base_offset: 100,
            bytes,
            tail: Vec::new(),
            next_offset: 300,
            keep: true,
        })
        .expect_err("a segment that is too short");
    assert_eq!(error.kind, DiskErrorKind::Corrupt);
}

#[test]
fn however_many_jobs_there_are_all_of_them_end() {
    // More than the executor has room for among those that ended and were not looked at.
    const JOBS: u64 = 40_000;
    const UNDER_WAY: u64 = 500;
    let directory = directory();
    let missing = directory.path().join("missing");
    let mut shard = Shard::start(|_| {});
    let open = |shard: &Shard, numbers: std::ops::Range<u64>| {
        let missing = missing.clone();
        shard.command(move |cx| {
            let open = |number| {
                let (file, path, mode) = (FileId(number), missing.clone(), OpenMode::Read);
                (OpId(number), DiskOp::Open { file, path, mode })
            };
            cx.fx.disk.extend(numbers.map(open));
        });
    };
    open(&shard, 1..UNDER_WAY + 1);
    for number in UNDER_WAY + 1..=JOBS {
        shard.wait(|event| matches!(event, Event::Disk(..)).then_some(()));
        open(&shard, number..number + 1);
    }
    for _ in 0..UNDER_WAY {
        shard.wait(|event| matches!(event, Event::Disk(..)).then_some(()));
    }
}

#[test]
fn a_shard_that_spins_sleeps_now_and_then_while_work_on_files_is_late() {
    let directory = directory();
    let (mut shard, pipe) = with_a_job(directory.path(), IdlePolicy::Spin);
    let (say, thread) = mpsc::channel();
    shard.command(move |_| {
        let link = fs::read_link("/proc/thread-self").expect("a link");
        say.send(Path::new("/proc").join(link).join("status"))
            .expect("a listener");
    });
    let status = thread.recv().expect("a path");
    let sleeps = || -> u64 {
        let status = fs::read_to_string(&status).expect("a status");
        let lines = status.lines();
        let mut counts = lines.filter_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        counts
            .next()
            .and_then(|n| n.trim().parse().ok())
            .expect("a count")
    };
    let (before, began) = (sleeps(), Instant::now());
    while sleeps() < before + 100 && began.elapsed() < PATIENCE {
        thread::yield_now();
    }
    let slept = sleeps() - before;
    fs::read(&pipe).expect("what the job writes");
    assert!(slept >= 100, "it never lets go of its core");
    shard.wait(|event| matches!(event, Event::Disk(OpId(77), _)).then_some(()));
}

/// A shard with a job, and what that job writes first, and cannot open until somebody reads.
fn with_a_job(directory: &Path, idle: IdlePolicy) -> (Shard, PathBuf) {
    let path = directory.join("snapshot");
    let pipe = directory.join("snapshot.tmp");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    let mut shard = Shard::start(|config| config.idle = idle);
    shard.command(|cx| {
        let contents = vec![1; 100];
        cx.fx
            .disk
            .push((OpId(77), DiskOp::Replace { path, contents }));
    });
    shard.settle();
    (shard, pipe)
}

fn fail(shard: &Shard) {
    shard.command(|cx| {
        cx.fx.fatal = Some(Fatal {
            reason: FatalReason::Segment,
            message: "planted".into(),
        });
    });
}

#[test]
fn a_shard_that_failed_lets_go_of_its_peers_and_ends_after_its_jobs() {
    let directory = directory();
    let (mut shard, pipe) = with_a_job(directory.path(), IdlePolicy::Park);
    let (mut stream, _) = shard.connect();
    fail(&shard);
    let end = thread::spawn(move || shard.join());
    let heard = stream.read(&mut [0]);
    let is_reset = |e: &std::io::Error| e.kind() == std::io::ErrorKind::ConnectionReset;
    assert!(
        matches!(&heard, Ok(0)) || heard.as_ref().is_err_and(is_reset),
        "{heard:?}"
    );
    // Much longer than one needs that does not wait.
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        assert!(!end.is_finished(), "it left its job behind");
        thread::yield_now();
    }
    fs::read(&pipe).expect("what the job writes");
    let ended = end.join().expect("no panic");
    assert_eq!(ended.expect_err("planted").message, "planted");
}

#[test]
fn a_shard_whose_job_hangs_gives_its_result_all_the_same() {
    let directory = directory();
    let (shard, pipe) = with_a_job(directory.path(), IdlePolicy::Park);
    fail(&shard);
    assert_eq!(shard.join().expect_err("planted").message, "planted");
    fs::read(&pipe).expect("what the job writes");
}

fn absent(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}
