//! A job's checkpoint: the unit results so far, in one byte string that checks itself. It must not know where it is stored, nor
//! what a unit means.
//!
//! Format, integers little-endian:
//!
//! ```text
//! "LGCP" | version u8 = 1 | job key 32 | units_total u32 | units_done u32 | per unit: length u32, bytes | SHA-256 of all before 32
//! ```
//!
//! The **job key** is SHA-256 over the skill, its implementation version, the canonical input (RFC 8785) and the list of units: a
//! checkpoint of another job or of another build is refused like a damaged one.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::LaborError;

const MAGIC: &[u8; 4] = b"LGCP";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 4 + 1 + 32 + 4 + 4;
const HASH_BYTES: usize = 32;

/// Names the work that a checkpoint belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobKey([u8; 32]);

impl JobKey {
    /// The key of a job. `units` is the list of unit indexes in the order in which they are worked.
    pub fn new(skill: &str, implementation: &str, canonical_input: &Value, units: &[u32]) -> Self {
        let mut hasher = Sha256::new();
        for text in [skill, implementation] {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        // The canonical form fails only for numbers that JSON cannot hold; a `Value` has none.
        let input = serde_json_canonicalizer::to_vec(canonical_input).unwrap_or_default();
        hasher.update((input.len() as u64).to_le_bytes());
        hasher.update(input);
        for unit in units {
            hasher.update(unit.to_le_bytes());
        }
        Self(hasher.finalize().into())
    }
}

/// Write the results of the first `done.len()` units of `units_total`.
pub fn encode(key: &JobKey, units_total: u32, done: &[Vec<u8>]) -> Vec<u8> {
    let body_bytes: usize = done.iter().map(|unit| 4 + unit.len()).sum();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body_bytes + HASH_BYTES);
    bytes.extend(MAGIC);
    bytes.push(VERSION);
    bytes.extend(key.0);
    bytes.extend(units_total.to_le_bytes());
    bytes.extend((done.len() as u32).to_le_bytes());
    for unit in done {
        bytes.extend((unit.len() as u32).to_le_bytes());
        bytes.extend(unit);
    }
    let hash = Sha256::digest(&bytes);
    bytes.extend(hash);
    bytes
}

/// Read a checkpoint back. [`LaborError::CheckpointInvalid`] for anything that is not a whole checkpoint of this very job.
pub fn decode(key: &JobKey, units_total: u32, bytes: &[u8]) -> Result<Vec<Vec<u8>>, LaborError> {
    let refused = LaborError::CheckpointInvalid;
    let (body, hash) = bytes
        .split_last_chunk::<HASH_BYTES>()
        .ok_or(refused("it is too short"))?;
    if Sha256::digest(body).as_slice() != hash {
        return Err(refused("its hash does not match, so it is damaged"));
    }
    let mut rest = body;
    if take::<4>(&mut rest) != Some(*MAGIC) || take::<1>(&mut rest) != Some([VERSION]) {
        return Err(refused("it has another format version"));
    }
    if take::<32>(&mut rest) != Some(key.0) {
        return Err(refused("it belongs to another job or build"));
    }
    let total = take(&mut rest).map(u32::from_le_bytes);
    let done = take(&mut rest).map(u32::from_le_bytes);
    let (Some(total), Some(done)) = (total, done) else {
        return Err(refused("it is too short"));
    };
    if total != units_total || done > total {
        return Err(refused("its unit count does not fit the job"));
    }
    let mut units = Vec::new();
    for _ in 0..done {
        let length =
            take(&mut rest).map_or(usize::MAX, |length| u32::from_le_bytes(length) as usize);
        let (unit, after) = rest
            .split_at_checked(length)
            .ok_or(refused("a unit result is cut off"))?;
        units.push(unit.to_vec());
        rest = after;
    }
    if rest.is_empty() {
        Ok(units)
    } else {
        Err(refused("it has bytes after its end"))
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn sample() -> (JobKey, Vec<Vec<u8>>) {
        let key = JobKey::new(
            "simulation",
            "simulation/1",
            &json!({"b": 1, "a": 2}),
            &[0, 1, 2, 3],
        );
        (key, vec![vec![1; 24], vec![], vec![9; 7]])
    }

    /// The promise: what was written is read back, in whatever order the input's fields stood.
    #[test]
    fn roundtrip() {
        let (key, units) = sample();
        let same = JobKey::new(
            "simulation",
            "simulation/1",
            &json!({"a": 2, "b": 1}),
            &[0, 1, 2, 3],
        );
        assert_eq!(decode(&same, 4, &encode(&key, 4, &units)).unwrap(), units);
        assert_eq!(
            decode(&key, 4, &encode(&key, 4, &[])).unwrap(),
            Vec::<Vec<u8>>::new()
        );
    }

    /// The promise: every damaged byte, every cut and every other job is refused by code.
    #[test]
    fn damage_and_foreign_jobs_are_refused() {
        let (key, units) = sample();
        let good = encode(&key, 4, &units);
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 0x10;
            assert_eq!(
                decode(&key, 4, &bad).unwrap_err().code(),
                "checkpoint_invalid"
            );
            assert_eq!(
                decode(&key, 4, &good[..index]).unwrap_err().code(),
                "checkpoint_invalid"
            );
        }
        let input = json!({"b": 1, "a": 2});
        for other in [
            JobKey::new("simulation", "simulation/2", &input, &[0, 1, 2, 3]),
            JobKey::new("simulatio", "nsimulation/1", &input, &[0, 1, 2, 3]),
            JobKey::new(
                "simulation",
                "simulation/1",
                &json!({"b": 1, "a": 3}),
                &[0, 1, 2, 3],
            ),
            JobKey::new("simulation", "simulation/1", &input, &[0, 1, 2]),
        ] {
            assert_eq!(
                decode(&other, 4, &good).unwrap_err().code(),
                "checkpoint_invalid"
            );
        }
        assert_eq!(
            decode(&key, 3, &good).unwrap_err().code(),
            "checkpoint_invalid"
        );
        assert_eq!(
            decode(&key, 2, &encode(&key, 2, &units))
                .unwrap_err()
                .code(),
            "checkpoint_invalid"
        );
    }

    /// The promise: a hash over lies does not help: lengths are checked before they are believed.
    #[test]
    fn a_hashed_lie_about_lengths_is_refused() {
        let (key, _) = sample();
        let mut body = encode(&key, 4, &[vec![1; 4]]);
        body.truncate(body.len() - HASH_BYTES);
        body[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let hash = Sha256::digest(&body);
        body.extend(hash);
        assert_eq!(
            decode(&key, 4, &body).unwrap_err().code(),
            "checkpoint_invalid"
        );
    }
}
