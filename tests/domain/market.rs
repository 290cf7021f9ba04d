//! Matching never leaves the offer's limits, and everybody is served in the promised order.

use std::collections::BTreeMap;

use legiond::domain::engagement::Stage;
use legiond::domain::job::{Phase, Route, TaskState};
use legiond::domain::peer::Tier;
use legiond::domain::policy::{Permission, Policy, Rule};
use legiond::domain::step::{Effect, Input, LaborNews, Step};
use legiond::wire::market::Bid;
use legiond::wire::message::{Body, News, Update};
use proptest::prelude::*;

use super::pair::{Hall, dropped, journaled, letters, one};
use crate::sim::world::SKILL;

const MINUTE: u64 = 60_000;

fn pool() -> Route {
    Route::Pool("legion".into())
}

fn tier(n: usize) -> Tier {
    [Tier::Own, Tier::Trusted, Tier::Stranger][n]
}

fn bid(hall: &Hall, task: &str, units: u32, unit_price_mc: u64) -> Bid {
    let policy = &hall.policies[0];
    Bid {
        hops_mc: 0,
        task: task.to_owned(),
        requester: policy.me.clone(),
        round: 1,
        total_mc: u64::from(units) * unit_price_mc,
        unit_price_mc,
        eta_ms: 1_000,
        device: "cpu".into(),
        queue: 0,
        lct: "lct:bidder#worker".into(),
        binding: policy.binding.clone(),
        relays: policy.relays.clone(),
        expires_ms: hall.now + 10 * MINUTE,
    }
}

/// The permission of 0 at node 1, said for its tier (level 0), or by a rule for its role, the skill or itself.
fn permitted(permission: Permission, level: usize) -> impl Fn(usize, &mut Policy) {
    move |at, policy| {
        if at != 1 {
            return;
        }
        let permission = permission.clone();
        let all = &mut policy.permissions;
        if level == 0 {
            all.tier.insert("trusted".into(), permission);
            return;
        }
        let requester = crate::sim::policy::policy(0).me;
        all.rules.push(Rule {
            role: (level == 1).then(|| "worker".to_owned()),
            self_claimed: level == 1,
            skill: (level == 2).then(|| SKILL.to_owned()),
            peer: (level == 3).then_some(requester),
            permission,
        });
    }
}

fn declined(step: &Step) -> (String, Option<u64>) {
    match one(step) {
        Body::Decline(decline) => (decline.code.clone(), decline.retry_at_ms),
        other => panic!("a decline: {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A bid, and what is accepted after it, is within the offer, the credit and every permission.
    #[test]
    fn a_bid_keeps_every_limit(
        list_price in 0u64..6,
        named_price in proptest::option::of(0u64..6),
        budget in proptest::option::of(0u64..200),
        credit in 0u64..200,
        as_tier in 0usize..3,
        jobs in proptest::collection::vec((1u32..40, 0u64..160), 1..6),
        level in 0usize..4,
    ) {
        let permission = Permission { budget_mc: budget, unit_price_mc: named_price, ..Permission::default() };
        let mut hall = Hall::with(2, |at, policy| {
            permitted(permission.clone(), level)(at, policy);
            policy.skills[0].unit_price_mc = list_price;
            policy.trusted_limit_mc = credit;
        });
        hall.trust(1, 0, tier(as_tier));
        let requester = hall.npub(0);
        for (units, max_price_mc) in jobs {
            let mut ask = crate::sim::world::ask(units, pool(), MINUTE, u64::from(units));
            ask.max_price_mc = Some(max_price_mc);
            let step = hall.give(0, Input::Ask(Box::new(ask)));
            let answer = one(&hall.hand(0, 1, one(&step)));
            // Tier levels are for trusted peers here; the others hold for all.
            let holds = level != 0 || as_tier == 1;
            let price = match tier(as_tier) {
                Tier::Own => 0,
                _ => named_price.filter(|_| holds).unwrap_or(list_price),
            };
            let total = u64::from(units) * price;
            let exposure = hall.nodes[1].ledger().exposure_mc(&requester);
            let limit = match tier(as_tier) {
                Tier::Own => u64::MAX,
                Tier::Trusted => credit,
                Tier::Stranger => 0,
            };
            let budget = budget.filter(|_| holds).unwrap_or(u64::MAX);
            let fits = total <= max_price_mc && (total == 0 || exposure + total <= limit.min(budget));
            match answer {
                Body::Bid(bid) => {
                    prop_assert!(fits, "a bid over a limit: {:?}", bid);
                    prop_assert_eq!((bid.unit_price_mc, bid.total_mc), (price, total));
                    let step = hall.hand(1, 0, Body::Bid(bid));
                    let award = one(&step);
                    let Body::Award(terms) = &award else { panic!("an award: {award:?}") };
                    prop_assert!(terms.max_price_mc == total && total <= max_price_mc);
                    let Body::Accept(accept) = one(&hall.hand(0, 1, award)) else { panic!("an acceptance") };
                    prop_assert_eq!((accept.unit_price_mc, accept.total_mc), (price, total));
                    prop_assert!(hall.nodes[1].ledger().exposure_mc(&requester) <= limit);
                }
                Body::Decline(_) => prop_assert!(!fits, "declined within all limits"),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The table of bids: within the offer, strangers in at most a quarter, none in the place of a trusted peer; the award
    /// goes to own before trusted before stranger, and to the cheapest of them.
    #[test]
    fn the_table_of_bids_keeps_its_order(
        bids_max in 1u32..12,
        bidders in proptest::collection::vec((0usize..3, 0u64..8), 1..24),
    ) {
        let mut hall = Hall::with(1, |_, policy| policy.bids_max = bids_max);
        let mut ask = crate::sim::world::ask(10, pool(), 10 * MINUTE, 1);
        ask.max_price_mc = Some(50);
        let step = hall.give(0, Input::Ask(Box::new(ask)));
        let Body::Offer(offer) = one(&step) else { panic!("an offer") };
        let mut good = Vec::new();
        for (n, (of, price)) in bidders.into_iter().enumerate() {
            let npub = format!("{n:064x}");
            if tier(of) != Tier::Stranger {
                hall.give(0, Input::Trust { npub: npub.clone(), tier: tier(of), limit_mc: None });
            }
            let bid = bid(&hall, &offer.task, 10, price);
            let step = hall.hand_as(&npub, 0, Body::Bid(Box::new(bid)), None);
            if price > 5 {
                prop_assert_eq!(dropped(&step), ["bid_price"]);
            } else {
                good.push((tier(of), price, npub));
            }
            let table = &hall.job(0, &offer.task).bids;
            let known = |npub: &String| hall.nodes[0].peers().get(npub).map_or(Tier::Stranger, |p| p.tier);
            prop_assert!(table.len() <= bids_max as usize);
            prop_assert!(table.iter().all(|(_, bid)| bid.total_mc <= 50));
            let strangers = table.iter().filter(|(npub, _)| known(npub) == Tier::Stranger).count();
            prop_assert!(strangers <= (bids_max as usize / 4).max(1));
            let admitted = good.iter().filter(|(tier, ..)| *tier != Tier::Stranger).count();
            prop_assert_eq!(table.len() - strangers, admitted.min(bids_max as usize));
        }
        good.sort();
        let step = hall.wait(0, 1_500);
        match good.first() {
            Some((_, price, npub)) => {
                prop_assert_eq!(journaled(&step, "award"), 1);
                let job = hall.job(0, &offer.task);
                let award = job.current().unwrap();
                prop_assert_eq!(&award.executor, npub);
                prop_assert_eq!(award.cap_mc, price * 10);
            }
            None => prop_assert_eq!(journaled(&step, "award"), 0),
        }
    }

    /// A rule counts in the place of the tier, and the narrowest of the rules that fit.
    #[test]
    fn permissions_combine_to_the_narrowest(
        caps in proptest::collection::vec(proptest::option::of((1u64..50, 1u32..9, 1u32..9, 0u64..9, 0u8..8)), 4),
    ) {
        let mut policy = crate::sim::policy::policy(1);
        for (level, cap) in caps.iter().enumerate() {
            if let Some((budget, concurrency, rate, price, deny)) = cap {
                let permission = Permission {
                    allow: (*deny == 0).then_some(false),
                    budget_mc: Some(*budget),
                    unit_price_mc: Some(*price),
                    concurrency: Some(*concurrency),
                    rate_per_min: Some(*rate),
                    ..Permission::default()
                };
                permitted(permission, level)(1, &mut policy);
            }
        }
        let mut peer = legiond::domain::peer::Peer::stranger(&crate::sim::policy::policy(0).me);
        peer.tier = Tier::Trusted;
        peer.lct = "lct:0#worker".into();
        peer.key = Some("bound".into());
        let mut set: Vec<_> = caps.iter().skip(1).flatten().collect();
        if set.is_empty() {
            set.extend(&caps[0]);
        }
        let all = policy.permission(&peer, SKILL);
        prop_assert_eq!(all.budget_mc, set.iter().map(|c| c.0).min());
        prop_assert_eq!(all.concurrency, set.iter().map(|c| c.1).min());
        prop_assert_eq!(all.rate_per_min, set.iter().map(|c| c.2).min());
        prop_assert_eq!(all.unit_price_mc, set.iter().map(|c| c.3).min());
        let denied = caps.iter().flatten().any(|c| c.4 == 0);
        prop_assert_eq!(all.admits(SKILL), !denied);
        // Another skill, role, peer and tier have nothing to do with it; own nodes are not limited.
        let own = legiond::domain::peer::Peer { tier: Tier::Own, ..peer.clone() };
        prop_assert_eq!(policy.permission(&own, SKILL), Permission::default());
        peer.npub = "ff".repeat(32);
        peer.tier = Tier::Stranger;
        peer.lct = "lct:0#guest".into();
        let free = Permission { allow: Some(true), ..Permission::default() };
        prop_assert_eq!(policy.permission(&peer, "other"), free);
    }
}

/// Each limit, at each level by itself, is what the next request meets.
#[test]
fn each_level_narrows_what_may_be_asked() {
    for level in 0..4 {
        let with = |permission| Hall::with(2, permitted(permission, level));
        let mut hall = with(Permission {
            allow: Some(false),
            ..Permission::default()
        });
        let (_, request) = hall.directed(8);
        assert_eq!(declined(&hall.hand(0, 1, request)).0, "permission_denied");

        let mut hall = with(Permission {
            unit_price_mc: Some(3),
            ..Permission::default()
        });
        let (_, request) = hall.directed(8);
        assert!(matches!(one(&hall.hand(0, 1, request)), Body::Accept(a) if a.total_mc == 24));

        let mut hall = with(Permission {
            max_price_mc: Some(7),
            ..Permission::default()
        });
        let (_, request) = hall.directed(8);
        assert_eq!(declined(&hall.hand(0, 1, request)).0, "price_limit");

        let second = [
            (
                Permission {
                    budget_mc: Some(10),
                    ..Permission::default()
                },
                "budget_exhausted",
            ),
            (
                Permission {
                    concurrency: Some(1),
                    ..Permission::default()
                },
                "too_many_tasks",
            ),
            (
                Permission {
                    rate_per_min: Some(1),
                    ..Permission::default()
                },
                "rate_limited",
            ),
        ];
        for (permission, code) in second {
            let mut hall = with(permission);
            hall.accepted(8);
            let (_, request) = hall.directed(8);
            assert_eq!(declined(&hall.hand(0, 1, request)).0, code, "level {level}");
        }
    }
}

/// Local before own before trusted before stranger; `critical` first within own; the owner's work takes the hardware at once.
#[test]
fn leases_are_granted_in_the_promised_order() {
    let mut hall = Hall::with(4, |_, policy| policy.skills[0].unit_price_mc = 0);
    for (other, tier) in [(0, Tier::Own), (2, Tier::Trusted), (3, Tier::Stranger)] {
        hall.trust(1, other, tier);
    }
    let me = hall.npub(1);
    let mut names = BTreeMap::new();
    let mut started = Vec::new();
    let mut stops = Vec::new();
    let leases = |step: &Step, stopped: bool| -> Vec<String> {
        let key = |effect: &Effect| match effect {
            Effect::Start(key) if !stopped => Some(key.clone()),
            Effect::SoftStop { key, .. } if stopped => Some(key.clone()),
            _ => None,
        };
        step.effects.iter().filter_map(key).collect()
    };
    for (from, name) in [
        (3, "stranger"),
        (3, "stranger again"),
        (2, "trusted"),
        (0, "own"),
    ] {
        let (task, step) = hall.ask(from, 4, Route::Peer(me.clone()), 10 * MINUTE);
        names.insert(format!("{}/{task}/1", hall.npub(from)), name);
        started.extend(leases(&hall.hand(from, 1, one(&step)), false));
    }
    for (critical, name) in [(false, "local"), (true, "critical")] {
        let mut ask = crate::sim::world::ask(4, Route::Own, 10 * MINUTE, u64::from(critical));
        ask.critical = critical;
        let step = hall.give(1, Input::Ask(Box::new(ask)));
        let task = step.effects.iter().find_map(|e| match e {
            Effect::Asked(Ok(task)) => Some(task.clone()),
            _ => None,
        });
        names.insert(format!("{me}/{}/1", task.unwrap()), name);
        started.extend(leases(&step, false));
        stops.extend(leases(&step, true));
    }
    assert_eq!(
        stops, started,
        "the owner's work revokes the one foreign lease"
    );
    let news = LaborNews::Stopped {
        units_done: 1,
        bytes: vec![1],
        executed: 1,
    };
    let key = started[0].clone();
    started.extend(leases(&hall.give(1, Input::Labor { key, news }), false));
    let mut at = 1;
    while at < started.len() {
        let key = started[at].clone();
        started.extend(leases(&hall.finish(1, &key, 4), false));
        at += 1;
    }
    let order: Vec<_> = started.iter().map(|key| names[key]).collect();
    let expected = [
        "stranger",
        "critical",
        "local",
        "own",
        "trusted",
        "stranger",
        "stranger again",
    ];
    assert_eq!(order, expected);
}

/// `rate_limited` says when, and the requester comes back then, if that is within the deadline; else the task ends at once.
#[test]
fn a_rate_limit_is_obeyed_within_the_deadline() {
    for (deadline_ms, waits) in [(10 * MINUTE, true), (MINUTE / 2, false)] {
        let permission = Permission {
            rate_per_min: Some(2),
            ..Permission::default()
        };
        let mut hall = Hall::with(2, permitted(permission, 0));
        hall.accepted(1);
        hall.now += 5_000;
        hall.accepted(1);
        let to = Route::Peer(hall.npub(1));
        let (task, step) = hall.ask(0, 1, to, deadline_ms);
        let step = hall.hand(0, 1, one(&step));
        let (code, retry_at) = declined(&step);
        assert_eq!(code, "rate_limited");
        let retry_at = retry_at.unwrap();
        assert_eq!(
            retry_at - hall.now,
            55_000,
            "when the oldest of two leaves the minute"
        );
        hall.hand(1, 0, one(&step));
        let job = hall.job(0, &task);
        assert_eq!(job.reason.as_ref().unwrap().code, "rate_limited");
        if !waits {
            assert_eq!((job.phase, job.state), (Phase::Ended, TaskState::Rejected));
            continue;
        }
        assert_eq!(job.phase, Phase::Placing);
        assert!(hall.nodes[0].wake_ms().is_some_and(|wake| wake <= retry_at));
        hall.now = retry_at - 1;
        assert!(letters(&hall.give(0, Input::Tick)).is_empty(), "not before");
        hall.now = retry_at;
        let again = one(&hall.give(0, Input::Tick));
        assert!(matches!(&again, Body::Request(award) if award.award_no == 2));
        let step = hall.hand(0, 1, again);
        let accept = letters(&step)
            .into_iter()
            .find(|(_, body)| matches!(body, Body::Accept(_)));
        hall.hand(1, 0, accept.expect("accepted this time").1);
        assert_eq!(hall.job(0, &task).phase, Phase::Working);
    }
}

/// When every known peer has said no for good, the owner hears it at once, with each one's reason.
#[test]
fn refused_by_all_is_rejected_at_once() {
    let mut hall = Hall::with(3, |at, policy| {
        policy.skills[0].unit_price_mc = if at == 2 { 10_000 } else { 1 };
    });
    hall.trust(1, 0, Tier::Stranger);
    let (task, step) = hall.ask(0, 8, pool(), 60 * MINUTE);
    let offer = one(&step);
    for at in [1, 2] {
        assert_eq!(hall.job(0, &task).phase, Phase::Placing);
        let decline = one(&hall.hand(0, at, offer.clone()));
        hall.hand(at, 0, decline);
    }
    let job = hall.job(0, &task);
    assert_eq!((job.phase, job.state), (Phase::Ended, TaskState::Rejected));
    assert_eq!(job.reason.as_ref().unwrap().code, "no_provider");
    let why = |at: usize| job.refusals[&hall.npub(at)].code.as_str();
    assert_eq!((why(1), why(2)), ("credit_required", "price_too_low"));
}

/// A lease runs out by time in which the requester was there to hear, and by no other.
#[test]
fn a_lease_expires_only_by_time_that_was_caught_up() {
    let mut hall = Hall::new(2);
    let (task, step) = hall.ask(0, 8, pool(), 600 * MINUTE);
    let bid = one(&hall.hand(0, 1, one(&step)));
    let award = one(&hall.hand(1, 0, bid));
    let accept = one(&hall.hand(0, 1, award));
    hall.hand(1, 0, accept);
    let ttl = hall.policies[0].lease_ttl_ms;
    let away: [&[Input]; 3] = [
        &[Input::Draining],
        &[Input::CaughtUp { online: false }],
        &[Input::Draining, Input::CaughtUp { online: false }],
    ];
    for inputs in away {
        for input in inputs {
            hall.give(0, input.clone());
        }
        for _ in 0..5 {
            let step = hall.wait(0, ttl);
            assert_eq!(journaled(&step, "lease_expired"), 0, "{inputs:?}");
        }
        let step = hall.give(0, Input::CaughtUp { online: true });
        assert_eq!(journaled(&step, "lease_expired"), 0, "{inputs:?}");
        assert_eq!(journaled(&hall.wait(0, ttl - 1), "lease_expired"), 0);
        let alive = Update {
            task: task.clone(),
            award_no: 1,
            news: News::Working {
                waiting: None,
                units_done: 1,
                units_total: 8,
            },
        };
        hall.hand(1, 0, Body::Update(Box::new(alive)));
    }
    assert_eq!(journaled(&hall.wait(0, ttl - 1), "lease_expired"), 0);
    assert_eq!(journaled(&hall.wait(0, 1), "lease_expired"), 1);
    let key = format!("{}/{task}/1", hall.npub(0));
    assert_eq!(hall.nodes[1].work()[&key].stage, Stage::Running);
}

/// An answer to an offer is not kept for a reply key that nobody reads any more: neither a bid that was awarded nor one on a task
/// that was withdrawn or canceled, and again at the receipt, should the node have died in between.
#[test]
fn an_answer_to_an_offer_ends_with_the_offer() {
    let moot = |hall: &Hall, step: &Step, task: &str| {
        let wanted = Effect::Moot {
            requester: hall.npub(0),
            task: task.to_owned(),
        };
        step.effects.iter().filter(|e| **e == wanted).count()
    };
    let mut hall = Hall::new(2);
    let (task, step) = hall.ask(0, 8, pool(), 60 * MINUTE);
    let step = hall.hand(0, 1, one(&step));
    assert_eq!(moot(&hall, &step, &task), 0, "it has just been said");
    let award = one(&hall.hand(1, 0, one(&step)));
    let step = hall.hand(0, 1, award);
    assert_eq!(moot(&hall, &step, &task), 1);
    hall.hand(1, 0, one(&step));
    let key = format!("{}/{task}/1", hall.npub(0));
    let result = one(&hall.finish(1, &key, 8));
    hall.hand(1, 0, result);
    let receipt = one(&hall.check(0, &task, 1, None));
    let step = hall.hand(0, 1, receipt);
    assert_eq!(moot(&hall, &step, &task), 1);

    let mut hall = Hall::new(2);
    let (task, step) = hall.ask(0, 8, pool(), 60 * MINUTE);
    hall.hand(0, 1, one(&step));
    let withdraw = one(&hall.give(0, Input::Cancel { task: task.clone() }));
    assert!(matches!(withdraw, Body::Withdraw(_)));
    let step = hall.hand(0, 1, withdraw);
    assert_eq!(moot(&hall, &step, &task), 1);

    let mut hall = Hall::new(2);
    let task = hall.accepted(8);
    let cancel = one(&hall.give(0, Input::Cancel { task: task.clone() }));
    let step = hall.hand(0, 1, cancel);
    assert_eq!(moot(&hall, &step, &task), 1);
}

/// An executor that gives the job up at its deadline leaves no time for another one, whose lock would stand until `settle_by`.
#[test]
fn nothing_is_awarded_after_the_deadline() {
    let mut hall = Hall::new(3);
    let (task, step) = hall.ask(0, 4, pool(), MINUTE);
    let offer = one(&step);
    let bids = [1, 2].map(|bidder| (bidder, one(&hall.hand(0, bidder, offer.clone()))));
    // With the second everybody has answered.
    let [_, last] = bids.map(|(bidder, bid)| hall.hand(bidder, 0, bid));
    let award = one(&last);
    let winner = match hall.job(0, &task).awards[0].executor == hall.npub(1) {
        true => 1,
        false => 2,
    };
    let accept = one(&hall.hand(0, winner, award));
    hall.hand(winner, 0, accept);
    let step = hall.wait(winner, MINUTE + 1);
    let stop = step
        .effects
        .iter()
        .any(|e| matches!(e, Effect::SoftStop { .. }));
    assert!(stop, "{step:?}");
    let key = format!("{}/{task}/1", hall.npub(0));
    let news = LaborNews::Stopped {
        units_done: 1,
        bytes: vec![1],
        executed: 1,
    };
    let failed = one(&hall.give(winner, Input::Labor { key, news }));
    let step = hall.hand(winner, 0, failed);
    let award = |(_, body): &(_, Body)| matches!(body, Body::Award(_));
    assert!(!letters(&step).iter().any(award), "{step:?}");
    let job = hall.job(0, &task);
    assert_eq!((job.state, job.awards.len()), (TaskState::Failed, 1));
    assert_eq!(job.reason.as_ref().unwrap().code, "deadline_passed");
    assert_eq!(hall.nodes[0].ledger().locks().count(), 0);
}
