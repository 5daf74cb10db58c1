//! Compiles the spec of a `WebhookSource`.

use std::sync::Arc;

use kube::core::GroupVersionKind;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::source::owners::GroupKind;
use cel::{CompileError, Expression, Type};
use llmtune_api::{selector::LabelSelector, webhook_source::WebhookSourceSpec};
use llmtune_core::event::object::{Facts, ObjectKind, ServingFacts, ServingStage, TrainingFacts, TrainingStage};

/// The only variable of the expressions: the object.
pub(super) const OBJECT: &str = "object";

/// Why a `WebhookSource` that passed admission cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// Expressions that do not compile. For each, the text gives the field, the position and the correction.
    #[error("{}", .0.join("\n"))]
    Expressions(Vec<String>),
    /// The object cannot be parsed, for example because a newer release admitted it.
    #[error(
        "the WebhookSource cannot be read: {0}; correct it, or upgrade the operator to the release that it was written for"
    )]
    Unreadable(String),
    /// A field has a value that this release does not know.
    #[error("{0} is {1:?}, which this release does not know: correct it, or upgrade the operator")]
    Unknown(String, String),
}

impl MappingError {
    /// The reason in conditions.
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
    spec: WebhookSourceSpec,
    /// The name of the source in event ids: the `WebhookSource` and the kind.
    pub(super) name: String,
    pub(super) gvk: GroupVersionKind,
    pub(super) kind: Arc<ObjectKind>,
    pub(super) selector: Option<String>,
    pub(super) include_owned: bool,
    pub(super) rules: Rules,
    /// Records with another fingerprint were made by other rules.
    pub(super) fingerprint: String,
}

/// An expression and its field in the spec.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) place: String,
    pub(super) expression: Expression,
}

#[derive(Debug)]
pub(super) enum Rules {
    Training { stages: Vec<(TrainingStage, Placed)>, data: TrainingData },
    Serving { stages: Vec<(ServingStage, Placed)>, data: ServingData },
}

#[derive(Debug)]
pub(super) struct TrainingData {
    pub(super) job_id: Option<Placed>,
    pub(super) base_model: Option<Placed>,
    pub(super) training_method: Option<Placed>,
    pub(super) artifact: Option<Placed>,
    pub(super) metrics: Option<Placed>,
    pub(super) progress: Option<Placed>,
    pub(super) started_at: Option<Placed>,
    pub(super) completed_at: Option<Placed>,
    pub(super) reason: Option<Placed>,
    pub(super) message: Option<Placed>,
}

#[derive(Debug)]
pub(super) struct ServingData {
    pub(super) deployment_id: Option<Placed>,
    pub(super) model_id: Option<Placed>,
    pub(super) version: Option<Placed>,
    pub(super) revision: Option<Placed>,
    pub(super) environment: Option<Placed>,
    pub(super) endpoint: Option<Placed>,
}

impl Rules {
    /// Facts that emit no event.
    pub(super) fn nothing(&self) -> Facts {
        match self {
            Self::Training { .. } => Facts::Training(TrainingFacts::default()),
            Self::Serving { .. } => Facts::Serving(ServingFacts::default()),
        }
    }
}

/// Compiles expressions and collects their errors.
#[derive(Default)]
struct Compiler {
    errors: Vec<String>,
}

impl Compiler {
    fn placed(&mut self, place: String, compiled: Result<Expression, CompileError>) -> Option<Placed> {
        let expression = compiled.map_err(|error| self.errors.push(format!("{place}: {error}"))).ok()?;
        Some(Placed { place, expression })
    }

    fn data(&mut self, member: &str, text: Option<&String>) -> Option<Placed> {
        text.and_then(|text| self.placed(format!("spec.data.{member}"), Expression::compile(text, &[OBJECT])))
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
            let when = Expression::compile_condition(&rule.when, &[(OBJECT, Type::Dyn)]);
            let when = self.placed(format!("spec.stages[{at}].when"), when);
            stages.extend(when.map(|when| (stage, when)));
        }
        Ok(stages)
    }
}

impl Mapping {
    /// Compiles the spec of the `WebhookSource` of this name.
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
                    progress: compiler.data("progress", data.progress.as_ref()),
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
                    revision: compiler.data("revision", data.revision.as_ref()),
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
            spec: spec.clone(),
            name: format!("{name}:{}{dot}{group}", resource.kind),
            gvk: GroupVersionKind::gvk(group, version, &resource.kind),
            kind: Arc::new(ObjectKind { api_version: resource.api_version.clone(), kind: resource.kind.clone() }),
            selector: Some(selector.to_string()).filter(|selector| !selector.is_empty()),
            include_owned: spec.include_owned,
            rules,
            fingerprint: fingerprint(spec),
        })
    }

    /// The spec that it was compiled from.
    #[must_use]
    pub const fn spec(&self) -> &WebhookSourceSpec {
        &self.spec
    }

    /// The name of its watch in the ledger, without the namespace.
    #[must_use]
    pub fn watch_name(&self) -> String {
        let selected = self.selector.as_ref().map(|selector| format!(" where {selector}")).unwrap_or_default();
        format!("{} {}{selected}", self.name, self.fingerprint)
    }

    /// The mapped kind, of any version.
    #[must_use]
    pub fn group_kind(&self) -> GroupKind {
        (self.gvk.group.clone(), self.gvk.kind.clone())
    }
}

/// A hash of the fields that decide stages. The expressions in `spec.data` are not part of it, so editing them does not
/// reset the records.
fn fingerprint(spec: &WebhookSourceSpec) -> String {
    let WebhookSourceSpec { lifecycle, include_owned, stages, .. } = spec;
    let text = json!([lifecycle, include_owned, stages]).to_string();
    let digest = Sha256::digest(text.as_bytes());
    let head = digest.iter().take(8).fold(0_u64, |head, byte| head << 8 | u64::from(*byte));
    format!("{head:016x}")
}
