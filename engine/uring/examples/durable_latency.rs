//! The round trip of a message that is on stable storage before it is answered: one 4 KiB write to
//! a zero-written log slot per message, one in flight, the client busy-polling on another CPU.
//!
//! `cargo run --release -p ringtide-uring --example durable_latency [dir] [rounds] [server cpu] [client cpu]`

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use hdrhistogram::Histogram;
use ringtide_io::buffer::CHUNK_BYTES;
use ringtide_io::{
    Body, ConnId, Disconnect, DiskDone, DiskError, DiskOp, Effects, Egress, FileId, Logic, NetOp,
    Now, OpId, OpenMode, Pool, Slice,
};
use ringtide_uring::{IdlePolicy, ShardConfig, StopSignal};

const SLOT_BYTES: u64 = 16 << 20;

struct Durable {
    path: PathBuf,
    block: Slice,
    position: u64,
    begun: bool,
    conn: Option<ConnId>,
    answer: Vec<u8>,
    write_begun_ns: u64,
    writes: Histogram<u64>,
    stopping: bool,
}

type Fx = Effects<()>;

impl Logic for Durable {
    type Mail = ();

    fn accepted(&mut self, conn: ConnId, _: SocketAddr, _: Now, _: &mut Fx) {
        self.conn = Some(conn);
    }

    fn received(&mut self, _: ConnId, _: &[u8], now: Now, fx: &mut Fx) {
        self.position = if self.position + 4096 >= SLOT_BYTES {
            4096
        } else {
            self.position + 4096
        };
        let (position, data) = (self.position, self.block.clone());
        self.write_begun_ns = now.mono_ns;
        fx.disk.push((
            OpId(3),
            DiskOp::Write {
                file: FileId(1),
                position,
                data,
            },
        ));
    }

    fn sent(&mut self, _: ConnId, egress: Egress, _: Now, _: &mut Fx) {
        self.answer = egress.head;
    }

    fn disconnected(&mut self, _: ConnId, _: Disconnect, _: Now, _: &mut Fx) {
        self.conn = None;
    }

    fn disk(&mut self, op: OpId, result: Result<DiskDone, DiskError>, now: Now, fx: &mut Fx) {
        result.expect("disk");
        let path = self.path.clone();
        match op {
            OpId(1) => {
                let open = DiskOp::Open {
                    file: FileId(1),
                    path,
                    mode: OpenMode::Wal,
                };
                fx.disk.push((OpId(2), open));
            }
            OpId(2) => println!("slot ready"),
            _ => {
                self.writes
                    .record(now.mono_ns - self.write_begun_ns)
                    .expect("in range");
                let head = std::mem::take(&mut self.answer);
                if let Some(conn) = self.conn {
                    fx.net.push(NetOp::Send(
                        conn,
                        Egress {
                            head,
                            body: Body::Nothing,
                        },
                    ));
                }
            }
        }
    }

    fn mail(&mut self, _: u16, (): (), _: Now, _: &mut Fx) {}

    fn turn(&mut self, _: Now, fx: &mut Fx) {
        if !std::mem::replace(&mut self.begun, true) {
            let create = DiskOp::CreateSlot {
                path: self.path.clone(),
                bytes: SLOT_BYTES,
            };
            fx.disk.push((OpId(1), create));
        }
    }

    fn deadline_ns(&self) -> Option<u64> {
        (!self.begun).then_some(0)
    }

    fn stop(&mut self, _: Now, _: &mut Fx) {
        report("  of it the write", &self.writes);
        self.stopping = true;
    }

    fn is_stopped(&self) -> bool {
        self.stopping
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let directory = args.next().unwrap_or_else(|| ".".to_owned());
    let mut numbers = args.map(|arg| arg.parse::<usize>().expect("a number"));
    let rounds = numbers.next().unwrap_or(20_000);
    let server = numbers.next().unwrap_or(1);
    pin(numbers.next().unwrap_or(0));
    let path = Path::new(&directory).join("durable-latency.slot");
    for (name, idle) in [
        ("spin", IdlePolicy::Spin),
        (
            "adaptive",
            ShardConfig::new(0, 0, ([127, 0, 0, 1], 0).into()).idle,
        ),
        ("park", IdlePolicy::Park),
    ] {
        let listener = ringtide_uring::bind(([127, 0, 0, 1], 0).into()).expect("bind");
        let at = listener.local_addr().expect("bound");
        let mut config = ShardConfig::new(0, server, at);
        config.idle = idle;
        let slot = path.clone();
        let make = move || {
            let mut chunk = Pool::new(CHUNK_BYTES)
                .expect("memory")
                .take()
                .expect("a chunk");
            chunk.append(&[7; 4096]);
            Durable {
                path: slot,
                block: chunk.slice(0..4096),
                position: 0,
                begun: false,
                conn: None,
                answer: vec![7; 128],
                write_begun_ns: 0,
                writes: Histogram::new(3).expect("histogram"),
                stopping: false,
            }
        };
        let stop = StopSignal::new();
        let start = (config, listener, Box::new(make) as Box<_>);
        let running = ringtide_uring::run(vec![start], stop.clone()).expect("start");
        thread::sleep(std::time::Duration::from_secs(1));
        let times = measure(at, rounds);
        report(&format!("durable, {name}"), &times);
        stop.stop();
        running
            .join()
            .into_iter()
            .for_each(|result| result.expect("shard"));
    }
    std::fs::remove_file(path).expect("remove");
}

fn report(what: &str, times: &Histogram<u64>) {
    let us = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{what:<20} p50 {:7.1}  p99 {:7.1}  p99.9 {:7.1} us",
        us(0.5),
        us(0.99),
        us(0.999)
    );
}

fn measure(at: SocketAddr, rounds: usize) -> Histogram<u64> {
    let mut times = Histogram::new(3).expect("histogram");
    let mut stream = TcpStream::connect(at).expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    stream.set_nonblocking(true).expect("nonblocking");
    for _ in 0..rounds {
        let begin = Instant::now();
        stream.write_all(&[7; 128]).expect("write");
        let mut filled = 0;
        while filled < 128 {
            match stream.read(&mut [0; 128][filled..]) {
                Ok(0) => panic!("closed"),
                Ok(n) => filled += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                Err(error) => panic!("read: {error}"),
            }
        }
        times
            .record(begin.elapsed().as_nanos() as u64)
            .expect("in range");
    }
    times
}

#[expect(unsafe_code, reason = "pinning has no wrapper in std")]
fn pin(cpu: usize) {
    // SAFETY: the set is a local bit set, passed with its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(
            libc::sched_setaffinity(0, size_of_val(&set), &raw const set),
            0,
            "pin {cpu}"
        );
    }
}
