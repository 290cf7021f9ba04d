//! The worker process: it works, resumes, stops, and whatever it does wrong is named, cleaned up and survived. The real binary
//! does the work; what goes wrong is done by small Python programs that speak the documented frames.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod embedding;
mod faults;
#[cfg(all(feature = "relay", target_os = "linux"))]
mod sandbox;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use legiond::labor::frames::Units;
use legiond::labor::skills;
use legiond::labor::{
    StartJob, Supervisor, SupervisorConfig, SupervisorHandle, WorkerClass, WorkerEvent,
};
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

/// So long that only a deadlock reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    handle: SupervisorHandle,
    events: Receiver<WorkerEvent>,
    scratch: tempfile::TempDir,
}

fn legion() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_legion"))
}

fn config(scratch: &Path) -> SupervisorConfig {
    SupervisorConfig {
        program: legion(),
        args: vec!["worker".into()],
        class: WorkerClass::Own,
        threads: 2,
        memory_limit_bytes: 1 << 30,
        hang_timeout_ms: 30_000,
        scratch_dir: scratch.to_owned(),
    }
}

impl Bench {
    fn real() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut SupervisorConfig)) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let mut config = config(scratch.path());
        change(&mut config);
        let (handle, events) = Supervisor::start(config).unwrap();
        Self {
            handle,
            events,
            scratch,
        }
    }

    async fn next(&mut self) -> WorkerEvent {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event
            .expect("the supervisor is silent")
            .expect("the supervisor is gone")
    }

    /// The next event that `wanted` takes; others are dropped.
    async fn wait_for<T>(&mut self, wanted: impl Fn(&WorkerEvent) -> Option<T>) -> T {
        loop {
            let event = self.next().await;
            if let Some(found) = wanted(&event) {
                return found;
            }
            assert!(
                !matches!(event, WorkerEvent::Exited { .. }),
                "unexpected end: {event:?}"
            );
        }
    }

    /// Units, executed units, resumed from.
    async fn done(&mut self, id: u64) -> (Vec<Vec<u8>>, u32, u32) {
        self.wait_for(|event| match event {
            WorkerEvent::Done {
                job,
                units,
                executed_units,
                resumed_from,
            } if *job == id => Some((units.clone(), *executed_units, *resumed_from)),
            WorkerEvent::Failed { job, message, .. } if *job == id => panic!("{message}"),
            _ => None,
        })
        .await
    }

    async fn exited(&mut self) -> (Vec<u64>, &'static str, String) {
        loop {
            if let WorkerEvent::Exited {
                jobs,
                code,
                message,
            } = self.next().await
            {
                return (jobs, code, message);
            }
        }
    }

    async fn pid(&mut self) -> u32 {
        self.wait_for(|event| {
            if let WorkerEvent::Started { pid } = event {
                Some(*pid)
            } else {
                None
            }
        })
        .await
    }

    fn runs_left(&self) -> usize {
        std::fs::read_dir(self.scratch.path()).unwrap().count()
    }
}

fn input(paths: u64) -> Value {
    json!({"kind": "european", "side": "call", "spot": 100, "strike": 100, "rate": 0.02, "volatility": 0.3, "years": 1,
        "paths": paths, "seed": "11"})
}

fn job(id: u64, input: &Value) -> StartJob {
    StartJob {
        answers: Vec::new(),
        job: id,
        skill: "simulation".to_owned(),
        input: input.clone(),
        units: Units::All,
        threads: 0,
        foreign: false,
        checkpoint: None,
        checkpoint_every_units: 0,
    }
}

/// Large enough to be still at work when a test acts on it: 512 units of some 20 ms.
fn long_input() -> Value {
    input(1 << 27)
}

fn is_alive(pid: u32) -> bool {
    // A zombie is dead: only its parent has not looked yet.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty()
        && !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .trim_start()
            .starts_with('Z')
}

async fn until_dead(pid: u32) {
    let gone = async {
        while is_alive(pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("the process lives on");
}

/// The promise: the worker says who it is, then gives the same result as any other worker with any number of threads.
#[tokio::test]
async fn real_worker_does_a_job() {
    let (mut two, mut one) = (Bench::real(), Bench::with(|config| config.threads = 1));
    let input = input(300_000);
    two.handle.start(job(1, &input)).unwrap();
    let (profile, known) = two
        .wait_for(|event| match event {
            WorkerEvent::Described { profile, skills } => Some((profile.clone(), skills.clone())),
            _ => None,
        })
        .await;
    assert!(profile.starts_with("flex/0.22.1/"), "{profile}");
    assert_eq!(known[0].id, "simulation");
    let (units, executed, resumed) = two.done(1).await;
    let planned = skills::plan("simulation", &input).unwrap().units;
    assert_eq!(
        (units.len() as u32, executed, resumed),
        (planned, planned, 0)
    );
    let result = skills::aggregate("simulation", &input, &units).unwrap();
    let (price, error) = (
        result["price"].as_f64().unwrap(),
        result["std_error"].as_f64().unwrap(),
    );
    assert!((price - 12.821_581).abs() < 4.0 * error, "{result}");
    one.handle
        .start(StartJob {
            threads: 1,
            ..job(9, &input)
        })
        .unwrap();
    assert_eq!(one.done(9).await.0, units);
    // A verifier's sample, out of order and twice the same unit.
    two.handle
        .start(StartJob {
            units: Units::Only(vec![7, 2, 7]),
            ..job(2, &input)
        })
        .unwrap();
    let (sample, executed, _) = two.done(2).await;
    assert_eq!(
        (sample, executed),
        (
            vec![units[7].clone(), units[2].clone(), units[7].clone()],
            3
        )
    );
    two.handle.shutdown().await;
    assert_eq!(two.runs_left(), 0);
}

/// The promise: with glibc's vector and FMA code paths switched off the results agree within the stated tolerance.
#[cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
#[tokio::test]
async fn simd_forced_down_agrees() {
    let input = json!({"kind": "asian", "side": "put", "spot": 100, "strike": 100, "rate": 0.02, "volatility": 0.3, "years": 1,
        "paths": 20_000, "seed": "11"});
    let mut normal = Bench::real();
    let mut forced = Bench::with(|config| {
        config.program = "/usr/bin/env".into();
        let tunables = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-FMA,-FMA4,-SSE4_1";
        config.args = vec![tunables.into(), legion().into(), "worker".into()];
    });
    normal.handle.start(job(1, &input)).unwrap();
    forced.handle.start(job(1, &input)).unwrap();
    let (normal, forced) = (normal.done(1).await.0, forced.done(1).await.0);
    assert!(normal.len() > 1 && normal.len() == forced.len());
    for (a, b) in normal.iter().zip(&forced) {
        assert!(
            skills::compare("simulation", "avx512", "sse2", a, b),
            "{a:?} {b:?}"
        );
    }
}

/// The promise: after a kill, only what no checkpoint holds is computed again, and the bytes are the same.
#[tokio::test]
async fn killed_worker_resumes_from_its_checkpoint() {
    let input = input(3_000_000);
    let mut bench = Bench::real();
    bench
        .handle
        .start(StartJob {
            checkpoint_every_units: 3,
            ..job(1, &input)
        })
        .unwrap();
    let pid = bench.pid().await;
    let (kept, bytes) = bench
        .wait_for(|event| match event {
            WorkerEvent::Checkpoint {
                job: 1,
                units_done,
                bytes,
            } if *units_done >= 6 => Some((*units_done, bytes.clone())),
            _ => None,
        })
        .await;
    bench.handle.kill().unwrap();
    assert_eq!((kept % 3, bench.exited().await.1), (0, "worker_killed"));
    assert!(!is_alive(pid));
    let again = StartJob {
        checkpoint: Some(bytes),
        checkpoint_every_units: 3,
        ..job(2, &input)
    };
    bench.handle.start(again).unwrap();
    let (units, executed, resumed) = bench.done(2).await;
    assert_eq!((resumed, executed), (kept, units.len() as u32 - kept));
    bench.handle.start(job(3, &input)).unwrap();
    assert_eq!(bench.done(3).await, (units.clone(), units.len() as u32, 0));
}

/// The promise: a soft stop answers with a checkpoint from which the job goes on; other jobs of the worker are not touched.
#[tokio::test]
async fn soft_stop_and_resume() {
    let (long, short) = (long_input(), input(600_000));
    let mut bench = Bench::real();
    bench
        .handle
        .start(StartJob {
            checkpoint_every_units: 1,
            ..job(1, &long)
        })
        .unwrap();
    bench
        .wait_for(|event| matches!(event, WorkerEvent::Checkpoint { job: 1, .. }).then_some(()))
        .await;
    bench.handle.start(job(2, &short)).unwrap();
    bench.handle.soft_stop(1, 30_000).unwrap();
    let (checkpoint, units_done, executed) = bench
        .wait_for(|event| match event {
            WorkerEvent::Stopped {
                job: 1,
                checkpoint,
                units_done,
                executed_units,
            } => Some((checkpoint.clone(), *units_done, *executed_units)),
            _ => None,
        })
        .await;
    assert!(units_done >= 1 && units_done == executed);
    bench.done(2).await;
    let again = StartJob {
        checkpoint: Some(checkpoint),
        checkpoint_every_units: 1,
        ..job(3, &long)
    };
    bench.handle.start(again).unwrap();
    let first = bench
        .wait_for(|event| match event {
            WorkerEvent::Checkpoint {
                job: 3, units_done, ..
            } => Some(*units_done),
            _ => None,
        })
        .await;
    assert_eq!(first, units_done + 1);
    bench.handle.shutdown().await;
}

/// The promise: a damaged checkpoint, or one of another input, is refused by code and the job starts from nothing.
#[tokio::test]
async fn bad_checkpoints_are_refused() {
    let mine = input(200_000);
    let mut bench = Bench::real();
    bench
        .handle
        .start(StartJob {
            checkpoint_every_units: 2,
            ..job(1, &mine)
        })
        .unwrap();
    let good = bench
        .wait_for(|event| match event {
            WorkerEvent::Checkpoint { bytes, .. } => Some(bytes.clone()),
            _ => None,
        })
        .await;
    let (units, ..) = bench.done(1).await;
    let mut damaged = good.clone();
    damaged[60] ^= 1;
    let other = input(200_001);
    for (id, bytes, input, expected) in [
        (2, damaged, &mine, Some(&units)),
        (3, good, &other, None),
        (4, vec![], &mine, Some(&units)),
    ] {
        bench
            .handle
            .start(StartJob {
                checkpoint: Some(bytes),
                ..job(id, input)
            })
            .unwrap();
        let code = bench
            .wait_for(|event| match event {
                WorkerEvent::CheckpointRefused { job, code, .. } if *job == id => {
                    Some(code.clone())
                }
                _ => None,
            })
            .await;
        assert_eq!(code, "checkpoint_invalid");
        let (results, executed, resumed) = bench.done(id).await;
        assert_eq!((executed, resumed), (results.len() as u32, 0));
        assert!(expected.is_none_or(|expected| *expected == results));
    }
}

/// The promise: the owner's job overtakes a foreign one in the same worker, and many small ones all end.
#[tokio::test]
async fn own_jobs_come_first() {
    let mut bench = Bench::real();
    bench
        .handle
        .start(StartJob {
            foreign: true,
            checkpoint_every_units: 1,
            ..job(1, &long_input())
        })
        .unwrap();
    bench
        .wait_for(|event| matches!(event, WorkerEvent::Checkpoint { job: 1, .. }).then_some(()))
        .await;
    bench.handle.start(job(2, &input(2_000_000))).unwrap();
    let ended = |event: &WorkerEvent| {
        if let WorkerEvent::Done { job, .. } = event {
            Some(*job)
        } else {
            None
        }
    };
    assert_eq!(bench.wait_for(ended).await, 2);
    for id in 100..200 {
        bench.handle.start(job(id, &input(1000))).unwrap();
    }
    let mut all = Vec::new();
    for _ in 0..100 {
        all.push(bench.wait_for(ended).await);
    }
    assert_eq!(all, (100..200).collect::<Vec<u64>>());
    bench.handle.soft_stop(1, 30_000).unwrap();
    bench
        .wait_for(|event| matches!(event, WorkerEvent::Stopped { job: 1, .. }).then_some(()))
        .await;
}

/// The promise: a job that cannot be done fails by code, and the worker goes on.
#[tokio::test]
async fn bad_jobs_fail_alone() {
    let mut bench = Bench::real();
    let good = input(1000);
    let mut unseeded = good.clone();
    unseeded.as_object_mut().unwrap().remove("seed");
    let refused = [
        (job(1, &json!({"paths": -1})), "input_invalid"),
        (job(2, &unseeded), "input_invalid"),
        (
            StartJob {
                skill: "sing".to_owned(),
                ..job(3, &good)
            },
            "skill_unknown",
        ),
        (
            StartJob {
                units: Units::Only(vec![1]),
                ..job(4, &good)
            },
            "units_invalid",
        ),
    ];
    for (start, expected) in refused {
        let id = start.job;
        bench.handle.start(start).unwrap();
        let code = bench
            .wait_for(|event| match event {
                WorkerEvent::Failed { job, code, .. } if *job == id => Some(code.clone()),
                _ => None,
            })
            .await;
        assert_eq!(code, expected);
    }
    bench.handle.start(job(5, &long_input())).unwrap();
    bench.handle.start(job(5, &good)).unwrap();
    let code = bench
        .wait_for(|event| {
            if let WorkerEvent::Failed { job: 5, code, .. } = event {
                Some(code.clone())
            } else {
                None
            }
        })
        .await;
    assert_eq!(code, "job_running");
    bench.handle.start(job(6, &good)).unwrap();
    assert_eq!(bench.done(6).await.0.len(), 1);
}

/// The promise: a worker that somebody kills is named and replaced.
#[tokio::test]
async fn killed_from_outside_is_replaced() {
    let mut bench = Bench::real();
    bench.handle.start(job(1, &long_input())).unwrap();
    bench.handle.start(job(2, &long_input())).unwrap();
    let pid = bench.pid().await;
    bench
        .wait_for(|event| matches!(event, WorkerEvent::Described { .. }).then_some(()))
        .await;
    let killed = std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let (jobs, code, message) = bench.exited().await;
    assert_eq!((jobs, code), (vec![1, 2], "worker_exited"));
    assert!(message.contains("signal: 9"), "{message}");
    bench.handle.start(job(3, &input(1000))).unwrap();
    assert_eq!(bench.done(3).await.0.len(), 1);
}

/// The promise: the worker ends when its stdin ends, refuses wrong arguments, and takes frames for garbage when they are.
#[test]
fn worker_alone() {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let run = |args: &[&str], stdin: &[u8]| {
        let mut child = Command::new(legion())
            .arg("worker")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A worker that refuses its arguments may be gone before it is spoken to.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        let output = child.wait_with_output().unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert_eq!(run(&[], b"").0, 0);
    assert_eq!(run(&["--threads", "0"], b"").0, 2);
    assert_eq!(run(&["--frobnicate"], b"").0, 2);
    let (code, text) = run(&[], b"hello, this is no frame at all");
    assert!(
        code == 1 && text.contains("over the limit"),
        "{code} {text}"
    );
}

fn os(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}
