//! The status of every Webhook. [`super::write_rate_limiter`] decides when it is written. Pure.

mod entry;

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    events::Notice,
    status_writer::StatusTable,
    write_rate_limiter::{Changed, Limits},
};
use crate::subscription::watch::SubscriptionState;
pub use entry::WebhookStatusEntry;
use llmtune_api::webhook::WebhookStatus;
use llmtune_core::{
    engine::RecordedOutcome,
    event::{Event, object::Uid},
    subscription::WebhookRef,
};

/// Users and pipelines wait for conditions: when the operator starts, and when a Secret that many Webhooks share is
/// created.
pub const LIMITS: Limits = Limits {
    figures_every: Duration::from_secs(5),
    conditions_every: Duration::from_secs(1),
    figures_per_second: 10,
    conditions_per_second: 50,
};
/// How often a filter failure of one Webhook is reported. The metric counts every failure.
const FILTER_FAILURES_EVERY: Duration = Duration::from_secs(600);

/// The statuses.
#[derive(Debug, Default)]
pub struct Statuses {
    table: StatusTable<WebhookStatusEntry>,
}

impl Statuses {
    /// Records the state of a subscription.
    pub fn update_state(
        &mut self,
        webhook: WebhookRef,
        state: Option<SubscriptionState>,
        found: Option<Box<WebhookStatus>>,
        at: Timestamp,
    ) -> Vec<Notice> {
        let entry = self.table.entries.entry(webhook.uid).or_insert_with(|| WebhookStatusEntry::new(webhook, found));
        match state {
            Some(state) if entry.state.as_ref() != Some(&state) => entry.update_state(state, at),
            _ => Vec::new(),
        }
    }

    /// Records the number of pending deliveries.
    pub fn pending(&mut self, webhook: Uid, pending: usize) {
        if let Some(entry) = self.table.entries.get_mut(&webhook) {
            entry.counts().pending = pending as i64;
            entry.writes.touch(Changed::Figures);
        }
    }

    /// Records a dropped event.
    pub fn dropped(&mut self, webhook: Uid, pending: usize) -> Vec<Notice> {
        let Some(entry) = self.table.entries.get_mut(&webhook) else { return Vec::new() };
        entry.counts().pending = pending as i64;
        entry.counts().dropped += 1;
        entry.writes.touch(Changed::Figures);
        let text = "an event was dropped: the queue is full, and no WebhookDelivery could be created; check why the endpoint fails, and whether a quota or a policy rejects WebhookDelivery objects";
        vec![Notice::warning(&entry.webhook, "DeliveriesDropped", text.into())]
    }

    /// Records a filter failure. Reports it at most every [`FILTER_FAILURES_EVERY`], and again after a change of the
    /// spec.
    pub fn filter_failed(&mut self, webhook: Uid, event: &Event, error: &str, now: Instant) -> Vec<Notice> {
        let Some(entry) = self.table.entries.get_mut(&webhook) else { return Vec::new() };
        if entry.filter_failure_reported.is_some_and(|told| now < told + FILTER_FAILURES_EVERY) {
            return Vec::new();
        }
        entry.filter_failure_reported = Some(now);
        let (name, subject, id) = (event.event_type, entry.describe(&event.object), event.id);
        let text =
            format!("spec.filter failed on {name} of {subject} ({id}), and the event is delivered anyway: {error}");
        vec![Notice::warning(&entry.webhook, "FilterFailed", text)]
    }

    /// Records the outcome of an attempt.
    pub fn record_outcome(&mut self, recorded: &RecordedOutcome, at: Timestamp) -> Vec<Notice> {
        self.table
            .entries
            .get_mut(&recorded.webhook)
            .map(|entry| entry.record_outcome(recorded, at))
            .unwrap_or_default()
    }

    /// Records that the endpoint acknowledged a test. Like every acknowledgment, it ends a series of failures.
    pub fn test_acknowledged(&mut self, webhook: Uid, at: Timestamp) -> Vec<Notice> {
        self.table.entries.get_mut(&webhook).and_then(|entry| entry.acknowledged("a test", at)).into_iter().collect()
    }

    /// Removes a deleted Webhook.
    pub fn remove(&mut self, webhook: Uid) -> Option<WebhookRef> {
        self.table.entries.remove(&webhook).map(|entry| entry.webhook)
    }

    /// Returns the conditions of a Webhook for metrics, if one changed since the last call.
    pub fn changed_conditions(&mut self, webhook: Uid) -> Option<(&WebhookRef, &[Condition])> {
        let entry = self.table.entries.get_mut(&webhook)?;
        std::mem::take(&mut entry.conditions_changed).then_some((&entry.webhook, &entry.status.conditions))
    }

    /// Returns the table, which decides about writes.
    pub const fn table(&mut self) -> &mut StatusTable<WebhookStatusEntry> {
        &mut self.table
    }
}

/// Creates the Event for the dropped deliveries of a deleted Webhook.
#[must_use]
pub fn dropped_with_webhook(webhook: &WebhookRef, dropped: usize) -> Notice {
    let deliveries = if dropped == 1 { "1 delivery was".to_owned() } else { format!("{dropped} deliveries were") };
    let text = format!(
        "{deliveries} dropped: {webhook} was deleted while they were pending, and no {} with the same name and URL was created within a minute; compare the receiver's state with the objects",
        webhook.kind
    );
    Notice::warning(webhook, "DeliveriesDropped", text)
}

/// Returns the generation of the spec whose endpoint answered 410 Gone, as recorded in the status.
#[must_use]
pub fn gone_generation(status: &WebhookStatus) -> Option<i64> {
    let gone = status.conditions.iter().find(|condition| condition.reason == "EndpointGone")?;
    gone.observed_generation
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::subscription::watch::{Fault, Readiness};
    use llmtune_api::{conditions, webhook::FilterInForce, webhook_delivery::WebhookKind};
    use llmtune_core::{
        attempt::{Class, Exchange},
        engine::Verdict,
        event::{EventType, id::DeliveryId, sample::sample},
        ledger::contents::Reason,
    };

    fn webhook(number: u128) -> WebhookRef {
        let (kind, uid) = (WebhookKind::Webhook, Uid::from_u128(number));
        WebhookRef { kind, uid, home: "research".into(), name: format!("ci-{number}") }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn state(readiness: Readiness) -> SubscriptionState {
        let endpoint = "https://ci".into();
        SubscriptionState { generation: 1, endpoint, readiness, fault: None, in_force: None, warnings: Vec::new() }
    }

    fn missing(reason: &'static str, stalled: bool) -> SubscriptionState {
        state(Readiness::Waiting { reason, message: "create it".into(), stalled })
    }

    #[test]
    fn failed_condition_writes_are_repeated_before_counters() {
        let mut statuses = Statuses::default();
        let begun = Instant::now();
        let after = |seconds: f64| begun + Duration::from_secs_f64(seconds);
        for number in 0..20 {
            statuses.update_state(webhook(number), Some(state(Readiness::Live)), None, at(0));
        }
        let mut writes = statuses.table.due(after(0.0), false);
        writes.append(&mut statuses.table.due(after(1.0), false));
        assert_eq!(writes.len(), 20);
        let failed = writes[0].0.uid;
        for (target, _) in writes {
            statuses.table.written(target.uid, target.uid != failed);
            statuses.pending(target.uid, 1);
        }
        let again = statuses.table.due(after(2.0), false);
        assert_eq!(again.len(), 1, "counters are not due yet");
        assert_eq!(again[0].0.uid, failed);
        statuses.table.written(failed, false);
        let again = statuses.table.due(after(7.0), false);
        assert_eq!(again.len(), LIMITS.figures_per_second);
        assert_eq!(again[0].0.uid, failed, "before the counters of the others");
    }

    #[test]
    fn filter_failures_are_reported_every_ten_minutes_and_after_edits() {
        let mut statuses = Statuses::default();
        let begun = Instant::now();
        let event = sample(EventType::TrainingFailed, Uid::from_u128(7), "research", None, at(0));
        statuses.update_state(webhook(1), Some(state(Readiness::Live)), None, at(0));
        let told = |statuses: &mut Statuses, second| {
            let now = begun + Duration::from_secs(second);
            statuses.filter_failed(webhook(1).uid, &event, "line 1, column 1: `<`", now).len()
        };
        assert_eq!([0, 1, 599, 600, 601].map(|second| told(&mut statuses, second)), [1, 0, 0, 1, 0]);
        let changed = SubscriptionState { generation: 2, ..state(Readiness::Live) };
        statuses.update_state(webhook(1), Some(changed), None, at(602));
        assert_eq!([602, 603].map(|second| told(&mut statuses, second)), [1, 0]);
        assert!(statuses.filter_failed(webhook(2).uid, &event, "", begun).is_empty(), "there is no such Webhook");
    }

    #[test]
    fn late_acknowledgment_of_the_old_endpoint_keeps_gone() {
        let mut statuses = Statuses::default();
        statuses.update_state(webhook(1), Some(state(Readiness::Live)), None, at(0));
        let event = Arc::new(sample(EventType::TrainingFailed, Uid::from_u128(7), "research", None, at(0)));
        let mut told = |code: u16, verdict, endpoint_gone, second| {
            let error = (code != 200).then(|| format!("HTTP {code}"));
            let status = Some(http::StatusCode::from_u16(code).unwrap());
            let uid = webhook(1).uid;
            let recorded = RecordedOutcome {
                webhook: uid,
                delivery: DeliveryId::new(event.id, uid),
                event: Arc::clone(&event),
                attempt: 1,
                exchange: Some(Exchange { class: Class::Success, status, error, duration: Duration::ZERO }),
                verdict,
                endpoint_gone,
                again: false,
                throttled: code == 429,
                dropped: false,
                pending: 0,
            };
            let notices = statuses.record_outcome(&recorded, at(second));
            let status = &statuses.table.entries[&uid].status;
            let healthy = conditions::get(&status.conditions, "Healthy").unwrap();
            (healthy.status.clone(), healthy.reason.clone(), gone_generation(status), notices.len())
        };
        let gone = told(410, Verdict::GivenUp(Reason::EndpointGone), true, 1);
        assert_eq!(gone, ("False".into(), "EndpointGone".into(), Some(1), 3));
        assert_eq!(told(200, Verdict::Delivered, true, 2), ("False".into(), "EndpointGone".into(), Some(1), 0));
        assert_eq!(told(200, Verdict::Delivered, false, 3), ("True".into(), "Acknowledged".into(), None, 1));
        for second in 4..10 {
            let paused = told(429, Verdict::Retry(at(second + 30)), false, second);
            assert_eq!(paused, ("True".into(), "Acknowledged".into(), None, 0), "a pause does not change health");
        }
    }

    #[test]
    fn acknowledged_test_makes_endpoint_healthy() {
        let mut statuses = Statuses::default();
        statuses.update_state(webhook(1), Some(state(Readiness::Live)), None, at(0));
        let uid = webhook(1).uid;
        let event = Arc::new(sample(EventType::TrainingFailed, Uid::from_u128(7), "research", None, at(0)));
        let fail = |statuses: &mut Statuses, second| {
            let recorded = RecordedOutcome {
                webhook: uid,
                delivery: DeliveryId::new(event.id, uid),
                event: Arc::clone(&event),
                attempt: 1,
                exchange: Some(Exchange {
                    class: Class::Success,
                    status: None,
                    error: Some("connect timeout".into()),
                    duration: Duration::ZERO,
                }),
                verdict: Verdict::Retry(at(second + 1)),
                endpoint_gone: false,
                again: false,
                throttled: false,
                dropped: false,
                pending: 1,
            };
            statuses.record_outcome(&recorded, at(second));
        };
        let healthy = |statuses: &mut Statuses| {
            let metric = statuses.changed_conditions(uid).map(|(_, conditions)| conditions.to_vec());
            let status = &statuses.table.entries[&uid].status;
            let told = |conditions: &[Condition]| conditions::get(conditions, "Healthy").unwrap().status.clone();
            (told(&status.conditions), metric.map(|conditions| told(&conditions)), status.consecutive_failures)
        };
        let is =
            |status: &str, metric: Option<&str>, failures| (status.to_owned(), metric.map(str::to_owned), failures);
        statuses.changed_conditions(uid);
        fail(&mut statuses, 1);
        assert_eq!(healthy(&mut statuses), is("False", Some("False"), 1));
        assert_eq!(statuses.test_acknowledged(uid, at(2)).len(), 1, "EndpointRecovered");
        assert_eq!(healthy(&mut statuses), is("True", Some("True"), 0));
        assert_eq!(statuses.test_acknowledged(uid, at(3)).len(), 0, "it was healthy");
        // A healthy endpoint becomes unhealthy after three consecutive failures. A test interrupts the series.
        for second in [4, 5] {
            fail(&mut statuses, second);
        }
        assert!(statuses.test_acknowledged(uid, at(6)).is_empty());
        for second in [7, 8] {
            fail(&mut statuses, second);
        }
        assert_eq!(healthy(&mut statuses), is("True", None, 2));
    }

    #[test]
    fn first_acknowledged_test_makes_endpoint_healthy() {
        let mut statuses = Statuses::default();
        statuses.update_state(webhook(1), Some(state(Readiness::Live)), None, at(0));
        assert_eq!(statuses.test_acknowledged(webhook(1).uid, at(1)).len(), 0, "it has not recovered from anything");
        let status = &statuses.table.entries[&webhook(1).uid].status;
        assert_eq!(conditions::get(&status.conditions, "Healthy").unwrap().status, "True");
        assert!(statuses.test_acknowledged(webhook(2).uid, at(1)).is_empty(), "there is no such Webhook");
    }

    #[test]
    fn webhook_without_secret_stays_stalled_under_a_new_leader() {
        let stalled = |statuses: &mut Statuses, state: SubscriptionState, second: i64| {
            statuses.update_state(webhook(1), Some(state), None, at(second));
            let status = &statuses.table.entries[&Uid::from_u128(1)].status;
            let condition = conditions::get(&status.conditions, "Stalled").unwrap();
            (condition.status.clone(), condition.reason.clone(), condition.last_transition_time.0)
        };
        let mut before = Statuses::default();
        let first = stalled(&mut before, missing("SecretNotFound", false), 0);
        assert_eq!(first, ("False".into(), "Progressing".into(), at(0)));
        let long = stalled(&mut before, missing("SecretNotFound", true), 60);
        assert_eq!(long, ("True".into(), "SecretNotFound".into(), at(60)));
        let found = before.table.entries[&Uid::from_u128(1)].status.clone();

        let mut after = Statuses::default();
        after.update_state(webhook(1), None, Some(Box::new(found.clone())), at(3600));
        assert_eq!(stalled(&mut after, missing("SecretNotFound", false), 3600), long);
        assert_eq!(stalled(&mut after, missing("SecretNotFound", true), 3660), long);
        let healed = stalled(&mut after, state(Readiness::Live), 3700);
        assert_eq!(healed, ("False".into(), "Progressing".into(), at(3700)));
        assert_eq!(stalled(&mut after, missing("SecretNotFound", false), 3800), healed, "a new minute");

        let mut other = Statuses::default();
        other.update_state(webhook(1), None, Some(Box::new(found)), at(3600));
        let reason = stalled(&mut other, missing("SecretKeyNotFound", false), 3600);
        assert_eq!(reason.0, "False", "another reference is missing");
    }

    #[test]
    fn invalid_edit_is_stalled_while_ready_and_reported_once() {
        let mut statuses = Statuses::default();
        let valid = |generation| SubscriptionState {
            generation,
            in_force: Some(FilterInForce { generation, filter: Some("event == 'a'".into()) }),
            ..state(Readiness::Live)
        };
        statuses.update_state(webhook(1), Some(valid(1)), None, at(0));
        let fault = Fault { reason: "InvalidFilter", message: "the filter of generation 1 stays in force".into() };
        let broken = SubscriptionState { generation: 2, fault: Some(fault), ..valid(1) };
        let notices = statuses.update_state(webhook(1), Some(broken.clone()), None, at(5));
        assert_eq!(notices.len(), 2, "that it is subscribed, and the fault");
        let status = statuses.table.entries[&Uid::from_u128(1)].status.clone();
        let state = |status: &WebhookStatus, kind: &str| {
            let condition = conditions::get(&status.conditions, kind).unwrap();
            (condition.status.clone(), condition.reason.clone(), condition.observed_generation)
        };
        assert_eq!(state(&status, "Ready"), ("True".into(), "Subscribed".into(), Some(2)));
        assert_eq!(state(&status, "Stalled"), ("True".into(), "InvalidFilter".into(), Some(2)));
        assert_eq!(status.observed_generation, Some(2));
        assert_eq!(status.in_force.as_ref().map(|in_force| in_force.generation), Some(1));
        let other_words = SubscriptionState { endpoint: "https://other".into(), ..broken };
        assert!(statuses.update_state(webhook(1), Some(other_words), None, at(6)).is_empty());

        let mut next = Statuses::default();
        next.update_state(webhook(1), Some(valid(3)), Some(Box::new(status)), at(9));
        let status = &next.table.entries[&Uid::from_u128(1)].status;
        assert_eq!(state(status, "Stalled"), ("False".into(), "Progressing".into(), Some(3)));
        assert_eq!(status.in_force.as_ref().map(|in_force| in_force.generation), Some(3));
    }
}
