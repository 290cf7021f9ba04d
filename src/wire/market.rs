//! What the market's messages carry: ads, offers, bids, awards, acceptances.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::binding::Binding;
use super::canonical::{self, CanonicalError};
use super::entry::Entry;
use super::transfer::Detached;

/// Bytes of a [`link`].
pub const LINK_BYTES: usize = 16;

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// `pool/ad`: a node's capability ad, the agent card's core with prices, load and expiry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ad {
    /// The LCT of the node.
    pub lct: String,
    /// Cross-signed keys.
    pub binding: Binding,
    /// Inbox relays, where the node reads.
    pub relays: Vec<String>,
    /// What it does.
    pub skills: Vec<AdSkill>,
    /// Jobs waiting or running here now.
    pub queue: u32,
    /// Whether the owner has paused foreign work.
    pub paused: bool,
    /// Until when the ad holds, Unix milliseconds.
    pub expires_ms: u64,
}

/// One skill in an [`Ad`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdSkill {
    /// Skill id.
    pub id: String,
    /// Listed price of one unit, milli-credits (peers of tier own pay 0).
    pub unit_price_mc: u64,
    /// Most that a job may cost beyond its units, for parts that the skill delegates, milli-credits.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hops_mc: u64,
}

/// `pool/offer`: a job that seeks an executor. It holds neither the input nor its plain hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Task id.
    pub task: String,
    /// Round of the auction within the task, from 1.
    pub round: u32,
    /// Capability wanted: a skill id.
    pub skill: String,
    /// Billable units.
    pub units: u32,
    /// Salted commitment to the input, hex.
    pub commitment: String,
    /// Most that the requester pays in all, milli-credits.
    pub max_price_mc: u64,
    /// When the result must be there, Unix milliseconds.
    pub result_by_ms: u64,
    /// How the result will be verified: `none schema sampled replicated full`.
    pub verification: String,
    /// Most bytes that the output takes.
    pub output_bytes_max: u64,
    /// Size class of the input: it has at most so many bytes as JSON, a power of two. 0: not said, it fits into a message.
    #[serde(default)]
    pub input_bytes_max: u64,
    /// One-time Nostr key for bids, hex.
    pub reply: String,
    /// Inbox relays of the requester.
    pub relays: Vec<String>,
    /// Until when bids are taken, Unix milliseconds.
    pub expires_ms: u64,
    /// The jobs that this one is a part of, the outermost first, veiled ([`veil`]); empty for a job that somebody wants for himself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<String>,
    /// The model that the executor must have, where the skill works with one: `sha256:` and its hash, or else its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// `pool/bid`: a total for one offer, sealed to its reply key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bid {
    /// Task id of the offer.
    pub task: String,
    /// Requester of the offer, Nostr key, hex.
    pub requester: String,
    /// Round of the offer.
    pub round: u32,
    /// Total, milli-credits.
    pub total_mc: u64,
    /// Price of one unit, milli-credits.
    pub unit_price_mc: u64,
    /// Estimated time to a result, milliseconds.
    pub eta_ms: u64,
    /// Device, for example `cpu`.
    pub device: String,
    /// Jobs before this one.
    pub queue: u32,
    /// LCT of the bidder.
    pub lct: String,
    /// Cross-signed keys of the bidder.
    pub binding: Binding,
    /// Inbox relays of the bidder.
    pub relays: Vec<String>,
    /// Until when the bid holds, Unix milliseconds.
    pub expires_ms: u64,
    /// Of the total: at most so much for parts that the bidder delegates in turn, milli-credits.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hops_mc: u64,
}

/// `pool/decline`: no bid for an offer (no entry), or no acceptance of an award (signed entry).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decline {
    /// Task id.
    pub task: String,
    /// Requester, Nostr key, hex.
    pub requester: String,
    /// The award declined; 0 for an offer.
    pub award_no: u32,
    /// Stable code.
    pub code: String,
    /// For a person.
    pub message: String,
    /// For `rate_limited` and `owner_paused`: when to try again, Unix milliseconds.
    pub retry_at_ms: Option<u64>,
    /// Signed entry for an award ([`super::entry::Act::Declined`]).
    pub entry: Option<Entry>,
    /// With an entry: the keys that it is signed with, for a requester that has never heard of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<Binding>,
}

/// `pool/withdraw`: the offer is closed, or awards up to `award_no` no longer stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdraw {
    /// Task id.
    pub task: String,
    /// Awards numbered below this are withdrawn; 0 for an offer only.
    pub below_award_no: u32,
}

/// `pool/award` and `message/send`: the job with its terms and input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Award {
    /// Task id.
    pub task: String,
    /// A2A context id.
    pub context: String,
    /// Number of the award within the task, from 1.
    pub award_no: u32,
    /// Skill id.
    pub skill: String,
    /// The input in clear (the envelope is sealed); null if it was detached.
    pub input: Value,
    /// Stands for an input that travels by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached: Option<Detached>,
    /// Salt of the commitment, hex.
    pub salt: String,
    /// Salted commitment to the input, hex ([`commitment`]).
    pub commitment: String,
    /// Units that the requester counts.
    pub units: u32,
    /// Agreed price of a unit from the bid; none in a directed request, where the executor's price holds.
    pub unit_price_mc: Option<u64>,
    /// Most that the requester pays, milli-credits.
    pub max_price_mc: u64,
    /// Accept until, Unix milliseconds.
    pub accept_by_ms: u64,
    /// Result until, Unix milliseconds.
    pub result_by_ms: u64,
    /// Receipt or refusal until, Unix milliseconds.
    pub settle_by_ms: u64,
    /// Keep-alives are due every third of this, milliseconds.
    pub lease_ttl_ms: u64,
    /// Longest hibernation the requester waits for, seconds.
    pub max_hibernate_s: u64,
    /// `free` or `units`.
    pub on_cancel: String,
    /// How the result will be verified.
    pub verification: String,
    /// LCT of the requester.
    pub lct: String,
    /// Cross-signed keys of the requester.
    pub binding: Binding,
    /// Inbox relays of the requester.
    pub relays: Vec<String>,
    /// The bid's [`Bid::hops_mc`]; 0 in a directed request, where the acceptance names it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hops_mc: u64,
    /// The jobs that this one is a part of, the outermost first ([`link`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<String>,
    /// Signed entry ([`super::entry::Act::Awarded`]).
    pub entry: Entry,
}

/// Everything agreed in an award: all its fields but input, salt, keys, relays, chain and entry. What the signed entry of an award
/// names by its hash, so that either side can show later what was agreed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Task id.
    pub task: String,
    /// Award.
    pub award_no: u32,
    /// Skill id.
    pub skill: String,
    /// Commitment to the input, hex.
    pub commitment: String,
    /// Units that the requester counts.
    pub units: u32,
    /// Agreed price of a unit; none in a directed request.
    pub unit_price_mc: Option<u64>,
    /// Most that the requester pays, milli-credits.
    pub max_price_mc: u64,
    /// Accept until, Unix milliseconds.
    pub accept_by_ms: u64,
    /// Result until.
    pub result_by_ms: u64,
    /// Receipt or refusal until.
    pub settle_by_ms: u64,
    /// Keep-alives are due every third of this, milliseconds.
    pub lease_ttl_ms: u64,
    /// Longest hibernation, seconds.
    pub max_hibernate_s: u64,
    /// `free` or `units`.
    pub on_cancel: String,
    /// How the result will be verified.
    pub verification: String,
    /// Of the most: for parts that the executor delegates, milli-credits. Terms without hops are those of a node that knows none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hops_mc: u64,
}

impl Terms {
    /// SHA-256 of `legion/terms/v1\0` + canonical JSON, hex.
    ///
    /// # Errors
    /// `integer_range` and the like, for a number that JSON cannot hold.
    pub fn hash(&self) -> Result<String, CanonicalError> {
        Ok(hex::encode(canonical::sha256(&canonical::signing_bytes(
            "terms", self,
        )?)))
    }
}

impl Award {
    /// Everything agreed.
    #[must_use]
    pub fn terms(&self) -> Terms {
        Terms {
            task: self.task.clone(),
            award_no: self.award_no,
            skill: self.skill.clone(),
            commitment: self.commitment.clone(),
            units: self.units,
            unit_price_mc: self.unit_price_mc,
            max_price_mc: self.max_price_mc,
            accept_by_ms: self.accept_by_ms,
            result_by_ms: self.result_by_ms,
            settle_by_ms: self.settle_by_ms,
            lease_ttl_ms: self.lease_ttl_ms,
            max_hibernate_s: self.max_hibernate_s,
            on_cancel: self.on_cancel.clone(),
            verification: self.verification.clone(),
            hops_mc: self.hops_mc,
        }
    }

    /// [`Terms::hash`] of what this award says.
    ///
    /// # Errors
    /// As there.
    pub fn terms_hash(&self) -> Result<String, CanonicalError> {
        self.terms().hash()
    }
}

/// Salted commitment to an input: SHA-256 of `legion/input/v1\0` + canonical JSON of `{input, salt}`, hex.
pub fn commitment(input: &Value, salt: &str) -> Result<String, CanonicalError> {
    let committed = serde_json::json!({"input": input, "salt": salt});
    Ok(hex::encode(canonical::sha256(&canonical::signing_bytes(
        "input", &committed,
    )?)))
}

/// What names a job in the chain of those that are a part of it: the first 16 bytes of SHA-256 of `legion/via/v1\0` + canonical
/// JSON of `{salt}`, hex. Its requester and its executor know the salt and nobody else does, so that a link tells a stranger
/// neither who they are nor which offer it was.
pub fn link(salt: &str) -> Result<String, CanonicalError> {
    let named = serde_json::json!({"salt": salt});
    let hash = canonical::sha256(&canonical::signing_bytes("via", &named)?);
    Ok(hex::encode(hash.get(..LINK_BYTES).unwrap_or_default()))
}

/// What stands for a link in an offer, which the whole pool reads: the first 16 bytes of SHA-256 of `legion/veil/v1\0` + canonical
/// JSON of `{link, requester, task}`, hex. Whoever knows the link recognizes it; nobody else can put it into an offer of his own to
/// see who does.
pub fn veil(link: &str, requester: &str, task: &str) -> Result<String, CanonicalError> {
    let named = serde_json::json!({"link": link, "requester": requester, "task": task});
    let hash = canonical::sha256(&canonical::signing_bytes("veil", &named)?);
    Ok(hex::encode(hash.get(..LINK_BYTES).unwrap_or_default()))
}

/// `pool/accept`: the executor will do it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accept {
    /// Task id.
    pub task: String,
    /// The award accepted.
    pub award_no: u32,
    /// Price of one unit, milli-credits.
    pub unit_price_mc: u64,
    /// Most that it will cost, milli-credits.
    pub total_mc: u64,
    /// Of these: at most so much for parts that the executor delegates, milli-credits.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hops_mc: u64,
    /// LCT of the executor.
    pub lct: String,
    /// Cross-signed keys of the executor.
    pub binding: Binding,
    /// Inbox relays of the executor.
    pub relays: Vec<String>,
    /// Signed entry ([`super::entry::Act::Accepted`]).
    pub entry: Entry,
}
