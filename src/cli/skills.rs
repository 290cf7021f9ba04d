//! `legion skills`: what this machine can do, with the schemas of input and output. It needs no running node. A skill
//! whose model is missing, or whose program does not describe it, is left out, as it is in what the node advertises.

use serde_json::{Value, json};

use super::error::CliError;
use super::output::{self, Reply};
use super::{Context, Threads, adapters, block_on, render};

/// `{skills:[{id,name,description,tags,input_schema,output_schema,unit_price_mc,implementation}],not_offered:[{id,code,message}]}`, and
/// of the owner's own skills `sandbox:{level,missing}`.
pub(crate) fn run(context: &Context) -> Result<Reply, CliError> {
    let home = context.home()?;
    let config = context.config()?;
    adapters::check_own_skills(&config, home)?;
    let mut catalog = adapters::offered(&home.models_dir());
    let mut not_offered = Vec::new();
    if config.labor.enabled && !config.skills.is_empty() {
        let (own, silent) = block_on(Threads::One, async {
            adapters::own_skills(&config, home).await
        })?;
        catalog.extend(own);
        not_offered = silent;
    }
    for skill in &mut catalog {
        let id = skill.get("id").and_then(Value::as_str);
        let price = id.map(|id| config.market.unit_price_mc(id));
        if let Some(skill) = skill.as_object_mut() {
            skill.insert("unit_price_mc".into(), json!(price));
        }
    }
    let text = if catalog.is_empty() {
        "no skills: this program was built without labor".to_owned()
    } else {
        let columns = ["SKILL", "PRICE MC", "INPUT", "SANDBOX"];
        render::table(&columns, catalog.iter().map(row))
    };
    for wrong in &not_offered {
        let [id, code, message] = ["/id", "/code", "/message"].map(|at| render::cell(wrong, at));
        output::note(&format!("not offered: {id}: {code}: {message}"));
    }
    let view = json!({ "skills": catalog, "not_offered": not_offered });
    Ok(Reply::new(view, text))
}

fn row(skill: &Value) -> Vec<String> {
    let text = |name: &str| {
        skill.get(name).map(|value| {
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        })
    };
    let fields = skill
        .pointer("/input_schema/properties")
        .and_then(Value::as_object);
    let names = fields.map(|fields| fields.keys().cloned().collect::<Vec<_>>().join(" "));
    // A built-in skill's is the worker's, of which `legion status` speaks.
    let sandbox = skill.pointer("/sandbox/level").and_then(Value::as_str);
    let sandbox = Some(sandbox.unwrap_or("worker").to_owned());
    [text("id"), text("unit_price_mc"), names, sandbox]
        .map(Option::unwrap_or_default)
        .to_vec()
}
