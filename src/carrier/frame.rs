//! NIP-01 frames as text: what a relay says, read without building a JSON tree; what we ask it. Knows no state.

use std::fmt;

use nostr::{Filter, JsonUtil};
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// One message of a relay. Bodies are still text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RelayFrame<'a> {
    Event {
        sub: String,
        json: &'a str,
    },
    Ok {
        event_id: String,
        accepted: bool,
        message: String,
    },
    /// `finished`: NIP-67's hint, if the relay gives one.
    Eose {
        sub: String,
        finished: Option<bool>,
    },
    Closed {
        sub: String,
        message: String,
    },
    Auth {
        challenge: String,
    },
    Notice {
        message: String,
    },
}

/// `None`: not a frame that we know.
pub(crate) fn parse(text: &str) -> Option<RelayFrame<'_>> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parts = deserializer.deserialize_seq(FirstFour).ok()?;
    let string = |at: usize| {
        parts
            .get(at)
            .copied()
            .flatten()
            .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
    };
    Some(match string(0)?.as_str() {
        "EVENT" => RelayFrame::Event {
            sub: string(1)?,
            json: parts.get(2).copied().flatten()?.get(),
        },
        "OK" => RelayFrame::Ok {
            event_id: string(1)?,
            accepted: serde_json::from_str(parts.get(2).copied().flatten()?.get()).ok()?,
            message: string(3).unwrap_or_default(),
        },
        "EOSE" => RelayFrame::Eose {
            sub: string(1)?,
            finished: string(2).and_then(|hint| match hint.as_str() {
                "finish" => Some(true),
                "more" => Some(false),
                _ => None,
            }),
        },
        "CLOSED" => RelayFrame::Closed {
            sub: string(1)?,
            message: string(2).unwrap_or_default(),
        },
        "AUTH" => RelayFrame::Auth {
            challenge: string(1)?,
        },
        "NOTICE" => RelayFrame::Notice {
            message: string(1)?,
        },
        _ => return None,
    })
}

pub(crate) fn req(sub: &str, filter: &Filter) -> String {
    format!("[\"REQ\",\"{sub}\",{}]", filter.as_json())
}

pub(crate) fn close(sub: &str) -> String {
    format!("[\"CLOSE\",\"{sub}\"]")
}

/// The first four elements of an array; a hostile array of a million more costs no memory.
struct FirstFour;

impl<'de> Visitor<'de> for FirstFour {
    type Value = [Option<&'de RawValue>; 4];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a relay message")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut parts = [None; 4];
        for part in &mut parts {
            *part = seq.next_element()?;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// Promise: every frame of NIP-01, 42 and 67 is read; anything else is refused without a panic.
    #[test]
    fn reads_frames_and_refuses_the_rest() {
        assert_eq!(
            parse(r#"["EVENT","s1",{"id":"x"}]"#),
            Some(RelayFrame::Event {
                sub: "s1".into(),
                json: r#"{"id":"x"}"#
            })
        );
        assert_eq!(
            parse(r#"["EOSE","s1","finish"]"#),
            Some(RelayFrame::Eose {
                sub: "s1".into(),
                finished: Some(true)
            })
        );
        assert_eq!(
            parse(r#"["EOSE","s1"]"#),
            Some(RelayFrame::Eose {
                sub: "s1".into(),
                finished: None
            })
        );
        assert_eq!(
            parse(r#"["OK","ab",false,"mute: \u0041"]"#),
            Some(RelayFrame::Ok {
                event_id: "ab".into(),
                accepted: false,
                message: "mute: A".into()
            })
        );
        assert_eq!(
            parse(r#"["OK","ab",true]"#),
            Some(RelayFrame::Ok {
                event_id: "ab".into(),
                accepted: true,
                message: String::new()
            })
        );
        assert_eq!(
            parse(r#"["AUTH","c"]"#),
            Some(RelayFrame::Auth {
                challenge: "c".into()
            })
        );
        for bad in [
            "",
            "{}",
            "[]",
            "[1]",
            r#"["EVENT"]"#,
            r#"["OK","a","yes"]"#,
            r#"["EVENT","s",{"a":1}"#,
            "[[[[",
            r#"["XX",1]"#,
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
