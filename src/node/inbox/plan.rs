//! What the room of labor says of an input that is to be worked on, and of what an offer asks for, as the decisions need it. It
//! must not know who asks.

use std::path::Path;

use serde_json::Value;

use crate::domain::step::{PlanFacts, Refused};
use crate::labor::skills;

/// What a skill says of an input, as the decisions need it.
pub fn plan(skill: &str, input: &Value) -> Result<PlanFacts, Refused> {
    skills::plan(skill, input)
        .map(|plan| PlanFacts {
            units: plan.units,
            output_bytes_max: plan.output_bytes_max,
            model: skills::needs(skill, input),
        })
        .map_err(|e| Refused::new(e.code(), e.to_string()))
}

/// The same for an input that we are to work on: also whether this machine has what it needs.
pub(super) fn plan_here(skill: &str, input: &Value, models: &Path) -> Result<PlanFacts, Refused> {
    let facts = plan(skill, input)?;
    #[cfg(feature = "labor")]
    skills::check_ready(skill, input, models).map_err(|e| Refused::new(e.code(), e.to_string()))?;
    #[cfg(not(feature = "labor"))]
    let _ = models;
    Ok(facts)
}

/// What an offer needs that this machine with its skill has not.
pub(super) fn lacking_here(skill: &str, model: Option<&str>, models: &Path) -> Option<Refused> {
    #[cfg(feature = "labor")]
    return skills::check_need(skill, model?, models)
        .err()
        .map(|e| Refused::new(e.code(), e.to_string()));
    #[cfg(not(feature = "labor"))]
    {
        let _ = (skill, model, models);
        None
    }
}
