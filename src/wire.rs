//! What travels between nodes: envelopes, JSON-RPC messages, offers, bids, awards, proofs and history entries.
//!
//! The room is plain data and pure functions: it knows how foreign bytes become a [`verify::Verified`] rumor and how a
//! rumor's content becomes typed [`message::Message`]s, and it knows nothing of sockets, stores or clocks.

pub mod binding;
pub mod bounds;
pub mod canonical;
pub mod entry;
pub mod envelope;
pub mod log;
pub mod market;
pub mod merkle;
pub mod message;
pub mod proof;
pub mod transfer;
pub mod verify;
