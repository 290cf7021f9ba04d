//! What survives: one redb file behind one transaction type.
//!
//! This is the only room that knows redb. It keeps rows, not meanings: what a task or a transfer is, `domain` says,
//! and hands over anything that serde can write. What the room does know is what must hold across a crash: versions,
//! ids that were seen, a journal, checkpoints in two generations, quotas.
//!
//! # Commits
//!
//! [`Store::write`] is one durable transaction: when it returns `Ok`, all of it is on disk (fsync); when the closure
//! returns an error, nothing is. A commit costs one fsync whatever it holds, so the node's loop takes everything that
//! waits and calls `write` once for the batch (group commit), and lets answers and messages out only after it
//! returned. One command's refusal must not drop its neighbours: decide first, on memory or a [`View`], write after.
//! `write` and `view` block on the disk: call them from a thread that may.
//!
//! # When the disk fails
//!
//! After `store_unavailable` the store refuses every write until [`Store::reopen`]: a commit whose fsync failed may or
//! may not have reached the disk, so the state in memory must be loaded again from what is really there.
//!
//! # Values
//!
//! Every value starts with a version (u16, little-endian); then JSON, or raw bytes where a table holds bytes. A newer
//! version, in a value or in [`Table::Meta`], is refused with `store_newer`.

mod error;
#[cfg(any(feature = "crash-points", debug_assertions))]
mod fault;
mod open;
mod prune;
mod rows;
mod snapshot;
mod survival;
mod table;
mod txn;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::Database;

pub use error::StoreError;
#[cfg(any(feature = "crash-points", debug_assertions))]
pub use fault::FaultPlan;
pub use open::SCHEMA_VERSION;
pub use prune::{Limits, Pruned};
pub use rows::{Order, RawRow, Rows, Span, Take, View, Visit};
pub use survival::JournalEntry;
pub use table::{Table, owned_key};
pub use txn::Txn;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Memory for cached pages. Default 64 MiB.
    pub cache_bytes: usize,
    /// File size from which commits also save what makes a start after a crash instant. Below it such a start walks
    /// the file (about 0.5 s at most); above it a commit takes two fsyncs instead of one. Default 256 MiB.
    pub quick_repair_above_bytes: u64,
    /// Faults of the disk, for tests.
    #[cfg(any(feature = "crash-points", debug_assertions))]
    pub fault: Option<Arc<FaultPlan>>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 * 1024 * 1024,
            quick_repair_above_bytes: 256 * 1024 * 1024,
            #[cfg(any(feature = "crash-points", debug_assertions))]
            fault: None,
        }
    }
}

/// The open store; one per home. Shared by reference between threads; writes take turns.
pub struct Store {
    path: PathBuf,
    options: StoreOptions,
    /// `None` after a fault, until [`Store::reopen`].
    database: Mutex<Option<Arc<Database>>>,
    /// The encoding buffer, handed from transaction to transaction.
    buffer: Mutex<Vec<u8>>,
}

/// A buffer that one large payload has grown beyond this is not kept.
const BUFFER_KEPT_BYTES: usize = 1024 * 1024;

impl Store {
    /// Opens the store at `path`, or creates it, readable and writable by its owner alone (0600). Reads no row except
    /// the schema's, however large the store is.
    ///
    /// # Errors
    /// `store_locked` if it is open elsewhere, `store_newer`, `store_invalid` for a foreign, empty or cut file,
    /// `store_unavailable` if the disk refuses.
    pub fn open(path: impl AsRef<Path>, options: StoreOptions) -> Result<Self, StoreError> {
        let path = path.as_ref().to_path_buf();
        let database = open::open_or_create(&path, &options)?;
        Ok(Self {
            path,
            options,
            database: Mutex::new(Some(database)),
            buffer: Mutex::new(Vec::new()),
        })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file, bytes.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub fn file_bytes(&self) -> Result<u64, StoreError> {
        std::fs::metadata(&self.path)
            .map(|file| file.len())
            .map_err(|error| StoreError::io("measure the store", &error))
    }

    /// Runs `change` in one transaction, and makes it durable (fsync) if `change` returns `Ok`. If it returns an error
    /// or panics, everything it wrote is dropped. Waits for a write that is under way.
    ///
    /// # Errors
    /// Whatever `change` returns; `store_unavailable` if the disk refuses, see the module's text.
    pub fn write<R>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let outcome = self.write_once(change);
        if matches!(outcome, Err(StoreError::Unavailable { .. })) {
            // Closing drops the file's lock as well, so that a restart after a fault finds it free.
            *self.database() = None;
        }
        outcome
    }

    fn write_once<R>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let database = self.database().clone().ok_or_else(closed)?;
        let mut transaction = database
            .begin_write()
            .map_err(error::redb("begin a transaction"))?;
        if self.file_bytes()? >= self.options.quick_repair_above_bytes {
            transaction.set_quick_repair(true);
        }
        let buffer = std::mem::take(&mut *self.buffer());
        let mut txn = Txn::new(&transaction, buffer);
        // An error drops `txn`, then `transaction`, which rolls back.
        let result = change(&mut txn)?;
        let buffer = txn.finish()?;
        transaction.commit().map_err(error::redb("commit"))?;
        if buffer.capacity() <= BUFFER_KEPT_BYTES {
            *self.buffer() = buffer;
        }
        Ok(result)
    }

    /// The store as of now, for reading. Does not wait for writes, nor do they wait for it.
    ///
    /// # Errors
    /// `store_unavailable` after a fault, until [`Store::reopen`].
    pub fn view(&self) -> Result<View, StoreError> {
        let database = self.database().clone().ok_or_else(closed)?;
        View::new(database)
    }

    /// Opens the file again after `store_unavailable`. Whatever the caller holds in memory must be loaded anew: the
    /// last transaction may be there or not. Drop every [`View`] first: one that lives keeps the file locked.
    ///
    /// # Errors
    /// As [`Store::open`]; the store then stays closed.
    pub fn reopen(&self) -> Result<(), StoreError> {
        let mut database = self.database();
        *database = None;
        *database = Some(open::open_existing(&self.path, &self.options)?);
        Ok(())
    }

    /// Copies the store, as of now, into a new file (0600) that [`Store::open`] can open. Writes go on meanwhile. The
    /// copy appears under `target` only when it is whole and durable. Returns the number of rows.
    ///
    /// # Errors
    /// `store_target_exists`, `store_target_unusable`; of the store itself `store_unavailable`, `store_newer`, `store_invalid`.
    pub fn snapshot_to(&self, target: impl AsRef<Path>) -> Result<u64, StoreError> {
        snapshot::copy(&self.view()?, target.as_ref(), &self.options, &[], |_| {
            Ok(())
        })
    }

    /// The same without the rows of some tables, and with whatever `add` writes: the copy is durable with that, or not at all.
    ///
    /// # Errors
    /// As [`Store::snapshot_to`], and whatever `add` returns.
    pub fn backup_to(
        &self,
        target: impl AsRef<Path>,
        without: &[Table],
        add: impl FnOnce(&mut Txn<'_>) -> Result<(), StoreError>,
    ) -> Result<u64, StoreError> {
        snapshot::copy(&self.view()?, target.as_ref(), &self.options, without, add)
    }

    fn database(&self) -> MutexGuard<'_, Option<Arc<Database>>> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn buffer(&self) -> MutexGuard<'_, Vec<u8>> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable {
        operation: "use the store",
        reason: "it was closed after an earlier fault".to_owned(),
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
