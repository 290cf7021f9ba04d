//! The one form in which signed objects are hashed and signed: a domain (`legion/<type>/v1\0`) and RFC 8785 canonical JSON. It
//! must not know what the objects mean, nor which key signs them.

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Integers at or beyond this leave the range that every JSON reader keeps exactly (RFC 7493); larger ones travel as strings.
pub const MAX_INTEGER: u64 = 1 << 53;

/// Why an object has no canonical form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CanonicalError {
    /// An integer would be rounded by some reader.
    #[error("the integer {0} is not below 2^53; send it as a decimal string")]
    IntegerRange(String),
    /// Not a JSON value, for instance because of keys that are not strings.
    #[error("the value has no canonical JSON form: {0}; use string keys and plain values")]
    NotJson(String),
}

impl CanonicalError {
    /// A stable name for programs and for searching.
    pub fn code(&self) -> &'static str {
        match self {
            Self::IntegerRange(_) => "integer_range",
            Self::NotJson(_) => "not_json",
        }
    }
}

/// RFC 8785 canonical JSON. Fails with `integer_range` or `not_json`. A float that is not finite becomes `null`, as `serde_json`
/// writes it everywhere: types that carry floats refuse those before.
pub fn canonical_json(value: &impl Serialize) -> Result<Vec<u8>, CanonicalError> {
    // The canonical writer turns every number into a double and would round silently, so integers are looked at before.
    let tree = serde_json::to_value(value).map_err(not_json)?;
    check_integers(&tree)?;
    serde_json_canonicalizer::to_vec(&tree).map_err(not_json)
}

/// The bytes that are signed for an object of this type: `legion/<type>/v1\0`, then its canonical JSON.
pub fn signing_bytes(object_type: &str, value: &impl Serialize) -> Result<Vec<u8>, CanonicalError> {
    let json = canonical_json(value)?;
    let mut bytes = Vec::with_capacity(object_type.len() + 11 + json.len());
    bytes.extend_from_slice(b"legion/");
    bytes.extend_from_slice(object_type.as_bytes());
    bytes.extend_from_slice(b"/v1\0");
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-256 as lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(sha256(bytes))
}

fn not_json(error: serde_json::Error) -> CanonicalError {
    CanonicalError::NotJson(error.to_string())
}

fn check_integers(value: &Value) -> Result<(), CanonicalError> {
    match value {
        Value::Number(number) => {
            let size = number
                .as_u64()
                .or_else(|| number.as_i64().map(i64::unsigned_abs));
            if size.is_some_and(|size| size >= MAX_INTEGER) {
                return Err(CanonicalError::IntegerRange(number.to_string()));
            }
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(check_integers),
        Value::Object(fields) => fields.values().try_for_each(check_integers),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn text(value: &impl Serialize) -> String {
        String::from_utf8(canonical_json(value).unwrap()).unwrap()
    }

    /// RFC 8785, sections 3.2.2 and 3.2.3.
    #[test]
    fn the_examples_of_rfc_8785_come_out_as_printed() {
        let input = r#"{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],
            "string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}"#;
        let value: Value = serde_json::from_str(input).unwrap();
        let expected = r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}"#;
        assert_eq!(text(&value), expected);
        // Keys are ordered by UTF-16 units: the emoji (a surrogate pair) before U+FB33.
        let keys = json!({"\u{20ac}": 1, "\r": 2, "\u{fb33}": 3, "1": 4, "\u{1f600}": 5, "\u{80}": 6, "\u{f6}": 7});
        assert_eq!(
            text(&keys),
            "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"\u{f6}\":7,\"\u{20ac}\":1,\"\u{1f600}\":5,\"\u{fb33}\":3}"
        );
    }

    #[test]
    fn two_types_never_share_a_signature() {
        let value = json!({"b": 1, "a": 2});
        assert_eq!(
            signing_bytes("proof", &value).unwrap(),
            b"legion/proof/v1\0{\"a\":2,\"b\":1}"
        );
        assert_ne!(
            signing_bytes("proof", &value).unwrap(),
            signing_bytes("receipt", &value).unwrap()
        );
    }

    #[test]
    fn integers_that_a_reader_would_round_are_refused() {
        let largest = MAX_INTEGER - 1;
        assert_eq!(
            text(&json!([largest, -(largest as i64)])),
            "[9007199254740991,-9007199254740991]"
        );
        for value in [
            json!({"a": [MAX_INTEGER]}),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(-(MAX_INTEGER as i64)),
        ] {
            assert_eq!(
                canonical_json(&value).unwrap_err().code(),
                "integer_range",
                "{value}"
            );
        }
    }

    #[test]
    fn what_is_not_json_is_refused_and_what_is_not_a_number_is_null() {
        let odd_keys = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert_eq!(canonical_json(&odd_keys).unwrap_err().code(), "not_json");
        assert_eq!(text(&vec![f64::NAN, f64::INFINITY, 1.5]), "[null,null,1.5]");
    }

    /// FIPS 180-2, appendix B.1.
    #[test]
    fn sha256_is_sha256() {
        assert_eq!(
            sha256_hex(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
