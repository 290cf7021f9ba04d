//! A consistent copy of the whole store from one read view.
//!
//! Copies bytes, versions included, table by table; knows no row.

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::{self, StoreError};
use super::rows::{Order, Rows as _, Span, View};
use super::table::Table;
use super::txn::Txn;
use super::{StoreOptions, open};

/// Copies `view` into a new file; see [`Store::snapshot_to`](super::Store::snapshot_to).
pub(crate) fn copy(
    view: &View,
    target: &Path,
    options: &StoreOptions,
    without: &[Table],
    add: impl FnOnce(&mut Txn<'_>) -> Result<(), StoreError>,
) -> Result<u64, StoreError> {
    let exists = || StoreError::TargetExists {
        path: target.display().to_string(),
    };
    if target.is_dir() {
        return Err(unusable(target, "it is a folder"));
    }
    if target.exists() {
        return Err(exists());
    }
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let refused = match std::fs::metadata(folder) {
        Ok(found) if found.is_dir() => None,
        Ok(_) => Some("it is no folder".to_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(reason) = refused {
        let reason = format!("{}: {reason}", folder.display());
        return Err(unusable(target, &reason));
    }
    // Built beside the target and renamed: a copy that was cut off must not look like one. Nobody else's file has this name.
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut part = target.as_os_str().to_owned();
    part.push(format!(
        ".{}-{}.part",
        std::process::id(),
        since_1970.map_or(0, |time| time.as_nanos())
    ));
    let part = Path::new(&part);
    let built = build(view, part, options, without, add);
    let named =
        built.and_then(|copied| name(part, target).map(|()| copied).map_err(Failed::Target));
    named.map_err(|failed| {
        let _ = std::fs::remove_file(part);
        let _ = std::fs::remove_file(open::building_name(part));
        match failed {
            Failed::Target(StoreError::Unavailable { reason, .. }) => unusable(target, &reason),
            Failed::Target(error) | Failed::Source(error) => error,
        }
    })
}

/// Which of the two files failed: what the disk of a copy refuses is no fault of the store.
enum Failed {
    Source(StoreError),
    Target(StoreError),
}

fn unusable(target: &Path, reason: &str) -> StoreError {
    StoreError::TargetUnusable {
        path: target.display().to_string(),
        reason: reason.to_owned(),
    }
}

/// Writes the copy; the number of its rows.
fn build(
    view: &View,
    part: &Path,
    options: &StoreOptions,
    without: &[Table],
    add: impl FnOnce(&mut Txn<'_>) -> Result<(), StoreError>,
) -> Result<u64, Failed> {
    let write = |error: redb::Error| Failed::Target(error::redb("write the snapshot")(error));
    let database = open::create(part, options).map_err(Failed::Target)?;
    let transaction = database.begin_write().map_err(|e| write(e.into()))?;
    let mut txn = Txn::new(&transaction, Vec::new());
    let mut copied = 0;
    for table in Table::ALL.into_iter().filter(|t| !without.contains(t)) {
        let mut refused = None;
        let read = view.visit(table, &Span::all(), Order::Ascending, &mut |key, body| {
            refused = txn.put_bytes(table, key, body).err();
            copied += 1;
            Ok(match refused {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            })
        });
        read.map_err(Failed::Source)?;
        if let Some(error) = refused {
            return Err(Failed::Target(error));
        }
    }
    add(&mut txn).map_err(Failed::Target)?;
    txn.finish().map_err(Failed::Target)?;
    transaction.commit().map_err(|e| write(e.into()))?;
    Ok(copied)
}

fn name(part: &Path, target: &Path) -> Result<(), StoreError> {
    let exists = || StoreError::TargetExists {
        path: target.display().to_string(),
    };
    // Linking, unlike renaming, never replaces a file that appeared meanwhile. Not every disk can: a memory stick's often cannot.
    match std::fs::hard_link(part, target) {
        Ok(()) => std::fs::remove_file(part),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(exists()),
        Err(_) if target.exists() => return Err(exists()),
        Err(_) => std::fs::rename(part, target),
    }
    .map_err(|error| StoreError::io("name the snapshot", &error))?;
    open::sync_directory(target)
}
