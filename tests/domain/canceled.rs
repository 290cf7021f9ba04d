//! A cancel after parts were given to others: what these cost is owed by whoever canceled, once, and never more than was agreed.

use legiond::domain::Node;
use legiond::domain::engagement::Stage;
use legiond::domain::job::{Route, TaskState};
use legiond::domain::ledger::Side;
use legiond::domain::step::{Input, LaborNews, Row, Step};
use legiond::wire::entry::{Act, Entry};
use legiond::wire::log::{AwardLog, LogEntries, Named};
use legiond::wire::market::Withdraw;
use legiond::wire::message::{Body, Cancel, News, Receipt};
use legiond::wire::proof::Hop;

use super::hops::{self, BUDGET_MC, PART_UNITS, UNITS, body, work};
use super::pair::{Hall, dropped, journaled, letters, one};
use super::restored::restored;

const PART_MC: u64 = PART_UNITS as u64;

/// All pay for units and hops on a cancel, or nobody for anything.
fn hall_with(on_cancel: &str) -> Hall {
    Hall::with(3, |at, policy| {
        policy.skills[0].hop_budget_mc = if at == 1 { BUDGET_MC } else { 0 };
        policy.on_cancel = on_cancel.into();
    })
}

fn hall() -> Hall {
    hall_with("units")
}

/// 0 cancels, and 1 hears of it.
fn cancel(hall: &mut Hall, key: &str) -> Step {
    let task = work(hall, 1, key).task.clone();
    let canceled = one(&hall.give(0, Input::Cancel { task }));
    hall.hand(0, 1, canceled)
}

/// The worker of `at` has stopped after so many units.
fn stop(hall: &mut Hall, at: usize, key: &str, units_done: u32) -> Step {
    let news = LaborNews::Stopped {
        units_done,
        bytes: vec![1],
        executed: units_done,
    };
    let key = key.to_owned();
    hall.give(at, Input::Labor { key, news })
}

fn said_stopped(step: &Step) -> (Body, u32, Vec<Hop>) {
    let stopped =
        |b: &Body| matches!(b, Body::Update(u) if matches!(u.news, News::Canceled { .. }));
    let update = body(step, stopped);
    match update.entry().map(|entry| entry.what.clone()) {
        Some(Act::Stopped {
            useful_units, hops, ..
        }) => (update, useful_units, hops),
        other => panic!("{other:?}"),
    }
}

/// 0 hears what is owed, pays it, and 1 has its receipt: what it came to.
fn settled(hall: &mut Hall, key: &str, stopped: Body) -> u64 {
    let task = work(hall, 1, key).task.clone();
    let receipt = one(&hall.hand(1, 0, stopped));
    let Body::Receipt(paid) = &receipt else {
        panic!("{receipt:?}")
    };
    let Act::Paid { cost_mc, .. } = paid.entry.what else {
        panic!("{paid:?}")
    };
    assert_eq!(hall.job(0, &task).cost_mc, cost_mc);
    hall.hand(0, 1, receipt);
    assert_eq!(work(hall, 1, key).end.as_deref(), Some("paid"));
    for (at, other, owed) in [(0, 1, -(cost_mc as i64)), (1, 0, cost_mc as i64)] {
        let account = hall.nodes[at].ledger().account(&hall.npub(other));
        assert_eq!(account.posted_mc, owed, "in the book of {at}");
    }
    for at in 0..3 {
        assert_eq!(
            hall.nodes[at].ledger().locks().count(),
            0,
            "{at} reserves nothing"
        );
    }
    cost_mc
}

#[test]
fn a_part_that_was_paid_is_owed_with_the_units() {
    let mut hall = hall();
    let (key, part, step) = hops::answered(&mut hall);
    let paid = body(&step, |b| matches!(b, Body::Receipt(_)));
    hall.hand(1, 2, paid);
    cancel(&mut hall, &key);
    let (stopped, units, hops) = said_stopped(&stop(&mut hall, 1, &key, 3));
    assert_eq!((units, hops.len()), (3, 1));
    assert_eq!(
        (hops[0].cost_mc, hops[0].executor.as_str()),
        (PART_MC, &*hall.npub(2))
    );
    let proof = hall.nodes[1]
        .jobs()
        .get(&part)
        .map(|job| job.outcome.clone());
    if let Some(Some(outcome)) = proof {
        assert_eq!(hops[0].proof, outcome.proof.hash().unwrap());
    }
    assert_eq!(settled(&mut hall, &key, stopped), 3 + PART_MC);
}

/// A part that is under way when the cancel comes is taken back; what its executor has done of it is known a little later.
#[test]
fn a_part_under_way_is_settled_first() {
    let mut hall = hall();
    let (key, part) = hops::worked_on(&mut hall);
    let theirs = format!("{}/{part}/1", hall.npub(1));
    let step = cancel(&mut hall, &key);
    assert_eq!(work(&hall, 1, &key).stage, Stage::Closing);
    let canceled = one(&step);
    assert!(
        matches!(canceled, Body::Cancel(_)),
        "nothing is said to 0 yet"
    );
    assert_eq!(hall.job(1, &part).state, TaskState::Canceled);

    // Meanwhile no receipt can cut it short, a restart keeps it, and a second cancel changes nothing.
    let early = Receipt {
        task: work(&hall, 1, &key).task.clone(),
        award_no: 1,
        entry: Entry::blank(),
    };
    let step = hall.hand(0, 1, Body::Receipt(Box::new(early)));
    assert_eq!(dropped(&step), ["receipt_early"]);
    hall.give(1, Input::Started);
    hall.give(1, Input::CaughtUp { online: true });
    assert_eq!(work(&hall, 1, &key).stage, Stage::Closing);

    hall.hand(1, 2, canceled);
    let (word, units, _) = said_stopped(&stop(&mut hall, 2, &theirs, 2));
    assert_eq!(units, 2);
    let step = hall.hand(2, 1, word.clone());
    let receipt = body(&step, |b| matches!(b, Body::Receipt(_)));
    let (stopped, units, hops) = said_stopped(&step);
    assert_eq!((units, hops.len(), hops[0].cost_mc), (0, 1, 2));
    let word = word.entry().unwrap().hash().unwrap();
    assert_eq!(hops[0].proof, word, "named by what its executor signed");
    hall.hand(1, 2, receipt);
    assert_eq!(settled(&mut hall, &key, stopped), 2);
}

/// The result of a part may cross its cancel: it is paid for, so it is owed.
#[test]
fn a_result_that_crosses_the_cancel_is_owed() {
    let mut hall = hall();
    let (key, part) = hops::worked_on(&mut hall);
    let theirs = format!("{}/{part}/1", hall.npub(1));
    let result = one(&hall.finish(2, &theirs, PART_UNITS));
    cancel(&mut hall, &key);
    hall.hand(2, 1, result);
    let step = hall.check(1, &part, 1, None);
    let receipt = body(&step, |b| matches!(b, Body::Receipt(_)));
    let (stopped, units, hops) = said_stopped(&step);
    assert_eq!((units, hops.len(), hops[0].cost_mc), (0, 1, PART_MC));
    hall.hand(1, 2, receipt);
    assert_eq!(settled(&mut hall, &key, stopped), PART_MC);
}

/// An executor of a part that says nothing does not keep the others waiting for ever.
#[test]
fn silence_is_waited_for_until_half_of_the_time_for_settling() {
    let mut hall = hall();
    let (key, _) = hops::worked_on(&mut hall);
    cancel(&mut hall, &key);
    let closes_ms = work(&hall, 1, &key).close_by_ms();
    assert!(closes_ms < work(&hall, 1, &key).settle_by_ms);
    let step = hall.wait(1, closes_ms - hall.now - 1);
    assert!(letters(&step).is_empty(), "{step:?}");
    let step = hall.wait(1, 1);
    let (stopped, units, hops) = said_stopped(&step);
    assert_eq!((units, hops.len()), (0, 0));
    assert_eq!(work(&hall, 1, &key).end.as_deref(), Some("canceled"));
    assert!(
        letters(&hall.hand(1, 0, stopped)).is_empty(),
        "nothing is owed"
    );
    assert_eq!(hall.nodes[0].ledger().locks().count(), 0);
}

/// A withdrawal takes back what a cancel granted, as it does for units.
#[test]
fn a_withdrawal_ends_the_wait() {
    let mut hall = hall();
    let (key, _) = hops::worked_on(&mut hall);
    cancel(&mut hall, &key);
    let withdraw = Withdraw {
        task: work(&hall, 1, &key).task.clone(),
        below_award_no: 2,
    };
    hall.hand(0, 1, Body::Withdraw(withdraw));
    assert_eq!(work(&hall, 1, &key).end.as_deref(), Some("superseded"));
}

/// After a restart with a store that has lost the part, the requester is told at the latest time.
#[test]
fn a_lost_part_is_not_waited_for_beyond_its_time() {
    let mut hall = hall();
    let (key, _) = hops::worked_on(&mut hall);
    cancel(&mut hall, &key);
    let closing = work(&hall, 1, &key).clone();
    let closes_ms = closing.close_by_ms();
    hall.nodes[1] = Node::new(hall.policies[1].clone());
    hall.nodes[1].recall(Row::Engagement(Box::new(closing)));
    hall.give(1, Input::Started);
    hall.now = closes_ms;
    let step = hall.give(1, Input::CaughtUp { online: true });
    let (_, _, hops) = said_stopped(&step);
    assert!(hops.is_empty());
}

/// What an executor says of hops when it is stopped is counted like what it says in a proof.
#[test]
fn forged_hops_of_a_stop_are_not_owed() {
    type Forge = fn(&Hall, &mut Vec<Hop>);
    let forgeries: [(&str, Forge); 4] = [
        ("more than was agreed", |_, hops| {
            hops[0].cost_mc = BUDGET_MC + 1
        }),
        ("the executor itself", |hall, hops| {
            hops[0].executor = hall.npub(1)
        }),
        ("who canceled", |hall, hops| hops[0].executor = hall.npub(0)),
        ("one hop twice", |_, hops| hops.push(hops[0].clone())),
    ];
    for (name, forge) in forgeries {
        let mut hall = hall();
        let (key, ..) = hops::answered(&mut hall);
        cancel(&mut hall, &key);
        let (mut stopped, ..) = said_stopped(&stop(&mut hall, 1, &key, 3));
        if let Body::Update(update) = &mut stopped
            && let News::Canceled { entry, .. } = &mut update.news
            && let Act::Stopped { hops, .. } = &mut entry.what
        {
            forge(&hall, hops);
        }
        let receipt = one(&hall.hand(1, 0, stopped));
        let Body::Receipt(paid) = &receipt else {
            panic!("{name}: {receipt:?}")
        };
        assert!(
            matches!(paid.entry.what, Act::Paid { cost_mc: 3, .. }),
            "{name}: {paid:?}"
        );
    }
}

/// Nobody is told of costs that nobody agreed to: `free`, a job of the owner's own, and a skill that delegates nothing.
#[test]
fn where_no_hops_are_owed_none_are_named() {
    let mut hall = hall();
    let task = hall.accepted(UNITS);
    let key = format!("{}/{task}/1", hall.npub(0));
    cancel(&mut hall, &key);
    let (stopped, units, hops) = said_stopped(&stop(&mut hall, 1, &key, 1));
    assert_eq!((units, hops.len()), (1, 0));
    let text = serde_json::to_string(&stopped).unwrap();
    assert!(!text.contains("hops"), "an older node reads it: {text}");

    let mut hall = hall_with("free");
    let (key, _) = hops::worked_on(&mut hall);
    let step = cancel(&mut hall, &key);
    let (_, units, hops) = said_stopped(&step);
    assert_eq!((units, hops.len()), (0, 0), "said at once");
    assert_eq!(work(&hall, 1, &key).end.as_deref(), Some("canceled"));
    let locked = |hall: &Hall| {
        let locks = hall.nodes[1].ledger().locks();
        locks.filter(|(key, _)| key.0 == Side::Executor).count()
    };
    assert_eq!(locked(&hall), 0);

    let mut hall = self::hall();
    let (task, _) = hall.ask(1, UNITS, Route::Own, 60_000);
    let key = format!("{}/{task}/1", hall.npub(1));
    let step = hops::delegate(&mut hall, 1, &key, hops::wish(1));
    body(&step, |b| matches!(b, Body::Offer(_)));
    hall.give(1, Input::Cancel { task });
    assert_ne!(work(&hall, 1, &key).stage, Stage::Closing);
}

/// 0 has canceled its directed job at `at_ms`, 1 claims 3 units from before the deadline, and 0 is restored from a backup that holds nothing of
/// that: not the acceptance, and unless `known` not the award. It hears what 1 holds; with the key at 1, and what 0 does then.
fn canceled_and_forgotten(hall: &mut Hall, known: bool, at_ms: u64) -> (String, Step) {
    let (task, request) = hall.directed(UNITS);
    let Body::Request(award) = request.clone() else {
        panic!("{request:?}")
    };
    let accept = one(&hall.hand(0, 1, request));
    let key = format!("{}/{task}/1", hall.npub(0));
    let mut canceled = award.entry.clone();
    (canceled.seq, canceled.hlc) = (canceled.seq + 1, at_ms * 1024);
    canceled.what = Act::Canceled;
    let entry = canceled.clone();
    let body = Body::Cancel(Box::new(Cancel {
        task: task.clone(),
        entry,
    }));
    hall.hand(0, 1, body);
    let (stopped, ..) = said_stopped(&stop(hall, 1, &key, 3));
    hall.now = hall.now.max(at_ms);
    if !known {
        hall.nodes[0] = Node::new(hall.policies[0].clone());
        hall.trust(0, 1, legiond::domain::peer::Tier::Trusted);
        hall.meet(0, 1);
    }
    restored(hall);
    let theirs = [&accept, &stopped].map(|body| body.entry().unwrap().clone());
    let log = AwardLog {
        award: Named {
            requester: hall.npub(0),
            task,
            award_no: 1,
        },
        entries: [award.entry.clone(), canceled]
            .into_iter()
            .chain(theirs)
            .collect(),
        terms: Some(award.terms()),
        proof: None,
        evidence: None,
        open: true,
        withdrawn: false,
        settle_by_ms: award.settle_by_ms,
        unit_price_mc: work(hall, 1, &key).unit_price_mc,
    };
    let page = LogEntries {
        restored_ms: hall.now,
        cursor: String::new(),
        awards: vec![log],
        next: None,
        binding: hall.policies[1].binding.clone(),
    };
    let step = hall.hand(1, 0, Body::Entries(Box::new(page)));
    assert_eq!(journaled(&step, "adopted"), 1, "{step:?}");
    (key, step)
}

/// The acceptance of a directed job signs units and budget as one sum: units are not paid at a share of the budget.
#[test]
fn a_restored_requester_pays_what_was_agreed() {
    for known in [true, false] {
        let mut hall = hall();
        let now = hall.now;
        let (key, step) = canceled_and_forgotten(&mut hall, known, now);
        let receipt = body(&step, |b| matches!(b, Body::Receipt(_)));
        hall.hand(0, 1, receipt);
        assert_eq!(work(&hall, 1, &key).end.as_deref(), Some("paid"), "{known}");
        let account = hall.nodes[0].ledger().account(&hall.npub(1));
        assert_eq!(account.posted_mc, -3, "{known}");
        assert_eq!(hall.nodes[0].ledger().locks().count(), 0, "{known}");
    }
}

/// What was canceled because its time was over is not owed after a restoration either.
#[test]
fn a_restored_requester_owes_nothing_for_a_missed_deadline() {
    for known in [true, false] {
        let mut hall = hall();
        let at_ms = hall.now + 60_000 + hall.policies[0].skew_ms;
        let (_, step) = canceled_and_forgotten(&mut hall, known, at_ms);
        let paid = |(_, body): &(_, Body)| matches!(body, Body::Receipt(_));
        assert!(!letters(&step).iter().any(paid), "{known}: {step:?}");
        let account = hall.nodes[0].ledger().account(&hall.npub(1));
        assert_eq!(account.posted_mc, 0, "{known}");
        assert_eq!(hall.nodes[0].ledger().locks().count(), 0, "{known}");
    }
}
