//! One worker process: how it is started clean, measured, and ended with everything that it started. It must not know jobs.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{SupervisorConfig, WorkerClass};
use crate::labor::LaborError;
use crate::labor::frames::{self, ToNode, ToWorker};

/// How much of stderr is remembered.
const STDERR_TAIL_BYTES: usize = 2048;
/// Frames read ahead of the node.
const FRAME_QUEUE: usize = 64;

/// A running worker. Dropping it kills the process group.
pub(super) struct Worker {
    pub(super) pid: u32,
    /// What it says; ends with `None` at the end of its stdout.
    pub(super) frames: mpsc::Receiver<Result<ToNode, LaborError>>,
    child: tokio::process::Child,
    outbox: mpsc::UnboundedSender<Vec<u8>>,
    stderr_tail: Arc<Mutex<Vec<u8>>>,
    stderr_task: JoinHandle<()>,
    directory: PathBuf,
    reaped: bool,
}

/// Create the scratch folder and remove what a killed node left in it.
pub(super) fn prepare_scratch(scratch: &Path) -> io::Result<()> {
    std::fs::create_dir_all(scratch)?;
    for entry in std::fs::read_dir(scratch)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("run-") && entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

impl Worker {
    /// Start a worker. Must be called on the supervisor's own thread: see the parent module.
    pub(super) fn spawn(config: &SupervisorConfig) -> io::Result<Self> {
        let directory = make_directory(&config.scratch_dir)?;
        let spawned = command(config, &directory)
            .spawn()
            .and_then(|child| Self::attach(child, directory.clone()));
        if spawned.is_err() {
            // Only an empty directory is left behind, and the next start sweeps it.
            let _ = std::fs::remove_dir_all(&directory);
        }
        spawned
    }

    fn attach(mut child: tokio::process::Child, directory: PathBuf) -> io::Result<Self> {
        let missing = || io::Error::other("the worker's pipes are missing");
        let pid = child.id().ok_or_else(missing)?;
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let (outbox, messages) = mpsc::unbounded_channel();
        let (frames_in, frames) = mpsc::channel(FRAME_QUEUE);
        let stderr_tail = Arc::new(Mutex::new(Vec::new()));
        // Separate tasks, so that a worker that does not read can never block the reading of what it writes.
        tokio::spawn(write_frames(stdin, messages));
        tokio::spawn(read_frames(stdout, frames_in));
        let stderr_task = tokio::spawn(read_stderr(stderr, Arc::clone(&stderr_tail)));
        Ok(Self {
            pid,
            frames,
            child,
            outbox,
            stderr_tail,
            stderr_task,
            directory,
            reaped: false,
        })
    }

    /// Queue a message. A worker that is already gone shows it by the end of its frames.
    pub(super) fn say(&self, message: &ToWorker) -> Result<(), LaborError> {
        let frame = frames::encode(message)?;
        let _ = self.outbox.send(frame);
        Ok(())
    }

    /// Kill the process group, wait for the process, remove its directory. Returns how it ended and its last words.
    pub(super) async fn end(mut self) -> (Option<ExitStatus>, String) {
        // An exit of its own shall be seen as such, not as our kill: its pipe closes a moment before it can be reaped.
        let own_end = if self.frames.is_closed() {
            tokio::time::timeout(Duration::from_millis(200), self.child.wait())
                .await
                .ok()
        } else {
            None
        };
        self.kill_group();
        let status = match own_end {
            Some(status) => status.ok(),
            None => self.child.wait().await.ok(),
        };
        self.reaped = true;
        // A grandchild outside the group could hold stderr open: do not wait for it.
        let _ = tokio::time::timeout(Duration::from_millis(200), &mut self.stderr_task).await;
        let tail = self
            .stderr_tail
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        (status, String::from_utf8_lossy(&tail).trim().to_owned())
    }

    /// Resident memory in bytes, where the system tells.
    pub(super) fn memory_bytes(&self) -> Option<u64> {
        resident_bytes(self.pid)
    }

    /// The last warning: SIGTERM to the process group.
    pub(super) fn terminate(&self) {
        self.signal_group(rustix::process::Signal::TERM);
    }

    fn kill_group(&self) {
        self.signal_group(rustix::process::Signal::KILL);
    }

    fn signal_group(&self, signal: rustix::process::Signal) {
        if let Some(group) = i32::try_from(self.pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            // Fails only when the group is already empty.
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill_group();
        }
        self.stderr_task.abort();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn make_directory(scratch: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = scratch.join(format!("run-{}-{number}", std::process::id()));
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(&directory)?;
    Ok(directory)
}

fn command(config: &SupervisorConfig, directory: &Path) -> Command {
    let threads = config.threads.max(1).to_string();
    let mut command = Command::new(&config.program);
    command
        .args(&config.args)
        .args(["--threads", &threads])
        .env_clear()
        .env("LC_ALL", "C")
        .env("TMPDIR", directory)
        .env("RAYON_NUM_THREADS", &threads)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let parent = rustix::process::getpid();
    let low_priority = config.class == WorkerClass::Foreign;
    // SAFETY: between fork and exec `enter_child` makes system calls only: no allocation, no locks.
    unsafe { command.pre_exec(move || enter_child(parent, low_priority)) };
    command
}

/// Runs in the child before the program: die with the parent, lowest priority for foreign work, no foreign file descriptors.
fn enter_child(parent: rustix::process::Pid, low_priority: bool) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have died before the line above took effect.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
    // Elsewhere the end of stdin tells the worker that its node is gone.
    #[cfg(not(target_os = "linux"))]
    let _ = parent;
    if low_priority {
        rustix::process::setpriority_process(None, 19)?;
        lowest_io_priority();
    }
    close_on_exec_from_3();
    Ok(())
}

fn lowest_io_priority() {
    #[cfg(target_os = "linux")]
    {
        const WHO_PROCESS: libc::c_int = 1;
        const CLASS_IDLE: libc::c_int = 3 << 13;
        // SAFETY: takes three integers; a system that does not know it refuses, which costs only the courtesy.
        unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
    }
}

/// Marks instead of closing, because the standard library reports a failed exec through a descriptor of its own.
fn close_on_exec_from_3() {
    #[cfg(target_os = "linux")]
    {
        const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
        // SAFETY: takes three integers and touches only this process' descriptor flags.
        let done = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                CLOSE_RANGE_CLOEXEC,
            )
        };
        if done == 0 {
            return;
        }
    }
    // Kernels before 5.11, and other systems: what a node plausibly has open.
    for descriptor in 3..4096 {
        // SAFETY: sets a flag of a descriptor; one that is not open gives an error and nothing else.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

#[cfg(target_os = "linux")]
fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(not(target_os = "linux"))]
fn resident_bytes(pid: u32) -> Option<u64> {
    let output = std::process::Command::new("ps")
        .args(["-o", "rss=", "-p", &pid.to_string()])
        .output()
        .ok()?;
    let kib: u64 = std::str::from_utf8(&output.stdout)
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(kib * 1024)
}

async fn write_frames(mut stdin: ChildStdin, mut messages: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(frame) = messages.recv().await {
        if stdin.write_all(&frame).await.is_err() {
            return;
        }
    }
}

async fn read_frames(mut stdout: ChildStdout, frames: mpsc::Sender<Result<ToNode, LaborError>>) {
    loop {
        let frame = read_frame(&mut stdout).await;
        // The end of the pipe, also inside a frame, is an exit, not garbage.
        if matches!(frame, Err(LaborError::Pipe(_))) {
            return;
        }
        let last = frame.is_err();
        if frames.send(frame).await.is_err() || last {
            return;
        }
    }
}

async fn read_frame(stdout: &mut ChildStdout) -> Result<ToNode, LaborError> {
    let mut prefix = [0; 4];
    stdout.read_exact(&mut prefix).await?;
    let length = frames::decode_length(prefix)?;
    // Grow with what really comes, so that a liar's length costs nothing.
    let mut json = Vec::new();
    let read = (&mut *stdout)
        .take(length as u64)
        .read_to_end(&mut json)
        .await?;
    if read < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    frames::decode(&json)
}

async fn read_stderr(mut stderr: ChildStderr, tail: Arc<Mutex<Vec<u8>>>) {
    let mut chunk = [0; 1024];
    while let Ok(read @ 1..) = stderr.read(&mut chunk).await {
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(chunk.iter().take(read));
        let excess = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..excess);
    }
}
