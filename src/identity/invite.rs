//! An invite: the text that makes its reader a member of a private pool. It carries the pool's secret, so whoever reads it is a
//! member; it says who wrote it, and ends. It must not know which pools this node has joined.

use nostr::{Keys, PublicKey};
use zeroize::Zeroizing;

use super::error::{Fault, IdentityError};
use super::pool::{PoolSecret, is_pool_name};
use super::token::{Kind, Reader, Writer};

/// What an invite says.
#[derive(Clone, Debug)]
pub struct Invite {
    /// The pool's name, the same for every member.
    pub name: String,
    /// Which pool of that name: drawn when it was created, and kept by every rotation.
    pub pool: [u8; 16],
    /// Counts the rotations of the secret, from 1.
    pub epoch: u32,
    /// The secret of that epoch.
    pub secret: PoolSecret,
    /// Until when members read what is still sent under the epoch before, Unix seconds; 0 for not at all.
    pub before_until_s: u64,
    /// Relays on which the members meet.
    pub relays: Vec<String>,
    /// Who invites.
    pub inviter: PublicKey,
    /// When the invite ends, Unix seconds. What was joined with it lasts.
    pub expires_at_s: u64,
}

impl Invite {
    /// The `legion1…` text, signed by the inviter's keys. Relays that do not fit are left out.
    ///
    /// # Errors
    /// `invite_malformed` for a name that no pool may have.
    pub fn encode(&self, keys: &Keys) -> Result<Zeroizing<String>, IdentityError> {
        if !is_pool_name(&self.name) {
            return Err(Kind::Invite.refuse(Fault::Malformed));
        }
        let mut writer = Writer::new(Kind::Invite, &keys.public_key(), self.expires_at_s);
        writer.text(&self.name);
        writer.bytes(&self.pool);
        writer.bytes(&self.epoch.to_be_bytes());
        writer.bytes(self.secret.as_bytes());
        writer.bytes(&self.before_until_s.to_be_bytes());
        writer.relays(&self.relays, 0);
        writer.sign(keys)
    }

    /// Reads a text. `now_s` is Unix seconds.
    ///
    /// # Errors
    /// `invite_too_long`, `invite_malformed`, `invite_hrp`, `invite_checksum`, `invite_version`, `invite_kind`,
    /// `invite_signature`, `invite_expired`.
    pub fn decode(text: &str, now_s: u64) -> Result<Self, IdentityError> {
        let mut reader = Reader::open(Kind::Invite, text, now_s)?;
        let invite = Self {
            name: reader.text()?,
            pool: reader.array()?,
            epoch: u32::from_be_bytes(reader.array()?),
            secret: PoolSecret::from_bytes(*Zeroizing::new(reader.array()?)),
            before_until_s: u64::from_be_bytes(reader.array()?),
            relays: reader.relays()?,
            inviter: reader.author,
            expires_at_s: reader.expires_at_s,
        };
        reader.end()?;
        if !is_pool_name(&invite.name) || invite.epoch == 0 {
            return Err(Kind::Invite.refuse(Fault::Malformed));
        }
        Ok(invite)
    }
}

#[cfg(test)]
mod tests;
