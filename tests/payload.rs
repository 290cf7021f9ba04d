//! Payloads that fit into no message: five megabytes both ways over relays alone, over a relay that loses a tenth of what it
//! took, through kill -9 of either side, and from strangers who mean no good.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::world::{Node, Pair};

/// Letters of the text: input and result are as large, a little below the limit of 5 MiB.
const LETTERS: usize = 5_000_000;

/// Offers the test's skill, with patience for slow machines.
fn prepare(asker: &mut Node, worker: &mut Node) {
    for node in [asker, worker] {
        node.env("LEGION_ECHO", "1");
    }
}

/// Text without repetition on any scale that matters here: every chunk differs.
fn text(letters: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..letters)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b'a' + (state % 26) as u8)
        })
        .collect()
}

fn input(pair: &Pair, letters: usize) -> PathBuf {
    let path = pair.asker.home.join("input.json");
    let whole = json!({"text": text(letters)}).to_string();
    std::fs::write(&path, whole).unwrap();
    path
}

fn ask(pair: &Pair, letters: usize, route: &[&str]) -> String {
    let path = input(pair, letters);
    let mut job = vec!["ask", "echo", "--input", path.to_str().unwrap()];
    job.extend(["--deadline", "1800"]);
    job.extend(route);
    pair.ask("large", &job)
}

/// Completed, paid once, and every letter is there.
fn finish(pair: &Pair, task: &str, letters: usize) {
    let done = pair.finish(task);
    let reversed: String = text(letters).chars().rev().collect();
    let said = done["result"]["text"].as_str().unwrap();
    assert!(said == reversed, "{} letters came back", said.len());
    for node in [&pair.asker, &pair.worker] {
        let moving = transfers(node);
        assert_eq!(moving["incoming"], 0, "{moving}");
        assert_eq!(moving["outgoing"], 0, "{moving}");
    }
}

fn transfers(node: &Node) -> Value {
    node.ok(&["status"])["transfers"].clone()
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap()
}

#[test]
fn five_megabytes_go_both_ways_by_auction() {
    let pair = Pair::start(prepare);
    let task = ask(&pair, LETTERS, &[]);
    finish(&pair, &task, LETTERS);
    let (sent, came) = (transfers(&pair.asker), transfers(&pair.worker));
    assert_eq!(number(&sent, "chunks_sent"), number(&came, "chunks_new"));
    assert_eq!(number(&sent, "chunks_resent"), 0, "nothing was lost");
}
