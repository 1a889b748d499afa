//! Peers that are slow, deaf, greedy or gone, by the hundred: the broker stays up, holds no more memory
//! than its settings allow, lets go of every socket, and somebody who behaves goes on publishing and
//! reads all of it back. How fast that goes meanwhile is measured by `targets -- hostile` of the load
//! generator; what a single bad frame gets is in bad_input.rs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ringtide_client::sync::Client;
use ringtide_client::{Options, ProducerOptions};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::{FrameHeader, HEADER_BYTES, Op};
use ringtide_schema::ids::PartitionId;
use ringtide_schema::limits::{MAX_CREDIT_BYTES, MAX_PAYLOAD_BYTES, PROTOCOL_MAX, PROTOCOL_MIN};
use ringtide_system_tests::{
    Broker, Flow, Footprint, Peer, Setup, StopsAtEnd, is_root, single, skip, table, wait,
};
use rustix::net::sockopt::set_socket_linger;

const MIB: u64 = 1 << 20;
const SHARDS: usize = 2;
/// Records that the one who behaves gets through after it has begun, and again after an attack.
const ENOUGH: u64 = 200;
/// The segments of both partitions stay open once they were written to: to be written, and to be read.
const SEGMENT_FILES: usize = 4;

// ---- the scene ---------------------------------------------------------------------------------

/// What an attack may cost, in bytes on top of what was resident before it; docs/ARCHITECTURE.md,
/// "Bounds", has the parts.
struct Allowance {
    /// Connections that leave answers unread.
    deaf: u64,
    /// All connections that are open at once.
    connections: u64,
    subscriptions: u64,
    /// Whether it begins frames that it does not finish.
    begins_frames: bool,
}

impl Allowance {
    const NONE: Self = Self {
        deaf: 0,
        connections: 0,
        subscriptions: 0,
        begins_frames: false,
    };

    fn bytes(&self) -> u64 {
        // Of each shard: `--memory-bytes` of these tests, receive buffers, buffers for ranges of files.
        let fixed = SHARDS as u64 * (64 * MIB + 128 * (64 << 10) + 16 * (256 << 10));
        // Answers that wait, what the sender holds of deliveries, and the last request that was taken.
        let deaf = self.deaf * (MIB + 512 * 1024);
        let connections = self.connections * (16 << 10);
        let subscriptions = self.subscriptions * 512;
        let begun = u64::from(self.begins_frames) * 128 * MIB;
        // What the allocator keeps of what was given back, and the one who behaves.
        let slack = 16 * MIB;
        fixed + deaf + connections + subscriptions + begun + slack
    }
}

/// What an attack is given: a broker, and a partition that nobody else uses.
struct Victim<'a> {
    broker: &'a Broker,
    partition: PartitionId,
    owner: usize,
}

impl Victim<'_> {
    /// Somebody who publishes where the partition is.
    fn writer(&self) -> Peer {
        self.broker.peer_at(self.owner)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.broker.address(0)).expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        let patience = Some(wait::PATIENCE);
        stream.set_read_timeout(patience).expect("a timeout");
        stream.set_write_timeout(patience).expect("a timeout");
        stream
    }
}

/// Attacks a broker beside somebody who behaves: once with a partition of the shard that is connected to, once
/// with one of another shard, which is asked by mail.
fn endure(allowance: &Allowance, attack: impl Fn(&Victim<'_>)) {
    for owner in 0..SHARDS {
        endure_at(owner, allowance, &attack);
    }
}

fn endure_at(owner: usize, allowance: &Allowance, attack: impl Fn(&Victim<'_>)) {
    let mut broker = Setup::new().shards(SHARDS).start();
    let mut peer = broker.peer();
    let topic = peer.create_topic("attacked", SHARDS as u32);
    let partition = topic.on_shard(owner as u16);
    peer.create_topic("behaved", 1);
    drop(peer);
    let flow = Flow::new("behaved", 1, 200);
    let stop = AtomicBool::new(false);
    let address = broker.address(0);
    std::thread::scope(|scope| {
        let behaved = scope.spawn(|| publish(address, &flow, &stop));
        let stopping = StopsAtEnd(&stop);
        let goes_on = |broker: &mut Broker| {
            let wanted = flow.acknowledged() + ENOUGH;
            wait::for_it("somebody who behaves to go on", || {
                broker.still_runs();
                assert!(!behaved.is_finished(), "it gave up");
                flow.acknowledged() >= wanted
            });
        };
        goes_on(&mut broker);
        let before = settled(&broker);
        Footprint::forget_peak(broker.pid());

        let victim = Victim {
            broker: &broker,
            partition,
            owner,
        };
        attack(&victim);

        goes_on(&mut broker);
        let peak = broker.footprint().peak.saturating_sub(before.resident);
        eprintln!("{} of {} MiB", peak / MIB, allowance.bytes() / MIB);
        assert!(
            peak <= allowance.bytes(),
            "{peak} bytes more than before the attack, {} are allowed",
            allowance.bytes()
        );
        wait::for_it("all descriptors to be let go", || {
            let now = broker.footprint();
            now.sockets <= before.sockets && now.files <= before.files + SEGMENT_FILES
        });
        drop(stopping);
    });
    flow.check(&broker, &mut [0]);
    flow.check_ends(&broker);
    assert_eq!(broker.stop(), 0);
}

/// One who behaves: publishes in a steady rhythm, every record durable.
fn publish(address: SocketAddr, flow: &Flow, stop: &AtomicBool) {
    let client = Client::connect([address.to_string()], Options::new()).expect("a connection");
    let pause = Duration::from_millis(2);
    flow.publish(&client, &ProducerOptions::new(), pause, stop);
}

/// What the broker holds once it has made all the files that it makes in the background.
fn settled(broker: &Broker) -> Footprint {
    let mut last = broker.footprint();
    wait::until("files to be made", || {
        std::thread::sleep(wait::WATCH);
        let before = std::mem::replace(&mut last, broker.footprint());
        let same = before.sockets == last.sockets && before.files == last.files;
        same.then_some(last)
    })
}

// ---- what a peer says --------------------------------------------------------------------------

/// A valid session, request by request.
struct Session {
    requests: Vec<Vec<u8>>,
}

impl Session {
    /// Hello, a durable publish of one record, a fetch of what there is, and a subscription.
    fn new(victim: &Victim<'_>) -> Self {
        let mut writer = Peer::connect(victim.broker.address(0)).expect("a connection");
        let partition = victim.partition;
        let hello = hello();
        let fetch = table!(FetchRequestT {
            partition: Some(partition.into()),
            offset: 0,
            max_bytes: 4096,
            min_bytes: 0,
            max_wait_ms: 0,
        });
        let subscribe = subscription(partition, -1, 4096);
        let requests = vec![
            writer.frame(Op::Hello, &[], |b| hello.pack(b)).0,
            writer.publish_frame(2, &[(partition, single(WORD))]).0,
            writer.frame(Op::Fetch, &[], |b| fetch.pack(b)).0,
            writer.frame(Op::Subscribe, &[], |b| subscribe.pack(b)).0,
        ];
        Self { requests }
    }

    fn bytes(&self) -> Vec<u8> {
        self.requests.concat()
    }

    /// How many requests are whole in its first `n` bytes.
    fn whole_in(&self, n: usize) -> usize {
        let mut end = 0;
        let whole = self.requests.iter().take_while(|request| {
            end += request.len();
            end <= n
        });
        whole.count()
    }
}

/// What a session publishes.
const WORD: &str = "said in a session";

fn hello() -> ringtide_schema::wire::HelloRequestT {
    table!(HelloRequestT {
        min_version: PROTOCOL_MIN,
        max_version: PROTOCOL_MAX,
        client_name: Some("hostile".into()),
        client_version: Some("1".into()),
    })
}

fn subscription(
    partition: PartitionId,
    offset: i64,
    credit_bytes: u32,
) -> ringtide_schema::wire::SubscribeRequestT {
    table!(SubscribeRequestT {
        partition: Some(partition.into()),
        offset,
        credit_bytes,
    })
}

/// Reads this many whole frames and gives their bytes in all.
fn read_frames(stream: &mut TcpStream, frames: usize) -> usize {
    let mut total = 0;
    for _ in 0..frames {
        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header).expect("an answer");
        let header = FrameHeader::decode(&header).expect("a header");
        let header = header.expect("a whole one");
        let body = header.envelope_bytes as usize + header.payload_bytes as usize;
        stream.read_exact(&mut vec![0; body]).expect("an answer");
        total += HEADER_BYTES + body;
    }
    total
}

/// Ends a connection with a reset.
fn reset(stream: TcpStream) {
    set_socket_linger(&stream, Some(Duration::ZERO)).expect("a socket");
    drop(stream);
}

// ---- the attacks -------------------------------------------------------------------------------

#[test]
fn a_session_reset_after_any_of_its_bytes_leaves_nothing_but_what_was_whole() {
    endure(&Allowance::NONE, |victim| {
        let session = Session::new(victim);
        let bytes = session.bytes();
        let (mut sure, mut most) = (0, 0);
        for n in 0..=bytes.len() {
            let whole = session.whole_in(n);
            // Once in the middle of what the broker does with it, once after it has answered.
            for answered in [false, true] {
                let mut stream = victim.connect();
                stream.write_all(&bytes[..n]).expect("an open connection");
                if answered {
                    read_frames(&mut stream, whole);
                    sure += usize::from(whole >= 2);
                }
                most += usize::from(whole >= 2);
                reset(stream);
            }
        }
        let mut peer = victim.broker.peer();
        let described = peer.describe(victim.partition).expect("a description");
        let published = described.latest;
        assert!(
            (sure..=most).contains(&(published as usize)),
            "{published} of {sure} to {most}"
        );
        for record in peer.fetch_to(victim.partition, 0, published) {
            assert_eq!(record.text(), WORD);
        }
    });
}

#[test]
fn senders_of_a_byte_at_a_time_are_answered_when_their_requests_are_whole() {
    const SENDERS: u64 = 200;
    let allowance = Allowance {
        connections: SENDERS,
        begins_frames: true,
        ..Allowance::NONE
    };
    endure(&allowance, |victim| {
        let session = Session::new(victim);
        let bytes = session.bytes();
        let mut slow: Vec<TcpStream> = (0..SENDERS).map(|_| victim.connect()).collect();
        // Each is at another place of its session.
        for (i, stream) in slow.iter_mut().enumerate() {
            stream.write_all(&bytes[..i]).expect("patience");
        }
        // A byte a second, for a few seconds, of every one.
        const SECONDS: usize = 4;
        for second in 0..SECONDS {
            for (i, stream) in slow.iter_mut().enumerate() {
                let byte = [bytes[i + second]];
                stream.write_all(&byte).expect("patience");
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        for (i, stream) in slow.iter_mut().enumerate() {
            stream.write_all(&bytes[i + SECONDS..]).expect("patience");
        }
        for stream in &mut slow {
            read_frames(stream, session.requests.len());
        }
    });
}

#[test]
fn subscribers_that_never_read_hold_bounded_memory() {
    const DEAF: u64 = 24;
    let allowance = Allowance {
        deaf: DEAF,
        connections: DEAF,
        ..Allowance::NONE
    };
    endure(&allowance, |victim| {
        let mut deaf: Vec<Peer> = (0..DEAF).map(|_| victim.broker.peer()).collect();
        for peer in &mut deaf {
            peer.subscribe(victim.partition, -2, MAX_CREDIT_BYTES as u32)
                .expect("a subscription");
        }
        // Many times what their sockets hold.
        let mut publisher = victim.writer();
        let block = vec![b'x'; 512 << 10];
        for _ in 0..64 {
            publisher.put(victim.partition, &block);
        }
        // Those who only begin now have to be served from files.
        for peer in &mut deaf {
            peer.subscribe(victim.partition, 0, MAX_CREDIT_BYTES as u32)
                .expect("a subscription");
        }
        publisher.put(victim.partition, "the end");
    });
}

#[test]
fn requesters_that_never_read_hold_bounded_memory() {
    const DEAF: u64 = 24;
    let allowance = Allowance {
        deaf: DEAF,
        connections: DEAF,
        ..Allowance::NONE
    };
    endure(&allowance, |victim| {
        let mut publisher = victim.writer();
        for _ in 0..16 {
            publisher.put(victim.partition, vec![b'x'; 256 << 10]);
        }
        let mut deaf: Vec<Peer> = (0..DEAF).map(|_| victim.broker.peer()).collect();
        for peer in &mut deaf {
            let short = Some(Duration::from_millis(20));
            peer.socket().set_write_timeout(short).expect("a timeout");
            let fetch = table!(FetchRequestT {
                partition: Some(victim.partition.into()),
                offset: 0,
                max_bytes: 4 << 20,
                min_bytes: 1,
                max_wait_ms: 0,
            });
            // Until the socket takes no more: it is not read any longer.
            for _ in 0..4000 {
                let (fetch, _) = peer.frame(Op::Fetch, &[], |b| fetch.pack(b));
                if peer.socket().write_all(&fetch).is_err() {
                    break;
                }
            }
        }
    });
}

#[test]
fn a_flood_of_connections_leaves_none_behind() {
    const THREADS: usize = 2;
    const EACH: usize = 3000;
    let allowance = Allowance {
        // Those that are closed and not yet noticed.
        connections: (THREADS * EACH) as u64,
        ..Allowance::NONE
    };
    endure(&allowance, |victim| {
        let hello = Session::new(victim).requests.remove(0);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for i in 0..EACH {
                        let mut stream = victim.connect();
                        match i % 4 {
                            0 => drop(stream),
                            1 => reset(stream),
                            2 => {
                                let _ = stream.write_all(&hello);
                                reset(stream);
                            }
                            _ => {
                                let _ = stream.write_all(&hello[..hello.len() / 2]);
                                reset(stream);
                            }
                        }
                    }
                });
            }
        });
    });
}

#[test]
fn a_flood_of_subscriptions_is_refused_beyond_the_bound_and_forgotten_with_its_connections() {
    const PEERS: u64 = 8;
    const BOUND: u64 = 4096;
    const BEYOND: u64 = 500;
    let allowance = Allowance {
        connections: PEERS,
        subscriptions: PEERS * BOUND,
        deaf: PEERS,
        ..Allowance::NONE
    };
    endure(&allowance, |victim| {
        let mut peers: Vec<Peer> = (0..PEERS).map(|_| victim.broker.peer()).collect();
        for peer in &mut peers {
            let request = subscription(victim.partition, -1, 1 << 20);
            let mut flood = Vec::new();
            for _ in 0..BOUND + BEYOND {
                flood.extend(peer.frame(Op::Subscribe, &[], |b| request.pack(b)).0);
            }
            peer.send_bytes(&flood);
        }
        for peer in &mut peers {
            let mut refused = 0;
            for _ in 0..BOUND + BEYOND {
                let answer = peer.next_within(wait::PATIENCE).expect("an answer to each");
                refused += u64::from(answer.refused().is_some_and(|refused| {
                    assert_eq!(refused.code, ErrorCode::TooMany);
                    true
                }));
            }
            assert_eq!(refused, BEYOND);
        }
        // And now there is something for every one of them, which nobody reads.
        for _ in 0..4 {
            victim.writer().put(victim.partition, vec![b'x'; 2048]);
        }
    });
}

#[test]
fn peers_that_leave_thousands_of_waiting_fetches_are_forgotten_at_once() {
    const PEERS: u64 = 24;
    const EACH: usize = 4000;
    let allowance = Allowance {
        connections: PEERS,
        // What is kept of a fetch that waits is no more than of a subscription.
        subscriptions: PEERS * EACH as u64,
        ..Allowance::NONE
    };
    // Of the shard that is connected to: of others 32 wait at a time, and behind them the end of the connection
    // is not seen before they are answered.
    endure_at(0, &allowance, |victim| {
        for _ in 0..4 {
            let peers: Vec<Peer> = (0..PEERS)
                .map(|_| {
                    let mut peer = victim.broker.peer();
                    let wait = table!(FetchRequestT {
                        partition: Some(victim.partition.into()),
                        offset: 0,
                        max_bytes: 4096,
                        min_bytes: 4096,
                        max_wait_ms: 60_000,
                    });
                    let mut flood = Vec::new();
                    for _ in 0..EACH {
                        flood.extend(peer.frame(Op::Fetch, &[], |b| wait.pack(b)).0);
                    }
                    peer.send_bytes(&flood);
                    peer
                })
                .collect();
            // As many as the bounds allow are there when they go.
            victim.writer().ping().expect("an answer");
            drop(peers);
        }
    });
}

#[test]
fn a_flood_of_tiny_frames_is_answered_frame_by_frame() {
    const FRAMES: usize = 50_000;
    const PEERS: usize = 4;
    let allowance = Allowance {
        connections: PEERS as u64,
        deaf: PEERS as u64,
        ..Allowance::NONE
    };
    endure(&allowance, |victim| {
        std::thread::scope(|scope| {
            for _ in 0..PEERS {
                scope.spawn(|| {
                    let mut peer = victim.broker.peer();
                    let ping = table!(PingRequestT {});
                    let (ping, _) = peer.frame(Op::Ping, &[], |b| ping.pack(b));
                    let flood = ping.repeat(FRAMES / 100);
                    let mut reader = peer.socket().try_clone().expect("a socket");
                    let writer = scope.spawn(move || {
                        for _ in 0..100 {
                            peer.send_bytes(&flood);
                        }
                        peer
                    });
                    read_frames(&mut reader, FRAMES);
                    let mut peer = writer.join().expect("a writer");
                    peer.ping().expect("a good stream");
                });
            }
        });
    });
}

#[test]
fn a_flood_of_huge_declared_lengths_costs_no_more_than_the_bound_of_begun_frames() {
    const PEERS: usize = 400;
    let allowance = Allowance {
        connections: 2 * PEERS as u64,
        begins_frames: true,
        ..Allowance::NONE
    };
    endure(&allowance, |victim| {
        let declare = |bytes: u32| {
            let mut header = FrameHeader::new(Op::Publish, 0, 77, 0, 0);
            header.payload_bytes = bytes;
            header.encode()
        };
        let hello = Session::new(victim).requests.remove(0);
        let begun = vec![0; 700 << 10];
        let mut peers: Vec<TcpStream> = Vec::new();
        for i in 0..PEERS {
            let mut stream = victim.connect();
            stream.write_all(&hello).expect("an open connection");
            read_frames(&mut stream, 1);
            let short = Some(Duration::from_millis(20));
            stream.set_write_timeout(short).expect("a timeout");
            let _ = stream.write_all(&declare(MAX_PAYLOAD_BYTES as u32));
            // 280 MB in all, more than twice what may have begun to arrive; some it will not take.
            let _ = stream.write_all(&begun);
            peers.push(stream);
            let mut liar = victim.connect();
            let lie = declare(u32::MAX - (i as u32 % 3));
            let _ = liar.write_all(&[&hello[..], &lie].concat());
            peers.push(liar);
        }
        // It came to the bound, and those beyond it were told.
        victim
            .broker
            .logs(&["requests that cannot be handled yet hold over"]);
    });
}

#[test]
fn peers_that_close_their_half_are_closed() {
    const PEERS: u64 = 200;
    let allowance = Allowance {
        connections: PEERS,
        ..Allowance::NONE
    };
    endure(&allowance, |victim| {
        let session = Session::new(victim);
        let bytes = session.bytes();
        let before = victim.broker.footprint().sockets;
        let mut peers: Vec<TcpStream> = Vec::new();
        for _ in 0..PEERS {
            let mut stream = victim.connect();
            stream.write_all(&bytes).expect("an open connection");
            read_frames(&mut stream, session.requests.len());
            stream
                .shutdown(Shutdown::Write)
                .expect("an open connection");
            peers.push(stream);
        }
        wait::for_it("the broker to close its half", || {
            victim.broker.footprint().sockets <= before
        });
        drop(peers);
    });
}

/// Opens connections, has a session on each, and lets all of them vanish without a word: a socket in
/// repair mode says nothing when it is closed, as a host that lost its power does.
const VANISH: &str = r#"
use strict; use Socket;
my ($port, $count, $answers) = @ARGV;
binmode STDIN; local $/; my $session = <STDIN>;
my @peers;
for (1 .. $count) {
    socket(my $peer, PF_INET, SOCK_STREAM, 0) or die "socket: $!";
    connect($peer, sockaddr_in($port, INADDR_LOOPBACK)) or die "connect: $!";
    syswrite($peer, $session) == length $session or die "write: $!";
    for (my $read = 0; $read < $answers; ) {
        my $n = sysread($peer, my $answer, $answers - $read) or die "read: $!";
        $read += $n;
    }
    push @peers, $peer;
}
for my $peer (@peers) {
    setsockopt($peer, 6, 19, pack("i", 1)) or die "TCP_REPAIR: $!";
    close $peer;
}
$| = 1; print "vanished\n";
"#;

#[test]
fn peers_that_vanish_are_noticed_when_something_is_sent_to_them() {
    const TEST: &str = "peers_that_vanish_are_noticed_when_something_is_sent_to_them";
    const PEERS: usize = 100;
    if !is_root() {
        return skip(TEST, "a connection that ends without a word needs root");
    }
    if Command::new("perl").arg("-v").output().is_err() {
        return skip(TEST, "there is no perl to make such connections");
    }
    let allowance = Allowance {
        connections: PEERS as u64,
        ..Allowance::NONE
    };
    endure(&allowance, |victim| {
        let mut requests = Session::new(victim).requests;
        // Hello and a subscription: nothing is on its way when they vanish.
        let session = [requests.remove(0), requests.remove(2)].concat();
        let mut stream = victim.connect();
        stream.write_all(&session).expect("an open connection");
        let answers = read_frames(&mut stream, 2);
        reset(stream);
        let before = settled(victim.broker).sockets;

        let mut child = Command::new("perl")
            .args(["-e", VANISH])
            .arg(victim.broker.address(0).port().to_string())
            .args([PEERS.to_string(), answers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("perl");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(&session).expect("a pipe");
        drop(stdin);
        let mut said = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut said).expect("a pipe");
        assert_eq!(said, "vanished\n");
        assert!(child.wait().expect("a child").success());

        // They are gone, and the broker cannot know.
        let half_open = victim.broker.footprint().sockets;
        assert!(half_open >= before + PEERS, "{half_open} after {before}");
        victim
            .broker
            .peer()
            .put(victim.partition, "is anybody there?");
        wait::for_it("all that vanished to be noticed", || {
            victim.broker.footprint().sockets <= before
        });
    });
}
