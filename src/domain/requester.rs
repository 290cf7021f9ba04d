//! Our part when we hire: placing, awarding, waiting, and ending a job.

use super::Node;
use super::history::{self, Draft};
use super::job::{AwardRow, AwardState, Heads, Job, Marks, Phase, Reason, Route, TaskState};
use super::ledger::{AMOUNT_MAX_MC, Event, Side, State as Money};
use super::step::{Addressee, Ask, Chance, Change, Effect, Incoming, Ms, Refused, Row, TaskId};
use crate::wire::entry::{Act, Entry};
use crate::wire::market::{self, Accept, Award, Decline, Withdraw};
use crate::wire::message::{Body, Cancel, News, Update};

/// How long an idempotency key holds.
pub const KEY_TTL_MS: Ms = 7 * 24 * 3600 * 1000;

/// Longest deadline of a task.
const DEADLINE_MAX_MS: Ms = 366 * 24 * 3600 * 1000;

/// Most awards of one task: enough for every honest failure, an end to every other.
const AWARDS_MAX: usize = 64;

impl Node {
    pub(super) fn on_ask(&mut self, now: Ms, chance: &mut Chance, ask: Ask) {
        let answer = self.ask(now, chance, ask);
        self.out.effects.push(Effect::Asked(answer));
    }

    fn ask(&mut self, now: Ms, chance: &mut Chance, ask: Ask) -> Result<TaskId, Refused> {
        if let Some(key) = &ask.key
            && let Some((task, fingerprint, expires_ms)) = self.keys.get(key)
            && *expires_ms > now
        {
            return if *fingerprint == ask.fingerprint {
                Ok(task.clone())
            } else {
                Err(Refused::new(
                    "key_reused",
                    format!("the key {key:?} was used for another input: choose a new key"),
                ))
            };
        }
        self.admissible(&ask)?;
        let task = chance.hex(16);
        let salt = chance.hex(32);
        let commitment = market::commitment(&ask.input, &salt)
            .map_err(|e| Refused::new("input_invalid", e.to_string()))?;
        let route = match ask.route {
            Route::Peer(npub) if npub == self.policy.me => Route::Own,
            other => other,
        };
        let job = Job {
            task: task.clone(),
            context: chance.hex(16),
            skill: ask.skill,
            key: ask.key.clone(),
            critical: ask.critical,
            units: ask.plan.as_ref().map_or(0, |p| p.units),
            output_bytes_max: ask.plan.as_ref().map_or(0, |p| p.output_bytes_max),
            salt,
            commitment,
            max_price_mc: ask.max_price_mc.unwrap_or(self.policy.default_max_price_mc),
            deadline_ms: now.saturating_add(ask.deadline_ms),
            route,
            phase: Phase::Placing,
            state: TaskState::Submitted,
            reason: None,
            awards: Vec::new(),
            round: 0,
            offer_expires_ms: 0,
            window_ends_ms: None,
            bids: Vec::new(),
            refusals: Default::default(),
            again_at_ms: None,
            outcome: None,
            cost_mc: 0,
            heads: Heads::default(),
            marks: Marks {
                asked_ms: now,
                ..Marks::default()
            },
        };
        self.payload(
            &task,
            "input",
            serde_json::to_vec(&ask.input).unwrap_or_default(),
        );
        self.inputs.insert(task.clone(), ask.input);
        if let Some(key) = ask.key {
            let expires_ms = now.saturating_add(KEY_TTL_MS);
            self.keys.insert(
                key.clone(),
                (task.clone(), ask.fingerprint.clone(), expires_ms),
            );
            self.put(Row::Key {
                key,
                task: task.clone(),
                fingerprint: ask.fingerprint,
                expires_ms,
            });
        }
        self.journal(
            "asked",
            Some(&task),
            serde_json::json!({"skill": job.skill, "units": job.units, "route": job.route}),
        );
        self.jobs.insert(task.clone(), job);
        self.place(now, &task);
        Ok(task)
    }

    fn admissible(&self, ask: &Ask) -> Result<(), Refused> {
        if let Some(plan) = &ask.plan
            && plan.output_bytes_max > super::RESULT_BYTES_MAX
        {
            return Err(Refused::new(
                "payload_too_large",
                "the result would not fit into one envelope",
            ));
        }
        if let Route::Pool(name) = &ask.route
            && !self.policy.pools.contains(name)
        {
            return Err(Refused::new(
                "pool_unknown",
                format!("this node is not a member of the pool: {name}"),
            ));
        }
        if ask.max_price_mc.unwrap_or(self.policy.default_max_price_mc) > AMOUNT_MAX_MC {
            return Err(Refused::new(
                "amount_range",
                format!("the price limit is out of range: at most {AMOUNT_MAX_MC} mc"),
            ));
        }
        if ask.deadline_ms == 0 || ask.deadline_ms > DEADLINE_MAX_MS {
            return Err(Refused::new(
                "deadline_range",
                "the deadline must lie within a year from now",
            ));
        }
        let counted = ask.plan.as_ref().is_some_and(|p| p.units > 0);
        if matches!(&ask.route, Route::Pool(_)) && !counted {
            let text = format!(
                "this node cannot count the units of {}: ask a peer directly with `--peer`",
                ask.skill
            );
            return Err(Refused::new("skill_unknown", text));
        }
        let own = matches!(&ask.route, Route::Own)
            || matches!(&ask.route, Route::Peer(p) if *p == self.policy.me);
        if own && (!counted || !self.policy.skills.iter().any(|s| s.id == ask.skill)) {
            return Err(Refused::new(
                "skill_unknown",
                format!("this node does not have the skill: {}", ask.skill),
            ));
        }
        Ok(())
    }

    /// Finds the job an executor: the next best bid, a new offer, or the one peer that it is for.
    pub(super) fn place(&mut self, now: Ms, task: &str) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        self.dirty.jobs.insert(task.to_owned());
        job.phase = Phase::Placing;
        job.state = TaskState::Submitted;
        job.again_at_ms = None;
        match job.route.clone() {
            Route::Own => {
                let me = self.policy.me.clone();
                self.award(now, task, me, None, None);
            }
            Route::Peer(npub) => self.award(now, task, npub, None, None),
            Route::Pool(pool) => {
                job.bids.retain(|(_, bid)| bid.expires_ms > now);
                if job.bids.is_empty() {
                    self.offer(now, task, &pool);
                } else {
                    self.choose(now, task);
                }
            }
        }
    }

    pub(super) fn award(
        &mut self,
        now: Ms,
        task: &str,
        executor: String,
        unit_price_mc: Option<u64>,
        total_mc: Option<u64>,
    ) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let directed = total_mc.is_none();
        let own = executor == self.policy.me;
        let no = job.awards.len() as u32 + 1;
        if job.awards.len() >= AWARDS_MAX {
            let reason = Reason::new("no_provider", "too many executors gave the job up");
            self.end(now, task, TaskState::Rejected, reason);
            return;
        }
        // A directed request may be accepted until its deadline; the executor takes off the allowance for clocks.
        let accept_by_ms = if directed {
            job.deadline_ms.saturating_add(self.policy.skew_ms)
        } else {
            now.saturating_add(self.policy.accept_within_ms)
                .min(job.deadline_ms)
        };
        let settle_by_ms = job.deadline_ms.saturating_add(self.policy.settle_within_ms);
        let cap_mc = if own {
            0
        } else {
            total_mc.unwrap_or(job.max_price_mc)
        };
        let input = self
            .inputs
            .get(task)
            .cloned()
            .unwrap_or(serde_json::Value::Null);
        let mut award = Award {
            task: job.task.clone(),
            context: job.context.clone(),
            award_no: no,
            skill: job.skill.clone(),
            input,
            salt: job.salt.clone(),
            commitment: job.commitment.clone(),
            units: job.units,
            unit_price_mc,
            max_price_mc: cap_mc,
            accept_by_ms,
            result_by_ms: job.deadline_ms,
            settle_by_ms,
            lease_ttl_ms: self.policy.lease_ttl_ms,
            max_hibernate_s: self.policy.max_hibernate_s,
            on_cancel: self.policy.on_cancel.clone(),
            // What this node does not know it cannot verify, and says so in the terms.
            verification: if job.units == 0 {
                "none".to_owned()
            } else {
                self.policy.verification.clone()
            },
            lct: self.policy.lct.clone(),
            binding: self.policy.binding.clone(),
            relays: self.policy.relays.clone(),
            entry: Entry::blank(),
        };
        let terms = award.terms_hash().unwrap_or_default();
        let what = Act::Awarded {
            award_no: no,
            executor: executor.clone(),
            terms: terms.clone(),
        };
        award.entry = self.write_job_entry(now, task, what);
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        job.awards.push(AwardRow {
            no,
            executor: executor.clone(),
            state: AwardState::Sent,
            money: Money::None,
            cap_mc,
            unit_price_mc,
            terms,
            accept_by_ms,
            settle_by_ms,
            lease_until_ms: 0,
            paused_since_ms: None,
            units_done: 0,
            useful_units: None,
        });
        job.phase = Phase::Awarded;
        job.marks.awarded_ms = now;
        job.window_ends_ms = None;
        job.reason = Some(Reason::until(
            "waiting_for_accept",
            "awarded; the executor has not answered yet",
            accept_by_ms,
        ));
        self.journal(
            "award",
            Some(task),
            serde_json::json!({"award_no": no, "executor": executor, "cap_mc": cap_mc}),
        );
        self.move_award_money(now, task, no, Event::Lock, cap_mc);
        if !own
            && self
                .jobs
                .get(task)
                .and_then(Job::current)
                .is_some_and(|a| a.money != Money::Locked)
        {
            self.end(
                now,
                task,
                TaskState::Failed,
                Reason::new("amount_range", "the book cannot hold this amount"),
            );
            return;
        }
        let body = if directed {
            Body::Request(Box::new(award))
        } else {
            Body::Award(Box::new(award))
        };
        self.send_peer(&executor, body, settle_by_ms);
        self.changed(task);
    }

    pub(super) fn on_accept(
        &mut self,
        now: Ms,
        from: &str,
        accept: &Accept,
    ) -> Result<(), Refused> {
        let ttl = self.policy.lease_ttl_ms;
        let job = self.job_awarded(&accept.task, accept.award_no, from)?;
        let units = u64::from(job.units);
        let current = job.awards.last().map_or(0, |a| a.no);
        let (ended, no) = (job.phase == Phase::Ended, accept.award_no);
        let award = job.award_mut(no).ok_or_else(not_awarded)?;
        let agreed = award
            .unit_price_mc
            .is_none_or(|price| price == accept.unit_price_mc);
        let counted =
            units == 0 || units.checked_mul(accept.unit_price_mc) == Some(accept.total_mc);
        if accept.total_mc > award.cap_mc || !agreed || !counted {
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
            award.lease_until_ms = now.saturating_add(ttl);
            if no == current && !ended {
                job.phase = Phase::Working;
                job.state = TaskState::Working;
                job.marks.accepted_ms = now;
                job.reason = Some(Reason::new("working", "the executor has accepted"));
            }
            let useful = self
                .jobs
                .get(&accept.task)
                .and_then(|j| j.awards.iter().find(|a| a.no == no))
                .and_then(|a| a.useful_units);
            self.journal(
                "accept",
                Some(&accept.task),
                serde_json::json!({"award_no": no, "executor": from, "total_mc": accept.total_mc}),
            );
            if let Some(useful) = useful {
                self.on_stopped(now, &accept.task, no, useful);
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
            if job.refusals.len() < 256 || known {
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
    pub(super) fn award_gone(&mut self, now: Ms, task: &str, no: u32, reason: Reason) {
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
            Route::Peer(_) => match reason.retry_at_ms.filter(|at| *at < job.deadline_ms) {
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
        let ttl = self.policy.lease_ttl_ms;
        let (task, no) = (update.task, update.award_no);
        let job = self.job_awarded(&task, no, from)?;
        let is_current = job.current().is_some_and(|a| a.no == no) && job.phase != Phase::Ended;
        match update.news {
            News::Working {
                units_done,
                units_total,
            } => {
                let Some(award) = job.award_mut(no) else {
                    return Ok(());
                };
                award.lease_until_ms = now.saturating_add(ttl);
                award.paused_since_ms = None;
                award.units_done = units_done;
                if is_current && job.phase == Phase::Working {
                    job.reason = Some(Reason::new(
                        "working",
                        format!("{units_done} of {units_total} units done"),
                    ));
                }
                self.dirty.jobs.insert(task.clone());
                self.changed(&task);
            }
            News::Paused {
                reason,
                retry_at_ms,
            } => {
                let Some(award) = job.award_mut(no) else {
                    return Ok(());
                };
                award.paused_since_ms.get_or_insert(now);
                award.lease_until_ms = now.saturating_add(ttl);
                if is_current {
                    let code: String = reason.chars().take(32).collect();
                    job.reason = Some(Reason {
                        code: format!("paused: {code}"),
                        text: "the executor's owner has taken the hardware; the work goes on from its checkpoint".into(),
                        retry_at_ms,
                    });
                }
                self.dirty.jobs.insert(task.clone());
                self.journal("paused", Some(&task), serde_json::json!({"award_no": no, "reason": reason, "retry_at_ms": retry_at_ms}));
                self.changed(&task);
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
                if entry.what
                    != (Act::Stopped {
                        award_no: no,
                        useful_units,
                    })
                {
                    return Err(Refused::new(
                        "entry_mismatch",
                        "the signed entry states something else",
                    ));
                }
                self.admit_job_entry(now, &task, from, &entry)?;
                self.on_stopped(now, &task, no, useful_units);
            }
        }
        Ok(())
    }

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
        if self.online && job.phase != Phase::Checking {
            job.awards
                .iter()
                .filter(|a| a.money == Money::Locked)
                .for_each(|a| at(a.settle_by_ms));
        }
        wake
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
        if job.heads.equivocated.is_some() {
            return Err(Refused::new(
                "task_disputed",
                "the task is frozen: an author contradicted itself",
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

fn not_awarded() -> Refused {
    Refused::new("not_awarded", "this task was never awarded to the sender")
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
