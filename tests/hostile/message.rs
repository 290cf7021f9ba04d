//! The content of a rumor: JSON-RPC, versions, audiences, numbers, bounds, bindings, signatures.

use legiond::identity::Identity;
use legiond::wire::binding::Binding;
use legiond::wire::canonical;
use legiond::wire::entry::Act;
use legiond::wire::message::{Body, Cancel, News, Update};
use serde_json::{Value, json};

use super::Target;
use crate::support::stranger::{
    Stranger, dropped, key_of, now_s, pool_key, refused, task_id, tiny,
};
use crate::support::world::until;

fn working() -> Body {
    let news = News::Working {
        waiting: None,
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

    // Bound once. Whoever gets hold of the Nostr key alone cannot put other proof keys in place of the bound ones: not under the
    // same epoch, not under a later one, which the old proof key has to sign, and not under an earlier one.
    let task = task_id();
    let award = eve.award(&hex, &task, tiny(), |_| {});
    eve.say(&hex, Body::Request(Box::new(award)));
    eve.hear_result(&task);
    let words = legiond::identity::Mnemonic::generate().unwrap();
    let thief = |epoch| {
        let lct = eve.identity.public().lct.clone();
        legiond::identity::Identity::derive(&words, lct, epoch).unwrap()
    };
    let (same, later) = (thief(0), thief(1));
    refused(node, &mut eve, "binding_conflict", 1, |eve| {
        ask(eve, hijack(&eve.hex(), &same, None));
    });
    refused(node, &mut eve, "rotation_unsigned", 2, |eve| {
        ask(eve, hijack(&eve.hex(), &later, None));
        ask(eve, hijack(&eve.hex(), &later, Some(&same)));
    });
    refused(node, &mut eve, "binding_author", 1, |eve| {
        ask(eve, Binding::sign(&later, year, None).unwrap());
    });
    refused(node, &mut eve, "key_unbound", 1, |eve| {
        let mut award = eve.award(&hex, &task_id(), tiny(), |_| {});
        award.entry.key = later.public().ed25519.clone();
        award.entry.sig = hex::encode(later.sign_proof(&award.entry.signing_bytes().unwrap()));
        eve.say(&hex, Body::Request(Box::new(award)));
    });
    // A rotation that the old key has signed is taken, and then the first keys are the past.
    let rotated = hijack(&eve.hex(), &later, Some(&eve.identity));
    let task = task_id();
    let award = eve.award(&hex, &task, tiny(), |a| a.binding = rotated);
    eve.say(&hex, Body::Request(Box::new(award)));
    eve.hear_result(&task);
    refused(node, &mut eve, "binding_epoch", 1, |eve| {
        ask(eve, eve.binding())
    });
}

/// A statement that `keys` belong to this Nostr key, signed by them and, for a rotation, by `previous`.
fn hijack(nostr: &str, keys: &Identity, previous: Option<&Identity>) -> Binding {
    let mut binding = Binding::sign(keys, now_s() + 86_400, None).unwrap();
    binding.statement.nostr = nostr.to_owned();
    let bytes = canonical::signing_bytes("binding", &binding.statement).unwrap();
    binding.sig_ed25519 = hex::encode(keys.sign_proof(&bytes));
    binding.sig_libp2p = hex::encode(keys.sign_libp2p(&bytes).unwrap());
    binding.sig_previous = previous.map(|p| hex::encode(p.sign_proof(&bytes)));
    binding
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

/// Well-formed envelopes around messages in which something is replaced by something odd: whatever it is, it is counted or
/// answered, no money moves, and the node lives.
#[test]
fn messages_with_anything_replaced_by_anything_move_no_money() {
    let target = Target::start();
    let node = &target.node;
    let mut eve = target.trusted(3);
    let hex = key_of(node);
    let task = task_id();
    let award = eve.award(&hex, &task, tiny(), |_| {});
    eve.say(&hex, Body::Request(Box::new(award.clone())));
    let proof = eve.hear_result(&task).proof;
    let evidence = legiond::wire::proof::Evidence {
        code: "unit_mismatch".into(),
        unit: Some(0),
        expected: "AA==".into(),
        received: "AA==".into(),
    };
    let me = eve.hex();
    let offer = eve.offer(&task, |_| {});
    let bodies = [
        Body::Request(Box::new(award.clone())),
        Body::Award(Box::new(award.clone())),
        Body::Accept(Box::new(eve.accept(&me, &award, |_| {}))),
        Body::Bid(Box::new(eve.bid(&hex, &offer, |_| {}))),
        Body::Cancel(Box::new(Cancel {
            task: task.clone(),
            entry: eve.entry(&me, &task, Act::Canceled),
        })),
        eve.receipt(&task, 1, 1, proof.hash().unwrap()),
        eve.refusal(&task, 1, proof.hash().unwrap(), evidence),
        working(),
    ];
    let objects: Vec<Value> = bodies.map(|body| Stranger::object(&hex, body)).to_vec();
    let image = target.account(&eve);
    assert_eq!(image["pending_owed_to_us_mc"], 1);
    let mut dice = Dice(0x5eed);
    for _ in 0..25 {
        // Several in one envelope, each of them broken in another way.
        let batch: Vec<Value> = objects.iter().map(|object| dice.mutate(object)).collect();
        let text = Value::Array(batch).to_string();
        if text.len() < 27_000 {
            eve.say_text(&hex, text);
        }
    }
    // No mutation touches the method: this one comes last and is counted alone.
    let last = json!({"jsonrpc": "2.0", "method": "end", "params": {"to": hex, "v": 1}});
    eve.say_value(&hex, &last);
    let counts = until("the last message", || {
        let counts = dropped(node);
        counts.contains_key("method_unknown").then_some(counts)
    });
    assert!(counts.values().sum::<u64>() > 50, "{counts:?}");
    assert_eq!(target.account(&eve)["posted_mc"], 0);
    let book = node.ok(&["ledger"]);
    assert_eq!(book["sum_mc"], 0);
    assert!(
        target.account(&eve)["pending_owed_to_us_mc"].as_u64() <= Some(3),
        "beyond the credit"
    );
}

/// Reproducible chance.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        // Knuth's MMIX constants; the high bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most
    }

    /// A copy in which one node below `params` is something else, or gone.
    fn mutate(&mut self, object: &Value) -> Value {
        let mut copy = object.clone();
        let mut place = &mut copy["params"];
        loop {
            let deeper = match &*place {
                Value::Object(fields) if !fields.is_empty() => {
                    let names: Vec<String> = fields
                        .keys()
                        .filter(|k| *k != "to" && *k != "v")
                        .cloned()
                        .collect();
                    names.get(self.below(names.len().max(1))).cloned()
                }
                _ => None,
            };
            match deeper {
                Some(name) if self.below(8) > 0 => place = &mut place[name],
                _ => break,
            }
        }
        let odd = [
            Value::Null,
            json!(-1),
            json!(0),
            json!(1u64 << 53),
            json!(u64::MAX),
            json!(1e300),
            json!(""),
            json!("NaN"),
            json!("\u{0}\u{202e}../"),
            json!("f".repeat(64)),
            json!([]),
            json!({}),
            json!([[[[[[]]]]]]),
            json!(true),
        ];
        *place = odd[self.below(odd.len())].clone();
        copy
    }
}
