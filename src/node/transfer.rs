//! Transfers: payloads that are too large for one envelope, moved over relays piece by piece.
//!
//! The loop parts a message from its payload, or holds one that came without it (`detach`); this task moves the bytes and gives
//! the loop the whole message, as if it had come so. Every piece that arrives is durable before it is confirmed, every
//! confirmation is durable before it is built upon: after a crash of either side the transfer goes on, and what had arrived
//! is not sent again. A relay may lose, repeat or reorder anything: pieces are numbered, the receiver says what is missing
//! whenever it has heard nothing for a while, and only the receiver's word makes the sender send a piece again.
//!
//! It must not know what a payload says, nor decide whether one is wanted.

pub(in crate::node) mod detach;
mod receiving;
pub(in crate::node) mod rows;
mod sending;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

pub use detach::Quota;
use receiving::Receiving;
use rows::{End, Key, Move};
use sending::Sending;

use super::delivery::Tell as Deliver;
use super::inbox::Opener;
use super::order::{Counters, Mail, Order};
use super::rows::Parcel;
use super::{Mailbox, clock};
use crate::domain::step::{Addressee, Input, Send, TaskId};
use crate::identity::Identity;
use crate::store::{Store, StoreError};
use crate::wire::message::Body;
use crate::wire::transfer::{RefusedTransfer, Transfer};
use crate::wire::verify::Inbox;

/// What the two ends say waits at most this long before the timers are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Pieces taken into one commit.
const BATCH: usize = 64;
/// The owner is shown progress this often.
const SHOWN_EVERY: Duration = Duration::from_secs(1);
/// Answers a second to those who speak of transfers that do not exist.
const STRANGE_ANSWERS_PER_S: u32 = 10;
/// A silence is broken after this long; doubles while nothing comes.
pub(in crate::node) const SILENCE_FIRST: Duration = Duration::from_secs(2);
pub(in crate::node) const SILENCE_CAP: Duration = Duration::from_secs(30);

/// Something said about a transfer, verified: by whom, and in which wrap.
#[derive(Debug)]
pub struct Heard {
    /// Author, hex.
    pub from: String,
    /// The wrap, if a relay keeps it.
    pub stored: Option<(Inbox, [u8; 32])>,
    /// What was said.
    pub said: Transfer,
}

/// What the task is told by others.
#[derive(Debug)]
pub(in crate::node) enum Tell {
    /// A row of either end is durable.
    Began(Box<Move>),
    /// The loop has taken the message: its row is gone.
    Gone(Key),
    /// Inputs for awards of this task before this number are not wanted by anybody any more.
    Over(TaskId, u32),
    /// An inbox was read to its end: what a relay had for us is here.
    CaughtUp,
    /// A whole payload was opened, or is refused with this code.
    Opened(Key, Result<Vec<u8>, &'static str>),
}

/// What `status` shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct TransferState {
    /// Payloads on their way to us.
    pub incoming: usize,
    /// Payloads on their way from us.
    pub outgoing: usize,
    /// Bytes of all of them that are durable at the receiver.
    pub done_bytes: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Chunks sent since the start.
    pub chunks_sent: u64,
    /// Of those, chunks sent a second time.
    pub chunks_resent: u64,
    /// Chunks that arrived since the start and were new.
    pub chunks_new: u64,
}

/// What the task works with.
pub(in crate::node) struct Rooms {
    pub(in crate::node) store: Arc<Store>,
    pub(in crate::node) identity: Arc<Identity>,
    pub(in crate::node) opener: Arc<Opener>,
    pub(in crate::node) mailbox: Mailbox,
    pub(in crate::node) delivery: mpsc::UnboundedSender<Deliver>,
    pub(in crate::node) presence: mpsc::UnboundedSender<Order>,
    pub(in crate::node) counters: Arc<Mutex<Counters>>,
    pub(in crate::node) state: Arc<Mutex<TransferState>>,
    /// To this task itself.
    pub(in crate::node) tells: mpsc::UnboundedSender<Tell>,
}

impl Rooms {
    /// Says something about a transfer to its other end. Ephemeral but for chunks.
    fn say(&self, peer: &str, relays: &[String], expires_ms: u64, said: Transfer) {
        let now = clock::now_ms();
        let send = Send {
            to: Addressee::Peer(peer.to_owned()),
            ephemeral: !matches!(said, Transfer::Chunk(_)),
            body: Body::Transfer(Box::new(said)),
            relays: relays.to_vec(),
            expires_ms,
        };
        let _ = self.delivery.send(Deliver::Order(Order::Try(Parcel {
            sends: vec![send],
            created_s: now / 1000,
        })));
    }

    fn refuse(&self, peer: &str, relays: &[String], id: &str, code: &str) {
        let said = Transfer::Refused(RefusedTransfer {
            id: id.to_owned(),
            code: code.to_owned(),
        });
        self.say(peer, relays, clock::now_ms() + 300_000, said);
    }

    fn count(&self, code: &str) {
        if let Ok(mut counters) = self.counters.lock() {
            *counters.dropped.entry(code.to_owned()).or_default() += 1;
        }
    }

    fn tally(&self, add: impl FnOnce(&mut TransferState)) {
        if let Ok(mut state) = self.state.lock() {
            add(&mut state);
        }
    }

    fn show(&self, row: &Move) {
        let ours = match row.end {
            End::Out(_) => !row.result,
            End::In { .. } => row.result,
        };
        if ours {
            self.mailbox.post(Mail::Fact(Input::Moving {
                task: row.task.clone(),
                award_no: row.award_no,
                done_bytes: row.done_bytes(),
                bytes: row.detached.bytes,
                result: row.result,
            }));
        }
    }
}

/// The task.
pub(in crate::node) struct Transfers {
    rooms: Rooms,
    sending: BTreeMap<Key, Sending>,
    receiving: BTreeMap<Key, Receiving>,
    /// The second, and how often somebody was told in it that a transfer is unknown.
    strange: (u64, u32),
    shown: Instant,
    /// When the timers were last looked at.
    looked: Instant,
}

impl Transfers {
    /// Goes on with what is stored, until the loop is gone.
    pub(in crate::node) async fn run(
        rooms: Rooms,
        stored: Vec<Move>,
        mut heard: mpsc::Receiver<Heard>,
        mut tells: mpsc::UnboundedReceiver<Tell>,
    ) {
        let mut this = Self {
            rooms,
            sending: BTreeMap::new(),
            receiving: BTreeMap::new(),
            strange: (0, 0),
            shown: Instant::now(),
            looked: Instant::now(),
        };
        for row in stored {
            this.began(row, true);
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // What was read before an inbox's end was reached is heard before the end is.
                biased;
                first = heard.recv() => {
                    let Some(first) = first else { return };
                    let mut batch = vec![first];
                    while batch.len() < BATCH && let Ok(next) = heard.try_recv() {
                        batch.push(next);
                    }
                    tokio::task::block_in_place(|| this.hear(batch));
                    // A flood of words must not keep the rest from its turn.
                    while let Ok(tell) = tells.try_recv() {
                        tokio::task::block_in_place(|| this.told(tell));
                    }
                    if this.looked.elapsed() >= TICK {
                        tokio::task::block_in_place(|| this.look_after());
                    }
                }
                tell = tells.recv() => match tell {
                    Some(tell) => tokio::task::block_in_place(|| this.told(tell)),
                    None => return,
                },
                _ = tick.tick() => {
                    tokio::task::block_in_place(|| this.look_after());
                }
            }
        }
    }

    fn told(&mut self, tell: Tell) {
        match tell {
            Tell::Began(row) => self.began(*row, false),
            Tell::Gone(key) => {
                self.receiving.remove(&key);
            }
            Tell::Over(task, before) => self.call_off(&task, before),
            Tell::CaughtUp => {
                self.receiving.values_mut().for_each(Receiving::caught_up);
                self.sending.values_mut().for_each(Sending::ask_now);
            }
            Tell::Opened(key, outcome) => {
                if let Some(receiving) = self.receiving.get_mut(&key) {
                    receiving.opened(&self.rooms, outcome);
                }
            }
        }
    }

    fn call_off(&mut self, task: &str, before: u32) {
        let idle = |row: &Move| row.task == task && !row.result && row.award_no < before;
        let over: Vec<Key> = self
            .sending
            .iter()
            .filter(|(_, sending)| idle(&sending.row))
            .map(|(key, _)| key.clone())
            .collect();
        for key in over {
            if let Some(Sending { row, .. }) = self.sending.get(&key) {
                let id = &row.detached.id;
                self.rooms.refuse(&row.peer, &row.relays, id, "award_over");
            }
            self.sent(&key);
        }
    }

    fn began(&mut self, row: Move, restored: bool) {
        let key = row.key();
        self.rooms.show(&row);
        match row.end {
            End::Out(_) => {
                let new = Sending::new(row, restored);
                self.sending.entry(key).or_insert(new);
            }
            End::In { .. } => {
                let new = Receiving::new(row, restored);
                let receiving = self.receiving.entry(key).or_insert(new);
                receiving.open_if_whole(&self.rooms);
            }
        }
    }

    fn hear(&mut self, batch: Vec<Heard>) {
        let mut chunks: BTreeMap<Key, Vec<_>> = BTreeMap::new();
        let mut read = Vec::new();
        for Heard { from, stored, said } in batch {
            // Whatever becomes of it, a relay need not keep it: what is missing is asked for by number.
            read.extend(stored);
            let (inward, outward) = (
                format!("in/{from}/{}", said.id()),
                format!("out/{from}/{}", said.id()),
            );
            match said {
                Transfer::Chunk(chunk) if self.receiving.contains_key(&inward) => {
                    chunks.entry(inward).or_default().push(chunk);
                }
                Transfer::Have(have) if self.sending.contains_key(&outward) => {
                    let outcome = self
                        .sending
                        .get_mut(&outward)
                        .map(|s| s.have(&self.rooms, &have));
                    if outcome == Some(true) {
                        self.sent(&outward);
                    }
                }
                Transfer::Ask(_) if self.receiving.contains_key(&inward) => {
                    if let Some(receiving) = self.receiving.get_mut(&inward) {
                        receiving.asked();
                    }
                }
                Transfer::Refused(refused) => {
                    if self.sending.contains_key(&outward) {
                        tracing::info!(code = refused.code, "a payload is not wanted any more");
                        self.sent(&outward);
                    } else if let Some(receiving) = self.receiving.get_mut(&inward) {
                        receiving.gone(&self.rooms);
                    }
                }
                Transfer::Chunk(_) => self.rooms.count("transfer_unknown"),
                Transfer::Have(have) => self.unknown(&from, &have.id),
                Transfer::Ask(named) => self.unknown(&from, &named.id),
            }
        }
        if receiving::take(&self.rooms, &mut self.receiving, chunks) && !read.is_empty() {
            let _ = self.rooms.presence.send(Order::Sweep(read));
        }
    }

    /// The other end is told that there is nothing here, so that it can forget its part.
    fn unknown(&mut self, from: &str, id: &str) {
        self.rooms.count("transfer_unknown");
        let now_s = clock::now_ms() / 1000;
        if self.strange.0 != now_s {
            self.strange = (now_s, 0);
        }
        self.strange.1 += 1;
        if self.strange.1 <= STRANGE_ANSWERS_PER_S {
            self.rooms.refuse(from, &[], id, "transfer_unknown");
        }
    }

    /// A payload that has arrived, or that nobody wants: its row and pieces go.
    fn sent(&mut self, key: &str) {
        if forget(&self.rooms.store, key).is_ok() {
            self.sending.remove(key);
        }
    }

    fn look_after(&mut self) {
        self.looked = Instant::now();
        let now_ms = clock::now_ms();
        let late = |row: &Move| row.expires_ms <= now_ms;
        let sending = self.sending.iter().filter(|(_, s)| late(&s.row));
        let receiving = self
            .receiving
            .iter()
            .filter(|(_, r)| late(&r.row) && !r.is_handed_over());
        let expired: Vec<Key> = sending
            .map(|(key, _)| key.clone())
            .chain(receiving.map(|(key, _)| key.clone()))
            .collect();
        for key in expired {
            tracing::warn!(transfer = key, "a payload did not arrive in time");
            if forget(&self.rooms.store, &key).is_ok() {
                self.sending.remove(&key);
                self.receiving.remove(&key);
            }
        }
        for sending in self.sending.values_mut() {
            sending.look_after(&self.rooms);
        }
        for receiving in self.receiving.values_mut() {
            receiving.look_after(&self.rooms);
        }
        if self.shown.elapsed() >= SHOWN_EVERY {
            self.shown = Instant::now();
            let moving = self.sending.values_mut().map(|s| (&s.row, &mut s.shown));
            let moving = moving.chain(self.receiving.values_mut().map(|r| (&r.row, &mut r.shown)));
            for (row, shown) in moving {
                let done = row.have.count();
                if std::mem::replace(shown, done) != done {
                    self.rooms.show(row);
                }
            }
        }
        let rows = || {
            let sending = self.sending.values().map(|s| &s.row);
            sending.chain(self.receiving.values().map(|r| &r.row))
        };
        let (incoming, outgoing) = (self.receiving.len(), self.sending.len());
        let done_bytes = rows().map(Move::done_bytes).sum();
        let bytes = rows().map(|row| row.detached.bytes).sum();
        self.rooms.tally(|state| {
            (state.incoming, state.outgoing) = (incoming, outgoing);
            (state.done_bytes, state.bytes) = (done_bytes, bytes);
        });
    }
}

fn forget(store: &Store, key: &str) -> Result<(), StoreError> {
    store
        .write(|txn| rows::remove(txn, key))
        .inspect_err(|error| {
            tracing::warn!(
                code = error.code(),
                "a transfer stays in the store: {error}"
            );
        })
}
