//! `legion worker --openai URL ...`: a worker that computes nothing itself, and passes its jobs on to a server of the owner's that speaks
//! OpenAI's chat completions (ollama, vLLM, llama.cpp and others). It speaks the same frames as any worker, so that leases, limits
//! and stops are the same. Address, model and key are the owner's; a job brings words alone. It must not know peers.
//!
//! The key is read and the address resolved before the sandbox is entered, which leaves one TCP port and no files.

mod answer;
mod client;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use self::answer::Limits;
use self::client::Client;
use crate::config::Endpoint;
use crate::labor::LaborError;
use crate::labor::frames::{self, Bytes, PROTOCOL_VERSION, ToNode, ToWorker, Units, WorkerSkill};
use crate::labor::skills::SkillError;
use crate::labor::skills::own::chat::Chat;

/// A sign of life while the server's own limits are kept; they end a job that is truly silent.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Before the first word: a model may have to be loaded, and a long prompt be read.
const FIRST_WORD: Duration = Duration::from_secs(120);
/// Between two words.
const SILENCE: Duration = Duration::from_secs(30);
/// Whether the server is there at all is asked this long.
const REACH: Duration = Duration::from_secs(5);

/// What the node says of the server on the command line.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Settings {
    url: String,
    skill: String,
    model: String,
    api_key_file: Option<String>,
    max_output_tokens: u64,
    result_max_bytes: u64,
    timeout_ms: u64,
}

impl Settings {
    /// Takes one flag with its value, if it is one of [`crate::labor::skills::own`]'s; the error is for a person.
    pub(super) fn take(&mut self, flag: &str, value: &OsStr) -> Result<bool, String> {
        let text = value.to_str().ok_or("it is no UTF-8")?.to_owned();
        let number = || text.parse().map_err(|_| format!("{flag} takes a number"));
        match flag {
            "--openai" => self.url = text,
            "--skill" => self.skill = text,
            "--model" => self.model = text,
            "--api-key-file" => self.api_key_file = Some(text),
            "--max-output-tokens" => self.max_output_tokens = number()?,
            "--result-max-bytes" => self.result_max_bytes = number()?,
            "--timeout-ms" => self.timeout_ms = number()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn is_set(&self) -> bool {
        !self.url.is_empty()
    }

    fn chat(&self) -> Chat {
        Chat {
            model: self.model.clone(),
            max_output_tokens: self.max_output_tokens,
        }
    }
}

/// All that must be had before the sandbox.
pub(super) struct Prepared {
    settings: Settings,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

/// Reads the key, resolves the address and makes the runtime, which wants a pair of sockets for itself.
pub(super) fn prepare(settings: Settings) -> Result<Prepared, String> {
    let endpoint = Endpoint::parse(&settings.url)?;
    let key = match &settings.api_key_file {
        None => None,
        Some(path) => Some(client::read_key(std::path::Path::new(path))?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| error.to_string())?;
    Ok(Prepared {
        client: Client::new(endpoint, key),
        settings,
        runtime,
    })
}

impl Prepared {
    /// Says on stdout whether the server answers: `{}`, or code and message.
    pub(super) fn reach(self) -> Result<(), LaborError> {
        let asked = async { tokio::time::timeout(REACH, self.client.reach()).await };
        let said = match self.runtime.block_on(asked) {
            Ok(Ok(())) => json!({}),
            Ok(Err(error)) => json!({"code": error.code, "message": error.message}),
            Err(_) => {
                let message = format!("its server did not answer within {} s", REACH.as_secs());
                json!({"code": "backend_stalled", "message": message})
            }
        };
        Ok(writeln!(std::io::stdout(), "{said}")?)
    }

    /// Works until stdin ends.
    pub(super) fn work(self) -> Result<(), LaborError> {
        let (sender, inbox) = mpsc::unbounded_channel();
        super::hear_frames(move |message| sender.send(message).is_ok())?;
        let Self {
            settings,
            client,
            runtime,
        } = self;
        let (ends, ended) = mpsc::unbounded_channel();
        let desk = Desk {
            chat: settings.chat(),
            skill: settings.skill,
            limits: Limits {
                result_bytes: usize::try_from(settings.result_max_bytes).unwrap_or(usize::MAX),
                total: Duration::from_millis(settings.timeout_ms),
                first_word: FIRST_WORD.min(Duration::from_millis(settings.timeout_ms / 2)),
                silence: SILENCE.min(Duration::from_millis(settings.timeout_ms / 2)),
            },
            client: Arc::new(client),
            jobs: HashMap::new(),
            ends,
        };
        runtime.block_on(desk.work(inbox, ended))
    }
}

type End = (u64, Result<Vec<u8>, SkillError>);

struct Desk {
    skill: String,
    chat: Chat,
    limits: Limits,
    client: Arc<Client>,
    jobs: HashMap<u64, AbortHandle>,
    ends: mpsc::UnboundedSender<End>,
}

impl Desk {
    async fn work(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<ToWorker>,
        mut ended: mpsc::UnboundedReceiver<End>,
    ) -> Result<(), LaborError> {
        let mut beat = tokio::time::interval(PROGRESS_INTERVAL);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.hear(message)?,
                    None => return Ok(()),
                },
                Some((job, end)) = ended.recv() => {
                    let lost = matches!(&end, Err(error) if error.code == "backend_unreachable");
                    self.end(job, end)?;
                    // The next job begins with a new worker, which resolves the name anew.
                    if lost && self.client.is_named() && self.jobs.is_empty() {
                        return Ok(());
                    }
                }
                _ = beat.tick(), if !self.jobs.is_empty() => {
                    for job in self.jobs.keys() {
                        say(&ToNode::Progress { job: *job, units_done: 0, units_total: 1 })?;
                    }
                }
            }
        }
    }

    fn hear(&mut self, message: ToWorker) -> Result<(), LaborError> {
        match message {
            ToWorker::Describe {} => {
                let implementation = format!("openai/{}", self.chat.model);
                say(&ToNode::Described {
                    protocol: PROTOCOL_VERSION,
                    profile: implementation.clone(),
                    skills: vec![WorkerSkill {
                        id: self.skill.clone(),
                        implementation,
                        ..WorkerSkill::default()
                    }],
                })
            }
            ToWorker::Start {
                job, input, units, ..
            } => self.start(job, input, &units),
            ToWorker::SoftStop { job, .. } => match self.jobs.remove(&job) {
                // The request is dropped, and with it the connection: the server sees that nobody waits.
                Some(task) => {
                    task.abort();
                    say(&ToNode::Stopped {
                        job,
                        checkpoint: Bytes(Vec::new()),
                        units_done: 0,
                        executed_units: 0,
                    })
                }
                // A job that has just ended has said so already.
                None => Ok(()),
            },
        }
    }

    fn start(&mut self, job: u64, input: Value, units: &Units) -> Result<(), LaborError> {
        let wanted = match units {
            Units::All => true,
            Units::Only(list) => *list == [0],
        };
        let checked = match wanted {
            true => self.chat.check(&input),
            false => Err(SkillError::units("a chat has one unit")),
        };
        if let Err(error) = checked {
            return fail(job, &error);
        }
        let (client, limits, ends) = (self.client.clone(), self.limits, self.ends.clone());
        let (chat, model) = (self.chat.clone(), self.chat.model.clone());
        let task = tokio::spawn(async move {
            let tokens = chat.tokens(&input);
            let text = client.ask(chat.request(&input).to_string(), tokens, limits);
            let result = text.await.and_then(|answer| answer.result(&model, &limits));
            let _ = ends.send((job, result));
        });
        self.jobs.insert(job, task.abort_handle());
        Ok(())
    }

    fn end(&mut self, job: u64, end: Result<Vec<u8>, SkillError>) -> Result<(), LaborError> {
        if self.jobs.remove(&job).is_none() {
            return Ok(());
        }
        match end {
            Ok(unit) => say(&ToNode::Done {
                job,
                units: vec![Bytes(unit)],
                executed_units: 1,
                resumed_from: 0,
            }),
            Err(error) => fail(job, &error),
        }
    }
}

fn fail(job: u64, error: &SkillError) -> Result<(), LaborError> {
    say(&ToNode::Failed {
        job,
        code: error.code.to_owned(),
        message: error.message.clone(),
    })
}

fn say(message: &ToNode) -> Result<(), LaborError> {
    let mut stdout = std::io::stdout();
    stdout.write_all(&frames::encode(message)?)?;
    Ok(stdout.flush()?)
}
