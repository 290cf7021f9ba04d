//! The file itself: whole, private, consistent while tasks run, and taken back only where it belongs.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use legiond::domain::ledger::{Account, Kind, SELF, Side, Transfer};
use legiond::node::rows;
use legiond::store::{Order, Rows as _, Span, Store, StoreOptions, Table};
use serde_json::{Value, json};

use super::{ask, backup, ended, lose, reconciled, work};
use crate::support::shape::{fixture, structure};
use crate::support::world::{Node, Pair, Relay};

fn shape(name: &str, value: &Value) {
    assert_eq!(
        structure(value),
        structure(&fixture(name)),
        "{name}: {value:#}"
    );
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_backup_is_one_private_file_that_replaces_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "node", &[]);
    let file = dir.path().join("b");
    assert_eq!(
        node.fails(2, &["backup", text(&file)])["error"]["code"],
        "io",
        "nothing to back up yet"
    );
    node.up();
    let running = node.ok(&["backup", text(&file)]);
    shape("backup", &running);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let before = std::fs::read(&file).unwrap();
    let error = node.fails(2, &["backup", text(&file)]);
    assert_eq!(error["error"]["code"], "store_target_exists");
    node.kill();
    assert_eq!(
        node.fails(2, &["backup", text(&file)])["error"]["code"],
        "store_target_exists"
    );
    assert_eq!(std::fs::read(&file).unwrap(), before);
    let rest = dir.path().join("rest");
    let stopped = node.ok(&["backup", text(&rest), "--with-keys"]);
    assert_eq!(
        (&stopped["with_keys"], &stopped["npub"]),
        (&json!(true), &running["npub"])
    );
    // The words are in the one that was asked for them, and in that alone.
    let words = std::fs::read_to_string(dir.path().join("node.words")).unwrap();
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let holds = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        bytes
            .windows(words.len())
            .any(|part| part == words.as_bytes())
    };
    assert!(holds(&rest) && !holds(&file));
    assert_eq!(
        std::fs::read_dir(dir.path())
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().contains("part"))
            .count(),
        0
    );
}

#[test]
fn a_backup_to_where_none_can_be_is_refused_by_name_and_the_node_stays_well() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "node", &[]);
    let (folder, file) = (dir.path().join("folder"), dir.path().join("file"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(&file, "mine").unwrap();
    let mut refused = vec![
        dir.path().join("missing/b"),
        folder.clone(),
        file.join("b"),
        // Nobody makes files there, not even root.
        "/proc/b".into(),
        dir.path().join("n".repeat(250)),
    ];
    let locked = dir.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o500)).unwrap();
    if !rustix::process::geteuid().is_root() {
        refused.push(locked.join("b"));
    }
    let try_all = |node: &Node| {
        for path in &refused {
            let error = node.fails(2, &["backup", text(path)])["error"].clone();
            assert_eq!(error["code"], "store_target_unusable", "{error}");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains(text(path)), "{error}");
            assert!(error["hint"].as_str().unwrap().contains("folder"));
        }
    };
    node.up();
    try_all(&node);
    node.ok(&["backup", text(&folder.join("b"))]);
    node.ok(&["pool", "create", "still-writes"]);
    assert!(node.terminate().success());
    try_all(&node);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    let left = std::fs::read_dir(dir.path()).unwrap().flatten();
    let left = left.filter(|e| e.file_name().to_string_lossy().contains("part"));
    assert_eq!(left.count(), 0);
}

#[test]
fn a_restoration_goes_where_nothing_is_lost_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "node", &["ws://127.0.0.1:9"]);
    let other = Node::init(dir.path(), "other", &[]);
    node.up();
    node.configure("market", "unit_price_mc", "3");
    let [bare, full] = ["bare", "full"].map(|name| dir.path().join(name));
    node.ok(&["backup", text(&bare)]);
    node.ok(&["backup", text(&full), "--with-keys"]);
    node.kill();
    let code =
        |node: &Node, file: &Path| node.fails(2, &["restore", text(file)])["error"]["code"].clone();
    assert_eq!(code(&node, &full), "store_exists");
    assert_eq!(code(&other, &full), "backup_foreign");
    assert_eq!(code(&other, &dir.path().join("nowhere")), "io");
    let junk = dir.path().join("junk");
    std::fs::write(&junk, "no store at all").unwrap();
    assert_eq!(code(&other, &junk), "backup_invalid");
    std::fs::copy(node.home.join("store.redb"), &junk).unwrap();
    assert_eq!(
        code(&other, &junk),
        "backup_invalid",
        "a store is no backup"
    );
    assert!(
        !other.home.join("store.redb").exists()
            && !other.home.join("store.redb.restoring").exists()
    );

    let settings = std::fs::read(node.home.join("config/legion.toml")).unwrap();
    let relays = std::fs::read(node.home.join("relays/home.toml")).unwrap();
    std::fs::remove_dir_all(&node.home).unwrap();
    assert_eq!(code(&node, &bare), "backup_keyless");
    assert!(
        !node.home.join("config/legion.toml").exists(),
        "a refused one leaves nothing"
    );
    // The words make the keys, the backup brings the rest.
    let words = dir.path().join("node.words");
    node.ok(&["init", "--no-passphrase", "--mnemonic-file", text(&words)]);
    let restored = node.ok(&["restore", text(&bare)]);
    shape("restore", &restored);
    assert_eq!(
        (&restored["npub"], &restored["epoch"]),
        (&json!(node.npub), &json!(1))
    );
    assert_eq!(
        std::fs::read(node.home.join("config/legion.toml")).unwrap(),
        settings
    );
    assert_eq!(
        std::fs::read(node.home.join("relays/home.toml")).unwrap(),
        relays
    );
    for name in ["store.redb", "keys/identity.json", "keys/public.json"] {
        let mode = node
            .home
            .join(name)
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(node.ok(&["id"])["npub"], json!(node.npub));
    // A backup is a store, but it must not be used as one: nothing would tell it that it is old.
    std::fs::copy(&full, node.home.join("store.redb")).unwrap();
    assert_eq!(node.fails(2, &["up"])["error"]["code"], "backup_unrestored");
}

#[test]
fn an_encrypted_key_file_stays_encrypted_and_needs_its_passphrase() {
    let dir = tempfile::tempdir().unwrap();
    let [pass, wrong, words, file] = ["pass", "wrong", "words", "file"].map(|n| dir.path().join(n));
    std::fs::write(&pass, "correct horse").unwrap();
    std::fs::write(&wrong, "battery staple").unwrap();
    let mut node = Node::init(dir.path(), "node", &[]);
    std::fs::remove_dir_all(&node.home).unwrap();
    node.ok(&[
        "init",
        "--passphrase-file",
        text(&pass),
        "--mnemonic-out",
        text(&words),
    ]);
    let up = ["--passphrase-file", text(&pass)];
    node.up_with(&up);
    node.ok(&["backup", text(&file), "--with-keys"]);
    node.kill();
    std::fs::remove_dir_all(&node.home).unwrap();
    let error = node.fails(
        2,
        &["restore", text(&file), "--passphrase-file", text(&wrong)],
    );
    assert_eq!(error["error"]["code"], "passphrase_wrong");
    assert!(!node.home.join("store.redb").exists());
    node.ok(&["restore", text(&file), "--passphrase-file", text(&pass)]);
    let key = std::fs::read_to_string(node.home.join("keys/identity.json")).unwrap();
    assert!(key.contains("argon2id") && key.contains("\"epoch\": 1"));
    node.up_with(&up);
    reconciled(&node);
}

/// Pools that were joined are there again, and what was proven under the old epoch still is.
#[test]
fn pools_and_proofs_outlive_a_restoration() {
    let mut pair = Pair::start(|_, _| {});
    pair.asker.ok(&["pool", "create", "family"]);
    let tasks = work(&pair, 2, 0);
    let file = backup(&pair.worker, "backup");
    let asker = backup(&pair.asker, "backup");
    lose(&mut pair.worker, &file);
    lose(&mut pair.asker, &asker);
    // Both at once: each answers while it asks itself.
    pair.worker.up();
    pair.asker.up();
    reconciled(&pair.worker);
    reconciled(&pair.asker);
    let pools = pair.asker.ok(&["pool", "list"]);
    assert!(pools.to_string().contains("family"), "{pools}");
    let proof = pair.asker.ok(&["proof", "export", &tasks[0]]);
    let path = pair.asker.home.join("proof.json");
    std::fs::write(&path, proof.to_string()).unwrap();
    let verified = pair.asker.ok(&["proof", "verify", text(&path)]);
    assert_eq!(
        (&verified["valid"], &verified["paid_mc"]),
        (&json!(true), &json!(1))
    );
    let task = ask(&pair.asker, Some(&pair.worker.npub), 5);
    pair.finish(&task);
}

/// Accounts, their movements and the live rows of one backup agree, whatever was under way.
fn consistent(file: &Path) -> usize {
    let copy = file.with_extension("opened");
    std::fs::copy(file, &copy).unwrap();
    let store = Store::open(&copy, StoreOptions::default()).unwrap();
    let view = store.view().unwrap();
    let mut books: BTreeMap<String, (i64, i64, i64)> = BTreeMap::new();
    let transfers: Vec<Transfer> = rows::transfers(&view, 100_000).unwrap();
    let mut locks: BTreeMap<String, i64> = BTreeMap::new();
    for t in &transfers {
        let amount = i64::try_from(t.amount_mc).unwrap();
        let book = books.entry(t.npub.clone()).or_default();
        let lock = format!("{:?}/{}/{}/{}", t.side, t.npub, t.task, t.award_no);
        let pending = |book: &mut (i64, i64, i64), by: i64| match t.side {
            Side::Executor => book.1 += by,
            Side::Requester => book.2 += by,
        };
        match t.kind {
            Kind::Lock => {
                locks.insert(lock, amount);
                pending(book, amount);
            }
            Kind::Commit => {
                pending(book, -locks.remove(&lock).unwrap());
                book.0 += amount * if t.side == Side::Executor { 1 } else { -1 };
            }
            Kind::Rollback => pending(book, -locks.remove(&lock).unwrap()),
        }
    }
    let accounts = view.range::<Account>(Table::Accounts, Span::all(), 100, Order::Ascending);
    for (_, account) in accounts.unwrap() {
        if account.npub == SELF {
            continue;
        }
        let (posted, to_us, from_us) = books[&account.npub];
        assert_eq!(account.posted_mc, posted);
        assert_eq!(i64::try_from(account.pending_owed_to_us_mc).unwrap(), to_us);
        assert_eq!(i64::try_from(account.pending_we_owe_mc).unwrap(), from_us);
    }
    // What is locked belongs to a task that is live.
    assert!(locks.len() <= view.live_keys(Table::Tasks).unwrap().len());
    let journal = view.journal_range(0, 100_000, Order::Ascending).unwrap();
    let receipts = journal.iter().filter(|e| e.kind == "receipt").count();
    let paid = transfers.iter().filter(|t| t.kind == Kind::Commit).count();
    assert_eq!(receipts, paid, "the journal says what the book says");
    assert_eq!(
        view.count(Table::Pieces).unwrap() + view.count(Table::Moves).unwrap(),
        0
    );
    locks.len()
}

#[test]
fn a_backup_while_tasks_run_is_of_one_moment() {
    let pair = Pair::start(|_, _| {});
    let mut under_way = 0;
    let mut tasks = Vec::new();
    for round in 0..6 {
        tasks.extend((0..12).map(|n| ask(&pair.asker, Some(&pair.worker.npub), round * 100 + n)));
        let file = backup(&pair.asker, &format!("round{round}"));
        under_way += consistent(&file);
    }
    assert!(under_way > 0, "some backup met tasks on their way");
    for task in &tasks {
        ended(&pair.asker, task, "completed");
    }
}

#[test]
fn a_relay_is_not_needed_to_restore_a_node_without_peers() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "node", &[&relay.url]);
    node.up();
    let file = backup(&node, "backup");
    lose(&mut node, &file);
    relay.kill();
    node.up();
    reconciled(&node);
    assert_eq!(node.journaled("recovered").len(), 1);
}

/// One wrong digit in any row, and none of it is believed; nothing is left behind that a start would take for a home.
#[test]
fn a_damaged_backup_is_refused_whatever_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "node", &[]);
    node.up();
    let notes = dir.path().join("b.part");
    std::fs::write(&notes, "mine").unwrap();
    let file = dir.path().join("b");
    node.ok(&["backup", text(&file), "--with-keys"]);
    assert_eq!(
        std::fs::read(&notes).unwrap(),
        b"mine",
        "nobody's file is taken"
    );
    let whole = std::fs::read(&file).unwrap();
    let other = node.copy("other");
    std::fs::remove_dir_all(&other.home).unwrap();
    let marks: [&[u8]; 3] = [b"trusted_limit_mc = 1", b"\"at_ms\":1", b"legion-backup"];
    for mark in marks {
        let mut bytes = whole.clone();
        let at = whole.windows(mark.len()).position(|w| w == mark).unwrap();
        bytes[at + mark.len() - 1] ^= 1;
        let bad = dir.path().join("bad");
        std::fs::write(&bad, bytes).unwrap();
        let refused = other.fails(2, &["restore", text(&bad)]);
        assert_eq!(refused["error"]["code"], "backup_invalid", "{refused}");
        assert!(!other.home.join("store.redb.restoring").exists());
    }
    other.ok(&["restore", text(&file)]);
}

/// What a restoration that was cut off leaves is no home: its node would deal as somebody who never dealt with anybody.
#[test]
fn a_restoration_that_was_cut_off_is_no_home_until_it_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "node", &[]);
    node.up();
    let file = dir.path().join("b");
    node.ok(&["backup", text(&file)]);
    node.kill();
    let store = node.home.join("store.redb");
    std::fs::rename(&store, node.home.join("store.redb.restoring")).unwrap();
    assert_eq!(
        node.fails(2, &["up"])["error"]["code"],
        "restore_unfinished"
    );
    assert!(!store.exists());
    let bad = dir.path().join("bad");
    std::fs::write(&bad, "no backup").unwrap();
    node.fails(2, &["restore", text(&bad)]);
    assert_eq!(
        node.fails(2, &["up"])["error"]["code"],
        "restore_unfinished"
    );
    node.ok(&["restore", text(&file)]);
    node.up();
}

/// Keys made anew from the words are of the first epoch: a restored node would sign what no peer takes, and says so instead.
#[test]
fn keys_made_anew_are_of_the_epoch_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::init(dir.path(), "node", &[]);
    node.up();
    let file = dir.path().join("b");
    node.ok(&["backup", text(&file), "--with-keys"]);
    lose(&mut node, &file);
    let keys = node.home.join("keys");
    let words = dir.path().join("node.words");
    let init = ["init", "--no-passphrase", "--mnemonic-file", text(&words)];
    std::fs::remove_dir_all(&keys).unwrap();
    node.ok(&init);
    assert_eq!(node.fails(2, &["up"])["error"]["code"], "epoch_behind");
    std::fs::remove_dir_all(&keys).unwrap();
    node.ok(&[&init[..], &["--epoch", "1"]].concat());
    node.up();
}
