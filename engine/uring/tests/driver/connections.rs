//! Connections come, speak, pause and go; none harms another.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use ringtide_io::{Body, Disconnect, Egress, NetOp};
use ringtide_uring::{IdlePolicy, ShardConfig, StopSignal};

use crate::remote::{Event, PATIENCE, Shard};

fn echo_shard(
    change: impl FnOnce(&mut ShardConfig),
) -> (SocketAddr, StopSignal, ringtide_uring::Running) {
    let listener = ringtide_uring::bind("127.0.0.1:0".parse().expect("address")).expect("bind");
    let address = listener.local_addr().expect("bound");
    let mut config = ShardConfig::new(0, 0, address);
    change(&mut config);
    let stop = StopSignal::new();
    let start = (
        config,
        listener,
        Box::new(crate::echo::Echo::default) as Box<_>,
    );
    let running = ringtide_uring::run(vec![start], stop.clone()).expect("start");
    (address, stop, running)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream
}

/// Sends different bytes over many connections and expects each to come back.
fn hundred_echoes(idle: IdlePolicy) {
    let (address, stop, running) = echo_shard(|config| {
        config.idle = idle;
        // Few, so that receives run out of buffers.
        config.recv_buffers = 4;
        config.recv_buffer_bytes = 4096;
    });
    let mut streams: Vec<_> = (0..100).map(|_| connect(address)).collect();
    for round in 0..5u8 {
        let message = |i: usize| -> Vec<u8> {
            (0..10_000 + i)
                .map(|at| (at * 7 + i) as u8 ^ round)
                .collect()
        };
        for (i, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&message(i)).expect("write");
        }
        for (i, stream) in streams.iter_mut().enumerate() {
            let want = message(i);
            let mut got = vec![0; want.len()];
            stream.read_exact(&mut got).expect("read");
            assert!(
                got == want,
                "connection {i} got other bytes in round {round}"
            );
        }
    }
    stop.stop();
    for result in running.join() {
        result.expect("shard");
    }
    for stream in &mut streams {
        assert_eq!(
            stream.read(&mut [0; 1]).expect("end of stream"),
            0,
            "closed at stop"
        );
    }
}

#[test]
fn a_hundred_connections_are_echoed_while_spinning() {
    hundred_echoes(IdlePolicy::Spin);
}

#[test]
fn a_hundred_connections_are_echoed_while_adaptive() {
    hundred_echoes(IdlePolicy::Adaptive {
        budget: Duration::from_micros(50),
    });
}

#[test]
fn a_hundred_connections_are_echoed_while_parking() {
    hundred_echoes(IdlePolicy::Park);
}

#[test]
fn more_connections_than_allowed_wait_until_others_go() {
    let (address, stop, running) = echo_shard(|config| {
        config.idle = IdlePolicy::Park;
        config.max_connections = 10;
    });
    let mut streams: Vec<_> = (0..40).map(|_| connect(address)).collect();
    for stream in &mut streams {
        stream.write_all(b"hello").expect("write");
    }
    for mut stream in streams {
        let mut got = [0; 5];
        stream.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"hello");
        // Dropped here, which lets the next one in.
    }
    stop.stop();
    running
        .join()
        .into_iter()
        .for_each(|result| result.expect("shard"));
}

#[test]
fn a_paused_connection_delivers_nothing_and_loses_nothing() {
    let mut shard = Shard::start(|_| {});
    let (mut stream, conn) = shard.connect();
    let mut sent = 0u32;
    let mut received = Vec::new();
    for _ in 0..20 {
        shard.net(move || NetOp::Pause(conn));
        shard.settle();
        // What was on its way when the pause began is delivered; then nothing more.
        shard.settle();
        let take = |shard: &mut Shard, received: &mut Vec<u8>| {
            for event in shard.so_far() {
                match event {
                    Event::Received(from, bytes) => {
                        assert_eq!(from, conn);
                        received.extend(bytes);
                    }
                    other => panic!("{other:?}"),
                }
            }
        };
        take(&mut shard, &mut received);
        let before = received.len();
        for _ in 0..100 {
            stream.write_all(&sent.to_le_bytes()).expect("write");
            sent += 1;
        }
        shard.settle();
        take(&mut shard, &mut received);
        assert_eq!(received.len(), before, "delivered while paused");
        shard.net(move || NetOp::Resume(conn));
        while received.len() < sent as usize * 4 {
            let bytes = shard.wait(|event| match event {
                Event::Received(_, bytes) => Some(bytes.clone()),
                _ => None,
            });
            received.extend(bytes);
        }
    }
    let want: Vec<u8> = (0..sent).flat_map(u32::to_le_bytes).collect();
    assert!(received == want, "in order and complete");
}

#[test]
fn a_peer_that_never_reads_stalls_nobody_and_can_be_cut_off() {
    let mut shard = Shard::start(|config| config.socket_send_buffer = Some(200 << 10));
    let (deaf, deaf_conn) = shard.connect();
    let (mut stream, conn) = shard.connect();
    shard.net(move || {
        NetOp::Send(
            deaf_conn,
            Egress {
                head: vec![1; 64 << 20],
                body: Body::Nothing,
            },
        )
    });
    for round in 0..50u8 {
        shard.net(move || {
            NetOp::Send(
                conn,
                Egress {
                    head: vec![round; 1000],
                    body: Body::Nothing,
                },
            )
        });
        shard.sent(conn);
        let mut got = [0; 1000];
        stream.read_exact(&mut got).expect("read");
        assert!(got.iter().all(|&b| b == round));
    }
    // A graceful close waits for the egress, which never ends; an abort does not.
    shard.net(move || NetOp::Close(deaf_conn));
    shard.settle();
    assert!(
        shard.so_far().is_empty(),
        "closed before the egress was sent"
    );
    shard.net(move || NetOp::Abort(deaf_conn));
    assert_eq!(shard.disconnected(deaf_conn), Disconnect::Asked);
    drop(deaf);
}

#[test]
fn a_close_lets_the_egress_through_first() {
    let mut shard = Shard::start(|config| config.socket_send_buffer = Some(200 << 10));
    let (mut stream, conn) = shard.connect();
    shard.net(move || {
        NetOp::Send(
            conn,
            Egress {
                head: vec![9; 4 << 20],
                body: Body::Nothing,
            },
        )
    });
    shard.net(move || NetOp::Close(conn));
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("read");
    assert_eq!(got.len(), 4 << 20);
    assert_eq!(shard.disconnected(conn), Disconnect::Asked);
}

#[test]
fn a_peer_that_leaves_is_reported_once_with_the_reason() {
    let mut shard = Shard::start(|_| {});
    let (stream, conn) = shard.connect();
    stream.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(shard.disconnected(conn), Disconnect::Peer);
    let (stream, conn) = shard.connect();
    // Abandoned with a large egress under way: the send fails.
    shard.net(move || {
        NetOp::Send(
            conn,
            Egress {
                head: vec![1; 32 << 20],
                body: Body::Nothing,
            },
        )
    });
    shard.settle();
    drop(stream);
    let why = shard.disconnected(conn);
    assert!(
        matches!(why, Disconnect::Error(_) | Disconnect::Peer),
        "{why:?}"
    );
    // Operations on a connection that is gone are ignored.
    shard.net(move || NetOp::Pause(conn));
    shard.net(move || NetOp::Close(conn));
    shard.net(move || NetOp::Send(conn, Egress::default()));
    shard.settle();
    assert!(shard.so_far().is_empty());
}

#[test]
fn an_empty_egress_is_sent_at_once() {
    let mut shard = Shard::start(|_| {});
    let (_stream, conn) = shard.connect();
    shard.net(move || NetOp::Send(conn, Egress::default()));
    shard.sent(conn);
}

#[test]
fn stopping_ends_with_connections_open() {
    let mut shard = Shard::start(|_| {});
    let (mut stream, _) = shard.connect();
    shard.stop().expect("ends well");
    assert_eq!(stream.read(&mut [0; 1]).expect("end of stream"), 0);
}

#[test]
fn what_was_sent_before_a_close_arrives_although_the_peer_goes_on_sending() {
    let mut shard = Shard::start(|_| {});
    let (mut stream, conn) = shard.connect();
    shard.net(move || NetOp::Pause(conn));
    shard.settle();
    // Never read by the logic: closing a socket with this in it would reset the connection.
    stream.write_all(&[7; 64 << 10]).expect("written");
    shard.net(move || {
        let last = Egress {
            head: b"the last words".to_vec(),
            body: Body::Nothing,
        };
        NetOp::Send(conn, last)
    });
    shard.sent(conn);
    shard.net(move || NetOp::Close(conn));
    shard.settle();
    stream
        .write_all(&[7; 64 << 10])
        .expect("the broker still reads");
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("no reset");
    assert_eq!(got, b"the last words");
    drop(stream);
    assert_eq!(shard.disconnected(conn), Disconnect::Asked);
}

#[test]
fn a_closed_connection_whose_peer_stays_ends_all_the_same() {
    let mut shard = Shard::start(|_| {});
    let (stream, conn) = shard.connect();
    shard.net(move || NetOp::Close(conn));
    assert_eq!(shard.disconnected(conn), Disconnect::Asked);
    drop(stream);
}

#[test]
fn a_peer_that_takes_nothing_is_disconnected() {
    let mut shard = Shard::start(|config| config.peer_timeout = Duration::from_secs(1));
    let (deaf, conn) = shard.connect();
    shard.net(move || {
        let much = Egress {
            head: vec![1; 64 << 20],
            body: Body::Nothing,
        };
        NetOp::Send(conn, much)
    });
    let why = shard.disconnected(conn);
    assert_eq!(why, Disconnect::Error(libc::ETIMEDOUT));
    drop(deaf);
}
