//! What a busy machine may do to figures, and what it may not.

use serde_json::Value;

/// Reasons for figures not to count that lie with the machine, by words of theirs.
const OF_THE_MACHINE: [&str; 7] = [
    "the machine's host gave",
    "other processes took",
    "records a second were achieved",
    "the generator did not keep its schedule",
    "others took time of the machine",
    "the generator was late",
    "not even the first rate was seen to hold",
];

/// Whether a report counts, or does not only because the machine was busy.
///
/// # Panics
/// When it does not for another reason, or gives none.
#[track_caller]
pub fn disturbed_at_most(report: &Value) {
    let reasons = report["reasons"].as_array();
    let reasons = reasons.unwrap_or_else(|| panic!("no reasons: {report}"));
    assert_eq!(report["valid"], reasons.is_empty(), "{report}");
    for reason in reasons {
        let reason = reason.as_str().unwrap_or_default();
        let is_the_machine = OF_THE_MACHINE.iter().any(|words| reason.contains(words));
        assert!(
            is_the_machine,
            "{reason:?} of a run in which nothing went wrong"
        );
    }
}
