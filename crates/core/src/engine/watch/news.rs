//! Decides which part of an object's state is news. The rule: no event is sent for what happened before the operator
//! could see the object, except for what an outage hid. If the case is unclear, the event is sent.
//!
//! - A start or an end that a training dates before its own creation is not news in two cases: the operator sees the
//!   object for the first time, or the object ends while it is young. It was then restored from a backup with its
//!   status, which takes one write or two. Any other change that the operator sees happen is news, whatever its time.
//! - A training that existed before it came into view starts from its present stage.
//! - A deployment that comes into view announces what it serves then: that is its present, not its past.

use jiff::Timestamp;

use crate::event::{
    EventType,
    lifecycle::Occurrence,
    object::{Facts, Object},
    observation::CLOCK_TOLERANCE,
};

/// The part of an observed state that is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Everything that the object's record does not have.
    All,
    /// What happened at or after this time, by the object's own times.
    Since(Timestamp),
    /// The end of a run that the record knows. A run that began out of view is not news, nor is its end.
    KnownRun,
}

/// What is known of an observed object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) is_first: bool,
    pub(super) is_young: bool,
    /// An event of the object was sent before.
    pub(super) announced: bool,
}

/// Reports whether the object was created within [`CLOCK_TOLERANCE`] of now.
pub(super) fn is_young(object: &Object, now: Timestamp) -> bool {
    object.created_at.is_some_and(|created| now.duration_since(created) < CLOCK_TOLERANCE)
}

/// Reports whether the object existed at this time.
pub(super) fn existed(object: &Object, at: Timestamp) -> bool {
    object.created_at.is_some_and(|created| created < at)
}

/// Reports whether a training existed at this time. If the watch has processed everything up to then and does not know
/// the training, it did not match the selector.
pub(super) fn is_old(object: &Object, at: Timestamp) -> bool {
    matches!(object.facts, Facts::Training(_)) && existed(object, at)
}

/// Reports whether a training has a start or completion time at or after this time.
pub(super) fn changed_since(object: &Object, at: Timestamp) -> bool {
    let Facts::Training(facts) = &object.facts else { return false };
    [facts.started_at, facts.completed_at].into_iter().flatten().any(|time| time >= at)
}

impl News {
    /// Drops occurrences that are not news.
    pub(super) fn retain(self, occurrences: &mut Vec<Occurrence>, object: &Object, known: Known) {
        let Facts::Training(facts) = &object.facts else { return };
        let created = object.created_at.and_then(|created| created.checked_sub(CLOCK_TOLERANCE).ok());
        let precedes_object = |time: Option<Timestamp>| time.zip(created).is_some_and(|(time, created)| time < created);
        let begins = occurrences.iter().any(|occurrence| occurrence.event == EventType::TrainingStarted);
        let ends = occurrences.iter().any(|occurrence| occurrence.event != EventType::TrainingStarted);
        let may_be_restored = known.is_first || (known.is_young && ends);
        occurrences.retain(|occurrence| {
            let starts = occurrence.event == EventType::TrainingStarted;
            let time = if starts { facts.started_at } else { facts.completed_at };
            // The end of an announced run is sent whatever its time.
            let ends_announced = !starts && !begins && known.announced;
            if may_be_restored && precedes_object(time) && !ends_announced {
                return false;
            }
            match self {
                Self::All => true,
                Self::Since(at) => time.or(facts.started_at).is_some_and(|time| time >= at),
                Self::KnownRun => !begins,
            }
        });
    }
}
