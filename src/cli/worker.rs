//! `legion worker`: the process that does labor. It is started by the node, speaks on stdin and stdout, and must not touch a
//! home: no keys, no store, no network.

use std::ffi::OsString;
use std::process::ExitCode;

use super::adapters;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the node tells its worker
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) fn run(args: Args) -> ExitCode {
    adapters::worker_main(args.args)
}
