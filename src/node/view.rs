//! What a person or a program sees of tasks, peers and the book: JSON in the shapes of the command-line contract.

use serde_json::{Map, Value, json};

use super::rows;
use crate::domain::Node;
use crate::domain::engagement::{Engagement, Stage};
use crate::domain::history::History;
use crate::domain::job::{AwardState, Job, Route, TaskState};
use crate::domain::ledger::{self, Kind};
use crate::domain::peer::Tier;
use crate::identity::npub;
use crate::store::{Order, Rows, Span, Store, StoreError, Table};
use crate::wire::message::EXTENSION;

/// Most finished tasks in a list.
const LIST_MAX: usize = 200;

/// ISO 8601 of Unix milliseconds.
fn iso(ms: u64) -> String {
    nostr::Timestamp::from_secs(ms / 1000).to_human_datetime()
}

fn route(job: &Job) -> Value {
    match &job.route {
        Route::Pool(pool) => json!({"pool": pool}),
        Route::Peer(peer) => json!({"peer": npub(peer)}),
        Route::Own => json!({"own": true}),
    }
}

/// The A2A task of a job of ours. `result` is its output, where there is one.
pub fn job(job: &Job, result: Option<&Value>) -> Value {
    let changed_ms = [
        job.marks.ended_ms,
        job.marks.received_ms,
        job.marks.accepted_ms,
        job.marks.awarded_ms,
        job.marks.asked_ms,
    ]
    .into_iter()
    .max()
    .unwrap_or(0);
    let mut status = json!({"state": job.state.as_str(), "timestamp": iso(changed_ms)});
    if let (Some(reason), Some(object)) = (&job.reason, status.as_object_mut()) {
        object.insert("metadata".into(), json!({EXTENSION: {"code": reason.code, "text": reason.text, "retry_at_ms": reason.retry_at_ms}}));
    }
    let artifacts: Vec<Value> = result
        .iter()
        .map(|output| json!({"artifactId": "result", "parts": [{"kind": "data", "data": output}]}))
        .collect();
    let awards: Vec<Value> = job
        .awards
        .iter()
        .map(|a| json!({"award_no": a.no, "executor": npub(&a.executor), "state": a.state, "money": a.money, "cap_mc": a.cap_mc, "hops_mc": a.hops_mc.unwrap_or(0), "units_done": a.units_done, "settle_by_ms": a.settle_by_ms}))
        .collect();
    json!({
        "kind": "task", "id": job.task, "contextId": job.context, "status": status, "artifacts": artifacts,
        "metadata": {EXTENSION: {
            "role": "requester", "skill": job.skill, "units": job.units, "route": route(job), "awards": awards, "part_of": job.parent,
            "max_price_mc": job.max_price_mc, "cost_mc": job.cost_mc, "deadline_ms": job.deadline_ms, "asked_ms": job.marks.asked_ms,
            "late_result": job.outcome.as_ref().is_some_and(|o| o.late),
        }},
    })
}

/// The A2A task of work that we do for somebody.
pub fn work(work: &Engagement) -> Value {
    let state = match (work.stage, work.end.as_deref()) {
        (Stage::Finished | Stage::Overdue | Stage::Disputed, _) | (_, Some("paid" | "refused")) => {
            "completed"
        }
        (_, Some("canceled" | "superseded")) => "canceled",
        (_, Some("declined")) => "rejected",
        (_, Some(_)) => "failed",
        (Stage::Queued, None) if work.started_ms == 0 => "submitted",
        _ => "working",
    };
    let code = work.end.clone().unwrap_or_else(|| {
        serde_json::to_value(work.stage)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default()
    });
    json!({
        "kind": "task", "id": work.task, "contextId": work.context, "artifacts": [],
        "status": {"state": state, "timestamp": iso(work.ended_ms.max(work.started_ms).max(work.accepted_ms)), "metadata": {EXTENSION: {"code": code, "text": "", "retry_at_ms": null}}},
        "metadata": {EXTENSION: {
            "role": "executor", "skill": work.skill, "requester": npub(&work.requester), "award_no": work.award_no, "units": work.units,
            "units_done": work.units_done, "checkpoint_units": work.checkpoint_units, "executed": work.executed, "tier": work.tier,
            "total_mc": work.total_mc, "hops_mc": work.hops_mc, "calls": work.calls, "money": work.money,
        }},
    })
}

/// Everything about a task with this id: ours, or one that we work on.
pub fn task(node: &Node, store: &Store, id: &str) -> Result<Option<Value>, StoreError> {
    let view = store.view()?;
    if let Some(found) = node
        .jobs()
        .get(id)
        .cloned()
        .map_or_else(|| rows::job(&view, id), |j| Ok(Some(j)))?
    {
        let result = result_of(store, &found)?;
        let mut object = json!({"task": job(&found, result.as_ref())});
        add_history(&mut object, rows::entries(&view, id)?);
        return Ok(Some(object));
    }
    let live = node
        .work()
        .values()
        .filter(|w| w.task == id)
        .max_by_key(|w| w.award_no)
        .cloned();
    let found = match live {
        Some(found) => Some(found),
        None => finished_work(store, id)?,
    };
    let Some(found) = found else { return Ok(None) };
    let mut object = json!({"task": work(&found)});
    add_history(&mut object, rows::entries(&view, &found.key)?);
    Ok(Some(object))
}

fn finished_work(store: &Store, id: &str) -> Result<Option<Engagement>, StoreError> {
    let view = store.view()?;
    for key in view.keys(Table::TasksByTime, Span::all(), 10_000, Order::Descending)? {
        let key = key.get(8..).unwrap_or_default();
        // `work/<requester>/<task>/<award_no>`
        let task = key.split(|byte| *byte == b'/').nth(2);
        if key.starts_with(b"work/") && task == Some(id.as_bytes()) {
            return view.get(Table::Tasks, key);
        }
    }
    Ok(None)
}

fn add_history(object: &mut Value, entries: Vec<crate::wire::entry::Entry>) {
    let mut history = History::default();
    entries.into_iter().for_each(|entry| history.add(entry));
    let list: Vec<Value> = history
        .ordered()
        .into_iter()
        .map(|e| json!({"at_ms": e.hlc / 1024, "author": npub(&e.author), "seq": e.seq, "what": e.what}))
        .collect();
    if let Some(meta) = object
        .pointer_mut(&format!(
            "/task/metadata/{}",
            EXTENSION.replace('~', "~0").replace('/', "~1")
        ))
        .and_then(Value::as_object_mut)
    {
        meta.insert(
            "history".into(),
            json!({"told": history.fold(), "entries": list}),
        );
    }
}

fn result_of(store: &Store, job: &Job) -> Result<Option<Value>, StoreError> {
    let paid = job.state == TaskState::Completed || job.outcome.as_ref().is_some_and(|o| o.late);
    if !paid {
        return Ok(None);
    }
    Ok(rows::payload(&store.view()?, &job.task, "result")?
        .and_then(|b| serde_json::from_slice(&b).ok()))
}

/// The full outcome of a completed job: the object of `ask` and `wait`.
pub fn outcome(store: &Store, done: &Job) -> Result<Value, StoreError> {
    let result = result_of(store, done)?;
    let mut told = json!({"task": job(done, result.as_ref())});
    add_history(&mut told, rows::entries(&store.view()?, &done.task)?);
    let mut object = Map::new();
    object.insert(
        "task".into(),
        told.get_mut("task").map_or(Value::Null, Value::take),
    );
    object.insert("result".into(), result.unwrap_or(Value::Null));
    let marks = &done.marks;
    let since = |from: u64, to: u64| {
        if from == 0 || to == 0 {
            0
        } else {
            to.saturating_sub(from)
        }
    };
    if let Some(outcome) = &done.outcome {
        object.insert(
            "proof".into(),
            serde_json::to_value(&outcome.proof).unwrap_or(Value::Null),
        );
        object.insert(
            "executor".into(),
            json!({"npub": npub(&outcome.executor), "lct": outcome.lct}),
        );
        if let Some(found) = &outcome.findings {
            let verified = json!({
                "signature": true, "input": found.input, "output": found.output, "schema": found.schema,
                "cost": found.fault.as_ref().is_none_or(|f| f.code != "cost_mismatch"), "assurance": found.assurance,
                "quality": outcome.quality_bp.map(|bp| f64::from(bp) / 10_000.0),
                "units_checked": found.units_checked, "units_total": outcome.proof.units,
            });
            object.insert("verified".into(), verified);
        }
    }
    object.insert("cost_mc".into(), json!(done.cost_mc));
    let offered_ms = if marks.offered_ms == 0 {
        marks.asked_ms
    } else {
        marks.offered_ms
    };
    let timing = json!({
        "offer": since(offered_ms, marks.awarded_ms), "award": since(marks.awarded_ms, marks.accepted_ms),
        "work": since(marks.accepted_ms, marks.received_ms), "total": since(marks.asked_ms, marks.ended_ms),
    });
    object.insert("timing_ms".into(), timing);
    Ok(Value::Object(object))
}

/// Live tasks and the newest finished ones.
pub fn tasks(node: &Node, store: &Store) -> Result<Value, StoreError> {
    let view = store.view()?;
    let mut list: Vec<Value> = node
        .jobs()
        .values()
        .map(|j| job(j, None))
        .chain(node.work().values().map(work))
        .collect();
    for key in view.keys(Table::TasksByTime, Span::all(), LIST_MAX, Order::Descending)? {
        let key = key.get(8..).unwrap_or_default();
        if key.starts_with(b"job/") {
            list.extend(view.get::<Job>(Table::Tasks, key)?.map(|j| job(&j, None)));
        } else {
            list.extend(view.get::<Engagement>(Table::Tasks, key)?.map(|w| work(&w)));
        }
    }
    Ok(json!({"tasks": list}))
}

/// Per known peer, why it did not get or take the job.
pub fn why(node: &Node, store: &Store, id: &str, now: u64) -> Result<Option<Value>, StoreError> {
    let found = match node.jobs().get(id) {
        Some(job) => Some(job.clone()),
        None => rows::job(&store.view()?, id)?,
    };
    let Some(found) = found else { return Ok(None) };
    let in_pool = match &found.route {
        Route::Pool(pool) => Some(pool.as_str()),
        Route::Peer(_) | Route::Own => None,
    };
    let mut peers = Vec::new();
    for peer in node.peers().values() {
        let award = found.awards.iter().rev().find(|a| a.executor == peer.npub);
        let said = if let Some(refusal) = found.refusals.get(&peer.npub) {
            json!({"code": refusal.code, "text": refusal.text, "retry_at_ms": refusal.retry_at_ms})
        } else if let Some(award) = award {
            let text = match award.state {
                AwardState::Sent => "awarded; no answer yet",
                AwardState::Accepted => "has accepted",
                AwardState::Superseded => "lost the award: no sign of life",
                AwardState::Declined => "gave the award back",
                AwardState::Delivered => "delivered the result",
                AwardState::Disputed => "contradicted itself about the task",
            };
            json!({"code": "awarded", "text": text, "retry_at_ms": null})
        } else if let Some((_, bid)) = found.bids.iter().find(|(n, _)| *n == peer.npub) {
            json!({"code": "bid", "text": format!("bid {} mc", bid.total_mc), "retry_at_ms": null})
        } else if matches!(&found.route, Route::Peer(p) if *p != peer.npub)
            || found.route == Route::Own
        {
            continue;
        } else if in_pool.is_some_and(|pool| peer.advertises(&found.skill, pool, now)) {
            json!({"code": "no_answer", "text": "offers the skill, has not answered", "retry_at_ms": null})
        } else {
            json!({"code": "skill_not_offered", "text": "does not offer the skill now", "retry_at_ms": null})
        };
        peers.push(json!({"npub": npub(&peer.npub), "tier": peer.tier, "said": said}));
    }
    let reason = found
        .reason
        .as_ref()
        .map(|r| json!({"code": r.code, "text": r.text, "retry_at_ms": r.retry_at_ms}));
    let result = result_of(store, &found)?;
    let mut object =
        json!({"task": job(&found, result.as_ref()), "reason": reason, "peers": peers});
    add_history(&mut object, rows::entries(&store.view()?, id)?);
    Ok(Some(object))
}

/// All known peers.
pub fn peers(node: &Node, now: u64) -> Value {
    let list: Vec<Value> = node
        .peers()
        .values()
        .map(|p| {
            let ad = p.ad.as_ref().filter(|ad| ad.expires_ms > now);
            json!({
                "npub": npub(&p.npub), "tier": p.tier, "limit_mc": limit(node, p.tier, &p.npub), "lct": p.lct, "last_seen_ms": p.last_seen_ms,
                "skills": ad.map(|ad| ad.skills.iter().map(|s| json!({"id": s.id, "unit_price_mc": s.unit_price_mc, "hops_mc": s.hops_mc})).collect::<Vec<_>>()),
                "queue": ad.map(|ad| ad.queue), "paused": ad.map(|ad| ad.paused), "completed": p.completed, "frauds": p.frauds, "disputed": p.disputed, "frozen": node.holds(&p.npub),
            })
        })
        .collect();
    json!({"peers": list})
}

/// Whom a restored node waits for: `{since_ms,open,until_ms,peers:[{npub,asked_ms,tries}]}`; null where it waits for nobody.
pub fn recovery(node: &Node) -> Value {
    let Some(recovery) = node.recovery().filter(|_| node.holds_any()) else {
        return Value::Null;
    };
    let peers: Vec<Value> = (recovery.peers.iter().filter(|(_, asked)| !asked.late))
        .map(|(key, asked)| json!({"npub": npub(key), "asked_ms": asked.asked_ms, "tries": asked.tries, "endless": asked.endless}))
        .collect();
    json!({"since_ms": recovery.since_ms, "open": recovery.open, "until_ms": recovery.until_ms, "peers": peers})
}

/// What a peer has shown of later keys of this identity; null where these are the latest.
pub fn behind(node: &Node) -> Value {
    node.behind().map_or(Value::Null, |behind| {
        let ours = node.policy().binding.statement.epoch;
        json!({"epoch": ours, "known": behind.epoch, "at_ms": behind.at_ms, "by": npub(&behind.by)})
    })
}

/// The credit granted, where it is a number: the owner's own nodes have no limit.
fn limit(node: &Node, tier: Tier, key: &str) -> Option<u64> {
    let peer = node.peers().get(key)?;
    (tier != Tier::Own || peer.disputed).then(|| node.policy().limit_mc(peer))
}

/// The book: `{unit,accounts,transfers,sum_mc}`, for one peer or all.
pub fn ledger(node: &Node, store: &Store, only: Option<&str>) -> Result<Value, StoreError> {
    let wanted = |key: &str| key != ledger::SELF && only.is_none_or(|only| only == key);
    let accounts: Vec<Value> = node
        .ledger()
        .accounts()
        .filter(|a| wanted(&a.npub))
        .map(|a| {
            let tier = node.peers().get(&a.npub).map_or(Tier::Stranger, |p| p.tier);
            let granted = limit(node, tier, &a.npub);
            let used = node.ledger().exposure_mc(&a.npub);
            json!({
                "npub": npub(&a.npub), "tier": tier, "limit_granted_mc": granted, "posted_mc": a.posted_mc,
                "pending_owed_to_us_mc": a.pending_owed_to_us_mc, "pending_we_owe_mc": a.pending_we_owe_mc,
                "available_mc": granted.map(|g| g.saturating_sub(used)), "frozen": node.holds(&a.npub),
            })
        })
        .collect();
    let transfers: Vec<Value> = rows::transfers(&store.view()?, 1_000)?
        .into_iter()
        .filter(|t| wanted(&t.npub))
        .map(|t| {
            let kind = match t.kind {
                Kind::Lock => "lock",
                Kind::Commit => "commit",
                Kind::Rollback => "rollback",
            };
            json!({"id": t.id, "task": t.task, "award_no": t.award_no, "npub": npub(&t.npub), "kind": kind, "side": t.side, "amount_mc": t.amount_mc, "at_ms": t.at_ms})
        })
        .collect();
    Ok(
        json!({"unit": "mc", "accounts": accounts, "transfers": transfers, "sum_mc": node.ledger().sum_mc()}),
    )
}
