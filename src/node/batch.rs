//! What one commit gathers: changes, messages, acknowledgements, answers.

use std::collections::HashSet;

use tokio::sync::oneshot;

use super::order::{Answer, Look, Mail};
use super::transfer::detach::Parted;
use super::transfer::rows::{Key, Move};
use crate::domain::step::{Addressee, Change, Effect, Refused, Row, Send, Step};
use crate::wire::verify::Inbox;

/// What makes a message seen: author, rumor id, wrap id, expiry in Unix seconds.
type SeenId = ([u8; 32], [u8; 32], [u8; 32], u64);

/// The answer to a command.
type Said = Result<Answer, Refused>;

/// What one batch has gathered.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) sends: Vec<Send>,
    pub(super) tries: Vec<Send>,
    pub(super) effects: Vec<Effect>,
    /// Author, rumor, wrap, until when (Unix seconds).
    pub(super) seen: Vec<SeenId>,
    pub(super) seen_now: HashSet<([u8; 32], [u8; 32])>,
    pub(super) acks: Vec<(String, String)>,
    /// Wraps that need not be read again once this is durable.
    pub(super) swept: Vec<(Inbox, [u8; 32])>,
    pub(super) answers: Vec<(oneshot::Sender<Said>, Said)>,
    pub(super) again: Vec<Mail>,
    /// Payloads parted from their messages.
    pub(super) parted: Vec<Parted>,
    /// Messages that wait for their payloads.
    pub(super) held: Vec<Move>,
    /// Transfers that end with this batch.
    pub(super) arrived: Vec<Key>,
    /// Who looks at the state: they see it durable.
    pub(super) looks: Vec<Look>,
    /// Journal kinds, for crash points.
    pub(super) kinds: Vec<String>,
}

impl Batch {
    pub(super) fn gather(&mut self, step: Step) {
        self.changes.extend(step.changes);
        for effect in step.effects {
            match effect {
                Effect::Send(send) if send.ephemeral || matches!(send.to, Addressee::Pool(_)) => {
                    self.tries.push(*send)
                }
                Effect::Send(send) => self.sends.push(*send),
                other => self.effects.push(other),
            }
        }
    }

    /// Whether nobody waits for any of it: it only notes what was heard.
    pub(super) fn is_quiet(&self) -> bool {
        let noted = |e: &Effect| {
            matches!(
                e,
                Effect::Changed(_) | Effect::Dropped { .. } | Effect::Moot { .. }
            )
        };
        self.sends.is_empty()
            && self.tries.is_empty()
            && self.answers.is_empty()
            && self.looks.is_empty()
            && self.held.is_empty()
            && self.arrived.is_empty()
            && self.effects.iter().all(noted)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
            && self.seen.is_empty()
            && self.held.is_empty()
            && self.arrived.is_empty()
    }
}

/// Of several versions of one row in a batch only the newest is written.
pub(super) fn newest_rows_only(changes: &mut Vec<Change>) {
    let mut later: HashSet<String> = HashSet::new();
    let mut kept = Vec::with_capacity(changes.len());
    while let Some(change) = changes.pop() {
        let name = match &change {
            Change::Put(Row::Job(job)) => Some(format!("j{}", job.task)),
            Change::Put(Row::Engagement(work)) => Some(format!("w{}", work.key)),
            Change::Put(Row::Peer(peer)) => Some(format!("p{}", peer.npub)),
            Change::Put(Row::Account(account)) => Some(format!("a{}", account.npub)),
            Change::DropPeer(npub) => Some(format!("p{npub}")),
            _ => None,
        };
        if name.is_none_or(|name| later.insert(name)) {
            kept.push(change);
        }
    }
    kept.reverse();
    *changes = kept;
}
