//! `legion skills`: what this machine can do, with the schemas of input and output. It needs no running node.

use serde_json::{Value, json};

use super::adapters::{self, SkillView};
use super::error::CliError;
use super::output::Reply;
use super::render;

/// `{skills:[{name,description,unit,input,output}]}`.
pub(crate) fn run() -> Result<Reply, CliError> {
    let catalog = adapters::catalog();
    let skills: Vec<Value> = catalog.iter().map(to_json).collect();
    let rows = catalog.iter().map(|skill| {
        let inputs = skill.input.get("properties").and_then(Value::as_object);
        let names = inputs
            .map(|all| all.keys().cloned().collect::<Vec<_>>().join(" "))
            .unwrap_or_default();
        vec![skill.name.clone(), skill.description.clone(), names]
    });
    let text = if catalog.is_empty() {
        "no skills: this program was built without labor".to_owned()
    } else {
        render::table(&["SKILL", "WHAT IT DOES", "INPUT"], rows)
    };
    Ok(Reply::new(json!({ "skills": skills }), text))
}

fn to_json(skill: &SkillView) -> Value {
    json!({
        "name": skill.name, "description": skill.description, "unit": skill.unit,
        "input": skill.input, "output": skill.output,
    })
}
