//! Where connections meet: one lock over the stored events and the live subscriptions, so that a REQ's answer and the events after it
//! are exactly the events, none missing and none twice. It knows no socket.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;

use super::journal::Entry;
use super::memory::{Admission, Memory};
use super::outbox::{Outbox, Outgoing};
use super::record::{Filter, Keeping, Record, keeping};
use super::subscriptions::{Readers, Subscription, Subscriptions, visible};
use super::{RelayConfig, RelayStats};

/// What the lock guards.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) memory: Memory,
    pub(crate) subscriptions: Subscriptions,
}

/// The state, shared with the journal's thread.
pub(crate) type SharedState = Arc<Mutex<State>>;

/// Locks the state. A panic elsewhere has not left it half changed in a way that matters more than serving on.
pub(crate) fn lock(state: &SharedState) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counters that no lock guards.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: AtomicUsize,
    pub(crate) events_accepted: AtomicU64,
    pub(crate) events_refused: AtomicU64,
    pub(crate) events_delivered: AtomicU64,
    pub(crate) slow_readers_cut: AtomicU64,
}

/// The running relay's shared part.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) config: RelayConfig,
    /// The URL by which this relay is known: `public_url`, else where it listens.
    pub(crate) url: String,
    pub(crate) state: SharedState,
    pub(crate) counters: Counters,
    /// `None` without a data file.
    pub(crate) journal: Option<mpsc::Sender<Entry>>,
}

impl Hub {
    /// Takes a verified event, delivers it and answers OK through `outbox`: at once, or when it is on disk.
    pub(crate) async fn publish(&self, record: Record, outbox: &Arc<Outbox>) {
        // Reserved before the lock is taken, and used under it: the journal's order is the memory's order.
        let permit = match &self.journal {
            Some(journal) => match journal.reserve().await {
                Ok(permit) => Some(permit),
                Err(_) => return self.answer(&record, outbox, Err("error: the relay is stopping")),
            },
            None => None,
        };
        let record = Arc::new(record);
        let mut state = lock(&self.state);
        let verdict = if keeping(record.kind) == Keeping::Ephemeral {
            Ok("")
        } else {
            verdict(state.memory.insert(&record, now_s()))
        };
        if verdict == Ok("") {
            let delivered = state.subscriptions.deliver(&record);
            self.counters
                .events_delivered
                .fetch_add(delivered, Ordering::Relaxed);
        }
        match (verdict, permit) {
            (Ok(note), Some(permit)) if keeping(record.kind) != Keeping::Ephemeral => {
                self.counters
                    .events_accepted
                    .fetch_add(1, Ordering::Relaxed);
                let held = state.memory.contains(&record.id).then_some(record.id);
                let id = record.id;
                permit.send(Entry {
                    record: note.is_empty().then_some(record),
                    held,
                    id,
                    note,
                    outbox: Arc::clone(outbox),
                });
            }
            (verdict, _) => self.answer(&record, outbox, verdict),
        }
    }

    fn answer(&self, record: &Record, outbox: &Outbox, verdict: Result<&str, &str>) {
        let (accepted, note) = match verdict {
            Ok(note) => (true, note),
            Err(note) => (false, note),
        };
        let counter = if accepted {
            &self.counters.events_accepted
        } else {
            &self.counters.events_refused
        };
        counter.fetch_add(1, Ordering::Relaxed);
        outbox.push(Outgoing::Text(ok_message(
            &hex::encode(record.id),
            accepted,
            note,
        )));
    }

    /// Queues the stored events and EOSE, and subscribes to what comes after, in one step. The key ends the subscription.
    pub(crate) fn subscribe(&self, subscription: Subscription, eose: String) -> u64 {
        let mut state = lock(&self.state);
        let records = self.query(&mut state, &subscription.filters, &subscription.readers);
        subscription.outbox.push(Outgoing::Answer {
            prefix: Arc::clone(&subscription.prefix),
            records,
            eose,
        });
        state.subscriptions.add(subscription)
    }

    fn query(&self, state: &mut State, filters: &[Filter], readers: &Readers) -> Vec<Arc<Record>> {
        let mut records = state
            .memory
            .query(filters, self.config.limits.max_query_events, now_s());
        records.retain(|record| visible(record, readers));
        records
    }

    /// Ends subscriptions.
    pub(crate) fn unsubscribe(&self, keys: impl IntoIterator<Item = u64>) {
        let mut state = lock(&self.state);
        for key in keys {
            state.subscriptions.remove(key);
        }
    }

    /// How many stored events match (NIP-45).
    pub(crate) fn count(&self, filters: &[Filter]) -> usize {
        lock(&self.state).memory.count(filters, now_s())
    }

    pub(crate) fn stats(&self) -> RelayStats {
        let (subscriptions, events_stored, stored_bytes) = {
            let state = lock(&self.state);
            (
                state.subscriptions.len(),
                state.memory.len(),
                state.memory.bytes(),
            )
        };
        RelayStats {
            connections: self.counters.connections.load(Ordering::Relaxed),
            subscriptions,
            events_stored,
            stored_bytes,
            events_accepted: self.counters.events_accepted.load(Ordering::Relaxed),
            events_refused: self.counters.events_refused.load(Ordering::Relaxed),
            events_delivered: self.counters.events_delivered.load(Ordering::Relaxed),
            slow_readers_cut: self.counters.slow_readers_cut.load(Ordering::Relaxed),
        }
    }
}

/// The OK's note. `error:` for a full store, since that passes: a sender is meant to try again.
fn verdict(admission: Admission) -> Result<&'static str, &'static str> {
    match admission {
        Admission::Kept => Ok(""),
        Admission::Duplicate => Ok("duplicate: already have this event"),
        Admission::Superseded => {
            Ok("duplicate: a newer version of this replaceable event is stored")
        }
        Admission::Deleted => Err("blocked: deleted by its owner"),
        Admission::Expired => Err("invalid: the event has expired"),
        Admission::Full => Err("error: store full; send it again later or to another relay"),
    }
}

/// An OK message (NIP-01); `id` is hex.
pub(crate) fn ok_message(id: &str, accepted: bool, note: &str) -> String {
    format!(
        r#"["OK","{id}",{accepted},{}]"#,
        serde_json::Value::from(note)
    )
}

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
