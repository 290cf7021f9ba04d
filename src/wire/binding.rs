//! The statement that binds a node's keys: "this Nostr key, these Ed25519 and X25519 keys and this libp2p peer are one". Both
//! Ed25519 keys sign it; the Nostr key signs the message that carries it. Derivation from one seed proves nothing to a stranger,
//! this does. It must not know where a binding was read, nor remember the last one: the caller keeps the epoch it knows.

use std::str::FromStr;

use libp2p_identity::PeerId;
use nostr::PublicKey;
use serde::{Deserialize, Serialize};

use super::canonical::{CanonicalError, signing_bytes};
use crate::identity::keys::{peer_id_ed25519, verify_ed25519};
use crate::identity::{Identity, IdentityError, PublicIdentity};

const TYPE: &str = "binding";
const VERSION: u32 = 1;

/// The signed statement as it travels in the agent card. Keys and signatures are lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// What both keys sign.
    #[serde(flatten)]
    pub statement: Statement,
    /// By the proof key, over `legion/binding/v1\0` and the statement's canonical JSON.
    pub sig_ed25519: String,
    /// By the libp2p key, over the same bytes.
    pub sig_libp2p: String,
    /// By the proof key of the epoch before, over the same bytes; only a rotation has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sig_previous: Option<String>,
    /// By the proof keys of epochs before that one, newest first, over the same bytes: for a peer that has missed a rotation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sig_earlier: Vec<String>,
}

/// Most signatures of earlier epochs in a binding.
const EARLIER_MAX: usize = 7;
const SIGNATURE_BYTES: usize = 64;

/// The fields that are signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// 1.
    pub v: u32,
    /// `binding`.
    #[serde(rename = "type")]
    pub object_type: String,
    /// The Nostr key, hex.
    pub nostr: String,
    /// The proof key, hex.
    pub ed25519: String,
    /// The key for sealed payloads, hex.
    pub x25519: String,
    /// The libp2p peer id, base58.
    pub peer_id: String,
    /// Counts rotations from 0.
    pub epoch: u32,
    /// Unix seconds; from then on the binding is not valid.
    pub not_after: u64,
}

/// The keys of a peer, after every check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundKeys {
    /// The Nostr key.
    pub nostr: PublicKey,
    /// The proof key.
    pub ed25519: [u8; 32],
    /// The key for sealed payloads.
    pub x25519: [u8; 32],
    /// The libp2p peer id, base58.
    pub peer_id: String,
    /// The epoch.
    pub epoch: u32,
    /// Unix seconds.
    pub not_after_s: u64,
}

/// Why a binding is not believed.
#[derive(Debug, thiserror::Error)]
pub enum BindingError {
    /// A field has a wrong form.
    #[error("the binding's `{0}` is not valid; the peer must publish a new card")]
    Malformed(&'static str),
    /// It speaks for another Nostr key than the one that sent it.
    #[error("the binding names another Nostr key than its author; it is refused as copied")]
    OtherAuthor,
    /// Its time is over.
    #[error("the binding expired at {not_after_s} (Unix seconds); the peer must sign a new one")]
    Expired {
        /// When it ended.
        not_after_s: u64,
    },
    /// One of its keys did not sign it.
    #[error("the binding's signature by its `{0}` key is wrong; it is refused as forged")]
    Signature(&'static str),
    /// A lower epoch than the one known.
    #[error("the binding's epoch {offered} is below the known {known}; it is refused as replayed")]
    EpochReplayed {
        /// The epoch in the binding.
        offered: u32,
        /// The epoch we know.
        known: u32,
    },
    /// Other keys under the known epoch.
    #[error(
        "the binding changes keys without raising epoch {0}; ask the peer's owner to rotate, or forget the peer"
    )]
    Conflict(u32),
    /// A higher epoch that the old key did not sign.
    #[error(
        "the new keys are not signed by the known ones; if the peer's owner confirms the change, forget the peer and trust it again"
    )]
    RotationUnsigned,
    /// Our own statement could not be made.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
    /// Our own keys could not sign.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl BindingError {
    /// A stable name for programs and for searching.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "binding_malformed",
            Self::OtherAuthor => "binding_author",
            Self::Expired { .. } => "binding_expired",
            Self::Signature(_) => "binding_signature",
            Self::EpochReplayed { .. } => "binding_epoch",
            Self::Conflict(_) => "binding_conflict",
            Self::RotationUnsigned => "rotation_unsigned",
            Self::Canonical(error) => error.code(),
            Self::Identity(error) => error.code(),
        }
    }
}

impl Binding {
    /// Binds our own keys until `not_after_s`. For a rotation, `previous` is the identity of the epoch before.
    pub fn sign(
        identity: &Identity,
        not_after_s: u64,
        previous: Option<&Identity>,
    ) -> Result<Self, BindingError> {
        let PublicIdentity {
            nostr,
            ed25519,
            x25519,
            peer_id,
            epoch,
            ..
        } = identity.public().clone();
        let statement = Statement {
            v: VERSION,
            object_type: TYPE.to_owned(),
            nostr,
            ed25519,
            x25519,
            peer_id,
            epoch,
            not_after: not_after_s,
        };
        let bytes = signing_bytes(TYPE, &statement)?;
        Ok(Self {
            sig_ed25519: hex::encode(identity.sign_proof(&bytes)),
            sig_libp2p: hex::encode(identity.sign_libp2p(&bytes)?),
            sig_previous: previous.map(|previous| hex::encode(previous.sign_proof(&bytes))),
            sig_earlier: Vec::new(),
            statement,
        })
    }

    /// The same with the signatures of the epochs before, which a peer that knows one of them asks for: those of the newest
    /// ones, and of the first.
    ///
    /// # Errors
    /// As [`Binding::sign`].
    pub fn sign_lasting(identity: &Identity, not_after_s: u64) -> Result<Self, BindingError> {
        let mut binding = Self::sign(identity, not_after_s, None)?;
        let bytes = signing_bytes(TYPE, &binding.statement)?;
        let mut former = identity.sign_formerly(&bytes);
        binding.sig_previous = former.pop().map(hex::encode);
        let first = former.first().map(hex::encode);
        former.reverse();
        binding.sig_earlier = former.iter().take(EARLIER_MAX).map(hex::encode).collect();
        if former.len() > EARLIER_MAX {
            binding.sig_earlier.pop();
            binding.sig_earlier.extend(first);
        }
        Ok(binding)
    }

    /// Checks everything that can be checked without memory: form, author, time, both signatures. `author` is the Nostr key whose
    /// signature covered the message; `now_s` is Unix seconds. For a peer that is known already, use [`Binding::succeeds`].
    pub fn verify(&self, author: &PublicKey, now_s: u64) -> Result<BoundKeys, BindingError> {
        let statement = &self.statement;
        if statement.v != VERSION {
            return Err(BindingError::Malformed("v"));
        }
        if statement.object_type != TYPE {
            return Err(BindingError::Malformed("type"));
        }
        if statement.nostr != author.to_hex() {
            return Err(BindingError::OtherAuthor);
        }
        if statement.not_after <= now_s {
            return Err(BindingError::Expired {
                not_after_s: statement.not_after,
            });
        }
        let keys = self.stated(author)?;
        let peer =
            PeerId::from_str(&statement.peer_id).map_err(|_| BindingError::Malformed("peer_id"))?;
        let libp2p = peer_id_ed25519(&peer).ok_or(BindingError::Malformed("peer_id"))?;
        let bytes = signing_bytes(TYPE, statement)?;
        if !verify_ed25519(
            &keys.ed25519,
            &bytes,
            &fixed_hex(&self.sig_ed25519, "sig_ed25519")?,
        ) {
            return Err(BindingError::Signature("ed25519"));
        }
        if !verify_ed25519(&libp2p, &bytes, &fixed_hex(&self.sig_libp2p, "sig_libp2p")?) {
            return Err(BindingError::Signature("libp2p"));
        }
        Ok(keys)
    }

    /// Whether these keys, and no others, are bound by it.
    pub fn binds(&self, keys: &BoundKeys, now_s: u64) -> bool {
        self.verify(&keys.nostr, now_s)
            .is_ok_and(|bound| bound == *keys)
    }

    /// The keys as they stand there, unverified.
    fn stated(&self, author: &PublicKey) -> Result<BoundKeys, BindingError> {
        let statement = &self.statement;
        Ok(BoundKeys {
            nostr: *author,
            ed25519: fixed_hex(&statement.ed25519, "ed25519")?,
            x25519: fixed_hex(&statement.x25519, "x25519")?,
            peer_id: statement.peer_id.clone(),
            epoch: statement.epoch,
            not_after_s: statement.not_after,
        })
    }

    /// The epoch of `newer`, if it says for certain that this binding, our own, is of an epoch that is over: the same owner
    /// has signed it, and our proof key of this epoch too. When it ends does not matter, for what was signed was signed.
    ///
    /// # Errors
    /// As [`Binding::succeeds`]; `binding_epoch` also for our own epoch.
    pub fn outgrown_by(&self, newer: &Self) -> Result<u32, BindingError> {
        let author = PublicKey::from_hex(&self.statement.nostr)
            .map_err(|_| BindingError::Malformed("nostr"))?;
        let known = self.stated(&author)?;
        let keys = newer.succeeds(&known, 0)?;
        match keys.epoch > known.epoch {
            true => Ok(keys.epoch),
            false => Err(BindingError::EpochReplayed {
                offered: keys.epoch,
                known: known.epoch,
            }),
        }
    }

    /// The same binding without what no reader looks at: what is kept of a foreign one is no longer than one of ours.
    pub fn kept(mut self) -> Self {
        let sane = |signature: &String| signature.len() == 2 * SIGNATURE_BYTES;
        self.sig_previous = self.sig_previous.filter(sane);
        self.sig_earlier.truncate(EARLIER_MAX);
        self.sig_earlier.retain(sane);
        self
    }

    /// [`Binding::verify`] for a peer whose keys are `known`: the same epoch must name the same keys (a renewal may only change
    /// the end), a higher one must be signed by the known proof key too, a lower one is a replay.
    pub fn succeeds(&self, known: &BoundKeys, now_s: u64) -> Result<BoundKeys, BindingError> {
        let keys = self.verify(&known.nostr, now_s)?;
        if keys.epoch < known.epoch {
            return Err(BindingError::EpochReplayed {
                offered: keys.epoch,
                known: known.epoch,
            });
        }
        if keys.epoch == known.epoch {
            let same = keys.ed25519 == known.ed25519
                && keys.x25519 == known.x25519
                && keys.peer_id == known.peer_id;
            return if same {
                Ok(keys)
            } else {
                Err(BindingError::Conflict(known.epoch))
            };
        }
        let bytes = signing_bytes(TYPE, &self.statement)?;
        let earlier = self.sig_earlier.iter().take(EARLIER_MAX);
        for signature in self.sig_previous.iter().chain(earlier) {
            let signature = fixed_hex(signature, "sig_previous")?;
            if verify_ed25519(&known.ed25519, &bytes, &signature) {
                return Ok(keys);
            }
        }
        Err(BindingError::RotationUnsigned)
    }
}

/// Exactly `N` bytes in lower-case hex: one value has one spelling, so that equal keys are equal texts.
fn fixed_hex<const N: usize>(text: &str, field: &'static str) -> Result<[u8; N], BindingError> {
    let mut bytes = [0u8; N];
    if text.bytes().any(|b| b.is_ascii_uppercase())
        || hex::decode_to_slice(text, &mut bytes).is_err()
    {
        return Err(BindingError::Malformed(field));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::identity::{Lct, Mnemonic};

    const NOW_S: u64 = 1_795_219_200;
    const END_S: u64 = NOW_S + 86_400;

    fn identities() -> [Identity; 3] {
        let words = Mnemonic::generate().unwrap();
        let lct = Lct::new("ada", "attic", "worker").unwrap();
        [0, 1, 2].map(|epoch| Identity::derive(&words, lct.clone(), epoch).unwrap())
    }

    fn stranger() -> Identity {
        Identity::derive(
            &Mnemonic::generate().unwrap(),
            Lct::new("eve", "cave", "worker").unwrap(),
            1,
        )
        .unwrap()
    }

    #[test]
    fn our_own_binding_is_believed_and_survives_json() {
        let [first, ..] = identities();
        let binding = Binding::sign(&first, END_S, None).unwrap();
        let json = serde_json::to_value(&binding).unwrap();
        assert_eq!(
            (json["type"].as_str(), json["epoch"].as_u64()),
            (Some("binding"), Some(0))
        );
        let restored: Binding = serde_json::from_value(json).unwrap();
        let keys = restored.verify(&first.nostr().public_key(), NOW_S).unwrap();
        assert_eq!(hex::encode(keys.ed25519), first.public().ed25519);
        assert_eq!(hex::encode(keys.x25519), first.public().x25519);
        assert_eq!(
            (keys.peer_id.as_str(), keys.epoch, keys.not_after_s),
            (first.public().peer_id.as_str(), 0, END_S)
        );
    }

    #[test]
    fn every_altered_field_is_noticed() {
        let [first, ..] = identities();
        let other = stranger();
        let author = first.nostr().public_key();
        let good = Binding::sign(&first, END_S, None).unwrap();
        let theirs = Binding::sign(&other, END_S, None).unwrap();
        type Alter<'a> = Box<dyn Fn(&mut Binding) + 'a>;
        let cases: Vec<(&str, Alter<'_>)> = vec![
            ("binding_malformed", Box::new(|b| b.statement.v = 2)),
            (
                "binding_malformed",
                Box::new(|b| b.statement.object_type = "proof".into()),
            ),
            (
                "binding_malformed",
                Box::new(|b| b.statement.ed25519.push('0')),
            ),
            (
                "binding_malformed",
                Box::new(|b| b.statement.x25519 = b.statement.x25519.to_uppercase() + "A"),
            ),
            (
                "binding_malformed",
                Box::new(|b| {
                    b.statement.peer_id = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N".into()
                }),
            ),
            (
                "binding_malformed",
                Box::new(|b| b.sig_ed25519.truncate(10)),
            ),
            (
                "binding_author",
                Box::new(|b| b.statement.nostr = theirs.statement.nostr.clone()),
            ),
            ("binding_signature", Box::new(|b| b.statement.epoch = 9)),
            (
                "binding_signature",
                Box::new(|b| b.statement.not_after += 1),
            ),
            (
                "binding_signature",
                Box::new(|b| b.statement.x25519 = theirs.statement.x25519.clone()),
            ),
            (
                "binding_signature",
                Box::new(|b| b.statement.ed25519 = theirs.statement.ed25519.clone()),
            ),
            (
                "binding_signature",
                Box::new(|b| b.statement.peer_id = theirs.statement.peer_id.clone()),
            ),
            (
                "binding_signature",
                Box::new(|b| b.sig_libp2p = b.sig_ed25519.clone()),
            ),
            (
                "binding_signature",
                Box::new(|b| b.sig_ed25519 = b.sig_libp2p.clone()),
            ),
            (
                "integer_range",
                Box::new(|b| b.statement.not_after = 1 << 53),
            ),
        ];
        for (index, (code, alter)) in cases.iter().enumerate() {
            let mut altered = good.clone();
            alter(&mut altered);
            assert_eq!(
                altered.verify(&author, NOW_S).unwrap_err().code(),
                *code,
                "case {index}"
            );
        }
        assert_eq!(
            good.verify(&other.nostr().public_key(), NOW_S)
                .unwrap_err()
                .code(),
            "binding_author"
        );
        assert_eq!(
            good.verify(&author, END_S).unwrap_err().code(),
            "binding_expired"
        );
    }

    #[test]
    fn whoever_missed_some_rotations_still_knows_a_key_that_has_signed() {
        let words = Mnemonic::generate().unwrap();
        let lct = Lct::new("ada", "attic", "worker").unwrap();
        let at = |epoch| Identity::derive(&words, lct.clone(), epoch).unwrap();
        let author = at(0).nostr().public_key();
        let last = Binding::sign_lasting(&at(12), END_S).unwrap();
        assert_eq!(last.sig_earlier.len(), EARLIER_MAX);
        let knows = |epoch| {
            let known = Binding::sign(&at(epoch), END_S, None).unwrap();
            let known = known.verify(&author, NOW_S).unwrap();
            last.succeeds(&known, NOW_S).map(|keys| keys.epoch)
        };
        for epoch in [0, 5, 6, 10, 11, 12] {
            assert_eq!(knows(epoch).unwrap(), 12, "{epoch}");
        }
        assert_eq!(knows(4).unwrap_err().code(), "rotation_unsigned");
        let first = Binding::sign_lasting(&at(0), END_S).unwrap();
        assert_eq!(first, Binding::sign(&at(0), END_S, None).unwrap());
    }

    #[test]
    fn a_rotation_needs_the_old_key_and_the_new_one() {
        let [first, second, third] = identities();
        let author = first.nostr().public_key();
        let known = Binding::sign(&first, END_S, None)
            .unwrap()
            .verify(&author, NOW_S)
            .unwrap();
        let rotated = Binding::sign(&second, END_S, Some(&first)).unwrap();
        let newer = rotated.succeeds(&known, NOW_S).unwrap();
        assert_eq!(newer.epoch, 1);

        let unsigned = Binding::sign(&second, END_S, None).unwrap();
        assert_eq!(
            unsigned.succeeds(&known, NOW_S).unwrap_err().code(),
            "rotation_unsigned"
        );
        let by_another = Binding::sign(&second, END_S, Some(&third)).unwrap();
        assert_eq!(
            by_another.succeeds(&known, NOW_S).unwrap_err().code(),
            "rotation_unsigned"
        );
        let back = Binding::sign(&first, END_S + 1, None).unwrap();
        assert_eq!(
            back.succeeds(&newer, NOW_S).unwrap_err().code(),
            "binding_epoch"
        );

        let renewed = Binding::sign(&first, END_S + 1, None).unwrap();
        assert_eq!(
            renewed.succeeds(&known, NOW_S).unwrap().not_after_s,
            END_S + 1
        );
        let mut conflicting = known.clone();
        conflicting.x25519[0] ^= 1;
        assert_eq!(
            renewed.succeeds(&conflicting, NOW_S).unwrap_err().code(),
            "binding_conflict"
        );
        assert_eq!(
            Binding::sign(&stranger(), END_S, None)
                .unwrap()
                .succeeds(&known, NOW_S)
                .unwrap_err()
                .code(),
            "binding_author"
        );
    }
}
