//! Where the domain's rows live in the store, and how they come back.

use serde::{Deserialize, Serialize};

use crate::domain::engagement::{self, Engagement};
use crate::domain::instances::Instances;
use crate::domain::job::Job;
use crate::domain::ledger::{Account, Transfer};
use crate::domain::peer::Peer;
use crate::domain::step::{Change, Input, Ms, Row, Send};
use crate::domain::{Lineage, Mark, OwnerState};
use crate::store::{Order, Rows, Span, Store, StoreError, Table, Txn, View, owned_key};
use crate::wire::entry::{Act, Entry};
use crate::wire::log::LogEntries;
use crate::wire::message::Body;

const OWNER: &[u8] = b"owner";
const RECOVERY: &[u8] = b"recovery";
const LINEAGE: &[u8] = b"lineage";
const INSTANCES: &[u8] = b"instances";
const IDENTITY: &[u8] = b"identity";
/// Most entries looked at for one mark and length.
const ORPHANS_MAX: usize = 256;
/// What the names of [`engagement::answer_name`] begin with, and most answers of one engagement.
const ANSWERS: &[u8] = b"answer";
const ANSWERS_MAX: usize = 64;
const READ_UNTIL: &[u8] = b"inbox_read_until_s";

/// One envelope's worth of messages to one recipient: what an outbox row holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parcel {
    /// Messages, all to the same addressee, in order.
    pub sends: Vec<Send>,
    /// Creation time of the rumor, Unix seconds: part of its id, so that a second sealing gives the same rumor.
    pub created_s: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeyRow {
    task: String,
    fingerprint: String,
    expires_ms: Ms,
}

/// Key of a task's row: a job of ours by its id, foreign work by `<requester>/<task>/<award_no>`.
pub fn task_key(owner: &str) -> Vec<u8> {
    let room = if owner.contains('/') { "work" } else { "job" };
    format!("{room}/{owner}").into_bytes()
}

fn entry_owner(me: &str, entry: &Entry) -> Vec<u8> {
    if entry.requester == me {
        return task_key(&entry.task);
    }
    let award_no = match &entry.what {
        Act::Canceled => 1,
        Act::Awarded { award_no, .. }
        | Act::Accepted { award_no, .. }
        | Act::Declined { award_no, .. }
        | Act::Completed { award_no, .. }
        | Act::Failed { award_no, .. }
        | Act::Stopped { award_no, .. }
        | Act::Paid { award_no, .. }
        | Act::Refused { award_no, .. } => *award_no,
    };
    task_key(&format!("{}/{}/{award_no}", entry.requester, entry.task))
}

/// Writes the changes of a batch, in order.
///
/// # Errors
/// The store's.
pub fn apply_all(
    txn: &mut Txn<'_>,
    me: &str,
    now: Ms,
    changes: &[Change],
) -> Result<(), StoreError> {
    for change in changes {
        apply(txn, me, now, change)?;
    }
    // Work that was adopted and ended in one batch has its row only now, and a task may have a mark again.
    for change in changes {
        if let Change::DropMark(owner) = change
            && !txn.contains(Table::Marks, owner.as_bytes())?
        {
            drop_orphans(txn, owner)?;
        }
    }
    Ok(())
}

fn apply(txn: &mut Txn<'_>, me: &str, now: Ms, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::Put(row) => put(txn, me, row),
        Change::DropPeer(npub) => txn.delete(Table::Peers, npub.as_bytes()).map(drop),
        Change::DropMark(owner) => {
            txn.checkpoint_drop(owner.as_bytes())?;
            txn.delete(Table::Marks, owner.as_bytes()).map(drop)
        }
        Change::DropWork { owner, key } => {
            for name in ["input", "units", "output"] {
                txn.delete(Table::Payloads, &owned_key(&task_key(key), name.as_bytes()))?;
            }
            let answers = owned_key(&task_key(key), ANSWERS);
            for answer in txn.keys(
                Table::Payloads,
                Span::prefix(&answers),
                ANSWERS_MAX,
                Order::Ascending,
            )? {
                txn.delete(Table::Payloads, &answer)?;
            }
            if owner.is_empty() {
                Ok(())
            } else {
                txn.checkpoint_drop(owner.as_bytes())
            }
        }
        Change::CopyAnswer { task, key, call } => {
            let answer = txn.payload_get(&task_key(task), "result")?;
            let name = engagement::answer_name(*call);
            txn.payload_put(&task_key(key), &name, &answer.unwrap_or_default())
        }
        Change::Journal { kind, task, body } => txn
            .journal_append(now, kind, task.as_deref(), body)
            .map(drop),
    }
}

/// What was said of a foreign task that was never taken has no row that pruning would find it by: it goes with the mark. The
/// keys begin with their owner's length, which an award's number of one to ten digits decides.
fn drop_orphans(txn: &mut Txn<'_>, mark: &str) -> Result<(), StoreError> {
    for digits in 1..=10 {
        let owner = task_key(&format!("{mark}/{}", "0".repeat(digits)));
        let prefix = owned_key(&owner, &[]);
        let Some(prefix) = prefix.get(..prefix.len() - digits) else {
            continue;
        };
        let span = Span::prefix(prefix);
        for key in txn.keys(Table::History, span, ORPHANS_MAX, Order::Ascending)? {
            let task = key.get(2..2 + owner.len()).unwrap_or_default();
            if !txn.contains(Table::Tasks, task)? {
                txn.delete(Table::History, &key)?;
            }
        }
    }
    Ok(())
}

fn put(txn: &mut Txn<'_>, me: &str, row: &Row) -> Result<(), StoreError> {
    match row {
        Row::Job(job) => {
            let key = task_key(&job.task);
            put_task(txn, &key, job.as_ref(), job.is_live(), job.marks.ended_ms)
        }
        Row::Engagement(work) => {
            let key = task_key(&work.key);
            put_task(txn, &key, work.as_ref(), work.is_live(), work.ended_ms)
        }
        Row::Peer(peer) => txn.put(Table::Peers, peer.npub.as_bytes(), peer.as_ref()),
        Row::Account(account) => txn.put(Table::Accounts, account.npub.as_bytes(), account),
        Row::Transfer(transfer) => {
            let key = format!("{:016}/{}", transfer.at_ms, transfer.id);
            txn.put(Table::Transfers, key.as_bytes(), transfer)
        }
        Row::Entry(entry) => {
            let hash = entry.hash().unwrap_or_default();
            let rest = format!("{}/{:08}/{hash}", entry.author, entry.seq);
            txn.put(
                Table::History,
                &owned_key(&entry_owner(me, entry), rest.as_bytes()),
                entry.as_ref(),
            )
        }
        Row::Key {
            key,
            task,
            fingerprint,
            expires_ms,
        } => {
            let row = KeyRow {
                task: task.clone(),
                fingerprint: fingerprint.clone(),
                expires_ms: *expires_ms,
            };
            txn.put(Table::Keys, key.as_bytes(), &row)
        }
        Row::Payload { owner, name, bytes } => txn.payload_put(&task_key(owner), name, bytes),
        Row::Checkpoint { owner, bytes, .. } => {
            let newest = txn
                .checkpoint_newest(owner.as_bytes())?
                .map_or(0, |(generation, _)| generation);
            txn.checkpoint_put(owner.as_bytes(), newest + 1, bytes)
        }
        Row::Mark(mark) => txn.put(Table::Marks, mark.owner.as_bytes(), mark),
        Row::Owner(owner) => txn.put(Table::Meta, OWNER, owner),
        Row::Recovery(recovery) if recovery.is_over() => {
            txn.delete(Table::Meta, RECOVERY).map(drop)
        }
        Row::Recovery(recovery) => txn.put(Table::Meta, RECOVERY, recovery.as_ref()),
        Row::Lineage(lineage) => txn.put(Table::Meta, LINEAGE, lineage),
        Row::Instances(instances) => txn.put(Table::Meta, INSTANCES, instances),
    }
}

/// The starts so far.
///
/// # Errors
/// The store's.
pub fn instances(view: &View) -> Result<Instances, StoreError> {
    Ok(view.get(Table::Meta, INSTANCES)?.unwrap_or_default())
}

/// Notes a start of the node under this name. `sole`: the owner says that no other node of this identity runs.
///
/// # Errors
/// The store's.
pub fn begin_instance(store: &Store, name: String, sole: bool) -> Result<Instances, StoreError> {
    let mut instances = instances(&store.view()?)?;
    instances.start(name, sole);
    store.write(|txn| txn.put(Table::Meta, INSTANCES, &instances))?;
    Ok(instances)
}

fn put_task<T: Serialize>(
    txn: &mut Txn<'_>,
    key: &[u8],
    row: &T,
    live: bool,
    ended_ms: Ms,
) -> Result<(), StoreError> {
    txn.put(Table::Tasks, key, row)?;
    if live {
        txn.live_insert(Table::Tasks, key)
    } else if txn.live_remove(Table::Tasks, key)? || ended_ms > 0 {
        txn.task_finished(key, ended_ms)
    } else {
        Ok(())
    }
}

/// Everything that lives in memory: live tasks with their inputs, peers, accounts, marks, the owner's switches.
pub fn load(view: &View) -> Result<Vec<Row>, StoreError> {
    let mut rows = Vec::new();
    if let Some(owner) = view.get::<OwnerState>(Table::Meta, OWNER)? {
        rows.push(Row::Owner(owner));
    }
    rows.extend(
        (view.get(Table::Meta, RECOVERY)?)
            .map(Box::new)
            .map(Row::Recovery),
    );
    rows.extend(lineage(view)?.map(Row::Lineage));
    rows.extend(view.get(Table::Meta, INSTANCES)?.map(Row::Instances));
    rows.extend(
        every::<Peer>(view, Table::Peers)?
            .into_iter()
            .map(|p| Row::Peer(Box::new(p))),
    );
    rows.extend(
        every::<Account>(view, Table::Accounts)?
            .into_iter()
            .map(Row::Account),
    );
    rows.extend(
        every::<Mark>(view, Table::Marks)?
            .into_iter()
            .map(Row::Mark),
    );
    for key in view.live_keys(Table::Tasks)? {
        rows.extend(task(view, &key)?);
    }
    Ok(rows)
}

fn every<T: serde::de::DeserializeOwned>(view: &View, table: Table) -> Result<Vec<T>, StoreError> {
    Ok(view
        .range::<T>(table, Span::all(), usize::MAX, Order::Ascending)?
        .into_iter()
        .map(|(_, row)| row)
        .collect())
}

fn task(view: &View, key: &[u8]) -> Result<Vec<Row>, StoreError> {
    let mut rows = Vec::new();
    let owner = if key.starts_with(b"job/") {
        view.get::<Job>(Table::Tasks, key)?
            .map(|job| (job.task.clone(), Row::Job(Box::new(job))))
    } else {
        view.get::<Engagement>(Table::Tasks, key)?
            .map(|work| (work.key.clone(), Row::Engagement(Box::new(work))))
    };
    if let Some((owner, row)) = owner {
        rows.push(row);
        if let Some(bytes) = view.payload_get(key, "input")? {
            rows.push(Row::Payload {
                owner,
                name: "input".into(),
                bytes,
            });
        }
    }
    Ok(rows)
}

/// The finished rows that an input names, so that the domain can judge late messages and repeated keys.
///
/// # Errors
/// The store's.
pub fn prefetch(
    view: &View,
    input: &Input,
    is_live: impl Fn(&str) -> bool,
) -> Result<Vec<Row>, StoreError> {
    let named = match input {
        Input::Ask(ask) => return repeated_key(view, ask.key.as_deref()),
        Input::Cancel { task } => task.clone(),
        Input::Message(incoming) => match &incoming.body {
            Body::Update(update) => update.task.clone(),
            Body::Accept(accept) => accept.task.clone(),
            Body::Decline(decline) => decline.task.clone(),
            Body::Award(award) | Body::Request(award) => {
                engagement::key(&incoming.from, &award.task, award.award_no)
            }
            Body::Receipt(receipt) => {
                engagement::key(&incoming.from, &receipt.task, receipt.award_no)
            }
            Body::Entries(page) => return told(view, &incoming.from, page, is_live),
            Body::Refusal(refusal) => {
                engagement::key(&incoming.from, &refusal.task, refusal.award_no)
            }
            _ => return Ok(Vec::new()),
        },
        _ => return Ok(Vec::new()),
    };
    if is_live(&named) || named.len() > 128 {
        return Ok(Vec::new());
    }
    task(view, &task_key(&named))
}

/// The rows of all awards in a page.
fn told(
    view: &View,
    from: &str,
    page: &LogEntries,
    is_live: impl Fn(&str) -> bool,
) -> Result<Vec<Row>, StoreError> {
    let mut rows = Vec::new();
    for log in &page.awards {
        let (award, mut owner) = (&log.award, log.award.task.clone());
        if award.requester == from {
            owner = engagement::key(from, &award.task, award.award_no);
        }
        if !is_live(&owner) {
            rows.extend(task(view, &task_key(&owner))?);
        }
    }
    Ok(rows)
}

fn repeated_key(view: &View, key: Option<&str>) -> Result<Vec<Row>, StoreError> {
    let Some(key) = key else {
        return Ok(Vec::new());
    };
    let row = view.get::<KeyRow>(Table::Keys, key.as_bytes())?;
    let recalled = row.map(|r| Row::Key {
        key: key.to_owned(),
        task: r.task,
        fingerprint: r.fingerprint,
        expires_ms: r.expires_ms,
    });
    Ok(recalled.into_iter().collect())
}

/// A job of ours, live or finished.
pub fn job(view: &View, task: &str) -> Result<Option<Job>, StoreError> {
    view.get(Table::Tasks, &task_key(task))
}

/// Bytes that belong to a task.
pub fn payload(view: &View, owner: &str, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    view.payload_get(&task_key(owner), name)
}

/// The stored entries of a job's or an engagement's history.
pub fn entries(view: &View, owner: &str) -> Result<Vec<Entry>, StoreError> {
    let prefix = owned_key(&task_key(owner), b"");
    Ok(view
        .range::<Entry>(
            Table::History,
            Span::prefix(&prefix),
            1_000,
            Order::Ascending,
        )?
        .into_iter()
        .map(|(_, e)| e)
        .collect())
}

/// All transfers, newest last, at most `limit` of the newest.
pub fn transfers(view: &View, limit: usize) -> Result<Vec<Transfer>, StoreError> {
    let mut rows: Vec<_> = view
        .range::<Transfer>(Table::Transfers, Span::all(), limit, Order::Descending)?
        .into_iter()
        .map(|(_, t)| t)
        .collect();
    rows.reverse();
    Ok(rows)
}

/// The outbox, by sequence number.
pub fn outbox(view: &View) -> Result<Vec<(u64, Parcel)>, StoreError> {
    let rows = view.range::<Parcel>(Table::Outbox, Span::all(), usize::MAX, Order::Ascending)?;
    Ok(rows
        .into_iter()
        .filter_map(|(key, parcel)| Some((u64::from_be_bytes(key.try_into().ok()?), parcel)))
        .collect())
}

/// Writes an outbox row and returns its number.
pub fn outbox_put(txn: &mut Txn<'_>, parcel: &Parcel) -> Result<u64, StoreError> {
    let seq = txn.outbox_next_seq()?;
    txn.put(Table::Outbox, &seq.to_be_bytes(), parcel)?;
    Ok(seq)
}

/// Removes an outbox row.
pub fn outbox_done(txn: &mut Txn<'_>, seq: u64) -> Result<(), StoreError> {
    txn.delete(Table::Outbox, &seq.to_be_bytes()).map(drop)
}

/// What remains of earlier restorations.
///
/// # Errors
/// The store's.
pub fn lineage(view: &View) -> Result<Option<Lineage>, StoreError> {
    view.get(Table::Meta, LINEAGE)
}

/// Whose store this is, an npub: whoever comes first.
pub fn claim(store: &Store, npub: &str) -> Result<String, StoreError> {
    if let Some(whose) = store.view()?.get::<String>(Table::Meta, IDENTITY)? {
        return Ok(whose);
    }
    store.write(|txn| txn.put(Table::Meta, IDENTITY, &npub.to_owned()))?;
    Ok(npub.to_owned())
}

/// Until when (Unix seconds) the inboxes were read durably.
pub fn read_until_s(store: &Store) -> Result<u64, StoreError> {
    Ok(store
        .view()?
        .get::<u64>(Table::Meta, READ_UNTIL)?
        .unwrap_or(0))
}

/// Remembers until when the inboxes were read.
pub fn set_read_until_s(txn: &mut Txn<'_>, at_s: u64) -> Result<(), StoreError> {
    txn.put(Table::Meta, READ_UNTIL, &at_s)
}

#[cfg(test)]
mod tests {
    //! What was declined leaves nothing behind; what was taken keeps its history.
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::StoreOptions;

    #[test]
    fn the_history_of_a_task_that_was_never_taken_goes_with_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store.redb"), StoreOptions::default()).unwrap();
        let key = |award_no: &str| owned_key(&task_key(&format!("req/task/{award_no}")), b"entry");
        let other = owned_key(&task_key("req/task2/1"), b"entry");
        store
            .write(|txn| {
                for key in [key("1"), key("2"), key("4294967295"), other.clone()] {
                    txn.put(Table::History, &key, &0)?;
                }
                txn.put(Table::Tasks, &task_key("req/task/2"), &0)?;
                let drop = Change::DropMark("req/task".to_owned());
                apply_all(txn, "me", 0, &[drop])
            })
            .unwrap();
        let view = store.view().unwrap();
        let left = view
            .keys(Table::History, Span::all(), 10, Order::Ascending)
            .unwrap();
        assert_eq!(left, [key("2"), other]);
    }
}
