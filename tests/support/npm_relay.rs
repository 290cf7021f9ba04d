//! Starts the npm relay of `tests/npm-relay`, so that a test also runs against a relay that is not ours.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// A running npm relay; dropping it ends the process. Start another one with the same `data` to restart it.
pub(crate) struct NpmRelay {
    pub(crate) url: String,
    process: Child,
}

impl NpmRelay {
    /// Starts it on a free port. Where it is not installed it is installed; where that fails, `None`, and stderr says that this
    /// was not tested. With `LEGION_REQUIRE_NPM=1` (as in CI) that is a failure, with `LEGION_SKIP_NPM=1` nothing is tried. The
    /// packages are looked for in the folder that `LEGION_NPM_RELAY` names (one that holds `node_modules` and `relay.mjs`), else
    /// in `tests/npm-relay`.
    pub(crate) fn start(data: Option<&Path>) -> Option<Self> {
        Self::start_at(0, data)
    }

    /// The same on a given port, to come back where clients expect it.
    pub(crate) fn start_at(port: u16, data: Option<&Path>) -> Option<Self> {
        let asked = |name: &str| std::env::var_os(name).is_some_and(|value| value == "1");
        if asked("LEGION_SKIP_NPM") {
            eprintln!("NOT TESTED: the npm relay is skipped because LEGION_SKIP_NPM=1");
            return None;
        }
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/npm-relay");
        let folder = std::env::var_os("LEGION_NPM_RELAY").map_or(home, PathBuf::from);
        if !installed(&folder) {
            let advice = format!("run `npm ci` in {}", folder.display());
            assert!(
                !asked("LEGION_REQUIRE_NPM"),
                "the npm relay is not installed; {advice}"
            );
            eprintln!("NOT TESTED: the npm relay cannot be installed here; {advice}");
            return None;
        }
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

/// Whether the packages are there, if need be after one try to install them.
fn installed(folder: &Path) -> bool {
    static TRIED: Mutex<bool> = Mutex::new(false);
    let there = || folder.join("node_modules/@nostr-relay/core").is_dir();
    // Tests run at once: all wait for the one that installs.
    let mut tried = TRIED.lock().unwrap_or_else(PoisonError::into_inner);
    if !there() && !std::mem::replace(&mut *tried, true) {
        let install = ["ci", "--no-audit", "--no-fund", "--silent"];
        let _ = Command::new("npm")
            .args(install)
            .current_dir(folder)
            .status();
    }
    there()
}

impl Drop for NpmRelay {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
