//! What people see of the node's views: tables and short texts. Programs read the views themselves (`--json`).
//!
//! A view's fields are looked up by name and shown where they are there, so that a newer node can add one.

mod status;
mod tree;

use serde_json::Value;

use super::adapters::EXTENSION;
use super::error::Exit;
use super::output::Reply;
pub(crate) use status::{paused, status};
use tree::scalar;
pub(crate) use tree::tree;

/// Columns, each as wide as its widest cell.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut lines = vec![head.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()];
    lines.extend(rows);
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The cell at a JSON pointer of `row`; a dash where there is nothing.
pub(crate) fn cell(row: &Value, pointer: &str) -> String {
    row.pointer(pointer).map_or_else(|| "-".to_owned(), scalar)
}

fn items<'a>(view: &'a Value, name: &str) -> &'a [Value] {
    view.get(name)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The rows of `view[list]` with a column for each pointer, or `none`.
fn list(view: &Value, name: &str, none: &str, columns: &[(&str, &str)]) -> String {
    let rows = items(view, name);
    if rows.is_empty() {
        return none.to_owned();
    }
    let head: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    table(
        &head,
        rows.iter().map(|row| {
            columns
                .iter()
                .map(|(_, pointer)| shown(row, pointer))
                .collect()
        }),
    )
}

/// A cell; a field whose name ends in `_at_ms` or is `at_ms` is shown as a time.
fn shown(row: &Value, pointer: &str) -> String {
    match row.pointer(pointer).and_then(Value::as_u64) {
        Some(time) if pointer.ends_with("at_ms") => utc(time),
        _ => cell(row, pointer),
    }
}

/// What A2A's task has no field for: of a task, or of its status.
fn extra(holder: &Value) -> &Value {
    holder
        .get("metadata")
        .and_then(|metadata| metadata.get(EXTENSION))
        .unwrap_or(&Value::Null)
}

/// A reason `{code,text,retry_at_ms}` as a clause: `code: text, again at TIME`.
fn reason(reason: &Value) -> String {
    let field = |name: &str| reason.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut clause = match (field("code"), field("text")) {
        ("", text) => text.to_owned(),
        (code, "") => code.to_owned(),
        (code, text) => format!("{code}: {text}"),
    };
    if let Some(at_ms) = reason.get("retry_at_ms").and_then(Value::as_u64) {
        clause.push_str(&format!(" (until {})", utc(at_ms)));
    }
    clause
}

/// Why a task is where it is; a code that only repeats the state is left out.
fn why_of(task: &Value) -> String {
    let because = task
        .get("status")
        .map_or_else(String::new, |status| reason(extra(status)));
    let state = format!("{}: ", cell(task, "/status/state"));
    because.strip_prefix(&state).unwrap_or(&because).to_owned()
}

/// `{tasks:[...]}`.
pub(crate) fn tasks(view: &Value) -> String {
    let rows = items(view, "tasks");
    if rows.is_empty() {
        return "no tasks; `legion ask` makes one".to_owned();
    }
    let row = |task: &Value| {
        let extra = extra(task);
        vec![
            cell(task, "/id"),
            cell(task, "/status/state"),
            cell(extra, "/role"),
            cell(extra, "/skill"),
            cell(task, "/status/timestamp"),
            why_of(task),
        ]
    };
    let head = ["TASK", "STATE", "ROLE", "SKILL", "SINCE", "WHY"];
    table(&head, rows.iter().map(row))
}

/// `{task:{...}}`.
pub(crate) fn task(view: &Value) -> String {
    let task = view.get("task").unwrap_or(view);
    let extra = extra(task);
    let mut text = format!(
        "task: {}\nstate: {} since {}\n",
        cell(task, "/id"),
        cell(task, "/status/state"),
        cell(task, "/status/timestamp")
    );
    let why = why_of(task);
    if !why.is_empty() {
        text.push_str(&format!("why: {why}\n"));
    }
    let fields = extra.as_object().into_iter().flatten();
    for (name, value) in fields.filter(|(name, _)| !matches!(name.as_str(), "awards" | "history")) {
        let value = match value.as_u64().filter(|_| name.ends_with("_ms")) {
            Some(at_ms) => utc(at_ms),
            None if value.is_object() => tree(value).replace('\n', ", "),
            None => scalar(value),
        };
        let name = name.trim_end_matches("_ms");
        text.push_str(&format!("{name}: {value}\n"));
    }
    if let Some(output) = task.pointer("/artifacts/0/parts/0/data") {
        text.push_str(&format!(
            "result:\n  {}\n",
            tree(output).replace('\n', "\n  ")
        ));
    }
    let awards = [
        ("AWARD", "/award_no"),
        ("EXECUTOR", "/executor"),
        ("STATE", "/state"),
        ("MONEY", "/money"),
        ("CAP MC", "/cap_mc"),
        ("UNITS DONE", "/units_done"),
    ];
    if !items(extra, "awards").is_empty() {
        text.push_str(&format!("\n{}\n", list(extra, "awards", "", &awards)));
    }
    let history = extra.get("history").unwrap_or(&Value::Null);
    let signed = [
        ("SIGNED AT", "/at_ms"),
        ("WHAT", "/what/act"),
        ("BY", "/author"),
    ];
    if !items(history, "entries").is_empty() {
        text.push_str(&format!("\n{}\n", list(history, "entries", "", &signed)));
    }
    text
}

/// `{task,reason,peers:[{npub,tier,said}]}`, as sentences.
pub(crate) fn why(view: &Value) -> String {
    let task = view.get("task").unwrap_or(&Value::Null);
    let mut text = format!(
        "task {} is {}",
        cell(task, "/id"),
        cell(task, "/status/state")
    );
    let because = why_of(task);
    let peers = items(view, "peers");
    // What a peer said stands beside its name, once.
    let theirs = peers.iter().filter_map(|peer| peer.get("said"));
    let theirs = theirs.map(reason).any(|said| said == because);
    text.push_str(&if because.is_empty() || theirs {
        "\n".to_owned()
    } else {
        format!("; {because}\n")
    });
    for peer in peers {
        let said = peer.get("said").map(reason).unwrap_or_default();
        text.push_str(&format!(
            "{} ({}) {said}\n",
            cell(peer, "/npub"),
            cell(peer, "/tier")
        ));
    }
    if peers.is_empty() {
        text.push_str(
            "no peer is known that could have taken it; `legion peers` lists those that are\n",
        );
    }
    text
}

/// `{peers:[...]}`.
pub(crate) fn peers(view: &Value) -> String {
    let rows = items(view, "peers");
    if rows.is_empty() {
        return "no peers yet; `legion peers trust NPUB --tier trusted` adds one".to_owned();
    }
    let offers = |peer: &Value| {
        let skill = |skill: &Value| {
            let hops = match skill.get("hops_mc").and_then(Value::as_u64) {
                None | Some(0) => String::new(),
                Some(most) => format!(" (and at most {most} a task for hops)"),
            };
            format!(
                "{} {} mc{hops}",
                cell(skill, "/id"),
                cell(skill, "/unit_price_mc")
            )
        };
        let offered: Vec<String> = items(peer, "skills").iter().map(skill).collect();
        let paused = peer.get("paused") == Some(&Value::Bool(true));
        match (offered.is_empty(), paused) {
            (true, _) => "-".to_owned(),
            (false, true) => format!("{} (paused)", offered.join(", ")),
            (false, false) => offered.join(", "),
        }
    };
    let row = |peer: &Value| {
        let seen_ms = peer
            .get("last_seen_ms")
            .and_then(Value::as_u64)
            .filter(|at_ms| *at_ms > 0);
        let limit = match peer.get("limit_mc").and_then(Value::as_u64) {
            Some(limit) => limit.to_string(),
            None => "none".to_owned(),
        };
        let lct = cell(peer, "/lct");
        vec![
            cell(peer, "/npub"),
            cell(peer, "/tier") + frozen(peer),
            limit,
            seen_ms.map_or_else(|| "never".to_owned(), utc),
            offers(peer),
            if lct.is_empty() { "-".to_owned() } else { lct },
        ]
    };
    let head = ["PEER", "TIER", "LIMIT MC", "SEEN", "OFFERS PER UNIT", "LCT"];
    table(&head, rows.iter().map(row))
}

/// Whether a restored node still waits for what this peer holds of it.
fn frozen(row: &Value) -> &'static str {
    match row.get("frozen") {
        Some(Value::Bool(true)) => ", frozen",
        _ => "",
    }
}

/// `{unit,accounts:[...],transfers:[...],sum_mc}`.
pub(crate) fn ledger(view: &Value) -> String {
    let accounts = [
        ("PEER", "/npub"),
        ("TIER", "/tier"),
        ("LIMIT", "/limit_granted_mc"),
        ("POSTED", "/posted_mc"),
        ("PENDING TO US", "/pending_owed_to_us_mc"),
        ("PENDING BY US", "/pending_we_owe_mc"),
        ("AVAILABLE", "/available_mc"),
        ("FROZEN", "/frozen"),
    ];
    let transfers = [
        ("AT", "/at_ms"),
        ("TASK", "/task"),
        ("AWARD", "/award_no"),
        ("KIND", "/kind"),
        ("AMOUNT", "/amount_mc"),
        ("PEER", "/npub"),
    ];
    format!(
        "All amounts in milli-credits. Posted above 0: the peer owes this node.\n\n{}\n\n{}\n\nsum: {}",
        list(view, "accounts", "no accounts yet", &accounts),
        list(view, "transfers", "no transfers yet", &transfers),
        cell(view, "/sum_mc"),
    )
}

/// The view of `ask` and `wait`. It ends with exit code 1 when the task ended without a result.
pub(crate) fn result(view: Value) -> Reply {
    let state = cell(&view, "/task/status/state");
    let exit = if matches!(state.as_str(), "failed" | "canceled" | "rejected") {
        Exit::FAILED
    } else {
        Exit::DONE
    };
    let mut text = format!("task: {}\nstate: {state}\n", cell(&view, "/task/id"));
    if let Some(result) = view.get("result").filter(|result| !result.is_null()) {
        text.push_str(&format!(
            "result:\n  {}\n",
            tree(result).replace('\n', "\n  ")
        ));
    }
    let verified = |name: &str| cell(&view, &format!("/verified/{name}"));
    text.push_str(&format!(
        "verified: {}, quality {}, {} of {} units recomputed\ncost: {} mc\nexecutor: {}\ntime: {} ms in all, {} ms of work\n",
        verified("assurance"),
        verified("quality"),
        verified("units_checked"),
        verified("units_total"),
        cell(&view, "/cost_mc"),
        cell(&view, "/executor/npub"),
        cell(&view, "/timing_ms/total"),
        cell(&view, "/timing_ms/work"),
    ));
    Reply::new(view, text).with_exit(exit)
}

/// A time in a view, as people read it.
pub(crate) fn time(ms: &Value) -> String {
    ms.as_u64().map_or_else(|| "-".to_owned(), utc)
}

/// Milliseconds since 1970 as `2026-11-21 02:35:00Z` (civil-from-days, proleptic Gregorian calendar).
fn utc(time_ms: u64) -> String {
    let seconds = time_ms / 1_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468; // days since 0000-03-01, so that a leap day ends its year
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}Z",
        second % 60
    )
}

#[cfg(test)]
mod tests {
    //! A person sees the same facts as a program, and an absent one as a dash.
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_calendar_times() {
        assert_eq!(utc(0), "1970-01-01 00:00:00Z");
        assert_eq!(utc(951_827_696_000), "2000-02-29 12:34:56Z");
        assert_eq!(utc(1_795_228_500_000), "2026-11-21 02:35:00Z");
    }

    #[test]
    fn a_table_aligns_and_a_missing_field_is_a_dash() {
        let view = json!({ "tasks": [
            { "id": "long-task-id", "status": { "state": "working" }, "metadata": { EXTENSION: { "skill": "simulation" } } },
            { "id": "t2", "status": { "state": "failed", "metadata": { EXTENSION: { "code": "lease_expired", "text": "no sign of life" } } } },
        ]});
        let text = tasks(&view);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let column = |line: &str, word: &str| line.find(word);
        assert_eq!(
            lines
                .iter()
                .zip(["STATE", "working", "failed"])
                .map(|(l, w)| column(l, w))
                .collect::<Vec<_>>(),
            [Some(14); 3]
        );
        assert!(lines.iter().any(|line| line.contains("t2")
            && line.contains(" - ")
            && line.contains("lease_expired: no sign of life")));
    }

    #[test]
    fn why_is_told_in_sentences() {
        let view = json!({
            "task": { "id": "t1", "status": { "state": "submitted", "metadata": { EXTENSION: {
                "code": "paused: owner", "text": "the owner has the hardware", "retry_at_ms": 951_827_696_000_u64,
            } } } },
            "peers": [{ "npub": "npub1x", "tier": "stranger", "said": { "code": "credit_required", "text": "no credit", "retry_at_ms": null } }],
        });
        assert_eq!(
            why(&view),
            "task t1 is submitted; paused: owner: the owner has the hardware (until 2000-02-29 12:34:56Z)\nnpub1x (stranger) credit_required: no credit\n"
        );
    }

    #[test]
    fn an_own_peer_has_no_limit_and_one_never_seen_says_so() {
        let text = peers(
            &json!({ "peers": [{ "npub": "npub1x", "tier": "own", "limit_mc": null, "last_seen_ms": 0, "lct": "", "skills": null }] }),
        );
        let cells: Vec<&str> = text
            .lines()
            .nth(1)
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        assert_eq!(cells, ["npub1x", "own", "none", "never", "-", "-"]);
    }

    #[test]
    fn a_result_shows_its_sums_and_not_all_of_its_units() {
        let view = json!({
            "task": { "id": "t1", "status": { "state": "completed" } },
            "result": { "price": 10.45, "units": vec![1; 64] },
            "verified": { "assurance": "sampled", "quality": 10000, "units_checked": 29, "units_total": 64 },
            "cost_mc": 64,
        });
        let reply = result(view);
        assert!(
            reply.text.contains("price: 10.45")
                && reply.text.contains("29 of 64")
                && reply.text.contains("(64 in all; --json has them)")
        );
        assert_eq!(reply.exit, Exit::DONE);
        let failed = result(json!({ "task": { "status": { "state": "failed" } } }));
        assert_eq!(failed.exit, Exit::FAILED);
    }
}
