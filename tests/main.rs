//! tests
#[cfg(feature = "labor")]
mod labor;
