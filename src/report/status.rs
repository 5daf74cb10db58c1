//! The status of every Webhook: what it says, and by [`super::turns`] when it is written. Pure.

mod entry;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    events::Notice,
    write_rate_limiter::{Changed, Limits, WriteRateLimiter},
};
use crate::subscription::watch::Standing;
use entry::WebhookStatusEntry;
use llmtune_api::webhook::WebhookStatus;
use llmtune_core::{
    engine::RecordedOutcome,
    event::{Event, object::Uid},
    subscription::WebhookRef,
};

/// Conditions are what users and pipelines wait for: at a start, and when a Secret that many share comes.
pub const LIMITS: Limits = Limits {
    figures_every: Duration::from_secs(5),
    conditions_every: Duration::from_secs(1),
    figures_per_second: 10,
    conditions_per_second: 50,
};
/// That the filter of one Webhook fails is told at most this often; the metric counts each time.
const FILTER_FAILURES_EVERY: Duration = Duration::from_secs(600);

/// A status to write.
#[derive(Debug)]
pub struct StatusWrite {
    pub webhook: WebhookRef,
    pub status: WebhookStatus,
}

/// The statuses.
#[derive(Debug)]
pub struct Statuses {
    entries: HashMap<Uid, WebhookStatusEntry>,
    turns: WriteRateLimiter,
}

impl Default for Statuses {
    fn default() -> Self {
        Self { entries: HashMap::new(), turns: WriteRateLimiter::new(LIMITS) }
    }
}

impl Statuses {
    /// Takes in how a subscription stands.
    pub fn standing(
        &mut self,
        webhook: WebhookRef,
        standing: Option<Standing>,
        found: Option<Box<WebhookStatus>>,
        at: Timestamp,
    ) -> Vec<Notice> {
        let entry = self.entries.entry(webhook.uid).or_insert_with(|| WebhookStatusEntry::new(webhook, found));
        match standing {
            Some(standing) if entry.standing.as_ref() != Some(&standing) => entry.stand(standing, at),
            _ => Vec::new(),
        }
    }

    /// Takes in a count of pending deliveries.
    pub fn pending(&mut self, webhook: Uid, pending: usize) {
        if let Some(entry) = self.entries.get_mut(&webhook) {
            entry.counts().pending = pending as i64;
            entry.turn.touch(Changed::Figures);
        }
    }

    /// Takes in an event that was thrown away.
    pub fn dropped(&mut self, webhook: Uid, pending: usize) -> Vec<Notice> {
        let Some(entry) = self.entries.get_mut(&webhook) else { return Vec::new() };
        entry.counts().pending = pending as i64;
        entry.counts().dropped += 1;
        entry.turn.touch(Changed::Figures);
        let text = "an event was dropped: it could neither wait nor be kept as a WebhookDelivery: see why the endpoint does not acknowledge deliveries, and whether a quota or a policy refuses WebhookDelivery objects";
        vec![Notice::warning(&entry.webhook, "DeliveriesDropped", text.into())]
    }

    /// Takes in that the filter failed on an event; told once in a while, and at once when the spec has changed.
    pub fn filter_failed(&mut self, webhook: Uid, event: &Event, error: &str, now: Instant) -> Vec<Notice> {
        let Some(entry) = self.entries.get_mut(&webhook) else { return Vec::new() };
        if entry.filter_failure_told.is_some_and(|told| now < told + FILTER_FAILURES_EVERY) {
            return Vec::new();
        }
        entry.filter_failure_told = Some(now);
        let (name, subject, id) = (event.event_type, entry.describe(&event.object), event.id);
        let text = format!("spec.filter fails on {name} of {subject} ({id}), which is delivered all the same: {error}");
        vec![Notice::warning(&entry.webhook, "FilterFailed", text)]
    }

    /// Takes in a settled attempt.
    pub fn record_outcome(&mut self, settled: &RecordedOutcome, at: Timestamp) -> Vec<Notice> {
        self.entries.get_mut(&settled.webhook).map(|entry| entry.record_outcome(settled, at)).unwrap_or_default()
    }

    /// Takes in that the endpoint acknowledged a test: like any other acknowledgment it ends the failures before it.
    pub fn test_acknowledged(&mut self, webhook: Uid, at: Timestamp) -> Vec<Notice> {
        self.entries.get_mut(&webhook).and_then(|entry| entry.acknowledged("a test", at)).into_iter().collect()
    }

    /// Forgets a deleted Webhook.
    pub fn remove(&mut self, webhook: Uid) -> Option<WebhookRef> {
        self.entries.remove(&webhook).map(|entry| entry.webhook)
    }

    /// The conditions of a Webhook, for metrics, if any has changed since they were last asked for.
    pub fn changed_conditions(&mut self, webhook: Uid) -> Option<(&WebhookRef, &[Condition])> {
        let entry = self.entries.get_mut(&webhook)?;
        std::mem::take(&mut entry.conditions_changed).then_some((&entry.webhook, &entry.status.conditions))
    }

    /// The writes to begin now; each must be answered with [`Self::written`]. With `last`, all in which anything has changed.
    pub fn due(&mut self, now: Instant, last: bool) -> Vec<StatusWrite> {
        let all = self
            .entries
            .values_mut()
            .map(|WebhookStatusEntry { turn, webhook, status, .. }| (turn, (&*webhook, &*status)));
        let due = self.turns.due(all, now, last);
        due.map(|(webhook, status)| StatusWrite { webhook: webhook.clone(), status: status.clone() }).collect()
    }

    /// A write has ended; one that failed is made again.
    pub fn written(&mut self, webhook: Uid, landed: bool) {
        if let Some(entry) = self.entries.get_mut(&webhook) {
            entry.turn.ended(landed);
        }
    }

    /// Whether anything is still to be written.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.entries.values().any(|entry| entry.turn.is_open())
    }
}

/// What is told where a deleted Webhook took its pending deliveries with it.
#[must_use]
pub fn dropped_with_webhook(webhook: &WebhookRef, dropped: usize) -> Notice {
    let deliveries = if dropped == 1 { "1 delivery was".to_owned() } else { format!("{dropped} deliveries were") };
    let text = format!(
        "{deliveries} dropped: {webhook} was deleted while they were pending, and no {} of the same name and URL took them over within a minute; the receiver has to compare what it knows with the objects",
        webhook.kind
    );
    Notice::warning(webhook, "DeliveriesDropped", text)
}

/// The generation of the spec whose endpoint has answered 410 Gone, as it was written down.
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

    fn standing(readiness: Readiness) -> Standing {
        let endpoint = "https://ci".into();
        Standing { generation: 1, endpoint, readiness, fault: None, in_force: None, warnings: Vec::new() }
    }

    fn missing(reason: &'static str, stalled: bool) -> Standing {
        standing(Readiness::Waiting { reason, message: "create it".into(), stalled })
    }

    #[test]
    fn a_condition_whose_write_failed_is_written_again_at_once_and_before_counters() {
        let mut statuses = Statuses::default();
        let begun = Instant::now();
        let after = |seconds: f64| begun + Duration::from_secs_f64(seconds);
        for number in 0..20 {
            statuses.standing(webhook(number), Some(standing(Readiness::Live)), None, at(0));
        }
        let mut writes = statuses.due(after(0.0), false);
        writes.append(&mut statuses.due(after(1.0), false));
        assert_eq!(writes.len(), 20);
        let failed = writes[0].webhook.uid;
        for write in writes {
            statuses.written(write.webhook.uid, write.webhook.uid != failed);
            statuses.pending(write.webhook.uid, 1);
        }
        let again = statuses.due(after(2.0), false);
        assert_eq!(again.len(), 1, "counters are not due yet");
        assert_eq!(again[0].webhook.uid, failed);
        statuses.written(failed, false);
        let again = statuses.due(after(7.0), false);
        assert_eq!(again.len(), LIMITS.figures_per_second);
        assert_eq!(again[0].webhook.uid, failed, "before the counters of the others");
    }

    #[test]
    fn that_a_filter_fails_is_told_once_in_ten_minutes_and_anew_of_a_new_spec() {
        let mut statuses = Statuses::default();
        let begun = Instant::now();
        let event = sample(EventType::TrainingFailed, Uid::from_u128(7), "research", None, at(0));
        statuses.standing(webhook(1), Some(standing(Readiness::Live)), None, at(0));
        let told = |statuses: &mut Statuses, second| {
            let now = begun + Duration::from_secs(second);
            statuses.filter_failed(webhook(1).uid, &event, "line 1, column 1: `<`", now).len()
        };
        assert_eq!([0, 1, 599, 600, 601].map(|second| told(&mut statuses, second)), [1, 0, 0, 1, 0]);
        let changed = Standing { generation: 2, ..standing(Readiness::Live) };
        statuses.standing(webhook(1), Some(changed), None, at(602));
        assert_eq!([602, 603].map(|second| told(&mut statuses, second)), [1, 0]);
        assert!(statuses.filter_failed(webhook(2).uid, &event, "", begun).is_empty(), "there is no such Webhook");
    }

    #[test]
    fn an_endpoint_that_is_gone_stays_so_whatever_the_one_before_the_edit_still_acknowledges() {
        let mut statuses = Statuses::default();
        statuses.standing(webhook(1), Some(standing(Readiness::Live)), None, at(0));
        let event = Arc::new(sample(EventType::TrainingFailed, Uid::from_u128(7), "research", None, at(0)));
        let mut told = |code: u16, verdict, endpoint_gone, second| {
            let error = (code != 200).then(|| format!("HTTP {code}"));
            let status = Some(http::StatusCode::from_u16(code).unwrap());
            let uid = webhook(1).uid;
            let settled = RecordedOutcome {
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
            let notices = statuses.record_outcome(&settled, at(second));
            let status = &statuses.entries[&uid].status;
            let healthy = conditions::get(&status.conditions, "Healthy").unwrap();
            (healthy.status.clone(), healthy.reason.clone(), gone_generation(status), notices.len())
        };
        let gone = told(410, Verdict::GivenUp(Reason::EndpointGone), true, 1);
        assert_eq!(gone, ("False".into(), "EndpointGone".into(), Some(1), 3));
        assert_eq!(told(200, Verdict::Delivered, true, 2), ("False".into(), "EndpointGone".into(), Some(1), 0));
        assert_eq!(told(200, Verdict::Delivered, false, 3), ("True".into(), "Acknowledged".into(), None, 1));
        for second in 4..10 {
            let paused = told(429, Verdict::Retry(at(second + 30)), false, second);
            assert_eq!(paused, ("True".into(), "Acknowledged".into(), None, 0), "a pause says nothing of health");
        }
    }

    #[test]
    fn an_acknowledged_test_ends_the_unhealthiness() {
        let mut statuses = Statuses::default();
        statuses.standing(webhook(1), Some(standing(Readiness::Live)), None, at(0));
        let uid = webhook(1).uid;
        let event = Arc::new(sample(EventType::TrainingFailed, Uid::from_u128(7), "research", None, at(0)));
        let fail = |statuses: &mut Statuses, second| {
            let settled = RecordedOutcome {
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
            statuses.record_outcome(&settled, at(second));
        };
        let healthy = |statuses: &mut Statuses| {
            let metric = statuses.changed_conditions(uid).map(|(_, conditions)| conditions.to_vec());
            let status = &statuses.entries[&uid].status;
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
        // A healthy endpoint is unhealthy after three failures in a row, which a test interrupts.
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
    fn a_first_test_that_is_acknowledged_makes_healthy() {
        let mut statuses = Statuses::default();
        statuses.standing(webhook(1), Some(standing(Readiness::Live)), None, at(0));
        assert_eq!(statuses.test_acknowledged(webhook(1).uid, at(1)).len(), 0, "it has not recovered from anything");
        let status = &statuses.entries[&webhook(1).uid].status;
        assert_eq!(conditions::get(&status.conditions, "Healthy").unwrap().status, "True");
        assert!(statuses.test_acknowledged(webhook(2).uid, at(1)).is_empty(), "there is no such Webhook");
    }

    #[test]
    fn a_webhook_that_had_long_lacked_its_secret_stays_stalled_under_a_new_leader() {
        let stalled = |statuses: &mut Statuses, standing: Standing, second: i64| {
            statuses.standing(webhook(1), Some(standing), None, at(second));
            let status = &statuses.entries[&Uid::from_u128(1)].status;
            let condition = conditions::get(&status.conditions, "Stalled").unwrap();
            (condition.status.clone(), condition.reason.clone(), condition.last_transition_time.0)
        };
        let mut before = Statuses::default();
        let first = stalled(&mut before, missing("SecretNotFound", false), 0);
        assert_eq!(first, ("False".into(), "Progressing".into(), at(0)));
        let long = stalled(&mut before, missing("SecretNotFound", true), 60);
        assert_eq!(long, ("True".into(), "SecretNotFound".into(), at(60)));
        let found = before.entries[&Uid::from_u128(1)].status.clone();

        let mut after = Statuses::default();
        after.standing(webhook(1), None, Some(Box::new(found.clone())), at(3600));
        assert_eq!(stalled(&mut after, missing("SecretNotFound", false), 3600), long);
        assert_eq!(stalled(&mut after, missing("SecretNotFound", true), 3660), long);
        let healed = stalled(&mut after, standing(Readiness::Live), 3700);
        assert_eq!(healed, ("False".into(), "Progressing".into(), at(3700)));
        assert_eq!(stalled(&mut after, missing("SecretNotFound", false), 3800), healed, "a minute anew");

        let mut other = Statuses::default();
        other.standing(webhook(1), None, Some(Box::new(found)), at(3600));
        let reason = stalled(&mut other, missing("SecretKeyNotFound", false), 3600);
        assert_eq!(reason.0, "False", "something else is missing since just now");
    }

    #[test]
    fn invalid_edit_is_stalled_while_ready_stays_true_and_is_told_once() {
        let mut statuses = Statuses::default();
        let valid = |generation| Standing {
            generation,
            in_force: Some(FilterInForce { generation, filter: Some("event == 'a'".into()) }),
            ..standing(Readiness::Live)
        };
        statuses.standing(webhook(1), Some(valid(1)), None, at(0));
        let fault = Fault { reason: "InvalidFilter", message: "the filter of generation 1 stays in force".into() };
        let broken = Standing { generation: 2, fault: Some(fault), ..valid(1) };
        let notices = statuses.standing(webhook(1), Some(broken.clone()), None, at(5));
        assert_eq!(notices.len(), 2, "that it is subscribed, and the fault");
        let status = statuses.entries[&Uid::from_u128(1)].status.clone();
        let state = |status: &WebhookStatus, kind: &str| {
            let condition = conditions::get(&status.conditions, kind).unwrap();
            (condition.status.clone(), condition.reason.clone(), condition.observed_generation)
        };
        assert_eq!(state(&status, "Ready"), ("True".into(), "Subscribed".into(), Some(2)));
        assert_eq!(state(&status, "Stalled"), ("True".into(), "InvalidFilter".into(), Some(2)));
        assert_eq!(status.observed_generation, Some(2));
        assert_eq!(status.in_force.as_ref().map(|in_force| in_force.generation), Some(1));
        let other_words = Standing { endpoint: "https://other".into(), ..broken };
        assert!(statuses.standing(webhook(1), Some(other_words), None, at(6)).is_empty());

        let mut next = Statuses::default();
        next.standing(webhook(1), Some(valid(3)), Some(Box::new(status)), at(9));
        let status = &next.entries[&Uid::from_u128(1)].status;
        assert_eq!(state(status, "Stalled"), ("False".into(), "Progressing".into(), Some(3)));
        assert_eq!(status.in_force.as_ref().map(|in_force| in_force.generation), Some(3));
    }
}
