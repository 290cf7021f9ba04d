//! A counterparty of a restored node whose answer has no end.

use legiond::domain::step::{Addressee, Effect, Input, Step};
use legiond::wire::entry::Act;
use legiond::wire::log::{AwardLog, LogEntries, Named};
use legiond::wire::market::Award;
use legiond::wire::message::Body;

use super::pair::{Hall, dropped, journaled, letters};
use super::restored::restored;

/// More pages than any honest answer has without news.
const MANY: u32 = 10_000;

/// What node 1 holds of an award of node 0's, which node 0 has signed.
fn log(hall: &Hall, award: &Award, task: &str) -> AwardLog {
    let mut entry = award.entry.clone();
    entry.task = task.to_owned();
    entry.what = Act::Awarded {
        award_no: 1,
        executor: hall.npub(1),
        terms: "0".repeat(64),
    };
    AwardLog {
        award: Named {
            requester: hall.npub(0),
            task: task.to_owned(),
            award_no: 1,
        },
        entries: vec![entry],
        terms: None,
        proof: None,
        evidence: None,
        open: false,
        withdrawn: false,
        settle_by_ms: award.settle_by_ms,
        unit_price_mc: 0,
    }
}

/// One page after the other, until the node asks no more; how many it read.
fn read(hall: &mut Hall, mut awards: impl FnMut(&Hall, u32) -> Vec<AwardLog>) -> (u32, Step) {
    let restored_ms = hall.now;
    let mut cursor = String::new();
    for page in 1..=MANY {
        let next = format!("l:{page:08}:0");
        let body = LogEntries {
            restored_ms,
            cursor: cursor.clone(),
            awards: awards(hall, page),
            next: Some(next.clone()),
            binding: hall.policies[1].binding.clone(),
        };
        let step = hall.hand(1, 0, Body::Entries(Box::new(body)));
        let asks = letters(&step);
        let more = |(to, body): &(Addressee, Body)| {
            matches!(body, Body::Since(_)) && *to == Addressee::Peer(hall.npub(1))
        };
        if !asks.iter().any(more) {
            return (page, step);
        }
        cursor = next;
    }
    (MANY, Step::default())
}

fn scene() -> (Hall, Box<Award>) {
    let mut hall = Hall::new(2);
    let (_, request) = hall.directed(3);
    let Body::Request(award) = request else {
        panic!("{request:?}")
    };
    restored(&mut hall);
    (hall, award)
}

fn frozen(hall: &Hall) -> bool {
    hall.nodes[0].holds(&hall.npub(1))
}

#[test]
fn an_answer_that_tells_nothing_new_is_read_to_an_end() {
    type Awards = fn(&Hall, &Award, u32) -> Vec<AwardLog>;
    let repeated: Awards = |hall, award, _| vec![log(hall, award, &award.task)];
    let invented: Awards = |hall, award, page| {
        let mut log = log(hall, award, &format!("{page:032x}"));
        log.entries[0].author = hall.npub(1);
        log.entries[0].key = hall.policies[1].key.clone();
        vec![log]
    };
    let empty: Awards = |_, _, _| Vec::new();
    for (name, awards) in [
        ("empty", empty),
        ("repeated", repeated),
        ("invented", invented),
    ] {
        let (mut hall, award) = scene();
        let (pages, step) = read(&mut hall, |hall, page| awards(hall, &award, page));
        assert!((500..3_000).contains(&pages), "{name}: {pages}");
        assert_eq!(journaled(&step, "log_endless"), 1, "{name}");
        // The rest goes on; this peer's account does not.
        assert_eq!(journaled(&step, "recovered"), 1, "{name}");
        assert!(frozen(&hall) && hall.nodes[0].recovery().unwrap().peers[&hall.npub(1)].endless);
        hall.now += 30 * 24 * 3_600_000;
        assert!(
            hall.nodes[0]
                .wake_ms()
                .is_none_or(|at| at > hall.now - 1_000)
        );
        let step = hall.give(0, Input::Tick);
        assert!(!letters(&step).iter().any(|(_, b)| b.is_log()), "{name}");
        hall.now -= 30 * 24 * 3_600_000;
        // Nor is it read any more, even to an end.
        let body = LogEntries {
            restored_ms: hall.now,
            cursor: hall.nodes[0].recovery().unwrap().peers[&hall.npub(1)]
                .cursor
                .clone(),
            awards: Vec::new(),
            next: None,
            binding: hall.policies[1].binding.clone(),
        };
        let step = hall.hand(1, 0, Body::Entries(Box::new(body)));
        assert_eq!(dropped(&step), ["log_unasked"], "{name}");
        let npub = Some(hall.npub(1));
        let step = hall.give(0, Input::AcceptLosses { npub });
        assert!(step.effects.contains(&Effect::Done(Ok(()))));
        assert!(!frozen(&hall));
    }
}

/// Whoever tells of a task that we have signed for, page after page, is read as long as that takes.
#[test]
fn a_long_answer_is_read_to_its_end() {
    let (mut hall, award) = scene();
    let (pages, step) = read(&mut hall, |hall, page| match page {
        0..4_000 => vec![log(hall, &award, &format!("{page:032x}"))],
        _ => Vec::new(),
    });
    assert!((5_000..7_000).contains(&pages), "{pages}");
    assert_eq!(journaled(&step, "log_endless"), 1);
}
