//! Peers: trust tiers, what we know of them, and how fast they may ask.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::step::{Ms, Npub};
use crate::wire::binding::Binding;
use crate::wire::market::AdSkill;

/// How far a peer is trusted. The order is the order of service: own before trusted before stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The owner's other nodes: no price, no limit.
    Own,
    /// Admitted by the owner: a credit limit.
    Trusted,
    /// Everyone else.
    Stranger,
}

impl Tier {
    /// The word used on the command line and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Trusted => "trusted",
            Self::Stranger => "stranger",
        }
    }
}

/// What a peer last said of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdFacts {
    /// Skills with listed prices.
    pub skills: Vec<AdSkill>,
    /// Jobs waiting there.
    pub queue: u32,
    /// Paused by its owner.
    pub paused: bool,
    /// Until when this holds.
    pub expires_ms: Ms,
    /// The pool it came through.
    pub pool: String,
    /// Other pools that an ad of it came through before, each until when that one holds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<String, Ms>,
}

/// Most other pools remembered of one peer.
const OTHERS_MAX: usize = 32;

impl AdFacts {
    /// This ad after an older one: a peer in several pools is advertised in each of them, whichever ad came last.
    pub fn after(mut self, old: Option<&Self>, now: Ms) -> Self {
        let Some(old) = old else { return self };
        let others = old.others.iter().map(|(pool, until)| (pool, *until));
        self.others = others
            .chain([(&old.pool, old.expires_ms)])
            .filter(|(pool, until)| **pool != self.pool && *until > now)
            .map(|(pool, until)| (pool.clone(), until))
            .take(OTHERS_MAX)
            .collect();
        self
    }
}

/// A peer as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its Nostr key, hex.
    pub npub: Npub,
    /// Trust.
    pub tier: Tier,
    /// Credit granted by the owner, if other than the tier's default.
    pub limit_mc: Option<u64>,
    /// Its bound Ed25519 proof key, hex, once a binding has verified.
    pub key: Option<String>,
    /// The proof key of the epoch before, hex: its signatures may still be on their way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_before: Option<String>,
    /// Its bound X25519 key, hex.
    pub x25519: Option<String>,
    /// Epoch of the binding.
    pub epoch: u32,
    /// The binding itself, where it is of a later epoch than the first: whoever still speaks under an earlier one is shown it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<Box<Binding>>,
    /// Its LCT.
    pub lct: String,
    /// Where it reads.
    pub relays: Vec<String>,
    /// Its last ad.
    pub ad: Option<AdFacts>,
    /// When a verified message of it last came.
    pub last_seen_ms: Ms,
    /// Tasks settled between us.
    pub completed: u32,
    /// Results of it that we refused with evidence.
    pub frauds: u32,
    /// Credit is frozen until the owner clears it (`peers trust`).
    pub disputed: bool,
    /// Times of its newest tasks within the last minute (not stored).
    #[serde(skip)]
    pub recent: Vec<Ms>,
}

impl Peer {
    /// A peer never seen before.
    pub fn stranger(npub: &str) -> Self {
        Self {
            npub: npub.to_owned(),
            tier: Tier::Stranger,
            limit_mc: None,
            key: None,
            key_before: None,
            x25519: None,
            epoch: 0,
            binding: None,
            lct: String::new(),
            relays: Vec::new(),
            ad: None,
            last_seen_ms: 0,
            completed: 0,
            frauds: 0,
            disputed: false,
            recent: Vec::new(),
        }
    }

    /// Whether this proof key, hex, is bound to the peer.
    pub fn owns(&self, key: &str) -> bool {
        [&self.key, &self.key_before]
            .into_iter()
            .flatten()
            .any(|own| own == key)
    }

    /// Whether the peer's ad in `pool` says that it does `skill` now.
    pub fn advertises(&self, skill: &str, pool: &str, now: Ms) -> bool {
        self.ad.as_ref().is_some_and(|ad| {
            let until = match ad.pool == pool {
                true => Some(&ad.expires_ms),
                false => ad.others.get(pool),
            };
            until.is_some_and(|until| *until > now) && ad.skills.iter().any(|s| s.id == skill)
        })
    }

    /// Whether a new task fits into `per_minute`.
    ///
    /// # Errors
    /// The number of milliseconds after which the next one fits.
    pub fn turn(&self, now: Ms, per_minute: u32) -> Result<(), Ms> {
        let within: Vec<Ms> = self
            .recent
            .iter()
            .copied()
            .filter(|at| at.saturating_add(60_000) > now && *at <= now)
            .collect();
        if within.len() < per_minute as usize {
            return Ok(());
        }
        // The newest `per_minute` tasks fill the minute; the oldest of them has to leave it.
        let leaves = within
            .get(within.len() - (per_minute as usize).max(1).min(within.len()))
            .copied()
            .unwrap_or(now);
        Err(leaves.saturating_add(60_000).saturating_sub(now).max(1))
    }

    /// Counts a new task.
    pub fn count_task(&mut self, now: Ms) {
        self.recent
            .retain(|at| at.saturating_add(60_000) > now && *at <= now);
        self.recent.push(now);
    }
}

#[cfg(test)]
mod tests {
    //! A peer in two pools is known in both.
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn an_ad_in_one_pool_does_not_hide_the_one_in_another() {
        let ad = |pool: &str, expires_ms| AdFacts {
            skills: vec![AdSkill {
                hops_mc: 0,
                id: "simulation".into(),
                unit_price_mc: 1,
            }],
            queue: 0,
            paused: false,
            expires_ms,
            pool: pool.into(),
            others: BTreeMap::new(),
        };
        let mut peer = Peer::stranger("p");
        for (pool, expires_ms, now) in [("a", 100, 0), ("b", 200, 10), ("a", 300, 20)] {
            peer.ad = Some(ad(pool, expires_ms).after(peer.ad.as_ref(), now));
        }
        let known = |pool: &str, now| peer.advertises("simulation", pool, now);
        assert!(known("a", 30) && known("b", 30) && !known("c", 30));
        assert!(known("a", 250) && !known("b", 250));
        assert!(!known("a", 300) && !peer.advertises("other", "a", 30));
        let last = ad("c", 400).after(peer.ad.as_ref(), 250);
        assert_eq!(last.others, BTreeMap::from([("a".to_owned(), 300)]));
    }
}
