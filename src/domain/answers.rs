//! Our part when an executor answers: it accepts, declines, tells how the work goes, or gives it up.

use super::Node;
use super::history::{self, Draft};
use super::job::{AwardRow, AwardState, Job, Phase, Reason, Route, TaskState};
use super::ledger::{Event, Side, State as Money};
use super::step::{Chance, Change, Incoming, Ms, Refused, Row};
use crate::wire::entry::{Act, Entry};
use crate::wire::market::{Accept, Decline, Withdraw};
use crate::wire::message::{Body, News, Update};

/// How often a paused peer is asked for a directed task that it did not take.
const PAUSED_RETRY_MS: Ms = 60_000;

impl Node {
    pub(super) fn on_accept(
        &mut self,
        now: Ms,
        from: &str,
        accept: &Accept,
    ) -> Result<(), Refused> {
        let ttl = self.policy.lease_ttl_ms;
        let job = self.job_awarded(&accept.task, accept.award_no, from)?;
        let current = job.awards.last().map_or(0, |a| a.no);
        let (ended, no) = (job.phase == Phase::Ended, accept.award_no);
        if !keeps_terms(job, accept) {
            return Err(Refused::new(
                "accept_terms",
                "the acceptance changes the agreed price",
            ));
        }
        let stated = Act::Accepted {
            award_no: no,
            total_mc: accept.total_mc,
        };
        if accept.entry.what != stated {
            return Err(Refused::new(
                "entry_mismatch",
                "the signed entry states something else",
            ));
        }
        self.admit_job_entry(now, &accept.task, from, &accept.entry)?;
        let Some(job) = self.jobs.get_mut(&accept.task) else {
            return Ok(());
        };
        let Some(award) = job.award_mut(no) else {
            return Ok(());
        };
        if award.state == AwardState::Sent {
            award.state = AwardState::Accepted;
            award.unit_price_mc = Some(accept.unit_price_mc);
            award.hops_mc = Some(accept.hops_mc);
            award.lease_until_ms = now.saturating_add(ttl);
            if no == current && !ended {
                job.phase = Phase::Working;
                job.state = TaskState::Working;
                job.marks.accepted_ms = now;
                job.reason = Some(Reason::new("working", "the executor has accepted"));
            }
            let stopped = self
                .jobs
                .get(&accept.task)
                .and_then(|j| j.awards.iter().find(|a| a.no == no))
                .and_then(|a| Some((a.useful_units?, a.stopped_hops.clone())));
            self.journal(
                "accept",
                Some(&accept.task),
                serde_json::json!({"award_no": no, "executor": from, "total_mc": accept.total_mc}),
            );
            if let Some((useful, hops)) = stopped {
                self.on_stopped(now, &accept.task, no, useful, &hops);
            } else if ended {
                // The acceptance met our cancel on the way, or the executor never saw it.
                self.cancel_awards(now, &accept.task);
            }
        } else if award.state == AwardState::Superseded {
            let withdraw = Withdraw {
                task: accept.task.clone(),
                below_award_no: current.saturating_add(1),
            };
            self.send_peer(
                from,
                Body::Withdraw(withdraw),
                now.saturating_add(self.policy.message_ttl_ms),
            );
        }
        self.changed(&accept.task);
        Ok(())
    }

    pub(super) fn on_decline(
        &mut self,
        now: Ms,
        incoming: &Incoming,
        decline: &Decline,
    ) -> Result<(), Refused> {
        let from = incoming.from.as_str();
        let reason = Reason {
            code: decline.code.chars().take(64).collect(),
            text: decline.message.chars().take(300).collect(),
            retry_at_ms: decline.retry_at_ms,
        };
        if decline.award_no == 0 {
            let known = self.peer(from).tier != super::peer::Tier::Stranger;
            let job = self
                .jobs
                .get_mut(&decline.task)
                .filter(|j| j.phase == Phase::Placing);
            let job = job.ok_or_else(|| Refused::new("task_unknown", "no open offer of ours"))?;
            // A decline of an earlier round, or from before a pause ended, says nothing against a bid that is here.
            let has_bid = job.bids.iter().any(|(npub, _)| npub == from);
            if !has_bid && (job.refusals.len() < 256 || known) {
                job.refusals.insert(from.to_owned(), reason);
            }
            self.dirty.jobs.insert(decline.task.clone());
            self.close_if_all_answered(now, &decline.task);
            return Ok(());
        }
        self.job_awarded(&decline.task, decline.award_no, from)?;
        let entry = decline.entry.as_ref().ok_or_else(|| {
            Refused::new("entry_missing", "a declined award needs a signed entry")
        })?;
        match &entry.what {
            Act::Declined { award_no, code }
                if *award_no == decline.award_no && *code == decline.code => {}
            _ => {
                return Err(Refused::new(
                    "entry_mismatch",
                    "the signed entry states something else",
                ));
            }
        }
        self.admit_job_entry(now, &decline.task, from, entry)?;
        self.award_gone(now, &decline.task, decline.award_no, reason);
        Ok(())
    }

    /// The executor of this award says that it will not deliver: release the money and look elsewhere.
    pub(super) fn award_gone(&mut self, now: Ms, task: &str, no: u32, mut reason: Reason) {
        if reason.code == super::recovering::LOST {
            // It has forgotten the award, not refused the work.
            reason.retry_at_ms.get_or_insert(now);
        }
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let Some(award) = job.award_mut(no) else {
            return;
        };
        if matches!(award.state, AwardState::Declined | AwardState::Delivered) {
            return;
        }
        award.state = AwardState::Declined;
        let executor = award.executor.clone();
        self.journal(
            "declined",
            Some(task),
            serde_json::json!({"award_no": no, "code": reason.code}),
        );
        self.move_award_money(now, task, no, Event::Decline, 0);
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        if !matches!(job.phase, Phase::Awarded | Phase::Working)
            || job.current().is_none_or(|a| a.no != no)
        {
            return;
        }
        job.refusals.insert(executor, reason.clone());
        self.dirty.jobs.insert(task.to_owned());
        match &job.route {
            Route::Pool(_) => self.place(now, task),
            Route::Own => self.end(now, task, TaskState::Failed, reason),
            Route::Peer(_) => match next_try_ms(&reason, now).filter(|at| *at < job.deadline_ms) {
                Some(at) => {
                    job.phase = Phase::Placing;
                    job.state = TaskState::Submitted;
                    job.again_at_ms = Some(at.max(now.saturating_add(1)));
                    job.reason = Some(reason);
                    self.changed(task);
                }
                None => self.end(now, task, TaskState::Rejected, reason),
            },
        }
    }

    pub(super) fn on_update(
        &mut self,
        now: Ms,
        chance: &mut Chance,
        from: &str,
        update: Update,
    ) -> Result<(), Refused> {
        let (task, no) = (update.task, update.award_no);
        self.job_awarded(&task, no, from)?;
        match update.news {
            News::Working {
                units_done,
                units_total,
                waiting,
            } => self.on_working(now, &task, no, (units_done, units_total), waiting),
            News::Paused {
                reason,
                retry_at_ms,
            } => self.on_paused(now, &task, no, &reason, retry_at_ms),
            News::Completed(result) if result.detached.is_some() => {
                return Err(Refused::new(
                    "transfer_missing",
                    "a result whose payload was not fetched",
                ));
            }
            News::Completed(result) => {
                return self.on_result(now, chance, from, &task, no, *result);
            }
            News::Failed {
                code,
                message,
                entry,
            } => {
                if entry.what
                    != (Act::Failed {
                        award_no: no,
                        code: code.clone(),
                    })
                {
                    return Err(Refused::new(
                        "entry_mismatch",
                        "the signed entry states something else",
                    ));
                }
                self.admit_job_entry(now, &task, from, &entry)?;
                self.award_gone(now, &task, no, Reason::new(&code, message));
            }
            News::Canceled {
                useful_units,
                entry,
            } => {
                let hops = match &entry.what {
                    Act::Stopped {
                        award_no,
                        useful_units: units,
                        hops,
                    } if (*award_no, *units) == (no, useful_units) => hops.clone(),
                    _ => {
                        return Err(Refused::new(
                            "entry_mismatch",
                            "the signed entry states something else",
                        ));
                    }
                };
                self.admit_job_entry(now, &task, from, &entry)?;
                self.on_stopped(now, &task, no, useful_units, &hops);
            }
        }
        Ok(())
    }

    fn on_working(
        &mut self,
        now: Ms,
        task: &str,
        no: u32,
        (units_done, units_total): (u32, u32),
        waiting: Option<String>,
    ) {
        let ttl = self.policy.lease_ttl_ms;
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let is_current = job.current().is_some_and(|a| a.no == no);
        let Some(award) = job.award_mut(no) else {
            return;
        };
        award.lease_until_ms = now.saturating_add(ttl);
        award.paused_since_ms = None;
        award.units_done = units_done;
        if is_current && job.phase == Phase::Working {
            let text = format!("{units_done} of {units_total} units done");
            job.reason = Some(match waiting {
                None => Reason::new("working", text),
                Some(what) => {
                    let what: String = what.chars().take(32).collect();
                    let text = format!("{text}; a part of it is done by somebody else");
                    Reason::new(&format!("waiting: {what}"), text)
                }
            });
        }
        self.dirty.jobs.insert(task.to_owned());
        self.changed(task);
    }

    fn on_paused(&mut self, now: Ms, task: &str, no: u32, why: &str, retry_at_ms: Option<Ms>) {
        let ttl = self.policy.lease_ttl_ms;
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let is_current = job.current().is_some_and(|a| a.no == no) && job.phase != Phase::Ended;
        let Some(award) = job.award_mut(no) else {
            return;
        };
        award.paused_since_ms.get_or_insert(now);
        award.lease_until_ms = now.saturating_add(ttl);
        if is_current {
            let code: String = why.chars().take(32).collect();
            job.reason = Some(Reason {
                code: format!("paused: {code}"),
                text: "the executor's owner has taken the hardware; the work goes on from its checkpoint".into(),
                retry_at_ms,
            });
        }
        self.dirty.jobs.insert(task.to_owned());
        self.journal(
            "paused",
            Some(task),
            serde_json::json!({"award_no": no, "reason": why, "retry_at_ms": retry_at_ms}),
        );
        self.changed(task);
    }

    /// The job that awarded `no` to `from`.
    pub(super) fn job_awarded(
        &mut self,
        task: &str,
        no: u32,
        from: &str,
    ) -> Result<&mut Job, Refused> {
        let job = self
            .jobs
            .get_mut(task)
            .ok_or_else(|| Refused::new("task_unknown", "no live task of ours has this id"))?;
        if job.heads.equivocators.contains(from) {
            return Err(Refused::new(
                "task_disputed",
                "the sender has contradicted itself about this task: nothing more of it is believed",
            ));
        }
        match job.awards.iter().find(|a| a.no == no) {
            None => Err(Refused::new(
                "award_no_unknown",
                "the task has no award with this number",
            )),
            Some(award) if award.executor != from => Err(not_awarded()),
            Some(_) => Ok(job),
        }
    }

    pub(super) fn write_job_entry(&mut self, now: Ms, task: &str, what: Act) -> Entry {
        let (me, key) = (self.policy.me.clone(), self.policy.key.clone());
        let above = self.lineage.numbers_above;
        let Some(job) = self.jobs.get_mut(task) else {
            return Entry::blank();
        };
        let entry = history::write(
            &mut job.heads,
            now,
            Draft {
                task,
                requester: &me,
                author: &me,
                key: &key,
                what,
                above,
            },
        );
        self.dirty.jobs.insert(task.to_owned());
        self.put(Row::Entry(Box::new(entry.clone())));
        entry
    }

    pub(super) fn admit_job_entry(
        &mut self,
        now: Ms,
        task: &str,
        from: &str,
        entry: &Entry,
    ) -> Result<(), Refused> {
        let me = self.policy.me.clone();
        self.entry_belongs(task, &me, from, entry)?;
        let Some(job) = self.jobs.get_mut(task) else {
            return Ok(());
        };
        let admitted = history::admit(&mut job.heads, now, entry);
        self.dirty.jobs.insert(task.to_owned());
        if admitted.as_ref().is_err_and(|e| e.code == "equivocation") {
            self.journal(
                "equivocation",
                Some(task),
                serde_json::json!({"author": from}),
            );
            if from != self.policy.me {
                self.edit_peer(from, |peer| {
                    peer.frauds = peer.frauds.saturating_add(1);
                    peer.disputed = true;
                });
            }
        }
        if admitted.as_ref().is_ok() || admitted.as_ref().is_err_and(|e| e.code == "equivocation") {
            self.put(Row::Entry(Box::new(entry.clone())));
        }
        admitted
    }

    /// Moves the money of an award, in the ledger and on its row.
    pub(super) fn move_award_money(
        &mut self,
        now: Ms,
        task: &str,
        no: u32,
        event: Event,
        amount_mc: u64,
    ) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let Some(award) = job.awards.iter_mut().find(|a| a.no == no) else {
            return;
        };
        if award.executor == self.policy.me {
            award.money = if event == Event::Lock {
                Money::None
            } else {
                award.money
            };
            return;
        }
        let key = (Side::Requester, award.executor.clone(), task.to_owned(), no);
        let settled = matches!(award.money, Money::Committed | Money::RolledBack);
        match self.ledger.apply(&key, event, amount_mc, settled, now) {
            Ok(Some(transfer)) => {
                award.money = match transfer.kind {
                    super::ledger::Kind::Lock => Money::Locked,
                    super::ledger::Kind::Commit => Money::Committed,
                    super::ledger::Kind::Rollback => Money::RolledBack,
                };
                let npub = transfer.npub.clone();
                self.dirty.jobs.insert(task.to_owned());
                self.dirty.accounts.insert(npub);
                self.out.changes.push(Change::Put(Row::Transfer(transfer)));
            }
            Ok(None) => {}
            Err(refused) => self.journal(
                "money_refused",
                Some(task),
                serde_json::json!({"code": refused.code, "award_no": no}),
            ),
        }
    }
}

/// Whether an acceptance is within what was awarded.
fn keeps_terms(job: &Job, accept: &Accept) -> bool {
    let units = u64::from(job.units);
    let for_units = accept.total_mc.checked_sub(accept.hops_mc);
    let counted = for_units.is_some_and(|for_units| {
        units == 0 || units.checked_mul(accept.unit_price_mc) == Some(for_units)
    });
    let agreed = |a: &AwardRow| {
        accept.total_mc <= a.cap_mc
            && a.unit_price_mc.is_none_or(|p| p == accept.unit_price_mc)
            && a.hops_mc.is_none_or(|most| accept.hops_mc == most)
    };
    counted && (job.awards.iter()).any(|a| a.no == accept.award_no && agreed(a))
}

/// When a peer that declined may be asked once more. A pause without an end may end at any time.
fn next_try_ms(reason: &Reason, now: Ms) -> Option<Ms> {
    let paused = reason.code == super::auction::OWNER_PAUSED;
    (reason.retry_at_ms).or_else(|| paused.then(|| now.saturating_add(PAUSED_RETRY_MS)))
}

fn not_awarded() -> Refused {
    Refused::new("not_awarded", "this task was never awarded to the sender")
}
