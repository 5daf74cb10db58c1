//! llmtune-webhooks: transitions of training jobs and model deployments become signed, retried webhooks.
//!
//! Data flows one way: `source` → [`engine`] → `delivery`, and from the engine to `report`. `docs/architecture.md` leads
//! through the rooms.

pub mod api;
mod calls;
pub mod claim;
mod cluster;
pub mod delivery;
pub mod engine;
mod error_chain;
pub mod event;
#[cfg(test)]
mod fake;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod ledger;
mod objects;
pub mod operator;
mod owner;
mod panics;
pub mod plugin;
pub mod report;
pub mod source;
pub mod subscription;
pub mod transport;
