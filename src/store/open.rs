//! Opening and creating the file: who may read it, is it ours, is it whole, do we know its version.
//!
//! Knows files and the schema row; must not know any other row.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Builder, Database};
use serde::{Deserialize, Serialize};

use super::StoreOptions;
use super::error::{self, StoreError};
use super::rows::{Rows as _, View};
use super::table::Table;
use super::txn::Txn;

/// The schema that this program writes. Raised when tables or keys change so that an older program must not touch them.
/// 2: the tables of transfers. 3: the mark of a restored store, which an older program would not heed: it would act on it.
pub const SCHEMA_VERSION: u64 = 3;

/// What is put back where an opening fails: the page that redb keeps its header in.
const HEAD_BYTES: usize = 4_096;

/// Key in [`Table::Meta`] of the row that says whose file this is.
const SCHEMA: &[u8] = b"schema";

/// Stands in every file of ours, so that another program's redb file is not taken for a store.
const APPLICATION: &str = "legion";

#[derive(Debug, Serialize, Deserialize)]
struct Schema {
    application: String,
    version: u64,
}

/// Opens the file, creating it if nothing is there.
pub(crate) fn open_or_create(
    path: &Path,
    options: &StoreOptions,
) -> Result<Arc<Database>, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(_) => open_existing(path, options),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, options),
        Err(error) => Err(StoreError::io("look for the store", &error)),
    }
}

/// Opens a file that must be there.
pub(crate) fn open_existing(
    path: &Path,
    options: &StoreOptions,
) -> Result<Arc<Database>, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| StoreError::io("open the store", &error))?;
    let length = file
        .metadata()
        .map_err(|error| StoreError::io("open the store", &error))?
        .len();
    if length == 0 {
        // A file of ours is never empty: it gets its name when it is whole. redb would begin a new store here.
        return Err(StoreError::invalid("the file is empty"));
    }
    restrict(&file)?;
    let mut head = [0; HEAD_BYTES];
    let head_bytes = (&file).read(&mut head).unwrap_or(0);
    let opened = begin(file, path, options);
    if let (Err(StoreError::Invalid { .. }), Some(head)) = (&opened, head.get(..head_bytes)) {
        // redb fits the header to the length of a cut file before it gives the file up: the evidence stays as it was.
        let put_back = OpenOptions::new().write(true).open(path);
        if let Err(error) = put_back.and_then(|mut file| file.write_all(head)) {
            tracing::warn!("the head of the broken store could not be put back: {error}");
        }
    }
    let database = opened?;
    check_schema(&database)?;
    Ok(database)
}

/// Creates the file under another name first, so that a crash cannot leave half a store under `path`. The file is
/// locked from the start, and renamed while open, so that of two creators one wins and the other is told.
pub(crate) fn create(path: &Path, options: &StoreOptions) -> Result<Arc<Database>, StoreError> {
    let building = building_name(path);
    let database = match begin(new_file(&building)?, &building, options) {
        // What a crash left behind is worth nothing: begin again.
        Err(StoreError::Invalid { .. }) => {
            remove(&building)?;
            begin(new_file(&building)?, &building, options)?
        }
        other => other?,
    };
    if path.exists() {
        // Somebody finished between our look and our lock. The file under `building` is ours, made after theirs.
        drop(database);
        remove(&building)?;
        return open_existing(path, options);
    }
    write_schema(&database)?;
    fs::rename(&building, path).map_err(|error| StoreError::io("name the store", &error))?;
    sync_directory(path)?;
    Ok(database)
}

/// `path` with `.new` after it.
pub(crate) fn building_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

fn new_file(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options
        .open(path)
        .map_err(|error| StoreError::io("create the store", &error))?;
    restrict(&file)?;
    Ok(file)
}

/// Takes away what group and others may do: a home copied by hand often arrives readable by all.
fn restrict(file: &File) -> Result<(), StoreError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(|error| StoreError::io("restrict the store to its owner", &error))?;
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

fn remove(path: &Path) -> Result<(), StoreError> {
    fs::remove_file(path).map_err(|error| StoreError::io("remove an unfinished file", &error))
}

/// A new name is durable only when its directory is.
pub(crate) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    #[cfg(unix)]
    {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| StoreError::io("make the store's name durable", &error))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

fn begin(file: File, path: &Path, options: &StoreOptions) -> Result<Arc<Database>, StoreError> {
    let mut builder = Builder::new();
    builder.set_cache_size(options.cache_bytes);
    #[cfg(any(feature = "crash-points", debug_assertions))]
    if let Some(plan) = &options.fault {
        let backend = super::fault::FaultyDisk::new(file, plan.clone())
            .map_err(|error| error::opening(path, error))?;
        return builder
            .create_with_backend(backend)
            .map(Arc::new)
            .map_err(|error| error::opening(path, error));
    }
    builder
        .create_file(file)
        .map(Arc::new)
        .map_err(|error| error::opening(path, error))
}

fn write_schema(database: &Database) -> Result<(), StoreError> {
    let transaction = database
        .begin_write()
        .map_err(error::redb("create the tables"))?;
    let mut txn = Txn::new(&transaction, Vec::new());
    for table in Table::ALL {
        txn.create(table)?;
    }
    let schema = Schema {
        application: APPLICATION.to_owned(),
        version: SCHEMA_VERSION,
    };
    txn.put(Table::Meta, SCHEMA, &schema)?;
    txn.finish()?;
    transaction
        .commit()
        .map_err(error::redb("create the tables"))
}

fn check_schema(database: &Arc<Database>) -> Result<(), StoreError> {
    let schema = View::new(database.clone())?.get::<Schema>(Table::Meta, SCHEMA)?;
    match schema {
        Some(schema) if schema.application != APPLICATION => Err(StoreError::invalid(
            "the file belongs to another application",
        )),
        Some(schema) if schema.version > SCHEMA_VERSION => Err(StoreError::Newer {
            what: "its schema".to_owned(),
            found: schema.version,
            known: SCHEMA_VERSION,
        }),
        // An older file: only tables were added since. The tables and the new version come in one transaction.
        Some(schema) if schema.version < SCHEMA_VERSION => write_schema(database),
        Some(_) => Ok(()),
        None => Err(StoreError::invalid(
            "the file is a redb database, but not a legion store",
        )),
    }
}
