//! Composes flushes for the ledger, and restores an engine from recovered state.

use jiff::Timestamp;

use super::{
    Engine,
    watch::{self, Watch},
};
use crate::ledger::{
    contents::{Contents, WatchEntry},
    journal::{Flush, RecoveredState},
};

/// The kind of changes that no flush holds yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unflushed {
    Nothing,
    /// Only positions have moved.
    Positions,
    Changes,
}

impl Engine {
    /// Creates an engine from the state recovered from the ledger.
    #[must_use]
    pub fn recover(cluster: Option<String>, epoch: u64, shards: usize, memory: RecoveredState, now: Timestamp) -> Self {
        let mut engine = Self::new(cluster, epoch.max(memory.newest_epoch.saturating_add(1)), shards);
        let flush = memory.watches.iter().map(|watch| watch.entry.flush).max().unwrap_or_default();
        engine.pending.gate.resume(flush);
        for remembered in memory.events {
            let landed = remembered.after <= flush;
            if landed || watch::is_known(&memory.watches, &remembered.event) {
                if !landed {
                    // The next complete flush has the number that the interrupted one would have had.
                    engine.pending.gate.await_next_flush();
                }
                engine.pending.recover(remembered, now);
            } else {
                // The flush stopped before the record or the baseline was written. The current state produces the event
                // again, or is a baseline.
                engine.pending.disown(remembered.event.id);
            }
        }
        engine.remembered = memory.watches;
        engine
    }

    /// Returns what kind of changes no flush holds yet.
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

    /// Composes the next flush. `wanted` lists the snapshot shards to include. If there are more than about `budget`
    /// bytes of changes, the flush holds no positions and no snapshots; call this again as soon as it is committed.
    /// Each flush must be committed before the next one is composed.
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
            // After a first list the vector is as long as that list.
            self.dirty.shrink_to(1024);
        }
        let mut snapshots = Vec::new();
        if !self.pending.is_dirty() && self.dirty.is_empty() {
            for (id, uid) in std::mem::take(&mut self.gone) {
                // In a restored store the object may exist again.
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

    /// Handles the commit of the newest composed flush.
    pub fn flush_committed(&mut self) {
        self.watches.values_mut().for_each(Watch::flush_committed);
        self.pending.flush_committed();
    }
}
