//! How many strangers are remembered, and who is forgotten first, so that newcomers cannot fill the memory. It must not know what
//! a peer is remembered for.

use std::collections::BTreeSet;

use super::Node;
use super::engagement::Stage;
use super::ledger::Side;
use super::peer::Tier;
use super::step::{Change, Ms, Npub};

/// A pass over all peers makes room for this part of them, so that a newcomer costs a bounded part of a pass.
const BATCH_PART: usize = 16;
/// Disputed strangers may be this part of all peers.
const DISPUTED_PART: usize = 4;

/// Strangers that may go, those to be forgotten first in front.
struct Crowd {
    /// Nothing is open or owed: by when they were seen.
    idle: Vec<(Ms, Npub)>,
    /// In dispute, with no work under way: by what they owe, then by when they were seen.
    disputed: Vec<(u64, Ms, Npub)>,
}

impl Node {
    /// Forgets strangers when too many peers are known: those unseen for longest, and of those in dispute, when they are more
    /// than their part, whoever owes the least. What a forgotten one owes is given up, and the journal says so.
    pub(super) fn make_room(&mut self, now: Ms, newcomer: &str) {
        let most = self.policy.peers_max as usize;
        if self.peers.len() < self.crowded_at.max(most) || self.peers.contains_key(newcomer) {
            return;
        }
        let batch = (most / BATCH_PART).max(1);
        let crowd = self.crowd();
        let over = crowd.disputed.len().saturating_sub(most / DISPUTED_PART);
        for (claim_mc, _, npub) in crowd.disputed.into_iter().take(over) {
            self.write_off(now, &npub);
            let body = serde_json::json!({"npub": npub, "claim_mc": claim_mc});
            self.journal("dispute_dropped", None, body);
            self.forget(&npub);
        }
        let room = (self.peers.len().saturating_add(batch)).saturating_sub(most);
        for (_, npub) in crowd.idle.into_iter().take(room) {
            self.forget(&npub);
        }
        // Where nobody could go, the next pass waits for as many newcomers as it may make room for.
        self.crowded_at = self.peers.len().saturating_add(batch);
    }

    fn forget(&mut self, npub: &str) {
        self.peers.remove(npub);
        self.dirty.peers.remove(npub);
        self.out.changes.push(Change::DropPeer(npub.to_owned()));
    }

    fn crowd(&self) -> Crowd {
        let locked: BTreeSet<&str> = (self.ledger.locks())
            .map(|(key, _)| key.1.as_str())
            .collect();
        let hired = (self.ledger.locks())
            .filter(|(key, _)| key.0 == Side::Requester)
            .map(|(key, _)| key.1.as_str());
        let served = (self.work.values())
            .filter(|w| w.is_live() && !matches!(w.stage, Stage::Overdue | Stage::Disputed))
            .map(|w| w.requester.as_str());
        let under_way: BTreeSet<&str> = hired.chain(served).collect();
        let mut crowd = Crowd {
            idle: Vec::new(),
            disputed: Vec::new(),
        };
        let strangers = self.peers.values().filter(|p| p.tier == Tier::Stranger);
        for peer in strangers.filter(|p| !under_way.contains(p.npub.as_str())) {
            let (npub, seen_ms) = (peer.npub.clone(), peer.last_seen_ms);
            if peer.disputed {
                let claim_mc = self.ledger.exposure_mc(&npub);
                crowd.disputed.push((claim_mc, seen_ms, npub));
            } else if self.ledger.account(&npub).posted_mc == 0 && !locked.contains(npub.as_str()) {
                crowd.idle.push((seen_ms, npub));
            }
        }
        crowd.idle.sort();
        crowd.disputed.sort();
        crowd
    }
}
