//! `legion peers`: who is known, who is trusted. A peer that was never seen can be trusted at once.

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::error::CliError;
use super::output::Reply;
use super::{Context, control, render};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Set a peer's tier, and the credit it is granted
    Trust {
        /// The peer: its contact (`legion contact` shows it there), or its npub
        #[arg(value_name = "CONTACT")]
        npub: String,
        /// own: your other nodes, no price and no limit; trusted: on credit; stranger: the default
        #[arg(long, value_enum)]
        tier: Tier,
        /// Grant it this many milli-credits
        #[arg(long, value_name = "MC")]
        limit: Option<u64>,
    },
    /// Forget a peer's tier and limit; what is owed stays in the books
    Forget {
        /// The peer
        npub: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Tier {
    Own,
    Trusted,
    Stranger,
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Trusted => "trusted",
            Self::Stranger => "stranger",
        }
    }
}

pub(crate) fn run(context: &Context, args: Args) -> Result<Reply, CliError> {
    let (method, params) = match args.action {
        None => {
            let view = control::call(context, "peers/list", json!({}))?;
            let text = render::peers(&view);
            return Ok(Reply::new(view, text));
        }
        Some(Action::Trust { npub, tier, limit }) => {
            let mut params = json!({ "npub": npub, "tier": tier.name() });
            if let (Some(limit), Some(object)) = (limit, params.as_object_mut()) {
                object.insert("limit_mc".to_owned(), Value::from(limit));
            }
            ("peers/trust", params)
        }
        Some(Action::Forget { npub }) => ("peers/forget", json!({ "npub": npub })),
    };
    let view = control::call(context, method, params)?;
    let text = render::peers(&view);
    Ok(Reply::new(view, text))
}
