//! What a person types. This file holds the command line's shape and its dispatch; each command is a file below.
//!
//! A command turns arguments into a `Reply` or a `CliError`; only this room writes to stdout, and with `--json` it writes
//! exactly one object there. Commands that need the running node reach it over its Unix socket and never open its store.

mod adapters;
mod ask;
mod backup;
mod cancel;
mod config_check;
mod contact;
mod control;
mod demo;
mod error;
mod id;
mod identity_adapter;
mod init;
mod input;
mod ledger;
mod logging;
mod logs;
mod models;
mod output;
mod passphrase;
mod pause;
mod peers;
mod pool;
mod proof;
mod relay;
mod render;
mod restore;
mod resume;
mod skills;
mod status;
mod task;
mod tasks;
mod up;
mod wait;
mod why;
mod worker;

use std::cell::{Cell, OnceCell};
use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::config::{Config, Home};
use error::{CliError, Exit};
use output::Reply;

#[derive(Parser)]
#[command(
    name = "legion",
    version,
    about = "A sovereign peer-to-peer node: it lends and hires labor over encrypted relays."
)]
#[command(
    after_help = "Exit codes: 0 done; 1 the task failed, was refused or canceled, or anything else failed; 2 usage, bad \
    input, an unknown id, or a file, home or address that cannot be used; 3 no provider; 4 deadline passed; 5 node not \
    running; 130 detached."
)]
struct Cli {
    /// The node's home directory [default: LEGION_HOME, else the platform's data directory]
    #[arg(long, global = true, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Print exactly one JSON object on stdout
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create a home: an identity, the settings and a relay list
    Init(init::Args),
    /// Show this node's public identity
    Id,
    /// Show the text by which others trust this node
    Contact,
    /// Run the node until it is stopped
    Up(up::Args),
    /// Show what the running node does
    Status,
    /// Check the settings
    Config(config_check::Args),
    /// Show the node's log
    Logs(logs::Args),
    /// Run a relay
    Relay(relay::Args),
    /// List the skills this machine can do
    Skills,
    /// Add, list or remove the models that skills use
    Models(models::Args),
    /// List peers, trust one or forget one
    Peers(peers::Args),
    /// Create, join, rotate and leave private pools
    Pool(pool::Args),
    /// Stop foreign work, or limit its cores
    Pause(pause::Args),
    /// Allow foreign work again
    Resume(resume::Args),
    /// Have a task done, and wait for its result
    Ask(ask::Args),
    /// List tasks
    Tasks,
    /// Show one task
    Task(task::Args),
    /// Wait for a task's result
    Wait(wait::Args),
    /// Cancel a task
    Cancel(cancel::Args),
    /// Show why a task is where it is: per peer, why it did not get or take it
    Why(why::Args),
    /// Show balances and transfers
    Ledger(ledger::Args),
    /// Export or verify a proof
    Proof(proof::Args),
    /// Write this home into one file, while its node runs or not
    Backup(backup::Args),
    /// Make a home from a backup
    Restore(restore::Args),
    /// See the whole path on this machine, offline, with a node killed on the way
    Demo(demo::Args),
    /// The process that does the work (started by the node)
    #[command(hide = true)]
    Worker(worker::Args),
}

/// What every command gets: the global flags, and the home they name.
pub(crate) struct Context {
    home_flag: Option<PathBuf>,
    home: OnceCell<Home>,
    json: bool,
    /// Whether stdout has its one object: a command that runs on after it has only stderr left.
    answered: Cell<bool>,
}

impl Context {
    /// The home, resolved once; a command that needs none never fails for it.
    pub(crate) fn home(&self) -> Result<&Home, CliError> {
        if let Some(home) = self.home.get() {
            return Ok(home);
        }
        let home = Home::resolve(self.home_flag.clone())?;
        Ok(self.home.get_or_init(|| home))
    }

    /// The settings of the home.
    pub(crate) fn config(&self) -> Result<Config, CliError> {
        Ok(Config::load(self.home()?)?)
    }

    /// Prints the answer of a command that runs on after it.
    pub(crate) fn answer(&self, reply: &Reply) {
        self.answered.set(true);
        let _ = output::print(reply, self.json);
    }
}

/// Runs the command line of this process and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // A usage error is found before `--json` is known to clap, and still owes its reader one object.
    let json = args
        .iter()
        .skip(1)
        .take_while(|arg| *arg != "--")
        .any(|arg| arg == "--json");
    match Cli::try_parse_from(&args) {
        Ok(Cli {
            command: Command::Worker(args),
            ..
        }) => worker::run(args),
        Ok(cli) => ExitCode::from(run(cli).0),
        Err(usage) => ExitCode::from(report_usage(&usage, json).0),
    }
}

fn run(cli: Cli) -> Exit {
    let context = Context {
        home_flag: cli.home,
        home: OnceCell::new(),
        json: cli.json,
        answered: Cell::new(false),
    };
    match dispatch(&context, cli.command) {
        Ok(reply) => printed(output::print(&reply, context.json), reply.exit),
        Err(error) => {
            output::print_error(&error, context.json && !context.answered.get());
            error.exit
        }
    }
}

/// An answer that nobody could read is none.
fn printed(written: bool, exit: Exit) -> Exit {
    if written { exit } else { Exit::FAILED }
}

fn dispatch(context: &Context, command: Command) -> Result<Reply, CliError> {
    match command {
        Command::Init(args) => init::run(context, &args),
        Command::Id => id::run(context),
        Command::Contact => contact::run(context),
        Command::Up(args) => up::run(context, &args),
        Command::Status => status::run(context),
        Command::Config(args) => config_check::run(context, &args),
        Command::Logs(args) => logs::run(context, &args),
        Command::Relay(args) => relay::run(context, &args),
        Command::Skills => skills::run(context),
        Command::Models(args) => models::run(context, args),
        Command::Peers(args) => peers::run(context, args),
        Command::Pool(args) => pool::run(context, args),
        Command::Pause(args) => pause::run(context, &args),
        Command::Resume(args) => resume::run(context, &args),
        Command::Ask(args) => ask::run(context, &args),
        Command::Tasks => tasks::run(context),
        Command::Task(args) => task::run(context, &args),
        Command::Wait(args) => wait::run(context, &args),
        Command::Cancel(args) => cancel::run(context, &args),
        Command::Why(args) => why::run(context, &args),
        Command::Ledger(args) => ledger::run(context, &args),
        Command::Proof(args) => proof::run(context, &args),
        Command::Backup(args) => backup::run(context, &args),
        Command::Restore(args) => restore::run(context, &args),
        Command::Demo(args) => block_on(Threads::Many, demo::run(context, &args)),
        // `main` runs it before anything that a worker must not know, such as a home, exists.
        Command::Worker(_) => Ok(Reply::silent()),
    }
}

/// Help and the version are not errors; everything else is a usage error.
fn report_usage(usage: &clap::Error, json: bool) -> Exit {
    let text = usage.render().to_string();
    if matches!(
        usage.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        let value = serde_json::json!({ "help": text.trim_end() });
        return printed(output::print(&Reply::new(value, text), json), Exit::DONE);
    }
    if json {
        output::print_error(&CliError::usage_text(&text), true);
    } else {
        output::note(text.trim_end());
    }
    Exit::USAGE
}

/// How many threads a command's runtime has.
pub(crate) enum Threads {
    /// Commands that talk to the node.
    One,
    /// Commands that run something.
    Many,
}

/// Runs the asynchronous part of a command to its end.
pub(crate) fn block_on<T>(
    threads: Threads,
    future: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    let mut builder = match threads {
        Threads::One => tokio::runtime::Builder::new_current_thread(),
        Threads::Many => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| CliError::system("the runtime", &error))?;
    let result = runtime.block_on(future);
    // A blocked read of stdin must not keep the process: what matters was committed or printed.
    runtime.shutdown_background();
    result
}
