//! Arrivals: what relays bring is verified, opened and parsed here, in parallel and before the loop sees any of it.
//!
//! Order is kept: a marker that all inboxes were read to their end reaches the loop only after everything read before it.

mod plan;
mod reach;
mod recent;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nostr::{Event, EventId, PublicKey};
pub use plan::plan;
use plan::{lacking_here, plan_here};
use reach::Reach;
use recent::Recent;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::delivery::Tell;
use super::order::{Arrival, Mail};
use super::pools::Pools;
use super::transfer::{Heard, Tell as TransferTell};
use super::{Mailbox, clock};
use crate::carrier::{CarrierEvent, RelayState};
use crate::domain::step::{Incoming, Input};
use crate::labor::skills::own;
use crate::wire::binding::{Binding, BoundKeys};
use crate::wire::bounds;
use crate::wire::message::{Body, Message, News};
use crate::wire::transfer::Transfer;
use crate::wire::verify::{Inbox, Keyring, Verified, verify_within};

/// Events verified in one go.
const CHUNK: usize = 64;
/// So few events are opened on the reading task itself, at some 0.35 ms each.
const OPEN_HERE: usize = 2;
/// Verified bindings remembered.
const BINDINGS_MAX: usize = 4_096;
/// Wraps opened per second and pool; what is beyond is announced again by its author.
const POOL_DECRYPTS_PER_S: u32 = 500;
/// Without any relay after this long the node goes on by itself.
const ALONE_AFTER: Duration = Duration::from_secs(5);

/// The ways to the transfers.
pub(in crate::node) struct TransferOutlets {
    /// What is said about them.
    pub(in crate::node) heard: mpsc::Sender<Heard>,
    /// What else they must know.
    pub(in crate::node) tells: mpsc::UnboundedSender<TransferTell>,
}

/// A stable code under which a refusal is counted.
pub type Code = &'static str;

/// What turns events into arrivals.
pub struct Opener {
    /// Our inbox keys.
    pub keyring: Arc<Keyring>,
    bindings: Mutex<BTreeMap<(String, String), BoundKeys>>,
    /// Per pool: the second, and how many wraps were opened in it.
    opened: Mutex<BTreeMap<String, (u64, u32)>>,
    pools: Arc<Pools>,
    me: String,
    /// Where this machine's models are registered.
    models: PathBuf,
}

impl Opener {
    /// An opener for this ring.
    pub fn new(keyring: Arc<Keyring>, pools: Arc<Pools>, me: String, models: PathBuf) -> Self {
        Self {
            keyring,
            bindings: Mutex::default(),
            opened: Mutex::default(),
            pools,
            me,
            models,
        }
    }

    /// Verifies and opens one event.
    ///
    /// # Errors
    /// The stable code of the refusal.
    pub fn open(&self, event: &Event, now_s: u64) -> Result<Opened, Code> {
        let budget = |inbox: &Inbox| self.within_budget(inbox, now_s);
        let verified =
            verify_within(event, &self.keyring, now_s, budget).map_err(|refusal| refusal.code())?;
        let pool = match &verified.inbox {
            Inbox::Pool { name, .. } => Some(name.clone()),
            Inbox::Own | Inbox::Task(_) => None,
        };
        let audience = |to: &str| match &verified.inbox {
            Inbox::Own => to == self.me,
            Inbox::Pool { name, epoch, .. } => {
                self.pools.is_audience(to, name, *epoch, &verified.author)
            }
            Inbox::Task(task) => self.is_reply_key(to, task),
        };
        let parsed = Message::parse(&verified.content, audience).map_err(|e| e.code())?;
        let mut arrival = Arrival {
            from: verified.author.to_hex(),
            author: verified.author.to_bytes(),
            rumor: verified.rumor_id.to_bytes(),
            wrap: verified.wrap_id.to_bytes(),
            expires_s: verified
                .expires_at_s
                .unwrap_or(verified.created_at_s + 30 * 86_400)
                + 86_400,
            stored: !verified.ephemeral,
            inbox: verified.inbox.clone(),
            messages: Vec::new(),
            refused: Vec::new(),
        };
        let (mut acked, mut transfers) = (Vec::new(), Vec::new());
        for message in parsed {
            match message {
                Err(error) => arrival.refused.push(error.code()),
                Ok(Message {
                    body: Body::Ack(ack),
                    ..
                }) if pool.is_none() => acked.extend(ack.rumors),
                Ok(Message {
                    body: body @ Body::Transfer(_),
                    ..
                }) => match transfer_of(&verified, body) {
                    Ok(said) => transfers.push(said),
                    Err(code) => arrival.refused.push(code),
                },
                Ok(message) => match self.admit(&verified, message.body, pool.clone(), now_s) {
                    Ok(incoming) => arrival.messages.push(incoming),
                    Err(code) => arrival.refused.push(code),
                },
            }
        }
        Ok(Opened {
            author: verified.author,
            said_s: verified.created_at_s,
            acked,
            transfers,
            arrival,
        })
    }

    fn is_reply_key(&self, to: &str, task: &str) -> bool {
        PublicKey::from_hex(to).is_ok_and(|key| {
            self.keyring
                .inboxes()
                .iter()
                .any(|(k, inbox)| *k == key && matches!(inbox, Inbox::Task(t) if t == task))
        })
    }

    fn admit(
        &self,
        verified: &Verified,
        body: Body,
        pool: Option<String>,
        now_s: u64,
    ) -> Result<Incoming, Code> {
        belongs(verified, &body)?;
        self.admit_body(verified.author, body, pool, now_s)
    }

    /// A message of ours to hear, from `from` (hex), that was verified when it came and has its payload now.
    ///
    /// # Errors
    /// The stable code of the refusal.
    pub fn admit_whole(&self, from: &str, body: Body, now_s: u64) -> Result<Incoming, Code> {
        let author = PublicKey::from_hex(from).map_err(|_| "author_invalid")?;
        self.admit_body(author, body, None, now_s)
    }

    fn admit_body(
        &self,
        author: PublicKey,
        mut body: Body,
        pool: Option<String>,
        now_s: u64,
    ) -> Result<Incoming, Code> {
        bounds::check(&body, now_s.saturating_mul(1000)).map_err(|e| e.code())?;
        bounds::keep_public_relays(&mut body);
        bounds::cut_texts(&mut body);
        if body.entry().is_some_and(|entry| !entry.is_signed()) {
            return Err("entry_signature");
        }
        if let Body::Update(update) = &body
            && let News::Completed(result) = &update.news
            && !result.proof.is_signed()
        {
            return Err("proof_signature");
        }
        if let Body::Entries(page) = &body {
            super::recovery::check_signatures(page)?;
        }
        let keys = match binding_of(&body) {
            Some(binding) => Some(self.bound(author, binding, now_s)?),
            None => None,
        };
        let plan = match &body {
            // Without its input there is nothing to plan yet.
            Body::Award(award) | Body::Request(award) if award.detached.is_none() => {
                Some(plan_here(&award.skill, &award.input, &self.models))
            }
            Body::Offer(offer) => {
                let lacking = lacking_here(&offer.skill, offer.model.as_deref(), &self.models);
                lacking.map(Err)
            }
            _ => None,
        };
        Ok(Incoming {
            from: author.to_hex(),
            body,
            pool,
            plan,
            keys,
        })
    }

    /// Waits for a skill of the owner's that is still being asked what it is: an award for it is judged by what it says.
    async fn judge_again(&self, incoming: &mut Incoming) {
        let (Body::Award(award) | Body::Request(award)) = &incoming.body else {
            return;
        };
        if matches!(&incoming.plan, Some(Err(refused)) if refused.code == "skill_unknown")
            && award.detached.is_none()
        {
            own::settled(&award.skill).await;
            incoming.plan = Some(plan_here(&award.skill, &award.input, &self.models));
        }
    }

    /// A pool's members share one budget of decryptions; our own inboxes have none.
    fn within_budget(&self, inbox: &Inbox, now_s: u64) -> bool {
        let Inbox::Pool { name, .. } = inbox else {
            return true;
        };
        let Ok(mut opened) = self.opened.lock() else {
            return true;
        };
        let (second, count) = opened.entry(name.clone()).or_default();
        if *second != now_s {
            (*second, *count) = (now_s, 0);
        }
        *count = count.saturating_add(1);
        *count <= POOL_DECRYPTS_PER_S
    }

    fn bound(&self, author: PublicKey, binding: &Binding, now_s: u64) -> Result<BoundKeys, Code> {
        let name = (author.to_hex(), binding.sig_ed25519.clone());
        if let Ok(known) = self.bindings.lock()
            && let Some(keys) = known.get(&name)
            && keys.not_after_s > now_s
            && binding.statement.ed25519 == hex::encode(keys.ed25519)
        {
            return Ok(keys.clone());
        }
        let keys = binding.verify(&author, now_s).map_err(|e| e.code())?;
        if let Ok(mut known) = self.bindings.lock() {
            if known.len() >= BINDINGS_MAX {
                known.clear();
            }
            known.insert(name, keys.clone());
        }
        Ok(keys)
    }
}

/// Whether a message may come this way at all.
fn belongs(verified: &Verified, body: &Body) -> Result<(), Code> {
    let notice = matches!(body, Body::Ad(_) | Body::Offer(_) | Body::Withdraw(_));
    match &verified.inbox {
        Inbox::Pool { .. } if !notice => return Err("pool_private"),
        // An offer past the pool would come without the work that a pool asks for.
        Inbox::Own if matches!(body, Body::Offer(_)) => return Err("offer_direct"),
        // A one-time key hears answers to its own offer; what else came to it would tie it to this node.
        Inbox::Task(task) => match body {
            Body::Bid(bid) if bid.task == *task => {}
            Body::Decline(decline) if decline.task == *task && decline.award_no == 0 => {}
            _ => return Err("reply_key_misused"),
        },
        Inbox::Pool { .. } | Inbox::Own => {}
    }
    // Ephemeral rumors are not remembered, so only what may be heard twice may come in one: whoever reads a message could
    // otherwise wrap its seal again and again, each time with effect.
    let news = matches!(body, Body::Update(u) if matches!(u.news, News::Working { .. }));
    let hello = matches!(body, Body::Hello(_));
    if verified.ephemeral && !news && !hello && !matches!(body, Body::Withdraw(_)) {
        return Err("ephemeral_refused");
    }
    Ok(())
}

/// What is said of a transfer, if it may come this way: to our own key, chunks in a stored wrap, the rest in an ephemeral one.
fn transfer_of(verified: &Verified, body: Body) -> Result<Transfer, Code> {
    bounds::check(&body, 0).map_err(|e| e.code())?;
    let Body::Transfer(said) = body else {
        return Err("transfer_misplaced");
    };
    let fits = matches!(*said, Transfer::Chunk(_)) != verified.ephemeral;
    if verified.inbox != Inbox::Own || !fits {
        return Err("transfer_misplaced");
    }
    Ok(*said)
}

/// Events by id, with what each brought or why it is refused.
type Judged = Vec<(EventId, Result<Opened, Code>)>;

/// What one event brought.
pub struct Opened {
    /// Who sent it.
    pub author: PublicKey,
    /// When, Unix seconds, by its clock.
    pub said_s: u64,
    /// Rumors it acknowledges.
    pub acked: Vec<String>,
    /// What it says of transfers.
    pub transfers: Vec<Transfer>,
    /// The rest.
    pub arrival: Arrival,
}

fn binding_of(body: &Body) -> Option<&Binding> {
    match body {
        Body::Ad(ad) => Some(&ad.binding),
        Body::Bid(bid) => Some(&bid.binding),
        Body::Award(award) | Body::Request(award) => Some(&award.binding),
        Body::Accept(accept) => Some(&accept.binding),
        Body::Decline(decline) => decline.binding.as_ref(),
        Body::Since(since) => Some(&since.binding),
        Body::Entries(page) => Some(&page.binding),
        _ => None,
    }
}

/// Reads the carrier until it ends.
pub(in crate::node) async fn run(
    opener: Arc<Opener>,
    mut events: mpsc::Receiver<CarrierEvent>,
    mailbox: Mailbox,
    delivery: mpsc::UnboundedSender<Tell>,
    transfers: TransferOutlets,
    generation: Arc<std::sync::atomic::AtomicU64>,
    counters: Arc<Mutex<super::order::Counters>>,
) {
    let mut recent = Recent::default();
    let mut drained = 0;
    let mut reach = Reach::default();
    let alone = tokio::time::sleep(ALONE_AFTER);
    tokio::pin!(alone);
    let mut waiting_alone = true;
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let first = tokio::select! {
            event = events.recv() => match event { Some(event) => event, None => return },
            _ = tick.tick() => {
                let newest = generation.load(std::sync::atomic::Ordering::SeqCst);
                post(&mailbox, reach.judge(newest, Instant::now()));
                continue;
            }
            () = &mut alone, if waiting_alone => {
                waiting_alone = false;
                if reach.is_empty() {
                    mailbox.post(Mail::Fact(Input::CaughtUp { online: false }));
                }
                continue;
            }
        };
        // A drain looks at everything anew: what was taken before is acknowledged once more, should that have been lost.
        let newest = generation.load(std::sync::atomic::Ordering::SeqCst);
        if std::mem::replace(&mut drained, newest) != newest {
            recent = Recent::default();
        }
        let mut chunk = Vec::new();
        let mut rest = vec![first];
        while chunk.len() + rest.len() < CHUNK {
            match events.try_recv() {
                Ok(event) => rest.push(event),
                Err(_) => break,
            }
        }
        for event in rest {
            match event {
                CarrierEvent::Arrived { relay, event } => {
                    reach.heard(&relay, Instant::now());
                    // Until it is judged, another body under the same id may be the true one.
                    let rival = |other: &Event| other.id == event.id && *other != *event;
                    if recent.insert(event.id) || chunk.iter().any(rival) {
                        chunk.push(*event);
                    }
                }
                CarrierEvent::Published {
                    event_id,
                    relay,
                    outcome,
                } => {
                    let _ = delivery.send(Tell::Published {
                        event_id,
                        relay,
                        outcome,
                    });
                }
                CarrierEvent::Relay { url, state } => {
                    // What was read before a state change is let in before it is told.
                    forward(
                        &opener,
                        std::mem::take(&mut chunk),
                        &mailbox,
                        &delivery,
                        &transfers,
                        &counters,
                        &mut recent,
                    )
                    .await;
                    if matches!(state, RelayState::CaughtUp { .. }) {
                        let _ = transfers.tells.send(TransferTell::CaughtUp);
                    }
                    tell(
                        url,
                        state,
                        &mut reach,
                        &mailbox,
                        &delivery,
                        generation.load(std::sync::atomic::Ordering::SeqCst),
                    );
                }
            }
        }
        forward(
            &opener,
            chunk,
            &mailbox,
            &delivery,
            &transfers,
            &counters,
            &mut recent,
        )
        .await;
    }
}

async fn forward(
    opener: &Arc<Opener>,
    chunk: Vec<Event>,
    mailbox: &Mailbox,
    delivery: &mpsc::UnboundedSender<Tell>,
    transfers: &TransferOutlets,
    counters: &Arc<Mutex<super::order::Counters>>,
    recent: &mut Recent,
) {
    if chunk.is_empty() {
        return;
    }
    let now_s = clock::now_ms() / 1000;
    let mut judged = if chunk.len() <= OPEN_HERE {
        open_all(opener, &chunk, now_s)
    } else {
        open_in_halves(opener, chunk, now_s).await
    };
    let good: HashSet<EventId> = judged
        .iter()
        .filter(|(_, outcome)| outcome.is_ok())
        .map(|(id, _)| *id)
        .collect();
    for (id, outcome) in judged.drain(..) {
        match outcome {
            Ok(opened) => {
                let _ = delivery.send(Tell::Heard {
                    from: opened.author,
                    said_s: opened.said_s,
                    acked: opened.acked,
                });
                let mut arrival = opened.arrival;
                for incoming in &mut arrival.messages {
                    opener.judge_again(incoming).await;
                }
                let only = !opened.transfers.is_empty()
                    && arrival.messages.is_empty()
                    && arrival.refused.is_empty();
                for said in opened.transfers {
                    let kept = arrival
                        .stored
                        .then(|| (arrival.inbox.clone(), arrival.wrap));
                    let heard = Heard {
                        from: arrival.from.clone(),
                        // What else came in the wrap is the loop's to keep.
                        stored: kept.filter(|_| only),
                        said,
                    };
                    // Waits for room: a flood of pieces slows the socket and not the node.
                    let _ = transfers.heard.send(heard).await;
                }
                if !only {
                    mailbox.deliver(Mail::Arrival(Box::new(arrival))).await;
                }
            }
            Err(code) => {
                // A tampered copy must not shadow the real event of the same id.
                if !good.contains(&id) {
                    recent.remove(&id);
                }
                tracing::debug!(code, "event refused");
                if let Ok(mut counters) = counters.lock() {
                    *counters.dropped.entry(code.to_owned()).or_default() += 1;
                }
            }
        }
    }
}

/// Two halves on two threads: opening is nearly all elliptic-curve work.
async fn open_in_halves(opener: &Arc<Opener>, mut left: Vec<Event>, now_s: u64) -> Judged {
    let right = left.split_off(left.len().div_ceil(2));
    let [left, right] = [left, right].map(|events| {
        let opener = opener.clone();
        tokio::task::spawn_blocking(move || open_all(&opener, &events, now_s))
    });
    let mut judged = left.await.unwrap_or_default();
    judged.extend(right.await.unwrap_or_default());
    judged
}

fn open_all(opener: &Opener, events: &[Event], now_s: u64) -> Judged {
    events
        .iter()
        .map(|event| (event.id, opener.open(event, now_s)))
        .collect()
}

fn tell(
    url: Arc<str>,
    state: RelayState,
    reach: &mut Reach,
    mailbox: &Mailbox,
    delivery: &mpsc::UnboundedSender<Tell>,
    generation: u64,
) {
    let now = Instant::now();
    match state {
        RelayState::Connected => {
            tracing::info!(relay = &*url, "connected");
            post(mailbox, reach.connected(url.clone(), now));
            let _ = delivery.send(Tell::Connected(url));
        }
        RelayState::CaughtUp { generation: at } => {
            reach.caught_up(url, at, now);
            post(mailbox, reach.judge(generation, now));
        }
        RelayState::Disconnected {
            reason,
            retry_in_ms,
        } => {
            tracing::warn!(relay = &*url, reason, retry_in_ms, "disconnected");
            post(mailbox, reach.disconnected(&url));
            post(mailbox, reach.judge(generation, now));
        }
        RelayState::SubscriptionRefused { message, .. } => {
            tracing::warn!(relay = &*url, message, "subscription refused")
        }
        RelayState::HistoryGap { at_s, .. } => {
            tracing::warn!(relay = &*url, at_s, "the relay hides part of its history")
        }
        RelayState::Connecting => {}
    }
}

fn post(mailbox: &Mailbox, news: Option<Input>) {
    if let Some(input) = news {
        mailbox.post(Mail::Fact(input));
    }
}
