//! The owner's commands, as the control socket hands them over. Later faces will use the same handlers.

mod ends;
mod records;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, broadcast, oneshot, watch};

use super::control::{ControlError, ControlHandler, NotifySender};
use super::delivery::OutboxState;
use super::order::{Answer, Counters, Mail};
use super::pools::Pools;
use super::transfer::TransferState;
use super::{Mailbox, clock, contact, inbox, view};
use crate::carrier::Handle;
use crate::config::{Config, Home};
use crate::domain::Node;
use crate::domain::job::{Job, Route};
use crate::domain::ledger::AMOUNT_MAX_MC;
use crate::domain::peer::Tier;
use crate::domain::step::{Ask, Input, PauseMode, Refused};
use crate::identity::{Identity, parse_npub};
use crate::labor::skills::own;
use crate::labor::{SandboxReport, skills};
use crate::store::{Store, StoreError};
use crate::wire::canonical;

/// Longest idempotency key, in characters.
const KEY_MAX_CHARS: usize = 128;

/// Most threads that a worker is asked to start, whatever the machine has.
const CORES_MAX: u32 = 1_024;

/// What the handlers look at and speak with.
pub struct Handlers {
    /// Room for calls that wait for the end of a task: fewer than connections, so that every other command finds one.
    pub waits: Semaphore,
    /// To the loop.
    pub mailbox: Mailbox,
    /// Tasks whose view has changed.
    pub changed: broadcast::Sender<String>,
    /// The home.
    pub home: Home,
    /// Its store.
    pub store: Arc<Store>,
    /// Settings.
    pub config: Config,
    /// Our keys, for proofs.
    pub identity: Arc<Identity>,
    /// The pools joined.
    pub pools: Arc<Pools>,
    /// The carrier, for its status.
    pub carrier: Handle,
    /// Counters of the loop.
    pub counters: Arc<Mutex<Counters>>,
    /// The outbox.
    pub outbox: Arc<Mutex<OutboxState>>,
    /// Payloads on their way.
    pub transfers: Arc<Mutex<TransferState>>,
    /// Numeric profile of the worker, once known.
    pub profile: Arc<Mutex<Option<String>>>,
    /// What confines the workers; none if this node has no workers.
    pub sandbox: Option<SandboxReport>,
    /// Cores for the workers.
    pub cores: watch::Sender<u32>,
    /// Ends the node.
    pub stop: watch::Sender<bool>,
    /// When the node started, Unix milliseconds.
    pub started_ms: u64,
}

#[derive(Deserialize)]
struct AskParams {
    skill: String,
    input: Value,
    pool: Option<String>,
    peer: Option<String>,
    max_price_mc: Option<u64>,
    deadline_s: Option<u64>,
    key: Option<String>,
    #[serde(default)]
    critical: bool,
}

#[derive(Deserialize)]
struct IdParams {
    id: String,
}

#[derive(Deserialize)]
struct TrustParams {
    /// An npub, a key in hex, or a contact.
    npub: String,
    tier: Tier,
    limit_mc: Option<u64>,
}

#[derive(Deserialize)]
struct PeerParams {
    npub: Option<String>,
}

#[derive(Deserialize)]
struct PauseParams {
    mode: Option<PauseMode>,
    for_s: Option<u64>,
}

#[derive(Deserialize)]
struct ResumeParams {
    cores: Option<u64>,
}

#[derive(Deserialize)]
struct CoresParams {
    n: u64,
}

impl ControlHandler for Handlers {
    async fn call(
        &self,
        method: &str,
        params: Value,
        notify: NotifySender,
    ) -> Result<Value, ControlError> {
        match method {
            "node/status" => self.status().await,
            "node/stop" => {
                self.stop.send_replace(true);
                Ok(json!({"stopping": true}))
            }
            "task/ask" => self.ask(parse(params)?).await,
            "task/get" => self.task(&parse::<IdParams>(params)?.id).await,
            "task/list" => self.look(view::tasks).await,
            "task/wait" => self.wait(&parse::<IdParams>(params)?.id, &notify).await,
            "task/cancel" => {
                let id = parse::<IdParams>(params)?.id;
                if let Err(error) = self.command(Input::Cancel { task: id.clone() }).await {
                    let worked_on = error.code == "task_unknown" && self.task(&id).await.is_ok();
                    return Err(if worked_on { not_asked() } else { error });
                }
                self.task(&id).await
            }
            "task/why" => {
                let id = parse::<IdParams>(params)?.id;
                let now = clock::now_ms();
                let found = self.look(move |node, store| {
                    Ok(match view::why(node, store, &id, now)? {
                        Some(why) => Ok(why),
                        None => Err(view::task(node, store, &id)?.is_some()),
                    })
                });
                found.await?.map_err(|worked_on| match worked_on {
                    true => not_asked(),
                    false => unknown_task(),
                })
            }
            "peers/list" => {
                self.look(|node, _| Ok(view::peers(node, clock::now_ms())))
                    .await
            }
            "peers/trust" => {
                let params: TrustParams = parse(params)?;
                let known = contact::read(&params.npub, clock::now_ms() / 1000)
                    .map_err(|e| ControlError::told(e.code(), &e))?;
                let npub = match &known {
                    Some(known) => known.npub.clone(),
                    None => key_of(&params.npub)?,
                };
                if npub == self.identity.public().nostr {
                    let message = "this is the node's own npub";
                    return Err(ControlError::new("peer_is_self", message));
                }
                if params.limit_mc.is_some() && params.tier != Tier::Trusted {
                    let message = "only a trusted peer has a limit of its own";
                    return Err(ControlError::new("limit_unused", message));
                }
                if params.limit_mc.is_some_and(|limit| limit > AMOUNT_MAX_MC) {
                    let message = format!("a credit limit is at most {AMOUNT_MAX_MC} mc");
                    return Err(ControlError::new("amount_range", message));
                }
                if let Some(known) = known {
                    self.command(Input::Introduce(Box::new(known))).await?;
                }
                self.command(Input::Trust {
                    npub,
                    tier: params.tier,
                    limit_mc: params.limit_mc,
                })
                .await?;
                self.look(|node, _| Ok(view::peers(node, clock::now_ms())))
                    .await
            }
            "peers/forget" => {
                let npub = key_of(&parse::<PeerParams>(params)?.npub.unwrap_or_default())?;
                self.command(Input::Forget { npub }).await?;
                self.look(|node, _| Ok(view::peers(node, clock::now_ms())))
                    .await
            }
            "owner/pause" => {
                let params: PauseParams = parse(params)?;
                let mode = params.mode.unwrap_or(PauseMode::Now);
                self.command(Input::Pause {
                    mode,
                    for_ms: params.for_s.map(|s| s.saturating_mul(1000)),
                })
                .await?;
                self.look(|node, _| Ok(json!({"paused": node.owner().paused})))
                    .await
            }
            "owner/resume" => {
                // All of the machine that the settings allow, too, or as many cores as are named.
                let wanted = match parse::<ResumeParams>(params)?.cores {
                    Some(n) => cores_of(n)?,
                    None => usual_cores(&self.config),
                };
                let fewer = self.cores.send_replace(wanted) != wanted;
                match self.command(Input::Resume).await {
                    Err(error) if !(fewer && error.code == "not_paused") => Err(error),
                    _ => Ok(json!({"paused": null})),
                }
            }
            "owner/cores" => {
                let n = cores_of(parse::<CoresParams>(params)?.n)?;
                self.cores.send_replace(n);
                Ok(json!({"cores": n}))
            }
            "ledger/get" => {
                let only = parse::<PeerParams>(params)?
                    .npub
                    .map(|n| key_of(&n))
                    .transpose()?;
                let found = self.look(move |node, store| {
                    let known = only.as_deref().is_none_or(|npub| {
                        node.peers().contains_key(npub)
                            || node.ledger().accounts().any(|a| a.npub == npub)
                    });
                    match known {
                        true => view::ledger(node, store, only.as_deref()).map(Some),
                        false => Ok(None),
                    }
                });
                let unknown = || ControlError::new("peer_unknown", "no such peer is known here");
                found.await?.ok_or_else(unknown)
            }
            "contact/show" => {
                let relays = self.look(|node, _| Ok(node.policy().relays.clone()));
                contact::show(&self.identity, relays.await?, clock::now_ms() / 1000)
                    .map_err(|e| ControlError::told(e.code(), &e))
            }
            "pools/list" | "pools/create" | "pools/join" | "pools/invite" | "pools/rotate"
            | "pools/leave" => {
                if method != "pools/list" {
                    // What its peers tell it may not fit what was changed meanwhile; an invite of an old secret helps nobody.
                    let now = self.look(|node, _| Ok(node.not_now(None))).await?;
                    now.map_err(|refused| refusal(&refused))?;
                }
                let (pools, method) = (self.pools.clone(), method.to_owned());
                // A change is on the disk before it is answered.
                tokio::task::spawn_blocking(move || pools.call(&method, params))
                    .await
                    .map_err(|_| stopping())?
            }
            "proof/export" => self.proof(&parse::<IdParams>(params)?.id).await,
            "journal/read" => self.journal(params).await,
            "node/backup" => self.backup(parse(params)?).await,
            "restore/accept" => self.accept_losses(parse(params)?).await,
            other => Err(ControlError::unknown_method(other)),
        }
    }
}

impl Handlers {
    async fn ask(&self, params: AskParams) -> Result<Value, ControlError> {
        if let Some(key) = &params.key {
            check_key(key)?;
        }
        if !params.input.is_object() {
            let message = "the input must be a JSON object with named fields, as {\"spot\": 100}";
            return Err(ControlError::new("input_not_object", message));
        }
        let mut seed = [0u8; 8];
        getrandom::fill(&mut seed)
            .map_err(|e| ControlError::new("entropy_unavailable", e.to_string()))?;
        let fingerprint =
            canonical::canonical_json(&json!({"skill": params.skill, "input": params.input}))
                .map(|bytes| canonical::sha256_hex(&bytes))
                .map_err(|e| ControlError::new("input_invalid", e.to_string()))?;
        own::settled(&params.skill).await;
        let known = skills::catalog().iter().any(|s| s.id == params.skill);
        let input = match known {
            true => skills::complete_input(&params.skill, &params.input, u64::from_be_bytes(seed))
                .map_err(|e| ControlError::new(e.code(), e.to_string()))?,
            false => params.input,
        };
        let plan = match known {
            true => Some(
                inbox::plan(&params.skill, &input)
                    .map_err(|e| ControlError::new(e.code, e.message))?,
            ),
            false => None,
        };
        let route = match (params.peer, params.pool) {
            (Some(peer), _) if peer == "self" => Route::Own,
            (Some(peer), _) => Route::Peer(key_of(&peer)?),
            (None, Some(pool)) => Route::Pool(pool),
            (None, None) => match self.config.pools.first() {
                Some(pool) => Route::Pool(pool.clone()),
                None => {
                    return Err(ControlError::new(
                        "pool_missing",
                        "this node has joined no pool",
                    ));
                }
            },
        };
        // What nobody can compute again is not promised to be: it is asked for by name, like a skill that is unknown here.
        let plan = plan.filter(|_| route == Route::Own || skills::is_recomputable(&params.skill));
        if plan.is_none() && matches!(route, Route::Pool(_)) {
            return Err(ControlError::new(
                "skill_unknown",
                format!(
                    "this node cannot count and check the units of {}: ask a peer directly with `--peer`",
                    params.skill
                ),
            ));
        }
        let ask = Ask {
            skill: params.skill,
            input,
            plan,
            route,
            max_price_mc: params.max_price_mc,
            deadline_ms: params
                .deadline_s
                .unwrap_or(self.config.market.deadline_s)
                .saturating_mul(1000),
            key: params.key.clone(),
            fingerprint,
            critical: params.critical,
        };
        let Answer::Task(id) = self.command(Input::Ask(Box::new(ask))).await? else {
            return Err(ControlError::new("internal", "the loop gave no task"));
        };
        let mut answer = self.task(&id).await?;
        if let Some(object) = answer.as_object_mut() {
            object.insert("key".into(), json!(params.key));
        }
        Ok(answer)
    }

    async fn task(&self, id: &str) -> Result<Value, ControlError> {
        let id = id.to_owned();
        self.look(move |node, store| view::task(node, store, &id))
            .await?
            .ok_or_else(unknown_task)
    }

    async fn wait(&self, id: &str, notify: &NotifySender) -> Result<Value, ControlError> {
        let _room = self.waits.try_acquire().map_err(|_| {
            let text = "as many commands wait for tasks here as may (limits.control_connections, less a few for the others)";
            ControlError::new("too_many_waits", text)
        })?;
        let mut changed = self.changed.subscribe();
        let mut told = String::new();
        loop {
            let wanted = id.to_owned();
            let (job, done) = self
                .look(move |node, store| {
                    let job = match node.jobs().get(&wanted) {
                        Some(job) => Some(job.clone()),
                        None => super::rows::job(&store.view()?, &wanted)?,
                    };
                    let done = match &job {
                        Some(job) if job.state.is_final() => Some(view::outcome(store, job)?),
                        _ => None,
                    };
                    Ok((job, done))
                })
                .await?;
            let job = job.ok_or_else(unknown_task)?;
            if let Some(done) = done {
                return ends::finished(&job, done);
            }
            let text = self.describe(&job);
            if text != told {
                let reason = job.reason.as_ref();
                notify.send(json!({"text": text, "id": id, "state": job.state.as_str(), "reason": reason.map(|r| r.code.clone()), "retry_at_ms": reason.and_then(|r| r.retry_at_ms)}));
                told = text;
            }
            loop {
                match tokio::time::timeout(Duration::from_secs(5), changed.recv()).await {
                    Ok(Ok(task)) if task != id => {}
                    Ok(Err(broadcast::error::RecvError::Closed)) => {
                        return Err(ControlError::new(
                            "node_stopping",
                            "the node is going down; the task goes on when it is back",
                        )
                        .with_hint(format!("`legion up`, and then `legion wait {id}`")));
                    }
                    _ => break,
                }
            }
        }
    }

    fn describe(&self, job: &Job) -> String {
        let reason = job
            .reason
            .as_ref()
            .map_or_else(String::new, |r| format!("{}: {}", r.code, r.text));
        let offline = self
            .carrier
            .status()
            .iter()
            .all(|r| !is_connected(&r.state));
        if offline && job.route != Route::Own {
            format!("no relay is reachable, everything is queued; {reason}")
        } else {
            // `working: working: ...` would say it twice.
            let state = format!("{}: ", job.state.as_str());
            format!("{state}{}", reason.strip_prefix(&state).unwrap_or(&reason))
        }
    }

    async fn status(&self) -> Result<Value, ControlError> {
        let relays: serde_json::Map<String, Value> = self.relays();
        let counters = self.counters.lock().map(|c| c.clone()).unwrap_or_default();
        let outbox = self.outbox.lock().map(|o| *o).unwrap_or_default();
        let moving = self.transfers.lock().map(|t| *t).unwrap_or_default();
        let profile = self.profile.lock().map(|p| p.clone()).unwrap_or_default();
        let public = self.identity.public().clone();
        let (started_ms, cores) = (self.started_ms, *self.cores.borrow());
        let sandbox = self.sandbox.clone();
        self.look(move |node, store| {
            let count = |stage| node.work().values().filter(|w| w.stage == stage).count();
            use crate::domain::engagement::Stage;
            let offered: Vec<String> = node.policy().skills.iter().map(|s| s.id.clone()).collect();
            Ok(json!({
                "version": env!("CARGO_PKG_VERSION"), "npub": public.npub, "lct": public.lct.to_string(),
                "up_ms": clock::now_ms().saturating_sub(started_ms), "relays": relays, "pools": node.policy().pools,
                "skills": offered, "own_skills": super::workers::own_skills_shown(&offered), "device": node.policy().device, "profile": profile, "cores": cores, "sandbox": sandbox, "skill_sandbox": super::workers::skill_sandboxes_shown(),
                "tasks": {"open": node.jobs().values().filter(|j| !j.state.is_final()).count(), "settling": node.jobs().values().filter(|j| j.state.is_final()).count()},
                "work": {"queued": count(Stage::Queued), "running": count(Stage::Running) + count(Stage::Stopping), "hibernating": count(Stage::Hibernating), "waiting": count(Stage::Waiting) + count(Stage::Closing),
                         "awaiting_receipt": count(Stage::Finished), "overdue": count(Stage::Overdue), "disputed": count(Stage::Disputed)},
                "paused": node.owner().paused, "peers": node.peers().len(), "locks": node.ledger().locks().count(),
                "outbox": {"waiting": outbox.waiting, "untaken": outbox.untaken}, "dropped": counters.dropped,
                "transfers": {"incoming": moving.incoming, "outgoing": moving.outgoing, "done_bytes": moving.done_bytes, "bytes": moving.bytes,
                              "chunks_sent": moving.chunks_sent, "chunks_resent": moving.chunks_resent, "chunks_new": moving.chunks_new}, "commits": counters.commits,
                "store_bytes": store.file_bytes()?, "recovering": view::recovery(node), "elsewhere": node.elsewhere(),
                "epoch_behind": view::behind(node),
            }))
        })
        .await
    }

    /// The relays as `up` and `status` show them.
    pub fn relays(&self) -> serde_json::Map<String, Value> {
        self.carrier
            .status()
            .iter()
            .map(|r| (r.url.to_string(), json!({"connected": is_connected(&r.state), "state": format!("{:?}", r.state).split([' ', '{']).next(), "last_error": r.last_error, "refuses": r.refuses, "rtt_ms": r.rtt_ms, "in": r.events_in, "out": r.events_out})))
            .collect()
    }

    pub(super) async fn command(&self, input: Input) -> Result<Answer, ControlError> {
        let (answer, said) = oneshot::channel();
        self.mailbox.post(Mail::Command(input, answer));
        said.await
            .map_err(|_| stopping())?
            .map_err(|refused| refusal(&refused))
    }

    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Node, &Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let (answer, said) = oneshot::channel();
        let ask = Box::new(move |node: &Node, store: &Store| {
            let _ = answer.send(look(node, store));
        });
        self.mailbox.post(Mail::Query(ask));
        said.await
            .map_err(|_| stopping())?
            .map_err(|e| ControlError::told(e.code(), &e))
    }
}

pub(super) fn is_connected(state: &crate::carrier::RelayState) -> bool {
    use crate::carrier::RelayState::{CaughtUp, Connected, HistoryGap, SubscriptionRefused};
    matches!(
        state,
        Connected | CaughtUp { .. } | HistoryGap { .. } | SubscriptionRefused { .. }
    )
}

/// So many cores as the owner named, 0 being all of them; what the machine does not have is a slip of the hand.
fn cores_of(n: u64) -> Result<u32, ControlError> {
    let all = machine_cores();
    match u32::try_from(n) {
        Ok(0) => Ok(all),
        Ok(n) if n <= all => Ok(n),
        _ => {
            let message = format!("{n} cores are more than this machine has: {all}");
            let hint = format!("pass --cores with 1 to {all}");
            Err(ControlError::new("cores_invalid", message).with_hint(hint))
        }
    }
}

fn machine_cores() -> u32 {
    let all = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    all.min(CORES_MAX)
}

/// Cores for foreign work as configured; all of the machine where nothing is.
pub fn usual_cores(config: &Config) -> u32 {
    match u32::try_from(config.labor.cores).unwrap_or(0) {
        0 => machine_cores(),
        n => n,
    }
}

fn parse<T: serde::de::DeserializeOwned>(params: Value) -> Result<T, ControlError> {
    let params = if params.is_null() { json!({}) } else { params };
    serde_json::from_value(params).map_err(|e| ControlError::bad_params(e.to_string()))
}

/// A name that a person can type again: it is printed and kept for a week.
fn check_key(key: &str) -> Result<(), ControlError> {
    let length = key.chars().count();
    let printable = !key.trim().is_empty() && !key.chars().any(char::is_control);
    if printable && length <= KEY_MAX_CHARS {
        return Ok(());
    }
    let message = match length {
        0..=KEY_MAX_CHARS => "the key is empty or not printable".to_owned(),
        _ => format!("the key has {length} characters, {KEY_MAX_CHARS} are the limit"),
    };
    Err(ControlError::new("key_invalid", message))
}

pub(super) fn key_of(text: &str) -> Result<String, ControlError> {
    parse_npub(text).map_err(|e| ControlError::told(e.code(), &e))
}

fn unknown_task() -> ControlError {
    ControlError::new("task_unknown", "no task with this id is known here")
}

fn not_asked() -> ControlError {
    let message = "another node asked for this task; this one works on it";
    ControlError::new("task_not_asked", message)
}

pub(super) fn stopping() -> ControlError {
    ControlError::new("node_stopping", "the node is going down")
}

fn refusal(refused: &Refused) -> ControlError {
    ControlError::new(refused.code.clone(), refused.message.clone())
}
