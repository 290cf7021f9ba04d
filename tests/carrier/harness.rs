//! What the carrier is tested against: a real relay that can be stopped and started, one that says what the test makes it say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use legiond::carrier::{
    CarrierConfig, CarrierEvent, Handle, InboxSpec, Outcome, Outgoing, RelayCarrier, RelayState,
};
use nostr::{Event, EventBuilder, EventId, Keys, Kind, PublicKey, Tag, Timestamp};
use nostr_database::{MemoryDatabase, MemoryDatabaseOptions};
use nostr_relay_builder::builder::RateLimit;
use nostr_relay_builder::{LocalRelay, RelayBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::Receiver;
use tokio::task::{JoinHandle, JoinSet};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Message, handshake::derive_accept_key};

/// A real relay behind a listener of ours, which can be stopped and started on the same port.
pub(super) struct Relay {
    pub(super) database: MemoryDatabase,
    pub(super) address: SocketAddr,
    page_events: usize,
    serving: Option<JoinHandle<()>>,
}

impl Relay {
    pub(super) async fn start(page_events: usize) -> Self {
        let database = MemoryDatabase::with_opts(MemoryDatabaseOptions {
            events: true,
            max_events: None,
        });
        let mut relay = Self {
            database,
            address: "127.0.0.1:0".parse().unwrap(),
            page_events,
            serving: None,
        };
        relay.serve().await;
        relay
    }

    pub(super) async fn serve(&mut self) {
        let builder = RelayBuilder::default()
            .database(self.database.clone())
            .max_filter_limit(self.page_events)
            .rate_limit(RateLimit {
                max_reqs: 100,
                notes_per_minute: 10_000_000,
            });
        let relay = LocalRelay::new(builder);
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        self.serving = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, peer)) = listener.accept().await {
                let relay = relay.clone();
                connections.spawn(async move {
                    let stream = upgrade(stream).await;
                    let _ = relay.take_connection(stream, peer).await;
                });
            }
        }));
    }

    pub(super) async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    pub(super) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }
}

/// The server's half of the WebSocket handshake, with TCP_NODELAY.
pub(super) async fn upgrade(mut stream: TcpStream) -> TcpStream {
    stream.set_nodelay(true).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let key = head
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
        .unwrap();
    let accept = derive_accept_key(key.trim().as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream
}

/// A relay that says exactly what the test makes it say.
pub(super) struct Script {
    pub(super) listener: TcpListener,
}

pub(super) struct Peer(pub(super) WebSocketStream<TcpStream>);

impl Script {
    pub(super) async fn start() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    pub(super) fn url(&self) -> String {
        format!("ws://{}", self.listener.local_addr().unwrap())
    }

    pub(super) async fn accept(&self) -> Peer {
        let (stream, _) = self.listener.accept().await.unwrap();
        Peer(tokio_tungstenite::accept_async(stream).await.unwrap())
    }
}

impl Peer {
    pub(super) async fn next(&mut self) -> Value {
        loop {
            match self.0.next().await.expect("the carrier left").unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                _ => continue,
            }
        }
    }

    /// The next frame with this label; others are passed over.
    pub(super) async fn expect(&mut self, label: &str) -> Value {
        loop {
            let frame = self.next().await;
            if frame[0] == label {
                return frame;
            }
        }
    }

    pub(super) async fn say(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// Serves an inbox of these events faithfully until the first REQ of history was answered.
    pub(super) async fn serve_history(&mut self, events: &[Event]) {
        loop {
            let req = self.expect("REQ").await;
            let history = req[2]["limit"] == 500;
            for event in events.iter().filter(|_| history) {
                self.say(json!(["EVENT", req[1], event])).await;
            }
            self.say(json!(["EOSE", req[1]])).await;
            if history {
                return;
            }
        }
    }
}

pub(super) fn config() -> CarrierConfig {
    CarrierConfig {
        backoff_first_ms: 10,
        backoff_cap_ms: 50,
        ..CarrierConfig::default()
    }
}

pub(super) fn inbox(pubkey: PublicKey) -> InboxSpec {
    InboxSpec {
        pubkey,
        since_s: 0,
        auth: None,
        stored: true,
        ephemeral: true,
    }
}

pub(super) fn wrap(kind: u16, to: PublicKey, at_s: u64, content: &str) -> Event {
    EventBuilder::new(Kind::from(kind), content)
        .tag(Tag::public_key(to))
        .custom_created_at(Timestamp::from(at_s))
        .sign_with_keys(&Keys::generate())
        .unwrap()
}

pub(super) fn now_s() -> u64 {
    Timestamp::now().as_secs()
}

pub(super) async fn next(events: &mut Receiver<CarrierEvent>) -> CarrierEvent {
    tokio::time::timeout(Duration::from_secs(30), events.recv())
        .await
        .expect("nothing came")
        .expect("carrier ended")
}

pub(super) async fn outcome(events: &mut Receiver<CarrierEvent>, id: EventId) -> Outcome {
    loop {
        match next(events).await {
            CarrierEvent::Published {
                event_id, outcome, ..
            } if event_id == id => return outcome,
            _ => continue,
        }
    }
}

pub(super) async fn state(
    events: &mut Receiver<CarrierEvent>,
    wanted: impl Fn(&RelayState) -> bool,
) -> RelayState {
    loop {
        match next(events).await {
            CarrierEvent::Relay { state, .. } if wanted(&state) => return state,
            _ => continue,
        }
    }
}

/// Everything that arrives before the relay says that it is caught up with this generation; and the gaps it admits.
pub(super) async fn until_caught_up(
    events: &mut Receiver<CarrierEvent>,
    generation: u64,
) -> (Vec<Event>, usize) {
    let (mut arrived, mut gaps) = (Vec::new(), 0);
    loop {
        match next(events).await {
            CarrierEvent::Arrived { event, .. } => arrived.push(*event),
            CarrierEvent::Relay {
                state: RelayState::HistoryGap { .. },
                ..
            } => gaps += 1,
            CarrierEvent::Relay {
                state: RelayState::CaughtUp { generation: g },
                ..
            } if g == generation => {
                return (arrived, gaps);
            }
            _ => continue,
        }
    }
}

pub(super) async fn arrival(events: &mut Receiver<CarrierEvent>) -> Event {
    loop {
        if let CarrierEvent::Arrived { event, .. } = next(events).await {
            return *event;
        }
    }
}

/// Starts a carrier whose inboxes are set before it connects, so that the first `CaughtUp` covers them.
pub(super) fn start(
    config: CarrierConfig,
    url: &str,
    inboxes: Vec<InboxSpec>,
) -> (Handle, Receiver<CarrierEvent>) {
    let (handle, events) = RelayCarrier::start(config, Vec::new()).unwrap();
    handle.set_inboxes(inboxes).unwrap();
    handle.add_relay(url).unwrap();
    (handle, events)
}

pub(super) fn ids(events: &[Event]) -> HashSet<EventId> {
    events.iter().map(|event| event.id).collect()
}

pub(super) async fn publish(handle: &Handle, event: &Event, url: &str) {
    handle
        .publish(&Outgoing::from_event(event), &[url.to_string()])
        .await
        .unwrap();
}
