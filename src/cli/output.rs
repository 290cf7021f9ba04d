//! The only place that writes to stdout and stderr. Text for people is cleaned of control characters, because parts of it come
//! from peers. A reader that went away (a closed pipe) is no failure; an answer that could not be written (a full disk) is one.

use std::io::{IsTerminal, Write};

use serde_json::Value;

use super::error::{CliError, Exit};

/// What a command has to say: once for programs, once for people.
pub(crate) struct Reply {
    pub(crate) value: Value,
    pub(crate) text: String,
    pub(crate) exit: Exit,
    /// A command that already printed its object, as `up` does, has nothing more to print.
    silent: bool,
}

impl Reply {
    /// A reply that ends with exit code 0.
    pub(crate) fn new(value: Value, text: impl Into<String>) -> Self {
        Self {
            value,
            text: text.into(),
            exit: Exit::DONE,
            silent: false,
        }
    }

    /// The end of a command that printed before.
    pub(crate) fn silent() -> Self {
        Self {
            value: Value::Null,
            text: String::new(),
            exit: Exit::DONE,
            silent: true,
        }
    }

    /// The same reply with another exit code.
    pub(crate) fn with_exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

/// Prints a reply on stdout. False: it could not be written.
#[must_use]
pub(crate) fn print(reply: &Reply, json: bool) -> bool {
    if reply.silent {
        return true;
    }
    if json {
        say(&reply.value.to_string())
    } else {
        say(&clean(reply.text.trim_end()))
    }
}

/// Prints an error: with `json` as one object on stdout, else on stderr.
pub(crate) fn print_error(error: &CliError, json: bool) {
    // Its exit code says what matters, written or not.
    if json && say(&error.to_json().to_string()) {
        return;
    }
    note(&format!("error: {} ({})", error.message, error.code));
    if !error.hint.is_empty() {
        note(&format!("next: {}", error.hint));
    }
}

/// A line on stdout. False: it could not be written, and stderr says why.
fn say(text: &str) -> bool {
    match write_line(&mut std::io::stdout().lock(), text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            note(&format!("error: stdout: {error} (stdout_failed)"));
            false
        }
        _ => true,
    }
}

/// Says something on stderr; where that fails there is no one left to tell.
pub(crate) fn note(text: &str) {
    let _ = write_line(&mut std::io::stderr().lock(), &clean(text));
}

/// Whether a person reads stderr.
pub(crate) fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

fn write_line(to: &mut impl Write, text: &str) -> std::io::Result<()> {
    to.write_all(format!("{text}\n").as_bytes())
        .and_then(|()| to.flush())
}

/// Replaces what could move a terminal's cursor or hide text: a peer's words must not forge ours.
pub(crate) fn clean(text: &str) -> String {
    let hidden = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| if hidden(c) { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    //! A peer's text cannot drive the owner's terminal.
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_a_terminal() {
        assert_eq!(
            clean("a\u{1b}[2Jb\r\n\tc\u{202e}d"),
            "a\u{fffd}[2Jb\u{fffd}\n\tc\u{fffd}d"
        );
    }
}
