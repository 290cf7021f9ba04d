//! Somebody recorded all that passed a relay, and later steals the key files and the stores of both nodes: messages open to them, as
//! NIP-44 has no forward secrecy, but no payload does, because its one-time secret is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use legiond::identity::blob::{Blob, Purpose, SEGMENT_BYTES, TAG_BYTES};
use legiond::identity::conversation::Conversations;
use legiond::identity::{Identity, keyfile};
use legiond::store::{Order, Rows, Span, Store, StoreOptions, Table};
use legiond::wire::message::{Body, Message};
use legiond::wire::transfer::Transfer;
use legiond::wire::verify::{Keyring, verify};
use nostr::Event;

use super::{Lossy, ask, finish, patiently, prepare, text};
use crate::support::world::{Node, Pair};

/// A payload as the wraps on the relay give it, once they are open.
#[derive(Default)]
struct Captured {
    eph: Vec<u8>,
    pieces: BTreeMap<u32, Vec<u8>>,
}

#[derive(Default)]
struct Loot {
    /// What was said in the open, as far as a thief of the keys is concerned.
    methods: BTreeSet<&'static str>,
    tasks: BTreeSet<String>,
    payloads: BTreeMap<String, Captured>,
}

/// Opens every recorded wrap with this key file.
fn read(identity: &Identity, events: &[Event], loot: &mut Loot) {
    let ring = Keyring::new(identity.nostr().clone(), Arc::new(Conversations::new(64)));
    let now_s = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    for event in events {
        let Ok(verified) = verify(event, &ring, now_s) else {
            continue;
        };
        for message in Message::parse(&verified.content, |_| true).unwrap() {
            let body = message.unwrap().body;
            loot.methods.insert(body.method());
            match body {
                Body::Request(award) => {
                    loot.tasks.insert(award.task);
                }
                Body::Transfer(said) => {
                    if let Transfer::Chunk(chunk) = *said {
                        let payload = loot.payloads.entry(chunk.id).or_default();
                        payload.eph = hex::decode(chunk.eph).unwrap();
                        let data = STANDARD.decode(chunk.data).unwrap();
                        payload.pieces.insert(chunk.index, data);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Everything in a store that could be a secret: every run of 64 hex digits.
fn secrets(store: &Path) -> BTreeSet<[u8; 32]> {
    let store = Store::open(store, StoreOptions::default()).unwrap();
    let view = store.view().unwrap();
    let mut found = BTreeSet::new();
    for table in Table::ALL {
        for key in view
            .keys(table, Span::all(), usize::MAX, Order::Ascending)
            .unwrap()
        {
            let row = view.get_bytes(table, &key).unwrap().unwrap_or_default();
            let text = String::from_utf8_lossy(&row);
            let words = text.split(|c: char| !c.is_ascii_hexdigit());
            for word in words.filter(|word| word.len() == 64) {
                found.insert(hex::decode(word).unwrap().try_into().unwrap());
            }
        }
    }
    found
}

/// The beginnings of all payloads that these secrets open.
fn opened(loot: &Loot, thieves: &[&Identity], secrets: &BTreeSet<[u8; 32]>) -> Vec<String> {
    let mut plain = Vec::new();
    for payload in loot.payloads.values() {
        let sealed: Vec<u8> = payload.pieces.values().flatten().copied().collect();
        let segment = &sealed[..SEGMENT_BYTES + TAG_BYTES];
        let eph = payload.eph.clone().try_into().unwrap();
        for (task, what) in loot
            .tasks
            .iter()
            .flat_map(|t| ["input", "result"].map(|w| (t, w)))
        {
            let purpose = Purpose {
                task,
                award_no: 1,
                what,
            };
            for (thief, once) in thieves
                .iter()
                .flat_map(|t| secrets.iter().map(move |s| (t, s)))
            {
                let blob = Blob::opening(once, thief.seal_secret(), &eph, purpose);
                let open = blob.and_then(|mut blob| blob.open(segment, false));
                plain.extend(open.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
    }
    plain
}

fn keys_of(node: &Node) -> Identity {
    keyfile::open(&node.home.join("keys"), None).unwrap()
}

#[test]
fn stolen_keys_and_stores_open_no_payload_of_the_past() {
    let relay = Lossy::start(0, Duration::from_millis(25));
    let mut pair = Pair::on(&relay.url, prepare);
    let letters = 200_000;
    let task = ask(&pair, letters, &["--peer", &pair.worker.npub.clone()]);
    // The control: who takes the receiver's store in the middle of a transfer has its secret.
    patiently("the middle of the transfer", || relay.pieces() >= 3);
    pair.worker.kill();
    let stolen = tempfile::tempdir().unwrap();
    let early = stolen.path().join("store.redb");
    std::fs::copy(pair.worker.home.join("store.redb"), &early).unwrap();
    pair.worker.up();
    patiently("the task to end", || super::ended(&pair, &task));
    finish(&pair, &task, letters);
    for node in [&mut pair.asker, &mut pair.worker] {
        assert!(node.terminate().success());
    }

    let (asker, worker) = (keys_of(&pair.asker), keys_of(&pair.worker));
    let mut loot = Loot::default();
    for identity in [&asker, &worker] {
        read(identity, &relay.events(), &mut loot);
    }
    assert!(loot.methods.contains("message/send"), "{:?}", loot.methods);
    assert_eq!(loot.payloads.len(), 2, "input and result were recorded");
    let thieves = [&asker, &worker];
    let control = opened(&loot, &thieves, &secrets(&early));
    assert_eq!(control.len(), 1, "the input");
    assert!(control[0].contains(&text(1_000)));

    let mut late = BTreeSet::new();
    for node in [&pair.asker, &pair.worker] {
        late.extend(secrets(&node.home.join("store.redb")));
    }
    for identity in thieves {
        late.insert(identity.seal_secret().to_bytes());
        late.insert(identity.nostr().secret_key().to_secret_bytes());
    }
    assert!(late.len() > 10, "{}", late.len());
    assert_eq!(opened(&loot, &thieves, &late), Vec::<String>::new());
}
