//! Shapes of answers, as the fixtures give them.

use std::path::Path;

use serde_json::{Value, json};

/// An example of one shape of answer.
pub(crate) fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/cli/{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Objects with the names of their fields, everything else with its kind; of a list, its first item.
pub(crate) fn structure(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), structure(value)))
            .collect(),
        Value::Array(items) => items
            .first()
            .map_or_else(|| json!([]), |first| json!([structure(first)])),
        Value::String(_) => json!("string"),
        Value::Number(_) => json!("number"),
        Value::Bool(_) => json!("boolean"),
        Value::Null => json!("null"),
    }
}
