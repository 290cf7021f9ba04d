//! The parts of a transaction that are about surviving, not about meaning: seen ids, journal, checkpoints, payloads,
//! and the index of what is live.
//!
//! Knows how keys are laid out; must not know what a message, a task or a lease is.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::error::StoreError;
use super::rows::{self, Order, Rows, Span, View};
use super::table::{Table, owned_key};
use super::txn::{Txn, be_u64};

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct JournalEntry {
    /// Number of the entry: grows by one from 1, across restarts and pruning.
    #[serde(skip)]
    pub seq: u64,
    /// When, in milliseconds since 1970 (UTC).
    pub at_ms: u64,
    /// What kind of thing happened.
    pub kind: String,
    /// The task it belongs to, if any.
    pub task: Option<String>,
    /// The rest.
    pub body: Value,
}

#[derive(Serialize)]
struct JournalRow<'a> {
    at_ms: u64,
    kind: &'a str,
    task: Option<&'a str>,
    body: &'a Value,
}

/// How many checkpoints of one lease are kept.
const GENERATIONS: usize = 2;

/// In front of a checkpoint's bytes: SHA-256 of generation (u64, big-endian) and bytes.
const CHECKSUM_BYTES: usize = 32;

impl Txn<'_> {
    // ---- live rows

    /// Notes that the row `key` of `table` is not final, so that a start finds it without reading the table.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub fn live_insert(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        self.put_bytes(Table::Live, &live_key(table, key), &[])
    }

    /// Takes the row out of the live ones; says whether it was there.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub fn live_remove(&mut self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        self.delete(Table::Live, &live_key(table, key))
    }

    /// Notes that the task under `key` in [`Table::Tasks`] is final since `finished_at_ms`: it leaves the live ones
    /// and may be pruned from now on. To be called once per task.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub fn task_finished(&mut self, key: &[u8], finished_at_ms: u64) -> Result<(), StoreError> {
        self.live_remove(Table::Tasks, key)?;
        let mut by_time = finished_at_ms.to_be_bytes().to_vec();
        by_time.extend_from_slice(key);
        self.put_bytes(Table::TasksByTime, &by_time, &[])
    }

    // ---- journal

    /// Appends to the journal; returns the entry's number.
    ///
    /// # Errors
    /// `store_unavailable`, `store_invalid`.
    pub fn journal_append(
        &mut self,
        now_ms: u64,
        kind: &str,
        task: Option<&str>,
        body: &Value,
    ) -> Result<u64, StoreError> {
        let seq = match self.journal_next {
            Some(seq) => seq,
            // Pruning keeps the newest entry, so the last key is always the last number given out.
            None => self
                .keys(Table::Journal, Span::all(), 1, Order::Descending)?
                .first()
                .map_or(Ok(1), |key| journal_seq(key).map(|seq| seq + 1))?,
        };
        let row = JournalRow {
            at_ms: now_ms,
            kind,
            task,
            body,
        };
        self.put(Table::Journal, &seq.to_be_bytes(), &row)?;
        self.journal_next = Some(seq + 1);
        Ok(seq)
    }

    // ---- seen ids

    /// Records that the message (author, rumor) has taken effect; false if it had before, then the caller must do
    /// nothing. `wrap` is the id of the envelope it came in, if it came in one: also recorded, also for a duplicate in
    /// a fresh wrap, so that the next copy is dropped before it is decrypted. Kept until `expires_at_s` (seconds since
    /// 1970) and a prune after that.
    ///
    /// # Errors
    /// `store_unavailable`, `store_invalid`.
    pub fn seen_insert(
        &mut self,
        author: &[u8; 32],
        rumor: &[u8; 32],
        wrap: Option<&[u8; 32]>,
        expires_at_s: u64,
    ) -> Result<bool, StoreError> {
        let id = seen_key(author, rumor);
        let new = !self.contains(Table::Seen, &id)?;
        if new {
            self.seen_put(&id, expires_at_s)?;
        }
        if let Some(wrap) = wrap
            && !self.contains(Table::Seen, wrap)?
        {
            self.seen_put(wrap, expires_at_s)?;
        }
        Ok(new)
    }

    fn seen_put(&mut self, key: &[u8], expires_at_s: u64) -> Result<(), StoreError> {
        self.put_bytes(Table::Seen, key, &[])?;
        let mut by_time = expires_at_s.to_be_bytes().to_vec();
        by_time.extend_from_slice(key);
        self.put_bytes(Table::SeenByTime, &by_time, &[])
    }

    // ---- checkpoints

    /// Keeps `bytes` as checkpoint number `generation` of a lease, and of the older ones only the newest. A lease key
    /// made by [`owned_key`]`(task, ..)` is pruned with its task.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub fn checkpoint_put(
        &mut self,
        lease: &[u8],
        generation: u64,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let checksum = checkpoint_checksum(generation, bytes);
        let key = checkpoint_key(lease, generation);
        self.put_parts(Table::Checkpoints, &key, &[&checksum, bytes])?;
        let generations = checkpoint_keys(self, lease)?;
        for old in generations.iter().skip(GENERATIONS) {
            self.delete(Table::Checkpoints, old)?;
        }
        Ok(())
    }

    /// Removes all checkpoints of a lease.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub fn checkpoint_drop(&mut self, lease: &[u8]) -> Result<(), StoreError> {
        for key in checkpoint_keys(self, lease)? {
            self.delete(Table::Checkpoints, &key)?;
        }
        Ok(())
    }

    // ---- payloads

    /// Keeps `bytes` as payload `name` of a task, until the task is pruned.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub fn payload_put(&mut self, task: &[u8], name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.put_bytes(Table::Payloads, &owned_key(task, name.as_bytes()), bytes)
    }
}

/// What both a transaction and a view can read of the above.
pub(crate) mod read {
    use super::*;

    pub(crate) fn live_keys(rows: &impl Rows, table: Table) -> Result<Vec<Vec<u8>>, StoreError> {
        let span = Span::prefix(&[table.number()]);
        let mut keys = rows.keys(Table::Live, span, usize::MAX, Order::Ascending)?;
        for key in &mut keys {
            key.remove(0);
        }
        Ok(keys)
    }

    pub(crate) fn journal(
        rows: &impl Rows,
        from_seq: u64,
        limit: usize,
        order: Order,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        let mut entries = Vec::new();
        let span = Span::starting_at(&from_seq.to_be_bytes());
        rows.collect(Table::Journal, &span, limit, order, &mut |key, body| {
            let mut entry: JournalEntry = rows::decode(Table::Journal, body)?;
            entry.seq = journal_seq(key)?;
            entries.push(entry);
            Ok(())
        })?;
        Ok(entries)
    }

    pub(crate) fn checkpoint_newest(
        rows: &impl Rows,
        lease: &[u8],
    ) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        for key in checkpoint_keys(rows, lease)? {
            let generation = key.get(lease.len()..).and_then(be_u64);
            let stored = rows.get_bytes(Table::Checkpoints, &key)?;
            let (Some(generation), Some(mut stored)) = (generation, stored) else {
                continue;
            };
            if stored.len() < CHECKSUM_BYTES {
                continue;
            }
            let bytes = stored.split_off(CHECKSUM_BYTES);
            if checkpoint_checksum(generation, &bytes).as_slice() == stored.as_slice() {
                return Ok(Some((generation, bytes)));
            }
        }
        Ok(None)
    }
}

macro_rules! read_api {
    ($($on:ty),*) => {$(
        impl $on {
            /// Whether the message (author, rumor) has taken effect: the authoritative check.
            ///
            /// # Errors
            /// `store_unavailable`, `store_invalid`.
            pub fn seen_contains(&self, author: &[u8; 32], rumor: &[u8; 32]) -> Result<bool, StoreError> {
                self.contains(Table::Seen, &seen_key(author, rumor))
            }

            /// Whether a wrap of this id was opened: the cheap check before decryption.
            ///
            /// # Errors
            /// `store_unavailable`, `store_invalid`.
            pub fn wrap_seen(&self, wrap: &[u8; 32]) -> Result<bool, StoreError> {
                self.contains(Table::Seen, wrap)
            }

            /// Keys of the rows of `table` that are not final.
            ///
            /// # Errors
            /// `store_unavailable`, `store_invalid`.
            pub fn live_keys(&self, table: Table) -> Result<Vec<Vec<u8>>, StoreError> {
                read::live_keys(self, table)
            }

            /// At most `limit` journal entries numbered `from_seq` or higher, from either end.
            ///
            /// # Errors
            /// `store_unavailable`, `store_invalid`, `store_newer`.
            pub fn journal_range(
                &self,
                from_seq: u64,
                limit: usize,
                order: Order,
            ) -> Result<Vec<JournalEntry>, StoreError> {
                read::journal(self, from_seq, limit, order)
            }

            /// Generation and bytes of the newest checkpoint of a lease whose checksum holds.
            ///
            /// # Errors
            /// `store_unavailable`, `store_newer`.
            pub fn checkpoint_newest(&self, lease: &[u8]) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
                read::checkpoint_newest(self, lease)
            }

            /// Payload `name` of a task.
            ///
            /// # Errors
            /// `store_unavailable`, `store_newer`.
            pub fn payload_get(&self, task: &[u8], name: &str) -> Result<Option<Vec<u8>>, StoreError> {
                self.get_bytes(Table::Payloads, &owned_key(task, name.as_bytes()))
            }
        }
    )*};
}

read_api!(Txn<'_>, View);

fn live_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut live = vec![table.number()];
    live.extend_from_slice(key);
    live
}

/// 64 bytes; a wrap's id is 32, so the two never meet in one table.
fn seen_key(author: &[u8; 32], rumor: &[u8; 32]) -> [u8; 64] {
    let mut key = [0; 64];
    let (left, right) = key.split_at_mut(32);
    left.copy_from_slice(author);
    right.copy_from_slice(rumor);
    key
}

fn journal_seq(key: &[u8]) -> Result<u64, StoreError> {
    be_u64(key).ok_or_else(|| StoreError::invalid("a journal key is not 8 bytes"))
}

fn checkpoint_key(lease: &[u8], generation: u64) -> Vec<u8> {
    let mut key = lease.to_vec();
    key.extend_from_slice(&generation.to_be_bytes());
    key
}

/// Keys of a lease's checkpoints, newest first.
fn checkpoint_keys(rows: &impl Rows, lease: &[u8]) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut keys = rows.keys(
        Table::Checkpoints,
        Span::prefix(lease),
        usize::MAX,
        Order::Descending,
    )?;
    // A longer lease key that starts with this one is another lease.
    keys.retain(|key| key.len() == lease.len() + 8);
    Ok(keys)
}

fn checkpoint_checksum(generation: u64, bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hash = Sha256::new();
    hash.update(generation.to_be_bytes());
    hash.update(bytes);
    hash.finalize().into()
}
