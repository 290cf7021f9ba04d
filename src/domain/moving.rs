//! Payloads that travel beside their message: whether one is worth fetching, and what it means for a job that one moves. How
//! bytes travel is the node's; a message reaches the rest of this room only when it is whole.

use super::Node;
use super::bidding::Agreed;
use super::engagement;
use super::job::{Job, Phase, Reason};
use super::step::{Incoming, Ms, Refused};
use crate::wire::market::Award;
use crate::wire::message::{Body, News, Update};
use crate::wire::transfer::Detached;

impl Node {
    /// Whether the payload of this message is to be fetched. Everything that can be asked without the payload is asked here, so
    /// that no byte moves for an award that would be declined or a result that nobody waits for.
    ///
    /// # Errors
    /// Why not; for an award, the reason that its decline gives.
    pub fn would_fetch(&self, now: Ms, incoming: &Incoming) -> Result<(), Refused> {
        let (detached, known) = match &incoming.body {
            Body::Award(award) | Body::Request(award) => {
                (&award.detached, self.would_take(now, incoming, award))
            }
            Body::Update(update) => match &update.news {
                News::Completed(result) => (&result.detached, self.awaits(&incoming.from, update)),
                _ => (&None, Ok(())),
            },
            _ => (&None, Ok(())),
        };
        let bytes = detached.as_ref().map_or(0, |d: &Detached| d.bytes);
        known.and_then(|()| self.fits(bytes))
    }

    /// Whether a payload of this size may be sent or fetched at all.
    pub(super) fn fits(&self, bytes: u64) -> Result<(), Refused> {
        let most = self.policy.payload_bytes_max;
        if bytes <= most {
            return Ok(());
        }
        Err(Refused::new(
            "payload_too_large",
            format!(
                "{bytes} bytes are more than the {most} that this node moves (limits.payload_bytes)"
            ),
        ))
    }

    fn would_take(&self, now: Ms, incoming: &Incoming, award: &Award) -> Result<(), Refused> {
        let from = incoming.from.as_str();
        let owner = format!("{from}/{}", award.task);
        let key = engagement::key(from, &award.task, award.award_no);
        let mark = self.marks.get(&owner);
        let newer = self.work_of(&owner).any(|w| w.award_no > award.award_no);
        if newer || self.work.contains_key(&key) {
            return Err(Refused::new("award_superseded", "a newer award is known"));
        }
        if mark.is_some_and(|m| m.canceled) {
            return Err(Refused::new("canceled", "the requester canceled this task"));
        }
        let bid = matches!(incoming.body, Body::Award(_));
        if bid && mark.is_none_or(|m| m.bid.is_none()) {
            return Err(Refused::new("transfer_unknown", "no bid on this task"));
        }
        if now.saturating_add(self.policy.skew_ms) > award.accept_by_ms {
            return Err(Refused::new(
                "award_expired",
                "the time to accept has passed",
            ));
        }
        self.admits_chain(&award.via)?;
        self.would_do(
            now,
            from,
            &award.skill,
            award.units,
            Agreed::of(award, bid),
            award.max_price_mc,
        )?;
        self.turn(now, from, &award.skill)
    }

    fn awaits(&self, from: &str, update: &Update) -> Result<(), Refused> {
        let awarded = |job: &Job| {
            let mut awards = job.awards.iter();
            awards.any(|a| a.no == update.award_no && a.executor == from)
        };
        if self.jobs.get(&update.task).is_some_and(awarded) {
            return Ok(());
        }
        Err(Refused::new(
            "transfer_unknown",
            "no task between the two has this payload",
        ))
    }

    /// A payload that moves is a sign of life, and what the owner waits for.
    pub(super) fn on_moving(
        &mut self,
        now: Ms,
        task: &str,
        award_no: u32,
        (done_bytes, bytes): (u64, u64),
        result: bool,
    ) {
        let ttl = self.policy.lease_ttl_ms;
        let Some(job) = self.jobs.get_mut(task) else {
            return;
        };
        let current = job.current().is_some_and(|a| a.no == award_no);
        let waits = match job.phase {
            Phase::Working => result,
            Phase::Awarded => true,
            Phase::Placing | Phase::Checking | Phase::Ended => false,
        };
        let Some(award) = job.award_mut(award_no) else {
            return;
        };
        award.lease_until_ms = award.lease_until_ms.max(now.saturating_add(ttl));
        if current && waits {
            let text = format!("{} of {}", mega(done_bytes), mega(bytes));
            let code = if result {
                "receiving_result"
            } else {
                "sending_input"
            };
            let retry_at_ms = job.reason.as_ref().and_then(|r| r.retry_at_ms);
            job.reason = Some(Reason {
                retry_at_ms: retry_at_ms.filter(|_| !result),
                ..Reason::new(code, text)
            });
        }
        self.dirty.jobs.insert(task.to_owned());
        self.changed(task);
    }
}

/// Bytes for a person, without a float.
fn mega(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}
