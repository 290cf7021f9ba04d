//! How a unit of `simulation` is computed: random words in plain Rust, everything after them as Burn tensor operations on the
//! `flex` device. It must not know how units travel or what they cost.
//!
//! A unit is cut into **tiles** of about 8,192 path-steps, small enough for a core's cache; tiles run on any number of cores and
//! are summed in order. Inside a tile the tensors have the shape `[steps, paths]` and only elementwise operations and `cumsum`
//! along the steps are used, whose results do not depend on the SIMD width; the sum over paths is a plain loop in f64. So the bytes
//! of a unit are the same for any thread count and SIMD level, as far as the C library's `exp ln cos sin` are.
//!
//! **Random words.** Philox key = (low, high half of the seed); counter = (low, high half of the path, block, 0). The four words of
//! block `b` are the pairs 2b and 2b+1. Pair k gives, by Box and Muller, two normals: the cosine one drives step k, the sine
//! one step `ceil(steps / 2) + k`. A uniform is `(word + 0.5) / 2^32`, so it is never 0.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::philox::philox4x32_10;
use super::{Job, Kind, Layout, Side, Tally};
use crate::labor::skills::cores::Cores;
use crate::labor::skills::{SkillError, UnitRunner};

const TILE_PATH_STEPS: u64 = 8192;

/// Computes units of one job.
pub(super) struct Runner {
    job: Job,
    layout: Layout,
    cores: Arc<Cores>,
}

impl Runner {
    pub(super) fn new(job: Job, cores: Arc<Cores>) -> Self {
        Self {
            layout: job.layout(),
            job,
            cores,
        }
    }
}

impl UnitRunner for Runner {
    fn run(&mut self, unit: u32) -> Result<Vec<u8>, SkillError> {
        if unit >= self.layout.units {
            return Err(SkillError::units(format!(
                "unit {unit} of a job of {} units",
                self.layout.units
            )));
        }
        let paths = self.layout.unit_paths(unit);
        let tile_paths = (TILE_PATH_STEPS / self.job.steps).max(1);
        let tiles =
            u32::try_from((paths.end - paths.start).div_ceil(tile_paths)).unwrap_or(u32::MAX);
        let tallies = self.cores.map(tiles, |tile| {
            let start = paths.start + u64::from(tile) * tile_paths;
            run_tile(&self.job, start, (start + tile_paths).min(paths.end))
        });
        let mut total = Tally::default();
        for tally in tallies {
            total.add(&tally?);
        }
        Ok(total.to_bytes())
    }
}

/// The tally of the paths `start..end`.
fn run_tile(job: &Job, start: u64, end: u64) -> Result<Tally, SkillError> {
    let payoffs = payoffs(job, normals(job, start, end)).into_data();
    let payoffs = payoffs.as_slice::<f64>().map_err(|error| SkillError {
        code: "compute_failed",
        message: format!("the device gave back other numbers than f64: {error:?}"),
    })?;
    let mut tally = Tally {
        count: end - start,
        ..Tally::default()
    };
    for payoff in payoffs {
        tally.sum += payoff;
        tally.sum_of_squares += payoff * payoff;
    }
    Ok(tally)
}

/// Standard normals of the paths `start..end`, shape `[steps, paths]`.
fn normals(job: &Job, start: u64, end: u64) -> Tensor<2> {
    let paths = (end - start) as usize;
    let steps = job.steps as usize;
    let pairs = steps.div_ceil(2);
    let (radius, angle) = uniforms(job.seed, start, paths, pairs);
    let options = (&Device::flex(), DType::F64);
    let radius = Tensor::<2>::from_data(TensorData::new(radius, [pairs, paths]), options);
    let angle = Tensor::<2>::from_data(TensorData::new(angle, [pairs, paths]), options);
    let radius = radius.log().mul_scalar(-2.0).sqrt();
    let angle = angle.mul_scalar(std::f64::consts::TAU);
    if steps == 1 {
        return radius * angle.cos();
    }
    let cosines = radius.clone() * angle.clone().cos();
    let sines = radius * angle.sin();
    // With an odd number of steps the last sine has no step to drive.
    let sines = if steps.is_multiple_of(2) {
        sines
    } else {
        sines.narrow(0, 0, pairs - 1)
    };
    Tensor::cat(vec![cosines, sines], 0)
}

/// Two uniforms in (0, 1) per pair and path, both of shape `[pairs, paths]`, row by row.
fn uniforms(seed: u64, start: u64, paths: usize, pairs: usize) -> (Vec<f64>, Vec<f64>) {
    const SCALE: f64 = 1.0 / 4_294_967_296.0;
    let uniform = |word: u32| (f64::from(word) + 0.5) * SCALE;
    let key = [seed as u32, (seed >> 32) as u32];
    let mut first = vec![0.0; pairs * paths];
    let mut second = vec![0.0; pairs * paths];
    // Two rows at a time: one block of four words fills both.
    let rows = first
        .chunks_mut(2 * paths)
        .zip(second.chunks_mut(2 * paths));
    for (block, (first, second)) in (0_u32..).zip(rows) {
        let (first, first_odd) = first.split_at_mut(paths);
        let (second, second_odd) = second.split_at_mut(paths);
        let (mut first_odd, mut second_odd) = (first_odd.iter_mut(), second_odd.iter_mut());
        for (path, (first, second)) in (start..).zip(first.iter_mut().zip(second)) {
            let words = philox4x32_10([path as u32, (path >> 32) as u32, block, 0], key);
            (*first, *second) = (uniform(words[0]), uniform(words[1]));
            if let (Some(first), Some(second)) = (first_odd.next(), second_odd.next()) {
                (*first, *second) = (uniform(words[2]), uniform(words[3]));
            }
        }
    }
    (first, second)
}

/// Undiscounted payoffs, shape `[1, paths]`, from normals of shape `[steps, paths]`.
fn payoffs(job: &Job, normals: Tensor<2>) -> Tensor<2> {
    let steps = job.steps as usize;
    let step_years = job.years / job.steps as f64;
    let drift = (job.rate - 0.5 * job.volatility * job.volatility) * step_years;
    let increments = normals
        .mul_scalar(job.volatility * step_years.sqrt())
        .add_scalar(drift);
    let growth = if steps == 1 {
        increments
    } else {
        increments.cumsum(0)
    };
    match job.kind {
        Kind::European => intrinsic(job, last_row(growth, steps).exp().mul_scalar(job.spot)),
        Kind::Asian => {
            let prices = growth.exp().mul_scalar(job.spot);
            // A running sum adds step by step in one order; a reduction would not promise that.
            let sum = if steps == 1 {
                prices
            } else {
                last_row(prices.cumsum(0), steps)
            };
            intrinsic(job, sum.div_scalar(job.steps as f64))
        }
        Kind::Barrier => {
            let prices = growth.exp().mul_scalar(job.spot);
            let barrier = job.barrier.unwrap_or(f64::INFINITY);
            let knocked_out = match job.side {
                Side::Call => prices.clone().max_dim(0).greater_equal_elem(barrier),
                Side::Put => prices.clone().min_dim(0).lower_equal_elem(barrier),
            };
            intrinsic(job, last_row(prices, steps)).mask_fill(knocked_out, 0.0)
        }
    }
}

fn last_row(rows: Tensor<2>, steps: usize) -> Tensor<2> {
    if steps == 1 {
        rows
    } else {
        rows.narrow(0, steps - 1, 1)
    }
}

fn intrinsic(job: &Job, price: Tensor<2>) -> Tensor<2> {
    match job.side {
        Side::Call => price.sub_scalar(job.strike),
        Side::Put => price.neg().add_scalar(job.strike),
    }
    .clamp_min(0.0)
}

#[cfg(test)]
mod tests;
