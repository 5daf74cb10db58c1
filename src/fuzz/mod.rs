//! What anybody may send: for each room that reads it one function from bytes, which panics where the room breaks its word.
//!
//! The fuzzer's targets (`tests/fuzz/`) call them with what it invents, the suite with the seeds that lie there and with what is made of them.

// It is a test, also where the fuzzer runs it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod address;
mod body;
mod expression;
mod ledger;
mod operator;
mod retry_after;
#[cfg(test)]
mod seeds;
mod watch;

pub use address::address;
pub use body::body;
pub use expression::expression;
pub use ledger::ledger;
pub use retry_after::retry_after;
pub use watch::watch;
