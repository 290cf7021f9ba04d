//! Payloads that do not fit into one envelope: how a message names the part that was taken out of it, and what two nodes say
//! while that part moves. Plain data; how a payload is sealed is `identity::blob`'s, who may send one is the node's.
//!
//! The message itself goes as ever, with a [`Detached`] in place of its large members. The receiver decides whether it wants
//! them and says so with a one-time key (`transfer/have`); the sender seals once and sends numbered pieces
//! (`transfer/chunk`), as many at a time as the receiver has confirmed; after a silence either side asks.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::message::{Body, News};

/// Most bytes of a message in an envelope, as text in a rumor's JSON: a longer one is detached (a rumor holds 28,672 in all).
pub const INLINE_BYTES: usize = 22_000;
/// Sealed bytes in a chunk: with base64 and two layers of JSON just below the 28,672 bytes of a rumor. A smaller chunk would
/// travel in a wrap of the same size, since NIP-44 pads to steps of 8 KiB up there.
pub const CHUNK_BYTES: usize = 20_480;
/// Most ranges in a [`Have`].
pub const MAX_RANGES: usize = 64;
/// Bytes a second that deadlines allow for: a slower transfer may come too late for an award.
pub const MIN_BYTES_PER_S: u64 = 32 * 1024;
/// Largest payload that any node can agree to move, whatever its owner sets.
pub const MAX_BYTES: u64 = 1 << 30;
/// Digits of a transfer's id: 128 random bits.
const ID_DIGITS: usize = 32;

/// Stands in a message for the members that travel by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detached {
    /// Names the transfer, 32 hex digits chosen by the sender.
    pub id: String,
    /// Size of the members as JSON, in clear.
    pub bytes: u64,
    /// SHA-256 of that JSON, hex.
    pub sha256: String,
}

/// What is said about a transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transfer {
    /// `transfer/chunk`: one numbered piece, in a stored wrap.
    Chunk(Chunk),
    /// `transfer/have`: what has arrived; the first one says that the payload is wanted, and to which key. Ephemeral.
    Have(Have),
    /// `transfer/ask`: what has arrived? Ephemeral.
    Ask(Named),
    /// `transfer/refused`: it is not wanted (any more), or not there (any more). Ephemeral.
    Refused(RefusedTransfer),
}

/// `transfer/chunk`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// Which transfer.
    pub id: String,
    /// Place of the piece, from 0.
    pub index: u32,
    /// The sender's one-time X25519 public key, hex: the same in every chunk.
    pub eph: String,
    /// The piece of the sealed payload, base64 (standard, padded): [`CHUNK_BYTES`] long but for the last.
    pub data: String,
}

/// `transfer/have`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Have {
    /// Which transfer.
    pub id: String,
    /// The receiver's keys to seal to.
    pub keys: SealTo,
    /// This speaks of all pieces before this one ...
    pub upto: u32,
    /// ... which are there but for these: from (inclusive), to (exclusive), ascending, at most [`MAX_RANGES`].
    pub missing: Vec<(u32, u32)>,
}

/// The keys that a payload is sealed to: X25519 public keys, hex. That they are the receiver's, the seal around the message says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealTo {
    /// Made for this transfer, forgotten after it.
    pub once: String,
    /// The receiver's lasting key, as in its binding.
    pub fixed: String,
}

/// `transfer/ask`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Which transfer.
    pub id: String,
}

/// `transfer/refused`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusedTransfer {
    /// Which transfer.
    pub id: String,
    /// Stable code.
    pub code: String,
}

impl Transfer {
    /// The JSON-RPC method name.
    pub fn method(&self) -> &'static str {
        match self {
            Self::Chunk(_) => "transfer/chunk",
            Self::Have(_) => "transfer/have",
            Self::Ask(_) => "transfer/ask",
            Self::Refused(_) => "transfer/refused",
        }
    }

    /// Which transfer it is about.
    pub fn id(&self) -> &str {
        match self {
            Self::Chunk(chunk) => &chunk.id,
            Self::Have(have) => &have.id,
            Self::Ask(named) => &named.id,
            Self::Refused(refused) => &refused.id,
        }
    }

    /// Whether every field is within reason: ids become keys in the store.
    pub fn is_sane(&self) -> bool {
        let fits = match self {
            Self::Chunk(chunk) => {
                is_hex(&chunk.eph, 64) && chunk.data.len() <= CHUNK_BYTES.div_ceil(3) * 4
            }
            Self::Have(have) => {
                is_hex(&have.keys.once, 64)
                    && is_hex(&have.keys.fixed, 64)
                    && have.missing.len() <= MAX_RANGES
            }
            Self::Refused(refused) => refused.code.len() <= 64,
            Self::Ask(_) => true,
        };
        fits && is_hex(self.id(), ID_DIGITS)
    }
}

impl Detached {
    /// Whether every field is within reason.
    pub fn is_sane(&self) -> bool {
        is_hex(&self.id, ID_DIGITS)
            && is_hex(&self.sha256, 64)
            && (1..=MAX_BYTES).contains(&self.bytes)
    }

    /// Pieces that the sealed payload is cut into.
    pub fn chunks(&self) -> u32 {
        let pieces = sealed_bytes(self.bytes).div_ceil(CHUNK_BYTES as u64);
        u32::try_from(pieces).unwrap_or(u32::MAX)
    }

    /// Size of one piece of the sealed payload, bytes; 0 beyond the last.
    pub fn chunk_bytes(&self, index: u32) -> usize {
        let from = u64::from(index) * CHUNK_BYTES as u64;
        let left = sealed_bytes(self.bytes).saturating_sub(from);
        left.min(CHUNK_BYTES as u64) as usize
    }
}

/// Size of a payload once it is sealed: every segment of 64 KiB grows by a tag of 16 bytes.
pub fn sealed_bytes(bytes: u64) -> u64 {
    bytes + bytes.div_ceil(64 * 1024).max(1) * 16
}

/// The time that deadlines allow for this many bytes; none for what travels in the message itself.
pub fn allowance_ms(bytes: u64) -> u64 {
    if bytes <= INLINE_BYTES as u64 {
        return 0;
    }
    bytes.saturating_mul(1000) / MIN_BYTES_PER_S
}

/// The place for a [`Detached`] in a message that may have one.
pub fn slot(body: &mut Body) -> Option<&mut Option<Detached>> {
    match body {
        Body::Award(award) | Body::Request(award) => Some(&mut award.detached),
        Body::Update(update) => match &mut update.news {
            News::Completed(result) => Some(&mut result.detached),
            _ => None,
        },
        _ => None,
    }
}

/// What stands in a message for its large members, if they were taken out.
pub fn detached(body: &Body) -> Option<&Detached> {
    match body {
        Body::Award(award) | Body::Request(award) => award.detached.as_ref(),
        Body::Update(update) => match &update.news {
            News::Completed(result) => result.detached.as_ref(),
            _ => None,
        },
        _ => None,
    }
}

/// Takes the large members out of a message: the JSON object that is to travel by itself. `None` for a message without any.
pub fn take(body: &mut Body) -> Option<Value> {
    let mut members = Map::new();
    match body {
        Body::Award(award) | Body::Request(award) => {
            members.insert("input".into(), award.input.take());
        }
        Body::Update(update) => {
            let News::Completed(result) = &mut update.news else {
                return None;
            };
            members.insert("output".into(), result.output.take());
            members.insert("units".into(), std::mem::take(&mut result.units).into());
        }
        _ => return None,
    }
    Some(Value::Object(members))
}

/// Puts them back: whether they are exactly the members that the message lacks.
pub fn put_back(body: &mut Body, members: Value) -> bool {
    let Value::Object(mut members) = members else {
        return false;
    };
    let whole = match body {
        Body::Award(award) | Body::Request(award) => match members.remove("input") {
            Some(input) => {
                award.input = input;
                true
            }
            None => false,
        },
        Body::Update(update) => match (
            &mut update.news,
            members.remove("output"),
            members.remove("units"),
        ) {
            (News::Completed(result), Some(output), Some(Value::String(units))) => {
                (result.output, result.units) = (output, units);
                true
            }
            _ => false,
        },
        _ => false,
    };
    whole && members.is_empty()
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(bytes: u64) -> Detached {
        Detached {
            id: "0".repeat(32),
            bytes,
            sha256: "0".repeat(64),
        }
    }

    /// The promise: the chunks of a payload add up to what is sealed, and none of them is empty.
    #[test]
    fn chunks_add_up_to_the_sealed_payload() {
        for bytes in [1, 20_464, 20_465, 65_536, 65_537, 5 << 20, MAX_BYTES] {
            let payload = payload(bytes);
            let sizes = (0..payload.chunks()).map(|at| payload.chunk_bytes(at) as u64);
            assert_eq!(sizes.clone().sum::<u64>(), sealed_bytes(bytes), "{bytes}");
            assert!(sizes.min() > Some(0), "{bytes}");
            assert_eq!(payload.chunk_bytes(payload.chunks()), 0);
        }
    }

    #[test]
    fn what_becomes_a_key_in_the_store_is_hex() {
        assert!(payload(1).is_sane());
        assert!(!payload(0).is_sane());
        assert!(!payload(MAX_BYTES + 1).is_sane());
        let ask = |id: &str| Transfer::Ask(Named { id: id.into() });
        assert!(ask(&"a".repeat(32)).is_sane());
        for id in ["", "a", &"A".repeat(32), &"/".repeat(32), &"a".repeat(33)] {
            assert!(!ask(id).is_sane(), "{id}");
        }
    }
}
