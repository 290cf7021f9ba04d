//! The parent side of the worker process: starts it on demand, speaks frames with it, watches its memory and its signs of life,
//! and never leaves one behind. It must not know Burn, tasks or peers; what a job means to the node is the node's.
//!
//! A supervisor is a thread of its own. That is needed, not taste: Linux sends the parent-death signal when the *thread* that
//! started the child ends, and a runtime's threads come and go.
//!
//! **Two workers, not one.** An unprivileged process can lower its priority but not raise it again, so a node runs one supervisor of
//! [`WorkerClass::Own`] at normal priority and one of [`WorkerClass::Foreign`] at the lowest CPU and IO priority. `foreign` in
//! [`StartJob`] only orders jobs inside one worker.
//!
//! A worker that exits, hangs, eats memory or writes garbage takes its jobs with it: one [`WorkerEvent::Exited`] names them all.
//! The next job starts a new one, after a pause that doubles with each failure in a row (0.2 s to 30 s).

mod actor;
mod child;

use std::ffi::OsString;
use std::path::PathBuf;

use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::LaborError;
use super::frames::{Answer, Units, WorkerSkill};
use super::skills::Wish;

/// Events that may wait for the node; beyond it the worker waits (and `Progress` is dropped).
const EVENT_QUEUE: usize = 1024;

/// Whose work a worker does, which decides its priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerClass {
    /// The owner's: normal priority.
    Own,
    /// Somebody else's: nice 19 and idle IO class, for the whole life of the process.
    Foreign,
}

/// How to run a worker.
#[derive(Debug, Clone)]
pub struct SupervisorConfig {
    /// The program: usually the path of this very binary.
    pub program: PathBuf,
    /// Its arguments, usually `["worker"]`; `--threads N` is added.
    pub args: Vec<OsString>,
    /// Whose work.
    pub class: WorkerClass,
    /// The most threads it may use, at least 1.
    pub threads: u32,
    /// Resident memory above which it is killed (`worker_memory`), looked at ten times a second.
    pub memory_limit_bytes: u64,
    /// Silence, while it has jobs, after which it is killed (`worker_hung`).
    pub hang_timeout_ms: u64,
    /// A folder for this supervisor alone: each worker gets a fresh working directory `run-*` in it, removed afterwards. What a killed
    /// node left there is removed at the next start.
    pub scratch_dir: PathBuf,
}

/// A job for the worker.
#[derive(Debug, Clone)]
pub struct StartJob {
    /// The node's number for it: not in use by another running job of this supervisor.
    pub job: u64,
    /// The skill's id.
    pub skill: String,
    /// A complete input (with seed).
    pub input: Value,
    /// All units, or a verifier's sample.
    pub units: Units,
    /// Threads for this job; 0 = all that the worker has.
    pub threads: u32,
    /// After the owner's jobs in the same worker.
    pub foreign: bool,
    /// Where to resume.
    pub checkpoint: Option<Vec<u8>>,
    /// How often to hear [`WorkerEvent::Checkpoint`]; 0 = never.
    pub checkpoint_every_units: u32,
    /// What came back for the parts that it has delegated.
    pub answers: Vec<Answer>,
}

/// What a supervisor tells its node. Each started job ends in exactly one `Done`, `Stopped`, `Delegated`, `Failed` or `Exited`.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerEvent {
    /// A worker process runs.
    Started {
        /// Its process id and process group.
        pid: u32,
    },
    /// It said who it is; comes before any event of its jobs.
    Described {
        /// The numeric profile for proofs and comparison.
        profile: String,
        /// What it can do.
        skills: Vec<WorkerSkill>,
    },
    /// How far a job is.
    Progress {
        /// Which job.
        job: u64,
        /// Units finished, resumed ones included.
        units_done: u32,
        /// Units asked for.
        units_total: u32,
    },
    /// Results so far, to be made durable.
    Checkpoint {
        /// Which job.
        job: u64,
        /// Units in it.
        units_done: u32,
        /// To give to [`StartJob::checkpoint`].
        bytes: Vec<u8>,
    },
    /// The checkpoint given was damaged or foreign; the job runs from its first unit.
    CheckpointRefused {
        /// Which job.
        job: u64,
        /// `checkpoint_invalid`.
        code: String,
        /// Why.
        message: String,
    },
    /// All units.
    Done {
        /// Which job.
        job: u64,
        /// One result per unit asked for, in that order.
        units: Vec<Vec<u8>>,
        /// Units computed in this run.
        executed_units: u32,
        /// Units taken over from the checkpoint.
        resumed_from: u32,
    },
    /// Stopped on request.
    Stopped {
        /// Which job.
        job: u64,
        /// Where to resume. When the job had not reached a worker: the checkpoint it was started with, or empty.
        checkpoint: Vec<u8>,
        /// Units in it; 0 when the job had not reached a worker.
        units_done: u32,
        /// Units computed in this run.
        executed_units: u32,
    },
    /// The job waits for a part that somebody else is to do; start it again with the answer.
    Delegated {
        /// Which job.
        job: u64,
        /// Which of its calls, from 1.
        call: u32,
        /// What is to be done, and by whom.
        wish: Wish,
        /// Where to resume.
        state: Vec<u8>,
        /// Units in it.
        units_done: u32,
        /// Units computed in this run.
        executed_units: u32,
    },
    /// The worker refused or could not do this job.
    Failed {
        /// Which job.
        job: u64,
        /// The skill's code, e.g. `input_invalid`.
        code: String,
        /// Why.
        message: String,
    },
    /// The process is gone, and all its jobs with it.
    Exited {
        /// The jobs it held.
        jobs: Vec<u64>,
        /// `worker_exited`, `worker_garbage`, `worker_hung`, `worker_memory`, `worker_start` (could not be started) or
        /// `worker_killed` (on request).
        code: &'static str,
        /// What happened, with the last lines of its stderr.
        message: String,
    },
}

enum Command {
    Warm,
    Start(Box<StartJob>),
    SoftStop { job: u64, deadline_ms: u64 },
    Kill,
}

/// Starts supervisors.
pub struct Supervisor;

impl Supervisor {
    /// Start a supervisor thread. No worker is started before the first job or [`SupervisorHandle::warm`].
    ///
    /// [`LaborError::SupervisorStart`] when the scratch directory cannot be prepared or no thread can be had. The worker lives until
    /// [`SupervisorHandle::shutdown`], until all handles or the receiver are dropped, or until this process ends.
    pub fn start(
        config: SupervisorConfig,
    ) -> Result<(SupervisorHandle, mpsc::Receiver<WorkerEvent>), LaborError> {
        let failed = LaborError::SupervisorStart;
        child::prepare_scratch(&config.scratch_dir).map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let (closing, close) = watch::channel(false);
        let (end, ended) = watch::channel(());
        let thread = std::thread::Builder::new().name("supervisor".to_owned());
        thread
            .spawn(move || {
                runtime.block_on(actor::Actor::new(config, inbox, events, close).run());
                // The wait of `shutdown` ends when this sender is gone: after the child.
                drop(end);
            })
            .map_err(failed)?;
        Ok((
            SupervisorHandle {
                commands,
                closing,
                ended,
            },
            receiver,
        ))
    }
}

/// Speaks to a supervisor; clones speak to the same one.
#[derive(Debug, Clone)]
pub struct SupervisorHandle {
    commands: mpsc::UnboundedSender<Command>,
    closing: watch::Sender<bool>,
    ended: watch::Receiver<()>,
}

impl SupervisorHandle {
    /// Start the worker now, so that the first job need not wait for it and its profile is known.
    pub fn warm(&self) -> Result<(), LaborError> {
        self.send(Command::Warm)
    }

    /// Begin a job. A number in use ends in `Failed{job_running}`, and the running job goes on.
    pub fn start(&self, job: StartJob) -> Result<(), LaborError> {
        self.send(Command::Start(Box::new(job)))
    }

    /// Ask a job to stop after its unit. Without an answer in `deadline_ms` the worker is killed, with all its jobs.
    pub fn soft_stop(&self, job: u64, deadline_ms: u64) -> Result<(), LaborError> {
        self.send(Command::SoftStop { job, deadline_ms })
    }

    /// Kill the worker at once; its jobs end in `Exited{worker_killed}`. A later job starts a new one.
    pub fn kill(&self) -> Result<(), LaborError> {
        self.send(Command::Kill)
    }

    /// Kill the worker, remove its directory and end the supervisor; returns when nothing is left. No further events.
    pub async fn shutdown(&self) {
        self.closing.send_replace(true);
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    fn send(&self, command: Command) -> Result<(), LaborError> {
        self.commands
            .send(command)
            .map_err(|_| LaborError::SupervisorGone)
    }
}
