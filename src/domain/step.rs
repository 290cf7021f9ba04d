//! What goes into a decision and what comes out: inputs, changes, effects.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::engagement::Engagement;
use super::job::{Job, Route};
use super::ledger::{Account, Transfer};
use super::peer::{Peer, Tier};
use super::policy::SkillFacts;
use crate::config::SandboxLevel;
use crate::wire::binding::{Binding, BoundKeys};
use crate::wire::entry::Entry;
use crate::wire::log::{LogEntries, LogSince};
use crate::wire::message::Body;
use crate::wire::proof::Evidence;

/// Unix time, milliseconds.
pub type Ms = u64;
/// A Nostr public key, 64 lower-case hex digits.
pub type Npub = String;
/// A task id, 32 lower-case hex digits, chosen by the requester's node.
pub type TaskId = String;

/// Names an engagement: `<requester>/<task>/<award_no>`.
pub type EngagementKey = String;

/// The chance that a step may use: a seed drawn by the caller, so that a step can be repeated byte for byte.
#[derive(Debug, Clone)]
pub struct Chance {
    seed: [u8; 32],
    counter: u64,
}

impl Chance {
    /// From 32 bytes of operating-system randomness (or of a simulation's seed).
    pub fn new(seed: [u8; 32]) -> Self {
        Self { seed, counter: 0 }
    }

    /// The next 32 bytes: SHA-256(seed | counter).
    pub fn bytes(&mut self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.seed);
        hash.update(self.counter.to_be_bytes());
        self.counter += 1;
        hash.finalize().into()
    }

    /// `2 x n` hex digits, n at most 32.
    pub fn hex(&mut self, n: usize) -> String {
        let bytes = self.bytes();
        hex::encode(bytes.get(..n).unwrap_or(&bytes))
    }

    /// A number below `n` (n > 0), without modulo bias worth naming (64 random bits).
    pub fn below(&mut self, n: u64) -> u64 {
        let bytes = self.bytes();
        let mut word = [0u8; 8];
        word.copy_from_slice(&bytes[..8]);
        u64::from_be_bytes(word) % n.max(1)
    }
}

/// What a skill says of an input before any work: computed by the labor room, outside the loop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanFacts {
    /// Billable units.
    pub units: u32,
    /// Most bytes of output and unit results together.
    pub output_bytes_max: u64,
    /// The model that whoever works on it must have, as an offer names it.
    #[serde(default)]
    pub model: Option<String>,
}

/// A refusal with a stable code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Stable code, for example `key_reused`.
    pub code: String,
    /// For a person: what happened and what to do next.
    pub message: String,
    /// When another try may succeed, Unix milliseconds, if that is known.
    #[serde(default)]
    pub retry_at_ms: Option<Ms>,
}

impl Refused {
    /// A refusal with this code and text.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            retry_at_ms: None,
        }
    }

    /// The same with the time of another try.
    pub fn retry_at(self, retry_at_ms: Option<Ms>) -> Self {
        Self {
            retry_at_ms,
            ..self
        }
    }
}

/// `legion ask`.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// Skill id.
    pub skill: String,
    /// Complete input (seeds filled in).
    pub input: Value,
    /// What the skill says of it; none if this node doesn't know the skill (then the executor counts).
    pub plan: Option<PlanFacts>,
    /// Where it goes.
    pub route: Route,
    /// Most to pay, milli-credits; the configured default if none.
    pub max_price_mc: Option<u64>,
    /// Milliseconds until the result must be there.
    pub deadline_ms: u64,
    /// Idempotency key.
    pub key: Option<String>,
    /// Fingerprint of skill and the input as the caller gave it, hex.
    pub fingerprint: String,
    /// Ahead of the owner's other jobs.
    pub critical: bool,
}

/// A verified foreign message, with what was computed about it outside the loop.
#[derive(Debug, Clone, PartialEq)]
pub struct Incoming {
    /// Author of the rumor.
    pub from: Npub,
    /// What it says. Signatures of entry and proof were verified.
    pub body: Body,
    /// The pool it came through, or none for a direct message.
    pub pool: Option<String>,
    /// For awards: what our skill says of the input, or its refusal. For offers: why this machine lacks what they need, if it does.
    pub plan: Option<Result<PlanFacts, Refused>>,
    /// The author's keys, if the message carried a binding that verified.
    pub keys: Option<BoundKeys>,
}

/// A peer as its own contact shows it, brought by the owner and not by a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Introduction {
    /// Whom.
    pub npub: Npub,
    /// Its name.
    pub lct: String,
    /// Where it reads.
    pub relays: Vec<String>,
    /// Its keys: the binding verified.
    pub keys: BoundKeys,
    /// The binding itself.
    pub binding: Binding,
}

/// How the owner wants a pause to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseMode {
    /// At the next unit boundary.
    Now,
    /// After the next checkpoint, so that no unit is computed twice.
    AfterCheckpoint,
}

/// A part of a job that its skill wants done by somebody else.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// Which of the job's wishes, from 1.
    pub call: u32,
    /// Skill.
    pub skill: String,
    /// By whom; any member of the first pool if it does not matter.
    pub peer: Option<Npub>,
    /// The complete input, with what the skill says of it if it is known here; or why it cannot be asked for.
    pub input: Result<(Value, Option<PlanFacts>), Refused>,
}

/// What the worker says of a lease.
#[derive(Debug, Clone, PartialEq)]
pub enum LaborNews {
    /// Units done so far.
    Progress {
        /// Units finished.
        units_done: u32,
    },
    /// A checkpoint to keep.
    Checkpoint {
        /// Units in it.
        units_done: u32,
        /// Opaque bytes of the skill.
        bytes: Vec<u8>,
    },
    /// All units are done and put together.
    Done {
        /// The skill's output.
        output: Value,
        /// SHA-256 of its canonical JSON, hex.
        output_hash: String,
        /// Unit results in unit order, concatenated.
        units: Vec<u8>,
        /// Merkle root, hex.
        root: String,
        /// Units executed by this run.
        executed: u32,
        /// Units taken from a checkpoint.
        resumed_from: u32,
        /// Numeric profile of the worker.
        profile: String,
    },
    /// Stopped at a unit boundary as asked.
    Stopped {
        /// Units in the checkpoint.
        units_done: u32,
        /// Opaque bytes of the skill.
        bytes: Vec<u8>,
        /// Units executed by this run.
        executed: u32,
    },
    /// The skill wants a part of the job done by somebody else: the run has ended, and goes on when the answer is here.
    Delegated {
        /// What it asks for.
        wish: Box<Wish>,
        /// Units in the checkpoint.
        units_done: u32,
        /// Its state, opaque.
        bytes: Vec<u8>,
        /// Units executed by this run.
        executed: u32,
    },
    /// The skill refused or failed; another try would not help.
    Failed {
        /// Stable code.
        code: String,
        /// For a person.
        message: String,
    },
    /// The worker process is gone; another try may help.
    Lost {
        /// Stable code: `worker_exited worker_hung worker_garbage worker_memory`.
        code: String,
    },
}

/// What the requester's recomputation found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Which method was used: `none schema sampled full`.
    pub assurance: String,
    /// Whether the input commitment in the proof is ours.
    pub input: bool,
    /// Whether output hash, unit results, root and aggregate agree.
    pub output: bool,
    /// Whether the output has the skill's shape; none if the skill is unknown here.
    pub schema: Option<bool>,
    /// Units recomputed.
    pub units_checked: u32,
    /// The first thing that was wrong.
    pub fault: Option<Evidence>,
}

/// Everything that can happen to a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The node has started: every lease died with it. No timer is judged until [`Input::CaughtUp`].
    Started,
    /// The node has woken, reconnected, or its clock has jumped: no timer is judged until [`Input::CaughtUp`].
    Draining,
    /// The inboxes of every reachable relay were read to their end; `online` is false if there is no reachable relay.
    CaughtUp {
        /// Whether any inbox relay is connected.
        online: bool,
    },
    /// Live offers are to be announced once more, in new wraps.
    Announce,
    /// Time has passed.
    Tick,
    /// The owner asks for work.
    Ask(Box<Ask>),
    /// The owner cancels a task.
    Cancel {
        /// Task id.
        task: TaskId,
    },
    /// The owner has joined or left a pool: these are all of them now.
    Pools(Vec<String>),
    /// A skill that was not ready at the start is now.
    Offer(SkillFacts),
    /// What confines the program of a skill of the owner's; told before anything is taken for it.
    Confined {
        /// Skill id.
        skill: String,
        /// How far.
        level: SandboxLevel,
    },
    /// The owner has a peer's contact.
    Introduce(Box<Introduction>),
    /// The owner admits a peer, changes its tier or clears a dispute.
    Trust {
        /// Whom.
        npub: Npub,
        /// Tier.
        tier: Tier,
        /// Credit granted, milli-credits; the tier's default if none.
        limit_mc: Option<u64>,
    },
    /// The owner removes a peer.
    Forget {
        /// Whom.
        npub: Npub,
    },
    /// The owner takes the hardware.
    Pause {
        /// How.
        mode: PauseMode,
        /// For how long, milliseconds; until `resume` if none.
        for_ms: Option<u64>,
    },
    /// The owner gives it back.
    Resume,
    /// The node is going down: leases stop at the next unit boundary.
    Shutdown,
    /// A verified message.
    Message(Box<Incoming>),
    /// News of a lease.
    Labor {
        /// Which engagement.
        key: EngagementKey,
        /// What.
        news: LaborNews,
    },
    /// A result was checked.
    Checked {
        /// Task id.
        task: TaskId,
        /// Award whose result was checked.
        award_no: u32,
        /// What was found.
        findings: Findings,
    },
    /// A payload of a job of ours moves: its input to the executor, or its result to us.
    Moving {
        /// Task id.
        task: TaskId,
        /// Award.
        award_no: u32,
        /// Bytes that have arrived.
        done_bytes: u64,
        /// Bytes in all.
        bytes: u64,
        /// Whether it is the result.
        result: bool,
    },
    /// The owner takes a restored store as it is: a node without its missing peers, or this peer's account as it stands.
    AcceptLosses {
        /// Whose; of all that have not answered, the work with the others begins, if none.
        npub: Option<Npub>,
    },
    /// This node is to be heard by a copy of it.
    SayHello,
    /// What was signed with a peer that asked for it, as the store has it.
    LogPage {
        /// Who asked.
        to: Npub,
        /// The page.
        page: Box<LogEntries>,
    },
    /// A stored result that is to be delivered once more.
    ResultAgain {
        /// Which engagement.
        key: EngagementKey,
        /// What we signed of it then.
        entry: Box<Entry>,
        /// The skill's output.
        output: Value,
        /// Unit results, concatenated.
        units: Vec<u8>,
    },
    /// The evidence of a refusal was recomputed.
    EvidenceChecked {
        /// Which engagement.
        key: EngagementKey,
        /// Whether it holds against our own unit results.
        holds: bool,
    },
}

/// To whom a message goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Addressee {
    /// A node, at its identity key.
    Peer(Npub),
    /// A node, at the one-time key of one of its offers.
    Reply(String),
    /// All members of a pool.
    Pool(String),
}

/// A message to be sealed and delivered after the step is durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Send {
    /// To whom.
    pub to: Addressee,
    /// What. Entries and proofs in it are signed after the commit.
    pub body: Body,
    /// Never stored by relays, never acknowledged.
    pub ephemeral: bool,
    /// Relays where the recipient reads, beside our own.
    pub relays: Vec<String>,
    /// When delivery is given up, Unix milliseconds.
    pub expires_ms: Ms,
}

/// A row to write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Row {
    /// A job of ours.
    Job(Box<Job>),
    /// Work that we do for somebody.
    Engagement(Box<Engagement>),
    /// A peer.
    Peer(Box<Peer>),
    /// An account.
    Account(Account),
    /// An immutable movement of credit.
    Transfer(Transfer),
    /// A signed entry of a task's history (ours are unsigned here: the hash leaves the signature out).
    Entry(Box<Entry>),
    /// An idempotency key.
    Key {
        /// The caller's key.
        key: String,
        /// The task that it made.
        task: TaskId,
        /// What was asked.
        fingerprint: String,
        /// When it is forgotten.
        expires_ms: Ms,
    },
    /// Bytes that belong to a task: `input`, `result`, `units`.
    Payload {
        /// Task id or engagement key.
        owner: String,
        /// Which.
        name: String,
        /// The bytes.
        #[serde(with = "hex::serde")]
        bytes: Vec<u8>,
    },
    /// A checkpoint of the work for (requester, task).
    Checkpoint {
        /// `<requester>/<task>`.
        owner: String,
        /// Units in it.
        units_done: u32,
        /// The bytes.
        #[serde(with = "hex::serde")]
        bytes: Vec<u8>,
    },
    /// What we remember of a foreign task beyond one award.
    Mark(super::mark::Mark),
    /// The owner's switches.
    Owner(super::arbiter::OwnerState),
    /// What a restored node still has to learn.
    Recovery(Box<super::recovering::Recovery>),
    /// What remains of a restoration for good.
    Lineage(super::recovering::Lineage),
    /// Which starts of this node there were, and which it has heard of.
    Instances(super::instances::Instances),
}

/// What a step changes in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Write a row.
    Put(Row),
    /// Remove a peer.
    DropPeer(Npub),
    /// Forget a [`Row::Mark`], and with it the checkpoint of that owner.
    DropMark(String),
    /// Remove the checkpoint and the input of work that has ended: `<requester>/<task>` and the engagement key.
    DropWork {
        /// `<requester>/<task>`.
        owner: String,
        /// Engagement key.
        key: EngagementKey,
    },
    /// Copy the result of a task of ours to work of ours that it was a part of, for as long as the work is open.
    CopyAnswer {
        /// Task id.
        task: TaskId,
        /// Engagement key.
        key: EngagementKey,
        /// Number of the call.
        call: u32,
    },
    /// Append to the journal.
    Journal {
        /// Kind, for example `lease_granted`.
        kind: String,
        /// Task id.
        task: Option<TaskId>,
        /// Facts.
        body: Value,
    },
}

/// What happens after the commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Sent: an outbox row (or, if ephemeral, a try).
    Send(Box<Send>),
    /// Derived: start or resume this engagement in the worker.
    Start(EngagementKey),
    /// Derived: stop it at a unit boundary, kill after the deadline.
    SoftStop {
        /// Which.
        key: EngagementKey,
        /// Wait for the next checkpoint first.
        after_checkpoint: bool,
    },
    /// Derived: check this result, recomputing these units.
    Check {
        /// Task id.
        task: TaskId,
        /// Award.
        award_no: u32,
        /// Unit indexes, ascending.
        sample: Vec<u32>,
    },
    /// Derived: recompute a unit to judge the evidence of a refusal.
    CheckEvidence {
        /// Which engagement.
        key: EngagementKey,
        /// The evidence.
        evidence: Evidence,
    },
    /// Volatile: a peer asks what was signed between us ([`Input::LogPage`]).
    LogPage {
        /// Who asks.
        to: Npub,
        /// What.
        since: Box<LogSince>,
    },
    /// Volatile: a result is to be delivered once more ([`Input::ResultAgain`]).
    ResultAgain(EngagementKey),
    /// Derived: messages that were held back because of a restoration may leave, where they may.
    Released,
    /// Volatile: what was answered before this step to the requester's offer of this task need not be delivered any more. Its
    /// reply key may be closed by now, and nobody there to acknowledge it.
    Moot {
        /// Whose offer.
        requester: Npub,
        /// Task id.
        task: TaskId,
    },
    /// Volatile: this task's view has changed.
    Changed(TaskId),
    /// Volatile: the answer to `ask`.
    Asked(Result<TaskId, Refused>),
    /// Volatile: the answer to any other owner's command.
    Done(Result<(), Refused>),
    /// Volatile: a message was refused; counted by code.
    Dropped {
        /// Stable code.
        code: String,
        /// From whom.
        from: Npub,
    },
    /// Derived: our ad has changed.
    Readvertise,
    /// Derived: read every inbox to its end and say so ([`Input::CaughtUp`]).
    Drain,
    /// Derived: the set of one-time reply keys has changed.
    Inboxes,
}

/// The outcome of one [`super::Node::handle`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// To be made durable in one transaction.
    pub changes: Vec<Change>,
    /// To be done after that.
    pub effects: Vec<Effect>,
}
