//! The sending end: seals once, keeps a window of pieces under way, and sends again only what the receiver lacks.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::time::Instant;

use super::rows::{self, End, Fault, Move};
use super::{Rooms, SILENCE_CAP, SILENCE_FIRST};
use crate::node::clock;
use crate::wire::transfer::{Chunk, Have, Named, Transfer};

/// Pieces under way at first, at least and at most: what a relay takes without a word is found by halving at a loss.
const WINDOW_FIRST: usize = 16;
const WINDOW_LEAST: usize = 4;
const WINDOW_MOST: usize = 48;
const WINDOW_STEP: usize = 4;
/// A piece that was sent so long ago may be called lost once a later one has arrived ...
const LOST_AFTER: Duration = Duration::from_secs(1);
/// ... and after this without any.
const LOST_BY_SILENCE: Duration = Duration::from_secs(6);
/// After a restart nobody here knows what is still on its way: nothing is sent before this, and before a word of the receiver.
const RESTART_PAUSE: Duration = Duration::from_secs(2);

pub(super) struct Sending {
    pub(super) row: Move,
    /// Progress as last shown to the owner.
    pub(super) shown: u32,
    under_way: BTreeMap<u32, Instant>,
    /// All pieces before this one were sent by this process, or are known to be there.
    next: u32,
    window: usize,
    halved: Instant,
    /// Until when a restarted sender only listens; none once the receiver has spoken after it.
    listens_until: Option<Instant>,
    ask_at: Instant,
    silence: Duration,
}

impl Sending {
    pub(super) fn new(row: Move, restored: bool) -> Self {
        let now = Instant::now();
        Self {
            row,
            shown: 0,
            under_way: BTreeMap::new(),
            next: 0,
            window: WINDOW_FIRST,
            halved: now,
            listens_until: restored.then_some(now + RESTART_PAUSE),
            ask_at: now + SILENCE_FIRST,
            silence: SILENCE_FIRST,
        }
    }

    /// The relay is there again, and so may be the receiver.
    pub(super) fn ask_now(&mut self) {
        self.silence = SILENCE_FIRST;
        self.ask_at = Instant::now();
    }

    /// What the receiver has. Says whether it has all of it.
    pub(super) fn have(&mut self, rooms: &Rooms, have: &Have) -> bool {
        let now = Instant::now();
        (self.ask_at, self.silence) = (now + SILENCE_FIRST, SILENCE_FIRST);
        match &self.row.end {
            End::Out(None) => match rows::seal(&rooms.store, &self.row, &have.keys) {
                Ok(sealed) => {
                    tracing::info!(
                        bytes = sealed.detached.bytes,
                        chunks = sealed.detached.chunks(),
                        "a payload is on its way"
                    );
                    (self.row, self.listens_until) = (sealed, None);
                }
                Err(Fault::Code(code)) => {
                    rooms.count(code);
                    rooms.refuse(&self.row.peer, &self.row.relays, &have.id, code);
                    return true;
                }
                Err(Fault::Store(error)) => {
                    tracing::warn!(code = error.code(), "a payload waits: {error}");
                    return false;
                }
            },
            // It was sealed for other keys, which that node has lost: what was sent cannot be opened any more.
            End::Out(Some(to)) if *to != have.keys => {
                rooms.count("transfer_keys");
                rooms.refuse(&self.row.peer, &self.row.relays, &have.id, "transfer_keys");
                return false;
            }
            _ => {}
        }
        if self.arrived(rooms, have, now) {
            return true;
        }
        if self.listens_until.is_some_and(|until| now >= until) {
            self.listens_until = None;
        }
        self.send_more(rooms, now);
        false
    }

    fn arrived(&mut self, rooms: &Rooms, have: &Have, now: Instant) -> bool {
        let chunks = self.row.detached.chunks();
        let mut row = self.row.clone();
        let mut gaps = have.missing.iter().copied().peekable();
        let (mut lacking, mut newest) = (Vec::new(), None);
        for at in 0..have.upto.min(chunks) {
            while gaps.next_if(|(_, to)| *to <= at).is_some() {}
            if gaps.peek().is_none_or(|(from, _)| at < *from) {
                row.have.add(at);
                newest = newest.max(self.under_way.remove(&at));
            } else if let Some(sent) = self.under_way.get(&at) {
                lacking.push((at, *sent));
            }
        }
        // Relays keep the order of what they take: a piece is lost if one that was sent after it is there, or if nothing
        // comes any more.
        let patience = if newest.is_some() {
            LOST_AFTER
        } else {
            LOST_BY_SILENCE
        };
        let lost = |sent: Instant| sent + patience <= now && newest.is_none_or(|n| sent < n);
        let before = self.under_way.len();
        for (at, _) in lacking.into_iter().filter(|(_, sent)| lost(*sent)) {
            self.under_way.remove(&at);
        }
        let lost = self.under_way.len() < before;
        if row.have != self.row.have {
            // Only what is durable is built upon; otherwise it is heard again.
            match rooms.store.write(|txn| rows::put(txn, &row)) {
                Ok(()) => self.row = row,
                Err(error) => {
                    tracing::warn!(code = error.code(), "a confirmation is not kept: {error}");
                }
            }
            self.window = (self.window + WINDOW_STEP).min(WINDOW_MOST);
        }
        if lost && self.halved + LOST_AFTER <= now {
            self.halved = now;
            self.window = (self.window / 2).max(WINDOW_LEAST);
        }
        self.row.is_whole()
    }

    fn send_more(&mut self, rooms: &Rooms, now: Instant) {
        if self.listens_until.is_some() || self.under_way.len() >= self.window {
            return;
        }
        let Some(eph) = self.row.eph.clone() else {
            return;
        };
        let Ok(view) = rooms.store.view() else {
            return;
        };
        let key = self.row.key();
        for at in 0..self.row.detached.chunks() {
            if self.under_way.len() >= self.window {
                return;
            }
            if self.row.have.has(at) || self.under_way.contains_key(&at) {
                continue;
            }
            let Ok(bytes) = rows::piece(&view, &key, at) else {
                return;
            };
            let chunk = Chunk {
                id: self.row.detached.id.clone(),
                index: at,
                eph: eph.clone(),
                data: STANDARD.encode(bytes),
            };
            let said = Transfer::Chunk(chunk);
            rooms.say(&self.row.peer, &self.row.relays, self.row.expires_ms, said);
            self.under_way.insert(at, now);
            let again = at < self.next;
            self.next = self.next.max(at + 1);
            rooms.tally(|state| {
                state.chunks_sent += 1;
                state.chunks_resent += u64::from(again);
            });
        }
    }

    /// Until the receiver has asked for the payload it has nothing to answer; after that a silence is broken.
    pub(super) fn look_after(&mut self, rooms: &Rooms) {
        let now = Instant::now();
        if self.row.eph.is_none() || now < self.ask_at {
            return;
        }
        self.ask_at = now + self.silence;
        self.silence = (self.silence * 2).min(SILENCE_CAP);
        let named = Named {
            id: self.row.detached.id.clone(),
        };
        let until = clock::now_ms() + 300_000;
        rooms.say(
            &self.row.peer,
            &self.row.relays,
            until,
            Transfer::Ask(named),
        );
    }
}
