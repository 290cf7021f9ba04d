//! The relay's file, for a relay that keeps its events over a restart: one event's JSON per line, appended in batches, each batch on
//! disk before its OKs are sent. Read and rewritten at the start, and again when most of it is dead. It knows no connection beyond the
//! queue its answer goes to.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nostr::Event;
use tokio::sync::{mpsc, oneshot};

use super::RelayError;
use super::hub::{SharedState, lock, ok_message};
use super::memory::{Admission, KIND_DELETION, Memory};
use super::outbox::{Outbox, Outgoing};
use super::record::{Bytes32, Record};

/// How a line of the file begins.
const EVENT_BEGIN: &[u8] = br#"{"id":""#;
/// How long the file's lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// Entries that may wait for the disk; a publisher beyond waits.
const QUEUE_ENTRIES: usize = 8_192;
/// Entries in one write and one fsync.
const BATCH_ENTRIES: usize = 2_048;
/// The file is rewritten once it is twice what it holds, plus this.
const SLACK_BYTES: usize = 16 * 1024 * 1024;

/// An answer that waits for the disk. Without a record it only waits for those before it: a duplicate is confirmed no earlier than
/// the original.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) record: Option<Arc<Record>>,
    /// The event that must be held when the answer goes out; `None` for one that a newer version made superfluous.
    pub(crate) held: Option<Bytes32>,
    pub(crate) id: Bytes32,
    pub(crate) note: &'static str,
    pub(crate) outbox: Arc<Outbox>,
}

/// The opened file, not yet written by its thread.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    file_bytes: u64,
    /// Events in the file for which the memory has no room: then the file is never rewritten, or they would be lost.
    unloaded_events: usize,
    /// Held for its lock.
    _guard: File,
}

/// Takes the lock, with a little patience: a relay that is just ending, or a process that was just forked from it, lets go soon.
fn hold(guard: &File) -> Result<(), TryLockError> {
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match guard.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            outcome => return outcome,
        }
    }
}

impl Journal {
    /// Opens the file (creates it), loads what is alive into `memory` and rewrites the file without the rest.
    pub(crate) fn open(path: &Path, memory: &mut Memory, now_s: u64) -> Result<Self, RelayError> {
        let failed = |source| RelayError::Data {
            path: path.to_owned(),
            source,
        };
        let guard = File::create(with_suffix(path, "lock")).map_err(failed)?;
        hold(&guard).map_err(|_| RelayError::DataInUse {
            path: path.to_owned(),
        })?;
        let (unloaded_events, good_bytes) = load(path, memory, now_s).map_err(failed)?;
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(failed)?;
        file.set_len(good_bytes).map_err(failed)?;
        let mut file_bytes = good_bytes;
        if unloaded_events == 0 {
            (file, file_bytes) = rewrite(path, &memory.snapshot()).map_err(failed)?;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            file_bytes,
            unloaded_events,
            _guard: guard,
        })
    }

    /// Starts the writing thread. It ends, and says so, once every sender is dropped and the queue is on disk.
    pub(crate) fn start(
        mut self,
        state: SharedState,
    ) -> io::Result<(mpsc::Sender<Entry>, oneshot::Receiver<()>)> {
        let (sender, mut receiver) = mpsc::channel::<Entry>(QUEUE_ENTRIES);
        let (ended, end) = oneshot::channel();
        std::thread::Builder::new()
            .name("relay-journal".into())
            .spawn(move || {
                while let Some(first) = receiver.blocking_recv() {
                    let mut batch = vec![first];
                    while batch.len() < BATCH_ENTRIES
                        && let Ok(entry) = receiver.try_recv()
                    {
                        batch.push(entry);
                    }
                    let written = self.append(&batch);
                    settle(batch, written, &state);
                    self.tidy(&state);
                }
                drop(self);
                let _ = ended.send(());
            })?;
        Ok((sender, end))
    }

    /// One write and one fsync for the batch. After a failure the file is cut back to its last good line.
    fn append(&mut self, batch: &[Entry]) -> io::Result<()> {
        let mut lines = Vec::new();
        for record in batch.iter().filter_map(|entry| entry.record.as_ref()) {
            lines.extend_from_slice(record.json.as_bytes());
            lines.push(b'\n');
        }
        if lines.is_empty() {
            return Ok(());
        }
        let written = self
            .file
            .write_all(&lines)
            .and_then(|()| self.file.sync_data());
        match &written {
            Ok(()) => self.file_bytes += lines.len() as u64,
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "the relay cannot write its events; they are refused until it can");
                self.file.set_len(self.file_bytes)?;
            }
        }
        written
    }

    /// Rewrites a file that is mostly deleted, replaced and expired events. What waits in the queue may then be in it twice; a reload
    /// takes it once.
    fn tidy(&mut self, state: &SharedState) {
        let records = {
            let state = lock(state);
            let live_bytes = state.memory.bytes() as u64;
            if self.unloaded_events > 0 || self.file_bytes <= live_bytes * 2 + SLACK_BYTES as u64 {
                return;
            }
            state.memory.snapshot()
        };
        match rewrite(&self.path, &records) {
            Ok((file, file_bytes)) => (self.file, self.file_bytes) = (file, file_bytes),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the relay could not shrink its file")
            }
        }
    }
}

/// Answers a batch. What could not be written is forgotten again, so that sending it once more is not taken for a duplicate.
fn settle(batch: Vec<Entry>, written: io::Result<()>, state: &SharedState) {
    let mut state = lock(state);
    if written.is_err() {
        for id in batch
            .iter()
            .filter_map(|entry| entry.record.as_ref())
            .map(|record| record.id)
        {
            state.memory.remove(&id);
        }
    }
    for entry in batch {
        // An event that was replaced, deleted or has expired in the meantime was stored all the same.
        let lost = if entry.record.is_some() {
            written.is_err()
        } else {
            entry.held.is_some_and(|id| !state.memory.contains(&id))
        };
        let (stored, note) = if lost {
            (false, "error: the event could not be stored; send it again")
        } else {
            (true, entry.note)
        };
        entry.outbox.push(Outgoing::Text(ok_message(
            &hex::encode(entry.id),
            stored,
            note,
        )));
    }
}

/// Reads every whole line. Returns how many living events found no room, and the length up to the last whole line.
fn load(path: &Path, memory: &mut Memory, now_s: u64) -> io::Result<(usize, u64)> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
        Err(error) => return Err(error),
    };
    let mut reader = BufReader::new(file);
    let (mut line, mut good_bytes, mut unloaded, mut broken) = (Vec::new(), 0, 0, 0_usize);
    let (mut events, mut first) = (0_usize, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if first.is_empty() {
            first = line.iter().copied().take(EVENT_BEGIN.len()).collect();
        }
        if read == 0 || line.last() != Some(&b'\n') {
            break;
        }
        good_bytes += read as u64;
        // The signature was checked when the event came; the id tells whether the line is still what was written.
        match serde_json::from_slice::<Event>(&line)
            .ok()
            .filter(Event::verify_id)
            .as_ref()
            .and_then(Record::new)
        {
            // What it deleted lies before it in the file, and stays deleted when the deletion itself is forgotten.
            Some(record) if record.kind == KIND_DELETION && record.is_expired(now_s) => {
                memory.delete_named_by(&record);
            }
            Some(record) => {
                events += 1;
                if memory.insert(&Arc::new(record), now_s) == Admission::Full {
                    unloaded += 1;
                }
            }
            None => broken += 1,
        }
    }
    if events == 0 && !EVENT_BEGIN.starts_with(&first) {
        // Somebody's words, or a store: it would be rewritten without what is not an event.
        let reason = "it holds something else than a relay's events and is left as it is";
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    if unloaded > 0 || broken > 0 {
        tracing::warn!(path = %path.display(), broken, unloaded, "some lines of the relay's file are not served: broken, or over the limits");
    }
    Ok((unloaded, good_bytes))
}

/// Writes a new file beside the old one and puts it in its place.
fn rewrite(path: &Path, records: &[Arc<Record>]) -> io::Result<(File, u64)> {
    let next_path = with_suffix(path, "next");
    let mut writer = BufWriter::new(File::create(&next_path)?);
    let mut bytes = 0;
    for record in records {
        writer.write_all(record.json.as_bytes())?;
        writer.write_all(b"\n")?;
        bytes += record.json.len() as u64 + 1;
    }
    writer
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_all()?;
    std::fs::rename(&next_path, path)?;
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        File::open(folder)?.sync_all()?;
    }
    Ok((OpenOptions::new().append(true).open(path)?, bytes))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}
