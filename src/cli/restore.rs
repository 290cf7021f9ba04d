//! `legion restore`: a home from a backup; and the owner's word on what the peers of a restored node did not answer.

use std::path::PathBuf;

use serde_json::json;

use super::error::CliError;
use super::output::Reply;
use super::passphrase::PassphraseArgs;
use super::{Context, adapters, control, render};
use crate::node::control::HomeLock;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A file that `legion backup` wrote
    #[arg(value_name = "FILE", required_unless_present = "accept_losses")]
    file: Option<PathBuf>,
    #[command(flatten)]
    passphrase: PassphraseArgs,
    /// Tell the restored, running node to go on without the peers that have not answered; their accounts stay frozen
    #[arg(long, conflicts_with = "file")]
    accept_losses: bool,
    /// With --accept-losses: take this frozen peer's account as it stands in the backup
    #[arg(long, value_name = "NPUB", requires = "accept_losses")]
    peer: Option<String>,
}

/// `{restored,npub,epoch,since_ms,rows,kept}`; with `--accept-losses` `{recovering}`.
pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let Some(file) = &args.file else {
        let params = json!({"npub": args.peer});
        let view = control::call(context, "restore/accept", params)?;
        let text = match view.get("recovering").filter(|still| !still.is_null()) {
            None => "nothing is frozen any more".to_owned(),
            Some(_) => {
                "the node goes on; `legion status` shows whose accounts are frozen".to_owned()
            }
        };
        return Ok(Reply::new(view, text));
    };
    let home = context.home()?;
    home.create()?;
    let lock = HomeLock::acquire(home)?;
    let ask = || args.passphrase.for_existing_key();
    let view = adapters::restore(home, file, ask)?;
    drop(lock);
    let kept: Vec<&str> = (view["kept"].as_array().into_iter().flatten())
        .filter_map(serde_json::Value::as_str)
        .collect();
    let kept = match kept.as_slice() {
        [] => String::new(),
        kept => format!(
            "\nnot taken from the backup, because this home has its own: {}",
            kept.join(", ")
        ),
    };
    let text = format!(
        "restored: {} at epoch {}{kept}\nstart it with `legion up`: it first asks its peers what they hold of it",
        render::cell(&view, "/npub"),
        render::cell(&view, "/epoch"),
    );
    Ok(Reply::new(view, text))
}
