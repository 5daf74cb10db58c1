//! `WebhookSource`: any kind of object, mapped onto the training or the serving lifecycle by CEL expressions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::selector::LabelSelector;

/// The most characters of one expression.
pub const MAX_EXPRESSION: usize = 4096;

const TRAINING_STAGES: &str = "['Pending', 'Suspended', 'Running', 'Completed', 'Failed', 'Cancelled']";
const SERVING_STAGES: &str = "['Pending', 'Available', 'Deployed', 'Paused']";

/// Which objects to watch, how to tell the stage that each is in, and what its events say of it.
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
    doc = "A kind of object that is watched like a training job or a model deployment: CEL expressions tell the stage that each object is in, and its events reach the Webhooks of its namespace.",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.resource.kind"),
    printcolumn(name = "Lifecycle", type_ = "string", json_path = ".spec.lifecycle"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Healthy", type_ = "string", json_path = ".status.conditions[?(@.type=='Healthy')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "API version", type_ = "string", json_path = ".spec.resource.apiVersion", priority = "1"),
    printcolumn(name = "Errors", type_ = "integer", json_path = ".status.evaluationErrors", priority = "1"),
    printcolumn(name = "Last error", type_ = "string", json_path = ".status.lastEvaluationError.error", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63").message("a WebhookSource's name may have at most 63 characters: choose a shorter metadata.name")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(format!("self.lifecycle != 'Training' || self.stages.all(each, each.stage in {TRAINING_STAGES})"))
        .message("the stages of the Training lifecycle are Pending, Suspended, Running, Completed, Failed and Cancelled"),
    validation = Rule::new(format!("self.lifecycle != 'Serving' || self.stages.all(each, each.stage in {SERVING_STAGES})"))
        .message("the stages of the Serving lifecycle are Pending, Available, Deployed and Paused"),
    validation = Rule::new("!has(self.data) || self.lifecycle != 'Training' || !(has(self.data.deploymentId) || has(self.data.modelId) || has(self.data.version) || has(self.data.revision) || has(self.data.environment) || has(self.data.endpoint))")
        .message("data of the Training lifecycle may hold jobId, baseModel, trainingMethod, artifact, metrics, progress, startedAt, completedAt, reason and message"),
    validation = Rule::new("!has(self.data) || self.lifecycle != 'Serving' || !(has(self.data.jobId) || has(self.data.baseModel) || has(self.data.trainingMethod) || has(self.data.artifact) || has(self.data.metrics) || has(self.data.progress) || has(self.data.startedAt) || has(self.data.completedAt) || has(self.data.reason) || has(self.data.message))")
        .message("data of the Serving lifecycle may hold deploymentId, modelId, version, revision, environment and endpoint")
)]
pub struct WebhookSourceSpec {
    /// The kind of the objects; it must be namespaced.
    #[x_kube(
        merge_strategy = MapMerge::Atomic,
        validation = Rule::new("!(self.apiVersion == 'v1' && self.kind == 'Secret')")
            .message("Secrets cannot be watched: their content must not reach a receiver"),
        validation = Rule::new("!self.apiVersion.startsWith('llmtune.io/')")
            .message("the kinds of llmtune.io need no WebhookSource: TrainingJobs and UsageThresholds are watched as they are")
    )]
    pub resource: ResourceReference,
    /// `Training`: training.started, training.completed, training.failed. `Serving`: model.deployed and deployment.*.
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("self in ['Training', 'Serving']").message("lifecycle must be Training or Serving"))]
    pub lifecycle: String,
    /// Labels of the objects to watch. Absent or empty, it selects all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub selector: Option<LabelSelector>,
    /// Whether objects whose controller is itself of a watched kind send events of their own.
    #[serde(default)]
    pub include_owned: bool,
    /// The stages, in the order in which they are tried: an object is in the first whose expression holds. Where none holds, it
    /// stays in the stage that it was in.
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new("self.size() > 0")
            .message("stages must name at least one stage and when an object is in it, such as {stage: Completed, when: \"object.status.phase == 'Succeeded'\"}")
    )]
    pub stages: Vec<StageRule>,
    /// What the events tell of the object: CEL expressions over `object`. What one does not find is left out.
    #[serde(default)]
    #[schemars(default = "super::empty_object")]
    pub data: DataExpressions,
}

/// A kind, as objects name it.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ResourceReference {
    /// Group and version, such as `batch/v1`; of the core group the version alone.
    #[schemars(length(max = 317))]
    #[x_kube(validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?v[0-9]+((alpha|beta)[0-9]+)?$')")
        .message("apiVersion must be GROUP/VERSION, such as trainer.kubeflow.org/v1alpha1, or v1"))]
    pub api_version: String,
    /// The kind in CamelCase, such as `TrainJob`.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Z][A-Za-z0-9]*$')")
        .message("kind must be the kind's name in CamelCase, such as TrainJob"))]
    pub kind: String,
}

/// When an object is in a stage.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StageRule {
    /// The stage of the lifecycle.
    #[schemars(length(max = 16))]
    pub stage: String,
    /// A CEL expression over `object` that tells whether the object is in this stage. What it does not find in the object is not so.
    #[schemars(length(max = MAX_EXPRESSION))]
    #[x_kube(validation = Rule::new("self.size() > 0")
        .message("when must be a CEL expression over object, such as object.status.phase == 'Running'"))]
    pub when: String,
}

/// CEL expressions over `object`, by the member of the payload's `data` that each gives.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DataExpressions {
    /// Training: the job's id; its uid where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub job_id: Option<String>,
    /// Training: the model that is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub base_model: Option<String>,
    /// Training: how it is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub training_method: Option<String>,
    /// Training: where its result is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub artifact: Option<String>,
    /// Training: a map of numbers and strings, or a list of objects with `name` and `value`. At most 64 are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub metrics: Option<String>,
    /// Training: how much of it is done, in percent, from 0 to 100. A change of it alone sends nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub progress: Option<String>,
    /// Training: when the run began, as RFC 3339 writes times. A new time after the run's end is a new run; before it, the run
    /// was resumed or retried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub started_at: Option<String>,
    /// Training: when the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub completed_at: Option<String>,
    /// Training: why it failed, in a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub reason: Option<String>,
    /// Training: why it failed, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub message: Option<String>,
    /// Serving: the deployment's id; the object's uid where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub deployment_id: Option<String>,
    /// Serving: the model that is served. Without it there is no `model.deployed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub model_id: Option<String>,
    /// Serving: the version of the model, which a rollout changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub version: Option<String>,
    /// Serving: what names the rollout that is complete. Where it is given, `model.deployed` is sent when it changes, and not when
    /// `modelId` or `version` does. It is not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub revision: Option<String>,
    /// Serving: the environment that it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub environment: Option<String>,
    /// Serving: where it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_EXPRESSION))]
    pub endpoint: Option<String>,
}

/// How the source fares.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = super::not_looked_at()))]
pub struct WebhookSourceStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The mapping in force. It is that of an older generation while the spec is invalid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<MappingInForce>,
    /// `Ready`: the objects are watched. `Healthy`: the expressions can be evaluated. `Stalled`: the spec cannot work as it stands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// How often an expression could not be evaluated since the operator began to watch.
    #[serde(default)]
    pub evaluation_errors: i64,
    /// The newest of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_evaluation_error: Option<EvaluationFailure>,
}

/// The newest valid spec of a WebhookSource.
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
    /// When.
    pub time: Time,
    /// The object's namespace.
    #[schemars(length(max = 253))]
    pub namespace: String,
    /// The object's name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Where the expression stands, such as `spec.stages[0].when`.
    #[schemars(length(max = 64))]
    pub expression: String,
    /// What went wrong.
    #[schemars(length(max = 256))]
    pub error: String,
}
