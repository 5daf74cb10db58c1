//! Fuzz targets: one function per module that reads untrusted bytes. Each panics if the module violates its contract.
//!
//! The fuzzer (`tests/fuzz/libfuzzer/`) calls the targets with generated input. The test suite calls them with the seeds
//! in `tests/fuzz/seeds/` and with mutations of them.

// This is test code, although the fuzzer builds it as part of the library.
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
