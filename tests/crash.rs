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

/// One task per point: the victim is killed there, comes back, and the task ends as if nothing had happened.
fn killed_at(victim: Victim, points: &[&str], kinds: &[&str]) {
    let mut pair = Pair::start(|_, worker| {
        worker.configure("labor", "checkpoint_every_units", "2");
    });
    let (small, mut case) = (job(7, 1), 0);
    let small = borrowed(&small);
    for point in points {
        for kind in kinds {
            case += 1;
            let (key, at) = (format!("case {case}"), format!("{point}:{kind}"));
            let node = victim.of(&mut pair);
            node.kill();
            node.env("LEGION_CRASH_AT", &at);
            node.up();
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

fn anything_is_killed_at_random(seed: u64) {
    let mut dice = Dice(seed);
    let data = tempfile::tempdir().unwrap();
    let kept = data.path().join("relay");
    let relay = Relay::start_at("127.0.0.1:0", Some(&kept));
    let address = relay.address();
    let mut pair = Pair::on(&relay.url, |_, worker| {
        worker.configure("labor", "checkpoint_every_units", "8");
    });
    pair.relay = Some(relay);
    let long = job(512, 2);
    let task = pair.ask("random", &borrowed(&long));
    for blow in 0..6 {
        std::thread::sleep(std::time::Duration::from_millis(dice.below(500)));
        let (asker, worker, cut) = (dice.below(2) == 0, dice.below(2) == 0, dice.below(3));
        if cut < 2 {
            pair.relay.take().unwrap().kill();
        }
        if asker {
            pair.asker.kill();
        }
        if worker {
            pair.worker.kill();
        }
        std::thread::sleep(std::time::Duration::from_millis(dice.below(300)));
        if worker {
            pair.worker.up();
        }
        if asker {
            pair.asker.up();
        }
        // Restarted with its data, or empty.
        let fresh = data.path().join(format!("relay-{blow}"));
        match cut {
            0 => pair.relay = Some(Relay::start_at(&address, Some(&kept))),
            1 => pair.relay = Some(Relay::start_at(&address, Some(&fresh))),
            _ => {}
        }
    }
    pair.finish(&task);
    assert_little_was_lost(&pair.worker, &task, 512, 8);
}

#[test]
fn any_of_the_three_is_killed_at_random_moments() {
    for seed in [1, 2, 3] {
        anything_is_killed_at_random(seed);
    }
}

#[test]
fn any_of_the_three_is_killed_at_other_moments() {
    for seed in [4, 5, 6] {
        anything_is_killed_at_random(seed);
    }
}
