//! Counts expressions that could not be evaluated, for metrics and the status.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;
use prometheus::IntCounter;

use super::mapping::Placed;
use crate::source::slim::SlimMeta;

/// The number of failed evaluations, and the newest failure.
#[derive(Debug)]
pub struct Failures {
    pub(super) metric: IntCounter,
    count: AtomicU64,
    last: Mutex<Option<Failure>>,
}

/// An expression that could not be evaluated.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When the evaluation failed.
    pub at: Timestamp,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The field of the expression, such as `spec.stages[0].when`.
    pub place: String,
    /// The error. It never contains content of the object.
    pub error: String,
}

impl Failures {
    /// Starts counting at zero. `metric` is incremented for each failure too.
    #[must_use]
    pub const fn new(metric: IntCounter) -> Self {
        Self { metric, count: AtomicU64::new(0), last: Mutex::new(None) }
    }

    /// Records a failure for this object.
    pub(super) fn add(&self, metadata: &SlimMeta, placed: &Placed, error: String) {
        self.metric.inc();
        self.count.fetch_add(1, Ordering::Relaxed);
        let failure = Failure {
            at: Timestamp::now(),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            place: placed.place.clone(),
            error,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    /// The number of failures, and the newest.
    #[must_use]
    pub fn summary(&self) -> (u64, Option<Failure>) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        (self.count.load(Ordering::Relaxed), last.clone())
    }
}
