//! One file that holds a home: the store as of one moment, the settings, the relay lists, the pools' secrets (encrypted under
//! the words, as they lie in the home) and, if the owner wants, the key file. It is itself a store, with the other files as rows,
//! so whatever opens a store verifies it, and a newer one is refused as any newer store is.
//!
//! What is restored is marked: the decisions let it do nothing before it has asked its peers what it has forgotten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::error::NodeError;
use super::rows::{self, Parcel};
use super::start::BINDING_S;
use crate::config::{Home, TEMPLATE, TEMPLATE_PUBLIC};
use crate::domain::Lineage;
use crate::domain::recovering::Recovery;
use crate::domain::step::{Addressee, Change, Row};
use crate::identity::keyfile::{self, KEY_FILE, PUBLIC_FILE};
use crate::identity::pool_file::POOLS_FILE;
use crate::identity::{Identity, IdentityError};
use crate::store::{
    Order, Rows, SCHEMA_VERSION, Span, Store, StoreError, StoreOptions, Table, Txn,
};
use crate::wire::binding::Binding;
use crate::wire::message::{Body, News};

const MANIFEST: &[u8] = b"backup";
const FILE: &[u8] = b"file/";
const FORMAT: &str = "legion-backup";
const VERSION: u32 = 1;
/// Largest of the files beside the store.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Most of them.
const FILES_MAX: usize = 256;
/// A store that is being restored.
const BUILDING: &str = "store.redb.restoring";
/// Payloads on their way hold one-time secrets, which live nowhere but in the home that drew them; a restored node asks anew.
const NOT_KEPT: [Table; 2] = [Table::Moves, Table::Pieces];

/// What a backup says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u32,
    npub: String,
    epoch: u32,
    at_ms: u64,
    schema: u64,
    with_keys: bool,
    program: String,
    /// SHA-256 over every row of the file and this page without it, hex.
    #[serde(default)]
    sha256: String,
}

/// Why there is no backup, or none was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The identity's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The node's.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A file cannot be read or written.
    #[error("{}: {reason}; check that the path exists, its mode, and the space left on its disk", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// The file is a store, or not even that.
    #[error("{} is not a backup: {reason}; name a file that `legion backup` wrote", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The home has a store.
    #[error(
        "the home {} has a store already; restore into a new --home, or move store.redb away", home.display()
    )]
    StoreExists {
        /// Which.
        home: PathBuf,
    },
    /// The home's keys are another identity's.
    #[error("the backup belongs to {backup}, the keys in this home to {home}; use another --home")]
    Foreign {
        /// Whose the backup is.
        backup: String,
        /// Whose the keys are.
        home: String,
    },
    /// There are no keys in the backup and none in the home.
    #[error(
        "the backup was made without keys and the home has none; make them first with `legion init --mnemonic-file F`, then restore"
    )]
    Keyless,
}

impl BackupError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::Identity(error) => error.code(),
            Self::Node(error) => error.code(),
            Self::Io { .. } => "io",
            Self::Invalid { .. } => "backup_invalid",
            Self::StoreExists { .. } => "store_exists",
            Self::Foreign { .. } => "backup_foreign",
            Self::Keyless => "backup_keyless",
        }
    }
}

fn io_at(path: &Path) -> impl Fn(io::Error) -> BackupError {
    move |reason| BackupError::Io {
        path: path.to_owned(),
        reason,
    }
}

/// Writes a backup of `home`, whose open store this is, into the new file `target` (0600; it appears whole or not at all).
/// Other work on the store goes on meanwhile. `now_ms` is Unix milliseconds, from before the call. Answers
/// `{file,bytes,npub,at_ms,rows,with_keys}`.
///
/// # Errors
/// `store_target_exists`, `store_target_unusable`, `io`, `key_missing`, and the store's.
pub fn write(
    home: &Home,
    store: &Store,
    target: &Path,
    with_keys: bool,
    now_ms: u64,
) -> Result<Value, BackupError> {
    let public = keyfile::public(&home.keys_dir())?;
    let mut manifest = Manifest {
        format: FORMAT.to_owned(),
        version: VERSION,
        npub: public.npub.clone(),
        epoch: public.epoch,
        at_ms: now_ms,
        schema: SCHEMA_VERSION,
        with_keys,
        program: concat!("legion/", env!("CARGO_PKG_VERSION")).to_owned(),
        sha256: String::new(),
    };
    let files = files(home, with_keys)?;
    let rows = store.backup_to(target, &NOT_KEPT, |txn| {
        for (name, bytes) in &files {
            txn.put_bytes(Table::Meta, &[FILE, name.as_bytes()].concat(), bytes)?;
        }
        manifest.sha256 = digest(txn, &manifest)?;
        txn.put(Table::Meta, MANIFEST, &manifest)
    })?;
    let bytes = fs::metadata(target).map_err(io_at(target))?.len();
    Ok(json!({
        "file": target.display().to_string(), "bytes": bytes, "npub": public.npub, "at_ms": now_ms,
        "rows": rows, "with_keys": with_keys,
    }))
}

/// What a damaged backup does not match. The store's own page is left out: it follows the program that opens the file.
fn digest(rows: &impl Rows, manifest: &Manifest) -> Result<String, StoreError> {
    let mut hash = Sha256::new();
    for table in Table::ALL {
        rows.visit(table, &Span::all(), Order::Ascending, &mut |key, body| {
            let apart = table == Table::Meta && (key == MANIFEST || key == b"schema");
            if !apart {
                for part in [table.name().as_bytes(), key, body] {
                    hash.update((part.len() as u64).to_be_bytes());
                    hash.update(part);
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    let page = Manifest {
        sha256: String::new(),
        ..manifest.clone()
    };
    hash.update(serde_json::to_vec(&page).unwrap_or_default());
    Ok(hex::encode(hash.finalize()))
}

/// That no restoration of this home was cut off: what it had done so far would look like an identity that never dealt with anybody.
///
/// # Errors
/// `restore_unfinished`.
pub fn refuse_unfinished(home: &Home) -> Result<(), NodeError> {
    let building = home.root().join(BUILDING);
    let cut_off = building.exists() && !home.store_file().exists();
    match cut_off {
        true => Err(NodeError::Unfinished { building }),
        false => Ok(()),
    }
}

/// Bytes of a file, erased when dropped: it may hold the words.
type Bytes = Zeroizing<Vec<u8>>;

/// The files beside the store, by their paths in the home.
fn files(home: &Home, with_keys: bool) -> Result<Vec<(String, Bytes)>, BackupError> {
    let mut names = vec![
        "config/legion.toml".to_owned(),
        format!("keys/{PUBLIC_FILE}"),
        format!("keys/{POOLS_FILE}"),
    ];
    if with_keys {
        names.push(format!("keys/{KEY_FILE}"));
    }
    let lists = fs::read_dir(home.relays_dir()).into_iter().flatten();
    let lists = lists.flatten().map(|entry| entry.file_name());
    let lists = lists.filter_map(|name| name.into_string().ok());
    names.extend(lists.map(|name| format!("relays/{name}")));
    names.retain(|name| is_kept(name));
    names.truncate(FILES_MAX);
    let mut files = Vec::new();
    for name in names {
        let path = home.root().join(&name);
        match read_capped(&path) {
            Ok(bytes) => files.push((name, bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_at(&path)(error)),
        }
    }
    Ok(files)
}

/// Whether a backup holds a file of this path, and a restoration writes it: nothing else in a home is the owner's word.
fn is_kept(name: &str) -> bool {
    let list = name.strip_prefix("relays/").is_some_and(|list| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        list.ends_with(".toml") && !list.starts_with('.') && list.bytes().all(plain)
    });
    let known = ["config/legion.toml"].contains(&name)
        || (name.strip_prefix("keys/"))
            .is_some_and(|k| [KEY_FILE, PUBLIC_FILE, POOLS_FILE].contains(&k));
    list || known
}

fn read_capped(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.min(MAX_FILE_BYTES) as usize + 1));
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("it is too large for a backup"));
    }
    Ok(bytes)
}

/// Restores the backup `file` into `home`, which has no store; the caller holds the home's lock. Keys come from the backup,
/// unless the home has them; settings that the owner has changed stay. The identity's epoch is raised, and the store marked, so that
/// its node first asks. `passphrase` is asked for one if the key file needs it. Answers
/// `{restored,npub,epoch,since_ms,rows,kept}`; `kept` are files that were left as they are.
///
/// A crash in between leaves a home without a store: the same command begins again.
///
/// # Errors
/// `store_exists`, `backup_invalid`, `backup_foreign`, `backup_keyless`, `passphrase_wrong` and the like.
pub fn restore<E: From<BackupError>>(
    home: &Home,
    file: &Path,
    now_ms: u64,
    passphrase: impl FnOnce() -> Result<Zeroizing<String>, E>,
) -> Result<Value, E> {
    let building = home.root().join(BUILDING);
    let begun_before = building.exists();
    // redb does not expect what a bad disk makes of its pages.
    let began = catch_unwind(AssertUnwindSafe(|| begin(home, file, &building)));
    let began = began.unwrap_or_else(|_| {
        Err(BackupError::Invalid {
            path: file.to_owned(),
            reason: "its pages are damaged".to_owned(),
        })
    });
    let began = began.map_err(|error| match error {
        BackupError::Store(StoreError::Invalid { reason }) => BackupError::Invalid {
            path: file.to_owned(),
            reason,
        },
        other => other,
    });
    let began = began.inspect_err(|error| {
        // Files of the backup may be in place already, now or since an earlier try: then the mark that this is no home stays.
        let placed = matches!(error, BackupError::Io { .. } | BackupError::Identity(_));
        if !(placed || begun_before) {
            let _ = fs::remove_file(&building);
        }
    })?;
    let keys = home.keys_dir();
    let encrypted = keyfile::is_encrypted(&keys).map_err(BackupError::from)?;
    let passphrase = encrypted.then(passphrase).transpose()?;
    let identity = raise(
        &keys,
        passphrase.as_ref().map(|p| p.as_str()),
        &began.manifest,
        began.known_epoch,
    )?;
    Ok(began.finish(home, &identity, now_ms)?)
}

/// A copy of the backup in the home, opened, with the other files in place.
struct Begun {
    building: PathBuf,
    store: Store,
    manifest: Manifest,
    /// Of keys that a peer has shown to the home that was backed up.
    known_epoch: u32,
    kept: Vec<String>,
}

fn begin(home: &Home, file: &Path, building: &Path) -> Result<Begun, BackupError> {
    if home.store_file().symlink_metadata().is_ok() {
        return Err(BackupError::StoreExists {
            home: home.root().to_owned(),
        });
    }
    let invalid = |reason: &str| BackupError::Invalid {
        path: file.to_owned(),
        reason: reason.to_owned(),
    };
    // The backup itself is only read: opening a store may write to it.
    copy(file, building)?;
    let store = Store::open(building, StoreOptions::default())?;
    let view = store.view()?;
    let manifest: Manifest = (view.get(Table::Meta, MANIFEST)?)
        .ok_or_else(|| invalid("it is a store that no backup made"))?;
    if manifest.format != FORMAT || manifest.version > VERSION {
        return Err(invalid("it was written by another version of legion"));
    }
    if digest(&view, &manifest)? != manifest.sha256 {
        return Err(invalid("it is damaged: its checksum does not fit"));
    }
    let whose = view.get::<String>(Table::Meta, b"identity")?;
    if whose.is_some_and(|npub| npub != manifest.npub) {
        return Err(invalid("its parts belong to two identities"));
    }
    let files = view.range_bytes(Table::Meta, Span::prefix(FILE), FILES_MAX, Order::Ascending)?;
    let known_epoch = rows::instances(&view)?.behind.map_or(0, |b| b.epoch);
    drop(view);
    let files = files.into_iter().map(|(key, bytes)| {
        let name = String::from_utf8_lossy(key.get(FILE.len()..).unwrap_or_default());
        (name.into_owned(), Zeroizing::new(bytes))
    });
    let files: Vec<(String, Bytes)> = files.collect();
    if !files.iter().all(|(name, _)| is_kept(name)) {
        return Err(invalid("it holds a file that belongs into no home"));
    }
    let keys = home.keys_dir();
    if keys.join(KEY_FILE).exists() {
        is_of(&keyfile::public(&keys)?.npub, &manifest)?;
    } else if !files.iter().any(|(name, _)| name.ends_with(KEY_FILE)) {
        return Err(BackupError::Keyless);
    }
    let mut kept = Vec::new();
    for (name, bytes) in files {
        if !put_file(home, &name, &bytes)? {
            kept.push(name);
        }
    }
    Ok(Begun {
        building: building.to_owned(),
        store,
        manifest,
        known_epoch,
        kept,
    })
}

fn copy(from: &Path, to: &Path) -> Result<(), BackupError> {
    let mut source = File::open(from).map_err(io_at(from))?;
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut target = options.open(to).map_err(io_at(to))?;
    io::copy(&mut source, &mut target).map_err(io_at(to))?;
    target.sync_all().map_err(io_at(to))
}

/// Puts one file of a backup into the home; false if one of the owner's own stays.
fn put_file(home: &Home, name: &str, bytes: &[u8]) -> Result<bool, BackupError> {
    let path = home.root().join(name);
    let keys = name.starts_with("keys/");
    match fs::read(&path).map(Zeroizing::new) {
        Ok(there) => {
            // What `legion init` wrote is nobody's choice yet.
            let untouched = [TEMPLATE, TEMPLATE_PUBLIC]
                .map(str::as_bytes)
                .contains(&&there[..]);
            if there[..] == *bytes || (!untouched || keys) {
                return Ok(there[..] == *bytes);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_at(&path)(error)),
    }
    keyfile::install(&path, bytes)?;
    Ok(true)
}

fn raise(
    keys: &Path,
    passphrase: Option<&str>,
    manifest: &Manifest,
    known_epoch: u32,
) -> Result<Identity, BackupError> {
    is_of(&keyfile::open(keys, passphrase)?.public().npub, manifest)?;
    let above = manifest.epoch.max(known_epoch);
    Ok(keyfile::raise_epoch(keys, passphrase, above)?)
}

fn is_of(npub: &str, manifest: &Manifest) -> Result<(), BackupError> {
    if npub == manifest.npub {
        return Ok(());
    }
    Err(BackupError::Foreign {
        backup: manifest.npub.clone(),
        home: npub.to_owned(),
    })
}

impl Begun {
    fn finish(self, home: &Home, identity: &Identity, now_ms: u64) -> Result<Value, BackupError> {
        let rows = mark(&self.store, &self.manifest, identity, now_ms)?;
        drop(self.store);
        let target = home.store_file();
        // Last: where a store is, the restoration is whole.
        fs::rename(&self.building, &target).map_err(io_at(&target))?;
        File::open(home.root())
            .and_then(|dir| dir.sync_all())
            .map_err(io_at(&target))?;
        let public = identity.public();
        Ok(json!({
            "restored": true, "npub": public.npub, "epoch": public.epoch, "since_ms": self.manifest.at_ms,
            "rows": rows, "kept": self.kept,
        }))
    }
}

/// Makes a backup a store again: one that knows that it is old.
fn mark(
    store: &Store,
    manifest: &Manifest,
    identity: &Identity,
    now_ms: u64,
) -> Result<u64, BackupError> {
    let view = store.view()?;
    let outbox = rows::outbox(&view)?;
    let before: Option<Lineage> = rows::lineage(&view)?;
    let mut instances = rows::instances(&view)?;
    // Whoever else ran then is of a lower epoch now.
    instances.elsewhere = None;
    let files = view.keys(Table::Meta, Span::prefix(FILE), FILES_MAX, Order::Ascending)?;
    let mut count = 0;
    for table in Table::ALL {
        count += view.count(table)?;
    }
    count = count.saturating_sub(files.len() as u64 + 1);
    drop(view);
    // A machine that was set up anew may not know the time yet.
    let at_ms = now_ms.max(manifest.at_ms.saturating_add(60_000));
    let mut lineage = Lineage::restored(at_ms, identity.proof_keys());
    if let Some(before) = before {
        let next = before.numbers_above.saturating_add(256);
        lineage.numbers_above = lineage.numbers_above.max(next);
    }
    (lineage.since_ms, lineage.restored_ms) = (manifest.at_ms, now_ms);
    let recovery = Recovery {
        since_ms: manifest.at_ms,
        restored_ms: now_ms,
        open: true,
        ..Recovery::default()
    };
    let binding =
        Binding::sign_lasting(identity, now_ms / 1000 + BINDING_S).map_err(NodeError::from)?;
    let me = identity.public().nostr.clone();
    let body = json!({"since_ms": manifest.at_ms, "epoch": identity.public().epoch});
    let changes = [
        Change::Put(Row::Recovery(Box::new(recovery))),
        Change::Put(Row::Lineage(lineage)),
        Change::Put(Row::Instances(instances)),
        Change::Journal {
            kind: "restored".to_owned(),
            task: None,
            body,
        },
    ];
    store.write(|txn| {
        for (seq, parcel) in &outbox {
            keep_of(txn, *seq, parcel, &binding)?;
        }
        for key in files.iter().map(Vec::as_slice).chain([MANIFEST]) {
            txn.delete(Table::Meta, key)?;
        }
        rows::apply_all(txn, &me, now_ms, &changes)
    })?;
    Ok(count)
}

/// Of an old message to be sent, what may still be said once its reader has answered: what was signed and not an award, nor a
/// result, which is put together anew. Everything else has been said since, or no longer holds.
fn keep_of(
    txn: &mut Txn<'_>,
    seq: u64,
    parcel: &Parcel,
    binding: &Binding,
) -> Result<(), StoreError> {
    let mut kept = parcel.clone();
    kept.sends.retain(|send| {
        let said = match &send.body {
            Body::Decline(decline) => decline.award_no > 0,
            Body::Update(update) => {
                matches!(update.news, News::Failed { .. } | News::Canceled { .. })
            }
            Body::Accept(_)
            | Body::Cancel(_)
            | Body::Receipt(_)
            | Body::Refusal(_)
            | Body::Withdraw(_) => true,
            _ => false,
        };
        said && matches!(send.to, Addressee::Peer(_))
    });
    for send in &mut kept.sends {
        match &mut send.body {
            Body::Accept(accept) => accept.binding = binding.clone(),
            Body::Decline(decline) => decline.binding = Some(binding.clone()),
            _ => {}
        }
    }
    match kept.sends.is_empty() {
        true => txn.delete(Table::Outbox, &seq.to_be_bytes()).map(drop),
        false => txn.put(Table::Outbox, &seq.to_be_bytes(), &kept),
    }
}

/// Whether this store is a backup that was put into a home by hand: it would act as if nothing had been signed since.
///
/// # Errors
/// The store's.
pub fn is_unrestored(store: &Store) -> Result<bool, StoreError> {
    store.view()?.contains(Table::Meta, MANIFEST)
}

/// Opens the store of a home whose node does not run; the caller holds its lock.
///
/// # Errors
/// The store's; `io` where there is none.
pub fn open_at_rest(home: &Home) -> Result<Store, BackupError> {
    let path = home.store_file();
    if !path.exists() {
        let reason = io::Error::from(io::ErrorKind::NotFound);
        return Err(BackupError::Io { path, reason });
    }
    Ok(Store::open(path, StoreOptions::default())?)
}
