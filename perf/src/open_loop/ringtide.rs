//! A Ringtide broker as what is measured: each publisher and each subscriber has a connection of its
//! own to every shard that it needs. Batches carry no producer identity and are never sent again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use ringtide_client::{Acks, BatchBuilder, Codec, PartitionId};
use ringtide_schema::batch::Batches;
use ringtide_schema::frame::{FLAG_ERROR, Op};
use ringtide_schema::record::records;
use ringtide_schema::wire;
use ringtide_session::{Frame, envelope};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::error::BenchError;
use crate::open_loop::target::{From, Outgoing, PublishSide, SubscribeSide, Target, Verdict};
use crate::pipe::{Pipe, refusal};

/// Up to so many connections each is looked at in each turn; of more the system says which are ready.
const FEW: usize = 4;
/// Of many connections each reads so much at a time.
const SMALL_READ_BYTES: usize = 16 << 10;
/// Bytes that may be under way to a subscriber from one partition.
const CREDIT_BYTES: u32 = 8 << 20;
/// Bytes that may wait for a socket before nothing more is sent.
const MAX_UNSENT_BYTES: usize = 4 << 20;
/// A batch that inflates to more is a bad batch.
const MAX_INFLATED_BYTES: usize = 64 << 20;

/// A topic of a broker, made for one measurement.
#[derive(Clone, Debug)]
pub struct RingtideTopic {
    /// Its partitions, each with the HOST:PORT of its shard.
    pub partitions: Vec<(PartitionId, String)>,
    /// What publishers ask for.
    pub acks: Acks,
    /// How batches are compressed.
    pub codec: Codec,
    /// Requests in flight on a connection, at the most.
    pub in_flight: usize,
}

impl Target for RingtideTopic {
    fn publishers(&self, count: usize) -> Result<Box<dyn PublishSide + '_>, BenchError> {
        Ok(Box::new(Publishers {
            links: Links::connect(self, count)?,
            topic: self,
            builder: BatchBuilder::new(self.codec),
            batch: Vec::new(),
            key: Vec::new(),
            leaving: Vec::new(),
        }))
    }

    fn subscribers(&self, count: usize) -> Result<Box<dyn SubscribeSide + '_>, BenchError> {
        Ok(Box::new(Subscribers {
            links: Links::connect(self, count)?,
            topic: self,
            count,
            of: HashMap::new(),
            unanswered: HashSet::new(),
            scratch: Vec::new(),
        }))
    }
}

/// One connection.
struct Link {
    pipe: Pipe,
    in_flight: usize,
    is_dirty: bool,
    /// Without acknowledgements: where in the stream each batch ends, and its token.
    leaving: VecDeque<(u64, u64)>,
}

/// Connections of publishers or subscribers.
struct Links {
    links: Vec<Link>,
    /// By publisher or subscriber and partition.
    routes: Vec<usize>,
    partitions: usize,
    /// Those with something to send.
    dirty: Vec<usize>,
    poll: Option<rustix::fd::OwnedFd>,
    ready: Vec<epoll::Event>,
}

impl Links {
    fn connect(topic: &RingtideTopic, count: usize) -> Result<Self, BenchError> {
        let partitions = topic.partitions.len();
        let mut owners: Vec<&str> = topic.partitions.iter().map(|(_, o)| o.as_str()).collect();
        owners.sort_unstable();
        owners.dedup();
        let many = count * owners.len() > FEW;
        let (mut links, mut routes) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let first = links.len();
            for owner in &owners {
                let mut pipe = Pipe::connect(owner, None)?;
                if many {
                    pipe = pipe.reading(SMALL_READ_BYTES);
                }
                links.push(Link {
                    pipe,
                    in_flight: 0,
                    is_dirty: false,
                    leaving: VecDeque::new(),
                });
            }
            let at = |owner: &str| owners.partition_point(|o| *o < owner);
            routes.extend(topic.partitions.iter().map(|(_, o)| first + at(o)));
        }
        let watched = |links: &[Link]| -> rustix::io::Result<_> {
            let poll = epoll::create(CreateFlags::CLOEXEC)?;
            for (n, link) in links.iter().enumerate() {
                epoll::add(
                    &poll,
                    &link.pipe,
                    EventData::new_u64(n as u64),
                    EventFlags::IN,
                )?;
            }
            Ok(poll)
        };
        let poll = match many {
            true => {
                let poll = watched(&links).map_err(std::io::Error::from);
                Some(poll.map_err(BenchError::io("cannot watch the connections"))?)
            }
            false => None,
        };
        Ok(Self {
            links,
            routes,
            partitions,
            dirty: Vec::new(),
            poll,
            ready: Vec::with_capacity(256),
        })
    }

    fn route(&self, who: usize, partition: u32) -> usize {
        self.routes[who * self.partitions + partition as usize]
    }

    fn mark(&mut self, link: usize) {
        if !std::mem::replace(&mut self.links[link].is_dirty, true) {
            self.dirty.push(link);
        }
    }

    /// Sends what was gathered and hands out what arrived, with the link that it arrived on.
    fn turn(
        &mut self,
        mut each: impl FnMut(usize, &mut usize, Frame<'_>),
    ) -> Result<bool, BenchError> {
        for n in 0..self.dirty.len() {
            let at = self.dirty[n];
            let link = &mut self.links[at];
            link.pipe.flush()?;
            link.is_dirty = link.pipe.unsent_bytes() > 0;
        }
        let links = &self.links;
        self.dirty.retain(|&at| links[at].is_dirty);
        let mut arrived = 0;
        if let Some(poll) = &self.poll {
            self.ready.clear();
            let no_time = rustix::event::Timespec::default();
            let spare = rustix::buffer::spare_capacity(&mut self.ready);
            match epoll::wait(poll, spare, Some(&no_time)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    return Err(BenchError::io("cannot watch the connections")(errno.into()));
                }
            }
            for event in &self.ready {
                let at = event.data.u64() as usize;
                let Link {
                    pipe, in_flight, ..
                } = &mut self.links[at];
                arrived += pipe.poll(|frame| each(at, in_flight, frame))?;
            }
        } else {
            for (at, link) in self.links.iter_mut().enumerate() {
                let Link {
                    pipe, in_flight, ..
                } = link;
                arrived += pipe.poll(|frame| each(at, in_flight, frame))?;
            }
        }
        Ok(arrived > 0)
    }
}

struct Publishers<'a> {
    links: Links,
    topic: &'a RingtideTopic,
    builder: BatchBuilder,
    batch: Vec<u8>,
    key: Vec<u8>,
    /// Without acknowledgements: the links that batches have not left yet.
    leaving: Vec<usize>,
}

impl PublishSide for Publishers<'_> {
    fn may_send(&self, publisher: usize, partition: u32) -> bool {
        let link = &self.links.links[self.links.route(publisher, partition)];
        let limit = self.topic.in_flight.min(link.pipe.max_in_flight());
        link.in_flight < limit && link.pipe.unsent_bytes() < MAX_UNSENT_BYTES
    }

    fn send(
        &mut self,
        token: u64,
        publisher: usize,
        partition: u32,
        outgoing: Outgoing<'_>,
    ) -> Result<(), BenchError> {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now_ms = since.as_millis() as i64;
        for (key, value) in outgoing.records() {
            self.key.clear();
            let key = key.map(|key| {
                // Memory takes everything.
                let _ = write!(self.key, "{key}");
                &*self.key
            });
            self.builder.push(now_ms, key, Some(value), &[]);
        }
        self.batch.clear();
        self.builder
            .finish(-1, -1, -1, &mut self.batch)
            .map_err(|error| BenchError::Usage(format!("such a batch cannot be: {error}")))?;
        let at = self.links.route(publisher, partition);
        let link = &mut self.links.links[at];
        let (id, _) = self.topic.partitions[partition as usize];
        link.pipe
            .publish_as(token, id, &self.batch, self.topic.acks)?;
        if self.topic.acks == Acks::None {
            if link.leaving.is_empty() {
                self.leaving.push(at);
            }
            link.leaving.push_back((link.pipe.end(), token));
        } else {
            link.in_flight += 1;
        }
        self.links.mark(at);
        Ok(())
    }

    fn turn(&mut self, done: &mut dyn FnMut(u64, Verdict<'_>)) -> Result<bool, BenchError> {
        let mut any = self.links.turn(|_, in_flight, frame| {
            let token = frame.header.correlation;
            if frame.header.flags & FLAG_ERROR != 0 {
                *in_flight = in_flight.saturating_sub(1);
                done(token, Err(&refusal(frame.envelope)));
            } else if frame.header.op == Op::Publish as u8 {
                *in_flight -= 1;
                match answer(&frame) {
                    Ok(()) => done(token, Ok(())),
                    Err(why) => done(token, Err(&why)),
                }
            }
        })?;
        let links = &mut self.links.links;
        self.leaving.retain(|&at| {
            let Link { pipe, leaving, .. } = &mut links[at];
            while let Some(&(end, token)) = leaving.front()
                && end <= pipe.taken()
            {
                leaving.pop_front();
                any = true;
                done(token, Ok(()));
            }
            !leaving.is_empty()
        });
        Ok(any)
    }
}

/// What the answer to a publish of one batch says.
fn answer(frame: &Frame<'_>) -> Result<(), String> {
    let answer = envelope::<wire::PublishResponse<'_>>(frame.envelope)
        .map_err(|error| format!("answered with what cannot be read: {error}"))?;
    let result = answer.results().and_then(|results| results.iter().next());
    match result.map(wire::PublishResult::error) {
        Some(0) => Ok(()),
        Some(code) => {
            let message = answer.message().unwrap_or_default();
            Err(format!("refused with error {code}: {message}"))
        }
        None => Err("answered without a result".into()),
    }
}

/// A subscriber's subscription to one partition.
struct Subscription {
    subscriber: usize,
    partition: u32,
    /// Bytes that were not given back.
    owed: u32,
    /// Where it goes on. A broker may begin earlier, with what lies before in its file.
    next_offset: u64,
}

struct Subscribers<'a> {
    links: Links,
    topic: &'a RingtideTopic,
    count: usize,
    /// By link and number.
    of: HashMap<(usize, u64), Subscription>,
    /// Links and numbers.
    unanswered: HashSet<(usize, u64)>,
    scratch: Vec<u8>,
}

impl Subscription {
    /// Takes the answer that says where it begins.
    fn begin(&mut self, frame: &Frame<'_>) -> Result<(), String> {
        let answer = envelope::<wire::SubscribeResponse<'_>>(frame.envelope);
        let answer = answer.map_err(|e| format!("a subscription got what cannot be read: {e}"))?;
        self.next_offset = answer.offset();
        Ok(())
    }

    /// Hands out what was pushed.
    fn take(
        &mut self,
        payload: &[u8],
        scratch: &mut Vec<u8>,
        each: &mut dyn FnMut(usize, u32, &[u8]),
    ) -> Result<(), String> {
        self.owed += payload.len() as u32;
        let bad =
            |partition, error| format!("partition {partition} delivered a bad batch: {error}");
        for batch in Batches::new(payload) {
            let (header, batch) = batch.map_err(|error| bad(self.partition, error))?;
            let records = records(batch, scratch, MAX_INFLATED_BYTES);
            for record in records.map_err(|error| bad(self.partition, error))? {
                if record.offset >= self.next_offset {
                    let value = record.value.unwrap_or_default();
                    each(self.subscriber, self.partition, value);
                }
            }
            self.next_offset = header.next_offset().max(self.next_offset);
        }
        Ok(())
    }
}

impl SubscribeSide for Subscribers<'_> {
    fn subscribe(&mut self, from: From) -> Result<(), BenchError> {
        let offset = match from {
            From::Latest => -1,
            From::Earliest => -2,
        };
        for subscriber in 0..self.count {
            for (partition, (id, _)) in self.topic.partitions.iter().enumerate() {
                let at = self.links.route(subscriber, partition as u32);
                let pipe = &mut self.links.links[at].pipe;
                let number = pipe.subscribe_from(*id, offset, CREDIT_BYTES)?;
                let subscription = Subscription {
                    subscriber,
                    partition: partition as u32,
                    owed: 0,
                    next_offset: 0,
                };
                self.of.insert((at, number), subscription);
                self.unanswered.insert((at, number));
                self.links.mark(at);
            }
        }
        Ok(())
    }

    fn unanswered(&self) -> Option<&str> {
        let (at, _) = self.unanswered.iter().next()?;
        Some(self.links.links[*at].pipe.server())
    }

    fn turn(&mut self, each: &mut dyn FnMut(usize, u32, &[u8])) -> Result<bool, BenchError> {
        let Self {
            links,
            of,
            unanswered,
            scratch,
            ..
        } = self;
        let (mut back, mut wrong) = (Vec::new(), None);
        let arrived = links.turn(|at, _, frame| {
            if frame.header.flags & FLAG_ERROR != 0 {
                wrong = Some(format!("a subscription was {}", refusal(frame.envelope)));
                return;
            }
            let key = (at, frame.header.correlation);
            let Some(subscription) = of.get_mut(&key) else {
                return;
            };
            let done = if frame.header.op == Op::Subscribe as u8 {
                unanswered.remove(&key);
                subscription.begin(&frame)
            } else if frame.header.op == Op::Push as u8 {
                subscription.take(frame.payload, scratch, each)
            } else {
                Ok(())
            };
            if let Err(why) = done {
                wrong = Some(why);
            }
            if subscription.owed >= CREDIT_BYTES / 2 {
                back.push((key, std::mem::take(&mut subscription.owed)));
            }
        })?;
        for ((at, subscription), bytes) in back {
            links.links[at].pipe.credit(subscription, bytes)?;
            links.mark(at);
        }
        wrong.map_or(Ok(arrived), |why| Err(BenchError::Wrong(why)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::ops::ControlFlow;
    use std::sync::{Mutex, mpsc};
    use std::time::Duration;

    use ringtide_client::TopicId;
    use ringtide_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
    use ringtide_schema::frame::{FrameHeader, HEADER_BYTES};
    use ringtide_session::Encoder;

    use super::*;
    use crate::open_loop::{Plan, Progress, Watch, run};

    /// A topic at a broker that greets everyone and then does this.
    fn topic(acks: Acks, meet: impl Fn(TcpStream) + Send + Sync + 'static) -> RingtideTopic {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = listener.local_addr().expect("an address").to_string();
        std::thread::spawn(move || {
            std::thread::scope(|scope| {
                for mut stream in listener.incoming().flatten() {
                    let meet = &meet;
                    scope.spawn(move || {
                        greet(&mut stream);
                        meet(stream);
                    });
                }
            });
        });
        let topic = TopicId { hi: 1, lo: 2 };
        let id = PartitionId {
            topic,
            partition: 0,
        };
        RingtideTopic {
            partitions: vec![(id, server)],
            acks,
            codec: Codec::None,
            in_flight: usize::MAX,
        }
    }

    /// Reads a request; its correlation.
    fn read(stream: &mut TcpStream) -> u64 {
        let mut head = [0; HEADER_BYTES];
        stream.read_exact(&mut head).expect("a request");
        let header = FrameHeader::decode(&head).expect("a header");
        let header = header.expect("whole");
        let mut body = vec![0; header.frame_bytes() - HEADER_BYTES];
        stream.read_exact(&mut body).expect("the rest");
        header.correlation
    }

    fn greet(stream: &mut TcpStream) {
        let asked = read(stream);
        tell(stream, (Op::Hello, asked), &[], |b| {
            let args = wire::HelloResponseArgs {
                max_in_flight_requests: 100,
                ..wire::HelloResponseArgs::default()
            };
            wire::HelloResponse::create(b, &args)
        });
    }

    struct Impatient;

    impl Watch for Impatient {
        fn progress(&mut self, _progress: Progress) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
    }

    struct Patient;

    impl Watch for Patient {
        fn progress(&mut self, _progress: Progress) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
    }

    #[test]
    fn a_broker_that_does_not_answer_a_subscription_is_named_and_waited_for_no_longer_than_is_wanted()
     {
        let topic = topic(Acks::Durable, |mut stream| {
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let plan = Plan {
            drain: Duration::from_millis(300),
            ..Plan::default()
        };
        let outcome = run(&plan, None, &topic, &mut Patient).expect("it connected");
        let error = outcome.error.expect("no answer").to_string();
        assert!(error.contains(&topic.partitions[0].1), "{error}");
        let plan = Plan {
            drain: Duration::from_secs(3600),
            ..plan
        };
        let outcome = run(&plan, None, &topic, &mut Impatient).expect("it connected");
        assert!(matches!(outcome.error, Some(BenchError::Interrupted)));
    }

    /// Writes what a broker sends.
    fn tell<T>(
        stream: &mut TcpStream,
        (op, correlation): (Op, u64),
        payload: &[u8],
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) {
        let mut frame = Vec::new();
        Encoder::new().frame(&mut frame, op, 0, correlation, payload.len(), build);
        frame.extend_from_slice(payload);
        stream.write_all(&frame).expect("sent");
    }

    /// A batch of one record for each offset, whose value is its offset.
    fn stored(offsets: std::ops::Range<u64>) -> Vec<u8> {
        let (mut builder, mut batch) = (BatchBuilder::new(Codec::None), Vec::new());
        for offset in offsets.clone() {
            builder.push(0, None, Some(&offset.to_le_bytes()), &[]);
        }
        builder.finish(-1, -1, -1, &mut batch).expect("a batch");
        ringtide_schema::batch::assign(&mut batch, offsets.start, 1);
        batch
    }

    #[test]
    fn records_before_where_a_subscription_goes_on_are_passed_over() {
        let topic = topic(Acks::Durable, |mut stream| {
            let asked = read(&mut stream);
            tell(&mut stream, (Op::Subscribe, asked), &[], |b| {
                let args = wire::SubscribeResponseArgs { offset: 2 };
                wire::SubscribeResponse::create(b, &args)
            });
            for offsets in [0..3, 1..5, 4..6] {
                tell(&mut stream, (Op::Push, asked), &stored(offsets), |b| {
                    wire::Push::create(b, &wire::PushArgs::default())
                });
            }
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let mut side = topic.subscribers(1).expect("connected");
        side.subscribe(From::Earliest).expect("asked");
        let mut seen = Vec::new();
        while seen.last() != Some(&5_u64.to_le_bytes().to_vec()) {
            side.turn(&mut |_, _, value| seen.push(value.to_vec()))
                .expect("connected");
        }
        assert_eq!(seen, [2, 3, 4, 5_u64].map(|n| n.to_le_bytes().to_vec()));
    }

    #[test]
    fn without_acknowledgements_a_batch_is_done_when_its_last_byte_has_left() {
        let (read, may_read) = mpsc::channel::<()>();
        let may_read = Mutex::new(may_read);
        let topic = topic(Acks::None, move |mut stream| {
            let _ = may_read.lock().expect("whole").recv();
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        let mut side = topic.publishers(1).expect("connected");
        let value = vec![0; 100_000];
        let batch = Outgoing {
            keys: &[None],
            values: &value,
            value_bytes: value.len(),
        };
        let (mut sent, mut done) = (0, 0);
        while side.may_send(0, 0) {
            side.send(sent, 0, 0, batch).expect("sent");
            sent += 1;
            side.turn(&mut |token, verdict| {
                assert_eq!((token, verdict), (done, Ok(())));
                done += 1;
            })
            .expect("connected");
        }
        assert!(done + 40 < sent, "{done} of {sent}, with 4 MiB unsent");
        read.send(()).expect("it listens");
        while done < sent {
            side.turn(&mut |_, _| done += 1).expect("connected");
        }
    }
}
