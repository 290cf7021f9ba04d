//! Wraps that were read lately, so that a copy costs no decryption. Knows ids and nothing of what is in them.

use std::collections::{HashSet, VecDeque};

use nostr::EventId;

/// Wraps remembered to spare the work of opening a copy.
const RECENT_WRAPS: usize = 65_536;

/// Copies of a wrap, dropped before they cost a decryption.
#[derive(Default)]
pub(super) struct Recent {
    ids: HashSet<EventId>,
    order: VecDeque<EventId>,
}

impl Recent {
    pub(super) fn insert(&mut self, id: EventId) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > RECENT_WRAPS
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }

    /// Its place in the order stays: at worst an id that comes again is forgotten early.
    pub(super) fn remove(&mut self, id: &EventId) {
        self.ids.remove(id);
    }
}
