//! A task's input, from a file or from `k=v` pairs that the skill's schema types.

mod strict;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Number, Value};

use super::adapters;
use super::error::CliError;

/// The node's own limit on a line of local control; what is larger would not arrive.
const MAX_INPUT_BYTES: u64 = 8 * 1_048_576;

/// How deep a schema's references and alternatives are followed.
const MAX_SCHEMA_DEPTH: u32 = 16;

/// Reads JSON from `path`, or from stdin when it is `-`.
pub(crate) fn from_file(path: &Path) -> Result<Value, CliError> {
    let unreadable = |error: std::io::Error| {
        let message = format!("the input {} cannot be read: {error}", path.display());
        CliError::new("input_unreadable", message)
    };
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(MAX_INPUT_BYTES + 1)
            .read_to_end(&mut bytes)
    } else {
        File::open(path)
            .map_err(unreadable)?
            .take(MAX_INPUT_BYTES + 1)
            .read_to_end(&mut bytes)
    };
    let size_bytes = u64::try_from(read.map_err(unreadable)?).unwrap_or(u64::MAX);
    if size_bytes > MAX_INPUT_BYTES {
        let message = format!("the input is larger than {MAX_INPUT_BYTES} bytes");
        return Err(CliError::new("payload_too_large", message));
    }
    strict::from_slice(&bytes)
        .map_err(|error| CliError::new("input_invalid", format!("the input {error}")))
}

/// Builds an input object from `k=v` and `k:=json` pairs. Without a schema for `skill` on this machine only `k:=json` is
/// possible: a guess at a type would be found wrong only by a peer.
pub(crate) fn from_pairs(skill: &str, pairs: &[&str]) -> Result<Value, CliError> {
    let catalog = adapters::catalog();
    let known = catalog
        .iter()
        .find(|known| known.get("id").and_then(Value::as_str) == Some(skill));
    typed(
        known.and_then(|known| known.get("input_schema")),
        skill,
        pairs,
    )
}

fn typed(schema: Option<&Value>, skill: &str, pairs: &[&str]) -> Result<Value, CliError> {
    let mut input = Map::new();
    for pair in pairs {
        let (name, text) = pair
            .split_once('=')
            .ok_or_else(|| invalid(pair, "it is not of the form k=v or k:=json"))?;
        let (name, value) = match name.strip_suffix(':') {
            Some(name) => {
                let value = strict::from_slice(text.as_bytes())
                    .map_err(|error| invalid(name, &format!("it {error}")))?;
                (name, value)
            }
            None => (name, by_schema(schema, skill, name, text)?),
        };
        if name.is_empty() || input.insert(name.to_owned(), value).is_some() {
            return Err(invalid(name, "a field is named once"));
        }
    }
    Ok(Value::Object(input))
}

fn by_schema(
    schema: Option<&Value>,
    skill: &str,
    name: &str,
    text: &str,
) -> Result<Value, CliError> {
    let Some(schema) = schema else {
        let message = format!(
            "this machine has no schema for the skill `{skill}`, so `{name}` has no known type"
        );
        return Err(CliError::new("schema_unknown", message));
    };
    let fields = schema.get("properties").and_then(Value::as_object);
    let Some(field) = fields.and_then(|fields| fields.get(name)) else {
        let known = fields
            .map(|fields| fields.keys().cloned().collect::<Vec<_>>().join(", "))
            .unwrap_or_default();
        return Err(invalid(
            name,
            &format!("unknown field of the skill `{skill}`; known: {known}"),
        ));
    };
    let mut shape = Shape::default();
    shape.collect(schema, field, MAX_SCHEMA_DEPTH);
    let value = shape
        .read(text)
        .ok_or_else(|| invalid(name, &format!("must be {}, not `{text}`", shape.describe())))?;
    if value.is_object() || value.is_array() {
        strict::from_slice(text.as_bytes())
            .map_err(|error| invalid(name, &format!("it {error}")))?;
    }
    Ok(value)
}

fn invalid(name: &str, reason: &str) -> CliError {
    let message = format!("input.{name}: {reason}");
    CliError::new("input_invalid", message)
}

/// What a field may be, gathered from `type`, `enum`, `const`, `$ref`, `anyOf`, `oneOf` and `allOf`.
#[derive(Default)]
struct Shape {
    types: Vec<String>,
    choices: Vec<Value>,
}

impl Shape {
    fn collect(&mut self, root: &Value, schema: &Value, depth: u32) {
        let Some(depth) = depth.checked_sub(1) else {
            return;
        };
        let target = schema
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|to| to.strip_prefix('#'));
        if let Some(found) = target.and_then(|pointer| root.pointer(pointer)) {
            self.collect(root, found, depth);
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            for branch in schema
                .get(key)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                self.collect(root, branch, depth);
            }
        }
        let constant = schema.get("const").into_iter();
        let choices = schema
            .get("enum")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let before = self.choices.len();
        self.choices.extend(constant.chain(choices).cloned());
        if self.choices.len() > before {
            return; // The choices say more than their type does.
        }
        match schema.get("type") {
            Some(Value::String(one)) => self.types.push(one.clone()),
            Some(Value::Array(many)) => {
                self.types
                    .extend(many.iter().filter_map(Value::as_str).map(str::to_owned));
            }
            _ => {}
        }
    }

    fn allows(&self, name: &str) -> bool {
        self.types.iter().any(|known| known == name)
    }

    /// The value that `text` means, the narrowest type first.
    fn read(&self, text: &str) -> Option<Value> {
        let given = serde_json::from_str::<Value>(text).ok();
        let given = given.as_ref();
        let is = |choice: &Value| {
            choice
                .as_str()
                .map_or_else(|| given == Some(choice), |word| word == text)
        };
        if let Some(choice) = self.choices.iter().find(|choice| is(choice)) {
            return Some(choice.clone());
        }
        let integer = || {
            text.parse::<i64>()
                .map(Value::from)
                .or_else(|_| text.parse::<u64>().map(Value::from))
                .ok()
        };
        let number = || {
            text.parse::<f64>()
                .ok()
                .and_then(Number::from_f64)
                .map(Value::Number)
        };
        let structured = |name: &str| {
            let value = serde_json::from_str::<Value>(text).ok()?;
            let fits = if name == "array" {
                value.is_array()
            } else {
                value.is_object()
            };
            fits.then_some(value)
        };
        let readers: [(&str, &dyn Fn() -> Option<Value>); 7] = [
            ("integer", &integer),
            ("number", &|| integer().or_else(number)),
            ("boolean", &|| text.parse::<bool>().ok().map(Value::Bool)),
            ("null", &|| (text == "null").then_some(Value::Null)),
            ("array", &|| structured("array")),
            ("object", &|| structured("object")),
            ("string", &|| Some(Value::from(text))),
        ];
        readers
            .iter()
            .filter(|(name, _)| self.allows(name))
            .find_map(|(_, read)| read())
    }

    fn describe(&self) -> String {
        let choices = self.choices.iter().map(|choice| {
            choice
                .as_str()
                .map_or_else(|| choice.to_string(), str::to_owned)
        });
        let types = self.types.iter().map(|name| match name.as_str() {
            "integer" => "a whole number".to_owned(),
            "boolean" => "true or false".to_owned(),
            "array" | "object" => format!("an {name}"),
            "null" => name.clone(),
            _ => format!("a {name}"),
        });
        let expected: Vec<String> = choices.chain(types).collect();
        if expected.is_empty() {
            "of a known type; use k:=json".to_owned()
        } else {
            expected.join(" or ")
        }
    }
}

#[cfg(test)]
mod tests {
    //! What is typed gets the type that the skill's schema asks for, or is refused here and not by a peer.
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "kind": { "$ref": "#/$defs/Kind" },
                "side": { "oneOf": [{ "type": "string", "const": "call" }, { "const": "put" }] },
                "spot": { "type": "number", "minimum": 0 },
                "paths": { "type": "integer" },
                "barrier": { "type": ["number", "null"] },
                "greeks": { "type": "boolean" },
                "seed": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
                "dates": { "type": "array" },
            },
            "$defs": { "Kind": { "type": "string", "enum": ["european", "asian"] } },
        })
    }

    fn read(pairs: &[&str]) -> Result<Value, CliError> {
        typed(Some(&schema()), "simulation", pairs)
    }

    #[test]
    fn each_field_gets_its_type() {
        let pairs = [
            "kind=asian",
            "side=put",
            "spot=100",
            "paths=65536",
            "barrier=null",
            "greeks=true",
            "seed=42",
            "dates=[1,2]",
        ];
        let expected = json!({
            "kind": "asian", "side": "put", "spot": 100, "paths": 65536, "barrier": null, "greeks": true, "seed": "42",
            "dates": [1, 2],
        });
        assert_eq!(read(&pairs).unwrap(), expected);
        assert_eq!(
            read(&["spot=-0.5", "barrier=1e2"]).unwrap(),
            json!({ "spot": -0.5, "barrier": 100.0 })
        );
        assert_eq!(
            read(&["seed=a=b"]).unwrap(),
            json!({ "seed": "a=b" }),
            "only the first = separates"
        );
    }

    #[test]
    fn json_can_be_forced() {
        assert_eq!(
            read(&["spot:=\"x\"", "other:={\"a\":1}"]).unwrap(),
            json!({ "spot": "x", "other": { "a": 1 } })
        );
        assert_eq!(
            typed(None, "far", &["a:=1"]).unwrap(),
            json!({ "a": 1 }),
            "even without a schema"
        );
        assert_eq!(
            typed(None, "far", &["a=1"]).unwrap_err().code,
            "schema_unknown"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_by_field() {
        for pair in [
            "kind=bermudan",
            "spot=cheap",
            "spot=NaN",
            "spot=inf",
            "paths=1.5",
            "greeks=yes",
            "nothing=1",
            "spot",
            "=1",
            "dates={}",
            "spot:=oops",
        ] {
            let error = read(&[pair]).unwrap_err();
            assert_eq!(
                (error.code.as_ref(), error.exit.0),
                ("input_invalid", 2),
                "{pair}"
            );
        }
        assert!(read(&["spot=1", "spot=2"]).is_err(), "twice");
        assert!(
            read(&["kind=bermudan"])
                .unwrap_err()
                .message
                .contains("european or asian")
        );
    }

    #[test]
    fn choices_need_not_be_words() {
        let schema = json!({ "properties": { "n": { "enum": [1, 2, "two"] } } });
        let read = |pair: &str| {
            typed(Some(&schema), "s", &[pair])
                .map(|input| input["n"].clone())
                .ok()
        };
        assert_eq!(
            [read("n=2"), read("n=two"), read("n=3")],
            [Some(json!(2)), Some(json!("two")), None]
        );
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let looped = json!({ "properties": { "a": { "$ref": "#/$defs/A" } }, "$defs": { "A": { "$ref": "#/$defs/A" } } });
        assert_eq!(
            typed(Some(&looped), "s", &["a=1"]).unwrap_err().code,
            "input_invalid"
        );
    }
}
