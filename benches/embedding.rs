//! How fast texts become vectors, beside numpy with OpenBLAS on the same machine, sentences and weights:
//!
//! ```text
//! LEGION_MODELS=DIR LEGION_BENCH_PYTHON=python3 cargo bench --bench embedding
//! ```
//!
//! `DIR` has the model in a folder `all-MiniLM-L6-v2`; the Python needs numpy, and runs `benches/embedding_numpy.py`, written as
//! one would: f32, sorted by length, batches of 32. Without `LEGION_BENCH_PYTHON` only this program is measured. Both use all
//! cores and take the best of three runs; a short warm-up is not counted. Also prints how far the two programs' vectors are apart.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use legiond::labor::models::Models;
use legiond::labor::skills::cores::CorePools;
use legiond::labor::skills::embedding::Shelf;
use legiond::labor::skills::{aggregate, find};
use serde_json::{Value, json};

const SKILL: &str = "text-embedding";
const SENTENCES: usize = 1000;
const RUNS: usize = 3;

fn main() {
    // `cargo test --all-targets` runs benches without `--bench`: nothing is measured then.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let Some(models) = std::env::var_os("LEGION_MODELS").map(PathBuf::from) else {
        eprintln!("SKIPPED: LEGION_MODELS names no directory with all-MiniLM-L6-v2");
        return;
    };
    let model = models.join("all-MiniLM-L6-v2");
    let register = tempfile::tempdir().unwrap();
    Models::at(register.path())
        .add(&model, Some("m"), false)
        .unwrap();
    let shelf = Shelf::of(Models::at(register.path()));
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let pools = CorePools::new(cores);
    let texts = sentences();
    let input = json!({"model": "m", "texts": texts, "dim": 384});
    let single = json!({"model": "m", "texts": [texts[0]], "dim": 384});

    let started = Instant::now();
    embed(&single, &shelf, &pools, 0);
    println!(
        "loading, hashing, first text: {:.2} s",
        started.elapsed().as_secs_f64()
    );
    let ours = best(|| embed(&input, &shelf, &pools, 0));
    row("legion, all cores", ours);
    row(
        "legion, one core",
        best(|| embed(&input, &shelf, &pools, 1)),
    );
    let times = 20;
    let one = best(|| (0..times).for_each(|_| drop(embed(&single, &shelf, &pools, 0))));
    println!(
        "legion, one text of {} words by itself: {:.1} ms",
        texts[0].split(' ').count(),
        1e3 * one / f64::from(times)
    );
    let output = embed(&input, &shelf, &pools, 0);
    if let Some(python) = std::env::var_os("LEGION_BENCH_PYTHON") {
        let theirs = numpy(Path::new(&python), &model, &texts, &output);
        row("numpy", theirs);
        println!("legion / numpy: {:.2}", theirs / ours);
    }
}

fn row(name: &str, seconds: f64) {
    println!(
        "{name}: {:.0} sentences/s ({seconds:.2} s)",
        SENTENCES as f64 / seconds
    );
}

fn best<T>(mut run: impl FnMut() -> T) -> f64 {
    let once = |_| {
        let started = Instant::now();
        run();
        started.elapsed().as_secs_f64()
    };
    (0..RUNS).map(once).fold(f64::INFINITY, f64::min)
}

fn embed(input: &Value, shelf: &Shelf, pools: &CorePools, threads: u32) -> Value {
    let skill = find(SKILL).unwrap();
    let order: Vec<u32> = (0..skill.plan(input).unwrap().units).collect();
    let mut runner = skill.runner(input, pools.take(threads), shelf).unwrap();
    runner.announce(&order);
    let units: Vec<Vec<u8>> = order
        .iter()
        .map(|unit| runner.run(*unit).unwrap())
        .collect();
    aggregate(SKILL, input, &units).unwrap()
}

/// The other program's seconds; it prints them, and writes its vectors where it is told to.
fn numpy(python: &Path, model: &Path, texts: &[String], output: &Value) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let (sentences, vectors) = (
        dir.path().join("sentences.json"),
        dir.path().join("vectors"),
    );
    std::fs::write(&sentences, json!(texts).to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/embedding_numpy.py");
    let done = std::process::Command::new(python)
        .arg(script)
        .args([model, &sentences, &vectors])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let ours = STANDARD
        .decode(output["vectors"].as_str().unwrap())
        .unwrap();
    let theirs = std::fs::read(vectors).unwrap();
    let numbers = |bytes: &[u8]| {
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect::<Vec<_>>()
    };
    let (ours, theirs) = (numbers(&ours), numbers(&theirs));
    assert_eq!(ours.len(), theirs.len());
    let apart = ours
        .iter()
        .zip(&theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    println!("largest difference of a number: {apart:.1e}");
    said.trim().parse().unwrap()
}

/// The same sentences everywhere: common words, 9 to 80 of them, some 46 tokens on average, from a generator of one line.
fn sentences() -> Vec<String> {
    const WORDS: &str = "the of and to in is that for it as was with be by on not he his but at are this have from or had an they \
        which one you were all her she there would their we him been has when who will no more if out so up said what its about than \
        into them can only other time new some could these two may first then do any like my now over such our man me even most made \
        after also did many off before must well back through years much where your way down should because long each just state \
        people those too mr how little good world make very year still see own work great here life never day same another know while \
        last might us old great since against go came right take used himself few house use place during high without again home \
        around small however found part school once water went say left number course";
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut state = 20_261_121_u64;
    let mut draw = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut sentence = |_| {
        let length = 9 + draw(72);
        let chosen: Vec<&str> = (0..length).map(|_| words[draw(words.len())]).collect();
        format!("{}.", chosen.join(" "))
    };
    (0..SENTENCES).map(&mut sentence).collect()
}
