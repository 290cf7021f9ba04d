//! The one loop: takes everything that waits, decides, commits once, then lets the effects out.
//!
//! It runs on a thread of its own because a commit blocks on the disk. Nothing leaves before it is durable; a failed
//! commit lets nothing out: memory is dropped and loaded again, callers hear `store_unavailable`, foreign messages are
//! tried again, and repeated failure ends the node.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::batch::{Batch, newest_rows_only};
use super::chores::ACKS_MAX;
use super::delivery::Tell;
use super::order::{Answer, Arrival, Look, Mail, Order, Outlets};
use super::recovery::HELLO_EVERY;
use super::rows::{self, Parcel};
use super::sealer::{Early, Sealer};
use super::transfer::Quota;
use super::transfer::detach;
use super::{Mailbox, clock, crash};
use crate::domain::Node;
use crate::domain::policy::Policy;
use crate::domain::step::{Addressee, Chance, Change, Effect, Input, Refused, Send, Step};
use crate::store::{Limits, Store, StoreError};
use crate::wire::message::{Ack, Body};

/// The loop looks up at least this often.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most mails in one commit.
const BATCH_MAX: usize = 256;
/// Acknowledgements wait this long for a message to travel with.
const ACK_WAIT: Duration = Duration::from_millis(20);
/// Outbox rows that are done wait this long for another commit. Kept too long they are only sent again after a crash.
const DELIVERED_WAIT: Duration = Duration::from_millis(200);
/// What only notes something waits this long for a commit that somebody waits for: an acceptance goes with the result after it.
const QUIET_WAIT: Duration = Duration::from_millis(5);
/// Most bytes of message JSON in one envelope before signatures (a rumor holds 28,672 bytes in all).
const PARCEL_BYTES: usize = 23_000;
/// Commits that may fail in a row before the node ends.
const FAILURES_MAX: u32 = 5;

/// An outbox row of a commit, and its message as it was closed meanwhile.
type Numbered = (u64, Parcel, Early);

/// The loop's state.
pub struct Core {
    pub(super) node: Node,
    pub(super) policy: Policy,
    pub(super) store: Arc<Store>,
    pub(super) outlets: Outlets,
    pub(super) acks: HashMap<String, Vec<String>>,
    pub(super) acks_due: Option<Instant>,
    /// Outbox rows that are done: they go with the next commit, whatever it is for.
    pub(super) delivered: Vec<u64>,
    pub(super) delivered_due: Option<Instant>,
    /// A batch that nobody waits for, and until when it waits for another.
    quiet: Option<(Batch, Instant)>,
    /// Closes messages while the disk writes what they say.
    pub(super) sealer: Arc<Sealer>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) failures: u32,
    pub(super) read_until_s: u64,
    pub(super) reply_keys: BTreeMap<String, u64>,
    /// When each live offer was first announced: part of its rumor, so that a new wrap holds the same rumor.
    pub(super) announced: BTreeMap<(String, u32), u64>,
    pub(super) prune_at: Instant,
    pub(super) limits: Limits,
    pub(super) quota: Quota,
    pub(super) watch: clock::JumpWatch,
    /// The way back into the loop, for what is read beside it.
    pub(super) again: Mailbox,
    /// Outbox rows that wait for the end of a restoration.
    pub(super) withheld: Vec<(u64, Parcel)>,
    /// Until when a payload that nobody here knows of is not refused: its message may be held back.
    pub(super) quiet_until_ms: Arc<AtomicU64>,
    /// When a copy of this node is to hear of it next.
    pub(super) hello_at: Instant,
}

impl Core {
    /// Loads the live rows of the store. The first input is [`Input::Started`]. `clock_jump` is the difference between
    /// wall and monotonic time that counts as a jump. To be called within the runtime that is to seal messages.
    pub fn load(
        policy: Policy,
        store: Arc<Store>,
        outlets: Outlets,
        (limits, quota): (Limits, Quota),
        clock_jump: Duration,
        sealer: Arc<Sealer>,
        again: Mailbox,
    ) -> Result<Self, StoreError> {
        let node = load_node(&policy, &store)?;
        Ok(Self {
            node,
            policy,
            store,
            outlets,
            acks: HashMap::new(),
            acks_due: None,
            delivered: Vec::new(),
            delivered_due: None,
            quiet: None,
            sealer,
            runtime: tokio::runtime::Handle::current(),
            failures: 0,
            read_until_s: 0,
            reply_keys: BTreeMap::new(),
            announced: BTreeMap::new(),
            prune_at: Instant::now() + Duration::from_secs(60),
            limits,
            quota,
            watch: clock::JumpWatch::new(clock_jump),
            again,
            withheld: Vec::new(),
            quiet_until_ms: Arc::default(),
            hello_at: Instant::now() + HELLO_EVERY,
        })
    }

    /// Runs until [`Mail::Stop`] or until the store fails for good.
    ///
    /// # Errors
    /// The last error of the store.
    pub fn run(mut self, mailbox: &Receiver<Mail>) -> Result<(), StoreError> {
        let again = &self.again.clone();
        self.batch(vec![Mail::Fact(Input::Started)], again, false)?;
        loop {
            let mut mails = Vec::new();
            match mailbox.recv_timeout(self.patience()) {
                Ok(mail) => mails.push(mail),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            while mails.len() < BATCH_MAX {
                match mailbox.try_recv() {
                    Ok(mail) => mails.push(mail),
                    Err(_) => break,
                }
            }
            let stop = mails.iter().position(|m| matches!(m, Mail::Stop));
            if let Some(at) = stop {
                mails.truncate(at);
                self.delivered_due = self.delivered_due.map(|_| Instant::now());
            }
            self.batch(mails, again, stop.is_none())?;
            self.flush_acks();
            self.greet();
            self.prune();
            if stop.is_some() {
                return Ok(());
            }
        }
    }

    fn patience(&self) -> Duration {
        let now = clock::now_ms();
        let wake = self
            .node
            .wake_ms()
            .map_or(PATIENCE, |at| Duration::from_millis(at.saturating_sub(now)));
        let quiet_due = self.quiet.as_ref().map(|(_, due)| *due);
        [self.acks_due, self.delivered_due, quiet_due]
            .into_iter()
            .flatten()
            .map(|at| at.saturating_duration_since(Instant::now()))
            .fold(wake.min(PATIENCE), Duration::min)
    }

    /// Takes these mails and commits what came of them, with what waited for it. What nobody waits for may wait itself.
    fn batch(
        &mut self,
        mails: Vec<Mail>,
        again: &Mailbox,
        may_wait: bool,
    ) -> Result<(), StoreError> {
        let (mut batch, due) = match self.quiet.take() {
            Some((batch, due)) => (batch, due),
            None => (Batch::default(), Instant::now() + QUIET_WAIT),
        };
        let now = clock::now_ms();
        if crash::ACTIVE {
            let names: Vec<String> = mails
                .iter()
                .flat_map(Mail::names)
                .map(str::to_owned)
                .collect();
            crash::point("received", &names);
        }
        if let Ok(mut counters) = self.outlets.counters.lock() {
            counters.mails += mails.len() as u64;
        }
        let mut mails = mails;
        if let Some(gap) = self.watch.look(PATIENCE) {
            tracing::warn!(
                ahead_ms = gap.ahead_ms,
                away_ms = gap.away_ms,
                "the clock jumped, or this process slept: every inbox is read to its end before any timer is judged"
            );
            // An end of the inboxes that was reached before the gap says nothing any more.
            mails.retain(|m| !matches!(m, Mail::Fact(Input::CaughtUp { online: true })));
            batch.gather(self.step(now, Input::Draining));
            let _ = self.outlets.presence.send(Order::Drain);
        }
        again.handled(
            mails
                .iter()
                .filter(|m| matches!(m, Mail::Arrival(_)))
                .count(),
        );
        let mut unread = None;
        for mail in mails {
            if unread.is_some() {
                batch.again.push(mail);
            } else if let Err(error) = self.take(now, mail, &mut batch) {
                unread = Some(error);
            }
        }
        if self.node.wake_ms().is_some_and(|at| at <= now) {
            let step = self.step(now, Input::Tick);
            batch.gather(step);
        }
        let outcome = match unread {
            Some(error) => Err(error),
            None if may_wait && !batch.is_empty() && batch.is_quiet() && Instant::now() < due => {
                self.quiet = Some((batch, due));
                return Ok(());
            }
            None => self.commit(now, &mut batch),
        };
        match outcome {
            Ok(parcels) => {
                self.failures = 0;
                if let Ok(mut counters) = self.outlets.counters.lock() {
                    counters.commits += u64::from(!parcels.is_empty());
                }
                let looks = std::mem::take(&mut batch.looks);
                self.let_out(batch, parcels);
                self.show(looks);
                Ok(())
            }
            Err(error) => {
                let looks = std::mem::take(&mut batch.looks);
                self.recover(batch, error, again)?;
                self.show(looks);
                Ok(())
            }
        }
    }

    /// Nobody sees in memory what the store does not know.
    fn show(&self, looks: Vec<Look>) {
        for look in looks {
            look(&self.node, &self.store);
        }
    }

    fn take(&mut self, now: u64, mail: Mail, batch: &mut Batch) -> Result<(), StoreError> {
        match mail {
            Mail::Command(input, answer) => {
                self.recall(&input)?;
                let mut step = self.step(now, input);
                let at = step
                    .effects
                    .iter()
                    .position(|e| matches!(e, Effect::Asked(_) | Effect::Done(_)));
                let said = match at.map(|at| step.effects.remove(at)) {
                    Some(Effect::Asked(result)) => result.map(Answer::Task),
                    Some(Effect::Done(result)) => result.map(|()| Answer::Done),
                    _ => Ok(Answer::Done),
                };
                batch.answers.push((answer, said));
                batch.gather(step);
            }
            Mail::Fact(input) => {
                let step = self.step(now, input.clone());
                batch.gather(step);
                if matches!(input, Input::CaughtUp { online: true }) {
                    batch.gather(self.step(now, Input::SayHello));
                }
                batch.again.push(Mail::Fact(input));
            }
            Mail::Arrival(arrival) => self.arrive(now, *arrival, batch)?,
            Mail::Whole(key, incoming) => {
                batch.arrived.push(key.clone());
                let input = Input::Message(incoming.clone());
                self.recall(&input)?;
                let step = self.step(now, input);
                batch.gather(step);
                batch.again.push(Mail::Whole(key, incoming));
            }
            Mail::Delivered(rows) => {
                self.delivered.extend(rows);
                self.delivered_due
                    .get_or_insert_with(|| Instant::now() + DELIVERED_WAIT);
            }
            Mail::Query(look) => batch.looks.push(look),
            Mail::Stop => {}
        }
        Ok(())
    }

    fn arrive(&mut self, now: u64, arrival: Arrival, batch: &mut Batch) -> Result<(), StoreError> {
        if self.node_waits(now, &arrival, batch)? {
            return Ok(());
        }
        let id = (arrival.author, arrival.rumor);
        if arrival.stored {
            let seen = batch.seen_now.contains(&id)
                || self
                    .store
                    .view()?
                    .seen_contains(&arrival.author, &arrival.rumor)?;
            if !arrival.is_shared() {
                batch.swept.push((arrival.inbox.clone(), arrival.wrap));
                batch
                    .acks
                    .push((arrival.from.clone(), hex::encode(arrival.rumor)));
            }
            if seen {
                self.count("duplicate");
                return Ok(());
            }
            batch.seen_now.insert(id);
            batch.seen.push((
                arrival.author,
                arrival.rumor,
                arrival.wrap,
                arrival.expires_s,
            ));
        }
        for code in &arrival.refused {
            self.count(code);
        }
        for incoming in &arrival.messages {
            let mut incoming = incoming.clone();
            if self.hold_back(now, &mut incoming, batch)? {
                continue;
            }
            let input = Input::Message(Box::new(incoming));
            self.recall(&input)?;
            let step = self.step(now, input);
            batch.gather(step);
        }
        batch.again.push(Mail::Arrival(Box::new(arrival)));
        Ok(())
    }

    pub(super) fn recall(&mut self, input: &Input) -> Result<(), StoreError> {
        let names = matches!(
            input,
            Input::Ask(_) | Input::Cancel { .. } | Input::Message(_)
        );
        if !names {
            return Ok(());
        }
        let view = self.store.view()?;
        for row in rows::prefetch(&view, input, |task| {
            self.node.jobs().contains_key(task) || self.node.work().contains_key(task)
        })? {
            self.node.recall(row);
        }
        Ok(())
    }

    pub(super) fn step(&mut self, now: u64, input: Input) -> Step {
        let mut seed = [0u8; 32];
        // Without the system's randomness nothing may be decided; there is no sane way on.
        if getrandom::fill(&mut seed).is_err() {
            tracing::error!("the operating system gives no randomness: ending");
            std::process::exit(70);
        }
        self.node.handle(now, &mut Chance::new(seed), input)
    }

    fn commit(&mut self, now: u64, batch: &mut Batch) -> Result<Vec<Numbered>, StoreError> {
        self.node.shed();
        let kinds: Vec<String> = batch
            .changes
            .iter()
            .filter_map(|c| {
                if let Change::Journal { kind, .. } = c {
                    Some(kind.clone())
                } else {
                    None
                }
            })
            .collect();
        let parcels = self.pack(now, batch);
        let read_until_s = now / 1000;
        let touch = !batch.seen.is_empty() && read_until_s > self.read_until_s.saturating_add(60);
        let due = self.delivered_due.is_some_and(|at| at <= Instant::now());
        if batch.is_empty() && parcels.is_empty() && !due {
            return Ok(Vec::new());
        }
        newest_rows_only(&mut batch.changes);
        crash::point("handled", &kinds);
        let early = self.sealer.begin(&self.runtime, &parcels);
        self.start_early(batch);
        let me = self.policy.me.clone();
        let numbered = self.store.write(|txn| {
            rows::apply_all(txn, &me, now, &batch.changes)?;
            for (author, rumor, wrap, expires_s) in &batch.seen {
                txn.seen_insert(author, rumor, Some(wrap), *expires_s)?;
            }
            for seq in &self.delivered {
                rows::outbox_done(txn, *seq)?;
            }
            if touch {
                rows::set_read_until_s(txn, read_until_s)?;
            }
            detach::keep(txn, batch)?;
            parcels
                .into_iter()
                .zip(early)
                .map(|(parcel, early)| Ok((rows::outbox_put(txn, &parcel)?, parcel, early)))
                .collect::<Result<Vec<_>, StoreError>>()
        })?;
        self.delivered.clear();
        self.delivered_due = None;
        if touch {
            self.read_until_s = read_until_s;
        }
        crash::point("committed", &kinds);
        super::recovery::log(&batch.changes);
        batch.kinds = kinds;
        Ok(numbered)
    }

    /// Messages to one recipient travel together, with the acknowledgements that wait for it.
    fn pack(&mut self, now: u64, batch: &mut Batch) -> Vec<Parcel> {
        let mut open: BTreeMap<Addressee, (usize, Parcel)> = BTreeMap::new();
        let mut full = Vec::new();
        for mut send in std::mem::take(&mut batch.sends) {
            let mut json = serde_json::to_vec(&send.body).unwrap_or_default();
            if let Some(parted) = detach::detach(&mut send, &json) {
                batch.parted.push(parted);
                json = serde_json::to_vec(&send.body).unwrap_or_default();
            }
            let bytes = json.len() + 300;
            let to = send.to.clone();
            if let Some((used, _)) = open.get(&to)
                && used + bytes > PARCEL_BYTES
                && let Some((_, parcel)) = open.remove(&to)
            {
                full.push(parcel);
            }
            let slot = open.entry(to).or_insert_with(|| {
                (
                    0,
                    Parcel {
                        sends: Vec::new(),
                        created_s: now / 1000,
                    },
                )
            });
            slot.0 += bytes;
            slot.1.sends.push(send);
        }
        for (to, (used, parcel)) in &mut open {
            if let Addressee::Peer(npub) = to
                && *used + ACKS_MAX * 70 < PARCEL_BYTES
            {
                let mut rumors: Vec<_> = self.acks.remove(npub).unwrap_or_default();
                let (now_acked, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut batch.acks)
                    .into_iter()
                    .partition(|(n, _)| n == npub);
                batch.acks = rest;
                rumors.extend(now_acked.into_iter().map(|(_, rumor)| rumor));
                let later = rumors.split_off(rumors.len().min(ACKS_MAX));
                if !later.is_empty() {
                    self.acks.insert(npub.clone(), later);
                }
                if let (false, Some(first)) = (rumors.is_empty(), parcel.sends.first()) {
                    let send = Send {
                        body: Body::Ack(Ack { rumors }),
                        ..first.clone()
                    };
                    parcel.sends.push(send);
                }
            }
        }
        full.extend(open.into_values().map(|(_, parcel)| parcel));
        full
    }

    fn let_out(&mut self, mut batch: Batch, parcels: Vec<Numbered>) {
        detach::tell(&self.outlets.transfers, &mut batch);
        if !batch.swept.is_empty() {
            let _ = self.outlets.presence.send(Order::Sweep(batch.swept));
        }
        for (npub, rumor) in batch.acks {
            self.acks.entry(npub).or_default().push(rumor);
            self.acks_due
                .get_or_insert_with(|| Instant::now() + ACK_WAIT);
        }
        // Before the messages of this batch, which may answer a newer round of the same offer.
        for effect in &batch.effects {
            if let Effect::Moot { requester, task } = effect {
                let (requester, task) = (requester.clone(), task.clone());
                let order = Order::Moot { requester, task };
                let _ = self.outlets.delivery.send(Tell::Order(order));
            }
        }
        for (seq, parcel, early) in parcels {
            let order = Order::Deliver(seq, parcel, Some(early));
            let _ = self.outlets.delivery.send(Tell::Order(order));
        }
        let now_s = clock::now_ms() / 1000;
        for send in batch.tries {
            let created_s = match &send.body {
                Body::Offer(offer) => *self
                    .announced
                    .entry((offer.task.clone(), offer.round))
                    .or_insert(now_s),
                _ => now_s,
            };
            let _ = self.outlets.delivery.send(Tell::Order(Order::Try(Parcel {
                sends: vec![send],
                created_s,
            })));
        }
        for effect in batch.effects {
            self.perform(effect);
        }
        crash::point("dispatched", &batch.kinds);
        for (answer, said) in batch.answers {
            let _ = answer.send(said);
        }
    }

    /// The commit failed: nothing of the batch happened.
    fn recover(
        &mut self,
        batch: Batch,
        error: StoreError,
        again: &Mailbox,
    ) -> Result<(), StoreError> {
        self.failures += 1;
        tracing::error!(
            code = error.code(),
            attempt = self.failures,
            "the store refused a commit; nothing of it left the node: {error}"
        );
        for (answer, _) in batch.answers {
            let _ = answer.send(Err(Refused::new(
                "store_unavailable",
                format!("nothing was done: {error}"),
            )));
        }
        std::thread::sleep(Duration::from_millis(200 * u64::from(self.failures)));
        if self.failures >= FAILURES_MAX {
            return Err(error);
        }
        // Joined, left and ready since the start: the settings do not know it.
        self.policy.pools.clone_from(&self.node.policy().pools);
        (self.policy.skills).clone_from(&self.node.policy().skills);
        (self.policy.permissions).clone_from(&self.node.policy().permissions);
        if let Err(error) = self
            .store
            .reopen()
            .and_then(|()| load_node(&self.policy, &self.store))
            .map(|node| self.node = node)
        {
            tracing::error!(
                code = error.code(),
                "the store could not be read again: {error}"
            );
        }
        for mail in batch.again {
            again.post(mail);
        }
        self.node_restarted(again);
        Ok(())
    }

    /// Workers are killed, so that the leases of the reloaded state can be granted anew from what was durable.
    fn node_restarted(&mut self, again: &Mailbox) {
        let _ = self.outlets.labor.send(Order::Abandon);
        again.post(Mail::Fact(Input::Started));
        let _ = self.outlets.presence.send(Order::Drain);
    }
}

fn load_node(policy: &Policy, store: &Store) -> Result<Node, StoreError> {
    let mut node = Node::new(policy.clone());
    for row in rows::load(&store.view()?)? {
        node.recall(row);
    }
    Ok(node)
}
