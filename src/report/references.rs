//! Objects as others refer to them: owners, Events, statuses.

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::ObjectReference},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Resource,
    core::{PartialObjectMeta, PartialObjectMetaExt},
};

use crate::{
    api::{TrainingJob, UsageThreshold, Webhook},
    event::object::{Facts, Object, Uid},
    subscription::resolve::WebhookRef,
};

/// A Webhook, as far as a reference to it goes.
#[must_use]
pub fn webhook(WebhookRef { uid, namespace, name }: &WebhookRef) -> PartialObjectMeta<Webhook> {
    metadata(*uid, namespace, name).into_request_partial()
}

/// The object that an event is about.
#[must_use]
pub fn object(Object { uid, namespace, name, kind, facts, .. }: &Object) -> ObjectReference {
    let metadata = metadata(*uid, namespace, name);
    if let Some(kind) = kind {
        return ObjectReference {
            api_version: Some(kind.api_version.clone()),
            kind: Some(kind.kind.clone()),
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            ..ObjectReference::default()
        };
    }
    match facts {
        Facts::Training(_) => metadata.into_request_partial::<TrainingJob>().object_ref(&()),
        Facts::Serving(_) => metadata.into_request_partial::<Deployment>().object_ref(&()),
        Facts::Usage(_) => metadata.into_request_partial::<UsageThreshold>().object_ref(&()),
    }
}

fn metadata(uid: Uid, namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        uid: Some(uid.to_string()),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventType;

    #[test]
    fn a_reference_names_kind_and_version_as_the_apiserver_does() {
        let uid = Uid::from_u128(7);
        for (event, api_version, kind) in [
            (EventType::TrainingFailed, "llmtune.io/v1alpha1", "TrainingJob"),
            (EventType::ModelDeployed, "apps/v1", "Deployment"),
            (EventType::UsageThresholdReached, "llmtune.io/v1alpha1", "UsageThreshold"),
        ] {
            let reference = object(&event.outline(uid, "research".into(), "llama".into()));
            assert_eq!(reference.api_version.as_deref(), Some(api_version));
            assert_eq!(reference.kind.as_deref(), Some(kind));
            assert_eq!(reference.namespace.as_deref(), Some("research"));
            assert_eq!(reference.name.as_deref(), Some("llama"));
            assert_eq!(reference.uid, Some(uid.to_string()));
        }
        let owner =
            webhook(&WebhookRef { uid, namespace: "research".into(), name: "ci".into() }).owner_ref(&()).unwrap();
        assert_eq!((owner.api_version.as_str(), owner.kind.as_str()), ("llmtune.io/v1alpha1", "Webhook"));
        assert_eq!((owner.name.as_str(), owner.uid), ("ci", uid.to_string()));
    }
}
