//! The carrier room.
