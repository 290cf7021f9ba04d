//! The wire room.
pub mod merkle;
