//! What a command fails with: a stable code, a text for people, the next step, and the exit code. Which code ends with which
//! exit code stands in `node::control::codes`, for both sides of local control.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::config::ConfigError;
use crate::node::control::codes;

/// An exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit(pub(crate) u8);

impl Exit {
    /// Done.
    pub(crate) const DONE: Self = Self(0);
    /// The task failed, was refused or canceled; or the command could not be carried out.
    pub(crate) const FAILED: Self = Self(1);
    /// Usage, bad input or an unknown id.
    pub(crate) const USAGE: Self = Self(2);
}

/// An error as a person or a program reads it.
#[derive(Debug, Clone)]
pub(crate) struct CliError {
    pub(crate) code: Cow<'static, str>,
    pub(crate) message: String,
    pub(crate) hint: String,
    pub(crate) exit: Exit,
    /// The task it is about, as the node described it.
    pub(crate) task: Option<Value>,
}

impl CliError {
    /// An error with the exit code and the next step of its code.
    pub(crate) fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        let code = code.into();
        Self {
            exit: Exit(codes::exit_of(&code)),
            hint: codes::hint_of(&code).to_owned(),
            code,
            message: message.into(),
            task: None,
        }
    }

    /// The same with a next step of its own; an empty one is none.
    pub(crate) fn hinted(
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let (hint, error) = (hint.into(), Self::new(code, message));
        match hint.is_empty() {
            true => error,
            false => Self { hint, ..error },
        }
    }

    /// The error of a room below, whose text ends with the next step.
    pub(crate) fn told(code: &'static str, error: &impl std::fmt::Display) -> Self {
        let text = error.to_string();
        let (message, hint) = codes::told(code, &text);
        Self::hinted(code, message, hint)
    }

    /// A file or a process of `what` cannot be used.
    pub(crate) fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Self::new("io", format!("{what}: {error}"))
    }

    /// The system gave no runtime, signal or terminal.
    pub(crate) fn system(what: &str, error: &std::io::Error) -> Self {
        Self::new("system_refused", format!("{what}: {error}"))
    }

    /// A part of the program that this build does not have.
    pub(crate) fn not_built(what: &str) -> Self {
        let message = format!("{what} is not built into this program");
        Self::new("not_built", message)
    }

    /// What clap says about a wrong command line, without its `error: ` and with its last lines as the hint.
    pub(crate) fn usage_text(text: &str) -> Self {
        let text = text.trim().trim_start_matches("error: ");
        let (message, rest) = text.split_once("\n\n").unwrap_or((text, ""));
        let joined = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        Self::hinted("usage", joined(message), joined(rest))
    }

    /// The object of `--json`: `{error:{code,message,hint},task?}`.
    pub(crate) fn to_json(&self) -> Value {
        let error = json!({ "code": self.code, "message": self.message, "hint": self.hint });
        match &self.task {
            Some(task) => json!({ "error": error, "task": task }),
            None => json!({ "error": error }),
        }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        match &error {
            // The reason is the parser's, and names no next step.
            ConfigError::Invalid { .. } => Self::new(error.code(), error.to_string()),
            _ => Self::told(error.code(), &error),
        }
    }
}
