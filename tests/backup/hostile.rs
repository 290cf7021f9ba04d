//! A counterparty that lies to a restored node, forges its words, or keeps silent about them: without the node's own signature
//! nothing changes, for it or against it.

use legiond::wire::entry::{Act, Entry};
use legiond::wire::log::{AwardLog, LogEntries, LogSince, Named};
use legiond::wire::market::Award;
use legiond::wire::message::{Body, Update};
use serde_json::{Value, json};

use super::{ask, backup, lose, reconciled};
use crate::support::stranger::{Stranger, key_of, now_ms, task_id, tiny};
use crate::support::world::{Node, Relay, until};

struct Scene {
    _relay: Relay,
    _dir: tempfile::TempDir,
    node: Node,
    eve: Stranger,
    heard_ms: u64,
    file: std::path::PathBuf,
}

impl Scene {
    /// A node that trusts Eve, and a backup of it; what it does with her after that it will forget.
    fn new() -> Self {
        let relay = Relay::start();
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::init(dir.path(), "node", &[&relay.url]);
        node.up();
        let eve = Stranger::on(&relay.url);
        node.ok(&["peers", "trust", &eve.npub(), "--tier", "trusted"]);
        let file = backup(&node, "backup");
        Self {
            _relay: relay,
            _dir: dir,
            node,
            eve,
            heard_ms: 0,
            file,
        }
    }

    /// Loses the home, restores it, and hears its question.
    fn restore(&mut self) -> LogSince {
        let file = self.file.clone();
        lose(&mut self.node, &file);
        self.node.up();
        let after = self.heard_ms;
        let since = self.eve.hear("a question", |heard| match &heard.body {
            Body::Since(since) if since.restored_ms > after => Some((**since).clone()),
            _ => None,
        });
        self.heard_ms = since.restored_ms;
        since
    }

    fn answer(&mut self, since: &LogSince, awards: Vec<AwardLog>) {
        let page = LogEntries {
            restored_ms: since.restored_ms,
            cursor: since.cursor.clone(),
            awards,
            next: None,
            binding: self.eve.binding(),
        };
        let to = key_of(&self.node);
        self.eve.say(&to, Body::Entries(Box::new(page)));
    }

    fn posted(&self) -> i64 {
        let book = self.node.ok(&["ledger"]);
        let posted = |a: &Value| a["posted_mc"].as_i64().unwrap();
        book["accounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(posted)
            .sum()
    }

    fn locks(&self) -> u64 {
        self.node.ok(&["status"])["locks"].as_u64().unwrap()
    }

    /// An entry in the node's name, under Eve's key: well signed, by the wrong one.
    fn forged(&self, requester: &str, task: &str, seq: u32, what: Act) -> Entry {
        let mut entry = Entry {
            task: task.to_owned(),
            requester: requester.to_owned(),
            author: key_of(&self.node),
            key: self.eve.identity.public().ed25519.clone(),
            seq,
            hlc: now_ms() * 1024,
            prev: String::new(),
            heads: Vec::new(),
            what,
            sig: String::new(),
        };
        self.eve.sign(&mut entry);
        entry
    }
}

fn log(requester: &str, task: &str, entries: Vec<Entry>) -> AwardLog {
    AwardLog {
        award: Named {
            requester: requester.to_owned(),
            task: task.to_owned(),
            award_no: 1,
        },
        entries,
        terms: None,
        proof: None,
        evidence: None,
        open: true,
        withdrawn: false,
        settle_by_ms: now_ms() + 600_000,
        unit_price_mc: 1,
    }
}

fn paid(cost_mc: u64, proof: &str) -> Act {
    Act::Paid {
        award_no: 1,
        cost_mc,
        proof: proof.to_owned(),
        quality_bp: None,
    }
}

/// A task of the node's that Eve has accepted, and that the backup does not know.
fn hired(scene: &mut Scene) -> (Award, Entry) {
    let npub = scene.eve.npub();
    let task = ask(&scene.node, Some(&npub), 3);
    let award = scene.eve.hear_award();
    assert_eq!(award.task, task);
    let to = key_of(&scene.node);
    let accept = scene.eve.accept(&to, &award, |_| {});
    let entry = accept.entry.clone();
    scene.eve.say(&to, Body::Accept(Box::new(accept)));
    until("the acceptance", || {
        (scene.node.count(&task, "accept") == 1).then_some(())
    });
    (award, entry)
}

#[test]
fn an_executor_cannot_make_a_restored_node_owe_it_anything() {
    let mut scene = Scene::new();
    let me = key_of(&scene.node);
    let (award, accepted) = hired(&mut scene);
    let task = award.task.clone();

    // A payment that the node never signed, and a task that it never awarded.
    let since = scene.restore();
    let forged = scene.forged(&me, &task, 2, paid(1_000, "p"));
    let never = task_id();
    let awarded = Act::Awarded {
        award_no: 1,
        executor: scene.eve.hex(),
        terms: "t".into(),
    };
    let invented = vec![
        scene.forged(&me, &never, 1, awarded),
        scene.forged(&me, &never, 2, paid(1_000, "p")),
    ];
    let known = vec![award.entry.clone(), accepted.clone(), forged];
    scene.answer(
        &since,
        vec![log(&me, &task, known), log(&me, &never, invented)],
    );
    reconciled(&scene.node);
    assert_eq!(scene.posted(), 0);
    let refused = scene.node.journaled("claim_refused");
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(
        (&refused[0]["task"], &refused[0]["body"]["code"]),
        (&json!(never), &json!("claim_unsigned"))
    );
    assert_eq!(
        scene.node.call("task/get", json!({"id": never}))["error"]["data"]["code"],
        "task_unknown"
    );
    // What it did award it gives up, and says so.
    let state = scene.node.ok(&["task", &task])["task"]["status"]["state"].clone();
    assert_eq!(state, "canceled");
    let canceled = scene.eve.hear("a cancel", |heard| match &heard.body {
        Body::Cancel(cancel) if cancel.task == task => Some(cancel.entry.clone()),
        _ => None,
    });
    assert!(canceled.is_signed() && canceled.seq > award.entry.seq);

    // The node's own words, altered: the page is refused as a whole, and asked for again.
    let since = scene.restore();
    let mut altered = award.entry.clone();
    altered.what = paid(1_000, "p");
    scene.answer(&since, vec![log(&me, &task, vec![altered])]);
    until("the page to be refused", || {
        let dropped = scene.node.ok(&["status"])["dropped"]["entry_signature"].clone();
        (dropped == 1).then_some(())
    });
    assert_eq!(scene.node.ok(&["status"])["recovering"]["open"], true);
    // Silence about everything changes nothing either.
    scene.answer(&since, Vec::new());
    reconciled(&scene.node);
    assert_eq!((scene.posted(), scene.locks()), (0, 0));
}

/// A result that the node signed for, of an award of Eve's: with what it said of it.
fn worked(scene: &mut Scene) -> (Award, Entry, Update) {
    let to = key_of(&scene.node);
    let task = task_id();
    let award = scene.eve.award(&to, &task, tiny(), |_| {});
    scene.eve.say(&to, Body::Request(Box::new(award.clone())));
    let accepted = scene.eve.hear("an acceptance", |heard| match &heard.body {
        Body::Accept(accept) if accept.task == task => Some(accept.entry.clone()),
        _ => None,
    });
    let result = scene.eve.hear("a result", |heard| match &heard.body {
        Body::Update(update) if update.task == task && heard.body.entry().is_some() => {
            Some((**update).clone())
        }
        _ => None,
    });
    (award, accepted, result)
}

#[test]
fn a_requester_cannot_pay_what_was_not_earned_nor_twice() {
    let mut scene = Scene::new();
    let eve = scene.eve.hex();
    let (award, accepted, update) = worked(&mut scene);
    let completed = Body::Update(Box::new(update.clone()))
        .entry()
        .cloned()
        .unwrap();
    let legiond::wire::message::News::Completed(result) = update.news else {
        panic!("a result");
    };
    let proof = result.proof.hash().unwrap();
    let task = award.task.clone();
    let entries = |last: Entry| {
        vec![
            award.entry.clone(),
            accepted.clone(),
            completed.clone(),
            last,
        ]
    };
    let honest = scene
        .eve
        .entry(&eve, &task, paid(result.proof.cost_mc, &proof));

    // More than was agreed: the claim stands as it was signed.
    let since = scene.restore();
    let mut greedy = honest.clone();
    greedy.what = paid(1_000_000, &proof);
    scene.eve.sign(&mut greedy);
    let mut told = log(&eve, &task, entries(greedy));
    told.proof = Some(result.proof.clone());
    // For work that the node never did, in its name.
    let never = task_id();
    let forged = vec![
        scene.forged(
            &eve,
            &never,
            1,
            Act::Accepted {
                award_no: 1,
                total_mc: 900,
            },
        ),
        scene.forged(
            &eve,
            &never,
            2,
            Act::Completed {
                award_no: 1,
                proof: "x".into(),
            },
        ),
        scene.eve.entry(&eve, &never, paid(900, "x")),
    ];
    scene.answer(&since, vec![told, log(&eve, &never, forged)]);
    reconciled(&scene.node);
    assert_eq!(scene.posted(), 0);
    assert_eq!(scene.node.ok(&["status"])["work"]["awaiting_receipt"], 1);

    // What was earned and paid is booked, once, however often it is told.
    let since = scene.restore();
    let mut told = log(&eve, &task, entries(honest));
    told.proof = Some(result.proof.clone());
    scene.answer(&since, vec![told.clone(), told]);
    reconciled(&scene.node);
    assert_eq!(scene.posted(), i64::try_from(result.proof.cost_mc).unwrap());
    assert_eq!(scene.locks(), 0);
}

#[test]
fn nobody_else_hears_what_was_signed() {
    let scene = Scene::new();
    let mut mallory = Stranger::on(&scene._relay.url);
    let since = LogSince {
        since_ms: 0,
        restored_ms: 1,
        cursor: String::new(),
        again: Vec::new(),
        binding: mallory.binding(),
    };
    mallory.say(&key_of(&scene.node), Body::Since(Box::new(since)));
    until("the question to be refused", || {
        (scene.node.ok(&["status"])["dropped"]["log_refused"] == 1).then_some(())
    });
}
