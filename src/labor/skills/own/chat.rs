//! What a model behind the owner's server takes and gives as a skill: the schemas, what they cannot say, and the request made of an
//! input. The same on every node; it must not know where the server is, nor speak to it.

use serde_json::{Map, Value, json};

use crate::labor::skills::{SkillError, SkillInfo, schema};

/// Longer conversations than any model keeps.
const MESSAGES: usize = 1_024;
const STOPS: usize = 4;

/// What is known of the model: all of it from the owner's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chat {
    /// Its name at the server.
    pub model: String,
    /// The most tokens of one answer.
    pub max_output_tokens: u64,
}

impl Chat {
    /// The skill `name` as a card shows it.
    pub(super) fn info(&self, name: &str) -> SkillInfo {
        // Once per start and skill: they live as long as the process.
        let keep = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
        let id = keep(name.to_owned());
        let model = &self.model;
        SkillInfo {
            id,
            name: id,
            description: keep(format!("Chat with the language model {model}.")),
            tags: &["own", "chat"],
            input_schema: self.input_schema(),
            output_schema: output_schema(),
            unit_price_mc: 1,
            implementation: keep(format!("openai/{model}")),
        }
    }

    fn input_schema(&self) -> Value {
        let text = json!({"type": "string"});
        let role = json!({"type": "string", "enum": ["system", "user", "assistant"]});
        let message = json!({
            "type": "object",
            "properties": {"role": role, "content": text},
            "required": ["role", "content"],
            "additionalProperties": false,
        });
        let stop = json!({"type": "string", "minLength": 1, "maxLength": 256});
        json!({
            "type": "object",
            "description": "Either `messages` or `prompt`, which is one message of the user's.",
            "properties": {
                "messages": {"type": "array", "items": message, "minItems": 1, "maxItems": MESSAGES},
                "prompt": {"type": "string", "minLength": 1},
                "max_tokens": {"type": "integer", "minimum": 1, "maximum": self.max_output_tokens},
                "temperature": {"type": "number", "minimum": 0, "maximum": 2},
                "seed": {"type": "integer", "minimum": 0, "maximum": u32::MAX},
                "stop": {"type": "array", "items": stop, "minItems": 1, "maxItems": STOPS},
            },
            "additionalProperties": false,
        })
    }

    /// That an input has the shape of the schema, and one of the two that it must have.
    ///
    /// # Errors
    /// `input_invalid`.
    pub fn check(&self, input: &Value) -> Result<(), SkillError> {
        schema::check(&self.input_schema(), input, "input").map_err(SkillError::input)?;
        match (input.get("messages"), input.get("prompt")) {
            (Some(_), None) | (None, Some(_)) => Ok(()),
            _ => {
                let text = "input: has either `messages` or `prompt`";
                Err(SkillError::input(text))
            }
        }
    }

    /// The most tokens that an answer to this input may have.
    pub fn tokens(&self, input: &Value) -> u64 {
        let asked = input.get("max_tokens").and_then(Value::as_u64);
        asked.map_or(self.max_output_tokens, |n| n.min(self.max_output_tokens))
    }

    /// What the server is asked, for a checked input. Only what is named here is passed on.
    pub fn request(&self, input: &Value) -> Value {
        let prompt = || json!([{"role": "user", "content": input.get("prompt")}]);
        let mut body = Map::new();
        let messages = input.get("messages").cloned().unwrap_or_else(prompt);
        body.insert("model".to_owned(), json!(self.model));
        body.insert("messages".to_owned(), messages);
        body.insert("max_tokens".to_owned(), json!(self.tokens(input)));
        body.insert("stream".to_owned(), json!(true));
        body.insert("stream_options".to_owned(), json!({"include_usage": true}));
        for name in ["temperature", "seed", "stop"] {
            if let Some(value) = input.get(name) {
                body.insert(name.to_owned(), value.clone());
            }
        }
        Value::Object(body)
    }
}

/// `usage` holds nulls where the server does not count.
fn output_schema() -> Value {
    let count = json!({"type": ["integer", "null"], "minimum": 0});
    let usage = json!({
        "type": "object",
        "properties": {"prompt_tokens": count, "completion_tokens": count},
        "required": ["prompt_tokens", "completion_tokens"],
        "additionalProperties": false,
    });
    json!({
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "finish_reason": {"type": "string", "maxLength": 64},
            "usage": usage,
            "model": {"type": "string", "maxLength": 256},
        },
        "required": ["text", "finish_reason", "usage", "model"],
        "additionalProperties": false,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn chat() -> Chat {
        Chat {
            model: "tiny".to_owned(),
            max_output_tokens: 100,
        }
    }

    /// The promise: a peer chooses words and how they are drawn, never the model, the address, or more tokens than the owner allows.
    #[test]
    fn an_input_says_no_more_than_it_may() {
        let hello = json!([{"role": "user", "content": "hello"}]);
        let both = json!({"messages": hello, "prompt": "x"});
        for bad in [
            json!({}),
            both,
            json!({"prompt": ""}),
            json!({"prompt": 1}),
            json!({"messages": []}),
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            json!({"messages": [{"role": "user", "content": "x", "name": "y"}]}),
            json!({"prompt": "x", "model": "other"}),
            json!({"prompt": "x", "url": "http://other"}),
            json!({"prompt": "x", "stream": false}),
            json!({"prompt": "x", "max_tokens": 101}),
            json!({"prompt": "x", "temperature": -1}),
            json!({"prompt": "x", "stop": "x"}),
        ] {
            assert_eq!(
                chat().check(&bad).unwrap_err().code,
                "input_invalid",
                "{bad}"
            );
        }
        let input = json!({"messages": hello, "max_tokens": 7, "temperature": 0.5, "seed": 3, "stop": ["x"]});
        chat().check(&input).unwrap();
        assert_eq!(
            chat().request(&input),
            json!({"model": "tiny", "messages": hello, "max_tokens": 7, "stream": true,
                "stream_options": {"include_usage": true}, "temperature": 0.5, "seed": 3, "stop": ["x"]})
        );
        let short = json!({"prompt": "hello"});
        chat().check(&short).unwrap();
        assert_eq!(chat().request(&short)["messages"], hello);
        assert_eq!(chat().request(&short)["max_tokens"], 100);
    }

    /// The promise: what is checked with these schemas is checked whole.
    #[test]
    fn its_schemas_are_understood() {
        let info = chat().info("chat");
        schema::understand(&info.input_schema).unwrap();
        schema::understand(&info.output_schema).unwrap();
    }
}
