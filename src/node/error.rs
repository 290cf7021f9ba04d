//! Why a node cannot start, or had to end: the errors of all rooms that it joins, and its own.

use super::control::ControlStartError;
use crate::carrier::CarrierError;
use crate::config::ConfigError;
use crate::identity::IdentityError;
use crate::store::StoreError;
use crate::wire::binding::BindingError;

/// Why a node cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Local control.
    #[error(transparent)]
    Control(#[from] ControlStartError),
    /// The settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The carrier.
    #[error(transparent)]
    Carrier(#[from] CarrierError),
    /// The keys.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The binding.
    #[error(transparent)]
    Binding(#[from] BindingError),
    /// The store belongs to another identity.
    #[error(
        "store.redb belongs to {npub} and the keys do not; put the key file and the store of one backup together"
    )]
    StoreForeign {
        /// Whose it is.
        npub: String,
    },
    /// The store is a backup as it was written.
    #[error(
        "store.redb is a backup that was not restored; move it out of the home and run `legion restore` on it"
    )]
    Unrestored,
    /// A restoration was begun and not finished.
    #[error(
        "a restoration of this home was not finished; run `legion restore FILE` again, or remove {} to begin with nothing", building.display()
    )]
    Unfinished {
        /// What it left.
        building: std::path::PathBuf,
    },
    /// The keys are older than what the store was last used with: peers would hear nothing of what they sign.
    #[error(
        "the key file is of epoch {keys}, and this store of epoch {store}: move keys/ away and make it with `legion init --mnemonic-file F --epoch {store}`"
    )]
    EpochBehind {
        /// Of the keys.
        keys: usize,
        /// Of the store.
        store: usize,
    },
    /// The operating system.
    #[error("the system refuses: {0}; check limits and the program's path")]
    System(#[from] std::io::Error),
}

impl NodeError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Store(e) => e.code(),
            Self::Control(e) => e.code(),
            Self::Config(e) => e.code(),
            Self::Carrier(e) => e.code(),
            Self::Identity(e) => e.code(),
            Self::Binding(e) => e.code(),
            Self::StoreForeign { .. } => "store_foreign",
            Self::Unrestored => "backup_unrestored",
            Self::Unfinished { .. } => "restore_unfinished",
            Self::EpochBehind { .. } => "epoch_behind",
            Self::System(_) => "system_refused",
        }
    }
}
