//! Legion's tests: one binary, a module per promise.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support {
    #[cfg(all(feature = "relay", feature = "labor"))]
    pub(crate) mod liar;
    #[cfg(feature = "relay")]
    pub(crate) mod npm_relay;
    #[cfg(all(feature = "relay", feature = "labor"))]
    pub(crate) mod openai;
    pub(crate) mod shape;
    #[cfg(all(feature = "relay", feature = "labor"))]
    pub(crate) mod stranger;
    #[cfg(all(feature = "relay", feature = "labor"))]
    pub(crate) mod world;
}

#[cfg(feature = "relay")]
mod carrier;
mod cli;
#[cfg(all(feature = "relay", feature = "labor"))]
mod contract;
#[cfg(all(feature = "relay", feature = "labor"))]
mod crash;
#[cfg(all(feature = "relay", feature = "labor"))]
mod demo;
mod domain;
#[cfg(all(feature = "relay", feature = "labor"))]
mod hops;
mod hostile;
#[cfg(feature = "labor")]
mod labor;
#[cfg(all(feature = "relay", feature = "labor"))]
mod outage;
#[cfg(all(feature = "relay", feature = "labor"))]
mod own_skill;
#[cfg(all(feature = "relay", feature = "labor"))]
mod owner;
#[cfg(all(feature = "relay", feature = "labor"))]
mod path;
#[cfg(all(feature = "labor", feature = "relay"))]
mod payload;
#[cfg(all(feature = "relay", feature = "labor"))]
mod pools;
#[cfg(feature = "relay")]
mod relay;
mod sim;
mod store;
mod tidy;
