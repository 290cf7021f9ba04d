//! A node's home directory: where each file lies, and what protects it.
//!
//! It knows names, modes and the rule about git work trees; it must not know what the files contain.

use std::ffi::OsString;
use std::fs::{DirBuilder, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::ConfigError;

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!(
    "Legion runs on Linux and macOS: its local control needs Unix sockets and their peer credentials"
);

/// Longest path that every supported system takes for a Unix socket, with room to spare (macOS: 104 bytes).
const MAX_SOCKET_PATH_BYTES: usize = 100;

/// The directory that holds one node: identity, settings, store and lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The home at `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self {
            root: std::path::absolute(&root).unwrap_or(root),
        }
    }

    /// The home a person means: `--home`, else `LEGION_HOME`, else `legion` in the platform's data directory.
    ///
    /// # Errors
    /// [`ConfigError::HomeUnknown`], or [`ConfigError::HomeInGit`] when git would take the keys along.
    pub fn resolve(flag: Option<PathBuf>) -> Result<Self, ConfigError> {
        let given = flag.or_else(|| {
            std::env::var_os("LEGION_HOME")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        });
        let root = given.or_else(|| dirs::data_dir().map(|dir| dir.join("legion")));
        let home = Self::new(root.ok_or(ConfigError::HomeUnknown)?);
        home.check_git()?;
        Ok(home)
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `config/legion.toml`.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.root.join("config").join("legion.toml")
    }

    /// `keys/`, 0700.
    #[must_use]
    pub fn keys_dir(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// `relays/`.
    #[must_use]
    pub fn relays_dir(&self) -> PathBuf {
        self.root.join("relays")
    }

    /// `store.redb`.
    #[must_use]
    pub fn store_file(&self) -> PathBuf {
        self.root.join("store.redb")
    }

    /// `lock`, held by the running node.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// `models/`: the register of models, and copies of those that were copied.
    #[must_use]
    pub fn models_dir(&self) -> PathBuf {
        self.root.join("models")
    }

    /// `logs/legion.log`.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.root.join("logs").join("legion.log")
    }

    /// Creates the home and its directories, private to their owner (0700). One that exists keeps its mode, except `keys/`.
    ///
    /// # Errors
    /// [`ConfigError::HomeUnusable`].
    pub fn create(&self) -> Result<(), ConfigError> {
        let config = self.root.join("config");
        let logs = self.root.join("logs");
        for dir in [
            &self.root,
            &config,
            &self.keys_dir(),
            &self.relays_dir(),
            &logs,
        ] {
            private_dir(dir).map_err(|error| unusable(dir, &error.to_string()))?;
        }
        let keys = self.keys_dir();
        std::fs::set_permissions(&keys, Permissions::from_mode(0o700))
            .map_err(|error| unusable(&keys, &error.to_string()))
    }

    /// Where the running node may listen, best first: `legion.sock` in the home; where that path is too long for a socket,
    /// a file named by the home's hash in a private directory under `XDG_RUNTIME_DIR`, or under `/tmp`. A node takes the
    /// first, a command tries them all, for the two may have been started with different environments.
    #[must_use]
    pub fn socket_candidates(&self) -> Vec<PathBuf> {
        let inside = self.root.join("legion.sock");
        if inside.as_os_str().as_bytes().len() <= MAX_SOCKET_PATH_BYTES {
            return vec![inside];
        }
        let real = self
            .root
            .canonicalize()
            .unwrap_or_else(|_| self.root.clone());
        let digest = Sha256::digest(real.as_os_str().as_bytes());
        let name = format!("{}.sock", hex::encode(digest.get(..8).unwrap_or_default()));
        let dir = OsString::from(format!("legion-{}", rustix::process::geteuid().as_raw()));
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        runtime
            .into_iter()
            .filter(|base| base.is_dir())
            .chain([PathBuf::from("/tmp")])
            .map(|base| base.join(&dir).join(&name))
            .filter(|path| path.as_os_str().as_bytes().len() <= MAX_SOCKET_PATH_BYTES)
            .collect()
    }

    /// The path to listen on; its directory exists and is ours alone.
    ///
    /// # Errors
    /// [`ConfigError::HomeUnusable`] when somebody else owns or can write the directory.
    pub fn prepare_socket(&self) -> Result<PathBuf, ConfigError> {
        let path = self
            .socket_candidates()
            .into_iter()
            .next()
            .ok_or(ConfigError::HomeUnknown)?;
        let Some(dir) = path.parent().filter(|dir| *dir != self.root) else {
            return Ok(path);
        };
        private_dir(dir).map_err(|error| unusable(dir, &error.to_string()))?;
        let meta = dir
            .symlink_metadata()
            .map_err(|error| unusable(dir, &error.to_string()))?;
        let ours = meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw();
        if ours && meta.mode() & 0o077 == 0 {
            Ok(path)
        } else {
            Err(unusable(
                dir,
                "it belongs to somebody else or others can enter it; remove it and try again",
            ))
        }
    }

    /// Refuses a home whose keys git would take along.
    fn check_git(&self) -> Result<(), ConfigError> {
        let existing = self
            .root
            .ancestors()
            .find(|dir| dir.is_dir())
            .unwrap_or(Path::new("/"));
        let real = existing
            .canonicalize()
            .unwrap_or_else(|_| existing.to_owned());
        if !real.ancestors().any(|dir| dir.join(".git").exists()) {
            return Ok(());
        }
        // What is ignored is git's to say: nested ignore files, negations and the user's own excludes all count.
        let rest = self.root.strip_prefix(existing).unwrap_or(Path::new(""));
        let status = Command::new("git")
            .args(["-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-C"])
            .arg(&real)
            .args(["check-ignore", "--quiet", "--no-index"])
            .arg(real.join(rest).join("keys").join("identity.key"))
            .env_remove("GIT_DIR")
            .env_remove("GIT_WORK_TREE")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        match status {
            Ok(status) if status.success() => Ok(()),
            _ => Err(ConfigError::HomeInGit {
                home: self.root.clone(),
            }),
        }
    }
}

fn private_dir(dir: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn unusable(path: &Path, reason: &str) -> ConfigError {
    ConfigError::HomeUnusable {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    //! Keys never lie where git would take them along, and a socket's path always fits.
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn git(dir: &Path, args: &[&str]) {
        let status = Command::new("git")
            .arg("-C")
            .arg(dir)
            .args(args)
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }

    #[test]
    fn a_home_in_a_work_tree_needs_ignored_keys() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("sub/home");
        assert!(
            Home::resolve(Some(inside.clone())).is_ok(),
            "no work tree yet"
        );
        git(dir.path(), &["init", "-q"]);
        assert_eq!(
            Home::resolve(Some(inside.clone())).unwrap_err().code(),
            "home_in_git"
        );
        assert_eq!(
            Home::resolve(Some(dir.path().to_owned()))
                .unwrap_err()
                .code(),
            "home_in_git"
        );
        std::fs::write(dir.path().join(".gitignore"), "keys/*\n!keys/README.md\n").unwrap();
        assert_eq!(
            Home::resolve(Some(inside.clone())).unwrap_err().code(),
            "home_in_git",
            "an anchored pattern covers the root's keys only"
        );
        assert!(Home::resolve(Some(dir.path().to_owned())).is_ok());
        std::fs::write(dir.path().join(".gitignore"), "**/keys/*\n").unwrap();
        assert!(Home::resolve(Some(inside)).is_ok());
    }

    #[test]
    fn directories_are_private_and_an_open_keys_dir_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path().join("home"));
        home.create().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        assert_eq!((mode(home.root()), mode(&home.keys_dir())), (0o700, 0o700));
        std::fs::set_permissions(home.keys_dir(), Permissions::from_mode(0o755)).unwrap();
        home.create().unwrap();
        assert_eq!(mode(&home.keys_dir()), 0o700);
    }

    #[test]
    fn a_long_home_gets_a_short_private_socket_path() {
        let dir = tempfile::tempdir().unwrap();
        let short = Home::new(dir.path().join("h"));
        assert_eq!(
            short.socket_candidates(),
            vec![short.root().join("legion.sock")]
        );
        let long = Home::new(dir.path().join("x".repeat(120)));
        let other = Home::new(dir.path().join("y".repeat(120)));
        let paths = long.socket_candidates();
        assert!(!paths.is_empty() && paths.iter().all(|path| path.as_os_str().len() <= 100));
        assert!(
            paths
                .iter()
                .all(|path| !other.socket_candidates().contains(path)),
            "two homes never share one"
        );
        let path = long.prepare_socket().unwrap();
        assert_eq!(
            path.parent().unwrap().metadata().unwrap().mode() & 0o777,
            0o700
        );
    }
}
