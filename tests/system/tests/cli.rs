//! The command line as scripts rely on it: what goes in, what comes out, and the exit codes.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringtide_schema::batch::{Batches, Codec};
use ringtide_schema::murmur2::partition_for_key;
use ringtide_schema::record::BatchBuilder;
use ringtide_system_tests::{
    Broker, Cli, Finished, MountedDisk, Ports, Setup, batch_at, cpu_list, data_root, exit, now_ms,
    skip, table, wait,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A broker with a topic "t" of this many partitions.
fn scene(partitions: u32) -> (Broker, Cli) {
    let broker = Broker::start();
    broker.peer().create_topic("t", partitions);
    let cli = broker.cli();
    (broker, cli)
}

/// What "t" holds, partition by partition, as values.
fn held(broker: &Broker) -> Vec<Vec<Vec<u8>>> {
    let mut peer = broker.peer();
    let topic = peer.topic("t").expect("a topic");
    let read = |p| {
        let partition = topic.partition(p);
        let end = peer.describe(partition).expect("described").visible;
        let records = peer.fetch_to(partition, 0, end);
        records
            .into_iter()
            .map(|r| r.value.expect("a value"))
            .collect()
    };
    (0..topic.shards.len() as u32).map(read).collect()
}

fn json_lines(finished: &Finished) -> Vec<Value> {
    finished
        .lines()
        .iter()
        .map(|l| serde_json::from_str(l).expect("a JSON line"))
        .collect()
}

// ---- produce ----------------------------------------------------------------------------------

#[test]
fn each_line_is_a_record_an_empty_one_too_and_the_last_needs_no_end() {
    let (broker, cli) = scene(1);
    let done = cli.feed(&["produce", "t"], b"one\n\nthree\n\n\nlast").ok();
    assert_eq!(done.stdout, b"", "nothing is printed unless asked for");
    let want: [&[u8]; 6] = [b"one", b"", b"three", b"", b"", b"last"];
    assert_eq!(held(&broker), [want]);
}

#[test]
fn no_input_is_no_record() {
    let (broker, cli) = scene(1);
    cli.feed(&["produce", "t"], b"").ok();
    assert_eq!(held(&broker), [Vec::<Vec<u8>>::new()]);
}

#[test]
fn bytes_pass_through_as_they_are() {
    let (broker, cli) = scene(1);
    cli.feed(&["produce", "t"], b"\xff\xfe\0\r\n\ttab\n").ok();
    assert_eq!(held(&broker), [[&b"\xff\xfe\0\r"[..], b"\ttab"]]);
}

#[test]
fn a_key_ends_at_the_first_separator_and_decides_the_partition() {
    let (broker, cli) = scene(4);
    let mut input = String::new();
    for n in 0..100 {
        input += &format!("key-{n}::value::{n}\n");
    }
    cli.feed(&["produce", "t", "--key-separator", "::"], input.as_bytes())
        .ok();
    let consumed = cli.run(&["consume", "t", "--output", "json"]).ok();
    let records = json_lines(&consumed);
    assert_eq!(records.len(), 100);
    for r in &records {
        let key = r["key"].as_str().expect("a key");
        let n = key.strip_prefix("key-").expect("our key");
        assert_eq!(r["value"], format!("value::{n}"));
        assert_eq!(r["partition"], partition_for_key(key.as_bytes(), 4), "{r}");
    }
    drop(broker);
}

#[test]
fn a_line_without_the_separator_is_an_error_that_names_its_number() {
    let (broker, cli) = scene(1);
    let args = ["produce", "t", "--key-separator", ":"];
    let failed = cli.feed(&args, b"a:1\nb:2\nno key here\nd:4\n").failed();
    assert!(failed.stderr.contains("line 3"), "{}", failed.stderr);
    let held = held(&broker).remove(0);
    assert!(held.len() <= 2, "nothing from the bad line on: {held:?}");
}

#[test]
fn a_line_over_the_limit_is_an_error_that_names_its_number() {
    let (broker, cli) = scene(1);
    let input = [
        b"one\ntwo\n".to_vec(),
        vec![b'x'; (1 << 20) + 1],
        b"\nfour\n".to_vec(),
    ]
    .concat();
    let failed = cli.feed(&["produce", "t"], &input).failed();
    assert!(failed.stderr.contains("line 3"), "{}", failed.stderr);
    assert!(held(&broker)[0].len() <= 2);
}

#[test]
fn a_line_of_almost_a_megabyte_goes_through() {
    let (broker, cli) = scene(1);
    let input = vec![b'x'; (1 << 20) - 200];
    cli.feed(&["produce", "t"], &input).ok();
    assert_eq!(held(&broker), [[input]]);
}

#[test]
fn offsets_are_printed_in_input_order_as_partition_and_offset() {
    let (broker, cli) = scene(4);
    let input: String = (0..300).map(|n| format!("key-{}:{n}\n", n % 37)).collect();
    let args = [
        "produce",
        "t",
        "--key-separator",
        ":",
        "--offsets",
        "--batch",
        "7",
    ];
    let done = cli.feed(&args, input.as_bytes()).ok();
    let lines = done.lines();
    assert_eq!(lines.len(), 300);
    let held = held(&broker);
    for (n, line) in lines.iter().enumerate() {
        let (partition, offset) = line.split_once(' ').expect("two numbers");
        let partition: usize = partition.parse().expect("a partition");
        let offset: usize = offset.parse().expect("an offset");
        assert_eq!(
            held[partition][offset],
            n.to_string().as_bytes(),
            "line {n} is {line}"
        );
    }
}

#[test]
fn an_offset_is_printed_as_soon_as_its_record_is_acknowledged() {
    let (_broker, cli) = scene(1);
    let mut producer = cli.start(&["produce", "t", "--offsets"]);
    for n in 0..5 {
        producer.write(b"now\n");
        assert_eq!(
            producer.line().expect("a line"),
            format!("0 {n}").as_bytes()
        );
    }
    assert!(producer.is_running(), "its input is still open");
    assert!(producer.finish().status.success());
}

#[test]
fn offsets_are_refused_without_acknowledgements() {
    let (broker, cli) = scene(1);
    let refused = cli
        .feed(&["produce", "t", "--offsets", "--acks", "none"], b"one\n")
        .failed();
    assert_eq!(refused.code(), exit::USAGE);
    assert!(refused.stderr.contains("--acks"), "{}", refused.stderr);
    assert_eq!(held(&broker)[0].len(), 0, "nothing was published");
}

#[test]
fn every_level_of_acknowledgement_and_every_codec_delivers() {
    let (broker, cli) = scene(1);
    let mut expected = 0;
    for acks in ["none", "accepted", "durable"] {
        for codec in ["none", "lz4", "zstd"] {
            let line = format!("{acks} {codec}\n");
            cli.feed(
                &["produce", "t", "--acks", acks, "--compression", codec],
                line.as_bytes(),
            )
            .ok();
            expected += 1;
            let mut peer = broker.peer();
            let partition = peer.topic("t").expect("a topic").partition(0);
            wait::for_it("the record", || {
                peer.describe(partition).expect("described").visible == expected
            });
            let last = peer.fetch_to(partition, expected - 1, expected).remove(0);
            assert_eq!(last.text(), line.trim());
        }
    }
}

#[test]
fn compression_and_batch_size_are_those_asked_for() {
    let (broker, cli) = scene(1);
    let lines: String = (0..100).map(|n| format!("line {n}\n")).collect();
    let input = lines.as_bytes();
    cli.feed(&["produce", "t", "--batch", "1"], input).ok();
    cli.feed(&["produce", "t", "--compression", "zstd"], input)
        .ok();
    let mut peer = broker.peer();
    let partition = peer.topic("t").expect("a topic").partition(0);
    let correlation = peer.send_fetch(partition, 0, 1 << 18, 1, 0);
    let payload = peer.answer(correlation).expect("records").payload;
    let batches: Vec<_> = Batches::new(&payload)
        .map(|b| b.expect("a batch").0)
        .collect();
    assert!(batches[..100].iter().all(|b| b.record_count == 1));
    assert!(
        batches[100..]
            .iter()
            .all(|b| b.attributes.codec() == Codec::Zstd)
    );
    assert!(
        batches[100..].iter().any(|b| b.record_count > 1),
        "{:?}",
        &batches[100..]
    );
}

#[test]
fn a_partition_can_be_named_and_an_unknown_one_is_refused() {
    let (broker, cli) = scene(3);
    cli.feed(&["produce", "t", "--partition", "2"], b"a\nb\n")
        .ok();
    assert_eq!(
        held(&broker).iter().map(Vec::len).collect::<Vec<_>>(),
        [0, 0, 2]
    );
    let failed = cli
        .feed(&["produce", "t", "--partition", "3"], b"a\n")
        .failed();
    assert!(failed.stderr.contains('3'), "{}", failed.stderr);
}

#[test]
fn a_command_for_an_unknown_topic_fails_and_names_it() {
    let (_broker, cli) = scene(1);
    let commands = [
        &["produce", "nowhere"][..],
        &["consume", "nowhere"],
        &["topic", "describe", "nowhere"],
        &["topic", "delete", "nowhere"],
        &["topic", "alter", "nowhere", "--partitions", "2"],
    ];
    for args in commands {
        let failed = cli.feed(args, b"a\n").failed();
        assert_eq!(failed.code(), exit::FAILED, "{failed:?}");
        let words = "there is no topic \"nowhere\"";
        assert!(failed.stderr.contains(words), "{}", failed.stderr);
    }
}

#[test]
fn a_broker_that_goes_away_leaves_a_count_of_acknowledged_and_unknown_records() {
    let (mut broker, cli) = scene(1);
    let mut producer = cli.start(&["produce", "t", "--offsets"]);
    for n in 0..10 {
        producer.write(format!("{n}\n").as_bytes());
        producer.line().expect("an offset");
    }
    broker.kill();
    for n in 10..17 {
        producer.write(format!("{n}\n").as_bytes());
    }
    let failed = producer.finish().failed();
    let said = &failed.stderr;
    // Whether any of them was under way when the broker went, only the command knows.
    let code = if said.contains("of none is the outcome unknown") {
        exit::UNREACHABLE
    } else {
        exit::OUTCOME_UNKNOWN
    };
    assert_eq!(failed.code(), code, "{failed:?}");
    assert!(said.contains("10") && said.contains('7'), "{said}");
    assert!(
        said.contains("acknowledged") && said.contains("unknown"),
        "{said}"
    );
}

#[test]
fn a_producer_that_is_interrupted_says_what_it_does_not_know() {
    let (broker, cli) = scene(1);
    let mut producer = cli.start(&["produce", "t", "--offsets"]);
    for n in 0..10 {
        producer.write(format!("{n}\n").as_bytes());
        producer.line().expect("an offset");
    }
    // It is there, and acknowledges nothing.
    broker.signal(Signal::STOP);
    for n in 10..17 {
        producer.write(format!("{n}\n").as_bytes());
    }
    producer.has_read();
    producer.signal(Signal::INT);
    let failed = producer.finish_open().failed();
    assert_eq!(failed.code(), exit::OUTCOME_UNKNOWN, "{failed:?}");
    let words = "10 records acknowledged; of 7 the outcome is unknown (lines 11-17)";
    assert!(failed.stderr.contains(words), "{}", failed.stderr);
    assert_eq!(failed.lines(), ["- -"; 7], "one for each line");
}

#[test]
fn a_producer_that_is_interrupted_publishes_what_it_has_read() {
    let (broker, cli) = scene(1);
    for signal in [Signal::INT, Signal::TERM] {
        let mut producer = cli.start(&["produce", "t", "--offsets"]);
        producer.write(b"one\n");
        producer.line().expect("an offset");
        producer.write(b"two\n");
        producer.has_read();
        producer.signal(signal);
        let done = producer.finish_open().ok();
        assert_eq!(done.lines().len(), 1, "{done:?}");
    }
    let pair = [b"one".to_vec(), b"two".to_vec()];
    assert_eq!(held(&broker), [[pair.clone(), pair].concat()]);
}

#[test]
fn a_producer_that_is_interrupted_publishes_what_was_read_and_waits_for_room() {
    let broker = Broker::start();
    let settings = table!(TopicSettingsT {
        max_batch_bytes: Some(4096)
    });
    let made = broker.peer().create_topic_with("t", 1, settings);
    made.expect("a topic");
    let mut producer = broker
        .cli()
        .start(&["produce", "t", "--offsets", "--batch", "1KiB"]);
    producer.write(b"first\n");
    producer.line().expect("an offset");
    // It is there, and acknowledges nothing: of the first piece about 20 KiB are taken, and the rest has to wait.
    broker.signal(Signal::STOP);
    let mut lines: Vec<Vec<u8>> = (0..400).map(|n| format!("{n:099}").into_bytes()).collect();
    producer.write(&[lines.join(&b'\n'), b"\n".to_vec()].concat());
    producer.has_read();
    // Five more fit between its reading and its sending thread: the last is read once the first is being sent.
    for n in 0..5 {
        producer.write(format!("{n}\n").as_bytes());
        producer.has_read();
        lines.push(n.to_string().into_bytes());
    }
    producer.signal(Signal::INT);
    broker.signal(Signal::CONT);
    let done = producer.finish_open().ok();
    assert_eq!(done.lines().len(), lines.len(), "{done:?}");
    lines.insert(0, b"first".to_vec());
    assert_eq!(held(&broker), [lines]);
}

#[test]
fn a_producer_that_is_interrupted_within_a_line_does_not_publish_it() {
    let (broker, cli) = scene(1);
    let mut producer = cli.start(&["produce", "t", "--offsets"]);
    producer.write(b"one\ntw");
    producer.line().expect("an offset");
    producer.has_read();
    producer.signal(Signal::INT);
    let failed = producer.finish_open().failed();
    assert_eq!(failed.code(), exit::FAILED, "{failed:?}");
    assert!(
        failed.stderr.contains("line 2") && failed.stderr.contains("1 record acknowledged"),
        "{}",
        failed.stderr
    );
    assert_eq!(held(&broker), [[b"one"]]);
}

#[test]
fn without_acknowledgements_everything_is_sent_before_the_end() {
    let (broker, cli) = scene(1);
    let lines = 100_000;
    let input: String = (0..lines).map(|n| format!("{n:080}\n")).collect();
    cli.feed(&["produce", "t", "--acks", "none"], input.as_bytes())
        .ok();
    let mut peer = broker.peer();
    let partition = peer.topic("t").expect("a topic").partition(0);
    wait::for_it("the records", || {
        peer.describe(partition).expect("described").visible == lines
    });
}

#[test]
fn offsets_that_cannot_be_printed_are_a_failure_and_the_records_are_published() {
    let (broker, cli) = scene(1);
    let full = File::options().write(true).open("/dev/full");
    let mut command = cli.command(&["produce", "t", "--offsets"]);
    command.stderr(Stdio::piped());
    let producer = command.stdout(full.expect("a full device")).spawn();
    let mut producer = producer.expect("the binary starts");
    let mut stdin = producer.stdin.take().expect("piped");
    stdin.write_all(b"one\ntwo\n").expect("written");
    drop(stdin);
    let ended = producer.wait_with_output().expect("it ends");
    assert_eq!(ended.status.code(), Some(exit::FAILED));
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(told.contains("2 records acknowledged"), "{told}");
    assert_eq!(held(&broker), [[b"one".to_vec(), b"two".to_vec()]]);
}

#[test]
fn a_failure_that_cannot_be_told_is_an_exit_code_and_no_crash() {
    let (_broker, cli) = scene(1);
    let full = File::options().write(true).open("/dev/full");
    let mut command = cli.command(&["consume", "nowhere"]);
    let status = command.stderr(full.expect("a full device")).status();
    assert_eq!(status.expect("it ends").code(), Some(exit::FAILED));
}

#[test]
fn a_producer_goes_on_after_the_broker_was_killed_and_came_back() {
    let (mut broker, cli) = scene(1);
    let mut producer = cli.start(&["produce", "t", "--offsets"]);
    for n in 0..20 {
        producer.write(format!("{n}\n").as_bytes());
        if n % 5 == 4 {
            broker.kill();
            broker.restart();
        }
    }
    let done = producer.finish().ok();
    let want: Vec<String> = (0..20).map(|n| format!("0 {n}")).collect();
    assert_eq!(done.lines(), want);
    let want: Vec<Vec<u8>> = (0..20).map(|n| n.to_string().into_bytes()).collect();
    assert_eq!(held(&broker), [want], "each once, in order");
}

// ---- consume ----------------------------------------------------------------------------------

/// A scene with the values 0 to 9 in one partition.
fn ten() -> (Broker, Cli) {
    let (broker, cli) = scene(1);
    let input: String = (0..10).map(|n| format!("{n}\n")).collect();
    cli.feed(&["produce", "t"], input.as_bytes()).ok();
    (broker, cli)
}

#[test]
fn without_follow_it_ends_at_the_end() {
    let (_broker, cli) = ten();
    let done = cli.run(&["consume", "t"]).ok();
    assert_eq!(done.stdout, b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    assert_eq!(done.stderr, "", "no progress when it is piped");
}

#[test]
fn an_empty_topic_gives_nothing_and_succeeds() {
    let (_broker, cli) = scene(2);
    assert_eq!(cli.run(&["consume", "t"]).ok().stdout, b"");
}

#[test]
fn a_count_ends_it_and_fewer_is_a_failure() {
    let (_broker, cli) = ten();
    assert_eq!(
        cli.run(&["consume", "t", "--count", "3"]).ok().lines(),
        ["0", "1", "2"]
    );
    assert_eq!(
        cli.run(&["consume", "t", "--count", "10"])
            .ok()
            .lines()
            .len(),
        10
    );
    assert_eq!(
        cli.run(&["consume", "t", "--count", "0"])
            .ok()
            .lines()
            .len(),
        0
    );
    let fewer = cli.run(&["consume", "t", "--count", "11"]).failed();
    assert_eq!(fewer.code(), exit::FEWER_THAN_ASKED);
    assert_eq!(fewer.lines().len(), 10, "what there was is delivered");
}

#[test]
fn follow_waits_for_what_is_yet_to_come() {
    let (broker, cli) = ten();
    let mut consumer = cli.start(&["consume", "t", "--follow", "--from", "8"]);
    assert_eq!(consumer.line().expect("a line"), b"8");
    assert_eq!(consumer.line().expect("a line"), b"9");
    let mut peer = broker.peer();
    let partition = peer.topic("t").expect("a topic").partition(0);
    for n in 10..15 {
        peer.put(partition, n.to_string());
        assert_eq!(consumer.line().expect("a line"), n.to_string().as_bytes());
    }
    assert!(consumer.is_running());
}

#[test]
fn follow_with_a_count_ends_at_the_count() {
    let (broker, cli) = ten();
    let mut consumer = cli.start(&["consume", "t", "--follow", "--count", "12"]);
    for _ in 0..10 {
        consumer.line().expect("a line");
    }
    let mut peer = broker.peer();
    let partition = peer.topic("t").expect("a topic").partition(0);
    for n in 10..14 {
        peer.put(partition, n.to_string());
    }
    let done = consumer.finish().ok();
    assert_eq!(done.lines(), ["10", "11"]);
}

#[test]
fn follow_goes_on_after_the_broker_was_killed_and_came_back() {
    let (mut broker, cli) = ten();
    let mut consumer = cli.start(&["consume", "t", "--follow"]);
    for n in 0..10 {
        assert_eq!(consumer.line().expect("a line"), n.to_string().as_bytes());
    }
    for n in 10..13 {
        broker.kill();
        broker.restart();
        cli.feed(&["produce", "t"], format!("{n}\n").as_bytes())
            .ok();
        assert_eq!(consumer.line().expect("a line"), n.to_string().as_bytes());
    }
}

#[test]
fn follow_reads_partitions_that_are_added() {
    let (mut broker, cli) = ten();
    let mut consumer = cli.start(&["consume", "t", "--follow"]);
    for n in 0..10 {
        assert_eq!(consumer.line().expect("a line"), n.to_string().as_bytes());
    }
    cli.run(&["topic", "alter", "t", "--partitions", "2"]).ok();
    cli.feed(&["produce", "t", "--partition", "1"], b"first\n")
        .ok();
    // A lost connection makes it look at the topic sooner than the clock does.
    broker.kill();
    broker.restart();
    assert_eq!(consumer.line().expect("a line"), b"first");
}

#[test]
fn follow_commits_nothing_in_a_topic_that_was_made_anew() {
    let (broker, cli) = ten();
    let mut consumer = cli.start(&["consume", "t", "--follow", "--name", "reader"]);
    for n in 0..10 {
        assert_eq!(consumer.line().expect("a line"), n.to_string().as_bytes());
    }
    let mut peer = broker.peer();
    cli.run(&["topic", "delete", "t"]).ok();
    peer.create_topic("t", 1);
    let failed = consumer.finish().failed();
    assert_eq!(failed.code(), exit::FAILED, "{failed:?}");
    let partition = peer.topic("t").expect("a topic").partition(0);
    assert_eq!(peer.read_offset("reader", partition).expect("read"), -1);
}

#[test]
fn it_begins_where_it_is_told() {
    let (broker, cli) = scene(1);
    let mut peer = broker.peer();
    let partition = peer.topic("t").expect("a topic").partition(0);
    let base = now_ms() - 100_000;
    for n in 0..10 {
        peer.publish(partition, batch_at(base + n * 1000, &[n.to_string()]))
            .expect("published");
    }
    let from = |from: &str| -> Vec<String> {
        let done = cli.run(&["consume", "t", "--from", from]).ok();
        done.lines().into_iter().map(str::to_owned).collect()
    };
    assert_eq!(from("earliest").len(), 10);
    assert_eq!(from("latest").len(), 0);
    assert_eq!(from("7"), ["7", "8", "9"]);
    assert_eq!(from("10").len(), 0);
    assert_eq!(
        from(&format!("@{}", base + 5000)),
        ["5", "6", "7", "8", "9"]
    );
    assert_eq!(from(&format!("@{}", base + 5001)), ["6", "7", "8", "9"]);
    assert_eq!(from("@0").len(), 10);
    assert_eq!(from(&format!("@{}", base + 50_000)).len(), 0);

    let mut latest = cli.start(&["consume", "t", "--from", "latest", "--follow"]);
    // It begins at the end as it finds it; publish until it has found it.
    let seen = wait::until("a record after the end", || {
        peer.put(partition, "new");
        latest.line_within(Duration::from_millis(100))
    });
    assert_eq!(seen, b"new");
}

#[test]
fn an_offset_out_of_range_is_an_error_that_names_the_range() {
    let (_broker, cli) = ten();
    let failed = cli.run(&["consume", "t", "--from", "11"]).failed();
    assert_eq!(failed.code(), exit::FAILED, "{failed:?}");
    assert_eq!(failed.stdout, b"");
    for words in [
        "--from 11",
        "t/0",
        "begins at 0 and ends before 10",
        "--partition",
    ] {
        assert!(failed.stderr.contains(words), "{}", failed.stderr);
    }
}

#[test]
fn an_impossible_start_is_a_usage_error() {
    let (_broker, cli) = scene(1);
    for from in ["sometime", "-1", "@", "@x"] {
        let failed = cli
            .run(&["consume", "t", &format!("--from={from}")])
            .failed();
        assert_eq!(failed.code(), exit::USAGE, "{from}: {failed:?}");
    }
}

#[test]
fn a_name_is_committed_and_the_next_of_that_name_goes_on_from_there() {
    let (mut broker, cli) = ten();
    let next = |name: &str, count: &str| {
        let args = [
            "consume",
            "t",
            "--name",
            name,
            "--from",
            "committed",
            "--count",
            count,
        ];
        cli.run(&args).ok().text().replace('\n', " ")
    };
    assert_eq!(next("reader", "4"), "0 1 2 3 ");
    assert_eq!(next("reader", "2"), "4 5 ");
    assert_eq!(next("other", "1"), "0 ");
    broker.kill();
    broker.restart();
    assert_eq!(next("reader", "4"), "6 7 8 9 ");
    assert_eq!(
        cli.run(&["consume", "t", "--name", "reader"]).ok().stdout,
        b"",
        "all was read"
    );
}

#[test]
fn committed_needs_a_name() {
    let (_broker, cli) = ten();
    let failed = cli.run(&["consume", "t", "--from", "committed"]).failed();
    assert_eq!(failed.code(), exit::USAGE);
    assert!(failed.stderr.contains("--name"), "{}", failed.stderr);
}

#[test]
fn one_partition_can_be_read_by_itself() {
    let (_broker, cli) = scene(2);
    cli.feed(&["produce", "t", "--partition", "0"], b"zero\n")
        .ok();
    cli.feed(&["produce", "t", "--partition", "1"], b"one\n")
        .ok();
    assert_eq!(
        cli.run(&["consume", "t", "--partition", "1"]).ok().lines(),
        ["one"]
    );
    let failed = cli.run(&["consume", "t", "--partition", "2"]).failed();
    assert!(failed.stderr.contains('2'), "{}", failed.stderr);
    let mut both = cli
        .run(&["consume", "t"])
        .ok()
        .text()
        .lines()
        .map(str::to_owned)
        .collect::<Vec<_>>();
    both.sort_unstable();
    assert_eq!(both, ["one", "zero"]);
}

#[test]
fn json_has_every_field_and_base64_for_what_is_not_text() {
    let (broker, cli) = scene(1);
    let mut peer = broker.peer();
    let partition = peer.topic("t").expect("a topic").partition(0);
    let at = now_ms() - 5000;
    let mut builder = BatchBuilder::new(Codec::None);
    let headers: [(&str, Option<&[u8]>); 2] = [("kind", Some(b"trade")), ("none", None)];
    builder.push(at, Some("schlüssel".as_bytes()), Some(b"plain"), &headers);
    builder.push(at + 1, Some(b"\xff\x00"), Some(b"\xfe\xed"), &[]);
    builder.push(at + 2, None, None, &[]);
    let mut bytes = Vec::new();
    builder.finish(-1, -1, -1, &mut bytes).expect("a batch");
    peer.publish(partition, bytes).expect("published");

    let records = json_lines(&cli.run(&["consume", "t", "--output", "json"]).ok());
    let pick = |r: &Value| {
        let fields = ["partition", "offset", "timestamp", "key", "value"];
        fields
            .iter()
            .map(|&f| (f.to_owned(), r[f].clone()))
            .collect::<HashMap<_, _>>()
    };
    let row = |offset: i64, key: Value, value: Value| -> HashMap<String, Value> {
        [
            ("partition", json!(0)),
            ("offset", json!(offset)),
            ("timestamp", json!(at + offset)),
            ("key", key),
            ("value", value),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into()
    };
    assert_eq!(
        pick(&records[0]),
        row(0, json!("schlüssel"), json!("plain"))
    );
    assert!(
        records[0].get("value_encoding").is_none_or(Value::is_null),
        "{}",
        records[0]
    );
    let header = records[0]["headers"].to_string();
    assert!(
        header.contains("kind") && header.contains("trade"),
        "{header}"
    );
    let encoded = |bytes: &[u8]| json!(STANDARD.encode(bytes));
    assert_eq!(
        pick(&records[1]),
        row(1, encoded(b"\xff\x00"), encoded(b"\xfe\xed"))
    );
    assert_eq!(records[1]["value_encoding"], "base64");
    assert_eq!(records[1]["key_encoding"], "base64");
    assert_eq!(
        pick(&records[2]),
        row(2, Value::Null, Value::Null),
        "a tombstone without key"
    );
}

#[test]
fn a_reader_that_hangs_up_ends_it_without_a_crash() {
    let (broker, cli) = scene(1);
    let mut peer = broker.peer();
    let partition = peer.topic("t").expect("a topic").partition(0);
    let lines = vec![[b'x'; 1000]; 900];
    for _ in 0..10 {
        peer.publish(partition, ringtide_system_tests::batch(&lines))
            .expect("published");
    }
    let mut consumer = cli.start(&["consume", "t"]);
    consumer.hang_up();
    let ended = consumer.finish();
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

// ---- topics -----------------------------------------------------------------------------------

#[test]
fn a_topic_is_made_described_altered_and_deleted() {
    let broker = Setup::new().shards(2).start();
    let cli = broker.cli();
    let create = [
        "topic",
        "create",
        "orders",
        "--partitions",
        "3",
        "--retention-ms",
        "86400000",
        "--retention-bytes",
        "1000000",
        "--segment-bytes",
        "64KiB",
        "--visible",
        "accepted",
        "--timestamp-type",
        "append",
    ];
    cli.run(&create).ok();
    let settings = broker.peer().topic("orders").expect("a topic").settings;
    let want = table!(TopicSettingsT {
        retention_ms: Some(86_400_000),
        retention_bytes: Some(1_000_000),
        segment_bytes: Some(65_536),
        visible: Some(1),
        max_batch_bytes: settings.max_batch_bytes,
        timestamp_type: Some(1),
        timestamp_max_ahead_ms: settings.timestamp_max_ahead_ms,
    });
    assert_eq!(settings, want);

    cli.feed(&["produce", "orders", "--partition", "1"], b"a\nb\n")
        .ok();
    let described = cli.run(&["topic", "describe", "orders"]).ok();
    assert!(described.text().contains("orders"), "{}", described.text());
    let described = cli.run(&["topic", "describe", "orders", "--json"]).ok();
    let topic: Value = serde_json::from_slice(&described.stdout).expect("JSON");
    assert_eq!(topic["name"], "orders", "{topic}");
    let partitions = topic["partitions"].as_array().expect("partitions");
    assert_eq!(partitions.len(), 3);
    for (n, p) in partitions.iter().enumerate() {
        assert_eq!(p["partition"], n);
        assert_eq!(p["earliest"], 0);
        assert_eq!(
            p["latest"],
            if n == 1 { 2 } else { 0 },
            "the next offset: {p}"
        );
    }

    cli.run(&[
        "topic",
        "alter",
        "orders",
        "--partitions",
        "5",
        "--retention-ms",
        "-1",
    ])
    .ok();
    let altered = broker.peer().topic("orders").expect("a topic");
    assert_eq!(
        (altered.shards.len(), altered.settings.retention_ms),
        (5, Some(-1))
    );
    assert_eq!(
        altered.settings.retention_bytes,
        Some(1_000_000),
        "what is not named stays"
    );

    cli.run(&["topic", "delete", "orders"]).ok();
    let failed = cli.run(&["topic", "describe", "orders"]).failed();
    assert!(failed.stderr.contains("orders"), "{}", failed.stderr);
}

#[test]
fn topics_are_listed_for_people_and_for_programs() {
    let (_broker, cli) = scene(2);
    cli.run(&["topic", "create", "another"]).ok();
    let listed = cli.run(&["topic", "list"]).ok();
    assert!(listed.text().contains("another"), "{}", listed.text());
    let listed = cli.run(&["topic", "list", "--json"]).ok();
    let topics: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    let topics = topics
        .as_array()
        .or_else(|| topics["topics"].as_array())
        .expect("a list")
        .clone();
    let mut names: Vec<&str> = topics
        .iter()
        .map(|t| t["name"].as_str().expect("a name"))
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["another", "t"]);
}

#[test]
fn what_cannot_be_done_to_a_topic_fails_with_the_reason() {
    let (_broker, cli) = scene(2);
    for (args, words) in [
        (&["topic", "create", "t"][..], &["t", "exists"][..]),
        (&["topic", "create", "a/b"], &["a/b"]),
        (&["topic", "delete", "nothing"], &["nothing"]),
        (
            &["topic", "alter", "nothing", "--partitions", "2"],
            &["nothing"],
        ),
        (
            &["topic", "alter", "t", "--partitions", "1"],
            &["partitions"],
        ),
        (
            &["topic", "create", "odd", "--segment-bytes", "1"],
            &["segment-bytes"],
        ),
    ] {
        let failed = cli.run(args).failed();
        assert_eq!(failed.stdout, b"");
        for word in words {
            assert!(
                failed.stderr.contains(word),
                "{word:?} is not in: {}",
                failed.stderr
            );
        }
    }
}

// ---- the server, and how it all ends ----------------------------------------------------------

#[test]
fn the_environment_names_the_server_and_the_flag_wins() {
    let (broker, cli) = scene(1);
    let address = broker.address(0).to_string();
    let elsewhere = format!("127.0.0.1:{}", Ports::reserve().of_shard(0));
    let of_env = Cli::without_server().env("RINGTIDE_SERVER", address);
    assert!(of_env.run(&["topic", "list"]).ok().text().contains('t'));
    cli.env("RINGTIDE_SERVER", elsewhere)
        .run(&["topic", "list"])
        .ok();
}

#[test]
fn any_shard_will_do_as_server() {
    let broker = Setup::new().shards(2).start();
    let second = Cli::new(broker.address(1));
    second
        .run(&["topic", "create", "t", "--partitions", "4"])
        .ok();
    let input: String = (0..40).map(|n| format!("{n}\n")).collect();
    second.feed(&["produce", "t"], input.as_bytes()).ok();
    let mut seen: Vec<u32> = Vec::new();
    for line in second.run(&["consume", "t"]).ok().lines() {
        seen.push(line.parse().expect("a number"));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..40).collect::<Vec<_>>());
}

#[test]
fn a_failure_writes_nothing_where_json_is_expected() {
    let (_broker, cli) = scene(1);
    for args in [
        &["topic", "describe", "nowhere", "--json"][..],
        &["consume", "nowhere", "--output", "json"],
        &["bench", "--rate", "0", "--json", "/dev/stdout"],
        &[
            "bench",
            "--closed-loop",
            "--acks",
            "none",
            "--json",
            "/dev/stdout",
        ],
    ] {
        let failed = cli.run(args).failed();
        assert_eq!(failed.stdout, b"", "{args:?}");
    }
}

#[test]
fn without_a_broker_every_command_says_so() {
    let ports = Ports::reserve();
    let address = format!("127.0.0.1:{}", ports.of_shard(0));
    let cli = Cli::new(address.parse().expect("an address"));
    for args in [&["topic", "list"][..], &["consume", "t"], &["produce", "t"]] {
        let failed = cli.feed(args, b"a\n").failed();
        assert_eq!(failed.code(), exit::UNREACHABLE, "{args:?}: {failed:?}");
        assert!(failed.stderr.contains(&address), "{}", failed.stderr);
    }
}

#[test]
fn a_wrong_flag_is_a_usage_error() {
    let (_broker, cli) = scene(1);
    for args in [
        &["consume", "t", "--no-such-flag"][..],
        &["produce", "t", "--acks", "perhaps"],
        &["produce", "t", "--compression", "gzip"],
        &["produce", "t", "--batch", "0"],
        &["topic", "create", "u", "--partitions", "0"],
        &["consume"],
        &["nonsense"],
    ] {
        assert_eq!(cli.run(args).failed().code(), exit::USAGE, "{args:?}");
    }
}

#[test]
fn the_exit_codes_are_listed_in_the_help_and_in_the_manual() {
    let help = Cli::without_server().run(&["--help"]).ok();
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/OPERATIONS.md");
    let manual = std::fs::read_to_string(manual).expect("a manual");
    for code in [
        exit::DONE,
        exit::FAILED,
        exit::USAGE,
        exit::UNREACHABLE,
        exit::OUTCOME_UNKNOWN,
        exit::FEWER_THAN_ASKED,
        exit::PROBLEMS_FOUND,
        exit::HOST_UNFIT,
        exit::DIRECTORY_LOCKED,
        exit::DIRECTORY_UNUSABLE,
        exit::DIRECTORY_CORRUPT,
        exit::CANNOT_LISTEN,
    ] {
        let in_help = help
            .lines()
            .iter()
            .any(|l| l.trim_start().starts_with(&format!("{code} ")));
        assert!(in_help, "{code} is not in: {}", help.text());
        assert!(
            manual.contains(&format!("| {code} |")),
            "{code} is not in the manual"
        );
    }
}

#[test]
fn a_benchmark_writes_its_latencies() {
    let broker = Broker::start();
    let file = broker.home().join("bench.json");
    let path = file.to_str().expect("a path of text");
    let args = [
        "bench",
        "--closed-loop",
        "--duration",
        "1",
        "--acks",
        "accepted",
        "--json",
        path,
    ];
    let done = broker.cli().run(&args);
    // A busy machine may make the figures worthless, which has an exit code of its own.
    assert!([exit::DONE, 3].contains(&done.code()), "{done:?}");
    let report = std::fs::read(&file).expect("a report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    let latency = &report["produce"]["latency_ns"];
    let at = |k: &str| {
        latency[k]
            .as_u64()
            .unwrap_or_else(|| panic!("{k} is missing: {report}"))
    };
    let ascending = ["p50", "p90", "p99", "p99_9", "p99_99", "max"].map(at);
    assert!(ascending[0] > 0 && ascending.is_sorted(), "{ascending:?}");
    assert_eq!(at("count"), report["produce"]["count"]);
}

#[test]
fn a_benchmark_adds_its_json_to_a_redirected_standard_output() {
    let broker = Broker::start();
    let file = broker.home().join("out");
    std::fs::write(&file, "before\n").expect("a writable folder");
    let redirected = File::options().append(true).open(&file);
    let args = [
        "bench",
        "--closed-loop",
        "--duration",
        "0.1",
        "--acks",
        "accepted",
        "--json",
        "/dev/stdout",
    ];
    let mut command = broker.cli().command(&args);
    let done = command
        .stdout(redirected.expect("the file"))
        .output()
        .expect("it ends");
    let text = std::fs::read_to_string(&file).expect("text");
    let json = text.strip_prefix("before\n").expect("what was there");
    let report: Value = serde_json::from_str(json).expect("JSON and nothing else");
    assert!(report["produce"]["count"].is_u64(), "{report}");
    let table = String::from_utf8_lossy(&done.stderr);
    assert!(table.contains("publish to answer"), "{table}");
}

#[test]
fn the_limits_of_a_machine_are_all_measured_and_leave_nothing_but_their_json() {
    let home = TempDir::new_in(data_root()).expect("a folder");
    let cpu = cpu_list(1);
    let args = [
        "bench",
        "limits",
        "--duration",
        "0.05",
        "--cpus",
        &format!("{cpu},{cpu}"),
        "--json",
        "limits.json",
    ];
    // A broker's address in the environment is none of its business.
    let cli = Cli::without_server().env("RINGTIDE_SERVER", "127.0.0.1:1");
    let table = cli.run_in(home.path(), &args).ok();
    let files: Vec<_> = std::fs::read_dir(home.path())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(files, ["limits.json"]);
    let report = std::fs::read(home.path().join("limits.json")).expect("a report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!(report["schema_version"], 1, "{report}");
    assert_eq!(report["kind"], "limits", "{report}");
    assert_eq!(report["place"]["disk_cpu"].to_string(), cpu, "{report}");
    for name in [
        "tcp_echo_ns",
        "tcp_echo_blocking_ns",
        "durable_write_ns",
        "durable_write_64k_ns",
    ] {
        let at = |k: &str| {
            report[name][k]
                .as_u64()
                .unwrap_or_else(|| panic!("{name} lacks {k}: {report}"))
        };
        let ascending = ["min", "p50", "p90", "p99", "p99_9", "p99_99", "max"].map(at);
        assert!(ascending[0] > 0 && ascending.is_sorted(), "{ascending:?}");
        assert!(
            (ascending[0]..=ascending[6]).contains(&at("mean")),
            "{name}"
        );
        assert!(at("count") > 0, "{name}");
    }
    let copy = &report["memory_copy_bytes_per_s"];
    for rate in [
        &copy["within_l2"],
        &copy["beyond_caches"],
        &report["crc32c_bytes_per_s"],
        &report["send_file_bytes_per_s"],
    ] {
        assert!(rate.as_u64().is_some_and(|rate| rate > 0), "{report}");
    }
    for words in ["echo, 128 B, polling", "durable write, 64 KiB", "GB/s"] {
        assert!(table.text().contains(words), "{words}: {}", table.text());
    }
}

#[test]
fn limits_that_are_interrupted_leave_nothing_behind() {
    let home = TempDir::new_in(data_root()).expect("a folder");
    let files = || std::fs::read_dir(home.path()).expect("a folder").count();
    let args = [
        "bench",
        "limits",
        "--duration",
        "3600",
        "--json",
        "limits.json",
    ];
    let mut running = Cli::without_server().start_in(home.path(), &args);
    // The file for the figures is there at first; the signals are watched soon after.
    wait::for_it("the beginning", || files() == 1);
    wait::for_it("signals that are watched", || {
        watches_signals(running.pid())
    });
    running.signal(Signal::INT);
    let ended = running.finish().failed();
    assert_eq!(ended.code(), 3, "{ended:?}");
    assert!(ended.stderr.contains("interrupted"), "{ended:?}");
    assert_eq!((ended.text(), files()), ("", 0));
}

/// Whether a process has a handler for SIGTERM, which it has after that for SIGINT.
fn watches_signals(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:\t"));
    let caught = u64::from_str_radix(caught.expect("a set of signals"), 16).expect("a number");
    caught & 1 << (Signal::TERM.as_raw() - 1) != 0
}

#[test]
fn limits_need_a_file_system_with_direct_io_and_cpus_that_are_there() {
    let cpu = cpu_list(1);
    let gone = Cli::without_server().run(&["bench", "limits", "--cpus", &format!("{cpu},1023")]);
    let said = gone.failed().stderr;
    assert!(said.contains("CPU 1023"), "{said}");
    let disk = match MountedDisk::ramfs() {
        Ok(disk) => disk,
        Err(reason) => return skip("limits_need_a_file_system_with_direct_io", &reason),
    };
    let path = disk.path().to_str().expect("a path of text");
    let args = ["bench", "limits", "--duration", "0.01", "--dir", path];
    let refused = Cli::without_server().run(&args).failed();
    assert_eq!((refused.code(), refused.text()), (exit::FAILED, ""));
    for words in ["O_DIRECT", path, "choose a directory"] {
        assert!(refused.stderr.contains(words), "{words}: {refused:?}");
    }
}
