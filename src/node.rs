//! The node room.
pub mod control;
