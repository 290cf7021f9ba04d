//! Keys once bound to a peer change only by a rotation that the old key has signed.

use legiond::domain::step::Step;
use legiond::identity::{Identity, Lct, Mnemonic};
use legiond::wire::binding::{Binding, BoundKeys};
use legiond::wire::market::Ad;
use legiond::wire::message::Body;

use super::pair::{Hall, dropped, journaled};
use crate::sim::world::T0;

const END_S: u64 = T0 / 1000 + 86_400;

fn ad(hall: &mut Hall, author: &Identity, binding: &Binding, keys: &BoundKeys) -> Step {
    let npub = author.nostr().public_key().to_hex();
    let ad = Ad {
        lct: "lct:peer#worker".into(),
        binding: binding.clone(),
        relays: vec!["ws://relay".into()],
        skills: Vec::new(),
        queue: 0,
        paused: false,
        expires_ms: hall.now + 3_600_000,
    };
    hall.hand_as(&npub, 0, Body::Ad(Box::new(ad)), Some(keys.clone()))
}

#[test]
fn a_rotation_needs_its_proof() {
    let words = Mnemonic::generate().unwrap();
    let lct = Lct::new("ada", "attic", "worker").unwrap();
    let [first, second] = [0, 1].map(|epoch| Identity::derive(&words, lct.clone(), epoch).unwrap());
    let author = first.nostr().public_key();
    let npub = author.to_hex();
    let verified = |binding: &Binding| binding.verify(&author, T0 / 1000).unwrap();
    let old = Binding::sign(&first, END_S, None).unwrap();
    let rotated = Binding::sign(&second, END_S, Some(&first)).unwrap();
    let unsigned = Binding::sign(&second, END_S, None).unwrap();
    let renewed = Binding::sign(&first, END_S + 1, None).unwrap();

    let mut hall = Hall::new(1);
    assert_eq!(
        dropped(&ad(&mut hall, &first, &old, &verified(&old))),
        [""; 0]
    );
    assert_eq!(
        dropped(&ad(&mut hall, &first, &renewed, &verified(&renewed))),
        [""; 0]
    );
    let before = hall.snapshot(0);
    let mut refused = |binding: &Binding, keys: &BoundKeys, code: &str| {
        let step = ad(&mut hall, &first, binding, keys);
        assert_eq!(dropped(&step), [code]);
        assert!(step.changes.is_empty(), "{:?}", step.changes);
        assert!(hall.snapshot(0) == before, "nothing has changed: {code}");
    };
    refused(&unsigned, &verified(&unsigned), "rotation_unsigned");
    // Keys that the binding does not name.
    refused(&old, &verified(&rotated), "key_unbound");
    let step = ad(&mut hall, &first, &rotated, &verified(&rotated));
    assert_eq!(
        (dropped(&step).len(), journaled(&step, "keys_rotated")),
        (0, 1)
    );
    let peer = hall.nodes[0].peers()[&npub].clone();
    let [one, two] = [&first, &second].map(|identity| identity.public().ed25519.clone());
    assert_eq!((peer.epoch, peer.key.as_ref()), (1, Some(&two)));
    assert!(
        peer.owns(&one) && peer.owns(&two),
        "old signatures are still on their way"
    );
    let step = ad(&mut hall, &first, &old, &verified(&old));
    assert_eq!(dropped(&step), ["binding_epoch"]);
    assert_eq!(hall.nodes[0].peers()[&npub], peer);

    // Other keys under the epoch that is known.
    let mut hall = Hall::new(1);
    let mut other = verified(&old);
    other.x25519[0] ^= 1;
    ad(&mut hall, &first, &old, &other);
    let step = ad(&mut hall, &first, &old, &verified(&old));
    assert_eq!(dropped(&step), ["binding_conflict"]);
}
