//! A relay that delivers everything three times and out of order: the ending is the same.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{accept_async, connect_async};

use super::borrowed;
use crate::support::world::{Pair, Relay, job};

/// Frames are kept back this long, so that there is something to shuffle.
const HOLD: Duration = Duration::from_millis(30);

/// Listens on a free port, forwards to the relay, and gives its own URL.
fn start(relay: String, runtime: &tokio::runtime::Runtime) -> String {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    runtime.spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, relay.clone()));
        }
    });
    url
}

async fn serve(socket: TcpStream, relay: String) {
    let Ok(near) = accept_async(socket).await else {
        return;
    };
    let Ok((far, _)) = connect_async(relay).await else {
        return;
    };
    let (near_out, near_in) = near.split();
    let (far_out, far_in) = far.split();
    tokio::select! {
        () = pump(near_in, far_out, 1) => {}
        () = pump(far_in, near_out, 2) => {}
    }
}

/// Copies frames; events go three times, in the wrong order. What is not an event waits for the events before it.
async fn pump<I, O>(mut from: I, mut to: O, seed: usize)
where
    I: StreamExt<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin,
    O: SinkExt<Message> + Unpin,
{
    let (mut held, mut turn): (Vec<Message>, usize) = (Vec::new(), seed);
    loop {
        let next = if held.is_empty() {
            Ok(from.next().await)
        } else {
            tokio::time::timeout(HOLD, from.next()).await
        };
        let arrived = match next {
            Ok(Some(Ok(message))) => Some(message),
            Ok(_) => return,
            Err(_) => None,
        };
        let event = arrived.as_ref().is_some_and(is_event);
        if let (true, Some(message)) = (event, &arrived) {
            held.extend([message.clone(), message.clone(), message.clone()]);
            if held.len() < 30 {
                continue;
            }
        }
        while !held.is_empty() {
            turn = turn.wrapping_mul(31).wrapping_add(7);
            let message = held.swap_remove(turn % held.len());
            if to.send(message).await.is_err() {
                return;
            }
        }
        if let (false, Some(message)) = (event, arrived)
            && to.send(message).await.is_err()
        {
            return;
        }
    }
}

fn is_event(message: &Message) -> bool {
    let Message::Text(text) = message else {
        return false;
    };
    serde_json::from_str::<Value>(text).is_ok_and(|frame| frame[0] == "EVENT")
}

#[test]
fn every_message_comes_three_times_and_shuffled() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let relay = Relay::start();
    let url = start(relay.url.clone(), &runtime);
    let pair = Pair::on(&url, |_, worker| {
        worker.configure("labor", "checkpoint_every_units", "2");
    });
    let small = job(7, 1);
    // Several at once, so that messages of different tasks overtake each other.
    let tasks: Vec<String> = (0..6)
        .map(|n| pair.ask(&format!("echo {n}"), &borrowed(&small)))
        .collect();
    for task in &tasks {
        pair.finish(task);
        assert_eq!(pair.asker.count(task, "award"), 1);
        assert_eq!(pair.worker.count(task, "accepted"), 1);
        assert_eq!(pair.worker.count(task, "done"), 1);
    }
}
