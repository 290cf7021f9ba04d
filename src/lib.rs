//! Legion: a sovereign peer-to-peer node through which any machine lends and hires labor, with no open port, no central
//! server, and its owner always first.
//!
//! # One task, from end to end
//!
//! A person types `legion ask simulation --set …`. The command ([`cli`]) says so to the running node over a Unix socket;
//! [`node`] puts it into the mailbox of the one loop. The loop asks [`domain`] what to do: a pure function over plain
//! state, which answers with *changes* and *effects*. The changes of everything that waited become one durable
//! transaction in [`store`]; only then do the effects leave. So the task survives `kill -9` from here on.
//!
//! The first effect is an **offer** to a pool: a JSON-RPC message ([`wire`]) that names a skill, a number of units and a
//! salted commitment to the input, but not the input. It is sealed and wrapped ([`identity`]) into a Nostr event of which a
//! relay sees random bytes and one-time keys, and published by [`carrier`]. Another node, behind another NAT, reads the
//! pool over its own outgoing connection. Its domain decides to **bid**; ours takes the best bid and sends the **award**,
//! with the input, to the winner alone. Money is reserved on both sides now: a lock in our book, a claim in theirs.
//!
//! The winner **accepts**, and when that is durable, grants the job a revocable **lease**: a worker process ([`labor`])
//! computes it unit by unit, and hands out checkpoints. Should the owner want the machine, the worker stops at the next
//! unit, the checkpoint is kept, and the work goes on later. Should the skill want a part done by somebody else, its state is
//! kept the same way, and that part is a task like this one. The **result** comes back with every unit's result and a
//! signed **proof**. We put root and aggregate together ourselves and recompute a sample that was drawn after the result
//! was durable. If it holds, a signed **receipt** commits the credit in both books; if not, a **refusal** with evidence
//! releases it.
//!
//! # What never happens
//!
//! * Nothing leaves before it is durable: no acceptance, proof, receipt or answer.
//! * No foreign byte reaches the domain unverified: [`wire::verify`] is the only door, whatever carried it.
//! * Nothing happens twice: a message is recorded as seen in the transaction of its effect, and money moves once per
//!   (task, award, kind).
//! * A node that was restored from a backup says nothing before it has heard what it has forgotten, and signs nothing under a
//!   number that it may have used.
//! * The loop never waits for a peer, and never asks the clock or chance: both are parameters.
//!
//! **Where people go wrong:** an `OK` of a relay is not delivery, and a signature is not correctness. A message is delivered
//! when its recipient acknowledges it; a result is correct when a recomputation says so.
//!
//! # The rooms
//!
//! Each may know those below it and none above; a test (`tests/tidy.rs`) holds it. `carrier`, `relay`, `labor` and `store`
//! do not know each other.

pub mod cli;

pub mod node;

pub mod carrier;
#[cfg(feature = "relay")]
pub mod relay;

pub mod labor;

pub mod store;

pub mod domain;

pub mod wire;

pub mod identity;

pub mod config;
