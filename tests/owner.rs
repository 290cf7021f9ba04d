//! The owner comes first: foreign work steps back softly, says so, loses nothing, and goes on when the owner is done.

use serde_json::Value;

use crate::support::world::{Node, Pair, long, option, until};

/// A pair whose worker has begun a foreign task; the task's id.
fn working(prepare: impl FnOnce(&mut Node, &mut Node)) -> (Pair, String) {
    let pair = Pair::start(|asker, worker| {
        worker.configure("labor", "cores", "1");
        prepare(asker, worker);
    });
    let asked = pair
        .asker
        .ok(&long(&["--peer", &pair.worker.npub, "--detach"]));
    until("a checkpoint", || {
        (!pair.worker.journaled("checkpoint").is_empty()).then_some(())
    });
    (pair, asked["task"]["id"].as_str().unwrap().to_owned())
}

fn body(entry: &Value) -> &Value {
    &entry["body"]
}

/// Waits for the first entry of this kind and gives it.
fn journaled(node: &Node, kind: &str) -> Value {
    until(kind, || node.journaled(kind).into_iter().next())
}

/// The task's metadata that A2A has no field for.
fn reason(node: &Node, id: &str) -> Value {
    let task = node.ok(&["task", id]);
    let extras = task["task"]["status"]["metadata"].as_object().unwrap();
    extras.values().next().unwrap().clone()
}

/// The task ends well, begun again only from where it stopped, with no unit computed twice.
fn goes_on_to_the_end(pair: &Pair, id: &str) {
    let done = pair.asker.ok(&["wait", id]);
    assert_eq!(done["verified"]["quality"], 1.0);
    let grants = pair.worker.journaled("lease_granted");
    let grants: Vec<&Value> = grants.iter().filter(|e| e["task"] == id).collect();
    let resumed = body(grants.last().unwrap())["resumed_from"]
        .as_u64()
        .unwrap();
    let stopped = pair.worker.journaled("hibernated");
    assert_eq!(
        Some(resumed),
        body(stopped.last().unwrap())["units_done"].as_u64()
    );
    assert!(resumed > 0);
    let executed = |kind: &str| -> u64 {
        let entries = pair.worker.journaled(kind);
        entries
            .iter()
            .filter(|e| e["task"] == id)
            .map(|e| body(e)["executed"].as_u64().unwrap())
            .sum()
    };
    assert_eq!(
        executed("hibernated") + executed("done"),
        done["verified"]["units_total"].as_u64().unwrap()
    );
    pair.settle();
}

#[test]
fn pause_stops_softly_the_requester_sees_it_and_resume_goes_on() {
    let (pair, id) = working(|_, _| {});
    let paused = pair.worker.ok(&["pause", "--now"]);
    assert_eq!(
        (&paused["paused"]["mode"], &paused["paused"]["until_ms"]),
        (&Value::from("now"), &Value::Null)
    );
    let revoked = journaled(&pair.worker, "lease_revoked");
    let stopped = journaled(&pair.worker, "hibernated");
    assert!(revoked["seq"].as_u64() < stopped["seq"].as_u64());
    let seen = until("the requester to see the pause", || {
        Some(reason(&pair.asker, &id)).filter(|r| r["code"] == "paused: owner")
    });
    assert_eq!(
        seen["retry_at_ms"],
        Value::Null,
        "only the owner knows when: {seen}"
    );
    assert_eq!(pair.worker.ok(&["status"])["work"]["hibernating"], 1);
    // What is asked of it meanwhile waits; this one's deadline does not.
    let late = pair.asker.fails(
        4,
        &option(&["--peer", &pair.worker.npub, "--deadline", "3"]),
    );
    assert_eq!(late["error"]["code"], "deadline_passed");
    pair.worker.ok(&["resume"]);
    goes_on_to_the_end(&pair, &id);
    assert_eq!(
        pair.worker.fails(1, &["resume"])["error"]["code"],
        "not_paused"
    );
}

/// What `why` says of the only peer there is.
fn said(node: &Node, id: &str) -> Value {
    let peers = node.ok(&["why", id])["peers"].clone();
    peers[0]["said"]["code"].clone()
}

#[test]
fn a_task_offered_during_a_pause_is_taken_at_resume() {
    for restarted in [false, true] {
        let mut pair = Pair::start(|_, _| {});
        pair.worker.ok(&["pause", "--now"]);
        let asked = pair.asker.ok(&option(&["--detach"]));
        let id = asked["task"]["id"].as_str().unwrap().to_owned();
        until("the requester to hear why", || {
            (said(&pair.asker, &id) == "owner_paused").then_some(())
        });
        let waiting = reason(&pair.asker, &id);
        assert_eq!(waiting["code"], "waiting_for_resume", "{waiting}");
        if restarted {
            // What either side remembers in memory alone is gone.
            pair.worker.kill();
            pair.asker.kill();
            pair.worker.up();
            pair.asker.up();
        }
        pair.worker.ok(&["resume"]);
        let done = pair.asker.ok(&["wait", &id]);
        assert_eq!(done["verified"]["quality"], 1.0);
        assert_eq!(said(&pair.asker, &id), "awarded");
        pair.settle();
    }
}

#[test]
fn a_pause_for_a_time_says_until_when_and_ends_by_itself() {
    let (pair, id) = working(|_, _| {});
    let paused = pair.worker.ok(&["pause", "--for", "4s"]);
    let until_ms = paused["paused"]["until_ms"].as_u64().unwrap();
    let seen = until("the requester to see the pause", || {
        Some(reason(&pair.asker, &id)).filter(|r| r["code"] == "paused: owner")
    });
    assert_eq!(seen["retry_at_ms"].as_u64(), Some(until_ms));
    goes_on_to_the_end(&pair, &id);
    let resumed = pair.worker.journaled("resume");
    assert_eq!(body(&resumed[0])["by"], "time");
    assert!(resumed[0]["at_ms"].as_u64().unwrap() >= until_ms);
}

#[test]
fn after_checkpoint_waits_for_the_next_one() {
    let (pair, id) = working(|_, _| {});
    pair.worker.ok(&["pause", "--after-checkpoint"]);
    let stopped = journaled(&pair.worker, "hibernated");
    let revoked = journaled(&pair.worker, "lease_revoked");
    let between = |e: &&Value| {
        e["seq"].as_u64() > revoked["seq"].as_u64() && e["seq"].as_u64() < stopped["seq"].as_u64()
    };
    let checkpoints = pair.worker.journaled("checkpoint");
    assert!(
        checkpoints.iter().any(|e| between(&e)),
        "a checkpoint came first: {checkpoints:?}"
    );
    pair.worker.ok(&["resume"]);
    goes_on_to_the_end(&pair, &id);
}

#[test]
fn a_local_ask_takes_the_hardware_and_gives_it_back() {
    for own in [false, true] {
        let (pair, id) = working(|_, _| {});
        let peer = if own {
            pair.worker.npub.clone()
        } else {
            "self".to_owned()
        };
        let done = pair
            .worker
            .ok(&option(&["--set", "steps=256", "--peer", &peer]));
        assert_eq!(
            (&done["cost_mc"], &done["executor"]["npub"]),
            (&Value::from(0), &Value::from(pair.worker.npub.as_str()))
        );
        let local = done["task"]["id"].as_str().unwrap();
        let whole = pair.asker.ok(&["wait", &id]);
        assert_eq!(whole["verified"]["quality"], 1.0);
        let journal = pair.worker.journal();
        let at = |kind: &str, task: &str, nth: usize| {
            let found = journal
                .iter()
                .filter(|e| e["kind"] == kind && e["task"] == task)
                .nth(nth);
            found.unwrap_or_else(|| panic!("no {kind} of {task}"))["seq"]
                .as_u64()
                .unwrap()
        };
        let order = [
            at("lease_granted", &id, 0),
            at("lease_revoked", &id, 0),
            at("hibernated", &id, 0),
            at("lease_granted", &id, 1),
            at("done", &id, 0),
        ];
        assert!(order.is_sorted(), "{order:?}");
        // A unit in work is finished beside the owner's task, at the lowest priority; nothing goes on before that is done.
        assert!(at("done", local, 0) < order[3], "{order:?}");
        assert!(
            !pair.asker.journaled("paused").is_empty(),
            "the requester was told"
        );
        goes_on_to_the_end(&pair, &id);
    }
}

#[test]
fn sigterm_checkpoints_and_ends_and_the_next_start_goes_on() {
    let (mut pair, id) = working(|_, _| {});
    let began = std::time::Instant::now();
    let status = pair.worker.terminate();
    assert_eq!(status.code(), Some(0), "{}", pair.worker.stderr());
    assert!(began.elapsed().as_secs() < 20, "SIGTERM takes under 20 s");
    pair.worker.up();
    assert!(
        !pair.worker.journaled("hibernated").is_empty(),
        "it stopped at a checkpoint"
    );
    goes_on_to_the_end(&pair, &id);
}

/// The worker processes of a node: `(pid, nice, threads)`.
#[cfg(target_os = "linux")]
fn workers(node: u32) -> Vec<(u32, i64, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // The name in brackets may hold anything; the fields after it are numbered from 3 (proc(5)).
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let field = |number: usize| fields[number - 3].parse::<i64>().unwrap_or(0);
        if field(4) == i64::from(node) {
            found.push((pid, field(19), field(20) as u64));
        }
    }
    found
}

#[cfg(target_os = "linux")]
#[test]
fn foreign_work_is_nice_and_cores_reach_it_while_it_runs() {
    let (pair, id) = working(|_, _| {});
    let (pid, nice, threads) = workers(pair.worker.pid())[0];
    assert_eq!(nice, 19, "foreign work has the lowest priority");
    assert_eq!(pair.worker.ok(&["status"])["cores"], 1);
    let set = pair.worker.ok(&["pause", "--cores", "2"]);
    assert_eq!(set["cores"], 2);
    until("the worker to have more threads", || {
        let now = workers(pair.worker.pid())
            .into_iter()
            .find(|(p, _, _)| *p == pid);
        now.filter(|(_, _, now)| *now > threads).map(|_| ())
    });
    let done = pair.asker.ok(&["wait", &id]);
    assert!(
        pair.worker.journaled("hibernated").is_empty(),
        "nobody hears of it"
    );
    let end = journaled(&pair.worker, "done");
    assert_eq!(
        body(&end)["executed"],
        done["verified"]["units_total"],
        "no unit is computed twice"
    );
    let local = pair
        .worker
        .ok(&option(&["--set", "steps=256", "--peer", "self"]));
    assert_eq!(local["task"]["status"]["state"], "completed");
    assert!(
        workers(pair.worker.pid())
            .iter()
            .any(|(_, nice, _)| *nice == 0),
        "the owner's own work is not nice"
    );
    pair.settle();
}

/// Those who wait for tasks leave room for the owner's other commands, and are told when there is none for them.
#[test]
fn waiting_commands_do_not_keep_the_owner_out() {
    let (pair, id) = working(|asker, _| asker.configure("limits", "control_connections", "10"));
    let wait = || {
        let mut command = pair.asker.command(&["wait", &id]);
        command.stdout(std::process::Stdio::null());
        let mut child = command
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stderr = child.stderr.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stderr), &mut line).unwrap();
        (child, line)
    };
    let waiting = [wait(), wait()];
    assert!(
        waiting.iter().all(|(_, line)| !line.is_empty()),
        "they say what they wait for"
    );
    let refused = pair.asker.fails(2, &["wait", &id]);
    assert_eq!(refused["error"]["code"], "too_many_waits");
    assert_eq!(pair.asker.ok(&["status"])["tasks"]["open"], 1);
    pair.asker.ok(&["cancel", &id]);
    for (mut child, _) in waiting {
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
}
