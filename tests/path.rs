//! The first path: one node asks, another one does it, both books agree.

use crate::support::world::{Pair, option};

#[test]
fn a_directed_task_comes_back_proven_and_paid() {
    let pair = Pair::start(|_, _| {});
    let done = pair.asker.ok(&option(&["--peer", &pair.worker.npub]));
    assert_eq!(done["task"]["status"]["state"], "completed");
    assert_eq!(done["executor"]["npub"], pair.worker.npub.as_str());
    assert_eq!(done["cost_mc"], done["verified"]["units_total"]);
    let price = done["result"]["price"].as_f64().unwrap();
    let error = done["result"]["std_error"].as_f64().unwrap();
    assert!((price - 8.0214).abs() < 5.0 * error, "{price} +- {error}");
    pair.settle();
}

#[test]
fn a_pool_task_is_won_by_the_peer_that_bids() {
    let pair = Pair::start(|_, _| {});
    let done = pair.asker.ok(&option(&[]));
    assert_eq!(done["executor"]["npub"], pair.worker.npub.as_str());
    assert_eq!(done["verified"]["assurance"], "sampled");
    assert_eq!(done["verified"]["quality"], 1.0);
    for kind in [
        "offer", "bid", "award", "accept", "result", "checked", "receipt",
    ] {
        assert_eq!(pair.asker.journaled(kind).len(), 1, "{kind}");
    }
    pair.settle();
}

#[test]
fn the_same_key_is_the_same_task_and_another_input_is_refused() {
    let pair = Pair::start(|_, _| {});
    let first = pair.asker.ok(&option(&["--key", "k1"]));
    let again = pair.asker.ok(&option(&["--key", "k1"]));
    assert_eq!(first["task"]["id"], again["task"]["id"]);
    let refused = pair
        .asker
        .fails(2, &option(&["--key", "k1", "--set", "seed=2"]));
    assert_eq!(refused["error"]["code"], "key_reused");
    pair.settle();
}

/// The executor's node finds its work by the whole id of the task, and by nothing else.
#[test]
fn work_is_shown_by_its_whole_id_only() {
    let pair = Pair::start(|_, _| {});
    let task = pair.ask("once", &option(&["--peer", &pair.worker.npub]));
    pair.finish(&task);
    assert_eq!(
        pair.worker.ok(&["task", &task])["task"]["id"],
        task.as_str()
    );
    for id in ["", &task[..1], &task[1..], &task[..31]] {
        let refused = pair.worker.fails(2, &["task", id]);
        assert_eq!(refused["error"]["code"], "task_unknown", "{id}");
    }
}
