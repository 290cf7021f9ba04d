//! Delegation across hops: A asks B, B's skill asks C, and three books agree in the end, whoever is killed meanwhile.

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
