//! Lifecycles: pure state machines that alone decide which events an object's change of stage means.
//!
//! `step(record, observation) -> (occurrences, record)`. A record is what a lifecycle remembers of one object, a few dozen
//! bytes. Whatever moves no stage (labels, annotations, relists, availability that flaps) yields nothing.

pub mod serving;
pub mod training;
pub mod usage;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{EventType, id::OccurrenceName, object::Facts};
use serving::{Model, ServingRecord};
use training::TrainingRecord;
use usage::UsageRecord;

/// What a lifecycle remembers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lifecycle {
    Training(TrainingRecord),
    Serving(ServingRecord),
    Usage(UsageRecord),
}

impl Lifecycle {
    /// An object that nothing is known of.
    #[must_use]
    pub fn new(facts: &Facts) -> Self {
        match facts {
            Facts::Training(_) => Self::Training(TrainingRecord::new()),
            Facts::Serving(_) => Self::Serving(ServingRecord::default()),
            Facts::Usage(_) => Self::Usage(UsageRecord::default()),
        }
    }

    /// An object that was there before the operator was.
    #[must_use]
    pub fn baseline(facts: &Facts, generation: i64) -> Self {
        match facts {
            Facts::Training(facts) => Self::Training(TrainingRecord::baseline(facts, generation)),
            Facts::Serving(facts) => Self::Serving(ServingRecord::baseline(facts, generation)),
            Facts::Usage(_) => Self::Usage(UsageRecord::baseline()),
        }
    }

    /// An object whose record may have been forgotten: all of it is new, but its ids must be too.
    #[must_use]
    pub fn unremembered(facts: &Facts, generation: i64) -> Self {
        match facts {
            Facts::Serving(_) => Self::Serving(ServingRecord::unremembered(generation)),
            // What names their events is never used again.
            Facts::Training(_) | Facts::Usage(_) => Self::new(facts),
        }
    }

    /// What an observed state means. Facts of another lifecycle than the record's begin a new record.
    #[must_use]
    pub fn step(self, facts: &Facts, generation: i64) -> (Vec<Occurrence>, Self) {
        match (self, facts) {
            (Self::Training(record), Facts::Training(facts)) => {
                let (occurrences, record) = training::step(record, facts, generation);
                (occurrences, Self::Training(record))
            }
            (Self::Serving(record), Facts::Serving(facts)) => {
                let (occurrences, record) = serving::step(record, facts, generation);
                (occurrences, Self::Serving(record))
            }
            (Self::Usage(record), Facts::Usage(facts)) => {
                let (occurrences, record) = usage::step(record, facts, generation);
                (occurrences, Self::Usage(record))
            }
            (_, facts) => Self::new(facts).step(facts, generation),
        }
    }

    /// What it means that the object is gone.
    #[must_use]
    pub fn gone(self, how: Gone, generation: i64) -> Vec<Occurrence> {
        match self {
            Self::Training(record) => training::gone(record, how, generation),
            Self::Serving(record) => serving::gone(&record, generation),
            Self::Usage(_) => Vec::new(),
        }
    }

    /// Those of an evaluation's thresholds that are reached, as its spec writes them, ascending.
    #[must_use]
    pub fn reached(&self, facts: &Facts) -> Vec<String> {
        match (self, facts) {
            (Self::Usage(record), Facts::Usage(facts)) => record.reached(facts),
            _ => Vec::new(),
        }
    }

    /// Whether the object's going would be an event.
    #[must_use]
    pub fn emits_on_delete(&self) -> bool {
        match self {
            Self::Training(record) => record.emits_on_delete(),
            Self::Serving(record) => record.emits_on_delete(),
            Self::Usage(_) => false,
        }
    }
}

/// An event that a lifecycle decided on, before it has an id and a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// What happened.
    pub event: EventType,
    /// What names it in the object itself.
    pub name: OccurrenceName,
    /// The how-manieth event of this name it is, from 1.
    pub count: u32,
    /// Of a training event: the status to tell, in lower case.
    pub status: Option<&'static str>,
    /// Of a training event: which run it belongs to, from 1; 0 where none was ever announced.
    pub run: u32,
    /// What the record knows better than the object.
    pub recalled: Recalled,
}

/// What the record of an object knows better than the object as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recalled {
    /// Of the end of a run: its `startedAt` when it was announced.
    pub started_at: Option<Timestamp>,
    /// Of the end of a run: its start had no `startedAt`, so that it occurred when it was observed. So does the end: times of
    /// two clocks could run backwards.
    pub start_was_observed: bool,
    /// The object is gone, and did not say how it ended: its reason, message and `completedAt` are not those of an end.
    pub gone: bool,
    /// Of a cancelled run: what the object said while it ran, so that it is not the end's.
    pub stale: Stale,
    /// Of a deployment: which model to tell.
    pub model: ToldModel,
}

/// Which of an object's texts it had before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stale {
    pub reason: bool,
    pub message: bool,
}

/// Which model an event of a deployment tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToldModel {
    /// The one that the object names.
    #[default]
    Named,
    /// This one, which serves or served last; the object may name one that is being rolled out.
    Last(Box<Model>),
    /// None: the object names one that may never have served, and what served is not known.
    Unknown,
}

/// How an object ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// Its deletion was observed.
    Deleted,
    /// It was no longer there after a gap in the observation.
    Vanished,
}

/// Counts the events of one type that bear the newest `generation` as their name. Generations only grow, so the older
/// counts are never needed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    generation: i64,
    count: u32,
}

impl Tally {
    /// Whether nothing was counted.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A tally that has already met this generation, for a baseline: what was sent for it before is unknown.
    #[must_use]
    pub const fn met(generation: i64) -> Self {
        Self { generation, count: 1 }
    }

    /// The next event's count under this generation, from 1.
    fn next(&mut self, generation: i64) -> u32 {
        if self.count > 0 && self.generation == generation {
            self.count = self.count.saturating_add(1);
        } else {
            *self = Self { generation, count: 1 };
        }
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn a_tally_counts_within_a_generation_and_begins_anew_with_the_next() {
        let mut tally = Tally::default();
        assert!(tally.is_empty());
        assert_eq!([0, 0, 3, 3, 3, 4].map(|generation| tally.next(generation)), [1, 2, 1, 2, 3, 1]);
        assert!(!tally.is_empty());
        assert_eq!([5, 6].map(|generation| Tally::met(5).next(generation)), [2, 1]);
    }
}
