//! What the rest of the room writes with: rows, journal, messages, and the step that they become.

use serde_json::Value;

use super::Node;
use super::ledger;
use super::peer::Peer;
use super::step::{self, Addressee, Change, Effect, Incoming, Ms, Row, Send, Step};
use crate::wire::message::Body;

impl Node {
    pub(super) fn peer(&self, npub: &str) -> Peer {
        self.peers
            .get(npub)
            .cloned()
            .unwrap_or_else(|| Peer::stranger(npub))
    }

    pub(super) fn edit_peer(&mut self, npub: &str, edit: impl FnOnce(&mut Peer)) {
        let peer = self
            .peers
            .entry(npub.to_owned())
            .or_insert_with(|| Peer::stranger(npub));
        edit(peer);
        self.dirty.peers.insert(npub.to_owned());
    }

    pub(super) fn put(&mut self, row: Row) {
        self.out.changes.push(Change::Put(row));
    }

    pub(super) fn payload(&mut self, owner: &str, name: &str, bytes: Vec<u8>) {
        self.put(Row::Payload {
            owner: owner.to_owned(),
            name: name.to_owned(),
            bytes,
        });
    }

    pub(super) fn journal(&mut self, kind: &str, task: Option<&str>, body: Value) {
        self.out.changes.push(Change::Journal {
            kind: kind.to_owned(),
            task: task.map(str::to_owned),
            body,
        });
    }

    pub(super) fn changed(&mut self, task: &str) {
        self.out.effects.push(Effect::Changed(task.to_owned()));
    }

    /// The requester has gone on from its offer: see [`Effect::Moot`].
    pub(super) fn moot(&mut self, requester: &str, task: &str) {
        if requester != self.policy.me {
            self.out.effects.push(Effect::Moot {
                requester: requester.to_owned(),
                task: task.to_owned(),
            });
        }
    }

    pub(super) fn send_peer(&mut self, npub: &str, body: Body, expires_ms: Ms) {
        let relays = self
            .peers
            .get(npub)
            .map(|p| p.relays.clone())
            .unwrap_or_default();
        self.send_peer_at(npub, &relays, body, expires_ms);
    }

    pub(super) fn send_peer_at(
        &mut self,
        npub: &str,
        relays: &[String],
        body: Body,
        expires_ms: Ms,
    ) {
        if npub == self.policy.me {
            let plan = match &body {
                Body::Award(a) | Body::Request(a) => Some(Ok(self.jobs.get(&a.task).map_or(
                    step::PlanFacts {
                        units: a.units,
                        output_bytes_max: 0,
                        model: None,
                    },
                    |j| step::PlanFacts {
                        units: j.units,
                        output_bytes_max: j.output_bytes_max,
                        model: j.model.clone(),
                    },
                ))),
                _ => None,
            };
            self.loopback.push_back(Incoming {
                from: npub.to_owned(),
                body,
                pool: None,
                plan,
                keys: None,
            });
            return;
        }
        self.send(
            Addressee::Peer(npub.to_owned()),
            body,
            false,
            relays.to_vec(),
            expires_ms,
        );
    }

    pub(super) fn send(
        &mut self,
        to: Addressee,
        body: Body,
        ephemeral: bool,
        relays: Vec<String>,
        expires_ms: Ms,
    ) {
        let held = match &to {
            Addressee::Peer(npub) => {
                self.holds(npub) && self.speaking.as_ref() != Some(npub) && !body.is_log()
            }
            Addressee::Reply(_) | Addressee::Pool(_) => self.is_recovering(),
        };
        if held {
            // Until it is known what was signed before, nothing is said.
            return;
        }
        self.out.effects.push(Effect::Send(Box::new(Send {
            to,
            body,
            ephemeral,
            relays,
            expires_ms,
        })));
    }

    /// Turns everything touched into rows. What has ended stays in memory until [`Node::shed`]: the store does not know it yet.
    pub(super) fn flush(&mut self) -> Step {
        self.rewake();
        let dirty = std::mem::take(&mut self.dirty);
        for task in dirty.jobs {
            if let Some(job) = self.jobs.get(&task) {
                self.out
                    .changes
                    .push(Change::Put(Row::Job(Box::new(job.clone()))));
            }
        }
        for key in dirty.work {
            if let Some(work) = self.work.get(&key) {
                self.out
                    .changes
                    .push(Change::Put(Row::Engagement(Box::new(work.clone()))));
            }
        }
        for npub in dirty.peers {
            if let Some(peer) = self.peers.get(&npub) {
                self.out
                    .changes
                    .push(Change::Put(Row::Peer(Box::new(peer.clone()))));
            }
        }
        for owner in dirty.marks {
            if let Some(mark) = self.marks.get(&owner) {
                self.out.changes.push(Change::Put(Row::Mark(mark.clone())));
            }
        }
        if !dirty.accounts.is_empty() {
            self.out
                .changes
                .push(Change::Put(Row::Account(self.ledger.account(ledger::SELF))));
        }
        for npub in dirty.accounts {
            self.out
                .changes
                .push(Change::Put(Row::Account(self.ledger.account(&npub))));
        }
        std::mem::take(&mut self.out)
    }

    // ---- what others may look at ---------------------------------------------------------------------------------
}
