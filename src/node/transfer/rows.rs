//! Transfers in the store: one row per payload on its way, its pieces beside it. Must not know who is asked for what.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::identity::blob::{Blob, Purpose, SEGMENT_BYTES, TAG_BYTES};
use crate::identity::{Identity, blob};
use crate::store::{Order, Rows, Span, Store, StoreError, Table, Txn, View};
use crate::wire::message::Body;
use crate::wire::transfer::{CHUNK_BYTES, Detached, SealTo, sealed_bytes};

/// Key of a transfer's row: `in/<peer>/<id>` or `out/<peer>/<id>`.
pub(in crate::node) type Key = String;

/// A payload on its way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::node) struct Move {
    /// The other node, hex.
    pub(in crate::node) peer: String,
    /// Where it reads, beside our relays.
    pub(in crate::node) relays: Vec<String>,
    /// Task.
    pub(in crate::node) task: String,
    /// Award.
    pub(in crate::node) award_no: u32,
    /// Whether it is a result; else an input.
    pub(in crate::node) result: bool,
    /// Which payload.
    pub(in crate::node) detached: Detached,
    /// When it is given up, Unix milliseconds.
    pub(in crate::node) expires_ms: u64,
    /// Pieces that are durable at the receiver, as far as known here.
    pub(in crate::node) have: Bits,
    /// The sender's one-time public key, hex, once there is one. Its secret is gone as soon as the payload is sealed.
    pub(in crate::node) eph: Option<String>,
    /// Which end this is.
    pub(in crate::node) end: End,
}

/// The two ends of a transfer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::node) enum End {
    /// We send; sealed to these keys, once they are known.
    Out(Option<SealTo>),
    /// We receive.
    In {
        /// Our one-time secret, hex. It ends with this row.
        once: String,
        /// Our one-time public key, hex.
        public: String,
        /// The message that waits for its payload.
        message: Box<Body>,
    },
}

/// A set of piece numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::node) struct Bits(#[serde(with = "hex::serde")] Vec<u8>);

impl Bits {
    pub(in crate::node) fn none(count: u32) -> Self {
        Self(vec![0; (count as usize).div_ceil(8)])
    }

    pub(in crate::node) fn has(&self, at: u32) -> bool {
        let byte = self.0.get(at as usize / 8).copied().unwrap_or(0);
        byte & (1 << (at % 8)) != 0
    }

    /// Whether it was not there before.
    pub(in crate::node) fn add(&mut self, at: u32) -> bool {
        let new = !self.has(at);
        if let Some(byte) = self.0.get_mut(at as usize / 8) {
            *byte |= 1 << (at % 8);
        }
        new
    }

    pub(in crate::node) fn count(&self) -> u32 {
        self.0.iter().map(|byte| byte.count_ones()).sum()
    }

    /// Ranges below `count` that are not in the set, at most `most`; and up to where they speak.
    pub(in crate::node) fn missing(&self, count: u32, most: usize) -> (Vec<(u32, u32)>, u32) {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for at in (0..count).filter(|at| !self.has(*at)) {
            let full = ranges.len() == most;
            match ranges.last_mut() {
                Some((_, to)) if *to == at => *to = at + 1,
                _ if full => return (ranges, at),
                _ => ranges.push((at, at + 1)),
            }
        }
        (ranges, count)
    }
}

impl Move {
    pub(in crate::node) fn key(&self) -> Key {
        let way = match self.end {
            End::Out(_) => "out",
            End::In { .. } => "in",
        };
        format!("{way}/{}/{}", self.peer, self.detached.id)
    }

    pub(in crate::node) fn is_whole(&self) -> bool {
        self.have.count() == self.detached.chunks()
    }

    /// Bytes durable at the receiver, as payload.
    pub(in crate::node) fn done_bytes(&self) -> u64 {
        (u64::from(self.have.count()) * CHUNK_BYTES as u64).min(self.detached.bytes)
    }

    fn purpose(&self) -> Purpose<'_> {
        Purpose {
            task: &self.task,
            award_no: self.award_no,
            what: if self.result { "result" } else { "input" },
        }
    }

    fn segments(&self) -> u32 {
        let count = self.detached.bytes.div_ceil(SEGMENT_BYTES as u64).max(1);
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

fn piece_key(key: &str, kind: char, at: u32) -> Vec<u8> {
    let mut bytes = format!("{key}/{kind}").into_bytes();
    bytes.extend_from_slice(&at.to_be_bytes());
    bytes
}

/// Writes the row.
pub(in crate::node) fn put(txn: &mut Txn<'_>, row: &Move) -> Result<(), StoreError> {
    txn.put(Table::Moves, row.key().as_bytes(), row)
}

/// Writes a new row of ours, and its payload in clear until it is sealed.
pub(in crate::node) fn put_new(
    txn: &mut Txn<'_>,
    row: &Move,
    plain: &[u8],
) -> Result<(), StoreError> {
    for (at, segment) in plain.chunks(SEGMENT_BYTES).enumerate() {
        txn.put_bytes(
            Table::Pieces,
            &piece_key(&row.key(), 'p', at as u32),
            segment,
        )?;
    }
    put(txn, row)
}

/// Writes a sealed piece.
pub(in crate::node) fn put_piece(
    txn: &mut Txn<'_>,
    key: &str,
    at: u32,
    bytes: &[u8],
) -> Result<(), StoreError> {
    txn.put_bytes(Table::Pieces, &piece_key(key, 's', at), bytes)
}

/// A sealed piece.
pub(in crate::node) fn piece(view: &View, key: &str, at: u32) -> Result<Vec<u8>, StoreError> {
    let found = view.get_bytes(Table::Pieces, &piece_key(key, 's', at))?;
    Ok(found.unwrap_or_default())
}

/// Forgets a transfer with all its pieces and keys.
pub(in crate::node) fn remove(txn: &mut Txn<'_>, key: &str) -> Result<(), StoreError> {
    let prefix = format!("{key}/");
    let pieces = txn.keys(
        Table::Pieces,
        Span::prefix(prefix.as_bytes()),
        usize::MAX,
        Order::Ascending,
    )?;
    for piece in pieces {
        txn.delete(Table::Pieces, &piece)?;
    }
    txn.delete(Table::Moves, key.as_bytes()).map(drop)
}

/// All transfers of one direction (`in/` or `out/`), or all.
pub(in crate::node) fn all(view: &View, prefix: &str) -> Result<Vec<Move>, StoreError> {
    let span = Span::prefix(prefix.as_bytes());
    let rows = view.range::<Move>(Table::Moves, span, usize::MAX, Order::Ascending)?;
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// Seals the payload, once: segment by segment from the store into the store. The one-time secret never leaves this function.
///
/// # Errors
/// The stable code and text of what failed.
pub(in crate::node) fn seal(store: &Store, row: &Move, to: &SealTo) -> Result<Move, Fault> {
    let [once, fixed] = [&to.once, &to.fixed].map(|key| key_of(key));
    let (secret, public) = blob::one_time().map_err(|e| Fault::other(e.code(), &e))?;
    let mut blob = Blob::sealing(&secret, &once?, &fixed?, row.purpose())
        .map_err(|e| Fault::other(e.code(), &e))?;
    let mut sealed = row.clone();
    sealed.eph = Some(hex::encode(public));
    sealed.end = End::Out(Some(to.clone()));
    let (key, segments) = (row.key(), row.segments());
    let done = store.write(|txn| {
        let (mut cut, mut at) = (Vec::with_capacity(CHUNK_BYTES * 5), 0);
        for segment in 0..segments {
            let name = piece_key(&key, 'p', segment);
            let plain = txn.get_bytes(Table::Pieces, &name)?.unwrap_or_default();
            let Ok(bytes) = blob.seal(&plain, segment + 1 == segments) else {
                return Ok(false);
            };
            txn.delete(Table::Pieces, &name)?;
            cut.extend_from_slice(&bytes);
            let whole = cut.len() - cut.len() % CHUNK_BYTES;
            for piece in cut[..whole].chunks(CHUNK_BYTES) {
                put_piece(txn, &key, at, piece)?;
                at += 1;
            }
            cut.drain(..whole);
        }
        if !cut.is_empty() {
            put_piece(txn, &key, at, &cut)?;
        }
        put(txn, &sealed)?;
        Ok(true)
    })?;
    if done {
        Ok(sealed)
    } else {
        Err(Fault::Code("transfer_lost"))
    }
}

/// Opens a whole payload: every segment's tag, then the hash over all of it. Nothing is used before both hold.
///
/// # Errors
/// `payload_seal` or `payload_hash` for a payload that is not the one announced; the store's.
pub(in crate::node) fn open(
    store: &Store,
    row: &Move,
    identity: &Identity,
) -> Result<Vec<u8>, Fault> {
    let broken = |_| Fault::Code("payload_seal");
    let End::In { once, .. } = &row.end else {
        return Err(Fault::Code("transfer_lost"));
    };
    let eph = key_of(row.eph.as_deref().unwrap_or_default())?;
    let mut blob = Blob::opening(&key_of(once)?, identity.seal_secret(), &eph, row.purpose())
        .map_err(broken)?;
    let view = store.view()?;
    let (key, segments, chunks) = (row.key(), row.segments(), row.detached.chunks());
    let mut plain = Vec::with_capacity(usize::try_from(row.detached.bytes).unwrap_or(0));
    let (mut sealed, mut next, mut hash) = (Vec::new(), 0, Sha256::new());
    let mut left = usize::try_from(sealed_bytes(row.detached.bytes)).unwrap_or(0);
    for segment in 0..segments {
        let wanted = left.min(SEGMENT_BYTES + TAG_BYTES);
        while sealed.len() < wanted && next < chunks {
            sealed.extend_from_slice(&piece(&view, &key, next)?);
            next += 1;
        }
        let closed = sealed.get(..wanted).ok_or(Fault::Code("payload_seal"))?;
        let opened = blob.open(closed, segment + 1 == segments).map_err(broken)?;
        hash.update(&opened);
        plain.extend_from_slice(&opened);
        sealed.drain(..wanted);
        left -= wanted;
    }
    if hex::encode(hash.finalize()) != row.detached.sha256 {
        return Err(Fault::Code("payload_hash"));
    }
    Ok(plain)
}

/// What went wrong with a transfer.
#[derive(Debug)]
pub(in crate::node) enum Fault {
    /// The payload or the peer's part: a stable code.
    Code(&'static str),
    /// Our store: to be tried again.
    Store(StoreError),
}

impl Fault {
    fn other(code: &'static str, error: &dyn std::error::Error) -> Self {
        tracing::warn!(code, "a payload could not be sealed: {error}");
        Self::Code(code)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn key_of(text: &str) -> Result<[u8; 32], Fault> {
    let mut key = [0u8; 32];
    hex::decode_to_slice(text, &mut key).map_err(|_| Fault::Code("transfer_key"))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The promise: what is called missing is exactly what is not there, as far as the ranges speak.
        #[test]
        fn missing_ranges_are_the_complement(have in proptest::collection::btree_set(0u32..90, 0..90), most in 1usize..20) {
            let mut bits = Bits::none(90);
            for at in &have {
                prop_assert!(bits.add(*at));
                prop_assert!(!bits.add(*at));
            }
            prop_assert_eq!(bits.count() as usize, have.len());
            let (ranges, upto) = bits.missing(90, most);
            prop_assert!(ranges.len() <= most && (upto == 90 || ranges.len() == most));
            for at in 0..upto {
                let missing = ranges.iter().any(|(from, to)| (*from..*to).contains(&at));
                prop_assert_eq!(missing, !have.contains(&at));
            }
        }
    }
}
