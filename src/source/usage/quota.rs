//! Reads the used amount of a resource from a `ResourceQuota`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceQuota;
use kube::{Resource, core::ObjectMeta};
use serde::Deserialize;

use super::plan::{Failure, Figure, Reason};
use llmtune_api::usage_threshold::QuotaResource;
use llmtune_core::event::amount::Amount;

/// The fields of a `ResourceQuota` that are read.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = ResourceQuota)]
pub struct SlimQuota {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub status: Usage,
}

/// The status of a quota: hard limits and used amounts.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Usage {
    hard: BTreeMap<String, String>,
    used: BTreeMap<String, String>,
}

/// The used amount of the resource. `usage` is `None` if the quota does not exist.
pub fn figure(usage: Option<&Usage>, named: &QuotaResource) -> Result<Figure, Failure> {
    let QuotaResource { name, resource } = named;
    let Some(Usage { hard, used }) = usage else {
        let message = format!(
            "ResourceQuota {name} does not exist in this namespace: create it, or correct spec.resourceQuota.name"
        );
        return Err(Failure::new(Reason::QuotaNotFound, message));
    };
    let (Some(hard_of), Some(used_of)) = (hard.get(resource), used.get(resource)) else {
        let known: Vec<&str> = hard.keys().map(String::as_str).take(16).collect();
        let message = if known.is_empty() {
            format!(
                "status.hard of ResourceQuota {name} is empty: check that kube-controller-manager, which writes it, is running"
            )
        } else {
            let known = known.join(", ");
            format!(
                "ResourceQuota {name} does not limit {resource}: use a resource of its spec.hard ({known}), or add {resource} to it"
            )
        };
        return Err(Failure::new(Reason::ResourceNotInQuota, message));
    };
    if let (Ok(value), Ok(limit)) = (Amount::quantity(used_of), Amount::quantity(hard_of)) {
        return Ok(Figure { value, limit: Some(limit) });
    }
    let message = format!(
        "the status of ResourceQuota {name} has {used_of:?} used of {hard_of:?}, which are not both Quantities: check which client writes it"
    );
    Err(Failure::new(Reason::QuotaUnavailable, message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figure_has_the_used_amount_and_the_hard_limit() {
        let named = |resource: &str| QuotaResource { name: "team-a".into(), resource: resource.into() };
        let quota: SlimQuota = serde_json::from_value(json!({
            "metadata": {"name": "team-a"},
            "spec": {"hard": {"limits.memory": "128Gi"}},
            "status": {
                "hard": {"limits.memory": "64Gi", "requests.nvidia.com/gpu": "4", "odd": "many", "new": "1"},
                "used": {"limits.memory": "512Mi", "requests.nvidia.com/gpu": "3", "odd": "1"}
            }
        }))
        .unwrap();
        let of = |resource| figure(Some(&quota.status), &named(resource));
        let memory = of("limits.memory").unwrap();
        assert_eq!(memory.value.percent_of(memory.limit.as_ref().unwrap()).unwrap().to_string(), "0.781");
        assert_eq!(of("requests.nvidia.com/gpu").unwrap().value.to_string(), "3");
        assert_eq!(of("odd").unwrap_err().reason, Reason::QuotaUnavailable);
        assert_eq!(of("new").unwrap_err().reason, Reason::ResourceNotInQuota, "the resource is not counted yet");
        let absent = of("pods").unwrap_err();
        assert!(
            absent.message.contains("does not limit pods") && absent.message.contains("limits.memory"),
            "{}",
            absent.message
        );
        assert_eq!(figure(None, &named("pods")).unwrap_err().reason, Reason::QuotaNotFound);
        let fresh = figure(Some(&Usage::default()), &named("pods")).unwrap_err();
        assert!(fresh.message.contains("kube-controller-manager"), "{}", fresh.message);
    }
}
