//! The connection to the owner's server: one request each, HTTP/1.1 over TCP, to the address of the configuration and no other. It
//! follows no redirect and reads no proxy from its environment. It must not know what an answer means.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::pin::Pin;

use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, timeout, timeout_at};
use zeroize::Zeroizing;

use super::answer::{Answer, Limits, Stream, error_text, fault, garbage};
use crate::config::Endpoint;
use crate::labor::skills::SkillError;

const CONNECT: Duration = Duration::from_secs(5);
/// Status line and headers of an answer.
const HEAD_BYTES: usize = 64 << 10;
/// What is read of an error's body, and how long.
const ERROR_BYTES: usize = 8 << 10;
const ERROR_TIME: Duration = Duration::from_secs(2);
const KEY_BYTES: usize = 4 << 10;

/// A secret of the owner's: in no `Debug`, error or argument.
pub(super) struct Key(Zeroizing<String>);

/// # Errors
/// For a person; it never holds what was read.
pub(super) fn read_key(path: &Path) -> Result<Key, String> {
    let fault = |what: &str| format!("api_key_file `{}`: {what}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| fault(&error.to_string()))?;
    let text = Zeroizing::new(text);
    let key = text.trim();
    if key.is_empty() || key.len() > KEY_BYTES || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(fault("it holds no key: one word in ASCII is expected"));
    }
    Ok(Key(Zeroizing::new(key.to_owned())))
}

pub(super) struct Client {
    endpoint: Endpoint,
    key: Option<Key>,
    /// As it was resolved before the sandbox; empty if it could not be.
    addresses: Vec<SocketAddr>,
}

/// An open answer; when it is dropped the connection is closed.
struct Open {
    response: Response<Incoming>,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// How long one thing may be waited for.
struct Patience {
    ends: Instant,
    silence: Duration,
}

impl Patience {
    /// `flowing`: whether the answer was on its way, so that its end is what is missing.
    async fn wait<T>(
        &self,
        flowing: bool,
        future: impl Future<Output = T>,
    ) -> Result<T, SkillError> {
        let silent = Instant::now() + self.silence;
        let result = timeout_at(silent.min(self.ends), future).await;
        result.map_err(|_| {
            if flowing && self.ends < silent {
                let text = "its server had not ended its answer when the time was over";
                return fault("backend_endless", text.to_owned());
            }
            let text = "its server fell silent";
            fault("backend_stalled", text.to_owned())
        })
    }
}

fn unreachable(what: &str) -> SkillError {
    fault("backend_unreachable", format!("its server {what}"))
}

impl Client {
    pub(super) fn new(endpoint: Endpoint, key: Option<Key>) -> Self {
        let found = (endpoint.host.as_str(), endpoint.port).to_socket_addrs();
        Self {
            addresses: found.map(Iterator::collect).unwrap_or_default(),
            endpoint,
            key,
        }
    }

    /// Whether another look might find the server elsewhere: only before the sandbox can a name be resolved.
    pub(super) fn is_named(&self) -> bool {
        self.endpoint.host.parse::<std::net::IpAddr>().is_err()
    }

    /// Whether a server answers there and takes the key. What it answers is of no interest, nor whether it lists models at all.
    pub(super) async fn reach(&self) -> Result<(), SkillError> {
        let mut open = self.send(Method::GET, "/models", String::new()).await?;
        match open.response.status() {
            status if status.is_success() => Ok(()),
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(()),
            _ => Err(self.refusal(&mut open).await),
        }
    }

    /// Asks for a completion and reads it to its end.
    pub(super) async fn ask(
        &self,
        body: String,
        tokens: u64,
        limits: Limits,
    ) -> Result<Answer, SkillError> {
        let mut patience = Patience {
            ends: Instant::now() + limits.total,
            silence: limits.first_word,
        };
        let sent = self.send(Method::POST, "/chat/completions", body);
        let mut open = patience.wait(false, sent).await??;
        if open.response.status() != StatusCode::OK {
            return Err(self.refusal(&mut open).await);
        }
        let kind = open.response.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            return Err(garbage("did not answer with a stream"));
        }
        let mut stream = Stream::new(tokens, &limits, self.hidden());
        loop {
            if stream.begun {
                patience.silence = limits.silence;
            }
            let piece = next(open.response.body_mut());
            match patience.wait(stream.begun, piece).await? {
                Some(Ok(bytes)) => {
                    if stream.hear(&bytes)? {
                        return stream.end();
                    }
                    if Instant::now() >= patience.ends {
                        // A flood never lets anybody wait.
                        let over = std::future::pending::<()>();
                        patience.wait(true, over).await?;
                    }
                }
                Some(Err(_)) => return Err(unreachable("broke off in the middle of its answer")),
                None => return stream.end(),
            }
        }
    }

    async fn send(&self, method: Method, path: &str, body: String) -> Result<Open, SkillError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| unreachable("closed the connection"))?;
        let connection = tokio::spawn(async move {
            // Its end is seen by who reads the answer.
            let _ = connection.await;
        });
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.endpoint.path))
            .header(HOST, self.endpoint.authority())
            .header(ACCEPT, "text/event-stream, application/json")
            .header(CONTENT_TYPE, "application/json");
        if let Some(Key(key)) = &self.key {
            let value = Zeroizing::new(format!("Bearer {}", key.as_str()));
            if let Ok(mut value) = HeaderValue::from_str(&value) {
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
        }
        let request = request.body(body);
        let request = request.map_err(|_| unreachable("has an address that cannot be asked"))?;
        match sender.send_request(request).await {
            Ok(response) => Ok(Open {
                response,
                connection,
            }),
            Err(error) => {
                connection.abort();
                Err(if error.is_parse() {
                    garbage("does not speak HTTP/1.1")
                } else {
                    unreachable("closed the connection")
                })
            }
        }
    }

    async fn connect(&self) -> Result<TcpStream, SkillError> {
        let mut last = unreachable("has an address that cannot be resolved");
        for address in &self.addresses {
            match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // A request goes out whole; waiting to fill a packet gains nothing.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => {
                    last = unreachable(&format!("cannot be reached: {}", error.kind()))
                }
                Err(_) => last = unreachable("cannot be reached: no answer"),
            }
        }
        Err(last)
    }

    /// An answer other than 200, with a little of what it says. A redirect's text is of no use: nobody goes there.
    async fn refusal(&self, open: &mut Open) -> SkillError {
        let status = open.response.status();
        let mut text = Vec::new();
        if !status.is_redirection() {
            let read = async {
                while let Some(Ok(bytes)) = next(open.response.body_mut()).await {
                    let room = ERROR_BYTES - text.len();
                    text.extend(bytes.iter().take(room));
                    if text.len() == ERROR_BYTES {
                        break;
                    }
                }
            };
            let _ = timeout(ERROR_TIME, read).await;
        }
        let said = error_text(&String::from_utf8_lossy(&text), self.hidden());
        let colon = if said.is_empty() { "" } else { ": " };
        let number = status.as_u16();
        let text = format!("its server answered {number}{colon}{said}");
        fault("backend_refused", text)
    }

    fn hidden(&self) -> &str {
        self.key.as_ref().map_or("", |Key(key)| key.as_str())
    }
}

/// The next bytes of a body; what else a body may hold is passed over.
async fn next(body: &mut Incoming) -> Option<Result<hyper::body::Bytes, hyper::Error>> {
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        match frame {
            None => return None,
            Some(Err(error)) => return Some(Err(error)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => return Some(Ok(bytes)),
                Err(_) => continue,
            },
        }
    }
}
