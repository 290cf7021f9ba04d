//! The skills this node knows: what each takes, how it is cut into units, how unit results become one result, and when two
//! results of one unit are the same. Everything here is plain Rust, pure, and the same on every node; only a [`UnitRunner`]
//! (feature `labor`, worker process) computes. It must not know peers, awards or the store.
//!
//! To add a skill: one file beside `simulation.rs` that implements [`Skill`], and one line in [`registry`].

#[cfg(any(feature = "crash-points", debug_assertions))]
pub mod echo;
pub mod embedding;
pub mod own;
#[cfg(any(feature = "crash-points", debug_assertions))]
pub mod relay_ask;
pub mod schema;
pub mod simulation;

use serde::de::DeserializeOwned;
use serde_json::Value;

#[cfg(feature = "labor")]
use super::frames::Answer;

/// Why a skill refuses. `code` is stable, `message` says what is wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SkillError {
    /// `skill_unknown`, `input_invalid`, `units_invalid`, `output_invalid`, `output_too_large`, `compute_failed`, or of a model: `model_missing`, `model_changed`,
    /// `model_invalid` and the others of [`super::LaborError`].
    pub code: &'static str,
    /// For a person.
    pub message: String,
}

impl SkillError {
    /// The stable code that a person can search for.
    pub fn code(&self) -> &'static str {
        self.code
    }

    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self {
            code: "input_invalid",
            message: message.into(),
        }
    }

    pub(crate) fn units(message: impl Into<String>) -> Self {
        Self {
            code: "units_invalid",
            message: message.into(),
        }
    }

    pub(crate) fn unknown(skill: &str) -> Self {
        let known: Vec<&str> = catalog().iter().map(|skill| skill.id).collect();
        Self {
            code: "skill_unknown",
            message: format!("no skill `{skill}` here; known: {}", known.join(", ")),
        }
    }
}

/// What a card says about a skill.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SkillInfo {
    /// The stable name, e.g. `simulation`.
    pub id: &'static str,
    /// For people.
    pub name: &'static str,
    /// For people, in a few sentences.
    pub description: &'static str,
    /// For search.
    pub tags: &'static [&'static str],
    /// JSON Schema of the input, derived from the Rust type.
    pub input_schema: Value,
    /// JSON Schema of the result, derived from the Rust type.
    pub output_schema: Value,
    /// The default price of one unit, in milli-credits.
    pub unit_price_mc: u64,
    /// Changes whenever the same input may give other unit bytes.
    pub implementation: &'static str,
}

/// How one input will be worked on. A function of the input alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Billable units, 1 to 512.
    pub units: u32,
    /// The most bytes the result and all unit results take as JSON.
    pub output_bytes_max: u64,
    /// The input with every default made explicit; planning it again gives the same plan.
    pub canonical_input: Value,
    /// The seed that the input names.
    pub seed: u64,
    /// After how many units a checkpoint is worth its write (about half a second of work).
    pub units_per_checkpoint: u32,
}

/// What a skill implements. All methods but `runner` are pure and the same on every node.
pub trait Skill: Sync {
    /// The stable name.
    fn id(&self) -> &'static str;
    /// What a card says.
    fn info(&self) -> SkillInfo;
    /// Fill what the input leaves open, `random` being the chance that the caller drew; also makes defaults explicit.
    fn complete_input(&self, input: &Value, random: u64) -> Result<Value, SkillError>;
    /// Check a complete input and cut it into units. An absent seed is refused: see [`Skill::complete_input`].
    fn plan(&self, input: &Value) -> Result<Plan, SkillError>;
    /// One result from all unit results in unit order.
    fn aggregate(&self, input: &Value, units: &[&[u8]]) -> Result<Value, SkillError>;
    /// Whether two results of one unit agree, given the numeric profiles of the machines that made them.
    fn compare(&self, profile_a: &str, profile_b: &str, unit_a: &[u8], unit_b: &[u8]) -> bool;
    /// Whether somebody else's unit can be computed again to be compared; if not, a result is checked by its shape alone.
    fn is_recomputable(&self) -> bool {
        true
    }
    /// The input with which somebody else's unit must be computed again to be compared: the same, with the model pinned to the
    /// one that `theirs` names. A machine that does not have that model fails the job instead of comparing different things.
    fn recompute_input(&self, input: &Value, theirs: &[u8]) -> Value {
        let _ = theirs;
        input.clone()
    }
    /// Whether this machine has what the skill needs besides the program; what it has not is not advertised.
    #[cfg(feature = "labor")]
    fn is_ready(&self, models: &super::models::Models) -> bool {
        let _ = models;
        true
    }
    /// What this input needs that not every machine with the skill has, as others may know it: it stands in offers, before the
    /// input is shown to anybody. Of an input that is not understood nothing.
    fn needs(&self, input: &Value) -> Option<String> {
        let _ = input;
        None
    }
    /// Whether this machine has what [`Skill::needs`] said; code `model_missing`.
    #[cfg(feature = "labor")]
    fn check_need(&self, need: &str, models: &super::models::Models) -> Result<(), SkillError> {
        let _ = (need, models);
        Ok(())
    }
    /// Whether this machine has what this one input needs; code `model_missing`.
    #[cfg(feature = "labor")]
    fn check_ready(&self, input: &Value, models: &super::models::Models) -> Result<(), SkillError> {
        let _ = (input, models);
        Ok(())
    }
    /// What computes the units of one input on the given cores, with models from the given shelf.
    #[cfg(feature = "labor")]
    fn runner(
        &self,
        input: &Value,
        cores: std::sync::Arc<cores::Cores>,
        shelf: &embedding::Shelf,
    ) -> Result<Box<dyn UnitRunner>, SkillError>;
}

/// Computes units of one job. Lives in the worker process only.
#[cfg(feature = "labor")]
pub trait UnitRunner {
    /// The bytes of one unit: for any thread count and any order of calls the same, or at least such that
    /// [`Skill::compare`] finds them equal.
    fn run(&mut self, unit: u32) -> Result<Vec<u8>, SkillError>;
    /// What `unit` needs from somebody else before it can be run: asked for before each run. `answers` are those to the wishes
    /// of this job so far, in order; a skill whose units wish for something is not [`Skill::is_recomputable`].
    fn wish(&mut self, unit: u32, answers: &[Answer]) -> Option<Wish> {
        let _ = (unit, answers);
        None
    }
    /// Which units will be asked for next, in order: a runner that is faster with many at once may work ahead.
    fn announce(&mut self, units: &[u32]) {
        let _ = units;
    }
}

/// A part of a job that its skill wants done by somebody else.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// The skill asked for.
    pub skill: String,
    /// Its input.
    pub input: Value,
    /// By whom, npub or hex; anybody in the pool if it does not matter.
    pub peer: Option<String>,
}

#[cfg(feature = "labor")]
pub mod cores;

/// Every skill of this build.
pub fn registry() -> &'static [&'static dyn Skill] {
    &[
        &simulation::Simulation,
        &embedding::Embedding,
        #[cfg(any(feature = "crash-points", debug_assertions))]
        &echo::Echo,
        #[cfg(any(feature = "crash-points", debug_assertions))]
        &relay_ask::RelayAsk,
    ]
}

/// An input as a skill's own type. A refusal names the field that is to blame.
pub(crate) fn typed_input<T: DeserializeOwned>(input: &Value) -> Result<T, SkillError> {
    // The deserializer would also take the fields of a list by their order.
    let Value::Object(fields) = input else {
        let message = "the input must be a JSON object with named fields";
        return Err(SkillError::input(message));
    };
    let error = match T::deserialize(input) {
        Ok(typed) => return Ok(typed),
        Err(error) => error.to_string(),
    };
    // Its errors name no field, but what is missing is only missed after all that is there was read: the first field with
    // which another error appears is to blame.
    let mut read = Value::Object(serde_json::Map::new());
    for (name, value) in fields {
        if let Some(read) = read.as_object_mut() {
            read.insert(name.clone(), value.clone());
        }
        match T::deserialize(&read) {
            Err(error) if !error.to_string().starts_with("missing field") => {
                return Err(SkillError::input(blame(name, &error.to_string())));
            }
            _ => {}
        }
    }
    let missing = error.split('`').nth(1).unwrap_or("?");
    Err(SkillError::input(format!("input.{missing}: is missing")))
}

/// What is wrong with one field, in words that fit the person's JSON and not our types.
fn blame(name: &str, error: &str) -> String {
    let expected = error.split_once("expected ").map(|(_, expected)| expected);
    let given = error.split_once(": ").map(|(_, rest)| rest);
    let given = given.and_then(|rest| rest.rsplit_once(", expected ").map(|(given, _)| given));
    let wanted = match expected {
        _ if error.starts_with("unknown field") => {
            let known = expected.map(|list| list.trim_start_matches("one of "));
            return format!(
                "input.{name}: unknown field; known: {}",
                known.unwrap_or("none")
            );
        }
        Some("f32" | "f64") => "a number",
        Some("u32" | "u64" | "usize") => "a whole number, 0 or more",
        Some("a boolean") => "true or false",
        Some("a sequence") => "an array",
        Some(other) => other,
        None => return format!("input.{name}: {error}"),
    };
    match given {
        Some(given) => format!("input.{name}: must be {wanted}, not {given}"),
        None => format!("input.{name}: must be {wanted}"),
    }
}

/// The skills of the tests are hidden but where they ask for them.
fn is_public(skill: &dyn Skill) -> bool {
    !matches!(skill.id(), "echo" | "relay-ask") || std::env::var_os("LEGION_ECHO").is_some()
}

/// Every skill that this program knows, whether this machine has what it needs or not.
pub fn catalog() -> Vec<SkillInfo> {
    let own = own::registered().into_iter().map(|skill| skill.info());
    let skills = registry().iter().filter(|skill| is_public(**skill));
    skills.map(|skill| skill.info()).chain(own).collect()
}

/// What this machine can do with the models registered in `models` (the folder `models/` of a home), for its ads, its card and
/// `legion skills`. Without the feature `labor` that is nothing.
pub fn offered(models: &std::path::Path) -> Vec<SkillInfo> {
    #[cfg(feature = "labor")]
    {
        let models = super::models::Models::at(models);
        let skills = registry().iter().filter(|skill| is_public(**skill));
        let skills = skills.filter(|skill| skill.is_ready(&models));
        skills.map(|skill| skill.info()).collect()
    }
    #[cfg(not(feature = "labor"))]
    {
        let _ = models;
        Vec::new()
    }
}

/// See [`Skill::check_ready`]: what an executor asks before it accepts an input.
#[cfg(feature = "labor")]
pub fn check_ready(skill: &str, input: &Value, models: &std::path::Path) -> Result<(), SkillError> {
    find(skill)?.check_ready(input, &super::models::Models::at(models))
}

/// See [`Skill::needs`]; nothing of an unknown skill.
pub fn needs(skill: &str, input: &Value) -> Option<String> {
    find(skill).ok().and_then(|skill| skill.needs(input))
}

/// See [`Skill::check_need`]: what an executor asks before it bids.
#[cfg(feature = "labor")]
pub fn check_need(skill: &str, need: &str, models: &std::path::Path) -> Result<(), SkillError> {
    find(skill)?.check_need(need, &super::models::Models::at(models))
}

/// See [`Skill::recompute_input`]; an unknown skill's input stays as it is.
pub fn recompute_input(skill: &str, input: &Value, theirs: &[u8]) -> Value {
    find(skill).map_or_else(
        |_| input.clone(),
        |skill| skill.recompute_input(input, theirs),
    )
}

/// Find a skill by id; code `skill_unknown`.
pub fn find(skill: &str) -> Result<&'static dyn Skill, SkillError> {
    let own = own::registered()
        .into_iter()
        .map(|known| known as &dyn Skill);
    registry()
        .iter()
        .copied()
        .chain(own)
        .find(|known| known.id() == skill)
        .ok_or_else(|| SkillError::unknown(skill))
}

/// See [`Skill::is_recomputable`]; false for an unknown skill.
pub fn is_recomputable(skill: &str) -> bool {
    find(skill).is_ok_and(|skill| skill.is_recomputable())
}

/// See [`Skill::complete_input`]. The requester's node calls this once, with OS randomness, before anything leaves.
pub fn complete_input(skill: &str, input: &Value, random: u64) -> Result<Value, SkillError> {
    find(skill)?.complete_input(input, random)
}

/// See [`Skill::plan`].
pub fn plan(skill: &str, input: &Value) -> Result<Plan, SkillError> {
    find(skill)?.plan(input)
}

/// See [`Skill::aggregate`].
pub fn aggregate<U: AsRef<[u8]>>(
    skill: &str,
    input: &Value,
    units: &[U],
) -> Result<Value, SkillError> {
    let units: Vec<&[u8]> = units.iter().map(AsRef::as_ref).collect();
    find(skill)?.aggregate(input, &units)
}

/// See [`Skill::compare`]; false for an unknown skill.
pub fn compare(
    skill: &str,
    profile_a: &str,
    profile_b: &str,
    unit_a: &[u8],
    unit_b: &[u8],
) -> bool {
    find(skill).is_ok_and(|skill| skill.compare(profile_a, profile_b, unit_a, unit_b))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// The promise: an unknown skill has its own code everywhere, and every listed skill is found and described.
    #[test]
    fn registry_and_unknown_skill() {
        let nothing = Value::Null;
        assert_eq!(plan("sing", &nothing).unwrap_err().code, "skill_unknown");
        assert_eq!(
            complete_input("sing", &nothing, 1).unwrap_err().code,
            "skill_unknown"
        );
        assert_eq!(
            aggregate::<Vec<u8>>("sing", &nothing, &[])
                .unwrap_err()
                .code,
            "skill_unknown"
        );
        assert!(!compare("sing", "p", "p", b"a", b"a"));
        for info in catalog() {
            assert_eq!(find(info.id).unwrap().info(), info);
            assert_eq!(info.input_schema["type"], "object");
            assert_eq!(info.output_schema["type"], "object");
        }
    }
}
