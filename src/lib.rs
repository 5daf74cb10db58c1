//! llmtune-webhooks: transitions of training jobs and model deployments become signed, retried webhooks.
//!
//! Data flows one way: `source` → [`engine`] → `delivery`, and from the engine to `report`. `docs/architecture.md` leads
//! through the rooms.

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
