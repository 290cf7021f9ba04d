//! Strangers come and go: how many are remembered is bounded, whatever they leave open, and nobody else is forgotten for them.

use legiond::domain::engagement::Stage;
use legiond::domain::ledger::{Account, State};
use legiond::domain::peer::{Peer, Tier};
use legiond::domain::step::{Change, Input, Row, Step};
use legiond::wire::market::Withdraw;
use legiond::wire::message::Body;

use super::pair::{Hall, journaled};

const MOST: usize = 64;
const HOUR: u64 = 3_600_000;

fn name(n: usize) -> String {
    format!("{n:064x}")
}

/// A stranger that was never seen says something.
fn comes(hall: &mut Hall, at: usize, n: usize) -> Step {
    let body = Body::Withdraw(Withdraw {
        task: "t".into(),
        below_award_no: 1,
    });
    hall.hand_as(&name(n), at, body, None)
}

fn knows(hall: &Hall, at: usize, npub: &str) -> bool {
    hall.nodes[at].peers().contains_key(npub)
}

fn dropped_peers(step: &Step) -> usize {
    let gone = |change: &&Change| matches!(change, Change::DropPeer(_));
    step.changes.iter().filter(gone).count()
}

/// A stranger in dispute, out of the store, that owes so much.
fn recall_disputed(hall: &mut Hall, at: usize, n: usize, owes_mc: u64) {
    let peer = Peer {
        disputed: true,
        last_seen_ms: 1 + n as u64,
        ..Peer::stranger(&name(n))
    };
    hall.nodes[at].recall(Row::Peer(Box::new(peer)));
    hall.nodes[at].recall(Row::Account(Account {
        npub: name(n),
        posted_mc: 0,
        pending_owed_to_us_mc: owes_mc,
        pending_we_owe_mc: 0,
    }));
}

/// Those unseen for longest go first, a part of all at a time, so that few newcomers cost a look at everybody.
#[test]
fn strangers_never_fill_the_memory() {
    let mut hall = Hall::with(2, |_, policy| policy.peers_max = MOST as u32);
    let friend = hall.npub(1);
    let (mut passes, mut gone) = (0, 0);
    for n in 0..10 * MOST {
        hall.now += 1;
        let step = comes(&mut hall, 0, n);
        passes += usize::from(dropped_peers(&step) > 0);
        gone += dropped_peers(&step);
        assert!(hall.nodes[0].peers().len() <= MOST);
        assert!(knows(&hall, 0, &friend) && knows(&hall, 0, &name(n)));
    }
    assert_eq!(gone + hall.nodes[0].peers().len(), 10 * MOST + 1);
    assert!(
        passes <= gone.div_ceil(MOST / 16),
        "{passes} passes for {gone}"
    );
    assert!(!knows(&hall, 0, &name(0)));
}

/// Strangers in dispute have a part of the room; beyond it the smallest claims go first, and the journal says so.
#[test]
fn disputed_strangers_are_bounded_by_their_claims() {
    let mut hall = Hall::with(1, |_, policy| policy.peers_max = MOST as u32);
    for n in 0..2 * MOST {
        recall_disputed(&mut hall, 0, n, (n as u64 * 7) % 128);
    }
    let step = comes(&mut hall, 0, 1_000);
    let kept = MOST / 4;
    assert_eq!(journaled(&step, "dispute_dropped"), 2 * MOST - kept);
    let owed = |peer: &Peer| hall.nodes[0].ledger().exposure_mc(&peer.npub);
    let peers = hall.nodes[0].peers().values();
    let mut claims: Vec<_> = peers.filter(|p| p.disputed).map(owed).collect();
    claims.sort();
    assert_eq!(claims, (128 - kept as u64..128).collect::<Vec<_>>());
    // Below their part they stay, however many others come.
    for n in 0..4 * MOST {
        hall.now += 1;
        comes(&mut hall, 0, 2_000 + n);
    }
    let peers = hall.nodes[0].peers().values();
    assert_eq!(peers.filter(|p| p.disputed).count(), kept);
}

/// What a forgotten stranger owes is given up like a claim that the owner clears; work under way keeps its peer.
#[test]
fn a_forgotten_claim_is_written_off_and_open_work_keeps_its_peer() {
    for settled in [false, true] {
        let mut hall = Hall::with(2, |_, policy| {
            policy.peers_max = MOST as u32;
            policy.stranger_cap_mc = 1_000;
        });
        hall.trust(1, 0, Tier::Stranger);
        let (task, _) = hall.judged(8, None);
        let (debtor, key) = (hall.npub(0), format!("{}/{task}/1", hall.npub(0)));
        if settled {
            hall.now += 2 * HOUR;
            hall.give(1, Input::CaughtUp { online: true });
            assert_eq!(hall.nodes[1].work()[&key].stage, Stage::Overdue);
        }
        for n in 0..MOST {
            recall_disputed(&mut hall, 1, n, 100);
        }
        let step = comes(&mut hall, 1, 1_000);
        let work = &hall.nodes[1].work()[&key];
        if settled {
            assert!(!knows(&hall, 1, &debtor));
            assert_eq!(journaled(&step, "written_off"), 1);
            assert_eq!((work.stage, work.money), (Stage::Ended, State::RolledBack));
            assert_eq!(hall.nodes[1].ledger().exposure_mc(&debtor), 0);
        } else {
            assert!(knows(&hall, 1, &debtor));
            assert_eq!((work.stage, work.money), (Stage::Finished, State::Locked));
        }
    }
}
