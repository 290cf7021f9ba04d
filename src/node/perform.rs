//! Effects become orders: what a step wants done is looked up in state and store and handed to the room's other tasks.

use std::collections::BTreeMap;

use serde_json::Value;

use super::batch::Batch;
use super::core::Core;
use super::order::{CheckOrder, Order};
use super::rows;
use crate::domain::Node;
use crate::domain::engagement::{CallEnd, Engagement, answer_name};
use crate::domain::step::Effect;
use crate::labor::frames::{Answer, AnswerError};
use crate::wire::proof::Evidence;

impl Core {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Start(key) => self.start(&key),
            Effect::SoftStop {
                key,
                after_checkpoint,
            } => {
                let _ = self.outlets.labor.send(Order::SoftStop {
                    key,
                    after_checkpoint,
                });
            }
            Effect::Check {
                task,
                award_no,
                sample,
            } => self.check(&task, award_no, sample),
            Effect::CheckEvidence { key, evidence } => self.evidence(key, evidence),
            Effect::Changed(task) => {
                let _ = self.outlets.changed.send(task);
            }
            Effect::Dropped { code, from } => {
                tracing::debug!(code, from, "message refused");
                self.count(&code);
            }
            Effect::Readvertise => {
                let _ = self.outlets.presence.send(Order::Readvertise);
            }
            Effect::Drain => {
                let _ = self.outlets.presence.send(Order::Drain);
            }
            Effect::Inboxes => self.inboxes(),
            Effect::LogPage { to, since } => self.log_page(to, *since),
            Effect::ResultAgain(key) => self.result_again(key),
            Effect::Released => self.let_go(),
            Effect::Send(_) | Effect::Moot { .. } | Effect::Asked(_) | Effect::Done(_) => {}
        }
    }

    fn inboxes(&mut self) {
        use crate::domain::job::{Phase, Route};
        let wanted: BTreeMap<String, u64> = self
            .node
            .jobs()
            .values()
            .filter(|j| j.phase != Phase::Ended && matches!(j.route, Route::Pool(_)))
            .map(|j| (j.task.clone(), j.marks.asked_ms / 1000))
            .collect();
        if wanted != self.reply_keys {
            self.reply_keys.clone_from(&wanted);
            self.announced
                .retain(|(task, _), _| wanted.contains_key(task));
            let _ = self.outlets.presence.send(Order::Inboxes(wanted));
        }
    }

    fn stored(&self, owner: &str, name: &str) -> Option<Vec<u8>> {
        self.store
            .view()
            .and_then(|view| rows::payload(&view, owner, name))
            .unwrap_or_default()
    }

    fn input(&self, owner: &str) -> Option<Value> {
        self.node
            .input(owner)
            .cloned()
            .or_else(|| serde_json::from_slice(&self.stored(owner, "input")?).ok())
    }

    /// Work that needs nothing from the store begins while the disk writes that it was accepted. Nothing of it is looked at before
    /// that is durable, and a commit that fails ends every worker.
    pub(super) fn start_early(&mut self, batch: &mut Batch) {
        let early = |node: &Node, key: &String| {
            let fresh = |w: &Engagement| w.checkpoint_units == 0 && w.calls.is_empty();
            node.work().get(key).is_some_and(fresh) && node.input(key).is_some()
        };
        for effect in std::mem::take(&mut batch.effects) {
            match effect {
                Effect::Start(key) if early(&self.node, &key) => self.start(&key),
                other => batch.effects.push(other),
            }
        }
    }

    fn start(&mut self, key: &str) {
        let Some(work) = self.node.work().get(key) else {
            return;
        };
        let Some(input) = self.input(key) else { return };
        // State from which a part was delegated may hold no whole unit.
        let resume = (work.checkpoint_units > 0 || !work.calls.is_empty()).then(|| {
            self.store
                .view()
                .and_then(|v| v.checkpoint_newest(work.owner().as_bytes()))
                .ok()
                .flatten()
        });
        let order = Order::Start {
            key: key.to_owned(),
            skill: work.skill.clone(),
            input,
            commitment: work.commitment.clone(),
            checkpoint: resume.flatten().map(|(_, bytes)| bytes),
            answers: self.answers(work),
            foreign: work.requester != self.policy.me,
        };
        let _ = self.outlets.labor.send(order);
    }

    /// What came back for the parts that the work has delegated.
    fn answers(&self, work: &Engagement) -> Vec<Answer> {
        let told = work.calls.iter().map(|call| {
            let error = |code: &str, message: &str| {
                Some(AnswerError {
                    code: code.to_owned(),
                    message: message.to_owned(),
                })
            };
            let result = || {
                let bytes = self.stored(&work.key, &answer_name(call.call))?;
                serde_json::from_slice(&bytes).ok()
            };
            let (result, error) = match &call.end {
                Some(CallEnd::Answered { .. }) => match result() {
                    Some(result) => (Some(result), None),
                    None => (
                        None,
                        error("delegation_lost", "the result is not in the store"),
                    ),
                },
                Some(CallEnd::Failed { code, message }) => (None, error(code, message)),
                None => (None, error("delegation_lost", "nothing came back")),
            };
            Answer {
                call: call.call,
                result,
                error,
            }
        });
        told.collect()
    }

    fn check(&mut self, task: &str, award_no: u32, sample: Vec<u32>) {
        let Some(job) = self.node.jobs().get(task) else {
            return;
        };
        let Some(outcome) = &job.outcome else { return };
        let output = self
            .stored(task, "result")
            .and_then(|b| serde_json::from_slice(&b).ok())
            .unwrap_or(Value::Null);
        let order = CheckOrder {
            task: task.to_owned(),
            award_no,
            skill: job.skill.clone(),
            input: self.input(task).unwrap_or(Value::Null),
            commitment: job.commitment.clone(),
            output,
            units: self
                .stored(task, "units")
                .and_then(|b| String::from_utf8(b).ok())
                .unwrap_or_default(),
            proof: outcome.proof.clone(),
            sample,
        };
        let _ = self.outlets.labor.send(Order::Check(Box::new(order)));
    }

    fn evidence(&mut self, key: String, evidence: Evidence) {
        let Some(work) = self.node.work().get(&key) else {
            return;
        };
        let order = Order::Evidence {
            skill: work.skill.clone(),
            input: self.input(&key).unwrap_or(Value::Null),
            units: self.stored(&key, "units").unwrap_or_default(),
            unit_count: work.units,
            evidence,
            profile: work
                .proof
                .as_ref()
                .map(|p| p.profile.clone())
                .unwrap_or_default(),
            key,
        };
        let _ = self.outlets.labor.send(order);
    }
}
