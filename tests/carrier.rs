//! Promise: no event is lost between a relay and the node, whatever the relay does, and every publication gets an outcome.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use std::collections::HashSet;
use std::time::Duration;

use futures_util::SinkExt;
use legiond::carrier::{
    CarrierConfig, CarrierError, CarrierEvent, InboxSpec, Outcome, Outgoing, RelayCarrier,
    RelayState,
};
use nostr::{Event, JsonUtil, Keys, Kind};
use nostr_database::NostrDatabase;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use harness::*;

#[tokio::test]
async fn a_real_relay_takes_stores_and_passes_on() {
    let (relay, me) = (Relay::start(500).await, Keys::generate().public_key());
    let (handle, mut events) = start(config(), &relay.url(), vec![inbox(me)]);
    until_caught_up(&mut events, 0).await;

    for kind in [1_059, 21_059] {
        let event = wrap(kind, me, now_s(), "hello");
        publish(&handle, &event, &relay.url()).await;
        let (mut answered, mut arrived) = (None, None);
        while answered.is_none() || arrived.is_none() {
            match next(&mut events).await {
                CarrierEvent::Published { outcome, .. } => answered = Some(outcome),
                CarrierEvent::Arrived { event, .. } => arrived = Some(*event),
                CarrierEvent::Relay { .. } => {}
            }
        }
        assert_eq!(
            (answered, arrived),
            (Some(Outcome::Accepted), Some(event.clone()))
        );
        if kind == 1_059 {
            publish(&handle, &event, &relay.url()).await;
            assert_eq!(outcome(&mut events, event.id).await, Outcome::Duplicate);
        }
    }
    let status = handle.status().pop().unwrap();
    assert_eq!(
        (status.events_in, status.events_out, status.in_flight),
        (2, 3, 0)
    );
    assert!(status.rtt_ms.is_some());
}

#[tokio::test]
async fn history_is_read_to_its_end_in_pages_of_100() {
    let (relay, me) = (Relay::start(100).await, Keys::generate().public_key());
    // 250 wraps, 60 of them within one second across a page boundary.
    let stored: Vec<Event> = (0..250)
        .map(|n| {
            wrap(
                1_059,
                me,
                if (70..130).contains(&n) {
                    13_000
                } else {
                    20_000 - n * 70
                },
                "x",
            )
        })
        .collect();
    for event in &stored {
        relay.database.save_event(event).await.unwrap();
    }
    let (handle, mut events) = start(config(), &relay.url(), vec![inbox(me)]);
    let (arrived, gaps) = until_caught_up(&mut events, 0).await;
    assert_eq!((ids(&arrived), arrived.len(), gaps), (ids(&stored), 250, 0));

    let generation = handle.drain();
    assert_eq!(
        until_caught_up(&mut events, generation).await.0.len(),
        0,
        "drain delivers nothing twice"
    );
    let generation = handle.redeliver();
    assert_eq!(
        ids(&until_caught_up(&mut events, generation).await.0),
        ids(&stored)
    );

    // A reply key added later: its history is read, the others' is not.
    let late = Keys::generate().public_key();
    let reply = wrap(1_059, late, 77, "reply");
    relay.database.save_event(&reply).await.unwrap();
    let before = handle.status()[0].duplicates_in;
    handle.set_inboxes(vec![inbox(me), inbox(late)]).unwrap();
    assert_eq!(
        until_caught_up(&mut events, generation).await.0,
        vec![reply]
    );
    assert!(handle.status()[0].duplicates_in - before <= 1);
}

#[tokio::test]
async fn a_second_fuller_than_a_page_is_split_by_key_or_reported() {
    let (relay, a, b) = (
        Relay::start(100).await,
        Keys::generate().public_key(),
        Keys::generate().public_key(),
    );
    let stored: Vec<Event> = (0..160)
        .map(|n| wrap(1_059, if n % 2 == 0 { a } else { b }, 5_000, "x"))
        .collect();
    for event in &stored {
        relay.database.save_event(event).await.unwrap();
    }
    let (_handle, mut events) = start(config(), &relay.url(), vec![inbox(a), inbox(b)]);
    let (arrived, gaps) = until_caught_up(&mut events, 0).await;
    assert_eq!((ids(&arrived), gaps), (ids(&stored), 0));

    let c = Keys::generate().public_key();
    let older = wrap(1_059, c, 10, "older than the crowded second");
    relay.database.save_event(&older).await.unwrap();
    for _ in 0..130 {
        relay
            .database
            .save_event(&wrap(1_059, c, 5_000, "x"))
            .await
            .unwrap();
    }
    let (_handle, mut events) = start(config(), &relay.url(), vec![inbox(c)]);
    let (arrived, gaps) = until_caught_up(&mut events, 0).await;
    assert_eq!(
        (arrived.len(), gaps),
        (101, 1),
        "what the relay hides is reported"
    );
    assert!(
        ids(&arrived).contains(&older.id),
        "and what lies behind it is read"
    );
}

#[tokio::test]
async fn a_restarted_relay_is_found_again_and_what_came_meanwhile_is_read() {
    let (mut relay, me) = (Relay::start(500).await, Keys::generate().public_key());
    let (handle, mut events) = start(config(), &relay.url(), vec![inbox(me)]);
    until_caught_up(&mut events, 0).await;
    relay.stop().await;
    state(&mut events, |state| {
        matches!(state, RelayState::Disconnected { .. })
    })
    .await;

    let event = wrap(1_059, me, now_s() - 86_400, "while you were out");
    publish(&handle, &event, &relay.url()).await;
    assert_eq!(
        outcome(&mut events, event.id).await,
        Outcome::Unknown("not connected".into())
    );
    relay.database.save_event(&event).await.unwrap();
    relay.serve().await;
    let (arrived, _) = until_caught_up(&mut events, 0).await;
    assert_eq!(arrived, vec![event]);
}

#[tokio::test]
async fn a_slow_reader_loses_nothing() {
    let (relay, me) = (Relay::start(500).await, Keys::generate().public_key());
    let small = CarrierConfig {
        event_queue_events: 2,
        pending_events: 2,
        ..config()
    };
    let (handle, mut events) = start(small, &relay.url(), vec![inbox(me)]);
    until_caught_up(&mut events, 0).await;
    let sent: Vec<Event> = (0..300).map(|_| wrap(1_059, me, now_s(), "x")).collect();
    let (publisher, url) = (handle.clone(), relay.url());
    let to_send = sent.clone();
    let publishing = tokio::spawn(async move {
        for event in &to_send {
            publish(&publisher, event, &url).await;
        }
    });
    let (mut arrived, mut accepted) = (HashSet::new(), HashSet::new());
    while arrived.len() < 300 || accepted.len() < 300 {
        tokio::task::yield_now().await;
        match next(&mut events).await {
            CarrierEvent::Arrived { event, .. } => {
                assert!(arrived.insert(event.id), "delivered twice")
            }
            CarrierEvent::Published {
                event_id,
                outcome: Outcome::Accepted,
                ..
            } => assert!(accepted.insert(event_id)),
            CarrierEvent::Published { outcome, .. } => panic!("{outcome:?}"),
            CarrierEvent::Relay { .. } => {}
        }
    }
    publishing.await.unwrap();
    assert_eq!((&arrived, &accepted), (&ids(&sent), &ids(&sent)));
}

#[tokio::test]
async fn every_ok_becomes_the_outcome_that_the_outbox_needs() {
    let (script, me) = (Script::start().await, Keys::generate().public_key());
    let (handle, mut events) = start(
        CarrierConfig {
            ok_timeout_ms: 300,
            ..config()
        },
        &script.url(),
        Vec::new(),
    );
    let mut peer = script.accept().await;
    state(&mut events, |state| *state == RelayState::Connected).await;
    let cases = [
        (1_059, Some((true, "")), Outcome::Accepted),
        (
            1_059,
            Some((false, "duplicate: have it")),
            Outcome::Duplicate,
        ),
        (
            21_059,
            Some((false, "mute: no one was listening")),
            Outcome::Accepted,
        ),
        (
            1_059,
            Some((false, "mute: what")),
            Outcome::Retry("mute: what".into()),
        ),
        (
            1_059,
            Some((false, "blocked: no")),
            Outcome::Final("blocked: no".into()),
        ),
        (
            1_059,
            Some((false, "invalid: no")),
            Outcome::Final("invalid: no".into()),
        ),
        (
            1_059,
            Some((false, "pow: 20")),
            Outcome::Final("pow: 20".into()),
        ),
        (
            1_059,
            Some((false, "restricted: no")),
            Outcome::Final("restricted: no".into()),
        ),
        (
            1_059,
            Some((false, "rate-limited: slow\ndown")),
            Outcome::Retry("rate-limited: slow down".into()),
        ),
        (
            1_059,
            Some((false, "error: disk")),
            Outcome::Retry("error: disk".into()),
        ),
        (
            1_059,
            Some((false, "auth-required: who?")),
            Outcome::Retry("auth-required: who?".into()),
        ),
        (
            1_059,
            Some((false, "no prefix")),
            Outcome::Retry("no prefix".into()),
        ),
        (1_059, None, Outcome::Unknown("timeout".into())),
    ];
    for (kind, answer, expected) in cases {
        let event = wrap(kind, me, now_s(), "x");
        publish(&handle, &event, &script.url()).await;
        assert_eq!(peer.expect("EVENT").await[1]["id"], event.id.to_hex());
        if let Some((accepted, message)) = answer {
            peer.say(json!(["OK", event.id, accepted, message])).await;
        }
        assert_eq!(outcome(&mut events, event.id).await, expected);
    }
    let event = wrap(1_059, me, now_s(), "x");
    publish(&handle, &event, &script.url()).await;
    peer.expect("EVENT").await;
    drop(peer);
    assert!(matches!(
        outcome(&mut events, event.id).await,
        Outcome::Unknown(_)
    ));
    publish(&handle, &event, "ws://127.0.0.1:1").await;
    assert!(
        matches!(outcome(&mut events, event.id).await, Outcome::Unknown(_)),
        "not one of our relays"
    );
}

#[tokio::test]
async fn auth_is_answered_with_every_inbox_key_and_all_is_asked_again() {
    let (script, a, b) = (Script::start().await, Keys::generate(), Keys::generate());
    let inboxes = [&a, &b]
        .map(|keys| InboxSpec {
            auth: Some(keys.clone()),
            ..inbox(keys.public_key())
        })
        .to_vec();
    let slow_retry = CarrierConfig {
        backoff_first_ms: 60_000,
        backoff_cap_ms: 60_000,
        ..CarrierConfig::default()
    };
    let (handle, mut events) = start(slow_retry, &script.url(), inboxes);
    let mut peer = script.accept().await;
    state(&mut events, |state| *state == RelayState::Connected).await;
    let event = wrap(1_059, a.public_key(), now_s(), "x");
    publish(&handle, &event, &script.url()).await;

    let (mut authed, mut published, mut stored) = (HashSet::new(), false, HashSet::new());
    let mut challenged = false;
    while !(published && stored.len() == 2) {
        let frame = peer.next().await;
        let known = authed.len() == 2;
        match frame[0].as_str().unwrap() {
            "AUTH" => {
                let auth = Event::from_json(frame[1].to_string()).unwrap();
                auth.verify().unwrap();
                assert_eq!(auth.kind, Kind::Authentication);
                assert!(
                    frame[1]["tags"]
                        .as_array()
                        .unwrap()
                        .contains(&json!(["challenge", "c1"]))
                );
                assert!(
                    frame[1]["tags"]
                        .as_array()
                        .unwrap()
                        .contains(&json!(["relay", script.url()]))
                );
                assert!(authed.insert(auth.pubkey), "each key once");
                peer.say(json!(["OK", auth.id, true, ""])).await;
            }
            "REQ" if known => {
                if frame[2]["kinds"] == json!([1_059]) {
                    stored.extend(
                        frame[2]["#p"]
                            .as_array()
                            .unwrap()
                            .iter()
                            .map(|p| p.as_str().unwrap().to_string()),
                    );
                }
                peer.say(json!(["EOSE", frame[1]])).await;
            }
            "EVENT" if known => {
                published = true;
                peer.say(json!(["OK", event.id, true, ""])).await;
            }
            "REQ" | "EVENT" => {
                if !challenged {
                    challenged = true;
                    peer.say(json!(["AUTH", "c1"])).await;
                }
                let refusal = if frame[0] == "REQ" {
                    json!(["CLOSED", frame[1], "auth-required: who are you?"])
                } else {
                    json!(["OK", event.id, false, "auth-required: who are you?"])
                };
                peer.say(refusal).await;
            }
            _ => {}
        }
    }
    assert_eq!(authed, HashSet::from([a.public_key(), b.public_key()]));
    let serving = tokio::spawn(async move {
        loop {
            let req = peer.expect("REQ").await;
            peer.say(json!(["EOSE", req[1]])).await;
        }
    });
    let (mut accepted, mut caught_up) = (false, false);
    while !(accepted && caught_up) {
        match next(&mut events).await {
            CarrierEvent::Published { outcome, .. } => accepted = outcome == Outcome::Accepted,
            CarrierEvent::Relay {
                state: RelayState::CaughtUp { .. },
                ..
            } => caught_up = true,
            _ => {}
        }
    }
    serving.abort();
}

#[tokio::test]
async fn a_closed_subscription_is_made_again_and_its_gap_read() {
    let (script, me) = (Script::start().await, Keys::generate().public_key());
    let only_stored = InboxSpec {
        ephemeral: false,
        ..inbox(me)
    };
    let (_handle, mut events) = start(config(), &script.url(), vec![only_stored]);
    let mut peer = script.accept().await;
    let live = peer.expect("REQ").await;
    assert_eq!(
        live[2]["kinds"],
        json!([1_059]),
        "stored wraps are asked for alone"
    );
    peer.say(json!(["EOSE", live[1]])).await;
    peer.serve_history(&[]).await;
    until_caught_up(&mut events, 0).await;

    peer.say(json!([
        "CLOSED",
        live[1],
        "error: live event buffer overflow"
    ]))
    .await;
    let missed = wrap(1_059, me, now_s(), "sent while closed");
    peer.serve_history(std::slice::from_ref(&missed)).await;
    let refused = state(&mut events, |state| {
        matches!(state, RelayState::SubscriptionRefused { .. })
    })
    .await;
    assert!(
        matches!(refused, RelayState::SubscriptionRefused { message, .. } if message.contains("overflow"))
    );
    assert_eq!(until_caught_up(&mut events, 0).await.0, vec![missed]);
}

#[tokio::test]
async fn a_forged_copy_never_hides_the_real_one() {
    let (script, me) = (Script::start().await, Keys::generate().public_key());
    let (handle, mut events) = start(
        config(),
        &script.url(),
        vec![InboxSpec {
            ephemeral: false,
            ..inbox(me)
        }],
    );
    let mut peer = script.accept().await;
    let real = wrap(1_059, me, now_s(), "real");
    let mut forged = real.clone();
    forged.content = "forged".into();
    let stranger = wrap(1_059, Keys::generate().public_key(), now_s(), "not for us");
    let note = wrap(1, me, now_s(), "not a wrap");
    peer.serve_history(&[
        forged.clone(),
        stranger,
        note,
        real.clone(),
        real.clone(),
        forged.clone(),
    ])
    .await;
    assert_eq!(until_caught_up(&mut events, 0).await.0, vec![forged, real]);
    let status = handle.status().pop().unwrap();
    assert_eq!((status.duplicates_in, status.refused_in), (2, 2));
}

#[tokio::test]
async fn too_large_events_are_skipped_and_too_large_messages_end_the_connection() {
    let (script, me) = (Script::start().await, Keys::generate().public_key());
    let small = CarrierConfig {
        max_event_bytes: 1_000,
        max_message_bytes: 10_000,
        ..config()
    };
    let (handle, mut events) = start(
        small,
        &script.url(),
        vec![InboxSpec {
            ephemeral: false,
            ..inbox(me)
        }],
    );
    let mut peer = script.accept().await;
    let (large, good) = (
        wrap(1_059, me, now_s(), &"x".repeat(2_000)),
        wrap(1_059, me, now_s(), "x"),
    );
    peer.serve_history(&[large.clone(), good.clone()]).await;
    assert_eq!(until_caught_up(&mut events, 0).await.0, vec![good]);
    let refused = handle
        .publish(&Outgoing::from_event(&large), &[script.url()])
        .await;
    assert!(matches!(refused, Err(CarrierError::EventTooLarge { .. })));

    for garbage in [
        "",
        "nonsense",
        "[]",
        "[\"EVENT\",\"0\",{\"id\":7}]",
        "[\"OK\",\"zz\",true,\"\"]",
    ] {
        peer.0.send(Message::text(garbage)).await.unwrap();
    }
    peer.say(json!(["NOTICE", "x".repeat(20_000)])).await;
    let lost = state(&mut events, |state| {
        matches!(state, RelayState::Disconnected { .. })
    })
    .await;
    assert!(
        matches!(&lost, RelayState::Disconnected { reason, .. } if reason.contains("too large")),
        "{lost:?}"
    );
    let mut peer = script.accept().await;
    peer.serve_history(&[]).await;
    until_caught_up(&mut events, 0).await;
}

/// A relay that takes the connection and reads nothing gets what its queue holds; what another relay takes does not wait for it.
#[tokio::test]
async fn a_relay_that_reads_nothing_holds_up_no_other() {
    let (mute, good, me) = (
        Script::start().await,
        Relay::start(500).await,
        Keys::generate().public_key(),
    );
    let narrow = CarrierConfig {
        publish_queue_events: 1,
        max_in_flight_events: 1,
        ok_timeout_ms: 3_600_000,
        ..config()
    };
    let (handle, mut events) = start(narrow, &mute.url(), Vec::new());
    let _never_read = mute.accept().await;
    handle.add_relay(&good.url()).unwrap();
    for _ in 0..2 {
        state(&mut events, |state| *state == RelayState::Connected).await;
    }
    let both = [mute.url(), good.url()];
    for n in 0..10 {
        let event = Outgoing::from_event(&wrap(1_059, me, now_s(), &n.to_string()));
        handle.publish(&event, &both).await.unwrap();
        let told = outcome(&mut events, event.event_id()).await;
        assert_eq!(told, Outcome::Accepted, "event {n}");
    }
}

#[tokio::test]
async fn a_relay_that_falls_silent_after_the_subscription_is_left_and_tried_again() {
    let (script, me) = (Script::start().await, Keys::generate().public_key());
    let impatient = CarrierConfig {
        eose_timeout_ms: 300,
        ..config()
    };
    let (_handle, mut events) = start(
        impatient,
        &script.url(),
        vec![InboxSpec {
            ephemeral: false,
            ..inbox(me)
        }],
    );
    let mut silent = script.accept().await;
    silent.expect("REQ").await;
    let lost = state(&mut events, |state| {
        matches!(state, RelayState::Disconnected { .. })
    })
    .await;
    assert!(
        matches!(&lost, RelayState::Disconnected { reason, .. } if reason.contains("no answer")),
        "{lost:?}"
    );
    let mut peer = script.accept().await;
    let event = wrap(1_059, me, now_s(), "x");
    peer.serve_history(std::slice::from_ref(&event)).await;
    assert_eq!(until_caught_up(&mut events, 0).await.0, vec![event]);
}

#[tokio::test]
async fn the_watchdog_finds_what_a_dead_subscription_missed() {
    let (script, me) = (Script::start().await, Keys::generate().public_key());
    let watchful = CarrierConfig {
        watchdog_ms: 100,
        watchdog_cap_ms: 100,
        ..config()
    };
    let (_handle, mut events) = start(
        watchful,
        &script.url(),
        vec![InboxSpec {
            ephemeral: false,
            ..inbox(me)
        }],
    );
    let mut peer = script.accept().await;
    peer.serve_history(&[]).await;
    until_caught_up(&mut events, 0).await;
    // The relay has forgotten the subscription: it sends nothing live.
    let missed = wrap(1_059, me, now_s(), "x");
    peer.serve_history(std::slice::from_ref(&missed)).await;
    assert_eq!(arrival(&mut events).await, missed);
}

#[tokio::test]
async fn a_relay_named_by_somebody_else_is_not_reached_in_private() {
    let relay = Relay::start(500).await;
    let (handle, mut events) = RelayCarrier::start(config(), Vec::new()).unwrap();
    handle.add_foreign_relay(&relay.url()).unwrap();
    let reason = loop {
        match next(&mut events).await {
            CarrierEvent::Relay { state, .. } => match state {
                RelayState::Disconnected { reason, .. } => break reason,
                state => assert_eq!(state, RelayState::Connecting),
            },
            other => panic!("nothing else: {other:?}"),
        }
    };
    assert!(reason.starts_with("relay_private_address"), "{reason}");
}

#[tokio::test]
async fn limits_and_the_end() {
    let me = Keys::generate().public_key();
    let relay = Relay::start(500).await;
    let (handle, mut events) = start(
        CarrierConfig {
            max_relays: 1,
            ..config()
        },
        &relay.url(),
        vec![inbox(me)],
    );
    until_caught_up(&mut events, 0).await;
    assert_eq!(
        handle.add_relay("ws://127.0.0.1:9").unwrap_err().code(),
        "carrier_too_many_relays"
    );
    assert_eq!(
        handle.add_relay("http://x").unwrap_err().code(),
        "carrier_bad_url"
    );
    let many = vec![inbox(me); 801];
    assert_eq!(
        handle.set_inboxes(many).unwrap_err().code(),
        "carrier_too_many_inboxes"
    );
    handle
        .add_relay(&format!("{}/", relay.url()))
        .expect("the same relay, written otherwise");
    assert!(handle.remove_relay(&relay.url()));
    assert!(handle.status().is_empty());
    drop(handle);
    while tokio::time::timeout(Duration::from_secs(30), events.recv())
        .await
        .expect("tasks go on")
        .is_some()
    {}
}
