//! What one who behaves notices of those who do not.
//!
//! One thread does both: it publishes one durable record at a time and, while it waits for the answer, does a
//! piece of the attack. What a piece takes (opening a connection: tens of microseconds) is therefore part of
//! the latency beside the attack.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use ringtide_client::{Acks, PartitionId, Visibility};
use ringtide_perf::broker::Broker;
use ringtide_perf::flood::Publisher;
use ringtide_perf::lone_topic::LoneTopic;
use ringtide_perf::pipe::PublishFrame;
use ringtide_perf::{BenchError, Latency, Recorder, cpu};
use ringtide_schema::frame::{FrameHeader, Op};
use ringtide_schema::limits::{MAX_CREDIT_BYTES, MAX_PAYLOAD_BYTES, PROTOCOL_MAX, PROTOCOL_MIN};
use ringtide_schema::wire;
use ringtide_session::Encoder;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::context::Context;
use crate::report::{Line, Target, median};

/// Bytes of a record of the one who behaves.
const BYTES: usize = 128;
/// What those who never read could be sent: batches of so many bytes, and so many of them.
const DEAF_BATCHES: (usize, usize) = (64 << 10, 512);
/// Subscriptions that are tried on a connection: the bound, and some that are refused.
const SUBSCRIPTIONS: u64 = 4096 + 504;

/// Fetches that wait on a connection.
const FETCHES: u64 = 4000;

/// What does the harm, a piece at a time.
trait Attack: Send {
    /// One system call or a few, none of which waits. Gives how much of the attack that was.
    fn turn(&mut self) -> Result<u64, BenchError>;
}

type Make = fn(&Victim) -> Result<Box<dyn Attack>, BenchError>;

/// By name, with what is counted.
const ATTACKS: [(&str, &str, Make); 8] = [
    ("senders of a byte a second", "bytes", slow),
    ("subscribers that never read", "connections", deaf),
    ("a flood of connections", "connections", connections),
    ("a flood of subscriptions", "writes", subscriptions),
    ("fetches that wait and go", "connections", fetches),
    ("a flood of tiny frames", "writes", tiny),
    ("declared lengths without bodies", "connections", lengths),
    ("sessions that are reset", "connections", resets),
];

/// Durable p99 beside each attack, and without it.
pub fn hostile(context: &Context) -> Result<Vec<Line>, BenchError> {
    let (broker, _) = context.broker("hostile")?;
    let filled = LoneTopic::create(&broker.server, None, Visibility::Durable)?;
    let mut fill = Publisher::new(&filled, (DEAF_BATCHES.0, 1), Acks::Durable, 32)?;
    let mut left = DEAF_BATCHES.1;
    while left > 0 {
        left -= fill.turn(left)?;
    }
    fill.drain()?;
    let victim = Victim {
        address: address(&broker.server)?,
        partition: filled.partition,
    };
    let mut lines = Vec::new();
    for (name, unit, make) in ATTACKS {
        let mut rates = Vec::new();
        let pairs = context.in_pairs(|_| {
            let (alone, _) = probe(context, &broker, None)?;
            let mut attack = make(&victim)?;
            let (beside, pieces) = probe(context, &broker, Some(&mut *attack))?;
            rates.push(pieces);
            drop(attack);
            // What it has left behind is no part of the next measurement alone.
            crate::context::settle(&broker)?;
            Ok((alone, beside))
        })?;
        let us = |latency: &Latency| latency.p99 as f64 / 1000.0;
        lines.push(
            Line::ratio(
                format!("durable p99 beside {name} / alone"),
                "us",
                pairs.iter().map(|(alone, beside)| (us(alone), us(beside))),
                Target::AtMost(2.0),
            )
            .noting(format!("{:.0} {unit} a second", median(rates))),
        );
    }
    broker.stop()?;
    Ok(lines)
}

/// One durable record after the other, with a piece of the attack in every look for the answer. Gives the
/// pieces a second as well.
fn probe(
    context: &Context,
    broker: &Broker,
    mut attack: Option<&mut dyn Attack>,
) -> Result<(Latency, f64), BenchError> {
    let topic = LoneTopic::create(&broker.server, None, Visibility::Durable)?;
    let result = cpu::on(Some(context.client_cpu), || {
        let mut publisher = Publisher::new(&topic, (BYTES, 1), Acks::Durable, 1)?;
        let mut recorder = Recorder::new();
        let mut pieces = 0;
        let warm_up = context.duration / 4;
        let began = Instant::now();
        while began.elapsed() < warm_up + context.duration {
            let asked = Instant::now();
            publisher.turn(1)?;
            while publisher.in_flight() > 0 {
                if let Some(attack) = &mut attack {
                    pieces += attack.turn()?;
                }
                publisher.turn(0)?;
            }
            if asked - began >= warm_up {
                recorder.record(asked.elapsed());
            }
        }
        let rate = pieces as f64 / began.elapsed().as_secs_f64();
        let latency = recorder.summary();
        Ok((latency.ok_or(BenchError::Empty(context.duration))?, rate))
    });
    let result = result
        .map_err(BenchError::io("cannot place the client"))
        .flatten();
    topic.delete_after(&broker.server, result)
}

// ---- the attacks -------------------------------------------------------------------------------

/// What is attacked.
struct Victim {
    address: SocketAddr,
    /// Of a topic that holds [`DEAF_BATCHES`].
    partition: PartitionId,
}

fn slow(victim: &Victim) -> Result<Box<dyn Attack>, BenchError> {
    const SENDERS: usize = 500;
    let streams = (0..SENDERS).map(|_| open(victim.address));
    Ok(Box::new(Slow {
        streams: streams.collect::<Result<_, _>>()?,
        session: session(victim),
        sent: 0,
        began: Instant::now(),
    }))
}

fn deaf(victim: &Victim) -> Result<Box<dyn Attack>, BenchError> {
    let subscribe = subscribe(2, victim.partition, 0, MAX_CREDIT_BYTES as u32);
    let opening = [hello(), subscribe].concat();
    let every = Duration::from_millis(10);
    Ok(Opener::boxed(victim, vec![opening], 64, every))
}

fn connections(victim: &Victim) -> Result<Box<dyn Attack>, BenchError> {
    Ok(Opener::boxed(victim, vec![Vec::new()], 16, Duration::ZERO))
}

fn lengths(victim: &Victim) -> Result<Box<dyn Attack>, BenchError> {
    let mut header = FrameHeader::new(Op::Publish, 0, 2, 0, 0);
    header.payload_bytes = MAX_PAYLOAD_BYTES as u32;
    let begun = vec![0; 32 << 10];
    let opening = [&hello()[..], &header.encode(), &begun].concat();
    Ok(Opener::boxed(victim, vec![opening], 1000, Duration::ZERO))
}

fn resets(victim: &Victim) -> Result<Box<dyn Attack>, BenchError> {
    let session = session(victim);
    let cut = (0..=session.len()).map(|n| session[..n].to_vec());
    Ok(Opener::boxed(victim, cut.collect(), 1, Duration::ZERO))
}

fn subscriptions(victim: &Victim) -> Result<Box<dyn Attack>, BenchError> {
    let many = (2..2 + SUBSCRIPTIONS).map(|i| subscribe(i, victim.partition, -1, 1 << 20));
    let many: Vec<Vec<u8>> = many.collect();
    Ok(Box::new(Flood::new(victim, many.concat(), 1)?))
}

fn fetches(victim: &Victim) -> Result<Box<dyn Attack>, BenchError> {
    let wait = wire::FetchRequestT {
        partition: Some(victim.partition.into()),
        offset: DEAF_BATCHES.1 as u64,
        max_bytes: 4096,
        min_bytes: 1,
        max_wait_ms: 60_000,
    };
    let fetches = (2..2 + FETCHES).map(|i| frame(Op::Fetch, i, |b| wait.pack(b)));
    let fetches: Vec<Vec<u8>> = fetches.collect();
    let opening = [&hello()[..], &fetches.concat()].concat();
    let every = Duration::from_millis(20);
    Ok(Opener::boxed(victim, vec![opening], 16, every))
}

fn tiny(victim: &Victim) -> Result<Box<dyn Attack>, BenchError> {
    let ping = frame(Op::Ping, 2, |b| wire::PingRequestT::default().pack(b));
    Ok(Box::new(Flood::new(victim, ping.repeat(1000), 1000)?))
}

/// Opens connections and says something on each; the last few stay, those before are reset.
struct Opener {
    address: SocketAddr,
    /// In turn.
    openings: Vec<Vec<u8>>,
    opened: usize,
    open: VecDeque<TcpStream>,
    stay: usize,
    every: Duration,
    last: Instant,
}

impl Opener {
    fn boxed(
        victim: &Victim,
        openings: Vec<Vec<u8>>,
        stay: usize,
        every: Duration,
    ) -> Box<dyn Attack> {
        Box::new(Self {
            address: victim.address,
            openings,
            opened: 0,
            open: VecDeque::new(),
            stay,
            every,
            last: Instant::now(),
        })
    }
}

impl Attack for Opener {
    fn turn(&mut self) -> Result<u64, BenchError> {
        if self.last.elapsed() < self.every {
            return Ok(0);
        }
        self.last = Instant::now();
        if self.open.len() >= self.stay {
            // With what `open` has set, a reset.
            self.open.pop_front();
            return Ok(0);
        }
        let mut stream = open(self.address)?;
        // What the socket does not take at once, or a broker that hangs up, ends the attempt, not the attack.
        let _ = stream.write(&self.openings[self.opened % self.openings.len()]);
        self.opened += 1;
        self.open.push_back(stream);
        Ok(1)
    }
}

/// Sends a session on each of many connections, each a byte a second.
struct Slow {
    streams: Vec<TcpStream>,
    session: Vec<u8>,
    sent: usize,
    began: Instant,
}

impl Attack for Slow {
    fn turn(&mut self) -> Result<u64, BenchError> {
        let due = self.began.elapsed().as_secs_f64() * self.streams.len() as f64;
        if self.sent as f64 >= due {
            return Ok(0);
        }
        let stream = self.sent % self.streams.len();
        let byte = self.session[self.sent / self.streams.len() % self.session.len()];
        let _ = self.streams[stream].write(&[byte]);
        self.sent += 1;
        Ok(1)
    }
}

/// Sends the same requests as fast as they are taken and throws the answers away; after some times on a new
/// connection.
struct Flood {
    address: SocketAddr,
    stream: TcpStream,
    hello: Vec<u8>,
    requests: Vec<u8>,
    /// Bytes of hello and requests that were sent on this connection.
    sent: usize,
    times: usize,
    buffer: Vec<u8>,
}

impl Flood {
    fn new(victim: &Victim, requests: Vec<u8>, times: usize) -> Result<Self, BenchError> {
        Ok(Self {
            address: victim.address,
            stream: open(victim.address)?,
            hello: hello(),
            requests,
            sent: 0,
            times,
            buffer: vec![0; 64 << 10],
        })
    }
}

impl Attack for Flood {
    fn turn(&mut self) -> Result<u64, BenchError> {
        let at = self.sent.checked_sub(self.hello.len());
        let ended = at.is_some_and(|at| at / self.requests.len() >= self.times);
        let read = self.stream.read(&mut self.buffer);
        let closed = matches!(read, Ok(0));
        if ended || closed {
            self.stream = open(self.address)?;
            self.sent = 0;
            return Ok(0);
        }
        let next = match at {
            None => &self.hello[self.sent..],
            // A piece at a time, so that the one who behaves is looked after in between.
            Some(at) => {
                let from = at % self.requests.len();
                &self.requests[from..self.requests.len().min(from + (16 << 10))]
            }
        };
        match self.stream.write(next) {
            Ok(taken) => {
                self.sent += taken;
                Ok(1)
            }
            Err(_) => Ok(0),
        }
    }
}

/// A connection that waits for nothing, and is reset when it is dropped.
fn open(address: SocketAddr) -> Result<TcpStream, BenchError> {
    let failed =
        |errno: rustix::io::Errno| BenchError::io("cannot open a connection")(errno.into());
    let family = AddressFamily::INET;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(failed)?;
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).map_err(failed)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(errno) => Err(failed(errno)),
    }
}

fn address(server: &str) -> Result<SocketAddr, BenchError> {
    let found = server.to_socket_addrs().ok().and_then(|mut all| all.next());
    found.ok_or_else(|| BenchError::Wrong(format!("{server} is no address")))
}

// ---- what is said ------------------------------------------------------------------------------

fn frame<T>(
    op: Op,
    correlation: u64,
    build: impl FnOnce(
        &mut ringtide_schema::flatbuffers::FlatBufferBuilder<'static>,
    ) -> ringtide_schema::flatbuffers::WIPOffset<T>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    Encoder::new().frame(&mut bytes, op, 0, correlation, 0, build);
    bytes
}

fn hello() -> Vec<u8> {
    let hello = wire::HelloRequestT {
        min_version: PROTOCOL_MIN,
        max_version: PROTOCOL_MAX,
        client_name: Some("hostile".into()),
        client_version: Some("1".into()),
    };
    frame(Op::Hello, 1, |b| hello.pack(b))
}

fn subscribe(correlation: u64, partition: PartitionId, offset: i64, credit_bytes: u32) -> Vec<u8> {
    let subscribe = wire::SubscribeRequestT {
        partition: Some(partition.into()),
        offset,
        credit_bytes,
    };
    frame(Op::Subscribe, correlation, |b| subscribe.pack(b))
}

/// Hello, a publish that is refused, a fetch and a subscription.
fn session(victim: &Victim) -> Vec<u8> {
    let fetch = wire::FetchRequestT {
        partition: Some(victim.partition.into()),
        max_bytes: 4096,
        ..Default::default()
    };
    let fetch = frame(Op::Fetch, 3, |b| fetch.pack(b));
    let publish = PublishFrame::new(victim.partition, &[0; 100], Acks::Durable);
    [
        hello(),
        publish.bytes().to_vec(),
        fetch,
        subscribe(4, victim.partition, -1, 4096),
    ]
    .concat()
}
