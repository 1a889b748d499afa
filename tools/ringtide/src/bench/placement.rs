//! Which CPUs the generator has, and which a broker that is started here.

use crate::exit::Failure;

/// Who runs where.
pub(crate) struct Placement {
    pub(crate) generator: Vec<Option<usize>>,
    /// The shards of a broker that is started here.
    pub(crate) broker: Vec<usize>,
    pub(crate) idle: &'static str,
}

impl Placement {
    /// As asked for; else the generator has the last CPU and the broker the first.
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
