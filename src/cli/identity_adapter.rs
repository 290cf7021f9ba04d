//! The one file of this room that calls the identity room: it turns key files into what `init`, `id` and `up` need.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::error::CliError;
use crate::config::Owner;
use crate::identity::keyfile::{self, KEY_FILE, Meta};
use crate::identity::{Identity, IdentityError, Lct, Mnemonic, PublicIdentity};

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
    fn of(identity: &PublicIdentity) -> Self {
        Self {
            npub: identity.npub.clone(),
            nostr: identity.nostr.clone(),
            ed25519: identity.ed25519.clone(),
            x25519: identity.x25519.clone(),
            peer_id: identity.peer_id.clone(),
            lct: identity.lct.to_string(),
        }
    }

    /// `{npub,nostr,ed25519,x25519,peer_id,lct}`.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "npub": self.npub, "nostr": self.nostr, "ed25519": self.ed25519,
            "x25519": self.x25519, "peer_id": self.peer_id, "lct": self.lct,
        })
    }
}

/// The public identity in `keys_dir`.
pub(crate) fn public(keys_dir: &Path) -> Result<PublicView, CliError> {
    Ok(PublicView::of(&keyfile::public(keys_dir)?))
}

/// Whether `keys_dir` holds an identity.
pub(crate) fn exists(keys_dir: &Path) -> bool {
    keys_dir.join(KEY_FILE).symlink_metadata().is_ok()
}

/// Whether the key file in `keys_dir` needs a passphrase.
pub(crate) fn is_encrypted(keys_dir: &Path) -> Result<bool, CliError> {
    Ok(keyfile::is_encrypted(keys_dir)?)
}

/// The secret identity in `keys_dir`. The passphrase is erased after it.
pub(crate) fn open(
    keys_dir: &Path,
    passphrase: Option<Zeroizing<String>>,
) -> Result<Identity, CliError> {
    Ok(keyfile::open(
        keys_dir,
        passphrase.as_ref().map(|text| text.as_str()),
    )?)
}

/// New random words.
pub(crate) fn new_words() -> Result<Zeroizing<String>, CliError> {
    Ok(Zeroizing::new(Mnemonic::generate()?.phrase().to_owned()))
}

/// Whether these are the words of an identity, before anything is written.
pub(crate) fn check_words(words: &str) -> Result<(), CliError> {
    Mnemonic::parse(words)?;
    Ok(())
}

/// Writes the key file and the public identity of `words` into `keys_dir`.
pub(crate) fn create(
    keys_dir: &Path,
    words: &str,
    (owner, epoch): (&Owner, u32),
    passphrase: Option<&str>,
) -> Result<PublicView, CliError> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let meta = Meta {
        lct: Lct::new(&owner.name, &owner.node, &owner.role)?,
        epoch,
        created_at_s: since_1970.map(|time| time.as_secs()).unwrap_or_default(),
    };
    let mnemonic = Mnemonic::parse(words)?;
    let identity = keyfile::create(keys_dir, &mnemonic, meta, passphrase)?;
    Ok(PublicView::of(identity.public()))
}

impl From<IdentityError> for CliError {
    fn from(error: IdentityError) -> Self {
        Self::told(error.code(), &error)
    }
}
