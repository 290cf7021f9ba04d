//! The worker protocol: what a node and its worker process say to each other over the worker's stdin and stdout. This page is
//! all that a worker in another language needs. It must not know how either side is built.
//!
//! # The protocol, version 1
//!
//! A **frame** is a `u32` little-endian length (1 to 16 MiB), then that many bytes of UTF-8 JSON: one object with a field `type` in
//! snake_case and exactly the fields below. Byte strings are standard base64 with padding. Anything else is garbage, and ends the
//! conversation: the node kills the worker (`worker_garbage`), the worker exits with status 1.
//!
//! **Node to worker**
//!
//! | `type` | fields | meaning |
//! |---|---|---|
//! | `describe` | | answer with `described` |
//! | `start` | `job` u64, `skill`, `input`, `units`, `threads` (0 = all), `foreign` bool, `checkpoint` bytes or null, `checkpoint_every_units` (0 = never), `answers` (absent if there are none) | begin. `units` is `"all"`, or `{"only":[i,...]}` to compute just these (verification) |
//! | `soft_stop` | `job`, `deadline_ms` | stop after the current unit and answer `stopped`; the node kills when the deadline passes |
//!
//! The program is started with its configured arguments, then `--threads N`: the most threads it may use. It is in its sandbox by then.
//! There is no kill frame: the node kills the process group. When stdin ends, the worker exits at once.
//!
//! **Worker to node**
//!
//! | `type` | fields | meaning |
//! |---|---|---|
//! | `described` | `protocol` = 1, `profile`, `skills` | first answer to `describe`; `profile` names backend, versions, architecture and SIMD level |
//! | `progress` | `job`, `units_done`, `units_total` | at most 5 a second per job, counting units taken over from a checkpoint; also a sign of life |
//! | `checkpoint` | `job`, `units_done`, `bytes` | every `checkpoint_every_units` units |
//! | `checkpoint_refused` | `job`, `code`, `message` | the given checkpoint was not usable; the job starts from nothing |
//! | `done` | `job`, `units` \[bytes\], `executed_units`, `resumed_from` | all results in the order asked for; executed in this run only |
//! | `stopped` | `job`, `checkpoint` bytes, `units_done`, `executed_units` | after `soft_stop`; start again with this checkpoint |
//! | `delegate` | `job`, `call`, `skill`, `input`, `peer` (may be absent), `state` bytes, `units_done`, `executed_units` | this run is over; start again with the answer |
//! | `failed` | `job`, `code`, `message` | the job is over, the worker goes on |
//!
//! Each of `skills` is `{"id","implementation"}`; a program of the owner's (`[skills.NAME]`) adds `input_schema`, `output_schema`
//! (JSON Schema, see `labor::skills::schema` for the part of it that is understood) and, if it likes, `description`. Its jobs have
//! one unit, whose bytes are the result as JSON text. It may answer `soft_stop` with an empty checkpoint and 0 units: then the job
//! starts from nothing when it goes on. If it does not answer in time it gets SIGTERM, and a second later SIGKILL.
//!
//! **Delegation.** A skill may give a part of its job to another node: it sends `delegate` in place of a result, and forgets the
//! job. `skill` and `input` are what it asks for, `peer` (npub or hex) of whom; without `peer` the part is offered to the first
//! pool, which needs a skill that this node knows and that can be checked by computing it again. `state` is its own, at most a
//! frame long, and kept on the disk. When the answer is here, be it after days and restarts, a `start` brings `state` as
//! `checkpoint` and `answers`: one object for each call so far, in order, `{"call":1,"result":...}` or
//! `{"call":1,"error":{"code":"...","message":"..."}}`. Every later `start` of the job brings them again; one without any is to
//! call from 1 again. `call` counts from 1 within the job: the next one is the number of `answers` plus 1, any other fails the
//! job (`delegation_invalid`), as does one call too many (`delegation_limit`, 16 by default). Whatever else stands in the way is
//! an answer with an `error`, which the skill may survive: `no_provider`, `deadline_too_short`, `deadline_passed`, `canceled`,
//! `delegation_cycle`, `delegation_too_deep`, `delegation_lost`, `skill_unknown`, `input_invalid`, `pool_missing`, `peer_invalid`, or the
//! code with which the other node declined or failed. The part is due well before the job, and costs no more than the owner
//! lets such a job spend (`[market.skill_hop_budget_mc]`). Units asked for by `only` are not to be delegated: who checks a result
//! counts such a unit as not checked. A `stopped` with an empty checkpoint leaves `state` as it was.
//!
//! Each started job ends in exactly one of `done`, `stopped`, `delegate`, `failed`. A worker may hold many jobs; it works them unit by unit in
//! turn, those with `foreign: false` first. A `soft_stop` for a job that has already ended is ignored. Nothing but frames may be
//! written to stdout; stderr is free text, of which the node shows the last lines when the worker fails. The environment is
//! empty but for `LC_ALL`, `TMPDIR` and `RAYON_NUM_THREADS`; the working directory is private and removed afterwards.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::LaborError;

/// The version of this protocol, sent in [`ToNode::Described`].
pub const PROTOCOL_VERSION: u32 = 1;
/// The most bytes of a frame's JSON.
pub const MAX_FRAME_BYTES: usize = 16 << 20;

/// Bytes that travel as base64.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} bytes", self.0.len())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        STANDARD
            .decode(text.as_bytes())
            .map(Bytes)
            .map_err(serde::de::Error::custom)
    }
}

/// Which units of a job to compute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Units {
    /// All, in order; resumable from a checkpoint.
    All,
    /// Just these, in this order: how a verifier computes its sample again.
    Only(Vec<u32>),
}

/// Node to worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToWorker {
    /// Ask who is there.
    Describe {},
    /// Begin a job.
    Start {
        /// The node's number for it, unique while the worker lives.
        job: u64,
        /// The skill's id.
        skill: String,
        /// A complete input.
        input: Value,
        /// What to compute.
        units: Units,
        /// Threads for this job, 0 = all that the worker has.
        threads: u32,
        /// Somebody else's work: done after the owner's.
        foreign: bool,
        /// Where to resume.
        checkpoint: Option<Bytes>,
        /// How often to write one, 0 = never.
        checkpoint_every_units: u32,
        /// What came back for the parts that the job has delegated, one for each call.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        answers: Vec<Answer>,
    },
    /// Stop after the current unit.
    SoftStop {
        /// Which job.
        job: u64,
        /// For information: when the node loses patience.
        deadline_ms: u64,
    },
}

/// What came back for a part that a job has delegated: a result, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Which call of the job, from 1.
    pub call: u32,
    /// What the skill gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why there is no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<AnswerError>,
}

/// Why a delegated part has no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerError {
    /// Stable.
    pub code: String,
    /// For a person.
    pub message: String,
}

/// A skill of a worker, as `described` lists it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerSkill {
    /// The skill's id.
    pub id: String,
    /// Its implementation version.
    pub implementation: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// JSON Schema of the input; the owner's own skills must say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<Value>,
    /// JSON Schema of the result; the owner's own skills must say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
}

/// Worker to node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToNode {
    /// Who is there.
    Described {
        /// [`PROTOCOL_VERSION`].
        protocol: u32,
        /// The numeric profile of this machine and build.
        profile: String,
        /// What it can do.
        skills: Vec<WorkerSkill>,
    },
    /// A sign of life.
    Progress {
        /// Which job.
        job: u64,
        /// Units finished, resumed ones included.
        units_done: u32,
        /// Units asked for.
        units_total: u32,
    },
    /// Results so far.
    Checkpoint {
        /// Which job.
        job: u64,
        /// Units in it.
        units_done: u32,
        /// See [`super::checkpoint`].
        bytes: Bytes,
    },
    /// The checkpoint given at the start was not used.
    CheckpointRefused {
        /// Which job.
        job: u64,
        /// `checkpoint_invalid`.
        code: String,
        /// For a person.
        message: String,
    },
    /// All units.
    Done {
        /// Which job.
        job: u64,
        /// One result per unit asked for.
        units: Vec<Bytes>,
        /// Units computed in this run.
        executed_units: u32,
        /// Units taken over from the checkpoint.
        resumed_from: u32,
    },
    /// Stopped on request.
    Stopped {
        /// Which job.
        job: u64,
        /// Where to resume.
        checkpoint: Bytes,
        /// Units in it.
        units_done: u32,
        /// Units computed in this run.
        executed_units: u32,
    },
    /// A part of the job is for somebody else: the run is over until the answer is here.
    Delegate {
        /// Which job.
        job: u64,
        /// Which call of the job, from 1.
        call: u32,
        /// The skill asked for.
        skill: String,
        /// Its input.
        input: Value,
        /// By whom it is to be done.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<String>,
        /// Where to resume.
        state: Bytes,
        /// Units in it.
        units_done: u32,
        /// Units computed in this run.
        executed_units: u32,
    },
    /// The job cannot be done.
    Failed {
        /// Which job.
        job: u64,
        /// Stable.
        code: String,
        /// For a person.
        message: String,
    },
}

/// A whole frame: length and JSON. [`LaborError::FrameTooLarge`] above [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, LaborError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)
        .map_err(|error| LaborError::FrameInvalid(error.to_string()))?;
    let length = check_length((frame.len() - 4) as u64)?;
    for (place, byte) in frame.iter_mut().zip((length as u32).to_le_bytes()) {
        *place = byte;
    }
    Ok(frame)
}

/// The length of the JSON after these four bytes.
pub fn decode_length(prefix: [u8; 4]) -> Result<usize, LaborError> {
    check_length(u64::from(u32::from_le_bytes(prefix)))
}

/// The message in a frame's JSON.
pub fn decode<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, LaborError> {
    serde_json::from_slice(json).map_err(|error| LaborError::FrameInvalid(error.to_string()))
}

/// Read one message from a blocking stream; `None` when it ended between two frames.
pub fn read<T: for<'a> Deserialize<'a>>(
    stream: &mut impl std::io::Read,
) -> Result<Option<T>, LaborError> {
    let mut prefix = [0; 4];
    let (first, rest) = prefix.split_at_mut(1);
    loop {
        match stream.read(first) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    stream.read_exact(rest)?;
    let mut json = vec![0; decode_length(prefix)?];
    stream.read_exact(&mut json)?;
    decode(&json).map(Some)
}

fn check_length(length_bytes: u64) -> Result<usize, LaborError> {
    let limit_bytes = MAX_FRAME_BYTES as u64;
    match length_bytes {
        0 => Err(LaborError::FrameInvalid("a frame of no bytes".to_owned())),
        _ if length_bytes > limit_bytes => Err(LaborError::FrameTooLarge {
            length_bytes,
            limit_bytes,
        }),
        _ => Ok(length_bytes as usize),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    /// The promise: the JSON is the one on this file's page.
    #[test]
    fn documented_shapes() {
        let start = ToWorker::Start {
            job: 7,
            skill: "simulation".into(),
            input: json!({"paths": 10}),
            units: Units::Only(vec![3, 1]),
            threads: 2,
            foreign: true,
            checkpoint: Some(Bytes(vec![1, 2, 3])),
            checkpoint_every_units: 5,
            answers: Vec::new(),
        };
        let shape = json!({"type":"start","job":7,"skill":"simulation","input":{"paths":10},"units":{"only":[3,1]},"threads":2,
            "foreign":true,"checkpoint":"AQID","checkpoint_every_units":5});
        assert_eq!(serde_json::to_value(&start).unwrap(), shape);
        assert_eq!(serde_json::from_value::<ToWorker>(shape).unwrap(), start);
        assert_eq!(serde_json::to_value(Units::All).unwrap(), json!("all"));
        assert_eq!(
            serde_json::to_value(ToWorker::Describe {}).unwrap(),
            json!({"type":"describe"})
        );
    }

    /// The promise: a stream of frames is read back, and its end is not an error.
    #[test]
    fn frames_roundtrip() {
        let messages = [
            ToNode::Done {
                job: 1,
                units: vec![Bytes(vec![0; 24])],
                executed_units: 1,
                resumed_from: 0,
            },
            ToNode::Failed {
                job: 2,
                code: "input_invalid".into(),
                message: "no \u{20ac}".into(),
            },
        ];
        let mut stream = Vec::new();
        for message in &messages {
            stream.extend(encode(message).unwrap());
        }
        let mut reader = stream.as_slice();
        for message in messages {
            assert_eq!(read::<ToNode>(&mut reader).unwrap(), Some(message));
        }
        assert_eq!(read::<ToNode>(&mut reader).unwrap(), None);
    }

    /// The promise: unknown types, unknown fields, wrong base64, empty, huge and cut frames are refused by code.
    #[test]
    fn garbage_is_refused() {
        for bad in [
            &br#"{"type":"sing","job":1}"#[..],
            br#"{"type":"progress","job":1,"units_done":1,"units_total":2,"mood":"good"}"#,
            br#"{"type":"progress","job":-1,"units_done":1,"units_total":2}"#,
            br#"{"type":"checkpoint","job":1,"units_done":1,"bytes":"not base64!"}"#,
            b"hello",
        ] {
            assert_eq!(decode::<ToNode>(bad).unwrap_err().code(), "frame_invalid");
        }
        assert_eq!(decode_length([0; 4]).unwrap_err().code(), "frame_invalid");
        assert_eq!(
            decode_length([0xff; 4]).unwrap_err().code(),
            "frame_too_large"
        );
        assert_eq!(
            encode(&"x".repeat(MAX_FRAME_BYTES)).unwrap_err().code(),
            "frame_too_large"
        );
        let cut = &encode(&ToWorker::Describe {}).unwrap()[..9];
        assert_eq!(
            read::<ToWorker>(&mut &cut[..]).unwrap_err().code(),
            "worker_pipe"
        );
    }
}
