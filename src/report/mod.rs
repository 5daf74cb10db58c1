//! What users see: Webhook status, Kubernetes Events, `WebhookDelivery` objects. The engine's results come in as notes; writes go out at a rate
//! that does not depend on the rate of deliveries.

pub mod deliveries;
pub mod events;
mod references;
pub mod sources;
pub mod status;
pub mod usage;
mod write_rate_limiter;
pub mod writer;

use std::sync::Arc;

use jiff::Timestamp;

use crate::subscription::watch::Standing;
use llmtune_api::webhook::WebhookStatus;
use llmtune_core::{
    engine::RecordedOutcome,
    event::{Event, object::Uid},
    subscription::WebhookRef,
};

/// Something that a Webhook's status or its Events may tell.
#[derive(Debug)]
pub enum Note {
    /// How the subscription stands; `found` is the status in the cluster, the first time.
    Standing { webhook: WebhookRef, standing: Option<Standing>, found: Option<Box<WebhookStatus>>, at: Timestamp },
    /// A delivery was taken in.
    Enqueued { webhook: Uid, pending: usize },
    /// An attempt was settled, or a delivery was given up without one.
    RecordedOutcome { settled: Box<RecordedOutcome>, at: Timestamp },
    /// The filter failed on an event, which is delivered; `error` in at most 256 characters.
    FilterFailed { webhook: Uid, event: Arc<Event>, error: String },
    /// An event is lost: it could neither wait nor be kept.
    Dropped { webhook: Uid, pending: usize },
    /// A deleted Webhook took its pending deliveries with it.
    DroppedWithWebhook { webhook: WebhookRef, dropped: usize },
    /// The endpoint acknowledged a test.
    TestAcknowledged { webhook: Uid, at: Timestamp },
    /// The Webhook is deleted.
    Removed(Uid),
}

/// An apiserver that answers each request with this status and this body.
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
