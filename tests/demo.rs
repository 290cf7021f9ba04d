//! `legion demo` shows what it says: one command, offline, a killed node, a result that is checked, two books that agree.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::world::{LEGION, until};

fn demo(args: &[&str]) -> Output {
    Command::new(LEGION)
        .args(["--json", "demo"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn told(output: &Output) -> Value {
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{stdout}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

fn posted(book: &Value, npub: &Value) -> i64 {
    let accounts = book["ledger"]["accounts"].as_array().unwrap();
    accounts.iter().find(|a| a["npub"] == *npub).unwrap()["posted_mc"]
        .as_i64()
        .unwrap()
}

#[test]
fn the_demo_survives_the_kill_and_its_homes_can_be_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let keep = dir.path().join("kept");
    let demo = told(&demo(&["--seed", "7", "--keep", keep.to_str().unwrap()]));

    assert_eq!(demo["input"]["seed"], "7");
    assert_eq!(demo["result"]["seed"], "7");
    assert_eq!(
        (
            &demo["verified"]["assurance"],
            demo["verified"]["quality"].as_f64()
        ),
        (&Value::from("sampled"), Some(1.0))
    );
    let price = demo["result"]["price"].as_f64().unwrap();
    let error = demo["result"]["std_error"].as_f64().unwrap();
    assert!(
        (price - 8.021_352).abs() < 4.0 * error && error < 0.03,
        "{price} +- {error}"
    );

    let killed = &demo["killed"];
    let (resumed, units) = (
        killed["resumed_from"].as_u64().unwrap(),
        killed["units_total"].as_u64().unwrap(),
    );
    assert!(
        killed["pid"].as_u64().unwrap() > 1 && resumed > 0 && resumed < units,
        "{killed}"
    );
    assert_eq!(killed["units_not_recomputed"], resumed);
    assert_eq!(killed["units_executed_after"], units - resumed);

    let told: Vec<(u64, &str)> = demo["timeline"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["at_ms"].as_u64().unwrap(), e["what"].as_str().unwrap()))
        .collect();
    assert!(told.is_sorted_by_key(|(at_ms, _)| *at_ms), "{told:?}");
    let story = [
        "ad",
        "offer",
        "bid",
        "award",
        "accept",
        "lease",
        "checkpoint",
        "kill",
        "resume",
        "result",
        "proof",
        "receipt",
    ];
    for what in story {
        assert!(
            told.iter().any(|(_, w)| *w == what),
            "{what} is missing: {told:?}"
        );
    }
    let first = |what: &str| told.iter().position(|(_, w)| *w == what).unwrap();
    for pair in [
        "offer",
        "bid",
        "award",
        "lease",
        "checkpoint",
        "kill",
        "resume",
        "result",
        "proof",
        "receipt",
    ]
    .windows(2)
    {
        assert!(first(pair[0]) < first(pair[1]), "{pair:?}: {told:?}");
    }

    let books = &demo["books"];
    assert_eq!(books["mirrored"], true);
    let owed = posted(&books["worker"], &books["asker"]["npub"]);
    assert_eq!(owed, demo["cost_mc"].as_i64().unwrap());
    assert_eq!(posted(&books["asker"], &books["worker"]["npub"]), -owed);

    look_at(&keep, &demo);
}

/// The commands that it prints work on what it left, and nothing of it runs any more.
fn look_at(keep: &std::path::Path, demo: &Value) {
    for name in ["asker", "worker"] {
        let home = keep.join(name);
        let legion = |args: &[&str]| {
            let output = Command::new(LEGION)
                .arg("--home")
                .arg(&home)
                .arg("--json")
                .args(args)
                .output()
                .unwrap();
            (
                output.status.code(),
                serde_json::from_slice::<Value>(&output.stdout).unwrap(),
            )
        };
        assert_eq!(legion(&["status"]).0, Some(5), "the node has ended");
        let mut up = Command::new(LEGION);
        up.arg("--home").arg(&home).args(["--json", "up"]);
        let mut node = up
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(node.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let (exit, ledger) = legion(&["ledger"]);
        let (_, task) = legion(&["task", demo["task"]["id"].as_str().unwrap()]);
        node.kill().unwrap();
        node.wait().unwrap();
        assert_eq!((exit, &ledger), (Some(0), &demo["books"][name]["ledger"]));
        assert_eq!(task["task"]["status"]["state"], "completed", "{task}");
        let fields = |task: &Value| {
            task.as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(
            fields(&demo["task"]),
            fields(&task["task"]),
            "the demonstration shows a task as every command does"
        );
    }
    let (exit, again) = (
        demo_again(keep),
        demo["keep"]["commands"].as_array().unwrap().len(),
    );
    assert_eq!(
        exit,
        Some(2),
        "a directory that holds something is not written over"
    );
    assert!(again > 3);
}

fn demo_again(keep: &std::path::Path) -> Option<i32> {
    demo(&["--keep", keep.to_str().unwrap()]).status.code()
}

#[test]
fn a_demo_that_is_interrupted_leaves_no_process_and_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(LEGION)
        .args(["--json", "demo"])
        .env("TMPDIR", dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let trusting = said.any(|line| line.unwrap().contains("trust each other"));
    assert!(trusting, "both nodes run from here on");
    let place = std::fs::read_dir(dir.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::INT,
    )
    .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["error"]["code"], "interrupted");
    assert!(!place.exists());
    until("every process of the demo to be gone", || {
        (running(&place) == 0).then_some(())
    });
}

/// Processes whose command line names this directory.
fn running(place: &std::path::Path) -> usize {
    let processes = std::fs::read_dir("/proc").map(Iterator::flatten);
    let place = place.to_str().unwrap();
    let named = |entry: std::fs::DirEntry| {
        std::fs::read(entry.path().join("cmdline"))
            .map(|c| String::from_utf8_lossy(&c).contains(place))
    };
    processes.map_or(0, |entries| {
        entries
            .filter_map(|entry| named(entry).ok())
            .filter(|named| *named)
            .count()
    })
}
