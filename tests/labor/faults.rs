//! What a bad worker does, done by Python programs; and how clean a worker's world is.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use legiond::labor::frames::{Answer, AnswerError};
use legiond::labor::{Supervisor, SupervisorConfig, WorkerClass, WorkerEvent};
use serde_json::{Value, json};

use super::{Bench, PATIENCE, config, input, is_alive, job, os, until_dead};

/// The documented frames, in another language.
const PRELUDE: &str = r#"
import json, os, struct, sys, time
def read():
    head = sys.stdin.buffer.read(4)
    if len(head) < 4: sys.exit(0)
    return json.loads(sys.stdin.buffer.read(struct.unpack("<I", head)[0]))
def say(message):
    body = json.dumps(message).encode()
    sys.stdout.buffer.write(struct.pack("<I", len(body)) + body)
    sys.stdout.buffer.flush()
def describe(profile="python"):
    assert read() == {"type": "describe"}
    say({"type": "described", "protocol": 1, "profile": profile, "skills": []})
def done(start):
    say({"type": "done", "job": start["job"], "units": ["AAAA"], "executed_units": 1, "resumed_from": 0})
"#;

/// The interpreter itself: a version manager's wrapper would need the environment that a worker does not get.
fn python() -> PathBuf {
    let output = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .expect("python3 is needed");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

fn use_script(config: &mut SupervisorConfig, script: &str) {
    config.program = python();
    config.args = os(&["-c", &format!("{PRELUDE}\n{script}")]);
}

fn fake(script: &str) -> Bench {
    Bench::with(|config| use_script(config, script))
}

/// Start job 1 on a worker that does `script`, and say how it went down.
async fn fall(mut bench: Bench) -> (&'static str, String) {
    bench.handle.start(job(1, &input(10))).unwrap();
    let pid = bench.pid().await;
    let (jobs, code, message) = bench.exited().await;
    assert_eq!(jobs, [1], "{code} {message}");
    assert!(!is_alive(pid), "{code}: the worker lives on");
    assert_eq!(bench.runs_left(), 0);
    bench.handle.shutdown().await;
    (code, message)
}

/// The promise: another language can be a worker with nothing but the page in `frames.rs`.
#[tokio::test]
async fn python_can_be_a_worker() {
    let mut bench = fake("describe()\nwhile True:\n    done(read())");
    bench.handle.start(job(1, &input(10))).unwrap();
    assert_eq!(bench.done(1).await, (vec![vec![0, 0, 0]], 1, 0));
    bench.handle.start(job(2, &input(10))).unwrap();
    assert_eq!(bench.done(2).await.0.len(), 1);
}

/// The promise: a program in another language delegates with the frames of that page, and goes on from its state with the answer.
#[tokio::test]
async fn python_can_delegate() {
    let mut bench = fake(
        r#"
describe()
while True:
    start = read()
    told = start.get("answers", [])
    if told:
        assert start["checkpoint"] == "c3RhdGU=", start
        word = told[0]["result"]["text"] if "result" in told[0] else told[0]["error"]["code"]
        import base64
        say({"type": "done", "job": start["job"], "units": [base64.b64encode(word.encode()).decode()],
             "executed_units": 1, "resumed_from": 0})
    else:
        say({"type": "delegate", "job": start["job"], "call": 1, "skill": "echo", "input": {"text": "abc"},
             "state": "c3RhdGU=", "units_done": 0, "executed_units": 0})
"#,
    );
    bench.handle.start(job(1, &input(10))).unwrap();
    let (state, skill) = bench
        .wait_for(|event| match event {
            WorkerEvent::Delegated {
                job: 1,
                call: 1,
                state,
                wish,
                ..
            } => Some((state.clone(), wish.skill.clone())),
            _ => None,
        })
        .await;
    assert_eq!((state.as_slice(), skill.as_str()), (&b"state"[..], "echo"));
    let error = AnswerError {
        code: "no_provider".into(),
        message: String::new(),
    };
    for (id, result, error, word) in [
        (1, Some(json!({"text": "cba"})), None, "cba"),
        (2, None, Some(error), "no_provider"),
    ] {
        let mut again = job(id, &input(10));
        again.checkpoint = Some(state.clone());
        again.answers = vec![Answer {
            call: 1,
            result,
            error,
        }];
        bench.handle.start(again).unwrap();
        assert_eq!(bench.done(id).await.0, [word.as_bytes()]);
    }
}

/// The promise: everything that is not the protocol is `worker_garbage`.
#[tokio::test]
async fn garbage_is_named() {
    for script in [
        "print('hello world', flush=True); time.sleep(600)",
        "describe(); read(); sys.stdout.buffer.write(bytes(4)); sys.stdout.buffer.flush(); time.sleep(600)",
        "describe(); read(); sys.stdout.buffer.write(struct.pack('<I', 3) + b'{}}'); sys.stdout.buffer.flush(); time.sleep(600)",
        "describe(); read(); say({'type': 'sing'}); time.sleep(600)",
        "describe(); read(); say({'type': 'progress', 'job': 1, 'units_done': 1, 'units_total': 2, 'x': 0}); time.sleep(600)",
        "describe(); read(); say({'type': 'progress', 'job': 2, 'units_done': 1, 'units_total': 2}); time.sleep(600)",
        "describe(); start = read(); start['job'] = 77; done(start); time.sleep(600)",
        "describe(); read(); say({'type': 'delegate', 'job': 1, 'call': 1, 'skill': 'echo', 'input': {}, 'state': '!', 'units_done': 0, 'executed_units': 0}); time.sleep(600)",
        "describe(); read(); say({'type': 'delegate', 'job': 1, 'call': -1, 'skill': 'echo', 'input': {}, 'state': '', 'units_done': 0, 'executed_units': 0}); time.sleep(600)",
        "describe(); read(); say({'type': 'delegate', 'job': 1, 'call': 1, 'skill': 'echo'}); time.sleep(600)",
        "read(); start = read(); done(start); time.sleep(600)",
        "read(); say({'type': 'described', 'protocol': 9, 'profile': '', 'skills': []}); time.sleep(600)",
    ] {
        let (code, message) = fall(fake(script)).await;
        assert_eq!(code, "worker_garbage", "{script}: {message}");
    }
}

/// The promise: an exit is `worker_exited`, with its status and its last words, also in the middle of a frame.
#[tokio::test]
async fn exit_is_named_with_last_words() {
    let (code, message) = fall(fake(
        "describe(); read(); print('out of cheese', file=sys.stderr); sys.exit(7)",
    ))
    .await;
    assert_eq!(code, "worker_exited");
    assert!(
        message.contains("exit status: 7") && message.contains("out of cheese"),
        "{message}"
    );
    let cut = "describe(); read(); sys.stdout.buffer.write(struct.pack('<I', 100) + b'{'); sys.stdout.buffer.flush(); sys.exit(0)";
    assert_eq!(fall(fake(cut)).await.0, "worker_exited");
    // stderr without end is neither kept whole nor a reason to block.
    let noisy = "describe(); read(); sys.stderr.write('x' * 1000000 + 'the end'); sys.stderr.flush(); sys.exit(1)";
    let (code, message) = fall(fake(noisy)).await;
    assert!(
        code == "worker_exited" && message.ends_with("the end") && message.len() < 3000,
        "{code} {}",
        message.len()
    );
}

/// The promise: silence with work, and a stop that is not obeyed, are `worker_hung`.
#[tokio::test]
async fn hang_is_named() {
    let hang = "describe(); read(); time.sleep(600)";
    let bench = Bench::with(|config| {
        use_script(config, hang);
        config.hang_timeout_ms = 300;
    });
    assert_eq!(fall(bench).await.0, "worker_hung");
    let bench = fake(hang);
    bench.handle.start(job(1, &input(10))).unwrap();
    bench.handle.soft_stop(1, 200).unwrap();
    let mut bench = bench;
    let (jobs, code, message) = bench.exited().await;
    assert_eq!((jobs, code), (vec![1], "worker_hung"), "{message}");
}

/// The promise: a program that does not hear the frame gets SIGTERM, in which it may still answer; one that does not hear that
/// either is killed.
#[tokio::test]
async fn a_stop_is_asked_then_told_then_forced() {
    let mut bench = fake(
        r#"
import signal
def leave(*_):
    say({"type": "stopped", "job": 1, "checkpoint": "AAAA", "units_done": 1, "executed_units": 1})
    time.sleep(600)
signal.signal(signal.SIGTERM, leave)
describe(); read(); say({"type": "progress", "job": 1, "units_done": 0, "units_total": 1}); time.sleep(600)
"#,
    );
    bench.handle.start(job(1, &input(10))).unwrap();
    let pid = bench.pid().await;
    bench
        .wait_for(|event| matches!(event, WorkerEvent::Progress { .. }).then_some(()))
        .await;
    bench.handle.soft_stop(1, 1).unwrap();
    let stopped = bench
        .wait_for(|event| match event {
            WorkerEvent::Stopped { checkpoint, .. } => Some(checkpoint.clone()),
            _ => None,
        })
        .await;
    assert_eq!(stopped, [0, 0, 0]);
    let (jobs, code, _) = bench.exited().await;
    assert_eq!((jobs, code), (vec![], "worker_hung"));
    assert!(!is_alive(pid), "it was told to go");

    let deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)
describe(); read(); say({'type': 'progress', 'job': 1, 'units_done': 0, 'units_total': 1}); time.sleep(600)";
    let mut bench = fake(deaf);
    bench.handle.start(job(1, &input(10))).unwrap();
    let pid = bench.pid().await;
    bench
        .wait_for(|event| matches!(event, WorkerEvent::Progress { .. }).then_some(()))
        .await;
    bench.handle.soft_stop(1, 1).unwrap();
    let (jobs, code, message) = bench.exited().await;
    assert_eq!((jobs, code), (vec![1], "worker_hung"), "{message}");
    assert!(!is_alive(pid));
}

/// The promise: memory above the limit is `worker_memory`.
#[tokio::test]
async fn memory_is_named() {
    let bench = Bench::with(|config| {
        use_script(
            config,
            "describe(); read(); hoard = []\nwhile True:\n    hoard.append(bytearray(os.urandom(1 << 20) * 4))",
        );
        config.memory_limit_bytes = 128 << 20;
    });
    assert_eq!(fall(bench).await.0, "worker_memory");
}

/// The promise: a program that cannot be started is `worker_start`, and the supervisor stays.
#[tokio::test]
async fn missing_program_is_named() {
    let mut bench = Bench::with(|config| config.program = "/nonexistent/worker".into());
    for id in [1, 2] {
        bench.handle.start(job(id, &input(10))).unwrap();
        let (jobs, code, message) = bench.exited().await;
        assert_eq!((jobs, code), (vec![id], "worker_start"));
        assert!(message.contains("/nonexistent/worker"), "{message}");
    }
    assert_eq!(bench.runs_left(), 0);
}

/// The promise: the children of a worker go with it.
#[tokio::test]
async fn grandchildren_are_killed_too() {
    let script = "child = os.fork()\nif child == 0:\n    time.sleep(600)\ndescribe(str(child)); read(); say(1)";
    let mut bench = fake(script);
    bench.handle.start(job(1, &input(10))).unwrap();
    let child = bench
        .wait_for(|event| match event {
            WorkerEvent::Described { profile, .. } => Some(profile.parse::<u32>().unwrap()),
            _ => None,
        })
        .await;
    assert_eq!(bench.exited().await.1, "worker_garbage");
    until_dead(child).await;
}

/// The promise: a worker gets no environment, no descriptors, its own group and private directory, and low priority when foreign.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn worker_world_is_clean() {
    let script = r#"
fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
io = os.popen("ionice 2>/dev/null").read().strip()
mode = os.stat(".").st_mode & 0o777
describe(json.dumps({"env": sorted(os.environ), "fds": fds, "cwd": os.getcwd(), "mode": mode, "nice": os.nice(0),
    "leader": os.getpgrp() == os.getpid(), "args": sys.argv[1:], "threads": os.environ["RAYON_NUM_THREADS"], "io": io}))
read()
"#;
    // A descriptor that is open and inheritable must not reach the worker.
    let leak = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let ours = i64::from(rustix::process::getpriority_process(None).unwrap());
    for (class, nice) in [(WorkerClass::Own, ours), (WorkerClass::Foreign, 19)] {
        let mut bench = Bench::with(|config| {
            use_script(config, script);
            config.class = class;
            config.threads = 3;
        });
        bench.handle.warm().unwrap();
        let facts: Value = bench
            .wait_for(|event| match event {
                WorkerEvent::Described { profile, .. } => {
                    Some(serde_json::from_str(profile).unwrap())
                }
                _ => None,
            })
            .await;
        let environment: Vec<&str> = facts["env"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap())
            .collect();
        // Python itself may add LC_CTYPE.
        let allowed = ["LC_ALL", "LC_CTYPE", "RAYON_NUM_THREADS", "TMPDIR"];
        assert!(
            environment.iter().all(|name| allowed.contains(name)),
            "{environment:?}"
        );
        // The fourth is the listing of the folder itself.
        assert_eq!(facts["fds"], serde_json::json!([0, 1, 2, 3]), "{facts}");
        assert_eq!(
            (
                &facts["leader"],
                facts["nice"].as_i64(),
                facts["mode"].as_u64()
            ),
            (&Value::Bool(true), Some(nice), Some(0o700))
        );
        assert_eq!(
            (&facts["args"], &facts["threads"]),
            (
                &serde_json::json!(["--threads", "3"]),
                &serde_json::json!("3")
            )
        );
        let cwd = PathBuf::from(facts["cwd"].as_str().unwrap());
        assert!(cwd.starts_with(bench.scratch.path().canonicalize().unwrap()));
        if class == WorkerClass::Foreign && !facts["io"].as_str().unwrap().is_empty() {
            assert!(facts["io"].as_str().unwrap().starts_with("idle"), "{facts}");
        }
        bench.handle.shutdown().await;
        assert!(!cwd.exists());
    }
}

/// The promise: what a killed node left in its scratch folder is gone after the next start, and nothing else is.
#[tokio::test]
async fn scratch_is_swept() {
    let scratch = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(scratch.path().join("run-1-1/deep")).unwrap();
    std::fs::write(scratch.path().join("notes"), "kept").unwrap();
    let (handle, _events) = Supervisor::start(config(scratch.path())).unwrap();
    assert!(!scratch.path().join("run-1-1").exists() && scratch.path().join("notes").exists());
    handle.shutdown().await;
    assert_eq!(handle.warm().unwrap_err().code(), "supervisor_gone");
}

/// The promise: when nobody holds the supervisor any more, its worker goes.
#[tokio::test]
async fn dropped_handles_end_the_worker() {
    for drop_events_first in [true, false] {
        let mut bench = fake("describe()\nwhile True:\n    time.sleep(600)");
        bench.handle.warm().unwrap();
        let pid = bench.pid().await;
        assert!(is_alive(pid));
        let Bench {
            handle,
            events,
            scratch: _scratch,
        } = bench;
        if drop_events_first {
            drop(events);
            drop(handle);
        } else {
            drop(handle);
            drop(events);
        }
        until_dead(pid).await;
    }
}

/// Not a test: the node that [`node_killed_takes_its_worker_along`] kills.
#[test]
#[ignore = "started by another test"]
fn a_node_to_be_killed() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        // It never reads stdin, so that only the parent-death signal can end it.
        let mut bench = fake("time.sleep(600)");
        bench.handle.warm().unwrap();
        println!("\nworker {}", bench.pid().await);
        tokio::time::sleep(Duration::from_secs(600)).await;
    });
}

/// The promise: `kill -9` of the node ends its worker, even one that listens to nothing.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn node_killed_takes_its_worker_along() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let mut node = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "labor::faults::a_node_to_be_killed",
            "--ignored",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(node.stdout.take().unwrap()).lines();
    let find = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some(pid) = line.strip_prefix("worker ") {
                return pid.trim().parse::<u32>().unwrap();
            }
        }
        panic!("the node said nothing");
    };
    let worker = tokio::time::timeout(PATIENCE, find).await.unwrap();
    assert!(is_alive(worker));
    node.kill().await.unwrap();
    until_dead(worker).await;
}
