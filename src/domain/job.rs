//! A job of ours: what was asked, to whom it went, what came back.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::ledger::State as Money;
use super::step::{EngagementKey, Findings, Ms, Npub, TaskId};
use crate::wire::market::Bid;
use crate::wire::message::WorkResult;
use crate::wire::proof::{Hop, Proof};

/// A2A task states (v0.3 words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// Durable here, nobody works on it yet.
    Submitted,
    /// An executor has accepted, or a result is being checked.
    Working,
    /// A verified result is here.
    Completed,
    /// It ended without a result.
    Failed,
    /// The owner ended it.
    Canceled,
    /// Nobody was willing.
    Rejected,
}

impl TaskState {
    /// Whether nothing more happens to the task itself (money may still pend).
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Submitted | Self::Working)
    }

    /// The A2A v0.3 word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Working => "working",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Rejected => "rejected",
        }
    }
}

/// What a task waits for, or why it ended: the part that A2A's states cannot say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Stable code, for example `waiting_for_bids`, `paused: owner`, `deadline_passed`.
    pub code: String,
    /// For a person.
    pub text: String,
    /// When it will be tried again or judged, Unix milliseconds.
    pub retry_at_ms: Option<Ms>,
}

impl Reason {
    /// A reason without a time.
    pub fn new(code: &str, text: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            text: text.into(),
            retry_at_ms: None,
        }
    }

    /// The same with a time.
    pub fn until(code: &str, text: impl Into<String>, retry_at_ms: Ms) -> Self {
        Self {
            retry_at_ms: Some(retry_at_ms),
            ..Self::new(code, text)
        }
    }
}

/// Where a job goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// To the members of a pool, by auction.
    Pool(String),
    /// To one peer.
    Peer(Npub),
    /// To this node's own hardware.
    Own,
}

/// What happens to a job next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nobody has it: bids are awaited.
    Placing,
    /// An award is out.
    Awarded,
    /// An executor works on it.
    Working,
    /// A result is durable and being checked.
    Checking,
    /// The task has ended.
    Ended,
}

/// How an award stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AwardState {
    /// Sent, no answer yet.
    Sent,
    /// Accepted by the executor.
    Accepted,
    /// No answer in time, or the lease ran out: superseded, but not yet resolved.
    Superseded,
    /// The executor declined, failed or stopped.
    Declined,
    /// Its result was delivered.
    Delivered,
    /// The executor has signed two stories about the task: nothing of it is believed any more, and nothing is awarded to it.
    Disputed,
}

/// One award of the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwardRow {
    /// Number, from 1.
    pub no: u32,
    /// Winner.
    pub executor: Npub,
    /// State.
    pub state: AwardState,
    /// What happens to the money reserved for it.
    pub money: Money,
    /// Reserved, milli-credits.
    pub cap_mc: u64,
    /// Of these: at most so much for what the executor delegates; none before it is agreed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hops_mc: Option<u64>,
    /// Price of a unit once agreed.
    pub unit_price_mc: Option<u64>,
    /// Hash of the terms.
    pub terms: String,
    /// When the winner must have accepted.
    pub accept_by_ms: Ms,
    /// When the money must be settled.
    pub settle_by_ms: Ms,
    /// When the lease runs out without a keep-alive.
    pub lease_until_ms: Ms,
    /// Since when the executor's owner holds the hardware.
    pub paused_since_ms: Option<Ms>,
    /// Units the executor says are done.
    pub units_done: u32,
    /// What a cancel costs, as it was agreed: `free` or `units`; none in a row of before this was kept: the owner's setting holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_cancel: Option<String>,
    /// Units that count after a cancel, while the price is not known yet.
    #[serde(default)]
    pub useful_units: Option<u32>,
    /// What parts had cost by then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stopped_hops: Vec<Hop>,
}

/// When things happened, Unix milliseconds; 0 if they have not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// `ask` was durable.
    pub asked_ms: Ms,
    /// First offer.
    pub offered_ms: Ms,
    /// Newest award.
    pub awarded_ms: Ms,
    /// Newest acceptance.
    pub accepted_ms: Ms,
    /// Result durable.
    pub received_ms: Ms,
    /// Task ended.
    pub ended_ms: Ms,
}

/// The result that was accepted for checking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The award it is for.
    pub award_no: u32,
    /// Who sent it.
    pub executor: Npub,
    /// LCT of the executor.
    pub lct: String,
    /// The signed proof.
    pub proof: Proof,
    /// Units drawn for recomputation.
    pub sample: Vec<u32>,
    /// What the recomputation found.
    pub findings: Option<Findings>,
    /// The requester's score, basis points.
    pub quality_bp: Option<u32>,
    /// First seen after `settle_by`.
    pub late: bool,
}

/// A result that came while another one was being checked: it is next if that one fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spare {
    /// The award it is for.
    pub award_no: u32,
    /// The result, whose claim has been compared with the award.
    pub result: WorkResult,
}

/// The newest entry of one author in a task's history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its sequence number.
    pub seq: u32,
    /// Its hash, hex.
    pub hash: String,
    /// Hashes of earlier entries by number: a second entry under one of them is equivocation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub past: BTreeMap<u32, String>,
}

/// What a node keeps in memory of a live task's history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// Newest entry by author.
    pub by_author: BTreeMap<Npub, Head>,
    /// Highest clock seen.
    pub hlc: u64,
    /// Authors of whom two different entries with one number were seen.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub equivocators: BTreeSet<Npub>,
}

/// A job of ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Task id.
    pub task: TaskId,
    /// A2A context id.
    pub context: String,
    /// Skill.
    pub skill: String,
    /// Idempotency key, if one was given.
    pub key: Option<String>,
    /// Ahead of other own jobs.
    pub critical: bool,
    /// Billable units; 0 if this node does not know the skill.
    pub units: u32,
    /// Most bytes of the output.
    pub output_bytes_max: u64,
    /// The model that its executor must have, as an offer names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Salt of the commitment, hex.
    pub salt: String,
    /// Size of the input as JSON.
    #[serde(default)]
    pub input_bytes: u64,
    /// Commitment, hex.
    pub commitment: String,
    /// Most to pay.
    pub max_price_mc: u64,
    /// When the result must be there.
    pub deadline_ms: Ms,
    /// Where it goes.
    pub route: Route,
    /// What happens next.
    pub phase: Phase,
    /// A2A state.
    pub state: TaskState,
    /// Why it waits or why it ended.
    pub reason: Option<Reason>,
    /// All awards, oldest first.
    pub awards: Vec<AwardRow>,
    /// Awards are numbered above this, if there were some that a restored node has forgotten.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub awards_above: u32,
    /// Auction round.
    pub round: u32,
    /// When this round began.
    #[serde(default)]
    pub round_ms: Ms,
    /// When the offer of this round lapses.
    pub offer_expires_ms: Ms,
    /// When the best bid is taken; none before the first bid.
    pub window_ends_ms: Option<Ms>,
    /// Bids of this round.
    pub bids: Vec<(Npub, Bid)>,
    /// Who said no, and why.
    pub refusals: BTreeMap<Npub, Reason>,
    /// When a request that was turned away for now is sent again, or an offer is made anew.
    pub again_at_ms: Option<Ms>,
    /// The result, once there is one.
    pub outcome: Option<Outcome>,
    /// Further results, while the first is being checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spares: Vec<Spare>,
    /// What it cost, once settled.
    pub cost_mc: u64,
    /// The work of ours that this is a part of: the owner did not ask for it himself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<EngagementKey>,
    /// The jobs that this one is a part of, the outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<String>,
    /// History.
    pub heads: Heads,
    /// Times.
    pub marks: Marks,
}

impl Job {
    /// Whether the job must stay in memory: it goes on, or money still pends.
    pub fn is_live(&self) -> bool {
        self.phase != Phase::Ended || self.awards.iter().any(|a| a.money == Money::Locked)
    }

    /// Whether a result is being checked, whatever has become of the task meanwhile.
    pub fn is_checking(&self) -> bool {
        self.outcome
            .as_ref()
            .is_some_and(|o| o.findings.is_none() && !o.late)
    }

    /// Whether a restored node has learned of it from its executor alone: input and commitment are lost.
    pub fn is_forgotten(&self) -> bool {
        self.salt.is_empty()
    }

    /// The number of the next award.
    pub fn next_no(&self) -> u32 {
        let last = self.awards.last().map_or(0, |award| award.no);
        last.max(self.awards_above).saturating_add(1)
    }

    /// The newest award.
    pub fn current(&self) -> Option<&AwardRow> {
        self.awards.last()
    }

    /// The award with this number.
    pub fn award_mut(&mut self, no: u32) -> Option<&mut AwardRow> {
        self.awards.iter_mut().find(|a| a.no == no)
    }
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}
