//! The source that a `WebhookSource` declares. It watches objects of any kind; the expressions of the spec compute the
//! stage and the facts of each object.

mod failures;
mod mapping;

use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use kube::{
    Client,
    discovery::{ApiResource, Scope, pinned_kind},
};
use serde_json::{Value, value::RawValue};

use super::{
    Malformed, Source, Whereabouts,
    frame::Partial,
    metrics::Metrics,
    owners::{GroupKind, WatchedKinds},
    slim::SlimMeta,
};
use cel::Document;
use llmtune_client::error_chain::is_unknown_kind;
use llmtune_core::event::object::{Facts, Object, ServingFacts, ServingStage, TrainingFacts};
use mapping::{OBJECT, Placed, Rules};

pub use failures::{Failure, Failures};
pub use mapping::{Mapping, MappingError};

/// The maximum length of a text in bytes. The ledger stores the facts of an object while it runs.
const MAX_TEXT: usize = 32 * 1024;

/// The parts of the name that [`CustomSource::watch_name`](Source::watch_name) gives a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchName<'a> {
    /// The name of the `WebhookSource`.
    pub webhook_source: &'a str,
    /// The name of the source in event ids.
    pub source: &'a str,
    /// Whether the watch has a label selector.
    pub selective: bool,
}

impl WatchName<'_> {
    /// The watched kind, of any version.
    #[must_use]
    pub fn group_kind(&self) -> GroupKind {
        let (_, resource) = self.source.split_once(':').unwrap_or_default();
        let (kind, group) = resource.split_once('.').unwrap_or((resource, ""));
        (group.to_owned(), kind.to_owned())
    }
}

impl<'a> WatchName<'a> {
    /// Parses the name of a watch. `None` for a watch that no `WebhookSource` declares.
    #[must_use]
    pub fn read(name: &'a str) -> Option<Self> {
        let (source, rest) = name.split_once(' ')?;
        let (webhook_source, _) = source.split_once(':')?;
        Some(Self { webhook_source, source, selective: rest.contains(" where ") })
    }
}

/// The objects of one `WebhookSource`.
#[derive(Debug)]
pub struct CustomSource {
    mapping: Arc<Mapping>,
    kinds: WatchedKinds,
    failures: Arc<Failures>,
    resource: OnceLock<ApiResource>,
}

/// The evaluation of the expressions for one object.
struct Evaluation<'a> {
    metadata: &'a SlimMeta,
    document: &'a Document,
    failures: &'a Failures,
}

impl CustomSource {
    /// Creates the source. Objects whose controller is of one of these kinds send no events.
    #[must_use]
    pub const fn new(mapping: Arc<Mapping>, kinds: WatchedKinds, failures: Arc<Failures>) -> Self {
        Self { mapping, kinds, failures, resource: OnceLock::new() }
    }
}

impl Source for CustomSource {
    type Slim = Box<RawValue>;

    fn kind(&self) -> &str {
        &self.mapping.gvk.kind
    }

    fn name(&self) -> &str {
        &self.mapping.name
    }

    fn selector(&self) -> Option<&str> {
        self.mapping.selector.as_deref()
    }

    fn path(&self, namespace: Option<&str>) -> Option<String> {
        let ApiResource { group, api_version, plural, .. } = self.resource.get()?;
        let root = if group.is_empty() { "/api" } else { "/apis" };
        let scope = namespace.map(|namespace| format!("/namespaces/{namespace}")).unwrap_or_default();
        Some(format!("{root}/{api_version}{scope}/{plural}"))
    }

    async fn locate(&self, client: &Client) -> Result<Whereabouts, kube::Error> {
        if self.resource.get().is_some() {
            return Ok(Whereabouts::Known);
        }
        match pinned_kind(client, &self.mapping.gvk).await {
            Ok((_, capabilities)) if capabilities.scope == Scope::Cluster => Ok(Whereabouts::NotNamespaced),
            Ok((resource, _)) => {
                self.resource.get_or_init(|| resource);
                Ok(Whereabouts::Known)
            }
            Err(kube::Error::Discovery(_)) => Ok(Whereabouts::NotServed),
            Err(kube::Error::Api(status)) if is_unknown_kind(status.code, &status.message) => {
                Ok(Whereabouts::NotServed)
            }
            Err(error) => Err(error),
        }
    }

    fn read(&self, raw: Box<RawValue>) -> Result<Object, Malformed> {
        let Partial { metadata } = serde_json::from_str(raw.get())?;
        let Mapping { rules, kind, include_owned, .. } = &*self.mapping;
        let owned = !include_owned && metadata.is_owned(&self.kinds);
        let facts = if owned {
            rules.nothing()
        } else {
            let document = serde_json::from_str(raw.get())?;
            Evaluation { metadata: &metadata, document: &document, failures: &self.failures }.facts(rules)
        };
        Ok(Object { owned, kind: Some(Arc::clone(kind)), ..metadata.object(facts, &self.kinds)? })
    }

    fn watch_name(&self, namespace: Option<&str>) -> String {
        let scope = namespace.map(|namespace| format!(" in {namespace}")).unwrap_or_default();
        format!("{}{scope}", self.mapping.watch_name())
    }

    fn grant(&self) -> Option<String> {
        let ApiResource { group, plural, .. } = self.resource.get()?;
        let dot = if group.is_empty() { "" } else { "." };
        Some(format!(
            "apiVersion: rbac.authorization.k8s.io/v1\n\
             kind: ClusterRole\n\
             metadata:\n\
             \x20 name: llmtune-webhooks-{plural}{dot}{group}\n\
             \x20 labels: {{rbac.llmtune.io/aggregate-to-operator: \"true\"}}\n\
             rules:\n\
             - {{apiGroups: [\"{group}\"], resources: [{plural}], verbs: [get, list, watch]}}\n"
        ))
    }
}

impl Evaluation<'_> {
    fn facts(&self, rules: &Rules) -> Facts {
        match rules {
            Rules::Training { stages, data } => {
                let metrics = self.metrics(data.metrics.as_ref());
                Facts::Training(TrainingFacts {
                    stage: self.stage(stages),
                    job_id: self.text(data.job_id.as_ref()),
                    base_model: self.text(data.base_model.as_ref()),
                    training_method: self.text(data.training_method.as_ref()),
                    artifact: self.text(data.artifact.as_ref()),
                    metrics_too_long: metrics.too_long,
                    metrics: metrics.kept,
                    progress: self.percentage(data.progress.as_ref()),
                    started_at: self.time(data.started_at.as_ref()),
                    completed_at: self.time(data.completed_at.as_ref()),
                    reason: self.text(data.reason.as_ref()),
                    message: self.text(data.message.as_ref()),
                    continues: true,
                })
            }
            Rules::Serving { stages, data } => {
                let stage = self.stage(stages);
                Facts::Serving(ServingFacts {
                    stage,
                    deployment_id: self.text(data.deployment_id.as_ref()),
                    model_id: self.text(data.model_id.as_ref()),
                    version: self.text(data.version.as_ref()),
                    revision: self.text(data.revision.as_ref()),
                    environment: self.text(data.environment.as_ref()),
                    endpoint: self.text(data.endpoint.as_ref()),
                    rolled_out: stage == Some(ServingStage::Deployed),
                    autoscaled: self.metadata.annotations.scale_to_zero.as_deref() == Some("Autoscaled"),
                })
            }
        }
    }

    /// The first stage whose expression is true. If an expression cannot be evaluated, the stage is unknown and the
    /// object stays in its previous one.
    fn stage<T: Copy>(&self, stages: &[(T, Placed)]) -> Option<T> {
        for (stage, when) in stages {
            match when.expression.holds(&[(OBJECT, self.document)]) {
                Ok(true) => return Some(*stage),
                Ok(false) => {}
                Err(error) => {
                    self.failures.add(self.metadata, when, error.to_string());
                    return None;
                }
            }
        }
        None
    }

    fn value<'p>(&self, placed: Option<&'p Placed>) -> Option<(&'p Placed, Value)> {
        let placed = placed?;
        match placed.expression.value(&[(OBJECT, self.document)]) {
            Ok(value) => value.map(|value| (placed, value)),
            Err(error) => {
                self.failures.add(self.metadata, placed, error.to_string());
                None
            }
        }
    }

    fn refuse(&self, placed: &Placed, value: &Value, wanted: &str) {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "a bool",
            Value::Number(_) => "another number",
            Value::String(_) => "another string",
            Value::Array(_) => "a list",
            Value::Object(_) => "a map",
        };
        self.failures.add(self.metadata, placed, format!("the value must be {wanted}, but is {found}"));
    }

    fn text(&self, placed: Option<&Placed>) -> Option<String> {
        let (placed, value) = self.value(placed)?;
        match value {
            Value::String(text) if text.len() > MAX_TEXT => {
                let message = format!("the value must be a string of at most {} KiB", MAX_TEXT / 1024);
                self.failures.add(self.metadata, placed, message);
                None
            }
            Value::String(text) => Some(text).filter(|text| !text.is_empty()),
            Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
            Value::Null => None,
            Value::Array(_) | Value::Object(_) => {
                self.refuse(placed, &value, "a string, a number or a bool");
                None
            }
        }
    }

    fn time(&self, placed: Option<&Placed>) -> Option<Timestamp> {
        let (placed, value) = self.value(placed)?;
        let time = value.as_str().and_then(|text| text.parse().ok());
        if time.is_none() && value.as_str() != Some("") {
            self.refuse(placed, &value, "a time such as \"2025-11-08T14:22:31Z\"");
        }
        time
    }

    fn percentage(&self, placed: Option<&Placed>) -> Option<f64> {
        let (placed, value) = self.value(placed)?;
        let number = value.as_f64().filter(|number| (0.0..=100.0).contains(number));
        if number.is_none() {
            self.refuse(placed, &value, "a number from 0 to 100");
        }
        number
    }

    fn metrics(&self, placed: Option<&Placed>) -> Metrics {
        let Some((placed, value)) = self.value(placed) else { return Metrics::default() };
        Metrics::read(value).unwrap_or_else(|value| {
            self.refuse(placed, &value, "a map of numbers and strings, or a list of {name, value}");
            Metrics::default()
        })
    }
}

#[cfg(test)]
mod tests;
