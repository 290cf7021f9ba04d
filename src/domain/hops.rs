//! Delegation across hops: a skill of ours gives a part of its job to somebody else. While it waits its state is stored and no
//! lease is held; the part is a task of ours like any other, made in the very step that stores the state, and its end, whatever
//! it is, is what the skill goes on with. Nothing here knows how the part is placed, checked or paid.
//!
//! Chains are bounded by what each award says of those above it ([`market::link`]): a node that finds a job of its own among
//! them refuses (`delegation_cycle`), and so does one that finds too many (`delegation_too_deep`).

use super::Node;
use super::engagement::{Call, CallEnd, Stage, StopWhy};
use super::job::{AwardRow, Job, Phase, Reason, Route, TaskState};
use super::ledger::State as Money;
use super::step::{Ask, Chance, Change, EngagementKey, Ms, Refused, TaskId, Wish};
use crate::wire::market;
use crate::wire::proof::Hop;

/// Code of a refusal by somebody who waits for the very job that this one is a part of.
pub(super) const CYCLE: &str = "delegation_cycle";
/// The part of the remaining time that is kept for going on after the answer: one in so many, and not more than a minute.
const RESERVE_SHARE: Ms = 10;
const RESERVE_MAX_MS: Ms = 60_000;

/// Jobs of ours with which one offer is compared: each costs a hash, and whoever floods a pool with offers pays less for one of
/// them. In a node that has more jobs it is the award, whose chain is not veiled, that shows the other cycles.
const VEILS_MAX: usize = 128;

/// Who wants a task of ours, if it is not the owner.
#[derive(Default)]
pub(super) struct Origin {
    /// The work that it is a part of.
    pub(super) parent: Option<EngagementKey>,
    /// The jobs that it is a part of.
    pub(super) via: Vec<String>,
}

impl Node {
    /// Whether a job with this chain above it may be taken here.
    pub(super) fn admits_chain(&self, via: &[String]) -> Result<(), Refused> {
        self.admits_depth(via.len())?;
        let known = |link: &String| {
            self.links
                .get(link)
                .is_some_and(|task| self.awaits_job(task))
        };
        if via.iter().any(known) {
            return Err(circular());
        }
        Ok(())
    }

    /// The same for an offer of `from`, in which the links are veiled ([`market::veil`]).
    pub(super) fn admits_veiled(
        &self,
        from: &str,
        task: &str,
        via: &[String],
    ) -> Result<(), Refused> {
        self.admits_depth(via.len())?;
        if via.is_empty() {
            return Ok(());
        }
        let known = |link: &String| {
            let veil = market::veil(link, from, task);
            veil.is_ok_and(|veil| via.contains(&veil))
        };
        let live = self.links.iter().filter(|(_, task)| self.awaits_job(task));
        if live.take(VEILS_MAX).any(|(link, _)| known(link)) {
            return Err(circular());
        }
        Ok(())
    }

    fn admits_depth(&self, links: usize) -> Result<(), Refused> {
        if links > self.policy.delegation_hops_max as usize {
            return Err(self.too_deep());
        }
        Ok(())
    }

    fn awaits_job(&self, task: &str) -> bool {
        (self.jobs.get(task)).is_some_and(|job| job.phase != Phase::Ended)
    }

    /// Takes a job of ours into the index of links.
    pub(super) fn link(&mut self, task: &str, salt: &str) {
        if let Ok(link) = market::link(salt) {
            self.links.insert(link, task.to_owned());
        }
    }

    fn too_deep(&self) -> Refused {
        Refused::new(
            "delegation_too_deep",
            format!(
                "a job may be handed on {} times here (limits.delegation_hops)",
                self.policy.delegation_hops_max
            ),
        )
    }

    /// The skill wants a part done by somebody else: its run has ended, and `bytes` is its state.
    pub(super) fn on_delegated(
        &mut self,
        now: Ms,
        chance: &mut Chance,
        key: &EngagementKey,
        wish: Wish,
        units_done: u32,
        bytes: Vec<u8>,
    ) {
        let most = self.policy.delegation_calls_max;
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        let (task, owner) = (work.task.clone(), work.owner());
        let next = work.calls.len() as u32 + 1;
        let for_good = !matches!(work.stop, None | Some(StopWhy::Owner));
        work.checkpoint_units = units_done;
        work.units_done = units_done.max(work.units_done);
        work.stage = Stage::Hibernating;
        self.dirty.work.insert(key.clone());
        if for_good {
            self.keep_checkpoint(key, &task, owner, units_done, bytes);
            return self.wound_up(now, key);
        }
        if wish.call != next {
            let text = format!("it named call {} where {next} is the next", wish.call);
            return self.fail_work(now, key, "delegation_invalid", &text);
        }
        if next > most {
            let text = format!("a job may delegate {most} parts here (limits.delegation_calls)");
            return self.fail_work(now, key, "delegation_limit", &text);
        }
        if let Some(work) = self.work.get_mut(key) {
            // What the owner wanted the hardware for is served by now.
            work.stop = None;
            work.stage = Stage::Waiting;
            work.calls.push(Call {
                call: next,
                task: String::new(),
                skill: wish.skill.clone(),
                end: None,
            });
        }
        self.keep_checkpoint(key, &task, owner, units_done, bytes);
        match self.enter_hop(now, chance, key, wish) {
            Ok(hop) => {
                if let Some(call) = self.work.get_mut(key).and_then(|w| w.calls.last_mut()) {
                    call.task.clone_from(&hop);
                }
                self.journal(
                    "delegated",
                    Some(&task),
                    serde_json::json!({"key": key, "call": next, "hop": hop}),
                );
                // The requester hears what is waited for.
                self.keep_alive(now, key);
                self.place(now, &hop);
            }
            Err(refused) => {
                let end = CallEnd::Failed {
                    code: refused.code,
                    message: refused.message,
                };
                self.answer(now, key, end);
            }
        }
        self.changed(&task);
    }

    /// Makes the part a task of ours; nobody hears of it yet.
    fn enter_hop(
        &mut self,
        now: Ms,
        chance: &mut Chance,
        key: &EngagementKey,
        wish: Wish,
    ) -> Result<TaskId, Refused> {
        let (input, plan) = wish.input?;
        let gone = || Refused::new("engagement_unknown", "the work is not open any more");
        let work = self.work.get(key).ok_or_else(gone)?;
        if work.via.len() > self.policy.delegation_hops_max as usize {
            return Err(self.too_deep());
        }
        let route = match wish.peer {
            Some(npub) if npub == self.policy.me => {
                let text = "a part that is done here is not delegated: the skill does it itself";
                return Err(Refused::new(CYCLE, text));
            }
            Some(npub) if npub == work.requester => {
                let text = "whoever asked for this job does no part of it";
                return Err(Refused::new(CYCLE, text));
            }
            Some(npub) => Route::Peer(npub),
            None => match self.policy.hop_pool.as_ref().or(self.policy.pools.first()) {
                Some(pool) => Route::Pool(pool.clone()),
                None => return Err(Refused::new("pool_missing", "this node is in no pool")),
            },
        };
        let spent_mc: u64 = work.hops().iter().map(|hop| hop.cost_mc).sum();
        let left_ms = work.result_by_ms.saturating_sub(now);
        let reserve_ms = (left_ms / RESERVE_SHARE)
            .min(RESERVE_MAX_MS)
            .max(self.policy.skew_ms.saturating_mul(2));
        let ask = Ask {
            skill: wish.skill,
            input,
            plan,
            route,
            max_price_mc: Some(work.hops_mc.saturating_sub(spent_mc)),
            deadline_ms: left_ms.saturating_sub(reserve_ms),
            key: None,
            fingerprint: String::new(),
            critical: work.critical,
        };
        let origin = Origin {
            parent: Some(key.clone()),
            via: work.via.clone(),
        };
        if ask.deadline_ms == 0 {
            let text = "too little time is left for a part to be done by somebody else";
            return Err(Refused::new("deadline_too_short", text));
        }
        self.enter(now, chance, ask, origin)
    }

    /// A task of ours has ended: if work of ours waits for it, it goes on.
    pub(super) fn hop_ended(&mut self, now: Ms, task: &str) {
        let Some(job) = self.jobs.get(task) else {
            return;
        };
        let Some(key) = job.parent.clone() else {
            return;
        };
        let awaited = |w: &&super::engagement::Engagement| w.awaits().is_some_and(|t| t == task);
        let Some(call) = (self.work.get(&key).filter(awaited)).map(|w| w.calls.len() as u32) else {
            return;
        };
        let end = match (job.state, &job.outcome) {
            (TaskState::Completed, Some(outcome)) => CallEnd::Answered {
                executor: outcome.executor.clone(),
                cost_mc: job.cost_mc,
                proof: outcome.proof.hash().unwrap_or_default(),
            },
            _ => why_not(job),
        };
        if matches!(end, CallEnd::Answered { .. }) {
            self.out.changes.push(Change::CopyAnswer {
                task: task.to_owned(),
                key: key.clone(),
                call,
            });
        }
        self.answer(now, &key, end);
    }

    /// The skill goes on with this answer as soon as there is a lease for it.
    fn answer(&mut self, now: Ms, key: &EngagementKey, end: CallEnd) {
        let Some(work) = self.work.get(key) else {
            return;
        };
        let withheld = self.owner.paused.is_some() && !self.is_local(&work.requester);
        let (task, call) = (work.task.clone(), work.calls.len());
        let body = match &end {
            CallEnd::Answered {
                executor, cost_mc, ..
            } => {
                serde_json::json!({"key": key, "call": call, "executor": executor, "cost_mc": cost_mc})
            }
            CallEnd::Failed { code, message } => {
                serde_json::json!({"key": key, "call": call, "code": code, "message": message})
            }
        };
        self.journal("answered", Some(&task), body);
        if let Some(work) = self.work.get_mut(key) {
            if let Some(call) = work.calls.last_mut() {
                call.end = Some(end);
            }
            work.stage = if withheld {
                Stage::Hibernating
            } else {
                Stage::Queued
            };
            work.keepalive_at_ms = now.saturating_add(work.lease_ttl_ms / 3);
        }
        self.dirty.work.insert(key.clone());
        if withheld {
            self.tell_paused(key);
        }
        self.changed(&task);
    }

    /// Work that is over waits for nothing: what it has delegated is canceled.
    pub(super) fn abandon_hop(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        let awaited = work.awaits().cloned();
        let Some(call) = work.calls.last_mut().filter(|c| c.end.is_none()) else {
            return;
        };
        call.end = Some(CallEnd::Failed {
            code: "canceled".into(),
            message: "the work that it was a part of is over".into(),
        });
        self.dirty.work.insert(key.clone());
        let open = |task: &TaskId| {
            let job = self.jobs.get(task);
            job.is_some_and(|j| j.phase != Phase::Ended)
        };
        if let Some(task) = awaited.filter(open) {
            self.cancel_awards(now, &task);
            let reason = Reason::new("canceled", "the work that it was a part of is over");
            self.end(now, &task, TaskState::Canceled, reason);
        }
    }

    /// Whether the money for the last part is not decided yet.
    pub(super) fn part_pends(&self, key: &EngagementKey) -> bool {
        let last = self.work.get(key).and_then(|work| work.calls.last());
        let job = last.and_then(|call| self.jobs.get(&call.task));
        job.is_some_and(Job::is_live)
    }

    /// The parts that were paid for, whether or not their results were still wanted. One that was stopped has no proof: it is named
    /// by the hash of its executor's signed word.
    pub(super) fn parts_paid(&self, key: &EngagementKey) -> Vec<Hop> {
        let Some(work) = self.work.get(key) else {
            return Vec::new();
        };
        let mut hops = work.hops();
        let last = work.calls.last();
        let unwanted = last.filter(|call| matches!(call.end, Some(CallEnd::Failed { .. })));
        hops.extend(unwanted.and_then(|call| paid_for(self.jobs.get(&call.task)?)));
        hops
    }

    /// After a start: work that waits for a task that is not there any more, which only a damaged store explains, is told so.
    pub(super) fn answer_orphans(&mut self, now: Ms) {
        let open = |task: &TaskId| {
            let job = self.jobs.get(task);
            job.is_some_and(|j| j.phase != Phase::Ended)
        };
        let orphans: Vec<_> = (self.work.values())
            .filter(|w| w.awaits().is_some_and(|task| !open(task)))
            .map(|w| w.key.clone())
            .collect();
        for key in orphans {
            let end = CallEnd::Failed {
                code: "delegation_lost".into(),
                message: "the task of this part is not in the store".into(),
            };
            self.answer(now, &key, end);
        }
    }
}

fn circular() -> Refused {
    Refused::new(
        CYCLE,
        "this job is a part of one that this node itself waits for",
    )
}

/// What a part that has ended was paid, and to whom; none if nothing was.
fn paid_for(job: &Job) -> Option<Hop> {
    let paid = |a: &&AwardRow| a.money == Money::Committed && job.cost_mc > 0;
    let award = job.awards.iter().find(paid)?;
    let outcome = (job.outcome.as_ref()).filter(|o| o.award_no == award.no && !o.late);
    let proof = match outcome {
        Some(outcome) => outcome.proof.hash().ok()?,
        None => job.heads.by_author.get(&award.executor)?.hash.clone(),
    };
    Some(Hop {
        executor: award.executor.clone(),
        skill: job.skill.clone(),
        cost_mc: job.cost_mc,
        proof,
    })
}

/// Why a task of ours ended without a result, in words for the skill that asked for it.
fn why_not(job: &Job) -> CallEnd {
    let reason = job.reason.clone();
    let reason = reason.unwrap_or_else(|| Reason::new("failed", "it ended without a result"));
    let mut codes: Vec<_> = job.refusals.values().map(|r| r.code.as_str()).collect();
    codes.sort_unstable();
    codes.dedup();
    let message = match (reason.code.as_str(), codes.as_slice()) {
        ("no_provider", [_, ..]) => format!("{} ({})", reason.text, codes.join(", ")),
        _ => reason.text,
    };
    CallEnd::Failed {
        code: reason.code,
        message: message.chars().take(500).collect(),
    }
}
