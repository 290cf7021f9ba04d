//! What leaves the node as a record: exported proofs, the journal, backups; and the owner's word on what a restoration lost.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Handlers, key_of, stopping};
use crate::domain::step::Input;
use crate::node::control::ControlError;
use crate::node::{backup, clock, rows};

#[derive(Deserialize)]
pub(super) struct BackupParams {
    /// An absolute path: the node's directory is not the command's.
    file: PathBuf,
    #[serde(default)]
    with_keys: bool,
}

#[derive(Deserialize)]
pub(super) struct AcceptParams {
    npub: Option<String>,
}

impl Handlers {
    /// One consistent copy, made beside the loop.
    pub(super) async fn backup(&self, params: BackupParams) -> Result<Value, ControlError> {
        if !params.file.is_absolute() {
            return Err(ControlError::bad_params("the path is not absolute"));
        }
        let (home, store) = (self.home.clone(), self.store.clone());
        // Before the copy is begun: whatever is missing in it was signed later.
        let now_ms = clock::now_ms();
        let made = tokio::task::spawn_blocking(move || {
            backup::write(&home, &store, &params.file, params.with_keys, now_ms)
        });
        made.await
            .map_err(|_| stopping())?
            .map_err(|e| ControlError::told(e.code(), &e))
    }

    /// The owner takes a restored store as it is.
    pub(super) async fn accept_losses(&self, params: AcceptParams) -> Result<Value, ControlError> {
        let npub = params.npub.as_deref().map(key_of).transpose()?;
        self.command(Input::AcceptLosses { npub }).await?;
        self.look(|node, _| Ok(json!({"recovering": crate::node::view::recovery(node)})))
            .await
    }

    pub(super) async fn proof(&self, id: &str) -> Result<Value, ControlError> {
        let wanted = id.to_owned();
        let exported = self
            .look(move |node, store| {
                let view = store.view()?;
                let job = match node.jobs().get(&wanted) {
                    Some(job) => Some(job.clone()),
                    None => rows::job(&view, &wanted)?,
                };
                let Some((job, outcome)) = job.and_then(|j| j.outcome.clone().map(|o| (j, o))) else { return Ok(None) };
                let result: Value = rows::payload(&view, &wanted, "result")?.and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or(Value::Null);
                let units = rows::payload(&view, &wanted, "units")?.and_then(|b| String::from_utf8(b).ok()).unwrap_or_default();
                let entries = rows::entries(&view, &wanted)?;
                Ok(Some(json!({"v": 1, "proof": outcome.proof, "output": result, "units": units, "commitment": job.commitment, "entries": entries})))
            })
            .await?;
        let mut exported = exported.ok_or_else(|| {
            ControlError::new("proof_missing", "this task has no result with a proof")
        })?;
        // Our own entries are kept unsigned; Ed25519 is deterministic, so signing now gives the signature that was sent.
        if let Some(entries) = exported.get_mut("entries").and_then(Value::as_array_mut) {
            for value in entries {
                let Ok(mut entry) =
                    serde_json::from_value::<crate::wire::entry::Entry>(value.clone())
                else {
                    continue;
                };
                if !entry.sig.is_empty() {
                    continue;
                }
                let bytes = entry.signing_bytes().unwrap_or_default();
                if let Some(sig) = self.identity.sign_proof_as(&entry.key, &bytes) {
                    entry.sig = hex::encode(sig);
                    *value = serde_json::to_value(&entry).unwrap_or(Value::Null);
                }
            }
        }
        Ok(exported)
    }

    pub(super) async fn journal(&self, params: Value) -> Result<Value, ControlError> {
        let from = params.get("from").and_then(Value::as_u64).unwrap_or(0);
        self.look(move |_, store| {
            let entries = store.view()?.journal_range(from, 10_000, crate::store::Order::Ascending)?;
            let list: Vec<Value> = entries.iter().map(|e| json!({"seq": e.seq, "at_ms": e.at_ms, "kind": e.kind, "task": e.task, "body": e.body})).collect();
            Ok(json!({"entries": list}))
        })
        .await
    }
}
