//! What an executor remembers of a foreign task beyond one award: its bid, a cancel that came early, the checkpoint that
//! the next award may go on from, and the heads of the history. The chain of our entries is per task, not per award:
//! without this a second award would begin again at number 1, which is equivocation.

use serde::{Deserialize, Serialize};

use super::Node;
use super::engagement::Engagement;
use super::history::{self, Draft};
use super::job::Heads;
use super::step::{Change, EngagementKey, Ms, Refused, Row};
use crate::wire::entry::{Act, Entry};

/// Most foreign tasks remembered; offers beyond are declined.
pub(super) const MARKS_MAX: usize = 16_384;
/// Most of them for one requester.
pub(super) const MARKS_PER_PEER_MAX: usize = 1_024;

/// What we remember of a foreign task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mark {
    /// `<requester>/<task>`.
    pub owner: String,
    /// The bid we made, to which an award holds us.
    pub bid: Option<Promise>,
    /// The requester has canceled: no award is accepted any more.
    pub canceled: bool,
    /// History.
    pub heads: Heads,
    /// Units in the newest checkpoint that is kept.
    pub checkpoint_units: u32,
    /// When it is forgotten, unless work on the task is still open then.
    pub expires_ms: Ms,
}

/// A bid of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// Price of a unit.
    pub unit_price_mc: u64,
    /// Units of the offer.
    pub units: u32,
}

impl Node {
    /// The mark of a foreign task, made if there is none, kept until `until` at least.
    pub(super) fn mark(&mut self, owner: &str, until: Ms) -> &mut Mark {
        self.dirty.marks.insert(owner.to_owned());
        let mark = self.marks.entry(owner.to_owned()).or_insert_with(|| Mark {
            owner: owner.to_owned(),
            ..Mark::default()
        });
        mark.expires_ms = mark.expires_ms.max(until);
        mark
    }

    pub(super) fn drop_mark(&mut self, owner: &str) {
        self.dirty.marks.remove(owner);
        if self.marks.remove(owner).is_some() {
            self.out.changes.push(Change::DropMark(owner.to_owned()));
        }
    }

    /// Whether another task of this peer can be remembered.
    pub(super) fn room_for_mark(&self, requester: &str, owner: &str) -> bool {
        let prefix = format!("{requester}/");
        let of_peer = || {
            self.marks
                .range(prefix.clone()..)
                .take_while(|(o, _)| o.starts_with(&prefix))
                .count()
        };
        self.marks.contains_key(owner)
            || (self.marks.len() < MARKS_MAX && of_peer() < MARKS_PER_PEER_MAX)
    }

    /// All awards of a foreign task that are in memory.
    pub(super) fn work_of(&self, owner: &str) -> impl Iterator<Item = &Engagement> {
        let prefix = format!("{owner}/");
        let end = prefix.clone();
        self.work
            .range(prefix..)
            .take_while(move |(key, _)| key.starts_with(&end))
            .map(|(_, work)| work)
    }

    /// Forgets tasks whose time has passed and on which nothing is open.
    pub(super) fn forget_marks(&mut self, now: Ms) {
        let stale: Vec<_> = self
            .marks
            .values()
            .filter(|m| m.expires_ms <= now)
            .map(|m| m.owner.clone())
            .collect();
        for owner in stale {
            if self.work_of(&owner).any(Engagement::is_live) {
                let later = now.saturating_add(24 * 3600 * 1000);
                self.mark(&owner, later);
            } else {
                self.drop_mark(&owner);
            }
        }
    }

    /// The history of a task that we work on: the job's own if it is ours, for both parts speak as one author then.
    fn foreign_heads(&mut self, requester: &str, task: &str, until: Ms) -> Option<&mut Heads> {
        if requester == self.policy.me {
            return self.jobs.get_mut(task).map(|job| &mut job.heads);
        }
        Some(&mut self.mark(&format!("{requester}/{task}"), until).heads)
    }

    /// Writes our next entry in the history of `requester`'s task.
    pub(super) fn write_foreign_entry(
        &mut self,
        now: Ms,
        requester: &str,
        task: &str,
        until: Ms,
        what: Act,
    ) -> Entry {
        let (me, mine) = (self.policy.me.clone(), self.policy.key.clone());
        let Some(heads) = self.foreign_heads(requester, task, until) else {
            return Entry::blank();
        };
        let entry = history::write(
            heads,
            now,
            Draft {
                task,
                requester,
                author: &me,
                key: &mine,
                what,
            },
        );
        self.put(Row::Entry(Box::new(entry.clone())));
        if requester == self.policy.me {
            self.dirty.jobs.insert(task.to_owned());
        }
        entry
    }

    /// Takes an entry of the requester into the history of its task.
    pub(super) fn admit_foreign_entry(
        &mut self,
        now: Ms,
        requester: &str,
        task: &str,
        until: Ms,
        entry: &Entry,
    ) -> Result<(), Refused> {
        self.entry_belongs(task, requester, requester, entry)?;
        let local = self.is_local(requester);
        let Some(heads) = self.foreign_heads(requester, task, until) else {
            return Ok(());
        };
        if heads.equivocated.is_some() && !local {
            return Err(Refused::new(
                "task_disputed",
                "the task is frozen: an author contradicted itself",
            ));
        }
        let admitted = history::admit(heads, now, entry);
        let caught = admitted.as_ref().is_err_and(|e| e.code == "equivocation");
        if admitted.is_ok() || caught {
            self.put(Row::Entry(Box::new(entry.clone())));
        }
        if caught {
            self.journal(
                "equivocation",
                Some(task),
                serde_json::json!({"author": requester}),
            );
            self.edit_peer(requester, |peer| peer.disputed = true);
        }
        admitted
    }

    pub(super) fn write_work_entry(&mut self, now: Ms, key: &EngagementKey, what: Act) -> Entry {
        self.dirty.work.insert(key.clone());
        let Some((requester, task, until)) = self.work_place(key) else {
            return Entry::blank();
        };
        self.write_foreign_entry(now, &requester, &task, until, what)
    }

    pub(super) fn admit_work_entry(
        &mut self,
        now: Ms,
        key: &EngagementKey,
        entry: &Entry,
    ) -> Result<(), Refused> {
        let Some((requester, task, until)) = self.work_place(key) else {
            return Ok(());
        };
        self.admit_foreign_entry(now, &requester, &task, until, entry)
    }

    fn work_place(&self, key: &EngagementKey) -> Option<(String, String, Ms)> {
        self.work
            .get(key)
            .map(|w| (w.requester.clone(), w.task.clone(), w.settle_by_ms))
    }
}
