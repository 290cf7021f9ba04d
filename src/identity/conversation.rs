//! NIP-44 version 2 between two keys, with the shared key remembered. The ECDH behind it costs as much as a signature, and
//! two nodes that work together would repeat it for every message, so a bounded cache keeps the keys of recent conversations.
//! It must not know what is encrypted.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nostr::nips::nip44::v2::{self, ConversationKey};
use nostr::{Keys, PublicKey};

use super::error::IdentityError;

const VERSION: u8 = 2;

/// Shared keys of recent conversations, at most `max_keys` of them. Cheap to share between threads; the lock is held only for
/// the look-up, never during the ECDH.
pub struct Conversations {
    generations: Mutex<Generations>,
    max_young: usize,
}

/// Two generations are an LRU at the price of two look-ups: when the young one is full it becomes the old one, and what was
/// not asked for meanwhile is forgotten.
#[derive(Default)]
struct Generations {
    young: HashMap<(PublicKey, PublicKey), ConversationKey>,
    old: HashMap<(PublicKey, PublicKey), ConversationKey>,
}

impl Conversations {
    /// A cache of at most `max_keys` shared keys (about 200 bytes each).
    pub fn new(max_keys: usize) -> Self {
        Self {
            generations: Mutex::default(),
            max_young: (max_keys / 2).max(1),
        }
    }

    /// The shared key of `own` and `peer`. Fails with `sealing_failed` when `peer` is not a point on the curve.
    pub fn key(&self, own: &Keys, peer: &PublicKey) -> Result<ConversationKey, IdentityError> {
        let pair = (own.public_key(), *peer);
        if let Some(key) = self.remembered(&pair) {
            return Ok(key);
        }
        let key = conversation_key(own, peer)?;
        self.remember(pair, key);
        Ok(key)
    }

    /// How many keys are held now.
    pub fn len(&self) -> usize {
        let held = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        held.young.len() + held.old.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn remembered(&self, pair: &(PublicKey, PublicKey)) -> Option<ConversationKey> {
        let mut held = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = held.young.get(pair) {
            return Some(*key);
        }
        let key = held.old.remove(pair)?;
        drop(held);
        self.remember(*pair, key);
        Some(key)
    }

    fn remember(&self, pair: (PublicKey, PublicKey), key: ConversationKey) {
        let mut held = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if held.young.len() >= self.max_young {
            held.old = std::mem::take(&mut held.young);
        }
        held.young.insert(pair, key);
    }
}

impl fmt::Debug for Conversations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversations")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// The shared key of `own` and `peer`, computed anew: for one-time keys, which the cache must not be filled with.
pub fn conversation_key(own: &Keys, peer: &PublicKey) -> Result<ConversationKey, IdentityError> {
    ConversationKey::derive(own.secret_key(), peer)
        .map_err(|_| IdentityError::SealingFailed("the peer's key is not on the curve"))
}

/// Encrypts and base64-encodes (NIP-44 v2). `plaintext` is 1 to 65,408 bytes.
pub fn encrypt(key: &ConversationKey, plaintext: &[u8]) -> Result<String, IdentityError> {
    let payload = v2::encrypt_to_bytes(key, plaintext).map_err(|_| {
        IdentityError::SealingFailed("the plaintext is empty or too long for NIP-44")
    })?;
    Ok(STANDARD.encode(payload))
}

/// Decodes and decrypts (NIP-44 v2). The caller bounds the size of `payload`. Every failure is `undecryptable`.
pub fn decrypt(key: &ConversationKey, payload: &str) -> Result<Vec<u8>, IdentityError> {
    let bytes = STANDARD
        .decode(payload)
        .map_err(|_| IdentityError::Undecryptable)?;
    // The library's v2 functions do not look at the version byte.
    if bytes.first() != Some(&VERSION) {
        return Err(IdentityError::Undecryptable);
    }
    v2::decrypt_to_bytes(key, &bytes).map_err(|_| IdentityError::Undecryptable)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// A selection of the official vectors (paulmillr/nip44), as the `nostr` crate carries them.
    const NIP44: &str = include_str!("../../fixtures/identity/nip44.json");

    fn vectors(name: &str) -> Vec<serde_json::Value> {
        let all: serde_json::Value = serde_json::from_str(NIP44).unwrap();
        let found = all[name].as_array().unwrap().clone();
        assert!(!found.is_empty());
        found
    }

    fn text<'a>(vector: &'a serde_json::Value, name: &str) -> &'a str {
        vector[name].as_str().unwrap()
    }

    #[test]
    fn official_vectors_conversation_keys() {
        for vector in vectors("get_conversation_key") {
            let own = Keys::parse(text(&vector, "sec1")).unwrap();
            let peer = PublicKey::from_hex(text(&vector, "pub2")).unwrap();
            let key = Conversations::new(8).key(&own, &peer).unwrap();
            assert_eq!(
                hex::encode(key.as_bytes()),
                text(&vector, "conversation_key"),
                "{}",
                vector["note"]
            );
        }
    }

    #[test]
    fn official_vectors_decryption_from_both_sides() {
        let cache = Conversations::new(64);
        for vector in vectors("encrypt_decrypt") {
            let (a, b) = (
                Keys::parse(text(&vector, "sec1")).unwrap(),
                Keys::parse(text(&vector, "sec2")).unwrap(),
            );
            for (own, peer) in [(&a, &b), (&b, &a)] {
                let key = cache.key(own, &peer.public_key()).unwrap();
                let plain = decrypt(&key, text(&vector, "ciphertext")).unwrap();
                assert_eq!(plain, text(&vector, "plaintext").as_bytes());
                assert_eq!(
                    decrypt(&key, &encrypt(&key, &plain).unwrap()).unwrap(),
                    plain
                );
            }
        }
    }

    #[test]
    fn official_vectors_of_what_must_be_refused() {
        for vector in vectors("invalid_decrypt") {
            let bytes = hex::decode(text(&vector, "conversation_key")).unwrap();
            let key = ConversationKey::from_slice(&bytes).unwrap();
            assert_eq!(
                decrypt(&key, text(&vector, "ciphertext"))
                    .unwrap_err()
                    .code(),
                "undecryptable",
                "{}",
                vector["note"]
            );
        }
    }

    #[test]
    fn another_version_is_refused() {
        let key = ConversationKey::new([7; 32]);
        let mut bytes = STANDARD.decode(encrypt(&key, b"x").unwrap()).unwrap();
        bytes[0] = 1;
        assert_eq!(
            decrypt(&key, &STANDARD.encode(bytes)).unwrap_err().code(),
            "undecryptable"
        );
        assert_eq!(decrypt(&key, "").unwrap_err().code(), "undecryptable");
    }

    #[test]
    fn the_cache_stays_within_its_bound_and_keeps_what_is_used() {
        let cache = Conversations::new(8);
        let own = Keys::generate();
        let friend = Keys::generate().public_key();
        let key = cache.key(&own, &friend).unwrap();
        for _ in 0..40 {
            cache.key(&own, &Keys::generate().public_key()).unwrap();
            assert!(
                cache.remembered(&(own.public_key(), friend)).is_some(),
                "a key in use was forgotten"
            );
            assert!(cache.len() <= 8, "{}", cache.len());
        }
        assert_eq!(cache.key(&own, &friend).unwrap(), key);
        assert!(!format!("{cache:?}").contains(&hex::encode(key.as_bytes())));
    }
}
