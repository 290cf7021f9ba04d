//! Legion: a sovereign peer-to-peer node that lends and hires labor.

pub mod cli;
pub mod node;
pub mod carrier;
#[cfg(feature = "relay")]
pub mod relay;
pub mod labor;
pub mod store;
pub mod domain;
pub mod wire;
pub mod identity;
pub mod config;
