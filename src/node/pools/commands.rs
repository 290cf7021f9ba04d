//! The owner's commands about pools, as local control hands them over. An invite is in an answer because its owner asked for it,
//! and nowhere else: never in a log, never in an error.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Pools;
use crate::config::RelayList;
use crate::domain::step::Ms;
use crate::identity::invite::Invite;
use crate::identity::pool_book::{GRACE_MAX_S, PoolBook, PrivatePool};
use crate::identity::{IdentityError, npub};
use crate::node::clock;
use crate::node::control::ControlError;

/// How long an invite can be joined with, if its owner does not say.
const VALID_S: u64 = 7 * 86_400;
/// Longest that an invite can be joined with.
const VALID_MAX_S: u64 = 366 * 86_400;
/// How long the old secret is read after a rotation, if its owner does not say.
const GRACE_S: u64 = 3 * 86_400;

#[derive(Deserialize)]
struct NameParams {
    name: String,
    /// How long the invite lasts.
    valid_s: Option<u64>,
    /// How long the old secret is read.
    grace_s: Option<u64>,
}

#[derive(Deserialize)]
struct JoinParams {
    invite: String,
}

impl Pools {
    /// Answers `pools/*`. It writes files: not for the thread that serves others.
    ///
    /// # Errors
    /// The codes of the identity room; `params_invalid`.
    pub(in crate::node) fn call(&self, method: &str, params: Value) -> Result<Value, ControlError> {
        let now_s = clock::now_ms() / 1000;
        if method == "pools/list" {
            return Ok(self.list());
        }
        if method == "pools/join" {
            let JoinParams { invite } = parse(params)?;
            return self.join(&invite, now_s).map_err(told);
        }
        let NameParams {
            name,
            valid_s,
            grace_s,
        } = parse(params)?;
        let valid_s = within(
            valid_s.unwrap_or(VALID_S),
            1,
            VALID_MAX_S,
            "an invite lasts",
        )?;
        let grace_s = within(grace_s.unwrap_or(GRACE_S), 0, GRACE_MAX_S, "a grace takes")?;
        let me = self.identity.nostr().public_key();
        if self.open.contains_key(&name) {
            return Err(match method {
                "pools/create" => told(IdentityError::PoolNameTaken(name)),
                _ => ControlError::new("pool_open", format!("the pool {name} is open to all")),
            });
        }
        let done = match method {
            "pools/create" => {
                self.edit(|book| book.create(&name, me, self.home_relays.clone(), now_s))
            }
            "pools/rotate" => self.edit(|book| book.rotate(&name, grace_s, now_s)),
            "pools/leave" => {
                self.edit(|book| book.leave(&name)).map_err(told)?;
                return Ok(json!({"left": name, "pools": self.list()["pools"]}));
            }
            "pools/invite" => Ok(()),
            other => return Err(ControlError::unknown_method(other)),
        };
        done.and_then(|()| self.invite(&name, now_s.saturating_add(valid_s)))
            .map_err(told)
    }

    fn join(&self, text: &str, now_s: u64) -> Result<Value, IdentityError> {
        let mut invite = Invite::decode(text, now_s)?;
        if self.open.contains_key(&invite.name) {
            return Err(IdentityError::PoolNameTaken(invite.name));
        }
        invite.relays = std::mem::take(&mut invite.relays)
            .into_iter()
            .filter(|relay| RelayList::check_url(relay).is_ok())
            .map(|relay| relay.trim_end_matches('/').to_owned())
            .collect();
        let changed = self.edit(|book| book.join(&invite, now_s))?;
        let shown = self.shown(&self.book(), &invite.name)?;
        Ok(json!({"pool": shown, "changed": changed}))
    }

    /// `{pool,invite,expires_ms}`.
    fn invite(&self, name: &str, expires_at_s: u64) -> Result<Value, IdentityError> {
        let book = self.book();
        let keys = self.identity.nostr();
        let invite = book.invite(name, keys.public_key(), expires_at_s)?;
        let text = invite.encode(keys)?;
        Ok(json!({
            "pool": self.shown(&book, name)?, "invite": *text, "expires_ms": ms(expires_at_s),
        }))
    }

    /// `{pools:[{name,private,epoch,read,relays,invited_by,joined_ms}]}`, the private ones first.
    fn list(&self) -> Value {
        let open = self.open.keys().map(|name| {
            json!({
                "name": name, "private": false, "epoch": null, "read": [], "relays": [],
                "invited_by": null, "joined_ms": null,
            })
        });
        let book = self.book();
        let private = book.iter().map(|(name, pool)| shown(name, pool));
        json!({"pools": private.chain(open).collect::<Vec<_>>()})
    }

    fn shown(&self, book: &PoolBook, name: &str) -> Result<Value, IdentityError> {
        book.get(name).map(|pool| shown(name, pool))
    }
}

/// One private pool. `read` lists the epochs before that are still heard, each until when.
fn shown(name: &str, pool: &PrivatePool) -> Value {
    let now_s = clock::now_ms() / 1000;
    let heard = |until_s: &u64| *until_s > now_s;
    let read: Vec<Value> = pool
        .epochs
        .iter()
        .filter_map(|epoch| Some((epoch.number, epoch.until_s.filter(heard)?)))
        .map(|(number, until_s)| json!({"epoch": number, "until_ms": ms(until_s)}))
        .collect();
    json!({
        "name": name, "private": true, "epoch": pool.current().map(|epoch| epoch.number),
        "read": read, "relays": pool.relays, "invited_by": npub(&pool.inviter.to_hex()),
        "joined_ms": ms(pool.joined_at_s),
    })
}

fn ms(s: u64) -> Ms {
    s.saturating_mul(1000)
}

fn within(value: u64, least: u64, most: u64, what: &str) -> Result<u64, ControlError> {
    match (least..=most).contains(&value) {
        true => Ok(value),
        false => Err(ControlError::new(
            "time_range",
            format!("{what} {least} to {most} seconds"),
        )),
    }
}

fn parse<T: serde::de::DeserializeOwned>(params: Value) -> Result<T, ControlError> {
    // Serde's own text could quote what was sent, and an invite is a secret.
    serde_json::from_value(params)
        .map_err(|_| ControlError::bad_params("`name` or `invite` is missing, or of a wrong type"))
}

fn told(error: IdentityError) -> ControlError {
    ControlError::told(error.code(), &error)
}
