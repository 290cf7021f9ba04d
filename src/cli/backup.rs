//! `legion backup`: one file that holds this home, from one moment of its store, whether its node runs or not.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::error::CliError;
use super::output::Reply;
use super::{Context, adapters, control, render};
use crate::node::control::HomeLock;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The new file (0600); one that exists is never replaced
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Hold the key file too, encrypted if it is: whoever has the file, and the passphrase, is you
    #[arg(long)]
    with_keys: bool,
}

/// `{file,bytes,npub,at_ms,rows,with_keys}`.
pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let home = context.home()?;
    let file = std::path::absolute(&args.file)
        .map_err(|error| CliError::io(args.file.display(), &error))?;
    let params = json!({"file": file, "with_keys": args.with_keys});
    let view = match control::call(context, "node/backup", params) {
        Err(error) if error.code == "node_not_running" => {
            let _lock = HomeLock::acquire(home)?;
            adapters::backup_at_rest(home, &file, args.with_keys)?
        }
        answer => answer?,
    };
    let text = text(&view);
    Ok(Reply::new(view, text))
}

fn text(view: &Value) -> String {
    let keys = match view.get("with_keys") {
        Some(Value::Bool(true)) => "with the key file",
        _ => "without the key file: keep the words",
    };
    format!(
        "backup: {} ({} bytes, {} rows), {keys}",
        render::cell(view, "/file"),
        render::cell(view, "/bytes"),
        render::cell(view, "/rows"),
    )
}
