//! What travels. Here foreign bytes become verified messages, and ours become envelopes; everything that is signed is signed
//! over one canonical form. This room must not know relays, sockets, the store, nor what a node decides about a message.

pub mod binding;
pub mod canonical;
pub mod envelope;
pub mod verify;
