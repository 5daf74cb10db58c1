//! The path from an observation to the message of an attempt, without I/O.

use http::HeaderMap;
use jiff::Timestamp;
use serde_json::json;

use super::body;
use llmtune_api::webhook_delivery::WebhookKind;
use llmtune_core::{
    attempt::{Attempt, AttemptResult, Outcome},
    engine::{Due, Engine},
    event::{
        body::MAX_BYTES,
        format::{Derived, Format},
        object::{Uid, WatchId},
        observation::{Observation, WatchEvent},
    },
    subscription::{WebhookRef, index::Scope},
};
use llmtune_webhooks::{
    delivery::{message::message, sign::Keys},
    subscription::resolve::Plan,
};

/// Each format, with its number of headers other than content headers.
const FORMATS: [(Format, usize); 4] = [
    (Format::LlmTune, 8),
    (Format::Derived(Derived::StandardWebhooks), 8),
    (Format::Derived(Derived::CloudEventsStructured), 8),
    (Format::Derived(Derived::CloudEventsBinary), 16),
];
/// The maximum size that the attributes of a `CloudEvent` add to a body.
const ATTRIBUTES: usize = 2048;

/// An engine with one watch and one Webhook, which gets all events of the namespace `ns`.
pub(super) struct Operator(pub(super) Engine);

impl Operator {
    /// Creates an engine that has seen an empty list.
    pub(super) fn new() -> Self {
        let mut engine = Engine::new(Some("cluster".into()), 1, 2);
        engine.add_watch(WatchId(0), "source", "watch", false);
        let mut operator = Self(engine);
        operator.subscribe();
        operator.observe(WatchEvent::ListBegun);
        operator.observe(WatchEvent::ListEnded(1));
        let _ = operator.0.flush(&[], usize::MAX);
        operator.0.flush_committed();
        operator
    }

    pub(super) fn subscribe(&mut self) {
        let filter = "data.metrics.loss > 0.5 || object.metadata.labels.team == event || true";
        let spec = json!({"url": "https://ci.example.com", "events": ["*"], "filter": filter});
        let plan = Plan::read(&serde_json::from_value(spec).unwrap(), "ns", false);
        let (kind, uid) = (WebhookKind::Webhook, Uid::from_u128(50));
        let webhook = WebhookRef { kind, uid, home: "ns".into(), name: "ci".into() };
        let (scope, filter) = (Scope::Namespace("ns".into()), plan.filter.as_ref().unwrap().as_ref());
        self.0.subscribe(plan.subscription(&webhook, &scope, 1, filter, false));
    }

    pub(super) fn observe(&mut self, change: WatchEvent) {
        self.0.observe(Observation { watch: WatchId(0), change }, now());
    }

    /// Makes the attempts that are due and calls `look` for each. Every second attempt fails. Returns the number of
    /// attempts.
    pub(super) fn attempt_all(&mut self, look: impl Fn(&Attempt)) -> usize {
        let mut count = 0;
        while let Some(due) = self.0.due(now()) {
            let Due::Attempt(attempt) = due else { continue };
            look(&attempt);
            let failed = AttemptResult::Failed { retry_after: None };
            let result = if count % 2 == 0 { AttemptResult::Acknowledged } else { failed };
            let (webhook, delivery, generation) = (attempt.webhook, attempt.delivery, attempt.generation);
            self.0.record_outcome(Outcome { webhook, delivery, generation, result, exchange: None }, now(), 0.5);
            count += 1;
        }
        count
    }
}

/// Asserts that an attempt's message meets its contract in every format: all headers are there, and the body is bounded
/// and unchanged by JavaScript.
pub(super) fn assert_well_formed(attempt: &Attempt) {
    let keys = Keys::new(b"key".to_vec().into(), None);
    for (format, headers) in FORMATS {
        let signed = Some((&keys, keys.first()));
        let message = message(attempt, format, &HeaderMap::new(), signed, now()).unwrap();
        assert!(message.headers.len() >= headers, "one is missing: {:?}", message.headers);
        let most = if format == Format::LlmTune { MAX_BYTES } else { MAX_BYTES + ATTRIBUTES };
        assert!(message.body.len() <= most, "{} bytes", message.body.len());
        body::is_fixed(str::from_utf8(&message.body).unwrap());
    }
}

/// The time of all operations.
pub(super) fn now() -> Timestamp {
    Timestamp::from_second(1_763_000_000).unwrap()
}
