//! A broker that may have fewer files open than it could use.

use std::fs::{self, DirEntry};
use std::io;

use ringtide_system_tests::{Broker, Setup, batch, wait};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

/// Lets a broker open `more` files, and take more connections if it waits for them already; to be changed again.
fn limit_open_files(broker: &Broker, more: usize) {
    let open = || fs::read_dir(format!("/proc/{}/fd", broker.pid())).expect("a process of ours");
    // A start opens them while it serves already.
    wait::for_it("the slots of the log to be open", || {
        let links = open().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let slots = links.filter(|link| link.extension().is_some_and(|e| e == "wal"));
        let wal = fs::read_dir(broker.data_dir().join("wal")).expect("a directory");
        slots.count() == wal.count()
    });
    let number = |entry: io::Result<DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    let open: Vec<u64> = open().filter_map(number).collect();
    // The limit is one of numbers, and a file is given the lowest that is free.
    let mut free = (0..).filter(|number| !open.contains(number));
    let limit = Rlimit {
        current: free.nth(more),
        // A broker inherits it from here.
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let pid = Pid::from_raw(broker.pid().cast_signed());
    prlimit(pid, Resource::Nofile, limit).expect("a lower limit");
}

/// The connections that it has, one that was closed at the other end and not yet here among them.
fn connections(broker: &Broker) -> usize {
    let directory = format!("/proc/{}", broker.pid());
    let open = fs::read_dir(format!("{directory}/fd")).expect("a process of ours");
    let links = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let sockets: Vec<String> = links.map(|link| link.display().to_string()).collect();
    let table = fs::read_to_string(format!("{directory}/net/tcp")).expect("its sockets");
    let is_connection = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        const LISTENS: &str = "0A";
        fields[3] != LISTENS && sockets.contains(&format!("socket:[{}]", fields[9]))
    };
    table.lines().skip(1).filter(is_connection).count()
}

#[test]
fn more_partitions_are_written_to_than_files_may_be_open() {
    const PARTITIONS: u32 = 40;
    let mut broker = Broker::start();
    let mut peer = broker.peer();
    let topic = peer.create_topic("wide", PARTITIONS);
    limit_open_files(&broker, 15);
    // More than a segment's writer waits for.
    let values = [[b'v'; 60_000]; 5];
    for p in 0..PARTITIONS {
        let published = peer.publish(topic.partition(p), batch(&values));
        assert_eq!(published.expect("an answer").base_offset, 0);
        // Too little to be written, so that it waits.
        let published = peer.publish(topic.partition(p), batch(&[b"rest"]));
        assert_eq!(published.expect("an answer").base_offset, 5);
    }
    drop(peer);
    for p in 0..PARTITIONS {
        let args = ["consume", "wide", "--partition", &p.to_string()];
        assert_eq!(broker.cli().run(&args).ok().text().lines().count(), 6);
    }
    // All at once.
    let records = (PARTITIONS * 6) as usize;
    let read = broker.cli().run(&["consume", "wide"]);
    assert_eq!(read.ok().text().lines().count(), records);
    assert_eq!(broker.stop(), 0);
    broker.restart();
    let read = broker
        .cli()
        .run(&["consume", "wide", "--count", &records.to_string()]);
    assert_eq!(read.ok().text().lines().count(), records);
}

#[test]
fn who_follows_goes_on_when_there_is_a_file_again() {
    let mut broker = Broker::start();
    let mut peer = broker.peer();
    let topic = peer.create_topic("cold", 1);
    // More than a snapshot holds by itself.
    let published = peer.publish(topic.partition(0), batch(&[[b'v'; 60_000]; 2]));
    assert_eq!(published.expect("an answer").base_offset, 0);
    drop(peer);
    assert_eq!(broker.stop(), 0);
    broker.restart();
    // Its end would make room for another file.
    wait::for_it("the connection that saw it ready to be closed", || {
        connections(&broker) == 0
    });
    // For a connection, and nothing else.
    limit_open_files(&broker, 1);
    let mut consumer = broker.cli().start(&["consume", "cold", "--follow"]);
    broker.logs(&["readers are told to try again"]);
    assert!(consumer.is_running());
    limit_open_files(&broker, 100);
    assert_eq!(consumer.line().map(|line| line.len()), Some(60_000));
    assert!(consumer.is_running());
}

#[test]
fn connections_that_wait_for_room_take_no_files() {
    let broker = Setup::new().args(&["--max-connections", "8"]).start();
    let mut peer = broker.peer();
    let before = broker.footprint().sockets;
    // All are there at once when it looks.
    broker.signal(Signal::STOP);
    let strangers: Vec<_> = (0..100).map(|_| broker.stranger()).collect();
    broker.signal(Signal::CONT);
    broker.logs(&["a shard has all connections"]);
    peer.ping().expect("one that was there before");
    assert_eq!(broker.footprint().sockets, before + 7);
    drop(strangers);
}
