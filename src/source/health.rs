//! How a watch fares: told by its task, asked by `/healthz`, `/readyz` and metrics.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

/// How a watch fares, for `/healthz`, `/readyz` and metrics.
#[derive(Debug)]
pub struct WatchHealth {
    /// The kind's name.
    pub kind: String,
    /// The namespace; `None`: all.
    pub namespace: Option<String>,
    /// The `WebhookSource` that asks for it; `None`: it is built in.
    pub webhook_source: Option<String>,
    last_activity: AtomicI64,
    last_turn: Mutex<Instant>,
    installed: AtomicBool,
    synced: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
    questions: Mutex<Questions>,
}

/// Whether the apiserver answers questions after single objects.
#[derive(Debug)]
enum Questions {
    /// Not known.
    Unasked,
    Answered,
    Refused(Trouble),
}

/// What interrupts a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// `Forbidden`, `NotNamespaced` or `Interrupted`.
    pub reason: &'static str,
    /// What is wrong, and what to do.
    pub message: String,
}

impl WatchHealth {
    /// A watch that has just begun.
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
            questions: Mutex::new(Questions::Unasked),
        }
    }

    /// The apiserver has sent something.
    pub(super) fn touch(&self) {
        self.last_activity.store(Timestamp::now().as_second(), Ordering::Relaxed);
        self.turn();
    }

    /// The watch's task has turned, whether the apiserver answered or not.
    pub(super) fn turn(&self) {
        *lock(&self.last_turn) = Instant::now();
    }

    /// Its first list is complete, or it goes on from what the ledger remembers.
    pub(super) fn sync(&self) {
        self.synced.store(true, Ordering::Relaxed);
        self.at_ease();
    }

    /// A list or a watch has failed.
    pub(super) fn interrupted(&self, trouble: Trouble) {
        *lock(&self.trouble) = Some(trouble);
    }

    /// Nothing keeps it from watching.
    pub(super) fn at_ease(&self) {
        *lock(&self.trouble) = None;
    }

    /// The apiserver has answered a question after an object.
    pub(super) fn answered(&self) {
        *lock(&self.questions) = Questions::Answered;
    }

    /// The operator may not ask after objects. Tells whether that is news.
    pub(super) fn refused(&self, trouble: Trouble) -> bool {
        !matches!(std::mem::replace(&mut *lock(&self.questions), Questions::Refused(trouble)), Questions::Refused(_))
    }

    /// Whether the apiserver is known to answer questions.
    pub(super) fn is_answered(&self) -> bool {
        matches!(*lock(&self.questions), Questions::Answered)
    }

    /// Why objects that leave the selection cannot be asked after; `None`: they can, as far as is known.
    #[must_use]
    pub fn unanswered(&self) -> Option<Trouble> {
        match &*lock(&self.questions) {
            Questions::Refused(trouble) => Some(trouble.clone()),
            Questions::Unasked | Questions::Answered => None,
        }
    }

    /// What keeps it from watching now, or from asking after what leaves its selection; `None`: nothing.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        lock(&self.trouble).clone().or_else(|| self.unanswered())
    }

    /// Whether the resource is installed; tells whether that is news.
    pub(super) fn set_installed(&self, installed: bool) -> bool {
        self.installed.swap(installed, Ordering::Relaxed) != installed
    }

    /// How long ago the watch's task last turned, by the monotonic clock. While the apiserver is away it turns on: only a task
    /// that is stuck stands still.
    #[must_use]
    pub fn stands_still(&self) -> Duration {
        lock(&self.last_turn).elapsed()
    }

    /// When the apiserver last sent anything, in unix seconds.
    #[must_use]
    pub fn last_activity(&self) -> i64 {
        self.last_activity.load(Ordering::Relaxed)
    }

    /// Whether the resource is installed, as far as is known.
    #[must_use]
    pub fn is_installed(&self) -> bool {
        self.installed.load(Ordering::Relaxed)
    }

    /// Whether its first list is complete, or what the ledger remembers of it is gone on from.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
