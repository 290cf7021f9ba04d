//! What waits to be written to one connection, bounded in bytes. A reader that falls behind is disconnected, never skipped: an event
//! lost silently is the one fault a client cannot see. It knows no socket and no filter.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::record::Record;

/// What one entry costs beside the text it holds.
const ENTRY_BYTES: usize = 64;

/// One thing to write.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// A complete message.
    Text(String),
    /// A new event for a live subscription, whose `["EVENT",<id>,` is `prefix`.
    Live {
        prefix: Arc<str>,
        record: Arc<Record>,
    },
    /// The stored events of a REQ, shared with the memory, then EOSE. Written one at a time, so it costs little while it waits.
    Answer {
        prefix: Arc<str>,
        records: Vec<Arc<Record>>,
        eose: String,
    },
    /// A WebSocket ping.
    Ping,
}

impl Outgoing {
    pub(crate) fn cost_bytes(&self) -> usize {
        ENTRY_BYTES
            + match self {
                Self::Text(text) => text.len(),
                Self::Live { record, .. } => record.json.len(),
                Self::Answer { records, eose, .. } => {
                    records.len() * size_of::<Arc<Record>>() + eose.len()
                }
                Self::Ping => 0,
            }
    }
}

/// The sending side, shared by the connection itself, every publisher and the journal.
#[derive(Debug)]
pub(crate) struct Outbox {
    sender: mpsc::UnboundedSender<Outgoing>,
    max_waiting_bytes: usize,
    waiting_bytes: AtomicUsize,
    overflowed: AtomicBool,
    overflow: Notify,
    written: Notify,
}

impl Outbox {
    pub(crate) fn new(max_waiting_bytes: usize) -> (Arc<Self>, mpsc::UnboundedReceiver<Outgoing>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let outbox = Self {
            sender,
            max_waiting_bytes,
            waiting_bytes: AtomicUsize::new(0),
            overflowed: AtomicBool::new(false),
            overflow: Notify::new(),
            written: Notify::new(),
        };
        (Arc::new(outbox), receiver)
    }

    /// Queues something to write. When it does not fit, the connection is marked and [`Outbox::overflowed`] ends it.
    pub(crate) fn push(&self, outgoing: Outgoing) -> bool {
        if self.overflowed.load(Ordering::Acquire) {
            return false;
        }
        let cost = outgoing.cost_bytes();
        if self
            .waiting_bytes
            .fetch_add(cost, Ordering::AcqRel)
            .saturating_add(cost)
            > self.max_waiting_bytes
        {
            self.overflowed.store(true, Ordering::Release);
            self.overflow.notify_one();
            return false;
        }
        self.sender.send(outgoing).is_ok()
    }

    /// The writer reports what has gone.
    pub(crate) fn wrote(&self, cost_bytes: usize) {
        self.waiting_bytes.fetch_sub(cost_bytes, Ordering::AcqRel);
        self.written.notify_one();
    }

    /// Waits until less than half the limit waits: who sends commands faster than it reads the answers is slowed down, not cut off.
    /// False if that took longer than `patience`.
    pub(crate) async fn room(&self, patience: Duration) -> bool {
        let has_room = || self.waiting_bytes.load(Ordering::Acquire) <= self.max_waiting_bytes / 2;
        if has_room() {
            return true;
        }
        let wait = async {
            while !has_room() {
                self.written.notified().await;
            }
        };
        tokio::time::timeout(patience, wait).await.is_ok()
    }

    /// Resolves once something did not fit.
    pub(crate) async fn overflowed(&self) {
        while !self.overflowed.load(Ordering::Acquire) {
            self.overflow.notified().await;
        }
    }
}
