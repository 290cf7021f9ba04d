//! How money leaves its lock on the requester's side: a receipt, a refusal, a stop, or time.

use super::Node;
use super::job::{AwardState, Reason, Route, TaskState};
use super::ledger::{Event, State as Money};
use super::step::{Effect, Ms};
use crate::wire::entry::Act;
use crate::wire::message::{Body, Receipt, Refusal};
use crate::wire::proof::{Evidence, Hop, Proof, hops_mc};

use super::judging::blank_evidence;

impl Node {
    pub(super) fn pay(
        &mut self,
        now: Ms,
        task: &str,
        no: u32,
        executor: &str,
        proof: &Proof,
        quality_bp: Option<u32>,
    ) {
        let hash = proof.hash().unwrap_or_default();
        let cost_mc = proof.cost_mc;
        self.move_award_money(now, task, no, Event::Receipt, cost_mc);
        let what = Act::Paid {
            award_no: no,
            cost_mc,
            proof: hash,
            quality_bp,
        };
        let entry = self.write_job_entry(now, task, what);
        let receipt = Receipt {
            task: task.to_owned(),
            award_no: no,
            entry,
        };
        self.send_peer(
            executor,
            Body::Receipt(Box::new(receipt)),
            now.saturating_add(self.policy.message_ttl_ms),
        );
        if executor != self.policy.me {
            self.edit_peer(executor, |peer| {
                peer.completed = peer.completed.saturating_add(1)
            });
        }
        if let Some(job) = self.jobs.get_mut(task) {
            job.cost_mc = cost_mc;
        }
        self.journal(
            "receipt",
            Some(task),
            serde_json::json!({"award_no": no, "cost_mc": cost_mc, "executor": executor}),
        );
        self.refuse_spares(now, task);
        let said = match quality_bp {
            Some(_) => "the result was verified and paid",
            None => "the result was paid; no part of it was computed again",
        };
        self.end(
            now,
            task,
            TaskState::Completed,
            Reason::new("completed", said),
        );
    }

    /// A result was paid: the others are not needed.
    pub(super) fn refuse_spares(&mut self, now: Ms, task: &str) {
        let spares = (self.jobs.get_mut(task))
            .map(|job| std::mem::take(&mut job.spares))
            .unwrap_or_default();
        for spare in spares {
            let evidence = blank_evidence("superseded");
            self.refuse(now, task, spare.award_no, &spare.result.proof, evidence);
        }
    }

    pub(super) fn refuse_outcome(
        &mut self,
        now: Ms,
        task: &str,
        no: u32,
        executor: &str,
        proof: &Proof,
        evidence: Evidence,
    ) {
        let code = evidence.code.clone();
        self.refuse(now, task, no, proof, evidence);
        if executor != self.policy.me && !matches!(code.as_str(), "unverified" | "result_late") {
            self.edit_peer(executor, |peer| peer.frauds = peer.frauds.saturating_add(1));
        }
        let reason = Reason::new(
            &code,
            "the result was refused after verification; nothing was paid",
        );
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        job.refusals.insert(executor.to_owned(), reason);
    }

    /// A result was refused and no other one waits: the job goes on, or ends.
    pub(super) fn after_refusal(&mut self, now: Ms, task: &str, executor: &str) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let Some(reason) = job.refusals.get(executor).cloned() else {
            return;
        };
        if job.state.is_final() {
            // Canceled or past its deadline before.
            self.end_as_it_was(now, task, reason);
        } else if now < job.deadline_ms && matches!(job.route, Route::Pool(_)) {
            job.outcome = None;
            self.place(now, task);
        } else {
            self.end(now, task, TaskState::Failed, reason);
        }
    }

    pub(super) fn refuse(
        &mut self,
        now: Ms,
        task: &str,
        no: u32,
        proof: &Proof,
        evidence: Evidence,
    ) {
        let executor = proof.executor.clone();
        self.move_award_money(now, task, no, Event::Refusal, 0);
        let what = Act::Refused {
            award_no: no,
            proof: proof.hash().unwrap_or_default(),
            evidence: evidence.hash().unwrap_or_default(),
            code: evidence.code.clone(),
        };
        let entry = self.write_job_entry(now, task, what);
        self.journal(
            "refusal",
            Some(task),
            serde_json::json!({"award_no": no, "code": evidence.code, "unit": evidence.unit}),
        );
        let refusal = Refusal {
            task: task.to_owned(),
            award_no: no,
            evidence,
            entry,
        };
        self.send_peer(
            &executor,
            Body::Refusal(Box::new(refusal)),
            now.saturating_add(self.policy.message_ttl_ms),
        );
    }

    /// The executor has stopped after our cancel.
    pub(super) fn on_stopped(
        &mut self,
        now: Ms,
        task: &str,
        no: u32,
        useful_units: u32,
        hops: &[Hop],
    ) {
        let (setting, skew_ms) = (self.policy.on_cancel.clone(), self.policy.skew_ms);
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let withdrawn =
            (job.awards.iter()).any(|a| a.no == no && a.state == AwardState::Superseded);
        // Whoever had not delivered by the deadline is asked to stop as well, and has earned nothing.
        let over_ms = job.deadline_ms.saturating_add(skew_ms);
        let canceled = job.state == TaskState::Canceled && job.marks.ended_ms < over_ms;
        if withdrawn || !canceled {
            // Nobody asked it to stop while it had time, or the award was withdrawn before: nothing is owed.
            let reason = Reason::new("stopped", "the executor stopped, and nothing is owed");
            self.award_gone(now, task, no, reason);
            return;
        }
        let most = if job.units == 0 { u32::MAX } else { job.units };
        let Some(award) = job
            .award_mut(no)
            .filter(|a| !matches!(a.state, AwardState::Declined | AwardState::Delivered))
            // After `settle_by` the lock is gone: no receipt is signed that the book does not hold.
            .filter(|a| !matches!(a.money, Money::Committed | Money::RolledBack))
        else {
            return;
        };
        let on_cancel = award.on_cancel.clone().unwrap_or(setting);
        let claims = useful_units > 0 || !hops.is_empty();
        if award.unit_price_mc.is_none() && claims && on_cancel == "units" {
            // The acceptance, which names the price, is still on its way.
            award.useful_units = Some(useful_units);
            award.stopped_hops = hops.to_vec();
            self.dirty.jobs.insert(task.to_owned());
            return;
        }
        award.state = AwardState::Declined;
        let executor = award.executor.clone();
        // As for a result: what is no hop, or more than was agreed, is not owed.
        let hops_mc = hops_mc(hops, &self.policy.me, &executor)
            .filter(|spent| *spent <= award.hops_mc.unwrap_or(award.cap_mc));
        let cost_mc = u64::from(useful_units.min(most))
            .saturating_mul(award.unit_price_mc.unwrap_or(0))
            .saturating_add(hops_mc.unwrap_or(0))
            .min(award.cap_mc);
        self.dirty.jobs.insert(task.to_owned());
        self.journal(
            "stopped",
            Some(task),
            serde_json::json!({"award_no": no, "useful_units": useful_units, "hops": hops, "cost_mc": cost_mc}),
        );
        if on_cancel != "units" || cost_mc == 0 {
            self.move_award_money(now, task, no, Event::Decline, 0);
            return;
        }
        self.move_award_money(now, task, no, Event::Receipt, cost_mc);
        let entry = self.write_job_entry(
            now,
            task,
            Act::Paid {
                award_no: no,
                cost_mc,
                proof: String::new(),
                quality_bp: None,
            },
        );
        if let Some(job) = self.jobs.get_mut(task) {
            job.cost_mc = cost_mc;
        }
        let receipt = Receipt {
            task: task.to_owned(),
            award_no: no,
            entry,
        };
        self.send_peer(
            &executor,
            Body::Receipt(Box::new(receipt)),
            now.saturating_add(self.policy.message_ttl_ms),
        );
    }

    /// After `settle_by`, and only after every inbox was read to its end since then, the requester releases alone.
    pub(super) fn settle_timers(&mut self, now: Ms, task: &str) {
        let Some(job) = self.jobs.get(task) else {
            return;
        };
        if job.is_checking() {
            return;
        }
        let due: Vec<_> = job
            .awards
            .iter()
            .filter(|a| a.money == Money::Locked && now >= a.settle_by_ms && self.online)
            .map(|a| (a.no, a.settle_by_ms))
            .collect();
        for (no, settle_by_ms) in due {
            if self.caught_up_ms >= settle_by_ms {
                self.journal(
                    "settle_expired",
                    Some(task),
                    serde_json::json!({"award_no": no}),
                );
                self.move_award_money(now, task, no, Event::Expiry, 0);
            } else if !self.draining {
                self.draining = true;
                self.out.effects.push(Effect::Drain);
            }
        }
    }
}
