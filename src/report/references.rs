//! References to objects, for owners, Events and statuses.

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Resource, core::PartialObjectMetaExt};

use llmtune_api::{
    ClusterWebhook, TrainingJob, UsageThreshold, Webhook, WebhookDelivery, webhook_delivery::WebhookKind,
};
use llmtune_core::{
    event::object::{Facts, Object, Uid},
    subscription::WebhookRef,
};

/// Returns the reference of Events to a Webhook.
#[must_use]
pub fn webhook(webhook: &WebhookRef) -> ObjectReference {
    let metadata = of_webhook(webhook);
    match webhook.kind {
        WebhookKind::Webhook => metadata.into_request_partial::<Webhook>().object_ref(&()),
        WebhookKind::ClusterWebhook => metadata.into_request_partial::<ClusterWebhook>().object_ref(&()),
    }
}

/// Returns the reference of Events to a `WebhookDelivery`.
#[must_use]
pub fn delivery(uid: Uid, namespace: &str, name: &str) -> ObjectReference {
    metadata(uid, namespace, name).into_request_partial::<WebhookDelivery>().object_ref(&())
}

/// Returns the owner reference to a Webhook.
#[must_use]
pub fn owner(webhook: &WebhookRef) -> Option<OwnerReference> {
    let metadata = of_webhook(webhook);
    match webhook.kind {
        WebhookKind::Webhook => metadata.into_request_partial::<Webhook>().owner_ref(&()),
        WebhookKind::ClusterWebhook => metadata.into_request_partial::<ClusterWebhook>().owner_ref(&()),
    }
}

fn of_webhook(webhook: &WebhookRef) -> ObjectMeta {
    let metadata = metadata(webhook.uid, webhook.namespace(), &webhook.name);
    ObjectMeta { namespace: metadata.namespace.filter(|namespace| !namespace.is_empty()), ..metadata }
}

/// Returns the reference to the object of an event.
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
    use llmtune_core::event::EventType;

    #[test]
    fn references_have_the_apiservers_kind_and_version() {
        let uid = Uid::from_u128(7);
        for (event, api_version, kind) in [
            (EventType::TrainingFailed, "llmtune.io/v1alpha1", "TrainingJob"),
            (EventType::ModelDeployed, "apps/v1", "Deployment"),
            (EventType::UsageThresholdReached, "llmtune.io/v1alpha1", "UsageThreshold"),
        ] {
            let reference = object(&Object::of_event(event, uid, "research".into(), "llama".into()));
            assert_eq!(reference.api_version.as_deref(), Some(api_version));
            assert_eq!(reference.kind.as_deref(), Some(kind));
            assert_eq!(reference.namespace.as_deref(), Some("research"));
            assert_eq!(reference.name.as_deref(), Some("llama"));
            assert_eq!(reference.uid, Some(uid.to_string()));
        }
        for (kind, named, namespace) in
            [(WebhookKind::Webhook, "Webhook", Some("home")), (WebhookKind::ClusterWebhook, "ClusterWebhook", None)]
        {
            let ci = WebhookRef { kind, uid, home: "home".into(), name: "ci".into() };
            let owner = owner(&ci).unwrap();
            assert_eq!((owner.api_version.as_str(), owner.kind.as_str()), ("llmtune.io/v1alpha1", named));
            assert_eq!((owner.name.as_str(), owner.uid), ("ci", uid.to_string()));
            let reference = webhook(&ci);
            assert_eq!((reference.kind.as_deref(), reference.namespace.as_deref()), (Some(named), namespace));
        }
    }
}
