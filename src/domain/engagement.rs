//! Work that we do for somebody: one accepted award.

use serde::{Deserialize, Serialize};

use super::ledger::State as Money;
use super::peer::Tier;
use super::step::{EngagementKey, Ms, Npub, TaskId};
use crate::wire::market::Terms;
use crate::wire::proof::{Evidence, Hop, Proof};

/// How the work stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Accepted, waits for a lease.
    Queued,
    /// Holds a lease: the worker has it.
    Running,
    /// Asked to stop at the next unit boundary.
    Stopping,
    /// The lease was revoked; a checkpoint waits.
    Hibernating,
    /// A part was delegated: no lease is held, its state waits for the answer.
    Waiting,
    /// Canceled while a part was with somebody else: what that part costs is awaited, then the requester is told.
    Closing,
    /// The result is durable and on its way, or the units that count after a cancel are said; no receipt yet.
    Finished,
    /// The requester let `settle_by` pass: the claim stands, overdue.
    Overdue,
    /// The requester refused with evidence that does not hold.
    Disputed,
    /// Over, for the reason in `end`.
    Ended,
}

/// Why a lease is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopWhy {
    /// The owner wants the hardware.
    Owner,
    /// The requester has canceled.
    Canceled,
    /// A newer award of the task exists.
    Superseded,
    /// The deadline has passed.
    Deadline,
}

/// A part of the work that was, or is to be, done by somebody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Number within the engagement, from 1.
    pub call: u32,
    /// The task of ours that it became; empty if it became none.
    pub task: TaskId,
    /// Skill asked for.
    pub skill: String,
    /// How it ended; none while it is awaited. The result itself is a payload of the engagement ([`answer_name`]).
    pub end: Option<CallEnd>,
}

/// How a [`Call`] ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallEnd {
    /// With a result, which was verified and paid.
    Answered {
        /// Who did it.
        executor: Npub,
        /// What it cost, milli-credits.
        cost_mc: u64,
        /// Hash of its proof, hex.
        proof: String,
    },
    /// Without.
    Failed {
        /// Stable code.
        code: String,
        /// For a person.
        message: String,
    },
}

/// The name of the payload that holds the result of a call.
pub fn answer_name(call: u32) -> String {
    format!("answer{call}")
}

/// One accepted award.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Engagement {
    /// `<requester>/<task>/<award_no>`.
    pub key: EngagementKey,
    /// Who asked.
    pub requester: Npub,
    /// Task id.
    pub task: TaskId,
    /// A2A context id.
    pub context: String,
    /// Award.
    pub award_no: u32,
    /// Skill.
    pub skill: String,
    /// Trust of the requester when accepted: the order of service.
    pub tier: Tier,
    /// Ahead of other own jobs (local requests only).
    pub critical: bool,
    /// Order of acceptance at this node.
    pub order: u64,
    /// Billable units.
    pub units: u32,
    /// Agreed price of a unit.
    pub unit_price_mc: u64,
    /// Reserved at most.
    pub total_mc: u64,
    /// Of these: at most so much for what is delegated.
    #[serde(default)]
    pub hops_mc: u64,
    /// The jobs that this one is a part of, the outermost first, with the requester's own as the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<String>,
    /// What the skill has delegated so far; the last is awaited while the stage is [`Stage::Waiting`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<Call>,
    /// What parts had cost when it was canceled, as the requester was told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stopped_hops: Vec<Hop>,
    /// Commitment to the input.
    pub commitment: String,
    /// Hash of the terms.
    pub terms: String,
    /// Cost on cancel: `free` or `units`.
    pub on_cancel: String,
    /// Result until.
    pub result_by_ms: Ms,
    /// Receipt or refusal until.
    pub settle_by_ms: Ms,
    /// Keep-alives every third of this.
    pub lease_ttl_ms: Ms,
    /// Where the requester reads.
    pub relays: Vec<String>,
    /// How it stands.
    pub stage: Stage,
    /// Why it is being stopped.
    pub stop: Option<StopWhy>,
    /// How it ended: `paid refused failed canceled superseded unacknowledged written_off`.
    pub end: Option<String>,
    /// What happens to the money reserved for it.
    pub money: Money,
    /// Units in the newest checkpoint.
    pub checkpoint_units: u32,
    /// Units done, as last told.
    pub units_done: u32,
    /// Units executed in all runs.
    pub executed: u64,
    /// Workers lost so far.
    pub attempts: u32,
    /// When the first lease began.
    pub started_ms: Ms,
    /// When the next keep-alive is due.
    pub keepalive_at_ms: Ms,
    /// When acceptance was durable.
    pub accepted_ms: Ms,
    /// When it ended.
    pub ended_ms: Ms,
    /// How the requester has promised to verify.
    #[serde(default)]
    pub verification: String,
    /// The evidence of a refusal that is being judged.
    #[serde(default)]
    pub evidence: Option<Evidence>,
    /// The requester has withdrawn this award, or made a newer one.
    #[serde(default)]
    pub withdrawn: bool,
    /// The requester refused the result as superseded, and no withdrawal has been seen here: the claim waits for one.
    #[serde(default)]
    pub called_superseded: bool,
    /// What was agreed: the requester may have to be reminded of it, after it lost its store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreed: Option<Box<Terms>>,
    /// The proof, once finished (unsigned here; signed when it leaves).
    pub proof: Option<Proof>,
}

/// The key of an engagement.
pub fn key(requester: &str, task: &str, award_no: u32) -> EngagementKey {
    format!("{requester}/{task}/{award_no}")
}

impl Engagement {
    /// `<requester>/<task>`: what checkpoints belong to, across awards.
    pub fn owner(&self) -> String {
        format!("{}/{}", self.requester, self.task)
    }

    /// Whether it must stay in memory.
    pub fn is_live(&self) -> bool {
        self.stage != Stage::Ended
    }

    /// Whether it wants or holds hardware.
    pub fn is_work(&self) -> bool {
        matches!(
            self.stage,
            Stage::Queued | Stage::Running | Stage::Stopping | Stage::Hibernating | Stage::Waiting
        )
    }

    /// Whether the requester has been told what came of it.
    pub fn has_reported(&self) -> bool {
        !self.is_work() && self.stage != Stage::Closing
    }

    /// How long what a part costs is awaited after a cancel: the requester must hear of it well before `settle_by`.
    pub fn close_by_ms(&self) -> Ms {
        let settling_ms = self.settle_by_ms.saturating_sub(self.result_by_ms);
        self.result_by_ms.saturating_add(settling_ms / 2)
    }

    /// The task of ours whose answer is awaited.
    pub fn awaits(&self) -> Option<&TaskId> {
        let last = self.calls.last().filter(|c| c.end.is_none())?;
        (self.stage == Stage::Waiting).then_some(&last.task)
    }

    /// The parts that others did, as the proof names them.
    pub fn hops(&self) -> Vec<Hop> {
        let done = self.calls.iter().filter_map(|call| match &call.end {
            Some(CallEnd::Answered {
                executor,
                cost_mc,
                proof,
            }) => Some(Hop {
                executor: executor.clone(),
                skill: call.skill.clone(),
                cost_mc: *cost_mc,
                proof: proof.clone(),
            }),
            _ => None,
        });
        done.collect()
    }

    /// What the requester owes once the work is finished, or was canceled, milli-credits.
    pub fn claim_mc(&self) -> u64 {
        let counted = || {
            let hops = self.stopped_hops.iter().map(|hop| hop.cost_mc);
            let units = u64::from(self.units_done).saturating_mul(self.unit_price_mc);
            hops.fold(units, u64::saturating_add).min(self.total_mc)
        };
        self.proof
            .as_ref()
            .map_or_else(counted, |proof| proof.cost_mc)
    }

    /// Order of service: own before trusted before stranger, critical first within own, then by acceptance.
    pub fn rank(&self) -> (Tier, bool, u64) {
        (self.tier, !self.critical, self.order)
    }
}
