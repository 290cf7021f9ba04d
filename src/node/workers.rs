//! What a start settles about workers: how they are confined, and which programs of the owner's own are skills. Knows the
//! configuration and the room of labor; must not know peers, tasks or leases.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::config::{Config, ConfigError, Home, SandboxLevel};
use crate::labor::sandbox::{Sandbox, program};
use crate::labor::skills::Skill as _;
use crate::labor::skills::own::{self, Known, Launch, Own};

/// How long a server that was down at the start is left alone, first and at last.
const SERVER_PAUSE_FIRST: Duration = Duration::from_secs(1);
const SERVER_PAUSE_LAST: Duration = Duration::from_secs(60);

/// How the owner wants workers to be confined.
///
/// # Errors
/// `config_invalid` for a path that would show them this home.
pub(super) fn sandbox(config: &Config, home: &Home) -> Result<Sandbox, ConfigError> {
    let labor = &config.labor;
    for path in labor.sandbox_read.iter().chain(&labor.sandbox_devices) {
        hides(home, "labor.sandbox_read", Path::new(path))?;
    }
    let paths = |list: &[String]| list.iter().map(Into::into).collect();
    let sandbox = Sandbox {
        on: labor.sandbox,
        read: paths(&labor.sandbox_read),
        devices: paths(&labor.sandbox_devices),
        memory_bytes: labor.memory_limit_bytes,
        ..Sandbox::default()
    };
    #[cfg(any(feature = "crash-points", debug_assertions))]
    if let Ok(lacks) = std::env::var("LEGION_SANDBOX_LACKS") {
        let lacks = lacks.split(',').map(str::to_owned).collect();
        return Ok(Sandbox { lacks, ..sandbox });
    }
    Ok(sandbox)
}

/// That a path which workers may read does not show them this home.
fn hides(home: &Home, key: &str, path: &Path) -> Result<(), ConfigError> {
    if !program::shows(path, home.root()) {
        return Ok(());
    }
    let path = path.display();
    Err(ConfigError::Invalid {
        path: home.config_file(),
        key: key.to_owned(),
        line: None,
        reason: format!("`{path}` shows this home to workers; name folders beside it"),
    })
}

/// What the programs and servers of the owner's own skills are asked with.
pub(super) struct Asking {
    /// The settings.
    pub(super) config: Config,
    /// The home.
    pub(super) home: Home,
    /// This binary.
    pub(super) legion: PathBuf,
    /// What confines the built-in worker.
    pub(super) sandbox: Sandbox,
    /// True, or gone, when the node stops.
    pub(super) stop: watch::Receiver<bool>,
}

impl Asking {
    /// Asks all of them at once what they are, each in its sandbox; one that does not say it is not offered. `tell` hears of each
    /// that does, and whether it can be had now, before anybody who waits for it goes on; and of a server that was down once it is up.
    pub(super) async fn run(self, tell: impl Fn(&'static Own, bool)) {
        let scratch = self.home.root().join("scratch");
        let launch = Launch {
            legion: &self.legion,
            sandbox: &self.sandbox,
            home: self.home.root(),
            scratch: &scratch,
            stop: Some(&self.stop),
        };
        let tell = &tell;
        let asked = self.config.skills.iter().map(|(name, skill)| async move {
            let told = Own::describe(name, skill, launch).await;
            let told = told.map(|own| &*Box::leak(Box::new(own)));
            match &told {
                Ok(own) => {
                    report(name, own);
                    tell(own, own.down.is_none());
                }
                Err((code, message)) => {
                    tracing::warn!(skill = %name, code, message, "a skill of the owner's is not offered");
                }
            }
            own::settle(name, told);
        });
        futures_util::future::join_all(asked).await;
        let mut stop = self.stop.clone();
        tokio::select! {
            () = await_servers(&scratch, |own| tell(own, true)) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

/// What an owner should know of a skill that was described.
fn report(name: &str, own: &Own) {
    let (level, missing) = (own.sandbox.level, own.sandbox.missing.join(", "));
    if level < SandboxLevel::Full {
        let level = level.as_str();
        tracing::warn!(skill = %name, level, missing, "the skill's sandbox is not full");
    }
    if let Some((code, message)) = &own.down {
        tracing::warn!(skill = %name, code, message, "a skill of the owner's is not offered yet");
    }
}

/// The same without a node: what `legion skills` shows. First each skill as it is advertised, with its sandbox; then `id`, `code` and
/// `message` of those that are not.
///
/// # Errors
/// As [`check_own_skills`].
pub async fn own_skills(
    config: &Config,
    home: &Home,
) -> Result<(Vec<Value>, Vec<Value>), ConfigError> {
    check_own_skills(config, home)?;
    let sandbox = sandbox(config, home)?;
    let legion = std::env::current_exe().unwrap_or_default();
    // A node that runs on this home has its own folders there.
    let scratch = home.root().join("scratch");
    let scratch = scratch.join(format!("skills-{}", std::process::id()));
    let launch = Launch {
        legion: &legion,
        sandbox: &sandbox,
        home: home.root(),
        scratch: &scratch,
        stop: None,
    };
    let asked = (config.skills.iter())
        .map(|(name, skill)| async move { (name, Own::describe(name, skill, launch).await) });
    let (mut offered, mut silent) = (Vec::new(), Vec::new());
    for (name, told) in futures_util::future::join_all(asked).await {
        let told = told.and_then(|mut own| match own.down.take() {
            Some(wrong) => Err(wrong),
            None => Ok(own),
        });
        match told {
            Ok(own) => {
                let mut shown = json!(own.info());
                if let Some(fields) = shown.as_object_mut() {
                    fields.insert("sandbox".to_owned(), json!(own.sandbox));
                }
                offered.push(shown);
            }
            Err((code, message)) => {
                silent.push(json!({"id": name, "code": code, "message": message}));
            }
        }
    }
    let _ = std::fs::remove_dir_all(scratch);
    Ok((offered, silent))
}

/// Skills whose servers did not answer at the start are offered once they do. `offer` hears of each once; `scratch` is a folder to work in.
async fn await_servers(scratch: &Path, offer: impl Fn(&'static Own)) {
    let mut down = own::registered();
    down.retain(|skill| skill.down.is_some());
    let mut pause = SERVER_PAUSE_FIRST;
    while !down.is_empty() {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(SERVER_PAUSE_LAST);
        let mut still = Vec::new();
        for skill in down {
            if skill.reach(scratch).await.is_ok() {
                tracing::info!(skill = skill.id(), "its server answers: it is offered now");
                offer(skill);
            } else {
                still.push(skill);
            }
        }
        down = still;
    }
}

/// What confines each of the owner's skills in this process, for people.
pub(super) fn skill_sandboxes_shown() -> Value {
    let own = own::registered().into_iter();
    own.map(|skill| (skill.id().to_owned(), json!(skill.sandbox)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// How each of the owner's skills stands: `{NAME:{state,code,message}}`, `offered` being those that peers can ask for now.
pub(super) fn own_skills_shown(offered: &[String]) -> Value {
    let shown = own::known().into_iter().map(|(name, known)| {
        let (state, wrong) = match known {
            _ if offered.contains(&name) => ("offered", None),
            Known::Probing => ("probing", None),
            Known::Described(own) => ("down", own.down.clone()),
            Known::Failed(wrong) => ("failed", Some(wrong)),
        };
        let (code, message) = wrong.unzip();
        (
            name,
            json!({"state": state, "code": code, "message": message}),
        )
    });
    shown.collect::<serde_json::Map<_, _>>().into()
}

/// What keeps skills of the owner's from being offered, as far as that can be seen without starting anything: `{id,code,message}` each.
pub fn own_skill_warnings(config: &Config) -> Vec<Value> {
    if !config.labor.enabled {
        return Vec::new();
    }
    let checked = config.skills.iter();
    let wrong = checked.filter_map(|(name, skill)| Some((name, own::check(skill).err()?)));
    wrong
        .map(|(name, (code, message))| json!({"id": name, "code": code, "message": message}))
        .collect()
}

/// That no skill of the owner's hides a built-in one, and none is shown this home.
///
/// # Errors
/// `config_invalid`.
pub fn check_own_skills(config: &Config, home: &Home) -> Result<(), ConfigError> {
    for (name, skill) in &config.skills {
        if own::is_built_in(name) {
            return Err(ConfigError::Invalid {
                path: home.config_file(),
                key: format!("skills.{name}"),
                line: None,
                reason: "a built-in skill has this name; choose another one".to_owned(),
            });
        }
        if !skill.sandbox || !config.labor.sandbox {
            continue;
        }
        let key = |field: &str| format!("skills.{name}.{field}");
        for (field, paths) in [
            ("read", &skill.read),
            ("exec", &skill.exec),
            ("devices", &skill.devices),
        ] {
            for path in paths {
                hides(home, &key(field), Path::new(path))?;
            }
        }
        for file in program::files(&skill.command) {
            hides(home, &key("command"), &file)?;
        }
    }
    Ok(())
}
