//! The skill `simulation`: option prices by Monte Carlo under geometric Brownian motion. This file holds the contract: input,
//! result, limits, and the three pure functions `plan`, `aggregate` and `compare`. How a unit is computed is `kernel`'s; random
//! words are `philox`'s. It must not know Burn, peers or money.
//!
//! **Payoffs**, at maturity, discounted once in the aggregate:
//! * `european`: call `max(S_T - K, 0)`, put `max(K - S_T, 0)`; 1 step by default.
//! * `asian`: the same on the arithmetic mean of S at the monitoring dates `years * j / steps`, j = 1..steps; 64 steps by default.
//! * `barrier`: the european payoff, lost when S touches the barrier at a monitoring date: **up-and-out for a call** (barrier
//!   above spot), **down-and-out for a put** (barrier below spot); 64 steps by default. Discrete, without continuity correction.
//!
//! **A unit result** is 24 bytes: the sum of undiscounted payoffs (f64), of their squares (f64), the number of paths (u64), all
//! little-endian. **A unit** is a range of paths; its size follows from paths and steps alone.

mod arithmetic;
#[cfg(feature = "labor")]
mod kernel;
#[cfg(feature = "labor")]
mod philox;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Plan, Skill, SkillError, SkillInfo};
use arithmetic::{exp, to_json_number, to_twelve_digits};

/// The most units of a job: a result with all its units must stay a small message.
pub const MAX_UNITS: u64 = 512;
/// The most paths times steps of a job, so that the largest unit (2^19) stays below 100 ms on one slow core (measured: 35 to 50 ms).
pub const MAX_PATH_STEPS: u64 = 1 << 28;
/// The most steps of a path.
pub const MAX_STEPS: u64 = 4096;
/// Bytes of one unit result.
pub const UNIT_BYTES: usize = 24;
/// The relative difference up to which two unit results of unequal numeric profiles agree: some 1e5 times the rounding error of a
/// path, and far below any difference that is worth money.
pub const TOLERANCE: f64 = 1e-9;
/// A smaller job than this is one unit; below it, a message costs more than the work.
const UNIT_PATH_STEPS: u64 = 1 << 15;
/// Work between two checkpoints, about half a second of one core.
const CHECKPOINT_PATH_STEPS: u64 = 1 << 23;

/// Which payoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// On the price at maturity.
    European,
    /// On the arithmetic mean of the prices at the monitoring dates.
    Asian,
    /// European, knocked out at the barrier: up-and-out call, down-and-out put.
    Barrier,
}

/// The right to buy or to sell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// To buy at the strike.
    Call,
    /// To sell at the strike.
    Put,
}

/// A 64-bit seed: a decimal string, or an integer below 2^53 (JSON numbers are not safe above it).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "invalid value, expected a decimal string or an integer below 2^53"
)]
pub enum Seed {
    /// `"0"` to `"18446744073709551615"`, without sign or leading zeros.
    Text(String),
    /// 0 to 2^53 - 1.
    Number(u64),
}

/// What to price. Years, rate and volatility are per year; money is in any one unit.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SimulationInput {
    /// Which payoff.
    pub kind: Kind,
    /// Call or put.
    pub side: Side,
    /// Price of the asset now: 1e-6 to 1e9.
    #[schemars(range(min = 1e-6, max = 1e9))]
    pub spot: f64,
    /// Strike price: 1e-6 to 1e9.
    #[schemars(range(min = 1e-6, max = 1e9))]
    pub strike: f64,
    /// Continuously compounded riskless rate: -1 to 1.
    #[schemars(range(min = -1.0, max = 1.0))]
    pub rate: f64,
    /// Annual volatility: 0 to 5.
    #[schemars(range(min = 0.0, max = 5.0))]
    pub volatility: f64,
    /// Time to maturity: 1e-6 to 50.
    #[schemars(range(min = 1e-6, max = 50.0))]
    pub years: f64,
    /// Monitoring dates of a path: 1 to 4096; default 1 for european, else 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub steps: Option<u64>,
    /// For `barrier` only: above spot for a call, below it for a put; 1e-6 to 1e9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1e-6, max = 1e9))]
    pub barrier: Option<f64>,
    /// Paths to draw: 2 to 2^28; paths times steps at most 2^28.
    #[schemars(range(min = 2, max = 268_435_456))]
    pub paths: u64,
    /// Of the random words. When left out, the asking node draws one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
}

/// What comes back. Prices have 12 significant digits: far below the standard error, and exact in every JSON reader.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SimulationOutput {
    /// The discounted mean payoff, in the unit of spot and strike.
    pub price: f64,
    /// Its standard error.
    pub std_error: f64,
    /// Paths drawn.
    pub paths: u64,
    /// Monitoring dates of a path.
    pub steps: u64,
    /// Units of work.
    pub units: u32,
    /// The seed used, a decimal string.
    pub seed: String,
}

/// An input that was checked, with nothing left open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) kind: Kind,
    pub(crate) side: Side,
    pub(crate) spot: f64,
    pub(crate) strike: f64,
    pub(crate) rate: f64,
    pub(crate) volatility: f64,
    pub(crate) years: f64,
    pub(crate) steps: u64,
    pub(crate) barrier: Option<f64>,
    pub(crate) paths: u64,
    pub(crate) seed: u64,
}

impl Job {
    fn parse(input: &Value) -> Result<Self, SkillError> {
        let typed = read(input)?;
        let Some(seed) = &typed.seed else {
            return Err(SkillError::input(
                "`seed` is missing; the asking node fills it before it sends",
            ));
        };
        Self::check(&typed, parse_seed(seed)?)
    }

    fn check(typed: &SimulationInput, seed: u64) -> Result<Self, SkillError> {
        let spot = in_range("spot", typed.spot, 1e-6, 1e9)?;
        let default_steps = if typed.kind == Kind::European { 1 } else { 64 };
        let job = Self {
            kind: typed.kind,
            side: typed.side,
            spot,
            strike: in_range("strike", typed.strike, 1e-6, 1e9)?,
            rate: in_range("rate", typed.rate, -1.0, 1.0)?,
            volatility: in_range("volatility", typed.volatility, 0.0, 5.0)?,
            years: in_range("years", typed.years, 1e-6, 50.0)?,
            steps: typed.steps.unwrap_or(default_steps),
            barrier: check_barrier(typed, spot)?,
            paths: typed.paths,
            seed,
        };
        if !(1..=MAX_STEPS).contains(&job.steps) {
            return Err(SkillError::input(format!(
                "`steps` must be 1 to {MAX_STEPS}, not {}",
                job.steps
            )));
        }
        let path_steps = job
            .paths
            .checked_mul(job.steps)
            .filter(|product| *product <= MAX_PATH_STEPS);
        if job.paths < 2 || path_steps.is_none() {
            return Err(SkillError::input(format!(
                "`paths` must be at least 2 and paths x steps at most {MAX_PATH_STEPS}; got {} x {}",
                job.paths, job.steps
            )));
        }
        Ok(job)
    }

    fn canonical(&self) -> Value {
        let mut fields = serde_json::Map::new();
        let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        put("kind", serde_json::json!(self.kind));
        put("side", serde_json::json!(self.side));
        for (name, number) in [
            ("spot", self.spot),
            ("strike", self.strike),
            ("rate", self.rate),
            ("volatility", self.volatility),
            ("years", self.years),
        ] {
            put(name, to_json_number(number));
        }
        if let Some(barrier) = self.barrier {
            put("barrier", to_json_number(barrier));
        }
        put("steps", self.steps.into());
        put("paths", self.paths.into());
        put("seed", self.seed.to_string().into());
        Value::Object(fields)
    }

    pub(crate) fn layout(&self) -> Layout {
        let wanted = (self.paths * self.steps)
            .div_ceil(UNIT_PATH_STEPS)
            .clamp(1, MAX_UNITS)
            .min(self.paths);
        let paths_per_unit = self.paths.div_ceil(wanted);
        let units = self.paths.div_ceil(paths_per_unit);
        Layout {
            paths: self.paths,
            paths_per_unit,
            units: u32::try_from(units).unwrap_or(u32::MAX),
        }
    }
}

/// How the paths of a job are cut into units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    paths: u64,
    paths_per_unit: u64,
    pub(crate) units: u32,
}

impl Layout {
    /// The paths of one unit; empty for a unit beyond the last.
    pub(crate) fn unit_paths(&self, unit: u32) -> std::ops::Range<u64> {
        let start = (u64::from(unit) * self.paths_per_unit).min(self.paths);
        start..(start + self.paths_per_unit).min(self.paths)
    }
}

fn read(input: &Value) -> Result<SimulationInput, SkillError> {
    super::typed_input(input)
}

fn in_range(name: &str, number: f64, low: f64, high: f64) -> Result<f64, SkillError> {
    // NaN fails the comparison too; -0 becomes 0 so that it has one spelling.
    if (low..=high).contains(&number) {
        Ok(number + 0.0)
    } else {
        Err(SkillError::input(format!(
            "`{name}` must be {low} to {high}, not {number}"
        )))
    }
}

fn check_barrier(typed: &SimulationInput, spot: f64) -> Result<Option<f64>, SkillError> {
    match (typed.kind, typed.barrier) {
        (Kind::Barrier, None) => Err(SkillError::input(
            "`barrier` is missing; kind `barrier` needs it",
        )),
        (Kind::Barrier, Some(barrier)) => {
            let barrier = in_range("barrier", barrier, 1e-6, 1e9)?;
            match typed.side {
                Side::Call if barrier <= spot => Err(SkillError::input(
                    "`barrier` of a call must be above `spot`: it knocks out upwards",
                )),
                Side::Put if barrier >= spot => Err(SkillError::input(
                    "`barrier` of a put must be below `spot`: it knocks out downwards",
                )),
                _ => Ok(Some(barrier)),
            }
        }
        (_, Some(_)) => Err(SkillError::input(
            "`barrier` belongs to kind `barrier` only; leave it out",
        )),
        (_, None) => Ok(None),
    }
}

fn parse_seed(seed: &Seed) -> Result<u64, SkillError> {
    let refused = || {
        SkillError::input("`seed` must be a decimal string below 2^64, or an integer below 2^53")
    };
    match seed {
        Seed::Number(number) if *number < (1 << 53) => Ok(*number),
        Seed::Number(_) => Err(refused()),
        Seed::Text(text) => {
            let parsed: u64 = text.parse().map_err(|_| refused())?;
            // One spelling per seed: no plus sign, no leading zeros.
            if parsed.to_string() == *text {
                Ok(parsed)
            } else {
                Err(refused())
            }
        }
    }
}

/// Sums over some paths, in a fixed order.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) sum: f64,
    pub(crate) sum_of_squares: f64,
    pub(crate) count: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.sum += other.sum;
        self.sum_of_squares += other.sum_of_squares;
        self.count += other.count;
    }

    #[cfg(any(test, feature = "labor"))]
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(UNIT_BYTES);
        bytes.extend(self.sum.to_le_bytes());
        bytes.extend(self.sum_of_squares.to_le_bytes());
        bytes.extend(self.count.to_le_bytes());
        bytes
    }

    /// `None` for another length, or for sums that no payoff can have.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let words: [[u8; 8]; 3] = match bytes.as_chunks::<8>() {
            ([a, b, c], []) => [*a, *b, *c],
            _ => return None,
        };
        let tally = Self {
            sum: f64::from_le_bytes(words[0]),
            sum_of_squares: f64::from_le_bytes(words[1]),
            count: u64::from_le_bytes(words[2]),
        };
        let possible = |number: f64| number.is_finite() && number >= 0.0;
        (possible(tally.sum) && possible(tally.sum_of_squares)).then_some(tally)
    }
}

/// The skill itself; it has no state.
pub struct Simulation;

impl Skill for Simulation {
    fn id(&self) -> &'static str {
        "simulation"
    }

    fn info(&self) -> SkillInfo {
        SkillInfo {
            id: self.id(),
            name: "Option pricing by Monte Carlo",
            description: "Prices a european, asian (arithmetic mean) or barrier (up-and-out call, down-and-out put) option under \
                          geometric Brownian motion. Every unit can be computed again by anyone from the seed.",
            tags: &["simulation", "monte-carlo", "finance", "option-pricing"],
            input_schema: schemars::schema_for!(SimulationInput).to_value(),
            output_schema: schemars::schema_for!(SimulationOutput).to_value(),
            unit_price_mc: 1,
            implementation: "simulation/1",
        }
    }

    fn complete_input(&self, input: &Value, random: u64) -> Result<Value, SkillError> {
        let typed = read(input)?;
        let seed = typed.seed.as_ref().map_or(Ok(random), parse_seed)?;
        Ok(Job::check(&typed, seed)?.canonical())
    }

    fn plan(&self, input: &Value) -> Result<Plan, SkillError> {
        let job = Job::parse(input)?;
        let layout = job.layout();
        let unit_path_steps = (layout.paths_per_unit * job.steps).max(1);
        Ok(Plan {
            units: layout.units,
            // 24 bytes are 32 in base64, plus quotes and a comma; the aggregate is below 300.
            output_bytes_max: 512 + 36 * u64::from(layout.units),
            canonical_input: job.canonical(),
            seed: job.seed,
            units_per_checkpoint: u32::try_from((CHECKPOINT_PATH_STEPS / unit_path_steps).max(1))
                .unwrap_or(1),
        })
    }

    fn aggregate(&self, input: &Value, units: &[&[u8]]) -> Result<Value, SkillError> {
        let job = Job::parse(input)?;
        let layout = job.layout();
        if units.len() != layout.units as usize {
            return Err(SkillError::units(format!(
                "{} unit results instead of {}",
                units.len(),
                layout.units
            )));
        }
        let mut total = Tally::default();
        for (unit, bytes) in (0..layout.units).zip(units) {
            let paths = layout.unit_paths(unit);
            match Tally::from_bytes(bytes) {
                Some(tally) if tally.count == paths.end - paths.start => total.add(&tally),
                _ => {
                    return Err(SkillError::units(format!(
                        "unit {unit} is not a result of its paths"
                    )));
                }
            }
        }
        let count = total.count as f64;
        let discount = exp(-job.rate * job.years);
        let mean = total.sum / count;
        let variance =
            ((total.sum_of_squares / count - mean * mean) * (count / (count - 1.0))).max(0.0);
        let output = SimulationOutput {
            price: to_twelve_digits(discount * mean),
            std_error: to_twelve_digits(discount * (variance / count).sqrt()),
            paths: job.paths,
            steps: job.steps,
            units: layout.units,
            seed: job.seed.to_string(),
        };
        if !(output.price.is_finite() && output.std_error.is_finite()) {
            return Err(SkillError::units(
                "the unit results overflow: no honest unit has such sums",
            ));
        }
        serde_json::to_value(output).map_err(|error| SkillError::units(error.to_string()))
    }

    fn compare(&self, profile_a: &str, profile_b: &str, unit_a: &[u8], unit_b: &[u8]) -> bool {
        if unit_a == unit_b {
            return unit_a.len() == UNIT_BYTES;
        }
        if profile_a == profile_b {
            return false;
        }
        let (Some(a), Some(b)) = (Tally::from_bytes(unit_a), Tally::from_bytes(unit_b)) else {
            return false;
        };
        let close = |x: f64, y: f64| (x - y).abs() <= TOLERANCE * x.abs().max(y.abs());
        a.count == b.count && close(a.sum, b.sum) && close(a.sum_of_squares, b.sum_of_squares)
    }

    #[cfg(feature = "labor")]
    fn runner(
        &self,
        input: &Value,
        cores: std::sync::Arc<super::cores::Cores>,
        _: &super::embedding::Shelf,
    ) -> Result<Box<dyn super::UnitRunner>, SkillError> {
        Ok(Box::new(kernel::Runner::new(Job::parse(input)?, cores)))
    }
}

#[cfg(test)]
mod tests;
