//! The executor's signed record of work, and the requester's evidence against one.
//!
//! A proof shows origin and integrity: who claims to have computed what, from which input, at which cost. It does not show
//! that the computation is right; for that the requester recomputes a sample.

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use super::canonical::{self, CanonicalError};
use super::entry::verify_hex;

/// A part of a job that its executor gave to somebody else. What it cost is the executor's word, bounded by what was agreed; the
/// proof that it names is signed by whoever did the part, and can be asked for in a dispute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Nostr key of whoever did it, hex.
    pub executor: String,
    /// Skill id.
    pub skill: String,
    /// What it cost, milli-credits.
    pub cost_mc: u64,
    /// Hash of its proof, hex; of a part that was stopped, of the entry in which its executor says so.
    pub proof: String,
}

/// What hops of a job between these two cost in all, milli-credits. None if they are not what hops can be: by a third party each,
/// every proof counted once.
pub fn hops_mc(hops: &[Hop], requester: &str, executor: &str) -> Option<u64> {
    let mut counted = std::collections::BTreeSet::new();
    let third = |hop: &Hop| hop.executor != executor && hop.executor != requester;
    hops.iter().try_fold(0u64, |sum, hop| {
        let once = counted.insert(hop.proof.as_str());
        sum.checked_add(hop.cost_mc).filter(|_| once && third(hop))
    })
}

/// Execution proof (protocol, section 5). Signed Ed25519 over `legion/proof/v1\0` + canonical JSON without `sig`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Version, 1.
    pub v: u32,
    /// Task id.
    pub task: String,
    /// The award that was worked on.
    pub award_no: u32,
    /// Skill id.
    pub skill: String,
    /// Requester's Nostr key, hex.
    pub requester: String,
    /// Executor's Nostr key, hex.
    pub executor: String,
    /// Executor's LCT.
    pub lct: String,
    /// Executor's Ed25519 proof key, hex.
    pub key: String,
    /// Salted commitment to the input, hex.
    pub commitment: String,
    /// SHA-256 of the output's canonical JSON, hex.
    pub output: String,
    /// Merkle root of the unit results, hex.
    pub root: String,
    /// Hash of the award's terms, hex.
    pub terms: String,
    /// Units done.
    pub units: u32,
    /// Price of one unit, milli-credits.
    pub unit_price_mc: u64,
    /// Claimed cost, milli-credits: that of the units, and of the hops.
    pub cost_mc: u64,
    /// The parts that others did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<Hop>,
    /// Device, for example `cpu`.
    pub device: String,
    /// Hash of the model's weights, where the skill has a model.
    pub model: Option<String>,
    /// Numeric profile: backend, version, architecture, SIMD level.
    pub profile: String,
    /// Implementation and version, for example `legion/0.1.0`.
    pub implementation: String,
    /// When the work began, Unix milliseconds.
    pub started_ms: u64,
    /// When the work ended, Unix milliseconds.
    pub finished_ms: u64,
    /// Signature, hex; empty until signed.
    #[serde(default)]
    pub sig: String,
}

impl Proof {
    /// [`hops_mc`] of its hops.
    pub fn hops_mc(&self) -> Option<u64> {
        hops_mc(&self.hops, &self.requester, &self.executor)
    }

    /// What is signed: `legion/proof/v1\0` + canonical JSON without the signature.
    pub fn signing_bytes(&self) -> Result<Vec<u8>, CanonicalError> {
        canonical::signing_bytes(
            "proof",
            &Self {
                sig: String::new(),
                ..self.clone()
            },
        )
    }

    /// SHA-256 of what is signed, hex.
    pub fn hash(&self) -> Result<String, CanonicalError> {
        Ok(hex::encode(canonical::sha256(&self.signing_bytes()?)))
    }

    /// Signs in place.
    pub fn sign(&mut self, key: &SigningKey) -> Result<(), CanonicalError> {
        use ed25519_dalek::Signer;
        self.sig = hex::encode(key.sign(&self.signing_bytes()?).to_bytes());
        Ok(())
    }

    /// Whether the signature is by the key that the proof names.
    pub fn is_signed(&self) -> bool {
        self.signing_bytes()
            .is_ok_and(|bytes| verify_hex(&self.key, &bytes, &self.sig))
    }
}

/// Why a result is refused, in a form that the executor can check offline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Stable code: `unit_mismatch aggregate_mismatch output_mismatch root_mismatch cost_mismatch schema_mismatch unverified …`.
    pub code: String,
    /// The unit that differs, where one does.
    pub unit: Option<u32>,
    /// What the requester computed, base64 or hex, as the code says.
    pub expected: String,
    /// What the executor sent.
    pub received: String,
}

impl Evidence {
    /// SHA-256 of the canonical JSON, hex.
    pub fn hash(&self) -> Result<String, CanonicalError> {
        Ok(hex::encode(canonical::sha256(&canonical::signing_bytes(
            "evidence", self,
        )?)))
    }
}
