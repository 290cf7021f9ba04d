//! One signed entry of a task's history.
//!
//! An entry is made by a pure step and signed after that step is durable: its hash leaves the signature out, and Ed25519
//! is deterministic, so a crash in between yields the very same bytes. Two different entries of one author with one
//! sequence number are proof of equivocation (`domain::history`).

use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::canonical::{self, CanonicalError};
use super::proof::Hop;

/// What an entry states. The requester writes `Awarded Canceled Paid Refused`, the executor the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case")]
pub enum Act {
    /// The job goes to `executor` under the terms with this hash.
    Awarded {
        /// Number of the award within the task, from 1.
        award_no: u32,
        /// The winner's Nostr key, hex.
        executor: String,
        /// SHA-256 of the terms, hex ([`super::market::Award::terms_hash`]).
        terms: String,
    },
    /// The executor will do it for at most this total.
    Accepted {
        /// The award.
        award_no: u32,
        /// Most that it will cost, milli-credits.
        total_mc: u64,
    },
    /// The executor will not, or no longer, do it; nothing is owed.
    Declined {
        /// The award.
        award_no: u32,
        /// Stable reason code.
        code: String,
    },
    /// The work is done; the proof has this hash.
    Completed {
        /// The award.
        award_no: u32,
        /// SHA-256 of the proof, hex ([`super::proof::Proof::hash`]).
        proof: String,
    },
    /// The work failed for good here; nothing is owed.
    Failed {
        /// The award.
        award_no: u32,
        /// Stable reason code.
        code: String,
    },
    /// The requester wants no more work.
    Canceled,
    /// The executor stopped after a cancel.
    Stopped {
        /// The award.
        award_no: u32,
        /// Units finished before the stop.
        useful_units: u32,
        /// Parts that others did before the stop, each by a third party, and what the executor owes them for that.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        hops: Vec<Hop>,
    },
    /// The requester owes the executor this cost for this proof.
    Paid {
        /// The award.
        award_no: u32,
        /// Milli-credits owed.
        cost_mc: u64,
        /// SHA-256 of the proof, hex.
        proof: String,
        /// The requester's own score, basis points; none if nothing was verified.
        quality_bp: Option<u32>,
    },
    /// The requester owes nothing for this proof.
    Refused {
        /// The award.
        award_no: u32,
        /// SHA-256 of the proof, hex.
        proof: String,
        /// SHA-256 of the evidence, hex.
        evidence: String,
        /// Stable reason code.
        code: String,
    },
}

/// A signed statement in a task's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Task id.
    pub task: String,
    /// The task's requester (Nostr key, hex): task ids are scoped to it.
    pub requester: String,
    /// Author, Nostr key, hex.
    pub author: String,
    /// The author's Ed25519 proof key, hex, which its binding ties to `author`.
    pub key: String,
    /// 1, 2, … per author and task.
    pub seq: u32,
    /// Hybrid logical clock: Unix milliseconds x 1024 + counter.
    pub hlc: u64,
    /// Hash of the author's previous entry in this task; empty for the first.
    pub prev: String,
    /// Hashes of the other authors' latest entries that the author had seen.
    pub heads: Vec<String>,
    /// The statement.
    pub what: Act,
    /// Ed25519 signature over `legion/entry/v1\0` + canonical JSON without this field, hex; empty until signed.
    #[serde(default)]
    pub sig: String,
}

impl Entry {
    /// An empty entry, to be replaced before the message leaves.
    pub fn blank() -> Self {
        Self {
            task: String::new(),
            requester: String::new(),
            author: String::new(),
            key: String::new(),
            seq: 0,
            hlc: 0,
            prev: String::new(),
            heads: Vec::new(),
            what: Act::Canceled,
            sig: String::new(),
        }
    }

    fn unsigned(&self) -> Self {
        Self {
            sig: String::new(),
            ..self.clone()
        }
    }

    /// What is signed: `legion/entry/v1\0` + canonical JSON without the signature.
    pub fn signing_bytes(&self) -> Result<Vec<u8>, CanonicalError> {
        canonical::signing_bytes("entry", &self.unsigned())
    }

    /// SHA-256 of what is signed, hex. The signature is not part of it.
    pub fn hash(&self) -> Result<String, CanonicalError> {
        Ok(hex::encode(canonical::sha256(&self.signing_bytes()?)))
    }

    /// Signs in place. The caller's key must be the one named in `key`.
    pub fn sign(&mut self, key: &SigningKey) -> Result<(), CanonicalError> {
        use ed25519_dalek::Signer;
        self.sig = hex::encode(key.sign(&self.signing_bytes()?).to_bytes());
        Ok(())
    }

    /// Whether the signature is by the key that the entry names (strict verification).
    pub fn is_signed(&self) -> bool {
        self.signing_bytes()
            .is_ok_and(|bytes| verify_hex(&self.key, &bytes, &self.sig))
    }
}

/// Strict Ed25519 verification of hex key and signature; anything malformed is `false`.
pub fn verify_hex(key: &str, bytes: &[u8], sig: &str) -> bool {
    let mut key_bytes = [0u8; 32];
    let mut sig_bytes = [0u8; 64];
    if hex::decode_to_slice(key, &mut key_bytes).is_err()
        || hex::decode_to_slice(sig, &mut sig_bytes).is_err()
    {
        return false;
    }
    let Ok(key) = VerifyingKey::from_bytes(&key_bytes) else {
        return false;
    };
    key.verify_strict(bytes, &Signature::from_bytes(&sig_bytes))
        .is_ok()
}
