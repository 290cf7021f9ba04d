//! Sealing: a parcel of messages is signed, closed and wrapped for its recipient. Elliptic curves only, on any thread; it must
//! not know relays, nor whether what it closes is durable yet.

use std::sync::Arc;

use nostr::{EventId, PublicKey};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::clock;
use super::pools::{Pools, Reader};
use super::rows::Parcel;
use crate::carrier::Outgoing;
use crate::domain::step::{Addressee, Send};
use crate::identity::Identity;
use crate::identity::conversation::Conversations;
use crate::wire::entry::Entry;
use crate::wire::envelope::{Delivery, Draft, Envelope};
use crate::wire::message::{Body, Message, News};
use crate::wire::proof::Proof;

/// Parcels sealed in one go on a thread.
const SEAL_BATCH: usize = 16;

/// Everything that sealing needs.
pub struct Sealer {
    /// Our keys.
    pub identity: Arc<Identity>,
    /// NIP-44 keys by pair.
    pub conversations: Arc<Conversations>,
    /// The pools joined.
    pub pools: Arc<Pools>,
}

/// A parcel, ready for any relay.
#[derive(Debug)]
pub struct Sealed {
    /// Id of the rumor within: what its acknowledgement will name.
    pub rumor: EventId,
    /// Whose inbox it goes to.
    pub recipient: PublicKey,
    /// Relays where the recipient said that it reads, beside ours: somebody else named them.
    pub named: Vec<String>,
    /// The wrap.
    pub event: Outgoing,
    /// Relays where a private pool meets, besides our own.
    pub relays: Vec<String>,
}

/// The answer to [`Sealer::begin`].
pub type Early = oneshot::Receiver<Result<Sealed, String>>;

impl Sealer {
    /// Starts to seal on other threads, one answer per parcel in their order. Nothing is sent: who asked decides that once the
    /// parcels are durable, and drops the answers if they never are.
    pub fn begin(self: &Arc<Self>, runtime: &Handle, parcels: &[Parcel]) -> Vec<Early> {
        let mut answers = Vec::with_capacity(parcels.len());
        for chunk in parcels.chunks(SEAL_BATCH) {
            let (sealer, mut jobs) = (self.clone(), Vec::with_capacity(chunk.len()));
            for parcel in chunk {
                let (sealed, answer) = oneshot::channel();
                jobs.push((parcel.clone(), sealed));
                answers.push(answer);
            }
            runtime.spawn_blocking(move || {
                for (parcel, sealed) in jobs {
                    let _ = sealed.send(sealer.close(&parcel));
                }
            });
        }
        answers
    }

    /// Seals a parcel now: some 0.3 ms of elliptic curves. Sealing it again gives another wrap of the same rumor.
    ///
    /// # Errors
    /// Why this parcel can never be sealed.
    pub fn close(&self, parcel: &Parcel) -> Result<Sealed, String> {
        let first = parcel.sends.first().ok_or("an empty parcel")?;
        let now_s = clock::now_ms() / 1000;
        let Reader {
            key: recipient,
            pow_bits,
            audience,
            relays,
        } = self.reader(&first.to, now_s)?;
        let mut objects = Vec::with_capacity(parcel.sends.len());
        for send in &parcel.sends {
            let message = Message {
                to: audience.clone(),
                body: self.finished(send)?,
            };
            objects.push(message.to_value().map_err(|e| e.to_string())?);
        }
        let content = match objects.as_slice() {
            [one] => one.to_string(),
            _ => Value::Array(objects).to_string(),
        };
        let expires_ms = parcel.sends.iter().map(|s| s.expires_ms).max().unwrap_or(0);
        let life_s = (expires_ms / 1000)
            .saturating_sub(parcel.created_s)
            .clamp(60, 29 * 86_400);
        let draft = Draft {
            author: self.identity.nostr().public_key(),
            recipient,
            content,
            reply_to: None,
            created_at_s: parcel.created_s,
            expires_at_s: Some(parcel.created_s + life_s),
        };
        let kind = if first.ephemeral {
            Delivery::Ephemeral
        } else {
            Delivery::Stored
        };
        let envelope = Envelope::new(draft, kind, pow_bits).map_err(|e| e.to_string())?;
        let event = envelope
            .close(&self.conversations, self.identity.nostr(), now_s)
            .map_err(|e| e.to_string())?;
        Ok(Sealed {
            rumor: envelope.rumor_id(),
            recipient,
            named: parcel
                .sends
                .iter()
                .flat_map(|s| s.relays.iter().cloned())
                .collect(),
            event: Outgoing::from_event(&event),
            relays,
        })
    }

    fn reader(&self, to: &Addressee, now_s: u64) -> Result<Reader, String> {
        match to {
            Addressee::Peer(key) | Addressee::Reply(key) => {
                let key = PublicKey::from_hex(key).map_err(|e| e.to_string())?;
                Ok(Reader {
                    key,
                    pow_bits: 0,
                    audience: key.to_hex(),
                    relays: Vec::new(),
                })
            }
            Addressee::Pool(name) => self.pools.reader(name, now_s),
        }
    }

    /// Signs what the step left unsigned. Ed25519 is deterministic: sealing twice signs alike.
    fn finished(&self, send: &Send) -> Result<Body, String> {
        let mut body = send.body.clone();
        if let Some(entry) = body.entry_mut() {
            self.sign_entry(entry)?;
        }
        match &mut body {
            Body::Update(update) => {
                if let News::Completed(result) = &mut update.news {
                    self.sign_proof(&mut result.proof)?;
                }
            }
            Body::Entries(page) => {
                let me = &self.identity.public().nostr;
                for award in &mut page.awards {
                    for entry in award.entries.iter_mut().filter(|e| e.author == *me) {
                        self.sign_entry(entry)?;
                    }
                    if let Some(proof) = award.proof.as_mut().filter(|p| p.executor == *me) {
                        self.sign_proof(proof)?;
                    }
                }
            }
            Body::Offer(offer) => {
                offer.reply = self
                    .identity
                    .reply_key(&offer.task)
                    .map_err(|e| e.to_string())?
                    .public_key()
                    .to_hex();
            }
            _ => {}
        }
        Ok(body)
    }

    /// By the key that it names: what was stated before a rotation is repeated as it was.
    fn sign_entry(&self, entry: &mut Entry) -> Result<(), String> {
        let bytes = entry.signing_bytes().map_err(|e| e.to_string())?;
        let sig = self.identity.sign_proof_as(&entry.key, &bytes);
        entry.sig = hex::encode(sig.ok_or("an entry names a key that is not ours")?);
        Ok(())
    }

    fn sign_proof(&self, proof: &mut Proof) -> Result<(), String> {
        let bytes = proof.signing_bytes().map_err(|e| e.to_string())?;
        let sig = self.identity.sign_proof_as(&proof.key, &bytes);
        proof.sig = hex::encode(sig.ok_or("a proof names a key that is not ours")?);
        Ok(())
    }
}
