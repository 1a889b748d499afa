//! Which CPUs the generator has, and which a broker that is started here.

use ringtide_perf::cpu;

use crate::config::choose_cpus;
use crate::exit::Failure;
use crate::raw_config::{Origin, Text};
use crate::setting::Given;

/// Who runs where.
pub(crate) struct Placement {
    pub(crate) generator: Vec<Option<usize>>,
    /// The shards of a broker that is started here.
    pub(crate) broker: Vec<usize>,
    pub(crate) idle: &'static str,
}

impl Placement {
    /// As asked for; else the generator has the last CPU and the broker the first. Who cannot be there is
    /// refused now: a generator not after the run, and a broker not in the words of its own settings.
    pub(crate) fn choose(
        generator: Option<&[usize]>,
        broker: Option<&[usize]>,
        server: Option<&str>,
    ) -> Result<Self, Failure> {
        let cpus = ringtide_uring::probe::allowed();
        let (first, last) = match cpus[..] {
            [] => (0, 0),
            [only] => (only, only),
            [first, .., last] => (first, last),
        };
        if server.is_some() && broker.is_some() {
            return Err(Failure::usage(
                "--broker-cpus is for a broker that is started here: leave --server out, or the \
                 environment variable RINGTIDE_SERVER",
            ));
        }
        let generator = generator.map_or_else(|| vec![last], <[usize]>::to_vec);
        for &cpu in &generator {
            let tried = cpu::on(Some(cpu), || ());
            tried.map_err(|error| Failure::usage(format!("--cpus: {error}")))?;
        }
        let broker = match broker {
            Some(broker) => broker_cpus(broker, &cpus)?,
            None => vec![first],
        };
        let apart = broker.iter().all(|cpu| !generator.contains(cpu));
        Ok(Self {
            generator: generator.into_iter().map(Some).collect(),
            broker,
            // A spinning broker on the generator's CPU would take half of its time.
            idle: if apart { "spin" } else { "adaptive" },
        })
    }
}

/// What `--broker-cpus` names, if a broker's shards can be there.
fn broker_cpus(named: &[usize], allowed: &[usize]) -> Result<Vec<usize>, Failure> {
    let named: Vec<String> = named.iter().map(usize::to_string).collect();
    let text = Text {
        value: named.join(","),
        origin: Origin::Flag("broker-cpus"),
    };
    let given = Given {
        key: "broker-cpus",
        text: Some(&text),
    };
    choose_cpus(&given, allowed).map_err(|error| Failure::usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_broker_on_a_cpu_that_is_not_there_is_refused_with_the_flag_and_those_that_are() {
        for (named, words) in [(&[0, 7][..], "(0-1)"), (&[1, 1], "twice")] {
            let refused = broker_cpus(named, &[0, 1]).expect_err(words);
            assert_eq!(refused.exit, Exit::Usage);
            let said = refused.message;
            assert!(
                said.contains("--broker-cpus") && said.contains(words),
                "{said}"
            );
        }
        assert_eq!(broker_cpus(&[1, 0], &[0, 1]).expect("there"), [1, 0]);
        let refused = Placement::choose(None, Some(&[4095]), None).err();
        assert_eq!(refused.expect("no machine here has it").exit, Exit::Usage);
    }

    #[test]
    fn a_generator_on_a_cpu_that_is_not_there_is_refused_before_anything_is_done() {
        for server in [None, Some("127.0.0.1:1")] {
            let refused = Placement::choose(Some(&[4095]), None, server).err();
            let refused = refused.expect("no machine here has it");
            assert!(refused.message.contains("4095"), "{refused}");
        }
    }
}
