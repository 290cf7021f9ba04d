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
}

impl Contact {
    /// The `legion1…` text. Relays that do not fit are left out.
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
        writer.relays(&self.relays);
        writer.sign(keys).map(|text| text.to_string())
    }

    /// Reads a text. `now_s` is Unix seconds.
    ///
    /// # Errors
    /// `contact_too_long`, `contact_malformed`, `contact_hrp`, `contact_checksum`, `contact_version`, `contact_kind`,
    /// `contact_signature`, `contact_expired`.
    pub fn decode(text: &str, now_s: u64) -> Result<Self, IdentityError> {
        let mut reader = Reader::open(Kind::Contact, text, now_s)?;
        let contact = Self {
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
        };
        reader.end()?;
        Ok(contact)
    }
}
