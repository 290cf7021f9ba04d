//! Quotas: what is forgotten, in which order, and never too much at once.
//!
//! Knows times, counts and owners of keys; must not know why a task ended. Credit (transfers, accounts) is never pruned.

use std::ops::ControlFlow;

use super::error::StoreError;
use super::rows::{Order, Rows as _, Span};
use super::table::{Table, owned_key};
use super::txn::{Txn, be_u64};

/// What the store may keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Finished tasks kept. Default 1,000,000.
    pub finished_tasks_max: u64,
    /// How long a finished task is kept, milliseconds. Default 365 days.
    pub finished_age_max_ms: u64,
    /// Journal entries kept; at least one always is, since it carries the numbering on. Default 1,000,000.
    pub journal_entries_max: u64,
    /// Seen ids kept, two for a message; of more, those that expire first are forgotten early. Whoever is a stranger can have ids
    /// remembered for a month. Default 2,000,000.
    pub seen_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            finished_tasks_max: 1_000_000,
            finished_age_max_ms: 365 * 24 * 60 * 60 * 1000,
            journal_entries_max: 1_000_000,
            seen_max: 2_000_000,
        }
    }
}

/// What one call of [`Txn::prune`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Seen ids past their expiry, or beyond their number.
    pub seen: u64,
    /// Finished tasks.
    pub tasks: u64,
    /// Payloads, history entries and checkpoints of those tasks.
    pub belongings: u64,
    /// Journal entries.
    pub journal: u64,
    /// Whether the row limit ended the call: call again soon.
    pub more: bool,
}

/// Tables whose keys start with `owned_key(task, ..)`.
const OWNED: [Table; 3] = [Table::Payloads, Table::History, Table::Checkpoints];

impl Txn<'_> {
    /// Forgets what [`Limits`] does not cover: seen ids that expired or are too many, finished tasks that are too many or too old with
    /// all they own, journal entries that are too many. Oldest first, at most `max_rows` rows in this call (a
    /// row and its index entry count as one), so that a batch of the node's loop stays short: 1,000 take about 10 ms.
    /// Live tasks are never touched.
    ///
    /// # Errors
    /// `store_unavailable`, `store_invalid`.
    pub fn prune(
        &mut self,
        now_ms: u64,
        limits: &Limits,
        max_rows: usize,
    ) -> Result<Pruned, StoreError> {
        let mut left = max_rows;
        let mut pruned = Pruned {
            seen: self.prune_seen(now_ms / 1000, limits, &mut left)?,
            ..Pruned::default()
        };
        self.prune_tasks(now_ms, limits, &mut left, &mut pruned)?;
        pruned.journal = self.prune_journal(limits, &mut left)?;
        pruned.more = left == 0;
        Ok(pruned)
    }

    fn prune_seen(
        &mut self,
        now_s: u64,
        limits: &Limits,
        left: &mut usize,
    ) -> Result<u64, StoreError> {
        let end = now_s.to_be_bytes();
        let excess = (self.count(Table::SeenByTime)?).saturating_sub(limits.seen_max);
        let most = usize::try_from(excess).unwrap_or(usize::MAX).min(*left);
        let span = Span::before(&end);
        let mut expired = self.keys(Table::SeenByTime, span, *left, Order::Ascending)?;
        if expired.len() < most {
            expired = self.keys(Table::SeenByTime, Span::all(), most, Order::Ascending)?;
        }
        for by_time in &expired {
            if let Some((_, key)) = by_time.split_first_chunk::<8>() {
                self.delete(Table::Seen, key)?;
            }
            self.delete(Table::SeenByTime, by_time)?;
        }
        *left -= expired.len();
        Ok(expired.len() as u64)
    }

    fn prune_tasks(
        &mut self,
        now_ms: u64,
        limits: &Limits,
        left: &mut usize,
        pruned: &mut Pruned,
    ) -> Result<(), StoreError> {
        let excess = self
            .count(Table::TasksByTime)?
            .saturating_sub(limits.finished_tasks_max);
        let oldest_kept_ms = now_ms.saturating_sub(limits.finished_age_max_ms);
        for by_time in self.doomed_tasks(excess, oldest_kept_ms, *left)? {
            let Some((_, task)) = by_time.split_first_chunk::<8>() else {
                continue;
            };
            // The task goes first, so that nobody meets one whose payloads are gone; its index entry goes last, so
            // that a call which ran out of rows is continued by the next.
            self.delete(Table::Tasks, task)?;
            pruned.belongings += self.prune_owned(task, left)?;
            if *left == 0 {
                break;
            }
            self.delete(Table::TasksByTime, &by_time)?;
            *left -= 1;
            pruned.tasks += 1;
        }
        Ok(())
    }

    /// Keys in [`Table::TasksByTime`] of the first `excess` tasks and of those finished before `oldest_kept_ms`.
    fn doomed_tasks(
        &self,
        excess: u64,
        oldest_kept_ms: u64,
        limit: usize,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut doomed = Vec::new();
        self.visit(
            Table::TasksByTime,
            &Span::all(),
            Order::Ascending,
            &mut |by_time, _| {
                let Some(finished_at_ms) = by_time.first_chunk::<8>() else {
                    return Err(StoreError::invalid("a key of tasks_by_time is too short"));
                };
                let old = u64::from_be_bytes(*finished_at_ms) < oldest_kept_ms;
                if doomed.len() >= limit || (doomed.len() as u64 >= excess && !old) {
                    return Ok(ControlFlow::Break(()));
                }
                doomed.push(by_time.to_vec());
                Ok(ControlFlow::Continue(()))
            },
        )?;
        Ok(doomed)
    }

    fn prune_owned(&mut self, task: &[u8], left: &mut usize) -> Result<u64, StoreError> {
        let span = Span::prefix(&owned_key(task, &[]));
        let mut removed = 0;
        for table in OWNED {
            let keys = self.keys(table, span.clone(), *left, Order::Ascending)?;
            for key in &keys {
                self.delete(table, key)?;
            }
            *left -= keys.len();
            removed += keys.len() as u64;
        }
        Ok(removed)
    }

    fn prune_journal(&mut self, limits: &Limits, left: &mut usize) -> Result<u64, StoreError> {
        let newest = self.keys(Table::Journal, Span::all(), 1, Order::Descending)?;
        let Some(newest) = newest.first().and_then(|key| be_u64(key)) else {
            return Ok(0);
        };
        // Numbers have no gaps, so the first to keep is known without counting.
        let first_kept = newest.saturating_sub(limits.journal_entries_max.max(1) - 1);
        let end = first_kept.to_be_bytes();
        let span = Span::before(&end);
        let old = self.keys(Table::Journal, span, *left, Order::Ascending)?;
        for key in &old {
            self.delete(Table::Journal, key)?;
        }
        *left -= old.len();
        Ok(old.len() as u64)
    }
}
