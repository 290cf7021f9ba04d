//! Legion: a sovereign peer-to-peer node that lends and hires labor.

pub mod carrier;
pub mod cli;
pub mod config;
pub mod domain;
pub mod identity;
pub mod labor;
pub mod node;
#[cfg(feature = "relay")]
pub mod relay;
pub mod store;
pub mod wire;
