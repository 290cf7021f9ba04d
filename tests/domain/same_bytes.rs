//! The same inputs in the same order give the same bytes, also in another process, whose hash seeds are others.

use std::process::Command;

use crate::sim::world::World;

const SEED: &str = "LEGION_SIM_CHILD_SEED";

/// What the children run: a storm whose every step goes into one hash.
#[test]
#[ignore = "run by the test below, as a child process"]
fn child() {
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    println!("steps {}", digest(seed));
}

fn digest(seed: u64) -> String {
    let mut world = World::friends(seed, 3);
    world.digest = Some(Vec::new());
    crate::sim::storm(&mut world);
    let hashes = world.digest.unwrap();
    assert!(
        hashes.len() > 30,
        "a storm has many steps: {}",
        hashes.len()
    );
    legiond::wire::canonical::sha256_hex(hashes.join("\n").as_bytes())
}

fn in_a_child(seed: u64) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "domain::same_bytes::child",
            "--ignored",
            "--nocapture",
        ])
        .env(SEED, seed.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let found = text.lines().find_map(|line| line.split("steps ").nth(1));
    found
        .unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
        .to_owned()
}

#[test]
fn two_processes_decide_the_same_bytes() {
    let mut digests = std::collections::BTreeSet::new();
    for seed in [11, 41, 299] {
        let first = in_a_child(seed);
        assert_eq!(first, in_a_child(seed), "seed {seed}");
        assert_eq!(first, digest(seed), "seed {seed}");
        digests.insert(first);
    }
    assert_eq!(digests.len(), 3, "the hash sees the steps");
}
