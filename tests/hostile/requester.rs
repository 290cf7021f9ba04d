//! A hostile requester against a node that works: bad input, awards beyond credit, false receipts and refusals.

use legiond::wire::entry::Act;
use legiond::wire::market::{Award, Withdraw};
use legiond::wire::message::{Body, Cancel};
use legiond::wire::proof::Evidence;
use serde_json::{Value, json};

use super::Target;
use crate::support::stranger::{Stranger, key_of, now_ms, picture, refused, task_id, tiny};
use crate::support::world::until;

fn evidence(code: &str) -> Evidence {
    Evidence {
        code: code.into(),
        unit: Some(0),
        expected: "AAAA".into(),
        received: "BBBB".into(),
    }
}

/// Sends a request and gives its task.
fn request(eve: &mut Stranger, to: &str, input: Value, change: impl FnOnce(&mut Award)) -> String {
    let task = task_id();
    let award = eve.award(to, &task, input, change);
    eve.say(to, Body::Request(Box::new(award)));
    task
}

#[test]
fn input_against_the_schema_and_impossible_terms_are_declined_with_the_reason() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.trusted(100);
    let hex = key_of(node);
    let image = picture(node);
    let with = |field: &str, value: Value| {
        let mut input = tiny();
        input[field] = value;
        input
    };
    let inputs = [
        json!(null),
        json!({}),
        json!("simulation"),
        with("spot", json!("NaN")),
        with("spot", json!(-1.0)),
        with("spot", json!(1e308)),
        with("spot", json!(null)),
        with("volatility", json!(-0.1)),
        with("rate", json!("Infinity")),
        with("paths", json!(-1)),
        with("paths", json!(0)),
        with("paths", json!((1u64 << 53) - 1)),
        with("steps", json!(1_000_000_000)),
        with("seed", json!("-1")),
        with("seed", json!("18446744073709551616")),
        with("kind", json!("lottery")),
        with("shell", json!("rm -rf /")),
    ];
    for input in inputs {
        let task = request(&mut eve, &hex, input.clone(), |_| {});
        assert_eq!(eve.hear_decline(&task), "input_invalid", "{input}");
    }
    // The reason quotes the input: it stays short enough to arrive.
    let task = request(&mut eve, &hex, json!({"x".repeat(18_000): 1}), |_| {});
    assert_eq!(eve.hear_decline(&task), "input_invalid");
    // Beyond 2^53 nothing can be committed to.
    for paths in [1u64 << 53, u64::MAX] {
        let task = request(&mut eve, &hex, with("paths", json!(paths)), |_| {});
        assert_eq!(eve.hear_decline(&task), "commitment_mismatch");
    }
    type Change = fn(&mut Award);
    let terms: [(&str, Change); 9] = [
        ("skill_unknown", |a| a.skill = "burglary".into()),
        ("units_mismatch", |a| a.units = 5),
        ("commitment_mismatch", |a| a.salt = "00".into()),
        ("price_too_low", |a| a.max_price_mc = 0),
        ("price_too_low", |a| a.unit_price_mc = Some(0)),
        ("award_expired", |a| a.accept_by_ms = now_ms() - 1),
        ("award_expired", |a| a.accept_by_ms = 0),
        ("terms_invalid", |a| a.settle_by_ms = a.result_by_ms - 1),
        ("price_too_low", |a| {
            a.unit_price_mc = Some(1 << 52);
            a.max_price_mc = 1 << 40;
        }),
    ];
    for (code, change) in terms {
        let task = request(&mut eve, &hex, tiny(), change);
        assert_eq!(eve.hear_decline(&task), code);
    }
    let rich = request(&mut eve, &hex, tiny(), |a| {
        a.unit_price_mc = Some(1 << 40);
        a.max_price_mc = 1 << 41;
    });
    assert_eq!(eve.hear_decline(&rich), "price_limit");
    eve.fence(&hex);
    assert_eq!(picture(node), image);
    // Nobody that the owner has not admitted has credit.
    let mut nobody = target.stranger();
    let task = request(&mut nobody, &hex, tiny(), |_| {});
    assert_eq!(nobody.hear_decline(&task), "credit_required");
}

#[test]
fn awards_that_race_each_other_never_pass_the_credit_granted() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.trusted(5);
    let hex = key_of(node);
    let tasks: Vec<String> = (0..16)
        .map(|_| request(&mut eve, &hex, tiny(), |_| {}))
        .collect();
    let (mut accepted, mut declined) = (0, 0);
    for _ in &tasks {
        let code = eve.hear("an answer", |h| match &h.body {
            Body::Accept(_) => Some(None),
            Body::Decline(d) => Some(Some(d.code.clone())),
            _ => None,
        });
        match code {
            None => accepted += 1,
            Some(code) => {
                assert_eq!(code, "credit_exhausted");
                declined += 1;
            }
        }
    }
    assert_eq!((accepted, declined), (5, 11));
    let account = target.account(&eve);
    assert_eq!(account["pending_owed_to_us_mc"], 5);
    assert_eq!(account["available_mc"], 0);
    // Paying makes it a debt, which is credit used all the same.
    let done = eve.hear("a result", |h| match &h.body {
        Body::Update(u) => match &u.news {
            legiond::wire::message::News::Completed(r) => Some(r.proof.clone()),
            _ => None,
        },
        _ => None,
    });
    let receipt = eve.receipt(&done.task, 1, 1, done.hash().unwrap());
    eve.say(&hex, receipt);
    until("the debt", || {
        (target.account(&eve)["posted_mc"] == 1).then_some(())
    });
    let task = request(&mut eve, &hex, tiny(), |_| {});
    assert_eq!(eve.hear_decline(&task), "credit_exhausted");
}

#[test]
fn receipts_and_refusals_for_other_work_move_nothing() {
    let target = Target::start();
    let node = &target.node;
    let (mut eve, mut mallory) = (target.trusted(100), target.trusted(100));
    let hex = key_of(node);
    let task = request(&mut eve, &hex, tiny(), |_| {});
    let other = request(&mut eve, &hex, tiny(), |_| {});
    let (proof, second) = (eve.hear_result(&task).proof, eve.hear_result(&other).proof);
    let (hash, wrong) = (proof.hash().unwrap(), second.hash().unwrap());
    // Mallory has a bound key too, and work of its own.
    let own = request(&mut mallory, &hex, tiny(), |_| {});
    mallory.hear_result(&own);

    refused(node, &mut eve, "receipt_mismatch", 1, |eve| {
        let body = eve.receipt(&task, 1, 1, wrong.clone());
        eve.say(&hex, body);
    });
    refused(node, &mut eve, "engagement_unknown", 3, |eve| {
        for body in [
            eve.receipt(&task, 2, 1, hash.clone()),
            eve.receipt(&task_id(), 1, 1, hash.clone()),
            eve.refusal(&task, 9, hash.clone(), evidence("unit_mismatch")),
        ] {
            eve.say(&hex, body);
        }
    });
    refused(node, &mut mallory, "engagement_unknown", 2, |mallory| {
        let body = mallory.receipt(&task, 1, 1, hash.clone());
        mallory.say(&hex, body);
        let body = mallory.refusal(&task, 1, hash.clone(), evidence("unit_mismatch"));
        mallory.say(&hex, body);
    });
    refused(node, &mut eve, "entry_mismatch", 3, |eve| {
        let Body::Refusal(mut refusal) =
            eve.refusal(&task, 1, hash.clone(), evidence("unit_mismatch"))
        else {
            panic!("no refusal")
        };
        refusal.evidence.received = "CCCC".into();
        eve.say(&hex, Body::Refusal(refusal));
        let body = eve.refusal(&task, 1, wrong.clone(), evidence("unit_mismatch"));
        eve.say(&hex, body);
        let Body::Receipt(mut receipt) = eve.receipt(&task, 1, 1, hash.clone()) else {
            panic!("no receipt")
        };
        let me = eve.hex();
        receipt.entry = eve.entry(&me, &task, Act::Canceled);
        eve.say(&hex, Body::Receipt(receipt));
    });
    // A receipt of Eve's that Mallory got hold of is Eve's alone to send.
    let mut copied = eve.receipt(&task, 1, 1, hash.clone());
    refused(node, &mut mallory, "engagement_unknown", 1, |mallory| {
        mallory.say(&hex, copied.clone());
    });
    // An entry of one task does not pay another.
    if let Body::Receipt(receipt) = &mut copied {
        receipt.task = other.clone();
    }
    refused(node, &mut eve, "receipt_mismatch", 1, |eve| {
        eve.say(&hex, copied.clone());
    });

    // Nothing of this was in the way of the true one, which pays once.
    let paid = eve.receipt(&task, 1, 1, hash);
    for _ in 0..3 {
        eve.say(&hex, paid.clone());
    }
    until("the receipt", || {
        (target.account(&eve)["posted_mc"] == 1).then_some(())
    });
    eve.fence(&hex);
    let commits = node.ok(&["ledger"])["transfers"].clone();
    let commits = commits
        .as_array()
        .unwrap()
        .iter()
        .filter(|t| t["kind"] == "commit" && t["task"] == task.as_str());
    assert_eq!(commits.count(), 1);
}

#[test]
fn nobody_cancels_withdraws_or_pays_the_work_of_another() {
    let target = Target::start();
    let node = &target.node;
    let (mut eve, mut mallory) = (target.trusted(100), target.trusted(100));
    let hex = key_of(node);
    // Mallory is known here, key and all.
    let known = request(&mut mallory, &hex, tiny(), |_| {});
    mallory.hear_result(&known);
    node.ok(&["pause", "--now"]);
    let task = request(&mut eve, &hex, tiny(), |_| {});
    eve.hear("the acceptance", |h| {
        matches!(&h.body, Body::Accept(_)).then_some(())
    });
    refused(node, &mut eve, "receipt_early", 1, |eve| {
        let body = eve.receipt(&task, 1, 1, String::new());
        eve.say(&hex, body);
    });
    refused(node, &mut eve, "refusal_early", 1, |eve| {
        let body = eve.refusal(&task, 1, String::new(), evidence("unverified"));
        eve.say(&hex, body);
    });
    refused(node, &mut mallory, "entry_mismatch", 1, |mallory| {
        let victim = eve.hex();
        let entry = mallory.entry(&victim, &task, Act::Canceled);
        mallory.say(
            &hex,
            Body::Cancel(Box::new(Cancel {
                task: task.clone(),
                entry,
            })),
        );
    });
    refused(node, &mut mallory, "duplicate", 0, |mallory| {
        let me = mallory.hex();
        let entry = mallory.entry(&me, &task, Act::Canceled);
        mallory.say(
            &hex,
            Body::Cancel(Box::new(Cancel {
                task: task.clone(),
                entry,
            })),
        );
        mallory.say(
            &hex,
            Body::Withdraw(Withdraw {
                task: task.clone(),
                below_award_no: u32::MAX,
            }),
        );
    });
    // The same award in a new rumor, and an older one, change nothing.
    refused(node, &mut eve, "award_superseded", 1, |eve| {
        let award = eve.award(&hex, &task, tiny(), |_| {});
        eve.say(&hex, Body::Request(Box::new(award)));
    });
    node.ok(&["resume"]);
    let proof = eve.hear_result(&task).proof;
    let body = eve.receipt(&task, 1, 1, proof.hash().unwrap());
    eve.say(&hex, body);
    until("the receipt", || {
        (target.account(&eve)["posted_mc"] == 1).then_some(())
    });
}

#[test]
fn a_refusal_with_false_evidence_is_a_dispute_and_ends_the_credit() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.trusted(100);
    let hex = key_of(node);
    let codes = [
        "unit_mismatch",
        "aggregate_mismatch",
        "cost_mismatch",
        "result_late",
        "unverified",
        "i_do_not_like_it",
    ];
    let mut last = None;
    for (at, code) in codes.iter().enumerate() {
        let task = request(&mut eve, &hex, tiny(), |_| {});
        let proof = eve.hear_result(&task).proof.hash().unwrap();
        let body = eve.refusal(&task, 1, proof.clone(), evidence(code));
        eve.say(&hex, body);
        until(code, || {
            (node.call("node/status", json!({}))["result"]["work"]["disputed"] == 1).then_some(())
        });
        let account = target.account(&eve);
        assert_eq!(account["limit_granted_mc"], 0, "{code}");
        assert_eq!(
            account["pending_owed_to_us_mc"], 1,
            "{code}: the claim stands"
        );
        let next = request(&mut eve, &hex, tiny(), |_| {});
        assert_eq!(eve.hear_decline(&next), "credit_required", "{code}");
        if at + 1 < codes.len() {
            // The owner clears the peer, and with it writes the claim off: both books agree again.
            target.trust(&eve, 100);
            assert_eq!(target.account(&eve)["pending_owed_to_us_mc"], 0, "{code}");
        }
        last = Some((task, proof));
    }
    // Until the owner clears it, the peer may still pay, and then the claim is settled.
    let (task, proof) = last.unwrap();
    let body = eve.receipt(&task, 1, 1, proof);
    eve.say(&hex, body);
    until("the late receipt", || {
        (target.account(&eve)["posted_mc"] == 1).then_some(())
    });
    assert_eq!(target.account(&eve)["pending_owed_to_us_mc"], 0);
    target.trust(&eve, 100);
    // A receipt over less than the cost is a dispute as well.
    let task = request(&mut eve, &hex, tiny(), |_| {});
    let proof = eve.hear_result(&task).proof.hash().unwrap();
    let body = eve.receipt(&task, 1, 0, proof);
    eve.say(&hex, body);
    until("the dispute", || {
        (target.account(&eve)["limit_granted_mc"] == 0).then_some(())
    });
    assert_eq!(target.account(&eve)["posted_mc"], 1);
}

#[test]
fn two_statements_with_one_number_are_kept_against_their_author() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.trusted(100);
    let hex = key_of(node);
    let task = request(&mut eve, &hex, tiny(), |_| {});
    eve.hear_result(&task);
    let mut twin = eve.award(&hex, &task, tiny(), |a| a.award_no = 2);
    twin.entry.seq = 1;
    twin.entry.prev.clear();
    eve.sign(&mut twin.entry);
    eve.say(&hex, Body::Request(Box::new(twin)));
    until("the equivocation", || {
        node.journaled("equivocation").first().cloned()
    });
    assert_eq!(target.account(&eve)["limit_granted_mc"], 0);
    assert_eq!(node.journaled("accepted").len(), 1);
    let next = request(&mut eve, &hex, tiny(), |_| {});
    assert_eq!(eve.hear_decline(&next), "credit_required");
}

/// Nobody has to acknowledge an answer to an offer for it to leave the outbox: the end of the offer does.
#[test]
fn answers_to_an_offer_leave_the_outbox_with_it() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.trusted(100);
    eve.join_pool();
    let waiting = || node.ok(&["status"])["outbox"]["waiting"].as_u64().unwrap();
    for bids in [true, false] {
        let task = task_id();
        let offer = eve.offer(&task, |o| {
            if !bids {
                o.skill = "burglary".into();
            }
        });
        eve.announce(Body::Offer(Box::new(offer)));
        eve.hear("an answer", |h| match &h.body {
            Body::Bid(bid) => (bid.task == task && bids).then_some(()),
            Body::Decline(decline) => (decline.task == task && !bids).then_some(()),
            _ => None,
        });
        assert_eq!(waiting(), 1, "it was not acknowledged");
        eve.announce(Body::Withdraw(Withdraw {
            task,
            below_award_no: 0,
        }));
        until("the outbox to be empty", || (waiting() == 0).then_some(()));
    }
}

/// "Somebody else was first" gives up a claim only to a requester that has also withdrawn the award.
#[test]
fn work_is_not_had_for_nothing_by_calling_it_superseded() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.trusted(100);
    let hex = key_of(node);
    let task = request(&mut eve, &hex, tiny(), |_| {});
    let proof = eve.hear_result(&task).proof.hash().unwrap();
    let claim = Evidence {
        code: "superseded".into(),
        unit: None,
        expected: String::new(),
        received: String::new(),
    };
    let body = eve.refusal(&task, 1, proof, claim);
    eve.say(&hex, body);
    refused(node, &mut eve, "duplicate", 0, |_| {});
    assert_eq!(
        target.account(&eve)["pending_owed_to_us_mc"],
        1,
        "given up for a word"
    );
    let withdraw = Withdraw {
        task,
        below_award_no: 2,
    };
    eve.say(&hex, Body::Withdraw(withdraw));
    until("the release", || {
        (target.account(&eve)["pending_owed_to_us_mc"] == 0).then_some(())
    });
    assert_eq!(target.account(&eve)["posted_mc"], 0);
}
