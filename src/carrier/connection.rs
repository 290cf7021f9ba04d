//! One relay's task: connect, run a session, wait, again, until stopped. While there is no session it answers every
//! publication at once, so that the node's outbox can decide.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nostr::RelayUrl;
use nostr::types::url::Host;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{client_async_tls_with_config, connect_async_with_config};

use super::backoff::Backoff;
use super::delivery::Delivery;
use super::handle::Desired;
use super::session::{End, Session, Socket, Wires};
use super::types::{CarrierConfig, Outcome, Outgoing, RelayState, shorten};
use crate::wire::bounds::is_public_address;

pub(crate) struct Connection {
    pub(crate) config: Arc<CarrierConfig>,
    pub(crate) relay: RelayUrl,
    /// Named by somebody else: never reached at an address of this machine or of a private network.
    pub(crate) foreign: bool,
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
            let connecting = connect(self.config.clone(), self.relay.clone(), self.foreign);
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

async fn connect(
    config: Arc<CarrierConfig>,
    relay: RelayUrl,
    foreign: bool,
) -> Result<Socket, String> {
    // Chosen explicitly: with two providers in the dependency tree rustls would refuse to choose. Fails if done before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let limits = WebSocketConfig::default()
        .read_buffer_size(64 << 10)
        .write_buffer_size(64 << 10)
        .max_write_buffer_size(config.max_in_flight_bytes.saturating_add(4 << 20))
        .max_message_size(Some(config.max_message_bytes))
        .max_frame_size(Some(config.max_message_bytes));
    let url = relay.to_string();
    let connecting = async {
        let connected = if foreign {
            let stream = public_stream(&relay).await?;
            client_async_tls_with_config(url, stream, Some(limits), None).await
        } else {
            connect_async_with_config(url, Some(limits), true).await
        };
        connected.map_err(|error| error.to_string())
    };
    match timeout(Duration::from_millis(config.connect_timeout_ms), connecting).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(error)) => Err(shorten(&error)),
        Err(_) => Err(format!(
            "no connection within {} ms",
            config.connect_timeout_ms
        )),
    }
}

/// Connects to a relay that somebody else named: to the very addresses that were looked at, so that a name cannot mean another one
/// a moment later.
async fn public_stream(relay: &RelayUrl) -> Result<TcpStream, String> {
    let uri: Uri = (relay.as_str().parse()).map_err(|_| "not an address".to_owned())?;
    let secure = uri.scheme_str() == Some("wss");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let found: Vec<SocketAddr> = match relay.host() {
        Some(Host::Ipv4(ip)) => vec![(ip, port).into()],
        Some(Host::Ipv6(ip)) => vec![(ip, port).into()],
        Some(Host::Domain(name)) => lookup_host((name, port))
            .await
            .map_err(|error| error.to_string())?
            .collect(),
        None => Vec::new(),
    };
    let stream = TcpStream::connect(only_public(found)?.as_slice())
        .await
        .map_err(|error| error.to_string())?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// The addresses, if each of them is public: a name that also stands for a private one is not to be trusted with any.
fn only_public(found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, String> {
    match found
        .iter()
        .find(|address| !is_public_address(address.ip()))
    {
        Some(private) => Err(format!(
            "relay_private_address: somebody else named this relay and it lies at {}, which is not public; if it is yours, list it in your configuration",
            private.ip()
        )),
        None if found.is_empty() => Err("the name has no address".to_owned()),
        None => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    //! Names are stood in for by what they resolve to.
    use super::*;

    fn of(addresses: &[&str]) -> Result<Vec<SocketAddr>, String> {
        only_public(addresses.iter().flat_map(|a| a.parse()).collect())
    }

    #[test]
    fn a_foreign_name_must_resolve_to_public_addresses_alone() {
        let public = ["1.1.1.1:443", "[2606:4700::1111]:443"];
        assert_eq!(of(&public).map(|found| found.len()), Ok(2));
        for private in [
            "127.0.0.1:443",
            "10.0.0.1:443",
            "192.168.1.1:443",
            "169.254.169.254:80",
            "100.64.0.1:443",
            "[::1]:443",
            "[fd00::1]:443",
            "[fe80::1]:443",
            "[::ffff:10.0.0.1]:443",
        ] {
            for all in [
                vec![private],
                vec![public[0], private],
                vec![private, public[1]],
            ] {
                let refused = of(&all).err().unwrap_or_default();
                assert!(
                    refused.starts_with("relay_private_address"),
                    "{all:?}: {refused}"
                );
            }
        }
        assert!(of(&[]).is_err());
    }
}
