//! The labor room: what does the work. Skills say what can be done and how it is cut into units; a worker process does the
//! units; a supervisor starts, watches and ends that process. This is the only room that knows Burn (feature `labor`); it must
//! not know peers, prices beyond a skill's default, tasks, the store or the network.
//!
//! Planning, aggregating and comparing are plain Rust and compile without Burn: a node that only hires can still check what it
//! is given. Running units needs the feature and happens only in the worker process ([`worker_main`]).
//!
//! ```text
//! node -> Supervisor (a thread of its own) == frames over stdin/stdout ==> worker process -> Skill -> Burn
//! ```

pub mod checkpoint;
pub mod frames;
#[cfg(feature = "labor")]
pub mod models;
pub mod sandbox;
pub mod skills;
pub mod supervisor;
#[cfg(feature = "labor")]
pub(crate) mod worker;

use std::process::ExitCode;

pub use sandbox::{Sandbox, SandboxReport};
pub use skills::{Plan, SkillError, SkillInfo};
pub use supervisor::{
    StartJob, Supervisor, SupervisorConfig, SupervisorHandle, WorkerClass, WorkerEvent,
};

/// What can go wrong in this room outside a job. A job's own failure arrives as [`WorkerEvent::Failed`] or
/// [`WorkerEvent::Exited`] with its code.
#[derive(Debug, thiserror::Error)]
pub enum LaborError {
    /// The supervisor's thread could not be started or prepared.
    #[error(
        "cannot start the worker's supervisor: {0}; check the process limits and the scratch directory"
    )]
    SupervisorStart(#[source] std::io::Error),
    /// The supervisor was shut down; nothing can be started any more.
    #[error("the worker's supervisor has ended; restart the node")]
    SupervisorGone,
    /// Bytes on the pipe that are no frame of the protocol.
    #[error("not a frame of the worker protocol: {0}; the worker program does not fit this node")]
    FrameInvalid(String),
    /// A frame above [`frames::MAX_FRAME_BYTES`].
    #[error(
        "a frame of {length_bytes} bytes is over the limit of {limit_bytes}; make the job smaller"
    )]
    FrameTooLarge {
        /// The length announced.
        length_bytes: u64,
        /// The most allowed.
        limit_bytes: u64,
    },
    /// The pipe failed or ended inside a frame.
    #[error("the pipe to the worker failed: {0}; the worker will be restarted")]
    Pipe(#[from] std::io::Error),
    /// A checkpoint that is corrupt or belongs to another job.
    #[error("the checkpoint cannot be used: {0}; the job starts from nothing")]
    CheckpointInvalid(&'static str),
    /// A directory that is no model which this program can run.
    #[error("{}: {reason}; use a directory of a BERT encoder in Hugging Face layout", path.display())]
    ModelInvalid {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No model of this name or hash is registered, with its files in place.
    #[error("there is no model {0} here; `legion models list` shows those there are")]
    ModelMissing(String),
    /// Files of a registered model are others than when it was added.
    #[error("the files of the model {0} have changed; remove it and add it again")]
    ModelChanged(String),
    /// Another model has this name.
    #[error("there is another model {0}; remove it first, or add this one with --name")]
    ModelExists(String),
    /// A name that cannot be one.
    #[error("`{0}` cannot be a model's name; take 1 to 64 letters, digits, `.`, `_` or `-`")]
    ModelName(String),
    /// The register of models cannot be read.
    #[error("{}: the register of models cannot be read: {reason}; repair it, or move it away and add the models again", path.display())]
    ModelRegister {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused something to do with a model's files.
    #[error("{}: {reason}; check the path, who owns it, and the space on its disk", path.display())]
    ModelIo {
        /// The file.
        path: std::path::PathBuf,
        /// What the system says.
        reason: String,
    },
}

impl LaborError {
    /// The stable code that a person can search for.
    pub fn code(&self) -> &'static str {
        match self {
            Self::SupervisorStart(_) => "supervisor_start",
            Self::SupervisorGone => "supervisor_gone",
            Self::FrameInvalid(_) => "frame_invalid",
            Self::FrameTooLarge { .. } => "frame_too_large",
            Self::Pipe(_) => "worker_pipe",
            Self::CheckpointInvalid(_) => "checkpoint_invalid",
            Self::ModelInvalid { .. } => "model_invalid",
            Self::ModelMissing(_) => "model_missing",
            Self::ModelChanged(_) => "model_changed",
            Self::ModelExists(_) => "model_exists",
            Self::ModelName(_) => "model_name",
            Self::ModelRegister { .. } => "model_register",
            Self::ModelIo { .. } => "model_io",
        }
    }
}

/// The worker process: what the hidden subcommand `legion worker` runs. Reads frames on stdin until it ends.
///
/// `args` are the words after the subcommand: `--threads N` (default 1), `--models DIR` (the home's register of models; without it
/// there are none), those of [`Sandbox::args`], and last `--run PROGRAM ARG...`: it becomes that program. Exit codes: 0 when stdin
/// ended, 1 on a broken pipe or protocol or a sandbox below the level asked for, 2 on a wrong argument or without the feature
/// `labor`, 127 when the program cannot be started, else the program's.
pub fn worker_main(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    #[cfg(feature = "labor")]
    {
        worker::main(args.into_iter().collect())
    }
    #[cfg(not(feature = "labor"))]
    {
        drop(args);
        eprintln!("this build cannot work: it was made without the feature `labor`");
        ExitCode::from(2)
    }
}
