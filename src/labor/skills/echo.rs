//! The skill `echo`, for tests of large payloads: the text comes back with its letters in reverse. It is there in builds that
//! have crash points, and offered only where `LEGION_ECHO` is set: nobody lends it by accident.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Plan, Skill, SkillError, SkillInfo};

/// The skill.
#[derive(Debug)]
pub struct Echo;

fn text(input: &Value) -> Result<&str, SkillError> {
    let text = input.get("text").and_then(Value::as_str);
    text.ok_or_else(|| SkillError::input("input.text: is missing"))
}

fn digest(input: &Value) -> Result<Vec<u8>, SkillError> {
    Ok(Sha256::digest(text(input)?).to_vec())
}

impl Skill for Echo {
    fn id(&self) -> &'static str {
        "echo"
    }

    fn info(&self) -> SkillInfo {
        SkillInfo {
            id: "echo",
            name: "Echo",
            description: "Gives a text back in reverse; for tests.",
            tags: &["test"],
            input_schema: json!({"type": "object", "properties": {"text": {"type": "string"}}}),
            output_schema: json!({"type": "object", "properties": {"text": {"type": "string"}}}),
            unit_price_mc: 1,
            implementation: "echo/1",
        }
    }

    fn complete_input(&self, input: &Value, _random: u64) -> Result<Value, SkillError> {
        text(input)?;
        Ok(input.clone())
    }

    fn plan(&self, input: &Value) -> Result<Plan, SkillError> {
        Ok(Plan {
            units: 1,
            output_bytes_max: text(input)?.len() as u64 + 100,
            canonical_input: input.clone(),
            seed: 0,
            units_per_checkpoint: 1,
        })
    }

    fn aggregate(&self, input: &Value, units: &[&[u8]]) -> Result<Value, SkillError> {
        if units != [digest(input)?.as_slice()] {
            return Err(SkillError::units("the unit is not the digest of the text"));
        }
        Ok(json!({"text": text(input)?.chars().rev().collect::<String>()}))
    }

    fn compare(&self, _a: &str, _b: &str, unit_a: &[u8], unit_b: &[u8]) -> bool {
        unit_a == unit_b
    }

    #[cfg(feature = "labor")]
    fn runner(
        &self,
        input: &Value,
        _cores: std::sync::Arc<super::cores::Cores>,
        _shelf: &super::embedding::Shelf,
    ) -> Result<Box<dyn super::UnitRunner>, SkillError> {
        Ok(Box::new(Runner(digest(input)?)))
    }
}

#[cfg(feature = "labor")]
struct Runner(Vec<u8>);

#[cfg(feature = "labor")]
impl super::UnitRunner for Runner {
    fn run(&mut self, _unit: u32) -> Result<Vec<u8>, SkillError> {
        Ok(self.0.clone())
    }
}
