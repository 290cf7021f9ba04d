//! The relay takes what is valid, keeps it as long as it promised, and hands all of it to who asked, over real WebSockets. The npm
//! relay, started the same way, does the same with a gift wrap.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use legiond::relay::{RelayConfig, RelayError, RelayLimits, RunningRelay, serve};
use nostr::{Event, EventBuilder, JsonUtil, Keys, Kind, Tag, Timestamp};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::support::npm_relay::NpmRelay;

/// Only so that a test that would hang fails; nothing asserts a time.
const PATIENCE: Duration = Duration::from_secs(60);

struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    async fn connect(url: &str) -> Self {
        Self(tokio_tungstenite::connect_async(url).await.unwrap().0)
    }

    async fn send(&mut self, message: Value) {
        self.0
            .send(Message::text(message.to_string()))
            .await
            .unwrap();
    }

    /// The next message; `Null` once the relay has closed the connection.
    async fn next(&mut self) -> Value {
        loop {
            match tokio::time::timeout(PATIENCE, self.0.next())
                .await
                .expect("the relay answers")
            {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(text.as_str()).unwrap();
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Value::Null,
                Some(Ok(_)) => {}
            }
        }
    }

    /// Publishes and returns (accepted, note).
    async fn publish_json(&mut self, event: Value) -> (bool, String) {
        let id = event["id"].clone();
        self.send(json!(["EVENT", event])).await;
        let answer = self.next().await;
        assert_eq!((&answer[0], &answer[1]), (&json!("OK"), &id), "{answer}");
        (
            answer[2].as_bool().unwrap(),
            answer[3].as_str().unwrap().to_owned(),
        )
    }

    async fn publish(&mut self, event: &Event) -> (bool, String) {
        self.publish_json(serde_json::to_value(event).unwrap())
            .await
    }

    async fn publish_ok(&mut self, event: &Event) {
        assert_eq!(self.publish(event).await, (true, String::new()));
    }

    /// Subscribes and returns the ids of the stored events up to EOSE.
    async fn request(&mut self, id: &str, filter: Value) -> Vec<String> {
        self.send(json!(["REQ", id, filter])).await;
        let mut ids = Vec::new();
        loop {
            let answer = self.next().await;
            assert_eq!(answer[1], id, "{answer}");
            match answer[0].as_str() {
                Some("EVENT") => ids.push(answer[2]["id"].as_str().unwrap().to_owned()),
                Some("EOSE") => return ids,
                _ => panic!("{answer}"),
            }
        }
    }
}

async fn start(limits: RelayLimits) -> RunningRelay {
    serve(RelayConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        limits,
        ..RelayConfig::default()
    })
    .await
    .unwrap()
}

async fn start_with(data: &Path) -> RunningRelay {
    let listen = ([127, 0, 0, 1], 0).into();
    serve(RelayConfig {
        listen,
        data: Some(data.to_owned()),
        ..RelayConfig::default()
    })
    .await
    .unwrap()
}

fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn event(keys: &Keys, kind: u16, age_s: u64, tags: &[[&str; 2]], content: &str) -> Event {
    EventBuilder::new(Kind::from(kind), content)
        .tags(tags.iter().map(|tag| Tag::parse(*tag).unwrap()))
        .custom_created_at(Timestamp::from_secs(now_s() - age_s))
        .sign_with_keys(keys)
        .unwrap()
}

fn id(event: &Event) -> String {
    event.id.to_hex()
}

#[tokio::test]
async fn stores_serves_delivers_replaces_and_closes() {
    let relay = start(RelayLimits::default()).await;
    let (keys, p) = (Keys::generate(), Keys::generate().public_key().to_hex());
    let (mut writer, mut reader) = (
        Client::connect(relay.url()).await,
        Client::connect(relay.url()).await,
    );
    let old = event(&keys, 1059, 100, &[["p", &p]], "old");
    writer.publish_ok(&old).await;
    writer
        .publish_ok(&event(&keys, 1, 100, &[["p", &p]], "of another kind"))
        .await;
    assert_eq!(
        reader
            .request("inbox", json!({"kinds": [1059], "#p": [p]}))
            .await,
        [id(&old)]
    );

    let new = event(&keys, 1059, 0, &[["p", &p]], "new \u{1F980} \"quoted\"\n");
    writer
        .publish_ok(&event(&keys, 1059, 0, &[["p", &id(&old)]], "for another"))
        .await;
    writer.publish_ok(&new).await;
    assert_eq!(
        reader.next().await,
        json!([
            "EVENT",
            "inbox",
            serde_json::from_str::<Value>(&new.as_json()).unwrap()
        ])
    );

    assert_eq!(
        writer.publish(&new).await,
        (true, "duplicate: already have this event".to_owned())
    );
    reader.send(json!(["COUNT", "n", {"kinds": [1059]}])).await;
    assert_eq!(
        reader.next().await,
        json!(["COUNT", "n", {"count": 3}]),
        "a duplicate is not delivered twice"
    );

    assert_eq!(
        reader.request("inbox", json!({"kinds": [7]})).await,
        [""; 0],
        "the same id replaces"
    );
    writer
        .publish_ok(&event(&keys, 1059, 0, &[["p", &p]], "not wanted now"))
        .await;
    let wanted = event(&keys, 7, 0, &[], "+");
    writer.publish_ok(&wanted).await;
    assert_eq!(reader.next().await[2]["id"], json!(id(&wanted)));
    reader.send(json!(["CLOSE", "inbox"])).await;
    reader.send(json!(["COUNT", "n", {"kinds": [7]}])).await;
    assert_eq!(reader.next().await[0], "COUNT");
    writer.publish_ok(&event(&keys, 7, 0, &[], "-")).await;
    reader.send(json!(["COUNT", "n", {"kinds": [7]}])).await;
    assert_eq!(
        reader.next().await,
        json!(["COUNT", "n", {"count": 2}]),
        "nothing came after CLOSE"
    );
    assert_eq!(relay.stats().subscriptions, 0);
    relay.shutdown().await;
    assert_eq!(
        reader.next().await,
        json!(["NOTICE", "the relay is stopping"])
    );
}

#[tokio::test]
async fn refuses_what_is_forged_and_keeps_the_original() {
    let relay = start(RelayLimits::default()).await;
    let mut client = Client::connect(relay.url()).await;
    let keys = Keys::generate();
    let good = event(
        &keys,
        1059,
        5,
        &[["p", &keys.public_key().to_hex()]],
        "as written",
    );
    client.publish_ok(&good).await;
    let as_json = |event: &Event| serde_json::to_value(event).unwrap();

    let mut tampered = as_json(&good);
    tampered["content"] = json!("changed");
    let (accepted, note) = client.publish_json(tampered).await;
    assert!(!accepted && note.starts_with("invalid: the id"), "{note}");

    let other = event(&keys, 1059, 6, &[], "other");
    let mut forged = as_json(&other);
    forged["sig"] = as_json(&good)["sig"].clone();
    let (accepted, note) = client.publish_json(forged).await;
    assert!(
        !accepted && note.starts_with("invalid: the signature"),
        "{note}"
    );

    let mut without_content = as_json(&other);
    without_content.as_object_mut().unwrap().remove("content");
    let (accepted, note) = client.publish_json(without_content).await;
    assert!(
        !accepted && note.starts_with("invalid: not an event"),
        "{note}"
    );

    let future = EventBuilder::new(Kind::from(1), "")
        .custom_created_at(Timestamp::from_secs(now_s() + 2_000));
    let (accepted, note) = client.publish(&future.sign_with_keys(&keys).unwrap()).await;
    assert!(
        !accepted && note.starts_with("invalid: created_at"),
        "{note}"
    );

    client.send(json!(["REQ", "all", {}])).await;
    assert_eq!(client.next().await, json!(["EVENT", "all", as_json(&good)]));
    assert_eq!(client.next().await, json!(["EOSE", "all"]));
    assert_eq!(
        (relay.stats().events_accepted, relay.stats().events_refused),
        (1, 4)
    );
}

#[tokio::test]
async fn ephemeral_events_reach_who_listens_and_are_not_kept() {
    let relay = start(RelayLimits::default()).await;
    let (keys, p) = (Keys::generate(), Keys::generate().public_key().to_hex());
    let (mut writer, mut reader) = (
        Client::connect(relay.url()).await,
        Client::connect(relay.url()).await,
    );
    assert_eq!(
        reader
            .request("s", json!({"kinds": [21059], "#p": [p]}))
            .await,
        [""; 0]
    );
    let ping = event(&keys, 21_059, 0, &[["p", &p]], "ping");
    writer.publish_ok(&ping).await;
    assert_eq!(reader.next().await[2]["id"], json!(id(&ping)));
    assert_eq!(reader.request("again", json!({"#p": [p]})).await, [""; 0]);
    assert_eq!(relay.stats().events_stored, 0);
}

#[tokio::test]
async fn expired_events_are_refused_and_no_longer_served() {
    let relay = start(RelayLimits::default()).await;
    let mut client = Client::connect(relay.url()).await;
    let keys = Keys::generate();
    let over = (now_s() - 1).to_string();
    let (accepted, note) = client
        .publish(&event(&keys, 1059, 10, &[["expiration", &over]], ""))
        .await;
    assert!(
        !accepted && note.starts_with("invalid: the event has expired"),
        "{note}"
    );
    let soon = (now_s() + 3).to_string();
    let short_lived = event(&keys, 1059, 10, &[["expiration", &soon]], "");
    client.publish_ok(&short_lived).await;
    assert_eq!(client.request("s", json!({})).await, [id(&short_lived)]);
    let gone = async { while !client.request("s", json!({})).await.is_empty() {} };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("it is not served for ever");
    assert_eq!(relay.stats().events_stored, 0);
}

#[tokio::test]
async fn pages_of_history_by_until_give_every_event_once() {
    let relay = start(RelayLimits {
        max_query_events: 10,
        ..RelayLimits::default()
    })
    .await;
    let mut client = Client::connect(relay.url()).await;
    let keys = Keys::generate();
    let p = Keys::generate().public_key().to_hex();
    let mut expected = Vec::new();
    for n in 0..35 {
        let wrap = event(&keys, 1059, 10 + n, &[["p", &p]], "");
        client.publish_ok(&wrap).await;
        expected.push(id(&wrap));
    }
    let (mut seen, mut until) = (Vec::new(), now_s());
    loop {
        client.send(json!(["REQ", "page", {"kinds": [1059], "#p": [p], "until": until, "limit": 1_000}])).await;
        let mut page = Vec::new();
        loop {
            let answer = client.next().await;
            if answer[0] == "EOSE" {
                break;
            }
            page.push((
                answer[2]["id"].as_str().unwrap().to_owned(),
                answer[2]["created_at"].as_u64().unwrap(),
            ));
        }
        assert!(page.len() <= 10);
        let Some((_, oldest)) = page.last() else {
            break;
        };
        until = oldest - 1;
        seen.extend(page.into_iter().map(|(id, _)| id));
    }
    assert_eq!(seen, expected, "newest first, none missing, none twice");
}

#[tokio::test]
async fn a_full_store_refuses_the_newest_and_serves_the_old() {
    let relay = start(RelayLimits {
        max_events: 3,
        ..RelayLimits::default()
    })
    .await;
    let (mut client, mut listener) = (
        Client::connect(relay.url()).await,
        Client::connect(relay.url()).await,
    );
    let keys = Keys::generate();
    let kept: Vec<_> = (0..3)
        .map(|n| event(&keys, 1059, 1_000 + n, &[], "backdated"))
        .collect();
    for wrap in &kept {
        client.publish_ok(wrap).await;
    }
    assert_eq!(listener.request("live", json!({"limit": 0})).await, [""; 0]);
    let (accepted, note) = client.publish(&event(&keys, 1059, 0, &[], "newest")).await;
    assert!(!accepted && note.starts_with("error: store full"), "{note}");
    let ids: Vec<_> = kept.iter().map(id).collect();
    assert_eq!(client.request("s", json!({})).await, ids);
    client.send(json!(["CLOSE", "s"])).await;
    let ping = event(&keys, 21_059, 0, &[], "");
    client.publish_ok(&ping).await;
    assert_eq!(
        listener.next().await[2]["id"],
        json!(id(&ping)),
        "a refused event is not delivered, an ephemeral one still is"
    );

    let delete = event(&keys, 5, 0, &[["e", &ids[0]]], "");
    client.publish_ok(&delete).await;
    assert_eq!(
        client.request("s", json!({"kinds": [1059]})).await,
        ids[1..],
        "its author makes room"
    );
}

#[tokio::test]
async fn keeps_its_events_over_a_restart_only_with_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("relay.jsonl");
    let keys = Keys::generate();
    let (first, second) = (
        event(&keys, 1059, 20, &[], "first"),
        event(&keys, 1059, 10, &[], "second"),
    );
    let (old_ad, ad) = (
        event(&keys, 10_002, 9, &[], "old"),
        event(&keys, 10_002, 8, &[], "new"),
    );
    let soon = (now_s() + 2).to_string();
    let short_lived = event(&keys, 1059, 5, &[["expiration", &soon]], "");

    let relay = start_with(&data).await;
    let in_use = serve(RelayConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        data: Some(data.clone()),
        ..RelayConfig::default()
    })
    .await;
    assert!(
        matches!(&in_use, Err(error @ RelayError::DataInUse { .. }) if error.code() == "relay_data_in_use")
    );
    let mut client = Client::connect(relay.url()).await;
    for stored in [&first, &short_lived, &old_ad, &ad, &second] {
        client.publish_ok(stored).await;
    }
    assert_eq!(
        client.publish(&first).await,
        (true, "duplicate: already have this event".to_owned())
    );
    client.publish_ok(&event(&keys, 21_059, 0, &[], "")).await;
    relay.shutdown().await;
    assert_eq!(std::fs::read_to_string(&data).unwrap().lines().count(), 5);

    // A crash in the middle of a write, and a line that the disk has spoilt.
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&data)
        .unwrap();
    let torn = event(&keys, 1059, 1, &[], "never confirmed").as_json();
    writeln!(
        file,
        "{}",
        event(&keys, 1059, 1, &[], "spoilt")
            .as_json()
            .replace("spoilt", "SPOILT")
    )
    .unwrap();
    write!(file, "{}", &torn[..torn.len() - 7]).unwrap();
    while now_s() < soon.parse().unwrap() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    for _ in 0..2 {
        let relay = start_with(&data).await;
        assert_eq!(
            std::fs::read_to_string(&data).unwrap().lines().count(),
            3,
            "rewritten without what is dead"
        );
        let mut client = Client::connect(relay.url()).await;
        assert_eq!(
            client.request("s", json!({})).await,
            [id(&ad), id(&second), id(&first)]
        );
        relay.shutdown().await;
    }
    let relay = start_with(&data).await;
    Client::connect(relay.url())
        .await
        .publish_ok(&event(&keys, 1059, 0, &[], "after the torn line"))
        .await;
    relay.shutdown().await;
    assert_eq!(start_with(&data).await.stats().events_stored, 4);

    let relay = start(RelayLimits::default()).await;
    let address = relay.address();
    Client::connect(relay.url()).await.publish_ok(&first).await;
    relay.shutdown().await;
    let relay = serve(RelayConfig {
        listen: address,
        ..RelayConfig::default()
    })
    .await
    .expect("the port is free again");
    assert_eq!(
        Client::connect(relay.url())
            .await
            .request("s", json!({}))
            .await,
        [""; 0]
    );
}

/// What a reader has deleted does not come back with a restart, though the deletion itself is remembered for a short time only.
#[tokio::test]
async fn what_was_deleted_stays_deleted_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("relay.jsonl");
    let (reader, writer) = (Keys::generate(), Keys::generate());
    let to = reader.public_key().to_hex();
    let (read, unread) = (
        event(&writer, 1059, 2, &[["p", &to]], "read"),
        event(&writer, 1059, 1, &[["p", &to]], "unread"),
    );
    let relay = start_with(&data).await;
    let mut client = Client::connect(relay.url()).await;
    client.publish_ok(&read).await;
    client.publish_ok(&unread).await;
    let soon = (now_s() + 2).to_string();
    let named = id(&read);
    let tags = [["e", &named], ["k", "1059"], ["expiration", &soon]];
    client.publish_ok(&event(&reader, 5, 0, &tags, "")).await;
    assert_eq!(client.request("a", json!({})).await.len(), 2);
    relay.shutdown().await;
    while now_s() < soon.parse().unwrap() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let relay = start_with(&data).await;
    let mut client = Client::connect(relay.url()).await;
    assert_eq!(client.request("b", json!({})).await, [id(&unread)]);
    relay.shutdown().await;
}

#[tokio::test]
async fn nonsense_and_excess_are_answered_and_the_connection_goes_on() {
    let relay = start(RelayLimits {
        max_subscriptions: 2,
        ..RelayLimits::default()
    })
    .await;
    let mut client = Client::connect(relay.url()).await;
    for nonsense in [
        "{",
        "[]",
        "[1]",
        "\u{0}",
        "{\"a\":1}",
        "[\"EVENT\"]",
        "[\"EVENT\",{\"id\":7}]",
        "[\"REQ\"]",
        "[\"HELLO\",1]",
        "[\"AUTH\",null]",
    ] {
        client.0.send(Message::text(nonsense)).await.unwrap();
        assert_eq!(client.next().await[0], "NOTICE", "{nonsense}");
    }
    client
        .0
        .send(Message::text("[".repeat(100_000)))
        .await
        .unwrap();
    assert_eq!(client.next().await[0], "NOTICE");
    for bad in [
        json!({"ids": ["xy"]}),
        json!({"since": -1}),
        json!({"kinds": "1"}),
        json!(7),
        json!({"#p": [1]}),
    ] {
        client.send(json!(["REQ", "bad", bad])).await;
        let answer = client.next().await;
        assert_eq!(
            (&answer[0], &answer[1]),
            (&json!("CLOSED"), &json!("bad")),
            "{answer}"
        );
    }
    let keys = Keys::generate();
    for (length, says) in [
        (66_000, "invalid: the event has"),
        (140_000, "invalid: the message has"),
    ] {
        let (accepted, note) = client
            .publish(&event(&keys, 1059, 0, &[], &"x".repeat(length)))
            .await;
        assert!(!accepted && note.starts_with(says), "{note}");
    }
    for (name, answer) in [("a", "EOSE"), ("b", "EOSE"), ("c", "CLOSED"), ("a", "EOSE")] {
        client.send(json!(["REQ", name, {"kinds": [7]}])).await;
        assert_eq!(client.next().await[0], answer);
    }
    client
        .publish_ok(&event(&keys, 1059, 0, &[], &"x".repeat(65_000)))
        .await;

    client
        .0
        .send(Message::text("x".repeat(600_000)))
        .await
        .unwrap();
    while client.next().await != Value::Null {}
    let mut other = Client::connect(relay.url()).await;
    assert_eq!(
        other.request("s", json!({})).await.len(),
        1,
        "others are still served"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_5000_events_loses_none() {
    let relay = start(RelayLimits::default()).await;
    let keys = Keys::generate();
    let p = Keys::generate().public_key().to_hex();
    let mut events: Vec<_> = (0..5_000)
        .map(|n| event(&keys, 1059, 0, &[["p", &p]], &format!("{n}")))
        .collect();
    events
        .iter_mut()
        .skip(2_500)
        .for_each(|e| *e = event(&keys, 21_059, 0, &[["p", &p]], &e.content));
    let mut readers = Vec::new();
    for _ in 0..3 {
        let mut reader = Client::connect(relay.url()).await;
        assert_eq!(reader.request("s", json!({"#p": [p]})).await, [""; 0]);
        readers.push(tokio::spawn(async move {
            let mut ids = Vec::new();
            while ids.len() < 5_000 {
                let answer = reader.next().await;
                assert_eq!(answer[0], "EVENT", "{answer}");
                ids.push(answer[2]["id"].as_str().unwrap().to_owned());
            }
            ids
        }));
    }
    // Everything is sent before any answer is read: the relay slows the writer down instead of failing it.
    let (mut to_relay, mut from_relay) = Client::connect(relay.url()).await.0.split();
    let ids: Vec<_> = events.iter().map(id).collect();
    let sent = tokio::spawn(async move {
        for event in &events {
            to_relay
                .send(Message::text(json!(["EVENT", event]).to_string()))
                .await
                .unwrap();
        }
        to_relay
    });
    let _to_relay = sent.await.unwrap();
    for id in &ids {
        let answer = from_relay.next().await.unwrap().unwrap();
        assert_eq!(
            answer.to_text().unwrap(),
            json!(["OK", id, true, ""]).to_string()
        );
    }
    for reader in readers {
        assert_eq!(reader.await.unwrap(), ids, "every event once, in order");
    }
    assert_eq!(relay.stats().events_delivered, 15_000);
    assert_eq!(relay.stats().slow_readers_cut, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_is_cut_off_and_others_are_not() {
    let relay = start(RelayLimits {
        max_waiting_bytes: 256 * 1024,
        ..RelayLimits::default()
    })
    .await;
    let (mut idle, mut writer) = (
        Client::connect(relay.url()).await,
        Client::connect(relay.url()).await,
    );
    assert_eq!(idle.request("s", json!({"kinds": [21059]})).await, [""; 0]);
    let keys = Keys::generate();
    let big = event(&keys, 21_059, 0, &[], &"x".repeat(60_000));
    let cut_off = async {
        while relay.stats().slow_readers_cut == 0 {
            writer.publish_ok(&big).await;
        }
    };
    tokio::time::timeout(PATIENCE, cut_off)
        .await
        .expect("it is not buffered for ever");
    let mut last = Value::Null;
    loop {
        match idle.next().await {
            Value::Null => break,
            message => last = message,
        }
    }
    // The goodbye follows the events that the socket still took, if the socket took it.
    assert!(
        last[0] == "EVENT"
            || last[1]
                .as_str()
                .is_some_and(|notice| notice.starts_with("error: more than")),
        "{}",
        last[0]
    );
    writer.publish_ok(&big).await;
    assert_eq!(writer.request("s", json!({})).await, [""; 0]);
}

#[tokio::test]
async fn a_guarded_inbox_is_read_by_its_owner_only() {
    let listen = ([127, 0, 0, 1], 0).into();
    let relay = serve(RelayConfig {
        listen,
        auth_inbox: true,
        ..RelayConfig::default()
    })
    .await
    .unwrap();
    let (owner, sender) = (Keys::generate(), Keys::generate());
    let p = owner.public_key().to_hex();
    let (mut reader, mut writer) = (
        Client::connect(relay.url()).await,
        Client::connect(relay.url()).await,
    );
    assert_eq!(writer.next().await[0], "AUTH");
    let wrap = event(&sender, 1059, 0, &[["p", &p]], "sealed");
    writer.publish_ok(&wrap).await;

    let challenge = reader.next().await[1].as_str().unwrap().to_owned();
    assert_eq!(
        reader.request("all", json!({})).await,
        [""; 0],
        "a filter without kinds is served without gift wraps"
    );
    reader
        .send(json!(["REQ", "inbox", {"kinds": [1059], "#p": [p]}]))
        .await;
    assert_eq!(reader.next().await, json!(["AUTH", challenge]));
    let closed = reader.next().await;
    assert!(
        closed[0] == "CLOSED" && closed[2].as_str().unwrap().starts_with("auth-required:"),
        "{closed}"
    );

    let auth = |keys: &Keys, challenge: &str| {
        event(
            keys,
            22_242,
            0,
            &[["relay", relay.url()], ["challenge", challenge]],
            "",
        )
    };
    for (event, accepted) in [
        (auth(&owner, "another"), false),
        (auth(&sender, &challenge), true),
    ] {
        reader.send(json!(["AUTH", event])).await;
        assert_eq!(reader.next().await[2], accepted);
    }
    reader
        .send(json!(["REQ", "inbox", {"kinds": [1059], "#p": [p]}]))
        .await;
    assert_eq!(reader.next().await[0], "AUTH");
    assert_eq!(
        reader.next().await[0],
        "CLOSED",
        "another key's proof is not enough"
    );
    reader.send(json!(["AUTH", auth(&owner, &challenge)])).await;
    assert_eq!(reader.next().await[2], true);
    assert_eq!(
        reader
            .request("inbox", json!({"kinds": [1059], "#p": [p]}))
            .await,
        [id(&wrap)]
    );
}

#[tokio::test]
async fn the_same_address_serves_its_information_document() {
    let relay = start(RelayLimits {
        max_connections: 1,
        max_query_events: 123,
        ..RelayLimits::default()
    })
    .await;
    let get = async |accept: &str| {
        let mut stream = TcpStream::connect(relay.address()).await.unwrap();
        let request = format!(
            "GET / HTTP/1.1\r\nhost: relay\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    // The one place may still be taken by the connection before.
    let until_served = async |accept: &str| loop {
        let answer = get(accept).await;
        if !answer.starts_with("HTTP/1.1 503") {
            return answer;
        }
    };
    let answer = until_served("application/nostr+json").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("access-control-allow-origin: *"), "{head}");
    let document: Value = serde_json::from_str(body).unwrap();
    assert_eq!(document["limitation"]["max_limit"], 123);
    assert_eq!(document["limitation"]["max_message_length"], 131_072);
    assert!(until_served("text/html").await.contains(relay.url()));

    let client = loop {
        if let Ok((client, _)) = tokio_tungstenite::connect_async(relay.url()).await {
            break client;
        }
    };
    assert!(
        get("*/*").await.starts_with("HTTP/1.1 503"),
        "the relay is full"
    );
    drop(client);
}

#[tokio::test]
async fn a_taken_address_is_an_error_that_says_so() {
    let relay = start(RelayLimits::default()).await;
    let error = serve(RelayConfig {
        listen: relay.address(),
        ..RelayConfig::default()
    })
    .await
    .expect_err("it is taken");
    assert_eq!(error.code(), "relay_listen_failed");
}

#[tokio::test]
async fn the_npm_relay_stores_and_delivers_a_gift_wrap() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("relay.sqlite");
    let Some(relay) = NpmRelay::start(Some(&data)) else {
        return;
    };
    let (keys, p) = (Keys::generate(), Keys::generate().public_key().to_hex());
    let (mut writer, mut reader) = (
        Client::connect(&relay.url).await,
        Client::connect(&relay.url).await,
    );
    assert_eq!(
        reader
            .request("inbox", json!({"kinds": [1059], "#p": [p]}))
            .await,
        [""; 0]
    );
    let wrap = event(&keys, 1059, 0, &[["p", &p]], "sealed");
    assert!(writer.publish(&wrap).await.0);
    assert_eq!(reader.next().await[2]["id"], json!(id(&wrap)));
    drop(relay);
    let relay = NpmRelay::start(Some(&data)).unwrap();
    let mut reader = Client::connect(&relay.url).await;
    assert_eq!(
        reader
            .request("inbox", json!({"kinds": [1059], "#p": [p]}))
            .await,
        [id(&wrap)]
    );
}
