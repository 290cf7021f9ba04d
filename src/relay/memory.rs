//! The events that the relay holds, in memory, within limits: a full memory refuses the newest event and never drops an older one to
//! make room. Indexed by (tag, kind), (author, kind) and kind, each newest first. It knows no connection, no file and no clock: the
//! time is a parameter.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use super::record::{Bytes32, Filter, Keeping, Record, keeping};

pub(crate) const KIND_DELETION: u16 = 5;

/// Newest first, then by id: the order of NIP-01.
type Order = (Reverse<u64>, Bytes32);
/// The events of one tag value, author or kind: by kind, then in order.
type Run = BTreeSet<(u16, Reverse<u64>, Bytes32)>;
/// What a replaceable event replaces: kind, author, `d` (empty unless addressable).
type Address = (u16, Bytes32, Box<str>);

/// What became of an event that was given to the memory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// New, and kept.
    Kept,
    /// Held already.
    Duplicate,
    /// A newer version of this replaceable event is held.
    Superseded,
    /// Refused: its author or recipient deleted it earlier (NIP-09).
    Deleted,
    /// Refused: its time is over (NIP-40).
    Expired,
    /// Refused: no room.
    Full,
}

/// The events and their indexes.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    max_events: usize,
    max_bytes: usize,
    bytes: usize,
    by_id: HashMap<Bytes32, Arc<Record>>,
    by_tag: HashMap<(u8, Box<str>), Run>,
    by_author: HashMap<Bytes32, Run>,
    by_kind: Run,
    by_address: HashMap<Address, Bytes32>,
    by_expiry: BTreeSet<(u64, Bytes32)>,
    /// Ids named by the stored deletions, each with those who deleted them.
    deleted: HashMap<Bytes32, HashSet<Bytes32>>,
}

impl Memory {
    pub(crate) fn new(max_events: usize, max_bytes: usize) -> Self {
        Self {
            max_events,
            max_bytes,
            ..Self::default()
        }
    }

    /// Events held.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// What they cost, see [`Record::cost_bytes`].
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn contains(&self, id: &Bytes32) -> bool {
        self.by_id.contains_key(id)
    }

    /// Every event held, oldest first.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Record>> {
        let mut all: Vec<_> = self.by_id.values().cloned().collect();
        all.sort_by_key(|record| (record.created_at_s, record.id));
        all
    }

    /// Takes a verified event that is not ephemeral.
    pub(crate) fn insert(&mut self, record: &Arc<Record>, now_s: u64) -> Admission {
        self.sweep(now_s);
        if self.by_id.contains_key(&record.id) {
            return Admission::Duplicate;
        }
        if record.is_expired(now_s) {
            return Admission::Expired;
        }
        if self
            .deleted
            .get(&record.id)
            .is_some_and(|by| by.iter().any(|author| record.belongs_to(author)))
        {
            return Admission::Deleted;
        }
        let address = address(record);
        let replaced = address
            .as_ref()
            .and_then(|a| self.by_address.get(a))
            .and_then(|id| self.by_id.get(id))
            .cloned();
        if replaced
            .as_ref()
            .is_some_and(|held| order(held) < order(record))
        {
            return Admission::Superseded;
        }
        if record.kind == KIND_DELETION {
            self.delete_named_by(record);
        }
        let (freed_events, freed_bytes) = replaced
            .as_ref()
            .map_or((0, 0), |held| (1, held.cost_bytes()));
        if self.by_id.len() - freed_events >= self.max_events
            || (self.bytes - freed_bytes).saturating_add(record.cost_bytes()) > self.max_bytes
        {
            return Admission::Full;
        }
        if let Some(held) = replaced {
            self.remove(&held.id);
        }
        self.add(record, address);
        Admission::Kept
    }

    fn add(&mut self, record: &Arc<Record>, address: Option<Address>) {
        let entry = (record.kind, Reverse(record.created_at_s), record.id);
        for (letter, value) in &record.tags {
            self.by_tag
                .entry((*letter, value.clone()))
                .or_default()
                .insert(entry);
        }
        self.by_author
            .entry(record.author)
            .or_default()
            .insert(entry);
        self.by_kind.insert(entry);
        if let Some(address) = address {
            self.by_address.insert(address, record.id);
        }
        if let Some(at) = record.expires_at_s {
            self.by_expiry.insert((at, record.id));
        }
        if record.kind == KIND_DELETION {
            for id in ids_named_by(record) {
                self.deleted.entry(id).or_default().insert(record.author);
            }
        }
        self.bytes += record.cost_bytes();
        self.by_id.insert(record.id, Arc::clone(record));
    }

    /// Forgets one event, whoever asks: the caller has decided.
    pub(crate) fn remove(&mut self, id: &Bytes32) {
        let Some(record) = self.by_id.remove(id) else {
            return;
        };
        let entry = (record.kind, Reverse(record.created_at_s), record.id);
        for (letter, value) in &record.tags {
            prune(&mut self.by_tag, &(*letter, value.clone()), |run| {
                run.remove(&entry);
                run.is_empty()
            });
        }
        prune(&mut self.by_author, &record.author, |run| {
            run.remove(&entry);
            run.is_empty()
        });
        self.by_kind.remove(&entry);
        if let Some(address) = address(&record)
            && self.by_address.get(&address) == Some(id)
        {
            self.by_address.remove(&address);
        }
        if let Some(at) = record.expires_at_s {
            self.by_expiry.remove(&(at, record.id));
        }
        if record.kind == KIND_DELETION {
            for named in ids_named_by(&record) {
                prune(&mut self.deleted, &named, |by| {
                    by.remove(&record.author);
                    by.is_empty()
                });
            }
        }
        self.bytes -= record.cost_bytes();
    }

    /// Forgets what has expired (NIP-40).
    fn sweep(&mut self, now_s: u64) {
        while let Some(&(at, id)) = self.by_expiry.first() {
            if at > now_s {
                break;
            }
            self.by_expiry.pop_first();
            self.remove(&id);
        }
    }

    /// NIP-09: what a deletion names goes, if it belongs to who deletes; a deletion itself cannot be deleted.
    pub(crate) fn delete_named_by(&mut self, deletion: &Record) {
        for id in ids_named_by(deletion) {
            if self
                .by_id
                .get(&id)
                .is_some_and(|held| held.kind != KIND_DELETION && held.belongs_to(&deletion.author))
            {
                self.remove(&id);
            }
        }
        for named in deletion.tag_values(b'a') {
            let mut parts = named.splitn(3, ':');
            let (Some(kind), Some(author), Some(d)) = (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let Ok(kind) = kind.parse::<u16>() else {
                continue;
            };
            if author != hex::encode(deletion.author) {
                continue;
            }
            if let Some(id) = self
                .by_address
                .get(&(kind, deletion.author, d.into()))
                .copied()
                && self
                    .by_id
                    .get(&id)
                    .is_some_and(|held| held.created_at_s <= deletion.created_at_s)
            {
                self.remove(&id);
            }
        }
    }

    /// The events that match any of the filters, newest first, each filter cut to its own limit and to `max_limit`.
    pub(crate) fn query(
        &mut self,
        filters: &[Filter],
        max_limit: usize,
        now_s: u64,
    ) -> Vec<Arc<Record>> {
        self.sweep(now_s);
        let mut found = BTreeMap::new();
        for filter in filters {
            found.append(
                &mut self.query_one(filter, filter.limit.unwrap_or(max_limit).min(max_limit)),
            );
        }
        found.into_values().collect()
    }

    /// How many events match any of the filters (NIP-45); limits do not apply.
    pub(crate) fn count(&mut self, filters: &[Filter], now_s: u64) -> usize {
        self.sweep(now_s);
        let mut found = BTreeMap::new();
        for filter in filters {
            found.append(&mut self.query_one(filter, usize::MAX));
        }
        found.len()
    }

    /// Walks the narrowest index the filter allows: ids, then a tag, then authors, then kinds.
    fn query_one(&self, filter: &Filter, limit: usize) -> BTreeMap<Order, Arc<Record>> {
        let mut found = BTreeMap::new();
        let empty = filter
            .since_s
            .zip(filter.until_s)
            .is_some_and(|(since, until)| since > until);
        if limit == 0 || empty {
            return found;
        }
        if let Some(ids) = &filter.ids {
            for record in ids
                .iter()
                .filter_map(|id| self.by_id.get(id))
                .filter(|record| filter.matches(record))
            {
                found.insert(order(record), Arc::clone(record));
                cut(&mut found, limit);
            }
        } else if let Some((letter, values)) =
            filter.tags.iter().min_by_key(|(_, values)| values.len())
        {
            for run in values
                .iter()
                .filter_map(|value| self.by_tag.get(&(*letter, value.as_str().into())))
            {
                self.walk(run, filter, limit, &mut found);
            }
        } else if let Some(authors) = &filter.authors {
            for run in authors
                .iter()
                .filter_map(|author| self.by_author.get(author))
            {
                self.walk(run, filter, limit, &mut found);
            }
        } else {
            self.walk(&self.by_kind, filter, limit, &mut found);
        }
        found
    }

    fn walk(
        &self,
        run: &Run,
        filter: &Filter,
        limit: usize,
        found: &mut BTreeMap<Order, Arc<Record>>,
    ) {
        let newest = Reverse(filter.until_s.unwrap_or(u64::MAX));
        let oldest = Reverse(filter.since_s.unwrap_or(0));
        let mut one_kind = |kind: u16| {
            let matching = run
                .range((kind, newest, [0; 32])..=(kind, oldest, [0xff; 32]))
                .filter_map(|(_, _, id)| self.by_id.get(id))
                .filter(|record| filter.matches(record))
                .take(limit);
            for record in matching {
                found.insert(order(record), Arc::clone(record));
            }
            cut(found, limit);
        };
        if let Some(kinds) = &filter.kinds {
            kinds.iter().for_each(|kind| one_kind(*kind));
            return;
        }
        let mut next = run.first();
        while let Some((kind, _, _)) = next.copied() {
            one_kind(kind);
            next = run
                .range((
                    Bound::Excluded((kind, Reverse(0), [0xff; 32])),
                    Bound::Unbounded,
                ))
                .next();
        }
    }
}

fn cut(found: &mut BTreeMap<Order, Arc<Record>>, limit: usize) {
    while found.len() > limit {
        found.pop_last();
    }
}

/// Changes one entry and drops it once it is empty, so that foreign names leave nothing behind.
fn prune<K: std::hash::Hash + Eq, V>(
    map: &mut HashMap<K, V>,
    key: &K,
    change: impl FnOnce(&mut V) -> bool,
) {
    if map.get_mut(key).is_some_and(change) {
        map.remove(key);
    }
}

fn order(record: &Record) -> Order {
    (Reverse(record.created_at_s), record.id)
}

fn address(record: &Record) -> Option<Address> {
    match keeping(record.kind) {
        Keeping::Replaceable => Some((record.kind, record.author, "".into())),
        Keeping::Addressable => Some((
            record.kind,
            record.author,
            record.tag_values(b'd').next().unwrap_or("").into(),
        )),
        Keeping::Regular | Keeping::Ephemeral => None,
    }
}

fn ids_named_by(deletion: &Record) -> Vec<Bytes32> {
    deletion
        .tag_values(b'e')
        .filter_map(|value| {
            let mut id = [0; 32];
            hex::decode_to_slice(value, &mut id).ok().map(|()| id)
        })
        .collect()
}

#[cfg(test)]
mod tests;
