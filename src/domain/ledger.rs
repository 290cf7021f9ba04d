//! Money: bilateral, two-phase, double entry, in integer milli-credits (mc).
//!
//! What B owes A is a number that means something between A and B only. Each node keeps its own book: account B > 0 means
//! that B owes us. A `lock` reserves, and ends in exactly one `commit` or `rollback`; each movement is a new immutable
//! record with two legs, one on the peer's account and one on our own `self` account, so the book always sums to zero.
//! The shape is TigerBeetle's two-phase transfer; the table of who may do what stands in [`next`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::step::{Ms, Npub, Refused};

/// The account of the node itself: the other leg of every posting.
pub const SELF: &str = "self";

/// Most milli-credits of one lock: far above any price, far below what arithmetic and JSON can hold.
pub const AMOUNT_MAX_MC: u64 = 1 << 50;

/// The part that this node plays in the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// We hired: the lock is our own spending budget.
    Requester,
    /// We work: the lock is a reservation against the credit that we grant.
    Executor,
}

/// Where one (task, award_no) stands in this book.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing was reserved.
    None,
    /// Reserved, undecided.
    Locked,
    /// Posted.
    Committed,
    /// Released.
    RolledBack,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The award leaves (requester) or is accepted (executor).
    Lock,
    /// The requester's signed receipt.
    Receipt,
    /// The requester's signed refusal whose evidence holds.
    Refusal,
    /// The executor's signed decline, failure or stop.
    Decline,
    /// `settle_by` has passed and every inbox was read to its end since.
    Expiry,
    /// The owner gives up a claim that is overdue or disputed.
    WriteOff,
}

/// What [`next`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Move to this state.
    To(State),
    /// Nothing changes: it has happened already, or this side waits.
    Keep,
    /// Not possible here: nothing was ever locked.
    Refuse,
}

/// The table (state x event x side). The executor never reverses on its own clock: `Locked x Expiry` keeps the claim,
/// overdue, while the requester may then release its own lock.
pub fn next(state: State, event: Event, side: Side) -> Verdict {
    use Event::{Decline, Expiry, Lock, Receipt, Refusal, WriteOff};
    use State::{Committed, Locked, None, RolledBack};
    match (state, event, side) {
        (None, Lock, _) => Verdict::To(Locked),
        (None, _, _) => Verdict::Refuse,
        (Locked, Receipt, _) => Verdict::To(Committed),
        (Locked, Refusal | Decline, _) => Verdict::To(RolledBack),
        (Locked, Expiry, Side::Requester) => Verdict::To(RolledBack),
        (Locked, Expiry, Side::Executor) => Verdict::Keep,
        // Only whoever is owed can give up; what we owe is decided by signed statements.
        (Locked, WriteOff, Side::Executor) => Verdict::To(RolledBack),
        (Locked, WriteOff, Side::Requester) => Verdict::Keep,
        (Locked, Lock, _) => Verdict::Keep,
        (Committed | RolledBack, _, _) => Verdict::Keep,
    }
}

/// Kind of a [`Transfer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Reserve.
    Lock,
    /// Post, releasing the rest.
    Commit,
    /// Release all.
    Rollback,
}

impl Kind {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
        }
    }
}

/// One immutable movement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// `<requester|executor>/<counterparty>/<task>/<award_no>/<kind>`: at most one of each, ever.
    pub id: String,
    /// Task id.
    pub task: String,
    /// Award.
    pub award_no: u32,
    /// Counterparty.
    pub npub: Npub,
    /// Our part.
    pub side: Side,
    /// Kind.
    pub kind: Kind,
    /// Milli-credits reserved, posted or released.
    pub amount_mc: u64,
    /// When, Unix milliseconds.
    pub at_ms: Ms,
}

/// One account of the book.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Counterparty, or [`SELF`].
    pub npub: Npub,
    /// Settled balance: > 0 means it owes us.
    pub posted_mc: i64,
    /// Reserved by our accepted work for it.
    pub pending_owed_to_us_mc: u64,
    /// Reserved by our awards to it.
    pub pending_we_owe_mc: u64,
}

/// A reservation of (side, counterparty, task, award_no).
pub type LockKey = (Side, Npub, String, u32);

/// The book in memory: balances and open locks. Settled locks live in the store only.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    accounts: BTreeMap<Npub, Account>,
    locks: BTreeMap<LockKey, u64>,
    /// Sum of all open locks.
    locked_mc: u64,
}

impl Ledger {
    /// Puts a stored account back.
    pub fn load_account(&mut self, account: Account) {
        self.accounts.insert(account.npub.clone(), account);
    }

    /// Puts an open lock back (derived from a live job or engagement; the account holds the sum).
    pub fn load_lock(&mut self, key: LockKey, amount_mc: u64) {
        let before = self.locks.insert(key, amount_mc).unwrap_or(0);
        self.locked_mc = self
            .locked_mc
            .saturating_sub(before)
            .saturating_add(amount_mc);
    }

    /// The account of `npub`, zero if there is none.
    pub fn account(&self, npub: &str) -> Account {
        self.accounts.get(npub).cloned().unwrap_or_else(|| Account {
            npub: npub.to_owned(),
            posted_mc: 0,
            pending_owed_to_us_mc: 0,
            pending_we_owe_mc: 0,
        })
    }

    /// All accounts.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    /// All open locks.
    pub fn locks(&self) -> impl Iterator<Item = (&LockKey, u64)> {
        self.locks.iter().map(|(key, amount)| (key, *amount))
    }

    /// Sum of all postings: always 0.
    pub fn sum_mc(&self) -> i64 {
        self.accounts.values().map(|a| a.posted_mc).sum()
    }

    /// What `npub` owes us or may come to owe us by accepted work: the number held against its limit.
    pub fn exposure_mc(&self, npub: &str) -> u64 {
        let account = self.account(npub);
        u64::try_from(account.posted_mc)
            .unwrap_or(0)
            .saturating_add(account.pending_owed_to_us_mc)
    }

    /// Applies `event`, returning the record to store (none if nothing changes).
    ///
    /// `amount_mc` is the reservation for `Lock`, the cost for `Receipt`, ignored otherwise.
    ///
    /// # Errors
    /// `lock_missing` where nothing was ever reserved, `cost_above_lock`, `amount_range`.
    pub fn apply(
        &mut self,
        key: &LockKey,
        event: Event,
        amount_mc: u64,
        settled: bool,
        now: Ms,
    ) -> Result<Option<Transfer>, Refused> {
        let locked = self.locks.get(key).copied();
        let state = match (locked, settled) {
            (Some(_), _) => State::Locked,
            (None, true) => State::Committed,
            (None, false) => State::None,
        };
        let to = match next(state, event, key.0) {
            Verdict::Keep => return Ok(None),
            Verdict::Refuse => {
                return Err(Refused::new(
                    "lock_missing",
                    "no credit was ever reserved for this award",
                ));
            }
            Verdict::To(to) => to,
        };
        // Whatever is locked may be posted one day, and no sum of it may leave the range of the numbers.
        let in_play = (self.account(&key.1).posted_mc.unsigned_abs())
            .max(self.account(SELF).posted_mc.unsigned_abs())
            .saturating_add(self.locked_mc);
        let names_amount = matches!(event, Event::Lock | Event::Receipt);
        if (names_amount && amount_mc > AMOUNT_MAX_MC)
            || (event == Event::Lock && in_play > i64::MAX as u64 / 4)
        {
            return Err(Refused::new("amount_range", "the amount is out of range"));
        }
        let reserved = locked.unwrap_or(0);
        let (kind, amount) = match to {
            State::Locked => (Kind::Lock, amount_mc),
            State::Committed if amount_mc > reserved => {
                return Err(Refused::new(
                    "cost_above_lock",
                    "the cost is above what was reserved",
                ));
            }
            State::Committed => (Kind::Commit, amount_mc),
            _ => (Kind::Rollback, reserved),
        };
        self.post(key, kind, amount, reserved);
        Ok(Some(Transfer {
            id: transfer_id(key, kind),
            task: key.2.clone(),
            award_no: key.3,
            npub: key.1.clone(),
            side: key.0,
            kind,
            amount_mc: amount,
            at_ms: now,
        }))
    }

    fn post(&mut self, key: &LockKey, kind: Kind, amount: u64, reserved: u64) {
        let mut account = self.account(&key.1);
        let pending = match key.0 {
            Side::Executor => &mut account.pending_owed_to_us_mc,
            Side::Requester => &mut account.pending_we_owe_mc,
        };
        if kind == Kind::Lock {
            *pending = pending.saturating_add(amount);
            self.locks.insert(key.clone(), amount);
            self.locked_mc = self.locked_mc.saturating_add(amount);
        } else {
            *pending = pending.saturating_sub(reserved);
            self.locks.remove(key);
            self.locked_mc = self.locked_mc.saturating_sub(reserved);
        }
        if kind == Kind::Commit {
            let signed = amount as i64 * if key.0 == Side::Executor { 1 } else { -1 };
            account.posted_mc = account.posted_mc.saturating_add(signed);
            let mut own = self.account(SELF);
            own.posted_mc = own.posted_mc.saturating_sub(signed);
            self.accounts.insert(SELF.to_owned(), own);
        }
        self.accounts.insert(key.1.clone(), account);
    }
}

/// The id of the one transfer of this kind for this lock.
pub fn transfer_id(key: &LockKey, kind: Kind) -> String {
    let side = match key.0 {
        Side::Requester => "requester",
        Side::Executor => "executor",
    };
    format!("{side}/{}/{}/{}/{}", key.1, key.2, key.3, kind.as_str())
}
