//! One test binary, a module per promise that the project makes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cli;
#[cfg(feature = "relay")]
mod relay;
mod tidy;

mod support {
    #[cfg(feature = "relay")]
    pub(crate) mod npm_relay;
}
