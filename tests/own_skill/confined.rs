//! A program of the owner's is confined like the built-in worker, is served to strangers by the level that it really has, and leaves
//! nothing behind. Layers that this system lacks are named loudly, and what they would refuse is not asserted.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{own, skills};
use crate::support::world::{Node, Pair, Relay, until};

/// Nobody listens there: these nodes need no relay.
const NOWHERE: &str = "ws://127.0.0.1:9";

fn spy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/own-skill/spy.py")
}

fn report(node: &Node, skill: &str) -> Value {
    let report = node.probed()["skill_sandbox"][skill].clone();
    if report["level"] != "full" {
        println!("THE SANDBOX OF {skill} IS NOT FULL HERE: {report}");
    }
    report
}

fn is_missing(report: &Value, layer: &str) -> bool {
    let missing = report["missing"].as_array().unwrap();
    missing.iter().any(|name| name == layer)
}

/// What the skill `spy` of a node that runs gets of these.
fn attempts(node: &Node, tried: &Value) -> Vec<Value> {
    let set = format!("attempts:={tried}");
    let args = ["ask", "spy", "--peer", "self", "--set", &set];
    let got = node.ok(&args)["result"]["got"].clone();
    got.as_array().unwrap().clone()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// What nobody but the node may reach, with the layer that refuses it.
fn forbidden(node: &Node, tcp_port: u16, elsewhere: &Path) -> Vec<(Value, &'static str)> {
    let key = files(&node.home.join("keys"));
    let key = key.iter().find(|path| path.is_file()).expect("no key file");
    let (home, pid) = (&node.home, node.pid());
    vec![
        (json!(["read", key]), "landlock"),
        (json!(["read", home.join("store.redb")]), "landlock"),
        (json!(["list", home]), "landlock"),
        (json!(["write", home.join("mine")]), "landlock"),
        (json!(["write", elsewhere.join("mine")]), "landlock"),
        (json!(["read", "/etc/passwd"]), "landlock"),
        (json!(["child", 0]), "landlock"),
        (json!(["read", format!("/proc/{pid}/environ")]), "landlock"),
        (json!(["run", elsewhere.join("program")]), "landlock"),
        (json!(["tcp", tcp_port]), "seccomp"),
        (json!(["unix", home.join("legion.sock")]), "seccomp"),
        (json!(["leave", 0]), "seccomp"),
        (json!(["signal", pid]), "landlock_scope"),
    ]
}

/// The promise: what a program tries outside its folder is refused, for itself and what it starts; without a sandbox the very same
/// attempts succeed, and the level says which of the two it is.
#[test]
fn a_program_reaches_what_it_needs_and_nothing_else() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let program = dir.path().join("program");
    std::fs::write(&program, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let shown = dir.path().join("shown");
    std::fs::create_dir(&shown).unwrap();
    std::fs::write(shown.join("word"), "x").unwrap();

    for confined in [true, false] {
        let mut node = Node::init(dir.path(), &format!("node-{confined}"), &[NOWHERE]);
        own(&node, "spy", &spy());
        node.configure("skills.spy", "read", &format!("[{}]", json!(shown)));
        node.configure("skills.spy", "sandbox", &confined.to_string());
        node.up();
        let report = report(&node, "spy");
        let told = skills(&node);
        let told = told.iter().find(|skill| skill["id"] == "spy").unwrap();
        assert_eq!(
            told["sandbox"], report,
            "a command and the node say the same"
        );
        let tried = forbidden(&node, port, dir.path());
        let asked: Vec<&Value> = tried.iter().map(|(attempt, _)| attempt).collect();
        let got = attempts(&node, &json!(asked));
        if !confined {
            assert_eq!(
                report,
                json!({"level": "none", "missing": ["switched_off"]})
            );
            // Only a leader of its group cannot leave it anyway.
            let got = got.iter().zip(&tried).filter(|(_, (a, _))| a[0] != "leave");
            let refused: Vec<_> = got.filter(|(got, _)| got[0] != "ok").collect();
            assert!(refused.is_empty(), "the test proves nothing: {refused:?}");
        } else {
            for (got, (attempt, layer)) in got.iter().zip(&tried) {
                let whole = layer.split('_').next().unwrap();
                let lacks = is_missing(&report, layer) || is_missing(&report, whole);
                assert!(lacks || got[0] == "refused", "{attempt} with {report}");
            }
        }
        // And what it is there for works.
        let own = json!([
            ["write", "mine"],
            ["read", "mine"],
            ["import", "sqlite3"],
            ["import", "decimal"],
            ["run", "/bin/true"],
            ["read", shown.join("word")],
            ["list", shown]
        ]);
        let got = attempts(&node, &own);
        assert!(got.iter().all(|got| got[0] == "ok"), "{own} gave {got:?}");
    }
}

/// The promise: a stranger is served by the level of the skill that it asks for, not by the built-in worker's.
#[test]
fn strangers_are_refused_a_program_that_is_not_confined_as_the_owner_wants() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let mut asker = Node::init(dir.path(), "asker", &[&relay.url]);
    let mut host = Node::init(dir.path(), "host", &[&relay.url]);
    host.configure("permissions.stranger", "sandbox_at_least", "\"partial\"");
    host.configure("market", "stranger_cap_mc", "1000");
    let text = std::fs::read_to_string(spy()).unwrap();
    let bare = dir.path().join("bare.py");
    std::fs::write(&bare, text.replace("\"id\": \"spy\"", "\"id\": \"bare\"")).unwrap();
    own(&host, "spy", &spy());
    own(&host, "bare", &bare);
    host.configure("skills.bare", "sandbox", "false");
    asker.configure("verification", "accept_unverified_stranger", "true");
    asker.up();
    host.up();
    let ask = |skill: &str| -> Value {
        let set = "attempts:=[]";
        let args = [
            "ask",
            skill,
            "--peer",
            &host.npub,
            "--deadline",
            "40",
            "--set",
            set,
        ];
        serde_json::from_slice(&asker.run(&args).stdout).unwrap()
    };
    let refused = ask("bare");
    assert_eq!(refused["error"]["code"], "sandbox_required", "{refused}");
    let answer = ask("spy");
    if report(&host, "spy")["level"] == "none" {
        assert_eq!(answer["error"]["code"], "sandbox_required", "{answer}");
    } else {
        assert_eq!(answer["result"], json!({"got": []}), "{answer}");
    }
}

fn is_alive(pid: u64) -> bool {
    // A zombie is dead: only its parent has not looked yet.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    !state.is_empty() && !state.starts_with('Z')
}

/// The program, a child of it, and a child of that, once they hang.
fn hang(node: &Node) -> Vec<u64> {
    let set = "attempts:=[[\"sleep\", 0]]";
    node.ok(&["ask", "spy", "--peer", "self", "--detach", "--set", set]);
    until("the program to hang", || {
        let stations = files(&node.home.join("scratch/skill-spy"));
        let runs = stations.iter().flat_map(|station| files(station));
        let told = runs
            .map(|run| run.join("pids"))
            .find(|file| file.exists())?;
        serde_json::from_str(&std::fs::read_to_string(told).unwrap()).ok()
    })
}

fn until_dead(pids: &[u64]) {
    until("all of them to be dead", || {
        pids.iter().all(|pid| !is_alive(*pid)).then_some(())
    });
}

/// The promise: a hung program and all that it started is dead soon after `kill -9` of its node, and after a soft stop that it ignores.
#[test]
fn nothing_outlives_the_node_or_its_own_end() {
    let dir = tempfile::tempdir().unwrap();
    for confined in ["true", "false"] {
        let mut node = Node::init(dir.path(), &format!("node-{confined}"), &[NOWHERE]);
        own(&node, "spy", &spy());
        node.configure("skills.spy", "sandbox", confined);
        node.configure("labor", "soft_stop_ms", "100");
        node.up();
        let pids = hang(&node);
        assert!(pids.len() == 3 && pids.iter().all(|pid| is_alive(*pid)));
        let hung = rustix::process::Pid::from_raw(pids[0] as i32).unwrap();
        rustix::process::kill_process(hung, rustix::process::Signal::STOP).unwrap();
        let killed = Instant::now();
        node.kill();
        until_dead(&pids);
        println!("dead after {:?}", killed.elapsed());
        assert!(killed.elapsed() < Duration::from_secs(60));

        std::fs::remove_dir_all(node.home.join("scratch/skill-spy")).unwrap();
        node.up();
        let pids = hang(&node);
        node.terminate();
        until_dead(&pids);
    }
}

/// The promise: what would show a program this home is named by its key, and the node does not start with it.
#[test]
fn the_home_cannot_be_shown_to_a_program() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "node", &[NOWHERE]);
    let inside = node.home.join("spy.py");
    std::fs::copy(spy(), &inside).unwrap();
    own(&node, "spy", &inside);
    let refused = |node: &Node, key: &str| {
        let told = node.fails(2, &["config", "check"]);
        assert_eq!(told["error"]["code"], "config_invalid");
        let message = told["error"]["message"].as_str().unwrap();
        assert!(message.contains(key), "{message}");
    };
    refused(&node, "skills.spy.command");
    own(&node, "spy", &spy());
    for key in ["read", "exec", "devices"] {
        node.configure("skills.spy", key, &format!("[{}]", json!(dir.path())));
        refused(&node, &format!("skills.spy.{key}"));
        node.try_up();
        assert!(node.ended(), "it runs with {key}");
        node.configure("skills.spy", key, "[]");
    }
    node.ok(&["config", "check"]);
    node.configure("skills.spy", "read", "[\"there\"]");
    refused(&node, "skills.spy.read");
}

/// The promise: a result of a megabyte is lent like a small one, once the owner allows it.
#[test]
fn a_result_of_a_megabyte_arrives_whole() {
    let pair = Pair::start(|asker, worker| {
        for node in [asker, worker] {
            own(node, "spy", &spy());
            node.configure("skills.spy", "output_max_bytes", "2000000");
        }
    });
    let size = 1_000_000;
    let set = format!("attempts:=[[\"size\", {size}]]");
    let args = ["ask", "spy", "--peer", &pair.worker.npub, "--set", &set];
    let done = pair.asker.ok(&args);
    assert_eq!(done["verified"]["assurance"], "schema");
    let text = done["result"]["got"][0][1].as_str().unwrap();
    assert!(text.len() == size && text.bytes().all(|b| b == b'x'));
    pair.settle();
}
