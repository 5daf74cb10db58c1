//! Deliveries as objects: what was given up is kept, a test is asked for, a delivery is asked for again.
//!
//! 1. What the engine gives up is created before the engine forgets it, under the delivery's own name, or with a number behind that where
//!    somebody else's object has it: once, however often. An object of somebody else's is left alone.
//! 2. The event comes from a status that only the operator writes: a spec holds nothing that could be signed.
//! 3. A request is marked as handled with its result, so that one that a crash cut off is handled again.
//! 4. A finished delivery goes after its `spec.ttl`; a Webhook has at most [`MAX_OBJECTS`] and [`MAX_BYTES`], of which the
//!    oldest delivered makes room.

mod call;
mod object;
mod room;
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

/// Objects of one Webhook; also bounded by [`MAX_BYTES`] of their events.
pub const MAX_OBJECTS: usize = 1_000;
/// How long the last calls may take.
const LAST: Duration = Duration::from_secs(5);

/// Which object, and what of its status the next one goes on from.
#[derive(Clone, Debug)]
pub struct DeliveryRef {
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
    /// The Webhook, whose home this namespace is.
    pub webhook: WebhookReference,
    generation: i64,
    conditions: Vec<Condition>,
    /// The request that is answered.
    request: Option<String>,
    /// The only version of the object that an answer is for; `None`: any.
    only: Option<u64>,
}

/// What users ask for.
#[derive(Debug)]
pub enum Asked {
    /// A sample of this event.
    Test { object: DeliveryRef, event: EventType },
    /// The event once more.
    Again { object: DeliveryRef, event: Arc<Event> },
}

/// What the loop orders.
#[derive(Debug)]
pub enum Order {
    /// To keep what the engine has given up.
    StoreDeadLetter(WebhookRef, StoreDeadLetter),
    /// To tell how a delivery that was asked for ended.
    Answer(Box<Answer>),
}

/// What a delivery is of.
#[derive(Debug)]
pub enum Subject {
    /// A sample. `owner`: the Webhook that it tests, to which the object belongs from then on; `None`: there is none.
    Test { event: Arc<Event>, owner: Option<WebhookRef> },
    /// An event that was given up, or that is sent again.
    Event(Arc<Event>),
    /// What the object holds, which stays as it is.
    Found(Option<Box<DeliveredEvent>>),
}

/// How a delivery that was asked for ended.
#[derive(Debug)]
pub struct Answer {
    pub object: DeliveryRef,
    pub subject: Subject,
    pub delivered: bool,
    pub reason: &'static str,
    pub message: String,
    /// Attempts that were made.
    pub attempts: u32,
    pub status_code: Option<u16>,
    pub error: Option<String>,
    pub at: Timestamp,
}

/// An order to keep is done with.
#[derive(Clone, Copy, Debug)]
pub struct DeadLetterStored {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    /// Whether there is an object now; else the delivery is dropped.
    pub landed: bool,
}

/// What comes back to the loop.
#[derive(Debug)]
pub enum FromDeliveries {
    Asked(Asked),
    DeadLetterStored(DeadLetterStored),
}

/// Looks after the `WebhookDelivery` objects of some namespaces.
pub struct Deliveries {
    pub client: Client,
    pub orders: mpsc::UnboundedReceiver<Order>,
    pub back: mpsc::UnboundedSender<FromDeliveries>,
    /// Events about the objects.
    pub notices: mpsc::Sender<Notice>,
    /// Asked before each write.
    pub claim: Claim,
    /// The namespace of the deliveries of `ClusterWebhooks`; `None`: these are not served.
    pub cluster_home: Option<String>,
}

impl Deliveries {
    /// Runs until the loop is gone, or until a watch breaks off. `namespaces`: empty means all.
    pub async fn run(mut self, namespaces: Vec<String>) {
        // Each object may hold a body of 256 KiB.
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
                        // A list has the last word: an etcd that was restored counts from lower on.
                        if listed && let Some(known) = state.entries.get_mut(&uid) {
                            known.version = 0;
                        }
                        state.seen(uid, *object);
                    }
                    Some(ObjectChange::Seen { object: Err(invalid), .. }) => unreadable(&invalid),
                    Some(ObjectChange::Gone(uid)) => state.forget(uid),
                    Some(ObjectChange::Listed) => {
                        listed = true;
                        for (webhook, keep) in std::mem::take(&mut early) {
                            state.keep(webhook, keep);
                        }
                    }
                    // The log says so, and it is asked again.
                    Some(ObjectChange::Refused) => {}
                    // A watch has ended: whoever runs this room is to know.
                    None => break,
                },
                order = self.orders.recv() => match order {
                    None => break,
                    // How many there are is known once all are listed.
                    Some(Order::StoreDeadLetter(webhook, keep)) if !listed => early.push((webhook, keep)),
                    Some(Order::StoreDeadLetter(webhook, keep)) => state.keep(webhook, keep),
                    Some(Order::Answer(answer)) => state.answer(*answer),
                },
                Some(done) = state.calls.join_next() => match done {
                    Ok(done) => state.done(done),
                    Err(error) => warn!(error = %ErrorChain(&error), "a call about a WebhookDelivery broke off"),
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
                "calls about WebhookDelivery objects did not end in time; they are made again by the next leader"
            );
        }
    }
}

/// The answer to a request that nothing was sent for.
#[must_use]
pub fn unsent(object: DeliveryRef, subject: Subject, reason: &'static str, message: String, at: Timestamp) -> Answer {
    Answer { object, subject, delivered: false, reason, message, attempts: 0, status_code: None, error: None, at }
}

/// Names an object that cannot be read in the log.
fn unreadable(invalid: &InvalidObject) {
    let (namespace, name) = (invalid.metadata.namespace.as_deref(), invalid.metadata.name.as_deref());
    warn!(kind = "WebhookDelivery", namespace, name, error = invalid.error, "skipping a malformed object");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::apiserver;

    #[tokio::test]
    async fn the_room_ends_when_a_watch_breaks_off() {
        let client = apiserver(|_| panic!("as this test wants"));
        let (_orders, orders) = mpsc::unbounded_channel();
        let (back, _from) = mpsc::unbounded_channel();
        let (notices, _incoming) = mpsc::channel(1);
        let deliveries = Deliveries { client, orders, back, notices, claim: Claim::unbounded(), cluster_home: None };
        timeout(Duration::from_secs(20), deliveries.run(Vec::new())).await.unwrap();
    }
}
