//! Our part while we work: what the worker says, the lease kept alive, the result delivered.

use super::Node;
use super::engagement::{Engagement, Stage, StopWhy};
use super::judging::due_mc;
use super::step::{Addressee, Chance, Change, EngagementKey, LaborNews, Ms, Row};
use crate::wire::entry::Act;
use crate::wire::message::{Body, News, Update, WorkResult};
use crate::wire::proof::Proof;

impl Node {
    pub(super) fn on_labor(
        &mut self,
        now: Ms,
        chance: &mut Chance,
        key: &EngagementKey,
        news: LaborNews,
    ) {
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
                work.stage = Stage::Hibernating;
                let why = work.stop;
                // What a skill said when it delegated counts until it says something else.
                let says_nothing = bytes.is_empty() && !work.calls.is_empty();
                self.dirty.work.insert(key.clone());
                if !says_nothing {
                    work.checkpoint_units = units_done;
                    work.units_done = units_done;
                    self.keep_checkpoint(key, &task, owner, units_done, bytes);
                }
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
            LaborNews::Delegated {
                wish,
                units_done,
                bytes,
                executed,
            } => {
                work.executed = work.executed.saturating_add(u64::from(executed));
                self.on_delegated(now, chance, key, *wish, units_done, bytes);
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

    pub(super) fn keep_checkpoint(
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
        let Some(work) = self.work.get(key) else {
            return;
        };
        let hops = work.hops();
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
            cost_mc: 0,
            hops,
            device: self.policy.device.clone(),
            model: output
                .get("model_hash")
                .and_then(serde_json::Value::as_str)
                .map(str::to_owned),
            profile,
            implementation: self.policy.implementation.clone(),
            started_ms: work.started_ms,
            finished_ms: now.max(work.started_ms),
            sig: String::new(),
        };
        let due = due_mc(work.units, work.unit_price_mc, work.total_mc, &proof);
        let proof = Proof {
            cost_mc: due.unwrap_or(work.total_mc),
            ..proof
        };
        self.hand_over(now, key, proof, output, units);
    }

    /// The result is signed for and goes to the requester.
    fn hand_over(
        &mut self,
        now: Ms,
        key: &EngagementKey,
        proof: Proof,
        output: serde_json::Value,
        units: Vec<u8>,
    ) {
        use base64::Engine;
        let Some(work) = self.work.get(key) else {
            return;
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
            serde_json::json!({"key": key, "cost_mc": proof.cost_mc, "root": proof.root}),
        );
        let result = WorkResult {
            output,
            units: base64::engine::general_purpose::STANDARD.encode(units),
            detached: None,
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
        } else if matches!(stage, Stage::Running | Stage::Queued | Stage::Waiting)
            && now >= keepalive_at
        {
            self.keep_alive(now, key);
        } else if stage == Stage::Closing && now >= work.close_by_ms() {
            self.close(now, key);
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

    pub(super) fn keep_alive(&mut self, now: Ms, key: &EngagementKey) {
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        work.keepalive_at_ms = now.saturating_add(work.lease_ttl_ms / 3);
        let news = News::Working {
            units_done: work.units_done,
            units_total: work.units,
            waiting: (work.stage == Stage::Waiting).then(|| "hop".to_owned()),
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
        self.rewake_work(key);
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
        if self.holds_work(work) {
            return Ms::MAX;
        }
        match work.stage {
            Stage::Running | Stage::Queued | Stage::Waiting => work
                .keepalive_at_ms
                .min(work.result_by_ms.saturating_add(1)),
            Stage::Hibernating => work.result_by_ms.saturating_add(1),
            Stage::Closing => work.close_by_ms(),
            Stage::Finished if self.online && work.evidence.is_none() => {
                work.settle_by_ms.saturating_add(self.policy.skew_ms)
            }
            Stage::Finished => Ms::MAX,
            Stage::Stopping | Stage::Overdue | Stage::Disputed | Stage::Ended => Ms::MAX,
        }
    }

    pub(super) fn end_work(&mut self, now: Ms, key: &EngagementKey, end: &str) {
        self.abandon_hop(now, key);
        let Some(work) = self.work.get_mut(key) else {
            return;
        };
        work.stage = Stage::Ended;
        work.end = Some(end.to_owned());
        work.ended_ms = now;
        let (owner, task, requester) = (work.owner(), work.task.clone(), work.requester.clone());
        let result_by_ms = work.result_by_ms;
        self.dirty.work.insert(key.clone());
        self.inputs.remove(key);
        // What outlives an award (the checkpoint, the heads) is kept for the next award of the same task, until the mark
        // expires. Only silence, which is forgiven, is followed by a next award.
        let settled = end != "superseded" || self.is_local(&requester);
        let last = settled && !self.work_of(&owner).any(Engagement::is_live);
        if settled && !self.is_local(&requester) {
            self.settle_mark(&owner, result_by_ms);
        }
        self.out.changes.push(Change::DropWork {
            owner: if last { owner } else { String::new() },
            key: key.clone(),
        });
        self.changed(&task);
    }
}
