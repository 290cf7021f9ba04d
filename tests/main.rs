//! Legion's tests: one binary, a module per promise.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod store;
