//! Skills of the owner's own: programs that the configuration names, described by themselves. Here is what a node knows of one
//! between describing it once, at its start, and giving jobs to it. It must not know what such a program does.
//!
//! A job of an own skill has one unit: the result as JSON text. Nothing is computed twice, so a result is checked against the
//! schema that the program described, and its assurance is `schema`. Who has no such skill configured checks nothing: `none`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use super::{Plan, Skill, SkillError, SkillInfo, schema};
use crate::config::OwnSkill;
use crate::labor::frames::WorkerSkill;
use crate::labor::supervisor::{Supervisor, SupervisorConfig, WorkerClass, WorkerEvent};

/// A program has this long to say who it is.
const DESCRIBE_WITHIN: Duration = Duration::from_secs(10);

/// The owner's skills, set once: the configuration is that of the whole process, and changes with its next start.
static REGISTERED: OnceLock<Vec<Own>> = OnceLock::new();

/// The owner's skills of this process; none before [`register`].
pub fn registered() -> &'static [Own] {
    REGISTERED.get().map_or(&[], Vec::as_slice)
}

/// Makes these known to [`super::find`] and all that is built on it. A second call changes nothing.
pub fn register(skills: Vec<Own>) {
    let _ = REGISTERED.set(skills);
}

/// A skill that a program of the owner described.
#[derive(Debug)]
pub struct Own {
    info: SkillInfo,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    output_max_bytes: u64,
}

/// The built-in skill that this name would hide, if it is one.
pub fn is_built_in(name: &str) -> bool {
    super::registry().iter().any(|skill| skill.id() == name)
}

impl Own {
    /// Starts the owner's program, asks what it is, and ends it again. `scratch` is a folder for this call alone.
    ///
    /// # Errors
    /// `worker_start`, `worker_exited`, `worker_garbage`, `worker_memory` as of any worker, `worker_hung` if it says nothing, `skill_undescribed` if it
    /// speaks of other skills or says no schemas, `schema_invalid` if these are not understood.
    pub async fn describe(
        name: &str,
        owned: &OwnSkill,
        memory_limit_bytes: u64,
        scratch: &Path,
    ) -> Result<Self, (&'static str, String)> {
        let (first, args) = (owned.command.split_first())
            .ok_or_else(|| ("worker_start", "no program is named".to_owned()))?;
        let program = found(first);
        let config = SupervisorConfig {
            program: program.clone(),
            args: args.iter().map(Into::into).collect(),
            class: WorkerClass::Own,
            threads: 1,
            memory_limit_bytes,
            hang_timeout_ms: DESCRIBE_WITHIN.as_millis() as u64,
            scratch_dir: scratch.join(format!("describe-{name}")),
        };
        let skills = describe(config).await?;
        let told = skills.into_iter().find(|skill| skill.id == name);
        let told = told.ok_or_else(|| {
            let text = format!("the program does not describe a skill `{name}`");
            ("skill_undescribed", text)
        })?;
        Ok(Self {
            info: info(told)?,
            program,
            args: args.to_vec(),
            output_max_bytes: owned.output_max_bytes,
        })
    }

    fn output(&self, bytes: &[u8]) -> Result<Value, SkillError> {
        let fault = |code, message| SkillError { code, message };
        if bytes.len() as u64 > self.output_max_bytes {
            let (is, most) = (bytes.len(), self.output_max_bytes);
            let text = format!("the result has {is} bytes, the owner allows {most}");
            return Err(fault("output_too_large", text));
        }
        let output: Value = serde_json::from_slice(bytes)
            .map_err(|error| fault("output_invalid", format!("the result is no JSON: {error}")))?;
        schema::check(&self.info.output_schema, &output, "output")
            .map_err(|reason| fault("output_invalid", reason))?;
        Ok(output)
    }
}

/// The program of a name without a folder, as the node's own `PATH` has it: the worker's environment is empty.
fn found(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").filter(|_| !program.contains('/'));
    let places = path.iter().flat_map(std::env::split_paths);
    let mut places = places.map(|folder| folder.join(program));
    places
        .find(|place| place.is_absolute() && place.is_file())
        .unwrap_or_else(|| program.into())
}

async fn describe(config: SupervisorConfig) -> Result<Vec<WorkerSkill>, (&'static str, String)> {
    let folder = config.scratch_dir.clone();
    let start = Supervisor::start(config);
    let (handle, mut events) = start.map_err(|error| (error.code(), error.to_string()))?;
    handle
        .warm()
        .map_err(|error| (error.code(), error.to_string()))?;
    let answer = tokio::time::timeout(DESCRIBE_WITHIN, async {
        while let Some(event) = events.recv().await {
            match event {
                WorkerEvent::Described { skills, .. } => return Ok(skills),
                WorkerEvent::Exited { code, message, .. } => return Err((code, message)),
                _ => {}
            }
        }
        Err(("worker_exited", "its supervisor ended".to_owned()))
    })
    .await;
    handle.shutdown().await;
    let _ = std::fs::remove_dir_all(folder);
    answer.unwrap_or_else(|_| {
        let seconds = DESCRIBE_WITHIN.as_secs();
        let text = format!("it did not say who it is within {seconds} s");
        Err(("worker_hung", text))
    })
}

fn info(told: WorkerSkill) -> Result<SkillInfo, (&'static str, String)> {
    let (Some(input_schema), Some(output_schema)) = (told.input_schema, told.output_schema) else {
        let text = "`described` must say `input_schema` and `output_schema`";
        return Err(("skill_undescribed", text.to_owned()));
    };
    for schema in [&input_schema, &output_schema] {
        schema::understand(schema).map_err(|reason| ("schema_invalid", reason))?;
    }
    // Once per start and skill: they live as long as the process.
    let keep = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let id = keep(told.id);
    Ok(SkillInfo {
        id,
        name: id,
        description: keep(told.description),
        tags: &["own"],
        input_schema,
        output_schema,
        unit_price_mc: 1,
        implementation: keep(told.implementation),
    })
}

impl Skill for Own {
    fn id(&self) -> &'static str {
        self.info.id
    }

    fn info(&self) -> SkillInfo {
        self.info.clone()
    }

    fn complete_input(&self, input: &Value, _random: u64) -> Result<Value, SkillError> {
        Ok(self.plan(input)?.canonical_input)
    }

    fn plan(&self, input: &Value) -> Result<Plan, SkillError> {
        schema::check(&self.info.input_schema, input, "input").map_err(SkillError::input)?;
        // The result stands in the answer twice: as it is, and as the unit's bytes in base64.
        let most = self.output_max_bytes;
        Ok(Plan {
            units: 1,
            output_bytes_max: most.saturating_add(most.div_ceil(3).saturating_mul(4)),
            canonical_input: input.clone(),
            seed: 0,
            units_per_checkpoint: 1,
        })
    }

    fn aggregate(&self, _input: &Value, units: &[&[u8]]) -> Result<Value, SkillError> {
        match units {
            [unit] => self.output(unit),
            _ => Err(SkillError::units(format!(
                "{} unit results instead of one",
                units.len()
            ))),
        }
    }

    fn compare(&self, _: &str, _: &str, unit_a: &[u8], unit_b: &[u8]) -> bool {
        unit_a == unit_b
    }

    fn is_recomputable(&self) -> bool {
        false
    }

    #[cfg(feature = "labor")]
    fn runner(
        &self,
        _: &Value,
        _: std::sync::Arc<super::cores::Cores>,
        _: &super::embedding::Shelf,
    ) -> Result<Box<dyn super::UnitRunner>, SkillError> {
        Err(SkillError::unknown(self.info.id))
    }
}
