//! What a restored node believes of what a peer holds, and what follows for its book. Nothing counts for having been said: an
//! award of ours by our signature and the executor's name in it, a payment of ours by our signature, a payment to us by
//! theirs for work that we signed for. Whatever has no signature of ours changes nothing. Signatures themselves were verified
//! before; here it is decided whose they are.
//!
//! Entries of ours are taken in before anything new is written, and new ones are numbered above all of them, so that no peer
//! ever sees two of ours under one number. Work that nobody here can finish any more is ended on both sides.

mod hired;
mod worked;

use super::Node;
use super::history;
use super::job::Heads;
use super::step::{Ms, Refused, Row};
use crate::wire::bounds::MAX_TERM_MS;
use crate::wire::entry::{Act, Entry};
use crate::wire::log::AwardLog;
use crate::wire::proof::Hop;

/// What is known of one award by signatures that count, and by nothing else.
#[derive(Default)]
struct Facts {
    ours: Vec<Entry>,
    theirs: Vec<Entry>,
    /// By the requester: when, for whom, on which terms.
    awarded: Option<(Ms, String, String)>,
    /// By the executor: when, for at most how much.
    accepted: Option<(Ms, u64)>,
    /// By the executor: declined or failed, and why.
    gone: Option<String>,
    /// By the executor: stopped after so many units, and what parts had cost.
    stopped: Option<(u32, Vec<Hop>)>,
    /// By the executor: hash of the proof.
    completed: Option<String>,
    /// By the requester: when.
    canceled: Option<Ms>,
    /// By the requester: cost, hash of the proof, quality.
    paid: Option<(u64, String, Option<u32>)>,
    /// By the requester: why, and the hash of its evidence.
    refused: Option<(String, String)>,
}

impl Facts {
    /// Takes the statement of an entry that the requester (or the executor) of award `no` made.
    fn note(&mut self, entry: &Entry, no: u32, by_requester: bool) {
        let at_ms = entry.hlc / 1024;
        match (&entry.what, by_requester) {
            (Act::Canceled, true) => self.canceled = self.canceled.or(Some(at_ms)),
            (
                Act::Awarded {
                    award_no,
                    executor,
                    terms,
                },
                true,
            ) if *award_no == no => self.awarded = Some((at_ms, executor.clone(), terms.clone())),
            (
                Act::Paid {
                    award_no,
                    cost_mc,
                    proof,
                    quality_bp,
                },
                true,
            ) if *award_no == no => self.paid = Some((*cost_mc, proof.clone(), *quality_bp)),
            (
                Act::Refused {
                    award_no,
                    code,
                    evidence,
                    ..
                },
                true,
            ) if *award_no == no => self.refused = Some((code.clone(), evidence.clone())),
            (Act::Accepted { award_no, total_mc }, false) if *award_no == no => {
                self.accepted = Some((at_ms, *total_mc));
            }
            (Act::Declined { award_no, code } | Act::Failed { award_no, code }, false)
                if *award_no == no =>
            {
                self.gone = Some(code.clone());
            }
            (
                Act::Stopped {
                    award_no,
                    useful_units,
                    hops,
                },
                false,
            ) if *award_no == no => self.stopped = Some((*useful_units, hops.clone())),
            (Act::Completed { award_no, proof }, false) if *award_no == no => {
                self.completed = Some(proof.clone());
            }
            _ => {}
        }
    }
}

fn unsigned() -> Refused {
    Refused::new(
        "claim_unsigned",
        "nothing that this node signed says so: nothing changes",
    )
}

impl Node {
    /// Takes over what a peer holds of one award between us; whether anything was new.
    pub(super) fn adopt(&mut self, now: Ms, from: &str, log: &AwardLog) -> Result<bool, Refused> {
        let hired = log.award.requester == self.policy.me;
        if !hired && log.award.requester != from {
            return Err(unsigned());
        }
        if self.is_of_this_life(from, log, hired) {
            return Ok(false);
        }
        let facts = self.facts(from, log, hired);
        if hired {
            self.adopt_hired(now, from, log, &facts)
        } else {
            self.adopt_worked(now, from, log, &facts)
        }
    }

    /// The entries whose keys are bound to their authors.
    fn facts(&self, from: &str, log: &AwardLog, hired: bool) -> Facts {
        let mut facts = Facts::default();
        let mut entries: Vec<&Entry> = log.entries.iter().collect();
        entries.sort_by_key(|e| e.seq);
        for entry in entries {
            let mine = entry.author == self.policy.me;
            let bound = if mine {
                self.is_own_key(&entry.key)
            } else {
                entry.author == from && self.peers.get(from).is_some_and(|p| p.owns(&entry.key))
            };
            let about = entry.task == log.award.task && entry.requester == log.award.requester;
            if bound && about {
                facts.note(entry, log.award.award_no, mine == hired);
                let side = if mine {
                    &mut facts.ours
                } else {
                    &mut facts.theirs
                };
                side.push(entry.clone());
            }
        }
        facts
    }

    pub(super) fn is_own_key(&self, key: &str) -> bool {
        self.policy.key == key || self.lineage.keys.iter().any(|own| own == key)
    }

    /// Whether something signed then would be in the store, were it older than the backup.
    fn was_backed_up(&self, signed_ms: Ms) -> bool {
        // What was decided just before may not have been in the store yet.
        let slack_ms = 3_600_000;
        (self.recovery.as_ref()).is_some_and(|r| signed_ms.saturating_add(slack_ms) < r.since_ms)
    }

    fn admit_all(&mut self, now: Ms, task: &str, facts: &Facts, heads: &mut Heads) -> bool {
        let mut honest = true;
        for entry in facts.ours.iter().chain(&facts.theirs) {
            match history::admit(heads, now, entry) {
                Ok(()) => self.put(Row::Entry(Box::new(entry.clone()))),
                Err(_) => {
                    honest = false;
                    self.put(Row::Entry(Box::new(entry.clone())));
                    let body = serde_json::json!({"author": entry.author});
                    self.journal("equivocation", Some(task), body);
                    if entry.author != self.policy.me {
                        self.edit_peer(&entry.author.clone(), |peer| {
                            peer.frauds = peer.frauds.saturating_add(1);
                            peer.disputed = true;
                        });
                    }
                }
            }
        }
        honest
    }

    /// A time in an answer, within reason.
    fn term(&self, now: Ms, at_ms: Ms) -> Ms {
        at_ms.clamp(now.saturating_add(60_000), now.saturating_add(MAX_TERM_MS))
    }
}
