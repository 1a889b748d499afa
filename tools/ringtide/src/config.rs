//! The settings of `ringtide serve`: flags and a TOML file with the same names, flags win.
//!
//! What the operator wrote is kept as text ([`Raw`]) and validated once ([`Config::from_raw`]), so
//! that a flag and a key of the file are read by the same code and refused in the same words: the
//! key, the value, where it stood, and what would do.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringtide_schema::limits;

use crate::cpu_list;
use crate::raw_config::{Origin, Raw};
use crate::setting::{GIB, Given, MIB};

/// The most shards that a broker starts unless `cpus` names more.
const DEFAULT_MOST_SHARDS: usize = 4;

/// What a shard does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    /// Look again at once; a core is dedicated to the shard.
    Spin,
    /// Look again for a while, then sleep until something arrives.
    Adaptive,
    /// Sleep until something arrives.
    Park,
}

/// How records that lie in segments are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CatchUp {
    /// By sendfile where the kernel can tell what is cached.
    Sendfile,
    /// Through memory.
    Copy,
}

/// What log lines look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    Auto,
    /// For a person.
    Human,
    /// One JSON object a line.
    Json,
}

/// The settings of a broker, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    /// Of the first shard; shard i listens on port + i. Port 0: each shard gets a free one.
    pub(crate) listen: SocketAddr,
    /// The host that clients are told to connect to.
    pub(crate) advertise: String,
    /// The CPU of each shard.
    pub(crate) cpus: Vec<usize>,
    pub(crate) idle: Idle,
    pub(crate) idle_spin: Duration,
    pub(crate) memory_bytes: usize,
    pub(crate) wal_slot_bytes: u64,
    pub(crate) wal_slots: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_in_flight_requests: usize,
    /// For a new data directory only.
    pub(crate) log_groups: u16,
    pub(crate) sync_interval: Duration,
    pub(crate) catch_up: CatchUp,
    pub(crate) log_level: tracing::Level,
    pub(crate) log_format: LogFormat,
    pub(crate) shutdown_timeout: Duration,
}

/// A setting that cannot be, or a file that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The value would not do.
    #[error("{key} = {value} ({origin}) is impossible: {need}")]
    Impossible {
        key: &'static str,
        value: String,
        origin: Origin,
        need: String,
    },
    /// Clients would not know where to connect.
    #[error(
        "listen = {value} ({origin}) means every address of this host, and clients need one that they can connect to: add --advertise HOST, for example --advertise broker-1.example.com (in the configuration file: advertise = \"HOST\")"
    )]
    Unadvertised { value: String, origin: Origin },
    /// No setting has this name.
    #[error("{}, line {line}: there is no setting {key:?}{}; `ringtide serve --help` lists them all", .path.display(), meant(.nearest))]
    UnknownKey {
        path: PathBuf,
        line: usize,
        key: String,
        nearest: Option<&'static str>,
    },
    /// The value is a table, a date or the like.
    #[error("{}, line {line}: {key} cannot be {what}: give {}", .path.display(), takes(.key))]
    WrongType {
        path: PathBuf,
        line: usize,
        key: String,
        what: &'static str,
    },
    /// Not TOML.
    #[error("{}, line {line}: not TOML: {why}; write each setting as KEY = VALUE, text in double quotes", .path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        why: String,
    },
    /// Not text.
    #[error("{}, line {line}: this is not UTF-8 text; save the configuration file as UTF-8", .path.display())]
    NotText { path: PathBuf, line: usize },
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {why}; check the path given with --config", .path.display())]
    Unreadable { path: PathBuf, why: String },
}

fn meant(nearest: &Option<&'static str>) -> String {
    nearest
        .map(|name| format!(" (did you mean {name:?}?)"))
        .unwrap_or_default()
}

impl Config {
    /// Flags over the file's keys over the defaults. `allowed` are the CPUs that this process may run on.
    pub(crate) fn load(
        flags: Raw,
        file: Option<&Path>,
        allowed: &[usize],
    ) -> Result<Self, ConfigError> {
        let file = file.map(Raw::read).transpose()?.unwrap_or_default();
        Self::from_raw(&flags.over(file), allowed)
    }

    /// Validates what was written. `allowed` are the CPUs that this process may run on.
    pub(crate) fn from_raw(raw: &Raw, allowed: &[usize]) -> Result<Self, ConfigError> {
        macro_rules! given {
            ($field:ident) => {
                Given {
                    key: Raw::name_of(stringify!($field)),
                    text: raw.$field.as_ref(),
                }
            };
        }
        let data_dir = given!(data_dir);
        if data_dir
            .value()
            .is_some_and(|dir| dir.is_empty() || dir.contains('\0'))
        {
            return data_dir.refuse("give the path of a directory, without NUL characters");
        }
        let cpus = choose_cpus(&given!(cpus), allowed)?;
        let given_listen = given!(listen);
        let listen = choose_listen(&given_listen, cpus.len())?;
        let advertise = choose_advertise(&given!(advertise), listen, &given_listen)?;
        let wal_slot_bytes = given!(wal_slot_bytes);
        let slot = wal_slot_bytes.bytes(64 * MIB, ringtide_schema::wal::MIN_SLOT_BYTES, 4 * GIB)?;
        if !slot.is_multiple_of(MIB) {
            return wal_slot_bytes.refuse("give a whole number of MiB");
        }
        Ok(Self {
            data_dir: data_dir.value().unwrap_or("./ringtide-data").into(),
            listen,
            advertise,
            cpus,
            idle: given!(idle).choice(
                Idle::Adaptive,
                &[
                    ("spin", Idle::Spin),
                    ("adaptive", Idle::Adaptive),
                    ("park", Idle::Park),
                ],
            )?,
            idle_spin: Duration::from_micros(given!(idle_spin_us).number(
                200,
                0,
                1_000_000,
                " microseconds",
            )?),
            memory_bytes: given!(memory_bytes).bytes(256 * MIB, 16 * MIB, 1024 * GIB)? as usize,
            wal_slot_bytes: slot,
            wal_slots: given!(wal_slots).number(8, 3, 1024, " slots")? as usize,
            max_connections: given!(max_connections).number(16_384, 1, 1 << 20, "")? as usize,
            max_in_flight_requests: given!(max_in_flight_requests).number(4096, 1, 65_536, "")?
                as usize,
            log_groups: given!(log_groups).number(u64::from(limits::DEFAULT_GROUPS), 1, 4096, "")?
                as u16,
            sync_interval: Duration::from_millis(given!(sync_interval_ms).number(
                1000,
                10,
                60_000,
                " milliseconds",
            )?),
            catch_up: given!(catch_up).choice(
                CatchUp::Sendfile,
                &[("sendfile", CatchUp::Sendfile), ("copy", CatchUp::Copy)],
            )?,
            log_level: given!(log_level).choice(
                tracing::Level::INFO,
                &[
                    ("error", tracing::Level::ERROR),
                    ("warn", tracing::Level::WARN),
                    ("info", tracing::Level::INFO),
                    ("debug", tracing::Level::DEBUG),
                    ("trace", tracing::Level::TRACE),
                ],
            )?,
            log_format: given!(log_format).choice(
                LogFormat::Auto,
                &[
                    ("auto", LogFormat::Auto),
                    ("human", LogFormat::Human),
                    ("json", LogFormat::Json),
                ],
            )?,
            shutdown_timeout: Duration::from_millis(given!(shutdown_timeout_ms).number(
                30_000,
                100,
                3_600_000,
                " milliseconds",
            )?),
        })
    }

    /// Files that a broker of this configuration has open for itself: neither connections nor segments.
    pub(crate) fn own_files(&self) -> u64 {
        // Counted in /proc/PID/fd.
        const OF_THE_PROCESS: u64 = 8;
        const OF_A_SHARD: u64 = 7;
        OF_THE_PROCESS + self.cpus.len() as u64 * (OF_A_SHARD + self.wal_slots as u64)
    }
}

pub(crate) fn choose_cpus(given: &Given<'_>, allowed: &[usize]) -> Result<Vec<usize>, ConfigError> {
    let Some(value) = given.value() else {
        // The rest is for the kernel's workers, for interrupts and for whatever else runs here;
        // those keep to the low numbers by habit.
        let shards = (allowed.len() / 2).clamp(1, DEFAULT_MOST_SHARDS);
        return Ok(allowed[allowed.len() - shards..].to_vec());
    };
    let offer = cpu_list::show(allowed);
    let Some(cpus) = cpu_list::parse_list(value) else {
        return given.refuse("give CPU numbers such as 0 or 2,3 or 2-5, one for each shard");
    };
    if let Some(cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        return given.refuse(format_args!(
            "CPU {cpu} is none that this process may use ({offer})"
        ));
    }
    if cpus.len() > usize::from(limits::MAX_SHARDS) {
        let most = limits::MAX_SHARDS;
        return given.refuse(format_args!("a broker has at most {most} shards"));
    }
    let mut sorted = cpus.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() < cpus.len() {
        return given.refuse("each shard needs a CPU of its own: name none twice");
    }
    Ok(cpus)
}

fn choose_listen(given: &Given<'_>, shards: usize) -> Result<SocketAddr, ConfigError> {
    let default = format!("127.0.0.1:{}", limits::DEFAULT_PORT);
    let value = given.value().unwrap_or(&default);
    let address = match value.to_socket_addrs().map(|mut found| found.next()) {
        Ok(Some(address)) => address,
        Ok(None) => return given.refuse("the name has no address"),
        Err(error) => {
            return given.refuse(format_args!(
                "give HOST:PORT, for example 127.0.0.1:7311 or [::]:7311 ({error})"
            ));
        }
    };
    let last = usize::from(address.port()) + shards - 1;
    if address.port() != 0 && last > usize::from(u16::MAX) {
        return given.refuse(format_args!(
            "{shards} shards listen on as many ports from {} on, and the last is past 65535",
            address.port()
        ));
    }
    Ok(address)
}

fn choose_advertise(
    given: &Given<'_>,
    listen: SocketAddr,
    given_listen: &Given<'_>,
) -> Result<String, ConfigError> {
    match (given.value(), given_listen.text) {
        (Some(""), _) => given.refuse("give the host name or address that clients connect to"),
        (Some(value), _) if value.contains(char::is_whitespace) => {
            given.refuse("give one host name or address, without spaces")
        }
        (Some(value), _) if value.parse::<SocketAddr>().is_ok() || has_port(value) => given.refuse(
            "give a host name or address without a port; each shard advertises its own port",
        ),
        (Some(value), _) if is_every_address(value) => given
            .refuse("give a host name or address that clients can connect to, not every address"),
        (Some(value), _) => Ok(value.into()),
        (None, Some(text)) if listen.ip().is_unspecified() => Err(ConfigError::Unadvertised {
            value: text.value.clone(),
            origin: text.origin.clone(),
        }),
        (None, _) => Ok(listen.ip().to_string()),
    }
}

fn is_every_address(value: &str) -> bool {
    let address = value.trim_start_matches('[').trim_end_matches(']');
    address.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified())
}

/// Whether it looks like `host:port` rather than a bare IPv6 address.
fn has_port(value: &str) -> bool {
    value.matches(':').count() == 1
}

/// What a setting is in a file.
fn takes(key: &str) -> &'static str {
    match key {
        "cpus" => "a string, a number, or a list of numbers",
        _ => "a string or a number",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[(&'static str, &str)], file: &str) -> Result<Config, ConfigError> {
        let file = Raw::parse(Path::new("ringtide.toml"), file)?;
        Config::from_raw(&Raw::from_flags(flags).over(file), &[0, 1, 2, 3])
    }

    #[test]
    fn without_a_word_from_the_operator_the_defaults_hold() {
        let config = config(&[], "").expect("defaults");
        assert_eq!(config.data_dir, Path::new("./ringtide-data"));
        assert_eq!(config.listen.to_string(), "127.0.0.1:7311");
        assert_eq!(config.advertise, "127.0.0.1");
        assert_eq!(config.cpus, [2, 3], "half of the CPUs, from the end");
        assert_eq!(config.idle, Idle::Adaptive);
        assert_eq!(config.log_groups, 64);
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let config = config(
            &[("idle", "spin")],
            "idle = \"park\"\nwal-slots = 4\nmemory-bytes = \"64MiB\"\ncpus = [1, 0]\n",
        )
        .expect("valid");
        assert_eq!(config.idle, Idle::Spin);
        assert_eq!(config.wal_slots, 4);
        assert_eq!(config.memory_bytes, 64 << 20);
        assert_eq!(config.cpus, [1, 0], "in the order given");
    }

    #[test]
    fn an_impossible_value_names_key_value_origin_and_what_would_do() {
        type Case = (
            &'static [(&'static str, &'static str)],
            &'static str,
            &'static [&'static str],
        );
        let cases: &[Case] = &[
            (
                &[],
                "wal-slots = 0",
                &["wal-slots = 0 (ringtide.toml, line 1)", "from 3 to 1024"],
            ),
            (
                &[("wal-slots", "many")],
                "",
                &["wal-slots = many", "--wal-slots", "from 3"],
            ),
            (
                &[("idle", "sleep")],
                "",
                &["idle = sleep", "spin, adaptive, park"],
            ),
            (&[], "idle = 3", &["idle = 3", "spin, adaptive, park"]),
            (&[("cpus", "0,9")], "", &["cpus = 0,9", "CPU 9", "0-3"]),
            (&[("cpus", "1,1")], "", &["cpus = 1,1", "none twice"]),
            (&[("cpus", "x")], "", &["cpus = x", "for each shard"]),
            (&[("listen", "here")], "", &["listen = here", "HOST:PORT"]),
            (
                &[("listen", "127.0.0.1:65535"), ("cpus", "0,1")],
                "",
                &["past 65535"],
            ),
            (
                &[("listen", "0.0.0.0:7311")],
                "",
                &[
                    "listen = 0.0.0.0:7311 (--listen)",
                    "every address",
                    "--advertise HOST",
                    "advertise = \"HOST\"",
                ],
            ),
            (
                &[],
                "\nlisten = \"[::]:7311\"",
                &["listen = [::]:7311 (ringtide.toml, line 2)", "--advertise"],
            ),
            (
                &[("advertise", "host:1")],
                "",
                &["advertise = host:1", "without a port"],
            ),
            (
                &[("memory-bytes", "1")],
                "",
                &["memory-bytes = 1", "from 16 MiB"],
            ),
            (
                &[("memory-bytes", "64MB")],
                "",
                &["64MB", "KiB, MiB or GiB"],
            ),
            (
                &[("wal-slot-bytes", "67108865")],
                "",
                &["whole number of MiB"],
            ),
            (
                &[("advertise", "[::]")],
                "",
                &["advertise", "not every address"],
            ),
            (
                &[("advertise", "a b")],
                "",
                &["advertise", "without spaces"],
            ),
            (
                &[("data-dir", "")],
                "",
                &["data-dir", "path of a directory"],
            ),
            (
                &[],
                "data-dir = \"a\\u0000b\"",
                &["data-dir", "ringtide.toml, line 1", "without NUL"],
            ),
        ];
        for (flags, file, words) in cases {
            let message = config(flags, file).expect_err("impossible").to_string();
            for word in *words {
                assert!(message.contains(word), "{message:?} does not say {word:?}");
            }
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        let message = config(&[], "wal-slot = 4")
            .expect_err("unknown")
            .to_string();
        assert!(
            message.contains("\"wal-slot\"") && message.contains("\"wal-slots\""),
            "{message}"
        );
        let message = config(&[], "colour = 4").expect_err("unknown").to_string();
        assert!(!message.contains("did you mean"), "{message}");
    }

    #[test]
    fn a_value_of_an_impossible_type_and_a_broken_file_are_told_apart() {
        let message = config(&[], "[listen]\nhost = \"x\"")
            .expect_err("table")
            .to_string();
        assert!(message.contains("listen cannot be a table"), "{message}");
        let message = config(&[], "listen = ").expect_err("syntax").to_string();
        assert!(message.contains("not TOML"), "{message}");
    }

    #[test]
    fn an_error_in_the_file_names_its_line() {
        for wrong in [
            "colour = 4",
            "listen.host = 3",
            "wal-slots = 0",
            "idle = ",
            "idle",
        ] {
            let file = format!("# a comment\nlog-level = \"warn\"\n\n{wrong}\ncpus = [0]\n");
            let message = config(&[], &file).expect_err("wrong").to_string();
            assert!(
                message.contains("ringtide.toml, line 4") && !message.contains('\n'),
                "{wrong}: {message}"
            );
        }
    }

    #[test]
    fn the_operations_manual_documents_every_setting() {
        let manual = include_str!("../../../docs/OPERATIONS.md");
        for name in Raw::names() {
            assert!(
                manual.contains(&format!("`{name}`")),
                "docs/OPERATIONS.md lacks {name}"
            );
        }
    }
}
