//! Payloads that fit into no message: five megabytes both ways over relays alone, over a relay that loses a tenth of what it
//! took, through kill -9 of either side, and from strangers who mean no good.

mod hostile;
mod lossy;
mod stolen;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use legiond::store::{Rows, Store, StoreOptions, Table};
use legiond::wire::transfer::{CHUNK_BYTES, sealed_bytes};

use serde_json::{Value, json};

use crate::support::world::{Node, Pair};
use lossy::Lossy;

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

/// Full chunks of input and result together; the last one of each is small, and the relay does not count it.
fn chunks(letters: usize) -> u64 {
    chunks_each(letters).iter().sum()
}

fn chunks_each(letters: usize) -> [u64; 2] {
    let text = "x".repeat(letters);
    let input = json!({"input": {"text": text}}).to_string();
    let result = json!({"output": {"text": text}, "units": "x".repeat(44)}).to_string();
    let full = |json: String| sealed_bytes(json.len() as u64) / CHUNK_BYTES as u64;
    [input, result].map(full)
}

/// A paced relay takes its time, and what a lossy one has lost is sent again after 15 s, then 30 s, and so on.
const PATIENCE: Duration = Duration::from_secs(300);

fn patiently(what: &str, mut probe: impl FnMut() -> bool) {
    let began = Instant::now();
    while !probe() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ended(pair: &Pair, task: &str) -> bool {
    let state = &pair.asker.ok(&["task", task])["task"]["status"]["state"];
    !matches!(state.as_str(), Some("submitted" | "working"))
}

/// Completed, paid once, and every letter is there.
fn finish(pair: &Pair, task: &str, letters: usize) {
    pair.finish(task);
    came_back(pair, task, letters);
}

fn came_back(pair: &Pair, task: &str, letters: usize) {
    let done = pair.asker.ok(&["wait", task]);
    let reversed: String = text(letters).chars().rev().collect();
    let said = done["result"]["text"].as_str().unwrap();
    assert!(said == reversed, "{} letters came back", said.len());
    for node in [&pair.asker, &pair.worker] {
        patiently("no transfer is left", || {
            let moving = transfers(node);
            moving["incoming"] == 0 && moving["outgoing"] == 0
        });
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

/// No key, no piece and no row of a transfer outlives it: with the one-time secrets gone, a thief of the key file (and of the
/// store) cannot open what a relay may have kept; `identity::blob` shows that the lasting key alone opens nothing.
#[test]
fn nothing_of_a_transfer_is_kept_after_it() {
    let mut pair = Pair::start(prepare);
    let task = ask(&pair, 200_000, &["--peer", &pair.worker.npub.clone()]);
    finish(&pair, &task, 200_000);
    for node in [&mut pair.asker, &mut pair.worker] {
        assert!(node.terminate().success());
        let store = Store::open(node.home.join("store.redb"), StoreOptions::default()).unwrap();
        let view = store.view().unwrap();
        for table in [Table::Moves, Table::Pieces] {
            assert_eq!(view.count(table).unwrap(), 0, "{}", table.name());
        }
    }
}

#[test]
fn a_tenth_of_all_events_is_lost_and_only_lost_pieces_are_sent_again() {
    let relay = Lossy::start(10, Duration::ZERO);
    let mut pair = Pair::on(&relay.url, prepare);
    pair.patience = PATIENCE;
    // By name: at an auction three keep-alives lost in a row are a new award, and all of it begins anew.
    let task = ask(&pair, LETTERS, &["--peer", &pair.worker.npub.clone()]);
    finish(&pair, &task, LETTERS);
    assert!(relay.lost_pieces() > 20, "{}", relay.lost_pieces());
    assert!(relay.lost_others() > 0);
    let told = [&pair.asker, &pair.worker].map(|node| node.journal());
    assert_eq!(
        relay.pieces(),
        chunks(LETTERS) + relay.lost_pieces(),
        "{told:#?}"
    );
}

#[test]
fn a_kill_of_either_side_in_the_middle_sends_nothing_again_that_arrived() {
    let relay = Lossy::start(0, Duration::from_millis(25));
    let mut pair = Pair::on(&relay.url, prepare);
    let task = ask(&pair, LETTERS, &["--peer", &pair.worker.npub.clone()]);
    let half = chunks(LETTERS) / 2;
    let [there, _] = chunks_each(LETTERS);
    // On the way there: the receiver, then the sender. On the way back: the sender, then the receiver.
    for (at, kill_worker) in [
        (60, true),
        (150, false),
        (half + 60, true),
        (half + 150, false),
    ] {
        patiently("the middle of the transfer", || relay.pieces() >= at);
        assert!(!ended(&pair, &task), "the transfer has no middle");
        let (node, other) = match kill_worker {
            true => (&mut pair.worker, &pair.asker),
            false => (&mut pair.asker, &pair.worker),
        };
        node.kill();
        let back = at > half;
        if kill_worker == back {
            // What a killed sender has sent is still on its way: a busy machine takes its time over it.
            let before = if back { there } else { 0 };
            patiently("what was sent to arrive", || {
                let came = number(&transfers(other), "done_bytes") / CHUNK_BYTES as u64;
                came >= relay.pieces() - before
            });
        }
        node.up();
    }
    patiently("the task to end", || ended(&pair, &task));
    finish(&pair, &task, LETTERS);
    assert_eq!(relay.pieces(), chunks(LETTERS), "chunks sent in all");
}

/// Nobody waits for the input of a task that was canceled: the rest of it is not sent.
#[test]
fn a_cancel_in_the_middle_ends_the_transfer_on_both_sides() {
    let relay = Lossy::start(0, Duration::from_millis(25));
    let pair = Pair::on(&relay.url, prepare);
    let task = ask(&pair, LETTERS, &["--peer", &pair.worker.npub.clone()]);
    patiently("the middle of the transfer", || relay.pieces() >= 20);
    pair.asker.ok(&["cancel", &task]);
    for node in [&pair.asker, &pair.worker] {
        patiently("no transfer is left", || {
            let moving = transfers(node);
            moving["incoming"] == 0 && moving["outgoing"] == 0
        });
    }
    patiently("the task to end", || ended(&pair, &task));
    let input = chunks(LETTERS) / 2;
    assert!(relay.pieces() < input, "{} of {input}", relay.pieces());
    let book = pair.asker.ok(&["ledger"]);
    let kinds: Vec<&Value> = book["transfers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["kind"])
        .collect();
    assert_eq!(kinds, ["lock", "rollback"], "the lock is free again");
}

#[test]
fn what_is_too_large_is_refused_before_anything_leaves() {
    let pair = Pair::start(|asker, worker| {
        prepare(asker, worker);
        worker.configure("limits", "payload_bytes", "100000");
    });
    let ask = |letters: usize, exit: i32| {
        let path = input(&pair, letters);
        let job = ["ask", "echo", "--input", path.to_str().unwrap()];
        pair.asker.fails(exit, &job)
    };
    let error = ask(5_300_000, 2);
    assert_eq!(error["error"]["code"], "payload_too_large", "{error}");
    assert!(pair.asker.journaled("offer").is_empty());
    // The other side moves less: it says so instead of a bid, and hears no input.
    patiently("the worker's ad", || {
        let peers = pair.asker.ok(&["peers"]);
        peers["peers"][0]["skills"].is_array()
    });
    let error = ask(1_000_000, 3);
    let said = error["error"]["message"].as_str().unwrap();
    assert!(said.contains("payload_too_large"), "{error}");
    assert_eq!(number(&transfers(&pair.asker), "chunks_sent"), 0);
}
