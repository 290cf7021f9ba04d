//! A disk that fails on request, for tests: full, or losing what was not synced.
//!
//! Exists only with the feature `crash-points`; knows bytes and offsets, nothing of redb's format.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

/// Which faults a store's disk has. Shared: keep a clone of the `Arc` and change it while the store is open.
#[derive(Debug)]
pub struct FaultPlan {
    quota_bytes: AtomicU64,
    fail_sync_in: AtomicU64,
    lose_unsynced: AtomicBool,
    syncs: AtomicU64,
}

impl Default for FaultPlan {
    fn default() -> Self {
        Self {
            quota_bytes: AtomicU64::new(u64::MAX),
            fail_sync_in: AtomicU64::new(0),
            lose_unsynced: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
        }
    }
}

impl FaultPlan {
    /// A plan without faults, to be shared.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Reads `quota=BYTES`, `sync=N`, `lose`, joined by commas, as a test hands them to a child process.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let plan = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("quota", bytes)) => plan.set_quota_bytes(bytes.parse().ok()),
                Some(("sync", nth)) => plan.fail_sync(nth.parse().ok()?, false),
                None if part == "lose" => plan.lose_unsynced.store(true, Ordering::SeqCst),
                _ => return None,
            }
        }
        Some(plan)
    }

    /// The file may not grow beyond this (ENOSPC); `None` lifts the quota.
    pub fn set_quota_bytes(&self, quota_bytes: Option<u64>) {
        let quota_bytes = quota_bytes.unwrap_or(u64::MAX);
        self.quota_bytes.store(quota_bytes, Ordering::SeqCst);
    }

    /// The `nth` sync from now fails (1 is the next, 0 none), and with it all further use of this opening of the file.
    /// With `lose_unsynced`, what was written since the last good sync is undone, as by a power cut.
    pub fn fail_sync(&self, nth: u64, lose_unsynced: bool) {
        self.lose_unsynced.store(lose_unsynced, Ordering::SeqCst);
        self.fail_sync_in.store(nth, Ordering::SeqCst);
    }

    /// Syncs that were asked for so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::SeqCst)
    }

    fn sync_fails(&self) -> bool {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        let before = self
            .fail_sync_in
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        before == Ok(1)
    }
}

/// What a write or a change of length replaced.
#[derive(Debug)]
enum Undo {
    Bytes { offset: u64, old: Vec<u8> },
    Length(u64),
}

/// The file, behind the plan.
#[derive(Debug)]
pub(crate) struct FaultyDisk {
    file: FileBackend,
    plan: Arc<FaultPlan>,
    unsynced: Mutex<Vec<Undo>>,
    dead: AtomicBool,
}

impl FaultyDisk {
    pub(crate) fn new(file: File, plan: Arc<FaultPlan>) -> Result<Self, DatabaseError> {
        Ok(Self {
            file: FileBackend::new(file)?,
            plan,
            unsynced: Mutex::new(Vec::new()),
            dead: AtomicBool::new(false),
        })
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is gone (injected)"));
        }
        Ok(())
    }

    fn remember(&self, undo: Undo) {
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        unsynced.push(undo);
    }

    fn take_unsynced(&self) -> Vec<Undo> {
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *unsynced)
    }

    /// Puts back what was there at the last good sync, newest change first.
    fn undo(&self) -> io::Result<()> {
        for undo in self.take_unsynced().into_iter().rev() {
            match undo {
                Undo::Bytes { offset, old } => self.file.write(offset, &old)?,
                Undo::Length(length) => self.file.set_len(length)?,
            }
        }
        Ok(())
    }
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.alive()?;
        self.file.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.alive()?;
        let old = self.file.len()?;
        if length > old && length > self.plan.quota_bytes.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if length < old {
            let mut cut = vec![0; usize::try_from(old - length).map_err(io::Error::other)?];
            self.file.read(length, &mut cut)?;
            self.remember(Undo::Bytes {
                offset: length,
                old: cut,
            });
        }
        self.remember(Undo::Length(old));
        self.file.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.alive()?;
        if self.plan.sync_fails() {
            self.dead.store(true, Ordering::SeqCst);
            if self.plan.lose_unsynced.load(Ordering::SeqCst) {
                self.undo()?;
            }
            return Err(io::Error::other("the sync failed (injected)"));
        }
        self.file.sync_data()?;
        self.take_unsynced();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.alive()?;
        let mut old = vec![0; data.len()];
        self.file.read(offset, &mut old)?;
        self.remember(Undo::Bytes { offset, old });
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
