//! `legion contact`: the text by which this node is introduced. Nothing in it is secret; it is signed, so that nobody can put
//! other keys under its name, and `legion peers trust` takes it.

use serde_json::{Value, json};

use super::error::CliError;
use super::output::Reply;
use super::{Context, control, render};

/// `{contact,npub,lct,relays,expires_ms}`.
pub(crate) fn run(context: &Context) -> Result<Reply, CliError> {
    let view = control::call(context, "contact/show", json!({}))?;
    let text = |name: &str| view.get(name).and_then(Value::as_str).unwrap_or_default();
    let expires = render::time(view.get("expires_ms").unwrap_or(&Value::Null));
    let shown = format!(
        "contact: {}\nexpires: {expires}\nnext: there, `legion peers trust CONTACT --tier trusted`",
        text("contact")
    );
    Ok(Reply::new(view, shown))
}
