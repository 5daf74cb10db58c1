//! Sources: what is watched, and how an object becomes an observation. A source only says which stage an object is in and
//! its facts; the lifecycle decides what that means. Objects are dropped once observed.

pub mod catalog;
pub mod custom_source;
pub mod deployment;
pub mod frame;
pub mod health;
mod metrics;
pub mod namespaces;
#[cfg(test)]
mod observed;
pub mod owners;
mod slim;
pub mod training_job;
pub mod usage;
pub mod watch;

use kube::Client;
use serde::de::DeserializeOwned;

use llmtune_core::event::object::Object;

/// A kind that is watched, and how it is read.
pub trait Source: Send + Sync + 'static {
    /// The parts of the object that are read; everything else is skipped while parsing.
    type Slim: DeserializeOwned + Send;

    /// The kind's name, for logs, metrics and `/readyz`.
    fn kind(&self) -> &str;

    /// What names the source in every event id, so that it never changes: `resource.group` of a built-in one.
    fn name(&self) -> &str;

    /// The label selector that the apiserver applies.
    fn selector(&self) -> Option<&str>;

    /// The path of the collection, in one namespace or in all; `None` until it is [located](Self::locate).
    fn path(&self, namespace: Option<&str>) -> Option<String>;

    /// Finds out where the collection is, where that is not known.
    fn locate(&self, client: &Client) -> impl Future<Output = Result<Whereabouts, kube::Error>> + Send {
        let _ = client;
        async { Ok(Whereabouts::Known) }
    }

    /// What the source says of the object; an error names what is wrong with it.
    fn read(&self, slim: Self::Slim) -> Result<Object, Malformed>;

    /// What the ledger calls the watch of one namespace, or of all: records under another name are not this watch's.
    fn watch_name(&self, namespace: Option<&str>) -> String {
        let selected = self.selector().map(|selector| format!(" where {selector}")).unwrap_or_default();
        let scope = namespace.map(|namespace| format!(" in {namespace}")).unwrap_or_default();
        format!("{}{selected}{scope}", self.name())
    }

    /// What to apply so that the operator may list and watch the kind; `None`: what the operator is installed with.
    fn grant(&self) -> Option<String> {
        None
    }
}

/// What is known of where a kind's objects are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// The path is known.
    Known,
    /// The apiserver serves no such kind.
    NotServed,
    /// The kind's objects belong to no namespace, so that no Webhook would see their events.
    NotNamespaced,
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
    #[error("metadata.resourceVersion {0:?} is no decimal number: the apiserver must be of Kubernetes 1.35 or later")]
    Version(String),
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use kube::Resource;

    use super::{deployment::Deployments, training_job::TrainingJobs, *};
    use llmtune_api::TrainingJob;

    /// What event ids, metrics and logs call a kind is what the API calls it.
    fn is_named_as_in_the_api<K: Resource<DynamicType = ()>>(source: &impl Source) -> bool {
        source.kind() == K::kind(&())
            && source.name() == format!("{}.{}", K::plural(&()), K::group(&()))
            && source.path(None) == Some(K::url_path(&(), None))
    }

    #[test]
    fn sources_are_named_as_in_the_api() {
        let (jobs, deployments) = (TrainingJobs::default(), Deployments::default());
        assert!(is_named_as_in_the_api::<TrainingJob>(&jobs) && is_named_as_in_the_api::<Deployment>(&deployments));
        assert_eq!(jobs.path(Some("ns")).unwrap(), "/apis/llmtune.io/v1alpha1/namespaces/ns/trainingjobs");
        assert_eq!(deployments.path(None).unwrap(), "/apis/apps/v1/deployments");
        assert_eq!(jobs.watch_name(Some("ns")), "trainingjobs.llmtune.io in ns");
        assert_eq!(deployments.watch_name(None), "deployments.apps where llmtune.io/model-endpoint=true");
    }
}
