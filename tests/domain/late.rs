//! Peers that a restored node hears of only afterwards, and whoever says that it is one.

use legiond::domain::recovering::Lineage;
use legiond::domain::step::{Addressee, Change, Input, Row, Step};
use legiond::wire::entry::Act;
use legiond::wire::log::{AwardLog, LogEntries, Named};
use legiond::wire::message::{Body, News, Update};

use super::pair::{Hall, journaled, letters};

const HOUR_MS: u64 = 3_600_000;

fn lineage(hall: &Hall) -> Lineage {
    Lineage {
        since_ms: hall.now - 2 * HOUR_MS,
        restored_ms: hall.now,
        ..Lineage::restored(hall.now, Vec::new())
    }
}

/// A word about a task that node 0 does not know.
fn speaks(hall: &mut Hall, from: &str) -> usize {
    let body = Body::Update(Box::new(Update {
        task: "ab".repeat(16),
        award_no: 1,
        news: News::Working {
            units_done: 1,
            units_total: 2,
            waiting: None,
        },
    }));
    let step = hall.hand_as(from, 0, body, None);
    let asks = letters(&step);
    let to = Addressee::Peer(from.to_owned());
    let asked = |letter: &&(Addressee, Body)| matches!(letter, (at, Body::Since(_)) if *at == to);
    asks.iter().filter(asked).count()
}

fn answers(hall: &mut Hall, awards: Vec<AwardLog>) -> Step {
    let restored_ms = hall.nodes[0].recovery().unwrap().restored_ms;
    let page = LogEntries {
        restored_ms,
        cursor: String::new(),
        awards,
        next: None,
        binding: hall.policies[1].binding.clone(),
    };
    hall.hand(1, 0, Body::Entries(Box::new(page)))
}

#[test]
fn whoever_speaks_of_an_unknown_task_is_asked_and_nothing_waits_for_it() {
    let mut hall = Hall::new(2);
    let name = |n: usize| format!("{n:064x}");
    assert_eq!(speaks(&mut hall, &name(1)), 0, "nothing was restored");
    let lineage = lineage(&hall);
    hall.nodes[0].recall(Row::Lineage(lineage.clone()));
    assert_eq!(speaks(&mut hall, &name(1)), 1);
    assert_eq!(speaks(&mut hall, &name(1)), 0, "once");
    assert!(!hall.nodes[0].holds(&name(1)) && !hall.nodes[0].holds_any());
    // However many say so, few are remembered: who comes last is asked, who was silent for longest is left.
    for n in 2..1_000 {
        assert_eq!(speaks(&mut hall, &name(n)), 1, "{n}");
    }
    assert!(hall.nodes[0].recovery().unwrap().peers.len() <= 64);
    // Nobody of them answers: after some days nothing is left of it, and whoever then speaks is asked once more.
    for _ in 0..200 {
        hall.now += HOUR_MS;
        hall.give(0, Input::Tick);
    }
    assert!(hall.nodes[0].recovery().is_none());
    assert_eq!(speaks(&mut hall, &name(999)), 1);
    // What was open when the home was lost is over one day.
    hall.now = lineage.restored_ms + 31 * 24 * HOUR_MS;
    assert_eq!(speaks(&mut hall, &name(1_001)), 0);
}

#[test]
fn a_peer_with_nothing_to_tell_is_not_asked_at_every_word() {
    let mut hall = Hall::new(2);
    let row = Row::Lineage(lineage(&hall));
    hall.nodes[0].recall(row);
    let peer = hall.npub(1);
    for _ in 0..3 {
        assert_eq!(speaks(&mut hall, &peer), 1);
        let step = answers(&mut hall, Vec::new());
        assert_eq!(journaled(&step, "reconciled"), 1);
        assert!(hall.nodes[0].recovery().is_none());
        assert_eq!(speaks(&mut hall, &peer), 0);
        hall.now += HOUR_MS;
    }
}

/// What this node itself did since the restoration, and has dropped from its store since, was never forgotten.
#[test]
fn what_was_done_after_the_restoration_is_not_booked_twice() {
    for forgotten in [true, false] {
        let mut hall = Hall::new(2);
        let row = lineage(&hall);
        let above = row.numbers_above;
        hall.nodes[0].recall(Row::Lineage(row.clone()));
        let (task, request) = hall.directed(3);
        let Body::Request(award) = request else {
            panic!("{request:?}")
        };
        let mut entry = award.entry.clone();
        assert!(entry.seq > above);
        if forgotten {
            entry.seq = 1;
        }
        hall.nodes[0] = legiond::domain::Node::new(hall.policies[0].clone());
        hall.nodes[0].recall(Row::Lineage(row));
        hall.give(0, Input::Started);
        hall.give(0, Input::CaughtUp { online: true });
        hall.meet(0, 1);
        let peer = hall.npub(1);
        assert_eq!(speaks(&mut hall, &peer), 1);
        let log = AwardLog {
            award: Named {
                requester: hall.npub(0),
                task: task.clone(),
                award_no: 1,
            },
            entries: match forgotten {
                true => vec![entry],
                // In our name, by a key that is not ours.
                false => {
                    let mut forged = entry.clone();
                    (forged.seq, forged.key) = (1, hall.policies[1].key.clone());
                    vec![forged, entry]
                }
            },
            terms: Some(award.terms()),
            proof: None,
            evidence: None,
            open: true,
            withdrawn: false,
            settle_by_ms: award.settle_by_ms,
            unit_price_mc: 1,
        };
        let step = answers(&mut hall, vec![log]);
        assert_eq!(journaled(&step, "reconciled"), 1);
        assert_eq!(journaled(&step, "adopted"), usize::from(forgotten));
        let locks = hall.nodes[0].ledger().locks().count();
        assert_eq!(locks, usize::from(forgotten), "{step:?}");
        hall.now += HOUR_MS;
        let again = speaks(&mut hall, &peer);
        assert_eq!(again, usize::from(!forgotten), "who has told is not asked");
    }
}

/// What we delivered and forgot is paid after the restoration: that is how we hear of it.
#[test]
fn a_payment_for_forgotten_work_is_taken() {
    let mut hall = Hall::new(2);
    let restored = lineage(&hall);
    let (task, request) = hall.directed(3);
    let Body::Request(award) = request.clone() else {
        panic!("{request:?}")
    };
    let accept = super::pair::one(&hall.hand(0, 1, request));
    hall.hand(1, 0, accept.clone());
    let key = format!("{}/{task}/1", hall.npub(0));
    let result = super::pair::one(&hall.finish(1, &key, 3));
    hall.hand(1, 0, result.clone());
    // The executor is lost and restored, and the payment comes after that.
    hall.nodes[1] = legiond::domain::Node::new(hall.policies[1].clone());
    let restored_ms = hall.now;
    hall.nodes[1].recall(Row::Lineage(Lineage {
        restored_ms,
        ..restored
    }));
    hall.give(1, Input::Started);
    hall.give(1, Input::CaughtUp { online: true });
    hall.now += 1_000;
    let receipt = super::pair::one(&hall.check(0, &task, 1, None));
    assert!(receipt.entry().unwrap().hlc / 1024 >= restored_ms);
    hall.meet(1, 0);
    let step = hall.hand(0, 1, receipt.clone());
    assert_eq!(journaled(&step, "asked_late"), 1);
    let Body::Update(update) = &result else {
        panic!("{result:?}")
    };
    let News::Completed(done) = &update.news else {
        panic!("{update:?}")
    };
    let entries = [&award.entry, accept.entry().unwrap(), &done.entry];
    let mut entries: Vec<_> = entries.into_iter().cloned().collect();
    entries.push(receipt.entry().unwrap().clone());
    let log = AwardLog {
        award: Named {
            requester: hall.npub(0),
            task,
            award_no: 1,
        },
        entries,
        terms: None,
        proof: Some(done.proof.clone()),
        evidence: None,
        open: false,
        withdrawn: false,
        settle_by_ms: award.settle_by_ms,
        unit_price_mc: 1,
    };
    let page = LogEntries {
        restored_ms,
        cursor: String::new(),
        awards: vec![log],
        next: None,
        binding: hall.policies[0].binding.clone(),
    };
    let step = hall.hand(0, 1, Body::Entries(Box::new(page)));
    assert_eq!(journaled(&step, "adopted"), 1, "{step:?}");
    let paid = |at: usize, other: usize| {
        let account = hall.nodes[at].ledger().account(&hall.npub(other));
        account.posted_mc
    };
    assert_eq!((paid(0, 1), paid(1, 0)), (-3, 3));
}

/// Anybody can speak of an unknown task, and answer with awards of its own that were never made. Whoever does so in however many
/// names fills nothing with them, and takes nobody else's turn.
#[test]
fn invented_awards_of_many_strangers_leave_room_for_whoever_was_forgotten() {
    let mut hall = Hall::new(3);
    let row = lineage(&hall);
    let restored_ms = row.restored_ms;
    hall.nodes[0].recall(Row::Lineage(row));
    let (_, request) = hall.directed(3);
    let Body::Request(award) = request else {
        panic!("{request:?}")
    };
    let me = hall.npub(0);
    let mut kept = 0;
    for n in 1..1_200 {
        let name = format!("{n:064x}");
        assert_eq!(speaks(&mut hall, &name), 1, "{n}");
        let mut entry = award.entry.clone();
        (entry.author, entry.requester) = (name.clone(), name.clone());
        (entry.key, entry.task) = (hall.policies[1].key.clone(), format!("{n:032x}"));
        entry.hlc = (restored_ms - HOUR_MS) * 1024;
        entry.what = Act::Awarded {
            award_no: 1,
            executor: me.clone(),
            terms: "0".repeat(64),
        };
        let log = AwardLog {
            award: Named {
                requester: name.clone(),
                task: entry.task.clone(),
                award_no: 1,
            },
            entries: vec![entry],
            terms: None,
            proof: None,
            evidence: None,
            open: true,
            withdrawn: false,
            settle_by_ms: award.settle_by_ms,
            unit_price_mc: 0,
        };
        let page = LogEntries {
            restored_ms,
            cursor: String::new(),
            awards: vec![log],
            next: None,
            binding: hall.policies[1].binding.clone(),
        };
        let keys = Some(crate::sim::policy::bound(1));
        let step = hall.hand_as(&name, 0, Body::Entries(Box::new(page)), keys);
        assert_eq!(journaled(&step, "reconciled"), 1, "{step:?}");
        let row = |c: &&Change| matches!(c, Change::Put(Row::Engagement(_) | Row::Mark(_)));
        kept += step.changes.iter().filter(row).count();
    }
    assert_eq!(kept, 0, "nothing of it is kept");
    let peer = hall.npub(2);
    assert_eq!(
        speaks(&mut hall, &peer),
        1,
        "whoever comes after them is asked"
    );
}

/// Whoever answers without end is not asked again; nor does it stand in the way of others.
#[test]
fn an_answer_without_end_takes_nobody_else_s_turn() {
    let mut hall = Hall::new(2);
    let row = lineage(&hall);
    let restored_ms = row.restored_ms;
    hall.nodes[0].recall(Row::Lineage(row));
    let peer = hall.npub(1);
    assert_eq!(speaks(&mut hall, &peer), 1);
    let (mut cursor, mut kept) = (String::new(), None);
    for page in 0..3_000 {
        let next = format!("l:{page:08}:0");
        let body = LogEntries {
            restored_ms,
            cursor: std::mem::replace(&mut cursor, next.clone()),
            awards: Vec::new(),
            next: Some(next),
            binding: hall.policies[1].binding.clone(),
        };
        let step = hall.hand(1, 0, Body::Entries(Box::new(body)));
        if journaled(&step, "log_endless") > 0 {
            kept = step.changes.into_iter().find_map(|change| match change {
                Change::Put(Row::Lineage(lineage)) => Some(lineage),
                _ => None,
            });
            break;
        }
    }
    let kept = kept.expect("it is read to an end, and that is written down");
    assert_eq!((kept.asked.contains(&peer), kept.asked_late), (true, 0));
    hall.now += 2 * HOUR_MS;
    assert_eq!(speaks(&mut hall, &peer), 0);
}
