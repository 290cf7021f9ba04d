//! A world of nodes in one process: virtual time, one seed, relays that store, delay, repeat and shuffle, disks that
//! commit or fail, nodes that die at any point. Everything is the real domain; only labor and signatures are stood in for.

use std::collections::BTreeMap;

use legiond::domain::Node;
use legiond::domain::peer::Tier;
use legiond::domain::policy::Policy;
use legiond::domain::step::{
    Addressee, Ask, Chance, Effect, Incoming, Input, PlanFacts, Refused, Row, Send, Step,
};
use legiond::wire::binding::BoundKeys;
use legiond::wire::canonical::sha256_hex;
use legiond::wire::market::{Ad, AdSkill};
use legiond::wire::message::Body;
use serde_json::{Value, json};

use super::disk::Disk;
use super::policy::{bound, policy};

pub(crate) const T0: u64 = 1_750_000_000_000;
pub(crate) const UNIT_MS: u64 = 40;
pub(crate) const CHECKPOINT_UNITS: u32 = 4;
pub(crate) const SKILL: &str = "simulation";

/// SplitMix64: the world's only source of chance.
#[derive(Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    pub(crate) fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }
}

/// How an executor lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cheat {
    Honest,
    Units,
    Aggregate,
}

#[derive(Clone)]
pub(crate) struct Letter {
    from: usize,
    to: usize,
    rumor: u64,
    created_ms: u64,
    stored: bool,
    pool: bool,
    body: Body,
}

pub(crate) struct Run {
    pub(crate) done: u32,
    pub(crate) from: u32,
    pub(crate) total: u32,
    pub(crate) stop: bool,
}

pub(crate) struct Machine {
    pub(crate) node: Option<Node>,
    pub(crate) policy: Policy,
    pub(crate) disk: Disk,
    pub(crate) cheat: Cheat,
    pub(crate) online: bool,
    pub(crate) skew_ms: i64,
    pub(crate) epoch: u64,
    pub(crate) kills: u64,
    pub(crate) refusals_false: bool,
    held: Vec<Letter>,
    pub(crate) runs: BTreeMap<String, Run>,
    pub(crate) executed: BTreeMap<String, u64>,
    pub(crate) dropped: BTreeMap<String, u64>,
    wake: u64,
    pub(crate) said: Vec<Effect>,
}

#[derive(Clone)]
pub(crate) enum Event {
    Deliver(Box<Letter>),
    Unit(usize, u64, String),
    Feed(usize, u64, Box<Input>),
    CaughtUp(usize, u64),
    Wake(usize),
    Kill(usize),
    Start(usize),
    Offline(usize),
    Online(usize),
    Jump(usize, i64),
    Suspend(usize, u64),
    Resend(usize),
    Owner(usize, Box<Input>),
}

/// How rough the world is, percent each.
#[derive(Clone, Copy, Default)]
pub(crate) struct Weather {
    pub(crate) copies: u64,
    pub(crate) delay_ms: u64,
    pub(crate) ephemeral_loss: u64,
    pub(crate) ack_loss: u64,
    pub(crate) crash_before: u64,
    pub(crate) crash_after: u64,
    pub(crate) disk_fails: u64,
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) dice: Dice,
    pub(crate) machines: Vec<Machine>,
    pub(crate) weather: Weather,
    pub(crate) calm_at: u64,
    queue: BTreeMap<(u64, u64), Event>,
    order: u64,
    /// Letters with this method and from this machine are delayed by so much.
    pub(crate) slow: Option<(usize, &'static str, u64)>,
    pub(crate) trace: bool,
    /// The hash of every step, if somebody wants to compare.
    pub(crate) digest: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(seed: u64, nodes: usize) -> Self {
        let machines = (0..nodes)
            .map(|at| Machine {
                node: None,
                policy: policy(at),
                disk: Disk::default(),
                cheat: Cheat::Honest,
                online: true,
                skew_ms: 0,
                epoch: 0,
                kills: 0,
                refusals_false: false,
                held: Vec::new(),
                runs: BTreeMap::new(),
                executed: BTreeMap::new(),
                dropped: BTreeMap::new(),
                wake: u64::MAX,
                said: Vec::new(),
            })
            .collect();
        let weather = Weather {
            copies: 1,
            delay_ms: 5,
            ..Weather::default()
        };
        Self {
            now: T0,
            dice: Dice(seed),
            machines,
            weather,
            calm_at: u64::MAX,
            queue: BTreeMap::new(),
            order: 0,
            slow: None,
            trace: std::env::var_os("SIM_TRACE").is_some(),
            digest: None,
        }
    }

    /// All up, all trusting each other, all ads heard.
    pub(crate) fn friends(seed: u64, nodes: usize) -> Self {
        let mut world = Self::new(seed, nodes);
        world.befriend();
        world
    }

    /// Brings all up, has all trust each other and hear each other's ads.
    pub(crate) fn befriend(&mut self) {
        let nodes = self.machines.len();
        for at in 0..nodes {
            self.start(at);
        }
        for at in 0..nodes {
            for other in (0..nodes).filter(|o| *o != at) {
                let npub = self.npub(other);
                self.input(
                    at,
                    Input::Trust {
                        npub,
                        tier: Tier::Trusted,
                        limit_mc: None,
                    },
                );
            }
            self.advertise(at);
        }
        self.run_for(1_000);
    }

    pub(crate) fn npub(&self, at: usize) -> String {
        self.machines[at].policy.me.clone()
    }

    pub(crate) fn node(&self, at: usize) -> &Node {
        self.machines[at].node.as_ref().expect("the node is up")
    }

    pub(crate) fn at(&mut self, ms: u64, event: Event) {
        self.order += 1;
        self.queue.insert((ms, self.order), event);
    }

    pub(crate) fn local(&self, at: usize) -> u64 {
        self.now.saturating_add_signed(self.machines[at].skew_ms)
    }

    pub(crate) fn start(&mut self, at: usize) {
        if self.machines[at].node.is_some() {
            return;
        }
        let machine = &mut self.machines[at];
        let mut node = Node::new(machine.policy.clone());
        for name in machine.disk.live.clone() {
            let row = machine.disk.row(&name).unwrap();
            let owner = match &row {
                Row::Job(job) => Some(job.task.clone()),
                Row::Engagement(work) => Some(work.key.clone()),
                _ => None,
            };
            node.recall(row);
            if let Some(bytes) = owner
                .as_ref()
                .and_then(|o| machine.disk.payload(o, "input"))
            {
                node.recall(Row::Payload {
                    owner: owner.unwrap(),
                    name: "input".into(),
                    bytes,
                });
            }
        }
        machine.node = Some(node);
        machine.epoch += 1;
        machine.runs.clear();
        self.input(at, Input::Started);
        self.resend(at);
        self.drain(at);
    }

    pub(crate) fn kill(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        if machine.node.take().is_some() {
            machine.kills += 1;
        }
        machine.epoch += 1;
        machine.runs.clear();
    }

    fn drain(&mut self, at: usize) {
        let epoch = self.machines[at].epoch;
        if self.machines[at].online {
            let mut held = std::mem::take(&mut self.machines[at].held);
            let n = held.len();
            for i in (1..n).rev() {
                held.swap(i, self.dice.below(i as u64 + 1) as usize);
            }
            for letter in held {
                let when = self.now + 1;
                self.at(when, Event::Deliver(Box::new(letter)));
            }
        }
        let when = self.now + 30;
        self.at(when, Event::CaughtUp(at, epoch));
    }

    fn resend(&mut self, at: usize) {
        if !self.machines[at].online {
            return;
        }
        for (rumor, (send, created_ms)) in self.machines[at].disk.outbox.clone() {
            self.publish(at, rumor, &send, created_ms);
        }
    }

    /// What the relay does with one message.
    fn publish(&mut self, from: usize, rumor: u64, send: &Send, created_ms: u64) {
        let to: Vec<usize> = match &send.to {
            Addressee::Peer(npub) => self
                .machines
                .iter()
                .position(|m| m.policy.me == *npub)
                .into_iter()
                .collect(),
            Addressee::Reply(reply) => reply
                .split(':')
                .nth(1)
                .and_then(|n| n.parse().ok())
                .into_iter()
                .collect(),
            Addressee::Pool(_) => (0..self.machines.len()).filter(|o| *o != from).collect(),
        };
        let mut body = send.body.clone();
        if let Body::Offer(offer) = &mut body {
            offer.reply = format!("reply:{from}:{}", offer.task);
        }
        let calm = self.now >= self.calm_at;
        for to in to {
            if send.ephemeral && !calm && self.dice.percent(self.weather.ephemeral_loss) {
                continue;
            }
            let copies = if calm { 1 } else { self.weather.copies };
            for _ in 0..copies.max(1) {
                let mut wait = 1 + if calm {
                    2
                } else {
                    self.dice.below(self.weather.delay_ms + 1)
                };
                if let Some((machine, method, ms)) = self.slow
                    && machine == from
                    && method == body.method()
                {
                    wait += ms;
                }
                let pool = matches!(send.to, Addressee::Pool(_));
                let letter = Letter {
                    from,
                    to,
                    rumor,
                    created_ms,
                    stored: !send.ephemeral,
                    pool,
                    body: body.clone(),
                };
                let when = self.now + wait;
                self.at(when, Event::Deliver(Box::new(letter)));
            }
        }
    }

    fn deliver(&mut self, letter: Letter) {
        let (to, from) = (letter.to, letter.from);
        if self.machines[to].node.is_none() || !self.machines[to].online {
            if letter.stored {
                self.machines[to].held.push(letter);
            }
            return;
        }
        if letter.created_ms > self.local(to) + 15 * 60_000 {
            // The envelope is from the future: refused, not seen, sent again later.
            let when = self.now + 600_000;
            self.at(when, Event::Deliver(Box::new(letter)));
            return;
        }
        if letter.stored && self.machines[to].disk.seen.contains(&(from, letter.rumor)) {
            self.ack(&letter);
            return;
        }
        let input = Input::Message(Box::new(self.incoming(&letter)));
        if self.handle(to, input, letter.stored.then_some((from, letter.rumor))) {
            self.ack(&letter);
        } else if letter.stored {
            self.machines[to].held.push(letter);
        }
    }

    fn incoming(&self, letter: &Letter) -> Incoming {
        let plan = match &letter.body {
            Body::Award(a) | Body::Request(a) => Some(plan(&a.input)),
            _ => None,
        };
        let bound = matches!(
            letter.body,
            Body::Ad(_) | Body::Bid(_) | Body::Award(_) | Body::Request(_) | Body::Accept(_)
        );
        Incoming {
            from: self.npub(letter.from),
            body: letter.body.clone(),
            pool: letter.pool.then(|| "legion".to_owned()),
            plan,
            keys: bound.then(|| bound_keys(letter.from)),
        }
    }

    fn ack(&mut self, letter: &Letter) {
        let calm = self.now >= self.calm_at;
        if !letter.pool && (calm || !self.dice.percent(self.weather.ack_loss)) {
            self.machines[letter.from].disk.outbox.remove(&letter.rumor);
        }
    }

    /// A command of the owner or a fact; panics are failures of the test.
    pub(crate) fn input(&mut self, at: usize, input: Input) -> bool {
        self.handle(at, input, None)
    }

    /// Decides, commits, lets out; dies in between when the weather says so. False if nothing became durable.
    fn handle(&mut self, at: usize, input: Input, seen: Option<(usize, u64)>) -> bool {
        let now = self.local(at);
        let started = matches!(input, Input::Started);
        let mut seed = [0u8; 32];
        seed[..8].copy_from_slice(&self.dice.next().to_be_bytes());
        self.recall(at, &input);
        let calm = self.now >= self.calm_at || started;
        let (before, after) = (
            self.dice.percent(self.weather.crash_before),
            self.dice.percent(self.weather.crash_after),
        );
        let fails = self.dice.percent(self.weather.disk_fails);
        if self.trace {
            eprintln!(
                "{} [{at}] {}",
                self.now - T0,
                format!("{input:?}").chars().take(230).collect::<String>()
            );
        }
        let Some(node) = self.machines[at].node.as_mut() else {
            return false;
        };
        let step = node.handle(now, &mut Chance::new(seed), input);
        if let Some(digest) = &mut self.digest {
            digest.push(sha256_hex(&serde_json::to_vec(&step).unwrap()));
        }
        self.judge(at);
        if !calm && before {
            self.crash(at);
            return false;
        }
        if !calm && fails {
            // Nothing was let out: memory is dropped and loaded again.
            self.machines[at].node = None;
            self.machines[at].kills += 1;
            self.start(at);
            return false;
        }
        let sends = self.commit(at, &step, seen, now);
        if !calm && after {
            self.crash(at);
            return true;
        }
        self.let_out(at, step, sends, now);
        true
    }

    fn crash(&mut self, at: usize) {
        self.kill(at);
        let when = self.now + 200 + self.dice.below(3_000);
        self.at(when, Event::Start(at));
    }

    fn recall(&mut self, at: usize, input: &Input) {
        let machine = &mut self.machines[at];
        let me = machine.policy.me.clone();
        let mut names = Vec::new();
        match input {
            Input::Ask(ask) => names.extend(ask.key.as_ref().map(|k| format!("key/{k}"))),
            Input::Cancel { task } => names.push(format!("job/{task}")),
            Input::Message(message) => {
                let work = |task: &str, no: u32| format!("work/{}/{task}/{no}", message.from);
                match &message.body {
                    Body::Update(u) => names.push(format!("job/{}", u.task)),
                    Body::Accept(a) => names.push(format!("job/{}", a.task)),
                    Body::Decline(d) => names.push(format!("job/{}", d.task)),
                    Body::Award(a) | Body::Request(a) if message.from != me => {
                        names.push(work(&a.task, a.award_no))
                    }
                    Body::Receipt(r) => names.push(work(&r.task, r.award_no)),
                    Body::Refusal(r) => names.push(work(&r.task, r.award_no)),
                    _ => {}
                }
            }
            _ => {}
        }
        for name in names {
            if let (Some(row), Some(node)) = (machine.disk.row(&name), machine.node.as_mut()) {
                node.recall(row);
            }
        }
    }

    fn commit(
        &mut self,
        at: usize,
        step: &Step,
        seen: Option<(usize, u64)>,
        now: u64,
    ) -> Vec<(u64, Send)> {
        let machine = &mut self.machines[at];
        step.changes
            .iter()
            .for_each(|change| machine.disk.apply(change));
        machine.disk.seen.extend(seen);
        let mut sends = Vec::new();
        for effect in &step.effects {
            if let Effect::Send(send) = effect {
                machine.disk.next_rumor += 1;
                let rumor = machine.disk.next_rumor;
                if !send.ephemeral && !matches!(send.to, Addressee::Pool(_)) {
                    machine.disk.outbox.insert(rumor, ((**send).clone(), now));
                }
                sends.push((rumor, (**send).clone()));
            }
        }
        if let Some(node) = machine.node.as_mut() {
            node.shed();
        }
        sends
    }

    fn let_out(&mut self, at: usize, step: Step, sends: Vec<(u64, Send)>, now: u64) {
        if self.machines[at].online {
            for (rumor, send) in sends {
                self.publish(at, rumor, &send, now);
            }
        }
        let epoch = self.machines[at].epoch;
        for effect in step.effects {
            match effect {
                Effect::Start(key) => self.run(at, key),
                Effect::SoftStop { key, .. } => {
                    if let Some(run) = self.machines[at].runs.get_mut(&key) {
                        run.stop = true;
                    }
                }
                Effect::Check {
                    task,
                    award_no,
                    sample,
                } => {
                    let findings = self.check(at, &task, &sample);
                    let when = self.now + 20;
                    self.at(
                        when,
                        Event::Feed(
                            at,
                            epoch,
                            Box::new(Input::Checked {
                                task,
                                award_no,
                                findings,
                            }),
                        ),
                    );
                }
                Effect::CheckEvidence { key, .. } => {
                    let holds = self.machines[at].cheat != Cheat::Honest;
                    let when = self.now + 20;
                    self.at(
                        when,
                        Event::Feed(at, epoch, Box::new(Input::EvidenceChecked { key, holds })),
                    );
                }
                Effect::Drain => self.drain(at),
                Effect::Dropped { ref code, .. } => {
                    *self.machines[at].dropped.entry(code.clone()).or_default() += 1;
                }
                Effect::Asked(_) | Effect::Done(_) => self.machines[at].said.push(effect),
                // What this step sent is newer, and stays; it is not a reply to the offer that is over.
                Effect::Moot { requester, task } => {
                    let over = |send: &Send| match &send.body {
                        Body::Bid(bid) => bid.requester == requester && bid.task == task,
                        Body::Decline(d) => d.requester == requester && d.task == task,
                        _ => false,
                    };
                    let outbox = &mut self.machines[at].disk.outbox;
                    outbox.retain(|_, (send, _)| {
                        !matches!(send.to, Addressee::Reply(_)) || !over(send)
                    });
                }
                Effect::Send(_) | Effect::Changed(_) | Effect::Readvertise | Effect::Inboxes => {}
                // No store is lost in these worlds.
                Effect::LogPage { .. } | Effect::ResultAgain(_) | Effect::Released => {}
            }
        }
        let skew = self.machines[at].skew_ms;
        if let Some(wake) = self.machines[at].node.as_ref().and_then(Node::wake_ms) {
            let wake = wake.saturating_add_signed(-skew).max(self.now);
            assert!(
                wake > self.now || self.machines[at].wake != self.now,
                "a timer spins: {:?} {:?} {:?}",
                self.node(at).work(),
                self.node(at).owner(),
                self.node(at).jobs()
            );
            if wake != self.machines[at].wake {
                self.machines[at].wake = wake;
                self.at(wake, Event::Wake(at));
            }
        }
    }

    pub(crate) fn advertise(&mut self, from: usize) {
        let policy = &self.machines[from].policy;
        let ad = Ad {
            lct: policy.lct.clone(),
            binding: policy.binding.clone(),
            relays: policy.relays.clone(),
            skills: vec![AdSkill {
                hops_mc: 0,
                id: SKILL.into(),
                unit_price_mc: 1,
            }],
            queue: 0,
            paused: false,
            expires_ms: self.local(from) + 24 * 3_600_000,
        };
        let send = Send {
            to: Addressee::Pool("legion".into()),
            body: Body::Ad(Box::new(ad)),
            ephemeral: false,
            relays: vec![],
            expires_ms: u64::MAX,
        };
        self.machines[from].disk.next_rumor += 1;
        let (rumor, now) = (self.machines[from].disk.next_rumor, self.local(from));
        self.publish(from, rumor, &send, now);
    }

    fn event(&mut self, event: Event) {
        let up = |world: &Self, at: usize, epoch: u64| {
            world.machines[at].node.is_some() && world.machines[at].epoch == epoch
        };
        match event {
            Event::Deliver(letter) => self.deliver(*letter),
            Event::Unit(at, epoch, key) if up(self, at, epoch) => self.unit(at, key),
            Event::Feed(at, epoch, input) if up(self, at, epoch) => drop(self.input(at, *input)),
            Event::CaughtUp(at, epoch) if up(self, at, epoch) => {
                let online = self.machines[at].online;
                self.input(at, Input::CaughtUp { online });
            }
            Event::Unit(..) | Event::Feed(..) | Event::CaughtUp(..) => {}
            Event::Wake(at) => {
                if self.machines[at].node.is_some() && self.machines[at].wake == self.now {
                    self.input(at, Input::Tick);
                    if self.machines[at].wake == self.now {
                        self.machines[at].wake = u64::MAX;
                    }
                }
            }
            Event::Kill(at) => self.kill(at),
            Event::Start(at) => self.start(at),
            Event::Offline(at) => {
                self.machines[at].online = false;
                self.input(at, Input::CaughtUp { online: false });
            }
            Event::Online(at) => {
                self.machines[at].online = true;
                self.input(at, Input::Draining);
                self.resend(at);
                self.drain(at);
            }
            Event::Jump(at, ms) => {
                self.machines[at].skew_ms += ms;
                self.input(at, Input::Draining);
                self.drain(at);
            }
            Event::Suspend(at, ms) => {
                // Everything of this machine stops and goes on later.
                let wake = self.now + ms;
                for (key, event) in std::mem::take(&mut self.queue) {
                    let own = matches!(&event, Event::Unit(a, ..) | Event::Feed(a, ..) | Event::CaughtUp(a, _) | Event::Wake(a) if *a == at);
                    let inbound = matches!(&event, Event::Deliver(l) if l.to == at);
                    let when = if own {
                        key.0 + ms
                    } else if inbound {
                        key.0.max(wake)
                    } else {
                        key.0
                    };
                    self.queue.insert((when, key.1), event);
                }
                self.machines[at].wake = u64::MAX;
                self.at(wake, Event::Online(at));
                self.machines[at].online = false;
            }
            Event::Owner(at, input) => {
                self.input(at, *input);
            }
            Event::Resend(at) => {
                if self.machines[at].node.is_some() {
                    self.resend(at);
                }
            }
        }
    }

    pub(crate) fn run_until(&mut self, end: u64) {
        let mut events = 0u64;
        while let Some(((when, _), _)) = self
            .queue
            .first_key_value()
            .filter(|((when, _), _)| *when <= end)
        {
            self.now = self.now.max(*when);
            let (_, event) = self.queue.pop_first().unwrap();
            self.event(event);
            events += 1;
            assert!(events < 400_000, "the world does not come to rest");
        }
        self.now = end;
    }

    pub(crate) fn run_for(&mut self, ms: u64) {
        self.run_until(self.now + ms);
    }

    /// Heals everything, then runs until nothing is open or `ms` have passed.
    pub(crate) fn settle(&mut self, ms: u64) {
        self.calm_at = self.now;
        self.slow = None;
        for at in 0..self.machines.len() {
            self.machines[at].online = true;
            self.machines[at].skew_ms = 0;
            if self.machines[at].node.is_none() {
                self.start(at);
            } else {
                self.event(Event::Online(at));
            }
        }
        let end = self.now + ms;
        while self.now < end && !self.quiet() {
            self.run_for(5_000);
            for at in 0..self.machines.len() {
                if self.now / 600_000 != (self.now - 5_000) / 600_000 {
                    self.event(Event::Resend(at));
                }
            }
        }
    }

    pub(crate) fn ask(
        &mut self,
        at: usize,
        units: u32,
        route: legiond::domain::job::Route,
        deadline_ms: u64,
    ) -> String {
        let ask = ask(units, route, deadline_ms, self.dice.next());
        self.ask_for(at, ask)
    }

    pub(crate) fn ask_for(&mut self, at: usize, ask: Ask) -> String {
        self.input(at, Input::Ask(Box::new(ask)));
        match self.machines[at].said.pop() {
            Some(Effect::Asked(Ok(task))) => task,
            other => panic!("asked: {other:?}"),
        }
    }
}

pub(crate) fn ask(
    units: u32,
    route: legiond::domain::job::Route,
    deadline_ms: u64,
    salt: u64,
) -> Ask {
    let input = json!({"units": units, "seed": salt.to_string()});
    let plan = Some(plan(&input).unwrap());
    Ask {
        skill: SKILL.into(),
        fingerprint: sha256_hex(input.to_string().as_bytes()),
        input,
        plan,
        route,
        max_price_mc: None,
        deadline_ms,
        key: None,
        critical: false,
    }
}

pub(crate) fn plan(input: &Value) -> Result<PlanFacts, Refused> {
    let units = input["units"].as_u64().and_then(|u| u32::try_from(u).ok());
    units
        .map(|units| PlanFacts {
            units,
            output_bytes_max: 400,
            model: None,
        })
        .ok_or_else(|| Refused::new("input_invalid", "no units"))
}

pub(crate) fn bound_keys(at: usize) -> BoundKeys {
    bound(at)
}
