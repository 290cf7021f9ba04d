//! `legion demo`: the whole path on this machine, offline: a relay and two nodes as processes of their own, a real option priced
//! through the pool, the worker's node killed in the middle, and everything checked afterwards.
//!
//! This file is the play. What it is played on (processes, homes) is `stage`; how it is told and judged is `story`. Both nodes are
//! driven over their control sockets like any other node: the demonstration knows nothing that a command could not know.

mod stage;
mod story;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Context;
use super::error::CliError;
use super::output::{self, Reply};
use stage::{Actor, Stage};
use story::{Kill, Story};

/// Longer than any machine needs: what takes longer hangs, and is reported instead of waited for.
const PATIENCE: Duration = Duration::from_secs(180);
/// Checkpoints to wait for before the worker's node is killed: by then there is something to lose.
const CHECKPOINTS: usize = 8;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Keep both homes in this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Changes the simulated paths, and with them the result
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
}

/// `{task,input,result,verified,proof,cost_mc,timing_ms,closed_form,killed,timeline,books,relay,wall_ms,keep?}`.
pub(crate) async fn run(_context: &Context, args: &Args) -> Result<Reply, CliError> {
    if !cfg!(all(feature = "relay", feature = "labor")) {
        return Err(CliError::not_built(
            "the demonstration (features `relay` and `labor`)",
        ));
    }
    let mut stage = Stage::new(args.keep.as_deref())?;
    let played = tokio::select! {
        played = tokio::time::timeout(PATIENCE, play(&mut stage, args.seed)) => played.unwrap_or_else(|_| {
            let message = format!("the demonstration did not end within {} s", PATIENCE.as_secs());
            Err(CliError::new("demo_slow", message))
        }),
        () = interrupted() => Err(CliError::new("interrupted", "the demonstration was stopped")),
    };
    // In every case nothing of it goes on running.
    stage.end(played.is_ok()).await;
    let story = played?;
    story.judge()?;
    let kept = stage.kept();
    Ok(Reply::new(
        story.object(kept.as_ref()),
        story.text(kept.as_ref()),
    ))
}

/// Ctrl-C or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// An option with a closed form, so that the result can be checked against mathematics; many steps, so that it is work.
fn option(seed: u64) -> Value {
    json!({
        "kind": "european", "side": "call", "spot": 100.0, "strike": 105.0, "rate": 0.05, "volatility": 0.2, "years": 1.0,
        "steps": 256, "paths": 524_288, "seed": seed.to_string(),
    })
}

async fn play(stage: &mut Stage, seed: u64) -> Result<Story, CliError> {
    let began = Instant::now();
    let relay = stage.relay().await?;
    output::note(&format!("a relay: {relay}"));
    let mut asker = stage.node("asker", &relay).await?;
    let mut worker = stage.node("worker", &relay).await?;
    let trust = |npub: &str| json!({ "npub": npub, "tier": "trusted" });
    asker.call("peers/trust", trust(&worker.npub)).await?;
    worker.call("peers/trust", trust(&asker.npub)).await?;
    output::note("two nodes that know nothing but the relay trust each other");
    until_advertised(&mut asker, &worker.npub).await?;

    let input = option(seed);
    let asked = asker
        .call(
            "task/ask",
            json!({ "skill": "simulation", "input": input, "pool": "legion" }),
        )
        .await?;
    let task = asked
        .pointer("/task/id")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    output::note(&format!(
        "the asker offers an option to the pool: task {task}"
    ));

    until_checkpoints(&mut worker).await?;
    let killed = stage.kill(&mut worker).await?;
    output::note(&format!(
        "killed the worker's node, pid {}, with SIGKILL",
        killed.pid
    ));
    let killed = Kill {
        back_ms: stage::now_ms(),
        ..killed
    };
    stage.up(&mut worker).await?;
    output::note("the worker's node is back");

    let outcome = asker.call("task/wait", json!({ "id": task })).await?;
    until_settled(&mut asker, &mut worker).await?;
    let books = (
        asker.call("ledger/get", json!({})).await?,
        worker.call("ledger/get", json!({})).await?,
    );
    Ok(Story {
        relay,
        input,
        outcome,
        killed,
        journals: (asker.journal(0).await?, worker.journal(0).await?),
        books,
        asker: asker.npub,
        worker: worker.npub,
        worker_key: worker.key,
        wall: began.elapsed(),
    })
}

/// The worker's capability ad has reached the asker.
async fn until_advertised(asker: &mut Actor, worker: &str) -> Result<(), CliError> {
    loop {
        let view = asker.call("peers/list", json!({})).await?;
        let peers = view.get("peers").and_then(Value::as_array);
        let known = peers
            .into_iter()
            .flatten()
            .find(|peer| peer.get("npub").and_then(Value::as_str) == Some(worker));
        if known
            .and_then(|peer| peer.get("skills"))
            .is_some_and(Value::is_array)
        {
            return Ok(());
        }
        pause().await;
    }
}

/// The worker's journal shows checkpoints, and not yet the end of the work.
async fn until_checkpoints(worker: &mut Actor) -> Result<(), CliError> {
    let (mut from, mut seen) = (0, 0);
    loop {
        for entry in worker.journal(from).await? {
            from = entry
                .get("seq")
                .and_then(Value::as_u64)
                .unwrap_or(from)
                .saturating_add(1);
            match entry.get("kind").and_then(Value::as_str) {
                Some("checkpoint") => seen += 1,
                Some("done" | "work_failed") => {
                    let message = "the work ended before the worker's node could be killed";
                    return Err(CliError::new("demo_too_fast", message));
                }
                _ => {}
            }
        }
        if seen >= CHECKPOINTS {
            return Ok(());
        }
        pause().await;
    }
}

/// The receipt has reached the worker: nothing pends in either book.
async fn until_settled(asker: &mut Actor, worker: &mut Actor) -> Result<(), CliError> {
    loop {
        let mut pending = false;
        for node in [&mut *asker, &mut *worker] {
            let status = node.call("node/status", json!({})).await?;
            pending |= status.get("locks").and_then(Value::as_u64) != Some(0);
        }
        if !pending {
            return Ok(());
        }
        pause().await;
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}
