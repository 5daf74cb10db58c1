//! The health of a watch. Its task writes it; `/healthz`, `/readyz` and metrics read it.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

/// The health of a watch.
#[derive(Debug)]
pub struct WatchHealth {
    /// The kind's name.
    pub kind: String,
    /// The namespace, or `None` for all.
    pub namespace: Option<String>,
    /// The `WebhookSource` that declares the watch, or `None` for a built-in one.
    pub webhook_source: Option<String>,
    last_activity: AtomicI64,
    last_turn: Mutex<Instant>,
    installed: AtomicBool,
    synced: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
    checks: Mutex<Checks>,
}

/// Whether the apiserver answers existence checks.
#[derive(Debug)]
enum Checks {
    /// No check has been made yet.
    Unasked,
    Answered,
    Refused(Trouble),
}

/// Why a watch is interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// `Forbidden`, `NotNamespaced` or `Interrupted`.
    pub reason: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

impl WatchHealth {
    /// Creates the health of a new watch.
    #[must_use]
    pub fn new(kind: &str, namespace: Option<String>, webhook_source: Option<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            namespace,
            webhook_source,
            last_activity: AtomicI64::new(Timestamp::now().as_second()),
            last_turn: Mutex::new(Instant::now()),
            installed: AtomicBool::new(true),
            synced: AtomicBool::new(false),
            trouble: Mutex::new(None),
            checks: Mutex::new(Checks::Unasked),
        }
    }

    /// Records that the apiserver has sent something.
    pub(super) fn touch(&self) {
        self.last_activity.store(Timestamp::now().as_second(), Ordering::Relaxed);
        self.turn();
    }

    /// Records that the watch's task is running, whether or not the apiserver answered.
    pub(super) fn turn(&self) {
        *lock(&self.last_turn) = Instant::now();
    }

    /// Records that the first list is complete, or that the watch resumed from the ledger.
    pub(super) fn sync(&self) {
        self.synced.store(true, Ordering::Relaxed);
        self.clear_trouble();
    }

    /// Records that a list or a watch has failed.
    pub(super) fn interrupted(&self, trouble: Trouble) {
        *lock(&self.trouble) = Some(trouble);
    }

    /// Records that nothing interrupts the watch.
    pub(super) fn clear_trouble(&self) {
        *lock(&self.trouble) = None;
    }

    /// Records that the apiserver has answered an existence check.
    pub(super) fn answered(&self) {
        *lock(&self.checks) = Checks::Answered;
    }

    /// Records that the operator may not get objects. Returns whether this is new.
    pub(super) fn refused(&self, trouble: Trouble) -> bool {
        !matches!(std::mem::replace(&mut *lock(&self.checks), Checks::Refused(trouble)), Checks::Refused(_))
    }

    /// Whether the apiserver has answered an existence check.
    pub(super) fn is_answered(&self) -> bool {
        matches!(*lock(&self.checks), Checks::Answered)
    }

    /// Why existence checks fail, or `None` if none has failed for a missing right.
    #[must_use]
    pub fn unanswered(&self) -> Option<Trouble> {
        match &*lock(&self.checks) {
            Checks::Refused(trouble) => Some(trouble.clone()),
            Checks::Unasked | Checks::Answered => None,
        }
    }

    /// What interrupts the watch, or else its existence checks. `None` if nothing does.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        lock(&self.trouble).clone().or_else(|| self.unanswered())
    }

    /// Records whether the resource is installed. Returns whether this is new.
    pub(super) fn set_installed(&self, installed: bool) -> bool {
        self.installed.swap(installed, Ordering::Relaxed) != installed
    }

    /// The time since the watch's task last ran its loop, by the monotonic clock. The loop also runs while the
    /// apiserver is unavailable, so a long time means that the task is stuck.
    #[must_use]
    pub fn idle_for(&self) -> Duration {
        lock(&self.last_turn).elapsed()
    }

    /// When the apiserver last sent anything, in Unix seconds.
    #[must_use]
    pub fn last_activity(&self) -> i64 {
        self.last_activity.load(Ordering::Relaxed)
    }

    /// Whether the resource is installed. True until the watch finds out otherwise.
    #[must_use]
    pub fn is_installed(&self) -> bool {
        self.installed.load(Ordering::Relaxed)
    }

    /// Whether the first list is complete, or the watch resumed from the ledger.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
