//! One test binary, a module per promise that the project makes.

#[cfg(feature = "relay")]
mod carrier;
