//! From start to end of a broker: settings, signals, restarts, and the commands for a stopped one.

use std::fs;

use ringtide_client::sync::Client;
use ringtide_client::{Idle, Options};
use ringtide_schema::identity::Identity;
use ringtide_system_tests::{
    Broker, Cli, Fault, MountedDisk, Setup, exit, single, skip, table, wait,
};
use rustix::process::Signal;

// ---- stopping ---------------------------------------------------------------------------------

#[test]
fn sigterm_and_sigint_end_the_broker_with_success() {
    let mut broker = Broker::start();
    for signal in [Signal::TERM, Signal::INT] {
        let mut peer = broker.peer();
        broker.signal(signal);
        assert_eq!(
            broker.wait_end().code(),
            Some(exit::DONE),
            "{}",
            broker.log()
        );
        assert_eq!(peer.ping(), Err(Fault::Closed));
        assert!(
            identity(&broker).clean,
            "a stop by {signal:?} is a clean one"
        );
        broker.restart();
    }
}

#[test]
fn what_was_in_flight_at_a_stop_is_answered_and_kept_or_refused() {
    let mut broker = Broker::start();
    let mut peer = broker.peer();
    let partition = peer.create_topic("drained", 1).partition(0);
    let sent: Vec<u64> = (0..200)
        .map(|n| peer.send_publish(2, &[(partition, single(format!("{n}")))]))
        .collect();
    let first = peer
        .published(sent[0], 1)
        .expect("an answer")
        .remove(0)
        .expect("accepted");
    assert_eq!(first.base_offset, 0);
    broker.signal(Signal::TERM);
    let mut acknowledged = vec![0];
    for &correlation in &sent[1..] {
        match peer.published(correlation, 1) {
            Ok(mut results) => {
                if let Ok(published) = results.remove(0) {
                    acknowledged.push(published.base_offset);
                }
            }
            Err(Fault::Closed) => break,
            Err(fault) => assert!(matches!(fault, Fault::Refused(_)), "{fault:?}"),
        }
    }
    assert_eq!(broker.wait_end().code(), Some(exit::DONE));
    broker.restart();
    let mut peer = broker.peer();
    let end = peer.describe(partition).expect("a partition").latest;
    let records = peer.fetch_to(partition, 0, end);
    for offset in acknowledged {
        assert_eq!(records[offset as usize].text(), offset.to_string());
    }
}

#[test]
fn accepted_records_survive_a_clean_stop() {
    let mut broker = Broker::start();
    let mut peer = broker.peer();
    let partition = peer.create_topic("accepted", 1).partition(0);
    for n in 0..50 {
        peer.publish_with(1, partition, single(format!("{n}")))
            .expect("accepted");
    }
    assert_eq!(broker.stop(), exit::DONE);
    broker.restart();
    assert_eq!(broker.peer().fetch_to(partition, 0, 50).len(), 50);
}

// ---- settings ---------------------------------------------------------------------------------

/// `serve` with this configuration file must refuse, in these words.
#[track_caller]
fn file_refused(content: &str, words: &[&str]) {
    let home = tempfile::tempdir_in(ringtide_system_tests::data_root()).expect("a folder");
    let path = home.path().join("ringtide.toml");
    fs::write(&path, content).expect("a writable folder");
    let path = path.to_str().expect("a path of text");
    let finished = Cli::without_server()
        .run_in(home.path(), &["serve", "--config", path])
        .failed();
    assert_eq!(finished.code(), exit::USAGE, "{finished:?}");
    for word in words.iter().chain(&[path]) {
        assert!(
            finished.stderr.contains(word),
            "{word:?} is not in: {}",
            finished.stderr
        );
    }
    let left: Vec<_> = fs::read_dir(home.path()).expect("a folder").collect();
    assert_eq!(left.len(), 1, "nothing was made: {left:?}");
}

#[test]
fn an_unknown_key_of_the_file_is_refused_by_name() {
    file_refused("cpus = [0]\nwal-slotz = 4\n", &["wal-slotz", "wal-slots"]);
    file_refused("[section]\nidle = \"park\"\n", &["section"]);
}

#[test]
fn an_impossible_value_is_refused_with_key_value_and_what_would_do() {
    file_refused("idle = \"sleepy\"\n", &["idle", "sleepy", "adaptive"]);
    file_refused("wal-slots = 0\n", &["wal-slots", "0"]);
    file_refused("cpus = [9999]\n", &["cpus", "9999"]);
}

#[test]
fn a_file_that_is_no_toml_is_refused() {
    file_refused("idle: park\n", &["TOML"]);
}

#[test]
fn an_impossible_flag_is_refused_with_flag_value_and_what_would_do() {
    for (args, words) in [
        (
            &["--idle", "sleepy"][..],
            &["idle", "sleepy", "adaptive"][..],
        ),
        (&["--cpus", "9999"], &["cpus", "9999"]),
        (&["--wal-slot-bytes", "1"], &["wal-slot-bytes", "1", "MiB"]),
        (&["--listen", "nowhere"], &["listen", "nowhere"]),
        (&["--no-such-flag"], &["--no-such-flag"]),
    ] {
        let home = tempfile::tempdir_in(ringtide_system_tests::data_root()).expect("a folder");
        let args = [&["serve"], args].concat();
        let finished = Cli::without_server().run_in(home.path(), &args).failed();
        assert_eq!(finished.code(), exit::USAGE, "{finished:?}");
        for word in words {
            assert!(
                finished.stderr.contains(word),
                "{word:?} is not in: {}",
                finished.stderr
            );
        }
    }
}

#[test]
fn flags_win_over_the_file_and_the_file_over_the_defaults() {
    let home = tempfile::tempdir_in(ringtide_system_tests::data_root()).expect("a folder");
    let path = home.path().join("ringtide.toml");
    let text = "max-in-flight-requests = 77\nadvertise = \"file.example\"\nwal-slots = 4\n";
    fs::write(&path, text).expect("a writable folder");
    let path = path.to_str().expect("a path of text");
    let broker = Setup::new()
        .args(&["--config", path, "--advertise", "flag.example"])
        .start();
    let mut peer = broker.stranger();
    let hello = peer.hello().expect("hello");
    assert_eq!(hello.max_in_flight_requests, 77, "of the file");
    let shards = peer.metadata().expect("metadata").shards.expect("shards");
    assert_eq!(
        shards[0].host.as_deref(),
        Some("flag.example"),
        "of the flag"
    );
}

#[test]
fn the_data_directory_is_made_where_the_broker_is_started() {
    let home = tempfile::tempdir_in(ringtide_system_tests::data_root()).expect("a folder");
    let ports = ringtide_system_tests::Ports::reserve();
    let listen = format!("127.0.0.1:{}", ports.of_shard(0));
    let cpus = ringtide_system_tests::cpu_list(1);
    let args = [
        "serve",
        "--listen",
        &listen,
        "--cpus",
        &cpus,
        "--wal-slot-bytes",
        "4MiB",
    ];
    let mut running = Cli::without_server().start_in(home.path(), &args);
    let cli = Cli::new(listen.parse().expect("an address"));
    wait::for_it("the broker to serve", || {
        cli.run(&["topic", "list"]).status.success()
    });
    assert!(home.path().join("ringtide-data/identity").is_file());
    running.signal(Signal::TERM);
    assert_eq!(running.finish().code(), exit::DONE);
}

#[test]
fn a_port_in_use_is_refused_by_name() {
    let first = Broker::start();
    let home = tempfile::tempdir_in(ringtide_system_tests::data_root()).expect("a folder");
    let listen = first.address(0).to_string();
    let cpus = ringtide_system_tests::cpu_list(1);
    let args = ["serve", "--listen", &listen, "--cpus", &cpus];
    let finished = Cli::without_server().run_in(home.path(), &args).failed();
    assert_eq!(finished.code(), exit::CANNOT_LISTEN, "{finished:?}");
    let said = format!("{}{}", finished.stderr, finished.text());
    assert!(said.contains(&listen), "{said}");
}

#[test]
fn the_start_is_logged_with_what_it_found() {
    let broker = Broker::start();
    wait::for_it("the start-up line", || {
        let log = broker.log();
        ["park", "kernel", "fua", "recover"]
            .iter()
            .all(|w| log.to_lowercase().contains(w))
    });
    for line in broker.log().lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(
            parsed.is_ok_and(|v| v.is_object()),
            "not a JSON object: {line}"
        );
    }
}

/// The lines of the log, once the start is over.
fn start_lines(broker: &Broker) -> Vec<serde_json::Value> {
    wait::for_it("the end of the start", || {
        broker.log().contains("\"ready\"")
    });
    let log = broker.log();
    let lines = log.lines().map(|l| serde_json::from_str(l).expect("JSON"));
    lines.collect()
}

/// The first line with this message.
fn line<'a>(lines: &'a [serde_json::Value], message: &str) -> &'a serde_json::Value {
    let found = lines.iter().find(|line| line["message"] == message);
    found.expect("a line of the start")
}

#[test]
fn the_version_and_the_start_up_line_name_the_same_commit() {
    let lines = start_lines(&Broker::start());
    let said = line(&lines, "starting");
    let text = |field: &str| said[field].as_str().expect("text").to_owned();
    let (number, commit) = (text("version"), text("commit"));
    let version = Cli::without_server().run(&["--version"]).ok();
    assert_eq!(version.text(), format!("ringtide {number} ({commit})\n"));
    let digits = commit.strip_suffix("-dirty").unwrap_or(&commit);
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    assert!(digits == "unknown" || digits.len() >= 12 && digits.chars().all(is_digit));
}

#[test]
fn each_shard_says_of_its_host_what_the_start_up_line_says() {
    let broker = Setup::new().shards(2).args(&["--idle", "park"]).start();
    let lines = start_lines(&broker);
    let said = line(&lines, "starting");
    for shard in 0..2 {
        let told = broker.peer_at(shard).describe_shard().expect("told");
        assert_eq!((usize::from(told.shard), told.shards), (shard, 2));
        assert_eq!(told.process_id, broker.pid());
        assert_eq!(said["incarnation"], told.incarnation);
        let durable_us = told.durable_write_ns.map(|ns| ns / 1000);
        assert_eq!(said["durable_write_us"].as_u64(), durable_us);
        let text = [
            ("version", &told.broker_version),
            ("commit", &told.commit),
            ("idle", &told.idle),
            ("kernel", &told.kernel),
            ("file_system", &told.file_system),
            ("device", &told.device),
            ("write_cache", &told.write_cache),
            ("fua", &told.fua),
        ];
        for (field, told) in text {
            assert_eq!(said[field].as_str(), told.as_deref(), "{field}");
        }
        let mut listening = lines.iter().filter(|l| l["message"] == "listening");
        let listening = listening.find(|line| line["shard"] == told.shard);
        assert_eq!(listening.expect("it listens")["cpu"], told.cpu);
    }
}

#[test]
fn the_client_has_every_shard_described_by_itself() {
    let broker = Setup::new().shards(2).start();
    let server = broker.address(1).to_string();
    let client = Client::connect([server], Options::new().idle(Idle::Park)).expect("connected");
    let described = client.describe_shards().expect("described");
    let told: Vec<_> = described.iter().map(|i| (i.shard, i.process_id)).collect();
    let pid = broker.pid();
    assert_eq!(told, [(0, pid), (1, pid)]);
}

// ---- restarts ---------------------------------------------------------------------------------

fn identity(broker: &Broker) -> Identity {
    let bytes = fs::read(broker.data_dir().join("identity")).expect("an identity");
    Identity::decode(&bytes).expect("a good identity")
}

#[test]
fn data_survives_clean_and_unclean_restarts_with_any_number_of_shards() {
    let mut broker = Setup::new().shards(2).start();
    let mut peer = broker.peer();
    let topic = peer.create_topic("kept", 4);
    let mut next = 0_u64;
    let mut expected = 0;
    for round in 0..6_usize {
        for n in 0..20 {
            for partition in 0..4 {
                let offset = peer.put(topic.partition(partition), format!("{round} {n}"));
                assert_eq!(offset, next);
            }
            next += 1;
        }
        expected += 20;
        if round % 2 == 0 {
            broker.kill();
        } else {
            assert_eq!(broker.stop(), exit::DONE);
        }
        broker.restart_with(1 + (round / 2) % 2);
        peer = broker.peer();
        for partition in 0..4 {
            let records = peer.fetch_to(topic.partition(partition), 0, expected);
            let offsets: Vec<u64> = records.iter().map(|r| r.offset).collect();
            assert_eq!(offsets, (0..expected).collect::<Vec<_>>());
            assert_eq!(records[expected as usize - 1].text(), format!("{round} 19"));
        }
    }
}

#[test]
fn the_leader_epoch_rises_with_an_unclean_start_and_only_then() {
    let mut broker = Broker::start();
    let partition = broker.peer().create_topic("epochs", 1).partition(0);
    let publish = |broker: &Broker| {
        let published = broker
            .peer()
            .publish(partition, single("x"))
            .expect("acknowledged");
        published.leader_epoch
    };
    assert_eq!(publish(&broker), 1);
    assert_eq!(broker.stop(), exit::DONE);
    broker.restart();
    assert_eq!(publish(&broker), 1, "a clean start keeps the epoch");
    broker.kill();
    broker.restart();
    assert_eq!(publish(&broker), 2, "an unclean one raises it");
    let epochs: Vec<i32> = broker
        .peer()
        .fetch_to(partition, 0, 3)
        .iter()
        .map(|r| r.leader_epoch)
        .collect();
    assert_eq!(epochs, [1, 1, 2], "it is written into batches");
    assert_eq!(
        broker
            .peer()
            .describe(partition)
            .expect("a partition")
            .leader_epoch,
        2
    );
}

#[test]
fn the_incarnation_rises_with_every_start() {
    let mut broker = Broker::start();
    let first = broker.stranger().hello().expect("hello");
    assert_eq!(broker.stop(), exit::DONE);
    broker.restart();
    let second = broker.stranger().hello().expect("hello");
    assert!(second.incarnation > first.incarnation);
    assert_eq!(second.data_directory_id, first.data_directory_id);
}

#[test]
fn a_broker_killed_while_it_starts_starts_again() {
    let mut broker = Broker::start();
    let partition = broker.peer().create_topic("kept", 1).partition(0);
    for n in 0..100 {
        broker.peer().put(partition, format!("{n}"));
    }
    broker.kill();
    for delay_us in [0, 500, 2_000, 5_000, 10_000, 20_000, 40_000] {
        broker.start_and_kill_after(std::time::Duration::from_micros(delay_us));
    }
    broker.restart();
    assert_eq!(broker.peer().fetch_to(partition, 0, 100).len(), 100);
}

#[test]
fn an_alteration_and_a_deletion_survive_a_kill() {
    let mut broker = Broker::start();
    let mut peer = broker.peer();
    peer.create_topic("altered", 1);
    let gone = peer.create_topic("gone", 1);
    peer.put(gone.partition(0), "gone");
    let settings = table!(TopicSettingsT {
        retention_ms: Some(12_345)
    });
    let altered = peer
        .alter_topic("altered", Some(3), settings)
        .expect("altered");
    peer.delete_topic("gone").expect("deleted");
    broker.kill();
    broker.restart();
    let mut peer = broker.peer();
    assert_eq!(peer.topic("altered").expect("a topic"), altered);
    assert_eq!(altered.settings.retention_ms, Some(12_345));
    assert_eq!(altered.shards.len(), 3);
    assert!(peer.topic("gone").is_err());
    let again = peer.create_topic("gone", 1);
    assert_ne!(again.id, gone.id, "a new topic is not the old one");
    assert_eq!(
        peer.describe(again.partition(0))
            .expect("a partition")
            .latest,
        0
    );
}

// ---- inspect, verify, doctor ------------------------------------------------------------------

/// A stopped broker with sealed segments, and one of its files of each kind.
fn stopped() -> Broker {
    let mut broker = Broker::start();
    let mut peer = broker.peer();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(64 << 10)
    });
    let partition = peer
        .create_topic_with("kept", 1, settings)
        .expect("a topic")
        .partition(0);
    for _ in 0..40 {
        peer.put(partition, [b'x'; 10_000]);
    }
    drop(peer);
    assert_eq!(broker.stop(), exit::DONE);
    broker
}

/// The files of a data directory that are wanted and not empty.
fn files(broker: &Broker, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut folders = vec![broker.data_dir().to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let text = path.to_str().expect("a path of text").to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if wanted(&text) && path.metadata().is_ok_and(|m| m.len() > 0) {
                found.push(text);
            }
        }
    }
    found
}

fn find(broker: &Broker, wanted: impl Fn(&str) -> bool) -> String {
    let found = files(broker, wanted).into_iter().next();
    found.unwrap_or_else(|| panic!("no such file among {:?}", files(broker, |_| true)))
}

#[test]
fn verify_finds_a_stopped_brokers_files_in_order() {
    let broker = stopped();
    let data_dir = broker.data_dir().to_str().expect("a path of text");
    let verified = Cli::without_server()
        .run(&["verify", "--data-dir", data_dir])
        .ok();
    assert!(!verified.text().is_empty());
}

#[test]
fn a_damaged_batch_ends_the_reading_of_its_partition_and_of_no_other() {
    let mut broker = Setup::new().start();
    let made = ["topic", "create", "t", "--partitions", "2"];
    broker.cli().run(&made).ok();
    let lines = |partition: &str| format!("{partition} first\n{partition} last\n");
    for partition in ["0", "1"] {
        let produce = ["produce", "t", "--partition", partition, "--batch", "1"];
        let fed = lines(partition).repeat(1_000);
        broker.cli().feed(&produce, fed.as_bytes()).ok();
    }
    assert_eq!(broker.stop(), 0);
    let segment = find(&broker, |p| p.contains("-0/") && p.ends_with(".log"));
    let mut bytes = fs::read(&segment).expect("a file");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&segment, bytes).expect("a writable file");
    broker.restart();
    let read = broker.cli().run(&["consume", "t"]).failed();
    assert_eq!(read.code(), exit::FAILED, "{}", read.stderr);
    let of = |partition: &str| {
        read.lines()
            .iter()
            .filter(|l| l.starts_with(partition))
            .count()
    };
    assert_eq!(of("1 "), 2_000);
    assert!((1..2_000).contains(&of("0 ")), "{}", of("0 "));
    let (_, hint) = read.stderr.split_once("--from ").expect("where it goes on");
    let from = hint.split([';', '\n']).next().expect("an offset");
    let rest = broker
        .cli()
        .run(&["consume", "t", "--partition", "0", "--from", from])
        .ok();
    assert_eq!(
        of("0 ") + rest.lines().len(),
        1_999,
        "one batch of one record is lost"
    );
}

/// The snapshots of a stopped broker.
fn snapshots(broker: &Broker) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let folder = fs::read_dir(broker.data_dir().join("groups")).expect("a directory");
    let paths = folder.map(|entry| entry.expect("readable").path());
    paths
        .map(|p| (p.clone(), fs::read(p).expect("a file")))
        .collect()
}

#[test]
fn a_snapshot_of_an_earlier_stop_is_refused_by_a_start_and_by_verify() {
    // In the same block, in the same segment, in other segments.
    for more in [1, 2_000, 40_000] {
        let mut broker = Setup::new().start();
        let made = ["topic", "create", "t", "--segment-bytes", "1MiB"];
        broker.cli().run(&made).ok();
        broker
            .cli()
            .feed(&["produce", "t"], b"first\nsecond\n")
            .ok();
        assert_eq!(broker.stop(), 0);
        let old = snapshots(&broker);
        broker.restart();
        let lines = "a line of forty bytes, as any of the rest\n".repeat(more);
        broker.cli().feed(&["produce", "t"], lines.as_bytes()).ok();
        assert_eq!(broker.stop(), 0);
        let new = snapshots(&broker);
        let mut refused = 0;
        for ((path, old), (_, new)) in old.iter().zip(&new) {
            if old == new {
                continue;
            }
            fs::write(path, old).expect("a writable file");
            let data_dir = broker.data_dir().to_str().expect("a path of text");
            let verified = Cli::without_server().run(&["verify", "--data-dir", data_dir]);
            assert_eq!(verified.code(), exit::PROBLEMS_FOUND, "{verified:?}");
            let refusal = broker.restart_refused();
            assert_eq!(
                refusal.status.code(),
                Some(exit::DIRECTORY_CORRUPT),
                "{refusal:?}"
            );
            refusal.says(&["restore the whole data directory"]);
            fs::write(path, new).expect("a writable file");
            refused += 1;
        }
        assert!(refused > 0, "no snapshot has changed");
        broker.restart();
    }
}

#[test]
fn verify_finds_damage_in_a_segment_and_names_it() {
    let broker = stopped();
    let data_dir = broker.data_dir().to_str().expect("a path of text");
    let segment = find(&broker, |p| p.ends_with(".log") || p.ends_with(".segment"));
    let mut bytes = fs::read(&segment).expect("a file");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&segment, bytes).expect("a writable file");
    let verified = Cli::without_server().run(&["verify", "--data-dir", data_dir]);
    assert_eq!(verified.code(), exit::PROBLEMS_FOUND, "{verified:?}");
    let name = segment.rsplit('/').next().expect("a name");
    let said = format!("{}{}", verified.text(), verified.stderr);
    assert!(said.contains(name), "{name} is not in: {said}");
}

#[test]
fn verify_and_inspect_say_so_when_a_broker_runs() {
    let mut broker = stopped();
    broker.restart();
    let data_dir = broker.data_dir().to_str().expect("a path of text");
    let verified = Cli::without_server()
        .run(&["verify", "--data-dir", data_dir])
        .failed();
    assert_eq!(verified.code(), exit::DIRECTORY_LOCKED, "{verified:?}");
    assert!(verified.stderr.contains("running"), "{}", verified.stderr);
    let snapshot = find(&broker, |p| p.ends_with(".snapshot"));
    let inspected = Cli::without_server().run(&["inspect", "snapshot", &snapshot]);
    let said = format!("{}{}", inspected.text(), inspected.stderr);
    assert!(said.contains("running"), "{said}");
}

#[test]
fn inspect_shows_each_kind_of_file() {
    let broker = stopped();
    let cli = Cli::without_server();
    for (kind, wanted) in [
        ("wal", &["wal"][..]),
        ("segment", &[".log", ".segment"]),
        ("index", &[".index", ".oidx", ".timeindex"]),
        ("snapshot", &[".snapshot"]),
    ] {
        let path = find(&broker, |p| {
            let p = p
                .strip_prefix(broker.data_dir().to_str().expect("text"))
                .expect("inside");
            wanted.iter().any(|w| p.contains(w))
        });
        let shown = cli.run(&["inspect", kind, &path]).ok();
        assert!(!shown.text().is_empty(), "inspect {kind} shows nothing");
    }
}

#[test]
fn inspect_of_a_damaged_file_shows_what_it_can_and_fails() {
    let broker = stopped();
    let segment = find(&broker, |p| p.ends_with("/00000000000000000000.log"));
    let mut bytes = fs::read(&segment).expect("a file");
    let at = bytes.len() - 1;
    bytes[at] ^= 1;
    fs::write(&segment, bytes).expect("a writable file");
    let inspected = Cli::without_server()
        .run(&["inspect", "segment", &segment])
        .failed();
    assert_eq!(inspected.code(), exit::PROBLEMS_FOUND, "{inspected:?}");
    let shown = inspected.text();
    assert!(shown.contains("batch at byte 0: offsets 0..=0"), "{shown}");
    assert!(shown.contains("\nBAD at byte "), "{shown}");
    assert!(inspected.stderr.contains(&segment), "{}", inspected.stderr);
}

#[test]
fn inspect_of_what_a_killed_broker_left_finds_no_damage() {
    let mut broker = Broker::start();
    let mut peer = broker.peer();
    let partition = peer.create_topic("t", 1).partition(0);
    // More than is written to a segment at once, and no whole number of blocks.
    for _ in 0..70 {
        peer.put(partition, [b'x'; 10_001]);
    }
    drop(peer);
    let segments = || files(&broker, |p| p.ends_with(".log"));
    wait::for_it("a segment", || !segments().is_empty());
    broker.kill();
    let mut unfinished = 0;
    for (kind, end) in [("segment", ".log"), ("wal", ".wal")] {
        for path in files(&broker, |p| p.ends_with(end)) {
            let shown = Cli::without_server().run(&["inspect", kind, &path]).ok();
            unfinished += shown.text().matches("unfinished end at byte").count();
        }
    }
    assert_eq!(unfinished, 1, "of the one segment");
}

#[test]
fn inspect_refuses_a_file_of_another_kind() {
    let broker = stopped();
    let snapshot = find(&broker, |p| p.ends_with(".snapshot"));
    let inspected = Cli::without_server()
        .run(&["inspect", "wal", &snapshot])
        .failed();
    assert!(inspected.stderr.contains(&snapshot), "{}", inspected.stderr);
}

#[test]
fn doctor_reports_each_check_as_json() {
    let home = tempfile::tempdir_in(ringtide_system_tests::data_root()).expect("a folder");
    let path = home.path().join("data");
    let args = [
        "doctor",
        "--data-dir",
        path.to_str().expect("text"),
        "--json",
    ];
    let finished = Cli::without_server().run(&args);
    assert!(
        [exit::DONE, exit::HOST_UNFIT].contains(&finished.code()),
        "{finished:?}"
    );
    let report: serde_json::Value = serde_json::from_slice(&finished.stdout).expect("JSON");
    let text = report.to_string().to_lowercase();
    for check in [
        "kernel",
        "io_uring",
        "memlock",
        "o_direct",
        "file system",
        "space",
        "governor",
    ] {
        assert!(text.contains(check), "{check:?} is not in: {text}");
    }
}

#[test]
fn doctor_measures_flushes_only_when_asked_and_leaves_nothing_behind() {
    let home = tempfile::tempdir_in(ringtide_system_tests::data_root()).expect("a folder");
    let report = |more: &[&str]| -> serde_json::Value {
        let dir = home.path().to_str().expect("text");
        let args = [&["doctor", "--data-dir", dir, "--json"], more].concat();
        let finished = Cli::without_server().run(&args);
        serde_json::from_slice(&finished.stdout).expect("JSON")
    };
    assert_eq!(report(&[]).get("flush_test"), None);
    let report = report(&["--flush-test"]);
    for kind in ["unsynced_write", "durable_write", "flush_of_much"] {
        let times = &report["flush_test"][kind];
        let ns = |field: &str| times[field].as_u64().expect("a time");
        assert!(0 < ns("p50_ns") && ns("p50_ns") <= ns("p99_ns"), "{report}");
    }
    let checks = report["checks"].as_array().expect("checks");
    assert!(checks.iter().any(|c| c["name"] == "flush"), "{report}");
    assert_eq!(fs::read_dir(home.path()).expect("a folder").count(), 0);
}

#[test]
fn doctor_suspects_a_device_whose_flushes_do_nothing() {
    let disk = match MountedDisk::ext4_in_memory(64 << 20) {
        Ok(disk) => disk,
        Err(reason) => {
            return skip("doctor_suspects_a_device_whose_flushes_do_nothing", &reason);
        }
    };
    let dir = disk.path().to_str().expect("text");
    let args = ["doctor", "--data-dir", dir, "--flush-test", "--json"];
    // Where other programs have the processors, a flush may seem to take its time.
    let flush = wait::until("a suspicion", || {
        let finished = Cli::without_server().run(&args);
        let report: serde_json::Value = serde_json::from_slice(&finished.stdout).expect("JSON");
        let checks = report["checks"].as_array().expect("checks");
        let flush = checks.iter().find(|check| check["name"] == "flush");
        let flush = flush.expect("the check of flushes").clone();
        (flush["verdict"] == "advice").then_some(flush)
    });
    let matters = flush["matters"].as_str().expect("words");
    assert!(matters.contains("ignores flushes"), "{matters}");
}

#[test]
fn doctor_says_what_it_found_to_a_person() {
    let home = tempfile::tempdir_in(ringtide_system_tests::data_root()).expect("a folder");
    let args = ["doctor", "--data-dir", home.path().to_str().expect("text")];
    let finished = Cli::without_server().run(&args);
    let text = finished.text().to_lowercase();
    assert!(
        text.contains("kernel") && text.contains("io_uring"),
        "{text}"
    );
    assert_eq!(
        fs::read_dir(home.path()).expect("a folder").count(),
        0,
        "it leaves nothing behind"
    );
}
