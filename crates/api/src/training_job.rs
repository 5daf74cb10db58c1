//! `TrainingJob`: written by a training platform, read by the operator.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::{Schema, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What is trained. Unknown fields are preserved.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "llmtune.io",
    version = "v1alpha1",
    kind = "TrainingJob",
    plural = "trainingjobs",
    shortname = "ltj",
    category = "llmtune",
    namespaced,
    status = "TrainingJobStatus",
    derive = "PartialEq",
    doc = "A training job of the LLM platform. The platform writes its status; llmtune-webhooks watches it and sends training.started, training.completed and training.failed.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Base model", type_ = "string", json_path = ".spec.baseModel"),
    printcolumn(name = "Method", type_ = "string", json_path = ".spec.trainingMethod"),
    printcolumn(name = "Started", type_ = "date", json_path = ".status.startedAt"),
    printcolumn(name = "Completed", type_ = "date", json_path = ".status.completedAt"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct TrainingJobSpec {
    /// Model that training starts from, such as `meta-llama/Llama-3.1-8B`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub base_model: Option<String>,
    /// Training method, such as `sft`, `dpo` or `lora`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub training_method: Option<String>,
}

/// State of the training, written by the training platform.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TrainingJobStatus {
    /// Pending, Suspended, Running, Completed, Failed or Cancelled. Other values are ignored. Failed is final: a job
    /// that will be retried stays Pending or Running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub phase: Option<String>,
    /// The platform's id of the job. Defaults to the object's uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub job_id: Option<String>,
    /// Location of the result, such as `s3://models/llama-sft-7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub artifact: Option<String>,
    /// Metrics of the training by name. At most 64 numbers and strings are sent; others are dropped.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "open_object")]
    pub metrics: Map<String, Value>,
    /// Start of the current run. A new value on a job that ran before means a new run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// End of the current run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// Reason for the phase, in CamelCase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// Human-readable details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32768))]
    pub message: Option<String>,
    /// Conditions that the training platform maintains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The `metadata.generation` that this status was written for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

fn open_object(_: &mut schemars::SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}
