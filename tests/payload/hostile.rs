//! Strangers and false friends with payloads: every wrong chunk is counted under its own code, nothing of a wrong payload is
//! used, and ten thousand of them at once leave no trace.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use legiond::identity::blob::{Blob, Purpose, SEGMENT_BYTES, one_time};
use legiond::wire::market::{Award, commitment};
use legiond::wire::message::{Body, News};
use legiond::wire::transfer::{CHUNK_BYTES, Chunk, Detached, Have, Named, Transfer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::stranger::{Stranger, dropped, key_of, task_id};
use crate::support::world::{Node, Relay, until};

struct Target {
    _dir: tempfile::TempDir,
    relay: Relay,
    node: Node,
}

impl Target {
    fn start() -> Self {
        let relay = Relay::start();
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::init(dir.path(), "target", &[&relay.url]);
        node.env("LEGION_ECHO", "1");
        // Free of charge: no lack of credit keeps anybody away.
        node.configure("market", "unit_price_mc", "0");
        node.up();
        Self {
            _dir: dir,
            relay,
            node,
        }
    }

    fn friend(&self) -> Stranger {
        let friend = Stranger::on(&self.relay.url);
        let trust = ["peers", "trust", &friend.npub(), "--tier", "trusted"];
        self.node.ok(&trust);
        friend
    }

    fn counted(&self, code: &str) -> u64 {
        dropped(&self.node).get(code).copied().unwrap_or(0)
    }

    /// Does something, and waits until it was counted once more under `code`.
    fn refuses(&self, code: &str, act: impl FnOnce()) {
        let before = self.counted(code);
        act();
        until(code, || (self.counted(code) == before + 1).then_some(()));
    }

    fn incoming(&self) -> u64 {
        let status = self.node.ok(&["status"]);
        status["transfers"]["incoming"].as_u64().unwrap()
    }
}

/// A payload of 100 kB, as its sender sees it.
struct Parcel {
    award: Award,
    detached: Detached,
    plain: Vec<u8>,
}

fn letters() -> Value {
    json!({"text": "abcdefghij".repeat(10_000)})
}

/// A request for `echo` without its input. `ruin` may lie about it.
fn request(friend: &mut Stranger, node: &Node, ruin: impl FnOnce(&mut Detached)) -> Parcel {
    let plain = json!({"input": letters()}).to_string().into_bytes();
    let mut detached = Detached {
        id: task_id(),
        bytes: plain.len() as u64,
        sha256: hex::encode(Sha256::digest(&plain)),
    };
    ruin(&mut detached);
    let award = friend.award(&key_of(node), &task_id(), Value::Null, |award| {
        award.skill = "echo".into();
        award.units = 1;
        award.commitment = commitment(&letters(), &award.salt).unwrap();
        award.detached = Some(detached.clone());
    });
    friend.say(&key_of(node), Body::Request(Box::new(award.clone())));
    Parcel {
        award,
        detached,
        plain,
    }
}

fn hear_have(friend: &mut Stranger, id: &str) -> Have {
    friend.hear("what the node has", |h| match &h.body {
        Body::Transfer(said) => match &**said {
            Transfer::Have(have) if have.id == id => Some(have.clone()),
            _ => None,
        },
        _ => None,
    })
}

fn hear_refused(friend: &mut Stranger, id: &str) -> String {
    friend.hear("that the transfer is refused", |h| match &h.body {
        Body::Transfer(said) => match &**said {
            Transfer::Refused(refused) if refused.id == id => Some(refused.code.clone()),
            _ => None,
        },
        _ => None,
    })
}

impl Parcel {
    /// The chunks, sealed to these keys for `task`.
    fn chunks(&self, have: &Have, task: &str) -> Vec<Chunk> {
        let (secret, public) = one_time().unwrap();
        let key = |text: &str| <[u8; 32]>::try_from(hex::decode(text).unwrap()).unwrap();
        let purpose = Purpose {
            task,
            award_no: self.award.award_no,
            what: "input",
        };
        let (once, fixed) = (key(&have.keys.once), key(&have.keys.fixed));
        let mut blob = Blob::sealing(&secret, &once, &fixed, purpose).unwrap();
        let segments: Vec<&[u8]> = self.plain.chunks(SEGMENT_BYTES).collect();
        let last = segments.len() - 1;
        let sealed: Vec<u8> = (segments.iter().enumerate())
            .flat_map(|(at, segment)| blob.seal(segment, at == last).unwrap())
            .collect();
        (sealed.chunks(CHUNK_BYTES).enumerate())
            .map(|(at, piece)| Chunk {
                id: self.detached.id.clone(),
                index: at as u32,
                eph: hex::encode(public),
                data: STANDARD.encode(piece),
            })
            .collect()
    }
}

fn say(friend: &mut Stranger, node: &Node, chunk: &Chunk) {
    let said = Transfer::Chunk(chunk.clone());
    friend.say(&key_of(node), Body::Transfer(Box::new(said)));
}

#[test]
fn a_chunk_that_does_not_fit_is_counted_and_the_honest_ones_still_arrive() {
    let target = Target::start();
    let node = &target.node;
    let (mut friend, mut other) = (target.friend(), target.friend());
    let parcel = request(&mut friend, node, |_| {});
    let have = hear_have(&mut friend, &parcel.detached.id);
    assert_eq!(
        (have.upto, have.missing.as_slice()),
        (5, [(0, 5)].as_slice())
    );
    let chunks = parcel.chunks(&have, &parcel.award.task);
    let bad = |change: &dyn Fn(&mut Chunk)| {
        let mut chunk = chunks[1].clone();
        change(&mut chunk);
        chunk
    };
    say(&mut friend, node, &chunks[0]);
    let half = STANDARD.encode([7; CHUNK_BYTES / 2]);
    let wrong = [
        ("chunk_index", bad(&|c| c.index = 5)),
        ("chunk_index", bad(&|c| c.index = u32::MAX)),
        ("chunk_size", bad(&|c| c.data = half.clone())),
        ("chunk_size", bad(&|c| c.index = 4)),
        ("chunk_malformed", bad(&|c| c.data = "!".into())),
        ("chunk_key", bad(&|c| c.eph = "0".repeat(64))),
        ("transfer_unknown", bad(&|c| c.id = task_id())),
        ("bounds_exceeded", bad(&|c| c.id = "../../etc".into())),
        ("bounds_exceeded", bad(&|c| c.data = "A".repeat(27_312))),
        ("chunk_duplicate", chunks[0].clone()),
    ];
    for (code, chunk) in &wrong {
        target.refuses(code, || say(&mut friend, node, chunk));
    }
    // Whose transfer it is, the author of the chunk says, not the id in it.
    target.refuses("transfer_unknown", || say(&mut other, node, &chunks[1]));
    for chunk in chunks.iter().skip(1) {
        say(&mut friend, node, chunk);
    }
    let result = friend.hear("the result", |h| match &h.body {
        Body::Update(u) if u.task == parcel.award.task => match &u.news {
            News::Completed(result) => Some((**result).clone()),
            _ => None,
        },
        _ => None,
    });
    let detached = result
        .detached
        .expect("the result is as large as the input");
    assert!(detached.bytes > 100_000, "{}", detached.bytes);
    // A chunk after the last: the transfer has ended.
    target.refuses("transfer_unknown", || say(&mut friend, node, &chunks[1]));
    let ask = Transfer::Ask(Named {
        id: parcel.detached.id.clone(),
    });
    friend.whisper(&key_of(node), Body::Transfer(Box::new(ask)));
    assert_eq!(
        hear_refused(&mut friend, &parcel.detached.id),
        "transfer_unknown"
    );
}

#[test]
fn nothing_of_a_wrong_payload_is_used() {
    let target = Target::start();
    let node = &target.node;
    let mut friend = target.friend();
    let foreign = task_id();
    // A hash of something else; a payload sealed for another task; and what is no payload at all.
    for (code, lies) in [
        ("payload_hash", 0),
        ("payload_seal", 1),
        ("payload_seal", 2),
    ] {
        let parcel = request(&mut friend, node, |detached| {
            if lies == 0 {
                detached.sha256 = "0".repeat(64);
            }
        });
        let have = hear_have(&mut friend, &parcel.detached.id);
        let task = if lies == 1 {
            &foreign
        } else {
            &parcel.award.task
        };
        let mut chunks = parcel.chunks(&have, task);
        if lies == 2 {
            chunks[2].data = STANDARD.encode([7; CHUNK_BYTES]);
        }
        for chunk in &chunks {
            say(&mut friend, node, chunk);
        }
        assert_eq!(hear_refused(&mut friend, &parcel.detached.id), code);
        assert_eq!(friend.hear_decline(&parcel.award.task), code);
    }
    let large = request(&mut friend, node, |detached| detached.bytes = 6 << 20);
    assert_eq!(friend.hear_decline(&large.award.task), "payload_too_large");
    assert!(node.journaled("accepted").is_empty());
    until("no transfer is left", || {
        (target.incoming() == 0).then_some(())
    });
}

#[test]
fn ten_thousand_transfers_at_once_are_a_few_and_the_rest_is_declined() {
    let target = Target::start();
    let node = &target.node;
    let mut friend = target.friend();
    let mut eve = Stranger::on(&target.relay.url);
    let me = key_of(node);
    let mut told = 0;
    while told < 10_000 {
        // Several in one envelope, as many as fit.
        let sender = if told < 200 { &mut friend } else { &mut eve };
        let batch: Vec<Value> = (0..8)
            .map(|_| {
                let award = sender.award(&me, &task_id(), Value::Null, |award| {
                    award.skill = "echo".into();
                    award.units = 1;
                    award.detached = Some(Detached {
                        id: task_id(),
                        bytes: 5_000_000,
                        sha256: "0".repeat(64),
                    });
                });
                Stranger::object(&me, Body::Request(Box::new(award)))
            })
            .collect();
        told += batch.len();
        sender.say_value(&me, &Value::Array(batch));
    }
    // The last word of each: what came before it was heard.
    for sender in [&mut friend, &mut eve] {
        sender.fence(&me);
    }
    until("the last word", || {
        (target.counted("task_unknown") == 2).then_some(())
    });
    assert_eq!(
        target.incoming(),
        18,
        "16 of one friend, 2 of all strangers"
    );
    let pieces = node.ok(&["status"])["store_bytes"].as_u64().unwrap();
    assert!(pieces < 64 << 20, "{pieces} bytes");
}
