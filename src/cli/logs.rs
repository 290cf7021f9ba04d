//! `legion logs`: the last lines of the node's log, from its file, whether or not the node runs.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};

use serde_json::json;

use super::Context;
use super::error::CliError;
use super::output::Reply;

/// The most lines that are kept in memory for one call.
const MAX_LINES: u32 = 100_000;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many lines to show
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_LINES)))]
    lines: u32,
}

/// `{path,lines:[...]}`.
pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let path = context.home()?.log_file();
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => {
            let message = format!("there is no log at {}", path.display());
            CliError::new("no_log", message)
        }
        _ => CliError::io(path.display(), &error),
    };
    let wanted = usize::try_from(args.lines).unwrap_or(usize::MAX);
    let mut last = VecDeque::new();
    for line in BufReader::new(File::open(&path).map_err(failed)?).split(b'\n') {
        last.push_back(String::from_utf8_lossy(&line.map_err(failed)?).into_owned());
        if last.len() > wanted {
            last.pop_front();
        }
    }
    let text = last
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join("\n");
    Ok(Reply::new(json!({ "path": path, "lines": last }), text))
}
