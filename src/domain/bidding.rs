//! Our part when a job is offered: whether this node would do it, for whom, and at which price.

use super::Node;
use super::auction::OWNER_PAUSED;
use super::ledger::AMOUNT_MAX_MC;
use super::mark::Promise;
use super::peer::Tier;
use super::step::{Addressee, Effect, Incoming, Ms, Refused};
use crate::wire::market::{Award, Bid, Decline, Offer};
use crate::wire::message::Body;
use crate::wire::transfer::allowance_ms;

/// What the executor agrees to, before it is an engagement.
pub(super) struct Deal {
    pub(super) tier: Tier,
    pub(super) units: u32,
    pub(super) unit_price_mc: u64,
    pub(super) total_mc: u64,
    /// Of the total, for what is delegated.
    pub(super) hops_mc: u64,
}

/// What an award says of the price.
#[derive(Clone, Copy)]
pub(super) struct Agreed {
    unit_price_mc: u64,
    hops_mc: u64,
    /// Whether we have bid it.
    bid: bool,
}

impl Agreed {
    /// Of this award; none of one that leaves the price to us.
    pub(super) fn of(award: &Award, bid: bool) -> Option<Self> {
        award.unit_price_mc.map(|unit_price_mc| Self {
            unit_price_mc,
            hops_mc: award.hops_mc,
            bid,
        })
    }
}

/// Most offers kept while the owner has paused foreign work.
const HELD_MAX: usize = 256;
/// Most of them from strangers.
const HELD_STRANGERS_MAX: usize = 64;

impl Node {
    /// Keeps an offer that was declined because of a pause, so that it is answered anew at its end. Only in memory: after a
    /// restart the ad that ends the pause has it offered again.
    fn hold_offer(&mut self, now: Ms, incoming: &Incoming, offer: &Offer) {
        let stranger =
            |npub: &str| (self.peers.get(npub)).is_none_or(|peer| peer.tier == Tier::Stranger);
        self.held.retain(|_, (until, _)| *until > now);
        let strangers = (self.held.values())
            .filter(|(_, held)| stranger(&held.from))
            .count();
        let full = self.held.len() >= HELD_MAX
            || stranger(&incoming.from) && strangers >= HELD_STRANGERS_MAX;
        let owner = format!("{}/{}", incoming.from, offer.task);
        if !full || self.held.contains_key(&owner) {
            let until = offer.expires_ms.min(offer.result_by_ms);
            self.held.insert(owner, (until, incoming.clone()));
        }
    }

    /// The pause has ended: what was offered meanwhile and is still open gets its answer.
    pub(super) fn answer_held(&mut self, now: Ms) {
        for (_, incoming) in std::mem::take(&mut self.held).into_values() {
            if let Body::Offer(offer) = &incoming.body
                && let Err(refused) = self.on_offer(now, &incoming, offer)
            {
                self.out.effects.push(Effect::Dropped {
                    code: refused.code,
                    from: incoming.from.clone(),
                });
            }
        }
    }

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
        let deal = self.would_bid(now, &incoming.from, &owner, offer);
        let deal = match &incoming.plan {
            // What this machine lacks is told to those alone whom it would work for.
            Some(Err(lacking)) => deal.and(Err(lacking.clone())),
            _ => deal,
        };
        match deal {
            Ok(deal) => self.bid(&owner, &incoming.from, offer, &deal),
            Err(refused) => {
                if refused.code == OWNER_PAUSED {
                    self.hold_offer(now, incoming, offer);
                }
                self.decline_offer(now, &incoming.from, offer, refused);
            }
        }
        Ok(())
    }

    fn decline_offer(&mut self, now: Ms, requester: &str, offer: &Offer, refused: Refused) {
        let decline = Decline {
            task: offer.task.clone(),
            requester: requester.to_owned(),
            award_no: 0,
            code: refused.code,
            message: refused.message,
            retry_at_ms: refused.retry_at_ms,
            entry: None,
            binding: None,
        };
        // Nothing is written down of who is declined, so nothing else bounds how many answers wait.
        let until = now.saturating_add(self.answer_ttl_ms(requester));
        let body = Body::Decline(Box::new(decline));
        self.reply(offer, body, offer.expires_ms.min(until));
    }

    fn reply(&mut self, offer: &Offer, body: Body, expires_ms: Ms) {
        let (to, relays) = (Addressee::Reply(offer.reply.clone()), offer.relays.clone());
        self.send(to, body, false, relays, expires_ms);
    }

    fn bid(&mut self, owner: &str, requester: &str, offer: &Offer, deal: &Deal) {
        let queue = self.work.values().filter(|w| w.is_work()).count() as u32;
        let eta = self
            .policy
            .skills
            .iter()
            .find(|s| s.id == offer.skill)
            .map_or(0, |s| s.unit_eta_ms);
        let bid = Bid {
            task: offer.task.clone(),
            requester: requester.to_owned(),
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
            hops_mc: deal.hops_mc,
        };
        let until = bid
            .expires_ms
            .saturating_add(self.policy.accept_within_ms)
            .saturating_add(self.policy.skew_ms)
            .saturating_add(allowance_ms(offer.input_bytes_max))
            .min(offer.result_by_ms);
        self.mark(owner, until).bid = Some(Promise {
            unit_price_mc: deal.unit_price_mc,
            units: deal.units,
            skill: offer.skill.clone(),
            hops_mc: deal.hops_mc,
        });
        self.journal(
            "bid_made",
            Some(&offer.task),
            serde_json::json!({"to": requester, "total_mc": bid.total_mc}),
        );
        self.reply(offer, Body::Bid(Box::new(bid)), offer.expires_ms);
    }

    /// Whether this node bids on an offer. A bid is a promise, so everything is asked here that an award is asked later.
    fn would_bid(&self, now: Ms, from: &str, owner: &str, offer: &Offer) -> Result<Deal, Refused> {
        if self.owner.paused.is_some() || self.stopping {
            let until = self.owner.paused.as_ref().and_then(|p| p.until_ms);
            return Err(
                Refused::new(OWNER_PAUSED, "the owner has paused foreign work").retry_at(until),
            );
        }
        if offer.units == 0 {
            return Err(Refused::new(
                "units_missing",
                "the offer does not say how many units it has",
            ));
        }
        // The class is the next power of two: half of it is certain.
        self.fits(offer.input_bytes_max / 2)?;
        self.fits(offer.output_bytes_max)?;
        self.admits_veiled(from, &offer.task, &offer.via)?;
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

    /// Whether this node would do such a job for this peer, and at which price: that of the units, and what the skill may spend
    /// on parts that it delegates.
    pub(super) fn would_do(
        &self,
        now: Ms,
        from: &str,
        skill: &str,
        units: u32,
        agreed: Option<Agreed>,
        max_price_mc: u64,
    ) -> Result<Deal, Refused> {
        let peer = self.peer(from);
        let budget_mc = self.policy.hop_budget_mc(skill);
        if self.is_local(from) {
            let hops_mc = budget_mc.min(max_price_mc);
            return Ok(Deal {
                tier: Tier::Own,
                units,
                unit_price_mc: 0,
                total_mc: hops_mc,
                hops_mc,
            });
        }
        let price = self.policy.unit_price_mc(&peer, skill)?;
        if agreed.is_some_and(|agreed| agreed.unit_price_mc < price && !agreed.bid) {
            return Err(Refused::new(
                "price_too_low",
                format!("the price here is {price} mc a unit"),
            ));
        }
        let price = agreed.map_or(price, |agreed| agreed.unit_price_mc);
        let hops_mc = match agreed {
            Some(agreed) if agreed.bid => agreed.hops_mc,
            // Nobody else raises what the owner lets a job spend.
            Some(agreed) => agreed.hops_mc.min(budget_mc),
            None => budget_mc,
        };
        let total = u64::from(units)
            .checked_mul(price)
            .and_then(|total| total.checked_add(hops_mc))
            .filter(|t| *t <= max_price_mc && *t <= AMOUNT_MAX_MC);
        let total = total.ok_or_else(|| {
            let hops = match hops_mc {
                0 => String::new(),
                _ => format!(", and {hops_mc} mc for what they delegate,"),
            };
            Refused::new(
                "price_too_low",
                format!(
                    "{units} units at {price} mc{hops} are above the {max_price_mc} mc offered"
                ),
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
        self.policy.permissions.admits_sandbox(&permission, skill)?;
        Ok(Deal {
            tier: peer.tier,
            units,
            unit_price_mc: price,
            total_mc: total,
            hops_mc,
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

    /// Whether one more task of this peer fits into its rate; own nodes have none.
    pub(super) fn turn(&self, now: Ms, from: &str, skill: &str) -> Result<(), Refused> {
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
}
