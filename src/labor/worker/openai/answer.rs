//! What a server streams (server-sent events, each a chunk of a chat completion), put together under limits: every line, the whole
//! stream and the text end somewhere, whatever the server says. It must not know connections.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::labor::skills::SkillError;

/// A chunk with one word has some hundred bytes; the last one may list more.
const LINE_BYTES: usize = 256 << 10;
/// What a stream may have besides its tokens.
const STREAM_BYTES: u64 = 1 << 20;
/// What one token may take on the wire, thoughts that are not shown included.
const TOKEN_BYTES: u64 = 2_048;
const FINISH_REASON_CHARS: usize = 64;
const SAID_CHARS: usize = 200;

/// What one answer may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The result's JSON.
    pub(super) result_bytes: usize,
    /// The whole of it.
    pub(super) total: Duration,
    /// Until the first line.
    pub(super) first_word: Duration,
    /// Between two pieces.
    pub(super) silence: Duration,
}

pub(super) fn garbage(what: &str) -> SkillError {
    fault("backend_garbage", format!("its server {what}"))
}

pub(super) fn fault(code: &'static str, message: String) -> SkillError {
    SkillError { code, message }
}

/// A foreign text in one short line.
pub(super) fn shortened(text: &str) -> String {
    let words = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    words.take(SAID_CHARS).collect::<String>().trim().to_owned()
}

/// The text of an error as servers wrap it: `{"error":{"message":"..."}}`, `{"error":"..."}`, `{"detail":...}`, or as it is; without
/// `hidden`, the key, which some of them repeat.
pub(super) fn error_text(body: &str, hidden: &str) -> String {
    let body = match hidden {
        "" => body.to_owned(),
        // Before it is cut: a part of a key says something too.
        hidden => body.replace(hidden, "***"),
    };
    let parsed = serde_json::from_str::<Value>(&body).unwrap_or_default();
    let found = ["/error/message", "/error", "/message", "/detail"];
    let found = (found.iter()).find_map(|place| parsed.pointer(place)?.as_str());
    shortened(found.unwrap_or(&body))
}

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u64,
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Deserialize)]
pub(super) struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

/// A stream that is being read.
pub(super) struct Stream {
    hidden: Zeroizing<String>,
    line: Vec<u8>,
    bytes_left: u64,
    answer: Answer,
    /// Whether anything of an answer has come.
    pub(super) begun: bool,
    ended: bool,
}

/// What a stream said.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    text: String,
    text_max_bytes: usize,
    finish_reason: Option<String>,
    usage: Usage,
}

impl Stream {
    /// `hidden` is in no error's text.
    pub(super) fn new(tokens: u64, limits: &Limits, hidden: &str) -> Self {
        Self {
            hidden: Zeroizing::new(hidden.to_owned()),
            line: Vec::new(),
            bytes_left: tokens
                .saturating_mul(TOKEN_BYTES)
                .saturating_add(STREAM_BYTES),
            answer: Answer {
                text_max_bytes: limits.result_bytes,
                ..Answer::default()
            },
            begun: false,
            ended: false,
        }
    }

    /// Takes what came; true when the answer is whole.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Result<bool, SkillError> {
        self.bytes_left = (self.bytes_left.checked_sub(bytes.len() as u64)).ok_or_else(|| {
            let text = "its server sent more than so many tokens can take";
            fault("backend_endless", text.to_owned())
        })?;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + part.len() > LINE_BYTES {
                return Err(garbage("sent a line that is too long"));
            }
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.read_line(&line)?;
            }
            if self.ended {
                break;
            }
        }
        Ok(self.ended)
    }

    /// The answer, where the stream has ended.
    pub(super) fn end(mut self) -> Result<Answer, SkillError> {
        let line = std::mem::take(&mut self.line);
        self.read_line(&line)?;
        if self.ended || self.answer.finish_reason.is_some() {
            Ok(self.answer)
        } else {
            Err(garbage("ended in the middle of its answer"))
        }
    }

    /// One line of an event stream: a field, a comment, or nothing.
    fn read_line(&mut self, line: &[u8]) -> Result<(), SkillError> {
        let line = std::str::from_utf8(line).map_err(|_| garbage("sent bytes that are no text"))?;
        let Some(data) = line.trim_end().strip_prefix("data:").map(str::trim) else {
            return Ok(());
        };
        if data == "[DONE]" {
            self.ended = true;
            return Ok(());
        }
        // A deeper nesting than 128 is refused by the parser.
        let chunk: Chunk = serde_json::from_str(data)
            .map_err(|_| garbage("sent something else than chunks of an answer"))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            let text = error_text(&json!({"error": error}).to_string(), &self.hidden);
            return Err(fault(
                "backend_refused",
                format!("its server stopped: {text}"),
            ));
        }
        let choices = chunk
            .choices
            .ok_or_else(|| garbage("sent a chunk without choices"))?;
        self.begun = true;
        self.answer.usage = chunk.usage.unwrap_or(self.answer.usage);
        choices
            .into_iter()
            .filter(|choice| choice.index == 0)
            .try_for_each(|choice| self.answer.add(choice))
    }
}

impl Answer {
    fn add(&mut self, choice: Choice) -> Result<(), SkillError> {
        let words = choice.delta.and_then(|delta| delta.content);
        self.text.push_str(words.as_deref().unwrap_or_default());
        if self.text.len() > self.text_max_bytes {
            return Err(self.too_long());
        }
        if let Some(reason) = choice.finish_reason {
            self.finish_reason = Some(reason.chars().take(FINISH_REASON_CHARS).collect());
        }
        Ok(())
    }

    fn too_long(&self) -> SkillError {
        let most = self.text_max_bytes;
        let text = format!("its server did not end its answer within {most} bytes");
        fault("backend_endless", text)
    }

    /// The skill's result as JSON text. `model` is the owner's word for it: what the server calls it may name a path.
    pub(super) fn result(self, model: &str, limits: &Limits) -> Result<Vec<u8>, SkillError> {
        let result = json!({
            "text": self.text,
            "finish_reason": self.finish_reason.as_deref().unwrap_or("stop"),
            "usage": {
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
            },
            "model": model,
        });
        let bytes = result.to_string().into_bytes();
        if bytes.len() > limits.result_bytes {
            return Err(self.too_long());
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn limits() -> Limits {
        let second = Duration::from_secs(1);
        Limits {
            result_bytes: 2_000,
            total: second,
            first_word: second,
            silence: second,
        }
    }

    /// The stream in pieces of `size` bytes, and then its end.
    fn read(text: &[u8], size: usize) -> Result<Value, SkillError> {
        let mut stream = Stream::new(10, &limits(), "sk-1");
        for piece in text.chunks(size) {
            if stream.hear(piece)? {
                break;
            }
        }
        let result = stream.end()?.result("tiny", &limits())?;
        Ok(serde_json::from_slice(&result).unwrap())
    }

    fn word(text: &str) -> String {
        let chunk = json!({"id": "x", "model": "/a/path", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]});
        format!("data: {chunk}\n\n")
    }

    /// The promise: the same answer comes out however the stream is cut, of every dialect that is about.
    #[test]
    fn an_answer_is_put_together() {
        let end = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}\n\n";
        let role = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\r\n\r\n";
        let other = "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"no\"}}]}\n\n";
        let (one, two) = (word("h\u{e9}l"), word("lo\n"));
        let text = format!(
            ": ping\n\nevent: x\n{role}{one}{other}{two}{end}{usage}data: [DONE]\n\ngarbage"
        );
        for size in [1, 2, 3, 7, 1_000, 10_000] {
            let answer = read(text.as_bytes(), size).unwrap();
            assert_eq!(
                answer,
                json!({"text": "h\u{e9}llo\n", "finish_reason": "stop", "model": "tiny",
                    "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
            );
        }
        // Without a count, without `[DONE]`, and without a last line break.
        let answer = read(format!("{one}{}", end.trim_end()).as_bytes(), 5).unwrap();
        assert_eq!(answer["usage"]["completion_tokens"], Value::Null);
    }

    /// The promise: a lie, a flood and a break end by their codes, and a server's words are cut short.
    #[test]
    fn what_is_no_answer_ends_by_its_code() {
        let deep = format!("data: {}1{}\n\n", "[".repeat(500), "]".repeat(500));
        let nested = format!(
            "data: {{\"x\":{}1{},\"choices\":[]}}\n\n",
            "[".repeat(500),
            "]".repeat(500)
        );
        let words = word("abcdefghij").repeat(300);
        let comments = ": nothing\n".repeat(200_000);
        let long = format!("data: {}", "x".repeat(LINE_BYTES));
        let quotes = format!("{}data: [DONE]\n", word(&"\u{1}".repeat(400)));
        for (text, code) in [
            (&b"data: {\"choices\":\n\n"[..], "backend_garbage"),
            (b"data: {\"choices\":7}\n\n", "backend_garbage"),
            (b"data: {\"usage\":{}}\n\n", "backend_garbage"),
            (b"data: \xff\xfe\n\n", "backend_garbage"),
            (b"data: null\n\n", "backend_garbage"),
            (b"", "backend_garbage"),
            (word("a").as_bytes(), "backend_garbage"),
            (deep.as_bytes(), "backend_garbage"),
            (nested.as_bytes(), "backend_garbage"),
            (long.as_bytes(), "backend_garbage"),
            (words.as_bytes(), "backend_endless"),
            (comments.as_bytes(), "backend_endless"),
            (quotes.as_bytes(), "backend_endless"),
            (
                b"data: {\"error\":{\"message\":\"out of memory\"}}\n\n",
                "backend_refused",
            ),
        ] {
            let error = read(text, 4_096).unwrap_err();
            assert_eq!(
                error.code,
                code,
                "{}",
                shortened(&String::from_utf8_lossy(text))
            );
            assert!(error.message.len() < 300);
        }
        assert_eq!(error_text("{\"error\":\"a\\nb\"}", ""), "a b");
        assert_eq!(error_text("{\"detail\":\"gone\"}", ""), "gone");
        assert_eq!(error_text(&"x".repeat(9_000), "").len(), SAID_CHARS);
        let repeats = b"data: {\"error\":{\"message\":\"wrong key sk-1!\"}}\n";
        let error = read(repeats, 100).unwrap_err();
        assert_eq!(error.message, "its server stopped: wrong key ***!");
        let cut = format!("{}sk-1", "x".repeat(SAID_CHARS - 2));
        assert!(!error_text(&cut, "sk-1").contains("sk"));
    }
}
