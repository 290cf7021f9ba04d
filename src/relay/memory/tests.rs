//! A full memory keeps what it has; what a filter asks for is what comes back, in order; nothing expired or deleted comes back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::*;
use serde_json::json;

fn record(n: u8, kind: u16, created_at_s: u64, tags: &[(u8, &str)]) -> Arc<Record> {
    Arc::new(Record {
        id: [n; 32],
        author: [1; 32],
        kind,
        created_at_s,
        expires_at_s: None,
        tags: tags.iter().map(|(l, v)| (*l, (*v).into())).collect(),
        protected: false,
        json: "{}".into(),
    })
}

fn by(author: u8, record: Arc<Record>) -> Arc<Record> {
    let mut record = Arc::into_inner(record).unwrap();
    record.author = [author; 32];
    Arc::new(record)
}

fn expiring(at_s: u64, record: Arc<Record>) -> Arc<Record> {
    let mut record = Arc::into_inner(record).unwrap();
    record.expires_at_s = Some(at_s);
    Arc::new(record)
}

fn ask(memory: &mut Memory, filter: serde_json::Value) -> Vec<u8> {
    ask_at(memory, filter, 0)
}

fn ask_at(memory: &mut Memory, filter: serde_json::Value, now_s: u64) -> Vec<u8> {
    let filter = Filter::parse(&filter, 100).unwrap();
    memory
        .query(&[filter], 500, now_s)
        .iter()
        .map(|r| r.id[0])
        .collect()
}

#[test]
fn full_refuses_the_newest_by_count_and_by_bytes() {
    let mut memory = Memory::new(2, usize::MAX);
    assert_eq!(memory.insert(&record(1, 1, 10, &[]), 0), Admission::Kept);
    assert_eq!(memory.insert(&record(2, 1, 20, &[]), 0), Admission::Kept);
    assert_eq!(memory.insert(&record(3, 1, 30, &[]), 0), Admission::Full);
    assert_eq!(ask(&mut memory, json!({})), [2, 1]);
    let cost = record(1, 1, 10, &[]).cost_bytes();
    let mut memory = Memory::new(100, 2 * cost);
    for n in 1..=2 {
        assert_eq!(memory.insert(&record(n, 1, 10, &[]), 0), Admission::Kept);
    }
    assert_eq!(memory.insert(&record(3, 1, 30, &[]), 0), Admission::Full);
    memory.remove(&[1; 32]);
    assert_eq!(memory.bytes(), cost);
    assert_eq!(memory.insert(&record(3, 1, 30, &[]), 0), Admission::Kept);
}

#[test]
fn expired_makes_room_and_is_never_served() {
    let mut memory = Memory::new(1, usize::MAX);
    assert_eq!(
        memory.insert(&expiring(100, record(1, 1, 10, &[])), 99),
        Admission::Kept
    );
    assert_eq!(ask_at(&mut memory, json!({}), 99), [1]);
    assert_eq!(
        ask_at(&mut memory, json!({"ids": [hex::encode([1; 32])]}), 100),
        [0_u8; 0]
    );
    assert_eq!(memory.len(), 0);
    assert_eq!(
        memory.insert(&expiring(100, record(1, 1, 10, &[])), 100),
        Admission::Expired
    );
    assert_eq!(memory.insert(&record(2, 1, 10, &[]), 100), Admission::Kept);
}

#[test]
fn filters_choose_by_every_field_newest_first() {
    let mut memory = Memory::new(100, usize::MAX);
    for (n, kind, at) in [
        (1, 1059, 10),
        (2, 1059, 30),
        (3, 1, 20),
        (4, 1059, 30),
        (5, 7, 40),
    ] {
        let p = if n == 3 { "bob" } else { "alice" };
        assert_eq!(
            memory.insert(&by(n % 2, record(n, kind, at, &[(b'p', p)])), 0),
            Admission::Kept
        );
    }
    assert_eq!(ask(&mut memory, json!({})), [5, 2, 4, 3, 1]);
    assert_eq!(ask(&mut memory, json!({"kinds": [1059]})), [2, 4, 1]);
    assert_eq!(
        ask(
            &mut memory,
            json!({"kinds": [1059], "#p": ["alice"], "limit": 1})
        ),
        [2]
    );
    assert_eq!(
        ask(
            &mut memory,
            json!({"#p": ["alice", "bob"], "until": 30, "since": 20})
        ),
        [2, 4, 3]
    );
    assert_eq!(
        ask(&mut memory, json!({"#p": ["alice"], "limit": 2})),
        [5, 2]
    );
    assert_eq!(
        ask(
            &mut memory,
            json!({"authors": [hex::encode([1; 32])], "kinds": [1, 7]})
        ),
        [5, 3]
    );
    assert_eq!(
        ask(
            &mut memory,
            json!({"ids": [hex::encode([3; 32]), hex::encode([9; 32])]})
        ),
        [3]
    );
    assert_eq!(ask(&mut memory, json!({"#p": []})), [0_u8; 0]);
    assert_eq!(ask(&mut memory, json!({"limit": 0})), [0_u8; 0]);
    assert_eq!(
        ask(&mut memory, json!({"since": 30, "until": 20})),
        [0_u8; 0]
    );
    assert_eq!(
        memory.count(
            &[Filter {
                limit: Some(1),
                ..Filter::default()
            }],
            0
        ),
        5
    );
}

#[test]
fn replaceable_keeps_the_newest_even_when_full() {
    let mut memory = Memory::new(2, usize::MAX);
    assert_eq!(
        memory.insert(&record(1, 10_002, 10, &[]), 0),
        Admission::Kept
    );
    assert_eq!(
        memory.insert(&record(2, 31_990, 10, &[(b'd', "x")]), 0),
        Admission::Kept
    );
    assert_eq!(
        memory.insert(&record(3, 31_990, 11, &[(b'd', "y")]), 0),
        Admission::Full
    );
    assert_eq!(
        memory.insert(&record(4, 31_990, 11, &[(b'd', "x")]), 0),
        Admission::Kept
    );
    assert_eq!(
        memory.insert(&record(5, 10_002, 9, &[]), 0),
        Admission::Superseded
    );
    assert_eq!(ask(&mut memory, json!({})), [4, 1]);
}

#[test]
fn only_author_or_recipient_deletes() {
    let wrap = || by(7, record(1, 1059, 10, &[(b'p', &hex::encode([2; 32]))]));
    let name = hex::encode([1; 32]);
    let mut memory = Memory::new(9, usize::MAX);
    assert_eq!(memory.insert(&wrap(), 0), Admission::Kept);
    memory.insert(&by(3, record(20, 5, 11, &[(b'e', &name)])), 0);
    assert_eq!(
        ask(&mut memory, json!({"kinds": [1059]})),
        [1],
        "a stranger's deletion does nothing"
    );
    memory.insert(&by(2, record(21, 5, 11, &[(b'e', &name)])), 0);
    assert_eq!(ask(&mut memory, json!({"kinds": [1059]})), [0_u8; 0]);
    assert_eq!(memory.insert(&wrap(), 0), Admission::Deleted);
    memory.remove(&[21; 32]);
    assert_eq!(memory.insert(&wrap(), 0), Admission::Kept);
}

#[test]
fn nothing_is_left_behind_by_removed_events() {
    let mut memory = Memory::new(9, usize::MAX);
    memory.insert(
        &expiring(9, record(1, 30_000, 10, &[(b'p', "a"), (b'd', "x")])),
        0,
    );
    memory.insert(&record(2, 5, 10, &[(b'e', &hex::encode([8; 32]))]), 0);
    memory.remove(&[1; 32]);
    memory.remove(&[2; 32]);
    assert!(memory.by_tag.is_empty() && memory.by_author.is_empty() && memory.by_kind.is_empty());
    assert!(
        memory.by_address.is_empty() && memory.by_expiry.is_empty() && memory.deleted.is_empty()
    );
    assert_eq!((memory.len(), memory.bytes()), (0, 0));
}
