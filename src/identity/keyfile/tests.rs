//! What the key file promises: nobody but the owner reads it, only the passphrase opens it, and a damaged one says so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

/// The cheapest argon2id allows, so that tests spend their time elsewhere.
const CHEAP: KdfCost = KdfCost {
    memory_kib: 8,
    passes: 1,
    lanes: 1,
};
const WORDS: &str =
    "leader monkey parrot ring guide accident before fence cannon height naive bean";
const PASS: &str = "correct horse";

fn meta() -> Meta {
    Meta {
        lct: Lct::new("ada", "attic", "worker").unwrap(),
        epoch: 0,
        created_at_s: 1_795_219_200,
    }
}

fn home(passphrase: Option<&str>) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("keys");
    create_with_cost(
        &dir,
        &Mnemonic::parse(WORDS).unwrap(),
        meta(),
        passphrase,
        CHEAP,
    )
    .unwrap();
    (root, dir)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn code(result: Result<Identity, IdentityError>) -> &'static str {
    result.err().unwrap().code()
}

#[test]
fn what_was_created_opens_again() {
    for passphrase in [Some(PASS), None] {
        let (_root, dir) = home(passphrase);
        let expected = Identity::derive(&Mnemonic::parse(WORDS).unwrap(), meta().lct, 0).unwrap();
        let opened = open(&dir, passphrase).unwrap();
        assert_eq!(opened.public(), expected.public());
        assert_eq!(opened.nostr().secret_key(), expected.nostr().secret_key());
        assert_eq!(&public(&dir).unwrap(), expected.public());
        assert_eq!(is_encrypted(&dir).unwrap(), passphrase.is_some());
    }
}

#[test]
fn the_default_cost_is_what_the_documentation_says() {
    let (_root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    create(
        dir.path(),
        &Mnemonic::parse(WORDS).unwrap(),
        meta(),
        Some(PASS),
    )
    .unwrap();
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join(KEY_FILE)).unwrap()).unwrap();
    assert_eq!(
        json["protection"]["cost"],
        serde_json::json!({"memory_kib": 65_536, "passes": 3, "lanes": 1})
    );
    open(dir.path(), Some(PASS)).unwrap();
}

#[test]
fn only_the_owner_can_read_and_no_word_is_readable() {
    let (_root, dir) = home(Some(PASS));
    assert_eq!(
        (
            mode(&dir),
            mode(&dir.join(KEY_FILE)),
            mode(&dir.join(PUBLIC_FILE))
        ),
        (0o700, 0o600, 0o600)
    );
    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [KEY_FILE, PUBLIC_FILE], "a temporary file was left");
    let all = fs::read_to_string(dir.join(KEY_FILE)).unwrap()
        + &fs::read_to_string(dir.join(PUBLIC_FILE)).unwrap();
    for word in WORDS.split(' ') {
        assert!(!all.contains(word), "{word}");
    }
    let (_root, dir) = home(None);
    assert_eq!(mode(&dir.join(KEY_FILE)), 0o600);
}

#[test]
fn a_file_that_others_can_reach_is_refused() {
    let (_root, dir) = home(Some(PASS));
    for wide in [0o640, 0o604, 0o620, 0o644] {
        fs::set_permissions(dir.join(KEY_FILE), fs::Permissions::from_mode(wide)).unwrap();
        assert_eq!(code(open(&dir, Some(PASS))), "key_permissions", "{wide:o}");
        assert_eq!(is_encrypted(&dir).unwrap_err().code(), "key_permissions");
    }
    fs::set_permissions(dir.join(KEY_FILE), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o770)).unwrap();
    assert_eq!(code(open(&dir, Some(PASS))), "key_permissions");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    open(&dir, Some(PASS)).unwrap();
}

#[test]
fn only_the_passphrase_opens_it() {
    let (_root, dir) = home(Some(PASS));
    assert_eq!(code(open(&dir, Some("correct hors"))), "passphrase_wrong");
    assert_eq!(code(open(&dir, Some(""))), "passphrase_wrong");
    assert_eq!(code(open(&dir, None)), "passphrase_needed");
    let fresh = tempfile::tempdir().unwrap();
    let made = create_with_cost(
        fresh.path(),
        &Mnemonic::parse(WORDS).unwrap(),
        meta(),
        Some(""),
        CHEAP,
    );
    assert_eq!(code(made), "passphrase_needed");
}

#[test]
fn a_renamed_or_turned_back_identity_does_not_open() {
    let (_root, dir) = home(Some(PASS));
    let path = dir.join(KEY_FILE);
    let original = fs::read_to_string(&path).unwrap();
    for (from, to) in [
        ("ada@attic", "eve@attic"),
        ("\"epoch\": 0", "\"epoch\": 7"),
        ("\"passes\": 1", "\"passes\": 2"),
    ] {
        assert!(original.contains(from), "{from}");
        fs::write(&path, original.replace(from, to)).unwrap();
        assert_eq!(code(open(&dir, Some(PASS))), "passphrase_wrong", "{to}");
    }
}

#[test]
fn a_damaged_or_foreign_file_is_named_so() {
    let (_root, dir) = home(Some(PASS));
    let path = dir.join(KEY_FILE);
    let original = fs::read_to_string(&path).unwrap();
    let mut cases: Vec<String> = [0, 1, original.len() / 2, original.len() - 3]
        .iter()
        .map(|&cut| original[..cut].to_owned())
        .collect();
    cases.push("{}".into());
    cases.push("x".repeat(70_000));
    cases.push(original.replace(FORMAT, "other-key"));
    cases.push(original.replace("\"v\": 1", "\"v\": 2"));
    cases.push(original.replace("\"memory_kib\": 8", "\"memory_kib\": 4294967295"));
    cases.push(original.replace("\"lanes\": 1", "\"lanes\": 0"));
    cases.push(original.replace("\"nonce\": \"", "\"nonce\": \"zz"));
    cases.push(original.replace("\"nonce\": \"", "\"nonce\": \"00"));
    for text in cases {
        assert_ne!(text, original);
        fs::write(&path, &text).unwrap();
        let error = open(&dir, Some(PASS)).err().unwrap();
        assert_eq!(
            error.code(),
            "key_file_invalid",
            "{}",
            &text[..text.len().min(80)]
        );
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(code(open(&dir, Some(PASS))), "key_missing");
}

#[test]
fn errors_never_quote_the_words() {
    let (_root, dir) = home(None);
    let path = dir.join(KEY_FILE);
    let original = fs::read_to_string(&path).unwrap();
    for text in [
        original.replace("monkey", "donkeyy"),
        original.replace("\"mnemonic\"", "\"mnemonics\""),
        original.replace("\"kind\": \"none\"", "\"kind\": \"monkey\""),
    ] {
        fs::write(&path, &text).unwrap();
        let error = open(&dir, None).err().unwrap();
        assert_eq!(error.code(), "key_file_invalid");
        let shown = format!("{error} {error:?}");
        assert!(
            !shown.contains("donkey") && !shown.contains("monkey"),
            "{shown}"
        );
    }
}

#[test]
fn an_identity_is_never_overwritten() {
    let (_root, dir) = home(Some(PASS));
    let before = fs::read(dir.join(KEY_FILE)).unwrap();
    let made = create_with_cost(&dir, &Mnemonic::generate().unwrap(), meta(), None, CHEAP);
    assert_eq!(code(made), "key_exists");
    assert_eq!(fs::read(dir.join(KEY_FILE)).unwrap(), before);
}

#[test]
fn the_public_half_is_kept_with_its_binding_and_repaired_when_lost() {
    let (_root, dir) = home(None);
    let mut known = public(&dir).unwrap();
    known.binding = Some(serde_json::json!({"v": 1}));
    write_public(&dir, &known).unwrap();
    assert_eq!(open(&dir, None).unwrap().public(), &known);
    fs::write(dir.join(PUBLIC_FILE), "{").unwrap();
    assert_eq!(public(&dir).unwrap_err().code(), "key_file_invalid");
    open(&dir, None).unwrap();
    known.binding = None;
    assert_eq!(public(&dir).unwrap(), known);
    fs::remove_file(dir.join(PUBLIC_FILE)).unwrap();
    assert_eq!(public(&dir).unwrap_err().code(), "key_missing");
}

#[test]
fn a_raised_epoch_keeps_words_passphrase_and_the_keys_before() {
    for passphrase in [Some(PASS), None] {
        let (_root, dir) = home(passphrase);
        let before = open(&dir, passphrase).unwrap();
        assert_eq!(raise_epoch(&dir, passphrase, 0).unwrap().public().epoch, 1);
        // Above whatever else is known of the identity.
        let raised = raise_epoch(&dir, passphrase, 4).unwrap();
        assert_eq!((raised.public().epoch, public(&dir).unwrap().epoch), (5, 5));
        let opened = open(&dir, passphrase).unwrap();
        assert_eq!(opened.public(), raised.public());
        assert_eq!(opened.public().npub, before.public().npub);
        assert_ne!(opened.public().ed25519, before.public().ed25519);
        let keys = opened.proof_keys();
        assert_eq!((keys.len(), &keys[0]), (6, &before.public().ed25519));
        let old = before.sign_proof(b"said before");
        assert_eq!(opened.sign_proof_as(&keys[0], b"said before"), Some(old));
        assert_eq!(opened.sign_proof_as(&"0".repeat(64), b"x"), None);
        assert_eq!(mode(&dir.join(KEY_FILE)), 0o600);
    }
    let (_root, dir) = home(Some(PASS));
    assert_eq!(
        code(raise_epoch(&dir, Some("wrong"), 0)),
        "passphrase_wrong"
    );
    assert_eq!(code(raise_epoch(&dir, None, 0)), "passphrase_needed");
    assert_eq!(open(&dir, Some(PASS)).unwrap().public().epoch, 0);
    assert_eq!(
        code(raise_epoch(&dir, Some(PASS), u32::MAX)),
        "derivation_failed"
    );
    assert_eq!(open(&dir, Some(PASS)).unwrap().public().epoch, 0);
}
