//! llmtune-webhooks: sends transitions of training jobs and model deployments as signed, retried webhooks.
//!
//! Data flows one way: [`source`] → the engine of `llmtune_core` → [`delivery`], and from the engine to [`report`].
//! `docs/architecture.md` is the map of the code.

mod calls;
pub mod claim;
pub mod delivery;
#[cfg(test)]
mod fake;
mod ledger_store;
mod objects;
pub mod operator;
mod owner;
mod panics;
pub mod report;
pub mod source;
pub mod subscription;
pub mod transport;
