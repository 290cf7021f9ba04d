//! What can go wrong with keys and envelopes. Every variant has a stable code to search for, and a text that says what happened
//! and what to do next. It must not carry a secret: no seed word, passphrase, key or plaintext is ever part of a message.

use std::io;
use std::path::{Path, PathBuf};

use super::token::Kind;

/// What is wrong with a `legion1…` text. It never quotes the text: an invite is a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Longer than any such text.
    #[error("has more than {max} characters, which none has; copy it again")]
    TooLong {
        /// The most it may have.
        max: usize,
    },
    /// Not such a text, or fields that do not fit each other.
    #[error("is no complete `legion1…` text; copy it again, from its first character to its last")]
    Malformed,
    /// Another program's text, or a key.
    #[error("does not begin with `legion1`; copy the right one")]
    Hrp,
    /// A character is wrong or missing.
    #[error("has a wrong checksum: a character is wrong or missing; copy it again")]
    Checksum,
    /// Of another version.
    #[error(
        "is of version {0}, and this legion reads version 1; use the same version on both machines"
    )]
    Version(u8),
    /// An invite where a contact is wanted, or the reverse.
    #[error(
        "is a `legion1…` text of the other kind; `legion pool join` takes invites and `legion peers trust` contacts"
    )]
    Kind,
    /// Not signed by who it says made it.
    #[error(
        "is not signed by the node that it names; ask for another one, by a way that you trust"
    )]
    Signature,
    /// Its time is over.
    #[error("expired at {at_s} (Unix seconds); ask for a new one")]
    Expired {
        /// When it ended.
        at_s: u64,
    },
}

impl Fault {
    fn code(self, kind: Kind) -> &'static str {
        match (kind, self) {
            (Kind::Invite, Self::TooLong { .. }) => "invite_too_long",
            (Kind::Invite, Self::Malformed) => "invite_malformed",
            (Kind::Invite, Self::Hrp) => "invite_hrp",
            (Kind::Invite, Self::Checksum) => "invite_checksum",
            (Kind::Invite, Self::Version(_)) => "invite_version",
            (Kind::Invite, Self::Kind) => "invite_kind",
            (Kind::Invite, Self::Signature) => "invite_signature",
            (Kind::Invite, Self::Expired { .. }) => "invite_expired",
            (Kind::Contact, Self::TooLong { .. }) => "contact_too_long",
            (Kind::Contact, Self::Malformed) => "contact_malformed",
            (Kind::Contact, Self::Hrp) => "contact_hrp",
            (Kind::Contact, Self::Checksum) => "contact_checksum",
            (Kind::Contact, Self::Version(_)) => "contact_version",
            (Kind::Contact, Self::Kind) => "contact_kind",
            (Kind::Contact, Self::Signature) => "contact_signature",
            (Kind::Contact, Self::Expired { .. }) => "contact_expired",
        }
    }
}

/// A failure in the identity room.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not a Nostr public key.
    #[error("not a Nostr public key: {0}; write it as npub1… or as 64 hex digits")]
    NpubInvalid(String),
    /// The operating system gave no random bytes.
    #[error(
        "the operating system gave no random bytes: {0}; try again, and check the system's random source if it stays"
    )]
    EntropyUnavailable(getrandom::Error),
    /// The text is not a BIP-39 English mnemonic.
    #[error("the seed words are not valid: {0}; check the spelling and the order of the words")]
    MnemonicInvalid(String),
    /// The text is not an LCT.
    #[error("`{text}` is not an LCT: {reason}; the form is `lct:web4:agent:<owner>@<node>#<role>`")]
    LctInvalid {
        /// The refused text, shortened.
        text: String,
        /// Which part is wrong.
        reason: &'static str,
    },
    /// A derivation gave no usable key; with real seeds this does not happen.
    #[error("a key could not be derived ({0}); create a new identity with `legion init`")]
    DerivationFailed(&'static str),
    /// There is no key file.
    #[error("no identity at {}; create one with `legion init`", .0.display())]
    KeyMissing(PathBuf),
    /// There is a key file already, and it is never overwritten.
    #[error("an identity exists already at {}; move it away first if you want a new one", .0.display())]
    KeyExists(PathBuf),
    /// Others may read the key file, or replace it.
    #[error("{} is open to other users (mode {mode:04o}); run `chmod go-rwx {}` and check who could have read it", path.display(), path.display())]
    KeyPermissions {
        /// The file or directory with the wide mode.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not a key file of ours, or it was cut short.
    #[error("{} is not a valid key file: {reason}; restore it from a backup, or from the seed words with `legion init --mnemonic-file`", path.display())]
    KeyFileInvalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key file is encrypted and no passphrase was given, or an empty one.
    #[error(
        "the key file needs a passphrase; give one with `--passphrase-file` or `--passphrase-fd`, or type it"
    )]
    PassphraseNeeded,
    /// The passphrase does not open the key file.
    #[error(
        "the passphrase is wrong, or the key file was altered; try again, or restore the file from a backup"
    )]
    PassphraseWrong,
    /// A file operation failed.
    #[error("{}: {source}; check the path, the disk and its permissions", path.display())]
    KeyIo {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The message does not fit one envelope.
    #[error(
        "the message takes {bytes} bytes as a rumor, the limit is {max_bytes}; send the payload as a transfer instead"
    )]
    RumorTooLarge {
        /// Its size as rumor JSON, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        max_bytes: usize,
    },
    /// The expiration lies before the creation, or too far after it.
    #[error(
        "the expiration must lie after the creation and at most 30 days ahead; choose a nearer one"
    )]
    ExpirationInvalid,
    /// More proof of work was asked for than this node will do.
    #[error(
        "{bits} bits of work were asked for, the limit is {max_bits}; choose another pool or relay"
    )]
    PowTooCostly {
        /// Leading zero bits asked for (NIP-13).
        bits: u8,
        /// The most this node mines.
        max_bits: u8,
    },
    /// A peer's key is not a point on the curve, or an event could not be built.
    #[error("the message could not be sealed: {0}; check the recipient's key")]
    SealingFailed(&'static str),
    /// A `legion1…` text that is not what it should be.
    #[error("the {} {fault}", kind.word())]
    TokenInvalid {
        /// What it was meant to be.
        kind: Kind,
        /// What is wrong.
        fault: Fault,
    },
    /// A pool of this name is joined already, with another secret.
    #[error(
        "this node already has another pool named {0}; leave that one first, or have the other created under another name"
    )]
    PoolNameTaken(String),
    /// Not a name for a pool.
    #[error(
        "a pool's name has 1 to 64 bytes, not only spaces, and no control characters; choose another name"
    )]
    PoolNameInvalid,
    /// No private pool of this name.
    #[error("this node is in no private pool named {0}; `legion pool list` shows those it is in")]
    PoolUnknown(String),
    /// The invite is for an epoch before the known one.
    #[error(
        "the pool {name} was rotated since: the invite is for epoch {offered}, this node is at epoch {known}; ask for a new invite"
    )]
    InviteSuperseded {
        /// The pool.
        name: String,
        /// The invite's epoch.
        offered: u32,
        /// Ours.
        known: u32,
    },
    /// Two secrets under one epoch.
    #[error(
        "the pool {name} was rotated twice at once: there are two secrets of epoch {epoch}; let one member rotate it again and invite the others"
    )]
    PoolEpochTaken {
        /// The pool.
        name: String,
        /// The epoch.
        epoch: u32,
    },
    /// As many private pools as a node may be in.
    #[error("this node is in {0} private pools, which is the limit; leave one first")]
    PoolsTooMany(usize),
    /// The file with the pools' secrets is not ours, or it was altered.
    #[error("{} cannot be used: {reason}; restore it from a backup, or move it away and join the pools again", path.display())]
    PoolFileInvalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A NIP-44 payload is not for this key, was altered, or is of another version.
    #[error(
        "the payload cannot be decrypted: it is for another key, of another version, or was altered"
    )]
    Undecryptable,
}

impl IdentityError {
    /// A stable name for programs and for searching.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NpubInvalid(_) => "npub_invalid",
            Self::EntropyUnavailable(_) => "entropy_unavailable",
            Self::MnemonicInvalid(_) => "mnemonic_invalid",
            Self::LctInvalid { .. } => "lct_invalid",
            Self::DerivationFailed(_) => "derivation_failed",
            Self::KeyMissing(_) => "key_missing",
            Self::KeyExists(_) => "key_exists",
            Self::KeyPermissions { .. } => "key_permissions",
            Self::KeyFileInvalid { .. } => "key_file_invalid",
            Self::PassphraseNeeded => "passphrase_needed",
            Self::PassphraseWrong => "passphrase_wrong",
            Self::KeyIo { .. } => "key_io",
            Self::RumorTooLarge { .. } => "rumor_too_large",
            Self::ExpirationInvalid => "expiration_invalid",
            Self::PowTooCostly { .. } => "pow_too_costly",
            Self::SealingFailed(_) => "sealing_failed",
            Self::TokenInvalid { kind, fault } => fault.code(*kind),
            Self::PoolNameTaken(_) => "pool_name_taken",
            Self::PoolNameInvalid => "pool_name_invalid",
            Self::PoolUnknown(_) => "pool_unknown",
            Self::InviteSuperseded { .. } => "invite_superseded",
            Self::PoolEpochTaken { .. } => "pool_epoch_taken",
            Self::PoolsTooMany(_) => "pools_too_many",
            Self::PoolFileInvalid { .. } => "pool_file_invalid",
            Self::Undecryptable => "undecryptable",
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::KeyIo {
            path: path.to_path_buf(),
            source,
        }
    }
}
