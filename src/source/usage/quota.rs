//! What is used of a `ResourceQuota`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceQuota;
use kube::{Resource, core::ObjectMeta};
use serde::Deserialize;

use super::plan::{Failure, Figure, Reason};
use llmtune_api::usage_threshold::QuotaResource;
use llmtune_core::event::amount::Amount;

/// A `ResourceQuota`, as far as it is read.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = ResourceQuota)]
pub struct SlimQuota {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub status: Usage,
}

/// What a quota allows, and what is used of it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Usage {
    hard: BTreeMap<String, String>,
    used: BTreeMap<String, String>,
}

/// What is used of the resource; `None`: there is no such quota.
pub fn figure(usage: Option<&Usage>, named: &QuotaResource) -> Result<Figure, Failure> {
    let QuotaResource { name, resource } = named;
    let Some(Usage { hard, used }) = usage else {
        let say = format!(
            "there is no ResourceQuota {name} in this namespace: create it, or correct spec.resourceQuota.name"
        );
        return Err(Failure::new(Reason::QuotaNotFound, say));
    };
    let (Some(hard_of), Some(used_of)) = (hard.get(resource), used.get(resource)) else {
        let known: Vec<&str> = hard.keys().map(String::as_str).take(16).collect();
        let say = if known.is_empty() {
            format!("the status of ResourceQuota {name} has no hard yet: kube-controller-manager writes it")
        } else {
            let known = known.join(", ");
            format!(
                "ResourceQuota {name} limits no {resource}: write one that its hard names ({known}), or add it there"
            )
        };
        return Err(Failure::new(Reason::ResourceNotInQuota, say));
    };
    if let (Ok(value), Ok(limit)) = (Amount::quantity(used_of), Amount::quantity(hard_of)) {
        return Ok(Figure { value, limit: Some(limit) });
    }
    let say = format!(
        "ResourceQuota {name} says {used_of:?} of {hard_of:?}, which are no quantities: see who writes its status"
    );
    Err(Failure::new(Reason::QuotaUnavailable, say))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_used_of_a_quota_is_a_figure_with_the_limit_that_the_quota_brings() {
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
        assert_eq!(of("new").unwrap_err().reason, Reason::ResourceNotInQuota, "it is not counted yet");
        let lacks = of("pods").unwrap_err();
        assert!(
            lacks.message.contains("limits no pods") && lacks.message.contains("limits.memory"),
            "{}",
            lacks.message
        );
        assert_eq!(figure(None, &named("pods")).unwrap_err().reason, Reason::QuotaNotFound);
        let fresh = figure(Some(&Usage::default()), &named("pods")).unwrap_err();
        assert!(fresh.message.contains("kube-controller-manager"), "{}", fresh.message);
    }
}
