//! Promises of the store: what was acknowledged survives, what failed left nothing, what is newer or foreign is refused,
//! and nothing grows for ever.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use legiond::store::{
    Limits, Order, Rows as _, Span, Store, StoreError, StoreOptions, Table, owned_key,
};
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "store/formats.rs"]
mod formats;
#[path = "store/kill_9.rs"]
mod kill_9;
#[path = "store/measure.rs"]
mod measure;
#[path = "store/quotas.rs"]
mod quotas;

#[cfg(any(feature = "crash-points", debug_assertions))]
#[path = "store/faults.rs"]
mod faults;

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(path: &Path) -> Store {
    Store::open(path, StoreOptions::default()).unwrap()
}

fn code(path: &Path) -> &'static str {
    Store::open(path, StoreOptions::default())
        .unwrap_err()
        .code()
}

// ---- transactions

#[test]
fn a_committed_row_is_there_after_reopening_and_a_dropped_one_is_not() {
    let home = home();
    let path = home.path().join("store.redb");
    let store = open(&path);
    store
        .write(|txn| {
            txn.put(Table::Tasks, b"a", &json!({"n": 1}))?;
            txn.put_bytes(Table::Payloads, b"raw", &[0, 255, 7])
        })
        .unwrap();
    let dropped = store.write(|txn| {
        txn.put(Table::Tasks, b"b", &json!({"n": 2}))?;
        txn.delete(Table::Tasks, b"a")?;
        assert!(
            txn.contains(Table::Tasks, b"b")?,
            "a transaction sees its own writes"
        );
        Err::<(), _>(StoreError::dropped("enough"))
    });
    assert_eq!(dropped.unwrap_err().code(), "store_dropped");
    drop(store);

    let view = open(&path).view().unwrap();
    assert_eq!(
        view.get::<Value>(Table::Tasks, b"a").unwrap(),
        Some(json!({"n": 1}))
    );
    assert_eq!(view.get::<Value>(Table::Tasks, b"b").unwrap(), None);
    assert_eq!(
        view.get_bytes(Table::Payloads, b"raw").unwrap(),
        Some(vec![0, 255, 7])
    );
    assert_eq!(view.count(Table::Tasks).unwrap(), 1);
}

#[test]
fn a_panic_in_a_transaction_drops_it_and_the_store_goes_on() {
    let home = home();
    let store = open(&home.path().join("store.redb"));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        store.write(|txn| -> Result<(), StoreError> {
            txn.put(Table::Tasks, b"a", &1)?;
            panic!("a defect");
        })
    }));
    assert!(panicked.is_err());
    store.write(|txn| txn.put(Table::Tasks, b"b", &2)).unwrap();
    let keys = store
        .view()
        .unwrap()
        .keys(Table::Tasks, Span::all(), 10, Order::Ascending);
    assert_eq!(keys.unwrap(), [b"b"]);
}

#[test]
fn a_view_does_not_see_later_writes_and_outlives_its_store() {
    let home = home();
    let store = open(&home.path().join("store.redb"));
    let before = store.view().unwrap();
    store.write(|txn| txn.put(Table::Peers, b"p", &1)).unwrap();
    assert!(!before.contains(Table::Peers, b"p").unwrap());
    let after = store.view().unwrap();
    drop(store);
    assert!(after.contains(Table::Peers, b"p").unwrap());
}

#[test]
fn ranges_obey_bounds_limit_and_order() {
    let home = home();
    let store = open(&home.path().join("store.redb"));
    store
        .write(|txn| {
            for n in 0u8..10 {
                txn.put(Table::Outbox, &[n], &n)?;
            }
            let inside: Vec<(Vec<u8>, u8)> = txn.range(
                Table::Outbox,
                b"\x03".as_slice()..b"\x06".as_slice(),
                99,
                Order::Ascending,
            )?;
            assert_eq!(inside, [(vec![3], 3), (vec![4], 4), (vec![5], 5)]);
            Ok(())
        })
        .unwrap();
    let view = store.view().unwrap();
    let last: Vec<(Vec<u8>, u8)> = view
        .range(Table::Outbox, Span::all(), 2, Order::Descending)
        .unwrap();
    assert_eq!(last, [(vec![9], 9), (vec![8], 8)]);
    let inverted = b"\x06".as_slice()..b"\x03".as_slice();
    assert!(
        view.keys(Table::Outbox, inverted, 9, Order::Ascending)
            .unwrap()
            .is_empty()
    );
    assert!(
        view.keys(Table::Outbox, Span::all(), 0, Order::Ascending)
            .unwrap()
            .is_empty()
    );
}

// ---- the file

#[cfg(unix)]
#[test]
fn the_file_belongs_to_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let home = home();
    let path = home.path().join("store.redb");
    drop(open(&path));
    assert_eq!(mode(&path), 0o600);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = open(&path);
    assert_eq!(mode(&path), 0o600, "opening takes away what others may do");
    let copy = home.path().join("copy.redb");
    store.snapshot_to(&copy).unwrap();
    assert_eq!(mode(&copy), 0o600);
}

#[test]
fn a_second_opener_is_told_that_the_store_is_in_use() {
    let home = home();
    let path = home.path().join("store.redb");
    let first = open(&path);
    assert_eq!(code(&path), "store_locked");
    first.write(|txn| txn.put(Table::Peers, b"p", &1)).unwrap();
    drop(first);
    assert!(
        open(&path)
            .view()
            .unwrap()
            .contains(Table::Peers, b"p")
            .unwrap()
    );
}

#[test]
fn of_many_creators_at_once_one_has_the_store_and_the_others_are_told() {
    let home = home();
    let path = home.path().join("store.redb");
    let barrier = std::sync::Barrier::new(6);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let openers: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    Store::open(&path, StoreOptions::default())
                })
            })
            .collect();
        openers
            .into_iter()
            .map(|opener| opener.join().unwrap())
            .collect()
    });
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert_eq!(error.code(), "store_locked", "{error}");
    }
    drop(outcomes);
    open(&path)
        .write(|txn| txn.put(Table::Peers, b"p", &1))
        .unwrap();
}

#[test]
fn a_foreign_file_is_refused_and_left_as_it_is() {
    let home = home();
    let text = home.path().join("notes.txt");
    std::fs::write(&text, "not a store, but somebody's notes").unwrap();
    assert_eq!(code(&text), "store_invalid");
    assert_eq!(
        std::fs::read(&text).unwrap(),
        b"not a store, but somebody's notes"
    );

    let empty = home.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    assert_eq!(code(&empty), "store_invalid");

    let other = home.path().join("other.redb");
    let database = redb::Database::create(&other).unwrap();
    let transaction = database.begin_write().unwrap();
    let theirs: redb::TableDefinition<&str, u64> = redb::TableDefinition::new("meta");
    transaction
        .open_table(theirs)
        .unwrap()
        .insert("x", 1)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert_eq!(code(&other), "store_invalid");
}

#[test]
fn a_truncated_file_is_refused_at_every_length() {
    let home = home();
    let path = home.path().join("store.redb");
    let store = open(&path);
    store
        .write(|txn| txn.put_bytes(Table::Payloads, b"p", &[7; 200_000]))
        .unwrap();
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    for length in [
        1,
        8,
        9,
        100,
        320,
        512,
        4096,
        5000,
        whole.len() / 2,
        whole.len() - 4096,
        whole.len() - 1,
    ] {
        let cut = home.path().join(format!("cut-{length}"));
        std::fs::write(&cut, &whole[..length]).unwrap();
        assert_eq!(
            code(&cut),
            "store_invalid",
            "cut to {length} of {}",
            whole.len()
        );
    }
}

#[test]
fn what_a_crash_left_of_a_creation_does_not_matter() {
    let home = home();
    let path = home.path().join("store.redb");
    std::fs::write(home.path().join("store.redb.new"), vec![0; 9000]).unwrap();
    let store = open(&path);
    store.write(|txn| txn.put(Table::Peers, b"p", &1)).unwrap();
    assert!(!home.path().join("store.redb.new").exists());
}

#[test]
fn damage_in_the_middle_of_the_file_is_an_error_not_a_panic() {
    let home = home();
    let path = home.path().join("store.redb");
    let store = open(&path);
    store
        .write(|txn| {
            (0..500u32).try_for_each(|n| txn.put(Table::Tasks, &n.to_be_bytes(), &"x".repeat(200)))
        })
        .unwrap();
    drop(store);
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut header = [0; 512];
    file.read_exact(&mut header).unwrap();
    header[9..].fill(0xA5);
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&header).unwrap();
    assert_eq!(code(&path), "store_invalid");
}

// ---- versions

/// Writes a value behind the store's back.
fn plant(path: &Path, table: Table, key: &[u8], value: &[u8]) {
    let database = redb::Database::open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    let definition: redb::TableDefinition<&[u8], &[u8]> = redb::TableDefinition::new(table.name());
    transaction
        .open_table(definition)
        .unwrap()
        .insert(key, value)
        .unwrap();
    transaction.commit().unwrap();
}

#[test]
fn a_newer_schema_is_refused_with_a_clear_error() {
    let home = home();
    let path = home.path().join("store.redb");
    drop(open(&path));
    plant(
        &path,
        Table::Meta,
        b"schema",
        b"\x01\x00{\"application\":\"legion\",\"version\":99,\"more\":[]}",
    );
    let error = Store::open(&path, StoreOptions::default()).unwrap_err();
    assert_eq!(error.code(), "store_newer");
    let text = error.to_string();
    assert!(
        text.starts_with("this store was written by a newer legion"),
        "{text}"
    );
    assert!(text.contains("version 99"), "{text}");

    plant(&path, Table::Meta, b"schema", b"\x02\x00other");
    assert_eq!(
        code(&path),
        "store_newer",
        "also when the row itself is of a newer shape"
    );
}

/// The first format had no tables of transfers: such a file opens, keeps its rows, takes the new ones, and is of today's
/// format from then on.
#[test]
fn a_store_of_the_first_format_is_brought_up_to_date() {
    let home = home();
    let path = home.path().join("store.redb");
    let store = open(&path);
    store
        .write(|txn| txn.put_bytes(Table::Tasks, b"job/old", b"{}"))
        .unwrap();
    drop(store);
    let database = redb::Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    for table in [Table::Moves, Table::Pieces] {
        let definition: redb::TableDefinition<&[u8], &[u8]> =
            redb::TableDefinition::new(table.name());
        assert!(transaction.delete_table(definition).unwrap());
    }
    transaction.commit().unwrap();
    drop(database);
    let first = b"\x01\x00{\"application\":\"legion\",\"version\":1}";
    plant(&path, Table::Meta, b"schema", first);
    let store = open(&path);
    assert!(
        store
            .view()
            .unwrap()
            .contains(Table::Tasks, b"job/old")
            .unwrap()
    );
    assert_eq!(store.view().unwrap().count(Table::Moves).unwrap(), 0);
    store
        .write(|txn| txn.put_bytes(Table::Pieces, b"piece", b"x"))
        .unwrap();
    let schema = store
        .view()
        .unwrap()
        .get_bytes(Table::Meta, b"schema")
        .unwrap();
    let text = String::from_utf8(schema.unwrap()).unwrap();
    assert!(text.contains("\"version\":3"), "{text}");
}

#[test]
fn a_newer_value_is_refused_and_its_neighbours_are_read() {
    let home = home();
    let path = home.path().join("store.redb");
    open(&path)
        .write(|txn| txn.put(Table::Tasks, b"a", &1))
        .unwrap();
    plant(&path, Table::Tasks, b"b", b"\x09\x00{}");
    plant(&path, Table::Tasks, b"c", b"\x01\x00{");
    let view = open(&path).view().unwrap();
    assert_eq!(view.get::<u8>(Table::Tasks, b"a").unwrap(), Some(1));
    assert_eq!(
        view.get::<Value>(Table::Tasks, b"b").unwrap_err().code(),
        "store_newer"
    );
    assert_eq!(
        view.get::<Value>(Table::Tasks, b"c").unwrap_err().code(),
        "store_invalid"
    );
    let all = view.range::<Value>(Table::Tasks, Span::all(), 9, Order::Ascending);
    assert_eq!(all.unwrap_err().code(), "store_newer");
}

// ---- what must survive

#[test]
fn a_message_takes_effect_once_whatever_wrap_it_comes_in() {
    let home = home();
    let path = home.path().join("store.redb");
    let (author, rumor) = ([1; 32], [2; 32]);
    let store = open(&path);
    assert!(
        store
            .write(|txn| txn.seen_insert(&author, &rumor, Some(&[3; 32]), 100))
            .unwrap()
    );
    drop(store);
    let store = open(&path);
    assert!(
        !store
            .write(|txn| txn.seen_insert(&author, &rumor, Some(&[4; 32]), 100))
            .unwrap()
    );
    assert!(
        !store
            .write(|txn| txn.seen_insert(&author, &rumor, None, 100))
            .unwrap()
    );
    assert!(
        store
            .write(|txn| txn.seen_insert(&[9; 32], &rumor, None, 100))
            .unwrap()
    );
    let view = store.view().unwrap();
    assert!(view.seen_contains(&author, &rumor).unwrap());
    assert!(!view.seen_contains(&rumor, &author).unwrap());
    assert!(view.wrap_seen(&[3; 32]).unwrap());
    assert!(view.wrap_seen(&[4; 32]).unwrap());
    assert!(!view.wrap_seen(&[5; 32]).unwrap());
}

#[test]
fn journal_and_outbox_numbers_never_repeat() {
    let home = home();
    let path = home.path().join("store.redb");
    let store = open(&path);
    let first = store
        .write(|txn| {
            let seq = txn.outbox_next_seq()?;
            txn.put(Table::Outbox, &seq.to_be_bytes(), &"message")?;
            txn.journal_append(5, "offer", Some("t1"), &json!({"price": 3}))?;
            txn.journal_append(6, "bid", None, &json!(null))?;
            assert_eq!(txn.outbox_next_seq()?, seq + 1);
            Ok(seq)
        })
        .unwrap();
    let _ = store.write(|txn| {
        txn.outbox_next_seq()?;
        Err::<(), _>(StoreError::dropped("not this one"))
    });
    store
        .write(|txn| {
            txn.delete(Table::Outbox, &first.to_be_bytes())?;
            txn.prune(
                0,
                &Limits {
                    journal_entries_max: 0,
                    ..Limits::default()
                },
                10,
            )
        })
        .unwrap();
    drop(store);
    let store = open(&path);
    let (outbox, journal) = store
        .write(|txn| {
            Ok((
                txn.outbox_next_seq()?,
                txn.journal_append(7, "award", None, &json!(1))?,
            ))
        })
        .unwrap();
    assert_eq!((outbox, journal), (first + 2, 3));
    let entries = store
        .view()
        .unwrap()
        .journal_range(0, 10, Order::Ascending)
        .unwrap();
    let seen: Vec<_> = entries
        .iter()
        .map(|entry| (entry.seq, entry.at_ms, entry.kind.as_str()))
        .collect();
    assert_eq!(
        seen,
        [(2, 6, "bid"), (3, 7, "award")],
        "pruning keeps the newest entry"
    );
}

#[test]
fn of_two_generations_the_newest_whose_checksum_holds_is_read() {
    let home = home();
    let path = home.path().join("store.redb");
    let store = open(&path);
    let (lease, longer) = (
        owned_key(b"task", b"1"),
        owned_key(b"task", b"1\0\0\0\0\0\0\0\0x"),
    );
    store
        .write(|txn| {
            for generation in [1, 2, 7] {
                txn.checkpoint_put(&lease, generation, &[generation as u8; 50])?;
            }
            txn.checkpoint_put(&longer, 9, b"another lease")
        })
        .unwrap();
    let view = store.view().unwrap();
    assert_eq!(
        view.count(Table::Checkpoints).unwrap(),
        3,
        "two of this lease, one of the other"
    );
    assert_eq!(
        view.checkpoint_newest(&lease).unwrap(),
        Some((7, vec![7; 50]))
    );
    drop((view, store));

    let mut key = lease.clone();
    key.extend_from_slice(&7u64.to_be_bytes());
    plant(
        &path,
        Table::Checkpoints,
        &key,
        &[&[1, 0][..], &[0; 32], &[7; 50]].concat(),
    );
    let store = open(&path);
    let newest = store.view().unwrap().checkpoint_newest(&lease).unwrap();
    assert_eq!(
        newest,
        Some((2, vec![2; 50])),
        "a damaged one is passed over"
    );
    store.write(|txn| txn.checkpoint_drop(&lease)).unwrap();
    let view = store.view().unwrap();
    assert_eq!(view.checkpoint_newest(&lease).unwrap(), None);
    assert!(view.checkpoint_newest(&longer).unwrap().is_some());
}

#[test]
fn a_snapshot_is_the_store_at_one_moment_and_opens_as_one() {
    let home = home();
    let store = open(&home.path().join("store.redb"));
    store
        .write(|txn| {
            txn.payload_put(b"t", "input", &[1; 100_000])?;
            txn.put(Table::Accounts, b"a", &json!({"mc": -5}))?;
            txn.journal_append(1, "k", None, &json!({}))
        })
        .unwrap();
    let copy = home.path().join("backup.redb");
    assert!(store.snapshot_to(&copy).unwrap() >= 4);
    store
        .write(|txn| txn.put(Table::Accounts, b"a", &json!({"mc": 9})))
        .unwrap();
    let backup = open(&copy);
    let view = backup.view().unwrap();
    assert_eq!(
        view.get::<Value>(Table::Accounts, b"a").unwrap(),
        Some(json!({"mc": -5}))
    );
    assert_eq!(
        view.payload_get(b"t", "input").unwrap(),
        Some(vec![1; 100_000])
    );
    assert_eq!(
        backup
            .write(|txn| txn.journal_append(2, "k", None, &json!({})))
            .unwrap(),
        2
    );
    assert_eq!(
        store.snapshot_to(&copy).unwrap_err().code(),
        "store_target_exists"
    );
}
