//! A node that was restored from a backup: what it must not do before it has heard what it signed since, whom it asks for that,
//! and when it goes on. What it believes of an answer is decided in `adopting`.
//!
//! Until every counterparty has answered nothing is sent, taken or asked but the questions themselves, and nobody else's
//! messages are taken: relays and senders keep them. Then the node goes on; an account whose peer has not answered stays
//! frozen until it does, or until the owner takes it as it stands.

mod late;
mod pages;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Node;
use super::engagement::{Engagement, Stage, StopWhy};
use super::job::{AwardState, Job, Phase, Reason, Route, TaskState};
use super::ledger::{SELF, State as Money};
use super::peer::Tier;
use super::step::{Effect, Incoming, Ms, Npub, Refused, Row, TaskId};
use crate::wire::entry::{Act, Entry};
use crate::wire::log::{LogSince, NAMED_MAX, NAMED_ONLY, Named};
use crate::wire::market::Withdraw;
use crate::wire::message::{Body, News, Update, WorkResult};

/// A peer that has not answered is asked again after this long, then after twice as long each time.
const ASK_AGAIN_MS: Ms = 5_000;
const ASK_AGAIN_MAX_MS: Ms = 6 * 3_600_000;
/// A question is worth delivering this long after the next one is due.
const STALE_MS: Ms = 600_000;
/// Awards of a task that may have been made and forgotten.
const AWARDS_FORGOTTEN: u32 = 64;

/// Code of what a restored node refuses until it is reconciled.
pub const RECOVERING: &str = "recovering";
/// Code of what it refuses with a peer that has not answered.
pub const PEER_FROZEN: &str = "peer_frozen";
/// Code under which work ends of which a restored node knows nothing.
pub const LOST: &str = "lost_in_restore";

/// What a restored node still has to learn.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// When the backup was made, Unix milliseconds.
    pub since_ms: Ms,
    /// When it was restored.
    pub restored_ms: Ms,
    /// Whether everything waits; else only work with the peers below.
    pub open: bool,
    /// When the node goes on without those that have not answered; 0 before its first start.
    pub until_ms: Ms,
    /// Peers that have not answered to the end.
    pub peers: BTreeMap<Npub, Asked>,
    /// Live tasks of ours that their executor works on or has settled.
    pub confirmed: BTreeSet<TaskId>,
}

impl Recovery {
    /// Whether nothing is left to learn.
    pub fn is_over(&self) -> bool {
        !self.open && self.peers.is_empty()
    }

    /// Whether what concerns this peer waits for its answer.
    pub fn waits_for(&self, npub: &str) -> bool {
        self.peers.get(npub).is_some_and(|asked| !asked.late)
    }
}

/// How far a peer has answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Where its next page begins.
    pub cursor: String,
    /// When it was last asked.
    pub asked_ms: Ms,
    /// How often, for this page.
    pub tries: u32,
    /// Awards that it is still to be asked about by name.
    pub again: Vec<Named>,
    /// Results that were asked for once more, each once.
    #[serde(default)]
    pub named: BTreeSet<Named>,
    /// How many awards of its answer had something new.
    pub adopted: u32,
    /// Pages of it that told nothing new.
    #[serde(default)]
    pub idle: u32,
    /// It tells nothing new without end, and is not asked any more: its account stays frozen until the owner takes it as it stands.
    #[serde(default)]
    pub endless: bool,
    /// It was met after the backup, and has shown so only now: nothing waits for it.
    #[serde(default)]
    pub late: bool,
}

/// What remains of a restoration for good: nothing that this identity signs can meet what it signed before, and forgot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Entries are numbered above this.
    pub numbers_above: u32,
    /// All proof keys so far, hex, the oldest first.
    pub keys: Vec<String>,
    /// When the backup was made that was restored last, Unix milliseconds.
    #[serde(default)]
    pub since_ms: Ms,
    /// When it was restored.
    #[serde(default)]
    pub restored_ms: Ms,
    /// Whoever is asked since then, or has told something: what was learned, and has been dropped from the store, is not to be
    /// learned again.
    #[serde(default)]
    pub asked: BTreeSet<Npub>,
    /// How many of these were met after the backup.
    #[serde(default)]
    pub asked_late: u32,
}

impl Lineage {
    /// For a store that is restored now. The numbers follow the minutes since 2025, as many for each as an award may use up: a
    /// second restoration of one backup begins above what the first has written.
    pub fn restored(now: Ms, keys: Vec<String>) -> Self {
        const YEAR_2025_MIN: Ms = 28_928_160;
        const PER_MINUTE: u32 = 256;
        let minutes = (now / 60_000).saturating_sub(YEAR_2025_MIN);
        let minutes = u32::try_from(minutes).unwrap_or(u32::MAX);
        Self {
            numbers_above: minutes.saturating_mul(PER_MINUTE).min(u32::MAX / 2),
            keys,
            ..Self::default()
        }
    }
}

impl Node {
    /// What a restored node still has to learn, if it was restored and has to.
    pub fn recovery(&self) -> Option<&Recovery> {
        self.recovery.as_ref()
    }

    /// Whether this message is to be left where it is, neither taken nor acknowledged.
    pub fn holds_back(&self, incoming: &Incoming) -> bool {
        if incoming.body.is_log() {
            return false;
        }
        let work = matches!(
            incoming.body,
            Body::Award(_) | Body::Request(_) | Body::Offer(_) | Body::Bid(_)
        );
        self.holds(&incoming.from) || (work && self.alone().is_err())
    }

    /// Whether what is to be delivered to this peer must wait.
    pub fn holds(&self, npub: &str) -> bool {
        (self.recovery.as_ref()).is_some_and(|r| r.open || r.waits_for(npub))
    }

    /// Whether anything waits for anybody since a restoration.
    pub fn holds_any(&self) -> bool {
        (self.recovery.as_ref()).is_some_and(|r| r.open || r.peers.values().any(|a| !a.late))
    }

    pub(super) fn is_recovering(&self) -> bool {
        self.recovery.as_ref().is_some_and(|r| r.open)
    }

    pub(super) fn holds_job(&self, job: &Job) -> bool {
        let Some(recovery) = &self.recovery else {
            return false;
        };
        let undecided = |money: Money| money == Money::Locked || job.phase != Phase::Ended;
        recovery.open
            || (job.awards.iter()).any(|a| undecided(a.money) && recovery.waits_for(&a.executor))
            || matches!(&job.route, Route::Peer(npub) if recovery.waits_for(npub) && job.phase != Phase::Ended)
    }

    pub(super) fn holds_work(&self, work: &Engagement) -> bool {
        self.holds(&work.requester)
    }

    /// Why a command about this peer, or about none, must wait.
    ///
    /// # Errors
    /// `recovering`, `peer_frozen`.
    pub fn not_now(&self, npub: Option<&str>) -> Result<(), Refused> {
        if self.is_recovering() {
            let text = "this node was restored from a backup and is asking its peers what it has forgotten; `legion status` shows whom it waits for";
            return Err(Refused::new(RECOVERING, text));
        }
        if npub.is_some_and(|npub| self.holds(npub)) {
            let text = "this peer's account is frozen since the restoration: it has not yet said what it holds of us";
            return Err(Refused::new(PEER_FROZEN, text));
        }
        Ok(())
    }

    /// A restored node has started: whom it must ask is listed once.
    pub(super) fn recover(&mut self, now: Ms) {
        let patience = self.policy.restore_patience_ms;
        let Some(recovery) = self.recovery.as_mut() else {
            return;
        };
        if recovery.open && recovery.until_ms == 0 {
            recovery.until_ms = now.saturating_add(patience);
            self.list_counterparties();
            for job in self.jobs.values_mut().filter(|j| j.phase != Phase::Ended) {
                job.awards_above = job.next_no().saturating_add(AWARDS_FORGOTTEN);
                self.dirty.jobs.insert(job.task.clone());
            }
            let since_ms = self.recovery.as_ref().map_or(0, |r| r.since_ms);
            self.journal(
                "recovering",
                None,
                serde_json::json!({"since_ms": since_ms}),
            );
        }
        if self.is_recovering() && self.recovery.iter().all(|r| r.peers.is_empty()) {
            self.go_on(now);
        }
        // What was asked before a restart is in the outbox, or has its answer on the way.
        let unasked: Vec<Npub> = (self.recovery.iter().flat_map(|r| &r.peers))
            .filter(|(_, asked)| asked.asked_ms == 0)
            .map(|(npub, _)| npub.clone())
            .collect();
        for npub in unasked {
            self.ask_log(now, &npub);
        }
        self.keep_recovery();
    }

    /// Everyone with an account, with work or money open, or whom the owner has admitted.
    fn list_counterparties(&mut self) {
        let mut peers: BTreeMap<Npub, Asked> = BTreeMap::new();
        for account in self.ledger.accounts().filter(|a| a.npub != SELF) {
            peers.entry(account.npub.clone()).or_default();
        }
        for peer in self.peers.values().filter(|p| p.tier != Tier::Stranger) {
            peers.entry(peer.npub.clone()).or_default();
        }
        for job in self.jobs.values() {
            if let Route::Peer(npub) = &job.route {
                peers.entry(npub.clone()).or_default();
            }
            for award in &job.awards {
                let again = &mut peers.entry(award.executor.clone()).or_default().again;
                if award.state != AwardState::Delivered {
                    again.push(Named {
                        requester: self.policy.me.clone(),
                        task: job.task.clone(),
                        award_no: award.no,
                    });
                }
            }
        }
        for work in self.work.values() {
            let again = &mut peers.entry(work.requester.clone()).or_default().again;
            again.push(Named {
                requester: work.requester.clone(),
                task: work.task.clone(),
                award_no: work.award_no,
            });
        }
        peers.remove(&self.policy.me);
        self.lineage.asked = peers.keys().cloned().collect();
        self.lineage.asked_late = 0;
        self.put(Row::Lineage(self.lineage.clone()));
        if let Some(recovery) = self.recovery.as_mut() {
            recovery.peers = peers;
        }
    }

    fn ask_log(&mut self, now: Ms, npub: &str) {
        let binding = self.policy.binding.clone();
        let Some(recovery) = self.recovery.as_mut() else {
            return;
        };
        let Some(asked) = recovery.peers.get_mut(npub) else {
            return;
        };
        asked.asked_ms = now;
        let named = match asked.cursor.as_str() {
            NAMED_ONLY => NAMED_MAX,
            _ => 0,
        };
        let since = LogSince {
            since_ms: recovery.since_ms,
            restored_ms: recovery.restored_ms,
            cursor: asked.cursor.clone(),
            again: asked.again.iter().take(named).cloned().collect(),
            binding,
        };
        let until = now.saturating_add(pause_ms(asked)).saturating_add(STALE_MS);
        self.send_peer(npub, Body::Since(Box::new(since)), until);
    }

    fn keep_recovery(&mut self) {
        if let Some(recovery) = self.recovery.clone() {
            if recovery.is_over() {
                self.recovery = None;
            }
            self.put(Row::Recovery(Box::new(recovery)));
        }
    }

    /// When a restored node has something to do by itself.
    pub(super) fn recovery_wake_ms(&self) -> Option<Ms> {
        let recovery = self.recovery.as_ref()?;
        let asks = recovery.peers.values().filter(|a| !a.endless);
        let asks = asks.map(|a| a.asked_ms.saturating_add(pause_ms(a))).min();
        let until = recovery.open.then_some(recovery.until_ms);
        asks.into_iter().chain(until).filter(|at| *at > 0).min()
    }

    pub(super) fn recovery_timers(&mut self, now: Ms) {
        if self.recovery_wake_ms().is_none_or(|at| at > now) {
            return;
        }
        let Some(recovery) = self.recovery.as_mut() else {
            return;
        };
        let late = recovery.open && now >= recovery.until_ms;
        let mut due = Vec::new();
        for (npub, asked) in &mut recovery.peers {
            if !asked.endless && now >= asked.asked_ms.saturating_add(pause_ms(asked)) {
                asked.tries = asked.tries.saturating_add(1);
                due.push(npub.clone());
            }
        }
        self.leave_silent();
        for npub in due {
            self.ask_log(now, &npub);
        }
        if late {
            self.go_on(now);
        }
        self.keep_recovery();
    }

    /// A peer has told everything.
    fn reconciled(&mut self, now: Ms, from: &str) {
        self.told_tasks.remove(from);
        let Some(recovery) = self.recovery.as_mut() else {
            return;
        };
        let asked = recovery.peers.remove(from).unwrap_or_default();
        let (adopted, late) = (asked.adopted, asked.late);
        let last = recovery.peers.values().all(|asked| asked.endless);
        let open = recovery.open;
        let body = serde_json::json!({"npub": from, "adopted": adopted});
        self.journal("reconciled", None, body);
        if late && adopted == 0 {
            self.had_nothing(now, from);
        }
        if open && last {
            self.go_on(now);
        } else if !open && !late {
            self.release(now, Some(from));
        }
    }

    /// The node works again, without those that have not answered.
    fn go_on(&mut self, now: Ms) {
        let Some(recovery) = self.recovery.as_mut() else {
            return;
        };
        recovery.open = false;
        let frozen: Vec<Npub> = recovery.peers.keys().cloned().collect();
        for npub in &frozen {
            self.journal("frozen", None, serde_json::json!({"npub": npub}));
        }
        self.journal(
            "recovered",
            None,
            serde_json::json!({"frozen": frozen.len()}),
        );
        self.release(now, None);
    }

    /// The owner takes what is there.
    pub(super) fn on_accept_losses(&mut self, now: Ms, npub: Option<Npub>) {
        let nothing = || Refused::new("not_recovering", "nothing waits for a restoration here");
        let frozen =
            |npub: &Npub| (self.recovery.as_ref()).is_some_and(|r| !r.open && r.waits_for(npub));
        let answer = match npub {
            None if self.is_recovering() => {
                self.go_on(now);
                Ok(())
            }
            None => Err(nothing()),
            Some(npub) if frozen(&npub) => {
                self.journal("losses_accepted", None, serde_json::json!({"npub": npub}));
                if let Some(recovery) = self.recovery.as_mut() {
                    recovery.peers.remove(&npub);
                }
                self.release(now, Some(&npub));
                Ok(())
            }
            Some(_) if self.is_recovering() => self.not_now(None),
            Some(_) => Err(nothing()),
        };
        self.keep_recovery();
        self.out.effects.push(Effect::Done(answer));
    }

    /// Work with this peer, or with all that have answered, goes on from where it is known to be.
    fn release(&mut self, now: Ms, npub: Option<&str>) {
        let concerned = |job: &Job| {
            let with = |npub: &str| {
                job.awards.iter().any(|a| a.executor == npub)
                    || matches!(&job.route, Route::Peer(peer) if peer == npub)
            };
            npub.is_none_or(with)
        };
        let lost: Vec<TaskId> = (self.jobs.values())
            .filter(|job| concerned(job) && !self.holds_job(job) && self.is_lost(job))
            .map(|job| job.task.clone())
            .collect();
        for task in lost {
            self.end_lost(now, &task);
        }
        let ending: Vec<_> = (self.work.values())
            .filter(|w| w.stage == Stage::Hibernating && !self.holds_work(w))
            .filter(|w| !matches!(w.stop, None | Some(StopWhy::Owner)))
            .map(|w| w.key.clone())
            .collect();
        for key in ending {
            self.wound_up(now, &key);
        }
        // A result that never left, or never arrived.
        let finished = (self.work.values())
            .filter(|w| w.stage == Stage::Finished && w.proof.is_some() && !self.holds_work(w))
            .filter(|w| npub.is_none_or(|npub| npub == w.requester))
            .map(|w| Effect::ResultAgain(w.key.clone()));
        let finished: Vec<_> = finished.collect();
        self.out.effects.extend(finished);
        self.unsettled = true;
        self.rewake_all();
        self.effects_anew();
        // What was left on the relays meanwhile is read now, before any timer is judged.
        self.draining = true;
        self.out.effects.push(Effect::Released);
        self.out.effects.push(Effect::Drain);
    }

    /// Whether nobody is known to have the task. It may have been given to somebody whom the backup does not know: giving it
    /// out once more could have it done, and paid, twice.
    fn is_lost(&self, job: &Job) -> bool {
        let confirmed = (self.recovery.as_ref()).is_some_and(|r| r.confirmed.contains(&job.task));
        job.route != Route::Own
            && !confirmed
            && matches!(job.phase, Phase::Placing | Phase::Awarded | Phase::Working)
    }

    fn end_lost(&mut self, now: Ms, task: &str) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let below_award_no = job.next_no();
        let mut told: Vec<Npub> = Vec::new();
        for award in &mut job.awards {
            if matches!(award.state, AwardState::Sent | AwardState::Accepted) {
                award.state = AwardState::Superseded;
                told.push(award.executor.clone());
            }
        }
        for executor in told {
            let withdraw = Withdraw {
                task: task.to_owned(),
                below_award_no,
            };
            let until = now.saturating_add(self.policy.message_ttl_ms);
            self.send_peer(&executor, Body::Withdraw(withdraw), until);
        }
        let text = "the node was restored from a backup, and no peer knows what became of this task: ask again if its result is still wanted";
        self.end(now, task, TaskState::Failed, Reason::new(LOST, text));
    }

    /// A stored result goes out again, as it was signed.
    pub(super) fn on_result_again(
        &mut self,
        key: &str,
        entry: Entry,
        output: serde_json::Value,
        units: &[u8],
    ) {
        use base64::Engine as _;
        let Some(work) = self.work.get(key).filter(|w| w.is_live()) else {
            return;
        };
        let Some(proof) = work.proof.clone() else {
            return;
        };
        let stated = Act::Completed {
            award_no: work.award_no,
            proof: proof.hash().unwrap_or_default(),
        };
        if entry.what != stated {
            return;
        }
        let result = WorkResult {
            output,
            units: base64::engine::general_purpose::STANDARD.encode(units),
            detached: None,
            proof,
            entry,
        };
        let update = Update {
            task: work.task.clone(),
            award_no: work.award_no,
            news: News::Completed(Box::new(result)),
        };
        let (requester, settle_by_ms) = (work.requester.clone(), work.settle_by_ms);
        let until = settle_by_ms.saturating_add(self.policy.message_ttl_ms);
        self.send_peer(&requester, Body::Update(Box::new(update)), until);
    }
}

fn pause_ms(asked: &Asked) -> Ms {
    (ASK_AGAIN_MS << asked.tries.min(12)).min(ASK_AGAIN_MAX_MS)
}
