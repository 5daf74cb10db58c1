//! What the ledger is told of the engine, and what a new engine takes up from it.

use jiff::Timestamp;

use super::{
    Engine,
    watch::{self, Watch},
};
use crate::ledger::{
    contents::{Contents, WatchEntry},
    journal::{Flush, RecoveredState},
};

/// What the ledger does not know yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unflushed {
    Nothing,
    /// Positions have moved, and nothing else.
    Positions,
    Changes,
}

impl Engine {
    /// An engine that knows what the ledger remembered.
    #[must_use]
    pub fn recover(cluster: Option<String>, epoch: u64, shards: usize, memory: RecoveredState, now: Timestamp) -> Self {
        let mut engine = Self::new(cluster, epoch.max(memory.newest_epoch.saturating_add(1)), shards);
        let flush = memory.watches.iter().map(|watch| watch.entry.flush).max().unwrap_or_default();
        engine.pending.gate.resume(flush);
        for remembered in memory.events {
            let landed = remembered.after <= flush;
            if landed || watch::is_known(&memory.watches, &remembered.event) {
                if !landed {
                    // The next flush of everything has the number that this one would have had.
                    engine.pending.gate.await_next_flush();
                }
                engine.pending.recover(remembered, now);
            } else {
                // The flush broke off before the record or the baseline: what is there now tells it anew, or is a baseline.
                engine.pending.disown(remembered.event.id);
            }
        }
        engine.remembered = memory.watches;
        engine
    }

    /// What the ledger does not know yet.
    #[must_use]
    pub fn unflushed(&self) -> Unflushed {
        if self.watches_changed || !self.dirty.is_empty() || !self.gone.is_empty() || self.pending.is_dirty() {
            Unflushed::Changes
        } else if self.moved {
            Unflushed::Positions
        } else {
            Unflushed::Nothing
        }
    }

    /// What is to be written next, and the parts of the snapshot that are wanted with it. Where there is more than about
    /// `budget` bytes, it holds no positions and no snapshots, and the rest is to be asked for as soon as it has landed. No flush may be
    /// asked for before the one before it has landed.
    #[must_use]
    pub fn flush(&mut self, wanted: &[usize], mut budget: usize) -> Flush {
        let mut contents = Contents { events: self.pending.changes(&mut budget), ..Contents::default() };
        while budget > 0 {
            let Some((id, uid)) = self.dirty.pop() else { break };
            let Some(watch) = self.watches.get_mut(&id) else { continue };
            match watch.change(uid) {
                None => {}
                Some(entry) if entry.record.is_none() => self.gone.push((id, uid)),
                Some(entry) => {
                    let facts = entry.record.as_ref().is_some_and(|record| record.last.is_some());
                    budget = budget.saturating_sub(if facts { 1024 } else { 192 });
                    contents.records.push(entry);
                }
            }
        }
        if self.dirty.is_empty() {
            // After a first list it is as long as that.
            self.dirty.shrink_to(1024);
        }
        let mut snapshots = Vec::new();
        if !self.pending.is_dirty() && self.dirty.is_empty() {
            for (id, uid) in std::mem::take(&mut self.gone) {
                // In a store that was restored it may be back.
                let entry = self.watches.get_mut(&id).and_then(|watch| watch.change(uid));
                contents.gone.extend(entry.filter(|entry| entry.record.is_none()));
            }
            if self.watches.values().any(Watch::begins) {
                self.pending.gate.await_next_flush();
            }
            let number = self.pending.gate.composed();
            let entries = self.watches.values_mut().filter_map(|watch| watch.entry(number));
            contents.watches = Some(entries.collect::<Vec<WatchEntry>>());
            self.watches_changed = false;
            self.moved = false;
            for shard in wanted {
                let events = self.pending.snapshot(*shard);
                let records = self.watches.values().flat_map(|watch| watch.snapshot(*shard)).collect();
                snapshots.push((*shard, Contents { events, records, ..Contents::default() }));
            }
        }
        Flush { contents, snapshots }
    }

    /// The flush that was asked for last has landed.
    pub fn flush_committed(&mut self) {
        self.watches.values_mut().for_each(Watch::flush_committed);
        self.pending.flush_committed();
    }
}
