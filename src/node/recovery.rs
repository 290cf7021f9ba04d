//! A restoration, on both sides of it: what the store holds between us and a peer that asks is read and paged here; and of a
//! node that was itself restored, what must wait is held back here. What follows from an answer, the decisions say.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::clock;
use super::core::Core;
use super::delivery::Tell;
use super::order::{Arrival, Mail, Order};
use super::rows::{self, Parcel};
use crate::domain::engagement::{self, Engagement};
use crate::domain::instances::{EPOCH_BEHIND, IN_USE_ELSEWHERE};
use crate::domain::job::{AwardRow, AwardState, Job, Phase};
use crate::domain::ledger::State as Money;
use crate::domain::step::{Addressee, Change, Input};
use crate::store::{Order as Way, Rows as _, Span, Store, StoreError, Table, View};
use crate::wire::binding::Binding;
use crate::wire::entry::{Act, Entry};
use crate::wire::log::{AwardLog, ENTRIES_MAX, LogEntries, LogSince, NAMED_ONLY, Named, PAGE_MAX};

/// A running node is heard by a copy of it at least this often.
pub(super) const HELLO_EVERY: Duration = Duration::from_secs(180);
/// So long after a restoration is over the messages that it held back have all been read.
const QUIET_MS: u64 = 60_000;
/// Most bytes of a page, quotes and backslashes counted twice: it must fit into an envelope.
const PAGE_BYTES: usize = 17_000;
/// Most rows looked at for one page.
const LOOKED_AT_MAX: usize = 2_000;
/// So much of the name of a row that a cursor shows.
const BLURRED_BYTES: usize = 6;
/// What ended this long before the backup is in it.
const MARGIN_MS: u64 = 3_600_000;

/// What an owner reads of keys that are of an epoch that is over.
const BEHIND: &str = "later keys of this identity are known to a peer, and nobody takes what these sign: no new work is asked for or taken; in a new home, `legion init --mnemonic-file F --epoch N`, then `legion restore` the newest backup";

/// Whether every entry and proof of a page is signed by the key that it names.
///
/// # Errors
/// The stable code of the refusal.
pub(super) fn check_signatures(page: &LogEntries) -> Result<(), &'static str> {
    for award in &page.awards {
        if !award.entries.iter().all(Entry::is_signed) {
            return Err("entry_signature");
        }
        if award.proof.as_ref().is_some_and(|p| !p.is_signed()) {
            return Err("proof_signature");
        }
    }
    Ok(())
}

/// This start of the node has a name, by which a copy of its home can be told from it.
///
/// # Errors
/// The store's.
pub(super) fn begin(store: &Store, sole: bool, epoch: u32) -> Result<(), StoreError> {
    let mut name = [0u8; 16];
    getrandom::fill(&mut name).map_err(|error| StoreError::dropped(error.to_string()))?;
    let instances = rows::begin_instance(store, hex::encode(name), sole)?;
    if let Some(behind) = instances.behind.as_ref().filter(|b| b.epoch > epoch) {
        let (code, known) = (EPOCH_BEHIND, behind.epoch);
        tracing::error!(code, known, ours = epoch, "{BEHIND}");
    }
    if let Some(other) = instances.elsewhere.as_ref().filter(|o| o.epoch >= epoch) {
        let (code, instance) = (IN_USE_ELSEWHERE, &other.instance);
        tracing::error!(
            code,
            instance,
            "another node of this identity was heard: no new work is asked for or taken; stop the other one, then `legion up --sole`"
        );
    }
    Ok(())
}

/// What an owner looks for in the log.
pub(super) fn log(changes: &[Change]) {
    for change in changes {
        let Change::Journal { kind, body, .. } = change else {
            continue;
        };
        match kind.as_str() {
            IN_USE_ELSEWHERE => tracing::error!(
                code = kind,
                %body,
                "another node of this identity runs: no new work is asked for or taken; stop one of them for good, then `legion up --sole` on the other"
            ),
            EPOCH_BEHIND => tracing::error!(code = kind, %body, "{BEHIND}"),
            "recovering" => {
                tracing::warn!(%body, "restored from a backup: the peers are asked what this node has forgotten")
            }
            "frozen" => {
                tracing::warn!(%body, "a peer has not answered since the restoration: its account is frozen until it does")
            }
            "log_endless" => {
                tracing::warn!(%body, "a peer answers without end and tells nothing new: it is not asked any more, and its account stays frozen")
            }
            "recovered" | "reconciled" => tracing::info!(%body, "{kind} after the restoration"),
            _ => {}
        }
    }
}

impl Core {
    /// Of the outbox, what may leave now. The rest waits for the end of a restoration.
    pub fn withhold(&mut self, outbox: Vec<(u64, Parcel)>) -> Vec<(u64, Parcel)> {
        let (held, free) = outbox.into_iter().partition(|(_, parcel)| {
            let first = parcel.sends.first();
            let log = parcel.sends.iter().any(|send| send.body.is_log());
            first.is_some_and(|send| match &send.to {
                Addressee::Peer(npub) => self.node.holds(npub) && !log,
                Addressee::Reply(_) | Addressee::Pool(_) => false,
            })
        });
        self.withheld = held;
        if self.node.holds_any() {
            self.quiet_until_ms.store(u64::MAX, Ordering::SeqCst);
        }
        free
    }

    /// Delivers what was withheld from peers that have answered since.
    pub(super) fn let_go(&mut self) {
        let held = std::mem::take(&mut self.withheld);
        for (seq, parcel) in self.withhold(held) {
            let order = Order::Deliver(seq, parcel, None);
            let _ = self.outlets.delivery.send(Tell::Order(order));
        }
        if !self.node.holds_any() {
            let quiet_until_ms = clock::now_ms().saturating_add(QUIET_MS);
            self.quiet_until_ms.store(quiet_until_ms, Ordering::SeqCst);
        }
    }

    /// Leaves a message where it is, unread and unacknowledged, while it must wait; what answers our own questions is heard
    /// even then. It comes again with the next drain.
    pub(super) fn node_waits(
        &mut self,
        now: u64,
        arrival: &Arrival,
        batch: &mut Batch,
    ) -> Result<bool, StoreError> {
        if !arrival.messages.iter().any(|m| self.node.holds_back(m)) {
            return Ok(false);
        }
        self.count("held_back");
        for incoming in arrival.messages.iter().filter(|m| m.body.is_log()) {
            let input = Input::Message(Box::new(incoming.clone()));
            self.recall(&input)?;
            let step = self.step(now, input);
            batch.gather(step);
        }
        Ok(true)
    }

    /// A copy of this home that runs is to hear of it.
    pub(super) fn greet(&mut self) {
        if Instant::now() >= self.hello_at {
            self.hello_at = Instant::now() + HELLO_EVERY;
            self.again.post(Mail::Fact(Input::SayHello));
        }
    }

    /// Reads a page beside the loop: it may take a while.
    pub(super) fn log_page(&self, to: String, since: LogSince) {
        let (store, again) = (self.store.clone(), self.again.clone());
        let (me, binding) = (self.policy.me.clone(), self.policy.binding.clone());
        self.runtime
            .spawn_blocking(move || match page(&store, &me, &to, &since, binding) {
                Ok(page) => again.post(Mail::Fact(Input::LogPage {
                    to,
                    page: Box::new(page),
                })),
                Err(error) => {
                    tracing::warn!(code = error.code(), "a page could not be read: {error}");
                }
            });
    }

    /// Reads a stored result beside the loop.
    pub(super) fn result_again(&self, key: String) {
        let (store, again): (Arc<Store>, _) = (self.store.clone(), self.again.clone());
        let me = self.policy.me.clone();
        self.runtime.spawn_blocking(move || {
            let found = stored_result(&store, &me, &key);
            if let Ok(Some((entry, output, units))) = found {
                again.post(Mail::Fact(Input::ResultAgain {
                    key,
                    entry: Box::new(entry),
                    output,
                    units,
                }));
            }
        });
    }
}

/// What was signed of a result then, and the result.
type Stored = (Entry, serde_json::Value, Vec<u8>);

fn stored_result(store: &Store, me: &str, key: &str) -> Result<Option<Stored>, StoreError> {
    let view = store.view()?;
    let completed = |e: &Entry| e.author == me && matches!(e.what, Act::Completed { .. });
    let mut entries = rows::entries(&view, key)?;
    entries.retain(completed);
    let (Some(entry), Some(output), Some(units)) = (
        entries.pop(),
        rows::payload(&view, key, "output")?,
        rows::payload(&view, key, "units")?,
    ) else {
        return Ok(None);
    };
    let output = serde_json::from_slice(&output).ok();
    Ok(output.map(|output| (entry, output, units)))
}

/// One page of what we hold between us and `peer`.
fn page(
    store: &Store,
    me: &str,
    peer: &str,
    since: &LogSince,
    binding: Binding,
) -> Result<LogEntries, StoreError> {
    let mut reader = Reader {
        view: store.view()?,
        me,
        peer,
        bytes: 0,
        awards: Vec::new(),
    };
    for named in &since.again {
        reader.named(named)?;
    }
    let next = match since.cursor.as_str() {
        NAMED_ONLY => None,
        cursor => reader.read(cursor, since.since_ms)?,
    };
    Ok(LogEntries {
        restored_ms: since.restored_ms,
        cursor: since.cursor.clone(),
        awards: reader.awards,
        next,
        binding,
    })
}

struct Reader<'a> {
    view: View,
    me: &'a str,
    peer: &'a str,
    bytes: usize,
    awards: Vec<AwardLog>,
}

impl Reader<'_> {
    /// Live tasks first, then those that ended since then, in the order of their ends: what ends meanwhile comes last. The cursor
    /// names the first row that was not read to its end, and the last award of it that was.
    fn read(&mut self, cursor: &str, since_ms: u64) -> Result<Option<String>, StoreError> {
        let mut parts = cursor.split(':');
        let ended = parts.next() == Some("t");
        let first = parts.next().map(hex::decode).and_then(Result::ok);
        let (first, above) = (
            first.unwrap_or_default(),
            parts.next().and_then(|no| no.parse().ok()).unwrap_or(0),
        );
        if !ended {
            let live = self.view.live_keys(Table::Tasks)?;
            let theirs = format!("work/{}/", self.peer);
            let between =
                |key: &Vec<u8>| key.starts_with(b"job/") || key.starts_with(theirs.as_bytes());
            let live = live.into_iter().filter(|key| *key >= first && between(key));
            let rows = live.map(|key| (key.clone(), key)).collect();
            if let Some(next) = self.rows("l", rows, &first, above)? {
                return Ok(Some(next));
            }
        }
        let since = since_ms.saturating_sub(MARGIN_MS).to_be_bytes().to_vec();
        let (from, above) = if ended { (first, above) } else { (since, 0) };
        let mut rows = Vec::new();
        let span = Span::starting_at(&from);
        self.view
            .visit(Table::TasksByTime, &span, Way::Ascending, &mut |key, _| {
                let task = key.get(8..).unwrap_or_default().to_vec();
                rows.push((key.to_vec(), task));
                Ok(if rows.len() > LOOKED_AT_MAX {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                })
            })?;
        self.rows("t", rows, &from, above)
    }

    /// Takes what fits of these rows, each with the name that a cursor gives it; where to go on, if not all did.
    fn rows(
        &mut self,
        way: &str,
        rows: Vec<(Vec<u8>, Vec<u8>)>,
        first: &[u8],
        above: u32,
    ) -> Result<Option<String>, StoreError> {
        for (at, (name, key)) in rows.iter().enumerate() {
            let above = if name == first { above } else { 0 };
            if at >= LOOKED_AT_MAX {
                let name = blurred(name, first);
                return Ok(Some(format!("{way}:{}:0", hex::encode(name))));
            }
            if let Some(above) = self.task(key, above)? {
                return Ok(Some(format!("{way}:{}:{above}", hex::encode(name))));
            }
        }
        Ok(None)
    }

    /// Takes a task's awards numbered above this into the page; the last of them that did fit, if not all did.
    fn task(&mut self, key: &[u8], above: u32) -> Result<Option<u32>, StoreError> {
        let text = String::from_utf8_lossy(key).into_owned();
        if let Some(owner) = text.strip_prefix("work/") {
            if !owner.starts_with(self.peer) {
                return Ok(None);
            }
            let work = self.view.get::<Engagement>(Table::Tasks, key)?;
            let taken = work.map_or(Ok(true), |work| self.worked(&work))?;
            return Ok((!taken).then_some(0));
        }
        match self.view.get::<Job>(Table::Tasks, key)? {
            Some(job) => self.hired(&job, |no| no > above, above),
            None => Ok(None),
        }
    }

    fn named(&mut self, named: &Named) -> Result<(), StoreError> {
        if named.requester == self.me {
            if let Some(job) = rows::job(&self.view, &named.task)? {
                self.hired(&job, |no| no == named.award_no, 0)?;
            }
        } else if named.requester == self.peer {
            let key = engagement::key(self.peer, &named.task, named.award_no);
            if let Some(work) = self.view.get(Table::Tasks, &rows::task_key(&key))? {
                self.worked(&work)?;
            }
        }
        Ok(())
    }

    fn worked(&mut self, work: &Engagement) -> Result<bool, StoreError> {
        let mut entries = rows::entries(&self.view, &work.key)?;
        if work.award_no > 1 {
            // A cancel is of the task, and kept with its first award.
            let first = engagement::key(&work.requester, &work.task, 1);
            let mut canceled = rows::entries(&self.view, &first)?;
            canceled.retain(|e| e.what == Act::Canceled);
            entries.append(&mut canceled);
        }
        Ok(self.push(AwardLog {
            award: Named {
                requester: work.requester.clone(),
                task: work.task.clone(),
                award_no: work.award_no,
            },
            entries,
            terms: work.agreed.as_deref().cloned(),
            proof: work.proof.clone(),
            evidence: None,
            open: work.is_live(),
            withdrawn: work.withdrawn,
            settle_by_ms: work.settle_by_ms,
            unit_price_mc: work.unit_price_mc,
        }))
    }

    fn hired(
        &mut self,
        job: &Job,
        wanted: impl Fn(u32) -> bool,
        mut above: u32,
    ) -> Result<Option<u32>, StoreError> {
        let with_peer = |a: &&AwardRow| a.executor == self.peer && wanted(a.no);
        let awards: Vec<AwardRow> = job.awards.iter().filter(with_peer).cloned().collect();
        if awards.is_empty() {
            return Ok(None);
        }
        let entries = rows::entries(&self.view, &job.task)?;
        for award in awards {
            let concerns = |e: &&Entry| match &e.what {
                Act::Canceled => e.author == self.me,
                what => (e.author == self.me || e.author == self.peer) && number(what) == award.no,
            };
            let proof = job.outcome.as_ref().filter(|o| o.award_no == award.no);
            let checked = proof.is_some_and(|o| o.findings.is_none());
            let waits = matches!(award.state, AwardState::Sent | AwardState::Accepted)
                && (job.phase != Phase::Ended || award.money == Money::Locked);
            let findings = proof.and_then(|o| o.findings.as_ref());
            let fault = findings.and_then(|f| f.fault.clone());
            let log = AwardLog {
                award: Named {
                    requester: self.me.to_owned(),
                    task: job.task.clone(),
                    award_no: award.no,
                },
                entries: entries.iter().filter(concerns).cloned().collect(),
                terms: None,
                proof: proof.map(|o| o.proof.clone()),
                evidence: fault,
                open: waits || checked,
                withdrawn: award.state == AwardState::Superseded,
                settle_by_ms: award.settle_by_ms,
                unit_price_mc: award.unit_price_mc.unwrap_or(0),
            };
            if !self.push(log) {
                return Ok(Some(above));
            }
            above = award.no;
        }
        Ok(None)
    }

    /// Takes one award into the page if there is room; the first always has.
    fn push(&mut self, mut log: AwardLog) -> bool {
        if self.awards.iter().any(|known| known.award == log.award) {
            return true;
        }
        log.entries.truncate(ENTRIES_MAX);
        let json = serde_json::to_vec(&log).unwrap_or_default();
        let escaped = json.iter().filter(|b| matches!(b, b'"' | b'\\')).count();
        // Signatures are filled in when it leaves.
        let bytes = json.len() + escaped + 130 * (log.entries.len() + 1);
        let full = self.bytes + bytes > PAGE_BYTES || self.awards.len() >= PAGE_MAX;
        if full && !self.awards.is_empty() {
            return false;
        }
        self.bytes += bytes;
        self.awards.push(log);
        true
    }
}

/// A beginning of this name that lies behind `after`, as short as can be: the row that a page ends before may be of work for
/// somebody else, and who that is, and when, is not the reader's to know. Of a time this leaves the minute.
fn blurred<'n>(name: &'n [u8], after: &[u8]) -> &'n [u8] {
    let mut parts = (BLURRED_BYTES..name.len()).filter_map(|bytes| name.get(..bytes));
    parts.find(|part| *part > after).unwrap_or(name)
}

fn number(what: &Act) -> u32 {
    match what {
        Act::Canceled => 0,
        Act::Awarded { award_no, .. }
        | Act::Accepted { award_no, .. }
        | Act::Declined { award_no, .. }
        | Act::Completed { award_no, .. }
        | Act::Failed { award_no, .. }
        | Act::Stopped { award_no, .. }
        | Act::Paid { award_no, .. }
        | Act::Refused { award_no, .. } => *award_no,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::StoreOptions;

    /// Who else has work here is in no cursor, and the rows of others end nobody's pages.
    #[test]
    fn a_cursor_names_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store.redb"), StoreOptions::default()).unwrap();
        let (me, peer, other) = ("a".repeat(64), "b".repeat(64), "c".repeat(64));
        let at_ms = 1_795_219_200_000u64;
        let rows = 2 * LOOKED_AT_MAX + 500;
        store
            .write(|txn| {
                for n in 0..rows {
                    let key = rows::task_key(&format!("{other}/{n:032x}/1"));
                    txn.task_finished(&key, at_ms + 100 * n as u64)?;
                    let key = rows::task_key(&format!("{other}/{n:032x}/2"));
                    txn.live_insert(Table::Tasks, &key)?;
                }
                Ok(())
            })
            .unwrap();
        let mut cursor = String::new();
        let mut pages = 0;
        loop {
            let mut reader = Reader {
                view: store.view().unwrap(),
                me: &me,
                peer: &peer,
                bytes: 0,
                awards: Vec::new(),
            };
            let next = reader.read(&cursor, at_ms).unwrap();
            pages += 1;
            assert!(pages < 8, "{cursor}");
            let Some(next) = next else { break };
            assert!(!next.contains(&hex::encode(&other[..4])), "{next}");
            assert!(!next.contains(&hex::encode("work")), "{next}");
            cursor = next;
        }
        assert!(pages >= 3, "{pages}");
    }
}
