//! Hostile messages that are well signed and well formed: each is refused by its code, and changes nothing else.

use legiond::domain::engagement::Stage;
use legiond::domain::job::{Phase, Route, TaskState};
use legiond::domain::ledger::{AMOUNT_MAX_MC, State};
use legiond::domain::peer::Tier;
use legiond::domain::step::{Effect, Incoming, Input, Refused};
use legiond::wire::entry::Act;
use legiond::wire::market::{Award, Bid};
use legiond::wire::message::{Body, News, Receipt, Update, WorkResult};
use legiond::wire::proof::Evidence;

use crate::sim::policy::bound;
use crate::sim::world::plan;

use super::pair::{Hall, dropped, fault, journaled, letters, one};

/// The message is refused with this code, nothing is sent, and no job, lease, peer or account is other than before.
#[track_caller]
fn refused(hall: &mut Hall, from: usize, to: usize, body: Body, code: &str) {
    let before = hall.snapshot(to);
    let step = hall.hand(from, to, body);
    assert_eq!(dropped(&step), [code]);
    assert!(letters(&step).is_empty(), "nothing is answered: {code}");
    assert!(step.changes.is_empty(), "{code}: {:?}", step.changes);
    assert!(hall.snapshot(to) == before, "nothing has changed: {code}");
}

/// Whoever would be declined anyway cannot find out which models are here by asking for them.
#[test]
fn what_a_machine_lacks_is_not_told_to_a_stranger() {
    for (tier, told) in [(Tier::Trusted, true), (Tier::Stranger, false)] {
        let mut hall = Hall::new(2);
        hall.trust(1, 0, tier);
        let mut codes = Vec::new();
        for lacks in [true, false] {
            let (_, request) = hall.directed(3);
            let lacking = Refused::new("model_missing", "there is no such model here");
            let incoming = Incoming {
                from: hall.npub(0),
                plan: lacks.then_some(Err(lacking)).or(match &request {
                    Body::Request(award) => Some(plan(&award.input)),
                    _ => None,
                }),
                body: request,
                pool: None,
                keys: Some(bound(0)),
            };
            let step = hall.give(1, Input::Message(Box::new(incoming)));
            codes.push(match one(&step) {
                Body::Decline(decline) => decline.code,
                other => other.method().to_owned(),
            });
        }
        assert_eq!(codes[0] == "model_missing", told, "{codes:?}");
        assert_eq!(codes[0] == codes[1], !told, "{codes:?}");
    }
}

fn result_of(body: &Body) -> Update {
    match body {
        Body::Update(update) => (**update).clone(),
        other => panic!("an update: {other:?}"),
    }
}

/// The result with the proof changed and the entry made to fit it, as a liar would sign it.
fn altered(body: &Body, change: impl Fn(&mut WorkResult)) -> Body {
    let mut update = result_of(body);
    if let News::Completed(result) = &mut update.news {
        change(result);
        result.entry.what = Act::Completed {
            award_no: update.award_no,
            proof: result.proof.hash().unwrap_or_default(),
        };
    }
    Body::Update(Box::new(update))
}

fn entry_altered(body: &Body, change: impl Fn(&mut WorkResult)) -> Body {
    let mut update = result_of(body);
    if let News::Completed(result) = &mut update.news {
        change(result);
    }
    Body::Update(Box::new(update))
}

fn receipt_of(body: Body) -> Receipt {
    match body {
        Body::Receipt(receipt) => *receipt,
        other => panic!("a receipt: {other:?}"),
    }
}

fn award_of(body: &Body) -> Award {
    match body {
        Body::Request(award) | Body::Award(award) => (**award).clone(),
        other => panic!("an award: {other:?}"),
    }
}

/// The award with changed terms and an entry that states them.
fn stated(mut award: Award, executor: &str) -> Box<Award> {
    award.entry.what = Act::Awarded {
        award_no: award.award_no,
        executor: executor.to_owned(),
        terms: award.terms_hash().unwrap(),
    };
    Box::new(award)
}

/// A pool job of 0 with the bid of 1.
fn bidden(hall: &mut Hall) -> (String, Bid) {
    let (task, step) = hall.ask(0, 8, Route::Pool("legion".into()), 60_000);
    let step = hall.hand(0, 1, one(&step));
    let Body::Bid(bid) = one(&step) else {
        panic!("a bid")
    };
    (task, *bid)
}

#[test]
fn a_bid_on_what_is_not_ours_or_not_open() {
    let mut hall = Hall::new(3);
    let (_, bid) = bidden(&mut hall);
    refused(
        &mut hall,
        1,
        2,
        Body::Bid(Box::new(bid.clone())),
        "bid_foreign",
    );
    let with = |change: &dyn Fn(&mut Bid)| {
        let mut bid = bid.clone();
        change(&mut bid);
        Body::Bid(Box::new(bid))
    };
    let two = hall.npub(2);
    let past = hall.now;
    for (body, code) in [
        (with(&|b| b.requester.clone_from(&two)), "bid_foreign"),
        (with(&|b| b.task = "no such task".into()), "bid_foreign"),
        (with(&|b| b.round = 9), "bid_late"),
        (with(&|b| b.expires_ms = past), "bid_expired"),
        (with(&|b| b.total_mc = 9), "bid_price"),
        (with(&|b| b.unit_price_mc = u64::MAX), "bid_price"),
        (
            with(&|b| {
                b.unit_price_mc = 1_251;
                b.total_mc = 8 * 1_251;
            }),
            "bid_price",
        ),
    ] {
        refused(&mut hall, 1, 0, body, code);
    }
}

#[test]
fn an_award_that_was_never_bid_for_or_that_says_two_things() {
    let mut hall = Hall::new(3);
    let (_, request) = hall.directed(8);
    let award = award_of(&request);
    let me = hall.npub(1);
    refused(
        &mut hall,
        0,
        1,
        Body::Award(Box::new(award.clone())),
        "award_unbid",
    );
    for award_no in [0, 65_537, u32::MAX] {
        let numbered = Award {
            award_no,
            ..award.clone()
        };
        refused(
            &mut hall,
            0,
            1,
            Body::Request(stated(numbered, &me)),
            "award_no_unknown",
        );
    }
    let dearer = Award {
        max_price_mc: 1,
        ..award.clone()
    };
    refused(
        &mut hall,
        0,
        1,
        Body::Request(Box::new(dearer)),
        "entry_mismatch",
    );
    let to_another = stated(award.clone(), &hall.npub(2));
    refused(&mut hall, 0, 1, Body::Request(to_another), "entry_mismatch");
    // Another's award, passed on under one's own name.
    let copied = Award {
        lct: hall.policies[2].lct.clone(),
        ..award.clone()
    };
    refused(
        &mut hall,
        2,
        1,
        Body::Request(Box::new(copied)),
        "entry_mismatch",
    );
    let mut unbound = award.clone();
    unbound.entry.key = "ab".repeat(32);
    refused(
        &mut hall,
        0,
        1,
        Body::Request(Box::new(unbound)),
        "key_unbound",
    );
    // The true one is still welcome.
    assert!(matches!(one(&hall.hand(0, 1, request)), Body::Accept(_)));
}

/// An award that changes the bid's terms, or whose input is not the one committed to, is declined and reserves nothing.
#[test]
fn an_award_with_other_terms_is_declined() {
    let mut hall = Hall::new(2);
    let (task, bid) = bidden(&mut hall);
    let mut step = hall.hand(1, 0, Body::Bid(Box::new(bid)));
    if letters(&step).is_empty() {
        step = hall.wait(0, 1_500);
    }
    let award = award_of(&one(&step));
    let me = hall.npub(1);
    type Change = fn(&mut Award);
    let cases: [(Change, &str); 6] = [
        (|a| a.unit_price_mc = Some(0), "award_terms"),
        (|a| a.unit_price_mc = None, "award_terms"),
        (|a| a.units = 7, "award_terms"),
        (|a| a.input["seed"] = "other".into(), "commitment_mismatch"),
        (|a| a.settle_by_ms = a.result_by_ms - 1, "terms_invalid"),
        (|a| a.settle_by_ms = 1 << 52, "terms_invalid"),
    ];
    for (no, (change, code)) in cases.into_iter().enumerate() {
        let mut award = award.clone();
        award.award_no = no as u32 + 1;
        award.entry.seq += no as u32;
        change(&mut award);
        let step = hall.hand(0, 1, Body::Award(stated(award, &me)));
        let Body::Decline(decline) = one(&step) else {
            panic!("a decline")
        };
        assert_eq!(decline.code, code);
        assert!(
            decline.entry.is_some(),
            "signed, so that the lock is released"
        );
        assert!(hall.nodes[1].work().is_empty());
        assert_eq!(hall.nodes[1].ledger().locks().count(), 0);
    }
    assert_eq!(hall.job(0, &task).phase, Phase::Awarded);
}

#[test]
fn a_result_for_other_work_by_another_or_under_another_key() {
    let mut hall = Hall::new(3);
    let (task, result) = hall.done(8);
    refused(&mut hall, 2, 0, result.clone(), "not_awarded");
    let mut elsewhere = result_of(&result);
    elsewhere.award_no = 7;
    refused(
        &mut hall,
        1,
        0,
        Body::Update(Box::new(elsewhere.clone())),
        "award_no_unknown",
    );
    elsewhere.task = "00".repeat(16);
    refused(
        &mut hall,
        1,
        0,
        Body::Update(Box::new(elsewhere)),
        "task_unknown",
    );
    let (other, me) = ("ab".repeat(32), hall.npub(2));
    type Change<'a> = Box<dyn Fn(&mut WorkResult) + 'a>;
    let changes: Vec<Change<'_>> = vec![
        Box::new(|r| r.proof.task = "another".into()),
        Box::new(|r| r.proof.award_no = 2),
        Box::new(|r| r.proof.skill = "another".into()),
        Box::new(|r| r.proof.requester.clone_from(&me)),
        Box::new(|r| r.proof.executor.clone_from(&me)),
        Box::new(|r| r.proof.commitment.clone_from(&other)),
        Box::new(|r| r.proof.terms.clone_from(&other)),
        Box::new(|r| r.proof.key.clone_from(&other)),
    ];
    for change in changes {
        refused(&mut hall, 1, 0, altered(&result, change), "proof_mismatch");
    }
    let by_another_key = altered(&result, |r| {
        r.proof.key.clone_from(&other);
        r.entry.key.clone_from(&other);
    });
    refused(&mut hall, 1, 0, by_another_key, "key_unbound");
    let unsignable = altered(&result, |r| r.proof.cost_mc = 1 << 53);
    refused(&mut hall, 1, 0, unsignable, "proof_invalid");
    let changes: Vec<Change<'_>> = vec![
        Box::new(|r| r.entry.task = "another".into()),
        Box::new(|r| r.entry.requester.clone_from(&me)),
        Box::new(|r| r.entry.author.clone_from(&me)),
        Box::new(|r| r.entry.what = Act::Canceled),
        Box::new(|r| r.proof.output.clone_from(&other)),
    ];
    for change in changes {
        refused(
            &mut hall,
            1,
            0,
            entry_altered(&result, change),
            "entry_mismatch",
        );
    }
    // The true one is still taken.
    assert_eq!(dropped(&hall.hand(1, 0, result)), [""; 0]);
    assert_eq!(hall.job(0, &task).phase, Phase::Checking);
}

/// Entries of another task of the same pair, and repeated messages, move nothing.
#[test]
fn replayed_entries_and_messages() {
    let mut hall = Hall::new(2);
    let (first, result) = hall.done(4);
    hall.hand(1, 0, result.clone());
    let receipt = receipt_of(one(&hall.check(0, &first, 1, None)));
    let (second, request) = hall.directed(4);
    let accept = one(&hall.hand(0, 1, request.clone()));
    hall.hand(1, 0, accept.clone());
    let mut replayed = result_of(&result);
    replayed.task.clone_from(&second);
    refused(
        &mut hall,
        1,
        0,
        Body::Update(Box::new(replayed)),
        "proof_mismatch",
    );
    let mut lent = accept.clone();
    if let (Body::Accept(lent), Some(entry)) = (&mut lent, result.entry()) {
        lent.entry = entry.clone();
    }
    refused(&mut hall, 1, 0, lent, "entry_mismatch");
    let early = Receipt {
        task: second.clone(),
        ..receipt.clone()
    };
    refused(
        &mut hall,
        0,
        1,
        Body::Receipt(Box::new(early.clone())),
        "receipt_early",
    );
    let key = format!("{}/{second}/1", hall.npub(0));
    hall.finish(1, &key, 4);
    refused(
        &mut hall,
        0,
        1,
        Body::Receipt(Box::new(early)),
        "receipt_mismatch",
    );
    // Repetitions, each under a new rumor: acknowledged, without effect.
    let before = (hall.snapshot(0), hall.snapshot(1));
    assert_eq!(dropped(&hall.hand(0, 1, request)), ["award_superseded"]);
    hall.hand(1, 0, accept);
    hall.hand(1, 0, result);
    assert!(
        (hall.snapshot(0), hall.snapshot(1)) == before,
        "nothing has changed"
    );
    hall.hand(0, 1, Body::Receipt(Box::new(receipt.clone())));
    let paid = hall.snapshot(1);
    hall.hand(0, 1, Body::Receipt(Box::new(receipt)));
    assert!(hall.snapshot(1) == paid, "paid once");
}

#[test]
fn an_acceptance_that_changes_the_price() {
    let mut hall = Hall::new(2);
    let (task, request) = hall.directed(8);
    let Body::Accept(accept) = one(&hall.hand(0, 1, request)) else {
        panic!("an acceptance")
    };
    for (unit_price_mc, total_mc) in [
        (1, 9),
        (1_251, 8 * 1_251),
        (u64::MAX, u64::MAX),
        (0, AMOUNT_MAX_MC),
    ] {
        let mut dearer = accept.clone();
        (dearer.unit_price_mc, dearer.total_mc) = (unit_price_mc, total_mc);
        dearer.entry.what = Act::Accepted {
            award_no: 1,
            total_mc,
        };
        refused(&mut hall, 1, 0, Body::Accept(dearer), "accept_terms");
    }
    let mut other = accept.clone();
    other.award_no = 2;
    refused(&mut hall, 1, 0, Body::Accept(other), "award_no_unknown");
    let mut says_less = accept.clone();
    says_less.entry.what = Act::Accepted {
        award_no: 1,
        total_mc: 1,
    };
    refused(&mut hall, 1, 0, Body::Accept(says_less), "entry_mismatch");
    hall.hand(1, 0, Body::Accept(accept));
    assert_eq!(hall.job(0, &task).phase, Phase::Working);
}

/// A claim above the lock, or other than what both can count, is refused with evidence; nothing is paid.
#[test]
fn an_altered_cost_is_refused_and_nothing_is_paid() {
    type Change = fn(&mut WorkResult);
    let cases: [Change; 6] = [
        |r| r.proof.cost_mc = 10_001,
        |r| r.proof.cost_mc = 9,
        |r| r.proof.cost_mc = 7,
        |r| r.proof.cost_mc = (1 << 53) - 1,
        |r| r.proof.units = 9,
        |r| r.proof.unit_price_mc = 2,
    ];
    for change in cases {
        let mut hall = Hall::new(2);
        let (task, result) = hall.done(8);
        let step = hall.hand(1, 0, altered(&result, change));
        let Body::Refusal(refusal) = one(&step) else {
            panic!("a refusal")
        };
        assert_eq!(refusal.evidence.code, "cost_mismatch");
        assert!(
            !step
                .effects
                .iter()
                .any(|e| matches!(e, Effect::Check { .. }))
        );
        let job = hall.job(0, &task);
        assert_eq!((job.state, job.cost_mc), (TaskState::Failed, 0));
        assert_eq!(job.awards[0].money, State::RolledBack);
        let ledger = hall.nodes[0].ledger();
        assert_eq!((ledger.locks().count(), ledger.sum_mc()), (0, 0));
        assert_eq!(ledger.account(&hall.npub(1)).posted_mc, 0);
    }
}

/// The executor looks at the evidence of a refusal itself: what it can count is not believed.
#[test]
fn evidence_that_the_executor_can_count_is_not_believed() {
    for code in ["cost_mismatch", "result_late", "unverified"] {
        let mut hall = Hall::new(2);
        let (task, refusal) = hall.judged(8, Some(fault(code)));
        let step = hall.hand(0, 1, refusal);
        assert_eq!(journaled(&step, "evidence_contradicted"), 1, "{code}");
        let requester = hall.npub(0);
        let work = &hall.nodes[1].work()[&format!("{requester}/{task}/1")];
        assert_eq!((work.stage, work.money), (Stage::Disputed, State::Locked));
        assert!(hall.nodes[1].peers()[&requester].disputed);
    }
}

#[test]
fn a_receipt_or_refusal_for_other_work() {
    let mut hall = Hall::new(3);
    let (_, receipt) = hall.judged(8, None);
    let receipt = receipt_of(receipt);
    let with = |change: &dyn Fn(&mut Receipt)| {
        let mut receipt = receipt.clone();
        change(&mut receipt);
        Body::Receipt(Box::new(receipt))
    };
    let paid = |award_no, cost_mc, proof: &str| Act::Paid {
        award_no,
        cost_mc,
        proof: proof.to_owned(),
        quality_bp: None,
    };
    refused(&mut hall, 2, 1, with(&|_| {}), "engagement_unknown");
    for (body, code) in [
        (with(&|r| r.award_no = 2), "engagement_unknown"),
        (with(&|r| r.task = "another".into()), "engagement_unknown"),
        (with(&|r| r.entry.what = Act::Canceled), "entry_mismatch"),
        (
            with(&|r| r.entry.what = paid(1, 8, "00")),
            "receipt_mismatch",
        ),
        (
            with(&|r| r.entry.what = paid(2, 8, "00")),
            "receipt_mismatch",
        ),
        (with(&|r| r.entry.task = "another".into()), "entry_mismatch"),
        (with(&|r| r.entry.key = "ab".repeat(32)), "key_unbound"),
    ] {
        refused(&mut hall, 0, 1, body, code);
    }
    // A receipt for less than the claim is no payment: it is a dispute, and the claim stands whole.
    let Act::Paid { proof, .. } = &receipt.entry.what else {
        panic!("paid")
    };
    let short = with(&|r| r.entry.what = paid(1, 7, proof));
    assert_eq!(journaled(&hall.hand(0, 1, short), "receipt_short"), 1);
    let account = hall.nodes[1].ledger().account(&hall.npub(0));
    assert_eq!((account.posted_mc, account.pending_owed_to_us_mc), (0, 8));
}

#[test]
fn a_refusal_before_a_result_or_with_other_evidence() {
    let mut hall = Hall::new(2);
    let (_, refusal) = hall.judged(8, Some(fault("unit_mismatch")));
    let Body::Refusal(refusal) = refusal else {
        panic!("a refusal")
    };
    let mut other = refusal.clone();
    other.evidence = Evidence {
        unit: Some(1),
        ..refusal.evidence.clone()
    };
    refused(&mut hall, 0, 1, Body::Refusal(other), "entry_mismatch");
    let task = hall.accepted(8);
    let mut early = refusal;
    early.task = task;
    refused(&mut hall, 0, 1, Body::Refusal(early), "refusal_early");
}
