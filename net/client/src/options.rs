//! What can be chosen, with the defaults and what they are for.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use ringtide_schema::compress::Codec;
use ringtide_schema::limits;

use crate::error::{Error, Result};

/// The longest wait there is: as good as for ever, and what the clock can still add. Longer ones
/// that an application chooses mean the same.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);

/// How a client connects, waits and retries.
///
/// No duration is too long: from a hundred years on, [`Duration::MAX`] included, it means for ever.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Names this client in the broker's log.
    pub client_name: String,
    /// How long a connection may take to be made, looking up a name and hello included. Default: 5 s.
    pub connect_timeout: Duration,
    /// How long the broker may take to answer a request; then the connection is given up. While
    /// anything else arrives, the answer may be behind it: for ten times as long in all. Default:
    /// 10 s.
    pub request_timeout: Duration,
    /// How long an administrative call, or the resolving of a position, is tried, retries included.
    /// Default: 15 s.
    pub call_timeout: Duration,
    /// The first wait after a failure; each further one is twice as long. Default: 20 ms.
    pub backoff_first: Duration,
    /// The longest wait after a failure. Default: 1 s.
    pub backoff_max: Duration,
    /// How old metadata may become before it is asked for again without a reason: a producer
    /// notices added partitions within this time. Default: 60 s.
    pub metadata_max_age: Duration,
    /// What the synchronous face does while there is nothing to do; the other one always parks.
    /// Default: [`Idle::Park`].
    pub idle: Idle,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            client_name: "ringtide-client".into(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(15),
            backoff_first: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            metadata_max_age: Duration::from_secs(60),
            idle: Idle::Park,
        }
    }
}

impl Options {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the client.
    #[must_use]
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.client_name = name.into();
        self
    }

    /// Chooses what idle turns do.
    #[must_use]
    pub fn idle(mut self, idle: Idle) -> Self {
        self.idle = idle;
        self
    }

    /// Sets how long a connection may take.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long one request may take.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets how long a call is tried altogether.
    #[must_use]
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// Sets how old metadata may become.
    #[must_use]
    pub fn metadata_max_age(mut self, age: Duration) -> Self {
        self.metadata_max_age = age;
        self
    }

    /// Sets the first and the longest wait after a failure.
    #[must_use]
    pub fn backoff(mut self, first: Duration, max: Duration) -> Self {
        self.backoff_first = first;
        self.backoff_max = max;
        self
    }

    /// These options with durations that can be added to any time.
    pub(crate) fn bounded(mut self) -> Self {
        for wait in [
            &mut self.connect_timeout,
            &mut self.request_timeout,
            &mut self.call_timeout,
            &mut self.backoff_first,
            &mut self.backoff_max,
            &mut self.metadata_max_age,
        ] {
            *wait = (*wait).min(LONGEST);
        }
        self
    }
}

/// What a thread does while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Look again at once, after offering the core to whoever else wants it (`sched_yield`). The
    /// lowest latency; a core at full load. It yields because kernel threads of the same core, such
    /// as those that finish disk writes, would otherwise starve.
    Spin,
    /// Sleep in `poll(2)` until something arrives.
    Park,
}

/// How safe a record is when it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Acks {
    /// No acknowledgement: a record is done when the broker has handled it, and what became of it
    /// there is not reported. One that is lost with its connection is an unknown outcome.
    None = 0,
    /// In the broker's memory.
    Accepted = 1,
    /// On stable storage.
    #[default]
    Durable = 2,
}

/// Chooses the partition of a record that names none.
#[derive(Clone)]
#[non_exhaustive]
pub enum Partitioner {
    /// By key (murmur2: the partition that a Kafka client chooses); in turn without a key.
    Key,
    /// In turn, whatever the key.
    RoundRobin,
    /// By a function of the key and the number of partitions.
    Custom(Arc<PartitionFn>),
}

/// Gives a partition for a key, given the number of partitions. A record for a partition from that
/// number on is refused with `UnknownPartition`.
pub type PartitionFn = dyn Fn(Option<&[u8]>, u32) -> u32 + Send + Sync;

impl std::fmt::Debug for Partitioner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Key => "Key",
            Self::RoundRobin => "RoundRobin",
            Self::Custom(_) => "Custom",
        })
    }
}

/// How a producer batches, sends and retries. No duration is too long, as in [`Options`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProducerOptions {
    /// How safe a record is when it is acknowledged. Default: [`Acks::Durable`].
    pub acks: Acks,
    /// Whether a batch whose answer was lost is sent again without being appended twice. Without it
    /// a lost answer is reported as an unknown outcome. Of no effect when `acks` is [`Acks::None`].
    ///
    /// The broker recognises a batch as long as it remembers the producer. Where it does not any
    /// more (4,096 others published to the partition since, or a crash took records that were only
    /// accepted, or the topic was made anew), and where no answer comes within `delivery_timeout`, a
    /// record with a lost answer is an [`Error::OutcomeUnknown`]. The others go on under a new
    /// identity; with [`Acks::Durable`] the first that finds acknowledged records missing fails with
    /// [`Error::AcknowledgedLost`]. A record that the application sends again is another record.
    pub idempotence: bool,
    /// How batches are compressed: not at all, by lz4 or by zstd. Default: [`Codec::None`].
    pub codec: Codec,
    /// A batch is sent before it grows past this many bytes, or past the topic's `max_batch_bytes` if
    /// that is less; a larger record has a batch of its own. Default: 64 KiB.
    pub batch_bytes: usize,
    /// How long a batch waits for more records. Zero: it is sent at once, and records are batched
    /// only while the requests in flight are as many as allowed. Default: zero.
    pub linger: Duration,
    /// The most batches in flight for one partition. At most five with idempotence, the window
    /// that the broker remembers; otherwise bounded by what the broker allows on a connection.
    pub max_in_flight: usize,
    /// The most bytes of records that are not acknowledged; past it `send` refuses, or waits. Default:
    /// 32 MiB.
    pub buffer_bytes: usize,
    /// How long a record is tried, from `send` on. Default: 30 s.
    pub delivery_timeout: Duration,
    /// Who chooses the partition of a record that names none. Default: [`Partitioner::Key`].
    pub partitioner: Partitioner,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self {
            acks: Acks::Durable,
            idempotence: true,
            codec: Codec::None,
            batch_bytes: 64 << 10,
            linger: Duration::ZERO,
            max_in_flight: usize::MAX,
            buffer_bytes: 32 << 20,
            delivery_timeout: Duration::from_secs(30),
            partitioner: Partitioner::Key,
        }
    }
}

impl ProducerOptions {
    /// The defaults: durable, idempotent, sent at once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how safe a record is when it is acknowledged.
    #[must_use]
    pub fn acks(mut self, acks: Acks) -> Self {
        self.acks = acks;
        self
    }

    /// Switches idempotence.
    #[must_use]
    pub fn idempotence(mut self, on: bool) -> Self {
        self.idempotence = on;
        self
    }

    /// Sets the codec.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Sets the size at which a batch is sent.
    #[must_use]
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.batch_bytes = bytes;
        self
    }

    /// Sets how long a batch waits for more records.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Sets the most batches in flight for one partition.
    #[must_use]
    pub fn max_in_flight(mut self, batches: usize) -> Self {
        self.max_in_flight = batches;
        self
    }

    /// Sets the most bytes that are not acknowledged.
    #[must_use]
    pub fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.buffer_bytes = bytes;
        self
    }

    /// Sets how long a record is tried.
    #[must_use]
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.delivery_timeout = timeout;
        self
    }

    /// Sets who chooses the partition.
    #[must_use]
    pub fn partitioner(mut self, partitioner: Partitioner) -> Self {
        self.partitioner = partitioner;
        self
    }

    /// These options, or why they cannot be.
    pub(crate) fn checked(mut self) -> Result<Self> {
        if matches!(self.codec, Codec::Gzip | Codec::Snappy) {
            let why = format!(
                "codec = {} is not supported; use none, lz4 or zstd",
                self.codec
            );
            return Err(Error::invalid(why));
        }
        if self.max_in_flight == 0 || self.buffer_bytes == 0 {
            return Err(Error::invalid(
                "max_in_flight and buffer_bytes must be at least 1",
            ));
        }
        if self.acks == Acks::None {
            self.idempotence = false;
        }
        self.linger = self.linger.min(LONGEST);
        self.delivery_timeout = self.delivery_timeout.min(LONGEST);
        if self.idempotence {
            self.max_in_flight = self.max_in_flight.min(limits::PRODUCER_WINDOW);
        }
        Ok(self)
    }
}

/// Where a consumer begins in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest record.
    Earliest,
    /// After the newest record.
    Latest,
    /// At this offset.
    Offset(u64),
    /// At the first record of this time (ms since 1970) or later.
    Timestamp(u64),
    /// Where the consumer of this name has committed to be; where it has not, at the fallback.
    Committed {
        /// The consumer's name.
        consumer: String,
        /// Where to begin when nothing was committed.
        fallback: Box<Start>,
    },
}

impl Start {
    /// Where the consumer of this name has committed to be, at the earliest record otherwise.
    #[must_use]
    pub fn committed(consumer: impl Into<String>) -> Self {
        Self::Committed {
            consumer: consumer.into(),
            fallback: Box::new(Self::Earliest),
        }
    }
}

/// How a consumer gets its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The broker sends batches as soon as they are visible, as far as credit allows.
    Push {
        /// The most bytes under way to, or waiting in, this client, for each partition: from 1 to
        /// 256 Mi.
        credit_bytes: u32,
    },
    /// The client asks for batches when it has none left.
    Poll {
        /// The answer waits until there are this many bytes, at least 1 ...
        min_bytes: u32,
        /// ... or this much time has passed: from 1 ms to a minute.
        max_wait: Duration,
        /// The most bytes of an answer, at least 1, unless one batch is larger.
        max_bytes: u32,
    },
}

/// What a consumer reads, from where, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConsumerOptions {
    /// Where to begin. Default: [`Start::Latest`] (the command `ringtide consume` begins at the earliest).
    pub start: Start,
    /// Push or poll. Default: push, with a credit of 4 MiB for each partition.
    pub delivery: Delivery,
    /// The most bytes that one compressed batch may inflate to; a larger one is an
    /// [`Error::BadBatch`]. Default: 64 MiB.
    pub inflated_bytes: usize,
    /// Which partitions; empty: all. Those that are added while it reads are then read from their
    /// first record on, once the metadata is refreshed ([`Options::metadata_max_age`]).
    pub partitions: Vec<u32>,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self {
            start: Start::Latest,
            delivery: Delivery::Push {
                credit_bytes: 4 << 20,
            },
            inflated_bytes: limits::DEFAULT_INFLATED_BYTES,
            partitions: Vec::new(),
        }
    }
}

impl ConsumerOptions {
    /// The defaults: pushed, from now on, all partitions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets where to begin.
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Sets push or poll.
    #[must_use]
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// Sets what one compressed batch may inflate to.
    #[must_use]
    pub fn inflated_bytes(mut self, bytes: usize) -> Self {
        self.inflated_bytes = bytes;
        self
    }

    /// Sets which partitions to read.
    #[must_use]
    pub fn partitions(mut self, partitions: impl Into<Vec<u32>>) -> Self {
        self.partitions = partitions.into();
        self
    }

    pub(crate) fn checked(self) -> Result<Self> {
        match self.delivery {
            Delivery::Push { credit_bytes }
                if credit_bytes == 0 || u64::from(credit_bytes) > limits::MAX_CREDIT_BYTES =>
            {
                let most = limits::MAX_CREDIT_BYTES;
                Err(Error::invalid(format!(
                    "credit_bytes = {credit_bytes} is impossible: from 1 to {most}"
                )))
            }
            Delivery::Poll { max_wait, .. }
                if max_wait > Duration::from_millis(u64::from(limits::MAX_FETCH_WAIT_MS)) =>
            {
                let most = limits::MAX_FETCH_WAIT_MS;
                Err(Error::invalid(format!(
                    "max_wait = {max_wait:?} is impossible: at most {most} ms"
                )))
            }
            Delivery::Poll {
                min_bytes,
                max_wait,
                max_bytes,
            } if min_bytes == 0 || max_bytes == 0 || max_wait < Duration::from_millis(1) => {
                Err(Error::invalid(format!(
                    "min_bytes = {min_bytes}, max_bytes = {max_bytes}, max_wait = {max_wait:?} are \
                     impossible together: without anything to wait for the client would ask again \
                     at once; at least 1 byte and 1 ms"
                )))
            }
            _ => Ok(self),
        }
    }
}

/// Ms since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Randomness for jitter; the clock serves where the system has none to give.
pub(crate) fn seed() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        since.as_nanos() as u64
    })
}
