//! How envelopes travel between nodes: today over Nostr relays, next over libp2p streams and HTTP.
//!
//! A carrier moves signed events and reports what became of them. It must not know what is inside: it neither verifies, nor
//! decrypts, nor decides. `wire::verify` does the first two, the node's durable outbox and inbox the rest. Every other
//! carrier offers the same story: hand over an [`Outgoing`], read [`CarrierEvent`]s.
//!
//! # Why a relay client of our own
//!
//! nostr-sdk's relay pool is not used. It is unmaintained (RUSTSEC-2026-0243); its broadcast notifications drop events
//! silently when a reader lags; its verification cache accepts a tampered body under an id it has seen; and it signs AUTH
//! with one key per client, where a Legion connection reads several inboxes (own, per job, pool), each with its own key.
//!
//! # How a connection lives
//!
//! One task per relay owns one WebSocket. It connects (TCP_NODELAY), opens the *live* subscriptions, then reads *history*
//! page by page, and says [`RelayState::CaughtUp`] once the relay has nothing older to tell. Stored wraps (kind 1059) are
//! asked for alone, since some relays silently leave them out of a mixed request; ephemeral wraps (21059) have a request of
//! their own. When the reader of the events is slow, the socket is read slower: an event that arrived is never dropped.
//!
//! **Where people go wrong:** [`Handle::publish`] waits while a relay's queue is full. Call it from another task than the
//! one that reads the events, or use [`Handle::try_publish`].

mod auth;
mod backoff;
mod connection;
mod delivery;
mod frame;
mod handle;
mod in_flight;
mod inbox;
mod session;
mod types;

pub use handle::{Handle, RelayCarrier};
pub use types::{
    CarrierConfig, CarrierError, CarrierEvent, InboxSpec, Outcome, Outgoing, RelayState,
    RelayStatus,
};
