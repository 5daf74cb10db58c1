//! Conversion between a watch with its records and their form in the ledger.

use std::sync::Arc;

use super::{Baseline, NO_VERSION, Tracked, Watch, WatchScope, WatchState};
use crate::{
    event::{Event, lifecycle::Lifecycle, object::Uid},
    ledger::{
        contents::{RecordEntry, WatchEntry},
        journal::RememberedWatch,
    },
};

/// Reports whether the ledger has a record of a measured object that counts this event.
pub(in crate::engine) fn is_known(watches: &[RememberedWatch], event: &Event) -> bool {
    let uid = event.object.uid;
    let mut records = watches.iter().filter_map(|watch| watch.records[uid.shard(watch.records.len())].get(&uid));
    records.any(|record| matches!(record.lifecycle, Lifecycle::Usage(_)) && record.sequence >= event.sequence)
}

impl Watch {
    pub(in crate::engine) fn recover(
        source: &str,
        sight: WatchScope,
        shards: usize,
        remembered: RememberedWatch,
    ) -> Self {
        let RememberedWatch { entry, records, restored: _ } = remembered;
        let mut watch = Self::new(source, sight, shards, &entry.watch, entry.epoch);
        let track = |record| Tracked { record, listing: 0, dirty: false };
        let tracked =
            records.into_iter().map(|shard| shard.into_iter().map(|(uid, record)| (uid, track(record))).collect());
        watch.records = tracked.collect();
        watch.stand = WatchState::Live;
        watch.baseline = Baseline::Committed;
        watch.absent = entry.absent;
        watch.position = entry.position;
        watch.current = entry.current;
        // The previous release writes `missing_since` back unchanged, even after the resource is served again.
        watch.missing_since = entry.missing_since.filter(|_| entry.position <= NO_VERSION);
        watch.unknown = entry.unknown;
        watch
    }

    /// Returns a record that changed, for the next flush.
    pub(in crate::engine) fn change(&mut self, uid: Uid) -> Option<RecordEntry> {
        let group = Arc::clone(&self.group);
        let record = match self.tracked(uid) {
            Some(Tracked { dirty: false, .. }) => return None,
            Some(tracked) => {
                tracked.dirty = false;
                Some(tracked.record.clone())
            }
            None => None,
        };
        Some(RecordEntry { group, uid, record })
    }

    /// Returns all records of one shard.
    pub(in crate::engine) fn snapshot(&self, shard: usize) -> Vec<RecordEntry> {
        if self.stand == WatchState::Fresh {
            return Vec::new();
        }
        let records = self.records[shard].iter();
        records
            .map(|(uid, tracked)| RecordEntry {
                group: Arc::clone(&self.group),
                uid: *uid,
                record: Some(tracked.record.clone()),
            })
            .collect()
    }

    /// Returns the watch's entry for a complete flush, or `None` while the watch has no baseline. `flush` is the newest
    /// flush number that events wait for.
    pub(in crate::engine) fn entry(&mut self, flush: u64) -> Option<WatchEntry> {
        if self.stand == WatchState::Fresh {
            return None;
        }
        if self.baseline == Baseline::Unwritten {
            self.baseline = Baseline::Written(flush);
        }
        Some(WatchEntry {
            watch: self.group.watch.clone(),
            epoch: self.group.epoch,
            position: self.position,
            absent: self.absent,
            current: self.current,
            missing_since: self.missing_since,
            flush,
            unknown: self.unknown.clone(),
        })
    }

    /// Reports whether the next complete flush is the first to hold the baseline.
    pub(in crate::engine) fn begins(&self) -> bool {
        self.stand == WatchState::Live && self.baseline == Baseline::Unwritten
    }

    pub(in crate::engine) fn flush_committed(&mut self) {
        if matches!(self.baseline, Baseline::Written(_)) {
            self.baseline = Baseline::Committed;
        }
    }
}
