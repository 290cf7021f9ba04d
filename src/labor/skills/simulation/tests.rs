//! The promises of the contract: refusals, one spelling per input, unit boundaries, aggregation, comparison. No Burn here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};

use super::super::{aggregate, compare, complete_input, find, plan};
use super::*;

fn european() -> Value {
    json!({"kind": "european", "side": "call", "spot": 100, "strike": 105.5, "rate": 0.03, "volatility": 0.2, "years": 1,
        "paths": 1000, "seed": "42"})
}

fn with(changes: Value) -> Value {
    let mut input = european();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => input.as_object_mut().unwrap().remove(name),
            value => input
                .as_object_mut()
                .unwrap()
                .insert(name.clone(), value.clone()),
        };
    }
    input
}

fn units_of(input: &Value) -> Vec<Vec<u8>> {
    let job = Job::parse(input).unwrap();
    let layout = job.layout();
    let tally = |unit| {
        let paths = layout.unit_paths(unit);
        let count = paths.end - paths.start;
        Tally {
            sum: 3.0 * count as f64,
            sum_of_squares: 10.0 * count as f64,
            count,
        }
        .to_bytes()
    };
    (0..layout.units).map(tally).collect()
}

/// The promise: anything outside the documented input is `input_invalid`, never a panic, never a job.
#[test]
fn wrong_inputs_are_refused() {
    for change in [
        json!({"kind": "american"}),
        json!({"side": "hold"}),
        json!({"spot": 0}),
        json!({"spot": -1}),
        json!({"spot": 1e10}),
        json!({"spot": "100"}),
        json!({"strike": 0}),
        json!({"rate": 1.01}),
        json!({"volatility": -0.1}),
        json!({"volatility": 5.1}),
        json!({"years": 0}),
        json!({"years": 51}),
        json!({"steps": 0}),
        json!({"steps": 4097}),
        json!({"steps": 2.5}),
        json!({"paths": 1}),
        json!({"paths": -5}),
        json!({"paths": 1e3}),
        json!({"paths": (1_u64 << 28) + 1}),
        json!({"paths": 1_u64 << 27, "steps": 3}),
        json!({"paths": u64::MAX, "steps": 2}),
        json!({"barrier": 120}),
        json!({"kind": "barrier"}),
        json!({"kind": "barrier", "barrier": 100}),
        json!({"kind": "barrier", "side": "put", "barrier": 101}),
        json!({"seed": null}),
        json!({"seed": -1}),
        json!({"seed": 1_u64 << 53}),
        json!({"seed": "18446744073709551616"}),
        json!({"seed": "007"}),
        json!({"seed": "+7"}),
        json!({"seed": 1.5}),
        json!({"surprise": 1}),
        json!({"paths": null}),
    ] {
        let refused = plan("simulation", &with(change.clone())).expect_err(&change.to_string());
        assert_eq!(refused.code, "input_invalid", "{change}");
    }
    for input in [json!(null), json!([]), json!("european"), json!({})] {
        assert_eq!(
            plan("simulation", &input).unwrap_err().code,
            "input_invalid"
        );
        assert_eq!(
            complete_input("simulation", &input, 1).unwrap_err().code,
            "input_invalid"
        );
    }
    assert!(plan("simulation", &with(json!({"rate": f64::NAN}))).is_err());
}

/// The promise: the edges of the documented ranges are inside.
#[test]
fn edges_are_accepted() {
    for change in [
        json!({"spot": 1e-6, "strike": 1e9, "rate": -1, "volatility": 0, "years": 50}),
        json!({"paths": 2}),
        json!({"paths": 1_u64 << 28}),
        json!({"paths": 1_u64 << 16, "steps": 4096}),
        json!({"seed": (1_u64 << 53) - 1}),
        json!({"seed": u64::MAX.to_string()}),
        json!({"kind": "barrier", "barrier": 100.5}),
        json!({"kind": "barrier", "side": "put", "barrier": 99}),
    ] {
        let plan = plan("simulation", &with(change.clone()))
            .unwrap_or_else(|error| panic!("{change}: {error}"));
        assert!(
            (1..=512).contains(&plan.units),
            "{change}: {} units",
            plan.units
        );
    }
}

/// The promise: completing draws the seed once, makes defaults explicit, and has one spelling per input.
#[test]
fn completion_is_canonical() {
    let open = with(json!({"seed": null}));
    assert_eq!(plan("simulation", &open).unwrap_err().code, "input_invalid");
    let full = complete_input("simulation", &open, u64::MAX).unwrap();
    assert_eq!(full["seed"], "18446744073709551615");
    assert_eq!(full["steps"], 1);
    assert_eq!(complete_input("simulation", &full, 5).unwrap(), full);
    let planned = plan("simulation", &full).unwrap();
    assert_eq!((planned.canonical_input, planned.seed), (full, u64::MAX));
    let asian = plan("simulation", &with(json!({"kind": "asian", "seed": 7}))).unwrap();
    assert_eq!(
        (
            &asian.canonical_input["steps"],
            &asian.canonical_input["seed"]
        ),
        (&json!(64), &json!("7"))
    );
    let spellings = [
        json!({"spot": 100}),
        json!({"spot": 100.0}),
        json!({"seed": 42}),
        json!({"rate": 0.030}),
    ];
    for spelling in spellings {
        assert_eq!(
            plan("simulation", &with(spelling)).unwrap().canonical_input,
            plan("simulation", &european()).unwrap().canonical_input
        );
    }
}

/// The promise: units cover every path once, are at most 512, at most 2^19 path-steps, and a small job is one unit.
#[test]
fn unit_boundaries_follow_from_the_input() {
    for (paths, steps) in [
        (2, 1),
        (5000, 1),
        (32_768, 1),
        (32_769, 1),
        (1_000_000, 1),
        (1 << 28, 1),
        (1 << 16, 4096),
        (7, 4096),
    ] {
        let input = with(json!({"paths": paths, "steps": steps}));
        let layout = Job::parse(&input).unwrap().layout();
        let mut next = 0;
        for unit in 0..layout.units {
            let range = layout.unit_paths(unit);
            assert_eq!(range.start, next);
            assert!(
                range.end > range.start,
                "unit {unit} of {paths} x {steps} is empty"
            );
            assert!((range.end - range.start) * steps <= (1 << 19) + steps);
            next = range.end;
        }
        assert_eq!(next, paths);
        assert!(layout.units <= 512);
        assert!(layout.unit_paths(layout.units).is_empty());
        let planned = plan("simulation", &input).unwrap();
        assert_eq!(planned.units, layout.units);
        assert!(planned.units_per_checkpoint >= 1);
        if paths * steps <= 1 << 15 {
            assert_eq!(planned.units, 1);
        }
    }
}

/// The promise: the aggregate is the discounted mean with its standard error, and fits the announced size.
#[test]
fn aggregate_of_known_sums() {
    let input = with(json!({"paths": 100_000}));
    let units = units_of(&input);
    assert!(units.len() > 1);
    let result = aggregate("simulation", &input, &units).unwrap();
    let discount = (-0.03_f64).exp();
    assert!((result["price"].as_f64().unwrap() - 3.0 * discount).abs() < 1e-10);
    let std_error = discount * (1.0 / 99_999.0_f64).sqrt();
    assert!((result["std_error"].as_f64().unwrap() - std_error).abs() < 1e-10);
    assert_eq!(
        (&result["paths"], &result["seed"], &result["units"]),
        (&json!(100_000), &json!("42"), &json!(units.len()))
    );
    let text = serde_json::to_string(&result).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), result);
    let output_bytes = text.len() + units.len() * 35;
    assert!(output_bytes as u64 <= plan("simulation", &input).unwrap().output_bytes_max);
}

/// The promise: unit results that do not fit the job are refused by code.
#[test]
fn wrong_unit_results_are_refused() {
    let input = with(json!({"paths": 100_000}));
    let good = units_of(&input);
    let mut cases = vec![
        Vec::new(),
        good[1..].to_vec(),
        [good.clone(), good[..1].to_vec()].concat(),
    ];
    let tally = Tally::from_bytes(&good[0]).unwrap();
    for bad in [
        Vec::new(),
        good[0][1..].to_vec(),
        Tally {
            count: tally.count - 1,
            ..tally
        }
        .to_bytes(),
        Tally {
            sum: f64::NAN,
            ..tally
        }
        .to_bytes(),
        Tally {
            sum: f64::INFINITY,
            ..tally
        }
        .to_bytes(),
        Tally { sum: -1.0, ..tally }.to_bytes(),
        Tally {
            sum_of_squares: f64::NAN,
            ..tally
        }
        .to_bytes(),
    ] {
        cases.push([vec![bad], good[1..].to_vec()].concat());
    }
    let huge: Vec<Vec<u8>> = (good.iter().map(|unit| Tally::from_bytes(unit).unwrap()))
        .map(|tally| {
            Tally {
                sum: f64::MAX,
                ..tally
            }
            .to_bytes()
        })
        .collect();
    cases.push(huge);
    for units in cases {
        assert_eq!(
            aggregate("simulation", &input, &units).unwrap_err().code,
            "units_invalid"
        );
    }
}

/// The promise: equal profiles compare bytes; unequal ones the stated tolerance; counts are always exact.
#[test]
fn comparison() {
    let tally = Tally {
        sum: 1000.0,
        sum_of_squares: 20_000.0,
        count: 100,
    };
    let (a, b) = ("flex/0.22.1/x86_64/avx512", "flex/0.22.1/aarch64/neon");
    let same = |profile, other: Tally| {
        compare(
            "simulation",
            a,
            profile,
            &tally.to_bytes(),
            &other.to_bytes(),
        )
    };
    let last_bit = Tally {
        sum: f64::from_bits(tally.sum.to_bits() + 1),
        ..tally
    };
    assert!(same(a, tally) && same(b, tally));
    assert!(!same(a, last_bit));
    assert!(same(b, last_bit));
    assert!(!same(
        b,
        Tally {
            sum: tally.sum * (1.0 + 2.0 * TOLERANCE),
            ..tally
        }
    ));
    assert!(!same(
        b,
        Tally {
            sum_of_squares: tally.sum_of_squares * (1.0 - 2.0 * TOLERANCE),
            ..tally
        }
    ));
    assert!(!same(
        b,
        Tally {
            count: 101,
            ..tally
        }
    ));
    assert!(!compare("simulation", a, b, b"short", b"other"));
    assert!(!compare("simulation", a, a, b"short", b"short"));
}

/// The promise: the schemas in the card name every field of the types.
#[test]
fn schemas_name_every_field() {
    let info = find("simulation").unwrap().info();
    let fields = |schema: &Value| schema["properties"].as_object().unwrap().len();
    assert_eq!(
        (fields(&info.input_schema), fields(&info.output_schema)),
        (11, 6)
    );
    assert_eq!(info.input_schema["additionalProperties"], json!(false));
    assert_eq!(
        info.input_schema["properties"]["steps"]["maximum"],
        json!(4096)
    );
}

/// The promise: an input keeps every bit on its way through JSON, so its commitment holds on the other side. Without serde_json's
/// feature `float_roundtrip` numbers of 17 digits come out one bit off.
#[test]
fn numbers_keep_every_bit_in_json() {
    let mut spot = 0.1_f64;
    for _ in 0..5000 {
        spot = (spot * 1.371_7 + 0.01) % 0.9;
        let sent = complete_input("simulation", &with(json!({"spot": spot})), 0).unwrap();
        let received: Value = serde_json::from_slice(&serde_json::to_vec(&sent).unwrap()).unwrap();
        assert_eq!(received["spot"].as_f64().unwrap().to_bits(), spot.to_bits());
    }
}
