//! A topic that one client makes, alters and deletes over and over: what was answered stays so.

use std::collections::BTreeSet;
use std::time::Instant;

use ringtide_client::bare::{Call, Client, Producer};
use ringtide_client::{Error, ProducerOptions, Record, Topic, TopicSettings};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::ids::TopicId;

use crate::oracle::Violation;
use crate::random::Random;

const SECOND: u64 = 1_000_000_000;
/// A request that nobody answered has been carried out by then, or never will be.
const SETTLED_NS: u64 = 30 * SECOND;

/// A topic as far as it can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    /// Nobody was told whether it was made: not known.
    id: Option<TopicId>,
    partitions: u32,
    retention_ms: u64,
}

impl Shape {
    fn is_of(&self, topic: &Topic) -> bool {
        self.partitions == topic.partitions()
            && Some(self.retention_ms) == topic.settings.retention_ms
            && self.id.is_none_or(|id| id == topic.id)
    }
}

#[derive(Clone, Copy, Debug)]
enum Ask {
    Create { partitions: u32, retention_ms: u64 },
    Alter { partitions: u32, retention_ms: u64 },
    Delete,
    Describe,
}

/// One client and the topic that nobody else touches.
pub struct Changes {
    name: String,
    /// Changes still to be made.
    left: u64,
    acts_at_ns: u64,
    asked: Option<(Ask, Call)>,
    /// Nobody knows what became of the last change: to be looked at.
    is_unsure: bool,
    /// What may be there: one of these.
    may_be: Vec<Option<Shape>>,
    /// Identities that the topic has had.
    ids: BTreeSet<TopicId>,
    producer: Option<Producer>,
}

impl Changes {
    /// None has been made yet.
    pub fn new(number: u32, random: &mut Random) -> Self {
        Self {
            name: format!("own-{number}"),
            left: random.between(1, 15),
            acts_at_ns: 0,
            asked: None,
            is_unsure: false,
            may_be: vec![None],
            ids: BTreeSet::new(),
            producer: None,
        }
    }

    /// Whether everything was made, and looked at.
    pub fn is_done(&self) -> bool {
        self.left == 0 && self.asked.is_none() && !self.is_unsure
    }

    /// Asks for the next change, or looks at the answer to the last.
    ///
    /// # Errors
    /// A broken promise.
    pub fn act(
        &mut self,
        client: &mut Client,
        (now_ns, now, wall_ms): (u64, Instant, i64),
        random: &mut Random,
    ) -> Result<(), Violation> {
        if let Some(producer) = self.producer {
            client.outcomes(producer, |_| ());
        }
        if let Some((ask, call)) = self.asked {
            let answer = match ask {
                Ask::Delete => client.take_done(call).map(|done| done.map(|()| None)),
                _ => client.take_topic(call).map(|topic| topic.map(Some)),
            };
            let Some(answer) = answer else { return Ok(()) };
            self.asked = None;
            self.acts_at_ns = now_ns + random.between(100_000, SECOND / 5);
            if matches!(&answer, Err(e) if e.is_outcome_unknown()) {
                self.acts_at_ns = now_ns + SETTLED_NS;
                self.is_unsure = true;
            }
            self.answered(ask, &answer)?;
            if let (Ok(Some(topic)), None) = (answer, self.producer) {
                let producer = client.add_producer(topic, ProducerOptions::new(), now);
                self.producer = producer.ok();
            }
            return Ok(());
        }
        if self.is_done() || now_ns < self.acts_at_ns {
            return Ok(());
        }
        let ask = self.next(random);
        if let (Ask::Delete | Ask::Create { .. }, Some(producer)) = (ask, self.producer)
            && random.percent(50)
        {
            client.remove_producer(producer);
            self.producer = None;
        }
        let settings = |retention_ms| TopicSettings {
            retention_ms: Some(retention_ms as i64),
            ..TopicSettings::default()
        };
        let call = match ask {
            Ask::Create {
                partitions,
                retention_ms,
            } => client.create_topic(&self.name, partitions, settings(retention_ms), now),
            Ask::Alter {
                partitions,
                retention_ms,
            } => {
                let settings = settings(retention_ms);
                client.alter_topic(&self.name, Some(partitions), settings, now)
            }
            Ask::Delete => client.delete_topic(&self.name, now),
            Ask::Describe => client.describe_topic(&self.name, now),
        };
        self.asked = Some((ask, call));
        self.publish(client, now, wall_ms, random);
        Ok(())
    }

    fn next(&mut self, random: &mut Random) -> Ask {
        if self.is_unsure || random.percent(20) {
            return Ask::Describe;
        }
        self.left -= 1;
        let retention_ms = random.between(1, 1_000) * 3_600_000;
        match &self.may_be[0] {
            None => Ask::Create {
                partitions: random.between(1, 4) as u32,
                retention_ms,
            },
            Some(_) if random.percent(40) => Ask::Delete,
            Some(shape) => Ask::Alter {
                partitions: shape.partitions + random.below(3) as u32,
                retention_ms,
            },
        }
    }

    /// Something to be deleted with the topic.
    fn publish(&mut self, client: &mut Client, now: Instant, wall_ms: i64, random: &mut Random) {
        let Some(producer) = self.producer else {
            return;
        };
        for n in 0..random.below(6) {
            let value = vec![n as u8; random.below(30_000) as usize];
            let record = Record::new(&value).partition(0);
            // A full buffer, or a topic that is gone.
            let _ = client.send(producer, &record, wall_ms, now);
        }
    }

    fn answered(
        &mut self,
        ask: Ask,
        answer: &Result<Option<Topic>, Error>,
    ) -> Result<(), Violation> {
        let was_there = match answer {
            Ok(_) => !matches!(ask, Ask::Create { .. }),
            Err(e) if e.is_outcome_unknown() => {
                let after: Vec<_> = self.may_be.iter().map(|shape| made(ask, shape)).collect();
                self.may_be.extend(after);
                return Ok(());
            }
            Err(e) => match e.code() {
                Some(ErrorCode::TopicExists) => true,
                Some(ErrorCode::UnknownTopic) => false,
                // Refused for another reason: it is as it was.
                _ => return Ok(()),
            },
        };
        let known = self.may_be.clone();
        self.may_be.retain(|shape| shape.is_some() == was_there);
        if answer.is_ok() {
            self.may_be = self.may_be.iter().map(|shape| made(ask, shape)).collect();
        }
        if let Ok(Some(topic)) = answer {
            self.may_be
                .retain(|shape| shape.as_ref().is_some_and(|shape| shape.is_of(topic)));
            self.may_be.truncate(1);
            for shape in self.may_be.iter_mut().flatten() {
                shape.id = Some(topic.id);
            }
            let is_new = self.ids.insert(topic.id);
            if !is_new && matches!(ask, Ask::Create { .. }) {
                self.may_be.clear();
            }
        }
        self.may_be.dedup();
        if self.may_be.is_empty() {
            return Err(format!(
                "topic {}: {ask:?} was answered {answer:?}, where {known:?} is known",
                self.name
            ));
        }
        self.is_unsure = self.may_be.len() > 1;
        Ok(())
    }
}

/// What a change makes of a topic.
fn made(ask: Ask, before: &Option<Shape>) -> Option<Shape> {
    match (ask, before) {
        (
            Ask::Create {
                partitions,
                retention_ms,
            },
            None,
        ) => Some(Shape {
            id: None,
            partitions,
            retention_ms,
        }),
        (
            Ask::Alter {
                partitions,
                retention_ms,
            },
            Some(shape),
        ) => Some(Shape {
            id: shape.id,
            partitions,
            retention_ms,
        }),
        (Ask::Delete, _) => None,
        (Ask::Create { .. } | Ask::Alter { .. } | Ask::Describe, before) => before.clone(),
    }
}
