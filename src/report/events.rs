//! Publishes Kubernetes Events outside the engine's loop and at a bounded rate. A storm of failures becomes a few
//! Events that give the number of suppressed ones.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{sync::mpsc, time::Instant};
use tracing::warn;

use super::references;
use crate::{
    calls::{LogThrottle, within},
    claim::Claim,
};
use llmtune_client::error_chain::ErrorChain;
use llmtune_core::{
    event::object::{Object, Uid},
    subscription::WebhookRef,
};

/// The number of Events that a Webhook may have at once; after that, one every [`REFILL`].
const BURST: u32 = 10;
const REFILL: Duration = Duration::from_secs(5);
/// Above this number, buckets that are full are removed.
const MAX_BUCKETS: usize = 4096;
const REQUEST: Duration = Duration::from_secs(10);
static NOT_PUBLISHED: LogThrottle = LogThrottle::new();
/// A note has at most 1,024 characters (events.k8s.io/v1).
const MAX_NOTE: usize = 1000;

/// An Event to publish.
#[derive(Debug)]
pub struct Notice {
    webhook: Uid,
    warning: bool,
    reason: String,
    note: String,
    regarding: ObjectReference,
    related: Option<ObjectReference>,
}

impl Notice {
    /// Creates an Event of type `Normal` about a Webhook.
    #[must_use]
    pub fn normal(webhook: &WebhookRef, reason: &str, note: String) -> Self {
        Self {
            webhook: webhook.uid,
            warning: false,
            reason: reason.into(),
            note,
            regarding: references::webhook(webhook),
            related: None,
        }
    }

    /// Creates an Event of type `Warning` about a Webhook.
    #[must_use]
    pub fn warning(webhook: &WebhookRef, reason: &str, note: String) -> Self {
        Self { warning: true, ..Self::normal(webhook, reason, note) }
    }

    /// Creates the Event of a new ledger epoch. It refers to the Lease in the ledger's namespace.
    #[must_use]
    pub fn new_epoch(lease: ObjectReference, warning: bool, note: String) -> Self {
        let reason = "NewLedgerEpoch".into();
        Self { webhook: Uid::from_u128(0), warning, reason, note, regarding: lease, related: None }
    }

    /// Creates an Event of type `Warning` about a `WebhookDelivery`.
    #[must_use]
    pub fn about_delivery(uid: Uid, namespace: &str, name: &str, reason: &str, note: String) -> Self {
        let regarding = references::delivery(uid, namespace, name);
        Self { webhook: uid, warning: true, reason: reason.into(), note, regarding, related: None }
    }

    /// Creates an Event of type `Warning` about the object of an event that a Webhook did not get.
    #[must_use]
    pub fn about_object(webhook: &WebhookRef, object: &Object, reason: &str, note: String) -> Self {
        let news = Self::warning(webhook, reason, note);
        Self { related: Some(news.regarding), regarding: references::object(object), ..news }
    }
}

/// The tokens for Events of one reason about one Webhook.
struct Bucket {
    tokens: u32,
    refilled: Instant,
    suppressed: u32,
}

/// Publishes notices until all senders are dropped. Checks the claim before each one.
pub async fn publish(client: Client, mut notices: mpsc::Receiver<Notice>, claim: Claim) {
    let reporter = Reporter { controller: "llmtune-webhooks".into(), instance: None };
    let recorder = Recorder::new(client, reporter);
    let mut buckets: HashMap<(Uid, String), Bucket> = HashMap::new();
    while let Some(notice) = notices.recv().await {
        let Some(suppressed) = admit(&mut buckets, &notice) else { continue };
        if !claim.holds() {
            continue;
        }
        let mut note = notice.note;
        if let Some((end, _)) = note.char_indices().nth(MAX_NOTE) {
            note.truncate(end);
        }
        if suppressed > 0 {
            note = format!("{note} (and {suppressed} more)");
        }
        let event = Event {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason,
            note: Some(note),
            action: "Deliver".into(),
            secondary: notice.related,
        };
        let ObjectReference { namespace, name: object, .. } = &notice.regarding;
        let (namespace, object) = (namespace.as_deref(), object.as_deref());
        if let Err(error) = within(REQUEST, recorder.publish(&event, &notice.regarding)).await
            && let Some(more) = NOT_PUBLISHED.admit()
        {
            warn!(reason = event.reason, namespace, object, more, error = %ErrorChain(&error), "an Event was not published");
        }
    }
}

/// Takes a token. Returns the number of notices suppressed since the last token, or `None` if no token is left.
fn admit(buckets: &mut HashMap<(Uid, String), Bucket>, notice: &Notice) -> Option<u32> {
    let now = Instant::now();
    if buckets.len() >= MAX_BUCKETS {
        buckets.retain(|_, bucket| now < bucket.refilled + REFILL * BURST);
    }
    let key = (notice.webhook, notice.reason.clone());
    let bucket = buckets.entry(key).or_insert(Bucket { tokens: BURST, refilled: now, suppressed: 0 });
    let refills = (now.duration_since(bucket.refilled).as_secs() / REFILL.as_secs()) as u32;
    if refills > 0 {
        bucket.tokens = bucket.tokens.saturating_add(refills).min(BURST);
        bucket.refilled = now;
    }
    if bucket.tokens == 0 {
        bucket.suppressed += 1;
        return None;
    }
    bucket.tokens -= 1;
    Some(std::mem::take(&mut bucket.suppressed))
}
