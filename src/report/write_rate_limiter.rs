//! Decides when a status is written. Pure.
//!
//! 1. The first change is written immediately, and later ones at most as often as [`Limits`] allows for the kind of
//!    change.
//! 2. Conditions go first, then the objects whose last write is oldest. Figures leave capacity for conditions.
//! 3. An object has at most one write in flight. A failed write is due again.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

/// What changed in a status since it was last written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Changed {
    #[default]
    Nothing,
    /// Counters and values, which can wait.
    Figures,
    /// Conditions, which users and pipelines wait for.
    Conditions,
}

/// How often statuses may be written.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The time between two writes of one object if only figures changed.
    pub figures_every: Duration,
    /// The time between two writes of one object if conditions changed.
    pub conditions_every: Duration,
    /// The number of writes of all objects per second up to which figures are written.
    pub figures_per_second: usize,
    /// The number of writes of all objects per second up to which conditions are written.
    pub conditions_per_second: usize,
}

/// The write state of one object.
#[derive(Debug, Default)]
pub struct WriteState {
    changed: Changed,
    written: Option<Instant>,
    writing: Option<Changed>,
}

impl WriteState {
    /// Records a change.
    pub fn touch(&mut self, changed: Changed) {
        self.changed = self.changed.max(changed);
    }

    /// Records the end of the write. A failed write is due again.
    pub fn ended(&mut self, succeeded: bool) {
        if let Some(changed) = self.writing.take().filter(|_| !succeeded) {
            self.touch(changed);
        }
    }

    /// Returns the change that waits to be written.
    #[cfg(test)]
    pub const fn changed(&self) -> Changed {
        self.changed
    }

    /// Reports whether a write is due or in flight.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.changed != Changed::Nothing || self.writing.is_some()
    }

    fn is_due(&self, limits: &Limits, now: Instant, last: bool) -> bool {
        let spacing = match self.changed {
            Changed::Nothing => return false,
            Changed::Figures => limits.figures_every,
            Changed::Conditions => limits.conditions_every,
        };
        self.writing.is_none() && (last || self.written.is_none_or(|written| now >= written + spacing))
    }
}

/// Limits the writes of all objects.
#[derive(Debug)]
pub struct WriteRateLimiter {
    limits: Limits,
    /// The start times of the writes within the last second.
    recent: Vec<Instant>,
}

impl WriteRateLimiter {
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self { limits, recent: Vec::new() }
    }

    /// Returns the objects whose writes start now. Each needs a call of [`WriteState::ended`] later. With `last`, returns all
    /// objects that changed.
    pub fn due<'a, T>(
        &mut self,
        all: impl Iterator<Item = (&'a mut WriteState, T)>,
        now: Instant,
        last: bool,
    ) -> impl Iterator<Item = T> {
        self.recent.retain(|at| now.duration_since(*at) < Duration::from_secs(1));
        let (limits, begun) = (self.limits, self.recent.len());
        let limit = move |changed| match changed {
            _ if last => usize::MAX,
            Changed::Conditions => limits.conditions_per_second,
            Changed::Figures | Changed::Nothing => limits.figures_per_second,
        };
        let mut due = Vec::new();
        // Usually the limit is reached or nothing changed.
        if begun < limit(Changed::Conditions) {
            due.extend(all.filter(|(writes, _)| writes.is_due(&limits, now, last)));
        }
        due.sort_by_key(|(writes, _)| (Reverse(writes.changed), writes.written));
        let begins = due.iter().zip(begun..).take_while(|((writes, _), begun)| *begun < limit(writes.changed)).count();
        due.truncate(begins);
        self.recent.extend(std::iter::repeat_n(now, begins));
        due.into_iter().map(move |(writes, whose)| {
            writes.writing = Some(std::mem::take(&mut writes.changed));
            writes.written = Some(now);
            whose
        })
    }
}
