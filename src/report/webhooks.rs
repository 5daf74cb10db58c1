//! Turns notes about Webhooks into statuses, Events and metrics.

use std::{sync::Arc, time::Instant};

use llmtune_core::subscription::WebhookRef;
use tokio::sync::mpsc;
use tracing::debug;

use super::{
    Note,
    events::Notice,
    status::{Statuses, WebhookStatusEntry, dropped_with_webhook},
    status_writer::{Reporter, StatusTable},
};

/// Receives the conditions of a Webhook for metrics; `None` if the Webhook is gone.
pub type ConditionSink = Arc<dyn Fn(&WebhookRef, Option<(&str, &str)>) + Send + Sync>;

/// Reports about Webhooks and `ClusterWebhooks`.
pub struct WebhookReporter {
    pub statuses: Statuses,
    pub notices: mpsc::Sender<Notice>,
    /// Receives every changed condition.
    pub conditions: ConditionSink,
}

impl Reporter for WebhookReporter {
    type Note = Note;
    type Entry = WebhookStatusEntry;

    fn table(&mut self) -> &mut StatusTable<WebhookStatusEntry> {
        self.statuses.table()
    }

    fn record(&mut self, note: Note) {
        let statuses = &mut self.statuses;
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
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use jiff::Timestamp;
    use llmtune_api::webhook_delivery::WebhookKind;
    use llmtune_core::event::object::Uid;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::{
        claim::Claim,
        report::{apiserver, status_writer::write},
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
        let reporter = WebhookReporter { statuses: Statuses::default(), notices, conditions };
        let writer = tokio::spawn(write(reporter, client, incoming, claim));
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
