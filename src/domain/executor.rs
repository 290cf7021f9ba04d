//! Our part when we work: bidding, accepting, keeping a lease alive, delivering.

use super::Node;
use super::engagement::{self, Engagement, Stage, StopWhy};
use super::ledger::{AMOUNT_MAX_MC, Event, State as Money};
use super::mark::Promise;
use super::peer::Tier;
use super::step::{
    Addressee, Change, EngagementKey, Incoming, LaborNews, Ms, PlanFacts, Refused, Row,
};
use crate::wire::entry::{Act, Entry};
use crate::wire::market::{Accept, Award, Bid, Decline, Offer};
use crate::wire::message::{Body, News, Update, WorkResult};
use crate::wire::proof::Proof;

/// Longest time to settlement that is accepted.
const TERM_MAX_MS: Ms = 400 * 24 * 3600 * 1000;

/// What the executor agreed to, before it is an engagement.
struct Deal {
    tier: Tier,
    units: u32,
    unit_price_mc: u64,
    total_mc: u64,
}

impl Node {
    pub(super) fn on_offer(
        &mut self,
        now: Ms,
        incoming: &Incoming,
        offer: &Offer,
    ) -> Result<(), Refused> {
        if offer.expires_ms <= now || offer.result_by_ms <= now {
            return Err(Refused::new("offer_expired", "the offer has expired"));
        }
        let owner = format!("{}/{}", incoming.from, offer.task);
        if self.marks.get(&owner).is_some_and(|m| m.canceled) {
            return Err(Refused::new(
                "offer_withdrawn",
                "the requester has canceled this task",
            ));
        }
        if self.policy.skills.is_empty() {
            return Ok(());
        }
        let to = Addressee::Reply(offer.reply.clone());
        let deal = match self.would_bid(now, &incoming.from, &owner, offer) {
            Ok(deal) => deal,
            Err(refused) => {
                let retry_at_ms = refused.retry_at_ms;
                let decline = Decline {
                    task: offer.task.clone(),
                    requester: incoming.from.clone(),
                    award_no: 0,
                    code: refused.code,
                    message: refused.message,
                    retry_at_ms,
                    entry: None,
                };
                self.send(
                    to,
                    Body::Decline(Box::new(decline)),
                    false,
                    offer.relays.clone(),
                    offer.expires_ms,
                );
                return Ok(());
            }
        };
        let queue = self.work.values().filter(|w| w.is_work()).count() as u32;
        let eta = self
            .policy
            .skills
            .iter()
            .find(|s| s.id == offer.skill)
            .map_or(0, |s| s.unit_eta_ms);
        let bid = Bid {
            task: offer.task.clone(),
            requester: incoming.from.clone(),
            round: offer.round,
            total_mc: deal.total_mc,
            unit_price_mc: deal.unit_price_mc,
            eta_ms: eta
                .saturating_mul(u64::from(deal.units))
                .saturating_mul(u64::from(queue) + 1),
            device: self.policy.device.clone(),
            queue,
            lct: self.policy.lct.clone(),
            binding: self.policy.binding.clone(),
            relays: self.policy.relays.clone(),
            expires_ms: offer
                .expires_ms
                .saturating_add(self.policy.accept_within_ms),
        };
        self.mark(&owner, offer.result_by_ms).bid = Some(Promise {
            unit_price_mc: deal.unit_price_mc,
            units: deal.units,
        });
        self.journal(
            "bid_made",
            Some(&offer.task),
            serde_json::json!({"to": incoming.from, "total_mc": bid.total_mc}),
        );
        self.send(
            to,
            Body::Bid(Box::new(bid)),
            false,
            offer.relays.clone(),
            offer.expires_ms,
        );
        Ok(())
    }

    /// Whether this node bids on an offer. A bid is a promise, so everything is asked here that an award is asked later.
    fn would_bid(&self, now: Ms, from: &str, owner: &str, offer: &Offer) -> Result<Deal, Refused> {
        if self.owner.paused.is_some() || self.stopping {
            let until = self.owner.paused.as_ref().and_then(|p| p.until_ms);
            return Err(
                Refused::new("owner_paused", "the owner has paused foreign work").retry_at(until),
            );
        }
        if offer.units == 0 {
            return Err(Refused::new(
                "units_missing",
                "the offer does not say how many units it has",
            ));
        }
        if offer.output_bytes_max > super::RESULT_BYTES_MAX {
            return Err(Refused::new(
                "payload_too_large",
                "the result would not fit into one envelope",
            ));
        }
        if !self.room_for_mark(from, owner) {
            return Err(Refused::new("too_many_bids", "too many bids are open here")
                .retry_at(Some(now.saturating_add(10_000))));
        }
        let deal = self.would_do(
            now,
            from,
            &offer.skill,
            offer.units,
            None,
            offer.max_price_mc,
        )?;
        self.turn(now, from, &offer.skill)?;
        Ok(deal)
    }

    /// Whether this node would do such a job for this peer, and at which price. `agreed` is the price that the award
    /// names and whether we have bid it.
    fn would_do(
        &self,
        now: Ms,
        from: &str,
        skill: &str,
        units: u32,
        agreed: Option<(u64, bool)>,
        max_price_mc: u64,
    ) -> Result<Deal, Refused> {
        let peer = self.peer(from);
        if self.is_local(from) {
            return Ok(Deal {
                tier: Tier::Own,
                units,
                unit_price_mc: 0,
                total_mc: 0,
            });
        }
        let price = self.policy.unit_price_mc(&peer, skill)?;
        if agreed.is_some_and(|(agreed, bid)| agreed < price && !bid) {
            return Err(Refused::new(
                "price_too_low",
                format!("the price here is {price} mc a unit"),
            ));
        }
        let price = agreed.map_or(price, |(agreed, _)| agreed);
        let total = u64::from(units)
            .checked_mul(price)
            .filter(|t| *t <= max_price_mc && *t <= AMOUNT_MAX_MC);
        let total = total.ok_or_else(|| {
            Refused::new(
                "price_too_low",
                format!("{units} units at {price} mc are above the {max_price_mc} mc offered"),
            )
        })?;
        let permission = self.policy.permission(&peer, skill);
        permission.admits_price(total)?;
        let open = self
            .work
            .values()
            .filter(|w| w.requester == from && w.is_work())
            .count();
        let most = permission
            .concurrency
            .unwrap_or(self.policy.tasks_per_peer_max)
            .min(self.policy.tasks_per_peer_max);
        if open >= most as usize {
            let refused = Refused::new(
                "too_many_tasks",
                format!("{open} tasks of this peer are open here already"),
            );
            return Err(refused.retry_at(Some(now.saturating_add(2_000))));
        }
        self.credit(&peer, total, permission.budget_mc)?;
        Ok(Deal {
            tier: peer.tier,
            units,
            unit_price_mc: price,
            total_mc: total,
        })
    }

    /// Whether `total_mc` more fits into the credit that the owner grants.
    fn credit(
        &self,
        peer: &super::peer::Peer,
        total_mc: u64,
        budget_mc: Option<u64>,
    ) -> Result<(), Refused> {
        if total_mc == 0 {
            return Ok(());
        }
        let own = self.ledger.exposure_mc(&peer.npub);
        if budget_mc.is_some_and(|budget| own.saturating_add(total_mc) > budget) {
            return Err(Refused::new(
                "budget_exhausted",
                format!("{total_mc} mc more would exceed the budget of this peer ({own} mc used)"),
            ));
        }
        let limit = self.policy.limit_mc(peer);
        let exposure = if peer.tier == Tier::Stranger {
            // One cap over all strangers together.
            let strangers = self.ledger.accounts().filter(|a| {
                self.peers
                    .get(&a.npub)
                    .is_none_or(|p| p.tier == Tier::Stranger)
                    && a.npub != super::ledger::SELF
            });
            strangers
                .map(|a| self.ledger.exposure_mc(&a.npub))
                .fold(0, u64::saturating_add)
        } else {
            self.ledger.exposure_mc(&peer.npub)
        };
        if exposure.saturating_add(total_mc) <= limit {
            return Ok(());
        }
        let code = if limit == 0 {
            "credit_required"
        } else {
            "credit_exhausted"
        };
        Err(Refused::new(
            code,
            format!(
                "{total_mc} mc more would exceed the {limit} mc of credit granted ({exposure} mc used)"
            ),
        ))
    }

    pub(super) fn on_award(
        &mut self,
        now: Ms,
        incoming: &Incoming,
        award: &Award,
    ) -> Result<(), Refused> {
        let from = incoming.from.as_str();
        let key = engagement::key(from, &award.task, award.award_no);
        let owner = format!("{from}/{}", award.task);
        let terms = award
            .terms_hash()
            .map_err(|e| Refused::new("award_invalid", e.to_string()))?;
        let stated = Act::Awarded {
            award_no: award.award_no,
            executor: self.policy.me.clone(),
            terms: terms.clone(),
        };
        if award.entry.what != stated {
            return Err(Refused::new(
                "entry_mismatch",
                "the signed entry states another award",
            ));
        }
        self.entry_belongs(&award.task, from, from, &award.entry)?;
        let newest = self.work_of(&owner).map(|w| w.award_no).max();
        if self.work.contains_key(&key) || newest.is_some_and(|no| no > award.award_no) {
            return Err(Refused::new(
                "award_superseded",
                "this award, or a newer one, is known here",
            ));
        }
        if award.award_no == 0 {
            return Err(Refused::new(
                "award_no_unknown",
                "awards are numbered from 1",
            ));
        }
        let directed = matches!(incoming.body, Body::Request(_));
        let (promise, canceled) = self
            .marks
            .get(&owner)
            .map_or((None, false), |m| (m.bid.clone(), m.canceled));
        if !directed && promise.is_none() && !canceled {
            return Err(Refused::new(
                "award_unbid",
                "this node never bid on the task",
            ));
        }
        let deal = if canceled {
            Err(Refused::new("canceled", "the requester canceled this task"))
        } else {
            self.consider(now, incoming, award, promise.filter(|_| !directed))
        };
        let until = if deal.is_ok() {
            award.settle_by_ms
        } else {
            award
                .result_by_ms
                .min(now.saturating_add(self.policy.message_ttl_ms))
        };
        self.admit_foreign_entry(now, from, &award.task, until, &award.entry)?;
        self.supersede_work(now, from, &award.task, award.award_no);
        match deal {
            Ok(deal) => self.accept(now, from, award, terms, deal),
            Err(refused) => self.decline_award(now, from, award, until, refused),
        }
        Ok(())
    }

    fn consider(
        &mut self,
        now: Ms,
        incoming: &Incoming,
        award: &Award,
        promise: Option<Promise>,
    ) -> Result<Deal, Refused> {
        let local = self.is_local(&incoming.from);
        if !local
            && (now.saturating_add(self.policy.skew_ms) > award.accept_by_ms
                || award.result_by_ms <= now)
        {
            return Err(Refused::new(
                "award_expired",
                "the time to accept has passed",
            ));
        }
        if award.settle_by_ms < award.result_by_ms
            || award.settle_by_ms > now.saturating_add(TERM_MAX_MS)
        {
            return Err(Refused::new(
                "terms_invalid",
                "settlement must be due after the result and within 400 days",
            ));
        }
        if promise
            .is_some_and(|p| award.unit_price_mc != Some(p.unit_price_mc) || award.units != p.units)
        {
            return Err(Refused::new(
                "award_terms",
                "the award changes the units or the price of our bid",
            ));
        }
        let committed = crate::wire::market::commitment(&award.input, &award.salt)
            .is_ok_and(|c| c == award.commitment);
        if !committed {
            return Err(Refused::new(
                "commitment_mismatch",
                "the input is not the one that was committed to",
            ));
        }
        let plan: PlanFacts = match &incoming.plan {
            Some(plan) => plan.clone()?,
            None => {
                return Err(Refused::new(
                    "skill_unknown",
                    format!("this node does not have the skill: {}", award.skill),
                ));
            }
        };
        if award.units != 0 && plan.units != award.units {
            return Err(Refused::new(
                "units_mismatch",
                format!(
                    "the input has {} units, the award says {}",
                    plan.units, award.units
                ),
            ));
        }
        if plan.output_bytes_max > super::RESULT_BYTES_MAX {
            return Err(Refused::new(
                "payload_too_large",
                "the result would not fit into one envelope",
            ));
        }
        let from = incoming.from.clone();
        let bid = matches!(incoming.body, Body::Award(_));
        let deal = self.would_do(
            now,
            &from,
            &award.skill,
            plan.units,
            award.unit_price_mc.map(|p| (p, bid)),
            award.max_price_mc,
        )?;
        self.turn(now, &from, &award.skill)?;
        self.peers
            .entry(from.clone())
            .or_insert_with(|| super::peer::Peer::stranger(&from))
            .count_task(now);
        Ok(deal)
    }

    /// Whether one more task of this peer fits into its rate; own nodes have none.
    fn turn(&self, now: Ms, from: &str, skill: &str) -> Result<(), Refused> {
        let peer = self.peer(from);
        let rate = match peer.tier {
            Tier::Own => return Ok(()),
            _ => self
                .policy
                .permission(&peer, skill)
                .rate_per_min
                .unwrap_or(u32::MAX),
        };
        peer.turn(now, rate).map_err(|ms| {
            let text =
                format!("more than {rate} new tasks a minute; try again in milliseconds: {ms}");
            Refused::new("rate_limited", text).retry_at(Some(now.saturating_add(ms)))
        })
    }

    fn accept(&mut self, now: Ms, from: &str, award: &Award, terms: String, deal: Deal) {
        let key = engagement::key(from, &award.task, award.award_no);
        self.owner.order += 1;
        let critical =
            self.is_local(from) && self.jobs.get(&award.task).is_some_and(|j| j.critical);
        let owner = format!("{from}/{}", award.task);
        let checkpoint_units = self.marks.get(&owner).map_or(0, |m| m.checkpoint_units);
        // The owner has the hardware: the lease is withheld from the start.
        let withheld = self.owner.paused.is_some() && !self.is_local(from);
        let work = Engagement {
            key: key.clone(),
            requester: from.to_owned(),
            task: award.task.clone(),
            context: award.context.clone(),
            award_no: award.award_no,
            skill: award.skill.clone(),
            tier: deal.tier,
            critical,
            order: self.owner.order,
            units: deal.units,
            unit_price_mc: deal.unit_price_mc,
            total_mc: deal.total_mc,
            commitment: award.commitment.clone(),
            terms,
            on_cancel: award.on_cancel.clone(),
            result_by_ms: award.result_by_ms,
            settle_by_ms: award.settle_by_ms,
            lease_ttl_ms: award.lease_ttl_ms.clamp(1_000, 3_600_000),
            relays: award.relays.clone(),
            stage: if withheld {
                Stage::Hibernating
            } else {
                Stage::Queued
            },
            stop: None,
            end: None,
            money: Money::None,
            checkpoint_units,
            units_done: 0,
            executed: 0,
            attempts: 0,
            started_ms: 0,
            keepalive_at_ms: now.saturating_add(award.lease_ttl_ms.clamp(1_000, 3_600_000) / 3),
            accepted_ms: now,
            ended_ms: 0,
            verification: award.verification.clone(),
            evidence: None,
            proof: None,
        };
        self.payload(
            &key,
            "input",
            serde_json::to_vec(&award.input).unwrap_or_default(),
        );
        self.inputs.insert(key.clone(), award.input.clone());
        self.work.insert(key.clone(), work);
        self.move_work_money(now, &key, Event::Lock, deal.total_mc);
        let entry = self.write_work_entry(
            now,
            &key,
            Act::Accepted {
                award_no: award.award_no,
                total_mc: deal.total_mc,
            },
        );
        let accept = Accept {
            task: award.task.clone(),
            award_no: award.award_no,
            unit_price_mc: deal.unit_price_mc,
            total_mc: deal.total_mc,
            lct: self.policy.lct.clone(),
            binding: self.policy.binding.clone(),
            relays: self.policy.relays.clone(),
            entry,
        };
        self.journal(
            "accepted",
            Some(&award.task),
            serde_json::json!({"key": key, "total_mc": deal.total_mc, "units": deal.units}),
        );
        self.send_peer(from, Body::Accept(Box::new(accept)), award.settle_by_ms);
        self.changed(&award.task);
        if withheld {
            self.tell_paused(&key);
        }
    }

    fn decline_award(&mut self, now: Ms, from: &str, award: &Award, until: Ms, refused: Refused) {
        let what = Act::Declined {
            award_no: award.award_no,
            code: refused.code.clone(),
        };
        let entry = self.write_foreign_entry(now, from, &award.task, until, what);
        self.journal(
            "award_declined",
            Some(&award.task),
            serde_json::json!({"from": from, "code": refused.code}),
        );
        let retry_at_ms = refused.retry_at_ms;
        let decline = Decline {
            task: award.task.clone(),
            requester: from.to_owned(),
            award_no: award.award_no,
            code: refused.code,
            message: refused.message,
            retry_at_ms,
            entry: Some(entry),
        };
        self.send_peer_at(
            from,
            &award.relays,
            Body::Decline(Box::new(decline)),
            award.settle_by_ms,
        );
    }

    /// A newer award of the task exists, or the requester withdrew: stop the older ones.
    pub(super) fn supersede_work(&mut self, now: Ms, from: &str, task: &str, below: u32) {
        let older: Vec<_> = self
            .work
            .values()
            .filter(|w| w.requester == from && w.task == task && w.award_no < below && w.is_work())
            .map(|w| w.key.clone())
            .collect();
        for key in older {
            self.wind_up(now, &key, StopWhy::Superseded);
        }
    }

    pub(super) fn on_cancel_message(
        &mut self,
        now: Ms,
        from: &str,
        task: &str,
        entry: &Entry,
    ) -> Result<(), Refused> {
        if entry.what != Act::Canceled {
            return Err(Refused::new(
                "entry_mismatch",
                "the signed entry is not a cancel",
            ));
        }
        let owner = format!("{from}/{task}");
        let open: Vec<_> = self
            .work_of(&owner)
            .filter(|w| w.is_live())
            .map(|w| w.key.clone())
            .collect();
        if open.is_empty() && !self.room_for_mark(from, &owner) {
            return Err(Refused::new(
                "too_many_marks",
                "too many tasks of this peer are remembered here",
            ));
        }
        let until = now.saturating_add(self.policy.message_ttl_ms);
        self.admit_foreign_entry(now, from, task, until, entry)?;
        if !self.is_local(from) {
            self.mark(&owner, until).canceled = true;
        }
        for key in open {
            if self.work.get(&key).is_some_and(Engagement::is_work) {
                self.wind_up(now, &key, StopWhy::Canceled);
            }
        }
        Ok(())
    }

    /// Ends work that is not finished: at once where nobody computes, else at the next unit boundary.
    fn wind_up(&mut self, now: Ms, key: &EngagementKey, why: StopWhy) {
        let running = self
            .work
            .get(key)
            .is_some_and(|w| matches!(w.stage, Stage::Running | Stage::Stopping));
        self.stop_work(key, why, false);
        if !running {
            self.wound_up(now, key);
        }
    }

    /// The worker has let go of work that is to end.
    fn wound_up(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get(key) else {
            return;
        };
        let (no, requester, task, useful) = (
            work.award_no,
            work.requester.clone(),
            work.task.clone(),
            if now > work.result_by_ms {
                0
            } else {
                work.checkpoint_units
            },
        );
        // Units in a checkpoint count, if the cancel came before the deadline.
        let (settle_by, units_pay) = (work.settle_by_ms, work.on_cancel == "units" && useful > 0);
        match work.stop {
            Some(StopWhy::Canceled) => {
                let entry = self.write_work_entry(
                    now,
                    key,
                    Act::Stopped {
                        award_no: no,
                        useful_units: useful,
                    },
                );
                let news = News::Canceled {
                    useful_units: useful,
                    entry,
                };
                self.send_peer(
                    &requester,
                    Body::Update(Box::new(Update {
                        task,
                        award_no: no,
                        news,
                    })),
                    settle_by,
                );
                if units_pay {
                    if let Some(work) = self.work.get_mut(key) {
                        work.stage = Stage::Finished;
                        work.units_done = useful;
                    }
                } else {
                    self.move_work_money(now, key, Event::Decline, 0);
                    self.end_work(now, key, "canceled");
                }
            }
            Some(StopWhy::Superseded) => {
                let code = "superseded".to_owned();
                let entry = self.write_work_entry(
                    now,
                    key,
                    Act::Declined {
                        award_no: no,
                        code: code.clone(),
                    },
                );
                let decline = Decline {
                    task,
                    requester: requester.clone(),
                    award_no: no,
                    code,
                    message: "withdrawn by the requester".into(),
                    retry_at_ms: None,
                    entry: Some(entry),
                };
                self.send_peer(&requester, Body::Decline(Box::new(decline)), settle_by);
                self.move_work_money(now, key, Event::Decline, 0);
                self.end_work(now, key, "superseded");
            }
            Some(StopWhy::Deadline) => self.fail_work(
                now,
                key,
                "deadline_passed",
                "the deadline passed before the work was done",
            ),
            Some(StopWhy::Owner) | None => {}
        }
    }

    pub(super) fn fail_work(&mut self, now: Ms, key: &EngagementKey, code: &str, message: &str) {
        let Some(work) = self.work.get(key) else {
            return;
        };
        let (no, requester, task, settle_by) = (
            work.award_no,
            work.requester.clone(),
            work.task.clone(),
            work.settle_by_ms,
        );
        let entry = self.write_work_entry(
            now,
            key,
            Act::Failed {
                award_no: no,
                code: code.to_owned(),
            },
        );
        let news = News::Failed {
            code: code.to_owned(),
            message: message.chars().take(500).collect(),
            entry,
        };
        self.journal(
            "work_failed",
            Some(&task),
            serde_json::json!({"key": key, "code": code}),
        );
        self.send_peer(
            &requester,
            Body::Update(Box::new(Update {
                task,
                award_no: no,
                news,
            })),
            settle_by,
        );
        self.move_work_money(now, key, Event::Decline, 0);
        self.end_work(now, key, "failed");
    }

    pub(super) fn on_labor(&mut self, now: Ms, key: &EngagementKey, news: LaborNews) {
        let Some(work) = self
            .work
            .get_mut(key)
            .filter(|w| matches!(w.stage, Stage::Running | Stage::Stopping))
        else {
            return;
        };
        let (task, owner) = (work.task.clone(), work.owner());
        match news {
            LaborNews::Progress { units_done } => {
                work.units_done = units_done.max(work.units_done);
                self.changed(&task);
            }
            LaborNews::Checkpoint { units_done, bytes } => {
                work.checkpoint_units = units_done;
                work.units_done = units_done.max(work.units_done);
                self.keep_checkpoint(key, &task, owner, units_done, bytes);
            }
            LaborNews::Stopped {
                units_done,
                bytes,
                executed,
            } => {
                work.executed = work.executed.saturating_add(u64::from(executed));
                work.checkpoint_units = units_done;
                work.units_done = units_done;
                work.stage = Stage::Hibernating;
                let why = work.stop;
                self.keep_checkpoint(key, &task, owner, units_done, bytes);
                self.journal(
                    "hibernated",
                    Some(&task),
                    serde_json::json!({"key": key, "units_done": units_done, "executed": executed}),
                );
                match why {
                    Some(StopWhy::Owner) | None => self.tell_paused(key),
                    Some(_) => self.wound_up(now, key),
                }
                self.changed(&task);
            }
            LaborNews::Failed { code, message } => self.fail_work(now, key, &code, &message),
            LaborNews::Lost { code } => self.on_lost(now, key, &code),
            LaborNews::Done {
                output,
                output_hash,
                units,
                root,
                executed,
                resumed_from,
                profile,
            } => {
                work.executed = work.executed.saturating_add(u64::from(executed));
                let stop = work.stop;
                if matches!(stop, Some(StopWhy::Canceled | StopWhy::Deadline)) {
                    // The stop was seen before the result was signed: it is not delivered any more.
                    work.stage = Stage::Hibernating;
                    work.checkpoint_units = work.units;
                }
                self.journal("done", Some(&task), serde_json::json!({"key": key, "executed": executed, "resumed_from": resumed_from}));
                if matches!(stop, Some(StopWhy::Canceled | StopWhy::Deadline)) {
                    self.wound_up(now, key);
                    return;
                }
                self.deliver(now, key, output, output_hash, units, root, profile);
            }
        }
    }

    /// A worker that was being stopped is gone, with its last checkpoint durable.
    pub(super) fn stop_ended(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        work.stage = Stage::Hibernating;
        let why = work.stop;
        self.dirty.work.insert(key.clone());
        match why {
            Some(StopWhy::Owner) | None => self.tell_paused(key),
            Some(_) => self.wound_up(now, key),
        }
    }

    fn on_lost(&mut self, now: Ms, key: &EngagementKey, code: &str) {
        let attempts_max = self.policy.attempts_max;
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        work.attempts += 1;
        let (attempts, why, task) = (work.attempts, work.stop, work.task.clone());
        self.dirty.work.insert(key.clone());
        self.journal(
            "worker_lost",
            Some(&task),
            serde_json::json!({"key": key, "code": code, "attempt": attempts}),
        );
        match why {
            Some(_) => {
                if let Some(work) = self.work.get_mut(key) {
                    work.attempts -= 1;
                }
                self.stop_ended(now, key);
            }
            None if attempts >= attempts_max => {
                self.fail_work(now, key, code, "the worker process was lost too often")
            }
            None => {
                if let Some(work) = self.work.get_mut(key) {
                    work.stage = Stage::Queued;
                }
            }
        }
    }

    fn keep_checkpoint(
        &mut self,
        key: &EngagementKey,
        task: &str,
        owner: String,
        units_done: u32,
        bytes: Vec<u8>,
    ) {
        self.dirty.work.insert(key.clone());
        if let Some(work) = self.work.get(key).filter(|w| w.requester != self.policy.me) {
            let until = work.result_by_ms;
            self.mark(&owner, until).checkpoint_units = units_done;
        }
        self.put(Row::Checkpoint {
            owner,
            units_done,
            bytes,
        });
        self.journal(
            "checkpoint",
            Some(task),
            serde_json::json!({"key": key, "units_done": units_done}),
        );
    }

    #[allow(clippy::too_many_arguments)]
    fn deliver(
        &mut self,
        now: Ms,
        key: &EngagementKey,
        output: serde_json::Value,
        output_hash: String,
        units: Vec<u8>,
        root: String,
        profile: String,
    ) {
        use base64::Engine;
        let Some(work) = self.work.get(key) else {
            return;
        };
        let cost_mc = u64::from(work.units)
            .saturating_mul(work.unit_price_mc)
            .min(work.total_mc);
        let proof = Proof {
            v: 1,
            task: work.task.clone(),
            award_no: work.award_no,
            skill: work.skill.clone(),
            requester: work.requester.clone(),
            executor: self.policy.me.clone(),
            lct: self.policy.lct.clone(),
            key: self.policy.key.clone(),
            commitment: work.commitment.clone(),
            output: output_hash,
            root,
            terms: work.terms.clone(),
            units: work.units,
            unit_price_mc: work.unit_price_mc,
            cost_mc,
            device: self.policy.device.clone(),
            model: None,
            profile,
            implementation: self.policy.implementation.clone(),
            started_ms: work.started_ms,
            finished_ms: now.max(work.started_ms),
            sig: String::new(),
        };
        let (requester, task, no, settle_by) = (
            work.requester.clone(),
            work.task.clone(),
            work.award_no,
            work.settle_by_ms,
        );
        let hash = proof.hash().unwrap_or_default();
        let entry = self.write_work_entry(
            now,
            key,
            Act::Completed {
                award_no: no,
                proof: hash,
            },
        );
        if let Some(work) = self.work.get_mut(key) {
            work.stage = Stage::Finished;
            work.units_done = work.units;
            work.proof = Some(proof.clone());
        }
        self.payload(key, "units", units.clone());
        self.payload(
            key,
            "output",
            serde_json::to_vec(&output).unwrap_or_default(),
        );
        self.journal(
            "result_sent",
            Some(&task),
            serde_json::json!({"key": key, "cost_mc": cost_mc, "root": proof.root}),
        );
        let result = WorkResult {
            output,
            units: base64::engine::general_purpose::STANDARD.encode(units),
            proof,
            entry,
        };
        let news = News::Completed(Box::new(result));
        let expires = settle_by.saturating_add(self.policy.message_ttl_ms);
        self.send_peer(
            &requester,
            Body::Update(Box::new(Update {
                task: task.clone(),
                award_no: no,
                news,
            })),
            expires,
        );
        self.changed(&task);
    }

    pub(super) fn work_timers(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get(key) else {
            return;
        };
        let (stage, result_by, settle_by, keepalive_at) = (
            work.stage,
            work.result_by_ms,
            work.settle_by_ms,
            work.keepalive_at_ms,
        );
        if work.is_work() && now > result_by && work.stage != Stage::Stopping {
            self.wind_up(now, key, StopWhy::Deadline);
        } else if matches!(stage, Stage::Running | Stage::Queued) && now >= keepalive_at {
            self.keep_alive(now, key);
        } else if stage == Stage::Finished && now >= settle_by.saturating_add(self.policy.skew_ms) {
            if work.evidence.is_some() {
                // A refusal is being judged: it came in time.
            } else if self.caught_up_ms >= settle_by.saturating_add(self.policy.skew_ms) {
                self.overdue(now, key);
            } else if self.online && !self.draining {
                self.draining = true;
                self.out.effects.push(super::step::Effect::Drain);
            }
        }
    }

    fn keep_alive(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        work.keepalive_at_ms = now.saturating_add(work.lease_ttl_ms / 3);
        let news = News::Working {
            units_done: work.units_done,
            units_total: work.units,
        };
        let update = Update {
            task: work.task.clone(),
            award_no: work.award_no,
            news,
        };
        let (requester, relays, ttl) = (
            work.requester.clone(),
            work.relays.clone(),
            work.lease_ttl_ms,
        );
        if requester != self.policy.me {
            self.send(
                Addressee::Peer(requester),
                Body::Update(Box::new(update)),
                true,
                relays,
                now.saturating_add(ttl),
            );
        }
    }

    pub(super) fn work_wake_ms(&self, work: &Engagement) -> Ms {
        match work.stage {
            Stage::Running | Stage::Queued => work
                .keepalive_at_ms
                .min(work.result_by_ms.saturating_add(1)),
            Stage::Hibernating => work.result_by_ms.saturating_add(1),
            Stage::Finished if self.online && work.evidence.is_none() => {
                work.settle_by_ms.saturating_add(self.policy.skew_ms)
            }
            Stage::Finished => Ms::MAX,
            Stage::Stopping | Stage::Overdue | Stage::Disputed | Stage::Ended => Ms::MAX,
        }
    }

    pub(super) fn end_work(&mut self, now: Ms, key: &EngagementKey, end: &str) {
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        work.stage = Stage::Ended;
        work.end = Some(end.to_owned());
        work.ended_ms = now;
        let (owner, task, requester) = (work.owner(), work.task.clone(), work.requester.clone());
        self.dirty.work.insert(key.clone());
        self.inputs.remove(key);
        // What outlives an award (the checkpoint, the heads) is kept for the next award of the same task, until the mark
        // expires; after a payment or a cancel there is none.
        let over =
            matches!(end, "paid" | "canceled" | "unacknowledged") || self.is_local(&requester);
        let last = over && !self.work_of(&owner).any(Engagement::is_live);
        if last && end == "paid" {
            self.drop_mark(&owner);
        }
        self.out.changes.push(Change::DropWork {
            owner: if last { owner } else { String::new() },
            key: key.clone(),
        });
        self.changed(&task);
    }
}
