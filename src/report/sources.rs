//! Status of `WebhookSource` objects: whether each is watched, and whether its expressions can be evaluated.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use super::writer::apply;
use crate::{
    claim::Claim,
    source::{
        catalog::SourceRef,
        custom_source::{Failure, Failures},
        health::{Trouble, WatchHealth},
    },
};
use llmtune_api::conditions::{self, whole_seconds};
use llmtune_api::{
    WebhookSource,
    webhook_source::{EvaluationFailure, MappingInForce, WebhookSourceStatus},
};
use llmtune_core::event::object::Uid;

/// How often the health of the watches is checked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a status is written if only its counters change.
const COUNTS_EVERY: Duration = Duration::from_secs(30);
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

struct SourceStatusEntry {
    source: SourceRef,
    generation: i64,
    state: State,
    in_force: Option<Box<MappingInForce>>,
    since: Instant,
    status: WebhookSourceStatus,
    /// The time of the last write, and whether it succeeded.
    written: Option<(Instant, bool)>,
}

/// Writes statuses until the sender of notes is dropped. Checks the claim before each write.
pub async fn write(client: Client, mut notes: mpsc::UnboundedReceiver<Note>, claim: Claim) {
    let mut entries: HashMap<Uid, SourceStatusEntry> = HashMap::new();
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            note = notes.recv() => match note {
                Some(Note::Changed { source, generation, state, in_force, found }) => {
                    let status = entries.remove(&source.uid).map_or(*found, |known| known.status);
                    let in_force = in_force.or_else(|| status.in_force.clone().map(Box::new));
                    let since = Instant::now();
                    let entry = SourceStatusEntry { source, generation, state, in_force, since, status, written: None };
                    entries.insert(entry.source.uid, entry);
                }
                Some(Note::Removed(uid)) => {
                    entries.remove(&uid);
                }
                None => return,
            },
            _ = tick.tick() => {
                for entry in entries.values_mut() {
                    if claim.holds() && entry.changes(Timestamp::now()) {
                        let SourceRef { uid, name } = &entry.source;
                        let succeeded = apply::<WebhookSource>(&client, *uid, None, name, &entry.status).await;
                        entry.written = Some((Instant::now(), succeeded));
                    }
                }
            }
        }
    }
}

impl SourceStatusEntry {
    /// Updates the status. Returns whether to write it now.
    fn changes(&mut self, now: Timestamp) -> bool {
        let Some(conditions) = self.conditions(now) else { return false };
        let failures = match &self.state {
            State::Watched { failures, .. } => failures.summary(),
            State::Broken(_) => (0, None),
        };
        let new = WebhookSourceStatus {
            observed_generation: Some(self.generation),
            in_force: self.in_force.as_deref().cloned(),
            conditions,
            evaluation_errors: failures.0 as i64,
            last_evaluation_error: failures.1.map(told),
        };
        let due = match self.written {
            None => new != self.status,
            Some((_, false)) => true,
            Some((_, true)) if new.conditions != self.status.conditions => true,
            Some((at, true)) => new != self.status && at.elapsed() >= COUNTS_EVERY,
        };
        if due {
            self.status = new;
        }
        due
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

fn told(failure: Failure) -> EvaluationFailure {
    let Failure { at, namespace, name, place, error } = failure;
    EvaluationFailure {
        time: whole_seconds(at),
        namespace,
        name,
        expression: place,
        error: error.chars().take(256).collect(),
    }
}
