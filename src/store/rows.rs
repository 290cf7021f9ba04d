//! Reading: what a transaction and a snapshot view have in common.
//!
//! Decodes versions and JSON; must not know which rows exist.

use std::cell::OnceCell;
use std::fmt;
use std::ops::{Bound, ControlFlow, Range};
use std::sync::Arc;

use redb::{ReadableDatabase as _, ReadableTableMetadata as _};
use serde::de::DeserializeOwned;

use super::error::{self, StoreError};
use super::table::{self, TABLES, Table};

/// Which end of a [`Span`] comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Smallest key first.
    Ascending,
    /// Largest key first.
    Descending,
}

/// A stretch of keys: from (inclusive) to (exclusive).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    from: Vec<u8>,
    to: Option<Vec<u8>>,
}

impl Span {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self {
            from: Vec::new(),
            to: None,
        }
    }

    /// Keys from `first` (inclusive) to the end.
    #[must_use]
    pub fn starting_at(first: &[u8]) -> Self {
        Self {
            from: first.to_vec(),
            to: None,
        }
    }

    /// Keys before `end` (exclusive).
    #[must_use]
    pub fn before(end: &[u8]) -> Self {
        Self {
            from: Vec::new(),
            to: Some(end.to_vec()),
        }
    }

    /// Keys that start with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        // The first key after all of them: the prefix with its last byte that can grow grown, the rest cut off.
        let mut to = prefix.to_vec();
        while let Some(last) = to.pop() {
            if let Some(next) = last.checked_add(1) {
                to.push(next);
                break;
            }
        }
        Self {
            from: prefix.to_vec(),
            to: (!to.is_empty()).then_some(to),
        }
    }

    pub(crate) fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let to = self.to.as_deref();
        // redb refuses nothing here, but an inverted range has no meaning: make it empty.
        if to.is_some_and(|to| to < self.from.as_slice()) {
            return (
                Bound::Included(self.from.as_slice()),
                Bound::Excluded(self.from.as_slice()),
            );
        }
        (
            Bound::Included(self.from.as_slice()),
            to.map_or(Bound::Unbounded, Bound::Excluded),
        )
    }
}

impl From<Range<&[u8]>> for Span {
    fn from(range: Range<&[u8]>) -> Self {
        Self {
            from: range.start.to_vec(),
            to: Some(range.end.to_vec()),
        }
    }
}

/// Called with a key and a value's body (without its version).
pub type Visit<'v> = &'v mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError>;

/// Called with a key and a value's body, until the limit.
pub type Take<'t> = &'t mut dyn FnMut(&[u8], &[u8]) -> Result<(), StoreError>;

/// A key and its raw value.
pub type RawRow = (Vec<u8>, Vec<u8>);

/// The read side shared by [`Txn`](super::Txn) (sees its own writes) and [`View`] (sees one moment).
pub trait Rows {
    /// Calls `visit` with the body of the value under `key`; says whether there was one.
    ///
    /// # Errors
    /// `store_newer`, `store_invalid`, `store_unavailable`, and whatever `visit` returns.
    fn visit_one(
        &self,
        table: Table,
        key: &[u8],
        visit: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError>;

    /// Calls `visit` with each row of `span` until it breaks. Nothing is collected in memory.
    ///
    /// # Errors
    /// As [`Rows::visit_one`].
    fn visit(
        &self,
        table: Table,
        span: &Span,
        order: Order,
        visit: Visit<'_>,
    ) -> Result<(), StoreError>;

    /// Number of rows in `table`, without reading them.
    ///
    /// # Errors
    /// `store_invalid`, `store_unavailable`.
    fn count(&self, table: Table) -> Result<u64, StoreError>;

    /// The row under `key`.
    ///
    /// # Errors
    /// As [`Rows::visit_one`]; `store_invalid` if the row is not a `T`.
    fn get<T: DeserializeOwned>(&self, table: Table, key: &[u8]) -> Result<Option<T>, StoreError> {
        let mut row = None;
        self.visit_one(table, key, &mut |body| {
            row = Some(decode(table, body)?);
            Ok(())
        })?;
        Ok(row)
    }

    /// The raw bytes under `key`.
    ///
    /// # Errors
    /// As [`Rows::visit_one`].
    fn get_bytes(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let mut bytes = None;
        self.visit_one(table, key, &mut |body| {
            bytes = Some(body.to_vec());
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Whether there is a row under `key`.
    ///
    /// # Errors
    /// As [`Rows::visit_one`].
    fn contains(&self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        self.visit_one(table, key, &mut |_| Ok(()))
    }

    /// At most `limit` rows of `span`, with their keys.
    ///
    /// # Errors
    /// As [`Rows::get`].
    fn range<T: DeserializeOwned>(
        &self,
        table: Table,
        span: impl Into<Span>,
        limit: usize,
        order: Order,
    ) -> Result<Vec<(Vec<u8>, T)>, StoreError> {
        let mut rows = Vec::new();
        self.collect(table, &span.into(), limit, order, &mut |key, body| {
            rows.push((key.to_vec(), decode(table, body)?));
            Ok(())
        })?;
        Ok(rows)
    }

    /// At most `limit` raw rows of `span`, with their keys.
    ///
    /// # Errors
    /// As [`Rows::visit_one`].
    fn range_bytes(
        &self,
        table: Table,
        span: impl Into<Span>,
        limit: usize,
        order: Order,
    ) -> Result<Vec<RawRow>, StoreError> {
        let mut rows = Vec::new();
        self.collect(table, &span.into(), limit, order, &mut |key, body| {
            rows.push((key.to_vec(), body.to_vec()));
            Ok(())
        })?;
        Ok(rows)
    }

    /// At most `limit` keys of `span`.
    ///
    /// # Errors
    /// As [`Rows::visit_one`].
    fn keys(
        &self,
        table: Table,
        span: impl Into<Span>,
        limit: usize,
        order: Order,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut keys = Vec::new();
        self.collect(table, &span.into(), limit, order, &mut |key, _| {
            keys.push(key.to_vec());
            Ok(())
        })?;
        Ok(keys)
    }

    /// [`Rows::visit`] with a limit: what the range functions share.
    ///
    /// # Errors
    /// As [`Rows::visit_one`].
    fn collect(
        &self,
        table: Table,
        span: &Span,
        limit: usize,
        order: Order,
        take: Take<'_>,
    ) -> Result<(), StoreError> {
        let mut left = limit;
        if left == 0 {
            return Ok(());
        }
        self.visit(table, span, order, &mut |key, body| {
            take(key, body)?;
            left -= 1;
            Ok(if left == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })
    }
}

/// Reads a JSON body.
pub(crate) fn decode<T: DeserializeOwned>(table: Table, body: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(body).map_err(|error| {
        StoreError::invalid(format!(
            "a row of table {} cannot be read: {error}",
            table.name()
        ))
    })
}

/// Shows one row of a redb table of either kind; whether it is there.
pub(crate) fn one(
    table: Table,
    rows: &impl redb::ReadableTable<&'static [u8], &'static [u8]>,
    key: &[u8],
    visit: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<bool, StoreError> {
    let Some(value) = rows.get(key).map_err(error::redb("read a row"))? else {
        return Ok(false);
    };
    visit(table::body(table, value.value())?)?;
    Ok(true)
}

/// Walks a redb table of either kind.
pub(crate) fn walk(
    table: Table,
    rows: &impl redb::ReadableTable<&'static [u8], &'static [u8]>,
    span: &Span,
    order: Order,
    visit: Visit<'_>,
) -> Result<(), StoreError> {
    let fault = error::redb::<redb::StorageError>("read rows");
    let mut range = rows.range::<&[u8]>(span.bounds()).map_err(&fault)?;
    loop {
        let next = match order {
            Order::Ascending => range.next(),
            Order::Descending => range.next_back(),
        };
        let Some(row) = next else { return Ok(()) };
        let (key, value) = row.map_err(&fault)?;
        if visit(key.value(), table::body(table, value.value())?)?.is_break() {
            return Ok(());
        }
    }
}

type ReadTable = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

/// The store at one moment. Later writes are not seen; while it lives, their old pages are kept on disk, so hold it
/// for one answer and never across an await.
pub struct View {
    txn: redb::ReadTransaction,
    tables: [OnceCell<Option<ReadTable>>; TABLES],
    /// Keeps the file open: redb closes it with the last of these, whoever still reads.
    _database: Arc<redb::Database>,
}

impl View {
    pub(crate) fn new(database: Arc<redb::Database>) -> Result<Self, StoreError> {
        Ok(Self {
            txn: database.begin_read().map_err(error::redb("read"))?,
            tables: [const { OnceCell::new() }; TABLES],
            _database: database,
        })
    }

    /// `None` for a table that a future version of this program added and this file lacks.
    fn table(&self, table: Table) -> Result<Option<&ReadTable>, StoreError> {
        let Some(cell) = self.tables.get(table.index()) else {
            return Ok(None);
        };
        if cell.get().is_none() {
            let opened = match self.txn.open_table(table.definition()) {
                Ok(opened) => Some(opened),
                Err(redb::TableError::TableDoesNotExist(_)) => None,
                Err(error) => return Err(error::redb("open a table")(error)),
            };
            let _ = cell.set(opened);
        }
        Ok(cell.get().and_then(Option::as_ref))
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

impl Rows for View {
    fn visit_one(
        &self,
        table: Table,
        key: &[u8],
        visit: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let Some(rows) = self.table(table)? else {
            return Ok(false);
        };
        one(table, rows, key, visit)
    }

    fn visit(
        &self,
        table: Table,
        span: &Span,
        order: Order,
        visit: Visit<'_>,
    ) -> Result<(), StoreError> {
        match self.table(table)? {
            Some(rows) => walk(table, rows, span, order, visit),
            None => Ok(()),
        }
    }

    fn count(&self, table: Table) -> Result<u64, StoreError> {
        match self.table(table)? {
            Some(rows) => rows.len().map_err(error::redb("count rows")),
            None => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Promise: a span holds exactly the keys it names.
    use super::*;
    use proptest::prelude::*;

    fn holds(span: &Span, key: &[u8]) -> bool {
        std::ops::RangeBounds::<[u8]>::contains(&span.bounds(), key)
    }

    proptest! {
        #[test]
        fn a_prefix_span_holds_a_key_exactly_if_it_starts_so(
            prefix in proptest::collection::vec(prop_oneof![Just(0u8), Just(254), Just(255)], 0..4),
            key in proptest::collection::vec(prop_oneof![Just(0u8), Just(254), Just(255)], 0..6),
        ) {
            prop_assert_eq!(holds(&Span::prefix(&prefix), &key), key.starts_with(&prefix));
        }
    }
}
