//! What the loop takes and what it gives: mails in, orders out.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::delivery::Tell;
use super::rows::Parcel;
use super::sealer::Early;
use crate::domain::Node;
use crate::domain::step::{Incoming, Input, LaborNews, Refused};
use crate::labor::frames;
use crate::store::Store;
use crate::wire::message::Body;
use crate::wire::proof::Evidence;
use crate::wire::verify::Inbox;

/// What a verified rumor brought.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Author, hex and raw.
    pub from: String,
    /// Raw author key.
    pub author: [u8; 32],
    /// Raw rumor id.
    pub rumor: [u8; 32],
    /// Raw wrap id.
    pub wrap: [u8; 32],
    /// Until when the rumor could come again, Unix seconds.
    pub expires_s: u64,
    /// Stored wraps are acknowledged and remembered; ephemeral ones are neither.
    pub stored: bool,
    /// Which of our keys it came to. What comes to a pool's key is read by all members and acknowledged by none.
    pub inbox: Inbox,
    /// The messages in it that could be read.
    pub messages: Vec<Incoming>,
    /// Codes of those that could not.
    pub refused: Vec<&'static str>,
}

/// Answer to an owner's command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The task made by `ask`.
    Task(String),
    /// Done.
    Done,
}

/// What a [`Mail::Query`] may look at.
pub type Look = Box<dyn FnOnce(&Node, &Store) + std::marker::Send>;

/// What the loop takes.
pub enum Mail {
    /// A command of the owner, answered after the commit.
    Command(Input, oneshot::Sender<Result<Answer, Refused>>),
    /// A fact without an answer: labor, timers, carriers.
    Fact(Input),
    /// A verified rumor.
    Arrival(Box<Arrival>),
    /// A message that waited for its payload, whole, or refused with the reason in place of its plan; and its transfer, which
    /// ends with the commit that takes the message.
    Whole(String, Box<Incoming>),
    /// Outbox rows that were acknowledged or have expired.
    Delivered(Vec<u64>),
    /// Look at the state; changes nothing.
    Query(Look),
    /// End the loop; what waits before it is handled.
    Stop,
}

impl Arrival {
    /// Whether other members of a pool read it too.
    pub fn is_shared(&self) -> bool {
        matches!(self.inbox, Inbox::Pool { .. })
    }
}

impl Mail {
    /// What it brings, for crash points: message types, labor news, commands.
    pub fn names(&self) -> Vec<&'static str> {
        match self {
            Self::Arrival(arrival) => arrival
                .messages
                .iter()
                .map(|m| message_name(&m.body))
                .collect(),
            Self::Command(Input::Ask(_), _) => vec!["ask"],
            Self::Fact(Input::Labor { news, .. }) => vec![match news {
                LaborNews::Checkpoint { .. } => "labor_checkpoint",
                LaborNews::Done { .. } => "labor_done",
                LaborNews::Delegated { .. } => "labor_delegated",
                _ => "labor",
            }],
            Self::Fact(Input::Checked { .. }) => vec!["checked"],
            _ => Vec::new(),
        }
    }
}

fn message_name(body: &Body) -> &'static str {
    match body {
        Body::Ad(_) => "ad",
        Body::Offer(_) => "offer",
        Body::Withdraw(_) => "withdraw",
        Body::Bid(_) => "bid",
        Body::Decline(_) => "decline",
        Body::Award(_) | Body::Request(_) => "award",
        Body::Accept(_) => "accept",
        Body::Update(_) => "update",
        Body::Cancel(_) => "cancel",
        Body::Receipt(_) => "receipt",
        Body::Refusal(_) => "refusal",
        Body::Ack(_) => "ack",
        Body::Transfer(_) => "transfer",
        Body::Since(_) | Body::Entries(_) => "log",
        Body::Hello(_) => "hello",
        Body::Outgrown(_) => "outgrown",
    }
}

/// Work for the room's other tasks, sent after the commit.
#[derive(Debug)]
pub enum Order {
    /// Deliver an outbox row; it may have been sealed already.
    Deliver(u64, Parcel, Option<Early>),
    /// Seal and try once: ephemeral messages, and notices to pools.
    Try(Parcel),
    /// Replies to this offer need not be delivered any more.
    Moot {
        /// Whose offer.
        requester: String,
        /// Task id.
        task: String,
    },
    /// Start an engagement in the worker.
    Start {
        /// Engagement key.
        key: String,
        /// Skill.
        skill: String,
        /// Input.
        input: Value,
        /// Commitment to the input, hex.
        commitment: String,
        /// Newest checkpoint.
        checkpoint: Option<Vec<u8>>,
        /// What came back for the parts that it has delegated.
        answers: Vec<frames::Answer>,
        /// Asked by somebody else.
        foreign: bool,
    },
    /// Stop it at a unit boundary.
    SoftStop {
        /// Engagement key.
        key: String,
        /// Wait for the next checkpoint.
        after_checkpoint: bool,
    },
    /// Kill every worker and forget its jobs: the state that they belong to is gone.
    Abandon,
    /// Check a result.
    Check(Box<CheckOrder>),
    /// Check the evidence of a refusal.
    Evidence {
        /// Engagement key.
        key: String,
        /// Skill.
        skill: String,
        /// Input.
        input: Value,
        /// Our unit results, concatenated.
        units: Vec<u8>,
        /// Number of units.
        unit_count: u32,
        /// The evidence.
        evidence: Evidence,
        /// Profile in our proof.
        profile: String,
    },
    /// Our ad has changed.
    Readvertise,
    /// Read the inboxes to their end.
    Drain,
    /// These stored wraps were read for good: relays may forget them. Which of our keys, and the wrap's id.
    Sweep(Vec<(Inbox, [u8; 32])>),
    /// One-time reply keys wanted, with the second their task was asked.
    Inboxes(BTreeMap<String, u64>),
}

/// A result to be checked.
#[derive(Debug, Clone)]
pub struct CheckOrder {
    /// Task id.
    pub task: String,
    /// Award.
    pub award_no: u32,
    /// Skill.
    pub skill: String,
    /// Input.
    pub input: Value,
    /// Commitment of the job.
    pub commitment: String,
    /// Output as received.
    pub output: Value,
    /// All unit results, base64, as received.
    pub units: String,
    /// The proof.
    pub proof: crate::wire::proof::Proof,
    /// Units to recompute.
    pub sample: Vec<u32>,
}

/// Counters of the loop, for `status`.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Refused or dropped messages by code.
    pub dropped: BTreeMap<String, u64>,
    /// Commits.
    pub commits: u64,
    /// Mails handled.
    pub mails: u64,
}

/// Where the loop sends its orders.
#[derive(Clone)]
pub struct Outlets {
    /// To delivery.
    pub delivery: mpsc::UnboundedSender<Tell>,
    /// To labor.
    pub labor: mpsc::UnboundedSender<Order>,
    /// To the presence task (ads, inboxes, drains).
    pub presence: mpsc::UnboundedSender<Order>,
    /// To the transfers.
    pub(in crate::node) transfers: mpsc::UnboundedSender<super::transfer::Tell>,
    /// Tasks whose view has changed.
    pub changed: broadcast::Sender<String>,
    /// Counters.
    pub counters: Arc<std::sync::Mutex<Counters>>,
}
