//! One message on its way: when it is tried again, in which wrap, and by which roads. Knows no other message and sends nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nostr::{EventId, PublicKey};

use crate::carrier::Outgoing;
use crate::domain::step::Addressee;
use crate::node::clock;
use crate::node::rows::Parcel;
use crate::wire::message::Body;

/// A relay that said OK is asked again only after this long without an acknowledgement; doubles each time.
const REWRAP_FIRST: Duration = Duration::from_secs(600);
const REWRAP_CAP: Duration = Duration::from_secs(24 * 3600);
/// The same for a recipient that was heard lately: until it is [`REWRAP_FIRST`].
pub(super) const REWRAP_PRESENT: Duration = Duration::from_secs(15);
pub(super) const RETRY_FIRST: Duration = Duration::from_secs(1);
pub(super) const RETRY_CAP: Duration = Duration::from_secs(60);
/// A message dated further ahead than this was dated by a clock that has been set back: no peer would take it.
const AHEAD_S: u64 = 300;

/// A row of the outbox, and how it fared in this process.
pub(super) struct Row {
    pub(super) parcel: Parcel,
    pub(super) recipient: Option<PublicKey>,
    pub(super) rumor: Option<EventId>,
    pub(super) event: Option<Outgoing>,
    pub(super) taken: BTreeSet<Arc<str>>,
    pub(super) due: Instant,
    pub(super) retry: Duration,
    pub(super) rewrap: Duration,
    pub(super) expires_ms: u64,
}

impl Row {
    /// Whom the row is for: behind a reply key stands the requester.
    pub(super) fn reader(&self) -> Option<PublicKey> {
        let requester = self.parcel.sends.iter().find_map(|send| match &send.body {
            Body::Bid(bid) => PublicKey::from_hex(&bid.requester).ok(),
            Body::Decline(decline) => PublicKey::from_hex(&decline.requester).ok(),
            _ => None,
        });
        let reply = matches!(
            self.parcel.sends.first().map(|send| &send.to),
            Some(Addressee::Reply(_))
        );
        requester.filter(|_| reply).or(self.recipient)
    }

    /// How long to wait for the acknowledgement of what a relay took.
    pub(super) fn patience(&self, there: bool) -> Duration {
        match there {
            true => self.rewrap,
            false => self.rewrap.max(REWRAP_FIRST),
        }
    }

    /// The wait after the next one.
    pub(super) fn next_rewrap(&self) -> Duration {
        let most = match self.rewrap < REWRAP_FIRST {
            true => REWRAP_FIRST,
            false => REWRAP_CAP,
        };
        (self.rewrap * 2).min(most)
    }

    /// Where its recipient may find it: our relays, and those where the recipient said that it reads.
    pub(super) fn roads(&self, own: &[String]) -> Vec<String> {
        let named = self.parcel.sends.iter().flat_map(|send| &send.relays);
        let mut roads: Vec<String> = named
            .filter(|relay| relay.starts_with("wss://"))
            .chain(own)
            .map(|relay| relay.trim_end_matches('/').to_owned())
            .collect();
        roads.sort();
        roads.dedup();
        roads
    }
}

/// The offer (requester, task) that a parcel answers, if it goes to a reply key.
pub(super) fn answered_offer(parcel: &Parcel) -> Option<(String, String)> {
    let send = parcel.sends.first()?;
    if !matches!(send.to, Addressee::Reply(_)) {
        return None;
    }
    match &send.body {
        Body::Bid(bid) => Some((bid.requester.clone(), bid.task.clone())),
        Body::Decline(decline) => Some((decline.requester.clone(), decline.task.clone())),
        _ => None,
    }
}

/// The peer for whom a parcel holds a page of a log, and nothing else.
pub(super) fn page_for(parcel: &Parcel) -> Option<&str> {
    let pages = parcel.sends.iter();
    let mut pages = pages.map(|send| matches!(send.body, Body::Entries(_)));
    match &parcel.sends.first()?.to {
        Addressee::Peer(npub) if pages.all(|page| page) => Some(npub),
        _ => None,
    }
}

/// Gives a message that is dated ahead of this clock today's date, and with it another id. What it says stays the same, and
/// a peer that has taken it under its old id does nothing the second time.
pub(super) fn redate(parcel: &mut Parcel) -> bool {
    let now_s = clock::now_ms() / 1000;
    let ahead = parcel.created_s > now_s + AHEAD_S;
    if ahead {
        parcel.created_s = now_s;
    }
    ahead
}
