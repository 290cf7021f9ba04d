//! Where a passphrase comes from: a file, an open descriptor or the terminal. Never argv, which every process can read, and
//! never the environment, which children inherit.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::CliError;

/// More than any person types; a wrong path must not read a disk into memory.
const MAX_PASSPHRASE_BYTES: u64 = 4_096;

/// The flags of `init` and `up`.
#[derive(clap::Args)]
#[group(multiple = false)]
pub(crate) struct PassphraseArgs {
    /// Keep the key file unencrypted
    #[arg(long)]
    pub(crate) no_passphrase: bool,
    /// Read the passphrase from the first line of a file
    #[arg(long, value_name = "F")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Read the passphrase from the first line of an open file descriptor
    #[arg(long, value_name = "N")]
    pub(crate) passphrase_fd: Option<u32>,
}

impl PassphraseArgs {
    /// The passphrase for a new key file; none with `--no-passphrase`. On a terminal it is asked for twice.
    pub(crate) fn for_new_key(&self) -> Result<Option<Zeroizing<String>>, CliError> {
        if self.no_passphrase {
            return Ok(None);
        }
        if let Some(given) = self.given()? {
            return Ok(Some(given));
        }
        let first = prompt("Passphrase for the new key file: ")?;
        let second = prompt("The same passphrase again: ")?;
        if *first == *second {
            Ok(Some(first))
        } else {
            Err(CliError::new(
                "passphrase_mismatch",
                "the two passphrases differ",
            ))
        }
    }

    /// The passphrase of an encrypted key file that exists.
    pub(crate) fn for_existing_key(&self) -> Result<Zeroizing<String>, CliError> {
        if self.no_passphrase {
            let message = "this node's key file is encrypted";
            return Err(CliError::new("passphrase_required", message));
        }
        match self.given()? {
            Some(given) => Ok(given),
            None => prompt("Passphrase of the key file: "),
        }
    }

    fn given(&self) -> Result<Option<Zeroizing<String>>, CliError> {
        if let Some(path) = &self.passphrase_file {
            return read(path).map(Some);
        }
        // The descriptor is opened again through its name, so that no code here has to vouch for owning it.
        self.passphrase_fd
            .map(|fd| read(Path::new(&format!("/dev/fd/{fd}"))))
            .transpose()
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>, CliError> {
    let unreadable = |error: std::io::Error| {
        let message = format!(
            "the passphrase cannot be read from {}: {error}",
            path.display()
        );
        CliError::new("passphrase_unreadable", message)
    };
    let file = File::open(path).map_err(unreadable)?;
    // With its full capacity from the start, no growing string leaves a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_PASSPHRASE_BYTES as usize + 1));
    file.take(MAX_PASSPHRASE_BYTES)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    let line = Zeroizing::new(text.lines().next().unwrap_or_default().to_owned());
    not_empty(line)
}

fn prompt(text: &str) -> Result<Zeroizing<String>, CliError> {
    if !std::io::stdin().is_terminal() {
        let message = "a passphrase is needed, and there is no terminal to ask on";
        return Err(CliError::new("passphrase_required", message));
    }
    let typed = rpassword::prompt_password(text)
        .map_err(|error| CliError::system("the terminal", &error))?;
    not_empty(Zeroizing::new(typed))
}

fn not_empty(passphrase: Zeroizing<String>) -> Result<Zeroizing<String>, CliError> {
    if passphrase.is_empty() {
        return Err(CliError::new("passphrase_empty", "the passphrase is empty"));
    }
    Ok(passphrase)
}
