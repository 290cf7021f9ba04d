//! Absence: of a node, of every relay, of the right time, of disk space. The same end as without, and nothing done twice.

mod disk;
mod echo;
mod full;

use crate::crash::{assert_little_was_lost, checkpoints};
use crate::support::world::{Pair, Relay, gone, job, until};

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// A job of 512 units, some seconds of work, with checkpoints every 8 units and hours until its deadline.
fn long_job() -> Vec<String> {
    longer_job(2)
}

fn longer_job(weight: u32) -> Vec<String> {
    let mut args = job(512, weight);
    args.extend(["--deadline".into(), "14400".into()]);
    args
}

fn pair_with_clocks() -> Pair {
    Pair::start(|asker, worker| {
        worker.configure("labor", "checkpoint_every_units", "8");
        asker.set_clock(0);
        worker.set_clock(0);
    })
}

fn set_clocks(pair: &mut Pair, ahead_s: i64) {
    pair.asker.set_clock(ahead_s);
    pair.worker.set_clock(ahead_s);
}

#[test]
fn the_asker_is_away_for_an_hour_when_the_result_is_ready() {
    let mut pair = pair_with_clocks();
    let args = long_job();
    let task = pair.ask("away", &borrowed(&args));
    checkpoints(&pair.worker, &task, 1);
    assert!(pair.asker.terminate().success());
    until("the result", || {
        (pair.worker.count(&task, "result_sent") == 1).then_some(())
    });
    set_clocks(&mut pair, 3600);
    pair.asker.up();
    pair.asker.ok(&["wait", &task]);
    until("the payment", || {
        (pair.worker.count(&task, "receipt_received") == 1).then_some(())
    });
    // The relay's own clock has not moved, and it refuses acknowledgements from the future: they come after the return.
    set_clocks(&mut pair, 0);
    pair.finish(&task);
    assert_eq!(pair.asker.count(&task, "award"), 1, "not awarded again");
}

#[test]
fn the_worker_is_away_when_a_directed_task_is_asked() {
    let mut pair = Pair::start(|_, _| {});
    assert!(pair.worker.terminate().success());
    let peer = pair.worker.npub.clone();
    let mut args = job(3, 1);
    args.extend(["--peer".into(), peer]);
    let task = pair.ask("directed", &borrowed(&args));
    let shown = pair.asker.ok(&["task", &task]);
    assert_eq!(shown["task"]["status"]["state"], "submitted");
    pair.worker.up();
    pair.finish(&task);
    assert_eq!(pair.asker.count(&task, "award"), 1);
}

#[test]
fn a_task_asked_with_no_relay_in_reach_waits_for_one_and_says_so() {
    use std::io::BufRead;
    let relay = Relay::start();
    let (url, address) = (relay.url.clone(), relay.address());
    relay.kill();
    let mut pair = Pair::on(&url, |_, _| {});
    let args = job(3, 1);
    let task = pair.ask("alone", &borrowed(&args));
    let status = pair.asker.ok(&["status"]);
    let connected = status["relays"].as_object().unwrap().values();
    assert!(
        connected.clone().all(|r| r["connected"] == false),
        "{status}"
    );
    let mut waiting = pair
        .asker
        .command(&["wait", &task])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(waiting.stderr.take().unwrap()).lines();
    let said = lines.find(|line| line.as_ref().unwrap().contains("no relay is reachable"));
    assert!(said.is_some(), "the wait says why nothing happens");
    pair.relay = Some(Relay::start_at(&address, None));
    for line in lines {
        line.unwrap();
    }
    assert!(waiting.wait().unwrap().success());
    pair.finish(&task);
}

fn the_relay_is_restarted(keeps_its_data: bool) {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("relay");
    let relay = Relay::start_at("127.0.0.1:0", Some(&file));
    let address = relay.address();
    let mut pair = Pair::on(&relay.url, |_, worker| {
        worker.configure("labor", "checkpoint_every_units", "8");
    });
    let args = long_job();
    let task = pair.ask("relay", &borrowed(&args));
    checkpoints(&pair.worker, &task, 2);
    relay.kill();
    until("the result", || {
        (pair.worker.count(&task, "result_sent") == 1).then_some(())
    });
    let other = data.path().join("empty");
    let file = if keeps_its_data { &file } else { &other };
    pair.relay = Some(Relay::start_at(&address, Some(file)));
    pair.finish(&task);
    assert_eq!(pair.asker.count(&task, "award"), 1);
}

#[test]
fn the_relay_is_restarted_with_its_data() {
    the_relay_is_restarted(true);
}

#[test]
fn the_relay_is_restarted_without_its_data() {
    the_relay_is_restarted(false);
}

/// Both clocks jump while the work goes on, and back: leases that are counted by the clock are not judged by the jump.
fn both_clocks_jump(ahead_s: i64) {
    let mut pair = Pair::start(|asker, worker| {
        for node in [asker, worker] {
            node.configure("labor", "checkpoint_every_units", "8");
            // A third of this is between two keep-alives; without care a jump would outlast the lease.
            node.configure("market", "lease_ttl_ms", "6000");
            node.set_clock(0);
        }
    });
    let args = longer_job(5);
    let task = pair.ask("jump", &borrowed(&args));
    checkpoints(&pair.worker, &task, 3);
    set_clocks(&mut pair, ahead_s);
    checkpoints(&pair.worker, &task, 30);
    set_clocks(&mut pair, 0);
    pair.finish(&task);
    assert_eq!(pair.asker.count(&task, "award"), 1, "not awarded again");
    assert_little_was_lost(&pair.worker, &task, 512, 8);
}

#[test]
fn both_clocks_jump_an_hour_ahead_and_back() {
    both_clocks_jump(3600);
}

#[test]
fn both_clocks_jump_an_hour_back_and_ahead() {
    both_clocks_jump(-3600);
}

/// One clock is wrong until the work is done; what was dated wrongly meanwhile arrives when the clock is right again.
fn one_clock_jumps(asker: bool, ahead_s: i64) {
    let mut pair = pair_with_clocks();
    let args = longer_job(5);
    let task = pair.ask("jump", &borrowed(&args));
    checkpoints(&pair.worker, &task, 3);
    let node = if asker {
        &mut pair.asker
    } else {
        &mut pair.worker
    };
    node.set_clock(ahead_s);
    until("the result", || {
        (pair.worker.count(&task, "result_sent") == 1).then_some(())
    });
    let node = if asker {
        &mut pair.asker
    } else {
        &mut pair.worker
    };
    node.set_clock(0);
    pair.finish(&task);
    assert_eq!(pair.asker.count(&task, "award"), 1, "not awarded again");
}

#[test]
fn the_workers_clock_jumps_an_hour_ahead_and_back() {
    one_clock_jumps(false, 3600);
}

#[test]
fn the_workers_clock_jumps_an_hour_back_and_ahead() {
    one_clock_jumps(false, -3600);
}

#[test]
fn the_askers_clock_jumps_an_hour_ahead_and_back() {
    one_clock_jumps(true, 3600);
}

#[test]
fn the_askers_clock_jumps_an_hour_back_and_ahead() {
    one_clock_jumps(true, -3600);
}

#[test]
fn the_asker_sleeps_longer_than_a_lease_lasts() {
    let pair = Pair::start(|asker, worker| {
        worker.configure("labor", "checkpoint_every_units", "8");
        asker.configure("market", "lease_ttl_ms", "2000");
        asker.configure("limits", "clock_jump_ms", "1000");
    });
    let args = long_job();
    let task = pair.ask("sleep", &borrowed(&args));
    checkpoints(&pair.worker, &task, 3);
    pair.asker.suspend();
    std::thread::sleep(std::time::Duration::from_secs(4));
    pair.asker.resume();
    pair.finish(&task);
    assert_eq!(pair.asker.count(&task, "lease_expired"), 0);
    assert_eq!(pair.asker.count(&task, "award"), 1, "not awarded again");
}

#[test]
fn the_worker_sleeps_in_the_middle_of_the_work() {
    let pair = Pair::start(|_, worker| {
        worker.configure("labor", "checkpoint_every_units", "8");
    });
    let args = long_job();
    let task = pair.ask("sleep", &borrowed(&args));
    checkpoints(&pair.worker, &task, 3);
    pair.worker.suspend();
    std::thread::sleep(std::time::Duration::from_secs(3));
    pair.worker.resume();
    pair.finish(&task);
    assert_eq!(pair.asker.count(&task, "award"), 1);
    assert_little_was_lost(&pair.worker, &task, 512, 8);
}

#[test]
fn a_worker_that_is_told_to_end_leaves_a_checkpoint_and_no_process() {
    let mut pair = Pair::start(|_, worker| {
        worker.configure("labor", "checkpoint_every_units", "64");
    });
    let args = long_job();
    let task = pair.ask("term", &borrowed(&args));
    checkpoints(&pair.worker, &task, 1);
    let workers = pair.worker.workers();
    assert!(!workers.is_empty());
    assert!(pair.worker.terminate().success());
    gone(&workers);
    pair.worker.up();
    let done = pair.finish(&task);
    assert_eq!(done["verified"]["quality"], 1.0);
    let journal = pair.worker.journal();
    let of = |kind: &str| {
        let found = journal
            .iter()
            .filter(|e| e["kind"] == kind && e["task"] == task.as_str());
        found.map(|e| e["body"].clone()).collect::<Vec<_>>()
    };
    let (rested, leases) = (of("hibernated"), of("lease_granted"));
    assert_eq!((rested.len(), leases.len()), (1, 2));
    assert_eq!(leases[1]["resumed_from"], rested[0]["units_done"]);
    let executed =
        rested[0]["executed"].as_u64().unwrap() + of("done")[0]["executed"].as_u64().unwrap();
    assert_eq!(executed, 512, "nothing was computed twice");
}

/// The first path on a relay that is not ours, with the worker killed in the middle.
#[test]
fn the_path_on_the_npm_relay() {
    let Some(relay) = crate::support::npm_relay::NpmRelay::start(None) else {
        return;
    };
    let mut pair = Pair::on(&relay.url, |_, worker| {
        worker.configure("labor", "checkpoint_every_units", "8");
    });
    let mut directed = job(3, 1);
    directed.extend(["--peer".into(), pair.worker.npub.clone()]);
    let task = pair.ask("directed", &borrowed(&directed));
    pair.finish(&task);
    let pool = long_job();
    let task = pair.ask("pool", &borrowed(&pool));
    checkpoints(&pair.worker, &task, 5);
    pair.worker.kill();
    pair.worker.up();
    pair.finish(&task);
    let leases = assert_little_was_lost(&pair.worker, &task, 512, 8);
    assert_eq!(leases, 2);
}
