//! Any kind of object on a lifecycle, as a `WebhookSource` says: its expressions tell the stage and the facts.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;
use kube::{
    Client,
    core::GroupVersionKind,
    discovery::{ApiResource, Scope, pinned_kind},
};
use prometheus::IntCounter;
use serde_json::{Value, json, value::RawValue};
use sha2::{Digest, Sha256};

use super::{
    Malformed, Source, Whereabouts,
    frame::Partial,
    owners::{GroupKind, WatchedKinds},
    slim::SlimMeta,
    training_job::Metrics,
};
use crate::{
    api::{selector::LabelSelector, webhook_source::WebhookSourceSpec},
    causes::is_unknown_kind,
    event::object::{Facts, Kind, Metric, Object, ServingFacts, ServingStage, TrainingFacts, TrainingStage},
    expression::{CompileError, Document, Expression},
};

/// The only name that the expressions may use: the whole object.
const OBJECT: &str = "object";
/// The most bytes of a text: what is kept of an object while it runs must fit into the ledger.
const MAX_TEXT: usize = 32 * 1024;

/// What is wrong with a `WebhookSource` that passed admission.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// Expressions that are none; the text says of each where it stands, where in it, and what to write instead.
    #[error("{}", .0.join("\n"))]
    Expressions(Vec<String>),
    /// A newer release let it in.
    #[error("it cannot be read: {0}; correct it, or upgrade the operator to the release that it was written for")]
    Unreadable(String),
    /// A word that this release does not know.
    #[error("{0} is {1:?}, which this release does not know: correct it, or upgrade the operator")]
    Unknown(String, String),
}

impl MappingError {
    /// The reason that conditions give.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Expressions(_) => "InvalidExpression",
            Self::Unreadable(_) | Self::Unknown(..) => "InvalidSpec",
        }
    }
}

/// The spec of a `WebhookSource`, compiled.
#[derive(Debug)]
pub struct Mapping {
    /// What names it in event ids: the WebhookSource and the kind.
    name: String,
    gvk: GroupVersionKind,
    kind: Arc<Kind>,
    selector: Option<String>,
    include_owned: bool,
    rules: Rules,
    /// Records under another one are of other rules.
    fingerprint: String,
}

/// An expression, and where in the spec it stands.
#[derive(Debug)]
struct Placed {
    place: String,
    expression: Expression,
}

#[derive(Debug)]
enum Rules {
    Training { stages: Vec<(TrainingStage, Placed)>, data: TrainingData },
    Serving { stages: Vec<(ServingStage, Placed)>, data: ServingData },
}

#[derive(Debug)]
struct TrainingData {
    job_id: Option<Placed>,
    base_model: Option<Placed>,
    training_method: Option<Placed>,
    artifact: Option<Placed>,
    metrics: Option<Placed>,
    started_at: Option<Placed>,
    completed_at: Option<Placed>,
    reason: Option<Placed>,
    message: Option<Placed>,
}

#[derive(Debug)]
struct ServingData {
    deployment_id: Option<Placed>,
    model_id: Option<Placed>,
    version: Option<Placed>,
    environment: Option<Placed>,
    endpoint: Option<Placed>,
}

/// Compiles expressions, and collects what is wrong with them.
#[derive(Default)]
struct Compiler {
    errors: Vec<String>,
}

impl Compiler {
    fn compile(&mut self, place: String, text: &str) -> Option<Placed> {
        let told = |error: CompileError| format!("{place}: {error}");
        let compiled = Expression::compile(text, &[OBJECT]).map_err(told);
        let expression = compiled.map_err(|error| self.errors.push(error)).ok()?;
        Some(Placed { place, expression })
    }

    fn data(&mut self, member: &str, text: Option<&String>) -> Option<Placed> {
        text.and_then(|text| self.compile(format!("spec.data.{member}"), text))
    }

    fn stages<T>(
        &mut self,
        spec: &WebhookSourceSpec,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<(T, Placed)>, MappingError> {
        let mut stages = Vec::new();
        for (at, rule) in spec.stages.iter().enumerate() {
            let unknown = || MappingError::Unknown(format!("spec.stages[{at}].stage"), rule.stage.clone());
            let stage = parse(&rule.stage).ok_or_else(unknown)?;
            let when = self.compile(format!("spec.stages[{at}].when"), &rule.when);
            stages.extend(when.map(|when| (stage, when)));
        }
        Ok(stages)
    }
}

impl Mapping {
    /// Compiles the spec of the WebhookSource of this name.
    pub fn compile(name: &str, spec: &WebhookSourceSpec) -> Result<Self, MappingError> {
        let resource = &spec.resource;
        let (group, version) = resource.api_version.split_once('/').unwrap_or(("", &resource.api_version));
        let mut compiler = Compiler::default();
        let data = &spec.data;
        let rules = match spec.lifecycle.as_str() {
            "Training" => Rules::Training {
                stages: compiler.stages(spec, TrainingStage::parse)?,
                data: TrainingData {
                    job_id: compiler.data("jobId", data.job_id.as_ref()),
                    base_model: compiler.data("baseModel", data.base_model.as_ref()),
                    training_method: compiler.data("trainingMethod", data.training_method.as_ref()),
                    artifact: compiler.data("artifact", data.artifact.as_ref()),
                    metrics: compiler.data("metrics", data.metrics.as_ref()),
                    started_at: compiler.data("startedAt", data.started_at.as_ref()),
                    completed_at: compiler.data("completedAt", data.completed_at.as_ref()),
                    reason: compiler.data("reason", data.reason.as_ref()),
                    message: compiler.data("message", data.message.as_ref()),
                },
            },
            "Serving" => Rules::Serving {
                stages: compiler.stages(spec, ServingStage::parse)?,
                data: ServingData {
                    deployment_id: compiler.data("deploymentId", data.deployment_id.as_ref()),
                    model_id: compiler.data("modelId", data.model_id.as_ref()),
                    version: compiler.data("version", data.version.as_ref()),
                    environment: compiler.data("environment", data.environment.as_ref()),
                    endpoint: compiler.data("endpoint", data.endpoint.as_ref()),
                },
            },
            other => return Err(MappingError::Unknown("spec.lifecycle".into(), other.into())),
        };
        if !compiler.errors.is_empty() {
            return Err(MappingError::Expressions(compiler.errors));
        }
        let selector = spec.selector.as_ref().map(LabelSelector::selector).unwrap_or_default();
        let dot = if group.is_empty() { "" } else { "." };
        Ok(Self {
            name: format!("{name}:{}{dot}{group}", resource.kind),
            gvk: GroupVersionKind::gvk(group, version, &resource.kind),
            kind: Arc::new(Kind { api_version: resource.api_version.clone(), kind: resource.kind.clone() }),
            selector: Some(selector.to_string()).filter(|selector| !selector.is_empty()),
            include_owned: spec.include_owned,
            rules,
            fingerprint: fingerprint(spec),
        })
    }

    /// The kind that it maps, of whatever version.
    #[must_use]
    pub fn group_kind(&self) -> GroupKind {
        (self.gvk.group.clone(), self.gvk.kind.clone())
    }
}

/// A hash of what decides stages. What events tell beside them may change without the records beginning anew.
fn fingerprint(spec: &WebhookSourceSpec) -> String {
    let WebhookSourceSpec { lifecycle, include_owned, stages, .. } = spec;
    let text = json!([lifecycle, include_owned, stages]).to_string();
    let digest = Sha256::digest(text.as_bytes());
    let head = digest.iter().take(8).fold(0_u64, |head, byte| head << 8 | u64::from(*byte));
    format!("{head:016x}")
}

/// Evaluations that failed, counted.
#[derive(Debug)]
pub struct Failures {
    metric: IntCounter,
    count: AtomicU64,
    last: Mutex<Option<Failure>>,
}

/// An expression that could not be evaluated.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// Where the expression stands, such as `spec.stages[0].when`.
    pub place: String,
    /// What went wrong; nothing of the object's content.
    pub error: String,
}

impl Failures {
    /// None yet; `metric` counts them too.
    #[must_use]
    pub const fn new(metric: IntCounter) -> Self {
        Self { metric, count: AtomicU64::new(0), last: Mutex::new(None) }
    }

    fn add(&self, metadata: &SlimMeta, placed: &Placed, error: String) {
        self.metric.inc();
        self.count.fetch_add(1, Ordering::Relaxed);
        let failure = Failure {
            at: Timestamp::now(),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            place: placed.place.clone(),
            error,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    /// How many there were, and the newest.
    #[must_use]
    pub fn tell(&self) -> (u64, Option<Failure>) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        (self.count.load(Ordering::Relaxed), last.clone())
    }
}

/// The objects of one `WebhookSource`.
#[derive(Debug)]
pub struct Mapped {
    mapping: Arc<Mapping>,
    kinds: WatchedKinds,
    failures: Arc<Failures>,
    resource: OnceLock<ApiResource>,
}

/// One object whose expressions are evaluated.
struct Evaluation<'a> {
    metadata: &'a SlimMeta,
    document: &'a Document,
    failures: &'a Failures,
}

impl Mapped {
    /// The source, where these kinds are watched.
    #[must_use]
    pub const fn new(mapping: Arc<Mapping>, kinds: WatchedKinds, failures: Arc<Failures>) -> Self {
        Self { mapping, kinds, failures, resource: OnceLock::new() }
    }
}

impl Source for Mapped {
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
            // It sends nothing.
            rules.nothing()
        } else {
            let document = serde_json::from_str(raw.get())?;
            Evaluation { metadata: &metadata, document: &document, failures: &self.failures }.facts(rules)
        };
        Ok(Object { owned, kind: Some(Arc::clone(kind)), ..metadata.object(facts, &self.kinds)? })
    }

    fn watch_name(&self, namespace: Option<&str>) -> String {
        let selected = self.selector().map(|selector| format!(" where {selector}")).unwrap_or_default();
        let scope = namespace.map(|namespace| format!(" in {namespace}")).unwrap_or_default();
        format!("{} {}{selected}{scope}", self.mapping.name, self.mapping.fingerprint)
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

impl Rules {
    /// What no event is made of.
    fn nothing(&self) -> Facts {
        match self {
            Self::Training { .. } => Facts::Training(TrainingFacts::default()),
            Self::Serving { .. } => Facts::Serving(ServingFacts::default()),
        }
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
                    started_at: self.time(data.started_at.as_ref()),
                    completed_at: self.time(data.completed_at.as_ref()),
                    reason: self.text(data.reason.as_ref()),
                    message: self.text(data.message.as_ref()),
                })
            }
            Rules::Serving { stages, data } => {
                let stage = self.stage(stages);
                Facts::Serving(ServingFacts {
                    stage,
                    deployment_id: self.text(data.deployment_id.as_ref()),
                    model_id: self.text(data.model_id.as_ref()),
                    version: self.text(data.version.as_ref()),
                    environment: self.text(data.environment.as_ref()),
                    endpoint: self.text(data.endpoint.as_ref()),
                    rolled_out: stage == Some(ServingStage::Deployed),
                    autoscaled: self.metadata.annotations.scale_to_zero.as_deref() == Some("Autoscaled"),
                })
            }
        }
    }

    /// The first stage whose expression holds. One that cannot be evaluated leaves open which that is: no change.
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
            Value::Number(_) => "a number",
            Value::String(_) => "another string",
            Value::Array(_) => "a list",
            Value::Object(_) => "a map",
        };
        self.failures.add(self.metadata, placed, format!("the value must be {wanted}, and is {found}"));
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

    /// Numbers and strings.
    fn metrics(&self, placed: Option<&Placed>) -> Metrics {
        let mut metrics = Metrics::default();
        let Some((placed, value)) = self.value(placed) else { return metrics };
        let Value::Object(members) = value else {
            self.refuse(placed, &value, "a map of numbers and strings");
            return metrics;
        };
        for (name, value) in members {
            match value {
                Value::Number(number) => metrics.take(name, Metric::Number(number.as_f64().unwrap_or(f64::NAN))),
                Value::String(text) => metrics.take(name, Metric::Text(text)),
                _ => {}
            }
        }
        metrics
    }
}

#[cfg(test)]
mod tests;
