//! The promises of the contract: what is taken, how it is cut, what a result must look like, and when two units agree.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::json;

use super::*;
use crate::labor::skills::{aggregate, catalog, compare, complete_input, plan, recompute_input};

const SKILL: &str = "text-embedding";

fn input(texts: &[&str]) -> Value {
    json!({"model": "tiny", "texts": texts})
}

fn header(dim: u32, normalized: bool) -> Header {
    Header {
        model: [7; 32],
        dim,
        normalized,
    }
}

fn numbers(output: &Value) -> Vec<f32> {
    let bytes = STANDARD
        .decode(output["vectors"].as_str().unwrap())
        .unwrap();
    let (words, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    words.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

/// The promise: units follow from the input alone, at most 512, every text in exactly one, neighbours about equally long.
#[test]
fn texts_are_cut_into_units() {
    for count in [1, 2, 511, 512, 513, 1000, 1024, 1025, 1537, 2048] {
        let texts: Vec<String> = (0..count).map(|i| "x".repeat(i * 37 % 101)).collect();
        let input = json!({"model": "m", "texts": texts});
        let job = Job::parse(&input).unwrap();
        let planned = plan(SKILL, &input).unwrap();
        assert_eq!(planned.units, job.units());
        assert!((1..=MAX_UNITS as u32).contains(&planned.units));
        assert_eq!(job.slots(), count.div_ceil(512));
        let order: Vec<usize> = (0..job.units())
            .flat_map(|u| job.places(u).to_vec())
            .collect();
        let mut places = order.clone();
        places.sort_unstable();
        assert_eq!(places, (0..count).collect::<Vec<_>>());
        assert!(
            order
                .windows(2)
                .all(|w| texts[w[0]].len() <= texts[w[1]].len())
        );
        assert!(job.places(job.units()).is_empty() && job.places(u32::MAX).is_empty());
        assert!(planned.units_per_checkpoint >= planned.units.div_ceil(MAX_CHECKPOINTS));
        assert_eq!(plan(SKILL, &planned.canonical_input).unwrap(), planned);
    }
}

/// The promise: what is out of bounds is refused by code, and chance changes nothing.
#[test]
fn inputs_out_of_bounds_are_refused() {
    let refused = |input: Value| {
        let error = plan(SKILL, &input).unwrap_err();
        assert_eq!(error.code, "input_invalid", "{input}");
        error.message
    };
    assert!(refused(input(&[])).contains("1 to 2048"));
    assert!(refused(json!({"model": "m", "texts": vec!["a"; 2049]})).contains("2049"));
    assert!(refused(input(&["a", &"x".repeat(MAX_TEXT_BYTES + 1)])).contains("text 1"));
    assert!(
        refused(json!({"model": "m", "texts": vec!["x".repeat(32 << 10); 65]}))
            .contains("together")
    );
    refused(json!({"model": "", "texts": ["a"]}));
    refused(json!({"model": "x".repeat(65), "texts": ["a"]}));
    refused(json!({"model": "m", "texts": ["a"], "dim": 0}));
    refused(json!({"model": "m", "texts": ["a"], "dim": 1025}));
    refused(json!({"model": "m", "texts": ["a"], "model_hash": "A".repeat(64)}));
    refused(json!({"model": "m", "texts": ["a"], "extra": 1}));
    refused(json!({"model": "m", "texts": [1]}));
    refused(json!({"texts": ["a"]}));
    let full = json!({"model": "m", "texts": vec!["x".repeat(32 << 10); 64]});
    assert_eq!(
        complete_input(SKILL, &full, 1),
        complete_input(SKILL, &full, 2)
    );
}

/// The promise: the stated size holds for the result with all its units, exactly where the dimension is given.
#[test]
fn the_stated_size_is_kept() {
    for (count, dim) in [(1_usize, 384_u32), (7, 32), (513, 8), (1000, 384)] {
        let mut input = json!({"model": "m".repeat(64), "texts": vec!["a"; count], "dim": dim});
        let header = header(dim, false);
        let job = Job::parse(&input).unwrap();
        let unit = |unit: u32| {
            let rows = vec![vec![0.25; dim as usize]; job.places(unit).len()];
            header.unit(&rows, job.slots())
        };
        let units: Vec<Vec<u8>> = (0..job.units()).map(unit).collect();
        let output = aggregate(SKILL, &input, &units).unwrap();
        let bytes = (output.to_string().len() + STANDARD.encode(units.concat()).len()) as u64;
        let stated = plan(SKILL, &input).unwrap().output_bytes_max;
        assert!(bytes <= stated && stated <= bytes + 512, "{bytes} {stated}");
        input.as_object_mut().unwrap().remove("dim");
        assert!(plan(SKILL, &input).unwrap().output_bytes_max >= stated);
    }
}

/// The promise: vectors come back in the order of the texts, with the model that the units name, however units are cut.
#[test]
fn vectors_return_to_their_texts() {
    for count in [3_usize, 700] {
        let texts: Vec<String> = (0..count).map(|i| "x".repeat(i * 7 % 13)).collect();
        let input = json!({"model": "tiny", "texts": texts});
        let job = Job::parse(&input).unwrap();
        let header = header(2, false);
        let unit = |unit: u32| {
            let rows = job
                .places(unit)
                .iter()
                .map(|place| vec![*place as f32, -1.0]);
            header.unit(&rows.collect::<Vec<_>>(), job.slots())
        };
        let units: Vec<Vec<u8>> = (0..job.units()).map(unit).collect();
        let output = aggregate(SKILL, &input, &units).unwrap();
        let expected: Vec<f32> = (0..count).flat_map(|place| [place as f32, -1.0]).collect();
        assert_eq!(numbers(&output), expected);
        assert_eq!(output["model_hash"], "07".repeat(32));
        assert_eq!(
            (&output["model"], &output["dim"], &output["count"]),
            (&json!("tiny"), &json!(2), &json!(count))
        );
        assert_eq!(
            (&output["normalized"], &output["assurance"]),
            (&json!(false), &json!("sampled_with_model"))
        );
        let fields = catalog()
            .into_iter()
            .find(|s| s.id == SKILL)
            .unwrap()
            .output_schema;
        let names = |value: &Value| {
            value
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&fields["properties"]), names(&output));
    }
}

/// The promise: units that no honest executor sends are refused by code.
#[test]
fn bad_units_are_refused() {
    let two = input(&["a", "bb"]);
    let good =
        |dim: u32| header(dim, true).unit(&[[vec![1.0], vec![0.0; dim as usize - 1]].concat()], 1);
    let units = |second: Vec<u8>| vec![good(4), second];
    assert!(aggregate(SKILL, &two, &units(good(4))).is_ok());
    let mut flagged = good(4);
    flagged[1] = 0;
    let mut reserved = good(4);
    reserved[2] = 1;
    let mut infinite = good(4);
    infinite[40..44].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let mut other_model = good(4);
    other_model[8] ^= 1;
    let bad: [Vec<u8>; 9] = [
        vec![],
        good(8),
        flagged,
        reserved,
        infinite,
        other_model,
        [good(4), vec![0; 16]].concat(),
        good(4)[..55].to_vec(),
        header(4, true).unit(&[vec![0.5, 0.0, 0.0, 0.0]], 1),
    ];
    for second in bad {
        let error = aggregate(SKILL, &two, &units(second.clone())).unwrap_err();
        assert_eq!(error.code, "units_invalid", "{second:?}");
    }
    assert_eq!(
        aggregate(SKILL, &two, &[good(4)]).unwrap_err().code,
        "units_invalid"
    );
    let pinned = |field: &str, value: Value| {
        let mut input = two.clone();
        input[field] = value;
        aggregate(SKILL, &input, &units(good(4))).map_err(|error| error.code)
    };
    assert!(
        pinned("dim", json!(4)).is_ok() && pinned("model_hash", json!("07".repeat(32))).is_ok()
    );
    assert_eq!(pinned("dim", json!(3)), Err("units_invalid"));
    assert_eq!(
        pinned("model_hash", json!("08".repeat(32))),
        Err("units_invalid")
    );
    // A last unit with fewer texts: what pads it is zero.
    let many = json!({"model": "m", "texts": vec!["a"; 513]});
    let job = Job::parse(&many).unwrap();
    let mut units: Vec<Vec<u8>> = (0..job.units())
        .map(|unit| header(1, false).unit(&vec![vec![1.0]; job.places(unit).len()], 2))
        .collect();
    assert_eq!(job.places(job.units() - 1).len(), 1);
    assert!(aggregate(SKILL, &many, &units).is_ok());
    *units.last_mut().unwrap().last_mut().unwrap() = 1;
    assert_eq!(
        aggregate(SKILL, &many, &units).unwrap_err().code,
        "units_invalid"
    );
}

/// The promise: rounding agrees, whatever the machines; another model, another text or a coarser model does not.
#[test]
fn units_agree_within_the_tolerance_only() {
    let vector: Vec<f32> = (0..384)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 600.0)
        .collect();
    let moved = |by: f32| vector.iter().map(|x| x * (1.0 + by)).collect::<Vec<f32>>();
    let unit = |vector: Vec<f32>| header(384, false).unit(&[vector], 1);
    let base = unit(vector.clone());
    let agree = |other: &[u8]| {
        compare(SKILL, "a", "b", &base, other) && compare(SKILL, "b", "a", other, &base)
    };
    assert!(agree(&base) && compare(SKILL, "a", "a", &base, &unit(moved(5e-5))));
    assert!(!agree(&unit(moved(2e-4))) && !agree(&unit(moved(-2.0))));
    let coarse: Vec<f32> = vector
        .iter()
        .map(|x| (x * 1500.0).round() / 1500.0)
        .collect();
    assert!(!agree(&unit(coarse)), "eight bits are another model");
    let mut nan = vector.clone();
    nan[3] = f32::NAN;
    assert!(
        !agree(&unit(nan.clone())) && !compare(SKILL, "a", "a", &unit(nan.clone()), &unit(nan))
    );
    let mut other_model = base.clone();
    other_model[20] ^= 1;
    assert!(!agree(&other_model) && !agree(&base[..100]) && !agree(&[]));
    // One wrong vector among several is seen, and zeros agree with zeros only.
    let two = header(2, false);
    let pair = |b: f32| two.unit(&[vec![100.0, 0.0], vec![0.0, b]], 3);
    assert!(!compare(SKILL, "a", "a", &pair(0.01), &pair(0.011)));
    assert!(
        compare(SKILL, "a", "a", &pair(0.0), &pair(-0.0))
            && !compare(SKILL, "a", "a", &pair(0.0), &pair(1e-9))
    );
}

/// The promise: whoever checks a unit computes it with the model that the unit names; garbage changes nothing.
#[test]
fn recomputing_pins_the_model() {
    let input = input(&["a"]);
    let theirs = header(2, false).unit(&[vec![1.0, 2.0]], 1);
    let pinned = recompute_input(SKILL, &input, &theirs);
    assert_eq!(pinned["model_hash"], "07".repeat(32));
    assert_eq!(plan(SKILL, &pinned).unwrap().units, 1);
    assert_eq!(recompute_input(SKILL, &input, b"garbage"), input);
    assert_eq!(recompute_input("simulation", &input, &theirs), input);
}
