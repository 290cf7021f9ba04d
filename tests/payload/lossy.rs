//! A relay that returns 100 events at a time, behind a proxy that says OK to everything and loses a part of it, and that takes
//! its time over large events, so that a transfer has a middle.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use legiond::relay::{RelayConfig, RelayLimits, RunningRelay, serve};
use nostr::Event;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{accept_async, connect_async};

/// A wrap of a chunk has some 55 kB; every other message of these tests is far smaller.
const PIECE_BYTES: usize = 40_000;

/// What the relay has seen.
#[derive(Default)]
struct Seen {
    pieces: AtomicU64,
    lost_pieces: AtomicU64,
    lost_others: AtomicU64,
    chance: AtomicU64,
    /// All that came here, as somebody who sees the relay may keep it.
    recorded: Mutex<Vec<Value>>,
}

pub(super) struct Lossy {
    pub(super) url: String,
    seen: Arc<Seen>,
    _relay: RunningRelay,
    _runtime: tokio::runtime::Runtime,
}

impl Lossy {
    /// Loses one in `one_in` (0: none) of all events, whatever they are, and holds every chunk for `pace`.
    pub(super) fn start(one_in: u64, pace: Duration) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let config = RelayConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            limits: RelayLimits {
                max_query_events: 100,
                ..RelayLimits::default()
            },
            ..RelayConfig::default()
        };
        let relay = runtime.block_on(serve(config)).unwrap();
        let far = relay.url().to_owned();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Seen::default());
        let counts = seen.clone();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(between(socket, far.clone(), counts.clone(), one_in, pace));
            }
        });
        Self {
            url,
            seen,
            _relay: relay,
            _runtime: runtime,
        }
    }

    /// Chunks that came here, lost ones among them.
    pub(super) fn pieces(&self) -> u64 {
        self.seen.pieces.load(Ordering::SeqCst)
    }

    /// Every event that came here.
    pub(super) fn events(&self) -> Vec<Event> {
        let recorded = self.seen.recorded.lock().unwrap();
        let parse = |event: &Value| serde_json::from_value(event.clone()).unwrap();
        recorded.iter().map(parse).collect()
    }

    pub(super) fn lost_pieces(&self) -> u64 {
        self.seen.lost_pieces.load(Ordering::SeqCst)
    }

    pub(super) fn lost_others(&self) -> u64 {
        self.seen.lost_others.load(Ordering::SeqCst)
    }
}

impl Seen {
    /// Whether this event is lost: a fixed sequence, one in so many.
    fn loses(&self, one_in: u64) -> bool {
        let turn = self.chance.fetch_add(1, Ordering::SeqCst);
        let mixed = (turn ^ (turn >> 7)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        one_in > 0 && mixed.is_multiple_of(one_in)
    }
}

async fn between(socket: TcpStream, relay: String, seen: Arc<Seen>, one_in: u64, pace: Duration) {
    let Ok(near) = accept_async(socket).await else {
        return;
    };
    let Ok((far, _)) = connect_async(relay).await else {
        return;
    };
    let (mut near_out, mut near_in) = near.split();
    let (mut far_out, mut far_in) = far.split();
    let (answers, mut answered) = mpsc::unbounded_channel();
    let back = answers.clone();
    tokio::spawn(async move {
        while let Some(message) = answered.recv().await {
            if near_out.send(message).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = far_in.next().await {
            if back.send(message).is_err() {
                return;
            }
        }
    });
    // What a killed node has sent is still on its way: it is read to the end.
    while let Some(Ok(message)) = near_in.next().await {
        if let Message::Text(text) = &message
            && let Some(id) = lost(text, &seen, one_in)
        {
            let ok = json!(["OK", id, true, ""]).to_string();
            let _ = answers.send(Message::text(ok));
            continue;
        }
        if message.len() > PIECE_BYTES {
            tokio::time::sleep(pace).await;
        }
        if far_out.send(message).await.is_err() {
            return;
        }
    }
}

/// The id of an event that is lost.
fn lost(text: &str, seen: &Seen, one_in: u64) -> Option<Value> {
    let frame: Value = serde_json::from_str(text).ok()?;
    let event = (frame[0] == "EVENT").then_some(&frame[1])?;
    seen.recorded.lock().unwrap().push(event.clone());
    let piece = text.len() > PIECE_BYTES;
    seen.pieces.fetch_add(u64::from(piece), Ordering::SeqCst);
    if !seen.loses(one_in) {
        return None;
    }
    let count = if piece {
        &seen.lost_pieces
    } else {
        &seen.lost_others
    };
    count.fetch_add(1, Ordering::SeqCst);
    Some(event["id"].clone())
}
