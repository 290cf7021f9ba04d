//! The decisions. Pure: the same inputs in the same order give the same bytes.
//!
//! [`Node::handle`] takes one input at a time and says what must become durable ([`Change`]) and what may happen after
//! that ([`Effect`]). It reads no clock, draws no randomness, does no I/O and holds no float: time and chance are
//! parameters. Memory holds live jobs, live engagements, balances and peers; everything else is in the store, from where
//! the node room prefetches what an input names (`recall`).

mod arbiter;
mod auction;
pub mod engagement;
mod executor;
pub mod history;
pub mod job;
pub mod ledger;
mod mark;
pub mod peer;
pub mod policy;
mod requester;
mod settle;
pub mod step;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::Value;

use engagement::{Engagement, Stage};
use job::{Job, Phase};
use ledger::{Ledger, Side, State as Money};
use peer::{AdFacts, Peer, Tier};
use policy::Policy;
use step::{
    Addressee, Chance, Change, Effect, EngagementKey, Incoming, Input, LaborNews, Ms, Npub,
    Refused, Row, Send, Step, TaskId,
};

pub use arbiter::{OwnerState, Pause};
pub use mark::{Mark, Promise};
pub use requester::{KEY_TTL_MS, sample_size};

use crate::wire::entry::Entry;
use crate::wire::market::Ad;
use crate::wire::message::Body;

/// Most bytes that an output with its unit results may take, so that a result fits into one envelope.
pub const RESULT_BYTES_MAX: u64 = 20_000;

#[derive(Debug, Default)]
struct Dirty {
    jobs: BTreeSet<TaskId>,
    work: BTreeSet<EngagementKey>,
    peers: BTreeSet<Npub>,
    accounts: BTreeSet<Npub>,
    marks: BTreeSet<String>,
}

/// A node's live state and its rules.
#[derive(Debug)]
pub struct Node {
    policy: Policy,
    jobs: BTreeMap<TaskId, Job>,
    work: BTreeMap<EngagementKey, Engagement>,
    peers: BTreeMap<Npub, Peer>,
    ledger: Ledger,
    owner: OwnerState,
    marks: BTreeMap<String, Mark>,
    keys: BTreeMap<String, (TaskId, String, Ms)>,
    inputs: BTreeMap<String, Value>,
    /// Inboxes are being read to their end: no timer is judged.
    draining: bool,
    /// At least one inbox relay is connected.
    online: bool,
    /// When the inboxes were last read to their end.
    caught_up_ms: Ms,
    stopping: bool,
    loopback: VecDeque<Incoming>,
    dirty: Dirty,
    out: Step,
}

impl Node {
    /// A node with nothing in it. Rows are put back with [`Node::recall`]; then comes [`Input::Started`].
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            jobs: BTreeMap::new(),
            work: BTreeMap::new(),
            peers: BTreeMap::new(),
            ledger: Ledger::default(),
            owner: OwnerState::default(),
            marks: BTreeMap::new(),
            keys: BTreeMap::new(),
            inputs: BTreeMap::new(),
            draining: true,
            online: false,
            caught_up_ms: 0,
            stopping: false,
            loopback: VecDeque::new(),
            dirty: Dirty::default(),
            out: Step::default(),
        }
    }

    /// Puts a stored row back into memory: at start, and before an input that names it. A row that is in memory already is
    /// newer than the stored one and stays as it is.
    pub fn recall(&mut self, row: Row) {
        match row {
            Row::Job(job) if !self.jobs.contains_key(&job.task) => {
                for award in job.awards.iter().filter(|a| a.money == Money::Locked) {
                    self.ledger.load_lock(
                        (
                            Side::Requester,
                            award.executor.clone(),
                            job.task.clone(),
                            award.no,
                        ),
                        award.cap_mc,
                    );
                }
                self.jobs.insert(job.task.clone(), *job);
            }
            Row::Engagement(work) if !self.work.contains_key(&work.key) => {
                if work.money == Money::Locked {
                    self.ledger.load_lock(
                        (
                            Side::Executor,
                            work.requester.clone(),
                            work.task.clone(),
                            work.award_no,
                        ),
                        work.total_mc,
                    );
                }
                self.owner.order = self.owner.order.max(work.order);
                self.work.insert(work.key.clone(), *work);
            }
            Row::Peer(peer) => {
                self.peers.entry(peer.npub.clone()).or_insert(*peer);
            }
            Row::Account(account) => self.ledger.load_account(account),
            Row::Owner(owner) => {
                let order = self.owner.order.max(owner.order);
                self.owner = OwnerState { order, ..owner };
            }
            Row::Mark(mark) => {
                self.marks.entry(mark.owner.clone()).or_insert(mark);
            }
            Row::Key {
                key,
                task,
                fingerprint,
                expires_ms,
            } => {
                self.keys
                    .entry(key)
                    .or_insert((task, fingerprint, expires_ms));
            }
            Row::Payload { owner, name, bytes } if name == "input" && self.wants_input(&owner) => {
                if let Ok(value) = serde_json::from_slice(&bytes) {
                    self.inputs.insert(owner, value);
                }
            }
            Row::Job(_)
            | Row::Engagement(_)
            | Row::Payload { .. }
            | Row::Checkpoint { .. }
            | Row::Transfer(_)
            | Row::Entry(_) => {}
        }
    }

    /// Inputs are held for what may still be awarded, computed or judged.
    fn wants_input(&self, owner: &str) -> bool {
        self.jobs
            .get(owner)
            .is_some_and(|j| j.phase != Phase::Ended)
            || self.work.get(owner).is_some_and(Engagement::is_live)
    }

    /// Decides. `now` is Unix milliseconds; `chance` must be fresh for every call.
    pub fn handle(&mut self, now: Ms, chance: &mut Chance, input: Input) -> Step {
        match input {
            Input::Started => self.on_started(now),
            Input::CaughtUp { online } => self.on_caught_up(now, online),
            Input::Draining => self.draining = true,
            Input::Announce => self.announce_all(),
            Input::Tick => {}
            Input::Ask(ask) => self.on_ask(now, chance, *ask),
            Input::Cancel { task } => self.on_cancel_command(now, &task),
            Input::Trust {
                npub,
                tier,
                limit_mc,
            } => self.on_trust(&npub, tier, limit_mc),
            Input::Forget { npub } => self.on_forget(&npub),
            Input::Pause { mode, for_ms } => self.on_pause(now, mode, for_ms),
            Input::Resume => self.on_resume(),
            Input::Shutdown => self.on_shutdown(),
            Input::Message(incoming) => self.on_message(now, chance, *incoming),
            Input::Labor { key, news } => self.on_labor(now, &key, news),
            Input::Checked {
                task,
                award_no,
                findings,
            } => self.on_checked(now, &task, award_no, findings),
            Input::EvidenceChecked { key, holds } => self.on_evidence(now, &key, holds),
        }
        self.settle_down(now, chance);
        self.flush()
    }

    fn settle_down(&mut self, now: Ms, chance: &mut Chance) {
        self.hear_ourselves(now, chance);
        self.timers(now, chance);
        loop {
            self.arbitrate(now);
            if self.loopback.is_empty() {
                break;
            }
            self.hear_ourselves(now, chance);
        }
    }

    /// What we say to ourselves as our own executor arrives within the same step.
    fn hear_ourselves(&mut self, now: Ms, chance: &mut Chance) {
        while let Some(incoming) = self.loopback.pop_front() {
            self.on_message(now, chance, incoming);
        }
    }

    fn timers(&mut self, now: Ms, chance: &mut Chance) {
        if self.draining {
            return;
        }
        let due: Vec<_> = self
            .jobs
            .values()
            .filter(|j| self.job_wake_ms(j) <= now)
            .map(|j| j.task.clone())
            .collect();
        for task in due {
            self.job_timers(now, &task);
            self.hear_ourselves(now, chance);
        }
        let due: Vec<_> = self
            .work
            .values()
            .filter(|w| self.work_wake_ms(w) <= now)
            .map(|w| w.key.clone())
            .collect();
        for key in due {
            self.work_timers(now, &key);
            self.hear_ourselves(now, chance);
        }
        self.forget_marks(now);
    }

    /// When [`Input::Tick`] is next needed, Unix milliseconds; none if only other inputs can change anything.
    pub fn wake_ms(&self) -> Option<Ms> {
        let jobs = self.jobs.values().map(|j| self.job_wake_ms(j));
        let work = self.work.values().map(|w| self.work_wake_ms(w));
        let pause = self.owner.paused.iter().filter_map(|p| p.until_ms);
        let marks = self.marks.values().map(|m| m.expires_ms);
        let wake = jobs
            .chain(work)
            .chain(pause)
            .chain(marks)
            .min()
            .unwrap_or(Ms::MAX);
        (!self.draining && wake != Ms::MAX).then_some(wake)
    }

    fn on_started(&mut self, now: Ms) {
        self.draining = true;
        // What was being stopped when the node ended has stopped: go on with why.
        let stopping: Vec<_> = self
            .work
            .values()
            .filter(|w| w.stage == Stage::Stopping)
            .map(|w| w.key.clone())
            .collect();
        for key in stopping {
            self.stop_ended(now, &key);
        }
        let running: Vec<_> = self
            .work
            .values()
            .filter(|w| w.stage == Stage::Running)
            .map(|w| w.key.clone())
            .collect();
        for key in running {
            // The worker died with the node: the lease is granted anew from the last checkpoint.
            if let Some(work) = self.work.get_mut(&key) {
                work.stage = Stage::Queued;
                let task = work.task.clone();
                let units = work.checkpoint_units;
                self.dirty.work.insert(key.clone());
                self.journal(
                    "resume_planned",
                    Some(&task),
                    serde_json::json!({"key": key, "checkpoint_units": units}),
                );
            }
        }
        self.effects_anew();
    }

    /// Everything derived is computed anew from state: checks, evidence, offers, reply inboxes.
    fn effects_anew(&mut self) {
        let checks: Vec<_> = self
            .jobs
            .values()
            .filter(|j| j.phase == Phase::Checking)
            .filter_map(|j| {
                j.outcome.as_ref().map(|o| Effect::Check {
                    task: j.task.clone(),
                    award_no: o.award_no,
                    sample: o.sample.clone(),
                })
            })
            .collect();
        self.out.effects.extend(checks);
        let evidence: Vec<_> = self
            .work
            .values()
            .filter(|w| w.is_live())
            .filter_map(|w| {
                w.evidence.as_ref().map(|e| Effect::CheckEvidence {
                    key: w.key.clone(),
                    evidence: e.clone(),
                })
            })
            .collect();
        self.out.effects.extend(evidence);
        self.out.effects.push(Effect::Inboxes);
        self.out.effects.push(Effect::Readvertise);
    }

    fn on_caught_up(&mut self, now: Ms, online: bool) {
        let ttl = self.policy.lease_ttl_ms;
        self.draining = false;
        self.online = online;
        if !online {
            return;
        }
        self.caught_up_ms = now;
        // A lease runs out only by time in which this node was there to hear its keep-alives.
        for job in self.jobs.values_mut().filter(|j| j.phase == Phase::Working) {
            if let Some(award) = job.awards.last_mut() {
                award.lease_until_ms = award.lease_until_ms.max(now.saturating_add(ttl));
            }
        }
        self.bound_waits(now);
        self.announce_all();
        self.out.effects.push(Effect::Readvertise);
    }

    /// After the clock was set back, no wait is longer than it would be if it began now.
    fn bound_waits(&mut self, now: Ms) {
        let (window, ttl) = (self.policy.bid_window_ms, self.policy.lease_ttl_ms);
        for job in self.jobs.values_mut() {
            job.window_ends_ms = job
                .window_ends_ms
                .map(|at| at.min(now.saturating_add(window)));
            for award in &mut job.awards {
                award.lease_until_ms = award.lease_until_ms.min(now.saturating_add(ttl));
            }
        }
        for work in self.work.values_mut() {
            let next = now.saturating_add(work.lease_ttl_ms / 3);
            work.keepalive_at_ms = work.keepalive_at_ms.min(next);
        }
    }

    fn announce_all(&mut self) {
        let open: Vec<_> = self
            .jobs
            .values()
            .filter(|j| j.phase == Phase::Placing && j.round > 0)
            .map(|j| j.task.clone())
            .collect();
        for task in open {
            self.announce(&task);
        }
    }

    fn on_shutdown(&mut self) {
        self.stopping = true;
        let running: Vec<_> = self
            .work
            .values()
            .filter(|w| w.stage == Stage::Running)
            .map(|w| w.key.clone())
            .collect();
        for key in running {
            self.stop_work(&key, engagement::StopWhy::Owner, false);
        }
    }

    fn on_trust(&mut self, npub: &str, tier: Tier, limit_mc: Option<u64>) {
        self.edit_peer(npub, |peer| {
            peer.tier = tier;
            peer.limit_mc = limit_mc;
            peer.disputed = false;
        });
        self.journal(
            "trust",
            None,
            serde_json::json!({"npub": npub, "tier": tier, "limit_mc": limit_mc}),
        );
        self.out.effects.push(Effect::Done(Ok(())));
    }

    fn on_forget(&mut self, npub: &str) {
        let awarded = self
            .jobs
            .values()
            .any(|j| j.is_live() && j.awards.iter().any(|a| a.executor == npub));
        let answer = if awarded
            || self
                .work
                .values()
                .any(|w| w.is_live() && w.requester == npub)
        {
            Err(Refused::new(
                "peer_busy",
                "work or money is open with this peer: try again when it is settled",
            ))
        } else if self.peers.remove(npub).is_some() {
            self.dirty.peers.remove(npub);
            self.out.changes.push(Change::DropPeer(npub.to_owned()));
            Ok(())
        } else {
            Err(Refused::new("peer_unknown", "no such peer is known here"))
        };
        self.out.effects.push(Effect::Done(answer));
    }

    fn on_message(&mut self, now: Ms, chance: &mut Chance, incoming: Incoming) {
        self.meet(now, &incoming);
        let from = incoming.from.clone();
        let outcome = match &incoming.body {
            Body::Ad(ad) => self.on_ad(now, &incoming, ad),
            Body::Offer(offer) if incoming.from != self.policy.me => {
                self.on_offer(now, &incoming, offer)
            }
            Body::Offer(_) => Ok(()),
            Body::Withdraw(withdraw) => {
                self.supersede_work(now, &from, &withdraw.task, withdraw.below_award_no);
                Ok(())
            }
            Body::Bid(bid) => self.on_bid(now, &incoming, bid),
            Body::Decline(decline) => self.on_decline(now, &incoming, decline),
            Body::Award(award) | Body::Request(award) => self.on_award(now, &incoming, award),
            Body::Accept(accept) => self.on_accept(now, &from, accept),
            Body::Update(update) => self.on_update(now, chance, &from, (**update).clone()),
            Body::Cancel(cancel) => self.on_cancel_message(now, &from, &cancel.task, &cancel.entry),
            Body::Receipt(receipt) => self.on_receipt(now, &from, receipt),
            Body::Refusal(refusal) => self.on_refusal(now, &from, refusal),
            Body::Ack(_) => Ok(()),
        };
        if let Err(refused) = outcome {
            self.out.effects.push(Effect::Dropped {
                code: refused.code,
                from,
            });
        }
    }

    fn on_ad(&mut self, now: Ms, incoming: &Incoming, ad: &Ad) -> Result<(), Refused> {
        let Some(pool) = incoming.pool.clone() else {
            return Err(Refused::new("ad_direct", "an ad belongs into a pool"));
        };
        if incoming.from == self.policy.me || ad.expires_ms <= now {
            return Ok(());
        }
        let horizon = now.saturating_add(24 * 3600 * 1000);
        let facts = AdFacts {
            skills: ad.skills.iter().take(64).cloned().collect(),
            queue: ad.queue,
            paused: ad.paused,
            expires_ms: ad.expires_ms.min(horizon),
            pool,
        };
        let news = self
            .peers
            .get(&incoming.from)
            .is_none_or(|p| p.ad.as_ref().is_none_or(|old| old.expires_ms <= now));
        self.edit_peer(&incoming.from, |peer| peer.ad = Some(facts));
        if news {
            self.journal(
                "ad",
                None,
                serde_json::json!({"from": incoming.from, "lct": ad.lct}),
            );
        }
        Ok(())
    }

    /// Remembers what a verified message shows of its author.
    fn meet(&mut self, now: Ms, incoming: &Incoming) {
        if incoming.from == self.policy.me {
            return;
        }
        let (lct, relays) = match &incoming.body {
            Body::Ad(ad) => (Some(&ad.lct), Some(&ad.relays)),
            Body::Bid(bid) => (Some(&bid.lct), Some(&bid.relays)),
            Body::Award(a) | Body::Request(a) => (Some(&a.lct), Some(&a.relays)),
            Body::Accept(a) => (Some(&a.lct), Some(&a.relays)),
            Body::Offer(o) => (None, Some(&o.relays)),
            _ => (None, None),
        };
        let peer = self.peer(&incoming.from);
        let mut met = peer.clone();
        // Keys once bound change only by a rotation that the old key has signed; anything else stays unbound.
        if let Some(keys) = incoming.keys.as_ref().filter(|_| met.key.is_none()) {
            met.key = Some(hex::encode(keys.ed25519));
            met.x25519 = Some(hex::encode(keys.x25519));
            met.epoch = keys.epoch;
        }
        if let Some(lct) = lct.filter(|lct| lct.len() <= 256) {
            met.lct.clone_from(lct);
        }
        if let Some(relays) = relays {
            met.relays = relays
                .iter()
                .filter(|r| r.len() <= 256)
                .take(8)
                .cloned()
                .collect();
        }
        let stale = now.saturating_sub(met.last_seen_ms) > 60_000;
        if met != peer || stale {
            met.last_seen_ms = now;
            self.make_room(&incoming.from);
            self.dirty.peers.insert(incoming.from.clone());
        }
        self.peers.insert(incoming.from.clone(), met);
    }

    /// Forgets the stranger unseen for longest when too many are known.
    fn make_room(&mut self, newcomer: &str) {
        if self.peers.len() < self.policy.peers_max as usize || self.peers.contains_key(newcomer) {
            return;
        }
        let busy: BTreeSet<&str> = self.ledger.locks().map(|(key, _)| key.1.as_str()).collect();
        let idle = |p: &&Peer| {
            p.tier == Tier::Stranger
                && !p.disputed
                && self.ledger.account(&p.npub).posted_mc == 0
                && !busy.contains(p.npub.as_str())
        };
        let oldest = self
            .peers
            .values()
            .filter(idle)
            .min_by_key(|p| p.last_seen_ms)
            .map(|p| p.npub.clone());
        if let Some(npub) = oldest {
            self.peers.remove(&npub);
            self.out.changes.push(Change::DropPeer(npub));
        }
    }

    /// The entry is about this task, by its sender, under the sender's bound key.
    fn entry_belongs(
        &self,
        task: &str,
        requester: &str,
        from: &str,
        entry: &Entry,
    ) -> Result<(), Refused> {
        if entry.task != task || entry.requester != requester || entry.author != from {
            return Err(Refused::new(
                "entry_mismatch",
                "the signed entry is about another task or by another author",
            ));
        }
        let bound = if from == self.policy.me {
            Some(&self.policy.key)
        } else {
            self.peers.get(from).and_then(|p| p.key.as_ref())
        };
        if bound != Some(&entry.key) {
            return Err(Refused::new(
                "key_unbound",
                "the entry's key is not bound to its author",
            ));
        }
        Ok(())
    }

    // ---- what the rest of the room writes with -------------------------------------------------------------------

    fn peer(&self, npub: &str) -> Peer {
        self.peers
            .get(npub)
            .cloned()
            .unwrap_or_else(|| Peer::stranger(npub))
    }

    fn edit_peer(&mut self, npub: &str, edit: impl FnOnce(&mut Peer)) {
        let peer = self
            .peers
            .entry(npub.to_owned())
            .or_insert_with(|| Peer::stranger(npub));
        edit(peer);
        self.dirty.peers.insert(npub.to_owned());
    }

    fn put(&mut self, row: Row) {
        self.out.changes.push(Change::Put(row));
    }

    fn payload(&mut self, owner: &str, name: &str, bytes: Vec<u8>) {
        self.put(Row::Payload {
            owner: owner.to_owned(),
            name: name.to_owned(),
            bytes,
        });
    }

    fn journal(&mut self, kind: &str, task: Option<&str>, body: Value) {
        self.out.changes.push(Change::Journal {
            kind: kind.to_owned(),
            task: task.map(str::to_owned),
            body,
        });
    }

    fn changed(&mut self, task: &str) {
        self.out.effects.push(Effect::Changed(task.to_owned()));
    }

    fn send_peer(&mut self, npub: &str, body: Body, expires_ms: Ms) {
        let relays = self
            .peers
            .get(npub)
            .map(|p| p.relays.clone())
            .unwrap_or_default();
        self.send_peer_at(npub, &relays, body, expires_ms);
    }

    fn send_peer_at(&mut self, npub: &str, relays: &[String], body: Body, expires_ms: Ms) {
        if npub == self.policy.me {
            let plan = match &body {
                Body::Award(a) | Body::Request(a) => Some(Ok(self.jobs.get(&a.task).map_or(
                    step::PlanFacts {
                        units: a.units,
                        output_bytes_max: 0,
                    },
                    |j| step::PlanFacts {
                        units: j.units,
                        output_bytes_max: j.output_bytes_max,
                    },
                ))),
                _ => None,
            };
            self.loopback.push_back(Incoming {
                from: npub.to_owned(),
                body,
                pool: None,
                plan,
                keys: None,
            });
            return;
        }
        self.send(
            Addressee::Peer(npub.to_owned()),
            body,
            false,
            relays.to_vec(),
            expires_ms,
        );
    }

    fn send(
        &mut self,
        to: Addressee,
        body: Body,
        ephemeral: bool,
        relays: Vec<String>,
        expires_ms: Ms,
    ) {
        self.out.effects.push(Effect::Send(Box::new(Send {
            to,
            body,
            ephemeral,
            relays,
            expires_ms,
        })));
    }

    /// Turns everything touched into rows. What has ended stays in memory until [`Node::shed`]: the store does not know it yet.
    fn flush(&mut self) -> Step {
        let dirty = std::mem::take(&mut self.dirty);
        for task in dirty.jobs {
            if let Some(job) = self.jobs.get(&task) {
                self.out
                    .changes
                    .push(Change::Put(Row::Job(Box::new(job.clone()))));
            }
        }
        for key in dirty.work {
            if let Some(work) = self.work.get(&key) {
                self.out
                    .changes
                    .push(Change::Put(Row::Engagement(Box::new(work.clone()))));
            }
        }
        for npub in dirty.peers {
            if let Some(peer) = self.peers.get(&npub) {
                self.out
                    .changes
                    .push(Change::Put(Row::Peer(Box::new(peer.clone()))));
            }
        }
        for owner in dirty.marks {
            if let Some(mark) = self.marks.get(&owner) {
                self.out.changes.push(Change::Put(Row::Mark(mark.clone())));
            }
        }
        if !dirty.accounts.is_empty() {
            self.out
                .changes
                .push(Change::Put(Row::Account(self.ledger.account(ledger::SELF))));
        }
        for npub in dirty.accounts {
            self.out
                .changes
                .push(Change::Put(Row::Account(self.ledger.account(&npub))));
        }
        std::mem::take(&mut self.out)
    }

    // ---- what others may look at ---------------------------------------------------------------------------------

    /// The settings.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Live jobs.
    pub fn jobs(&self) -> &BTreeMap<TaskId, Job> {
        &self.jobs
    }

    /// Live engagements.
    pub fn work(&self) -> &BTreeMap<EngagementKey, Engagement> {
        &self.work
    }

    /// Known peers.
    pub fn peers(&self) -> &BTreeMap<Npub, Peer> {
        &self.peers
    }

    /// The book.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The owner's switches.
    pub fn owner(&self) -> &OwnerState {
        &self.owner
    }

    /// Whether a job's input is in memory (it is while the job may still be awarded).
    pub fn input(&self, owner: &str) -> Option<&Value> {
        self.inputs.get(owner)
    }

    /// Lets go of what has ended and of finished rows that an input made the node recall. To be called whenever the steps
    /// since the last call are durable.
    pub fn shed(&mut self) {
        self.jobs.retain(|_, job| job.is_live());
        self.work.retain(|_, work| work.is_live());
        self.keys.clear();
    }

    /// Whether every lease has come to rest after [`Input::Shutdown`].
    pub fn at_rest(&self) -> bool {
        !self
            .work
            .values()
            .any(|w| matches!(w.stage, Stage::Running | Stage::Stopping))
    }

    /// Whether nothing is open: no task, no lock, no work.
    pub fn quiescent(&self) -> bool {
        !self.jobs.values().any(Job::is_live)
            && !self.work.values().any(Engagement::is_live)
            && self.ledger.locks().next().is_none()
    }

    /// The engagements that a worker has.
    pub fn running(&self) -> Vec<EngagementKey> {
        self.work
            .values()
            .filter(|w| matches!(w.stage, Stage::Running | Stage::Stopping))
            .map(|w| w.key.clone())
            .collect()
    }
}

/// News that a worker process was lost, for every lease it held.
pub fn lost(keys: Vec<EngagementKey>, code: &str) -> Vec<Input> {
    keys.into_iter()
        .map(|key| Input::Labor {
            key,
            news: LaborNews::Lost {
                code: code.to_owned(),
            },
        })
        .collect()
}
