//! Sources watch objects and turn each into an observation for the engine. A source returns only the stage and the
//! facts of an object; the lifecycle decides which events result. The object itself is dropped after it is read.

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

/// A watched kind, and how to read its objects.
pub trait Source: Send + Sync + 'static {
    /// The fields of the object that are read. The parser skips all others.
    type Slim: DeserializeOwned + Send;

    /// The kind's name, for logs, metrics and `/readyz`.
    fn kind(&self) -> &str;

    /// The name of the source in event ids, so it must never change. For a built-in source it is `resource.group`.
    fn name(&self) -> &str;

    /// The label selector that the apiserver applies.
    fn selector(&self) -> Option<&str>;

    /// The path of the collection in one namespace or in all, or `None` until it is [located](Self::locate).
    fn path(&self, namespace: Option<&str>) -> Option<String>;

    /// Looks up the path of the collection if it is not known yet.
    fn locate(&self, client: &Client) -> impl Future<Output = Result<Whereabouts, kube::Error>> + Send {
        let _ = client;
        async { Ok(Whereabouts::Known) }
    }

    /// Reads the stage and the facts of an object.
    fn read(&self, slim: Self::Slim) -> Result<Object, Malformed>;

    /// The name in the ledger of the watch of one namespace, or of all. Records under another name do not belong to it.
    fn watch_name(&self, namespace: Option<&str>) -> String {
        let selected = self.selector().map(|selector| format!(" where {selector}")).unwrap_or_default();
        let scope = namespace.map(|namespace| format!(" in {namespace}")).unwrap_or_default();
        format!("{}{selected}{scope}", self.name())
    }

    /// The manifest that grants the operator list and watch on the kind, or `None` if the installation includes it.
    fn grant(&self) -> Option<String> {
        None
    }
}

/// The result of [`Source::locate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// The path is known.
    Known,
    /// The apiserver does not serve the kind.
    NotServed,
    /// The kind is cluster-scoped, so no Webhook would receive its events.
    NotNamespaced,
}

/// Why an object cannot be read. Such an object is counted and logged; it does not affect others.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// A field that is read has another type than in the API.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// `metadata.uid` is not a UUID.
    #[error("metadata.uid {0:?} is not a UUID")]
    Uid(String),
    /// `metadata.resourceVersion` is not a number, for example because the apiserver is older than Kubernetes 1.35.
    #[error("metadata.resourceVersion {0:?} is not a decimal number: use an apiserver of Kubernetes 1.35 or later")]
    Version(String),
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use kube::Resource;

    use super::{deployment::Deployments, training_job::TrainingJobs, *};
    use llmtune_api::TrainingJob;

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
