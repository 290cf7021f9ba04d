//! The part of JSON Schema (draft 2020-12) that the owner's own skills are described in: checked once for being understood, then
//! used to check inputs and results. A keyword that is not understood is refused, never passed over: what is called checked is
//! checked. It must not know whose value it is.
//!
//! Understood: `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`, `items`, `minItems`, `maxItems`,
//! `minLength`, `maxLength` (in characters), `minimum`, `maximum`, and the annotations `title`, `description`, `default`,
//! `examples`, `$schema`, `$id`, `$comment`, `format`.

use serde_json::{Map, Value};

/// So much of the name of a field is said.
const SHOWN_CHARS: usize = 64;
const ANNOTATIONS: [&str; 8] = [
    "title",
    "description",
    "default",
    "examples",
    "$schema",
    "$id",
    "$comment",
    "format",
];
const TYPES: [&str; 7] = [
    "object", "array", "string", "number", "integer", "boolean", "null",
];

/// Whether every part of the schema is understood.
///
/// # Errors
/// What is not, and where.
pub fn understand(schema: &Value) -> Result<(), String> {
    understand_at(schema, "the schema")
}

fn understand_at(schema: &Value, place: &str) -> Result<(), String> {
    let fields = match schema {
        Value::Bool(_) => return Ok(()),
        Value::Object(fields) => fields,
        _ => return Err(format!("{place} must be an object, true or false")),
    };
    for (key, value) in fields {
        let here = format!("{place}.{key}");
        let fits = match key.as_str() {
            "type" => types(value).is_some_and(|names| names.iter().all(|n| TYPES.contains(n))),
            "enum" => value.is_array(),
            "const" => true,
            "required" => value
                .as_array()
                .is_some_and(|names| names.iter().all(Value::is_string)),
            "properties" => match value.as_object() {
                Some(fields) => {
                    for (name, schema) in fields {
                        understand_at(schema, &format!("{here}.{name}"))?;
                    }
                    true
                }
                None => false,
            },
            "items" | "additionalProperties" => {
                understand_at(value, &here)?;
                true
            }
            "minItems" | "maxItems" | "minLength" | "maxLength" => value.is_u64(),
            "minimum" | "maximum" => value.is_number(),
            other if ANNOTATIONS.contains(&other) => true,
            _ => return Err(format!("{here} is a keyword that is not understood")),
        };
        if !fits {
            return Err(format!("{here} has a value that it does not take"));
        }
    }
    Ok(())
}

fn types(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(name) => Some(vec![name]),
        Value::Array(names) => names.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// Whether `value`, called `name`, is what an understood schema asks for.
///
/// # Errors
/// The first place where it is not, and what is asked there.
pub fn check(schema: &Value, value: &Value, name: &str) -> Result<(), String> {
    let fields = match schema {
        Value::Object(fields) => fields,
        Value::Bool(false) => return Err(format!("{name}: is not allowed")),
        _ => return Ok(()),
    };
    if let Some(names) = fields.get("type").and_then(types)
        && !names.iter().any(|wanted| is_of(value, wanted))
    {
        return Err(format!("{name}: must be of type {}", names.join(" or ")));
    }
    if let Some(wanted) = fields.get("const").filter(|wanted| *wanted != value) {
        return Err(format!("{name}: must be {wanted}"));
    }
    if let Some(Value::Array(all)) = fields.get("enum")
        && !all.contains(value)
    {
        return Err(format!("{name}: is none of the values allowed"));
    }
    match value {
        Value::Object(object) => check_object(fields, object, name),
        Value::Array(list) => {
            within(fields, "Items", list.len() as u64, name)?;
            let items = fields.get("items");
            let mut places = list.iter().enumerate();
            items.map_or(Ok(()), |schema| {
                places
                    .try_for_each(|(place, item)| check(schema, item, &format!("{name}[{place}]")))
            })
        }
        Value::String(text) => within(fields, "Length", text.chars().count() as u64, name),
        Value::Number(number) => {
            let number = number.as_f64();
            let limit = |key: &str| fields.get(key).and_then(Value::as_f64);
            match (number, limit("minimum"), limit("maximum")) {
                (Some(n), Some(least), _) if n < least => {
                    Err(format!("{name}: must be {least} or more"))
                }
                (Some(n), _, Some(most)) if n > most => {
                    Err(format!("{name}: must be {most} or less"))
                }
                _ => Ok(()),
            }
        }
        Value::Null | Value::Bool(_) => Ok(()),
    }
}

/// A foreign name in a place: as long as the input if it likes, it would be copied for every item of a list below it.
fn shown(field: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    field.chars().take(SHOWN_CHARS).map(plain).collect()
}

fn check_object(
    schema: &Map<String, Value>,
    object: &Map<String, Value>,
    name: &str,
) -> Result<(), String> {
    let required = schema.get("required").and_then(Value::as_array);
    let mut required = required.into_iter().flatten().filter_map(Value::as_str);
    if let Some(missing) = required.find(|field| !object.contains_key(*field)) {
        return Err(format!("{name}.{missing}: is missing"));
    }
    let known = schema.get("properties").and_then(Value::as_object);
    for (field, value) in object {
        let known = known.and_then(|known| known.get(field));
        if let Some(schema) = known.or_else(|| schema.get("additionalProperties")) {
            check(schema, value, &format!("{name}.{}", shown(field)))?;
        }
    }
    Ok(())
}

fn within(schema: &Map<String, Value>, of: &str, size: u64, name: &str) -> Result<(), String> {
    let limit = |key: &str| schema.get(&format!("{key}{of}")).and_then(Value::as_u64);
    match (limit("min"), limit("max")) {
        (Some(least), _) if size < least => {
            Err(format!("{name}: has {size}, the least is {least}"))
        }
        (_, Some(most)) if size > most => Err(format!("{name}: has {size}, the most is {most}")),
        _ => Ok(()),
    }
}

fn is_of(value: &Value, name: &str) -> bool {
    match (name, value) {
        ("object", Value::Object(_))
        | ("array", Value::Array(_))
        | ("string", Value::String(_))
        | ("number", Value::Number(_))
        | ("boolean", Value::Bool(_))
        | ("null", Value::Null) => true,
        ("integer", Value::Number(n)) => {
            n.is_i64() || n.is_u64() || n.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    /// The promise: what a peer calls a field is cut short, wherever it is repeated.
    #[test]
    fn a_long_name_is_not_repeated() {
        let schema = json!({"additionalProperties": {"additionalProperties": {"items": {"type": "number"}}}});
        understand(&schema).unwrap();
        let (long, bad) = ("\u{1b}[2J".repeat(10_000), json!([1, 2, "x"]));
        let reason = check(&schema, &json!({&long: {&long: bad}}), "input").unwrap_err();
        assert!(
            reason.ends_with("[2]: must be of type number"),
            "{}",
            reason.len()
        );
        assert!(reason.len() < 300 && !reason.contains('\u{1b}'));
    }

    /// The promise: each keyword refuses what it should, with the place, and takes what it should.
    #[test]
    fn each_keyword_checks() {
        for (schema, good, bad, place) in [
            (json!({"type": "integer"}), json!(3.0), json!(3.5), "x"),
            (
                json!({"type": ["string", "null"]}),
                json!(null),
                json!(1),
                "x",
            ),
            (json!({"enum": [1, "a"]}), json!("a"), json!("b"), "x"),
            (json!({"const": true}), json!(true), json!(1), "x"),
            (
                json!({"required": ["a"]}),
                json!({"a": 1}),
                json!({}),
                "x.a",
            ),
            (
                json!({"properties": {"a": {"minimum": 2}}}),
                json!({"a": 2, "b": 1}),
                json!({"a": 1}),
                "x.a",
            ),
            (
                json!({"properties": {"a": true}, "additionalProperties": false}),
                json!({"a": 1}),
                json!({"b": 1}),
                "x.b",
            ),
            (
                json!({"items": {"maxLength": 2}}),
                json!(["\u{e9}\u{e9}"]),
                json!(["a", "abc"]),
                "x[1]",
            ),
            (
                json!({"minItems": 1, "maxItems": 2}),
                json!([1]),
                json!([]),
                "x",
            ),
            (json!({"maxItems": 2}), json!([1]), json!([1, 2, 3]), "x"),
            (json!({"minLength": 1}), json!("a"), json!(""), "x"),
            (json!({"maximum": 2}), json!(2), json!(2.5), "x"),
        ] {
            understand(&schema).unwrap();
            assert_eq!(check(&schema, &good, "x"), Ok(()), "{schema}");
            let error = check(&schema, &bad, "x").unwrap_err();
            assert!(
                error.starts_with(&format!("{place}: ")),
                "{schema}: {error}"
            );
        }
    }

    /// The promise: a keyword that would not be checked is not taken, however deep it lies.
    #[test]
    fn what_is_not_understood_is_refused() {
        for schema in [
            json!({"pattern": "^a"}),
            json!({"properties": {"a": {"items": {"$ref": "#"}}}}),
            json!({"additionalProperties": {"oneOf": []}}),
            json!({"type": "text"}),
            json!({"required": "a"}),
            json!({"maxItems": -1}),
            json!("object"),
        ] {
            assert!(understand(&schema).is_err(), "{schema}");
        }
    }
}
