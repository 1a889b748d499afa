//! Shards hear each other, asleep or awake, and end together.

use std::net::SocketAddr;

use ringtide_io::{
    ConnId, Disconnect, DiskDone, DiskError, Effects, Egress, Fatal, FatalReason, Logic, Now, OpId,
};
use ringtide_uring::{IdlePolicy, ShardConfig, StartError, StopSignal, run};

/// Sends a number back, one less, until it is zero; `fatal_at` makes it fail instead, `panic_at` panic.
struct Player {
    peers: Vec<u16>,
    serve: Option<u64>,
    fatal_at: Option<u64>,
    panic_at: Option<u64>,
    deadlines: bool,
    last_ns: u64,
    heard: u64,
    expect: u64,
    stopping: bool,
    finished: StopSignal,
}

type Fx = Effects<u64>;

impl Player {
    fn new(finished: StopSignal) -> Self {
        Self {
            peers: Vec::new(),
            serve: None,
            fatal_at: None,
            panic_at: None,
            deadlines: false,
            last_ns: 0,
            heard: 0,
            expect: u64::MAX,
            stopping: false,
            finished,
        }
    }
}

impl Logic for Player {
    type Mail = u64;
    fn accepted(&mut self, _: ConnId, _: SocketAddr, _: Now, _: &mut Fx) {}
    fn received(&mut self, _: ConnId, _: &[u8], _: Now, _: &mut Fx) {}
    fn sent(&mut self, _: ConnId, _: Egress, _: Now, _: &mut Fx) {}
    fn disconnected(&mut self, _: ConnId, _: Disconnect, _: Now, _: &mut Fx) {}
    fn disk(&mut self, _: OpId, _: Result<DiskDone, DiskError>, _: Now, _: &mut Fx) {}

    fn mail(&mut self, from: u16, mail: u64, _: Now, fx: &mut Fx) {
        self.heard += 1;
        assert_ne!(self.panic_at, Some(mail), "planted");
        if self.fatal_at == Some(mail) {
            let message = "planted".to_owned();
            fx.fatal = Some(Fatal {
                reason: FatalReason::Invariant,
                message,
            });
        } else if mail > 0 {
            fx.mail.push((from, mail - 1));
        }
        if self.heard == self.expect {
            self.finished.stop();
        }
    }

    fn turn(&mut self, now: Now, fx: &mut Fx) {
        self.last_ns = now.mono_ns;
        if let Some(count) = self.serve.take() {
            fx.mail.extend(self.peers.iter().map(|&peer| (peer, count)));
        }
    }

    fn deadline_ns(&self) -> Option<u64> {
        let again = self.deadlines.then_some(self.last_ns + 10_000_000);
        self.serve.map(|_| 0).or(again)
    }

    fn stop(&mut self, _: Now, _: &mut Fx) {
        self.stopping = true;
    }

    fn is_stopped(&self) -> bool {
        self.stopping
    }
}

fn play(
    shards: u16,
    idle: IdlePolicy,
    slots: usize,
    change: impl Fn(u16, &mut Player) + Clone + Send + 'static,
) -> Vec<Result<(), Fatal>> {
    let stop = StopSignal::new();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let starts = (0..shards).map(|shard| {
        let listener = ringtide_uring::bind("127.0.0.1:0".parse().expect("address")).expect("bind");
        let address = listener.local_addr().expect("bound");
        let mut config = ShardConfig::new(shard, usize::from(shard) % cpus, address);
        config.idle = idle;
        config.mailbox_slots = slots;
        let (change, finished) = (change.clone(), stop.clone());
        let make = move || {
            let mut player = Player::new(finished);
            change(shard, &mut player);
            player
        };
        (
            config,
            listener,
            Box::new(make) as Box<dyn FnOnce() -> Player + Send>,
        )
    });
    run(starts.collect(), stop.clone()).expect("start").join()
}

const ROUNDS: u64 = 100_000;

/// One ball goes back and forth: every hit finds the other shard about to sleep.
#[test]
fn no_wake_up_is_lost_between_two_parking_shards() {
    let results = play(2, IdlePolicy::Park, 4, |shard, player| {
        if shard == 0 {
            player.peers = vec![1];
            player.serve = Some(ROUNDS);
            player.expect = ROUNDS / 2;
        }
    });
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

#[test]
fn a_full_mailbox_delays_but_loses_nothing() {
    // Every shard sends to itself and the others, many balls at once through queues of one.
    let results = play(3, IdlePolicy::Park, 1, |shard, player| {
        player.peers = (0..3)
            .flat_map(|peer| std::iter::repeat_n(peer, 50))
            .collect();
        player.serve = Some(if shard == 0 { 100 } else { 0 });
        if shard == 0 {
            // From each peer 50 with a zero; of its own balls, each comes back 50 times, and
            // those to itself are heard 101 times.
            player.expect = 2 * 50 + 2 * 50 * 50 + 50 * 101;
        }
    });
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

#[test]
fn a_fatal_shard_ends_the_others() {
    let results = play(3, IdlePolicy::Park, 16, |shard, player| {
        if shard == 0 {
            player.peers = vec![1, 2];
            player.serve = Some(1000);
        } else if shard == 2 {
            player.fatal_at = Some(500);
        }
    });
    assert!(results[0].is_ok() && results[1].is_ok());
    assert_eq!(results[2].as_ref().expect_err("planted").message, "planted");
}

#[test]
fn a_shard_that_panics_ends_the_others() {
    for idle in [IdlePolicy::Park, IdlePolicy::Spin] {
        let results = play(3, idle, 16, |shard, player| {
            if shard == 0 {
                player.peers = vec![1, 2];
                player.serve = Some(1000);
            } else if shard == 2 {
                player.panic_at = Some(500);
            }
        });
        assert!(results[0].is_ok() && results[1].is_ok());
        let fatal = results[2].as_ref().expect_err("planted");
        assert!(fatal.message.contains("planted"), "{}", fatal.message);
        assert_eq!(fatal.reason, FatalReason::Invariant);
    }
}

#[test]
fn a_shard_that_ends_before_it_has_begun_refuses_the_start_with_its_reason() {
    let make = |shard, player: Box<dyn FnOnce() -> Player + Send>| {
        let listener = ringtide_uring::bind("127.0.0.1:0".parse().expect("address")).expect("bind");
        let address = listener.local_addr().expect("bound");
        (ShardConfig::new(shard, 0, address), listener, player)
    };
    let stop = StopSignal::new();
    let finished = stop.clone();
    let sound = make(0, Box::new(move || Player::new(finished)));
    let panics = make(1, Box::new(|| panic!("planted")));
    let error = run(vec![sound, panics], stop).expect_err("half a broker");
    let StartError::Thread { shard, message, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(shard, 1);
    assert!(message.contains("planted"), "{message}");
}

#[test]
fn shards_are_numbered_in_order() {
    let listener = ringtide_uring::bind("127.0.0.1:0".parse().expect("address")).expect("bind");
    let address = listener.local_addr().expect("bound");
    let config = ShardConfig::new(1, 0, address);
    let make = || -> Player { unreachable!("never started") };
    let error = run(
        vec![(config, listener, Box::new(make) as Box<_>)],
        StopSignal::new(),
    );
    assert!(matches!(
        error,
        Err(StartError::Numbering { place: 0, found: 1 })
    ));
}

/// CPU time of the process, user and system.
fn cpu_time() -> std::time::Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("stat");
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .expect("fields")
        .split_whitespace()
        .collect();
    let ticks: u64 =
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    std::time::Duration::from_millis(ticks * 10)
}

/// Measures for a while, so it is run by itself: `--ignored`.
#[test]
#[ignore = "measures CPU time, for which other tests must not run beside it"]
fn an_idle_shard_with_timers_takes_no_cpu() {
    let stop = StopSignal::new();
    let ender = stop.clone();
    let watch = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let before = cpu_time();
        std::thread::sleep(std::time::Duration::from_secs(3));
        let used = cpu_time() - before;
        ender.stop();
        used
    });
    let listener = ringtide_uring::bind("127.0.0.1:0".parse().expect("address")).expect("bind");
    let address = listener.local_addr().expect("bound");
    let config = ShardConfig::new(0, 0, address);
    let finished = stop.clone();
    let make = move || Player {
        deadlines: true,
        ..Player::new(finished)
    };
    let running = run(vec![(config, listener, Box::new(make) as Box<_>)], stop).expect("start");
    let used = watch.join().expect("watch");
    running.join();
    assert!(
        used.as_millis() <= 30,
        "{used:?} in 3 s: more than 1 % of a core"
    );
}
