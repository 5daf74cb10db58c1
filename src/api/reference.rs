//! What a Webhook names: keys of Secrets and `ConfigMaps`.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A key of a Secret in the Webhook's namespace.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
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
}

/// The TLS of one endpoint. Both objects are in the Webhook's namespace, and are read again within 30 seconds of a change.
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

/// A key of a `ConfigMap` or a Secret in the Webhook's namespace.
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

/// A Secret in the Webhook's namespace.
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
