//! The one file of this room that calls `node`, `relay`, `labor` and `wire`: what the commands need of them, as plain values.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value;

use super::error::CliError;
use crate::config::Home;
#[cfg(feature = "relay")]
use crate::relay::{RelayConfig, RelayLimits};

/// The skills this program was built with: objects with `id`, `name`, `description`, `tags`, `input_schema`, `output_schema`,
/// `unit_price_mc` and `implementation`.
pub(crate) fn catalog() -> Vec<Value> {
    let catalog = crate::labor::skills::catalog();
    catalog
        .iter()
        .filter_map(|info| serde_json::to_value(info).ok())
        .collect()
}

/// Of those, what this machine can do with the models registered in this folder.
pub(crate) fn offered(models: &Path) -> Vec<Value> {
    let offered = crate::labor::skills::offered(models);
    offered
        .iter()
        .filter_map(|info| serde_json::to_value(info).ok())
        .collect()
}

/// That no skill of the owner's hides a built-in one or is shown this home.
pub(crate) fn check_own_skills(
    config: &crate::config::Config,
    home: &crate::config::Home,
) -> Result<(), CliError> {
    Ok(crate::node::check_own_skills(config, home)?)
}

/// Of the owner's own skills, those that cannot be started: `{id,code,message}` each.
pub(crate) fn own_skill_warnings(config: &crate::config::Config) -> Vec<Value> {
    crate::node::own_skill_warnings(config)
}

/// The owner's own skills, as their programs describe them now, each with its `sandbox`; of one that does not, its `id`, `code`
/// and `message`.
pub(crate) async fn own_skills(
    config: &crate::config::Config,
    home: &crate::config::Home,
) -> Result<(Vec<Value>, Vec<Value>), CliError> {
    Ok(crate::node::own_skills(config, home).await?)
}

/// What `legion models` does to the register in a folder.
// A build without labor reads no order: it refuses them all.
#[cfg_attr(not(feature = "labor"), allow(dead_code))]
#[derive(Debug)]
pub(crate) enum ModelsOrder {
    /// Check, hash and register a directory.
    Add {
        dir: PathBuf,
        name: Option<String>,
        copy: bool,
    },
    /// Show all.
    List,
    /// Forget one.
    Remove { name: String },
}

/// The models concerned, as objects with `name`, `dir`, `hash`, `kind`, `dim`, `max_tokens`, `pooling`, `normalized`, `files`,
/// `copied` and `present`.
#[cfg(feature = "labor")]
pub(crate) fn models(folder: &Path, order: ModelsOrder) -> Result<Vec<Value>, CliError> {
    use crate::labor::models::Models;

    let register = Models::at(folder);
    let done = match order {
        ModelsOrder::Add { dir, name, copy } => {
            register.add(&dir, name.as_deref(), copy).map(|m| vec![m])
        }
        ModelsOrder::List => register.list(),
        ModelsOrder::Remove { name } => register.remove(&name).map(|m| vec![m]),
    };
    let models = done.map_err(|error| CliError::told(error.code(), &error))?;
    let value = |model: &crate::labor::models::Model| {
        let mut value = serde_json::to_value(model).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            fields.insert("present".to_owned(), model.is_present().into());
        }
        value
    };
    Ok(models.iter().map(value).collect())
}

/// Models: not in this build.
#[cfg(not(feature = "labor"))]
pub(crate) fn models(_: &Path, _: ModelsOrder) -> Result<Vec<Value>, CliError> {
    Err(CliError::not_built("models (feature `labor`)"))
}

/// The worker's whole life. `args` are the words after `legion worker`.
pub(crate) fn worker_main(args: Vec<OsString>) -> ExitCode {
    crate::labor::worker_main(args)
}

pub(crate) use crate::node::NodeParts;
/// The key of what A2A's task has no field for, in a task's metadata.
pub(crate) use crate::wire::message::EXTENSION;

/// Runs the node until it is stopped. `ready` is called once, with the object of `up`, as soon as local commands work.
pub(crate) async fn node_up(parts: NodeParts, ready: impl FnOnce(&Value)) -> Result<(), CliError> {
    crate::node::up(parts, ready)
        .await
        .map_err(|error| CliError::told(error.code(), &error))
}

/// Backs a home up whose node does not run: the object of `backup`. The caller holds the home's lock.
pub(crate) fn backup_at_rest(home: &Home, file: &Path, with_keys: bool) -> Result<Value, CliError> {
    use crate::node::backup;
    let now_ms = crate::node::clock::now_ms();
    let store = backup::open_at_rest(home)?;
    Ok(backup::write(home, &store, file, with_keys, now_ms)?)
}

/// Restores a backup into a home: the object of `restore`. The caller holds the home's lock.
pub(crate) fn restore(
    home: &Home,
    file: &Path,
    passphrase: impl FnOnce() -> Result<zeroize::Zeroizing<String>, CliError>,
) -> Result<Value, CliError> {
    crate::node::backup::restore(home, file, crate::node::clock::now_ms(), passphrase)
}

impl From<crate::node::backup::BackupError> for CliError {
    fn from(error: crate::node::backup::BackupError) -> Self {
        Self::told(error.code(), &error)
    }
}

/// Runs a relay until Ctrl-C or SIGTERM, with its events in `data`, or in memory. `ready` is called once, with its URL.
#[cfg(feature = "relay")]
pub(crate) async fn relay_run(
    listen: SocketAddr,
    data: Option<PathBuf>,
    max_store_mib: u32,
    ready: impl FnOnce(&str),
) -> Result<(), CliError> {
    use tokio::signal::unix::{SignalKind, signal};

    let failed = |error: crate::relay::RelayError| CliError::told(error.code(), &error);
    // Before `ready`, so that whoever reads it can stop the relay in order from then on.
    let mut stop =
        signal(SignalKind::terminate()).map_err(|error| CliError::system("signals", &error))?;
    let config = RelayConfig {
        listen,
        data,
        limits: RelayLimits::of_store_mib(max_store_mib),
        ..RelayConfig::default()
    };
    let relay = crate::relay::serve(config).await.map_err(failed)?;
    ready(relay.url());
    tokio::select! {
        _ = stop.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    relay.shutdown().await;
    Ok(())
}

/// Runs a relay: not in this build.
#[cfg(not(feature = "relay"))]
pub(crate) async fn relay_run(
    _listen: SocketAddr,
    _data: Option<PathBuf>,
    _max_store_mib: u32,
    _ready: impl FnOnce(&str),
) -> Result<(), CliError> {
    Err(CliError::not_built("the relay (feature `relay`)"))
}

/// Checks an exported proof offline; the object says what was checked.
pub(crate) fn proof_verify(exported: &Value) -> Result<Value, CliError> {
    crate::node::results::verify_export(exported)
        .map_err(|(code, message)| CliError::new(code, message))
}
