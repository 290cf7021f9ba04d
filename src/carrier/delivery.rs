//! From the relays' tasks to the node's one channel: bounded, lossless, in order per relay, exact copies filtered.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nostr::Event;
use tokio::sync::mpsc;

use super::types::{CarrierEvent, Outcome, RelayState, RelayStatus, shorten};

/// Takes a lock even when another thread panicked while holding it: what these locks guard is valid after every statement.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last events delivered, by id **and** whole body under a secret hash key: a forged body under a real id is another
/// event, so it cannot keep the real one out.
pub(crate) struct Recent {
    hashers: [RandomState; 2],
    seen: HashSet<[u64; 2]>,
    order: VecDeque<[u64; 2]>,
    capacity: usize,
}

impl Recent {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            hashers: [RandomState::new(), RandomState::new()],
            seen: HashSet::new(),
            order: VecDeque::new(),
            capacity,
        }
    }

    fn key(&self, event: &Event) -> [u64; 2] {
        let tags: Vec<&[String]> = event.tags.iter().map(|tag| tag.as_slice()).collect();
        let body = (
            event.id.as_bytes(),
            event.pubkey.to_bytes(),
            event.created_at.as_secs(),
            event.kind.as_u16(),
            tags,
            event.content.as_str(),
            event.sig.serialize(),
        );
        [
            self.hashers[0].hash_one(&body),
            self.hashers[1].hash_one(&body),
        ]
    }

    fn insert(&mut self, key: [u64; 2]) {
        if self.seen.insert(key) {
            self.order.push_back(key);
            if self.order.len() > self.capacity
                && let Some(oldest) = self.order.pop_front()
            {
                self.seen.remove(&oldest);
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.seen.clear();
        self.order.clear();
    }
}

/// One relay's end of the channel, with what waits for room in it.
pub(crate) struct Delivery {
    url: Arc<str>,
    events: mpsc::Sender<CarrierEvent>,
    recent: Arc<Mutex<Recent>>,
    status: Arc<Mutex<RelayStatus>>,
    pending: VecDeque<CarrierEvent>,
}

impl Delivery {
    pub(crate) fn new(
        url: Arc<str>,
        events: mpsc::Sender<CarrierEvent>,
        recent: Arc<Mutex<Recent>>,
        status: Arc<Mutex<RelayStatus>>,
    ) -> Self {
        Self {
            url,
            events,
            recent,
            status,
            pending: VecDeque::new(),
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn status(&self) -> MutexGuard<'_, RelayStatus> {
        lock(&self.status)
    }

    pub(crate) fn refused(&self) {
        self.status().refused_in += 1;
    }

    pub(crate) fn state(&mut self, state: RelayState) {
        {
            let mut status = self.status();
            if let RelayState::Disconnected { reason: text, .. }
            | RelayState::SubscriptionRefused { message: text, .. } = &state
            {
                status.last_error = Some(shorten(text));
            }
            if !matches!(
                state,
                RelayState::SubscriptionRefused { .. } | RelayState::HistoryGap { .. }
            ) {
                status.state = state.clone();
            }
        }
        self.pending.push_back(CarrierEvent::Relay {
            url: self.url.clone(),
            state,
        });
    }

    pub(crate) fn published(&mut self, event_id: nostr::EventId, outcome: Outcome) {
        match &outcome {
            Outcome::Accepted | Outcome::Duplicate => self.status().refuses = None,
            Outcome::Final(why) | Outcome::Retry(why) => {
                self.status().refuses = Some(why.clone());
            }
            Outcome::Unknown(_) => {}
        }
        self.pending.push_back(CarrierEvent::Published {
            event_id,
            relay: self.url.clone(),
            outcome,
        });
    }

    /// True: new, and queued.
    pub(crate) fn arrived(&mut self, event: Event) -> bool {
        let known = {
            let recent = lock(&self.recent);
            recent.seen.contains(&recent.key(&event))
        };
        if known {
            self.status().duplicates_in += 1;
            return false;
        }
        self.pending.push_back(CarrierEvent::Arrived {
            relay: self.url.clone(),
            event: Box::new(event),
        });
        true
    }

    /// Moves what fits into the channel. `false`: nobody reads it any more.
    pub(crate) fn deliver_ready(&mut self) -> bool {
        while !self.pending.is_empty() {
            match self.events.try_reserve() {
                Ok(permit) => send_next(permit, &mut self.pending, &self.recent, &self.status),
                Err(mpsc::error::TrySendError::Full(())) => return true,
                Err(mpsc::error::TrySendError::Closed(())) => return false,
            }
        }
        true
    }

    /// Waits for room, then moves one event. Cancel-safe. `false`: nobody reads the channel any more.
    pub(crate) async fn deliver_one(&mut self) -> bool {
        match self.events.reserve().await {
            Ok(permit) => {
                send_next(permit, &mut self.pending, &self.recent, &self.status);
                true
            }
            Err(_) => false,
        }
    }
}

/// Remembers and sends under one lock: another relay that filters its copy may then say `CaughtUp` knowing that this one is
/// in the channel already. Remembered only here, so an event that dies with its relay's task is not taken for delivered.
fn send_next(
    permit: mpsc::Permit<'_, CarrierEvent>,
    pending: &mut VecDeque<CarrierEvent>,
    recent: &Mutex<Recent>,
    status: &Mutex<RelayStatus>,
) {
    let Some(next) = pending.pop_front() else {
        return;
    };
    if let CarrierEvent::Arrived { event, .. } = &next {
        let mut recent = lock(recent);
        let key = recent.key(event);
        if recent.seen.contains(&key) {
            lock(status).duplicates_in += 1;
            return;
        }
        recent.insert(key);
        lock(status).events_in += 1;
        permit.send(next);
    } else {
        permit.send(next);
    }
}
