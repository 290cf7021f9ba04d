//! The one file of this room that calls the identity room: it turns key files into what `init`, `id` and `up` need.

use std::path::Path;

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::error::CliError;
use crate::config::Owner;

/// A node's public identity, as `id` prints it.
pub(crate) struct PublicView {
    pub(crate) npub: String,
    pub(crate) nostr: String,
    pub(crate) ed25519: String,
    pub(crate) x25519: String,
    pub(crate) peer_id: String,
    pub(crate) lct: String,
}

impl PublicView {
    /// `{npub,nostr,ed25519,x25519,peer_id,lct}`.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "npub": self.npub, "nostr": self.nostr, "ed25519": self.ed25519,
            "x25519": self.x25519, "peer_id": self.peer_id, "lct": self.lct,
        })
    }
}

/// The public identity in `keys_dir`.
pub(crate) fn public(_keys_dir: &Path) -> Result<PublicView, CliError> {
    Err(CliError::not_built("the identity room"))
}

/// Whether `keys_dir` holds an identity.
pub(crate) fn exists(_keys_dir: &Path) -> bool {
    false
}

/// New random words.
pub(crate) fn new_words() -> Result<Zeroizing<String>, CliError> {
    Err(CliError::not_built("the identity room"))
}

/// Writes the key file and the public identity of `words` into `keys_dir`.
pub(crate) fn create(
    _keys_dir: &Path,
    _words: &str,
    _owner: &Owner,
    _passphrase: Option<&str>,
) -> Result<PublicView, CliError> {
    Err(CliError::not_built("the identity room"))
}
