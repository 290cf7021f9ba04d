//! Pool secrets and their daily keys. Everything published to a pool is wrapped to the key of the UTC day, so relays see a
//! recipient that changes daily. It must not know who is in a pool or what is offered there.

use std::fmt;

use hkdf::Hkdf;
use nostr::{Keys, PublicKey};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::error::IdentityError;
use super::keys::nostr_keys;

const OPEN_SALT: &[u8] = b"legion/v1/open-pool";
const DAY_SALT: &[u8] = b"legion/v1/pool";
const MEMBER_SALT: &[u8] = b"legion/v1/pool-member";
const SECONDS_PER_DAY: u64 = 86_400;

/// The 32 bytes that make somebody a member of a pool. `Debug` does not show them.
#[derive(Clone)]
pub struct PoolSecret(Zeroizing<[u8; 32]>);

impl PoolSecret {
    /// The secret of a private pool, as an invite carries it.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A new private pool's secret, from the operating system's random source.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        getrandom::fill(bytes.as_mut_slice()).map_err(IdentityError::EntropyUnavailable)?;
        Ok(Self(bytes))
    }

    /// The secret of an open pool: derived from its name, so it keeps out relays that do not look, and nobody else.
    pub fn open(name: &str) -> Result<Self, IdentityError> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        Hkdf::<Sha256>::new(Some(OPEN_SALT), name.as_bytes())
            .expand(b"secret", bytes.as_mut_slice())
            .map_err(|_| IdentityError::DerivationFailed("HKDF"))?;
        Ok(Self(bytes))
    }

    /// The bytes, for an invite or the store.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What only a member can write into a message by `author`, 16 bytes in hex. A pool's keys of the day stand on relays as the
    /// recipient of every wrap, so anybody can close a message for them: that it came through is no sign of membership, this is.
    pub fn member_tag(&self, author: &PublicKey) -> Result<String, IdentityError> {
        let mut tag = [0u8; 16];
        Hkdf::<Sha256>::new(Some(MEMBER_SALT), self.0.as_slice())
            .expand(author.as_bytes(), &mut tag)
            .map_err(|_| IdentityError::DerivationFailed("HKDF"))?;
        Ok(hex::encode(tag))
    }

    /// The pool's Nostr keys on a UTC day, counted from 1970-01-01.
    pub fn day_keys(&self, utc_day: u32) -> Result<Keys, IdentityError> {
        let root = Hkdf::<Sha256>::new(Some(DAY_SALT), self.0.as_slice());
        nostr_keys(&root, b"day", &utc_day.to_be_bytes())
    }
}

impl fmt::Debug for PoolSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PoolSecret(..)")
    }
}

/// Whether a pool may have this name: 1 to 64 bytes, not only spaces, no control characters.
pub fn is_pool_name(name: &str) -> bool {
    !name.trim().is_empty() && name.len() <= 64 && !name.contains(char::is_control)
}

/// The UTC day of a Unix time in seconds.
pub fn utc_day(now_s: u64) -> u32 {
    u32::try_from(now_s / SECONDS_PER_DAY).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn members_agree_on_the_key_of_a_day_and_of_no_other() {
        let (a, b) = (
            PoolSecret::open("legion").unwrap(),
            PoolSecret::open("legion").unwrap(),
        );
        let day = utc_day(1_795_219_200);
        assert_eq!(a.day_keys(day).unwrap(), b.day_keys(day).unwrap());
        assert_ne!(a.day_keys(day).unwrap(), a.day_keys(day + 1).unwrap());
        assert_ne!(
            a.day_keys(day).unwrap(),
            PoolSecret::open("legions").unwrap().day_keys(day).unwrap()
        );
        assert_ne!(
            PoolSecret::generate().unwrap().as_bytes(),
            PoolSecret::generate().unwrap().as_bytes()
        );
    }

    #[test]
    fn a_day_starts_at_midnight_utc() {
        assert_eq!(utc_day(86_399), 0);
        assert_eq!(utc_day(86_400), 1);
        assert_eq!(utc_day(u64::MAX), u32::MAX);
    }

    #[test]
    fn a_member_s_tag_needs_the_secret_and_fits_one_author() {
        let (pool, other) = (
            PoolSecret::from_bytes([1; 32]),
            PoolSecret::from_bytes([2; 32]),
        );
        let [a, b] = [3u8, 4].map(|byte| PublicKey::from_byte_array([byte; 32]));
        let tag = pool.member_tag(&a).unwrap();
        assert_eq!((tag.len(), &tag), (32, &pool.member_tag(&a).unwrap()));
        assert_ne!(tag, pool.member_tag(&b).unwrap());
        assert_ne!(tag, other.member_tag(&a).unwrap());
    }

    #[test]
    fn debug_shows_no_secret() {
        let secret = PoolSecret::from_bytes([0xab; 32]);
        assert_eq!(format!("{secret:?}"), "PoolSecret(..)");
    }
}
