//! What people already run is lent: a model behind an OpenAI-compatible server of the owner's, under the owner's limits, whatever the
//! server does. The peer brings words; address, model and key are the owner's.

use serde_json::{Value, json};

use super::skills;
use crate::support::openai::Server;
use crate::support::world::{LEGION, Node, Pair, until};

const NOWHERE: &str = "ws://127.0.0.1:9";
/// What must be nowhere.
const KEY: &str = "sk-horse-battery-staple";

/// The skill `chat` behind `url`, with a key and short patience.
fn chat(node: &Node, url: &str) {
    let key = node.home.join("keys/chat.key");
    std::fs::write(&key, format!("{KEY}\n")).unwrap();
    for (name, value) in [
        ("openai", json!(url)),
        ("model", json!("tiny")),
        ("api_key_file", json!(key)),
        ("max_output_tokens", json!(64)),
        ("timeout_ms", json!(60_000)),
    ] {
        node.configure("skills.chat", name, &value.to_string());
    }
}

fn ask<'a>(peer: &'a str, set: &'a str) -> Vec<&'a str> {
    vec!["ask", "chat", "--peer", peer, "--set", set]
}

/// The command lines of all processes that this one started.
fn started_by(pid: u32) -> String {
    let output = std::process::Command::new("ps")
        .args(["-A", "-ww", "-o", "ppid=,args="])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let pid = pid.to_string();
    let own = text
        .lines()
        .filter(|line| line.split_whitespace().next() == Some(&pid));
    own.collect::<Vec<_>>().join("\n")
}

/// The promise: an answer arrives with its counts, is checked and paid; what was asked for is what the owner allows and the peer said; the
/// key is seen by the server alone.
#[test]
fn a_model_is_lent_and_its_key_stays() {
    let server = Server::start("");
    let pair = Pair::start(|asker, worker| {
        chat(asker, &server.url());
        chat(worker, &server.url());
        worker.configure("market.skill_unit_price_mc", "chat", "7");
        // Shorter than an answer takes: what flows is alive.
        worker.configure("labor", "hang_timeout_ms", "1500");
        worker.configure("log", "level", "\"trace\"");
    });
    let npub = &pair.worker.npub;
    let done = pair.asker.ok(&ask(npub, "prompt:=\"abc\""));
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 9});
    assert_eq!(
        done["result"],
        json!({"text": "cba", "finish_reason": "stop", "usage": usage, "model": "tiny"})
    );
    assert_eq!(
        (&done["cost_mc"], &done["verified"]["assurance"]),
        (&json!(7), &json!("schema"))
    );
    let seen = server.asked();
    let [seen] = seen.as_slice() else {
        panic!("{} requests", seen.len())
    };
    assert_eq!(seen.path, "/v1/chat/completions");
    assert_eq!(
        seen.body,
        json!({"model": "tiny", "messages": [{"role": "user", "content": "abc"}], "max_tokens": 64, "stream": true,
            "stream_options": {"include_usage": true}})
    );
    assert!(
        seen.head.contains(&format!("Bearer {KEY}")),
        "{}",
        seen.head
    );

    let slow = pair.asker.ok(&ask(
        npub,
        "messages:=[{\"role\":\"user\",\"content\":\"slow\"}]",
    ));
    assert_eq!(slow["result"]["text"], ".".repeat(25));
    pair.settle();

    // A peer cannot choose the model, the address or more than is allowed, and a server is not even asked.
    let asked = server.asked().len();
    for set in [
        "model:=\"other\"",
        "url:=\"http://127.0.0.1:1\"",
        "max_tokens:=65",
        "messages:=[]",
        "stream:=false",
    ] {
        let args = [ask(npub, "prompt:=\"x\""), vec!["--set", set]].concat();
        let refused = pair.asker.fails(2, &args);
        assert_eq!(
            refused["error"]["code"], "input_invalid",
            "{set}: {refused}"
        );
    }
    assert_eq!(server.asked().len(), asked);

    let worker = &pair.worker;
    let running = started_by(worker.pid());
    assert!(
        running.contains("--openai") && running.contains("chat.key"),
        "{running}"
    );
    let log = std::fs::read_to_string(worker.home.join("logs/legion.log")).unwrap_or_default();
    for text in [
        running,
        log,
        worker.stderr(),
        pair.asker.stderr(),
        pair.asker.ok(&["peers"]).to_string(),
        worker.ok(&["status"]).to_string(),
        worker.ok(&["config", "check"]).to_string(),
        json!(skills(worker)).to_string(),
        json!(worker.journal()).to_string(),
    ] {
        assert!(!text.contains(KEY) && !text.contains("battery"), "{text}");
    }
}

/// The promise: whatever the server does ends by its code within the owner's limits, says nothing of the key, and hurts one job alone.
#[test]
fn what_a_server_does_wrong_is_named() {
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let server = Server::start(&format!(
        "http://{}/v1/chat/completions",
        elsewhere.local_addr().unwrap()
    ));
    let pair = Pair::start(|_, worker| {
        chat(worker, &server.url());
        worker.configure("skills.chat", "timeout_ms", "2000");
    });
    for (word, code) in [
        ("mute", "backend_stalled"),
        ("stall", "backend_stalled"),
        ("refuse", "backend_refused"),
        ("redirect", "backend_refused"),
        ("nonsense", "backend_garbage"),
        ("whole", "backend_garbage"),
        ("lie", "backend_garbage"),
        ("deep", "backend_garbage"),
        ("long", "backend_garbage"),
        ("cut", "backend_garbage"),
        ("forever", "backend_endless"),
        ("breathe", "backend_endless"),
        ("break", "backend_unreachable"),
    ] {
        let set = format!("prompt:=\"{word}\"");
        let failed = pair.asker.fails(1, &ask(&pair.worker.npub, &set));
        assert_eq!(failed["error"]["code"], code, "{word}: {failed}");
        let text = failed.to_string();
        assert!(!text.contains("battery"), "{text}");
        if word == "refuse" {
            assert!(text.contains("500: no memory for ***"), "{text}");
            assert!(!text.contains(&"x".repeat(250)), "{text}");
        }
    }
    assert!(elsewhere.accept().is_err(), "it went where it was sent");
    // Who does not know the skill is refused by the node that does, before its server hears of it.
    let asked = server.asked().len();
    for set in ["model:=\"other\"", "url:=\"http://127.0.0.1:1\""] {
        let args = [ask(&pair.worker.npub, "prompt:=\"x\""), vec!["--set", set]].concat();
        let told = pair.asker.run(&args).stdout;
        let told = String::from_utf8_lossy(&told);
        assert!(told.contains("input_invalid"), "{told}");
    }
    assert_eq!(server.asked().len(), asked);
    assert!(!pair.worker.stderr().contains("battery"));
    let done = pair.asker.ok(&ask(&pair.worker.npub, "prompt:=\"abc\""));
    assert_eq!(done["result"]["text"], "cba");
    pair.settle();
}

/// The promise: who is no longer wanted is no longer waited for: the connection to the server ends with the task.
#[test]
fn a_cancel_ends_the_request() {
    let server = Server::start("");
    let pair = Pair::start(|_, worker| chat(worker, &server.url()));
    let task = pair.ask("k", &ask(&pair.worker.npub, "prompt:=\"breathe\""));
    until("the server to be asked", || {
        (!server.asked().is_empty()).then_some(())
    });
    let before = server.left();
    pair.asker.run(&["cancel", &task]);
    until("the request to be given up", || {
        (server.left() > before).then_some(())
    });
    let done = pair.asker.ok(&ask(&pair.worker.npub, "prompt:=\"abc\""));
    assert_eq!(done["result"]["text"], "cba");
}

/// The promise: what is not there is not offered, and is named; once it is there it is offered, without another start.
#[test]
fn a_server_that_is_down_is_not_offered() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "node", &[NOWHERE]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    chat(&node, &format!("http://{address}/v1"));
    node.up();
    let status = node.probed();
    let offered = |status: &Value| {
        status["skills"]
            .as_array()
            .unwrap()
            .contains(&json!("chat"))
    };
    assert!(!offered(&status), "{status}");
    let chat = &status["own_skills"]["chat"];
    assert_eq!(
        (&chat["state"], &chat["code"]),
        (&json!("down"), &json!("backend_unreachable"))
    );
    assert!(
        node.stderr().contains("backend_unreachable"),
        "{}",
        node.stderr()
    );
    assert!(!skills(&node).iter().any(|skill| skill["id"] == "chat"));
    let refused = node.run(&ask("self", "prompt:=\"abc\""));
    assert!(!refused.status.success());

    let _server = Server::start_at(&address, "");
    let status = until("the skill to be offered", || {
        Some(node.ok(&["status"])).filter(offered)
    });
    assert!(skills(&node).iter().any(|skill| skill["id"] == "chat"));
    let done = node.ok(&ask("self", "prompt:=\"abc\""));
    assert_eq!(done["result"]["text"], "cba");

    // It may connect to that port, and says so; everything else is out of reach.
    let report = &status["skill_sandbox"]["chat"];
    let missing = report["missing"].as_array().unwrap();
    assert!(missing.contains(&json!("network")), "{report}");
    let worker = status["sandbox"]["level"].as_str().unwrap();
    let level = if worker == "full" { "partial" } else { worker };
    assert!(
        report["level"] == level || report["level"] == "none",
        "{report}"
    );
    node.terminate();

    node.configure("skills.chat", "sandbox", "false");
    node.up();
    let status = node.probed();
    assert!(offered(&status), "{status}");
    assert_eq!(status["skill_sandbox"]["chat"]["level"], "none");
    let done = node.ok(&ask("self", "prompt:=\"def\""));
    assert_eq!(done["result"]["text"], "fed");
    node.terminate();

    // A key file that is not there is a skill that is not offered, not a node that does not start.
    node.configure("skills.chat", "api_key_file", "\"/absent/key\"");
    node.up();
    let status = node.probed();
    assert!(!offered(&status));
    assert_eq!(
        (
            &status["own_skills"]["chat"]["state"],
            &status["own_skills"]["chat"]["code"]
        ),
        (&json!("failed"), &json!("worker_start"))
    );
    assert!(node.stderr().contains("/absent/key"));
}

/// The promise: the worker's environment is no way to another server, and neither is its own command line to a key.
#[test]
fn a_skill_is_a_program_or_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::init(dir.path(), "node", &[NOWHERE]);
    chat(&node, "http://127.0.0.1:9/v1");
    node.ok(&["config", "check"]);
    node.configure("skills.chat", "command", "[\"python3\"]");
    let told = node.fails(2, &["config", "check"]);
    assert!(
        told["error"]["message"]
            .as_str()
            .unwrap()
            .contains("skills.chat.openai"),
        "{told}"
    );
    let output = std::process::Command::new(LEGION)
        .args([
            "worker",
            "--openai",
            "http://127.0.0.1:9/v1",
            "--then",
            "reach",
        ])
        .env("http_proxy", "http://127.0.0.1:10")
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["code"], "backend_unreachable", "{said}");
}
