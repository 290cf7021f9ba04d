//! Which texts are computed together: units ahead of the one asked for, up to a budget of tokens, shared out over the cores.
//! Results wait here until they are asked for. It must not know tensors or how units travel.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Job;
use super::shelf::Loaded;
use crate::labor::skills::cores::Cores;
use crate::labor::skills::{SkillError, UnitRunner};

/// Tokens computed in one go per core: enough for large products, and some 100 ms, after which a stop is seen.
const BATCH_TOKENS_PER_CORE: usize = 512;

/// A unit, with the tokens of its texts.
struct Tokens {
    unit: u32,
    texts: Vec<Vec<u32>>,
}

impl Tokens {
    fn count(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }
}

/// Computes units of one job.
pub(super) struct Runner {
    job: Job,
    model: Arc<Loaded>,
    cores: Arc<Cores>,
    /// Units that will be asked for, in order.
    expected: VecDeque<u32>,
    ready: BTreeMap<u32, Vec<u8>>,
}

impl Runner {
    pub(super) fn new(job: Job, model: Arc<Loaded>, cores: Arc<Cores>) -> Self {
        Self {
            job,
            model,
            cores,
            expected: VecDeque::new(),
            ready: BTreeMap::new(),
        }
    }

    /// The unit, and those expected after it as long as they fit.
    fn gather(&mut self, unit: u32) -> Result<Vec<Tokens>, SkillError> {
        let budget = BATCH_TOKENS_PER_CORE * self.cores.threads().max(1) as usize;
        let mut batch = vec![self.tokens(unit)?];
        let mut tokens: usize = batch.iter().map(Tokens::count).sum();
        while tokens < budget
            && let Some(next) = self.expected.front().copied()
        {
            let next = self.tokens(next)?;
            tokens += next.count();
            if tokens > budget {
                break;
            }
            self.expected.pop_front();
            batch.push(next);
        }
        Ok(batch)
    }

    fn tokens(&self, unit: u32) -> Result<Tokens, SkillError> {
        let places = self.job.places(unit);
        if places.is_empty() {
            let units = self.job.units();
            let message = format!("unit {unit} of a job of {units} units");
            return Err(SkillError::units(message));
        }
        let texts = places
            .iter()
            .filter_map(|place| self.job.input.texts.get(*place));
        let texts = texts.map(|text| self.tokenize(text));
        Ok(Tokens {
            unit,
            texts: texts.collect::<Result<_, _>>()?,
        })
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, SkillError> {
        let failed = |message: String| SkillError {
            code: "compute_failed",
            message,
        };
        let lower;
        let text = if self.model.description.lower_case {
            lower = text.to_lowercase();
            lower.as_str()
        } else {
            text
        };
        let encoded = self.model.tokenizer.encode_fast(text, true);
        let encoded = encoded.map_err(|error| failed(format!("the tokenizer: {error}")))?;
        let ids = encoded.get_ids();
        let vocabulary = self.model.description.vocabulary as u32;
        if ids.is_empty() || ids.iter().any(|id| *id >= vocabulary) {
            return Err(failed(
                "the tokenizer gave no tokens of the model".to_owned(),
            ));
        }
        Ok(ids.to_vec())
    }

    /// Units of about equal work per core, each computed by itself.
    fn compute(&self, batch: &[Tokens]) -> Result<Vec<Vec<u8>>, SkillError> {
        let parts = share_out(batch, self.cores.threads().max(1) as usize);
        let done = self.cores.map(parts.len() as u32, |part| {
            let units = parts.get(part as usize).copied().unwrap_or_default();
            self.cores.within(|| self.embed(units))
        });
        let done: Result<Vec<Vec<Vec<u8>>>, SkillError> = done.into_iter().collect();
        Ok(done?.into_iter().flatten().collect())
    }

    fn embed(&self, units: &[Tokens]) -> Result<Vec<Vec<u8>>, SkillError> {
        let model = &self.model;
        let texts = || units.iter().flat_map(|unit| &unit.texts);
        let mut order: Vec<(usize, &[u32])> = texts().map(Vec::as_slice).enumerate().collect();
        order.sort_by_key(|(place, text)| (text.len(), *place));
        let sorted: Vec<&[u32]> = order.iter().map(|(_, text)| *text).collect();
        let (pooling, normalize) = (model.description.pooling, model.description.normalize);
        let vectors = model.encoder.embed(&sorted, pooling, normalize);
        let vectors = vectors.ok_or_else(|| SkillError {
            code: "compute_failed",
            message: "the device gave back other numbers than f32".to_owned(),
        })?;
        let mut placed = vec![Vec::new(); vectors.len()];
        for ((place, _), vector) in order.iter().zip(vectors) {
            if let Some(slot) = placed.get_mut(*place) {
                *slot = vector;
            }
        }
        let mut rows = placed.into_iter();
        let unit = |unit: &Tokens| {
            let rows: Vec<Vec<f32>> = rows.by_ref().take(unit.texts.len()).collect();
            model.header.unit(&rows, self.job.slots())
        };
        Ok(units.iter().map(unit).collect())
    }
}

/// Neighbouring units in at most `cores` parts of about as many tokens.
fn share_out(batch: &[Tokens], cores: usize) -> Vec<&[Tokens]> {
    let total: usize = batch.iter().map(Tokens::count).sum();
    let wanted = total.div_ceil(cores.max(1));
    let (mut parts, mut rest) = (Vec::new(), batch);
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = |unit: &&Tokens| {
            let first = tokens == 0;
            tokens += unit.count();
            first || tokens <= wanted
        };
        let count = if parts.len() + 1 >= cores {
            rest.len()
        } else {
            rest.iter().take_while(fits).count().max(1)
        };
        let (part, after) = rest.split_at(count);
        parts.push(part);
        rest = after;
    }
    parts
}

impl UnitRunner for Runner {
    fn run(&mut self, unit: u32) -> Result<Vec<u8>, SkillError> {
        if let Some(done) = self.ready.remove(&unit) {
            return Ok(done);
        }
        if self.expected.front() == Some(&unit) {
            self.expected.pop_front();
        }
        let batch = self.gather(unit)?;
        let results = self.compute(&batch)?;
        for (tokens, result) in batch.iter().zip(results) {
            self.ready.insert(tokens.unit, result);
        }
        let lost = || SkillError::units(format!("unit {unit} was not computed"));
        self.ready.remove(&unit).ok_or_else(lost)
    }

    fn announce(&mut self, units: &[u32]) {
        self.expected = units.iter().copied().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The promise: every unit is in exactly one part, in order, and no core gets twice its share unless one unit is that long.
    #[test]
    fn shares_are_even_and_complete() {
        for (lengths, cores) in [
            (vec![5, 5, 5, 5], 2),
            (vec![100, 1, 1], 2),
            (vec![1, 1, 100], 3),
            (vec![7], 4),
            (vec![3; 100], 16),
        ] {
            let batch: Vec<Tokens> = (0..)
                .zip(&lengths)
                .map(|(unit, length)| Tokens {
                    unit,
                    texts: vec![vec![1; *length]],
                })
                .collect();
            let parts = share_out(&batch, cores);
            let order: Vec<u32> = parts.iter().copied().flatten().map(|t| t.unit).collect();
            assert_eq!(order, (0..lengths.len() as u32).collect::<Vec<_>>());
            let share = lengths.iter().sum::<usize>().div_ceil(cores);
            let longest = lengths.iter().max().copied().unwrap_or(0);
            assert!(parts.len() <= cores);
            for part in parts {
                let tokens: usize = part.iter().map(Tokens::count).sum();
                assert!(tokens <= 2 * share.max(longest), "{lengths:?} {cores}");
            }
        }
    }
}
