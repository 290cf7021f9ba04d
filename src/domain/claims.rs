//! From a receipt or a refusal to the end of a claim: the executor's side.

use super::Node;
use super::engagement::{self, Engagement, Stage};
use super::judging::due_mc;
use super::ledger::{Event, Side, State as Money};
use super::step::{Change, Effect, EngagementKey, Ms, Refused, Row};
use crate::wire::entry::Act;
use crate::wire::message::{Receipt, Refusal};
use crate::wire::proof::Evidence;

/// Half of the wait after a result was sent once more, before it is again; doubles each time.
const RESEND_PAUSE_MS: Ms = 300_000;

impl Node {
    /// The requester pays.
    pub(super) fn on_receipt(
        &mut self,
        now: Ms,
        from: &str,
        receipt: &Receipt,
    ) -> Result<(), Refused> {
        let key = engagement::key(from, &receipt.task, receipt.award_no);
        let work = self
            .work
            .get(&key)
            .ok_or_else(|| Refused::new("engagement_unknown", "no such work is open here"))?;
        if !work.has_reported() {
            return Err(Refused::new(
                "receipt_early",
                "no result was sent for this award",
            ));
        }
        if work.stage == Stage::Ended {
            return self.paid_after_all(&key, receipt);
        }
        let (claim, hash) = (
            work.claim_mc(),
            work.proof
                .as_ref()
                .map_or(String::new(), |p| p.hash().unwrap_or_default()),
        );
        let Act::Paid {
            award_no,
            cost_mc,
            proof,
            ..
        } = &receipt.entry.what
        else {
            return Err(Refused::new(
                "entry_mismatch",
                "the signed entry is not a receipt",
            ));
        };
        if *award_no != receipt.award_no || *proof != hash {
            return Err(Refused::new(
                "receipt_mismatch",
                "the receipt is for another proof",
            ));
        }
        let cost_mc = *cost_mc;
        self.admit_work_entry(now, &key, &receipt.entry)?;
        if cost_mc != claim {
            self.dispute(now, &key, "receipt_short");
            return Ok(());
        }
        self.move_work_money(now, &key, Event::Receipt, cost_mc);
        if from != self.policy.me {
            self.edit_peer(from, |peer| {
                peer.completed = peer.completed.saturating_add(1)
            });
        }
        self.journal(
            "receipt_received",
            Some(&receipt.task),
            serde_json::json!({"award_no": receipt.award_no, "cost_mc": cost_mc, "from": from}),
        );
        self.end_work(now, &key, "paid");
        self.moot(from, &receipt.task);
        Ok(())
    }

    /// A receipt for work that has ended: nothing is booked again. One for a claim that the owner gave up is worth a line.
    fn paid_after_all(&mut self, key: &EngagementKey, receipt: &Receipt) -> Result<(), Refused> {
        let given_up = |w: &Engagement| w.end.as_deref() == Some("written_off");
        if !self.work.get(key).is_some_and(given_up) {
            return Ok(());
        }
        self.journal(
            "receipt_after_write_off",
            Some(&receipt.task),
            serde_json::json!({"key": key}),
        );
        Err(Refused::new(
            "written_off",
            "the owner has given up this claim: the receipt is noted, nothing is booked",
        ))
    }

    /// The requester refuses: look at the evidence before giving up the claim.
    pub(super) fn on_refusal(
        &mut self,
        now: Ms,
        from: &str,
        refusal: &Refusal,
    ) -> Result<(), Refused> {
        let key = engagement::key(from, &refusal.task, refusal.award_no);
        let work = self
            .work
            .get(&key)
            .ok_or_else(|| Refused::new("engagement_unknown", "no such work is open here"))?;
        let proof = work
            .proof
            .clone()
            .ok_or_else(|| Refused::new("refusal_early", "no result was sent for this award"))?;
        if work.stage == Stage::Ended {
            return Ok(());
        }
        let stated = Act::Refused {
            award_no: refusal.award_no,
            proof: proof.hash().unwrap_or_default(),
            evidence: refusal.evidence.hash().unwrap_or_default(),
            code: refusal.evidence.code.clone(),
        };
        if refusal.entry.what != stated {
            return Err(Refused::new(
                "entry_mismatch",
                "the signed entry states something else",
            ));
        }
        self.admit_work_entry(now, &key, &refusal.entry)?;
        self.weigh(now, &key, &refusal.evidence);
        Ok(())
    }

    /// A delivered result goes out once more, because its requester asks for it: the more often, the later. Each time it may be
    /// many megabytes that wait here to be fetched.
    pub(super) fn resend(&mut self, now: Ms, key: EngagementKey) {
        let work = &self.work;
        self.resent.retain(|key, _| work.contains_key(key));
        let (at_ms, times) = self.resent.get(&key).copied().unwrap_or_default();
        let pause_ms = RESEND_PAUSE_MS << times.min(10);
        if times == 0 || now >= at_ms.saturating_add(pause_ms) {
            self.resent
                .insert(key.clone(), (now, times.saturating_add(1)));
            self.out.effects.push(Effect::ResultAgain(key));
        }
    }

    /// Whether a signed refusal's evidence holds: by what is counted here, or by what a worker computes anew.
    pub(super) fn weigh(&mut self, now: Ms, key: &EngagementKey, evidence: &Evidence) {
        let Some(work) = self.work.get(key) else {
            return;
        };
        let Some(proof) = &work.proof else {
            return;
        };
        let late = proof.finished_ms > work.result_by_ms;
        let promised = !matches!(work.verification.as_str(), "none" | "schema");
        let due = due_mc(work.units, work.unit_price_mc, work.total_mc, proof);
        let too_much = proof.hops_mc().is_none_or(|spent| spent > work.hops_mc);
        let miscounted = Some(proof.cost_mc) != due
            || too_much
            || proof.units != work.units
            || proof.unit_price_mc != work.unit_price_mc;
        match evidence.code.as_str() {
            "superseded" => self.on_superseded(now, key),
            // Whoever promised to verify cannot refuse because nothing was verified.
            "unverified" => self.on_evidence(now, key, !promised),
            "result_late" => self.on_evidence(now, key, late),
            "cost_mismatch" => self.on_evidence(now, key, miscounted),
            _ => {
                if let Some(work) = self.work.get_mut(key) {
                    work.evidence = Some(evidence.clone());
                    self.dirty.work.insert(key.clone());
                }
                self.out.effects.push(Effect::CheckEvidence {
                    key: key.clone(),
                    evidence: evidence.clone(),
                });
            }
        }
    }

    /// The requester says that another result was taken. That is believed of an award that it has withdrawn; the withdrawal
    /// may still be on its way, so the claim waits for it until `settle_by`.
    fn on_superseded(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        if work.withdrawn || work.claim_mc() == 0 {
            self.on_evidence(now, key, true);
        } else {
            work.called_superseded = true;
            self.dirty.work.insert(key.clone());
        }
    }

    /// The requester has withdrawn these awards: what it said of them may now be believed.
    pub(super) fn note_withdrawn(&mut self, now: Ms, from: &str, task: &str, below: u32) {
        let owner = format!("{from}/{task}");
        let older: Vec<_> = self
            .work_of(&owner)
            .filter(|w| w.award_no < below && w.is_live() && !w.withdrawn)
            .map(|w| {
                let stopped =
                    matches!(w.stage, Stage::Finished | Stage::Closing) && w.proof.is_none();
                (w.key.clone(), w.called_superseded, stopped)
            })
            .collect();
        for (key, called_superseded, stopped) in older {
            if let Some(work) = self.work.get_mut(&key) {
                work.withdrawn = true;
                self.dirty.work.insert(key.clone());
            }
            if called_superseded {
                self.on_evidence(now, &key, true);
            } else if stopped {
                // A cancel came before the withdrawal that it followed: the units of a withdrawn award are not owed.
                self.move_work_money(now, &key, Event::Decline, 0);
                self.end_work(now, &key, "superseded");
            }
        }
    }

    /// The owner clears a peer: what it never paid is given up.
    pub(super) fn write_off(&mut self, now: Ms, npub: &str) {
        let open: Vec<_> = self
            .work_of(npub)
            .filter(|w| matches!(w.stage, Stage::Overdue | Stage::Disputed))
            .map(|w| (w.key.clone(), w.task.clone(), w.claim_mc()))
            .collect();
        for (key, task, claim_mc) in open {
            self.move_work_money(now, &key, Event::WriteOff, 0);
            self.journal(
                "written_off",
                Some(&task),
                serde_json::json!({"key": key, "claim_mc": claim_mc}),
            );
            self.end_work(now, &key, "written_off");
        }
    }

    /// The evidence was recomputed here.
    pub(super) fn on_evidence(&mut self, now: Ms, key: &EngagementKey, holds: bool) {
        let Some(work) = self
            .work
            .get_mut(key)
            .filter(|w| matches!(w.stage, Stage::Finished | Stage::Overdue | Stage::Disputed))
        else {
            return;
        };
        work.evidence = None;
        self.dirty.work.insert(key.clone());
        if holds {
            self.move_work_money(now, key, Event::Refusal, 0);
            let task = self.work.get(key).map(|w| w.task.clone());
            self.journal("refused", task.as_deref(), serde_json::json!({"key": key}));
            self.end_work(now, key, "refused");
        } else {
            self.dispute(now, key, "evidence_contradicted");
        }
    }

    /// No receipt and no refusal in time: the claim stands. Where nothing is claimed there is nothing to hold.
    pub(super) fn overdue(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get(key) else {
            return;
        };
        if work.called_superseded {
            self.dispute(now, key, "superseded_unproven");
        } else if work.claim_mc() > 0 {
            self.dispute(now, key, "overdue");
        } else {
            self.move_work_money(now, key, Event::Decline, 0);
            self.end_work(now, key, "unacknowledged");
        }
    }

    /// That peer's credit drops to nothing until the owner clears it (`legion peers trust`). The claim stands.
    pub(super) fn dispute(&mut self, now: Ms, key: &EngagementKey, code: &str) {
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        if matches!(work.stage, Stage::Disputed | Stage::Ended) {
            return;
        }
        work.stage = if code == "overdue" {
            Stage::Overdue
        } else {
            Stage::Disputed
        };
        work.ended_ms = now;
        let (requester, task) = (work.requester.clone(), work.task.clone());
        self.dirty.work.insert(key.clone());
        if requester != self.policy.me {
            self.edit_peer(&requester, |peer| peer.disputed = true);
        }
        self.journal(
            code,
            Some(&task),
            serde_json::json!({"key": key, "peer": requester}),
        );
    }

    pub(super) fn move_work_money(
        &mut self,
        now: Ms,
        key: &EngagementKey,
        event: Event,
        amount_mc: u64,
    ) {
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        if work.requester == self.policy.me {
            return;
        }
        let lock = (
            Side::Executor,
            work.requester.clone(),
            work.task.clone(),
            work.award_no,
        );
        let settled = matches!(work.money, Money::Committed | Money::RolledBack);
        match self.ledger.apply(&lock, event, amount_mc, settled, now) {
            Ok(Some(transfer)) => {
                work.money = match transfer.kind {
                    super::ledger::Kind::Lock => Money::Locked,
                    super::ledger::Kind::Commit => Money::Committed,
                    super::ledger::Kind::Rollback => Money::RolledBack,
                };
                self.dirty.work.insert(key.clone());
                self.dirty.accounts.insert(transfer.npub.clone());
                self.out.changes.push(Change::Put(Row::Transfer(transfer)));
            }
            Ok(None) => {}
            Err(refused) => self.journal(
                "money_refused",
                None,
                serde_json::json!({"code": refused.code, "key": key}),
            ),
        }
    }
}
