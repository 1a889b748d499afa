//! Whether something keeps growing, from looks at it at even intervals.

use serde::Serialize;

/// With fewer looks nothing is said.
const FEWEST: usize = 9;

/// What is looked at in a soak.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Growth {
    /// After the first interval, when what is needed for good is there.
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) most: u64,
    /// Null when there were too few looks to say.
    pub(crate) keeps_growing: Option<bool>,
}

impl Growth {
    /// Of looks, the first one at the end of the first interval. Growth of less than `least` in all,
    /// or than a tenth, is none.
    pub(crate) fn of(looks: &[u64], least: u64) -> Option<Self> {
        let (&first, later) = looks.split_first()?;
        Some(Self {
            first,
            last: later.last().copied().unwrap_or(first),
            most: looks.iter().copied().max()?,
            keeps_growing: (later.len() >= FEWEST).then(|| keeps_growing(later, least)),
        })
    }

    pub(crate) fn is_a_leak(&self) -> bool {
        self.keeps_growing == Some(true)
    }
}

/// Whether each third lies wholly above the one before: neither a rise that ends nor one that comes
/// and goes does.
fn keeps_growing(looks: &[u64], least: u64) -> bool {
    let third = looks.len() / 3;
    let thirds = [
        &looks[..third],
        &looks[third..looks.len() - third],
        &looks[looks.len() - third..],
    ];
    let is_above = |below: &[u64], above: &[u64]| above.iter().min() > below.iter().max();
    let (first, last) = (looks[0], looks[looks.len() - 1]);
    is_above(thirds[0], thirds[1])
        && is_above(thirds[1], thirds[2])
        && last.saturating_sub(first) > least.max(first / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(looks: &[u64]) -> Option<bool> {
        Growth::of(looks, 10).expect("looks").keeps_growing
    }

    #[test]
    fn a_leak_is_one_even_if_it_is_uneven() {
        assert_eq!(
            judged(&[50, 100, 110, 120, 130, 140, 150, 160, 170, 180]),
            Some(true)
        );
        assert_eq!(
            judged(&[50, 100, 95, 105, 120, 115, 125, 150, 145, 148]),
            Some(true)
        );
    }

    #[test]
    fn what_settles_or_comes_and_goes_is_no_leak() {
        assert_eq!(
            judged(&[50, 100, 150, 180, 200, 200, 200, 200, 200, 200]),
            Some(false)
        );
        assert_eq!(
            judged(&[50, 100, 200, 100, 200, 100, 200, 100, 200, 150]),
            Some(false)
        );
        assert_eq!(judged(&[50; 40]), Some(false));
        assert_eq!(
            judged(&[200, 190, 180, 170, 160, 150, 140, 130, 120, 110]),
            Some(false)
        );
    }

    #[test]
    fn a_little_is_no_growth() {
        assert_eq!(
            judged(&[1, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
            Some(false),
            "less than 10"
        );
        let little: Vec<u64> = (0..40).map(|n| 1000 + 2 * n).collect();
        assert_eq!(judged(&little), Some(false), "less than a tenth");
    }

    #[test]
    fn the_first_interval_is_not_growth_and_few_say_nothing() {
        assert_eq!(
            judged(&[1, 100, 100, 100, 100, 100, 100, 100, 100, 100]),
            Some(false)
        );
        assert_eq!(judged(&[1, 10, 20, 30, 40, 50, 60, 70, 80]), None);
        assert_eq!(Growth::of(&[], 1), None);
        let one = Growth::of(&[7], 1).expect("a look");
        assert_eq!((one.first, one.last, one.most), (7, 7, 7));
    }
}
