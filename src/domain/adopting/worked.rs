//! An award to us, as the requester holds it: whether it has paid, has to pay, waits for us, or has withdrawn it.

use super::Facts;
use crate::domain::Node;
use crate::domain::engagement::{self, Engagement, Stage, StopWhy};
use crate::domain::judging::blank_evidence;
use crate::domain::ledger::{Event, State as Money};
use crate::domain::mark::{DECLINED_MS, MARKS_PER_PEER_MAX};
use crate::domain::recovering::{Asked, LOST};
use crate::domain::step::{Ms, Refused};
use crate::wire::entry::Act;
use crate::wire::log::AwardLog;
use crate::wire::market::Decline;
use crate::wire::message::Body;
use crate::wire::proof::{Hop, Proof};

impl Node {
    pub(super) fn adopt_worked(
        &mut self,
        now: Ms,
        from: &str,
        log: &AwardLog,
        facts: &Facts,
    ) -> Result<bool, Refused> {
        let (task, no) = (log.award.task.as_str(), log.award.award_no);
        let key = engagement::key(from, task, no);
        if self.work.get(&key).is_some_and(|w| w.stage == Stage::Ended) {
            return Ok(false);
        }
        let known = self.work.contains_key(&key);
        let until = self.term(now, log.settle_by_ms);
        if !known && facts.accepted.is_none() {
            let ours = facts
                .awarded
                .as_ref()
                .filter(|(_, who, _)| *who == self.policy.me);
            if ours.is_none_or(|(at_ms, ..)| self.was_backed_up(*at_ms)) {
                return Ok(false);
            }
            // It takes one signature to invent one: only so many of them are remembered, and none of a peer that was asked late,
            // which anybody can become. Its awards are taken or declined as they come, for nothing waits for it.
            let told = self.recovery.as_ref().and_then(|r| r.peers.get(from));
            let full = |asked: &Asked| asked.adopted as usize >= MARKS_PER_PEER_MAX;
            if told.is_some_and(|asked| asked.late || full(asked)) {
                return Ok(false);
            }
            if facts.gone.is_none() && log.open {
                self.decline_forgotten(now, from, log, facts);
            }
            self.remember_declined(now, from, log, facts, until);
            return Ok(true);
        }
        if !known
            && facts
                .accepted
                .is_some_and(|(at_ms, _)| self.was_backed_up(at_ms))
        {
            return Ok(false);
        }
        let owner = format!("{from}/{task}");
        let mut heads = self.mark(&owner, until).heads.clone();
        let honest = self.admit_all(now, task, facts, &mut heads);
        self.mark(&owner, until).heads = heads;
        if !known {
            let work = self.forgotten_work(from, log, facts, until);
            self.work.insert(key.clone(), work);
        }
        self.dirty.work.insert(key.clone());
        if honest {
            self.judge_worked(now, from, log, facts, known);
        }
        self.journal(
            "adopted",
            Some(task),
            serde_json::json!({"award_no": no, "requester": from, "known": known}),
        );
        self.changed(task);
        Ok(true)
    }

    fn judge_worked(&mut self, now: Ms, from: &str, log: &AwardLog, facts: &Facts, known: bool) {
        let (task, no) = (log.award.task.as_str(), log.award.award_no);
        let key = engagement::key(from, task, no);
        let total_mc = facts.accepted.map(|(_, total)| total);
        let total_mc = self
            .work
            .get(&key)
            .map(|w| w.total_mc)
            .or(total_mc)
            .unwrap_or(0);
        let proof = self.own_proof(log, facts);
        let earned = |hash: &str| match hash {
            "" => facts.stopped.is_some(),
            hash => facts.completed.as_deref() == Some(hash),
        };
        let claimed = |hash: &str| match hash {
            "" => self.stop_claim_mc(&key, facts).filter(|_| known),
            _ => proof.as_ref().map(|p| p.cost_mc),
        };
        match &facts.paid {
            Some((cost_mc, hash, _))
                if earned(hash)
                    && *cost_mc <= total_mc
                    && claimed(hash).is_none_or(|claim| claim == *cost_mc) =>
            {
                self.lock_work(now, &key, total_mc);
                self.move_work_money(now, &key, Event::Receipt, *cost_mc);
                self.edit_peer(from, |p| p.completed = p.completed.saturating_add(1));
                self.end_work(now, &key, "paid");
            }
            _ if facts.gone.is_some() => self.end_adopted(now, &key, "failed"),
            _ if facts.completed.is_some() => {
                let refused = facts.refused.is_some() && !known;
                self.finish_adopted(now, &key, proof, total_mc, refused);
                if let Some(why) = facts.refused.as_ref().filter(|_| known) {
                    self.weigh_again(now, &key, log, why);
                }
            }
            _ if let Some((units, hops)) = &facts.stopped
                && self.is_owed(&key, log, known, (*units, hops)) =>
            {
                // What it pays it signs for; a price that it names too low is one that it says to itself.
                if let Some(work) = self.work.get_mut(&key) {
                    work.stage = Stage::Finished;
                    work.units_done = *units;
                    work.stopped_hops.clone_from(hops);
                    if !known {
                        work.unit_price_mc = log.unit_price_mc;
                    }
                }
                self.lock_work(now, &key, total_mc);
            }
            _ if facts.stopped.is_some() => self.end_adopted(now, &key, "canceled"),
            _ if !known => {
                if let Some(work) = self.work.get_mut(&key) {
                    // Nothing is reserved for it, nor ever will be.
                    work.money = Money::RolledBack;
                }
                let text = "the executor was restored from a backup that does not know this work";
                self.fail_work(now, &key, LOST, text);
            }
            _ if facts.canceled.is_some() => {
                let result_by_ms = self.work.get(&key).map_or(now, |w| w.result_by_ms);
                self.mark(&format!("{from}/{task}"), result_by_ms).canceled = true;
                self.wind_up(now, &key, StopWhy::Canceled);
            }
            _ if log.withdrawn || (!log.open && facts.awarded.is_some()) => {
                self.supersede_work(now, from, task, no.saturating_add(1));
            }
            _ => {}
        }
    }

    /// What a stop that we signed came to, by the price of the work here.
    fn stop_claim_mc(&self, key: &str, facts: &Facts) -> Option<u64> {
        let (units, hops) = facts.stopped.clone()?;
        let stopped = Engagement {
            units_done: units,
            stopped_hops: hops,
            proof: None,
            ..self.work.get(key)?.clone()
        };
        Some(stopped.claim_mc())
    }

    /// Whether a stop that we signed earned anything. Hops are in it only where the award said so; what else it said of a cancel, if that
    /// is forgotten, is the requester's word, as its price is.
    fn is_owed(
        &self,
        key: &str,
        log: &AwardLog,
        known: bool,
        (units, hops): (u32, &[Hop]),
    ) -> bool {
        let agreed = match known {
            true => self.work.get(key).is_some_and(|w| w.on_cancel == "units"),
            false => log.open && log.unit_price_mc > 0,
        };
        !log.withdrawn && (!hops.is_empty() || (units > 0 && agreed))
    }

    /// A refusal that may have been judged before the home was lost: its evidence is judged anew, where the peer still has it.
    fn weigh_again(&mut self, now: Ms, key: &str, log: &AwardLog, (code, hash): &(String, String)) {
        let key = key.to_owned();
        let evidence = log.evidence.clone().unwrap_or_else(|| blank_evidence(code));
        if evidence.code != *code || evidence.hash().ok().as_ref() != Some(hash) {
            return;
        }
        if let Some(work) = self.work.get_mut(&key) {
            work.withdrawn |= log.withdrawn;
        }
        self.weigh(now, &key, &evidence);
    }

    /// The proof that the peer keeps, if it is ours and the one that we signed for.
    fn own_proof(&self, log: &AwardLog, facts: &Facts) -> Option<Proof> {
        let fits = |proof: &&Proof| {
            proof.executor == self.policy.me
                && proof.requester == log.award.requester
                && proof.task == log.award.task
                && proof.award_no == log.award.award_no
                && self.is_own_key(&proof.key)
                && proof.hash().ok() == facts.completed
        };
        log.proof.as_ref().filter(fits).cloned()
    }

    fn lock_work(&mut self, now: Ms, key: &str, total_mc: u64) {
        let key = key.to_owned();
        if (self.work.get(&key)).is_some_and(|w| w.money == Money::None) {
            self.move_work_money(now, &key, Event::Lock, total_mc);
        }
    }

    fn end_adopted(&mut self, now: Ms, key: &str, end: &str) {
        let key = key.to_owned();
        if (self.work.get(&key)).is_some_and(|w| w.money == Money::Locked) {
            self.move_work_money(now, &key, Event::Decline, 0);
        }
        self.end_work(now, &key, end);
    }

    /// We have delivered: the claim waits for its receipt. One that was refused, and that the backup never held, is given up: what
    /// the refusal rests on cannot be judged any more.
    fn finish_adopted(
        &mut self,
        now: Ms,
        key: &str,
        proof: Option<Proof>,
        total_mc: u64,
        refused: bool,
    ) {
        let key = key.to_owned();
        if refused {
            return self.end_adopted(now, &key, "refused");
        }
        let Some(work) = self.work.get_mut(&key).filter(|w| w.is_work()) else {
            return;
        };
        let Some(proof) = proof else {
            // Without it nothing can be claimed; what the backup knows of is computed once more.
            if work.money == Money::None {
                self.end_adopted(now, &key, "unacknowledged");
            }
            return;
        };
        work.stage = Stage::Finished;
        work.units = proof.units;
        work.units_done = proof.units;
        work.unit_price_mc = proof.unit_price_mc;
        // We signed it: it is within what was agreed.
        work.hops_mc = work.hops_mc.max(proof.hops_mc().unwrap_or(0));
        work.started_ms = work.started_ms.max(proof.started_ms);
        work.proof = Some(proof);
        self.lock_work(now, &key, total_mc);
    }

    fn forgotten_work(&self, from: &str, log: &AwardLog, facts: &Facts, until: Ms) -> Engagement {
        let (accepted_ms, total_mc) = facts.accepted.unwrap_or_default();
        let proof = log.proof.as_ref();
        let terms = facts.awarded.as_ref();
        Engagement {
            key: engagement::key(from, &log.award.task, log.award.award_no),
            requester: from.to_owned(),
            task: log.award.task.clone(),
            context: String::new(),
            award_no: log.award.award_no,
            skill: proof.map(|p| p.skill.clone()).unwrap_or_default(),
            tier: self.peer(from).tier,
            critical: false,
            order: self.owner.order,
            units: 0,
            unit_price_mc: 0,
            total_mc,
            hops_mc: 0,
            via: Vec::new(),
            calls: Vec::new(),
            stopped_hops: Vec::new(),
            commitment: String::new(),
            terms: terms.map(|(_, _, hash)| hash.clone()).unwrap_or_default(),
            on_cancel: "free".into(),
            result_by_ms: until,
            settle_by_ms: until,
            lease_ttl_ms: self.policy.lease_ttl_ms,
            relays: Vec::new(),
            // Asked to stop for good: no lease is ever granted for it.
            stage: Stage::Hibernating,
            stop: Some(StopWhy::Deadline),
            end: None,
            money: Money::None,
            checkpoint_units: 0,
            units_done: 0,
            executed: 0,
            attempts: 0,
            started_ms: accepted_ms,
            keepalive_at_ms: until,
            accepted_ms,
            ended_ms: 0,
            verification: "none".into(),
            evidence: None,
            withdrawn: log.withdrawn,
            called_superseded: false,
            agreed: None,
            proof: None,
        }
    }

    /// The peer waits for an answer to an award that this node has never heard of, or has forgotten.
    fn decline_forgotten(&mut self, now: Ms, from: &str, log: &AwardLog, facts: &Facts) {
        let until = now.saturating_add(DECLINED_MS);
        let (task, no) = (log.award.task.clone(), log.award.award_no);
        let owner = format!("{from}/{task}");
        let mut heads = self.mark(&owner, until).heads.clone();
        self.admit_all(now, &task, facts, &mut heads);
        self.mark(&owner, until).heads = heads;
        let what = Act::Declined {
            award_no: no,
            code: LOST.to_owned(),
        };
        let entry = self.write_foreign_entry(now, from, &task, until, what);
        let body = serde_json::json!({"from": from, "code": LOST});
        self.journal("award_declined", Some(&task), body);
        let decline = Decline {
            task,
            requester: from.to_owned(),
            award_no: no,
            code: LOST.to_owned(),
            message: "the executor was restored from a backup that does not know this award".into(),
            retry_at_ms: None,
            entry: Some(entry),
            binding: Some(self.policy.binding.clone()),
        };
        let until = now.saturating_add(self.policy.message_ttl_ms);
        self.send_peer(from, Body::Decline(Box::new(decline)), until);
    }

    /// An award that was declined, or withdrawn before it was accepted: a relay may still have it, and it must not be taken now.
    fn remember_declined(&mut self, now: Ms, from: &str, log: &AwardLog, facts: &Facts, until: Ms) {
        let mut work = self.forgotten_work(from, log, facts, until);
        work.stage = Stage::Ended;
        work.stop = None;
        work.end = Some("declined".to_owned());
        work.ended_ms = now;
        self.dirty.work.insert(work.key.clone());
        self.work.insert(work.key.clone(), work);
    }
}
