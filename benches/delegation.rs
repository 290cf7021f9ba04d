//! What one delegation costs: `cargo bench --bench delegation`.
//!
//! One embedded relay and two nodes as separate processes on this machine, every commit fsynced. Prints the table that
//! README shows. `LEGION_BENCH_S` (default 60) is the length of each throughput run in seconds.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use legiond::carrier::{
    CarrierConfig, CarrierEvent, Handle, InboxSpec, Outgoing, RelayCarrier, RelayState,
};
use legiond::identity::conversation::Conversations;
use legiond::store::{Store, StoreOptions, Table};
use legiond::wire::envelope::{Delivery, Draft, Envelope};
use legiond::wire::merkle::{ResultContext, result_root};
use legiond::wire::proof::Proof;
use legiond::wire::verify::{Keyring, verify};
use nostr::Keys;
use serde_json::{Value, json};

#[path = "../tests/support/world.rs"]
#[allow(dead_code)]
mod world;

use world::{Node, Relay};

fn main() {
    // `cargo test --all-targets` runs benches without `--bench`: nothing is measured then.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut rows = Vec::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let raw_ms = {
        let relay = Relay::start();
        let (p50, p99) = runtime.block_on(raw_round_trip(&relay.url));
        rows.push((
            "raw wrapped round trip (two gift-wrapped messages, no node)".to_owned(),
            format!("p50 {p50:.2} ms, p99 {p99:.2} ms"),
        ));
        p50
    };
    let [small, step] = commits(dir.path());
    rows.push((
        "one durable commit (fsync) of one small row".to_owned(),
        format!("p50 {:.2} ms, {:.0} commits/s", small.0, small.1),
    ));
    rows.push((
        "one durable commit of what a node's step writes (11 rows, 9 tables)".to_owned(),
        format!("p50 {:.2} ms, {:.0} commits/s", step.0, step.1),
    ));
    let check_ms = proof_check();
    rows.push((
        "proof verification without recomputation".to_owned(),
        format!("{check_ms:.3} ms"),
    ));

    let world = World::start(dir.path());
    for (name, peer) in [("directed", true), ("pool", false)] {
        let (p50, p99) = world.latency(peer, 200);
        let floor = raw_ms + 4.0 * step.0;
        let beside = if peer {
            format!(" ({:.1}x of raw + four step commits)", p50 / floor)
        } else {
            String::new()
        };
        rows.push((
            format!("{name} delegation of one tiny unit, `ask` to result durable"),
            format!("p50 {p50:.1} ms, p99 {p99:.1} ms{beside}"),
        ));
    }
    let seconds = std::env::var("LEGION_BENCH_S")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(60);
    for at_once in [1, 16, 64, 256] {
        let (settled, failed, cpu) = world.throughput(at_once, Duration::from_secs(seconds));
        rows.push((
            format!(
                "settled tasks/s, {at_once} at once (receipt durable on both nodes, {seconds} s)"
            ),
            format!("{settled:.0}/s, {failed} failed, cpu {cpu}"),
        ));
    }
    println!("\n| what | figure |\n|---|---|");
    for (what, figure) in rows {
        println!("| {what} | {figure} |");
    }
}

fn percentiles(mut ms: Vec<f64>) -> (f64, f64) {
    ms.sort_by(f64::total_cmp);
    (
        ms[ms.len() / 2],
        ms[(ms.len() * 99 / 100).min(ms.len() - 1)],
    )
}

// ---- raw -----------------------------------------------------------------------------------------------------------

struct End {
    keys: Keys,
    ring: Keyring,
    conversations: Arc<Conversations>,
    carrier: Handle,
    events: tokio::sync::mpsc::Receiver<CarrierEvent>,
}

impl End {
    async fn on(url: &str) -> Self {
        let keys = Keys::generate();
        let conversations = Arc::new(Conversations::new(64));
        let ring = Keyring::new(keys.clone(), conversations.clone());
        let (carrier, mut events) =
            RelayCarrier::start(CarrierConfig::default(), Vec::new()).unwrap();
        let spec = InboxSpec {
            pubkey: keys.public_key(),
            since_s: 0,
            auth: None,
            stored: true,
            ephemeral: true,
        };
        carrier.set_inboxes(vec![spec]).unwrap();
        carrier.add_relay(url).unwrap();
        while !matches!(
            events.recv().await.unwrap(),
            CarrierEvent::Relay {
                state: RelayState::CaughtUp { .. },
                ..
            }
        ) {}
        Self {
            keys,
            ring,
            conversations,
            carrier,
            events,
        }
    }

    async fn send(&self, to: &End, url: &str, content: String) {
        let now_s = legiond::node::clock::now_ms() / 1000;
        let draft = Draft {
            author: self.keys.public_key(),
            recipient: to.keys.public_key(),
            content,
            reply_to: None,
            created_at_s: now_s,
            expires_at_s: Some(now_s + 600),
        };
        let event = Envelope::new(draft, Delivery::Stored, 0)
            .unwrap()
            .close(&self.conversations, &self.keys, now_s)
            .unwrap();
        self.carrier
            .publish(&Outgoing::from_event(&event), &[url.to_owned()])
            .await
            .unwrap();
    }

    async fn receive(&mut self) -> String {
        loop {
            if let CarrierEvent::Arrived { event, .. } = self.events.recv().await.unwrap() {
                return verify(&event, &self.ring, legiond::node::clock::now_ms() / 1000)
                    .unwrap()
                    .content;
            }
        }
    }
}

async fn raw_round_trip(url: &str) -> (f64, f64) {
    let (mut a, mut b) = (End::on(url).await, End::on(url).await);
    let body =
        json!({"jsonrpc": "2.0", "method": "message/send", "params": {"text": "x".repeat(600)}})
            .to_string();
    let mut ms = Vec::new();
    for round in 0..600 {
        let began = Instant::now();
        a.send(&b, url, body.clone()).await;
        b.receive().await;
        b.send(&a, url, body.clone()).await;
        a.receive().await;
        if round >= 100 {
            ms.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    percentiles(ms)
}

// ---- parts ---------------------------------------------------------------------------------------------------------

/// Durable commits of one small row, and of what a node's step writes (an accepted award: 11 rows in 9 tables, 6 kB).
fn commits(dir: &Path) -> [(f64, f64); 2] {
    let store = Store::open(dir.join("bench.redb"), StoreOptions::default()).unwrap();
    let small = time_commits(500, |n| {
        store
            .write(|txn| txn.put(Table::Meta, &n.to_be_bytes(), &n))
            .unwrap();
    });
    let (text, bytes) = ("x".repeat(1_200), vec![7u8; 200]);
    let step = time_commits(500, |n| {
        let id = legiond::wire::canonical::sha256(&n.to_be_bytes());
        let key = format!("work/{}/1", hex::encode(id)).into_bytes();
        let row = json!({"n": n, "text": text});
        store
            .write(|txn| {
                txn.put(Table::Tasks, &key, &row)?;
                txn.live_insert(Table::Tasks, &key)?;
                txn.payload_put(&key, "input", &bytes)?;
                txn.put(Table::Transfers, &key, &json!({"amount": n}))?;
                txn.put(Table::Accounts, b"peer", &json!({"posted": n}))?;
                txn.put(Table::Peers, b"peer", &row)?;
                txn.put(Table::History, &key, &row)?;
                txn.journal_append(n, "accepted", Some("task"), &json!({"n": n}))?;
                txn.journal_append(n, "lease_granted", Some("task"), &json!({"n": n}))?;
                txn.seen_insert(&id, &id, Some(&id), n)?;
                txn.put(Table::Outbox, &n.to_be_bytes(), &row)
            })
            .unwrap();
    });
    [small, step]
}

/// Median milliseconds of one, and how many a second.
fn time_commits(rounds: u64, mut commit: impl FnMut(u64)) -> (f64, f64) {
    let began = Instant::now();
    let mut ms = Vec::new();
    for n in 0..rounds {
        let one = Instant::now();
        commit(n);
        ms.push(one.elapsed().as_secs_f64() * 1e3);
    }
    (
        percentiles(ms).0,
        rounds as f64 / began.elapsed().as_secs_f64(),
    )
}

fn proof_check() -> f64 {
    use ed25519_dalek::SigningKey;
    let key = SigningKey::from_bytes(&[7; 32]);
    let units = vec![vec![1u8; 24]; 29];
    let output = json!({"price": 10.5, "std_error": 0.03, "paths": 200_000, "steps": 1, "units": 29, "seed": "7"});
    let context = ResultContext {
        task: b"t",
        award_no: 1,
        executor: b"e",
        input_commitment: b"c",
    };
    let output_hash = |output: &Value| {
        legiond::wire::canonical::sha256_hex(
            &legiond::wire::canonical::canonical_json(output).unwrap(),
        )
    };
    let mut proof = Proof {
        hops: Vec::new(),
        v: 1,
        task: "t".into(),
        award_no: 1,
        skill: "simulation".into(),
        requester: "r".repeat(64),
        executor: "e".repeat(64),
        lct: "lct:web4:agent:a@b#c".into(),
        key: hex::encode(key.verifying_key().to_bytes()),
        commitment: "c".repeat(64),
        output: output_hash(&output),
        root: hex::encode(result_root(&context, &units).unwrap()),
        terms: "d".repeat(64),
        units: 29,
        unit_price_mc: 1,
        cost_mc: 29,
        device: "cpu".into(),
        model: None,
        profile: "flex".into(),
        implementation: "legion".into(),
        started_ms: 1,
        finished_ms: 2,
        sig: String::new(),
    };
    proof.sign(&key).unwrap();
    let began = Instant::now();
    let rounds = 2_000;
    for _ in 0..rounds {
        assert!(proof.is_signed());
        assert_eq!(output_hash(&output), proof.output);
        assert_eq!(
            hex::encode(result_root(&context, &units).unwrap()),
            proof.root
        );
    }
    began.elapsed().as_secs_f64() * 1e3 / f64::from(rounds)
}

// ---- nodes ---------------------------------------------------------------------------------------------------------

/// A node under the limits for which the figures hold: no rate limit, credit for the whole run, room for every caller.
fn node(dir: &Path, name: &str, relay: &str) -> Node {
    let mut node = Node::init(dir, name, &[relay]);
    for (table, key, value) in [
        ("permissions.trusted", "max_per_min", "100000000"),
        ("permissions.trusted", "max_concurrent", "4096"),
        ("limits", "control_connections", "1024"),
        ("limits", "tasks_per_peer", "4096"),
        ("labor", "slots", "256"),
    ] {
        node.configure(table, key, value);
    }
    node.up();
    node
}

fn client(node: &Node) -> Client {
    let stream = UnixStream::connect(node.home.join("legion.sock")).unwrap();
    Client {
        reader: BufReader::new(stream.try_clone().unwrap()),
        writer: stream,
    }
}

struct Client {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Client {
    /// Calls, and gives the result with the moment at which the first line holding `sign` (or the answer) came.
    fn call(&mut self, method: &str, params: Value, sign: &str) -> (Result<Value, Value>, Instant) {
        writeln!(
            self.writer,
            "{}",
            json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        )
        .unwrap();
        let mut seen = None;
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).unwrap();
            if seen.is_none() && line.contains(sign) {
                seen = Some(Instant::now());
            }
            let answer: Value = serde_json::from_str(&line).unwrap();
            if let Some(result) = answer.get("result") {
                return (Ok(result.clone()), seen.unwrap_or_else(Instant::now));
            }
            if let Some(error) = answer.get("error") {
                return (Err(error.clone()), seen.unwrap_or_else(Instant::now));
            }
        }
    }
}

struct World {
    asker: Node,
    worker: Node,
    relay: Relay,
}

impl World {
    fn start(dir: &Path) -> Self {
        let relay = Relay::start();
        let asker = node(dir, "asker", &relay.url);
        let worker = node(dir, "worker", &relay.url);
        for (node, other) in [(&asker, &worker), (&worker, &asker)] {
            let params = json!({"npub": other.npub, "tier": "trusted", "limit_mc": 1_000_000_000});
            client(node).call("peers/trust", params, "\u{0}").0.unwrap();
        }
        let world = Self {
            asker,
            worker,
            relay,
        };
        // Both have seen each other's ad, and the workers are warm.
        world.latency(false, 10);
        world
    }

    fn ask(&self, client: &mut Client, directed: bool) -> (Result<Value, Value>, Duration) {
        let mut params = json!({"skill": "simulation", "input": {
            "kind": "european", "side": "call", "spot": 100, "strike": 105, "rate": 0.05, "volatility": 0.2, "years": 1, "paths": 100,
        }, "max_price_mc": 1});
        if directed {
            params["peer"] = json!(self.worker.npub);
        }
        let began = Instant::now();
        let asked = match client.call("task/ask", params, "\u{0}").0 {
            Ok(asked) => asked,
            Err(error) => return (Err(error), began.elapsed()),
        };
        let id = asked["task"]["id"].clone();
        let (done, durable) = client.call("task/wait", json!({"id": id}), "checking");
        (done, durable - began)
    }

    fn latency(&self, directed: bool, rounds: usize) -> (f64, f64) {
        let mut client = client(&self.asker);
        let mut ms = Vec::new();
        for _ in 0..rounds {
            let (done, took) = self.ask(&mut client, directed);
            done.unwrap();
            ms.push(took.as_secs_f64() * 1e3);
        }
        percentiles(ms)
    }

    /// Posted on both books: one milli-credit per settled task. The smaller of the two.
    fn settled(&self) -> u64 {
        [&self.asker, &self.worker]
            .iter()
            .map(|node| {
                let book = client(node)
                    .call("ledger/get", json!({}), "\u{0}")
                    .0
                    .unwrap();
                book["accounts"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|a| a["posted_mc"].as_i64().unwrap().unsigned_abs())
                    .sum::<u64>()
            })
            .min()
            .unwrap()
    }

    fn throughput(&self, at_once: usize, length: Duration) -> (f64, u64, String) {
        let (stop, failed) = (AtomicBool::new(false), AtomicU64::new(0));
        let before = self.settled();
        let cpu = [
            cpu_s(self.asker.pid()),
            cpu_s(self.worker.pid()),
            cpu_s(self.relay.pid()),
        ];
        let began = Instant::now();
        let mut counted = (0, Duration::ZERO);
        std::thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| {
                    let mut client = client(&self.asker);
                    while !stop.load(Ordering::Relaxed) {
                        if let Err(error) = self.ask(&mut client, true).0
                            && failed.fetch_add(1, Ordering::Relaxed) == 0
                        {
                            eprintln!("first failure: {error}");
                        }
                    }
                });
            }
            std::thread::sleep(length);
            counted = (self.settled(), began.elapsed());
            stop.store(true, Ordering::Relaxed);
        });
        let share = |now: f64, before: f64| (now - before) / counted.1.as_secs_f64() * 100.0;
        let used = format!(
            "asker {:.0} %, worker {:.0} %, relay {:.0} %",
            share(cpu_s(self.asker.pid()), cpu[0]),
            share(cpu_s(self.worker.pid()), cpu[1]),
            share(cpu_s(self.relay.pid()), cpu[2])
        );
        (
            (counted.0 - before) as f64 / counted.1.as_secs_f64(),
            failed.load(Ordering::Relaxed),
            used,
        )
    }
}

/// CPU seconds of a process so far (Linux); 0 elsewhere. Worker processes are not counted in.
fn cpu_s(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    let ticks = |n: usize| {
        fields
            .get(n)
            .and_then(|f| f.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / 100.0
}
