//! Nodes of the simulation: their keys and settings.

use legiond::domain::policy::{Permissions, Policy, SkillFacts};
use legiond::wire::binding::{Binding, BoundKeys, Statement};
use nostr::{Keys, SecretKey};

pub(crate) fn bound(at: usize) -> BoundKeys {
    let secret = SecretKey::from_slice(&[at as u8 + 1; 32]).unwrap();
    BoundKeys {
        nostr: Keys::new(secret).public_key(),
        ed25519: [at as u8 + 1; 32],
        x25519: [at as u8 + 101; 32],
        peer_id: format!("peer{at}"),
        epoch: 0,
        not_after_s: u64::MAX,
    }
}

pub(crate) fn policy(at: usize) -> Policy {
    let keys = bound(at);
    let statement = Statement {
        v: 1,
        object_type: "binding".into(),
        nostr: keys.nostr.to_hex(),
        ed25519: hex::encode(keys.ed25519),
        x25519: hex::encode(keys.x25519),
        peer_id: keys.peer_id.clone(),
        epoch: 0,
        not_after: 4_000_000_000,
    };
    Policy {
        me: keys.nostr.to_hex(),
        key: hex::encode(keys.ed25519),
        lct: format!("lct:{at}#worker"),
        binding: Binding {
            statement,
            sig_ed25519: String::new(),
            sig_libp2p: String::new(),
            sig_previous: None,
        },
        relays: vec!["ws://relay".into()],
        pools: vec!["legion".into()],
        skills: vec![SkillFacts {
            hop_budget_mc: 0,
            id: super::world::SKILL.into(),
            unit_price_mc: 1,
            unit_eta_ms: 50,
        }],
        device: "cpu".into(),
        implementation: "legion/sim".into(),
        permissions: Permissions::default(),
        default_max_price_mc: 10_000,
        trusted_limit_mc: 100_000,
        stranger_cap_mc: 0,
        bid_window_ms: 1_500,
        accept_within_ms: 20_000,
        skew_ms: 2_000,
        lease_ttl_ms: 30_000,
        settle_within_ms: 3_600_000,
        max_hibernate_s: 3_600,
        offer_ttl_ms: 60_000,
        ad_ttl_ms: 600_000,
        on_cancel: "free".into(),
        verification: "sampled".into(),
        forged_share_bp: 1_000,
        detection_bp: 9_500,
        pay_from_bp: 7_000,
        leases_max: 1,
        bids_max: 16,
        tasks_per_peer_max: 64,
        peers_max: 1_000,
        message_ttl_ms: 30 * 24 * 3_600_000,
        payload_bytes_max: 5 << 20,
        attempts_max: 3,
        accept_unverified: [true, true, false],
        hop_pool: None,
        delegation_hops_max: 4,
        delegation_calls_max: 4,
    }
}
