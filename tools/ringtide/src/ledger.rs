//! Which line of the input became which record, and what became of it.
//!
//! A producer reports outcomes by ticket: a partition and a number within it. Users think in lines.
//! The ledger translates, counts, and hands out offsets in the order of the input.

use std::collections::VecDeque;
use std::fmt::Write as _;

use ringtide_client::{Error, Ticket};

use crate::connect::exit_of;
use crate::exit::{Exit, Failure};
use crate::progress::grouped;

/// Line ranges that a message names before it says only how many more there are.
const SHOWN_RANGES: usize = 8;

/// What became of a line, for those who want offsets.
#[derive(Clone, Copy, Debug)]
enum Place {
    Waiting,
    /// Appended; the offset is unknown for a record that an earlier attempt had appended.
    At {
        partition: u32,
        offset: Option<u64>,
    },
    /// It is not known to have been appended.
    Failed,
}

/// Lines of one partition that have no outcome yet.
#[derive(Debug, Default)]
struct Outstanding {
    /// The ticket number of the front.
    first: u64,
    /// By ticket number; 0 once the outcome is known.
    lines: VecDeque<u64>,
}

/// What has become of a record that counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Done {
    #[default]
    Acknowledged,
    /// Nobody acknowledges it.
    Sent,
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Acknowledged => "acknowledged",
            Self::Sent => "sent",
        })
    }
}

/// The state of a run of `produce`.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// By partition.
    outstanding: Vec<Outstanding>,
    /// Lines from `next_place` on, in input order, if offsets are wanted.
    places: Option<VecDeque<Place>>,
    next_place: u64,
    last_line: u64,
    /// What a record is when nothing more is to be done for it.
    done: Done,
    count: u64,
    unknown: Vec<u64>,
    refused: Vec<u64>,
    first_error: Option<Error>,
}

impl Ledger {
    /// An empty one; `offsets` if [`Self::write_offsets`] will be called.
    pub(crate) fn new(offsets: bool, done: Done) -> Self {
        Self {
            done,
            places: offsets.then(VecDeque::new),
            next_place: 1,
            ..Self::default()
        }
    }

    /// A line became the record of this ticket. Lines come in order, without a gap.
    pub(crate) fn sent(&mut self, line: u64, ticket: Ticket) {
        let partition = ticket.partition as usize;
        if self.outstanding.len() <= partition {
            self.outstanding
                .resize_with(partition + 1, Outstanding::default);
        }
        let outstanding = &mut self.outstanding[partition];
        debug_assert_eq!(
            ticket.number,
            outstanding.first + outstanding.lines.len() as u64
        );
        outstanding.lines.push_back(line);
        if let Some(places) = &mut self.places {
            places.push_back(Place::Waiting);
        }
        self.last_line = line;
    }

    /// What became of a record: its offset, if that is known, or why it failed.
    pub(crate) fn delivered(&mut self, ticket: Ticket, result: Result<Option<u64>, Error>) {
        let Ticket { partition, number } = ticket;
        let Some(outstanding) = self.outstanding.get_mut(partition as usize) else {
            return;
        };
        let Some(index) = number.checked_sub(outstanding.first) else {
            return;
        };
        let Some(slot) = outstanding.lines.get_mut(index as usize) else {
            return;
        };
        let line = std::mem::take(slot);
        while outstanding.lines.front() == Some(&0) {
            outstanding.lines.pop_front();
            outstanding.first += 1;
        }
        if let Some(places) = &mut self.places {
            places[(line - self.next_place) as usize] = match result {
                Ok(offset) => Place::At { partition, offset },
                Err(_) => Place::Failed,
            };
        }
        match result {
            Ok(_) => self.count += 1,
            Err(error) => {
                let lines = if error.is_outcome_unknown() {
                    &mut self.unknown
                } else {
                    &mut self.refused
                };
                lines.push(line);
                self.first_error.get_or_insert(error);
            }
        }
    }

    /// Nothing more will be heard of the records that have no outcome yet: it is unknown.
    pub(crate) fn give_up(&mut self, error: Error) {
        let waiting = self.outstanding.iter_mut().flat_map(|outstanding| {
            outstanding.first += outstanding.lines.len() as u64;
            outstanding.lines.drain(..).filter(|&line| line != 0)
        });
        self.unknown.extend(waiting);
        for place in self.places.iter_mut().flatten() {
            if matches!(place, Place::Waiting) {
                *place = Place::Failed;
            }
        }
        self.first_error.get_or_insert(error);
    }

    /// How many records were acknowledged, or sent, in words.
    pub(crate) fn counted(&self) -> String {
        format!("{} {}", records(self.count), self.done)
    }

    /// Whether a record failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.first_error.is_some()
    }

    /// Appends a line for each line up to the first that waits: `PARTITION OFFSET`, with `unknown`
    /// for an offset that only the broker once knew, or `- -` for a record that failed.
    pub(crate) fn write_offsets(&mut self, out: &mut Vec<u8>) {
        use std::io::Write;
        let Some(places) = &mut self.places else {
            return;
        };
        while let Some(&place) = places.front() {
            // A Vec takes everything.
            let _ = match place {
                Place::Waiting => return,
                Place::At {
                    partition,
                    offset: Some(offset),
                } => writeln!(out, "{partition} {offset}"),
                Place::At { partition, .. } => writeln!(out, "{partition} unknown"),
                Place::Failed => writeln!(out, "- -"),
            };
            places.pop_front();
            self.next_place += 1;
        }
    }

    /// The failure of the run, if not every line that was taken was acknowledged.
    pub(crate) fn failure(&mut self) -> Option<Failure> {
        let error = self.first_error.take()?;
        let mut message = format!("{}; ", self.counted());
        match self.unknown.len() as u64 {
            0 => message.push_str("of none is the outcome unknown"),
            count => {
                let _ = write!(message, "of {count} the outcome is unknown (");
                message += &ranges(&mut self.unknown);
                message.push(')');
            }
        }
        if !self.refused.is_empty() {
            let _ = write!(
                message,
                "; not published: {} (",
                records(self.refused.len() as u64)
            );
            message += &ranges(&mut self.refused);
            message.push(')');
        }
        let _ = write!(
            message,
            "; nothing after line {} was taken. {error}",
            self.last_line
        );
        let exit = if self.unknown.is_empty() {
            exit_of(&error)
        } else {
            Exit::OutcomeUnknown
        };
        Some(Failure::new(exit, message))
    }
}

fn records(count: u64) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} record{plural}", grouped(count))
}

/// `line 3`, `lines 3-7, 9`.
fn ranges(lines: &mut [u64]) -> String {
    lines.sort_unstable();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &line in lines.iter() {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == line => *last = line,
            _ => runs.push((line, line)),
        }
    }
    let mut out = String::from(if lines.len() == 1 { "line " } else { "lines " });
    let shown = runs.iter().take(SHOWN_RANGES).map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    out += &shown.collect::<Vec<_>>().join(", ");
    if runs.len() > SHOWN_RANGES {
        let _ = write!(out, " and {} more ranges", runs.len() - SHOWN_RANGES);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(partition: u32, number: u64) -> Ticket {
        Ticket { partition, number }
    }

    fn error(unknown: bool) -> Error {
        let what = "publish to t/0".into();
        if unknown {
            Error::OutcomeUnknown {
                what,
                why: "the connection was lost".into(),
            }
        } else {
            Error::Timeout {
                what,
                after: std::time::Duration::from_secs(1),
                why: "away".into(),
            }
        }
    }

    #[test]
    fn offsets_come_in_input_order_whatever_the_order_of_acknowledgements() {
        let mut ledger = Ledger::new(true, Done::Acknowledged);
        let tickets = [ticket(0, 0), ticket(1, 0), ticket(0, 1)];
        for (line, &ticket) in (1..).zip(&tickets) {
            ledger.sent(line, ticket);
        }
        let mut out = Vec::new();
        ledger.delivered(tickets[0], Ok(Some(10)));
        ledger.delivered(tickets[2], Ok(Some(11)));
        ledger.write_offsets(&mut out);
        assert_eq!(out, b"0 10\n");
        ledger.delivered(tickets[1], Ok(Some(5)));
        ledger.write_offsets(&mut out);
        assert_eq!(out, b"0 10\n1 5\n0 11\n");
        assert_eq!(ledger.counted(), "3 records acknowledged");
        assert!(ledger.failure().is_none());
    }

    #[test]
    fn a_lost_broker_leaves_counts_and_line_ranges() {
        let mut ledger = Ledger::new(false, Done::Acknowledged);
        for line in 1..=10 {
            ledger.sent(line, ticket(0, line - 1));
        }
        for number in 0..4 {
            ledger.delivered(ticket(0, number), Ok(Some(number)));
        }
        for number in [4, 5, 7] {
            ledger.delivered(ticket(0, number), Err(error(true)));
        }
        for number in [6, 8, 9] {
            ledger.delivered(ticket(0, number), Err(error(false)));
        }
        let failure = ledger.failure().expect("a failure");
        assert_eq!(failure.exit, Exit::OutcomeUnknown);
        for words in [
            "4 records acknowledged",
            "of 3 the outcome is unknown (lines 5-6, 8)",
            "not published: 3 records (lines 7, 9-10)",
            "nothing after line 10 was taken",
        ] {
            assert!(
                failure.message.contains(words),
                "{words:?}: {}",
                failure.message
            );
        }
    }

    #[test]
    fn what_is_given_up_is_unknown_and_nothing_else_is() {
        let mut ledger = Ledger::new(true, Done::Acknowledged);
        for (line, partition, number) in [(1, 0, 0), (2, 1, 0), (3, 0, 1), (4, 0, 2)] {
            ledger.sent(line, ticket(partition, number));
        }
        ledger.delivered(ticket(0, 0), Ok(Some(7)));
        ledger.delivered(ticket(0, 2), Ok(Some(9)));
        ledger.give_up(error(true));
        let mut out = Vec::new();
        ledger.write_offsets(&mut out);
        assert_eq!(out, b"0 7\n- -\n- -\n0 9\n");
        let failure = ledger.failure().expect("a failure");
        assert_eq!(failure.exit, Exit::OutcomeUnknown);
        let words = "2 records acknowledged; of 2 the outcome is unknown (lines 2-3)";
        assert!(failure.message.starts_with(words), "{failure}");
    }

    #[test]
    fn a_failed_line_has_its_place_and_those_behind_it_theirs() {
        let mut ledger = Ledger::new(true, Done::Acknowledged);
        for line in 1..=3 {
            ledger.sent(line, ticket(0, line - 1));
        }
        let mut out = Vec::new();
        ledger.delivered(ticket(0, 2), Ok(None));
        ledger.delivered(ticket(0, 1), Err(error(true)));
        ledger.write_offsets(&mut out);
        assert_eq!(out, b"");
        ledger.delivered(ticket(0, 0), Ok(Some(7)));
        ledger.write_offsets(&mut out);
        assert_eq!(out, b"0 7\n- -\n0 unknown\n");
    }

    #[test]
    fn the_exit_code_is_that_of_the_error_when_no_outcome_is_unknown() {
        let full = Error::Broker {
            code: ringtide_client::ErrorCode::DiskFull,
            what: "publish to t/0".into(),
            message: "".into(),
        };
        for (error, exit) in [(error(false), Exit::Unreachable), (full, Exit::Failed)] {
            let mut ledger = Ledger::new(false, Done::Acknowledged);
            ledger.sent(1, ticket(0, 0));
            ledger.delivered(ticket(0, 0), Err(error));
            assert_eq!(ledger.failure().expect("a failure").exit, exit);
        }
    }

    #[test]
    fn what_nobody_acknowledges_is_sent() {
        let mut ledger = Ledger::new(false, Done::Sent);
        for line in 1..=2 {
            ledger.sent(line, ticket(0, line - 1));
        }
        ledger.delivered(ticket(0, 0), Ok(None));
        assert_eq!(ledger.counted(), "1 record sent");
        ledger.delivered(ticket(0, 1), Err(error(true)));
        let message = ledger.failure().expect("a failure").message;
        assert!(message.starts_with("1 record sent"), "{message}");
    }

    #[test]
    fn many_ranges_are_shortened() {
        let mut lines: Vec<u64> = (0..40).map(|n| n * 2).collect();
        let text = ranges(&mut lines);
        assert!(
            text.starts_with("lines 0, 2, 4") && text.ends_with("and 32 more ranges"),
            "{text}"
        );
        assert_eq!(ranges(&mut [7]), "line 7");
    }
}
