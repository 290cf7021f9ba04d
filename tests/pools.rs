//! Private pools, with real processes: members alone hear and are heard, a rotation shuts out who was not invited again, a bad
//! invite changes nothing, and no secret lies readable in a home.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use legiond::identity::invite::Invite;
use legiond::identity::pool::{PoolSecret, utc_day};
use legiond::identity::sealing::Delivery;
use legiond::wire::message::Body;
use nostr::{Keys, PublicKey};
use serde_json::{Value, json};

use crate::contract::shape;
use crate::support::stranger::{Stranger, dropped, key_of, now_s, refused};
use crate::support::world::{LEGION, Node, Relay, option, until};

const POOL: &str = "family";

/// A node in no open pool, running.
fn member(dir: &Path, name: &str, relay: &Relay) -> Node {
    let mut node = Node::init(dir, name, &[&relay.url]);
    node.configure("", "pools", "[]");
    node.up();
    node
}

/// A command that is given text on stdin.
fn with_stdin(node: &Node, args: &[&str], text: &str) -> Output {
    let mut child = node
        .command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// Joins from stdin, as README recommends.
fn join(node: &Node, invite: &str) -> Value {
    let output = with_stdin(node, &["pool", "join", "-"], &format!("{invite}\n"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    serde_json::from_str(&said).unwrap()
}

/// The `legion1…` text in an answer.
fn invite(answer: &Value) -> String {
    answer["invite"].as_str().unwrap().to_owned()
}

/// Both trust each other by their contacts.
fn trust(a: &Node, b: &Node) {
    for (who, whom) in [(a, b), (b, a)] {
        let contact = whom.ok(&["contact"]);
        let text = contact["contact"].as_str().unwrap();
        who.ok(&["peers", "trust", text, "--tier", "trusted"]);
    }
}

/// An `ask` in the private pool.
fn ask<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    let mut args = option(&["--pool", POOL]);
    args.extend(extra);
    args
}

/// Who did the task of an answered `ask`.
fn executor(done: &Value) -> &str {
    done["executor"]["npub"].as_str().unwrap()
}

fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap()
}

/// Whose ads this node has heard.
fn heard(node: &Node) -> Vec<String> {
    let ads = node.journaled("ad");
    let from = ads.iter().map(|ad| ad["body"]["from"].as_str().unwrap());
    from.map(str::to_owned).collect()
}

fn until_heard(node: &Node, whom: &Node) {
    until("an ad through the pool", || {
        heard(node).contains(&key_of(whom)).then_some(())
    });
}

#[test]
fn only_members_hear_an_offer_and_only_members_are_heard() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let (ann, bob) = (
        member(dir.path(), "ann", &relay),
        member(dir.path(), "bob", &relay),
    );
    // Eve knows the name, reads the same relay, and everybody trusts her.
    let mut eve = Node::init(dir.path(), "eve", &[&relay.url]);
    eve.configure("", "pools", &format!("[\"legion\", \"{POOL}\"]"));
    eve.up();

    let created = ann.ok(&["pool", "create", POOL]);
    shape("pool_invite", &created, "");
    let joined = join(&bob, &invite(&created));
    shape("pool_join", &joined, "");
    assert_eq!(joined["pool"]["invited_by"], ann.npub.as_str());
    assert_eq!(join(&bob, &invite(&created))["changed"], false);
    trust(&ann, &bob);
    trust(&ann, &eve);
    trust(&bob, &eve);
    // Both nodes were running: joining works at once, for ads and for offers.
    until_heard(&ann, &bob);
    until_heard(&bob, &ann);

    let done = ann.ok(&ask(&[]));
    assert_eq!(executor(&done), bob.npub);
    let done = bob.ok(&ask(&[]));
    assert_eq!(executor(&done), ann.npub);

    // Her own pool of that name is another one: nobody is in it.
    let alone = eve.fails(3, &ask(&["--deadline", "4"]));
    assert_eq!(code(&alone), "no_provider");
    // What was wrapped for the members passed by her on the same connection as this task for her alone.
    let done = ann.ok(&option(&["--peer", &eve.npub]));
    assert_eq!(executor(&done), eve.npub);
    assert_eq!(heard(&eve), Vec::<String>::new());
    for node in [&ann, &bob] {
        assert!(!heard(node).contains(&key_of(&eve)));
        let bids = node.journaled("bid");
        assert!(!bids.is_empty());
        assert!(bids.iter().all(|bid| bid["body"]["from"] != key_of(&eve)));
    }
    // Her invitation to join something of that name cannot replace what it is.
    let taken = eve.fails(2, &["pool", "join", &invite(&created)]);
    assert_eq!(code(&taken), "pool_name_taken");
    let taken = eve.fails(2, &["pool", "create", POOL]);
    assert_eq!(code(&taken), "pool_name_taken");
    for verb in ["invite", "rotate", "leave"] {
        assert_eq!(code(&eve.fails(2, &["pool", verb, POOL])), "pool_open");
    }

    let left = bob.ok(&["pool", "leave", POOL]);
    shape("pool_leave", &left, "");
    assert_eq!(code(&bob.fails(2, &ask(&[]))), "pool_unknown");
    let alone = ann.fails(3, &ask(&["--deadline", "4"]));
    assert_eq!(code(&alone), "no_provider", "nobody is left to hear it");
}

#[test]
fn a_rotation_hears_the_late_for_a_while_and_shuts_out_who_is_not_invited_again() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let (mut ann, cid) = (
        member(dir.path(), "ann", &relay),
        member(dir.path(), "cid", &relay),
    );
    join(&cid, &invite(&ann.ok(&["pool", "create", POOL])));
    trust(&ann, &cid);
    until_heard(&ann, &cid);
    until_heard(&cid, &ann);

    let rotated = ann.ok(&["pool", "rotate", POOL, "--grace", "1h"]);
    assert_eq!(rotated["pool"]["epoch"], 2);
    let listed = ann.ok(&["pool", "list"]);
    shape("pool_list", &listed, "");
    assert_eq!(listed["pools"][0]["read"][0]["epoch"], 1);
    // Within the grace: who has not joined the new secret is heard, and hears nothing.
    assert_eq!(executor(&cid.ok(&ask(&[]))), ann.npub);
    let alone = ann.fails(3, &ask(&["--deadline", "4"]));
    assert_eq!(code(&alone), "no_provider", "nothing is sent under the old");

    // A restart forgets none of it.
    ann.kill();
    ann.up();
    assert_eq!(ann.ok(&["pool", "list"]), listed);
    assert_eq!(executor(&cid.ok(&ask(&[]))), ann.npub);

    // After it: neither heard nor told, and counted by its code.
    let rotated = ann.ok(&["pool", "rotate", POOL, "--grace", "0"]);
    assert_eq!(rotated["pool"]["read"], json!([]));
    let counted = |node: &Node| dropped(node).get("pool_epoch").copied().unwrap_or(0);
    let before = counted(&ann);
    let alone = cid.fails(3, &ask(&["--deadline", "4"]));
    assert_eq!(code(&alone), "no_provider");
    until("the old secret's offer to be counted", || {
        (counted(&ann) > before).then_some(())
    });

    // The old invite is worth nothing any more, the new one everything.
    let again = join(&cid, &invite(&rotated));
    assert_eq!(
        (&again["changed"], &again["pool"]["epoch"]),
        (&json!(true), &json!(3))
    );
    assert_eq!(executor(&cid.ok(&ask(&[]))), ann.npub);
    assert_eq!(executor(&ann.ok(&ask(&[]))), cid.npub);
}

/// A pool's keys of the day are on every relay, as the recipient of what is wrapped for it.
#[test]
fn who_sees_the_pool_s_key_on_a_relay_is_not_heard_for_it() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let ann = member(dir.path(), "ann", &relay);
    let text = invite(&ann.ok(&["pool", "create", POOL]));
    let invite = Invite::decode(&text, now_s()).unwrap();
    let key = invite.secret.day_keys(utc_day(now_s())).unwrap();
    let key = key.public_key();
    let mut eve = Stranger::on(&relay.url);
    let say = |eve: &mut Stranger, to: &str| {
        let object = Stranger::object(to, Body::Ad(Box::new(eve.ad(|_| {}))));
        let rumor = eve.rumor(&key, object.to_string());
        eve.publish(&Stranger::wrap(
            &eve.seal(&key, &rumor),
            &key,
            Delivery::Stored,
            0,
        ));
    };
    let me = PublicKey::from_hex(&eve.hex()).unwrap();
    let hers = PoolSecret::open(POOL).unwrap().member_tag(&me).unwrap();
    let anns = PublicKey::from_hex(&key_of(&ann)).unwrap();
    let anns = invite.secret.member_tag(&anns).unwrap();
    for to in [
        format!("pool:{POOL}"),
        format!("pool:{POOL}/1/{}", "0".repeat(32)),
        format!("pool:{POOL}/1/{hers}"),
        format!("pool:{POOL}/1/{anns}"),
        format!("pool:{POOL}/0/"),
    ] {
        refused(&ann, &mut eve, "audience", 1, |eve| say(eve, &to));
    }
    assert_eq!(heard(&ann), Vec::<String>::new());
    // With the secret she is a member, and needs no proof of work.
    let tag = invite.secret.member_tag(&me).unwrap();
    say(&mut eve, &format!("pool:{POOL}/1/{tag}"));
    until("the member's ad", || {
        (heard(&ann) == [eve.hex()]).then_some(())
    });
}

#[test]
fn a_bad_invite_has_a_code_and_changes_nothing() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let (ann, bob) = (
        member(dir.path(), "ann", &relay),
        member(dir.path(), "bob", &relay),
    );
    let good = invite(&ann.ok(&["pool", "create", POOL]));
    bob.ok(&["pool", "create", POOL]);
    let keys = Keys::generate();
    let made = |change: &dyn Fn(&mut Invite)| {
        let mut invite = Invite::decode(&good, now_s()).unwrap();
        change(&mut invite);
        invite.encode(&keys).unwrap().to_string()
    };
    let listed = bob.ok(&["pool", "list"]);
    let file = bob.home.join("keys/pools.json");
    let bytes = std::fs::read(&file).unwrap();

    let mistyped = format!("{}{}", &good[..20], good[20..].replacen('q', "p", 1));
    let contact = ann.ok(&["contact"]);
    let cases = [
        ("invite_checksum", mistyped.clone()),
        ("invite_checksum", good[..good.len() - 1].to_owned()),
        ("invite_malformed", "join us".to_owned()),
        ("invite_malformed", String::new()),
        ("invite_hrp", ann.npub.clone()),
        ("invite_too_long", format!("legion1{}", "q".repeat(3_000))),
        (
            "invite_kind",
            contact["contact"].as_str().unwrap().to_owned(),
        ),
        ("invite_expired", made(&|i| i.expires_at_s = now_s() - 1)),
        ("pool_name_taken", good.clone()),
    ];
    for (wanted, text) in &cases {
        let output = with_stdin(&bob, &["pool", "join", "-"], text);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(code(&said), *wanted, "{said}");
        assert_eq!(output.status.code(), Some(2), "{wanted}");
        assert!(
            text.len() < 40 || !said.to_string().contains(&text[8..40]),
            "an error does not repeat the invite"
        );
    }
    assert_eq!(bob.ok(&["pool", "list"]), listed);
    assert_eq!(std::fs::read(&file).unwrap(), bytes);

    // A contact that was tampered with is refused as well, and nobody is trusted for it.
    let text = contact["contact"].as_str().unwrap();
    let refused = bob.fails(
        2,
        &["peers", "trust", &text[..text.len() - 2], "--tier", "own"],
    );
    assert_eq!(code(&refused), "contact_checksum");
    let refused = bob.fails(2, &["peers", "trust", &good, "--tier", "own"]);
    assert_eq!(code(&refused), "contact_kind");
    assert_eq!(bob.ok(&["peers"])["peers"], json!([]));

    assert_eq!(
        code(&bob.fails(2, &["pool", "leave", "none"])),
        "pool_unknown"
    );
    assert_eq!(
        code(&bob.fails(2, &["pool", "create", " "])),
        "pool_name_invalid"
    );
    let long = ["pool", "invite", POOL, "--valid", "400d"];
    assert_eq!(code(&bob.fails(2, &long)), "time_range");
}

#[test]
fn secrets_are_readable_nowhere_in_a_home_and_a_damaged_file_is_not_passed_over() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let mut ann = member(dir.path(), "ann", &relay);
    let text = invite(&ann.ok(&["pool", "create", POOL]));
    let first = Invite::decode(&text, now_s()).unwrap();
    let second = invite(&ann.ok(&["pool", "rotate", POOL]));
    let second = Invite::decode(&second, now_s()).unwrap();
    ann.ok(&option(&["--pool", POOL, "--detach"]));
    with_stdin(&ann, &["pool", "join", "-"], &text[..60]);
    assert!(ann.terminate().success());

    let mut files = vec![ann.home.with_extension("stderr")];
    let mut open = vec![ann.home.clone()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => files.push(path),
            }
        }
    }
    assert!(files.iter().any(|path| path.ends_with("keys/pools.json")));
    for secret in [first.secret.as_bytes(), second.secret.as_bytes()] {
        let needles = [
            secret.to_vec(),
            hex::encode(secret).into_bytes(),
            text.as_bytes()[40..80].to_vec(),
        ];
        for file in &files {
            let bytes = std::fs::read(file).unwrap();
            for needle in &needles {
                let found = bytes.windows(needle.len()).any(|part| part == needle);
                assert!(!found, "{} shows a secret", file.display());
            }
        }
    }

    let stopped = ann.fails(5, &["pool", "list"]);
    assert_eq!(code(&stopped), "node_not_running");
    let file = ann.home.join("keys/pools.json");
    let whole = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(code(&ann.fails(2, &["up"])), "pool_file_invalid");
    std::fs::write(&file, whole).unwrap();
    // The same name, open in the settings: which of the two a message is for must never be in doubt.
    ann.configure("", "pools", &format!("[\"{POOL}\"]"));
    assert_eq!(code(&ann.fails(2, &["up"])), "pool_name_taken");
    ann.configure("", "pools", "[]");
    ann.up();
    assert_eq!(ann.ok(&["pool", "list"])["pools"][0]["epoch"], 2);
}

#[test]
fn an_invite_brings_its_reader_to_the_relay_where_the_members_meet() {
    let (here, there) = (Relay::start(), Relay::start());
    let dir = tempfile::tempdir().unwrap();
    let (ann, bob) = (
        member(dir.path(), "ann", &here),
        member(dir.path(), "bob", &there),
    );
    let created = ann.ok(&["pool", "create", POOL]);
    assert_eq!(created["pool"]["relays"], json!([here.url]));
    join(&bob, &invite(&created));
    until_heard(&bob, &ann);
    until_heard(&ann, &bob);
    assert_eq!(ann.ok(&["status"])["relays"].as_object().unwrap().len(), 1);
    assert_eq!(bob.ok(&["status"])["relays"].as_object().unwrap().len(), 2);
}

#[test]
fn a_contact_is_all_that_two_people_have_to_exchange() {
    let relay = Relay::start();
    let dir = tempfile::tempdir().unwrap();
    let (ann, bob) = (
        member(dir.path(), "ann", &relay),
        member(dir.path(), "bob", &relay),
    );
    let contact = bob.ok(&["contact"]);
    shape("contact", &contact, "");
    assert_eq!(contact["npub"], bob.npub.as_str());
    let text = contact["contact"].as_str().unwrap().to_ascii_uppercase();
    let peers = ann.ok(&["peers", "trust", &text, "--tier", "trusted"]);
    let known = &peers["peers"][0];
    assert_eq!(
        (&known["npub"], &known["tier"], &known["lct"]),
        (&contact["npub"], &json!("trusted"), &contact["lct"])
    );
    let own = ann.ok(&["contact"]);
    let own = own["contact"].as_str().unwrap();
    let refused = ann.fails(2, &["peers", "trust", own, "--tier", "trusted"]);
    assert_eq!(code(&refused), "peer_is_self");
    bob.ok(&["peers", "trust", own, "--tier", "trusted"]);
    let done = ann.ok(&option(&["--peer", &bob.npub]));
    assert_eq!(executor(&done), bob.npub);

    // People read the same.
    let shown = Command::new(LEGION)
        .arg("--home")
        .arg(&bob.home)
        .arg("contact")
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.starts_with("contact: legion1") && shown.contains("legion peers trust"));
}
