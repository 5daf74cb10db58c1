//! Kubernetes Events, published off the hot path and at a bounded rate: a storm of failures becomes a few Events that say
//! how many more there were.

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

/// Events of one Webhook at once, then one every [`REFILL`].
const BURST: u32 = 10;
const REFILL: Duration = Duration::from_secs(5);
/// Buckets that have been full for long are forgotten beyond this many.
const MAX_BUCKETS: usize = 4096;
const REQUEST: Duration = Duration::from_secs(10);
static NOT_PUBLISHED: LogThrottle = LogThrottle::new();
/// A note may have 1,024 characters (events.k8s.io/v1).
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
    /// Good news about a Webhook.
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

    /// Bad news about a Webhook.
    #[must_use]
    pub fn warning(webhook: &WebhookRef, reason: &str, note: String) -> Self {
        Self { warning: true, ..Self::normal(webhook, reason, note) }
    }

    /// The ledger has begun anew; told of the Lease, beside which it lies.
    #[must_use]
    pub fn new_epoch(lease: ObjectReference, warning: bool, note: String) -> Self {
        let reason = "NewLedgerEpoch".into();
        Self { webhook: Uid::from_u128(0), warning, reason, note, regarding: lease, related: None }
    }

    /// Bad news about a `WebhookDelivery`.
    #[must_use]
    pub fn about_delivery(uid: Uid, namespace: &str, name: &str, reason: &str, note: String) -> Self {
        let regarding = references::delivery(uid, namespace, name);
        Self { webhook: uid, warning: true, reason: reason.into(), note, regarding, related: None }
    }

    /// Bad news about the object whose event a Webhook did not get.
    #[must_use]
    pub fn about_object(webhook: &WebhookRef, object: &Object, reason: &str, note: String) -> Self {
        let news = Self::warning(webhook, reason, note);
        Self { related: Some(news.regarding), regarding: references::object(object), ..news }
    }
}

/// How many Events of one kind a Webhook may still have.
struct Bucket {
    tokens: u32,
    refilled: Instant,
    suppressed: u32,
}

/// Publishes notices until all their senders are gone. The claim is asked before each.
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

/// Takes a token, and tells how many notices were suppressed since the last one; `None` where there is no token.
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
