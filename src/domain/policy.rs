//! What this node wants, and what it lets others ask: plain settings, and permissions by tier, role, skill and peer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::peer::{Peer, Tier};
use super::step::{Ms, Refused};
use crate::config::SandboxLevel;
use crate::wire::binding::Binding;

/// What somebody may ask of this node. What is absent says nothing at this level.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Permission {
    /// Whether they may ask at all.
    pub allow: Option<bool>,
    /// The skills they may ask for; `*` is every skill.
    pub skills: Option<Vec<String>>,
    /// Most milli-credits of work outstanding (posted + pending).
    pub budget_mc: Option<u64>,
    /// Highest price of one task, milli-credits.
    pub max_price_mc: Option<u64>,
    /// Price of one unit, milli-credits, instead of the skill's list price.
    pub unit_price_mc: Option<u64>,
    /// Most engagements at once.
    pub concurrency: Option<u32>,
    /// New tasks a minute.
    pub rate_per_min: Option<u32>,
    /// The worker's sandbox without which nothing is computed for them.
    pub sandbox_at_least: Option<SandboxLevel>,
}

impl Permission {
    /// Both at once: where both say something, the narrower counts.
    fn narrowed(self, other: &Self) -> Self {
        fn least<T: Ord + Copy>(a: Option<T>, b: Option<T>) -> Option<T> {
            match (a, b) {
                (Some(x), Some(y)) => Some(x.min(y)),
                (x, y) => x.or(y),
            }
        }
        Self {
            allow: least(self.allow, other.allow),
            skills: self.skills.or_else(|| other.skills.clone()),
            budget_mc: least(self.budget_mc, other.budget_mc),
            max_price_mc: least(self.max_price_mc, other.max_price_mc),
            unit_price_mc: least(self.unit_price_mc, other.unit_price_mc),
            concurrency: least(self.concurrency, other.concurrency),
            rate_per_min: least(self.rate_per_min, other.rate_per_min),
            // The narrower is the higher one.
            sandbox_at_least: self.sandbox_at_least.max(other.sandbox_at_least),
        }
    }

    /// An exception from `general`: what this one says counts instead.
    fn over(self, general: Self) -> Self {
        Self {
            allow: self.allow.or(general.allow),
            skills: self.skills.or(general.skills),
            budget_mc: self.budget_mc.or(general.budget_mc),
            max_price_mc: self.max_price_mc.or(general.max_price_mc),
            unit_price_mc: self.unit_price_mc.or(general.unit_price_mc),
            concurrency: self.concurrency.or(general.concurrency),
            rate_per_min: self.rate_per_min.or(general.rate_per_min),
            sandbox_at_least: self.sandbox_at_least.or(general.sandbox_at_least),
        }
    }

    /// Whether `skill` may be asked for.
    pub fn admits(&self, skill: &str) -> bool {
        let listed = self
            .skills
            .as_ref()
            .is_none_or(|skills| skills.iter().any(|s| s == "*" || s == skill));
        listed && self.allow != Some(false)
    }

    /// Whether one task may cost this much.
    ///
    /// # Errors
    /// `price_limit`.
    pub fn admits_price(&self, total_mc: u64) -> Result<(), Refused> {
        match self.max_price_mc.filter(|most| total_mc > *most) {
            None => Ok(()),
            Some(most) => Err(Refused::new(
                "price_limit",
                format!(
                    "one task of this peer may cost {most} mc here, this one would cost {total_mc} mc"
                ),
            )),
        }
    }
}

/// An exception from the tiers for the peers, LCT roles and skills that it names: all that are named must fit. A peer says
/// itself which role it has, so a rule that knows its peers by their role alone can only take away, never give.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// Nostr key, hex.
    pub peer: Option<String>,
    /// The role in the peer's LCT (the part after `#`).
    pub role: Option<String>,
    /// Believe any peer with bound keys the role that it claims.
    pub self_claimed: bool,
    /// Skill id.
    pub skill: Option<String>,
    /// What holds then.
    pub permission: Permission,
}

impl Rule {
    fn fits(&self, peer: &Peer, skill: &str) -> bool {
        let role = peer.lct.rsplit_once('#').map_or("", |(_, role)| role);
        self.peer.as_ref().is_none_or(|p| *p == peer.npub)
            && self.role.as_ref().is_none_or(|r| r == role)
            && self.skill.as_ref().is_none_or(|s| s == skill)
    }

    /// Whether the owner means this very peer, or believes its word.
    fn gives(&self, peer: &Peer) -> bool {
        self.role.is_none() || self.peer.is_some() || (self.self_claimed && peer.key.is_some())
    }
}

/// Who may ask for what. The owner's own nodes are not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Permissions {
    /// By tier: `trusted stranger`.
    pub tier: BTreeMap<String, Permission>,
    /// Exceptions; of two that fit, the narrower counts in each setting.
    pub rules: Vec<Rule>,
    /// What confines this node's workers.
    pub sandbox: SandboxLevel,
    /// What confines the programs of the owner's own skills, each by its skill, instead.
    pub skill_sandbox: BTreeMap<String, SandboxLevel>,
}

impl Permissions {
    /// What `peer` may ask for with `skill`: its tier's permission, with the exceptions that fit in its place.
    pub fn of(&self, peer: &Peer, skill: &str) -> Permission {
        if peer.tier == Tier::Own {
            return Permission::default();
        }
        let tier = self
            .tier
            .get(peer.tier.as_str())
            .cloned()
            .unwrap_or_default();
        let general = Permission {
            allow: Some(tier.admits(skill)),
            skills: None,
            ..tier
        };
        let (given, claimed): (Vec<_>, Vec<_>) = (self.rules.iter())
            .filter(|rule| rule.fits(peer, skill))
            .partition(|rule| rule.gives(peer));
        let exception = (given.into_iter()).fold(Permission::default(), |all, rule| {
            all.narrowed(&rule.permission)
        });
        claimed
            .into_iter()
            .fold(exception.over(general), |all, rule| {
                // A price is not narrowed by being lower.
                let unit_price_mc = all.unit_price_mc;
                Permission {
                    unit_price_mc,
                    ..all.narrowed(&rule.permission)
                }
            })
    }

    /// Whether what works on `skill` here is confined as far as `permission` wants it.
    ///
    /// # Errors
    /// `sandbox_required`.
    pub fn admits_sandbox(&self, permission: &Permission, skill: &str) -> Result<(), Refused> {
        let here = *self.skill_sandbox.get(skill).unwrap_or(&self.sandbox);
        match permission.sandbox_at_least.filter(|least| here < *least) {
            None => Ok(()),
            Some(least) => Err(Refused::new(
                "sandbox_required",
                format!(
                    "the owner works for this peer in a sandbox of level {} only; here it is {}",
                    least.as_str(),
                    here.as_str()
                ),
            )),
        }
    }
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
    /// What one job may spend on parts that the skill delegates, milli-credits: added to every price.
    pub hop_budget_mc: u64,
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
    /// Units to recompute ([`super::judging::sample_size`]).
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
    /// Largest input, and largest result, bytes as JSON. Beyond some 20 kB they travel beside their message.
    pub payload_bytes_max: u64,
    /// How often a lost worker is replaced for one engagement.
    pub attempts_max: u32,
    /// Pay results that nothing could verify: to own, trusted, stranger.
    pub accept_unverified: [bool; 3],
    /// Where parts are offered that a skill delegates; the first pool joined if none.
    pub hop_pool: Option<String>,
    /// Longest chain of jobs that are parts of each other.
    pub delegation_hops_max: u32,
    /// Most parts that one job may delegate.
    pub delegation_calls_max: u32,
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

    /// What one job of `skill` may spend on parts that it delegates, milli-credits.
    pub fn hop_budget_mc(&self, skill: &str) -> u64 {
        let facts = self.skills.iter().find(|s| s.id == skill);
        facts.map_or(0, |facts| facts.hop_budget_mc)
    }

    /// What `peer` may ask for with `skill`.
    pub fn permission(&self, peer: &Peer, skill: &str) -> Permission {
        self.permissions.of(peer, skill)
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
        if !permission.admits(skill) {
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

#[cfg(test)]
mod tests {
    //! What the owner wrote is what a peer may ask, and a rule is an exception, never a loophole.
    use super::*;

    fn peer(npub: &str, tier: Tier, role: &str) -> Peer {
        Peer {
            tier,
            lct: format!("lct:web4:agent:o@n#{role}"),
            ..Peer::stranger(npub)
        }
    }

    fn trusted(permission: Permission) -> Permissions {
        Permissions {
            tier: BTreeMap::from([("trusted".to_owned(), permission)]),
            rules: Vec::new(),
            sandbox: SandboxLevel::None,
            skill_sandbox: BTreeMap::new(),
        }
    }

    fn rule(peer: &str, skill: &str, role: &str, permission: Permission) -> Rule {
        let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Rule {
            peer: named(peer),
            skill: named(skill),
            role: named(role),
            self_claimed: false,
            permission,
        }
    }

    #[test]
    fn a_role_that_a_peer_claims_gives_it_nothing() {
        let wide = Permission {
            allow: Some(true),
            max_price_mc: Some(100),
            unit_price_mc: Some(0),
            budget_mc: Some(1_000),
            rate_per_min: Some(1),
            ..Permission::default()
        };
        let mut all = trusted(Permission {
            allow: Some(false),
            max_price_mc: Some(10),
            budget_mc: Some(50),
            ..Permission::default()
        });
        all.tier
            .insert("stranger".into(), all.tier["trusted"].clone());
        for tier in [Tier::Trusted, Tier::Stranger] {
            let mut p = peer("p", tier, "admin");
            p.key = Some("bound".to_owned());
            all.rules = vec![rule("", "", "admin", wide.clone())];
            let found = all.of(&p, "a");
            let limits = (found.max_price_mc, found.unit_price_mc, found.budget_mc);
            assert_eq!(limits, (Some(10), None, Some(50)));
            assert!(!found.admits("a"));
            assert_eq!(found.rate_per_min, Some(1), "it may take away");
            // The owner names the peer, or takes its word: of one whose keys are bound.
            all.rules = vec![rule("p", "", "admin", wide.clone())];
            assert_eq!(all.of(&p, "a"), wide);
            all.rules = vec![Rule {
                self_claimed: true,
                ..rule("", "", "admin", wide.clone())
            }];
            assert_eq!(all.of(&p, "a"), wide);
            p.key = None;
            assert!(!all.of(&p, "a").admits("a"));
        }
    }

    #[test]
    fn a_tier_says_whether_what_and_how_much() {
        let p = peer("p", Tier::Trusted, "worker");
        let closed = trusted(Permission {
            allow: Some(false),
            ..Permission::default()
        });
        assert!(!closed.of(&p, "a").admits("a"));
        let listed = trusted(Permission {
            skills: Some(vec!["a".to_owned()]),
            ..Permission::default()
        });
        assert!(listed.of(&p, "a").admits("a") && !listed.of(&p, "b").admits("b"));
        let all = trusted(Permission {
            skills: Some(vec!["*".to_owned()]),
            max_price_mc: Some(5),
            concurrency: Some(2),
            rate_per_min: Some(3),
            ..Permission::default()
        });
        let found = all.of(&p, "b");
        assert!(found.admits("b"));
        assert_eq!((found.concurrency, found.rate_per_min), (Some(2), Some(3)));
        assert!(found.admits_price(5).is_ok());
        assert_eq!(
            found.admits_price(6).map_err(|e| e.code),
            Err("price_limit".to_owned())
        );
    }

    #[test]
    fn the_owner_s_own_nodes_are_not_limited() {
        let mut all = trusted(Permission::default());
        let forbid = Permission {
            allow: Some(false),
            ..Permission::default()
        };
        all.rules.push(rule("p", "", "", forbid));
        assert!(all.of(&peer("p", Tier::Own, "worker"), "a").admits("a"));
        assert!(!all.of(&peer("p", Tier::Trusted, "worker"), "a").admits("a"));
    }

    #[test]
    fn a_peer_is_served_only_in_the_sandbox_that_is_wanted_for_it() {
        use SandboxLevel::{Full, None, Partial};
        let wants = |level| Permission {
            sandbox_at_least: Some(level),
            ..Permission::default()
        };
        let p = peer("p", Tier::Trusted, "worker");
        let mut all = trusted(wants(Partial));
        let served = |all: &mut Permissions, here| {
            all.sandbox = here;
            let wanted = all.of(&p, "a");
            all.admits_sandbox(&wanted, "a").map_err(|e| e.code)
        };
        let refused = Err("sandbox_required".to_owned());
        assert_eq!(served(&mut all, None), refused);
        assert_eq!(served(&mut all, Partial), Ok(()));
        // A rule counts instead of the tier, and the stricter of two.
        all.rules.push(rule("p", "", "", wants(None)));
        assert_eq!(served(&mut all, None), Ok(()));
        all.rules.push(rule("", "a", "", wants(Full)));
        assert_eq!(served(&mut all, Partial), refused);
        assert_eq!(served(&mut all, Full), Ok(()));
        // Who wants nothing gets work anywhere, and so do the owner's own nodes.
        let own = all.of(&peer("p", Tier::Own, "worker"), "a");
        all.sandbox = None;
        assert!(all.admits_sandbox(&own, "a").is_ok());
        // A program of the owner's has a sandbox of its own: the worker's says nothing of it.
        all.sandbox = Full;
        all.skill_sandbox.insert("a".to_owned(), Partial);
        let wanted = all.of(&p, "a");
        assert!(all.admits_sandbox(&wanted, "a").is_err());
        all.skill_sandbox.insert("a".to_owned(), Full);
        all.sandbox = None;
        assert!(all.admits_sandbox(&wanted, "a").is_ok());
        assert!(all.admits_sandbox(&wanted, "b").is_err());
    }

    #[test]
    fn a_rule_fits_only_where_all_that_it_names_fits() {
        let mut all = trusted(Permission::default());
        let forbid = Permission {
            allow: Some(false),
            ..Permission::default()
        };
        all.rules.push(rule("p", "a", "worker", forbid));
        let asks = |npub: &str, role: &str, skill: &str| {
            all.of(&peer(npub, Tier::Trusted, role), skill)
                .admits(skill)
        };
        assert!(!asks("p", "worker", "a"));
        assert!(asks("q", "worker", "a") && asks("p", "guest", "a") && asks("p", "worker", "b"));
    }

    #[test]
    fn a_rule_counts_instead_of_its_tier_and_the_narrower_of_two() {
        let mut all = trusted(Permission {
            allow: Some(false),
            max_price_mc: Some(10),
            concurrency: Some(4),
            ..Permission::default()
        });
        let wide = Permission {
            allow: Some(true),
            max_price_mc: Some(100),
            unit_price_mc: Some(7),
            ..Permission::default()
        };
        all.rules.push(rule("p", "", "", wide.clone()));
        let p = peer("p", Tier::Trusted, "worker");
        let found = all.of(&p, "a");
        assert!(found.admits("a"));
        assert_eq!(
            (found.max_price_mc, found.unit_price_mc, found.concurrency),
            (Some(100), Some(7), Some(4))
        );
        let narrow = Permission {
            allow: Some(false),
            max_price_mc: Some(50),
            ..wide
        };
        all.rules.push(rule("", "a", "", narrow));
        assert!(!all.of(&p, "a").admits("a"));
        assert_eq!(all.of(&p, "a").max_price_mc, Some(50));
        assert!(all.of(&p, "b").admits("b"));
    }
}
