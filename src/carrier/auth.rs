//! NIP-42 on one connection: every inbox answers with its own key. Knows no socket.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use nostr::{EventBuilder, EventId, JsonUtil, Keys, PublicKey, RelayUrl};
use tokio::time::Instant;

use super::types::InboxSpec;

/// A relay that challenges more often than this on one connection is ignored from then on.
const MAX_ROUNDS: u32 = 32;

pub(crate) struct Auth {
    relay: RelayUrl,
    challenge: Option<String>,
    keys: Vec<Keys>,
    accepted: HashSet<PublicKey>,
    waiting: HashMap<EventId, PublicKey>,
    deadline: Option<Instant>,
    timeout: Duration,
    rounds: u32,
}

impl Auth {
    pub(crate) fn new(relay: RelayUrl, timeout_ms: u64) -> Self {
        Self {
            relay,
            challenge: None,
            keys: Vec::new(),
            accepted: HashSet::new(),
            waiting: HashMap::new(),
            deadline: None,
            timeout: Duration::from_millis(timeout_ms),
            rounds: 0,
        }
    }

    /// Frames that introduce keys not yet known to the relay, if it has asked.
    pub(crate) fn set_inboxes(&mut self, inboxes: &[InboxSpec], now: Instant) -> Vec<String> {
        let known: HashSet<PublicKey> = self.keys.iter().map(|keys| keys.public_key()).collect();
        let mut seen = HashSet::new();
        self.keys = inboxes
            .iter()
            .filter_map(|inbox| inbox.auth.clone())
            .filter(|keys| seen.insert(keys.public_key()))
            .collect();
        let fresh: Vec<Keys> = self
            .keys
            .iter()
            .filter(|keys| !known.contains(&keys.public_key()))
            .cloned()
            .collect();
        self.sign(&fresh, now)
    }

    /// Answers a challenge with the keys that are not accepted yet; with all, if all were.
    pub(crate) fn challenged(&mut self, challenge: String, now: Instant) -> Vec<String> {
        self.rounds += 1;
        if self.rounds > MAX_ROUNDS || challenge.len() > 1_024 {
            return Vec::new();
        }
        self.challenge = Some(challenge);
        self.waiting.clear();
        let mut keys: Vec<Keys> = self
            .keys
            .iter()
            .filter(|keys| !self.accepted.contains(&keys.public_key()))
            .cloned()
            .collect();
        if keys.is_empty() {
            keys.clone_from(&self.keys);
        }
        self.sign(&keys, now)
    }

    fn sign(&mut self, keys: &[Keys], now: Instant) -> Vec<String> {
        let Some(challenge) = self.challenge.clone() else {
            return Vec::new();
        };
        let mut frames = Vec::new();
        for keys in keys {
            // Signing fails on a broken random source only; the relay then refuses us, and says so.
            if let Ok(event) =
                EventBuilder::auth(challenge.clone(), self.relay.clone()).sign_with_keys(keys)
            {
                self.waiting.insert(event.id, event.pubkey);
                frames.push(format!("[\"AUTH\",{}]", event.as_json()));
            }
        }
        if !frames.is_empty() {
            self.deadline = Some(now + self.timeout);
        }
        frames
    }

    /// `Some(true)`: this OK was the last one that AUTH waited for. `None`: not an answer to an AUTH.
    pub(crate) fn answered(&mut self, id: &EventId, accepted: bool) -> Option<bool> {
        let pubkey = self.waiting.remove(id)?;
        if accepted {
            self.accepted.insert(pubkey);
        }
        let done = self.waiting.is_empty();
        if done {
            self.deadline = None;
        }
        Some(done)
    }

    /// True once when the relay left AUTH unanswered: go on as if it were done.
    pub(crate) fn timed_out(&mut self, now: Instant) -> bool {
        let late = self.deadline.is_some_and(|at| at <= now);
        if late {
            self.waiting.clear();
            self.deadline = None;
        }
        late
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Nothing is under way and at least one key was accepted: an `auth-required` now came before or despite that.
    pub(crate) fn settled(&self) -> bool {
        self.waiting.is_empty() && !self.accepted.is_empty()
    }
}
