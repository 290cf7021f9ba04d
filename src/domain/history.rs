//! A task's history: a set of signed entries that merges without a master.
//!
//! Sets merge by union and fold in a fixed order, so two nodes with the same entries have the same task, whatever order,
//! duplication or delay they arrived with. Order between authors decides display only; the terminal state follows
//! precedence: requester's paid or refused > executor's completed or failed > requester's canceled > the rest. Two
//! different entries of one author with one number are both kept, as proof of equivocation: nothing more of that author is taken
//! into the task, so that its requester's freezes it whole, and an executor's ends that executor's part in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::job::Heads;
use super::step::{Ms, Npub, Refused};
use crate::wire::entry::{Act, Entry};

/// Entries this far ahead of our clock are refused and never move it, milliseconds.
pub const FUTURE_MAX_MS: Ms = 15 * 60 * 1000;

/// Counter values per millisecond of the hybrid logical clock.
const HLC_PER_MS: u64 = 1024;

/// Numbers that an executor may use up for one award.
const NUMBERS_PER_AWARD: u32 = 256;

/// Highest award number: its entries' numbers still fit.
pub const AWARD_NO_MAX: u32 = 65_536;

/// Hashes of an author's earlier entries that are kept against a second story.
const PAST_MAX: usize = 64;

/// What a history says of its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// Nothing yet.
    Nothing,
    /// Awarded, not accepted.
    Awarded,
    /// Accepted.
    Working,
    /// Canceled by the requester.
    Canceled,
    /// The executor failed or declined.
    Failed,
    /// The executor has completed.
    Completed,
    /// The requester refused the result.
    Refused,
    /// The requester pays.
    Paid,
    /// An author contradicted itself.
    Disputed,
}

/// A set of entries of one task, keyed by (author, sequence, hash).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    entries: BTreeMap<(Npub, u32, String), Entry>,
}

impl History {
    /// Adds an entry; adding it again changes nothing. Entries that cannot be hashed are ignored.
    pub fn add(&mut self, entry: Entry) {
        if let Ok(hash) = entry.hash() {
            self.entries
                .insert((entry.author.clone(), entry.seq, hash), entry);
        }
    }

    /// Union with another set.
    pub fn merge(&mut self, other: &Self) {
        for (key, entry) in &other.entries {
            self.entries
                .entry(key.clone())
                .or_insert_with(|| entry.clone());
        }
    }

    /// All entries in display order: clock, author, sequence, hash.
    pub fn ordered(&self) -> Vec<&Entry> {
        let mut all: Vec<_> = self.entries.iter().collect();
        all.sort_by(|(ka, a), (kb, b)| (a.hlc, ka).cmp(&(b.hlc, kb)));
        all.into_iter().map(|(_, entry)| entry).collect()
    }

    /// The author of two different entries with one number, if there is one.
    pub fn equivocator(&self) -> Option<&Npub> {
        let mut keys = self.entries.keys().peekable();
        while let Some(key) = keys.next() {
            if keys
                .peek()
                .is_some_and(|next| next.0 == key.0 && next.1 == key.1)
            {
                return Some(&key.0);
            }
        }
        None
    }

    /// What the set says of the task: a function of the set alone.
    pub fn fold(&self) -> Told {
        if self.equivocator().is_some() {
            return Told::Disputed;
        }
        self.entries
            .values()
            .map(|entry| match &entry.what {
                Act::Awarded { .. } => Told::Awarded,
                Act::Accepted { .. } => Told::Working,
                Act::Canceled | Act::Stopped { .. } => Told::Canceled,
                Act::Failed { .. } | Act::Declined { .. } => Told::Failed,
                Act::Completed { .. } => Told::Completed,
                Act::Refused { .. } => Told::Refused,
                Act::Paid { .. } => Told::Paid,
            })
            .max_by_key(|told| precedence(*told))
            .unwrap_or(Told::Nothing)
    }
}

fn precedence(told: Told) -> u8 {
    match told {
        Told::Nothing => 0,
        Told::Awarded => 1,
        Told::Working => 2,
        // A failed or declined award may be followed by another, so it stands below a cancel here.
        Told::Failed => 3,
        Told::Canceled => 4,
        Told::Completed => 5,
        Told::Refused => 6,
        Told::Paid => 7,
        Told::Disputed => 8,
    }
}

/// Writes our next entry: number, clock, previous hash and heads from `heads`, which it advances.
pub fn write(heads: &mut Heads, now: Ms, draft: Draft<'_>) -> Entry {
    let mine = heads.by_author.get(draft.author);
    let last = mine.map_or(0, |h| h.seq);
    let mut entry = Entry {
        task: draft.task.to_owned(),
        requester: draft.requester.to_owned(),
        author: draft.author.to_owned(),
        key: draft.key.to_owned(),
        seq: last.max(floor(&draft)).saturating_add(1),
        hlc: tick(heads.hlc, now),
        prev: mine.map(|h| h.hash.clone()).unwrap_or_default(),
        heads: heads
            .by_author
            .iter()
            .filter(|(a, _)| *a != draft.author)
            .map(|(_, h)| h.hash.clone())
            .collect(),
        what: draft.what,
        sig: String::new(),
    };
    entry.sig.clear();
    heads.hlc = entry.hlc;
    let hash = entry.hash().unwrap_or_default();
    advance(heads, &entry, hash);
    entry
}

/// Below which number an executor's entries about an award never lie. What an executor remembers of a settled task is
/// dropped; should the requester award it once more, the new numbers cannot meet the old ones and look like two stories.
fn floor(draft: &Draft<'_>) -> u32 {
    let award_no = match &draft.what {
        _ if draft.author == draft.requester => 1,
        Act::Canceled | Act::Awarded { .. } | Act::Paid { .. } | Act::Refused { .. } => 1,
        Act::Accepted { award_no, .. }
        | Act::Declined { award_no, .. }
        | Act::Completed { award_no, .. }
        | Act::Failed { award_no, .. }
        | Act::Stopped { award_no, .. } => *award_no,
    };
    (draft.above).saturating_add(award_no.saturating_sub(1).saturating_mul(NUMBERS_PER_AWARD))
}

/// The entry of a decline by an executor that does not remember the task: the same whenever it answers this award, and under
/// the last of the award's numbers, so that it meets none that is written with a memory.
pub(super) fn decline_unremembered(
    awarded: &Entry,
    (me, key, above): (&str, &str, u32),
    award_no: u32,
    code: &str,
) -> Entry {
    Entry {
        task: awarded.task.clone(),
        requester: awarded.requester.clone(),
        author: me.to_owned(),
        key: key.to_owned(),
        seq: above.saturating_add(award_no.saturating_mul(NUMBERS_PER_AWARD)),
        hlc: awarded.hlc,
        prev: String::new(),
        heads: awarded.hash().into_iter().collect(),
        what: Act::Declined {
            award_no,
            code: code.to_owned(),
        },
        sig: String::new(),
    }
}

/// Takes an entry into its author's numbers.
fn advance(heads: &mut Heads, entry: &Entry, hash: String) {
    let head = heads.by_author.entry(entry.author.clone()).or_default();
    if entry.seq > head.seq {
        let before = std::mem::replace(&mut head.hash, hash);
        if head.seq > 0 {
            head.past.insert(head.seq, before);
        }
        head.seq = entry.seq;
    } else {
        head.past.insert(entry.seq, hash);
    }
    while head.past.len() > PAST_MAX {
        head.past.pop_first();
    }
}

/// The next reading of the clock. A clock that ran ahead by more than others accept (it was set back since) starts anew from
/// `now`: entries of one author are ordered by their number, and a refused entry would be worse than a display out of order.
fn tick(hlc: u64, now: Ms) -> u64 {
    let next = hlc.saturating_add(1);
    let base = now.saturating_mul(HLC_PER_MS);
    if next
        > now
            .saturating_add(FUTURE_MAX_MS / 2)
            .saturating_mul(HLC_PER_MS)
    {
        base
    } else {
        next.max(base)
    }
}

/// What [`write()`] needs beside the heads.
pub struct Draft<'a> {
    /// Task id.
    pub task: &'a str,
    /// Requester.
    pub requester: &'a str,
    /// Author: us.
    pub author: &'a str,
    /// Our proof key, hex.
    pub key: &'a str,
    /// The statement.
    pub what: Act,
    /// Numbers begin above this: 0, or a node's own after it was restored ([`super::Lineage`]).
    pub above: u32,
}

/// Takes a foreign entry into the heads. One from a clock that ran ahead moves ours by 15 minutes at most: the message around
/// it was dated well, and refusing what a wrong clock once signed would lose finished work.
///
/// # Errors
/// `equivocation` (the heads remember the author).
pub fn admit(heads: &mut Heads, now: Ms, entry: &Entry) -> Result<(), Refused> {
    let hash = entry
        .hash()
        .map_err(|e| Refused::new("entry_invalid", e.to_string()))?;
    if let Some(head) = heads.by_author.get(&entry.author) {
        let known = if head.seq == entry.seq {
            Some(&head.hash)
        } else {
            head.past.get(&entry.seq)
        };
        if known.is_some_and(|known| *known != hash) {
            heads.equivocators.insert(entry.author.clone());
            return Err(Refused::new(
                "equivocation",
                "the author has signed two different entries with one number",
            ));
        }
        if known.is_some() {
            return Ok(());
        }
    }
    let most = now.saturating_add(FUTURE_MAX_MS).saturating_mul(HLC_PER_MS);
    heads.hlc = heads.hlc.max(entry.hlc.min(most));
    advance(heads, entry, hash);
    Ok(())
}
