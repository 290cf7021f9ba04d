//! A task's history: whatever order, repetition or split its entries arrive in, it says the same; who contradicts itself
//! is believed no more; a clock too far ahead moves nothing.

use legiond::domain::engagement::Stage;
use legiond::domain::history::{self, Draft, FUTURE_MAX_MS, History, Told};
use legiond::domain::job::{AwardState, Heads, Phase, Route, TaskState};
use legiond::domain::ledger::State as Money;
use legiond::domain::step::{Addressee, Change, Input, Row, Step};
use legiond::wire::entry::{Act, Entry};
use legiond::wire::message::{Body, News};
use proptest::prelude::*;

use super::pair::{Hall, dropped, journaled, letters, one};
use crate::sim::world::T0;

fn act(kind: usize, award_no: u32) -> Act {
    let code = "code".to_owned();
    match kind {
        0 => Act::Awarded {
            award_no,
            executor: "e".into(),
            terms: "t".into(),
        },
        1 => Act::Accepted {
            award_no,
            total_mc: 9,
        },
        2 => Act::Declined { award_no, code },
        3 => Act::Completed {
            award_no,
            proof: "p".into(),
        },
        4 => Act::Failed { award_no, code },
        5 => Act::Canceled,
        6 => Act::Stopped {
            award_no,
            useful_units: 1,
            hops: Vec::new(),
        },
        7 => Act::Paid {
            award_no,
            cost_mc: 9,
            proof: "p".into(),
            quality_bp: None,
        },
        _ => Act::Refused {
            award_no,
            proof: "p".into(),
            evidence: "e".into(),
            code,
        },
    }
}

/// Entries of honest authors, each with its own chain and clock.
fn written(acts: &[(usize, usize, u32)]) -> Vec<Entry> {
    let mut heads = [Heads::default(), Heads::default(), Heads::default()];
    acts.iter()
        .enumerate()
        .map(|(at, (author, kind, award_no))| {
            let name = ["requester", "first", "second"][*author];
            let draft = Draft {
                task: "task",
                requester: "requester",
                author: name,
                key: name,
                what: act(*kind, *award_no),
                above: 0,
            };
            history::write(&mut heads[*author], T0 + at as u64, draft)
        })
        .collect()
}

fn of(entries: &[Entry]) -> History {
    let mut history = History::default();
    entries.iter().cloned().for_each(|entry| history.add(entry));
    history
}

proptest! {
    #[test]
    fn order_repetition_and_partition_change_nothing(
        acts in proptest::collection::vec((0usize..3, 0usize..9, 1u32..4), 1..24),
        order in proptest::collection::vec(any::<u64>(), 48),
        cut in 1usize..6,
    ) {
        let entries = written(&acts);
        let whole = of(&entries);
        let mut twice: Vec<_> = entries.iter().chain(&entries).cloned().zip(order).collect();
        twice.sort_by_key(|(_, at)| *at);
        let shuffled: Vec<Entry> = twice.into_iter().map(|(entry, _)| entry).collect();
        prop_assert_eq!(&of(&shuffled), &whole);
        let parts: Vec<History> = shuffled.chunks(cut).map(of).collect();
        let merge = |parts: &mut dyn Iterator<Item = &History>| {
            let mut all = History::default();
            parts.for_each(|part| all.merge(part));
            all
        };
        let (there, back) = (merge(&mut parts.iter()), merge(&mut parts.iter().rev()));
        prop_assert_eq!(&there, &whole);
        prop_assert_eq!(&back, &whole);
        prop_assert_eq!(there.fold(), whole.fold());
        prop_assert_eq!(there.ordered(), whole.ordered());
        prop_assert!(whole.equivocator().is_none(), "honest chains do not contradict themselves");
    }

    #[test]
    fn two_stories_under_one_number_are_seen_in_any_order(
        acts in proptest::collection::vec((0usize..3, 0usize..9, 1u32..4), 1..16),
        which in any::<prop::sample::Index>(),
        reverse in any::<bool>(),
    ) {
        let mut entries = written(&acts);
        let mut other = entries[which.index(entries.len())].clone();
        other.hlc += 1;
        let author = other.author.clone();
        let mut heads = Heads::default();
        for entry in &entries {
            history::admit(&mut heads, T0, entry).unwrap();
        }
        // However many entries came since, the second story is noticed.
        prop_assert_eq!(history::admit(&mut heads, T0, &other).unwrap_err().code, "equivocation");
        prop_assert!(heads.equivocators.contains(&author));
        entries.push(other);
        if reverse {
            entries.reverse();
        }
        prop_assert_eq!(of(&entries).fold(), Told::Disputed);
        let all = of(&entries);
        prop_assert_eq!(all.equivocator(), Some(&author));
    }
}

/// What an executor writes about a second award never has a number of the first, even if it has forgotten the first.
#[test]
fn forgetting_a_settled_award_is_not_equivocation() {
    let draft = |award_no| Draft {
        task: "task",
        requester: "requester",
        author: "executor",
        key: "k",
        what: act(1, award_no),
        above: 0,
    };
    let first = history::write(&mut Heads::default(), T0, draft(1));
    let second = history::write(&mut Heads::default(), T0, draft(2));
    assert_eq!(first.seq, 1);
    assert_ne!(first.seq, second.seq);
    let last = history::write(&mut Heads::default(), T0, draft(history::AWARD_NO_MAX));
    assert!(last.seq > second.seq && last.seq < u32::MAX - 1_000);
    assert!(of(&[first, second, last]).equivocator().is_none());
}

fn kept(step: &Step) -> usize {
    let entry = |change: &&Change| matches!(change, Change::Put(Row::Entry(_)));
    step.changes.iter().filter(entry).count()
}

/// The executor's letter, and the same with another entry under the same number.
fn two_stories(body: Body) -> [Body; 2] {
    let mut other = body.clone();
    match &mut other {
        Body::Accept(accept) => accept.entry.hlc += 1,
        Body::Update(update) => match &mut update.news {
            News::Completed(result) => result.entry.hlc += 1,
            other => panic!("a result: {other:?}"),
        },
        other => panic!("an acceptance or a result: {other:?}"),
    }
    [body, other]
}

/// The requester sees two stories of the one executor that it may use: both are kept, and the task has failed.
#[test]
fn an_executor_that_contradicts_itself_is_believed_no_more() {
    let mut hall = Hall::new(2);
    let (task, request) = hall.directed(8);
    let [accept, other] = two_stories(one(&hall.hand(0, 1, request)));
    let step = hall.hand(1, 0, accept);
    assert_eq!(kept(&step), 1);
    let step = hall.hand(1, 0, other);
    assert_eq!(dropped(&step), ["equivocation"]);
    assert_eq!((kept(&step), journaled(&step, "equivocation")), (1, 1));
    let npub = hall.npub(1);
    let peer = &hall.nodes[0].peers()[&npub];
    assert_eq!((peer.frauds, peer.disputed), (1, true));
    let job = hall.job(0, &task);
    assert!(job.heads.equivocators.contains(&npub));
    assert_eq!((job.phase, job.state), (Phase::Ended, TaskState::Failed));
    assert_eq!(job.reason.as_ref().unwrap().code, "equivocation");
    assert_eq!(job.awards[0].state, AwardState::Disputed);
    let key = format!("{}/{task}/1", hall.npub(0));
    let result = one(&hall.finish(1, &key, 8));
    let before = hall.snapshot(0);
    let step = hall.hand(1, 0, result);
    assert_eq!(dropped(&step), ["task_disputed"]);
    assert!(hall.snapshot(0) == before, "nothing else has changed");
    assert_eq!(hall.nodes[0].ledger().locks().count(), 1, "money is held");
}

/// In a pool the task goes on with another executor, whether the two stories are told early or about a result that is being
/// checked; the money of the first award is held until settlement, and its executor never gets the task again.
#[test]
fn a_task_goes_on_without_the_executor_that_contradicts_itself() {
    for late in [false, true] {
        let mut hall = Hall::new(3);
        let (task, step) = hall.ask(0, 8, Route::Pool("legion".into()), 3_600_000);
        let offer = one(&step);
        let bid = one(&hall.hand(0, 1, offer.clone()));
        hall.hand(1, 0, bid);
        let award = one(&hall.wait(0, 1_500));
        let [accept, other] = two_stories(one(&hall.hand(0, 1, award)));
        hall.hand(1, 0, accept);
        let step = if late {
            let key = format!("{}/{task}/1", hall.npub(0));
            let [result, other] = two_stories(one(&hall.finish(1, &key, 8)));
            hall.hand(1, 0, result);
            assert_eq!(hall.job(0, &task).phase, Phase::Checking);
            hall.hand(1, 0, other)
        } else {
            hall.hand(1, 0, other)
        };
        assert_eq!(journaled(&step, "equivocation"), 1);
        let liar = Addressee::Peer(hall.npub(1));
        let told = letters(&step);
        let withdrawn = (liar, "pool/withdraw");
        assert!(
            told.iter()
                .any(|(to, body)| (to.clone(), body.method()) == withdrawn)
        );
        let again = told
            .into_iter()
            .find(|(_, body)| matches!(body, Body::Offer(_)));
        let again = again.expect("another round").1;
        // What is said of the old result does not matter any more.
        assert!(letters(&hall.check(0, &task, 1, None)).is_empty());
        let bids = [1, 2].map(|at| one(&hall.hand(0, at, again.clone())));
        let step = hall.hand(1, 0, bids[0].clone());
        assert_eq!(dropped(&step), ["bid_unwelcome"]);
        let award = one(&hall.hand(2, 0, bids[1].clone()));
        let accept = one(&hall.hand(0, 2, award));
        hall.hand(2, 0, accept);
        let key = format!("{}/{task}/2", hall.npub(0));
        let result = one(&hall.finish(2, &key, 8));
        hall.hand(2, 0, result);
        hall.check(0, &task, 2, None);
        let job = hall.job(0, &task);
        assert_eq!((job.state, job.cost_mc), (TaskState::Completed, 8));
        let money: Vec<_> = job.awards.iter().map(|a| (a.state, a.money)).collect();
        let disputed = (AwardState::Disputed, Money::Locked);
        assert_eq!(money, [disputed, (AwardState::Delivered, Money::Committed)]);
        hall.now = job.awards[0].settle_by_ms + 1;
        hall.give(0, Input::CaughtUp { online: true });
        let job = hall.job(0, &task);
        assert_eq!(job.awards[0].money, Money::RolledBack);
        assert_eq!(hall.nodes[0].ledger().account(&hall.npub(1)).posted_mc, 0);
        assert!(hall.nodes[0].peers()[&hall.npub(1)].disputed);
    }
}

/// The executor sees two stories of its requester: no receipt is taken any more, and its credit is gone.
#[test]
fn a_requester_that_contradicts_itself_loses_its_credit() {
    let mut hall = Hall::new(2);
    let (task, receipt) = hall.judged(8, None);
    let Body::Receipt(receipt) = receipt else {
        panic!("a receipt")
    };
    let mut other = receipt.clone();
    other.entry.seq = 1;
    let step = hall.hand(0, 1, Body::Receipt(other));
    assert_eq!(dropped(&step), ["equivocation"]);
    assert_eq!((kept(&step), journaled(&step, "equivocation")), (1, 1));
    let step = hall.hand(0, 1, Body::Receipt(receipt));
    assert_eq!(dropped(&step), ["task_disputed"]);
    let requester = hall.npub(0);
    let key = format!("{requester}/{task}/1");
    assert_eq!(hall.nodes[1].work()[&key].stage, Stage::Finished);
    assert!(hall.nodes[1].peers()[&requester].disputed);
    assert_eq!(
        hall.nodes[1].ledger().locks().count(),
        1,
        "the claim stands"
    );
}

/// An entry whose clock ran ahead is kept (the rumor around it was dated well), but moves ours by 15 minutes at most.
#[test]
fn a_clock_too_far_ahead_moves_ours_no_further_than_allowed() {
    let mut hall = Hall::new(2);
    let (task, request) = hall.directed(8);
    let Body::Accept(accept) = one(&hall.hand(0, 1, request)) else {
        panic!("an acceptance")
    };
    let edge = (hall.now + FUTURE_MAX_MS) * 1024;
    let mut ahead = accept;
    ahead.entry.hlc = edge * 2;
    let step = hall.hand(1, 0, Body::Accept(ahead));
    assert_eq!((dropped(&step), kept(&step)), (vec![], 1));
    assert_eq!(hall.job(0, &task).heads.hlc, edge);
    // Our own next entry stays within what others accept.
    let step = hall.give(0, Input::Cancel { task: task.clone() });
    let Body::Cancel(cancel) = one(&step) else {
        panic!("a cancel")
    };
    assert!(cancel.entry.hlc <= (hall.now + FUTURE_MAX_MS) * 1024);
}

/// What an honest pair writes about one task folds to what happened.
#[test]
fn the_entries_of_a_paid_task_say_paid() {
    let mut hall = Hall::new(2);
    let mut entries = Vec::new();
    let (task, request) = hall.directed(4);
    entries.extend(request.entry().cloned());
    let accept = one(&hall.hand(0, 1, request));
    entries.extend(accept.entry().cloned());
    hall.hand(1, 0, accept);
    let key = format!("{}/{task}/1", hall.npub(0));
    let result = one(&hall.finish(1, &key, 4));
    assert!(matches!(&result, Body::Update(u) if matches!(u.news, News::Completed(_))));
    entries.extend(result.entry().cloned());
    assert_eq!(of(&entries).fold(), Told::Completed);
    hall.hand(1, 0, result);
    let receipt = one(&hall.check(0, &task, 1, None));
    entries.extend(receipt.entry().cloned());
    assert_eq!(entries.len(), 4);
    assert_eq!(of(&entries).fold(), Told::Paid);
    hall.hand(0, 1, receipt);
    assert!(hall.nodes.iter().all(|node| node.quiescent()));
}
