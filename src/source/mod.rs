//! Sources: what is watched, and how an object becomes an observation. A source only says which stage an object is in and
//! its facts; the lifecycle decides what that means. Objects are dropped once observed.

pub mod deployment;
mod frame;
pub mod health;
mod slim;
pub mod training_job;
pub mod usage;
pub mod watch;

use kube::Resource;
use serde::de::DeserializeOwned;

use self::{deployment::Deployments, training_job::TrainingJobs};
use crate::event::object::Object;

/// A kind that is watched, and how it is read.
pub trait Source: Send + Sync + 'static {
    /// The kind, as kube knows it.
    type Kind: Resource<DynamicType = ()>;
    /// The parts of the object that are read; everything else is skipped while parsing.
    type Slim: DeserializeOwned + Send;
    /// The kind's name, for logs, metrics and `/readyz`.
    const KIND: &'static str;
    /// `resource.group`: part of every event id, so it never changes.
    const RESOURCE: &'static str;
    /// The label selector that the apiserver applies.
    const SELECTOR: Option<&'static str>;

    /// What the source says of the object; an error names what is wrong with it.
    fn read(slim: Self::Slim) -> Result<Object, Malformed>;

    /// What the ledger calls the watch of one namespace, or of all.
    #[must_use]
    fn watch_name(namespace: Option<&str>) -> String {
        let selected = Self::SELECTOR.map(|selector| format!(" where {selector}")).unwrap_or_default();
        let scope = namespace.map(|namespace| format!(" in {namespace}")).unwrap_or_default();
        format!("{}{selected}{scope}", Self::RESOURCE)
    }

    /// The path of the collection, in one namespace or in all.
    #[must_use]
    fn path(namespace: Option<&str>) -> String {
        Self::Kind::url_path(&(), namespace)
    }
}

/// An object that cannot be read; it is counted, named in the log, and disturbs no other.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// A part that is read has another type than the API says.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// `metadata.uid` is no UUID.
    #[error("metadata.uid {0:?} is no UUID")]
    Uid(String),
    /// `metadata.resourceVersion` is no number: the apiserver is older than Kubernetes 1.35, or none.
    #[error("metadata.resourceVersion {0:?} is no decimal number")]
    Version(String),
}

/// Whether a controller of this API group and kind speaks for the objects that it owns.
fn is_watched_kind(api_version: &str, kind: &str) -> bool {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    speaks_of::<TrainingJobs>(group, kind) || speaks_of::<Deployments>(group, kind)
}

fn speaks_of<S: Source>(group: &str, kind: &str) -> bool {
    kind == S::KIND && group == S::Kind::group(&())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What event ids, metrics and logs call a kind is what the API calls it.
    fn is_named_as_in_the_api<S: Source>() -> bool {
        S::KIND == S::Kind::kind(&()) && S::RESOURCE == format!("{}.{}", S::Kind::plural(&()), S::Kind::group(&()))
    }

    #[test]
    fn sources_are_named_as_in_the_api() {
        assert!(is_named_as_in_the_api::<TrainingJobs>() && is_named_as_in_the_api::<Deployments>());
        assert_eq!(TrainingJobs::path(Some("ns")), "/apis/llmtune.io/v1alpha1/namespaces/ns/trainingjobs");
        assert_eq!(Deployments::path(None), "/apis/apps/v1/deployments");
    }

    #[test]
    fn a_controller_is_known_by_group_and_kind_in_whatever_version() {
        assert!(is_watched_kind("apps/v2", "Deployment") && is_watched_kind("llmtune.io/v1beta1", "TrainingJob"));
        assert!(!is_watched_kind("apps/v1", "ReplicaSet") && !is_watched_kind("v1", "Deployment"));
    }
}
