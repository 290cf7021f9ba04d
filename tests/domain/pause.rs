//! A task that meets a pause is not lost to it: whoever declined it for its owner's sake is asked again when the owner is done.

use legiond::domain::engagement::Stage;
use legiond::domain::job::{Phase, Route, TaskState};
use legiond::domain::peer::Tier;
use legiond::domain::step::{Effect, Input, PauseMode, Step};
use legiond::wire::entry::Act;
use legiond::wire::message::Body;

use super::pair::{Hall, letters, one};

const MINUTE: u64 = 60_000;

fn pause(hall: &mut Hall, at: usize, for_ms: Option<u64>) {
    let mode = PauseMode::Now;
    hall.give(at, Input::Pause { mode, for_ms });
}

/// A pool task of 0 that its only provider, 1, has declined because its owner has paused it.
fn declined(hall: &mut Hall) -> String {
    let (task, step) = hall.ask(0, 8, Route::Pool("legion".into()), 60 * MINUTE);
    let decline = one(&hall.hand(0, 1, one(&step)));
    assert!(matches!(&decline, Body::Decline(d) if d.code == "owner_paused"));
    hall.hand(1, 0, decline);
    let job = hall.job(0, &task);
    assert_eq!(
        (job.phase, job.state),
        (Phase::Placing, TaskState::Submitted)
    );
    assert_eq!(job.reason.as_ref().unwrap().code, "waiting_for_resume");
    assert_eq!(job.refusals[&hall.npub(1)].code, "owner_paused");
    task
}

fn offers(step: &Step) -> usize {
    let offer = |(_, body): &(_, Body)| matches!(body, Body::Offer(_));
    letters(step).iter().filter(|letter| offer(letter)).count()
}

/// From an offer or a bid to the lease.
fn taken(hall: &mut Hall, task: &str, bid: Body) {
    assert!(matches!(&bid, Body::Bid(_)), "{bid:?}");
    let award = one(&hall.hand(1, 0, bid));
    let accept = letters(&hall.hand(0, 1, award)).into_iter().next();
    hall.hand(1, 0, accept.expect("an acceptance").1);
    let job = hall.job(0, task);
    assert_eq!(job.phase, Phase::Working);
    assert!(
        job.refusals.is_empty(),
        "`why` tells nothing stale: {:?}",
        job.refusals
    );
}

/// The executor has heard the offer: it answers at once when its pause ends, by hand or by time.
#[test]
fn an_offer_heard_during_a_pause_is_bid_on_at_its_end() {
    for for_ms in [None, Some(30 * MINUTE), Some(120 * MINUTE)] {
        let mut hall = Hall::new(2);
        pause(&mut hall, 1, for_ms);
        let task = declined(&mut hall);
        hall.now += 1_000;
        let step = hall.give(1, Input::Resume);
        assert!(step.effects.contains(&Effect::Readvertise));
        taken(&mut hall, &task, one(&step));
    }
    let mut hall = Hall::new(2);
    pause(&mut hall, 1, Some(5_000));
    let task = declined(&mut hall);
    let step = hall.wait(1, 5_000);
    taken(&mut hall, &task, one(&step));
}

/// What was withdrawn meanwhile, or has lapsed, is not answered any more; strangers have their own, smaller room.
#[test]
fn only_open_offers_are_answered_and_only_so_many_are_kept() {
    let mut hall = Hall::new(2);
    pause(&mut hall, 1, None);
    let task = declined(&mut hall);
    let withdraw = letters(&hall.give(0, Input::Cancel { task }));
    let withdraw = withdraw.into_iter().next().expect("a withdrawal").1;
    assert!(matches!(withdraw, Body::Withdraw(_)));
    hall.hand(0, 1, withdraw);
    assert!(letters(&hall.give(1, Input::Resume)).is_empty());

    for (tier, kept) in [(Tier::Trusted, 256), (Tier::Stranger, 64)] {
        let mut hall = Hall::with(2, |_, policy| policy.skills[0].unit_price_mc = 0);
        hall.trust(1, 0, tier);
        pause(&mut hall, 1, None);
        let (_, step) = hall.ask(0, 8, Route::Pool("legion".into()), 60 * MINUTE);
        let Body::Offer(offer) = one(&step) else {
            panic!("an offer")
        };
        for n in 0..300 {
            let mut offer = offer.clone();
            offer.task = format!("{n:032x}");
            hall.hand(0, 1, Body::Offer(offer));
        }
        let step = hall.give(1, Input::Resume);
        assert_eq!(letters(&step).len(), kept, "{tier:?}");
    }
}

/// The executor has forgotten the offer (it was started anew): the ad that ends its pause has it offered once more, also to a
/// requester that was started anew itself.
#[test]
fn an_ad_that_ends_a_pause_begins_another_round() {
    let mut hall = Hall::new(2);
    pause(&mut hall, 1, None);
    let task = declined(&mut hall);
    hall.give(0, Input::Started);
    hall.give(0, Input::CaughtUp { online: true });
    hall.give(1, Input::Resume);
    hall.meet(0, 1);
    assert!(!hall.job(0, &task).refusals.contains_key(&hall.npub(1)));
    let step = hall.wait(0, 1_000);
    assert_eq!(hall.job(0, &task).round, 2);
    let bid = one(&hall.hand(0, 1, one(&step)));
    taken(&mut hall, &task, bid);
}

/// A peer that only says that it has resumed has the job offered again less and less often.
#[test]
fn resuming_over_and_over_buys_few_rounds() {
    let mut hall = Hall::new(2);
    pause(&mut hall, 1, None);
    let (task, step) = hall.ask(0, 8, Route::Pool("legion".into()), 60 * MINUTE);
    let decline = one(&hall.hand(0, 1, one(&step)));
    let mut rounds = 0;
    for _ in 0..600 {
        hall.hand(1, 0, decline.clone());
        hall.meet(0, 1);
        rounds += offers(&hall.wait(0, 100));
    }
    assert!((2..20).contains(&rounds), "{rounds} offers in a minute");
    assert_eq!(hall.job(0, &task).phase, Phase::Placing);
}

/// A directed task that is asked for during a pause is accepted, and begins at its end.
#[test]
fn a_directed_task_waits_at_the_paused_peer() {
    let mut hall = Hall::new(2);
    pause(&mut hall, 1, None);
    let (task, request) = hall.directed(8);
    let told = letters(&hall.hand(0, 1, request));
    assert!(matches!(told[0].1, Body::Accept(_)));
    let key = format!("{}/{task}/1", hall.npub(0));
    assert_eq!(hall.nodes[1].work()[&key].stage, Stage::Hibernating);
    let step = hall.give(1, Input::Resume);
    assert!(step.effects.contains(&Effect::Start(key)));
}

/// A peer that gives an award back for its owner's sake gets it again when it says that it works.
#[test]
fn an_award_given_back_for_a_pause_is_made_again() {
    for in_pool in [false, true] {
        let mut hall = Hall::new(2);
        let (task, award) = if in_pool {
            let (task, step) = hall.ask(0, 8, Route::Pool("legion".into()), 60 * MINUTE);
            let bid = one(&hall.hand(0, 1, one(&step)));
            (task, one(&hall.hand(1, 0, bid)))
        } else {
            let (task, step) = hall.ask(0, 8, Route::Peer(hall.npub(1)), 60 * MINUTE);
            (task, one(&step))
        };
        let (Body::Award(mut late) | Body::Request(mut late)) = award else {
            panic!("an award")
        };
        late.accept_by_ms = hall.now;
        late.entry.what = Act::Awarded {
            award_no: 1,
            executor: hall.npub(1),
            terms: late.terms_hash().unwrap(),
        };
        let Body::Decline(mut decline) = one(&hall.hand(0, 1, Body::Request(late))) else {
            panic!("a decline")
        };
        decline.code = "owner_paused".to_owned();
        if let Some(entry) = &mut decline.entry {
            entry.what = Act::Declined {
                award_no: 1,
                code: "owner_paused".to_owned(),
            };
        }
        let mut step = hall.hand(1, 0, Body::Decline(decline));
        assert_eq!(hall.job(0, &task).phase, Phase::Placing);
        if in_pool {
            assert_eq!(offers(&step), 1);
        }
        let resumed = hall.meet(0, 1);
        if in_pool {
            let bid = one(&hall.hand(0, 1, one(&step)));
            step = hall.hand(1, 0, bid);
        } else {
            step = resumed;
        }
        let again = one(&step);
        assert!(matches!(&again, Body::Award(a) | Body::Request(a) if a.award_no == 2));
    }
}
