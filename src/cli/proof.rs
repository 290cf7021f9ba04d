//! `legion proof`: a proof as a file that anyone can check, and the check, offline.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::error::CliError;
use super::output::Reply;
use super::{Context, adapters, control, input, render};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Print a finished task's proof, with what is needed to check it
    Export {
        /// The task's id
        id: String,
    },
    /// Check an exported proof, without a node
    Verify {
        /// What `proof export` printed
        file: PathBuf,
    },
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    match &args.action {
        Action::Export { id } => {
            let proof = control::call(context, "proof/export", json!({ "id": id }))?;
            let text = serde_json::to_string_pretty(&proof).unwrap_or_else(|_| proof.to_string());
            Ok(Reply::new(proof, text))
        }
        Action::Verify { file } => {
            let exported: Value = input::from_file(file).map_err(|error| match &*error.code {
                "input_unreadable" => error,
                _ => CliError::new("proof_malformed", error.message),
            })?;
            if let Some(field) = ["v", "proof", "output", "units", "entries"]
                .into_iter()
                .find(|field| exported.get(field).is_none())
            {
                let message = format!(
                    "{} is no exported proof: it has no `{field}`",
                    file.display()
                );
                return Err(CliError::new("proof_malformed", message));
            }
            let checked = adapters::proof_verify(&exported)?;
            let text = render::tree(&checked);
            Ok(Reply::new(checked, text))
        }
    }
}
