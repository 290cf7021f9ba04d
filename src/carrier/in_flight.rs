//! Publications sent and not answered: matched by id, timed out in order, repeated once after AUTH.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use nostr::EventId;
use tokio::time::Instant;

use super::types::{Outcome, Outgoing, shorten};

struct Entry {
    outgoing: Outgoing,
    sent: Instant,
    /// Tells this sending apart from an earlier one in the queue of timeouts.
    serial: u64,
    auth: AuthStep,
}

#[derive(PartialEq, Eq)]
enum AuthStep {
    NotAsked,
    Waiting,
    Repeated,
}

/// What to do after an OK.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    /// Report it. The duration is the round trip.
    Done(Outcome, Duration),
    /// Kept; [`InFlight::after_auth`] gives it back.
    AwaitAuth,
    /// Not ours, or answered before.
    Stranger,
}

pub(crate) struct InFlight {
    entries: HashMap<EventId, Entry>,
    timeouts: VecDeque<(Instant, EventId, u64)>,
    bytes: usize,
    serial: u64,
    ok_timeout: Duration,
}

impl InFlight {
    pub(crate) fn new(ok_timeout_ms: u64) -> Self {
        Self {
            entries: HashMap::new(),
            timeouts: VecDeque::new(),
            bytes: 0,
            serial: 0,
            ok_timeout: Duration::from_millis(ok_timeout_ms),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// `false`: the same event is in flight already, so its answer will do.
    pub(crate) fn insert(&mut self, outgoing: Outgoing, now: Instant) -> bool {
        let id = outgoing.event_id;
        if self.entries.contains_key(&id) {
            return false;
        }
        self.bytes += outgoing.frame.len();
        self.serial += 1;
        self.timeouts
            .push_back((now + self.ok_timeout, id, self.serial));
        self.entries.insert(
            id,
            Entry {
                outgoing,
                sent: now,
                serial: self.serial,
                auth: AuthStep::NotAsked,
            },
        );
        true
    }

    /// `can_auth`: an AUTH is under way or possible, so `auth-required` deserves one repetition.
    pub(crate) fn answer(
        &mut self,
        id: EventId,
        accepted: bool,
        message: &str,
        can_auth: bool,
        now: Instant,
    ) -> Answer {
        let Some(entry) = self.entries.get_mut(&id) else {
            return Answer::Stranger;
        };
        if !accepted
            && message.starts_with("auth-required:")
            && can_auth
            && entry.auth == AuthStep::NotAsked
        {
            entry.auth = AuthStep::Waiting;
            return Answer::AwaitAuth;
        }
        let outcome = classify(accepted, message, entry.outgoing.ephemeral);
        let round_trip = now.duration_since(entry.sent);
        self.remove(&id);
        Answer::Done(outcome, round_trip)
    }

    /// What to send again now that the relay knows us. The time to answer starts anew.
    pub(crate) fn after_auth(&mut self, now: Instant) -> Vec<Outgoing> {
        let mut again = Vec::new();
        for (id, entry) in self
            .entries
            .iter_mut()
            .filter(|(_, entry)| entry.auth == AuthStep::Waiting)
        {
            entry.auth = AuthStep::Repeated;
            entry.sent = now;
            self.serial += 1;
            entry.serial = self.serial;
            self.timeouts
                .push_back((now + self.ok_timeout, *id, self.serial));
            again.push(entry.outgoing.clone());
        }
        again
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timeouts.front().map(|(at, ..)| *at)
    }

    pub(crate) fn expired(&mut self, now: Instant) -> Vec<EventId> {
        let mut expired = Vec::new();
        while let Some(&(at, id, serial)) = self.timeouts.front() {
            let live = self
                .entries
                .get(&id)
                .is_some_and(|entry| entry.serial == serial);
            if live && at > now {
                break;
            }
            self.timeouts.pop_front();
            if live {
                self.remove(&id);
                expired.push(id);
            }
        }
        expired
    }

    pub(crate) fn drain(&mut self) -> Vec<EventId> {
        self.bytes = 0;
        self.timeouts.clear();
        self.entries.drain().map(|(id, _)| id).collect()
    }

    fn remove(&mut self, id: &EventId) {
        if let Some(entry) = self.entries.remove(id) {
            self.bytes -= entry.outgoing.frame.len();
        }
        // Answered entries leave the queue from its front, so that it stays as short as what is in flight.
        while self
            .timeouts
            .front()
            .is_some_and(|(_, id, serial)| self.entries.get(id).is_none_or(|e| e.serial != *serial))
        {
            self.timeouts.pop_front();
        }
    }
}

/// NIP-01's prefixes, by what the sender should do next.
fn classify(accepted: bool, message: &str, ephemeral: bool) -> Outcome {
    let prefix = message.split_once(':').map_or("", |(prefix, _)| prefix);
    match (accepted, prefix) {
        (_, "duplicate") => Outcome::Duplicate,
        (true, _) => Outcome::Accepted,
        (false, "mute") if ephemeral => Outcome::Accepted,
        (false, "blocked" | "invalid" | "pow" | "restricted" | "unsupported") => {
            Outcome::Final(shorten(message))
        }
        (false, _) => Outcome::Retry(shorten(message)),
    }
}
