//! One connection without retries, batching or metadata: for load generators and tools that build
//! their own batches and want to see every answer.

use std::io::{ErrorKind, IoSlice, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringtide_schema::frame::Op;
use ringtide_schema::ids::PartitionId;
use ringtide_schema::limits::MAX_FETCH_WAIT_MS;
use ringtide_schema::wire;
use ringtide_session::envelope;
use rustix::event::{PollFd, PollFlags};

use crate::core::connection::{Connection, Event, Hello};
use crate::core::shard_info::ShardInfo;
use crate::core::{parse_server, server_name};
use crate::error::{Error, Result};
use crate::options::{Acks, Idle, Options};
use crate::sync::driver::READ_BYTES;
use crate::sync::socket::{self, Connecting};

/// What arrived on a raw connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum RawEvent<'a> {
    /// A batch was appended.
    Published {
        /// Of the publish.
        correlation: u64,
        /// Offset of its first record.
        base_offset: u64,
        /// When it was appended, in ms since 1970.
        append_time_ms: i64,
    },
    /// A batch or a request was refused.
    Failed {
        /// Of the request.
        correlation: u64,
        /// Why.
        error: Error,
    },
    /// A subscription was accepted.
    Subscribed {
        /// The subscription: the correlation of its request.
        subscription: u64,
        /// Where deliveries begin.
        offset: u64,
    },
    /// Batches of a subscription, not checked.
    Pushed {
        /// Which subscription.
        subscription: u64,
        /// Whole batches.
        payload: &'a [u8],
    },
    /// Batches that were asked for, not checked.
    Fetched {
        /// Of the fetch.
        correlation: u64,
        /// The next offset that will be visible.
        visible: u64,
        /// Whole batches; none when there was nothing in time.
        payload: &'a [u8],
    },
    /// The shard said what it runs on and what it did.
    Described {
        /// Of the request.
        correlation: u64,
        /// What it said.
        info: Box<ShardInfo>,
    },
    /// Something else was answered.
    Answered {
        /// Of the request.
        correlation: u64,
    },
}

/// One connection to one shard, with TCP_NODELAY, never blocking after it is made.
pub struct RawConnection {
    stream: TcpStream,
    server: Arc<str>,
    connection: Connection<()>,
    buffer: Vec<u8>,
    request_timeout: Duration,
}

impl RawConnection {
    /// Connects and says hello; waits for the answer, for [`Options::connect_timeout`] in all. Of the
    /// options, `client_name`, `request_timeout` and `idle` (while it waits here) are used as well.
    ///
    /// # Errors
    /// [`Error::Connect`], which is retriable; [`Error::Disconnected`] when hello is not answered,
    /// retriable too; [`Error::Protocol`] for something else than hello; [`Error::Invalid`] for a server
    /// that is not of the form HOST:PORT.
    pub fn connect(server: &str, options: &Options) -> Result<Self> {
        let (host, port) = parse_server(server)?;
        let server: Arc<str> = server_name(host, port).into();
        let failed = |error: std::io::Error| Error::Connect {
            server: server.clone(),
            kind: error.kind(),
            why: error.to_string().into(),
        };
        let options = options.clone().bounded();
        let (began, silence) = (Instant::now(), options.request_timeout);
        let deadline = began + options.connect_timeout;
        let mut connecting = Connecting::begin(host, port).map_err(failed)?;
        let stream = loop {
            match connecting.proceed().map_err(failed)? {
                Ok(stream) => break stream,
                Err(waiting) => connecting = waiting,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(failed(ErrorKind::TimedOut.into()));
            }
            wait(options.idle, &connecting, PollFlags::OUT, left);
        };
        let mut raw = Self {
            stream,
            connection: Connection::new(&options.client_name, began, deadline, silence),
            buffer: vec![0; READ_BYTES],
            request_timeout: silence,
            server,
        };
        while raw.connection.hello().is_none() {
            if raw.poll(|_| ())? == 0 {
                raw.idle(options.idle, Duration::from_millis(1));
            }
        }
        Ok(raw)
    }

    /// What the broker said when the connection was made.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        // `connect` returns only after hello was answered.
        self.connection.hello().expect("hello was answered")
    }

    /// Whether one more request may be sent.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.connection.has_room()
    }

    /// Requests that are not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.connection.in_flight()
    }

    /// Bytes that the socket has not taken yet.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.connection.output().len()
    }

    /// Publishes one whole batch and returns the correlation that its answer will carry; with
    /// [`Acks::None`] there will be none. The batch is not copied if the socket takes it at once.
    ///
    /// # Errors
    /// `TooMany`, which is retriable, when there is no room. [`Error::Disconnected`] when the connection
    /// is lost; then the outcome of all that is in flight is unknown, and a batch without a producer's
    /// identity is not to be sent again blindly.
    pub fn publish_batch(
        &mut self,
        partition: PartitionId,
        batch: &[u8],
        acks: Acks,
    ) -> Result<u64> {
        if !self.has_room() {
            let code = ringtide_schema::error_code::ErrorCode::TooMany;
            let what = format!("publish to {partition} on {}", self.server).into();
            let message = format!("{} requests are in flight", self.in_flight()).into();
            return Err(Error::Broker {
                code,
                what,
                message,
            });
        }
        let part = [wire::PublishPart::new(
            &partition.into(),
            batch.len() as u32,
        )];
        let deadline = self.deadline();
        let tag = (acks != Acks::None).then_some(());
        let idle = self.connection.output().is_empty();
        let bytes = batch.len();
        let correlation = self
            .connection
            .publish_head(acks as u8, &part, bytes, deadline, tag);
        let mut sent = 0;
        if idle {
            let head = self.connection.output();
            let slices = [IoSlice::new(head), IoSlice::new(batch)];
            sent = match (&self.stream).write_vectored(&slices) {
                Ok(sent) => sent,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
                Err(e) => return Err(self.lost(&e)),
            };
        }
        let head = self.connection.output().len();
        self.connection
            .payload(&batch[if idle { sent.saturating_sub(head) } else { 0 }..]);
        self.connection.sent(if idle { sent.min(head) } else { 0 });
        Ok(correlation)
    }

    /// Asks for pushes from `offset` on (-1 latest, -2 earliest), as many as `credit_bytes` allow (at
    /// most 256 MiB); returns the subscription.
    pub fn subscribe(&mut self, partition: PartitionId, offset: i64, credit_bytes: u32) -> u64 {
        let at = wire::PartitionRef::from(partition);
        let deadline = self.deadline();
        self.connection.request(Op::Subscribe, deadline, (), |b| {
            let args = wire::SubscribeRequestArgs {
                partition: Some(&at),
                offset,
                credit_bytes,
            };
            wire::SubscribeRequest::create(b, &args)
        })
    }

    /// Gives back bytes that were consumed.
    pub fn credit(&mut self, subscription: u64, bytes: u32) {
        self.connection.credit(subscription, bytes);
    }

    /// Asks for batches of at most `max_bytes`, as soon as there are `min_bytes` or `max_wait` (at most
    /// a minute) is over; returns the correlation of the answer.
    pub fn fetch(
        &mut self,
        partition: PartitionId,
        offset: u64,
        max_bytes: u32,
        min_bytes: u32,
        max_wait: Duration,
    ) -> u64 {
        let at = wire::PartitionRef::from(partition);
        let max_wait = max_wait.min(Duration::from_millis(MAX_FETCH_WAIT_MS.into()));
        let deadline = self.deadline().map(|at| at + max_wait);
        let max_wait_ms = max_wait.as_millis() as u32;
        self.connection.request(Op::Fetch, deadline, (), |b| {
            let partition = Some(&at);
            let args = wire::FetchRequestArgs {
                partition,
                offset,
                max_bytes,
                min_bytes,
                max_wait_ms,
            };
            wire::FetchRequest::create(b, &args)
        })
    }

    /// Asks whether the broker is there; returns the correlation of the answer.
    pub fn ping(&mut self) -> u64 {
        let deadline = self.deadline();
        self.connection.request(Op::Ping, deadline, (), |b| {
            wire::PingRequest::create(b, &wire::PingRequestArgs {})
        })
    }

    /// Asks what the shard of this connection runs on and what it did since it began; returns the
    /// correlation of the answer.
    pub fn describe_shard(&mut self) -> u64 {
        let deadline = self.deadline();
        self.connection
            .request(Op::DescribeShard, deadline, (), |b| {
                wire::DescribeShardRequest::create(b, &wire::DescribeShardRequestArgs {})
            })
    }

    /// Sends what is unsent and hands out what arrived, without waiting; how many bytes arrived.
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the connection is lost, or an answer is overdue;
    /// [`Error::Protocol`] when what came makes no sense. Then the outcome of all that is in flight is
    /// unknown, and the connection of no use any more.
    pub fn poll(&mut self, mut each: impl FnMut(RawEvent<'_>)) -> Result<usize> {
        if !self.connection.output().is_empty() {
            match socket::write(&self.stream, self.connection.output()) {
                Ok(sent) => self.connection.sent(sent),
                Err(e) => return Err(self.lost(&e)),
            }
        }
        let bytes = match socket::read(&self.stream, &mut self.buffer) {
            Ok(bytes) => bytes,
            Err(e) => return Err(self.lost(&e)),
        };
        if bytes == 0 {
            if self
                .connection
                .next_check()
                .is_some_and(|at| at <= Instant::now())
                && self.connection.is_overdue(Instant::now())
            {
                return Err(self.lost(&ErrorKind::TimedOut.into()));
            }
            return Ok(0);
        }
        let received = self
            .connection
            .receive(&self.buffer[..bytes], Instant::now(), |event| {
                give(event, &mut each);
            });
        received.map_err(|why| Error::Protocol {
            server: self.server.clone(),
            why: why.into(),
        })?;
        Ok(bytes)
    }

    /// Waits until something may have arrived or `at_most` has passed; with [`Idle::Spin`] it only
    /// offers the core to others, once.
    pub fn idle(&self, idle: Idle, at_most: Duration) {
        let mut flags = PollFlags::IN;
        if !self.connection.output().is_empty() {
            flags |= PollFlags::OUT;
        }
        wait(idle, &self.stream, flags, at_most);
    }

    fn deadline(&self) -> Option<Instant> {
        Some(Instant::now() + self.request_timeout)
    }

    fn lost(&self, error: &std::io::Error) -> Error {
        Error::Disconnected {
            server: self.server.clone(),
            why: error.to_string().into(),
        }
    }
}

fn wait(idle: Idle, socket: &impl AsFd, flags: PollFlags, at_most: Duration) {
    let mut fds = [PollFd::new(socket, flags)];
    if idle == Idle::Spin || socket::wait(&mut fds, Some(at_most)).is_err() {
        std::thread::yield_now();
    }
}

fn give(event: Event<'_, ()>, each: &mut impl FnMut(RawEvent<'_>)) {
    match event {
        Event::Ready | Event::Refused { .. } => {}
        Event::Answer {
            correlation,
            op: Op::Publish,
            envelope: bytes,
            ..
        } => {
            let Ok(answer) = envelope::<wire::PublishResponse<'_>>(bytes) else {
                return;
            };
            for result in answer.results().into_iter().flatten() {
                each(if result.error() == 0 {
                    let (base_offset, append_time_ms) =
                        (result.base_offset(), result.append_time_ms());
                    RawEvent::Published {
                        correlation,
                        base_offset,
                        append_time_ms,
                    }
                } else {
                    let message = answer.message().unwrap_or_default();
                    let error = Error::from_wire(result.error(), "publish", message);
                    RawEvent::Failed { correlation, error }
                });
            }
        }
        Event::Answer {
            correlation,
            op: Op::Subscribe,
            envelope: bytes,
            ..
        } => {
            let offset =
                envelope::<wire::SubscribeResponse<'_>>(bytes).map_or(0, |answer| answer.offset());
            each(RawEvent::Subscribed {
                subscription: correlation,
                offset,
            });
        }
        Event::Answer {
            correlation,
            op: Op::Fetch,
            envelope: bytes,
            payload,
            ..
        } => {
            let visible =
                envelope::<wire::FetchResponse<'_>>(bytes).map_or(0, |answer| answer.visible());
            each(RawEvent::Fetched {
                correlation,
                visible,
                payload,
            });
        }
        Event::Answer {
            correlation,
            op: Op::DescribeShard,
            envelope: bytes,
            ..
        } => each(described(correlation, bytes)),
        Event::Answer { correlation, .. } => each(RawEvent::Answered { correlation }),
        Event::Push {
            subscription,
            payload,
            ..
        } => {
            each(RawEvent::Pushed {
                subscription,
                payload,
            });
        }
        Event::Failed {
            correlation,
            op,
            error,
            ..
        } => {
            let message = error.message.unwrap_or_default();
            let error = Error::from_wire(error.code, format!("{op:?}"), message);
            each(RawEvent::Failed { correlation, error });
        }
    }
}

fn described(correlation: u64, bytes: &[u8]) -> RawEvent<'static> {
    match envelope::<wire::DescribeShardResponse<'_>>(bytes) {
        Ok(answer) => RawEvent::Described {
            correlation,
            info: Box::new(ShardInfo::from_wire(&answer)),
        },
        Err(error) => RawEvent::Failed {
            correlation,
            error: Error::Protocol {
                server: "the broker".into(),
                why: format!("malformed envelope: {error}").into(),
            },
        },
    }
}
