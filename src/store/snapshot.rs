//! A consistent copy of the whole store from one read view.
//!
//! Copies bytes, versions included, table by table; knows no row.

use std::ops::ControlFlow;
use std::path::Path;

use super::error::{self, StoreError};
use super::rows::{Order, Rows as _, Span, View};
use super::table::Table;
use super::txn::Txn;
use super::{StoreOptions, open};

/// Copies `view` into a new file; see [`Store::snapshot_to`](super::Store::snapshot_to).
pub(crate) fn copy(view: &View, target: &Path, options: &StoreOptions) -> Result<u64, StoreError> {
    let exists = || StoreError::TargetExists {
        path: target.display().to_string(),
    };
    if target.exists() {
        return Err(exists());
    }
    // Built beside the target and renamed: a copy that was cut off must not look like one.
    let mut part = target.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    if part.exists() {
        std::fs::remove_file(part)
            .map_err(|error| StoreError::io("remove an unfinished snapshot", &error))?;
    }
    let database = open::create(part, options)?;
    let transaction = database
        .begin_write()
        .map_err(error::redb("write the snapshot"))?;
    let mut txn = Txn::new(&transaction, Vec::new());
    let mut copied = 0;
    for table in Table::ALL {
        view.visit(table, &Span::all(), Order::Ascending, &mut |key, body| {
            txn.put_bytes(table, key, body)?;
            copied += 1;
            Ok(ControlFlow::Continue(()))
        })?;
    }
    txn.finish()?;
    transaction
        .commit()
        .map_err(error::redb("write the snapshot"))?;
    drop(database);
    // Linking, unlike renaming, never replaces a file that appeared meanwhile.
    std::fs::hard_link(part, target).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(),
        _ => StoreError::io("name the snapshot", &error),
    })?;
    std::fs::remove_file(part).map_err(|error| StoreError::io("name the snapshot", &error))?;
    open::sync_directory(target)?;
    Ok(copied)
}
