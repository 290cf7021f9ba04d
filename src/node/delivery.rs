//! Delivery: outbox rows are sealed in parallel, published to every relay that may reach the recipient, and kept until
//! the recipient acknowledges or the message expires.
//!
//! A relay's `OK` is not delivery: the row is done at the peer's acknowledgement. Within one process the same wrap is
//! sent again; after a restart, and when a relay took it some time ago without an acknowledgement, a new wrap of the same
//! rumor goes out, which the receiver drops by rumor id and acknowledges once more. So no wrap is ever written to disk.
//! How long "some time" is depends on the recipient: one that was heard lately reads, and a relay has lost the message or its
//! acknowledgement; one that is away will find it when it comes back.

mod row;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use nostr::{EventId, PublicKey};
use tokio::runtime::Handle as Runtime;
use tokio::sync::mpsc;

use self::row::{RETRY_CAP, RETRY_FIRST, REWRAP_PRESENT, Row, answered_offer, page_for, redate};
use super::order::{Mail, Order};
use super::rows::Parcel;
use super::sealer::{Early, Sealed, Sealer};
use super::{Mailbox, clock, crash};
use crate::carrier::{Handle, Outcome, Outgoing};
use crate::wire::message::Body;

/// Who said something within this time is there.
const PRESENT: Duration = Duration::from_secs(600);
/// What was said longer ago lay in a relay, and tells nothing of now.
const FRESH_S: u64 = 60;
/// So many peers are remembered as heard, far more than a node has messages for.
const HEARD_MAX: usize = 4_096;
/// A relay of others without anything for it is left after this long.
const FOREIGN_IDLE: Duration = Duration::from_secs(120);
/// The outbox row of a parcel, if it has one, and what sealing made of it: nothing if it was interrupted.
type Closed = (Option<u64>, Option<Result<Sealed, String>>);

async fn closed(seq: Option<u64>, early: Early) -> Closed {
    (seq, early.await.ok())
}

/// What delivery is told.
#[derive(Debug)]
pub enum Tell {
    /// From the loop.
    Order(Order),
    /// Somebody spoke.
    Heard {
        /// Who.
        from: PublicKey,
        /// When it was said, Unix seconds by the speaker's clock.
        said_s: u64,
        /// Rumors that are durable there, ids in hex.
        acked: Vec<String>,
    },
    /// A relay's answer to a publication.
    Published {
        /// The wrap.
        event_id: EventId,
        /// Which relay.
        relay: Arc<str>,
        /// Its answer.
        outcome: Outcome,
    },
    /// A relay is connected (again).
    Connected(Arc<str>),
}

/// The delivery task.
pub struct Deliverer {
    sealer: Arc<Sealer>,
    carrier: Handle,
    relays: Vec<String>,
    rows: BTreeMap<u64, Row>,
    by_rumor: HashMap<EventId, u64>,
    by_wrap: HashMap<EventId, u64>,
    /// Rows that answer an offer, by requester and task.
    replies: HashMap<(String, String), BTreeSet<u64>>,
    /// The row with the newest page of a log for each peer: it asks for one after the other, and an older one answers nothing.
    pages: HashMap<String, u64>,
    /// Relays of others that we are connected to, and when there was last something for them.
    foreign: BTreeMap<String, Instant>,
    /// When each peer was last heard.
    heard: HashMap<PublicKey, Instant>,
    /// Relays that refuse messages for now, so that each says why once.
    refusing: BTreeSet<Arc<str>>,
    mailbox: Mailbox,
    sealing: FuturesUnordered<BoxFuture<'static, Closed>>,
}

/// How full the outbox is, for `status`.
#[derive(Debug, Clone, Copy, Default)]
pub struct OutboxState {
    /// Rows waiting for an acknowledgement.
    pub waiting: usize,
    /// Of those, rows that no relay has taken yet.
    pub untaken: usize,
}

impl Deliverer {
    fn new(sealer: Arc<Sealer>, carrier: Handle, relays: Vec<String>, mailbox: Mailbox) -> Self {
        Self {
            sealer,
            carrier,
            relays: relays
                .iter()
                .map(|r| r.trim_end_matches('/').to_owned())
                .collect(),
            rows: BTreeMap::new(),
            by_rumor: HashMap::new(),
            by_wrap: HashMap::new(),
            replies: HashMap::new(),
            pages: HashMap::new(),
            foreign: BTreeMap::new(),
            heard: HashMap::new(),
            refusing: BTreeSet::new(),
            mailbox,
            sealing: FuturesUnordered::new(),
        }
    }

    /// Runs until the channel closes. `state` is kept current.
    pub async fn run(
        sealer: Arc<Sealer>,
        carrier: Handle,
        relays: Vec<String>,
        outbox: Vec<(u64, Parcel)>,
        mailbox: Mailbox,
        mut tells: mpsc::UnboundedReceiver<Tell>,
        state: Arc<std::sync::Mutex<OutboxState>>,
    ) {
        let mut this = Self::new(sealer, carrier, relays, mailbox);
        let restored = outbox
            .into_iter()
            .map(|(seq, parcel)| Order::Deliver(seq, parcel, None))
            .collect();
        this.admit(restored);
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                tell = tells.recv() => {
                    let Some(tell) = tell else { return };
                    let mut orders = Vec::new();
                    this.hear(tell, &mut orders).await;
                    // Whatever else waits is sealed in the same go.
                    while let Ok(tell) = tells.try_recv() {
                        this.hear(tell, &mut orders).await;
                        if orders.len() >= 256 { break; }
                    }
                    this.admit(orders);
                }
                Some(done) = this.sealing.next() => {
                    let mut done = vec![done];
                    while let Some(Some(also)) = this.sealing.next().now_or_never() {
                        done.push(also);
                    }
                    this.publish(done).await;
                }
                _ = tick.tick() => this.look_after().await,
            }
            if let Ok(mut state) = state.lock() {
                state.waiting = this.rows.len();
                state.untaken = this.rows.values().filter(|r| r.taken.is_empty()).count();
            }
        }
    }

    async fn hear(&mut self, tell: Tell, orders: &mut Vec<Order>) {
        match tell {
            Tell::Order(order) => orders.push(order),
            Tell::Heard {
                from,
                said_s,
                acked,
            } => {
                self.heard(from, said_s);
                self.acked(from, &acked);
            }
            Tell::Published {
                event_id,
                relay,
                outcome,
            } => self.answered(event_id, relay, outcome),
            Tell::Connected(relay) => self.reconnected(&relay).await,
        }
    }

    fn admit(&mut self, orders: Vec<Order>) {
        let now = Instant::now();
        let (mut open, mut older) = (Vec::new(), Vec::new());
        for order in orders {
            match order {
                Order::Deliver(seq, mut parcel, early) => {
                    match early.filter(|_| !redate(&mut parcel)) {
                        Some(early) => self.sealing.push(Box::pin(closed(Some(seq), early))),
                        None => open.push((Some(seq), parcel.clone())),
                    }
                    let expires_ms = parcel.sends.iter().map(|s| s.expires_ms).max().unwrap_or(0);
                    let row = Row {
                        parcel,
                        recipient: None,
                        rumor: None,
                        event: None,
                        taken: BTreeSet::new(),
                        due: now + Duration::from_secs(30),
                        retry: RETRY_FIRST,
                        rewrap: REWRAP_PRESENT,
                        expires_ms,
                    };
                    if let Some(offer) = answered_offer(&row.parcel) {
                        self.replies.entry(offer).or_default().insert(seq);
                    }
                    let page = page_for(&row.parcel).map(str::to_owned);
                    self.rows.insert(seq, row);
                    older.extend(page.and_then(|peer| self.pages.insert(peer, seq)));
                }
                Order::Moot { requester, task } => {
                    let moot = self.replies.remove(&(requester, task));
                    self.finish(moot.into_iter().flatten().collect());
                }
                Order::Try(parcel) => open.push((None, parcel)),
                _ => {}
            }
        }
        self.finish(older);
        self.seal(open);
    }

    fn seal(&mut self, open: Vec<(Option<u64>, Parcel)>) {
        let (rows, parcels): (Vec<_>, Vec<_>) = open.into_iter().unzip();
        let answers = self.sealer.begin(&Runtime::current(), &parcels);
        for (seq, early) in rows.into_iter().zip(answers) {
            self.sealing.push(Box::pin(closed(seq, early)));
        }
    }

    async fn publish(&mut self, done: Vec<Closed>) {
        for (seq, outcome) in done {
            let sealed = match outcome {
                Some(Ok(sealed)) => sealed,
                Some(Err(error)) => {
                    tracing::error!(error, "a message could not be sealed and is given up");
                    self.finish(seq.into_iter().collect());
                    continue;
                }
                // The node is ending, or its thread was lost: the row stays and is tried again.
                None => continue,
            };
            // Sealing itself may be done before the commit is.
            crash::point("sealed", &[]);
            let mut to = self.relays.clone();
            to.extend(sealed.relays.iter().cloned());
            to.sort();
            to.dedup();
            if let Some(seq) = seq {
                let Some(row) = self.rows.get_mut(&seq) else {
                    continue;
                };
                // An older wrap of the row answers for nothing any more.
                if let Some(old) = row.event.take() {
                    self.by_wrap.remove(&old.event_id());
                }
                if let Some(old) = row.rumor.take() {
                    self.by_rumor.remove(&old);
                }
                self.by_wrap.insert(sealed.event.event_id(), seq);
                self.by_rumor.insert(sealed.rumor, seq);
                (row.rumor, row.recipient) = (Some(sealed.rumor), Some(sealed.recipient));
                row.event = Some(sealed.event.clone());
                to = row.roads(&self.relays);
            } else {
                // What is tried once goes where its reader reads, too.
                let theirs = sealed.named.iter().filter(|r| r.starts_with("wss://"));
                to.extend(theirs.map(|relay| relay.trim_end_matches('/').to_owned()));
                to.sort();
                to.dedup();
            }
            self.meet(&to);
            send(&self.carrier, &sealed.event, &to, &self.relays).await;
        }
        crash::point("published", &[]);
    }

    /// A relay that is not ours is one where a recipient said it reads: it is connected to while there is something for it. One
    /// where a private pool meets came with an invite that our owner took: it may be anywhere, and stays until the pool is left.
    fn meet(&mut self, relays: &[String]) {
        let mut others = relays
            .iter()
            .filter(|r| !self.relays.contains(r))
            .peekable();
        if others.peek().is_none() {
            return;
        }
        let pools = self.sealer.pools.relays();
        for relay in others {
            let met = match pools.contains(relay) {
                true => self.carrier.add_relay(relay),
                false => self.carrier.add_foreign_relay(relay),
            };
            match met {
                Ok(()) => {
                    self.foreign.insert(relay.clone(), Instant::now());
                }
                Err(error) => tracing::debug!(
                    code = error.code(),
                    "a recipient's relay is not used: {error}"
                ),
            }
        }
    }

    /// Leaves the relays of others for which there has been nothing for a while.
    fn part(&mut self, now: Instant) {
        let idle: Vec<String> = self
            .foreign
            .iter()
            .filter(|(_, used)| now.duration_since(**used) > FOREIGN_IDLE)
            .map(|(relay, _)| relay.clone())
            .collect();
        if idle.is_empty() {
            return;
        }
        let mut wanted = self.sealer.pools.relays();
        wanted.extend(self.rows.values().flat_map(|row| row.roads(&[])));
        for relay in idle {
            if wanted.contains(&relay) {
                self.foreign.insert(relay, now);
            } else {
                self.foreign.remove(&relay);
                self.carrier.remove_relay(&relay);
            }
        }
    }

    fn heard(&mut self, from: PublicKey, said_s: u64) {
        if said_s.saturating_add(FRESH_S) < clock::now_ms() / 1000 {
            return;
        }
        if self.heard.len() >= HEARD_MAX && !self.heard.contains_key(&from) {
            self.heard.retain(|_, at| at.elapsed() < PRESENT);
            if self.heard.len() >= HEARD_MAX {
                return;
            }
        }
        self.heard.insert(from, Instant::now());
    }

    fn acked(&mut self, from: PublicKey, rumors: &[String]) {
        let mut done = Vec::new();
        for rumor in rumors {
            let Ok(rumor) = EventId::from_hex(rumor) else {
                continue;
            };
            let Some(seq) = self.by_rumor.get(&rumor) else {
                continue;
            };
            // Only the recipient may say so; for a reply key that is the requester who made it.
            let hex = from.to_hex();
            let addressed = self.rows.get(seq).is_some_and(|row| {
                row.recipient == Some(from)
                    || row.parcel.sends.iter().any(|send| match &send.body {
                        Body::Bid(bid) => bid.requester == hex,
                        Body::Decline(decline) => decline.requester == hex,
                        _ => false,
                    })
            });
            if addressed {
                done.push(*seq);
            }
        }
        self.finish(done);
    }

    fn finish(&mut self, seqs: Vec<u64>) {
        for seq in &seqs {
            if let Some(row) = self.rows.remove(seq) {
                row.rumor.map(|r| self.by_rumor.remove(&r));
                row.event.map(|e| self.by_wrap.remove(&e.event_id()));
                if let Some(peer) = page_for(&row.parcel)
                    && self.pages.get(peer) == Some(seq)
                {
                    self.pages.remove(peer);
                }
                if let Some(offer) = answered_offer(&row.parcel)
                    && let Some(seqs) = self.replies.get_mut(&offer)
                {
                    seqs.remove(seq);
                    if seqs.is_empty() {
                        self.replies.remove(&offer);
                    }
                }
            }
        }
        if !seqs.is_empty() {
            self.mailbox.post(Mail::Delivered(seqs));
        }
    }

    fn answered(&mut self, event_id: EventId, relay: Arc<str>, outcome: Outcome) {
        let Some(row) = self
            .by_wrap
            .get(&event_id)
            .and_then(|seq| self.rows.get_mut(seq))
        else {
            return;
        };
        let now = Instant::now();
        match &outcome {
            Outcome::Accepted | Outcome::Duplicate => {
                self.refusing.remove(&relay);
                row.taken.insert(relay);
                let there = row.reader().is_some_and(|reader| {
                    let heard = self.heard.get(&reader);
                    heard.is_some_and(|at| now.duration_since(*at) < PRESENT)
                });
                row.due = now + row.patience(there);
            }
            Outcome::Final(why) => {
                tracing::warn!(relay = &*relay, why, "a relay will never take this message");
            }
            Outcome::Unknown(_) | Outcome::Retry(_) => {
                if let Outcome::Retry(why) = &outcome
                    && self.refusing.insert(relay.clone())
                {
                    tracing::warn!(
                        relay = &*relay,
                        why,
                        "a relay takes no messages for now: they wait here"
                    );
                }
                if row.taken.is_empty() {
                    row.due = now + row.retry;
                    row.retry = (row.retry * 2).min(RETRY_CAP);
                }
            }
        }
    }

    /// A relay that comes back may have lost what it had, or the acknowledgement for it was lost meanwhile: everything
    /// unacknowledged is offered again, in a new wrap where some relay had taken the old one, since a relay shows its
    /// readers no duplicate. One that is not ours gets the old one: it could come and go to have us publish to all without end.
    async fn reconnected(&mut self, relay: &Arc<str>) {
        let mut anew = Vec::new();
        let mut again = Vec::new();
        let own = self.relays.iter().any(|r| **r == **relay);
        let concerned = |row: &Row| row.roads(&self.relays).iter().any(|r| **r == **relay);
        for (seq, row) in self.rows.iter().filter(|(_, row)| concerned(row)) {
            match &row.event {
                Some(_) if !row.taken.is_empty() && own => {
                    anew.push((Some(*seq), row.parcel.clone()))
                }
                Some(event) => again.push(event.clone()),
                None => {}
            }
        }
        for event in again {
            send(&self.carrier, &event, &[relay.to_string()], &self.relays).await;
        }
        self.seal(anew);
    }

    async fn look_after(&mut self) {
        let (now, now_ms) = (Instant::now(), clock::now_ms());
        let expired: Vec<u64> = self
            .rows
            .iter()
            .filter(|(_, r)| r.expires_ms <= now_ms)
            .map(|(seq, _)| *seq)
            .collect();
        if !expired.is_empty() {
            tracing::warn!(
                count = expired.len(),
                "messages expired before their recipients acknowledged them"
            );
            self.finish(expired);
        }
        let mut again = Vec::new();
        let mut anew = Vec::new();
        for (seq, row) in &mut self.rows {
            if redate(&mut row.parcel) {
                row.taken.clear();
                row.due = now + row.retry;
                anew.push((Some(*seq), row.parcel.clone()));
            } else if row.due > now {
                continue;
            } else if row.taken.is_empty() {
                row.due = now + row.retry;
                row.retry = (row.retry * 2).min(RETRY_CAP);
                match &row.event {
                    Some(event) => again.push((event.clone(), row.roads(&self.relays))),
                    None => anew.push((Some(*seq), row.parcel.clone())),
                }
            } else {
                row.rewrap = row.next_rewrap();
                // Until a relay takes the new wrap.
                row.due = now + row.rewrap;
                anew.push((Some(*seq), row.parcel.clone()));
            }
        }
        for (event, to) in again {
            self.meet(&to);
            send(&self.carrier, &event, &to, &self.relays).await;
        }
        self.part(now);
        self.seal(anew);
    }
}

/// Hands an event to these relays; their answers come as [`Tell::Published`]. One that is not our `own` is not waited for: whoever
/// named it may have it read nothing, on purpose, and every other message would wait with it. The row is tried again later.
async fn send(carrier: &Handle, event: &Outgoing, relays: &[String], own: &[String]) {
    let (own, foreign): (Vec<_>, Vec<_>) = relays.iter().cloned().partition(|r| own.contains(r));
    for relay in &foreign {
        if let Err(error) = carrier.try_publish(event, relay) {
            tracing::debug!(relay, code = error.code(), "a message waits: {error}");
        }
    }
    if let Err(error) = carrier.publish(event, &own).await {
        tracing::warn!(code = error.code(), "a message waits: {error}");
    }
}

#[cfg(test)]
mod tests;
