//! The record of one object: what its lifecycle remembers, which version was seen last, and the facts that its going would
//! tell. A finished object's record is a few dozen bytes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::event::{
    lifecycle::{
        Gone, Occurrence,
        serving::{self, ServingRecord},
        training::{self, TrainingRecord},
        usage::{self, UsageRecord},
    },
    object::{Facts, Object},
    shared,
    unknown::Unknown,
};

/// What is remembered of one object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The newest `resourceVersion` that was seen of it; in the ledger, the one of its last change that mattered.
    pub version: u64,
    /// `metadata.generation` as of then.
    #[serde(default)]
    pub generation: i64,
    /// How many events of it there were.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sequence: u32,
    /// It lives but is no longer selected, or is owned: it sends nothing until it is seen again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub excluded: bool,
    /// A list lacked it, and whether it lives is not known yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missed: bool,
    /// What its lifecycle remembers.
    #[serde(flatten)]
    pub lifecycle: Lifecycle,
    /// The object, while its going would be an event.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "shared")]
    pub last: Option<Arc<Object>>,
    /// What a later release wrote.
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

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
    pub fn would_mind_going(&self) -> bool {
        match self {
            Self::Training(record) => record.would_mind_going(),
            Self::Serving(record) => record.would_mind_going(),
            Self::Usage(_) => false,
        }
    }
}
