//! The envelopes: wrap, seal and rumor, each broken in every way that has a code.

use legiond::identity::sealing::{Delivery, KIND_MESSAGE, KIND_SEAL};
use legiond::wire::message::{Body, News, Update};
use nostr::{Event, EventBuilder, JsonUtil, Keys, Kind, PublicKey, Tag};
use serde_json::{Value, json};

use super::Target;
use crate::support::liar::LyingRelay;
use crate::support::stranger::{
    POOL_BITS, Stranger, dropped, key_of, now_s, picture, pool_key, refused, task_id,
};
use crate::support::world::{Node, until};

/// Harmless, well-formed content.
fn content(to: &str) -> String {
    let news = News::Working {
        waiting: None,
        units_done: 0,
        units_total: 1,
    };
    let update = Update {
        task: task_id(),
        award_no: 1,
        news,
    };
    Stranger::object(to, Body::Update(Box::new(update))).to_string()
}

#[test]
fn a_seal_that_is_not_right_is_refused_by_its_code() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.stranger();
    let (hex, other) = (key_of(node), Keys::generate());
    let key = PublicKey::from_hex(&hex).unwrap();
    let honest = |eve: &Stranger| eve.rumor(&key, content(&hex)).as_json();
    let wrapped = |seal: &Event| Stranger::wrap(seal, &key, Delivery::Stored, 0);

    refused(node, &mut eve, "seal_author", 1, |eve| {
        let seal = Stranger::seal_text(&other, KIND_SEAL, Vec::new(), &key, &honest(eve));
        eve.publish(&wrapped(&seal));
    });
    refused(node, &mut eve, "seal_kind", 1, |eve| {
        let seal = Stranger::seal_text(eve.identity.nostr(), 14, Vec::new(), &key, &honest(eve));
        eve.publish(&wrapped(&seal));
    });
    refused(node, &mut eve, "seal_tags", 1, |eve| {
        let tags = vec![Tag::public_key(key)];
        let seal = Stranger::seal_text(eve.identity.nostr(), KIND_SEAL, tags, &key, &honest(eve));
        eve.publish(&wrapped(&seal));
    });
    refused(node, &mut eve, "seal_signature", 1, |eve| {
        let seal = Stranger::seal_text(
            eve.identity.nostr(),
            KIND_SEAL,
            Vec::new(),
            &key,
            &honest(eve),
        );
        let mut altered: Value = serde_json::from_str(&seal.as_json()).unwrap();
        altered["created_at"] = json!(now_s() - 77);
        eve.publish(&Stranger::wrap_text(&altered.to_string(), &key));
    });
    refused(node, &mut eve, "seal_malformed", 2, |eve| {
        eve.publish(&Stranger::wrap_text("not an event", &key));
        eve.publish(&Stranger::wrap_text("{\"kind\":13}", &key));
    });
    refused(node, &mut eve, "undecryptable", 2, |eve| {
        // Sealed to somebody else: what a colleague received cannot be passed on as if it had been sent here.
        let theirs = other.public_key();
        let rumor = eve.rumor(&theirs, content(&hex));
        eve.publish(&wrapped(&eve.seal(&theirs, &rumor)));
        // No ciphertext at all.
        let tags = [Tag::public_key(key)];
        let plain = EventBuilder::new(Kind::GiftWrap, "plain text").tags(tags);
        eve.publish(&plain.sign_with_keys(&Keys::generate()).unwrap());
    });
}

#[test]
fn a_rumor_that_is_not_right_is_refused_by_its_code() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.stranger();
    let hex = key_of(node);
    let key = PublicKey::from_hex(&hex).unwrap();
    let send = |eve: &mut Stranger, text: &str| {
        let seal = Stranger::seal_text(eve.identity.nostr(), KIND_SEAL, Vec::new(), &key, text);
        eve.publish(&Stranger::wrap(&seal, &key, Delivery::Stored, 0));
    };
    let altered = |eve: &Stranger, change: &dyn Fn(&mut Value)| {
        let mut rumor: Value =
            serde_json::from_str(&eve.rumor(&key, content(&hex)).as_json()).unwrap();
        change(&mut rumor);
        rumor.to_string()
    };

    refused(node, &mut eve, "rumor_id", 1, |eve| {
        let text = altered(eve, &|r| r["content"] = json!("{}"));
        send(eve, &text);
    });
    refused(node, &mut eve, "rumor_malformed", 2, |eve| {
        send(eve, "[]");
        let text = altered(eve, &|r| {
            r.as_object_mut().unwrap().remove("id");
            r["tags"][1] = json!(["expiration", "soon"]);
        });
        send(eve, &text);
    });
    refused(node, &mut eve, "rumor_kind", 1, |eve| {
        let text = altered(eve, &|r| {
            r.as_object_mut().unwrap().remove("id");
            r["kind"] = json!(14);
        });
        send(eve, &text);
    });
    refused(node, &mut eve, "rumor_recipient", 2, |eve| {
        let elsewhere = Keys::generate().public_key();
        let rumor = eve.rumor(&elsewhere, content(&hex)).as_json();
        send(eve, &rumor);
        let text = altered(eve, &|r| {
            r.as_object_mut().unwrap().remove("id");
            r["tags"]
                .as_array_mut()
                .unwrap()
                .push(json!(["p", elsewhere.to_hex()]));
        });
        send(eve, &text);
    });
    refused(node, &mut eve, "rumor_future", 1, |eve| {
        let text = eve
            .rumor_at(&key, content(&hex), now_s() + 1_000, now_s() + 2_000)
            .as_json();
        send(eve, &text);
    });
    refused(node, &mut eve, "rumor_expired", 1, |eve| {
        let text = eve
            .rumor_at(&key, content(&hex), now_s() - 1_000, now_s() - 10)
            .as_json();
        send(eve, &text);
    });
    refused(node, &mut eve, "expiration_too_far", 1, |eve| {
        let text = eve
            .rumor_at(&key, content(&hex), now_s(), now_s() + 31 * 86_400)
            .as_json();
        send(eve, &text);
    });
    // ContextVM's shape (a signed message right in the wrap) is taken, in bounds; in a seal a rumor of this size would not fit
    // into any wrap that relays take.
    refused(node, &mut eve, "rumor_too_large", 1, |eve| {
        let tags = vec![Tag::public_key(key)];
        let signed = EventBuilder::new(Kind::from_u16(KIND_MESSAGE), "x".repeat(28_672)).tags(tags);
        let signed = signed.sign_with_keys(eve.identity.nostr()).unwrap();
        eve.publish(&Stranger::wrap_text(&signed.as_json(), &key));
    });
    refused(node, &mut eve, "method_unknown", 1, |eve| {
        let text =
            json!({"jsonrpc": "2.0", "method": "x", "params": {"to": hex, "v": 1}}).to_string();
        let signed =
            EventBuilder::new(Kind::from_u16(KIND_MESSAGE), text).tags([Tag::public_key(key)]);
        let signed = signed.sign_with_keys(eve.identity.nostr()).unwrap();
        eve.publish(&Stranger::wrap_text(&signed.as_json(), &key));
    });
    // A copy that somebody else signed is not taken.
    refused(node, &mut eve, "seal_signature", 1, |eve| {
        let tags = vec![Tag::public_key(key)];
        let signed = EventBuilder::new(Kind::from_u16(KIND_MESSAGE), content(&hex)).tags(tags);
        let signed = signed.sign_with_keys(&Keys::generate()).unwrap();
        let mut copied: Value = serde_json::from_str(&signed.as_json()).unwrap();
        copied["pubkey"] = json!(eve.hex());
        eve.publish(&Stranger::wrap_text(&copied.to_string(), &key));
    });
}

#[test]
fn the_same_rumor_has_one_effect_however_often_it_is_wrapped() {
    let target = Target::start();
    let node = &target.node;
    let (mut eve, mut mallory) = (target.trusted(100), target.stranger());
    mallory.join_pool();
    let hex = key_of(node);
    let key = PublicKey::from_hex(&hex).unwrap();
    let pool = pool_key().public_key();

    // Our own request, wrapped three times: one acceptance.
    let task = task_id();
    let award = eve.award(&hex, &task, crate::support::stranger::tiny(), |_| {});
    let object = Stranger::object(&hex, Body::Request(Box::new(award)));
    let rumor = eve.rumor(&key, object.to_string());
    let seal = eve.seal(&key, &rumor);
    eve.publish(&Stranger::wrap(&seal, &key, Delivery::Stored, 0));
    eve.hear_result(&task);
    assert_eq!(target.account(&eve)["pending_owed_to_us_mc"], 1);
    refused(node, &mut eve, "duplicate", 2, |eve| {
        eve.publish(&Stranger::wrap(&seal, &key, Delivery::Stored, 0));
        let again = eve.seal(&key, &rumor);
        eve.publish(&Stranger::wrap(&again, &key, Delivery::Stored, 0));
    });
    assert_eq!(node.journaled("accepted").len(), 1);
    // An ephemeral wrap is not remembered, so nothing that has an effect may come in one.
    refused(node, &mut eve, "ephemeral_refused", 3, |eve| {
        for _ in 0..3 {
            eve.publish(&Stranger::wrap(&seal, &key, Delivery::Ephemeral, 0));
        }
    });

    // A member's offer, wrapped again by another member: one bid.
    let task = task_id();
    let offer = eve.offer(&task, |_| {});
    let seal = eve.announce(Body::Offer(Box::new(offer)));
    eve.hear("a bid", |h| {
        matches!(&h.body, Body::Bid(b) if b.task == task).then_some(())
    });
    refused(node, &mut mallory, "duplicate", 1, |mallory| {
        mallory.publish(&Stranger::wrap(&seal, &pool, Delivery::Stored, POOL_BITS));
    });
    refused(node, &mut mallory, "ephemeral_refused", 1, |mallory| {
        mallory.publish(&Stranger::wrap(
            &seal,
            &pool,
            Delivery::Ephemeral,
            POOL_BITS,
        ));
    });
    // Sealed to the pool, it does not open in the node's own inbox.
    refused(node, &mut mallory, "undecryptable", 1, |mallory| {
        mallory.publish(&Stranger::wrap(&seal, &key, Delivery::Stored, 0));
    });
    assert_eq!(node.journaled("bid_made").len(), 1);
}

#[test]
fn a_pool_is_not_flooded_without_work_and_hears_nothing_private() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.stranger();
    let (hex, pool) = (key_of(node), pool_key().public_key());
    let seal_of = |eve: &mut Stranger, body: Body| {
        let rumor = eve.rumor(&pool, Stranger::object("pool:legion", body).to_string());
        eve.seal(&pool, &rumor)
    };
    refused(node, &mut eve, "pow_missing", 50, |eve| {
        for _ in 0..50 {
            let ad = eve.ad(|_| {});
            let seal = seal_of(eve, Body::Ad(Box::new(ad)));
            eve.publish(&Stranger::wrap(&seal, &pool, Delivery::Stored, 0));
        }
    });
    refused(node, &mut eve, "pool_private", 1, |eve| {
        let task = task_id();
        let award = eve.award(&hex, &task, crate::support::stranger::tiny(), |_| {});
        let seal = seal_of(eve, Body::Award(Box::new(award)));
        eve.publish(&Stranger::wrap(&seal, &pool, Delivery::Stored, POOL_BITS));
    });
    // Past the pool, and so past its work.
    refused(node, &mut eve, "offer_direct", 1, |eve| {
        let offer = eve.offer(&task_id(), |_| {});
        eve.say(&hex, Body::Offer(Box::new(offer)));
    });
    refused(node, &mut eve, "ad_direct", 1, |eve| {
        let ad = eve.ad(|_| {});
        eve.say(&hex, Body::Ad(Box::new(ad)));
    });
    assert!(node.journaled("bid_made").is_empty());
}

/// What an honest relay would not pass on: a relay that lies.
#[test]
fn what_a_lying_relay_makes_up_is_refused_and_hides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (liar, honest) = (LyingRelay::start(), crate::support::world::Relay::start());
    let mut node = Node::init(dir.path(), "target", &[&honest.url, &liar.url]);
    node.up();
    let mut eve = Stranger::on(&honest.url);
    let hex = key_of(&node);
    let key = PublicKey::from_hex(&hex).unwrap();
    let good = |eve: &Stranger| {
        let rumor = eve.rumor(&key, content(&hex));
        Stranger::wrap(&eve.seal(&key, &rumor), &key, Delivery::Stored, 0)
    };
    let change = |event: &Event, field: &str, value: Value| {
        let mut altered: Value = serde_json::from_str(&event.as_json()).unwrap();
        altered[field] = value;
        altered.to_string()
    };

    let event = good(&eve);
    // Known id, other body.
    refused(&node, &mut eve, "wrap_id", 1, |_| {
        liar.push(&hex, &[change(&event, "content", json!("AAAA"))]);
        until("the refusal", || {
            (dropped(&node).get("wrap_id") == Some(&1)).then_some(())
        });
    });
    refused(&node, &mut eve, "wrap_signature", 1, |_| {
        liar.push(&hex, &[change(&event, "sig", json!("11".repeat(64)))]);
        until("the refusal", || {
            dropped(&node).get("wrap_signature").copied()
        });
    });
    // 70 KiB that NIP-44 could not even hold.
    refused(&node, &mut eve, "event_too_large", 1, |_| {
        liar.push(
            &hex,
            &[change(&event, "content", json!("A".repeat(96_000)))],
        );
        until("the refusal", || {
            dropped(&node).get("event_too_large").copied()
        });
    });
    // Both forgeries and the event itself in one breath: the event still arrives, once.
    let before = dropped(&node).get("task_unknown").copied().unwrap_or(0);
    let forged = [
        change(&event, "content", json!("AAAA")),
        change(&event, "sig", json!("22".repeat(64))),
        event.as_json(),
        event.as_json(),
    ];
    liar.push(&hex, &forged);
    until("the true event", || {
        (dropped(&node).get("task_unknown").copied().unwrap_or(0) == before + 1).then_some(())
    });
    let (image, counts) = (picture(&node), dropped(&node));
    liar.push(&hex, &[event.as_json(), event.as_json()]);
    eve.fence(&hex);
    until("the fence", || {
        (dropped(&node)["task_unknown"] == before + 2).then_some(())
    });
    assert_eq!(
        dropped(&node).get("duplicate"),
        counts.get("duplicate"),
        "a copy of a wrap costs nothing"
    );
    assert_eq!(picture(&node), image);
    // Neither a frame nor an event nor for us.
    let mut noise = vec![
        "{}".to_owned(),
        "\"x\"".into(),
        "[[[[".into(),
        change(&event, "kind", json!(1)),
    ];
    noise.push(change(&event, "tags", json!([["p", eve.hex()]])));
    refused(&node, &mut eve, "duplicate", 0, |_| liar.push(&hex, &noise));
}

/// A relay that takes every request and never comes to an end: the node waits for it within bounds, and goes on with the others.
#[test]
fn a_relay_that_never_answers_does_not_hold_the_node_up() {
    let (liar, honest) = (LyingRelay::start(), crate::support::world::Relay::start());
    liar.fall_silent();
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "target", &[&liar.url, &honest.url]);
    node.up();
    // The end of a deadline is a timer: it is judged only by a node that has read its inboxes.
    let input = crate::support::stranger::tiny();
    let params = json!({"skill": "simulation", "input": input, "pool": "legion", "deadline_s": 4});
    let asked = node.call("task/ask", params);
    let id = asked["result"]["task"]["id"].clone();
    until("the end of a task that nobody does", || {
        let task = node.call("task/get", json!({"id": id}));
        (task["result"]["task"]["status"]["state"] == "rejected").then_some(())
    });
    // And it hears, through the relay that is one.
    let mut eve = Stranger::on(&honest.url);
    refused(&node, &mut eve, "task_unknown", 0, |_| {});
}
