//! What a load is like, as flags and as files: the same names in both, and flags win.
//!
//! The files in perf/workloads/ are part of the program and found by their names.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ringtide_client::{Acks, Codec, Visibility};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::BenchError;
use crate::feed::Feed;
use crate::open_loop::schedule::{Keys, Schedule};
use crate::open_loop::{Plan, Size};

/// The longest time that is taken for meant, in seconds.
const LONGEST_S: f64 = 7.0 * 86_400.0;
/// Messages of the feed that is made up when none is given.
const GENERATED_MESSAGES: usize = 70_000;

/// Those that are part of the program.
const BUNDLED: [(&str, &str); 6] = [
    ("market-data", include_str!("../workloads/market-data.toml")),
    ("order-entry", include_str!("../workloads/order-entry.toml")),
    ("telemetry", include_str!("../workloads/telemetry.toml")),
    ("fan-out", include_str!("../workloads/fan-out.toml")),
    (
        "log-shipping",
        include_str!("../workloads/log-shipping.toml"),
    ),
    (
        "replay-beside-live",
        include_str!("../workloads/replay-beside-live.toml"),
    ),
];

/// When a record counts as published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AcksLevel {
    /// Once it has left
    None,
    /// Once it is in the broker's memory
    Accepted,
    /// Once it is on stable storage
    Durable,
}

/// How batches are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// As it is
    None,
    /// LZ4 frame
    Lz4,
    /// Zstandard
    Zstd,
}

/// When subscribers are given a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Visible {
    /// Once it is on stable storage
    Durable,
    /// Once it is in the broker's memory
    Accepted,
}

/// Bytes of a record's value, or "feed".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeText(Size);

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(u64);

/// Seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match text[digits.len()..].trim() {
            "" | "B" => Some(0),
            "KiB" => Some(10),
            "MiB" => Some(20),
            "GiB" => Some(30),
            _ => None,
        };
        let bytes = digits.parse::<u64>().ok().zip(shift);
        bytes
            .and_then(|(bytes, shift)| bytes.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| {
                format!("{text:?} are no bytes: give a number, or one with KiB, MiB or GiB")
            })
    }
}

impl FromStr for SizeText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "feed" {
            return Ok(Self(Size::Feed));
        }
        let Bytes(bytes) = text
            .parse()
            .map_err(|why| format!("{why}, or feed: as large as its messages"))?;
        Ok(Self(Size::Bytes(bytes as usize)))
    }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<f64>()
            .ok()
            .filter(|seconds| (0.0..=LONGEST_S).contains(seconds))
            .map(|seconds| Self(Duration::from_secs_f64(seconds)))
            .ok_or_else(|| format!("give seconds such as 10 or 0.5, at most {LONGEST_S}"))
    }
}

/// A value of a file as its flag would be written.
fn text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = String>,
{
    struct Any;
    impl serde::de::Visitor<'_> for Any {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a number")
        }

        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }

        fn visit_i64<E>(self, number: i64) -> Result<String, E> {
            Ok(number.to_string())
        }

        fn visit_f64<E>(self, number: f64) -> Result<String, E> {
            Ok(number.to_string())
        }
    }
    let text = deserializer.deserialize_any(Any)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// A load; what is not given has its default.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Workload {
    /// What it stands for.
    #[arg(skip)]
    pub about: Option<String>,
    /// When a record counts as published [default: durable]
    #[arg(long, value_name = "LEVEL")]
    pub acks: Option<AcksLevel>,
    /// When subscribers are given a record [default: as --acks]
    #[arg(long, value_name = "LEVEL")]
    pub visible: Option<Visible>,
    /// What each record has: bytes, plain or with KiB, at least 32; or feed [default: 128]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    #[serde(default, deserialize_with = "text")]
    pub size: Option<SizeText>,
    /// Records a second, in all [default: 10000]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub rate: Option<f64>,
    /// When records are due: constant, poisson, bursts:N (records at once), ramp:FROM (records a second
    /// at the start, --rate in the end), or feed [default: constant; with --feed: feed]
    #[arg(long, value_name = "S")]
    #[serde(default, deserialize_with = "text")]
    pub schedule: Option<Schedule>,
    /// A recorded feed (Databento Binary Encoding, market by order), for its times, keys and sizes;
    /// "generated" makes one up
    #[arg(long, value_name = "FILE")]
    pub feed: Option<PathBuf>,
    /// How much faster than recorded the feed is played [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub speed: Option<f64>,
    /// Longer silences of the feed, as played, are cut to this; seconds [default: 1]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    #[serde(default, deserialize_with = "text")]
    pub max_silence: Option<Seconds>,
    /// Keys of records: none, uniform:N, zipf:N, or feed [default: none; with --feed: feed]
    #[arg(long, value_name = "K")]
    #[serde(default, deserialize_with = "text")]
    pub keys: Option<Keys>,
    /// Each with connections of its own [default: 1]
    #[arg(long, value_name = "N")]
    pub publishers: Option<u32>,
    /// Each to everything, from the beginning [default: 1]
    #[arg(long, value_name = "N")]
    pub subscribers: Option<u32>,
    /// Subscribers that read everything from the first record on while it is measured [default: 0]
    #[arg(long, value_name = "N")]
    pub replayers: Option<u32>,
    /// What is published before the run, for those; bytes, plain or with KiB, MiB or GiB [default: 0]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    #[serde(default, deserialize_with = "text")]
    pub preload: Option<Bytes>,
    /// Of the topic [default: 1]
    #[arg(long, value_name = "N")]
    pub partitions: Option<u32>,
    /// Records of a batch, at the most: so many come due at once and leave together; no more than a burst
    /// has [default: 1]
    #[arg(long, value_name = "N")]
    pub batch: Option<u32>,
    /// How batches are compressed [default: none]
    #[arg(long, value_name = "C")]
    pub compression: Option<Compression>,
    /// Batches of a connection that are not answered, at the most; what is due beyond waits and its time
    /// runs [default: what the broker allows]
    #[arg(long, value_name = "N")]
    pub in_flight: Option<u32>,
    /// How long is measured; seconds [default: 10]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    #[serde(default, deserialize_with = "text")]
    pub duration: Option<Seconds>,
    /// How long is published before that; seconds [default: 1]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    #[serde(default, deserialize_with = "text")]
    pub warm_up: Option<Seconds>,
    /// How long is waited for answers and deliveries when nothing arrives any more, and how long what
    /// was due is still sent after the end; seconds [default: 10]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    #[serde(default, deserialize_with = "text")]
    pub drain: Option<Seconds>,
    /// Chooses among schedules of the same kind [default: 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl Workload {
    /// The names of those that are part of the program.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUNDLED.iter().map(|(name, _)| *name)
    }

    /// The one of this name, or the one in this file.
    ///
    /// # Errors
    /// When there is none, or it says something that it cannot: the file, and what is wrong with it.
    pub fn load(name: &str) -> Result<Self, BenchError> {
        let bundled = BUNDLED.iter().find(|(known, _)| *known == name);
        let text = match bundled {
            Some((_, text)) => (*text).to_owned(),
            None => std::fs::read_to_string(Path::new(name)).map_err(|error| {
                let names: Vec<_> = Self::names().collect();
                BenchError::Usage(format!(
                    "workload {name}: {error}; give a file, or one of {}",
                    names.join(", ")
                ))
            })?,
        };
        toml::from_str(&text)
            .map_err(|error| BenchError::Usage(format!("workload {name}: {}", one_line(&error))))
    }

    /// This, and where it says nothing the other.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        macro_rules! first {
            ($($field:ident)*) => { Self { $($field: self.$field.or(other.$field)),* } };
        }
        first!(about acks visible size rate schedule feed speed max_silence keys publishers
            subscribers replayers preload partitions batch compression in_flight duration warm_up
            drain seed)
    }

    /// What of this is of no use without a schedule.
    #[must_use]
    pub fn flag_of_a_schedule(&self) -> Option<&'static str> {
        let given = [
            ("visible", self.visible.is_some()),
            ("rate", self.rate.is_some()),
            ("schedule", self.schedule.is_some()),
            ("feed", self.feed.is_some()),
            ("speed", self.speed.is_some()),
            ("max-silence", self.max_silence.is_some()),
            ("keys", self.keys.is_some()),
            ("publishers", self.publishers.is_some()),
            ("subscribers", self.subscribers.is_some()),
            ("replayers", self.replayers.is_some()),
            ("preload", self.preload.is_some()),
            ("partitions", self.partitions.is_some()),
            ("batch", self.batch.is_some()),
            ("compression", self.compression.is_some()),
            ("in-flight", self.in_flight.is_some()),
            ("drain", self.drain.is_some()),
            ("seed", self.seed.is_some()),
        ];
        given.iter().find(|(_, is)| *is).map(|(flag, _)| *flag)
    }

    /// The feed that it needs, if it needs one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_feed(&self) -> Result<Option<Feed>, BenchError> {
        let feed = self.feed.as_deref().map(|path| {
            if path.as_os_str() == "generated" {
                return Ok(Feed::generated(1, GENERATED_MESSAGES));
            }
            Feed::read(path)
        });
        feed.transpose()
    }

    /// What is asked for of the broker.
    #[must_use]
    pub fn acks(&self) -> Acks {
        match self.acks {
            Some(AcksLevel::None) => Acks::None,
            Some(AcksLevel::Accepted) => Acks::Accepted,
            Some(AcksLevel::Durable) | None => Acks::Durable,
        }
    }

    /// When subscribers are given a record.
    #[must_use]
    pub fn visible(&self) -> Visibility {
        match self.visible {
            Some(Visible::Durable) => Visibility::Durable,
            Some(Visible::Accepted) => Visibility::Accepted,
            None if self.acks() == Acks::Durable => Visibility::Durable,
            None => Visibility::Accepted,
        }
    }

    /// How batches are compressed.
    #[must_use]
    pub fn codec(&self) -> Codec {
        match self.compression {
            None | Some(Compression::None) => Codec::None,
            Some(Compression::Lz4) => Codec::Lz4,
            Some(Compression::Zstd) => Codec::Zstd,
        }
    }

    /// With all defaults.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let plan = Plan::default();
        let has_feed = self.feed.is_some();
        let seconds = |given: Option<Seconds>, else_: Duration| given.map_or(else_, |s| s.0);
        Plan {
            size: self.size.map_or(plan.size, |size| size.0),
            schedule: self.schedule.unwrap_or(match has_feed {
                true => Schedule::Feed,
                false => plan.schedule,
            }),
            rate_per_s: self.rate.unwrap_or(plan.rate_per_s),
            keys: self.keys.unwrap_or(match has_feed {
                true => Keys::Feed,
                false => plan.keys,
            }),
            publishers: self.publishers.unwrap_or(plan.publishers),
            subscribers: self.subscribers.unwrap_or(plan.subscribers),
            replayers: self.replayers.unwrap_or(plan.replayers),
            preload_bytes: self.preload.map_or(plan.preload_bytes, |bytes| bytes.0),
            partitions: self.partitions.unwrap_or(plan.partitions),
            batch: self.batch.unwrap_or(plan.batch),
            duration: seconds(self.duration, plan.duration),
            warm_up: seconds(self.warm_up, plan.warm_up),
            drain: seconds(self.drain, plan.drain),
            speed: self.speed.unwrap_or(plan.speed),
            max_silence: seconds(self.max_silence, plan.max_silence),
            seed: self.seed.unwrap_or(plan.seed),
            ..plan
        }
    }
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_are_part_of_the_program_can_be_done_and_say_what_they_stand_for() {
        for name in Workload::names() {
            let workload = Workload::load(name).unwrap_or_else(|e| panic!("{e}"));
            let about = workload.about.as_deref().unwrap_or_default();
            assert!(about.len() > 20, "{name} says {about:?}");
            let feed = workload.read_feed().expect("made up");
            workload
                .plan()
                .check(feed.as_ref())
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    #[test]
    fn flags_win_over_files_and_files_over_defaults() {
        let file: Workload = toml::from_str("rate = 5\nsize = \"1KiB\"").expect("a workload");
        let flags = Workload {
            rate: Some(7.0),
            ..Workload::default()
        };
        let plan = flags.or(file).plan();
        assert_eq!((plan.rate_per_s, plan.size), (7.0, Size::Bytes(1024)));
        assert_eq!(plan.publishers, 1);
    }

    #[test]
    fn what_a_file_cannot_say_is_refused_with_the_reason() {
        for (text, why) in [
            ("rat = 5", "rat"),
            ("schedule = \"now\"", "poisson"),
            ("size = \"big\"", "KiB"),
            ("duration = -1", "seconds"),
            ("acks = \"maybe\"", "durable"),
        ] {
            let error = toml::from_str::<Workload>(text).expect_err(text);
            assert!(one_line(&error).contains(why), "{error}");
        }
        let error = Workload::load("absent.toml").expect_err("absent");
        assert!(error.to_string().contains("market-data"), "{error}");
    }

    #[test]
    fn a_feed_gives_times_and_keys_unless_others_are_asked_for() {
        let feed = Workload {
            feed: Some("generated".into()),
            ..Workload::default()
        };
        let plan = feed.plan();
        assert_eq!((plan.schedule, plan.keys), (Schedule::Feed, Keys::Feed));
        let plan = Workload {
            schedule: Some(Schedule::Constant),
            ..feed
        }
        .plan();
        assert_eq!((plan.schedule, plan.keys), (Schedule::Constant, Keys::Feed));
    }
}
