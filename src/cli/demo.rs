//! `legion demo`: the whole path on this machine, offline: a relay and two nodes, one of them killed in the middle.

use std::path::PathBuf;

use super::Context;
use super::error::CliError;
use super::output::Reply;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Keep both homes in this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Changes the simulated paths, and with them the result
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

pub(crate) async fn run(_context: &Context, args: &Args) -> Result<Reply, CliError> {
    let _ = (&args.keep, args.seed);
    Err(CliError::not_built("the demonstration"))
}
