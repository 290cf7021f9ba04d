//! A part of a job that a skill gives to somebody else: what it waits for, what it costs, and how far it goes.
//!
//! 0 asks 1, whose skill asks 2 through the pool in which all three are.

use legiond::domain::Node;
use legiond::domain::engagement::{Call, CallEnd, Engagement, Stage};
use legiond::domain::job::{Route, TaskState};
use legiond::domain::ledger::Side;
use legiond::domain::peer::Tier;
use legiond::domain::step::{
    Addressee, Change, Effect, Input, LaborNews, PauseMode, PlanFacts, Refused, Row, Step, Wish,
};
use legiond::wire::entry::Act;
use legiond::wire::market::{link, veil};
use legiond::wire::message::{Body, News, Update};
use legiond::wire::proof::{Hop, Proof};
use serde_json::json;

use super::pair::{Hall, journaled, letters, one};
use crate::sim::world::SKILL;

pub(super) const BUDGET_MC: u64 = 50;
pub(super) const UNITS: u32 = 8;
pub(super) const PART_UNITS: u32 = 5;

fn hall() -> Hall {
    Hall::with(3, |at, policy| {
        policy.skills[0].hop_budget_mc = if at == 1 { BUDGET_MC } else { 0 };
    })
}

pub(super) fn wish(call: u32) -> Wish {
    let plan = PlanFacts {
        units: PART_UNITS,
        output_bytes_max: 100,
        model: None,
    };
    Wish {
        call,
        skill: SKILL.into(),
        peer: None,
        input: Ok((json!({"units": PART_UNITS, "seed": "1"}), Some(plan))),
    }
}

/// The worker of `at` ends its run with a wish.
pub(super) fn delegate(hall: &mut Hall, at: usize, key: &str, wish: Wish) -> Step {
    let news = LaborNews::Delegated {
        wish: Box::new(wish),
        units_done: 0,
        bytes: vec![7],
        executed: 0,
    };
    hall.give(
        at,
        Input::Labor {
            key: key.to_owned(),
            news,
        },
    )
}

pub(super) fn body(step: &Step, wanted: impl Fn(&Body) -> bool) -> Body {
    let found = letters(step).into_iter().find(|(_, body)| wanted(body));
    found.unwrap_or_else(|| panic!("{step:?}")).1
}

pub(super) fn work<'a>(hall: &'a Hall, at: usize, key: &str) -> &'a Engagement {
    &hall.nodes[at].work()[key]
}

/// A job of 0 at 1 that waits for its part: key, part, and the offer of the part.
pub(super) fn waiting(hall: &mut Hall) -> (String, String, Body) {
    let task = hall.accepted(UNITS);
    let key = format!("{}/{task}/1", hall.npub(0));
    let step = delegate(hall, 1, &key, wish(1));
    let offer = body(&step, |b| matches!(b, Body::Offer(_)));
    let part = work(hall, 1, &key).calls[0].task.clone();
    (key, part, offer)
}

/// The same, and 2 works on the part.
pub(super) fn worked_on(hall: &mut Hall) -> (String, String) {
    let (key, part, offer) = waiting(hall);
    let bid = one(&hall.hand(1, 2, offer.clone()));
    let decline = one(&hall.hand(1, 0, offer));
    hall.hand(0, 1, decline);
    let award = one(&hall.hand(2, 1, bid));
    let accept = body(&hall.hand(1, 2, award), |b| matches!(b, Body::Accept(_)));
    hall.hand(2, 1, accept);
    (key, part)
}

/// The same, and its result is here, checked and paid: with the step that this was.
pub(super) fn answered(hall: &mut Hall) -> (String, String, Step) {
    let (key, part) = worked_on(hall);
    let theirs = format!("{}/{part}/1", hall.npub(1));
    let result = one(&hall.finish(2, &theirs, PART_UNITS));
    hall.hand(2, 1, result);
    let step = hall.check(1, &part, 1, None);
    (key, part, step)
}

fn only_call(hall: &Hall, key: &str) -> Call {
    let calls = &work(hall, 1, key).calls;
    assert_eq!(calls.len(), 1);
    calls[0].clone()
}

fn failed_with(call: &Call) -> &str {
    match &call.end {
        Some(CallEnd::Failed { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

fn proof_of(body: &mut Body) -> &mut Proof {
    match body {
        Body::Update(update) => match &mut update.news {
            News::Completed(result) => &mut result.proof,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_state_and_the_task_are_of_one_step_and_the_lease_is_released() {
    let mut hall = hall();
    let task = hall.accepted(UNITS);
    let key = format!("{}/{task}/1", hall.npub(0));
    let step = delegate(&mut hall, 1, &key, wish(1));
    let (waits, call) = (work(&hall, 1, &key), only_call(&hall, &key));
    assert_eq!(waits.stage, Stage::Waiting);
    assert_eq!(waits.awaits(), Some(&call.task));
    assert!(hall.nodes[1].running().is_empty(), "no lease is held");
    assert_eq!(journaled(&step, "delegated"), 1);
    assert_eq!(journaled(&step, "checkpoint"), 1);
    assert_eq!(journaled(&step, "asked"), 1);
    let part = hall.job(1, &call.task);
    assert_eq!(part.parent.as_deref(), Some(key.as_str()));
    assert_eq!(part.max_price_mc, BUDGET_MC);
    assert!(part.deadline_ms + 2 * 2_000 <= waits.result_by_ms);
    // The requester hears of it at once, and at every keep-alive.
    for step in [step, hall.wait(1, 10_000)] {
        let told = body(&step, |b| matches!(b, Body::Update(_)));
        hall.hand(1, 0, told);
        let reason = hall.job(0, &task).reason.clone().unwrap();
        assert_eq!(reason.code, "waiting: hop");
    }
    // Money stays reserved on both sides.
    let locks: Vec<_> = hall.nodes[1].ledger().locks().collect();
    assert!(!locks.is_empty(), "{locks:?}");
}

#[test]
fn the_answer_resumes_the_work_and_its_price_is_in_the_proof() {
    let mut hall = hall();
    let (key, part, step) = answered(&mut hall);
    assert!(step.effects.contains(&Effect::Start(key.clone())));
    assert!(step.changes.contains(&Change::CopyAnswer {
        task: part.clone(),
        key: key.clone(),
        call: 1,
    }));
    let spent = u64::from(PART_UNITS);
    match only_call(&hall, &key).end {
        Some(CallEnd::Answered {
            executor, cost_mc, ..
        }) => assert_eq!((executor, cost_mc), (hall.npub(2), spent)),
        other => panic!("{other:?}"),
    }
    let mut result = one(&hall.finish(1, &key, UNITS));
    let proof = proof_of(&mut result).clone();
    assert_eq!(proof.cost_mc, u64::from(UNITS) + spent);
    assert_eq!(proof.hops.len(), 1);
    assert_eq!(proof.hops_mc(), Some(spent));
    hall.hand(1, 0, result);
    let receipt = one(&hall.check(0, &proof.task, 1, None));
    hall.hand(0, 1, receipt);
    for at in [0, 1] {
        assert!(!hall.nodes[at].jobs().values().any(|j| j.is_live()));
        assert!(!hall.nodes[at].work().values().any(Engagement::is_live));
    }
    let posted = |at: usize, of: usize| hall.nodes[at].ledger().account(&hall.npub(of)).posted_mc;
    assert_eq!(posted(0, 1), -(proof.cost_mc as i64));
    assert_eq!(posted(1, 0), proof.cost_mc as i64);
    assert_eq!(posted(1, 2), -(spent as i64));
}

/// The bid names the budget, the award holds the bidder to it, and a total without it is no bid.
#[test]
fn a_bid_says_what_hops_may_cost() {
    let mut hall = hall();
    let (task, step) = hall.ask(0, UNITS, Route::Pool("legion".into()), 60_000);
    let offer = one(&step);
    let Body::Bid(bid) = one(&hall.hand(0, 1, offer)) else {
        panic!("a bid")
    };
    let for_units = u64::from(UNITS);
    assert_eq!(
        (bid.total_mc, bid.hops_mc),
        (for_units + BUDGET_MC, BUDGET_MC)
    );
    let mut lower = bid.clone();
    lower.total_mc = for_units;
    let step = hall.hand(1, 0, Body::Bid(lower));
    assert_eq!(super::pair::dropped(&step), ["bid_price"]);
    let step = hall.hand(1, 0, Body::Bid(bid));
    // Node 2 has not answered: the window has to pass.
    let step = match letters(&step).is_empty() {
        true => hall.wait(0, 2_000),
        false => step,
    };
    let Body::Award(award) = one(&step) else {
        panic!("an award")
    };
    assert_eq!(award.hops_mc, BUDGET_MC);
    let mut cheaper = award.clone();
    cheaper.hops_mc = 0;
    cheaper.entry.what = Act::Awarded {
        award_no: 1,
        executor: hall.npub(1),
        terms: cheaper.terms_hash().unwrap(),
    };
    let declined = one(&hall.hand(0, 1, Body::Award(cheaper)));
    assert!(matches!(&declined, Body::Decline(d) if d.code == "award_terms"));
    assert_eq!(hall.job(0, &task).awards[0].hops_mc, Some(BUDGET_MC));
}

/// A directed request that names a price may offer more for hops than the owner of 1 lets a job spend: it stays his limit.
#[test]
fn a_requester_does_not_raise_the_budget() {
    for (offered, taken) in [(0, 0), (20, 20), (9_000, BUDGET_MC)] {
        let mut hall = hall();
        let (_, request) = hall.directed(UNITS);
        let Body::Request(mut award) = request else {
            panic!("a request")
        };
        (award.unit_price_mc, award.hops_mc) = (Some(1), offered);
        award.entry.what = Act::Awarded {
            award_no: 1,
            executor: hall.npub(1),
            terms: award.terms_hash().unwrap(),
        };
        let step = hall.hand(0, 1, Body::Request(award));
        let accept = body(&step, |b| matches!(b, Body::Accept(_)));
        assert!(
            matches!(&accept, Body::Accept(a) if (a.hops_mc, a.total_mc) == (taken, taken + 8)),
            "{accept:?}"
        );
    }
}

/// What a proof says of hops is counted by the requester: too much, the executor itself, or one hop twice is `cost_mismatch`.
#[test]
fn forged_hops_are_refused() {
    let hop = |executor: &str, cost_mc: u64, proof: &str| Hop {
        executor: executor.to_owned(),
        skill: SKILL.into(),
        cost_mc,
        proof: proof.repeat(64),
    };
    type Forge = fn(&mut Proof, Hop);
    let forgeries: [(&str, Forge); 5] = [
        ("more than was agreed", |proof, hop| {
            proof.hops.push(Hop {
                cost_mc: BUDGET_MC,
                ..hop
            });
            proof.cost_mc += BUDGET_MC;
        }),
        ("a cost without a hop", |proof, _| {
            proof.hops.clear();
        }),
        ("a hop without its cost", |proof, hop| proof.hops.push(hop)),
        ("the executor itself", |proof, hop| {
            let executor = proof.executor.clone();
            proof.hops.push(Hop { executor, ..hop });
            proof.cost_mc += 1;
        }),
        ("one hop twice", |proof, _| {
            let again = proof.hops[0].clone();
            proof.cost_mc += again.cost_mc;
            proof.hops.push(again);
        }),
    ];
    for (name, forge) in forgeries {
        let mut hall = hall();
        let (key, ..) = answered(&mut hall);
        let mut result = one(&hall.finish(1, &key, UNITS));
        let proof = proof_of(&mut result);
        forge(proof, hop(&"a".repeat(64), 1, "b"));
        let (hash, task) = (proof.hash().unwrap(), proof.task.clone());
        if let Body::Update(update) = &mut result
            && let News::Completed(result) = &mut update.news
        {
            result.entry.what = Act::Completed {
                award_no: 1,
                proof: hash,
            };
        }
        let step = hall.hand(1, 0, result);
        let refusal = body(&step, |b| matches!(b, Body::Refusal(_)));
        assert!(
            matches!(&refusal, Body::Refusal(r) if r.evidence.code == "cost_mismatch"),
            "{name}: {refusal:?}"
        );
        assert_eq!(hall.job(0, &task).cost_mc, 0, "{name}");
    }
}

#[test]
fn a_job_that_comes_back_to_one_that_waits_for_it_is_refused() {
    let mut hall = hall();
    let (_, part, offer) = waiting(&mut hall);
    let Body::Offer(letter) = &offer else {
        panic!("an offer")
    };
    assert_eq!(letter.via.len(), 1, "the job of 0, by a name for it alone");
    assert!(!letter.via[0].contains(&hall.npub(0)[..8]));
    // 0, whose job it is a part of, does not bid.
    let decline = one(&hall.hand(1, 0, offer));
    assert!(matches!(&decline, Body::Decline(d) if d.code == "delegation_cycle"));
    hall.hand(0, 1, decline);
    let refusals = &hall.job(1, &part).refusals;
    assert_eq!(refusals[&hall.npub(0)].code, "delegation_cycle");

    // It was never one who could do it: somebody else may be there that has not been heard yet.
    let mut alone = Hall::new(2);
    let (_, lonely, offer) = waiting(&mut alone);
    let decline = one(&alone.hand(1, 0, offer));
    alone.hand(0, 1, decline);
    assert_eq!(alone.job(1, &lonely).state, TaskState::Submitted);

    // A part of a part that comes back to 1: 1 knows its own job in the chain.
    let salt = hall.job(1, &part).salt.clone();
    let (_, mut step) = hall.ask(2, UNITS, Route::Pool("legion".into()), 60_000);
    for effect in &mut step.effects {
        if let Effect::Send(send) = effect
            && let Body::Offer(offer) = &mut send.body
        {
            let veiled = veil(&link(&salt).unwrap(), &hall.npub(2), &offer.task).unwrap();
            offer.via = vec!["0".repeat(32), veiled];
        }
    }
    let back = one(&hall.hand(2, 1, one(&step)));
    assert!(matches!(&back, Body::Decline(d) if d.code == "delegation_cycle"));

    // To itself, by name.
    let mut hall = self::hall();
    let task = hall.accepted(UNITS);
    let key = format!("{}/{task}/1", hall.npub(0));
    let peer = Some(hall.npub(1));
    let step = delegate(&mut hall, 1, &key, Wish { peer, ..wish(1) });
    assert_eq!(failed_with(&only_call(&hall, &key)), "delegation_cycle");
    assert!(step.effects.contains(&Effect::Start(key)), "it is told so");
}

#[test]
fn a_chain_has_a_longest_length_on_both_ends() {
    let mut hall = Hall::with(3, |_, policy| policy.delegation_hops_max = 2);
    let (_, step) = hall.ask(0, UNITS, Route::Pool("legion".into()), 60_000);
    let offer = one(&step);
    for (links, taken) in [(0, true), (2, true), (3, false)] {
        let mut long = offer.clone();
        if let Body::Offer(offer) = &mut long {
            offer.via = (0..links).map(|n| format!("{n:032}")).collect();
            offer.round = links as u32 + 1;
        }
        let said = one(&hall.hand(0, 1, long));
        match said {
            Body::Bid(_) => assert!(taken, "{links}"),
            Body::Decline(d) => {
                assert!(!taken && d.code == "delegation_too_deep", "{links}: {d:?}")
            }
            other => panic!("{other:?}"),
        }
    }
    // A skill that would make the chain too long hears it instead of an answer.
    let mut hall = Hall::with(3, |at, policy| {
        policy.delegation_hops_max = if at == 1 { 0 } else { 4 };
    });
    let task = hall.accepted(UNITS);
    let key = format!("{}/{task}/1", hall.npub(0));
    delegate(&mut hall, 1, &key, wish(1));
    assert_eq!(failed_with(&only_call(&hall, &key)), "delegation_too_deep");
    assert_eq!(hall.nodes[1].jobs().len(), 0, "nothing was asked");
}

/// Whoever reads an offer cannot find out who is above it by copying its chain: in an offer of another author, or for another
/// task, nobody knows it again.
#[test]
fn a_copied_chain_betrays_nobody() {
    let mut hall = hall();
    let (_, _, offer) = waiting(&mut hall);
    let Body::Offer(letter) = &offer else {
        panic!("an offer")
    };
    let mut copied = letter.clone();
    copied.via.extend(letter.via.clone());
    for (task, round) in [(letter.task.clone(), 1), ("7".repeat(32), 1)] {
        copied.task = task;
        copied.round = round;
        let said = one(&hall.hand(2, 0, Body::Offer(copied.clone())));
        assert!(matches!(&said, Body::Bid(_)), "{said:?}");
    }
    let said = one(&hall.hand(1, 0, offer));
    assert!(matches!(&said, Body::Decline(d) if d.code == "delegation_cycle"));
}

/// A worker counts its calls: the same one twice, one left out or one too many ends the job.
#[test]
fn calls_are_counted() {
    for (call, code) in [(1, "delegation_invalid"), (3, "delegation_invalid")] {
        let mut hall = hall();
        let (key, ..) = answered(&mut hall);
        let step = delegate(&mut hall, 1, &key, wish(call));
        assert_failed(&step, code);
    }
    let mut hall = Hall::with(3, |_, policy| policy.delegation_calls_max = 1);
    let task = hall.accepted(UNITS);
    let key = format!("{}/{task}/1", hall.npub(0));
    let refused = |call| Wish {
        input: Err(Refused::new("skill_unknown", "no such skill")),
        ..wish(call)
    };
    let step = delegate(&mut hall, 1, &key, refused(1));
    assert_eq!(failed_with(&only_call(&hall, &key)), "skill_unknown");
    assert!(step.effects.contains(&Effect::Start(key.clone())));
    let step = delegate(&mut hall, 1, &key, refused(2));
    assert_failed(&step, "delegation_limit");
    // Nobody waits: a wish of a run that is over changes nothing.
    let step = delegate(&mut hall, 1, &key, wish(1));
    assert!(step.changes.is_empty() && step.effects.is_empty());
}

fn assert_failed(step: &Step, wanted: &str) {
    let update = body(step, |b| matches!(b, Body::Update(_)));
    let Body::Update(update) = update else {
        panic!("an update")
    };
    assert!(
        matches!(&update.news, News::Failed { code, .. } if code == wanted),
        "{update:?}"
    );
}

/// Whatever ends the work ends its part: a cancel, a newer award, its deadline.
#[test]
fn work_that_is_over_waits_for_nothing() {
    type End = fn(&mut Hall, &str) -> Step;
    let ends: [(&str, End); 3] = [
        ("canceled", |hall, task| {
            let task = task.to_owned();
            let cancel = one(&hall.give(0, Input::Cancel { task }));
            hall.hand(0, 1, cancel)
        }),
        ("withdrawn", |hall, task| {
            let withdraw = legiond::wire::market::Withdraw {
                task: task.to_owned(),
                below_award_no: 2,
            };
            hall.hand(0, 1, Body::Withdraw(withdraw))
        }),
        ("late", |hall, _| hall.wait(1, 61_000)),
    ];
    for (name, end) in ends {
        let mut hall = hall();
        let (key, part) = worked_on(&mut hall);
        let task = work(&hall, 1, &key).task.clone();
        let step = end(&mut hall, &task);
        let canceled = body(&step, |b| matches!(b, Body::Cancel(_)));
        let state = hall.job(1, &part).state;
        assert!(
            matches!(state, TaskState::Canceled | TaskState::Failed),
            "{name}: {state:?}"
        );
        let step = hall.hand(1, 2, canceled);
        assert!(
            step.effects
                .iter()
                .any(|e| matches!(e, Effect::SoftStop { .. })),
            "{name}: 2 stops"
        );
        assert!(
            !hall.nodes[1].work().values().any(Engagement::is_live),
            "{name}: nothing waits"
        );
        assert_eq!(journaled(&step, "answered"), 0, "{name}");
    }
}

/// The part's deadline lies before that of the work: the skill hears of it and can still say so.
#[test]
fn a_part_that_nobody_does_is_told_in_time() {
    let mut hall = hall();
    let (key, part, _) = waiting(&mut hall);
    let due = hall.job(1, &part).deadline_ms;
    hall.now = due;
    let step = hall.give(1, Input::Tick);
    assert_eq!(failed_with(&only_call(&hall, &key)), "no_provider");
    assert!(due < work(&hall, 1, &key).result_by_ms);
    assert!(step.effects.contains(&Effect::Start(key)));
}

/// Refused by all who could do it, the skill hears so at once, with their reasons.
#[test]
fn a_part_that_everybody_refuses_is_told_at_once() {
    let mut hall = Hall::new(3);
    let (key, _, offer) = waiting(&mut hall);
    for at in [0, 2] {
        // Without a budget a part may cost nothing, and 2 takes money.
        let decline = one(&hall.hand(1, at, offer.clone()));
        hall.hand(at, 1, decline);
    }
    match &only_call(&hall, &key).end {
        Some(CallEnd::Failed { code, message }) => {
            assert_eq!(code, "no_provider");
            let why = "(delegation_cycle, price_too_low)";
            assert!(message.contains(why), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

/// A program that keeps nothing when it is stopped still has the state with which it delegated.
#[test]
fn an_empty_stop_keeps_the_state() {
    let mut hall = hall();
    let (key, ..) = answered(&mut hall);
    let pause = Input::Pause {
        mode: PauseMode::Now,
        for_ms: None,
    };
    hall.give(1, pause);
    for (bytes, kept) in [(vec![], 0), (vec![9], 1)] {
        let news = LaborNews::Stopped {
            units_done: 0,
            bytes,
            executed: 0,
        };
        let key = key.clone();
        let step = hall.give(
            1,
            Input::Labor {
                key: key.clone(),
                news,
            },
        );
        assert_eq!(work(&hall, 1, &key).stage, Stage::Hibernating);
        assert_eq!(journaled(&step, "checkpoint"), kept);
        hall.give(1, Input::Resume);
        let mode = PauseMode::Now;
        hall.give(1, Input::Pause { mode, for_ms: None });
    }
}

/// The owner of 1 may cancel the part like any task of his; and of a part that a damaged store has lost the skill hears, too.
#[test]
fn a_part_that_is_gone_is_told() {
    let mut hall = hall();
    let (key, part) = worked_on(&mut hall);
    let waits = work(&hall, 1, &key).clone();
    hall.give(1, Input::Cancel { task: part });
    assert_eq!(failed_with(&only_call(&hall, &key)), "canceled");

    let mut node = Node::new(hall.policies[1].clone());
    node.recall(Row::Engagement(Box::new(waits)));
    hall.nodes[1] = node;
    hall.give(1, Input::Started);
    assert_eq!(failed_with(&only_call(&hall, &key)), "delegation_lost");
    assert_eq!(work(&hall, 1, &key).stage, Stage::Running);
}

/// The owner's pause neither loses the wait nor lets the answer take the hardware.
#[test]
fn a_pause_keeps_what_waits() {
    let mut hall = hall();
    let (key, part) = worked_on(&mut hall);
    let pause = Input::Pause {
        mode: PauseMode::Now,
        for_ms: None,
    };
    hall.give(1, pause);
    assert_eq!(work(&hall, 1, &key).stage, Stage::Waiting);
    let theirs = format!("{}/{part}/1", hall.npub(1));
    let result = one(&hall.finish(2, &theirs, PART_UNITS));
    hall.hand(2, 1, result);
    let step = hall.check(1, &part, 1, None);
    assert_eq!(work(&hall, 1, &key).stage, Stage::Hibernating);
    assert!(!step.effects.contains(&Effect::Start(key.clone())));
    let step = hall.give(1, Input::Resume);
    assert!(step.effects.contains(&Effect::Start(key)));
}

/// A lease that is being revoked for the owner ends in a wish as well: the part is asked for all the same.
#[test]
fn a_wish_in_place_of_a_stop_is_asked_for() {
    let mut hall = hall();
    let task = hall.accepted(UNITS);
    let key = format!("{}/{task}/1", hall.npub(0));
    let pause = Input::Pause {
        mode: PauseMode::Now,
        for_ms: None,
    };
    hall.give(1, pause);
    assert_eq!(work(&hall, 1, &key).stage, Stage::Stopping);
    let step = delegate(&mut hall, 1, &key, wish(1));
    assert_eq!(work(&hall, 1, &key).stage, Stage::Waiting);
    body(&step, |b| matches!(b, Body::Offer(_)));
    // But not after a cancel.
    let mut hall = self::hall();
    let task = hall.accepted(UNITS);
    let key = format!("{}/{task}/1", hall.npub(0));
    let cancel = one(&hall.give(0, Input::Cancel { task }));
    hall.hand(0, 1, cancel);
    delegate(&mut hall, 1, &key, wish(1));
    assert!(hall.nodes[1].jobs().is_empty(), "nothing was asked");
}

/// What the owner delegates through his own node is paid by him and shown as the cost of his task.
#[test]
fn the_owner_s_own_job_delegates_too() {
    let mut hall = hall();
    let (task, _) = hall.ask(1, UNITS, Route::Own, 60_000);
    let key = format!("{}/{task}/1", hall.npub(1));
    let step = delegate(&mut hall, 1, &key, wish(1));
    let offer = body(&step, |b| matches!(b, Body::Offer(_)));
    assert_eq!(work(&hall, 1, &key).stage, Stage::Waiting);
    let part = work(&hall, 1, &key).calls[0].task.clone();
    assert_eq!(hall.job(1, &part).max_price_mc, BUDGET_MC);
    // While his job waits the hardware is free for others.
    let theirs = hall.accepted(UNITS);
    let lent = format!("{}/{theirs}/1", hall.npub(0));
    assert_eq!(hall.nodes[1].running(), std::slice::from_ref(&lent));
    let bid = one(&hall.hand(1, 2, offer));
    hall.hand(2, 1, bid);
    let award = one(&hall.wait(1, 2_000));
    let accept = body(&hall.hand(1, 2, award), |b| matches!(b, Body::Accept(_)));
    hall.hand(2, 1, accept);
    let theirs = format!("{}/{part}/1", hall.npub(1));
    let result = one(&hall.finish(2, &theirs, PART_UNITS));
    hall.hand(2, 1, result);
    let step = hall.check(1, &part, 1, None);
    // And with the answer he is first again.
    let stop = |e: &Effect| matches!(e, Effect::SoftStop { key, .. } if *key == lent);
    assert!(step.effects.iter().any(stop));
    let news = LaborNews::Stopped {
        units_done: 0,
        bytes: Vec::new(),
        executed: 0,
    };
    hall.give(
        1,
        Input::Labor {
            key: lent.clone(),
            news,
        },
    );
    assert_eq!(hall.nodes[1].running(), std::slice::from_ref(&key));
    hall.finish(1, &key, UNITS);
    hall.check(1, &task, 1, None);
    let done = hall.job(1, &task);
    assert_eq!(done.state, TaskState::Completed, "{:?}", done.reason);
    assert_eq!(done.cost_mc, u64::from(PART_UNITS));
}

/// Documents without the new fields are, byte for byte, what they were: an older node reads and signs the same.
#[test]
fn a_job_without_hops_says_nothing_of_them() {
    let mut hall = Hall::new(2);
    let (_, request) = hall.directed(UNITS);
    let accept = one(&hall.hand(0, 1, request.clone()));
    for body in [&request, &accept] {
        let text = serde_json::to_string(body).unwrap();
        for field in ["\"via\"", "\"hops_mc\"", "\"hops\""] {
            assert!(!text.contains(field), "{field} in {text}");
        }
    }
    let mut hall = Hall::new(2);
    let (_, result) = hall.done(UNITS);
    let text = serde_json::to_string(&result).unwrap();
    assert!(!text.contains("hops"), "{text}");
    // And what an older node says is understood.
    let said = json!({"task": "0".repeat(32), "award_no": 1, "news": {"working": {"units_done": 1, "units_total": 2}}});
    let update: Update = serde_json::from_value(said).unwrap();
    assert!(matches!(update.news, News::Working { waiting: None, .. }));
}

/// The lock that 1 holds for 0 covers the hops, so that they fit into the credit that 1 grants.
#[test]
fn hops_count_against_the_credit_granted() {
    let mut hall = hall();
    let task = hall.accepted(UNITS);
    let locks = hall.nodes[1].ledger().locks();
    let reserved: Vec<_> = locks
        .filter(|((side, _, of, _), _)| *side == Side::Executor && *of == task)
        .map(|(_, amount)| amount)
        .collect();
    assert_eq!(reserved, [u64::from(UNITS) + BUDGET_MC]);
    let mut hall = self::hall();
    let npub = hall.npub(0);
    hall.give(
        1,
        Input::Trust {
            npub,
            tier: Tier::Trusted,
            limit_mc: Some(BUDGET_MC),
        },
    );
    let (_, request) = hall.directed(UNITS);
    let step = hall.hand(0, 1, request);
    assert!(matches!(one(&step), Body::Decline(d) if d.code == "credit_exhausted"));
    let to_pool = |(to, _): &(Addressee, Body)| matches!(to, Addressee::Pool(_));
    assert!(!letters(&step).iter().any(to_pool));
}

/// A part that the requester itself did would make the proof one that counts for nothing: it would have both for nothing.
#[test]
fn the_requester_of_a_job_gets_no_part_of_it() {
    let mut hall = hall();
    let (key, part, offer) = waiting(&mut hall);
    let bid = one(&hall.hand(1, 2, offer));
    let step = hall.hand(0, 1, bid.clone());
    assert_eq!(super::pair::dropped(&step), ["bid_unwelcome"]);
    assert!(hall.job(1, &part).bids.is_empty());
    hall.hand(2, 1, bid);
    assert_eq!(
        hall.job(1, &part).bids.len() + hall.job(1, &part).awards.len(),
        1
    );

    let mut directed = self::hall();
    let task = directed.accepted(UNITS);
    assert_eq!(key.len(), format!("{}/{task}/1", directed.npub(0)).len());
    let key = format!("{}/{task}/1", directed.npub(0));
    let mut wish = wish(1);
    wish.peer = Some(directed.npub(0));
    let step = delegate(&mut directed, 1, &key, wish);
    assert_eq!(failed_with(&only_call(&directed, &key)), "delegation_cycle");
    assert!(
        !letters(&step)
            .iter()
            .any(|(_, b)| matches!(b, Body::Request(_)))
    );
}

/// Comparing an offer with a job of ours costs more than making the offer: a busy node does so for some of its jobs, and finds the
/// rest of the cycles when it is awarded one.
#[test]
fn a_busy_node_compares_an_offer_with_some_of_its_jobs_and_an_award_with_all() {
    let mut hall = hall();
    let (_, _, offer) = waiting(&mut hall);
    let Body::Offer(offer) = offer else {
        panic!("an offer")
    };
    let route = Route::Peer(hall.npub(2));
    let jobs: Vec<_> = (0..300)
        .map(|_| hall.ask(0, 1, route.clone(), 600_000).0)
        .collect();
    let mut seen = 0;
    for (n, job) in jobs.iter().enumerate() {
        let link = link(&hall.job(0, job).salt).unwrap();
        let mut letter = offer.clone();
        letter.task = format!("{n:032x}");
        letter.via = vec![veil(&link, &hall.npub(1), &letter.task).unwrap()];
        let said = one(&hall.hand(1, 0, Body::Offer(letter)));
        seen += usize::from(matches!(&said, Body::Decline(d) if d.code == "delegation_cycle"));
        if n % 50 == 0 {
            let (_, step) = hall.ask(1, 1, Route::Peer(hall.npub(0)), 600_000);
            let Body::Request(mut award) = one(&step) else {
                panic!("{step:?}")
            };
            award.via = vec![link];
            let said = one(&hall.hand(1, 0, Body::Request(award)));
            assert!(matches!(&said, Body::Decline(d) if d.code == "delegation_cycle"));
        }
    }
    assert!((100..=128).contains(&seen), "{seen}");
}
