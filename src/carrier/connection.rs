//! One relay's task: connect, run a session, wait, again, until stopped. While there is no session it answers every
//! publication at once, so that the node's outbox can decide.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use nostr::RelayUrl;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_tungstenite::connect_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::backoff::Backoff;
use super::delivery::Delivery;
use super::handle::Desired;
use super::session::{End, Session, Socket, Wires};
use super::types::{CarrierConfig, Outcome, Outgoing, RelayState, shorten};

pub(crate) struct Connection {
    pub(crate) config: Arc<CarrierConfig>,
    pub(crate) relay: RelayUrl,
    pub(crate) delivery: Delivery,
    pub(crate) commands: mpsc::Receiver<Outgoing>,
    pub(crate) desired: watch::Receiver<Desired>,
    pub(crate) stop: oneshot::Receiver<()>,
}

impl Connection {
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(self.config.backoff_first_ms, self.config.backoff_cap_ms);
        loop {
            self.delivery.state(RelayState::Connecting);
            let connecting = connect(self.config.clone(), self.relay.to_string());
            let Some(connected) = self.meanwhile(connecting).await else {
                break;
            };
            let reason = match connected {
                Err(reason) => reason,
                Ok(socket) => {
                    self.delivery.state(RelayState::Connected);
                    let session = Session::new(self.config.clone(), self.relay.clone(), socket);
                    let mut wires = Wires {
                        delivery: &mut self.delivery,
                        commands: &mut self.commands,
                        desired: &mut self.desired,
                        stop: &mut self.stop,
                    };
                    match session.run(&mut wires).await {
                        End::Stopped => break,
                        End::Lost { reason, healthy } => {
                            if healthy {
                                backoff.reset();
                            }
                            reason
                        }
                    }
                }
            };
            let delay = backoff.next_delay();
            tracing::debug!(relay = %self.relay, %reason, ?delay, "relay connection lost");
            let retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            self.delivery.state(RelayState::Disconnected {
                reason,
                retry_in_ms,
            });
            if self.meanwhile(tokio::time::sleep(delay)).await.is_none() {
                break;
            }
        }
        self.commands.close();
        while let Ok(outgoing) = self.commands.try_recv() {
            self.delivery
                .published(outgoing.event_id, Outcome::Unknown("stopped".into()));
        }
        // As far as the channel has room; who drops the handle may never read it again.
        self.delivery.deliver_ready();
    }

    /// Does what can be done without a connection until the future is ready. `None`: stopped.
    async fn meanwhile<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        loop {
            if !self.delivery.deliver_ready() {
                return None;
            }
            let waiting = self.delivery.waiting();
            tokio::select! {
                output = &mut future => return Some(output),
                command = self.commands.recv(), if waiting < self.config.pending_events.max(1) => {
                    self.delivery.published(command?.event_id, Outcome::Unknown("not connected".into()));
                }
                delivered = self.delivery.deliver_one(), if waiting > 0 => if !delivered { return None },
                _ = &mut self.stop => return None,
            }
        }
    }
}

async fn connect(config: Arc<CarrierConfig>, url: String) -> Result<Socket, String> {
    // Chosen explicitly: with two providers in the dependency tree rustls would refuse to choose. Fails if done before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let limits = WebSocketConfig::default()
        .read_buffer_size(64 << 10)
        .write_buffer_size(64 << 10)
        .max_write_buffer_size(config.max_in_flight_bytes.saturating_add(4 << 20))
        .max_message_size(Some(config.max_message_bytes))
        .max_frame_size(Some(config.max_message_bytes));
    let connecting = connect_async_with_config(url, Some(limits), true);
    match timeout(Duration::from_millis(config.connect_timeout_ms), connecting).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(error)) => Err(shorten(&error.to_string())),
        Err(_) => Err(format!(
            "no connection within {} ms",
            config.connect_timeout_ms
        )),
    }
}
