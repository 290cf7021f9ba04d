//! A relay in the test process that lies: it checks nothing, keeps nothing, and says whatever the test wants, as often as it wants.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message as Frame};

use super::world::until;

/// A relay that says and repeats whatever the test wants. It keeps nothing and checks nothing.
pub(crate) struct LyingRelay {
    pub(crate) url: String,
    lines: Arc<Mutex<Vec<Line>>>,
    stop: Arc<AtomicBool>,
    silent: Arc<AtomicBool>,
}

/// One connection of it: filters by subscription, and what is still to be said.
#[derive(Default)]
struct Line {
    subs: BTreeMap<String, Value>,
    out: VecDeque<String>,
    gone: bool,
}

impl LyingRelay {
    /// On a free port.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let lines: Arc<Mutex<Vec<Line>>> = Arc::default();
        let (stop, silent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let (all, end, mute) = (lines.clone(), stop.clone(), silent.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let mut held = all.lock().unwrap();
                held.push(Line::default());
                let (at, all, end, mute) = (held.len() - 1, all.clone(), end.clone(), mute.clone());
                drop(held);
                std::thread::spawn(move || serve(stream, at, &all, &end, &mute));
            }
        });
        Self {
            url,
            lines,
            stop,
            silent,
        }
    }

    /// From now on it takes what it is asked and never answers.
    pub(crate) fn fall_silent(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }

    /// Says these events, as text, to everyone who reads the key they are for. True once somebody does.
    pub(crate) fn push(&self, key: &str, events: &[String]) {
        until("a reader on the lying relay", || {
            let mut told = false;
            for line in self.lines.lock().unwrap().iter_mut().filter(|l| !l.gone) {
                let wants = |f: &Value| {
                    f["#p"]
                        .as_array()
                        .is_some_and(|p| p.iter().any(|k| k == key))
                        && f["kinds"][0] == 1059
                };
                let sub = line
                    .subs
                    .iter()
                    .find(|(_, f)| wants(f))
                    .map(|(s, _)| s.clone());
                if let Some(sub) = sub {
                    line.out
                        .extend(events.iter().map(|e| format!("[\"EVENT\",\"{sub}\",{e}]")));
                    told = true;
                }
            }
            told.then_some(())
        });
    }
}

impl Drop for LyingRelay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("ws://"));
    }
}

fn serve(
    stream: TcpStream,
    at: usize,
    lines: &Mutex<Vec<Line>>,
    stop: &AtomicBool,
    silent: &AtomicBool,
) {
    stream.set_nodelay(true).unwrap();
    let Ok(mut line) = tungstenite::accept(stream) else {
        return;
    };
    line.get_ref()
        .set_read_timeout(Some(Duration::from_millis(10)))
        .unwrap();
    while !stop.load(Ordering::SeqCst) {
        let out: Vec<_> = lines.lock().unwrap()[at].out.drain(..).collect();
        // All in one flush: the reader gets them at once.
        let mut lost = false;
        for text in out {
            lost |= line.write(Frame::text(text)).is_err();
        }
        if lost || line.flush().is_err() {
            break;
        }
        let answers = match line.read() {
            Ok(Frame::Text(_)) if silent.load(Ordering::SeqCst) => Vec::new(),
            Ok(Frame::Text(text)) => answer(text.as_str(), &mut lines.lock().unwrap()[at]),
            Ok(_) => Vec::new(),
            Err(tungstenite::Error::Io(e)) if is_pause(&e) => continue,
            Err(_) => break,
        };
        for answer in answers {
            lost |= line.send(Frame::text(answer.to_string())).is_err();
        }
        if lost {
            break;
        }
    }
    lines.lock().unwrap()[at].gone = true;
}

fn answer(text: &str, line: &mut Line) -> Vec<Value> {
    let Ok(Value::Array(frame)) = serde_json::from_str::<Value>(text) else {
        return Vec::new();
    };
    let word = |at: usize| {
        frame
            .get(at)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    match word(0).as_str() {
        "REQ" => {
            line.subs
                .insert(word(1), frame.get(2).cloned().unwrap_or_default());
            vec![json!(["EOSE", word(1)])]
        }
        "CLOSE" => {
            line.subs.remove(&word(1));
            Vec::new()
        }
        "EVENT" => vec![json!(["OK", frame[1]["id"], true, ""])],
        _ => Vec::new(),
    }
}

/// Nothing came within the read timeout.
fn is_pause(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
