//! Peers that were first met after the backup, and are asked once they speak.

use serde_json::json;

use super::{ask, backup, ended, lose, reconciled, work};
use crate::support::world::{Node, Pair, job, until};

fn posted_with(node: &Node, peer: &Node) -> i64 {
    let book = node.ok(&["ledger"])["accounts"].clone();
    let accounts = book.as_array().unwrap();
    let with = accounts.iter().find(|a| a["npub"] == peer.npub);
    with.map_or(0, |a| a["posted_mc"].as_i64().unwrap())
}

fn asked_late(node: &Node) -> usize {
    node.journaled("asked_late").len()
}

#[test]
fn a_peer_that_was_met_after_the_backup_is_asked_when_it_speaks() {
    let mut pair = Pair::start(|_, _| {});
    work(&pair, 2, 0);
    let file = backup(&pair.asker, "backup");
    let dir = tempfile::tempdir().unwrap();
    let url = pair.relay.as_ref().unwrap().url.clone();
    let mut late = Node::init(dir.path(), "late", &[&url]);
    late.up();
    for (node, peer) in [(&late, &pair.asker), (&pair.asker, &late)] {
        node.ok(&["peers", "trust", &peer.npub, "--tier", "trusted"]);
    }
    let paid: Vec<String> = (0..3)
        .map(|n| ask(&pair.asker, Some(&late.npub), 40 + n))
        .collect();
    for task in &paid {
        ended(&pair.asker, task, "completed");
    }
    until("the receipts to arrive", || {
        (posted_with(&late, &pair.asker) == 3).then_some(())
    });
    let long = job(256, 4);
    let mut long: Vec<&str> = long.iter().map(String::as_str).collect();
    long.extend(["--peer", &late.npub]);
    let open = pair.ask("open", &long);
    until("the work to begin", || {
        (late.count(&open, "lease_granted") > 0).then_some(())
    });
    late.kill();
    lose(&mut pair.asker, &file);
    pair.asker.up();
    reconciled(&pair.asker);
    assert_eq!(posted_with(&pair.asker, &late), 0, "nobody knows of it");
    assert_eq!(pair.asker.ok(&["status"])["locks"], 0);

    late.up();
    // What was still worked on is canceled, and paid as far as it went: its input is gone.
    ended(&pair.asker, &open, "canceled");
    until("both books to mirror", || {
        let (ours, theirs) = (
            posted_with(&pair.asker, &late),
            posted_with(&late, &pair.asker),
        );
        let open = late.ok(&["status"])["locks"] != 0;
        (theirs >= 3 && ours == -theirs && !open).then_some(())
    });
    for task in &paid {
        ended(&pair.asker, task, "completed");
    }
    // Nobody waits for it meanwhile, and it is not asked twice.
    assert_eq!(pair.asker.ok(&["status"])["recovering"], json!(null));
    let task = ask(&pair.asker, Some(&pair.worker.npub), 90);
    ended(&pair.asker, &task, "completed");
    pair.asker
        .ok(&["peers", "trust", &late.npub, "--tier", "trusted"]);
    let task = ask(&pair.asker, Some(&late.npub), 91);
    ended(&pair.asker, &task, "completed");
    assert_eq!(asked_late(&pair.asker), 1);
    for node in [&pair.asker, &late] {
        assert_eq!(node.journaled("equivocation").len(), 0);
        assert_eq!(node.journaled("money_refused").len(), 0);
    }
}
