//! What a restored node believes of what a peer holds, and what follows for its book. Nothing counts for having been said: an
//! award of ours by our signature and the executor's name in it, a payment of ours by our signature, a payment to us by
//! theirs for work that we signed for. Whatever has no signature of ours changes nothing. Signatures themselves were verified
//! before; here it is decided whose they are.
//!
//! Entries of ours are taken in before anything new is written, and new ones are numbered above all of them, so that no peer
//! ever sees two of ours under one number. Work that nobody here can finish any more is ended on both sides.

use super::Node;
use super::engagement::{self, Engagement, Stage, StopWhy};
use super::history;
use super::job::{AwardRow, AwardState, Heads, Job, Marks, Phase, Reason, Route, TaskState};
use super::judging::claim_fault;
use super::ledger::{Event, State as Money};
use super::recovering::LOST;
use super::step::{Findings, Ms, Refused, Row};
use crate::wire::bounds::MAX_TERM_MS;
use crate::wire::entry::{Act, Entry};
use crate::wire::log::{AwardLog, Named};
use crate::wire::market::{Decline, Terms};
use crate::wire::message::Body;
use crate::wire::proof::Proof;

/// What is known of one award by signatures that count, and by nothing else.
#[derive(Default)]
struct Facts {
    ours: Vec<Entry>,
    theirs: Vec<Entry>,
    /// By the requester: when, for whom, on which terms.
    awarded: Option<(Ms, String, String)>,
    /// By the executor: when, for at most how much.
    accepted: Option<(Ms, u64)>,
    /// By the executor: declined or failed, and why.
    gone: Option<String>,
    /// By the executor: stopped after so many units.
    stopped: Option<u32>,
    /// By the executor: hash of the proof.
    completed: Option<String>,
    /// By the requester.
    canceled: bool,
    /// By the requester: cost, hash of the proof, quality.
    paid: Option<(u64, String, Option<u32>)>,
    /// By the requester: why.
    refused: Option<String>,
}

impl Facts {
    /// Takes the statement of an entry that the requester (or the executor) of award `no` made.
    fn note(&mut self, entry: &Entry, no: u32, by_requester: bool) {
        let at_ms = entry.hlc / 1024;
        match (&entry.what, by_requester) {
            (Act::Canceled, true) => self.canceled = true,
            (
                Act::Awarded {
                    award_no,
                    executor,
                    terms,
                },
                true,
            ) if *award_no == no => self.awarded = Some((at_ms, executor.clone(), terms.clone())),
            (
                Act::Paid {
                    award_no,
                    cost_mc,
                    proof,
                    quality_bp,
                },
                true,
            ) if *award_no == no => self.paid = Some((*cost_mc, proof.clone(), *quality_bp)),
            (Act::Refused { award_no, code, .. }, true) if *award_no == no => {
                self.refused = Some(code.clone());
            }
            (Act::Accepted { award_no, total_mc }, false) if *award_no == no => {
                self.accepted = Some((at_ms, *total_mc));
            }
            (Act::Declined { award_no, code } | Act::Failed { award_no, code }, false)
                if *award_no == no =>
            {
                self.gone = Some(code.clone());
            }
            (
                Act::Stopped {
                    award_no,
                    useful_units,
                },
                false,
            ) if *award_no == no => self.stopped = Some(*useful_units),
            (Act::Completed { award_no, proof }, false) if *award_no == no => {
                self.completed = Some(proof.clone());
            }
            _ => {}
        }
    }
}

fn unsigned() -> Refused {
    Refused::new(
        "claim_unsigned",
        "nothing that this node signed says so: nothing changes",
    )
}

impl Node {
    /// Takes over what a peer holds of one award between us; whether anything was new.
    pub(super) fn adopt(&mut self, now: Ms, from: &str, log: &AwardLog) -> Result<bool, Refused> {
        let hired = log.award.requester == self.policy.me;
        if !hired && log.award.requester != from {
            return Err(unsigned());
        }
        let facts = self.facts(from, log, hired);
        if hired {
            self.adopt_hired(now, from, log, &facts)
        } else {
            self.adopt_worked(now, from, log, &facts)
        }
    }

    /// The entries whose keys are bound to their authors.
    fn facts(&self, from: &str, log: &AwardLog, hired: bool) -> Facts {
        let mut facts = Facts::default();
        let mut entries: Vec<&Entry> = log.entries.iter().collect();
        entries.sort_by_key(|e| e.seq);
        for entry in entries {
            let mine = entry.author == self.policy.me;
            let bound = if mine {
                self.is_own_key(&entry.key)
            } else {
                entry.author == from && self.peers.get(from).is_some_and(|p| p.owns(&entry.key))
            };
            let about = entry.task == log.award.task && entry.requester == log.award.requester;
            if bound && about {
                facts.note(entry, log.award.award_no, mine == hired);
                let side = if mine {
                    &mut facts.ours
                } else {
                    &mut facts.theirs
                };
                side.push(entry.clone());
            }
        }
        facts
    }

    fn is_own_key(&self, key: &str) -> bool {
        self.policy.key == key || self.lineage.keys.iter().any(|own| own == key)
    }

    /// Whether something signed then would be in the store, were it older than the backup.
    fn was_backed_up(&self, signed_ms: Ms) -> bool {
        // What was decided just before may not have been in the store yet.
        let slack_ms = 3_600_000;
        (self.recovery.as_ref()).is_some_and(|r| signed_ms.saturating_add(slack_ms) < r.since_ms)
    }

    fn admit_all(&mut self, now: Ms, task: &str, facts: &Facts, heads: &mut Heads) -> bool {
        let mut honest = true;
        for entry in facts.ours.iter().chain(&facts.theirs) {
            match history::admit(heads, now, entry) {
                Ok(()) => self.put(Row::Entry(Box::new(entry.clone()))),
                Err(_) => {
                    honest = false;
                    self.put(Row::Entry(Box::new(entry.clone())));
                    let body = serde_json::json!({"author": entry.author});
                    self.journal("equivocation", Some(task), body);
                    if entry.author != self.policy.me {
                        self.edit_peer(&entry.author.clone(), |peer| {
                            peer.frauds = peer.frauds.saturating_add(1);
                            peer.disputed = true;
                        });
                    }
                }
            }
        }
        honest
    }

    // ---- we hired ------------------------------------------------------------------------------------------------

    fn adopt_hired(
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
        } else if let Some(code) = &facts.refused {
            self.give_up_award(now, task, no, Event::Refusal);
            if let Some(job) = self.jobs.get_mut(task) {
                let reason = Reason::new(code, "the result was refused before the restoration");
                job.refusals.insert(from.to_owned(), reason);
            }
        } else if facts.gone.is_some() {
            self.give_up_award(now, task, no, Event::Decline);
        } else if let Some(useful) = facts.stopped {
            self.lock_forgotten(now, task, no);
            self.cancel_known(now, task);
            self.on_stopped(now, task, no, useful);
        } else if facts.completed.is_some() && !known {
            self.lock_forgotten(now, task, no);
            self.judge_forgotten(now, from, log, facts, terms);
        } else if known {
            self.lock_forgotten(now, task, no);
            self.confirm_award(task, no, facts);
        } else {
            self.lock_forgotten(now, task, no);
            if !facts.canceled {
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
            self.cancel_known(now, task);
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

    /// It was canceled, whatever the backup says.
    fn cancel_known(&mut self, now: Ms, task: &str) {
        let open = |j: &&Job| j.phase != Phase::Ended || j.state == TaskState::Submitted;
        if self.jobs.get(task).filter(open).is_some() {
            let reason = Reason::new("canceled", "canceled before the restoration");
            self.end(now, task, TaskState::Canceled, reason);
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
                proof.commitment == terms.commitment
                    && claim_fault(terms.units, terms.result_by_ms, price, cap, proof).is_none()
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

    // ---- we worked -----------------------------------------------------------------------------------------------

    fn adopt_worked(
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
            if ours.is_none() || facts.gone.is_some() || !log.open {
                return Ok(false);
            }
            self.decline_forgotten(now, from, log, facts, until);
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
        let claimed = proof.as_ref().map(|p| p.cost_mc);
        match &facts.paid {
            Some((cost_mc, hash, _))
                if earned(hash)
                    && *cost_mc <= total_mc
                    && claimed.is_none_or(|claim| claim == *cost_mc || hash.is_empty()) =>
            {
                self.lock_work(now, &key, total_mc);
                self.move_work_money(now, &key, Event::Receipt, *cost_mc);
                self.edit_peer(from, |p| p.completed = p.completed.saturating_add(1));
                self.end_work(now, &key, "paid");
            }
            _ if facts.gone.is_some() => self.end_adopted(now, &key, "failed"),
            _ if facts.completed.is_some() => self.finish_adopted(
                now,
                &key,
                proof,
                total_mc,
                facts.refused.is_some() && !known,
            ),
            _ if facts.stopped.is_some_and(|units| units > 0) && known => {
                if let Some(work) = self.work.get_mut(&key) {
                    work.stage = Stage::Finished;
                    work.units_done = facts.stopped.unwrap_or(0);
                }
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
            _ if facts.canceled => {
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
    fn decline_forgotten(&mut self, now: Ms, from: &str, log: &AwardLog, facts: &Facts, until: Ms) {
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
        self.send_peer(from, Body::Decline(Box::new(decline)), until);
    }

    /// A time in an answer, within reason.
    fn term(&self, now: Ms, at_ms: Ms) -> Ms {
        at_ms.clamp(now.saturating_add(60_000), now.saturating_add(MAX_TERM_MS))
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
        heads: Heads::default(),
        marks: Marks {
            asked_ms,
            ended_ms: now,
            ..Marks::default()
        },
    }
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
    let counted = |t: &Terms| {
        let each = total_mc.unwrap_or(0).checked_div(u64::from(t.units));
        t.unit_price_mc.or(each)
    };
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
        unit_price_mc: terms.and_then(counted),
        terms: terms_hash.to_owned(),
        accept_by_ms: terms.map_or(now, |t| t.accept_by_ms),
        settle_by_ms: terms.map_or(now.saturating_add(600_000), |t| t.settle_by_ms),
        lease_until_ms: now,
        paused_since_ms: None,
        units_done: 0,
        useful_units: None,
    }
}
