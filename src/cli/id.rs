//! `legion id`: the public identity, from the file beside the key file. It needs neither passphrase, store nor running node.

use super::error::CliError;
use super::output::Reply;
use super::{Context, identity_adapter};

pub(crate) fn run(context: &Context) -> Result<Reply, CliError> {
    let identity = identity_adapter::public(&context.home()?.keys_dir())?;
    Ok(reply(&identity))
}

/// The object of `id` and `init`: `{npub,nostr,ed25519,x25519,peer_id,lct}`.
pub(crate) fn reply(identity: &identity_adapter::PublicView) -> Reply {
    let text = format!(
        "npub:     {}\nnostr:    {}\ned25519:  {}\nx25519:   {}\npeer id:  {}\nlct:      {}",
        identity.npub,
        identity.nostr,
        identity.ed25519,
        identity.x25519,
        identity.peer_id,
        identity.lct
    );
    Reply::new(identity.to_json(), text)
}
