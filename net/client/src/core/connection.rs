//! One connection without I/O: requests to bytes, bytes to events.
//!
//! Every request occupies a slot until its last answer; a correlation id is the slot's number and
//! its generation, so an answer finds its request without a search, and an answer to something that
//! was given up finds nothing. A subscription keeps its slot until it ends.

use std::time::{Duration, Instant};

use ringtide_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringtide_schema::frame::{FLAG_ERROR, FLAG_MORE, FLAG_RESPONSE, Op};
use ringtide_schema::limits::{PROTOCOL_MAX, PROTOCOL_MIN};
use ringtide_schema::wire;
use ringtide_session::{Assembler, Encoder, Frame, envelope};

/// What the broker said when the connection was made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hello {
    /// The protocol version agreed on.
    pub version: u8,
    /// The broker's version.
    pub broker_version: String,
    /// Counts the starts of the broker on its data directory.
    pub incarnation: u64,
    /// Which shard answered.
    pub shard: u16,
    /// How many shards there are.
    pub shards: u16,
    /// The most requests that may be unanswered on this connection.
    pub max_in_flight_requests: usize,
}

/// Something that arrived.
#[derive(Debug)]
pub(crate) enum Event<'a, T> {
    /// Requests may be sent now.
    Ready,
    /// An answer; `tag` is gone with the last one.
    Answer {
        correlation: u64,
        op: Op,
        tag: Tag<'a, T>,
        envelope: &'a [u8],
        payload: &'a [u8],
    },
    /// The request failed.
    Failed {
        correlation: u64,
        op: Op,
        tag: T,
        error: wire::ErrorResponseT,
    },
    /// A request that asks for no answer could not be handled.
    Refused { error: wire::ErrorResponseT },
    /// Batches of a subscription.
    Push {
        subscription: u64,
        tag: &'a mut T,
        envelope: &'a [u8],
        payload: &'a [u8],
    },
}

/// What the request was for: lent while more answers come, given with the last.
#[derive(Debug)]
pub(crate) enum Tag<'a, T> {
    More(&'a mut T),
    Last(T),
}

impl<T> AsMut<T> for Tag<'_, T> {
    fn as_mut(&mut self) -> &mut T {
        match self {
            Self::More(tag) => tag,
            Self::Last(tag) => tag,
        }
    }
}

#[derive(Debug)]
struct Waiting<T> {
    op: Op,
    /// None: a subscription that was accepted, or a request that may take for ever.
    deadline: Option<Instant>,
    tag: T,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    waiting: Option<Waiting<T>>,
}

#[derive(Debug)]
struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    /// Requests whose answer is due.
    in_flight: usize,
}

impl<T> Slots<T> {
    fn insert(&mut self, waiting: Waiting<T>) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                waiting: None,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.waiting = Some(waiting);
        self.in_flight += 1;
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    fn get(&mut self, correlation: u64) -> Option<&mut Waiting<T>> {
        let slot = self.slots.get_mut((correlation & 0xffff_ffff) as usize)?;
        if u64::from(slot.generation) != correlation >> 32 {
            return None;
        }
        slot.waiting.as_mut()
    }

    fn remove(&mut self, correlation: u64) -> Option<Waiting<T>> {
        self.get(correlation)?;
        let index = correlation as u32;
        self.free.push(index);
        let waiting = self.slots[index as usize].waiting.take();
        if waiting.as_ref().is_some_and(|w| !w.is_subscription()) {
            self.in_flight -= 1;
        }
        waiting
    }
}

impl<T> Waiting<T> {
    fn is_subscription(&self) -> bool {
        self.op == Op::Push
    }
}

/// A connection from hello on.
pub(crate) struct Connection<T> {
    assembler: Assembler,
    encoder: Encoder,
    out: Vec<u8>,
    /// How much of `out` has been sent.
    sent: usize,
    slots: Slots<T>,
    hello: Option<Hello>,
    /// When anything arrived last.
    heard: Instant,
    /// While something arrives within this time, the broker is there, and answers may be behind it.
    silence: Duration,
    /// No request times out before this; looked at again then.
    next_check: Option<Instant>,
}

const HELLO: u64 = 0;
/// Of requests that ask for no answer; errors come with it.
const UNANSWERED: u64 = u64::MAX;
/// An answer that does not come by this many silences after it was due never will, whatever else
/// arrives.
const PATIENCE: u32 = 10;
/// A send buffer larger than this is given back when it is empty.
const KEPT_BYTES: usize = 1 << 20;

impl<T> Connection<T> {
    /// A connection that begins with hello, to be answered by `deadline`. Later answers may be late
    /// for as long as no silence is longer than `silence`.
    pub(crate) fn new(
        client_name: &str,
        now: Instant,
        deadline: Instant,
        silence: Duration,
    ) -> Self {
        let mut encoder = Encoder::new();
        let mut out = Vec::with_capacity(4096);
        encoder.frame(&mut out, Op::Hello, 0, HELLO, 0, |b| {
            let client_name = Some(b.create_string(client_name));
            let client_version = Some(b.create_string(env!("CARGO_PKG_VERSION")));
            let args = wire::HelloRequestArgs {
                min_version: PROTOCOL_MIN,
                max_version: PROTOCOL_MAX,
                client_name,
                client_version,
            };
            wire::HelloRequest::create(b, &args)
        });
        Self {
            assembler: Assembler::new(),
            encoder,
            out,
            sent: 0,
            slots: Slots {
                slots: Vec::new(),
                free: Vec::new(),
                in_flight: 0,
            },
            hello: None,
            heard: now,
            silence,
            next_check: Some(deadline),
        }
    }

    /// What the broker said, once it has.
    pub(crate) fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// Whether one more request may be sent.
    pub(crate) fn has_room(&self) -> bool {
        self.has_room_for(1)
    }

    /// Whether so many more requests may be sent.
    pub(crate) fn has_room_for(&self, requests: usize) -> bool {
        self.hello
            .as_ref()
            .is_some_and(|h| self.slots.in_flight + requests <= h.max_in_flight_requests)
    }

    /// Requests without their last answer.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.in_flight
    }

    /// Bytes to be sent.
    pub(crate) fn output(&self) -> &[u8] {
        &self.out[self.sent..]
    }

    /// Takes note that the first `bytes` of the output were sent.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        debug_assert!(self.sent <= self.out.len());
        if self.sent == self.out.len() {
            self.sent = 0;
            self.out.clear();
            if self.out.capacity() > KEPT_BYTES {
                self.out.shrink_to(KEPT_BYTES);
            }
        } else if self.sent >= KEPT_BYTES {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Sends a request without payload.
    pub(crate) fn request<R>(
        &mut self,
        op: Op,
        deadline: Option<Instant>,
        tag: T,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<R>,
    ) -> u64 {
        debug_assert!(self.hello.is_some());
        self.next_check = earlier(self.next_check, deadline);
        let correlation = self.slots.insert(Waiting { op, deadline, tag });
        self.encoder
            .frame(&mut self.out, op, 0, correlation, 0, build);
        correlation
    }

    /// Gives back credit of a subscription; there is no answer.
    pub(crate) fn credit(&mut self, subscription: u64, bytes: u32) {
        self.encoder
            .frame(&mut self.out, Op::Credit, 0, subscription, 0, |b| {
                wire::Credit::create(
                    b,
                    &wire::CreditArgs {
                        subscription,
                        bytes,
                    },
                )
            });
    }

    /// Appends the head of a publish request to the output; the caller appends the payload with
    /// [`Self::payload`] or sends it right behind the output. Without a tag no answer is expected.
    pub(crate) fn publish_head(
        &mut self,
        acks: u8,
        parts: &[wire::PublishPart],
        payload_bytes: usize,
        deadline: Option<Instant>,
        tag: Option<T>,
    ) -> u64 {
        debug_assert!(self.hello.is_some());
        let correlation = match tag {
            Some(tag) => {
                self.next_check = earlier(self.next_check, deadline);
                self.slots.insert(Waiting {
                    op: Op::Publish,
                    deadline,
                    tag,
                })
            }
            None => UNANSWERED,
        };
        self.encoder.frame(
            &mut self.out,
            Op::Publish,
            0,
            correlation,
            payload_bytes,
            |b| {
                let parts = Some(b.create_vector(parts));
                wire::PublishRequest::create(b, &wire::PublishRequestArgs { acks, parts })
            },
        );
        correlation
    }

    /// Appends payload to the output.
    pub(crate) fn payload(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Ends a subscription: whatever of it still arrives is ignored.
    pub(crate) fn unsubscribe(&mut self, subscription: u64, deadline: Option<Instant>, tag: T) {
        if self.slots.remove(subscription).is_some() {
            self.request(Op::Unsubscribe, deadline, tag, |b| {
                wire::UnsubscribeRequest::create(b, &wire::UnsubscribeRequestArgs { subscription })
            });
        }
    }

    /// The earliest time at which [`Self::is_overdue`] may turn true.
    pub(crate) fn next_check(&self) -> Option<Instant> {
        self.next_check
    }

    /// Whether an answer is overdue: the connection is to be given up.
    ///
    /// What arrives meanwhile is a sign of life: on a slow network the answer may stand behind
    /// megabytes of pushes, and to connect anew would only put it behind them again.
    pub(crate) fn is_overdue(&mut self, now: Instant) -> bool {
        if self.next_check.is_none_or(|at| now < at) {
            return false;
        }
        if self.hello.is_none() {
            return true;
        }
        let waiting = self.slots.slots.iter().filter_map(|s| s.waiting.as_ref());
        let earliest = waiting.filter_map(|w| w.deadline).min();
        let quiet = self.heard + self.silence;
        self.next_check = earliest.map(|due| due.max(quiet).min(due + self.silence * PATIENCE));
        self.next_check.is_some_and(|at| at <= now)
    }

    /// Takes what arrived. An error means that the connection is to be closed.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        now: Instant,
        mut each: impl FnMut(Event<'_, T>),
    ) -> Result<(), String> {
        self.heard = now;
        let Self {
            assembler,
            slots,
            hello,
            next_check,
            ..
        } = self;
        let mut fault = None;
        let fed = assembler.feed(bytes, |frame| {
            if fault.is_none()
                && let Err(why) = handle(slots, hello, next_check, frame, &mut each)
            {
                fault = Some(why);
            }
        });
        match (fault, fed) {
            (Some(why), _) => Err(why),
            (None, Err(error)) => Err(error.to_string()),
            (None, Ok(())) => Ok(()),
        }
    }

    /// Everything that waits for an answer, with whether it is a running subscription; the
    /// connection is of no use afterwards.
    pub(crate) fn into_unanswered(self) -> impl Iterator<Item = (Op, T)> {
        let slots = self.slots.slots.into_iter();
        slots.filter_map(|s| s.waiting).map(|w| (w.op, w.tag))
    }
}

pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn handle<T>(
    slots: &mut Slots<T>,
    hello: &mut Option<Hello>,
    next_check: &mut Option<Instant>,
    frame: Frame<'_>,
    each: &mut impl FnMut(Event<'_, T>),
) -> Result<(), String> {
    let (header, correlation) = (frame.header, frame.header.correlation);
    let is_error = header.flags & FLAG_ERROR != 0;
    let error = || -> Result<wire::ErrorResponseT, String> {
        let error = envelope::<wire::ErrorResponse<'_>>(frame.envelope);
        error
            .map(|e| e.unpack())
            .map_err(|e| format!("malformed error envelope: {e}"))
    };
    if hello.is_none() {
        if is_error {
            let error = error()?;
            return Err(error
                .message
                .unwrap_or_else(|| format!("error {}", error.code)));
        }
        if header.op != Op::Hello as u8 {
            return Err(format!(
                "the first answer is of operation {}, not of hello",
                header.op
            ));
        }
        *hello = Some(read_hello(frame.envelope)?);
        *next_check = None;
        each(Event::Ready);
        return Ok(());
    }
    let is_push = header.op == Op::Push as u8;
    if header.flags & FLAG_RESPONSE == 0 && !is_push {
        return Err(format!(
            "a request of operation {} from the broker",
            header.op
        ));
    }
    if is_error {
        let error = error()?;
        match slots.remove(correlation) {
            Some(Waiting { op, tag, .. }) => each(Event::Failed {
                correlation,
                op,
                tag,
                error,
            }),
            // The broker could not even tell which request it was.
            None if header.op != Op::Push as u8 && correlation == 0 => {
                return Err(error
                    .message
                    .unwrap_or_else(|| format!("error {}", error.code)));
            }
            None if correlation == UNANSWERED => each(Event::Refused { error }),
            None => {}
        }
        return Ok(());
    }
    let Some(waiting) = slots.get(correlation) else {
        return Ok(());
    };
    let (envelope, payload) = (frame.envelope, frame.payload);
    if is_push {
        each(Event::Push {
            subscription: correlation,
            tag: &mut waiting.tag,
            envelope,
            payload,
        });
        return Ok(());
    }
    let op = waiting.op;
    if header.op != op as u8 {
        return Err(format!(
            "operation {} answers a request of {op:?}",
            header.op
        ));
    }
    if header.flags & FLAG_MORE != 0 || op == Op::Subscribe {
        if op == Op::Subscribe {
            // From now on it is a subscription, which nothing is due for.
            waiting.op = Op::Push;
            waiting.deadline = None;
            slots.in_flight -= 1;
        }
        let Some(waiting) = slots.get(correlation) else {
            return Ok(());
        };
        let tag = Tag::More(&mut waiting.tag);
        each(Event::Answer {
            correlation,
            op,
            tag,
            envelope,
            payload,
        });
    } else if let Some(waiting) = slots.remove(correlation) {
        let tag = Tag::Last(waiting.tag);
        each(Event::Answer {
            correlation,
            op,
            tag,
            envelope,
            payload,
        });
    }
    Ok(())
}

fn read_hello(bytes: &[u8]) -> Result<Hello, String> {
    let hello = envelope::<wire::HelloResponse<'_>>(bytes)
        .map_err(|e| format!("malformed hello envelope: {e}"))?;
    if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&hello.version()) {
        return Err(format!(
            "it chose protocol version {}, which was not offered",
            hello.version()
        ));
    }
    Ok(Hello {
        version: hello.version(),
        broker_version: hello.broker_version().unwrap_or_default().to_owned(),
        incarnation: hello.incarnation(),
        shard: hello.shard(),
        shards: hello.shards(),
        max_in_flight_requests: hello.max_in_flight_requests().max(1) as usize,
    })
}
