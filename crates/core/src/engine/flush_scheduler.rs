//! Decides when changes are flushed to the ledger, and how much at once. Pure; the leader and the simulation share it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Engine, Unflushed};
use crate::ledger::journal::{Flush, Journal};

/// Intervals between flushes.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// The delay from the first change to its flush, which batches changes that follow at once.
    pub after: Duration,
    /// The minimum interval between the starts of two flushes.
    pub between: Duration,
    /// The same minimum if only positions have moved.
    pub positions: Duration,
    /// The approximate size of one flush, in uncompressed bytes. As a rule it fits into one segment after compression.
    pub bytes: usize,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            after: Duration::from_millis(100),
            between: Duration::from_millis(500),
            positions: Duration::from_secs(60),
            bytes: 2 << 20,
        }
    }
}

/// The time of the next flush.
#[derive(Clone, Copy, Debug)]
pub struct FlushScheduler {
    intervals: Intervals,
    /// The time at which the last flush began.
    begun: Timestamp,
    /// The time of the first change since the last flush.
    changed: Option<Timestamp>,
    /// The last flush did not hold all changes.
    more: bool,
}

impl FlushScheduler {
    /// Creates the scheduler for a ledger that holds only this leader's claim.
    #[must_use]
    pub const fn new(intervals: Intervals, now: Timestamp) -> Self {
        Self { intervals, begun: now, changed: None, more: false }
    }

    /// Returns the time at which the next flush begins if none is in progress. Returns `None` if there is nothing to
    /// write, or if recovered watches are not registered yet.
    pub fn next(&mut self, engine: &Engine, journal: &Journal, now: Timestamp) -> Option<Timestamp> {
        if engine.awaits_watches() {
            return None;
        }
        if self.more || journal.is_pressed() {
            return Some(self.begun);
        }
        let later = |at: Timestamp, by| at.checked_add(by).unwrap_or(Timestamp::MAX);
        match engine.unflushed() {
            Unflushed::Nothing => None,
            Unflushed::Positions => Some(later(self.begun, self.intervals.positions)),
            Unflushed::Changes => {
                let changed = *self.changed.get_or_insert(now);
                Some(later(changed, self.intervals.after).max(later(self.begun, self.intervals.between)))
            }
        }
    }

    /// Adjusts for a step of the clock behind `now`, so that flushes keep their intervals.
    pub fn shift(&mut self, step: SignedDuration) {
        for at in std::iter::once(&mut self.begun).chain(&mut self.changed) {
            *at = at.saturating_add(step).unwrap_or(*at);
        }
    }

    pub fn compose(&mut self, engine: &mut Engine, journal: &Journal, now: Timestamp) -> Flush {
        // Only a complete flush includes snapshots, and only snapshots free space in the ring.
        let budget = if journal.is_pressed() { usize::MAX } else { self.intervals.bytes };
        let flush = engine.flush(&journal.wanted(), budget);
        self.more = flush.contents.watches.is_none();
        self.begun = now;
        self.changed = None;
        flush
    }

    /// Reports whether the ledger holds all changes. Call it only if no flush is in progress.
    #[must_use]
    pub fn is_done(&self, engine: &Engine) -> bool {
        !self.more && engine.unflushed() == Unflushed::Nothing
    }
}
