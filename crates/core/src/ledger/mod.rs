//! The ledger keeps the state that must survive a crash. It is a checkpoint of the apiserver's log, stored as
//! `LedgerSegment` objects. The leader opens it once and then writes flushes.
//!
//! Journal segments form a ring and hold changes, flush by flush. Snapshot segments are rewritten one after the other,
//! so that a place in the ring is free long before it is needed again. `docs/guarantees.md` describes the consequences.
//!
//! 1. A segment is written with one PUT that carries the resource version of the segment it replaces. It is committed
//!    whole, and only if no other process wrote there.
//! 2. Within one flush, deliveries are committed before the records that would forget them, and positions last.
//! 3. A snapshot holds nothing that no journal segment held before it.
//! 4. A leader's claim uses up no place of the ring: its first changes, or the next claim, replace it.
//! 5. Members that a later release added to a record, an event, a delivery or a watch are kept.

pub mod contents;
pub mod journal;
pub mod record;
#[cfg(test)]
mod tests;

pub use llmtune_api::ledger_segment::SegmentKind;
