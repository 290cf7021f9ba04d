//! Starts the npm relay of `tests/npm-relay`, so that a test also runs against a relay that is not ours.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running npm relay; dropping it ends the process. Start another one with the same `data` to restart it.
pub(crate) struct NpmRelay {
    pub(crate) url: String,
    process: Child,
}

impl NpmRelay {
    /// Starts it on a free port. `None` only when `LEGION_SKIP_NPM=1` asks for it, and then stderr says so. Installs it first where that is needed. The packages are looked for in the folder that `LEGION_NPM_RELAY` names (one that holds
    /// `node_modules` and `relay.mjs`), else in `tests/npm-relay`.
    pub(crate) fn start(data: Option<&Path>) -> Option<Self> {
        Self::start_at(0, data)
    }

    /// The same on a given port, to come back where clients expect it.
    pub(crate) fn start_at(port: u16, data: Option<&Path>) -> Option<Self> {
        if std::env::var_os("LEGION_SKIP_NPM").is_some_and(|value| value == "1") {
            eprintln!("NOT TESTED: the npm relay is skipped because LEGION_SKIP_NPM=1");
            return None;
        }
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/npm-relay");
        let folder = std::env::var_os("LEGION_NPM_RELAY").map_or(home, PathBuf::from);
        install(&folder);
        let mut command = Command::new("node");
        command
            .arg(folder.join("relay.mjs"))
            .args(["--port", &port.to_string()]);
        if let Some(path) = data {
            command.arg("--data").arg(path);
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`node` (20 or later) starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("stdout is piped"))
            .read_line(&mut line)
            .expect("the relay says it is ready");
        let ready: serde_json::Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("the npm relay did not start: {line:?}"));
        Some(Self {
            url: ready["url"].as_str().expect("a url").to_owned(),
            process,
        })
    }
}

/// Installs the packages, once, where they are missing: newcomers type `cargo test` and nothing else.
fn install(folder: &Path) {
    static INSTALLING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = INSTALLING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if folder.join("node_modules/@nostr-relay/core").is_dir() {
        return;
    }
    eprintln!(
        "installing the npm relay with `npm ci` in {}",
        folder.display()
    );
    let npm = Command::new("npm")
        .args(["ci", "--no-audit", "--no-fund"])
        .current_dir(folder)
        .stdout(Stdio::null())
        .status();
    assert!(
        npm.is_ok_and(|status| status.success()),
        "the npm relay cannot be installed; run `npm ci` in {}, or set LEGION_SKIP_NPM=1 to leave it out",
        folder.display()
    );
}

impl Drop for NpmRelay {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
