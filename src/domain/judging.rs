//! From a delivered result to a receipt or a refusal: the requester's side.

use super::Node;
use super::job::{AwardRow, AwardState, Outcome, Phase, Reason, Route, Spare, TaskState};
use super::ledger::State as Money;
use super::step::{Chance, Effect, Findings, Ms, Refused};
use crate::wire::entry::Act;
use crate::wire::market::Withdraw;
use crate::wire::message::{Body, WorkResult};
use crate::wire::proof::{Evidence, Proof};

/// Most results kept while one is being checked.
const SPARES_MAX: usize = 4;

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
        self.examine(now, chance, task, no, result);
        Ok(())
    }

    /// Takes a result for checking: it is durable before the sample is drawn, and the draw before anything is recomputed.
    fn examine(&mut self, now: Ms, chance: &mut Chance, task: &str, no: u32, result: WorkResult) {
        let skew_ms = self.policy.skew_ms;
        let Some(job) = self.jobs.get(task) else {
            return;
        };
        let Some(award) = job.awards.iter().find(|a| a.no == no) else {
            return;
        };
        let (from, units) = (award.executor.clone(), result.proof.units);
        let fault = claim_fault(
            job.units,
            job.deadline_ms.saturating_add(skew_ms),
            award,
            &result.proof,
        );
        // A claim that is false already is not worth a draw, and its unit count may be anything.
        let sample = if fault.is_some() {
            Vec::new()
        } else {
            draw(chance, units, self.sample_of(&from, units))
        };
        self.keep_result(task, &result);
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        job.outcome = Some(Outcome {
            award_no: no,
            executor: from.clone(),
            lct: result.proof.lct.clone(),
            proof: result.proof,
            sample: sample.clone(),
            findings: None,
            quality_bp: None,
            late: false,
        });
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
            Some(evidence) => self.on_checked(now, chance, task, no, false_claim(evidence)),
            None => self.out.effects.push(Effect::Check {
                task: task.to_owned(),
                award_no: no,
                sample,
            }),
        }
        self.changed(task);
    }

    /// How many of `units` units are recomputed.
    fn sample_of(&self, from: &str, units: u32) -> u32 {
        match self.policy.verification.as_str() {
            _ if from == self.policy.me => 0,
            "none" | "schema" => 0,
            "full" | "replicated" => units,
            _ => sample_size(units, self.policy.forged_share_bp, self.policy.detection_bp),
        }
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
        } else if !settled && job.is_checking() && job.spares.len() < SPARES_MAX {
            // The one before may still fail.
            if let Some(job) = self.jobs.get_mut(task)
                && !job.spares.iter().any(|s| s.award_no == no)
            {
                job.spares.push(Spare {
                    award_no: no,
                    result,
                });
                self.dirty.jobs.insert(task.to_owned());
                self.journal(
                    "result_spare",
                    Some(task),
                    serde_json::json!({"award_no": no, "executor": from}),
                );
            }
        } else if !settled {
            self.refuse(now, task, no, &proof, blank_evidence("superseded"));
        }
        Ok(())
    }

    /// An executor has signed two stories about the task: both are kept, its awards are disputed, what it delivered is not
    /// looked at any more, and the task goes on without it. The money of its awards stays locked until `settle_by`.
    pub(super) fn disqualify(&mut self, now: Ms, chance: &mut Chance, task: &str, npub: &str) {
        let reason = Reason::new(
            "equivocation",
            "the executor has signed two stories about the task; both are kept as evidence, nothing more is awarded to it",
        );
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let below_award_no = job.awards.len() as u32 + 1;
        let had_it = job.current().is_some_and(|a| a.executor == npub);
        let unsettled = |a: &&mut AwardRow| a.executor == npub && a.money != Money::Committed;
        for award in job.awards.iter_mut().filter(unsettled) {
            award.state = AwardState::Disputed;
        }
        job.refusals.insert(npub.to_owned(), reason.clone());
        job.bids.retain(|(bidder, _)| bidder != npub);
        job.spares
            .retain(|spare| spare.result.proof.executor != npub);
        let judged = |o: &Outcome| o.executor == npub && o.findings.is_none() && !o.late;
        let dropped = job.outcome.as_ref().is_some_and(judged);
        if dropped {
            job.outcome = None;
        }
        let ended = job.phase == Phase::Ended;
        let lost = match job.phase {
            Phase::Awarded | Phase::Working => had_it,
            Phase::Checking => dropped,
            Phase::Placing | Phase::Ended => false,
        };
        let in_pool = matches!(job.route, Route::Pool(_));
        self.dirty.jobs.insert(task.to_owned());
        if npub != self.policy.me && !ended {
            let withdraw = Withdraw {
                task: task.to_owned(),
                below_award_no,
            };
            let expires_ms = now.saturating_add(self.policy.message_ttl_ms);
            self.send_peer(npub, Body::Withdraw(withdraw), expires_ms);
        }
        if dropped && let Some(spare) = self.take_spare(task) {
            self.examine(now, chance, task, spare.award_no, spare.result);
        } else if lost && self.is_over(task) {
            self.end_as_it_was(now, task, reason);
        } else if lost && in_pool {
            self.place(now, task);
        } else if lost {
            self.end(now, task, TaskState::Failed, reason);
        }
        self.changed(task);
    }

    /// Whether the task was canceled, or its deadline has passed, before its result was judged.
    fn is_over(&self, task: &str) -> bool {
        self.jobs.get(task).is_some_and(|job| job.state.is_final())
    }

    /// Closes a task that was ended while a result was being checked: it stays what it was.
    pub(super) fn end_as_it_was(&mut self, now: Ms, task: &str, reason: Reason) {
        let Some(job) = self.jobs.get(task) else {
            return;
        };
        let (state, reason) = (job.state, job.reason.clone().unwrap_or(reason));
        self.end(now, task, state, reason);
    }

    /// The next of the results that came meanwhile, whose money is still open.
    fn take_spare(&mut self, task: &str) -> Option<Spare> {
        let job = self.jobs.get_mut(task)?;
        while !job.spares.is_empty() {
            let spare = job.spares.remove(0);
            let open = |a: &AwardRow| {
                a.no == spare.award_no
                    && !matches!(a.money, Money::Committed | Money::RolledBack)
                    && a.state != AwardState::Declined
            };
            if job.awards.iter().any(open) {
                return Some(spare);
            }
        }
        None
    }

    fn keep_result(&mut self, task: &str, result: &WorkResult) {
        self.payload(
            task,
            "result",
            serde_json::to_vec(&result.output).unwrap_or_default(),
        );
        self.payload(task, "units", result.units.clone().into_bytes());
    }

    /// The other awards stand no more: a result was taken. Nothing is owed for them, unless it fails and their own is taken.
    fn withdraw_others(&mut self, now: Ms, task: &str, taken: u32) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let below = job.awards.len() as u32 + 1;
        let mut open = Vec::new();
        for award in job.awards.iter_mut().filter(|a| a.no != taken) {
            use AwardState::{Accepted, Sent, Superseded};
            if matches!(award.state, Sent | Accepted | Superseded) {
                award.state = Superseded;
                open.push(award.executor.clone());
            }
        }
        self.dirty.jobs.insert(task.to_owned());
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
    pub(super) fn on_checked(
        &mut self,
        now: Ms,
        chance: &mut Chance,
        task: &str,
        no: u32,
        findings: Findings,
    ) {
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
            let evidence = fault.unwrap_or_else(|| blank_evidence("unverified"));
            self.refuse_outcome(now, task, no, &executor, &proof, evidence);
            if let Some(spare) = self.take_spare(task) {
                self.examine(now, chance, task, spare.award_no, spare.result);
            } else {
                self.after_refusal(now, task, &executor);
            }
        }
    }
}

/// Evidence that is all in its code.
pub(super) fn blank_evidence(code: &str) -> Evidence {
    Evidence {
        code: code.into(),
        unit: None,
        expected: String::new(),
        received: String::new(),
    }
}

/// What is found of a claim that is not even counted right.
fn false_claim(evidence: Evidence) -> Findings {
    Findings {
        assurance: "none".into(),
        input: true,
        output: false,
        schema: None,
        units_checked: 0,
        fault: Some(evidence),
    }
}

/// What both sides can count without any recomputation: units, price, cost, time.
fn claim_fault(units: u32, result_by_ms: Ms, award: &AwardRow, proof: &Proof) -> Option<Evidence> {
    let price = award.unit_price_mc.unwrap_or(proof.unit_price_mc);
    let counted = if units == 0 { proof.units } else { units };
    let hops_mc = award.hops_mc.unwrap_or(award.cap_mc);
    let due = due_mc(counted, price, award.cap_mc, proof)
        .filter(|_| proof.hops_mc().is_some_and(|spent| spent <= hops_mc));
    if proof.units != counted || proof.unit_price_mc != price || Some(proof.cost_mc) != due {
        return Some(Evidence {
            code: "cost_mismatch".into(),
            unit: None,
            expected: due.map_or_else(|| "other hops".into(), |due| due.to_string()),
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

/// What is due for so many units and the hops that a proof names, within the cap; none if these do not fit into it.
pub(super) fn due_mc(units: u32, price_mc: u64, cap_mc: u64, proof: &Proof) -> Option<u64> {
    let for_units = u64::from(units).saturating_mul(price_mc).min(cap_mc);
    let due = for_units.checked_add(proof.hops_mc()?)?;
    (due <= cap_mc).then_some(due)
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
