//! The custom resources of group `llmtune.io`, one file each: the contract with users. Validation and defaults live in
//! the schemas (structural, with CEL rules); there is no behaviour here.

pub mod training_job;
pub mod webhook;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};

pub use training_job::TrainingJob;
pub use webhook::Webhook;

/// The group of all custom resources, labels and annotations.
pub const GROUP: &str = "llmtune.io";

/// Every custom resource definition, in the order in which `crds` prints them.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![Webhook::crd(), TrainingJob::crd()]
}

/// The default of a parent whose children have defaults of their own: `{}`, so that the apiserver fills each child in.
fn empty_object() -> serde_json::Map<String, serde_json::Value> {
    serde_json::Map::new()
}

/// The schema of a list of `metav1.Condition`, with the lengths that apimachinery's own markers give.
fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": {"type": "string", "maxLength": 316, "description": "What the condition is about, in CamelCase."},
                "status": {"type": "string", "maxLength": 16, "description": "True, False or Unknown."},
                "reason": {"type": "string", "maxLength": 1024, "description": "A CamelCase word that says why."},
                "message": {"type": "string", "maxLength": 32768, "description": "The same for people."},
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When the status last changed."},
                "observedGeneration": {"type": "integer", "format": "int64", "description": "The metadata.generation that the condition speaks of."}
            }
        }
    })
}
