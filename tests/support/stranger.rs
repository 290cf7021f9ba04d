//! A scripted peer in the test process: it speaks to a real relay with the node's own library and says whatever the script
//! wants, valid or broken at any layer, and hears what comes back.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use legiond::identity::conversation::{Conversations, conversation_key, encrypt};
use legiond::identity::pool::{PoolSecret, utc_day};
use legiond::identity::sealing::{self, Delivery};
use legiond::identity::{Identity, Lct, Mnemonic, parse_npub};
use legiond::wire::binding::Binding;
use legiond::wire::canonical;
use legiond::wire::entry::{Act, Entry};
use legiond::wire::market::{Accept, Ad, AdSkill, Award, Bid, Offer, commitment};
use legiond::wire::merkle::{ResultContext, result_root};
use legiond::wire::message::{Ack, Body, Message, News, Receipt, Refusal, Update, WorkResult};
use legiond::wire::proof::{Evidence, Proof};
use legiond::wire::verify::{Inbox, Keyring, verify};
use nostr::{
    Event, EventBuilder, EventId, JsonUtil, Keys, Kind, PublicKey, Tag, Timestamp, UnsignedEvent,
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message as Frame, WebSocket};

use super::world::{Node, PATIENCE};

/// Unix time, milliseconds.
pub(crate) fn now_ms() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(wall.as_millis()).unwrap()
}

/// Unix time, seconds.
pub(crate) fn now_s() -> u64 {
    now_ms() / 1000
}

/// A fresh task id.
pub(crate) fn task_id() -> String {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).unwrap();
    hex::encode(bytes)
}

/// The hex key of a node.
pub(crate) fn key_of(node: &Node) -> String {
    parse_npub(&node.npub).unwrap()
}

/// The pool `legion` today.
pub(crate) fn pool_key() -> Keys {
    let pool = PoolSecret::open("legion").unwrap();
    pool.day_keys(utc_day(now_s())).unwrap()
}

/// NIP-13 work that pools ask for by default.
pub(crate) const POOL_BITS: u8 = 12;

/// A job of one unit, complete.
pub(crate) fn tiny() -> Value {
    sized(2, 7)
}

/// A job of so many paths.
pub(crate) fn sized(paths: u64, seed: u64) -> Value {
    let input = json!({"kind": "european", "side": "call", "spot": 100.0, "strike": 105.0, "rate": 0.05, "volatility": 0.2,
        "years": 1.0, "paths": paths, "seed": seed.to_string()});
    legiond::labor::skills::complete_input("simulation", &input, seed).unwrap()
}

/// What was heard.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) rumor: EventId,
    pub(crate) body: Body,
}

/// A peer whose every word is the test's.
pub(crate) struct Stranger {
    pub(crate) identity: Identity,
    keyring: Keyring,
    line: Option<WebSocket<TcpStream>>,
    heard: VecDeque<Heard>,
    opened: HashSet<EventId>,
    answers: HashMap<EventId, (bool, String)>,
    chains: BTreeMap<(String, String), (u32, String)>,
    subs: u32,
    /// Whether it acknowledges what it hears, as an honest node does.
    pub(crate) polite: bool,
}

impl Stranger {
    /// Somebody new, on no relay.
    pub(crate) fn offline() -> Self {
        let words = Mnemonic::generate().unwrap();
        let identity =
            Identity::derive(&words, Lct::new("eve", "cave", "worker").unwrap(), 0).unwrap();
        let keyring = Keyring::new(identity.nostr().clone(), Arc::new(Conversations::new(64)));
        Self {
            identity,
            keyring,
            line: None,
            heard: VecDeque::new(),
            opened: HashSet::new(),
            answers: HashMap::new(),
            chains: BTreeMap::new(),
            subs: 0,
            polite: true,
        }
    }

    /// Somebody new, who reads its own inbox on this relay.
    pub(crate) fn on(url: &str) -> Self {
        let mut this = Self::offline();
        let stream = TcpStream::connect(url.trim_start_matches("ws://")).unwrap();
        let (line, _) = tungstenite::client(url, stream).unwrap();
        line.get_ref()
            .set_read_timeout(Some(Duration::from_millis(10)))
            .unwrap();
        line.get_ref().set_nodelay(true).unwrap();
        this.line = Some(line);
        let own = this.identity.nostr().public_key();
        this.subscribe(&own);
        this
    }

    /// Reads the pool too.
    pub(crate) fn join_pool(&mut self) {
        let keys = pool_key();
        let inbox = Inbox::Pool {
            name: "legion".into(),
            epoch: 0,
            utc_day: utc_day(now_s()),
        };
        let public = keys.public_key();
        self.keyring.insert(keys, inbox, 0);
        self.subscribe(&public);
    }

    /// Reads a one-time key for answers to an offer of ours.
    pub(crate) fn reply_key(&mut self, task: &str) -> Keys {
        let keys = self.identity.reply_key(task).unwrap();
        self.keyring
            .insert(keys.clone(), Inbox::Task(task.to_owned()), 0);
        self.subscribe(&keys.public_key());
        keys
    }

    fn subscribe(&mut self, key: &PublicKey) {
        self.subs += 1;
        let filter = json!({"kinds": [1059, 21059], "#p": [key.to_hex()]});
        self.write(json!(["REQ", format!("s{}", self.subs), filter]).to_string());
    }

    fn write(&mut self, text: String) {
        let line = self.line.as_mut().expect("a stranger without a relay");
        line.send(Frame::text(text)).unwrap();
    }

    /// Our Nostr key, hex.
    pub(crate) fn hex(&self) -> String {
        self.identity.public().nostr.clone()
    }

    /// Our Nostr key, bech32.
    pub(crate) fn npub(&self) -> String {
        self.identity.public().npub.clone()
    }

    /// Our keys, bound to each other for a year.
    pub(crate) fn binding(&self) -> Binding {
        Binding::sign(&self.identity, now_s() + 365 * 86_400, None).unwrap()
    }

    // ---- layers, each to be broken on its own -----------------------------------------------------------------------

    /// A rumor to a key, with the tags of an honest one; its id is set.
    pub(crate) fn rumor(&self, to: &PublicKey, content: impl Into<String>) -> UnsignedEvent {
        self.rumor_at(to, content, now_s(), now_s() + 600)
    }

    /// The same with its times, Unix seconds.
    pub(crate) fn rumor_at(
        &self,
        to: &PublicKey,
        content: impl Into<String>,
        at_s: u64,
        until_s: u64,
    ) -> UnsignedEvent {
        let tags = [
            Tag::public_key(*to),
            Tag::expiration(Timestamp::from_secs(until_s)),
        ];
        let author = self.identity.nostr().public_key();
        let kind = Kind::from_u16(sealing::KIND_MESSAGE);
        let mut rumor = UnsignedEvent::new(
            author,
            Timestamp::from_secs(at_s),
            kind,
            tags,
            content.into(),
        );
        rumor.ensure_id();
        rumor
    }

    /// A seal of any kind around any text, by any author, for any reader.
    pub(crate) fn seal_text(
        author: &Keys,
        kind: u16,
        tags: Vec<Tag>,
        reader: &PublicKey,
        text: &str,
    ) -> Event {
        let key = conversation_key(author, reader).unwrap();
        let content = encrypt(&key, text.as_bytes()).unwrap();
        EventBuilder::new(Kind::from_u16(kind), content)
            .tags(tags)
            .sign_with_keys(author)
            .unwrap()
    }

    /// An honest seal.
    pub(crate) fn seal(&self, reader: &PublicKey, rumor: &UnsignedEvent) -> Event {
        Self::seal_text(
            self.identity.nostr(),
            sealing::KIND_SEAL,
            Vec::new(),
            reader,
            &rumor.as_json(),
        )
    }

    /// An honest wrap around any event.
    pub(crate) fn wrap(seal: &Event, reader: &PublicKey, delivery: Delivery, bits: u8) -> Event {
        sealing::wrap(seal, reader, delivery, bits, Some(now_s() + 600), now_s()).unwrap()
    }

    /// An honest wrap around any text.
    pub(crate) fn wrap_text(text: &str, reader: &PublicKey) -> Event {
        let tags = vec![Tag::public_key(*reader)];
        Self::seal_text(&Keys::generate(), sealing::KIND_WRAP, tags, reader, text)
    }

    /// The JSON-RPC object of a message.
    pub(crate) fn object(to: &str, body: Body) -> Value {
        Message {
            to: to.to_owned(),
            body,
        }
        .to_value()
        .unwrap()
    }

    // ---- saying -----------------------------------------------------------------------------------------------------

    /// Gives an event to the relay, which must take it.
    pub(crate) fn publish(&mut self, event: &Event) {
        let (taken, why) = self.offer_event(event);
        assert!(taken, "the relay refused: {why}");
    }

    /// Gives an event to the relay and hears its answer.
    pub(crate) fn offer_event(&mut self, event: &Event) -> (bool, String) {
        self.write(format!("[\"EVENT\",{}]", event.as_json()));
        let began = Instant::now();
        loop {
            if let Some(answer) = self.answers.remove(&event.id) {
                return answer;
            }
            assert!(began.elapsed() < PATIENCE, "the relay does not answer");
            self.listen();
        }
    }

    /// Sends any content to a node's own inbox; the rumor's id.
    pub(crate) fn say_text(&mut self, to: &str, content: impl Into<String>) -> EventId {
        let to = PublicKey::from_hex(to).unwrap();
        let rumor = self.rumor(&to, content);
        let wrap = Self::wrap(&self.seal(&to, &rumor), &to, Delivery::Stored, 0);
        self.publish(&wrap);
        rumor.id.unwrap()
    }

    /// Sends any JSON to a node's own inbox.
    pub(crate) fn say_value(&mut self, to: &str, value: &Value) -> EventId {
        self.say_text(to, value.to_string())
    }

    /// Sends a message to a node's own inbox, or to another key of it.
    pub(crate) fn say(&mut self, to: &str, body: Body) -> EventId {
        let object = Self::object(to, body);
        self.say_value(to, &object)
    }

    /// Sends a message in an ephemeral wrap.
    pub(crate) fn whisper(&mut self, to: &str, body: Body) {
        let object = Self::object(to, body);
        let key = PublicKey::from_hex(to).unwrap();
        let rumor = self.rumor(&key, object.to_string());
        let wrap = Self::wrap(&self.seal(&key, &rumor), &key, Delivery::Ephemeral, 0);
        self.publish(&wrap);
    }

    /// Announces something in the pool; gives the seal.
    pub(crate) fn announce(&mut self, body: Body) -> Event {
        let pool = pool_key().public_key();
        let rumor = self.rumor(&pool, Self::object("pool:legion", body).to_string());
        let seal = self.seal(&pool, &rumor);
        self.publish(&Self::wrap(&seal, &pool, Delivery::Stored, POOL_BITS));
        seal
    }

    /// Acknowledges a rumor.
    pub(crate) fn ack(&mut self, to: &str, rumor: &EventId) {
        self.whisper(
            to,
            Body::Ack(Ack {
                rumors: vec![rumor.to_hex()],
            }),
        );
    }

    // ---- hearing ----------------------------------------------------------------------------------------------------

    /// Reads what is there.
    fn listen(&mut self) {
        let line = self.line.as_mut().expect("a stranger without a relay");
        match line.read() {
            Ok(Frame::Text(text)) => self.on_frame(text.as_str()),
            Ok(_) => {}
            Err(tungstenite::Error::Io(e))
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            Err(e) => panic!("the relay is gone: {e}"),
        }
    }

    fn on_frame(&mut self, text: &str) {
        let frame: Vec<Value> = serde_json::from_str(text).unwrap();
        match frame.first().and_then(Value::as_str) {
            Some("OK") => {
                let id = EventId::from_hex(frame[1].as_str().unwrap()).unwrap();
                let answer = (
                    frame[2].as_bool().unwrap(),
                    frame[3].as_str().unwrap_or_default().to_owned(),
                );
                self.answers.insert(id, answer);
            }
            Some("EVENT") => {
                let event = Event::from_json(frame[2].to_string()).unwrap();
                if self.opened.insert(event.id) {
                    self.open(&event);
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, event: &Event) {
        let Ok(verified) = verify(event, &self.keyring, now_s()) else {
            return;
        };
        if verified.author == self.identity.nostr().public_key() {
            return;
        }
        let from = verified.author.to_hex();
        let messages = Message::parse(&verified.content, |_| true).unwrap();
        let mut substance = false;
        for message in messages {
            match message.unwrap().body {
                Body::Ack(_) => {}
                body => {
                    substance = true;
                    self.heard.push_back(Heard {
                        rumor: verified.rumor_id,
                        body,
                    });
                }
            }
        }
        if substance && self.polite && !verified.ephemeral && verified.inbox == Inbox::Own {
            let ack = Self::object(
                &from,
                Body::Ack(Ack {
                    rumors: vec![verified.rumor_id.to_hex()],
                }),
            );
            let key = verified.author;
            let rumor = self.rumor(&key, ack.to_string());
            let wrap = Self::wrap(&self.seal(&key, &rumor), &key, Delivery::Ephemeral, 0);
            self.write(format!("[\"EVENT\",{}]", wrap.as_json()));
        }
    }

    /// Waits for a message that `wanted` takes; others stay for later.
    pub(crate) fn hear<T>(&mut self, what: &str, wanted: impl Fn(&Heard) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            for at in 0..self.heard.len() {
                if let Some(found) = wanted(&self.heard[at]) {
                    self.heard.remove(at);
                    return found;
                }
            }
            assert!(
                began.elapsed() < PATIENCE,
                "waited in vain for {what}; heard: {:?}",
                self.heard
            );
            self.listen();
        }
    }

    /// Waits for the award (or request) of some task.
    pub(crate) fn hear_award(&mut self) -> Award {
        self.hear("an award", |h| match &h.body {
            Body::Award(a) | Body::Request(a) => Some((**a).clone()),
            _ => None,
        })
    }

    /// Waits for the code with which an award of this task is declined.
    pub(crate) fn hear_decline(&mut self, task: &str) -> String {
        self.hear("a decline", |h| match &h.body {
            Body::Decline(d) if d.task == task => Some(d.code.clone()),
            _ => None,
        })
    }

    /// Waits for the result of this task.
    pub(crate) fn hear_result(&mut self, task: &str) -> WorkResult {
        self.hear("a result", |h| match &h.body {
            Body::Update(u) if u.task == task => match &u.news {
                News::Completed(result) => Some((**result).clone()),
                _ => None,
            },
            _ => None,
        })
    }

    // ---- signed statements ------------------------------------------------------------------------------------------

    /// Our next entry in the history of `requester`'s task, signed.
    pub(crate) fn entry(&mut self, requester: &str, task: &str, what: Act) -> Entry {
        let place = (requester.to_owned(), task.to_owned());
        let (seq, prev) = self.chains.get(&place).cloned().unwrap_or_default();
        let mut entry = Entry {
            task: task.to_owned(),
            requester: requester.to_owned(),
            author: self.hex(),
            key: self.identity.public().ed25519.clone(),
            seq: seq + 1,
            hlc: now_ms() * 1024,
            prev,
            heads: Vec::new(),
            what,
            sig: String::new(),
        };
        self.sign(&mut entry);
        self.chains
            .insert(place, (entry.seq, entry.hash().unwrap()));
        entry
    }

    /// Signs an entry as it stands.
    pub(crate) fn sign(&self, entry: &mut Entry) {
        entry.sig = hex::encode(self.identity.sign_proof(&entry.signing_bytes().unwrap()));
    }

    /// An award of ours to a node, changed before it is signed.
    pub(crate) fn award(
        &mut self,
        to: &str,
        task: &str,
        input: Value,
        change: impl FnOnce(&mut Award),
    ) -> Award {
        let salt = hex::encode([7u8; 32]);
        let units = legiond::labor::skills::plan("simulation", &input).map_or(1, |p| p.units);
        let mut award = Award {
            hops_mc: 0,
            via: Vec::new(),
            task: task.to_owned(),
            context: task_id(),
            award_no: 1,
            skill: "simulation".into(),
            commitment: commitment(&input, &salt).unwrap_or_default(),
            input,
            detached: None,
            salt,
            units,
            unit_price_mc: None,
            max_price_mc: 1_000,
            accept_by_ms: now_ms() + 60_000,
            result_by_ms: now_ms() + 120_000,
            settle_by_ms: now_ms() + 600_000,
            lease_ttl_ms: 30_000,
            max_hibernate_s: 60,
            on_cancel: "units".into(),
            verification: "sampled".into(),
            lct: self.identity.public().lct.to_string(),
            binding: self.binding(),
            relays: Vec::new(),
            entry: Entry::blank(),
        };
        change(&mut award);
        let terms = award.terms_hash().unwrap_or_default();
        let what = Act::Awarded {
            award_no: award.award_no,
            executor: to.to_owned(),
            terms,
        };
        award.entry = self.entry(&self.hex(), task, what);
        award
    }

    /// An offer of ours, with a reply key that we read.
    pub(crate) fn offer(&mut self, task: &str, change: impl FnOnce(&mut Offer)) -> Offer {
        let reply = self.reply_key(task).public_key().to_hex();
        let mut offer = Offer {
            via: Vec::new(),
            model: None,
            task: task.to_owned(),
            round: 1,
            skill: "simulation".into(),
            units: 1,
            commitment: hex::encode([3u8; 32]),
            max_price_mc: 1_000,
            result_by_ms: now_ms() + 120_000,
            verification: "sampled".into(),
            output_bytes_max: 1_000,
            input_bytes_max: 0,
            reply,
            relays: Vec::new(),
            expires_ms: now_ms() + 60_000,
        };
        change(&mut offer);
        offer
    }

    /// An ad of ours.
    pub(crate) fn ad(&self, change: impl FnOnce(&mut Ad)) -> Ad {
        let mut ad = Ad {
            lct: self.identity.public().lct.to_string(),
            binding: self.binding(),
            relays: Vec::new(),
            skills: vec![AdSkill {
                hops_mc: 0,
                id: "simulation".into(),
                unit_price_mc: 1,
            }],
            queue: 0,
            paused: false,
            expires_ms: now_ms() + 600_000,
        };
        change(&mut ad);
        ad
    }

    /// A bid of ours on an offer at 1 mc a unit.
    pub(crate) fn bid(&self, requester: &str, offer: &Offer, change: impl FnOnce(&mut Bid)) -> Bid {
        let mut bid = Bid {
            hops_mc: 0,
            task: offer.task.clone(),
            requester: requester.to_owned(),
            round: offer.round,
            total_mc: u64::from(offer.units),
            unit_price_mc: 1,
            eta_ms: 10,
            device: "cpu".into(),
            queue: 0,
            lct: self.identity.public().lct.to_string(),
            binding: self.binding(),
            relays: Vec::new(),
            expires_ms: now_ms() + 60_000,
        };
        change(&mut bid);
        bid
    }

    /// Our acceptance of an award at 1 mc a unit.
    pub(crate) fn accept(
        &mut self,
        requester: &str,
        award: &Award,
        change: impl FnOnce(&mut Accept),
    ) -> Accept {
        let mut accept = Accept {
            hops_mc: 0,
            task: award.task.clone(),
            award_no: award.award_no,
            unit_price_mc: award.unit_price_mc.unwrap_or(1),
            total_mc: u64::from(award.units) * award.unit_price_mc.unwrap_or(1),
            lct: self.identity.public().lct.to_string(),
            binding: self.binding(),
            relays: Vec::new(),
            entry: Entry::blank(),
        };
        change(&mut accept);
        let what = Act::Accepted {
            award_no: accept.award_no,
            total_mc: accept.total_mc,
        };
        accept.entry = self.entry(requester, &award.task, what);
        accept
    }

    /// A result for an award from these units; `change` comes before the signatures, and may ruin anything.
    pub(crate) fn result(
        &mut self,
        requester: &str,
        award: &Award,
        units: &[Vec<u8>],
        profile: &str,
        change: impl FnOnce(&mut WorkResult),
    ) -> Update {
        use base64::Engine;
        let output = legiond::labor::skills::aggregate("simulation", &award.input, units).unwrap();
        let me = self.hex();
        let context = ResultContext {
            task: award.task.as_bytes(),
            award_no: u64::from(award.award_no),
            executor: me.as_bytes(),
            input_commitment: award.commitment.as_bytes(),
        };
        let price = award.unit_price_mc.unwrap_or(1);
        let proof = Proof {
            hops: Vec::new(),
            v: 1,
            task: award.task.clone(),
            award_no: award.award_no,
            skill: award.skill.clone(),
            requester: requester.to_owned(),
            executor: me.clone(),
            lct: self.identity.public().lct.to_string(),
            key: self.identity.public().ed25519.clone(),
            commitment: award.commitment.clone(),
            output: hash_of(&output),
            root: hex::encode(result_root(&context, units).unwrap()),
            terms: award.terms_hash().unwrap(),
            units: award.units,
            unit_price_mc: price,
            cost_mc: price * u64::from(award.units),
            device: "cpu".into(),
            model: None,
            profile: profile.to_owned(),
            implementation: "stranger/1".into(),
            started_ms: now_ms(),
            finished_ms: now_ms(),
            sig: String::new(),
        };
        let units = base64::engine::general_purpose::STANDARD.encode(units.concat());
        let mut result = WorkResult {
            output,
            units,
            detached: None,
            proof,
            entry: Entry::blank(),
        };
        change(&mut result);
        result.proof.sig = hex::encode(
            self.identity
                .sign_proof(&result.proof.signing_bytes().unwrap()),
        );
        let what = Act::Completed {
            award_no: award.award_no,
            proof: result.proof.hash().unwrap(),
        };
        result.entry = self.entry(requester, &award.task, what);
        Update {
            task: award.task.clone(),
            award_no: award.award_no,
            news: News::Completed(Box::new(result)),
        }
    }

    /// A receipt of ours.
    pub(crate) fn receipt(
        &mut self,
        task: &str,
        award_no: u32,
        cost_mc: u64,
        proof: String,
    ) -> Body {
        let what = Act::Paid {
            award_no,
            cost_mc,
            proof,
            quality_bp: Some(10_000),
        };
        let entry = self.entry(&self.hex(), task, what);
        Body::Receipt(Box::new(Receipt {
            task: task.to_owned(),
            award_no,
            entry,
        }))
    }

    /// A refusal of ours with this evidence.
    pub(crate) fn refusal(
        &mut self,
        task: &str,
        award_no: u32,
        proof: String,
        evidence: Evidence,
    ) -> Body {
        let hash = evidence.hash().unwrap();
        let what = Act::Refused {
            award_no,
            proof,
            evidence: hash,
            code: evidence.code.clone(),
        };
        let entry = self.entry(&self.hex(), task, what);
        Body::Refusal(Box::new(Refusal {
            task: task.to_owned(),
            award_no,
            evidence,
            entry,
        }))
    }

    /// A message that every node refuses with `task_unknown`, whoever sends it: the end of a series.
    pub(crate) fn fence(&mut self, to: &str) {
        let news = News::Working {
            waiting: None,
            units_done: 0,
            units_total: 1,
        };
        self.say(
            to,
            Body::Update(Box::new(Update {
                task: task_id(),
                award_no: 1,
                news,
            })),
        );
    }
}

/// SHA-256 of a value's canonical JSON, as proofs name outputs.
pub(crate) fn hash_of(value: &Value) -> String {
    canonical::sha256_hex(&canonical::canonical_json(value).unwrap())
}

/// What must stay as it is while somebody is refused: book, tasks, work, locks, and every peer that the owner knows.
pub(crate) fn picture(node: &Node) -> Value {
    let status = node.call("node/status", json!({}))["result"].clone();
    let mut peers = node.call("peers/list", json!({}))["result"]["peers"].clone();
    let peers = peers.as_array_mut().unwrap();
    peers.retain(|p| p["tier"] != "stranger");
    for peer in peers.iter_mut() {
        // What a peer says of itself, whatever else it says: when it was here, and its name.
        peer["last_seen_ms"] = Value::Null;
        peer["lct"] = Value::Null;
    }
    let outside = ["tasks", "work", "locks", "paused"].map(|k| status[k].clone());
    json!({"ledger": node.call("ledger/get", json!({}))["result"], "tasks": node.call("task/list", json!({}))["result"],
        "peers": peers, "status": outside})
}

/// `dropped` of `legion status --json`.
pub(crate) fn dropped(node: &Node) -> BTreeMap<String, u64> {
    serde_json::from_value(node.ok(&["status"])["dropped"].clone()).unwrap()
}

/// Runs `act`, then a fence, and asserts that exactly `code` was counted, `times` times, and that nothing else changed.
pub(crate) fn refused(
    node: &Node,
    from: &mut Stranger,
    code: &str,
    times: u64,
    act: impl FnOnce(&mut Stranger),
) {
    let (before, image) = (dropped(node), picture(node));
    act(from);
    from.fence(&key_of(node));
    // A node hears its own notices in its pool, and drops them as copies: nobody's doing.
    let echoes = code != "duplicate";
    let dropped = |node: &Node| {
        let mut dropped = dropped(node);
        dropped.retain(|code, _| !(echoes && code == "duplicate"));
        dropped
    };
    let mut wanted = before.clone();
    wanted.retain(|code, _| !(echoes && code == "duplicate"));
    *wanted.entry("task_unknown".into()).or_default() += 1;
    *wanted.entry(code.into()).or_default() += times;
    wanted.retain(|_, n| *n > 0);
    let fence = wanted["task_unknown"];
    let began = Instant::now();
    let after = loop {
        let after = dropped(node);
        if after == wanted
            || after.get("task_unknown") >= Some(&fence) && began.elapsed() > Duration::from_secs(5)
        {
            break after;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{code}: the fence never came: {after:?}\n{}",
            node.stderr()
        );
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(after, wanted, "{code}");
    assert_eq!(picture(node), image, "{code}: something changed");
}
