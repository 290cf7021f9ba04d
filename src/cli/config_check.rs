//! `legion config check`: reads the settings and every relay list they name, and says what is wrong by key and line.

use clap::Subcommand;
use serde_json::json;

use super::error::CliError;
use super::output::Reply;
use super::{Context, adapters};
use crate::config::Config;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Check config/legion.toml and the relay lists it names
    Check,
}

/// `{"valid":true,"path","found","relays":[...],"config":{...}}`: the settings in effect, defaults included.
pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let Action::Check = args.action;
    let home = context.home()?;
    let path = home.config_file();
    let config = Config::load(home)?;
    adapters::check_own_skills(&config, home)?;
    let relays = config.relay_list(home)?.relays;
    let found = path.exists();
    let origin = if found {
        "valid"
    } else {
        "not there, so every setting has its default"
    };
    let text = format!("{}: {origin}\nrelays: {}", path.display(), relays.len());
    let value =
        json!({ "valid": true, "path": path, "found": found, "relays": relays, "config": config });
    Ok(Reply::new(value, text))
}
