//! The skill `relay-ask`, for tests of delegation: it gives its whole job to somebody else, as often as it is told, and puts the
//! answers together. It is there in builds that have crash points, and offered only where `LEGION_ECHO` is set.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Plan, Skill, SkillError, SkillInfo};

/// The skill.
#[derive(Debug)]
pub struct RelayAsk;

/// What is to be asked, and of whom.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    skill: String,
    input: Value,
    peer: Option<String>,
    /// How often, one after another.
    #[serde(default = "once")]
    times: u32,
    /// Whether an error is told as if it were a result.
    #[serde(default)]
    forgiving: bool,
}

fn once() -> u32 {
    1
}

fn typed(input: &Value) -> Result<Input, SkillError> {
    super::typed_input(input)
}

impl Skill for RelayAsk {
    fn id(&self) -> &'static str {
        "relay-ask"
    }

    fn info(&self) -> SkillInfo {
        SkillInfo {
            id: "relay-ask",
            name: "Relay ask",
            description: "Asks somebody else; for tests.",
            tags: &["test"],
            input_schema: json!({"type": "object", "required": ["skill", "input"]}),
            output_schema: json!({"type": "object", "required": ["answers"]}),
            unit_price_mc: 1,
            implementation: "relay-ask/1",
        }
    }

    fn complete_input(&self, input: &Value, _random: u64) -> Result<Value, SkillError> {
        typed(input).map(|_| input.clone())
    }

    fn plan(&self, input: &Value) -> Result<Plan, SkillError> {
        let asked = typed(input)?;
        // An input without its seed has no plan yet.
        let inner = super::plan(&asked.skill, &asked.input).map_or(10_000, |p| p.output_bytes_max);
        let answers = inner.saturating_mul(u64::from(asked.times.min(64)));
        Ok(Plan {
            units: 1,
            output_bytes_max: answers.saturating_mul(3).saturating_add(1_000),
            canonical_input: input.clone(),
            seed: 0,
            units_per_checkpoint: 1,
        })
    }

    fn aggregate(&self, _input: &Value, units: &[&[u8]]) -> Result<Value, SkillError> {
        let [unit] = units else {
            return Err(SkillError::units("a job of this skill has one unit"));
        };
        serde_json::from_slice(unit).map_err(|e| SkillError::units(e.to_string()))
    }

    fn compare(&self, _a: &str, _b: &str, unit_a: &[u8], unit_b: &[u8]) -> bool {
        unit_a == unit_b
    }

    fn is_recomputable(&self) -> bool {
        false
    }

    #[cfg(feature = "labor")]
    fn runner(
        &self,
        input: &Value,
        _cores: Arc<super::cores::Cores>,
        _shelf: &super::embedding::Shelf,
    ) -> Result<Box<dyn super::UnitRunner>, SkillError> {
        Ok(Box::new(Runner {
            asked: typed(input)?,
            said: Vec::new(),
            refused: None,
        }))
    }
}

#[cfg(feature = "labor")]
struct Runner {
    asked: Input,
    said: Vec<Value>,
    refused: Option<String>,
}

#[cfg(feature = "labor")]
impl super::UnitRunner for Runner {
    fn wish(
        &mut self,
        _unit: u32,
        answers: &[crate::labor::frames::Answer],
    ) -> Option<super::Wish> {
        let text = |answer: &crate::labor::frames::Answer| {
            let error = answer.error.as_ref()?;
            Some(format!(
                "call {}: {}: {}",
                answer.call, error.code, error.message
            ))
        };
        self.refused = answers.iter().find_map(text);
        self.said = (answers.iter())
            .map(|a| a.result.clone().unwrap_or_else(|| json!(a.error)))
            .collect();
        let enough = answers.len() as u64 >= u64::from(self.asked.times);
        let hopeless = self.refused.is_some() && !self.asked.forgiving;
        (!enough && !hopeless).then(|| super::Wish {
            skill: self.asked.skill.clone(),
            input: self.asked.input.clone(),
            peer: self.asked.peer.clone(),
        })
    }

    fn run(&mut self, _unit: u32) -> Result<Vec<u8>, SkillError> {
        match &self.refused {
            Some(message) if !self.asked.forgiving => Err(SkillError {
                code: "hop_failed",
                message: message.clone(),
            }),
            _ => Ok(json!({"answers": self.said}).to_string().into_bytes()),
        }
    }
}
