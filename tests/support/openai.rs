//! A server that speaks OpenAI's chat completions with streaming, and another one that only pretends to: what it does is decided by the
//! last word of the conversation. It remembers what it was asked.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// One request, as it came.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) head: String,
    pub(crate) body: Value,
}

/// Serves until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    left: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Server {
    /// On a free port; who asks for a redirect is sent to `elsewhere`.
    pub(crate) fn start(elsewhere: &str) -> Self {
        Self::start_at("127.0.0.1:0", elsewhere)
    }

    pub(crate) fn start_at(address: &str, elsewhere: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            left: Arc::default(),
            over: Arc::default(),
        };
        let (seen, left, over) = (
            server.seen.clone(),
            server.left.clone(),
            server.over.clone(),
        );
        let elsewhere = elsewhere.to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (seen, left, elsewhere) = (seen.clone(), left.clone(), elsewhere.clone());
                std::thread::spawn(move || {
                    // Who hangs up before the end of the answer is counted.
                    if serve(stream, &seen, &elsewhere).is_err() {
                        left.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The conversations that were asked for.
    pub(crate) fn asked(&self) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap().clone();
        let chats = |seen: &Seen| seen.path.ends_with("/chat/completions");
        seen.into_iter().filter(chats).collect()
    }

    /// How many hung up in the middle.
    pub(crate) fn left(&self) -> usize {
        self.left.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn read_request(stream: &mut TcpStream) -> std::io::Result<Seen> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        text.push(byte[0]);
    }
    let head = String::from_utf8(text).unwrap();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body)?;
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Ok(Seen { path, head, body })
}

fn respond(stream: &mut TcpStream, status: &str, head: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{head}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// One piece of a chunked answer.
fn piece(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    write!(stream, "{:x}\r\n{text}\r\n", text.len())?;
    stream.flush()
}

fn event(content: &str) -> String {
    let choice = json!({"index": 0, "delta": {"content": content}, "finish_reason": null});
    let chunk = json!({"id": "c1", "object": "chat.completion.chunk", "model": "/srv/secret.gguf", "choices": [choice]});
    format!("data: {chunk}\n\n")
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<Seen>>, elsewhere: &str) -> std::io::Result<()> {
    let Ok(request) = read_request(&mut stream) else {
        // Somebody who only looked whether anybody is there.
        return Ok(());
    };
    seen.lock().unwrap().push(request.clone());
    if request.path.ends_with("/models") {
        return respond(
            &mut stream,
            "200 OK",
            "",
            "{\"object\":\"list\",\"data\":[]}",
        );
    }
    let messages = request.body["messages"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let last = messages
        .last()
        .map_or("", |m| m["content"].as_str().unwrap_or_default());
    let (word, said) = (last.split(' ').next().unwrap_or_default(), last);
    match word {
        "refuse" => {
            let key = request.head.to_ascii_lowercase();
            let key = key.split("bearer ").nth(1).unwrap_or_default();
            let key = key.lines().next().unwrap_or_default();
            let body = json!({"error": {"message": format!("no memory for {key}\n{}", "x".repeat(5_000))}});
            return respond(
                &mut stream,
                "500 Internal Server Error",
                "",
                &body.to_string(),
            );
        }
        "redirect" => {
            let head = format!("location: {elsewhere}\r\n");
            return respond(&mut stream, "307 Temporary Redirect", &head, "gone");
        }
        "whole" => {
            return respond(
                &mut stream,
                "200 OK",
                "content-type: application/json\r\n",
                "{\"choices\":[]}",
            );
        }
        "nonsense" => return stream.write_all(b"SSH-2.0-nonsense\r\n\r\n"),
        "mute" => {
            // Until the other side gives up.
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest)?;
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        _ => {}
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n")?;
    piece(&mut stream, ": hello\n\n")?;
    match word {
        "stall" => {
            piece(&mut stream, &event("so"))?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest)?;
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        "lie" => piece(&mut stream, "data: {\"choices\":[{\"delta\":7}]}\n\n")?,
        "deep" => piece(&mut stream, &format!("data: {}\n\n", "[".repeat(100_000)))?,
        "long" => loop {
            piece(&mut stream, &"x".repeat(65_536))?;
        },
        "forever" => loop {
            piece(&mut stream, &event("again "))?;
        },
        "breathe" => loop {
            piece(&mut stream, &event(""))?;
            std::thread::sleep(Duration::from_millis(50));
        },
        "break" => return piece(&mut stream, &event("so")),
        "cut" => {
            piece(&mut stream, &event("so"))?;
            return write!(stream, "0\r\n\r\n");
        }
        "slow" => {
            for _ in 0..25 {
                piece(&mut stream, &event("."))?;
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        _ => {
            for letter in said.chars().rev() {
                piece(&mut stream, &event(&letter.to_string()))?;
            }
        }
    }
    piece(
        &mut stream,
        "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    )?;
    piece(
        &mut stream,
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":9,\"total_tokens\":14}}\n\ndata: [DONE]\n\n",
    )?;
    write!(stream, "0\r\n\r\n")
}
