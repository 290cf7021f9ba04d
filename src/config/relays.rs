//! Relay lists: the files `relays/*.toml`, each a sequence of `[[relay]]` tables.
//!
//! It knows the shape of the files and what a relay's URL looks like; it must not connect to anything.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ConfigError, line_of};

/// The list of public relays that a home gets when `legion init` is given no `--relay`.
pub(super) const PUBLIC: &str = "relays/public.toml";
/// The list itself.
pub const TEMPLATE_PUBLIC: &str = include_str!("../../relays/public.toml");

/// One relay and what it is used for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayEntry {
    /// `ws://` or `wss://` URL, at most 255 bytes.
    pub url: String,
    /// Whether inboxes and pools are read there.
    #[serde(default = "yes")]
    pub read: bool,
    /// Whether messages are sent there.
    #[serde(default = "yes")]
    pub write: bool,
    /// A remark for people.
    #[serde(default)]
    pub note: String,
}

fn yes() -> bool {
    true
}

impl RelayEntry {
    /// A relay that is read and written.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            read: true,
            write: true,
            note: String::new(),
        }
    }
}

/// A parsed relay list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RelayList {
    /// The relays, in the order of the file.
    pub relays: Vec<RelayEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    relay: Vec<RelayEntry>,
}

impl RelayList {
    /// Reads one list.
    ///
    /// # Errors
    /// [`ConfigError::RelayListMissing`], [`ConfigError::Unreadable`] or [`ConfigError::Invalid`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            // The list that ships with the program need not be in the home.
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound && path.ends_with(PUBLIC) =>
            {
                Self::parse(TEMPLATE_PUBLIC, path)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(ConfigError::RelayListMissing {
                    path: path.to_owned(),
                })
            }
            Err(source) => Err(ConfigError::Unreadable {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Parses the text of a list; `path` is used in errors only. Of two entries with one URL the first counts.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] naming key and line.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File =
            toml::from_str(text).map_err(|error| super::invalid_toml(text, path, &error))?;
        let mut list = Self::default();
        for entry in file.relay {
            check_url(&entry.url).map_err(|reason| ConfigError::Invalid {
                path: path.to_owned(),
                key: "relay.url".to_owned(),
                line: text
                    .lines()
                    .position(|line| line.contains(&entry.url))
                    .map(|index| index + 1)
                    .or_else(|| line_of(text, "relay.url")),
                reason,
            })?;
            list.add(entry);
        }
        Ok(list)
    }

    /// Appends an entry unless its URL, without a final slash, is already there.
    pub fn add(&mut self, mut entry: RelayEntry) {
        entry.url = entry.url.trim_end_matches('/').to_owned();
        if !self.relays.iter().any(|known| known.url == entry.url) {
            self.relays.push(entry);
        }
    }
}

/// Whether a configured source is meant as a URL, not as a file name.
pub(super) fn looks_like_url(source: &str) -> bool {
    source.contains("://")
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn has_good_port(host: &str) -> bool {
    let after_v6 = host.rsplit_once(']').map_or(host, |(_, rest)| rest);
    after_v6
        .split_once(':')
        .is_none_or(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// A relay's URL has a WebSocket scheme and a host, and nothing that could smuggle a header or a secret.
pub(super) fn check_url(url: &str) -> Result<(), String> {
    let rest = url
        .strip_prefix("wss://")
        .or_else(|| url.strip_prefix("ws://"));
    let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    match host {
        None => Err(format!("`{url}` does not begin with ws:// or wss://")),
        Some("") => Err(format!("`{url}` has no host")),
        Some(host) if host.contains('@') => {
            Err("a relay's URL carries no user or password".to_owned())
        }
        Some(host) if !has_good_port(host) => {
            Err(format!("`{url}` has a port that is not 1 to 65535"))
        }
        Some(_) if url.len() > 255 => Err("a relay's URL has at most 255 bytes".to_owned()),
        Some(_)
            if url.contains(|c: char| {
                c.is_whitespace() || c.is_control() || c == '"' || c == '\\'
            }) =>
        {
            Err("a relay's URL has no spaces, quotes or control characters".to_owned())
        }
        Some(_) => Ok(()),
    }
}

impl RelayList {
    /// Checks one URL as this room's files require it; for `legion init --relay`.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn check_url(url: &str) -> Result<(), String> {
        check_url(url)
    }

    /// The text of a list with these URLs, for `legion init --relay`. The URLs were checked before.
    #[must_use]
    pub fn render(urls: &[String]) -> String {
        let mut text = String::from(
            "# The relays given to `legion init --relay`. See relays/public.toml for every key.\n",
        );
        for url in urls {
            text.push_str(&format!("\n[[relay]]\nurl = \"{url}\"\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    //! Lists that ship with the program parse; URLs that no relay can have are refused.
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_shipped_list_parses() {
        let list = RelayList::parse(TEMPLATE_PUBLIC, Path::new("relays/public.toml")).unwrap();
        assert!(
            list.relays.len() >= 3,
            "one relay's outage must not cut a node off"
        );
        assert!(
            list.relays
                .iter()
                .all(|relay| relay.url.starts_with("wss://"))
        );
    }

    #[test]
    fn what_init_writes_is_what_it_was_given() {
        let urls = vec![
            "ws://127.0.0.1:7777".to_owned(),
            "wss://relay.example/path".to_owned(),
        ];
        let list =
            RelayList::parse(&RelayList::render(&urls), Path::new("relays/home.toml")).unwrap();
        assert_eq!(
            list.relays
                .iter()
                .map(|relay| relay.url.clone())
                .collect::<Vec<_>>(),
            urls
        );
    }

    #[test]
    fn bad_urls_are_refused() {
        for url in [
            "",
            "relay.example",
            "http://relay.example",
            "wss://",
            "wss://a b",
            "ws://u:p@h",
            "ws://host:99999",
            "ws://[::1]:x",
            "ws://h\"\n",
        ] {
            assert!(check_url(url).is_err(), "{url:?}");
        }
        let text = "[[relay]]\nurl = \"wss://ok.example\"\n[[relay]]\nurl = \"http://x.example\"\n";
        match RelayList::parse(text, Path::new("r.toml")) {
            Err(ConfigError::Invalid { line, .. }) => assert_eq!(line, Some(4)),
            other => panic!("{other:?}"),
        }
    }
}
