//! Promise: whatever the disk does, a failed commit leaves all or nothing, and the store opens again.

use std::sync::Arc;

use legiond::store::FaultPlan;
use serde_json::json;

use super::*;

fn open_on(path: &Path, plan: &Arc<FaultPlan>) -> Store {
    let options = StoreOptions {
        fault: Some(plan.clone()),
        ..StoreOptions::default()
    };
    Store::open(path, options).unwrap()
}

fn put_batch(store: &Store, batch: u64) -> Result<(), StoreError> {
    store.write(|txn| {
        for row in 0..8u64 {
            let key = [batch.to_be_bytes(), row.to_be_bytes()].concat();
            txn.put(Table::Tasks, &key, &json!({"fill": "y".repeat(500)}))?;
        }
        txn.put(Table::Meta, b"last", &batch)
    })
}

/// The last batch, after checking that all of it and nothing else is there.
fn last_whole_batch(store: &Store) -> u64 {
    let view = store.view().unwrap();
    let last = view.get(Table::Meta, b"last").unwrap().unwrap_or(0);
    assert_eq!(view.count(Table::Tasks).unwrap(), last * 8);
    last
}

#[test]
fn a_commit_whose_sync_fails_and_whose_writes_are_lost_leaves_the_previous_state() {
    // The first sync of a commit is the only one without, one of two with quick repair.
    for (quick_repair_above_bytes, nth) in [(u64::MAX, 1), (0, 1), (0, 2)] {
        let home = home();
        let path = home.path().join("store.redb");
        let plan = FaultPlan::shared();
        let options = StoreOptions {
            fault: Some(plan.clone()),
            quick_repair_above_bytes,
            ..StoreOptions::default()
        };
        let store = Store::open(&path, options).unwrap();
        put_batch(&store, 1).unwrap();
        put_batch(&store, 2).unwrap();
        plan.fail_sync(nth, true);
        assert_eq!(
            put_batch(&store, 3).unwrap_err().code(),
            "store_unavailable"
        );
        assert_eq!(
            put_batch(&store, 3).unwrap_err().code(),
            "store_unavailable",
            "until reopened"
        );
        assert_eq!(store.view().unwrap_err().code(), "store_unavailable");
        store.reopen().unwrap();
        assert_eq!(last_whole_batch(&store), 2);
        put_batch(&store, 3).unwrap();
        drop(store);
        assert_eq!(last_whole_batch(&open(&path)), 3);
    }
}

#[test]
fn a_commit_whose_sync_fails_while_its_writes_stay_is_there_wholly_or_not_at_all() {
    let home = home();
    let path = home.path().join("store.redb");
    let plan = FaultPlan::shared();
    let store = open_on(&path, &plan);
    for round in 0..10 {
        let before = last_whole_batch(&store);
        plan.fail_sync(1 + round % 2, false);
        let failed = (0..4).any(|_| put_batch(&store, last_whole_batch(&store) + 1).is_err());
        assert!(failed, "the plan was not met");
        store.reopen().unwrap();
        let after = last_whole_batch(&store);
        assert!(after == before || after == before + 1 || after == before + 2);
    }
    assert!(plan.syncs() >= 10);
}

#[test]
fn a_full_disk_refuses_the_commit_and_loses_nothing() {
    let home = home();
    let path = home.path().join("store.redb");
    let plan = FaultPlan::shared();
    let store = open_on(&path, &plan);
    put_batch(&store, 1).unwrap();
    plan.set_quota_bytes(Some(store.file_bytes().unwrap()));
    let big = vec![7; 8 * 1024 * 1024];
    let refused = store.write(|txn| {
        txn.put(Table::Meta, b"last", &99)?;
        txn.payload_put(b"t", "input", &big)
    });
    assert_eq!(refused.unwrap_err().code(), "store_unavailable");
    store.reopen().unwrap();
    assert_eq!(last_whole_batch(&store), 1);
    put_batch(&store, 2).unwrap();
    plan.set_quota_bytes(None);
    store
        .write(|txn| txn.payload_put(b"t", "input", &big))
        .unwrap();
    drop(store);
    let store = open(&path);
    assert_eq!(last_whole_batch(&store), 2);
    assert_eq!(
        store.view().unwrap().payload_get(b"t", "input").unwrap(),
        Some(big)
    );
}

#[test]
fn a_plan_is_read_from_words() {
    let plan = FaultPlan::parse("sync=1,lose").unwrap();
    let home = home();
    let path = home.path().join("store.redb");
    drop(open(&path));
    let options = StoreOptions {
        fault: Some(Arc::new(plan)),
        ..StoreOptions::default()
    };
    let failed = Store::open(&path, options).and_then(|store| put_batch(&store, 1));
    assert_eq!(failed.unwrap_err().code(), "store_unavailable");
    assert_eq!(last_whole_batch(&open(&path)), 0);
    assert!(FaultPlan::parse("sync=x").is_none());
    assert!(FaultPlan::parse("cut").is_none());
}

#[test]
fn a_copy_that_its_disk_refuses_is_the_copys_fault_and_leaves_nothing() {
    let home = home();
    let plan = FaultPlan::shared();
    let store = open_on(&home.path().join("store.redb"), &plan);
    for batch in 1..=64 {
        put_batch(&store, batch).unwrap();
    }
    let copies = home.path().join("copies");
    std::fs::create_dir(&copies).unwrap();
    let target = copies.join("copy");
    for quota_bytes in [0, 100_000, 600_000] {
        plan.set_quota_bytes(Some(quota_bytes));
        let error = store.snapshot_to(&target).unwrap_err();
        assert_eq!(error.code(), "store_target_unusable", "{error}");
        assert!(error.to_string().contains(target.to_str().unwrap()));
        assert_eq!(std::fs::read_dir(&copies).unwrap().count(), 0);
    }
    plan.set_quota_bytes(None);
    // The store itself never noticed.
    put_batch(&store, 65).unwrap();
    assert_eq!(last_whole_batch(&store), 65);
    assert!(store.snapshot_to(&target).unwrap() > 512);
}
