//! Takes notes in and writes statuses out, by server-side apply on `/status`.

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
/// Notes are taken in batches this far apart, so that a busy engine does not wake the writer for each.
const BATCH: Duration = Duration::from_millis(100);
const MAX_BATCH: usize = 4096;
static NOT_WRITTEN: LogThrottle = LogThrottle::new();
/// How long the last writes may take.
const LAST: Duration = Duration::from_secs(5);

/// Told of a Webhook's condition and its status now, for metrics; `None`: the Webhook is gone.
pub type ConditionSink = Arc<dyn Fn(&WebhookRef, Option<(&str, &str)>) + Send + Sync>;

/// Writes statuses until all senders of notes are gone, then writes what is left.
pub struct Writer {
    pub client: Client,
    pub notes: mpsc::UnboundedReceiver<Note>,
    pub notices: mpsc::Sender<Notice>,
    /// Asked before each write.
    pub claim: Claim,
    /// Told of every condition that changed.
    pub conditions: ConditionSink,
}

impl Writer {
    /// Runs to the end of the notes.
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
            // Twice: a status that changed while it was being written is written once more.
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
            Note::Standing { webhook, standing, found, at } => {
                let uid = webhook.uid;
                (uid, statuses.standing(webhook, standing, found, at))
            }
            Note::Enqueued { webhook, pending } => return statuses.pending(webhook, pending),
            Note::RecordedOutcome { settled, at } => (settled.webhook, statuses.record_outcome(&settled, at)),
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
                debug!("too many Events at once; one is left out");
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
        Ok((webhook, landed)) => statuses.written(webhook, landed),
        Err(error) => warn!(error = %ErrorChain(&error), "a status write broke off"),
    }
}

/// Applies the status of one object; true where it landed, or where the object is gone, also where another has taken its name.
pub(super) async fn apply<K: Resource<DynamicType = ()>>(
    client: &Client,
    uid: Uid,
    namespace: Option<&str>,
    name: &str,
    status: &impl Serialize,
) -> bool {
    // With the uid an object that was deleted and created anew under this name is left alone.
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
                warn!(kind = %K::kind(&()), namespace, name, more, error = %ErrorChain(&error), "status not written; trying again");
            }
            false
        }
    }
}

/// Whether there is no such object, though its kind is served.
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
        subscription::watch::{Readiness, Standing},
    };

    #[tokio::test]
    async fn a_write_that_panics_is_made_again() {
        let written = Arc::new(AtomicU32::new(0));
        let client = {
            let written = Arc::clone(&written);
            apiserver(move |_| {
                assert!(written.fetch_add(1, Ordering::SeqCst) > 0, "the first write panics, as this test wants");
                (200, r#"{"metadata": {}, "spec": {"url": "https://ci", "events": ["*"]}}"#.into())
            })
        };
        let (notes, incoming) = mpsc::unbounded_channel();
        let (notices, _published) = mpsc::channel(8);
        let (claim, conditions) = (Claim::unbounded(), Arc::new(|_: &WebhookRef, _: Option<(&str, &str)>| {}));
        let writer = tokio::spawn(Writer { client, notes: incoming, notices, claim, conditions }.run());
        let (kind, uid) = (WebhookKind::Webhook, Uid::from_u128(7));
        let webhook = WebhookRef { kind, uid, home: "research".into(), name: "ci".into() };
        let standing = Standing {
            generation: 1,
            endpoint: String::new(),
            readiness: Readiness::Live,
            fault: None,
            in_force: None,
            warnings: Vec::new(),
        };
        notes.send(Note::Standing { webhook, standing: Some(standing), found: None, at: Timestamp::now() }).unwrap();
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
