//! Every cell of the money table, written out; amounts at their extremes; books that sum to zero whatever happens.

use legiond::domain::ledger::{
    AMOUNT_MAX_MC, Account, Event, Kind, Ledger, LockKey, SELF, Side, State, Verdict, next,
};
use proptest::prelude::*;

const EVENTS: [Event; 6] = [
    Event::Lock,
    Event::Receipt,
    Event::Refusal,
    Event::Decline,
    Event::Expiry,
    Event::WriteOff,
];

/// One row per state and side, one column per event of [`EVENTS`].
const TABLE: [(State, Side, [Verdict; 6]); 8] = {
    use Side::{Executor, Requester};
    use State::{Committed, Locked, None, RolledBack};
    use Verdict::{Keep, Refuse, To};
    const LOCK: Verdict = To(Locked);
    const POST: Verdict = To(Committed);
    const FREE: Verdict = To(RolledBack);
    [
        //                        lock  receipt refusal decline expiry  write-off
        (
            None,
            Requester,
            [LOCK, Refuse, Refuse, Refuse, Refuse, Refuse],
        ),
        (
            None,
            Executor,
            [LOCK, Refuse, Refuse, Refuse, Refuse, Refuse],
        ),
        (Locked, Requester, [Keep, POST, FREE, FREE, FREE, Keep]),
        (Locked, Executor, [Keep, POST, FREE, FREE, Keep, FREE]),
        (Committed, Requester, [Keep; 6]),
        (Committed, Executor, [Keep; 6]),
        (RolledBack, Requester, [Keep; 6]),
        (RolledBack, Executor, [Keep; 6]),
    ]
};

fn key(side: Side, peer: &str, no: u32) -> LockKey {
    (side, peer.to_owned(), "task".to_owned(), no)
}

#[test]
fn every_cell_of_the_table_is_as_written() {
    for (state, side, row) in TABLE {
        for (event, expected) in EVENTS.into_iter().zip(row) {
            assert_eq!(
                next(state, event, side),
                expected,
                "{state:?} x {event:?} x {side:?}"
            );
        }
    }
}

/// The book does what the table says: the same cells, through `apply`, with what moves.
#[test]
fn the_book_follows_the_table() {
    for (state, side, row) in TABLE {
        for (event, expected) in EVENTS.into_iter().zip(row) {
            let mut book = Ledger::default();
            let lock = key(side, "peer", 1);
            let settled = matches!(state, State::Committed | State::RolledBack);
            if state == State::Locked {
                book.apply(&lock, Event::Lock, 100, false, 1).unwrap();
            }
            let amount = if event == Event::Receipt { 60 } else { 100 };
            let answer = book.apply(&lock, event, amount, settled, 2);
            let cell = format!("{state:?} x {event:?} x {side:?}");
            match expected {
                Verdict::Refuse => assert_eq!(answer.unwrap_err().code, "lock_missing", "{cell}"),
                Verdict::Keep => assert_eq!(answer.unwrap(), None, "{cell}"),
                Verdict::To(to) => {
                    let moved = answer.unwrap().expect(&cell);
                    let (kind, amount, posted, pending) = match to {
                        State::Locked => (Kind::Lock, 100, 0, 100),
                        State::Committed => (Kind::Commit, 60, 60, 0),
                        _ => (Kind::Rollback, 100, 0, 0),
                    };
                    assert_eq!((moved.kind, moved.amount_mc), (kind, amount), "{cell}");
                    let sign = if side == Side::Executor { 1 } else { -1 };
                    let account = book.account("peer");
                    assert_eq!(account.posted_mc, sign * posted, "{cell}");
                    let ours = [account.pending_we_owe_mc, account.pending_owed_to_us_mc];
                    let at = usize::from(side == Side::Executor);
                    assert_eq!((ours[at], ours[1 - at]), (pending, 0), "{cell}");
                }
            }
            assert_eq!(book.sum_mc(), 0, "{cell}");
        }
    }
}

#[test]
fn amounts_at_their_extremes_are_moved_or_refused_whole() {
    for side in [Side::Requester, Side::Executor] {
        for (amount, fits) in [
            (0, true),
            (1, true),
            (AMOUNT_MAX_MC, true),
            (AMOUNT_MAX_MC + 1, false),
            (u64::MAX, false),
        ] {
            let mut book = Ledger::default();
            let lock = key(side, "peer", 1);
            let locked = book.apply(&lock, Event::Lock, amount, false, 1);
            if !fits {
                assert_eq!(locked.unwrap_err().code, "amount_range");
                assert_eq!(book.locks().count(), 0);
                continue;
            }
            assert_eq!(locked.unwrap().unwrap().amount_mc, amount);
            for (cost, code) in [(amount + 1, "cost_above_lock"), (u64::MAX, "amount_range")] {
                let code = if cost > AMOUNT_MAX_MC {
                    "amount_range"
                } else {
                    code
                };
                let refused = book.apply(&lock, Event::Receipt, cost, false, 2);
                assert_eq!(refused.unwrap_err().code, code, "{amount} {cost}");
                assert_eq!(book.locks().count(), 1, "a refused cost changes nothing");
            }
            // The amount means nothing where nothing is named: a release releases all.
            let mut other = book.clone();
            let freed = other.apply(&lock, Event::Decline, u64::MAX, false, 3);
            assert_eq!(freed.unwrap().unwrap().amount_mc, amount);
            let paid = book.apply(&lock, Event::Receipt, amount, false, 3);
            assert_eq!(paid.unwrap().unwrap().kind, Kind::Commit);
            assert_eq!(book.account("peer").posted_mc.unsigned_abs(), amount);
            assert_eq!((book.sum_mc(), other.sum_mc()), (0, 0));
        }
    }
}

/// However much is posted or locked, no sum leaves the range of its number.
#[test]
fn a_book_near_its_end_takes_no_more_locks() {
    let mut book = Ledger::default();
    for (npub, posted_mc) in [("peer", i64::MAX / 2), (SELF, -(i64::MAX / 2))] {
        book.load_account(Account {
            npub: npub.into(),
            posted_mc,
            pending_owed_to_us_mc: 0,
            pending_we_owe_mc: 0,
        });
    }
    for peer in ["peer", "another"] {
        let refused = book.apply(&key(Side::Executor, peer, 1), Event::Lock, 1, false, 1);
        assert_eq!(refused.unwrap_err().code, "amount_range");
    }
    let mut book = Ledger::default();
    let mut taken = 0u32;
    for no in 0..10_000 {
        let peer = format!("peer{}", no % 50);
        let lock = key(Side::Executor, &peer, no);
        match book.apply(&lock, Event::Lock, AMOUNT_MAX_MC, false, 1) {
            Ok(_) => taken += 1,
            Err(refused) => assert_eq!(refused.code, "amount_range"),
        }
    }
    assert!(taken > 1_000 && taken < 10_000, "{taken}");
    let open: Vec<LockKey> = book.locks().map(|(key, _)| key.clone()).collect();
    for lock in open {
        book.apply(&lock, Event::Receipt, AMOUNT_MAX_MC, false, 2)
            .unwrap();
    }
    assert_eq!(book.sum_mc(), 0);
    let sum: i128 = book.accounts().map(|a| i128::from(a.posted_mc)).sum();
    assert_eq!(sum, 0, "nothing was cut off at the end of the range");
}

fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..1_000,
        1 => Just(0),
        1 => Just(AMOUNT_MAX_MC),
        1 => Just(AMOUNT_MAX_MC + 1),
        1 => Just(u64::MAX),
    ]
}

proptest! {
    #[test]
    fn any_sequence_sums_to_zero_and_pends_what_is_locked(
        moves in proptest::collection::vec((0usize..2, 0usize..3, 0u32..4, 0usize..6, amount()), 0..200)
    ) {
        let mut book = Ledger::default();
        let mut ended = std::collections::BTreeSet::new();
        let mut kinds = std::collections::BTreeMap::<String, u32>::new();
        for (side, peer, no, event, amount_mc) in moves {
            let side = [Side::Requester, Side::Executor][side];
            let lock = key(side, ["a", "b", "c"][peer], no);
            if let Ok(Some(moved)) = book.apply(&lock, EVENTS[event], amount_mc, ended.contains(&lock), 1) {
                if moved.kind != Kind::Lock {
                    ended.insert(lock);
                }
                *kinds.entry(moved.id).or_default() += 1;
            }
            prop_assert_eq!(book.sum_mc(), 0);
            for account in book.accounts().filter(|a| a.npub != SELF) {
                let of = |side: Side| -> u64 {
                    book.locks().filter(|(k, _)| k.0 == side && k.1 == account.npub).map(|(_, mc)| mc).sum()
                };
                prop_assert_eq!(account.pending_owed_to_us_mc, of(Side::Executor));
                prop_assert_eq!(account.pending_we_owe_mc, of(Side::Requester));
            }
        }
        prop_assert!(kinds.values().all(|n| *n == 1), "each movement happens once: {:?}", kinds);
    }
}
