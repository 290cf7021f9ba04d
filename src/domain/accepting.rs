//! Our part when a job is awarded to us: accepting and declining.

use super::Node;
use super::bidding::{Agreed, Deal};
use super::engagement::{self, Engagement, Stage};
use super::history;
use super::ledger::{Event, State as Money};
use super::mark::{self, Promise};
use super::peer::Tier;
use super::step::{EngagementKey, Incoming, Ms, PlanFacts, Refused};
use crate::wire::entry::{Act, Entry};
use crate::wire::market::{Accept, Award, Decline};
use crate::wire::message::{Body, News, Update};

/// Longest time to settlement that is accepted.
const TERM_MAX_MS: Ms = 400 * 24 * 3600 * 1000;

/// When a peer whose tasks fill their room may ask again.
const FULL_RETRY_MS: Ms = 60_000;

impl Node {
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
        if !(1..=history::AWARD_NO_MAX).contains(&award.award_no) {
            return Err(Refused::new(
                "award_no_unknown",
                format!("awards are numbered from 1 to {}", history::AWARD_NO_MAX),
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
        if !self.is_local(from) && !self.room_for_mark(from, &owner) {
            return Err(self.decline_unremembered(now, from, award));
        }
        let deal = if canceled {
            Err(Refused::new("canceled", "the requester canceled this task"))
        } else {
            self.consider(now, incoming, award, promise.filter(|_| !directed))
        };
        let until = if deal.is_ok() {
            award.settle_by_ms
        } else {
            // Long enough for a last repetition; a later award has later numbers.
            now.saturating_add(mark::DECLINED_MS)
        };
        self.admit_foreign_entry(now, from, &award.task, until, &award.entry)?;
        self.supersede_work(now, from, &award.task, award.award_no);
        self.moot(from, &award.task);
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
        let kept = |p: &Promise| {
            award.unit_price_mc == Some(p.unit_price_mc)
                && award.units == p.units
                && award.skill == p.skill
                && award.hops_mc == p.hops_mc
        };
        if !promise.as_ref().is_none_or(kept) {
            return Err(Refused::new(
                "award_terms",
                "the award changes the skill, the units or the price of our bid",
            ));
        }
        if award.detached.is_some() {
            // The input is not here, and will not come: the node says why in place of the plan.
            return Err(match &incoming.plan {
                Some(Err(refused)) => refused.clone(),
                _ => Refused::new("transfer_missing", "the input did not arrive"),
            });
        }
        let committed = crate::wire::market::commitment(&award.input, &award.salt)
            .is_ok_and(|c| c == award.commitment);
        if !committed {
            return Err(Refused::new(
                "commitment_mismatch",
                "the input is not the one that was committed to",
            ));
        }
        let from = incoming.from.clone();
        let bid = matches!(incoming.body, Body::Award(_));
        let deal_for = |units: u32| {
            let (agreed, most_mc) = (Agreed::of(award, bid), award.max_price_mc);
            let deal = self.would_do(now, &from, &award.skill, units, agreed, most_mc)?;
            self.turn(now, &from, &award.skill)?;
            Ok(deal)
        };
        let plan = match planned(incoming, award) {
            // As for an offer: which models this machine has is told to those alone whom it would work for.
            Err(lacking) if lacking.code == "model_missing" => {
                return deal_for(award.units.max(1)).and(Err(lacking));
            }
            plan => plan?,
        };
        self.fits(plan.output_bytes_max)?;
        self.admits_chain(&award.via)?;
        let deal = deal_for(plan.units)?;
        self.peers
            .entry(from.clone())
            .or_insert_with(|| super::peer::Peer::stranger(&from))
            .count_task(now);
        Ok(deal)
    }

    fn engagement(
        &self,
        now: Ms,
        from: &str,
        award: &Award,
        terms: String,
        deal: &Deal,
    ) -> Engagement {
        let critical =
            self.is_local(from) && self.jobs.get(&award.task).is_some_and(|j| j.critical);
        let owner = format!("{from}/{}", award.task);
        let checkpoint_units = self.marks.get(&owner).map_or(0, |m| m.checkpoint_units);
        let link = crate::wire::market::link(&award.salt);
        // The owner has the hardware: the lease is withheld from the start.
        let withheld = self.owner.paused.is_some() && !self.is_local(from);
        Engagement {
            key: engagement::key(from, &award.task, award.award_no),
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
            hops_mc: deal.hops_mc,
            via: [award.via.clone(), link.into_iter().collect()].concat(),
            calls: Vec::new(),
            stopped_hops: Vec::new(),
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
            withdrawn: false,
            called_superseded: false,
            agreed: Some(Box::new(award.terms())),
            proof: None,
        }
    }

    fn accept(&mut self, now: Ms, from: &str, award: &Award, terms: String, deal: Deal) {
        let key = engagement::key(from, &award.task, award.award_no);
        self.owner.order += 1;
        let work = self.engagement(now, from, award, terms, &deal);
        let withheld = work.stage == Stage::Hibernating;
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
            hops_mc: deal.hops_mc,
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
        self.send_decline(now, from, award, refused, entry);
    }

    /// Declines an award of a task that there is no room to remember: nothing is written down, so that asking fills nothing.
    fn decline_unremembered(&mut self, now: Ms, from: &str, award: &Award) -> Refused {
        let refused = Refused::new(
            "too_many_marks",
            "too many tasks of this peer are remembered here",
        )
        .retry_at(Some(now.saturating_add(FULL_RETRY_MS)));
        let entry = history::decline_unremembered(
            &award.entry,
            (
                &self.policy.me,
                &self.policy.key,
                self.lineage.numbers_above,
            ),
            award.award_no,
            &refused.code,
        );
        self.send_decline(now, from, award, refused.clone(), entry);
        refused
    }

    fn send_decline(&mut self, now: Ms, from: &str, award: &Award, refused: Refused, entry: Entry) {
        let retry_at_ms = refused.retry_at_ms;
        let decline = Decline {
            task: award.task.clone(),
            requester: from.to_owned(),
            award_no: award.award_no,
            code: refused.code,
            message: refused.message,
            retry_at_ms,
            entry: Some(entry),
            binding: Some(self.policy.binding.clone()),
        };
        self.send_peer_at(
            from,
            &award.relays,
            Body::Decline(Box::new(decline)),
            now.saturating_add(self.answer_ttl_ms(from))
                .min(award.settle_by_ms),
        );
    }

    /// How long an answer to somebody who is owed nothing is kept for delivery: a stranger cannot fill the outbox.
    pub(super) fn answer_ttl_ms(&self, from: &str) -> Ms {
        match self.peer(from).tier {
            Tier::Stranger => self.policy.message_ttl_ms.min(600_000),
            Tier::Own | Tier::Trusted => self.policy.message_ttl_ms,
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
}

/// What our skill says of the input, where that is what the award says and a result would fit.
fn planned(incoming: &Incoming, award: &Award) -> Result<PlanFacts, Refused> {
    let plan = match &incoming.plan {
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
    Ok(plan)
}
