//! What the gate promises: an honest message comes through whole, and each way to cheat has its own refusal.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::identity::conversation::encrypt;
use crate::identity::pool::PoolSecret;
use crate::identity::sealing::{Delivery, Draft, seal, wrap};
use crate::wire::envelope::Envelope;
use nostr::{EventBuilder, JsonUtil, Kind, Tag, Timestamp};

const NOW_S: u64 = 1_795_219_200;

struct World {
    alice: Keys,
    bob: Keys,
    ring: Keyring,
    conversations: Conversations,
}

/// Alice writes, Bob's ring reads.
fn world() -> World {
    let (alice, bob) = (Keys::generate(), Keys::generate());
    let ring = Keyring::new(bob.clone(), Arc::new(Conversations::new(64)));
    World {
        alice,
        bob,
        ring,
        conversations: Conversations::new(64),
    }
}

impl World {
    fn draft(&self) -> Draft {
        Draft {
            author: self.alice.public_key(),
            recipient: self.bob.public_key(),
            content: "{\"jsonrpc\":\"2.0\",\"id\":1}".into(),
            reply_to: None,
            created_at_s: NOW_S,
            expires_at_s: Some(NOW_S + 600),
        }
    }

    fn close(&self, draft: Draft) -> Event {
        Envelope::new(draft, Delivery::Stored, 0)
            .unwrap()
            .close(&self.conversations, &self.alice, NOW_S)
            .unwrap()
    }

    fn rumor(&self) -> UnsignedEvent {
        crate::identity::sealing::rumor(self.draft()).unwrap()
    }

    /// A rumor as a cheat would write it: any fields, sealed honestly.
    fn close_rumor(&self, rumor: &UnsignedEvent) -> Event {
        self.close_text(&rumor.as_json())
    }

    fn close_text(&self, rumor: &str) -> Event {
        let key = self
            .conversations
            .key(&self.alice, &self.bob.public_key())
            .unwrap();
        let sealed = EventBuilder::new(Kind::Seal, encrypt(&key, rumor.as_bytes()).unwrap());
        self.wrap(&sealed.sign_with_keys(&self.alice).unwrap())
    }

    fn wrap(&self, seal: &Event) -> Event {
        wrap(
            seal,
            &self.bob.public_key(),
            Delivery::Stored,
            0,
            None,
            NOW_S,
        )
        .unwrap()
    }

    /// A wrap around any text at all.
    fn wrap_text(&self, inside: &str) -> Event {
        let once = Keys::generate();
        let key = conversation_key(&once, &self.bob.public_key()).unwrap();
        EventBuilder::new(Kind::GiftWrap, encrypt(&key, inside.as_bytes()).unwrap())
            .tag(Tag::public_key(self.bob.public_key()))
            .sign_with_keys(&once)
            .unwrap()
    }

    fn verify(&self, event: &Event) -> Result<Verified, Refusal> {
        verify(event, &self.ring, NOW_S)
    }

    #[track_caller]
    fn refuses(&self, event: &Event, code: &str) {
        assert_eq!(self.verify(event).unwrap_err().code(), code);
    }
}

#[test]
fn an_honest_message_comes_through_whole() {
    let world = world();
    for delivery in [Delivery::Stored, Delivery::Ephemeral] {
        let mut draft = world.draft();
        draft.reply_to = Some(EventId::from_byte_array([7; 32]));
        let envelope = Envelope::new(draft.clone(), delivery, 0).unwrap();
        let event = envelope
            .close(&world.conversations, &world.alice, NOW_S)
            .unwrap();
        // As a relay delivers it: through JSON.
        let event = Event::from_json(event.as_json()).unwrap();
        let verified = world.verify(&event).unwrap();
        assert_eq!(verified.author, world.alice.public_key());
        assert_eq!(verified.rumor_id, envelope.rumor_id());
        assert_eq!(verified.wrap_id, event.id);
        assert_eq!(verified.inbox, Inbox::Own);
        assert_eq!(verified.content, draft.content);
        assert_eq!(
            (verified.created_at_s, verified.expires_at_s),
            (NOW_S, Some(NOW_S + 600))
        );
        assert_eq!(verified.reply_to, draft.reply_to);
        assert_eq!(verified.ephemeral, delivery == Delivery::Ephemeral);
    }
}

/// Whatever bit a relay turns: the event is no event, or it is refused, or it is still the very same message (a hex digit in
/// the other case).
#[test]
fn no_changed_bit_changes_a_message() {
    let world = world();
    let json = world.close(world.draft()).as_json();
    let honest = world.verify(&Event::from_json(&json).unwrap()).unwrap();
    let mut refused = 0;
    for at in 0..json.len() {
        let mut bytes = json.clone().into_bytes();
        bytes[at] ^= 1 << (at % 7);
        let Ok(event) = serde_json::from_slice::<Event>(&bytes) else {
            continue;
        };
        match world.verify(&event) {
            Ok(verified) => assert_eq!(verified, honest, "byte {at}"),
            Err(_) => refused += 1,
        }
    }
    assert!(
        refused > json.len() / 2,
        "only {refused} changes reached the gate"
    );
}

#[test]
fn the_gate_is_open_to_every_thread() {
    let world = world();
    let events: Vec<Event> = (0..8).map(|_| world.close(world.draft())).collect();
    std::thread::scope(|scope| {
        for event in &events {
            scope.spawn(|| assert!(world.verify(event).is_ok()));
        }
    });
}

#[test]
fn the_same_message_in_a_second_wrap_has_the_same_identity() {
    let world = world();
    let envelope = Envelope::new(world.draft(), Delivery::Stored, 0).unwrap();
    let close = || {
        world
            .verify(
                &envelope
                    .close(&world.conversations, &world.alice, NOW_S)
                    .unwrap(),
            )
            .unwrap()
    };
    let (first, second) = (close(), close());
    assert_ne!(first.wrap_id, second.wrap_id);
    assert_eq!(
        (first.author, first.rumor_id),
        (second.author, second.rumor_id)
    );
}

#[test]
fn a_rumor_without_id_is_named_by_its_hash() {
    let world = world();
    let mut rumor = world.rumor();
    let id = rumor.id.take().unwrap();
    assert_eq!(
        world.verify(&world.close_rumor(&rumor)).unwrap().rumor_id,
        id
    );
}

#[test]
fn contextvm_messages_are_accepted_signed_and_addressed() {
    let world = world();
    let message = |to: &Keys| {
        EventBuilder::new(Kind::from_u16(KIND_MESSAGE), "{\"jsonrpc\":\"2.0\"}")
            .tag(Tag::public_key(to.public_key()))
            .custom_created_at(Timestamp::from_secs(NOW_S))
            .sign_with_keys(&world.alice)
            .unwrap()
    };
    let inner = message(&world.bob);
    let verified = world.verify(&world.wrap_text(&inner.as_json())).unwrap();
    assert_eq!(
        (verified.author, verified.rumor_id),
        (world.alice.public_key(), inner.id)
    );
    assert_eq!(verified.expires_at_s, None);
    world.refuses(
        &world.wrap_text(&message(&world.alice).as_json()),
        "rumor_recipient",
    );
    world.refuses(
        &world.wrap_text(&inner.as_json().replace("2.0", "2.1")),
        "seal_signature",
    );
}

#[test]
fn wraps_are_checked_before_any_secret_is_used() {
    let world = world();
    let good = world.close(world.draft());

    let mut tampered = good.clone();
    tampered.content.push('A');
    world.refuses(&tampered, "wrap_id");
    let mut resigned = good.clone();
    resigned.sig = world.close(world.draft()).sig;
    world.refuses(&resigned, "wrap_signature");
    let mut note = good.clone();
    note.kind = Kind::TextNote;
    world.refuses(&note, "wrap_kind");
    let mut huge = good.clone();
    huge.content = "A".repeat(MAX_EVENT_BYTES + 1);
    world.refuses(&huge, "event_too_large");
    let mut tagged = good.clone();
    tagged
        .tags
        .push(Tag::parse(["x", &"A".repeat(MAX_EVENT_BYTES)]).unwrap());
    world.refuses(&tagged, "event_too_large");

    let mut stranger = world.draft();
    stranger.recipient = Keys::generate().public_key();
    world.refuses(&world.close(stranger), "not_for_us");
    let mut nobody = good.clone();
    nobody.tags = Tags::new();
    world.refuses(&nobody, "not_for_us");
}

#[test]
fn a_wrap_that_only_names_us_is_undecryptable() {
    let world = world();
    let (once, other) = (Keys::generate(), Keys::generate());
    for content in [
        encrypt(
            &conversation_key(&once, &other.public_key()).unwrap(),
            b"{}",
        )
        .unwrap(),
        "no base64!".into(),
        String::new(),
    ] {
        let event = EventBuilder::new(Kind::GiftWrap, content)
            .tag(Tag::public_key(world.bob.public_key()))
            .sign_with_keys(&once)
            .unwrap();
        world.refuses(&event, "undecryptable");
    }
    // The same one layer deeper: sealed to somebody else.
    let sealed = seal(
        &world.conversations,
        &world.alice,
        &other.public_key(),
        &world.rumor(),
        NOW_S,
    )
    .unwrap();
    world.refuses(&world.wrap(&sealed), "undecryptable");
}

#[test]
fn seals_are_checked() {
    let world = world();
    let rumor = world.rumor();
    let good = seal(
        &world.conversations,
        &world.alice,
        &world.bob.public_key(),
        &rumor,
        NOW_S,
    )
    .unwrap();
    assert!(world.verify(&world.wrap(&good)).is_ok());

    world.refuses(&world.wrap_text("{}"), "seal_malformed");
    world.refuses(&world.wrap_text(&rumor.as_json()), "seal_malformed");
    let note = EventBuilder::new(Kind::TextNote, good.content.clone())
        .sign_with_keys(&world.alice)
        .unwrap();
    world.refuses(&world.wrap(&note), "seal_kind");
    let tagged = EventBuilder::new(Kind::Seal, good.content.clone())
        .tag(Tag::hashtag("x"))
        .sign_with_keys(&world.alice)
        .unwrap();
    world.refuses(&world.wrap(&tagged), "seal_tags");
    let mut forged = good.clone();
    forged.created_at = Timestamp::from_secs(1);
    world.refuses(&world.wrap(&forged), "seal_signature");
    let mut resigned = good.clone();
    resigned.sig = note.sig;
    world.refuses(&world.wrap(&resigned), "seal_signature");

    // Mallory seals a rumor that says it is Alice's.
    let mallory = Keys::generate();
    let key = conversation_key(&mallory, &world.bob.public_key()).unwrap();
    let lie = EventBuilder::new(
        Kind::Seal,
        encrypt(&key, rumor.as_json().as_bytes()).unwrap(),
    )
    .sign_with_keys(&mallory)
    .unwrap();
    world.refuses(&world.wrap(&lie), "seal_author");
}

#[test]
fn rumors_are_checked() {
    let world = world();
    let good = world.rumor();

    let mut other_id = good.clone();
    other_id.id = Some(EventId::all_zeros());
    world.refuses(&world.close_rumor(&other_id), "rumor_id");
    world.refuses(&world.close_text("[]"), "rumor_malformed");
    let note = UnsignedEvent::new(
        good.pubkey,
        good.created_at,
        Kind::TextNote,
        good.tags.clone(),
        "x",
    );
    world.refuses(&world.close_rumor(&note), "rumor_kind");
    let large = UnsignedEvent::new(
        good.pubkey,
        good.created_at,
        good.kind,
        good.tags.clone(),
        "x".repeat(MAX_RUMOR_BYTES),
    );
    // Sealed and wrapped, a rumor over the limit is an event over the limit; a ContextVM message has one layer less.
    world.refuses(&world.close_rumor(&large), "event_too_large");
    let large = EventBuilder::new(good.kind, large.content)
        .sign_with_keys(&world.alice)
        .unwrap();
    world.refuses(&world.wrap_text(&large.as_json()), "rumor_too_large");

    let with_tags = |tags: Vec<Tag>| {
        world.close_rumor(&UnsignedEvent::new(
            good.pubkey,
            good.created_at,
            good.kind,
            tags,
            "x",
        ))
    };
    let to_bob = Tag::public_key(world.bob.public_key());
    let tag = |name: &str, value: &str| Tag::parse([name, value]).unwrap();
    world.refuses(&with_tags(vec![]), "rumor_recipient");
    world.refuses(&with_tags(vec![tag("p", "nonsense")]), "rumor_recipient");
    world.refuses(
        &with_tags(vec![Tag::public_key(world.alice.public_key())]),
        "rumor_recipient",
    );
    world.refuses(
        &with_tags(vec![
            to_bob.clone(),
            Tag::public_key(world.alice.public_key()),
        ]),
        "rumor_recipient",
    );
    world.refuses(
        &with_tags(vec![to_bob.clone(), tag("e", "nonsense")]),
        "rumor_malformed",
    );
    world.refuses(
        &with_tags(vec![to_bob.clone(), tag("expiration", "-1")]),
        "rumor_malformed",
    );
    let too_far = (NOW_S + MAX_EXPIRATION_S + 1).to_string();
    world.refuses(
        &with_tags(vec![to_bob, tag("expiration", &too_far)]),
        "expiration_too_far",
    );
}

#[test]
fn a_message_to_one_inbox_cannot_be_passed_to_another() {
    let world = world();
    let reply = Keys::generate();
    world
        .ring
        .insert(reply.clone(), Inbox::Task("t1".into()), 0);
    let mut draft = world.draft();
    draft.recipient = reply.public_key();
    let envelope = Envelope::new(draft, Delivery::Stored, 0).unwrap();
    let honest = envelope
        .close(&world.conversations, &world.alice, NOW_S)
        .unwrap();
    assert_eq!(
        world.verify(&honest).unwrap().inbox,
        Inbox::Task("t1".into())
    );
    assert_eq!(world.ring.inbox_of(&honest), Some(Inbox::Task("t1".into())));
    let moved = envelope
        .close_for(
            &world.bob.public_key(),
            &world.conversations,
            &world.alice,
            NOW_S,
        )
        .unwrap();
    world.refuses(&moved, "rumor_recipient");
    assert!(world.ring.remove(&reply.public_key()));
    world.refuses(&honest, "not_for_us");
}

#[test]
fn time_is_judged_by_the_rumor_and_our_clock() {
    let world = world();
    let at = |created_at_s, expires_at_s| {
        let mut draft = world.draft();
        (draft.created_at_s, draft.expires_at_s) = (created_at_s, expires_at_s);
        world.close(draft)
    };
    assert!(world.verify(&at(NOW_S + MAX_AHEAD_S, None)).is_ok());
    world.refuses(&at(NOW_S + MAX_AHEAD_S + 1, None), "rumor_future");
    assert!(world.verify(&at(NOW_S - 60, Some(NOW_S + 1))).is_ok());
    world.refuses(&at(NOW_S - 60, Some(NOW_S)), "rumor_expired");
    // Without an expiration it lasts as long as the longest, so that seen ids can be forgotten one day.
    assert!(
        world
            .verify(&at(NOW_S - MAX_EXPIRATION_S + 1, None))
            .is_ok()
    );
    world.refuses(&at(NOW_S - MAX_EXPIRATION_S, None), "rumor_expired");
}

#[test]
fn pools_demand_work_and_read_the_keys_of_neighbouring_days() {
    let world = world();
    let secret = PoolSecret::open("legion").unwrap();
    let other = PoolSecret::open("other").unwrap();
    let pool = |name: &str, utc_day| Inbox::Pool {
        name: name.into(),
        epoch: 0,
        utc_day,
    };
    let (today, tomorrow) = (secret.day_keys(100).unwrap(), secret.day_keys(101).unwrap());
    world.ring.insert(today.clone(), pool("legion", 100), 8);
    world.ring.insert(tomorrow.clone(), pool("legion", 101), 8);
    world
        .ring
        .insert(other.day_keys(100).unwrap(), pool("other", 100), 0);

    let mut draft = world.draft();
    draft.recipient = today.public_key();
    let worked = Envelope::new(draft.clone(), Delivery::Stored, 8).unwrap();
    let close_for = |envelope: &Envelope, keys: &Keys| {
        envelope
            .close_for(
                &keys.public_key(),
                &world.conversations,
                &world.alice,
                NOW_S,
            )
            .unwrap()
    };
    assert_eq!(
        world.verify(&close_for(&worked, &today)).unwrap().inbox,
        pool("legion", 100)
    );
    let moved = world.verify(&close_for(&worked, &tomorrow)).unwrap();
    assert_eq!(
        (moved.inbox, moved.rumor_id),
        (pool("legion", 101), worked.rumor_id())
    );
    world.refuses(
        &close_for(&worked, &other.day_keys(100).unwrap()),
        "rumor_recipient",
    );
    world.refuses(&close_for(&worked, &world.bob), "rumor_recipient");

    let idle = Envelope::new(draft.clone(), Delivery::Stored, 0).unwrap();
    world.refuses(&close_for(&idle, &today), "pow_missing");
    let lazy = Envelope::new(draft, Delivery::Stored, 4).unwrap();
    // Committed to 4 bits: even a lucky id with 8 is refused.
    world.refuses(&close_for(&lazy, &today), "pow_missing");
}

/// A rotated secret: heard during the grace, never mixed with its successor, and refused unopened once it is closed.
#[test]
fn a_pool_s_epochs_are_readers_of_their_own_and_a_closed_one_reads_nothing() {
    let world = world();
    let [old, new] = [1u8, 2].map(|byte| PoolSecret::from_bytes([byte; 32]));
    let [old, new] = [old, new].map(|secret| secret.day_keys(100).unwrap());
    let inbox = |epoch| Inbox::Pool {
        name: "family".into(),
        epoch,
        utc_day: 100,
    };
    world.ring.insert(old.clone(), inbox(1), 0);
    world.ring.insert(new.clone(), inbox(2), 0);
    let mut draft = world.draft();
    draft.recipient = old.public_key();
    let said = Envelope::new(draft, Delivery::Stored, 0).unwrap();
    let close_for = |keys: &Keys| {
        let (conversations, alice) = (&world.conversations, &world.alice);
        said.close_for(&keys.public_key(), conversations, alice, NOW_S)
            .unwrap()
    };
    assert_eq!(world.verify(&close_for(&old)).unwrap().inbox, inbox(1));
    world.refuses(&close_for(&new), "rumor_recipient");

    world.ring.insert_closed(old.clone(), inbox(1));
    world.refuses(&close_for(&old), "pool_epoch");
    // Even with a body that was tampered with: nothing of it is looked at.
    let mut tampered = close_for(&old);
    tampered.content.push('x');
    world.refuses(&tampered, "pool_epoch");
    world.ring.remove(&old.public_key());
    world.refuses(&close_for(&old), "not_for_us");
}

/// NIP-59's own example goes through both layers; it is refused only because it is a note and not a message.
#[test]
fn the_nip59_example_is_opened_and_is_no_message() {
    let example: serde_json::Value =
        serde_json::from_str(include_str!("../../../fixtures/identity/nip59.json")).unwrap();
    let recipient = Keys::parse(example["recipient_secret"].as_str().unwrap()).unwrap();
    let ring = Keyring::new(recipient, Arc::new(Conversations::new(4)));
    let event: Event = serde_json::from_value(example["wrap"].clone()).unwrap();
    let refusal = verify(&event, &ring, 1_703_021_488).unwrap_err();
    assert_eq!(refusal.code(), "rumor_kind");
}

#[test]
fn debug_shows_no_secret() {
    let world = world();
    assert!(!format!("{:?}", world.ring).contains(&world.bob.secret_key().to_secret_hex()));
    assert_eq!(world.ring.inboxes(), [(world.bob.public_key(), Inbox::Own)]);
    let verified = world.verify(&world.close(world.draft())).unwrap();
    assert!(!format!("{verified:?}").contains("jsonrpc"));
    assert_eq!(
        world.ring.keys(&world.bob.public_key()),
        Some(world.bob.clone())
    );
}
