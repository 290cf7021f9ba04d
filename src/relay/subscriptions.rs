//! Who waits for which events, over all connections, indexed by `#p` (else by kind) so that a new event meets only the subscriptions
//! that may want it. It knows no socket.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::outbox::{Outbox, Outgoing};
use super::record::{Filter, Record};

const KIND_GIFT_WRAP: u16 = 1059;

/// The keys (hex) a connection has proven, when the relay guards inboxes; `None` when it does not.
pub(crate) type Readers = Option<Arc<BTreeSet<String>>>;

/// Whether a connection may see an event at all.
pub(crate) fn visible(record: &Record, readers: &Readers) -> bool {
    match readers {
        Some(keys) if record.kind == KIND_GIFT_WRAP => {
            record.tag_values(b'p').any(|p| keys.contains(p))
        }
        _ => true,
    }
}

/// One live subscription.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) filters: Vec<Filter>,
    pub(crate) readers: Readers,
    /// `["EVENT",<subscription id>,`
    pub(crate) prefix: Arc<str>,
}

/// All live subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    next: u64,
    by_key: HashMap<u64, Subscription>,
    by_p: HashMap<String, BTreeSet<u64>>,
    by_kind: HashMap<u16, BTreeSet<u64>>,
    rest: BTreeSet<u64>,
}

impl Subscriptions {
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Adds a subscription; the key removes it.
    pub(crate) fn add(&mut self, subscription: Subscription) -> u64 {
        self.next += 1;
        let key = self.next;
        for filter in &subscription.filters {
            if let Some(values) = filter.tag(b'p') {
                for value in values {
                    self.by_p.entry(value.clone()).or_default().insert(key);
                }
            } else if let Some(kinds) = &filter.kinds {
                for kind in kinds {
                    self.by_kind.entry(*kind).or_default().insert(key);
                }
            } else {
                self.rest.insert(key);
            }
        }
        self.by_key.insert(key, subscription);
        key
    }

    pub(crate) fn remove(&mut self, key: u64) {
        let Some(subscription) = self.by_key.remove(&key) else {
            return;
        };
        for filter in &subscription.filters {
            for value in filter.tag(b'p').unwrap_or_default() {
                if self
                    .by_p
                    .get_mut(value)
                    .is_some_and(|keys| keys.remove(&key) && keys.is_empty())
                {
                    self.by_p.remove(value);
                }
            }
            for kind in filter.kinds.as_deref().unwrap_or_default() {
                if self
                    .by_kind
                    .get_mut(kind)
                    .is_some_and(|keys| keys.remove(&key) && keys.is_empty())
                {
                    self.by_kind.remove(kind);
                }
            }
        }
        self.rest.remove(&key);
    }

    /// Queues a new event for every subscription that wants it; returns for how many.
    pub(crate) fn deliver(&self, record: &Arc<Record>) -> u64 {
        let mut candidates: BTreeSet<u64> = self.rest.clone();
        for p in record.tag_values(b'p') {
            candidates.extend(self.by_p.get(p).into_iter().flatten());
        }
        candidates.extend(self.by_kind.get(&record.kind).into_iter().flatten());
        let mut delivered = 0;
        for subscription in candidates.iter().filter_map(|key| self.by_key.get(key)) {
            if visible(record, &subscription.readers)
                && subscription
                    .filters
                    .iter()
                    .any(|filter| filter.matches(record))
            {
                let live = Outgoing::Live {
                    prefix: Arc::clone(&subscription.prefix),
                    record: Arc::clone(record),
                };
                delivered += u64::from(subscription.outbox.push(live));
            }
        }
        delivered
    }
}
