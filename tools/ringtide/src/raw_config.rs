//! The settings of `ringtide serve` as the operator wrote them: text with its origin, unchecked.
//!
//! One declaration gives the flag, its help, the key of the TOML file and the order in which the
//! manual lists them, so the names cannot differ.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::Spanned;

use crate::config::ConfigError;

/// A file of settings is no longer than this.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where a setting stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// On the command line.
    Flag(&'static str),
    /// In this line of this file.
    File(PathBuf, usize),
    /// Nowhere.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag("") => f.write_str("command line"),
            Self::Flag(name) => write!(f, "--{name}"),
            Self::File(path, line) => write!(f, "{}, line {line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) value: String,
    pub(crate) origin: Origin,
}

impl FromStr for Text {
    type Err = std::convert::Infallible;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        Ok(Self {
            value: value.into(),
            origin: Origin::Flag(""),
        })
    }
}

macro_rules! settings {
    ($($(#[doc = $help:literal])+ $field:ident, $name:literal, $value:literal;)*) => {
        /// Every setting, absent or as written.
        #[derive(Clone, Debug, Default, clap::Args)]
        pub(crate) struct Raw {
            $($(#[doc = $help])+
            #[arg(long = $name, value_name = $value, allow_negative_numbers = true)]
            pub(crate) $field: Option<Text>,)*
        }

        impl Raw {
            /// The names, in the manual's order.
            pub(crate) fn names() -> &'static [&'static str] {
                &[$($name,)*]
            }

            /// The name of the setting that a field holds.
            pub(crate) fn name_of(field: &str) -> &'static str {
                match field {
                    $(stringify!($field) => $name,)*
                    _ => unreachable!("the field {field} was declared without a name"),
                }
            }

            fn field(&mut self, name: &str) -> Option<&mut Option<Text>> {
                match name {
                    $($name => Some(&mut self.$field),)*
                    _ => None,
                }
            }

            /// These settings, and those of `below` where these are silent.
            pub(crate) fn over(self, below: Self) -> Self {
                Self {
                    $($field: self.$field.map(|text| text.named($name)).or(below.$field),)*
                }
            }
        }
    };
}

settings! {
    /// The directory that holds everything [default: ./ringtide-data]
    data_dir, "data-dir", "DIR";
    /// Where the first shard listens; shard i listens on port + i [default: 127.0.0.1:7311]
    listen, "listen", "HOST:PORT";
    /// The host that clients are told to connect to, without a port; must be given when listening
    /// on all addresses (0.0.0.0 or [::]) [default: that of --listen]
    advertise, "advertise", "HOST";
    /// The CPU of each shard, for example 0 or 2,3 or 2-5 [default: the last half, at most 4]
    cpus, "cpus", "LIST";
    /// What a shard does when there is nothing to do: spin, adaptive or park [default: adaptive]
    idle, "idle", "POLICY";
    /// How long an adaptive shard looks before it sleeps, in microseconds [default: 200]
    idle_spin_us, "idle-spin-us", "N";
    /// Memory of each shard for records on their way; bytes, plain or with KiB, MiB or GiB
    /// [default: 256MiB]
    memory_bytes, "memory-bytes", "BYTES";
    /// Size of each file of the write-ahead log; bytes, plain or with KiB, MiB or GiB
    /// [default: 64MiB]
    wal_slot_bytes, "wal-slot-bytes", "BYTES";
    /// Files of each shard's write-ahead log [default: 8]
    wal_slots, "wal-slots", "N";
    /// The most connections of one shard [default: 16384]
    max_connections, "max-connections", "N";
    /// The most requests of one connection that are not answered yet [default: 4096]
    max_in_flight_requests, "max-in-flight-requests", "N";
    /// Log groups of a new data directory; fixed for its life [default: 64]
    log_groups, "log-groups", "N";
    /// How often segments are synced, in milliseconds [default: 1000]
    sync_interval_ms, "sync-interval-ms", "N";
    /// How records that lie in segments are sent: sendfile or copy [default: sendfile]
    catch_up, "catch-up", "HOW";
    /// What is logged: error, warn, info, debug or trace [default: info]
    log_level, "log-level", "LEVEL";
    /// What log lines look like: auto (human on a terminal, else json), human or json [default: auto]
    log_format, "log-format", "FORMAT";
    /// How long a stopping broker may take to drain, in milliseconds [default: 30000]
    shutdown_timeout_ms, "shutdown-timeout-ms", "N";
}

impl Text {
    /// Names the flag, which the parser of its value does not know.
    fn named(mut self, name: &'static str) -> Self {
        if let Origin::Flag(flag) = &mut self.origin {
            *flag = name;
        }
        self
    }
}

impl Raw {
    /// The settings in a TOML file.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |why: String| ConfigError::Unreadable {
            path: path.into(),
            why,
        };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|error| unreadable(error.to_string()))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(unreadable(format!(
                "it has more than {MAX_FILE_BYTES} bytes"
            )));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            ConfigError::NotText {
                path: path.into(),
                line: valid.iter().filter(|&&byte| byte == b'\n').count() + 1,
            }
        })?;
        Self::parse(path, &text)
    }

    /// The settings in the text of a TOML file.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let line_of = |at: usize| text[..at].matches('\n').count() + 1;
        let table: BTreeMap<Spanned<String>, Spanned<toml::Value>> =
            toml::from_str(text).map_err(|error| ConfigError::Syntax {
                path: path.into(),
                line: error.span().map_or(1, |span| line_of(span.start)),
                why: error.message().replace('\n', ", "),
            })?;
        let mut raw = Self::default();
        for (key, value) in table {
            let line = line_of(key.span().start);
            let (key, value) = (key.into_inner(), value.into_inner());
            let Some(field) = raw.field(&key) else {
                let nearest = nearest(&key);
                return Err(ConfigError::UnknownKey {
                    path: path.into(),
                    line,
                    key,
                    nearest,
                });
            };
            let plain = plain(&value).filter(|_| key == "cpus" || !value.is_array());
            let value = plain.ok_or_else(|| ConfigError::WrongType {
                path: path.into(),
                line,
                what: type_name(&value),
                key,
            })?;
            *field = Some(Text {
                value,
                origin: Origin::File(path.into(), line),
            });
        }
        Ok(raw)
    }

    /// Settings by their names; or why one of them is none.
    pub(crate) fn from_pairs(pairs: &[(String, String)]) -> Result<Self, String> {
        let mut raw = Self::default();
        for (key, value) in pairs {
            let name = Self::names().iter().find(|name| *name == key);
            let Some((name, field)) = name.and_then(|name| Some((name, raw.field(name)?))) else {
                let nearest = nearest(key).map(|name| format!(" (did you mean {name:?}?)"));
                let nearest = nearest.unwrap_or_default();
                return Err(format!(
                    "there is no setting {key:?}{nearest}; `ringtide serve --help` lists them all"
                ));
            };
            *field = Some(Text {
                value: value.clone(),
                origin: Origin::Flag(name),
            });
        }
        Ok(raw)
    }

    #[cfg(test)]
    pub(crate) fn from_flags(flags: &[(&'static str, &str)]) -> Self {
        let pairs = flags.iter();
        let pairs: Vec<_> = pairs.map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Self::from_pairs(&pairs).expect("settings")
    }
}

/// A TOML value as it would be written in a flag.
fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<_>> = items
                .iter()
                .map(|v| v.as_integer().map(|number| number.to_string()))
                .collect();
            Some(items?.join(","))
        }
        toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

fn type_name(value: &toml::Value) -> &'static str {
    match value {
        toml::Value::Table(_) => "a table",
        toml::Value::Datetime(_) => "a date",
        toml::Value::Array(_) => "such a list",
        _ => "this",
    }
}

/// The known name most like `key`, if any is like it at all.
fn nearest(key: &str) -> Option<&'static str> {
    let key = key.replace('_', "-").to_lowercase();
    let likeness = |name: &&str| strsim::jaro_winkler(name, &key);
    let best = Raw::names()
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .copied()?;
    (likeness(&best) > 0.8).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_end_is_refused() {
        let error = Raw::read(Path::new("/dev/zero")).expect_err("no settings");
        assert!(error.to_string().contains("more than 1048576"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_text_is_refused_as_that_with_the_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ringtide.toml");
        std::fs::write(&path, b"idle = \"park\"\n# caf\xe9\n").expect("written");
        let said = Raw::read(&path).expect_err("Latin-1").to_string();
        assert!(
            said.contains("ringtide.toml, line 2: this is not UTF-8 text"),
            "{said}"
        );
    }
}
