//! What is sent when: looks at calls, lanes and cursors and puts into the links' output what may go.

use std::sync::Arc;
use std::time::Instant;

use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::Op;
use ringtide_schema::wire;

use crate::core::call::{Owner, Request, send_metadata};
use crate::core::cluster::{Known, Topic};
use crate::core::connection::earlier;
use crate::core::consumer::{Flow, Place, asked_offset};
use crate::core::link::Link;
use crate::core::outcome::points_elsewhere;
use crate::core::parcel::{Parcel, Part, Sent};
use crate::core::{Core, Tag};
use crate::error::{Error, why_not};
use crate::options::{Acks, Delivery, Start};

/// No more batches are put into an output that holds as much as this.
const OUTPUT_BYTES: usize = 4 << 20;
/// How long a topic that the broker does not know is asked for again: it may be about to be created.
pub(crate) const MISSING_GRACE: std::time::Duration = std::time::Duration::from_millis(300);

impl Core {
    /// Looks after everything that is due. Call it after events and at [`Self::next_deadline`].
    pub(crate) fn tick(&mut self, now: Instant) {
        let due = self.next_deadline().is_some_and(|at| at <= now);
        if !self.rescan && !due {
            return;
        }
        // What one thing sends, another may wait for; it ends when nothing new is wanted.
        for _ in 0..4 {
            self.rescan = false;
            self.wake = None;
            self.tick_links(now);
            self.tick_metadata(now);
            self.tick_calls(now);
            let mut from = 0;
            while let Some((&producer, _)) = self.producers.range(from..).next() {
                self.expire_lanes(producer, now);
                self.pump_lanes(producer, now);
                from = producer + 1;
            }
            self.post_parcels(now);
            let mut from = 0;
            while let Some((&consumer, state)) = self.consumers.range(from..).next() {
                for cursor in 0..state.cursors.len() {
                    self.pump_cursor(consumer, cursor, now);
                }
                from = consumer + 1;
            }
            if !self.rescan {
                break;
            }
        }
        self.tick_links(now);
        self.forget_troubles();
    }

    /// Everything is looked at again at this time, or before.
    fn wake_at(&mut self, at: Option<Instant>) {
        self.wake = earlier(self.wake, at);
    }

    /// The link to the owner of a partition; if it is not up, it will be made.
    fn route(&mut self, topic: &Topic, partition: u32) -> Option<usize> {
        let Some((host, port)) = self.cluster.owner(topic, partition).cloned() else {
            self.refresh();
            return None;
        };
        self.way_to(&host, port)
    }

    /// The link to an address; if it is not up, it will be made.
    fn way_to(&mut self, host: &Arc<str>, port: u16) -> Option<usize> {
        let link = self.link_to(host, port);
        if self.links[link].is_ready() {
            return Some(link);
        }
        if !self.links[link].demand {
            self.links[link].demand = true;
            self.rescan = true;
        }
        None
    }

    /// The error to report for a topic that the broker has not known for a while.
    pub(crate) fn missing(&self, name: &str, now: Instant) -> Option<Error> {
        let Some(Known::Missing { since, error }) = self.cluster.topics.get(name) else {
            return None;
        };
        if now.saturating_duration_since(*since) < MISSING_GRACE {
            return None;
        }
        let hint = match ErrorCode::from_u16(*error) {
            Some(ErrorCode::UnknownTopic) => "create it first",
            _ => "",
        };
        Some(Error::from_wire(*error, format!("topic {name}"), hint))
    }

    pub(crate) fn refresh(&mut self) {
        if !self.cluster.refresh_wanted {
            self.cluster.refresh_wanted = true;
            self.rescan = true;
        }
    }

    fn tick_metadata(&mut self, now: Instant) {
        let missing = |k: &Known| matches!(k, Known::Missing { .. });
        if self.cluster.stale_at.is_none() && !self.cluster.topics.is_empty() {
            self.cluster.stale_at = Some(now + self.options.metadata_max_age);
        }
        let stale = self.cluster.stale_at.is_some_and(|at| at <= now);
        let wanted =
            stale || self.cluster.refresh_wanted || self.cluster.topics.values().any(missing);
        if self.cluster.refresh_in_flight {
            return;
        }
        if !wanted {
            return self.wake_at(self.cluster.stale_at);
        }
        if self.cluster.refresh_after.is_some_and(|at| now < at) {
            return self.wake_at(self.cluster.refresh_after);
        }
        self.forget_unused_topics();
        if self.cluster.topics.is_empty() {
            self.cluster.refresh_wanted = false;
            return;
        }
        let Some(link) = self.any_link() else { return };
        let deadline = Some(now + self.options.request_timeout);
        let Some(connection) = self.links[link].ready() else {
            return;
        };
        let topics: Vec<Arc<str>> = self.cluster.topics.keys().cloned().collect();
        send_metadata(connection, &topics, deadline, Tag::Metadata);
        self.cluster.refresh_wanted = false;
        self.cluster.refresh_in_flight = true;
        self.cluster.stale_at = None;
        let wait = self.cluster.backoff.next(&mut self.random);
        self.cluster.refresh_after = Some(now + wait);
    }

    /// A topic that is not there is asked for as long as somebody needs it.
    fn forget_unused_topics(&mut self) {
        let Self {
            cluster,
            calls,
            producers,
            consumers,
            ..
        } = self;
        cluster.topics.retain(|name, known| {
            !matches!(known, Known::Missing { .. })
                || calls
                    .values()
                    .any(|c| c.request.partition().is_some_and(|p| p.0 == name))
                || producers.values().any(|p| p.topic.name == *name)
                || consumers.values().any(|c| c.topic.name == *name)
        });
    }

    fn tick_calls(&mut self, now: Instant) {
        let keys: Vec<u64> = self.calls.keys().copied().collect();
        for key in keys {
            self.tick_call(key, now);
        }
    }

    fn tick_call(&mut self, key: u64, now: Instant) {
        let Some(call) = self.calls.get(&key) else {
            return;
        };
        if call.deadline <= now {
            let (what, waited) = (
                call.request.what().into(),
                now.saturating_duration_since(call.since),
            );
            let refusal = call.refusal.as_ref();
            let trouble = match call.request.partition() {
                Some((topic, partition)) => self.trouble_of(topic, partition, refusal.is_some()),
                None => self.trouble().filter(|_| refusal.is_none()),
            };
            let why = why_not(trouble.or(refusal));
            let error = match (call.on, trouble, refusal) {
                (Some(_), ..) if call.request.changes_once() => Error::OutcomeUnknown { what, why },
                (None, Some(error @ Error::Connect { .. }), _) => error.clone(),
                (None, None, Some(refusal)) => refusal.clone().tried_for(waited),
                _ => Error::Timeout {
                    what,
                    after: waited,
                    why,
                },
            };
            return self.finish_call(key, Err(error), now);
        }
        let deadline = call.deadline;
        if let Some(error) = self.never_contacted() {
            return self.finish_call(key, Err(error), now);
        }
        self.wake_at(Some(deadline));
        let Some(call) = self.calls.get(&key) else {
            return;
        };
        if call.on.is_some() {
            return;
        }
        if let Some(at) = call.retry_at
            && now < at
        {
            return self.wake_at(Some(at));
        }
        let request = call.request.clone();
        let (link, partition) = match request.partition() {
            None => match request.shard() {
                Some((host, port)) => (self.way_to(host, port), None),
                None => (self.any_link(), None),
            },
            Some((name, partition)) => match self.topic(name, now) {
                None => {
                    self.refresh();
                    (None, None)
                }
                Some(Err(error)) => return self.finish_call(key, Err(error), now),
                Some(Ok(topic)) if partition >= topic.partitions() => {
                    let message = format!("the topic has {} partitions", topic.partitions());
                    let code = ErrorCode::UnknownPartition as u16;
                    let error = Error::from_wire(code, request.what(), message);
                    return self.finish_call(key, Err(error), now);
                }
                Some(Ok(topic)) if request.topic_id().is_some_and(|id| id != topic.id) => {
                    let code = ErrorCode::UnknownTopic as u16;
                    let message = "it was deleted and made anew since the offset was read";
                    let error = Error::from_wire(code, request.what(), message);
                    return self.finish_call(key, Err(error), now);
                }
                Some(Ok(topic)) => (
                    self.route(&topic, partition),
                    Some(topic.partition(partition)),
                ),
            },
        };
        let Some(link) = link else { return };
        let at_most = Some(now + self.options.request_timeout);
        let Some(connection) = self.links[link].ready().filter(|c| c.has_room()) else {
            return;
        };
        request.send(connection, partition, at_most, Tag::Call(key));
        if let Some(call) = self.calls.get_mut(&key) {
            call.on = Some(link);
        }
    }

    /// Why the owner of a partition cannot be reached, or, if the broker did not refuse the request,
    /// what else is amiss.
    fn trouble_of(&self, topic: &str, partition: u32, refused: bool) -> Option<&Error> {
        let topic = self.cluster.topic(topic);
        let owner = topic.and_then(|topic| self.cluster.owner(topic, partition));
        let own = owner.and_then(|(host, port)| {
            let link = self
                .links
                .iter()
                .find(|l| l.port == *port && l.host == *host)?;
            link.error.as_ref()
        });
        own.or_else(|| self.trouble().filter(|_| !refused))
    }

    /// What stands in the way of a partition's records, as far as is known.
    pub(crate) fn in_the_way(&self, key: usize, partition: u32) -> Option<&Error> {
        let producer = self.producers.get(&key)?;
        let refusal = producer.lanes.get(partition as usize)?.refusal.as_ref();
        let trouble = self.trouble_of(&producer.topic.name, partition, refusal.is_some());
        trouble.or(refusal)
    }

    /// Gives up what is too old. Not to be done before what has arrived was looked at.
    fn expire_lanes(&mut self, key: usize, now: Instant) {
        for partition in 0..self.producer(key).lanes.len() as u32 {
            let expiry = self.producer(key).expiry(partition);
            if expiry.is_some_and(|at| at <= now) {
                let producer = self.producer(key);
                let name = producer.topic.name.clone();
                let refused = producer.lanes[partition as usize].refusal.is_some();
                let trouble = self.trouble_of(&name, partition, refused).cloned();
                self.producer(key).expire(partition, now, trouble.as_ref());
            }
        }
    }

    pub(crate) fn pump_lanes(&mut self, key: usize, now: Instant) {
        let lanes = self.producers.get(&key).map_or(0, |p| p.lanes.len());
        for partition in 0..lanes as u32 {
            self.pump_lane(key, partition, now);
        }
    }

    /// Posts what was gathered since the core was called.
    pub(crate) fn post_parcels(&mut self, now: Instant) {
        let deadline = now + self.options.request_timeout;
        while let Some(link) = self.dirty_parcels.pop() {
            let Link { state, parcel, .. } = &mut self.links[link];
            if let Some(connection) = state.ready() {
                parcel.post(connection, deadline);
            }
        }
    }

    /// Gathers what a producer may send to one partition; [`Self::post_parcels`] sends it.
    pub(crate) fn pump_lane(&mut self, key: usize, partition: u32, now: Instant) {
        let Some(producer) = self.producers.get_mut(&key) else {
            return;
        };
        let Some(expiry) = producer.expiry(partition) else {
            return;
        };
        let topic = producer.topic.clone();
        self.wake_at(Some(expiry));
        if !self.producer(key).lanes[partition as usize].has_unsent() {
            return;
        }
        if let Some(error) = self.missing(&topic.name, now) {
            return self.producer(key).fail_unsent(partition, &error, now);
        }
        let Some(link) = self.route(&topic, partition) else {
            return;
        };
        let id = wire::PartitionRef::from(topic.partition(partition));
        let Self {
            links,
            producers,
            wake,
            options,
            throttled,
            dirty_parcels,
            ..
        } = self;
        let Link {
            state,
            silent,
            parcel,
            ..
        } = &mut links[link];
        let (Some(connection), Some(producer)) = (state.ready(), producers.get_mut(&key)) else {
            return;
        };
        let acks = producer.options.acks;
        let deadline = now + options.request_timeout;
        loop {
            let waiting = connection.output().len() + parcel.bytes();
            let unposted = usize::from(!parcel.is_empty());
            if !connection.has_room_for(1 + unposted) || waiting >= OUTPUT_BYTES {
                *throttled = true;
                break;
            }
            let Some(index) = producer.next_batch(partition, link, now, wake) else {
                break;
            };
            let batch = &producer.lanes[partition as usize].batches[index];
            let bytes = batch.bytes.len();
            let head = wire::PublishPart::new(&id, bytes as u32);
            let part = Part {
                producer: key,
                partition,
                batch: batch.key,
            };
            if !Parcel::may_hold(acks, bytes) {
                parcel.post(connection, deadline);
                let tag = (acks != Acks::None).then_some(Tag::Publish(Sent::One(Some(part))));
                connection.publish_head(acks as u8, &[head], bytes, Some(deadline), tag);
                connection.payload(&batch.bytes);
                if acks == Acks::None {
                    silent.push_back(part);
                }
                continue;
            }
            if !parcel.has_room(acks, bytes) {
                parcel.post(connection, deadline);
            }
            if parcel.is_empty() {
                dirty_parcels.push(link);
            }
            parcel.add(acks, part, head, &batch.bytes);
        }
        if acks == Acks::None {
            return self.vouch(link);
        }
        if producer.wants_identity(partition) && !producer.identity_asked {
            let retry_at = producer.identity_retry_at.filter(|&at| now < at);
            if retry_at.is_some() {
                return self.wake_at(retry_at);
            }
            producer.identity_asked = true;
            self.call_for(Request::InitProducer, Owner::Producer(key), now);
        }
    }

    /// Does what a cursor needs next.
    pub(crate) fn pump_cursor(&mut self, key: usize, index: usize, now: Instant) {
        let Some(consumer) = self.consumers.get_mut(&key) else {
            return;
        };
        let (topic, delivery) = (consumer.topic.clone(), consumer.options.delivery);
        let cursor = &mut consumer.cursors[index];
        let (partition, generation) = (cursor.partition, cursor.generation);
        if let Some(at) = cursor.retry_at
            && now < at
        {
            return self.wake_at(Some(at));
        }
        if let Place::At(start) = &cursor.place {
            let start = start.clone();
            let asked = asked_offset(&start);
            let name = topic.name.clone();
            let request = match (&start, asked) {
                (_, Some(at)) => Request::ListOffsets {
                    topic: name,
                    partition,
                    at,
                },
                (Start::Committed { consumer, .. }, None) => {
                    let consumer = consumer.as_str().into();
                    Request::ReadOffset {
                        consumer,
                        topic: name,
                        partition,
                    }
                }
                (Start::Offset(offset), None) => {
                    cursor.arrived = *offset;
                    cursor.place = Place::Known;
                    return self.pump_cursor(key, index, now);
                }
                (_, None) => return,
            };
            cursor.place = Place::Asking(start);
            let owner = Owner::Cursor {
                consumer: key,
                cursor: index,
                generation,
            };
            self.call_for(request, owner, now);
            return;
        }
        if cursor.place != Place::Known {
            return;
        }
        if let Flow::Subscribed { link, correlation } = cursor.flow {
            if let Delivery::Push { credit_bytes } = delivery
                && cursor.owed >= credit_bytes / 4
                && cursor.owed > 0
                && let Some(connection) = self.links[link].ready()
            {
                connection.credit(correlation, cursor.owed);
                cursor.owed = 0;
            }
            return;
        }
        if cursor.flow != Flow::Idle {
            return;
        }
        if matches!(delivery, Delivery::Poll { .. }) && cursor.queued_bytes > 0 {
            return;
        }
        // What waits here was sent on credit that is not given back yet.
        let credit = match delivery {
            Delivery::Push { credit_bytes } => {
                credit_bytes.saturating_sub(cursor.queued_bytes as u32)
            }
            Delivery::Poll { .. } => 1,
        };
        if credit == 0 {
            return;
        }
        if let Some(error) = self.missing(&topic.name, now) {
            return self.consumer(key).fail(index, error);
        }
        if partition >= topic.partitions() {
            let what = format!("consume {}/{partition}", topic.name);
            let message = format!("the topic has {} partitions", topic.partitions());
            let error = Error::from_wire(ErrorCode::UnknownPartition as u16, what, message);
            return self.consumer(key).fail(index, error);
        }
        let Some(link) = self.route(&topic, partition) else {
            return;
        };
        let at = wire::PartitionRef::from(topic.partition(partition));
        let timeout = self.options.request_timeout;
        let Self {
            links,
            consumers,
            throttled,
            ..
        } = self;
        let Some(connection) = links[link].ready().filter(|c| c.has_room()) else {
            *throttled = true;
            return;
        };
        let Some(consumer) = consumers.get_mut(&key) else {
            return;
        };
        let cursor = &mut consumer.cursors[index];
        let correlation = match delivery {
            Delivery::Push { .. } => {
                let tag = Tag::Subscribe {
                    consumer: key,
                    cursor: index,
                    generation,
                };
                let offset = cursor.arrived.cast_signed();
                cursor.owed = 0;
                connection.request(Op::Subscribe, Some(now + timeout), tag, |b| {
                    let args = wire::SubscribeRequestArgs {
                        partition: Some(&at),
                        offset,
                        credit_bytes: credit,
                    };
                    wire::SubscribeRequest::create(b, &args)
                })
            }
            Delivery::Poll {
                min_bytes,
                max_wait,
                max_bytes,
            } => {
                let tag = Tag::Fetch {
                    consumer: key,
                    cursor: index,
                    generation,
                };
                let args = wire::FetchRequestArgs {
                    partition: Some(&at),
                    offset: cursor.arrived,
                    max_bytes,
                    min_bytes,
                    max_wait_ms: max_wait.as_millis() as u32,
                };
                let deadline = Some(now + timeout + max_wait);
                connection.request(Op::Fetch, deadline, tag, |b| {
                    wire::FetchRequest::create(b, &args)
                })
            }
        };
        cursor.flow = Flow::Asked { link, correlation };
    }

    /// Refreshes the metadata if the code says that it is out of date.
    pub(crate) fn look_again(&mut self, number: u16) -> bool {
        let elsewhere = ErrorCode::from_u16(number).is_some_and(points_elsewhere);
        if elsewhere {
            self.refresh();
        }
        elsewhere
    }
}
