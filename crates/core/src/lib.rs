//! The pure core: events, lifecycles, the engine with its retry schedule, the subscription index and the ledger's
//! format. Nothing here does I/O, reads a clock or draws a random number: time and random numbers are arguments.

pub mod attempt;
pub mod engine;
pub mod event;
pub mod ledger;
pub mod schedule;
pub mod subscription;
