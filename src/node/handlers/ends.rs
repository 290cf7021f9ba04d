//! How the end of a task is told to whoever waits for it. It must not know what else can be asked of a node.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::domain::job::{Job, Reason, TaskState};
use crate::identity::npub;
use crate::node::control::{ControlError, codes};

/// The answer of `wait` for a task that has ended: its outcome, or an error with the contract's exit code.
pub(super) fn finished(job: &Job, done: Value) -> Result<Value, ControlError> {
    if job.state == TaskState::Completed {
        return Ok(done);
    }
    let reason = job
        .reason
        .clone()
        .unwrap_or_else(|| Reason::new("failed", "the task failed"));
    let message = refused_by(&reason, &job.refusals);
    let mut error = ControlError::new(reason.code.clone(), message)
        .with_hint(format!("`legion why {}` says why, per peer", job.task));
    // A peer's `input_invalid` ends a task; it is not this command's input that is refused.
    error.exit = codes::exit_of_end(&reason.code);
    Err(error.about(done.get("task").cloned().unwrap_or(Value::Null)))
}

/// A reason and who gave it. What several said, or what is the reason itself, is said once.
fn refused_by(reason: &Reason, refusals: &BTreeMap<String, Reason>) -> String {
    let text = match reason.code.as_str() {
        // Our own words, and the next step has a line of its own.
        "no_provider" => codes::told(&reason.code, &reason.text).0,
        _ => &reason.text,
    };
    let mut groups: Vec<(&str, &str, Vec<String>)> = Vec::new();
    for (peer, said) in refusals {
        let known = groups
            .iter_mut()
            .find(|(code, text, _)| *code == said.code && *text == said.text);
        match known {
            Some((.., peers)) => peers.push(npub(peer)),
            None => groups.push((&said.code, &said.text, vec![npub(peer)])),
        }
    }
    match groups.as_slice() {
        [] => text.to_owned(),
        [(code, said, peers)] if *code == reason.code && *said == reason.text => {
            format!("{}: {said}", peers.join(", "))
        }
        groups => {
            let said = groups.iter();
            let said =
                said.map(|(code, text, peers)| format!("{}: {text} ({code})", peers.join(", ")));
            format!("{text}: {}", said.collect::<Vec<_>>().join("; "))
        }
    }
}
