//! Sweeping: what was read for good is deleted on the relays (NIP-09), so that a relay holds what is under way and not all
//! that ever was. A gift wrap is deleted by its recipient's key, which signs for its own inbox only. A relay that does not
//! honour this loses nothing but room. Must not know what the wraps said.

use std::collections::HashMap;
use std::time::Duration;

use nostr::{EventBuilder, EventId, Keys, Kind, Tag, Timestamp};
use tokio::time::Instant;

use crate::carrier::Outgoing;
use crate::identity::Identity;
use crate::wire::verify::Inbox;

/// Most wraps named by one deletion: with its tags some 16 kB, which every public relay takes.
const WRAPS_MAX: usize = 200;
/// A deletion waits this long for company: relays count events.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a relay should remember a deletion. Longer than a copy of the wrap can still be under way to it; a copy that comes
/// later yet is known by its rumor.
const REMEMBERED_S: u64 = 120;

/// The wraps to be deleted.
#[derive(Default)]
pub(super) struct Sweep {
    read: HashMap<Inbox, Vec<EventId>>,
    due: Option<Instant>,
}

impl Sweep {
    /// Wraps whose content is durable here.
    pub(super) fn add(&mut self, wraps: Vec<(Inbox, [u8; 32])>) {
        for (inbox, wrap) in wraps {
            self.read
                .entry(inbox)
                .or_default()
                .push(EventId::from_byte_array(wrap));
        }
        if !self.read.is_empty() {
            self.due.get_or_insert_with(|| Instant::now() + PATIENCE);
        }
    }

    /// The deletions whose time has come: full ones at once, the rest together.
    pub(super) fn take(&mut self, identity: &Identity) -> Vec<Outgoing> {
        let due = self.due.is_some_and(|due| due <= Instant::now());
        let mut deletions = Vec::new();
        for (inbox, wraps) in &mut self.read {
            let now = if due {
                wraps.len()
            } else {
                wraps.len() - wraps.len() % WRAPS_MAX
            };
            let keys = match inbox {
                Inbox::Own => Ok(identity.nostr().clone()),
                Inbox::Task(task) => identity.reply_key(task),
                Inbox::Pool { .. } => continue,
            };
            let Ok(keys) = keys else { continue };
            let ids: Vec<EventId> = wraps.drain(..now).collect();
            deletions.extend(ids.chunks(WRAPS_MAX).filter_map(|ids| delete(ids, &keys)));
        }
        self.read.retain(|_, wraps| !wraps.is_empty());
        if due {
            self.due = None;
        }
        deletions
    }
}

fn delete(wraps: &[EventId], keys: &Keys) -> Option<Outgoing> {
    let forgotten = Timestamp::now() + REMEMBERED_S;
    let named = wraps.iter().map(|id| Tag::event(*id));
    EventBuilder::new(Kind::EventDeletion, "")
        .tags(named)
        .tag(Tag::custom(
            nostr::TagKind::k(),
            [Kind::GiftWrap.as_u16().to_string()],
        ))
        .tag(Tag::expiration(forgotten))
        .sign_with_keys(keys)
        .inspect_err(|error| tracing::warn!(%error, "a deletion could not be signed"))
        .ok()
        .map(|event| Outgoing::from_event(&event))
}
