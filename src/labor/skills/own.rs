//! Skills of the owner's own: programs that the configuration names, described by themselves, and models behind servers. Here is what a node knows of one
//! between describing it once, at its start, and giving jobs to it. It must not know what such a program does.
//!
//! A job of an own skill has one unit: the result as JSON text. Nothing is computed twice, so a result is checked against the
//! schema that the program described, and its assurance is `schema`. Who has no such skill configured checks nothing: `none`.

pub mod chat;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use self::chat::Chat;
use super::{Plan, Skill, SkillError, SkillInfo, schema};
use crate::config::{Endpoint, OwnSkill};
use crate::labor::frames::WorkerSkill;
use crate::labor::sandbox::program::Reach;
use crate::labor::sandbox::{Sandbox, SandboxReport, survey};
use crate::labor::supervisor::{Supervisor, SupervisorConfig, WorkerClass, WorkerEvent};

/// A program has this long to say who it is.
const DESCRIBE_WITHIN: Duration = Duration::from_secs(10);

/// What a server of the owner's does wrong: not there, an answer other than 200, silence, no answer at all, or one without end.
pub const BACKEND_CODES: [&str; 5] = [
    "backend_unreachable",
    "backend_refused",
    "backend_stalled",
    "backend_garbage",
    "backend_endless",
];

/// What is known of one of the owner's skills.
#[derive(Debug, Clone)]
pub enum Known {
    /// Its program or server is being asked what it is.
    Probing,
    /// It said so. It lives as long as the process.
    Described(&'static Own),
    /// It did not: a code of [`Own::describe`] and a text.
    Failed(Wrong),
}

/// The owner's skills: the configuration is that of the whole process, and changes with its next start.
static KNOWN: LazyLock<watch::Sender<BTreeMap<String, Known>>> =
    LazyLock::new(|| watch::Sender::new(BTreeMap::new()));

/// Every skill of the owner's in this process, described or not; none before [`expect`].
pub fn known() -> BTreeMap<String, Known> {
    KNOWN.borrow().clone()
}

/// Those that were described.
pub fn registered() -> Vec<&'static Own> {
    let described = |known: &Known| match known {
        Known::Described(own) => Some(*own),
        Known::Probing | Known::Failed(_) => None,
    };
    KNOWN.borrow().values().filter_map(described).collect()
}

/// Announces skills that will be described: until [`settle`] whoever needs one waits for it.
pub fn expect<'a>(names: impl Iterator<Item = &'a String>) {
    let names = names.map(|name| (name.clone(), Known::Probing));
    KNOWN.send_modify(|known| known.extend(names));
}

/// Says what became of one. A described one is known to [`super::find`] and all that is built on it from now on.
pub fn settle(name: &str, found: Result<&'static Own, Wrong>) {
    let found = found.map_or_else(Known::Failed, Known::Described);
    KNOWN.send_modify(|known| {
        known.insert(name.to_owned(), found);
    });
}

/// Whether this is one that is still being asked.
pub fn is_probing(name: &str) -> bool {
    matches!(KNOWN.borrow().get(name), Some(Known::Probing))
}

/// Waits until that one is described or has failed; no other name is waited for.
pub async fn settled(name: &str) {
    let mut known = KNOWN.subscribe();
    let probing = |known: &BTreeMap<String, Known>| matches!(known.get(name), Some(Known::Probing));
    // The sender lives as long as the process.
    let _ = known.wait_for(|known| !probing(known)).await;
}

/// A skill that a program of the owner described.
#[derive(Debug)]
pub struct Own {
    info: SkillInfo,
    /// What to start: this binary, which confines itself and becomes the owner's program.
    pub program: PathBuf,
    /// Its arguments, up to and with the owner's command.
    pub args: Vec<OsString>,
    /// What confines the program.
    pub sandbox: SandboxReport,
    output_max_bytes: u64,
    answer_max_bytes: u64,
    /// What its schemas cannot say of its inputs, if it is a model's.
    chat: Option<Chat>,
    /// Why its server did not answer when it was described; one of [`BACKEND_CODES`].
    pub down: Option<Wrong>,
}

/// Where and how programs of the owner's are started.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// This very binary.
    pub legion: &'a Path,
    /// How the built-in worker is confined: its switch, memory and (in tests) what it lacks. Its paths are not the program's.
    pub sandbox: &'a Sandbox,
    /// The folder that no program shall see.
    pub home: &'a Path,
    /// A folder to work in.
    pub scratch: &'a Path,
    /// True, or gone, when nobody waits for an answer any more.
    pub stop: Option<&'a watch::Receiver<bool>>,
}

impl Launch<'_> {
    /// How the program of a skill is confined.
    fn sandbox_of(&self, owned: &OwnSkill, program: &Path) -> Sandbox {
        let args = owned.command.get(1..).unwrap_or_default();
        let Reach { mut read, mut exec } = Reach::of(program, args, self.home);
        read.extend(owned.read.iter().map(PathBuf::from));
        exec.extend(owned.exec.iter().map(PathBuf::from));
        Sandbox {
            read,
            exec,
            devices: owned.devices.iter().map(PathBuf::from).collect(),
            ..self.sandbox_plain(owned)
        }
    }

    /// How a worker of our own for this skill is confined that needs no path at all.
    fn sandbox_plain(&self, owned: &OwnSkill) -> Sandbox {
        Sandbox {
            on: self.sandbox.on && owned.sandbox,
            memory_bytes: self.sandbox.memory_bytes,
            lacks: self.sandbox.lacks.clone(),
            ..Sandbox::default()
        }
    }
}

/// What is wrong: a code and a text.
pub type Wrong = (&'static str, String);

/// The built-in skill that this name would hide, if it is one.
pub fn is_built_in(name: &str) -> bool {
    super::registry().iter().any(|skill| skill.id() == name)
}

impl Own {
    /// Starts the owner's program in its sandbox, asks what it is, and ends it again; or asks the owner's server whether it is there: if
    /// not, the skill is known nevertheless, and [`Own::down`].
    ///
    /// # Errors
    /// Of a server `worker_start`, if its key cannot be read; of a program `worker_start`, `worker_exited`, `worker_garbage`, `worker_memory` as of any worker, `worker_hung` if it says nothing, `skill_undescribed` if it
    /// speaks of other skills or says no schemas, `schema_invalid` if these are not understood.
    pub async fn describe(name: &str, owned: &OwnSkill, launch: Launch<'_>) -> Result<Self, Wrong> {
        if owned.is_openai() {
            return Self::served(name, owned, launch).await;
        }
        let (first, args) = (owned.command.split_first())
            .ok_or_else(|| ("worker_start", "no program is named".to_owned()))?;
        let owners = startable(first)?;
        let folder = launch.scratch.join(format!("describe-{name}"));
        let mut sandbox = launch.sandbox_of(owned, &owners);
        let report = survey(launch.legion, &sandbox, &folder).await;
        // It never runs with less than what the owner and the peers are told.
        sandbox.at_least = report.level;
        let mut words: Vec<OsString> = args.iter().map(Into::into).collect();
        let mut program = owners;
        // A build without labor gives it no jobs, and only asks what its results must look like.
        if cfg!(feature = "labor") {
            let started = [OsString::from("--run"), program.into()];
            let start = [OsString::from("worker")].into_iter().chain(sandbox.args());
            words.splice(0..0, start.chain(started));
            program = launch.legion.to_owned();
        }
        let config = SupervisorConfig {
            program: program.clone(),
            args: words.clone(),
            class: WorkerClass::Own,
            threads: 1,
            memory_limit_bytes: launch.sandbox.memory_bytes,
            hang_timeout_ms: DESCRIBE_WITHIN.as_millis() as u64,
            scratch_dir: folder,
        };
        let skills = describe(config, launch.stop).await?;
        let told = skills.into_iter().find(|skill| skill.id == name);
        let told = told.ok_or_else(|| {
            let text = format!("the program does not describe a skill `{name}`");
            ("skill_undescribed", text)
        })?;
        Ok(Self {
            info: info(told)?,
            program,
            args: words,
            sandbox: report,
            output_max_bytes: owned.result_max_bytes(),
            answer_max_bytes: owned.answer_max_bytes(),
            chat: None,
            down: None,
        })
    }

    /// A model behind a server: a worker of our own passes jobs on to it. All that is told of it stands in the configuration.
    async fn served(name: &str, owned: &OwnSkill, launch: Launch<'_>) -> Result<Self, Wrong> {
        let endpoint = Endpoint::parse(&owned.openai);
        let endpoint = endpoint.map_err(|reason| ("backend_unreachable", reason.to_owned()))?;
        let chat = Chat {
            model: owned.model.clone(),
            max_output_tokens: owned.max_output_tokens,
        };
        let mut sandbox = Sandbox {
            tcp: Some(endpoint.port),
            ..launch.sandbox_plain(owned)
        };
        let folder = launch.scratch.join(format!("describe-{name}"));
        let mut words = Vec::new();
        let mut report = None;
        let mut down = None;
        // A build without labor gives it no jobs, and only knows what its results must look like.
        if cfg!(feature = "labor") {
            let found = survey(launch.legion, &sandbox, &folder).await;
            sandbox.at_least = found.level;
            words = backend_words(name, owned, &sandbox);
            down = tokio::select! {
                found = reach(launch.legion, &words, &folder) => found.err(),
                wrong = stopped(launch.stop) => Some(wrong),
            };
            report = Some(found);
        }
        if let Some(wrong) = down.take_if(|(code, _)| !BACKEND_CODES.contains(code)) {
            return Err(wrong);
        }
        Ok(Self {
            info: chat.info(name),
            program: launch.legion.to_owned(),
            args: words,
            sandbox: report.unwrap_or_else(|| SandboxReport::without("worker_start")),
            output_max_bytes: owned.result_max_bytes(),
            answer_max_bytes: owned.answer_max_bytes(),
            chat: Some(chat),
            down,
        })
    }

    /// Whether its server answers now. `scratch` is a folder to work in.
    ///
    /// # Errors
    /// As of [`Own::describe`].
    pub async fn reach(&self, scratch: &Path) -> Result<(), Wrong> {
        let folder = scratch.join(format!("reach-{}", self.info.id));
        reach(&self.program, &self.args, &folder).await
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

/// The command line of the worker that passes jobs on. The key itself is in its file alone.
fn backend_words(name: &str, owned: &OwnSkill, sandbox: &Sandbox) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["worker".into()];
    words.extend(sandbox.args());
    for (flag, value) in [
        ("--openai", owned.openai.clone()),
        ("--skill", name.to_owned()),
        ("--model", owned.model.clone()),
        ("--api-key-file", owned.api_key_file.clone()),
        ("--max-output-tokens", owned.max_output_tokens.to_string()),
        ("--result-max-bytes", owned.result_max_bytes().to_string()),
        ("--timeout-ms", owned.timeout_ms.to_string()),
    ] {
        if !value.is_empty() {
            words.extend([flag.into(), value.into()]);
        }
    }
    words
}

/// Asks the server of a skill whether it is there, from within its sandbox. `folder` is made for it, and removed.
async fn reach(legion: &Path, words: &[OsString], folder: &Path) -> Result<(), Wrong> {
    let nobody = || ("worker_start", "nobody could ask its server".to_owned());
    std::fs::create_dir_all(folder).map_err(|_| nobody())?;
    let asked = tokio::process::Command::new(legion)
        .args(words)
        .args(["--then", "reach"])
        .env_clear()
        .current_dir(folder)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DESCRIBE_WITHIN, asked).await;
    let _ = std::fs::remove_dir_all(folder);
    let Ok(Ok(output)) = output else {
        return Err(nobody());
    };
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let message = said.get("message").and_then(Value::as_str);
    match (said.get("code").and_then(Value::as_str), message) {
        (None, _) if said.is_object() => Ok(()),
        (Some(code), Some(message)) => {
            let known = BACKEND_CODES.iter().find(|known| **known == code);
            Err((known.unwrap_or(&"worker_garbage"), message.to_owned()))
        }
        _ => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(("worker_start", text))
        }
    }
}

/// Whether what a skill names can be started, or read, by this user: its program, or the file with its server's key.
///
/// # Errors
/// `worker_start`.
pub fn check(owned: &OwnSkill) -> Result<(), Wrong> {
    if !owned.is_openai() {
        let first = owned.command.first().map_or("", String::as_str);
        return startable(first).map(drop);
    }
    if owned.api_key_file.is_empty() {
        return Ok(());
    }
    let unread = |error| {
        let file = &owned.api_key_file;
        (
            "worker_start",
            format!("the key file {file} cannot be read: {error}"),
        )
    };
    (std::fs::read(&owned.api_key_file).map(drop)).map_err(unread)
}

/// The program that is meant, if it is one.
fn startable(program: &str) -> Result<PathBuf, Wrong> {
    let found = found(program);
    let wrong = |what: &str| ("worker_start", format!("{what} `{}`", found.display()));
    if !found.is_file() {
        return Err(wrong("there is no program"));
    }
    match rustix::fs::access(&found, rustix::fs::Access::EXEC_OK) {
        Ok(()) => Ok(found),
        Err(_) => Err(wrong("this user may not run the file")),
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

async fn describe(
    config: SupervisorConfig,
    stop: Option<&watch::Receiver<bool>>,
) -> Result<Vec<WorkerSkill>, Wrong> {
    let folder = config.scratch_dir.clone();
    let start = Supervisor::start(config);
    let (handle, mut events) = start.map_err(|error| (error.code(), error.to_string()))?;
    handle
        .warm()
        .map_err(|error| (error.code(), error.to_string()))?;
    let asked = tokio::time::timeout(DESCRIBE_WITHIN, async {
        while let Some(event) = events.recv().await {
            match event {
                WorkerEvent::Described { skills, .. } => return Ok(skills),
                WorkerEvent::Exited { code, message, .. } => return Err((code, message)),
                _ => {}
            }
        }
        Err(("worker_exited", "its supervisor ended".to_owned()))
    });
    let answer = tokio::select! {
        answer = asked => answer,
        wrong = stopped(stop) => Ok(Err(wrong)),
    };
    handle.shutdown().await;
    let _ = std::fs::remove_dir_all(folder);
    answer.unwrap_or_else(|_| {
        let seconds = DESCRIBE_WITHIN.as_secs();
        let text = format!("it did not say who it is within {seconds} s");
        Err(("worker_hung", text))
    })
}

/// Ends when nobody waits any more.
async fn stopped(stop: Option<&watch::Receiver<bool>>) -> Wrong {
    match stop {
        Some(stop) => drop(stop.clone().wait_for(|stop| *stop).await),
        None => std::future::pending().await,
    }
    ("worker_killed", "the node stops".to_owned())
}

fn info(told: WorkerSkill) -> Result<SkillInfo, Wrong> {
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
        match &self.chat {
            Some(chat) => chat.check(input)?,
            None => {
                schema::check(&self.info.input_schema, input, "input").map_err(SkillError::input)?
            }
        }
        Ok(Plan {
            units: 1,
            output_bytes_max: self.answer_max_bytes,
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
