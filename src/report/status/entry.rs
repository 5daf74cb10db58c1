//! The status of one Webhook, and the Events that come with its changes.

use std::time::Instant;

use jiff::Timestamp;
use tracing::{info, warn};

use super::gone_generation;
use crate::{
    report::{
        events::Notice,
        references,
        status_writer::{StatusEntry, StatusTarget},
        write_rate_limiter::{Changed, Limits, WriteState},
    },
    subscription::{
        tls::BUNDLE_INVALID,
        watch::{Readiness, SubscriptionState},
    },
};
use llmtune_api::{
    ClusterWebhook, Webhook,
    conditions::{self, whole_seconds},
    webhook::{AttemptSummary, DeliveryCounts, DeliverySummary, WebhookStatus},
    webhook_delivery::{KIND_LABEL, WEBHOOK_LABEL, WebhookKind},
};
use llmtune_core::{
    attempt::Exchange,
    engine::{RecordedOutcome, Verdict},
    event::object::Object,
    ledger::contents::Reason,
    subscription::WebhookRef,
};

/// A healthy endpoint becomes unhealthy after this many consecutive failures. An endpoint that was never healthy
/// becomes unhealthy after the first.
const UNHEALTHY_AFTER: i64 = 3;
/// The number of deliveries in `status.recent`.
const RECENT: usize = 10;

/// The status of a Webhook.
#[derive(Debug)]
pub struct WebhookStatusEntry {
    pub webhook: WebhookRef,
    target: StatusTarget,
    pub status: WebhookStatus,
    pub state: Option<SubscriptionState>,
    /// When a filter failure was last reported.
    pub filter_failure_reported: Option<Instant>,
    pub writes: WriteState,
    /// A condition changed since metrics last read them.
    pub conditions_changed: bool,
}

impl StatusEntry for WebhookStatusEntry {
    type Status = WebhookStatus;

    const LIMITS: Limits = super::LIMITS;

    fn parts(&mut self) -> (&mut WriteState, &StatusTarget, &WebhookStatus) {
        (&mut self.writes, &self.target, &self.status)
    }
}

impl WebhookStatusEntry {
    /// Creates the entry of a new Webhook from its status in the cluster.
    pub fn new(webhook: WebhookRef, found: Option<Box<WebhookStatus>>) -> Self {
        let WebhookRef { kind, uid, home, name } = &webhook;
        let target = match kind {
            WebhookKind::Webhook => StatusTarget::of::<Webhook>(*uid, Some(home), name),
            WebhookKind::ClusterWebhook => StatusTarget::of::<ClusterWebhook>(*uid, None, name),
        };
        Self {
            webhook,
            target,
            status: initial_status(found),
            state: None,
            filter_failure_reported: None,
            writes: WriteState::default(),
            conditions_changed: false,
        }
    }

    pub fn counts(&mut self) -> &mut DeliveryCounts {
        self.status.deliveries.get_or_insert_default()
    }

    /// Records the state of the subscription.
    pub fn update_state(&mut self, state: SubscriptionState, at: Timestamp) -> Vec<Notice> {
        let mut notices = Vec::new();
        let generation = state.generation;
        let new_generation = self.status.observed_generation != Some(generation);
        if new_generation {
            self.filter_failure_reported = None;
        }
        let (ready, stalled, reason, message) = match &state.readiness {
            Readiness::Live => {
                let mut message = "matching events are delivered".to_owned();
                let bundle = state.warnings.iter().find(|(reason, _)| *reason == BUNDLE_INVALID);
                if let Some((_, warning)) = bundle {
                    message = format!("{message}; {warning}");
                }
                (true, false, "Subscribed", message)
            }
            Readiness::Suspended => {
                (true, false, "Suspended", "deliveries wait until spec.suspend is false".to_owned())
            }
            Readiness::Waiting { reason, message, stalled } => (false, *stalled, *reason, message.clone()),
            Readiness::Broken { reason, message } => (false, true, *reason, message.clone()),
        };
        let changed = self.condition("Ready", ready, reason, &message, generation, at);
        if changed || new_generation {
            let notice = if ready { Notice::normal } else { Notice::warning };
            notices.push(notice(&self.webhook, reason, message.clone()));
        }
        let was_gone = gone_generation(&self.status).is_some_and(|gone| gone != generation);
        if was_gone || self.status_of("Healthy").is_none() {
            self.set_condition("Healthy", "Unknown", "NoAttempt", "no delivery has been attempted yet", generation, at);
        }
        // A new leader starts the minute of grace again. A Webhook that was stalled before stays stalled.
        let known = conditions::get(&self.status.conditions, "Stalled").filter(|known| known.status == "True");
        let stalled = stalled
            || known.is_some_and(|known| known.reason == reason && known.observed_generation == Some(generation));
        let (stalled, stalled_reason, stalled_message) = match (&state.fault, stalled, ready) {
            (Some(fault), ..) => (true, fault.reason, fault.message.as_str()),
            (None, true, _) => (true, reason, message.as_str()),
            (None, false, true) => (false, "Progressing", "the spec is valid"),
            (None, false, false) => (
                false,
                "Progressing",
                "the operator waits for objects that the spec references; see the condition Ready",
            ),
        };
        let changed = self.condition("Stalled", stalled, stalled_reason, stalled_message, generation, at);
        if let Some(fault) = state.fault.as_ref().filter(|_| changed || new_generation) {
            notices.push(Notice::warning(&self.webhook, fault.reason, fault.message.clone()));
        }
        let known = self.state.as_ref().map(|state| state.warnings.clone()).unwrap_or_default();
        for (reason, text) in state.warnings.iter().filter(|warning| !known.contains(warning)) {
            if new_generation || self.state.is_some() {
                notices.push(Notice::warning(&self.webhook, reason, text.clone()));
            }
        }
        self.status.observed_generation = Some(generation);
        self.status.endpoint = Some(state.endpoint.clone()).filter(|endpoint| !endpoint.is_empty());
        // If this release cannot compile the recorded filter, the record stays for one that can.
        if state.in_force.is_some() {
            self.status.in_force.clone_from(&state.in_force);
        }
        self.counts();
        self.state = Some(state);
        self.conditions_changed = true;
        self.writes.touch(Changed::Conditions);
        notices
    }

    /// Records the outcome of an attempt.
    pub fn record_outcome(&mut self, recorded: &RecordedOutcome, at: Timestamp) -> Vec<Notice> {
        let RecordedOutcome { event, attempt, exchange, .. } = recorded;
        let status_code = exchange.as_ref().and_then(Exchange::status_code).map(i32::from);
        self.counts().pending = recorded.pending as i64;
        if recorded.is_retry() {
            self.counts().retries += 1;
        }
        self.writes.touch(Changed::Figures);
        let mut notices = Vec::new();
        let summary = AttemptSummary {
            time: whole_seconds(at),
            event: event.event_type.name().into(),
            event_id: event.id.to_string(),
            attempt: *attempt as i32,
            status_code,
            error: recorded.error().map(str::to_owned),
        };
        let generation = self.status.observed_generation.unwrap_or_default();
        if recorded.verdict == Verdict::Delivered {
            self.counts().succeeded += 1;
            self.status.last_success = Some(summary);
            // An acknowledgment by the endpoint of an older spec does not change the state of one that is gone.
            if recorded.endpoint_gone {
                self.status.consecutive_failures = 0;
            } else {
                notices.extend(self.acknowledged(event.event_type.name(), at));
            }
        } else if exchange.is_some() {
            // An endpoint that asks for a pause works.
            self.status.consecutive_failures += i64::from(!recorded.throttled);
            self.status.last_failure = Some(summary);
        }
        let ended = match recorded.verdict {
            Verdict::Delivered => Some("Delivered"),
            Verdict::Retry(_) if recorded.throttled => None,
            Verdict::Retry(_) => {
                notices.extend(self.judge_failure(recorded, generation, at));
                None
            }
            Verdict::GivenUp(reason) => {
                self.counts().failed += 1;
                notices.extend(self.judge_failure(recorded, generation, at));
                notices.extend(self.given_up_notice(recorded, reason));
                Some("Exhausted")
            }
        };
        if let Some(result) = ended {
            let delivery = DeliverySummary {
                time: whole_seconds(at),
                event: event.event_type.name().into(),
                event_id: event.id.to_string(),
                object: self.describe(&event.object),
                result: result.into(),
                attempts: *attempt as i32,
                status_code,
            };
            self.status.recent.insert(0, delivery);
            self.status.recent.truncate(RECENT);
        }
        notices
    }

    /// Records a 2xx response to `what`, a delivery or a test. The endpoint is healthy.
    pub fn acknowledged(&mut self, what: &str, at: Timestamp) -> Option<Notice> {
        let generation = self.status.observed_generation.unwrap_or_default();
        let failing = self.status_of("Healthy") == Some("False");
        self.status.consecutive_failures = 0;
        self.writes.touch(Changed::Figures);
        self.condition("Healthy", true, "Acknowledged", "the endpoint acknowledges deliveries", generation, at);
        failing.then(|| {
            let text = format!("the endpoint acknowledges deliveries again, starting with {what}");
            Notice::normal(&self.webhook, "EndpointRecovered", text)
        })
    }

    /// Records a failure. Returns whether it makes the endpoint unhealthy.
    fn judge_failure(&mut self, recorded: &RecordedOutcome, generation: i64, at: Timestamp) -> Option<Notice> {
        let gone = recorded.endpoint_gone;
        let given_up = matches!(recorded.verdict, Verdict::GivenUp(_));
        let healthy = self.status_of("Healthy") == Some("True");
        // A full queue does not depend on the endpoint's health.
        if recorded.exchange.is_none() && !gone
            || !(gone || given_up || !healthy || self.status.consecutive_failures >= UNHEALTHY_AFTER)
        {
            return None;
        }
        let (reason, message) = if gone {
            let text = "the endpoint answered 410 Gone; correct spec.url, or delete the Webhook (until the spec changes or a test or redelivery is answered 2xx, events become WebhookDelivery objects)";
            ("EndpointGone", text.to_owned())
        } else {
            ("DeliveriesFailing", format!("attempts fail: {}", recorded.error().unwrap_or("no answer")))
        };
        let changed = self.condition("Healthy", false, reason, &message, generation, at);
        changed.then(|| Notice::warning(&self.webhook, reason, message))
    }

    /// Creates the Event of a delivery that was given up.
    fn given_up_notice(&self, recorded: &RecordedOutcome, reason: Reason) -> Vec<Notice> {
        let error = recorded.error().unwrap_or(reason.message());
        let event = &recorded.event;
        let subject = self.describe(&event.object);
        let attempts = match recorded.attempt {
            1 => "1 attempt".to_owned(),
            number => format!("{number} attempts"),
        };
        let WebhookRef { kind, home, name, .. } = &self.webhook;
        let (options, labels) = match kind {
            WebhookKind::Webhook => (String::new(), String::new()),
            WebhookKind::ClusterWebhook => (format!("-n {home} "), format!(",{KIND_LABEL}={kind}")),
        };
        let text = format!(
            "{} of {subject} was given up after {attempts}: {error}; kubectl {options}get whd -l {WEBHOOK_LABEL}={name}{labels} lists the deliveries that can be sent again",
            event.event_type
        );
        let mut notices = vec![Notice::warning(&self.webhook, "DeliveryExhausted", text)];
        // The object's Event is only for its own namespace's Webhooks: a tenant does not learn about endpoints of the
        // platform team.
        if *kind == WebhookKind::Webhook {
            let text =
                format!("{} could not be delivered to {} in {attempts}: {error}", event.event_type, self.webhook);
            notices.push(Notice::about_object(&self.webhook, &event.object, "WebhookDeliveryExhausted", text));
        }
        notices
    }

    /// Returns the object as users write it: `trainingjob/llama-sft`, or for a `ClusterWebhook`
    /// `trainingjob/research/llama-sft`.
    pub fn describe(&self, object: &Object) -> String {
        let kind = references::object(object).kind.unwrap_or_default().to_lowercase();
        match self.webhook.kind {
            WebhookKind::Webhook => format!("{kind}/{}", object.name),
            WebhookKind::ClusterWebhook => format!("{kind}/{}/{}", object.namespace, object.name),
        }
    }

    fn status_of(&self, kind: &str) -> Option<&str> {
        conditions::get(&self.status.conditions, kind).map(|condition| condition.status.as_str())
    }

    /// Sets a condition. Returns whether its status or reason changed.
    pub fn condition(
        &mut self,
        kind: &str,
        holds: bool,
        reason: &str,
        message: &str,
        generation: i64,
        at: Timestamp,
    ) -> bool {
        self.set_condition(kind, conditions::status(holds), reason, message, generation, at)
    }

    fn set_condition(
        &mut self,
        kind: &str,
        status: &str,
        reason: &str,
        message: &str,
        generation: i64,
        at: Timestamp,
    ) -> bool {
        let new = conditions::next(&self.status.conditions, kind, status, reason, message, generation, at);
        if kind == "Healthy" && self.status_of(kind).is_some_and(|before| before != status) {
            self.log_health(status, reason, message);
        }
        let changed = conditions::set(&mut self.status.conditions, new);
        // A change of the message alone waits for the next write.
        if changed {
            self.conditions_changed = true;
            self.writes.touch(Changed::Conditions);
        }
        changed
    }

    fn log_health(&self, status: &str, reason: &str, detail: &str) {
        let (namespace, webhook) = (self.webhook.namespace(), &self.webhook.name);
        if status == "False" {
            warn!(namespace, webhook, status, reason, detail, "health changed");
        } else {
            info!(namespace, webhook, status, reason, detail, "health changed");
        }
    }
}

/// Starts from the status in the cluster. The engine reports the number of pending deliveries.
fn initial_status(found: Option<Box<WebhookStatus>>) -> WebhookStatus {
    let mut status = found.map(|found| *found).unwrap_or_default();
    if let Some(counts) = &mut status.deliveries {
        counts.pending = 0;
    }
    status
}
