//! Presence: which inboxes are read, what is announced to pools, when everything is read anew, and what relays may forget.

mod sweep;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nostr::PublicKey;
use sweep::Sweep;
use tokio::sync::mpsc;

use super::delivery::Tell;
use super::handlers::is_connected;
use super::order::{Mail, Order};
use super::pools::Pools;
use super::rows::Parcel;
use super::{Mailbox, clock};
use crate::carrier::{Handle, InboxSpec, Outgoing};
use crate::domain::engagement::Stage;
use crate::domain::policy::Policy;
use crate::domain::step::{Addressee, Input, Send};
use crate::identity::Identity;
use crate::identity::pool::utc_day;
use crate::wire::market::{Ad, AdSkill};
use crate::wire::message::Body;
use crate::wire::verify::{Inbox, Keyring};

/// Changes of the ad within this time make one ad.
const AD_PAUSE: Duration = Duration::from_millis(200);
/// Live offers are announced again this often.
const OFFER_EVERY: Duration = Duration::from_secs(60);

/// What presence needs.
pub struct Presence {
    /// Our keys.
    pub identity: Arc<Identity>,
    /// The ring that arrivals are opened with.
    pub keyring: Arc<Keyring>,
    /// The carrier.
    pub carrier: Handle,
    /// Pools joined.
    pub pools: Arc<Pools>,
    /// Settings.
    pub policy: Policy,
    /// Ads are repeated this often.
    pub ad_every: Duration,
    /// To the loop.
    pub mailbox: Mailbox,
    /// To delivery.
    pub delivery: mpsc::UnboundedSender<Tell>,
    /// The newest drain.
    pub generation: Arc<AtomicU64>,
    /// The relays that messages come from: those that may forget what was read.
    pub relays: Vec<String>,
    /// Until when the own inbox was read, Unix seconds.
    pub read_until_s: u64,
}

impl Presence {
    /// Runs until the channel closes.
    pub async fn run(self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut tasks: BTreeMap<String, u64> = BTreeMap::new();
        let mut sweep = Sweep::default();
        let mut day = 0;
        let mut joined = self.pools.changes();
        let mut read: Vec<(String, u32, bool)> = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ad_at = tokio::time::Instant::now() + AD_PAUSE;
        let mut offers_at = tokio::time::Instant::now() + OFFER_EVERY;
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None => return,
                    Some(Order::Inboxes(wanted)) => {
                        tasks = wanted;
                        self.subscribe(&tasks);
                    }
                    Some(Order::Readvertise) => ad_at = ad_at.min(tokio::time::Instant::now() + AD_PAUSE),
                    Some(Order::Drain) => self.drain(),
                    Some(Order::Sweep(wraps)) => sweep.add(wraps),
                    Some(_) => {}
                },
                Ok(()) = joined.changed() => {
                    self.subscribe(&tasks);
                    ad_at = tokio::time::Instant::now();
                }
                _ = tick.tick() => {
                    self.forget(sweep.take(&self.identity));
                    let today = utc_day(clock::now_ms() / 1000);
                    let now_read = self.pools.read(clock::now_ms() / 1000);
                    let now_read = now_read.iter().map(|r| (r.name.clone(), r.epoch, r.closed));
                    if today != day || !now_read.clone().eq(read.iter().cloned()) {
                        (day, read) = (today, now_read.collect());
                        self.pools.prune();
                        self.subscribe(&tasks);
                    }
                    if tokio::time::Instant::now() >= offers_at {
                        offers_at = tokio::time::Instant::now() + OFFER_EVERY;
                        self.mailbox.post(Mail::Fact(Input::Announce));
                    }
                }
                () = tokio::time::sleep_until(ad_at) => {
                    ad_at = tokio::time::Instant::now() + self.ad_every;
                    self.advertise();
                }
            }
        }
    }

    /// Reads every inbox again from the relays, known events too: after a gap some of them were refused for their dates, or
    /// their acknowledgements were. With no relay there is nothing to wait for.
    fn drain(&self) {
        let connected = self.carrier.status().iter().any(|r| is_connected(&r.state));
        self.generation
            .store(self.carrier.redeliver(), Ordering::SeqCst);
        if !connected {
            self.mailbox
                .post(Mail::Fact(Input::CaughtUp { online: false }));
        }
    }

    /// Tried once: a relay that is away, busy or does not honour it keeps some wraps until they expire.
    fn forget(&self, deletions: Vec<Outgoing>) {
        for deletion in &deletions {
            for relay in &self.relays {
                if let Err(error) = self.carrier.try_publish(deletion, relay) {
                    tracing::debug!(relay, code = error.code(), "wraps stay there: {error}");
                }
            }
        }
    }

    /// Own inbox, the one-time key of every open auction, and each pool's key of yesterday, today and tomorrow; a secret that
    /// was rotated away is subscribed to for a while longer, and what comes under it counted.
    fn subscribe(&self, tasks: &BTreeMap<String, u64>) {
        let own = self.identity.nostr();
        let now_s = clock::now_ms() / 1000;
        let mut specs = vec![InboxSpec {
            pubkey: own.public_key(),
            since_s: self.read_until_s,
            auth: Some(own.clone()),
            stored: true,
            ephemeral: true,
        }];
        let mut held: Vec<PublicKey> = vec![own.public_key()];
        for (task, since_s) in tasks {
            let Ok(keys) = self.identity.reply_key(task) else {
                continue;
            };
            held.push(keys.public_key());
            specs.push(InboxSpec {
                pubkey: keys.public_key(),
                since_s: *since_s,
                auth: Some(keys.clone()),
                stored: true,
                ephemeral: false,
            });
            self.keyring.insert(keys, Inbox::Task(task.clone()), 0);
        }
        let today = utc_day(now_s);
        for pool in self.pools.read(now_s) {
            for utc_day in [today.saturating_sub(1), today, today + 1] {
                let Ok(keys) = pool.secret.day_keys(utc_day) else {
                    continue;
                };
                held.push(keys.public_key());
                specs.push(InboxSpec {
                    pubkey: keys.public_key(),
                    since_s: now_s,
                    auth: Some(keys.clone()),
                    stored: true,
                    ephemeral: true,
                });
                let inbox = Inbox::Pool {
                    name: pool.name.clone(),
                    epoch: pool.epoch,
                    utc_day,
                };
                match pool.closed {
                    true => self.keyring.insert_closed(keys, inbox),
                    false => self.keyring.insert(keys, inbox, pool.pow_bits),
                }
            }
        }
        for relay in self.pools.relays() {
            if let Err(error) = self.carrier.add_relay(&relay) {
                tracing::warn!(code = error.code(), "a pool's relay is not used: {error}");
            }
        }
        for (key, _) in self.keyring.inboxes() {
            if !held.contains(&key) {
                self.keyring.remove(&key);
            }
        }
        if let Err(error) = self.carrier.set_inboxes(specs) {
            tracing::warn!(code = error.code(), "not every inbox is read: {error}");
        }
    }

    fn advertise(&self) {
        let (policy, delivery) = (self.policy.clone(), self.delivery.clone());
        let pools = self.pools.names();
        self.mailbox.post(Mail::Query(Box::new(move |node, _| {
            let skills = &node.policy().skills;
            if skills.is_empty() || node.behind().is_some() {
                return;
            }
            let now = clock::now_ms();
            let queue = node
                .work()
                .values()
                .filter(|w| matches!(w.stage, Stage::Queued | Stage::Running | Stage::Hibernating))
                .count();
            let ad = Ad {
                lct: policy.lct.clone(),
                binding: policy.binding.clone(),
                relays: policy.relays.clone(),
                skills: skills
                    .iter()
                    .map(|s| AdSkill {
                        hops_mc: s.hop_budget_mc,
                        id: s.id.clone(),
                        unit_price_mc: s.unit_price_mc,
                    })
                    .collect(),
                queue: queue as u32,
                paused: node.owner().paused.is_some(),
                expires_ms: now + policy.ad_ttl_ms,
            };
            for pool in pools {
                let send = Send {
                    to: Addressee::Pool(pool),
                    body: Body::Ad(Box::new(ad.clone())),
                    ephemeral: false,
                    relays: Vec::new(),
                    expires_ms: ad.expires_ms,
                };
                let _ = delivery.send(Tell::Order(Order::Try(Parcel {
                    sends: vec![send],
                    created_s: now / 1000,
                })));
            }
        })));
    }
}
