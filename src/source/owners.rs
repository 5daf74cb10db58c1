//! The watched kinds. An object whose controller is of a watched kind sends no events; its controller does.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
};

use k8s_openapi::api::apps::v1::Deployment;
use kube::Resource;

use llmtune_api::TrainingJob;

/// An API group (empty for the core group) and a kind, of any version.
pub type GroupKind = (String, String);

/// The watched kinds, shared by all sources.
#[derive(Clone, Debug)]
pub struct WatchedKinds(Arc<RwLock<HashSet<GroupKind>>>);

impl WatchedKinds {
    /// Replaces the watched kinds by these and the built-in ones.
    pub fn set(&self, kinds: impl IntoIterator<Item = GroupKind>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = built_in().chain(kinds).collect();
    }

    /// Whether this `apiVersion` and `kind` are of a watched kind. Objects that such a controller owns send no events.
    #[must_use]
    pub fn contain(&self, api_version: &str, kind: &str) -> bool {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let kinds = self.0.read().unwrap_or_else(PoisonError::into_inner);
        kinds.contains(&(group.to_owned(), kind.to_owned()))
    }
}

impl Default for WatchedKinds {
    /// The built-in kinds.
    fn default() -> Self {
        Self(Arc::new(RwLock::new(built_in().collect())))
    }
}

fn built_in() -> impl Iterator<Item = GroupKind> {
    [group_kind::<TrainingJob>(), group_kind::<Deployment>()].into_iter()
}

fn group_kind<K: Resource<DynamicType = ()>>() -> GroupKind {
    (K::group(&()).into_owned(), K::kind(&()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_match_by_group_and_kind_in_any_version() {
        let kinds = WatchedKinds::default();
        assert!(kinds.contain("apps/v2", "Deployment") && kinds.contain("llmtune.io/v1beta1", "TrainingJob"));
        assert!(!kinds.contain("apps/v1", "ReplicaSet") && !kinds.contain("v1", "Deployment"));
        kinds.set([("batch".into(), "Job".into())]);
        assert!(kinds.contain("batch/v1", "Job") && kinds.contain("apps/v1", "Deployment"));
        kinds.set([]);
        assert!(!kinds.contain("batch/v1", "Job"));
    }
}
