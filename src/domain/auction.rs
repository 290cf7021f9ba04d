//! The auction of a job in a pool: offer, bids, choice.
//!
//! The table of bids keeps the best by tier, experience and price. A stranger never displaces a trusted peer, and strangers
//! hold at most a quarter of it.

use std::cmp::Reverse;

use super::Node;
use super::job::{AwardState, Job, Phase, Reason, Route, TaskState};
use super::peer::Tier;
use super::step::{Addressee, Effect, Incoming, Ms, Refused};
use crate::wire::market::{self, Bid, Offer};
use crate::wire::message::Body;

/// Code of a decline by a peer whose owner has paused foreign work.
pub(super) const OWNER_PAUSED: &str = "owner_paused";
/// Least time, per round so far, before a peer's resume begins another round.
const ROUND_PAUSE_MS: Ms = 500;

/// How good a bid is, best first: whoever had this job before comes last, then tier, experience, price, time, key.
type Rank = (usize, Tier, Reverse<u32>, u64, u64, String);

impl Node {
    pub(super) fn offer(&mut self, now: Ms, task: &str, pool: &str) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        job.round += 1;
        self.dirty.jobs.insert(task.to_owned());
        job.window_ends_ms = None;
        job.bids.clear();
        job.round_ms = now;
        job.again_at_ms = None;
        // Whoever only had a passing reason is asked again.
        let passed: Vec<_> = (job.refusals.iter())
            .filter(|(_, r)| r.code == OWNER_PAUSED || r.retry_at_ms.is_some_and(|at| at <= now))
            .map(|(npub, _)| npub.clone())
            .collect();
        for npub in passed {
            forgive(job, &npub, now, "asked_again");
        }
        job.offer_expires_ms = now
            .saturating_add(self.policy.offer_ttl_ms)
            .min(job.deadline_ms);
        job.reason = Some(Reason::until(
            "waiting_for_bids",
            format!("offered to the pool {pool}; no bid yet"),
            job.offer_expires_ms,
        ));
        if job.marks.offered_ms == 0 {
            job.marks.offered_ms = now;
        }
        let (round, units) = (job.round, job.units);
        self.journal(
            "offer",
            Some(task),
            serde_json::json!({"round": round, "units": units, "pool": pool}),
        );
        self.announce(task);
        self.out.effects.push(Effect::Inboxes);
        self.changed(task);
        self.close_if_all_answered(now, task);
    }

    /// Sends the live offer of a job to its pool: at the start of a round, on a timer and after every reconnect.
    pub(super) fn announce(&mut self, task: &str) {
        let Some(job) = self.jobs.get(task) else {
            return;
        };
        let Route::Pool(pool) = &job.route else {
            return;
        };
        let offer = Offer {
            task: job.task.clone(),
            round: job.round,
            skill: job.skill.clone(),
            units: job.units,
            commitment: job.commitment.clone(),
            max_price_mc: job.max_price_mc,
            result_by_ms: job.deadline_ms,
            verification: self.policy.verification.clone(),
            output_bytes_max: job.output_bytes_max,
            // A class, not the size: an offer is read by the whole pool.
            input_bytes_max: job.input_bytes.next_power_of_two(),
            // Filled in with the one-time key when the message is sealed, like signatures.
            reply: String::new(),
            relays: self.policy.relays.clone(),
            expires_ms: job.offer_expires_ms,
            via: (job.via.iter())
                .filter_map(|link| market::veil(link, &self.policy.me, &job.task).ok())
                .collect(),
            model: job.model.clone(),
        };
        let expires_ms = job.offer_expires_ms;
        let to = Addressee::Pool(pool.clone());
        self.send(
            to,
            Body::Offer(Box::new(offer)),
            false,
            Vec::new(),
            expires_ms,
        );
    }

    pub(super) fn on_bid(
        &mut self,
        now: Ms,
        incoming: &Incoming,
        bid: &Bid,
    ) -> Result<(), Refused> {
        let from = &incoming.from;
        let job = self
            .jobs
            .get(&bid.task)
            .filter(|_| bid.requester == self.policy.me);
        let job =
            job.ok_or_else(|| Refused::new("bid_foreign", "a bid on a task that is not ours"))?;
        if job.phase != Phase::Placing || bid.round != job.round {
            return Err(Refused::new("bid_late", "the offer is closed"));
        }
        if bid.expires_ms <= now {
            return Err(Refused::new("bid_expired", "the bid has expired"));
        }
        let units = u64::from(job.units).checked_mul(bid.unit_price_mc);
        let total = units.and_then(|units| units.checked_add(bid.hops_mc));
        if total != Some(bid.total_mc) || bid.total_mc > job.max_price_mc {
            return Err(Refused::new(
                "bid_price",
                "the bid's total is not units x price and what it delegates, or is above the offer",
            ));
        }
        let task = bid.task.clone();
        if unwelcome(job, from, now) {
            self.close_if_all_answered(now, &task);
            return Err(Refused::new(
                "bid_unwelcome",
                "the bidder has declined this job, or its result was refused",
            ));
        }
        let mut bids = job.bids.clone();
        bids.retain(|(npub, _)| npub != from);
        bids.push((from.clone(), bid.clone()));
        let bids = self.best(job, bids);
        if !bids.iter().any(|(npub, _)| npub == from) {
            return Err(Refused::new(
                "bids_full",
                "the table of bids is full of better ones",
            ));
        }
        let window_ends = now.saturating_add(self.policy.bid_window_ms);
        if let Some(job) = self.jobs.get_mut(&task) {
            job.bids = bids;
            // What else was planned gives way to the window of this bid.
            job.again_at_ms = None;
            forgive(job, from, now, "bid_again");
            let until = *job.window_ends_ms.get_or_insert(window_ends);
            job.reason = Some(Reason::until(
                "collecting_bids",
                format!("{} bid(s); the best is taken soon", job.bids.len()),
                until,
            ));
            self.dirty.jobs.insert(task.clone());
        }
        self.journal(
            "bid",
            Some(&task),
            serde_json::json!({"from": incoming.from, "total_mc": bid.total_mc}),
        );
        self.close_if_all_answered(now, &task);
        Ok(())
    }

    /// The bids that the table has room for, best first.
    fn best(&self, job: &Job, mut bids: Vec<(String, Bid)>) -> Vec<(String, Bid)> {
        bids.sort_by_cached_key(|pair| self.rank(job, pair));
        let (most, mut strangers) = (
            self.policy.bids_max as usize,
            (self.policy.bids_max as usize / 4).max(1),
        );
        bids.retain(|(npub, _)| {
            if self
                .peers
                .get(npub)
                .is_some_and(|p| p.tier != Tier::Stranger)
            {
                return true;
            }
            let fits = strangers > 0;
            strangers = strangers.saturating_sub(1);
            fits
        });
        bids.truncate(most);
        bids
    }

    fn rank(&self, job: &Job, (npub, bid): &(String, Bid)) -> Rank {
        let peer = self.peers.get(npub);
        let tried = job.awards.iter().filter(|a| a.executor == *npub).count();
        let experience = peer.map_or(0, |p| {
            p.completed
                .min(10)
                .saturating_sub(p.frauds.saturating_mul(10))
        });
        (
            tried,
            peer.map_or(Tier::Stranger, |p| p.tier),
            Reverse(experience),
            bid.total_mc,
            bid.eta_ms,
            npub.clone(),
        )
    }

    /// Nobody waits for a window when everyone known to offer the skill has answered; and if all of them said no, the
    /// owner is told at once.
    pub(super) fn close_if_all_answered(&mut self, now: Ms, task: &str) {
        let Some(job) = self.jobs.get(task) else {
            return;
        };
        if job.phase != Phase::Placing {
            return;
        }
        let Route::Pool(pool) = &job.route else {
            return;
        };
        let known: Vec<_> = self
            .peers
            .values()
            .filter(|p| p.advertises(&job.skill, pool, now))
            .collect();
        let answered =
            |npub: &str| job.refusals.contains_key(npub) || job.bids.iter().any(|(n, _)| n == npub);
        if !known.iter().all(|p| answered(&p.npub)) {
            return;
        }
        // Whoever waits for this very job was never one who could do it.
        let waits = |r: &Reason| r.code == super::hops::CYCLE;
        let nobody_known = (known.iter()).all(|p| job.refusals.get(&p.npub).is_some_and(waits));
        let passes = |r: &Reason| {
            r.code == OWNER_PAUSED || r.retry_at_ms.is_some_and(|at| at <= job.deadline_ms)
        };
        let passing: Vec<_> = job.refusals.values().filter(|r| passes(r)).collect();
        if !passing.is_empty() && job.bids.is_empty() {
            if passing.iter().all(|r| r.code == OWNER_PAUSED) {
                self.wait_for_resume(task);
            }
        } else if nobody_known {
            // Somebody may be there that has not been heard yet.
        } else if !job.bids.is_empty() {
            self.choose(now, task);
        } else {
            self.end(
                now,
                task,
                TaskState::Rejected,
                Reason::new(
                    "no_provider",
                    "every known peer refused; `legion why` says why per peer",
                ),
            );
        }
    }

    /// Whoever could do the job is paused by its owner: it is offered again when one of them resumes.
    fn wait_for_resume(&mut self, task: &str) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        job.reason = Some(Reason::until(
            "waiting_for_resume",
            "every known provider is paused by its owner; the task is offered again when one resumes",
            job.deadline_ms,
        ));
        self.dirty.jobs.insert(task.to_owned());
        self.changed(task);
    }

    /// A peer's ad says that it works. What it declined because its owner had paused it is offered to it again: in a new
    /// round, since it has heard the old one; the more rounds, the later, so that a peer that only says so costs little.
    pub(super) fn ask_again(&mut self, now: Ms, npub: &str) {
        let paused = |j: &&mut Job| {
            j.phase != Phase::Ended && j.refusals.get(npub).is_some_and(|r| r.code == OWNER_PAUSED)
        };
        for job in self.jobs.values_mut().filter(paused) {
            forgive(job, npub, now, "asked_again");
            self.dirty.jobs.insert(job.task.clone());
            if job.phase != Phase::Placing || !job.bids.is_empty() {
                continue;
            }
            let pause_ms = match &job.route {
                Route::Pool(_) => u64::from(job.round).saturating_mul(ROUND_PAUSE_MS),
                Route::Peer(peer) if peer == npub => 0,
                Route::Peer(_) | Route::Own => continue,
            };
            let at = job.round_ms.saturating_add(pause_ms).max(now);
            job.again_at_ms = Some(at.min(now.saturating_add(self.policy.offer_ttl_ms)));
        }
    }

    /// Awards the job to the best bid: by tier, then experience, price, time, key.
    pub(super) fn choose(&mut self, now: Ms, task: &str) {
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        job.bids.retain(|(_, bid)| bid.expires_ms > now);
        let bids = std::mem::take(&mut job.bids);
        let Some(job) = self.jobs.get(task) else {
            return;
        };
        let mut bids = self.best(job, bids);
        bids.retain(|(npub, _)| !unwelcome(job, npub, now));
        let best = (!bids.is_empty()).then(|| bids.remove(0));
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        job.bids = bids;
        let Some((npub, bid)) = best else {
            if let Route::Pool(pool) = job.route.clone() {
                self.offer(now, task, &pool);
            }
            return;
        };
        self.award(now, task, npub, Some(&bid));
    }
}

/// Takes back what a peer's refusal says of it. That it had the job and gave it up is not forgotten, but held against it no more.
fn forgive(job: &mut Job, npub: &str, now: Ms, code: &str) {
    if job.refusals.remove(npub).is_some() && job.awards.iter().any(|a| a.executor == npub) {
        let text = "it gave the job back for a reason that has passed";
        (job.refusals).insert(npub.to_owned(), Reason::until(code, text, now));
    }
}

/// Whether this peer had the job and gave it up, or delivered a result that was refused. Silence (a lease that ran out, an
/// acceptance that came too late) is forgiven; a decline with a time holds until that time.
fn unwelcome(job: &Job, npub: &str, now: Ms) -> bool {
    // Whoever waits for the work that this is a part of: no proof counts a hop by its own requester.
    let work = job.parent.as_deref();
    if work.is_some_and(|key| key.split('/').next() == Some(npub)) {
        return true;
    }
    if (job.awards.iter()).any(|a| a.executor == npub && a.state == AwardState::Disputed) {
        return true;
    }
    let failed = job.awards.iter().any(|a| {
        a.executor == npub && matches!(a.state, AwardState::Declined | AwardState::Delivered)
    });
    failed
        && job
            .refusals
            .get(npub)
            .is_none_or(|reason| reason.retry_at_ms.is_none_or(|at| at > now))
}
