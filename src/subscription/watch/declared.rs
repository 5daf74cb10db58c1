//! Webhook and `ClusterWebhook` behind one trait.

use kube::{Resource, api::ObjectMeta};

use llmtune_api::{
    ClusterWebhook, Webhook,
    selector::LabelSelector,
    webhook::{WebhookSpec, WebhookStatus},
    webhook_delivery::WebhookKind,
};
use llmtune_core::subscription::index::Scope;

/// A kind that declares a subscription.
pub(super) trait Subscribes: Resource<DynamicType = ()> {
    const KIND: WebhookKind;

    fn declared(self) -> Declared;
}

/// The parts of an object that declares a subscription.
pub(super) struct Declared {
    pub(super) metadata: ObjectMeta,
    pub(super) scope: Scope,
    pub(super) spec: WebhookSpec,
    pub(super) status: WebhookStatus,
}

impl Subscribes for Webhook {
    const KIND: WebhookKind = WebhookKind::Webhook;

    fn declared(self) -> Declared {
        let Self { metadata, spec, status } = self;
        let scope = Scope::Namespace(metadata.namespace.clone().unwrap_or_default());
        Declared { metadata, scope, spec, status: status.unwrap_or_default() }
    }
}

impl Subscribes for ClusterWebhook {
    const KIND: WebhookKind = WebhookKind::ClusterWebhook;

    fn declared(self) -> Declared {
        let Self { metadata, spec, status } = self;
        let selector = spec.namespace_selector.as_ref().map(LabelSelector::selector).unwrap_or_default();
        Declared { metadata, scope: Scope::Cluster(selector), spec: spec.webhook, status: status.unwrap_or_default() }
    }
}
