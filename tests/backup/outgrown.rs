//! A home whose keys are of an epoch that its peers have seen outgrown: nobody takes what it says, and it hears that from them.

use serde_json::{Value, json};

use super::{ask, backup, ended, lose, reconciled, work};
use crate::support::world::{LEGION, Node, Pair, job, until};

/// A home made from the words alone, under this epoch; it trusts the worker as the one before did.
fn made_anew(pair: &mut Pair, epoch: &str) {
    pair.asker.kill();
    std::fs::remove_dir_all(&pair.asker.home).unwrap();
    let words = pair.asker.home.with_extension("words");
    let url = pair.relay.as_ref().unwrap().url.clone();
    let from_words = ["--mnemonic-file", words.to_str().unwrap(), "--epoch", epoch];
    let init = ["init", "--no-passphrase", "--relay", &url];
    let made = pair.asker.ok(&[&init[..], &from_words[..]].concat());
    assert_eq!(made["npub"], json!(pair.asker.npub));
}

fn trust(pair: &Pair) {
    let worker = &pair.worker.npub;
    (pair.asker).ok(&["peers", "trust", worker, "--tier", "trusted"]);
}

fn behind(node: &Node) -> Value {
    node.ok(&["status"])["epoch_behind"].clone()
}

#[test]
fn a_home_made_from_the_words_alone_hears_that_its_epoch_is_over() {
    let mut pair = Pair::start(|_, _| {});
    work(&pair, 1, 0);
    let file = backup(&pair.asker, "backup");
    for _ in 0..2 {
        lose(&mut pair.asker, &file);
        pair.asker.up();
        reconciled(&pair.asker);
    }
    let newest = backup(&pair.asker, "newest");
    lose(&mut pair.asker, &newest);
    pair.asker.up();
    reconciled(&pair.asker);
    assert_eq!(behind(&pair.asker), Value::Null);
    let newest = backup(&pair.asker, "last");

    made_anew(&mut pair, "0");
    pair.asker.up();
    trust(&pair);
    assert_eq!(behind(&pair.asker), Value::Null, "nobody has told it yet");
    ask(&pair.asker, Some(&pair.worker.npub), 7);
    let told = until("the worker to tell", || {
        let told = behind(&pair.asker);
        (!told.is_null()).then_some(told)
    });
    assert_eq!(
        (&told["epoch"], &told["known"], &told["by"]),
        (&json!(0), &json!(2), &json!(pair.worker.npub))
    );
    let refuses = |node: &Node| {
        let own = job(1, 1);
        let mut own: Vec<&str> = own.iter().map(String::as_str).collect();
        own.extend(["--peer", "self"]);
        let error = node.fails(2, &own);
        assert_eq!(error["error"]["code"], "epoch_behind", "{error}");
        let hint = error["error"]["hint"].as_str().unwrap();
        assert!(hint.contains("legion init --mnemonic-file"), "{hint}");
    };
    refuses(&pair.asker);
    assert_eq!(pair.asker.journaled("epoch_behind").len(), 1);
    let shown = std::process::Command::new(LEGION)
        .arg("--home")
        .arg(&pair.asker.home)
        .arg("status")
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(
        shown.contains("EPOCH THAT IS OVER") && shown.contains("--epoch 2"),
        "{shown}"
    );
    // A restart changes nothing of that, nor does the owner's word that no copy runs.
    pair.asker.kill();
    pair.asker.up_with(&["--sole"]);
    assert_eq!(behind(&pair.asker)["known"], 2);
    refuses(&pair.asker);
    assert!(pair.asker.stderr().contains("epoch_behind"));
    // What is restored from a backup of it is above all of them.
    let mute = backup(&pair.asker, "mute");
    lose(&mut pair.asker, &mute);
    let public = std::fs::read(pair.asker.home.join("keys/public.json")).unwrap();
    let public: Value = serde_json::from_slice(&public).unwrap();
    assert_eq!(public["epoch"], 3);

    // As it is told: keys of that epoch, and on them the newest backup.
    made_anew(&mut pair, "2");
    let restored = pair.asker.ok(&["restore", newest.to_str().unwrap()]);
    assert_eq!(restored["epoch"], 3);
    pair.asker.up();
    reconciled(&pair.asker);
    assert_eq!(behind(&pair.asker), Value::Null);
    let task = ask(&pair.asker, Some(&pair.worker.npub), 8);
    ended(&pair.asker, &task, "completed");
}

/// Who was away meanwhile learns the new keys from the text that its friend sends.
#[test]
fn the_contact_of_a_restored_node_is_taken_by_who_knew_it_before() {
    let mut pair = Pair::start(|_, _| {});
    work(&pair, 1, 0);
    let dir = tempfile::tempdir().unwrap();
    let url = pair.relay.as_ref().unwrap().url.clone();
    let mut friend = Node::init(dir.path(), "friend", &[&url]);
    let trusted = ["--tier", "trusted"];
    let introduce = |friend: &Node, asker: &Node| {
        let contact = asker.ok(&["contact"])["contact"].clone();
        let contact = contact.as_str().unwrap();
        friend.ok(&[&["peers", "trust", contact][..], &trusted].concat())
    };
    friend.up();
    introduce(&friend, &pair.asker);
    friend.kill();
    for name in ["first", "second"] {
        let file = backup(&pair.asker, name);
        lose(&mut pair.asker, &file);
        pair.asker.up();
        reconciled(&pair.asker);
    }
    // The asker advertises nothing: but for the text, the friend has not heard of it since.
    friend.up();
    introduce(&friend, &pair.asker);
    introduce(&pair.asker, &friend);
    for (from, to) in [(&pair.asker, &friend), (&friend, &pair.asker)] {
        let task = ask(from, Some(&to.npub), 7);
        ended(from, &task, "completed");
    }
    let dropped = friend.ok(&["status"])["dropped"].clone();
    for code in ["key_unbound", "rotation_unsigned", "binding_conflict"] {
        assert_eq!(dropped[code], Value::Null, "{dropped}");
    }
    assert_eq!(friend.journaled("keys_rotated"), Vec::<Value>::new());
}
