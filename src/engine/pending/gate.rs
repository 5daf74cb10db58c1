//! What waits for the ledger before its first attempt.

use std::collections::HashMap;

use crate::event::{
    id::DeliveryId,
    object::{Uid, WatchId},
};

/// What an event waits for before it is attempted.
#[derive(Clone, Copy, Debug)]
pub enum Withheld {
    /// Its watch's baseline.
    Baseline(WatchId),
    /// The complete flush of this number.
    Flush(u64),
}

/// Deliveries that could begin but for what they wait for.
#[derive(Debug, Default)]
pub struct Gate {
    /// For each watch whose baseline is not flushed.
    baselines: HashMap<WatchId, Vec<(Uid, DeliveryId)>>,
    /// For a flush each, by number.
    flushes: Vec<(u64, Uid, DeliveryId)>,
    /// The newest flush that was composed, of those that something is withheld for.
    composed: u64,
    /// The newest that has landed.
    landed: u64,
    /// Something is withheld for the flush after the one composed last.
    awaited: bool,
}

impl Gate {
    /// Something is withheld: until its watch's baseline is told to be flushed, what waits for that is kept.
    pub fn expect(&mut self, withheld: Option<Withheld>) {
        if let Some(Withheld::Baseline(watch)) = withheld {
            self.baselines.entry(watch).or_default();
        }
    }

    /// Keeps a delivery that must still wait; false where it may go.
    pub fn keeps(&mut self, withheld: Option<Withheld>, webhook: Uid, id: DeliveryId) -> bool {
        match withheld {
            Some(Withheld::Baseline(watch)) => {
                let Some(waiting) = self.baselines.get_mut(&watch) else { return false };
                waiting.push((webhook, id));
            }
            Some(Withheld::Flush(number)) if number > self.landed => self.flushes.push((number, webhook, id)),
            Some(Withheld::Flush(_)) | None => return false,
        }
        true
    }

    /// The watch's baseline is flushed: what may go.
    pub fn open(&mut self, watch: WatchId) -> Vec<(Uid, DeliveryId)> {
        self.baselines.remove(&watch).unwrap_or_default()
    }

    /// What an event waits for that is to be in the ledger, with its record, before it is attempted.
    pub fn next_flush(&mut self) -> Withheld {
        self.awaited = true;
        Withheld::Flush(self.composed + 1)
    }

    /// A flush that holds everything is composed. Tells the number of the newest one that something was withheld for.
    pub fn composed(&mut self) -> u64 {
        self.composed += u64::from(std::mem::take(&mut self.awaited));
        self.composed
    }

    /// Goes on from the newest flush that something was withheld for.
    pub fn resume(&mut self, flush: u64) {
        self.composed = flush;
        self.landed = flush;
    }

    /// All flushes that were composed have landed: what may go.
    pub fn landed(&mut self) -> Vec<(Uid, DeliveryId)> {
        self.landed = self.composed;
        let landed = self.landed;
        // An object's next event may come to wait for an older flush than what came before it here.
        let released = self.flushes.extract_if(.., |(number, _, _)| *number <= landed);
        released.map(|(_, webhook, id)| (webhook, id)).collect()
    }
}
