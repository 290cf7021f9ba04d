//! The worker's sandbox: what a worker process gives up for good before it reads its first frame, so that a skill that was
//! talked into something finds no key file, no store, no network and no other process. This file holds the settings, the
//! levels and the question "what does this system offer"; it must not know skills, peers or who is served at which level.
//!
//! Everything is applied by the worker to itself, in the only thread that it has at that moment; all later threads inherit it.
//! The parent's part (empty environment, no descriptors, own process group and folder, parent-death signal) is the supervisor's.
//!
//! | layer | what it takes away | where |
//! |---|---|---|
//! | `landlock` | every file but the worker's own folder and what the node names (`--allow-...`) | Linux 5.13, whole from 6.2 |
//! | `seccomp` | sockets, other processes, new programs, changing modes and owners of files, mounting, io_uring, ... | Linux on x86_64, aarch64, riscv64 |
//! | `no_new_privs`, `capabilities` | gaining or having any privilege, root's included | Linux |
//! | `rlimits` | core dumps, endless files, memory far above the limit between two looks of the watchdog | Linux |
//!
//! Not taken away: time, its own cores, its pipes, names and sizes of files that it can guess (`stat` is not Landlock's), and
//! what a hole in the kernel gives. A program of the owner's is started through `legion worker --run`, which enters the sandbox and
//! becomes that program: [`program`] says what it may reach.

#[cfg(all(feature = "labor", target_os = "linux"))]
mod filter;
#[cfg(all(feature = "labor", target_os = "linux"))]
mod linux;
#[cfg(all(
    feature = "labor",
    target_os = "linux",
    any(feature = "crash-points", debug_assertions)
))]
pub(crate) mod probe;
pub mod program;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::config::SandboxLevel;

/// A worker that only says what its sandbox is has this long; it needs some milliseconds.
const SURVEY_PATIENCE: Duration = Duration::from_secs(10);

/// How a worker is confined: told by its node in its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// False: no confinement at all, by the owner's wish.
    pub on: bool,
    /// With less than this the worker refuses to work, and exits.
    pub at_least: SandboxLevel,
    /// Folders and files that it may read besides its own folder, for example a model's.
    pub read: Vec<PathBuf>,
    /// Folders and files that it may also run programs from. Not empty: it may start processes at all.
    pub exec: Vec<PathBuf>,
    /// Device files that it may read, write and control, for example `/dev/nvidia0`.
    pub devices: Vec<PathBuf>,
    /// The TCP port that it may connect to, of any host: the layer `network` is then missing.
    pub tcp: Option<u16>,
    /// The watchdog's limit; the system itself stops the worker at a little over twice as much. 0: no such stop.
    pub memory_bytes: u64,
    /// Layers to do without, as if the system had none: debug builds only, for tests.
    pub lacks: Vec<String>,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            on: true,
            at_least: SandboxLevel::None,
            read: Vec::new(),
            exec: Vec::new(),
            devices: Vec::new(),
            tcp: None,
            memory_bytes: 0,
            lacks: Vec::new(),
        }
    }
}

impl Sandbox {
    /// The words for the worker's command line.
    pub fn args(&self) -> Vec<OsString> {
        let level = if self.on {
            self.at_least.as_str()
        } else {
            "off"
        };
        let mut words: Vec<OsString> = vec!["--sandbox".into(), level.into()];
        if self.memory_bytes > 0 {
            words.extend([
                "--memory-bytes".into(),
                self.memory_bytes.to_string().into(),
            ]);
        }
        let paths = [
            ("--allow-read", &self.read),
            ("--allow-exec", &self.exec),
            ("--allow-device", &self.devices),
        ];
        for (flag, paths) in paths {
            for path in paths {
                words.extend([flag.into(), path.clone().into()]);
            }
        }
        if let Some(port) = self.tcp {
            words.extend(["--allow-tcp".into(), port.to_string().into()]);
        }
        if !self.lacks.is_empty() {
            words.extend(["--lacks".into(), self.lacks.join(",").into()]);
        }
        words
    }

    /// Takes one flag with its value, if it is one of [`Sandbox::args`]; the error is for a person.
    #[cfg(feature = "labor")]
    pub(crate) fn take(&mut self, flag: &str, value: &std::ffi::OsStr) -> Result<bool, String> {
        let path = PathBuf::from(value);
        match flag {
            "--sandbox" if value == "off" => self.on = false,
            "--sandbox" => {
                let level = value.to_str().and_then(SandboxLevel::parse);
                self.at_least = level.ok_or("--sandbox takes off, none, partial or full")?;
            }
            "--memory-bytes" => {
                let bytes = value.to_str().and_then(|number| number.parse().ok());
                self.memory_bytes = bytes.ok_or("--memory-bytes takes a number")?;
            }
            "--allow-read" => self.read.push(path),
            "--allow-exec" => self.exec.push(path),
            "--allow-device" => self.devices.push(path),
            "--allow-tcp" => {
                let port = value.to_str().and_then(|number| number.parse().ok());
                self.tcp = Some(port.ok_or("--allow-tcp takes a port")?);
            }
            "--lacks" if cfg!(any(feature = "crash-points", debug_assertions)) => {
                let layers = value.to_str().unwrap_or_default().split(',');
                self.lacks.extend(layers.map(str::to_owned));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Confines this process, which must have one thread, for the rest of its life. Gives what is in force now.
    #[cfg(feature = "labor")]
    pub(crate) fn enter(&self, threads: u32) -> SandboxReport {
        if !self.on {
            return SandboxReport::without("switched_off");
        }
        #[cfg(target_os = "linux")]
        {
            linux::enter(self, threads)
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = threads;
            SandboxReport::of(["landlock", "seccomp"])
        }
    }
}

/// What confines a worker: `{"level":"partial","missing":["landlock"]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxReport {
    /// How much of it.
    pub level: SandboxLevel,
    /// The layers that are not there, by the names of the table above; `landlock_truncate`, `landlock_scope` and `landlock_net` are parts of
    /// it that an older kernel lacks, `network` means that it may connect to one port, as the owner wants,
    /// `single_thread` that another thread escaped, `switched_off` the owner's wish,
    /// and `worker_start` that no worker could be asked.
    pub missing: Vec<String>,
}

impl SandboxReport {
    /// Full: nothing is missing. Partial: files or the network are out of reach, but something is missing. None: else.
    #[cfg(feature = "labor")]
    fn of(missing: impl IntoIterator<Item = &'static str>) -> Self {
        let missing: Vec<String> = missing.into_iter().map(str::to_owned).collect();
        let lacks = |layer: &str| missing.iter().any(|name| name == layer);
        let level = if missing.is_empty() {
            SandboxLevel::Full
        } else if lacks("single_thread")
            || (lacks("landlock") && (lacks("seccomp") || lacks("network")))
        {
            SandboxLevel::None
        } else {
            SandboxLevel::Partial
        };
        Self { level, missing }
    }

    /// No sandbox at all, for this reason.
    pub(crate) fn without(reason: &str) -> Self {
        Self {
            level: SandboxLevel::None,
            missing: vec![reason.to_owned()],
        }
    }
}

/// Asks a worker of `program` what its sandbox is on this system: the only honest answer is to enter it. `folder` is made, and is
/// the worker's for that moment. Takes about as long as starting the program; a program that cannot answer has none.
pub async fn survey(program: &Path, sandbox: &Sandbox, folder: &Path) -> SandboxReport {
    if !sandbox.on {
        return SandboxReport::without("switched_off");
    }
    let asked = async {
        std::fs::create_dir_all(folder)?;
        tokio::process::Command::new(program)
            .arg("worker")
            .args(sandbox.args())
            .args(["--then", "report"])
            .env_clear()
            .current_dir(folder)
            .stdin(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
    };
    let said = tokio::time::timeout(SURVEY_PATIENCE, asked).await;
    let report = match &said {
        Ok(Ok(output)) => serde_json::from_slice(&output.stdout).ok(),
        _ => None,
    };
    report.unwrap_or_else(|| SandboxReport::without("worker_start"))
}

#[cfg(all(test, feature = "labor"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The promise: what a node says is what its worker understands.
    #[test]
    fn arguments_roundtrip() {
        let said = Sandbox {
            on: true,
            at_least: SandboxLevel::Partial,
            read: vec!["/a b".into(), "/c".into()],
            exec: vec!["/bin".into()],
            devices: vec!["/dev/nvidia0".into()],
            tcp: Some(11434),
            memory_bytes: 1 << 30,
            lacks: vec!["landlock".into(), "seccomp".into()],
        };
        for said in [said, Sandbox::default()] {
            let mut heard = Sandbox::default();
            for pair in said.args().chunks(2) {
                assert!(heard.take(pair[0].to_str().unwrap(), &pair[1]).unwrap());
            }
            assert_eq!(heard, said);
        }
        let mut heard = Sandbox::default();
        assert!(heard.take("--sandbox", "most".as_ref()).is_err());
        assert!(!heard.take("--threads", "1".as_ref()).unwrap());
        assert!(heard.take("--sandbox", "off".as_ref()).unwrap() && !heard.on);
    }

    /// The promise: a level is what is missing, not what somebody hopes.
    #[test]
    fn levels() {
        let level = |missing: &[&'static str]| SandboxReport::of(missing.iter().copied()).level;
        assert_eq!(level(&[]), SandboxLevel::Full);
        for missing in ["landlock", "seccomp", "landlock_truncate", "rlimits"] {
            assert_eq!(level(&[missing]), SandboxLevel::Partial, "{missing}");
        }
        assert_eq!(level(&["landlock", "seccomp"]), SandboxLevel::None);
        assert_eq!(level(&["single_thread"]), SandboxLevel::None);
        assert_eq!(level(&["network"]), SandboxLevel::Partial);
        assert_eq!(level(&["network", "seccomp"]), SandboxLevel::Partial);
        assert_eq!(level(&["network", "landlock"]), SandboxLevel::None);
        let report = serde_json::to_value(SandboxReport::of(["landlock"])).unwrap();
        assert_eq!(
            report,
            serde_json::json!({"level": "partial", "missing": ["landlock"]})
        );
    }
}
