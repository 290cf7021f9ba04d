//! Our part while others work: deadlines, leases, canceling, and the end of a job.

use super::Node;
use super::job::{AwardRow, AwardState, Job, Phase, Reason, Route, TaskState};
use super::ledger::State as Money;
use super::step::{Addressee, Effect, Ms, Refused};
use crate::wire::entry::Act;
use crate::wire::market::Withdraw;
use crate::wire::message::{Body, Cancel};

impl Node {
    pub(super) fn on_cancel_command(&mut self, now: Ms, task: &str) {
        let answer = match self.jobs.get(task) {
            None => Err(Refused::new(
                "task_unknown",
                format!("no task of this node has the id {task}"),
            )),
            Some(job) if job.phase == Phase::Ended && job.state == TaskState::Canceled => Ok(()),
            Some(job) if job.phase == Phase::Ended => Err(Refused::new(
                "task_final",
                format!("the task is already {}", job.state.as_str()),
            )),
            Some(_) => {
                self.cancel_awards(now, task);
                self.end(
                    now,
                    task,
                    TaskState::Canceled,
                    Reason::new("canceled", "canceled by the owner"),
                );
                Ok(())
            }
        };
        self.out.effects.push(Effect::Done(answer));
    }

    /// Tells every executor that may still work on the task to stop.
    pub(super) fn cancel_awards(&mut self, now: Ms, task: &str) {
        let Some(job) = self.jobs.get(task) else {
            return;
        };
        let open: Vec<_> = job
            .awards
            .iter()
            .filter(|a| {
                matches!(
                    a.state,
                    AwardState::Sent | AwardState::Accepted | AwardState::Superseded
                )
            })
            .map(|a| a.executor.clone())
            .collect();
        if open.is_empty() {
            return;
        }
        let entry = self.write_job_entry(now, task, Act::Canceled);
        let expires = now.saturating_add(self.policy.message_ttl_ms);
        let mut told: Vec<String> = Vec::new();
        for executor in open {
            if !told.contains(&executor) {
                let body = Body::Cancel(Box::new(Cancel {
                    task: task.to_owned(),
                    entry: entry.clone(),
                }));
                self.send_peer(&executor, body, expires);
                told.push(executor);
            }
        }
    }

    /// Ends the task. Money that is still undecided stays locked, and the job stays live until it is decided.
    pub(super) fn end(&mut self, now: Ms, task: &str, state: TaskState, reason: Reason) {
        let me = self.policy.me.clone();
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let offered = job.round > 0;
        let pool = match &job.route {
            Route::Pool(pool) if offered && job.phase == Phase::Placing => Some(pool.clone()),
            _ => None,
        };
        job.phase = Phase::Ended;
        job.state = state;
        job.marks.ended_ms = now;
        job.window_ends_ms = None;
        job.again_at_ms = None;
        job.bids.clear();
        let code = reason.code.clone();
        job.reason = Some(reason);
        self.dirty.jobs.insert(task.to_owned());
        self.inputs.remove(task);
        self.journal(
            "ended",
            Some(task),
            serde_json::json!({"state": state.as_str(), "code": code, "requester": me}),
        );
        if let Some(pool) = pool {
            let withdraw = Withdraw {
                task: task.to_owned(),
                below_award_no: 0,
            };
            self.send(
                Addressee::Pool(pool),
                Body::Withdraw(withdraw),
                true,
                Vec::new(),
                now.saturating_add(60_000),
            );
        }
        if offered {
            self.out.effects.push(Effect::Inboxes);
        }
        self.changed(task);
        self.hop_ended(now, task);
    }

    /// What time alone does to a job.
    pub(super) fn job_timers(&mut self, now: Ms, task: &str) {
        let Some(job) = self.jobs.get(task) else {
            return;
        };
        let skew = self.policy.skew_ms;
        let deadline = job.deadline_ms;
        match job.phase {
            Phase::Placing if now >= deadline => {
                self.end(
                    now,
                    task,
                    TaskState::Rejected,
                    Reason::new("no_provider", "no executor was found before the deadline"),
                );
            }
            Phase::Placing if job.window_ends_ms.is_some_and(|at| now >= at) => {
                self.choose(now, task)
            }
            Phase::Placing if job.again_at_ms.is_some_and(|at| now >= at) => self.place(now, task),
            Phase::Placing if job.round > 0 && now >= job.offer_expires_ms => self.place(now, task),
            Phase::Awarded | Phase::Working if now >= deadline.saturating_add(skew) => {
                self.cancel_awards(now, task);
                self.end(
                    now,
                    task,
                    TaskState::Failed,
                    Reason::new(
                        "deadline_passed",
                        "no result came before the deadline; the money stays locked until it is settled or `settle_by` passes",
                    ),
                );
            }
            Phase::Awarded
                if self.online
                    && job
                        .current()
                        .is_some_and(|a| now >= a.accept_by_ms.saturating_add(skew)) =>
            {
                self.supersede(now, task, "accept_timeout")
            }
            Phase::Working if self.online && matches!(job.route, Route::Pool(_)) => {
                let lost = job.current().is_some_and(|a| now >= self.lease_ends_ms(a));
                if lost {
                    self.supersede(now, task, "lease_expired");
                }
            }
            _ => {}
        }
        self.settle_timers(now, task);
    }

    /// The executor has not answered or its lease ran out: withdraw, and award anew with a higher number.
    fn supersede(&mut self, now: Ms, task: &str, code: &str) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let Some(award) = job.awards.last_mut() else {
            return;
        };
        award.state = AwardState::Superseded;
        let (no, executor) = (award.no, award.executor.clone());
        job.refusals.insert(
            executor.clone(),
            Reason::until(code, "no sign of life from the executor", now),
        );
        self.journal(
            code,
            Some(task),
            serde_json::json!({"award_no": no, "executor": executor}),
        );
        let withdraw = Withdraw {
            task: task.to_owned(),
            below_award_no: no + 1,
        };
        self.send_peer(
            &executor,
            Body::Withdraw(withdraw),
            now.saturating_add(self.policy.message_ttl_ms),
        );
        self.place(now, task);
    }

    /// When a lease runs out: after its time without a sign of life, a paused one after the longest hibernation.
    fn lease_ends_ms(&self, award: &AwardRow) -> Ms {
        let patience_ms = self.policy.max_hibernate_s.saturating_mul(1000);
        award
            .paused_since_ms
            .map_or(0, |since| since.saturating_add(patience_ms))
            .max(award.lease_until_ms)
    }

    /// When time alone changes a job. What only an online node may judge is not due while it is offline.
    pub(super) fn job_wake_ms(&self, job: &Job) -> Ms {
        let mut wake = Ms::MAX;
        let mut at = |ms: Ms| wake = wake.min(ms);
        let skew = self.policy.skew_ms;
        match (job.phase, job.current()) {
            (Phase::Placing, _) => {
                at(job.deadline_ms);
                job.window_ends_ms.into_iter().for_each(&mut at);
                job.again_at_ms.into_iter().for_each(&mut at);
                if job.round > 0 {
                    at(job.offer_expires_ms);
                }
            }
            (Phase::Awarded | Phase::Working, award) => {
                at(job.deadline_ms.saturating_add(skew));
                if let Some(award) =
                    award.filter(|_| self.online && matches!(job.route, Route::Pool(_)))
                {
                    at(if job.phase == Phase::Awarded {
                        award.accept_by_ms.saturating_add(skew)
                    } else {
                        self.lease_ends_ms(award)
                    });
                }
            }
            (Phase::Checking | Phase::Ended, _) => {}
        }
        if self.online && !job.is_checking() {
            job.awards
                .iter()
                .filter(|a| a.money == Money::Locked)
                .for_each(|a| at(a.settle_by_ms));
        }
        wake
    }
}
