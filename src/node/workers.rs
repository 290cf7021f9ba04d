//! What a start settles about workers: how they are confined, and which programs of the owner's own are skills. Knows the
//! configuration and the room of labor; must not know peers, tasks or leases.

use std::path::Path;

use crate::config::{Config, ConfigError, Home};
use crate::labor::sandbox::Sandbox;
use crate::labor::skills::own::{self, Own};

/// How the owner wants workers to be confined.
///
/// # Errors
/// `config_invalid` for a path that would show them this home.
pub(super) fn sandbox(config: &Config, home: &Home) -> Result<Sandbox, ConfigError> {
    let labor = &config.labor;
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let root = real(home.root());
    for path in labor.sandbox_read.iter().chain(&labor.sandbox_devices) {
        let path_real = real(Path::new(path));
        if root.starts_with(&path_real) || path_real.starts_with(&root) {
            let reason = format!("`{path}` shows this home to workers; name folders beside it");
            return Err(ConfigError::Invalid {
                path: home.config_file(),
                key: "labor.sandbox_read".to_owned(),
                line: None,
                reason,
            });
        }
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

/// Asks the programs of the owner's own skills what they are. One that does not say it is not offered, and the node starts without.
///
/// # Errors
/// `config_invalid` for the name of a built-in skill.
pub(super) async fn describe(config: &Config, home: &Home) -> Result<(), ConfigError> {
    own_names(config, home)?;
    if !config.labor.enabled {
        return Ok(());
    }
    let scratch = home.root().join("scratch");
    let limit = config.labor.memory_limit_bytes;
    let asked = config.skills.iter().map(|(name, skill)| {
        let scratch = &scratch;
        async move { (name, Own::describe(name, skill, limit, scratch).await) }
    });
    let mut described = Vec::new();
    for (name, told) in futures_util::future::join_all(asked).await {
        match told {
            Ok(skill) => described.push(skill),
            Err((code, message)) => {
                tracing::warn!(skill = %name, code, message, "a skill of the owner's is not offered")
            }
        }
    }
    own::register(described);
    Ok(())
}

/// That no skill of the owner's hides a built-in one.
///
/// # Errors
/// `config_invalid`.
pub fn own_names(config: &Config, home: &Home) -> Result<(), ConfigError> {
    match config.skills.keys().find(|name| own::is_built_in(name)) {
        None => Ok(()),
        Some(name) => Err(ConfigError::Invalid {
            path: home.config_file(),
            key: format!("skills.{name}"),
            line: None,
            reason: "a built-in skill has this name; choose another one".to_owned(),
        }),
    }
}
