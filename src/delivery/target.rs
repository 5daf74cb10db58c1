//! What attempts of one Webhook need besides the event: URL, headers, signing keys and TLS.

use std::sync::Arc;

use http::HeaderMap;
use reqwest::Url;

use super::{failure::Redaction, sign::Keys};
use crate::transport::tls::TlsConfig;

/// The target of one Webhook. `subscription` builds it after reading all referenced objects.
pub struct Target {
    /// The namespace whose connections are used: the Webhook's, or the operator's for a `ClusterWebhook`.
    pub tenant: Arc<str>,
    /// The URL of the endpoint.
    pub url: Url,
    /// Headers in addition to the operator's own.
    pub headers: HeaderMap,
    /// The signing keys.
    pub keys: Option<Arc<Keys>>,
    /// The Webhook's own TLS configuration.
    pub tls: Option<Arc<TlsConfig>>,
    /// The secret parts of its attempts.
    pub discretion: Redaction,
}
