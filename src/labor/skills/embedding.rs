//! The skill `text-embedding`: one vector per text, by a BERT encoder that the owner registered (`legion models add`). This file
//! holds the contract: input, result, limits, and the pure functions `plan`, `aggregate` and `compare`. Which texts are computed
//! together is `runner`'s, the tensors are `encoder`'s. It must not know Burn, peers or money.
//!
//! **Units.** Texts are ordered by their length in bytes, then by their place, and cut into units of `ceil(count / 512)` texts:
//! one text up to 512, four at 2,048. So a unit's texts are about equally long, and units follow from the input alone.
//!
//! **A unit result** names the model, because nobody can compare vectors of different models: see [`vectors`]. The Merkle root
//! is over the very bytes that were sent; whoever recomputes a unit compares by [`vectors::TOLERANCE`], never by hash, since the
//! last bits of f32 differ between kernels, and between batches of one machine.
//!
//! **Assurance.** A requester that has the model of the same hash recomputes a sample ([`Skill::recompute_input`] pins it). One
//! that has not can only check the form: count, dimension, finite numbers, length 1 where the model normalizes.

#[cfg(feature = "labor")]
mod encoder;
#[cfg(feature = "labor")]
mod gelu;
#[cfg(feature = "labor")]
mod runner;
#[cfg(feature = "labor")]
mod shelf;
pub mod vectors;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Plan, Skill, SkillError, SkillInfo, typed_input};
#[cfg(feature = "labor")]
use crate::labor::models::Models;
#[cfg(feature = "labor")]
pub use shelf::Shelf;
use vectors::{HEADER_BYTES, Header};

/// The most units of a job: a result with all its units must stay small where units are.
pub const MAX_UNITS: usize = 512;
/// The most texts of a job.
pub const MAX_TEXTS: usize = 2048;
/// The longest text. Models read some hundred tokens of it.
pub const MAX_TEXT_BYTES: usize = 32 << 10;
/// All texts together; escaped as JSON they still fit into a worker's frame.
pub const MAX_TOTAL_BYTES: usize = 2 << 20;
/// The longest vector.
pub const MAX_DIM: u32 = 1024;
/// All vectors of a job together, so that they fit into a worker's frame as base64.
pub const MAX_VECTOR_BYTES: u64 = 8 << 20;
/// In front of a model's hash, where its name could stand: no name has a colon.
const BY_HASH: &str = "sha256:";
/// The longest name of a model.
const MAX_MODEL_BYTES: usize = 64;
/// Text between two checkpoints, about half a second of two cores.
const CHECKPOINT_TEXT_BYTES: usize = 8 << 10;
/// A checkpoint holds all vectors so far: more of them would cost more than the work.
const MAX_CHECKPOINTS: u32 = 16;

/// Texts to embed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingInput {
    /// The model's name at the executor, e.g. `all-MiniLM-L6-v2`.
    #[schemars(length(min = 1, max = 64))]
    pub model: String,
    /// This exact model and no other, by its hash (`legion models list`), hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub model_hash: Option<String>,
    /// Numbers in a vector, where the asker knows it: it bounds the size of the result, which is otherwise taken as if it were 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub dim: Option<u32>,
    /// 1 to 2,048 texts of at most 32 KiB, together at most 2 MiB. What is beyond the model's length is cut off.
    #[schemars(length(min = 1, max = 2048))]
    pub texts: Vec<String>,
}

/// What may be said of the vectors beyond their form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Assurance {
    /// Whoever has the model of `model_hash` can recompute a sample (assurance `sampled`); anyone else checks form only (`schema`).
    SampledWithModel,
}

/// What comes back.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EmbeddingOutput {
    /// The name that the input gave.
    pub model: String,
    /// SHA-256 over the model's files, hex: which model it really was.
    pub model_hash: String,
    /// Numbers in a vector.
    pub dim: u32,
    /// Vectors, one per text, in the order of the texts.
    pub count: u32,
    /// Whether every vector has length 1, so that a dot product is the cosine.
    pub normalized: bool,
    /// Base64 (standard, padded) of `count * dim` little-endian f32.
    pub vectors: String,
    /// How the vectors can be checked; how they were is in the task's `verified`.
    pub assurance: Assurance,
}

/// An input that was checked.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) input: EmbeddingInput,
    /// Places of texts, shortest first.
    order: Vec<usize>,
    texts_per_unit: usize,
}

impl Job {
    fn parse(input: &Value) -> Result<Self, SkillError> {
        let input: EmbeddingInput = typed_input(input)?;
        check(&input)?;
        let mut order: Vec<usize> = (0..input.texts.len()).collect();
        order.sort_by_key(|place| (input.texts.get(*place).map_or(0, String::len), *place));
        Ok(Self {
            texts_per_unit: input.texts.len().div_ceil(MAX_UNITS).max(1),
            order,
            input,
        })
    }

    pub(crate) fn units(&self) -> u32 {
        self.order.len().div_ceil(self.texts_per_unit) as u32
    }

    /// The places of a unit's texts; none for a unit beyond the last.
    pub(crate) fn places(&self, unit: u32) -> &[usize] {
        let start = (unit as usize).saturating_mul(self.texts_per_unit);
        let end = start
            .saturating_add(self.texts_per_unit)
            .min(self.order.len());
        self.order.get(start..end).unwrap_or_default()
    }

    /// Vectors that a unit's bytes have room for: the last unit is padded with zeros, so that all are equally long.
    pub(crate) fn slots(&self) -> usize {
        self.texts_per_unit
    }

    fn canonical(&self) -> Value {
        serde_json::to_value(&self.input).unwrap_or(Value::Null)
    }

    /// Whether a unit says that it is of the wanted model.
    fn admits(&self, header: &Header) -> Result<(), SkillError> {
        let wanted = self.input.model_hash.as_deref();
        if wanted.is_some_and(|hash| hash != hex::encode(header.model)) {
            return Err(SkillError::units("the vectors are of another model"));
        }
        if self.input.dim.is_some_and(|dim| dim != header.dim) {
            return Err(SkillError::units("the vectors have another dimension"));
        }
        Ok(())
    }

    fn output_bytes_max(&self) -> u64 {
        let dim = u64::from(self.input.dim.unwrap_or(MAX_DIM));
        let base64 = |bytes: u64| bytes.div_ceil(3) * 4;
        let unit_bytes = HEADER_BYTES as u64 + 4 * dim * self.texts_per_unit as u64;
        let vectors = base64(4 * dim * self.order.len() as u64);
        512 + vectors + base64(unit_bytes * u64::from(self.units()))
    }
}

fn check(input: &EmbeddingInput) -> Result<(), SkillError> {
    let refuse = |message: String| Err(SkillError::input(message));
    if !(1..=MAX_MODEL_BYTES).contains(&input.model.len()) {
        return refuse(format!("`model` must have 1 to {MAX_MODEL_BYTES} bytes"));
    }
    let hex = |hash: &String| {
        hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    if !input.model_hash.as_ref().is_none_or(hex) {
        return refuse("`model_hash` must be 64 lowercase hex digits".to_owned());
    }
    if !input.dim.is_none_or(|dim| (1..=MAX_DIM).contains(&dim)) {
        return refuse(format!("`dim` must be 1 to {MAX_DIM}"));
    }
    let count = input.texts.len();
    if !(1..=MAX_TEXTS).contains(&count) {
        return refuse(format!(
            "`texts` must be 1 to {MAX_TEXTS} texts, not {count}; ask several times"
        ));
    }
    if let Some(place) = input.texts.iter().position(|t| t.len() > MAX_TEXT_BYTES) {
        return refuse(format!(
            "text {place} is longer than {MAX_TEXT_BYTES} bytes; cut it into parts"
        ));
    }
    let total_bytes: usize = input.texts.iter().map(String::len).sum();
    if total_bytes > MAX_TOTAL_BYTES {
        return refuse(format!(
            "the texts have {total_bytes} bytes together, {MAX_TOTAL_BYTES} are allowed; ask several times"
        ));
    }
    Ok(())
}

/// The skill itself; it has no state.
pub struct Embedding;

impl Skill for Embedding {
    fn id(&self) -> &'static str {
        "text-embedding"
    }

    fn info(&self) -> SkillInfo {
        SkillInfo {
            id: self.id(),
            name: "Text embeddings",
            description: "Turns texts into vectors by a BERT encoder (all-MiniLM-L6-v2 and kin) that this machine has. Whoever has the \
                          same model, by its hash, can compute every unit again.",
            tags: &["embedding", "text", "vectors", "semantic-search", "bert"],
            input_schema: schemars::schema_for!(EmbeddingInput).to_value(),
            output_schema: schemars::schema_for!(EmbeddingOutput).to_value(),
            unit_price_mc: 1,
            implementation: "text-embedding/1",
        }
    }

    fn complete_input(&self, input: &Value, _random: u64) -> Result<Value, SkillError> {
        Ok(Job::parse(input)?.canonical())
    }

    fn plan(&self, input: &Value) -> Result<Plan, SkillError> {
        let job = Job::parse(input)?;
        let units = job.units();
        let total_bytes: usize = job.input.texts.iter().map(String::len).sum();
        let by_work = (units as usize * CHECKPOINT_TEXT_BYTES) / total_bytes.max(1);
        let fewest = units.div_ceil(MAX_CHECKPOINTS).max(1);
        Ok(Plan {
            units,
            output_bytes_max: job.output_bytes_max(),
            canonical_input: job.canonical(),
            seed: 0,
            units_per_checkpoint: u32::try_from(by_work).unwrap_or(u32::MAX).max(fewest),
        })
    }

    fn aggregate(&self, input: &Value, units: &[&[u8]]) -> Result<Value, SkillError> {
        let job = Job::parse(input)?;
        if units.len() != job.units() as usize {
            return Err(SkillError::units(format!(
                "{} unit results instead of {}",
                units.len(),
                job.units()
            )));
        }
        let first = units.first().and_then(|unit| Header::of(unit));
        let header =
            first.ok_or_else(|| SkillError::units("unit 0 is not a result of its texts"))?;
        job.admits(&header)?;
        let row_bytes = header.row_bytes();
        let mut all = vec![0; row_bytes * job.order.len()];
        for (unit, bytes) in (0..job.units()).zip(units) {
            let places = job.places(unit);
            let rows = vectors::rows(bytes, &header, places.len(), job.slots());
            let rows = rows.ok_or_else(|| {
                SkillError::units(format!("unit {unit} is not a result of its texts"))
            })?;
            for (place, row) in places.iter().zip(rows) {
                let to = all.get_mut(place * row_bytes..(place + 1) * row_bytes);
                if let Some(to) = to.filter(|to| to.len() == row.len()) {
                    to.copy_from_slice(row);
                }
            }
        }
        let output = EmbeddingOutput {
            model: job.input.model.clone(),
            model_hash: hex::encode(header.model),
            dim: header.dim,
            count: job.order.len() as u32,
            normalized: header.normalized,
            vectors: STANDARD.encode(all),
            assurance: Assurance::SampledWithModel,
        };
        serde_json::to_value(output).map_err(|error| SkillError::units(error.to_string()))
    }

    fn compare(&self, _: &str, _: &str, unit_a: &[u8], unit_b: &[u8]) -> bool {
        vectors::agree(unit_a, unit_b)
    }

    fn recompute_input(&self, input: &Value, theirs: &[u8]) -> Value {
        let mut pinned = input.clone();
        if let (Some(header), Some(fields)) = (Header::of(theirs), pinned.as_object_mut()) {
            fields.insert("model_hash".to_owned(), hex::encode(header.model).into());
        }
        pinned
    }

    #[cfg(feature = "labor")]
    fn is_ready(&self, models: &Models) -> bool {
        !models.present().is_empty()
    }

    fn needs(&self, input: &Value) -> Option<String> {
        let field = |name: &str| input.get(name).and_then(Value::as_str);
        let pinned = field("model_hash").map(|hash| format!("{BY_HASH}{hash}"));
        pinned.or_else(|| field("model").map(str::to_owned))
    }

    #[cfg(feature = "labor")]
    fn check_need(&self, need: &str, models: &Models) -> Result<(), SkillError> {
        let found = models.find(need, need.strip_prefix(BY_HASH));
        found.map(drop).map_err(|error| shelf::refused(&error))
    }

    #[cfg(feature = "labor")]
    fn check_ready(&self, input: &Value, models: &Models) -> Result<(), SkillError> {
        shelf::choose(&Job::parse(input)?, models).map(|_| ())
    }

    #[cfg(feature = "labor")]
    fn runner(
        &self,
        input: &Value,
        cores: std::sync::Arc<super::cores::Cores>,
        shelf: &Shelf,
    ) -> Result<Box<dyn super::UnitRunner>, SkillError> {
        let job = Job::parse(input)?;
        let model = cores.within(|| shelf.load(&job))?;
        Ok(Box::new(runner::Runner::new(job, model, cores)))
    }
}

#[cfg(test)]
mod tests;
