//! Writing: the one transaction type.
//!
//! Opens each redb table at most once per transaction, and encodes every row into one reused buffer.

use std::cell::OnceCell;
use std::fmt;

use redb::ReadableTableMetadata as _;
use serde::Serialize;

use super::error::{self, StoreError};
use super::rows::{self, Order, Rows, Span, Visit};
use super::table::{self, TABLES, Table};

type WriteTable<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;

/// Key in [`Table::Meta`] of the last outbox number given out.
const OUTBOX_SEQ: &[u8] = b"outbox_seq";

/// One durable transaction, given to the closure of [`Store::write`](super::Store::write).
pub struct Txn<'t> {
    txn: &'t redb::WriteTransaction,
    tables: [OnceCell<WriteTable<'t>>; TABLES],
    buffer: Vec<u8>,
    /// Next number of the journal, once known.
    pub(crate) journal_next: Option<u64>,
    /// Last number of the outbox, once changed; written when the transaction ends.
    outbox_last: Option<u64>,
}

impl<'t> Txn<'t> {
    pub(crate) fn new(txn: &'t redb::WriteTransaction, buffer: Vec<u8>) -> Self {
        Self {
            txn,
            tables: [const { OnceCell::new() }; TABLES],
            buffer,
            journal_next: None,
            outbox_last: None,
        }
    }

    /// Writes what was kept back, closes the tables, returns the buffer for the next transaction.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>, StoreError> {
        if let Some(last) = self.outbox_last {
            self.put_bytes(Table::Meta, OUTBOX_SEQ, &last.to_be_bytes())?;
        }
        Ok(std::mem::take(&mut self.buffer))
    }

    fn opened(&self, table: Table) -> Result<&OnceCell<WriteTable<'t>>, StoreError> {
        let cell = self
            .tables
            .get(table.index())
            .ok_or_else(|| StoreError::invalid("a table has no place"))?;
        if cell.get().is_none() {
            let opened = self
                .txn
                .open_table(table.definition())
                .map_err(error::redb("open a table"))?;
            let _ = cell.set(opened);
        }
        Ok(cell)
    }

    fn table(&self, table: Table) -> Result<&WriteTable<'t>, StoreError> {
        self.opened(table)?
            .get()
            .ok_or_else(|| StoreError::invalid("a table did not open"))
    }

    fn table_mut(&mut self, table: Table) -> Result<&mut WriteTable<'t>, StoreError> {
        self.opened(table)?;
        self.tables
            .get_mut(table.index())
            .and_then(OnceCell::get_mut)
            .ok_or_else(|| StoreError::invalid("a table did not open"))
    }

    /// Creates the table if it is not there yet.
    pub(crate) fn create(&self, table: Table) -> Result<(), StoreError> {
        self.opened(table).map(|_| ())
    }

    /// Writes `row` under `key`, replacing what was there.
    ///
    /// # Errors
    /// `store_unwritable` if `row` is not JSON, `store_unavailable` if the disk refuses. After any error the
    /// transaction must be dropped, by returning the error.
    pub fn put(
        &mut self,
        table: Table,
        key: &[u8],
        row: &(impl Serialize + ?Sized),
    ) -> Result<(), StoreError> {
        let mut value = std::mem::take(&mut self.buffer);
        table::start_value(table, &mut value);
        let encoded =
            serde_json::to_writer(&mut value, row).map_err(|error| StoreError::Unwritable {
                table: table.name(),
                reason: error.to_string(),
            });
        let written = encoded.and_then(|()| self.insert(table, key, &value));
        self.buffer = value;
        written
    }

    /// Writes raw bytes under `key`, replacing what was there.
    ///
    /// # Errors
    /// `store_unavailable` if the disk refuses.
    pub fn put_bytes(&mut self, table: Table, key: &[u8], bytes: &[u8]) -> Result<(), StoreError> {
        self.put_parts(table, key, &[bytes])
    }

    /// As [`Txn::put_bytes`], from several parts.
    pub(crate) fn put_parts(
        &mut self,
        table: Table,
        key: &[u8],
        parts: &[&[u8]],
    ) -> Result<(), StoreError> {
        let mut value = std::mem::take(&mut self.buffer);
        table::start_value(table, &mut value);
        for part in parts {
            value.extend_from_slice(part);
        }
        let written = self.insert(table, key, &value);
        self.buffer = value;
        written
    }

    fn insert(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.table_mut(table)?
            .insert(key, value)
            .map(|_| ())
            .map_err(error::redb("write a row"))
    }

    /// Removes the row under `key`; says whether there was one.
    ///
    /// # Errors
    /// `store_unavailable` if the disk refuses.
    pub fn delete(&mut self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        self.table_mut(table)?
            .remove(key)
            .map(|old| old.is_some())
            .map_err(error::redb("delete a row"))
    }

    /// The next number of the outbox: grows for ever, also when rows were deleted. Starts at 1.
    ///
    /// # Errors
    /// `store_invalid`, `store_unavailable`.
    pub fn outbox_next_seq(&mut self) -> Result<u64, StoreError> {
        let last = match self.outbox_last {
            Some(last) => last,
            None => match self.get_bytes(Table::Meta, OUTBOX_SEQ)? {
                Some(bytes) => be_u64(&bytes)
                    .ok_or_else(|| StoreError::invalid("the outbox counter is not 8 bytes"))?,
                None => 0,
            },
        };
        let next = last + 1;
        self.outbox_last = Some(next);
        Ok(next)
    }
}

/// The big-endian number that `bytes` is, if it is 8 bytes long.
pub(crate) fn be_u64(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

impl fmt::Debug for Txn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Txn").finish_non_exhaustive()
    }
}

impl Rows for Txn<'_> {
    fn visit_one(
        &self,
        table: Table,
        key: &[u8],
        visit: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        rows::one(table, self.table(table)?, key, visit)
    }

    fn visit(
        &self,
        table: Table,
        span: &Span,
        order: Order,
        visit: Visit<'_>,
    ) -> Result<(), StoreError> {
        rows::walk(table, self.table(table)?, span, order, visit)
    }

    fn count(&self, table: Table) -> Result<u64, StoreError> {
        self.table(table)?.len().map_err(error::redb("count rows"))
    }
}
