//! What this node wants, and what it lets others ask: plain settings, and permissions by tier, role, skill and peer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::peer::{Peer, Tier};
use super::step::{Ms, Refused};
use crate::wire::binding::Binding;

/// What somebody may ask of this node. An absent limit is no limit at this level; levels combine to the narrowest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Permission {
    /// May not ask at all.
    pub deny: bool,
    /// Most milli-credits of work outstanding (posted + pending).
    pub budget_mc: Option<u64>,
    /// Price of one unit, milli-credits, instead of the skill's list price.
    pub unit_price_mc: Option<u64>,
    /// Most engagements at once.
    pub concurrency: Option<u32>,
    /// New tasks a minute.
    pub rate_per_min: Option<u32>,
}

impl Permission {
    fn narrow(&mut self, other: &Self) {
        fn least<T: Ord + Copy>(a: Option<T>, b: Option<T>) -> Option<T> {
            match (a, b) {
                (Some(x), Some(y)) => Some(x.min(y)),
                (x, y) => x.or(y),
            }
        }
        self.deny |= other.deny;
        self.budget_mc = least(self.budget_mc, other.budget_mc);
        self.concurrency = least(self.concurrency, other.concurrency);
        self.rate_per_min = least(self.rate_per_min, other.rate_per_min);
        // The more particular level names the price.
        self.unit_price_mc = other.unit_price_mc.or(self.unit_price_mc);
    }
}

/// Permissions at every level. Later levels narrow earlier ones: tier, LCT role, skill, peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Permissions {
    /// By tier: `own trusted stranger`.
    pub tier: BTreeMap<String, Permission>,
    /// By the role in the peer's LCT (the part after `#`).
    pub role: BTreeMap<String, Permission>,
    /// By skill id.
    pub skill: BTreeMap<String, Permission>,
    /// By Nostr key, hex.
    pub peer: BTreeMap<String, Permission>,
}

/// A skill that this node offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkillFacts {
    /// Skill id.
    pub id: String,
    /// List price of one unit, milli-credits.
    pub unit_price_mc: u64,
    /// Rough time of one unit, for estimates in bids.
    pub unit_eta_ms: u64,
}

/// Everything that the decisions need to know of this node. All durations in milliseconds unless the name says otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// This node's Nostr key, hex.
    pub me: String,
    /// This node's Ed25519 proof key, hex.
    pub key: String,
    /// This node's LCT.
    pub lct: String,
    /// Cross-signed keys.
    pub binding: Binding,
    /// Inbox relays.
    pub relays: Vec<String>,
    /// Pools joined.
    pub pools: Vec<String>,
    /// Skills offered; empty if the node does not lend.
    pub skills: Vec<SkillFacts>,
    /// Device and implementation for bids and proofs.
    pub device: String,
    /// For example `legion/0.1.0`.
    pub implementation: String,
    /// Who may ask for what.
    pub permissions: Permissions,
    /// Default for `ask --max-price`.
    pub default_max_price_mc: u64,
    /// Credit granted to a trusted peer by default.
    pub trusted_limit_mc: u64,
    /// Credit granted to all strangers together.
    pub stranger_cap_mc: u64,
    /// Wait for further bids after the first.
    pub bid_window_ms: Ms,
    /// Time an auction's winner has to accept.
    pub accept_within_ms: Ms,
    /// Allowance for differing clocks.
    pub skew_ms: Ms,
    /// Time to live of a lease without keep-alive.
    pub lease_ttl_ms: Ms,
    /// Receipt or refusal is due this long after the deadline.
    pub settle_within_ms: Ms,
    /// Longest hibernation to wait for.
    pub max_hibernate_s: u64,
    /// How long an offer holds before it is made anew.
    pub offer_ttl_ms: Ms,
    /// Ads hold this long.
    pub ad_ttl_ms: Ms,
    /// `free` or `units`.
    pub on_cancel: String,
    /// Verification method asked for.
    pub verification: String,
    /// Units to recompute ([`super::requester::sample_size`]).
    pub forged_share_bp: u32,
    /// Wanted probability of detection, basis points.
    pub detection_bp: u32,
    /// Quality from which a result is paid, basis points.
    pub pay_from_bp: u32,
    /// Leases at once.
    pub leases_max: u32,
    /// Bids kept per offer.
    pub bids_max: u32,
    /// Open engagements per peer.
    pub tasks_per_peer_max: u32,
    /// Peers remembered; strangers beyond are forgotten, longest unseen first.
    pub peers_max: u32,
    /// Longest that an answer may take to be delivered.
    pub message_ttl_ms: Ms,
    /// How often a lost worker is replaced for one engagement.
    pub attempts_max: u32,
    /// Pay results that nothing could verify: to own, trusted, stranger.
    pub accept_unverified: [bool; 3],
}

impl Policy {
    /// Whether `tier` is paid for results that nothing could verify.
    pub fn accepts_unverified(&self, tier: Tier) -> bool {
        let [own, trusted, stranger] = self.accept_unverified;
        match tier {
            Tier::Own => own,
            Tier::Trusted => trusted,
            Tier::Stranger => stranger,
        }
    }

    /// The credit that this node grants `peer` at most.
    pub fn limit_mc(&self, peer: &Peer) -> u64 {
        match (peer.disputed, peer.tier) {
            (true, _) => 0,
            (_, Tier::Own) => u64::MAX,
            (_, Tier::Trusted) => peer.limit_mc.unwrap_or(self.trusted_limit_mc),
            (_, Tier::Stranger) => self.stranger_cap_mc,
        }
    }

    /// The combined permission of `peer` for `skill`.
    pub fn permission(&self, peer: &Peer, skill: &str) -> Permission {
        let all = &self.permissions;
        let role = peer.lct.rsplit_once('#').map_or("", |(_, role)| role);
        let mut combined = all
            .tier
            .get(peer.tier.as_str())
            .cloned()
            .unwrap_or_default();
        for level in [
            all.role.get(role),
            all.skill.get(skill),
            all.peer.get(&peer.npub),
        ]
        .into_iter()
        .flatten()
        {
            combined.narrow(level);
        }
        combined
    }

    /// The price of one unit of `skill` for `peer`: nothing for the owner's own nodes.
    ///
    /// # Errors
    /// `skill_unknown`, `permission_denied`.
    pub fn unit_price_mc(&self, peer: &Peer, skill: &str) -> Result<u64, Refused> {
        let facts = self.skills.iter().find(|s| s.id == skill).ok_or_else(|| {
            Refused::new(
                "skill_unknown",
                format!("this node does not offer the skill: {skill}"),
            )
        })?;
        let permission = self.permission(peer, skill);
        if permission.deny {
            return Err(Refused::new(
                "permission_denied",
                format!("the owner does not lend {skill} to this peer"),
            ));
        }
        Ok(match peer.tier {
            Tier::Own => 0,
            _ => permission.unit_price_mc.unwrap_or(facts.unit_price_mc),
        })
    }
}
