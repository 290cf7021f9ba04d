//! `pools.json` beside the key file: the private pools' secrets, encrypted (ChaCha20-Poly1305) under a key that only the identity
//! gives. So they are as safe as the words: behind the passphrase where there is one. Written whole or not at all, for the
//! owner alone (0600). It must not know what a pool is for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use nostr::PublicKey;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::Identity;
use super::error::IdentityError;
use super::keyfile::{refuse_mode, write_whole};
use super::pool::{PoolSecret, is_pool_name};
use super::pool_book::{Epoch, POOLS_MAX, PoolBook, PrivatePool};

/// The file's name.
pub const POOLS_FILE: &str = "pools.json";

const FORMAT: &str = "legion-pools";
const VERSION: u32 = 1;
/// Every pool with every epoch and relay takes less; a larger file is foreign.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    format: String,
    v: u32,
    nonce: String,
    ciphertext: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    epochs: Vec<Secret>,
    relays: Vec<String>,
    inviter: String,
    joined_at_s: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    number: u32,
    secret: String,
    until_s: Option<u64>,
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// The pools kept in `dir`; without a file, none.
///
/// # Errors
/// `pool_file_invalid` for a file that is damaged, altered or of another identity; `key_permissions`, `key_io`.
pub fn load(dir: &Path, identity: &Identity) -> Result<PoolBook, IdentityError> {
    let path = dir.join(POOLS_FILE);
    let handle = match File::open(&path) {
        Ok(handle) => handle,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(PoolBook::default()),
        Err(error) => return Err(IdentityError::io(&path)(error)),
    };
    let meta = handle.metadata().map_err(IdentityError::io(&path))?;
    refuse_mode(&path, meta.permissions().mode(), 0o077)?;
    let mut bytes = Vec::new();
    handle
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(IdentityError::io(&path))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(invalid(&path, "it is too large"));
    }
    let sealed: Sealed = serde_json::from_slice(&bytes)
        .map_err(|_| invalid(&path, "it is not what legion writes"))?;
    if sealed.format != FORMAT {
        return Err(invalid(&path, "it is another program's file"));
    }
    if sealed.v != VERSION {
        return Err(invalid(
            &path,
            "it was written by another version of legion",
        ));
    }
    let plain = open(&path, &sealed, identity)?;
    let entries: BTreeMap<String, Entry> =
        serde_json::from_slice(&plain).map_err(|_| invalid(&path, "its content is damaged"))?;
    let pools = entries
        .into_iter()
        .map(|(name, entry)| {
            let pool =
                pool(&name, &entry).ok_or_else(|| invalid(&path, "its content is damaged"))?;
            Ok((name, pool))
        })
        .collect::<Result<BTreeMap<_, _>, IdentityError>>()?;
    match pools.len() <= POOLS_MAX {
        true => Ok(PoolBook { pools }),
        false => Err(invalid(&path, "it holds too many pools")),
    }
}

/// Replaces the file: a crash leaves the old one or the new one.
///
/// # Errors
/// `key_io`, `entropy_unavailable`.
pub fn save(dir: &Path, identity: &Identity, book: &PoolBook) -> Result<(), IdentityError> {
    let path = dir.join(POOLS_FILE);
    let entries: BTreeMap<&str, Entry> = book
        .iter()
        .map(|(name, pool)| (name, entry(pool)))
        .collect();
    // With room from the start, no growing buffer leaves a copy behind.
    let mut plain = Zeroizing::new(Vec::with_capacity(16_384 + 4_096 * entries.len()));
    serde_json::to_writer(&mut *plain, &entries)
        .map_err(|_| invalid(&path, "it cannot be written as JSON"))?;
    let mut nonce = [0u8; 12];
    getrandom::fill(&mut nonce).map_err(IdentityError::EntropyUnavailable)?;
    let ciphertext = cipher(identity)
        .encrypt(
            &Nonce::from(nonce),
            Payload {
                msg: &plain,
                aad: &associated(identity),
            },
        )
        .map_err(|_| IdentityError::DerivationFailed("ChaCha20-Poly1305"))?;
    let sealed = Sealed {
        format: FORMAT.to_owned(),
        v: VERSION,
        nonce: hex::encode(nonce),
        ciphertext: hex::encode(ciphertext),
    };
    let mut bytes = serde_json::to_vec_pretty(&sealed)
        .map_err(|_| invalid(&path, "it cannot be written as JSON"))?;
    bytes.push(b'\n');
    write_whole(&path, &bytes)
}

fn open(
    path: &Path,
    sealed: &Sealed,
    identity: &Identity,
) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let mut nonce = [0u8; 12];
    hex::decode_to_slice(&sealed.nonce, &mut nonce)
        .map_err(|_| invalid(path, "a field is not hex"))?;
    let ciphertext =
        hex::decode(&sealed.ciphertext).map_err(|_| invalid(path, "a field is not hex"))?;
    cipher(identity)
        .decrypt(
            &Nonce::from(nonce),
            Payload {
                msg: &ciphertext,
                aad: &associated(identity),
            },
        )
        .map(Zeroizing::new)
        .map_err(|_| invalid(path, "it was altered, or belongs to another identity"))
}

fn cipher(identity: &Identity) -> ChaCha20Poly1305 {
    ChaCha20Poly1305::new(&Key::from(*identity.pools_key()))
}

fn associated(identity: &Identity) -> Vec<u8> {
    format!("{FORMAT}/v{VERSION}|{}", identity.public().nostr).into_bytes()
}

fn entry(pool: &PrivatePool) -> Entry {
    let secret = |epoch: &Epoch| Secret {
        number: epoch.number,
        secret: hex::encode(epoch.secret.as_bytes()),
        until_s: epoch.until_s,
    };
    Entry {
        id: hex::encode(pool.id),
        epochs: pool.epochs.iter().map(secret).collect(),
        relays: pool.relays.clone(),
        inviter: pool.inviter.to_hex(),
        joined_at_s: pool.joined_at_s,
    }
}

fn pool(name: &str, entry: &Entry) -> Option<PrivatePool> {
    let mut id = [0u8; 16];
    hex::decode_to_slice(&entry.id, &mut id).ok()?;
    let epochs = entry
        .epochs
        .iter()
        .map(|epoch| {
            let mut secret = Zeroizing::new([0u8; 32]);
            hex::decode_to_slice(&epoch.secret, secret.as_mut_slice()).ok()?;
            Some(Epoch {
                number: epoch.number,
                secret: PoolSecret::from_bytes(*secret),
                until_s: epoch.until_s,
            })
        })
        .collect::<Option<Vec<_>>>()?;
    let pool = PrivatePool {
        id,
        epochs,
        relays: entry.relays.clone(),
        inviter: PublicKey::from_hex(&entry.inviter).ok()?,
        joined_at_s: entry.joined_at_s,
    };
    let whole = is_pool_name(name) && pool.current().is_some_and(|epoch| epoch.until_s.is_none());
    whole.then_some(pool)
}

fn invalid(path: &Path, reason: &str) -> IdentityError {
    IdentityError::PoolFileInvalid {
        path: path.to_path_buf(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    //! The secrets come back after a restart, and nobody without the words reads them in the file.
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::identity::{Lct, Mnemonic};

    fn identity() -> Identity {
        let words = Mnemonic::generate().unwrap();
        Identity::derive(&words, Lct::new("ada", "attic", "worker").unwrap(), 0).unwrap()
    }

    fn book(identity: &Identity) -> PoolBook {
        let me = identity.nostr().public_key();
        let mut book = PoolBook::default();
        book.create("family", me, vec!["wss://a.example".into()], 100)
            .unwrap();
        book.rotate("family", 60, 200).unwrap();
        book
    }

    #[test]
    fn what_was_saved_is_loaded_and_the_file_shows_no_secret() {
        let (dir, identity) = (tempfile::tempdir().unwrap(), identity());
        assert_eq!(load(dir.path(), &identity).unwrap().iter().count(), 0);
        let book = book(&identity);
        save(dir.path(), &identity, &book).unwrap();
        let loaded = load(dir.path(), &identity).unwrap();
        let (before, after) = (book.get("family").unwrap(), loaded.get("family").unwrap());
        let facts = |pool: &PrivatePool| {
            let epochs = pool.epochs.iter();
            let epochs: Vec<_> = epochs
                .map(|e| (e.number, *e.secret.as_bytes(), e.until_s))
                .collect();
            (pool.id, epochs, pool.relays.clone(), pool.inviter)
        };
        assert_eq!(facts(before), facts(after));
        let path = dir.path().join(POOLS_FILE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("family") && !text.contains("a.example"));
        for epoch in &before.epochs {
            assert!(!text.contains(&hex::encode(epoch.secret.as_bytes())));
        }
    }

    #[test]
    fn an_altered_a_foreign_and_an_open_file_are_refused() {
        let (dir, owner) = (tempfile::tempdir().unwrap(), identity());
        let path = dir.path().join(POOLS_FILE);
        save(dir.path(), &owner, &book(&owner)).unwrap();
        let code = |identity: &Identity| load(dir.path(), identity).unwrap_err().code();
        assert_eq!(code(&identity()), "pool_file_invalid");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(code(&owner), "key_permissions");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for damaged in [
            String::new(),
            text.replace("\"v\": 1", "\"v\": 2"),
            text.replace(FORMAT, "other"),
            text.replacen("\"ciphertext\": \"", "\"ciphertext\": \"00", 1),
            " ".repeat(MAX_FILE_BYTES as usize + 1),
        ] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(code(&owner), "pool_file_invalid");
        }
    }
}
