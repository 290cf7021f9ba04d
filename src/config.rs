//! Every setting, its default and its unit: plain data that any room may read.
//!
//! This room knows the shape of `config/legion.toml`, of `relays/*.toml` and of a home directory. It must not know what a
//! setting is used for, open the store, or touch the network; it imports no other room.

mod home;
mod permissions;
mod relays;
mod sections;
mod skills;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use home::Home;
pub use permissions::{PermissionRule, Permissions, SandboxLevel, TierPermission};
pub use relays::{RelayEntry, RelayList, TEMPLATE_PUBLIC};
pub use sections::{
    Labor, Limits, Log, LogFormat, LogLevel, Market, OnCancel, Owner, Pow, StoreQuotas,
    Verification,
};
pub use skills::{Endpoint, OwnSkill};

/// The commented default, as it lies in the repository and as `legion init` writes it into a home.
pub const TEMPLATE: &str = include_str!("../config/legion.toml");

/// No amount, count or time in this file may reach 2^53: JSON readers in other languages lose integers above it.
const MAX_INTEGER: u64 = (1 << 53) - 1;

/// A setting that does not hold: its dotted key, and the reason.
type Fault = (String, String);

/// Everything a node can be told, with a default for each. Read from `config/legion.toml` of a home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Relays to use: `ws://` or `wss://` URLs, or names of relay lists relative to the home (`relays/public.toml`).
    pub relays: Vec<String>,
    /// Open pools to join, by name.
    pub pools: Vec<String>,
    /// The names in this node's LCT, `lct:web4:agent:<name>@<node>#<role>`; read once, by `legion init`.
    pub owner: Owner,
    /// Limits on everything that others can make this node hold or do.
    pub limits: Limits,
    /// Prices, credit and the times of the market.
    pub market: Market,
    /// What each tier of peers may ask of this node.
    pub permissions: Permissions,
    /// The worker process.
    pub labor: Labor,
    /// Skills of the owner's own, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub skills: BTreeMap<String, OwnSkill>,
    /// How results are checked before they are paid.
    pub verification: Verification,
    /// NIP-13 proof of work on wraps to pools.
    pub pow: Pow,
    /// How much the store keeps.
    pub store: StoreQuotas,
    /// What is logged, and how.
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            relays: vec![relays::PUBLIC.to_owned()],
            pools: vec!["legion".to_owned()],
            owner: Owner::default(),
            limits: Limits::default(),
            market: Market::default(),
            permissions: Permissions::default(),
            labor: Labor::default(),
            skills: BTreeMap::new(),
            verification: Verification::default(),
            pow: Pow::default(),
            store: StoreQuotas::default(),
            log: Log::default(),
        }
    }
}

impl Config {
    /// Reads `config/legion.toml` of `home`; a home without the file has the defaults.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] naming key and line, or [`ConfigError::Unreadable`].
    pub fn load(home: &Home) -> Result<Self, ConfigError> {
        let path = home.config_file();
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Unreadable { path, source }),
        }
    }

    /// Whether the home's file is there and says nothing, as after a disk was full: [`Config::load`] takes the defaults then.
    pub fn is_empty_file(home: &Home) -> bool {
        let text = std::fs::read_to_string(home.config_file());
        text.is_ok_and(|text| text.trim().is_empty())
    }

    /// Parses the text of a configuration file; `path` is used in errors only.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] naming key and line.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| invalid_toml(text, path, &error))?;
        config
            .validate()
            .map_err(|(key, reason)| ConfigError::Invalid {
                path: path.to_owned(),
                line: line_of(text, &key),
                key,
                reason,
            })?;
        Ok(config)
    }

    /// The relays this node uses: the URLs of `relays` and the lists it names, first mention first, without duplicates.
    ///
    /// # Errors
    /// [`ConfigError::RelayListMissing`] or [`ConfigError::Invalid`] for a list that cannot be read.
    pub fn relay_list(&self, home: &Home) -> Result<RelayList, ConfigError> {
        let mut list = RelayList::default();
        for source in &self.relays {
            if relays::looks_like_url(source) {
                list.add(RelayEntry::new(source));
            } else {
                let part = RelayList::load(&home.root().join(source))?;
                part.relays.into_iter().for_each(|entry| list.add(entry));
            }
        }
        Ok(list)
    }

    /// What serde cannot say: ranges, and settings that only make sense together.
    fn validate(&self) -> Result<(), Fault> {
        for source in &self.relays {
            if relays::looks_like_url(source) {
                relays::check_url(source).map_err(|reason| fault("relays", &reason))?;
            } else if !source.ends_with(".toml") {
                let reason =
                    format!("`{source}` is neither a ws:// or wss:// URL nor a .toml file");
                return Err(fault("relays", &reason));
            }
        }
        for pool in &self.pools {
            let fits = !pool.is_empty() && pool.len() <= 64 && !pool.contains(char::is_control);
            check(
                fits,
                "pools",
                "a pool's name has 1 to 64 bytes and no control characters",
            )?;
        }
        self.owner.validate()?;
        self.limits.validate()?;
        self.market.validate()?;
        self.permissions.validate()?;
        self.labor.validate()?;
        for (name, skill) in &self.skills {
            skill.validate(name, self.limits.payload_bytes)?;
        }
        self.verification.validate()?;
        self.pow.validate()
    }
}

/// What goes wrong with settings, relay lists and homes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A key that does not exist, or a value that its key does not take.
    #[error("`{key}` in {}{} is not valid: {reason}", path.display(), at_line(*line))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The dotted key, such as `market.lease_ttl_ms`.
        key: String,
        /// Its line, from 1, where it is known.
        line: Option<usize>,
        /// What is expected.
        reason: String,
    },
    /// A file is there but cannot be read.
    #[error("{} cannot be read: {source}; check its owner and mode", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `relays` names a list that is not in the home.
    #[error("the relay list {} does not exist; create it, or correct `relays` in config/legion.toml", path.display())]
    RelayListMissing {
        /// The file.
        path: PathBuf,
    },
    /// The home lies in a git work tree that would take its keys along.
    #[error("the home {} lies inside a git work tree that does not ignore its keys/; use another --home, or ignore `keys/*` there", home.display())]
    HomeInGit {
        /// The home.
        home: PathBuf,
    },
    /// Neither `--home`, nor `LEGION_HOME`, nor a platform data directory.
    #[error("no home directory is known on this system; pass --home DIR or set LEGION_HOME")]
    HomeUnknown,
    /// A directory of the home, or the private one for its socket, cannot be made or is not ours alone.
    #[error("the directory {} cannot be used: {reason}", path.display())]
    HomeUnusable {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
}

impl ConfigError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "config_invalid",
            Self::Unreadable { .. } => "config_unreadable",
            Self::RelayListMissing { .. } => "relay_list_missing",
            Self::HomeInGit { .. } => "home_in_git",
            Self::HomeUnknown => "home_unknown",
            Self::HomeUnusable { .. } => "home_unusable",
        }
    }
}

fn at_line(line: Option<usize>) -> String {
    line.map(|line| format!(", line {line}"))
        .unwrap_or_default()
}

fn fault(key: &str, reason: &str) -> Fault {
    (key.to_owned(), reason.to_owned())
}

/// One rule of `validate`: `holds`, or `key` is to blame.
fn check(holds: bool, key: &str, reason: &str) -> Result<(), Fault> {
    if holds {
        Ok(())
    } else {
        Err(fault(key, reason))
    }
}

/// Every integer named here lies in `low..=2^53-1`.
fn check_range(section: &str, low: u64, values: &[(&str, u64)]) -> Result<(), Fault> {
    for (key, value) in values {
        let reason = format!("{value} is outside {low}..={MAX_INTEGER}");
        check(
            (low..=MAX_INTEGER).contains(value),
            &format!("{section}.{key}"),
            &reason,
        )?;
    }
    Ok(())
}

/// Names key and line of an error that `toml` found, from the span it gives.
fn invalid_toml(text: &str, path: &Path, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map(|span| {
        let before = text.get(..span.start).unwrap_or(text);
        before.matches('\n').count() + 1
    });
    let key = line.and_then(|line| key_at(text, line));
    ConfigError::Invalid {
        path: path.to_owned(),
        key: key.unwrap_or_else(|| "the file".to_owned()),
        line,
        reason: error.message().trim().replace('\n', ", "),
    }
}

/// The table a line opens, if it does: `market` for `[market]` and for `[[market]]`.
fn table_name(line: &str) -> Option<&str> {
    let inner = line.trim().strip_prefix('[')?.split(']').next()?;
    let name = inner.trim_start_matches('[').trim();
    let plain = |c: char| c.is_alphanumeric() || "._-\" ".contains(c);
    (!name.is_empty() && name.chars().all(plain)).then_some(name)
}

/// The key a line sets, if it does.
fn key_name(line: &str) -> Option<&str> {
    let key = line.split_once('=')?.0.trim();
    (!key.is_empty() && !key.starts_with(['#', '"', '{', '['])).then_some(key)
}

fn dotted(table: Option<&str>, key: &str) -> String {
    table.map_or_else(|| key.to_owned(), |table| format!("{table}.{key}"))
}

/// The dotted key that the `line`-th line (from 1) sets or continues.
fn key_at(text: &str, line: usize) -> Option<String> {
    let mut table = None;
    let mut key = None;
    for content in text.lines().take(line) {
        if let Some(name) = table_name(content) {
            (table, key) = (Some(name), None);
        } else if let Some(name) = key_name(content) {
            key = Some(name);
        }
    }
    key.map(|key| dotted(table, key))
        .or_else(|| table.map(str::to_owned))
}

/// The line (from 1) that sets the dotted `key`, or opens the table of that name.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let mut table = None;
    for (index, content) in text.lines().enumerate() {
        if let Some(name) = table_name(content) {
            if name == key {
                return Some(index + 1);
            }
            table = Some(name);
        } else if key_name(content).is_some_and(|name| dotted(table, name) == key) {
            return Some(index + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    //! An error in a file names the key and the line that a person has to change.
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn fails(text: &str) -> (String, Option<usize>, String) {
        match Config::parse(text, Path::new("legion.toml")) {
            Err(ConfigError::Invalid {
                key, line, reason, ..
            }) => (key, line, reason),
            other => panic!("expected config_invalid, got {other:?}"),
        }
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let config = Config::parse("", Path::new("legion.toml")).unwrap();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let (key, line, reason) = fails("pools = []\n\n[market]\nlease_ttl = 5\n");
        assert_eq!((key.as_str(), line), ("market.lease_ttl", Some(4)));
        assert!(
            reason.contains("lease_ttl_ms"),
            "the known keys are listed: {reason}"
        );
    }

    #[test]
    fn an_unknown_table_is_named_with_its_line() {
        let (key, line, _) = fails("[market]\n[marked]\nx = 1\n");
        assert_eq!((key.as_str(), line), ("marked", Some(2)));
    }

    #[test]
    fn a_wrong_type_and_a_negative_amount_are_named() {
        let (key, line, _) = fails("[labor]\nenabled = \"yes\"\n");
        assert_eq!((key.as_str(), line), ("labor.enabled", Some(2)));
        let (key, line, _) = fails("[market]\n# price\ndefault_max_price_mc = -1\n");
        assert_eq!(
            (key.as_str(), line),
            ("market.default_max_price_mc", Some(3))
        );
    }

    #[test]
    fn a_value_out_of_range_is_named() {
        let (key, line, _) = fails("[verification]\nforged_share_bp = 10001\n");
        assert_eq!(
            (key.as_str(), line),
            ("verification.forged_share_bp", Some(2))
        );
        let (key, line, _) = fails("\n[market]\nlease_ttl_ms = 0\n");
        assert_eq!((key.as_str(), line), ("market.lease_ttl_ms", Some(3)));
        let (key, line, _) = fails("relays = [\n  \"http://relay.example\",\n]\n");
        assert_eq!((key.as_str(), line), ("relays", Some(1)));
    }

    #[test]
    fn text_that_is_no_toml_is_refused_with_its_line() {
        let (_, line, _) = fails("pools = [\"a\"]\n[market\n");
        assert_eq!(line, Some(2));
    }

    #[test]
    fn a_tier_keeps_the_defaults_it_does_not_set() {
        let text = "[permissions.stranger]\nmax_concurrent = 3\n";
        let config = Config::parse(text, Path::new("legion.toml")).unwrap();
        let expected = TierPermission {
            max_concurrent: 3,
            ..TierPermission::stranger()
        };
        assert_eq!(config.permissions.stranger, expected);
        assert_eq!(config.permissions.trusted, TierPermission::trusted());
        let (key, _, _) = fails("[permissions.stranger]\nmax_rate = 3\n");
        assert!(key.starts_with("permissions.stranger"), "{key}");
    }

    #[test]
    fn relays_come_from_urls_and_lists_without_duplicates() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("relays")).unwrap();
        let list = "[[relay]]\nurl = \"wss://a.example/\"\n[[relay]]\nurl = \"wss://b.example\"\nwrite = false\n";
        std::fs::write(dir.path().join("relays/home.toml"), list).unwrap();
        let text = "relays = [\"wss://a.example\", \"relays/home.toml\"]\n";
        let config = Config::parse(text, Path::new("legion.toml")).unwrap();
        let home = Home::new(dir.path().to_owned());
        let relays = config.relay_list(&home).unwrap().relays;
        let urls: Vec<&str> = relays.iter().map(|entry| entry.url.as_str()).collect();
        assert_eq!(urls, ["wss://a.example", "wss://b.example"]);
        assert!(!relays[1].write);

        let missing = Config {
            relays: vec!["relays/none.toml".into()],
            ..Config::default()
        };
        assert_eq!(
            missing.relay_list(&home).unwrap_err().code(),
            "relay_list_missing"
        );
    }
}
