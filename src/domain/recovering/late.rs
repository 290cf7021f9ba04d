//! A peer that was first met after the backup: nobody knew to ask it when the node was restored. It shows itself by what it says
//! of a task that this node does not know, and is asked then. Nothing waits for its answer, for anybody can say so; and
//! what this node itself did since the restoration is no part of what was forgotten.

use super::{Asked, Recovery};
use crate::domain::Node;
use crate::domain::engagement;
use crate::domain::step::{Ms, Npub, Row};
use crate::wire::entry::{Act, Entry};
use crate::wire::log::AwardLog;
use crate::wire::message::Body;

/// What was open at a backup is settled or over so long after.
const OVER_MS: Ms = 30 * 24 * 3_600_000;
/// Most such peers at one time: it takes one message to become one.
const LATE_MAX: usize = 64;
/// Most of whom something was learned.
const TAUGHT_MAX: u32 = 1_024;
/// With a pause that doubles up to six hours: two days.
const TRIES_MAX: u32 = 20;
/// Who had nothing to tell is asked again after this long at the earliest.
const NOTHING_MS: Ms = 3_600_000;
/// Most of these that are remembered.
const NOTHING_MAX: usize = 4_096;

impl Node {
    /// Whether a message is about a task between its author and us, of which we know nothing.
    pub(in crate::domain) fn is_of_unknown_task(&self, from: &str, body: &Body) -> bool {
        if self.lineage.restored_ms == 0 || from == self.policy.me {
            return false;
        }
        let work = |task: &str, no: u32| !self.work.contains_key(&engagement::key(from, task, no));
        match body {
            Body::Accept(accept) => !self.jobs.contains_key(&accept.task),
            Body::Update(update) => !self.jobs.contains_key(&update.task),
            Body::Decline(decline) => {
                decline.award_no > 0 && !self.jobs.contains_key(&decline.task)
            }
            Body::Receipt(receipt) => work(&receipt.task, receipt.award_no),
            Body::Refusal(refusal) => work(&refusal.task, refusal.award_no),
            Body::Cancel(cancel) => {
                let owner = format!("{from}/{}", cancel.task);
                self.work_of(&owner).next().is_none()
            }
            _ => false,
        }
    }

    /// Asks a peer that speaks of what we may have forgotten.
    pub(in crate::domain) fn ask_late(&mut self, now: Ms, from: &str) {
        let (since_ms, restored_ms) = (self.lineage.since_ms, self.lineage.restored_ms);
        let lately = |at: &Ms| at.saturating_add(NOTHING_MS) > now;
        if now >= restored_ms.saturating_add(OVER_MS)
            || self.lineage.asked_late >= TAUGHT_MAX
            || self.lineage.asked.contains(from)
            || self.told_nothing.get(from).is_some_and(lately)
            || self.is_recovering()
        {
            return;
        }
        self.make_room_for_late();
        self.lineage.asked.insert(from.to_owned());
        self.lineage.asked_late = self.lineage.asked_late.saturating_add(1);
        self.put(Row::Lineage(self.lineage.clone()));
        let recovery = self.recovery.get_or_insert_with(|| Recovery {
            since_ms,
            restored_ms,
            ..Recovery::default()
        });
        let late = Asked {
            late: true,
            ..Asked::default()
        };
        recovery.peers.entry(from.to_owned()).or_insert(late);
        self.journal("asked_late", None, serde_json::json!({"npub": from}));
        self.ask_log(now, from);
        self.keep_recovery();
    }

    fn make_room_for_late(&mut self) {
        let late = (self.recovery.iter().flat_map(|r| &r.peers)).filter(|(_, asked)| asked.late);
        let late: Vec<_> = late
            .map(|(npub, asked)| (asked.tries, npub.clone()))
            .collect();
        if late.len() >= LATE_MAX
            && let Some((_, npub)) = late.into_iter().max()
        {
            self.leave_late(&npub);
        }
    }

    /// Those that do not answer may be asked again when they next speak.
    pub(super) fn leave_silent(&mut self) {
        let silent = |(npub, asked): (&Npub, &Asked)| {
            (asked.late && asked.tries >= TRIES_MAX).then(|| npub.clone())
        };
        let peers = self.recovery.iter().flat_map(|r| &r.peers);
        for npub in peers.filter_map(silent).collect::<Vec<_>>() {
            self.leave_late(&npub);
        }
    }

    /// It had nothing to tell: it may have later, but not at once.
    pub(super) fn had_nothing(&mut self, now: Ms, npub: &str) {
        if self.told_nothing.len() >= NOTHING_MAX {
            self.told_nothing.clear();
        }
        self.told_nothing.insert(npub.to_owned(), now);
        self.leave_late(npub);
    }

    /// It is never asked again, but has taught nothing: there is a turn for as many others as before.
    pub(super) fn leave_endless(&mut self, npub: &str) {
        if let Some(recovery) = self.recovery.as_mut() {
            recovery.peers.remove(npub);
        }
        self.lineage.asked_late = self.lineage.asked_late.saturating_sub(1);
        self.put(Row::Lineage(self.lineage.clone()));
    }

    fn leave_late(&mut self, npub: &str) {
        if let Some(recovery) = self.recovery.as_mut() {
            recovery.peers.remove(npub);
        }
        self.told_tasks.remove(npub);
        if self.lineage.asked.remove(npub) {
            self.lineage.asked_late = self.lineage.asked_late.saturating_sub(1);
            self.put(Row::Lineage(self.lineage.clone()));
        }
    }

    /// Whether we dealt with this award after the restoration, if its teller is one that was asked late.
    pub(in crate::domain) fn is_of_this_life(
        &self,
        from: &str,
        log: &AwardLog,
        hired: bool,
    ) -> bool {
        let asked = self.recovery.as_ref().and_then(|r| r.peers.get(from));
        if !asked.is_some_and(|asked| asked.late) {
            return false;
        }
        let (award, above) = (&log.award, self.lineage.numbers_above);
        let no = award.award_no;
        let known = match hired {
            true => {
                (self.jobs.get(&award.task)).is_some_and(|j| j.awards.iter().any(|a| a.no == no))
            }
            false => (self.work).contains_key(&engagement::key(from, &award.task, no)),
        };
        let since = self.lineage.restored_ms.saturating_mul(1024);
        let mine = |e: &&Entry| e.author == self.policy.me && self.is_own_key(&e.key);
        let first = log.entries.iter().filter(mine);
        let new = match first.map(|e| e.seq).min() {
            Some(seq) => seq > above,
            // An award that we have never answered.
            None => (log.entries.iter())
                .any(|e| matches!(e.what, Act::Awarded { .. }) && e.hlc >= since),
        };
        known || new
    }
}
