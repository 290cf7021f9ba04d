//! `legion worker`: the process that does labor. It is started by the node, speaks on stdin and stdout, and must not touch a
//! home: no keys, no store, no network.

use super::adapters;
use super::error::{CliError, Exit};
use super::output::Reply;

pub(crate) fn run() -> Result<Reply, CliError> {
    let code = adapters::worker_main()?;
    Ok(Reply::silent().with_exit(Exit(code)))
}
