//! References to keys of Secrets and `ConfigMaps`.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Label of a Secret that may be sent in clear, as a URL or in a header; its value must be `true`. Without it, anyone who may create
/// Webhooks could have Secrets sent to themselves that they may not read.
pub const SEND_IN_CLEAR: &str = "llmtune.io/send-in-clear";

/// Reference to a secret text that is sent in clear.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ValueSource {
    /// A key of a Secret that has the label `llmtune.io/send-in-clear: "true"`. White space at the end of the value is ignored.
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub secret_key_ref: SecretKeyReference,
}

/// A key of a Secret in the Webhook's namespace (`ClusterWebhook`: the operator's namespace).
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyReference {
    /// Name of the Secret.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be a Secret's name: lowercase letters, digits, '-' and '.', such as ci-hook"))]
    pub name: String,
    /// Key of the Secret.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("key must be a key of the Secret: letters, digits, '-', '_' and '.', such as token"))]
    pub key: String,
}

/// The Secret that signs deliveries, in the Webhook's namespace (`ClusterWebhook`: the operator's namespace).
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.key) || !has(self.previousKey) || self.key != self.previousKey")
    .message("previousKey must differ from key: name the key of the previous secret"))]
pub struct SecretReference {
    /// Name of the Secret.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be a Secret's name: lowercase letters, digits, '-' and '.', such as ci-hook"))]
    pub name: String,
    /// Key of the Secret whose value signs deliveries.
    #[serde(default = "default_secret_key")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("key must be a key of the Secret: letters, digits, '-', '_' and '.', such as secret"))]
    pub key: String,
    /// Key of the Secret whose value signed deliveries before a rotation. While the Secret has this key, deliveries are signed with both, and
    /// receivers that know either one accept them.
    #[serde(default = "default_previous_key")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("previousKey must be a key of the Secret: letters, digits, '-', '_' and '.', such as previous"))]
    pub previous_key: String,
}

/// TLS settings of one endpoint. Both objects are in the Webhook's namespace (`ClusterWebhook`: the operator's namespace). Changes take effect within 30 seconds.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.caBundleRef) || has(self.clientCertificateRef)")
    .message("tls must have caBundleRef, clientCertificateRef or both: add one, or remove tls"))]
pub struct Tls {
    /// PEM certificates of issuers to trust for this endpoint, in addition to those that the operator trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub ca_bundle_ref: Option<BundleReference>,
    /// A Secret of type kubernetes.io/tls with the client certificate (`tls.crt`) and its key (`tls.key`) for mTLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub client_certificate_ref: Option<CertificateReference>,
}

/// A key of a `ConfigMap` or a Secret in the Webhook's namespace (`ClusterWebhook`: the operator's namespace).
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BundleReference {
    /// Kind of the object.
    pub kind: BundleKind,
    /// Name of the object.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be an object's name: lowercase letters, digits, '-' and '.', such as internal-ca"))]
    pub name: String,
    /// Key that holds PEM certificates.
    #[serde(default = "default_bundle_key")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("key must be a key of the object: letters, digits, '-', '_' and '.', such as ca.crt"))]
    pub key: String,
}

/// Kinds of objects that may hold a CA bundle.
#[derive(JsonSchema, Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub enum BundleKind {
    ConfigMap,
    Secret,
}

/// A Secret in the Webhook's namespace (`ClusterWebhook`: the operator's namespace).
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CertificateReference {
    /// Name of the Secret.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be a Secret's name: lowercase letters, digits, '-' and '.', such as ci-client"))]
    pub name: String,
}

fn default_bundle_key() -> String {
    "ca.crt".into()
}

fn default_secret_key() -> String {
    "secret".into()
}

fn default_previous_key() -> String {
    "previous".into()
}
