//! Promise: nothing grows for ever, and what is forgotten is forgotten a little at a time.

use super::*;

fn finish_task(store: &Store, name: &str, at_ms: u64) {
    store
        .write(|txn| {
            let key = name.as_bytes();
            txn.put(Table::Tasks, key, &json!({"name": name}))?;
            txn.live_insert(Table::Tasks, key)?;
            txn.payload_put(key, "input", b"in")?;
            txn.payload_put(key, "output", b"out")?;
            txn.put(Table::History, &owned_key(key, b"1"), &1)?;
            txn.put(Table::Transfers, &owned_key(key, b"1"), &1)?;
            txn.checkpoint_put(&owned_key(key, b"1"), 1, b"state")?;
            txn.task_finished(key, at_ms)
        })
        .unwrap();
}

#[test]
fn finished_tasks_go_oldest_first_with_all_they_own_and_live_ones_stay() {
    let home = home();
    let store = open(&home.path().join("store.redb"));
    for (name, at_ms) in [("old", 10), ("older", 5), ("new", 30), ("newer", 40)] {
        finish_task(&store, name, at_ms);
    }
    store
        .write(|txn| {
            txn.put(Table::Tasks, b"live", &json!({}))?;
            txn.live_insert(Table::Tasks, b"live")?;
            txn.live_insert(Table::Marks, b"lease")
        })
        .unwrap();
    let two = Limits {
        finished_tasks_max: 2,
        ..Limits::default()
    };
    let pruned = store.write(|txn| txn.prune(50, &two, 1000)).unwrap();
    assert_eq!(
        (pruned.tasks, pruned.belongings, pruned.more),
        (2, 8, false)
    );
    let tasks = |view: &legiond::store::View| {
        view.keys(Table::Tasks, Span::all(), 99, Order::Ascending)
            .unwrap()
    };
    let view = store.view().unwrap();
    assert_eq!(tasks(&view), [&b"live"[..], b"new", b"newer"]);
    assert_eq!(view.payload_get(b"old", "input").unwrap(), None);
    assert_eq!(
        view.payload_get(b"new", "input").unwrap(),
        Some(b"in".to_vec())
    );
    assert_eq!(
        view.count(Table::Transfers).unwrap(),
        4,
        "money is not forgotten"
    );

    let young = Limits {
        finished_age_max_ms: 15,
        ..Limits::default()
    };
    assert_eq!(
        store
            .write(|txn| txn.prune(50, &young, 1000))
            .unwrap()
            .tasks,
        1
    );
    let view = store.view().unwrap();
    assert_eq!(tasks(&view), [&b"live"[..], b"newer"]);
    assert_eq!(view.live_keys(Table::Tasks).unwrap(), [b"live"]);
    assert_eq!(view.live_keys(Table::Marks).unwrap(), [b"lease"]);
    assert_eq!(
        store.write(|txn| txn.prune(50, &young, 1000)).unwrap(),
        Default::default()
    );
}

#[test]
fn pruning_stops_at_its_row_limit_and_goes_on_where_it_stopped() {
    let home = home();
    let store = open(&home.path().join("store.redb"));
    store
        .write(|txn| {
            for n in 0..10u8 {
                txn.seen_insert(&[n; 32], &[n; 32], Some(&[n; 32]), 60 + u64::from(n))?;
                txn.journal_append(0, "k", None, &json!(n))?;
            }
            Ok(())
        })
        .unwrap();
    finish_task(&store, "a", 1);
    finish_task(&store, "b", 2);
    let limits = Limits {
        finished_tasks_max: 0,
        journal_entries_max: 3,
        ..Limits::default()
    };
    let tables = [
        Table::Seen,
        Table::Tasks,
        Table::TasksByTime,
        Table::Payloads,
        Table::History,
        Table::Checkpoints,
        Table::Journal,
    ];
    let counts = || {
        let view = store.view().unwrap();
        tables.map(|table| view.count(table).unwrap())
    };
    let (mut calls, mut seen, mut journal) = (0, 0, 0);
    loop {
        let before: u64 = counts().iter().sum();
        // At second 66, the ids that expire at 60 to 65 are past.
        let pruned = store.write(|txn| txn.prune(66_000, &limits, 3)).unwrap();
        let after: u64 = counts().iter().sum();
        assert!(
            before - after <= 3 + 1,
            "three rows, and the task that they belong to"
        );
        (calls, seen, journal) = (calls + 1, seen + pruned.seen, journal + pruned.journal);
        if !pruned.more {
            break;
        }
        assert!(calls < 100, "pruning ends");
    }
    assert!(calls > 7);
    assert_eq!(
        (seen, journal),
        (12, 7),
        "six messages in six wraps; all but three entries"
    );
    assert_eq!(counts(), [8, 0, 0, 0, 0, 0, 3]);
    let view = store.view().unwrap();
    assert!(!view.seen_contains(&[5; 32], &[5; 32]).unwrap());
    assert!(view.seen_contains(&[6; 32], &[6; 32]).unwrap());
}

#[test]
fn seen_ids_beyond_their_number_go_by_their_expiry() {
    let home = home();
    let store = open(&home.path().join("store.redb"));
    store
        .write(|txn| {
            for n in 0..10u8 {
                txn.seen_insert(&[1; 32], &[n; 32], None, 1_000 + u64::from(n))?;
            }
            Ok(())
        })
        .unwrap();
    let four = Limits {
        seen_max: 4,
        ..Limits::default()
    };
    let pruned = store.write(|txn| txn.prune(1_000, &four, 5)).unwrap();
    assert_eq!((pruned.seen, pruned.more), (5, true), "a little at a time");
    let pruned = store.write(|txn| txn.prune(1_000, &four, 5)).unwrap();
    assert_eq!((pruned.seen, pruned.more), (1, false));
    let view = store.view().unwrap();
    let kept = |n: &u8| view.seen_contains(&[1; 32], &[*n; 32]).unwrap();
    assert_eq!((0..10).filter(kept).collect::<Vec<_>>(), [6, 7, 8, 9]);
    // What has expired goes in any case.
    let pruned = store.write(|txn| txn.prune(1_008_000, &four, 5)).unwrap();
    assert_eq!(pruned.seen, 2);
}
