//! Results: put together by the executor, taken apart by the requester, and checked offline by anyone who has the export.
//!
//! Pure functions over bytes; what needs computing (the sample) is recomputed in a worker and compared here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::order::CheckOrder;
use crate::domain::step::{Findings, LaborNews};
use crate::labor::skills;
use crate::wire::bounds::MAX_EVIDENCE_BYTES;
use crate::wire::canonical;
use crate::wire::entry::Entry;
use crate::wire::merkle;
use crate::wire::proof::{Evidence, Proof};

/// Puts a finished job together: output, hashes, root.
#[allow(clippy::too_many_arguments)]
pub(super) fn finish(
    skill: &str,
    input: &Value,
    units: &[Vec<u8>],
    root: String,
    executed: u32,
    resumed_from: u32,
    profile: String,
) -> LaborNews {
    let failed = |code: &str, message: String| LaborNews::Failed {
        code: code.to_owned(),
        message,
    };
    let output = match skills::aggregate(skill, input, units) {
        Ok(output) => output,
        Err(error) => return failed(error.code(), error.to_string()),
    };
    let output_hash = match output_hash(&output) {
        Ok(hash) => hash,
        Err(message) => return failed("output_invalid", message),
    };
    LaborNews::Done {
        output,
        output_hash,
        units: units.concat(),
        root,
        executed,
        resumed_from,
        profile,
    }
}

pub(super) fn output_hash(output: &Value) -> Result<String, String> {
    canonical::canonical_json(output)
        .map(|bytes| canonical::sha256_hex(&bytes))
        .map_err(|e| e.to_string())
}

/// The Merkle root that stands in the proof, hex.
pub(super) fn root_of(
    task: &str,
    award_no: u32,
    executor: &str,
    commitment: &str,
    units: &[Vec<u8>],
) -> String {
    let context = merkle::ResultContext {
        task: task.as_bytes(),
        award_no: u64::from(award_no),
        executor: executor.as_bytes(),
        input_commitment: commitment.as_bytes(),
    };
    merkle::result_root(&context, units)
        .map(hex::encode)
        .unwrap_or_default()
}

/// What needs no computing: commitment, hashes, root, aggregate, shape.
///
/// # Errors
/// Findings with the fault.
pub(super) fn precheck(order: &CheckOrder) -> Result<Findings, Findings> {
    let mut findings = Findings {
        assurance: "none".into(),
        input: true,
        output: false,
        schema: None,
        units_checked: 0,
        fault: None,
    };
    let fault = |code: &str, expected: String, received: String| {
        Some(Evidence {
            code: code.into(),
            unit: None,
            expected,
            received,
        })
    };
    findings.input = order.proof.commitment == order.commitment;
    let received = output_hash(&order.output).unwrap_or_default();
    if received != order.proof.output {
        findings.fault = fault("output_mismatch", received, order.proof.output.clone());
        return Err(findings);
    }
    let Some(units) = split(&order.units, order.proof.units) else {
        findings.fault = fault(
            "units_mismatch",
            order.proof.units.to_string(),
            order.units.len().to_string(),
        );
        return Err(findings);
    };
    let root = root_of(
        &order.task,
        order.award_no,
        &order.proof.executor,
        &order.commitment,
        &units,
    );
    if root != order.proof.root {
        findings.fault = fault("root_mismatch", root, order.proof.root.clone());
        return Err(findings);
    }
    match skills::aggregate(&order.skill, &order.input, &units) {
        Ok(aggregate) if output_hash(&aggregate).as_ref() == Ok(&order.proof.output) => {
            findings.assurance = "schema".into();
            findings.output = true;
            findings.schema = Some(true);
            Ok(findings)
        }
        Ok(aggregate) => {
            findings.fault = fault(
                "aggregate_mismatch",
                output_hash(&aggregate).unwrap_or_default(),
                order.proof.output.clone(),
            );
            Err(findings)
        }
        // A skill that this node does not have cannot be checked any further.
        Err(error) if error.code() == "skill_unknown" => {
            findings.output = true;
            Ok(findings)
        }
        Err(error) => {
            findings.schema = Some(false);
            findings.fault = fault("schema_mismatch", error.code().to_owned(), String::new());
            Err(findings)
        }
    }
}

/// The recomputed sample against the received units.
pub(super) fn compare(order: &CheckOrder, recomputed: &[Vec<u8>], profile: &str) -> Findings {
    let mut findings = Findings {
        assurance: "sampled".into(),
        input: true,
        output: true,
        schema: Some(true),
        units_checked: order.sample.len() as u32,
        fault: None,
    };
    let units = split(&order.units, order.proof.units).unwrap_or_default();
    for (unit, ours) in order.sample.iter().zip(recomputed) {
        let theirs = units
            .get(*unit as usize)
            .map(Vec::as_slice)
            .unwrap_or_default();
        if !skills::compare(&order.skill, &order.proof.profile, profile, theirs, ours) {
            findings.fault = Some(Evidence {
                code: "unit_mismatch".into(),
                unit: Some(*unit),
                expected: shown(ours),
                received: shown(theirs),
            });
            return findings;
        }
    }
    findings
}

/// Checks an exported proof (`legion proof export`) without a node: signature, hashes, root, aggregate, receipts.
///
/// # Errors
/// A stable code and what is wrong.
pub fn verify_export(export: &Value) -> Result<Value, (&'static str, String)> {
    let proof: Proof = serde_json::from_value(export.get("proof").cloned().unwrap_or(Value::Null))
        .map_err(|e| ("proof_malformed", e.to_string()))?;
    if !proof.is_signed() {
        return Err((
            "proof_signature",
            "the signature is not by the key that the proof names".into(),
        ));
    }
    let output = export.get("output").cloned().unwrap_or(Value::Null);
    let hash = output_hash(&output).map_err(|e| ("output_invalid", e))?;
    if hash != proof.output {
        return Err((
            "output_mismatch",
            "the output is not the one that the proof names".into(),
        ));
    }
    let units = split(
        export
            .get("units")
            .and_then(Value::as_str)
            .unwrap_or_default(),
        proof.units,
    )
    .ok_or((
        "units_mismatch",
        "the unit results do not fit the proof's count".to_owned(),
    ))?;
    if root_of(
        &proof.task,
        proof.award_no,
        &proof.executor,
        &proof.commitment,
        &units,
    ) != proof.root
    {
        return Err((
            "root_mismatch",
            "the unit results are not those that the proof names".into(),
        ));
    }
    let entries: Vec<Entry> =
        serde_json::from_value(export.get("entries").cloned().unwrap_or(json!([])))
            .map_err(|e| ("entries_malformed", e.to_string()))?;
    if let Some(bad) = entries.iter().find(|e| !e.is_signed()) {
        return Err((
            "entry_signature",
            format!(
                "entry {} of {} is not signed by its key",
                bad.seq, bad.author
            ),
        ));
    }
    let name = proof
        .hash()
        .map_err(|e| ("proof_malformed", e.to_string()))?;
    let paid = entries.iter().find_map(|e| match &e.what {
        crate::wire::entry::Act::Paid {
            proof: paid_for,
            cost_mc,
            ..
        } if *paid_for == name => Some(*cost_mc),
        _ => None,
    });
    Ok(json!({
        "valid": true, "signature": true, "output": true, "root": true, "entries": entries.len(), "paid_mc": paid,
        "task": proof.task, "skill": proof.skill, "executor": crate::identity::npub(&proof.executor), "requester": crate::identity::npub(&proof.requester),
        "key": proof.key, "cost_mc": proof.cost_mc, "hops": proof.hops, "proof": name,
        "says": "who computed what from which input at which cost, untampered; not that the computation is right",
    }))
}

/// The first of the unit results, by which a skill says how the others are computed again.
pub(super) fn first_unit(units: &str, count: u32) -> Option<Vec<u8>> {
    split(units, count)?.into_iter().next()
}

/// A unit as evidence shows it: base64, or its hash where it is too long for a message. Whoever judges computes it again anyway.
fn shown(unit: &[u8]) -> String {
    let text = STANDARD.encode(unit);
    if text.len() <= MAX_EVIDENCE_BYTES {
        text
    } else {
        format!("sha256:{}", canonical::sha256_hex(unit))
    }
}

/// Unit results of equal size out of their base64 concatenation.
fn split(units: &str, count: u32) -> Option<Vec<Vec<u8>>> {
    let bytes = STANDARD.decode(units).ok()?;
    let size = bytes.len().checked_div(count as usize)?;
    (size > 0 && size * count as usize == bytes.len())
        .then(|| bytes.chunks(size).map(<[u8]>::to_vec).collect())
}
