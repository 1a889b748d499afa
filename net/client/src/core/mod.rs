//! The client without I/O: connections, metadata, calls, producers and consumers as one state
//! machine. A face tells it what happened on which link and what time it is; it says which links to
//! connect, what to send on them, and when to be called again.
//!
//! The way of a record: [`Core::send`] puts it into a forming batch ([`producer`], [`lane`]), and
//! if the window allows `pump_lane` (in [`flow`]) puts the batch into the link's [`parcel`], which is
//! posted to the link's output before the core returns to its face. The answer comes in through
//! [`Core::received`] ([`events`]) and ends as a completion of the producer.

pub(crate) mod backoff;
pub(crate) mod call;
pub(crate) mod cluster;
pub(crate) mod connection;
#[cfg(test)]
mod connection_tests;
pub(crate) mod consumer;
mod events;
mod flow;
pub(crate) mod lane;
pub(crate) mod link;
#[cfg(test)]
pub(crate) mod model;
mod outcome;
pub(crate) mod parcel;
pub(crate) mod producer;
#[cfg(test)]
pub(crate) mod served;
pub(crate) mod shard_info;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::core::backoff::{Backoff, Random};
use crate::core::call::{Call, Owner, Request, Response};
use crate::core::cluster::{Cluster, Topic};
use crate::core::connection::earlier;
use crate::core::consumer::{Consumer, Flow};
use crate::core::link::Link;
use crate::core::parcel::Sent;
use crate::core::producer::{Producer, Taken};
use crate::error::{Error, Result};
use crate::options::{ConsumerOptions, Options, ProducerOptions, Start};
use crate::record::{Record, Ticket};

/// What a request on a link was for.
#[derive(Debug)]
pub(crate) enum Tag {
    Metadata,
    Ping,
    Vouch,
    Call(u64),
    Publish(Sent),
    Subscribe {
        consumer: usize,
        cursor: usize,
        generation: u32,
    },
    Fetch {
        consumer: usize,
        cursor: usize,
        generation: u32,
    },
    Unsubscribe,
}

/// The whole state of a client.
pub(crate) struct Core {
    options: Options,
    random: Random,
    links: Vec<Link>,
    /// The first links are those of the servers that were named.
    servers: usize,
    /// Which link is made when any will do.
    next_server: usize,
    /// Whether any server ever answered.
    contacted: bool,
    contact_required: bool,
    cluster: Cluster,
    calls: BTreeMap<u64, Call>,
    next_call: u64,
    answers: BTreeMap<u64, Result<Response>>,
    /// By handle. A handle is never given twice: what still arrives for one that is gone finds
    /// nothing.
    producers: BTreeMap<usize, Producer>,
    consumers: BTreeMap<usize, Consumer>,
    next_handle: usize,
    /// Everything is to be looked at in the next tick, or at this time.
    rescan: bool,
    wake: Option<Instant>,
    /// Lanes and cursors to be looked at when the event that is being handled is done with.
    dirty_lanes: Vec<(usize, u32)>,
    dirty_cursors: Vec<(usize, usize)>,
    /// Links with parcels to be posted then.
    dirty_parcels: Vec<usize>,
    /// A lane waits for output to be sent.
    throttled: bool,
}

impl Core {
    /// A client of the broker that these servers belong to.
    pub(crate) fn new(servers: &[String], options: Options, seed: u64) -> Result<Self> {
        let options = options.bounded();
        let backoff = Backoff::new(options.backoff_first, options.backoff_max);
        let mut links = Vec::new();
        for server in servers.iter().flat_map(|s| s.split(',')).map(str::trim) {
            let (host, port) = parse_server(server)?;
            links.push(Link::new(host.into(), port, backoff.clone()));
        }
        if links.is_empty() {
            return Err(Error::invalid(
                "no server was named; give at least one as HOST:PORT",
            ));
        }
        Ok(Self {
            random: Random::new(seed),
            servers: links.len(),
            links,
            next_server: 0,
            contacted: false,
            contact_required: false,
            cluster: Cluster::new(backoff),
            calls: BTreeMap::new(),
            next_call: 0,
            answers: BTreeMap::new(),
            producers: BTreeMap::new(),
            consumers: BTreeMap::new(),
            next_handle: 0,
            rescan: true,
            wake: None,
            dirty_lanes: Vec::new(),
            dirty_cursors: Vec::new(),
            dirty_parcels: Vec::new(),
            throttled: false,
            options,
        })
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    fn new_backoff(&self) -> Backoff {
        Backoff::new(self.options.backoff_first, self.options.backoff_max)
    }

    /// Lets calls fail as soon as each server was tried and none answered.
    pub(crate) fn require_contact(&mut self) {
        self.contact_required = true;
    }

    /// Why no server could be reached, when each was tried and none ever answered.
    fn never_contacted(&self) -> Option<Error> {
        let servers = &self.links[..self.servers];
        if !self.contact_required || self.contacted || servers.iter().any(|l| l.error.is_none()) {
            return None;
        }
        servers.iter().rev().find_map(|l| l.error.clone())
    }

    /// Why a connection that is needed is not there.
    pub(crate) fn trouble(&self) -> Option<&Error> {
        let down = self.links.iter().filter(|l| l.error.is_some());
        down.max_by_key(|l| l.demand)?.error.as_ref()
    }

    /// Starts a call; its answer is given by [`Self::take_answer`].
    pub(crate) fn call(&mut self, request: Request, now: Instant) -> u64 {
        self.call_for(request, Owner::Application, now)
    }

    fn call_for(&mut self, request: Request, owner: Owner, now: Instant) -> u64 {
        self.next_call += 1;
        if let Some((topic, _)) = request.partition() {
            self.cluster.interest(topic);
        }
        let call = Call {
            request,
            owner,
            since: now,
            deadline: now + self.options.call_timeout,
            on: None,
            retry_at: None,
            refusal: None,
            backoff: self.new_backoff(),
        };
        self.calls.insert(self.next_call, call);
        self.rescan = true;
        self.next_call
    }

    /// The answer of a call, once.
    pub(crate) fn take_answer(&mut self, call: u64) -> Option<Result<Response>> {
        self.answers.remove(&call)
    }

    /// Gives every answer that there is.
    pub(crate) fn drain_answers(&mut self, mut each: impl FnMut(u64, Result<Response>)) {
        while let Some((call, answer)) = self.answers.pop_first() {
            each(call, answer);
        }
    }

    /// Nobody waits for the answer of this call any more.
    pub(crate) fn forget_call(&mut self, call: u64) {
        self.calls.remove(&call);
        self.answers.remove(&call);
    }

    /// What is known of a topic of interest: an error if the broker says that there is none.
    pub(crate) fn topic(&self, name: &str, now: Instant) -> Option<Result<Arc<Topic>>> {
        if let Some(topic) = self.cluster.topic(name) {
            return Some(Ok(topic.clone()));
        }
        self.missing(name, now).map(Err)
    }

    /// The address of the shard that owns a partition.
    pub(crate) fn owner(&self, topic: &Topic, partition: u32) -> Option<String> {
        let (host, port) = self.cluster.owner(topic, partition)?;
        Some(server_name(host, *port))
    }

    fn new_handle(&mut self) -> usize {
        self.next_handle += 1;
        self.next_handle
    }

    // ---- producers ----------------------------------------------------------------------------

    /// Adds a producer of a topic that is known.
    pub(crate) fn add_producer(
        &mut self,
        topic: Arc<Topic>,
        options: ProducerOptions,
        now: Instant,
    ) -> Result<usize> {
        let options = options.checked()?;
        self.cluster.learn(&topic);
        let mut producer = Producer::new(topic, options, self.new_backoff());
        let key = self.new_handle();
        if producer.options.idempotence {
            // Asked for ahead of the first record, which then need not wait for it.
            producer.identity_asked = true;
            self.call_for(Request::InitProducer, Owner::Producer(key), now);
        }
        self.producers.insert(key, producer);
        Ok(key)
    }

    pub(crate) fn remove_producer(&mut self, key: usize) {
        self.calls.retain(|_, c| c.owner != Owner::Producer(key));
        self.producers.remove(&key);
    }

    pub(crate) fn producer(&mut self, key: usize) -> &mut Producer {
        // A face holds the key from `add_producer` to `remove_producer`.
        self.producers
            .get_mut(&key)
            .expect("the producer's handle still exists")
    }

    #[cfg(test)]
    pub(crate) fn producer_if<T>(
        &mut self,
        key: usize,
        get: impl FnOnce(&mut Producer) -> Option<T>,
    ) -> Option<T> {
        self.producers.get_mut(&key).and_then(get)
    }

    /// Takes a record; whatever the window allows is in the links' output afterwards.
    pub(crate) fn send(
        &mut self,
        key: usize,
        record: &Record<'_>,
        timestamp_ms: i64,
        now: Instant,
    ) -> Result<Ticket> {
        let producer = self.producer(key);
        let ticket = producer.push(record, timestamp_ms, now)?;
        let expiry = producer.expiry(ticket.partition);
        self.wake = earlier(self.wake, expiry);
        self.pump_lane(key, ticket.partition, now);
        self.post_parcels(now);
        Ok(ticket)
    }

    /// Sends what lingers, and says what was taken so far: [`Producer::has_settled`] tells when it
    /// has its outcome.
    pub(crate) fn flush(&mut self, key: usize, now: Instant) -> Taken {
        let taken = self.producer(key).flush();
        self.pump_lanes(key, now);
        self.post_parcels(now);
        taken
    }

    // ---- consumers ----------------------------------------------------------------------------

    /// Adds a consumer of a topic that is known.
    pub(crate) fn add_consumer(
        &mut self,
        topic: Arc<Topic>,
        options: ConsumerOptions,
    ) -> Result<usize> {
        self.cluster.learn(&topic);
        let consumer = Consumer::new(topic, options.checked()?, self.new_backoff())?;
        let key = self.new_handle();
        self.consumers.insert(key, consumer);
        self.rescan = true;
        Ok(key)
    }

    pub(crate) fn remove_consumer(&mut self, key: usize, now: Instant) {
        for cursor in 0..self.consumer(key).cursors.len() {
            self.unsubscribe(key, cursor, now);
        }
        let of_it = |c: &Call| matches!(c.owner, Owner::Cursor { consumer, .. } if consumer == key);
        self.calls.retain(|_, c| !of_it(c));
        self.consumers.remove(&key);
    }

    pub(crate) fn consumer(&mut self, key: usize) -> &mut Consumer {
        // A face holds the key from `add_consumer` to `remove_consumer`.
        self.consumers
            .get_mut(&key)
            .expect("the consumer's handle still exists")
    }

    /// Moves a consumer's cursor.
    pub(crate) fn seek(&mut self, key: usize, cursor: usize, start: Start, now: Instant) {
        self.unsubscribe(key, cursor, now);
        self.consumer(key).seek(cursor, start);
        self.pump_cursor(key, cursor, now);
    }

    /// What was taken cannot be read: the cursor stands still.
    pub(crate) fn stop(&mut self, key: usize, cursor: usize, now: Instant) {
        self.unsubscribe(key, cursor, now);
        self.consumer(key).stop(cursor);
    }

    fn unsubscribe(&mut self, key: usize, cursor: usize, now: Instant) {
        let deadline = Some(now + self.options.request_timeout);
        let state = &mut self.consumer(key).cursors[cursor];
        let flow = std::mem::replace(&mut state.flow, Flow::Idle);
        if let Flow::Subscribed { link, correlation } | Flow::Asked { link, correlation } = flow
            && let Some(connection) = self.links[link].ready()
        {
            connection.unsubscribe(correlation, deadline, Tag::Unsubscribe);
        }
    }
}

/// Joins host and port so that [`parse_server`] splits them again.
pub(crate) fn server_name(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// Splits HOST:PORT; the port may be left out, an IPv6 address stands in brackets.
pub(crate) fn parse_server(server: &str) -> Result<(&str, u16)> {
    let wrong = || Error::invalid(format!("server {server:?} is not of the form HOST:PORT"));
    let (host, port) = match server.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (server, ringtide_schema::limits::DEFAULT_PORT),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        Err(wrong())
    } else {
        Ok((host, port))
    }
}
