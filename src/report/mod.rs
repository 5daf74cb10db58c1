//! What users see: the status of Webhooks, Kubernetes Events, and `WebhookDelivery` objects. The engine reports through
//! notes. The rate of writes does not depend on the rate of deliveries.

pub mod deliveries;
pub mod events;
mod references;
pub mod sources;
pub mod status;
pub mod status_writer;
pub mod usage;
pub mod webhooks;
mod write_rate_limiter;

use std::sync::Arc;

use jiff::Timestamp;

use crate::subscription::watch::SubscriptionState;
use llmtune_api::webhook::WebhookStatus;
use llmtune_core::{
    engine::RecordedOutcome,
    event::{Event, object::Uid},
    subscription::WebhookRef,
};

/// A change that can affect the status or the Events of a Webhook.
#[derive(Debug)]
pub enum Note {
    /// The state of the subscription. `found` is the status in the cluster, sent the first time.
    State { webhook: WebhookRef, state: Option<SubscriptionState>, found: Option<Box<WebhookStatus>>, at: Timestamp },
    /// A delivery was queued.
    Enqueued { webhook: Uid, pending: usize },
    /// The outcome of an attempt, or a delivery that was given up without one.
    RecordedOutcome { recorded: Box<RecordedOutcome>, at: Timestamp },
    /// The filter failed on an event, which is delivered. `error` has at most 256 characters.
    FilterFailed { webhook: Uid, event: Arc<Event>, error: String },
    /// An event is lost: it could neither wait nor become a `WebhookDelivery`.
    Dropped { webhook: Uid, pending: usize },
    /// The pending deliveries of a deleted Webhook are dropped.
    DroppedWithWebhook { webhook: WebhookRef, dropped: usize },
    /// The endpoint acknowledged a test.
    TestAcknowledged { webhook: Uid, at: Timestamp },
    /// The Webhook is deleted.
    Removed(Uid),
}

/// A client of an apiserver that answers each request with this status and body.
#[cfg(test)]
fn apiserver<A>(answer: A) -> kube::Client
where
    A: Fn(&http::Request<kube::client::Body>) -> (u16, String) + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request| {
        let answer = Arc::clone(&answer);
        async move {
            let (code, body) = answer(&request);
            http::Response::builder().status(code).body(kube::client::Body::from(body.into_bytes()))
        }
    });
    kube::Client::new(service, "default")
}
