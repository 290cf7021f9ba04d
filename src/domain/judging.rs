//! From a delivered result to a receipt or a refusal: the requester's side.

use super::Node;
use super::job::{AwardState, Outcome, Phase, Reason, Route, TaskState};
use super::ledger::{Event, State as Money};
use super::step::{Chance, Effect, Findings, Ms, Refused};
use crate::wire::entry::Act;
use crate::wire::market::Withdraw;
use crate::wire::message::{Body, Receipt, Refusal, WorkResult};
use crate::wire::proof::{Evidence, Proof};

impl Node {
    /// A result has come: keep it, draw the sample, have it checked.
    pub(super) fn on_result(
        &mut self,
        now: Ms,
        chance: &mut Chance,
        from: &str,
        task: &str,
        no: u32,
        result: WorkResult,
    ) -> Result<(), Refused> {
        let me = self.policy.me.clone();
        let proof = &result.proof;
        let hash = proof
            .hash()
            .map_err(|e| Refused::new("proof_invalid", e.to_string()))?;
        let job = self.job_awarded(task, no, from)?;
        let award = job.awards.iter().find(|a| a.no == no).cloned();
        let award = award.ok_or_else(|| {
            Refused::new("award_no_unknown", "the task has no award with this number")
        })?;
        let ours = proof.task == task
            && proof.award_no == no
            && proof.skill == job.skill
            && proof.requester == me
            && proof.executor == from
            && proof.commitment == job.commitment
            && proof.terms == award.terms
            && proof.key == result.entry.key;
        if !ours {
            return Err(Refused::new(
                "proof_mismatch",
                "the proof is for other work, other terms or by another key",
            ));
        }
        if result.entry.what
            != (Act::Completed {
                award_no: no,
                proof: hash,
            })
        {
            return Err(Refused::new(
                "entry_mismatch",
                "the signed entry states something else",
            ));
        }
        self.admit_job_entry(now, task, from, &result.entry)?;
        let Some(job) = self.jobs.get(task) else {
            return Ok(());
        };
        if award.state == AwardState::Delivered {
            return Ok(());
        }
        let settled = matches!(award.money, Money::Committed | Money::RolledBack);
        if settled || job.outcome.as_ref().is_some_and(|o| !o.late) {
            return self.keep_late(now, task, no, from, result, settled);
        }
        let units = proof.units;
        let fault = claim_fault(
            job.units,
            job.deadline_ms.saturating_add(self.policy.skew_ms),
            award.unit_price_mc,
            award.cap_mc,
            proof,
        );
        let k = match self.policy.verification.as_str() {
            _ if from == me => 0,
            "none" | "schema" => 0,
            "full" | "replicated" => units,
            _ => sample_size(units, self.policy.forged_share_bp, self.policy.detection_bp),
        };
        // A claim that is false already is not worth a draw, and its unit count may be anything.
        let sample = if fault.is_some() {
            Vec::new()
        } else {
            draw(chance, units, k)
        };
        self.keep_result(task, &result);
        let outcome = Outcome {
            award_no: no,
            executor: from.to_owned(),
            lct: result.proof.lct.clone(),
            proof: result.proof,
            sample: sample.clone(),
            findings: None,
            quality_bp: None,
            late: false,
        };
        let Some(job) = self.jobs.get_mut(task) else {
            return Ok(());
        };
        job.outcome = Some(outcome);
        job.phase = Phase::Checking;
        job.marks.received_ms = now;
        job.window_ends_ms = None;
        // A task that was ended keeps its state until the result is paid: a result from before a cancel is payable.
        if !job.state.is_final() {
            job.state = TaskState::Working;
            job.reason = Some(Reason::new(
                "checking",
                format!(
                    "the result is here; {} of {units} units are being recomputed",
                    sample.len()
                ),
            ));
        }
        if let Some(award) = job.award_mut(no) {
            award.state = AwardState::Delivered;
        }
        self.dirty.jobs.insert(task.to_owned());
        self.journal(
            "result",
            Some(task),
            serde_json::json!({"award_no": no, "executor": from, "units": units, "sample": sample}),
        );
        self.withdraw_others(now, task, no);
        match fault {
            Some(evidence) => {
                let findings = Findings {
                    assurance: "none".into(),
                    input: true,
                    output: false,
                    schema: None,
                    units_checked: 0,
                    fault: Some(evidence),
                };
                self.on_checked(now, task, no, findings);
            }
            None => self.out.effects.push(Effect::Check {
                task: task.to_owned(),
                award_no: no,
                sample,
            }),
        }
        self.changed(task);
        Ok(())
    }

    /// A result for an award that is settled already, or after another one was taken: kept if it may still be of use,
    /// never paid on its own.
    fn keep_late(
        &mut self,
        now: Ms,
        task: &str,
        no: u32,
        from: &str,
        result: WorkResult,
        settled: bool,
    ) -> Result<(), Refused> {
        let Some(job) = self.jobs.get(task) else {
            return Ok(());
        };
        let proof = result.proof.clone();
        if settled
            && job.outcome.is_none()
            && job.phase == Phase::Ended
            && job.state != TaskState::Completed
        {
            self.keep_result(task, &result);
            let outcome = Outcome {
                award_no: no,
                executor: from.to_owned(),
                lct: proof.lct.clone(),
                proof,
                sample: Vec::new(),
                findings: None,
                quality_bp: None,
                late: true,
            };
            if let Some(job) = self.jobs.get_mut(task) {
                job.outcome = Some(outcome);
                self.dirty.jobs.insert(task.to_owned());
            }
            self.journal(
                "result_late",
                Some(task),
                serde_json::json!({"award_no": no, "executor": from}),
            );
        } else if !settled {
            let evidence = Evidence {
                code: "superseded".into(),
                unit: None,
                expected: String::new(),
                received: String::new(),
            };
            self.refuse(now, task, no, &proof, evidence);
        }
        Ok(())
    }

    fn keep_result(&mut self, task: &str, result: &WorkResult) {
        self.payload(
            task,
            "result",
            serde_json::to_vec(&result.output).unwrap_or_default(),
        );
        self.payload(task, "units", result.units.clone().into_bytes());
    }

    fn withdraw_others(&mut self, now: Ms, task: &str, taken: u32) {
        let Some(job) = self.jobs.get(task) else {
            return;
        };
        let below = job.awards.len() as u32 + 1;
        let open: Vec<_> = job
            .awards
            .iter()
            .filter(|a| {
                a.no != taken
                    && matches!(
                        a.state,
                        AwardState::Sent | AwardState::Accepted | AwardState::Superseded
                    )
            })
            .map(|a| a.executor.clone())
            .collect();
        for executor in open {
            let withdraw = Withdraw {
                task: task.to_owned(),
                below_award_no: below,
            };
            self.send_peer(
                &executor,
                Body::Withdraw(withdraw),
                now.saturating_add(self.policy.message_ttl_ms),
            );
        }
    }

    /// The recomputation is done: pay or refuse.
    pub(super) fn on_checked(&mut self, now: Ms, task: &str, no: u32, findings: Findings) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let Some(outcome) = job
            .outcome
            .as_mut()
            .filter(|o| o.award_no == no && o.findings.is_none() && !o.late)
        else {
            return;
        };
        let unverified =
            matches!(findings.assurance.as_str(), "none" | "schema") && findings.fault.is_none();
        outcome.quality_bp = if unverified {
            None
        } else {
            Some(if findings.fault.is_some() { 0 } else { 10_000 })
        };
        let fault = findings.fault.clone();
        let quality = outcome.quality_bp;
        let (executor, proof) = (outcome.executor.clone(), outcome.proof.clone());
        outcome.findings = Some(findings);
        self.dirty.jobs.insert(task.to_owned());
        let tier = if executor == self.policy.me {
            super::peer::Tier::Own
        } else {
            self.peer(&executor).tier
        };
        let pays = match quality {
            Some(quality) => quality >= self.policy.pay_from_bp,
            None => self.policy.accepts_unverified(tier),
        };
        self.journal(
            "checked",
            Some(task),
            serde_json::json!({"award_no": no, "quality_bp": quality, "fault": fault.as_ref().map(|f| f.code.clone())}),
        );
        if pays {
            self.pay(now, task, no, &executor, &proof, quality);
        } else {
            let evidence = fault.unwrap_or_else(|| Evidence {
                code: "unverified".into(),
                unit: None,
                expected: String::new(),
                received: String::new(),
            });
            self.refuse_outcome(now, task, no, &executor, &proof, evidence);
        }
    }

    fn pay(
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
        self.end(
            now,
            task,
            TaskState::Completed,
            Reason::new("completed", "the result was verified and paid"),
        );
    }

    fn refuse_outcome(
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
        job.refusals.insert(executor.to_owned(), reason.clone());
        if job.state.is_final() {
            // Canceled or past its deadline before: it stays what it was.
            let (state, reason) = (job.state, job.reason.clone().unwrap_or(reason));
            self.end(now, task, state, reason);
        } else if now < job.deadline_ms && matches!(job.route, Route::Pool(_)) {
            job.outcome = None;
            self.place(now, task);
        } else {
            self.end(now, task, TaskState::Failed, reason);
        }
    }

    fn refuse(&mut self, now: Ms, task: &str, no: u32, proof: &Proof, evidence: Evidence) {
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
    pub(super) fn on_stopped(&mut self, now: Ms, task: &str, no: u32, useful_units: u32) {
        let on_cancel = self.policy.on_cancel.clone();
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        if !job.state.is_final() {
            // Nobody asked it to stop: it is a failure, and nothing is owed.
            self.award_gone(
                now,
                task,
                no,
                Reason::new("stopped", "the executor stopped by itself"),
            );
            return;
        }
        let most = if job.units == 0 { u32::MAX } else { job.units };
        let Some(award) = job
            .award_mut(no)
            .filter(|a| !matches!(a.state, AwardState::Declined | AwardState::Delivered))
        else {
            return;
        };
        if award.unit_price_mc.is_none() && useful_units > 0 && on_cancel == "units" {
            // The acceptance, which names the price, is still on its way.
            award.useful_units = Some(useful_units);
            self.dirty.jobs.insert(task.to_owned());
            return;
        }
        award.state = AwardState::Declined;
        let cost_mc = u64::from(useful_units.min(most))
            .saturating_mul(award.unit_price_mc.unwrap_or(0))
            .min(award.cap_mc);
        let executor = award.executor.clone();
        self.dirty.jobs.insert(task.to_owned());
        self.journal(
            "stopped",
            Some(task),
            serde_json::json!({"award_no": no, "useful_units": useful_units}),
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
        if job.phase == Phase::Checking {
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

/// What both sides can count without any recomputation: units, price, cost, time.
fn claim_fault(
    units: u32,
    result_by_ms: Ms,
    unit_price_mc: Option<u64>,
    cap_mc: u64,
    proof: &Proof,
) -> Option<Evidence> {
    let price = unit_price_mc.unwrap_or(proof.unit_price_mc);
    let counted = if units == 0 { proof.units } else { units };
    let due = u64::from(counted).saturating_mul(price).min(cap_mc);
    if proof.units != counted || proof.unit_price_mc != price || proof.cost_mc != due {
        return Some(Evidence {
            code: "cost_mismatch".into(),
            unit: None,
            expected: due.to_string(),
            received: proof.cost_mc.to_string(),
        });
    }
    if proof.finished_ms > result_by_ms {
        return Some(Evidence {
            code: "result_late".into(),
            unit: None,
            expected: result_by_ms.to_string(),
            received: proof.finished_ms.to_string(),
        });
    }
    None
}

/// `k` different unit indexes below `units`, ascending (Floyd's algorithm).
fn draw(chance: &mut Chance, units: u32, k: u32) -> Vec<u32> {
    let mut drawn = std::collections::BTreeSet::new();
    for top in units.saturating_sub(k)..units {
        let pick = chance.below(u64::from(top) + 1) as u32;
        if !drawn.insert(pick) {
            drawn.insert(top);
        }
    }
    drawn.into_iter().collect()
}

/// Units to recompute so that a result with `forged_bp` of its units forged is caught with probability `detection_bp`
/// (both basis points): the least k with (1 - forged)^k <= 1 - detection, at most all units. 10 % and 95 % give 29.
pub fn sample_size(units: u32, forged_bp: u32, detection_bp: u32) -> u32 {
    // Fixed-point with 1e12 as one: no floats in decisions.
    const ONE: u128 = 1_000_000_000_000;
    let keep = ONE - ONE * u128::from(forged_bp.clamp(1, 9_999)) / 10_000;
    let goal = ONE - ONE * u128::from(detection_bp.min(9_999)) / 10_000;
    let (mut missed, mut k) = (ONE, 0u32);
    while missed > goal && k < units {
        missed = missed * keep / ONE;
        k += 1;
    }
    k.min(units)
}
