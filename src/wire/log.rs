//! What two nodes say to each other about what they have signed: `log/since` asks, `log/entries` answers, a page at a time. A
//! node that was restored from a backup learns by it what it has forgotten. Nothing in an answer is believed for having been
//! sent: entries and proofs count by their signatures, terms by the hash that a signed entry names.
//!
//! And `instance/hello`, which a node says to itself, so that a copy of its home hears it; and `instance/outgrown`, by which an
//! author of an epoch that is over hears that it is over.

use serde::{Deserialize, Serialize};

use super::binding::Binding;
use super::entry::Entry;
use super::market::Terms;
use super::proof::{Evidence, Proof};

/// Most awards that one `log/since` names: what is told of them fits into one page.
pub const NAMED_MAX: usize = 3;
/// A cursor behind everything: only what is named is asked for.
pub const NAMED_ONLY: &str = "named";
/// Most awards in one page.
pub const PAGE_MAX: usize = 64;
/// Most entries about one award: each side writes a few.
pub const ENTRIES_MAX: usize = 64;
/// Longest cursor, bytes.
pub const CURSOR_MAX_BYTES: usize = 512;

/// `log/since`: what have we two signed since then?
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogSince {
    /// The moment of the backup, Unix milliseconds, by the clock of whoever asks.
    pub since_ms: u64,
    /// Which restoration asks: when it was, Unix milliseconds. A backup may be restored more than once.
    pub restored_ms: u64,
    /// Where the answer goes on; empty for its beginning. What a page gave as [`LogEntries::next`], or [`NAMED_ONLY`].
    pub cursor: String,
    /// Awards that are to be told of whatever their age; what was delivered for them is delivered once more.
    pub again: Vec<Named>,
    /// Cross-signed keys of whoever asks: of a higher epoch than before.
    pub binding: Binding,
}

/// One award, by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Named {
    /// Requester, Nostr key, hex.
    pub requester: String,
    /// Task id.
    pub task: String,
    /// Award.
    pub award_no: u32,
}

/// `log/entries`: one page of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntries {
    /// As asked.
    pub restored_ms: u64,
    /// As asked.
    pub cursor: String,
    /// Awards between the two.
    pub awards: Vec<AwardLog>,
    /// Where the next page begins; none after the last.
    pub next: Option<String>,
    /// Cross-signed keys of whoever answers.
    pub binding: Binding,
}

/// What was signed about one award, by either side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AwardLog {
    /// Which.
    pub award: Named,
    /// Entries about this award, and cancels of its task.
    pub entries: Vec<Entry>,
    /// What was agreed, if whoever answers is the executor and still knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Terms>,
    /// The executor's proof, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// Why the requester refused the result, if it still knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    /// Whether it is still open for whoever answers: worked on, waited for, or unsettled.
    pub open: bool,
    /// Whether the requester has withdrawn it.
    #[serde(default)]
    pub withdrawn: bool,
    /// Receipt or refusal until, Unix milliseconds.
    pub settle_by_ms: u64,
    /// Price of a unit, as whoever answers has it; 0 if it does not know.
    #[serde(default)]
    pub unit_price_mc: u64,
}

/// `instance/hello`: said by a running node to its own key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Drawn anew at each start, 32 hex digits.
    pub instance: String,
    /// Epoch of its keys.
    pub epoch: u32,
    /// The instance that this one answers: it was heard, so both run now.
    pub answers: Option<String>,
}

/// `instance/outgrown`: the answer to a message under keys of an epoch that its author has left. Whoever says it need not be
/// believed: the author's own keys, those of the message among them, have signed what it shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgrown {
    /// The newest binding of the message's author that the sender knows.
    pub newer: Binding,
}
