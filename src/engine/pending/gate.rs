//! What waits for the ledger before its first attempt: for a complete flush each, by number.

use crate::event::{id::DeliveryId, object::Uid};

/// Deliveries that could begin but for the flush that they wait for.
#[derive(Debug, Default)]
pub struct Gate {
    waiting: Vec<(u64, Uid, DeliveryId)>,
    /// The newest flush that was composed, of those that something waits for.
    composed: u64,
    /// The newest that has landed.
    landed: u64,
    /// Something waits for the flush after the one composed last.
    awaited: bool,
}

impl Gate {
    /// Holds a delivery back that must still wait for this flush; false where it may go.
    pub fn hold_back(&mut self, after: Option<u64>, webhook: Uid, id: DeliveryId) -> bool {
        let waits = after.filter(|number| *number > self.landed);
        self.waiting.extend(waits.map(|number| (number, webhook, id)));
        waits.is_some()
    }

    /// Takes out what waits of one Webhook: each delivery with its flush.
    pub fn take(&mut self, webhook: Uid) -> Vec<(u64, DeliveryId)> {
        let taken = self.waiting.extract_if(.., |(_, of, _)| *of == webhook);
        taken.map(|(number, _, id)| (number, id)).collect()
    }

    /// Something waits for the next flush that holds everything: what is told now is in it, with its record and its watch. Its number.
    pub fn await_next_flush(&mut self) -> u64 {
        self.awaited = true;
        self.composed.saturating_add(1)
    }

    /// A flush that holds everything is composed. Tells the number of the newest one that something waits for.
    pub fn composed(&mut self) -> u64 {
        self.composed = self.composed.saturating_add(std::mem::take(&mut self.awaited).into());
        self.composed
    }

    /// Goes on from the newest flush that something waited for.
    pub fn resume(&mut self, flush: u64) {
        self.composed = flush;
        self.landed = flush;
    }

    /// All flushes that were composed have landed: what may go.
    pub fn flush_committed(&mut self) -> Vec<(Uid, DeliveryId)> {
        self.landed = self.composed;
        let landed = self.landed;
        // An object's next event may come to wait for an older flush than what came before it here.
        let released = self.waiting.extract_if(.., |(number, _, _)| *number <= landed);
        released.map(|(_, webhook, id)| (webhook, id)).collect()
    }
}
