//! What leaves a socket arrives byte for byte, from memory and from files, in both ways.

use std::fs;
use std::io::Read;
use std::path::Path;

use ringtide_io::{Body, Disconnect, Egress, NetOp, OpenMode};
use ringtide_uring::CatchUp;

use crate::remote::Shard;

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn expect(stream: &mut impl Read, want: &[u8]) {
    let mut got = vec![0; want.len()];
    stream.read_exact(&mut got).expect("read");
    let differs = got.iter().zip(want).position(|(a, b)| a != b);
    assert_eq!(differs, None, "first byte that differs of {}", want.len());
}

#[test]
fn memory_arrives_in_order() {
    let mut shard = Shard::start(|config| config.socket_send_buffer = Some(200 << 10));
    let (mut stream, conn) = shard.connect();
    for slices in [1usize, 2, 30, 512] {
        let body = pattern(slices * 4000);
        let copy = body.clone();
        shard.command(move |cx| {
            let slices = copy.len() / 4000;
            let whole = cx.slice(&copy[..copy.len().min(512 * 4000)]);
            let parts = (0..slices)
                .map(|i| whole.part(i * 4000..(i + 1) * 4000))
                .collect();
            let egress = Egress {
                head: b"head".to_vec(),
                body: Body::Memory(parts),
            };
            cx.fx.net.push(NetOp::Send(conn, egress));
        });
        expect(&mut stream, b"head");
        expect(&mut stream, &body);
        shard.sent(conn);
    }
}

fn drop_from_page_cache(path: &Path) {
    let file = fs::File::open(path).expect("open");
    file.sync_all().expect("sync");
    let done = std::process::Command::new("dd")
        .arg(format!("of={}", path.display()))
        .args([
            "oflag=nocache",
            "conv=notrunc,fdatasync",
            "count=0",
            "status=none",
        ])
        .status();
    // Without dd the range is simply cached.
    drop(done);
}

fn files_arrive(catch_up: CatchUp) {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("segment");
    let contents = pattern(3_000_000);
    fs::write(&path, &contents).expect("write");
    let mut shard = Shard::start(|config| {
        config.catch_up = catch_up;
        config.socket_send_buffer = Some(200 << 10);
        config.file_buffers = 1;
    });
    shard.open(1, &path, OpenMode::Read).expect("open");
    let (mut stream, conn) = shard.connect();
    let (mut other, other_conn) = shard.connect();
    for cold in [false, true] {
        for (position, bytes) in [
            (0, 1),
            (5, 4096),
            (4095, 100_000),
            (1, 262_144),
            (77, 2_900_000),
        ] {
            if cold {
                drop_from_page_cache(&path);
            }
            // Two at once share one file buffer.
            shard.send_file(conn, b"one", 1, position, bytes);
            shard.send_file(other_conn, b"", 1, position, bytes);
            let want = &contents[position as usize..position as usize + bytes];
            expect(&mut stream, b"one");
            std::thread::scope(|scope| {
                scope.spawn(|| expect(&mut other, want));
                expect(&mut stream, want);
            });
            shard.sent(conn);
            shard.sent(other_conn);
        }
    }
}

#[test]
fn files_arrive_copied() {
    files_arrive(CatchUp::Copy);
}

#[test]
fn files_arrive_by_sendfile() {
    files_arrive(CatchUp::Sendfile);
}

fn short_file(catch_up: CatchUp) {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("segment");
    fs::write(&path, pattern(500_000)).expect("write");
    let mut shard = Shard::start(|config| config.catch_up = catch_up);
    shard.open(1, &path, OpenMode::Read).expect("open");
    for (position, bytes) in [(0, 500_001), (600_000, 1), (400_000, 200_000)] {
        let (mut stream, conn) = shard.connect();
        shard.send_file(conn, b"head", 1, position, bytes);
        assert_eq!(shard.disconnected(conn), Disconnect::FileTooShort);
        let mut got = Vec::new();
        // What came before is whatever it is; that it ends is what matters.
        let _ = stream.read_to_end(&mut got);
        assert!(got.len() < bytes + 4);
    }
    let (_stream, conn) = shard.connect();
    shard.send_file(conn, b"head", 2, 0, 1);
    assert_eq!(shard.disconnected(conn), Disconnect::File(libc::EBADF));
}

#[test]
fn a_file_that_is_too_short_disconnects_when_copied() {
    short_file(CatchUp::Copy);
}

#[test]
fn a_file_that_is_too_short_disconnects_by_sendfile() {
    short_file(CatchUp::Sendfile);
}

#[test]
fn a_file_closed_while_it_is_sent_arrives_whole() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("segment");
    let contents = pattern(2_000_000);
    fs::write(&path, &contents).expect("write");
    for catch_up in [CatchUp::Copy, CatchUp::Sendfile] {
        let mut shard = Shard::start(|config| {
            config.catch_up = catch_up;
            config.socket_send_buffer = Some(200 << 10);
        });
        shard.open(1, &path, OpenMode::Read).expect("open");
        let (mut stream, conn) = shard.connect();
        shard.send_file(conn, b"", 1, 0, contents.len());
        shard.command(|cx| {
            let close = ringtide_io::DiskOp::Close {
                file: ringtide_io::FileId(1),
            };
            cx.fx.disk.push((ringtide_io::OpId(0), close));
        });
        shard.settle();
        expect(&mut stream, &contents);
        shard.sent(conn);
    }
}

#[test]
fn readers_that_stand_still_do_not_keep_files_from_others() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("segment");
    let contents = pattern(2_000_000);
    fs::write(&path, &contents).expect("write");
    for catch_up in [CatchUp::Copy, CatchUp::Sendfile] {
        let mut shard = Shard::start(|config| {
            config.catch_up = catch_up;
            config.file_buffers = 1;
            config.socket_send_buffer = Some(200 << 10);
        });
        shard.open(1, &path, OpenMode::Read).expect("open");
        let deaf: Vec<_> = (0..4).map(|_| shard.connect()).collect();
        for (_, conn) in &deaf {
            shard.send_file(*conn, b"head", 1, 0, contents.len());
        }
        shard.settle();
        let (mut stream, conn) = shard.connect();
        shard.send_file(conn, b"", 1, 0, contents.len());
        expect(&mut stream, &contents);
        shard.sent(conn);
    }
}

#[test]
fn aborting_while_files_are_sent_gives_their_buffers_back() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("segment");
    let contents = pattern(2_000_000);
    fs::write(&path, &contents).expect("write");
    for catch_up in [CatchUp::Copy, CatchUp::Sendfile] {
        let mut shard = Shard::start(|config| {
            config.catch_up = catch_up;
            config.file_buffers = 1;
            config.socket_send_buffer = Some(200 << 10);
        });
        shard.open(1, &path, OpenMode::Read).expect("open");
        for _ in 0..5 {
            let deaf: Vec<_> = (0..4).map(|_| shard.connect()).collect();
            for (_, conn) in &deaf {
                shard.send_file(*conn, b"head", 1, 0, contents.len());
            }
            shard.settle();
            for &(_, conn) in &deaf {
                shard.net(move || NetOp::Abort(conn));
                assert_eq!(shard.disconnected(conn), Disconnect::Asked);
            }
            let (mut stream, conn) = shard.connect();
            shard.send_file(conn, b"", 1, 0, contents.len());
            expect(&mut stream, &contents);
            shard.sent(conn);
        }
    }
}
