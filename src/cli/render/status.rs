//! What the running node does, for people.

use serde_json::Value;

use super::{cell, items, scalar, utc};

/// The view of `status`.
pub(crate) fn status(view: &Value) -> String {
    let mut text = format!(
        "node: {} ({})\nversion: {}, up for {} s\n",
        cell(view, "/npub"),
        cell(view, "/lct"),
        cell(view, "/version"),
        view.get("up_ms").and_then(Value::as_u64).unwrap_or(0) / 1_000,
    );
    text.push_str(&format!("foreign work: {}\n", paused(view)));
    text.push_str(&waiting(view));
    for (url, relay) in view
        .get("relays")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let state = if relay.get("connected") == Some(&Value::Bool(true)) {
            "connected"
        } else {
            "not connected"
        };
        let error = relay
            .get("last_error")
            .and_then(Value::as_str)
            .map_or_else(String::new, |error| format!("; last error: {error}"));
        let refuses = relay
            .get("refuses")
            .and_then(Value::as_str)
            .map_or_else(String::new, |why| format!("; refuses messages: {why}"));
        text.push_str(&format!(
            "relay: {url} {state}, {} in, {} out{refuses}{error}\n",
            cell(relay, "/in"),
            cell(relay, "/out")
        ));
    }
    let names = |name: &str| {
        let names: Vec<String> = items(view, name).iter().map(scalar).collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    text.push_str(&format!(
        "pools: {}\nskills: {}\n",
        names("pools"),
        names("skills")
    ));
    text.push_str(&format!(
        "cores for foreign work: {}\n",
        cell(view, "/cores")
    ));
    let stand = view.get("own_skills").and_then(Value::as_object);
    for (name, skill) in stand.into_iter().flatten() {
        let wrong = match skill.get("code").filter(|code| !code.is_null()) {
            Some(code) => format!(": {}: {}", scalar(code), cell(skill, "/message")),
            None => String::new(),
        };
        text.push_str(&format!(
            "own skill {name}: {}{wrong}\n",
            cell(skill, "/state")
        ));
    }
    let own = view.get("skill_sandbox").and_then(Value::as_object);
    let own =
        (own.into_iter().flatten()).map(|(name, found)| (format!("skill {name}"), Some(found)));
    let sandboxes = [("worker".to_owned(), view.get("sandbox"))];
    for (of, sandbox) in sandboxes.into_iter().chain(own) {
        let Some(sandbox) = sandbox.filter(|sandbox| sandbox.is_object()) else {
            continue;
        };
        let missing: Vec<String> = items(sandbox, "missing").iter().map(scalar).collect();
        let missing = match missing.as_slice() {
            [] => String::new(),
            missing => format!("; missing: {}", missing.join(", ")),
        };
        let level = cell(sandbox, "/level");
        text.push_str(&format!("sandbox of the {of}: {level}{missing}\n"));
    }
    let counts = |name: &str| {
        let counts = view
            .get(name)
            .and_then(Value::as_object)
            .into_iter()
            .flatten();
        counts
            .map(|(name, count)| format!("{} {}", scalar(count), name.replace('_', " ")))
            .collect::<Vec<_>>()
            .join(", ")
    };
    text.push_str(&format!(
        "own tasks: {}\nwork for others: {}\noutbox: {}\n",
        counts("tasks"),
        counts("work"),
        counts("outbox")
    ));
    let moving = view.get("transfers").unwrap_or(&Value::Null);
    text.push_str(&format!(
        "payloads on their way: {} in, {} out, {} of {} bytes done\n",
        cell(moving, "/incoming"),
        cell(moving, "/outgoing"),
        cell(moving, "/done_bytes"),
        cell(moving, "/bytes")
    ));
    text.push_str(&format!(
        "peers: {}, amounts locked: {}\n",
        cell(view, "/peers"),
        cell(view, "/locks")
    ));
    let dropped = counts("dropped");
    text.push_str(&format!(
        "messages dropped: {}\n",
        if dropped.is_empty() { "none" } else { &dropped }
    ));
    text.push_str(&format!("store: {} bytes\n", cell(view, "/store_bytes")));
    text
}

/// Whom a restored node waits for, and whether a copy of this one runs: nothing on most nodes.
fn waiting(view: &Value) -> String {
    let mut text = String::new();
    if let Some(recovery) = view.get("recovering").filter(|r| r.is_object()) {
        let peers: Vec<String> = (items(recovery, "peers").iter())
            .map(|peer| match peer.get("endless") {
                Some(Value::Bool(true)) => {
                    cell(peer, "/npub") + " (answers without end, not asked any more)"
                }
                _ => cell(peer, "/npub"),
            })
            .collect();
        let peers = peers.join(", ");
        text.push_str(&match recovery.get("open") {
            Some(Value::Bool(true)) => {
                format!("restored: nothing is done before these have said what they hold of this node: {peers}\n")
            }
            _ => format!("frozen since the restoration, not heard from yet: {peers}\n"),
        });
    }
    if view.get("elsewhere").is_some_and(Value::is_object) {
        text.push_str("ANOTHER NODE HAS THIS IDENTITY: no new work; stop the other one for good, then `legion up --sole`\n");
    }
    if let Some(known) = view.pointer("/epoch_behind/known").and_then(Value::as_u64) {
        text.push_str(&format!("THESE KEYS ARE OF AN EPOCH THAT IS OVER: no new work, nobody hears this node; in a new home, `legion init --mnemonic-file F --epoch {known}`, then `legion restore` the newest backup\n"));
    }
    text
}

/// The `paused` of a view, as a clause.
pub(crate) fn paused(view: &Value) -> String {
    match view.get("paused").filter(|pause| !pause.is_null()) {
        None => "allowed".to_owned(),
        Some(pause) => match pause.get("until_ms").and_then(Value::as_u64) {
            Some(until_ms) => format!("paused by the owner until {}", utc(until_ms)),
            None => "paused by the owner until `legion resume`".to_owned(),
        },
    }
}
