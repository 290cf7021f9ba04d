//! Delegation across hops: A asks B, B's skill asks C, and three books agree in the end, whoever is killed meanwhile.

use legiond::store::{Order, Rows, Span, Store, StoreOptions, Table};
use serde_json::{Value, json};

use crate::support::world::{Node, Relay, gone, until};

/// Three nodes on one relay, each trusting the next: A knows B, B knows C. The names are their places in the chain.
struct Trio {
    _dir: tempfile::TempDir,
    _relay: Relay,
    a: Node,
    b: Node,
    c: Node,
}

impl Trio {
    /// B may spend `budget_mc` on the hops of a job; `prepare` may configure the homes first.
    fn start(budget_mc: u64, prepare: impl FnOnce(&mut Node, &mut Node, &mut Node)) -> Self {
        let relay = Relay::start();
        let dir = tempfile::tempdir().unwrap();
        let node = |name| Node::init(dir.path(), name, &[&relay.url]);
        let (mut a, mut b, mut c) = (node("a"), node("b"), node("c"));
        for node in [&mut a, &mut b, &mut c] {
            node.env("LEGION_ECHO", "1");
        }
        let budget = budget_mc.to_string();
        b.configure("market.skill_hop_budget_mc", "relay-ask", &budget);
        prepare(&mut a, &mut b, &mut c);
        for node in [&mut a, &mut b, &mut c] {
            node.up();
        }
        for (one, other) in [(&a, &b), (&b, &a), (&b, &c), (&c, &b)] {
            one.ok(&["peers", "trust", &other.npub, "--tier", "trusted"]);
        }
        Self {
            _dir: dir,
            _relay: relay,
            a,
            b,
            c,
        }
    }

    /// A asks B for `input` of `relay-ask`, and does not wait.
    fn ask(&self, input: &Value, extra: &[&str]) -> String {
        let file = self.a.home.join("input.json");
        std::fs::write(&file, input.to_string()).unwrap();
        let mut args = vec!["ask", "relay-ask", "--input", file.to_str().unwrap()];
        args.extend(["--peer", &self.b.npub, "--detach"]);
        args.extend(extra);
        let asked = self.a.ok(&args);
        asked["task"]["id"].as_str().unwrap().to_owned()
    }

    /// The task of B that is a part of this one of A, once B has made it.
    fn hop(&self, task: &str) -> String {
        until("the part to be asked for", || {
            let told = self.b.journaled("delegated");
            let told = told.into_iter().rfind(|e| e["task"] == task)?;
            Some(told["body"]["hop"].as_str().unwrap().to_owned())
        })
    }

    /// The end of a task of A.
    fn end(&self, task: &str) -> Value {
        until("the task to end", || {
            let found = self.a.ok(&["task", task]);
            let state = found["task"]["status"]["state"].as_str().unwrap();
            (!matches!(state, "submitted" | "working")).then_some(())
        });
        let output = self.a.run(&["wait", task]);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Completed: one result, and what A paid is what the proof says.
    fn completed(&self, task: &str) -> Value {
        let done = self.end(task);
        assert_eq!(done["task"]["status"]["state"], "completed", "{done}");
        self.settle();
        for kind in ["result", "receipt", "ended"] {
            assert_eq!(self.a.count(task, kind), 1, "{kind} of {task}");
        }
        assert_eq!(self.b.count(task, "result_sent"), 1);
        assert_eq!(done["proof"]["cost_mc"], done["cost_mc"]);
        done
    }

    /// What B owes C for its part is what A owes B, and it is not nothing.
    fn bears_nothing(&self) {
        let (earned, spent) = (posted(&self.b, &self.a), posted(&self.c, &self.b));
        assert_eq!(earned, spent);
        assert!(spent.is_some_and(|mc| mc > 0), "{spent:?}");
    }

    /// Waits until the books mirror each other pair by pair, and nothing pends anywhere.
    fn settle(&self) {
        until("three books that agree, with nothing pending", || {
            for (one, other) in [(&self.a, &self.b), (&self.b, &self.c)] {
                let (ours, theirs) = (posted(one, other)?, posted(other, one)?);
                if ours != -theirs {
                    return None;
                }
            }
            let rest = [&self.a, &self.b, &self.c].into_iter().all(at_rest);
            rest.then_some(())
        });
    }
}

impl Drop for Trio {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in [&self.a, &self.b, &self.c] {
                for what in ["status", "ledger", "tasks"] {
                    let shown = node.run(&[what]);
                    eprintln!("{what}: {}", String::from_utf8_lossy(&shown.stdout));
                }
                eprintln!("stderr: {}", node.stderr());
            }
        }
    }
}

/// What `other` owes `one`, by the book of `one`; none while something pends between them.
fn posted(one: &Node, other: &Node) -> Option<i64> {
    let book = one.ok(&["ledger"]);
    assert_eq!(book["sum_mc"], 0);
    let accounts = book["accounts"].as_array().unwrap();
    let Some(account) = accounts.iter().find(|x| x["npub"] == other.npub.as_str()) else {
        return Some(0);
    };
    let pends =
        account["pending_owed_to_us_mc"].as_u64()? + account["pending_we_owe_mc"].as_u64()?;
    (pends == 0).then(|| account["posted_mc"].as_i64().unwrap())
}

fn at_rest(node: &Node) -> bool {
    let status = node.ok(&["status"]);
    let mut work = status["work"].as_object().unwrap().values();
    status["locks"] == 0
        && status["tasks"]["open"] == 0
        && status["tasks"]["settling"] == 0
        && status["outbox"]["waiting"] == 0
        && work.all(|n| n == 0)
}

fn option(paths: u64) -> Value {
    json!({"kind": "european", "side": "call", "spot": 100, "strike": 105, "rate": 0.05, "volatility": 0.2, "years": 1,
           "steps": 64, "paths": paths})
}

/// A job for `relay-ask`: B has somebody in the pool do this.
fn relayed(skill: &str, input: Value) -> Value {
    json!({"skill": skill, "input": input})
}

#[test]
fn a_skill_asks_somebody_else_and_the_price_says_so() {
    let trio = Trio::start(100, |_, _, _| {});
    let task = trio.ask(&relayed("simulation", option(20_000)), &[]);
    let done = trio.completed(&task);
    let price = &done["result"]["answers"][0]["price"];
    assert!((price.as_f64().unwrap() - 8.02).abs() < 1.0, "{price}");
    let hop = trio.hop(&task);
    let part = trio.b.ok(&["wait", &hop]);
    let spent = part["cost_mc"].as_u64().unwrap();
    assert!(spent > 0);
    assert_eq!(done["cost_mc"], spent + 1, "a unit of B, and what C took");
    assert_eq!(done["proof"]["hops"][0]["cost_mc"], spent);
    assert_eq!(part["executor"]["npub"], trio.c.npub.as_str());
    assert_eq!(done["verified"]["cost"], true);
    assert_eq!(posted(&trio.a, &trio.b), Some(-(spent as i64) - 1));
    assert_eq!(posted(&trio.b, &trio.c), Some(-(spent as i64)));
}

/// The owner's own programs delegate as well: one in Python has another one, on another node, do a part.
#[test]
fn a_program_of_the_owner_s_asks_somebody_else() {
    use crate::own_skill::{fixture, own};

    let trio = Trio::start(0, |_, b, c| {
        own(b, "proclaim", &fixture("proclaim.py"));
        own(c, "shout", &fixture("shout.py"));
        b.configure("market.skill_hop_budget_mc", "proclaim", "10");
        c.configure("market.skill_unit_price_mc", "shout", "7");
    });
    let proclaim = |peer: &str| {
        let text = "text:=\"who goes there\"".to_owned();
        let (peer, b) = (format!("peer:=\"{peer}\""), trio.b.npub.as_str());
        let asked = [
            "ask", "proclaim", "--peer", b, "--set", &text, &peer, "--detach",
        ];
        let asked = trio.a.ok(&asked);
        asked["task"]["id"].as_str().unwrap().to_owned()
    };
    let done = trio.completed(&proclaim(&trio.c.npub));
    assert_eq!(
        done["result"],
        json!({"proclaimed": "Hear: WHO GOES THERE"})
    );
    assert_eq!(done["cost_mc"], 8, "a unit of B, and C's 7");
    assert_eq!(posted(&trio.b, &trio.c), Some(-7));
    // A has no such skill: nobody does it, and the program says what that means for its job.
    let failed = trio.end(&proclaim(&trio.a.npub));
    assert_eq!(failed["error"]["code"], "nobody_shouts", "{failed}");
    trio.settle();
}

/// B is killed while C works, and C's answer waits for it; killed again with the answer there.
#[test]
fn b_is_killed_while_it_waits() {
    let mut trio = Trio::start(900, |_, _, _| {});
    let task = trio.ask(&relayed("simulation", option(1_000_000)), &[]);
    let hop = trio.hop(&task);
    until("C to work", || {
        (trio.c.count(&hop, "accepted") == 1).then_some(())
    });
    let workers = trio.b.workers();
    trio.b.kill();
    gone(&workers);
    until("C to be done", || {
        (trio.c.count(&hop, "result_sent") == 1).then_some(())
    });
    trio.b.up();
    let done = trio.completed(&task);
    assert_eq!(done["result"]["answers"].as_array().unwrap().len(), 1);
    assert_eq!(trio.b.count(&task, "delegated"), 1);
    assert_eq!(trio.b.count(&task, "answered"), 1);
    assert_eq!(trio.b.count(&hop, "award"), 1);
}

/// B dies at every point of the two batches that begin and end the wait: no second part, one result.
fn b_is_killed_at(points: &[&str], kinds: &[&str]) {
    let mut trio = Trio::start(100, |_, _, _| {});
    for point in points {
        for kind in kinds {
            let at = format!("{point}:{kind}");
            trio.b.kill();
            trio.b.env("LEGION_CRASH_AT", &at);
            trio.b.try_up();
            let task = trio.ask(&relayed("simulation", option(20_000)), &[]);
            until(&format!("the end at {at}"), || trio.b.ended().then_some(()));
            trio.b.env_remove("LEGION_CRASH_AT");
            trio.b.up();
            eprintln!("{task} went through {at}");
            trio.completed(&task);
            let part = trio.hop(&task);
            for kind in ["delegated", "answered"] {
                assert_eq!(trio.b.count(&task, kind), 1, "{kind} at {at}");
            }
            for kind in ["award", "receipt"] {
                assert_eq!(trio.b.count(&part, kind), 1, "{kind} at {at}");
            }
            assert_eq!(trio.c.count(&part, "accepted"), 1, "{at}");
        }
    }
}

#[test]
fn b_is_killed_before_the_wait_is_durable() {
    b_is_killed_at(&["received"], &["labor_delegated"]);
    b_is_killed_at(&["handled"], &["delegated", "answered"]);
}

#[test]
fn b_is_killed_before_anything_of_it_has_left() {
    b_is_killed_at(&["committed", "dispatched"], &["delegated", "answered"]);
}

#[test]
fn b_is_killed_while_it_leaves() {
    b_is_killed_at(&["sealed", "published"], &["delegated"]);
}

/// The reason of A's task that B's skill could not do, which holds the code of the part.
fn refused(trio: &Trio, input: &Value, extra: &[&str]) -> (String, String) {
    let task = trio.ask(input, extra);
    let told = trio.end(&task);
    trio.settle();
    assert_eq!(trio.a.count(&task, "receipt"), 0, "nothing is paid");
    let error = &told["error"];
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (text("code"), text("message"))
}

#[test]
fn what_cannot_be_handed_on_is_refused_by_code() {
    let trio = Trio::start(0, |_, b, c| {
        b.configure("limits", "delegation_calls", "3");
        c.configure("limits", "delegation_hops", "1");
        c.configure("market.skill_unit_price_mc", "relay-ask", "0");
    });
    let echo = json!({"text": "abc"});
    let to = |npub: &str, skill: &str, input: &Value| json!({"skill": skill, "input": input, "peer": npub});
    let (a, b, c) = (&trio.a.npub, &trio.b.npub, &trio.c.npub);
    let through_c = to(c, "relay-ask", &to(b, "echo", &echo));
    let forever = json!({"skill": "sing", "input": {}, "times": 1_000_000, "forgiving": true});
    for (what, input, code) in [
        ("back to A", to(a, "echo", &echo), "delegation_cycle"),
        ("to itself", to(b, "echo", &echo), "delegation_cycle"),
        ("through C back to B", through_c, "delegation_too_deep"),
        ("C wants money", to(c, "echo", &echo), "price_too_low"),
        ("no such skill", relayed("sing", json!({})), "skill_unknown"),
        (
            "unknown to C too",
            to(c, "sing", &json!({})),
            "skill_unknown",
        ),
        (
            "a bad input",
            to(c, "simulation", &json!({"x": 1})),
            "input_invalid",
        ),
        ("no such peer", to("npub1x", "echo", &echo), "peer_invalid"),
    ] {
        let (told, message) = refused(&trio, &input, &[]);
        assert_eq!(told, "hop_failed", "{what}: {message}");
        assert!(message.contains(&format!("{code}: ")), "{what}: {message}");
    }
    let (told, message) = refused(&trio, &forever, &[]);
    assert_eq!(told, "delegation_limit", "{message}");
    // Nobody in the pool does it for nothing: the skill hears why.
    let (told, message) = refused(&trio, &relayed("simulation", option(20_000)), &[]);
    assert_eq!(told, "hop_failed");
    assert!(
        message.contains("no_provider") && message.contains("price_too_low"),
        "{message}"
    );
}

/// With enough links allowed it is the cycle that is seen, two hops away.
#[test]
fn a_cycle_over_two_hops_is_seen_by_the_one_who_waits() {
    let trio = Trio::start(0, |_, _, c| {
        c.configure("market.skill_unit_price_mc", "relay-ask", "0");
    });
    let echo = json!({"skill": "echo", "input": {"text": "abc"}, "peer": trio.a.npub});
    let around = json!({"skill": "relay-ask", "input": echo, "peer": trio.c.npub});
    let (told, message) = refused(&trio, &around, &[]);
    assert_eq!(told, "hop_failed");
    assert!(message.contains("delegation_cycle"), "{message}");
    assert_eq!(trio.a.journaled("award_declined").len(), 1);
    // Whoever asked for a job is not even asked for a part of it.
    let echo = json!({"skill": "echo", "input": {"text": "abc"}, "peer": trio.b.npub});
    let around = json!({"skill": "relay-ask", "input": echo, "peer": trio.c.npub});
    let (told, message) = refused(&trio, &around, &[]);
    assert_eq!(told, "hop_failed");
    assert!(message.contains("delegation_cycle"), "{message}");
    assert!(trio.b.journaled("award_declined").is_empty());
}

#[test]
fn a_price_with_hops_above_the_limit_is_refused_before_anything_is_done() {
    let trio = Trio::start(100, |_, _, _| {});
    let input = relayed("simulation", option(20_000));
    let (told, message) = refused(&trio, &input, &["--max-price", "100"]);
    assert_eq!(told, "price_too_low", "{message}");
    assert!(
        message.contains("100 mc for what they delegate"),
        "{message}"
    );
    assert!(trio.b.journaled("delegated").is_empty());
    let task = trio.ask(&input, &["--max-price", "101"]);
    trio.completed(&task);
}

#[test]
fn a_cancel_reaches_the_last_of_the_chain() {
    let trio = Trio::start(900, |_, _, _| {});
    let task = trio.ask(&relayed("simulation", option(4_000_000)), &[]);
    let part = trio.hop(&task);
    until("C to work", || {
        (trio.c.count(&part, "checkpoint") > 0).then_some(())
    });
    let why = trio.a.ok(&["why", &task]);
    assert_eq!(why["reason"]["code"], "waiting: hop", "{why}");
    trio.a.ok(&["cancel", &task]);
    trio.settle();
    assert_eq!(trio.c.count(&part, "lease_revoked"), 1);
    let shown = trio.b.ok(&["task", &part]);
    assert_eq!(shown["task"]["status"]["state"], "canceled");
    assert_eq!(trio.b.count(&task, "answered"), 0);
    trio.bears_nothing();
}

/// The cancel finds C away, and B is killed while it waits to hear what the part has cost.
#[test]
fn b_is_killed_while_it_waits_for_the_cost_of_a_canceled_part() {
    let mut trio = Trio::start(900, |_, _, _| {});
    let task = trio.ask(&relayed("simulation", option(4_000_000)), &[]);
    let part = trio.hop(&task);
    until("C to work", || {
        (trio.c.count(&part, "checkpoint") > 0).then_some(())
    });
    trio.c.kill();
    trio.a.ok(&["cancel", &task]);
    until("B to wait for the cost", || {
        let shown = trio.b.ok(&["task", &task]);
        let code = shown["task"]["status"]["metadata"]
            .as_object()?
            .values()
            .next()?["code"]
            .clone();
        (code == "closing").then_some(())
    });
    trio.b.kill();
    trio.b.up();
    trio.c.up();
    trio.settle();
    assert_eq!(trio.a.count(&task, "stopped"), 1);
    trio.bears_nothing();
}

/// B's owner takes the machine while B waits: the answer waits for him too.
#[test]
fn the_owner_s_pause_loses_nothing() {
    let trio = Trio::start(900, |_, _, _| {});
    let task = trio.ask(&relayed("simulation", option(300_000)), &[]);
    trio.hop(&task);
    trio.b.ok(&["pause"]);
    until("the answer", || {
        (trio.b.count(&task, "answered") == 1).then_some(())
    });
    let status = trio.b.ok(&["status"]);
    assert_eq!(status["work"]["hibernating"], 1, "{status}");
    trio.b.ok(&["resume"]);
    trio.completed(&task);
}

/// Several parts one after another, each with its own price.
#[test]
fn a_job_delegates_more_than_once() {
    let mut trio = Trio::start(200, |_, _, _| {});
    let input = json!({"skill": "simulation", "input": option(20_000), "times": 3});
    let task = trio.ask(&input, &[]);
    let done = trio.completed(&task);
    assert_eq!(done["result"]["answers"].as_array().unwrap().len(), 3);
    let hops = done["proof"]["hops"].as_array().unwrap();
    assert_eq!(hops.len(), 3);
    let spent: u64 = hops.iter().map(|h| h["cost_mc"].as_u64().unwrap()).sum();
    assert_eq!(done["cost_mc"], spent + 1);
    // What came back for the work goes with it; the parts are tasks of B's like any other.
    assert!(trio.b.terminate().success());
    let store = Store::open(trio.b.home.join("store.redb"), StoreOptions::default()).unwrap();
    let view = store.view().unwrap();
    let rows = view
        .keys(Table::Payloads, Span::all(), 1_000, Order::Ascending)
        .unwrap();
    let named = |name: &'static str| {
        let held = |key: &&Vec<u8>| key.windows(name.len()).any(|word| word == name.as_bytes());
        rows.iter().filter(held).count()
    };
    assert_eq!((named("answer"), named("result")), (0, 3));
}

/// Input and result of a part are as large as any: they travel beside their messages over both hops.
#[test]
fn a_large_part_travels_over_both_hops() {
    let trio = Trio::start(100, |_, _, _| {});
    let text: String = (0..100_000u64)
        .map(|n| char::from(b'a' + (n * n % 26) as u8))
        .collect();
    let task = trio.ask(&relayed("echo", json!({"text": text})), &[]);
    let done = trio.completed(&task);
    let back: String = text.chars().rev().collect();
    assert!(done["result"]["answers"][0]["text"] == back.as_str());
    for (node, payloads) in [(&trio.b, 2), (&trio.c, 1)] {
        let came = &node.ok(&["status"])["transfers"]["chunks_new"];
        assert!(came.as_u64().unwrap() >= payloads * 5, "{came}");
    }
}
