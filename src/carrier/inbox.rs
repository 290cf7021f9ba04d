//! What to ask a relay so that every inbox is read completely, and when that is so. A plain state machine: time and the
//! relay's answers go in, frames and reports come out. Knows no socket.
//!
//! Two sorts of requests. *Live* ones (few, many keys each) stay open; for stored wraps they ask for one stored event only,
//! since a `limit` never limits what comes later. *History* ones read page by page and are closed. So a new reply key
//! costs one changed live request and its own short history, never the other inboxes' history again. Live requests are
//! sent first; nothing can fall between the two.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use nostr::{Filter, Kind, PublicKey, Timestamp};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::frame;
use super::types::{CarrierConfig, InboxSpec, shorten};

/// NIP-59's ephemeral gift wrap.
pub(crate) const EPHEMERAL_WRAP: Kind = Kind::Custom(21_059);

/// A relay whose pages are smaller than this is not suspected of hiding the rest of a second.
const SUSPECT_PAGE_EVENTS: usize = 100;

/// Live requests when a relay lets only one key be read per request.
const MAX_NARROW_REQS: usize = 100;

/// What the session should do.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    Send(String),
    Refused { message: String, retry: Duration },
    Gap { pubkey: PublicKey, at_s: u64 },
    CaughtUp,
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Stored,
    Ephemeral,
}

/// Keys that share a live request.
struct Group {
    sort: Sort,
    keys: Vec<PublicKey>,
    sub: Option<u64>,
}

/// A stretch of history still to read, newest first.
#[derive(Debug, Clone)]
struct Job {
    keys: Vec<PublicKey>,
    since_s: Option<u64>,
    until_s: Option<u64>,
    pages: u32,
}

enum Purpose {
    Live(usize),
    History(Job),
}

enum Phase {
    Opening {
        deadline: Instant,
    },
    Live,
    Closed {
        retry_at: Instant,
        awaits_auth: bool,
    },
}

struct Sub {
    purpose: Purpose,
    phase: Phase,
    backoff: Backoff,
    refusals: u32,
    page_events: usize,
    oldest_s: u64,
}

pub(crate) struct Inboxes {
    config: Arc<CarrierConfig>,
    specs: Vec<InboxSpec>,
    wanted: HashSet<String>,
    groups: Vec<Group>,
    subs: BTreeMap<u64, Sub>,
    queue: VecDeque<Job>,
    actions: Vec<Action>,
    next_sub: u64,
    keys_per_filter: usize,
    generation: u64,
    reported: bool,
    history_stale: bool,
    last_event: Instant,
    watchdog: Duration,
    watchdog_ran: bool,
}

impl Inboxes {
    pub(crate) fn new(config: Arc<CarrierConfig>, now: Instant) -> Self {
        Self {
            keys_per_filter: config.pubkeys_per_filter.max(1),
            watchdog: Duration::from_millis(config.watchdog_ms),
            config,
            specs: Vec::new(),
            wanted: HashSet::new(),
            groups: Vec::new(),
            subs: BTreeMap::new(),
            queue: VecDeque::new(),
            actions: Vec::new(),
            next_sub: 0,
            generation: 0,
            reported: false,
            history_stale: false,
            last_event: now,
            watchdog_ran: false,
        }
    }

    pub(crate) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether an event's `p` value is one of ours: a relay may push anything, and the rest is not worth verifying.
    pub(crate) fn wants(&self, p: &str) -> bool {
        self.wanted.contains(p)
    }

    /// Makes the live requests fit the set; reads the history of what is new, or of everything at a new generation.
    pub(crate) fn update(&mut self, specs: &[InboxSpec], generation: u64, now: Instant) {
        self.specs = specs.to_vec();
        self.wanted = specs.iter().map(|spec| spec.pubkey.to_hex()).collect();
        let fresh = self.fit(Sort::Stored, now);
        self.fit(Sort::Ephemeral, now);
        if generation != self.generation {
            self.generation = generation;
            self.read_all_again(now);
        } else if !fresh.is_empty() {
            self.queue_history(&fresh);
        }
        self.settle(now);
    }

    /// Adds and removes keys of one sort; returns those added.
    fn fit(&mut self, sort: Sort, now: Instant) -> Vec<PublicKey> {
        let mut missing: Vec<PublicKey> = Vec::new();
        let mut target: HashSet<PublicKey> = HashSet::new();
        for spec in &self.specs {
            let asked = if sort == Sort::Stored {
                spec.stored
            } else {
                spec.ephemeral
            };
            if asked && target.insert(spec.pubkey) {
                missing.push(spec.pubkey);
            }
        }
        let mut changed = HashSet::new();
        for (at, group) in self
            .groups
            .iter_mut()
            .enumerate()
            .filter(|(_, group)| group.sort == sort)
        {
            let before = group.keys.len();
            group.keys.retain(|key| target.remove(key));
            if group.keys.len() != before {
                changed.insert(at);
            }
        }
        missing.retain(|key| target.contains(key));
        let most_groups = if self.keys_per_filter == 1 {
            MAX_NARROW_REQS
        } else {
            (self.config.max_live_reqs / 2).max(1)
        };
        for (placed, key) in missing.iter().enumerate() {
            let room = self
                .groups
                .iter()
                .position(|group| group.sort == sort && group.keys.len() < self.keys_per_filter);
            let at = match room {
                Some(at) => at,
                None if self
                    .groups
                    .iter()
                    .filter(|group| group.sort == sort)
                    .count()
                    < most_groups =>
                {
                    self.groups.push(Group {
                        sort,
                        keys: Vec::new(),
                        sub: None,
                    });
                    self.groups.len() - 1
                }
                None => {
                    let message = format!(
                        "{} inboxes find no subscription on this relay",
                        missing.len() - placed
                    );
                    self.actions.push(Action::Refused {
                        message,
                        retry: Duration::from_millis(self.config.backoff_cap_ms),
                    });
                    break;
                }
            };
            if let Some(group) = self.groups.get_mut(at) {
                group.keys.push(*key);
                changed.insert(at);
            }
        }
        for at in changed {
            self.open_live(at, now);
        }
        missing
    }

    /// Opens a group's live request under a new name, then closes the old one: no moment without one.
    fn open_live(&mut self, at: usize, now: Instant) {
        let Some(group) = self.groups.get(at) else {
            return;
        };
        let (old, empty) = (group.sub, group.keys.is_empty());
        let sub = (!empty).then(|| self.open(Purpose::Live(at), now));
        if let Some(group) = self.groups.get_mut(at) {
            group.sub = sub;
        }
        if let Some(old) = old {
            self.close(old);
        }
    }

    fn open(&mut self, purpose: Purpose, now: Instant) -> u64 {
        let id = self.next_sub;
        self.next_sub += 1;
        let backoff = Backoff::new(self.config.backoff_first_ms, self.config.backoff_cap_ms);
        let phase = Phase::Live;
        self.subs.insert(
            id,
            Sub {
                purpose,
                phase,
                backoff,
                refusals: 0,
                page_events: 0,
                oldest_s: u64::MAX,
            },
        );
        self.send_req(id, now);
        id
    }

    fn send_req(&mut self, id: u64, now: Instant) {
        self.reported = false;
        let deadline = now + Duration::from_millis(self.config.eose_timeout_ms);
        let Some(sub) = self.subs.get_mut(&id) else {
            return;
        };
        sub.phase = Phase::Opening { deadline };
        sub.page_events = 0;
        sub.oldest_s = u64::MAX;
        let filter = match &sub.purpose {
            Purpose::History(job) => {
                let mut filter = Filter::new()
                    .kind(Kind::GiftWrap)
                    .pubkeys(job.keys.iter().copied());
                filter.since = job.since_s.map(Timestamp::from);
                filter.until = job.until_s.map(Timestamp::from);
                filter.limit(self.config.history_page_events)
            }
            Purpose::Live(at) => {
                let Some(group) = self.groups.get(*at) else {
                    return;
                };
                let filter = Filter::new().pubkeys(group.keys.iter().copied());
                match group.sort {
                    Sort::Stored => filter.kind(Kind::GiftWrap).limit(1),
                    Sort::Ephemeral => filter
                        .kind(EPHEMERAL_WRAP)
                        .since(Timestamp::now() - self.config.ephemeral_lookback_s),
                }
            }
        };
        self.actions
            .push(Action::Send(frame::req(&id.to_string(), &filter)));
    }

    fn close(&mut self, id: u64) {
        if let Some(sub) = self.subs.remove(&id)
            && !matches!(sub.phase, Phase::Closed { .. })
        {
            self.actions
                .push(Action::Send(frame::close(&id.to_string())));
        }
    }

    /// Queues the history of these keys, those with a similar last seen second together.
    fn queue_history(&mut self, keys: &[PublicKey]) {
        self.reported = false;
        let asked: HashSet<&PublicKey> = keys.iter().collect();
        let mut specs: Vec<&InboxSpec> = self
            .specs
            .iter()
            .filter(|spec| spec.stored && asked.contains(&spec.pubkey))
            .collect();
        specs.sort_by_key(|spec| spec.since_s);
        for chunk in specs.chunks(self.keys_per_filter) {
            let since_s = chunk.first().map(|spec| spec.since_s).filter(|s| *s > 0);
            self.queue.push_back(Job {
                keys: chunk.iter().map(|spec| spec.pubkey).collect(),
                since_s: since_s.map(|s| s.saturating_sub(self.config.stored_margin_s)),
                until_s: None,
                pages: 0,
            });
        }
    }

    fn restart_history(&mut self) {
        self.history_stale = false;
        self.queue.clear();
        let open: Vec<u64> = self
            .subs
            .iter()
            .filter(|(_, s)| matches!(s.purpose, Purpose::History(_)))
            .map(|(id, _)| *id)
            .collect();
        for id in open {
            self.close(id);
        }
        let keys: Vec<PublicKey> = self
            .groups
            .iter()
            .filter(|g| g.sort == Sort::Stored)
            .flat_map(|g| g.keys.clone())
            .collect();
        self.queue_history(&keys);
    }

    fn read_all_again(&mut self, now: Instant) {
        self.reported = false;
        for at in 0..self.groups.len() {
            self.open_live(at, now);
        }
        self.restart_history();
    }

    /// `fresh`: not an exact copy of one delivered before.
    pub(crate) fn on_event(&mut self, sub: &str, created_at_s: u64, fresh: bool, now: Instant) {
        self.last_event = now;
        if fresh {
            self.watchdog = Duration::from_millis(self.config.watchdog_ms);
            self.watchdog_ran = false;
        }
        let eose_timeout = Duration::from_millis(self.config.eose_timeout_ms);
        let Some(sub) = sub.parse().ok().and_then(|id: u64| self.subs.get_mut(&id)) else {
            return;
        };
        if let Phase::Opening { deadline } = &mut sub.phase {
            *deadline = now + eose_timeout;
            // What a relay sends beyond the question neither fills the page nor moves it.
            let asked = !matches!(&sub.purpose, Purpose::History(job) if job.until_s.is_some_and(|until| created_at_s > until));
            if asked {
                sub.page_events += 1;
                sub.oldest_s = sub.oldest_s.min(created_at_s);
            }
        }
    }

    pub(crate) fn on_eose(&mut self, sub: &str, finished: Option<bool>, now: Instant) {
        let Ok(id) = sub.parse::<u64>() else { return };
        let Some(sub) = self.subs.get_mut(&id) else {
            return;
        };
        if !matches!(sub.phase, Phase::Opening { .. }) {
            return;
        }
        sub.backoff.reset();
        sub.refusals = 0;
        sub.phase = Phase::Live;
        if let Purpose::History(job) = &sub.purpose {
            let (job, events, oldest_s) = (job.clone(), sub.page_events, sub.oldest_s);
            self.close(id);
            self.next_page(job, events, oldest_s, finished);
        }
        self.settle(now);
    }

    fn next_page(&mut self, mut job: Job, events: usize, oldest_s: u64, finished: Option<bool>) {
        let full = events >= self.config.full_page_events.max(1)
            || (finished == Some(false) && events > 0);
        if !full || finished == Some(true) || job.since_s.is_some_and(|since| oldest_s < since) {
            return;
        }
        job.pages += 1;
        if job.pages >= self.config.max_history_pages {
            self.report_gap(&job, oldest_s);
            return;
        }
        if job.until_s != Some(oldest_s) {
            // Inclusive: the page may have ended in the middle of a second.
            job.until_s = Some(oldest_s);
            self.queue.push_front(job);
            return;
        }
        // The whole page is one second. Fewer keys may show what it hides; one key alone can only step over it.
        if job.keys.len() > 1 {
            let rest = job.keys.split_off(job.keys.len() / 2);
            self.queue.push_front(Job {
                keys: rest,
                ..job.clone()
            });
            self.queue.push_front(job);
            return;
        }
        if events >= SUSPECT_PAGE_EVENTS {
            self.report_gap(&job, oldest_s);
        }
        if let Some(until_s) = oldest_s.checked_sub(1) {
            job.until_s = Some(until_s);
            self.queue.push_front(job);
        }
    }

    fn report_gap(&mut self, job: &Job, at_s: u64) {
        for pubkey in &job.keys {
            self.actions.push(Action::Gap {
                pubkey: *pubkey,
                at_s,
            });
        }
    }

    /// `can_auth`: an AUTH is under way or can be; `auth_settled`: it is over, so the request may just have been too early.
    pub(crate) fn on_closed(
        &mut self,
        sub: &str,
        message: &str,
        can_auth: bool,
        auth_settled: bool,
        now: Instant,
    ) {
        let Ok(id) = sub.parse::<u64>() else { return };
        let Some(sub) = self.subs.get_mut(&id) else {
            return;
        };
        sub.refusals += 1;
        let prefix = message.split_once(':').map_or("", |(prefix, _)| prefix);
        let awaits_auth = prefix == "auth-required" && can_auth && sub.refusals == 1;
        let retry = if awaits_auth && auth_settled {
            Duration::ZERO
        } else {
            sub.backoff.next_delay()
        };
        sub.phase = Phase::Closed {
            retry_at: now + retry,
            awaits_auth,
        };
        self.reported = false;
        let (keys, live) = match &sub.purpose {
            Purpose::Live(at) => (
                self.groups.get(*at).map_or(0, |group| group.keys.len()),
                true,
            ),
            Purpose::History(job) => (job.keys.len(), false),
        };
        let refusals = sub.refusals;
        self.history_stale |= live;
        if !awaits_auth {
            self.actions.push(Action::Refused {
                message: shorten(message),
                retry,
            });
        }
        let too_wide = prefix == "restricted"
            || (refusals >= 2 && matches!(prefix, "error" | "blocked" | "auth-required"));
        if too_wide && keys > 1 && self.keys_per_filter > 1 {
            self.narrow(now);
        }
        self.tick(now);
    }

    /// Some relays let a reader name one key per request only: start over that way.
    fn narrow(&mut self, now: Instant) {
        self.keys_per_filter = 1;
        let open: Vec<u64> = self.subs.keys().copied().collect();
        for id in open {
            self.close(id);
        }
        self.groups.clear();
        self.fit(Sort::Stored, now);
        self.fit(Sort::Ephemeral, now);
        self.restart_history();
    }

    pub(crate) fn on_auth_done(&mut self, now: Instant) {
        for sub in self.subs.values_mut() {
            if let Phase::Closed {
                retry_at,
                awaits_auth: true,
            } = &mut sub.phase
            {
                *retry_at = now;
            }
        }
        self.tick(now);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let subs = self.subs.values().filter_map(|sub| match sub.phase {
            Phase::Opening { deadline } => Some(deadline),
            Phase::Closed { retry_at, .. } => Some(retry_at),
            Phase::Live => None,
        });
        subs.chain((!self.subs.is_empty()).then(|| self.last_event + self.watchdog))
            .min()
    }

    pub(crate) fn tick(&mut self, now: Instant) {
        let mut due = Vec::new();
        for (id, sub) in &self.subs {
            match sub.phase {
                Phase::Opening { deadline } if deadline <= now => self.actions.push(Action::Dead),
                Phase::Closed { retry_at, .. } if retry_at <= now => due.push(*id),
                _ => {}
            }
        }
        for id in due {
            self.send_req(id, now);
        }
        if !self.subs.is_empty() && self.last_event + self.watchdog <= now {
            if self.watchdog_ran {
                self.watchdog =
                    (self.watchdog * 2).min(Duration::from_millis(self.config.watchdog_cap_ms));
            }
            self.watchdog_ran = true;
            self.last_event = now;
            self.read_all_again(now);
        }
        self.settle(now);
    }

    /// The reader paused the socket: silence meanwhile was ours, not the relay's.
    pub(crate) fn forgive_silence(&mut self, now: Instant) {
        let fresh = now + Duration::from_millis(self.config.eose_timeout_ms);
        for sub in self.subs.values_mut() {
            if let Phase::Opening { deadline } = &mut sub.phase {
                *deadline = fresh;
            }
        }
    }

    /// Opens the next history pages; says so when nothing is left to read.
    fn settle(&mut self, now: Instant) {
        let live_closed = self.subs.values().any(|sub| {
            matches!(
                (&sub.purpose, &sub.phase),
                (Purpose::Live(_), Phase::Closed { .. })
            )
        });
        if self.history_stale && !live_closed {
            // Events may have come while a live request was closed.
            self.restart_history();
        }
        let history = self
            .subs
            .values()
            .filter(|sub| matches!(sub.purpose, Purpose::History(_)))
            .count();
        for _ in history..self.config.max_history_reqs.max(1) {
            let Some(job) = self.queue.pop_front() else {
                break;
            };
            self.open(Purpose::History(job), now);
        }
        let quiet = self.queue.is_empty()
            && self
                .subs
                .values()
                .all(|sub| matches!((&sub.purpose, &sub.phase), (Purpose::Live(_), Phase::Live)));
        if quiet && !self.reported {
            self.reported = true;
            self.actions.push(Action::CaughtUp);
        }
    }
}
