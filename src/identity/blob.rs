//! Sealing of payloads that are too large for one envelope, with forward secrecy, which NIP-44 has not.
//!
//! The receiver gives a one-time key beside its lasting one, the sender makes another: the key of a payload is
//! HKDF-SHA256(eph x once || eph x fixed), bound to the task, the award, the direction and all three public keys. The payload
//! is cut into segments of 64 KiB, each closed with ChaCha20-Poly1305 under a nonce of counter and last-segment flag: the STREAM
//! construction (Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and its Nonce-Reuse
//! Misuse-Resistance, CRYPTO 2015), so that a segment that is missing, moved, repeated or cut off is noticed. A key closes one
//! payload only. Whoever has deleted the one-time secret cannot open it again, nor can a thief of the key file.
//!
//! It must not know how payloads travel or what they hold.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::error::IdentityError;

/// Bytes of payload in a segment; the last one may be shorter.
pub const SEGMENT_BYTES: usize = 64 * 1024;
/// What a segment grows by.
pub const TAG_BYTES: usize = 16;
const SALT: &[u8] = b"legion/blob/v1";

/// Which payload: what its key is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose<'a> {
    /// Task id.
    pub task: &'a str,
    /// Award of the task.
    pub award_no: u32,
    /// What travels: `input` to the executor, `result` to the requester.
    pub what: &'a str,
}

/// A new one-time secret from the system's randomness, and its public half.
///
/// # Errors
/// `entropy_unavailable`.
pub fn one_time() -> Result<(Zeroizing<[u8; 32]>, [u8; 32]), IdentityError> {
    let mut secret = Zeroizing::new([0u8; 32]);
    getrandom::fill(secret.as_mut_slice())
        .map_err(|_| IdentityError::SealingFailed("no randomness"))?;
    let public = PublicKey::from(&StaticSecret::from(*secret));
    Ok((secret, public.to_bytes()))
}

/// Closes or opens the segments of one payload, in order.
pub struct Blob {
    cipher: ChaCha20Poly1305,
    ad: Vec<u8>,
    next: u32,
    ended: bool,
}

impl Blob {
    /// For the sender: `eph` is a secret of [`one_time`], used for this payload alone.
    ///
    /// # Errors
    /// `sealing_failed` for a key of the receiver that is of small order.
    pub fn sealing(
        eph: &[u8; 32],
        once: &[u8; 32],
        fixed: &[u8; 32],
        purpose: Purpose<'_>,
    ) -> Result<Self, IdentityError> {
        let secret = StaticSecret::from(*eph);
        let shared = [once, fixed].map(|key| secret.diffie_hellman(&PublicKey::from(*key)));
        let public = PublicKey::from(&secret).to_bytes();
        Self::keyed(&shared, &public, once, fixed, purpose)
    }

    /// For the receiver: the one-time secret that it gave out, its lasting one, and the sender's one-time public key.
    ///
    /// # Errors
    /// `sealing_failed` for a key of the sender that is of small order.
    pub fn opening(
        once: &[u8; 32],
        fixed: &StaticSecret,
        eph: &[u8; 32],
        purpose: Purpose<'_>,
    ) -> Result<Self, IdentityError> {
        let (once, eph_key) = (StaticSecret::from(*once), PublicKey::from(*eph));
        let shared = [
            once.diffie_hellman(&eph_key),
            fixed.diffie_hellman(&eph_key),
        ];
        let [once, fixed] = [&once, fixed].map(|secret| PublicKey::from(secret).to_bytes());
        Self::keyed(&shared, eph, &once, &fixed, purpose)
    }

    fn keyed(
        shared: &[x25519_dalek::SharedSecret; 2],
        eph: &[u8; 32],
        once: &[u8; 32],
        fixed: &[u8; 32],
        purpose: Purpose<'_>,
    ) -> Result<Self, IdentityError> {
        let [a, b] = shared;
        if !a.was_contributory() || !b.was_contributory() {
            return Err(IdentityError::SealingFailed("a key of small order"));
        }
        let mut material = Zeroizing::new([0u8; 64]);
        material[..32].copy_from_slice(a.as_bytes());
        material[32..].copy_from_slice(b.as_bytes());
        let mut info = Vec::new();
        // Lengths before what varies: no two purposes give one text.
        for part in [purpose.task.as_bytes(), purpose.what.as_bytes()] {
            info.extend_from_slice(&(part.len() as u64).to_be_bytes());
            info.extend_from_slice(part);
        }
        info.extend_from_slice(&purpose.award_no.to_be_bytes());
        let ad = info.clone();
        for key in [eph, once, fixed] {
            info.extend_from_slice(key);
        }
        let mut key = Zeroizing::new([0u8; 32]);
        Hkdf::<Sha256>::new(Some(SALT), material.as_slice())
            .expand(&info, key.as_mut_slice())
            .map_err(|_| IdentityError::DerivationFailed("HKDF"))?;
        Ok(Self {
            cipher: ChaCha20Poly1305::new(&Key::from(*key)),
            ad,
            next: 0,
            ended: false,
        })
    }

    /// Closes the next segment: [`SEGMENT_BYTES`] of payload, or what is left if it is the last.
    ///
    /// # Errors
    /// `sealing_failed` after the last segment, and for a segment of the wrong size.
    pub fn seal(&mut self, segment: &[u8], last: bool) -> Result<Vec<u8>, IdentityError> {
        let fits = segment.len() == SEGMENT_BYTES || (last && segment.len() < SEGMENT_BYTES);
        let nonce = self.nonce(last, fits)?;
        let payload = Payload {
            msg: segment,
            aad: &self.ad,
        };
        self.cipher
            .encrypt(&nonce, payload)
            .map_err(|_| IdentityError::SealingFailed("the cipher refused"))
    }

    /// Opens the next segment.
    ///
    /// # Errors
    /// `sealing_failed` if it is not the next one of this payload, or not `last` where the sender said so, or was changed.
    pub fn open(&mut self, sealed: &[u8], last: bool) -> Result<Vec<u8>, IdentityError> {
        let nonce = self.nonce(last, sealed.len() >= TAG_BYTES)?;
        let payload = Payload {
            msg: sealed,
            aad: &self.ad,
        };
        self.cipher
            .decrypt(&nonce, payload)
            .map_err(|_| IdentityError::SealingFailed("a segment is not the one that was sealed"))
    }

    /// Counter (64 bit, little-endian), three zeros, 1 for the last segment.
    fn nonce(&mut self, last: bool, fits: bool) -> Result<Nonce, IdentityError> {
        if self.ended || !fits {
            return Err(IdentityError::SealingFailed("a segment out of place"));
        }
        let mut nonce = [0u8; 12];
        nonce[..8].copy_from_slice(&u64::from(self.next).to_le_bytes());
        nonce[11] = u8::from(last);
        self.ended = last;
        self.next = self
            .next
            .checked_add(1)
            .ok_or(IdentityError::SealingFailed("too many segments"))?;
        Ok(Nonce::from(nonce))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const EPH: [u8; 32] = [1; 32];
    const ONCE: [u8; 32] = [2; 32];
    const FIXED: [u8; 32] = [3; 32];

    fn public(secret: [u8; 32]) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from(secret)).to_bytes()
    }

    fn purpose() -> Purpose<'static> {
        Purpose {
            task: "0123456789abcdef0123456789abcdef",
            award_no: 1,
            what: "input",
        }
    }

    fn sealer() -> Blob {
        Blob::sealing(&EPH, &public(ONCE), &public(FIXED), purpose()).unwrap()
    }

    fn opener(once: [u8; 32], fixed: [u8; 32], purpose: Purpose<'_>) -> Blob {
        Blob::opening(&once, &StaticSecret::from(fixed), &public(EPH), purpose).unwrap()
    }

    fn segments() -> [Vec<u8>; 3] {
        let mut blob = sealer();
        let full = vec![7; SEGMENT_BYTES];
        [
            blob.seal(&full, false).unwrap(),
            blob.seal(&full, false).unwrap(),
            blob.seal(b"end", true).unwrap(),
        ]
    }

    /// Computed by another implementation (OpenSSL through Python): the fixture says from what.
    #[test]
    fn a_known_answer() {
        let vector: serde_json::Value =
            serde_json::from_str(include_str!("../../fixtures/identity/blob.json")).unwrap();
        let sealed = sealer().seal(b"legion", true).unwrap();
        assert_eq!(hex::encode(sealed), vector["sealed"].as_str().unwrap());
    }

    #[test]
    fn what_was_sealed_opens_and_nothing_follows_the_end() {
        let [a, b, end] = segments();
        let mut blob = opener(ONCE, FIXED, purpose());
        assert_eq!(blob.open(&a, false).unwrap(), vec![7; SEGMENT_BYTES]);
        assert_eq!(blob.open(&b, false).unwrap(), vec![7; SEGMENT_BYTES]);
        assert_eq!(blob.open(&end, true).unwrap(), b"end");
        assert!(blob.open(&end, true).is_err());
        assert!(sealer().seal(b"short", false).is_err());
    }

    #[test]
    fn a_cut_moved_repeated_or_changed_segment_does_not_open() {
        let [a, b, end] = segments();
        let open = |parts: &[(&[u8], bool)]| {
            let mut blob = opener(ONCE, FIXED, purpose());
            let mut last = Ok(Vec::new());
            for (part, is_last) in parts {
                last = blob.open(part, *is_last);
            }
            last.is_ok()
        };
        assert!(open(&[(&a, false), (&b, false), (&end, true)]));
        assert!(!open(&[(&a, false), (&b, true)]), "cut off");
        assert!(!open(&[(&b, false)]), "moved");
        assert!(!open(&[(&a, false), (&a, false)]), "repeated");
        assert!(!open(&[(&end, true)]), "only the end");
        let mut changed = a.clone();
        changed[0] ^= 1;
        assert!(!open(&[(&changed, false)]), "changed");
        assert!(!open(&[(&a[..10], false)]), "no tag");
    }

    #[test]
    fn another_task_award_or_direction_does_not_open_it() {
        let [a, ..] = segments();
        let others = [
            Purpose {
                task: "1123456789abcdef0123456789abcdef",
                ..purpose()
            },
            Purpose {
                award_no: 2,
                ..purpose()
            },
            Purpose {
                what: "result",
                ..purpose()
            },
        ];
        for other in others {
            assert!(opener(ONCE, FIXED, other).open(&a, false).is_err());
        }
    }

    /// Forward secrecy: the lasting secret is all that a stolen key file holds. With it, and with everything that was sent (the
    /// public keys and the segments), but without the one-time secret, nothing opens.
    #[test]
    fn a_stolen_key_file_opens_no_old_capture() {
        let [a, ..] = segments();
        assert!(opener(ONCE, FIXED, purpose()).open(&a, false).is_ok());
        let (guess, _) = one_time().unwrap();
        for guess in [*guess, FIXED, [0; 32]] {
            assert!(opener(guess, FIXED, purpose()).open(&a, false).is_err());
        }
        // The one-time secret alone does not open it either: whoever impersonates the prekey lacks the identity.
        assert!(opener(ONCE, [9; 32], purpose()).open(&a, false).is_err());
    }

    #[test]
    fn a_key_of_small_order_is_refused() {
        let zero = [0; 32];
        assert!(Blob::sealing(&EPH, &zero, &public(FIXED), purpose()).is_err());
        assert!(Blob::sealing(&EPH, &public(ONCE), &zero, purpose()).is_err());
        let fixed = StaticSecret::from(FIXED);
        assert!(Blob::opening(&ONCE, &fixed, &zero, purpose()).is_err());
    }
}
