//! Whom we meet: what a verified message shows of its author, and to whom in this room it goes.

use std::collections::BTreeMap;

use super::Node;
use super::peer::{AdFacts, Peer, Tier};
use super::step::{Chance, Change, Effect, Incoming, Introduction, Ms, Refused};
use crate::wire::binding::{Binding, BoundKeys};
use crate::wire::entry::Entry;
use crate::wire::market::Ad;
use crate::wire::message::Body;

impl Node {
    /// A contact ties its keys to the peer as a first message would. Of a peer that has been met it says nothing newer.
    pub(super) fn on_introduce(&mut self, now: Ms, known: Introduction) {
        let mut met = self.peer(&known.npub);
        if let Err(refused) = bind(&mut met, now, &known.keys, Some(&known.binding)) {
            self.out.effects.push(Effect::Done(Err(refused)));
            return;
        }
        if met.last_seen_ms == 0 {
            (met.lct, met.relays) = (known.lct, known.relays);
        }
        self.edit_peer(&known.npub, |peer| *peer = met);
        self.out.effects.push(Effect::Done(Ok(())));
    }

    pub(super) fn on_trust(&mut self, now: Ms, npub: &str, tier: Tier, limit_mc: Option<u64>) {
        if let Err(refused) = self.not_now(Some(npub)) {
            return self.out.effects.push(Effect::Done(Err(refused)));
        }
        self.edit_peer(npub, |peer| {
            peer.tier = tier;
            peer.limit_mc = limit_mc;
            peer.disputed = false;
        });
        self.write_off(now, npub);
        self.journal(
            "trust",
            None,
            serde_json::json!({"npub": npub, "tier": tier, "limit_mc": limit_mc}),
        );
        self.out.effects.push(Effect::Done(Ok(())));
    }

    pub(super) fn on_forget(&mut self, npub: &str) {
        if let Err(refused) = self.not_now(Some(npub)) {
            return self.out.effects.push(Effect::Done(Err(refused)));
        }
        let awarded = self
            .jobs
            .values()
            .any(|j| j.is_live() && j.awards.iter().any(|a| a.executor == npub));
        let answer = if awarded
            || self
                .work
                .values()
                .any(|w| w.is_live() && w.requester == npub)
        {
            Err(Refused::new(
                "peer_busy",
                "work or money is open with this peer: try again when it is settled",
            ))
        } else if self.peers.remove(npub).is_some() {
            self.dirty.peers.remove(npub);
            self.out.changes.push(Change::DropPeer(npub.to_owned()));
            Ok(())
        } else {
            Err(Refused::new("peer_unknown", "no such peer is known here"))
        };
        self.out.effects.push(Effect::Done(answer));
    }

    pub(super) fn on_message(&mut self, now: Ms, chance: &mut Chance, incoming: Incoming) {
        let from = incoming.from.clone();
        let news = if self.holds_back(&incoming) && !self.is_local(&from) {
            Err(Refused::new(
                "held_back",
                "not before the restoration is reconciled",
            ))
        } else {
            self.meet(now, &incoming)
        };
        if let Err(refused) = news {
            if refused.code == "binding_epoch" {
                self.tell_outgrown(now, &incoming);
            }
            self.out.effects.push(Effect::Dropped {
                code: refused.code,
                from,
            });
            return;
        }
        let unknown = self.is_of_unknown_task(&from, &incoming.body);
        let outcome = match &incoming.body {
            Body::Ad(ad) => self.on_ad(now, &incoming, ad),
            Body::Offer(offer) if incoming.from != self.policy.me => {
                self.on_offer(now, &incoming, offer)
            }
            Body::Offer(_) => Ok(()),
            Body::Withdraw(withdraw) => {
                self.moot(&from, &withdraw.task);
                self.supersede_work(now, &from, &withdraw.task, withdraw.below_award_no);
                Ok(())
            }
            Body::Bid(bid) => self.on_bid(now, &incoming, bid),
            Body::Decline(decline) => self.on_decline(now, &incoming, decline),
            Body::Award(award) | Body::Request(award) => self.on_award(now, &incoming, award),
            Body::Accept(accept) => self.on_accept(now, &from, accept),
            Body::Update(update) => self.on_update(now, chance, &from, (**update).clone()),
            Body::Cancel(cancel) => self.on_cancel_message(now, &from, &cancel.task, &cancel.entry),
            Body::Receipt(receipt) => self.on_receipt(now, &from, receipt),
            Body::Refusal(refusal) => self.on_refusal(now, &from, refusal),
            Body::Since(since) => self.on_since(now, &from, since),
            Body::Entries(page) => self.on_log(now, &from, page),
            Body::Hello(hello) => self.on_hello(now, &from, hello),
            Body::Outgrown(outgrown) => self.on_outgrown(now, &from, outgrown),
            Body::Ack(_) | Body::Transfer(_) => Ok(()),
        };
        if unknown {
            self.ask_late(now, &from);
        }
        if let Err(refused) = outcome {
            let ours = match &incoming.body {
                Body::Accept(accept) => Some(&accept.task),
                Body::Decline(decline) => Some(&decline.task),
                Body::Update(update) => Some(&update.task),
                _ => None,
            };
            if let (Some(task), "equivocation") = (ours, refused.code.as_str()) {
                self.disqualify(now, chance, task, &from);
            }
            self.out.effects.push(Effect::Dropped {
                code: refused.code,
                from,
            });
        }
    }

    pub(super) fn on_ad(&mut self, now: Ms, incoming: &Incoming, ad: &Ad) -> Result<(), Refused> {
        let Some(pool) = incoming.pool.clone() else {
            return Err(Refused::new("ad_direct", "an ad belongs into a pool"));
        };
        if incoming.from == self.policy.me || ad.expires_ms <= now {
            return Ok(());
        }
        let horizon = now.saturating_add(24 * 3600 * 1000);
        let facts = AdFacts {
            skills: ad.skills.iter().take(64).cloned().collect(),
            queue: ad.queue,
            paused: ad.paused,
            expires_ms: ad.expires_ms.min(horizon),
            pool,
            others: BTreeMap::new(),
        };
        let news = self
            .peers
            .get(&incoming.from)
            .is_none_or(|p| p.ad.as_ref().is_none_or(|old| old.expires_ms <= now));
        self.edit_peer(&incoming.from, |peer| {
            peer.ad = Some(facts.after(peer.ad.as_ref(), now));
        });
        if news {
            self.journal(
                "ad",
                None,
                serde_json::json!({"from": incoming.from, "lct": ad.lct}),
            );
        }
        if !ad.paused {
            self.ask_again(now, &incoming.from);
        }
        Ok(())
    }

    /// Remembers what a verified message shows of its author.
    ///
    /// # Errors
    /// The codes of [`Binding::succeeds`] for keys that are not, or not provably, the author's: then nothing is remembered.
    pub(super) fn meet(&mut self, now: Ms, incoming: &Incoming) -> Result<(), Refused> {
        if incoming.from == self.policy.me {
            return Ok(());
        }
        let (lct, relays) = described(&incoming.body);
        let peer = self.peer(&incoming.from);
        let mut met = peer.clone();
        if let Some(keys) = &incoming.keys {
            bind(&mut met, now, keys, binding_of(&incoming.body))?;
        }
        if met.epoch > peer.epoch {
            self.journal(
                "keys_rotated",
                None,
                serde_json::json!({"npub": incoming.from, "epoch": met.epoch}),
            );
        }
        if let Some(lct) = lct.filter(|lct| lct.len() <= 256) {
            met.lct.clone_from(lct);
        }
        if let Some(relays) = relays {
            met.relays = relays
                .iter()
                .filter(|r| r.len() <= 256)
                .take(8)
                .cloned()
                .collect();
        }
        let stale = now.saturating_sub(met.last_seen_ms) > 60_000;
        if met != peer || stale {
            met.last_seen_ms = now;
            self.make_room(now, &incoming.from);
            self.dirty.peers.insert(incoming.from.clone());
        }
        self.peers.insert(incoming.from.clone(), met);
        Ok(())
    }

    /// The entry is about this task, by its sender, under the sender's bound key.
    pub(super) fn entry_belongs(
        &self,
        task: &str,
        requester: &str,
        from: &str,
        entry: &Entry,
    ) -> Result<(), Refused> {
        if entry.task != task || entry.requester != requester || entry.author != from {
            return Err(Refused::new(
                "entry_mismatch",
                "the signed entry is about another task or by another author",
            ));
        }
        let bound = if from == self.policy.me {
            self.policy.key == entry.key
        } else {
            self.peers.get(from).is_some_and(|p| p.owns(&entry.key))
        };
        if !bound {
            return Err(Refused::new(
                "key_unbound",
                "the entry's key is not bound to its author",
            ));
        }
        Ok(())
    }
}

/// The name and the relays that a message's author gives itself.
pub(super) fn described(body: &Body) -> (Option<&String>, Option<&Vec<String>>) {
    match body {
        Body::Ad(ad) => (Some(&ad.lct), Some(&ad.relays)),
        Body::Bid(bid) => (Some(&bid.lct), Some(&bid.relays)),
        Body::Award(a) | Body::Request(a) => (Some(&a.lct), Some(&a.relays)),
        Body::Accept(a) => (Some(&a.lct), Some(&a.relays)),
        Body::Offer(o) => (None, Some(&o.relays)),
        _ => (None, None),
    }
}

fn binding_of(body: &Body) -> Option<&Binding> {
    match body {
        Body::Ad(ad) => Some(&ad.binding),
        Body::Bid(bid) => Some(&bid.binding),
        Body::Award(a) | Body::Request(a) => Some(&a.binding),
        Body::Accept(a) => Some(&a.binding),
        Body::Decline(d) => d.binding.as_ref(),
        Body::Since(since) => Some(&since.binding),
        Body::Entries(page) => Some(&page.binding),
        _ => None,
    }
}

/// Ties verified keys to a peer. Keys once bound change only by a rotation that the old key has signed.
fn bind(
    peer: &mut Peer,
    now: Ms,
    keys: &BoundKeys,
    binding: Option<&Binding>,
) -> Result<(), Refused> {
    let (key, x25519) = (hex::encode(keys.ed25519), hex::encode(keys.x25519));
    if let Some(old) = peer.key.clone() {
        let same = old == key && peer.x25519.as_ref() == Some(&x25519);
        if same && peer.epoch == keys.epoch {
            keep(peer, now, keys, binding);
            return Ok(());
        }
        let binding = binding.ok_or_else(unbound)?;
        let known = BoundKeys {
            ed25519: bytes_of(&old)?,
            x25519: bytes_of(peer.x25519.as_deref().unwrap_or_default())?,
            epoch: peer.epoch,
            // Not remembered: it is the binding's word against itself.
            peer_id: binding.statement.peer_id.clone(),
            ..keys.clone()
        };
        let proven = binding
            .succeeds(&known, now / 1000)
            .map_err(|e| Refused::new(e.code(), e.to_string()))?;
        if proven != *keys {
            return Err(unbound());
        }
        // What the old key has signed may still be on its way.
        peer.key_before = Some(old);
    }
    peer.key = Some(key);
    peer.x25519 = Some(x25519);
    peer.epoch = keys.epoch;
    keep(peer, now, keys, binding);
    Ok(())
}

/// Keeps the binding of a later epoch than the first, to be shown to whoever still speaks under an earlier one.
fn keep(peer: &mut Peer, now: Ms, keys: &BoundKeys, binding: Option<&Binding>) {
    // Whoever starts often renews it often.
    let fresh_s = 86_400;
    let current = |b: &Binding| {
        b.statement.epoch == keys.epoch
            && keys.not_after_s < b.statement.not_after.saturating_add(fresh_s)
    };
    if keys.epoch == 0 || peer.binding.as_deref().is_some_and(current) {
        return;
    }
    let kept = binding
        .filter(|b| b.binds(keys, now / 1000))
        .cloned()
        .map(Binding::kept);
    if let Some(kept) = kept {
        peer.binding = Some(Box::new(kept));
    }
}

fn bytes_of(text: &str) -> Result<[u8; 32], Refused> {
    let mut bytes = [0u8; 32];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| unbound())?;
    Ok(bytes)
}

fn unbound() -> Refused {
    Refused::new("key_unbound", "the keys are not bound to their author")
}
