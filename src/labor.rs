//! The labor room.
