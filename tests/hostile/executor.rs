//! A hostile executor against a node that hires: bids, acceptances and results that are not its own or not true.

use legiond::identity::{Identity, Mnemonic};
use legiond::wire::entry::Act;
use legiond::wire::market::{Award, Bid, Decline, Offer};
use legiond::wire::message::{Body, News, Update, WorkResult};
use serde_json::{Value, json};

use super::Target;
use super::cheat::{profile, units_of};
use crate::support::stranger::{Stranger, hash_of, key_of, now_ms, refused, task_id, tiny};
use crate::support::world::until;

/// The node asks for one unit; gives the task.
fn ask(target: &Target, change: Value) -> String {
    let mut params = json!({"skill": "simulation", "input": tiny(), "max_price_mc": 10});
    params
        .as_object_mut()
        .unwrap()
        .extend(change.as_object().unwrap().clone());
    let answer = target.node.call("task/ask", params);
    answer["result"]["task"]["id"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

fn state(target: &Target, task: &str) -> String {
    let answer = target.node.call("task/get", json!({"id": task}));
    answer["result"]["task"]["status"]["state"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn decline(award: &Award, requester: &str, award_no: u32, code: &str) -> Decline {
    Decline {
        task: award.task.clone(),
        requester: requester.to_owned(),
        award_no,
        code: code.into(),
        message: String::new(),
        retry_at_ms: None,
        entry: None,
        binding: None,
    }
}

#[test]
fn only_the_winner_speaks_for_an_award_and_only_of_what_was_agreed() {
    let target = Target::start();
    let node = &target.node;
    let (mut eve, mut mallory) = (target.trusted(100), target.stranger());
    let hex = key_of(node);
    let task = ask(&target, json!({"peer": eve.npub()}));
    let award = eve.hear_award();
    assert_eq!(award.task, task);
    assert_eq!(award.max_price_mc, 10);

    refused(node, &mut mallory, "not_awarded", 2, |mallory| {
        let body = mallory.accept(&hex, &award, |_| {});
        mallory.say(&hex, Body::Accept(Box::new(body)));
        let mut body = decline(&award, &hex, 1, "x");
        body.entry = Some(mallory.entry(
            &hex,
            &award.task,
            Act::Declined {
                award_no: 1,
                code: "x".into(),
            },
        ));
        mallory.say(&hex, Body::Decline(Box::new(body)));
    });
    refused(node, &mut eve, "award_no_unknown", 2, |eve| {
        for no in [2, u32::MAX] {
            let body = eve.accept(&hex, &award, |a| a.award_no = no);
            eve.say(&hex, Body::Accept(Box::new(body)));
        }
    });
    refused(node, &mut eve, "task_unknown", 1, |eve| {
        let body = eve.accept(
            &hex,
            &Award {
                task: task_id(),
                ..award.clone()
            },
            |_| {},
        );
        eve.say(&hex, Body::Accept(Box::new(body)));
    });
    // Above the lock, not what the units cost, and numbers at the edge.
    refused(node, &mut eve, "accept_terms", 3, |eve| {
        for (price, total) in [(11, 11), (1, 2), ((1 << 53) - 1, (1 << 53) - 1)] {
            let body = eve.accept(&hex, &award, |a| {
                (a.unit_price_mc, a.total_mc) = (price, total)
            });
            eve.say(&hex, Body::Accept(Box::new(body)));
        }
    });
    refused(node, &mut eve, "entry_missing", 1, |eve| {
        eve.say(&hex, Body::Decline(Box::new(decline(&award, &hex, 1, "x"))));
    });
    refused(node, &mut eve, "bounds_exceeded", 3, |eve| {
        let code = "c".repeat(10_000);
        let mut body = decline(&award, &hex, 1, &code);
        let what = Act::Declined { award_no: 1, code };
        body.entry = Some(eve.entry(&hex, &award.task, what));
        eve.say(&hex, Body::Decline(Box::new(body)));
        let mut body = eve.accept(&hex, &award, |a| a.lct = "l".repeat(300));
        eve.say(&hex, Body::Accept(Box::new(body.clone())));
        body.lct.clear();
        body.entry.heads = vec![String::new(); 200];
        eve.sign(&mut body.entry);
        eve.say(&hex, Body::Accept(Box::new(body)));
    });
    refused(node, &mut eve, "entry_mismatch", 2, |eve| {
        let mut body = eve.accept(&hex, &award, |_| {});
        body.entry.what = Act::Accepted {
            award_no: 1,
            total_mc: 9,
        };
        eve.sign(&mut body.entry);
        eve.say(&hex, Body::Accept(Box::new(body)));
        let mut body = decline(&award, &hex, 1, "x");
        body.entry = Some(eve.entry(
            &hex,
            &award.task,
            Act::Declined {
                award_no: 1,
                code: "y".into(),
            },
        ));
        eve.say(&hex, Body::Decline(Box::new(body)));
    });
    assert_eq!(state(&target, &task), "submitted");
    assert_eq!(target.account(&eve)["pending_we_owe_mc"], 10);

    let accept = eve.accept(&hex, &award, |_| {});
    eve.say(&hex, Body::Accept(Box::new(accept)));
    until("the acceptance", || {
        (state(&target, &task) == "working").then_some(())
    });
    results_of_others(&target, &mut eve, &mut mallory, &award);
    // Nothing of this was in the way of the true result.
    let result = eve.result(&hex, &award, &units_of(&award.input), &profile(), |_| {});
    for _ in 0..3 {
        eve.say(&hex, Body::Update(Box::new(result.clone())));
    }
    until("the payment", || {
        (state(&target, &task) == "completed").then_some(())
    });
    eve.hear("the receipt", |h| {
        matches!(&h.body, Body::Receipt(r) if r.task == task).then_some(())
    });
    assert_eq!(target.account(&eve)["posted_mc"], -1);
    assert_eq!(target.account(&eve)["pending_we_owe_mc"], 0);
    assert_eq!(node.journaled("receipt").len(), 1);
    // Paid is paid: whatever comes after that moves no money.
    let late = eve.result(&hex, &award, &units_of(&award.input), &profile(), |r| {
        r.proof.cost_mc = 9
    });
    eve.say(&hex, Body::Update(Box::new(late)));
    eve.fence(&hex);
    assert_eq!(target.account(&eve)["posted_mc"], -1);
}

/// Results by others, for other awards, with other keys, of other work.
fn results_of_others(target: &Target, eve: &mut Stranger, mallory: &mut Stranger, award: &Award) {
    let (node, hex) = (&target.node, key_of(&target.node));
    let units = units_of(&award.input);
    let (units, profile) = (units.as_slice(), profile());
    let send = |who: &mut Stranger, award: &Award, change: &dyn Fn(&mut WorkResult)| {
        let body = who.result(&hex, award, units, &profile, change);
        who.say(&hex, Body::Update(Box::new(body)));
    };
    refused(node, mallory, "not_awarded", 1, |m| send(m, award, &|_| {}));
    refused(node, eve, "award_no_unknown", 1, |eve| {
        send(
            eve,
            &Award {
                award_no: 2,
                ..award.clone()
            },
            &|_| {},
        )
    });
    refused(node, eve, "task_unknown", 1, |eve| {
        send(
            eve,
            &Award {
                task: task_id(),
                ..award.clone()
            },
            &|_| {},
        )
    });
    refused(node, eve, "proof_mismatch", 6, |eve| {
        send(eve, award, &|r| r.proof.requester = "11".repeat(32));
        send(eve, award, &|r| r.proof.executor = "11".repeat(32));
        send(eve, award, &|r| r.proof.commitment = "00".repeat(32));
        send(eve, award, &|r| r.proof.terms = "00".repeat(32));
        send(eve, award, &|r| r.proof.skill = "other".into());
        send(eve, award, &|r| r.proof.award_no = 7);
    });
    let words = Mnemonic::generate().unwrap();
    let thief = Identity::derive(&words, eve.identity.public().lct.clone(), 0).unwrap();
    let resign = |eve: &mut Stranger, entry_too: bool| {
        let mut body = eve.result(&hex, award, units, &profile, |_| {});
        let News::Completed(result) = &mut body.news else {
            panic!("no result")
        };
        result.proof.key = thief.public().ed25519.clone();
        result.proof.sig = hex::encode(thief.sign_proof(&result.proof.signing_bytes().unwrap()));
        result.entry.what = Act::Completed {
            award_no: 1,
            proof: result.proof.hash().unwrap(),
        };
        if entry_too {
            result.entry.key = thief.public().ed25519.clone();
            result.entry.sig =
                hex::encode(thief.sign_proof(&result.entry.signing_bytes().unwrap()));
        } else {
            eve.sign(&mut result.entry);
        }
        eve.say(&hex, Body::Update(Box::new(body)));
    };
    refused(node, eve, "proof_mismatch", 1, |eve| resign(eve, false));
    refused(node, eve, "key_unbound", 1, |eve| resign(eve, true));
    refused(node, eve, "proof_signature", 2, |eve| {
        let mut body = eve.result(&hex, award, units, &profile, |_| {});
        if let News::Completed(result) = &mut body.news {
            result.proof.cost_mc = 2;
        }
        eve.say(&hex, Body::Update(Box::new(body.clone())));
        // A number that has no canonical form has no signature either.
        if let News::Completed(result) = &mut body.news {
            result.proof.cost_mc = u64::MAX;
        }
        eve.say(&hex, Body::Update(Box::new(body)));
    });
    refused(node, eve, "params_invalid", 3, |eve| {
        for (field, value) in [
            ("units", json!(-1)),
            ("cost_mc", json!("NaN")),
            ("cost_mc", json!(0.5)),
        ] {
            let body = eve.result(&hex, award, units, &profile, |_| {});
            let mut object = Stranger::object(&hex, Body::Update(Box::new(body)));
            object["params"]["news"]["completed"]["proof"][field] = value;
            eve.say_value(&hex, &object);
        }
    });
    refused(node, eve, "entry_mismatch", 1, |eve| {
        let other = eve.result(&hex, award, units, &profile, |r| {
            r.proof.device = "gpu".into()
        });
        let mut body = eve.result(&hex, award, units, &profile, |_| {});
        if let (News::Completed(mine), News::Completed(theirs)) = (&mut body.news, other.news) {
            mine.entry = theirs.entry;
        }
        eve.say(&hex, Body::Update(Box::new(body)));
    });
}

#[test]
fn an_altered_cost_or_output_is_refused_and_not_paid() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.trusted(100);
    let hex = key_of(node);
    type Change = fn(&mut WorkResult);
    let cases: [(&str, Change); 11] = [
        ("cost_mismatch", |r| r.proof.cost_mc += 1),
        ("cost_mismatch", |r| r.proof.cost_mc = (1 << 53) - 1),
        ("cost_mismatch", |r| r.proof.cost_mc = 0),
        ("cost_mismatch", |r| {
            (r.proof.units, r.proof.cost_mc) = (2, 2)
        }),
        ("cost_mismatch", |r| {
            (r.proof.units, r.proof.cost_mc) = (u32::MAX, 10)
        }),
        ("cost_mismatch", |r| {
            (r.proof.unit_price_mc, r.proof.cost_mc) = (2, 2)
        }),
        ("output_mismatch", |r| r.output["price"] = json!(1.0)),
        ("aggregate_mismatch", |r| {
            r.output["price"] = json!(1.0);
            r.proof.output = hash_of(&r.output);
        }),
        ("root_mismatch", |r| r.proof.root = "00".repeat(32)),
        ("units_mismatch", |r| r.units = "!".into()),
        ("result_late", |r| {
            r.proof.finished_ms = now_ms() + 86_400_000
        }),
    ];
    for (at, (code, change)) in cases.into_iter().enumerate() {
        let task = ask(&target, json!({"peer": eve.npub()}));
        let award = eve.hear_award();
        let accept = eve.accept(&hex, &award, |_| {});
        eve.say(&hex, Body::Accept(Box::new(accept)));
        let body = eve.result(&hex, &award, &units_of(&award.input), &profile(), change);
        eve.say(&hex, Body::Update(Box::new(body)));
        let said = eve.hear("the refusal", |h| match &h.body {
            Body::Refusal(r) if r.task == task => Some(r.evidence.code.clone()),
            _ => None,
        });
        assert_eq!(said, code, "case {at}");
        until("the end", || {
            (state(&target, &task) == "failed").then_some(())
        });
        let account = target.account(&eve);
        assert_eq!(
            (&account["posted_mc"], &account["pending_we_owe_mc"]),
            (&json!(0), &json!(0)),
            "case {at}"
        );
    }
    assert!(node.journaled("receipt").is_empty());
}

#[test]
fn bids_are_held_to_their_offer_and_a_reply_key_hears_nothing_else() {
    let target = Target::start();
    let node = &target.node;
    let (mut eve, mut mallory) = (target.trusted(100), target.stranger());
    eve.join_pool();
    let hex = key_of(node);
    let task = ask(&target, json!({"pool": "legion"}));
    let offer: Offer = eve.hear("the offer", |h| match &h.body {
        Body::Offer(o) if o.task == task => Some((**o).clone()),
        _ => None,
    });
    let bid = |who: &mut Stranger, to: &str, change: &dyn Fn(&mut Bid)| {
        let bid = who.bid(&hex, &offer, change);
        who.say(to, Body::Bid(Box::new(bid)));
    };
    let reply = offer.reply.clone();
    refused(node, &mut mallory, "bid_foreign", 2, |m| {
        bid(m, &reply, &|b| b.requester = "11".repeat(32));
        bid(m, &hex, &|b| b.task = task_id());
    });
    refused(node, &mut mallory, "reply_key_misused", 3, |m| {
        bid(m, &reply, &|b| b.task = task_id());
        let award = m.award(&hex, &task_id(), tiny(), |_| {});
        m.say(&reply, Body::Request(Box::new(award)));
        let news = News::Working {
            waiting: None,
            units_done: 1,
            units_total: 1,
        };
        m.say(
            &reply,
            Body::Update(Box::new(Update {
                task: task.clone(),
                award_no: 1,
                news,
            })),
        );
    });
    refused(node, &mut mallory, "bid_late", 2, |m| {
        bid(m, &reply, &|b| b.round = 0);
        bid(m, &reply, &|b| b.round = u32::MAX);
    });
    refused(node, &mut mallory, "bid_expired", 1, |m| {
        bid(m, &reply, &|b| b.expires_ms = now_ms() - 1)
    });
    refused(node, &mut mallory, "bid_price", 3, |m| {
        bid(m, &reply, &|b| b.total_mc = 0);
        bid(m, &reply, &|b| (b.unit_price_mc, b.total_mc) = (11, 11));
        bid(m, &reply, &|b| {
            (b.unit_price_mc, b.total_mc) = ((1 << 53) - 1, 5)
        });
    });
    refused(node, &mut mallory, "bounds_exceeded", 1, |m| {
        bid(m, &reply, &|b| b.total_mc = u64::MAX)
    });
    refused(node, &mut mallory, "binding_author", 1, |m| {
        let stolen = eve.binding();
        bid(m, &reply, &|b| b.binding = stolen.clone());
    });
    // A stranger's lower price does not displace a trusted peer.
    bid(&mut mallory, &reply, &|b| {
        (b.unit_price_mc, b.total_mc) = (0, 0)
    });
    bid(&mut eve, &reply, &|_| {});
    let award = eve.hear_award();
    assert_eq!(
        (award.task.as_str(), award.unit_price_mc, award.max_price_mc),
        (task.as_str(), Some(1), 1)
    );
    refused(node, &mut mallory, "bid_late", 1, |m| {
        bid(m, &reply, &|_| {})
    });
    let accept = eve.accept(&hex, &award, |_| {});
    eve.say(&hex, Body::Accept(Box::new(accept)));
    let body = eve.result(&hex, &award, &units_of(&award.input), &profile(), |_| {});
    eve.say(&hex, Body::Update(Box::new(body)));
    until("the payment", || {
        (state(&target, &task) == "completed").then_some(())
    });
    assert_eq!(target.account(&eve)["posted_mc"], -1);
}

#[test]
fn only_the_recipient_acknowledges_a_message() {
    let target = Target::start();
    let node = &target.node;
    let (mut eve, mut mallory) = (target.trusted(100), target.stranger());
    eve.polite = false;
    let hex = key_of(node);
    ask(&target, json!({"peer": eve.npub()}));
    let rumor = eve.hear("the request", |h| {
        matches!(&h.body, Body::Request(_)).then_some(h.rumor)
    });
    let waiting = || node.call("node/status", json!({}))["result"]["outbox"]["waiting"].clone();
    assert_eq!(waiting(), 1);
    refused(node, &mut mallory, "duplicate", 0, |m| m.ack(&hex, &rumor));
    assert_eq!(waiting(), 1, "somebody else's word cleared the row");
    eve.ack(&hex, &rumor);
    until("the acknowledgement", || (waiting() == 0).then_some(()));
}
