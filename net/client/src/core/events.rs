//! What arrives: answers find the call, lane or cursor that waits for them.

use std::ops::Range;
use std::time::Instant;

use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::Op;
use ringtide_schema::wire;
use ringtide_session::envelope;

use crate::core::call::{Misread, Owner, Request, Response};
use crate::core::cluster::Known;
use crate::core::connection::{self, Connection, Event};
use crate::core::consumer::{Flow, Place};
use crate::core::flow::MISSING_GRACE;
use crate::core::link::State;
use crate::core::parcel::{Part, Sent};
use crate::core::producer::Appended;
use crate::core::{Core, Tag};
use crate::error::{Error, Result};
use crate::options::Start;

impl Core {
    /// Takes what arrived on a link.
    pub(crate) fn received(&mut self, link: usize, bytes: &[u8], now: Instant) {
        let state = std::mem::replace(&mut self.links[link].state, State::Down);
        let State::Up(mut connection) = state else {
            self.links[link].state = state;
            return;
        };
        self.links[link].ping_at = Some(now + self.options.request_timeout);
        let mut wrong = Ok(());
        let outcome = connection.receive(bytes, now, |event| {
            let handled = self.handle(link, event, now);
            if wrong.is_ok() {
                wrong = handled;
            }
        });
        self.links[link].state = State::Up(connection);
        if let Err(why) = outcome.and(wrong) {
            let server = self.links[link].name.clone();
            self.down(
                link,
                Error::Protocol {
                    server,
                    why: why.into(),
                },
                now,
            );
        }
        if std::mem::take(&mut self.throttled) {
            self.rescan = true;
        }
        self.vouch(link);
        while let Some((producer, partition)) = self.dirty_lanes.pop() {
            self.pump_lane(producer, partition, now);
        }
        self.post_parcels(now);
        while let Some((consumer, cursor)) = self.dirty_cursors.pop() {
            self.pump_cursor(consumer, cursor, now);
        }
    }

    /// The error says what is wrong with what the broker sent.
    fn handle(&mut self, link: usize, event: Event<'_, Tag>, now: Instant) -> Result<(), String> {
        match event {
            Event::Ready => {
                let state = &mut self.links[link];
                state.backoff.reset();
                state.retry_at = None;
                state.error = None;
                self.contacted = true;
                self.rescan = true;
            }
            Event::Answer {
                correlation,
                mut tag,
                envelope,
                payload,
                ..
            } => {
                let is_last = matches!(tag, connection::Tag::Last(_));
                match tag.as_mut() {
                    Tag::Metadata => self.metadata_answered(envelope, now)?,
                    Tag::Call(call) => {
                        let call = *call;
                        self.call_answered(call, envelope, now);
                    }
                    Tag::Publish(sent) => {
                        self.publish_answered(sent, envelope, now)?;
                        if is_last && sent.unanswered().next().is_some() {
                            return Err("an answer to a publish without a result".into());
                        }
                    }
                    Tag::Subscribe {
                        consumer,
                        cursor,
                        generation,
                    } => {
                        let (key, index, generation) = (*consumer, *cursor, *generation);
                        if let Some(state) = self.cursor(key, index, generation) {
                            state.flow = Flow::Subscribed { link, correlation };
                            state.retry_at = None;
                            state.subscribed();
                            self.mark_cursor(key, index);
                        }
                    }
                    Tag::Fetch {
                        consumer,
                        cursor,
                        generation,
                    } => {
                        let (key, index, generation) = (*consumer, *cursor, *generation);
                        if let Some(state) = self.cursor(key, index, generation) {
                            state.flow = Flow::Idle;
                            state.backoff.reset();
                            state.refused = None;
                            let offsets = fetched_offsets(envelope)?;
                            self.consumer(key).arrived(index, offsets, payload);
                            self.mark_cursor(key, index);
                        }
                    }
                    Tag::Vouch => self.vouched(link),
                    Tag::Unsubscribe | Tag::Ping => {}
                }
            }
            Event::Push {
                tag,
                envelope,
                payload,
                ..
            } => {
                if let Tag::Subscribe {
                    consumer,
                    cursor,
                    generation,
                } = tag
                {
                    let (key, index, generation) = (*consumer, *cursor, *generation);
                    if self.cursor(key, index, generation).is_some() {
                        let offsets = pushed_offsets(envelope)?;
                        self.consumer(key).arrived(index, offsets, payload);
                        self.mark_cursor(key, index);
                    }
                }
            }
            // What stands before it would never be done.
            Event::Failed {
                tag: Tag::Vouch, ..
            } => return Err("a ping was refused".into()),
            Event::Failed { tag, error, op, .. } => self.failed(tag, op, &error, now),
            Event::Refused { error } => {
                self.look_again(error.code);
            }
        }
        Ok(())
    }

    fn mark_cursor(&mut self, consumer: usize, cursor: usize) {
        if self.dirty_cursors.last() != Some(&(consumer, cursor)) {
            self.dirty_cursors.push((consumer, cursor));
        }
    }

    pub(crate) fn mark_lane(&mut self, producer: usize, partition: u32) {
        if self.dirty_lanes.last() != Some(&(producer, partition)) {
            self.dirty_lanes.push((producer, partition));
        }
    }

    /// The cursor, if it has not been moved since.
    fn cursor(
        &mut self,
        consumer: usize,
        cursor: usize,
        generation: u32,
    ) -> Option<&mut crate::core::consumer::Cursor> {
        let consumer = self.consumers.get_mut(&consumer)?;
        consumer
            .cursors
            .get_mut(cursor)
            .filter(|c| c.generation == generation)
    }

    fn metadata_answered(&mut self, bytes: &[u8], now: Instant) -> Result<(), String> {
        self.cluster.refresh_in_flight = false;
        self.cluster.stale_at = Some(now + self.options.metadata_max_age);
        let answer = envelope::<wire::MetadataResponse<'_>>(bytes)
            .map_err(|e| format!("malformed metadata envelope: {e}"))?;
        self.cluster.update(&answer, now)?;
        self.link_shards();
        if self
            .cluster
            .topics
            .values()
            .all(|k| matches!(k, Known::There(_)))
        {
            self.cluster.backoff.reset();
        }
        for producer in self.producers.values_mut() {
            if let Some(topic) = self.cluster.topic(&producer.topic.name)
                && *topic != producer.topic
            {
                producer.topic_changed(topic, now);
            }
        }
        for consumer in self.consumers.values_mut() {
            if let Some(topic) = self.cluster.topic(&consumer.topic.name)
                && *topic != consumer.topic
            {
                consumer.topic_changed(topic);
            }
        }
        self.rescan = true;
        Ok(())
    }

    fn call_answered(&mut self, key: u64, bytes: &[u8], now: Instant) {
        let Some(call) = self.calls.get(&key) else {
            return;
        };
        let read = call.request.read(bytes);
        if let Request::ListShards | Request::ListTopics | Request::DescribeTopic { .. } =
            call.request
            && let Ok(answer) = envelope::<wire::MetadataResponse<'_>>(bytes)
        {
            self.cluster.update_shards(&answer);
            self.link_shards();
        }
        match read {
            Ok(response) => self.finish_call(key, Ok(response), now),
            Err(Misread::Error(number)) => self.call_refused(key, number, "", None, now),
            Err(Misread::Malformed(why)) => {
                let server = "the broker".into();
                self.finish_call(
                    key,
                    Err(Error::Protocol {
                        server,
                        why: why.into(),
                    }),
                    now,
                );
            }
        }
    }

    fn call_refused(
        &mut self,
        key: u64,
        number: u16,
        message: &str,
        range: Option<(i64, i64)>,
        now: Instant,
    ) {
        let elsewhere = self.look_again(number);
        let Some(call) = self.calls.get_mut(&key) else {
            return;
        };
        call.on = None;
        let retriable = ErrorCode::from_u16(number).is_some_and(ErrorCode::is_retriable);
        let routed = call.request.partition().is_some() && elsewhere;
        let may_appear = matches!(call.request, Request::DescribeTopic { .. })
            && number == ErrorCode::UnknownTopic as u16
            && now.saturating_duration_since(call.since) < MISSING_GRACE;
        if retriable || routed || may_appear {
            let wait = call.backoff.next(&mut self.random);
            call.retry_at = Some(now + wait);
            call.refusal = Some(Error::from_wire(number, call.request.what(), message));
            self.rescan = true;
            return;
        }
        let what = call.request.what();
        let error = match (range, call.request.partition()) {
            (Some((earliest, latest)), Some((topic, partition)))
                if number == ErrorCode::OffsetOutOfRange as u16 =>
            {
                let topic = topic.clone();
                let offset = call.request.offset().unwrap_or_default();
                Error::OffsetOutOfRange {
                    topic,
                    partition,
                    offset,
                    earliest,
                    latest,
                }
            }
            _ => Error::from_wire(number, what, message),
        };
        self.finish_call(key, Err(error), now);
    }

    pub(crate) fn finish_call(&mut self, key: u64, outcome: Result<Response>, now: Instant) {
        let Some(call) = self.calls.remove(&key) else {
            return;
        };
        if call.request.changes_once() {
            self.cluster.refresh_after = None;
            self.refresh();
        }
        match call.owner {
            Owner::Application => {
                self.answers.insert(key, outcome);
            }
            Owner::Producer(producer) => {
                let Some(state) = self.producers.get_mut(&producer) else {
                    return;
                };
                state.identity_asked = false;
                match outcome {
                    Ok(Response::Producer(identity)) => state.set_identity(identity),
                    Ok(_) => {}
                    Err(error) => state.identity_refused(&error, now, &mut self.random),
                }
                self.rescan = true;
            }
            Owner::Cursor {
                consumer,
                cursor,
                generation,
            } => {
                self.place_resolved(consumer, cursor, generation, outcome, now);
            }
        }
    }

    fn place_resolved(
        &mut self,
        key: usize,
        index: usize,
        generation: u32,
        outcome: Result<Response>,
        now: Instant,
    ) {
        self.rescan = true;
        let Some(state) = self.cursor(key, index, generation) else {
            return;
        };
        let Place::Asking(start) = state.place.clone() else {
            return;
        };
        match (outcome, start) {
            (Ok(Response::Offset(listed)), _) => {
                state.arrived = listed.offset;
                state.place = Place::Known;
            }
            (Ok(Response::Committed(Some(committed))), _) => {
                state.arrived = committed.offset;
                state.place = Place::Known;
            }
            (Ok(Response::Committed(None)), Start::Committed { fallback, .. }) => {
                state.place = Place::At(*fallback);
            }
            (Err(error), start) if error.is_retriable() => {
                state.place = Place::At(start);
                state.refused = error.code().map(|_| (Op::ListOffsets, error));
                self.retry_cursor(key, index, now);
            }
            (Err(error), _) => self.consumer(key).fail(index, error),
            (Ok(_), _) => {}
        }
    }

    fn publish_answered(
        &mut self,
        sent: &mut Sent,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), String> {
        let answer = envelope::<wire::PublishResponse<'_>>(bytes)
            .map_err(|e| format!("malformed publish envelope: {e}"))?;
        // It is about the first that was refused.
        let mut message = answer.message();
        for result in answer.results().into_iter().flatten() {
            let part = sent.answered(result.part());
            let part = part.ok_or("a result of a batch that no answer is due for")?;
            let base_offset = result.base_offset();
            let outcome = match result.error() {
                0 if i64::try_from(base_offset).is_err() => {
                    return Err(format!(
                        "a batch at offset {base_offset}, which none can have"
                    ));
                }
                0 => Ok(Appended {
                    base_offset: Some(base_offset),
                    append_time_ms: result.append_time_ms(),
                    duplicate: result.duplicate(),
                }),
                number => Err((number, message.take().unwrap_or_default())),
            };
            self.part_answered(part, outcome, now);
        }
        Ok(())
    }

    fn part_answered(&mut self, part: Part, outcome: Result<Appended, (u16, &str)>, now: Instant) {
        if let Err((number, _)) = outcome {
            self.look_again(number);
        }
        let Some(producer) = self.producers.get_mut(&part.producer) else {
            return;
        };
        producer.answered(part.partition, part.batch, outcome, now, &mut self.random);
        self.mark_lane(part.producer, part.partition);
    }

    fn failed(&mut self, tag: Tag, op: Op, error: &wire::ErrorResponseT, now: Instant) {
        let message = error.message.as_deref().unwrap_or_default();
        let range = (error.earliest, error.latest);
        match tag {
            Tag::Metadata => {
                self.cluster.refresh_in_flight = false;
                self.cluster.refresh_wanted = true;
                self.rescan = true;
            }
            Tag::Call(call) => self.call_refused(call, error.code, message, Some(range), now),
            Tag::Publish(mut sent) => {
                for part in sent.unanswered() {
                    self.part_answered(part, Err((error.code, message)), now);
                }
            }
            Tag::Subscribe {
                consumer,
                cursor,
                generation,
            }
            | Tag::Fetch {
                consumer,
                cursor,
                generation,
            } => {
                debug_assert!(matches!(op, Op::Subscribe | Op::Push | Op::Fetch));
                let elsewhere = self.look_again(error.code);
                let Some(state) = self.cursor(consumer, cursor, generation) else {
                    return;
                };
                state.flow = Flow::Idle;
                if state.place == Place::Failed {
                    return;
                }
                let known = ErrorCode::from_u16(error.code);
                let (partition, offset) = (state.partition, state.arrived);
                let topic = self.consumer(consumer).topic.name.clone();
                if elsewhere || known.is_some_and(ErrorCode::is_retriable) {
                    let what = format!("consume {topic}/{partition}");
                    let error = Error::from_wire(error.code, what, message);
                    self.consumer(consumer).cursors[cursor].refused = Some((op, error));
                    return self.retry_cursor(consumer, cursor, now);
                }
                let (earliest, latest) = range;
                let error = if known == Some(ErrorCode::OffsetOutOfRange) {
                    Error::OffsetOutOfRange {
                        topic,
                        partition,
                        offset,
                        earliest,
                        latest,
                    }
                } else {
                    let what = format!("consume {topic}/{partition}");
                    Error::from_wire(error.code, what, message)
                };
                self.consumer(consumer).fail(cursor, error);
            }
            Tag::Unsubscribe | Tag::Ping | Tag::Vouch => {}
        }
    }

    fn retry_cursor(&mut self, consumer: usize, index: usize, now: Instant) {
        let Some(state) = self.consumers.get_mut(&consumer) else {
            return;
        };
        let cursor = &mut state.cursors[index];
        let wait = cursor.backoff.next(&mut self.random);
        cursor.retry_at = Some(now + wait);
        self.mark_cursor(consumer, index);
    }

    /// The connection is gone: nothing that waits on it will be answered.
    pub(crate) fn unanswered(
        &mut self,
        link: usize,
        connection: Connection<Tag>,
        error: &Error,
        now: Instant,
    ) {
        for (_, tag) in connection.into_unanswered() {
            match tag {
                Tag::Metadata => {
                    self.cluster.refresh_in_flight = false;
                    self.cluster.refresh_wanted = true;
                }
                Tag::Call(key) => {
                    let Some(call) = self.calls.get_mut(&key) else {
                        continue;
                    };
                    call.on = None;
                    call.refusal = None;
                    if call.request.changes_once() {
                        let what = call.request.what().into();
                        let why = error.to_string().into();
                        self.finish_call(key, Err(Error::OutcomeUnknown { what, why }), now);
                    }
                }
                // Lanes look after all their batches of the link at once, below.
                Tag::Publish(_) | Tag::Unsubscribe | Tag::Ping | Tag::Vouch => {}
                Tag::Subscribe {
                    consumer,
                    cursor,
                    generation,
                }
                | Tag::Fetch {
                    consumer,
                    cursor,
                    generation,
                } => {
                    if let Some(state) = self.cursor(consumer, cursor, generation) {
                        state.flow = Flow::Idle;
                    }
                }
            }
        }
        let why = error.to_string();
        for producer in self.producers.values_mut() {
            producer.disconnected(link, &why);
        }
    }
}

/// Which offsets the payload of a fetch holds.
fn fetched_offsets(bytes: &[u8]) -> Result<Range<u64>, String> {
    let answer = envelope::<wire::FetchResponse<'_>>(bytes)
        .map_err(|e| format!("malformed fetch envelope: {e}"))?;
    Ok(answer.first_offset()..answer.next_offset())
}

/// Which offsets a pushed payload holds.
fn pushed_offsets(bytes: &[u8]) -> Result<Range<u64>, String> {
    let push =
        envelope::<wire::Push<'_>>(bytes).map_err(|e| format!("malformed push envelope: {e}"))?;
    Ok(push.first_offset()..push.next_offset())
}
