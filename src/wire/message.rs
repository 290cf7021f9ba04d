//! The JSON-RPC 2.0 objects that two nodes exchange, and how foreign text becomes one of them.
//!
//! A rumor's content is one JSON-RPC object or a JSON-RPC batch (an array) of them: messages to one recipient that were
//! decided in one durable step share one envelope, because sealing is the throughput ceiling (protocol, section 6).
//! Every object names its audience in `params.to` and its version in `params.v`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::entry::Entry;
use super::log::{Hello, LogEntries, LogSince, Outgrown};
use super::market::{Accept, Ad, Award, Bid, Decline, Offer, Withdraw};
use super::proof::{Evidence, Proof};
use super::transfer::{Detached, Transfer};

/// The protocol version that this node speaks.
pub const VERSION: u64 = 1;

/// Most messages that one envelope may carry.
pub const MAX_BATCH: usize = 256;

/// URI of the extension under which A2A metadata carries what A2A itself cannot say.
pub const EXTENSION: &str = "https://legion.invalid/ext/labor/v1";

/// Why the content of a verified rumor is not a message for us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The content is not JSON.
    #[error("the content is not JSON: {0}")]
    Malformed(String),
    /// The JSON is not a JSON-RPC 2.0 request, notification or batch.
    #[error("not a JSON-RPC 2.0 object: {0}")]
    NotJsonRpc(&'static str),
    /// No handler has this method.
    #[error("unknown method: {0}")]
    UnknownMethod(String),
    /// `params.to` names somebody else.
    #[error("addressed to another audience")]
    Audience,
    /// `params.v` is a version that this node does not speak.
    #[error("protocol version {0} is not spoken here")]
    Version(String),
    /// The parameters do not have the method's shape.
    #[error("invalid parameters: {0}")]
    Params(String),
    /// A batch of more than [`MAX_BATCH`] messages, or an empty one.
    #[error("a batch holds 1 to {MAX_BATCH} messages")]
    Batch,
    /// A field is larger, longer or further away than any honest one ([`super::bounds`]).
    #[error("the field `{0}` is out of bounds")]
    Bounds(&'static str),
}

impl MessageError {
    /// The stable code under which the refusal is counted.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "json_malformed",
            Self::NotJsonRpc(_) => "jsonrpc_invalid",
            Self::UnknownMethod(_) => "method_unknown",
            Self::Audience => "audience",
            Self::Version(_) => "version_unsupported",
            Self::Params(_) => "params_invalid",
            Self::Batch => "batch_size",
            Self::Bounds(_) => "bounds_exceeded",
        }
    }
}

/// What one message says. The JSON-RPC method names are those of the protocol's section 1. Its own serde form names the
/// variant (several hold the same fields) and is for the store; on the wire stands [`Message::to_value`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// `pool/ad`: what a node offers, at which price, until when.
    Ad(Box<Ad>),
    /// `pool/offer`: a job that seeks an executor.
    Offer(Box<Offer>),
    /// `pool/withdraw`: an offer or an award that no longer stands.
    Withdraw(Withdraw),
    /// `pool/bid`: a total price for an offer.
    Bid(Box<Bid>),
    /// `pool/decline`: no bid for this offer, or no acceptance of this award, and why.
    Decline(Box<Decline>),
    /// `pool/award`: the job with its input, to the winner alone.
    Award(Box<Award>),
    /// `message/send`: a directed job; an award without an auction, in A2A v0.3 shape on the wire.
    Request(Box<Award>),
    /// `pool/accept`: the executor's signed acceptance of an award.
    Accept(Box<Accept>),
    /// `tasks/update`: status, result or failure, pushed to the requester.
    Update(Box<Update>),
    /// `tasks/cancel`: the requester wants no more work on this task.
    Cancel(Box<Cancel>),
    /// `settle/receipt`: the requester has verified and pays.
    Receipt(Box<Receipt>),
    /// `settle/refusal`: the requester does not pay, with evidence.
    Refusal(Box<Refusal>),
    /// `ack`: rumors that are durable at the receiver.
    Ack(Ack),
    /// `transfer/*`: a payload that was too large for its message.
    Transfer(Box<Transfer>),
    /// `log/since`: what was signed between the two since a time?
    Since(Box<LogSince>),
    /// `log/entries`: a page of the answer.
    Entries(Box<LogEntries>),
    /// `instance/hello`: from a node to itself.
    Hello(Hello),
    /// `instance/outgrown`: the reader's keys are of an epoch that is over.
    Outgrown(Box<Outgrown>),
}

/// `ack`: rumor ids (hex) whose effects are durable at the receiver. At most 64 at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// Rumor ids, lower-case hex.
    pub rumors: Vec<String>,
}

/// `tasks/update`: a callback from executor to requester.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Task id, 32 hex digits.
    pub task: String,
    /// Which award of the task this is about.
    pub award_no: u32,
    /// What is said of it.
    pub news: News,
}

/// The kinds of [`Update`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// Keep-alive of the lease: units done so far. Ephemeral.
    Working {
        /// Units finished.
        units_done: u32,
        /// Units in all.
        units_total: u32,
        /// What the work waits for, if it does: `hop` for a part that was delegated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        waiting: Option<String>,
    },
    /// The owner has taken the hardware back for now.
    Paused {
        /// Stable code, for example `owner`.
        reason: String,
        /// When it will be tried again, Unix milliseconds, if known.
        retry_at_ms: Option<u64>,
    },
    /// The work is done.
    Completed(Box<WorkResult>),
    /// The work failed for good at this executor.
    Failed {
        /// Stable code.
        code: String,
        /// For a person.
        message: String,
        /// Signed history entry ([`super::entry::Act::Failed`]).
        entry: Entry,
    },
    /// The executor has stopped after a cancel.
    Canceled {
        /// Units that were finished before.
        useful_units: u32,
        /// Signed history entry ([`super::entry::Act::Stopped`]).
        entry: Entry,
    },
}

/// A finished job: output, every unit's result, the signed proof.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkResult {
    /// The skill's output.
    pub output: Value,
    /// All unit results in unit order, concatenated, base64 (standard, padded).
    pub units: String,
    /// Stands for an output and unit results that travel by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached: Option<Detached>,
    /// The executor's proof.
    pub proof: Proof,
    /// Signed history entry ([`super::entry::Act::Completed`]).
    pub entry: Entry,
}

/// `tasks/cancel`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cancel {
    /// Task id.
    pub task: String,
    /// Signed history entry ([`super::entry::Act::Canceled`]).
    pub entry: Entry,
}

/// `settle/receipt`: the entry is the receipt; its signature is what the executor keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Task id.
    pub task: String,
    /// Which award is paid.
    pub award_no: u32,
    /// Signed history entry ([`super::entry::Act::Paid`]).
    pub entry: Entry,
}

/// `settle/refusal`: why a result is not paid, checkable offline by the executor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// Task id.
    pub task: String,
    /// Which award is refused.
    pub award_no: u32,
    /// What was found.
    pub evidence: Evidence,
    /// Signed history entry ([`super::entry::Act::Refused`]).
    pub entry: Entry,
}

/// One message with its audience.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Recipient key (hex) or `pool:<name>`.
    pub to: String,
    /// What it says.
    pub body: Body,
}

impl Body {
    /// The JSON-RPC method name.
    pub fn method(&self) -> &'static str {
        match self {
            Self::Ad(_) => "pool/ad",
            Self::Offer(_) => "pool/offer",
            Self::Withdraw(_) => "pool/withdraw",
            Self::Bid(_) => "pool/bid",
            Self::Decline(_) => "pool/decline",
            Self::Award(_) => "pool/award",
            Self::Request(_) => "message/send",
            Self::Accept(_) => "pool/accept",
            Self::Update(_) => "tasks/update",
            Self::Cancel(_) => "tasks/cancel",
            Self::Receipt(_) => "settle/receipt",
            Self::Refusal(_) => "settle/refusal",
            Self::Ack(_) => "ack",
            Self::Transfer(transfer) => transfer.method(),
            Self::Since(_) => "log/since",
            Self::Entries(_) => "log/entries",
            Self::Hello(_) => "instance/hello",
            Self::Outgrown(_) => "instance/outgrown",
        }
    }

    /// Whether it is about what was signed, or by which keys, and not about work: heard and sent also while a node is being
    /// restored.
    pub fn is_log(&self) -> bool {
        matches!(
            self,
            Self::Since(_) | Self::Entries(_) | Self::Hello(_) | Self::Outgrown(_)
        )
    }

    /// The signed history entry that the message carries, if its kind has one.
    pub fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Award(a) | Self::Request(a) => Some(&a.entry),
            Self::Accept(a) => Some(&a.entry),
            Self::Decline(d) => d.entry.as_ref(),
            Self::Update(u) => match &u.news {
                News::Completed(r) => Some(&r.entry),
                News::Failed { entry, .. } | News::Canceled { entry, .. } => Some(entry),
                News::Working { .. } | News::Paused { .. } => None,
            },
            Self::Cancel(c) => Some(&c.entry),
            Self::Receipt(r) => Some(&r.entry),
            Self::Refusal(r) => Some(&r.entry),
            Self::Ad(_)
            | Self::Offer(_)
            | Self::Withdraw(_)
            | Self::Bid(_)
            | Self::Ack(_)
            | Self::Transfer(_)
            | Self::Since(_)
            | Self::Entries(_)
            | Self::Hello(_)
            | Self::Outgrown(_) => None,
        }
    }

    /// The same, to be signed in place after the step that made it is durable.
    pub fn entry_mut(&mut self) -> Option<&mut Entry> {
        match self {
            Self::Award(a) | Self::Request(a) => Some(&mut a.entry),
            Self::Accept(a) => Some(&mut a.entry),
            Self::Decline(d) => d.entry.as_mut(),
            Self::Update(u) => match &mut u.news {
                News::Completed(r) => Some(&mut r.entry),
                News::Failed { entry, .. } | News::Canceled { entry, .. } => Some(entry),
                News::Working { .. } | News::Paused { .. } => None,
            },
            Self::Cancel(c) => Some(&mut c.entry),
            Self::Receipt(r) => Some(&mut r.entry),
            Self::Refusal(r) => Some(&mut r.entry),
            Self::Ad(_)
            | Self::Offer(_)
            | Self::Withdraw(_)
            | Self::Bid(_)
            | Self::Ack(_)
            | Self::Transfer(_)
            | Self::Since(_)
            | Self::Entries(_)
            | Self::Hello(_)
            | Self::Outgrown(_) => None,
        }
    }

    fn from_params(method: &str, params: Value) -> Result<Self, MessageError> {
        Ok(match method {
            "pool/ad" => Self::Ad(shape(params)?),
            "pool/offer" => Self::Offer(shape(params)?),
            "pool/withdraw" => Self::Withdraw(shape(params)?),
            "pool/bid" => Self::Bid(shape(params)?),
            "pool/decline" => Self::Decline(shape(params)?),
            "pool/award" => Self::Award(shape(params)?),
            "message/send" | "SendMessage" => Self::Request(a2a_to_award(params)?),
            "pool/accept" => Self::Accept(shape(params)?),
            "tasks/update" => Self::Update(shape(params)?),
            "tasks/cancel" | "CancelTask" => Self::Cancel(shape(params)?),
            "settle/receipt" => Self::Receipt(shape(params)?),
            "settle/refusal" => Self::Refusal(shape(params)?),
            "ack" => {
                let ack: Ack = shape(params)?;
                if ack.rumors.len() > 64 {
                    return Err(MessageError::Params(
                        "more than 64 acknowledged rumors".into(),
                    ));
                }
                Self::Ack(ack)
            }
            "log/since" => Self::Since(shape(params)?),
            "log/entries" => Self::Entries(shape(params)?),
            "instance/hello" => Self::Hello(shape(params)?),
            "instance/outgrown" => Self::Outgrown(shape(params)?),
            "transfer/chunk" => Self::Transfer(Box::new(Transfer::Chunk(shape(params)?))),
            "transfer/have" => Self::Transfer(Box::new(Transfer::Have(shape(params)?))),
            "transfer/ask" => Self::Transfer(Box::new(Transfer::Ask(shape(params)?))),
            "transfer/refused" => Self::Transfer(Box::new(Transfer::Refused(shape(params)?))),
            other => {
                return Err(MessageError::UnknownMethod(
                    other.chars().take(64).collect(),
                ));
            }
        })
    }
}

impl Message {
    /// The JSON-RPC object of this message. Infallible for every value that this node builds.
    pub fn to_value(&self) -> Result<Value, serde_json::Error> {
        let mut params = match &self.body {
            Body::Request(award) => award_to_a2a(award)?,
            // The method names the variant.
            Body::Transfer(transfer) => untagged(serde_json::to_value(transfer)?),
            other => untagged(serde_json::to_value(other)?),
        };
        if let Some(map) = params.as_object_mut() {
            map.insert("to".into(), Value::String(self.to.clone()));
            map.insert("v".into(), Value::from(VERSION));
        }
        let mut object = Map::new();
        object.insert("jsonrpc".into(), Value::String("2.0".into()));
        object.insert("method".into(), Value::String(self.body.method().into()));
        object.insert("params".into(), params);
        Ok(Value::Object(object))
    }

    /// Reads a rumor's content: one object or a batch. `audience` says whether a `to` is ours.
    ///
    /// # Errors
    /// Per message, so that one bad message of a batch does not silence the others.
    pub fn parse(
        content: &str,
        audience: impl Fn(&str) -> bool,
    ) -> Result<Vec<Result<Self, MessageError>>, MessageError> {
        let value: Value =
            serde_json::from_str(content).map_err(|e| MessageError::Malformed(e.to_string()))?;
        match value {
            Value::Array(items) if items.is_empty() || items.len() > MAX_BATCH => {
                Err(MessageError::Batch)
            }
            Value::Array(items) => Ok(items
                .into_iter()
                .map(|item| Self::from_value(item, &audience))
                .collect()),
            object => Ok(vec![Self::from_value(object, &audience)]),
        }
    }

    fn from_value(value: Value, audience: impl Fn(&str) -> bool) -> Result<Self, MessageError> {
        let Value::Object(mut object) = value else {
            return Err(MessageError::NotJsonRpc("not an object"));
        };
        if object.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
            return Err(MessageError::NotJsonRpc("`jsonrpc` is not \"2.0\""));
        }
        let Some(Value::String(method)) = object.remove("method") else {
            return Err(MessageError::NotJsonRpc("no `method`"));
        };
        let Some(Value::Object(mut params)) = object.remove("params") else {
            return Err(MessageError::NotJsonRpc("`params` is not an object"));
        };
        match params.remove("v") {
            Some(v) if v.as_u64() == Some(VERSION) => {}
            Some(other) => {
                return Err(MessageError::Version(
                    other.to_string().chars().take(20).collect(),
                ));
            }
            None => return Err(MessageError::Version("none".into())),
        }
        let Some(Value::String(to)) = params.remove("to") else {
            return Err(MessageError::Audience);
        };
        if !audience(&to) {
            return Err(MessageError::Audience);
        }
        let body = Body::from_params(&method, Value::Object(params))?;
        Ok(Self { to, body })
    }
}

fn untagged(value: Value) -> Value {
    match value {
        Value::Object(tagged) => tagged.into_iter().next().map_or(Value::Null, |(_, v)| v),
        other => other,
    }
}

fn shape<T: DeserializeOwned>(params: Value) -> Result<T, MessageError> {
    serde_json::from_value(params).map_err(|e| MessageError::Params(e.to_string()))
}

/// A directed request is A2A `message/send` (v0.3 shape): the input is the data part, the award stands in the
/// extension's metadata.
fn award_to_a2a(award: &Award) -> Result<Value, serde_json::Error> {
    let mut terms = serde_json::to_value(award)?;
    let input = terms
        .as_object_mut()
        .and_then(|m| m.remove("input"))
        .unwrap_or(Value::Null);
    Ok(serde_json::json!({
        "message": {
            "kind": "message",
            "role": "user",
            "messageId": format!("{}-{}", award.task, award.award_no),
            "taskId": award.task,
            "contextId": award.context,
            "parts": [{"kind": "data", "data": input}],
            "extensions": [EXTENSION],
            "metadata": {EXTENSION: terms},
        }
    }))
}

fn a2a_to_award(mut params: Value) -> Result<Box<Award>, MessageError> {
    let bad = |what: &str| MessageError::Params(format!("message/send: {what}"));
    let message = params.get_mut("message").ok_or_else(|| bad("no message"))?;
    let input = message
        .pointer_mut("/parts/0/data")
        .map(Value::take)
        .ok_or_else(|| bad("the first part is not a data part"))?;
    let mut terms = message
        .get_mut("metadata")
        .and_then(|m| m.get_mut(EXTENSION))
        .map(Value::take)
        .ok_or_else(|| bad("no award in the extension's metadata"))?;
    terms
        .as_object_mut()
        .ok_or_else(|| bad("the award is not an object"))?
        .insert("input".into(), input);
    shape(terms)
}
