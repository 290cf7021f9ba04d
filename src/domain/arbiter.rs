//! The lease arbiter: who holds the hardware now. The owner comes first.

use serde::{Deserialize, Serialize};

use super::Node;
use super::engagement::{Stage, StopWhy};
use super::step::{Effect, EngagementKey, Ms, PauseMode, Refused, Row};
use crate::wire::message::{Body, News, Update};

/// A pause of foreign work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// How it began.
    pub mode: PauseMode,
    /// When it ends by itself; only `resume` ends it if none.
    pub until_ms: Option<Ms>,
}

/// The owner's switches and the node's counters, kept over restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerState {
    /// The pause, while there is one.
    pub paused: Option<Pause>,
    /// Acceptances so far: the order of service within a tier.
    pub order: u64,
}

impl Node {
    pub(super) fn on_pause(&mut self, now: Ms, mode: PauseMode, for_ms: Option<Ms>) {
        self.unsettled = true;
        self.owner.paused = Some(Pause {
            mode,
            until_ms: for_ms.map(|ms| now.saturating_add(ms)),
        });
        self.put(Row::Owner(self.owner.clone()));
        self.journal(
            "pause",
            None,
            serde_json::json!({"mode": mode, "for_ms": for_ms}),
        );
        self.out.effects.push(Effect::Readvertise);
        self.out.effects.push(Effect::Done(Ok(())));
        // Work that waits for a lease also learns why it waits.
        let waiting: Vec<_> = self
            .work
            .values()
            .filter(|w| !self.is_local(&w.requester) && w.stage == Stage::Queued)
            .map(|w| w.key.clone())
            .collect();
        for key in waiting {
            if let Some(work) = self.work.get_mut(&key) {
                work.stage = Stage::Hibernating;
                self.dirty.work.insert(key.clone());
            }
            self.tell_paused(&key);
        }
    }

    pub(super) fn on_resume(&mut self, now: Ms) {
        let answer = if self.owner.paused.is_some() {
            self.end_pause(now, serde_json::json!({}));
            Ok(())
        } else {
            Err(Refused::new("not_paused", "foreign work is not paused"))
        };
        self.out.effects.push(Effect::Done(answer));
    }

    /// Foreign work may hold hardware again: the pools hear it, and what was offered meanwhile gets its answer.
    fn end_pause(&mut self, now: Ms, why: serde_json::Value) {
        self.owner.paused = None;
        self.unsettled = true;
        self.put(Row::Owner(self.owner.clone()));
        self.journal("resume", None, why);
        self.out.effects.push(Effect::Readvertise);
        self.answer_held(now);
    }

    /// Whether an engagement is the owner's own, asked for on this very node.
    pub(super) fn is_local(&self, requester: &str) -> bool {
        requester == self.policy.me
    }

    /// Whether foreign work may hold hardware now.
    fn foreign_allowed(&self) -> bool {
        let local_active = self
            .work
            .values()
            .any(|w| self.is_local(&w.requester) && w.is_work() && w.stage != Stage::Waiting);
        self.owner.paused.is_none() && !local_active && !self.stopping
    }

    /// Grants and revokes leases until the hardware is with whom it belongs.
    pub(super) fn arbitrate(&mut self, now: Ms) {
        if self
            .owner
            .paused
            .as_ref()
            .and_then(|p| p.until_ms)
            .is_some_and(|until| now >= until)
        {
            self.end_pause(now, serde_json::json!({"by": "time"}));
        }
        // Nothing that leases depend on has changed.
        if self.dirty.work.is_empty() && !self.unsettled {
            return;
        }
        self.unsettled = false;
        if !self.foreign_allowed() {
            self.revoke_foreign();
        }
        let busy = self
            .work
            .values()
            .filter(|w| matches!(w.stage, Stage::Running | Stage::Stopping))
            .count();
        let free = (self.policy.leases_max as usize).saturating_sub(busy);
        if free == 0 || self.stopping {
            return;
        }
        let foreign = self.foreign_allowed();
        let mut waiting: Vec<_> = self
            .work
            .values()
            .filter(|w| matches!(w.stage, Stage::Queued | Stage::Hibernating))
            .filter(|w| foreign || self.is_local(&w.requester))
            .filter(|w| matches!(w.stop, None | Some(StopWhy::Owner)))
            .map(|w| (w.rank(), w.key.clone()))
            .collect();
        waiting.sort();
        for (_, key) in waiting.into_iter().take(free) {
            self.grant(now, &key);
        }
    }

    fn grant(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        let resumed = work.checkpoint_units;
        work.stop = None;
        if work.started_ms == 0 {
            work.started_ms = now;
        }
        work.keepalive_at_ms = now.saturating_add(work.lease_ttl_ms / 3);
        let told_of_pause = work.stage == Stage::Hibernating;
        work.stage = Stage::Running;
        let task = work.task.clone();
        self.dirty.work.insert(key.clone());
        self.journal(
            "lease_granted",
            Some(&task),
            serde_json::json!({"key": key, "resumed_from": resumed}),
        );
        self.out.effects.push(Effect::Start(key.clone()));
        if told_of_pause {
            // The requester hears at once that the pause is over.
            self.keep_alive(now, key);
        }
    }

    fn revoke_foreign(&mut self) {
        let after_checkpoint = self
            .owner
            .paused
            .as_ref()
            .is_some_and(|p| p.mode == PauseMode::AfterCheckpoint);
        let running: Vec<_> = self
            .work
            .values()
            .filter(|w| w.stage == Stage::Running && !self.is_local(&w.requester))
            .map(|w| w.key.clone())
            .collect();
        for key in running {
            self.stop_work(&key, StopWhy::Owner, after_checkpoint);
        }
    }

    /// Asks the worker to stop at a unit boundary. A stop for good is never weakened: the first reason stands.
    pub(super) fn stop_work(&mut self, key: &EngagementKey, why: StopWhy, after_checkpoint: bool) {
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        if matches!(work.stop, None | Some(StopWhy::Owner)) {
            work.stop = Some(why);
        }
        let task = work.task.clone();
        let running = matches!(work.stage, Stage::Running | Stage::Stopping);
        if running {
            work.stage = Stage::Stopping;
        }
        self.dirty.work.insert(key.clone());
        if running {
            self.journal(
                "lease_revoked",
                Some(&task),
                serde_json::json!({"key": key, "why": why}),
            );
            self.out.effects.push(Effect::SoftStop {
                key: key.clone(),
                after_checkpoint,
            });
        }
    }

    /// Tells the requester that the owner holds the hardware, and when it will be tried again.
    pub(super) fn tell_paused(&mut self, key: &EngagementKey) {
        let Some(work) = self.work.get(key) else {
            return;
        };
        if work.requester == self.policy.me {
            return;
        }
        let retry_at_ms = self.owner.paused.as_ref().and_then(|p| p.until_ms);
        let update = Update {
            task: work.task.clone(),
            award_no: work.award_no,
            news: News::Paused {
                reason: "owner".into(),
                retry_at_ms,
            },
        };
        let (requester, expires) = (work.requester.clone(), work.settle_by_ms);
        self.send_peer(&requester, Body::Update(Box::new(update)), expires);
    }
}
