//! One event as the relay keeps it, and one filter as a client wrote it (NIP-01). What is here decides whether the two match; it
//! knows no clock, no connection and no index.

use nostr::Event;
use serde_json::{Map, Value};

/// An event id or a public key, as bytes.
pub(crate) type Bytes32 = [u8; 32];

/// What an event costs beyond its JSON: index entries, allocations. Rough, so that a limit in bytes is about memory, not about text.
const OVERHEAD_BYTES: usize = 512;
const OVERHEAD_TAG_BYTES: usize = 160;

/// How a kind is kept (NIP-01).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeping {
    Regular,
    Replaceable,
    Addressable,
    Ephemeral,
}

/// The kind numbers of NIP-01 to their meaning.
pub(crate) fn keeping(kind: u16) -> Keeping {
    match kind {
        0 | 3 | 10_000..=19_999 => Keeping::Replaceable,
        20_000..=29_999 => Keeping::Ephemeral,
        30_000..=39_999 => Keeping::Addressable,
        _ => Keeping::Regular,
    }
}

/// A verified event: what filters look at, and the JSON that goes to every reader unchanged.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) id: Bytes32,
    pub(crate) author: Bytes32,
    pub(crate) kind: u16,
    pub(crate) created_at_s: u64,
    pub(crate) expires_at_s: Option<u64>,
    /// Tags with a one-letter name: the letter and the first value.
    pub(crate) tags: Vec<(u8, Box<str>)>,
    /// NIP-70: only its author, authenticated, may publish it.
    pub(crate) protected: bool,
    pub(crate) json: Box<str>,
}

impl Record {
    /// Takes an event whose id and signature the caller has verified. `None` if it cannot be written as JSON.
    pub(crate) fn new(event: &Event) -> Option<Self> {
        let json = serde_json::to_string(event).ok()?.into_boxed_str();
        let mut tags = Vec::new();
        let mut expires_at_s = None;
        let mut protected = false;
        for tag in event.tags.iter() {
            let parts = tag.as_slice();
            let (Some(name), value) = (parts.first(), parts.get(1)) else {
                continue;
            };
            match (name.as_bytes(), value) {
                ([letter], Some(value)) if letter.is_ascii_alphabetic() => {
                    tags.push((*letter, value.as_str().into()))
                }
                (b"-", None) => protected = true,
                (b"expiration", Some(value)) if expires_at_s.is_none() => {
                    expires_at_s = value.parse().ok()
                }
                _ => {}
            }
        }
        Some(Self {
            id: event.id.to_bytes(),
            author: event.pubkey.to_bytes(),
            kind: event.kind.as_u16(),
            created_at_s: event.created_at.as_secs(),
            expires_at_s,
            tags,
            protected,
            json,
        })
    }

    /// The values of all tags of one letter.
    pub(crate) fn tag_values(&self, letter: u8) -> impl Iterator<Item = &str> {
        self.tags
            .iter()
            .filter(move |(l, _)| *l == letter)
            .map(|(_, value)| value.as_ref())
    }

    /// Whether `author` is its author or named by one of its `p` tags (NIP-59: the recipient owns a gift wrap).
    pub(crate) fn belongs_to(&self, author: &Bytes32) -> bool {
        self.author == *author
            || (self.kind == 1059 && self.tag_values(b'p').any(|p| p == hex::encode(author)))
    }

    /// What it counts against the limit in bytes.
    pub(crate) fn cost_bytes(&self) -> usize {
        let tags: usize = self
            .tags
            .iter()
            .map(|(_, value)| value.len() + OVERHEAD_TAG_BYTES)
            .sum();
        self.json.len() + tags + OVERHEAD_BYTES
    }

    /// NIP-40.
    pub(crate) fn is_expired(&self, now_s: u64) -> bool {
        self.expires_at_s.is_some_and(|at| at <= now_s)
    }
}

/// One filter of a REQ or COUNT (NIP-01). A list that is present and empty matches nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) ids: Option<Vec<Bytes32>>,
    pub(crate) authors: Option<Vec<Bytes32>>,
    pub(crate) kinds: Option<Vec<u16>>,
    /// Tag letter and the values, of which one must be present; all letters must match.
    pub(crate) tags: Vec<(u8, Vec<String>)>,
    pub(crate) since_s: Option<u64>,
    pub(crate) until_s: Option<u64>,
    pub(crate) limit: Option<usize>,
}

impl Filter {
    /// Reads a filter; `max_values` bounds each of its lists. Keys that NIP-01 does not know are ignored, as it asks of relays.
    pub(crate) fn parse(value: &Value, max_values: usize) -> Result<Self, String> {
        let object: &Map<String, Value> = value.as_object().ok_or("a filter is a JSON object")?;
        let mut filter = Self::default();
        for (key, value) in object {
            match key.as_str() {
                "ids" => filter.ids = Some(hex_list(key, value, max_values)?),
                "authors" => filter.authors = Some(hex_list(key, value, max_values)?),
                "kinds" => filter.kinds = Some(kind_list(list(key, value, max_values)?)?),
                "since" => filter.since_s = Some(number(key, value)?),
                "until" => filter.until_s = Some(number(key, value)?),
                "limit" => {
                    filter.limit = Some(usize::try_from(number(key, value)?).unwrap_or(usize::MAX))
                }
                name => {
                    if let [b'#', letter] = name.as_bytes() {
                        filter
                            .tags
                            .push((*letter, text_list(key, value, max_values)?));
                    }
                }
            }
        }
        Ok(filter)
    }

    /// Whether the event matches everything but `limit`.
    pub(crate) fn matches(&self, record: &Record) -> bool {
        self.since_s
            .is_none_or(|since| record.created_at_s >= since)
            && self
                .until_s
                .is_none_or(|until| record.created_at_s <= until)
            && self
                .kinds
                .as_ref()
                .is_none_or(|kinds| kinds.contains(&record.kind))
            && self
                .authors
                .as_ref()
                .is_none_or(|authors| authors.contains(&record.author))
            && self.ids.as_ref().is_none_or(|ids| ids.contains(&record.id))
            && self.tags.iter().all(|(letter, wanted)| {
                record
                    .tag_values(*letter)
                    .any(|value| wanted.iter().any(|w| w == value))
            })
    }

    /// The values asked for under one tag letter, if the filter names that letter.
    pub(crate) fn tag(&self, letter: u8) -> Option<&[String]> {
        self.tags
            .iter()
            .find(|(l, _)| *l == letter)
            .map(|(_, values)| values.as_slice())
    }
}

fn number(key: &str, value: &Value) -> Result<u64, String> {
    value
        .as_u64()
        .ok_or_else(|| format!("`{key}` is a whole number, not negative"))
}

fn list<'a>(key: &str, value: &'a Value, max_values: usize) -> Result<&'a [Value], String> {
    let values = value
        .as_array()
        .ok_or_else(|| format!("`{key}` is a list"))?;
    if values.len() > max_values {
        return Err(format!(
            "`{key}` has {} values, at most {max_values} are allowed",
            values.len()
        ));
    }
    Ok(values)
}

fn text_list(key: &str, value: &Value, max_values: usize) -> Result<Vec<String>, String> {
    list(key, value, max_values)?
        .iter()
        .map(|v| {
            v.as_str()
                .map(str::to_owned)
                .ok_or_else(|| format!("`{key}` is a list of strings"))
        })
        .collect()
}

fn hex_list(key: &str, value: &Value, max_values: usize) -> Result<Vec<Bytes32>, String> {
    text_list(key, value, max_values)?
        .iter()
        .map(|text| {
            let mut bytes = [0; 32];
            hex::decode_to_slice(text, &mut bytes)
                .map_err(|_| format!("`{key}` holds 64 hex digits each"))?;
            Ok(bytes)
        })
        .collect()
}

/// A number no kind can have matches nothing, so it is dropped; the list stays.
fn kind_list(values: &[Value]) -> Result<Vec<u16>, String> {
    let mut kinds = Vec::with_capacity(values.len());
    for value in values {
        let kind = number("kinds", value)?;
        if let Ok(kind) = u16::try_from(kind) {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}
