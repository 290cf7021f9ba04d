//! What the loop does between two batches: acknowledgements that found no message to travel with, pruning, counting.

use std::time::{Duration, Instant};

use super::clock;
use super::core::Core;
use super::delivery::Tell;
use super::order::Order;
use super::rows::Parcel;
use crate::domain::step::{Addressee, Send};
use crate::wire::message::{Ack, Body};

/// Most acknowledged rumors in one message.
pub(super) const ACKS_MAX: usize = 64;

impl Core {
    pub(super) fn flush_acks(&mut self) {
        if self.acks_due.is_none_or(|due| Instant::now() < due) {
            return;
        }
        self.acks_due = None;
        let now = clock::now_ms();
        for (npub, rumors) in self.acks.drain() {
            let relays = self
                .node
                .peers()
                .get(&npub)
                .map(|p| p.relays.clone())
                .unwrap_or_default();
            for chunk in rumors.chunks(ACKS_MAX) {
                let body = Body::Ack(Ack {
                    rumors: chunk.to_vec(),
                });
                let send = Send {
                    to: Addressee::Peer(npub.clone()),
                    body,
                    ephemeral: true,
                    relays: relays.clone(),
                    expires_ms: now + 300_000,
                };
                let _ = self.outlets.delivery.send(Tell::Order(Order::Try(Parcel {
                    sends: vec![send],
                    created_s: now / 1000,
                })));
            }
        }
    }

    pub(super) fn prune(&mut self) {
        if Instant::now() < self.prune_at {
            return;
        }
        let (now, limits) = (clock::now_ms(), self.limits.clone());
        let more = match self.store.write(|txn| txn.prune(now, &limits, 500)) {
            Ok(pruned) => pruned.more,
            Err(error) => {
                tracing::warn!(code = error.code(), "pruning failed: {error}");
                false
            }
        };
        self.prune_at = Instant::now() + Duration::from_secs(if more { 1 } else { 60 });
    }

    pub(super) fn count(&self, code: &str) {
        if let Ok(mut counters) = self.outlets.counters.lock() {
            *counters.dropped.entry(code.to_owned()).or_default() += 1;
        }
    }
}
