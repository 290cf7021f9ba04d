//! `legion task ID`: one task as the node knows it. It succeeds whatever the task's state is.

use serde_json::json;

use super::error::CliError;
use super::output::Reply;
use super::{Context, control, render};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The task's id
    id: String,
}

/// `{task:{...}}`.
pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let view = control::call(context, "task/get", json!({ "id": args.id }))?;
    let text = render::task(&view);
    Ok(Reply::new(view, text))
}
