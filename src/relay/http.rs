//! The listener and its one HTTP route: a WebSocket upgrade (RFC 6455), the relay information document (NIP-11), or a line for a
//! browser. Sets TCP_NODELAY on every socket; it knows no Nostr message.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::connection;
use super::hub::Hub;

/// How long a client may take to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A pause when the system has no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a client that finds no place may take.
const TURN_AWAY_TIMEOUT: Duration = Duration::from_secs(1);
const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// What every connection's task holds: dropped by the last, it tells that all have ended.
pub(crate) type Alive = mpsc::Sender<Infallible>;

/// Accepts connections until `stop` turns true.
pub(crate) async fn listen(
    listener: TcpListener,
    hub: Arc<Hub>,
    mut stop: watch::Receiver<bool>,
    alive: Alive,
) {
    let room = Arc::new(Semaphore::new(
        hub.config
            .limits
            .max_connections
            .min(Semaphore::MAX_PERMITS),
    ));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the relay cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without it Nagle's algorithm and delayed ACKs add 40 ms to every answer.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            tokio::spawn(turn_away(stream));
            continue;
        };
        let client = Client {
            hub: Arc::clone(&hub),
            stop: stop.clone(),
            _alive: alive.clone(),
            _permit: Arc::new(permit),
        };
        tokio::spawn(client.serve(stream));
    }
}

/// Tells a client that the relay is full. Its request is read first: closing a socket with unread data would discard the answer.
async fn turn_away(mut stream: TcpStream) {
    let mut request = [0; 4_096];
    let answer = async {
        let _ = stream.read(&mut request).await?;
        stream.write_all(BUSY).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(TURN_AWAY_TIMEOUT, answer).await;
}

/// What a connection's tasks share.
#[derive(Clone)]
struct Client {
    hub: Arc<Hub>,
    stop: watch::Receiver<bool>,
    _alive: Alive,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Client {
    async fn serve(self, stream: TcpStream) {
        let mut stop = self.stop.clone();
        let service = service_fn(move |request| {
            let answer = self.clone().answer(request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::select! {
            served = served => if let Err(error) = served {
                tracing::debug!(%error, "a client's HTTP request failed");
            },
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    fn answer(self, request: Request<Incoming>) -> Response<String> {
        if request.method() != Method::GET {
            return respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", String::new());
        }
        let headers = request.headers();
        if has_token(headers, &header::UPGRADE, "websocket")
            && has_token(headers, &header::CONNECTION, "upgrade")
        {
            return self.upgrade(request);
        }
        if has_token(headers, &header::ACCEPT, "application/nostr+json") {
            return respond(StatusCode::OK, "application/nostr+json", self.information());
        }
        let text = format!(
            "{}: a Nostr relay. Connect to {} with a Nostr client.\n",
            self.hub.config.name, self.hub.url
        );
        respond(StatusCode::OK, "text/plain; charset=utf-8", text)
    }

    fn upgrade(self, request: Request<Incoming>) -> Response<String> {
        let headers = request.headers();
        let accept = headers
            .get(header::SEC_WEBSOCKET_KEY)
            .map(|key| derive_accept_key(key.as_bytes()));
        let Some(accept) = accept.and_then(|accept| HeaderValue::from_str(&accept).ok()) else {
            return respond(
                StatusCode::BAD_REQUEST,
                "text/plain",
                "sec-websocket-key is missing\n".to_owned(),
            );
        };
        if headers
            .get(header::SEC_WEBSOCKET_VERSION)
            .is_none_or(|version| version != "13")
        {
            let mut response = respond(StatusCode::UPGRADE_REQUIRED, "text/plain", String::new());
            response.headers_mut().insert(
                header::SEC_WEBSOCKET_VERSION,
                HeaderValue::from_static("13"),
            );
            return response;
        }
        tokio::spawn(async move {
            match hyper::upgrade::on(request).await {
                Ok(upgraded) => {
                    connection::serve(
                        Arc::clone(&self.hub),
                        TokioIo::new(upgraded),
                        self.stop.clone(),
                    )
                    .await
                }
                Err(error) => tracing::debug!(%error, "a client's upgrade failed"),
            }
            drop(self);
        });
        let mut response = Response::new(String::new());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        response
    }

    /// NIP-11.
    fn information(&self) -> String {
        let (config, limits) = (&self.hub.config, &self.hub.config.limits);
        json!({
            "name": config.name,
            "description": config.description,
            "software": env!("CARGO_PKG_NAME"),
            "version": env!("CARGO_PKG_VERSION"),
            "supported_nips": [1, 9, 11, 40, 42, 45, 70],
            "limitation": {
                "max_message_length": limits.max_message_bytes,
                "max_content_length": limits.max_event_bytes,
                "max_subscriptions": limits.max_subscriptions,
                "max_filters": limits.max_filters,
                "max_limit": limits.max_query_events,
                "default_limit": limits.max_query_events,
                "max_subid_length": limits.max_subscription_id_chars,
                "created_at_upper_limit": limits.max_future_s,
                "min_pow_difficulty": 0,
                "auth_required": false,
                "payment_required": false,
                "restricted_writes": false,
            },
        })
        .to_string()
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    // NIP-11: web clients read the document from other origins.
    for name in [
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        header::ACCESS_CONTROL_ALLOW_METHODS,
    ] {
        headers.insert(name, HeaderValue::from_static("*"));
    }
    response
}

/// Whether a comma-separated header names a token, parameters aside.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| {
            part.split(';')
                .next()
                .unwrap_or(part)
                .trim()
                .eq_ignore_ascii_case(token)
        })
}
