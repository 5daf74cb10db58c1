//! The status of every Webhook, and when it is due to be written. Pure.
//!
//! 1. A change of a condition is written at once, at most once a second a Webhook.
//! 2. Counters are written at once after quiet, then at most every [`COUNTERS_EVERY`] a Webhook.
//! 3. Counters are not written while [`WRITES_PER_SECOND`] writes have begun within a second, conditions not while
//!    [`CONDITION_WRITES_PER_SECOND`] have; conditions go first.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tracing::{info, warn};

use super::{
    conditions::{self, whole_seconds},
    deliveries::{KIND_LABEL, WEBHOOK_LABEL},
    events::Notice,
    references,
};
use crate::{
    api::{
        webhook::{AttemptSummary, DeliveryCounts, DeliverySummary, WebhookStatus},
        webhook_delivery::WebhookKind,
    },
    delivery::attempt::Exchange,
    engine::{Settled, Verdict},
    event::{
        Event,
        object::{Object, Uid},
    },
    ledger::contents::Reason,
    subscription::{
        resolve::WebhookRef,
        watch::{Readiness, Standing},
    },
};

/// Counters of one Webhook are written at most this often.
pub const COUNTERS_EVERY: Duration = Duration::from_secs(5);
/// Conditions of one Webhook are written at most this often.
const CONDITIONS_EVERY: Duration = Duration::from_secs(1);
/// Writes in all, as far as counters add to them.
pub const WRITES_PER_SECOND: usize = 10;
/// Writes in all. Conditions are what users and pipelines wait for: at a start, and when a Secret that many share comes.
pub const CONDITION_WRITES_PER_SECOND: usize = 50;
/// A healthy endpoint counts as unhealthy after this many failed attempts in a row; one that was never healthy at once.
const UNHEALTHY_AFTER: i64 = 3;
const RECENT: usize = 10;
/// That the filter of one Webhook fails is told at most this often; the metric counts each time.
const FILTER_FAILURES_EVERY: Duration = Duration::from_secs(600);

/// A status to write.
#[derive(Debug)]
pub struct StatusWrite {
    pub webhook: WebhookRef,
    pub status: WebhookStatus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Dirty {
    No,
    Counters,
    Conditions,
}

#[derive(Debug)]
struct Entry {
    webhook: WebhookRef,
    status: WebhookStatus,
    standing: Option<Standing>,
    gone_generation: Option<i64>,
    /// When it was last told that the filter fails.
    filter_failure_told: Option<Instant>,
    dirty: Dirty,
    conditions_changed: bool,
    written: Option<Instant>,
    /// What is being written; if that fails, it is as due as it was.
    writing: Option<Dirty>,
}

/// The statuses.
#[derive(Debug, Default)]
pub struct Statuses {
    entries: HashMap<Uid, Entry>,
    recent_writes: Vec<Instant>,
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
        let entry = self.entries.entry(webhook.uid).or_insert_with(|| Entry {
            webhook,
            gone_generation: found.as_deref().and_then(gone_generation),
            status: taken_over(found),
            standing: None,
            filter_failure_told: None,
            dirty: Dirty::No,
            conditions_changed: false,
            written: None,
            writing: None,
        });
        match standing {
            Some(standing) if entry.standing.as_ref() != Some(&standing) => entry.stand(standing, at),
            _ => Vec::new(),
        }
    }

    /// Takes in a count of pending deliveries.
    pub fn pending(&mut self, webhook: Uid, pending: usize) {
        if let Some(entry) = self.entries.get_mut(&webhook) {
            entry.counts().pending = pending as i64;
            entry.touch(Dirty::Counters);
        }
    }

    /// Takes in an event that was thrown away.
    pub fn dropped(&mut self, webhook: Uid, pending: usize) -> Vec<Notice> {
        let Some(entry) = self.entries.get_mut(&webhook) else { return Vec::new() };
        entry.counts().pending = pending as i64;
        entry.counts().dropped += 1;
        entry.touch(Dirty::Counters);
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
    pub fn settled(&mut self, settled: &Settled, at: Timestamp) -> Vec<Notice> {
        self.entries.get_mut(&settled.webhook).map(|entry| entry.settle(settled, at)).unwrap_or_default()
    }

    /// Takes in that the endpoint acknowledged a test: if it was gone, it is there again.
    pub fn reached(&mut self, webhook: Uid, at: Timestamp) -> Vec<Notice> {
        let Some(entry) = self.entries.get_mut(&webhook) else { return Vec::new() };
        if entry.gone_generation.take().is_none() {
            return Vec::new();
        }
        let generation = entry.status.observed_generation.unwrap_or_default();
        entry.condition("Healthy", true, "Acknowledged", "the endpoint acknowledges deliveries", generation, at);
        let text = "the endpoint acknowledges deliveries again, a test first";
        vec![Notice::normal(&entry.webhook, "EndpointRecovered", text.into())]
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

    /// The writes to begin now; each must be answered with [`Self::written`]. With `last`, all that is dirty.
    pub fn due(&mut self, now: Instant, last: bool) -> Vec<StatusWrite> {
        self.recent_writes.retain(|at| now.duration_since(*at) < Duration::from_secs(1));
        let begun = self.recent_writes.len();
        if begun >= CONDITION_WRITES_PER_SECOND && !last {
            return Vec::new();
        }
        let mut due: Vec<&mut Entry> = self.entries.values_mut().filter(|entry| entry.is_due(now, last)).collect();
        due.sort_by_key(|entry| (std::cmp::Reverse(entry.dirty), entry.written));
        let limit = |entry: &Entry| match entry.dirty {
            _ if last => usize::MAX,
            Dirty::Conditions => CONDITION_WRITES_PER_SECOND,
            Dirty::Counters | Dirty::No => WRITES_PER_SECOND,
        };
        let due = due.into_iter().zip(begun..).take_while(|(entry, begun)| *begun < limit(entry));
        let writes = due.map(|(entry, _)| {
            entry.writing = Some(std::mem::replace(&mut entry.dirty, Dirty::No));
            entry.written = Some(now);
            StatusWrite { webhook: entry.webhook.clone(), status: entry.status.clone() }
        });
        let writes: Vec<StatusWrite> = writes.collect();
        self.recent_writes.extend(writes.iter().map(|_| now));
        writes
    }

    /// A write has ended; one that failed is made again.
    pub fn written(&mut self, webhook: Uid, landed: bool) {
        let Some(entry) = self.entries.get_mut(&webhook) else { return };
        if let Some(dirty) = entry.writing.take().filter(|_| !landed) {
            entry.dirty = entry.dirty.max(dirty);
        }
    }

    /// Whether anything is still to be written.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.entries.values().any(|entry| entry.dirty != Dirty::No || entry.writing.is_some())
    }
}

impl Entry {
    fn counts(&mut self) -> &mut DeliveryCounts {
        self.status.deliveries.get_or_insert_default()
    }

    fn touch(&mut self, dirty: Dirty) {
        self.conditions_changed |= dirty == Dirty::Conditions;
        self.dirty = self.dirty.max(dirty);
    }

    fn is_due(&self, now: Instant, last: bool) -> bool {
        let spacing = match self.dirty {
            Dirty::No => return false,
            Dirty::Counters => COUNTERS_EVERY,
            Dirty::Conditions => CONDITIONS_EVERY,
        };
        self.writing.is_none() && (last || self.written.is_none_or(|written| now >= written + spacing))
    }

    fn stand(&mut self, standing: Standing, at: Timestamp) -> Vec<Notice> {
        let mut notices = Vec::new();
        let generation = standing.generation;
        let new_generation = self.status.observed_generation != Some(generation);
        if new_generation {
            self.filter_failure_told = None;
        }
        let (ready, stalled, reason, message) = match &standing.readiness {
            Readiness::Live => (true, false, "Subscribed", "matching events are delivered".to_owned()),
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
        let was_gone = self.gone_generation.take_if(|gone| *gone != generation).is_some();
        if was_gone || self.status_of("Healthy").is_none() {
            self.set_condition("Healthy", "Unknown", "NoAttempt", "no delivery has been attempted yet", generation, at);
        }
        // A new leader counts the minute of what is missing anew: what had been missing for longer is stalled all along.
        let known = conditions::get(&self.status.conditions, "Stalled").filter(|known| known.status == "True");
        let stalled = stalled
            || known.is_some_and(|known| known.reason == reason && known.observed_generation == Some(generation));
        let (stalled_reason, stalled_message) = match (stalled, ready) {
            (true, _) => (reason, message.as_str()),
            (false, true) => ("Progressing", "the spec can work as it stands"),
            (false, false) => ("Progressing", "what the spec needs is waited for; the condition Ready says what"),
        };
        self.condition("Stalled", stalled, stalled_reason, stalled_message, generation, at);
        let known = self.standing.as_ref().map(|standing| standing.warnings.clone()).unwrap_or_default();
        for (reason, text) in standing.warnings.iter().filter(|warning| !known.contains(warning)) {
            if new_generation || self.standing.is_some() {
                notices.push(Notice::warning(&self.webhook, reason, text.clone()));
            }
        }
        self.status.observed_generation = Some(generation);
        self.status.endpoint = Some(standing.endpoint.clone()).filter(|endpoint| !endpoint.is_empty());
        self.counts();
        self.standing = Some(standing);
        self.touch(Dirty::Conditions);
        notices
    }

    fn settle(&mut self, settled: &Settled, at: Timestamp) -> Vec<Notice> {
        let Settled { event, attempt, exchange, .. } = settled;
        let status_code = exchange.as_ref().and_then(Exchange::status_code).map(i32::from);
        self.counts().pending = settled.pending as i64;
        if exchange.is_some() && *attempt > 1 {
            self.counts().retries += 1;
        }
        self.touch(Dirty::Counters);
        let mut notices = Vec::new();
        let summary = AttemptSummary {
            time: whole_seconds(at),
            event: event.event_type.name().into(),
            event_id: event.id.to_string(),
            attempt: *attempt as i32,
            status_code,
            error: exchange.as_ref().and_then(|exchange| exchange.error.clone()),
        };
        let generation = self.status.observed_generation.unwrap_or_default();
        if settled.verdict == Verdict::Delivered {
            self.counts().succeeded += 1;
            self.status.consecutive_failures = 0;
            self.gone_generation = None;
            self.status.last_success = Some(summary);
            let failing = self.status_of("Healthy") == Some("False");
            self.condition("Healthy", true, "Acknowledged", "the endpoint acknowledges deliveries", generation, at);
            if failing {
                let text = format!("the endpoint acknowledges deliveries again, {} first", event.event_type);
                notices.push(Notice::normal(&self.webhook, "EndpointRecovered", text));
            }
        } else if exchange.is_some() {
            self.status.consecutive_failures += 1;
            self.status.last_failure = Some(summary);
        }
        if settled.verdict == Verdict::Exhausted {
            self.counts().failed += 1;
        }
        if settled.verdict != Verdict::Delivered {
            notices.extend(self.judge_failure(settled, generation, at));
        }
        if matches!(settled.verdict, Verdict::Delivered | Verdict::Exhausted) {
            let result = if settled.verdict == Verdict::Delivered { "Delivered" } else { "Exhausted" };
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

    /// Whether a failed attempt makes the endpoint unhealthy, and what is to be said of it.
    fn judge_failure(&mut self, settled: &Settled, generation: i64, at: Timestamp) -> Vec<Notice> {
        let mut notices = Vec::new();
        let error = settled.exchange.as_ref().and_then(|exchange| exchange.error.as_deref());
        let error = error.unwrap_or(match settled.given_up {
            Some(Reason::NamespaceUnknown) => {
                "its namespace is gone, and whether spec.namespaceSelector selects it is not known"
            }
            _ if settled.gone => "the endpoint is gone",
            _ => "too many deliveries are pending for another to wait",
        });
        let exhausted = settled.verdict == Verdict::Exhausted;
        if settled.gone {
            self.gone_generation = Some(generation);
        }
        let gone = self.gone_generation == Some(generation);
        let healthy = self.status_of("Healthy") == Some("True");
        // What found no room says nothing of the endpoint.
        let judged = settled.exchange.is_some() || settled.gone;
        if judged && (gone || exhausted || !healthy || self.status.consecutive_failures >= UNHEALTHY_AFTER) {
            let (reason, message) = if gone {
                let text = "the endpoint answered 410 Gone; events are kept as WebhookDelivery objects until the spec changes, or a test or a redelivery is answered 2xx: correct spec.url, or delete the Webhook";
                ("EndpointGone", text.to_owned())
            } else {
                ("DeliveriesFailing", format!("attempts fail: {error}"))
            };
            if self.condition("Healthy", false, reason, &message, generation, at) {
                notices.push(Notice::warning(&self.webhook, reason, message));
            }
        }
        if exhausted {
            let event = &settled.event;
            let attempts = settled.attempt;
            let subject = self.describe(&event.object);
            let attempts = if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
            let WebhookRef { kind, home, name, .. } = &self.webhook;
            let (options, labels) = match kind {
                WebhookKind::Webhook => (String::new(), String::new()),
                WebhookKind::ClusterWebhook => (format!("-n {home} "), format!(",{KIND_LABEL}={kind}")),
            };
            let text = format!(
                "{} of {subject} was given up after {attempts}: {error}; kubectl {options}get whd -l {WEBHOOK_LABEL}={name}{labels} shows what is kept to be sent again",
                event.event_type
            );
            notices.push(Notice::warning(&self.webhook, "DeliveryExhausted", text));
            // How an endpoint of the platform team's fares is none of a tenant's business.
            if *kind == WebhookKind::Webhook {
                let text =
                    format!("{} could not be delivered to {} in {attempts}: {error}", event.event_type, self.webhook);
                notices.push(Notice::about_object(&self.webhook, &event.object, "WebhookDeliveryExhausted", text));
            }
        }
        notices
    }

    /// The object as users of the Webhook name it: `trainingjob/llama-sft`, or for a `ClusterWebhook` `trainingjob/research/llama-sft`.
    fn describe(&self, object: &Object) -> String {
        let kind = references::object(object).kind.unwrap_or_default().to_lowercase();
        match self.webhook.kind {
            WebhookKind::Webhook => format!("{kind}/{}", object.name),
            WebhookKind::ClusterWebhook => format!("{kind}/{}/{}", object.namespace, object.name),
        }
    }

    fn status_of(&self, kind: &str) -> Option<&str> {
        conditions::get(&self.status.conditions, kind).map(|condition| condition.status.as_str())
    }

    /// Sets a condition and tells whether its status or reason changed.
    fn condition(
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
            self.touch(Dirty::Conditions);
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

/// The generation of the spec whose endpoint has answered 410 Gone, as it was written down.
#[must_use]
pub fn gone_generation(status: &WebhookStatus) -> Option<i64> {
    let gone = status.conditions.iter().find(|condition| condition.reason == "EndpointGone")?;
    gone.observed_generation
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventType, sample::sample};

    fn webhook(number: u128) -> WebhookRef {
        let (kind, uid) = (WebhookKind::Webhook, Uid::from_u128(number));
        WebhookRef { kind, uid, home: "research".into(), name: format!("ci-{number}") }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn standing(readiness: Readiness) -> Standing {
        Standing { generation: 1, endpoint: "https://ci".into(), readiness, warnings: Vec::new() }
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
        assert_eq!(again.len(), WRITES_PER_SECOND);
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
}
