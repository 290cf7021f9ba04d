//! The running node: the only room that joins the others.
//!
//! `core` is the one loop on its own thread. Around it run tasks that never decide anything: `inbox` verifies what
//! arrives, `delivery` seals and sends, `leases` speaks with the worker processes, `presence` keeps subscriptions and
//! ads, `control` serves the owner's commands. They talk to the loop by its [`Mailbox`] alone.

pub mod backup;
mod batch;
mod chores;
pub mod clock;
mod contact;
pub mod control;
pub mod core;
pub mod crash;
pub mod delivery;
mod error;
pub mod handlers;
pub mod inbox;
pub mod leases;
pub mod order;
mod perform;
pub mod pools;
pub mod presence;
pub(crate) mod recovery;
pub mod results;
pub mod rows;
pub mod sealer;
mod signals;
pub mod start;
pub mod transfer;
pub mod view;
mod workers;

use std::sync::Arc;
use std::sync::mpsc::Sender;

use tokio::sync::Semaphore;

pub use error::NodeError;
pub use start::{NodeParts, up};
pub use workers::{check_own_skills, own_skill_warnings, own_skills};

/// The way into the loop. Facts always fit; arrivals wait for room, so that a flood slows the socket and not the node.
#[derive(Clone)]
pub struct Mailbox {
    mails: Sender<order::Mail>,
    room: Arc<Semaphore>,
}

impl Mailbox {
    /// A mailbox in which `depth` arrivals may wait.
    pub fn new(mails: Sender<order::Mail>, depth: usize) -> Self {
        Self {
            mails,
            room: Arc::new(Semaphore::new(depth.clamp(1, Semaphore::MAX_PERMITS / 2))),
        }
    }

    /// Puts a fact, a command or a look into the mailbox. After the loop has ended this does nothing.
    pub fn post(&self, mail: order::Mail) {
        let _ = self.mails.send(mail);
    }

    /// Puts an arrival into the mailbox, waiting for room.
    pub async fn deliver(&self, mail: order::Mail) {
        if let Ok(permit) = self.room.acquire().await {
            permit.forget();
        }
        self.post(mail);
    }

    /// The loop has taken this many arrivals.
    fn handled(&self, arrivals: usize) {
        self.room.add_permits(arrivals);
    }
}
