//! One client: reads its messages (NIP-01, 42, 45), answers each, and writes what the hub queues for it. A message that makes no sense
//! is answered and forgotten; only a client that does not read, floods past the hard limits or goes silent is disconnected. It knows
//! nothing of how events are kept.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{Sink, SinkExt, Stream, StreamExt};
use nostr::Event;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::hub::{Hub, now_s, ok_message};
use super::outbox::{Outbox, Outgoing};
use super::record::{Bytes32, Filter, Record};
use super::subscriptions::{Readers, Subscription};

const KIND_GIFT_WRAP: u16 = 1059;
const KIND_AUTH: u16 = 22_242;
/// How far an AUTH event's time may be off (NIP-42).
const AUTH_WINDOW_S: u64 = 600;
/// A message over `max_message_bytes` is refused politely up to this many times the limit; beyond, the connection ends.
const HARD_LIMIT_FACTOR: usize = 4;
/// Pings that may go unanswered.
const SILENT_PINGS: u32 = 3;
/// How long a last word may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why a connection ended.
enum End {
    /// The client left, or the socket broke.
    Gone,
    /// We end it, and say why.
    Told(String),
}

/// Serves one upgraded connection until it ends or `stop` turns true.
pub(crate) async fn serve<S>(hub: Arc<Hub>, stream: S, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limits = &hub.config.limits;
    let hard_limit = limits.max_message_bytes.saturating_mul(HARD_LIMIT_FACTOR);
    let ws_config = WebSocketConfig::default()
        .max_message_size(Some(hard_limit))
        .max_frame_size(Some(hard_limit));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(ws_config)).await;
    let (mut sink, mut source) = socket.split();
    let (outbox, mut queue) = Outbox::new(limits.max_waiting_bytes);
    let mut session = Session::new(&hub, Arc::clone(&outbox));
    hub.counters.connections.fetch_add(1, Ordering::Relaxed);
    let end = tokio::select! {
        end = session.read(&mut source) => end,
        () = write(&mut sink, &mut queue, &outbox) => End::Gone,
        () = outbox.overflowed() => {
            hub.counters.slow_readers_cut.fetch_add(1, Ordering::Relaxed);
            End::Told(format!("error: more than {} bytes waited to be read; read faster or subscribe to less", limits.max_waiting_bytes))
        }
        _ = stop.wait_for(|stop| *stop) => End::Told("the relay is stopping".to_owned()),
    };
    drop(session);
    hub.counters.connections.fetch_sub(1, Ordering::Relaxed);
    if let End::Told(reason) = end {
        let _ = timeout(GOODBYE, async {
            sink.send(Message::text(notice(&reason))).await?;
            sink.close().await
        })
        .await;
    }
}

/// Writes what is queued, many messages to a flush when many wait.
async fn write<W>(sink: &mut W, queue: &mut mpsc::UnboundedReceiver<Outgoing>, outbox: &Outbox)
where
    W: Sink<Message, Error = WsError> + Unpin,
{
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        while let Some(outgoing) = next {
            let cost_bytes = outgoing.cost_bytes();
            if feed(sink, outgoing).await.is_err() {
                return;
            }
            outbox.wrote(cost_bytes);
            next = queue.try_recv().ok();
        }
        if sink.flush().await.is_err() {
            return;
        }
    }
}

async fn feed<W>(sink: &mut W, outgoing: Outgoing) -> Result<(), WsError>
where
    W: Sink<Message, Error = WsError> + Unpin,
{
    match outgoing {
        Outgoing::Text(text) => sink.feed(Message::text(text)).await,
        Outgoing::Live { prefix, record } => sink.feed(event_message(&prefix, &record)).await,
        Outgoing::Answer {
            prefix,
            records,
            eose,
        } => {
            for record in records {
                sink.feed(event_message(&prefix, &record)).await?;
            }
            sink.feed(Message::text(eose)).await
        }
        Outgoing::Ping => sink.feed(Message::Ping(Vec::new().into())).await,
    }
}

fn event_message(prefix: &str, record: &Record) -> Message {
    let mut text = String::with_capacity(prefix.len() + record.json.len() + 1);
    text.push_str(prefix);
    text.push_str(&record.json);
    text.push(']');
    Message::text(text)
}

fn notice(text: &str) -> String {
    format!(r#"["NOTICE",{}]"#, Value::from(text))
}

fn closed(subscription_id: &str, reason: &str) -> String {
    format!(
        r#"["CLOSED",{},{}]"#,
        Value::from(subscription_id),
        Value::from(reason)
    )
}

/// The id of an event that is refused before it is read in full, so that its sender still learns which one.
#[derive(Deserialize)]
struct IdOnly {
    id: String,
}

impl IdOnly {
    fn read(json: &str) -> Option<String> {
        let id = serde_json::from_str::<Self>(json).ok()?.id;
        (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
    }
}

/// What the relay knows of one client.
struct Session<'a> {
    hub: &'a Hub,
    outbox: Arc<Outbox>,
    subscriptions: HashMap<String, u64>,
    challenge: String,
    /// Keys (hex) proven by AUTH; several may be on one connection.
    keys: Arc<BTreeSet<String>>,
    commands_left: f64,
    refilled: Instant,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.hub
            .unsubscribe(self.subscriptions.drain().map(|(_, key)| key));
    }
}

impl<'a> Session<'a> {
    fn new(hub: &'a Hub, outbox: Arc<Outbox>) -> Self {
        let mut random = [0; 16];
        // Without randomness no AUTH can succeed: an empty challenge is never accepted.
        let challenge = getrandom::fill(&mut random)
            .map(|()| hex::encode(random))
            .unwrap_or_default();
        Self {
            hub,
            outbox,
            subscriptions: HashMap::new(),
            challenge,
            keys: Arc::default(),
            commands_left: f64::from(hub.config.limits.max_commands_per_minute),
            refilled: Instant::now(),
        }
    }

    fn say(&self, text: String) {
        self.outbox.push(Outgoing::Text(text));
    }

    fn refuse_event(&self, id: &str, reason: &str) {
        self.hub
            .counters
            .events_refused
            .fetch_add(1, Ordering::Relaxed);
        self.say(ok_message(id, false, reason));
    }

    async fn read<R>(&mut self, source: &mut R) -> End
    where
        R: Stream<Item = Result<Message, WsError>> + Unpin,
    {
        let limits = &self.hub.config.limits;
        let (patience, ping_every) = (
            Duration::from_millis(limits.stall_ms),
            Duration::from_millis(limits.ping_ms),
        );
        let mut silent = 0;
        if self.hub.config.auth_inbox {
            self.say(format!(r#"["AUTH","{}"]"#, self.challenge));
        }
        loop {
            if !self.outbox.room(patience).await {
                self.hub
                    .counters
                    .slow_readers_cut
                    .fetch_add(1, Ordering::Relaxed);
                return End::Told(
                    "error: answers were not read; read them while sending".to_owned(),
                );
            }
            let Ok(received) = timeout(ping_every, source.next()).await else {
                silent += 1;
                if silent > SILENT_PINGS {
                    return End::Gone;
                }
                self.outbox.push(Outgoing::Ping);
                continue;
            };
            silent = 0;
            match received {
                Some(Ok(Message::Text(text))) => self.handle(text.as_str()).await,
                Some(Ok(Message::Binary(_))) => self.say(notice(
                    "invalid: binary messages are not understood; send text",
                )),
                Some(
                    Ok(Message::Close(_)) | Err(WsError::ConnectionClosed | WsError::AlreadyClosed),
                )
                | None => return End::Gone,
                Some(Ok(_)) => {}
                Some(Err(WsError::Capacity(_))) => {
                    return End::Told(format!(
                        "invalid: messages have at most {} bytes",
                        limits.max_message_bytes
                    ));
                }
                Some(Err(_)) => return End::Gone,
            }
        }
    }

    /// A token bucket that holds one minute's commands.
    fn within_rate(&mut self) -> bool {
        let per_minute = f64::from(self.hub.config.limits.max_commands_per_minute);
        let now = Instant::now();
        let refill = now.duration_since(self.refilled).as_secs_f64() * per_minute / 60.0;
        self.refilled = now;
        self.commands_left = (self.commands_left + refill).min(per_minute);
        let within = self.commands_left >= 1.0;
        if within {
            self.commands_left -= 1.0;
        }
        within
    }

    async fn handle(&mut self, text: &str) {
        let parts: Vec<&RawValue> = match serde_json::from_str(text) {
            Ok(parts) => parts,
            Err(_) => return self.say(notice("invalid: a message is a JSON array")),
        };
        let Some((verb, parts)) = parts.split_first() else {
            return self.say(notice("invalid: the message is empty"));
        };
        let first = parts.first().map_or("", |part| part.get());
        let max_message_bytes = self.hub.config.limits.max_message_bytes;
        let refused = if text.len() > max_message_bytes {
            Some(format!(
                "invalid: the message has {} bytes, at most {max_message_bytes} are allowed",
                text.len()
            ))
        } else if !self.within_rate() {
            Some("rate-limited: too many messages; slow down and send it again".to_owned())
        } else {
            None
        };
        match (verb.get(), refused) {
            (r#""EVENT""#, Some(reason)) => match IdOnly::read(first) {
                Some(id) => self.refuse_event(&id, &reason),
                None => self.say(notice(&reason)),
            },
            (r#""REQ""# | r#""COUNT""#, Some(reason)) => {
                match serde_json::from_str::<String>(first) {
                    Ok(id) => self.say(closed(&id, &reason)),
                    Err(_) => self.say(notice(&reason)),
                }
            }
            (_, Some(reason)) => self.say(notice(&reason)),
            (r#""EVENT""#, None) => self.event(first).await,
            (r#""REQ""#, None) => self.request(first, parts.get(1..).unwrap_or_default(), false),
            (r#""COUNT""#, None) => self.request(first, parts.get(1..).unwrap_or_default(), true),
            (r#""CLOSE""#, None) => self.close(first),
            (r#""AUTH""#, None) => self.auth(first),
            _ => self.say(notice(
                "invalid: this relay understands EVENT, REQ, COUNT, CLOSE and AUTH",
            )),
        }
    }

    async fn event(&mut self, json: &str) {
        let limits = &self.hub.config.limits;
        let (event, id) = match (serde_json::from_str::<Event>(json), IdOnly::read(json)) {
            (Ok(event), Some(id)) => (event, id),
            (Err(error), Some(id)) => {
                return self.refuse_event(&id, &format!("invalid: not an event: {error}"));
            }
            (_, None) => return self.say(notice("invalid: not an event: it has no id")),
        };
        if json.len() > limits.max_event_bytes {
            let reason = format!(
                "invalid: the event has {} bytes, at most {} are allowed",
                json.len(),
                limits.max_event_bytes
            );
            return self.refuse_event(&id, &reason);
        }
        if event.created_at.as_secs() > now_s().saturating_add(limits.max_future_s) {
            return self.refuse_event(
                &id,
                "invalid: created_at is too far in the future; check the clock",
            );
        }
        if event.kind.as_u16() == KIND_AUTH {
            return self.refuse_event(&id, "invalid: send it as AUTH");
        }
        if !event.verify_id() {
            return self.refuse_event(&id, "invalid: the id is not the hash of the event");
        }
        if !event.verify_signature() {
            return self.refuse_event(&id, "invalid: the signature does not verify");
        }
        let Some(record) = Record::new(&event) else {
            return self.refuse_event(&id, "invalid: not an event");
        };
        if record.protected && !self.keys.contains(&hex::encode(record.author)) {
            self.say(format!(r#"["AUTH","{}"]"#, self.challenge));
            return self.refuse_event(
                &id,
                "auth-required: a protected event is taken from its author only",
            );
        }
        self.hub.publish(record, &self.outbox).await;
    }

    fn request(&mut self, id: &str, filters: &[&RawValue], count: bool) {
        let limits = &self.hub.config.limits;
        let Some(id) = serde_json::from_str::<String>(id)
            .ok()
            .filter(|id| !id.is_empty())
        else {
            return self.say(notice("invalid: a subscription id is a string, not empty"));
        };
        if id.chars().count() > limits.max_subscription_id_chars {
            let reason = format!(
                "invalid: a subscription id has at most {} characters",
                limits.max_subscription_id_chars
            );
            return self.say(closed(&id, &reason));
        }
        let filters = match self.filters(filters) {
            Ok(filters) => filters,
            Err(reason) => return self.say(closed(&id, &reason)),
        };
        if let Err(reason) = self.may_ask(&filters) {
            if reason.starts_with("auth-required") {
                self.say(format!(r#"["AUTH","{}"]"#, self.challenge));
            }
            return self.say(closed(&id, reason));
        }
        let quoted = Value::from(id.as_str());
        if count {
            let count = self.hub.count(&filters);
            return self.say(format!(r#"["COUNT",{quoted},{{"count":{count}}}]"#));
        }
        if let Some(key) = self.subscriptions.remove(&id) {
            self.hub.unsubscribe([key]);
        } else if self.subscriptions.len() >= limits.max_subscriptions {
            let reason = format!(
                "error: at most {} subscriptions at once; close one first",
                limits.max_subscriptions
            );
            return self.say(closed(&id, &reason));
        }
        let subscription = Subscription {
            outbox: Arc::clone(&self.outbox),
            filters,
            readers: self.readers(),
            prefix: format!(r#"["EVENT",{quoted},"#).into(),
        };
        let key = self
            .hub
            .subscribe(subscription, format!(r#"["EOSE",{quoted}]"#));
        self.subscriptions.insert(id, key);
    }

    fn filters(&self, filters: &[&RawValue]) -> Result<Vec<Filter>, String> {
        let limits = &self.hub.config.limits;
        if filters.is_empty() || filters.len() > limits.max_filters {
            return Err(format!(
                "invalid: between 1 and {} filters are allowed",
                limits.max_filters
            ));
        }
        filters
            .iter()
            .map(|raw| {
                let value: Value =
                    serde_json::from_str(raw.get()).map_err(|error| format!("invalid: {error}"))?;
                Filter::parse(&value, limits.max_filter_values)
                    .map_err(|reason| format!("invalid: {reason}"))
            })
            .collect()
    }

    fn readers(&self) -> Readers {
        self.hub.config.auth_inbox.then(|| Arc::clone(&self.keys))
    }

    /// On a relay that guards inboxes, gift wraps may be asked for by the keys that this connection has proven, as strfry does it. A
    /// filter that does not name their kind is served without them.
    fn may_ask(&self, filters: &[Filter]) -> Result<(), &'static str> {
        if !self.hub.config.auth_inbox {
            return Ok(());
        }
        for filter in filters.iter().filter(|f| {
            f.kinds
                .as_ref()
                .is_some_and(|kinds| kinds.contains(&KIND_GIFT_WRAP))
        }) {
            if self.keys.is_empty() {
                return Err(
                    "auth-required: gift wraps are served to their recipient; answer the AUTH challenge",
                );
            }
            if !filter
                .tag(b'p')
                .is_some_and(|values| values.iter().all(|value| self.keys.contains(value)))
            {
                return Err(
                    "auth-required: `#p` must name only keys that have answered the AUTH challenge",
                );
            }
        }
        Ok(())
    }

    fn close(&mut self, id: &str) {
        if let Some(key) = serde_json::from_str::<String>(id)
            .ok()
            .and_then(|id| self.subscriptions.remove(&id))
        {
            self.hub.unsubscribe([key]);
        }
    }

    /// NIP-42.
    fn auth(&mut self, json: &str) {
        let (Ok(event), Some(id)) = (serde_json::from_str::<Event>(json), IdOnly::read(json))
        else {
            return self.say(notice("invalid: AUTH takes a signed event of kind 22242"));
        };
        let tag = |name: &str| {
            let named = event
                .tags
                .iter()
                .map(|tag| tag.as_slice())
                .find(|tag| tag.first().is_some_and(|n| n == name));
            named.and_then(|tag| tag.get(1)).map(String::as_str)
        };
        let fresh = event.created_at.as_secs().abs_diff(now_s()) <= AUTH_WINDOW_S;
        let here = tag("relay")
            .is_some_and(|url| url.trim_end_matches('/') == self.hub.url.trim_end_matches('/'));
        let answers =
            !self.challenge.is_empty() && tag("challenge") == Some(self.challenge.as_str());
        if event.kind.as_u16() != KIND_AUTH
            || !fresh
            || !here
            || !answers
            || event.verify().is_err()
        {
            let reason = format!(
                "invalid: the AUTH event must be fresh, signed, and name this challenge and {}",
                self.hub.url
            );
            return self.say(ok_message(&id, false, &reason));
        }
        let key: Bytes32 = event.pubkey.to_bytes();
        Arc::make_mut(&mut self.keys).insert(hex::encode(key));
        self.say(ok_message(&id, true, ""));
    }
}
