//! `legion config check`: reads the settings and every relay list they name, and says what is wrong by key and line.

use clap::Subcommand;
use serde_json::json;

use super::error::CliError;
use super::output::Reply;
use super::{Context, adapters, render};
use crate::config::{Config, Home};

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

/// Code of a file without any settings.
pub(crate) const CONFIG_EMPTY: &str = "config_empty";

/// `{"valid":true,"path","found","relays":[...],"warnings":[{code,message,skill}],"config":{...}}`: the settings in effect, defaults
/// included, and what the node will start in spite of.
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
    let mut text = format!("{}: {origin}\nrelays: {}", path.display(), relays.len());
    let mut warnings = Vec::new();
    if Config::is_empty_file(home) {
        let message = empty_text(home);
        text.push_str(&format!("\nwarning: {message} ({CONFIG_EMPTY})"));
        warnings.push(json!({ "code": CONFIG_EMPTY, "message": message, "skill": null }));
    }
    for wrong in adapters::own_skill_warnings(&config) {
        let [id, code, message] = ["/id", "/code", "/message"].map(|at| render::cell(&wrong, at));
        text.push_str(&format!(
            "\nwarning: skills.{id} will not be offered: {message} ({code})"
        ));
        warnings.push(json!({ "code": code, "message": message, "skill": id }));
    }
    let value = json!({
        "valid": true, "path": path, "found": found, "relays": relays, "warnings": warnings, "config": config,
    });
    Ok(Reply::new(value, text))
}

/// What a person is told of a file without settings.
pub(crate) fn empty_text(home: &Home) -> String {
    let path = home.config_file();
    format!("{}: the file is empty: defaults apply", path.display())
}
