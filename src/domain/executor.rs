//! Our part when we work: bidding, accepting, keeping a lease alive, delivering.

use serde::{Deserialize, Serialize};

use super::Node;
use super::engagement::{self, Engagement, Stage, StopWhy};
use super::history::{self, Draft};
use super::job::Heads;
use super::ledger::{Event, State as Money};
use super::peer::Tier;
use super::step::{Addressee, Change, EngagementKey, Incoming, LaborNews, Ms, PlanFacts, Refused, Row};
use crate::wire::entry::{Act, Entry};
use crate::wire::market::{Accept, Award, Bid, Decline, Offer};
use crate::wire::message::{Body, News, Update, WorkResult};
use crate::wire::proof::Proof;

/// What we remember of a foreign task before we work on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// `<requester>/<task>`.
    pub owner: String,
    /// The bid we made; none if the requester canceled before it awarded.
    pub bid: Option<Promise>,
    /// When it is forgotten.
    pub expires_ms: Ms,
}

/// A bid of ours, to which an award holds us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// Price of a unit.
    pub unit_price_mc: u64,
    /// Units of the offer.
    pub units: u32,
}

/// What the executor agreed to, before it is an engagement.
struct Deal {
    tier: Tier,
    units: u32,
    unit_price_mc: u64,
    total_mc: u64,
}

impl Node {
    pub(super) fn on_offer(&mut self, now: Ms, incoming: &Incoming, offer: &Offer) -> Result<(), Refused> {
        if offer.expires_ms <= now || offer.result_by_ms <= now {
            return Err(Refused::new("offer_expired", "the offer has expired"));
        }
        let owner = format!("{}/{}", incoming.from, offer.task);
        if self.marks.get(&owner).is_some_and(|m| m.bid.is_none()) {
            return Err(Refused::new("offer_withdrawn", "the requester has canceled this task"));
        }
        if self.policy.skills.is_empty() {
            return Ok(());
        }
        let deal = self.would_do(now, &incoming.from, &offer.skill, offer.units, None, offer.max_price_mc);
        let to = Addressee::Reply(offer.reply.clone());
        let deal = match deal {
            Ok(deal) if self.owner.paused.is_none() && !self.stopping => deal,
            refused => {
                let refused = refused.err().unwrap_or_else(|| Refused::new("owner_paused", "the owner has paused foreign work"));
                let retry_at_ms = self.retry_at(now, &refused);
                let decline = Decline {
                    task: offer.task.clone(),
                    requester: incoming.from.clone(),
                    award_no: 0,
                    code: refused.code,
                    message: refused.message,
                    retry_at_ms,
                    entry: None,
                };
                self.send(to, Body::Decline(Box::new(decline)), false, offer.relays.clone(), offer.expires_ms);
                return Ok(());
            }
        };
        let queue = self.work.values().filter(|w| w.is_work()).count() as u32;
        let eta = self.policy.skills.iter().find(|s| s.id == offer.skill).map_or(0, |s| s.unit_eta_ms);
        let bid = Bid {
            task: offer.task.clone(),
            requester: incoming.from.clone(),
            round: offer.round,
            total_mc: deal.total_mc,
            unit_price_mc: deal.unit_price_mc,
            eta_ms: eta.saturating_mul(u64::from(deal.units)).saturating_mul(u64::from(queue) + 1),
            device: self.policy.device.clone(),
            queue,
            lct: self.policy.lct.clone(),
            binding: self.policy.binding.clone(),
            relays: self.policy.relays.clone(),
            expires_ms: offer.expires_ms.saturating_add(self.policy.accept_within_ms),
        };
        let promise = Promise { unit_price_mc: deal.unit_price_mc, units: deal.units };
        let mark = Mark { owner: owner.clone(), bid: Some(promise), expires_ms: offer.result_by_ms };
        self.put(Row::Mark(mark.clone()));
        self.marks.insert(owner, mark);
        self.journal("bid_made", Some(&offer.task), serde_json::json!({"to": incoming.from, "total_mc": bid.total_mc}));
        self.send(to, Body::Bid(Box::new(bid)), false, offer.relays.clone(), offer.expires_ms);
        Ok(())
    }

    /// Whether this node would do such a job for this peer, and at which price.
    fn would_do(&mut self, now: Ms, from: &str, skill: &str, units: u32, agreed: Option<u64>, max_price_mc: u64) -> Result<Deal, Refused> {
        let peer = self.peer(from);
        if self.is_local(from) {
            return Ok(Deal { tier: Tier::Own, units, unit_price_mc: 0, total_mc: 0 });
        }
        let price = self.policy.unit_price_mc(&peer, skill)?;
        if agreed.is_some_and(|agreed| agreed < price) {
            return Err(Refused::new("price_too_low", format!("the price here is {price} mc a unit")));
        }
        let price = agreed.unwrap_or(price);
        let total = u64::from(units).checked_mul(price).filter(|t| *t <= max_price_mc);
        let total = total.ok_or_else(|| Refused::new("price_too_low", format!("{units} units at {price} mc are above the {max_price_mc} mc offered")))?;
        let permission = self.policy.permission(&peer, skill);
        let open = self.work.values().filter(|w| w.requester == from && w.is_work()).count();
        let most = permission.concurrency.unwrap_or(self.policy.tasks_per_peer_max).min(self.policy.tasks_per_peer_max);
        if open >= most as usize {
            return Err(Refused::new("too_many_tasks", format!("{open} tasks of this peer are open here already")));
        }
        let _ = now;
        self.credit(&peer, total, permission.budget_mc)?;
        Ok(Deal { tier: peer.tier, units, unit_price_mc: price, total_mc: total })
    }

    /// Whether `total_mc` more fits into the credit that the owner grants.
    fn credit(&self, peer: &super::peer::Peer, total_mc: u64, budget_mc: Option<u64>) -> Result<(), Refused> {
        if total_mc == 0 {
            return Ok(());
        }
        let limit = self.policy.limit_mc(peer).min(budget_mc.unwrap_or(u64::MAX));
        let exposure = if peer.tier == Tier::Stranger {
            // One cap over all strangers together.
            let strangers = self.ledger.accounts().filter(|a| self.peers.get(&a.npub).is_none_or(|p| p.tier == Tier::Stranger) && a.npub != super::ledger::SELF);
            strangers.map(|a| self.ledger.exposure_mc(&a.npub)).fold(0, u64::saturating_add)
        } else {
            self.ledger.exposure_mc(&peer.npub)
        };
        if exposure.saturating_add(total_mc) <= limit {
            return Ok(());
        }
        let code = if limit == 0 { "credit_required" } else { "credit_exhausted" };
        Err(Refused::new(code, format!("{total_mc} mc more would exceed the {limit} mc of credit granted ({exposure} mc used)")))
    }

    fn retry_at(&self, now: Ms, refused: &Refused) -> Option<Ms> {
        match refused.code.as_str() {
            "owner_paused" => self.owner.paused.as_ref().and_then(|p| p.until_ms),
            "too_many_tasks" => Some(now.saturating_add(2_000)),
            "rate_limited" => refused.message.rsplit(' ').next().and_then(|w| w.parse::<u64>().ok()).map(|ms| now.saturating_add(ms)),
            _ => None,
        }
    }

    pub(super) fn on_award(&mut self, now: Ms, incoming: &Incoming, award: &Award) -> Result<(), Refused> {
        let from = incoming.from.as_str();
        let key = engagement::key(from, &award.task, award.award_no);
        let owner = format!("{from}/{}", award.task);
        let terms = award.terms_hash().map_err(|e| Refused::new("award_invalid", e.to_string()))?;
        let stated = Act::Awarded { award_no: award.award_no, executor: self.policy.me.clone(), terms: terms.clone() };
        if award.entry.what != stated {
            return Err(Refused::new("entry_mismatch", "the signed entry states another award"));
        }
        self.entry_belongs(&award.task, from, from, &award.entry)?;
        let newest = self.work.values().filter(|w| w.requester == from && w.task == award.task).map(|w| w.award_no).max();
        if self.work.contains_key(&key) || newest.is_some_and(|no| no > award.award_no) {
            return Err(Refused::new("award_superseded", "this award, or a newer one, is known here"));
        }
        let directed = matches!(incoming.body, Body::Request(_));
        let promise = self.marks.get(&owner).map(|m| m.bid.clone());
        if !directed && !matches!(promise, Some(Some(_))) && newest.is_none() {
            return Err(Refused::new("award_unbid", "this node never bid on the task"));
        }
        self.supersede_work(now, from, &award.task, award.award_no);
        let mut heads = Heads::default();
        history::admit(&mut heads, now, &award.entry)?;
        self.put(Row::Entry(Box::new(award.entry.clone())));
        match self.consider(now, incoming, award, matches!(promise, Some(None))) {
            Ok(deal) => self.accept(now, from, award, terms, heads, deal),
            Err(refused) => self.decline_award(now, from, award, &mut heads, refused),
        }
        Ok(())
    }

    fn consider(&mut self, now: Ms, incoming: &Incoming, award: &Award, canceled: bool) -> Result<Deal, Refused> {
        if canceled {
            return Err(Refused::new("canceled", "the requester canceled this task"));
        }
        if now.saturating_add(self.policy.skew_ms) > award.accept_by_ms.max(self.policy.skew_ms) && !self.is_local(&incoming.from) {
            return Err(Refused::new("award_expired", "the time to accept has passed"));
        }
        let committed = crate::wire::market::commitment(&award.input, &award.salt).is_ok_and(|c| c == award.commitment);
        if !committed {
            return Err(Refused::new("commitment_mismatch", "the input is not the one that was committed to"));
        }
        let plan: PlanFacts = match &incoming.plan {
            Some(plan) => plan.clone()?,
            None => return Err(Refused::new("skill_unknown", format!("this node does not have the skill: {}", award.skill))),
        };
        if award.units != 0 && plan.units != award.units {
            return Err(Refused::new("units_mismatch", format!("the input has {} units, the award says {}", plan.units, award.units)));
        }
        if plan.output_bytes_max > super::RESULT_BYTES_MAX {
            return Err(Refused::new("payload_too_large", "the result would not fit into one envelope"));
        }
        let from = incoming.from.clone();
        let deal = self.would_do(now, &from, &award.skill, plan.units, award.unit_price_mc, award.max_price_mc)?;
        self.take_turn(now, &from, &award.skill)?;
        Ok(deal)
    }

    fn take_turn(&mut self, now: Ms, from: &str, skill: &str) -> Result<(), Refused> {
        let peer = self.peer(from);
        let rate = match peer.tier {
            Tier::Own => return Ok(()),
            _ => self.policy.permission(&peer, skill).rate_per_min.unwrap_or(u32::MAX),
        };
        let entry = self.peers.entry(from.to_owned()).or_insert(peer);
        entry.take_turn(now, rate).map_err(|ms| Refused::new("rate_limited", format!("more than {rate} new tasks a minute; try again in milliseconds: {ms}")))
    }

    fn accept(&mut self, now: Ms, from: &str, award: &Award, terms: String, heads: Heads, deal: Deal) {
        let key = engagement::key(from, &award.task, award.award_no);
        self.owner.order += 1;
        let critical = self.is_local(from) && self.jobs.get(&award.task).is_some_and(|j| j.critical);
        let owner = format!("{from}/{}", award.task);
        let checkpoint_units = self.checkpoints.get(&owner).copied().unwrap_or(0);
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
            stage: Stage::Queued,
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
            proof: None,
            heads,
        };
        self.payload(&key, "input", serde_json::to_vec(&award.input).unwrap_or_default());
        self.inputs.insert(key.clone(), award.input.clone());
        self.work.insert(key.clone(), work);
        self.move_work_money(now, &key, Event::Lock, deal.total_mc);
        let entry = self.write_work_entry(now, &key, Act::Accepted { award_no: award.award_no, total_mc: deal.total_mc });
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
        self.drop_mark(&owner);
        self.journal("accepted", Some(&award.task), serde_json::json!({"key": key, "total_mc": deal.total_mc, "units": deal.units}));
        self.send_peer(from, Body::Accept(Box::new(accept)), award.settle_by_ms);
        self.changed(&award.task);
        if self.owner.paused.is_some() && deal.tier != Tier::Own {
            self.tell_paused(&key);
        }
    }

    fn decline_award(&mut self, now: Ms, from: &str, award: &Award, heads: &mut Heads, refused: Refused) {
        let (me, mine) = (self.policy.me.clone(), self.policy.key.clone());
        let what = Act::Declined { award_no: award.award_no, code: refused.code.clone() };
        let entry = history::write(heads, now, Draft { task: &award.task, requester: from, author: &me, key: &mine, what });
        self.put(Row::Entry(Box::new(entry.clone())));
        self.journal("award_declined", Some(&award.task), serde_json::json!({"from": from, "code": refused.code}));
        let retry_at_ms = self.retry_at(now, &refused);
        let decline = Decline {
            task: award.task.clone(),
            requester: from.to_owned(),
            award_no: award.award_no,
            code: refused.code,
            message: refused.message,
            retry_at_ms,
            entry: Some(entry),
        };
        self.send_peer_at(from, &award.relays, Body::Decline(Box::new(decline)), award.settle_by_ms);
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

    pub(super) fn on_cancel_message(&mut self, now: Ms, from: &str, task: &str, entry: &Entry) -> Result<(), Refused> {
        if entry.what != Act::Canceled {
            return Err(Refused::new("entry_mismatch", "the signed entry is not a cancel"));
        }
        let open: Vec<_> = self.work.values().filter(|w| w.requester == from && w.task == task).map(|w| w.key.clone()).collect();
        if open.is_empty() {
            self.entry_belongs(task, from, from, entry)?;
            let owner = format!("{from}/{task}");
            let mark = Mark { owner: owner.clone(), bid: None, expires_ms: now.saturating_add(self.policy.message_ttl_ms) };
            self.put(Row::Mark(mark.clone()));
            self.marks.insert(owner, mark);
            return Ok(());
        }
        for key in open {
            self.admit_work_entry(now, &key, from, entry)?;
            if self.work.get(&key).is_some_and(Engagement::is_work) {
                self.wind_up(now, &key, StopWhy::Canceled);
            }
        }
        Ok(())
    }

    /// Ends work that is not finished: at once where nobody computes, else at the next unit boundary.
    fn wind_up(&mut self, now: Ms, key: &EngagementKey, why: StopWhy) {
        let running = self.work.get(key).is_some_and(|w| matches!(w.stage, Stage::Running | Stage::Stopping));
        self.stop_work(key, why, false);
        if !running {
            self.wound_up(now, key);
        }
    }

    /// The worker has let go of work that is to end.
    fn wound_up(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get(key) else { return };
        let (no, requester, task, useful) = (work.award_no, work.requester.clone(), work.task.clone(), work.checkpoint_units.max(work.units_done.min(work.checkpoint_units)));
        let (settle_by, units_pay) = (work.settle_by_ms, work.on_cancel == "units" && useful > 0);
        match work.stop {
            Some(StopWhy::Canceled) => {
                let entry = self.write_work_entry(now, key, Act::Stopped { award_no: no, useful_units: useful });
                let news = News::Canceled { useful_units: useful, entry };
                self.send_peer(&requester, Body::Update(Box::new(Update { task, award_no: no, news })), settle_by);
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
                let entry = self.write_work_entry(now, key, Act::Declined { award_no: no, code: code.clone() });
                let decline = Decline { task, requester: requester.clone(), award_no: no, code, message: "withdrawn by the requester".into(), retry_at_ms: None, entry: Some(entry) };
                self.send_peer(&requester, Body::Decline(Box::new(decline)), settle_by);
                self.move_work_money(now, key, Event::Decline, 0);
                self.end_work(now, key, "superseded");
            }
            Some(StopWhy::Deadline) => self.fail_work(now, key, "deadline_passed", "the deadline passed before the work was done"),
            Some(StopWhy::Owner) | None => {}
        }
    }

    pub(super) fn fail_work(&mut self, now: Ms, key: &EngagementKey, code: &str, message: &str) {
        let Some(work) = self.work.get(key) else { return };
        let (no, requester, task, settle_by) = (work.award_no, work.requester.clone(), work.task.clone(), work.settle_by_ms);
        let entry = self.write_work_entry(now, key, Act::Failed { award_no: no, code: code.to_owned() });
        let news = News::Failed { code: code.to_owned(), message: message.chars().take(500).collect(), entry };
        self.journal("work_failed", Some(&task), serde_json::json!({"key": key, "code": code}));
        self.send_peer(&requester, Body::Update(Box::new(Update { task, award_no: no, news })), settle_by);
        self.move_work_money(now, key, Event::Decline, 0);
        self.end_work(now, key, "failed");
    }

    pub(super) fn on_labor(&mut self, now: Ms, key: &EngagementKey, news: LaborNews) {
        let Some(work) = self.work.get_mut(key).filter(|w| matches!(w.stage, Stage::Running | Stage::Stopping)) else { return };
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
            LaborNews::Stopped { units_done, bytes, executed } => {
                work.executed = work.executed.saturating_add(u64::from(executed));
                work.checkpoint_units = units_done;
                work.units_done = units_done;
                work.stage = Stage::Hibernating;
                let why = work.stop;
                self.keep_checkpoint(key, &task, owner, units_done, bytes);
                self.journal("hibernated", Some(&task), serde_json::json!({"key": key, "units_done": units_done, "executed": executed}));
                match why {
                    Some(StopWhy::Owner) | None => self.tell_paused(key),
                    Some(_) => self.wound_up(now, key),
                }
                self.changed(&task);
            }
            LaborNews::Failed { code, message } => self.fail_work(now, key, &code, &message),
            LaborNews::Lost { code } => self.on_lost(now, key, &code),
            LaborNews::Done { output, output_hash, units, root, executed, resumed_from, profile } => {
                work.executed = work.executed.saturating_add(u64::from(executed));
                self.journal("done", Some(&task), serde_json::json!({"key": key, "executed": executed, "resumed_from": resumed_from}));
                self.deliver(now, key, output, output_hash, units, root, profile);
            }
        }
    }

    fn on_lost(&mut self, now: Ms, key: &EngagementKey, code: &str) {
        let attempts_max = self.policy.attempts_max;
        let Some(work) = self.work.get_mut(key) else { return };
        work.attempts += 1;
        let (attempts, why, task) = (work.attempts, work.stop, work.task.clone());
        self.dirty.work.insert(key.clone());
        self.journal("worker_lost", Some(&task), serde_json::json!({"key": key, "code": code, "attempt": attempts}));
        match why {
            Some(StopWhy::Owner) => {
                // It was being stopped for the owner: the last checkpoint is what remains.
                if let Some(work) = self.work.get_mut(key) {
                    work.stage = Stage::Hibernating;
                    work.attempts -= 1;
                }
                self.tell_paused(key);
            }
            Some(_) => {
                if let Some(work) = self.work.get_mut(key) {
                    work.stage = Stage::Hibernating;
                }
                self.wound_up(now, key);
            }
            None if attempts >= attempts_max => self.fail_work(now, key, code, "the worker process was lost too often"),
            None => {
                if let Some(work) = self.work.get_mut(key) {
                    work.stage = Stage::Queued;
                }
            }
        }
    }

    fn keep_checkpoint(&mut self, key: &EngagementKey, task: &str, owner: String, units_done: u32, bytes: Vec<u8>) {
        self.dirty.work.insert(key.clone());
        self.checkpoints.insert(owner.clone(), units_done);
        self.put(Row::Checkpoint { owner, units_done, bytes });
        self.journal("checkpoint", Some(task), serde_json::json!({"key": key, "units_done": units_done}));
    }

    #[allow(clippy::too_many_arguments)]
    fn deliver(&mut self, now: Ms, key: &EngagementKey, output: serde_json::Value, output_hash: String, units: Vec<u8>, root: String, profile: String) {
        use base64::Engine;
        let Some(work) = self.work.get(key) else { return };
        let cost_mc = u64::from(work.units).saturating_mul(work.unit_price_mc).min(work.total_mc);
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
        let (requester, task, no, settle_by) = (work.requester.clone(), work.task.clone(), work.award_no, work.settle_by_ms);
        let hash = proof.hash().unwrap_or_default();
        let entry = self.write_work_entry(now, key, Act::Completed { award_no: no, proof: hash });
        if let Some(work) = self.work.get_mut(key) {
            work.stage = Stage::Finished;
            work.units_done = work.units;
            work.proof = Some(proof.clone());
        }
        self.payload(key, "units", units.clone());
        self.payload(key, "output", serde_json::to_vec(&output).unwrap_or_default());
        self.journal("result_sent", Some(&task), serde_json::json!({"key": key, "cost_mc": cost_mc, "root": proof.root}));
        let result = WorkResult { output, units: base64::engine::general_purpose::STANDARD.encode(units), proof, entry };
        let news = News::Completed(Box::new(result));
        let expires = settle_by.saturating_add(self.policy.message_ttl_ms);
        self.send_peer(&requester, Body::Update(Box::new(Update { task: task.clone(), award_no: no, news })), expires);
        self.changed(&task);
    }

    pub(super) fn work_timers(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get(key) else { return };
        let (stage, result_by, settle_by, keepalive_at) = (work.stage, work.result_by_ms, work.settle_by_ms, work.keepalive_at_ms);
        if work.is_work() && now > result_by && work.stop != Some(StopWhy::Deadline) {
            self.wind_up(now, key, StopWhy::Deadline);
        } else if matches!(stage, Stage::Running | Stage::Queued) && now >= keepalive_at {
            self.keep_alive(now, key);
        } else if stage == Stage::Finished && now >= settle_by.saturating_add(self.policy.skew_ms) {
            if self.caught_up_ms > settle_by.saturating_add(self.policy.skew_ms) {
                self.dispute(now, key, "overdue");
            } else if self.online && !self.draining {
                self.draining = true;
                self.out.effects.push(super::step::Effect::Drain);
            }
        }
    }

    fn keep_alive(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get_mut(key) else { return };
        work.keepalive_at_ms = now.saturating_add(work.lease_ttl_ms / 3);
        let news = News::Working { units_done: work.units_done, units_total: work.units };
        let update = Update { task: work.task.clone(), award_no: work.award_no, news };
        let (requester, relays, ttl) = (work.requester.clone(), work.relays.clone(), work.lease_ttl_ms);
        if requester != self.policy.me {
            self.send(Addressee::Peer(requester), Body::Update(Box::new(update)), true, relays, now.saturating_add(ttl));
        }
    }

    pub(super) fn work_wake_ms(&self, work: &Engagement) -> Ms {
        match work.stage {
            Stage::Running | Stage::Queued => work.keepalive_at_ms.min(work.result_by_ms.saturating_add(1)),
            Stage::Hibernating => work.result_by_ms.saturating_add(1),
            Stage::Finished => work.settle_by_ms.saturating_add(self.policy.skew_ms),
            Stage::Stopping | Stage::Overdue | Stage::Disputed | Stage::Ended => Ms::MAX,
        }
    }

    pub(super) fn end_work(&mut self, now: Ms, key: &EngagementKey, end: &str) {
        let Some(work) = self.work.get_mut(key) else { return };
        work.stage = Stage::Ended;
        work.end = Some(end.to_owned());
        work.ended_ms = now;
        let (owner, task) = (work.owner(), work.task.clone());
        self.dirty.work.insert(key.clone());
        self.inputs.remove(key);
        // A checkpoint outlives a superseded award: the next award of the same task goes on from it.
        if end != "superseded" {
            self.checkpoints.remove(&owner);
        }
        self.out.changes.push(Change::DropWork { owner: if end == "superseded" { String::new() } else { owner }, key: key.clone() });
        self.changed(&task);
    }

    fn write_work_entry(&mut self, now: Ms, key: &EngagementKey, what: Act) -> Entry {
        let (me, mine) = (self.policy.me.clone(), self.policy.key.clone());
        let Some(work) = self.work.get_mut(key) else { return Entry::blank() };
        let (task, requester) = (work.task.clone(), work.requester.clone());
        let entry = history::write(&mut work.heads, now, Draft { task: &task, requester: &requester, author: &me, key: &mine, what });
        self.dirty.work.insert(key.clone());
        self.put(Row::Entry(Box::new(entry.clone())));
        entry
    }

    pub(super) fn admit_work_entry(&mut self, now: Ms, key: &EngagementKey, from: &str, entry: &Entry) -> Result<(), Refused> {
        let Some(work) = self.work.get(key) else { return Ok(()) };
        let (task, requester) = (work.task.clone(), work.requester.clone());
        self.entry_belongs(&task, &requester, from, entry)?;
        let Some(work) = self.work.get_mut(key) else { return Ok(()) };
        let admitted = history::admit(&mut work.heads, now, entry);
        self.dirty.work.insert(key.clone());
        if admitted.is_ok() || admitted.as_ref().is_err_and(|e| e.code == "equivocation") {
            self.put(Row::Entry(Box::new(entry.clone())));
        }
        admitted
    }

    fn drop_mark(&mut self, owner: &str) {
        if self.marks.remove(owner).is_some() {
            self.out.changes.push(Change::DropMark(owner.to_owned()));
        }
    }
}
