//! What users see: Webhook status and Kubernetes Events. The engine's results come in as notes; writes go out at a rate
//! that does not depend on the rate of deliveries.

pub mod deliveries;
pub mod events;
pub mod status;
pub mod writer;

use std::sync::Arc;

use jiff::Timestamp;

use crate::{
    api::webhook::WebhookStatus,
    engine::Verdict,
    event::{Event, object::Uid},
    subscription::{resolve::WebhookRef, watch::Standing},
};

/// Something that a Webhook's status or its Events may tell.
#[derive(Debug)]
pub enum Note {
    /// How the subscription stands; `found` is the status in the cluster, the first time.
    Standing { webhook: WebhookRef, standing: Option<Standing>, found: Option<Box<WebhookStatus>> },
    /// A delivery was taken in.
    Enqueued { webhook: Uid, pending: usize },
    /// An attempt was settled.
    Settled(Settlement),
    /// An event was thrown away because a bound was reached.
    Dropped { webhook: Uid, pending: usize },
    /// The endpoint acknowledged a test.
    Reached { webhook: Uid, at: Timestamp },
    /// The Webhook is deleted.
    Removed(Uid),
}

/// A settled attempt.
#[derive(Debug)]
pub struct Settlement {
    pub webhook: Uid,
    pub event: Arc<Event>,
    /// The last attempt that was made, from 1; 0 where none was.
    pub attempt: u32,
    /// It was made just now; else the delivery was given up without one.
    pub made: bool,
    /// The endpoint has answered 410 Gone to the spec as it stands.
    pub gone: bool,
    /// The answer's status, where there was an answer.
    pub status_code: Option<u16>,
    /// What went wrong, in at most 256 characters.
    pub error: Option<String>,
    pub verdict: Verdict,
    pub pending: usize,
    pub at: Timestamp,
}
