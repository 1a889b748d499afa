//! A connection for load: publish requests are built once and sent again and again with nothing but
//! their correlation changed, many in one write; answers are only looked at.
//!
//! The native client's `RawConnection` sends each batch with a system call of its own, the right
//! thing for latency. Here a core is to be kept for the broker's sake, not for the client's.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use ringtide_client::{Acks, Error, PartitionId};
use ringtide_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringtide_schema::frame::{FLAG_ERROR, FrameHeader, HEADER_BYTES, Op};
use ringtide_schema::limits::{PROTOCOL_MAX, PROTOCOL_MIN};
use ringtide_schema::wire;
use ringtide_session::{Assembler, Encoder, Frame, envelope};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::error::BenchError;

/// Bytes asked for in one read.
pub const READ_BYTES: usize = 256 << 10;
/// A frame of this size is worth a system call of its own, and not worth a copy.
const DIRECT_BYTES: usize = 16 << 10;
/// What is gathered before it is sent.
const GATHER_BYTES: usize = 128 << 10;
/// How long a connection and its hello may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A publish request of one batch.
#[derive(Clone, Debug)]
pub struct PublishFrame {
    header: FrameHeader,
    bytes: Vec<u8>,
}

impl PublishFrame {
    /// Publishes `batch`, whole, to `partition`.
    #[must_use]
    pub fn new(partition: PartitionId, batch: &[u8], acks: Acks) -> Self {
        let mut bytes = Vec::new();
        let part = [wire::PublishPart::new(
            &partition.into(),
            batch.len() as u32,
        )];
        Encoder::new().frame(&mut bytes, Op::Publish, 0, 0, batch.len(), |b| {
            let parts = Some(b.create_vector(&part));
            let args = wire::PublishRequestArgs {
                acks: acks as u8,
                parts,
            };
            wire::PublishRequest::create(b, &args)
        });
        let header = FrameHeader::decode(&bytes).ok().flatten();
        let header = header.expect("it was encoded just now");
        bytes.extend_from_slice(batch);
        Self { header, bytes }
    }

    /// The request as it is sent, with correlation 0.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn number(&mut self, correlation: u64) -> &[u8] {
        self.header.correlation = correlation;
        self.bytes[..HEADER_BYTES].copy_from_slice(&self.header.encode());
        &self.bytes
    }
}

/// A connection. Never blocks after it is made.
pub struct Pipe {
    stream: TcpStream,
    server: String,
    encoder: Encoder,
    assembler: Assembler,
    /// What the socket has not taken, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    /// Bytes that the socket has taken in all.
    taken: u64,
    buffer: Vec<u8>,
    read_bytes: usize,
    next_correlation: u64,
    max_in_flight: usize,
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Pipe {
    /// Connects, from `source` if that is given, and says hello.
    pub fn connect(server: &str, source: Option<IpAddr>) -> Result<Self, BenchError> {
        let mut stream = connect(server, source).map_err(|error| Error::Connect {
            server: server.into(),
            kind: error.kind(),
            why: error.to_string().into(),
        })?;
        let mut encoder = Encoder::new();
        let max_in_flight =
            hello(&mut stream, &mut encoder).map_err(|error| Error::Disconnected {
                server: server.into(),
                why: format!("no hello: {error}").into(),
            })?;
        stream
            .set_nonblocking(true)
            .map_err(BenchError::io("cannot unblock a socket"))?;
        Ok(Self {
            stream,
            server: server.into(),
            encoder,
            assembler: Assembler::new(),
            out: Vec::new(),
            sent: 0,
            taken: 0,
            buffer: Vec::new(),
            read_bytes: READ_BYTES,
            next_correlation: 1,
            max_in_flight,
        })
    }

    /// Asks for so many bytes in one read instead of [`READ_BYTES`], from the first read on: a thread
    /// that has more to do than this connection wants it soon back.
    #[must_use]
    pub fn reading(mut self, bytes: usize) -> Self {
        self.read_bytes = bytes;
        self
    }

    /// HOST:PORT of the other end.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Requests that the broker takes before it has answered the first of them.
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        self.max_in_flight
    }

    fn correlation(&mut self) -> u64 {
        self.next_correlation += 1;
        self.next_correlation
    }

    /// Sends a request, or gathers it with others until [`Self::flush`]; its correlation.
    pub fn publish(&mut self, frame: &mut PublishFrame) -> Result<u64, BenchError> {
        let correlation = self.correlation();
        let bytes = frame.number(correlation);
        let mut sent = 0;
        if bytes.len() >= DIRECT_BYTES {
            self.flush()?;
            if self.out.is_empty() {
                sent = self.write(bytes)?;
                self.taken += sent as u64;
            }
        }
        self.out.extend_from_slice(&bytes[sent..]);
        if self.unsent_bytes() >= GATHER_BYTES {
            self.flush()?;
        }
        Ok(correlation)
    }

    /// Sends a batch under a correlation of the caller's choice, or gathers it with others until
    /// [`Self::flush`].
    pub fn publish_as(
        &mut self,
        correlation: u64,
        partition: PartitionId,
        batch: &[u8],
        acks: Acks,
    ) -> Result<(), BenchError> {
        let part = [wire::PublishPart::new(
            &partition.into(),
            batch.len() as u32,
        )];
        let bytes = batch.len();
        self.encoder
            .frame(&mut self.out, Op::Publish, 0, correlation, bytes, |b| {
                let parts = Some(b.create_vector(&part));
                let acks = acks as u8;
                wire::PublishRequest::create(b, &wire::PublishRequestArgs { acks, parts })
            });
        let mut sent = 0;
        if bytes >= DIRECT_BYTES {
            self.flush()?;
            if self.out.is_empty() {
                sent = self.write(batch)?;
                self.taken += sent as u64;
            }
        }
        self.out.extend_from_slice(&batch[sent..]);
        if self.unsent_bytes() >= GATHER_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Asks for pushes from the first record on; the subscription.
    pub fn subscribe(
        &mut self,
        partition: PartitionId,
        credit_bytes: u32,
    ) -> Result<u64, BenchError> {
        self.subscribe_from(partition, -2, credit_bytes)
    }

    /// Asks for pushes from an offset on (-1 latest, -2 earliest); the subscription.
    pub fn subscribe_from(
        &mut self,
        partition: PartitionId,
        offset: i64,
        credit_bytes: u32,
    ) -> Result<u64, BenchError> {
        let at = wire::PartitionRef::from(partition);
        self.request(Op::Subscribe, |b| {
            let args = wire::SubscribeRequestArgs {
                partition: Some(&at),
                offset,
                credit_bytes,
            };
            wire::SubscribeRequest::create(b, &args)
        })
    }

    /// Gives credit back.
    pub fn credit(&mut self, subscription: u64, bytes: u32) -> Result<(), BenchError> {
        let args = wire::CreditArgs {
            subscription,
            bytes,
        };
        self.request(Op::Credit, |b| wire::Credit::create(b, &args))
            .map(drop)
    }

    fn request<T>(
        &mut self,
        op: Op,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> Result<u64, BenchError> {
        let correlation = self.correlation();
        self.encoder
            .frame(&mut self.out, op, 0, correlation, 0, build);
        self.flush()?;
        Ok(correlation)
    }

    /// Bytes that the socket has not taken.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Bytes of the stream that the socket has taken.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes of the stream when the socket has taken what was gathered by now.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.taken + self.unsent_bytes() as u64
    }

    /// Sends what was gathered, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<(), BenchError> {
        while self.sent < self.out.len() {
            match self.write(&self.out[self.sent..])? {
                0 => return Ok(()),
                sent => {
                    self.sent += sent;
                    self.taken += sent as u64;
                }
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, BenchError> {
        match (&self.stream).write(bytes) {
            Ok(sent) => Ok(sent),
            Err(error) if is_not_now(&error) => Ok(0),
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// Reads once; 0 when there is nothing.
    fn read(&mut self) -> Result<usize, BenchError> {
        if self.buffer.is_empty() {
            self.buffer.resize(self.read_bytes, 0);
        }
        match (&self.stream).read(&mut self.buffer) {
            Ok(0) => Err(self.lost(&ErrorKind::UnexpectedEof.into())),
            Ok(bytes) => Ok(bytes),
            Err(error) if is_not_now(&error) => Ok(0),
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// Sends what was gathered and hands out what arrived; how many bytes arrived.
    pub fn poll(&mut self, each: impl FnMut(Frame<'_>)) -> Result<usize, BenchError> {
        self.flush()?;
        let bytes = self.read()?;
        self.assembler
            .feed(&self.buffer[..bytes], each)
            .map_err(|error| self.protocol(&error.to_string()))?;
        Ok(bytes)
    }

    /// As [`Self::poll`], but nothing of a frame is kept beyond its header: for reading more than is
    /// worth looking at. A connection is read in one of the two ways for all its life.
    pub fn skim(
        &mut self,
        skimmer: &mut Skimmer,
        each: impl FnMut(&FrameHeader),
    ) -> Result<usize, BenchError> {
        self.flush()?;
        let bytes = self.read()?;
        skimmer
            .feed(&self.buffer[..bytes], each)
            .map_err(|error| self.protocol(&error.to_string()))?;
        Ok(bytes)
    }

    fn lost(&self, error: &std::io::Error) -> BenchError {
        let cause = Error::Disconnected {
            server: self.server.as_str().into(),
            why: error.to_string().into(),
        };
        BenchError::Lost {
            cause,
            acknowledged: 0,
            topic: None,
        }
    }

    fn protocol(&self, why: &str) -> BenchError {
        let cause = Error::Protocol {
            server: self.server.as_str().into(),
            why: why.into(),
        };
        BenchError::Lost {
            cause,
            acknowledged: 0,
            topic: None,
        }
    }
}

fn is_not_now(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn connect(server: &str, source: Option<IpAddr>) -> std::io::Result<TcpStream> {
    let address: SocketAddr = server
        .to_socket_addrs()?
        .next()
        .ok_or(std::io::Error::from(ErrorKind::NotFound))?;
    let stream: TcpStream = match source {
        None => TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?,
        Some(source) => {
            let family = if address.is_ipv4() {
                AddressFamily::INET
            } else {
                AddressFamily::INET6
            };
            let flags = SocketFlags::CLOEXEC;
            let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
            rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
            rustix::net::connect(&socket, &address)?;
            socket.into()
        }
    };
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    Ok(stream)
}

/// Says hello and waits for the answer: how many requests may be in flight.
fn hello(stream: &mut TcpStream, encoder: &mut Encoder) -> std::io::Result<usize> {
    let mut out = Vec::new();
    encoder.frame(&mut out, Op::Hello, 0, 1, 0, |b| {
        let client_name = Some(b.create_string("ringtide-perf"));
        let client_version = Some(b.create_string(env!("CARGO_PKG_VERSION")));
        let args = wire::HelloRequestArgs {
            min_version: PROTOCOL_MIN,
            max_version: PROTOCOL_MAX,
            client_name,
            client_version,
        };
        wire::HelloRequest::create(b, &args)
    });
    stream.write_all(&out)?;
    let mut head = [0; HEADER_BYTES];
    stream.read_exact(&mut head)?;
    let header = FrameHeader::decode(&head).map_err(std::io::Error::other)?;
    let header = header.ok_or(std::io::Error::from(ErrorKind::InvalidData))?;
    let mut body = vec![0; header.frame_bytes() - HEADER_BYTES];
    stream.read_exact(&mut body)?;
    if header.op != Op::Hello as u8 || header.flags & FLAG_ERROR != 0 {
        return Err(std::io::Error::other(refusal(&body)));
    }
    let answer = envelope::<wire::HelloResponse<'_>>(&body).map_err(std::io::Error::other)?;
    Ok(answer.max_in_flight_requests() as usize)
}

/// The words of an error frame.
#[must_use]
pub fn refusal(body: &[u8]) -> String {
    match envelope::<wire::ErrorResponse<'_>>(body) {
        Ok(error) => {
            format!(
                "refused with error {}: {}",
                error.code(),
                error.message().unwrap_or_default()
            )
        }
        Err(error) => format!("refused with an error that cannot be read: {error}"),
    }
}

/// Finds the frames in a stream without keeping them.
#[derive(Clone, Debug, Default)]
pub struct Skimmer {
    head: Vec<u8>,
    /// Bytes of the frame whose header was seen last that are still to come.
    skip: usize,
}

impl Skimmer {
    /// At the start of a frame.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether everything of the last frame has arrived.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.skip == 0 && self.head.is_empty()
    }

    fn feed(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(&FrameHeader),
    ) -> Result<(), ringtide_schema::frame::FrameError> {
        while !bytes.is_empty() {
            let skip = self.skip.min(bytes.len());
            self.skip -= skip;
            bytes = &bytes[skip..];
            let take = bytes.len().min(HEADER_BYTES - self.head.len());
            self.head.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if let Some(header) = FrameHeader::decode(&self.head)? {
                self.skip = header.frame_bytes() - HEADER_BYTES;
                self.head.clear();
                each(&header);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringtide_client::TopicId;

    #[test]
    fn a_publish_frame_can_be_sent_again_under_another_number() {
        let at = PartitionId {
            topic: TopicId { hi: 1, lo: 2 },
            partition: 3,
        };
        let mut frame = PublishFrame::new(at, b"a batch", Acks::Accepted);
        for correlation in [7, 8] {
            let mut seen = 0;
            Assembler::new()
                .feed(frame.number(correlation), |found| {
                    seen += 1;
                    assert_eq!(found.header.correlation, correlation);
                    assert_eq!(found.payload, b"a batch");
                    let request = envelope::<wire::PublishRequest<'_>>(found.envelope);
                    assert_eq!(request.expect("it verifies").acks(), 1);
                })
                .expect("a good frame");
            assert_eq!(seen, 1);
        }
    }

    #[test]
    fn skimming_finds_every_frame_wherever_the_stream_is_cut() {
        let at = PartitionId {
            topic: TopicId { hi: 1, lo: 2 },
            partition: 3,
        };
        let mut stream = Vec::new();
        for (n, bytes) in [0, 1, 700, 40].into_iter().enumerate() {
            let mut frame = PublishFrame::new(at, &vec![9; bytes], Acks::None);
            stream.extend_from_slice(frame.number(n as u64));
        }
        for cut in 1..stream.len() {
            let (mut skimmer, mut seen) = (Skimmer::new(), Vec::new());
            for piece in stream.chunks(cut) {
                skimmer
                    .feed(piece, |header| seen.push(header.correlation))
                    .expect("good frames");
            }
            assert_eq!(seen, [0, 1, 2, 3], "cut at {cut}");
            assert!(skimmer.is_between_frames());
        }
    }
}
