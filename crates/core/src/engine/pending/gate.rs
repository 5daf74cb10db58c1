//! The gate holds deliveries back until the complete flush that they wait for is committed. Flushes are counted by
//! number.

use crate::event::{id::DeliveryId, object::Uid};

/// Deliveries that are ready except for the flush that they wait for.
#[derive(Debug, Default)]
pub struct Gate {
    waiting: Vec<(u64, Uid, DeliveryId)>,
    /// The newest composed flush that a delivery waits for.
    composed: u64,
    /// The newest committed flush.
    landed: u64,
    /// A delivery waits for the next flush to be composed.
    awaited: bool,
}

impl Gate {
    /// Holds the delivery back if flush `after` is not committed yet. Returns false if the delivery may begin.
    pub fn hold_back(&mut self, after: Option<u64>, webhook: Uid, id: DeliveryId) -> bool {
        let waits = after.filter(|number| *number > self.landed);
        self.waiting.extend(waits.map(|number| (number, webhook, id)));
        waits.is_some()
    }

    /// Removes the waiting deliveries of one Webhook. Returns each with its flush.
    pub fn take(&mut self, webhook: Uid) -> Vec<(u64, DeliveryId)> {
        let taken = self.waiting.extract_if(.., |(_, of, _)| *of == webhook);
        taken.map(|(number, _, id)| (number, id)).collect()
    }

    /// Returns the number of the next complete flush and marks it as awaited. The flush holds what is observed now,
    /// with its record and its watch.
    pub fn await_next_flush(&mut self) -> u64 {
        self.awaited = true;
        self.composed.saturating_add(1)
    }

    /// Counts a complete flush that was composed. Returns the newest flush number that a delivery waits for.
    pub fn composed(&mut self) -> u64 {
        self.composed = self.composed.saturating_add(std::mem::take(&mut self.awaited).into());
        self.composed
    }

    /// Resumes from the newest flush that a delivery waited for before the restart.
    pub fn resume(&mut self, flush: u64) {
        self.composed = flush;
        self.landed = flush;
    }

    /// Returns the deliveries that may begin. All composed flushes are committed.
    pub fn flush_committed(&mut self) -> Vec<(Uid, DeliveryId)> {
        self.landed = self.composed;
        let landed = self.landed;
        // The entries are not sorted: an object's next event may start to wait for an older flush than the entries
        // before it.
        let released = self.waiting.extract_if(.., |(number, _, _)| *number <= landed);
        released.map(|(_, webhook, id)| (webhook, id)).collect()
    }
}
