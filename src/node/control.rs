//! The node's side of local control: newline-delimited JSON-RPC 2.0 over a Unix socket in the home.
//!
//! It knows who may connect (the owner's own processes), how long a line may be and how an answer looks. It must not know what
//! a method means: that is the [`ControlHandler`]'s, and the same handler can serve later faces. The other side is
//! `cli::control`.
//!
//! One call is one line, answered in order. A connection that is closed, also in one direction only, ends the waiting of its
//! call and nothing else: what the call started goes on.

use std::borrow::Cow;
use std::fs::{File, OpenOptions, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::config::{ConfigError, Home};

pub mod codes;

/// Progress that waits to be written for one caller; what does not fit is dropped, for a newer one follows.
const PROGRESS_DEPTH: usize = 64;

/// How long open calls may take to end when the node stops.
const DRAIN: Duration = Duration::from_secs(2);

/// How long accepting pauses when the system is out of descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// How long a held lock is waited for while no node listens on its home, and how often it is tried.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What local commands ask of the node.
pub trait ControlHandler: Send + Sync + 'static {
    /// Answers one call. `notify` shows progress to the caller before the answer. The future is dropped when the caller goes
    /// away, so it must not be the only thing that keeps what it started alive.
    ///
    /// # Errors
    /// A [`ControlError`] that the caller's command prints and exits with.
    fn call(
        &self,
        method: &str,
        params: Value,
        notify: NotifySender,
    ) -> impl Future<Output = Result<Value, ControlError>> + Send;
}

/// A refusal, as a command shows it: `{code:int,message,data:{code,hint,exit,task?}}` on the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlError {
    /// JSON-RPC's own number.
    pub number: i64,
    /// The stable code.
    pub code: Cow<'static, str>,
    /// What happened.
    pub message: String,
    /// The next step.
    pub hint: String,
    /// The exit code of the command, as the command-line contract lists them.
    pub exit: u8,
    /// The task it is about.
    pub task: Option<Value>,
}

impl ControlError {
    /// A refusal of the application (JSON-RPC number -32000), with the exit code and the next step of its code.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        let code = code.into();
        Self {
            number: -32_000,
            message: message.into(),
            hint: codes::hint_of(&code).to_owned(),
            exit: codes::exit_of(&code),
            code,
            task: None,
        }
    }

    /// The refusal of a room below, whose text ends with the next step.
    pub fn told(code: &'static str, error: &impl std::fmt::Display) -> Self {
        let text = error.to_string();
        let (message, hint) = codes::told(code, &text);
        Self::new(code, message).with_hint(hint)
    }

    /// The same refusal with a next step of its own.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same refusal, about `task`.
    #[must_use]
    pub fn about(mut self, task: Value) -> Self {
        self.task = Some(task);
        self
    }

    /// A method that no handler knows (JSON-RPC number -32601).
    #[must_use]
    pub fn unknown_method(method: &str) -> Self {
        let message = format!("this node has no method `{method}`");
        Self {
            number: -32_601,
            ..Self::new("method_unknown", message)
        }
    }

    /// Parameters of the wrong shape (JSON-RPC number -32602).
    pub fn bad_params(reason: impl Into<String>) -> Self {
        Self {
            number: -32_602,
            ..Self::new("params_invalid", reason)
        }
    }

    fn malformed(number: i64, reason: &str) -> Self {
        Self {
            number,
            ..Self::new("request_invalid", reason)
        }
    }

    fn to_json(&self) -> Value {
        let mut data = json!({ "code": self.code, "hint": self.hint, "exit": self.exit });
        if let (Some(task), Some(object)) = (&self.task, data.as_object_mut()) {
            object.insert("task".to_owned(), task.clone());
        }
        json!({ "code": self.number, "message": self.message, "data": data })
    }
}

/// Shows progress to the caller of one call.
#[derive(Debug, Clone)]
pub struct NotifySender {
    queue: mpsc::Sender<Value>,
}

impl NotifySender {
    /// Sends one line of progress. It never waits: a caller that does not read loses lines, not the node time.
    pub fn progress(&self, text: &str) {
        self.send(json!({ "text": text }));
    }

    /// Sends progress with more fields; `text` is what a person sees.
    pub fn send(&self, params: Value) {
        let _ = self
            .queue
            .try_send(json!({ "jsonrpc": "2.0", "method": "progress", "params": params }));
    }
}

/// Why local control cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlStartError {
    /// Another node holds the home.
    #[error("another node already runs on the home {}; `legion status` shows it", home.display())]
    AlreadyRunning {
        /// The home.
        home: PathBuf,
    },
    /// The lock or the socket cannot be made.
    #[error("{} cannot be used: {source}; check the home's owner, mode and disk", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket's directory is not ours alone.
    #[error(transparent)]
    Home(#[from] ConfigError),
}

impl ControlStartError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::AlreadyRunning { .. } => "already_running",
            Self::Io { .. } => "home_unusable",
            Self::Home(error) => error.code(),
        }
    }
}

/// Whether a node listens on this home.
fn answers(home: &Home) -> bool {
    let listens = |path: PathBuf| std::os::unix::net::UnixStream::connect(path).is_ok();
    home.socket_candidates().into_iter().any(listens)
}

/// The right to run a node on a home. The system takes it back when the process ends, however it ends.
#[derive(Debug)]
pub struct HomeLock {
    _file: File,
    home: Home,
}

impl HomeLock {
    /// Takes the home's lock, before anything else in the home is opened. Blocks for up to `LOCK_WAIT` while the lock is held and
    /// nobody listens: a worker that a killed node was just starting holds copies of its descriptors until it ends, too.
    ///
    /// # Errors
    /// [`ControlStartError::AlreadyRunning`] when another process holds it.
    pub fn acquire(home: &Home) -> Result<Self, ControlStartError> {
        let path = home.lock_file();
        let failed = |source: io::Error| ControlStartError::Io {
            path: path.clone(),
            source,
        };
        let mut options = OpenOptions::new();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let until = Instant::now() + LOCK_WAIT;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    return Ok(Self {
                        _file: file,
                        home: home.clone(),
                    });
                }
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until && !answers(home) => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(ControlStartError::AlreadyRunning {
                        home: home.root().to_owned(),
                    });
                }
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

/// The listening socket of a running node.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    max_line_bytes: u64,
    max_connections: usize,
}

impl ControlServer {
    /// Listens in the home that `lock` holds; commands work from here on. A socket that a killed node left is replaced, which
    /// only the lock makes safe. `max_line_bytes` and `max_connections` are `limits.control_*`.
    ///
    /// # Errors
    /// [`ControlStartError`].
    pub fn bind(
        lock: &HomeLock,
        max_line_bytes: u64,
        max_connections: u64,
    ) -> Result<Self, ControlStartError> {
        let path = lock.home.prepare_socket()?;
        let failed = |source: io::Error| ControlStartError::Io {
            path: path.clone(),
            source,
        };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
        let max_connections = usize::try_from(max_connections)
            .unwrap_or(usize::MAX)
            .min(Semaphore::MAX_PERMITS);
        Ok(Self {
            listener,
            path,
            max_line_bytes,
            max_connections,
        })
    }

    /// Serves until `stop` is ready, then gives open calls a moment to end and removes the socket. A caller that still waits
    /// sees its connection close.
    pub async fn serve<H: ControlHandler>(self, handler: Arc<H>, stop: impl Future<Output = ()>) {
        let slots = Arc::new(Semaphore::new(self.max_connections));
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            let next = async {
                // A closed semaphore cannot be: nothing here closes it.
                let slot = Arc::clone(&slots).acquire_owned().await.ok();
                (slot, self.listener.accept().await)
            };
            tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next() => {}
                (slot, accepted) = next => match accepted {
                    Ok((stream, _)) if is_owner(&stream) => {
                        let handler = Arc::clone(&handler);
                        let max_line_bytes = self.max_line_bytes;
                        connections.spawn(async move {
                            converse(stream, handler.as_ref(), max_line_bytes).await;
                            drop(slot);
                        });
                    }
                    Ok(_) => tracing::warn!("a process of another user was turned away from local control"),
                    Err(error) => {
                        tracing::warn!(%error, "local control cannot accept");
                        tokio::time::sleep(ACCEPT_BACKOFF).await;
                    }
                },
            }
        }
        drop(self.listener);
        let _ = std::fs::remove_file(&self.path);
        let _ = tokio::time::timeout(DRAIN, async {
            while connections.join_next().await.is_some() {}
        })
        .await;
    }
}

/// Whether the other end belongs to the user who runs this node.
fn is_owner(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

/// One connection, until it ends.
async fn converse<H: ControlHandler>(stream: UnixStream, handler: &H, max_line_bytes: u64) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let limit = max_line_bytes.saturating_add(1);
        match (&mut reader).take(limit).read_until(b'\n', &mut line).await {
            Ok(_) if line.ends_with(b"\n") => {}
            Ok(read) if u64::try_from(read).is_ok_and(|read| read >= limit) => {
                // The rest of the line cannot be told from the next one: answer, and hang up.
                let error = ControlError {
                    number: -32_600,
                    ..ControlError::new("payload_too_large", "the line is too long")
                };
                let _ = write_line(&mut writer, &answer(&Value::Null, Err(error))).await;
                return;
            }
            _ => return,
        }
        let (id, call) = match parse(&line) {
            Ok(request) => request,
            Err(Malformed { id, number, reason }) => {
                let error = ControlError::malformed(number, reason);
                if write_line(&mut writer, &answer(&id, Err(error)))
                    .await
                    .is_err()
                {
                    return;
                }
                continue;
            }
        };
        if answer_call(&mut reader, &mut writer, handler, id, call)
            .await
            .is_none()
        {
            return;
        }
    }
}

struct Call {
    method: String,
    params: Value,
}

/// Runs one call to its answer; `None` when the caller is gone.
async fn answer_call<H: ControlHandler>(
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    handler: &H,
    id: Value,
    call: Call,
) -> Option<()> {
    let (queue, mut progress) = mpsc::channel(PROGRESS_DEPTH);
    let work = handler.call(&call.method, call.params, NotifySender { queue });
    tokio::pin!(work);
    let mut watching = true;
    let result = loop {
        tokio::select! {
            biased;
            Some(message) = progress.recv() => write_line(writer, &message).await.ok()?,
            result = &mut work => break result,
            // The next request may already be there; it waits its turn. No bytes at all mean that the caller left.
            waiting = reader.fill_buf(), if watching => match waiting {
                Ok(bytes) if !bytes.is_empty() => watching = false,
                _ => return None,
            },
        }
    };
    while let Ok(message) = progress.try_recv() {
        write_line(writer, &message).await.ok()?;
    }
    write_line(writer, &answer(&id, result)).await.ok()
}

/// A line that is no request: what to answer, with the id where one can be read.
struct Malformed {
    id: Value,
    number: i64,
    reason: &'static str,
}

/// A line as a request with an id.
fn parse(line: &[u8]) -> Result<(Value, Call), Malformed> {
    let refused = |id, number, reason| Err(Malformed { id, number, reason });
    let Ok(request) = serde_json::from_slice::<Value>(line) else {
        return refused(Value::Null, -32_700, "the line is not JSON");
    };
    let id = request.get("id").cloned().unwrap_or(Value::Null);
    if !id.is_string() && !id.is_number() {
        return refused(Value::Null, -32_600, "`id` is not a string or a number");
    }
    if request.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return refused(id, -32_600, "`jsonrpc` is not \"2.0\"");
    }
    let Some(method) = request
        .get("method")
        .and_then(Value::as_str)
        .map(str::to_owned)
    else {
        return refused(id, -32_600, "`method` is not a string");
    };
    let params = request.get("params").cloned().unwrap_or_else(|| json!({}));
    if !params.is_object() {
        return refused(id, -32_600, "`params` is not an object");
    }
    Ok((id, Call { method, params }))
}

fn answer(id: &Value, result: Result<Value, ControlError>) -> Value {
    match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(error) => json!({ "jsonrpc": "2.0", "id": id, "error": error.to_json() }),
    }
}

async fn write_line(writer: &mut OwnedWriteHalf, message: &Value) -> io::Result<()> {
    writer.write_all(format!("{message}\n").as_bytes()).await
}

#[cfg(test)]
mod tests;
