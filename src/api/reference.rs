//! What a Webhook names: keys of Secrets and `ConfigMaps`.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The label of a Secret that may be sent in clear, as a URL or in a header: with the value `true`. So nobody who may create Webhooks, and
/// may not read Secrets, is sent one.
pub const SEND_IN_CLEAR: &str = "llmtune.io/send-in-clear";

/// Where a text lies that is a secret, and is sent in clear.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ValueSource {
    /// A key of a Secret that bears the label `llmtune.io/send-in-clear: "true"`. White space at the end of what it holds is ignored.
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub secret_key_ref: SecretKeyReference,
}

/// A key of a Secret in the Webhook's namespace; a `ClusterWebhook`'s in the operator's.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyReference {
    /// The Secret's name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be a Secret's name: lower-case letters, digits, '-' and '.', such as ci-hook"))]
    pub name: String,
    /// The key.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("key must be a key of the Secret: letters, digits, '-', '_' and '.', such as token"))]
    pub key: String,
}

/// The Secret that signs deliveries, in the Webhook's namespace; a `ClusterWebhook`'s in the operator's.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.key) || !has(self.previousKey) || self.key != self.previousKey")
    .message("previousKey must be another than key: name the key there that holds the secret before this one"))]
pub struct SecretReference {
    /// The Secret's name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be a Secret's name: lower-case letters, digits, '-' and '.', such as ci-hook"))]
    pub name: String,
    /// The key whose bytes sign deliveries.
    #[serde(default = "default_secret_key")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("key must be a key of the Secret: letters, digits, '-', '_' and '.', such as secret"))]
    pub key: String,
    /// The key whose bytes signed deliveries before. While the Secret has it, deliveries are signed with both, so that receivers with
    /// either acknowledge them.
    #[serde(default = "default_previous_key")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("previousKey must be a key of the Secret: letters, digits, '-', '_' and '.', such as previous"))]
    pub previous_key: String,
}

/// The TLS of one endpoint. Both objects are in the Webhook's namespace, a `ClusterWebhook`'s in the operator's, and are read again within 30 seconds of a change.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.caBundleRef) || has(self.clientCertificateRef)")
    .message("tls must have caBundleRef, clientCertificateRef or both: add one, or remove tls"))]
pub struct Tls {
    /// The PEM certificates of issuers that this endpoint's certificate may have, beside those that the operator trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub ca_bundle_ref: Option<BundleReference>,
    /// A Secret of type kubernetes.io/tls, with the certificate (`tls.crt`) and the key (`tls.key`) that the endpoint is shown (mTLS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub client_certificate_ref: Option<CertificateReference>,
}

/// A key of a `ConfigMap` or a Secret in the Webhook's namespace; a `ClusterWebhook`'s in the operator's.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BundleReference {
    /// Which kind of object it is.
    pub kind: BundleKind,
    /// The object's name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be an object's name: lower-case letters, digits, '-' and '.', such as internal-ca"))]
    pub name: String,
    /// The key that holds PEM certificates.
    #[serde(default = "default_bundle_key")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("key must be a key of the object: letters, digits, '-', '_' and '.', such as ca.crt"))]
    pub key: String,
}

/// The kinds of object that a bundle may lie in.
#[derive(JsonSchema, Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub enum BundleKind {
    ConfigMap,
    Secret,
}

/// A Secret in the Webhook's namespace; a `ClusterWebhook`'s in the operator's.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CertificateReference {
    /// The Secret's name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be a Secret's name: lower-case letters, digits, '-' and '.', such as ci-client"))]
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
