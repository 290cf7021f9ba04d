//! What a peer cannot make delivery do: wait, keep without bound, or publish without end.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use crate::carrier::{CarrierConfig, CarrierEvent, RelayCarrier, RelayState};
use nostr::{EventBuilder, Keys, Kind};
use tokio::net::TcpListener;

/// Only so that a test that would hang fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A relay that a stranger named takes the connection and then reads nothing: messages to others go out all the same.
#[tokio::test]
async fn a_relay_of_others_that_reads_nothing_holds_nobody_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = format!("ws://{}", listener.local_addr().unwrap());
    let relay = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        tokio_tungstenite::accept_async(stream).await.unwrap()
    });
    let config = CarrierConfig {
        publish_queue_events: 1,
        max_in_flight_events: 1,
        ok_timeout_ms: 3_600_000,
        ..CarrierConfig::default()
    };
    let (carrier, mut events) = RelayCarrier::start(config, vec![mute.clone()]).unwrap();
    let _never_read = relay.await.unwrap();
    while !matches!(
        events.recv().await.unwrap(),
        CarrierEvent::Relay {
            state: RelayState::Connected,
            ..
        }
    ) {}
    let all = async {
        for n in 0..10 {
            let event = EventBuilder::new(Kind::GiftWrap, n.to_string())
                .sign_with_keys(&Keys::generate())
                .unwrap();
            let to = [mute.clone()];
            send(&carrier, &Outgoing::from_event(&event), &to, &[]).await;
        }
    };
    tokio::time::timeout(PATIENCE, all)
        .await
        .expect("nobody waits for it");
}

const OWN: &str = "wss://own.example.org";
const THEIRS: &str = "wss://theirs.example.org";

fn deliverer(dir: &std::path::Path) -> Deliverer {
    use crate::config::Config;
    use crate::identity::conversation::Conversations;
    use crate::identity::{Identity, Lct, Mnemonic};
    use crate::node::pools::Pools;

    let lct = Lct::new("ada", "attic", "worker").unwrap();
    let words = Mnemonic::generate().unwrap();
    let identity = Arc::new(Identity::derive(&words, lct, 0).unwrap());
    let mailbox = Mailbox::new(std::sync::mpsc::channel().0, 1);
    let (config, me) = (Config::default(), identity.clone());
    let pools = Pools::load(dir.into(), me, &config, Vec::new(), mailbox.clone()).unwrap();
    let (carrier, _) = RelayCarrier::start(CarrierConfig::default(), Vec::new()).unwrap();
    let sealer = Sealer {
        identity,
        conversations: Arc::new(Conversations::new(16)),
        pools: Arc::new(pools),
    };
    Deliverer::new(Arc::new(sealer), carrier, vec![OWN.to_owned()], mailbox)
}

fn order(seq: u64, to: &PublicKey, body: Body) -> Order {
    use crate::domain::step::{Addressee, Send};
    let send = Send {
        to: Addressee::Peer(to.to_hex()),
        body,
        ephemeral: false,
        relays: vec![THEIRS.to_owned()],
        expires_ms: u64::MAX,
    };
    let parcel = Parcel {
        sends: vec![send],
        created_s: clock::now_ms() / 1000,
    };
    Order::Deliver(seq, parcel, None)
}

/// A peer that asks for pages and acknowledges none keeps one of them waiting here, not all.
#[tokio::test]
async fn of_the_pages_for_a_peer_the_newest_waits() {
    use crate::wire::binding::Binding;
    use crate::wire::log::LogEntries;

    let dir = tempfile::tempdir().unwrap();
    let mut this = deliverer(dir.path());
    let binding = Binding::sign(&this.sealer.identity, 2_000_000_000, None).unwrap();
    let peers = [(); 2].map(|()| Keys::generate().public_key());
    let orders = (0..20u64).map(|seq| {
        let page = LogEntries {
            restored_ms: 1,
            cursor: seq.to_string(),
            awards: Vec::new(),
            next: None,
            binding: binding.clone(),
        };
        order(seq, &peers[seq as usize % 2], Body::Entries(Box::new(page)))
    });
    this.admit(orders.collect());
    assert_eq!(this.rows.keys().copied().collect::<Vec<_>>(), [18, 19]);
    this.finish(vec![18, 19]);
    assert!(this.rows.is_empty() && this.pages.is_empty());
}

/// A relay that a peer named may come and go as often as it likes: nothing is wrapped anew for all the others.
#[tokio::test]
async fn a_relay_of_others_that_comes_and_goes_has_nothing_wrapped_anew() {
    use crate::wire::market::Withdraw;

    let dir = tempfile::tempdir().unwrap();
    let mut this = deliverer(dir.path());
    let withdraw = Withdraw {
        task: "0".repeat(32),
        below_award_no: 1,
    };
    let peer = Keys::generate();
    let order = order(1, &peer.public_key(), Body::Withdraw(withdraw));
    this.admit(vec![order]);
    let wrap = EventBuilder::new(Kind::GiftWrap, "").sign_with_keys(&peer);
    let row = this.rows.get_mut(&1).unwrap();
    row.event = Some(Outgoing::from_event(&wrap.unwrap()));
    row.taken.insert(OWN.into());
    let begun = this.sealing.len();
    for _ in 0..10 {
        this.reconnected(&THEIRS.into()).await;
    }
    assert_eq!(this.sealing.len(), begun);
    this.reconnected(&OWN.into()).await;
    assert_eq!(this.sealing.len(), begun + 1);
}
