//! What a program that was not made for the sandbox has to reach in order to run at all: the system's own folders, the folder that
//! it was installed into, and the files that its command line names. It must not know what the program does.

use std::path::{Component, Path, PathBuf};

/// Programs, libraries and interpreters of the system, world-readable on any machine.
const SYSTEM: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32"];
/// Where the loader finds libraries.
const LOADER: &str = "/etc/ld.so.cache";
/// The parts of `X` that belong to a program `X/bin/prog`. `X` as a whole may be somebody's home with all its secrets.
const INSTALLED: [&str; 5] = ["bin", "lib", "lib64", "libexec", "pyvenv.cfg"];

/// What a command may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Files to read.
    pub read: Vec<PathBuf>,
    /// Files and folders to read and to run programs from.
    pub exec: Vec<PathBuf>,
}

impl Reach {
    /// The reach of `program` with `args`: the system's folders; of a program `X/bin/prog` the parts of `X` that belong to it, both as
    /// it is named and as its links resolve (a virtual environment is such a link); and each file that an argument names by
    /// its absolute path, but not the folder it lies in. A path that would show `hidden` is left out.
    pub fn of(program: &Path, args: &[String], hidden: &Path) -> Self {
        let mut exec: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
        let resolved = program.canonicalize().ok();
        for program in [Some(program.to_owned()), resolved].into_iter().flatten() {
            if let Some(folder) = program.parent().filter(|folder| folder.ends_with("bin")) {
                let prefix = folder.parent().unwrap_or(folder);
                exec.extend(INSTALLED.iter().map(|part| prefix.join(part)));
            }
            exec.push(program);
        }
        let mut read = vec![PathBuf::from(LOADER)];
        read.extend(files(args));
        for list in [&mut read, &mut exec] {
            list.retain(|path| path.exists() && !shows(path, hidden));
            list.sort();
            list.dedup();
        }
        Self { read, exec }
    }
}

/// The files that arguments name by their absolute paths.
pub fn files(args: &[String]) -> impl Iterator<Item = PathBuf> {
    let named = args.iter().map(Path::new);
    let named = named.filter(|path| path.is_absolute() && path.is_file());
    named.map(Path::to_owned)
}

/// Whether who may read `path` could read something of the folder `hidden`, or lies in it.
pub fn shows(path: &Path, hidden: &Path) -> bool {
    let (path, hidden) = (resolved(path), resolved(hidden));
    // What is not there is judged by its words, and these must not go back up.
    let climbs = path.components().any(|part| part == Component::ParentDir);
    climbs || hidden.starts_with(&path) || path.starts_with(&hidden)
}

/// The path without links, as far as it is there.
fn resolved(path: &Path) -> PathBuf {
    let mut above = path.ancestors();
    let found = above.find_map(|known| {
        let rest = path.strip_prefix(known).ok()?;
        Some(known.canonicalize().ok()?.join(rest))
    });
    found.unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    /// The promise: a program reaches its own installation and the files it is told of, and never a path that shows the home.
    #[test]
    fn a_program_reaches_what_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (venv, real) = (root.join("venv"), root.join("python"));
        for folder in [&venv, &real] {
            for part in ["bin", "lib", "etc"] {
                fs::create_dir_all(folder.join(part)).unwrap();
            }
        }
        fs::write(real.join("bin/python3"), "").unwrap();
        std::os::unix::fs::symlink(real.join("bin/python3"), venv.join("bin/python")).unwrap();
        let home = root.join("home");
        fs::create_dir_all(home.join("keys")).unwrap();
        for file in ["script.py", "home/keys/identity.json"] {
            fs::write(root.join(file), "").unwrap();
        }
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let args = [
            "-u".to_owned(),
            text(root.join("script.py")),
            text(root.join("absent")),
            text(root.clone()),
            text(root.join("home/keys/../keys/identity.json")),
        ];
        let reach = Reach::of(&venv.join("bin/python"), &args, &home);
        let below = |paths: &[PathBuf]| -> Vec<String> {
            let own = paths
                .iter()
                .filter_map(|path| path.strip_prefix(&root).ok());
            own.map(|path| path.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(below(&reach.read), ["script.py"]);
        assert_eq!(
            below(&reach.exec),
            [
                "python/bin",
                "python/bin/python3",
                "python/lib",
                "venv/bin",
                "venv/bin/python",
                "venv/lib"
            ]
        );
        assert!(reach.exec.contains(&PathBuf::from("/usr")));

        // A home that lies in the installation takes that part of it away.
        let inside = real.join("lib/home");
        fs::create_dir(&inside).unwrap();
        let reach = Reach::of(&real.join("bin/python3"), &[], &inside);
        assert_eq!(below(&reach.exec), ["python/bin", "python/bin/python3"]);
    }

    /// The promise: above, inside, the same, by a link, or by a way that cannot be judged: all of it shows the home.
    #[test]
    fn what_shows_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir_all(home.join("keys")).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&home, &link).unwrap();
        for path in [
            dir.path().to_owned(),
            home.clone(),
            home.join("keys"),
            home.join("absent"),
            link.join("keys"),
            link.join("absent"),
            PathBuf::from("/"),
            PathBuf::from("/absent/../home"),
        ] {
            assert!(shows(&path, &home), "{}", path.display());
        }
        assert!(!shows(&dir.path().join("beside"), &home));
        assert!(!shows(Path::new("/usr"), &home));
    }
}
