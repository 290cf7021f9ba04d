//! `legion tasks`: this node's tasks, asked and received, newest first.

use serde_json::json;

use super::error::CliError;
use super::output::Reply;
use super::{Context, control, render};

/// `{tasks:[...]}`.
pub(crate) fn run(context: &Context) -> Result<Reply, CliError> {
    let view = control::call(context, "task/list", json!({}))?;
    let text = render::tasks(&view);
    Ok(Reply::new(view, text))
}
