//! Our part when we hire: a job is asked for, and goes to an executor.

use super::Node;
use super::hops::Origin;
use super::job::{AwardRow, AwardState, Heads, Job, Marks, Phase, Reason, Route, TaskState};
use super::ledger::{AMOUNT_MAX_MC, Event, State as Money};
use super::step::{Ask, Chance, Effect, Ms, Refused, Row, TaskId};
use crate::wire::entry::{Act, Entry};
use crate::wire::market::{self, Award, Bid};
use crate::wire::message::Body;
use crate::wire::transfer::allowance_ms;

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
        if let Some(known) = self.asked_before(now, &ask) {
            return known;
        }
        let task = self.enter(now, chance, ask, Origin::default())?;
        self.place(now, &task);
        Ok(task)
    }

    /// Makes a task of ours, to be placed.
    pub(super) fn enter(
        &mut self,
        now: Ms,
        chance: &mut Chance,
        ask: Ask,
        origin: Origin,
    ) -> Result<TaskId, Refused> {
        let peer = match &ask.route {
            Route::Peer(npub) => Some(npub.as_str()),
            Route::Pool(_) | Route::Own => None,
        };
        self.not_now(peer)?;
        self.alone()?;
        let input = serde_json::to_vec(&ask.input).unwrap_or_default();
        let input_bytes = input.len() as u64;
        self.admissible(&ask, input_bytes)?;
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
            model: ask.plan.and_then(|p| p.model),
            salt,
            input_bytes,
            commitment,
            max_price_mc: ask.max_price_mc.unwrap_or(self.policy.default_max_price_mc),
            deadline_ms: now.saturating_add(ask.deadline_ms),
            route,
            phase: Phase::Placing,
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
            parent: origin.parent,
            via: origin.via,
            heads: Heads::default(),
            marks: Marks {
                asked_ms: now,
                ..Marks::default()
            },
        };
        self.payload(&task, "input", input);
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
        self.link(&task, &job.salt);
        self.jobs.insert(task.clone(), job);
        self.dirty.jobs.insert(task.clone());
        Ok(task)
    }

    /// The answer to a request under a key that was used before.
    fn asked_before(&self, now: Ms, ask: &Ask) -> Option<Result<TaskId, Refused>> {
        let key = ask.key.as_ref()?;
        let (task, fingerprint, expires_ms) = self.keys.get(key)?;
        if *expires_ms <= now {
            return None;
        }
        Some(if *fingerprint == ask.fingerprint {
            Ok(task.clone())
        } else {
            Err(Refused::new(
                "key_reused",
                format!("the key {key:?} was used for another input: choose a new key"),
            ))
        })
    }

    fn admissible(&self, ask: &Ask, input_bytes: u64) -> Result<(), Refused> {
        let output_bytes = ask.plan.as_ref().map_or(0, |p| p.output_bytes_max);
        self.fits(input_bytes)?;
        self.fits(output_bytes)?;
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
        let own = matches!(&ask.route, Route::Own)
            || matches!(&ask.route, Route::Peer(p) if *p == self.policy.me);
        let moving_ms = allowance_ms(input_bytes).saturating_add(allowance_ms(output_bytes));
        self.deadline_can_be_met(ask, own, moving_ms)?;
        let counted = ask.plan.as_ref().is_some_and(|p| p.units > 0);
        if matches!(&ask.route, Route::Pool(_)) && !counted {
            let text = format!(
                "this node cannot count the units of {}: ask a peer directly with `--peer`",
                ask.skill
            );
            return Err(Refused::new("skill_unknown", text));
        }
        if own && (!counted || !self.policy.skills.iter().any(|s| s.id == ask.skill)) {
            return Err(Refused::new(
                "skill_unknown",
                format!("this node does not have the skill: {}", ask.skill),
            ));
        }
        Ok(())
    }

    /// An executor takes the allowance for clocks off the time that it is given, and bids are collected before anybody is
    /// given any: below both, an honest executor with an honest clock would have to decline.
    fn deadline_can_be_met(&self, ask: &Ask, own: bool, moving_ms: Ms) -> Result<(), Refused> {
        let skew_ms = self.policy.skew_ms;
        let (window_ms, why) = match &ask.route {
            _ if own => return Ok(()),
            Route::Pool(_) => (
                self.policy.bid_window_ms,
                format!(
                    ", and bids are collected for {} ms",
                    self.policy.bid_window_ms
                ),
            ),
            Route::Peer(_) | Route::Own => (0, String::new()),
        };
        let spent_ms = skew_ms.saturating_add(window_ms).saturating_add(moving_ms);
        if ask.deadline_ms > spent_ms {
            return Ok(());
        }
        let least_s = spent_ms / 1000 + 1;
        let why = if moving_ms > 0 {
            format!("{why}, and input and result may take {moving_ms} ms on their way")
        } else {
            why
        };
        Err(Refused::new(
            "deadline_too_short",
            format!(
                "this task needs a deadline of at least {least_s} s: clocks may differ by {skew_ms} ms{why}"
            ),
        ))
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
        if now >= job.deadline_ms && !job.awards.is_empty() {
            // Nobody could deliver any more, and what an award reserves is not free again before `settle_by`.
            let text = "its executor gave it up, and the deadline has passed";
            let reason = Reason::new("deadline_passed", text);
            return self.end(now, task, TaskState::Failed, reason);
        }
        match job.route.clone() {
            Route::Own => {
                let me = self.policy.me.clone();
                self.award(now, task, me, None);
            }
            Route::Peer(npub) => self.award(now, task, npub, None),
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

    /// What an executor is told of a job; the prices and times of the award are still to be filled in.
    fn award_letter(&self, job: &Job, award_no: u32) -> Award {
        Award {
            task: job.task.clone(),
            context: job.context.clone(),
            award_no,
            skill: job.skill.clone(),
            input: (self.inputs.get(&job.task).cloned()).unwrap_or(serde_json::Value::Null),
            detached: None,
            salt: job.salt.clone(),
            commitment: job.commitment.clone(),
            units: job.units,
            unit_price_mc: None,
            max_price_mc: 0,
            accept_by_ms: 0,
            result_by_ms: job.deadline_ms,
            settle_by_ms: 0,
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
            hops_mc: 0,
            via: job.via.clone(),
            entry: Entry::blank(),
        }
    }

    pub(super) fn award(&mut self, now: Ms, task: &str, executor: String, bid: Option<&Bid>) {
        let Some(job) = self.jobs.get(task) else {
            return;
        };
        let directed = bid.is_none();
        let own = executor == self.policy.me;
        let no = job.next_no();
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
                .saturating_add(allowance_ms(job.input_bytes))
                .min(job.deadline_ms)
        };
        let settle_by_ms = job.deadline_ms.saturating_add(self.policy.settle_within_ms);
        let cap_mc = if own {
            // Our own work is free; what it delegates is not.
            (self.policy.hop_budget_mc(&job.skill)).min(job.max_price_mc)
        } else {
            bid.map_or(job.max_price_mc, |bid| bid.total_mc)
        };
        let mut award = self.award_letter(job, no);
        award.unit_price_mc = bid.map(|bid| bid.unit_price_mc);
        award.hops_mc = bid.map_or(0, |bid| bid.hops_mc);
        award.max_price_mc = cap_mc;
        award.accept_by_ms = accept_by_ms;
        award.settle_by_ms = settle_by_ms;
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
            hops_mc: bid.map(|bid| bid.hops_mc),
            ..sent(&award, executor.clone(), terms)
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
        if !self.lock_award(now, task, no, cap_mc) {
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

    /// Reserves what the newest award may cost; false if the book cannot hold it, which ends the task.
    fn lock_award(&mut self, now: Ms, task: &str, no: u32, cap_mc: u64) -> bool {
        self.move_award_money(now, task, no, Event::Lock, cap_mc);
        let award = self.jobs.get(task).and_then(Job::current);
        let held = |a: &AwardRow| a.executor == self.policy.me || a.money == Money::Locked;
        if award.is_none_or(held) {
            return true;
        }
        let reason = Reason::new("amount_range", "the book cannot hold this amount");
        self.end(now, task, TaskState::Failed, reason);
        false
    }
}

/// The row of an award that is on its way.
fn sent(award: &Award, executor: String, terms: String) -> AwardRow {
    AwardRow {
        no: award.award_no,
        executor,
        state: AwardState::Sent,
        money: Money::None,
        cap_mc: award.max_price_mc,
        hops_mc: None,
        unit_price_mc: award.unit_price_mc,
        terms,
        accept_by_ms: award.accept_by_ms,
        settle_by_ms: award.settle_by_ms,
        lease_until_ms: 0,
        paused_since_ms: None,
        units_done: 0,
        on_cancel: Some(award.on_cancel.clone()),
        useful_units: None,
        stopped_hops: Vec::new(),
    }
}
