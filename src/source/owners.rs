//! Who speaks for whom: an object whose controller is itself of a watched kind sends nothing of its own.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
};

use k8s_openapi::api::apps::v1::Deployment;
use kube::Resource;

use llmtune_api::TrainingJob;

/// An API group, empty for the core's, and a kind in it, of whatever version.
pub type GroupKind = (String, String);

/// The kinds that are watched now, shared by all sources.
#[derive(Clone, Debug)]
pub struct WatchedKinds(Arc<RwLock<HashSet<GroupKind>>>);

impl WatchedKinds {
    /// Takes these kinds for the watched ones, beside the built-in ones.
    pub fn set(&self, kinds: impl IntoIterator<Item = GroupKind>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = built_in().chain(kinds).collect();
    }

    /// Whether a controller of this `apiVersion` and `kind` speaks for the objects that it owns.
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
    fn a_controller_is_known_by_group_and_kind_in_whatever_version() {
        let kinds = WatchedKinds::default();
        assert!(kinds.contain("apps/v2", "Deployment") && kinds.contain("llmtune.io/v1beta1", "TrainingJob"));
        assert!(!kinds.contain("apps/v1", "ReplicaSet") && !kinds.contain("v1", "Deployment"));
        kinds.set([("batch".into(), "Job".into())]);
        assert!(kinds.contain("batch/v1", "Job") && kinds.contain("apps/v1", "Deployment"));
        kinds.set([]);
        assert!(!kinds.contain("batch/v1", "Job"));
    }
}
