//! The tables of `config/legion.toml`, one type each, with defaults and units.
//!
//! A unit is part of every name: `_ms`, `_s`, `_bytes`, `_mc` (milli-credits), `_bp` (basis points, 10,000 = all).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Fault, check, check_range};

/// `[owner]`: the names in this node's LCT, `lct:web4:agent:<name>@<node>#<role>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Owner {
    /// The owner's name.
    pub name: String,
    /// This node's name among the owner's nodes.
    pub node: String,
    /// What this node is for.
    pub role: String,
}

impl Default for Owner {
    fn default() -> Self {
        Self {
            name: "owner".to_owned(),
            node: "node".to_owned(),
            role: "worker".to_owned(),
        }
    }
}

impl Owner {
    pub(super) fn validate(&self) -> Result<(), Fault> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        for (key, value) in [
            ("name", &self.name),
            ("node", &self.node),
            ("role", &self.role),
        ] {
            let fits = (1..=64).contains(&value.len()) && value.chars().all(plain);
            check(
                fits,
                &format!("owner.{key}"),
                "1 to 64 of a-z, 0-9, `-`, `_` and `.` are allowed",
            )?;
        }
        Ok(())
    }
}

/// `[limits]`: what others can make this node hold or do, at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Longest life of a message.
    pub max_message_life_s: u64,
    /// Inputs waiting for the node's loop.
    pub mailbox_depth: u64,
    /// Unfinished tasks of one peer.
    pub tasks_per_peer: u64,
    /// Bids kept for one offer; peers never met hold at most a quarter.
    pub bids_per_offer: u64,
    /// Peers kept in memory.
    pub peers_held: u64,
    /// Subscriptions open at one relay.
    pub subscriptions: u64,
    /// Longest line read from a local command.
    pub control_line_bytes: u64,
    /// Local commands connected at once.
    pub control_connections: u64,
    /// Difference between wall and monotonic clock that counts as a jump.
    pub clock_jump_ms: u64,
    /// Largest input, and largest result, that is sent or taken.
    pub payload_bytes: u64,
    /// Payloads of one known peer on their way here at once; all strangers together have an eighth of it.
    pub transfers_per_peer: u64,
    /// Room for all payloads on their way here.
    pub transfer_disk_bytes: u64,
    /// How often a job may be handed on, each time as a part of the one before; 0 lets no skill delegate.
    pub delegation_hops: u64,
    /// Parts that one job may delegate.
    pub delegation_calls: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message_life_s: 2_419_200,
            mailbox_depth: 4_096,
            tasks_per_peer: 1_024,
            bids_per_offer: 64,
            peers_held: 100_000,
            subscriptions: 16,
            control_line_bytes: 16_777_216,
            control_connections: 64,
            clock_jump_ms: 5_000,
            payload_bytes: 5_242_880,
            transfers_per_peer: 16,
            transfer_disk_bytes: 268_435_456,
            delegation_hops: 4,
            delegation_calls: 16,
        }
    }
}

impl Limits {
    pub(super) fn validate(&self) -> Result<(), Fault> {
        let values = [
            ("max_message_life_s", self.max_message_life_s),
            ("mailbox_depth", self.mailbox_depth),
            ("tasks_per_peer", self.tasks_per_peer),
            ("bids_per_offer", self.bids_per_offer),
            ("peers_held", self.peers_held),
            ("subscriptions", self.subscriptions),
            ("control_line_bytes", self.control_line_bytes),
            ("control_connections", self.control_connections),
            ("clock_jump_ms", self.clock_jump_ms),
            ("payload_bytes", self.payload_bytes),
            ("transfers_per_peer", self.transfers_per_peer),
            ("transfer_disk_bytes", self.transfer_disk_bytes),
        ];
        check_range("limits", 1, &values)?;
        let kept = self.max_message_life_s <= 2_419_200;
        let reason = "at most 28 days (2419200): what relays keep, and what receivers remember to refuse repeats";
        check(kept, "limits.max_message_life_s", reason)?;
        let both = self.subscriptions >= 2;
        let reason = "at least 2: one for stored messages, one for ephemeral ones";
        check(both, "limits.subscriptions", reason)?;
        let reason = "at most 16: longer chains are refused by every node";
        let chain = self.delegation_hops <= 16;
        check(chain, "limits.delegation_hops", reason)?;
        let reason = "1 to 64: a proof names no more";
        let calls = (1..=64).contains(&self.delegation_calls);
        check(calls, "limits.delegation_calls", reason)
    }
}

/// What an executor is paid for a task canceled after it accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnCancel {
    /// Nothing.
    Free,
    /// The units it had finished.
    Units,
}

/// `[market]`: prices, credit, and the times of an offer, an award and a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Market {
    /// What one unit of a skill costs everyone else.
    pub unit_price_mc: u64,
    /// Exceptions from `unit_price_mc`, by skill.
    pub skill_unit_price_mc: BTreeMap<String, u64>,
    /// Highest price of an `ask` without `--max-price`.
    pub default_max_price_mc: u64,
    /// Credit granted to a peer of tier trusted, unless `peers trust --limit` says otherwise.
    pub trusted_limit_mc: u64,
    /// Credit granted to all strangers together.
    pub stranger_cap_mc: u64,
    /// What one job may spend on parts that its skill delegates, by skill: added to its price. Nothing by default.
    pub skill_hop_budget_mc: BTreeMap<String, u64>,
    /// How long bids are collected after the first one.
    pub bid_window_ms: u64,
    /// Deadline of an `ask` without `--deadline`.
    pub deadline_s: u64,
    /// Time between an award and the end of waiting for its accept.
    pub accept_within_ms: u64,
    /// Difference between two nodes' clocks that is forgiven.
    pub skew_allowance_ms: u64,
    /// A lease ends this long after its last keep-alive; keep-alives go out every third of it.
    pub lease_ttl_ms: u64,
    /// Time between a result's deadline and the requester's right to roll back alone.
    pub settle_within_s: u64,
    /// How long a revoked lease may hibernate.
    pub max_hibernate_s: u64,
    /// Life of an offer in a pool.
    pub offer_expiry_s: u64,
    /// How often the capability ad is renewed.
    pub ad_every_s: u64,
    /// Life of a capability ad.
    pub ad_expiry_s: u64,
    /// What a canceled task pays.
    pub on_cancel: OnCancel,
}

impl Default for Market {
    fn default() -> Self {
        Self {
            unit_price_mc: 1,
            skill_unit_price_mc: BTreeMap::new(),
            skill_hop_budget_mc: BTreeMap::new(),
            default_max_price_mc: 1_000,
            trusted_limit_mc: 10_000,
            stranger_cap_mc: 0,
            bid_window_ms: 1_500,
            deadline_s: 600,
            accept_within_ms: 15_000,
            skew_allowance_ms: 2_000,
            lease_ttl_ms: 30_000,
            settle_within_s: 3_600,
            max_hibernate_s: 3_600,
            offer_expiry_s: 600,
            ad_every_s: 300,
            ad_expiry_s: 900,
            on_cancel: OnCancel::Units,
        }
    }
}

impl Market {
    pub(super) fn validate(&self) -> Result<(), Fault> {
        let amounts = [
            ("unit_price_mc", self.unit_price_mc),
            ("default_max_price_mc", self.default_max_price_mc),
            ("trusted_limit_mc", self.trusted_limit_mc),
            ("stranger_cap_mc", self.stranger_cap_mc),
            ("max_hibernate_s", self.max_hibernate_s),
            ("skew_allowance_ms", self.skew_allowance_ms),
        ];
        check_range("market", 0, &amounts)?;
        for price in self.skill_unit_price_mc.values() {
            check_range("market", 0, &[("skill_unit_price_mc", *price)])?;
        }
        for budget in self.skill_hop_budget_mc.values() {
            check_range("market", 0, &[("skill_hop_budget_mc", *budget)])?;
        }
        let times = [
            ("bid_window_ms", self.bid_window_ms),
            ("deadline_s", self.deadline_s),
            ("accept_within_ms", self.accept_within_ms),
            ("lease_ttl_ms", self.lease_ttl_ms),
            ("settle_within_s", self.settle_within_s),
            ("offer_expiry_s", self.offer_expiry_s),
            ("ad_every_s", self.ad_every_s),
            ("ad_expiry_s", self.ad_expiry_s),
        ];
        check_range("market", 1, &times)?;
        let skew_fits = self.skew_allowance_ms < self.accept_within_ms;
        check(
            skew_fits,
            "market.skew_allowance_ms",
            "it must be below accept_within_ms",
        )?;
        let ad_lasts = self.ad_every_s < self.ad_expiry_s;
        check(
            ad_lasts,
            "market.ad_expiry_s",
            "it must be above ad_every_s, or the ad vanishes in between",
        )
    }

    /// The price of one unit of `skill` for a peer that is not of tier own.
    #[must_use]
    pub fn unit_price_mc(&self, skill: &str) -> u64 {
        self.skill_unit_price_mc
            .get(skill)
            .copied()
            .unwrap_or(self.unit_price_mc)
    }
}

/// `[labor]`: the worker process and what it may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Labor {
    /// Whether this node works at all; without it, it only hires.
    pub enabled: bool,
    /// Cores the worker may use; 0 is all of them.
    pub cores: u64,
    /// Memory at which the worker is ended.
    pub memory_limit_bytes: u64,
    /// Leases held at once.
    pub slots: u64,
    /// A checkpoint is stored after this many units.
    pub checkpoint_every_units: u64,
    /// A worker without a sign of life for this long is ended.
    pub hang_timeout_ms: u64,
    /// Time to reach the next unit after a soft stop, before the worker is ended.
    pub soft_stop_ms: u64,
    /// Whether the worker gives up what it does not need, as far as the system can make it.
    pub sandbox: bool,
    /// Files and folders that the worker may read nevertheless: absolute paths.
    pub sandbox_read: Vec<String>,
    /// Device files that it may use: absolute paths.
    pub sandbox_devices: Vec<String>,
}

impl Default for Labor {
    fn default() -> Self {
        Self {
            enabled: true,
            cores: 0,
            memory_limit_bytes: 2_147_483_648,
            slots: 16,
            checkpoint_every_units: 8,
            hang_timeout_ms: 30_000,
            soft_stop_ms: 5_000,
            sandbox: true,
            sandbox_read: Vec::new(),
            sandbox_devices: Vec::new(),
        }
    }
}

impl Labor {
    pub(super) fn validate(&self) -> Result<(), Fault> {
        let values = [
            ("slots", self.slots),
            ("checkpoint_every_units", self.checkpoint_every_units),
            ("hang_timeout_ms", self.hang_timeout_ms),
            ("soft_stop_ms", self.soft_stop_ms),
        ];
        check_range("labor", 1, &values)?;
        for (key, paths) in [
            ("labor.sandbox_read", &self.sandbox_read),
            ("labor.sandbox_devices", &self.sandbox_devices),
        ] {
            let absolute = paths.iter().all(|path| path.starts_with('/'));
            check(absolute, key, "a path begins with `/`")?;
        }
        check_range(
            "labor",
            67_108_864,
            &[("memory_limit_bytes", self.memory_limit_bytes)],
        )?;
        check_range("labor", 0, &[("cores", self.cores)])
    }
}

/// `[verification]`: how sure the requester wants to be, and what it accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Verification {
    /// The share of forged units that must not go unnoticed.
    pub forged_share_bp: u64,
    /// How surely it is noticed.
    pub confidence_bp: u64,
    /// The quality at which a result is paid.
    pub accept_at_bp: u64,
    /// Whether a result of a trusted peer that cannot be checked beyond its schema is paid.
    pub accept_unverified_trusted: bool,
    /// The same for strangers.
    pub accept_unverified_stranger: bool,
}

impl Default for Verification {
    fn default() -> Self {
        Self {
            forged_share_bp: 1_000,
            confidence_bp: 9_500,
            accept_at_bp: 7_000,
            accept_unverified_trusted: true,
            accept_unverified_stranger: false,
        }
    }
}

impl Verification {
    pub(super) fn validate(&self) -> Result<(), Fault> {
        let reason = "1 to 10000 basis points are allowed";
        for (key, value) in [
            ("forged_share_bp", self.forged_share_bp),
            ("accept_at_bp", self.accept_at_bp),
        ] {
            check(
                (1..=10_000).contains(&value),
                &format!("verification.{key}"),
                reason,
            )?;
        }
        let confident = (1..=9_999).contains(&self.confidence_bp);
        check(
            confident,
            "verification.confidence_bp",
            "1 to 9999 basis points are allowed",
        )
    }

    /// How many units, drawn at random, show a forgery of `forged_share_bp` with `confidence_bp`: the smallest k with
    /// (1 - share)^k <= 1 - confidence. In integers, so that every machine draws the same number; the default is 29.
    #[must_use]
    pub fn units_to_check(&self) -> u64 {
        const ONE: u128 = 10_000 * 100_000_000_000_000;
        let unforged_bp = 10_000_u64.saturating_sub(self.forged_share_bp.clamp(1, 10_000));
        let doubt =
            u128::from(10_000_u64.saturating_sub(self.confidence_bp)).max(1) * 100_000_000_000_000;
        let (mut missed, mut units) = (ONE, 0);
        while missed > doubt {
            missed = missed * u128::from(unforged_bp) / 10_000;
            units += 1;
        }
        units
    }
}

/// `[pow]`: NIP-13 work on wraps to pools, in leading zero bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pow {
    /// In open pools.
    pub open_pool_bits: u8,
}

impl Default for Pow {
    fn default() -> Self {
        Self { open_pool_bits: 12 }
    }
}

impl Pow {
    pub(super) fn validate(&self) -> Result<(), Fault> {
        let reason = "more than 32 bits take minutes for one message";
        check(self.open_pool_bits <= 32, "pow.open_pool_bits", reason)
    }
}

/// `[store]`: how much is kept; the oldest goes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreQuotas {
    /// Finished tasks. 0 keeps none.
    pub max_finished_tasks: u64,
    /// Entries of the journal.
    pub max_journal_entries: u64,
}

impl Default for StoreQuotas {
    fn default() -> Self {
        Self {
            max_finished_tasks: 1_000_000,
            max_journal_entries: 10_000_000,
        }
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what needs the owner.
    Error,
    /// What went wrong and was survived.
    Warn,
    /// What happened.
    Info,
    /// Why it happened.
    Debug,
    /// Every message.
    Trace,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `[log]`: what is logged to stderr and to `logs/legion.log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// How much.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// Size at which `logs/legion.log` becomes `logs/legion.log.1`.
    pub max_file_bytes: u64,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: LogLevel::Info,
            format: LogFormat::Text,
            max_file_bytes: 16_777_216,
        }
    }
}

#[cfg(test)]
mod tests {
    //! The number of units to check follows from the detection target alone.
    use super::*;

    #[test]
    fn units_to_check_meet_the_target_and_no_more() {
        let units = |forged_share_bp, confidence_bp| {
            Verification {
                forged_share_bp,
                confidence_bp,
                ..Verification::default()
            }
            .units_to_check()
        };
        assert_eq!(Verification::default().units_to_check(), 29);
        assert_eq!(units(1_000, 9_900), 44);
        assert_eq!(units(5_000, 9_500), 5);
        assert_eq!(units(10_000, 9_999), 1);
        assert_eq!(units(100, 9_500), 299);
    }

    #[test]
    fn a_skill_s_own_price_goes_before_the_general_one() {
        let mut market = Market::default();
        market
            .skill_unit_price_mc
            .insert("simulation".to_owned(), 7);
        assert_eq!(
            (
                market.unit_price_mc("simulation"),
                market.unit_price_mc("other")
            ),
            (7, 1)
        );
    }
}
