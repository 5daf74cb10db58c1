//! When a status is due to be written. Pure.
//!
//! 1. A status is written at once after quiet, and then no more often than [`Limits`] allow for what has changed in it.
//! 2. Conditions go first, then whoever was written longest ago; figures leave room for conditions.
//! 3. No object has two writes under way, and one whose write failed is as due as it was.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

/// What has changed in a status since it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Changed {
    #[default]
    Nothing,
    /// What may wait.
    Figures,
    /// What users and pipelines wait for.
    Conditions,
}

/// How often statuses may be written.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Between two writes of one object, where figures have changed.
    pub figures_every: Duration,
    /// The same where conditions have.
    pub conditions_every: Duration,
    /// Writes of all objects begun within a second, up to which figures are written.
    pub figures_per_second: usize,
    /// The same for conditions.
    pub conditions_per_second: usize,
}

/// Where one object stands.
#[derive(Debug, Default)]
pub struct Turn {
    changed: Changed,
    written: Option<Instant>,
    writing: Option<Changed>,
}

impl Turn {
    /// Something has changed.
    pub fn touch(&mut self, changed: Changed) {
        self.changed = self.changed.max(changed);
    }

    /// The write has ended.
    pub fn ended(&mut self, landed: bool) {
        if let Some(changed) = self.writing.take().filter(|_| !landed) {
            self.touch(changed);
        }
    }

    /// What waits to be written.
    #[cfg(test)]
    pub const fn changed(&self) -> Changed {
        self.changed
    }

    /// Whether anything waits to be written, or is being written.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.changed != Changed::Nothing || self.writing.is_some()
    }

    fn has_come(&self, limits: &Limits, now: Instant, last: bool) -> bool {
        let spacing = match self.changed {
            Changed::Nothing => return false,
            Changed::Figures => limits.figures_every,
            Changed::Conditions => limits.conditions_every,
        };
        self.writing.is_none() && (last || self.written.is_none_or(|written| now >= written + spacing))
    }
}

/// Whose turn it is.
#[derive(Debug)]
pub struct WriteRateLimiter {
    limits: Limits,
    /// Writes that were begun within the last second.
    recent: Vec<Instant>,
}

impl WriteRateLimiter {
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self { limits, recent: Vec::new() }
    }

    /// Those whose writes begin now, each of which must be told how it [`Turn::ended`]. With `last`, all in which anything has changed.
    pub fn due<'a, T>(
        &mut self,
        all: impl Iterator<Item = (&'a mut Turn, T)>,
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
        // Most often there is no room for anything, or nothing to write.
        if begun < limit(Changed::Conditions) {
            due.extend(all.filter(|(turn, _)| turn.has_come(&limits, now, last)));
        }
        due.sort_by_key(|(turn, _)| (Reverse(turn.changed), turn.written));
        let begins = due.iter().zip(begun..).take_while(|((turn, _), begun)| *begun < limit(turn.changed)).count();
        due.truncate(begins);
        self.recent.extend(std::iter::repeat_n(now, begins));
        due.into_iter().map(move |(turn, whose)| {
            turn.writing = Some(std::mem::take(&mut turn.changed));
            turn.written = Some(now);
            whose
        })
    }
}
