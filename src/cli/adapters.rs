//! The one file of this room that calls `node`, `relay`, `labor` and `wire`: what the commands need of them, as plain values.

use std::net::SocketAddr;

use serde_json::Value;

use super::Context;
use super::error::CliError;
use super::passphrase::PassphraseArgs;
use crate::config::Config;

/// A skill of this machine, as `skills` prints it and `ask --set` reads it.
pub(crate) struct SkillView {
    pub(crate) name: String,
    pub(crate) description: String,
    /// What one unit is.
    pub(crate) unit: String,
    /// JSON Schemas.
    pub(crate) input: Value,
    pub(crate) output: Value,
}

/// The skills this program was built with.
pub(crate) fn catalog() -> Vec<SkillView> {
    Vec::new()
}

/// The worker's whole life; returns its exit code.
pub(crate) fn worker_main() -> Result<u8, CliError> {
    Err(CliError::not_built("the labor room"))
}

/// Runs the node until it is stopped. `ready` is called once, with the object of `up`, as soon as local commands work.
pub(crate) fn node_up(
    _context: &Context,
    _config: &Config,
    _passphrase: &PassphraseArgs,
    _ready: impl FnOnce(&Value),
) -> Result<(), CliError> {
    Err(CliError::not_built("the node room"))
}

/// Runs a relay until Ctrl-C or SIGTERM. `ready` is called once, with its address.
pub(crate) fn relay_run(
    _listen: SocketAddr,
    _ready: impl FnOnce(SocketAddr),
) -> Result<(), CliError> {
    Err(CliError::not_built("the relay room"))
}

/// Checks an exported proof offline; the object says what was checked.
pub(crate) fn proof_verify(_exported: &Value) -> Result<Value, CliError> {
    Err(CliError::not_built("proof verification"))
}
