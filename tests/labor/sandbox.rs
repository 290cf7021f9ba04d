//! The sandbox keeps what its level says: the real worker tries what a taken-over one would, next to a real node with a real home.
//! A layer that this system lacks is named loudly, and what the others promise still has to hold.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Bench, input, is_alive, job, legion, long_input, os};
use crate::support::world::{Node, Pair, Relay, job as task, option, until};

/// Nobody listens there: these nodes need no relay.
const NOWHERE: &str = "ws://127.0.0.1:9";

/// A worker that enters its sandbox with `args` in `folder`, and then makes the system calls that it is told.
struct Probe {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Probe {
    fn start(folder: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(legion())
            .arg("worker")
            .args(args)
            .args(["--then", "probe"])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// The result, or the error number as a negative one.
    fn make(&mut self, attempt: &Attempt, thread: bool) -> i64 {
        let line = json!({"call": attempt.call, "args": attempt.args, "thread": thread});
        writeln!(self.stdin, "{line}").unwrap();
        let mut said = String::new();
        self.stdout.read_line(&mut said).unwrap();
        let said: Value = serde_json::from_str(&said)
            .unwrap_or_else(|_| panic!("the probe died of {}", attempt.what));
        match said["result"].as_i64().unwrap() {
            -1 => -said["errno"].as_i64().unwrap(),
            result => result,
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One system call, and the layer that has to refuse it.
struct Attempt {
    what: &'static str,
    layer: &'static str,
    call: i64,
    args: Vec<Value>,
}

fn attempt<const N: usize>(
    layer: &'static str,
    what: &'static str,
    call: i64,
    args: [Value; N],
) -> Attempt {
    let args = args.to_vec();
    Attempt {
        what,
        layer,
        call,
        args,
    }
}

fn open(what: &'static str, path: &Path, flags: i32) -> Attempt {
    let (here, mode) = (libc::AT_FDCWD, 0o600);
    let args = [json!(here), json!(path), json!(flags), json!(mode)];
    attempt("landlock", what, libc::SYS_openat, args)
}

/// A node with a home, up, and a folder in it as a worker has one.
struct Target {
    dir: tempfile::TempDir,
    node: Node,
    folder: PathBuf,
}

impl Target {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::init(dir.path(), "node", &[NOWHERE]);
        node.up();
        let folder = node.home.join("scratch/foreign/run-probe");
        std::fs::create_dir_all(&folder).unwrap();
        Self { dir, node, folder }
    }

    fn keys(&self) -> PathBuf {
        let files = std::fs::read_dir(self.node.home.join("keys")).unwrap();
        let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
            .into_iter()
            .find(|path| path.is_file())
            .expect("no key file in the home")
    }

    fn store(&self) -> PathBuf {
        let found = std::fs::read_dir(&self.node.home).unwrap();
        let mut found = found.map(|entry| entry.unwrap().path());
        found
            .find(|path| path.extension().is_some_and(|ext| ext == "redb"))
            .expect("no store in the home")
    }

    fn on_files(&self) -> Vec<Attempt> {
        let (keys, home, here) = (self.keys(), &self.node.home, libc::AT_FDCWD);
        let proc = |name: &str| PathBuf::from(format!("/proc/{}/{name}", self.node.pid()));
        let (read, write) = (libc::O_RDONLY, libc::O_RDWR);
        let create = libc::O_RDWR | libc::O_CREAT;
        let pair = [json!(here), json!(keys), json!(here), json!("mine")];
        let taken = [
            json!(here),
            json!(keys),
            json!(here),
            json!("mine"),
            json!(0),
        ];
        vec![
            open("read the key file", &keys, read),
            open("read the key file by a detour", Path::new("link"), read),
            open("empty the key file", &keys, libc::O_WRONLY | libc::O_TRUNC),
            open("read the store", &self.store(), read),
            open("write to the store", &self.store(), write),
            open("read the settings", &home.join("config/legion.toml"), read),
            open("list the home", home, read | libc::O_DIRECTORY),
            open("write into the home", &home.join("mine"), create),
            open("write beside its folder", Path::new("../mine"), create),
            open(
                "write beside the home",
                &self.dir.path().join("mine"),
                create,
            ),
            open("read the machine's users", Path::new("/etc/passwd"), read),
            open("read the node's memory", &proc("mem"), read),
            open("read the node's environment", &proc("environ"), read),
            open(
                "reach out through /proc",
                &Path::new("/proc/self").join("root").join("etc/passwd"),
                read,
            ),
            attempt(
                "landlock",
                "move the key file",
                libc::SYS_renameat2,
                taken.clone(),
            ),
            attempt(
                "landlock",
                "take a second name of it",
                libc::SYS_linkat,
                taken,
            ),
            attempt(
                "landlock",
                "delete it",
                libc::SYS_unlinkat,
                [pair[0].clone(), pair[1].clone(), json!(0)],
            ),
            attempt(
                "landlock_truncate",
                "cut it",
                libc::SYS_truncate,
                [json!(keys), json!(0)],
            ),
        ]
    }

    fn on_the_rest(&self) -> Vec<Attempt> {
        let (node, keys) = (json!(self.node.pid()), json!(self.keys()));
        let (stream, none) = (json!(libc::SOCK_STREAM), json!(0));
        let socket = |what, family: i32| {
            let args = [json!(family), stream.clone(), none.clone()];
            attempt("seccomp", what, libc::SYS_socket, args)
        };
        let other = |what, call, args: [Value; 4]| attempt("seccomp", what, call, args);
        let here = json!(libc::AT_FDCWD);
        let no = || json!(0);
        vec![
            socket("have an internet socket", libc::AF_INET),
            socket("have an IPv6 socket", libc::AF_INET6),
            socket("have a local socket, as for the node's own", libc::AF_UNIX),
            socket("have a netlink socket", libc::AF_NETLINK),
            other(
                "have a pair of sockets",
                libc::SYS_socketpair,
                [json!(1), json!(2), no(), no()],
            ),
            other(
                "have a ring",
                libc::SYS_io_uring_setup,
                [json!(8), no(), no(), no()],
            ),
            other(
                "signal the node",
                libc::SYS_kill,
                [node.clone(), no(), no(), no()],
            ),
            other(
                "signal its thread",
                libc::SYS_tgkill,
                [node.clone(), node.clone(), no(), no()],
            ),
            other(
                "trace the node",
                libc::SYS_ptrace,
                [json!(16), node.clone(), no(), no()],
            ),
            other(
                "read its memory",
                libc::SYS_process_vm_readv,
                [node.clone(), no(), no(), no()],
            ),
            other(
                "hold the node",
                libc::SYS_pidfd_open,
                [node.clone(), no(), no(), no()],
            ),
            other(
                "limit the node",
                libc::SYS_prlimit64,
                [node.clone(), json!(7), no(), no()],
            ),
            other(
                "outlive the node",
                libc::SYS_prctl,
                [json!(1), no(), no(), no()],
            ),
            other(
                "leave its group",
                libc::SYS_setpgid,
                [no(), node, no(), no()],
            ),
            other(
                "have a child",
                libc::SYS_clone,
                [json!(libc::SIGCHLD), no(), no(), no()],
            ),
            other(
                "run a program",
                libc::SYS_execve,
                [json!("/bin/true"), no(), no(), no()],
            ),
            other(
                "open the key file to all",
                libc::SYS_fchmodat,
                [here, keys, json!(0o777), no()],
            ),
            other(
                "have its own world",
                libc::SYS_unshare,
                [json!(libc::CLONE_NEWUSER), no(), no(), no()],
            ),
            other(
                "mount",
                libc::SYS_mount,
                [json!("x"), json!("."), json!("tmpfs"), no()],
            ),
        ]
    }
}

fn report(folder: &Path, args: &[&str]) -> Value {
    let output = Command::new(legion())
        .arg("worker")
        .args(args)
        .args(["--then", "report"])
        .current_dir(folder)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

fn is_missing(report: &Value, layer: &str) -> bool {
    let missing = report["missing"].as_array().unwrap();
    missing.iter().any(|name| name == layer)
}

/// Makes every attempt that a layer in force has to refuse, in the first thread and in a later one.
fn hold(target: &Target, args: &[&str]) -> Value {
    let report = report(&target.folder, args);
    if report["level"] != "full" {
        println!("THE SANDBOX HERE IS NOT FULL: {report} with {args:?}");
    }
    let before = std::fs::read(target.keys()).unwrap();
    let link = target.folder.join("link");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(target.keys(), link).unwrap();
    let mut probe = Probe::start(&target.folder, args);
    let mut made = 0;
    for attempt in &[target.on_files(), target.on_the_rest()]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
    {
        let whole = attempt.layer.split('_').next().unwrap();
        if is_missing(&report, whole) || is_missing(&report, attempt.layer) {
            continue;
        }
        made += 1;
        for thread in [false, true] {
            let result = probe.make(attempt, thread);
            // A file in another place is refused as "another device" when it would change its rules.
            let refused = [libc::EPERM, libc::EACCES, libc::EXDEV].contains(&(-result as i32));
            assert!(refused, "it may {} ({result}) with {report}", attempt.what);
        }
    }
    assert!(made > 0 || report["level"] == "none");
    assert_eq!(std::fs::read(target.keys()).unwrap(), before);
    report
}

/// The promise: whatever the level, each layer in force refuses all that is its own, and the node says the same level.
#[test]
fn each_layer_refuses_what_is_its_own() {
    let target = Target::start();
    let best = hold(&target, &[]);
    assert_eq!(target.node.ok(&["status"])["sandbox"], best);
    for lacking in ["landlock", "seccomp"] {
        let report = hold(&target, &["--lacks", lacking]);
        let expected = if best["level"] == "full" {
            "partial"
        } else {
            "none"
        };
        assert!(is_missing(&report, lacking));
        assert!(
            report["level"] == expected || report["level"] == "partial",
            "{report}"
        );
    }
    let none = report(&target.folder, &["--lacks", "landlock,seccomp"]);
    assert_eq!(none["level"], "none");
    assert!(
        target.node.ok(&["status"])["npub"].is_string(),
        "the node is well"
    );
}

/// The promise: the test above proves something, for without a sandbox the same attempts succeed.
#[test]
fn without_a_sandbox_the_same_attempts_succeed() {
    let target = Target::start();
    assert_eq!(
        report(&target.folder, &["--sandbox", "off"]),
        json!({"level": "none", "missing": ["switched_off"]})
    );
    let mut probe = Probe::start(&target.folder, &["--sandbox", "off"]);
    let wanted = ["read the key file", "read the store", "list the home"];
    let files = target.on_files();
    for attempt in files.iter().filter(|a| wanted.contains(&a.what)) {
        assert!(probe.make(attempt, false) >= 0, "{}", attempt.what);
    }
    let wanted = [
        "have an internet socket",
        "signal the node",
        "hold the node",
    ];
    let rest = target.on_the_rest();
    for attempt in rest.iter().filter(|a| wanted.contains(&a.what)) {
        assert!(probe.make(attempt, false) >= 0, "{}", attempt.what);
    }
}

/// The promise: the worker keeps what it needs: its folder, threads, itself, and what the node names, each as it was named.
#[test]
fn what_is_needed_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, model) = (dir.path().join("run"), dir.path().join("model"));
    for made in [&folder, &model] {
        std::fs::create_dir(made).unwrap();
    }
    std::fs::write(model.join("weights"), "1").unwrap();
    let (read, create) = (libc::O_RDONLY, libc::O_RDWR | libc::O_CREAT);
    let allow = [
        "--allow-read",
        model.to_str().unwrap(),
        "--allow-read",
        "/nonexistent",
    ];
    let mut probe = Probe::start(&folder, &allow);
    let own = probe.child.id();
    for fine in [
        open("write in its folder", Path::new("mine"), create),
        open("read it again", Path::new("mine"), read),
        open("read its model", &model.join("weights"), read),
        open("list its model", &model, read | libc::O_DIRECTORY),
        open("read about itself", Path::new("/proc/self/status"), read),
        open("throw away", Path::new("/dev/null"), libc::O_WRONLY),
        attempt(
            "",
            "have a folder",
            libc::SYS_mkdirat,
            [json!(libc::AT_FDCWD), json!("deep"), json!(0o700)],
        ),
        attempt("", "signal itself", libc::SYS_kill, [json!(own), json!(0)]),
    ] {
        let thread = fine.call != libc::SYS_mkdirat;
        let result = probe.make(&fine, thread);
        assert!(result >= 0, "it may not {}: {result}", fine.what);
    }
    if !is_missing(&report(&folder, &allow), "landlock") {
        let spoil = open("write to its model", &model.join("weights"), libc::O_WRONLY);
        assert_eq!(probe.make(&spoil, false), -i64::from(libc::EACCES));
    }
    // A program is started only from where the node allows it.
    let run = attempt(
        "",
        "run a program",
        libc::SYS_execve,
        [json!("/bin/true"), json!(0), json!(0)],
    );
    let allow: Vec<&str> = ["/usr", "/bin", "/lib", "/lib64"]
        .iter()
        .flat_map(|path| ["--allow-exec", path])
        .collect();
    let mut probe = Probe::start(&folder, &allow);
    let line = json!({"call": run.call, "args": run.args});
    writeln!(probe.stdin, "{line}").unwrap();
    // The program in its place says nothing of the kind, if it says anything.
    let mut said = String::new();
    probe.stdout.read_line(&mut said).unwrap();
    assert!(!said.contains("result"), "it was refused: {said}");
}

/// The promise: who may connect to one port connects to that one, over TCP, and still reaches no file of the home.
#[test]
fn one_port_is_one_port() {
    let target = Target::start();
    let listen = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (wanted, other) = (listen(), listen());
    let port = |listener: &std::net::TcpListener| listener.local_addr().unwrap().port();
    let allowed = port(&wanted).to_string();
    let args = ["--allow-tcp", allowed.as_str()];
    let report = report(&target.folder, &args);
    assert!(is_missing(&report, "network") && report["level"] != "full");
    let mut probe = Probe::start(&target.folder, &args);
    let socket = |family: i32, kind: i32| {
        let args = [json!(family), json!(kind), json!(0)];
        attempt("", "have a socket", libc::SYS_socket, args)
    };
    let connect = |socket: i64, port: u16| {
        let family = (libc::AF_INET as u16).to_ne_bytes();
        let address = [&family[..], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat();
        let args = [json!(socket), json!(address), json!(16)];
        attempt("", "connect", libc::SYS_connect, args)
    };
    let tcp = socket(libc::AF_INET, libc::SOCK_STREAM);
    let first = probe.make(&tcp, true);
    assert_eq!(probe.make(&connect(first, port(&wanted)), true), 0);
    let second = probe.make(&tcp, false);
    let astray = probe.make(&connect(second, port(&other)), false);
    if is_missing(&report, "landlock") || is_missing(&report, "landlock_net") {
        println!("THE SANDBOX HERE KNOWS NO PORTS: {report}");
    } else {
        assert_eq!(astray, -i64::from(libc::EACCES));
    }
    if !is_missing(&report, "seccomp") {
        for (family, kind) in [
            (libc::AF_INET, libc::SOCK_DGRAM),
            (libc::AF_INET6, libc::SOCK_RAW),
            (libc::AF_UNIX, libc::SOCK_STREAM),
        ] {
            let refused = probe.make(&socket(family, kind), false);
            assert_eq!(refused, -i64::from(libc::EPERM), "{family} {kind}");
        }
    }
    if !is_missing(&report, "landlock") && !is_missing(&report, "landlock_truncate") {
        for attempt in target.on_files() {
            let result = probe.make(&attempt, false);
            assert!(result < 0, "it may {}", attempt.what);
        }
    }
}

/// The promise: a worker does not work with less than its node counts on.
#[test]
fn a_lower_level_than_promised_is_no_work() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(legion())
        .args(["worker", "--sandbox", "full", "--lacks", "seccomp"])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("missing: ") && said.contains("seccomp"),
        "{said}"
    );
}

/// The promise: what works is what was surveyed, in each of its threads; and it computes the same bytes as without.
#[tokio::test]
async fn a_working_worker_is_confined_and_computes_the_same() {
    let mut confined = Bench::real();
    let mut free = Bench::with(|config| config.args = os(&["worker", "--sandbox", "off"]));
    let input = input(700_000);
    confined.handle.start(job(1, &input)).unwrap();
    free.handle.start(job(1, &input)).unwrap();
    let pid = confined.pid().await;
    assert_eq!(confined.done(1).await, free.done(1).await);

    let report = report(confined.scratch.path(), &[]);
    confined.handle.start(job(2, &long_input())).unwrap();
    let running = confined.wait_for(|event| {
        matches!(event, super::WorkerEvent::Progress { job: 2, .. }).then_some(())
    });
    running.await;
    let mut threads = 0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(entry.unwrap().path().join("status")).unwrap();
        for (layer, line) in [
            ("no_new_privs", "NoNewPrivs:\t1"),
            ("seccomp", "Seccomp:\t2"),
            ("capabilities", "CapPrm:\t0000000000000000"),
        ] {
            let holds = status.lines().any(|found| found == line);
            assert!(holds || is_missing(&report, layer), "{layer}: {status}");
        }
        threads += 1;
    }
    assert!(threads >= 2, "the test saw {threads} threads");
    if !is_missing(&report, "rlimits") {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core"));
        let words: Vec<&str> = core.unwrap().split_whitespace().collect();
        assert_eq!(words[4..6], ["0", "0"], "{limits}");
    }
    confined.handle.kill().unwrap();
}

/// The promise: a worker that hears nothing any more is dead one second after `kill -9` to its node, with all layers on.
#[test]
fn a_hung_worker_is_dead_a_second_after_its_node() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "node", &[NOWHERE]);
    node.up();
    let mut args = vec![
        "--peer".to_owned(),
        "self".to_owned(),
        "--detach".to_owned(),
    ];
    args.splice(0..0, task(512, 8));
    node.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let worker = until("a worker", || node.workers().first().copied());
    let group = rustix::process::Pid::from_raw(worker as i32).unwrap();
    rustix::process::kill_process(group, rustix::process::Signal::STOP).unwrap();
    let killed = Instant::now();
    node.kill();
    while is_alive(worker) {
        let late = killed.elapsed() > Duration::from_secs(1);
        assert!(!late, "the worker outlives its node");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The promise: the owner decides how far a worker must be confined before it works for strangers, and is heard.
#[test]
fn strangers_are_refused_below_the_level_that_the_owner_wants() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let mut asker = Node::init(dir.path(), "asker", &[&relay.url]);
    asker.up();
    let host = |name: &str, table: &str, key: &str, value: &str, lacks: &str| {
        let mut host = Node::init(dir.path(), name, &[&relay.url]);
        host.configure("market", "stranger_cap_mc", "1000");
        host.configure(table, key, value);
        host.env("LEGION_SANDBOX_LACKS", lacks);
        host.up();
        host
    };
    let level = "sandbox_at_least";
    let ask = |npub: &str| asker.run(&option(&["--peer", npub, "--deadline", "40"]));
    for (name, table, key, value, lacks, shown, served) in [
        ("off", "labor", "sandbox", "false", "", "none", false),
        (
            "bare",
            "labor",
            "slots",
            "4",
            "landlock,seccomp",
            "none",
            false,
        ),
        (
            "strict",
            "permissions.stranger",
            level,
            "\"full\"",
            "rlimits",
            "partial",
            false,
        ),
        (
            "easy",
            "permissions.stranger",
            level,
            "\"none\"",
            "landlock,seccomp",
            "none",
            true,
        ),
    ] {
        let host = host(name, table, key, value, lacks);
        let status = host.ok(&["status"]);
        // A system that has less than this test takes away shows less.
        let shown_here = status["sandbox"]["level"].as_str().unwrap();
        assert!(
            shown_here == shown || shown_here == "none",
            "{name}: {status}"
        );
        let output = ask(&host.npub);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        if served {
            assert_eq!(
                said["task"]["status"]["state"], "completed",
                "{name}: {said}"
            );
        } else {
            assert_eq!(said["error"]["code"], "sandbox_required", "{name}: {said}");
        }
    }
}

/// The promise: what a worker may read can never be this home; the node says so and does not start.
#[test]
fn the_home_cannot_be_shown_to_a_worker() {
    let dir = tempfile::tempdir().unwrap();
    for (name, shown) in [
        ("above", dir.path().to_owned()),
        ("inside", dir.path().join("inside/keys")),
    ] {
        let mut node = Node::init(dir.path(), name, &[NOWHERE]);
        node.configure("labor", "sandbox_read", &format!("[{}]", json!(shown)));
        node.try_up();
        assert!(node.ended(), "{name}: it runs");
        let said = node.run(&["up"]).stdout;
        let said: Value = serde_json::from_slice(&said).unwrap();
        assert_eq!(said["error"]["code"], "config_invalid", "{said}");
        let message = said["error"]["message"].as_str().unwrap();
        assert!(message.contains("labor.sandbox_read"), "{message}");
    }
}

/// The promise: whom the owner trusts is served whatever the level.
#[test]
fn trusted_peers_need_no_sandbox() {
    let pair = Pair::start(|_, worker| worker.env("LEGION_SANDBOX_LACKS", "landlock,seccomp"));
    let done = pair.asker.ok(&option(&["--peer", &pair.worker.npub]));
    assert_eq!(done["task"]["status"]["state"], "completed");
}
