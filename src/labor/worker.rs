//! The worker process: reads frames on stdin, works its jobs unit by unit in turn, writes frames on stdout. It holds Burn and
//! nothing else: no keys, no network, no store. It trusts its node, and ends when its node is gone. With `--run` it only enters the
//! sandbox, and then becomes a program of the owner's.

mod launch;
mod openai;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use super::LaborError;
use super::checkpoint::{self, JobKey};
use super::frames::{self, Answer, Bytes, PROTOCOL_VERSION, ToNode, ToWorker, Units, WorkerSkill};
use super::models::Models;
use super::sandbox::{Sandbox, SandboxReport};
use super::skills::cores::{CorePools, numeric_profile};
use super::skills::embedding::Shelf;
use super::skills::{self, Skill, SkillError, UnitRunner, Wish};

/// At most five `progress` frames a second per job.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) fn main(args: Vec<OsString>) -> ExitCode {
    let mut start = match Start::parse(&args) {
        Ok(start) => start,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    start.show_models();
    if matches!(start.then, Then::Run(_)) {
        launch::guard_group();
    }
    let backend = match start.backend() {
        Ok(backend) => backend,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let shelf = match &start.models {
        Some(folder) => Shelf::of(Models::at(folder)),
        None => Shelf::empty(),
    };
    // Before anything that comes from the node is read, and while there is one thread.
    let report = start.sandbox.enter(start.threads);
    if report.level < start.sandbox.at_least {
        let (level, missing) = (report.level.as_str(), report.missing.join(", "));
        eprintln!("the sandbox here is {level}, less than the node counts on; missing: {missing}");
        return ExitCode::FAILURE;
    }
    let ended = match (start.then, backend) {
        (Then::Work, None) => run(start.threads, shelf, std::io::stdout()),
        (Then::Work, Some(backend)) => backend.work(),
        (Then::Reach, Some(backend)) => backend.reach(),
        (Then::Reach, None) => return ExitCode::from(2),
        (Then::Report, _) => say_report(&report),
        (Then::Run(command), _) => return launch::run(&command),
        #[cfg(all(target_os = "linux", any(feature = "crash-points", debug_assertions)))]
        (Then::Probe, _) => super::sandbox::probe::run().map_err(LaborError::Pipe),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What a worker is told on its command line.
struct Start {
    threads: u32,
    /// The folder of the register of models.
    models: Option<PathBuf>,
    sandbox: Sandbox,
    /// The server that it passes its jobs on to.
    openai: openai::Settings,
    then: Then,
}

/// What it does in its sandbox.
enum Then {
    Work,
    /// Say what the sandbox is, and exit.
    Report,
    /// Become this program.
    Run(Vec<OsString>),
    /// Say whether the server of `--openai` answers, and exit.
    Reach,
    /// What a test tells it.
    #[cfg(all(target_os = "linux", any(feature = "crash-points", debug_assertions)))]
    Probe,
}

impl Start {
    fn parse(args: &[OsString]) -> Result<Self, String> {
        let mut start = Self {
            threads: 1,
            models: None,
            sandbox: Sandbox::default(),
            openai: openai::Settings::default(),
            then: Then::Work,
        };
        let mut words = args.iter();
        while let Some(word) = words.next() {
            let usage = "usage: worker [--sandbox off|none|partial|full] [--allow-read PATH] [--allow-exec PATH] \
                [--allow-device PATH] [--memory-bytes N] [--models DIR] [--threads N] [--openai URL --skill NAME --model NAME ...] [--run PROGRAM ARG...]; this command is \
                started by the node";
            if word == "--run" {
                // The stacks of as many threads as it could have, since its own `--threads` is the program's.
                start.threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
                start.then = Then::Run(words.cloned().collect());
                break;
            }
            let (Some(flag), Some(value)) = (word.to_str(), words.next()) else {
                return Err(usage.to_owned());
            };
            match flag {
                "--threads" => {
                    start.threads = value
                        .to_str()
                        .and_then(|number| number.parse().ok())
                        .filter(|threads| (1..=4096).contains(threads))
                        .ok_or_else(|| "--threads takes a number from 1 to 4096".to_owned())?;
                }
                "--models" => start.models = Some(value.into()),
                "--then" if value == "report" => start.then = Then::Report,
                "--then" if value == "reach" => start.then = Then::Reach,
                #[cfg(all(target_os = "linux", any(feature = "crash-points", debug_assertions)))]
                "--then" if value == "probe" => start.then = Then::Probe,
                flag if start.sandbox.take(flag, value)? => {}
                flag if start.openai.take(flag, value)? => {}
                _ => return Err(usage.to_owned()),
            }
        }
        Ok(start)
    }

    /// What has to be had of a server's before the sandbox.
    fn backend(&mut self) -> Result<Option<openai::Prepared>, String> {
        let settings = std::mem::take(&mut self.openai);
        let wanted = settings.is_set() && matches!(self.then, Then::Work | Then::Reach);
        wanted.then(|| openai::prepare(settings)).transpose()
    }

    /// What the skills read: the register of models, and the files that it names now. One that is added later is out of reach
    /// until the next worker.
    fn show_models(&mut self) {
        let Some(folder) = &self.models else { return };
        let models = Models::at(folder).list().unwrap_or_default();
        let files = models
            .iter()
            .flat_map(|model| model.files.iter().map(|file| model.dir.join(&file.name)));
        self.sandbox.read.extend(files);
        self.sandbox.read.push(folder.clone());
    }
}

fn say_report(report: &SandboxReport) -> Result<(), LaborError> {
    let line = serde_json::to_string(report).map_err(std::io::Error::from)?;
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// Reads frames in a thread of its own and hands them on, until nobody takes one. The process ends with its stdin.
fn hear_frames(hand_on: impl Fn(ToWorker) -> bool + Send + 'static) -> Result<(), LaborError> {
    let reader = std::thread::Builder::new().name("frames".to_owned());
    reader.spawn(move || {
        let mut stdin = std::io::stdin().lock();
        loop {
            match frames::read(&mut stdin) {
                Ok(Some(message)) => {
                    if !hand_on(message) {
                        return;
                    }
                }
                // The node is gone: nothing that is still being computed has a reader.
                Ok(None) => std::process::exit(0),
                Err(error) => {
                    eprintln!("{error}");
                    std::process::exit(1);
                }
            }
        }
    })?;
    Ok(())
}

/// One thread reads, this one works: it sees a stop between any two units.
fn run(threads: u32, shelf: Shelf, stdout: impl Write) -> Result<(), LaborError> {
    let (sender, inbox) = channel();
    hear_frames(move |message| sender.send(message).is_ok())?;
    Worker {
        inbox,
        stdout,
        pools: CorePools::new(threads),
        shelf,
        own: VecDeque::new(),
        foreign: VecDeque::new(),
    }
    .work()
}

/// A job in hand.
struct Job {
    id: u64,
    runner: Box<dyn UnitRunner>,
    key: JobKey,
    /// The units to compute, in order; the first `done.len()` are finished.
    order: Vec<u32>,
    done: Vec<Vec<u8>>,
    resumed_from: u32,
    checkpoint_every_units: u32,
    answers: Vec<Answer>,
    last_progress: Instant,
}

/// What became of a unit.
enum Turn {
    Done(Vec<u8>),
    Wishes(Wish),
}

impl Job {
    fn units_done(&self) -> u32 {
        self.done.len() as u32
    }

    fn executed_units(&self) -> u32 {
        self.units_done() - self.resumed_from
    }

    fn checkpoint(&self) -> Bytes {
        Bytes(checkpoint::encode(
            &self.key,
            self.order.len() as u32,
            &self.done,
        ))
    }
}

/// A panic in a tensor library fails the one job, by name, instead of every job in the process; its runner is dropped.
fn run_contained(
    runner: &mut dyn UnitRunner,
    unit: u32,
    answers: &[Answer],
) -> Result<Turn, SkillError> {
    let run = std::panic::AssertUnwindSafe(|| match runner.wish(unit, answers) {
        Some(wish) => Ok(Turn::Wishes(wish)),
        None => runner.run(unit).map(Turn::Done),
    });
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or(panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(SkillError {
            code: "compute_failed",
            message: format!("unit {unit} panicked: {text}"),
        })
    })
}

struct Worker<W> {
    inbox: Receiver<ToWorker>,
    stdout: W,
    pools: CorePools,
    /// The models, the one used last loaded.
    shelf: Shelf,
    /// The owner's jobs, worked before any foreign one.
    own: VecDeque<Job>,
    foreign: VecDeque<Job>,
}

impl<W: Write> Worker<W> {
    fn work(mut self) -> Result<(), LaborError> {
        loop {
            let idle = self.own.is_empty() && self.foreign.is_empty();
            let message = if idle {
                self.inbox.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.inbox.try_recv()
            };
            match message {
                Ok(message) => self.hear(message)?,
                Err(TryRecvError::Empty) => self.work_one_unit()?,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }

    fn say(&mut self, message: &ToNode) -> Result<(), LaborError> {
        self.stdout.write_all(&frames::encode(message)?)?;
        Ok(self.stdout.flush()?)
    }

    fn hear(&mut self, message: ToWorker) -> Result<(), LaborError> {
        match message {
            ToWorker::Describe {} => {
                let ready = |skill: &&&dyn Skill| skill.is_ready(self.shelf.models());
                let skills = skills::registry().iter().filter(ready);
                let skills = skills
                    .map(|skill| WorkerSkill {
                        id: skill.id().to_owned(),
                        implementation: skill.info().implementation.to_owned(),
                        ..WorkerSkill::default()
                    })
                    .collect();
                self.say(&ToNode::Described {
                    protocol: PROTOCOL_VERSION,
                    profile: numeric_profile(),
                    skills,
                })
            }
            ToWorker::SoftStop {
                job,
                deadline_ms: _,
            } => self.stop(job),
            start @ ToWorker::Start { .. } => self.start(start),
        }
    }

    fn start(&mut self, message: ToWorker) -> Result<(), LaborError> {
        let ToWorker::Start {
            job: id,
            skill,
            input,
            units,
            threads,
            foreign,
            checkpoint,
            checkpoint_every_units,
            answers,
        } = message
        else {
            return Ok(());
        };
        let mut job = match self.prepare(id, &skill, &input, units, threads, checkpoint_every_units)
        {
            Ok(job) => job,
            Err(error) => {
                let code = error.code.to_owned();
                return self.say(&ToNode::Failed {
                    job: id,
                    code,
                    message: error.message,
                });
            }
        };
        job.answers = answers;
        if let Some(bytes) = checkpoint {
            match checkpoint::decode(&job.key, job.order.len() as u32, &bytes.0) {
                Ok(done) => job.done = done,
                Err(error) => {
                    let (code, message) = (error.code().to_owned(), error.to_string());
                    self.say(&ToNode::CheckpointRefused {
                        job: id,
                        code,
                        message,
                    })?;
                }
            }
            job.resumed_from = job.units_done();
        }
        job.runner
            .announce(job.order.get(job.done.len()..).unwrap_or_default());
        if job.done.len() == job.order.len() {
            return self.finish(job);
        }
        if foreign {
            self.foreign.push_back(job)
        } else {
            self.own.push_back(job)
        }
        Ok(())
    }

    fn prepare(
        &self,
        id: u64,
        skill: &str,
        input: &serde_json::Value,
        units: Units,
        threads: u32,
        checkpoint_every_units: u32,
    ) -> Result<Job, SkillError> {
        let skill = skills::find(skill)?;
        let plan = skill.plan(input)?;
        let order: Vec<u32> = match units {
            Units::All => (0..plan.units).collect(),
            Units::Only(list) => list,
        };
        if let Some(unit) = order.iter().find(|unit| **unit >= plan.units) {
            return Err(SkillError::units(format!(
                "unit {unit} of a job of {} units",
                plan.units
            )));
        }
        Ok(Job {
            id,
            runner: skill.runner(&plan.canonical_input, self.pools.take(threads), &self.shelf)?,
            key: JobKey::new(
                skill.id(),
                skill.info().implementation,
                &plan.canonical_input,
                &order,
            ),
            order,
            done: Vec::new(),
            resumed_from: 0,
            checkpoint_every_units,
            answers: Vec::new(),
            last_progress: Instant::now(),
        })
    }

    /// One unit of the next job in turn: the owner's first, then foreign ones.
    fn work_one_unit(&mut self) -> Result<(), LaborError> {
        let foreign = self.own.is_empty();
        let next = if foreign {
            self.foreign.pop_front()
        } else {
            self.own.pop_front()
        };
        let Some(mut job) = next else { return Ok(()) };
        let Some(unit) = job.order.get(job.done.len()).copied() else {
            return self.finish(job);
        };
        match run_contained(job.runner.as_mut(), unit, &job.answers) {
            Ok(Turn::Done(bytes)) => job.done.push(bytes),
            Ok(Turn::Wishes(wish)) => {
                return self.say(&ToNode::Delegate {
                    job: job.id,
                    call: job.answers.len() as u32 + 1,
                    skill: wish.skill,
                    input: wish.input,
                    peer: wish.peer,
                    state: job.checkpoint(),
                    units_done: job.units_done(),
                    executed_units: job.executed_units(),
                });
            }
            Err(error) => {
                let code = error.code.to_owned();
                return self.say(&ToNode::Failed {
                    job: job.id,
                    code,
                    message: error.message,
                });
            }
        }
        if job.done.len() == job.order.len() {
            return self.finish(job);
        }
        self.report(&mut job)?;
        if foreign {
            self.foreign.push_back(job)
        } else {
            self.own.push_back(job)
        }
        Ok(())
    }

    fn report(&mut self, job: &mut Job) -> Result<(), LaborError> {
        let (id, units_done) = (job.id, job.units_done());
        let every = job.checkpoint_every_units;
        if every > 0 && job.executed_units().is_multiple_of(every) {
            self.say(&ToNode::Checkpoint {
                job: id,
                units_done,
                bytes: job.checkpoint(),
            })?;
        }
        if job.last_progress.elapsed() >= PROGRESS_INTERVAL {
            job.last_progress = Instant::now();
            self.say(&ToNode::Progress {
                job: id,
                units_done,
                units_total: job.order.len() as u32,
            })?;
        }
        Ok(())
    }

    fn finish(&mut self, job: Job) -> Result<(), LaborError> {
        let (executed_units, resumed_from) = (job.executed_units(), job.resumed_from);
        let units = job.done.into_iter().map(Bytes).collect();
        self.say(&ToNode::Done {
            job: job.id,
            units,
            executed_units,
            resumed_from,
        })
    }

    fn stop(&mut self, id: u64) -> Result<(), LaborError> {
        let taken = [&mut self.own, &mut self.foreign]
            .into_iter()
            .find_map(|jobs| {
                let place = jobs.iter().position(|job| job.id == id)?;
                jobs.remove(place)
            });
        // A job that has just ended has said so already.
        let Some(job) = taken else { return Ok(()) };
        let (units_done, executed_units) = (job.units_done(), job.executed_units());
        self.say(&ToNode::Stopped {
            job: id,
            checkpoint: job.checkpoint(),
            units_done,
            executed_units,
        })
    }
}

#[cfg(test)]
mod tests;
