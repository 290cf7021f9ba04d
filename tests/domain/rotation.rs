//! Keys once bound to a peer change only by a rotation that the old key has signed.

use legiond::domain::job::Route;
use legiond::domain::step::{Addressee, Effect, Input, Step};
use legiond::identity::{Identity, Lct, Mnemonic};
use legiond::wire::binding::{Binding, BoundKeys};
use legiond::wire::log::Outgrown;
use legiond::wire::market::Ad;
use legiond::wire::message::Body;

use super::pair::{Hall, dropped, journaled, letters};
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

/// Identities of one owner at these epochs.
fn epochs<const N: usize>(of: [u32; N]) -> [Identity; N] {
    let words = Mnemonic::generate().unwrap();
    let lct = Lct::new("ada", "attic", "worker").unwrap();
    of.map(|epoch| Identity::derive(&words, lct.clone(), epoch).unwrap())
}

#[test]
fn an_author_of_outgrown_keys_is_shown_the_newer_ones_now_and_then() {
    let [first, second] = epochs([0, 1]);
    let author = first.nostr().public_key();
    let verified = |binding: &Binding| binding.verify(&author, T0 / 1000).unwrap();
    let old = Binding::sign(&first, END_S, None).unwrap();
    let rotated = Binding::sign_lasting(&second, END_S).unwrap();
    let mut long = rotated.clone();
    long.sig_earlier = vec!["x".repeat(100_000); 100];
    let mut hall = Hall::new(1);
    let stale = |hall: &mut Hall| letters(&ad(hall, &first, &old, &verified(&old)));
    assert_eq!(stale(&mut hall).len(), 0, "nothing newer is known");
    ad(&mut hall, &second, &long, &verified(&rotated));
    let said = stale(&mut hall);
    let [(Addressee::Peer(to), Body::Outgrown(told))] = said.as_slice() else {
        panic!("{said:?}")
    };
    assert_eq!(
        (to, &told.newer),
        (&author.to_hex(), &rotated),
        "and no more than a reader looks at"
    );
    let again: usize = (0..20).map(|_| stale(&mut hall).len()).sum();
    assert_eq!(again, 0);
    hall.now += 60_000;
    assert_eq!(stale(&mut hall).len(), 1);
    // Whoever speaks under the newer ones hears nothing of it.
    hall.now += 60_000;
    let step = ad(&mut hall, &second, &rotated, &verified(&rotated));
    assert!(letters(&step).is_empty() && dropped(&step).is_empty());
}

#[test]
fn only_the_own_keys_of_a_later_epoch_stop_a_node() {
    let [zeroth, first, third] = epochs([0, 1, 3]);
    let [thief] = epochs([3]);
    let own = Binding::sign_lasting(&first, END_S).unwrap();
    let later = Binding::sign_lasting(&third, END_S).unwrap();
    let mut hall = Hall::with(2, |at, policy| {
        if at == 0 {
            policy.me = first.public().nostr.clone();
            policy.key = first.public().ed25519.clone();
            policy.binding = own.clone();
        }
    });
    let stranger = hall.npub(1);
    let show = |hall: &mut Hall, newer: &Binding| {
        let body = Body::Outgrown(Box::new(Outgrown {
            newer: newer.clone(),
        }));
        hall.hand_as(&stranger, 0, body, None)
    };
    let asks = |hall: &mut Hall| {
        let ask = crate::sim::world::ask(1, Route::Own, 60_000, 5);
        let step = hall.give(0, Input::Ask(Box::new(ask)));
        let answer = step.effects.into_iter().find_map(|effect| match effect {
            Effect::Asked(answer) => Some(answer),
            _ => None,
        });
        answer.unwrap().map_err(|refused| refused.code)
    };
    // In our name, well signed by keys that are not ours; then our own words, altered, copied or of the past.
    let mut forged = Binding::sign_lasting(&thief, END_S).unwrap();
    forged.statement.nostr = first.public().nostr.clone();
    let bytes = legiond::wire::canonical::signing_bytes("binding", &forged.statement).unwrap();
    forged.sig_ed25519 = hex::encode(thief.sign_proof(&bytes));
    forged.sig_libp2p = hex::encode(thief.sign_libp2p(&bytes).unwrap());
    forged.sig_previous = Some(hex::encode(thief.sign_proof(&bytes)));
    let mut raised = own.clone();
    raised.statement.epoch = 9;
    let mut bare = later.clone();
    (bare.sig_previous, bare.sig_earlier) = (None, Vec::new());
    let past = Binding::sign_lasting(&zeroth, END_S).unwrap();
    let foreign = Binding::sign_lasting(&thief, END_S).unwrap();
    let renewed = Binding::sign_lasting(&first, END_S + 1).unwrap();
    let before = hall.nodes[0].instances().clone();
    for (binding, code) in [
        (&forged, "rotation_unsigned"),
        (&raised, "binding_signature"),
        (&bare, "rotation_unsigned"),
        (&past, "binding_epoch"),
        (&foreign, "binding_author"),
        (&own, "binding_epoch"),
        (&renewed, "binding_epoch"),
    ] {
        let step = show(&mut hall, binding);
        assert_eq!(dropped(&step), [code]);
        assert_eq!(hall.nodes[0].instances(), &before);
        assert_eq!(journaled(&step, "epoch_behind"), 0);
    }
    assert!(asks(&mut hall).is_ok());
    // That it has ended since says nothing against it; once is enough.
    hall.now = (END_S + 1) * 1000;
    let told = [(); 2].map(|()| journaled(&show(&mut hall, &later), "epoch_behind"));
    assert_eq!(told, [1, 0]);
    assert_eq!(asks(&mut hall).unwrap_err(), "epoch_behind");
    // What others bring is left to the home that has the later keys, which this may become.
    let stored = hall.nodes[0].instances().clone();
    for (identity, code) in [(&first, Some("epoch_behind")), (&third, None)] {
        let mut policy = hall.policies[0].clone();
        policy.key = identity.public().ed25519.clone();
        policy.binding = Binding::sign_lasting(identity, END_S * 2).unwrap();
        hall.nodes[0] = legiond::domain::Node::new(policy);
        (hall.nodes[0]).recall(legiond::domain::step::Row::Instances(stored.clone()));
        hall.give(0, Input::Started);
        hall.give(0, Input::CaughtUp { online: true });
        assert_eq!(asks(&mut hall).err().as_deref(), code);
        let (_, offer) = hall.ask(1, 1, Route::Pool("legion".into()), 600_000);
        let (_, offer) = letters(&offer).remove(0);
        let held = dropped(&hall.hand(1, 0, offer)) == ["held_back"];
        assert_eq!(held, code.is_some());
    }
}
