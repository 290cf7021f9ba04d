//! What must hold in every world, at every moment and at the end.

use legiond::domain::Node;
use legiond::domain::ledger::SELF;
use legiond::domain::step::Row;

use super::world::World;

impl World {
    /// What must hold at every moment.
    pub(crate) fn judge(&self, at: usize) {
        let Some(node) = &self.machines[at].node else {
            return;
        };
        assert_eq!(node.ledger().sum_mc(), 0, "a book sums to zero");
        for account in node.ledger().accounts().filter(|a| a.npub != SELF) {
            let owed: u64 = node
                .ledger()
                .locks()
                .filter(|(k, _)| {
                    k.1 == account.npub && k.0 == legiond::domain::ledger::Side::Executor
                })
                .map(|(_, a)| a)
                .sum();
            let owe: u64 = node
                .ledger()
                .locks()
                .filter(|(k, _)| {
                    k.1 == account.npub && k.0 == legiond::domain::ledger::Side::Requester
                })
                .map(|(_, a)| a)
                .sum();
            assert_eq!(
                (owed, owe),
                (account.pending_owed_to_us_mc, account.pending_we_owe_mc),
                "pending is the sum of the locks"
            );
            let limit = node.policy().trusted_limit_mc;
            assert!(
                account.posted_mc.max(0) as u64 + owed <= limit,
                "no balance is over its limit"
            );
        }
    }

    /// What must hold after quiescence.
    pub(crate) fn mirrored(&self) {
        for a in 0..self.machines.len() {
            for b in 0..self.machines.len() {
                if a != b {
                    let mine = self.node(a).ledger().account(&self.npub(b));
                    let theirs = self.node(b).ledger().account(&self.npub(a));
                    assert_eq!(
                        mine.posted_mc, -theirs.posted_mc,
                        "the books mirror each other: {a} {b}"
                    );
                    assert_eq!(
                        (mine.pending_owed_to_us_mc, mine.pending_we_owe_mc),
                        (0, 0),
                        "nothing pends: {a} {b}"
                    );
                }
            }
            let ids = &self.machines[a].disk.transfers;
            for lock in ids.keys().filter_map(|id| id.strip_suffix("/lock")) {
                let ends = ["commit", "rollback"]
                    .iter()
                    .filter(|kind| ids.contains_key(&format!("{lock}/{kind}")))
                    .count();
                assert_eq!(ends, 1, "each lock ends exactly once: {lock}");
            }
        }
    }

    pub(crate) fn quiet(&self) -> bool {
        self.machines
            .iter()
            .all(|m| m.node.as_ref().is_some_and(Node::quiescent) && m.disk.outbox.is_empty())
    }

    pub(crate) fn job(&self, at: usize, task: &str) -> legiond::domain::job::Job {
        match self.machines[at].disk.row(&format!("job/{task}")) {
            Some(Row::Job(job)) => *job,
            _ => panic!("no such job"),
        }
    }

    pub(crate) fn journaled(&self, at: usize, kind: &str, task: &str) -> usize {
        self.machines[at]
            .disk
            .journal
            .iter()
            .filter(|(k, t, _)| k == kind && t.as_deref() == Some(task))
            .count()
    }
}
