//! `legion wait ID`: waits for a task's result, as `ask` does.

use super::control::{self, Client};
use super::error::CliError;
use super::output::Reply;
use super::{Context, Threads, block_on, render};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The task's id
    id: String,
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let home = context.home()?;
    block_on(Threads::One, async {
        let mut client = Client::connect(home).await?;
        control::wait_for(context, &mut client, &args.id)
            .await
            .map(render::result)
    })
}
