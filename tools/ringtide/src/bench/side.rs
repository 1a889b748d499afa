//! One of the two that are compared, as it is written on the command line:
//! `[PATH:]serve:KEY=VALUE,...`, `[PATH:]load:KEY=VALUE,...`, both one behind the other, or `PATH`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use clap::Parser;
use ringtide_perf::broker::Launch;
use ringtide_perf::workload::Workload;

use crate::bench::failure;
use crate::bench::own_broker::Start;
use crate::bench::placement::Placement;
use crate::config::Config;
use crate::exit::Failure;
use crate::raw_config::Raw;

/// What the measurement itself decides of a broker.
const DECIDED: [&str; 3] = ["data-dir", "listen", "advertise"];

/// As written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) text: String,
    /// Another binary.
    path: Option<PathBuf>,
    /// Of `ringtide serve`.
    serve: Vec<(String, String)>,
    /// Flags of the load.
    load: Vec<(String, String)>,
}

impl FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut side = Self {
            text: text.into(),
            ..Self::default()
        };
        let whole = format!(":{text}");
        let mut rest = whole.as_str();
        while let Some((before, settings, is_serve)) = last_part(rest) {
            let settings = pairs(settings)?;
            let list = if is_serve {
                &mut side.serve
            } else {
                &mut side.load
            };
            if !list.is_empty() {
                return Err(format!("{text:?} has serve: or load: twice"));
            }
            *list = settings;
            rest = before;
        }
        let path = rest.strip_prefix(':').unwrap_or(rest);
        side.path = (!path.is_empty()).then(|| path.into());
        match text {
            "" => {
                Err("give serve:KEY=VALUE,..., load:KEY=VALUE,... or the path of a binary".into())
            }
            _ => Ok(side),
        }
    }
}

/// What is before the last `:serve:` or `:load:`, what is behind it, and whether it is `serve`.
fn last_part(text: &str) -> Option<(&str, &str, bool)> {
    let serve = text.rfind(":serve:").map(|at| (at, 7, true));
    let load = text.rfind(":load:").map(|at| (at, 6, false));
    let (at, length, is_serve) = serve.max(load)?;
    Some((&text[..at], &text[at + length..], is_serve))
}

/// `KEY=VALUE,KEY=VALUE`; what has no `=` belongs to the value before, as in `cpus=0,1`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for item in text.split(',').filter(|_| !text.is_empty()) {
        match (item.split_once('='), pairs.last_mut()) {
            (Some((key, value)), _) if !key.is_empty() => pairs.push((key.into(), value.into())),
            (None, Some((_, value))) if !item.is_empty() => {
                value.push(',');
                value.push_str(item);
            }
            _ => return Err(format!("{item:?} is no KEY=VALUE")),
        }
    }
    Ok(pairs)
}

/// The flags of a load by themselves.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct LoadFlags {
    #[command(flatten)]
    load: Workload,
}

impl Side {
    /// The load with what this side says of it.
    pub(crate) fn workload(&self, common: &Workload) -> Result<Workload, Failure> {
        let flags = self
            .load
            .iter()
            .map(|(key, value)| format!("--{key}={value}"));
        let own = LoadFlags::try_parse_from(flags).map_err(|error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let why = line.strip_prefix("error: ").unwrap_or(line);
            Failure::usage(format!("{}: {why}; see ringtide bench --help", self.text))
        })?;
        Ok(own.load.or(common.clone()))
    }

    /// How its broker is started.
    pub(crate) fn start(&self, placement: &Placement) -> Result<Start, Failure> {
        for (key, _) in &self.serve {
            if DECIDED.contains(&key.as_str()) {
                return Err(Failure::usage(format!(
                    "{}: {key} is chosen by the measurement: leave it out",
                    self.text
                )));
            }
        }
        let mut start = Start::this(placement).map_err(failure)?;
        match &self.path {
            Some(path) => {
                self.look_at(path)?;
                let cpus = placement.broker.clone();
                let binary = path.clone();
                start.launch = Launch { binary, cpus };
            }
            None => self.check()?,
        }
        for (key, value) in &self.serve {
            match key.as_str() {
                "idle" => start.idle.clone_from(value),
                "cpus" => start.launch.cpus = self.cpus(value)?,
                _ => start.more.push((key.clone(), value.clone())),
            }
        }
        Ok(start)
    }

    fn cpus(&self, list: &str) -> Result<Vec<usize>, Failure> {
        let cpus = crate::cpu_list::parse_list(list);
        cpus.ok_or_else(|| {
            Failure::usage(format!(
                "{}: cpus={list} names no CPUs: give a list such as 0,1 or 2-5",
                self.text
            ))
        })
    }

    /// The settings of this program's own broker.
    fn check(&self) -> Result<(), Failure> {
        let wrong = |why: String| Failure::usage(format!("{}: {why}", self.text));
        let raw = Raw::from_pairs(&self.serve).map_err(wrong)?;
        let allowed = ringtide_uring::probe::allowed();
        let config = Config::from_raw(&raw, &allowed);
        config.map(drop).map_err(|error| wrong(error.to_string()))
    }

    /// Whether that is a broker that knows the settings.
    fn look_at(&self, path: &Path) -> Result<(), Failure> {
        let name = path.display();
        let said = Command::new(path).args(["serve", "--help"]).output();
        let said = said.map_err(|error| {
            Failure::usage(format!(
                "{name} cannot be run: {error}; give the path of a ringtide binary, serve:KEY=VALUE,... \
                 or load:KEY=VALUE,..."
            ))
        })?;
        let help = String::from_utf8_lossy(&said.stdout);
        if !said.status.success() || !help.contains("--data-dir") {
            return Err(Failure::usage(format!("{name} is no ringtide")));
        }
        let knows = |key: &str| {
            help.split_whitespace()
                .any(|word| word == format!("--{key}"))
        };
        match self.serve.iter().find(|(key, _)| !knows(key)) {
            Some((key, _)) => Err(Failure::usage(format!(
                "{}: {name} has no setting {key:?}; `{name} serve --help` lists them all",
                self.text
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(text: &str) -> Side {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let pairs = pairs.iter();
        pairs.map(|(k, v)| ((*k).into(), (*v).into())).collect()
    }

    #[test]
    fn a_side_is_a_binary_settings_of_its_broker_and_a_load() {
        let all = side("/opt/a:b/ringtide:serve:cpus=0,1,idle=park:load:schedule=bursts:10");
        assert_eq!(all.path, Some("/opt/a:b/ringtide".into()));
        assert_eq!(all.serve, owned(&[("cpus", "0,1"), ("idle", "park")]));
        assert_eq!(all.load, owned(&[("schedule", "bursts:10")]));
        let other = side("load:acks=accepted:serve:idle=spin");
        assert_eq!(other.path, None);
        assert_eq!(other.serve, owned(&[("idle", "spin")]));
        assert_eq!(other.load, owned(&[("acks", "accepted")]));
        assert_eq!(side("./ringtide").path, Some("./ringtide".into()));
        let as_it_is = side("serve:");
        assert_eq!((as_it_is.path, as_it_is.serve), (None, Vec::new()));
        for text in [
            "",
            "serve:idle",
            "load:=1",
            "serve:a=1,,b=2",
            "serve:a=1:serve:b=2",
        ] {
            text.parse::<Side>().expect_err(text);
        }
    }

    #[test]
    fn what_a_side_says_of_the_load_goes_before_what_both_have() {
        let common = Workload {
            rate: Some(5.0),
            batch: Some(3),
            ..Workload::default()
        };
        let own = side("load:rate=7,size=1KiB")
            .workload(&common)
            .expect("flags");
        assert_eq!((own.rate, own.batch), (Some(7.0), Some(3)));
        assert_eq!(own.plan().value_bytes(), 1024);
        for (text, word) in [("load:rat=7", "--rat"), ("load:rate=fast", "fast")] {
            let refused = side(text).workload(&common).expect_err(text);
            assert!(refused.message.contains(word), "{refused}");
        }
    }

    #[test]
    fn settings_that_no_broker_has_are_refused_by_their_names() {
        let placement = Placement {
            generator: vec![None],
            broker: ringtide_uring::probe::allowed(),
            idle: "spin",
        };
        let start = side("serve:idle=adaptive,sync-interval-ms=100").start(&placement);
        let start = start.expect("settings");
        assert_eq!(start.idle, "adaptive");
        let more = ("sync-interval-ms".into(), "100".into());
        assert_eq!(start.more, [more]);
        for (text, words) in [
            ("serve:idel=spin", "\"idle\""),
            ("serve:idle=never", "spin, adaptive, park"),
            ("serve:data-dir=x", "chosen by the measurement"),
            (
                "/nowhere/ringtide:serve:idle=spin",
                "/nowhere/ringtide cannot be run",
            ),
            ("/bin/true", "is no ringtide"),
        ] {
            let refused = side(text).start(&placement).expect_err(text);
            assert!(refused.message.contains(words), "{refused}");
        }
    }
}
