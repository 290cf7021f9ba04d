//! Start and stop: opens the home's store, joins the rooms, and takes them apart again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};

use super::control::{ControlServer, HomeLock};
use super::core::Core;
use super::delivery::{Deliverer, OutboxState};
use super::error::NodeError;
use super::handlers::Handlers;
use super::inbox::{self, Opener};
use super::leases::{LaborSettings, desks};
use super::order::{Counters, Mail, Outlets};
use super::pools::Pools;
use super::presence::Presence;
use super::sealer::Sealer;
use super::signals::Signals;
use super::transfer::{self, Quota, TransferState, Transfers};
use super::{Mailbox, clock, rows, workers};
use crate::carrier::{CarrierConfig, RelayCarrier};
use crate::config::{Config, Home, Market, OnCancel, PermissionRule, SandboxLevel, TierPermission};
use crate::domain::policy::{Permission, Permissions, Policy, Rule, SkillFacts};
use crate::domain::step::Input;
use crate::identity::conversation::Conversations;
use crate::identity::{Identity, IdentityError, parse_npub};
use crate::labor::SkillInfo;
use crate::labor::sandbox::survey;
use crate::labor::skills;
use crate::labor::skills::Skill as _;
use crate::labor::skills::own;
use crate::store::{Limits, Store, StoreOptions};
use crate::wire::binding::Binding;
use crate::wire::verify::Keyring;

/// A binding is signed anew at each start and holds this long.
pub(super) const BINDING_S: u64 = 90 * 86_400;
/// Local connections that no call which waits for a task may take.
const RESERVED_CONNECTIONS: usize = 8;
/// NIP-44 conversation keys kept.
const CONVERSATIONS: usize = 4_096;
/// Leases have this long to come to rest at shutdown; together with the rest, an exit takes under 20 s.
const REST: Duration = Duration::from_secs(10);

/// Words about transfers that may wait for their task; beyond it the sockets are read more slowly.
const HEARD_DEPTH: usize = 256;

/// What a node needs to run.
pub struct NodeParts {
    /// The home.
    pub home: Home,
    /// The home's lock.
    pub lock: HomeLock,
    /// Settings.
    pub config: Config,
    /// Keys.
    pub identity: Identity,
    /// The owner says that no other node of this identity runs.
    pub sole: bool,
}

/// Runs the node until SIGTERM, SIGINT or `node/stop`. `ready` hears the object of `up` once, as soon as commands work.
///
/// # Errors
/// What keeps it from starting; the store's last error if it fails for good.
pub async fn up(parts: NodeParts, ready: impl FnOnce(&Value)) -> Result<(), NodeError> {
    let NodeParts {
        home,
        lock,
        config,
        identity,
        sole,
    } = parts;
    let mut signals = Signals::catch()?;
    let identity = Arc::new(identity);
    let relays = config.relay_list(&home)?;
    let read: Vec<String> = relays
        .relays
        .iter()
        .filter(|r| r.read)
        .map(|r| r.url.clone())
        .collect();
    let write: Vec<String> = relays
        .relays
        .iter()
        .filter(|r| r.write)
        .map(|r| r.url.clone())
        .collect();
    let program = std::env::current_exe()?;
    let mut sandbox = workers::sandbox(&config, &home)?;
    // Its answer comes while the store opens.
    let survey = works(&config).then(|| {
        let (program, sandbox) = (program.clone(), sandbox.clone());
        let folder = home.root().join("scratch");
        tokio::spawn(async move { survey(&program, &sandbox, &folder).await })
    });
    super::backup::refuse_unfinished(&home)?;
    let store = Arc::new(Store::open(home.store_file(), store_options())?);
    if super::backup::is_unrestored(&store)? {
        return Err(NodeError::Unrestored);
    }
    let whose = rows::claim(&store, &identity.public().npub)?;
    if whose != identity.public().npub {
        return Err(NodeError::StoreForeign { npub: whose });
    }
    let signed = rows::lineage(&store.view()?)?.map_or(0, |lineage| lineage.keys.len());
    let keys = identity.proof_keys().len();
    if keys < signed {
        let (keys, store) = (keys.saturating_sub(1), signed.saturating_sub(1));
        return Err(NodeError::EpochBehind { keys, store });
    }
    workers::check_own_skills(&config, &home)?;
    let own_skills: Vec<String> = match config.labor.enabled {
        true => config.skills.keys().cloned().collect(),
        false => Vec::new(),
    };
    own::expect(own_skills.iter());
    let (stop_asking, asking_stopped) = watch::channel(false);
    let asking = workers::Asking {
        config: config.clone(),
        home: home.clone(),
        legion: program.clone(),
        sandbox: sandbox.clone(),
        stop: asking_stopped,
    };
    super::recovery::begin(&store, sole, identity.public().epoch)?;
    let confined = match survey {
        Some(survey) => survey.await.ok(),
        None => None,
    };
    if let Some(report) = confined.as_ref().filter(|r| !r.missing.is_empty()) {
        let (level, missing) = (report.level.as_str(), report.missing.join(", "));
        tracing::warn!(level, missing, "the worker's sandbox is not full");
    }
    // No worker of this node ever works with less than what its owner is told.
    sandbox.at_least = confined.as_ref().map_or(SandboxLevel::None, |r| r.level);
    let models = home.models_dir();
    let mut policy = policy(&config, &identity, &read, &models, sandbox.at_least)?;
    let server = ControlServer::bind(
        &lock,
        config.limits.control_line_bytes,
        config.limits.control_connections,
    )?;

    let (mails, mailbox_end) = std::sync::mpsc::channel();
    let mailbox = Mailbox::new(
        mails,
        usize::try_from(config.limits.mailbox_depth).unwrap_or(4_096),
    );
    let pools = Arc::new(Pools::load(
        home.keys_dir(),
        identity.clone(),
        &config,
        read.clone(),
        mailbox.clone(),
    )?);
    policy.pools = pools.names();
    let conversations = Arc::new(Conversations::new(CONVERSATIONS));
    let keyring = Arc::new(Keyring::new(
        identity.nostr().clone(),
        conversations.clone(),
    ));
    let (carrier, arrivals) = RelayCarrier::start(
        CarrierConfig {
            max_live_reqs: usize::try_from(config.limits.subscriptions).unwrap_or(usize::MAX),
            ..CarrierConfig::default()
        },
        Vec::new(),
    )?;

    let (changed, _) = broadcast::channel(8_192);
    let counters: Arc<Mutex<Counters>> = Arc::default();
    let (deliver, deliveries) = mpsc::unbounded_channel();
    let (labor, labor_orders) = mpsc::unbounded_channel();
    let (presence, presence_orders) = mpsc::unbounded_channel();
    let (transfer_tells, transfer_told) = mpsc::unbounded_channel();
    let (heard, transfer_heard) = mpsc::channel(HEARD_DEPTH);
    let outlets = Outlets {
        delivery: deliver.clone(),
        labor,
        presence: presence.clone(),
        transfers: transfer_tells.clone(),
        changed: changed.clone(),
        counters: counters.clone(),
    };

    let outbox = rows::outbox(&store.view()?)?;
    let stored_transfers = transfer::rows::all(&store.view()?, "")?;
    let read_until_s = rows::read_until_s(&store)?;
    let limits = Limits {
        finished_tasks_max: config.store.max_finished_tasks,
        journal_entries_max: config.store.max_journal_entries,
        ..Limits::default()
    };
    let clock_jump = Duration::from_millis(config.limits.clock_jump_ms);
    let sealer = Arc::new(Sealer {
        identity: identity.clone(),
        conversations,
        pools: pools.clone(),
    });
    let mut core = Core::load(
        policy.clone(),
        store.clone(),
        outlets,
        (limits, quota(&config)),
        clock_jump,
        sealer.clone(),
        mailbox.clone(),
    )?;
    let quiet_until_ms = core.quiet_until_ms.clone();
    let outbox = core.withhold(outbox);
    let (core_ended, core_end) = oneshot::channel();
    std::thread::Builder::new()
        .name("core".into())
        .spawn(move || {
            let _ = core_ended.send(core.run(&mailbox_end));
        })?;

    let outbox_state: Arc<Mutex<OutboxState>> = Arc::default();
    tokio::spawn(Deliverer::run(
        sealer,
        carrier.clone(),
        write,
        outbox,
        mailbox.clone(),
        deliveries,
        outbox_state.clone(),
    ));
    let generation = Arc::new(AtomicU64::new(0));
    let opener = Arc::new(Opener::new(
        keyring.clone(),
        pools.clone(),
        policy.me.clone(),
        home.models_dir(),
    ));
    let transfer_state: Arc<Mutex<TransferState>> = Arc::default();
    let rooms = transfer::Rooms {
        store: store.clone(),
        identity: identity.clone(),
        opener: opener.clone(),
        mailbox: mailbox.clone(),
        delivery: deliver.clone(),
        presence,
        counters: counters.clone(),
        state: transfer_state.clone(),
        tells: transfer_tells.clone(),
        quiet_until_ms,
    };
    tokio::spawn(Transfers::run(
        rooms,
        stored_transfers,
        transfer_heard,
        transfer_told,
    ));
    tokio::spawn(inbox::run(
        opener,
        arrivals,
        mailbox.clone(),
        deliver.clone(),
        inbox::TransferOutlets {
            heard,
            tells: transfer_tells,
        },
        generation.clone(),
        counters.clone(),
    ));

    let cores = super::handlers::usual_cores(&config);
    let (cores_tx, cores_rx) = watch::channel(cores);
    let settings = LaborSettings {
        me: policy.me.clone(),
        args: [
            vec!["worker".into(), "--models".into(), home.models_dir().into()],
            sandbox.args(),
        ]
        .concat(),
        program,
        threads: cores,
        memory_limit_bytes: config.labor.memory_limit_bytes,
        hang_timeout_ms: config.labor.hang_timeout_ms,
        soft_stop_ms: config.labor.soft_stop_ms,
        checkpoint_every_units: u32::try_from(config.labor.checkpoint_every_units).unwrap_or(8),
        scratch: home.root().join("scratch"),
        models: home.models_dir(),
    };
    let profile: Arc<Mutex<Option<String>>> = Arc::default();
    let leases = tokio::spawn(desks::run(
        settings,
        own_skills,
        mailbox.clone(),
        labor_orders,
        profile.clone(),
        cores_rx,
    ));
    let present = Presence {
        identity: identity.clone(),
        keyring,
        carrier: carrier.clone(),
        pools: pools.clone(),
        policy: policy.clone(),
        ad_every: Duration::from_secs(config.market.ad_every_s),
        mailbox: mailbox.clone(),
        delivery: deliver,
        generation,
        relays: read,
        read_until_s,
    };
    tokio::spawn(present.run(presence_orders));
    for relay in relays.relays.iter().filter(|r| r.read || r.write) {
        carrier.add_relay(&relay.url)?;
    }

    let told = own_skill_told(mailbox.clone(), &config);
    let asking = config.labor.enabled.then(|| tokio::spawn(asking.run(told)));
    let (stop, mut stopped) = watch::channel(false);
    let connections = usize::try_from(config.limits.control_connections).unwrap_or(usize::MAX);
    let waits = connections.saturating_sub(RESERVED_CONNECTIONS).max(1);
    let handlers = Arc::new(Handlers {
        waits: Semaphore::new(waits.min(Semaphore::MAX_PERMITS)),
        mailbox: mailbox.clone(),
        home,
        store,
        changed,
        config,
        identity: identity.clone(),
        pools,
        carrier,
        counters,
        outbox: outbox_state,
        transfers: transfer_state,
        profile,
        sandbox: confined,
        cores: cores_tx,
        stop,
        started_ms: clock::now_ms(),
    });
    ready(&json!({"ready": true, "npub": identity.public().npub, "relays": handlers.relays()}));
    let mut core_end = core_end;
    let (shut, mut shutting) = watch::channel(false);
    let serving = tokio::spawn(server.serve(handlers, async move {
        let _ = shutting.wait_for(|s| *s).await;
    }));
    let failed = tokio::select! {
        () = signals.any() => None,
        _ = stopped.wait_for(|s| *s) => None,
        end = &mut core_end => end.ok().and_then(Result::err),
    };
    if let Some(error) = failed {
        tracing::error!(code = error.code(), "the node ends: {error}");
        return Err(error.into());
    }
    let _ = stop_asking.send(true);
    rest(&mailbox).await;
    let _ = shut.send(true);
    let _ = serving.await;
    mailbox.post(Mail::Stop);
    let ended = core_end.await.unwrap_or(Ok(()));
    // The loop and with it all senders of orders are gone: the workers end, and are waited for.
    let _ = tokio::time::timeout(Duration::from_secs(5), leases).await;
    // What was still asked what it is ends, too.
    if let Some(mut asking) = asking
        && tokio::time::timeout(Duration::from_secs(5), &mut asking)
            .await
            .is_err()
    {
        asking.abort();
        let _ = asking.await;
    }
    drop(lock);
    Ok(ended?)
}

/// What the loop hears of a skill of the owner's that was described: how far it is confined, and whether it is offered.
fn own_skill_told(mailbox: Mailbox, config: &Config) -> impl Fn(&'static own::Own, bool) + use<> {
    let (market, works) = (config.market.clone(), works(config));
    move |own, ready| {
        let (skill, level) = (own.id().to_owned(), own.sandbox.level);
        mailbox.post(Mail::Fact(Input::Confined { skill, level }));
        if ready && works {
            mailbox.post(Mail::Fact(Input::Offer(facts(&market, &own.info()))));
        }
    }
}

/// Soft stop, checkpoint: every lease comes to rest before the node goes.
async fn rest(mailbox: &Mailbox) {
    tracing::info!("stopping: leases are brought to rest");
    mailbox.post(Mail::Fact(Input::Shutdown));
    let until = tokio::time::Instant::now() + REST;
    while tokio::time::Instant::now() < until {
        let (answer, said) = oneshot::channel();
        mailbox.post(Mail::Query(Box::new(move |node, _| {
            let _ = answer.send(node.at_rest());
        })));
        if said.await.unwrap_or(true) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tracing::warn!(
        "some leases did not come to rest in time; they go on from their last checkpoint"
    );
}

fn store_options() -> StoreOptions {
    #[cfg(any(feature = "crash-points", debug_assertions))]
    if let Some(plan) = std::env::var("LEGION_STORE_FAULT")
        .ok()
        .and_then(|text| crate::store::FaultPlan::parse(&text))
    {
        return StoreOptions {
            fault: Some(Arc::new(plan)),
            ..StoreOptions::default()
        };
    }
    StoreOptions::default()
}

/// Whether this node has workers.
fn works(config: &Config) -> bool {
    config.labor.enabled && cfg!(feature = "labor")
}

fn quota(config: &Config) -> Quota {
    Quota {
        per_peer: usize::try_from(config.limits.transfers_per_peer).unwrap_or(usize::MAX),
        disk_bytes: config.limits.transfer_disk_bytes,
    }
}

/// The settings as the decisions need them.
fn policy(
    config: &Config,
    identity: &Identity,
    relays: &[String],
    models: &Path,
    sandbox: SandboxLevel,
) -> Result<Policy, NodeError> {
    let public = identity.public();
    let binding = Binding::sign_lasting(identity, clock::now_ms() / 1000 + BINDING_S)?;
    let market = &config.market;
    let offered = if works(config) {
        // A skill whose model is missing is not advertised, nor one of the owner's before it is described.
        skills::offered(models)
    } else {
        Vec::new()
    };
    Ok(Policy {
        me: public.nostr.clone(),
        key: public.ed25519.clone(),
        lct: public.lct.to_string(),
        binding,
        relays: relays.to_vec(),
        pools: config.pools.clone(),
        skills: offered.iter().map(|s| facts(market, s)).collect(),
        device: "cpu".into(),
        implementation: concat!("legion/", env!("CARGO_PKG_VERSION")).into(),
        permissions: permissions(config, sandbox)?,
        default_max_price_mc: market.default_max_price_mc,
        trusted_limit_mc: market.trusted_limit_mc,
        stranger_cap_mc: market.stranger_cap_mc,
        bid_window_ms: market.bid_window_ms,
        accept_within_ms: market.accept_within_ms,
        skew_ms: market.skew_allowance_ms,
        lease_ttl_ms: market.lease_ttl_ms,
        settle_within_ms: market.settle_within_s.saturating_mul(1000),
        max_hibernate_s: market.max_hibernate_s,
        offer_ttl_ms: market.offer_expiry_s.saturating_mul(1000),
        ad_ttl_ms: market.ad_expiry_s.saturating_mul(1000),
        on_cancel: if market.on_cancel == OnCancel::Units {
            "units".into()
        } else {
            "free".into()
        },
        verification: "sampled".into(),
        forged_share_bp: small(config.verification.forged_share_bp),
        detection_bp: small(config.verification.confidence_bp),
        pay_from_bp: small(config.verification.accept_at_bp),
        leases_max: small(config.labor.slots),
        bids_max: small(config.limits.bids_per_offer),
        tasks_per_peer_max: small(config.limits.tasks_per_peer),
        peers_max: small(config.limits.peers_held),
        message_ttl_ms: config.limits.max_message_life_s.saturating_mul(1000),
        restore_patience_ms: config.limits.restore_patience_s.saturating_mul(1000),
        payload_bytes_max: config.limits.payload_bytes,
        attempts_max: 3,
        accept_unverified: [
            true,
            config.verification.accept_unverified_trusted,
            config.verification.accept_unverified_stranger,
        ],
        hop_pool: config.pools.first().cloned(),
        delegation_hops_max: small(config.limits.delegation_hops),
        delegation_calls_max: small(config.limits.delegation_calls),
    })
}

fn facts(market: &Market, skill: &SkillInfo) -> SkillFacts {
    SkillFacts {
        id: skill.id.to_owned(),
        unit_price_mc: market.unit_price_mc(skill.id),
        unit_eta_ms: 20,
        hop_budget_mc: market
            .skill_hop_budget_mc
            .get(skill.id)
            .copied()
            .unwrap_or(0),
    }
}

/// `[permissions]` as the decisions need it.
fn permissions(config: &Config, sandbox: SandboxLevel) -> Result<Permissions, IdentityError> {
    let set = &config.permissions;
    let tiers = [("trusted", &set.trusted), ("stranger", &set.stranger)];
    Ok(Permissions {
        tier: tiers
            .map(|(name, tier)| (name.to_owned(), tier_permission(tier)))
            .into(),
        rules: set.rule.iter().map(rule).collect::<Result<_, _>>()?,
        sandbox,
        skill_sandbox: BTreeMap::new(),
    })
}

fn small(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn tier_permission(tier: &TierPermission) -> Permission {
    Permission {
        allow: Some(tier.delegate),
        skills: Some(tier.execute.clone()),
        max_price_mc: Some(tier.max_price_mc),
        concurrency: Some(small(tier.max_concurrent)),
        rate_per_min: Some(small(tier.max_per_min)),
        sandbox_at_least: Some(tier.sandbox_at_least),
        ..Permission::default()
    }
}

fn rule(rule: &PermissionRule) -> Result<Rule, IdentityError> {
    Ok(Rule {
        peer: rule.peer.as_deref().map(parse_npub).transpose()?,
        role: rule.role.clone(),
        self_claimed: rule.self_claimed,
        skill: rule.skill.clone(),
        permission: Permission {
            allow: rule.allow,
            skills: None,
            budget_mc: rule.budget_mc,
            max_price_mc: rule.max_price_mc,
            unit_price_mc: rule.unit_price_mc,
            concurrency: rule.max_concurrent.map(small),
            rate_per_min: rule.max_per_min.map(small),
            sandbox_at_least: rule.sandbox_at_least,
        },
    })
}
