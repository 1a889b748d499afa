//! The start of a broker on a data directory: identity, snapshots, log, segments, metadata. The input has all
//! files, as `ringtide_fuzz::directory` says.
//!
//! `verify` and the start come to the same verdict. What a start leaves, another starts on, and finds the same
//! topics and partitions.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::directory::{self, Kind};
use ringtide_fuzz::{seal, sealed_by};
use ringtide_log::recovery::{RecoverError, RecoverOptions, Recovered, Report, recover, verify};
use ringtide_schema::identity::Identity;
use ringtide_schema::store::GroupSnapshotT;

sealed_by!(seal::data_directory);

const OPTIONS: RecoverOptions = RecoverOptions {
    direct: false,
    shards: 1,
    slot_bytes: 16 << 10,
    groups_for_new: 2,
    random: [1, 2],
};

fn start(dir: &Path) -> Result<Recovered, RecoverError> {
    recover(dir, OPTIONS, &mut |_| {})
}

fn refuses(report: &Report) -> bool {
    let will_not = |problem: &_| {
        let problem: &ringtide_log::recovery::Problem = problem;
        problem.what.starts_with("the broker will not start")
    };
    report.problems.iter().any(will_not)
}

/// What the groups hold. After a clean stop a start leaves snapshots as they are, and what it leaves out of
/// them the next one leaves out again: which of them wrote it last may differ.
fn contents(recovered: Recovered) -> Vec<GroupSnapshotT> {
    let mut groups = recovered.groups;
    groups.iter_mut().for_each(|group| group.incarnation = 0);
    groups
}

/// Whether two more starts can be counted.
fn countable(data: &[u8]) -> bool {
    directory::parts(data).all(|(kind, _, contents)| {
        let identity = Identity::decode(contents)
            .ok()
            .filter(|_| kind == Kind::Identity);
        identity.is_none_or(|identity| {
            identity.incarnation < u64::MAX - 3 && identity.leader_epoch < i32::MAX as u32 - 3
        })
    })
}

fuzz_target!(|data: &[u8]| {
    if !countable(data) {
        return;
    }
    let home = tempfile::tempdir().expect("a place for the directory");
    let dir = home.path();
    directory::unpack(data, dir).expect("written");
    let is_new = !dir.join("identity").exists();
    let report = verify(dir, &mut |_| {});
    let first = start(dir);
    let Ok(first) = first else {
        let error = first.expect_err("it is none");
        assert!(
            !report.is_ok_and(|report| report.is_sound()),
            "sound, but {error}"
        );
        return;
    };
    if !is_new {
        let report = report.expect("what can be started on can be read");
        assert!(!refuses(&report), "started, but {:?}", report.problems);
    }
    let report = verify(dir, &mut |_| {}).expect("a start leaves what can be read");
    assert!(!refuses(&report), "after a start: {:?}", report.problems);
    let second = start(dir).unwrap_or_else(|error| panic!("after a start: {error}"));
    assert_eq!(second.identity.incarnation, first.identity.incarnation + 1);
    assert_eq!(second.topics, first.topics);
    assert_eq!(second.next_topic_serial, first.next_topic_serial);
    assert_eq!(contents(second), contents(first));
});
