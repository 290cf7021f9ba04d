//! What the decisions promise, one file per promise: money, history, matching, hostile input, the same bytes everywhere.

mod canceled;
mod claims;
mod crowd;
mod endless;
mod greed;
mod history;
mod hops;
mod hostile;
mod late;
mod ledger;
mod market;
pub(crate) mod pair;
mod pause;
mod restored;
mod rotation;
mod same_bytes;
