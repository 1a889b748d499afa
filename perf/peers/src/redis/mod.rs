//! Redis Streams as what is measured: a stream for each partition, an entry for each record, a
//! connection for each publisher and each subscriber.
//!
//! A publisher's XADDs are pipelined; a batch is acknowledged with its last entry. A subscriber has one
//! blocking XREAD under way at all times, of all streams, and asks for the next before it hands out what
//! came.

mod link;

use std::collections::{HashMap, VecDeque};
use std::net::TcpStream;

use redis::{Cmd, ConnectionLike, Value};
use ringtide_perf::BenchError;
use ringtide_perf::open_loop::target::{
    From, Outgoing, PublishSide, SubscribeSide, Target, Verdict,
};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::peer::{Durability, Open, Peer, Place, failed};
use link::Link;

/// Up to so many connections each is looked at in each turn; of more the system says which are ready.
const FEW: usize = 4;
/// Entries of each stream in one reply, at the most.
const READ_ENTRIES: usize = 1000;
/// Bytes that may wait for a socket before nothing more is sent.
const MAX_UNSENT_BYTES: usize = 4 << 20;
/// The field of an entry that holds the value.
const VALUE: &str = "v";
/// The field of an entry that holds the key, if it has one.
const KEY: &str = "k";

/// The settings that decide what an acknowledgement promises.
const SETTINGS: [&str; 4] = [
    "appendonly",
    "appendfsync",
    "save",
    "no-appendfsync-on-rewrite",
];

/// A Redis server, and streams for one measurement.
pub struct Streams {
    place: Place,
    /// By partition.
    keys: Vec<String>,
    version: String,
    settings: HashMap<String, String>,
}

impl Streams {
    /// Asks the server what it promises, and chooses the names of streams.
    ///
    /// # Errors
    /// When it cannot be reached, or does not promise what is asked for.
    pub fn create(place: Place) -> Result<Self, BenchError> {
        let mut admin = admin(&place.server)?;
        let what = || format!("cannot ask redis at {} what it is", place.server);
        let info: String = redis::cmd("INFO")
            .arg("server")
            .query(&mut admin)
            .map_err(failed(what()))?;
        let mut settings = HashMap::new();
        for name in SETTINGS {
            let found: HashMap<String, String> = redis::cmd("CONFIG")
                .arg("GET")
                .arg(name)
                .query(&mut admin)
                .map_err(failed(what()))?;
            settings.extend(found);
        }
        check(place.durability, &settings)?;
        let version = info
            .lines()
            .find_map(|line| line.strip_prefix("redis_version:"));
        Ok(Self {
            keys: (0..place.partitions)
                .map(|partition| format!("{}:{partition}", place.name))
                .collect(),
            version: version.unwrap_or("unknown").trim().to_owned(),
            settings,
            place,
        })
    }

    fn links(&self, count: usize) -> Result<Links, BenchError> {
        let links = (0..count).map(|_| Link::connect(&self.place.server));
        Links::new(links.collect::<Result<_, _>>()?)
    }
}

/// A connection that waits for each answer, for what is not measured.
fn admin(server: &str) -> Result<redis::Connection, BenchError> {
    redis::Client::open(format!("redis://{server}/"))
        .and_then(|client| client.get_connection())
        .map_err(failed(format!("cannot connect to redis at {server}")))
}

/// Whether the server keeps what the run is to be called.
fn check(durability: Durability, settings: &HashMap<String, String>) -> Result<(), BenchError> {
    let is = |name: &str, wanted: &str| settings.get(name).is_some_and(|value| value == wanted);
    let keeps = is("appendonly", "yes")
        && is("appendfsync", "always")
        && is("no-appendfsync-on-rewrite", "no");
    match durability {
        Durability::Durable if !keeps => Err(BenchError::Usage(format!(
            "this redis does not sync before it answers ({settings:?}): give it appendonly yes and \
             appendfsync always, or measure --durability usual"
        ))),
        _ => Ok(()),
    }
}

impl Peer for Streams {
    fn describe(&self) -> serde_json::Value {
        serde_json::json!({
            "peer": "redis",
            "version": self.version,
            "settings": self.settings,
        })
    }

    fn remove(&self) -> Result<(), BenchError> {
        let mut admin = admin(&self.place.server)?;
        admin
            .req_command(redis::cmd("UNLINK").arg(&self.keys))
            .map(|_| ())
            .map_err(failed("cannot remove the streams"))
    }
}

impl Target for Streams {
    fn publishers(&self, count: usize) -> Result<Box<dyn PublishSide + '_>, BenchError> {
        Ok(Box::new(Publishers {
            links: self.links(count)?,
            open: (0..count).map(|_| VecDeque::new()).collect(),
            streams: self,
            command: Cmd::new(),
        }))
    }

    fn subscribers(&self, count: usize) -> Result<Box<dyn SubscribeSide + '_>, BenchError> {
        let partition = |(n, key): (usize, &String)| (key.as_bytes().to_vec(), n);
        Ok(Box::new(Subscribers {
            links: self.links(count)?,
            last: vec![Vec::new(); count],
            server: &self.place.server,
            keys: &self.keys,
            partitions: self.keys.iter().enumerate().map(partition).collect(),
        }))
    }
}

/// The number of a stream's last entry.
fn last_id(admin: &mut redis::Connection, key: &str) -> Result<String, BenchError> {
    let entries: Vec<(String, Vec<Vec<u8>>)> = redis::cmd("XREVRANGE")
        .arg(key)
        .arg("+")
        .arg("-")
        .arg("COUNT")
        .arg(1)
        .query(admin)
        .map_err(failed("cannot find the end of a stream"))?;
    let last = entries.into_iter().next();
    Ok(last.map_or_else(|| "0-0".into(), |(id, _)| id))
}

/// The command that waits for entries behind these.
fn read(keys: &[String], last: &[String]) -> Cmd {
    let mut command = redis::cmd("XREAD");
    command.arg("COUNT").arg(READ_ENTRIES).arg("BLOCK").arg(0);
    command.arg("STREAMS").arg(keys).arg(last);
    command
}

/// Connections of publishers or subscribers.
struct Links {
    links: Vec<Link<TcpStream>>,
    /// Those with something to send.
    dirty: Vec<usize>,
    poll: Option<rustix::fd::OwnedFd>,
    ready: Vec<epoll::Event>,
}

impl Links {
    fn new(links: Vec<Link<TcpStream>>) -> Result<Self, BenchError> {
        let poll = (links.len() > FEW).then(|| watch(&links)).transpose();
        Ok(Self {
            poll: poll.map_err(cannot_watch)?,
            links,
            dirty: Vec::new(),
            ready: Vec::with_capacity(256),
        })
    }

    fn gather(&mut self, at: usize, command: &Cmd) {
        if self.links[at].unsent_bytes() == 0 {
            self.dirty.push(at);
        }
        self.links[at].gather(command);
    }

    fn flush(&mut self) -> Result<(), BenchError> {
        for &at in &self.dirty {
            self.links[at].flush()?;
        }
        let links = &self.links;
        self.dirty.retain(|&at| links[at].unsent_bytes() > 0);
        Ok(())
    }

    /// Sends what was gathered and hands out what arrived, with the link that it arrived on.
    fn turn(&mut self, mut each: impl FnMut(usize, Value)) -> Result<bool, BenchError> {
        self.flush()?;
        let mut arrived = 0;
        let Some(poll) = &self.poll else {
            for (at, link) in self.links.iter_mut().enumerate() {
                arrived += link.poll(|reply| each(at, reply))?;
            }
            return Ok(arrived > 0);
        };
        self.ready.clear();
        let no_time = rustix::event::Timespec::default();
        let spare = rustix::buffer::spare_capacity(&mut self.ready);
        match epoll::wait(poll, spare, Some(&no_time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(cannot_watch(errno)),
        }
        for event in &self.ready {
            let at = event.data.u64() as usize;
            arrived += self.links[at].poll(|reply| each(at, reply))?;
        }
        Ok(arrived > 0)
    }
}

fn watch(links: &[Link<TcpStream>]) -> rustix::io::Result<rustix::fd::OwnedFd> {
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    for (n, link) in links.iter().enumerate() {
        let data = EventData::new_u64(n as u64);
        epoll::add(&poll, link, data, EventFlags::IN)?;
    }
    Ok(poll)
}

fn cannot_watch(errno: rustix::io::Errno) -> BenchError {
    BenchError::io("cannot watch the connections")(errno.into())
}

struct Publishers<'a> {
    links: Links,
    /// Batches that are not answered, by publisher, the oldest first.
    open: Vec<VecDeque<Open>>,
    streams: &'a Streams,
    command: Cmd,
}

impl PublishSide for Publishers<'_> {
    fn may_send(&self, publisher: usize, _partition: u32) -> bool {
        self.open[publisher].len() < self.streams.place.in_flight
            && self.links.links[publisher].unsent_bytes() < MAX_UNSENT_BYTES
    }

    fn send(
        &mut self,
        token: u64,
        publisher: usize,
        partition: u32,
        batch: Outgoing<'_>,
    ) -> Result<(), BenchError> {
        let key = &self.streams.keys[partition as usize];
        for (record_key, value) in batch.records() {
            let command = &mut self.command;
            command.clear();
            command.arg("XADD").arg(key).arg("*").arg(VALUE).arg(value);
            if let Some(record_key) = record_key {
                command.arg(KEY).arg(record_key);
            }
            self.links.gather(publisher, &self.command);
        }
        self.open[publisher].push_back(Open::new(token, batch.keys.len()));
        Ok(())
    }

    fn turn(&mut self, done: &mut dyn FnMut(u64, Verdict<'_>)) -> Result<bool, BenchError> {
        let open = &mut self.open;
        self.links.turn(|at, reply| {
            let answer = match reply {
                Value::ServerError(error) => Err(error.to_string()),
                _ => Ok(()),
            };
            let Some(batch) = open[at].front_mut() else {
                return;
            };
            if let Some(verdict) = batch.answer(answer) {
                done(
                    batch.token,
                    verdict.as_ref().copied().map_err(String::as_str),
                );
                open[at].pop_front();
            }
        })
    }
}

struct Subscribers<'a> {
    links: Links,
    /// The last entry that was read, by subscriber and partition.
    last: Vec<Vec<String>>,
    server: &'a str,
    keys: &'a [String],
    partitions: HashMap<Vec<u8>, usize>,
}

impl SubscribeSide for Subscribers<'_> {
    fn subscribe(&mut self, from: From) -> Result<(), BenchError> {
        let first = match from {
            From::Earliest => vec!["0".to_owned(); self.keys.len()],
            // What `$` would mean, and it stays so until the server has read the command.
            From::Latest => {
                let mut admin = admin(self.server)?;
                let ends = self.keys.iter().map(|key| last_id(&mut admin, key));
                ends.collect::<Result<_, _>>()?
            }
        };
        for (at, last) in self.last.iter_mut().enumerate() {
            self.links.gather(at, &read(self.keys, &first));
            last.clone_from(&first);
        }
        self.links.flush()
    }

    fn turn(&mut self, each: &mut dyn FnMut(usize, u32, &[u8])) -> Result<bool, BenchError> {
        let (mut replies, mut wrong) = (Vec::new(), None);
        let arrived = self.links.turn(|at, reply| replies.push((at, reply)))?;
        for (at, reply) in replies {
            let streams = entries(reply).unwrap_or_else(|why| {
                wrong = Some(why);
                Vec::new()
            });
            let mut of_partition = Vec::new();
            for (key, entries) in streams {
                let Some(&partition) = self.partitions.get(&key) else {
                    continue;
                };
                if let Some((id, _)) = entries.last() {
                    self.last[at][partition].clone_from(id);
                }
                of_partition.push((partition, entries));
            }
            // The server has something to do while this is handed out.
            self.links.gather(at, &read(self.keys, &self.last[at]));
            self.links.flush()?;
            for (partition, entries) in of_partition {
                for (_, value) in entries {
                    each(at, partition as u32, &value);
                }
            }
        }
        match wrong {
            Some(why) => Err(BenchError::Wrong(format!("redis delivered {why}"))),
            None => Ok(arrived),
        }
    }
}

/// The number of an entry and its value.
type Entry = (String, Vec<u8>);
/// The key of a stream and its entries.
type Stream = (Vec<u8>, Vec<Entry>);

/// The entries of an answer to XREAD, by the key of their stream.
fn entries(reply: Value) -> Result<Vec<Stream>, String> {
    let streams = match reply {
        Value::Array(streams) => streams,
        Value::Nil => Vec::new(),
        other => return Err(format!("no entries: {other:?}")),
    };
    let mut out = Vec::with_capacity(streams.len());
    for stream in streams {
        let [key, entries] = parts(stream)?;
        let (Value::BulkString(key), Value::Array(entries)) = (key, entries) else {
            return Err("a stream without its name".into());
        };
        let entries = entries.into_iter().map(entry);
        out.push((key, entries.collect::<Result<_, _>>()?));
    }
    Ok(out)
}

fn entry(entry: Value) -> Result<Entry, String> {
    let [id, fields] = parts(entry)?;
    let (Value::BulkString(id), Value::Array(fields)) = (id, fields) else {
        return Err("an entry without its number".into());
    };
    let id = String::from_utf8(id).map_err(|_| "an entry without its number")?;
    let mut fields = fields.into_iter();
    match (fields.next(), fields.next()) {
        (Some(Value::BulkString(name)), Some(Value::BulkString(value)))
            if name == VALUE.as_bytes() =>
        {
            Ok((id, value))
        }
        _ => Err(format!("entry {id} without a value")),
    }
}

fn parts(value: Value) -> Result<[Value; 2], String> {
    let Value::Array(parts) = value else {
        return Err("something that is no pair".into());
    };
    parts
        .try_into()
        .map_err(|_| "something that is no pair".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn entries_are_found_by_stream_with_number_and_value() {
        let one = |id, value| {
            let fields = vec![text("v"), text(value), text("k"), text("7")];
            Value::Array(vec![text(id), Value::Array(fields)])
        };
        let stream = |key, entries| Value::Array(vec![text(key), Value::Array(entries)]);
        let reply = Value::Array(vec![
            stream("a:0", vec![one("1-0", "x"), one("1-1", "y")]),
            stream("a:1", vec![one("2-0", "z")]),
        ]);
        let entries = entries(reply).expect("entries");
        let entry = |id: &str, value: &[u8]| (id.to_owned(), value.to_vec());
        assert_eq!(
            entries,
            [
                (
                    b"a:0".to_vec(),
                    vec![entry("1-0", b"x"), entry("1-1", b"y")]
                ),
                (b"a:1".to_vec(), vec![entry("2-0", b"z")]),
            ]
        );
    }

    #[test]
    fn an_answer_that_is_none_is_refused() {
        let no_value = Value::Array(vec![text("1-0"), Value::Array(vec![text("k")])]);
        let stream = Value::Array(vec![text("a:0"), Value::Array(vec![no_value])]);
        assert!(entries(Value::Array(vec![stream])).is_err());
        assert!(entries(Value::Okay).is_err());
        assert_eq!(entries(Value::Nil), Ok(Vec::new()));
    }

    #[test]
    fn a_server_that_does_not_sync_each_time_is_not_measured_as_durable() {
        let settings = |fsync: &str| {
            let pairs = [
                ("appendonly", "yes"),
                ("appendfsync", fsync),
                ("no-appendfsync-on-rewrite", "no"),
            ];
            pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
        };
        assert!(check(Durability::Durable, &settings("always")).is_ok());
        assert!(check(Durability::Durable, &settings("everysec")).is_err());
        assert!(check(Durability::Usual, &settings("everysec")).is_ok());
    }
}
