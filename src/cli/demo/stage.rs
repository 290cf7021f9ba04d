//! What the demonstration is played on: a directory, a relay and two nodes, each a process of this very binary with a temporary home.
//! However the play ends, the processes are ended and waited for, and the directory is removed unless it is to be kept.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::story::Kill;
use crate::cli::control::{CallError, Client};
use crate::cli::error::CliError;
use crate::config::Home;

/// A process that has not said that it is ready by then never will.
const READY: Duration = Duration::from_secs(60);
/// A node ends within 20 s of SIGTERM; what does not is killed.
const END: Duration = Duration::from_secs(20);

/// Unix time, milliseconds.
pub(super) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX))
}

/// The directory and the processes.
pub(super) struct Stage {
    dir: PathBuf,
    keep: bool,
    relay: Option<(Child, String)>,
    nodes: Vec<(String, Child)>,
}

/// A node as the play sees it: its names, and a connection to its control socket.
pub(super) struct Actor {
    name: String,
    home: PathBuf,
    /// Its npub.
    pub(super) npub: String,
    /// Its Nostr key, hex, as journals name it.
    pub(super) key: String,
    client: Client,
}

impl Actor {
    /// Calls a method of the node.
    pub(super) async fn call(&mut self, method: &str, params: Value) -> Result<Value, CliError> {
        self.client
            .call(method, params)
            .await
            .map_err(CallError::into_error)
    }

    /// The journal's entries from this sequence number on.
    pub(super) async fn journal(&mut self, from: u64) -> Result<Vec<Value>, CliError> {
        let view = self.call("journal/read", json!({ "from": from })).await?;
        Ok(view
            .get("entries")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default())
    }
}

impl Stage {
    /// A private temporary directory, or the one to keep, which must not hold anything yet.
    pub(super) fn new(keep: Option<&Path>) -> Result<Self, CliError> {
        let dir = match keep {
            Some(dir) => {
                std::path::absolute(dir).map_err(|error| CliError::io(dir.display(), &error))?
            }
            None => std::env::temp_dir().join(format!(
                "legion-demo-{}-{}",
                std::process::id(),
                now_ms()
            )),
        };
        if fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
            let message = format!("the directory {} is not empty", dir.display());
            return Err(CliError::new("keep_not_empty", message));
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|error| CliError::io(dir.display(), &error))?;
        Ok(Self {
            dir,
            keep: keep.is_some(),
            relay: None,
            nodes: Vec::new(),
        })
    }

    /// Starts the relay on a free port; its URL. With `--keep` its events are kept too.
    pub(super) async fn relay(&mut self) -> Result<String, CliError> {
        let mut command = program()?;
        command.args(["relay", "--json", "--listen", "127.0.0.1:0"]);
        if self.keep {
            command.arg("--data").arg(self.dir.join("relay.events"));
        }
        let (child, ready) = started(command, &self.dir.join("relay.log")).await?;
        let url = ready
            .get("url")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        self.relay = Some((child, url.clone()));
        Ok(url)
    }

    /// Makes a home that knows nothing but the relay, and starts its node.
    pub(super) async fn node(&mut self, name: &str, relay: &str) -> Result<Actor, CliError> {
        let home = self.dir.join(name);
        Home::new(home.clone()).create()?;
        let settings = format!(
            "# Written by `legion demo`; a setting that is not here has its default.\nrelays = [\"{relay}\"]\n\n[owner]\nname = \"demo\"\nnode = \"{name}\"\n\n\
             # So that there is time to kill the node, whatever machine this is.\n[labor]\ncores = 2\ncheckpoint_every_units = 16\n"
        );
        write(&home.join("config/legion.toml"), &settings)?;
        let mut init = program()?;
        init.arg("--home")
            .arg(&home)
            .args(["--json", "init", "--no-passphrase", "--mnemonic-out"]);
        init.arg(self.dir.join(format!("{name}.words")))
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let output = init
            .output()
            .await
            .map_err(|error| CliError::io("this program", &error))?;
        let id: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        refused(&id)?;
        let text = |field: &str| {
            id.get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let client = self.start(name, &home).await?;
        Ok(Actor {
            name: name.to_owned(),
            home,
            npub: text("npub"),
            key: text("nostr"),
            client,
        })
    }

    async fn start(&mut self, name: &str, home: &Path) -> Result<Client, CliError> {
        let mut command = program()?;
        command.arg("--home").arg(home).args(["--json", "up"]);
        let (child, _) = started(command, &self.dir.join(format!("{name}.log"))).await?;
        self.nodes.push((name.to_owned(), child));
        Client::connect(&Home::new(home.to_owned())).await
    }

    /// Ends a node as a power cut would, and its worker with it.
    pub(super) async fn kill(&mut self, actor: &mut Actor) -> Result<Kill, CliError> {
        let at = self.nodes.iter().position(|(name, _)| *name == actor.name);
        let Some((_, mut child)) = at.map(|at| self.nodes.remove(at)) else {
            return Err(CliError::hinted(
                "demo_failed",
                "the node to kill is not running",
                "try again",
            ));
        };
        let pid = child.id().unwrap_or_default();
        let at_ms = now_ms();
        child
            .kill()
            .await
            .map_err(|error| CliError::io("the worker's node", &error))?;
        Ok(Kill {
            pid,
            at_ms,
            back_ms: 0,
        })
    }

    /// Starts a node again.
    pub(super) async fn up(&mut self, actor: &mut Actor) -> Result<(), CliError> {
        actor.client = self.start(&actor.name, &actor.home).await?;
        Ok(())
    }

    /// Ends every process and waits for it: in order after a play that went well, at once otherwise. Then the directory goes.
    pub(super) async fn end(&mut self, orderly: bool) {
        let relay = self.relay.as_mut().map(|(child, _)| child);
        let mut children: Vec<&mut Child> = self
            .nodes
            .iter_mut()
            .map(|(_, child)| child)
            .chain(relay)
            .collect();
        if orderly {
            for child in &children {
                let pid = child
                    .id()
                    .and_then(|id| i32::try_from(id).ok())
                    .and_then(rustix::process::Pid::from_raw);
                if let Some(pid) = pid {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
            }
            let last = tokio::time::Instant::now() + END;
            for child in &mut children {
                let _ = tokio::time::timeout_at(last, child.wait()).await;
            }
        }
        for child in &mut children {
            let _ = child.kill().await;
        }
        self.nodes.clear();
        if !self.keep {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    /// Where everything lies, and how to look at it: `{dir,commands}`, with `--keep`.
    pub(super) fn kept(&self) -> Option<Value> {
        let (_, url) = self.relay.as_ref().filter(|_| self.keep)?;
        let home = |name: &str| format!("--home {}", quoted(&self.dir.join(name)));
        let mut commands = vec![
            format!(
                "legion relay --listen {} --data {} &",
                url.trim_start_matches("ws://"),
                quoted(&self.dir.join("relay.events"))
            ),
            format!("legion {} up &", home("asker")),
            format!("legion {} up &", home("worker")),
        ];
        for name in ["asker", "worker"] {
            for command in ["tasks", "ledger", "peers"] {
                commands.push(format!("legion {} {command}", home(name)));
            }
        }
        Some(json!({ "dir": self.dir, "commands": commands }))
    }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| CliError::io(path.display(), &error))
}

/// This very binary.
fn program() -> Result<Command, CliError> {
    let path =
        std::env::current_exe().map_err(|error| CliError::io("this program's path", &error))?;
    let mut command = Command::new(path);
    command.env_remove("LEGION_HOME").kill_on_drop(true);
    Ok(command)
}

/// Starts a process with its stderr in a file, and waits for its first line: `{"ready":true,...}`, or why it cannot start.
async fn started(mut command: Command, log: &Path) -> Result<(Child, Value), CliError> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .map_err(|error| CliError::io(log.display(), &error))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| CliError::io("this program", &error))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        let read = tokio::time::timeout(READY, BufReader::new(stdout).read_line(&mut line)).await;
        if let Ok(Err(error)) = read {
            return Err(CliError::io("a process of the demonstration", &error));
        }
    }
    let ready: Value = serde_json::from_str(&line).unwrap_or_default();
    refused(&ready)?;
    if ready.get("ready") != Some(&Value::Bool(true)) {
        let message = "a process of the demonstration did not start";
        return Err(CliError::new("demo_failed", message));
    }
    Ok((child, ready))
}

/// The error object of a command of this program, as an error of this one.
fn refused(answer: &Value) -> Result<(), CliError> {
    let Some(error) = answer.get("error") else {
        return Ok(());
    };
    let text = |field: &str| {
        error
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    Err(CliError::hinted(
        text("code"),
        text("message"),
        text("hint"),
    ))
}
