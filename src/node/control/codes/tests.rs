//! Every code has one row, one of the promised exit codes, and a next step.

use super::*;
use std::collections::BTreeSet;

#[test]
fn every_row_has_an_exit_code_of_the_contract_and_a_next_step() {
    let mut seen = BTreeSet::new();
    for (code, exit, hint) in known() {
        assert!(seen.insert(code), "{code} has two rows");
        assert!([1, 2, 3, 4, 5, 130].contains(&exit), "{code}");
        assert!(hint.len() > 5, "{code} has no next step");
        assert_eq!((exit_of(code), hint_of(code)), (exit, hint));
    }
    assert_eq!(
        (exit_of("never_heard"), hint_of("never_heard").is_empty()),
        (1, false)
    );
}

#[test]
fn every_end_of_a_server_s_has_a_row() {
    for code in crate::labor::skills::own::BACKEND_CODES {
        assert!(known().any(|(known, ..)| known == code), "{code}");
    }
}

#[test]
fn a_task_s_end_is_3_or_4_or_1() {
    let ends = [
        "no_provider",
        "deadline_passed",
        "input_invalid",
        "permission_denied",
    ];
    assert_eq!(ends.map(exit_of_end), [3, 4, 1, 1]);
}

#[test]
fn a_text_is_parted_at_its_last_step() {
    assert_eq!(
        told("io", "a; b is open; close it"),
        ("a; b is open", "close it")
    );
    assert_eq!(
        told("key_missing", "nothing there"),
        ("nothing there", "create one with `legion init`")
    );
}
