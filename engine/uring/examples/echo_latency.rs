//! What the shard loop adds to a round trip: 128 bytes over loopback, one in flight, the client
//! busy-polling on another CPU, against plain sockets that busy-poll on both sides.
//!
//! `cargo run --release -p ringtide-uring --example echo_latency [rounds] [server cpu] [client cpu] [policy]`

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringtide_uring::{IdlePolicy, ShardConfig, StopSignal};

#[path = "../tests/driver/echo.rs"]
mod echo;

const MESSAGE: usize = 128;

fn main() {
    let only = std::env::args().nth(4);
    let mut args = std::env::args()
        .skip(1)
        .take(3)
        .map(|arg| arg.parse::<usize>().expect("a number"));
    let rounds = args.next().unwrap_or(200_000);
    let server = args.next().unwrap_or(1);
    let client = args.next().unwrap_or(0);
    pin(client);
    let address: SocketAddr = "127.0.0.1:0".parse().expect("an address");

    for pass in 1..=2 {
        let listener = TcpListener::bind(address).expect("bind");
        let at = listener.local_addr().expect("bound");
        let plain = thread::spawn(move || plain_echo(&listener, server));
        report(
            &format!("plain sockets, pass {pass}"),
            &mut measure(at, rounds),
        );
        plain.join().expect("plain echo");

        let policies = [
            ("spin", IdlePolicy::Spin),
            (
                "adaptive 1 ms",
                IdlePolicy::Adaptive {
                    budget: Duration::from_millis(1),
                },
            ),
            ("park", IdlePolicy::Park),
        ];
        for (name, idle) in policies {
            if only
                .as_ref()
                .is_some_and(|only| !name.starts_with(only.as_str()))
            {
                continue;
            }
            let listener = ringtide_uring::bind(address).expect("bind");
            let at = listener.local_addr().expect("bound");
            let mut config = ShardConfig::new(0, server, at);
            config.idle = idle;
            let stop = StopSignal::new();
            let start = (config, listener, Box::new(echo::Echo::default) as Box<_>);
            let running = ringtide_uring::run(vec![start], stop.clone()).expect("start");
            report(
                &format!("shard, {name}, pass {pass}"),
                &mut measure(at, rounds),
            );
            stop.stop();
            running
                .join()
                .into_iter()
                .for_each(|result| result.expect("shard"));
        }
    }
}

fn report(what: &str, times: &mut Histogram<u64>) {
    let us = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{what:<28} p50 {:6.2}  p90 {:6.2}  p99 {:6.2}  p99.9 {:7.2} us",
        us(0.5),
        us(0.9),
        us(0.99),
        us(0.999)
    );
}

fn measure(at: SocketAddr, rounds: usize) -> Histogram<u64> {
    let mut times = Histogram::new(3).expect("histogram");
    let mut stream = TcpStream::connect(at).expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    stream.set_nonblocking(true).expect("nonblocking");
    let message = [7u8; MESSAGE];
    for round in 0..rounds + rounds / 10 {
        let begin = Instant::now();
        stream.write_all(&message).expect("write");
        poll_exact(&mut stream);
        if round >= rounds / 10 {
            times
                .record(begin.elapsed().as_nanos() as u64)
                .expect("in range");
        }
    }
    times
}

/// Whether a whole message came; busy-polls for it.
fn poll_exact(stream: &mut TcpStream) -> bool {
    let mut message = [0u8; MESSAGE];
    let mut filled = 0;
    while filled < MESSAGE {
        match stream.read(&mut message[filled..]) {
            Ok(0) => return false,
            Ok(n) => filled += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("read: {error}"),
        }
    }
    true
}

fn plain_echo(listener: &TcpListener, cpu: usize) {
    pin(cpu);
    let (mut stream, _) = listener.accept().expect("accept");
    stream.set_nodelay(true).expect("nodelay");
    stream.set_nonblocking(true).expect("nonblocking");
    while poll_exact(&mut stream) {
        stream.write_all(&[7u8; MESSAGE]).expect("write");
    }
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
