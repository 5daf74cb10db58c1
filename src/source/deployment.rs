//! The source of `apps/v1 Deployment` objects that serve models, on the serving lifecycle. They have the label
//! `llmtune.io/model-endpoint: "true"`. Model and version are read from annotations of the pod template, because
//! annotations of the Deployment itself change before the rollout starts.

use k8s_openapi::api::apps::v1::Deployment;
use kube::Resource;
use serde::Deserialize;

use super::{
    Malformed, Source,
    owners::WatchedKinds,
    slim::{Annotations, SlimMeta},
};
use llmtune_core::event::object::{Facts, Object, ServingFacts, ServingStage};

/// The source of model deployments.
#[derive(Debug, Default)]
pub struct Deployments {
    kinds: WatchedKinds,
}

impl Deployments {
    /// The name of the source in event ids.
    pub const NAME: &'static str = "deployments.apps";

    /// Creates the source. Objects whose controller is of one of these kinds send no events.
    #[must_use]
    pub const fn new(kinds: WatchedKinds) -> Self {
        Self { kinds }
    }
}

/// The fields of a Deployment that are read; of the pod template only the annotations of `LLMTune`.
#[derive(Debug, Deserialize)]
pub struct SlimDeployment {
    metadata: SlimMeta,
    #[serde(default)]
    spec: SlimSpec,
    #[serde(default)]
    status: SlimStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SlimSpec {
    replicas: Option<i32>,
    template: SlimTemplate,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SlimTemplate {
    metadata: SlimTemplateMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SlimTemplateMeta {
    annotations: Annotations,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SlimStatus {
    observed_generation: i64,
    replicas: i32,
    updated_replicas: i32,
    available_replicas: i32,
    /// Pods that are terminating. `replicas` does not include them. Kubernetes before 1.35 does not set this field.
    terminating_replicas: i32,
    conditions: Vec<SlimCondition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SlimCondition {
    #[serde(rename = "type")]
    kind: String,
    reason: String,
}

impl Source for Deployments {
    type Slim = SlimDeployment;

    fn kind(&self) -> &'static str {
        "Deployment"
    }

    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn selector(&self) -> Option<&'static str> {
        Some("llmtune.io/model-endpoint=true")
    }

    fn path(&self, namespace: Option<&str>) -> Option<String> {
        Some(Deployment::url_path(&(), namespace))
    }

    fn read(&self, slim: SlimDeployment) -> Result<Object, Malformed> {
        let SlimDeployment { mut metadata, spec, status } = slim;
        let annotations = std::mem::take(&mut metadata.annotations);
        let progressing = status.conditions.iter().find(|condition| condition.kind == "Progressing");
        let template = spec.template.metadata.annotations;
        let facts = ServingFacts {
            stage: stage(metadata.generation, spec.replicas.unwrap_or(1), &status),
            deployment_id: annotations.deployment_id.filter(|id| !id.is_empty()),
            model_id: template.model_id.filter(|id| !id.is_empty()),
            version: template.model_version,
            revision: None,
            environment: annotations.environment,
            endpoint: annotations.endpoint_url,
            rolled_out: progressing.is_some_and(|condition| condition.reason == "NewReplicaSetAvailable"),
            autoscaled: annotations.scale_to_zero.as_deref() == Some("Autoscaled"),
        };
        metadata.object(Facts::Serving(facts), &self.kinds)
    }
}

/// The stage that results from the status, or `None` while the status is of an older generation. A rollout is complete
/// by the rule of `kubectl rollout status` (kubectl, `polymorphichelpers/rollout_status.go`).
fn stage(generation: i64, replicas: i32, status: &SlimStatus) -> Option<ServingStage> {
    if status.observed_generation < generation {
        return None;
    }
    if replicas == 0 {
        let none_remains = status.replicas == 0 && status.terminating_replicas == 0;
        return Some(if none_remains { ServingStage::Paused } else { ServingStage::Pending });
    }
    let timed_out = status
        .conditions
        .iter()
        .any(|condition| condition.kind == "Progressing" && condition.reason == "ProgressDeadlineExceeded");
    let complete = !timed_out
        && status.updated_replicas >= replicas
        && status.replicas <= status.updated_replicas
        && status.available_replicas >= status.updated_replicas;
    Some(match (complete, status.available_replicas) {
        (_, ..=0) => ServingStage::Pending,
        (true, _) => ServingStage::Deployed,
        (false, _) => ServingStage::Available,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(observed_generation: i64, replicas: i32, updated_replicas: i32, available_replicas: i32) -> SlimStatus {
        SlimStatus { observed_generation, replicas, updated_replicas, available_replicas, ..SlimStatus::default() }
    }

    #[test]
    fn rollout_completeness_matches_kubectl_rollout_status() {
        use ServingStage::{Available, Deployed, Paused, Pending};
        for (expected, generation, replicas, status) in [
            (None, 2, 2, status(1, 2, 2, 2)),
            (Some(Pending), 1, 2, status(1, 2, 2, 0)),
            (Some(Available), 1, 2, status(1, 2, 2, 1)),
            (Some(Available), 1, 2, status(1, 3, 2, 3)),
            (Some(Available), 1, 2, status(1, 2, 1, 2)),
            (Some(Deployed), 1, 2, status(1, 2, 2, 2)),
            (Some(Pending), 1, 0, status(1, 1, 1, 1)),
            (Some(Paused), 1, 0, status(1, 0, 0, 0)),
        ] {
            assert_eq!(stage(generation, replicas, &status), expected, "{status:?}");
        }
    }

    #[test]
    fn paused_only_when_no_pod_remains() {
        for (expected, replicas, terminating_replicas) in
            [(ServingStage::Pending, 0, 2), (ServingStage::Pending, 1, 0), (ServingStage::Paused, 0, 0)]
        {
            let status = SlimStatus { terminating_replicas, ..status(1, replicas, 0, 0) };
            assert_eq!(stage(1, 0, &status), Some(expected), "{status:?}");
        }
    }

    #[test]
    fn rollout_past_its_deadline_is_not_complete() {
        let condition = SlimCondition { kind: "Progressing".into(), reason: "ProgressDeadlineExceeded".into() };
        let status = SlimStatus { conditions: vec![condition], ..status(1, 2, 2, 2) };
        assert_eq!(stage(1, 2, &status), Some(ServingStage::Available));
    }
}
