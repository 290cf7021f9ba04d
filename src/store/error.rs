//! What can go wrong in the store, each with a code to search for and a next step.
//!
//! Knows redb's errors so that nobody above has to; must not know what a row means.

use std::io;
use std::path::Path;

use thiserror::Error;

/// Every failure of the store room.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The schema or a value is of a version that this program does not know. Nothing was changed.
    #[error(
        "this store was written by a newer legion: {what} has version {found}, this program knows up to {known}; \
         install the newer legion, or start with another `--home`"
    )]
    Newer {
        /// What carried the unknown version: the schema, or a value and its table.
        what: String,
        /// The version found.
        found: u64,
        /// The newest version that this program reads.
        known: u64,
    },
    /// The file is not a legion store, is cut short, or holds a value that cannot be read.
    #[error(
        "the store is not valid: {reason}; restore a snapshot, or move the file away to start empty"
    )]
    Invalid {
        /// What was expected and what was found.
        reason: String,
    },
    /// Another process (or another [`Store`](super::Store) in this one) holds the file.
    #[error("the store is in use: {path}; stop the other `legion up` of this home first")]
    Locked {
        /// The file.
        path: String,
    },
    /// The disk refused: full, read-only, gone, or a failed sync. The transaction's outcome is unknown until
    /// [`Store::reopen`](super::Store::reopen), after which either all of it is there or nothing.
    #[error(
        "the store is unavailable while it tried to {operation}: {reason}; free disk space or check the disk, then restart"
    )]
    Unavailable {
        /// What was attempted, as a verb phrase.
        operation: &'static str,
        /// The cause, from the system.
        reason: String,
    },
    /// A row could not be turned into JSON: a defect of the caller. The transaction must be dropped.
    #[error(
        "a row of table {table} cannot be written: {reason}; this is a defect, please report it"
    )]
    Unwritable {
        /// The table's name.
        table: &'static str,
        /// The serializer's words.
        reason: String,
    },
    /// The caller's closure asked for the transaction to be dropped.
    #[error("the transaction was dropped: {reason}; nothing was changed")]
    Dropped {
        /// The caller's reason.
        reason: String,
    },
    /// A snapshot's target exists already.
    #[error("there is a file already: {path}; choose another path")]
    TargetExists {
        /// The target.
        path: String,
    },
    /// A snapshot cannot be written where it should be. The store itself is as it was.
    #[error(
        "{path} cannot be written: {reason}; name a new file in a folder that exists, is yours, and has space left on its disk"
    )]
    TargetUnusable {
        /// The target.
        path: String,
        /// The cause, from the system.
        reason: String,
    },
}

impl StoreError {
    /// Stable code of this error, in snake_case.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Newer { .. } => "store_newer",
            Self::Invalid { .. } => "store_invalid",
            Self::Locked { .. } => "store_locked",
            Self::Unavailable { .. } => "store_unavailable",
            Self::Unwritable { .. } => "store_unwritable",
            Self::Dropped { .. } => "store_dropped",
            Self::TargetExists { .. } => "store_target_exists",
            Self::TargetUnusable { .. } => "store_target_unusable",
        }
    }

    /// An error by which a closure given to [`Store::write`](super::Store::write) drops its own transaction.
    pub fn dropped(reason: impl Into<String>) -> Self {
        Self::Dropped {
            reason: reason.into(),
        }
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid {
            reason: reason.into(),
        }
    }

    pub(crate) fn io(operation: &'static str, error: &io::Error) -> Self {
        Self::Unavailable {
            operation,
            reason: error.to_string(),
        }
    }
}

/// Turns an error of redb into one of ours; `operation` is a verb phrase.
pub(crate) fn redb<E: Into<redb::Error>>(operation: &'static str) -> impl Fn(E) -> StoreError {
    move |error| match error.into() {
        // A read past the end is a file cut short; InvalidData is redb's word for a wrong magic number.
        redb::Error::Io(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            StoreError::invalid(error.to_string())
        }
        error @ (redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. }) => StoreError::invalid(error.to_string()),
        error => StoreError::Unavailable {
            operation,
            reason: error.to_string(),
        },
    }
}

/// As [`redb`], for opening `path`.
pub(crate) fn opening(path: &Path, error: redb::DatabaseError) -> StoreError {
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => StoreError::Locked {
            path: path.display().to_string(),
        },
        error => redb("open the store")(error),
    }
}
