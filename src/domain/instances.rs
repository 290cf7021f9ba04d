//! A copied home: two running nodes with one identity. Each start draws a name, says it to its own key, and answers another's.
//! Whoever hears the answer to its own name knows that the other one runs now, and not only once did: a relay that repeats an
//! old greeting cannot make that. Both then take and ask for no new work, until the owner has stopped one and says so to the
//! other. One that is of a lower epoch was left behind by a restoration elsewhere: it alone stops.

use serde::{Deserialize, Serialize};

use super::Node;
use super::step::{Addressee, Ms, Refused, Row};
use crate::wire::log::Hello;
use crate::wire::message::Body;

/// Code of what a node refuses while a copy of it runs.
pub const IN_USE_ELSEWHERE: &str = "identity_in_use_elsewhere";
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
        match &self.instances.elsewhere {
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
}
