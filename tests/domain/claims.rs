//! What an executor is owed: until when it waits, whom it believes, what the owner can do, and how little it remembers.

use legiond::domain::engagement::Stage;
use legiond::domain::job::{Phase, Route, TaskState};
use legiond::domain::ledger::State;
use legiond::domain::peer::Tier;
use legiond::domain::step::{Addressee, Change, Input, Row, Step};
use legiond::wire::entry::Act;
use legiond::wire::market::Withdraw;
use legiond::wire::message::{Body, News};

use super::pair::{Hall, dropped, fault, journaled, letters, one};

const HOUR: u64 = 3_600_000;

/// A hall where 1 has sent its result and 0 refuses it as superseded, without ever having withdrawn the award.
fn called_superseded() -> (Hall, String, String) {
    let mut hall = Hall::new(2);
    let (task, refusal) = hall.judged(8, Some(fault("superseded")));
    let key = format!("{}/{task}/1", hall.npub(0));
    let step = hall.hand(0, 1, refusal);
    assert_eq!(dropped(&step), [""; 0]);
    (hall, task, key)
}

fn stage(hall: &Hall, key: &str) -> (Stage, State) {
    let work = &hall.nodes[1].work()[key];
    (work.stage, work.money)
}

/// "Another result was taken" is believed of a withdrawn award only, whichever of the two messages comes first.
#[test]
fn superseded_is_believed_with_the_withdrawal() {
    let (mut hall, task, key) = called_superseded();
    assert_eq!(stage(&hall, &key), (Stage::Finished, State::Locked));
    let withdraw = |below_award_no| {
        Body::Withdraw(Withdraw {
            task: task.clone(),
            below_award_no,
        })
    };
    hall.hand(0, 1, withdraw(1));
    assert_eq!(stage(&hall, &key), (Stage::Finished, State::Locked));
    hall.hand(0, 1, withdraw(2));
    assert_eq!(stage(&hall, &key), (Stage::Ended, State::RolledBack));

    let mut hall = Hall::new(2);
    let (task, refusal) = hall.judged(8, Some(fault("superseded")));
    let key = format!("{}/{task}/1", hall.npub(0));
    hall.hand(0, 1, {
        Body::Withdraw(Withdraw {
            task,
            below_award_no: 2,
        })
    });
    assert_eq!(
        stage(&hall, &key).0,
        Stage::Finished,
        "finished work is kept"
    );
    hall.hand(0, 1, refusal);
    assert_eq!(stage(&hall, &key), (Stage::Ended, State::RolledBack));
}

/// Without one the claim is held until `settle_by` and then disputed: claiming it costs a cheat its credit.
#[test]
fn superseded_without_a_withdrawal_is_a_dispute() {
    let (mut hall, _, key) = called_superseded();
    let settle_by = hall.nodes[1].work()[&key].settle_by_ms;
    hall.now = settle_by - 1;
    hall.give(1, Input::Tick);
    assert_eq!(stage(&hall, &key), (Stage::Finished, State::Locked));
    hall.now = settle_by + 60_000;
    let step = hall.give(1, Input::CaughtUp { online: true });
    assert_eq!(journaled(&step, "superseded_unproven"), 1);
    assert_eq!(stage(&hall, &key), (Stage::Disputed, State::Locked));
    assert!(hall.nodes[1].peers()[&hall.npub(0)].disputed);
}

/// No receipt: after `settle_by`, and only once the inboxes were read since, the claim is overdue and credit ends; the owner
/// clears the peer and gives the claim up; a receipt that comes after that is noted and not booked.
#[test]
fn no_receipt_is_overdue_until_the_owner_clears_it() {
    let mut hall = Hall::new(2);
    let (task, receipt) = hall.judged(8, None);
    let (requester, key) = (hall.npub(0), format!("{}/{task}/1", hall.npub(0)));
    hall.now += 2 * HOUR;
    hall.give(1, Input::CaughtUp { online: false });
    hall.give(1, Input::Tick);
    assert_eq!(
        stage(&hall, &key).0,
        Stage::Finished,
        "offline, nothing is judged"
    );
    let step = hall.give(1, Input::CaughtUp { online: true });
    assert_eq!(journaled(&step, "overdue"), 1);
    assert_eq!(stage(&hall, &key), (Stage::Overdue, State::Locked));
    // Credit is gone.
    let (_, request) = hall.directed(8);
    let Body::Decline(decline) = one(&hall.hand(0, 1, request.clone())) else {
        panic!("a decline")
    };
    assert_eq!(decline.code, "credit_required");
    let step = hall.trust(1, 0, Tier::Trusted);
    assert_eq!(journaled(&step, "written_off"), 1);
    assert_eq!(stage(&hall, &key), (Stage::Ended, State::RolledBack));
    let account = hall.nodes[1].ledger().account(&requester);
    assert_eq!((account.posted_mc, account.pending_owed_to_us_mc), (0, 0));
    assert!(!hall.nodes[1].peers()[&requester].disputed);
    let step = hall.hand(0, 1, receipt);
    assert_eq!(dropped(&step), ["written_off"]);
    assert_eq!(journaled(&step, "receipt_after_write_off"), 1);
    assert_eq!(hall.nodes[1].ledger().account(&requester), account);
    let (_, request) = hall.directed(8);
    assert!(matches!(one(&hall.hand(0, 1, request)), Body::Accept(_)));
}

/// A receipt that is only late is still a payment.
#[test]
fn a_late_receipt_pays_an_overdue_claim() {
    let mut hall = Hall::new(2);
    let (task, receipt) = hall.judged(8, None);
    let key = format!("{}/{task}/1", hall.npub(0));
    hall.now += 2 * HOUR;
    hall.give(1, Input::CaughtUp { online: true });
    assert_eq!(stage(&hall, &key).0, Stage::Overdue);
    hall.hand(0, 1, receipt);
    assert_eq!(stage(&hall, &key), (Stage::Ended, State::Committed));
    let (ours, theirs) = (hall.nodes[1].ledger(), hall.nodes[0].ledger());
    assert_eq!(ours.account(&hall.npub(0)).posted_mc, 8);
    assert_eq!(theirs.account(&hall.npub(1)).posted_mc, -8);
}

/// Clearing a peer gives up only what is overdue or disputed.
#[test]
fn trust_writes_off_nothing_that_goes_on() {
    let mut hall = Hall::new(2);
    let (finished, _) = hall.done(8);
    let running = hall.accepted(8);
    let before = hall.nodes[1].ledger().account(&hall.npub(0));
    let step = hall.trust(1, 0, Tier::Trusted);
    assert_eq!(journaled(&step, "written_off"), 0);
    for task in [finished, running] {
        let key = format!("{}/{task}/1", hall.npub(0));
        assert_eq!(stage(&hall, &key).1, State::Locked);
    }
    assert_eq!(hall.nodes[1].ledger().account(&hall.npub(0)), before);
}

/// Two executors' results for one pool job: the first award's executor was silent too long, then both deliver.
fn two_results() -> (Hall, String, Body, Body) {
    let mut hall = Hall::new(3);
    let (task, step) = hall.ask(0, 8, Route::Pool("legion".into()), 10 * HOUR);
    let offer = one(&step);
    let bids = [1, 2].map(|at| one(&hall.hand(0, at, offer.clone())));
    hall.hand(1, 0, bids[0].clone());
    let mut step = hall.hand(2, 0, bids[1].clone());
    if letters(&step).is_empty() {
        step = hall.wait(0, 1_500);
    }
    let mut results = Vec::new();
    let mut executors = Vec::new();
    for award_no in 1..=2 {
        let award = letters(&step)
            .into_iter()
            .find(|(_, body)| matches!(body, Body::Award(_)));
        let (Addressee::Peer(winner), award) = award.expect("an award") else {
            panic!("to a peer")
        };
        let at = [1, 2].into_iter().find(|at| hall.npub(*at) == winner);
        let at = at.unwrap();
        let accept = one(&hall.hand(0, at, award));
        hall.hand(at, 0, accept);
        let key = format!("{}/{task}/{award_no}", hall.npub(0));
        results.push(one(&hall.finish(at, &key, 8)));
        executors.push(at);
        if award_no == 1 {
            // Nothing is heard from the first: its lease runs out.
            step = hall.wait(0, 40_000);
            assert_eq!(journaled(&step, "lease_expired"), 1);
        }
    }
    let second = results.pop().unwrap();
    let first = results.pop().unwrap();
    // In order of arrival: the second award's executor is 2 or 1, and its result comes first.
    if executors == [1, 2] {
        (hall, task, second, first)
    } else {
        panic!("the first bid by key wins: {executors:?}")
    }
}

/// A second result is kept while the first is checked, and taken if the first fails.
#[test]
fn a_second_result_waits_for_the_first_to_be_checked() {
    for fails in [true, false] {
        let (mut hall, task, first, second) = two_results();
        hall.hand(2, 0, first.clone());
        let step = hall.hand(1, 0, second.clone());
        assert_eq!(journaled(&step, "result_spare"), 1);
        assert!(letters(&step).is_empty(), "nobody is refused yet");
        let step = hall.hand(1, 0, second);
        assert_eq!(journaled(&step, "result_spare"), 0, "kept once");
        let fault = fails.then(|| fault("unit_mismatch"));
        let step = hall.check(0, &task, 2, fault);
        if fails {
            assert_eq!(hall.job(0, &task).phase, Phase::Checking);
            assert_eq!(hall.job(0, &task).outcome.as_ref().unwrap().award_no, 1);
            assert_eq!(journaled(&step, "refusal"), 1);
            let step = hall.check(0, &task, 1, None);
            assert_eq!(journaled(&step, "receipt"), 1);
        } else {
            assert_eq!(
                (journaled(&step, "receipt"), journaled(&step, "refusal")),
                (1, 1)
            );
        }
        let job = hall.job(0, &task);
        assert_eq!((job.state, job.cost_mc), (TaskState::Completed, 8));
        assert!(job.spares.is_empty() && !job.is_live());
        let money: Vec<_> = job.awards.iter().map(|a| a.money).collect();
        let paid = usize::from(!fails);
        assert_eq!(money[paid], State::Committed);
        assert_eq!(money[1 - paid], State::RolledBack);
    }
}

/// A check that is under way when the owner cancels survives a restart: the result is still judged.
#[test]
fn a_check_under_way_survives_cancel_and_restart() {
    let mut hall = Hall::new(2);
    let (task, result) = hall.done(8);
    hall.hand(1, 0, result);
    hall.give(0, Input::Cancel { task: task.clone() });
    let step = hall.give(0, Input::Started);
    let check = |e: &&legiond::domain::step::Effect| {
        matches!(e, legiond::domain::step::Effect::Check { .. })
    };
    assert_eq!(step.effects.iter().filter(check).count(), 1);
    let step = hall.check(0, &task, 1, None);
    assert_eq!(journaled(&step, "receipt"), 1);
    assert_eq!(hall.job(0, &task).state, TaskState::Completed);
}

/// The marks that a step leaves in the store: written minus dropped.
fn marks(step: &Step, stored: &mut std::collections::BTreeSet<String>) {
    for change in &step.changes {
        match change {
            Change::Put(Row::Mark(mark)) => drop(stored.insert(mark.owner.clone())),
            Change::DropMark(owner) => drop(stored.remove(owner)),
            _ => {}
        }
    }
}

/// A settled task leaves nothing behind, so a thousand of them in a second do not fill the memory of a peer.
#[test]
fn settled_work_is_forgotten() {
    let mut stored = std::collections::BTreeSet::new();
    let mut hall = Hall::with(2, |_, policy| policy.tasks_per_peer_max = 10_000);
    for round in 0..1_100 {
        let (task, request) = hall.directed(1);
        let step = hall.hand(0, 1, request);
        marks(&step, &mut stored);
        assert!(matches!(one(&step), Body::Accept(_)), "round {round}");
        hall.hand(1, 0, one(&step));
        let key = format!("{}/{task}/1", hall.npub(0));
        let step = hall.finish(1, &key, 1);
        marks(&step, &mut stored);
        hall.hand(1, 0, one(&step));
        let fault = (round % 3 == 0).then(|| fault("unit_mismatch"));
        let answer = one(&hall.check(0, &task, 1, fault));
        let refused = matches!(answer, Body::Refusal(_));
        let mut step = hall.hand(0, 1, answer);
        if refused {
            marks(&step, &mut stored);
            step = hall.give(1, Input::EvidenceChecked { key, holds: true });
        }
        marks(&step, &mut stored);
        hall.nodes.iter_mut().for_each(legiond::domain::Node::shed);
        assert!(stored.is_empty(), "{stored:?}");
    }
}

/// A flood of offers from a stranger is answered, bounded, and forgotten when its bids have lapsed.
#[test]
fn a_flood_of_offers_cannot_grow_memory() {
    let mut hall = Hall::with(2, |_, policy| {
        policy.skills[0].unit_price_mc = 0;
    });
    hall.trust(1, 0, Tier::Stranger);
    let (_, step) = hall.ask(0, 8, Route::Pool("legion".into()), 100 * HOUR);
    let Body::Offer(offer) = one(&step) else {
        panic!("an offer")
    };
    let mut stored = std::collections::BTreeSet::new();
    let (mut bids, mut refusals) = (0, 0);
    for n in 0..3_000 {
        let mut offer = offer.clone();
        offer.task = format!("{n:032x}");
        let step = hall.hand(0, 1, Body::Offer(offer));
        marks(&step, &mut stored);
        match one(&step) {
            Body::Bid(_) => bids += 1,
            Body::Decline(decline) => {
                assert_eq!(decline.code, "too_many_bids");
                refusals += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((bids, refusals, stored.len()), (1_024, 1_976, 1_024));
    // Requests from nowhere are bounded by the same room.
    let (_, request) = hall.directed(8);
    let step = hall.hand(0, 1, request);
    assert_eq!(dropped(&step), ["too_many_marks"]);
    marks(&step, &mut stored);
    assert_eq!(stored.len(), 1_024, "the answer is not remembered");
    let step = hall.wait(1, 600_000);
    marks(&step, &mut stored);
    assert!(
        stored.is_empty(),
        "lapsed bids are forgotten: {}",
        stored.len()
    );
}

/// A directed task that finds no room is declined, the same way each time, and asked for again later with success.
#[test]
fn a_request_that_finds_no_room_is_declined_and_comes_again() {
    let mut hall = Hall::with(2, |_, policy| {
        policy.skills[0].unit_price_mc = 0;
        policy.offer_ttl_ms = 10_000;
    });
    hall.trust(1, 0, Tier::Stranger);
    let (_, step) = hall.ask(0, 8, Route::Pool("legion".into()), 100 * HOUR);
    let Body::Offer(offer) = one(&step) else {
        panic!("an offer")
    };
    for n in 0..1_024 {
        let mut offer = offer.clone();
        offer.task = format!("{n:032x}");
        hall.hand(0, 1, Body::Offer(offer));
    }
    let (task, step) = hall.ask(0, 8, Route::Peer(hall.npub(1)), HOUR);
    let request = one(&step);
    let step = hall.hand(0, 1, request.clone());
    let written = |change: &Change| matches!(change, Change::Put(Row::Entry(_) | Row::Mark(_)));
    assert!(!step.changes.iter().any(written), "nothing is written down");
    let decline = one(&step);
    assert!(matches!(&decline, Body::Decline(d) if d.code == "too_many_marks"));
    assert_eq!(one(&hall.hand(0, 1, request)), decline, "no second story");
    hall.hand(1, 0, decline);
    assert_eq!(hall.job(0, &task).phase, Phase::Placing);
    hall.wait(1, 60_000);
    let again = letters(&hall.give(0, Input::Tick));
    let request = |(_, body): &(_, Body)| matches!(body, Body::Request(a) if a.award_no == 2);
    let again = again.into_iter().find(request).expect("asked again").1;
    let step = hall.hand(0, 1, again);
    let accept = letters(&step).into_iter().next().expect("an answer").1;
    assert_eq!(dropped(&hall.hand(1, 0, accept)), [""; 0]);
    assert_eq!(hall.job(0, &task).phase, Phase::Working);
}

/// A cancel is remembered while an award may follow it, and the award is then declined.
#[test]
fn a_cancel_outlives_the_work_it_ends() {
    let mut hall = Hall::new(2);
    let (task, request) = hall.directed(8);
    let cancel = one(&hall.give(0, Input::Cancel { task: task.clone() }));
    hall.hand(0, 1, cancel);
    let Body::Decline(decline) = one(&hall.hand(0, 1, request)) else {
        panic!("a decline")
    };
    assert_eq!(decline.code, "canceled");
    hall.hand(1, 0, Body::Decline(decline));
    assert!(hall.nodes.iter().all(|node| node.quiescent()));
}

/// An acceptance that meets the cancel on the way is answered with the cancel, so that nobody works for nothing.
#[test]
fn an_acceptance_after_the_cancel_hears_of_it_again() {
    let mut hall = Hall::new(2);
    let (task, request) = hall.directed(8);
    hall.give(0, Input::Cancel { task: task.clone() });
    let accept = one(&hall.hand(0, 1, request));
    let cancel = one(&hall.hand(1, 0, accept));
    assert!(matches!(&cancel, Body::Cancel(c) if c.entry.what == Act::Canceled));
    let key = format!("{}/{task}/1", hall.npub(0));
    hall.hand(0, 1, cancel);
    let news = legiond::domain::step::LaborNews::Stopped {
        units_done: 2,
        bytes: vec![1],
        executed: 2,
    };
    let stopped = one(&hall.give(1, Input::Labor { key, news }));
    assert!(matches!(&stopped, Body::Update(u) if matches!(u.news, News::Canceled { .. })));
    hall.hand(1, 0, stopped);
    assert!(hall.nodes.iter().all(|node| node.quiescent()));
}
