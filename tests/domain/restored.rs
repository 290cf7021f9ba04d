//! A node that was restored, or copied: what it decides of each message, with nothing in between.

use legiond::domain::instances::Instances;
use legiond::domain::job::{Route, TaskState};
use legiond::domain::recovering::{LOST, Lineage, Recovery};
use legiond::domain::step::{Addressee, Effect, Input, Row, Step};
use legiond::wire::log::{Hello, LogEntries};
use legiond::wire::message::Body;

use super::pair::{Hall, dropped, journaled, letters};

const ME: &str = "00000000000000000000000000000001";
const OTHER: &str = "00000000000000000000000000000002";

fn hello(hall: &mut Hall, instance: &str, epoch: u32, answers: Option<&str>) -> Step {
    let me = hall.npub(0);
    let hello = Hello {
        instance: instance.to_owned(),
        epoch,
        answers: answers.map(str::to_owned),
    };
    hall.hand_as(&me, 0, Body::Hello(hello), None)
}

fn named() -> Hall {
    let mut hall = Hall::new(2);
    let mut instances = Instances::default();
    for name in ["0000000000000000000000000000000a", ME] {
        instances.start(name.to_owned(), false);
    }
    hall.nodes[0].recall(Row::Instances(instances));
    hall
}

#[test]
fn only_an_answer_to_its_own_name_shows_a_node_that_another_one_runs() {
    let mut hall = named();
    // What a relay may repeat: our own words, those of earlier starts, and those of a copy that ran once.
    for old in [ME, "0000000000000000000000000000000a"] {
        let step = hello(&mut hall, old, 0, None);
        assert!(step.effects.is_empty() && step.changes.is_empty());
        let step = hello(&mut hall, old, 0, Some(ME));
        assert!(step.effects.is_empty() && step.changes.is_empty());
    }
    let step = hello(&mut hall, OTHER, 0, None);
    assert!(hall.nodes[0].instances().elsewhere.is_none());
    let said = letters(&step);
    let [(Addressee::Peer(to), Body::Hello(answer))] = said.as_slice() else {
        panic!("{said:?}")
    };
    assert_eq!(
        (to, answer.answers.as_deref()),
        (&hall.npub(0), Some(OTHER))
    );
    // A flood of names is answered now and then.
    let many: usize = (10..60)
        .map(|n| letters(&hello(&mut hall, &format!("{n:032}"), 0, None)).len())
        .sum();
    assert_eq!(many, 0);
    hello(&mut hall, OTHER, 0, Some(&format!("{:032}", 77)));
    assert!(
        hall.nodes[0].instances().elsewhere.is_none(),
        "it answers somebody else"
    );
    let step = hello(&mut hall, OTHER, 0, Some(ME));
    assert_eq!(journaled(&step, "identity_in_use_elsewhere"), 1);
    assert_eq!(
        hall.nodes[0]
            .instances()
            .elsewhere
            .as_ref()
            .unwrap()
            .instance,
        OTHER
    );
    // Nobody else can say so.
    let mut hall = named();
    let stranger = hall.npub(1);
    let hello = Hello {
        instance: OTHER.to_owned(),
        epoch: 9,
        answers: Some(ME.to_owned()),
    };
    let step = hall.hand_as(&stranger, 0, Body::Hello(hello), None);
    assert_eq!(dropped(&step), ["hello_foreign"]);
    assert!(hall.nodes[0].instances().elsewhere.is_none());
}

#[test]
fn of_two_epochs_the_lower_one_stops() {
    let mut hall = named();
    hello(&mut hall, OTHER, 1, None);
    assert_eq!(
        hall.nodes[0].instances().elsewhere.as_ref().unwrap().epoch,
        1
    );
    let refused = |hall: &mut Hall| {
        let ask = crate::sim::world::ask(1, Route::Own, 60_000, 5);
        let step = hall.give(0, Input::Ask(Box::new(ask)));
        step.effects
            .iter()
            .any(|e| matches!(e, Effect::Asked(Err(r)) if r.code == "identity_in_use_elsewhere"))
    };
    assert!(refused(&mut hall));
    let mut hall = Hall::with(2, |at, policy| {
        policy.binding.statement.epoch = if at == 0 { 2 } else { 0 };
    });
    let mut instances = Instances::default();
    instances.start(ME.to_owned(), false);
    hall.nodes[0].recall(Row::Instances(instances));
    hello(&mut hall, OTHER, 1, Some(ME));
    assert!(
        hall.nodes[0].instances().elsewhere.is_none(),
        "the higher one goes on"
    );
    assert!(!refused(&mut hall));
}

/// Keys raised above what was heard of: whoever that was stops alone, whether it still runs or not.
#[test]
fn what_was_heard_of_an_earlier_epoch_stops_nobody_for_ever() {
    let mut hall = named();
    hello(&mut hall, OTHER, 1, None);
    let heard = hall.nodes[0].instances().clone();
    for (epoch, stopped) in [(0, true), (1, true), (2, false)] {
        let mut hall = Hall::with(2, |at, policy| {
            policy.binding.statement.epoch = if at == 0 { epoch } else { 0 };
        });
        hall.nodes[0].recall(Row::Instances(heard.clone()));
        assert_eq!(hall.nodes[0].elsewhere().is_some(), stopped);
        let ask = crate::sim::world::ask(1, Route::Own, 60_000, 5);
        let step = hall.give(0, Input::Ask(Box::new(ask)));
        let refused = |e: &Effect| matches!(e, Effect::Asked(Err(_)));
        assert_eq!(step.effects.iter().any(refused), stopped, "{epoch}");
    }
}

pub(crate) fn restored(hall: &mut Hall) -> Step {
    hall.nodes[0].recall(Row::Lineage(Lineage::restored(hall.now, Vec::new())));
    hall.nodes[0].recall(Row::Recovery(Box::new(Recovery {
        since_ms: hall.now,
        restored_ms: hall.now,
        open: true,
        ..Recovery::default()
    })));
    hall.give(0, Input::Started)
}

fn page(hall: &mut Hall, cursor: &str, next: Option<&str>) -> Step {
    let page = LogEntries {
        restored_ms: hall.now,
        cursor: cursor.to_owned(),
        awards: Vec::new(),
        next: next.map(str::to_owned),
        binding: hall.policies[1].binding.clone(),
    };
    hall.hand(1, 0, Body::Entries(Box::new(page)))
}

#[test]
fn a_restored_node_says_nothing_but_its_questions() {
    let mut hall = Hall::new(2);
    let (task, _) = hall.ask(0, 4, Route::Pool("legion".into()), 600_000);
    let (directed, _) = hall.directed(3);
    let step = restored(&mut hall);
    let said = letters(&step);
    assert!(said.iter().all(|(_, body)| body.is_log()), "{said:?}");
    assert_eq!(said.len(), 1, "the one peer is asked");
    // Time, messages and commands change nothing of that.
    let step = hall.give(0, Input::CaughtUp { online: true });
    assert!(letters(&step).is_empty());
    let step = hall.give(0, Input::Announce);
    assert!(letters(&step).is_empty());
    let (_, body) = (0, hall.meet(0, 1));
    assert_eq!(dropped(&body), ["held_back"]);
    let step = hall.give(0, Input::Cancel { task: task.clone() });
    let refused = |e: &Effect| matches!(e, Effect::Done(Err(r)) if r.code == "recovering");
    assert!(step.effects.iter().any(refused) && letters(&step).is_empty());
    hall.now += 21_000;
    let step = hall.give(0, Input::Tick);
    let said = letters(&step);
    assert!(
        said.len() == 1 && said[0].1.is_log(),
        "asked again: {said:?}"
    );
    hall.now -= 21_000;

    // Of several pages only those count that were asked for; with the last, what nobody confirms is given up.
    assert_eq!(dropped(&page(&mut hall, "t:00:0", None)), ["log_unasked"]);
    let step = page(&mut hall, "", Some("l:00:0"));
    assert!(
        matches!(letters(&step).as_slice(), [(_, Body::Since(since))] if since.cursor == "l:00:0")
    );
    assert_eq!(
        dropped(&page(&mut hall, "", Some("l:00:0"))),
        ["log_unasked"]
    );
    // It asks by name for what the pages did not tell.
    let step = page(&mut hall, "l:00:0", None);
    assert!(
        matches!(letters(&step).as_slice(), [(_, Body::Since(since))] if since.again.len() == 1)
    );
    let step = page(&mut hall, "named", None);
    assert_eq!(journaled(&step, "recovered"), 1);
    assert!(hall.nodes[0].recovery().is_none());
    for lost in [&task, &directed] {
        let job = hall.job(0, lost);
        assert_eq!(
            (job.state, job.reason.as_ref().unwrap().code.as_str()),
            (TaskState::Failed, LOST)
        );
    }
    let said = letters(&step);
    assert!(
        !said
            .iter()
            .any(|(_, b)| matches!(b, Body::Award(_) | Body::Request(_) | Body::Offer(_))),
        "{said:?}"
    );
    let (_, step) = hall.directed(1);
    let Body::Request(award) = step else {
        panic!("{step:?}")
    };
    assert!(
        award.entry.seq > 1_000_000,
        "numbers begin above all that may be forgotten"
    );
}

#[test]
fn an_old_award_that_a_relay_still_has_is_not_taken_again() {
    use legiond::domain::Node;
    use legiond::domain::peer::Tier;
    use legiond::wire::log::{AwardLog, Named};

    for accepted in [true, false] {
        let mut hall = Hall::new(2);
        let (task, request) = hall.directed(3);
        let Body::Request(award) = request.clone() else {
            panic!("{request:?}")
        };
        let mut entries = vec![award.entry.clone()];
        if accepted {
            let step = hall.hand(0, 1, request.clone());
            let accept = super::pair::one(&step);
            entries.extend(accept.entry().cloned());
        }
        // The executor is lost, and restored from a time before it knew the task.
        hall.nodes[1] = Node::new(hall.policies[1].clone());
        hall.trust(1, 0, Tier::Trusted);
        hall.meet(1, 0);
        let restored_ms = hall.now;
        hall.nodes[1].recall(Row::Lineage(Lineage::restored(hall.now, Vec::new())));
        hall.nodes[1].recall(Row::Recovery(Box::new(Recovery {
            since_ms: hall.now,
            restored_ms,
            open: true,
            ..Recovery::default()
        })));
        hall.give(1, Input::Started);
        hall.give(1, Input::CaughtUp { online: true });
        let log = AwardLog {
            award: Named {
                requester: hall.npub(0),
                task: task.clone(),
                award_no: 1,
            },
            entries,
            terms: None,
            proof: None,
            evidence: None,
            open: true,
            withdrawn: false,
            settle_by_ms: award.settle_by_ms,
            unit_price_mc: 0,
        };
        let page = LogEntries {
            restored_ms,
            cursor: String::new(),
            awards: vec![log],
            next: None,
            binding: hall.policies[0].binding.clone(),
        };
        let step = hall.hand(0, 1, Body::Entries(Box::new(page)));
        assert_eq!(journaled(&step, "recovered"), 1);
        let said = letters(&step);
        let given_back = |body: &Body| match body {
            Body::Decline(decline) => decline.code == LOST && decline.award_no == 1,
            Body::Update(_) => accepted,
            _ => false,
        };
        assert!(said.len() == 1 && given_back(&said[0].1), "{said:?}");
        assert!(said[0].1.entry().unwrap().seq > 1_000_000);
        hall.give(1, Input::CaughtUp { online: true });
        let step = hall.hand(0, 1, request);
        assert_eq!(dropped(&step), ["award_superseded"], "{accepted}");
        assert!(letters(&step).is_empty());
    }
}

#[test]
fn a_refusal_is_judged_anew_by_its_evidence() {
    use legiond::wire::entry::Act;
    use legiond::wire::log::{AwardLog, Named};

    for known in [true, false] {
        let mut hall = Hall::new(2);
        let (task, refusal) = hall.judged(3, Some(super::pair::fault("unit_mismatch")));
        let Body::Refusal(refusal) = refusal else {
            panic!("{refusal:?}")
        };
        let key = format!("{}/{task}/1", hall.npub(0));
        let work = hall.nodes[1].work()[&key].clone();
        let completed = hall.job(0, &task).outcome.clone().unwrap().proof;
        assert!(matches!(refusal.entry.what, Act::Refused { .. }));
        // The executor's backup holds the finished work; what it heard of the refusal is lost.
        hall.nodes[1].recall(Row::Recovery(Box::new(Recovery {
            since_ms: hall.now,
            restored_ms: hall.now,
            open: true,
            ..Recovery::default()
        })));
        hall.give(1, Input::Started);
        let mut entry = refusal.entry.clone();
        entry.seq = 1;
        let mut done = entry.clone();
        (done.author, done.key) = (hall.npub(1), hall.policies[1].key.clone());
        (done.seq, done.what) = (
            900,
            Act::Completed {
                award_no: 1,
                proof: completed.hash().unwrap(),
            },
        );
        entry.seq = refusal.entry.seq;
        let log = AwardLog {
            award: Named {
                requester: hall.npub(0),
                task: task.clone(),
                award_no: 1,
            },
            entries: vec![done, entry],
            terms: None,
            proof: None,
            evidence: known.then(|| refusal.evidence.clone()),
            open: false,
            withdrawn: false,
            settle_by_ms: work.settle_by_ms,
            unit_price_mc: 1,
        };
        let page = LogEntries {
            restored_ms: hall.now,
            cursor: String::new(),
            awards: vec![log],
            next: None,
            binding: hall.policies[0].binding.clone(),
        };
        let step = hall.hand(0, 1, Body::Entries(Box::new(page)));
        let judged = |e: &Effect| matches!(e, Effect::CheckEvidence { .. });
        assert_eq!(step.effects.iter().any(judged), known, "{step:?}");
    }
}

/// The requester forgot; the executor says that it was stopped, which nobody asked it to: nothing is owed for that.
#[test]
fn a_stop_that_nobody_asked_for_is_not_paid_after_a_restoration() {
    use legiond::domain::Node;
    use legiond::domain::peer::Tier;
    use legiond::wire::entry::Act;
    use legiond::wire::log::{AwardLog, Named};

    for known in [true, false] {
        let mut hall = Hall::with(2, |_, policy| policy.on_cancel = "units".into());
        let (task, request) = hall.directed(5);
        let Body::Request(award) = request.clone() else {
            panic!("{request:?}")
        };
        let accept = super::pair::one(&hall.hand(0, 1, request));
        hall.hand(1, 0, accept.clone());
        if !known {
            hall.nodes[0] = Node::new(hall.policies[0].clone());
            hall.trust(0, 1, Tier::Trusted);
            hall.meet(0, 1);
        }
        restored(&mut hall);
        let accepted = accept.entry().unwrap().clone();
        let mut stopped = accepted.clone();
        (stopped.seq, stopped.what) = (
            900,
            Act::Stopped {
                award_no: 1,
                useful_units: 5,
                hops: Vec::new(),
            },
        );
        let mut terms = award.terms();
        terms.unit_price_mc = award.unit_price_mc;
        let log = AwardLog {
            award: Named {
                requester: hall.npub(0),
                task: task.clone(),
                award_no: 1,
            },
            entries: vec![award.entry.clone(), accepted, stopped],
            terms: Some(terms),
            proof: None,
            evidence: None,
            open: true,
            withdrawn: false,
            settle_by_ms: award.settle_by_ms,
            unit_price_mc: 1,
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
        let paid = |body: &Body| matches!(body, Body::Receipt(_));
        assert!(!letters(&step).iter().any(|(_, b)| paid(b)), "{known}");
        let account = hall.nodes[0].ledger().account(&hall.npub(1));
        assert_eq!(account.posted_mc, 0, "known: {known}");
        assert!(hall.nodes[0].ledger().locks().next().is_none(), "{known}");
    }
}

/// Whoever is owed a result once more gets it once more, and not as often as it asks.
#[test]
fn a_result_is_not_sent_as_often_as_it_is_asked_for() {
    use legiond::wire::log::{LogSince, NAMED_ONLY, Named};

    let mut hall = Hall::new(2);
    let (task, _) = hall.done(3);
    let ask = |hall: &mut Hall| {
        let since = LogSince {
            since_ms: hall.now,
            restored_ms: hall.now,
            cursor: NAMED_ONLY.to_owned(),
            again: vec![Named {
                requester: hall.npub(0),
                task: task.clone(),
                award_no: 1,
            }],
            binding: hall.policies[0].binding.clone(),
        };
        let step = hall.hand(0, 1, Body::Since(Box::new(since)));
        let again = |e: &&Effect| matches!(e, Effect::ResultAgain(_));
        step.effects.iter().filter(again).count()
    };
    let sent: usize = (0..50).map(|_| ask(&mut hall)).sum();
    assert_eq!(sent, 1);
    hall.now += 3_600_000;
    assert_eq!(ask(&mut hall), 1, "a second restoration asks anew");
    hall.now += 60_000;
    assert_eq!(ask(&mut hall), 0);
}

/// A counterparty may name any number of awards that were never made: what is remembered of them has an end.
#[test]
fn awards_that_nobody_took_do_not_fill_a_restored_node() {
    use legiond::wire::entry::Act;
    use legiond::wire::log::{AwardLog, Named};

    let mut hall = Hall::new(2);
    let (_, request) = hall.directed(3);
    let Body::Request(award) = request else {
        panic!("{request:?}")
    };
    // Node 0 is restored; node 1 invents awards of its own to it.
    restored(&mut hall);
    let restored_ms = hall.now;
    let (mut kept, mut cursor) = (0usize, String::new());
    for page in 0..320u32 {
        let awards = (0..64).map(|at| {
            let task = format!("{:032x}", page * 64 + at + 1);
            let mut entry = award.entry.clone();
            (entry.author, entry.key) = (hall.npub(1), hall.policies[1].key.clone());
            (entry.requester, entry.task) = (hall.npub(1), task.clone());
            entry.what = Act::Awarded {
                award_no: 1,
                executor: hall.npub(0),
                terms: "0".repeat(64),
            };
            AwardLog {
                award: Named {
                    requester: hall.npub(1),
                    task,
                    award_no: 1,
                },
                entries: vec![entry],
                terms: None,
                proof: None,
                evidence: None,
                open: false,
                withdrawn: false,
                settle_by_ms: award.settle_by_ms,
                unit_price_mc: 0,
            }
        });
        let next = format!("l:{page:04}:0");
        let page = LogEntries {
            restored_ms,
            cursor: cursor.clone(),
            awards: awards.collect(),
            next: Some(next.clone()),
            binding: hall.policies[1].binding.clone(),
        };
        let step = hall.hand(1, 0, Body::Entries(Box::new(page)));
        cursor = next;
        let row = |c: &&legiond::domain::step::Change| {
            matches!(c, legiond::domain::step::Change::Put(Row::Engagement(_)))
        };
        kept += step.changes.iter().filter(row).count();
    }
    assert!(kept > 1_000, "they are remembered: {kept}");
    assert!(kept < 17_000, "{kept}");
}

/// The executor forgot that it was stopped. Where the award said that a cancel costs nothing nothing is claimed, and nobody is in dispute.
#[test]
fn a_stop_that_costs_nothing_is_not_claimed_after_a_restoration() {
    use legiond::domain::Node;
    use legiond::domain::engagement::Stage;
    use legiond::domain::peer::Tier;
    use legiond::domain::step::LaborNews;
    use legiond::wire::log::{AwardLog, Named};

    use super::pair::one;

    for (on_cancel, known, paid_mc) in [
        ("free", true, None),
        ("free", false, None),
        ("units", true, None),
        ("units", false, None),
        // Less than what is known to be owed settles nothing.
        ("units", true, Some(1)),
        ("units", true, Some(2)),
        ("units", false, Some(2)),
    ] {
        let mut hall = Hall::with(2, |_, policy| policy.on_cancel = on_cancel.into());
        let (task, request) = hall.directed(5);
        let Body::Request(award) = request.clone() else {
            panic!("{request:?}")
        };
        let accept = one(&hall.hand(0, 1, request));
        hall.hand(1, 0, accept.clone());
        let key = format!("{}/{task}/1", hall.npub(0));
        let saved = hall.nodes[1].work()[&key].clone();
        let cancel = one(&hall.give(0, Input::Cancel { task: task.clone() }));
        hall.hand(0, 1, cancel.clone());
        let news = LaborNews::Stopped {
            units_done: 2,
            bytes: vec![1],
            executed: 2,
        };
        let name = key.clone();
        let stopped = one(&hall.give(1, Input::Labor { key: name, news }));
        let owed = on_cancel == "units" && paid_mc != Some(2);
        hall.nodes[1] = Node::new(hall.policies[1].clone());
        hall.trust(1, 0, Tier::Trusted);
        hall.meet(1, 0);
        if known {
            hall.nodes[1].recall(Row::Engagement(Box::new(saved)));
        }
        hall.nodes[1].recall(Row::Lineage(Lineage::restored(hall.now, Vec::new())));
        hall.nodes[1].recall(Row::Recovery(Box::new(Recovery {
            since_ms: hall.now,
            restored_ms: hall.now,
            open: true,
            ..Recovery::default()
        })));
        hall.give(1, Input::Started);
        let entries = [&accept, &cancel, &stopped].map(|body| body.entry().unwrap().clone());
        let paid = paid_mc.map(|cost_mc| {
            let mut entry = cancel.entry().unwrap().clone();
            entry.seq += 1;
            entry.what = legiond::wire::entry::Act::Paid {
                award_no: 1,
                cost_mc,
                proof: String::new(),
                quality_bp: None,
            };
            entry
        });
        let log = AwardLog {
            award: Named {
                requester: hall.npub(0),
                task,
                award_no: 1,
            },
            entries: [vec![award.entry.clone()], entries.to_vec()]
                .concat()
                .into_iter()
                .chain(paid)
                .collect(),
            terms: None,
            proof: None,
            evidence: None,
            // What it owes it has not paid yet; what it does not owe is over.
            open: owed,
            withdrawn: false,
            settle_by_ms: award.settle_by_ms,
            unit_price_mc: 1,
        };
        let page = LogEntries {
            restored_ms: hall.now,
            cursor: String::new(),
            awards: vec![log],
            next: None,
            binding: hall.policies[0].binding.clone(),
        };
        let step = hall.hand(0, 1, Body::Entries(Box::new(page)));
        assert_eq!(journaled(&step, "adopted"), 1, "{step:?}");
        let work = &hall.nodes[1].work()[&key];
        let case = format!("{on_cancel} {known} {paid_mc:?}");
        let wanted = if owed { Stage::Finished } else { Stage::Ended };
        assert_eq!(work.stage, wanted, "{case}");
        if owed {
            assert_eq!(work.claim_mc(), 2, "{case}");
        }
        let locks = hall.nodes[1].ledger().locks().count();
        assert_eq!(locks, usize::from(owed), "{case}");
        let account = hall.nodes[1].ledger().account(&hall.npub(0));
        let posted_mc = if paid_mc == Some(2) { 2 } else { 0 };
        assert_eq!(account.posted_mc, posted_mc, "{case}");
    }
}

/// The executor forgot a job of which it had delegated a part: that its price has hops is no fault that a refusal could name.
#[test]
fn hops_of_a_forgotten_job_are_no_miscount() {
    use legiond::domain::Node;
    use legiond::domain::engagement::Stage;
    use legiond::domain::peer::Tier;
    use legiond::wire::entry::Act;
    use legiond::wire::log::{AwardLog, Named};
    use legiond::wire::message::{News, Refusal};

    use super::hops::{BUDGET_MC, UNITS, answered};
    use super::pair::one;

    let mut hall = Hall::with(3, |at, policy| {
        policy.skills[0].hop_budget_mc = if at == 1 { BUDGET_MC } else { 0 };
    });
    let (key, ..) = answered(&mut hall);
    let before = hall.nodes[1].work()[&key].clone();
    let Body::Update(update) = one(&hall.finish(1, &key, UNITS)) else {
        panic!("a result")
    };
    let News::Completed(result) = &update.news else {
        panic!("{update:?}")
    };
    assert_eq!(result.proof.hops.len(), 1);
    let mut accepted = result.entry.clone();
    (accepted.seq, accepted.what) = (
        1,
        Act::Accepted {
            award_no: 1,
            total_mc: before.total_mc,
        },
    );
    hall.nodes[1] = Node::new(hall.policies[1].clone());
    hall.trust(1, 0, Tier::Trusted);
    hall.meet(1, 0);
    hall.nodes[1].recall(Row::Recovery(Box::new(Recovery {
        since_ms: hall.now,
        restored_ms: hall.now,
        open: true,
        ..Recovery::default()
    })));
    hall.give(1, Input::Started);
    let log = AwardLog {
        award: Named {
            requester: hall.npub(0),
            task: before.task.clone(),
            award_no: 1,
        },
        entries: vec![accepted, result.entry.clone()],
        terms: None,
        proof: Some(result.proof.clone()),
        evidence: None,
        open: true,
        withdrawn: false,
        settle_by_ms: before.settle_by_ms,
        unit_price_mc: before.unit_price_mc,
    };
    let page = LogEntries {
        restored_ms: hall.now,
        cursor: String::new(),
        awards: vec![log],
        next: None,
        binding: hall.policies[0].binding.clone(),
    };
    hall.hand(0, 1, Body::Entries(Box::new(page)));
    assert_eq!(hall.nodes[1].work()[&key].stage, Stage::Finished);
    hall.give(1, Input::CaughtUp { online: true });
    let evidence = super::pair::fault("cost_mismatch");
    let mut entry = result.entry.clone();
    (entry.author, entry.key, entry.seq) = (hall.npub(0), hall.policies[0].key.clone(), 7);
    entry.what = Act::Refused {
        award_no: 1,
        proof: result.proof.hash().unwrap(),
        evidence: evidence.hash().unwrap(),
        code: evidence.code.clone(),
    };
    let refusal = Refusal {
        task: before.task,
        award_no: 1,
        evidence,
        entry,
    };
    hall.hand(0, 1, Body::Refusal(Box::new(refusal)));
    assert_eq!(hall.nodes[1].work()[&key].stage, Stage::Disputed);
}
