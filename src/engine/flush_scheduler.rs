//! When what has changed is written to the ledger, and how much of it at once. Pure; the leader and the simulation share it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Engine, Unflushed};
use crate::ledger::journal::{Flush, Journal};

/// How often flushes begin.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// From the first change to the flush, so that it takes what follows at once along.
    pub after: Duration,
    /// Between the beginnings of two flushes, at least.
    pub between: Duration,
    /// The same, where positions have moved and nothing else has.
    pub positions: Duration,
    /// About how many bytes one flush takes before the next goes on; compressed they fit into a segment as a rule.
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

/// When the next flush begins.
#[derive(Clone, Copy, Debug)]
pub struct FlushScheduler {
    intervals: Intervals,
    /// When the last flush began.
    begun: Timestamp,
    /// Since when there has been something to write.
    changed: Option<Timestamp>,
    /// The last flush had no room for everything.
    more: bool,
}

impl FlushScheduler {
    /// The pace of a ledger to which nothing has been written yet but the claim.
    #[must_use]
    pub const fn new(intervals: Intervals, now: Timestamp) -> Self {
        Self { intervals, begun: now, changed: None, more: false }
    }

    /// When the next flush is to begin, where none is under way; `None`: there is nothing to write, or not all watches that
    /// are remembered are made known.
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

    /// The clock that `now` is taken from was set forward by so much, or back: flushes come when they would have.
    pub fn shift(&mut self, step: SignedDuration) {
        for at in std::iter::once(&mut self.begun).chain(&mut self.changed) {
            *at = at.saturating_add(step).unwrap_or(*at);
        }
    }

    /// Composes the next flush.
    pub fn compose(&mut self, engine: &mut Engine, journal: &Journal, now: Timestamp) -> Flush {
        // Only a flush of everything lets snapshots go ahead of the ring.
        let budget = if journal.is_pressed() { usize::MAX } else { self.intervals.bytes };
        let flush = engine.flush(&journal.wanted(), budget);
        self.more = flush.contents.watches.is_none();
        self.begun = now;
        self.changed = None;
        flush
    }

    /// Whether the ledger knows everything, where no flush is under way.
    #[must_use]
    pub fn is_done(&self, engine: &Engine) -> bool {
        !self.more && engine.unflushed() == Unflushed::Nothing
    }
}
