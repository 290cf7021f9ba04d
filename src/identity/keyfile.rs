//! Keys at rest: `identity.json` holds the seed words, encrypted under a passphrase (argon2id, then ChaCha20-Poly1305), and
//! `public.json` beside it what everybody may know. Both are written whole or not at all, for the owner alone (0600 in 0700).
//! It must not know where the directory lies or how a passphrase was asked for. Opening takes about 0.2 s: that is the point.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::error::IdentityError;
use super::keys::{Identity, PublicIdentity};
use super::lct::Lct;
use super::mnemonic::Mnemonic;

/// The key file's name.
pub const KEY_FILE: &str = "identity.json";
/// The public identity's name.
pub const PUBLIC_FILE: &str = "public.json";

const FORMAT: &str = "legion-key";
const VERSION: u32 = 1;
/// Both files are below 2 kB; a larger one is foreign.
const MAX_FILE_BYTES: u64 = 65_536;
/// What a file may ask of argon2id before it is refused: a hostile file must not take the machine's memory.
const MAX_COST: KdfCost = KdfCost {
    memory_kib: 1_048_576,
    passes: 16,
    lanes: 8,
};

/// What goes into the file beside the seed; authenticated by the encryption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The name of the identity.
    pub lct: Lct,
    /// Rotation count, 0 for a new identity.
    pub epoch: u32,
    /// Unix seconds.
    pub created_at_s: u64,
}

/// The price of one passphrase guess (argon2id, RFC 9106).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KdfCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for KdfCost {
    fn default() -> Self {
        Self {
            memory_kib: 65_536,
            passes: 3,
            lanes: 1,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    format: String,
    v: u32,
    lct: Lct,
    epoch: u32,
    created_at_s: u64,
    protection: Protection,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Protection {
    /// The words as they are, because the owner chose `--no-passphrase`.
    None { mnemonic: Words },
    /// Hex fields.
    Argon2id {
        cost: KdfCost,
        salt: String,
        nonce: String,
        ciphertext: String,
    },
}

/// Seed words on their way to or from the file; erased when dropped.
struct Words(Zeroizing<String>);

impl Serialize for Words {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Zeroizing::new(String::deserialize(deserializer)?)))
    }
}

/// Writes a new key file and its public half into `dir` (made if missing, set to 0700), and returns the identity. Without a
/// passphrase the words are stored readable for the owner. An existing key file is never overwritten (`key_exists`); the caller
/// holds the home's lock.
pub fn create(
    dir: &Path,
    mnemonic: &Mnemonic,
    meta: Meta,
    passphrase: Option<&str>,
) -> Result<Identity, IdentityError> {
    create_with_cost(dir, mnemonic, meta, passphrase, KdfCost::default())
}

/// As [`create`], with a chosen price of a passphrase guess.
pub fn create_with_cost(
    dir: &Path,
    mnemonic: &Mnemonic,
    meta: Meta,
    passphrase: Option<&str>,
    cost: KdfCost,
) -> Result<Identity, IdentityError> {
    let path = dir.join(KEY_FILE);
    if path.symlink_metadata().is_ok() {
        return Err(IdentityError::KeyExists(path));
    }
    let identity = Identity::derive(mnemonic, meta.lct.clone(), meta.epoch)?;
    let protection = match passphrase {
        None => Protection::None {
            mnemonic: Words(Zeroizing::new(mnemonic.phrase().to_owned())),
        },
        Some(passphrase) => encrypt(mnemonic, &meta, passphrase, cost)?,
    };
    let file = KeyFile {
        format: FORMAT.to_owned(),
        v: VERSION,
        lct: meta.lct,
        epoch: meta.epoch,
        created_at_s: meta.created_at_s,
        protection,
    };
    make_private_dir(dir)?;
    write_public(dir, identity.public())?;
    // The key file comes last: where it is, the identity is whole.
    write_whole(&path, &to_json(&file, &path)?)?;
    Ok(identity)
}

/// Opens the key file in `dir`. Fails with `key_missing`, `key_permissions` (others can read the file, or write the directory),
/// `key_file_invalid`, `passphrase_needed` or `passphrase_wrong`. A public half that is missing or does not fit is written anew.
pub fn open(dir: &Path, passphrase: Option<&str>) -> Result<Identity, IdentityError> {
    let (path, file) = read_key_file(dir)?;
    let meta = Meta {
        lct: file.lct,
        epoch: file.epoch,
        created_at_s: file.created_at_s,
    };
    let (words, _) = unlock(&path, file.protection, &meta, passphrase)?;
    let mnemonic = Mnemonic::parse(&words).map_err(|error| invalid(&path, &error.to_string()))?;
    let mut identity = Identity::derive(&mnemonic, meta.lct, meta.epoch)?;
    match public(dir) {
        Ok(known)
            if known.id_fields() == identity.public().id_fields() && known.epoch == meta.epoch =>
        {
            identity.set_binding(known.binding);
        }
        _ => write_public(dir, identity.public())?,
    }
    Ok(identity)
}

/// Raises the epoch of the identity in `dir` to one above its own and above `known`, and returns it. The words stay, encrypted as
/// before under the same passphrase. Fails as [`open`] does, and with `derivation_failed` when there is no higher epoch.
pub fn raise_epoch(
    dir: &Path,
    passphrase: Option<&str>,
    known: u32,
) -> Result<Identity, IdentityError> {
    let (path, file) = read_key_file(dir)?;
    let meta = Meta {
        lct: file.lct,
        epoch: file.epoch.max(known).saturating_add(1),
        created_at_s: file.created_at_s,
    };
    let before = Meta {
        epoch: file.epoch,
        ..meta.clone()
    };
    let (words, cost) = unlock(&path, file.protection, &before, passphrase)?;
    let mnemonic = Mnemonic::parse(&words).map_err(|error| invalid(&path, &error.to_string()))?;
    let identity = Identity::derive(&mnemonic, meta.lct.clone(), meta.epoch)?;
    let protection = match (cost, passphrase) {
        (Some(cost), Some(passphrase)) => encrypt(&mnemonic, &meta, passphrase, cost)?,
        _ => Protection::None {
            mnemonic: Words(words),
        },
    };
    let raised = KeyFile {
        format: FORMAT.to_owned(),
        v: VERSION,
        lct: meta.lct,
        epoch: meta.epoch,
        created_at_s: meta.created_at_s,
        protection,
    };
    write_whole(&path, &to_json(&raised, &path)?)?;
    write_public(dir, identity.public())?;
    Ok(identity)
}

/// The words, and what a guess at their passphrase costs, if they have one.
fn unlock(
    path: &Path,
    protection: Protection,
    meta: &Meta,
    passphrase: Option<&str>,
) -> Result<(Zeroizing<String>, Option<KdfCost>), IdentityError> {
    match protection {
        Protection::None { mnemonic } => Ok((mnemonic.0, None)),
        Protection::Argon2id {
            cost,
            salt,
            nonce,
            ciphertext,
        } => {
            let passphrase = passphrase.ok_or(IdentityError::PassphraseNeeded)?;
            let boxed = Sealed {
                cost,
                salt: hex_field(path, &salt)?,
                nonce: hex_field(path, &nonce)?,
                ciphertext: hex_field(path, &ciphertext)?,
            };
            Ok((boxed.open(path, meta, passphrase)?, Some(cost)))
        }
    }
}

/// Puts a file as it is into an identity's directory, or one beside it (made if missing, 0700), for the owner alone (0600): whole or
/// not at all. Fails with `key_io`.
pub fn install(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    if let Some(dir) = path.parent() {
        make_private_dir(dir)?;
    }
    write_whole(path, bytes)
}

/// The public half, without a passphrase. Fails with `key_missing` or `key_file_invalid`.
pub fn public(dir: &Path) -> Result<PublicIdentity, IdentityError> {
    let path = dir.join(PUBLIC_FILE);
    let bytes = read_capped(&path, &open_file(&path)?)?;
    serde_json::from_slice(&bytes).map_err(|error| invalid(&path, &place(&error)))
}

/// Replaces the public half, for instance after a new binding was signed.
pub fn write_public(dir: &Path, public: &PublicIdentity) -> Result<(), IdentityError> {
    let path = dir.join(PUBLIC_FILE);
    write_whole(&path, &to_json(public, &path)?)
}

/// Whether the key file needs a passphrase. Fails as [`open`] does, before the passphrase.
pub fn is_encrypted(dir: &Path) -> Result<bool, IdentityError> {
    Ok(matches!(
        read_key_file(dir)?.1.protection,
        Protection::Argon2id { .. }
    ))
}

/// The encrypted words with what is needed to open them, decoded.
struct Sealed {
    cost: KdfCost,
    salt: Vec<u8>,
    nonce: Vec<u8>,
    ciphertext: Vec<u8>,
}

impl Sealed {
    fn open(
        &self,
        path: &Path,
        meta: &Meta,
        passphrase: &str,
    ) -> Result<Zeroizing<String>, IdentityError> {
        if self.cost.memory_kib > MAX_COST.memory_kib
            || self.cost.passes > MAX_COST.passes
            || self.cost.lanes > MAX_COST.lanes
        {
            return Err(invalid(
                path,
                "it asks for more memory or time than this version allows",
            ));
        }
        let nonce: [u8; 12] = self
            .nonce
            .as_slice()
            .try_into()
            .map_err(|_| invalid(path, "the nonce has a wrong length"))?;
        let key = stretch(passphrase, &self.salt, self.cost)
            .map_err(|()| invalid(path, "its argon2id parameters are not valid"))?;
        let cipher = ChaCha20Poly1305::new(&Key::from(*key));
        let aad = associated(meta, self.cost, &self.salt);
        let opened = cipher
            .decrypt(
                &Nonce::from(nonce),
                Payload {
                    msg: &self.ciphertext,
                    aad: &aad,
                },
            )
            .map_err(|_| IdentityError::PassphraseWrong)?;
        let opened = Zeroizing::new(opened);
        let words =
            std::str::from_utf8(&opened).map_err(|_| invalid(path, "the words are not text"))?;
        Ok(Zeroizing::new(words.to_owned()))
    }
}

fn encrypt(
    mnemonic: &Mnemonic,
    meta: &Meta,
    passphrase: &str,
    cost: KdfCost,
) -> Result<Protection, IdentityError> {
    if passphrase.is_empty() {
        return Err(IdentityError::PassphraseNeeded);
    }
    let mut salt = [0u8; 16];
    let mut nonce = [0u8; 12];
    getrandom::fill(&mut salt).map_err(IdentityError::EntropyUnavailable)?;
    getrandom::fill(&mut nonce).map_err(IdentityError::EntropyUnavailable)?;
    let key = stretch(passphrase, &salt, cost)
        .map_err(|()| IdentityError::DerivationFailed("argon2id"))?;
    let aad = associated(meta, cost, &salt);
    let ciphertext = ChaCha20Poly1305::new(&Key::from(*key))
        .encrypt(
            &Nonce::from(nonce),
            Payload {
                msg: mnemonic.phrase().as_bytes(),
                aad: &aad,
            },
        )
        .map_err(|_| IdentityError::DerivationFailed("ChaCha20-Poly1305"))?;
    Ok(Protection::Argon2id {
        cost,
        salt: hex::encode(salt),
        nonce: hex::encode(nonce),
        ciphertext: hex::encode(ciphertext),
    })
}

fn stretch(passphrase: &str, salt: &[u8], cost: KdfCost) -> Result<Zeroizing<[u8; 32]>, ()> {
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(|_| ())?;
    let mut key = Zeroizing::new([0u8; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, key.as_mut_slice())
        .map_err(|_| ())?;
    Ok(key)
}

/// Everything readable in the file is authenticated: nobody can rename an identity or turn its epoch back.
fn associated(meta: &Meta, cost: KdfCost, salt: &[u8]) -> Vec<u8> {
    let Meta {
        lct,
        epoch,
        created_at_s,
    } = meta;
    let KdfCost {
        memory_kib,
        passes,
        lanes,
    } = cost;
    format!(
        "{FORMAT}/v{VERSION}|{lct}|{epoch}|{created_at_s}|{memory_kib}|{passes}|{lanes}|{}",
        hex::encode(salt)
    )
    .into_bytes()
}

fn read_key_file(dir: &Path) -> Result<(PathBuf, KeyFile), IdentityError> {
    let path = dir.join(KEY_FILE);
    let handle = open_file(&path)?;
    // Who may write the directory may put another file in its place.
    refuse_mode(
        dir,
        fs::metadata(dir)
            .map_err(IdentityError::io(dir))?
            .permissions()
            .mode(),
        0o022,
    )?;
    // The handle is asked, not the path: what was checked is what is read.
    refuse_mode(
        &path,
        handle
            .metadata()
            .map_err(IdentityError::io(&path))?
            .permissions()
            .mode(),
        0o077,
    )?;
    let bytes = read_capped(&path, &handle)?;
    let file: KeyFile =
        serde_json::from_slice(&bytes).map_err(|error| invalid(&path, &place(&error)))?;
    if file.format != FORMAT {
        return Err(invalid(&path, "it is another program's file"));
    }
    if file.v != VERSION {
        return Err(invalid(
            &path,
            "it was written by another version of legion",
        ));
    }
    Ok((path, file))
}

pub(super) fn refuse_mode(path: &Path, mode: u32, forbidden: u32) -> Result<(), IdentityError> {
    if mode & forbidden != 0 {
        return Err(IdentityError::KeyPermissions {
            path: path.to_path_buf(),
            mode: mode & 0o7777,
        });
    }
    Ok(())
}

fn open_file(path: &Path) -> Result<File, IdentityError> {
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => IdentityError::KeyMissing(path.to_path_buf()),
        _ => IdentityError::io(path)(error),
    })
}

fn read_capped(path: &Path, mut handle: &File) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let length = handle.metadata().map_err(IdentityError::io(path))?.len();
    if length > MAX_FILE_BYTES {
        return Err(invalid(path, "it is too large"));
    }
    // One allocation of the right size: a growing vector would leave copies of the words in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length as usize + 1));
    Read::by_ref(&mut handle)
        .take(MAX_FILE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(IdentityError::io(path))?;
    Ok(bytes)
}

fn make_private_dir(dir: &Path) -> Result<(), IdentityError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(IdentityError::io(dir))?;
    // It may have been there before, or been narrowed less than we want by the umask.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(IdentityError::io(dir))
}

/// Writes a file so that a crash leaves the old one or the new one: temporary file, fsync, rename, fsync of the directory.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let unique = getrandom::u64().map_err(IdentityError::EntropyUnavailable)?;
    let temporary = path.with_extension(format!("{unique:016x}.tmp"));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    })();
    written.map_err(|error| {
        // Best effort: the error that matters is the first one.
        let _ = fs::remove_file(&temporary);
        IdentityError::io(path)(error)
    })
}

fn to_json(value: &impl Serialize, path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    serde_json::to_writer_pretty(&mut *bytes, value)
        .map_err(|error| invalid(path, &place(&error)))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn hex_field(path: &Path, text: &str) -> Result<Vec<u8>, IdentityError> {
    hex::decode(text).map_err(|_| invalid(path, "a field is not hex"))
}

fn invalid(path: &Path, reason: &str) -> IdentityError {
    IdentityError::KeyFileInvalid {
        path: path.to_path_buf(),
        reason: reason.to_owned(),
    }
}

/// Where JSON went wrong, without quoting it: serde's own text can repeat a value, and the value can be a seed word.
fn place(error: &serde_json::Error) -> String {
    format!(
        "it is not what legion writes (line {}, column {})",
        error.line(),
        error.column()
    )
}

#[cfg(test)]
mod tests;
