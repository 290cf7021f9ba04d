//! What the node holds: starts and stops relays, hands them publications and the inboxes to read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use nostr::RelayUrl;
use tokio::sync::{mpsc, oneshot, watch};

use super::connection::Connection;
use super::delivery::{Delivery, Recent, lock};
use super::types::{
    CarrierConfig, CarrierError, CarrierEvent, InboxSpec, Outcome, Outgoing, RelayState,
    RelayStatus, parse_url,
};

/// What every connection should be doing. A `watch` value: replacing it neither waits nor grows.
#[derive(Clone, Default)]
pub(crate) struct Desired {
    pub(crate) inboxes: Arc<Vec<InboxSpec>>,
    pub(crate) generation: u64,
}

struct Slot {
    commands: mpsc::Sender<Outgoing>,
    status: Arc<Mutex<RelayStatus>>,
    /// Dropped with the slot, which ends the task.
    _stop: oneshot::Sender<()>,
}

struct Inner {
    config: Arc<CarrierConfig>,
    events: mpsc::Sender<CarrierEvent>,
    recent: Arc<Mutex<Recent>>,
    desired: watch::Sender<Desired>,
    relays: Mutex<BTreeMap<Arc<str>, Slot>>,
}

/// The carrier over Nostr relays.
pub struct RelayCarrier;

impl RelayCarrier {
    /// Starts one task per relay on the current tokio runtime. Read the receiver steadily; the tasks end when the last
    /// [`Handle`] or the receiver is dropped.
    ///
    /// # Errors
    /// `carrier_bad_url`, `carrier_too_many_relays`.
    pub fn start(
        config: CarrierConfig,
        relays: Vec<String>,
    ) -> Result<(Handle, mpsc::Receiver<CarrierEvent>), CarrierError> {
        let (events, receiver) = mpsc::channel(config.event_queue_events.max(1));
        let handle = Handle {
            inner: Arc::new(Inner {
                recent: Arc::new(Mutex::new(Recent::new(config.recent_events))),
                config: Arc::new(config),
                events,
                desired: watch::Sender::default(),
                relays: Mutex::default(),
            }),
        };
        for relay in &relays {
            handle.add_relay(relay)?;
        }
        Ok((handle, receiver))
    }
}

/// A cheap, cloneable handle on a running carrier. Dropping the last one ends every task.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

impl Handle {
    /// Publishes one event to several relays; each that gets it answers with one [`CarrierEvent::Published`], a relay that is not
    /// connected or not known at once with [`Outcome::Unknown`]. Waits while the queues of all are full, so do not call it from the
    /// task that reads the events. A relay whose queue is full is passed over while another one takes the event: it is slow or
    /// reads nothing, and everybody would wait for it.
    ///
    /// # Errors
    /// `carrier_event_too_large`, `carrier_bad_url`, `carrier_ended`; then some of the relays may have been given it.
    pub async fn publish(&self, event: &Outgoing, relays: &[String]) -> Result<(), CarrierError> {
        self.check_size(event)?;
        let (mut given, mut full) = (false, Vec::new());
        for relay in relays {
            let url = parse_url(relay)?;
            let commands = lock(&self.inner.relays)
                .get(url.as_str())
                .map(|slot| slot.commands.clone());
            let tried = commands
                .as_ref()
                .map(|commands| commands.try_send(event.clone()));
            match (tried, commands) {
                (Some(Ok(())), _) => given = true,
                (Some(Err(mpsc::error::TrySendError::Full(_))), Some(commands)) => {
                    full.push(commands)
                }
                _ => self.missed(event, &url).await?,
            }
        }
        if !given && !full.is_empty() {
            let waits = full.into_iter().map(|commands| {
                let event = event.clone();
                Box::pin(async move { commands.send(event).await.is_ok() })
            });
            futures_util::future::select_all(waits).await;
        }
        Ok(())
    }

    async fn missed(&self, event: &Outgoing, url: &RelayUrl) -> Result<(), CarrierError> {
        let missed = CarrierEvent::Published {
            event_id: event.event_id,
            relay: url.as_str().into(),
            outcome: Outcome::Unknown("not one of the carrier's relays".into()),
        };
        let told = self.inner.events.send(missed).await;
        told.map_err(|_| CarrierError::Ended)
    }

    /// Publishes to one relay without waiting: for the task that reads the events.
    ///
    /// # Errors
    /// `carrier_busy` and `carrier_unknown_relay` besides those of [`publish`](Self::publish); then no outcome follows.
    pub fn try_publish(&self, event: &Outgoing, relay: &str) -> Result<(), CarrierError> {
        self.check_size(event)?;
        let url = parse_url(relay)?;
        let relays = lock(&self.inner.relays);
        let slot = relays
            .get(url.as_str())
            .ok_or_else(|| CarrierError::UnknownRelay {
                url: url.to_string(),
            })?;
        slot.commands
            .try_send(event.clone())
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => CarrierError::Busy {
                    url: url.to_string(),
                },
                mpsc::error::TrySendError::Closed(_) => CarrierError::Ended,
            })
    }

    fn check_size(&self, event: &Outgoing) -> Result<(), CarrierError> {
        let (bytes, max_event_bytes) = (event.frame.len(), self.inner.config.max_event_bytes);
        if bytes > max_event_bytes {
            return Err(CarrierError::EventTooLarge {
                bytes,
                max_event_bytes,
            });
        }
        Ok(())
    }

    /// Replaces the inboxes on every connection. New keys get their history read, after which the relay says `CaughtUp` again;
    /// keys that stay are not read again, so calling this with newer `since_s` values is cheap and useful for the next
    /// reconnect.
    ///
    /// # Errors
    /// `carrier_too_many_inboxes`; the old set stays.
    pub fn set_inboxes(&self, inboxes: Vec<InboxSpec>) -> Result<(), CarrierError> {
        let config = &self.inner.config;
        let max_inboxes = config
            .max_inboxes
            .min(config.pubkeys_per_filter.max(1) * (config.max_live_reqs / 2).max(1));
        if inboxes.len() > max_inboxes {
            return Err(CarrierError::TooManyInboxes {
                inboxes: inboxes.len(),
                max_inboxes,
            });
        }
        self.inner
            .desired
            .send_modify(|desired| desired.inboxes = Arc::new(inboxes));
        Ok(())
    }

    /// Reads every inbox again to its end, after a suspend or a clock jump. Each connected relay answers with
    /// [`RelayState::CaughtUp`] carrying the returned generation (or a later one); one that is not connected, after it has
    /// connected. Events delivered before are not delivered again.
    pub fn drain(&self) -> u64 {
        let mut generation = 0;
        self.inner.desired.send_modify(|desired| {
            desired.generation += 1;
            generation = desired.generation;
        });
        generation
    }

    /// As [`drain`](Self::drain), but events delivered before are delivered again: for a node that lost a batch.
    pub fn redeliver(&self) -> u64 {
        lock(&self.inner.recent).clear();
        self.drain()
    }

    /// Adds a relay and connects to it; nothing happens if it is there.
    ///
    /// # Errors
    /// `carrier_bad_url`, `carrier_too_many_relays`.
    pub fn add_relay(&self, url: &str) -> Result<(), CarrierError> {
        self.add(url, false)
    }

    /// The same for a relay that somebody else named: it is connected to only while its name resolves to public addresses.
    ///
    /// # Errors
    /// Those of [`add_relay`](Self::add_relay).
    pub fn add_foreign_relay(&self, url: &str) -> Result<(), CarrierError> {
        self.add(url, true)
    }

    fn add(&self, url: &str, foreign: bool) -> Result<(), CarrierError> {
        let relay = parse_url(url)?;
        let key: Arc<str> = relay.as_str().into();
        let mut relays = lock(&self.inner.relays);
        if relays.contains_key(&key) {
            return Ok(());
        }
        let max_relays = self.inner.config.max_relays;
        if relays.len() >= max_relays {
            return Err(CarrierError::TooManyRelays { max_relays });
        }
        relays.insert(key.clone(), self.spawn(relay, key, foreign));
        Ok(())
    }

    fn spawn(&self, relay: RelayUrl, key: Arc<str>, foreign: bool) -> Slot {
        let inner = &self.inner;
        let (commands, command_receiver) = mpsc::channel(inner.config.publish_queue_events.max(1));
        let (stop, stopped) = oneshot::channel();
        let status = Arc::new(Mutex::new(RelayStatus {
            url: key.clone(),
            state: RelayState::Connecting,
            last_error: None,
            refuses: None,
            events_in: 0,
            duplicates_in: 0,
            refused_in: 0,
            events_out: 0,
            in_flight: 0,
            rtt_ms: None,
        }));
        let connection = Connection {
            config: inner.config.clone(),
            relay,
            foreign,
            delivery: Delivery::new(
                key,
                inner.events.clone(),
                inner.recent.clone(),
                status.clone(),
            ),
            commands: command_receiver,
            desired: inner.desired.subscribe(),
            stop: stopped,
        };
        tokio::spawn(connection.run());
        Slot {
            commands,
            status,
            _stop: stop,
        }
    }

    /// Closes a relay's connection and forgets it. Publications in flight there become `Unknown` as far as the channel has room.
    /// Returns whether it was there.
    pub fn remove_relay(&self, url: &str) -> bool {
        parse_url(url).is_ok_and(|relay| lock(&self.inner.relays).remove(relay.as_str()).is_some())
    }

    /// One snapshot per relay, in the order of their addresses.
    pub fn status(&self) -> Vec<RelayStatus> {
        lock(&self.inner.relays)
            .values()
            .map(|slot| lock(&slot.status).clone())
            .collect()
    }
}
