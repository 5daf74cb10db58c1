//! `WebhookSource`: any kind of object, mapped to the training or the serving lifecycle by CEL expressions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::selector::LabelSelector;

/// Maximum length of an expression, in characters.
pub const MAX_EXPRESSION: usize = 4096;

const TRAINING_STAGES: &str = "['Pending', 'Suspended', 'Running', 'Completed', 'Failed', 'Cancelled']";
const SERVING_STAGES: &str = "['Pending', 'Available', 'Deployed', 'Paused']";

/// Which objects to watch, how to derive the stage of each, and the data of its events.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "llmtune.io",
    version = "v1alpha1",
    kind = "WebhookSource",
    plural = "webhooksources",
    shortname = "whs",
    category = "llmtune",
    status = "WebhookSourceStatus",
    derive = "PartialEq",
    doc = "A kind of object that is watched like a training job or a model deployment. CEL expressions derive the stage of each object, and its events reach the Webhooks of its namespace.",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.resource.kind"),
    printcolumn(name = "Lifecycle", type_ = "string", json_path = ".spec.lifecycle"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Healthy", type_ = "string", json_path = ".status.conditions[?(@.type=='Healthy')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "API version", type_ = "string", json_path = ".spec.resource.apiVersion", priority = "1"),
    printcolumn(name = "Errors", type_ = "integer", json_path = ".status.evaluationErrors", priority = "1"),
    printcolumn(name = "Last error", type_ = "string", json_path = ".status.lastEvaluationError.error", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63").message("the name of a WebhookSource can have at most 63 characters: use a shorter metadata.name")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(format!("self.lifecycle != 'Training' || self.stages.all(each, each.stage in {TRAINING_STAGES})"))
        .message("the stages of the Training lifecycle are Pending, Suspended, Running, Completed, Failed and Cancelled"),
    validation = Rule::new(format!("self.lifecycle != 'Serving' || self.stages.all(each, each.stage in {SERVING_STAGES})"))
        .message("the stages of the Serving lifecycle are Pending, Available, Deployed and Paused"),
    validation = Rule::new("!has(self.data) || self.lifecycle != 'Training' || !(has(self.data.deploymentId) || has(self.data.modelId) || has(self.data.version) || has(self.data.revision) || has(self.data.environment) || has(self.data.endpoint))")
        .message("data of the Training lifecycle can have jobId, baseModel, trainingMethod, artifact, metrics, progress, startedAt, completedAt, reason and message"),
    validation = Rule::new("!has(self.data) || self.lifecycle != 'Serving' || !(has(self.data.jobId) || has(self.data.baseModel) || has(self.data.trainingMethod) || has(self.data.artifact) || has(self.data.metrics) || has(self.data.progress) || has(self.data.startedAt) || has(self.data.completedAt) || has(self.data.reason) || has(self.data.message))")
        .message("data of the Serving lifecycle can have deploymentId, modelId, version, revision, environment and endpoint")
)]
pub struct WebhookSourceSpec {
    /// Kind of the objects. It must be namespaced.
    #[x_kube(
        merge_strategy = MapMerge::Atomic,
        validation = Rule::new("!(self.apiVersion == 'v1' && self.kind == 'Secret')")
            .message("Secrets cannot be watched: their content must not reach a receiver"),
        validation = Rule::new("!self.apiVersion.startsWith('llmtune.io/')")
            .message("the kinds of llmtune.io need no WebhookSource: the operator already watches TrainingJobs and UsageThresholds")
    )]
    pub resource: ResourceReference,
    /// `Training`: training.started, training.completed, training.failed. `Serving`: model.deployed and deployment.*.
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self in ['Training', 'Serving']").message("lifecycle must be Training or Serving"))]
    pub lifecycle: String,
    /// Selects objects by their labels. If absent or empty, it selects all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub selector: Option<LabelSelector>,
    /// Whether objects whose controller is also of a watched kind send their own events.
    #[serde(default)]
    pub include_owned: bool,
    /// Stages, in order: an object is in the first stage whose expression is true. If none is true, the object
    /// stays in its previous stage.
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new("self.size() > 0")
            .message("stages must have at least one stage with its expression, such as {stage: Completed, when: \"object.status.phase == 'Succeeded'\"}")
    )]
    pub stages: Vec<StageRule>,
    /// Data of the events: CEL expressions over `object`. A member whose expression finds nothing is left out.
    #[serde(default)]
    #[schemars(default = "super::empty_object")]
    pub data: DataExpressions,
}

/// A kind of object.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ResourceReference {
    /// Group and version, such as `batch/v1`; for the core group the version alone.
    #[schemars(length(max = 317))]
    #[x_kube(validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?v[0-9]+((alpha|beta)[0-9]+)?$')")
        .message("apiVersion must be GROUP/VERSION, such as trainer.kubeflow.org/v1alpha1, or v1"))]
    pub api_version: String,
    /// Kind in CamelCase, such as `TrainJob`.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Z][A-Za-z0-9]*$')")
        .message("kind must be the kind's name in CamelCase, such as TrainJob"))]
    pub kind: String,
}

/// When an object is in a stage.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StageRule {
    /// Stage of the lifecycle.
    #[schemars(length(max = 16))]
    pub stage: String,
    /// CEL expression over `object`. The object is in this stage if it is true. Missing fields evaluate to false.
    #[schemars(length(max = MAX_EXPRESSION))]
    #[x_kube(validation = Rule::new("self.size() > 0")
        .message("when must be a CEL expression over object, such as object.status.phase == 'Running'"))]
    pub when: String,
}

/// CEL expressions over `object`, one for each member of the payload's `data`.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DataExpressions {
    /// Training: id of the job. Defaults to its uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub job_id: Option<String>,
    /// Training: model that is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub base_model: Option<String>,
    /// Training: training method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub training_method: Option<String>,
    /// Training: location of the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub artifact: Option<String>,
    /// Training: a map of numbers and strings, or a list of objects with `name` and `value`. At most 64 are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub metrics: Option<String>,
    /// Training: progress in percent, from 0 to 100. A change of progress alone sends no event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub progress: Option<String>,
    /// Training: start of the run, in RFC 3339. A new time after the end of the run is a new run; before the end, it means that the run
    /// was resumed or retried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub started_at: Option<String>,
    /// Training: end of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub completed_at: Option<String>,
    /// Training: reason for the failure, in CamelCase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub reason: Option<String>,
    /// Training: human-readable details of the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub message: Option<String>,
    /// Serving: id of the deployment. Defaults to the object's uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub deployment_id: Option<String>,
    /// Serving: model that is served. Without it, `model.deployed` is not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub model_id: Option<String>,
    /// Serving: version of the model. A rollout changes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub version: Option<String>,
    /// Serving: identifier of the current revision, once its rollout has completed. If set, `model.deployed` is sent when this value changes, instead of when
    /// `modelId` or `version` changes. It is not part of the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub revision: Option<String>,
    /// Serving: environment, such as production.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub environment: Option<String>,
    /// Serving: URL or address of the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub endpoint: Option<String>,
}

/// State of the source.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = super::unobserved_conditions()))]
pub struct WebhookSourceStatus {
    /// The `metadata.generation` that this status was written for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The mapping in force. While the spec is invalid, it is the mapping of an older generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<MappingInForce>,
    /// `Ready`: the objects are watched. `Healthy`: the expressions can be evaluated. `Stalled`: the spec is invalid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Number of failed evaluations since the operator started to watch.
    #[serde(default)]
    pub evaluation_errors: i64,
    /// Latest failed evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_evaluation_error: Option<EvaluationFailure>,
}

/// Latest valid spec of a WebhookSource.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MappingInForce {
    /// The `metadata.generation` of this spec.
    pub generation: i64,
    /// The spec.
    #[schemars(transform = super::without_rules)]
    pub spec: WebhookSourceSpec,
}

/// An expression that could not be evaluated.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationFailure {
    /// Time of the evaluation.
    pub time: Time,
    /// Namespace of the object.
    #[schemars(length(max = 253))]
    pub namespace: String,
    /// Name of the object.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Path of the expression in the spec, such as `spec.stages[0].when`.
    #[schemars(length(max = 64))]
    pub expression: String,
    /// Error message.
    #[schemars(length(max = 256))]
    pub error: String,
}
