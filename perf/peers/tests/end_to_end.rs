//! Every peer for real: its server is started in a fresh directory, loaded for a second at a low rate, and
//! all that was acknowledged must have arrived once and in order. A server that is not installed here is
//! skipped with the reason.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A server that takes longer to start is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// The load of each test, as flags.
const LOAD: [&str; 12] = [
    "--rate",
    "500",
    "--duration",
    "1",
    "--warm-up",
    "0.2",
    "--publishers",
    "2",
    "--partitions",
    "2",
    "--keys",
    "uniform:50",
];

/// A server, killed when dropped.
struct Server {
    child: Child,
    address: String,
    _home: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("bound").port()
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn config(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("configs")
        .join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Server {
    /// Starts what `command` makes of the directory, its configuration and the port.
    fn start(config: &str, command: impl FnOnce(&Path, &Path, u16) -> Command) -> Self {
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let (file, port) = (home.path().join("config"), free_port());
        fs::write(&file, config).expect("written");
        let mut command = command(home.path(), &file, port);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut server = Self {
            child: command.spawn().expect("it starts"),
            address: format!("127.0.0.1:{port}"),
            _home: home,
        };
        let began = Instant::now();
        while TcpStream::connect(&server.address).is_err() {
            let ended = server.child.try_wait().expect("it can be watched");
            assert!(ended.is_none(), "the server ended: {ended:?}");
            assert!(began.elapsed() < PATIENCE, "the server does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn redis(durability: &str) -> Self {
        Self::start(
            &config(&format!("redis-{durability}.conf")),
            |home, file, port| {
                let mut command = Command::new("redis-server");
                command
                    .arg(file)
                    .args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
                command.arg("--dir").arg(home);
                command
            },
        )
    }

    fn nats(durability: &str) -> Self {
        Self::start(
            &config(&format!("nats-{durability}.conf")),
            |home, file, port| {
                let mut command = Command::new("nats-server");
                command
                    .arg("-c")
                    .arg(file)
                    .args(["-a", "127.0.0.1", "-p", &port.to_string()]);
                command.arg("-sd").arg(home.join("data"));
                command
            },
        )
    }

    fn kafka(durability: &str, libs: &str) -> Self {
        let text =
            config("kafka-common.properties") + &config(&format!("kafka-{durability}.properties"));
        let jars = format!("{libs}/*");
        Self::start(&text, |home, file, port| {
            let controller = free_port();
            let more = format!(
                "listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
                 advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
                 controller.quorum.voters=1@127.0.0.1:{controller}\nlog.dirs={}\n",
                home.join("data").display()
            );
            fs::write(file, text.clone() + &more).expect("written");
            let format = Command::new("java")
                .args(["-cp", &jars, "kafka.tools.StorageTool", "format"])
                .args(["-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c"])
                .arg(file)
                .output()
                .expect("java runs");
            assert!(format.status.success(), "{format:?}");
            let mut command = Command::new("java");
            command
                .args(["-Xmx512m", "-cp", &jars, "kafka.Kafka"])
                .arg(file);
            command
        })
    }
}

/// A run of the program, and its report. Whether it was fast enough is not asked here.
fn report(peer: &str, durability: &str, server: &Server, more: &[&str]) -> Value {
    let home = tempfile::tempdir().expect("a directory");
    let json = home.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_peers"))
        .args([
            peer,
            "--server",
            &server.address,
            "--durability",
            durability,
            "--json",
        ])
        .arg(&json)
        .args(LOAD)
        .args(more)
        .output()
        .expect("it runs");
    let words = String::from_utf8_lossy(&output.stderr);
    let text = fs::read(&json).unwrap_or_else(|error| panic!("{error}: {words}"));
    serde_json::from_slice(&text).expect("JSON")
}

/// Nothing was lost, changed, or given out twice or in another order.
fn assert_balanced(report: &Value, subscribers: u64) {
    let verify = &report["verify"];
    let count = |name: &str| {
        verify[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name}: {verify}"))
    };
    for fault in [
        "lost",
        "duplicated",
        "reordered",
        "corrupt",
        "refused",
        "unsent",
        "unacknowledged",
    ] {
        assert_eq!(count(fault), 0, "{fault}: {verify} {}", report["reasons"]);
    }
    assert_eq!(verify["complete"], true);
    assert!(count("sent") >= 500, "{verify}");
    assert_eq!(count("acked"), count("sent"));
    assert_eq!(count("received"), subscribers * count("sent"));
}

/// One load with a subscriber, one in batches that is read back, one that six subscribers read, and one
/// beside which what was there before is read.
fn assert_all_loads_balance(peer: &str, durability: &str, server: &Server) {
    assert_balanced(&report(peer, durability, server, &[]), 1);
    let batches = ["--batch", "10", "--subscribers", "0"];
    assert_balanced(&report(peer, durability, server, &batches), 1);
    let wide = ["--subscribers", "6"];
    assert_balanced(&report(peer, durability, server, &wide), 6);
    let replay = ["--preload", "64KiB", "--replayers", "1"];
    let report = report(peer, durability, server, &replay);
    assert_eq!(report["verify"]["lost"], 0, "{report}");
    assert!(
        report["replay"]["bytes"].as_u64() >= Some(64 << 10),
        "{report}"
    );
}

#[test]
fn redis_balances_as_durable_and_as_usual() {
    if !is_installed("redis-server") {
        println!("skipped: there is no redis-server in PATH");
        return;
    }
    for durability in ["durable", "usual"] {
        let server = Server::redis(durability);
        assert_all_loads_balance("redis", durability, &server);
    }
}

#[test]
fn a_redis_that_does_not_sync_is_not_measured_as_durable() {
    if !is_installed("redis-server") {
        println!("skipped: there is no redis-server in PATH");
        return;
    }
    let server = Server::redis("usual");
    let output = Command::new(env!("CARGO_BIN_EXE_peers"))
        .args(["redis", "--server", &server.address])
        .args(LOAD)
        .output()
        .expect("it runs");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(words.contains("appendfsync always"), "{words}");
}

#[test]
fn nats_balances_as_usual_and_as_durable_where_it_can() {
    if !is_installed("nats-server") {
        println!("skipped: there is no nats-server in PATH");
        return;
    }
    assert_all_loads_balance("nats", "usual", &Server::nats("usual"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/nats-durable.conf");
    let check = Command::new("nats-server")
        .arg("-t")
        .arg("-c")
        .arg(file)
        .output();
    if !check.expect("it runs").status.success() {
        println!("durable is skipped: this nats-server cannot sync before it answers");
        return;
    }
    assert_all_loads_balance("nats", "durable", &Server::nats("durable"));
}

#[test]
fn kafka_balances_as_durable_and_as_usual() {
    let Ok(libs) = std::env::var("KAFKA_LIBS") else {
        println!("skipped: KAFKA_LIBS does not name a directory with Kafka's jars");
        return;
    };
    for durability in ["durable", "usual"] {
        let server = Server::kafka(durability, &libs);
        assert_all_loads_balance("kafka", durability, &server);
    }
}
