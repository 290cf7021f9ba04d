//! A node does not wait for programs that do not say what they are; only who needs one of them does.

use std::process::Command;

use serde_json::{Value, json};

use super::{ask, changed, own, shout};
use crate::support::world::{Node, Pair, option, until};

/// A program that says nothing until it is asked the second time.
fn mute(node: &Node, name: &str, first: &str) {
    changed(
        node,
        name,
        "        say(type=\"described\"",
        &format!("        {first}\n        say(type=\"described\""),
    );
}

fn states(status: &Value) -> Vec<(String, String)> {
    let skills = status["own_skills"].as_object().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let states = skills
        .iter()
        .map(|(name, skill)| (name.clone(), text(&skill["state"])));
    states.collect()
}

fn running(program: &str) -> bool {
    let listed = Command::new("ps")
        .args(["-A", "-ww", "-o", "args="])
        .output();
    let listed = String::from_utf8_lossy(&listed.unwrap().stdout).into_owned();
    listed.contains(program)
}

#[test]
fn a_node_is_up_before_its_programs_have_said_who_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "node", &["ws://127.0.0.1:9"]);
    let forever = "import time; time.sleep(600)";
    for name in ["mute-a", "mute-b", "mute-c"] {
        mute(&node, name, forever);
    }
    own(&node, "shout", &shout());
    node.up();
    // Whoever has ten seconds to answer has not used them yet.
    let mute_states = |status: &Value, state: &str| {
        let states = states(status);
        let mutes: Vec<_> = states.iter().filter(|(name, _)| name != "shout").collect();
        assert_eq!(mutes.len(), 3);
        mutes.iter().all(|(_, found)| found == state)
    };
    let status = node.ok(&["status"]);
    assert!(mute_states(&status, "probing"), "{status}");
    // Neither built-in work nor that of a program which answers waits for them.
    let done = node.ok(&option(&["--peer", "self"]));
    assert_eq!(done["task"]["status"]["state"], "completed");
    let done = node.ok(&ask("shout", "self"));
    assert_eq!(done["result"], json!({"loud": "HELLO"}));
    let shown = node.command(&["status"]).output().unwrap();
    assert!(shown.status.success());

    let status = node.probed();
    assert!(mute_states(&status, "failed"), "{status}");
    assert_eq!(status["own_skills"]["mute-a"]["code"], "worker_hung");
    assert_eq!(status["own_skills"]["shout"]["state"], "offered");
    let skills = status["skills"].as_array().unwrap();
    assert!(skills.contains(&json!("shout")) && !skills.contains(&json!("mute-a")));
    assert!(node.stderr().contains("worker_hung"), "{}", node.stderr());
    assert!(node.terminate().success());

    // A node that stops takes them along.
    node.up();
    let program = node.home.with_extension("mute-a.py");
    let program = program.to_str().unwrap();
    until("the program to run", || running(program).then_some(()));
    assert!(node.terminate().success());
    until("the program to end", || (!running(program)).then_some(()));
}

#[test]
fn who_asked_before_a_slow_program_said_who_it_is_is_served() {
    let mut pair = Pair::start(|asker, worker| {
        own(asker, "shout", &shout());
        mute(worker, "shout", "import time; time.sleep(2)");
    });
    pair.worker.probed();
    pair.worker.kill();
    // One waits on the relay, one asks the node itself as soon as it is up.
    let args = ask("shout", &pair.worker.npub);
    let task = pair.ask("early", &args);
    pair.worker.up();
    let done = pair.worker.ok(&ask("shout", "self"));
    assert_eq!(done["result"], json!({"loud": "HELLO"}));
    let done = pair.finish(&task);
    assert_eq!(done["result"], json!({"loud": "HELLO"}));
    assert_eq!(done["verified"]["assurance"], "schema");
}
