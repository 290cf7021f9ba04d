//! What an executor remembers of a foreign task beyond one award: its bid, a cancel that came early, the checkpoint that
//! the next award may go on from, and the heads of the history. The chain of our entries is per task, not per award:
//! without this a second award would begin again at number 1, which is equivocation.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Node;
use super::engagement::Engagement;
use super::history::{self, Draft};
use super::job::Heads;
use super::peer::Tier;
use super::step::{Change, EngagementKey, Ms, Npub, Refused, Row};
use crate::wire::entry::{Act, Entry};

/// Most foreign tasks remembered; offers and requests beyond are refused. Strangers, who may be one under many names, fill no
/// more than half, so that there is always room for peers that the owner has admitted.
pub(super) const MARKS_MAX: usize = 65_536;
/// Most of them for one peer that the owner has admitted.
pub(super) const MARKS_PER_PEER_MAX: usize = 16_384;
/// Most of them for one stranger.
pub(super) const MARKS_PER_STRANGER_MAX: usize = 1_024;
/// How long a declined award is remembered: it may be repeated, not answered twice.
pub(super) const DECLINED_MS: Ms = 600_000;
/// How long a cancel is remembered at least: the award that it ends may come after it.
pub(super) const CANCELED_MS: Ms = 3_600_000;

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
    /// Skill of the offer: a unit of another may cost much more.
    #[serde(default)]
    pub skill: String,
    /// For what is delegated, at most.
    #[serde(default)]
    pub hops_mc: u64,
}

/// All marks, with what must be known of them at every input: how many each peer has, and which expires first.
#[derive(Debug, Default)]
pub(super) struct Marks {
    by_owner: BTreeMap<String, Mark>,
    by_expiry: BTreeSet<(Ms, String)>,
    of_peer: BTreeMap<Npub, usize>,
}

impl Marks {
    pub(super) fn get(&self, owner: &str) -> Option<&Mark> {
        self.by_owner.get(owner)
    }

    pub(super) fn len(&self) -> usize {
        self.by_owner.len()
    }

    pub(super) fn of_peer(&self, npub: &str) -> usize {
        self.of_peer.get(npub).copied().unwrap_or(0)
    }

    /// Puts a stored mark back, unless a newer one is there.
    pub(super) fn recall(&mut self, mark: Mark) {
        if !self.by_owner.contains_key(&mark.owner) {
            self.count(&mark.owner);
            self.by_expiry.insert((mark.expires_ms, mark.owner.clone()));
            self.by_owner.insert(mark.owner.clone(), mark);
        }
    }

    fn count(&mut self, owner: &str) {
        *self.of_peer.entry(peer_of(owner).to_owned()).or_default() += 1;
    }

    fn keep(&mut self, owner: &str, until: Ms) -> &mut Mark {
        if !self.by_owner.contains_key(owner) {
            self.count(owner);
        }
        let mark = self.by_owner.entry(owner.to_owned()).or_default();
        if mark.owner.is_empty() || mark.expires_ms < until {
            self.by_expiry.remove(&(mark.expires_ms, owner.to_owned()));
            mark.owner = owner.to_owned();
            mark.expires_ms = until.max(mark.expires_ms);
            self.by_expiry.insert((mark.expires_ms, owner.to_owned()));
        }
        mark
    }

    fn shorten(&mut self, owner: &str, until: Ms) {
        if let Some(mark) = self
            .by_owner
            .get_mut(owner)
            .filter(|m| m.expires_ms > until)
        {
            self.by_expiry.remove(&(mark.expires_ms, owner.to_owned()));
            mark.expires_ms = until;
            self.by_expiry.insert((until, owner.to_owned()));
        }
    }

    fn remove(&mut self, owner: &str) -> bool {
        let Some(mark) = self.by_owner.remove(owner) else {
            return false;
        };
        self.by_expiry.remove(&(mark.expires_ms, mark.owner));
        if let Some(count) = self.of_peer.get_mut(peer_of(owner)) {
            *count -= 1;
            if *count == 0 {
                self.of_peer.remove(peer_of(owner));
            }
        }
        true
    }

    fn expired(&self, now: Ms) -> Vec<String> {
        let due = self.by_expiry.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, owner)| owner.clone()).collect()
    }

    pub(super) fn next_expiry_ms(&self) -> Option<Ms> {
        self.by_expiry.first().map(|(at, _)| *at)
    }
}

fn peer_of(owner: &str) -> &str {
    owner.split_once('/').map_or(owner, |(npub, _)| npub)
}

impl Node {
    /// The mark of a foreign task, made if there is none, kept until `until` at least.
    pub(super) fn mark(&mut self, owner: &str, until: Ms) -> &mut Mark {
        self.dirty.marks.insert(owner.to_owned());
        self.marks.keep(owner, until)
    }

    pub(super) fn drop_mark(&mut self, owner: &str) {
        self.dirty.marks.remove(owner);
        if self.marks.remove(owner) {
            self.out.changes.push(Change::DropMark(owner.to_owned()));
        }
    }

    /// Whether another task of this peer can be remembered.
    pub(super) fn room_for_mark(&self, requester: &str, owner: &str) -> bool {
        let admitted = |p: &super::peer::Peer| p.tier != Tier::Stranger;
        let (most, most_in_all) = if self.peers.get(requester).is_some_and(admitted) {
            (MARKS_PER_PEER_MAX, MARKS_MAX)
        } else {
            (MARKS_PER_STRANGER_MAX, MARKS_MAX / 2)
        };
        self.marks.get(owner).is_some()
            || (self.marks.len() < most_in_all && self.marks.of_peer(requester) < most)
    }

    /// What is remembered of a task on which everything is settled serves nobody any more, except a cancel, which an award
    /// may still follow.
    pub(super) fn settle_mark(&mut self, owner: &str, result_by_ms: Ms) {
        if self.work_of(owner).any(Engagement::is_live) {
            return;
        }
        match self.marks.get(owner) {
            Some(mark) if mark.canceled => {
                self.dirty.marks.insert(owner.to_owned());
                self.marks.shorten(owner, result_by_ms);
            }
            _ => self.drop_mark(owner),
        }
    }

    /// All awards of a foreign task, or of a requester, that are in memory.
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
        let stale = self.marks.expired(now);
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
        if heads.equivocators.contains(requester) && !local {
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
