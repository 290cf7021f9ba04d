//! `legion status`: what the running node does, and what it waits for.

use serde_json::json;

use super::error::CliError;
use super::output::Reply;
use super::{Context, control, render};

pub(crate) fn run(context: &Context) -> Result<Reply, CliError> {
    let view = control::call(context, "node/status", json!({}))?;
    let text = render::status(&view);
    Ok(Reply::new(view, text))
}
