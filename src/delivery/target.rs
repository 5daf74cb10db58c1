//! What attempts of one Webhook need beside the events: where they go, the headers that they bear, what signs them, and by which TLS.

use std::sync::Arc;

use http::HeaderMap;
use reqwest::Url;

use super::{failure::Redaction, sign::Keys};
use crate::transport::tls::TlsConfig;

/// What one Webhook adds to its attempts; `subscription` makes it once all that it lies in has been read.
pub struct Target {
    /// The namespace whose connections it is sent over: the Webhook's, or the operator's for a `ClusterWebhook`.
    pub tenant: Arc<str>,
    /// Where to send.
    pub url: Url,
    /// What to add to the operator's own headers.
    pub headers: HeaderMap,
    /// What to sign with.
    pub keys: Option<Arc<Keys>>,
    /// Its own TLS.
    pub tls: Option<Arc<TlsConfig>>,
    /// What may be told of its attempts.
    pub discretion: Redaction,
}
