//! What a command fails with: a stable code, a text for people, the next step, and the exit code.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::config::ConfigError;

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
    /// The node is not running.
    pub(crate) const NOT_RUNNING: Self = Self(5);
    /// Ctrl-C or a lost socket while waiting: the task goes on.
    pub(crate) const DETACHED: Self = Self(130);
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
    /// An error that ends with `exit`.
    pub(crate) fn new(
        exit: Exit,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            hint: hint.into(),
            exit,
            task: None,
        }
    }

    /// Bad usage or input: exit code 2.
    pub(crate) fn usage(
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::new(Exit::USAGE, code, message, hint)
    }

    /// Something else failed: exit code 1.
    pub(crate) fn failed(
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::new(Exit::FAILED, code, message, hint)
    }

    /// The system refused something to do with `what`.
    pub(crate) fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        let hint = "check that the path exists, who owns it, and the space left on its disk";
        Self::failed("io", format!("{what}: {error}"), hint)
    }

    /// A part of the program that this build does not have.
    pub(crate) fn not_built(what: &str) -> Self {
        Self::failed(
            "not_built",
            format!("{what} is not built into this program"),
            "use a build that has it",
        )
    }

    /// What clap says about a wrong command line, without its `error: ` and with its last lines as the hint.
    pub(crate) fn usage_text(text: &str) -> Self {
        let text = text.trim().trim_start_matches("error: ");
        let (message, rest) = text.split_once("\n\n").unwrap_or((text, ""));
        let joined = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let hint = if rest.is_empty() {
            "try `legion --help`".to_owned()
        } else {
            joined(rest)
        };
        Self::usage("usage", joined(message), hint)
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
        let hint = match &error {
            ConfigError::Invalid { .. } => {
                "correct that line; config/legion.toml in the repository shows every key"
            }
            ConfigError::HomeInGit { .. } => "pass a --home outside the work tree",
            ConfigError::RelayListMissing { .. } => {
                "`legion init` writes one; `relays` may also hold URLs"
            }
            _ => "check the path, its owner and its mode",
        };
        Self::new(Exit::USAGE, error.code(), error.to_string(), hint)
    }
}
