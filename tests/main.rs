//! One test binary, a module per promise that the project makes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cli;
mod tidy;
