//! Promise: a store of every earlier format opens, is brought up to date in one transaction, and keeps every row.
//!
//! `fixtures/store/format1.redb` and `format2.redb` hold rows as the programs of those formats wrote them: without the tables and
//! fields that came later. `LEGION_DEMO=DIR cargo test --test legion make_format -- --ignored` writes them anew, from the homes that
//! `legion demo --keep DIR` leaves.

use std::path::PathBuf;

use legiond::domain::step::Row;
use legiond::node::rows;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde_json::{Value, json};

use super::*;

type Definition<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;

const FORMATS: [(u64, &str); 2] = [(1, "format1.redb"), (2, "format2.redb")];

/// Tables that came with format 2.
const SINCE_2: [Table; 2] = [Table::Moves, Table::Pieces];

/// Fields that came with format 2, and after it.
const FIELDS_SINCE_2: [&str; 12] = [
    "useful_units",
    "past",
    "equivocators",
    "input_bytes",
    "round_ms",
    "spares",
    "called_superseded",
    "evidence",
    "verification",
    "withdrawn",
    "key_before",
    "others",
];
const FIELDS_SINCE_3: [&str; 3] = ["agreed", "awards_above", "above"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/store")
        .join(name)
}

fn strip(value: &mut Value, format: u64) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| {
                let newer = FIELDS_SINCE_3.contains(&name.as_str());
                let second = format < 2 && FIELDS_SINCE_2.contains(&name.as_str());
                !newer && !second
            });
            fields.values_mut().for_each(|v| strip(v, format));
        }
        Value::Array(items) => items.iter_mut().for_each(|v| strip(v, format)),
        _ => {}
    }
}

/// A value without what its format did not know: version and JSON, or version and bytes.
fn aged(value: &[u8], format: u64) -> Vec<u8> {
    let Ok(mut json) = serde_json::from_slice::<Value>(&value[2..]) else {
        return value.to_vec();
    };
    if !json.is_object() {
        return value.to_vec();
    }
    strip(&mut json, format);
    [&value[..2], json.to_string().as_bytes()].concat()
}

fn make(format: u64, target: &Path, homes: &[PathBuf]) {
    let _ = std::fs::remove_file(target);
    let mut database = Database::create(target).unwrap();
    let transaction = database.begin_write().unwrap();
    for table in Table::ALL {
        if format < 2 && SINCE_2.contains(&table) {
            continue;
        }
        let definition: Definition<'_> = TableDefinition::new(table.name());
        let mut into = transaction.open_table(definition).unwrap();
        for home in homes {
            let store = Database::open(home.join("store.redb")).unwrap();
            let read = store.begin_read().unwrap();
            let from = read.open_table(definition).unwrap();
            // A few rows of each; nothing of the outbox, which would go to relays that are gone, and no names.
            let most = match table {
                Table::Outbox | Table::Seen | Table::SeenByTime | Table::Meta => 0,
                Table::Journal => 4,
                _ => 12,
            };
            for row in from.iter().unwrap().take(most) {
                let (key, value) = row.unwrap();
                into.insert(key.value(), aged(value.value(), format).as_slice())
                    .unwrap();
                if table == Table::Tasks {
                    // As if it still went on.
                    let live: Definition<'_> = TableDefinition::new(Table::Live.name());
                    let mut live = transaction.open_table(live).unwrap();
                    let key = [&[4], key.value()].concat();
                    live.insert(key.as_slice(), [1u8, 0].as_slice()).unwrap();
                }
            }
        }
        if table == Table::Meta {
            let schema = json!({"application": "legion", "version": format}).to_string();
            let schema = [&[1, 0], schema.as_bytes()].concat();
            into.insert(b"schema".as_slice(), schema.as_slice())
                .unwrap();
        }
    }
    transaction.commit().unwrap();
    while database.compact().unwrap() {}
}

#[test]
#[ignore = "writes the fixtures anew"]
fn make_format_fixtures() {
    let demo = PathBuf::from(std::env::var("LEGION_DEMO").unwrap());
    for (format, name) in FORMATS {
        make(
            format,
            &fixture(name),
            &[demo.join("asker"), demo.join("worker")],
        );
    }
}

/// What the rows say, as today's types read them.
fn counted(store: &Store) -> [usize; 5] {
    let view = store.view().unwrap();
    let mut counts = [0; 5];
    for row in rows::load(&view).unwrap() {
        let at = match row {
            Row::Job(_) => 0,
            Row::Engagement(_) => 1,
            Row::Peer(_) => 2,
            Row::Account(_) => 3,
            _ => continue,
        };
        counts[at] += 1;
    }
    counts[4] = rows::transfers(&view, 100).unwrap().len();
    counts
}

fn schema(store: &Store) -> Value {
    store
        .view()
        .unwrap()
        .get(Table::Meta, b"schema")
        .unwrap()
        .unwrap()
}

fn copied(name: &str) -> (TempDir, PathBuf) {
    let home = home();
    let path = home.path().join("store.redb");
    std::fs::copy(fixture(name), &path).unwrap();
    (home, path)
}

#[test]
fn every_earlier_format_is_brought_up_to_date_with_all_its_rows() {
    for (format, name) in FORMATS {
        let (_home, path) = copied(name);
        let store = open(&path);
        assert_eq!(schema(&store)["version"], legiond::store::SCHEMA_VERSION);
        assert!(format < legiond::store::SCHEMA_VERSION);
        let counts = counted(&store);
        assert!(counts.iter().all(|n| *n > 0), "{format}: {counts:?}");
        let journal = store.view().unwrap();
        let journal = journal.journal_range(0, 100, Order::Ascending).unwrap();
        assert!(!journal.is_empty());
        for table in SINCE_2 {
            assert_eq!(store.view().unwrap().count(table).unwrap(), 0);
            store
                .write(|txn| txn.put_bytes(table, b"new", b"x"))
                .unwrap();
        }
    }
}

/// As by a kill or a power cut at each point of the migration: the next opening finds the old store whole, or the new one.
#[cfg(any(feature = "crash-points", debug_assertions))]
#[test]
fn a_migration_that_was_cut_off_is_begun_again() {
    use legiond::store::FaultPlan;
    let mut cut_off = 0;
    for (_, name) in FORMATS {
        let (_home, whole) = copied(name);
        let expected = counted(&open(&whole));
        for (nth, lose) in [(1, true), (1, false), (2, true), (2, false), (3, true)] {
            let (_home, path) = copied(name);
            let plan = FaultPlan::shared();
            plan.fail_sync(nth, lose);
            let options = StoreOptions {
                fault: Some(plan),
                ..StoreOptions::default()
            };
            cut_off += usize::from(Store::open(&path, options).is_err());
            let store = open(&path);
            assert_eq!(schema(&store)["version"], legiond::store::SCHEMA_VERSION);
            assert_eq!(
                counted(&store),
                expected,
                "{name}: sync {nth}, lost: {lose}"
            );
        }
    }
    assert!(cut_off >= 4, "{cut_off}");
}
