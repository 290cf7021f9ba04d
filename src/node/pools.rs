//! The pools of the running node: under which secret is sent, under which is read, and what shows that an author is a member.
//! Whoever seals, opens or subscribes asks here, so that joining, rotating and leaving take effect at once. A change is in
//! the home's file before anybody sees it. It must not know what is said in a pool.

mod commands;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use nostr::PublicKey;
use tokio::sync::watch;

use super::order::Mail;
use super::{Mailbox, clock};
use crate::config::Config;
use crate::domain::step::Input;
use crate::identity::pool::{PoolSecret, utc_day};
use crate::identity::pool_book::PoolBook;
use crate::identity::{Identity, IdentityError, pool_file};

/// Every pool that this node is in.
pub struct Pools {
    dir: PathBuf,
    identity: Arc<Identity>,
    /// Open pools, from the settings.
    open: BTreeMap<String, PoolSecret>,
    /// NIP-13 work that a wrap to an open pool must show. A private one asks for none: its members know each other.
    open_pow_bits: u8,
    /// Where this node reads: what a pool of our own starts with.
    home_relays: Vec<String>,
    book: RwLock<PoolBook>,
    /// One change at a time, from reading the book to telling the loop.
    editing: Mutex<()>,
    mailbox: Mailbox,
    changed: watch::Sender<u64>,
}

/// To whom a message goes, and how it must look to be read there.
pub struct Reader {
    /// The key that it is wrapped to.
    pub key: PublicKey,
    /// NIP-13 work that the wrap must show.
    pub pow_bits: u8,
    /// What `params.to` says.
    pub audience: String,
    /// Relays besides our own.
    pub relays: Vec<String>,
}

/// A secret that is subscribed to.
pub struct Subscribed {
    /// The pool.
    pub name: String,
    /// The secret's number; 0 for an open pool.
    pub epoch: u32,
    /// The secret.
    pub secret: PoolSecret,
    /// NIP-13 work that a wrap must show.
    pub pow_bits: u8,
    /// Nothing is read under it any more, only counted.
    pub closed: bool,
}

impl Pools {
    /// The pools of the settings and of the home's file.
    ///
    /// # Errors
    /// `pool_file_invalid` and the like; `pool_name_taken` for a name that is open in the settings and private in the file.
    pub fn load(
        dir: PathBuf,
        identity: Arc<Identity>,
        config: &Config,
        home_relays: Vec<String>,
        mailbox: Mailbox,
    ) -> Result<Self, IdentityError> {
        let book = pool_file::load(&dir, &identity)?;
        let open = config
            .pools
            .iter()
            .map(|name| Ok((name.clone(), PoolSecret::open(name)?)))
            .collect::<Result<BTreeMap<_, _>, IdentityError>>()?;
        // Said under either secret, half of it would be heard by the wrong people.
        if let Some((name, _)) = book.iter().find(|(name, _)| open.contains_key(*name)) {
            return Err(IdentityError::PoolNameTaken(name.to_owned()));
        }
        Ok(Self {
            dir,
            identity,
            open,
            open_pow_bits: config.pow.open_pool_bits,
            home_relays,
            book: RwLock::new(book),
            editing: Mutex::default(),
            mailbox,
            changed: watch::Sender::new(0),
        })
    }

    /// All names: the open ones, then the private ones.
    pub fn names(&self) -> Vec<String> {
        let book = self.book();
        let private = book.iter().map(|(name, _)| name.to_owned());
        self.open.keys().cloned().chain(private).collect()
    }

    /// Relays of private pools.
    pub fn relays(&self) -> BTreeSet<String> {
        let book = self.book();
        book.iter()
            .flat_map(|(_, pool)| pool.relays.iter().cloned())
            .collect()
    }

    /// Wakes whenever a pool was joined, left or rotated.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How a message to the pool `name` is closed now: always under its newest secret.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn reader(&self, name: &str, now_s: u64) -> Result<Reader, String> {
        let book = self.book();
        let private = book.get(name).ok();
        let epoch = private.and_then(|pool| pool.current());
        let secret = match (epoch, self.open.get(name)) {
            (Some(epoch), _) => &epoch.secret,
            (None, Some(open)) => open,
            (None, None) => return Err("not a member of the pool".to_owned()),
        };
        let keys = secret.day_keys(utc_day(now_s)).map_err(|e| e.to_string())?;
        let me = self.identity.nostr().public_key();
        Ok(Reader {
            key: keys.public_key(),
            pow_bits: match epoch {
                Some(_) => 0,
                None => self.open_pow_bits,
            },
            audience: match epoch {
                Some(epoch) => {
                    private_audience(name, epoch.number, secret, &me).map_err(|e| e.to_string())?
                }
                None => format!("pool:{name}"),
            },
            relays: private.map(|pool| pool.relays.clone()).unwrap_or_default(),
        })
    }

    /// Whether `to`, in a message by `author`, is what a member writes for this pool and epoch.
    pub fn is_audience(&self, to: &str, name: &str, epoch: u32, author: &PublicKey) -> bool {
        if epoch == 0 {
            return to.strip_prefix("pool:") == Some(name);
        }
        let book = self.book();
        let known = book.get(name).ok().and_then(|pool| {
            let mut epochs = pool.epochs.iter();
            epochs.find(|known| known.number == epoch)
        });
        known.is_some_and(|known| {
            private_audience(name, epoch, &known.secret, author).is_ok_and(|wanted| wanted == to)
        })
    }

    /// Every secret to subscribe to at this time.
    pub fn read(&self, now_s: u64) -> Vec<Subscribed> {
        let open = self.open.iter().map(|(name, secret)| Subscribed {
            name: name.clone(),
            epoch: 0,
            secret: secret.clone(),
            pow_bits: self.open_pow_bits,
            closed: false,
        });
        let book = self.book();
        let private = book.iter().flat_map(|(name, pool)| {
            pool.epochs.iter().map(move |epoch| Subscribed {
                name: name.to_owned(),
                epoch: epoch.number,
                secret: epoch.secret.clone(),
                pow_bits: 0,
                closed: epoch.until_s.is_some_and(|until| until <= now_s),
            })
        });
        open.chain(private).collect()
    }

    /// Erases secrets that have been closed for a week.
    pub fn prune(&self) {
        let now_s = clock::now_ms() / 1000;
        if !self.book().clone().prune(now_s) {
            return;
        }
        if let Err(error) = self.edit(|book| Ok(book.prune(now_s))) {
            tracing::warn!(code = error.code(), "old secrets of pools stay: {error}");
        }
    }

    /// Changes the book: in the file, then here, then for everybody who asked to be told. An error changes nothing.
    fn edit<T>(
        &self,
        change: impl FnOnce(&mut PoolBook) -> Result<T, IdentityError>,
    ) -> Result<T, IdentityError> {
        let _one = self.one_change();
        let mut book = self.book().clone();
        let done = change(&mut book)?;
        pool_file::save(&self.dir, &self.identity, &book)?;
        *self.book.write().unwrap_or_else(PoisonError::into_inner) = book;
        self.mailbox.post(Mail::Fact(Input::Pools(self.names())));
        // Live offers go out once more, under what is now the newest secret.
        self.mailbox.post(Mail::Fact(Input::Announce));
        self.changed.send_modify(|count| *count += 1);
        Ok(done)
    }

    fn one_change(&self) -> MutexGuard<'_, ()> {
        self.editing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn book(&self) -> RwLockReadGuard<'_, PoolBook> {
        self.book.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `pool:NAME/EPOCH/TAG`: the tag is one that only members can make, for this author alone.
fn private_audience(
    name: &str,
    epoch: u32,
    secret: &PoolSecret,
    author: &PublicKey,
) -> Result<String, IdentityError> {
    Ok(format!(
        "pool:{name}/{epoch}/{}",
        secret.member_tag(author)?
    ))
}

#[cfg(test)]
mod tests {
    //! Sent under the newest secret alone; read under an older one until its time, to the second; told to the loop at once.
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::identity::{Lct, Mnemonic};
    use nostr::Keys;

    fn identity() -> Identity {
        let words = Mnemonic::generate().unwrap();
        Identity::derive(&words, Lct::new("ada", "attic", "worker").unwrap(), 0).unwrap()
    }

    #[test]
    fn a_rotated_secret_is_read_until_its_time_and_never_sent_under() {
        let (dir, identity) = (tempfile::tempdir().unwrap(), Arc::new(identity()));
        let (mails, told) = std::sync::mpsc::channel();
        let load = || {
            let (dir, config) = (dir.path().to_owned(), Config::default());
            let mailbox = Mailbox::new(mails.clone(), 1);
            Pools::load(dir, identity.clone(), &config, Vec::new(), mailbox).unwrap()
        };
        let (pools, me) = (load(), identity.nostr().public_key());
        let now_s = 1_795_219_200;
        pools
            .edit(|book| book.create("family", me, Vec::new(), now_s))
            .unwrap();
        let first = pools.reader("family", now_s).unwrap();
        assert_eq!(
            pools.reader("legion", now_s).unwrap().audience,
            "pool:legion"
        );
        assert_eq!((first.pow_bits, pools.open_pow_bits > 0), (0, true));
        pools.edit(|book| book.rotate("family", 60, now_s)).unwrap();
        let second = pools.reader("family", now_s).unwrap();
        assert_ne!((first.key, &first.audience), (second.key, &second.audience));

        let read = |pools: &Pools, at_s| -> Vec<(String, u32, bool)> {
            let read = pools.read(at_s).into_iter();
            read.map(|r| (r.name, r.epoch, r.closed)).collect()
        };
        let both = |closed| {
            [
                ("legion", 0, false),
                ("family", 1, closed),
                ("family", 2, false),
            ]
            .map(|(name, epoch, closed)| (name.to_owned(), epoch, closed))
        };
        assert_eq!(read(&pools, now_s + 59), both(false));
        assert_eq!(read(&pools, now_s + 60), both(true));
        assert_eq!(read(&load(), now_s + 60), both(true), "after a restart");

        let audience = |to: &str, epoch| pools.is_audience(to, "family", epoch, &me);
        assert!(audience(&first.audience, 1) && audience(&second.audience, 2));
        assert!(!audience(&first.audience, 2) && !audience("pool:family", 2));
        let other = Keys::generate().public_key();
        assert!(!pools.is_audience(&second.audience, "family", 2, &other));

        pools.edit(|book| book.leave("family")).unwrap();
        assert!(pools.reader("family", now_s).is_err());
        assert!(!pools.is_audience(&second.audience, "family", 2, &me));
        let names = told.try_iter().filter_map(|mail| match mail {
            Mail::Fact(Input::Pools(names)) => Some(names.join(" ")),
            _ => None,
        });
        let expected = ["legion family", "legion family", "legion"];
        assert_eq!(names.collect::<Vec<_>>(), expected);
    }
}
