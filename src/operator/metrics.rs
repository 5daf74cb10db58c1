//! The metrics, registered on a given registry. Labels are bounded: names of namespaces, Webhooks and events, never
//! URLs, ids or error texts. The series of a deleted Webhook are removed.

mod conditions;

use std::sync::Arc;

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};

use crate::report::webhooks::ConditionSink;
use conditions::Conditions;
use llmtune_core::{
    attempt::{Class, Exchange},
    engine::{RecordedOutcome, Verdict},
    event::EventType,
    subscription::WebhookRef,
};

const PREFIX: &str = "llmtune_webhooks";

/// The operator's metrics.
#[derive(Clone)]
pub struct Metrics {
    pub events: IntCounterVec,
    pub deliveries: IntCounterVec,
    pub attempts: IntCounterVec,
    pub retries: IntCounterVec,
    pub dropped: IntCounterVec,
    pub filter_errors: IntCounterVec,
    pub attempt_duration: Histogram,
    pub delivery_latency: HistogramVec,
    pub pending: IntGaugeVec,
    pub oldest_pending_age: GaugeVec,
    pub paused: IntGaugeVec,
    condition: Conditions,
    pub watch_last_activity: IntGaugeVec,
    pub malformed: IntCounterVec,
    pub source_errors: IntCounterVec,
    pub ledger_records: IntGauge,
    pub ledger_bytes: IntGauge,
    pub ledger_flush_duration: Histogram,
    pub api_requests: IntCounterVec,
    pub leader: IntGauge,
    pub usage_evaluations: IntCounterVec,
    pub usage_query_duration: Histogram,
}

struct Registrar<'a>(&'a Registry);

impl Registrar<'_> {
    fn add<C: Collector + Clone + 'static>(
        &self,
        collector: Result<C, prometheus::Error>,
    ) -> Result<C, prometheus::Error> {
        let collector = collector?;
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("{PREFIX}_{name}"), help)
}

impl Metrics {
    /// Registers the metrics. Fails if a metric is already registered.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let on = Registrar(registry);
        let counters = |name, help, labels: &[&str]| on.add(IntCounterVec::new(opts(name, help), labels));
        let gauges = |name, help, labels: &[&str]| on.add(IntGaugeVec::new(opts(name, help), labels));
        let webhook = ["namespace", "webhook"];
        let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let histogram =
            |name: &str, help: &str| HistogramOpts { common_opts: opts(name, help), buckets: buckets.clone() };
        let mut latency =
            histogram("delivery_latency_seconds", "Time from the observation of an event to its acknowledgment.");
        latency.buckets = vec![
            0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 21600.0,
        ];
        let build =
            on.add(GaugeVec::new(opts("build_info", "Always 1. The labels identify the build."), &["version"]))?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        Ok(Self {
            events: counters("events_total", "Events that occurred.", &["event"])?,
            deliveries: counters(
                "deliveries_total",
                "Deliveries that ended: delivered or exhausted.",
                &["namespace", "webhook", "event", "result"],
            )?,
            attempts: counters(
                "attempts_total",
                "Requests to endpoints, by outcome.",
                &["namespace", "webhook", "outcome"],
            )?,
            retries: counters("retries_total", "Attempts after the first of a delivery.", &webhook)?,
            dropped: counters("dropped_total", "Dropped deliveries.", &["namespace", "webhook", "reason"])?,
            filter_errors: counters(
                "filter_errors_total",
                "Events that were delivered because the Webhook's filter failed.",
                &webhook,
            )?,
            attempt_duration: on.add(Histogram::with_opts(histogram(
                "attempt_duration_seconds",
                "Time from the start of an attempt to the status of the response.",
            )))?,
            delivery_latency: on.add(HistogramVec::new(latency, &["event"]))?,
            pending: gauges("pending_deliveries", "Deliveries that are waiting or in flight.", &webhook)?,
            oldest_pending_age: on.add(GaugeVec::new(
                opts("oldest_pending_age_seconds", "Age of the oldest waiting event, or 0 if no event waits."),
                &webhook,
            ))?,
            paused: gauges(
                "paused",
                "1 while deliveries are paused because the endpoint answered 429 or 503 with Retry-After.",
                &webhook,
            )?,
            condition: on
                .add(Conditions::new(&opts("webhook_condition", "1 for the current status of a condition.")))?,
            watch_last_activity: gauges(
                "watch_last_activity_timestamp_seconds",
                "When the apiserver last sent data on the watch of this kind that has been silent for longest.",
                &["kind"],
            )?,
            malformed: counters("malformed_objects_total", "Objects that could not be parsed.", &["kind"])?,
            source_errors: counters(
                "source_evaluation_errors_total",
                "Expressions of a WebhookSource that failed.",
                &["source"],
            )?,
            ledger_bytes: on.add(IntGauge::with_opts(opts(
                "ledger_bytes",
                "Size of the data in the ledger's segments, in bytes.",
            )))?,
            ledger_flush_duration: on.add(Histogram::with_opts(histogram(
                "ledger_flush_duration_seconds",
                "Time from the start of a flush to the commit of its last segment.",
            )))?,
            ledger_records: on.add(IntGauge::with_opts(opts("ledger_records", "Objects with a record.")))?,
            api_requests: counters("api_requests_total", "Requests to the apiserver.", &["verb", "resource", "code"])?,
            leader: on.add(IntGauge::with_opts(opts("leader", "1 while this process is the leader.")))?,
            usage_evaluations: counters(
                "usage_evaluations_total",
                "Evaluations of UsageThresholds, by outcome: Measured, or the reason of the failure.",
                &["source", "result"],
            )?,
            usage_query_duration: on.add(Histogram::with_opts(histogram(
                "usage_query_duration_seconds",
                "Time from the start of a PromQL query to its result.",
            )))?,
        })
    }

    /// Counts a request.
    pub fn sent(&self, webhook: &WebhookRef, exchange: &Exchange) {
        self.attempts.with_label_values(&[webhook.namespace(), &webhook.name, exchange.class.label()]).inc();
        self.attempt_duration.observe(exchange.duration.as_secs_f64());
    }

    /// Counts an outcome.
    pub fn record_outcome(&self, webhook: &WebhookRef, recorded: &RecordedOutcome, latency: f64) {
        let (namespace, name) = (webhook.namespace(), webhook.name.as_str());
        if let Some(exchange) = &recorded.exchange {
            self.sent(webhook, exchange);
            if recorded.is_retry() {
                self.retries.with_label_values(&[namespace, name]).inc();
            }
        }
        let event = recorded.event.event_type.name();
        match recorded.verdict {
            Verdict::Delivered => {
                self.deliveries.with_label_values(&[namespace, name, event, "delivered"]).inc();
                self.delivery_latency.with_label_values(&[event]).observe(latency);
            }
            Verdict::GivenUp(_) => self.deliveries.with_label_values(&[namespace, name, event, "exhausted"]).inc(),
            Verdict::Retry(_) => {}
        }
    }

    /// Counts the dropped deliveries of a deleted Webhook. The series has no Webhook name, because the Webhook's series
    /// are removed.
    pub fn dropped_with_webhook(&self, namespace: &str, count: usize) {
        if count > 0 {
            self.dropped.with_label_values(&[namespace, "", "webhook_deleted"]).inc_by(count as u64);
        }
    }

    /// Returns the receiver of conditions.
    pub fn conditions(&self) -> ConditionSink {
        let conditions = self.condition.clone();
        Arc::new(move |webhook, condition| match condition {
            Some((kind, status)) => conditions.set(webhook, kind, status),
            None => conditions.forget(webhook),
        })
    }

    /// Removes the series of a deleted Webhook, except for its conditions. Missing series are ignored.
    pub fn forget(&self, webhook: &WebhookRef) {
        let (namespace, name) = (webhook.namespace(), webhook.name.as_str());
        let pair = [namespace, name];
        for event in EventType::ALL {
            for result in ["delivered", "exhausted"] {
                let _ = self.deliveries.remove_label_values(&[namespace, name, event.name(), result]);
            }
        }
        for class in Class::ALL {
            let _ = self.attempts.remove_label_values(&[namespace, name, class.label()]);
        }
        for reason in DropReason::ALL {
            let _ = self.dropped.remove_label_values(&[namespace, name, reason.label()]);
        }
        let _ = self.retries.remove_label_values(&pair);
        let _ = self.filter_errors.remove_label_values(&pair);
        let _ = self.pending.remove_label_values(&pair);
        let _ = self.oldest_pending_age.remove_label_values(&pair);
        let _ = self.paused.remove_label_values(&pair);
    }
}

/// Why a delivery was dropped.
#[derive(Clone, Copy, Debug)]
pub enum DropReason {
    /// A bound on pending deliveries was reached.
    Bound,
    /// It was given up, and no object could be created for it.
    NotKept,
}

impl DropReason {
    const ALL: [Self; 2] = [Self::Bound, Self::NotKept];

    /// The value of the label `reason`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Bound => "bound_reached",
            Self::NotKept => "not_kept",
        }
    }
}
