//! The command line keeps its contract: the real binary, its exit codes, its one JSON object, and what it leaves on disk.

mod people;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use legiond::config::{Config, Home};
use legiond::node::control::{
    ControlError, ControlHandler, ControlServer, HomeLock, NotifySender, codes,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::shape::{fixture, structure};

/// A directory of its own for one test, with a home `h` that may not exist yet.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn home(&self) -> PathBuf {
        self.path("h")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_legion"));
        command
            .args(args)
            .env("LEGION_HOME", self.home())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs with `--json` and returns the exit code and the one object on stdout.
    fn json(&self, args: &[&str]) -> (i32, Value) {
        let output = self.run(&[args, &["--json"]].concat());
        (output.status.code().unwrap(), one_object(&output))
    }

    /// A home without a passphrase.
    fn init(&self) -> Value {
        let words = self.path("words");
        let (code, id) = self.json(&["init", "--no-passphrase", "--mnemonic-out", text(&words)]);
        assert_eq!(code, 0, "{id}");
        id
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn one_object(output: &Output) -> Value {
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(
        stdout.lines().count(),
        1,
        "stdout: {stdout}\nstderr: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(&stdout).unwrap()
}

/// Compares an answer's structure with `fixtures/cli/<name>.json`: the same keys, the same kinds of values.
fn shape(name: &str, value: &Value) {
    assert_eq!(
        structure(value),
        structure(&fixture(name)),
        "the shape of `{name}` changed: {value:#}"
    );
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

fn code(value: &Value) -> &str {
    value
        .pointer("/error/code")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

#[test]
fn init_makes_a_private_home_and_id_shows_the_same_identity() {
    let place = Place::new();
    let made = place.init();
    shape("id", &made);
    let (exit, shown) = place.json(&["id"]);
    assert_eq!((exit, &shown), (0, &made));
    let home = place.home();
    assert_eq!((mode(&home), mode(&home.join("keys"))), (0o700, 0o700));
    let mut keys = 0;
    for entry in std::fs::read_dir(home.join("keys")).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
        keys += 1;
    }
    assert!(keys >= 2, "a secret and a public file");
    assert!(home.join("config/legion.toml").exists() && home.join("relays/public.toml").exists());
    let words = std::fs::read_to_string(place.path("words")).unwrap();
    assert_eq!(
        (words.split_whitespace().count(), mode(&place.path("words"))),
        (12, 0o600)
    );
    assert!(
        !made.to_string().contains(words.trim()),
        "the words are not part of the answer"
    );
}

#[test]
fn an_initialised_home_and_existing_words_are_never_overwritten() {
    let place = Place::new();
    let made = place.init();
    let (exit, error) = place.json(&[
        "init",
        "--no-passphrase",
        "--mnemonic-out",
        text(&place.path("more")),
    ]);
    assert_eq!((exit, code(&error)), (2, "already_initialized"));
    assert!(!place.path("more").exists());
    assert_eq!(place.json(&["id"]).1, made);

    let other = Place::new();
    let words = place.path("words");
    let before = std::fs::read(&words).unwrap();
    let (exit, error) = other.json(&["init", "--no-passphrase", "--mnemonic-out", text(&words)]);
    assert_eq!((exit, code(&error)), (2, "mnemonic_out_exists"));
    assert_eq!(std::fs::read(&words).unwrap(), before);
    assert_eq!(
        code(&other.json(&["id"]).1),
        "key_missing",
        "nothing was half made"
    );
}

#[test]
fn words_restore_the_identity_and_new_ones_need_a_place() {
    let place = Place::new();
    let made = place.init();
    let other = Place::new();
    let words = place.path("words");
    let (exit, restored) =
        other.json(&["init", "--no-passphrase", "--mnemonic-file", text(&words)]);
    assert_eq!((exit, restored), (0, made));

    let third = Place::new();
    std::fs::write(third.path("bad"), "abandon abandon abandon").unwrap();
    let (exit, error) = third.json(&[
        "init",
        "--no-passphrase",
        "--mnemonic-file",
        text(&third.path("bad")),
    ]);
    assert_eq!((exit, code(&error)), (2, "mnemonic_invalid"));
    let (exit, error) = third.json(&["init", "--no-passphrase"]);
    assert_eq!(
        (exit, code(&error)),
        (2, "mnemonic_needs_place"),
        "stderr is no terminal here"
    );
    assert!(!third.home().exists(), "a refused init leaves nothing");
}

#[test]
fn a_passphrase_comes_from_a_file_or_a_descriptor_and_encrypts_the_words() {
    let place = Place::new();
    let words = place.path("words");
    std::fs::write(place.path("pass"), "correct horse\n").unwrap();
    let pass = place.path("pass");
    let args = [
        "init",
        "--passphrase-file",
        text(&pass),
        "--mnemonic-out",
        text(&words),
    ];
    assert_eq!(place.json(&args).0, 0);
    let first = std::fs::read_to_string(&words).unwrap();
    let first = first.split_whitespace().collect::<Vec<_>>().join(" ");
    for entry in std::fs::read_dir(place.home().join("keys")).unwrap() {
        let stored = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(
            !String::from_utf8_lossy(&stored).contains(&first),
            "the words lie open"
        );
    }
    assert_eq!(place.json(&["id"]).0, 0, "id needs no passphrase");

    let other = Place::new();
    let words = other.path("words");
    let mut child = other
        .command(&[
            "init",
            "--passphrase-fd",
            "0",
            "--mnemonic-out",
            text(&words),
            "--json",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"from a pipe\n")
        .unwrap();
    assert!(child.wait_with_output().unwrap().status.success());

    let third = Place::new();
    let (exit, error) = third.json(&["init", "--mnemonic-out", text(&third.path("words"))]);
    assert_eq!((exit, code(&error)), (2, "passphrase_required"));
    std::fs::write(third.path("empty"), "\n").unwrap();
    let empty = third.path("empty");
    let (exit, error) = third.json(&[
        "init",
        "--passphrase-file",
        text(&empty),
        "--mnemonic-out",
        text(&third.path("w")),
    ]);
    assert_eq!((exit, code(&error)), (2, "passphrase_empty"));
}

#[test]
fn a_key_file_that_others_can_read_is_refused() {
    let place = Place::new();
    place.init();
    for entry in std::fs::read_dir(place.home().join("keys")).unwrap() {
        std::fs::set_permissions(
            entry.unwrap().path(),
            std::fs::Permissions::from_mode(0o644),
        )
        .unwrap();
    }
    let (exit, error) = place.json(&["up"]);
    assert_eq!((exit, code(&error)), (2, "key_permissions"));
}

#[test]
fn relays_given_to_init_are_the_ones_in_effect() {
    let place = Place::new();
    let words = place.path("words");
    let relays = [
        "--relay",
        "ws://127.0.0.1:7777",
        "--relay",
        "wss://relay.example",
    ];
    let args = [
        &["init", "--no-passphrase", "--mnemonic-out", text(&words)][..],
        &relays,
    ]
    .concat();
    assert_eq!(place.json(&args).0, 0);
    let (exit, mut check) = place.json(&["config", "check"]);
    assert_eq!(exit, 0);
    let effective = Config {
        relays: vec!["relays/home.toml".to_owned()],
        ..Config::default()
    };
    // The settings have a test of their own; the shape's fixture need not repeat them.
    assert_eq!(
        check["config"].take(),
        serde_json::to_value(effective).unwrap()
    );
    shape("config_check", &check);
    let urls: Vec<&str> = check["relays"]
        .as_array()
        .unwrap()
        .iter()
        .map(|relay| relay["url"].as_str().unwrap())
        .collect();
    assert_eq!(urls, ["ws://127.0.0.1:7777", "wss://relay.example"]);

    let other = Place::new();
    let (exit, error) = other.json(&[
        "init",
        "--no-passphrase",
        "--mnemonic-out",
        text(&words),
        "--relay",
        "http://x",
    ]);
    assert_eq!((exit, code(&error)), (2, "relay_invalid"));
}

#[test]
fn a_bad_config_key_is_named_with_its_line_by_every_command_that_reads_it() {
    let place = Place::new();
    place.init();
    std::fs::write(
        place.home().join("config/legion.toml"),
        "pools = []\n[market]\nlease_tl_ms = 5\n",
    )
    .unwrap();
    for args in [&["config", "check"][..], &["up"]] {
        let (exit, error) = place.json(args);
        assert_eq!((exit, code(&error)), (2, "config_invalid"));
        let message = error["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("market.lease_tl_ms") && message.contains("line 3"),
            "{message}"
        );
    }
    assert_eq!(
        place.json(&["id"]).0,
        0,
        "the identity does not depend on the settings"
    );
}

#[test]
fn every_setting_is_read_by_the_program() {
    fn names(value: &Value, found: &mut Vec<String>) {
        for (name, value) in value.as_object().into_iter().flatten() {
            match value.as_object().filter(|fields| !fields.is_empty()) {
                Some(_) => names(value, found),
                None => found.push(name.clone()),
            }
        }
    }
    fn sources(dir: &Path, text: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("src/config") {
                sources(&path, text);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                text.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut settings = Vec::new();
    names(
        &serde_json::to_value(Config::default()).unwrap(),
        &mut settings,
    );
    // Read through methods of the settings themselves.
    let methods = [
        ("relays", "relay_list"),
        ("skill_unit_price_mc", "unit_price_mc"),
    ];
    let mut program = String::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut program,
    );
    let program: String = program.split_whitespace().collect();
    let unread = settings.iter().filter(|setting| {
        let method = methods.iter().find(|(name, _)| name == setting);
        let name = method.map_or(setting.as_str(), |(_, method)| *method);
        !program.contains(&format!(".{name}"))
    });
    assert_eq!(unread.collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(settings.len() > 30, "{settings:?}");
}

#[test]
fn usage_errors_end_with_2_and_one_object_wherever_json_stands() {
    let place = Place::new();
    for args in [
        &["--json", "frobnicate"][..],
        &["frobnicate", "--json"],
        &["--json"],
        &["ask", "--json"],
        &["ask", "simulation", "--json"],
        &[
            "ask",
            "simulation",
            "--input",
            "f",
            "--set",
            "a=1",
            "--json",
        ],
        &[
            "ask",
            "simulation",
            "--set",
            "a=1",
            "--max-price",
            "-1",
            "--json",
        ],
        &[
            "init",
            "--no-passphrase",
            "--passphrase-file",
            "f",
            "--json",
        ],
        &["pause", "--now", "--for", "5m", "--json"],
        &["pause", "--for", "soon", "--json"],
        &["peers", "trust", "npub1x", "--tier", "friend", "--json"],
    ] {
        let output = place.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let error = one_object(&output);
        assert_eq!(code(&error), "usage", "{args:?}");
        shape("error", &error);
    }
    let plain = place.run(&["frobnicate"]);
    assert_eq!((plain.status.code(), plain.stdout.len()), (Some(2), 0));
    assert!(!plain.stderr.is_empty());
    assert_eq!(place.run(&["--help"]).status.code(), Some(0));
}

#[test]
fn commands_that_need_the_node_say_so_with_5() {
    let place = Place::new();
    place.init();
    for args in [
        &["status"][..],
        &["peers"],
        &["peers", "forget", "npub1x"],
        &["pause"],
        &["resume"],
        &["tasks"],
        &["task", "t"],
        &["wait", "t"],
        &["cancel", "t"],
        &["why", "t"],
        &["ledger"],
        &["proof", "export", "t"],
        &["ask", "far", "--set", "a:=1"],
    ] {
        let (exit, error) = place.json(args);
        assert_eq!((exit, code(&error)), (5, "node_not_running"), "{args:?}");
        shape("error", &error);
    }
    let plain = place.run(&["status"]);
    assert_eq!(
        (plain.status.code(), plain.stdout.len()),
        (Some(5), 0),
        "errors for people go to stderr"
    );
}

#[test]
fn a_home_in_a_git_work_tree_is_refused_unless_its_keys_are_ignored() {
    let place = Place::new();
    assert!(
        Command::new("git")
            .args(["init", "-q"])
            .arg(place.dir.path())
            .status()
            .unwrap()
            .success()
    );
    let home = place.path("inside");
    let (exit, error) = place.json(&["--home", text(&home), "id"]);
    assert_eq!((exit, code(&error)), (2, "home_in_git"));
    std::fs::write(place.path(".gitignore"), "/inside/keys/*\n").unwrap();
    assert_eq!(
        code(&place.json(&["id", "--home", text(&home)]).1),
        "key_missing"
    );
    assert_eq!(
        code(&place.json(&["--home", text(&place.path("other")), "id"]).1),
        "home_in_git"
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    place.init();
    let mut child = place
        .command(&["id"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panic"));
}

#[test]
fn a_second_up_is_refused() {
    let place = Place::new();
    place.init();
    let _held = HomeLock::acquire(&Home::new(place.home())).unwrap();
    let (exit, error) = place.json(&["up"]);
    assert_eq!((exit, code(&error)), (2, "already_running"));
}

#[test]
fn files_that_cannot_be_used_end_with_2_and_a_next_step() {
    let place = Place::new();
    let nowhere = place.path("no/such/dir/words");
    let init = ["init", "--no-passphrase", "--mnemonic-out", text(&nowhere)];
    let export = place.path("export.json");
    std::fs::write(&export, json!({ "proof": {} }).to_string()).unwrap();
    let check = |args: &[&str], expected: &str| {
        let (exit, error) = place.json(args);
        assert_eq!((exit, code(&error)), (2, expected), "{args:?}: {error}");
        assert!(
            error["error"]["hint"].as_str().unwrap().len() > 5,
            "{error}"
        );
        let message = error["error"]["message"].as_str().unwrap();
        assert!(
            !message.contains(error["error"]["hint"].as_str().unwrap()),
            "{error}"
        );
    };
    check(&init, "io");
    check(&["proof", "verify", text(&export)], "proof_malformed");
    check(&["proof", "verify", text(&nowhere)], "input_unreadable");
    check(&["logs"], "no_log");
    place.init();
    std::fs::write(place.home().join("store.redb"), "not a store").unwrap();
    check(&["up"], "store_invalid");
}

/// The string that follows each `marker` in `text`, whose white space is one blank each.
fn quoted_after<'a>(text: &'a str, marker: &str) -> Vec<&'a str> {
    let after = text.split(marker).skip(1);
    let quoted = after.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
    quoted.collect()
}

#[test]
fn every_code_of_a_command_has_its_exit_code_and_next_step_in_the_table() {
    let known: Vec<&str> = codes::known().map(|(code, ..)| code).collect();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let read = |name: &str| -> String {
        let text = std::fs::read_to_string(src.join(name)).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let mut found: Vec<String> = Vec::new();
    let mut scan = |name: &str, markers: &[&str]| {
        let text = read(name);
        let before = found.len();
        for marker in markers {
            found.extend(quoted_after(&text, marker).into_iter().map(str::to_owned));
        }
        assert!(found.len() > before, "{name} names no code any more");
    };
    let commands = ["CliError::new(", "CliError::hinted("];
    for name in [
        "init",
        "input",
        "passphrase",
        "proof",
        "pause",
        "logs",
        "control",
        "ask",
        "demo",
    ] {
        scan(&format!("cli/{name}.rs"), &commands);
    }
    scan("cli/error.rs", &["Self::new(", "Self::hinted("]);
    scan("node/handlers.rs", &["ControlError::new("]);
    scan(
        "node/control.rs",
        &["ControlError::new(", "Self::new(", "=>"],
    );
    scan("node/results.rs", &["Err((", "map_err(|e| (", "ok_or(("]);
    for name in [
        "domain/asking",
        "domain/waiting",
        "domain/arbiter",
        "node/core",
    ] {
        scan(&format!("{name}.rs"), &["Refused::new("]);
    }
    for name in [
        "identity/error",
        "store/error",
        "config",
        "relay",
        "carrier/types",
        "wire/binding",
        "node/error",
    ] {
        scan(&format!("{name}.rs"), &["=>"]);
    }
    let missing: Vec<&String> = found
        .iter()
        .filter(|code| !known.contains(&code.as_str()))
        .collect();
    assert_eq!(missing, Vec::<&String>::new());
    assert!(found.len() > 100, "{}", found.len());
}

#[cfg(feature = "relay")]
#[test]
fn a_relay_says_where_it_listens_and_stops_when_asked() {
    let place = Place::new();
    let mut child = place
        .command(&["relay", "--listen", "127.0.0.1:0", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    shape("relay", &ready);
    let address = ready["url"]
        .as_str()
        .unwrap()
        .strip_prefix("ws://")
        .unwrap();
    assert!(std::net::TcpStream::connect(address).is_ok(), "{address}");
    let (exit, error) = place.json(&["relay", "--listen", address]);
    assert_eq!(
        (exit, code(&error)),
        (2, "relay_listen_failed"),
        "the port is taken"
    );
    assert!(
        Command::new("kill")
            .arg(child.id().to_string())
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(0));
    line.clear();
    std::io::Read::read_to_string(&mut said, &mut line).unwrap();
    assert_eq!(line, "", "one object and nothing else");
}

/// Answers as a node would, without one: the client's half of local control is what is tested.
struct Scripted;

impl ControlHandler for Scripted {
    async fn call(
        &self,
        method: &str,
        params: Value,
        notify: NotifySender,
    ) -> Result<Value, ControlError> {
        let unknown = || ControlError::new("task_unknown", "no such task");
        match (method, params["id"].as_str()) {
            ("task/ask", _) if params["skill"] == "nobody" => {
                Err(ControlError::new("no_provider", "nobody offers it")
                    .about(json!({ "id": "t9" })))
            }
            ("task/ask", _) if params["skill"] == "echo" => {
                Ok(json!({ "task": { "id": "t1", "asked": params }, "key": params["key"] }))
            }
            ("task/ask", _) => {
                Ok(json!({ "task": fixture("ask_detach")["task"], "key": params["key"] }))
            }
            ("task/wait", Some("t1")) => {
                notify.progress("awarded");
                Ok(fixture("ask"))
            }
            ("task/wait", Some("nested")) => Ok(json!({
                "task": { "id": "nested", "status": { "state": "completed" } },
                "result": { "grid": [[1, 2], [[3], 4]], "vector": vec![0.5; 200], "rows": vec![[1.5, 2.5]; 50] },
            })),
            ("task/get", Some("t1")) => Ok(fixture("task")),
            ("task/list", _) => Ok(fixture("tasks")),
            ("ledger/get", _) => Ok(fixture("ledger")),
            ("task/wait", Some("slow")) => {
                notify.progress("waiting");
                std::future::pending().await
            }
            ("owner/pause", _) => Ok(json!({ "paused": params })),
            _ => Err(unknown()),
        }
    }
}

/// Runs `body` on its own thread while a scripted node serves the home of `place`.
async fn with_node<T: Send + 'static>(
    place: Arc<Place>,
    body: impl FnOnce(&Place) -> T + Send + 'static,
) -> T {
    let home = Home::new(place.home());
    home.create().unwrap();
    let lock = HomeLock::acquire(&home).unwrap();
    let server = ControlServer::bind(&lock, 100_000, 8).unwrap();
    let serving = tokio::spawn(server.serve(Arc::new(Scripted), std::future::pending()));
    let result = tokio::task::spawn_blocking(move || body(&place))
        .await
        .unwrap();
    serving.abort();
    result
}

#[tokio::test]
async fn ask_prints_key_and_task_before_waiting_and_ends_as_the_node_says() {
    with_node(Arc::new(Place::new()), |place| {
        let output = place.run(&[
            "ask",
            "far",
            "--set",
            "a:=1",
            "b:=[2]",
            "--key",
            "k1",
            "--max-price",
            "7",
            "--json",
        ]);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(one_object(&output), fixture("ask"));
        let stderr = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = stderr.lines().collect();
        assert_eq!(lines, ["key: k1", "task: t1", "awarded"]);

        let (exit, detached) = place.json(&["ask", "far", "--set", "a:=1", "--detach"]);
        assert_eq!((exit, detached), (0, fixture("ask_detach")));
        let (_, detached) = place.json(&[
            "ask", "echo", "--set", "a:=1", "--detach", "--peer", "npub1x",
        ]);
        let asked = &detached["task"]["asked"];
        assert_eq!(
            (&asked["input"], &asked["peer"]),
            (&json!({ "a": 1 }), &json!("npub1x"))
        );
        assert!(
            asked["key"].as_str().is_some_and(|key| key.len() == 32),
            "a key is always chosen"
        );

        let (exit, error) = place.json(&["ask", "nobody", "--set", "a:=1"]);
        assert_eq!(
            (exit, code(&error), &error["task"]["id"]),
            (3, "no_provider", &json!("t9"))
        );
        let (exit, error) = place.json(&["task", "none"]);
        assert_eq!((exit, code(&error)), (2, "task_unknown"));
        let (_, paused) = place.json(&["pause", "--for", "15m"]);
        assert_eq!(paused["paused"], json!({ "mode": "now", "for_s": 900 }));
    })
    .await;
}

#[tokio::test]
async fn views_reach_programs_unchanged_and_people_as_tables() {
    with_node(Arc::new(Place::new()), |place| {
        let shown = |args: &[&str]| String::from_utf8(place.run(args).stdout).unwrap();
        for (args, view) in [
            (&["task", "t1"][..], fixture("task")),
            (&["tasks"], fixture("tasks")),
            (&["ledger"], fixture("ledger")),
        ] {
            assert_eq!(place.json(args), (0, view));
        }
        assert!(shown(&["tasks"]).lines().nth(1).unwrap().starts_with("t1"));
        let ledger = shown(&["ledger"]);
        let posted = fixture("ledger")["accounts"][0]["posted_mc"].to_string();
        assert!(
            posted.starts_with('-') && ledger.contains(&posted) && ledger.contains("sum: 0"),
            "{ledger}"
        );
        let result = shown(&["wait", "t1"]);
        let expected = fixture("ask");
        let (price, verified) = (&expected["result"]["price"], &expected["verified"]);
        let checked = format!(
            "{} of {} units",
            verified["units_checked"], verified["units_total"]
        );
        assert!(
            result.contains(&format!("price: {price}")) && result.contains(&checked),
            "{result}"
        );
    })
    .await;
}

#[tokio::test]
async fn ctrl_c_detaches_and_says_how_to_wait_again() {
    with_node(Arc::new(Place::new()), |place| {
        let mut child = place
            .command(&["wait", "slow", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert_eq!(line, "waiting\n", "the command waits from here on");
        let interrupted = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap();
        assert!(interrupted.success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        let error = one_object(&output);
        assert_eq!(
            (code(&error), &error["error"]["hint"]),
            ("detached", &json!("legion wait slow"))
        );
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut said, &mut rest).unwrap();
        assert_eq!(rest, "legion wait slow\n");
    })
    .await;
}

#[tokio::test]
async fn a_node_that_dies_while_waited_for_detaches_too() {
    let place = Arc::new(Place::new());
    let home = Home::new(place.home());
    home.create().unwrap();
    let lock = HomeLock::acquire(&home).unwrap();
    let server = ControlServer::bind(&lock, 100_000, 8).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(Arc::new(Scripted), async { drop(stopped.await) }));
    let mut child = place
        .command(&["wait", "slow"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = tokio::task::spawn_blocking(move || {
        let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        std::io::BufRead::read_line(&mut said, &mut text).unwrap();
        stop.send(()).unwrap();
        std::io::Read::read_to_string(&mut said, &mut text).unwrap();
        (child.wait_with_output().unwrap(), text)
    });
    let (output, stderr) = output.await.unwrap();
    serving.await.unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(130), 0));
    assert!(
        stderr.lines().any(|line| line == "legion wait slow"),
        "{stderr}"
    );
}
