//! `ClusterWebhook`: a subscription of one URL to the events of many namespaces, for platform teams.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{
    selector::LabelSelector,
    webhook::{WebhookSpec, WebhookStatus, short_name},
};

/// Which events of which namespaces to send, where, and how.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "llmtune.io",
    version = "v1alpha1",
    kind = "ClusterWebhook",
    plural = "clusterwebhooks",
    shortname = "cwh",
    category = "llmtune",
    status = "WebhookStatus",
    derive = "PartialEq",
    doc = "A subscription of the cluster: every matching event of the selected namespaces is sent to the URL as a signed POST, and retried until the endpoint acknowledges it. Its Secrets, ConfigMaps and WebhookDeliveries are in the operator's namespace.",
    validation = short_name("ClusterWebhook")
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterWebhookSpec {
    /// The fields of a Webhook.
    #[serde(flatten)]
    pub webhook: WebhookSpec,
    /// Selects events by the labels of the object's Namespace. If absent or empty, it selects every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub namespace_selector: Option<LabelSelector>,
}
