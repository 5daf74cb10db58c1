//! What of an object's state is news. The rule: nothing is sent for what happened before the operator could see the object, except what an
//! outage hid. In doubt the event is sent.
//!
//! - What a training says happened before its object was created is not news, where the object is seen with it for the first time, or is
//!   finished at once: it was restored from a backup with its status, which takes one write or two. What was seen to happen is news,
//!   whatever times the object says.
//! - A training that comes into view, and was there before, begins where it is.
//! - A deployment that comes into view announces what it serves then: that is its present, not its past.

use jiff::Timestamp;

use crate::event::{
    EventType,
    lifecycle::Occurrence,
    object::{Facts, Object},
    observation::CLOCK_TOLERANCE,
};

/// What of an observed state is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// All that its record does not know.
    All,
    /// What the object says happened since.
    Since(Timestamp),
    /// The end of a run that its record knows. A run that began out of sight is not news, nor is its end.
    KnownRun,
}

/// What is known of an object that is observed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// It is seen for the first time.
    pub(super) is_first: bool,
    /// It was created just now.
    pub(super) is_young: bool,
    /// An event of it was sent before.
    pub(super) announced: bool,
}

/// Whether the object was created just now.
pub(super) fn is_young(object: &Object, now: Timestamp) -> bool {
    object.created_at.is_some_and(|created| now.duration_since(created) < CLOCK_TOLERANCE)
}

/// Whether the object existed at this time.
pub(super) fn existed(object: &Object, at: Timestamp) -> bool {
    object.created_at.is_some_and(|created| created < at)
}

/// Whether the training existed at this time, so that it was not selected then: a watch that had passed everything knew nothing of it.
pub(super) fn is_old(object: &Object, at: Timestamp) -> bool {
    matches!(object.facts, Facts::Training(_)) && existed(object, at)
}

/// Whether a training says that something happened to it since this time.
pub(super) fn changed_since(object: &Object, at: Timestamp) -> bool {
    let Facts::Training(facts) = &object.facts else { return false };
    [facts.started_at, facts.completed_at].into_iter().flatten().any(|time| time >= at)
}

impl News {
    /// Drops what is not news.
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
            // Of a run that was announced, the end is sent whatever its time.
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
