//! The times of a run: whole, second by second, and in cells of a tenth of a second.

use serde::Serialize;

use crate::latency::{Latency, Recorder};

/// Length of a [`Cell`], in ns.
pub const CELL_NS: u64 = 100_000_000;

/// The four times of a record.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// From when it was due until it was acknowledged.
    pub latency: Recorder,
    /// From when it was sent until it was acknowledged.
    pub service: Recorder,
    /// From when it was due until the generator turned to it.
    pub lag: Recorder,
    /// From when it was due until a subscriber had it.
    pub end_to_end: Recorder,
}

impl Times {
    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency);
        self.service.add(&other.service);
        self.lag.add(&other.lag);
        self.end_to_end.add(&other.end_to_end);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.latency.clear();
        self.service.clear();
        self.lag.clear();
        self.end_to_end.clear();
    }
}

/// One second of a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Second {
    /// When it began, in seconds since measuring began.
    pub at_s: u64,
    /// Records acknowledged in it.
    pub acked: u64,
    /// Records given to subscribers in it.
    pub delivered: u64,
    /// Of the acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ns: Option<Latency>,
    /// Of those given to subscribers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_to_end_ns: Option<Latency>,
}

impl Second {
    /// From its times.
    #[must_use]
    pub fn of(at_s: u64, times: &Times) -> Self {
        Self {
            at_s,
            acked: times.latency.count(),
            delivered: times.end_to_end.count(),
            latency_ns: times.latency.summary(),
            end_to_end_ns: times.end_to_end.summary(),
        }
    }
}

/// A tenth of a second of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// Records acknowledged in it.
    pub acked: u64,
    /// Records given to subscribers in it.
    pub delivered: u64,
    /// The longest that a record due in it took to be acknowledged, in ns.
    pub max_latency_ns: u64,
    /// The longest that a record due in it took to a subscriber, in ns.
    pub max_end_to_end_ns: u64,
}

/// The cells of a run; what is outside of them is in none.
#[derive(Clone, Debug, Default)]
pub struct Cells(Vec<Cell>);

impl Cells {
    /// For a run of this length.
    #[must_use]
    pub fn new(length_ns: u64) -> Self {
        Self(vec![Cell::default(); length_ns.div_ceil(CELL_NS) as usize])
    }

    /// Leaves out what is later than this.
    pub fn truncate(&mut self, length_ns: u64) {
        self.0.truncate(length_ns.div_ceil(CELL_NS) as usize);
    }

    fn at(&mut self, ns: u64) -> Option<&mut Cell> {
        self.0.get_mut((ns / CELL_NS) as usize)
    }

    /// Counts a record that was due and acknowledged at these times since measuring began.
    pub fn acked(&mut self, due_ns: u64, now_ns: u64) {
        if let Some(cell) = self.at(now_ns) {
            cell.acked += 1;
        }
        if let Some(cell) = self.at(due_ns) {
            cell.max_latency_ns = cell.max_latency_ns.max(now_ns - due_ns);
        }
    }

    /// Counts a record that was due and given to a subscriber at these times.
    pub fn delivered(&mut self, due_ns: u64, now_ns: u64) {
        if let Some(cell) = self.at(now_ns) {
            cell.delivered += 1;
        }
        if let Some(cell) = self.at(due_ns) {
            cell.max_end_to_end_ns = cell.max_end_to_end_ns.max(now_ns - due_ns);
        }
    }

    /// Adds those of another part of the same run.
    pub fn add(&mut self, other: &Self) {
        for (cell, more) in self.0.iter_mut().zip(&other.0) {
            cell.acked += more.acked;
            cell.delivered += more.delivered;
            cell.max_latency_ns = cell.max_latency_ns.max(more.max_latency_ns);
            cell.max_end_to_end_ns = cell.max_end_to_end_ns.max(more.max_end_to_end_ns);
        }
    }

    /// From first to last.
    #[must_use]
    pub fn as_slice(&self) -> &[Cell] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_when_it_came_and_its_time_when_it_was_due() {
        let mut cells = Cells::new(3 * CELL_NS);
        cells.acked(50, 2 * CELL_NS + 50);
        cells.delivered(CELL_NS, 9 * CELL_NS);
        let [a, b, c] = cells.as_slice() else {
            panic!("three cells")
        };
        assert_eq!((a.acked, a.max_latency_ns), (0, 2 * CELL_NS));
        assert_eq!((b.delivered, b.max_end_to_end_ns), (0, 8 * CELL_NS));
        assert_eq!((c.acked, c.max_latency_ns), (1, 0));
    }
}
