//! Whoever wants more than its due: paid twice for one task, all the room there is, or answers without end.

use legiond::domain::engagement::Stage;
use legiond::domain::job::{Route, TaskState};
use legiond::domain::ledger::State;
use legiond::domain::peer::Tier;
use legiond::domain::policy::SkillFacts;
use legiond::domain::step::{Effect, Input, LaborNews};
use legiond::wire::entry::Act;
use legiond::wire::market::Offer;
use legiond::wire::message::{Body, News, Update};

use super::pair::{Hall, journaled, letters, one};

const MINUTE: u64 = 60_000;

fn units_on_cancel(nodes: usize) -> Hall {
    Hall::with(nodes, |_, policy| policy.on_cancel = "units".into())
}

/// "I have stopped, and so many units count", signed by the executor of an award, whoever it tells that.
fn stopped(hall: &Hall, at: usize, task: &str, award_no: u32, useful_units: u32) -> Body {
    let mut entry = legiond::wire::entry::Entry::blank();
    entry.task = task.to_owned();
    entry.requester = hall.npub(0);
    entry.author = hall.npub(at);
    entry.key = hall.policies[at].key.clone();
    entry.seq = 200;
    entry.what = Act::Stopped {
        award_no,
        useful_units,
        hops: Vec::new(),
    };
    Body::Update(Box::new(Update {
        task: task.to_owned(),
        award_no,
        news: News::Canceled {
            useful_units,
            entry,
        },
    }))
}

fn pool_offer(hall: &mut Hall) -> (String, Offer) {
    let (task, step) = hall.ask(0, 8, Route::Pool("legion".into()), 100 * MINUTE);
    let Body::Offer(offer) = one(&step) else {
        panic!("an offer")
    };
    (task, *offer)
}

/// A pool job whose first winner, 1, says nothing, and which 2 then does: paid once. The first claims units that nobody asked for.
#[test]
fn a_superseded_award_is_not_paid_for_units_beside_the_result() {
    let mut hall = units_on_cancel(3);
    let (task, offer) = pool_offer(&mut hall);
    let bids = [1, 2].map(|at| one(&hall.hand(0, at, Body::Offer(Box::new(offer.clone())))));
    hall.hand(1, 0, bids[0].clone());
    hall.hand(2, 0, bids[1].clone());
    let first = hall.job(0, &task).awards[0].clone();
    assert_eq!(first.executor, hall.npub(1));
    let step = hall.wait(0, 40_000);
    let award = letters(&step)
        .into_iter()
        .find(|(_, body)| matches!(body, Body::Award(_)));
    let accept = one(&hall.hand(0, 2, award.expect("a second award").1));
    hall.hand(2, 0, accept);
    let key = format!("{}/{task}/2", hall.npub(0));
    let result = one(&hall.finish(2, &key, 8));
    hall.hand(2, 0, result);
    hall.check(0, &task, 2, None);
    assert_eq!(hall.job(0, &task).state, TaskState::Completed);
    let claim = stopped(&hall, 1, &task, 1, 8);
    let step = hall.hand(1, 0, claim);
    assert_eq!(journaled(&step, "money_refused"), 0);
    let posted = |at: usize| {
        let npub = hall.npub(at);
        hall.nodes[0].ledger().account(&npub).posted_mc
    };
    assert_eq!((posted(1), posted(2)), (0, -8), "one task, one payment");
    assert_eq!(hall.job(0, &task).awards[0].money, State::RolledBack);
}

/// Whoever has delivered nothing by the deadline is asked to stop like anybody else; what it then says that it has done earns nothing.
#[test]
fn a_missed_deadline_is_not_paid_as_a_cancel() {
    for late in [false, true] {
        let mut hall = units_on_cancel(2);
        let task = hall.accepted(8);
        let step = if late {
            hall.wait(0, 60_000 + hall.policies[0].skew_ms)
        } else {
            hall.give(0, Input::Cancel { task: task.clone() })
        };
        assert!(matches!(one(&step), Body::Cancel(_)), "{step:?}");
        let claim = stopped(&hall, 1, &task, 1, 8);
        let step = hall.hand(1, 0, claim);
        assert_eq!(letters(&step).is_empty(), late, "{step:?}");
        let account = hall.nodes[0].ledger().account(&hall.npub(1));
        let owed = if late { 0 } else { -8 };
        assert_eq!((account.posted_mc, account.pending_we_owe_mc), (owed, 0));
        assert!(hall.nodes[0].quiescent());
    }
}

/// A receipt says what the book says: for a lock that was released at `settle_by` there is none, however late the executor speaks.
#[test]
fn a_stop_after_the_lock_was_released_is_not_signed_for() {
    let mut hall = units_on_cancel(2);
    let task = hall.accepted(8);
    hall.give(0, Input::Cancel { task: task.clone() });
    hall.now = hall.job(0, &task).awards[0].settle_by_ms;
    hall.give(0, Input::CaughtUp { online: true });
    hall.give(0, Input::Tick);
    assert_eq!(hall.job(0, &task).awards[0].money, State::RolledBack);
    let claim = stopped(&hall, 1, &task, 1, 8);
    let step = hall.hand(1, 0, claim);
    assert!(letters(&step).is_empty(), "{step:?}");
    let account = hall.nodes[0].ledger().account(&hall.npub(1));
    assert_eq!((account.posted_mc, hall.job(0, &task).cost_mc), (0, 0));
}

/// A cancel that overtakes the withdrawal before it leaves both books alike: a withdrawn award earns nothing.
#[test]
fn a_stop_before_the_withdrawal_is_seen_leaves_both_books_alike() {
    let mut hall = units_on_cancel(2);
    let (task, offer) = pool_offer(&mut hall);
    let bid = one(&hall.hand(0, 1, Body::Offer(Box::new(offer))));
    let award = one(&hall.hand(1, 0, bid));
    let accept = one(&hall.hand(0, 1, award));
    hall.hand(1, 0, accept);
    let (requester, executor) = (hall.npub(0), hall.npub(1));
    let key = format!("{requester}/{task}/1");
    let news = LaborNews::Checkpoint {
        units_done: 4,
        bytes: vec![1],
    };
    hall.give(
        1,
        Input::Labor {
            key: key.clone(),
            news,
        },
    );
    let withdraw = letters(&hall.wait(0, 40_000))
        .into_iter()
        .find(|(_, body)| matches!(body, Body::Withdraw(_)));
    let withdraw = withdraw.expect("a withdrawal").1;
    let cancel = letters(&hall.give(0, Input::Cancel { task: task.clone() }))
        .into_iter()
        .find(|(_, body)| matches!(body, Body::Cancel(_)));
    hall.hand(0, 1, cancel.expect("a cancel").1);
    let news = LaborNews::Stopped {
        units_done: 4,
        bytes: vec![1],
        executed: 4,
    };
    let stop = one(&hall.give(
        1,
        Input::Labor {
            key: key.clone(),
            news,
        },
    ));
    assert_eq!(hall.nodes[1].work()[&key].stage, Stage::Finished);
    hall.hand(0, 1, withdraw);
    assert_eq!(hall.nodes[1].work()[&key].stage, Stage::Ended);
    assert!(letters(&hall.hand(1, 0, stop)).is_empty());
    let ours = hall.nodes[0].ledger().account(&executor);
    let theirs = hall.nodes[1].ledger().account(&requester);
    assert_eq!((ours.posted_mc, ours.pending_we_owe_mc), (0, 0));
    assert_eq!((theirs.posted_mc, theirs.pending_owed_to_us_mc), (0, 0));
}

/// Strangers under many names fill no more than their part of what is remembered: who was admitted finds room.
#[test]
fn many_strangers_do_not_take_the_room_of_those_admitted() {
    let mut hall = Hall::with(2, |_, policy| policy.skills[0].unit_price_mc = 0);
    let (_, offer) = pool_offer(&mut hall);
    let mut bids = 0;
    for stranger in 0..64 {
        let name = format!("{:064x}", 1_000 + stranger);
        for n in 0..1_024 {
            let mut offer = offer.clone();
            offer.task = format!("{n:032x}");
            let step = hall.hand_as(&name, 1, Body::Offer(Box::new(offer)), None);
            bids += usize::from(matches!(one(&step), Body::Bid(_)));
        }
    }
    assert!(bids >= 1_024, "strangers are served while there is room");
    let answer = one(&hall.hand(0, 1, Body::Offer(Box::new(offer))));
    assert!(matches!(answer, Body::Bid(_)), "{answer:?}");
}

/// A stranger's offer that is declined leaves nothing for long, however long it stands: no mark, and no answer in the outbox.
#[test]
fn an_answer_to_a_declined_stranger_is_not_kept_as_long_as_its_offer() {
    let mut hall = Hall::new(2);
    let (_, mut offer) = pool_offer(&mut hall);
    offer.expires_ms = hall.now + 24 * 60 * MINUTE;
    offer.result_by_ms = offer.expires_ms;
    for (tier, kept_ms) in [
        (Tier::Trusted, 24 * 60 * MINUTE),
        (Tier::Stranger, 10 * MINUTE),
    ] {
        hall.trust(1, 0, tier);
        offer.max_price_mc = 0;
        let step = hall.hand(0, 1, Body::Offer(Box::new(offer.clone())));
        let until = step.effects.iter().find_map(|effect| match effect {
            Effect::Send(send) if matches!(send.body, Body::Decline(_)) => Some(send.expires_ms),
            _ => None,
        });
        assert_eq!(until, Some(hall.now + kept_ms));
    }
}

/// A bid on one skill is no promise of another one's units at its price.
#[test]
fn an_award_of_another_skill_than_the_bid_is_declined() {
    let mut hall = Hall::with(2, |_, policy| {
        policy.skills.push(SkillFacts {
            hop_budget_mc: 0,
            id: "dear".into(),
            unit_price_mc: 1_000,
            unit_eta_ms: 1_000,
        });
    });
    let (_, offer) = pool_offer(&mut hall);
    let bid = one(&hall.hand(0, 1, Body::Offer(Box::new(offer))));
    let Body::Award(mut award) = one(&hall.hand(1, 0, bid)) else {
        panic!("an award")
    };
    award.skill = "dear".into();
    award.entry.what = Act::Awarded {
        award_no: 1,
        executor: hall.npub(1),
        terms: award.terms_hash().unwrap(),
    };
    let answer = one(&hall.hand(0, 1, Body::Award(award)));
    assert!(
        matches!(&answer, Body::Decline(d) if d.code == "award_terms"),
        "{answer:?}"
    );
}
