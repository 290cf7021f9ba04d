//! Leases at work: the bridge between the loop's orders and the worker processes.
//!
//! Foreign work runs in a worker of low priority, the owner's own work and all checking in another of normal priority.
//! Either is started when first needed and ends with this process.

mod checks;
pub(super) mod desks;
mod hops;
mod stops;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;
use tokio::sync::mpsc;

use super::Mailbox;
use super::order::{CheckOrder, Mail, Order};
use super::results::{compare, finish, root_of};
use crate::domain::step::{Findings, Input, LaborNews};
use crate::labor::frames::Units;
use crate::labor::skills;
use crate::labor::supervisor::{
    StartJob, Supervisor, SupervisorConfig, SupervisorHandle, WorkerClass, WorkerEvent,
};

/// What a worker may say of its machine; a proof's names have at most 256 bytes.
const PROFILE_BYTES: usize = 200;

/// How workers are run.
#[derive(Debug, Clone)]
pub struct LaborSettings {
    /// This node's Nostr key, hex.
    pub me: String,
    /// The program: this binary, or one of the owner's.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Threads of the owner's work, and of foreign work until the owner says otherwise.
    pub threads: u32,
    /// Memory limit, bytes.
    pub memory_limit_bytes: u64,
    /// Silence that counts as hanging, milliseconds.
    pub hang_timeout_ms: u64,
    /// Time a soft stop has before the worker is killed, milliseconds.
    pub soft_stop_ms: u64,
    /// Units between checkpoints; 0 for the skill's own choice.
    pub checkpoint_every_units: u32,
    /// Folder for the workers' directories.
    pub scratch: PathBuf,
    /// Where this machine's models are registered.
    pub models: PathBuf,
}

enum Job {
    Work {
        key: String,
        skill: String,
        input: Value,
        commitment: String,
        run: Box<Run>,
    },
    Check(Box<CheckOrder>),
    Evidence {
        key: String,
        skill: String,
        profile: String,
        ours: Vec<u8>,
    },
}

/// How a lease's work was started, so that it can go on with another number of cores.
struct Run {
    start: StartJob,
    /// It stops only to go on at once; nobody else hears of that stop.
    again: bool,
    /// Units computed before such stops.
    executed_before: u32,
}

struct Station {
    handle: SupervisorHandle,
    profile: String,
    /// When the register of models had last changed as its worker began.
    register: Option<SystemTime>,
    jobs: HashMap<u64, Job>,
}

/// The task that runs leases.
pub struct Leases {
    settings: LaborSettings,
    /// Cores for foreign work now.
    foreign_threads: u32,
    mailbox: Mailbox,
    foreign: Option<Station>,
    own: Option<Station>,
    next: u64,
    /// Engagements that stop at their next checkpoint.
    stop_after: Vec<String>,
    status: Arc<std::sync::Mutex<Option<String>>>,
}

type Events = mpsc::Receiver<WorkerEvent>;

impl Leases {
    /// Runs until the channel closes, then ends the workers. `status` holds the numeric profile once known.
    pub async fn run(
        settings: LaborSettings,
        mailbox: Mailbox,
        mut orders: mpsc::UnboundedReceiver<Order>,
        status: Arc<std::sync::Mutex<Option<String>>>,
        mut cores: tokio::sync::watch::Receiver<u32>,
    ) {
        let mut this = Self {
            foreign_threads: settings.threads,
            settings,
            mailbox,
            foreign: None,
            own: None,
            next: 1,
            stop_after: Vec::new(),
            status,
        };
        let (mut foreign_events, mut own_events): (Option<Events>, Option<Events>) = (None, None);
        loop {
            tokio::select! {
                order = orders.recv() => {
                    let Some(order) = order else { break };
                    this.obey(order, &mut foreign_events, &mut own_events);
                }
                event = next(&mut foreign_events) => this.hear(false, event, &mut foreign_events),
                event = next(&mut own_events) => this.hear(true, event, &mut own_events),
                changed = cores.changed() => {
                    if changed.is_err() { break }
                    let threads = (*cores.borrow_and_update()).max(1);
                    this.set_foreign_threads(threads);
                }
            }
        }
        for station in this.foreign.into_iter().chain(this.own) {
            station.handle.shutdown().await;
        }
    }

    fn station(&mut self, own: bool, events: &mut Option<Events>) -> Option<&mut Station> {
        let register = changed_at(&self.settings.models);
        let slot = if own {
            &mut self.own
        } else {
            &mut self.foreign
        };
        if slot.is_none() {
            let config = SupervisorConfig {
                program: self.settings.program.clone(),
                args: self.settings.args.clone(),
                class: if own {
                    WorkerClass::Own
                } else {
                    WorkerClass::Foreign
                },
                // A job says how many of them it uses: foreign ones may be given more later.
                threads: if own {
                    self.settings.threads
                } else {
                    self.foreign_threads.max(machine_threads())
                },
                memory_limit_bytes: self.settings.memory_limit_bytes,
                hang_timeout_ms: self.settings.hang_timeout_ms,
                scratch_dir: self
                    .settings
                    .scratch
                    .join(if own { "own" } else { "foreign" }),
            };
            match Supervisor::start(config) {
                Ok((handle, receiver)) => {
                    *events = Some(receiver);
                    *slot = Some(Station {
                        handle,
                        profile: String::new(),
                        register,
                        jobs: HashMap::new(),
                    });
                }
                Err(error) => {
                    tracing::error!(code = error.code(), "no worker can be started: {error}")
                }
            }
        }
        slot.as_mut()
    }

    fn obey(&mut self, order: Order, foreign: &mut Option<Events>, own: &mut Option<Events>) {
        match order {
            Order::Start {
                key,
                skill,
                input,
                commitment,
                checkpoint,
                answers,
                foreign: is_foreign,
            } => {
                let running = [&self.foreign, &self.own].into_iter().flatten().any(|s| {
                    s.jobs
                        .values()
                        .any(|j| matches!(j, Job::Work { key: k, .. } if *k == key))
                });
                if running {
                    return;
                }
                let every = match self.settings.checkpoint_every_units {
                    0 => skills::plan(&skill, &input).map_or(8, |plan| plan.units_per_checkpoint),
                    n => n,
                };
                let start = StartJob {
                    job: 0,
                    skill: skill.clone(),
                    input: input.clone(),
                    units: Units::All,
                    threads: if is_foreign { self.foreign_threads } else { 0 },
                    foreign: is_foreign,
                    checkpoint,
                    checkpoint_every_units: every,
                    answers,
                };
                let job = Job::Work {
                    key: key.clone(),
                    skill,
                    input,
                    commitment,
                    run: Box::new(Run {
                        start: start.clone(),
                        again: false,
                        executed_before: 0,
                    }),
                };
                let events = if is_foreign { foreign } else { own };
                if !self.launch(!is_foreign, events, start, job) {
                    self.news(
                        key,
                        LaborNews::Lost {
                            code: "worker_start".into(),
                        },
                    );
                }
            }
            Order::SoftStop {
                key,
                after_checkpoint,
            } => self.soft_stop(&key, after_checkpoint),
            Order::Abandon => self.abandon(),
            Order::Check(order) => self.check(*order, own),
            Order::Evidence {
                key,
                skill,
                input,
                units,
                unit_count,
                evidence,
                profile,
            } => {
                self.evidence(
                    own, key, skill, input, &units, unit_count, &evidence, profile,
                );
            }
            _ => {}
        }
    }

    fn abandon(&mut self) {
        for station in self.foreign.iter_mut().chain(self.own.as_mut()) {
            station.jobs.clear();
            let _ = station.handle.kill();
        }
        self.stop_after.clear();
    }

    fn launch(
        &mut self,
        own: bool,
        events: &mut Option<Events>,
        mut start: StartJob,
        job: Job,
    ) -> bool {
        let number = self.next;
        self.next += 1;
        start.job = number;
        let register = changed_at(&self.settings.models);
        let Some(station) = self.station(own, events) else {
            return false;
        };
        // A worker reads the models that were registered when it began: an idle one begins anew.
        if station.register != register && station.jobs.is_empty() {
            station.register = register;
            let _ = station.handle.kill();
        }
        if station.handle.start(start).is_err() {
            return false;
        }
        station.jobs.insert(number, job);
        true
    }

    /// Work that stopped at the end of a unit: for good, or to go on with another number of cores.
    fn stopped(
        &mut self,
        events: &mut Option<Events>,
        job: Job,
        bytes: Vec<u8>,
        units_done: u32,
        executed: u32,
    ) {
        let Job::Work {
            key,
            skill,
            input,
            commitment,
            mut run,
        } = job
        else {
            return;
        };
        let executed = executed.saturating_add(run.executed_before);
        if !run.again {
            self.stop_after.retain(|k| *k != key);
            return self.news(
                key,
                LaborNews::Stopped {
                    units_done,
                    bytes,
                    executed,
                },
            );
        }
        run.again = false;
        run.executed_before = executed;
        run.start.threads = self.foreign_threads;
        if units_done > 0 {
            run.start.checkpoint = Some(bytes.clone());
            self.news(key.clone(), LaborNews::Checkpoint { units_done, bytes });
        }
        let (start, lost) = (run.start.clone(), key.clone());
        let job = Job::Work {
            key,
            skill,
            input,
            commitment,
            run,
        };
        if !self.launch(!start.foreign, events, start, job) {
            self.news(
                lost,
                LaborNews::Lost {
                    code: "worker_start".into(),
                },
            );
        }
    }

    fn news(&self, key: String, news: LaborNews) {
        self.mailbox.post(Mail::Fact(Input::Labor { key, news }));
    }

    fn hear(&mut self, own: bool, event: Option<WorkerEvent>, events: &mut Option<Events>) {
        let slot = if own {
            &mut self.own
        } else {
            &mut self.foreign
        };
        let Some(event) = event else {
            // The supervisor is gone with all its jobs; the next order starts another.
            let lost: Vec<Job> = slot
                .take()
                .map(|s| s.jobs.into_values().collect())
                .unwrap_or_default();
            lost.into_iter()
                .for_each(|job| self.lost(job, "worker_exited"));
            return;
        };
        let Some(station) = slot.as_mut() else { return };
        match event {
            WorkerEvent::Started { pid } => tracing::info!(pid, own, "worker started"),
            WorkerEvent::Described { mut profile, .. } => {
                profile.truncate(profile.floor_char_boundary(PROFILE_BYTES));
                station.profile.clone_from(&profile);
                if let Ok(mut status) = self.status.lock() {
                    *status = Some(profile);
                }
            }
            WorkerEvent::Progress {
                job, units_done, ..
            } => {
                if let Some(Job::Work { key, .. }) = station.jobs.get(&job) {
                    let key = key.clone();
                    self.news(key, LaborNews::Progress { units_done });
                }
            }
            WorkerEvent::Checkpoint {
                job,
                units_done,
                bytes,
            } => {
                let Some(Job::Work { key, .. }) = station.jobs.get(&job) else {
                    return;
                };
                let key = key.clone();
                if let Some(at) = self.stop_after.iter().position(|k| *k == key) {
                    self.stop_after.swap_remove(at);
                    let _ = station.handle.soft_stop(job, self.settings.soft_stop_ms);
                }
                self.news(key, LaborNews::Checkpoint { units_done, bytes });
            }
            WorkerEvent::CheckpointRefused { job, code, message } => tracing::warn!(
                job,
                code,
                message,
                "the checkpoint is of no use: from the first unit"
            ),
            WorkerEvent::Done {
                job,
                units,
                executed_units,
                resumed_from,
            } => {
                let profile = station.profile.clone();
                if let Some(done) = station.jobs.remove(&job) {
                    self.done(done, units, executed_units, resumed_from, profile);
                }
            }
            WorkerEvent::Stopped {
                job,
                checkpoint,
                units_done,
                executed_units,
            } => {
                if let Some(ended) = station.jobs.remove(&job) {
                    self.stopped(events, ended, checkpoint, units_done, executed_units);
                }
            }
            WorkerEvent::Delegated {
                job,
                call,
                wish,
                state,
                units_done,
                executed_units,
            } => match station.jobs.remove(&job) {
                Some(Job::Work { key, run, .. }) => {
                    let executed = executed_units.saturating_add(run.executed_before);
                    self.delegated(key, call, wish, state, units_done, executed);
                }
                Some(other) => self.lost(other, "delegated"),
                None => {}
            },
            WorkerEvent::Failed { job, code, message } => match station.jobs.remove(&job) {
                Some(Job::Work { key, .. }) => {
                    let code = if desks::is_code(&code) {
                        code
                    } else {
                        "skill_failed".into()
                    };
                    self.news(key, LaborNews::Failed { code, message })
                }
                Some(other) => self.lost(other, &code),
                None => {}
            },
            WorkerEvent::Exited {
                jobs,
                code,
                message,
            } => {
                tracing::warn!(code, message, "a worker is gone");
                let lost: Vec<Job> = jobs.iter().filter_map(|j| station.jobs.remove(j)).collect();
                lost.into_iter().for_each(|job| self.lost(job, code));
            }
        }
    }

    fn lost(&mut self, job: Job, code: &str) {
        match job {
            Job::Work { key, .. } => {
                self.stop_after.retain(|k| *k != key);
                self.news(
                    key,
                    LaborNews::Lost {
                        code: code.to_owned(),
                    },
                );
            }
            // What cannot be recomputed is not verified, and said so.
            Job::Check(order) => {
                let findings = Findings {
                    assurance: "schema".into(),
                    input: true,
                    output: true,
                    schema: Some(true),
                    units_checked: 0,
                    fault: None,
                };
                self.checked(&order, findings);
            }
            Job::Evidence { key, .. } => self
                .mailbox
                .post(Mail::Fact(Input::EvidenceChecked { key, holds: false })),
        }
    }

    fn done(
        &mut self,
        job: Job,
        units: Vec<Vec<u8>>,
        executed: u32,
        resumed_from: u32,
        profile: String,
    ) {
        match job {
            Job::Work {
                key,
                skill,
                input,
                commitment,
                run,
            } => {
                let mut parts = key.split('/').skip(1);
                let task = parts.next().unwrap_or_default();
                let award_no = parts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
                let root = root_of(task, award_no, &self.settings.me, &commitment, &units);
                let news = finish(
                    &skill,
                    &input,
                    &units,
                    root,
                    executed.saturating_add(run.executed_before),
                    resumed_from.saturating_sub(run.executed_before),
                    profile,
                );
                self.news(key, news);
            }
            Job::Check(order) => {
                let findings = compare(&order, &units, &profile);
                self.checked(&order, findings);
            }
            Job::Evidence {
                key,
                skill,
                profile: claimed,
                ours,
            } => {
                let agrees = units
                    .first()
                    .is_some_and(|unit| skills::compare(&skill, &claimed, &profile, &ours, unit));
                self.mailbox.post(Mail::Fact(Input::EvidenceChecked {
                    key,
                    holds: !agrees,
                }));
            }
        }
    }
}

fn machine_threads() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

async fn next(events: &mut Option<Events>) -> Option<WorkerEvent> {
    match events {
        Some(receiver) => {
            let event = receiver.recv().await;
            if event.is_none() {
                *events = None;
            }
            event
        }
        None => std::future::pending().await,
    }
}

/// When the register of models last changed.
fn changed_at(models: &Path) -> Option<SystemTime> {
    std::fs::metadata(models.join("register.json"))
        .and_then(|found| found.modified())
        .ok()
}
