//! What users ask for through `WebhookDelivery` objects, tests and redeliveries, and what each is answered.

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
    deliveries::{Answer, Asked, DeliveryRef, Order, Subject, unsent},
};
use llmtune_api::webhook_delivery::{WebhookKind, WebhookReference};
use llmtune_core::{
    attempt::{Attempt, AttemptResult, Exchange},
    engine::{RecordedOutcome, Verdict},
    event::{Event, EventType, id::DeliveryId, object::Uid, sample::sample},
    subscription::WebhookRef,
};

/// What is asked of a Webhook that is not known waits this long: they may have been applied together.
const PATIENCE: Duration = Duration::from_secs(2);
/// A Webhook may be this old before a test says that it is not ready: its Secret may have been applied together with it.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// A test that was made: who asked, what was sent, what became of it.
pub type Tested = (DeliveryRef, Arc<Event>, Ended);

/// What was asked for and is not answered.
#[derive(Default)]
pub struct Requests {
    /// Tests under way.
    pub tests: JoinSet<Tested>,
    /// What was asked of Webhooks that are not known or not ready, and until when those are waited for.
    waiting: Vec<(Instant, Asked)>,
    /// Who asked for a delivery again.
    redeliveries: HashMap<(Uid, DeliveryId), (DeliveryRef, Arc<Event>)>,
}

impl Requests {
    /// Takes out whoever asked this Webhook for a delivery again.
    pub fn of_webhook(&mut self, webhook: Uid) -> Vec<(DeliveryRef, Arc<Event>)> {
        self.redeliveries.extract_if(|(of, _), _| *of == webhook).map(|(_, asked)| asked).collect()
    }
}

impl Leader {
    /// The Webhook of this kind and name whose home the object that asks is in.
    fn named(&self, object: &DeliveryRef) -> Option<&Known> {
        let WebhookReference { kind, name } = &object.webhook;
        let is_meant = |WebhookRef { kind: of, home, name: called, .. }: &WebhookRef| {
            called == name && of == kind && *home == object.namespace
        };
        self.webhooks.values().find(|known| is_meant(&known.webhook))
    }

    /// Does what users ask for, once its Webhook is known and ready, or after a while as it then is.
    pub(super) fn asked(&mut self, asked: Asked) {
        self.asked_until(asked, Instant::now() + PATIENCE);
    }

    fn asked_until(&mut self, asked: Asked, until: Instant) {
        let (Asked::Test { object, .. } | Asked::Again { object, .. }) = &asked;
        let wait = match self.named(object) {
            None => Instant::now() < until,
            Some(Known { resolved: None, since, .. }) if matches!(asked, Asked::Test { .. }) => {
                since.elapsed() < READY_WITHIN
            }
            Some(_) => false,
        };
        if wait {
            self.requests.waiting.push((until, asked));
            return;
        }
        match asked {
            Asked::Test { object, event } => self.test(object, event),
            Asked::Again { object, event } => self.deliver_again(object, &event),
        }
    }

    pub(super) fn retry_waiting(&mut self) {
        for (until, asked) in std::mem::take(&mut self.requests.waiting) {
            self.asked_until(asked, until);
        }
    }

    /// Sends a sample once, past what waits: a test tells of the endpoint, not of the queue.
    fn test(&mut self, object: DeliveryRef, event: EventType) {
        let now = self.clock.now();
        let cluster = self.context.args.cluster_name.as_deref();
        let event = Arc::new(sample(event, object.uid, &object.namespace, cluster, now));
        let Some(Known { webhook, resolved, .. }) = self.named(&object) else {
            return self.no_webhook(object, Subject::Test { event, owner: None });
        };
        let Some(resolved) = resolved.clone() else {
            let message = format!("{webhook} is not ready: its conditions say what it lacks");
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
            Err(error) => return warn!(%error, "a test broke off"),
        };
        let lacks = lost.as_ref().map(|(_, _, error)| error.to_string());
        self.lost(lost);
        let now = self.clock.now();
        let Some(webhook) = self.named(&object).map(|known| known.webhook.clone()) else {
            return self.no_webhook(object, Subject::Test { event, owner: None });
        };
        let Some(exchange) = attempted.outcome.exchange else {
            if attempted.outcome.result == (AttemptResult::Withheld { hold: false }) {
                // The claim had lapsed.
                return self
                    .requests
                    .waiting
                    .push((Instant::now() + PATIENCE, Asked::Test { object, event: event.event_type }));
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

    /// Sends a kept event again, with retries anew.
    fn deliver_again(&mut self, object: DeliveryRef, event: &Arc<Event>) {
        let Some(uid) = self.named(&object).map(|known| known.webhook.uid) else {
            return self.no_webhook(object, Subject::Event(Arc::clone(event)));
        };
        self.engine.redeliver(uid, event);
        // Where it is pending already, that delivery's end is the answer.
        self.requests.redeliveries.insert((uid, DeliveryId::new(event.id, uid)), (object, Arc::clone(event)));
    }

    pub(super) fn no_webhook(&self, object: DeliveryRef, subject: Subject) {
        let WebhookReference { kind, name } = &object.webhook;
        let place = if *kind == WebhookKind::Webhook { " in this namespace" } else { "" };
        let message = format!("there is no {kind} {name}{place}: create it, then ask again");
        let answer = unsent(object, subject, "WebhookNotFound", message, self.clock.now());
        self.order(Order::Answer(Box::new(answer)));
    }

    /// Tells whoever asked for this delivery again how it ended.
    pub(super) fn answer_again(&mut self, settled: &RecordedOutcome, now: Timestamp) {
        let (reason, message) = match settled.verdict {
            Verdict::Retry(_) => return,
            Verdict::Delivered => ("Acknowledged", "the endpoint acknowledged the delivery"),
            Verdict::GivenUp(reason) => (reason.name(), reason.message()),
        };
        let Some((object, event)) = self.requests.redeliveries.remove(&(settled.webhook, settled.delivery)) else {
            return;
        };
        let error = settled.error().map(str::to_owned);
        let answer = Answer {
            object,
            subject: Subject::Event(event),
            delivered: settled.verdict == Verdict::Delivered,
            reason,
            message: error.clone().unwrap_or_else(|| message.to_owned()),
            attempts: settled.attempt,
            status_code: settled.exchange.as_ref().and_then(Exchange::status_code),
            error,
            at: now,
        };
        self.order(Order::Answer(Box::new(answer)));
    }
}
