//! `legion ledger`: what peers owe this node and what it owes them, and every movement behind it.

use serde_json::json;

use super::error::CliError;
use super::output::Reply;
use super::{Context, control, render};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this peer
    #[arg(long, value_name = "NPUB")]
    peer: Option<String>,
}

/// `{unit:"mc",accounts:[...],transfers:[...],sum_mc:0}`.
pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let params = args
        .peer
        .as_ref()
        .map_or_else(|| json!({}), |npub| json!({ "npub": npub }));
    let view = control::call(context, "ledger/get", params)?;
    let text = render::ledger(&view);
    Ok(Reply::new(view, text))
}
