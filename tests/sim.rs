//! Nodes in a world of bad weather: whatever happens, one result is settled, and the books agree.

mod disk;
mod judge;
pub(crate) mod policy;
mod toil;
pub(crate) mod world;

use legiond::domain::job::{Phase, Route, TaskState};
use legiond::domain::peer::Tier;
use legiond::domain::step::{Input, PauseMode};
use world::{CHECKPOINT_UNITS, Cheat, Event, Weather, World};

const HOUR: u64 = 3_600_000;

fn pool() -> Route {
    Route::Pool("legion".into())
}

fn assert_paid(world: &World, requester: usize, task: &str, cost_mc: u64) {
    let job = world.job(requester, task);
    assert_eq!(
        (job.phase, job.state, job.cost_mc),
        (Phase::Ended, TaskState::Completed, cost_mc),
        "{:?}",
        job.reason
    );
    assert_eq!(
        world.journaled(requester, "receipt", task),
        1,
        "exactly one result is paid"
    );
}

/// A directed job is done, verified, paid; nothing is left open.
#[test]
fn a_directed_job_is_paid() {
    let mut world = World::friends(1, 2);
    let executor = world.npub(1);
    let task = world.ask(0, 40, Route::Peer(executor), 60_000);
    world.settle(60_000);
    assert!(world.quiet());
    assert_paid(&world, 0, &task, 40);
    world.mirrored();
}

/// Of three bidders one gets the job; the others keep nothing of it.
#[test]
fn a_pool_job_goes_to_one_of_three() {
    let mut world = World::friends(2, 4);
    let task = world.ask(0, 40, pool(), 60_000);
    world.settle(60_000);
    assert!(world.quiet());
    assert_paid(&world, 0, &task, 40);
    assert_eq!(world.journaled(0, "bid", &task), 3);
    world.mirrored();
}

/// Our own hardware costs nothing and moves no money.
#[test]
fn our_own_job_is_free() {
    let mut world = World::friends(3, 1);
    let task = world.ask(0, 12, Route::Own, 60_000);
    world.settle(60_000);
    assert!(world.quiet());
    assert_paid(&world, 0, &task, 0);
    assert!(world.machines[0].disk.transfers.is_empty());
}

/// Random weather, random faults, many seeds: one result settled, books mirrored, nothing left, little recomputed.
#[test]
fn random_interleavings_end_the_same() {
    let only = std::env::var("SIM_SEED")
        .ok()
        .and_then(|s| s.parse::<u64>().ok());
    let kept = include_str!("../fixtures/sim/seeds.txt").lines();
    let kept = kept.filter_map(|line| line.split_whitespace().next()?.parse().ok());
    let seeds: Vec<u64> = only.map_or_else(|| kept.chain(0..300).collect(), |seed| vec![seed]);
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| stormy(seed));
        assert!(
            outcome.is_ok(),
            "SIM_SEED={seed} fails; keep it in fixtures/sim/seeds.txt"
        );
    }
}

fn stormy(seed: u64) {
    storm(&mut World::friends(seed, 3));
}

/// Weather and faults for the next minutes, random like everything else.
fn brew(world: &mut World) {
    world.weather = Weather {
        copies: 3,
        delay_ms: 400,
        ephemeral_loss: 30,
        ack_loss: 30,
        crash_before: 3,
        crash_after: 3,
        disk_fails: 2,
    };
    for _ in 0..world.dice.below(10) {
        let (at, when) = (
            world.dice.below(3) as usize,
            world.now + world.dice.below(25_000),
        );
        let down = 1_000 + world.dice.below(40_000);
        match world.dice.below(4) {
            0 => {
                world.at(when, Event::Kill(at));
                world.at(when + down, Event::Start(at));
            }
            1 => {
                world.at(when, Event::Offline(at));
                world.at(when + down, Event::Online(at));
            }
            2 => world.at(when, Event::Suspend(at, down)),
            _ => {
                let sign = if world.dice.percent(50) { 1 } else { -1 };
                world.at(when, Event::Jump(at, sign * HOUR as i64));
                world.at(when + down, Event::Jump(at, -sign * HOUR as i64));
            }
        }
    }
}

/// Bad weather over five jobs of three friends, to the end.
pub(crate) fn storm(world: &mut World) {
    let rough = world.now + 120_000;
    brew(world);
    let mut tasks = Vec::new();
    for _ in 0..5 {
        let (at, other) = (world.dice.below(3) as usize, world.dice.below(3) as usize);
        world.start(at);
        let calm = world.calm_at;
        world.calm_at = 0;
        let npub = world.npub(other);
        let route = if world.dice.percent(50) {
            pool()
        } else {
            Route::Peer(npub)
        };
        let units = 8 + world.dice.below(60) as u32;
        tasks.push((at, units, world.ask(at, units, route, 6 * HOUR)));
        world.calm_at = calm;
        world.run_for(4_000);
    }
    world.run_until(rough);
    world.settle(12 * HOUR);
    assert!(
        world.quiet(),
        "everything comes to rest: {:?}",
        world
            .machines
            .iter()
            .map(|m| m
                .node
                .as_ref()
                .map(|n| (n.jobs().clone(), n.work().clone())))
            .collect::<Vec<_>>()
    );
    for (at, units, task) in &tasks {
        let job = world.job(*at, task);
        assert_eq!(job.state, TaskState::Completed, "{:?}", job.reason);
        assert_eq!(
            world.journaled(*at, "receipt", task),
            1,
            "exactly one result is paid"
        );
        let awards = job.awards.len() as u64;
        let executed: u64 = world
            .machines
            .iter()
            .flat_map(|m| m.executed.iter())
            .filter(|(o, _)| o.ends_with(task.as_str()))
            .map(|(_, n)| n)
            .sum();
        let kills: u64 = world.machines.iter().map(|m| m.kills).sum();
        let most = u64::from(*units) * awards + u64::from(CHECKPOINT_UNITS) * kills;
        assert!(
            executed <= most,
            "executed {executed} of {units} with {kills} kills and {awards} awards"
        );
    }
    world.mirrored();
    nothing_left(world);
}

/// The same weather over jobs whose executor has parts of them done by others: whatever is killed, each job and each part is
/// paid at most once, three books agree, and nothing waits for anything in the end.
#[test]
fn parts_of_parts_survive_every_storm() {
    let mut completed = 0;
    for seed in 0..200 {
        let outcome = std::panic::catch_unwind(|| chained(seed));
        assert!(outcome.is_ok(), "seed {seed} fails");
        completed += outcome.unwrap_or(0);
    }
    assert!(completed > 400, "{completed} of 600 jobs completed");
}

/// How many of three jobs that need others completed.
fn chained(seed: u64) -> usize {
    let mut world = World::new(seed, 4);
    for machine in &mut world.machines[1..3] {
        machine.policy.skills[0].hop_budget_mc = 100;
    }
    world.befriend();
    let rough = world.now + 120_000;
    brew(&mut world);
    let mut tasks = Vec::new();
    for n in 0..3 {
        world.start(0);
        let calm = std::mem::replace(&mut world.calm_at, 0);
        let executor = world.npub(1 + n % 2);
        let mut asked = world::ask(8 + 4 * n as u32, Route::Peer(executor), 6 * HOUR, seed);
        asked.input["hops"] = (1 + n % 2).into();
        tasks.push(world.ask_for(0, asked));
        world.calm_at = calm;
        world.run_for(4_000);
    }
    if seed.is_multiple_of(4) {
        world.start(0);
        let task = tasks[0].clone();
        world.input(0, Input::Cancel { task });
    }
    world.run_until(rough);
    world.settle(12 * HOUR);
    assert!(world.quiet(), "everything comes to rest");
    for task in &tasks {
        assert!(world.journaled(0, "receipt", task) <= 1);
        for at in 1..3 {
            let asked = world.journaled(at, "delegated", task);
            let answered = world.journaled(at, "answered", task);
            assert!(answered <= asked, "an answer to each part, once");
        }
    }
    world.mirrored();
    nothing_left(&world);
    let done = |task: &&String| world.job(0, task).state == TaskState::Completed;
    tasks.iter().filter(done).count()
}

fn nothing_left(world: &World) {
    for machine in &world.machines {
        let left = machine
            .disk
            .live
            .iter()
            .filter(|n| n.starts_with("job/") || n.starts_with("work/"))
            .count();
        assert_eq!(left, 0, "no lease, lock or engagement is left on a disk");
    }
}

/// The same weather, with owners who cancel and pause, own nodes among the friends, and one who forges units: whatever becomes
/// of each task, at most one result is paid, the books agree, and nothing is left open.
#[test]
fn storms_with_owners_and_a_cheat_end_in_order() {
    for seed in 0..200 {
        let outcome = std::panic::catch_unwind(|| mutiny(seed));
        assert!(outcome.is_ok(), "seed {seed} fails");
    }
}

pub(crate) fn mutiny(seed: u64) {
    let mut world = World::friends(seed, 4);
    let pay = ["free", "units"][world.dice.below(2) as usize];
    for at in 0..4 {
        world.machines[at].policy.on_cancel = pay.into();
        world.kill(at);
        world.start(at);
    }
    world.machines[2].cheat = Cheat::Units;
    let (own, of) = (world.npub(3), world.npub(0));
    for (at, npub) in [(0, own), (3, of)] {
        world.input(
            at,
            Input::Trust {
                npub,
                tier: Tier::Own,
                limit_mc: None,
            },
        );
    }
    world.run_for(500);
    let rough = world.now + 120_000;
    brew(&mut world);
    let mut tasks = Vec::new();
    for _ in 0..6 {
        let (at, other) = (world.dice.below(4) as usize, world.dice.below(4) as usize);
        world.start(at);
        let calm = std::mem::replace(&mut world.calm_at, 0);
        let npub = world.npub(other);
        let route = if world.dice.percent(60) {
            pool()
        } else {
            Route::Peer(npub)
        };
        let units = 8 + world.dice.below(60) as u32;
        let task = world.ask(at, units, route, 6 * HOUR);
        world.calm_at = calm;
        if world.dice.percent(40) {
            let when = world.now + world.dice.below(6_000);
            let task = task.clone();
            world.at(when, Event::Owner(at, Box::new(Input::Cancel { task })));
        }
        if world.dice.percent(30) {
            let when = world.now + world.dice.below(4_000);
            let for_ms = Some(1_000 + world.dice.below(60_000));
            let mode = PauseMode::Now;
            world.at(
                when,
                Event::Owner(other, Box::new(Input::Pause { mode, for_ms })),
            );
        }
        tasks.push((at, task));
        world.run_for(3_000);
    }
    world.run_until(rough);
    world.settle(24 * HOUR);
    assert!(world.quiet(), "everything comes to rest");
    for (at, task) in &tasks {
        let job = world.job(*at, task);
        assert!(job.state.is_final() && !job.is_live());
        let receipts = world.journaled(*at, "receipt", task);
        let paid = usize::from(job.state == TaskState::Completed);
        assert_eq!(receipts, paid, "at most one result is paid");
    }
    world.mirrored();
    nothing_left(&world);
}

/// The requester sleeps for an hour when the result is ready: no second award, same end.
#[test]
fn a_requester_that_is_away_for_an_hour_finds_its_result() {
    for seed in 0..20 {
        let mut world = World::friends(seed, 3);
        let task = world.ask(0, 40, pool(), 3 * HOUR);
        let when = world.now + 1_700 + seed * 80;
        world.at(when, Event::Kill(0));
        world.run_for(HOUR);
        world.settle(HOUR);
        assert!(world.quiet());
        let job = world.job(0, &task);
        assert_eq!(job.state, TaskState::Completed, "seed {seed}");
        let executed: u64 = world
            .machines
            .iter()
            .flat_map(|m| m.executed.values())
            .sum();
        assert_eq!(
            executed, 40,
            "finished work is not awarded again: seed {seed}"
        );
        world.mirrored();
    }
}

/// Accept or decline come after the re-award: the money of both awards is decided, one result is paid.
#[test]
fn answers_after_the_re_award_change_nothing() {
    for (seed, method) in [(1, "pool/accept"), (2, "pool/decline"), (3, "tasks/update")] {
        let mut world = World::friends(seed, 3);
        for at in 1..3 {
            world.machines[at].policy.trusted_limit_mc = 100_000;
        }
        world.slow = Some((1, method, 60_000));
        let second = world.npub(2);
        world.input(
            0,
            Input::Trust {
                npub: second,
                tier: Tier::Trusted,
                limit_mc: None,
            },
        );
        let task = world.ask(0, 40, pool(), HOUR);
        world.run_for(150_000);
        world.settle(3 * HOUR);
        assert!(world.quiet(), "{method}");
        assert_paid(&world, 0, &task, 40);
        world.mirrored();
    }
}

/// A refusal with false evidence is a dispute: the claim stands and that peer's credit is gone until the owner clears it.
#[test]
fn false_evidence_is_a_dispute() {
    let mut world = World::friends(5, 2);
    world.machines[0].refusals_false = true;
    let executor = world.npub(1);
    let task = world.ask(0, 20, Route::Peer(executor.clone()), 60_000);
    world.settle(30_000);
    assert_eq!(world.job(0, &task).state, TaskState::Failed);
    let requester = world.npub(0);
    assert!(world.node(1).peers()[&requester].disputed);
    assert_eq!(
        world
            .node(1)
            .ledger()
            .account(&requester)
            .pending_owed_to_us_mc,
        20,
        "the claim stands"
    );
    let again = world.ask(0, 20, Route::Peer(executor), 60_000);
    world.run_for(10_000);
    assert_eq!(world.job(0, &again).reason.unwrap().code, "credit_required");
    world.input(
        1,
        Input::Trust {
            npub: requester.clone(),
            tier: Tier::Trusted,
            limit_mc: None,
        },
    );
    assert!(!world.node(1).peers()[&requester].disputed);
    // The claim is given up: nothing pends, and the books agree again.
    world.settle(3 * HOUR);
    assert!(world.quiet());
    world.mirrored();
}

/// A result that comes after settlement is due is kept and shown late, unpaid; the executor's claim is overdue.
#[test]
fn a_result_after_settlement_is_late() {
    let mut world = World::friends(6, 2);
    let executor = world.npub(1);
    let task = world.ask(0, 20, Route::Peer(executor), 60_000);
    world.run_for(300);
    world.machines[1].online = false;
    world.run_for(2 * HOUR);
    let job = world.job(0, &task);
    assert_eq!((job.state, job.is_live()), (TaskState::Failed, false));
    world.settle(10 * HOUR);
    let job = world.job(0, &task);
    assert!(
        job.outcome.is_some_and(|o| o.late),
        "kept, and said to be late"
    );
    assert_eq!(job.cost_mc, 0);
    let requester = world.npub(0);
    assert!(world.node(1).peers()[&requester].disputed);
    world.input(
        1,
        Input::Trust {
            npub: requester,
            tier: Tier::Trusted,
            limit_mc: None,
        },
    );
    world.settle(3 * HOUR);
    assert!(world.quiet());
    world.mirrored();
}

/// What a cancel costs was agreed with the award: a setting that the owner changes meanwhile changes nothing of it.
#[test]
fn a_cancel_costs_what_was_agreed() {
    for (agreed, later) in [("units", "free"), ("free", "units")] {
        let mut world = World::friends(1, 2);
        let set = |world: &mut World, pay: &str| {
            world.kill(0);
            world.machines[0].policy.on_cancel = pay.into();
            world.start(0);
            world.run_for(200);
        };
        set(&mut world, agreed);
        let executor = world.npub(1);
        let task = world.ask(0, 400, Route::Peer(executor), 60_000);
        world.run_for(600);
        set(&mut world, later);
        world.input(0, Input::Cancel { task: task.clone() });
        world.settle(3 * HOUR);
        assert!(world.quiet(), "{agreed}: nobody disputes anything");
        world.mirrored();
        let owed = world.machines[0].node.as_ref().map(|node| {
            let account = node.ledger().account(&world.npub(1));
            account.posted_mc != 0
        });
        assert_eq!(owed, Some(agreed == "units"));
    }
}

/// A cancel ends the job at every moment, and nothing pends.
#[test]
fn a_cancel_ends_every_phase() {
    for pay in ["free", "units"] {
        for step in 0..60 {
            let mut world = World::friends(step, 2);
            for machine in &mut world.machines {
                machine.policy.on_cancel = pay.into();
            }
            world.kill(0);
            world.start(0);
            world.run_for(200);
            let executor = world.npub(1);
            let task = world.ask(0, 20, Route::Peer(executor), 60_000);
            world.run_for(step * 20);
            world.input(0, Input::Cancel { task: task.clone() });
            world.settle(3 * HOUR);
            assert!(world.quiet(), "{pay} {step}");
            let job = world.job(0, &task);
            assert!(matches!(
                job.state,
                TaskState::Canceled | TaskState::Completed
            ));
            world.mirrored();
        }
    }
}

/// A forger of one unit in ten is refused nearly always, a forger of the sum always.
#[test]
fn cheats_are_refused() {
    for (cheat, least) in [(Cheat::Units, 180), (Cheat::Aggregate, 200)] {
        let mut refused = 0;
        for seed in 0..200 {
            let mut world = World::friends(seed, 2);
            world.machines[1].cheat = cheat;
            let executor = world.npub(1);
            let task = world.ask(0, 100, Route::Peer(executor), 60_000);
            world.settle(60_000);
            assert!(world.quiet());
            refused += u32::from(world.job(0, &task).state == TaskState::Failed);
            world.mirrored();
        }
        assert!(refused >= least, "{cheat:?}: {refused} of 200");
    }
    assert_eq!(legiond::domain::sample_size(512, 1_000, 9_500), 29);
}
