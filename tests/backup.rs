//! A home that was lost is restored from a backup taken many tasks ago: its node asks its peers what it has forgotten, both books
//! mirror each other again, nothing old is said again, and nobody ever sees two stories of it.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::world::{Node, Pair, job, until};

/// A task of one unit, asked over the socket: one process per task would take longer than the tasks.
fn ask(node: &Node, peer: Option<&str>, seed: u64) -> String {
    let mut input = json!({"kind": "asian", "side": "call", "spot": 100.0, "strike": 105.0, "rate": 0.05, "volatility": 0.2,
        "years": 1.0, "steps": 64, "paths": 512});
    input["seed"] = json!(seed.to_string());
    let params =
        json!({"skill": "simulation", "input": input, "peer": peer, "pool": null, "key": null});
    let answer = node.call("task/ask", params);
    let task = answer["result"]["task"]["id"].as_str();
    task.unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// So many tasks, one after the other, half of them by auction; all completed.
fn work(pair: &Pair, tasks: u64, from: u64) -> Vec<String> {
    let tasks: Vec<String> = (0..tasks)
        .map(|n| ask(&pair.asker, Some(&pair.worker.npub), from + n))
        .collect();
    for task in &tasks {
        ended(&pair.asker, task, "completed");
    }
    pair.settle();
    tasks
}

fn ended(node: &Node, task: &str, state: &str) {
    until(&format!("{task} to be {state}"), || {
        let found = node.call("task/get", json!({"id": task}));
        let found = &found["result"]["task"]["status"]["state"];
        (found == state).then_some(())
    });
}

fn backup(node: &Node, name: &str) -> PathBuf {
    let file = node.home.with_extension(name);
    let made = node.ok(&["backup", file.to_str().unwrap(), "--with-keys"]);
    assert_eq!(
        (&made["npub"], &made["with_keys"]),
        (&json!(node.npub), &json!(true))
    );
    file
}

/// The home is gone; only the backup is left.
fn lose(node: &mut Node, file: &std::path::Path) {
    node.kill();
    std::fs::remove_dir_all(&node.home).unwrap();
    let restored = node.ok(&["restore", file.to_str().unwrap()]);
    assert_eq!(restored["npub"], json!(node.npub));
}

fn reconciled(node: &Node) {
    until("the peers to have answered", || {
        node.ok(&["status"])["recovering"].is_null().then_some(())
    });
}

/// No author of any task is known to have told two stories, on either side.
fn one_story(pair: &Pair) {
    for node in [&pair.asker, &pair.worker] {
        assert_eq!(node.journaled("equivocation"), Vec::<Value>::new());
        for refused in ["equivocation", "key_unbound", "money_refused"] {
            assert_eq!(
                node.ok(&["status"])["dropped"][refused],
                Value::Null,
                "{refused}"
            );
        }
        assert_eq!(node.journaled("money_refused"), Vec::<Value>::new());
    }
}

fn posted(node: &Node) -> i64 {
    let book = node.ok(&["ledger"]);
    book["accounts"][0]["posted_mc"].as_i64().unwrap()
}

#[test]
fn the_asker_comes_back_from_a_backup_of_a_hundred_tasks_ago() {
    let mut pair = Pair::start(|_, _| {});
    work(&pair, 5, 0);
    let file = backup(&pair.asker, "backup");
    let since = work(&pair, 100, 1_000);
    let (before, awards) = (posted(&pair.asker), pair.worker.journaled("accepted").len());
    lose(&mut pair.asker, &file);
    pair.asker.up();
    reconciled(&pair.asker);
    pair.settle();
    assert_eq!(posted(&pair.asker), before);
    assert_eq!(
        pair.worker.journaled("accepted").len(),
        awards,
        "no award was sent again"
    );
    for task in &since {
        ended(&pair.asker, task, "completed");
    }
    one_story(&pair);
    // And life goes on, both ways.
    let task = ask(&pair.asker, None, 7);
    pair.finish(&task);
    let back = ask(&pair.worker, Some(&pair.asker.npub), 8);
    ended(&pair.worker, &back, "completed");
    pair.settle();
    one_story(&pair);
}

#[test]
fn the_worker_comes_back_from_a_backup_of_many_tasks_ago() {
    let mut pair = Pair::start(|_, _| {});
    work(&pair, 3, 0);
    let file = backup(&pair.worker, "backup");
    work(&pair, 20, 1_000);
    let before = posted(&pair.worker);
    lose(&mut pair.worker, &file);
    pair.worker.up();
    reconciled(&pair.worker);
    pair.settle();
    assert_eq!(posted(&pair.worker), before);
    one_story(&pair);
    let task = ask(&pair.asker, None, 7);
    pair.finish(&task);
    let small = job(1, 1);
    let small: Vec<&str> = small.iter().map(String::as_str).collect();
    let back = pair
        .worker
        .ok(&[&small[..], &["--peer", &pair.asker.npub]].concat());
    assert_eq!(back["task"]["status"]["state"], "completed");
    pair.settle();
    one_story(&pair);
}
