//! Plays seeds, on every core, until one is found that breaks a promise.

use std::cell::Cell;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use ringtide_sim::{Limits, Planted, run, run_telling};

/// Plays seeds and names those that break a promise
#[derive(Parser)]
struct Args {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Plant a fault of the disk or the driver (docs/SIMULATION.md has their names) and play until a seed finds it
    #[arg(long)]
    plant: Option<String>,
    /// Play until a seed fails, and end well then
    #[arg(long)]
    until_found: bool,
    /// Print what happens
    #[arg(long)]
    trace: bool,
    /// Play with so many clients at the most
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    clients: u64,
    /// Play so many faults at the most
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    faults: u64,
    /// Play so many records of each client at the most
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    records: u64,
    /// Threads [default: one for each core]
    #[arg(long)]
    threads: Option<usize>,
}

thread_local! {
    /// The seed that a thread plays, for when an assertion ends the process.
    static PLAYED: Cell<u64> = const { Cell::new(0) };
}

fn main() -> ExitCode {
    let args = Args::parse();
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |why| {
        println!("seed {} panics", PLAYED.get());
        print(why);
    }));
    let planted = match &args.plant {
        None => Planted::Nothing,
        Some(name) => match Planted::ALL.iter().find(|(known, _)| known == name) {
            Some((_, planted)) => *planted,
            None => {
                let known: Vec<&str> = Planted::ALL.iter().map(|(name, _)| *name).collect();
                eprintln!("there is no fault {name:?}, but {}", known.join(", "));
                return ExitCode::from(2);
            }
        },
    };
    let limits = Limits {
        clients: args.clients,
        faults: args.faults,
        records: args.records,
    };
    let threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let began = Instant::now();
    let next = AtomicU64::new(args.seed);
    let end = args.seed.saturating_add(args.seeds);
    let is_search = planted != Planted::Nothing || args.until_found;
    let failed = Mutex::new(Vec::new());
    let (events, faults, records) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_found = is_search && !failed.lock().expect("not poisoned").is_empty();
                    if seed >= end || is_found {
                        return;
                    }
                    PLAYED.set(seed);
                    let outcome = match args.trace {
                        true => run_telling(seed, planted, limits, |event| println!("{event}")),
                        false => run(seed, planted, limits),
                    };
                    events.fetch_add(outcome.events, Ordering::Relaxed);
                    faults.fetch_add(outcome.faults, Ordering::Relaxed);
                    records.fetch_add(outcome.records, Ordering::Relaxed);
                    if let Some(violation) = outcome.violation {
                        println!("seed {seed}: {violation}");
                        if !is_search {
                            println!("{}", shortest(seed, limits, outcome.events));
                        }
                        failed.lock().expect("not poisoned").push(seed);
                    }
                    let done = 1 + done.fetch_add(1, Ordering::Relaxed);
                    if done.is_multiple_of(50) {
                        let a_minute = done as f64 / began.elapsed().as_secs_f64() * 60.0;
                        eprint!("\r{done} of {} seeds, {a_minute:.0} a minute ", args.seeds);
                        let _ = std::io::stderr().flush();
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("not poisoned");
    let seeds = done.into_inner();
    println!(
        "{seeds} seeds in {:.1} s: {} events, {} faults, {} records with an outcome; {} seeds failed",
        began.elapsed().as_secs_f64(),
        events.into_inner(),
        faults.into_inner(),
        records.into_inner(),
        failed.len()
    );
    if is_search && failed.is_empty() {
        println!("no seed has found the planted fault");
    }
    match failed.is_empty() == is_search {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// The least of a failing seed that still fails, as the command that plays it.
fn shortest(seed: u64, limits: Limits, events: u64) -> String {
    let (mut least, mut events) = (limits, events);
    for set in [
        (|limits, n| Limits {
            faults: n,
            ..limits
        }) as fn(Limits, u64) -> Limits,
        |limits, n| Limits {
            clients: n,
            ..limits
        },
        |limits, n| Limits {
            records: n,
            ..limits
        },
    ] {
        for n in [0, 1, 2, 3, 5, 10, 20, 40, 80, 160, 320] {
            let tried = set(least, n);
            let outcome = run(seed, Planted::Nothing, tried);
            if outcome.violation.is_some() && outcome.events <= events {
                (least, events) = (tried, outcome.events);
                break;
            }
        }
    }
    let flag = |name: &str, limit: u64| match limit {
        u64::MAX => String::new(),
        limit => format!(" --{name} {limit}"),
    };
    format!(
        "  {events} events: cargo run --release -p ringtide-sim -- --seed {seed} --seeds 1 --trace{}{}{}",
        flag("clients", least.clients),
        flag("faults", least.faults),
        flag("records", least.records)
    )
}
