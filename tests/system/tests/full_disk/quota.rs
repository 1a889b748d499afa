//! The same with a quota that is used up (EDQUOT) on a disk that has space: it is treated as a full disk, although what the
//! file system says of its free space is of no use then.

use ringtide_schema::error_code::ErrorCode;
use ringtide_system_tests::{Broker, QuotaDisk, Setup, Topic, single, skip, table, wait};

use super::{block, fill, holds_all};

const QUOTA_BYTES: u64 = 48 << 20;

/// A broker on an empty file system with a quota, and a topic.
fn start(name: &str, args: &[&str]) -> Option<(QuotaDisk, Broker, Topic)> {
    let disk = match QuotaDisk::mount(QUOTA_BYTES) {
        Ok(disk) => disk,
        Err(reason) => {
            skip(name, &reason);
            return None;
        }
    };
    let broker = Setup::new()
        .args(args)
        .data_dir(&disk.path().join("data"))
        .start();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(4 << 20)
    });
    let topic = broker.peer().create_topic_with("full", 1, settings);
    Some((disk, broker, topic.expect("a topic")))
}

/// Publishes until the quota is used up, to the last block; gives how many blocks were acknowledged.
fn use_up(disk: &QuotaDisk, broker: &Broker, topic: &Topic) -> u64 {
    let acknowledged = fill(broker, topic);
    assert!(acknowledged > 32, "only {acknowledged} blocks");
    assert!(disk.refusals() > 0, "the quota was not what refused");
    disk.set_quota(disk.used_bytes());
    acknowledged
}

#[test]
fn a_used_up_quota_refuses_publishes_serves_reads_and_is_looked_at_again() {
    let name = "a_used_up_quota_refuses_publishes_serves_reads_and_is_looked_at_again";
    let Some((disk, mut broker, topic)) = start(name, &[]) else {
        return;
    };
    let acknowledged = use_up(&disk, &broker, &topic);
    broker.logs(&["disk full", "Disk quota exceeded"]);
    holds_all(&broker, &topic, acknowledged);
    let mut peer = broker.peer();
    peer.ping().expect("the broker serves");
    peer.topic("full").expect("metadata is served");

    disk.set_quota(2 * QUOTA_BYTES);
    let published = wait::until("publishes to be taken again", || {
        match peer.publish(topic.partition(0), single(block(acknowledged))) {
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

#[test]
fn a_broker_killed_at_its_quota_starts_in_the_space_of_its_log() {
    let name = "a_broker_killed_at_its_quota_starts_in_the_space_of_its_log";
    let Some((disk, mut broker, topic)) = start(name, &[]) else {
        return;
    };
    let acknowledged = use_up(&disk, &broker, &topic);
    broker.kill();
    broker.restart();
    holds_all(&broker, &topic, acknowledged);
    assert!(
        broker
            .log()
            .contains("slots of the log were removed for their space")
    );
}

#[test]
fn a_broker_that_is_stopped_at_its_quota_ends_clean_in_the_space_of_its_log() {
    let name = "a_broker_that_is_stopped_at_its_quota_ends_clean_in_the_space_of_its_log";
    // Enough slots that some are empty when the quota is used up.
    let Some((disk, mut broker, topic)) = start(name, &["--wal-slots", "8"]) else {
        return;
    };
    let acknowledged = use_up(&disk, &broker, &topic);
    assert_eq!(broker.stop(), 0);
    disk.set_quota(2 * QUOTA_BYTES);
    broker.restart();
    holds_all(&broker, &topic, acknowledged);
}
