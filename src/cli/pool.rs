//! `legion pool`: private pools. An invite is a secret: it is printed because its owner asked for one, and `join -` takes one
//! from stdin, since other users of a machine can see the arguments of a command.

use std::io::{BufRead, Read};

use clap::Subcommand;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::error::CliError;
use super::output::Reply;
use super::{Context, control, render};

/// An invite has at most 1,023 characters; what is longer is refused by the node, not read for ever.
const MAX_INVITE_BYTES: u64 = 4_096;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a private pool, and an invite to it
    Create {
        /// Its name, the same for all members
        name: String,
        /// How long the invite can be joined with: 30m, 12h, 7d [default: 7d]
        #[arg(long, value_name = "T", value_parser = seconds)]
        valid: Option<u64>,
    },
    /// Join a pool, or its next secret
    Join {
        /// The invite; `-` reads a line from stdin, where no other user of this machine can see it
        invite: String,
    },
    /// Write an invite: whoever reads it can join until it ends
    Invite {
        /// The pool
        name: String,
        /// How long it can be joined with: 30m, 12h, 7d [default: 7d]
        #[arg(long, value_name = "T", value_parser = seconds)]
        valid: Option<u64>,
    },
    /// List the pools this node is in
    List,
    /// Give a pool a new secret, and write an invite to it: who is not invited again is out
    Rotate {
        /// The pool
        name: String,
        /// How long members who have not joined the new secret are still heard; 0 shuts them out at once [default: 3d]
        #[arg(long, value_name = "T", value_parser = seconds)]
        grace: Option<u64>,
        /// How long the invite can be joined with: 30m, 12h, 7d [default: 7d]
        #[arg(long, value_name = "T", value_parser = seconds)]
        valid: Option<u64>,
    },
    /// Leave a pool and erase its secrets here
    Leave {
        /// The pool
        name: String,
    },
}

pub(crate) fn run(context: &Context, args: Args) -> Result<Reply, CliError> {
    match args.action {
        Action::List => {
            let view = control::call(context, "pools/list", json!({}))?;
            let text = table(&view);
            Ok(Reply::new(view, text))
        }
        Action::Join { invite } => {
            let invite = match invite.as_str() {
                "-" => from_stdin()?,
                _ => Zeroizing::new(invite),
            };
            let view = control::call(context, "pools/join", json!({ "invite": *invite }))?;
            let text = joined(&view);
            Ok(Reply::new(view, text))
        }
        Action::Leave { name } => {
            let view = control::call(context, "pools/leave", json!({ "name": name }))?;
            Ok(Reply::new(view, format!("left: {name}")))
        }
        Action::Create { name, valid } => invite(context, "pools/create", &name, valid, None),
        Action::Invite { name, valid } => invite(context, "pools/invite", &name, valid, None),
        Action::Rotate { name, grace, valid } => {
            invite(context, "pools/rotate", &name, valid, grace)
        }
    }
}

/// A method that answers with an invite: `{pool,invite,expires_ms}`.
fn invite(
    context: &Context,
    method: &str,
    name: &str,
    valid_s: Option<u64>,
    grace_s: Option<u64>,
) -> Result<Reply, CliError> {
    let params = json!({ "name": name, "valid_s": valid_s, "grace_s": grace_s });
    let view = control::call(context, method, params)?;
    let text = |name: &str| view.get(name).and_then(Value::as_str).unwrap_or_default();
    let pool = view.get("pool").unwrap_or(&Value::Null);
    let mut lines = vec![
        format!("pool: {name}, epoch {}", cell(pool, "epoch")),
        format!("invite: {}", text("invite")),
        format!(
            "expires: {}",
            render::time(view.get("expires_ms").unwrap_or(&Value::Null))
        ),
    ];
    lines.extend(heard(pool));
    lines.push(
        "next: who reads the invite can join; there, `legion pool join -` takes it from stdin"
            .to_owned(),
    );
    Ok(Reply::new(view, lines.join("\n")))
}

fn joined(view: &Value) -> String {
    let pool = view.get("pool").unwrap_or(&Value::Null);
    let word = match view.get("changed") {
        Some(Value::Bool(false)) => "already joined",
        _ => "joined",
    };
    let mut lines = vec![
        format!(
            "{word}: {}, epoch {}",
            cell(pool, "name"),
            cell(pool, "epoch")
        ),
        format!("invited by: {}", cell(pool, "invited_by")),
    ];
    lines.extend(heard(pool));
    lines.join("\n")
}

/// Until when the secrets before are read.
fn heard(pool: &Value) -> Vec<String> {
    let read = pool.get("read").and_then(Value::as_array);
    let line = |epoch: &Value| {
        let until = render::time(epoch.get("until_ms").unwrap_or(&Value::Null));
        format!("heard until {until}: epoch {}", cell(epoch, "epoch"))
    };
    read.into_iter().flatten().map(line).collect()
}

fn table(view: &Value) -> String {
    let pools = view.get("pools").and_then(Value::as_array);
    let rows = pools.into_iter().flatten().map(|pool| {
        let private = pool.get("private") == Some(&Value::Bool(true));
        let kind = if private { "private" } else { "open" };
        let relays = pool.get("relays").and_then(Value::as_array);
        let relays: Vec<&str> = relays
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        vec![
            cell(pool, "name"),
            kind.to_owned(),
            cell(pool, "epoch"),
            cell(pool, "invited_by"),
            relays.join(" "),
        ]
    });
    render::table(&["POOL", "KIND", "EPOCH", "INVITED BY", "RELAYS"], rows)
}

fn cell(view: &Value, name: &str) -> String {
    match view.get(name) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => "-".to_owned(),
        Some(other) => other.to_string(),
    }
}

/// One line: pasted into a terminal, it ends with Enter.
fn from_stdin() -> Result<Zeroizing<String>, CliError> {
    let unreadable = |error: std::io::Error| {
        CliError::new("input_unreadable", format!("stdin cannot be read: {error}"))
    };
    // With its full capacity from the start, no growing string leaves a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_INVITE_BYTES as usize + 1));
    std::io::stdin()
        .lock()
        .take(MAX_INVITE_BYTES)
        .read_line(&mut text)
        .map_err(unreadable)?;
    Ok(text)
}

/// `90`, `90s`, `15m`, `2h` or `7d`, in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes().split_last() {
        Some((b's', _)) => (text.strip_suffix('s'), 1),
        Some((b'm', _)) => (text.strip_suffix('m'), 60),
        Some((b'h', _)) => (text.strip_suffix('h'), 3_600),
        Some((b'd', _)) => (text.strip_suffix('d'), 86_400),
        _ => (Some(text), 1),
    };
    digits
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|digits| digits.parse::<u64>().ok())
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "a time looks like 90s, 15m, 2h or 7d".to_owned())
}

#[cfg(test)]
mod tests {
    //! A time is what it says, or refused.
    use super::*;

    #[test]
    fn times_have_units() {
        let times = ["0", "90", "90s", "15m", "2h", "7d"].map(seconds);
        assert_eq!(
            times,
            [Ok(0), Ok(90), Ok(90), Ok(900), Ok(7_200), Ok(604_800)]
        );
        for text in [
            "",
            "d",
            "-1d",
            "+1d",
            "1.5h",
            "1w",
            "1dd",
            "99999999999999999d",
        ] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
