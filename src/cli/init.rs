//! `legion init`: makes a home. The key file is written last, so that a home either has an identity or can be initialised
//! again; nothing that exists is ever overwritten.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::CliError;
use super::output::{self, Reply};
use super::passphrase::PassphraseArgs;
use super::{Context, id, identity_adapter};
use crate::config::{Config, Home, RelayList, TEMPLATE, TEMPLATE_PUBLIC};
use crate::node::control::HomeLock;

const MAX_MNEMONIC_BYTES: u64 = 4_096;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Use this relay instead of the public list (repeat for several)
    #[arg(long, value_name = "URL")]
    relay: Vec<String>,
    #[command(flatten)]
    passphrase: PassphraseArgs,
    /// Restore an identity from the words in a file
    #[arg(long, value_name = "F")]
    mnemonic_file: Option<PathBuf>,
    /// With --mnemonic-file: the identity's epoch, which each `legion restore` has raised by one
    #[arg(
        long,
        value_name = "N",
        requires = "mnemonic_file",
        default_value_t = 0
    )]
    epoch: u32,
    /// Write the words to a new file (0600) instead of showing them on the terminal
    #[arg(long, value_name = "F")]
    mnemonic_out: Option<PathBuf>,
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let home = context.home()?;
    let keys = home.keys_dir();
    refuse_existing(home)?;
    for url in &args.relay {
        RelayList::check_url(url).map_err(|reason| CliError::new("relay_invalid", reason))?;
    }
    require_place_for_words(args)?;
    let words = match &args.mnemonic_file {
        Some(path) => read_words(path)?,
        None => identity_adapter::new_words()?,
    };
    identity_adapter::check_words(&words)?;
    let passphrase = args.passphrase.for_new_key()?;

    home.create()?;
    // Two at once: the second waits for nothing and finds the first one's lock, or its identity.
    let _lock = HomeLock::acquire(home)?;
    refuse_existing(home)?;
    let config = write_settings(home, &args.relay)?;
    let written = args
        .mnemonic_out
        .as_deref()
        .map(|path| write_words(path, &words))
        .transpose()?;
    let secret = passphrase.as_ref().map(|text| text.as_str());
    let created = identity_adapter::create(&keys, &words, (&config.owner, args.epoch), secret);
    if created.is_err()
        && let Some(path) = written
    {
        // Words of an identity that does not exist would only mislead; this call made the file.
        let _ = std::fs::remove_file(path);
    }
    let identity = created?;
    if args.mnemonic_file.is_none() && args.mnemonic_out.is_none() {
        show_words(&words);
    }
    output::note(&format!("home: {}", home.root().display()));
    if let Some(path) = &args.mnemonic_out {
        let path = path.display();
        output::note(&format!(
            "words: {path}; they are the identity: keep them elsewhere, and delete the file"
        ));
    }
    Ok(id::reply(&identity))
}

fn refuse_existing(home: &Home) -> Result<(), CliError> {
    if !identity_adapter::exists(&home.keys_dir()) {
        return Ok(());
    }
    let message = format!("the home {} already has an identity", home.root().display());
    Err(CliError::new("already_initialized", message))
}

/// New words must reach the owner exactly once: a terminal or a file, never a pipe, a log or `--json`.
fn require_place_for_words(args: &Args) -> Result<(), CliError> {
    let restored = args.mnemonic_file.is_some();
    if restored || args.mnemonic_out.is_some() || output::stderr_is_terminal() {
        return Ok(());
    }
    let message = "there is no terminal to show the new identity's words on";
    Err(CliError::new("mnemonic_needs_place", message))
}

fn read_words(path: &Path) -> Result<Zeroizing<String>, CliError> {
    let unreadable = |error: std::io::Error| {
        let message = format!("the words cannot be read from {}: {error}", path.display());
        CliError::new("mnemonic_unreadable", message)
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut text = Zeroizing::new(String::with_capacity(MAX_MNEMONIC_BYTES as usize + 1));
    file.take(MAX_MNEMONIC_BYTES)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    Ok(Zeroizing::new(
        text.split_whitespace().collect::<Vec<_>>().join(" "),
    ))
}

fn write_words<'a>(path: &'a Path, words: &str) -> Result<&'a Path, CliError> {
    write_new(path, words, 0o600).map_err(|error| {
        if error.kind() == ErrorKind::AlreadyExists {
            let message = format!("{} already exists", path.display());
            CliError::new("mnemonic_out_exists", message)
        } else {
            CliError::io(path.display(), &error)
        }
    })?;
    Ok(path)
}

/// Writes the settings and the relay list of a new home; settings that are there are kept and must be valid.
fn write_settings(home: &Home, relays: &[String]) -> Result<Config, CliError> {
    let (name, list) = if relays.is_empty() {
        ("public.toml", TEMPLATE_PUBLIC.to_owned())
    } else {
        ("home.toml", RelayList::render(relays))
    };
    let settings = TEMPLATE.replace("relays/public.toml\"]", &format!("relays/{name}\"]"));
    let config_file = home.config_file();
    if config_file.exists() && !relays.is_empty() {
        let message = format!(
            "{} already exists, so --relay would have no effect",
            config_file.display()
        );
        return Err(CliError::new("config_exists", message));
    }
    for (path, text) in [
        (home.relays_dir().join(name), &list),
        (config_file, &settings),
    ] {
        match write_new(&path, text, 0o600) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(CliError::io(path.display(), &error));
            }
            _ => {}
        }
    }
    Ok(Config::load(home)?)
}

/// Creates a file that does not exist yet, durably.
fn write_new(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.write_all(if text.ends_with('\n') { b"" } else { b"\n" })?;
    file.sync_all()
}

fn show_words(words: &str) {
    output::note("\nThese words are the identity. Write them down; they are not shown again:\n");
    let words: Vec<&str> = words.split(' ').collect();
    for (row, chunk) in words.chunks(6).enumerate() {
        let numbered = chunk
            .iter()
            .enumerate()
            .map(|(i, word)| format!("{:>2} {word:<9}", row * 6 + i + 1));
        output::note(&format!("  {}", numbered.collect::<Vec<_>>().join(" ")));
    }
    output::note("");
}
