//! Lifecycles: pure state machines. They alone decide which events a change of an object's stage emits.
//!
//! `step(record, observation) -> (occurrences, record)`. A record is the lifecycle's state of one object, a few dozen
//! bytes. A change that does not change the stage (labels, annotations, relists, flapping availability) emits nothing.

pub mod serving;
pub mod training;
pub mod usage;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{EventType, id::OccurrenceName, object::Facts};
use serving::{Model, ServingRecord};
use training::TrainingRecord;
use usage::UsageRecord;

/// The state of a lifecycle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lifecycle {
    Training(TrainingRecord),
    Serving(ServingRecord),
    Usage(UsageRecord),
}

impl Lifecycle {
    /// Starts the record of a new object.
    #[must_use]
    pub fn new(facts: &Facts) -> Self {
        match facts {
            Facts::Training(_) => Self::Training(TrainingRecord::new()),
            Facts::Serving(_) => Self::Serving(ServingRecord::default()),
            Facts::Usage(_) => Self::Usage(UsageRecord::default()),
        }
    }

    /// Starts the record of an object that existed before the operator started.
    #[must_use]
    pub fn baseline(facts: &Facts, generation: i64) -> Self {
        match facts {
            Facts::Training(facts) => Self::Training(TrainingRecord::baseline(facts, generation)),
            Facts::Serving(facts) => Self::Serving(ServingRecord::baseline(facts, generation)),
            Facts::Usage(_) => Self::Usage(UsageRecord::baseline()),
        }
    }

    /// Starts the record of an object whose earlier record may be gone: all of it is new, but no earlier ID may be used
    /// again.
    #[must_use]
    pub fn unremembered(facts: &Facts, generation: i64) -> Self {
        match facts {
            Facts::Serving(_) => Self::Serving(ServingRecord::unremembered(generation)),
            // The names of their events are unique, so no ID is used again.
            Facts::Training(_) | Facts::Usage(_) => Self::new(facts),
        }
    }

    /// Processes an observed state. Facts of another lifecycle start a new record.
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

    /// Returns the occurrences of an object's deletion.
    #[must_use]
    pub fn gone(self, how: Gone, generation: i64) -> Vec<Occurrence> {
        match self {
            Self::Training(record) => training::gone(record, how, generation),
            Self::Serving(record) => serving::gone(&record, generation),
            Self::Usage(_) => Vec::new(),
        }
    }

    /// Returns the thresholds that are reached, as the spec writes them, ascending.
    #[must_use]
    pub fn reached(&self, facts: &Facts) -> Vec<String> {
        match (self, facts) {
            (Self::Usage(record), Facts::Usage(facts)) => record.reached(facts),
            _ => Vec::new(),
        }
    }

    /// Reports whether deletion of the object would be an event.
    #[must_use]
    pub fn emits_on_delete(&self) -> bool {
        match self {
            Self::Training(record) => record.emits_on_delete(),
            Self::Serving(record) => record.emits_on_delete(),
            Self::Usage(_) => false,
        }
    }
}

/// An event that a lifecycle emits, before it has an ID and a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    pub event: EventType,
    /// The part of the object that identifies the occurrence.
    pub name: OccurrenceName,
    /// Sequence number among the events with this name, starting at 1.
    pub count: u32,
    /// For a training event: the `status` of the payload, in lower case.
    pub status: Option<&'static str>,
    /// For a training event: the number of the run, starting at 1; 0 if no run was announced.
    pub run: u32,
    /// Data from the record that takes precedence over the object.
    pub recalled: Recalled,
}

/// Data from an object's record that takes precedence over the object's current state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recalled {
    /// For the end of a run: the `startedAt` that was announced.
    pub started_at: Option<Timestamp>,
    /// For the end of a run: the start had no `startedAt`, so it occurred when it was observed. The end then does too,
    /// because the times of two clocks could be out of order.
    pub start_was_observed: bool,
    /// The object is deleted and did not report its end: its reason, message and `completedAt` do not describe the end.
    pub gone: bool,
    /// For a cancelled run: the texts that the object already had while it ran, which do not describe the end.
    pub stale: Stale,
    /// For a deployment: the model of the payload.
    pub model: AnnouncedModel,
}

/// The texts that an object already had before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stale {
    pub reason: bool,
    pub message: bool,
}

/// The model in the payload of a deployment's event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AnnouncedModel {
    /// The model that the object names.
    #[default]
    Named,
    /// This model, which serves or served last. The object may name one that is still being rolled out.
    Last(Box<Model>),
    /// No model: the object names one that may never have served, and it is unknown which one served.
    Unknown,
}

/// How the operator learned of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The deletion was observed.
    Deleted,
    /// The object no longer existed after a gap in the watch.
    Vanished,
}

/// Counts the events of one type whose name is the newest `generation`. Generations only grow, so older counts are not
/// needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    generation: i64,
    count: u32,
}

impl Tally {
    /// Reports whether nothing was counted.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Creates the tally of a baseline, with this generation counted once: it is unknown which events were sent for it
    /// before.
    #[must_use]
    pub const fn met(generation: i64) -> Self {
        Self { generation, count: 1 }
    }

    /// Returns the next event's count in this generation, starting at 1.
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
    fn tally_restarts_with_each_generation() {
        let mut tally = Tally::default();
        assert!(tally.is_empty());
        assert_eq!([0, 0, 3, 3, 3, 4].map(|generation| tally.next(generation)), [1, 2, 1, 2, 3, 1]);
        assert!(!tally.is_empty());
        assert_eq!([5, 6].map(|generation| Tally::met(5).next(generation)), [2, 1]);
    }
}
