//! Writes the statuses of one kind of object by server-side apply on `/status`, while the claim holds.
//!
//! [`StatusTable`] is pure: it has the statuses, and [`WriteRateLimiter`] decides which of them are due. [`write`] is the
//! loop around it. Webhooks, `UsageThreshold`s and `WebhookSource`s each have a [`Reporter`].

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{
    Client, Resource,
    api::{Patch, PatchParams},
    core::{Request, Status},
};
use llmtune_client::error_chain::{ErrorChain, is_unknown_kind};
use llmtune_core::event::object::Uid;
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::warn;

use super::write_rate_limiter::{Limits, WriteRateLimiter, WriteState};
use crate::{
    calls::{self, LogThrottle, within},
    claim::Claim,
    panics::caught,
};

/// The field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "llmtune-webhooks";
const REQUEST: Duration = Duration::from_secs(10);
/// Notes are processed in batches, this far apart, so that a busy engine does not wake the writer for each one.
const BATCH: Duration = Duration::from_millis(100);
const MAX_BATCH: usize = 4096;
/// How often due writes are looked for while a status waits for its turn.
const DIRTY: Duration = Duration::from_millis(250);
/// How often [`Reporter::refresh`] is called.
const REFRESH: Duration = Duration::from_secs(1);
/// The time for the last writes.
const LAST: Duration = Duration::from_secs(5);
static NOT_WRITTEN: LogThrottle = LogThrottle::new();

/// The object whose status is written.
#[derive(Clone, Debug)]
pub struct StatusTarget {
    pub uid: Uid,
    name: String,
    namespace: Option<String>,
    api_version: String,
    kind: String,
    path: String,
}

impl StatusTarget {
    /// Creates the target for an object of kind `K`. `namespace` is `None` for cluster-scoped kinds.
    pub fn of<K: Resource<DynamicType = ()>>(uid: Uid, namespace: Option<&str>, name: &str) -> Self {
        Self {
            uid,
            name: name.to_owned(),
            namespace: namespace.map(str::to_owned),
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            path: K::url_path(&(), namespace),
        }
    }
}

/// An object in a [`StatusTable`].
pub trait StatusEntry {
    type Status: Clone + Serialize + Send + Sync + 'static;

    /// How often statuses of this kind are written.
    const LIMITS: Limits;

    /// Returns the state of its writes, the object and its current status.
    fn parts(&mut self) -> (&mut WriteState, &StatusTarget, &Self::Status);
}

/// The statuses of one kind.
#[derive(Debug)]
pub struct StatusTable<E> {
    pub entries: HashMap<Uid, E>,
    limiter: WriteRateLimiter,
}

impl<E: StatusEntry> Default for StatusTable<E> {
    fn default() -> Self {
        Self { entries: HashMap::new(), limiter: WriteRateLimiter::new(E::LIMITS) }
    }
}

impl<E: StatusEntry> StatusTable<E> {
    /// Returns the writes to start now. Each must be followed by [`Self::written`]. With `last`, returns all changed
    /// statuses.
    pub fn due(&mut self, now: Instant, last: bool) -> Vec<(StatusTarget, E::Status)> {
        let all = self.entries.values_mut().map(|entry| {
            let (writes, target, status) = entry.parts();
            (writes, (target, status))
        });
        self.limiter.due(all, now, last).map(|(target, status)| (target.clone(), status.clone())).collect()
    }

    /// Records the end of a write. A failed write is repeated.
    pub fn written(&mut self, uid: Uid, succeeded: bool) {
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.parts().0.ended(succeeded);
        }
    }

    /// Reports whether a status is still to be written.
    pub fn is_dirty(&mut self) -> bool {
        self.entries.values_mut().any(|entry| entry.parts().0.is_open())
    }
}

/// Turns notes into statuses.
pub trait Reporter {
    type Note;
    type Entry: StatusEntry;

    /// Whether statuses change without a note.
    const REFRESHES: bool = false;

    fn table(&mut self) -> &mut StatusTable<Self::Entry>;

    /// Records a note.
    fn record(&mut self, note: Self::Note);

    /// Updates statuses that change without a note. Called about once a second if [`Self::REFRESHES`].
    fn refresh(&mut self, _now: Timestamp) {}
}

/// Writes statuses until all senders of notes are dropped, then writes the remaining changes. Checks the claim before
/// each write.
pub async fn write<R: Reporter>(
    mut reporter: R,
    client: Client,
    mut notes: mpsc::UnboundedReceiver<R::Note>,
    claim: Claim,
) {
    let mut writes: JoinSet<(Uid, bool)> = JoinSet::new();
    let mut batch = Vec::new();
    let mut refreshed = Instant::now();
    loop {
        let dirty = reporter.table().is_dirty();
        let more = tokio::select! {
            count = notes.recv_many(&mut batch, MAX_BATCH) => count > 0,
            Some(written) = writes.join_next() => { record_write(reporter.table(), written); true }
            () = sleep(if dirty { DIRTY } else { REFRESH }), if dirty || R::REFRESHES => true,
        };
        for note in batch.drain(..) {
            reporter.record(note);
        }
        if !more {
            break;
        }
        if R::REFRESHES && refreshed.elapsed() >= REFRESH {
            refreshed = Instant::now();
            reporter.refresh(Timestamp::now());
        }
        start(reporter.table(), &client, &claim, &mut writes, false);
        sleep(BATCH).await;
    }
    let _ = timeout(LAST, async {
        // Twice, because a status can change while it is being written.
        for _ in 0..2 {
            start(reporter.table(), &client, &claim, &mut writes, true);
            while let Some(written) = writes.join_next().await {
                record_write(reporter.table(), written);
            }
        }
    })
    .await;
}

fn start<E: StatusEntry>(
    table: &mut StatusTable<E>,
    client: &Client,
    claim: &Claim,
    writes: &mut JoinSet<(Uid, bool)>,
    last: bool,
) {
    if !claim.holds() {
        return;
    }
    for (target, status) in table.due(Instant::now(), last) {
        let client = client.clone();
        writes.spawn(async move {
            let uid = target.uid;
            (uid, caught(apply(&client, &target, &status)).await.unwrap_or(false))
        });
    }
}

fn record_write<E: StatusEntry>(table: &mut StatusTable<E>, written: Result<(Uid, bool), tokio::task::JoinError>) {
    match written {
        Ok((uid, succeeded)) => table.written(uid, succeeded),
        Err(error) => warn!(error = %ErrorChain(&error), "a status write panicked"),
    }
}

/// Applies the status of one object. Returns true if the write succeeded, or if the object is gone or replaced by
/// another of its name.
async fn apply(client: &Client, target: &StatusTarget, status: &impl Serialize) -> bool {
    let StatusTarget { uid, name, namespace, api_version, kind, path } = target;
    // The uid keeps the write from reaching another object that was created under this name.
    let patch = json!({
        "apiVersion": api_version, "kind": kind, "metadata": {"name": name, "uid": uid.to_string()}, "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let request = Request::new(path).patch_subresource("status", name, &params, &Patch::Apply(&patch));
    match within(REQUEST, calls::write(client, request)).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if status.is_conflict() || is_no_object(&status) => true,
        Err(error) => {
            if let Some(more) = NOT_WRITTEN.admit() {
                warn!(%kind, namespace, name, more, error = %ErrorChain(&error), "a status was not written; trying again");
            }
            false
        }
    }
}

/// Reports whether the object does not exist, although its kind is served.
fn is_no_object(status: &Status) -> bool {
    status.is_not_found() && !is_unknown_kind(status.code, &status.message)
}
