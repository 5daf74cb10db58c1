//! What one Webhook's status says, and what is told with it.

use std::time::Instant;

use jiff::Timestamp;
use tracing::{info, warn};

use super::gone_generation;
use crate::{
    report::{
        events::Notice,
        references,
        write_rate_limiter::{Changed, Turn},
    },
    subscription::{
        tls::BUNDLE_INVALID,
        watch::{Readiness, Standing},
    },
};
use llmtune_api::{
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

/// A healthy endpoint counts as unhealthy after this many failed attempts in a row; one that was never healthy at once.
const UNHEALTHY_AFTER: i64 = 3;
/// Deliveries that are told.
const RECENT: usize = 10;

/// A Webhook.
#[derive(Debug)]
pub struct WebhookStatusEntry {
    pub webhook: WebhookRef,
    pub status: WebhookStatus,
    pub standing: Option<Standing>,
    /// When it was last told that the filter fails.
    pub filter_failure_told: Option<Instant>,
    pub turn: Turn,
    /// Metrics have not been told of a condition.
    pub conditions_changed: bool,
}

impl WebhookStatusEntry {
    /// A Webhook that was not known, with the status that it has in the cluster.
    pub fn new(webhook: WebhookRef, found: Option<Box<WebhookStatus>>) -> Self {
        Self {
            webhook,
            status: taken_over(found),
            standing: None,
            filter_failure_told: None,
            turn: Turn::default(),
            conditions_changed: false,
        }
    }

    pub fn counts(&mut self) -> &mut DeliveryCounts {
        self.status.deliveries.get_or_insert_default()
    }

    /// Takes in how the subscription stands.
    pub fn stand(&mut self, standing: Standing, at: Timestamp) -> Vec<Notice> {
        let mut notices = Vec::new();
        let generation = standing.generation;
        let new_generation = self.status.observed_generation != Some(generation);
        if new_generation {
            self.filter_failure_told = None;
        }
        let (ready, stalled, reason, message) = match &standing.readiness {
            Readiness::Live => {
                let mut message = "matching events are delivered".to_owned();
                let bundle = standing.warnings.iter().find(|(reason, _)| *reason == BUNDLE_INVALID);
                if let Some((_, warning)) = bundle {
                    message = format!("{message}; {warning}");
                }
                (true, false, "Subscribed", message)
            }
            Readiness::Suspended => {
                (true, false, "Suspended", "deliveries are held until spec.suspend is false".to_owned())
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
        // A new leader counts the minute of what is missing anew: what had been missing for longer is stalled all along.
        let known = conditions::get(&self.status.conditions, "Stalled").filter(|known| known.status == "True");
        let stalled = stalled
            || known.is_some_and(|known| known.reason == reason && known.observed_generation == Some(generation));
        let (stalled, stalled_reason, stalled_message) = match (&standing.fault, stalled, ready) {
            (Some(fault), ..) => (true, fault.reason, fault.message.as_str()),
            (None, true, _) => (true, reason, message.as_str()),
            (None, false, true) => (false, "Progressing", "the spec can work as it stands"),
            (None, false, false) => {
                (false, "Progressing", "what the spec needs is waited for; the condition Ready says what")
            }
        };
        let changed = self.condition("Stalled", stalled, stalled_reason, stalled_message, generation, at);
        if let Some(fault) = standing.fault.as_ref().filter(|_| changed || new_generation) {
            notices.push(Notice::warning(&self.webhook, fault.reason, fault.message.clone()));
        }
        let known = self.standing.as_ref().map(|standing| standing.warnings.clone()).unwrap_or_default();
        for (reason, text) in standing.warnings.iter().filter(|warning| !known.contains(warning)) {
            if new_generation || self.standing.is_some() {
                notices.push(Notice::warning(&self.webhook, reason, text.clone()));
            }
        }
        self.status.observed_generation = Some(generation);
        self.status.endpoint = Some(standing.endpoint.clone()).filter(|endpoint| !endpoint.is_empty());
        // A record that this release cannot compile is left for one that can.
        if standing.in_force.is_some() {
            self.status.in_force.clone_from(&standing.in_force);
        }
        self.counts();
        self.standing = Some(standing);
        self.conditions_changed = true;
        self.turn.touch(Changed::Conditions);
        notices
    }

    /// Takes in a settled attempt.
    pub fn record_outcome(&mut self, settled: &RecordedOutcome, at: Timestamp) -> Vec<Notice> {
        let RecordedOutcome { event, attempt, exchange, .. } = settled;
        let status_code = exchange.as_ref().and_then(Exchange::status_code).map(i32::from);
        self.counts().pending = settled.pending as i64;
        if settled.is_retry() {
            self.counts().retries += 1;
        }
        self.turn.touch(Changed::Figures);
        let mut notices = Vec::new();
        let summary = AttemptSummary {
            time: whole_seconds(at),
            event: event.event_type.name().into(),
            event_id: event.id.to_string(),
            attempt: *attempt as i32,
            status_code,
            error: settled.error().map(str::to_owned),
        };
        let generation = self.status.observed_generation.unwrap_or_default();
        if settled.verdict == Verdict::Delivered {
            self.counts().succeeded += 1;
            self.status.last_success = Some(summary);
            // What the endpoint of an older spec acknowledges says nothing of one that is gone.
            if settled.endpoint_gone {
                self.status.consecutive_failures = 0;
            } else {
                notices.extend(self.acknowledged(event.event_type.name(), at));
            }
        } else if exchange.is_some() {
            // An endpoint that asks for a pause works.
            self.status.consecutive_failures += i64::from(!settled.throttled);
            self.status.last_failure = Some(summary);
        }
        let ended = match settled.verdict {
            Verdict::Delivered => Some("Delivered"),
            Verdict::Retry(_) if settled.throttled => None,
            Verdict::Retry(_) => {
                notices.extend(self.judge_failure(settled, generation, at));
                None
            }
            Verdict::GivenUp(reason) => {
                self.counts().failed += 1;
                notices.extend(self.judge_failure(settled, generation, at));
                notices.extend(self.tell_given_up(settled, reason));
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

    /// Takes in that the endpoint answered 2xx to `what`, a delivery or a test: it is healthy.
    pub fn acknowledged(&mut self, what: &str, at: Timestamp) -> Option<Notice> {
        let generation = self.status.observed_generation.unwrap_or_default();
        let failing = self.status_of("Healthy") == Some("False");
        self.status.consecutive_failures = 0;
        self.turn.touch(Changed::Figures);
        self.condition("Healthy", true, "Acknowledged", "the endpoint acknowledges deliveries", generation, at);
        failing.then(|| {
            let text = format!("the endpoint acknowledges deliveries again, {what} first");
            Notice::normal(&self.webhook, "EndpointRecovered", text)
        })
    }

    /// Whether a delivery that was not acknowledged makes the endpoint unhealthy.
    fn judge_failure(&mut self, settled: &RecordedOutcome, generation: i64, at: Timestamp) -> Option<Notice> {
        let gone = settled.endpoint_gone;
        let given_up = matches!(settled.verdict, Verdict::GivenUp(_));
        let healthy = self.status_of("Healthy") == Some("True");
        // What found no room says nothing of the endpoint.
        if settled.exchange.is_none() && !gone
            || !(gone || given_up || !healthy || self.status.consecutive_failures >= UNHEALTHY_AFTER)
        {
            return None;
        }
        let (reason, message) = if gone {
            let text = "the endpoint answered 410 Gone; events are kept as WebhookDelivery objects until the spec changes, or a test or a redelivery is answered 2xx: correct spec.url, or delete the Webhook";
            ("EndpointGone", text.to_owned())
        } else {
            ("DeliveriesFailing", format!("attempts fail: {}", settled.error().unwrap_or("no answer")))
        };
        let changed = self.condition("Healthy", false, reason, &message, generation, at);
        changed.then(|| Notice::warning(&self.webhook, reason, message))
    }

    /// What is to be said of a delivery that was given up.
    fn tell_given_up(&self, settled: &RecordedOutcome, reason: Reason) -> Vec<Notice> {
        let error = settled.error().unwrap_or(reason.message());
        let event = &settled.event;
        let subject = self.describe(&event.object);
        let attempts = match settled.attempt {
            1 => "1 attempt".to_owned(),
            number => format!("{number} attempts"),
        };
        let WebhookRef { kind, home, name, .. } = &self.webhook;
        let (options, labels) = match kind {
            WebhookKind::Webhook => (String::new(), String::new()),
            WebhookKind::ClusterWebhook => (format!("-n {home} "), format!(",{KIND_LABEL}={kind}")),
        };
        let text = format!(
            "{} of {subject} was given up after {attempts}: {error}; kubectl {options}get whd -l {WEBHOOK_LABEL}={name}{labels} shows what is kept to be sent again",
            event.event_type
        );
        let mut notices = vec![Notice::warning(&self.webhook, "DeliveryExhausted", text)];
        // How an endpoint of the platform team's fares is none of a tenant's business.
        if *kind == WebhookKind::Webhook {
            let text =
                format!("{} could not be delivered to {} in {attempts}: {error}", event.event_type, self.webhook);
            notices.push(Notice::about_object(&self.webhook, &event.object, "WebhookDeliveryExhausted", text));
        }
        notices
    }

    /// The object as users of the Webhook name it: `trainingjob/llama-sft`, or for a `ClusterWebhook` `trainingjob/research/llama-sft`.
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

    /// Sets a condition, and tells whether its status or reason changed.
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
        // The same state in other words waits for the next write.
        if changed {
            self.conditions_changed = true;
            self.turn.touch(Changed::Conditions);
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

/// The status found in the cluster; what is pending is told by the engine.
fn taken_over(found: Option<Box<WebhookStatus>>) -> WebhookStatus {
    let mut status = found.map(|found| *found).unwrap_or_default();
    if let Some(counts) = &mut status.deliveries {
        counts.pending = 0;
    }
    status
}
