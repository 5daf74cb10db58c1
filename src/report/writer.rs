//! Turns notes into statuses, and writes them by server-side apply on `/status`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{
    Client, Resource,
    api::{Patch, PatchParams},
    core::{Request, Status},
};
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    Note,
    events::Notice,
    status::{StatusWrite, Statuses, dropped_with_webhook},
};
use crate::{
    calls::{self, LogThrottle, within},
    claim::Claim,
    panics::caught,
};
use llmtune_api::{ClusterWebhook, Webhook, webhook_delivery::WebhookKind};
use llmtune_client::error_chain::{ErrorChain, is_unknown_kind};
use llmtune_core::{event::object::Uid, subscription::WebhookRef};

/// The field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "llmtune-webhooks";
const REQUEST: Duration = Duration::from_secs(10);
/// Notes are processed in batches, this far apart, so that a busy engine does not wake the writer for each one.
const BATCH: Duration = Duration::from_millis(100);
const MAX_BATCH: usize = 4096;
static NOT_WRITTEN: LogThrottle = LogThrottle::new();
/// The time for the last writes.
const LAST: Duration = Duration::from_secs(5);

/// Receives the conditions of a Webhook for metrics; `None` if the Webhook is gone.
pub type ConditionSink = Arc<dyn Fn(&WebhookRef, Option<(&str, &str)>) + Send + Sync>;

/// Writes statuses until all senders of notes are dropped, then writes the remaining changes.
pub struct Writer {
    pub client: Client,
    pub notes: mpsc::UnboundedReceiver<Note>,
    pub notices: mpsc::Sender<Notice>,
    /// Checked before each write.
    pub claim: Claim,
    /// Receives every changed condition.
    pub conditions: ConditionSink,
}

impl Writer {
    /// Runs until all senders of notes are dropped.
    pub async fn run(mut self) {
        let mut statuses = Statuses::default();
        let mut writes: JoinSet<(Uid, bool)> = JoinSet::new();
        let mut batch = Vec::new();
        loop {
            let more = tokio::select! {
                count = self.notes.recv_many(&mut batch, MAX_BATCH) => count > 0,
                Some(written) = writes.join_next() => { finish_write(&mut statuses, written); true }
                () = sleep(Duration::from_millis(250)), if statuses.is_dirty() => true,
            };
            for note in batch.drain(..) {
                self.take(&mut statuses, note);
            }
            if !more {
                break;
            }
            self.begin(&mut statuses, &mut writes, false);
            sleep(BATCH).await;
        }
        let _ = timeout(LAST, async {
            // Twice, because a status can change while it is being written.
            for _ in 0..2 {
                self.begin(&mut statuses, &mut writes, true);
                while let Some(written) = writes.join_next().await {
                    finish_write(&mut statuses, written);
                }
            }
        })
        .await;
    }

    fn take(&self, statuses: &mut Statuses, note: Note) {
        let (webhook, notices) = match note {
            Note::State { webhook, state, found, at } => {
                let uid = webhook.uid;
                (uid, statuses.update_state(webhook, state, found, at))
            }
            Note::Enqueued { webhook, pending } => return statuses.pending(webhook, pending),
            Note::RecordedOutcome { recorded, at } => (recorded.webhook, statuses.record_outcome(&recorded, at)),
            Note::TestAcknowledged { webhook, at } => (webhook, statuses.test_acknowledged(webhook, at)),
            Note::Dropped { webhook, pending } => (webhook, statuses.dropped(webhook, pending)),
            Note::DroppedWithWebhook { webhook, dropped } => {
                (webhook.uid, vec![dropped_with_webhook(&webhook, dropped)])
            }
            Note::FilterFailed { webhook, event, error } => {
                (webhook, statuses.filter_failed(webhook, &event, &error, Instant::now()))
            }
            Note::Removed(webhook) => {
                if let Some(webhook) = statuses.remove(webhook) {
                    (self.conditions)(&webhook, None);
                }
                return;
            }
        };
        if let Some((webhook, conditions)) = statuses.changed_conditions(webhook) {
            for condition in conditions {
                (self.conditions)(webhook, Some((&condition.type_, &condition.status)));
            }
        }
        for notice in notices {
            if self.notices.try_send(notice).is_err() {
                debug!("too many Events at once; one is not published");
            }
        }
    }

    fn begin(&self, statuses: &mut Statuses, writes: &mut JoinSet<(Uid, bool)>, last: bool) {
        if !self.claim.holds() {
            return;
        }
        for write in statuses.due(Instant::now(), last) {
            let StatusWrite { webhook: WebhookRef { kind, uid, home, name }, status } = write;
            let client = self.client.clone();
            writes.spawn(async move {
                let applying = async {
                    match kind {
                        WebhookKind::Webhook => apply::<Webhook>(&client, uid, Some(&home), &name, &status).await,
                        WebhookKind::ClusterWebhook => {
                            apply::<ClusterWebhook>(&client, uid, None, &name, &status).await
                        }
                    }
                };
                (uid, caught(applying).await.unwrap_or(false))
            });
        }
    }
}

fn finish_write(statuses: &mut Statuses, written: Result<(Uid, bool), tokio::task::JoinError>) {
    match written {
        Ok((webhook, succeeded)) => statuses.written(webhook, succeeded),
        Err(error) => warn!(error = %ErrorChain(&error), "a status write panicked"),
    }
}

/// Applies the status of one object. Returns true if the write succeeded, or if the object is gone or replaced by
/// another of its name.
pub(super) async fn apply<K: Resource<DynamicType = ()>>(
    client: &Client,
    uid: Uid,
    namespace: Option<&str>,
    name: &str,
    status: &impl Serialize,
) -> bool {
    // The uid keeps the write from reaching another object that was created under this name.
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name, "uid": uid.to_string()},
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let request =
        Request::new(K::url_path(&(), namespace)).patch_subresource("status", name, &params, &Patch::Apply(&patch));
    match within(REQUEST, calls::write(client, request)).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if status.is_conflict() || is_no_object(&status) => true,
        Err(error) => {
            if let Some(more) = NOT_WRITTEN.admit() {
                warn!(kind = %K::kind(&()), namespace, name, more, error = %ErrorChain(&error), "a status was not written; trying again");
            }
            false
        }
    }
}

/// Reports whether the object does not exist, although its kind is served.
fn is_no_object(status: &Status) -> bool {
    status.is_not_found() && !is_unknown_kind(status.code, &status.message)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use jiff::Timestamp;

    use super::*;
    use crate::{
        report::apiserver,
        subscription::watch::{Readiness, SubscriptionState},
    };

    #[tokio::test]
    async fn writes_that_panic_are_repeated() {
        let written = Arc::new(AtomicU32::new(0));
        let client = {
            let written = Arc::clone(&written);
            apiserver(move |_| {
                assert!(written.fetch_add(1, Ordering::SeqCst) > 0, "the first write panics on purpose");
                (200, r#"{"metadata": {}, "spec": {"url": "https://ci", "events": ["*"]}}"#.into())
            })
        };
        let (notes, incoming) = mpsc::unbounded_channel();
        let (notices, _published) = mpsc::channel(8);
        let (claim, conditions) = (Claim::unbounded(), Arc::new(|_: &WebhookRef, _: Option<(&str, &str)>| {}));
        let writer = tokio::spawn(Writer { client, notes: incoming, notices, claim, conditions }.run());
        let (kind, uid) = (WebhookKind::Webhook, Uid::from_u128(7));
        let webhook = WebhookRef { kind, uid, home: "research".into(), name: "ci".into() };
        let state = SubscriptionState {
            generation: 1,
            endpoint: String::new(),
            readiness: Readiness::Live,
            fault: None,
            in_force: None,
            warnings: Vec::new(),
        };
        notes.send(Note::State { webhook, state: Some(state), found: None, at: Timestamp::now() }).unwrap();
        let made_again = async {
            while written.load(Ordering::SeqCst) < 2 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(20), made_again).await.unwrap();
        drop(notes);
        writer.await.unwrap();
    }
}
