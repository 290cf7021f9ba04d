//! `legion up`: runs the node until it is stopped. It says it is ready as soon as local commands work, whether or not a relay
//! answers.

use super::error::CliError;
use super::output::{self, Reply};
use super::passphrase::PassphraseArgs;
use super::{Context, adapters, logging};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    passphrase: PassphraseArgs,
}

/// `{"ready":true,"npub":...,"relays":{...}}` in one line, at once; then nothing more on stdout.
pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let config = context.config()?;
    logging::start(&context.home()?.log_file(), &config.log)?;
    adapters::node_up(context, &config, &args.passphrase, |ready| {
        let npub = ready
            .get("npub")
            .and_then(|npub| npub.as_str())
            .unwrap_or_default();
        output::print(
            &Reply::new(ready.clone(), format!("ready: {npub}")),
            context.json(),
        );
    })?;
    Ok(Reply::silent())
}
