//! The decisions. Pure: the same inputs in the same order give the same bytes.
//!
//! [`Node::handle`] takes one input at a time and says what must become durable ([`Change`](step::Change)) and what may happen after
//! that ([`Effect`]). It reads no clock, draws no randomness, does no I/O and holds no float: time and chance are
//! parameters. Memory holds live jobs, live engagements, balances and peers; everything else is in the store, from where
//! the node room prefetches what an input names (`recall`).

mod accepting;
mod adopting;
mod answers;
mod arbiter;
mod asking;
mod auction;
mod bidding;
mod claims;
mod crowd;
pub mod engagement;
mod flow;
pub mod history;
mod hops;
pub mod instances;
pub mod job;
mod judging;
pub mod ledger;
mod mark;
mod meeting;
mod moving;
pub mod peer;
pub mod policy;
pub mod recovering;
mod settling;
pub mod step;
mod stopping;
mod waiting;
mod wakes;
mod working;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::Value;

use engagement::{Engagement, Stage};
use job::{Job, Phase};
use ledger::{Ledger, Side, State as Money};
use peer::Peer;
use policy::Policy;
use step::{
    Chance, Effect, EngagementKey, Incoming, Input, LaborNews, Ms, Npub, Row, Step, TaskId,
};

pub use arbiter::{OwnerState, Pause};
pub use asking::KEY_TTL_MS;
pub use judging::sample_size;
pub use mark::{Mark, Promise};
pub use recovering::Lineage;

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
    marks: mark::Marks,
    keys: BTreeMap<String, (TaskId, String, Ms)>,
    inputs: BTreeMap<String, Value>,
    /// Jobs in memory by what names them in a chain.
    links: BTreeMap<String, TaskId>,
    job_wakes: wakes::Wakes,
    work_wakes: wakes::Wakes,
    /// Who holds the hardware is to be decided anew, though no engagement has changed.
    unsettled: bool,
    /// With so many peers in memory room is made for a newcomer.
    crowded_at: usize,
    /// Inboxes are being read to their end: no timer is judged.
    draining: bool,
    /// At least one inbox relay is connected.
    online: bool,
    /// When the inboxes were last read to their end.
    caught_up_ms: Ms,
    stopping: bool,
    loopback: VecDeque<Incoming>,
    /// Offers declined because of a pause, by `<requester>/<task>`, each with the time from when it says nothing.
    held: BTreeMap<String, (Ms, Incoming)>,
    /// What a restored node still has to learn.
    recovery: Option<recovering::Recovery>,
    lineage: Lineage,
    /// The peer whose answer is being judged: it alone may be spoken to of a restored node's work.
    speaking: Option<Npub>,
    /// Results found in an answer that are to be sent once more.
    wanted: Vec<crate::wire::log::Named>,
    /// Pages that peers asked for: the minute, and how many in it.
    pages: BTreeMap<Npub, (Ms, u32)>,
    /// When a result was last sent once more, and how often so far.
    resent: BTreeMap<EngagementKey, (Ms, u32)>,
    instances: instances::Instances,
    /// When another instance was last answered, and which have been told that they were heard.
    greeted_ms: Ms,
    greeted: BTreeSet<String>,
    /// Tasks that a peer has told of in its answer to a restored node.
    told_tasks: BTreeMap<Npub, BTreeSet<u128>>,
    /// When a peer that was asked late had nothing to tell.
    told_nothing: BTreeMap<Npub, Ms>,
    /// When authors of outgrown keys were last told.
    told: BTreeMap<Npub, Ms>,
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
            marks: mark::Marks::default(),
            keys: BTreeMap::new(),
            inputs: BTreeMap::new(),
            links: BTreeMap::new(),
            job_wakes: wakes::Wakes::default(),
            work_wakes: wakes::Wakes::default(),
            unsettled: true,
            crowded_at: 0,
            draining: true,
            online: false,
            caught_up_ms: 0,
            stopping: false,
            loopback: VecDeque::new(),
            held: BTreeMap::new(),
            recovery: None,
            lineage: Lineage::default(),
            speaking: None,
            wanted: Vec::new(),
            pages: BTreeMap::new(),
            resent: BTreeMap::new(),
            instances: instances::Instances::default(),
            greeted_ms: 0,
            greeted: BTreeSet::new(),
            told_tasks: BTreeMap::new(),
            told_nothing: BTreeMap::new(),
            told: BTreeMap::new(),
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
                let task = job.task.clone();
                self.link(&task, &job.salt);
                self.jobs.insert(task.clone(), *job);
                self.rewake_job(&task);
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
                let key = work.key.clone();
                self.work.insert(key.clone(), *work);
                self.rewake_work(&key);
            }
            Row::Peer(peer) => {
                self.peers.entry(peer.npub.clone()).or_insert(*peer);
            }
            Row::Account(account) => self.ledger.load_account(account),
            Row::Owner(owner) => {
                let order = self.owner.order.max(owner.order);
                self.owner = OwnerState { order, ..owner };
            }
            Row::Mark(mark) => self.marks.recall(mark),
            Row::Recovery(recovery) => {
                self.recovery = Some(*recovery);
                self.rewake_all();
            }
            Row::Lineage(lineage) => self.lineage = lineage,
            Row::Instances(instances) => self.instances = instances,
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
            Input::SayHello => self.say_hello(now, None),
            Input::AcceptLosses { npub } => self.on_accept_losses(now, npub),
            Input::LogPage { to, page } => self.on_page(now, &to, *page),
            Input::ResultAgain {
                key,
                entry,
                output,
                units,
            } => self.on_result_again(&key, *entry, output, &units),
            Input::Tick => {}
            Input::Ask(ask) => self.on_ask(now, chance, *ask),
            Input::Cancel { task } => self.on_cancel_command(now, &task),
            Input::Pools(names) => self.policy.pools = names,
            Input::Offer(skill) => {
                self.policy.skills.retain(|known| known.id != skill.id);
                self.policy.skills.push(skill);
                self.out.effects.push(Effect::Readvertise);
            }
            Input::Confined { skill, level } => {
                (self.policy.permissions.skill_sandbox).insert(skill, level);
            }
            Input::Introduce(known) => self.on_introduce(now, *known),
            Input::Trust {
                npub,
                tier,
                limit_mc,
            } => self.on_trust(now, &npub, tier, limit_mc),
            Input::Forget { npub } => self.on_forget(&npub),
            Input::Pause { mode, for_ms } => self.on_pause(now, mode, for_ms),
            Input::Resume => self.on_resume(now),
            Input::Shutdown => self.on_shutdown(),
            Input::Message(incoming) => self.on_message(now, chance, *incoming),
            Input::Labor { key, news } => self.on_labor(now, chance, &key, news),
            Input::Checked {
                task,
                award_no,
                findings,
            } => self.on_checked(now, chance, &task, award_no, findings),
            Input::Moving {
                task,
                award_no,
                done_bytes,
                bytes,
                result,
            } => self.on_moving(now, &task, award_no, (done_bytes, bytes), result),
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
            self.close_canceled(now);
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
        self.recovery_timers(now);
        if self.draining || self.is_recovering() {
            return;
        }
        let due = self.due_jobs(now);
        for task in due {
            self.job_timers(now, &task);
            self.hear_ourselves(now, chance);
        }
        let due = self.due_work(now);
        for key in due {
            self.work_timers(now, &key);
            self.hear_ourselves(now, chance);
        }
        self.forget_marks(now);
    }

    fn on_started(&mut self, now: Ms) {
        self.draining = true;
        self.unsettled = true;
        let held: BTreeSet<_> = (self.work.values())
            .filter(|w| self.holds_work(w))
            .map(|w| w.key.clone())
            .collect();
        // What was being stopped when the node ended has stopped: go on with why.
        let stopping: Vec<_> = self
            .work
            .values()
            .filter(|w| w.stage == Stage::Stopping)
            .map(|w| w.key.clone())
            .collect();
        for key in stopping {
            match self.work.get_mut(&key) {
                Some(work) if held.contains(&key) => {
                    work.stage = Stage::Hibernating;
                    self.dirty.work.insert(key);
                }
                _ => self.stop_ended(now, &key),
            }
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
        self.recover(now);
        self.answer_orphans(now);
        self.effects_anew();
    }

    /// Everything derived is computed anew from state: checks, evidence, offers, reply inboxes.
    fn effects_anew(&mut self) {
        let checks: Vec<_> = self
            .jobs
            .values()
            .filter(|j| j.is_checking() && !self.holds_job(j))
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
            .filter(|w| w.is_live() && !self.holds_work(w))
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
            self.rewake_all();
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
        self.rewake_all();
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
        if self.is_recovering() {
            return;
        }
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
        self.unsettled = true;
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
        if self.links.len() > self.jobs.len() {
            self.links.retain(|_, task| self.jobs.contains_key(task));
        }
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
