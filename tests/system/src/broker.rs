//! The broker as a process: started, killed, stopped, started again.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::binary::target;
use crate::cli::Cli;
use crate::footprint::Footprint;
use crate::peer::{Fault, Peer};
use crate::ports::Ports;
use crate::wait::{self, PATIENCE};

/// Lines of its log that a broker prints when its test fails.
const SHOWN_LINES: usize = 60;

/// The folder for data directories: on a real disk, which `/tmp` often is not.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn data_root() -> PathBuf {
    let root = std::env::var_os("RINGTIDE_TEST_DIR")
        .map_or_else(|| target().join("system-tests"), PathBuf::from);
    std::fs::create_dir_all(&root).expect("the folder for data directories can be made");
    root
}

/// How a broker is to be started.
#[derive(Clone, Debug)]
pub struct Setup {
    shards: usize,
    args: Vec<String>,
    data_dir: Option<PathBuf>,
    small: bool,
    uid: Option<u32>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            shards: 1,
            args: Vec::new(),
            data_dir: None,
            small: true,
            uid: None,
        }
    }
}

/// A broker that did not start.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Its end.
    pub status: ExitStatus,
    /// All that it said.
    pub said: String,
}

impl Refusal {
    /// Whether its last words contain each of these.
    ///
    /// # Panics
    /// When one is missing, or it did not end of its own accord with an exit code of its own.
    #[track_caller]
    pub fn says(&self, words: &[&str]) {
        assert!(self.status.code().is_some_and(|c| c != 0), "{self:?}");
        assert!(
            !self.said.contains("panicked at"),
            "it crashed: {}",
            self.said
        );
        for word in words {
            assert!(
                self.said.contains(word),
                "{word:?} is not in: {}",
                self.said
            );
        }
    }
}

impl Setup {
    /// One shard, default settings, small files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With this many shards.
    #[must_use]
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// With more flags.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&a| a.to_owned()));
        self
    }

    /// In this data directory, which outlives the broker.
    #[must_use]
    pub fn data_dir(mut self, path: &Path) -> Self {
        self.data_dir = Some(path.to_owned());
        self
    }

    /// With none of the flags that make a broker under test small.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.small = false;
        self
    }

    /// As another user.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Starts the broker and waits until every shard answers.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> Broker {
        match self.try_start() {
            Ok(broker) => broker,
            Err(refusal) => panic!(
                "the broker did not start ({}): {}",
                refusal.status, refusal.said
            ),
        }
    }

    /// Starts the broker, which must end by itself before it serves.
    ///
    /// # Panics
    /// When it serves.
    #[must_use]
    #[track_caller]
    pub fn refused(self) -> Refusal {
        match self.try_start() {
            Ok(broker) => panic!("the broker started: {}", broker.log()),
            Err(refusal) => refusal,
        }
    }

    /// Starts the broker and waits until every shard answers.
    ///
    /// # Errors
    /// When it ends before that.
    pub fn try_start(self) -> Result<Broker, Refusal> {
        let home = TempDir::with_prefix_in("broker-", data_root()).expect("a folder for a broker");
        let data_dir = self
            .data_dir
            .clone()
            .unwrap_or_else(|| home.path().join("data"));
        let mut broker = Broker {
            setup: self,
            data_dir,
            log: home.path().join("log"),
            home,
            ports: Ports::reserve(),
            child: None,
        };
        broker.spawn()?;
        Ok(broker)
    }
}

/// A broker, running or not. It is killed when this is dropped.
pub struct Broker {
    setup: Setup,
    data_dir: PathBuf,
    log: PathBuf,
    home: TempDir,
    ports: Ports,
    child: Option<Child>,
}

impl Broker {
    /// One shard, default settings, a data directory of its own.
    #[must_use]
    #[track_caller]
    pub fn start() -> Self {
        Setup::new().start()
    }

    /// The flags that every broker is started with.
    fn arguments(&self) -> Vec<String> {
        let mut args = vec![
            "serve".into(),
            "--data-dir".into(),
            self.data_dir.display().to_string(),
            "--listen".into(),
            self.address(0).to_string(),
            "--cpus".into(),
            crate::cpu_list(self.setup.shards),
            "--log-format".into(),
            "json".into(),
        ];
        if self.setup.small {
            let given = |flag: &str| self.setup.args.iter().any(|a| a == flag);
            let wanted = SMALL.iter().filter(|(flag, _)| !given(flag));
            args.extend(wanted.flat_map(|&(flag, value)| [flag.into(), value.into()]));
        }
        args.extend(self.setup.args.iter().cloned());
        args
    }

    /// Starts the process and gives where its log begins.
    fn launch(&mut self) -> u64 {
        assert!(self.child.is_none(), "the broker runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("a log file");
        let from = log.metadata().expect("a log file").len();
        let mut command = Command::new(crate::binary());
        command
            .args(self.arguments())
            .current_dir(self.home.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log);
        if let Some(uid) = self.setup.uid {
            command.uid(uid).gid(uid);
        }
        self.child = Some(command.spawn().expect("the binary starts"));
        from
    }

    fn spawn(&mut self) -> Result<(), Refusal> {
        let from = self.launch();
        for shard in 0..self.setup.shards {
            let deadline = Instant::now() + PATIENCE;
            while !self.answers(shard) {
                if let Some(status) = self.ended() {
                    let said = self.log()[from as usize..].to_owned();
                    return Err(Refusal { status, said });
                }
                assert!(
                    Instant::now() < deadline,
                    "the broker neither serves nor ends: {}",
                    self.log()
                );
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    fn answers(&self, shard: usize) -> bool {
        match Peer::connect(self.address(shard)) {
            Ok(mut peer) => match peer.hello() {
                Ok(_) => true,
                Err(Fault::Closed | Fault::Silent) => false,
                Err(refused) => panic!("hello was refused: {refused:?}"),
            },
            Err(_) => false,
        }
    }

    /// How the process ended, if it did; it can then be started again.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self
            .child
            .as_mut()?
            .try_wait()
            .expect("a child can be asked")?;
        self.child = None;
        Some(status)
    }

    /// Fails the test at once if the broker ended without having been told to.
    ///
    /// # Panics
    /// When it did.
    #[track_caller]
    pub fn still_runs(&mut self) {
        if let Some(status) = self.ended() {
            panic!("the broker ended by itself ({status})");
        }
    }

    /// Waits for the end of the process.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_end(&mut self) -> ExitStatus {
        wait::until("the end of the broker", || self.ended())
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running broker").id()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(self.child.as_ref().expect("a running broker"));
        kill_process(pid, signal).expect("a running broker");
    }

    /// Kills it as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait_end();
    }

    /// Asks it to stop and gives its exit code.
    ///
    /// # Panics
    /// When it does not end, or not of its own accord.
    #[must_use]
    pub fn stop(&mut self) -> i32 {
        self.signal(Signal::TERM);
        self.wait_end().code().expect("an exit code")
    }

    /// Starts it again in the same place.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn restart(&mut self) {
        if let Err(refusal) = self.spawn() {
            panic!(
                "the broker did not start again ({}): {}",
                refusal.status, refusal.said
            );
        }
    }

    /// Starts it again with another number of shards.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn restart_with(&mut self, shards: usize) {
        self.setup.shards = shards;
        self.restart();
    }

    /// Starts it again and kills it before it is ready, or soon after.
    ///
    /// # Panics
    /// When it ended by itself.
    pub fn start_and_kill_after(&mut self, delay: Duration) {
        self.launch();
        std::thread::sleep(delay);
        if let Some(status) = self.ended() {
            panic!("the broker ended by itself ({status}): {}", self.log());
        }
        self.kill();
    }

    /// Starts it again with this many shards and kills it on the way, when `moment` says so, which is
    /// asked again and again.
    ///
    /// # Panics
    /// When it ended by itself, or the moment does not come.
    pub fn start_and_kill_when(&mut self, shards: usize, mut moment: impl FnMut(&Self) -> bool) {
        self.setup.shards = shards;
        self.launch();
        let deadline = Instant::now() + PATIENCE;
        while !moment(self) {
            if let Some(status) = self.ended() {
                panic!("the broker ended by itself ({status}): {}", self.log());
            }
            assert!(Instant::now() < deadline, "the moment never came");
        }
        self.kill();
    }

    /// What it holds of the machine.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        Footprint::of(self.pid())
    }

    /// Starts it again; it must refuse.
    ///
    /// # Panics
    /// When it starts.
    #[track_caller]
    pub fn restart_refused(&mut self) -> Refusal {
        self.spawn().expect_err("the broker must not start")
    }

    /// Where a shard listens.
    #[must_use]
    pub fn address(&self, shard: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.of_shard(shard)).into()
    }

    /// How many shards it has.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.setup.shards
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A folder for this test's own files.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// All that it has written to standard output and error, over all its starts.
    ///
    /// # Panics
    /// When the log cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).expect("the log can be read");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for a line of the log that contains each of these.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn logs(&self, words: &[&str]) {
        wait::for_it(&format!("a log line with {words:?}"), || {
            self.log()
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
        });
    }

    /// A connection to a shard that has said hello.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    #[track_caller]
    pub fn peer_at(&self, shard: usize) -> Peer {
        let mut peer = Peer::connect(self.address(shard)).expect("a listening shard");
        let hello = peer.hello().expect("an answered hello");
        assert_eq!(usize::from(hello.shard), shard);
        assert_eq!(usize::from(hello.shards), self.setup.shards);
        peer
    }

    /// A connection to the first shard that has said hello.
    #[must_use]
    #[track_caller]
    pub fn peer(&self) -> Peer {
        self.peer_at(0)
    }

    /// A connection to the first shard that has said nothing yet.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn stranger(&self) -> Peer {
        Peer::connect(self.address(0)).expect("a listening shard")
    }

    /// The client commands against this broker.
    #[must_use]
    pub fn cli(&self) -> Cli {
        Cli::new(self.address(0))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- the broker's log, last {SHOWN_LINES} of {} lines ---",
                lines.len()
            );
            for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
                eprintln!("{line}");
            }
            if std::env::var_os("RINGTIDE_TEST_KEEP").is_some() {
                self.home.disable_cleanup(true);
                eprintln!("kept: {}", self.home.path().display());
            }
        }
    }
}

/// Keeps a broker under test small on disk and in memory, and off the CPU when it is idle.
const SMALL: &[(&str, &str)] = &[
    ("--idle", "park"),
    ("--wal-slot-bytes", "4MiB"),
    ("--wal-slots", "4"),
    ("--memory-bytes", "64MiB"),
];
