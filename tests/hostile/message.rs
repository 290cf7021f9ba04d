//! The content of a rumor: JSON-RPC, versions, audiences, numbers, bounds, bindings, signatures.

use legiond::wire::binding::Binding;
use legiond::wire::entry::Act;
use legiond::wire::message::{Body, Cancel, News, Update};
use serde_json::{Value, json};

use super::Target;
use crate::support::stranger::{Stranger, key_of, now_s, pool_key, refused, task_id, tiny};

fn working() -> Body {
    let news = News::Working {
        units_done: 0,
        units_total: 1,
    };
    Body::Update(Box::new(Update {
        task: task_id(),
        award_no: 1,
        news,
    }))
}

#[test]
fn content_that_is_no_message_is_refused_by_its_code() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.stranger();
    let hex = key_of(node);
    let good = || Stranger::object(&hex, working());
    let with = |pointer: &str, value: Value| {
        let mut object = good();
        *object.pointer_mut(pointer).unwrap() = value;
        object
    };
    let without = |field: &str| {
        let mut object = good();
        object["params"].as_object_mut().unwrap().remove(field);
        object
    };

    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let texts = [
        "",
        "{",
        "hello",
        "{\"jsonrpc\":\"2.0\",\"x\":NaN}",
        "{\"x\":1e400}",
        &deep,
    ];
    refused(
        node,
        &mut eve,
        "json_malformed",
        texts.len() as u64,
        |eve| {
            for text in texts {
                eve.say_text(&hex, text);
            }
        },
    );
    let objects = [
        json!(1),
        json!("x"),
        json!({}),
        with("/jsonrpc", json!("1.0")),
        with("/method", json!(7)),
        with("/params", json!([])),
    ];
    refused(
        node,
        &mut eve,
        "jsonrpc_invalid",
        objects.len() as u64,
        |eve| {
            for object in &objects {
                eve.say_value(&hex, object);
            }
        },
    );
    refused(node, &mut eve, "method_unknown", 2, |eve| {
        eve.say_value(&hex, &with("/method", json!("pool/rob")));
        eve.say_value(&hex, &with("/method", json!("m".repeat(9_000))));
    });
    refused(node, &mut eve, "version_unsupported", 3, |eve| {
        eve.say_value(&hex, &with("/params/v", json!(2)));
        eve.say_value(&hex, &with("/params/v", json!("1")));
        eve.say_value(&hex, &without("v"));
    });
    refused(node, &mut eve, "audience", 3, |eve| {
        let me = eve.hex();
        eve.say_value(&hex, &with("/params/to", json!(me)));
        eve.say_value(&hex, &with("/params/to", json!("pool:legion")));
        eve.say_value(&hex, &without("to"));
    });
    refused(node, &mut eve, "batch_size", 2, |eve| {
        eve.say_text(&hex, "[]");
        eve.say_value(&hex, &Value::Array(vec![json!({}); 257]));
    });
    // A bad message of a batch does not silence its neighbours.
    refused(node, &mut eve, "method_unknown", 1, |eve| {
        eve.say_value(&hex, &json!([with("/method", json!("x"))]));
    });
    let numbers = [
        json!(-1),
        json!(1.5),
        json!("1"),
        json!(u64::MAX),
        json!("NaN"),
        Value::Null,
    ];
    refused(
        node,
        &mut eve,
        "params_invalid",
        numbers.len() as u64,
        |eve| {
            for number in &numbers {
                eve.say_value(&hex, &with("/params/award_no", number.clone()));
            }
        },
    );
    refused(node, &mut eve, "params_invalid", 1, |eve| {
        let acks = vec!["00".repeat(32); 65];
        let object = json!({"jsonrpc": "2.0", "method": "ack", "params": {"to": hex, "v": 1, "rumors": acks}});
        eve.say_value(&hex, &object);
    });
    refused(node, &mut eve, "bounds_exceeded", 4, |eve| {
        for task in [
            "",
            "../../../../etc/passwd",
            "00000000000000000000000000000000/1",
            "G0000000000000000000000000000000",
        ] {
            eve.say_value(&hex, &with("/params/task", json!(task)));
        }
    });
}

#[test]
fn absurd_offers_and_ads_are_refused_and_nobody_is_sent_where_they_point() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.stranger();
    let (hex, pool) = (key_of(node), pool_key().public_key());
    let announce = |eve: &mut Stranger, object: &Value| {
        let rumor = eve.rumor(&pool, object.to_string());
        let seal = eve.seal(&pool, &rumor);
        let wrap = Stranger::wrap(
            &seal,
            &pool,
            legiond::identity::sealing::Delivery::Stored,
            12,
        );
        eve.publish(&wrap);
    };
    let offer = |eve: &mut Stranger, field: &str, value: Value| {
        let offer = eve.offer(&task_id(), |_| {});
        let mut object = Stranger::object("pool:legion", Body::Offer(Box::new(offer)));
        object["params"][field] = value;
        object
    };
    for (field, value) in [
        ("units", json!(-1)),
        ("units", json!(u64::MAX)),
        ("max_price_mc", json!(-5)),
        ("max_price_mc", json!("NaN")),
        ("relays", json!("wss://x")),
    ] {
        refused(node, &mut eve, "params_invalid", 1, |eve| {
            let object = offer(eve, field, value);
            announce(eve, &object);
        });
    }
    for (field, value) in [
        ("max_price_mc", json!(1u64 << 53)),
        ("max_price_mc", json!(u64::MAX)),
        ("result_by_ms", json!(u64::MAX)),
        ("expires_ms", json!(1u64 << 52)),
        ("skill", json!("s".repeat(10_000))),
        ("task", json!("a/b")),
    ] {
        refused(node, &mut eve, "bounds_exceeded", 1, |eve| {
            let object = offer(eve, field, value);
            announce(eve, &object);
        });
    }
    refused(node, &mut eve, "bounds_exceeded", 3, |eve| {
        let skill = json!({"id": "x", "unit_price_mc": 1});
        for (field, value) in [
            ("skills", json!(vec![skill; 600])),
            ("lct", json!("l".repeat(10_000))),
            ("expires_ms", json!(u64::MAX)),
        ] {
            let ad = eve.ad(|_| {});
            let mut object = Stranger::object("pool:legion", Body::Ad(Box::new(ad)));
            object["params"][field] = value;
            announce(eve, &object);
        }
    });

    // Relays that point at the reader's own machine and network: the node answers, on its own relays alone.
    let trap = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let port = trap.local_addr().unwrap().port();
    let places = [
        format!("wss://127.0.0.1:{port}"),
        format!("ws://127.0.0.1:{port}"),
        format!("wss://localhost:{port}"),
        format!("wss://[::1]:{port}"),
        format!("wss://2130706433:{port}"),
        "wss://10.0.0.1".into(),
        "wss://169.254.169.254/latest".into(),
        "file:///etc/passwd".into(),
        "http://192.168.0.1/reboot".into(),
    ];
    let task = task_id();
    let call = eve.offer(&task, |o| o.relays = places.to_vec());
    eve.announce(Body::Offer(Box::new(call)));
    eve.hear("an answer to the offer", |h| match &h.body {
        Body::Decline(d) if d.task == task => Some(()),
        Body::Bid(b) if b.task == task => Some(()),
        _ => None,
    });
    let directed = task_id();
    let award = eve.award(&hex, &directed, json!({}), |a| a.relays = places.to_vec());
    eve.say(&hex, Body::Request(Box::new(award)));
    eve.hear_decline(&directed);
    let relays = node.ok(&["status"])["relays"].clone();
    assert_eq!(relays.as_object().unwrap().len(), 1, "{relays}");
    assert!(
        trap.accept().is_err(),
        "the node was sent to its own machine"
    );
}

#[test]
fn copied_expired_and_forged_bindings_bind_nothing() {
    let target = Target::start();
    let node = &target.node;
    let (mut eve, victim) = (target.trusted(100), Stranger::offline());
    let hex = key_of(node);
    let year = now_s() + 365 * 86_400;
    let ask = |eve: &mut Stranger, binding: Binding| {
        let award = eve.award(&hex, &task_id(), tiny(), |a| a.binding = binding);
        eve.say(&hex, Body::Request(Box::new(award)));
    };
    refused(node, &mut eve, "binding_author", 1, |eve| {
        ask(eve, victim.binding())
    });
    refused(node, &mut eve, "binding_signature", 1, |eve| {
        let mut binding = eve.binding();
        binding.statement.ed25519 = victim.identity.public().ed25519.clone();
        ask(eve, binding);
    });
    refused(node, &mut eve, "binding_expired", 1, |eve| {
        let old = Binding::sign(&eve.identity, now_s() - 1, None).unwrap();
        ask(eve, old);
    });
    refused(node, &mut eve, "binding_malformed", 1, |eve| {
        let mut binding = eve.binding();
        binding.statement.peer_id = "12D3".into();
        ask(eve, binding);
    });

    // Bound once: a key of a later epoch that the first did not sign, and even one that it did, does not replace it.
    let task = task_id();
    let award = eve.award(&hex, &task, tiny(), |_| {});
    eve.say(&hex, Body::Request(Box::new(award)));
    eve.hear_result(&task);
    let words = legiond::identity::Mnemonic::generate().unwrap();
    let thief =
        legiond::identity::Identity::derive(&words, eve.identity.public().lct.clone(), 1).unwrap();
    refused(node, &mut eve, "key_unbound", 1, |eve| {
        let mut award = eve.award(&hex, &task_id(), tiny(), |_| {});
        award.entry.key = thief.public().ed25519.clone();
        award.entry.sig = hex::encode(thief.sign_proof(&award.entry.signing_bytes().unwrap()));
        eve.say(&hex, Body::Request(Box::new(award)));
    });
    refused(node, &mut eve, "binding_author", 1, |eve| {
        ask(eve, Binding::sign(&thief, year, None).unwrap());
    });
}

#[test]
fn statements_that_are_not_signed_or_say_something_else_are_refused() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.trusted(100);
    let hex = key_of(node);
    let request =
        |eve: &mut Stranger, change: &dyn Fn(&Stranger, &mut legiond::wire::market::Award)| {
            let mut award = eve.award(&hex, &task_id(), tiny(), |_| {});
            change(eve, &mut award);
            eve.say(&hex, Body::Request(Box::new(award)));
        };
    refused(node, &mut eve, "entry_signature", 3, |eve| {
        request(eve, &|_, a| a.entry.sig = "00".repeat(64));
        request(eve, &|_, a| a.entry.seq += 1);
        request(eve, &|_, a| a.entry.sig.clear());
    });
    // Signed, but of other terms, another task, another author: an entry cannot be used twice.
    refused(node, &mut eve, "entry_mismatch", 4, |eve| {
        request(eve, &|_, a| a.max_price_mc += 1);
        let old = eve.award(&hex, &task_id(), tiny(), |_| {}).entry;
        request(eve, &|_, a| a.entry = old.clone());
        request(eve, &|eve, a| {
            a.entry.author = "11".repeat(32);
            eve.sign(&mut a.entry);
        });
        request(eve, &|eve, a| {
            a.entry.requester = "22".repeat(32);
            eve.sign(&mut a.entry);
        });
    });
    refused(node, &mut eve, "award_no_unknown", 1, |eve| {
        let award = eve.award(&hex, &task_id(), tiny(), |a| a.award_no = 0);
        eve.say(&hex, Body::Request(Box::new(award)));
    });
    refused(node, &mut eve, "award_unbid", 1, |eve| {
        let award = eve.award(&hex, &task_id(), tiny(), |a| a.unit_price_mc = Some(1));
        eve.say(&hex, Body::Award(Box::new(award)));
    });
    refused(node, &mut eve, "entry_mismatch", 1, |eve| {
        let (me, task) = (eve.hex(), task_id());
        let what = Act::Declined {
            award_no: 1,
            code: "x".into(),
        };
        let entry = eve.entry(&me, &task, what);
        eve.say(&hex, Body::Cancel(Box::new(Cancel { task, entry })));
    });
    for (field, value) in [
        ("max_price_mc", json!(1u64 << 53)),
        ("settle_by_ms", json!(u64::MAX)),
        ("lease_ttl_ms", json!(u64::MAX)),
    ] {
        refused(node, &mut eve, "bounds_exceeded", 1, |eve| {
            let award = eve.award(&hex, &task_id(), tiny(), |_| {});
            let mut object = Stranger::object(&hex, Body::Award(Box::new(award)));
            object["params"][field] = value;
            eve.say_value(&hex, &object);
        });
    }
}
