//! `[skills.NAME]`: skills of the owner's own, done by programs that the owner names. Nothing here comes from a peer. It must not
//! know which skills the program has built in, nor start anything.

use serde::{Deserialize, Serialize};

use super::{Fault, check, check_range};

/// One skill of the owner's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OwnSkill {
    /// The program and its arguments; it speaks the frames of `labor::frames`. A name is looked for in the node's `PATH`.
    pub command: Vec<String>,
    /// The most bytes of a result's JSON.
    pub output_max_bytes: u64,
}

impl Default for OwnSkill {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            output_max_bytes: 8_000,
        }
    }
}

impl OwnSkill {
    pub(super) fn validate(&self, name: &str) -> Result<(), Fault> {
        let table = format!("skills.{name}");
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        check(
            (1..=64).contains(&name.len()) && name.chars().all(plain),
            &table,
            "a skill's name has 1 to 64 of a-z 0-9 - _",
        )?;
        let program = self.command.first().map_or("", String::as_str);
        check(
            !program.is_empty(),
            &format!("{table}.command"),
            "name the program and its arguments, as [\"python3\", \"/home/me/skill.py\"]",
        )?;
        check(
            program.starts_with('/') || !program.contains('/'),
            &format!("{table}.command"),
            "the program is an absolute path, or a name that is found in PATH",
        )?;
        check_range(&table, 1, &[("output_max_bytes", self.output_max_bytes)])
    }
}

#[cfg(test)]
mod tests {
    //! What the owner wrote wrong is named by key.
    #![allow(clippy::unwrap_used, clippy::panic)]
    use crate::config::{Config, ConfigError};
    use std::path::Path;

    #[test]
    fn a_skill_names_its_program() {
        let good = "[skills.shout]\ncommand = [\"python3\", \"/home/me/shout.py\"]\n";
        let config = Config::parse(good, Path::new("legion.toml")).unwrap();
        assert_eq!(config.skills["shout"].command[0], "python3");
        for (bad, wrong) in [
            ("[skills.shout]\ncommand = []\n", "skills.shout.command"),
            (
                "[skills.shout]\ncommand = [\"bin/x\"]\n",
                "skills.shout.command",
            ),
            ("[skills.Shout]\ncommand = [\"x\"]\n", "skills.Shout"),
            ("[skills.shout]\nshell = \"x\"\n", "skills.shout.shell"),
            (
                "[skills.shout]\ncommand = [\"x\"]\noutput_max_bytes = 0\n",
                "skills.shout.output_max_bytes",
            ),
        ] {
            let Err(ConfigError::Invalid { key, line, .. }) =
                Config::parse(bad, Path::new("legion.toml"))
            else {
                panic!("taken: {bad}")
            };
            assert_eq!(key, wrong);
            assert!(line.is_some(), "{bad}");
        }
    }
}
