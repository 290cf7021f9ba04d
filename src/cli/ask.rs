//! `legion ask`: gives the node a task, and waits for its result. The task belongs to the node from the moment it is durable;
//! this command only watches.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::control::{self, CallError, Client};
use super::error::CliError;
use super::output::{self, Reply};
use super::{Context, Threads, block_on, input, render};

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("given").required(true))]
pub(crate) struct Args {
    /// What is to be done; `legion skills` lists what this machine knows
    skill: String,
    /// Read the input (JSON) from a file, or from stdin with `-`
    #[arg(long, value_name = "FILE", group = "given")]
    input: Option<PathBuf>,
    /// Set one field of the input, typed by the skill's schema; `k:=json` forces JSON
    #[arg(long, value_name = "k=v", group = "given", allow_hyphen_values = true)]
    set: Vec<String>,
    #[arg(value_name = "k=v", hide = true, conflicts_with = "input")]
    more: Vec<String>,
    /// Offer it in this pool
    #[arg(long, value_name = "NAME", conflicts_with = "peer")]
    pool: Option<String>,
    /// Give it to this peer
    #[arg(long, value_name = "NPUB")]
    peer: Option<String>,
    /// Pay at most this many milli-credits
    #[arg(long, value_name = "MC")]
    max_price: Option<u64>,
    /// Give up after this many seconds: at least 4 through a pool, 3 for one peer (default settings)
    #[arg(long, value_name = "S")]
    deadline: Option<u64>,
    /// Name this task, with 1 to 128 characters: the same key and input find it again for 7 days
    #[arg(long, value_name = "K")]
    key: Option<String>,
    /// Go before this node's other tasks
    #[arg(long)]
    critical: bool,
    /// Answer as soon as the task is durable
    #[arg(long)]
    detach: bool,
}

pub(crate) fn run(context: &Context, args: &Args) -> Result<Reply, CliError> {
    let task_input = match &args.input {
        Some(path) => input::from_file(path)?,
        None => {
            let pairs: Vec<&str> = args
                .set
                .iter()
                .chain(&args.more)
                .map(String::as_str)
                .collect();
            input::from_pairs(&args.skill, &pairs)?
        }
    };
    // The key is chosen here, so that a call whose answer was lost can be repeated without a second task.
    let key = args.key.clone().map_or_else(random_key, Ok)?;
    let params = parameters(args, &task_input, &key);
    let home = context.home()?;
    block_on(Threads::One, async {
        let mut client = Client::connect(home).await?;
        let asked = submit(&mut client, params, args, &key).await?;
        let id = task_id(&asked).to_owned();
        output::note(&format!("key: {key}\ntask: {id}"));
        if args.detach {
            let task = asked.get("task").cloned().unwrap_or(Value::Null);
            return Ok(Reply::new(
                json!({ "task": task }),
                format!("task: {id}\nnext: `legion wait {id}`"),
            ));
        }
        control::wait_for(context, &mut client, &id)
            .await
            .map(render::result)
    })
}

fn parameters(args: &Args, task_input: &Value, key: &str) -> Value {
    let mut params = json!({ "skill": args.skill, "input": task_input, "key": key });
    let optional = [
        ("pool", args.pool.clone().map(Value::from)),
        ("peer", args.peer.clone().map(Value::from)),
        ("max_price_mc", args.max_price.map(Value::from)),
        ("deadline_s", args.deadline.map(Value::from)),
        ("critical", args.critical.then_some(Value::Bool(true))),
    ];
    if let Some(object) = params.as_object_mut() {
        for (name, value) in optional {
            if let Some(value) = value {
                object.insert(name.to_owned(), value);
            }
        }
    }
    params
}

/// Sends the task. When the answer is lost, the task may be durable or not: the same key tells.
async fn submit(
    client: &mut Client,
    params: Value,
    args: &Args,
    key: &str,
) -> Result<Value, CliError> {
    let lost = tokio::select! {
        answer = client.call("task/ask", params) => match answer {
            Ok(asked) => return Ok(asked),
            Err(CallError::Refused(error)) => return Err(error),
            Err(CallError::Lost) => "the node went away",
        },
        _ = tokio::signal::ctrl_c() => "interrupted",
    };
    let next = format!(
        "legion ask {} --key {key} (with the same input) finds the task, or makes it",
        args.skill
    );
    Err(control::detached(
        format!("{lost} before the task was confirmed"),
        next,
        None,
    ))
}

/// The id in an answer whose `task` is a task or its id.
fn task_id(answer: &Value) -> &str {
    let task = answer.get("task").unwrap_or(answer);
    task.as_str()
        .or_else(|| task.get("id").and_then(Value::as_str))
        .unwrap_or_default()
}

fn random_key() -> Result<String, CliError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        CliError::hinted(
            "entropy_unavailable",
            format!("the system gives no random bytes: {error}"),
            "pass --key K",
        )
    })?;
    Ok(hex::encode(bytes))
}
