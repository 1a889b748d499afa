//! The command line: names, arguments and their help. These names are a contract with scripts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench::BenchArgs;
use crate::raw_config::{Raw, Text};

/// A storage-first message broker for Linux: durable, replayable logs in microseconds
#[derive(Debug, Parser)]
#[command(name = "ringtide", version, after_long_help = crate::exit::table())]
#[command(arg_required_else_help = true, args_override_self = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a broker
    Serve(Box<ServeArgs>),
    /// Create, list, describe, alter or delete topics
    #[command(subcommand)]
    Topic(TopicCommand),
    /// Publish records from standard input, one a line
    Produce(ProduceArgs),
    /// Write records to standard output
    Consume(ConsumeArgs),
    /// Measure how fast a broker is
    Bench(BenchArgs),
    /// Show what a file of a stopped broker holds
    Inspect {
        /// What kind of file it is
        kind: FileKind,
        /// The file, in a data directory or copied out of one
        path: PathBuf,
    },
    /// Read a stopped broker's data directory to the last byte and report what is wrong with it
    Verify {
        /// The directory
        #[arg(long, value_name = "DIR", default_value = "./ringtide-data")]
        data_dir: PathBuf,
    },
    /// Check whether this host suits a broker, and say what would mend it
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// A TOML file whose keys are the flags below without the dashes; flags win
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: Raw,
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
    /// Any shard of the broker
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "RINGTIDE_SERVER",
        default_value = "127.0.0.1:7311"
    )]
    pub(crate) server: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic
    Create {
        /// Letters, digits, '.', '_' and '-', at most 249 of them
        name: String,
        /// How many partitions it has
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = partitions())]
        partitions: u32,
        #[command(flatten)]
        settings: TopicSettingArgs,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// List all topics
    List {
        /// Write JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show a topic's settings and partitions
    Describe {
        /// The topic
        name: String,
        /// Write JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Change settings, or add partitions
    Alter {
        /// The topic
        name: String,
        /// How many partitions it shall have; may only grow
        #[arg(long, value_name = "N", value_parser = partitions())]
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

/// The settings of a topic; what is not given is left to the broker or unchanged.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TopicSettingArgs {
    /// Records older than this may be removed; -1: kept for ever [default of a new topic: 7 days]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) retention_ms: Option<i64>,
    /// A partition larger than this loses its oldest segments; -1: no bound [new topic: -1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) retention_bytes: Option<i64>,
    /// A segment is sealed before it grows past this [new topic: 256 MiB]
    #[arg(long, value_name = "N")]
    pub(crate) segment_bytes: Option<u32>,
    /// When consumers are given a record [new topic: durable]
    #[arg(long, value_name = "WHEN")]
    pub(crate) visible: Option<VisibleArg>,
    /// The largest batch of records [new topic: 1 MiB]
    #[arg(long, value_name = "N")]
    pub(crate) max_batch_bytes: Option<u32>,
    /// Whose clock timestamps are: the publisher's or the broker's [new topic: create]
    #[arg(long, value_name = "WHOSE")]
    pub(crate) timestamp_type: Option<TimestampArg>,
    /// How far ahead of the broker's clock a timestamp may be; -1: no bound [new topic: 1 hour]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
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
    #[arg(long, value_name = "P")]
    pub(crate) partition: Option<u32>,
    /// What ends the key of each line; the rest is the value
    #[arg(long, value_name = "S", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) key_separator: Option<String>,
    /// When a record counts as published
    #[arg(long, value_name = "LEVEL", default_value = "durable")]
    pub(crate) acks: AcksArg,
    /// Bytes that a batch may grow to; a larger record has one of its own, so 1 sends each alone
    #[arg(long, value_name = "N", default_value_t = 256 << 10, value_parser = batch_bytes())]
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

fn batch_bytes() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=ringtide_schema::limits::MAX_BATCH_BYTES as i64)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputArg {
    /// The value and a newline
    Value,
    /// A JSON object a line: partition, offset, timestamp, key, value, headers
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
            "give earliest, latest, committed, an offset such as 42, or a time in milliseconds \
             since 1970 such as @1700000000000"
                .into()
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct ConsumeArgs {
    /// The topic
    pub(crate) topic: String,
    /// Read this partition only [default: all]
    #[arg(long, value_name = "P")]
    pub(crate) partition: Option<u32>,
    /// Where to begin: earliest, latest, committed, OFFSET or @UNIX_MS
    /// [default: committed with --name, else earliest]
    #[arg(long, value_name = "WHERE")]
    pub(crate) from: Option<From>,
    /// Commit what was written to standard output under this consumer's name
    #[arg(long, value_name = "CONSUMER")]
    pub(crate) name: Option<String>,
    /// End after this many records
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Wait for records that are yet to come
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
