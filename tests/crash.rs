//! `kill -9` of either node at any point: the same end, paid once, nothing left behind.
//!
//! The table names every batch that a pool task passes on either side. Kinds that are journaled in one batch stand for each
//! other: `asked` and `offer`; `bid` and `award` (the only known bidder has answered); `checked`, `receipt` and `ended`;
//! `accepted` and the first `lease_granted`; `done` and `result_sent`.

use crate::support::world::{Node, Pair, Relay, gone, job, until};

#[derive(Clone, Copy)]
enum Victim {
    Asker,
    Worker,
}

impl Victim {
    fn of(self, pair: &mut Pair) -> &mut Node {
        match self {
            Self::Asker => &mut pair.asker,
            Self::Worker => &mut pair.worker,
        }
    }
}

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// One pool task per point: the victim is killed there, comes back, and the task ends as if nothing had happened.
fn killed_at(victim: Victim, points: &[&str], kinds: &[&str]) {
    killed_on(false, victim, points, kinds);
}

fn killed_on(directed: bool, victim: Victim, points: &[&str], kinds: &[&str]) {
    let mut pair = Pair::start(|_, worker| {
        worker.configure("labor", "checkpoint_every_units", "2");
    });
    let (mut small, mut case) = (job(7, 1), 0);
    if directed {
        small.extend(["--peer".into(), pair.worker.npub.clone()]);
    }
    let small = borrowed(&small);
    for point in points {
        for kind in kinds {
            case += 1;
            let (key, at) = (format!("case {case}"), format!("{point}:{kind}"));
            let node = victim.of(&mut pair);
            node.kill();
            node.env("LEGION_CRASH_AT", &at);
            // What still lies at the relay may bring it to the point before it says that it is ready.
            node.try_up();
            let mut args = small.clone();
            args.extend(["--detach", "--key", &key]);
            // The asker may die before it can answer.
            pair.asker.run(&args);
            let node = victim.of(&mut pair);
            until(&format!("the end at {at}"), || node.ended().then_some(()));
            node.env_remove("LEGION_CRASH_AT");
            node.up();
            let task = pair.ask(&key, &small);
            eprintln!("{task} went through {at}");
            pair.finish(&task);
            assert_eq!(pair.asker.count(&task, "award"), 1, "{at}");
        }
    }
}

const BATCHES_OF_THE_ASKER: &[&str] = &["asked", "award", "accept", "result", "receipt"];
const BATCHES_OF_THE_WORKER: &[&str] = &[
    "bid_made",
    "accepted",
    "checkpoint",
    "result_sent",
    "receipt_received",
];

#[test]
fn the_asker_is_killed_before_anything_is_durable() {
    let brought = ["ask", "bid", "accept", "update", "checked"];
    killed_at(Victim::Asker, &["received"], &brought);
    killed_at(Victim::Asker, &["handled"], BATCHES_OF_THE_ASKER);
}

#[test]
fn the_asker_is_killed_before_anything_has_left() {
    killed_at(
        Victim::Asker,
        &["committed", "dispatched"],
        BATCHES_OF_THE_ASKER,
    );
}

#[test]
fn the_asker_is_killed_while_its_messages_leave() {
    killed_at(
        Victim::Asker,
        &["sealed", "published"],
        BATCHES_OF_THE_ASKER,
    );
}

#[test]
fn the_worker_is_killed_before_anything_is_durable() {
    let brought = [
        "offer",
        "award",
        "labor_checkpoint",
        "labor_done",
        "receipt",
    ];
    killed_at(Victim::Worker, &["received"], &brought);
    killed_at(Victim::Worker, &["handled"], BATCHES_OF_THE_WORKER);
}

#[test]
fn the_worker_is_killed_before_anything_has_left() {
    killed_at(
        Victim::Worker,
        &["committed", "dispatched"],
        BATCHES_OF_THE_WORKER,
    );
}

#[test]
fn the_worker_is_killed_while_its_messages_leave() {
    killed_at(
        Victim::Worker,
        &["sealed", "published"],
        BATCHES_OF_THE_WORKER,
    );
}

#[test]
fn either_is_killed_on_a_directed_task() {
    let points = ["handled", "committed", "sealed"];
    killed_on(true, Victim::Asker, &points, &["asked", "receipt"]);
    killed_on(true, Victim::Worker, &points, &["accepted", "result_sent"]);
}

/// Units executed beyond the needed ones: at most one checkpoint interval per kill, from the worker's journal alone.
pub(crate) fn assert_little_was_lost(
    worker: &Node,
    task: &str,
    units: u64,
    interval: u64,
) -> usize {
    let (mut from, mut reached, mut executed, mut leases) = (0, 0, 0, 0);
    for entry in worker.journal().iter().filter(|e| e["task"] == task) {
        let body = &entry["body"];
        match entry["kind"].as_str().unwrap() {
            "lease_granted" => {
                if leases > 0 {
                    // What a killed run did since its last checkpoint is not known: less than the next checkpoint.
                    executed += (reached + interval).min(units) - from;
                }
                from = body["resumed_from"].as_u64().unwrap();
                assert_eq!(from, reached, "goes on from the last durable checkpoint");
                leases += 1;
            }
            "checkpoint" => {
                let done = body["units_done"].as_u64().unwrap();
                assert!(
                    done > reached && done - reached <= interval,
                    "{reached} -> {done}"
                );
                reached = done;
            }
            "done" => {
                assert_eq!(body["resumed_from"], from);
                assert_eq!(body["executed"], units - from);
                executed += units - from;
            }
            _ => {}
        }
    }
    let kills = leases as u64 - 1;
    assert!(
        executed <= units + interval * kills,
        "{executed} units for {units} with {kills} kills"
    );
    leases
}

pub(crate) fn checkpoints(worker: &Node, task: &str, at_least: usize) {
    until("checkpoints", || {
        (worker.count(task, "checkpoint") >= at_least).then_some(())
    });
}

#[test]
fn a_long_job_resumes_from_its_checkpoint_after_each_kill() {
    let mut pair = Pair::start(|_, worker| {
        worker.configure("labor", "checkpoint_every_units", "8");
    });
    let long = job(512, 2);
    let task = pair.ask("long", &borrowed(&long));
    for kill in 1..=3 {
        checkpoints(&pair.worker, &task, kill * 5);
        let workers = pair.worker.workers();
        assert!(!workers.is_empty(), "a worker holds the lease");
        pair.worker.kill();
        gone(&workers);
        pair.worker.up();
    }
    pair.finish(&task);
    assert_eq!(pair.asker.count(&task, "award"), 1);
    let leases = assert_little_was_lost(&pair.worker, &task, 512, 8);
    assert_eq!(leases, 4, "one lease, and one after each kill");
}

/// A small generator for moments and victims (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// Kills a node now, or starts it so that it will die at some point of its own way; it is up when this returns.
fn strike(node: &mut Node, dice: &mut Dice) {
    node.kill();
    node.env_remove("LEGION_CRASH_AT");
    if dice.below(2) == 0 {
        const POINTS: [&str; 6] = [
            "received",
            "handled",
            "committed",
            "dispatched",
            "sealed",
            "published",
        ];
        let point = POINTS[dice.below(6) as usize];
        let pass = 3 + dice.below(8);
        node.env("LEGION_CRASH_AT", &format!("{point}::{pass}"));
    }
}

fn anything_is_killed_at_random(seed: u64) {
    eprintln!("seed {seed}");
    let mut dice = Dice(seed);
    let data = tempfile::tempdir().unwrap();
    let kept = data.path().join("relay");
    let relay = Relay::start_at("127.0.0.1:0", Some(&kept));
    let address = relay.address();
    let mut pair = Pair::on(&relay.url, |_, worker| {
        worker.configure("labor", "checkpoint_every_units", "8");
    });
    pair.relay = Some(relay);
    let (long, small) = (job(512, 2), job(7, 1));
    let mut directed = job(7, 1);
    directed.extend(["--peer".into(), pair.worker.npub.clone()]);
    let task = pair.ask("long", &borrowed(&long));
    let mut others = vec![pair.ask("small", &borrowed(&small))];
    others.push(pair.ask("directed", &borrowed(&directed)));
    for blow in 0..6 {
        std::thread::sleep(std::time::Duration::from_millis(dice.below(500)));
        let cut = dice.below(4);
        if cut < 2 {
            pair.relay.take().unwrap().kill();
        }
        let (asker, worker) = (dice.below(2) == 0, dice.below(2) == 0);
        if asker || pair.asker.ended() {
            strike(&mut pair.asker, &mut dice);
        }
        if worker || pair.worker.ended() {
            strike(&mut pair.worker, &mut dice);
        }
        std::thread::sleep(std::time::Duration::from_millis(dice.below(300)));
        for node in [&mut pair.asker, &mut pair.worker] {
            if node.ended() {
                node.try_up();
            }
        }
        // Restarted with its data, or empty.
        let fresh = data.path().join(format!("relay-{blow}"));
        match cut {
            0 => pair.relay = Some(Relay::start_at(&address, Some(&kept))),
            1 => pair.relay = Some(Relay::start_at(&address, Some(&fresh))),
            _ => {}
        }
    }
    for node in [&mut pair.asker, &mut pair.worker] {
        node.kill();
        node.env_remove("LEGION_CRASH_AT");
        node.up();
    }
    others.push(task.clone());
    for task in &others {
        pair.finish(task);
    }
    assert_little_was_lost(&pair.worker, &task, 512, 8);
}

/// `LEGION_SEEDS=10..50` tries others.
fn seeds(usual: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let wanted = std::env::var("LEGION_SEEDS").ok();
    wanted.map_or(usual, |text| {
        let (from, to) = text.split_once("..").unwrap();
        from.parse().unwrap()..to.parse().unwrap()
    })
}

#[test]
fn any_of_the_three_is_killed_at_random_moments() {
    for seed in seeds(1..4) {
        anything_is_killed_at_random(seed);
    }
}

#[test]
fn any_of_the_three_is_killed_at_other_moments() {
    for seed in seeds(4..7) {
        anything_is_killed_at_random(seed);
    }
}
