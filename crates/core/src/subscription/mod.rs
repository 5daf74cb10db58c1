//! Which Webhooks an event concerns.

pub mod filter;
pub mod index;
pub mod namespaces;

use std::fmt;

use llmtune_api::webhook_delivery::WebhookKind;

use crate::event::object::Uid;

/// Identifies a Webhook or `ClusterWebhook`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WebhookRef {
    pub kind: WebhookKind,
    pub uid: Uid,
    /// The namespace of its references and of its `WebhookDelivery` objects: the namespace of a Webhook, or the
    /// operator's namespace for a `ClusterWebhook`.
    pub home: String,
    pub name: String,
}

impl WebhookRef {
    /// The namespace of the Webhook. Empty for a `ClusterWebhook`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        match self.kind {
            WebhookKind::Webhook => &self.home,
            WebhookKind::ClusterWebhook => "",
        }
    }
}

/// Formats kind and name, such as `Webhook ci`.
impl fmt::Display for WebhookRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}
