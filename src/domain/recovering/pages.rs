//! Pages of what was signed between two nodes: how they are given to whoever asks, and how far those of an answer are read.
//!
//! A page that tells nothing new costs its sender nothing. An honest one sends such pages for what it holds of others, and no
//! more of them than its store has room for; whoever sends more is not asked any more.

use super::{ASK_AGAIN_MAX_MS, Recovery};
use crate::domain::Node;
use crate::domain::engagement;
use crate::domain::peer::Tier;
use crate::domain::step::{Effect, Ms, Refused};
use crate::wire::log::{LogEntries, LogSince, NAMED_MAX, NAMED_ONLY, Named};
use crate::wire::message::Body;

/// Pages that one peer may ask for in a minute.
const PAGES_PER_MIN: u32 = 1_200;
/// Most pages of one peer's answer that tell nothing new: 4,000,000 rows of others, at 2,000 a page.
const IDLE_PAGES_MAX: u32 = 2_000;

impl Node {
    /// A peer asks what was signed between us. Whoever nothing was signed with has no reason to.
    pub(in crate::domain) fn on_since(
        &mut self,
        now: Ms,
        from: &str,
        since: &LogSince,
    ) -> Result<(), Refused> {
        let known = self.peer(from).tier != Tier::Stranger
            || self.ledger.accounts().any(|a| a.npub == from)
            || self.work.values().any(|w| w.requester == from)
            || (self.jobs.values()).any(|j| j.awards.iter().any(|a| a.executor == from));
        if !known || from == self.policy.me {
            return Err(Refused::new(
                "log_refused",
                "nothing was signed between this node and the sender",
            ));
        }
        let (minute, pages) = self.pages.entry(from.to_owned()).or_default();
        if *minute != now / 60_000 {
            (*minute, *pages) = (now / 60_000, 0);
        }
        *pages = pages.saturating_add(1);
        if *pages > PAGES_PER_MIN {
            return Err(Refused::new("rate_limited", "too many pages a minute"));
        }
        if since.cursor.is_empty() {
            let body = serde_json::json!({"npub": from, "since_ms": since.since_ms});
            self.journal("log_asked", None, body);
        }
        // A result that it names may have been lost there after it was acknowledged.
        let named = since.again.iter().filter(|n| n.requester == from);
        let named = named.map(|n| engagement::key(from, &n.task, n.award_no));
        let delivered = |key: &String| {
            let work = self.work.get(key).filter(|w| w.proof.is_some());
            work.is_some_and(|w| !w.is_work() && w.is_live())
        };
        for key in named.filter(delivered).collect::<Vec<_>>() {
            self.resend(now, key);
        }
        self.out.effects.push(Effect::LogPage {
            to: from.to_owned(),
            since: Box::new(since.clone()),
        });
        Ok(())
    }

    /// The page is read: it goes to whoever asked, and results that it names go with it.
    pub(in crate::domain) fn on_page(&mut self, now: Ms, to: &str, mut page: LogEntries) {
        page.binding = self.policy.binding.clone();
        let until = now.saturating_add(ASK_AGAIN_MAX_MS);
        self.send_peer(to, Body::Entries(Box::new(page)), until);
    }

    /// A page of what a peer holds.
    pub(in crate::domain) fn on_log(
        &mut self,
        now: Ms,
        from: &str,
        page: &LogEntries,
    ) -> Result<(), Refused> {
        let asked = |r: &Recovery| {
            let cursor = r.peers.get(from).map(|a| a.cursor.clone());
            r.restored_ms == page.restored_ms
                && cursor.as_ref() == Some(&page.cursor)
                && !self.is_endless(from)
        };
        if !self.recovery.as_ref().is_some_and(asked) {
            return Err(Refused::new("log_unasked", "this page was not asked for"));
        }
        let fresh = self.is_fresh(from, page);
        // What is decided here may be said to this peer, and to nobody else.
        self.speaking = Some(from.to_owned());
        let mut adopted = 0;
        for log in &page.awards {
            match self.adopt(now, from, log) {
                Ok(new) => adopted += u32::from(new),
                Err(refused) => {
                    let body = serde_json::json!({"npub": from, "code": refused.code, "award_no": log.award.award_no});
                    self.journal("claim_refused", Some(&log.award.task), body);
                }
            }
        }
        let mut more = false;
        let wanted = std::mem::take(&mut self.wanted);
        if let Some(asked) = (self.recovery.as_mut()).and_then(|r| r.peers.get_mut(from)) {
            asked.adopted = asked.adopted.saturating_add(adopted);
            asked.tries = 0;
            asked.idle = asked.idle.saturating_add(u32::from(!fresh));
            asked.endless = asked.idle > IDLE_PAGES_MAX;
            if page.cursor == NAMED_ONLY {
                let named = asked.again.len().min(NAMED_MAX);
                asked.again.drain(..named);
            }
            let told = |n: &Named| page.awards.iter().any(|log| log.award == *n);
            asked.again.retain(|n| !told(n));
            let news = wanted.into_iter().filter(|n| !asked.named.contains(n));
            let news: Vec<Named> = news.collect();
            asked.named.extend(news.iter().cloned());
            asked.again.extend(news);
            if asked.endless {
                // No honest peer holds so much about others.
            } else if let Some(next) = page.next.as_ref().filter(|next| **next != page.cursor) {
                asked.cursor.clone_from(next);
                more = true;
            } else if !asked.again.is_empty() {
                asked.cursor = NAMED_ONLY.to_owned();
                more = true;
            }
        }
        if more {
            self.ask_log(now, from);
        } else if self.is_endless(from) {
            self.give_up_asking(now, from);
        } else {
            self.reconciled(now, from);
        }
        self.speaking = None;
        self.keep_recovery();
        Ok(())
    }

    fn is_endless(&self, from: &str) -> bool {
        let asked = self.recovery.as_ref().and_then(|r| r.peers.get(from));
        asked.is_some_and(|asked| asked.endless)
    }

    /// Whether a page tells of a task that was not told of before, and that we have signed something of: of these there are only
    /// so many. (A task that only the peer has signed for, it may have invented.)
    fn is_fresh(&mut self, from: &str, page: &LogEntries) -> bool {
        let mut fresh = false;
        for log in &page.awards {
            let signed =
                (log.entries.iter()).any(|e| e.author == self.policy.me && self.is_own_key(&e.key));
            if let (true, Ok(task)) = (signed, u128::from_str_radix(&log.award.task, 16)) {
                let told = self.told_tasks.entry(from.to_owned()).or_default();
                fresh |= told.insert(task);
            }
        }
        fresh
    }

    fn give_up_asking(&mut self, now: Ms, from: &str) {
        self.told_tasks.remove(from);
        self.journal("log_endless", None, serde_json::json!({"npub": from}));
        let asked = self.recovery.as_ref().and_then(|r| r.peers.get(from));
        if asked.is_some_and(|asked| asked.late) {
            self.leave_endless(from);
        }
        let waits = |r: &Recovery| r.peers.values().any(|asked| !asked.endless);
        if self.is_recovering() && !self.recovery.as_ref().is_some_and(waits) {
            self.go_on(now);
        }
    }
}
