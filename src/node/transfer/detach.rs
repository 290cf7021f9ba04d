//! Where transfers begin: a message that is too large for its envelope is parted from its payload, and one that comes without
//! its payload is held until that is here. Called by the loop, within its batch.

use sha2::{Digest, Sha256};
use tokio::sync::mpsc::UnboundedSender;

use super::Tell;
use super::rows::{self, Bits, End, Move};
use crate::domain::Node;
use crate::domain::job::Phase;
use crate::domain::peer::Tier;
use crate::domain::step::{Addressee, Change, Incoming, Input, Refused, Row, Send};
use crate::identity::blob;
use crate::node::batch::Batch;
use crate::node::core::Core;
use crate::store::{Store, StoreError, Txn};
use crate::wire::message::Body;
use crate::wire::transfer::{self, Detached, INLINE_BYTES};

/// Whoever found no room may try again after this.
const RETRY_AFTER_MS: u64 = 5_000;

/// What incoming transfers may take.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    /// Transfers of one known peer at once; strangers together have an eighth of it.
    pub per_peer: usize,
    /// Sealed bytes of all of them together.
    pub disk_bytes: u64,
}

/// A payload that was taken out of its message: its row, and the payload in clear.
pub(in crate::node) type Parted = (Move, Vec<u8>);

/// Parts a message of this many bytes from its payload if it would not fit into an envelope.
pub(in crate::node) fn detach(send: &mut Send, json: &[u8]) -> Option<Parted> {
    // In a rumor's JSON the message is a string: quotes and backslashes take two bytes.
    let doubled = json.iter().filter(|b| matches!(b, b'"' | b'\\')).count();
    let Addressee::Peer(peer) = &send.to else {
        return None;
    };
    if json.len() + doubled <= INLINE_BYTES || send.ephemeral {
        return None;
    }
    let (task, award_no, result, expires_ms) = match &send.body {
        Body::Award(award) | Body::Request(award) => (
            award.task.clone(),
            award.award_no,
            false,
            award.accept_by_ms,
        ),
        Body::Update(update) => (update.task.clone(), update.award_no, true, send.expires_ms),
        _ => return None,
    };
    let mut id = [0u8; 16];
    getrandom::fill(&mut id).ok()?;
    let members = transfer::take(&mut send.body)?;
    let plain = serde_json::to_vec(&members).ok()?;
    let detached = Detached {
        id: hex::encode(id),
        bytes: plain.len() as u64,
        sha256: hex::encode(Sha256::digest(&plain)),
    };
    if let Some(slot) = transfer::slot(&mut send.body) {
        *slot = Some(detached.clone());
    }
    let row = Move {
        peer: peer.clone(),
        relays: send.relays.clone(),
        task,
        award_no,
        result,
        expires_ms,
        have: Bits::none(detached.chunks()),
        eph: None,
        end: End::Out(None),
        detached,
    };
    Some((row, plain))
}

impl Core {
    /// Keeps a message without its payload back, if that is to be fetched. Otherwise the decisions hear it as it is, with the
    /// reason in place of a plan.
    ///
    /// # Errors
    /// The store's.
    pub(in crate::node) fn hold_back(
        &mut self,
        now: u64,
        incoming: &mut Incoming,
        batch: &mut Batch,
    ) -> Result<bool, StoreError> {
        if transfer::detached(&incoming.body).is_none() {
            return Ok(false);
        }
        self.recall(&Input::Message(Box::new(incoming.clone())))?;
        let (quota, also) = (self.quota, &batch.held);
        match hold(&self.node, &self.store, now, quota, also, incoming)? {
            Held::Waits(row) => batch.held.push(*row),
            Held::Again => {}
            Held::Refused(refused) => {
                incoming.plan = Some(Err(refused));
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Writes what a batch has to say of transfers.
///
/// # Errors
/// The store's.
pub(in crate::node) fn keep(txn: &mut Txn<'_>, batch: &Batch) -> Result<(), StoreError> {
    for (row, plain) in &batch.parted {
        rows::put_new(txn, row, plain)?;
    }
    for row in &batch.held {
        rows::put(txn, row)?;
    }
    for key in &batch.arrived {
        rows::remove(txn, key)?;
    }
    Ok(())
}

/// Tells the transfers of it, once it is durable.
pub(in crate::node) fn tell(transfers: &UnboundedSender<Tell>, batch: &mut Batch) {
    let parted = std::mem::take(&mut batch.parted);
    let begun = parted.into_iter().map(|(row, _)| row);
    for row in begun.chain(std::mem::take(&mut batch.held)) {
        let _ = transfers.send(Tell::Began(Box::new(row)));
    }
    for key in std::mem::take(&mut batch.arrived) {
        let _ = transfers.send(Tell::Gone(key));
    }
    for change in &batch.changes {
        let Change::Put(Row::Job(job)) = change else {
            continue;
        };
        let newest = job.awards.iter().map(|award| award.no).max();
        if let Some(newest) = newest {
            let before = match job.phase {
                Phase::Ended => u32::MAX,
                _ => newest,
            };
            let _ = transfers.send(Tell::Over(job.task.clone(), before));
        }
    }
}

/// What becomes of a message without its payload.
enum Held {
    /// It waits.
    Waits(Box<Move>),
    /// The same message waits already.
    Again,
    /// It goes to the decisions as it is: they say no, for this reason.
    Refused(Refused),
}

/// Holds a message that came without its payload, if that is wanted and there is room. `also` are those held in the same batch.
///
/// # Errors
/// The store's.
fn hold(
    node: &Node,
    store: &Store,
    now: u64,
    quota: Quota,
    also: &[Move],
    incoming: &Incoming,
) -> Result<Held, StoreError> {
    let Some(detached) = transfer::detached(&incoming.body) else {
        return Ok(Held::Refused(Refused::new(
            "transfer_missing",
            "no payload",
        )));
    };
    if let Err(refused) = node.would_fetch(now, incoming) {
        return Ok(Held::Refused(refused));
    }
    let (task, award_no, result, expires_ms) = match &incoming.body {
        Body::Award(award) | Body::Request(award) => (
            award.task.clone(),
            award.award_no,
            false,
            award.accept_by_ms,
        ),
        Body::Update(update) => {
            let until = node.jobs().get(&update.task).and_then(|job| {
                let mut awards = job.awards.iter();
                awards
                    .find(|a| a.no == update.award_no)
                    .map(|a| a.settle_by_ms)
            });
            (
                update.task.clone(),
                update.award_no,
                true,
                until.unwrap_or(now),
            )
        }
        _ => return Ok(Held::Again),
    };
    let stored = rows::all(&store.view()?, "in/")?;
    let rows = || stored.iter().chain(also);
    if rows().any(|row| row.peer == incoming.from && row.detached.id == detached.id) {
        return Ok(Held::Again);
    }
    if let Err(refused) = room(node, now, rows(), quota, &incoming.from, detached) {
        return Ok(Held::Refused(refused));
    }
    let Ok((once, public)) = blob::one_time() else {
        return Ok(Held::Refused(Refused::new(
            "transfer_key",
            "no key could be made",
        )));
    };
    let relays = node.peers().get(&incoming.from).map(|p| p.relays.clone());
    Ok(Held::Waits(Box::new(Move {
        peer: incoming.from.clone(),
        relays: relays.unwrap_or_default(),
        task,
        award_no,
        result,
        expires_ms,
        have: Bits::none(detached.chunks()),
        eph: None,
        end: End::In {
            once: hex::encode(once.as_slice()),
            public: hex::encode(public),
            message: Box::new(incoming.body.clone()),
        },
        detached: detached.clone(),
    })))
}

fn room<'a>(
    node: &Node,
    now: u64,
    rows: impl Iterator<Item = &'a Move> + Clone,
    quota: Quota,
    from: &str,
    detached: &Detached,
) -> Result<(), Refused> {
    let stranger = |peer: &str| {
        let known = node.peers().get(peer);
        known.is_none_or(|p| p.tier == Tier::Stranger)
    };
    let (open, most) = if stranger(from) {
        let open = rows.clone().filter(|row| stranger(&row.peer)).count();
        (open, (quota.per_peer / 8).max(1))
    } else {
        let open = rows.clone().filter(|row| row.peer == from).count();
        (open, quota.per_peer)
    };
    if open >= most {
        let text = format!("{open} payloads are on their way here already; {most} are the limit");
        let refused = Refused::new("too_many_transfers", text);
        return Err(refused.retry_at(Some(now.saturating_add(RETRY_AFTER_MS))));
    }
    let held: u64 = rows
        .map(|row| transfer::sealed_bytes(row.detached.bytes))
        .sum();
    if held.saturating_add(transfer::sealed_bytes(detached.bytes)) > quota.disk_bytes {
        let text = format!("payloads on their way here take {held} bytes already");
        let refused = Refused::new("transfer_disk_full", text);
        return Err(refused.retry_at(Some(now.saturating_add(RETRY_AFTER_MS))));
    }
    Ok(())
}
