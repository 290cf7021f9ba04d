//! A copied home: two running nodes with one identity. Each start draws a name, says it to its own key, and answers another's.
//! Whoever hears the answer to its own name knows that the other one runs now, and not only once did: a relay that repeats an
//! old greeting cannot make that. Both then take and ask for no new work, until the owner has stopped one and says so to the
//! other. One that is of a lower epoch was left behind by a restoration elsewhere: it alone stops.
//!
//! The same holds where no other node runs any more: a home made from the words alone, or restored from a backup older than the
//! last restoration, has keys that its peers have seen outgrown. They take nothing of it, and show it the binding of the newer ones.

use serde::{Deserialize, Serialize};

use super::Node;
use super::meeting::described;
use super::step::{Addressee, Incoming, Ms, Npub, Refused, Row};
use crate::wire::log::{Hello, Outgrown};
use crate::wire::message::Body;

/// Code of what a node refuses while a copy of it runs.
pub const IN_USE_ELSEWHERE: &str = "identity_in_use_elsewhere";
/// Code of what a node refuses whose keys are of an epoch that is over.
pub const EPOCH_BEHIND: &str = "epoch_behind";
/// An author of an epoch that is over is told so this often.
const TELL_EVERY_MS: Ms = 60_000;
/// What it is told waits for it on its relays so long.
const TOLD_FOR_MS: Ms = 600_000;
/// Most authors that are told within that time.
const TOLD_MAX: usize = 256;
/// A name that is not ours is answered this often.
const ANSWER_EVERY_MS: Ms = 5_000;
/// A greeting is heard at once or not at all.
const GREETING_MS: Ms = 60_000;
/// Former names that are remembered.
pub const PAST_MAX: usize = 64;

/// The starts of this home.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instances {
    /// This one's name.
    pub current: String,
    /// Names before it, the oldest first.
    pub past: Vec<String>,
    /// The other node, once it has shown that it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<Elsewhere>,
    /// What a peer has shown of later keys of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<Behind>,
}

/// Keys of this identity of a later epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Their epoch.
    pub epoch: u32,
    /// When they were shown.
    pub at_ms: Ms,
    /// Who has shown them.
    pub by: Npub,
}

/// Another node with this identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// Its name.
    pub instance: String,
    /// Its epoch.
    pub epoch: u32,
    /// When it was heard.
    pub at_ms: Ms,
}

impl Instances {
    /// The same home, started once more under this name. `sole`: the owner says that no other node runs.
    pub fn start(&mut self, name: String, sole: bool) {
        let before = std::mem::replace(&mut self.current, name);
        if !before.is_empty() {
            self.past.push(before);
        }
        let surplus = self.past.len().saturating_sub(PAST_MAX);
        self.past.drain(..surplus);
        if sole {
            self.elsewhere = None;
        }
    }
}

impl Node {
    /// Which starts there were, and whether another node runs.
    pub fn instances(&self) -> &Instances {
        &self.instances
    }

    /// Why no new work is asked for or taken, if another node with this identity runs.
    pub(super) fn alone(&self) -> Result<(), Refused> {
        if let Some(behind) = self.behind() {
            let (known, ours) = (behind.epoch, self.epoch());
            return Err(Refused::new(
                EPOCH_BEHIND,
                format!(
                    "a peer holds keys of this identity of epoch {known}, and these are of epoch {ours}: nobody takes what they sign"
                ),
            ));
        }
        match self.elsewhere() {
            None => Ok(()),
            Some(other) if other.epoch > self.epoch() => Err(Refused::new(
                IN_USE_ELSEWHERE,
                "this identity was restored elsewhere, and lives there now: this home is an old copy of it",
            )),
            Some(_) => Err(Refused::new(
                IN_USE_ELSEWHERE,
                "another running node has this identity: its home was copied",
            )),
        }
    }

    /// The other node of this identity, if it stops this one: a later restoration of this home leaves it behind, and it stops alone.
    pub fn elsewhere(&self) -> Option<&Elsewhere> {
        (self.instances.elsewhere.as_ref()).filter(|other| other.epoch >= self.epoch())
    }

    /// What is known of later keys of ours than these.
    pub fn behind(&self) -> Option<&Behind> {
        (self.instances.behind.as_ref()).filter(|behind| behind.epoch > self.epoch())
    }

    fn epoch(&self) -> u32 {
        self.policy.binding.statement.epoch
    }

    pub(super) fn say_hello(&mut self, now: Ms, answers: Option<String>) {
        if self.instances.current.is_empty() {
            return;
        }
        let hello = Hello {
            instance: self.instances.current.clone(),
            epoch: self.epoch(),
            answers,
        };
        let to = Addressee::Peer(self.policy.me.clone());
        let until = now.saturating_add(GREETING_MS);
        self.send(to, Body::Hello(hello), true, Vec::new(), until);
    }

    pub(super) fn on_hello(&mut self, now: Ms, from: &str, hello: &Hello) -> Result<(), Refused> {
        if from != self.policy.me {
            return Err(Refused::new(
                "hello_foreign",
                "a greeting is for its own author",
            ));
        }
        let ours = hello.instance == self.instances.current
            || self.instances.past.contains(&hello.instance);
        if ours || self.instances.current.is_empty() {
            return Ok(());
        }
        let answered = hello.answers.as_ref() == Some(&self.instances.current);
        let left_behind = hello.epoch > self.epoch();
        if left_behind || (answered && hello.epoch == self.epoch()) {
            self.found_elsewhere(now, hello);
        }
        if !answered && now >= self.greeted_ms.saturating_add(ANSWER_EVERY_MS) {
            self.greeted_ms = now;
            self.say_hello(now, Some(hello.instance.clone()));
        } else if answered && !self.greeted.contains(&hello.instance) {
            // It has not heard yet that we run: what it answered may have been said before it began to listen.
            self.greeted.insert(hello.instance.clone());
            self.say_hello(now, Some(hello.instance.clone()));
        }
        Ok(())
    }

    fn found_elsewhere(&mut self, now: Ms, hello: &Hello) {
        let known = (self.instances.elsewhere.as_ref())
            .is_some_and(|other| other.instance == hello.instance && other.epoch == hello.epoch);
        if known {
            return;
        }
        self.instances.elsewhere = Some(Elsewhere {
            instance: hello.instance.clone(),
            epoch: hello.epoch,
            at_ms: now,
        });
        self.put(Row::Instances(self.instances.clone()));
        let body = serde_json::json!({"instance": hello.instance, "epoch": hello.epoch, "ours": self.epoch()});
        self.journal(IN_USE_ELSEWHERE, None, body);
    }

    /// A message came under keys that its author, who sealed it, has left: it is shown the newer ones.
    pub(super) fn tell_outgrown(&mut self, now: Ms, incoming: &Incoming) {
        let Some(peer) = self.peers.get(&incoming.from) else {
            return;
        };
        let offered = incoming.keys.as_ref().map(|keys| keys.epoch);
        let outgrown = |newer: &u32| offered.is_some_and(|epoch| epoch < *newer);
        let newer = peer.binding.as_deref();
        let Some(newer) = newer.filter(|b| outgrown(&b.statement.epoch)).cloned() else {
            return;
        };
        // A home made anew may read elsewhere than the one before.
        let mut relays = described(&incoming.body).1.cloned().unwrap_or_default();
        relays.extend(peer.relays.iter().cloned());
        self.told
            .retain(|_, at| at.saturating_add(TELL_EVERY_MS) > now);
        if self.told.len() >= TOLD_MAX || self.told.contains_key(&incoming.from) {
            return;
        }
        self.told.insert(incoming.from.clone(), now);
        let until = now.saturating_add(TOLD_FOR_MS);
        let body = Body::Outgrown(Box::new(Outgrown { newer }));
        self.send_peer_at(&incoming.from, &relays, body, until);
    }

    /// Somebody shows us later keys of ours.
    pub(super) fn on_outgrown(
        &mut self,
        now: Ms,
        from: &str,
        outgrown: &Outgrown,
    ) -> Result<(), Refused> {
        let epoch = (self.policy.binding)
            .outgrown_by(&outgrown.newer)
            .map_err(|e| Refused::new(e.code(), e.to_string()))?;
        if self.behind().is_some_and(|known| known.epoch >= epoch) {
            return Ok(());
        }
        self.instances.behind = Some(Behind {
            epoch,
            at_ms: now,
            by: from.to_owned(),
        });
        self.put(Row::Instances(self.instances.clone()));
        let body = serde_json::json!({"epoch": epoch, "ours": self.epoch(), "by": from});
        self.journal(EPOCH_BEHIND, None, body);
        Ok(())
    }
}
