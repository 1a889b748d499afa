//! A full disk: publishes are refused with a typed error, reads go on, and service resumes by itself
//! when space returns. Nothing that was acknowledged is lost over it. On ext4 and XFS; what is the same with a quota that is
//! used up is in `quota`.

mod quota;

use std::fs;

use ringtide_schema::error_code::ErrorCode;
use ringtide_system_tests::{Broker, MountedDisk, Setup, Topic, skip, table, wait};

const BLOCK: usize = 256 << 10;

/// Makes each case a test on each file system, with so many bytes free.
macro_rules! on_each_file_system {
    ($($case:ident: $bytes:expr;)+) => {
        mod ext4 {
            $(#[test]
            fn $case() {
                let disk = super::MountedDisk::ext4($bytes);
                super::on(disk, concat!("ext4::", stringify!($case)), super::$case);
            })+
        }
        mod xfs {
            $(#[test]
            fn $case() {
                let disk = super::MountedDisk::xfs($bytes);
                super::on(disk, concat!("xfs::", stringify!($case)), super::$case);
            })+
        }
    };
}

on_each_file_system! {
    a_full_disk_refuses_publishes_serves_reads_and_recovers_by_itself: 96 << 20;
    a_broker_killed_on_a_full_disk_loses_nothing: 64 << 20;
    a_broker_killed_on_a_disk_full_of_its_own_data_starts_in_the_space_of_its_log: 64 << 20;
    shorter_retention_makes_space_on_a_disk_without_a_free_block: 96 << 20;
    a_broker_that_is_stopped_on_a_full_disk_ends_clean_in_the_space_of_its_log: 96 << 20;
}

fn on(disk: Result<MountedDisk, String>, name: &str, case: fn(&MountedDisk)) {
    match disk {
        Ok(disk) => case(&disk),
        Err(reason) => skip(name, &reason),
    }
}

/// Publishes until the disk is full; gives how many blocks were acknowledged.
fn fill(broker: &Broker, topic: &Topic) -> u64 {
    let mut peer = broker.peer();
    let mut acknowledged = 0;
    loop {
        match peer.publish(
            topic.partition(0),
            ringtide_system_tests::single(block(acknowledged)),
        ) {
            Ok(published) => {
                assert_eq!(published.base_offset, acknowledged);
                acknowledged += 1;
                assert!(acknowledged < 4096, "the disk is never full");
            }
            Err(fault) => {
                assert_eq!(fault.code(), ErrorCode::DiskFull, "{fault:?}");
                return acknowledged;
            }
        }
    }
}

fn block(number: u64) -> Vec<u8> {
    let mut bytes = vec![b'x'; BLOCK];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn holds_all(broker: &Broker, topic: &Topic, blocks: u64) {
    let records = broker.peer().fetch_to(topic.partition(0), 0, blocks);
    assert_eq!(records.len() as u64, blocks);
    for (number, record) in records.iter().enumerate() {
        assert!(
            record.value.as_deref() == Some(&block(number as u64)),
            "record {number}"
        );
    }
}

fn a_full_disk_refuses_publishes_serves_reads_and_recovers_by_itself(disk: &MountedDisk) {
    let mut broker = Setup::new().data_dir(&disk.path().join("data")).start();
    let mut peer = broker.peer();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(8 << 20)
    });
    let topic = peer
        .create_topic_with("full", 1, settings)
        .expect("a topic");

    // Something else than the broker takes the space, so that it can also give it back.
    let ballast = disk.path().join("ballast");
    wait::for_it("all slots of the log written", || {
        let free = disk.free_bytes();
        std::thread::sleep(std::time::Duration::from_millis(200));
        free == disk.free_bytes()
    });
    let take = disk.free_bytes() - (24 << 20);
    let file = fs::File::create(&ballast).expect("a writable disk");
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take).expect("space");
    // An open file would keep its space after it was removed.
    drop(file);

    let acknowledged = fill(&broker, &topic);
    assert!(
        acknowledged > 32,
        "only {acknowledged} blocks before the disk was full"
    );
    broker.logs(&["full"]);

    holds_all(&broker, &topic, acknowledged);
    peer.ping().expect("the broker serves");
    peer.topic("full").expect("metadata is served");

    fs::remove_file(&ballast).expect("a file");
    let bytes = ringtide_system_tests::single(block(acknowledged));
    let published = wait::until("publishes to be taken again", || {
        match peer.publish(topic.partition(0), bytes.clone()) {
            Ok(published) => Some(published),
            Err(fault) => {
                assert_eq!(fault.code(), ErrorCode::DiskFull, "{fault:?}");
                None
            }
        }
    });
    assert_eq!(
        published.base_offset, acknowledged,
        "what was refused was not appended"
    );
    holds_all(&broker, &topic, acknowledged + 1);
    assert_eq!(broker.stop(), 0);
    broker.restart();
    holds_all(&broker, &topic, acknowledged + 1);
}

fn a_broker_killed_on_a_full_disk_loses_nothing(disk: &MountedDisk) {
    let mut broker = Setup::new().data_dir(&disk.path().join("data")).start();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(8 << 20)
    });
    let topic = broker
        .peer()
        .create_topic_with("full", 1, settings)
        .expect("a topic");
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![1; 8 << 20]).expect("space");
    let acknowledged = fill(&broker, &topic);
    broker.kill();
    fs::remove_file(&ballast).expect("a file");
    broker.restart();
    holds_all(&broker, &topic, acknowledged);
    let mut peer = broker.peer();
    wait::for_it("publishes to be taken again", || {
        peer.publish(topic.partition(0), ringtide_system_tests::single("after"))
            .is_ok()
    });
}

fn a_broker_killed_on_a_disk_full_of_its_own_data_starts_in_the_space_of_its_log(
    disk: &MountedDisk,
) {
    let mut broker = Setup::new().data_dir(&disk.path().join("data")).start();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(8 << 20)
    });
    let topic = broker
        .peer()
        .create_topic_with("full", 1, settings)
        .expect("a topic");
    let others = fs::File::create(disk.path().join("others")).expect("a writable disk");
    let acknowledged = fill(&broker, &topic);
    broker.kill();
    take_all(others);
    broker.restart();
    holds_all(&broker, &topic, acknowledged);
    assert!(
        broker
            .log()
            .contains("slots of the log were removed for their space")
    );
}

/// Takes what is left, to the last block, with a file that was made while there was space for one.
fn take_all(mut file: fs::File) {
    use std::io::Write;
    for bytes in [1 << 20, 4096] {
        let block = vec![1; bytes];
        while file
            .write_all(&block)
            .and_then(|()| file.sync_data())
            .is_ok()
        {}
    }
}

fn shorter_retention_makes_space_on_a_disk_without_a_free_block(disk: &MountedDisk) {
    // Enough slots that some are empty when the disk is full.
    let mut broker = Setup::new()
        .args(&["--wal-slots", "8"])
        .data_dir(&disk.path().join("data"))
        .start();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(4 << 20)
    });
    let mut peer = broker.peer();
    let topic = peer
        .create_topic_with("full", 1, settings)
        .expect("a topic");
    let others = fs::File::create(disk.path().join("others")).expect("a writable disk");
    let acknowledged = fill(&broker, &topic);
    take_all(others);
    let refused = peer.publish(
        topic.partition(0),
        ringtide_system_tests::single(block(acknowledged)),
    );
    let fault = refused.expect_err("a full disk refuses");
    assert_eq!(fault.code(), ErrorCode::DiskFull, "{fault:?}");

    let settings = table!(TopicSettingsT {
        retention_bytes: Some(8 << 20)
    });
    peer.alter_topic("full", None, settings)
        .expect("settings of a topic are in the log, where there is room");
    let published = wait::until("publishes to be taken again", || {
        let bytes = ringtide_system_tests::single(block(acknowledged));
        peer.publish(topic.partition(0), bytes).ok()
    });
    assert_eq!(published.base_offset, acknowledged);

    // The end of the log is whole, here and after a kill.
    for _ in 0..2 {
        let mut peer = broker.peer();
        let earliest = peer
            .list_offsets(topic.partition(0), -2)
            .expect("an offset")
            .offset;
        assert!(earliest > 0, "retention took nothing");
        let records = peer.fetch_to(topic.partition(0), earliest, acknowledged + 1);
        assert_eq!(records.len() as u64, acknowledged + 1 - earliest);
        for (number, record) in (earliest..).zip(&records) {
            assert!(
                record.value.as_deref() == Some(&block(number)),
                "record {number}"
            );
        }
        broker.kill();
        broker.restart();
    }
}

fn a_broker_that_is_stopped_on_a_full_disk_ends_clean_in_the_space_of_its_log(disk: &MountedDisk) {
    // Enough slots that some are empty when the disk is full.
    let mut broker = Setup::new()
        .args(&["--wal-slots", "8"])
        .data_dir(&disk.path().join("data"))
        .start();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(4 << 20)
    });
    let topic = broker
        .peer()
        .create_topic_with("full", 1, settings)
        .expect("a topic");
    let ballast = disk.path().join("ballast");
    let others = fs::File::create(&ballast).expect("a writable disk");
    let acknowledged = fill(&broker, &topic);
    take_all(others);
    assert_eq!(broker.stop(), 0);
    fs::remove_file(&ballast).expect("a file");
    broker.restart();
    holds_all(&broker, &topic, acknowledged);
}
