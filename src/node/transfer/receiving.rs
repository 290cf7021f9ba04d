//! The receiving end: asks for the payload, keeps every piece that fits, confirms what is durable, and hands the whole message on.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::time::Instant;

use super::rows::{self, End, Fault, Key, Move};
use super::{Rooms, SILENCE_CAP, SILENCE_FIRST, Tell};
use crate::domain::step::Refused;
use crate::labor::skills::own;
use crate::node::clock;
use crate::node::order::Mail;
use crate::wire::message::Body;
use crate::wire::transfer::{Chunk, Have, MAX_RANGES, SealTo, Transfer, put_back, slot};

/// Pieces that arrive wait this long for others to be confirmed with ...
const CONFIRM_WITHIN: Duration = Duration::from_millis(150);
/// ... and this many at most.
const CONFIRM_EVERY: u32 = 16;
/// After an inbox was read to its end, what came from it is handled before anything is called missing.
const SETTLE: Duration = Duration::from_millis(300);
/// A restarted receiver says nothing before its inboxes were read: what it lacks may lie there. Without any relay, not before this.
const RESTART_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Receiving {
    pub(super) row: Move,
    /// Progress as last shown to the owner.
    pub(super) shown: u32,
    /// New pieces since the last confirmation.
    fresh: u32,
    say_at: Instant,
    silence: Duration,
    stage: Stage,
}

#[derive(PartialEq, Eq)]
enum Stage {
    Moving,
    Opening,
    HandedOver,
}

impl Receiving {
    pub(super) fn new(row: Move, restored: bool) -> Self {
        let pause = if restored {
            RESTART_PAUSE
        } else {
            Duration::ZERO
        };
        Self {
            row,
            shown: 0,
            fresh: 0,
            say_at: Instant::now() + pause,
            silence: SILENCE_FIRST,
            stage: Stage::Moving,
        }
    }

    pub(super) fn is_handed_over(&self) -> bool {
        self.stage == Stage::HandedOver
    }

    pub(super) fn caught_up(&mut self) {
        self.silence = SILENCE_FIRST;
        self.say_at = Instant::now() + SETTLE;
    }

    /// The sender wants to know.
    pub(super) fn asked(&mut self) {
        self.say_at = self.say_at.min(Instant::now() + CONFIRM_WITHIN);
    }

    /// The sender does not have it any more.
    pub(super) fn gone(&mut self, rooms: &Rooms) {
        if self.stage == Stage::Moving {
            self.fail(rooms, "transfer_lost");
        }
    }

    pub(super) fn look_after(&mut self, rooms: &Rooms) {
        let now = Instant::now();
        if now < self.say_at || self.stage != Stage::Moving {
            return;
        }
        self.open_if_whole(rooms);
        self.say_at = now + self.silence;
        self.silence = (self.silence * 2).min(SILENCE_CAP);
        self.say_have(rooms);
    }

    fn say_have(&mut self, rooms: &Rooms) {
        self.fresh = 0;
        let End::In { public, .. } = &self.row.end else {
            return;
        };
        let (missing, upto) = self
            .row
            .have
            .missing(self.row.detached.chunks(), MAX_RANGES);
        let have = Have {
            id: self.row.detached.id.clone(),
            keys: SealTo {
                once: public.clone(),
                fixed: rooms.identity.public().x25519.clone(),
            },
            upto,
            missing,
        };
        let until = clock::now_ms() + 300_000;
        let said = Transfer::Have(have);
        rooms.say(&self.row.peer, &self.row.relays, until, said);
    }

    /// Whether a chunk belongs here; the code of the refusal if not.
    fn check(row: &mut Move, chunk: &Chunk) -> Result<Vec<u8>, &'static str> {
        if chunk.index >= row.detached.chunks() {
            return Err("chunk_index");
        }
        if row.eph.as_ref().is_some_and(|eph| *eph != chunk.eph) {
            return Err("chunk_key");
        }
        let bytes = STANDARD
            .decode(&chunk.data)
            .map_err(|_| "chunk_malformed")?;
        if bytes.len() != row.detached.chunk_bytes(chunk.index) {
            return Err("chunk_size");
        }
        if row.have.has(chunk.index) {
            return Err("chunk_duplicate");
        }
        row.eph.get_or_insert_with(|| chunk.eph.clone());
        Ok(bytes)
    }

    fn took(&mut self, rooms: &Rooms, row: Move) {
        let now = Instant::now();
        let new = row.have.count().saturating_sub(self.row.have.count());
        self.row = row;
        rooms.tally(|state| state.chunks_new += u64::from(new));
        if new == 0 {
            return;
        }
        let first = self.fresh == 0;
        self.fresh += new;
        self.silence = SILENCE_FIRST;
        if self.fresh >= CONFIRM_EVERY || self.row.is_whole() {
            self.say_have(rooms);
            self.say_at = now + self.silence;
        } else if first {
            self.say_at = now + CONFIRM_WITHIN;
        }
        self.open_if_whole(rooms);
    }

    /// Opens a whole payload on another thread: decryption and hash of megabytes.
    pub(super) fn open_if_whole(&mut self, rooms: &Rooms) {
        if self.stage != Stage::Moving || !self.row.is_whole() {
            return;
        }
        self.stage = Stage::Opening;
        let (store, identity) = (rooms.store.clone(), rooms.identity.clone());
        let (row, tells) = (self.row.clone(), rooms.tells.clone());
        tokio::task::spawn_blocking(move || {
            let outcome = match rows::open(&store, &row, &identity) {
                Ok(plain) => Ok(plain),
                Err(Fault::Code(code)) => Err(code),
                Err(Fault::Store(error)) => Err(error.code()),
            };
            let _ = tells.send(Tell::Opened(row.key(), outcome));
        });
    }

    /// The whole message goes to the loop, which forgets the transfer in the commit that takes it.
    pub(super) fn opened(&mut self, rooms: &Rooms, outcome: Result<Vec<u8>, &'static str>) {
        let End::In { message, .. } = &self.row.end else {
            return;
        };
        let mut body = (**message).clone();
        let plain = match outcome {
            Ok(plain) => plain,
            // The disk: once more when the silence is broken.
            Err(code) if code.starts_with("store_") => {
                self.stage = Stage::Moving;
                return;
            }
            Err(code) => {
                self.fail(rooms, code);
                return;
            }
        };
        if let Body::Award(award) | Body::Request(award) = &body
            && own::is_probing(&award.skill)
        {
            // What its skill takes is not known yet: once more as well.
            self.stage = Stage::Moving;
            return;
        }
        let members = serde_json::from_slice(&plain).unwrap_or_default();
        if !put_back(&mut body, members) {
            self.fail(rooms, "payload_malformed");
            return;
        }
        if let Some(slot) = slot(&mut body) {
            *slot = None;
        }
        let now_s = clock::now_ms() / 1000;
        match rooms.opener.admit_whole(&self.row.peer, body, now_s) {
            Ok(incoming) => {
                self.stage = Stage::HandedOver;
                let key = self.row.key();
                rooms.mailbox.post(Mail::Whole(key, Box::new(incoming)));
            }
            Err(code) => self.fail(rooms, code),
        }
    }

    /// Nothing of the payload is used. The sender is told, and the decisions hear of an award that cannot be taken.
    fn fail(&mut self, rooms: &Rooms, code: &'static str) {
        rooms.count(code);
        tracing::warn!(code, transfer = self.row.key(), "a payload is refused");
        rooms.refuse(
            &self.row.peer,
            &self.row.relays,
            &self.row.detached.id,
            code,
        );
        let End::In { message, .. } = &self.row.end else {
            return;
        };
        self.stage = Stage::HandedOver;
        let now_s = clock::now_ms() / 1000;
        let body = (**message).clone();
        if let Ok(mut incoming) = rooms.opener.admit_whole(&self.row.peer, body, now_s) {
            let text = "the payload of this message did not arrive as announced";
            incoming.plan = Some(Err(Refused::new(code, text)));
            let key = self.row.key();
            rooms.mailbox.post(Mail::Whole(key, Box::new(incoming)));
        } else if super::forget(&rooms.store, &self.row.key()).is_ok() {
            let _ = rooms.tells.send(Tell::Gone(self.row.key()));
        }
    }
}

/// Keeps the chunks that fit, in one commit. Says whether they may be forgotten by the relays.
pub(super) fn take(
    rooms: &Rooms,
    all: &mut BTreeMap<Key, Receiving>,
    chunks: BTreeMap<Key, Vec<Chunk>>,
) -> bool {
    let mut pieces = Vec::new();
    let mut changed = Vec::new();
    for (key, chunks) in chunks {
        let Some(receiving) = all.get(&key).filter(|r| r.stage == Stage::Moving) else {
            continue;
        };
        let mut row = receiving.row.clone();
        for chunk in chunks {
            match Receiving::check(&mut row, &chunk) {
                Ok(bytes) => {
                    row.have.add(chunk.index);
                    pieces.push((key.clone(), chunk.index, bytes));
                }
                Err(code) => rooms.count(code),
            }
        }
        changed.push((key, row));
    }
    if !pieces.is_empty() {
        let written = rooms.store.write(|txn| {
            for (key, at, bytes) in &pieces {
                rows::put_piece(txn, key, *at, bytes)?;
            }
            changed.iter().try_for_each(|(_, row)| rows::put(txn, row))
        });
        if let Err(error) = written {
            tracing::warn!(code = error.code(), "pieces are not kept: {error}");
            return false;
        }
    }
    for (key, row) in changed {
        if let Some(receiving) = all.get_mut(&key) {
            receiving.took(rooms, row);
        }
    }
    true
}
