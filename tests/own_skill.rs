//! Skills of the owner's own: a program of 40 lines is lent like any other skill, and one that misbehaves hurts itself alone.

mod confined;
mod openai;
mod probing;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::world::{Node, Pair};

/// A program of `fixtures/own-skill/`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/own-skill");
    folder.join(name)
}

fn shout() -> PathBuf {
    fixture("shout.py")
}

/// The interpreter itself: a version manager's wrapper would need the environment that a worker does not get.
fn python() -> String {
    let output = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .expect("python3 is needed");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(crate) fn own(node: &Node, name: &str, program: &Path) {
    let command = json!([python(), program.to_str().unwrap()]);
    node.configure(&format!("skills.{name}"), "command", &command.to_string());
}

/// `shout.py` with a change, as the skill `name`.
fn changed(node: &Node, name: &str, from: &str, to: &str) {
    let text = std::fs::read_to_string(shout()).unwrap();
    let text = text.replace("\"id\": \"shout\"", &format!("\"id\": \"{name}\""));
    let program = node.home.with_extension(format!("{name}.py"));
    assert!(text.contains(from), "{name}");
    std::fs::write(&program, text.replace(from, to)).unwrap();
    own(node, name, &program);
}

fn ask<'a>(skill: &'a str, peer: &'a str) -> Vec<&'a str> {
    vec!["ask", skill, "--peer", peer, "--set", "text:=\"hello\""]
}

fn skills(node: &Node) -> Vec<Value> {
    let listed = node.ok(&["skills"])["skills"].clone();
    listed.as_array().unwrap().clone()
}

#[test]
fn an_own_skill_is_lent_checked_and_paid() {
    let pair = Pair::start(|asker, worker| {
        own(asker, "shout", &shout());
        own(worker, "shout", &shout());
        worker.configure("market.skill_unit_price_mc", "shout", "7");
    });
    let done = pair.asker.ok(&ask("shout", &pair.worker.npub));
    assert_eq!(done["result"], json!({"loud": "HELLO"}));
    assert_eq!(done["cost_mc"], 7);
    assert_eq!(done["verified"]["assurance"], "schema");
    pair.settle();
    // Its own node works with it as well, and refuses at once what is not of its schema.
    assert_eq!(
        pair.worker.ok(&ask("shout", "self"))["result"],
        json!({"loud": "HELLO"})
    );
    let bad = ["ask", "shout", "--peer", "self", "--set", "text:=1"];
    assert_eq!(pair.worker.fails(2, &bad)["error"]["code"], "input_invalid");
    let told = skills(&pair.worker);
    let shout = told.iter().find(|skill| skill["id"] == "shout").unwrap();
    assert_eq!(shout["input_schema"]["required"], json!(["text"]));
}

#[test]
fn who_does_not_have_the_skill_gets_it_unchecked_and_is_told() {
    let pair = Pair::start(|_, worker| own(worker, "shout", &shout()));
    let done = pair.asker.ok(&ask("shout", &pair.worker.npub));
    assert_eq!(done["result"], json!({"loud": "HELLO"}));
    assert_eq!(done["verified"]["assurance"], "none");
    pair.settle();
}

#[test]
fn a_program_that_misbehaves_is_named_and_hurts_itself_alone() {
    let pair = Pair::start(|_, worker| {
        own(worker, "shout", &shout());
        changed(worker, "liar", "{\"loud\"", "{\"quiet\"");
        changed(
            worker,
            "chatter",
            "        say(type=\"done\"",
            "        print(\"done!\", flush=True); sys.stdin.read()\n        say(type=\"done\"",
        );
        changed(
            worker,
            "quitter",
            "        say(type=\"done\"",
            "        sys.exit(3)\n        say(type=\"done\"",
        );
        changed(
            worker,
            "hanger",
            "        say(type=\"done\"",
            "        import time; time.sleep(600)\n        say(type=\"done\"",
        );
        changed(
            worker,
            "mumbler",
            "say(type=\"done\", job=asked[\"job\"], units=[unit], executed_units=1, resumed_from=0)",
            "say(type=\"failed\", job=asked[\"job\"], code=\"No way! \" * 999, message=\"?\" * 9999)",
        );
        changed(
            worker,
            "hoarder",
            "{\"loud\": asked[\"input\"][\"text\"].upper()}",
            "{\"loud\": \"x\" * 100000}",
        );
        changed(worker, "modern", "protocol=1", "protocol=2");
        changed(
            worker,
            "vague",
            "\"input_schema\"",
            "\"$ref\": 1, \"input_schema\"",
        );
        changed(
            worker,
            "strict",
            "\"maxLength\": 1000",
            "\"pattern\": \"^a\"",
        );
        own(worker, "other", &shout());
        worker.configure("labor", "hang_timeout_ms", "1500");
    });
    let failed = |skill: &str| -> String {
        let output = pair.asker.run(&ask(skill, &pair.worker.npub));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for (skill, code) in [
        ("liar", "output_invalid"),
        ("chatter", "worker_garbage"),
        ("quitter", "worker_exited"),
        ("hanger", "worker_hung"),
        ("mumbler", "skill_failed"),
        ("hoarder", "output_too_large"),
        ("modern", "skill_unknown"),
        ("vague", "skill_unknown"),
        ("strict", "skill_unknown"),
        ("other", "skill_unknown"),
    ] {
        let told = failed(skill);
        assert!(told.contains(code), "{skill}: {told}");
    }
    let log = pair.worker.stderr();
    for code in ["worker_garbage", "skill_undescribed", "schema_invalid"] {
        assert!(log.contains(code), "{code}: {log}");
    }
    let done = pair.asker.ok(&ask("shout", &pair.worker.npub));
    assert_eq!(done["result"], json!({"loud": "HELLO"}));
    pair.settle();
}

#[test]
fn a_built_in_skill_cannot_be_hidden() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "node", &["ws://127.0.0.1:9"]);
    own(&node, "simulation", &shout());
    let refused = node.run(&["config", "check"]);
    assert!(!refused.status.success());
    let told: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(told["error"]["code"], "config_invalid");
    assert!(
        told["error"]["message"]
            .as_str()
            .unwrap()
            .contains("skills.simulation"),
        "{told}"
    );
    node.try_up();
    assert!(node.ended(), "it does not run with such a setting");
}
