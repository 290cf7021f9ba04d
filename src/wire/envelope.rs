//! A message on its way out: the rumor and how it is to be closed. It is made before the commit (its id is the outbox key, its
//! size is checked), stored as JSON, and sealed after the commit on any thread. It must not know carriers, nor what the content
//! asks for.

use std::fmt;

use nostr::{Event, EventId, Keys, PublicKey, UnsignedEvent};
use serde::{Deserialize, Serialize};

use crate::identity::IdentityError;
use crate::identity::conversation::Conversations;
pub use crate::identity::sealing::{
    Delivery, Draft, KIND_EPHEMERAL_WRAP, KIND_MESSAGE, KIND_SEAL, KIND_WRAP, MAX_BACKDATE_S,
    MAX_EVENT_BYTES, MAX_EXPIRATION_S, MAX_POW_BITS, MAX_RUMOR_BYTES,
};
use crate::identity::sealing::{rumor, seal, wrap};

/// An outgoing message, ready to be sealed. As JSON it is what the outbox row keeps until the wrap exists.
/// `Debug` shows no content: it is private to its reader.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    rumor: UnsignedEvent,
    rumor_id: EventId,
    recipient: PublicKey,
    delivery: Delivery,
    pow_bits: u8,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("rumor_id", &self.rumor_id)
            .field("recipient", &self.recipient)
            .field("delivery", &self.delivery)
            .field("content_bytes", &self.rumor.content.len())
            .finish_non_exhaustive()
    }
}

impl Envelope {
    /// Makes the rumor. `pow_bits` is the NIP-13 work that the recipient's pool asks for, 0 for none. Fails with
    /// `rumor_too_large` or `expiration_invalid`.
    pub fn new(draft: Draft, delivery: Delivery, pow_bits: u8) -> Result<Self, IdentityError> {
        let recipient = draft.recipient;
        let rumor = rumor(draft)?;
        let rumor_id = rumor
            .id
            .ok_or(IdentityError::SealingFailed("the rumor has no id"))?;
        Ok(Self {
            rumor,
            rumor_id,
            recipient,
            delivery,
            pow_bits,
        })
    }

    /// The message's id: what an answer's `e` tag names, and what a receiver drops duplicates by.
    pub fn rumor_id(&self) -> EventId {
        self.rumor_id
    }

    /// Who says it: whose keys [`Envelope::close`] wants.
    pub fn author(&self) -> PublicKey {
        self.rumor.pubkey
    }

    /// Whose inbox it goes to.
    pub fn recipient(&self) -> PublicKey {
        self.recipient
    }

    /// Stored or ephemeral.
    pub fn delivery(&self) -> Delivery {
        self.delivery
    }

    /// The rumor itself.
    pub fn rumor(&self) -> &UnsignedEvent {
        &self.rumor
    }

    /// When the message loses its meaning, Unix seconds.
    pub fn expires_at_s(&self) -> Option<u64> {
        self.rumor.tags.expiration().map(|at| at.as_secs())
    }

    /// Seals and wraps for the recipient: one signed event, ready for any carrier. Call it once and keep the event; a second call
    /// gives another wrap of the same message, which the receiver drops.
    pub fn close(
        &self,
        conversations: &Conversations,
        author: &Keys,
        now_s: u64,
    ) -> Result<Event, IdentityError> {
        self.close_for(&self.recipient, conversations, author, now_s)
    }

    /// As [`Envelope::close`], to another key of the same reader: a pool's notice is wrapped again to each new day's key, with
    /// its rumor, and so its id, unchanged.
    pub fn close_for(
        &self,
        recipient: &PublicKey,
        conversations: &Conversations,
        author: &Keys,
        now_s: u64,
    ) -> Result<Event, IdentityError> {
        let seal = seal(conversations, author, recipient, &self.rumor, now_s)?;
        wrap(
            &seal,
            recipient,
            self.delivery,
            self.pow_bits,
            self.expires_at_s(),
            now_s,
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const NOW_S: u64 = 1_795_219_200;

    #[test]
    fn an_envelope_survives_the_store_and_keeps_its_id() {
        let (author, recipient) = (Keys::generate(), Keys::generate());
        let draft = Draft {
            author: author.public_key(),
            recipient: recipient.public_key(),
            content: "{\"jsonrpc\":\"2.0\"}".into(),
            reply_to: Some(EventId::all_zeros()),
            created_at_s: NOW_S,
            expires_at_s: Some(NOW_S + 600),
        };
        let envelope = Envelope::new(draft, Delivery::Stored, 0).unwrap();
        let restored: Envelope =
            serde_json::from_slice(&serde_json::to_vec(&envelope).unwrap()).unwrap();
        assert_eq!(restored, envelope);
        assert_eq!(envelope.expires_at_s(), Some(NOW_S + 600));
        let conversations = Conversations::new(8);
        let (first, second) = (
            restored.close(&conversations, &author, NOW_S).unwrap(),
            envelope.close(&conversations, &author, NOW_S).unwrap(),
        );
        assert_ne!(first.id, second.id);
        assert_eq!(
            conversations.len(),
            1,
            "the one-time keys must not fill the cache"
        );
        assert_eq!(first.tags.expiration().unwrap().as_secs(), NOW_S + 600);
        assert!(envelope.close(&conversations, &recipient, NOW_S).is_err());
        assert!(!format!("{envelope:?}").contains("jsonrpc"));
    }
}
