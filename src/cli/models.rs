//! `legion models`: which models the skills of this machine may use. It needs no running node; a running one takes jobs for a new
//! model at once, and advertises a skill that had none after its next start.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::adapters::ModelsOrder;
use super::error::CliError;
use super::output::Reply;
use super::{Context, adapters, render};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Check and register a model: a directory in Hugging Face layout
    Add {
        /// The directory, with config.json, model.safetensors and tokenizer.json
        dir: PathBuf,
        /// What inputs call it [default: the directory's name]
        #[arg(long)]
        name: Option<String>,
        /// Copy its files into the home instead of naming the place
        #[arg(long)]
        copy: bool,
    },
    /// List the registered models
    List,
    /// Forget a model; only a copy in the home is deleted
    Remove {
        /// Its name
        name: String,
    },
}

/// `{models:[{name,dir,hash,kind,dim,max_tokens,pooling,normalized,files,copied,present}]}`; `add` and `remove` show the one.
pub(crate) fn run(context: &Context, args: Args) -> Result<Reply, CliError> {
    let folder = context.home()?.models_dir();
    let (order, done) = match args.action.unwrap_or(Action::List) {
        Action::Add { dir, name, copy } => (ModelsOrder::Add { dir, name, copy }, "added"),
        Action::List => (ModelsOrder::List, ""),
        Action::Remove { name } => (ModelsOrder::Remove { name }, "removed"),
    };
    let models = adapters::models(&folder, order)?;
    let table = render::table(
        &["MODEL", "DIM", "TOKENS", "POOLING", "HASH", "PLACE"],
        models.iter().map(row),
    );
    let text = match (models.as_slice(), done) {
        ([], _) => "no models: `legion models add DIR` registers one".to_owned(),
        (_, "") => table,
        ([model, ..], _) => {
            let name = model.get("name").and_then(Value::as_str);
            format!("{done}: {}\n{table}", name.unwrap_or_default())
        }
    };
    Ok(Reply::new(json!({ "models": models }), text))
}

fn row(model: &Value) -> Vec<String> {
    let text = |name: &str| match model.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let is = |name: &str| model.get(name) == Some(&Value::Bool(true));
    let missing = if is("present") { "" } else { " (missing)" };
    let scaled = if is("normalized") { ", length 1" } else { "" };
    vec![
        text("name"),
        text("dim"),
        text("max_tokens"),
        format!("{}{scaled}", text("pooling")),
        text("hash").chars().take(16).collect(),
        format!("{}{missing}", text("dir")),
    ]
}
