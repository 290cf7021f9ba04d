//! `[permissions]`: what each tier of peers may ask, and the exceptions by peer, skill and role.

use serde::{Deserialize, Deserializer, Serialize};

use super::{Fault, check, check_range};

/// How far a worker is confined, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxLevel {
    /// Neither files nor the network are out of its reach.
    #[default]
    None,
    /// Something is missing: the system has only some of the layers.
    Partial,
    /// Files, network, other processes and privileges are out of its reach.
    Full,
}

impl SandboxLevel {
    /// As it is written in the configuration and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Partial => "partial",
            Self::Full => "full",
        }
    }

    /// The level of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let levels = [Self::None, Self::Partial, Self::Full];
        levels.into_iter().find(|level| level.as_str() == name)
    }
}

/// What a tier of peers may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TierPermission {
    /// Whether tasks may be sent here at all.
    pub delegate: bool,
    /// The skills it may ask for; `*` is every skill.
    pub execute: Vec<String>,
    /// Highest price of one task.
    pub max_price_mc: u64,
    /// Unfinished tasks of one peer that are worked on at once.
    pub max_concurrent: u64,
    /// New tasks of one peer in a minute.
    pub max_per_min: u64,
    /// The sandbox without which nothing is computed for them.
    pub sandbox_at_least: SandboxLevel,
}

impl TierPermission {
    /// The default of tier trusted.
    #[must_use]
    pub fn trusted() -> Self {
        Self {
            delegate: true,
            execute: vec!["*".to_owned()],
            max_price_mc: 10_000,
            max_concurrent: 256,
            max_per_min: 600,
            sandbox_at_least: SandboxLevel::None,
        }
    }

    /// The default of tier stranger.
    #[must_use]
    pub fn stranger() -> Self {
        Self {
            max_price_mc: 1_000,
            max_concurrent: 16,
            max_per_min: 60,
            sandbox_at_least: SandboxLevel::Partial,
            ..Self::trusted()
        }
    }

    fn with(self, set: PartialTier) -> Self {
        Self {
            delegate: set.delegate.unwrap_or(self.delegate),
            execute: set.execute.unwrap_or(self.execute),
            max_price_mc: set.max_price_mc.unwrap_or(self.max_price_mc),
            max_concurrent: set.max_concurrent.unwrap_or(self.max_concurrent),
            max_per_min: set.max_per_min.unwrap_or(self.max_per_min),
            sandbox_at_least: set.sandbox_at_least.unwrap_or(self.sandbox_at_least),
        }
    }
}

/// A tier's table as written: what it leaves out stays as that tier's default, which serde alone cannot express.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartialTier {
    delegate: Option<bool>,
    execute: Option<Vec<String>>,
    max_price_mc: Option<u64>,
    max_concurrent: Option<u64>,
    max_per_min: Option<u64>,
    sandbox_at_least: Option<SandboxLevel>,
}

fn trusted<'de, D: Deserializer<'de>>(input: D) -> Result<TierPermission, D::Error> {
    PartialTier::deserialize(input).map(|set| TierPermission::trusted().with(set))
}

fn stranger<'de, D: Deserializer<'de>>(input: D) -> Result<TierPermission, D::Error> {
    PartialTier::deserialize(input).map(|set| TierPermission::stranger().with(set))
}

/// `[[permissions.rule]]`: an exception from the tiers for the peers, skills and LCT roles it names (all of them must fit). What it
/// sets counts instead of what the tier sets; of two rules that fit, the narrower counts in each setting.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PermissionRule {
    /// Only for this peer (npub).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Only for this skill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skill: Option<String>,
    /// Only for peers with this role in their LCT. A peer names its role itself: without `peer` such a rule can only take away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Take the word of any peer whose keys are bound for its role.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub self_claimed: bool,
    /// Whether such tasks are allowed at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<bool>,
    /// Credit up to which such tasks of one peer are accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_mc: Option<u64>,
    /// Price of one unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit_price_mc: Option<u64>,
    /// Highest price of one task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_price_mc: Option<u64>,
    /// Unfinished tasks at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u64>,
    /// New tasks in a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_min: Option<u64>,
    /// The sandbox without which such tasks are not worked on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_at_least: Option<SandboxLevel>,
}

/// `[permissions]`: who may ask what. Tier own is not limited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Permissions {
    /// Peers the owner admitted.
    #[serde(deserialize_with = "trusted")]
    pub trusted: TierPermission,
    /// Everyone else.
    #[serde(deserialize_with = "stranger")]
    pub stranger: TierPermission,
    /// Exceptions by peer, skill and role.
    pub rule: Vec<PermissionRule>,
}

impl Default for Permissions {
    fn default() -> Self {
        Self {
            trusted: TierPermission::trusted(),
            stranger: TierPermission::stranger(),
            rule: Vec::new(),
        }
    }
}

impl Permissions {
    pub(super) fn validate(&self) -> Result<(), Fault> {
        for (name, tier) in [("trusted", &self.trusted), ("stranger", &self.stranger)] {
            let section = format!("permissions.{name}");
            check_range(&section, 0, &[("max_price_mc", tier.max_price_mc)])?;
            let counts = [
                ("max_concurrent", tier.max_concurrent),
                ("max_per_min", tier.max_per_min),
            ];
            check_range(&section, 1, &counts)?;
        }
        for rule in &self.rule {
            let named = rule.peer.is_some() || rule.skill.is_some() || rule.role.is_some();
            check(
                named,
                "permissions.rule",
                "a rule names a peer, a skill or a role",
            )?;
            let amounts = [
                ("budget_mc", rule.budget_mc),
                ("unit_price_mc", rule.unit_price_mc),
                ("max_price_mc", rule.max_price_mc),
            ];
            for (key, value) in amounts {
                check_range("permissions.rule", 0, &[(key, value.unwrap_or_default())])?;
            }
        }
        Ok(())
    }
}
