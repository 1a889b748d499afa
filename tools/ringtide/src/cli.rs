//! The command line: names, arguments and their help. These names are a contract with scripts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench::BenchArgs;
use crate::raw_config::{Raw, Text};
use crate::setting::{parse_bytes, show_bytes};

/// The version, and the commit of the source that it was built from.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("RINGTIDE_COMMIT"),
    ")"
);

/// A storage-first message broker for Linux: durable, replayable logs in microseconds
#[derive(Debug, Parser)]
#[command(name = "ringtide", version = VERSION, after_long_help = crate::exit::table())]
#[command(arg_required_else_help = true, args_override_self = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a broker
    ///
    /// SIGTERM or SIGINT ends it when what was accepted is stored; a second signal ends it at once.
    /// docs/OPERATIONS.md says more of each setting.
    Serve(Box<ServeArgs>),
    /// Create, list, describe, alter or delete topics
    #[command(subcommand)]
    Topic(TopicCommand),
    /// Publish records from standard input, one a line
    ///
    /// A record that is not acknowledged within 30 seconds is given up, and nothing after it is taken:
    /// standard error says how many records were acknowledged, which lines were not, and of which
    /// lines that is unknown. SIGINT or SIGTERM ends reading, and what was read is still published if
    /// that takes no more than 2 seconds; a second signal ends it at once.
    Produce(ProduceArgs),
    /// Write records to standard output
    ///
    /// Partitions are read side by side, each in the order of its offsets. Without --follow it gives
    /// up when the broker has been away for 30 seconds. With --follow it waits for the broker, and
    /// SIGINT or SIGTERM ends it with success.
    Consume(ConsumeArgs),
    /// Measure how fast a broker is
    ///
    /// It makes a topic of its own and deletes it afterwards. A run that was disturbed says so and
    /// ends with exit code 3.
    Bench(Box<BenchArgs>),
    /// Show what a file of a stopped broker holds, and whether it is damaged
    ///
    /// A line that begins with BAD says what is damaged and where; the exit code is then 7. That a
    /// file ends in an interrupted write, or goes on in another file, is no damage.
    Inspect {
        /// What kind of file it is
        kind: FileKind,
        /// The file, in a data directory or copied out of one
        path: PathBuf,
    },
    /// Read a stopped broker's data directory to the last byte and report what is wrong with it
    ///
    /// Nothing is changed. A line that begins with PROBLEM says that records are lost or changed, or
    /// that the broker will not start; the exit code is then 7. A note mends itself.
    Verify {
        /// The directory
        #[arg(long, value_name = "DIR", default_value = "./ringtide-data")]
        data_dir: PathBuf,
    },
    /// Mend a stopped broker's data directory as far as that goes without losing records, and say what goes no further
    ///
    /// Indexes that are wrong are removed: they are built anew. Offsets and epochs of stored batches are written
    /// anew where the segment's checksum proves them. Nothing else is changed; DIR/repair.log has what was done.
    /// The exit code is 7 if problems are left.
    ///
    /// With --cut-log: if a start is refused because the write-ahead log is damaged, and there is no copy to restore,
    /// gives up what the log holds from the damage on. What that is, as far as it can be read, is printed, and kept in
    /// the directory that --keep names; only then the log is cut, and only if that is confirmed. The exit code is 13 if
    /// the directory is left as it was.
    Repair(RepairArgs),
    /// Check whether this host suits a broker, and say what would mend it
    ///
    /// Nothing is changed. The exit code is 10 if a broker cannot run on this host, and 12 if it
    /// cannot use the data directory.
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// A TOML file whose keys are the flags below without the leading dashes; flags win
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: Raw,
}

#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    /// The directory
    #[arg(long, value_name = "DIR", default_value = "./ringtide-data")]
    pub(crate) data_dir: PathBuf,
    /// Cut the write-ahead log off where it is damaged; acknowledged records are lost
    #[arg(long, requires = "keep")]
    pub(crate) cut_log: bool,
    /// Where what is cut is kept: a directory that is empty or not there yet, outside of the data directory
    #[arg(long, value_name = "DIR", requires = "cut_log")]
    pub(crate) keep: Option<PathBuf>,
    /// Cut without asking; who is not on a terminal has to say so
    #[arg(long, requires = "cut_log")]
    pub(crate) yes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileKind {
    /// A slot of the write-ahead log: wal/NUMBER.wal
    Wal,
    /// A segment of a partition: partitions/ID/OFFSET.log
    Segment,
    /// The index of a segment: partitions/ID/OFFSET.index
    Index,
    /// The snapshot of a log group: groups/NUMBER.snapshot
    Snapshot,
}

/// Which broker to talk to.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServerArgs {
    /// Any shard of the broker; without a port 7311, an IPv6 address in brackets
    #[arg(
        long,
        value_name = "HOST[:PORT]",
        env = "RINGTIDE_SERVER",
        default_value = "127.0.0.1:7311",
        value_parser = server
    )]
    pub(crate) server: String,
}

pub(crate) fn server(text: &str) -> Result<String, String> {
    let host = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') && port.parse::<u16>().is_ok() => host,
        _ => text,
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || (host.contains(':') && !bracketed) {
        return Err(
            "give HOST or HOST:PORT, for example broker-1:7311, or an IPv6 address in brackets \
             such as [::1]:7311"
                .into(),
        );
    }
    Ok(text.into())
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic
    Create {
        /// Letters, digits, '.', '_' and '-', at most 249 of them
        name: String,
        /// How many partitions it has
        #[arg(
            long,
            value_name = "N",
            default_value_t = 1,
            value_parser = partitions(),
            allow_negative_numbers = true
        )]
        partitions: u32,
        #[command(flatten)]
        settings: TopicSettingArgs,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// List all topics, with their partitions and when consumers are given a record
    List {
        /// Write JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show a topic's settings and partitions
    ///
    /// Of each partition: the first offset that can be read, the next that a consumer will be given,
    /// the next that will be written, segments and their bytes, the shard that owns it, and its
    /// leader epoch.
    Describe {
        /// The topic
        name: String,
        /// Write JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Change settings, or add partitions; what is not named stays as it is
    Alter {
        /// The topic
        name: String,
        /// How many partitions it shall have; may only grow
        #[arg(
            long,
            value_name = "N",
            value_parser = partitions(),
            allow_negative_numbers = true
        )]
        partitions: Option<u32>,
        #[command(flatten)]
        settings: TopicSettingArgs,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Delete a topic and everything in it
    Delete {
        /// The topic
        name: String,
        #[command(flatten)]
        server: ServerArgs,
    },
}

fn partitions() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(ringtide_schema::limits::MAX_PARTITIONS))
}

/// Bytes, plain or with a unit, as in the settings of a broker, which knows the bounds.
pub(crate) fn bytes(text: &str) -> Result<u32, String> {
    parse_bytes(text)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| {
            "give bytes below 4 GiB, as a number or with KiB, MiB or GiB behind it".into()
        })
}

fn bytes_or_unbounded(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    parse_bytes(text)
        .and_then(|bytes| i64::try_from(bytes).ok())
        .ok_or_else(|| {
            "give bytes, as a number or with KiB, MiB or GiB behind it, or -1: without bound".into()
        })
}

/// The settings of a topic; what is not given is left to the broker or unchanged.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TopicSettingArgs {
    /// Records older than this may be removed; milliseconds, -1: kept for ever
    /// [default of a new topic: 7 days]
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    pub(crate) retention_ms: Option<i64>,
    /// A partition larger than this loses its oldest segments; bytes, plain or with KiB, MiB or GiB,
    /// -1: no bound [new topic: -1]
    #[arg(
        long,
        value_name = "BYTES",
        value_parser = bytes_or_unbounded,
        allow_negative_numbers = true
    )]
    pub(crate) retention_bytes: Option<i64>,
    /// A segment is sealed before it grows past this; bytes, plain or with KiB, MiB or GiB
    /// [new topic: 256MiB]
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    pub(crate) segment_bytes: Option<u32>,
    /// When consumers are given a record [new topic: durable]
    #[arg(long, value_name = "WHEN")]
    pub(crate) visible: Option<VisibleArg>,
    /// The largest batch of records, and so the largest record; bytes, plain or with KiB or MiB
    /// [new topic: 1MiB]
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    pub(crate) max_batch_bytes: Option<u32>,
    /// Whose clock timestamps are: the publisher's or the broker's [new topic: create]
    #[arg(long, value_name = "WHOSE")]
    pub(crate) timestamp_type: Option<TimestampArg>,
    /// How far ahead of the broker's clock a timestamp may be; milliseconds, -1: no bound
    /// [new topic: 1 hour]
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    pub(crate) timestamp_max_ahead_ms: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VisibleArg {
    /// Once it is on stable storage
    Durable,
    /// Once it is in the broker's memory
    Accepted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TimestampArg {
    /// The publisher's, when it made the record
    Create,
    /// The broker's, when it appended the record
    Append,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcksArg {
    /// Once the broker has handled it: that it was refused is not heard of
    None,
    /// Once it is in the broker's memory
    Accepted,
    /// Once it is on stable storage
    Durable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompressionArg {
    /// As it is
    None,
    /// Fast
    Lz4,
    /// Small
    Zstd,
}

#[derive(Debug, Args)]
pub(crate) struct ProduceArgs {
    /// The topic
    pub(crate) topic: String,
    /// Publish everything to this partition [default: by key, or in turn without keys]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) partition: Option<u32>,
    /// What ends the key of each line; the rest is the value [default: lines have no key]
    #[arg(long, value_name = "S", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) key_separator: Option<String>,
    /// When a record counts as published
    #[arg(long, value_name = "LEVEL", default_value = "durable")]
    pub(crate) acks: AcksArg,
    /// What a batch may grow to; bytes, plain or with KiB or MiB. A larger record has a batch of its
    /// own, so 1 sends each alone
    #[arg(
        long,
        value_name = "BYTES",
        default_value = "256KiB",
        value_parser = batch_bytes,
        allow_negative_numbers = true
    )]
    pub(crate) batch: u32,
    /// How batches are compressed
    #[arg(long, value_name = "C", default_value = "none")]
    pub(crate) compression: CompressionArg,
    /// Print "PARTITION OFFSET" for each record, in input order, once it is acknowledged; the offset
    /// is "unknown" if the broker has the record but not its offset any more, and "- -" stands for
    /// a record that failed
    #[arg(long)]
    pub(crate) offsets: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

fn batch_bytes(text: &str) -> Result<u32, String> {
    let most = ringtide_schema::limits::MAX_BATCH_BYTES as u32;
    bytes(text)
        .ok()
        .filter(|bytes| (1..=most).contains(bytes))
        .ok_or_else(|| {
            let most = show_bytes(most.into());
            format!("give bytes from 1 to {most}, as a number or with KiB or MiB behind it")
        })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputArg {
    /// The value and a newline
    Value,
    /// A JSON object a line: partition, offset, timestamp, key, value, headers; what is not UTF-8 is
    /// base64, with "value_encoding": "base64" (or "key_encoding") beside it
    Json,
}

/// Where reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Earliest,
    Latest,
    Committed,
    Offset(u64),
    /// Milliseconds since 1970.
    Time(u64),
}

impl std::str::FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let from = match text {
            "earliest" => Some(Self::Earliest),
            "latest" => Some(Self::Latest),
            "committed" => Some(Self::Committed),
            _ => match text.strip_prefix('@') {
                // Timestamps are signed on the wire.
                Some(ms) => ms
                    .parse::<i64>()
                    .ok()
                    .and_then(|ms| ms.try_into().ok())
                    .map(Self::Time),
                None => text.parse().ok().map(Self::Offset),
            },
        };
        from.ok_or_else(|| {
            "give earliest, latest, committed, an offset from 0 on such as 42, or a time in \
             milliseconds since 1970 such as @1700000000000"
                .into()
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct ConsumeArgs {
    /// The topic
    pub(crate) topic: String,
    /// Read this partition only [default: all]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) partition: Option<u32>,
    /// Where to begin in each partition: earliest, latest, committed, OFFSET (the same one in each
    /// that is read; see --partition) or @UNIX_MS [default: committed with --name, else earliest]
    #[arg(long, value_name = "WHERE", allow_negative_numbers = true)]
    pub(crate) from: Option<From>,
    /// Commit what was written to standard output under this consumer's name, and go on from there
    /// the next time
    #[arg(long, value_name = "CONSUMER")]
    pub(crate) name: Option<String>,
    /// End after this many records; with fewer the exit code is 6
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) count: Option<u64>,
    /// Wait for records that are yet to come, rather than end where the topic ended at the start
    #[arg(long)]
    pub(crate) follow: bool,
    /// What is written for each record
    #[arg(long, value_name = "WHAT", default_value = "value")]
    pub(crate) output: OutputArg,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Check for this directory [default: ./ringtide-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<Text>,
    /// Check for shards on these CPUs [default: those that serve would take]
    #[arg(long, value_name = "LIST")]
    pub(crate) cpus: Option<Text>,
    /// Check for the broker of this configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Measure as well whether flushes of the device take the time that they should; writes 200 MiB
    /// in all, to a file of 1 MiB in the data directory, or in the nearest above it that exists
    #[arg(long)]
    pub(crate) flush_test: bool,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_start_is_a_word_an_offset_or_a_time() {
        assert_eq!("earliest".parse(), Ok(From::Earliest));
        assert_eq!("committed".parse(), Ok(From::Committed));
        assert_eq!("42".parse(), Ok(From::Offset(42)));
        assert_eq!("@1700000000000".parse(), Ok(From::Time(1_700_000_000_000)));
        for text in ["", "-1", "@", "@-1", "newest", "@18446744073709551615"] {
            assert!(text.parse::<From>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_server_may_be_given_anywhere_behind_the_command() {
        for line in [
            ["ringtide", "topic", "list", "--server", "h:1"].as_slice(),
            &["ringtide", "produce", "t", "--server", "h:1"],
            &["ringtide", "consume", "--server", "h:1", "t"],
        ] {
            Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        }
    }

    /// How a line is refused.
    fn refusal(line: &[&str]) -> String {
        let line = [&["ringtide"], line].concat();
        let refused = Cli::try_parse_from(&line);
        refused
            .err()
            .unwrap_or_else(|| panic!("{line:?}"))
            .to_string()
    }

    #[test]
    fn a_negative_number_is_refused_for_what_it_is() {
        for (line, words) in [
            (&["consume", "t", "--from", "-5"][..], "an offset from 0 on"),
            (&["consume", "t", "--count", "-5"], "invalid value '-5'"),
            (&["consume", "t", "--partition", "-1"], "invalid value '-1'"),
            (&["produce", "t", "--batch", "-1"], "from 1 to 1 MiB"),
            (&["topic", "create", "t", "--partitions", "-1"], "1..=4096"),
            (&["topic", "create", "t", "--segment-bytes", "-1"], "KiB"),
            (&["bench", "--size", "-1"], "invalid value '-1'"),
            (&["bench", "--duration", "-1"], "give seconds"),
        ] {
            let said = refusal(line);
            assert!(said.contains(words), "{line:?}: {said}");
            assert!(!said.contains("tip:"), "{line:?}: {said}");
        }
    }

    #[test]
    fn a_topics_bytes_are_written_as_a_brokers_are() {
        let line = [
            "ringtide",
            "topic",
            "create",
            "t",
            "--retention-bytes",
            "3GiB",
            "--segment-bytes",
            "64 MiB",
            "--max-batch-bytes",
            "4096",
        ];
        let cli = Cli::try_parse_from(line).expect("bytes");
        let Command::Topic(TopicCommand::Create { settings, .. }) = cli.command else {
            panic!("{:?}", cli.command);
        };
        assert_eq!(settings.retention_bytes, Some(3 << 30));
        assert_eq!(settings.segment_bytes, Some(64 << 20));
        assert_eq!(settings.max_batch_bytes, Some(4096));
        for bytes in ["64MB", "4GiB", "many"] {
            let said = refusal(&["topic", "create", "t", "--segment-bytes", bytes]);
            assert!(said.contains("KiB, MiB or GiB"), "{said}");
        }
    }

    #[test]
    fn a_server_is_a_host_with_or_without_a_port() {
        for good in ["h", "h:1", "1.2.3.4", "[::1]", "[::1]:7311"] {
            assert_eq!(server(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            ":7311",
            "::1",
            "h:",
            "h:port",
            "h:99999",
            "fe80::1:7311",
        ] {
            let said = refusal(&["topic", "list", "--server", bad]);
            assert!(said.contains("HOST:PORT"), "{bad:?}: {said}");
        }
    }

    #[test]
    fn an_unbounded_retention_is_written_as_minus_one() {
        let line = ["ringtide", "topic", "alter", "t", "--retention-ms", "-1"];
        let cli = Cli::try_parse_from(line).expect("negative number");
        let Command::Topic(TopicCommand::Alter { settings, .. }) = cli.command else {
            panic!("{:?}", cli.command);
        };
        assert_eq!(settings.retention_ms, Some(-1));
    }
}
