//! What must survive a crash: a checkpoint of what the apiserver's own log has told.
//!
//! A ring of journal segments takes what changed, flush by flush; snapshot segments are rewritten one after the other, so
//! that a place in the ring is free long before its turn comes. `docs/guarantees.md` tells what follows from it.
//!
//! 1. A segment is written with one PUT that carries the version of what it replaces: it lands whole, and only if nobody
//!    else wrote there.
//! 2. Of one flush, deliveries land before the records that would forget them, and positions last.
//! 3. A snapshot holds nothing that no journal segment held before it.
//! 4. A leader's claim uses up no place of the ring: its first changes replace it, or the next claim.
//! 5. What a later release added to a record, an event, a delivery or a watch is kept.

pub mod contents;
pub mod journal;
pub mod record;
pub mod store;
#[cfg(test)]
mod tests;
