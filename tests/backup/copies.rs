//! Two live nodes with one identity notice each other, and stop.

use serde_json::{Value, json};

use super::{backup, reconciled};
use crate::support::world::{Node, Relay, job, until};

fn elsewhere(node: &Node) -> Value {
    node.ok(&["status"])["elsewhere"].clone()
}

fn asks_own(node: &Node) -> Vec<String> {
    let mut own = job(1, 1);
    own.extend(["--peer".into(), "self".into()]);
    assert!(node.home.exists());
    own
}

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn a_copied_home_stops_both_until_the_owner_has_chosen() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let mut first = Node::init(dir.path(), "first", &[&relay.url]);
    // Starts of one home, one after the other, are no copies of it.
    for _ in 0..3 {
        first.up();
        first.kill();
    }
    let mut second = first.copy("second");
    first.up();
    until("a connection", || {
        let relays = first.ok(&["status"])["relays"].clone();
        let one = relays.as_object()?.values().next()?.clone();
        (one["state"] == "CaughtUp").then_some(())
    });
    assert_eq!(elsewhere(&first), Value::Null);
    second.up();
    let own = asks_own(&first);
    for node in [&first, &second] {
        until("the other one to be heard", || {
            (!elsewhere(node).is_null()).then_some(())
        });
        let error = node.fails(1, &borrowed(&own));
        assert_eq!(
            error["error"]["code"], "identity_in_use_elsewhere",
            "{error}"
        );
        assert!(
            error["error"]["hint"]
                .as_str()
                .unwrap()
                .contains("up --sole")
        );
        assert_eq!(node.journaled("identity_in_use_elsewhere").len(), 1);
    }
    // A restart alone does not tell which of the two is to live.
    second.kill();
    first.kill();
    first.up();
    assert!(!elsewhere(&first).is_null());
    first.kill();
    first.up_with(&["--sole"]);
    assert_eq!(elsewhere(&first), Value::Null);
    let done = first.ok(&borrowed(&own));
    assert_eq!(done["task"]["status"]["state"], "completed");
    assert_eq!(elsewhere(&first), Value::Null, "nobody answers any more");
}

#[test]
fn a_home_that_was_restored_elsewhere_is_left_behind() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let mut old = Node::init(dir.path(), "old", &[&relay.url]);
    old.up();
    let file = backup(&old, "backup");
    let mut new = Node::init(dir.path(), "new", &[&relay.url]);
    std::fs::remove_dir_all(&new.home).unwrap();
    let restored = new.ok(&["restore", file.to_str().unwrap()]);
    assert_eq!(
        (&restored["epoch"], &restored["npub"]),
        (&json!(1), &json!(old.npub))
    );
    new.up();
    reconciled(&new);
    let own = asks_own(&old);
    until("the old one to hear of the new one", || {
        (elsewhere(&old)["epoch"] == 1).then_some(())
    });
    let error = old.fails(1, &borrowed(&own));
    assert_eq!(
        error["error"]["code"], "identity_in_use_elsewhere",
        "{error}"
    );
    // The new one is the identity now.
    assert_eq!(elsewhere(&new), Value::Null);
    let done = new.ok(&borrowed(&own));
    assert_eq!(done["task"]["status"]["state"], "completed");
    old.kill();
    old.up_with(&["--sole"]);
    until("the old one to hear of it again", || {
        (elsewhere(&old)["epoch"] == 1).then_some(())
    });
}
