//! The command line's contract against the real node: shapes of answers, exit codes, and what people read.
//!
//! `LEGION_WRITE_FIXTURES=1 cargo test --test legion contract::` writes the shapes of this build into `fixtures/cli/`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::shape::{fixture, structure};
use crate::support::world::{LEGION, Node, Pair, Relay, long, option, until};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/cli/{name}.json"))
}

/// The answer has the shape of `fixtures/cli/<name>.json`. `task` is written as `t1` there.
pub(crate) fn shape(name: &str, value: &Value, task: &str) {
    if std::env::var_os("LEGION_WRITE_FIXTURES").is_some_and(|v| v == "1") {
        let text = serde_json::to_string_pretty(value).unwrap();
        let text = if task.is_empty() {
            text
        } else {
            text.replace(task, "t1")
        };
        std::fs::write(path(name), text + "\n").unwrap();
    }
    assert_eq!(
        structure(value),
        structure(&fixture(name)),
        "the shape of `{name}` changed: {value:#}"
    );
}

/// An option of 64 units.
fn units_64<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    let mut args = option(&["--set", "steps=128"]);
    args.extend(extra);
    args
}

/// Both up on one relay, the worker with one core; it does not trust the asker.
fn strangers(relay: &Relay, dir: &Path) -> (Node, Node) {
    let mut asker = Node::init(dir, "asker", &[&relay.url]);
    let mut worker = Node::init(dir, "worker", &[&relay.url]);
    worker.configure("labor", "cores", "1");
    asker.up();
    worker.up();
    (asker, worker)
}

/// The asker has seen the worker's ad.
fn until_advertised(asker: &Node, worker: &Node) {
    until("the worker's ad", || {
        let peers = asker.ok(&["peers"]);
        let known = peers["peers"]
            .as_array()?
            .iter()
            .find(|p| p["npub"] == worker.npub.as_str())?
            .clone();
        known["skills"].is_array().then_some(())
    });
}

#[test]
fn every_answer_has_its_shape() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let mut asker = Node::init(dir.path(), "asker", &[&relay.url]);
    let mut worker = Node::init(dir.path(), "worker", &[&relay.url]);
    let ready = asker.up();
    assert_eq!(
        (&ready["ready"], ready["npub"].as_str()),
        (&json!(true), Some(asker.npub.as_str()))
    );
    assert!(
        ready["relays"]
            .as_object()
            .unwrap()
            .keys()
            .any(|url| url.starts_with(&relay.url)),
        "{ready}"
    );
    // The relays' names are in the keys, and their states depend on the moment: the fields count.
    let fields = |ready: &Value| -> Vec<String> {
        let relay = ready["relays"]
            .as_object()
            .unwrap()
            .values()
            .next()
            .unwrap();
        relay.as_object().unwrap().keys().cloned().collect()
    };
    let expected = fixture("up");
    assert_eq!(fields(&ready), fields(&expected));
    assert_eq!(
        ready.as_object().unwrap().len(),
        expected.as_object().unwrap().len()
    );
    worker.up();
    asker.ok(&[
        "peers",
        "trust",
        &worker.npub,
        "--tier",
        "trusted",
        "--limit",
        "5000",
    ]);
    worker.ok(&["peers", "trust", &asker.npub, "--tier", "trusted"]);
    until_advertised(&asker, &worker);

    let done = asker.ok(&units_64(&["--key", "k1"]));
    let id = done["task"]["id"].as_str().unwrap().to_owned();
    shape("ask", &done, &id);
    assert_eq!(
        structure(&asker.ok(&["wait", &id])),
        structure(&done),
        "`wait` answers as `ask` does"
    );
    let task = asker.ok(&["task", &id]);
    shape("task", &task, &id);
    for answer in [&done, &asker.ok(&["wait", &id]), &asker.ok(&["why", &id])] {
        assert_eq!(
            structure(&answer["task"]),
            structure(&task["task"]),
            "one task is one object, whoever shows it"
        );
    }
    shape("tasks", &asker.ok(&["tasks"]), &id);
    shape("why", &asker.ok(&["why", &id]), &id);
    shape("peers", &asker.ok(&["peers"]), &id);
    until("the books to be settled", || {
        (asker.ok(&["status"])["locks"] == 0).then_some(())
    });
    let ledger = asker.ok(&["ledger"]);
    shape("ledger", &ledger, &id);
    assert_eq!(ledger["sum_mc"], 0);
    let detached = asker.ok(&units_64(&["--detach", "--key", "k2"]));
    shape(
        "ask_detach",
        &detached,
        detached["task"]["id"].as_str().unwrap(),
    );
    let id_2 = detached["task"]["id"].as_str().unwrap();
    asker.ok(&["wait", id_2]);
    assert_eq!(
        structure(&asker.ok(&["task", id_2])),
        structure(&task),
        "a detached task ends as the same object"
    );
    shape("skills", &asker.ok(&["skills"]), "");

    let exported = asker.ok(&["proof", "export", &id]);
    // Entries are exported by author and number: the requester's first one is what the fixture shows.
    let mut shown = exported.clone();
    let entries = shown["entries"].as_array_mut().unwrap();
    entries.sort_by_key(|entry| entry["what"]["act"] != "awarded");
    shape("proof", &shown, &id);
    let file = dir.path().join("proof.json");
    std::fs::write(&file, exported.to_string()).unwrap();
    let verified = asker.ok(&["proof", "verify", file.to_str().unwrap()]);
    assert_eq!(
        (&verified["valid"], &verified["cost_mc"]),
        (&json!(true), &done["cost_mc"])
    );
    std::fs::write(
        &file,
        exported.to_string().replace("\"price\":", "\"price\":1"),
    )
    .unwrap();
    let forged = asker.fails(1, &["proof", "verify", file.to_str().unwrap()]);
    assert_eq!(forged["error"]["code"], "output_mismatch");
    people_read(&asker, &worker, &id);
}

/// The same without `--json`: the facts are there, in words.
fn people_read(asker: &Node, worker: &Node, id: &str) {
    let read = |args: &[&str]| {
        let output = Command::new(LEGION)
            .arg("--home")
            .arg(&asker.home)
            .args(args)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let tasks = read(&["tasks"]);
    let row = tasks.lines().find(|line| line.starts_with(id)).unwrap();
    assert!(
        row.contains("completed") && row.contains("requester") && row.contains("simulation"),
        "{tasks}"
    );
    let peers = read(&["peers"]);
    let row = peers
        .lines()
        .find(|line| line.starts_with(&worker.npub))
        .unwrap();
    assert!(
        row.contains("trusted")
            && row.contains("5000")
            && row.contains("simulation 1 mc")
            && !row.contains("never"),
        "{peers}"
    );
    let task = read(&["task", id]);
    assert!(
        task.contains("state: completed") && task.contains("price:") && task.contains("paid"),
        "{task}"
    );
    assert!(read(&["why", id]).starts_with(&format!("task {id} is completed")));
    let status = read(&["status"]);
    assert!(
        status.contains("foreign work: allowed") && status.contains("connected"),
        "{status}"
    );
    assert!(read(&["ledger"]).contains("sum: 0"));
    assert!(read(&["wait", id]).contains("units recomputed"));
}

#[test]
fn without_a_relay_or_a_peer_a_task_is_durable_and_then_has_no_provider() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody listens there, and nobody ever did.
    let mut asker = Node::init(dir.path(), "asker", &["ws://127.0.0.1:9"]);
    let ready = asker.up();
    assert_eq!(ready["ready"], true, "local commands work without a relay");
    let never_seen = Node::init(dir.path(), "other", &["ws://127.0.0.1:9"]);
    let peers = asker.ok(&["peers", "trust", &never_seen.npub, "--tier", "trusted"]);
    assert_eq!(peers["peers"][0]["npub"], never_seen.npub.as_str());

    let forgotten = asker.ok(&["peers", "forget", &never_seen.npub]);
    assert_eq!(forgotten["peers"], json!([]));
    let unknown = asker.fails(2, &["peers", "forget", &never_seen.npub]);
    assert_eq!(unknown["error"]["code"], "peer_unknown");
    let typo = asker.fails(2, &["peers", "trust", "npub1nonsense", "--tier", "own"]);
    assert_eq!(
        typo["error"]["code"],
        asker.fails(2, &["ledger", "--peer", "npub1nonsense"])["error"]["code"]
    );

    let detached = asker.ok(&option(&["--detach"]));
    assert_eq!(detached["task"]["status"]["state"], "submitted");
    let directed = asker.ok(&option(&["--detach", "--peer", &never_seen.npub]));
    assert_ne!(directed["task"]["id"], detached["task"]["id"]);
    assert_eq!(asker.ok(&["tasks"])["tasks"].as_array().unwrap().len(), 2);

    let alone = asker.fails(3, &option(&["--deadline", "4"]));
    assert_eq!(alone["error"]["code"], "no_provider");
    assert_eq!(alone["task"]["status"]["state"], "rejected");

    asker.kill();
    asker.up();
    assert_eq!(
        asker.ok(&["tasks"])["tasks"].as_array().unwrap().len(),
        3,
        "what was asked is still there"
    );
}

#[test]
fn what_cannot_work_is_refused_at_once_with_a_code_and_a_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut asker = Node::init(dir.path(), "asker", &["ws://127.0.0.1:9"]);
    asker.up();
    let other = Node::init(dir.path(), "other", &["ws://127.0.0.1:9"]);
    let (own, other) = (asker.npub.clone(), other.npub.clone());
    let long_key = "k".repeat(129);
    let asks: [(&str, &[&str]); 10] = [
        ("key_invalid", &["--key", ""]),
        ("key_invalid", &["--key", &long_key]),
        ("key_invalid", &["--key", "a\nb"]),
        ("deadline_range", &["--deadline", "0"]),
        ("deadline_too_short", &["--deadline", "3"]),
        ("deadline_too_short", &["--deadline", "2", "--peer", &other]),
        ("pool_unknown", &["--pool", "nobody-joined"]),
        ("npub_invalid", &["--peer", "npub1nonsense"]),
        ("amount_range", &["--max-price", "9007199254740991"]),
        ("input_invalid", &["--set", "barrier=7"]),
    ];
    let refused = |code: &str, args: &[&str]| {
        let error = asker.fails(2, args)["error"].clone();
        assert_eq!(error["code"], code, "{args:?}: {error}");
        let hint = error["hint"].as_str().unwrap();
        assert!(hint.len() > 5 && !hint.contains("--help"), "{error}");
        error["message"].as_str().unwrap().to_owned()
    };
    for (code, extra) in asks {
        refused(code, &option(extra));
    }
    assert!(refused("deadline_too_short", &option(&["--deadline", "1"])).contains("at least 4 s"));
    refused("peer_is_self", &["peers", "trust", &own, "--tier", "own"]);
    refused("peer_unknown", &["ledger", "--peer", &other]);
    refused("peer_unknown", &["peers", "forget", &other]);
    let limit = [
        "peers",
        "trust",
        &other,
        "--tier",
        "trusted",
        "--limit",
        "9007199254740991",
    ];
    refused("amount_range", &limit);
    let cores = std::thread::available_parallelism().unwrap().get();
    for n in ["0", &(cores + 1).to_string(), "5000000000"] {
        let message = refused("cores_invalid", &["pause", "--cores", n]);
        assert!(message.contains("this machine has"), "{message}");
        assert!(message.contains(&cores.to_string()), "{message}");
    }
    refused("cores_invalid", &["resume", "--cores", "5000000000"]);
    let cores = json!({ "cores": cores });
    assert_eq!(
        asker.ok(&["pause", "--cores", &cores["cores"].to_string()]),
        cores
    );
    asker.ok(&["pause"]);
    asker.ok(&["resume", "--cores", "1"]);
    assert_eq!(asker.ok(&["status"])["cores"], 1);
    asker.ok(&["pause"]);
    asker.ok(&["resume"]);
    assert_eq!(asker.ok(&["status"])["cores"], cores["cores"]);
    refused("proof_missing", &["proof", "export", "nonsense"]);
    assert_eq!(
        asker.ok(&["tasks"]),
        json!({ "tasks": [] }),
        "nothing of it was begun"
    );
    assert_eq!(asker.ok(&["peers"]), json!({ "peers": [] }));
    let longest = "k".repeat(128);
    asker.ok(&option(&[
        "--key",
        &longest,
        "--peer",
        "self",
        "--deadline",
        "1",
        "--detach",
    ]));
    asker.ok(&["peers", "trust", &other, "--tier", "trusted"]);
    assert_eq!(
        asker.ok(&["ledger", "--peer", &other])["accounts"],
        json!([])
    );
}

#[test]
fn a_wrong_input_is_refused_by_the_name_of_its_field() {
    let dir = tempfile::tempdir().unwrap();
    let mut asker = Node::init(dir.path(), "asker", &["ws://127.0.0.1:9"]);
    asker.up();
    let good = json!({
        "kind": "european", "side": "call", "spot": 100, "strike": 105, "rate": 0.05, "volatility": 0.2, "years": 1, "paths": 1000,
    });
    let file = dir.path().join("input.json");
    let refused = |input: &Value, code: &str| {
        std::fs::write(&file, input.to_string()).unwrap();
        let error = asker.fails(2, &["ask", "simulation", "--input", file.to_str().unwrap()]);
        assert_eq!(error["error"]["code"], code, "{input}: {error}");
        error["error"]["message"].as_str().unwrap().to_owned()
    };
    // The fields in the order of the type, which a deserializer would take.
    let positional = json!([
        "european", "call", 100, 105, 0.05, 0.2, 1, 1, null, 1000, "1"
    ]);
    for input in [positional, json!("european"), json!(7), json!(null)] {
        assert!(refused(&input, "input_not_object").contains("object"));
    }
    for (field, value, says) in [
        (
            "spot",
            json!("cheap"),
            "input.spot: must be a number, not string \"cheap\"",
        ),
        ("strike", json!(null), "input.strike: must be a number"),
        ("paths", json!(1.5), "input.paths: must be a whole number"),
        ("paths", json!(-5), "input.paths: must be a whole number"),
        (
            "kind",
            json!("bermudan"),
            "input.kind: must be one of `european`",
        ),
        ("seed", json!([1]), "input.seed: must be a decimal string"),
        ("steps", json!(0), "`steps` must be"),
        (
            "colour",
            json!("red"),
            "input.colour: unknown field; known: `kind`",
        ),
    ] {
        let mut input = good.clone();
        input[field] = value;
        let message = refused(&input, "input_invalid");
        assert!(message.starts_with(says), "{field}: {message}");
    }
    let mut input = good.clone();
    input.as_object_mut().unwrap().remove("years");
    assert_eq!(refused(&input, "input_invalid"), "input.years: is missing");
}

#[test]
fn a_task_that_every_known_peer_refuses_ends_at_once_and_says_why() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let (asker, worker) = strangers(&relay, dir.path());
    until_advertised(&asker, &worker);
    let refused = asker.fails(3, &option(&["--deadline", "3600"]));
    assert_eq!(refused["error"]["code"], "no_provider");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(
        message.contains(&worker.npub) && message.contains("credit_required"),
        "{message}"
    );
    let id = refused["task"]["id"].as_str().unwrap();
    let why = asker.ok(&["why", id]);
    let said = &why["peers"][0]["said"];
    assert_eq!(said["code"], "credit_required");
    // To a person everything is said once: by one peer or by the only one that was asked.
    let directed = option(&["--peer", &worker.npub, "--detach"]);
    let directed = asker.ok(&directed)["task"]["id"].clone();
    let directed = directed.as_str().unwrap();
    for (id, ends) in [(id, "(no_provider)"), (directed, "(credit_required)")] {
        asker.run(&["wait", id]);
        for command in ["wait", "why"] {
            let mut people = Command::new(LEGION);
            people.arg("--home").arg(&asker.home).args([command, id]);
            let output = people.output().unwrap();
            let told = [output.stdout, output.stderr].concat();
            let told = String::from_utf8(told).unwrap();
            let error = told.lines().find(|line| line.starts_with("error: "));
            assert!(
                error.is_none_or(|line| line.ends_with(ends))
                    && error.is_some() == (command == "wait"),
                "{told}"
            );
            for part in [
                "credit_required",
                said["text"].as_str().unwrap(),
                &worker.npub,
            ] {
                assert_eq!(told.matches(part).count(), 1, "{command}: {part}: {told}");
            }
        }
    }
}

#[test]
fn permissions_of_the_file_are_those_in_effect() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let mut asker = Node::init(dir.path(), "asker", &[&relay.url]);
    asker.up();
    for (name, table, key, value, code) in [
        (
            "w1",
            "permissions.trusted",
            "delegate",
            "false",
            "permission_denied",
        ),
        (
            "w2",
            "permissions.trusted",
            "execute",
            "[\"other\"]",
            "permission_denied",
        ),
        (
            "w3",
            "permissions.trusted",
            "max_price_mc",
            "0",
            "price_limit",
        ),
        ("w4", "market", "unit_price_mc", "5000", "price_too_low"),
    ] {
        let mut worker = Node::init(dir.path(), name, &[&relay.url]);
        worker.configure(table, key, value);
        worker.up();
        worker.ok(&["peers", "trust", &asker.npub, "--tier", "trusted"]);
        until_advertised(&asker, &worker);
        let refused = asker.fails(1, &option(&["--peer", &worker.npub]));
        assert_eq!(refused["error"]["code"], code, "{key} = {value}: {refused}");
    }
    // An exception for this one peer lifts what its tier forbids.
    let mut worker = Node::init(dir.path(), "w5", &[&relay.url]);
    worker.configure("permissions.trusted", "delegate", "false");
    let file = worker.home.join("config/legion.toml");
    let rule = format!(
        "\n[[permissions.rule]]\npeer = \"{}\"\nallow = true\nunit_price_mc = 3\n",
        asker.npub
    );
    std::fs::write(&file, std::fs::read_to_string(&file).unwrap() + &rule).unwrap();
    worker.up();
    worker.ok(&["peers", "trust", &asker.npub, "--tier", "trusted"]);
    until_advertised(&asker, &worker);
    let done = asker.ok(&option(&["--peer", &worker.npub]));
    assert_eq!(
        done["cost_mc"].as_u64(),
        done["verified"]["units_total"]
            .as_u64()
            .map(|units| 3 * units)
    );
}

#[test]
fn a_refusal_by_a_peer_that_was_never_heard_of_is_heard() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let mut asker = Node::init(dir.path(), "asker", &[&relay.url]);
    let mut worker = Node::init(dir.path(), "worker", &[&relay.url]);
    // No pool, no ads: the refusal is the first that the asker hears of the worker, and says by which key it is signed.
    asker.configure("", "pools", "[]");
    worker.configure("", "pools", "[]");
    asker.up();
    worker.up();
    let refused = asker.fails(1, &option(&["--peer", &worker.npub, "--deadline", "40"]));
    assert_eq!(refused["error"]["code"], "credit_required", "{refused}");
    let nowhere = asker.fails(2, &option(&[]));
    assert_eq!(nowhere["error"]["code"], "pool_missing");
}

#[test]
fn cancel_ctrl_c_and_the_deadline_have_their_exit_codes() {
    let pair = Pair::start(|_, worker| worker.configure("labor", "cores", "1"));
    let started = |args: &[&str]| {
        let id = pair.asker.ok(args)["task"]["id"]
            .as_str()
            .unwrap()
            .to_owned();
        until("the work to begin", || {
            let begun = pair
                .worker
                .journaled("checkpoint")
                .iter()
                .any(|e| e["task"] == id.as_str());
            begun.then_some(())
        });
        id
    };

    let id = started(&long(&["--peer", &pair.worker.npub, "--detach"]));
    let mut waiting = pair
        .asker
        .command(&["wait", &id])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(waiting.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.starts_with("working"), "{line}");
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&waiting),
        rustix::process::Signal::INT,
    )
    .unwrap();
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(
        said.lines()
            .any(|line| line.unwrap() == format!("legion wait {id}"))
    );
    let canceled = pair.asker.ok(&["cancel", &id]);
    assert_eq!(canceled["task"]["status"]["state"], "canceled");
    let ended = pair.asker.fails(1, &["wait", &id]);
    assert_eq!(ended["task"]["status"]["state"], "canceled");
    assert_eq!(
        pair.asker.ok(&["task", &id])["task"]["status"]["state"],
        "canceled",
        "`task` ends with 0 whatever the state"
    );

    for args in [
        &["task", "nonsense"][..],
        &["wait", "nonsense"],
        &["cancel", "nonsense"],
        &["why", "nonsense"],
    ] {
        assert_eq!(
            pair.asker.fails(2, args)["error"]["code"],
            "task_unknown",
            "{args:?}"
        );
    }
    for command in ["why", "cancel"] {
        let theirs = pair.worker.fails(2, &[command, &id]);
        assert_eq!(theirs["error"]["code"], "task_not_asked", "{command}");
    }
    let bad = pair.asker.fails(2, &option(&["--set", "paths:=-5"]));
    assert_eq!(bad["error"]["code"], "input_invalid");
    let bad = pair.asker.fails(2, &option(&["--pool", "nobody-joined"]));
    assert_eq!(bad["error"]["code"], "pool_unknown");
    pair.settle();
}

#[test]
fn a_deadline_that_passes_while_somebody_works_is_4() {
    let mut pair = Pair::start(|_, worker| worker.configure("labor", "cores", "1"));
    let id = pair.asker.ok(&long(&[
        "--peer",
        &pair.worker.npub,
        "--deadline",
        "6",
        "--detach",
    ]))["task"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    until("the work to begin", || {
        (!pair.worker.journaled("lease_granted").is_empty()).then_some(())
    });
    until("the asker to know", || {
        (pair.asker.ok(&["task", &id])["task"]["status"]["state"] == "working").then_some(())
    });
    pair.worker.kill();
    let passed = pair.asker.fails(4, &["wait", &id]);
    assert_eq!(passed["error"]["code"], "deadline_passed");
    assert_eq!(passed["task"]["status"]["state"], "failed");
}
