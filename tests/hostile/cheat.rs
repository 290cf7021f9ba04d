//! A cheating executor: it bids and accepts as agreed, computes real units, and forges some of them.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use legiond::labor::skills::cores::{CorePools, numeric_profile};
use legiond::labor::skills::embedding::Shelf;
use legiond::labor::skills::find;
use legiond::wire::market::Award;
use legiond::wire::message::{Body, WorkResult};
use serde_json::{Value, json};

use super::Target;
use crate::support::stranger::{Stranger, hash_of, key_of, sized};
use crate::support::world::until;

/// Tasks in which a tenth of the units is forged.
const FORGED_TASKS: usize = 200;
/// Units of one task: 29 of them are recomputed.
const UNITS: usize = 100;
/// A unit is 2^15 paths of one step.
const PATHS: u64 = 100 << 15;

/// The numeric profile of this machine, as an honest worker states it.
pub(super) fn profile() -> String {
    numeric_profile()
}

/// All units of an input, honestly computed in this process.
pub(super) fn units_of(input: &Value) -> Vec<Vec<u8>> {
    let skill = find("simulation").unwrap();
    let units = skill.plan(input).unwrap().units;
    let mut runner = skill
        .runner(input, CorePools::new(1).take(1), &Shelf::empty())
        .unwrap();
    (0..units).map(|unit| runner.run(unit).unwrap()).collect()
}

/// The units of the one input that all tasks here have.
fn true_units(input: &Value) -> &'static Vec<Vec<u8>> {
    static UNITS_ONCE: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    UNITS_ONCE.get_or_init(|| units_of(input))
}

/// A lazy cheat: a tenth of the units are copies of others, which have the right shape and count.
fn forge(units: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut forged = units.to_vec();
    let mut chosen = BTreeSet::new();
    while chosen.len() < units.len() / 10 {
        let mut bytes = [0u8; 4];
        getrandom::fill(&mut bytes).unwrap();
        let at = u32::from_le_bytes(bytes) as usize % units.len();
        if chosen.insert(at) {
            forged[at] = units[(at + 1) % units.len()].clone();
        }
    }
    forged
}

fn ask(target: &Target, eve: &Stranger, many: usize) -> Vec<String> {
    let params = json!({"skill": "simulation", "input": sized(PATHS, 11), "peer": eve.npub(), "max_price_mc": 1_000});
    (0..many)
        .map(|_| {
            let answer = target.node.call("task/ask", params.clone());
            answer["result"]["task"]["id"]
                .as_str()
                .unwrap_or_else(|| panic!("{answer}"))
                .to_owned()
        })
        .collect()
}

/// Takes as many awards as were asked for and answers each with an acceptance and a result.
fn deliver(
    target: &Target,
    eve: &mut Stranger,
    many: usize,
    make: impl Fn(&Award) -> Vec<Vec<u8>>,
    ruin: impl Fn(&mut WorkResult),
) {
    let hex = key_of(&target.node);
    for _ in 0..many {
        let award = eve.hear_award();
        assert_eq!(award.units as usize, UNITS);
        let units = make(&award);
        let accept = eve.accept(&hex, &award, |_| {});
        let result = eve.result(&hex, &award, &units, &profile(), &ruin);
        let both = json!([
            Stranger::object(&hex, Body::Accept(Box::new(accept))),
            Stranger::object(&hex, Body::Update(Box::new(result))),
        ]);
        eve.say_value(&hex, &both);
    }
}

fn ends(target: &Target, tasks: &[String]) -> Vec<String> {
    tasks
        .iter()
        .map(|task| {
            until("the end of a task", || {
                let answer = target.node.call("task/get", json!({"id": task}));
                let state = answer["result"]["task"]["status"]["state"]
                    .as_str()
                    .unwrap()
                    .to_owned();
                (state == "completed" || state == "failed").then_some(state)
            })
        })
        .collect()
}

#[test]
fn a_tenth_of_the_units_forged_is_refused_nearly_always_and_honest_work_never() {
    let target = Target::start();
    let mut eve = target.trusted(1_000_000);
    true_units(&sized(PATHS, 11));

    let honest = ask(&target, &eve, 10);
    deliver(
        &target,
        &mut eve,
        10,
        |a| true_units(&a.input).clone(),
        |_| {},
    );
    assert!(ends(&target, &honest).iter().all(|end| end == "completed"));

    let mut refused = 0;
    for _ in 0..FORGED_TASKS / 20 {
        let tasks = ask(&target, &eve, 20);
        deliver(
            &target,
            &mut eve,
            20,
            |a| forge(true_units(&a.input)),
            |_| {},
        );
        refused += ends(&target, &tasks)
            .iter()
            .filter(|end| *end == "failed")
            .count();
    }
    assert!(
        refused * 10 >= FORGED_TASKS * 9,
        "only {refused} of {FORGED_TASKS} forgeries were refused"
    );
    // Paid for what passed, and for nothing else; every refusal is on record against the cheat.
    let passed = (FORGED_TASKS - refused + 10) * UNITS;
    let account = target.account(&eve);
    assert_eq!(account["posted_mc"].as_i64(), Some(-(passed as i64)));
    assert_eq!(account["pending_we_owe_mc"], 0);
    let peers = target.node.call("peers/list", json!({}));
    let frauds = peers["result"]["peers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["npub"] == eve.npub())
        .unwrap()["frauds"]
        .clone();
    assert_eq!(frauds, refused);
}

#[test]
fn a_forged_aggregate_is_always_refused() {
    let target = Target::start();
    let mut eve = target.trusted(1_000_000);
    let tasks = ask(&target, &eve, 20);
    let ruin = |r: &mut WorkResult| {
        let price = r.output["price"].as_f64().unwrap();
        r.output["price"] = json!(price * 1.000_001);
        r.proof.output = hash_of(&r.output);
    };
    deliver(
        &target,
        &mut eve,
        20,
        |a| true_units(&a.input).clone(),
        ruin,
    );
    assert!(ends(&target, &tasks).iter().all(|end| end == "failed"));
    let refusals = target.node.journaled("refusal");
    assert_eq!(refusals.len(), 20);
    assert!(
        refusals
            .iter()
            .all(|r| r["body"]["code"] == "aggregate_mismatch")
    );
    assert_eq!(target.account(&eve)["posted_mc"], 0);
}
