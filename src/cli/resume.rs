//! `legion resume`: foreign work may go on.

use serde_json::json;

use super::error::CliError;
use super::output::Reply;
use super::{Context, control, render};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Let foreign work use at most this many cores; 0 is all of them
    #[arg(long, value_name = "N")]
    cores: Option<u64>,
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let view = control::call(context, "owner/resume", json!({ "cores": args.cores }))?;
    let text = format!("foreign work: {}", render::paused(&view));
    Ok(Reply::new(view, text))
}
