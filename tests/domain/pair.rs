//! Nodes without weather: every message is handed over by the test, which may keep, alter or repeat it.

use legiond::domain::Node;
use legiond::domain::job::{Job, Route};
use legiond::domain::peer::Tier;
use legiond::domain::policy::{Policy, SkillFacts};
use legiond::domain::step::{
    Addressee, Chance, Change, Effect, Findings, Incoming, Input, LaborNews, Step,
};
use legiond::wire::binding::BoundKeys;
use legiond::wire::market::{Ad, AdSkill};
use legiond::wire::message::Body;
use legiond::wire::proof::Evidence;
use serde_json::json;

use crate::sim::policy::{bound, policy};
use crate::sim::world::{T0, ask, plan};

/// A few nodes in one room, with one clock.
pub(crate) struct Hall {
    pub(crate) now: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) policies: Vec<Policy>,
    chance: u64,
}

impl Hall {
    /// All up and caught up, all trusting each other; `set` may change the settings of each before.
    pub(crate) fn with(nodes: usize, set: impl Fn(usize, &mut Policy)) -> Self {
        let mut policies: Vec<_> = (0..nodes).map(policy).collect();
        for (at, policy) in policies.iter_mut().enumerate() {
            set(at, policy);
        }
        let mut hall = Self {
            now: T0,
            nodes: policies.iter().cloned().map(Node::new).collect(),
            policies,
            chance: 0,
        };
        for at in 0..nodes {
            hall.give(at, Input::Started);
            hall.give(at, Input::CaughtUp { online: true });
            for other in (0..nodes).filter(|other| *other != at) {
                hall.trust(at, other, Tier::Trusted);
                hall.meet(at, other);
            }
        }
        hall
    }

    pub(crate) fn new(nodes: usize) -> Self {
        Self::with(nodes, |_, _| {})
    }

    pub(crate) fn npub(&self, at: usize) -> String {
        self.policies[at].me.clone()
    }

    pub(crate) fn trust(&mut self, at: usize, other: usize, tier: Tier) -> Step {
        let npub = self.npub(other);
        self.give(
            at,
            Input::Trust {
                npub,
                tier,
                limit_mc: None,
            },
        )
    }

    /// `at` hears the ad of `other`.
    pub(crate) fn meet(&mut self, at: usize, other: usize) -> Step {
        let policy = &self.policies[other];
        let ad = Ad {
            lct: policy.lct.clone(),
            binding: policy.binding.clone(),
            relays: policy.relays.clone(),
            skills: policy.skills.iter().map(listed).collect(),
            queue: 0,
            paused: false,
            expires_ms: self.now + 24 * 3_600_000,
        };
        self.hand(other, at, Body::Ad(Box::new(ad)))
    }

    pub(crate) fn give(&mut self, at: usize, input: Input) -> Step {
        self.chance += 1;
        let mut seed = [0u8; 32];
        seed[..8].copy_from_slice(&self.chance.to_be_bytes());
        self.nodes[at].handle(self.now, &mut Chance::new(seed), input)
    }

    /// Time passes for one node.
    pub(crate) fn wait(&mut self, at: usize, ms: u64) -> Step {
        self.now += ms;
        self.give(at, Input::Tick)
    }

    pub(crate) fn ask(
        &mut self,
        at: usize,
        units: u32,
        route: Route,
        deadline_ms: u64,
    ) -> (String, Step) {
        self.chance += 1;
        let asked = ask(units, route, deadline_ms, self.chance);
        let step = self.give(at, Input::Ask(Box::new(asked)));
        let task = step.effects.iter().find_map(|effect| match effect {
            Effect::Asked(answer) => Some(answer.clone().unwrap()),
            _ => None,
        });
        (task.unwrap(), step)
    }

    /// A message as `from` would send it arrives.
    pub(crate) fn hand(&mut self, from: usize, to: usize, body: Body) -> Step {
        let plan = match &body {
            Body::Award(a) | Body::Request(a) => Some(plan(&a.input)),
            _ => None,
        };
        let pool = matches!(body, Body::Ad(_) | Body::Offer(_)).then(|| "legion".to_owned());
        let keyed = matches!(
            body,
            Body::Ad(_) | Body::Bid(_) | Body::Award(_) | Body::Request(_) | Body::Accept(_)
        );
        let keys = keyed.then(|| bound(from));
        let incoming = Incoming {
            from: self.npub(from),
            body,
            pool,
            plan,
            keys,
        };
        self.give(to, Input::Message(Box::new(incoming)))
    }

    /// A direct message of somebody who is no node here.
    pub(crate) fn hand_as(
        &mut self,
        from: &str,
        to: usize,
        body: Body,
        keys: Option<BoundKeys>,
    ) -> Step {
        let pool = matches!(body, Body::Ad(_)).then(|| "legion".to_owned());
        let incoming = Incoming {
            from: from.to_owned(),
            body,
            pool,
            plan: None,
            keys,
        };
        self.give(to, Input::Message(Box::new(incoming)))
    }

    pub(crate) fn job(&self, at: usize, task: &str) -> &Job {
        &self.nodes[at].jobs()[task]
    }

    /// Everything but seen times: what a refused message must leave as it was.
    pub(crate) fn snapshot(&self, at: usize) -> String {
        let node = &self.nodes[at];
        let accounts: Vec<_> = node.ledger().accounts().collect();
        let locks: Vec<_> = node.ledger().locks().collect();
        json!({"jobs": node.jobs(), "work": node.work(), "peers": node.peers(), "accounts": accounts,
               "locks": locks, "owner": node.owner(), "wake": node.wake_ms()})
        .to_string()
    }

    /// A directed job of 0 for 1: with the requester's letter to the executor.
    pub(crate) fn directed(&mut self, units: u32) -> (String, Body) {
        let route = Route::Peer(self.npub(1));
        let (task, step) = self.ask(0, units, route, 60_000);
        let request = one(&step);
        (task, request)
    }

    /// The same, accepted: the lease has begun.
    pub(crate) fn accepted(&mut self, units: u32) -> String {
        let (task, request) = self.directed(units);
        let accept = one(&self.hand(0, 1, request));
        self.hand(1, 0, accept);
        task
    }

    /// The same, done: with the executor's letter that holds the result.
    pub(crate) fn done(&mut self, units: u32) -> (String, Body) {
        let task = self.accepted(units);
        let key = format!("{}/{task}/1", self.npub(0));
        let step = self.finish(1, &key, units);
        (task, one(&step))
    }

    /// The same, delivered and checked at the requester, who finds `fault`: with its answer.
    pub(crate) fn judged(&mut self, units: u32, fault: Option<Evidence>) -> (String, Body) {
        let (task, result) = self.done(units);
        self.hand(1, 0, result);
        let step = self.check(0, &task, 1, fault);
        (task, one(&step))
    }

    /// The worker is done with a lease.
    pub(crate) fn finish(&mut self, at: usize, key: &str, units: u32) -> Step {
        let news = LaborNews::Done {
            output: json!({"price": "1"}),
            output_hash: "00".repeat(32),
            units: vec![0; 8 * units as usize],
            root: "11".repeat(32),
            executed: units,
            resumed_from: 0,
            profile: "sim".into(),
        };
        self.give(
            at,
            Input::Labor {
                key: key.to_owned(),
                news,
            },
        )
    }

    pub(crate) fn check(
        &mut self,
        at: usize,
        task: &str,
        award_no: u32,
        fault: Option<Evidence>,
    ) -> Step {
        let findings = Findings {
            assurance: "sampled".into(),
            input: true,
            output: true,
            schema: Some(true),
            units_checked: 1,
            fault,
        };
        self.give(
            at,
            Input::Checked {
                task: task.to_owned(),
                award_no,
                findings,
            },
        )
    }
}

fn listed(skill: &SkillFacts) -> AdSkill {
    AdSkill {
        id: skill.id.clone(),
        unit_price_mc: skill.unit_price_mc,
        hops_mc: skill.hop_budget_mc,
    }
}

pub(crate) fn fault(code: &str) -> Evidence {
    Evidence {
        code: code.into(),
        unit: Some(0),
        expected: "a".into(),
        received: "b".into(),
    }
}

/// What a step sends, in order.
pub(crate) fn letters(step: &Step) -> Vec<(Addressee, Body)> {
    step.effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send(send) => Some((send.to.clone(), send.body.clone())),
            _ => None,
        })
        .collect()
}

/// The one message that a step sends.
pub(crate) fn one(step: &Step) -> Body {
    let mut letters = letters(step);
    assert_eq!(letters.len(), 1, "{letters:?}");
    letters.remove(0).1
}

/// The codes under which a step dropped messages.
pub(crate) fn dropped(step: &Step) -> Vec<String> {
    step.effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Dropped { code, .. } => Some(code.clone()),
            _ => None,
        })
        .collect()
}

/// How often a step writes this kind of line into the journal.
pub(crate) fn journaled(step: &Step, wanted: &str) -> usize {
    step.changes
        .iter()
        .filter(|change| matches!(change, Change::Journal { kind, .. } if kind == wanted))
        .count()
}
