//! A machine's disk in the simulation: what survives a crash.

use std::collections::{BTreeMap, BTreeSet};

use legiond::domain::step::{Change, Row, Send};
use serde_json::Value;

/// What survives a crash.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) rows: BTreeMap<String, Vec<u8>>,
    pub(crate) live: BTreeSet<String>,
    pub(crate) checkpoints: BTreeMap<String, u32>,
    pub(crate) seen: BTreeSet<(usize, u64)>,
    pub(crate) outbox: BTreeMap<u64, (Send, u64)>,
    pub(crate) transfers: BTreeMap<String, u64>,
    pub(crate) journal: Vec<(String, Option<String>, Value)>,
    pub(crate) next_rumor: u64,
}

pub(crate) fn row_name(row: &Row) -> Option<String> {
    Some(match row {
        Row::Job(job) => format!("job/{}", job.task),
        Row::Engagement(work) => format!("work/{}", work.key),
        Row::Peer(peer) => format!("peer/{}", peer.npub),
        Row::Account(account) => format!("account/{}", account.npub),
        Row::Key { key, .. } => format!("key/{key}"),
        Row::Payload { owner, name, .. } => format!("payload/{owner}/{name}"),
        Row::Mark(mark) => format!("mark/{}", mark.owner),
        Row::Owner(_) => "owner".into(),
        Row::Transfer(_) | Row::Entry(_) | Row::Checkpoint { .. } => return None,
    })
}

impl Disk {
    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Put(Row::Transfer(transfer)) => {
                assert!(
                    self.transfers
                        .insert(transfer.id.clone(), transfer.amount_mc)
                        .is_none(),
                    "a transfer happens once: {}",
                    transfer.id
                );
            }
            Change::Put(Row::Checkpoint {
                owner, units_done, ..
            }) => {
                self.checkpoints.insert(owner.clone(), *units_done);
            }
            Change::Put(row) => {
                let Some(name) = row_name(row) else { return };
                let live = match row {
                    Row::Job(job) => job.is_live(),
                    Row::Engagement(work) => work.is_live(),
                    Row::Peer(_) | Row::Account(_) | Row::Mark(_) | Row::Owner(_) => true,
                    _ => false,
                };
                if live {
                    self.live.insert(name.clone())
                } else {
                    self.live.remove(&name)
                };
                self.rows.insert(name, serde_json::to_vec(row).unwrap());
            }
            Change::DropPeer(npub) => self.forget(&format!("peer/{npub}")),
            Change::DropMark(owner) => {
                self.forget(&format!("mark/{owner}"));
                self.checkpoints.remove(owner);
            }
            Change::DropWork { owner, key } => {
                self.checkpoints.remove(owner);
                self.forget(&format!("payload/{key}/input"));
            }
            Change::CopyAnswer { task, key, call } => {
                let answer = self.payload(task, "result").unwrap();
                let name = legiond::domain::engagement::answer_name(*call);
                self.apply(&Change::Put(Row::Payload {
                    owner: key.clone(),
                    name,
                    bytes: answer,
                }));
            }
            Change::Journal { kind, task, body } => {
                self.journal
                    .push((kind.clone(), task.clone(), body.clone()))
            }
        }
    }

    pub(crate) fn forget(&mut self, name: &str) {
        self.rows.remove(name);
        self.live.remove(name);
    }

    pub(crate) fn row(&self, name: &str) -> Option<Row> {
        self.rows
            .get(name)
            .map(|bytes| serde_json::from_slice(bytes).unwrap())
    }

    pub(crate) fn payload(&self, owner: &str, name: &str) -> Option<Vec<u8>> {
        match self.row(&format!("payload/{owner}/{name}")) {
            Some(Row::Payload { bytes, .. }) => Some(bytes),
            _ => None,
        }
    }
}
