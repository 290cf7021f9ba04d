//! Where a running node's log goes: stderr, and `logs/legion.log` up to a size, then one older file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use super::error::CliError;
use crate::config::{Log, LogFormat, LogLevel};

/// Starts logging for this process. A second call has no effect.
pub(crate) fn start(path: &Path, settings: &Log) -> Result<(), CliError> {
    let sink = Sink::open(path, settings.max_file_bytes)
        .map_err(|error| CliError::io(path.display(), &error))?;
    let level = match settings.level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(Tee(Arc::new(Mutex::new(sink))));
    let started = match settings.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    // Only a second call fails, and the first one's log goes on.
    let _ = started;
    Ok(())
}

/// A log file that becomes `.1` when it is full.
struct Sink {
    path: PathBuf,
    file: File,
    written_bytes: u64,
    max_bytes: u64,
}

impl Sink {
    fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let written_bytes = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            written_bytes,
            max_bytes,
        })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let line_bytes = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.written_bytes > 0 && self.written_bytes.saturating_add(line_bytes) > self.max_bytes
        {
            std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *self = Self::open(&self.path, self.max_bytes)?;
        }
        self.written_bytes = self.written_bytes.saturating_add(line_bytes);
        self.file.write_all(line)
    }
}

/// Writes each line to stderr and to the file. A full disk or a closed stderr must not stop the node.
struct Tee(Arc<Mutex<Sink>>);

impl<'a> MakeWriter<'a> for Tee {
    type Writer = TeeLine;

    fn make_writer(&'a self) -> TeeLine {
        TeeLine(Arc::clone(&self.0))
    }
}

struct TeeLine(Arc<Mutex<Sink>>);

impl Write for TeeLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().lock().write_all(line);
        let _ = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    //! A log never grows past two files of the limit, and loses nothing that is newer than the older file.
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_full_log_becomes_the_older_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/legion.log");
        let mut sink = Sink::open(&path, 10).unwrap();
        for line in ["first\n", "second\n", "third\n"] {
            sink.write(line.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "third\n");
        assert_eq!(
            std::fs::read_to_string(path.with_extension("log.1")).unwrap(),
            "second\n"
        );
        drop(sink);
        let mut again = Sink::open(&path, 10).unwrap();
        again.write(b"more\n").unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "more\n",
            "the size of an existing file counts"
        );
    }
}
