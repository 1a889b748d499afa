//! One run: everything that happens is an event with a time that the seed decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ringtide_io::{ConnId, Disconnect, Egress, Logic as _, Now, OpId};
use ringtide_log::files::Cause;
use ringtide_log::recovery::RecoverError;
use ringtide_shard::Mail;

use self::faults::{Ambush, Fault};
use self::network::{Break, Conn};
use crate::client::{Actor, TOPICS};
use crate::disk::{Disk, Ended, Interruption, Ticket};
use crate::host::{Broker, PORT, Socket};
use crate::oracle::{Oracle, Violation};
use crate::planted::Planted;
use crate::random::Random;

mod faults;
mod network;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
/// A run that is not through by then makes no progress.
const PATIENCE_NS: u64 = 600 * SECOND;
/// How long a reader that is given nothing more is waited for.
const QUIET_NS: u64 = 2 * SECOND;

/// What a run found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// A checksum of everything that happened, in order.
    pub trace: u64,
    /// Events.
    pub events: u64,
    /// Faults that were let loose.
    pub faults: u64,
    /// Records with an outcome, and deliveries.
    pub records: u64,
    /// Deliveries to consumers.
    pub delivered: u64,
    /// The broken promise, if one was.
    pub violation: Option<Violation>,
}

/// At most so much of what a seed would play. Fewer clients or faults make it another play, which may break
/// another promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Clients.
    pub clients: u64,
    /// Faults.
    pub faults: u64,
    /// Records of each client.
    pub records: u64,
}

impl Limits {
    /// All that a seed plays.
    pub const NONE: Self = Self {
        clients: u64::MAX,
        faults: u64::MAX,
        records: u64::MAX,
    };
}

enum Event {
    /// An operation of this start of the broker ends.
    Disk(Ticket),
    /// A write of the log is reported before it is done (planted).
    Early(u16, OpId),
    Mail(u16, u16, Box<Mail>),
    ToShard(ConnId, Vec<u8>),
    ToClient(ConnId, Vec<u8>),
    Sent(ConnId, Egress),
    Connect(usize, usize, u16),
    Lost(usize, usize, ConnId),
    Break(Break),
    /// The shard learns that nobody is there any more.
    HangUp(ConnId),
    Fault(Fault),
    /// An ambush has waited long enough.
    Spring,
    Room,
    Files,
    Start,
}

impl Event {
    fn words(&self) -> String {
        match self {
            Self::Disk(ticket) => format!("{ticket:?} ends"),
            Self::Early(shard, op) => format!("{op:?} of shard {shard} is said to have ended"),
            Self::Mail(to, from, _) => format!("mail from shard {from} to shard {to}"),
            Self::ToShard(conn, bytes) => format!("{} bytes to the shard of {conn:?}", bytes.len()),
            Self::ToClient(conn, bytes) => {
                format!("{} bytes to the client of {conn:?}", bytes.len())
            }
            Self::Sent(conn, egress) => format!("{} bytes left for {conn:?}", egress.head.len()),
            Self::Connect(client, link, shard) => {
                format!("client {client} connects link {link} to shard {shard}")
            }
            Self::Lost(client, link, conn) => {
                format!("client {client} loses {conn:?}, its link {link}")
            }
            Self::Break(how) => format!("a connection: {how:?}"),
            Self::HangUp(conn) => format!("the peer of {conn:?} does not answer"),
            Self::Fault(fault) => format!("{fault:?}"),
            Self::Spring => "whoever lies in wait gives up".into(),
            Self::Room => "the disk has space again".into(),
            Self::Files => "files can be opened again".into(),
            Self::Start => "the broker starts".into(),
        }
    }
}

type Tell = Box<dyn FnMut(&str)>;

struct World {
    random: Random,
    now: Now,
    began: Instant,
    events: BTreeMap<(u64, u64), (u64, Event)>,
    next_event: u64,
    /// Starts of the broker: what an earlier one was told is nobody's.
    epoch: u64,
    disk: Disk,
    broker: Option<Broker>,
    actors: Vec<Actor>,
    conns: BTreeMap<ConnId, Conn>,
    next_conn: u64,
    /// Bytes that a partition of each topic is to keep, if not all.
    retention: [Option<i64>; 2],
    /// Nothing has happened yet that makes a client give up a connection.
    is_well: bool,
    /// The broker does not start on what rotted, which ends the run.
    is_refused: bool,
    oracle: Oracle,
    faults_left: u64,
    /// A crash that waits for an operation of the disk.
    ambush: Option<Ambush>,
    /// When the last mail of a pair of shards arrives.
    mail_ns: BTreeMap<(u16, u16), u64>,
    outcome: Outcome,
    /// Who is told what happens.
    tell: Option<Tell>,
}

/// Plays a seed.
pub fn run(seed: u64, planted: Planted, limits: Limits) -> Outcome {
    play(World::new(seed, planted, limits))
}

/// Plays a seed and tells every event.
pub fn run_telling(
    seed: u64,
    planted: Planted,
    limits: Limits,
    tell: impl FnMut(&str) + 'static,
) -> Outcome {
    let mut world = World::new(seed, planted, limits);
    world.tell = Some(Box::new(tell));
    play(world)
}

fn play(mut world: World) -> Outcome {
    if let Err(violation) = world.play() {
        world.outcome.violation = Some(violation);
    }
    world.outcome.records = world.oracle.outcomes;
    world.outcome.delivered = world.oracle.delivered;
    world.outcome
}

impl World {
    fn new(seed: u64, planted: Planted, limits: Limits) -> Self {
        let mut random = Random::new(seed);
        let disk = Disk::new(random.next_u64(), planted);
        let clients = random.between(1, 5).min(limits.clients) as u32;
        let retention = TOPICS.map(|_| {
            random
                .percent(30)
                .then(|| random.between(1 << 20, 3 << 20) as i64)
        });
        let actors = (0..clients)
            .map(|n| {
                let mut actor = Actor::new(n, &retention, &mut random);
                actor.to_send = actor.to_send.min(limits.records);
                actor
            })
            .collect();
        Self {
            now: Now {
                mono_ns: SECOND,
                wall_ms: 1_700_000_000_000,
            },
            began: Instant::now(),
            events: BTreeMap::new(),
            next_event: 0,
            epoch: 0,
            disk,
            broker: None,
            actors,
            conns: BTreeMap::new(),
            next_conn: 0,
            retention,
            is_well: true,
            is_refused: false,
            oracle: Oracle::default(),
            faults_left: random.between(0, 4).min(limits.faults),
            ambush: None,
            mail_ns: BTreeMap::new(),
            outcome: Outcome {
                trace: seed,
                events: 0,
                faults: 0,
                records: 0,
                delivered: 0,
                violation: None,
            },
            random,
            tell: None,
        }
    }

    fn play(&mut self) -> Result<(), Violation> {
        self.at(0, Event::Start);
        self.until("every record has its outcome", |world| {
            world.faults_left == 0
                && world.broker.is_some()
                && world.actors.iter().all(Actor::is_done)
                && world.oracle.open() == 0
        })?;
        // What was accepted is on its way to the disk.
        let settled_ns = self.now.mono_ns + QUIET_NS;
        self.until("time to pass", |world| world.now.mono_ns >= settled_ns)?;
        for topic in 0..TOPICS.len() {
            let number = 1_000 + topic as u32;
            let reader = Actor::reader(number, topic, &self.retention, &mut self.random);
            // A topic that nobody made cannot be read.
            if self.actors.iter().any(|a| a.topic() == topic) {
                self.actors.push(reader);
            }
        }
        let mut quiet = (self.oracle.delivered, self.now.mono_ns);
        self.until("the readers to read everything", |world| {
            if world.oracle.delivered != quiet.0 {
                quiet = (world.oracle.delivered, world.now.mono_ns);
            }
            world.actors.iter().all(Actor::is_done) && world.now.mono_ns > quiet.1 + QUIET_NS
        })?;
        if self.is_refused {
            return Ok(());
        }
        for (topic, logs) in self.actors.iter().filter_map(Actor::read) {
            for (partition, log) in (0..).zip(logs) {
                let retention = self.retention[topic];
                self.oracle.check(topic, partition, log, retention)?;
            }
        }
        Ok(())
    }

    fn until(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) -> Result<(), Violation> {
        while !self.is_refused && !is_so(self) {
            self.step()?;
            if self.now.mono_ns > PATIENCE_NS {
                let open = self.oracle.open();
                return Err(format!(
                    "no progress: waiting for {what}, {open} records are open"
                ));
            }
        }
        Ok(())
    }

    // ---- time ---------------------------------------------------------------------------------

    fn instant(&self) -> Instant {
        self.began + Duration::from_nanos(self.now.mono_ns)
    }

    fn at(&mut self, after_ns: u64, event: Event) {
        self.at_time(self.now.mono_ns + after_ns, event);
    }

    fn at_time(&mut self, time_ns: u64, event: Event) {
        self.next_event += 1;
        let key = (time_ns, self.next_event);
        self.events.insert(key, (self.epoch, event));
    }

    /// Mostly short, sometimes long.
    fn latency(&mut self) -> u64 {
        match self.random.below(100) {
            0 => self.random.between(5 * MS, 80 * MS),
            1..10 => self.random.between(200 * US, 5 * MS),
            _ => self.random.between(US, 200 * US),
        }
    }

    /// The next moment at which anything happens.
    fn step(&mut self) -> Result<(), Violation> {
        let mut next = self.events.first_key_value().map(|((time, _), _)| *time);
        let mut earlier = |time: Option<u64>| next = next.into_iter().chain(time).min();
        if let Some(broker) = &self.broker {
            broker
                .nodes
                .iter()
                .filter(|node| !node.sleeps)
                .for_each(|node| earlier(node.shard.deadline_ns()));
        }
        let now = self.instant();
        for actor in &self.actors {
            let deadline = actor.client.next_deadline(now);
            earlier(deadline.map(|at| (at - self.began).as_nanos() as u64));
            earlier(actor.wants_to_act());
        }
        let Some(next) = next else {
            return Err("nothing will ever happen again".into());
        };
        // A driver that has nothing to do comes round again after this time at the least.
        let next = next.max(self.now.mono_ns + 500);
        let passed_ms = next / MS - self.now.mono_ns / MS;
        self.now.mono_ns = next;
        self.now.wall_ms += passed_ms as i64;
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > next {
                break;
            }
            let ((time, number), (epoch, event)) = entry.remove_entry();
            self.note(time ^ number << 20);
            if let Some(tell) = &mut self.tell {
                tell(&format!("{time:>12} {}", event.words()));
            }
            self.happen(epoch, event)?;
        }
        self.turns()?;
        self.clients()
    }

    fn note(&mut self, what: u64) {
        self.outcome.events += 1;
        let mixed = self.outcome.trace.rotate_left(5) ^ what;
        self.outcome.trace = mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    // ---- what happens -------------------------------------------------------------------------

    fn happen(&mut self, epoch: u64, event: Event) -> Result<(), Violation> {
        let is_current = epoch == self.epoch;
        match event {
            Event::Start => return self.start(),
            Event::Fault(fault) => self.fault(fault),
            Event::Spring => {
                if let Some(ambush) = self.ambush.take() {
                    self.fault(ambush.fault);
                }
            }
            Event::Break(how) => self.break_one(how),
            Event::HangUp(conn) if is_current => {
                self.hang_up(conn, Disconnect::Error(110));
                self.conns.remove(&conn);
            }
            Event::Room => self.disk.room = None,
            Event::Files => self.disk.most_open = None,
            Event::Disk(ticket) => {
                let caught = self.caught(ticket);
                if let Some(Ambush {
                    fault,
                    before: true,
                    ..
                }) = caught
                {
                    self.fault(fault);
                    return Ok(());
                }
                if let Some(Ended { shard, id, result }) = self.disk.complete(ticket) {
                    self.note(id.0);
                    let is_told =
                        self.disk.planted == Planted::LogAcknowledgedEarly && id.0 >> 56 == 1;
                    if let (false, Some(node)) = (is_told, self.node(shard)) {
                        let now = node.1;
                        node.0.shard.disk(id, result, now, &mut node.0.fx);
                    }
                }
                if let Some(ambush) = caught {
                    self.fault(ambush.fault);
                }
            }
            Event::Early(shard, id) if is_current => {
                if let Some((node, now)) = self.node(shard) {
                    let done = Ok(ringtide_io::DiskDone::Done);
                    node.shard.disk(id, done, now, &mut node.fx);
                }
            }
            Event::Mail(to, from, mail) if is_current => {
                let (planted, is_hit) = (self.disk.planted, self.random.percent(2));
                if planted == Planted::MailLost && is_hit {
                    return Ok(());
                }
                if let Some((node, now)) = self.node(to) {
                    node.shard.mail(from, *mail, now, &mut node.fx);
                    node.sleeps = planted == Planted::WakeLost && is_hit;
                }
            }
            Event::Sent(conn, egress) if is_current => self.sent(conn, egress),
            Event::ToShard(conn, bytes) if is_current => {
                if let Some(socket) = self.socket(conn) {
                    socket.input.extend_from_slice(&bytes);
                }
            }
            Event::ToClient(conn, bytes) => {
                self.note(bytes.len() as u64);
                let now = self.instant();
                if let Some(conn) = self.conns.get(&conn).filter(|c| !c.is_half_open) {
                    self.actors[conn.client]
                        .client
                        .received(conn.link, &bytes, now);
                }
            }
            Event::Connect(client, link, shard) => self.connect(client, link, shard),
            Event::Lost(client, link, conn) => self.lost(client, link, conn),
            Event::Early(..)
            | Event::Mail(..)
            | Event::Sent(..)
            | Event::ToShard(..)
            | Event::HangUp(_) => {}
        }
        Ok(())
    }

    fn node(&mut self, shard: u16) -> Option<(&mut crate::host::Node, Now)> {
        let now = self.now;
        let node = self.broker.as_mut()?.nodes.get_mut(usize::from(shard))?;
        node.is_due = true;
        node.sleeps = false;
        Some((node, now))
    }

    fn socket(&mut self, conn: ConnId) -> Option<&mut Socket> {
        let shard = self.conns.get(&conn)?.shard;
        self.node(shard)?.0.sockets.get_mut(&conn)
    }

    fn start(&mut self) -> Result<(), Violation> {
        self.epoch += 1;
        let shards = self.random.between(1, 3) as u16;
        let seed = self.random.next_u64();
        self.disk.is_interrupted = false;
        self.disk.interruption = match self.faults_left > 0 && self.random.percent(25) {
            true => {
                let changes = self.random.below(60);
                Some(match self.random.percent(70) {
                    true => Interruption::Killed(changes),
                    false => Interruption::Failed(changes),
                })
            }
            false => None,
        };
        let broker = Broker::start(&mut self.disk, shards, seed, self.now);
        self.disk.interruption = None;
        match broker {
            Ok(broker) => {
                self.broker = Some(broker);
                self.next_fault();
            }
            Err(_) if self.disk.is_interrupted => {
                self.outcome.faults += 1;
                self.faults_left -= 1;
                if self.random.percent(50) {
                    self.disk.cut_power();
                }
                self.at(MS, Event::Start);
            }
            Err(RecoverError::File(error))
                if error.cause == Cause::Full && self.disk.room.is_some() =>
            {
                self.at(100 * MS, Event::Start);
            }
            // It says so rather than serve what is damaged.
            Err(_) if self.oracle.may_be_refused() => self.is_refused = true,
            Err(refusal) => return Err(format!("the broker does not start: {refusal}")),
        }
        Ok(())
    }

    // ---- turns --------------------------------------------------------------------------------

    /// One turn of every shard.
    fn turns(&mut self) -> Result<(), Violation> {
        let Some(mut broker) = self.broker.take() else {
            return Ok(());
        };
        let shards = broker.nodes.len() as u16;
        for (shard, node) in (0..shards).zip(&mut broker.nodes) {
            let deadline = node.shard.deadline_ns();
            let is_due = node.is_due || deadline.is_some_and(|at| at <= self.now.mono_ns);
            if !is_due || node.sleeps {
                continue;
            }
            node.is_due = false;
            let ready: Vec<ConnId> = node
                .sockets
                .iter()
                .filter(|(_, s)| !s.input.is_empty() && !s.is_paused && !s.is_closing)
                .map(|(&id, _)| id)
                .collect();
            for id in ready {
                let input = node
                    .sockets
                    .get_mut(&id)
                    .map(|s| std::mem::take(&mut s.input));
                node.shard
                    .received(id, &input.unwrap_or_default(), self.now, &mut node.fx);
            }
            node.shard.turn(self.now, &mut node.fx);
            if let Some(fatal) = node.fx.fatal.take() {
                if self.disk.failures == 0 && !self.oracle.is_damaged() {
                    return Err(format!("shard {shard} cannot go on: {}", fatal.message));
                }
                if let Some(tell) = &mut self.tell {
                    tell(&format!(
                        "             shard {shard} ends: {}",
                        fatal.message
                    ));
                }
                self.disk.failures = 0;
                self.disk.kill();
                self.oracle.crashed();
                self.ended(false);
                return Ok(());
            }
            for (id, op) in std::mem::take(&mut node.fx.disk) {
                let Some(ticket) = self.disk.submit(shard, id, op) else {
                    continue;
                };
                let latency = self.latency();
                if self.disk.planted == Planted::LogAcknowledgedEarly
                    && self.disk.is_log_write(ticket)
                {
                    self.at(500, Event::Early(shard, id));
                    self.at(latency + MS, Event::Disk(ticket));
                } else {
                    self.at(latency, Event::Disk(ticket));
                }
            }
            for (to, mail) in std::mem::take(&mut node.fx.mail) {
                let wait = match self.random.below(20) {
                    0 => self.random.between(20 * US, 3 * MS),
                    _ => self.random.between(US, 8 * US),
                };
                // Mail of one pair keeps its order.
                let last = self.mail_ns.entry((shard, to)).or_default();
                *last = (*last).max(self.now.mono_ns + wait);
                let time = *last;
                self.at_time(time, Event::Mail(to, shard, Box::new(mail)));
            }
            for op in std::mem::take(&mut node.fx.net) {
                self.net(node, op);
            }
        }
        let is_stopped = broker.is_stopped();
        let clean = is_stopped.then(|| broker.clean_identity(&self.disk));
        self.broker = Some(broker);
        if let Some(clean) = clean {
            self.disk.write_file("identity".into(), clean);
            // What a clean stop has promised, no power cut behind it takes away.
            let is_cut = self.random.percent(50);
            if is_cut {
                self.disk.cut_power();
            }
            self.ended(is_cut);
        }
        Ok(())
    }

    /// Every client looks after itself.
    fn clients(&mut self) -> Result<(), Violation> {
        let now = self.instant();
        for index in 0..self.actors.len() {
            let actor = &mut self.actors[index];
            actor.client.tick(now);
            actor.act(
                self.now.mono_ns,
                now,
                self.now.wall_ms,
                &mut self.random,
                &mut self.oracle,
            )?;
            actor.client.tick(now);
            let links: BTreeSet<usize> = (0..actor.client.links()).collect();
            for &link in &links {
                if self.actors[index].client.take_close(link)
                    && let Some(conn) = self.actors[index].conns.remove(&link)
                {
                    self.hang_up(conn, Disconnect::Peer);
                    self.conns.remove(&conn);
                    if self.is_well {
                        return Err(format!(
                            "client {index} gave up its connection to a broker that is well"
                        ));
                    }
                }
            }
            while let Some((link, _, port)) = self.actors[index].client.next_connect(now) {
                let wait = self.latency();
                self.at(wait, Event::Connect(index, link, port - PORT));
            }
            for link in links {
                let output = self.actors[index].client.output(link).to_vec();
                let Some(&conn) = self.actors[index].conns.get(&link) else {
                    continue;
                };
                if output.is_empty() {
                    continue;
                }
                self.actors[index].client.sent(link, output.len());
                self.carry(conn, &output, true);
            }
        }
        Ok(())
    }
}
