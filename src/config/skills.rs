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
    /// The most bytes of a result's JSON. An answer carries it twice, as JSON and as the unit's base64.
    pub output_max_bytes: u64,
    /// Whether the program is confined, as far as the system can. Without it the skill counts as level `none`.
    pub sandbox: bool,
    /// Files and folders that the program may read nevertheless: absolute paths.
    pub read: Vec<String>,
    /// Those that it may also run programs from.
    pub exec: Vec<String>,
    /// Device files that it may use.
    pub devices: Vec<String>,
}

impl Default for OwnSkill {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            output_max_bytes: 8_000,
            sandbox: true,
            read: Vec::new(),
            exec: Vec::new(),
            devices: Vec::new(),
        }
    }
}

impl OwnSkill {
    /// The most bytes of an answer: the result's JSON, and the same bytes in base64.
    pub fn answer_max_bytes(&self) -> u64 {
        let most = self.output_max_bytes;
        most.saturating_add(most.div_ceil(3).saturating_mul(4))
    }

    pub(super) fn validate(&self, name: &str, payload_bytes: u64) -> Result<(), Fault> {
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
        for (key, paths) in [
            ("read", &self.read),
            ("exec", &self.exec),
            ("devices", &self.devices),
        ] {
            let absolute = paths.iter().all(|path| path.starts_with('/'));
            check(
                absolute,
                &format!("{table}.{key}"),
                "a path begins with `/`",
            )?;
        }
        check_range(&table, 1, &[("output_max_bytes", self.output_max_bytes)])?;
        // What could not be sent is better refused here than after it was computed.
        let reason = format!(
            "an answer carries a result twice, and limits.payload_bytes allows {payload_bytes} bytes: take {} at most",
            payload_bytes / 7 * 3
        );
        check(
            self.answer_max_bytes() <= payload_bytes,
            &format!("{table}.output_max_bytes"),
            &reason,
        )
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
            (
                "[skills.shout]\ncommand = [\"x\"]\noutput_max_bytes = 3000000\n",
                "skills.shout.output_max_bytes",
            ),
            (
                "[skills.shout]\ncommand = [\"x\"]\nread = [\"here\"]\n",
                "skills.shout.read",
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
