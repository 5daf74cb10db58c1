//! Status of `WebhookSource` objects: whether each is watched, and whether its expressions can be evaluated.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use llmtune_api::{
    WebhookSource,
    conditions::{self, whole_seconds},
    webhook_source::{EvaluationFailure, MappingInForce, WebhookSourceStatus},
};
use llmtune_core::event::object::Uid;

use super::{
    status_writer::{Reporter, StatusEntry, StatusTable, StatusTarget},
    write_rate_limiter::{Changed, Limits, WriteState},
};
use crate::source::{
    catalog::SourceRef,
    custom_source::{Failure, Failures},
    health::{Trouble, WatchHealth},
};

/// Users and pipelines wait for conditions.
const LIMITS: Limits = Limits {
    figures_every: Duration::from_secs(30),
    conditions_every: Duration::from_secs(1),
    figures_per_second: 10,
    conditions_per_second: 10,
};
/// How long a failed expression makes its source unhealthy.
const UNHEALTHY_FOR: SignedDuration = SignedDuration::from_mins(10);
/// How long a watch may list before the condition reports it.
const SILENT_FOR: Duration = Duration::from_secs(2);

/// A change of a `WebhookSource`.
pub enum Note {
    /// The state of the source. `found` is its status in the cluster.
    Changed {
        source: SourceRef,
        generation: i64,
        state: State,
        /// The mapping in force. `None` keeps the recorded one.
        in_force: Option<Box<MappingInForce>>,
        found: Box<WebhookSourceStatus>,
    },
    /// The source is deleted.
    Removed(Uid),
}

/// The state of a `WebhookSource`.
pub enum State {
    /// The objects are watched, or will be when the kind is served. `fault`: the spec is invalid, and an older one is
    /// in force.
    Watched { health: Arc<WatchHealth>, failures: Arc<Failures>, fault: Option<Fault> },
    /// The spec is invalid, and no older one is in force.
    Broken(Fault),
}

/// What is wrong with a spec.
pub struct Fault {
    pub reason: &'static str,
    pub message: String,
}

/// The status of a `WebhookSource`.
pub struct SourceStatusEntry {
    target: StatusTarget,
    generation: i64,
    state: State,
    in_force: Option<Box<MappingInForce>>,
    since: Instant,
    status: WebhookSourceStatus,
    writes: WriteState,
}

impl StatusEntry for SourceStatusEntry {
    type Status = WebhookSourceStatus;

    const LIMITS: Limits = LIMITS;

    fn parts(&mut self) -> (&mut WriteState, &StatusTarget, &WebhookSourceStatus) {
        (&mut self.writes, &self.target, &self.status)
    }
}

impl Reporter for StatusTable<SourceStatusEntry> {
    type Note = Note;
    type Entry = SourceStatusEntry;

    const REFRESHES: bool = true;

    fn table(&mut self) -> &mut Self {
        self
    }

    fn record(&mut self, note: Note) {
        match note {
            Note::Changed { source: SourceRef { uid, name }, generation, state, in_force, found } => {
                let (status, writes) = match self.entries.remove(&uid) {
                    Some(known) => (known.status, known.writes),
                    None => (*found, WriteState::default()),
                };
                let in_force = in_force.or_else(|| status.in_force.clone().map(Box::new));
                let target = StatusTarget::of::<WebhookSource>(uid, None, &name);
                let since = Instant::now();
                let entry = SourceStatusEntry { target, generation, state, in_force, since, status, writes };
                self.entries.insert(uid, entry);
            }
            Note::Removed(uid) => {
                self.entries.remove(&uid);
            }
        }
    }

    /// Reads the health of the watches and the failures of expressions.
    fn refresh(&mut self, now: Timestamp) {
        for entry in self.entries.values_mut() {
            entry.update(now);
        }
    }
}

impl SourceStatusEntry {
    fn update(&mut self, now: Timestamp) {
        let Some(conditions) = self.conditions(now) else { return };
        let failures = match &self.state {
            State::Watched { failures, .. } => failures.summary(),
            State::Broken(_) => (0, None),
        };
        let new = WebhookSourceStatus {
            observed_generation: Some(self.generation),
            in_force: self.in_force.as_deref().cloned(),
            conditions,
            evaluation_errors: failures.0 as i64,
            last_evaluation_error: failures.1.map(evaluation_failure),
        };
        let known = &self.status;
        if (&new.conditions, new.observed_generation, &new.in_force)
            != (&known.conditions, known.observed_generation, &known.in_force)
        {
            self.writes.touch(Changed::Conditions);
        } else if new != *known {
            self.writes.touch(Changed::Figures);
        }
        self.status = new;
    }

    /// Returns the conditions, or `None` while the state is unknown.
    fn conditions(&self, now: Timestamp) -> Option<Vec<Condition>> {
        let (ready, reason, message) = match &self.state {
            State::Broken(Fault { reason, message }) => (false, *reason, message.clone()),
            State::Watched { health, .. } => readiness(health, self.since.elapsed() >= SILENT_FOR)?,
        };
        let (stalled, why, text) = match &self.state {
            State::Broken(fault) | State::Watched { fault: Some(fault), .. } => {
                (true, fault.reason, fault.message.as_str())
            }
            State::Watched { .. } if reason == "NotNamespaced" => (true, reason, message.as_str()),
            State::Watched { .. } => (false, "Working", ""),
        };
        let mut all = vec![
            self.condition("Ready", ready, reason, &message, now),
            self.condition("Stalled", stalled, why, text, now),
        ];
        if let State::Watched { failures, .. } = &self.state {
            let recent = failures.summary().1.filter(|failure| now.duration_since(failure.at) < UNHEALTHY_FOR);
            all.push(match recent {
                Some(Failure { namespace, name, place, error, .. }) => {
                    let message = format!("{place} failed for {namespace}/{name}: {error}");
                    self.condition("Healthy", false, "EvaluationFailed", &message, now)
                }
                None => self.condition("Healthy", true, "Evaluated", "", now),
            });
        }
        Some(all)
    }

    fn condition(&self, kind: &str, holds: bool, reason: &str, message: &str, now: Timestamp) -> Condition {
        let status = conditions::status(holds);
        conditions::next(&self.status.conditions, kind, status, reason, message, self.generation, now)
    }
}

/// Returns the status, reason and message of `Ready`, or `None` while the state is unknown.
fn readiness(health: &WatchHealth, patient: bool) -> Option<(bool, &'static str, String)> {
    let kind = &health.kind;
    if let Some(Trouble { reason, message }) = health.trouble() {
        return Some((false, reason, message));
    }
    if !health.is_installed() {
        let message = format!("the apiserver does not serve {kind} in this apiVersion; install it, and events follow");
        return Some((false, "NotInstalled", message));
    }
    if health.is_synced() {
        return Some((true, "Watching", format!("the selected {kind} objects are watched")));
    }
    patient.then(|| (false, "Listing", format!("the {kind} objects are being listed")))
}

fn evaluation_failure(failure: Failure) -> EvaluationFailure {
    let Failure { at, namespace, name, place, error } = failure;
    EvaluationFailure {
        time: whole_seconds(at),
        namespace,
        name,
        expression: place,
        error: error.chars().take(256).collect(),
    }
}
