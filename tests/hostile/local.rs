//! What lies at home: a broken store, a wrong passphrase, a second node, and programs that misuse the control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::Target;
use crate::support::world::{LEGION, Node};

/// `up` as a user types it: exit code and error object.
fn up(home: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let output = Command::new(LEGION)
        .arg("--home")
        .arg(home)
        .args(["--json", "up"])
        .args(more)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let object = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said:?}"));
    (output.status.code(), object)
}

fn refused(home: &Path, more: &[&str], code: &str) {
    let (exit, said) = up(home, more);
    assert_eq!(exit, Some(2), "{said}");
    assert_eq!(said["error"]["code"], code, "{said}");
    for field in ["message", "hint"] {
        assert!(
            said["error"][field].as_str().is_some_and(|t| !t.is_empty()),
            "{field}: {said}"
        );
    }
}

#[test]
fn a_broken_or_foreign_store_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "home", &["ws://127.0.0.1:9"]);
    node.up();
    node.ok(&["status"]);
    assert!(node.terminate().success());
    let store = node.home.join("store.redb");
    let good = std::fs::read(&store).unwrap();
    let cut = good[..good.len() / 3].to_vec();
    let mut scribbled = good.clone();
    scribbled.iter_mut().take(4_096).for_each(|b| *b ^= 0x5a);
    let page = b"<!doctype html><title>not a store</title>".repeat(500);
    for (what, bytes) in [
        ("truncated", cut),
        ("scribbled", scribbled),
        ("foreign", page),
    ] {
        std::fs::write(&store, &bytes).unwrap();
        let (exit, said) = up(&node.home, &[]);
        assert_eq!(exit, Some(2), "{what}: {said}");
        let code = said["error"]["code"].as_str().unwrap_or_default();
        assert!(code.starts_with("store_"), "{what}: {said}");
        assert!(
            said["error"].to_string().contains("restore a snapshot"),
            "{what}: {said}"
        );
        assert_eq!(
            std::fs::read(&store).unwrap(),
            bytes,
            "{what}: the evidence was overwritten"
        );
    }
    // Put back, it runs.
    std::fs::write(&store, good).unwrap();
    node.up();
}

#[test]
fn a_wrong_passphrase_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("right"), "correct horse\n").unwrap();
    std::fs::write(path("wrong"), "battery staple\n").unwrap();
    let output = Command::new(LEGION)
        .arg("--home")
        .arg(path("home"))
        .args([
            "--json",
            "init",
            "--relay",
            "ws://127.0.0.1:9",
            "--passphrase-file",
        ])
        .arg(path("right"))
        .arg("--mnemonic-out")
        .arg(path("words"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let wrong = path("wrong");
    let (exit, said) = up(
        &path("home"),
        &["--passphrase-file", wrong.to_str().unwrap()],
    );
    assert_eq!(exit, Some(2), "{said}");
    assert_eq!(said["error"]["code"], "passphrase_wrong", "{said}");
    assert!(
        !said.to_string().contains("battery"),
        "a secret in an error"
    );
}

#[test]
fn a_second_node_on_a_running_home_is_refused_and_the_first_goes_on() {
    let target = Target::start();
    refused(&target.node.home, &[], "already_running");
    assert!(target.node.ok(&["status"])["npub"].is_string());
}

/// One line to the control socket; the lines that come back until the node hangs up or has answered.
fn line(node: &Node, bytes: &[u8]) -> Value {
    let mut stream = UnixStream::connect(node.home.join("legion.sock")).unwrap();
    // The node may hang up while we still write.
    let _ = stream.write_all(bytes);
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
}

#[test]
fn the_control_socket_answers_nonsense_and_the_node_lives() {
    let target = Target::start();
    let node = &target.node;
    let code = |answer: &Value| {
        answer["error"]["data"]["code"]
            .as_str()
            .or(answer["error"]["code"].as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let mut long = vec![b'x'; 17 << 20];
    long.push(b'\n');
    let mut stream = UnixStream::connect(node.home.join("legion.sock")).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let writer = std::thread::spawn(move || {
        let _ = stream.write_all(&long);
    });
    let mut answer = String::new();
    // A hang-up with bytes unread may reach us as a reset instead of the answer: either way the line is not taken.
    if reader.read_line(&mut answer).is_ok() && !answer.is_empty() {
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(code(&answer), "payload_too_large", "{answer}");
    }
    writer.join().unwrap();
    for nonsense in [
        "{",
        "[]",
        "null",
        "\u{0}",
        "{\"jsonrpc\":\"2.0\"}",
        "{\"jsonrpc\":\"2.0\",\"id\":1}",
        "{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"node/status\"}",
    ] {
        let answer = line(node, format!("{nonsense}\n").as_bytes());
        assert!(answer["error"].is_object(), "{nonsense}: {answer}");
    }
    for (method, params) in [
        ("node/explode", json!({})),
        ("task/get", json!({"id": 7})),
        ("task/get", json!({})),
        ("peers/trust", json!({"npub": "x", "tier": "god"})),
        (
            "task/ask",
            json!({"skill": "simulation", "input": {"paths": 1e308}}),
        ),
        (
            "peers/trust",
            json!({"npub": node.npub, "tier": "own", "limit_mc": -1}),
        ),
    ] {
        let answer = node.call(method, params);
        assert!(answer["error"].is_object(), "{method}: {answer}");
    }
    assert!(node.ok(&["status"])["npub"].is_string());
}

#[test]
fn two_hundred_callers_at_once_are_all_served_in_turn() {
    let target = Target::start();
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "node/status", "params": {}})
        .to_string()
        + "\n";
    let path = target.node.home.join("legion.sock");
    let callers: Vec<_> = (0..200)
        .map(|_| {
            let (path, request) = (path.clone(), request.clone());
            std::thread::spawn(move || {
                let mut stream = UnixStream::connect(path).unwrap();
                stream.write_all(request.as_bytes()).unwrap();
                let mut answer = String::new();
                BufReader::new(stream).read_line(&mut answer).unwrap();
                let answer: Value = serde_json::from_str(&answer).unwrap();
                assert!(answer["result"]["npub"].is_string(), "{answer}");
            })
        })
        .collect();
    for caller in callers {
        caller.join().unwrap();
    }
    // Callers that say nothing take slots, not the node: those that leave make room again.
    let silent: Vec<_> = (0..60)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    assert!(target.node.ok(&["status"])["npub"].is_string());
    drop(silent);
    let mut halfway = UnixStream::connect(&path).unwrap();
    halfway.write_all(b"{\"jsonrpc\":").unwrap();
    halfway.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    halfway.read_to_end(&mut rest).unwrap();
    assert!(target.node.ok(&["status"])["npub"].is_string());
}
