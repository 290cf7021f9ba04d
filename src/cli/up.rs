//! `legion up`: runs the node until it is stopped. It says it is ready as soon as local commands work, whether or not a relay
//! answers.

use super::adapters::{self, NodeParts};
use super::error::CliError;
use super::output::Reply;
use super::passphrase::PassphraseArgs;
use super::{Context, Threads, block_on, config_check, identity_adapter, logging};
use crate::config::Config;
use crate::node::control::{ControlStartError, HomeLock};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    passphrase: PassphraseArgs,
    /// No other node of this identity runs any more: take up new work again after a copy of this home was found
    #[arg(long)]
    sole: bool,
}

/// `{"ready":true,"npub":...,"relays":{...}}` in one line, at once; then nothing more on stdout.
pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let home = context.home()?.clone();
    let config = context.config()?;
    let encrypted = identity_adapter::is_encrypted(&home.keys_dir())?;
    // Before the passphrase: a second node is refused without asking for one.
    let lock = HomeLock::acquire(&home)?;
    logging::start(&home.log_file(), &config.log)?;
    if Config::is_empty_file(&home) {
        let text = config_check::empty_text(&home);
        tracing::warn!(code = config_check::CONFIG_EMPTY, "{text}");
    }
    let passphrase = encrypted
        .then(|| args.passphrase.for_existing_key())
        .transpose()?;
    let identity = identity_adapter::open(&home.keys_dir(), passphrase)?;
    let parts = NodeParts {
        home,
        lock,
        config,
        identity,
        sole: args.sole,
    };
    let ready = |ready: &serde_json::Value| {
        let npub = ready
            .get("npub")
            .and_then(|npub| npub.as_str())
            .unwrap_or_default();
        context.answer(&Reply::new(ready.clone(), format!("ready: {npub}")));
    };
    block_on(Threads::Many, adapters::node_up(parts, ready))?;
    Ok(Reply::silent())
}

impl From<ControlStartError> for CliError {
    fn from(error: ControlStartError) -> Self {
        Self::told(error.code(), &error)
    }
}
