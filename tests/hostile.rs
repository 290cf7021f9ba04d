//! Hostile input: whatever a stranger sends, it is counted under its own code, the node lives, and nothing else changes.

mod cheat;
mod envelope;
mod executor;
mod local;
mod message;
mod requester;

use serde_json::json;

use crate::support::stranger::Stranger;
use crate::support::world::{Node, Relay};

/// A node on a relay of its own.
struct Target {
    _dir: tempfile::TempDir,
    relay: Relay,
    node: Node,
}

impl Target {
    fn start() -> Self {
        Self::with(|_| {})
    }

    fn with(prepare: impl FnOnce(&Node)) -> Self {
        let relay = Relay::start();
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::init(dir.path(), "target", &[&relay.url]);
        prepare(&node);
        node.up();
        Self {
            _dir: dir,
            relay,
            node,
        }
    }

    /// Somebody that the node has never seen.
    fn stranger(&self) -> Stranger {
        Stranger::on(&self.relay.url)
    }

    /// Somebody that the owner trusts, up to this credit.
    fn trusted(&self, limit_mc: u64) -> Stranger {
        let stranger = self.stranger();
        self.trust(&stranger, limit_mc);
        stranger
    }

    fn trust(&self, stranger: &Stranger, limit_mc: u64) {
        let limit = limit_mc.to_string();
        self.node.ok(&[
            "peers",
            "trust",
            &stranger.npub(),
            "--tier",
            "trusted",
            "--limit",
            &limit,
        ]);
    }

    /// The account of a peer in the node's book.
    fn account(&self, peer: &Stranger) -> serde_json::Value {
        let book = self.node.call("ledger/get", json!({"npub": peer.npub()}));
        book["result"]["accounts"][0].clone()
    }
}
