//! One node per home, one user per node; a line that is no request is answered and changes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, oneshot};

use super::*;

/// Answers `echo`, counts down with `count`, and hangs with `wait` until the caller leaves.
#[derive(Default)]
struct Scripted {
    waiting: Notify,
    left: Arc<Left>,
}

#[derive(Default)]
struct Left {
    flag: AtomicBool,
    told: Notify,
}

struct TellOnDrop(Arc<Left>);

impl Drop for TellOnDrop {
    fn drop(&mut self) {
        self.0.flag.store(true, Ordering::SeqCst);
        self.0.told.notify_one();
    }
}

impl ControlHandler for Scripted {
    async fn call(
        &self,
        method: &str,
        params: Value,
        notify: NotifySender,
    ) -> Result<Value, ControlError> {
        match method {
            "echo" => Ok(params),
            "count" => {
                notify.progress("two");
                notify.progress("one");
                Ok(json!("go"))
            }
            "wait" => {
                let _tell = TellOnDrop(Arc::clone(&self.left));
                self.waiting.notify_one();
                std::future::pending().await
            }
            "fail" => Err(ControlError::new("no_provider", "nobody")
                .with_hint("trust a peer")
                .about(json!({ "id": "t1" }))),
            other => Err(ControlError::unknown_method(other)),
        }
    }
}

struct Running {
    home: Home,
    handler: Arc<Scripted>,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

fn start(max_line_bytes: u64) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(dir.path().to_owned());
    let lock = HomeLock::acquire(&home).unwrap();
    let server = ControlServer::bind(&lock, max_line_bytes, 4).unwrap();
    let handler = Arc::new(Scripted::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = Arc::clone(&handler);
    let served = tokio::spawn(async move {
        let _held = lock;
        server.serve(serving, async { drop(stopped.await) }).await;
    });
    Running {
        home,
        handler,
        stop,
        served,
        _dir: dir,
    }
}

struct Caller {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Running {
    async fn caller(&self) -> Caller {
        let path = self.home.socket_candidates().remove(0);
        let (reader, writer) = UnixStream::connect(path).await.unwrap().into_split();
        Caller {
            reader: BufReader::new(reader),
            writer,
        }
    }
}

impl Caller {
    async fn send(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).await.unwrap();
    }

    async fn read(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line).await.unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }
}

fn request(id: u64, method: &str) -> String {
    format!(
        "{}\n",
        json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": { "n": id } })
    )
}

#[tokio::test]
async fn a_second_node_on_one_home_is_refused_until_the_first_ends() {
    let running = start(1_000);
    let second = HomeLock::acquire(&running.home).unwrap_err();
    assert_eq!(second.code(), "already_running");
    let socket = running.home.socket_candidates().remove(0);
    assert_eq!(socket.metadata().unwrap().mode() & 0o777, 0o600);
    running.stop.send(()).unwrap();
    running.served.await.unwrap();
    assert!(!socket.exists(), "a stopped node leaves no socket");
    HomeLock::acquire(&running.home).unwrap();
}

/// A process that a killed node was starting holds the lock a moment longer than its node.
#[test]
fn a_lock_that_is_let_go_without_a_listener_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(dir.path().to_owned());
    let lingering = HomeLock::acquire(&home).unwrap();
    let (tries, tried) = std::sync::mpsc::channel();
    let waits = std::thread::spawn(move || {
        tries.send(()).unwrap();
        HomeLock::acquire(&home).map(drop)
    });
    tried.recv().unwrap();
    std::thread::sleep(LOCK_PAUSE * 3);
    drop(lingering);
    assert!(waits.join().unwrap().is_ok());
}

#[tokio::test]
async fn a_socket_that_a_killed_node_left_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(dir.path().to_owned());
    let stale = std::os::unix::net::UnixListener::bind(home.root().join("legion.sock")).unwrap();
    drop(stale);
    let lock = HomeLock::acquire(&home).unwrap();
    assert!(ControlServer::bind(&lock, 1_000, 4).is_ok());
}

#[tokio::test]
async fn calls_are_answered_in_order_with_progress_before_the_answer() {
    let running = start(1_000);
    let mut caller = running.caller().await;
    caller
        .send(
            &[
                request(1, "echo"),
                request(2, "count"),
                request(3, "fail"),
                request(4, "nope"),
            ]
            .concat(),
        )
        .await;
    let first = caller.read().await.unwrap();
    assert_eq!(
        first,
        json!({ "jsonrpc": "2.0", "id": 1, "result": { "n": 1 } })
    );
    for text in ["two", "one"] {
        let progress = caller.read().await.unwrap();
        assert_eq!(
            progress,
            json!({ "jsonrpc": "2.0", "method": "progress", "params": { "text": text } })
        );
    }
    assert_eq!(
        caller.read().await.unwrap().get("result"),
        Some(&json!("go"))
    );
    let failed = caller.read().await.unwrap();
    let data =
        json!({ "code": "no_provider", "hint": "trust a peer", "exit": 3, "task": { "id": "t1" } });
    assert_eq!(
        failed.get("error").unwrap(),
        &json!({ "code": -32000, "message": "nobody", "data": data })
    );
    assert_eq!(
        caller.read().await.unwrap().pointer("/error/code"),
        Some(&json!(-32601))
    );
}

#[tokio::test]
async fn malformed_lines_are_answered_and_the_connection_goes_on() {
    let running = start(1_000);
    let mut caller = running.caller().await;
    let cases = [
        ("{oops\n", -32_700),
        ("\u{0}\n", -32_700),
        ("[]\n", -32_600),
        (
            "{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"echo\"}\n",
            -32_600,
        ),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":7}\n", -32_600),
        ("{\"jsonrpc\":\"2.0\",\"method\":\"echo\"}\n", -32_600),
        (
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\",\"params\":[1]}\n",
            -32_600,
        ),
    ];
    for (line, number) in cases {
        caller.send(line).await;
        let answer = caller.read().await.unwrap();
        assert_eq!(
            answer.pointer("/error/code"),
            Some(&json!(number)),
            "{line}"
        );
        assert_eq!(
            answer.pointer("/error/data/code"),
            Some(&json!("request_invalid")),
            "{line}"
        );
    }
    caller.send(&request(9, "echo")).await;
    assert_eq!(caller.read().await.unwrap().get("id"), Some(&json!(9)));
}

#[tokio::test]
async fn a_line_over_the_limit_ends_its_connection_only() {
    let running = start(100);
    let mut caller = running.caller().await;
    caller.send(&"x".repeat(101)).await;
    let answer = caller.read().await.unwrap();
    assert_eq!(
        answer.pointer("/error/data/code"),
        Some(&json!("payload_too_large"))
    );
    assert_eq!(caller.read().await, None);
    let mut other = running.caller().await;
    other.send(&request(1, "echo")).await;
    assert!(other.read().await.unwrap().get("result").is_some());
}

#[tokio::test]
async fn a_caller_that_leaves_ends_its_waiting_and_a_stop_ends_everyone_s() {
    let running = start(1_000);
    let mut caller = running.caller().await;
    caller.send(&request(1, "wait")).await;
    running.handler.waiting.notified().await;
    drop(caller);
    running.handler.left.told.notified().await;
    assert!(running.handler.left.flag.load(Ordering::SeqCst));

    let mut waiting = running.caller().await;
    waiting.send(&request(2, "wait")).await;
    running.handler.waiting.notified().await;
    running.stop.send(()).unwrap();
    running.served.await.unwrap();
    assert_eq!(waiting.read().await, None, "a lost socket, not an answer");
}
