//! A contact: the text by which one person introduces a node to another. It holds what an ad says of the node's keys, signed by
//! all of them, and nothing secret. It must not know how keys are believed: `wire::binding` judges the statement in it.

use nostr::{Keys, PublicKey};

use super::error::{Fault, IdentityError};
use super::token::{Kind, Reader, Writer};

/// What a contact says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// The node's Nostr key; it signed the text.
    pub nostr: PublicKey,
    /// Until when it holds, Unix seconds: the end of the binding.
    pub expires_at_s: u64,
    /// The name, as text.
    pub lct: String,
    /// The Ed25519 key that signs proofs.
    pub ed25519: [u8; 32],
    /// The X25519 key for sealed payloads.
    pub x25519: [u8; 32],
    /// The Ed25519 key in the libp2p peer id.
    pub libp2p: [u8; 32],
    /// Counts rotations of these keys, from 0.
    pub epoch: u32,
    /// The binding's signature by the proof key.
    pub sig_ed25519: [u8; 64],
    /// The binding's signature by the libp2p key.
    pub sig_libp2p: [u8; 64],
    /// Relays where the node reads.
    pub relays: Vec<String>,
    /// The binding's signatures by proof keys of earlier epochs, for a reader who knows one of them: the newest, the first, and then
    /// from the newest on. A contact of the first epoch has none, nor has one of a version before they were known.
    pub sigs_former: Vec<[u8; 64]>,
}

/// Signatures of earlier epochs that are worth a relay's place.
const SIGS_BEFORE_RELAYS: usize = 2;
const SIG_BYTES: usize = 64;

impl Contact {
    /// The `legion1…` text. Relays and signatures of earlier epochs that do not fit are left out; there is a place for one relay
    /// before any of these, and for two of these before further relays.
    ///
    /// # Errors
    /// `contact_malformed` for a name of more than 255 bytes.
    pub fn encode(&self, keys: &Keys) -> Result<String, IdentityError> {
        if self.lct.len() > 255 {
            return Err(Kind::Contact.refuse(Fault::Malformed));
        }
        let mut writer = Writer::new(Kind::Contact, &keys.public_key(), self.expires_at_s);
        writer.text(&self.lct);
        for key in [&self.ed25519, &self.x25519, &self.libp2p] {
            writer.bytes(key);
        }
        writer.bytes(&self.epoch.to_be_bytes());
        writer.bytes(&self.sig_ed25519);
        writer.bytes(&self.sig_libp2p);
        let first = self.relays.first().map_or(0, |relay| 1 + relay.len());
        let room = writer.room().saturating_sub(2 + first) / SIG_BYTES;
        let before = room.min(self.sigs_former.len()).min(SIGS_BEFORE_RELAYS);
        writer.relays(&self.relays, before * SIG_BYTES + before.min(1));
        let room = writer.room().saturating_sub(1) / SIG_BYTES;
        let sigs = self.sigs_former.get(..room).unwrap_or(&self.sigs_former);
        if !sigs.is_empty() {
            writer.bytes(&[u8::try_from(sigs.len()).unwrap_or(u8::MAX)]);
            for signature in sigs {
                writer.bytes(signature);
            }
        }
        writer.sign(keys).map(|text| text.to_string())
    }

    /// Reads a text. `now_s` is Unix seconds.
    ///
    /// # Errors
    /// `contact_too_long`, `contact_malformed`, `contact_hrp`, `contact_checksum`, `contact_version`, `contact_kind`,
    /// `contact_signature`, `contact_expired`.
    pub fn decode(text: &str, now_s: u64) -> Result<Self, IdentityError> {
        let mut reader = Reader::open(Kind::Contact, text, now_s)?;
        let mut contact = Self {
            nostr: reader.author,
            expires_at_s: reader.expires_at_s,
            lct: reader.text()?,
            ed25519: reader.array()?,
            x25519: reader.array()?,
            libp2p: reader.array()?,
            epoch: u32::from_be_bytes(reader.array()?),
            sig_ed25519: reader.array()?,
            sig_libp2p: reader.array()?,
            relays: reader.relays()?,
            sigs_former: Vec::new(),
        };
        if reader.left() > 0 {
            let [count] = reader.array()?;
            let sigs = (0..count).map(|_| reader.array());
            contact.sigs_former = sigs.collect::<Result<_, _>>()?;
        }
        reader.end()?;
        Ok(contact)
    }
}
