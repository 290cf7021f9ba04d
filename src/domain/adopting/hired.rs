//! An award of ours, as the executor holds it: whether we have paid, have to pay, wait, or give it up.

use super::{Facts, unsigned};
use crate::domain::Node;
use crate::domain::job::{
    AwardRow, AwardState, Heads, Job, Marks, Phase, Reason, Route, TaskState,
};
use crate::domain::judging::claim_fault;
use crate::domain::ledger::{Event, State as Money};
use crate::domain::recovering::LOST;
use crate::domain::step::{Findings, Ms, Refused};
use crate::wire::log::{AwardLog, Named};
use crate::wire::market::Terms;
use crate::wire::proof::Proof;

impl Node {
    pub(super) fn adopt_hired(
        &mut self,
        now: Ms,
        from: &str,
        log: &AwardLog,
        facts: &Facts,
    ) -> Result<bool, Refused> {
        let (task, no) = (log.award.task.as_str(), log.award.award_no);
        let signed = facts.awarded.as_ref().filter(|(_, who, _)| who == from);
        let (signed_ms, _, terms_hash) = signed.ok_or_else(unsigned)?;
        let known = self.jobs.contains_key(task);
        if !known && self.was_backed_up(*signed_ms) {
            return Ok(false);
        }
        let fits = |terms: &&Terms| {
            terms.task == task
                && terms.award_no == no
                && terms.hash().is_ok_and(|hash| hash == *terms_hash)
        };
        let terms = log.terms.as_ref().filter(fits);
        if !known {
            let mut job = forgotten_job(task, terms, *signed_ms, now);
            job.route = Route::Peer(from.to_owned());
            self.jobs.insert(task.to_owned(), job);
        }
        let Some(job) = self.jobs.get_mut(task) else {
            return Ok(false);
        };
        let settled = |a: &AwardRow| matches!(a.money, Money::Committed | Money::RolledBack);
        if (job.awards.iter()).any(|a| a.no == no && (settled(a) || a.executor != from)) {
            return Ok(false);
        }
        if !job.awards.iter().any(|a| a.no == no) {
            let row = forgotten_award(from, log, facts, terms, terms_hash, now);
            job.awards.push(row);
            job.awards.sort_by_key(|a| a.no);
        }
        let mut heads = std::mem::take(&mut job.heads);
        let honest = self.admit_all(now, task, facts, &mut heads);
        if let Some(job) = self.jobs.get_mut(task) {
            job.heads = heads;
        }
        self.dirty.jobs.insert(task.to_owned());
        if honest {
            self.judge_hired(now, from, log, facts, (known, terms));
        }
        self.journal(
            "adopted",
            Some(task),
            serde_json::json!({"award_no": no, "executor": from, "known": known}),
        );
        self.changed(task);
        Ok(true)
    }

    fn judge_hired(
        &mut self,
        now: Ms,
        from: &str,
        log: &AwardLog,
        facts: &Facts,
        (known, terms): (bool, Option<&Terms>),
    ) {
        let (task, no) = (log.award.task.as_str(), log.award.award_no);
        if let Some((cost_mc, proof, quality_bp)) = &facts.paid {
            self.lock_forgotten(now, task, no);
            self.move_award_money(now, task, no, Event::Receipt, *cost_mc);
            self.end_paid(now, task, no, *cost_mc, (proof.is_empty(), *quality_bp));
        } else if let Some((code, _)) = &facts.refused {
            self.give_up_award(now, task, no, Event::Refusal);
            if let Some(job) = self.jobs.get_mut(task) {
                let reason = Reason::new(code, "the result was refused before the restoration");
                job.refusals.insert(from.to_owned(), reason);
            }
        } else if facts.gone.is_some() {
            self.give_up_award(now, task, no, Event::Decline);
        } else if let Some((useful, hops)) = &facts.stopped {
            self.lock_forgotten(now, task, no);
            if let Some(at_ms) = facts.canceled {
                self.cancel_known(now, task, at_ms);
            }
            self.name_price(task, no, log, facts);
            self.on_stopped(now, task, no, *useful, hops);
        } else if facts.completed.is_some() && !known {
            self.lock_forgotten(now, task, no);
            self.judge_forgotten(now, from, log, facts, terms);
        } else if known {
            self.lock_forgotten(now, task, no);
            self.confirm_award(task, no, facts);
        } else {
            self.lock_forgotten(now, task, no);
            if facts.canceled.is_none() {
                self.cancel_awards(now, task);
            }
        }
        self.close_forgotten(now, task);
    }

    /// Reserves what the award may cost, if that was not in the backup.
    fn lock_forgotten(&mut self, now: Ms, task: &str, no: u32) {
        let award = (self.jobs.get(task)).and_then(|j| j.awards.iter().find(|a| a.no == no));
        if let Some(cap_mc) = award.filter(|a| a.money == Money::None).map(|a| a.cap_mc) {
            self.move_award_money(now, task, no, Event::Lock, cap_mc);
        }
    }

    fn give_up_award(&mut self, now: Ms, task: &str, no: u32, event: Event) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let current = job.current().is_some_and(|a| a.no == no);
        if let Some(award) = job.award_mut(no) {
            award.state = if event == Event::Refusal {
                AwardState::Delivered
            } else {
                AwardState::Declined
            };
        }
        if current && matches!(job.phase, Phase::Awarded | Phase::Working) {
            // Who has it now, if anybody, is for the others to say.
            job.phase = Phase::Placing;
        }
        let locked = job
            .awards
            .iter()
            .any(|a| a.no == no && a.money == Money::Locked);
        if locked {
            self.move_award_money(now, task, no, event, 0);
        }
    }

    fn end_paid(
        &mut self,
        now: Ms,
        task: &str,
        no: u32,
        cost_mc: u64,
        (units_only, quality_bp): (bool, Option<u32>),
    ) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        job.cost_mc = cost_mc;
        job.outcome = job.outcome.take().filter(|o| o.award_no == no);
        if let Some(outcome) = job.outcome.as_mut() {
            outcome.quality_bp = quality_bp;
            outcome.findings.get_or_insert_with(|| Findings {
                assurance: "none".into(),
                input: true,
                output: true,
                schema: None,
                units_checked: 0,
                fault: None,
            });
        }
        let executor = (job.award_mut(no)).map(|award| {
            award.state = AwardState::Delivered;
            award.executor.clone()
        });
        let ended = job.phase == Phase::Ended && job.state != TaskState::Submitted;
        if let Some(executor) = executor.filter(|_| !units_only) {
            self.edit_peer(&executor, |p| p.completed = p.completed.saturating_add(1));
        }
        if units_only {
            self.cancel_known(now, task, now);
        } else if !ended {
            let text = "it was paid before the restoration; its result is not in the backup";
            self.end(
                now,
                task,
                TaskState::Completed,
                Reason::new("completed", text),
            );
        }
    }

    /// It was canceled then, whatever the backup says.
    fn cancel_known(&mut self, now: Ms, task: &str, at_ms: Ms) {
        let open = |j: &&Job| j.phase != Phase::Ended || j.state == TaskState::Submitted;
        if self.jobs.get(task).filter(open).is_some() {
            let reason = Reason::new("canceled", "canceled before the restoration");
            self.end(now, task, TaskState::Canceled, reason);
            if let Some(job) = self.jobs.get_mut(task) {
                job.marks.ended_ms = at_ms.min(now);
            }
        }
    }

    /// The backup may hold the award without the acceptance that named its price.
    fn name_price(&mut self, task: &str, no: u32, log: &AwardLog, facts: &Facts) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let units = job.units;
        let open = |a: &&mut AwardRow| a.unit_price_mc.is_none();
        if let Some(award) = job.award_mut(no).filter(open)
            && let Some((price_mc, hops_mc)) = accepted_for(units, log, facts)
        {
            (award.unit_price_mc, award.hops_mc) = (Some(price_mc), Some(hops_mc));
        }
    }

    /// A finished result of which neither input nor output is here: nothing can be recomputed. What the proof claims is counted
    /// against the terms that we signed; whoever is believed without verification is paid, for anybody else the lock stays.
    fn judge_forgotten(
        &mut self,
        now: Ms,
        from: &str,
        log: &AwardLog,
        facts: &Facts,
        terms: Option<&Terms>,
    ) {
        let (task, no) = (log.award.task.as_str(), log.award.award_no);
        let tier = self.peer(from).tier;
        let fits = |proof: &&Proof| {
            let named = |terms: &Terms| {
                let price = terms.unit_price_mc;
                let cap = terms.max_price_mc;
                let hops = price.map_or(cap, |_| terms.hops_mc);
                proof.commitment == terms.commitment
                    && claim_fault(terms.units, terms.result_by_ms, price, cap, hops, proof)
                        .is_none()
            };
            proof.task == task
                && proof.award_no == no
                && proof.executor == from
                && proof.requester == self.policy.me
                && self.peers.get(from).is_some_and(|p| p.owns(&proof.key))
                && proof.hash().ok() == facts.completed
                && terms.is_some_and(named)
        };
        match log.proof.as_ref().filter(fits) {
            Some(proof) if self.policy.accepts_unverified(tier) => {
                self.pay(now, task, no, from, &proof.clone(), None);
            }
            _ => {
                let text = "a result came before the restoration, and nothing is left to verify it with: the money stays locked until it is settled or `settle_by` passes";
                self.end(now, task, TaskState::Failed, Reason::new(LOST, text));
            }
        }
    }

    /// The executor has the award, or a result that will come again.
    fn confirm_award(&mut self, task: &str, no: u32, facts: &Facts) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let accepted = facts.accepted.is_some();
        let Some(award) = job.award_mut(no) else {
            return;
        };
        if accepted && award.state == AwardState::Sent {
            award.state = AwardState::Accepted;
        }
        let live = matches!(award.state, AwardState::Sent | AwardState::Accepted);
        let current = job.current().is_some_and(|a| a.no == no);
        if !live || !current || job.phase == Phase::Ended {
            return;
        }
        job.window_ends_ms = None;
        job.again_at_ms = None;
        if job.phase != Phase::Checking {
            (job.phase, job.state) = if accepted {
                (Phase::Working, TaskState::Working)
            } else {
                (Phase::Awarded, TaskState::Submitted)
            };
            let text = "the executor still has it after the restoration";
            job.reason = Some(Reason::new("working", text));
        }
        if facts.completed.is_some() {
            self.wanted.push(Named {
                requester: self.policy.me.clone(),
                task: task.to_owned(),
                award_no: no,
            });
        }
        if let Some(recovery) = self.recovery.as_mut() {
            recovery.confirmed.insert(task.to_owned());
        }
    }

    /// A task that the backup does not know has ended, one way or the other.
    fn close_forgotten(&mut self, now: Ms, task: &str) {
        let Some(job) = self.jobs.get(task) else {
            return;
        };
        if job.phase == Phase::Ended && job.state == TaskState::Submitted {
            let text = "the backup does not know this task: the node has given it up";
            self.end(now, task, TaskState::Canceled, Reason::new(LOST, text));
        }
    }
}

/// A task of ours that the backup does not know: over, whatever else is learned of it.
fn forgotten_job(task: &str, terms: Option<&Terms>, asked_ms: Ms, now: Ms) -> Job {
    Job {
        task: task.to_owned(),
        context: String::new(),
        skill: terms.map(|t| t.skill.clone()).unwrap_or_default(),
        key: None,
        critical: false,
        units: terms.map_or(0, |t| t.units),
        output_bytes_max: 0,
        model: None,
        salt: String::new(),
        input_bytes: 0,
        commitment: terms.map(|t| t.commitment.clone()).unwrap_or_default(),
        max_price_mc: terms.map_or(0, |t| t.max_price_mc),
        deadline_ms: terms.map_or(now, |t| t.result_by_ms),
        route: Route::Own,
        phase: Phase::Ended,
        state: TaskState::Submitted,
        reason: None,
        awards: Vec::new(),
        awards_above: 0,
        round: 0,
        round_ms: 0,
        offer_expires_ms: 0,
        window_ends_ms: None,
        bids: Vec::new(),
        refusals: Default::default(),
        again_at_ms: None,
        outcome: None,
        spares: Vec::new(),
        cost_mc: 0,
        parent: None,
        via: Vec::new(),
        heads: Heads::default(),
        marks: Marks {
            asked_ms,
            ended_ms: now,
            ..Marks::default()
        },
    }
}

/// For which price of a unit an award that left it open was accepted, and for how much that is delegated. The acceptance signs
/// their sum alone: the price is the executor's word within it, and the rest is what parts may cost.
fn accepted_for(units: u32, log: &AwardLog, facts: &Facts) -> Option<(u64, u64)> {
    let (_, total_mc) = facts.accepted?;
    let for_units = u64::from(units).checked_mul(log.unit_price_mc)?;
    Some((log.unit_price_mc, total_mc.checked_sub(for_units)?))
}

fn forgotten_award(
    from: &str,
    log: &AwardLog,
    facts: &Facts,
    terms: Option<&Terms>,
    terms_hash: &str,
    now: Ms,
) -> AwardRow {
    let total_mc = facts.accepted.map(|(_, total)| total);
    let paid_mc = facts.paid.as_ref().map(|(cost, ..)| *cost);
    // Without the terms only what we have signed ourselves bounds it.
    let cap_mc = (terms.map(|t| t.max_price_mc)).unwrap_or(paid_mc.unwrap_or(0));
    let agreed = terms.and_then(|t| match t.unit_price_mc {
        Some(price_mc) => Some((price_mc, t.hops_mc)),
        None => accepted_for(t.units, log, facts),
    });
    AwardRow {
        no: log.award.award_no,
        executor: from.to_owned(),
        state: if total_mc.is_some() {
            AwardState::Accepted
        } else {
            AwardState::Sent
        },
        money: Money::None,
        cap_mc,
        unit_price_mc: agreed.map(|(price_mc, _)| price_mc),
        hops_mc: agreed.map(|(_, hops_mc)| hops_mc),
        terms: terms_hash.to_owned(),
        accept_by_ms: terms.map_or(now, |t| t.accept_by_ms),
        settle_by_ms: terms.map_or(now.saturating_add(600_000), |t| t.settle_by_ms),
        lease_until_ms: now,
        paused_since_ms: None,
        units_done: 0,
        on_cancel: terms.map(|t| t.on_cancel.clone()),
        useful_units: None,
        stopped_hops: Vec::new(),
    }
}
