//! What a lease brought is checked, and what a refusal claims: by recomputing units in the owner's own worker. Nothing here knows
//! who is paid for it.

use serde_json::Value;

use super::{Events, Job, Leases};
use crate::domain::step::{Findings, Input};
use crate::labor::frames::Units;
use crate::labor::skills;
use crate::labor::supervisor::StartJob;
use crate::node::order::{CheckOrder, Mail};
use crate::node::results::{first_unit, precheck};
use crate::wire::proof::Evidence;

impl Leases {
    pub(super) fn checked(&self, order: &CheckOrder, findings: Findings) {
        self.mailbox.post(Mail::Fact(Input::Checked {
            task: order.task.clone(),
            award_no: order.award_no,
            findings,
        }));
    }

    /// First what needs no computing: commitment, hashes, root, aggregate, shape. Then the sample, in the own worker.
    pub(super) fn check(&mut self, order: CheckOrder, own: &mut Option<Events>) {
        match precheck(&order) {
            Err(findings) => self.checked(&order, findings),
            // What nobody can compute again is as sure as its shape, and one unknown here not even that.
            Ok(findings)
                if order.sample.is_empty()
                    || !cfg!(feature = "labor")
                    || !skills::is_recomputable(&order.skill) =>
            {
                self.checked(&order, findings)
            }
            Ok(findings) => {
                let theirs = first_unit(&order.units, order.proof.units).unwrap_or_default();
                let start = StartJob {
                    job: 0,
                    skill: order.skill.clone(),
                    // Without the model that they used the worker refuses, and nothing is held against them.
                    input: skills::recompute_input(&order.skill, &order.input, &theirs),
                    units: Units::Only(order.sample.clone()),
                    threads: 0,
                    foreign: false,
                    checkpoint: None,
                    checkpoint_every_units: 0,
                    answers: Vec::new(),
                };
                if !self.launch(true, own, start, Job::Check(Box::new(order.clone()))) {
                    self.checked(&order, findings);
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn evidence(
        &mut self,
        own: &mut Option<Events>,
        key: String,
        skill: String,
        input: Value,
        units: &[u8],
        unit_count: u32,
        evidence: &Evidence,
        profile: String,
    ) {
        let index = evidence
            .unit
            .filter(|unit| *unit < unit_count && evidence.code == "unit_mismatch");
        let size = units.len().checked_div(unit_count as usize).unwrap_or(0);
        let ours = index
            .and_then(|unit| units.get(unit as usize * size..(unit as usize + 1) * size))
            .map(<[u8]>::to_vec);
        let (Some(unit), Some(ours)) = (index, ours) else {
            // Any other fault would be one of our own making, which we can rule out: the result was put together here.
            self.mailbox
                .post(Mail::Fact(Input::EvidenceChecked { key, holds: false }));
            return;
        };
        let start = StartJob {
            job: 0,
            skill: skill.clone(),
            input: skills::recompute_input(&skill, &input, &ours),
            units: Units::Only(vec![unit]),
            threads: 0,
            foreign: false,
            checkpoint: None,
            checkpoint_every_units: 0,
            answers: Vec::new(),
        };
        if !self.launch(
            true,
            own,
            start,
            Job::Evidence {
                key: key.clone(),
                skill,
                profile,
                ours,
            },
        ) {
            self.mailbox
                .post(Mail::Fact(Input::EvidenceChecked { key, holds: false }));
        }
    }
}
