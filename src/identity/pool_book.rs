//! The private pools of a node: their secrets by epoch, and the rules of joining and rotating. Plain data and decisions; it must
//! not know where the book is kept, nor what is said in a pool.
//!
//! An epoch's secret is *current* until a rotation. Then nothing is sent under it any more; it is *read* until a time that the
//! rotation names and every new invite repeats, so that members who have not joined the new one yet are heard. After that it
//! is *closed*: what still comes under it is refused unopened, and counted. A week later it is erased.

use std::collections::BTreeMap;

use nostr::PublicKey;

use super::error::IdentityError;
use super::invite::Invite;
use super::pool::{PoolSecret, is_pool_name};

/// Most private pools of one node: each costs its relays three subscriptions per epoch.
pub const POOLS_MAX: usize = 32;
/// Epochs kept of one pool; a pool that is rotated faster forgets the oldest at once.
const EPOCHS_MAX: usize = 4;
/// Longest that an old secret is read after a rotation.
pub const GRACE_MAX_S: u64 = 90 * 86_400;
/// How long messages under a closed secret are still counted.
const CLOSED_S: u64 = 7 * 86_400;

/// One secret of a pool.
#[derive(Clone, Debug)]
pub struct Epoch {
    /// Its number, from 1.
    pub number: u32,
    /// The secret.
    pub secret: PoolSecret,
    /// Until when it is read, Unix seconds; none for the current one.
    pub until_s: Option<u64>,
}

/// A pool that was created here or joined with an invite.
#[derive(Clone, Debug)]
pub struct PrivatePool {
    /// Which pool of its name.
    pub id: [u8; 16],
    /// Its secrets, the current one last; never empty.
    pub epochs: Vec<Epoch>,
    /// Relays on which its members meet.
    pub relays: Vec<String>,
    /// Who wrote the invite that was joined last; the creator for its own.
    pub inviter: PublicKey,
    /// When it was joined, Unix seconds.
    pub joined_at_s: u64,
}

impl PrivatePool {
    /// The secret that is sent under.
    pub fn current(&self) -> Option<&Epoch> {
        self.epochs.last()
    }

    /// Closes what is current in favour of another secret.
    fn succeed(&mut self, secret: PoolSecret, number: u32, until_s: u64) {
        for epoch in &mut self.epochs {
            epoch.until_s = Some(epoch.until_s.unwrap_or(until_s).min(until_s));
        }
        self.epochs.push(Epoch {
            number,
            secret,
            until_s: None,
        });
        let surplus = self.epochs.len().saturating_sub(EPOCHS_MAX);
        self.epochs.drain(..surplus);
    }
}

/// Every private pool of a node, by name.
#[derive(Clone, Debug, Default)]
pub struct PoolBook {
    pub(super) pools: BTreeMap<String, PrivatePool>,
}

impl PoolBook {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &PrivatePool)> {
        self.pools.iter().map(|(name, pool)| (name.as_str(), pool))
    }

    /// One of them.
    ///
    /// # Errors
    /// `pool_unknown`.
    pub fn get(&self, name: &str) -> Result<&PrivatePool, IdentityError> {
        self.pools
            .get(name)
            .ok_or_else(|| IdentityError::PoolUnknown(name.to_owned()))
    }

    /// Makes a pool of our own. Names of open pools are the caller's to refuse.
    ///
    /// # Errors
    /// `pool_name_invalid`, `pool_name_taken`, `pools_too_many`, `entropy_unavailable`.
    pub fn create(
        &mut self,
        name: &str,
        me: PublicKey,
        relays: Vec<String>,
        now_s: u64,
    ) -> Result<(), IdentityError> {
        if !is_pool_name(name) {
            return Err(IdentityError::PoolNameInvalid);
        }
        if self.pools.contains_key(name) {
            return Err(IdentityError::PoolNameTaken(name.to_owned()));
        }
        let mut id = [0u8; 16];
        getrandom::fill(&mut id).map_err(IdentityError::EntropyUnavailable)?;
        let epoch = Epoch {
            number: 1,
            secret: PoolSecret::generate()?,
            until_s: None,
        };
        self.add(
            name,
            PrivatePool {
                id,
                epochs: vec![epoch],
                relays,
                inviter: me,
                joined_at_s: now_s,
            },
        )
    }

    /// Joins a pool, or the next epoch of one. Gives whether that changed anything: the same invite twice does not.
    ///
    /// # Errors
    /// `pool_name_taken`, `invite_superseded`, `pool_epoch_taken`, `pools_too_many`; then nothing has changed.
    pub fn join(&mut self, invite: &Invite, now_s: u64) -> Result<bool, IdentityError> {
        let Some(pool) = self.pools.get_mut(&invite.name) else {
            let pool = PrivatePool {
                id: invite.pool,
                epochs: vec![Epoch {
                    number: invite.epoch,
                    secret: invite.secret.clone(),
                    until_s: None,
                }],
                relays: invite.relays.clone(),
                inviter: invite.inviter,
                joined_at_s: now_s,
            };
            return self.add(&invite.name, pool).map(|()| true);
        };
        if pool.id != invite.pool {
            return Err(IdentityError::PoolNameTaken(invite.name.clone()));
        }
        let (known, same) = pool.current().map_or((0, false), |epoch| {
            let same = epoch.secret.as_bytes() == invite.secret.as_bytes();
            (epoch.number, same)
        });
        if invite.epoch < known {
            return Err(IdentityError::InviteSuperseded {
                name: invite.name.clone(),
                offered: invite.epoch,
                known,
            });
        }
        if invite.epoch == known {
            return match same {
                true => Ok(false),
                false => Err(IdentityError::PoolEpochTaken {
                    name: invite.name.clone(),
                    epoch: known,
                }),
            };
        }
        let until_s = invite.before_until_s.min(now_s.saturating_add(GRACE_MAX_S));
        pool.succeed(invite.secret.clone(), invite.epoch, until_s);
        pool.relays.clone_from(&invite.relays);
        pool.inviter = invite.inviter;
        Ok(true)
    }

    /// Gives a pool a new secret. The old one is read for `grace_s` more seconds, and never sent under again.
    ///
    /// # Errors
    /// `pool_unknown`, `entropy_unavailable`.
    pub fn rotate(&mut self, name: &str, grace_s: u64, now_s: u64) -> Result<(), IdentityError> {
        let secret = PoolSecret::generate()?;
        let pool = self
            .pools
            .get_mut(name)
            .ok_or_else(|| IdentityError::PoolUnknown(name.to_owned()))?;
        let number = pool.current().map_or(0, |epoch| epoch.number);
        let until_s = now_s.saturating_add(grace_s.min(GRACE_MAX_S));
        pool.succeed(secret, number.saturating_add(1), until_s);
        Ok(())
    }

    /// Forgets a pool and its secrets.
    ///
    /// # Errors
    /// `pool_unknown`.
    pub fn leave(&mut self, name: &str) -> Result<(), IdentityError> {
        match self.pools.remove(name) {
            Some(_) => Ok(()),
            None => Err(IdentityError::PoolUnknown(name.to_owned())),
        }
    }

    /// What an invite to the pool says now.
    ///
    /// # Errors
    /// `pool_unknown`.
    pub fn invite(
        &self,
        name: &str,
        inviter: PublicKey,
        expires_at_s: u64,
    ) -> Result<Invite, IdentityError> {
        let pool = self.get(name)?;
        let current = pool
            .current()
            .ok_or_else(|| IdentityError::PoolUnknown(name.to_owned()))?;
        let before = pool.epochs.iter().rev().nth(1);
        Ok(Invite {
            name: name.to_owned(),
            pool: pool.id,
            epoch: current.number,
            secret: current.secret.clone(),
            before_until_s: before.and_then(|epoch| epoch.until_s).unwrap_or(0),
            relays: pool.relays.clone(),
            inviter,
            expires_at_s,
        })
    }

    /// Erases secrets that have been closed for a week. Whether there were any.
    pub fn prune(&mut self, now_s: u64) -> bool {
        let mut erased = false;
        for pool in self.pools.values_mut() {
            let before = pool.epochs.len();
            pool.epochs.retain(|epoch| {
                epoch
                    .until_s
                    .is_none_or(|until| until.saturating_add(CLOSED_S) > now_s)
            });
            erased |= pool.epochs.len() != before;
        }
        erased
    }

    fn add(&mut self, name: &str, pool: PrivatePool) -> Result<(), IdentityError> {
        if self.pools.len() >= POOLS_MAX {
            return Err(IdentityError::PoolsTooMany(POOLS_MAX));
        }
        self.pools.insert(name.to_owned(), pool);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
