//! The promises of the computation: right prices, and the same bytes whatever computes them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::{Value, json};

use super::super::{Simulation, Tally};
use super::*;
use crate::labor::skills::Skill;
use crate::labor::skills::cores::CorePools;
use crate::labor::skills::embedding::Shelf;

fn input(kind: &str, side: &str, paths: u64) -> Value {
    json!({"kind": kind, "side": side, "spot": 100, "strike": 105, "rate": 0.03, "volatility": 0.25, "years": 1.5,
        "paths": paths, "seed": "20260917"})
}

fn with(mut input: Value, field: &str, value: Value) -> Value {
    input[field] = value;
    input
}

fn run_units(input: &Value, threads: u32) -> Vec<Vec<u8>> {
    let cores = CorePools::new(threads).take(0);
    let mut runner = Simulation.runner(input, cores, &Shelf::empty()).unwrap();
    (0..Simulation.plan(input).unwrap().units)
        .map(|unit| runner.run(unit).unwrap())
        .collect()
}

/// Price and standard error.
fn price(input: &Value) -> (f64, f64) {
    let units = run_units(input, 1);
    let units: Vec<&[u8]> = units.iter().map(Vec::as_slice).collect();
    let result = Simulation.aggregate(input, &units).unwrap();
    (
        result["price"].as_f64().unwrap(),
        result["std_error"].as_f64().unwrap(),
    )
}

/// Black and Scholes (1973), with the error function summed from its series.
fn black_scholes(side: &str) -> f64 {
    let (spot, strike, rate, volatility, years) = (100.0_f64, 105.0, 0.03, 0.25, 1.5_f64);
    let normal_cdf = |x: f64| {
        let (mut term, mut sum) = (x, x);
        for k in 1..200 {
            term *= x * x / (2 * k + 1) as f64;
            sum += term;
        }
        0.5 + sum * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
    };
    let spread = volatility * years.sqrt();
    let d1 = ((spot / strike).ln() + (rate + 0.5 * volatility * volatility) * years) / spread;
    let discounted = strike * (-rate * years).exp();
    let call = spot * normal_cdf(d1) - discounted * normal_cdf(d1 - spread);
    if side == "call" {
        call
    } else {
        call - spot + discounted
    }
}

/// The promise: european prices agree with the closed form within 4 standard errors, at 1 step and at several, odd and even.
#[test]
fn european_agrees_with_black_scholes() {
    for side in ["call", "put"] {
        for steps in [1, 2, 5, 8] {
            let (price, std_error) = price(&with(
                input("european", side, 200_000),
                "steps",
                json!(steps),
            ));
            let exact = black_scholes(side);
            assert!(std_error > 0.0 && std_error < 0.005 * exact);
            assert!(
                (price - exact).abs() < 4.0 * std_error,
                "{side} {steps}: {price} +- {std_error}, exact {exact}"
            );
        }
    }
}

/// The promise: call - put = spot - discounted strike. With one seed the payoffs differ by S_T - K path by path.
#[test]
fn put_call_parity() {
    let (call, call_error) = price(&input("european", "call", 200_000));
    let (put, put_error) = price(&input("european", "put", 200_000));
    let forward = 100.0 - 105.0 * (-0.03_f64 * 1.5).exp();
    assert!((call - put - forward).abs() < 4.0 * (call_error + put_error));
}

/// The promise: averaging lowers the price, a knock-out never raises it (on the same paths, so exactly), and a barrier
/// out of reach changes nothing at all.
#[test]
fn exotic_options_are_ordered() {
    for (side, near, far) in [("call", 140.0, 1e8), ("put", 80.0, 1e-6)] {
        let steps = |kind| with(input(kind, side, 40_000), "steps", json!(64));
        let (european, _) = price(&steps("european"));
        let (asian, _) = price(&steps("asian"));
        let (near, _) = price(&with(steps("barrier"), "barrier", json!(near)));
        assert!(0.0 < asian && asian < european);
        assert!(0.0 < near && near < european);
        assert_eq!(
            run_units(&with(steps("barrier"), "barrier", json!(far)), 1),
            run_units(&steps("european"), 1)
        );
    }
}

/// The promise: one, two or five threads, any order of units: the same bytes.
#[test]
fn threads_and_order_do_not_change_bytes() {
    for input in [
        input("european", "call", 100_000),
        with(input("asian", "put", 5_000), "steps", json!(7)),
        with(input("barrier", "call", 3_000), "barrier", json!(130)),
    ] {
        let one = run_units(&input, 1);
        assert!(one.len() > 1);
        assert_eq!(run_units(&input, 2), one);
        assert_eq!(run_units(&input, 5), one);
        let mut runner = Simulation
            .runner(&input, CorePools::new(2).take(0), &Shelf::empty())
            .unwrap();
        for unit in (0..one.len()).rev() {
            assert_eq!(runner.run(unit as u32).unwrap(), one[unit]);
        }
        assert_eq!(
            runner.run(one.len() as u32).unwrap_err().code,
            "units_invalid"
        );
    }
}

/// One path, in scalar Rust without tensors or SIMD: the definition that the kernel implements.
fn scalar_payoff(job: &Job, path: u64) -> f64 {
    let half = job.steps.div_ceil(2);
    let normal = |step: u64| {
        let pair = step % half;
        let counter = [path as u32, (path >> 32) as u32, (pair / 2) as u32, 0];
        let words = philox4x32_10(counter, [job.seed as u32, (job.seed >> 32) as u32]);
        let [a, b] = if pair.is_multiple_of(2) {
            [words[0], words[1]]
        } else {
            [words[2], words[3]]
        };
        let uniform = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
        let (radius, angle) = (
            (uniform(a).ln() * -2.0).sqrt(),
            uniform(b) * std::f64::consts::TAU,
        );
        radius
            * if step < half {
                angle.cos()
            } else {
                angle.sin()
            }
    };
    let dt = job.years / job.steps as f64;
    let drift = (job.rate - 0.5 * job.volatility * job.volatility) * dt;
    let (mut growth, mut price, mut sum, mut alive) = (0.0, job.spot, 0.0, true);
    for step in 0..job.steps {
        growth += normal(step) * (job.volatility * dt.sqrt()) + drift;
        price = growth.exp() * job.spot;
        sum += price;
        alive &= job.barrier.is_none_or(|barrier| {
            if job.side == Side::Call {
                price < barrier
            } else {
                price > barrier
            }
        });
    }
    let settled = if job.kind == Kind::Asian {
        sum / job.steps as f64
    } else {
        price
    };
    let payoff = if job.side == Side::Call {
        settled - job.strike
    } else {
        job.strike - settled
    };
    if alive { payoff.max(0.0) } else { 0.0 }
}

/// The promise: no SIMD level changes a bit. `flex` cannot be told to use a lower level at run time, so the lowest one there is,
/// scalar code, computes the same units here, and the bytes must be equal.
#[test]
fn scalar_code_gives_the_same_bytes() {
    for input in [
        input("european", "call", 40_000),
        with(input("european", "put", 999), "steps", json!(3)),
        with(input("asian", "call", 3_001), "steps", json!(12)),
        with(
            with(input("barrier", "put", 3_000), "barrier", json!(85.5)),
            "steps",
            json!(13),
        ),
    ] {
        let job = Job::parse(&input).unwrap();
        let tile_paths = (TILE_PATH_STEPS / job.steps).max(1);
        for (unit, bytes) in (0..).zip(run_units(&input, 1)) {
            let paths: Vec<u64> = job.layout().unit_paths(unit).collect();
            let mut expected = Tally::default();
            for tile in paths.chunks(tile_paths as usize) {
                let mut tally = Tally::default();
                for path in tile {
                    let payoff = scalar_payoff(&job, *path);
                    tally.add(&Tally {
                        sum: payoff,
                        sum_of_squares: payoff * payoff,
                        count: 1,
                    });
                }
                expected.add(&tally);
            }
            assert_eq!(
                Tally::from_bytes(&bytes).unwrap(),
                expected,
                "unit {unit} of {input}"
            );
        }
    }
}

/// The promise: another seed gives another result, the same seed the same.
#[test]
fn seed_decides() {
    let first = input("european", "call", 1000);
    let second = with(first.clone(), "seed", json!("20260918"));
    assert_eq!(run_units(&first, 1), run_units(&first, 1));
    assert_ne!(run_units(&first, 1), run_units(&second, 1));
    // The high half of the seed counts too.
    let high = with(
        first.clone(),
        "seed",
        json!((20_260_917_u64 + (1 << 32)).to_string()),
    );
    assert_ne!(run_units(&first, 1), run_units(&high, 1));
}

/// The promise: no corner of the documented ranges makes a unit that its own aggregate refuses.
#[test]
fn extreme_inputs_stay_finite() {
    for (volatility, years, rate) in [
        (5.0, 50.0, 1.0),
        (5.0, 50.0, -1.0),
        (0.0, 1e-6, 1.0),
        (0.0, 50.0, -1.0),
        (5.0, 1e-6, 0.0),
    ] {
        for (kind, side) in [("european", "call"), ("asian", "put"), ("asian", "call")] {
            let mut input = input(kind, side, 2_000);
            for (field, value) in [
                ("volatility", volatility),
                ("years", years),
                ("rate", rate),
                ("spot", 1e9),
                ("strike", 1e9),
            ] {
                input[field] = json!(value);
            }
            let (price, std_error) = price(&input);
            assert!(price >= 0.0 && std_error >= 0.0);
        }
    }
}
