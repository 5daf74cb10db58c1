//! Requests of users through `WebhookDelivery` objects: tests and redeliveries, and their answers.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};
use tracing::warn;

use super::{
    Known, Leader,
    attempts::{Ended, make},
};
use crate::report::{
    Note,
    deliveries::{Answer, DeliveryRef, Order, Request, Subject, unsent},
};
use llmtune_api::webhook_delivery::{WebhookKind, WebhookReference};
use llmtune_core::{
    attempt::{Attempt, AttemptResult, Exchange},
    engine::{RecordedOutcome, Verdict},
    event::{Event, EventType, id::DeliveryId, object::Uid, sample::sample},
    subscription::WebhookRef,
};

/// How long a request for an unknown Webhook waits, because both may have been applied together.
const PATIENCE: Duration = Duration::from_secs(2);
/// How old a Webhook must be before a test reports that it is not ready, because its Secret may have been applied
/// together with it.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// A finished test: the requesting object, the event, and the result.
pub type Tested = (DeliveryRef, Arc<Event>, Ended);

/// The requests without an answer.
#[derive(Default)]
pub struct Requests {
    /// Tests in flight.
    pub tests: JoinSet<Tested>,
    /// Requests for Webhooks that are unknown or not ready, and how long they wait.
    waiting: Vec<(Instant, Request)>,
    /// The requesting objects of redeliveries.
    redeliveries: HashMap<(Uid, DeliveryId), (DeliveryRef, Arc<Event>)>,
}

impl Requests {
    /// Removes and returns the redelivery requests for this Webhook.
    pub fn of_webhook(&mut self, webhook: Uid) -> Vec<(DeliveryRef, Arc<Event>)> {
        self.redeliveries.extract_if(|(of, _), _| *of == webhook).map(|(_, object)| object).collect()
    }
}

impl Leader {
    /// Returns the Webhook of this kind and name whose home contains the requesting object.
    fn named(&self, object: &DeliveryRef) -> Option<&Known> {
        let WebhookReference { kind, name } = &object.webhook;
        let is_meant = |WebhookRef { kind: of, home, name: called, .. }: &WebhookRef| {
            called == name && of == kind && *home == object.namespace
        };
        self.webhooks.values().find(|known| is_meant(&known.webhook))
    }

    /// Executes a request once its Webhook is known and ready, or after a while.
    pub(super) fn handle_request(&mut self, request: Request) {
        self.handle_until(request, Instant::now() + PATIENCE);
    }

    fn handle_until(&mut self, request: Request, until: Instant) {
        let (Request::Test { object, .. } | Request::Again { object, .. }) = &request;
        let wait = match self.named(object) {
            None => Instant::now() < until,
            Some(Known { resolved: None, since, .. }) if matches!(request, Request::Test { .. }) => {
                since.elapsed() < READY_WITHIN
            }
            Some(_) => false,
        };
        if wait {
            self.requests.waiting.push((until, request));
            return;
        }
        match request {
            Request::Test { object, event } => self.test(object, event),
            Request::Again { object, event } => self.deliver_again(object, &event),
        }
    }

    pub(super) fn retry_waiting(&mut self) {
        for (until, request) in std::mem::take(&mut self.requests.waiting) {
            self.handle_until(request, until);
        }
    }

    /// Sends a sample once. It does not queue: a test checks the endpoint.
    fn test(&mut self, object: DeliveryRef, event: EventType) {
        let now = self.clock.now();
        let cluster = self.context.args.cluster_name.as_deref();
        let event = Arc::new(sample(event, object.uid, &object.namespace, cluster, now));
        let Some(Known { webhook, resolved, .. }) = self.named(&object) else {
            return self.no_webhook(object, Subject::Test { event, owner: None });
        };
        let Some(resolved) = resolved.clone() else {
            let message = format!("{webhook} is not ready: see its conditions");
            let subject = Subject::Test { event, owner: Some(webhook.clone()) };
            let answer = unsent(object, subject, "WebhookNotReady", message, now);
            return self.order(Order::Answer(Box::new(answer)));
        };
        let attempt = Attempt {
            webhook: webhook.uid,
            delivery: DeliveryId::new(event.id, webhook.uid),
            event: Arc::clone(&event),
            number: 1,
            generation: 0,
            test: true,
        };
        let sender = Arc::clone(&self.sender);
        self.requests.tests.spawn(async move {
            let ended = make(&sender, &attempt, &resolved).await;
            (object, event, ended)
        });
    }

    pub(super) fn tested(&mut self, tested: Result<Tested, JoinError>) {
        let (object, event, (attempted, lost)) = match tested {
            Ok(tested) => tested,
            Err(error) => return warn!(%error, "a test panicked"),
        };
        let lacks = lost.as_ref().map(|(_, _, error)| error.to_string());
        self.lost(lost);
        let now = self.clock.now();
        let Some(webhook) = self.named(&object).map(|known| known.webhook.clone()) else {
            return self.no_webhook(object, Subject::Test { event, owner: None });
        };
        let Some(exchange) = attempted.outcome.exchange else {
            if attempted.outcome.result == (AttemptResult::Withheld { hold: false }) {
                // The claim has expired.
                return self
                    .requests
                    .waiting
                    .push((Instant::now() + PATIENCE, Request::Test { object, event: event.event_type }));
            }
            let lacks = lacks.unwrap_or_else(|| "the Webhook is not ready".to_owned());
            let message = format!("nothing was sent: {lacks}");
            let subject = Subject::Test { event, owner: Some(webhook) };
            let answer = unsent(object, subject, "WebhookNotReady", message, now);
            return self.order(Order::Answer(Box::new(answer)));
        };
        let delivered = attempted.outcome.result == AttemptResult::Acknowledged;
        if delivered {
            self.engine.forgive(webhook.uid);
            self.note(Note::TestAcknowledged { webhook: webhook.uid, at: now });
        }
        let error = exchange.error.clone();
        let answer = Answer {
            object,
            subject: Subject::Test { event, owner: Some(webhook) },
            delivered,
            reason: if delivered { "Acknowledged" } else { "NotAcknowledged" },
            message: error.clone().unwrap_or_else(|| "the endpoint acknowledged the test".into()),
            attempts: 1,
            status_code: exchange.status_code(),
            error,
            at: now,
        };
        self.order(Order::Answer(Box::new(answer)));
    }

    /// Sends the event of a `WebhookDelivery` again, with all retries.
    fn deliver_again(&mut self, object: DeliveryRef, event: &Arc<Event>) {
        let Some(uid) = self.named(&object).map(|known| known.webhook.uid) else {
            return self.no_webhook(object, Subject::Event(Arc::clone(event)));
        };
        self.engine.redeliver(uid, event);
        // If the delivery is pending already, its outcome is the answer.
        self.requests.redeliveries.insert((uid, DeliveryId::new(event.id, uid)), (object, Arc::clone(event)));
    }

    pub(super) fn no_webhook(&self, object: DeliveryRef, subject: Subject) {
        let WebhookReference { kind, name } = &object.webhook;
        let place = if *kind == WebhookKind::Webhook { " in this namespace" } else { "" };
        let message = format!("there is no {kind} {name}{place}: create it, then request the delivery again");
        let answer = unsent(object, subject, "WebhookNotFound", message, self.clock.now());
        self.order(Order::Answer(Box::new(answer)));
    }

    /// Answers the request for this delivery with its outcome.
    pub(super) fn answer_again(&mut self, recorded: &RecordedOutcome, now: Timestamp) {
        let (reason, message) = match recorded.verdict {
            Verdict::Retry(_) => return,
            Verdict::Delivered => ("Acknowledged", "the endpoint acknowledged the delivery"),
            Verdict::GivenUp(reason) => (reason.name(), reason.message()),
        };
        let Some((object, event)) = self.requests.redeliveries.remove(&(recorded.webhook, recorded.delivery)) else {
            return;
        };
        let error = recorded.error().map(str::to_owned);
        let answer = Answer {
            object,
            subject: Subject::Event(event),
            delivered: recorded.verdict == Verdict::Delivered,
            reason,
            message: error.clone().unwrap_or_else(|| message.to_owned()),
            attempts: recorded.attempt,
            status_code: recorded.exchange.as_ref().and_then(Exchange::status_code),
            error,
            at: now,
        };
        self.order(Order::Answer(Box::new(answer)));
    }
}
