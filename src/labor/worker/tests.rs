//! One worker without a process around it: a unit that panics is that job's failure alone, and a queue is worked in turn.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;

struct Mined;

impl UnitRunner for Mined {
    fn run(&mut self, unit: u32) -> Result<Vec<u8>, SkillError> {
        if unit == 1 {
            panic!("a mine")
        } else {
            Ok(vec![7])
        }
    }
}

fn job(id: u64, order: Vec<u32>) -> Job {
    Job {
        id,
        runner: Box::new(Mined),
        key: JobKey::new("mined", "mined/1", &serde_json::Value::Null, &order),
        order,
        done: Vec::new(),
        resumed_from: 0,
        checkpoint_every_units: 0,
        answers: Vec::new(),
        last_progress: Instant::now(),
    }
}

/// The promise: jobs take turns unit by unit, and one that panics fails alone.
#[test]
fn a_panic_fails_one_job() {
    let (sender, inbox) = channel();
    let mut stdout = Vec::new();
    let jobs = VecDeque::from([job(1, vec![0, 1]), job(2, vec![0, 2, 3])]);
    drop(sender);
    let (own, pools) = (jobs, CorePools::new(1));
    let mut worker = Worker {
        inbox,
        stdout: &mut stdout,
        pools,
        shelf: Shelf::empty(),
        own,
        foreign: VecDeque::new(),
    };
    for _ in 0..5 {
        worker.work_one_unit().unwrap();
    }
    let mut frames = stdout.as_slice();
    let mut ends = Vec::new();
    while let Some(frame) = frames::read::<ToNode>(&mut frames).unwrap() {
        // On a slow machine a sign of life may stand in between.
        if !matches!(frame, ToNode::Progress { .. }) {
            ends.push(frame);
        }
    }
    let units = vec![Bytes(vec![7]); 3];
    let done = ToNode::Done {
        job: 2,
        units,
        executed_units: 3,
        resumed_from: 0,
    };
    let [
        ToNode::Failed {
            job: 1,
            code,
            message,
        },
        last,
    ] = ends.as_slice()
    else {
        panic!("{ends:?}")
    };
    assert!(
        code == "compute_failed" && message.contains("a mine"),
        "{code}: {message}"
    );
    assert_eq!(*last, done);
}
