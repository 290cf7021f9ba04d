//! A disk that is full, and one that fails to sync: nothing leaves the node that is not durable.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::borrowed;
use crate::support::world::{Node, Pair, job, until};

fn tasks(node: &Node, kind: &str) -> BTreeSet<String> {
    let entries = node.journaled(kind);
    let tasks = entries
        .iter()
        .map(|e| e["task"].as_str().unwrap().to_owned());
    tasks.collect()
}

/// Asks with new keys until the store refuses; gives the tasks that became durable and the refused ask's key.
fn ask_until_refused(
    node: &Node,
    mut ask: impl FnMut(&Node, &str) -> Value,
) -> (Vec<String>, String) {
    let mut durable = Vec::new();
    for n in 0..2_000 {
        let key = format!("ask {n}");
        let said = ask(node, &key);
        match said.pointer("/task/id").and_then(Value::as_str) {
            Some(id) => durable.push(id.to_owned()),
            None => {
                let log = node.stderr();
                assert_eq!(said["error"]["code"], "store_unavailable", "{said}\n{log}");
                return (durable, key);
            }
        }
    }
    panic!("the store never refused");
}

#[test]
fn a_failed_commit_lets_nothing_out_and_the_node_goes_on() {
    let mut pair = Pair::start(|_, _| {});
    assert!(pair.worker.terminate().success());
    assert!(pair.asker.terminate().success());
    pair.asker.env("LEGION_STORE_FAULT", "sync=12,lose");
    pair.asker.up();
    let mut small = job(1, 1);
    small.extend(["--peer".into(), pair.worker.npub.clone()]);
    let (durable, refused) = ask_until_refused(&pair.asker, |node, key| {
        let mut args = borrowed(&small);
        args.extend(["--detach", "--key", key]);
        serde_json::from_slice(&node.run(&args).stdout).unwrap()
    });
    assert!(!durable.is_empty(), "some asks became durable before");
    // The same ask again is a new task: of the refused one nothing is left.
    let again = pair.ask(&refused, &borrowed(&small));
    pair.worker.up();
    for task in durable.iter().chain([&again]) {
        pair.finish(task);
    }
    let asked: BTreeSet<String> = durable.iter().chain([&again]).cloned().collect();
    assert_eq!(tasks(&pair.asker, "asked"), asked);
    assert_eq!(
        tasks(&pair.worker, "accepted"),
        asked,
        "nothing else arrived"
    );
}

#[test]
fn a_full_disk_lets_nothing_out_and_is_survived() {
    let mut pair = Pair::start(|_, _| {});
    assert!(pair.worker.terminate().success());
    assert!(pair.asker.terminate().success());
    let file = pair.asker.home.join("store.redb");
    let size = std::fs::metadata(file).unwrap().len();
    // Enough for the start, which writes too; far less than all that is asked.
    let quota = size + (1 << 20);
    pair.asker
        .env("LEGION_STORE_FAULT", &format!("quota={quota}"));
    pair.asker.up();
    let peer = pair.worker.npub.clone();
    // A skill that nobody has, with much to store.
    let (durable, _) = ask_until_refused(&pair.asker, |node, key| {
        let input = json!({"stuff": "x".repeat(12_000)});
        let params = json!({"skill": "nothing", "input": input, "peer": peer, "key": key});
        let said = node.call("task/ask", params);
        match said.get("result") {
            Some(result) => result.clone(),
            None => json!({"error": {"code": said["error"]["data"]["code"], "said": said}}),
        }
    });
    pair.asker.kill();
    pair.asker.env_remove("LEGION_STORE_FAULT");
    pair.asker.up();
    assert_eq!(
        tasks(&pair.asker, "asked"),
        durable.iter().cloned().collect()
    );
    pair.worker.up();
    for task in &durable {
        pair.asker.fails(1, &["wait", task]);
    }
    assert_eq!(
        tasks(&pair.worker, "award_declined"),
        durable.iter().cloned().collect()
    );
    let small = job(1, 1);
    let task = pair.ask("after", &borrowed(&small));
    pair.finish(&task);
}

/// The n-th sync after the start fails and takes with it what was not synced, for one n after the other: each commit of a
/// task is hit once.
fn every_commit_fails_once(asker: bool) {
    let mut pair = Pair::start(|_, worker| {
        worker.configure("labor", "checkpoint_every_units", "2");
    });
    // Long enough that the checkpoints are commits of their own, and not written with what follows at once.
    let small = job(24, 2);
    let mut struck = 0;
    for nth in 1..=20 {
        let node = if asker {
            &mut pair.asker
        } else {
            &mut pair.worker
        };
        node.kill();
        node.env("LEGION_STORE_FAULT", &format!("sync={nth},lose"));
        node.try_up();
        let refused = "the store refused a commit";
        let before = node.stderr().matches(refused).count();
        if node.ended() {
            // The sync of an opening: no node starts on a store that cannot be opened.
            node.env_remove("LEGION_STORE_FAULT");
            node.up();
        }
        let key = format!("sync {nth}");
        let mut args = borrowed(&small);
        args.extend(["--detach", "--key", &key]);
        // Asked again until it is durable; the same key never makes a second task.
        let task = until("a durable task", || {
            let said: Value = serde_json::from_slice(&pair.asker.run(&args).stdout).unwrap();
            let id = said.pointer("/task/id").and_then(Value::as_str);
            if id.is_none() {
                let log = pair.asker.stderr();
                assert_eq!(said["error"]["code"], "store_unavailable", "{said}\n{log}");
            }
            id.map(str::to_owned)
        });
        eprintln!("{task} with sync {nth}");
        pair.finish(&task);
        assert_eq!(pair.asker.count(&task, "award"), 1);
        let node = if asker { &pair.asker } else { &pair.worker };
        struck += usize::from(node.stderr().matches(refused).count() > before);
    }
    assert!(struck >= 5, "only {struck} commits failed");
}

#[test]
fn every_commit_of_the_asker_fails_once() {
    every_commit_fails_once(true);
}

#[test]
fn every_commit_of_the_worker_fails_once() {
    every_commit_fails_once(false);
}
