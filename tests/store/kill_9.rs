//! Promise: what was acknowledged survives `kill -9` at any moment, and no batch is seen in part.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use super::*;

const CHILD_STORE: &str = "LEGION_TEST_STORE";
const ROWS_PER_BATCH: u64 = 8;

/// Not a test of its own: what `an_acknowledged_batch_survives_kill_9` runs and kills. Commits batches for ever, and
/// prints each number once its batch is durable.
#[test]
#[ignore = "the child process of an_acknowledged_batch_survives_kill_9"]
fn kill_9_child() {
    let Some(path) = std::env::var_os(CHILD_STORE) else {
        return;
    };
    let store = open(Path::new(&path));
    let last = store
        .view()
        .unwrap()
        .get::<u64>(Table::Meta, b"last")
        .unwrap();
    for batch in last.map_or(1, |last| last + 1).. {
        store
            .write(|txn| {
                for row in 0..ROWS_PER_BATCH {
                    let key = [batch.to_be_bytes(), row.to_be_bytes()].concat();
                    txn.put(
                        Table::Tasks,
                        &key,
                        &json!({"batch": batch, "fill": "x".repeat(300)}),
                    )?;
                }
                txn.journal_append(batch, "batch", None, &json!(batch))?;
                txn.put(Table::Meta, b"last", &batch)
            })
            .unwrap();
        let mut out = std::io::stdout();
        writeln!(out, "durable {batch}").unwrap();
        out.flush().unwrap();
    }
}

/// Runs the child until it acknowledged `acks` batches and `delay` passed, kills it, returns the last acknowledged.
fn run_and_kill(path: &Path, acks: u64, delay: std::time::Duration) -> Option<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "store::kill_9::kill_9_child",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(CHILD_STORE, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut last = None;
    let note = |line: String, last: &mut Option<u64>| {
        // The harness may have left "test ... " before the first line.
        let batch = line
            .rsplit_once("durable ")
            .and_then(|(_, batch)| batch.parse().ok());
        *last = batch.or(*last);
        batch.is_some()
    };
    let mut seen = 0;
    while seen < acks {
        let line = lines.next().expect("the child ended by itself").unwrap();
        seen += u64::from(note(line, &mut last));
    }
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
    // What it still said before it died counts as acknowledged, too.
    for line in lines {
        note(line.unwrap(), &mut last);
    }
    last
}

#[test]
fn an_acknowledged_batch_survives_kill_9() {
    let home = home();
    let path = home.path().join("store.redb");
    let mut random = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .subsec_nanos() as u64;
    println!("seed {random}");
    let mut acknowledged = 0;
    for round in 0..25 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // The first rounds may die while the file is being created or repaired: no acknowledgement is awaited.
        let acks = if round % 5 == 0 {
            0
        } else {
            (random >> 33) % 8
        };
        let delay = std::time::Duration::from_micros((random >> 40) % 30_000);
        acknowledged = run_and_kill(&path, acks, delay)
            .unwrap_or(acknowledged)
            .max(acknowledged);
        if acknowledged == 0 && !path.exists() {
            continue;
        }
        let view = open(&path).view().unwrap();
        let last = view.get::<u64>(Table::Meta, b"last").unwrap().unwrap_or(0);
        assert!(
            last >= acknowledged,
            "round {round}: {acknowledged} was acknowledged, {last} is there"
        );
        assert!(
            last <= acknowledged + 1,
            "round {round}: {last} is there, {acknowledged} was said"
        );
        assert_eq!(
            view.count(Table::Tasks).unwrap(),
            last * ROWS_PER_BATCH,
            "round {round}: a partial batch"
        );
        assert_eq!(
            view.count(Table::Journal).unwrap(),
            last,
            "round {round}: a partial batch"
        );
        let rows = view
            .range::<Value>(Table::Tasks, Span::all(), usize::MAX, Order::Ascending)
            .unwrap();
        for (place, (_, row)) in rows.iter().enumerate() {
            assert_eq!(row["batch"], json!(place as u64 / ROWS_PER_BATCH + 1));
        }
        acknowledged = last;
    }
    assert!(acknowledged > 20, "the child hardly worked: {acknowledged}");
}
