//! Our part when work ends before it is done: the requester cancels or withdraws. What counts until then is said once, signed.

use std::collections::BTreeSet;

use super::Node;
use super::engagement::{Engagement, Stage, StopWhy};
use super::ledger::Event;
use super::mark;
use super::step::{EngagementKey, Ms, Refused};
use crate::wire::entry::{Act, Entry};
use crate::wire::market::Decline;
use crate::wire::message::{Body, News, Update};
use crate::wire::proof::Hop;

impl Node {
    /// A newer award of the task exists, or the requester withdrew: stop the older ones.
    pub(super) fn supersede_work(&mut self, now: Ms, from: &str, task: &str, below: u32) {
        self.note_withdrawn(now, from, task, below);
        let owner = format!("{from}/{task}");
        self.held.remove(&owner);
        let older: Vec<_> = self
            .work_of(&owner)
            .filter(|w| w.award_no < below && w.is_work())
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
        let until = (open.iter())
            .filter_map(|key| self.work.get(key).map(|w| w.result_by_ms))
            .fold(now.saturating_add(mark::CANCELED_MS), Ms::max);
        self.admit_foreign_entry(now, from, task, until, entry)?;
        self.moot(from, task);
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
    pub(super) fn wind_up(&mut self, now: Ms, key: &EngagementKey, why: StopWhy) {
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
    pub(super) fn wound_up(&mut self, now: Ms, key: &EngagementKey) {
        self.abandon_hop(now, key);
        match self.work.get(key).and_then(|work| work.stop) {
            Some(StopWhy::Canceled) => self.canceled(now, key),
            Some(StopWhy::Superseded) => self.give_back(now, key),
            Some(StopWhy::Deadline) => self.fail_work(
                now,
                key,
                "deadline_passed",
                "the deadline passed before the work was done",
            ),
            Some(StopWhy::Owner) | None => {}
        }
    }

    /// The requester has canceled. What is in a checkpoint counts if the cancel came before the deadline, and so does what parts
    /// have cost; a part that is still with somebody else must be settled before that is known.
    fn canceled(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        let counts = now <= work.result_by_ms;
        let paid = counts && work.on_cancel == "units" && work.requester != self.policy.me;
        work.units_done = if counts { work.checkpoint_units } else { 0 };
        let task = work.task.clone();
        self.dirty.work.insert(key.clone());
        if paid && self.part_pends(key) {
            if let Some(work) = self.work.get_mut(key) {
                work.stage = Stage::Closing;
            }
            return self.changed(&task);
        }
        let hops = if paid {
            self.parts_paid(key)
        } else {
            Vec::new()
        };
        self.say_stopped(now, key, hops);
    }

    /// Canceled work whose last part has been settled meanwhile, and of which the requester can now be told what it owes.
    pub(super) fn close_canceled(&mut self, now: Ms) {
        let settled: BTreeSet<_> = (self.dirty.jobs.iter())
            .filter_map(|task| self.jobs.get(task)?.parent.clone())
            .filter(|key| {
                let closing = |w: &Engagement| w.stage == Stage::Closing && !self.holds_work(w);
                self.work.get(key).is_some_and(closing) && !self.part_pends(key)
            })
            .collect();
        for key in settled {
            self.close(now, &key);
        }
    }

    /// The requester of canceled work is told what it owes, as far as that is known.
    pub(super) fn close(&mut self, now: Ms, key: &EngagementKey) {
        let hops = self.parts_paid(key);
        self.say_stopped(now, key, hops);
    }

    fn say_stopped(&mut self, now: Ms, key: &EngagementKey, hops: Vec<Hop>) {
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        let (no, useful_units) = (work.award_no, work.units_done);
        let (requester, task) = (work.requester.clone(), work.task.clone());
        let expires_ms = work.settle_by_ms;
        work.stopped_hops.clone_from(&hops);
        let owed = work.on_cancel == "units" && (useful_units > 0 || !hops.is_empty());
        let act = Act::Stopped {
            award_no: no,
            useful_units,
            hops,
        };
        let entry = self.write_work_entry(now, key, act);
        let news = News::Canceled {
            useful_units,
            entry,
        };
        let update = Update {
            task,
            award_no: no,
            news,
        };
        self.send_peer(&requester, Body::Update(Box::new(update)), expires_ms);
        if !owed {
            self.move_work_money(now, key, Event::Decline, 0);
            self.end_work(now, key, "canceled");
        } else if let Some(work) = self.work.get_mut(key) {
            work.stage = Stage::Finished;
        }
    }

    /// The requester has withdrawn the award, and nobody works on it any more.
    fn give_back(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get(key) else {
            return;
        };
        let (no, requester, task, settle_by) = (
            work.award_no,
            work.requester.clone(),
            work.task.clone(),
            work.settle_by_ms,
        );
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
            binding: Some(self.policy.binding.clone()),
        };
        self.send_peer(&requester, Body::Decline(Box::new(decline)), settle_by);
        self.move_work_money(now, key, Event::Decline, 0);
        self.end_work(now, key, "superseded");
    }
}
