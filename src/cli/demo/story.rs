//! How the demonstration is told and judged: the timeline out of both nodes' journals, the result against a closed form, the two
//! books against each other. Pure: it starts nothing and asks nobody.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::error::CliError;
use crate::cli::render;

/// A result further from the closed form than this is wrong: chance does it once in 16,000 runs.
const STD_ERRORS_MAX: f64 = 4.0;

/// The node that was killed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kill {
    pub(super) pid: u32,
    pub(super) at_ms: u64,
    pub(super) back_ms: u64,
}

/// All that was seen.
pub(super) struct Story {
    pub(super) relay: String,
    pub(super) input: Value,
    /// What `wait` answers.
    pub(super) outcome: Value,
    pub(super) killed: Kill,
    /// The asker's and the worker's.
    pub(super) journals: (Vec<Value>, Vec<Value>),
    /// The asker's and the worker's.
    pub(super) books: (Value, Value),
    pub(super) asker: String,
    pub(super) worker: String,
    /// The worker's Nostr key, hex.
    pub(super) worker_key: String,
    pub(super) wall: Duration,
}

/// One line of the timeline.
struct Event {
    at_ms: u64,
    who: &'static str,
    what: &'static str,
    text: String,
}

impl Story {
    /// Everything that must hold.
    pub(super) fn judge(&self) -> Result<(), CliError> {
        let wrong = |message: String| {
            Err(CliError::hinted(
                "demo_failed",
                message,
                "this is a defect of the program: report it with the output of `--json --keep DIR`",
            ))
        };
        let distance = self.distance();
        if !distance.is_some_and(|distance| distance <= STD_ERRORS_MAX) {
            return wrong(format!(
                "the result is {distance:?} standard errors from the closed form"
            ));
        }
        if self
            .outcome
            .pointer("/verified/quality")
            .and_then(Value::as_f64)
            != Some(1.0)
        {
            return wrong("the result was not verified by recomputation".to_owned());
        }
        if self.resumed_from() == 0 {
            return wrong(
                "the work was begun anew instead of resumed from its checkpoint".to_owned(),
            );
        }
        if !self.mirrored() {
            return wrong("the two books do not mirror each other".to_owned());
        }
        Ok(())
    }

    /// The object of `--json`.
    pub(super) fn object(&self, kept: Option<&Value>) -> Value {
        let part = |pointer: &str| {
            self.outcome
                .pointer(pointer)
                .cloned()
                .unwrap_or(Value::Null)
        };
        let timeline: Vec<Value> = self
            .timeline()
            .iter()
            .map(|event| json!({ "at_ms": event.at_ms, "who": event.who, "what": event.what, "text": event.text }))
            .collect();
        let mut object = json!({
            "task": part("/task"), "relay": self.relay, "input": self.input, "result": part("/result"), "verified": part("/verified"),
            "proof": part("/proof"), "cost_mc": part("/cost_mc"), "timing_ms": part("/timing_ms"),
            "closed_form": { "name": "Black-Scholes", "price": black_scholes(&self.input), "distance_std_errors": self.distance(),
                             "allowed_std_errors": STD_ERRORS_MAX },
            "killed": { "pid": self.killed.pid, "at_ms": self.killed.at_ms, "back_ms": self.killed.back_ms, "resumed_from": self.resumed_from(),
                        "units_total": self.units(), "units_not_recomputed": self.resumed_from(), "units_executed_after": self.executed_after() },
            "timeline": timeline,
            "books": { "mirrored": self.mirrored(), "asker": { "npub": self.asker, "ledger": self.books.0 },
                       "worker": { "npub": self.worker, "ledger": self.books.1 } },
            "wall_ms": u64::try_from(self.wall.as_millis()).unwrap_or(u64::MAX),
        });
        if let (Some(kept), Some(fields)) = (kept, object.as_object_mut()) {
            fields.insert("keep".to_owned(), kept.clone());
        }
        object
    }

    /// The same for people.
    pub(super) fn text(&self, kept: Option<&Value>) -> String {
        let number = |pointer: &str| {
            self.outcome
                .pointer(pointer)
                .and_then(Value::as_f64)
                .unwrap_or(f64::NAN)
        };
        let timeline = self.timeline();
        let first_ms = timeline.first().map_or(0, |event| event.at_ms);
        let rows = timeline.iter().map(|event| {
            let since_ms = event.at_ms.saturating_sub(first_ms);
            vec![
                format!("{}.{:03} s", since_ms / 1_000, since_ms % 1_000),
                event.who.to_owned(),
                event.what.to_owned(),
                event.text.clone(),
            ]
        });
        let (checked, units) = (number("/verified/units_checked"), self.units());
        let mut text = format!(
            "Timeline, from both nodes' journals\n\n{}\n\n\
             killed: pid {}; resumed from unit {} of {units}; units not recomputed: {}\n\
             result: {:.4}, standard error {:.4}\n\
             verified: {checked} of {units} units recomputed by the asker and found equal, quality {}\n\
             closed form (Black-Scholes): {:.4}; the result is {:.1} standard errors from it, {STD_ERRORS_MAX} are allowed\n\
             cost: {} mc; time: {:.1} s in all\n\n",
            render::table(&["AFTER", "WHO", "WHAT", ""], rows),
            self.killed.pid,
            self.resumed_from(),
            self.resumed_from(),
            number("/result/price"),
            number("/result/std_error"),
            number("/verified/quality"),
            black_scholes(&self.input).unwrap_or(f64::NAN),
            self.distance().unwrap_or(f64::NAN),
            number("/cost_mc"),
            self.wall.as_secs_f64(),
        );
        for (name, book) in [("asker", &self.books.0), ("worker", &self.books.1)] {
            text.push_str(&format!("Book of the {name}. {}\n\n", render::ledger(book)));
        }
        text.push_str(
            "The books mirror each other: what one node owes is what the other is owed.\n",
        );
        let commands = kept
            .and_then(|kept| kept.get("commands"))
            .and_then(Value::as_array);
        if let Some(commands) = commands {
            text.push_str("\nBoth homes are kept. To look at them:\n");
            for command in commands.iter().filter_map(Value::as_str) {
                text.push_str(&format!("  {command}\n"));
            }
        }
        text
    }

    fn units(&self) -> u64 {
        self.outcome
            .pointer("/proof/units")
            .and_then(Value::as_u64)
            .unwrap_or(0)
    }

    fn done(&self) -> Option<&Value> {
        self.journals
            .1
            .iter()
            .rev()
            .find(|entry| kind(entry) == "done")
            .and_then(|entry| entry.get("body"))
    }

    fn resumed_from(&self) -> u64 {
        self.done().map_or(0, |body| uint(body, "resumed_from"))
    }

    fn executed_after(&self) -> u64 {
        self.done().map_or(0, |body| uint(body, "executed"))
    }

    /// How far the result is from the closed form, in standard errors.
    fn distance(&self) -> Option<f64> {
        let number = |pointer: &str| self.outcome.pointer(pointer).and_then(Value::as_f64);
        let away = (number("/result/price")? - black_scholes(&self.input)?).abs();
        Some(away / number("/result/std_error")?).filter(|distance| distance.is_finite())
    }

    /// What each says of the other adds up to nothing, and nothing pends.
    fn mirrored(&self) -> bool {
        let posted = |book: &Value, npub: &str| {
            let account = book
                .get("accounts")?
                .as_array()?
                .iter()
                .find(|a| a.get("npub").and_then(Value::as_str) == Some(npub))?;
            let pends = uint(account, "pending_owed_to_us_mc") + uint(account, "pending_we_owe_mc");
            let sum = book.get("sum_mc").and_then(Value::as_i64)?;
            (pends == 0 && sum == 0)
                .then(|| account.get("posted_mc").and_then(Value::as_i64))
                .flatten()
        };
        let cost = self.outcome.get("cost_mc").and_then(Value::as_i64);
        match (
            posted(&self.books.0, &self.worker),
            posted(&self.books.1, &self.asker),
        ) {
            (Some(ours), Some(theirs)) => {
                Some(theirs) == cost && theirs.checked_neg() == Some(ours)
            }
            _ => false,
        }
    }

    /// Both journals by time, with the kill, which no journal can hold, in its place.
    fn timeline(&self) -> Vec<Event> {
        let mut events = vec![
            Event {
                at_ms: self.killed.at_ms,
                who: "worker",
                what: "kill",
                text: format!("SIGKILL to the node, pid {}", self.killed.pid),
            },
            Event {
                at_ms: self.killed.back_ms,
                who: "worker",
                what: "up",
                text: "the node is started again".to_owned(),
            },
        ];
        events.extend(
            self.journals
                .0
                .iter()
                .filter_map(|entry| self.of_asker(entry)),
        );
        events.extend(
            self.journals
                .1
                .iter()
                .filter_map(|entry| self.of_worker(entry)),
        );
        events.sort_by_key(|event| event.at_ms);
        // One line for each run of checkpoints, with the last of them.
        let mut told: Vec<Event> = Vec::new();
        for event in events {
            match told.last_mut() {
                Some(last) if last.what == "checkpoint" && event.what == "checkpoint" => {
                    *last = event
                }
                _ => told.push(event),
            }
        }
        told
    }

    fn of_asker(&self, entry: &Value) -> Option<Event> {
        let body = entry.get("body")?;
        let text = |field: &str| body.get(field).and_then(Value::as_str).unwrap_or_default();
        let (what, text) = match kind(entry) {
            "ad" if text("from") == self.worker_key => (
                "ad",
                "the worker's capability ad came through the pool".to_owned(),
            ),
            "offer" => (
                "offer",
                format!(
                    "{} units offered to the pool {}; the input stays here",
                    uint(body, "units"),
                    text("pool")
                ),
            ),
            "bid" => (
                "bid",
                format!("the worker bids {} mc in all", uint(body, "total_mc")),
            ),
            "award" => (
                "award",
                format!(
                    "award {} to the worker, with the sealed input; {} mc locked",
                    uint(body, "award_no"),
                    uint(body, "cap_mc")
                ),
            ),
            "accept" => (
                "accept",
                format!("the worker has accepted for {} mc", uint(body, "total_mc")),
            ),
            "result" => (
                "result",
                format!("{} unit results are durable here", uint(body, "units")),
            ),
            "checked" => (
                "proof",
                format!(
                    "signature, hashes, root and a sample of units hold: quality {} of 10000",
                    uint(body, "quality_bp")
                ),
            ),
            "receipt" => (
                "receipt",
                format!("{} mc paid, signed", uint(body, "cost_mc")),
            ),
            _ => return None,
        };
        Some(Event {
            at_ms: uint(entry, "at_ms"),
            who: "asker",
            what,
            text,
        })
    }

    fn of_worker(&self, entry: &Value) -> Option<Event> {
        let body = entry.get("body")?;
        let (what, text) = match kind(entry) {
            "lease_granted" if uint(body, "resumed_from") == 0 => {
                ("lease", "the work starts at unit 0".to_owned())
            }
            "lease_granted" => (
                "resume",
                format!(
                    "the work goes on from unit {} of {}",
                    uint(body, "resumed_from"),
                    self.units()
                ),
            ),
            "checkpoint" => (
                "checkpoint",
                format!("{} units are safe", uint(body, "units_done")),
            ),
            "result_sent" => (
                "result",
                format!(
                    "signed proof and result sent; {} units computed since the resume",
                    self.executed_after()
                ),
            ),
            "receipt_received" => ("receipt", format!("{} mc received", uint(body, "cost_mc"))),
            _ => return None,
        };
        Some(Event {
            at_ms: uint(entry, "at_ms"),
            who: "worker",
            what,
            text,
        })
    }
}

fn kind(entry: &Value) -> &str {
    entry
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn uint(body: &Value, field: &str) -> u64 {
    body.get(field).and_then(Value::as_u64).unwrap_or(0)
}

/// The price of a european call without dividends (Black and Scholes 1973, Merton 1973).
fn black_scholes(input: &Value) -> Option<f64> {
    let field = |name: &str| input.get(name).and_then(Value::as_f64);
    let (spot, strike, rate) = (field("spot")?, field("strike")?, field("rate")?);
    let (volatility, years) = (field("volatility")?, field("years")?);
    let spread = volatility * years.sqrt();
    let d1 = ((spot / strike).ln() + (rate + volatility * volatility / 2.0) * years) / spread;
    Some(spot * normal_cdf(d1) - strike * (-rate * years).exp() * normal_cdf(d1 - spread))
}

/// The standard normal distribution function, by its series (Marsaglia 2004): exact to some 1e-15 for |x| below 6.
fn normal_cdf(x: f64) -> f64 {
    let (mut sum, mut term, mut n) = (x, x, 1.0);
    while term.abs() > 1e-17 {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

#[cfg(test)]
mod tests {
    //! The closed form is the textbooks', and a play that went wrong is never told as a success.
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn story() -> Story {
        let entry = |kind: &str, at_ms: u64, body: Value| json!({ "kind": kind, "at_ms": at_ms, "body": body });
        let book = |npub: &str, posted: i64| json!({ "accounts": [{ "npub": npub, "posted_mc": posted, "pending_owed_to_us_mc": 0, "pending_we_owe_mc": 0 }], "sum_mc": 0 });
        Story {
            relay: "ws://127.0.0.1:1".to_owned(),
            input: super::super::option(1),
            outcome: json!({ "task": { "id": "t" }, "result": { "price": 8.05, "std_error": 0.03 }, "verified": { "quality": 1.0, "units_checked": 29 },
                             "proof": { "units": 512 }, "cost_mc": 512 }),
            killed: Kill {
                pid: 7,
                at_ms: 40,
                back_ms: 50,
            },
            journals: (
                vec![
                    entry("offer", 10, json!({ "units": 512, "pool": "legion" })),
                    entry("receipt", 90, json!({ "cost_mc": 512 })),
                ],
                vec![
                    entry("lease_granted", 20, json!({ "resumed_from": 0 })),
                    entry("checkpoint", 30, json!({ "units_done": 16 })),
                    entry("checkpoint", 35, json!({ "units_done": 32 })),
                    entry("lease_granted", 60, json!({ "resumed_from": 32 })),
                    entry("done", 80, json!({ "executed": 480, "resumed_from": 32 })),
                ],
            ),
            books: (book("w", -512), book("a", 512)),
            asker: "a".to_owned(),
            worker: "w".to_owned(),
            worker_key: "00".to_owned(),
            wall: Duration::from_secs(9),
        }
    }

    #[test]
    fn the_closed_form_is_black_scholes() {
        // Hull, Options, Futures and Other Derivatives: S 42, K 40, r 10 %, sigma 20 %, half a year: 4.76.
        let hull =
            json!({ "spot": 42.0, "strike": 40.0, "rate": 0.1, "volatility": 0.2, "years": 0.5 });
        assert!((black_scholes(&hull).unwrap() - 4.759_422).abs() < 1e-6);
        assert!((black_scholes(&super::super::option(1)).unwrap() - 8.021_352).abs() < 1e-6);
    }

    #[test]
    fn the_timeline_is_in_order_with_the_kill_in_its_place() {
        let told = story().timeline();
        let what: Vec<_> = told.iter().map(|event| event.what).collect();
        assert_eq!(
            what,
            [
                "offer",
                "lease",
                "checkpoint",
                "kill",
                "up",
                "resume",
                "receipt"
            ]
        );
        assert!(
            told[2].text.contains("32"),
            "the last checkpoint before the kill: {}",
            told[2].text
        );
        assert!(
            story()
                .text(None)
                .contains("killed: pid 7; resumed from unit 32 of 512; units not recomputed: 32")
        );
    }

    #[test]
    fn each_thing_that_must_hold_is_judged() {
        assert!(story().judge().is_ok());
        let spoil: [fn(&mut Story); 4] = [
            |s| s.outcome["result"]["price"] = json!(8.2),
            |s| s.outcome["verified"]["quality"] = json!(0.0),
            |s| s.journals.1.truncate(3),
            |s| s.books.1["accounts"][0]["posted_mc"] = json!(511),
        ];
        for spoil in spoil {
            let mut story = story();
            spoil(&mut story);
            assert_eq!(story.judge().unwrap_err().code, "demo_failed");
        }
    }
}
