//! The supervisor's loop: commands in, frames in, a watch on the clock; events out. One job table, one worker at most.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;

use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, sleep_until};

use super::child::Worker;
use super::{Command, StartJob, SupervisorConfig, WorkerEvent};
use crate::labor::LaborError;
use crate::labor::frames::{Bytes, PROTOCOL_VERSION, ToNode, ToWorker};
use crate::labor::skills::Wish;

/// How often memory, silence and deadlines are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// The same while the worker has nothing to do.
const IDLE_WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Between SIGTERM and SIGKILL for a worker that did not stop when it was asked to.
const TERM_GRACE: Duration = Duration::from_secs(1);
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_LAST: Duration = Duration::from_secs(30);

pub(super) struct Actor {
    config: SupervisorConfig,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<WorkerEvent>,
    close: watch::Receiver<bool>,
    worker: Option<Worker>,
    described: bool,
    last_frame: Instant,
    /// It got SIGTERM for a job that did not stop: until when it may end by itself, and what is said of it.
    terminated: Option<(Instant, String)>,
    /// Jobs the worker has, with the deadline of a soft stop.
    running: BTreeMap<u64, Option<Instant>>,
    /// Jobs for the next worker, while there is none.
    waiting: VecDeque<StartJob>,
    failures_in_a_row: u32,
    next_attempt: Instant,
}

/// What woke the loop.
enum Wake {
    Close,
    Command(Option<Command>),
    Frame(Option<Result<ToNode, LaborError>>),
    Watch,
}

impl Actor {
    pub(super) fn new(
        config: SupervisorConfig,
        commands: mpsc::UnboundedReceiver<Command>,
        events: mpsc::Sender<WorkerEvent>,
        close: watch::Receiver<bool>,
    ) -> Self {
        let now = Instant::now();
        Self {
            config,
            commands,
            events,
            close,
            worker: None,
            described: false,
            last_frame: now,
            terminated: None,
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            failures_in_a_row: 0,
            next_attempt: now,
        }
    }

    pub(super) async fn run(mut self) {
        let mut next_watch = Instant::now();
        loop {
            match self.wake(next_watch).await {
                Wake::Close | Wake::Command(None) => break,
                Wake::Command(Some(command)) => self.obey(command).await,
                Wake::Frame(frame) => self.hear(frame).await,
                Wake::Watch => self.watch().await,
            }
            // A job waiting out a backoff or a silent worker needs the clock; an idle one hardly.
            let busy = !(self.running.is_empty() && self.waiting.is_empty());
            let interval = if busy {
                WATCH_INTERVAL
            } else {
                IDLE_WATCH_INTERVAL
            };
            let now = Instant::now();
            if next_watch <= now || next_watch > now + interval {
                next_watch = now + interval;
            }
        }
        if let Some(worker) = self.worker.take() {
            worker.end().await;
        }
    }

    async fn wake(&mut self, next_watch: Instant) -> Wake {
        let frame = async {
            match &mut self.worker {
                Some(worker) => worker.frames.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            // In this order: a stop overtakes a flood of frames, and the watch is never starved by one.
            biased;
            _ = self.close.wait_for(|close| *close) => Wake::Close,
            command = self.commands.recv() => Wake::Command(command),
            () = sleep_until(next_watch) => Wake::Watch,
            frame = frame => Wake::Frame(frame),
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Warm => self.ensure_worker().await,
            Command::Start(job) => self.start(*job).await,
            Command::SoftStop { job, deadline_ms } => self.soft_stop(job, deadline_ms).await,
            Command::Kill => {
                self.end("worker_killed", "it was killed on request".to_owned())
                    .await
            }
        }
    }

    async fn start(&mut self, job: StartJob) {
        if self.running.contains_key(&job.job)
            || self.waiting.iter().any(|other| other.job == job.job)
        {
            let message = format!("job {} is already running; choose another number", job.job);
            return self
                .tell(WorkerEvent::Failed {
                    job: job.job,
                    code: "job_running".to_owned(),
                    message,
                })
                .await;
        }
        self.waiting.push_back(job);
        self.ensure_worker().await;
    }

    /// Have a worker, unless a failed one was just buried, and give it what waits.
    async fn ensure_worker(&mut self) {
        if self.worker.is_none() {
            if Instant::now() < self.next_attempt {
                return;
            }
            match Worker::spawn(&self.config) {
                Ok(worker) => {
                    let pid = worker.pid;
                    let _ = worker.say(&ToWorker::Describe {});
                    self.worker = Some(worker);
                    self.described = false;
                    self.tell(WorkerEvent::Started { pid }).await;
                }
                Err(error) => {
                    let program = self.config.program.display();
                    let message = format!(
                        "cannot start `{program}`: {error}; check the program and the process limits"
                    );
                    return self.end("worker_start", message).await;
                }
            }
        }
        while let Some(job) = self.waiting.pop_front() {
            self.hand_over(job).await;
        }
    }

    async fn hand_over(&mut self, job: StartJob) {
        let Some(worker) = &self.worker else {
            return self.waiting.push_front(job);
        };
        let StartJob {
            job,
            skill,
            input,
            units,
            threads,
            foreign,
            checkpoint,
            checkpoint_every_units,
            answers,
        } = job;
        let checkpoint = checkpoint.map(Bytes);
        let message = ToWorker::Start {
            job,
            skill,
            input,
            units,
            threads,
            foreign,
            checkpoint,
            checkpoint_every_units,
            answers,
        };
        if let Err(error) = worker.say(&message) {
            let (code, message) = (error.code().to_owned(), error.to_string());
            return self.tell(WorkerEvent::Failed { job, code, message }).await;
        }
        if self.running.is_empty() {
            // Silence counts from here: an idle worker owes nothing.
            self.last_frame = Instant::now();
        }
        self.running.insert(job, None);
    }

    async fn soft_stop(&mut self, job: u64, deadline_ms: u64) {
        if let Some(place) = self.waiting.iter().position(|waiting| waiting.job == job) {
            let checkpoint = self
                .waiting
                .remove(place)
                .and_then(|job| job.checkpoint)
                .unwrap_or_default();
            return self
                .tell(WorkerEvent::Stopped {
                    job,
                    checkpoint,
                    units_done: 0,
                    executed_units: 0,
                })
                .await;
        }
        // A job that has just ended has already told its end.
        let Some(stop_by) = self.running.get_mut(&job) else {
            return;
        };
        let deadline = Instant::now() + Duration::from_millis(deadline_ms.min(86_400_000));
        *stop_by = Some(stop_by.map_or(deadline, |earlier| earlier.min(deadline)));
        if let Some(worker) = &self.worker {
            let _ = worker.say(&ToWorker::SoftStop { job, deadline_ms });
        }
    }

    async fn hear(&mut self, frame: Option<Result<ToNode, LaborError>>) {
        self.last_frame = Instant::now();
        let garbage = match frame {
            None if self.terminated.is_some() => return self.end_terminated().await,
            None => {
                return self
                    .end("worker_exited", "it ended by itself".to_owned())
                    .await;
            }
            Some(Err(error)) => error.to_string(),
            Some(Ok(message)) => match self.accept(message) {
                Ok(event) => {
                    self.tell(event).await;
                    // It has answered after all, but is on its way out: the next job gets a new one.
                    if self.terminated.is_some() && self.running.is_empty() {
                        self.end_terminated().await;
                    }
                    return;
                }
                Err(reason) => reason.to_owned(),
            },
        };
        self.end("worker_garbage", garbage).await;
    }

    /// Turn a frame into an event, if it is one that this worker may send now.
    fn accept(&mut self, message: ToNode) -> Result<WorkerEvent, &'static str> {
        if let ToNode::Described { protocol, .. } = message {
            if protocol != PROTOCOL_VERSION {
                return Err("it speaks another version of the worker protocol");
            }
            self.described = true;
        } else if !self.described {
            return Err("it did not say who it is before it spoke of jobs");
        }
        let (job, ends) = job_of(&message);
        if job.is_some_and(|job| !self.running.contains_key(&job)) {
            return Err("it spoke of a job that it does not have");
        }
        if let Some(job) = job.filter(|_| ends) {
            self.running.remove(&job);
            self.failures_in_a_row = 0;
        }
        Ok(into_event(message))
    }

    async fn watch(&mut self) {
        let now = Instant::now();
        if self.worker.is_none() && !self.waiting.is_empty() && now >= self.next_attempt {
            return self.ensure_worker().await;
        }
        let Some(worker) = &self.worker else { return };
        let limit = self.config.memory_limit_bytes;
        if let Some(used) = worker.memory_bytes().filter(|used| *used > limit) {
            return self
                .end(
                    "worker_memory",
                    format!("it used {used} bytes of memory; the limit is {limit}"),
                )
                .await;
        }
        if let Some((end_by, _)) = &self.terminated {
            if now > *end_by {
                self.end_terminated().await;
            }
            return;
        }
        let silence_ms = self.config.hang_timeout_ms;
        if !self.running.is_empty() && now > self.last_frame + Duration::from_millis(silence_ms) {
            return self
                .end(
                    "worker_hung",
                    format!("it was silent for over {silence_ms} ms while it had work"),
                )
                .await;
        }
        let late = self
            .running
            .iter()
            .find(|(_, stop_by)| stop_by.is_some_and(|stop_by| now > stop_by));
        if let Some(job) = late.map(|(job, _)| *job) {
            worker.terminate();
            let message = format!("it did not stop job {job} by the deadline");
            self.terminated = Some((now + TERM_GRACE, message));
        }
    }

    /// SIGTERM was the last warning.
    async fn end_terminated(&mut self) {
        if let Some((_, message)) = self.terminated.take() {
            self.end("worker_hung", message).await;
        }
    }

    /// Bury the worker, whatever state it is in, and tell which jobs went with it.
    async fn end(&mut self, code: &'static str, mut message: String) {
        self.terminated = None;
        let jobs: Vec<u64> = std::mem::take(&mut self.running).into_keys().collect();
        let jobs = jobs
            .into_iter()
            .chain(
                std::mem::take(&mut self.waiting)
                    .into_iter()
                    .map(|job| job.job),
            )
            .collect();
        if let Some(worker) = self.worker.take() {
            let (status, last_words) = worker.end().await;
            if let Some(status) = status.filter(|_| code == "worker_exited") {
                message = format!("{message} ({status})");
            }
            if !last_words.is_empty() {
                message = format!("{message}; its last words: {last_words}");
            }
        }
        if code != "worker_killed" {
            let doublings = self.failures_in_a_row.min(16);
            self.next_attempt = Instant::now()
                + BACKOFF_FIRST
                    .saturating_mul(1 << doublings)
                    .min(BACKOFF_LAST);
            self.failures_in_a_row += 1;
        }
        let message = format!("the worker is gone: {message}");
        self.tell(WorkerEvent::Exited {
            jobs,
            code,
            message,
        })
        .await;
    }

    /// Tell the node. Progress never waits; everything else waits until the node takes it or closes.
    async fn tell(&mut self, event: WorkerEvent) {
        if matches!(event, WorkerEvent::Progress { .. }) {
            let _ = self.events.try_send(event);
            return;
        }
        tokio::select! {
            biased;
            sent = self.events.send(event) => {
                if sent.is_err() {
                    // Nobody listens any more: end like a shutdown.
                    self.commands.close();
                }
            }
            _ = self.close.wait_for(|close| *close) => {}
        }
    }
}

/// The job of a frame, and whether the frame ends it.
fn job_of(message: &ToNode) -> (Option<u64>, bool) {
    match message {
        ToNode::Described { .. } => (None, false),
        ToNode::Progress { job, .. }
        | ToNode::Checkpoint { job, .. }
        | ToNode::CheckpointRefused { job, .. } => (Some(*job), false),
        ToNode::Done { job, .. }
        | ToNode::Stopped { job, .. }
        | ToNode::Delegate { job, .. }
        | ToNode::Failed { job, .. } => (Some(*job), true),
    }
}

fn into_event(message: ToNode) -> WorkerEvent {
    match message {
        ToNode::Described {
            protocol: _,
            profile,
            skills,
        } => WorkerEvent::Described { profile, skills },
        ToNode::Progress {
            job,
            units_done,
            units_total,
        } => WorkerEvent::Progress {
            job,
            units_done,
            units_total,
        },
        ToNode::Checkpoint {
            job,
            units_done,
            bytes,
        } => WorkerEvent::Checkpoint {
            job,
            units_done,
            bytes: bytes.0,
        },
        ToNode::CheckpointRefused { job, code, message } => {
            WorkerEvent::CheckpointRefused { job, code, message }
        }
        ToNode::Done {
            job,
            units,
            executed_units,
            resumed_from,
        } => {
            let units = units.into_iter().map(|unit| unit.0).collect();
            WorkerEvent::Done {
                job,
                units,
                executed_units,
                resumed_from,
            }
        }
        ToNode::Stopped {
            job,
            checkpoint,
            units_done,
            executed_units,
        } => WorkerEvent::Stopped {
            job,
            checkpoint: checkpoint.0,
            units_done,
            executed_units,
        },
        ToNode::Delegate {
            job,
            call,
            skill,
            input,
            peer,
            state,
            units_done,
            executed_units,
        } => WorkerEvent::Delegated {
            job,
            call,
            wish: Wish { skill, input, peer },
            state: state.0,
            units_done,
            executed_units,
        },
        ToNode::Failed { job, code, message } => WorkerEvent::Failed { job, code, message },
    }
}
