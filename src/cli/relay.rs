//! `legion relay`: runs the embedded relay. It needs no home.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;

use super::error::CliError;
use super::output::Reply;
use super::{Context, Threads, adapters, block_on};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7777")]
    listen: SocketAddr,
    /// Keep events in this file over a restart [default: in memory only]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Memory for stored events, MiB; when it is full the newest are refused until readers delete theirs or they expire
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    max_store_mib: u32,
}

/// `{"ready":true,"url":"ws://127.0.0.1:PORT"}` at once; then nothing more on stdout.
pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let ready = |url: &str| {
        let text = format!("ready: {url}");
        context.answer(&Reply::new(json!({ "ready": true, "url": url }), text));
    };
    block_on(
        Threads::Many,
        adapters::relay_run(args.listen, args.data.clone(), args.max_store_mib, ready),
    )?;
    Ok(Reply::silent())
}
