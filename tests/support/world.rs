//! Real processes for tests: relays and nodes started from the very binary, temporary homes, nothing left behind.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The binary under test.
pub(crate) const LEGION: &str = env!("CARGO_BIN_EXE_legion");

/// How long a test waits for something that must happen; never a measure of speed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `probe` gives something.
pub(crate) fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, probe)
}

/// The same with another patience: where messages are lost by design, they take as long as their repetitions.
pub(crate) fn within<T>(patience: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(began.elapsed() < patience, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A `legion relay` process; killed when dropped.
pub(crate) struct Relay {
    child: Child,
    pub(crate) url: String,
}

impl Relay {
    /// On a free port, in memory.
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1:0", None)
    }

    /// At an address, with its events in a file if one is given.
    pub(crate) fn start_at(listen: &str, data: Option<&Path>) -> Self {
        let data = data.and_then(Path::to_str).into_iter();
        let data = data.flat_map(|data| ["--data", data]);
        Self::run(["--listen", listen].into_iter().chain(data))
    }

    /// On a free port, in memory, with further arguments.
    pub(crate) fn start_with(args: &[&str]) -> Self {
        Self::run(["--listen", "127.0.0.1:0"].iter().chain(args).copied())
    }

    fn run<'a>(args: impl Iterator<Item = &'a str>) -> Self {
        let mut command = Command::new(LEGION);
        command.args(["relay", "--json"]).args(args);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let line = first_line(&mut child);
        let ready: Value = serde_json::from_str(&line).unwrap();
        Self {
            url: ready["url"].as_str().unwrap().to_owned(),
            child,
        }
    }

    /// `127.0.0.1:port`, to start another one in its place.
    pub(crate) fn address(&self) -> String {
        self.url.trim_start_matches("ws://").to_owned()
    }

    /// Process id.
    #[allow(
        dead_code,
        reason = "the bench looks at the relay's share of the machine"
    )]
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the process.
    pub(crate) fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    line
}

/// The first line of a node; what it says after that, which is why it ends, goes to `log`.
fn ready_line(child: &mut Child, mut log: File) -> String {
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut said, &mut log);
    });
    line
}

/// A home with an identity, and the node that runs on it, if it runs.
pub(crate) struct Node {
    pub(crate) home: PathBuf,
    pub(crate) npub: String,
    child: Option<Child>,
    env: Vec<(String, String)>,
}

impl Node {
    /// Makes a home under `dir` that uses these relays. The node is not started.
    pub(crate) fn init(dir: &Path, name: &str, relays: &[&str]) -> Self {
        let home = dir.join(name);
        let words = dir.join(format!("{name}.words"));
        let mut command = Command::new(LEGION);
        command
            .arg("--home")
            .arg(&home)
            .args(["--json", "init", "--no-passphrase"]);
        for relay in relays {
            command.args(["--relay", relay]);
        }
        let output = command.arg("--mnemonic-out").arg(&words).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let id: Value = serde_json::from_slice(&output.stdout).unwrap();
        Self {
            home,
            npub: id["npub"].as_str().unwrap().to_owned(),
            child: None,
            env: Vec::new(),
        }
    }

    /// Adds settings at the end of the home's configuration, for example `[market]\nlease_ttl_ms = 2000`. Tables that the
    /// template has already set are replaced key by key.
    pub(crate) fn configure(&self, table: &str, key: &str, value: &str) {
        let path = self.home.join("config/legion.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<String> = Vec::new();
        let (mut inside, mut done) = (table.is_empty(), false);
        for line in text.lines() {
            if line.starts_with('[') {
                if inside && !done {
                    lines.push(format!("{key} = {value}"));
                    done = true;
                }
                inside = line.trim() == format!("[{table}]");
            }
            let is_key = inside && line.split('=').next().is_some_and(|k| k.trim() == key);
            if is_key && !done {
                lines.push(format!("{key} = {value}"));
                done = true;
            } else {
                lines.push(line.to_owned());
            }
        }
        if !done {
            if !inside {
                lines.push(format!("[{table}]"));
            }
            lines.push(format!("{key} = {value}"));
        }
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    }

    /// Sets an environment variable for the next [`Node::up`].
    pub(crate) fn env(&mut self, name: &str, value: &str) {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Removes it again.
    pub(crate) fn env_remove(&mut self, name: &str) {
        self.env.retain(|(n, _)| n != name);
    }

    /// A copy of this home, as a person makes it: with everything in it. No node runs on it yet.
    pub(crate) fn copy(&self, name: &str) -> Self {
        let home = self.home.with_file_name(name);
        let copied = Command::new("cp")
            .arg("-a")
            .args([&self.home, &home])
            .status();
        assert!(copied.unwrap().success());
        let _ = std::fs::remove_file(home.join("legion.sock"));
        Self {
            home,
            npub: self.npub.clone(),
            child: None,
            env: self.env.clone(),
        }
    }

    /// Starts the node and waits until local commands work.
    pub(crate) fn up(&mut self) -> Value {
        self.up_with(&[])
    }

    /// The same with further arguments.
    pub(crate) fn up_with(&mut self, args: &[&str]) -> Value {
        let line = self.start(args);
        let ready = serde_json::from_str(&line).ok();
        let ready = ready.filter(|line: &Value| line["ready"] == true);
        ready.unwrap_or_else(|| panic!("not ready: {line}; stderr: {}", self.stderr()))
    }

    /// The same for a node that may die on the way.
    pub(crate) fn try_up(&mut self) {
        self.start(&[]);
    }

    fn start(&mut self, args: &[&str]) -> String {
        assert!(self.child.is_none(), "the node runs already");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.home.with_extension("stderr"))
            .unwrap();
        let mut child = Command::new(LEGION)
            .arg("--home")
            .arg(&self.home)
            .args(["--json", "up"])
            .args(args)
            .envs(self.env.iter().cloned())
            .stdout(Stdio::piped())
            .stderr(log.try_clone().unwrap())
            .spawn()
            .unwrap();
        let line = ready_line(&mut child, log);
        if !line.contains("\"ready\":true") {
            child.wait().unwrap();
        } else {
            self.child = Some(child);
        }
        line
    }

    /// What the node has written to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(self.home.with_extension("stderr")).unwrap_or_default()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the exit.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap()
    }

    /// Whether the process has ended by itself; if so it is reaped.
    pub(crate) fn ended(&mut self) -> bool {
        let ended = self
            .child
            .as_mut()
            .is_none_or(|child| child.try_wait().unwrap().is_some());
        if ended {
            self.child = None;
        }
        ended
    }

    /// Stops the process as a suspended machine does, until [`Node::resume`].
    pub(crate) fn suspend(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The worker processes of the running node.
    pub(crate) fn workers(&self) -> Vec<u32> {
        let pid = self.pid();
        processes()
            .into_iter()
            .filter(|(_, parent, args)| *parent == pid && args.contains(" worker"))
            .map(|(child, _, _)| child)
            .collect()
    }

    /// Sets the node's clock this far ahead of the machine's (or behind), from its next look on. The node must have been
    /// started after the first call.
    pub(crate) fn set_clock(&mut self, ahead_s: i64) {
        let file = self.home.with_extension("clock");
        std::fs::write(&file, (ahead_s * 1000).to_string()).unwrap();
        self.env("LEGION_CLOCK_FILE", file.to_str().unwrap());
    }

    /// Whether the process runs, or how it ended; for people.
    fn fate(&self) -> String {
        use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
        let Some(child) = &self.child else {
            return "none".to_owned();
        };
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(Pid::from_child(child)), look) {
            Ok(None) => format!("{} runs", child.id()),
            Ok(Some(ended)) => {
                let (code, signal) = (ended.exit_status(), ended.terminating_signal());
                format!("{} ended, status {code:?}, signal {signal:?}", child.id())
            }
            Err(error) => format!("{}: {error}", child.id()),
        }
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// A command of this home, with `--json`.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(LEGION);
        command
            .arg("--home")
            .arg(&self.home)
            .arg("--json")
            .args(args);
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed and gives its object.
    pub(crate) fn ok(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "{args:?}: {}\n{}\nnode: {}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.stderr()
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs a command that must fail with this exit code and gives its object.
    pub(crate) fn fails(&self, exit: i32, args: &[&str]) -> Value {
        let output = self.run(args);
        assert_eq!(
            output.status.code(),
            Some(exit),
            "{args:?}: {}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// One call over the control socket, without the command line.
    pub(crate) fn call(&self, method: &str, params: Value) -> Value {
        let socket = self.home.join("legion.sock");
        let mut stream = std::os::unix::net::UnixStream::connect(socket)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.fate(), self.stderr()));
        let request =
            serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        writeln!(stream, "{request}").unwrap();
        for line in BufReader::new(stream).lines() {
            let answer: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if answer.get("id").is_some() {
                return answer;
            }
        }
        panic!("the node closed the connection");
    }

    /// Waits until every skill of the owner's is described, or is known not to be; the status then.
    pub(crate) fn probed(&self) -> Value {
        until("the owner's skills to be described", || {
            let status = self.ok(&["status"]);
            let skills = status["own_skills"].as_object().unwrap();
            let probing = skills.values().any(|skill| skill["state"] == "probing");
            (!probing).then_some(status)
        })
    }

    /// The journal: `{seq, at_ms, kind, task, body}` each.
    pub(crate) fn journal(&self) -> Vec<Value> {
        self.call("journal/read", serde_json::json!({}))["result"]["entries"]
            .as_array()
            .unwrap()
            .clone()
    }

    /// How often a kind is journaled for a task.
    pub(crate) fn count(&self, task: &str, kind: &str) -> usize {
        let entries = self.journal();
        entries
            .iter()
            .filter(|e| e["kind"] == kind && e["task"] == task)
            .count()
    }

    /// Journal entries of one kind.
    pub(crate) fn journaled(&self, kind: &str) -> Vec<Value> {
        self.journal()
            .into_iter()
            .filter(|e| e["kind"] == kind)
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

fn processes() -> Vec<(u32, u32, String)> {
    let listed = Command::new("ps")
        .args(["-A", "-o", "pid=,ppid=,args="])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let pid = words.next()?.parse().ok()?;
            let parent = words.next()?.parse().ok()?;
            Some((pid, parent, words.collect::<Vec<_>>().join(" ")))
        })
        .collect()
}

/// Waits until none of these worker processes is left.
pub(crate) fn gone(workers: &[u32]) {
    until("the worker processes to end", || {
        let left = processes()
            .into_iter()
            .any(|(pid, _, args)| workers.contains(&pid) && args.contains(" worker"));
        (!left).then_some(())
    });
}

/// Two nodes that trust each other, on one relay.
pub(crate) struct Pair {
    _dir: tempfile::TempDir,
    pub(crate) relay: Option<Relay>,
    pub(crate) asker: Node,
    pub(crate) worker: Node,
    /// How long each of its waits may take.
    pub(crate) patience: Duration,
}

impl Pair {
    /// Both up, trusting each other. `prepare` may configure the homes first.
    pub(crate) fn start(prepare: impl FnOnce(&mut Node, &mut Node)) -> Self {
        let relay = Relay::start();
        let url = relay.url.clone();
        let mut pair = Self::on(&url, prepare);
        pair.relay = Some(relay);
        pair
    }

    /// The same on a relay that runs already.
    pub(crate) fn on(url: &str, prepare: impl FnOnce(&mut Node, &mut Node)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut asker = Node::init(dir.path(), "asker", &[url]);
        let mut worker = Node::init(dir.path(), "worker", &[url]);
        prepare(&mut asker, &mut worker);
        asker.up();
        worker.up();
        asker.ok(&["peers", "trust", &worker.npub, "--tier", "trusted"]);
        worker.ok(&["peers", "trust", &asker.npub, "--tier", "trusted"]);
        Self {
            _dir: dir,
            relay: None,
            asker,
            worker,
            patience: PATIENCE,
        }
    }

    /// The task that a detached `ask` with this key makes, or has made.
    pub(crate) fn ask(&self, key: &str, job: &[&str]) -> String {
        let mut args = job.to_vec();
        args.extend(["--detach", "--key", key]);
        let asked = self.asker.ok(&args);
        asked["task"]["id"].as_str().unwrap().to_owned()
    }

    /// Waits for the task: completed, accepted once, paid once on both sides; then for rest.
    pub(crate) fn finish(&self, task: &str) -> Value {
        let shown = Shown(self);
        within(self.patience, "the task to end", || {
            let found = self.asker.ok(&["task", task]);
            let state = found["task"]["status"]["state"]
                .as_str()
                .unwrap()
                .to_owned();
            (!matches!(state.as_str(), "submitted" | "working")).then_some(())
        });
        drop(shown);
        let done = self.asker.ok(&["wait", task]);
        assert_eq!(done["task"]["status"]["state"], "completed");
        self.settle();
        for kind in ["result", "checked", "receipt", "ended"] {
            assert_eq!(self.asker.count(task, kind), 1, "{kind} of {task}");
        }
        assert_eq!(self.worker.count(task, "receipt_received"), 1);
        for node in [&self.asker, &self.worker] {
            let book = node.ok(&["ledger"]);
            let transfers = book["transfers"].as_array().unwrap();
            let commits: Vec<_> = transfers
                .iter()
                .filter(|t| t["task"] == task && t["kind"] == "commit")
                .collect();
            assert_eq!(commits.len(), 1, "{transfers:?}");
            assert_eq!(commits[0]["amount_mc"], done["cost_mc"]);
        }
        done
    }

    /// Waits until both books mirror each other and nothing pends: no lock, no lease, no worker's job, no outbox row.
    pub(crate) fn settle(&self) {
        let _shown = Shown(self);
        within(
            self.patience,
            "both books to mirror each other with nothing pending",
            || {
                let (a, b) = (self.asker.ok(&["ledger"]), self.worker.ok(&["ledger"]));
                let owed = |book: &Value, npub: &str| {
                    let account = book["accounts"]
                        .as_array()?
                        .iter()
                        .find(|x| x["npub"] == npub)?
                        .clone();
                    let pends = account["pending_owed_to_us_mc"].as_u64()?
                        + account["pending_we_owe_mc"].as_u64()?;
                    (pends == 0).then(|| account["posted_mc"].as_i64().unwrap())
                };
                let ours = owed(&a, &self.worker.npub)?;
                let theirs = owed(&b, &self.asker.npub)?;
                assert_eq!(
                    (a["sum_mc"].as_i64(), b["sum_mc"].as_i64()),
                    (Some(0), Some(0))
                );
                let rest = |node: &Node| {
                    let s = node.ok(&["status"]);
                    s["locks"] == 0
                        && s["tasks"]["open"] == 0
                        && s["tasks"]["settling"] == 0
                        && s["outbox"]["waiting"] == 0
                        && [
                            "queued",
                            "running",
                            "hibernating",
                            "awaiting_receipt",
                            "overdue",
                            "disputed",
                        ]
                        .iter()
                        .all(|k| s["work"][k] == 0)
                };
                (ours == -theirs && rest(&self.asker) && rest(&self.worker)).then_some(())
            },
        );
    }
}

/// Shows how both nodes stand when a wait for rest fails.
struct Shown<'a>(&'a Pair);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in [&self.0.asker, &self.0.worker] {
                for what in ["status", "ledger", "tasks"] {
                    let shown = node.run(&[what]);
                    eprintln!("{what}: {}", String::from_utf8_lossy(&shown.stdout));
                }
                eprintln!("stderr: {}", node.stderr());
                eprintln!("process: {}", node.fate());
            }
        }
    }
}

/// Arguments for an option that takes `paths x steps` of work.
pub(crate) fn option<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "ask",
        "simulation",
        "--set",
        "kind=european",
        "--set",
        "side=call",
        "--set",
        "spot=100",
        "--set",
        "strike=105",
        "--set",
        "rate=0.05",
        "--set",
        "volatility=0.2",
        "--set",
        "years=1",
        "--set",
        "paths=20000",
    ];
    args.extend(extra);
    args
}

/// Work of some seconds for one core.
pub(crate) fn long<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["ask", "simulation"];
    for pair in [
        "kind=european",
        "side=call",
        "spot=100",
        "strike=105",
        "rate=0.05",
        "volatility=0.2",
        "years=1",
        "steps=256",
        "paths=1000000",
    ] {
        args.extend(["--set", pair]);
    }
    args.extend(extra);
    args
}

/// Arguments for an Asian option: `units` up to 512, of `weight` times the least size.
pub(crate) fn job(units: u32, weight: u32) -> Vec<String> {
    let paths = units * weight * 512;
    [
        "ask",
        "simulation",
        "kind=asian",
        "side=call",
        "spot=100",
        "strike=105",
        "rate=0.05",
        "volatility=0.2",
        "years=1",
        "steps=64",
    ]
    .into_iter()
    .flat_map(|arg| match arg.contains('=') {
        true => vec!["--set".to_owned(), arg.to_owned()],
        false => vec![arg.to_owned()],
    })
    .chain(["--set".to_owned(), format!("paths={paths}")])
    .collect()
}
