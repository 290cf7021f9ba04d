//! The result root: one hash over all unit results of a job, so that a proof signs every unit and a refusal can name one.
//! Pure bytes in, bytes out; it knows no task type, no proof and no skill.
//!
//! Encoding (protocol section 5), all integers big-endian, `lp(x)` = `u32` length of `x`, then `x`:
//!
//! ```text
//! leaf = SHA-256( 0x00 | lp(task) | award_no u64 | lp(executor) | lp(input_commitment) | unit_index u32 | unit_count u32 | lp(unit bytes) )
//! node = SHA-256( 0x01 | left 32 | right 32 )
//! ```
//!
//! Pairs are taken from the left; the odd node at the end of a level is promoted unchanged. Because a leaf holds its index and
//! the unit count, promotion cannot make two different result lists share a root (the trap of duplicated last nodes).

use sha2::{Digest, Sha256};

/// A SHA-256 value, 32 bytes.
pub type Hash = [u8; 32];

/// What all leaves of one result have in common. It binds a unit to one award, so that a result cannot be sold twice.
#[derive(Debug, Clone, Copy)]
pub struct ResultContext<'a> {
    /// The task id, as it is written on the wire.
    pub task: &'a [u8],
    /// The number of the award under which the work was done, from 1.
    pub award_no: u64,
    /// The executor's key or LCT, as it is written in the proof.
    pub executor: &'a [u8],
    /// The salted commitment to the input, as it is written in the offer.
    pub input_commitment: &'a [u8],
}

/// The hash of one unit result.
///
/// `unit_index` counts from 0 and is below `unit_count`; both are hashed as they are given, not checked.
pub fn leaf(context: &ResultContext<'_>, unit_index: u32, unit_count: u32, unit: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([0x00]);
    put(&mut hasher, context.task);
    hasher.update(context.award_no.to_be_bytes());
    put(&mut hasher, context.executor);
    put(&mut hasher, context.input_commitment);
    hasher.update(unit_index.to_be_bytes());
    hasher.update(unit_count.to_be_bytes());
    put(&mut hasher, unit);
    hasher.finalize().into()
}

/// The root over all unit results in unit order; `None` for an empty list or one of more than `u32::MAX` units, which no job has.
pub fn result_root<U: AsRef<[u8]>>(context: &ResultContext<'_>, units: &[U]) -> Option<Hash> {
    let unit_count = u32::try_from(units.len()).ok()?;
    let leaves = (0..unit_count)
        .zip(units)
        .map(|(index, unit)| leaf(context, index, unit_count, unit.as_ref()));
    root_of(leaves.collect())
}

/// The root over a level of hashes; `None` when there is none.
fn root_of(mut level: Vec<Hash>) -> Option<Hash> {
    while level.len() > 1 {
        level = level
            .chunks(2)
            .filter_map(|pair| match pair {
                [left, right] => Some(node(left, right)),
                [odd] => Some(*odd),
                _ => None,
            })
            .collect();
    }
    level.first().copied()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([0x01]);
    hasher.update(left);
    hasher.update(right);
    hasher.finalize().into()
}

/// Hash a field of variable length behind its length, so that two neighbours can never trade bytes.
fn put(hasher: &mut Sha256, field: &[u8]) {
    // Fields are far below 4 GiB: frames and rumors are limited to megabytes.
    hasher.update(u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
    hasher.update(field);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const CONTEXT: ResultContext<'static> = ResultContext {
        task: b"task-1",
        award_no: 1,
        executor: b"npub1e",
        input_commitment: &[7; 32],
    };

    fn units(count: usize) -> Vec<Vec<u8>> {
        (0..count)
            .map(|index| vec![u8::try_from(index).unwrap(); 24])
            .collect()
    }

    /// The promise: the encoding is the documented one, byte for byte.
    #[test]
    fn leaf_hashes_the_documented_bytes() {
        let mut bytes = vec![0x00];
        bytes.extend([0, 0, 0, 6]);
        bytes.extend(b"task-1");
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0, 0, 0, 6]);
        bytes.extend(b"npub1e");
        bytes.extend([0, 0, 0, 32]);
        bytes.extend([7; 32]);
        bytes.extend([0, 0, 0, 2, 0, 0, 0, 5]);
        bytes.extend([0, 0, 0, 3]);
        bytes.extend(b"abc");
        let expected: Hash = Sha256::digest(&bytes).into();
        assert_eq!(leaf(&CONTEXT, 2, 5, b"abc"), expected);
    }

    /// The promise: an odd node rises unchanged.
    #[test]
    fn five_units_have_the_promoted_shape() {
        let units = units(5);
        let hashes: Vec<Hash> = (0..5)
            .zip(&units)
            .map(|(index, unit)| leaf(&CONTEXT, index, 5, unit))
            .collect();
        let expected = node(
            &node(&node(&hashes[0], &hashes[1]), &node(&hashes[2], &hashes[3])),
            &hashes[4],
        );
        assert_eq!(result_root(&CONTEXT, &units), Some(expected));
        assert_eq!(
            result_root(&CONTEXT, &units[..1]),
            Some(leaf(&CONTEXT, 0, 1, &units[0]))
        );
        assert_eq!(result_root::<Vec<u8>>(&CONTEXT, &[]), None);
    }

    /// The promise: every field, every unit and their order are bound.
    #[test]
    fn any_change_changes_the_root() {
        let base = units(6);
        let root = result_root(&CONTEXT, &base);
        for other in [
            ResultContext {
                task: b"task-2",
                ..CONTEXT
            },
            ResultContext {
                award_no: 2,
                ..CONTEXT
            },
            ResultContext {
                executor: b"npub1f",
                ..CONTEXT
            },
            ResultContext {
                input_commitment: &[8; 32],
                ..CONTEXT
            },
        ] {
            assert_ne!(result_root(&other, &base), root);
        }
        for index in 0..base.len() {
            let mut changed = base.clone();
            changed[index][3] ^= 1;
            assert_ne!(result_root(&CONTEXT, &changed), root);
        }
        let mut swapped = base.clone();
        swapped.swap(0, 1);
        assert_ne!(result_root(&CONTEXT, &swapped), root);
        assert_ne!(result_root(&CONTEXT, &base[..5]), root);
    }
}
