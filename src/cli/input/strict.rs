//! JSON that a person wrote, in which a key stands once per object: of two values the last would count, and nobody would say so.
//! It must not know what the JSON is for.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// What an error about a key begins with; none of the parser's own does.
const TWICE: &str = "names the key ";

/// Reads one value. The error ends a sentence about it: `names the key ...`, `is not JSON: ...`.
pub(super) fn from_slice(json: &[u8]) -> Result<Value, String> {
    match serde_json::from_slice::<Strict>(json) {
        Ok(Strict(value)) => Ok(value),
        Err(error) => {
            let text = error.to_string();
            Err(match text.starts_with(TWICE) {
                true => text,
                false => format!("is not JSON: {text}"),
            })
        }
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(AnyValue).map(Self)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = list.next_element()? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            if fields.contains_key(&key) {
                let text = format!("{TWICE}`{key}` twice in one object");
                return Err(A::Error::custom(text));
            }
            let Strict(value) = object.next_value()?;
            fields.insert(key, value);
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests {
    //! The same as the plain parser, but for keys that stand twice.
    #![allow(clippy::unwrap_used)]
    use super::from_slice;

    #[test]
    fn it_reads_what_the_plain_parser_reads() {
        for json in [
            "null",
            "[true,false,-1,18446744073709551615,1.5e300,0.1,\"\\u00e9\\n\"]",
            "{\"a\":{\"a\":[{\"a\":1},{\"a\":2}]},\"b\":{}}",
        ] {
            let plain: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(from_slice(json.as_bytes()).unwrap(), plain);
        }
        for bad in ["", "{", "[1,]", "{\"a\":1} x", "nan"] {
            let error = from_slice(bad.as_bytes()).unwrap_err();
            assert!(error.starts_with("is not JSON: "), "{error}");
        }
        let deep = "[".repeat(10_000);
        assert!(from_slice(deep.as_bytes()).is_err());
    }

    #[test]
    fn a_key_that_stands_twice_is_named_however_deep_or_spelled() {
        for json in [
            "{\"spot\":1,\"strike\":2,\"spot\":1}",
            "{\"spot\":1,\"\\u0073pot\":2}",
            "{\"a\":[{\"spot\":1,\"spot\":2}]}",
        ] {
            let error = from_slice(json.as_bytes()).unwrap_err();
            assert!(error.starts_with("names the key `spot` twice"), "{error}");
        }
    }
}
