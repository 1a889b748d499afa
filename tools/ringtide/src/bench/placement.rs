//! Which CPUs the generator has, and which a broker that is started here.

use ringtide_perf::cpu;

use crate::exit::Failure;

/// Who runs where.
pub(crate) struct Placement {
    pub(crate) generator: Vec<Option<usize>>,
    /// The shards of a broker that is started here.
    pub(crate) broker: Vec<usize>,
    pub(crate) idle: &'static str,
}

impl Placement {
    /// As asked for; else the generator has the last CPU and the broker the first. A generator that cannot
    /// be there is refused now and not after the run.
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
        let broker = broker.map_or_else(|| vec![first], <[usize]>::to_vec);
        let apart = broker.iter().all(|cpu| !generator.contains(cpu));
        Ok(Self {
            generator: generator.into_iter().map(Some).collect(),
            broker,
            // A spinning broker on the generator's CPU would take half of its time.
            idle: if apart { "spin" } else { "adaptive" },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_on_a_cpu_that_is_not_there_is_refused_before_anything_is_done() {
        for server in [None, Some("127.0.0.1:1")] {
            let refused = Placement::choose(Some(&[4095]), None, server).err();
            let refused = refused.expect("no machine here has it");
            assert!(refused.message.contains("4095"), "{refused}");
        }
    }
}
