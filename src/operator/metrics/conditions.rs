//! The conditions of Webhooks as metrics: nine series for each Webhook, created at each scrape. As gauges they would
//! take 6 KiB for each Webhook.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus::{
    Opts,
    core::{Collector, Desc, Describer},
    proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use llmtune_core::{event::object::Uid, subscription::WebhookRef};

const TYPES: [&str; 3] = ["Ready", "Healthy", "Stalled"];
const STATUSES: [&str; 3] = ["True", "False", "Unknown"];

/// By namespace and name: the uid, and the status of each condition type, or `None`.
type Known = BTreeMap<(String, String), (Uid, Statuses)>;
type Statuses = [Option<&'static str>; TYPES.len()];

/// The family of conditions.
#[derive(Clone)]
pub struct Conditions {
    desc: Desc,
    known: Arc<Mutex<Known>>,
}

impl Conditions {
    /// Creates an empty family. Fails if the name or the help is invalid.
    pub fn new(opts: &Opts) -> Result<Self, prometheus::Error> {
        Ok(Self { desc: opts.describe()?, known: Arc::default() })
    }

    /// Sets a condition of a Webhook. Unknown types and statuses are ignored.
    pub fn set(&self, webhook: &WebhookRef, kind: &str, status: &str) {
        let kind = TYPES.iter().position(|known| *known == kind);
        let status = STATUSES.into_iter().find(|known| *known == status);
        let Some(kind) = kind else { return };
        let mut known = self.known();
        let (uid, statuses) = known.entry(key(webhook)).or_insert((webhook.uid, Statuses::default()));
        if *uid != webhook.uid {
            (*uid, *statuses) = (webhook.uid, Statuses::default());
        }
        statuses[kind] = status;
    }

    /// Removes the conditions of a deleted Webhook, unless another Webhook with its name has been reported before.
    pub fn forget(&self, webhook: &WebhookRef) {
        if let Entry::Occupied(known) = self.known().entry(key(webhook))
            && known.get().0 == webhook.uid
        {
            known.remove();
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(webhook: &WebhookRef) -> (String, String) {
    (webhook.namespace().to_owned(), webhook.name.clone())
}

impl Collector for Conditions {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut metrics = Vec::new();
        for ((namespace, webhook), (_, statuses)) in &*self.known() {
            for (kind, now) in TYPES.into_iter().zip(statuses) {
                let Some(now) = *now else { continue };
                for status in STATUSES {
                    // Sorted by name, as in other families.
                    let labels =
                        [("namespace", namespace.as_str()), ("status", status), ("type", kind), ("webhook", webhook)];
                    let mut metric = Metric::from_label(labels.map(label).into());
                    let mut gauge = Gauge::default();
                    gauge.set_value(f64::from(u8::from(status == now)));
                    metric.set_gauge(gauge);
                    metrics.push(metric);
                }
            }
        }
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::GAUGE);
        family.set_metric(metrics);
        vec![family]
    }
}

fn label((name, value): (&str, &str)) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_owned());
    label
}

#[cfg(test)]
mod tests {
    use prometheus::{Registry, TextEncoder};

    use super::*;
    use llmtune_api::webhook_delivery::WebhookKind;

    #[test]
    fn each_status_is_a_series_until_the_webhook_is_deleted() {
        let webhook = |name: &str, uid| WebhookRef {
            kind: WebhookKind::Webhook,
            uid: Uid::from_u128(uid),
            home: "ml".to_owned(),
            name: name.to_owned(),
        };
        let (ci, pager) = (webhook("ci", 1), webhook("pager", 2));
        let conditions = Conditions::new(&Opts::new("condition", "1 for the current status of a condition.")).unwrap();
        let registry = Registry::new();
        registry.register(Box::new(conditions.clone())).unwrap();
        let text = || TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert_eq!(text(), "");
        conditions.set(&ci, "Ready", "Unknown");
        conditions.set(&ci, "Ready", "True");
        conditions.set(&pager, "Healthy", "False");
        assert_eq!(
            text(),
            r#"# HELP condition 1 for the current status of a condition.
# TYPE condition gauge
condition{namespace="ml",status="False",type="Healthy",webhook="pager"} 1
condition{namespace="ml",status="False",type="Ready",webhook="ci"} 0
condition{namespace="ml",status="True",type="Healthy",webhook="pager"} 0
condition{namespace="ml",status="True",type="Ready",webhook="ci"} 1
condition{namespace="ml",status="Unknown",type="Healthy",webhook="pager"} 0
condition{namespace="ml",status="Unknown",type="Ready",webhook="ci"} 0
"#
        );
        conditions.forget(&ci);
        conditions.forget(&ci);
        assert!(!text().contains(r#"webhook="ci""#));
        let next = webhook("pager", 3);
        conditions.set(&next, "Ready", "True");
        conditions.forget(&pager);
        let text = text();
        assert!(
            text.contains(r#"status="True",type="Ready",webhook="pager"} 1"#),
            "the next Webhook of this name stays: {text}"
        );
        assert!(!text.contains("Healthy"), "and inherits nothing: {text}");
    }
}
