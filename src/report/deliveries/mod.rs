//! `WebhookDelivery` objects: dead letters, tests and redeliveries.
//!
//! 1. The object of a dead letter is created before the engine forgets the delivery. It is named after the delivery,
//!    with a number appended if an object of others has the name. Objects of others are not changed.
//! 2. The event comes from a status that only the operator writes. A spec contains nothing that could be signed.
//! 3. A request is marked as handled together with its outcome. After a crash, an unmarked request is handled again.
//! 4. A finished delivery is deleted after its `spec.ttl`. A Webhook has at most [`MAX_OBJECTS`] objects and
//!    [`MAX_BYTES`] bytes of events; the oldest delivered ones are deleted first.

mod call;
mod capacity;
mod object;
mod state;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Client, core::error_boundary::InvalidObject, runtime::watcher};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::warn;

use self::{call::Call, state::State};
use crate::{
    claim::Claim,
    objects::{ObjectChange, Objects},
    report::events::Notice,
};
use llmtune_api::{
    WebhookDelivery,
    webhook_delivery::{DeliveredEvent, WebhookReference},
};
use llmtune_client::error_chain::ErrorChain;
use llmtune_core::{
    engine::{MAX_BYTES, StoreDeadLetter},
    event::{Event, EventType, id::DeliveryId, object::Uid},
    subscription::WebhookRef,
};

/// The maximum number of objects of one Webhook. [`MAX_BYTES`] bounds their events too.
pub const MAX_OBJECTS: usize = 1_000;
/// The time for the last calls.
const LAST: Duration = Duration::from_secs(5);

/// An object, and the parts of its status that the next status continues.
#[derive(Clone, Debug)]
pub struct DeliveryRef {
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
    /// The Webhook. Its home is this namespace.
    pub webhook: WebhookReference,
    generation: i64,
    conditions: Vec<Condition>,
    /// The request that is answered.
    request: Option<String>,
    /// The version of the object that the answer is for; `None` for any.
    only: Option<u64>,
}

/// A request of a user.
#[derive(Debug)]
pub enum Request {
    /// Send a sample of this event.
    Test { object: DeliveryRef, event: EventType },
    /// Send the event again.
    Again { object: DeliveryRef, event: Arc<Event> },
}

/// An order of the leader loop.
#[derive(Debug)]
pub enum Order {
    /// Create the object of a dead letter.
    StoreDeadLetter(WebhookRef, StoreDeadLetter),
    /// Write the outcome of a requested delivery.
    Answer(Box<Answer>),
}

/// The event of a delivery.
#[derive(Debug)]
pub enum Subject {
    /// A sample. `owner` is the tested Webhook, which owns the object from then on; `None` if there is no such Webhook.
    Test { event: Arc<Event>, owner: Option<WebhookRef> },
    /// The event of a dead letter or of a redelivery.
    Event(Arc<Event>),
    /// The event in the object, unchanged.
    Found(Option<Box<DeliveredEvent>>),
}

/// The outcome of a requested delivery.
#[derive(Debug)]
pub struct Answer {
    pub object: DeliveryRef,
    pub subject: Subject,
    pub delivered: bool,
    pub reason: &'static str,
    pub message: String,
    /// The number of attempts.
    pub attempts: u32,
    pub status_code: Option<u16>,
    pub error: Option<String>,
    pub at: Timestamp,
}

/// An order to create the object of a dead letter is finished.
#[derive(Clone, Copy, Debug)]
pub struct DeadLetterStored {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    /// The object exists. Otherwise the delivery is dropped.
    pub exists: bool,
}

/// A message to the leader loop.
#[derive(Debug)]
pub enum FromDeliveries {
    Request(Request),
    DeadLetterStored(DeadLetterStored),
}

/// Manages the `WebhookDelivery` objects of some namespaces.
pub struct Deliveries {
    pub client: Client,
    pub orders: mpsc::UnboundedReceiver<Order>,
    pub back: mpsc::UnboundedSender<FromDeliveries>,
    /// Events about the objects.
    pub notices: mpsc::Sender<Notice>,
    /// Checked before each write.
    pub claim: Claim,
    /// The namespace of the deliveries of `ClusterWebhooks`; `None` if the operator does not serve them.
    pub cluster_home: Option<String>,
}

impl Deliveries {
    /// Runs until the leader loop ends or a watch fails. `namespaces`: empty means all.
    pub async fn run(mut self, namespaces: Vec<String>) {
        // Each object can contain a body of 256 KiB.
        let config = watcher::Config::default().timeout(30).page_size(20);
        let mut objects = Objects::<WebhookDelivery>::watch(&self.client, &namespaces, &config);
        let (mut listed, mut early) = (false, Vec::new());
        let mut state = State::new(self.back, self.notices, self.cluster_home, Call::new(self.client, self.claim));
        let mut tick = interval(Duration::from_millis(500));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = objects.next() => match change {
                    Some(ObjectChange::Seen { uid, object: Ok(object), listed }) => {
                        // A list overrides what is known: a restored etcd counts from a lower version.
                        if listed && let Some(known) = state.entries.get_mut(&uid) {
                            known.version = 0;
                        }
                        state.seen(uid, *object);
                    }
                    Some(ObjectChange::Seen { object: Err(invalid), .. }) => unreadable(&invalid),
                    Some(ObjectChange::Gone(uid)) => state.forget(uid),
                    Some(ObjectChange::Listed) => {
                        listed = true;
                        for (webhook, dead_letter) in std::mem::take(&mut early) {
                            state.dead_letter(webhook, dead_letter);
                        }
                    }
                    // The watch logs it and retries.
                    Some(ObjectChange::Refused) => {}
                    // A watch has ended. The caller ends too.
                    None => break,
                },
                order = self.orders.recv() => match order {
                    None => break,
                    // The number of objects is known once all are listed.
                    Some(Order::StoreDeadLetter(webhook, dead_letter)) if !listed => early.push((webhook, dead_letter)),
                    Some(Order::StoreDeadLetter(webhook, dead_letter)) => state.dead_letter(webhook, dead_letter),
                    Some(Order::Answer(answer)) => state.answer(*answer),
                },
                Some(done) = state.calls.join_next() => match done {
                    Ok(done) => state.done(done),
                    Err(error) => warn!(error = %ErrorChain(&error), "a call about a WebhookDelivery panicked"),
                },
                _ = tick.tick() => {
                    for uid in state.expired(Timestamp::now()) {
                        state.delete(uid);
                    }
                    state.give_up_unknown();
                }
            }
        }
        let ended = async { while state.calls.join_next().await.is_some() {} };
        if timeout(LAST, ended).await.is_err() {
            warn!(
                calls = state.calls.len(),
                "calls about WebhookDelivery objects did not end in time; the next leader repeats them"
            );
        }
    }
}

/// Returns the outcome of a request for which nothing was sent.
#[must_use]
pub fn unsent(object: DeliveryRef, subject: Subject, reason: &'static str, message: String, at: Timestamp) -> Answer {
    Answer { object, subject, delivered: false, reason, message, attempts: 0, status_code: None, error: None, at }
}

/// Logs an object that cannot be read.
fn unreadable(invalid: &InvalidObject) {
    let (namespace, name) = (invalid.metadata.namespace.as_deref(), invalid.metadata.name.as_deref());
    warn!(kind = "WebhookDelivery", namespace, name, error = invalid.error, "skipping a malformed object");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::apiserver;

    #[tokio::test]
    async fn run_ends_when_a_watch_fails() {
        let client = apiserver(|_| panic!("on purpose"));
        let (_orders, orders) = mpsc::unbounded_channel();
        let (back, _from) = mpsc::unbounded_channel();
        let (notices, _incoming) = mpsc::channel(1);
        let deliveries = Deliveries { client, orders, back, notices, claim: Claim::unbounded(), cluster_home: None };
        timeout(Duration::from_secs(20), deliveries.run(Vec::new())).await.unwrap();
    }
}
