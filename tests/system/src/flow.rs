//! Load of which every record is known beforehand, so that a partition can be held against what was
//! acknowledged byte for byte without keeping any of it.
//!
//! A flow is the only publisher of its topic and idempotent: the n-th record of a partition has offset
//! n, whatever was killed meanwhile, and says [`Flow::value`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringtide_client::sync::{Client, Producer};
use ringtide_client::{Delivered, Error, ProducerOptions, Record};
use ringtide_schema::error_code::ErrorCode;

use crate::broker::Broker;
use crate::peer::Fault;
use crate::random::Random;
use crate::wait::{self, PATIENCE};

/// What the values are cut from.
const POOL_BYTES: usize = 1 << 20;
/// Partition and number, at the beginning of each value.
const NUMBERS_BYTES: usize = 12;
/// Records that are handed over before acknowledgements are looked at.
const BURST: u32 = 16;

/// A stream of known records to one topic.
#[derive(Debug)]
pub struct Flow {
    /// The topic, which is there already.
    pub topic: String,
    /// Bytes of each value, at least [`NUMBERS_BYTES`].
    pub value_bytes: usize,
    /// Whether retention may take records from the front.
    pub sheds: bool,
    /// By partition: how many were acknowledged.
    acknowledged: Vec<AtomicU64>,
}

impl Flow {
    /// To a topic of so many partitions, in values of this size.
    #[must_use]
    pub fn new(topic: impl Into<String>, partitions: u32, value_bytes: usize) -> Self {
        assert!(value_bytes >= NUMBERS_BYTES);
        Self {
            topic: topic.into(),
            value_bytes,
            sheds: false,
            acknowledged: (0..partitions).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// To a topic with retention.
    #[must_use]
    pub fn shedding(mut self) -> Self {
        self.sheds = true;
        self
    }

    /// What a record says.
    #[must_use]
    pub fn value(&self, partition: u32, number: u64) -> Vec<u8> {
        static POOL: OnceLock<Vec<u8>> = OnceLock::new();
        let pool = POOL.get_or_init(|| Random::new(1).bytes(POOL_BYTES));
        let rest = self.value_bytes - NUMBERS_BYTES;
        let place = Random::new(number << 8 | u64::from(partition)).next_u64();
        let from = place as usize % (POOL_BYTES - rest);
        let mut value = Vec::with_capacity(self.value_bytes);
        value.extend_from_slice(&partition.to_le_bytes());
        value.extend_from_slice(&number.to_le_bytes());
        value.extend_from_slice(&pool[from..from + rest]);
        value
    }

    /// How many partitions it has.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.acknowledged.len() as u32
    }

    /// Records acknowledged by now, of all partitions.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
            .iter()
            .map(|n| n.load(Ordering::Relaxed))
            .sum()
    }

    /// Publishes, one burst at the least, until told to stop, as fast as acknowledgements come or with a
    /// pause after each burst, and then waits for the last acknowledgement.
    ///
    /// # Panics
    /// When a record is refused, or acknowledged at another offset than its own, or out of order.
    pub fn publish(
        &self,
        client: &Client,
        options: &ProducerOptions,
        pause: Duration,
        stop: &AtomicBool,
    ) {
        let mut producer = wait::until("a producer", || {
            client.producer(&self.topic, options.clone()).ok()
        });
        let mut next = vec![0; self.acknowledged.len()];
        loop {
            for _ in 0..BURST {
                for (partition, number) in (0_u32..).zip(&mut next) {
                    let value = self.value(partition, *number);
                    self.send(&mut producer, &Record::new(&value).partition(partition));
                    *number += 1;
                }
            }
            self.take(&mut producer, pause);
            if stop.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(pause);
        }
        let deadline = Instant::now() + options.delivery_timeout + PATIENCE;
        while self.acknowledged() < next.iter().sum() {
            assert!(Instant::now() < deadline, "{}: never all done", self.topic);
            self.take(&mut producer, Duration::from_millis(100));
        }
    }

    fn send(&self, producer: &mut Producer, record: &Record<'_>) {
        loop {
            match producer.send(record) {
                Ok(_) => return,
                Err(Error::BufferFull { .. }) => self.take(producer, Duration::from_millis(100)),
                Err(error) => panic!("{}: a record was not taken: {error}", self.topic),
            }
        }
    }

    fn take(&self, producer: &mut Producer, patience: Duration) {
        producer.wait(patience, |delivered: Delivered| {
            let ack = delivered
                .result
                .unwrap_or_else(|error| panic!("{}: {error}", self.topic));
            let number = delivered.ticket.number;
            assert_eq!(ack.offset, Some(number), "{}: {ack:?}", self.topic);
            let before = self.acknowledged[ack.partition as usize].fetch_add(1, Ordering::Relaxed);
            assert_eq!(before, number, "{}: acknowledged out of order", self.topic);
        });
    }

    /// Reads every partition from its beginning, or from where `seen` says, up to what was acknowledged
    /// when this began, and raises `seen` to there. All of it is there, once, in order, byte for byte.
    ///
    /// # Panics
    /// When it is not.
    pub fn check(&self, broker: &Broker, seen: &mut [u64]) {
        let topic = broker.peer().topic(&self.topic).expect("the topic");
        for (partition, seen) in (0_u32..).zip(seen) {
            let end = self.acknowledged[partition as usize].load(Ordering::Relaxed);
            *seen = self.check_partition(broker, &topic, partition, *seen, end);
        }
    }

    fn check_partition(
        &self,
        broker: &Broker,
        topic: &crate::Topic,
        partition: u32,
        from: u64,
        end: u64,
    ) -> u64 {
        let mut peer = broker.peer_at(topic.shard(partition));
        let id = topic.partition(partition);
        let described = peer.describe(id).expect("a description");
        assert!(
            described.visible >= end,
            "{}/{partition}: {end} were acknowledged: {described:?}",
            self.topic
        );
        assert!(
            self.sheds || described.earliest == 0,
            "{}/{partition} lost its start: {described:?}",
            self.topic
        );
        let mut at = from.max(described.earliest);
        while at < end {
            let correlation = peer.send_fetch(id, at, 1 << 20, 1, 10_000);
            let answer = match peer.answer(correlation) {
                Ok(answer) => answer,
                Err(Fault::Refused(refused))
                    if self.sheds && refused.code == ErrorCode::OffsetOutOfRange =>
                {
                    assert!(refused.earliest as u64 > at, "{refused:?}");
                    at = refused.earliest as u64;
                    continue;
                }
                Err(fault) => panic!("{}/{partition} at {at}: {fault:?}", self.topic),
            };
            let before = at;
            for record in answer.records().iter().filter(|r| r.offset >= before) {
                assert_eq!(record.offset, at, "{}/{partition} is dense", self.topic);
                assert!(
                    record.value.as_deref() == Some(&self.value(partition, at)),
                    "{}/{partition}: the record at {at} is another",
                    self.topic
                );
                at += 1;
            }
            assert!(at > before, "{}/{partition}: nothing at {at}", self.topic);
        }
        end
    }

    /// Nothing is in the topic but what was acknowledged; for after the last acknowledgement.
    ///
    /// # Panics
    /// When there is.
    pub fn check_ends(&self, broker: &Broker) {
        let topic = broker.peer().topic(&self.topic).expect("the topic");
        for (partition, acknowledged) in (0_u32..).zip(&self.acknowledged) {
            let mut peer = broker.peer_at(topic.shard(partition));
            let described = peer.describe(topic.partition(partition));
            let latest = described.expect("a description").latest;
            let acknowledged = acknowledged.load(Ordering::Relaxed);
            assert_eq!(latest, acknowledged, "{}/{partition}", self.topic);
        }
    }
}

/// Tells publishers to come to an end when it is dropped, also by a test that fails: it waits for their
/// threads.
#[derive(Debug)]
pub struct StopsAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopsAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
