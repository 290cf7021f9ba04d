//! Measurements, run by hand; they assert nothing.

use super::*;

/// `cargo test --test legion store::measure -- --ignored --nocapture`
#[test]
#[ignore = "prints figures, asserts nothing"]
fn measure_commits_and_starts() {
    use std::time::Instant;
    let home = home();
    let path = home.path().join("store.redb");
    let row = json!({"state": "working", "requester": "a".repeat(64), "input": "b".repeat(400), "award_no": 1});
    let mut random = 1u64;
    let mut id = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let mut id = [0; 32];
        id[..8].copy_from_slice(&random.to_be_bytes());
        id
    };
    for quick_repair_above_bytes in [u64::MAX, 0] {
        let options = StoreOptions {
            quick_repair_above_bytes,
            ..StoreOptions::default()
        };
        let store = Store::open(&path, options).unwrap();
        for (rows, commits) in [(1, 200), (64, 50)] {
            let start = Instant::now();
            for _ in 0..commits {
                store
                    .write(|txn| {
                        for _ in 0..rows {
                            let (author, rumor) = (id(), id());
                            txn.seen_insert(&author, &rumor, Some(&id()), 1)?;
                            txn.journal_append(1, "offer", Some("task"), &row)?;
                            txn.put(Table::Tasks, &rumor, &row)?;
                        }
                        Ok(())
                    })
                    .unwrap();
            }
            let s = start.elapsed().as_secs_f64() / f64::from(commits);
            println!(
                "quick_repair {}: {rows} messages (6 rows each): {:.2} ms/commit, {:.0} messages/s",
                quick_repair_above_bytes == 0,
                s * 1000.0,
                f64::from(rows) / s
            );
        }
    }
    let store = open(&path);
    let start = Instant::now();
    for batch in 0..100u64 {
        store
            .write(|txn| {
                for n in 0..2000u64 {
                    let key = (batch * 2000 + n).to_be_bytes();
                    txn.put(Table::Tasks, &key, &row)?;
                    txn.task_finished(&key, batch)?;
                }
                Ok(())
            })
            .unwrap();
    }
    println!(
        "200,000 finished tasks: {:?}, {} MB",
        start.elapsed(),
        store.file_bytes().unwrap() / 1_000_000
    );
    let limits = Limits {
        finished_tasks_max: 0,
        ..Limits::default()
    };
    let start = Instant::now();
    let pruned = store.write(|txn| txn.prune(1, &limits, 1000)).unwrap();
    println!("prune of 1,000 rows: {:?} {pruned:?}", start.elapsed());
    let crashed = home.path().join("crashed.redb");
    std::fs::copy(&path, &crashed).unwrap();
    let start = Instant::now();
    drop(open(&crashed));
    println!("start after a crash: {:?}", start.elapsed());
    drop(store);
    let start = Instant::now();
    drop(open(&path));
    println!("start after a clean end: {:?}", start.elapsed());
}
