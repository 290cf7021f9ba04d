//! `[skills.NAME]`: skills of the owner's own, done by programs or servers that the owner names. Nothing here comes from a peer. It must
//! not know which skills the program has built in, nor start or call anything.

use serde::{Deserialize, Serialize};

use super::{Fault, check, check_range};

/// One skill of the owner's own: a program (`command`), or a model behind a server of the owner's (`openai`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OwnSkill {
    /// The program and its arguments; it speaks the frames of `labor::frames`. A name is looked for in the node's `PATH`.
    pub command: Vec<String>,
    /// The most bytes of a result's JSON. An answer carries it twice, as JSON and as the unit's base64. 0: 8000 of a program, and
    /// of a model as much as `max_output_tokens` can need.
    pub output_max_bytes: u64,
    /// Whether the program is confined, as far as the system can. Without it the skill counts as level `none`.
    pub sandbox: bool,
    /// Files and folders that the program may read nevertheless: absolute paths.
    pub read: Vec<String>,
    /// Those that it may also run programs from.
    pub exec: Vec<String>,
    /// Device files that it may use.
    pub devices: Vec<String>,
    /// The base of a server that speaks OpenAI's chat completions: `http://host[:port][/path]`, usually ending in `/v1`.
    pub openai: String,
    /// The model's name there.
    pub model: String,
    /// A file with the key that the server wants, if it wants one.
    pub api_key_file: String,
    /// The most tokens of one answer; a peer may ask for fewer.
    pub max_output_tokens: u64,
    /// The longest that one answer may take. Silence for half of it, or for 120 s before the first word and 30 s after it, ends it.
    pub timeout_ms: u64,
}

impl Default for OwnSkill {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            output_max_bytes: 0,
            sandbox: true,
            read: Vec::new(),
            exec: Vec::new(),
            devices: Vec::new(),
            openai: String::new(),
            model: String::new(),
            api_key_file: String::new(),
            max_output_tokens: 1_024,
            timeout_ms: 300_000,
        }
    }
}

/// Where a server is: `http://host[:port][/path]` in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address, an IPv6 one without its brackets.
    pub host: String,
    /// 80 where none is named.
    pub port: u16,
    /// What stands before `/chat/completions`, without a slash at its end.
    pub path: String,
}

impl Endpoint {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let plain = url.bytes().all(|b| b.is_ascii_graphic());
        if !plain || url.contains(['?', '#', '@', '\\', '"']) {
            return Err(
                "a server's address has neither blanks nor a user, `?` or `#`; a key stands in api_key_file",
            );
        }
        if url.starts_with("https://") {
            return Err(
                "only http:// is built: name a server of this machine or network, or a proxy of yours before another one",
            );
        }
        let rest = url
            .strip_prefix("http://")
            .ok_or("a server's address begins with http://")?;
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => rest
                .split_once(']')
                .ok_or("an IPv6 address stands in [ and ]")?,
            None => authority
                .find(':')
                .map_or((authority, ""), |at| authority.split_at(at)),
        };
        let port = match port {
            "" => 80,
            port => (port
                .strip_prefix(':')
                .and_then(|number| number.parse().ok()))
            .filter(|port| *port > 0)
            .ok_or("a port is a number up to 65535")?,
        };
        if host.is_empty() {
            return Err("the address names no host");
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            path: path.trim_end_matches('/').to_owned(),
        })
    }

    /// Host and port, as a request names them.
    pub fn authority(&self) -> String {
        let (host, port) = (&self.host, self.port);
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }
}

impl OwnSkill {
    /// Whether it is a model behind a server.
    pub fn is_openai(&self) -> bool {
        !self.openai.is_empty()
    }

    /// The most bytes of a result's JSON.
    pub fn result_max_bytes(&self) -> u64 {
        match self.output_max_bytes {
            // Far above the mean, with what JSON escapes.
            0 if self.is_openai() => self
                .max_output_tokens
                .saturating_mul(16)
                .saturating_add(2_000),
            0 => 8_000,
            most => most,
        }
    }

    /// The most bytes of an answer: the result's JSON, and the same bytes in base64.
    pub fn answer_max_bytes(&self) -> u64 {
        let most = self.result_max_bytes();
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
        if self.is_openai() {
            self.validate_openai(&table)?;
        } else {
            self.validate_command(&table)?;
        }
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
        check_range(&table, 0, &[("output_max_bytes", self.output_max_bytes)])?;
        // What could not be sent is better refused here than after it was computed.
        let reason = format!(
            "an answer carries a result twice, and limits.payload_bytes allows {payload_bytes} bytes: a result has {} at most, a token counts as 16",
            payload_bytes / 7 * 3
        );
        let key = match self.output_max_bytes {
            0 if self.is_openai() => "max_output_tokens",
            _ => "output_max_bytes",
        };
        check(
            self.answer_max_bytes() <= payload_bytes,
            &format!("{table}.{key}"),
            &reason,
        )
    }

    fn validate_command(&self, table: &str) -> Result<(), Fault> {
        let program = self.command.first().map_or("", String::as_str);
        check(
            !program.is_empty(),
            &format!("{table}.command"),
            "name the program and its arguments, as [\"python3\", \"/home/me/skill.py\"], or a server as `openai`",
        )?;
        for (key, value) in [("model", &self.model), ("api_key_file", &self.api_key_file)] {
            let key = format!("{table}.{key}");
            check(value.is_empty(), &key, "it belongs to `openai`")?;
        }
        check(
            program.starts_with('/') || !program.contains('/'),
            &format!("{table}.command"),
            "the program is an absolute path, or a name that is found in PATH",
        )
    }

    fn validate_openai(&self, table: &str) -> Result<(), Fault> {
        let key = |name: &str| format!("{table}.{name}");
        let programs = [&self.read, &self.exec, &self.devices, &self.command];
        check(
            programs.iter().all(|list| list.is_empty()),
            &key("openai"),
            "it is a program or a server: leave `openai` away, or `command`, `read`, `exec` and `devices`",
        )?;
        if let Err(reason) = Endpoint::parse(&self.openai) {
            return Err((key("openai"), reason.to_owned()));
        }
        check(
            (1..=256).contains(&self.model.len()) && !self.model.contains(char::is_control),
            &key("model"),
            "name the model as its server does, in 1 to 256 bytes",
        )?;
        check(
            self.api_key_file.is_empty() || self.api_key_file.starts_with('/'),
            &key("api_key_file"),
            "a path begins with `/`",
        )?;
        check_range(table, 1, &[("max_output_tokens", self.max_output_tokens)])?;
        check_range(table, 100, &[("timeout_ms", self.timeout_ms)])
    }
}

#[cfg(test)]
mod tests {
    //! What the owner wrote wrong is named by key.
    #![allow(clippy::unwrap_used, clippy::panic)]
    use crate::config::{Config, ConfigError, Endpoint};
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
                "[skills.shout]\ncommand = [\"x\"]\noutput_max_bytes = 3000000\n",
                "skills.shout.output_max_bytes",
            ),
            (
                "[skills.shout]\ncommand = [\"x\"]\nread = [\"here\"]\n",
                "skills.shout.read",
            ),
            (
                "[skills.chat]\ncommand = [\"x\"]\nmodel = \"m\"\n",
                "skills.chat.model",
            ),
            (
                "[skills.chat]\ncommand = [\"x\"]\nopenai = \"http://127.0.0.1/v1\"\nmodel = \"m\"\n",
                "skills.chat.openai",
            ),
            (
                "[skills.chat]\nopenai = \"https://127.0.0.1/v1\"\nmodel = \"m\"\n",
                "skills.chat.openai",
            ),
            (
                "[skills.chat]\nopenai = \"http://127.0.0.1/v1\"\n",
                "skills.chat.model",
            ),
            (
                "[skills.chat]\nopenai = \"http://127.0.0.1/v1\"\nmodel = \"m\"\napi_key_file = \"key\"\n",
                "skills.chat.api_key_file",
            ),
            (
                "[skills.chat]\nopenai = \"http://127.0.0.1/v1\"\nmodel = \"m\"\ntimeout_ms = 9\n",
                "skills.chat.timeout_ms",
            ),
            (
                "[skills.chat]\nopenai = \"http://127.0.0.1/v1\"\nmodel = \"m\"\nmax_output_tokens = 1000000\n",
                "skills.chat.max_output_tokens",
            ),
        ] {
            let Err(ConfigError::Invalid { key, line, .. }) =
                Config::parse(bad, Path::new("legion.toml"))
            else {
                panic!("taken: {bad}")
            };
            assert_eq!(key, wrong);
            // What is missing stands in no line.
            assert!(line.is_some() || wrong == "skills.chat.model", "{bad}");
        }
    }

    #[test]
    fn an_address_is_read_in_its_parts() {
        for (url, host, port, path, authority) in [
            (
                "http://127.0.0.1:11434/v1",
                "127.0.0.1",
                11434,
                "/v1",
                "127.0.0.1:11434",
            ),
            ("http://gpu.lan/", "gpu.lan", 80, "", "gpu.lan:80"),
            (
                "http://[::1]:8000/a/v1/",
                "::1",
                8000,
                "/a/v1",
                "[::1]:8000",
            ),
        ] {
            let found = Endpoint::parse(url).unwrap();
            assert_eq!(
                (found.host.as_str(), found.port, found.path.as_str()),
                (host, port, path)
            );
            assert_eq!(found.authority(), authority);
        }
        for bad in [
            "",
            "127.0.0.1:80",
            "http://",
            "http://:80/v1",
            "http://a:b/v1",
            "http://a:0/v1",
            "http://a:70000/",
            "http://u:p@a/v1",
            "http://a/v1?key=x",
            "http://a/v1#x",
            "http://a b/v1",
            "http://[::1/v1",
            "http://a/\u{e9}",
            "http://a/\r\nx",
            "https://a/v1",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }
}
