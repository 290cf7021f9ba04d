//! What a job delegates is made ready to be asked for: its input completed, its units counted. Nothing here knows who will do it.

use serde_json::Value;

use super::Leases;
use crate::domain::step::{LaborNews, PlanFacts, Refused, Wish};
use crate::identity::parse_npub;
use crate::labor::skills;
use crate::node::inbox;
use crate::wire::bounds::MAX_NAME_BYTES;

impl Leases {
    pub(super) fn delegated(
        &mut self,
        key: String,
        call: u32,
        wish: skills::Wish,
        bytes: Vec<u8>,
        units_done: u32,
        executed: u32,
    ) {
        self.stop_after.retain(|k| *k != key);
        let skills::Wish { skill, input, peer } = wish;
        let refused = |code: &str, text: &str| Err(Refused::new(code, text));
        let named = peer.map(|name| parse_npub(&name).map_err(|e| e.to_string()));
        let (peer, input) = match named {
            _ if skill.is_empty() || skill.len() > MAX_NAME_BYTES => (
                None,
                refused("skill_unknown", "the name of a skill has 1 to 256 bytes"),
            ),
            None => (None, ready(&skill, input, false)),
            Some(Ok(npub)) => (Some(npub), ready(&skill, input, true)),
            Some(Err(text)) => (None, refused("peer_invalid", &text)),
        };
        let mut skill = skill;
        skill.truncate(skill.floor_char_boundary(MAX_NAME_BYTES));
        let wish = Box::new(Wish {
            call,
            skill,
            peer,
            input,
        });
        self.news(
            key,
            LaborNews::Delegated {
                wish,
                units_done,
                bytes,
                executed,
            },
        );
    }
}

/// The complete input of a part, and what the skill says of it where results can be checked by computing them again; of others
/// nothing is promised, and they are asked for by name only.
fn ready(skill: &str, input: Value, directed: bool) -> Result<(Value, Option<PlanFacts>), Refused> {
    if !input.is_object() {
        let text = "the input must be a JSON object with named fields";
        return Err(Refused::new("input_invalid", text));
    }
    if !(directed || skills::is_recomputable(skill)) {
        let text = format!(
            "this node cannot count and check the units of {skill}: name the peer that is to do it"
        );
        return Err(Refused::new("skill_unknown", text));
    }
    if skills::find(skill).is_err() {
        return Ok((input, None));
    }
    let mut seed = [0u8; 8];
    getrandom::fill(&mut seed).map_err(|e| Refused::new("entropy_unavailable", e.to_string()))?;
    let input = skills::complete_input(skill, &input, u64::from_be_bytes(seed))
        .map_err(|e| Refused::new(e.code(), e.to_string()))?;
    let plan = inbox::plan(skill, &input)?;
    Ok((input, skills::is_recomputable(skill).then_some(plan)))
}
