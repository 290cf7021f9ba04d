//! `legion pause`: the owner takes the machine back. Foreign work stops softly, keeps its checkpoint and is resumed later.

use serde_json::{Value, json};

use super::error::CliError;
use super::output::Reply;
use super::{Context, control, render};

#[derive(clap::Args)]
#[group(multiple = false)]
pub(crate) struct Args {
    /// Stop at the end of the unit in work (the default)
    #[arg(long)]
    now: bool,
    /// Stop at the next regular checkpoint
    #[arg(long)]
    after_checkpoint: bool,
    /// Stop now, and resume after a time: 90s, 15m, 2h
    #[arg(long = "for", value_name = "T", value_parser = seconds)]
    for_s: Option<u64>,
    /// Do not stop: let foreign work use at most this many cores
    #[arg(long, value_name = "N")]
    cores: Option<u64>,
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let view = if let Some(cores) = args.cores {
        // To the node, 0 is all of them (`resume --cores 0`): nobody who types `pause` means that.
        if cores == 0 {
            let all = std::thread::available_parallelism().map_or(1, |n| n.get());
            let message = format!("foreign work cannot run on no core; this machine has {all}");
            return Err(CliError::new("cores_invalid", message));
        }
        control::call(context, "owner/cores", json!({ "n": cores }))?
    } else {
        let mode = if args.after_checkpoint {
            "after_checkpoint"
        } else {
            "now"
        };
        let mut params = json!({ "mode": mode });
        if let (Some(time), Some(object)) = (args.for_s, params.as_object_mut()) {
            object.insert("for_s".to_owned(), Value::from(time));
        }
        control::call(context, "owner/pause", params)?
    };
    let text = match view.get("cores") {
        Some(cores) => format!("cores for foreign work: {cores}"),
        None => format!("foreign work: {}", render::paused(&view)),
    };
    Ok(Reply::new(view, text))
}

/// `90`, `90s`, `15m` or `2h`, in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let (number, factor) = match text.chars().last() {
        Some('s') => (text.strip_suffix('s').unwrap_or_default(), 1),
        Some('m') => (text.strip_suffix('m').unwrap_or_default(), 60),
        Some('h') => (text.strip_suffix('h').unwrap_or_default(), 3_600),
        _ => (text, 1),
    };
    let time = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor));
    time.filter(|time| *time > 0)
        .ok_or_else(|| "a time looks like 90s, 15m or 2h".to_owned())
}

#[cfg(test)]
mod tests {
    //! A time is what it says, or refused.
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(
            [seconds("90"), seconds("90s"), seconds("15m"), seconds("2h")],
            [Ok(90), Ok(90), Ok(900), Ok(7_200)]
        );
        for text in [
            "",
            "s",
            "0",
            "0m",
            "-1s",
            "1.5h",
            "1d",
            "99999999999999999999h",
            "1ss",
        ] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
