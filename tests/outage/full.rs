//! A relay's room: what was read is deleted there, and a relay that is full delays and loses nothing.

use std::time::Duration;

use legiond::carrier::{CarrierConfig, CarrierEvent, Outcome, Outgoing, RelayCarrier};
use nostr::{EventBuilder, Keys, Kind, Tag};

use crate::support::world::{Pair, Relay, option, until};

const STORE_BYTES: usize = 1024 * 1024;

#[test]
fn a_relay_carries_many_times_what_it_can_hold() {
    let relay = Relay::start_with(&["--max-store-mib", "1"]);
    let pair = Pair::on(&relay.url, |_, _| {});
    // Some 20 kB of wraps each: all of them together would fill the relay twice and more.
    let tasks: Vec<String> = (0..120)
        .map(|n| {
            let seed = format!("seed={n}");
            let args = option(&["--peer", &pair.worker.npub, "--set", &seed]);
            pair.ask(&format!("task {n}"), &args)
        })
        .collect();
    until("every task to be paid for", || {
        (pair.asker.journaled("receipt").len() == tasks.len()).then_some(())
    });
    pair.settle();
}

#[test]
fn a_full_relay_is_named_and_delays_what_it_refuses() {
    let relay = Relay::start_with(&["--max-store-mib", "1"]);
    let pair = Pair::on(&relay.url, |_, _| {});
    let mut stuffing = Stuffing::into(&relay.url);
    stuffing.fill();
    let task = pair.ask("late", &option(&["--peer", &pair.worker.npub]));
    let said = until("the refusal to be named", || {
        let status = pair.asker.ok(&["status"]);
        let relay = status["relays"].as_object()?.values().next()?.clone();
        relay["refuses"].as_str().map(str::to_owned)
    });
    assert!(said.contains("store full"), "{said}");
    let status = pair.asker.ok(&["status"]);
    assert_eq!(status["outbox"]["untaken"], 1);
    stuffing.delete();
    pair.finish(&task);
    let status = pair.asker.ok(&["status"]);
    let relay = status["relays"]
        .as_object()
        .unwrap()
        .values()
        .next()
        .unwrap();
    assert!(relay["refuses"].is_null(), "{relay}");
}

/// Somebody else's events, which leave no room for others.
struct Stuffing {
    runtime: tokio::runtime::Runtime,
    carrier: legiond::carrier::Handle,
    events: tokio::sync::mpsc::Receiver<CarrierEvent>,
    url: String,
    keys: Keys,
    stored: Vec<nostr::EventId>,
}

impl Stuffing {
    fn into(url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (carrier, events) = runtime
            .block_on(async { RelayCarrier::start(CarrierConfig::default(), vec![url.to_owned()]) })
            .unwrap();
        Self {
            runtime,
            carrier,
            events,
            url: url.to_owned(),
            keys: Keys::generate(),
            stored: Vec::new(),
        }
    }

    /// Large events, then ever smaller ones, until not even the smallest message of a node would fit.
    fn fill(&mut self) {
        let mut bytes = 32 * 1024;
        while bytes >= 256 {
            let event = EventBuilder::new(Kind::TextNote, "x".repeat(bytes))
                .tag(Tag::hashtag(format!("{}", self.stored.len())))
                .sign_with_keys(&self.keys)
                .unwrap();
            match self.publish(&event) {
                Outcome::Accepted => self.stored.push(event.id),
                _ => bytes /= 2,
            }
        }
        assert!(self.stored.len() > STORE_BYTES / 40_000);
    }

    fn delete(&mut self) {
        let event = EventBuilder::new(Kind::EventDeletion, "")
            .tags(self.stored.iter().map(|id| Tag::event(*id)))
            .sign_with_keys(&self.keys)
            .unwrap();
        assert_eq!(self.publish(&event), Outcome::Accepted);
    }

    fn publish(&mut self, event: &nostr::Event) -> Outcome {
        let outgoing = Outgoing::from_event(event);
        let (carrier, url) = (self.carrier.clone(), vec![self.url.clone()]);
        self.runtime.block_on(async {
            loop {
                carrier.publish(&outgoing, &url).await.unwrap();
                let outcome = loop {
                    match self.events.recv().await.unwrap() {
                        CarrierEvent::Published {
                            event_id, outcome, ..
                        } if event_id == event.id => {
                            break outcome;
                        }
                        _ => {}
                    }
                };
                // Not connected yet.
                if !matches!(outcome, Outcome::Unknown(_)) {
                    return outcome;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    }
}
