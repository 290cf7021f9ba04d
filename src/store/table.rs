//! The tables: their names in the file, their numbers in keys, the version of their values.
//!
//! Knows nothing of what a row says. A name or number, once released, never changes.

use redb::TableDefinition;

use super::error::StoreError;

/// One table of the store; keys and values are bytes, keys are ordered bytewise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Schema, counters, anything there is one of.
    Meta = 0,
    /// Ids of messages whose effect is recorded, and of the wraps they came in.
    Seen = 1,
    /// Expiry time, then the key in [`Table::Seen`].
    SeenByTime = 2,
    /// What happened, by sequence number.
    Journal = 3,
    /// Tasks, live and finished.
    Tasks = 4,
    /// Time of finishing, then the task's key.
    TasksByTime = 5,
    /// Large inputs and results, by task and name.
    Payloads = 6,
    /// The two newest checkpoints of each lease.
    Checkpoints = 7,
    /// Movements of credit; never pruned.
    Transfers = 8,
    /// Balances per peer; never pruned.
    Accounts = 9,
    /// Known peers.
    Peers = 10,
    /// Messages that are not yet acknowledged.
    Outbox = 11,
    /// Idempotency keys and one-time reply keys.
    Keys = 12,
    /// What is remembered of foreign tasks before work on them begins (bids made, cancels that came early).
    Marks = 13,
    /// Signed entries of task histories.
    History = 14,
    /// Keys of rows that are not final: number of the table, then the row's key. A start reads this table, not the large ones.
    Live = 15,
    /// Payloads on their way, in or out.
    Moves = 16,
    /// Pieces of those payloads.
    Pieces = 17,
}

/// How many tables there are.
pub(crate) const TABLES: usize = Table::ALL.len();

/// redb's definition of every table here.
pub(crate) type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

impl Table {
    /// All tables, in the order of their numbers.
    pub const ALL: [Self; 18] = [
        Self::Meta,
        Self::Seen,
        Self::SeenByTime,
        Self::Journal,
        Self::Tasks,
        Self::TasksByTime,
        Self::Payloads,
        Self::Checkpoints,
        Self::Transfers,
        Self::Accounts,
        Self::Peers,
        Self::Outbox,
        Self::Keys,
        Self::Marks,
        Self::History,
        Self::Live,
        Self::Moves,
        Self::Pieces,
    ];

    /// The table's name in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Seen => "seen",
            Self::SeenByTime => "seen_by_time",
            Self::Journal => "journal",
            Self::Tasks => "tasks",
            Self::TasksByTime => "tasks_by_time",
            Self::Payloads => "payloads",
            Self::Checkpoints => "checkpoints",
            Self::Transfers => "transfers",
            Self::Accounts => "accounts",
            Self::Peers => "peers",
            Self::Outbox => "outbox",
            Self::Keys => "keys",
            Self::Marks => "marks",
            Self::History => "history",
            Self::Live => "live",
            Self::Moves => "moves",
            Self::Pieces => "pieces",
        }
    }

    /// The version written in front of this table's values. Raise it when a row's shape changes so that an older
    /// program would misread it; a field that serde may miss or ignore needs no new version.
    #[must_use]
    pub const fn value_version(self) -> u16 {
        1
    }

    /// The table's number, as it stands in [`Table::Live`].
    pub(crate) const fn number(self) -> u8 {
        self as u8
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    pub(crate) const fn definition(self) -> Definition {
        TableDefinition::new(self.name())
    }
}

/// Starts a value: its version, little-endian.
pub(crate) fn start_value(table: Table, into: &mut Vec<u8>) {
    into.clear();
    into.extend_from_slice(&table.value_version().to_le_bytes());
}

/// The body of a stored value, if this program knows its version.
pub(crate) fn body(table: Table, value: &[u8]) -> Result<&[u8], StoreError> {
    let Some((version, body)) = value.split_first_chunk::<2>() else {
        return Err(StoreError::invalid(format!(
            "a value in table {} has no version",
            table.name()
        )));
    };
    let found = u16::from_le_bytes(*version);
    let known = table.value_version();
    if found > known {
        return Err(StoreError::Newer {
            what: format!("a value in table {}", table.name()),
            found: found.into(),
            known: known.into(),
        });
    }
    Ok(body)
}

/// Joins a key and what belongs to it so that no two owners' keys are prefixes of each other: length of `owner`
/// (u16, big-endian), `owner`, `rest`. Pruning a task removes all of [`Table::Payloads`], [`Table::History`] and
/// [`Table::Checkpoints`] whose key starts with `owned_key(task, &[])`.
///
/// An owner is an id: at most 65,535 bytes of it count.
#[must_use]
pub fn owned_key(owner: &[u8], rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(owner.len()).unwrap_or(u16::MAX);
    let mut key = Vec::with_capacity(2 + owner.len() + rest.len());
    key.extend_from_slice(&length.to_be_bytes());
    key.extend_from_slice(owner);
    key.extend_from_slice(rest);
    key
}

#[cfg(test)]
mod tests {
    //! Promise: a table's number is its place, its name is its own, and foreign values are refused, not misread.
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_and_names_are_unique() {
        for (place, table) in Table::ALL.into_iter().enumerate() {
            assert_eq!(table.index(), place);
            let same = Table::ALL
                .into_iter()
                .filter(|other| other.name() == table.name());
            assert_eq!(same.count(), 1, "{}", table.name());
        }
    }

    #[test]
    fn a_value_without_or_with_a_newer_version_is_refused() {
        assert_eq!(
            body(Table::Tasks, &[1]).unwrap_err().code(),
            "store_invalid"
        );
        assert_eq!(
            body(Table::Tasks, &[2, 0, b'{']).unwrap_err().code(),
            "store_newer"
        );
        assert_eq!(body(Table::Tasks, &[1, 0, b'x']).unwrap(), b"x");
    }

    #[test]
    fn owned_keys_of_two_owners_never_share_a_prefix() {
        let short = owned_key(b"a", &[]);
        let long = owned_key(b"ab", b"x");
        assert!(!long.starts_with(&short));
        assert!(owned_key(b"a", b"bx").starts_with(&short));
    }
}
