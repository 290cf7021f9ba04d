//! One open WebSocket: reads and writes at the same time, in batches, until it ends. Knows the relay's state machines
//! (`inbox`, `in_flight`, `auth`) and nothing of reconnecting.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use nostr::{Event, EventId, JsonUtil, Kind, RelayUrl};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::auth::Auth;
use super::delivery::Delivery;
use super::frame::{self, RelayFrame};
use super::handle::Desired;
use super::in_flight::{Answer, InFlight};
use super::inbox::{Action, EPHEMERAL_WRAP, Inboxes};
use super::types::{CarrierConfig, Outcome, Outgoing, RelayState, shorten};

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Messages taken in one go from the socket or from the publishers before the other side gets its turn.
const BATCH: usize = 64;

/// How a session ended.
pub(crate) enum End {
    /// The relay was removed, the handle or the reader dropped.
    Stopped,
    /// Reconnect. `healthy`: the relay had served its inboxes, so the next attempt need not wait long.
    Lost { reason: String, healthy: bool },
}

/// What the connection lends a session.
pub(crate) struct Wires<'a> {
    pub(crate) delivery: &'a mut Delivery,
    pub(crate) commands: &'a mut mpsc::Receiver<Outgoing>,
    pub(crate) desired: &'a mut watch::Receiver<Desired>,
    pub(crate) stop: &'a mut oneshot::Receiver<()>,
}

pub(crate) struct Session {
    config: Arc<CarrierConfig>,
    socket: Socket,
    inboxes: Inboxes,
    in_flight: InFlight,
    auth: Auth,
    /// Something was written and not flushed.
    dirty: bool,
    /// The last flush could not finish: the relay reads slower than we write.
    blocked: bool,
    paused: bool,
    healthy: bool,
    last_heard: Instant,
    next_ping: Instant,
    lost: Option<String>,
}

enum Io {
    Flushed(Result<(), WsError>),
    Message(Option<Result<Message, WsError>>),
}

impl Session {
    pub(crate) fn new(config: Arc<CarrierConfig>, relay: RelayUrl, socket: Socket) -> Self {
        let now = Instant::now();
        Self {
            inboxes: Inboxes::new(config.clone(), now),
            in_flight: InFlight::new(config.ok_timeout_ms),
            auth: Auth::new(relay, config.ok_timeout_ms),
            dirty: false,
            blocked: false,
            paused: false,
            healthy: false,
            last_heard: now,
            next_ping: now + Duration::from_millis(config.ping_interval_ms),
            lost: None,
            socket,
            config,
        }
    }

    /// Runs until the connection ends; every publication in flight gets its outcome.
    pub(crate) async fn run(mut self, wires: &mut Wires<'_>) -> End {
        self.follow(wires);
        let stopped = self.turn(wires).await;
        let reason = self.lost.take().unwrap_or_else(|| "stopped".into());
        for id in self.in_flight.drain() {
            wires
                .delivery
                .published(id, Outcome::Unknown(reason.clone()));
        }
        wires.delivery.status().in_flight = 0;
        if stopped {
            let _ = tokio::time::timeout(Duration::from_secs(1), self.socket.close(None)).await;
            return End::Stopped;
        }
        End::Lost {
            reason,
            healthy: self.healthy,
        }
    }

    /// `true`: stopped on purpose.
    async fn turn(&mut self, wires: &mut Wires<'_>) -> bool {
        let mut timer = Box::pin(sleep_until(self.next_deadline()));
        loop {
            if !wires.delivery.deliver_ready() {
                return true;
            }
            let now = Instant::now();
            self.pace(wires, now);
            if self.lost.is_some() {
                return false;
            }
            rearm(timer.as_mut(), self.next_deadline());
            let (read, write) = (!self.paused, self.may_publish(wires));
            let waiting = wires.delivery.waiting() > 0;
            tokio::select! {
                io = next_io(&mut self.socket, self.dirty, &mut self.blocked, read) => self.on_io(io, wires),
                command = wires.commands.recv(), if write => match command {
                    Some(outgoing) => self.publish_batch(outgoing, wires),
                    None => return true,
                },
                delivered = wires.delivery.deliver_one(), if waiting => if !delivered { return true },
                changed = wires.desired.changed() => {
                    if changed.is_err() {
                        return true;
                    }
                    self.follow(wires);
                }
                _ = &mut *wires.stop => return true,
                () = timer.as_mut() => self.on_timer(wires),
            }
        }
    }

    /// Reads only while there is room for what is read: that is the back-pressure.
    fn pace(&mut self, wires: &Wires<'_>, now: Instant) {
        let paused = wires.delivery.waiting() >= self.config.pending_events.max(1);
        if self.paused && !paused {
            self.last_heard = now;
            self.inboxes.forgive_silence(now);
        }
        self.paused = paused;
    }

    fn may_publish(&self, wires: &Wires<'_>) -> bool {
        !self.blocked
            && wires.delivery.waiting() < self.config.pending_events.max(1)
            && self.in_flight.len() < self.config.max_in_flight_events.max(1)
            && self.in_flight.bytes() < self.config.max_in_flight_bytes
    }

    fn next_deadline(&self) -> Instant {
        let mut next = self.next_ping;
        let silence = (!self.paused)
            .then(|| self.last_heard + Duration::from_millis(self.config.dead_after_ms));
        let inboxes = if self.paused {
            None
        } else {
            self.inboxes.next_deadline()
        };
        for at in [
            silence,
            inboxes,
            self.in_flight.next_deadline(),
            self.auth.next_deadline(),
        ]
        .into_iter()
        .flatten()
        {
            next = next.min(at);
        }
        next
    }

    fn on_timer(&mut self, wires: &mut Wires<'_>) {
        let now = Instant::now();
        for id in self.in_flight.expired(now) {
            wires
                .delivery
                .published(id, Outcome::Unknown("timeout".into()));
        }
        if self.auth.timed_out(now) {
            self.after_auth(now);
        }
        if self.next_ping <= now {
            self.next_ping = now + Duration::from_millis(self.config.ping_interval_ms);
            self.write(Message::Ping(Vec::new().into()));
        }
        if !self.paused {
            if self.last_heard + Duration::from_millis(self.config.dead_after_ms) <= now {
                self.lose("the relay is silent: no answer to pings");
            }
            self.inboxes.tick(now);
        }
        self.act(wires);
        wires.delivery.status().in_flight = self.in_flight.len();
    }

    fn on_io(&mut self, io: Io, wires: &mut Wires<'_>) {
        match io {
            Io::Flushed(Ok(())) => self.dirty = false,
            Io::Flushed(Err(error)) => self.lose(&error.to_string()),
            Io::Message(message) => {
                let mut next = Some(message);
                let mut taken = 0;
                while let Some(message) = next {
                    self.on_message(message, wires);
                    taken += 1;
                    let room = wires.delivery.waiting() < self.config.pending_events.max(1);
                    next = (taken < BATCH && room && self.lost.is_none())
                        .then(|| self.socket.next().now_or_never())
                        .flatten();
                }
                self.act(wires);
                wires.delivery.status().in_flight = self.in_flight.len();
                if self.may_publish(wires)
                    && let Ok(outgoing) = wires.commands.try_recv()
                {
                    self.publish_batch(outgoing, wires);
                }
            }
        }
    }

    fn on_message(&mut self, message: Option<Result<Message, WsError>>, wires: &mut Wires<'_>) {
        let now = Instant::now();
        self.last_heard = now;
        match message {
            Some(Ok(Message::Text(text))) => match frame::parse(&text) {
                Some(frame) => self.on_frame(frame, wires, now),
                None => wires.delivery.refused(),
            },
            Some(Ok(Message::Ping(_))) => self.dirty = true, // tungstenite has queued the pong
            Some(Ok(Message::Close(_))) | None => self.lose("the relay closed the connection"),
            Some(Ok(_)) => {}
            Some(Err(WsError::Capacity(error))) => {
                self.lose(&format!("message too large: {error}"))
            }
            Some(Err(error)) => self.lose(&error.to_string()),
        }
    }

    fn on_frame(&mut self, frame: RelayFrame<'_>, wires: &mut Wires<'_>, now: Instant) {
        match frame {
            RelayFrame::Event { sub, json } => self.on_event(&sub, json, wires, now),
            RelayFrame::Ok {
                event_id,
                accepted,
                message,
            } => {
                if let Ok(id) = EventId::from_hex(&event_id) {
                    self.on_ok(id, accepted, &message, wires, now);
                }
            }
            RelayFrame::Eose { sub, finished } => self.inboxes.on_eose(&sub, finished, now),
            RelayFrame::Closed { sub, message } => {
                self.inboxes.on_closed(
                    &sub,
                    &message,
                    self.auth.has_keys(),
                    self.auth.settled(),
                    now,
                );
            }
            RelayFrame::Auth { challenge } => {
                for frame in self.auth.challenged(challenge, now) {
                    self.write(Message::text(frame));
                }
            }
            RelayFrame::Notice { message } => {
                wires.delivery.status().last_error = Some(shorten(&message))
            }
        }
    }

    fn on_event(&mut self, sub: &str, json: &str, wires: &mut Wires<'_>, now: Instant) {
        let event = (json.len() <= self.config.max_event_bytes)
            .then(|| Event::from_json(json).ok())
            .flatten();
        let Some(event) = event else {
            wires.delivery.refused();
            // It still counts for the page, or its neighbours in history would never be asked for.
            if let Ok(Dated { created_at }) = serde_json::from_str(json) {
                self.inboxes.on_event(sub, created_at, false, now);
            }
            return;
        };
        let created_at_s = event.created_at.as_secs();
        let ours = (event.kind == Kind::GiftWrap || event.kind == EPHEMERAL_WRAP)
            && event
                .tags
                .iter()
                .any(|tag| matches!(tag.as_slice(), [name, p, ..] if name == "p" && self.inboxes.wants(p)));
        if !ours {
            wires.delivery.refused();
        }
        let fresh = ours && wires.delivery.arrived(event);
        self.inboxes.on_event(sub, created_at_s, fresh, now);
    }

    fn on_ok(
        &mut self,
        id: EventId,
        accepted: bool,
        message: &str,
        wires: &mut Wires<'_>,
        now: Instant,
    ) {
        if let Some(done) = self.auth.answered(&id, accepted) {
            if !accepted {
                wires.delivery.status().last_error =
                    Some(format!("AUTH refused: {}", shorten(message)));
            }
            if done {
                self.after_auth(now);
            }
            return;
        }
        match self
            .in_flight
            .answer(id, accepted, message, self.auth.has_keys(), now)
        {
            Answer::Done(outcome, round_trip) => {
                wires.delivery.status().rtt_ms = Some(round_trip.as_secs_f64() * 1_000.0);
                wires.delivery.published(id, outcome);
            }
            Answer::AwaitAuth if self.auth.settled() => self.after_auth(now),
            Answer::AwaitAuth | Answer::Stranger => {}
        }
    }

    fn after_auth(&mut self, now: Instant) {
        self.inboxes.on_auth_done(now);
        for outgoing in self.in_flight.after_auth(now) {
            self.write(Message::Text(outgoing.frame));
        }
    }

    /// Takes over the inboxes and the drain generation that the node wants now.
    fn follow(&mut self, wires: &mut Wires<'_>) {
        let now = Instant::now();
        let desired = wires.desired.borrow_and_update().clone();
        for frame in self.auth.set_inboxes(&desired.inboxes, now) {
            self.write(Message::text(frame));
        }
        self.inboxes
            .update(&desired.inboxes, desired.generation, now);
        self.act(wires);
    }

    fn act(&mut self, wires: &mut Wires<'_>) {
        for action in self.inboxes.take_actions() {
            match action {
                Action::Send(frame) => self.write(Message::text(frame)),
                Action::Refused { message, retry } => {
                    let retry_in_ms = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
                    wires.delivery.state(RelayState::SubscriptionRefused {
                        message,
                        retry_in_ms,
                    });
                }
                Action::Gap { pubkey, at_s } => wires
                    .delivery
                    .state(RelayState::HistoryGap { pubkey, at_s }),
                Action::CaughtUp => {
                    self.healthy = true;
                    wires.delivery.state(RelayState::CaughtUp {
                        generation: self.inboxes.generation(),
                    });
                }
                Action::Dead => self.lose("the relay is silent: a subscription got no answer"),
            }
        }
    }

    /// Writes all that waits, then lets the loop flush once.
    fn publish_batch(&mut self, first: Outgoing, wires: &mut Wires<'_>) {
        let mut next = Some(first);
        let now = Instant::now();
        let mut sent = 0;
        while let Some(outgoing) = next {
            if self.in_flight.insert(outgoing.clone(), now) {
                sent += 1;
                self.write(Message::Text(outgoing.frame));
            }
            next = (sent < BATCH && self.may_publish(wires))
                .then(|| wires.commands.try_recv().ok())
                .flatten();
        }
        let mut status = wires.delivery.status();
        status.events_out += sent as u64;
        status.in_flight = self.in_flight.len();
    }

    /// Queues a message in the socket's own buffer. Without `poll_ready`: tungstenite takes a message while an earlier flush
    /// is unfinished and fails at `max_write_buffer_size`; publications are held back by `blocked` long before.
    fn write(&mut self, message: Message) {
        self.dirty = true;
        if let Err(error) = self.socket.start_send_unpin(message) {
            self.lose(&error.to_string());
        }
    }

    fn lose(&mut self, reason: &str) {
        self.lost.get_or_insert_with(|| shorten(reason));
    }
}

#[derive(Deserialize)]
struct Dated {
    created_at: u64,
}

fn rearm(timer: Pin<&mut Sleep>, at: Instant) {
    if timer.deadline() != at {
        timer.reset(at);
    }
}

/// Flushes and reads at the same time: a relay that reads and writes in turns stops reading while it writes to us, so
/// waiting for a flush without reading could wait for ever.
async fn next_io(socket: &mut Socket, dirty: bool, blocked: &mut bool, read: bool) -> Io {
    std::future::poll_fn(|context| {
        *blocked = false;
        if dirty {
            match socket.poll_flush_unpin(context) {
                Poll::Ready(result) => return Poll::Ready(Io::Flushed(result)),
                Poll::Pending => *blocked = true,
            }
        }
        if read {
            socket.poll_next_unpin(context).map(Io::Message)
        } else {
            Poll::Pending
        }
    })
    .await
}
