//! The client's side of local control: newline-delimited JSON-RPC 2.0 over the Unix socket of a home.
//!
//! It carries requests and answers and knows the exit code of an error; it must not know what a method means. The other side
//! is `node::control`.

use std::io::ErrorKind;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::error::{CliError, Exit};
use super::output;
use super::{Context, Threads, block_on};
use crate::config::Home;

/// Longest answer read: every answer is a view with limits of its own, far below it.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// How long a command that detaches looks at its task once more.
const SHOWN_PATIENCE: Duration = Duration::from_secs(1);

/// Why a call has no result.
pub(crate) enum CallError {
    /// The node answered with an error.
    Refused(CliError),
    /// The socket was lost before an answer: whether the call took effect is unknown.
    Lost,
}

impl CallError {
    /// The error of a call after which nothing is worth waiting for.
    pub(crate) fn into_error(self) -> CliError {
        match self {
            Self::Refused(error) => error,
            Self::Lost => CliError::new("node_lost", "the node went away before it answered"),
        }
    }
}

/// A connection to the node of one home.
pub(crate) struct Client {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    next_id: u64,
}

impl Client {
    /// Connects to the node that runs on `home`.
    pub(crate) async fn connect(home: &Home) -> Result<Self, CliError> {
        for path in home.socket_candidates() {
            let stream = match UnixStream::connect(&path).await {
                Ok(stream) => stream,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(CliError::io(path.display(), &error)),
            };
            // A name under /tmp can be taken by anyone: what is sent here goes to the owner's own process only.
            let peer = stream
                .peer_cred()
                .map_err(|error| CliError::io(path.display(), &error))?;
            if peer.uid() != rustix::process::geteuid().as_raw() {
                let message = format!(
                    "the process listening on {} belongs to another user",
                    path.display()
                );
                return Err(CliError::new("node_foreign", message));
            }
            let (reader, writer) = stream.into_split();
            return Ok(Self {
                reader: BufReader::new(reader),
                writer,
                next_id: 1,
            });
        }
        let message = format!("no node runs on the home {}", home.root().display());
        Err(CliError::new("node_not_running", message))
    }

    /// Calls one method. Progress that the node sends before its answer goes to stderr.
    pub(crate) async fn call(&mut self, method: &str, params: Value) -> Result<Value, CallError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line =
            json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string();
        line.push('\n');
        // A refused write is not yet the end: the node may have answered (a line too long) before it closed.
        let written = self.writer.write_all(line.as_bytes()).await;
        loop {
            let mut answer = Vec::new();
            let read = (&mut self.reader)
                .take(MAX_ANSWER_BYTES)
                .read_until(b'\n', &mut answer)
                .await;
            if read.is_err() || !answer.ends_with(b"\n") {
                return Err(CallError::Lost);
            }
            let Ok(message) = serde_json::from_slice::<Value>(&answer) else {
                return Err(CallError::Lost);
            };
            if message.get("method").is_some() {
                report_progress(&message);
            } else if let Some(error) = message.get("error") {
                return Err(CallError::Refused(refusal(error)));
            } else if message.get("id") == Some(&json!(id)) {
                return Ok(message.get("result").cloned().unwrap_or(Value::Null));
            }
            if written.is_err() {
                return Err(CallError::Lost);
            }
        }
    }
}

/// One call and nothing else: what most commands need.
pub(crate) fn call(context: &Context, method: &str, params: Value) -> Result<Value, CliError> {
    let home = context.home()?;
    block_on(Threads::One, async {
        let mut client = Client::connect(home).await?;
        client
            .call(method, params)
            .await
            .map_err(CallError::into_error)
    })
}

/// Waits for a task's result: the view of `ask` and `wait`. Ctrl-C or a lost socket detaches; neither cancels the task.
pub(crate) async fn wait_for(
    context: &Context,
    client: &mut Client,
    task: &str,
) -> Result<Value, CliError> {
    let lost = tokio::select! {
        answer = client.call("task/wait", json!({ "id": task })) => match answer {
            Ok(view) => return Ok(view),
            Err(CallError::Refused(error)) => return Err(error),
            Err(CallError::Lost) => "the node went away",
        },
        _ = tokio::signal::ctrl_c() => "interrupted",
    };
    let message = format!("{lost}; the task goes on");
    let shown = shown(context, task).await;
    Err(detached(
        message,
        format!("legion wait {task}"),
        Some(shown),
    ))
}

/// The task as it is now, or only its id where the node does not answer.
async fn shown(context: &Context, task: &str) -> Value {
    let bare = json!({ "id": task });
    let ask = async {
        let mut client = Client::connect(context.home().ok()?).await.ok()?;
        let answer = client.call("task/get", json!({ "id": task })).await.ok()?;
        answer.get("task").cloned()
    };
    let answer = tokio::time::timeout(SHOWN_PATIENCE, ask).await;
    answer.ok().flatten().unwrap_or(bare)
}

/// The error of a command that stops waiting while its task goes on. `next` is the command that takes it up again; on
/// stderr it stands on a line of its own, to be copied.
pub(crate) fn detached(message: String, next: String, task: Option<Value>) -> CliError {
    output::note(&next);
    CliError {
        task,
        ..CliError::hinted("detached", message, next)
    }
}

fn report_progress(message: &Value) {
    if let Some(text) = message.pointer("/params/text").and_then(Value::as_str) {
        output::note(text);
    }
}

/// A JSON-RPC error as the node sends it: `{code:int,message,data:{code,hint,exit,task?}}`.
fn refusal(error: &Value) -> CliError {
    let text = |pointer: &str| {
        error
            .pointer(pointer)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let exit = error
        .pointer("/data/exit")
        .and_then(Value::as_u64)
        .and_then(|exit| u8::try_from(exit).ok());
    let refused = CliError::hinted(
        text("/data/code").unwrap_or_else(|| "node_error".to_owned()),
        text("/message").unwrap_or_else(|| "the node refused".to_owned()),
        text("/data/hint").unwrap_or_default(),
    );
    CliError {
        task: error.pointer("/data/task").cloned(),
        exit: exit.map_or(refused.exit, Exit),
        ..refused
    }
}
