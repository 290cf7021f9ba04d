//! Labor in the simulation: units that take their time, results, and the requester's recomputation.

use base64::Engine;
use legiond::domain::engagement::{Call, CallEnd, Engagement, answer_name};
use legiond::domain::step::{Findings, Input, LaborNews, Wish};
use legiond::wire::canonical::sha256_hex;
use legiond::wire::proof::Evidence;
use serde_json::{Value, json};

use super::world::{CHECKPOINT_UNITS, Cheat, Event, Run, SKILL, UNIT_MS, World, plan};

fn unit_bytes(input: &Value, unit: u32) -> [u8; 8] {
    let hash = sha256_hex(format!("{input}/{unit}").as_bytes());
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&hash.as_bytes()[..8]);
    bytes
}

impl World {
    pub(crate) fn run(&mut self, at: usize, key: String) {
        let (epoch, now) = (self.machines[at].epoch, self.now);
        let machine = &mut self.machines[at];
        let work: &Engagement = machine
            .node
            .as_ref()
            .unwrap()
            .work()
            .get(&key)
            .expect("a lease is for live work");
        assert!(
            machine.node.as_ref().unwrap().input(&key).is_some(),
            "the input is there when the lease is granted"
        );
        let from = if work.checkpoint_units > 0 {
            machine
                .disk
                .checkpoints
                .get(&work.owner())
                .copied()
                .unwrap_or(0)
        } else {
            0
        };
        assert_eq!(
            from, work.checkpoint_units,
            "the checkpoint that the row names is on the disk"
        );
        let total = work.units;
        assert!(
            machine
                .runs
                .insert(
                    key.clone(),
                    Run {
                        done: from,
                        from,
                        total,
                        stop: false
                    }
                )
                .is_none(),
            "a lease is granted once"
        );
        self.at(now + UNIT_MS, Event::Unit(at, epoch, key));
    }

    pub(crate) fn unit(&mut self, at: usize, key: String) {
        let (epoch, next) = (self.machines[at].epoch, self.now + UNIT_MS);
        let Some(run) = self.machines[at].runs.get_mut(&key) else {
            return;
        };
        if run.stop && run.done < run.total {
            let (units_done, executed) = (run.done, run.done - run.from);
            self.machines[at].runs.remove(&key);
            self.input(
                at,
                Input::Labor {
                    key,
                    news: LaborNews::Stopped {
                        units_done,
                        bytes: vec![1],
                        executed,
                    },
                },
            );
            return;
        }
        if self.wishes(at, &key) {
            return;
        }
        let Some(run) = self.machines[at].runs.get_mut(&key) else {
            return;
        };
        if run.done < run.total {
            run.done += 1;
            let owner = key
                .rsplit_once('/')
                .map_or(String::new(), |(o, _)| o.to_owned());
            *self.machines[at].executed.entry(owner).or_default() += 1;
        }
        let Some(run) = self.machines[at].runs.get(&key) else {
            return;
        };
        let (done, total, from) = (run.done, run.total, run.from);
        if done < total {
            self.at(next, Event::Unit(at, epoch, key.clone()));
            if done % CHECKPOINT_UNITS == 0 {
                self.input(
                    at,
                    Input::Labor {
                        key,
                        news: LaborNews::Checkpoint {
                            units_done: done,
                            bytes: vec![2],
                        },
                    },
                );
            }
            return;
        }
        self.machines[at].runs.remove(&key);
        let input = self.node(at).input(&key).cloned().unwrap();
        let mut units: Vec<u8> = Vec::new();
        for unit in 0..total {
            let mut bytes = unit_bytes(&input, unit);
            if self.machines[at].cheat == Cheat::Units && unit % 10 == 3 {
                bytes[0] ^= 1;
            }
            units.extend(bytes);
        }
        let root = sha256_hex(&units);
        let price = if self.machines[at].cheat == Cheat::Aggregate {
            "forged".to_owned()
        } else {
            root.clone()
        };
        let output = json!({"price": price});
        let output_hash = sha256_hex(output.to_string().as_bytes());
        let news = LaborNews::Done {
            output,
            output_hash,
            units,
            root,
            executed: done - from,
            resumed_from: from,
            profile: "sim".into(),
        };
        self.input(at, Input::Labor { key, news });
    }

    /// Half-way through, a job whose input says so has somebody else do a part: as often as it says, one after another. A part
    /// that came to nothing ends it.
    fn wishes(&mut self, at: usize, key: &str) -> bool {
        let (Some(work), Some(run)) = (
            self.node(at).work().get(key),
            self.machines[at].runs.get(key),
        ) else {
            return false;
        };
        let wanted = self
            .node(at)
            .input(key)
            .map_or(0, |i| i["hops"].as_u64().unwrap_or(0));
        let (asked, done, from) = (work.calls.len(), run.done, run.from);
        let lost = |call: &Call| matches!(call.end, Some(CallEnd::Failed { .. }));
        let news = if work.calls.iter().any(lost) {
            LaborNews::Failed {
                code: "hop_failed".into(),
                message: String::new(),
            }
        } else if asked as u64 >= wanted || done * 2 < run.total || done == run.total {
            return false;
        } else {
            for call in &work.calls {
                let answer = self.machines[at].disk.payload(key, &answer_name(call.call));
                assert!(answer.is_some(), "an answer is there when the work goes on");
            }
            let input = json!({"units": 10 + asked, "seed": key});
            LaborNews::Delegated {
                wish: Box::new(Wish {
                    call: asked as u32 + 1,
                    skill: SKILL.into(),
                    peer: None,
                    input: plan(&input).map(|plan| (input, Some(plan))),
                }),
                units_done: done,
                bytes: vec![3],
                executed: done - from,
            }
        };
        self.machines[at].runs.remove(key);
        let key = key.to_owned();
        self.input(at, Input::Labor { key, news });
        true
    }

    /// The requester's recomputation, from the truth.
    pub(crate) fn check(&self, at: usize, task: &str, sample: &[u32]) -> Findings {
        let disk = &self.machines[at].disk;
        let input: Value = serde_json::from_slice(&disk.payload(task, "input").unwrap()).unwrap();
        let output: Value = serde_json::from_slice(&disk.payload(task, "result").unwrap()).unwrap();
        let units = base64::engine::general_purpose::STANDARD
            .decode(disk.payload(task, "units").unwrap())
            .unwrap();
        let wrong = sample
            .iter()
            .find(|u| units.chunks(8).nth(**u as usize) != Some(&unit_bytes(&input, **u)[..]))
            .copied();
        let whole = output["price"] == Value::String(sha256_hex(&units));
        let fault = |code: &str, unit| {
            Some(Evidence {
                code: code.into(),
                unit,
                expected: "a".into(),
                received: "b".into(),
            })
        };
        let fault = match (wrong, whole) {
            _ if self.machines[at].refusals_false => fault("unit_mismatch", Some(0)),
            (Some(unit), _) => fault("unit_mismatch", Some(unit)),
            (None, false) => fault("aggregate_mismatch", None),
            (None, true) => None,
        };
        Findings {
            assurance: "sampled".into(),
            input: true,
            output: whole,
            schema: Some(true),
            units_checked: sample.len() as u32,
            fault,
        }
    }
}
