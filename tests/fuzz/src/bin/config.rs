//! The configuration file of the broker.
//!
//! What is refused is refused in one line that names the file and a line of it. Settings that are accepted are
//! the same when they are given as flags.

#![no_main]

use std::net::SocketAddr;
use std::path::Path;

use libfuzzer_sys::fuzz_target;

// The binary has no library; its modules for settings know of each other and of nothing else.
#[path = "../../../../tools/ringtide/src/config.rs"]
#[expect(dead_code, reason = "only the parsing is of interest")]
mod config;
#[path = "../../../../tools/ringtide/src/cpu_list.rs"]
mod cpu_list;
#[path = "../../../../tools/ringtide/src/raw_config.rs"]
mod raw_config;
#[path = "../../../../tools/ringtide/src/setting.rs"]
mod setting;

use config::{Config, ConfigError};
use raw_config::Raw;

const FILE: &str = "ringtide.toml";
const CPUS: [usize; 4] = [0, 1, 2, 3];

fn refused(error: &ConfigError, text: &str) {
    let message = error.to_string();
    let place = format!("{FILE}, line ");
    let line = message.split_once(&place).map(|(_, rest)| rest);
    let line = line.and_then(|rest| {
        rest.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    });
    let lines = text.matches('\n').count() + 1;
    assert!(
        line.is_some_and(|line: usize| (1..=lines).contains(&line)),
        "{message:?}"
    );
}

/// Every setting that was given, with its name.
fn pairs(raw: &Raw) -> Vec<(String, String)> {
    let all = [
        ("data-dir", &raw.data_dir),
        ("listen", &raw.listen),
        ("advertise", &raw.advertise),
        ("cpus", &raw.cpus),
        ("idle", &raw.idle),
        ("idle-spin-us", &raw.idle_spin_us),
        ("memory-bytes", &raw.memory_bytes),
        ("wal-slot-bytes", &raw.wal_slot_bytes),
        ("wal-slots", &raw.wal_slots),
        ("max-connections", &raw.max_connections),
        ("max-in-flight-requests", &raw.max_in_flight_requests),
        ("log-groups", &raw.log_groups),
        ("sync-interval-ms", &raw.sync_interval_ms),
        ("catch-up", &raw.catch_up),
        ("log-level", &raw.log_level),
        ("log-format", &raw.log_format),
        ("shutdown-timeout-ms", &raw.shutdown_timeout_ms),
    ];
    assert_eq!(all.map(|(name, _)| name), Raw::names());
    let given = all.into_iter();
    let given = given.filter_map(|(name, text)| Some((name, text.as_ref()?)));
    given
        .map(|(name, text)| (name.to_owned(), text.value.clone()))
        .collect()
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let file = match Raw::parse(Path::new(FILE), text) {
        Ok(raw) => raw,
        Err(error) => return refused(&error, text),
    };
    // A name of a host would be looked up.
    let address = |text: &raw_config::Text| text.value.parse::<SocketAddr>().is_ok();
    if !file.listen.as_ref().is_none_or(address) {
        return;
    }
    let flags = Raw::from_pairs(&pairs(&file)).expect("names of settings");
    let (file, flags) = (
        Config::from_raw(&file, &CPUS),
        Config::from_raw(&flags, &CPUS),
    );
    match file {
        Ok(config) => assert_eq!(flags, Ok(config)),
        Err(error) => {
            assert!(flags.is_err());
            refused(&error, text);
        }
    }
});
