//! The parts of a record's path, each by itself and without I/O: a change that makes one of them
//! slower is found here before it is lost in the noise of the whole.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringtide_io::{DiskOp, FileId, OpId, Pool};
use ringtide_log::segment::Segment;
use ringtide_log::wal::{EntryMeta, Wal, WalConfig};
use ringtide_schema::batch::{Codec, Header, assign, check_publish};
use ringtide_schema::frame::{FLAG_RESPONSE, FrameHeader, HEADER_BYTES, Op};
use ringtide_schema::ids::{GroupId, PartitionId, TopicId};
use ringtide_schema::limits::{DEFAULT_INFLATED_BYTES, MAX_BATCH_BYTES};
use ringtide_schema::record::{BatchBuilder, records};
use ringtide_schema::wal::EntryKind;
use ringtide_schema::wire;
use ringtide_session::{Assembler, Encoder, envelope};

/// Batches by name: how many records of how many bytes.
const SHAPES: [(&str, u32, usize); 2] = [("1x128B", 1, 128), ("64x1KiB", 64, 1024)];
/// Of records; any will do.
const TIMESTAMP_MS: i64 = 1_700_000_000_000;

fn partition() -> PartitionId {
    PartitionId {
        topic: TopicId {
            hi: 0x0123_4567,
            lo: 0x89ab_cdef,
        },
        partition: 3,
    }
}

fn push(builder: &mut BatchBuilder, count: u32, value: &[u8]) {
    for _ in 0..count {
        builder.push(TIMESTAMP_MS, None, Some(value), &[]);
    }
}

fn batch(count: u32, bytes: usize) -> Vec<u8> {
    let (mut builder, mut batch) = (BatchBuilder::new(Codec::None), Vec::new());
    push(&mut builder, count, &vec![7; bytes]);
    builder
        .finish(-1, -1, -1, &mut batch)
        .expect("there are records");
    batch
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    let header = FrameHeader::new(Op::Publish, 0, 42, 96, 4096);
    group.bench_function("encode", |b| b.iter(|| black_box(header).encode()));
    let bytes = header.encode();
    group.bench_function("decode", |b| {
        b.iter(|| FrameHeader::decode(black_box(&bytes)))
    });
    group.finish();
}

fn publish_request(encoder: &mut Encoder, out: &mut Vec<u8>, correlation: u64, bytes: usize) {
    let part = [wire::PublishPart::new(&partition().into(), bytes as u32)];
    encoder.frame(out, Op::Publish, 0, correlation, bytes, |b| {
        let parts = Some(b.create_vector(&part));
        wire::PublishRequest::create(b, &wire::PublishRequestArgs { acks: 2, parts })
    });
}

fn envelopes(c: &mut Criterion) {
    let mut group = c.benchmark_group("envelope");
    let (mut encoder, mut out) = (Encoder::new(), Vec::new());
    group.bench_function("publish request, build", |b| {
        b.iter(|| {
            out.clear();
            publish_request(&mut encoder, &mut out, black_box(42), 198);
        });
    });
    let request = out[HEADER_BYTES..].to_vec();
    group.bench_function("publish request, read", |b| {
        b.iter(|| {
            let request = envelope::<wire::PublishRequest<'_>>(black_box(&request));
            let request = request.expect("it verifies");
            let parts = request.parts().expect("there is one");
            (request.acks(), PartitionId::from(parts.get(0).partition()))
        });
    });
    let result = wire::PublishResult::new(0, 0, false, 1, 99, TIMESTAMP_MS);
    group.bench_function("publish response, build", |b| {
        b.iter(|| {
            out.clear();
            encoder.frame(
                &mut out,
                Op::Publish,
                FLAG_RESPONSE,
                black_box(42),
                0,
                |b| {
                    let results = Some(b.create_vector(&[result]));
                    let args = wire::PublishResponseArgs {
                        results,
                        message: None,
                    };
                    wire::PublishResponse::create(b, &args)
                },
            );
        });
    });
    let response = out[HEADER_BYTES..].to_vec();
    group.bench_function("publish response, read", |b| {
        b.iter(|| {
            let response = envelope::<wire::PublishResponse<'_>>(black_box(&response));
            let results = response
                .expect("it verifies")
                .results()
                .expect("there is one");
            (results.get(0).error(), results.get(0).base_offset())
        });
    });
    group.finish();
}

fn batches(c: &mut Criterion) {
    for (name, count, bytes) in SHAPES {
        let mut group = c.benchmark_group(format!("batch {name}"));
        let value = vec![7; bytes];
        let mut built = batch(count, bytes);
        group.throughput(Throughput::Bytes(built.len() as u64));
        let (mut builder, mut out) = (BatchBuilder::new(Codec::None), Vec::new());
        group.bench_function("build", |b| {
            b.iter(|| {
                out.clear();
                push(&mut builder, count, black_box(&value));
                builder
                    .finish(-1, -1, -1, &mut out)
                    .expect("there are records");
            });
        });
        group.bench_function("crc", |b| {
            b.iter(|| crc32c::crc32c(black_box(&built[ringtide_schema::batch::CRC_START..])));
        });
        group.bench_function("peek", |b| b.iter(|| Header::peek(black_box(&built))));
        group.bench_function("check_publish", |b| {
            b.iter(|| check_publish(black_box(&built), MAX_BATCH_BYTES).expect("it is good"));
        });
        group.bench_function("assign", |b| {
            b.iter(|| assign(black_box(&mut built), 77, 1))
        });
        let mut scratch = Vec::new();
        group.bench_function("records", |b| {
            b.iter(|| {
                let records = records(black_box(&built), &mut scratch, DEFAULT_INFLATED_BYTES);
                let records = records.expect("it is good");
                records
                    .map(|record| record.value.map_or(0, <[u8]>::len))
                    .sum::<usize>()
            });
        });
        group.finish();
    }
}

/// A log whose writes are done as soon as they are asked for.
struct Log {
    wal: Wal,
    ops: Vec<(OpId, DiskOp)>,
    index: u64,
}

impl Log {
    fn new() -> Self {
        let config = WalConfig {
            shard: 0,
            data_directory: TopicId { hi: 1, lo: 2 },
            incarnation: 1,
            slot_bytes: 64 << 20,
            max_in_flight: 4,
        };
        let pool = Pool::new(64 << 20).expect("there is memory");
        let slots = (0..4).map(FileId).collect();
        Self {
            wal: Wal::new(config, pool, slots),
            ops: Vec::new(),
            index: 0,
        }
    }

    /// Appends `count` batches and commits them.
    fn commit(&mut self, count: u32, batch: &[u8]) {
        let mut last = 0;
        for _ in 0..count {
            let meta = EntryMeta {
                kind: EntryKind::Batch,
                group: GroupId(0),
                group_index: self.index,
                partition: partition(),
                base_offset: self.index,
                append_time_ms: TIMESTAMP_MS,
            };
            self.index += 1;
            let copy = |place: &mut [u8]| place.copy_from_slice(batch);
            let appended = self.wal.append(meta, batch.len(), copy, 0, &mut self.ops);
            last = appended.expect("there is room").seq;
            if self.ops.len() > 1 {
                self.complete();
            }
        }
        self.wal.want(last);
        self.wal.turn(0, &mut self.ops);
        self.complete();
        assert_eq!(self.wal.committed(), last);
        self.wal.release_through(last, &mut self.ops);
        self.complete();
    }

    fn complete(&mut self) {
        while let Some((op, _)) = self.ops.pop() {
            self.wal.completed(op, 0, &mut self.ops);
        }
    }
}

fn wal(c: &mut Criterion) {
    for (name, records, bytes) in SHAPES {
        let mut group = c.benchmark_group(format!("group commit of {name}"));
        let batch = batch(records, bytes);
        for count in [1, 16, 256] {
            let mut log = Log::new();
            group.throughput(Throughput::Elements(u64::from(count)));
            group.bench_function(format!("{count} batches"), |b| {
                b.iter(|| log.commit(count, black_box(&batch)));
            });
        }
        group.finish();
    }
}

fn index(c: &mut Criterion) {
    let mut group = c.benchmark_group("index");
    // As long as a segment of 256 MiB has it.
    let mut segment = Segment::create(1_000_000, 1);
    let (batch_bytes, batches) = (32 << 10, 8192);
    for i in 0..batches {
        segment.index_batch(1_000_000 + i * 32, i * batch_bytes, TIMESTAMP_MS + i as i64);
        segment.meta.max_timestamp_ms = TIMESTAMP_MS + i as i64;
    }
    let end = (batches * batch_bytes, 1_000_000 + batches * 32);
    let mut at = 0;
    group.bench_function("range of an offset", |b| {
        b.iter(|| {
            // Far from the last one, as readers of different ages are.
            at = (at + 104_729) % (batches * 32);
            segment.range(black_box(1_000_000 + at), 256 << 10, end)
        });
    });
    group.bench_function("range of a time", |b| {
        b.iter(|| {
            at = (at + 104_729) % batches;
            segment.range_of_time(black_box(TIMESTAMP_MS + at as i64), end)
        });
    });
    group.finish();
}

fn session(c: &mut Criterion) {
    let mut group = c.benchmark_group("session");
    let batch = batch(1, 128);
    let (mut encoder, mut stream) = (Encoder::new(), Vec::new());
    let requests = 256;
    for correlation in 0..requests {
        publish_request(&mut encoder, &mut stream, correlation, batch.len());
        stream.extend_from_slice(&batch);
    }
    group.throughput(Throughput::Elements(requests));
    // Whole, as one receive may bring them; and in pieces whose ends are inside of frames.
    for (name, piece) in [("whole", stream.len()), ("in pieces of 4,000 bytes", 4000)] {
        group.bench_function(format!("{requests} pipelined requests, {name}"), |b| {
            b.iter_batched_ref(
                Assembler::new,
                |assembler| {
                    let mut seen = 0;
                    for piece in black_box(&stream).chunks(piece) {
                        assembler
                            .feed(piece, |frame| seen += frame.payload.len())
                            .expect("good");
                    }
                    assert_eq!(seen, batch.len() * requests as usize);
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(parts, frames, envelopes, batches, wal, index, session);
criterion_main!(parts);
