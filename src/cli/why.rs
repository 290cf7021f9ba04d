//! `legion why ID`: what a task waits for, and for each known peer why it did not get it or did not take it.

use serde_json::json;

use super::error::CliError;
use super::output::Reply;
use super::{Context, control, render};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The task's id
    id: String,
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let view = control::call(context, "task/why", json!({ "id": args.id }))?;
    let text = render::why(&view);
    Ok(Reply::new(view, text))
}
