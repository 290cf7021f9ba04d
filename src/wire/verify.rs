//! The one gate. [`verify`] turns a foreign event into a [`Verified`] message, or says by a stable code why not; every carrier
//! calls it and nothing behind it takes anything else. It trusts no library's cache and no relay: ids are hashed and signatures
//! checked here, cheap checks first, decryption after the work that a pool asks for. It must not know what was seen before:
//! that (author, rumor id) is new, and that the author may do what it asks, is for the caller to decide. Functions are plain
//! and run on any number of threads.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use nostr::nips::nip44::v2::ConversationKey;
use nostr::{Event, EventId, Keys, PublicKey, Tags, UnsignedEvent};

use super::envelope::{
    KIND_EPHEMERAL_WRAP, KIND_MESSAGE, KIND_SEAL, KIND_WRAP, MAX_EVENT_BYTES, MAX_EXPIRATION_S,
    MAX_RUMOR_BYTES,
};
use crate::identity::conversation::{Conversations, conversation_key, decrypt};
use crate::identity::sealing::{event_id, preimage};

/// How far a clock may be ahead of ours.
pub const MAX_AHEAD_S: u64 = 15 * 60;
/// Field names, hex id and hex signature: what an event's JSON has beyond its preimage.
const EVENT_FRAME_BYTES: usize = 270;

/// Which of our keys a message came to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Inbox {
    /// The node's own identity.
    Own,
    /// The one-time reply key of this task.
    Task(String),
    /// The key of a pool for one UTC day.
    Pool {
        /// The pool's name.
        name: String,
        /// Which of its secrets: counts their rotations from 1; 0 for an open pool, whose secret is its name.
        epoch: u32,
        /// The day, counted from 1970-01-01.
        utc_day: u32,
    },
}

impl Inbox {
    /// Whether two keys belong to the same reader: a pool's notice stays the same when it is wrapped to the next day's key.
    fn same_reader(&self, other: &Inbox) -> bool {
        match (self, other) {
            (
                Inbox::Pool { name, epoch, .. },
                Inbox::Pool {
                    name: other,
                    epoch: its,
                    ..
                },
            ) => (name, epoch) == (other, its),
            (a, b) => a == b,
        }
    }
}

/// A message that passed every check. Only [`verify`] makes one. `Debug` shows no content: it is private to its reader.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Whose signature is on it.
    pub author: PublicKey,
    /// Its id; (author, rumor id) is what makes it unique.
    pub rumor_id: EventId,
    /// The id of the wrap that it came in; another wrap may bring it again.
    pub wrap_id: EventId,
    /// Which of our keys it came to.
    pub inbox: Inbox,
    /// The content: a JSON-RPC object, unparsed.
    pub content: String,
    /// When the author made it, Unix seconds; at most 15 minutes ahead of us.
    pub created_at_s: u64,
    /// When it loses its meaning, Unix seconds.
    pub expires_at_s: Option<u64>,
    /// The rumor that it answers.
    pub reply_to: Option<EventId>,
    /// Whether it came in an ephemeral wrap.
    pub ephemeral: bool,
    /// Keeps this type from being made elsewhere.
    gate: Gate,
}

#[derive(Clone, PartialEq, Eq)]
struct Gate;

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified")
            .field("author", &self.author)
            .field("rumor_id", &self.rumor_id)
            .field("wrap_id", &self.wrap_id)
            .field("inbox", &self.inbox)
            .field("content_bytes", &self.content.len())
            .finish_non_exhaustive()
    }
}

/// Why an event is not let in. Count it by code; do nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Larger than 64 KiB.
    #[error("the event is larger than 64 KiB")]
    EventTooLarge,
    /// Neither a gift wrap nor an ephemeral one.
    #[error("the event is not a gift wrap")]
    WrapKind,
    /// The `p` tag names no key of ours.
    #[error("the wrap is not for a key of this node")]
    NotForUs,
    /// Under a secret of the pool that was rotated away, after its grace.
    #[error("the wrap is for a secret of the pool that was rotated away")]
    PoolEpoch,
    /// The id is not the hash of the event: a body was changed under a known id.
    #[error("the wrap's id is not the hash of its body")]
    WrapId,
    /// Less work than the pool asks for, or not committed to.
    #[error("the wrap lacks the work that the pool asks for")]
    PowMissing,
    /// The pool has brought more than is opened in a second.
    #[error("the pool brings more than is opened in a second")]
    PoolBudget,
    /// The wrap's signature is wrong.
    #[error("the wrap's signature is wrong")]
    WrapSignature,
    /// Wrap or seal does not decrypt with our key.
    #[error("the content cannot be decrypted with our key")]
    Undecryptable,
    /// What is in the wrap is not a signed event.
    #[error("the wrap holds no signed event")]
    SealMalformed,
    /// What is in the wrap is neither a seal nor a signed message.
    #[error("the wrap holds neither a seal nor a signed message")]
    SealKind,
    /// The seal has tags.
    #[error("the seal has tags")]
    SealTags,
    /// The inner event's id or signature is wrong.
    #[error("the seal's id or signature is wrong")]
    SealSignature,
    /// Over 28,672 bytes.
    #[error("the rumor is larger than 28,672 bytes")]
    RumorTooLarge,
    /// Not an event, or a tag that cannot be read.
    #[error("the rumor is not an event, or a tag cannot be read")]
    RumorMalformed,
    /// The seal speaks for another author.
    #[error("the seal was signed by another key than the rumor's author")]
    SealAuthor,
    /// The rumor's id is not its hash.
    #[error("the rumor's id is not the hash of its body")]
    RumorId,
    /// Not a message of ours.
    #[error("the rumor is not a message (kind 25910)")]
    RumorKind,
    /// Meant for another reader, and passed on by somebody who had it.
    #[error("the rumor is addressed to another reader")]
    RumorRecipient,
    /// More than 15 minutes ahead.
    #[error("the rumor is dated more than 15 minutes ahead")]
    RumorFuture,
    /// Its time is over; without an expiration, after 30 days.
    #[error("the rumor has expired")]
    RumorExpired,
    /// It wants to be remembered for more than 30 days.
    #[error("the rumor expires more than 30 days after its creation")]
    ExpirationTooFar,
}

impl Refusal {
    /// A stable name for counters and for searching.
    pub fn code(&self) -> &'static str {
        match self {
            Self::EventTooLarge => "event_too_large",
            Self::WrapKind => "wrap_kind",
            Self::NotForUs => "not_for_us",
            Self::PoolEpoch => "pool_epoch",
            Self::WrapId => "wrap_id",
            Self::PowMissing => "pow_missing",
            Self::PoolBudget => "pool_budget",
            Self::WrapSignature => "wrap_signature",
            Self::Undecryptable => "undecryptable",
            Self::SealMalformed => "seal_malformed",
            Self::SealKind => "seal_kind",
            Self::SealTags => "seal_tags",
            Self::SealSignature => "seal_signature",
            Self::RumorTooLarge => "rumor_too_large",
            Self::RumorMalformed => "rumor_malformed",
            Self::SealAuthor => "seal_author",
            Self::RumorId => "rumor_id",
            Self::RumorKind => "rumor_kind",
            Self::RumorRecipient => "rumor_recipient",
            Self::RumorFuture => "rumor_future",
            Self::RumorExpired => "rumor_expired",
            Self::ExpirationTooFar => "expiration_too_far",
        }
    }
}

/// The keys on which this node reads. Shared between threads; changes are seen by the next event.
pub struct Keyring {
    keys: RwLock<HashMap<PublicKey, Arc<Held>>>,
    conversations: Arc<Conversations>,
}

struct Held {
    keys: Keys,
    inbox: Inbox,
    min_pow_bits: u8,
    /// Known, to say why nothing is read on it any more.
    closed: bool,
}

impl Keyring {
    /// A ring with the node's own keys. `conversations` is shared with the sealing side.
    pub fn new(own: Keys, conversations: Arc<Conversations>) -> Self {
        let ring = Self {
            keys: RwLock::default(),
            conversations,
        };
        ring.insert(own, Inbox::Own, 0);
        ring
    }

    /// Adds a key. `min_pow_bits` is the NIP-13 work that a wrap to it must show, 0 for none.
    pub fn insert(&self, keys: Keys, inbox: Inbox, min_pow_bits: u8) {
        self.hold(Held {
            keys,
            inbox,
            min_pow_bits,
            closed: false,
        });
    }

    /// Adds a key on which nothing is read any more: what comes to it is refused unopened, with `pool_epoch`.
    pub fn insert_closed(&self, keys: Keys, inbox: Inbox) {
        self.hold(Held {
            keys,
            inbox,
            min_pow_bits: 0,
            closed: true,
        });
    }

    fn hold(&self, held: Held) {
        let (public, held) = (held.keys.public_key(), Arc::new(held));
        self.keys
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(public, held);
    }

    /// Takes a key away, for instance when its task is over or its day has passed. Whether it was there.
    pub fn remove(&self, key: &PublicKey) -> bool {
        self.keys
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key)
            .is_some()
    }

    /// Every key to subscribe to, with its inbox, in no order.
    pub fn inboxes(&self) -> Vec<(PublicKey, Inbox)> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter()
            .map(|(key, held)| (*key, held.inbox.clone()))
            .collect()
    }

    /// The secret behind a key of ours: relays that guard reads want it to sign (NIP-42).
    pub fn keys(&self, key: &PublicKey) -> Option<Keys> {
        self.held(key).map(|held| held.keys.clone())
    }

    /// Which inbox an event is addressed to, before anything is verified: for queues that serve the own inbox before pools and
    /// give each pool a budget.
    pub fn inbox_of(&self, event: &Event) -> Option<Inbox> {
        self.addressee(event).map(|held| held.inbox.clone())
    }

    /// NIP-59 has one `p`; looking at the first only keeps a wrap with thousands of them cheap.
    fn addressee(&self, event: &Event) -> Option<Arc<Held>> {
        let key = PublicKey::from_hex(values(&event.tags, "p").next()?).ok()?;
        self.held(&key)
    }

    fn held(&self, key: &PublicKey) -> Option<Arc<Held>> {
        self.keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("inboxes", &self.inboxes())
            .finish_non_exhaustive()
    }
}

/// Checks, opens and checks again. `now_s` is Unix seconds. One call costs two Schnorr verifications and one ECDH (a second for
/// the first message of an author).
pub fn verify(event: &Event, keyring: &Keyring, now_s: u64) -> Result<Verified, Refusal> {
    verify_within(event, keyring, now_s, |_| true)
}

/// As [`verify`], asking `budget` once the wrap has shown its work and before anything costly is done for it: `false` refuses
/// with `pool_budget`. Asked any earlier, a flood without work would use up what honest members have worked for.
pub fn verify_within(
    event: &Event,
    keyring: &Keyring,
    now_s: u64,
    budget: impl FnOnce(&Inbox) -> bool,
) -> Result<Verified, Refusal> {
    let held = check_wrap(event, keyring)?;
    if !budget(&held.inbox) {
        return Err(Refusal::PoolBudget);
    }
    if !event.verify_signature() {
        return Err(Refusal::WrapSignature);
    }
    // The wrap's key is used once: remembering it would only push out the keys that come again.
    let key = conversation_key(&held.keys, &event.pubkey).map_err(|_| Refusal::Undecryptable)?;
    let rumor = open(event, &held, &key, keyring)?;
    check_rumor(rumor, event, &held, keyring, now_s)
}

/// Everything that is cheap: no secret, no signature.
fn check_wrap(event: &Event, keyring: &Keyring) -> Result<Arc<Held>, Refusal> {
    if event.content.len() > MAX_EVENT_BYTES {
        return Err(Refusal::EventTooLarge);
    }
    if !matches!(event.kind.as_u16(), KIND_WRAP | KIND_EPHEMERAL_WRAP) {
        return Err(Refusal::WrapKind);
    }
    let held = keyring.addressee(event).ok_or(Refusal::NotForUs)?;
    if held.closed {
        return Err(Refusal::PoolEpoch);
    }
    let body = body(event).ok_or(Refusal::WrapId)?;
    if body.len() + EVENT_FRAME_BYTES > MAX_EVENT_BYTES {
        return Err(Refusal::EventTooLarge);
    }
    if event_id(&body) != event.id {
        return Err(Refusal::WrapId);
    }
    // Before the signature: a flood without work costs us one hash each.
    if held.min_pow_bits > 0 && !has_work(event, held.min_pow_bits) {
        return Err(Refusal::PowMissing);
    }
    Ok(held)
}

/// What is in the wrap: a seal and in it a rumor (NIP-59), or a signed message (ContextVM, CEP-4).
fn open(
    event: &Event,
    held: &Held,
    key: &ConversationKey,
    keyring: &Keyring,
) -> Result<UnsignedEvent, Refusal> {
    let inside = decrypt(key, &event.content).map_err(|_| Refusal::Undecryptable)?;
    let inner: Event = serde_json::from_slice(&inside).map_err(|_| Refusal::SealMalformed)?;
    let kind = inner.kind.as_u16();
    if !matches!(kind, KIND_SEAL | KIND_MESSAGE) {
        return Err(Refusal::SealKind);
    }
    if kind == KIND_SEAL && !inner.tags.is_empty() {
        return Err(Refusal::SealTags);
    }
    let body = body(&inner).ok_or(Refusal::SealSignature)?;
    if event_id(&body) != inner.id || !inner.verify_signature() {
        return Err(Refusal::SealSignature);
    }
    if kind == KIND_MESSAGE {
        if inside.len() > MAX_RUMOR_BYTES {
            return Err(Refusal::RumorTooLarge);
        }
        return Ok(inner.into());
    }
    // After the signature: only authors that are real get into the cache.
    let key = keyring
        .conversations
        .key(&held.keys, &inner.pubkey)
        .map_err(|_| Refusal::Undecryptable)?;
    let inside = decrypt(&key, &inner.content).map_err(|_| Refusal::Undecryptable)?;
    if inside.len() > MAX_RUMOR_BYTES {
        return Err(Refusal::RumorTooLarge);
    }
    let rumor: UnsignedEvent =
        serde_json::from_slice(&inside).map_err(|_| Refusal::RumorMalformed)?;
    if rumor.pubkey != inner.pubkey {
        return Err(Refusal::SealAuthor);
    }
    Ok(rumor)
}

/// What the author wrote.
fn check_rumor(
    rumor: UnsignedEvent,
    event: &Event,
    held: &Held,
    keyring: &Keyring,
    now_s: u64,
) -> Result<Verified, Refusal> {
    let created_at_s = rumor.created_at.as_secs();
    let body = preimage(
        &rumor.pubkey,
        created_at_s,
        rumor.kind.as_u16(),
        &rumor.tags,
        &rumor.content,
    );
    let rumor_id = event_id(&body.map_err(|_| Refusal::RumorMalformed)?);
    if rumor.id.is_some_and(|claimed| claimed != rumor_id) {
        return Err(Refusal::RumorId);
    }
    if rumor.kind.as_u16() != KIND_MESSAGE {
        return Err(Refusal::RumorKind);
    }
    check_audience(&rumor.tags, held, keyring)?;
    let expires_at_s = check_times(created_at_s, &rumor.tags, now_s)?;
    let reply_to = match values(&rumor.tags, "e").next() {
        Some(hex) => Some(EventId::from_hex(hex).map_err(|_| Refusal::RumorMalformed)?),
        None => None,
    };
    Ok(Verified {
        author: rumor.pubkey,
        rumor_id,
        wrap_id: event.id,
        inbox: held.inbox.clone(),
        content: rumor.content,
        created_at_s,
        expires_at_s,
        reply_to,
        ephemeral: event.kind.as_u16() == KIND_EPHEMERAL_WRAP,
        gate: Gate,
    })
}

/// Exactly one `p`, and it is the key that the wrap came to, or another day's key of the same pool and epoch. Otherwise whoever received a
/// message could wrap it to somebody else, as if the author had sent it there.
fn check_audience(tags: &Tags, held: &Held, keyring: &Keyring) -> Result<(), Refusal> {
    let mut named = values(tags, "p");
    let (Some(hex), None) = (named.next(), named.next()) else {
        return Err(Refusal::RumorRecipient);
    };
    let key = PublicKey::from_hex(hex).map_err(|_| Refusal::RumorRecipient)?;
    if key == held.keys.public_key()
        || keyring
            .held(&key)
            .is_some_and(|other| other.inbox.same_reader(&held.inbox))
    {
        return Ok(());
    }
    Err(Refusal::RumorRecipient)
}

/// Ids are remembered until expiration and a day, so nothing may be valid for longer than the longest expiration.
fn check_times(created_at_s: u64, tags: &Tags, now_s: u64) -> Result<Option<u64>, Refusal> {
    if created_at_s > now_s.saturating_add(MAX_AHEAD_S) {
        return Err(Refusal::RumorFuture);
    }
    let latest_s = created_at_s.saturating_add(MAX_EXPIRATION_S);
    let expires_at_s = match values(tags, "expiration").next() {
        Some(digits) => Some(digits.parse::<u64>().map_err(|_| Refusal::RumorMalformed)?),
        None => None,
    };
    if expires_at_s.is_some_and(|at| at > latest_s) {
        return Err(Refusal::ExpirationTooFar);
    }
    if expires_at_s.unwrap_or(latest_s) <= now_s {
        return Err(Refusal::RumorExpired);
    }
    Ok(expires_at_s)
}

/// NIP-13: the id shows the work, and the `nonce` tag commits to at least as much, so that luck does not count.
fn has_work(event: &Event, min_bits: u8) -> bool {
    let committed = event.tags.iter().find_map(|tag| match tag.as_slice() {
        [name, _, target, ..] if name == "nonce" => target.parse::<u8>().ok(),
        _ => None,
    });
    committed.is_some_and(|bits| bits >= min_bits) && event.check_pow(min_bits)
}

fn body(event: &Event) -> Option<Vec<u8>> {
    preimage(
        &event.pubkey,
        event.created_at.as_secs(),
        event.kind.as_u16(),
        &event.tags,
        &event.content,
    )
    .ok()
}

/// The first values of the tags of this name.
fn values<'a>(tags: &'a Tags, name: &'static str) -> impl Iterator<Item = &'a str> {
    tags.iter().filter_map(move |tag| match tag.as_slice() {
        [first, value, ..] if first == name => Some(value.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
