//! Which relays are connected and how far each was read: when "every inbox was read to its end" is so. No relay, by silence or by
//! never coming to an end, keeps a node from going on: it is waited for within bounds. It must not know what was read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::step::Input;

/// A relay that brings nothing for this long is not waited for.
const SILENCE: Duration = Duration::from_secs(20);
/// Nor is one that brings something again and again, but never its end, for this long.
const PATIENCE: Duration = Duration::from_secs(300);

/// One connected relay.
#[derive(Debug)]
struct Reading {
    /// The drain up to which it was read.
    until: Option<u64>,
    /// Since when its end is waited for.
    since: Instant,
    /// When it last brought something.
    heard: Instant,
}

impl Reading {
    fn begun(now: Instant) -> Self {
        Self {
            until: None,
            since: now,
            heard: now,
        }
    }

    fn is_read(&self, generation: u64) -> bool {
        self.until.is_some_and(|at| at >= generation)
    }

    fn is_given_up(&self, now: Instant) -> bool {
        now.duration_since(self.heard) >= SILENCE || now.duration_since(self.since) >= PATIENCE
    }
}

/// What the carrier's events say of the relays.
#[derive(Debug, Default)]
pub(super) struct Reach {
    relays: BTreeMap<Arc<str>, Reading>,
    generation: u64,
    /// The loop waits for word that the inboxes were read.
    owed: bool,
    /// The loop was told to go on alone.
    alone: bool,
}

impl Reach {
    /// Whether no relay is connected.
    pub(super) fn is_empty(&self) -> bool {
        self.relays.is_empty()
    }

    /// A relay is there: what it holds has to be read first.
    pub(super) fn connected(&mut self, url: Arc<str>, now: Instant) -> Option<Input> {
        let first = self.relays.is_empty();
        self.relays.insert(url, Reading::begun(now));
        self.owed |= first;
        first.then_some(Input::Draining)
    }

    /// It brought something.
    pub(super) fn heard(&mut self, url: &str, now: Instant) {
        if let Some(reading) = self.relays.get_mut(url) {
            reading.heard = now;
        }
    }

    /// It was read to its end.
    pub(super) fn caught_up(&mut self, url: Arc<str>, generation: u64, now: Instant) {
        let reading = self
            .relays
            .entry(url)
            .or_insert_with(|| Reading::begun(now));
        reading.until = Some(generation);
        reading.heard = now;
        self.owed = true;
    }

    /// It is gone. With the last one the node is alone; without one that was still being read the others may be enough.
    pub(super) fn disconnected(&mut self, url: &str) -> Option<Input> {
        let was = self.relays.remove(url).is_some();
        (was && self.relays.is_empty()).then(|| {
            self.alone = true;
            Input::CaughtUp { online: false }
        })
    }

    /// To be asked after every event and every second: whether the loop may go on. `generation` is the newest drain.
    pub(super) fn judge(&mut self, generation: u64, now: Instant) -> Option<Input> {
        if generation > self.generation {
            self.generation = generation;
            self.owed = true;
            let behind = self.relays.values_mut().filter(|r| !r.is_read(generation));
            behind.for_each(|r| (r.since, r.heard) = (now, now));
        }
        let enough = |r: &Reading| r.is_read(generation) || r.is_given_up(now);
        if !self.owed || self.relays.is_empty() || !self.relays.values().all(enough) {
            return None;
        }
        let online = self.relays.values().any(|r| r.is_read(generation));
        if online {
            (self.owed, self.alone) = (false, false);
        } else if std::mem::replace(&mut self.alone, true) {
            return None;
        }
        Some(Input::CaughtUp { online })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONLINE: Option<Input> = Some(Input::CaughtUp { online: true });
    const ALONE: Option<Input> = Some(Input::CaughtUp { online: false });

    fn url(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn the_loop_goes_on_once_every_relay_was_read() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        assert_eq!(reach.judge(0, now), None);
        assert_eq!(reach.connected(url("a"), now), Some(Input::Draining));
        assert_eq!(reach.connected(url("b"), now), None);
        reach.caught_up(url("a"), 0, now);
        assert_eq!(reach.judge(0, now), None);
        reach.caught_up(url("b"), 0, now);
        assert_eq!(reach.judge(0, now), ONLINE);
        assert_eq!(reach.judge(0, now), None, "said once");
        // A drain asks for all of them again.
        assert_eq!(reach.judge(1, now), None);
        reach.caught_up(url("a"), 1, now);
        assert_eq!(reach.judge(1, now), None);
        reach.caught_up(url("b"), 1, now);
        assert_eq!(reach.judge(1, now), ONLINE);
    }

    #[test]
    fn a_relay_that_leaves_or_says_nothing_is_not_waited_for() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        reach.connected(url("a"), now);
        reach.connected(url("liar"), now);
        reach.caught_up(url("a"), 0, now);
        assert_eq!(reach.judge(0, now), None);
        assert_eq!(reach.disconnected("liar"), None);
        assert_eq!(reach.judge(0, now), ONLINE);

        reach.connected(url("liar"), now);
        assert_eq!(reach.judge(1, now), None);
        reach.caught_up(url("a"), 1, now);
        assert_eq!(reach.judge(1, now + SILENCE / 2), None);
        assert_eq!(reach.judge(1, now + SILENCE), ONLINE);
        assert_eq!(reach.disconnected("liar"), None);
        assert_eq!(reach.disconnected("a"), ALONE);
    }

    #[test]
    fn a_relay_that_never_ends_is_waited_for_within_bounds() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        reach.connected(url("a"), now);
        reach.connected(url("endless"), now);
        reach.caught_up(url("a"), 0, now);
        let mut at = now;
        while at + SILENCE / 2 < now + PATIENCE {
            at += SILENCE / 2;
            reach.heard("endless", at);
            assert_eq!(reach.judge(0, at), None);
        }
        assert_eq!(reach.judge(0, now + PATIENCE), ONLINE);
    }

    #[test]
    fn relays_that_are_all_silent_leave_the_node_alone_until_one_is_read() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        reach.connected(url("a"), now);
        let later = now + SILENCE;
        assert_eq!(reach.judge(0, later), ALONE);
        assert_eq!(reach.judge(0, later), None, "said once");
        reach.caught_up(url("a"), 0, later);
        assert_eq!(reach.judge(0, later), ONLINE);
    }
}
