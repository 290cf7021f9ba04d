//! One turn of one job: its next unit computed, or what it wishes somebody else to do first. A panic stays in here.

use crate::labor::frames::Answer;
use crate::labor::skills::{SkillError, UnitRunner, Wish};

/// What became of a unit.
pub(super) enum Turn {
    Done(Vec<u8>),
    Wishes(Wish),
}

/// A panic in a tensor library fails the one job, by name, instead of every job in the process; its runner is dropped.
pub(super) fn run_contained(
    runner: &mut dyn UnitRunner,
    unit: u32,
    answers: &[Answer],
) -> Result<Turn, SkillError> {
    let run = std::panic::AssertUnwindSafe(|| match runner.wish(unit, answers) {
        Some(wish) => Ok(Turn::Wishes(wish)),
        None => runner.run(unit).map(Turn::Done),
    });
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or(panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(SkillError {
            code: "compute_failed",
            message: format!("unit {unit} panicked: {text}"),
        })
    })
}
