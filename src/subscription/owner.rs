//! The owner of a pending delivery: the kind and the name of a Webhook, and a hash of these, its namespace and its URL.
//! A Webhook that is deleted and created again has another uid but the same owner, so it takes over the pending
//! deliveries. Pure.

use std::{fmt, sync::Arc};

use sha2::{Digest, Sha256};

use super::{reference::Place, url::UrlReference};
use llmtune_api::webhook_delivery::WebhookKind;
use llmtune_core::subscription::WebhookRef;

/// The owner for a Webhook with this URL, such as `Webhook/ci/0f3a…`. The hash has 16 hexadecimal digits.
#[must_use]
pub fn owner(webhook: &WebhookRef, url: &UrlReference) -> Arc<str> {
    let WebhookRef { kind, home, name, .. } = webhook;
    let mut hash = Sha256::new();
    let mut field = |value: &dyn fmt::Display| {
        let text = value.to_string();
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    };
    field(kind);
    field(home);
    field(name);
    match url {
        UrlReference::Given(url) => field(url),
        UrlReference::Secret(Place { object, key }) => {
            field(&"secret");
            field(&object.name);
            field(key);
        }
    }
    let digest = hash.finalize();
    let head = digest.iter().take(8).fold(0_u64, |head, byte| head << 8 | u64::from(*byte));
    format!("{kind}/{name}/{head:016x}").into()
}

/// The kind and the name of an owner, or `None` if a later release wrote it in another format.
#[must_use]
pub fn named(owner: &str) -> Option<(WebhookKind, &str)> {
    let mut parts = owner.split('/');
    let kind = match parts.next()? {
        "Webhook" => WebhookKind::Webhook,
        "ClusterWebhook" => WebhookKind::ClusterWebhook,
        _ => return None,
    };
    let name = parts.next().filter(|name| !name.is_empty())?;
    parts.next().filter(|_| parts.next().is_none()).map(|_| (kind, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::reference::{Named, ReferenceKind};
    use llmtune_core::event::object::Uid;

    #[test]
    fn owner_is_kind_namespace_name_and_url() {
        let webhook = |uid: u128| WebhookRef {
            kind: WebhookKind::Webhook,
            uid: Uid::from_u128(uid),
            home: "research".into(),
            name: "ci".into(),
        };
        let url = |text: &str| UrlReference::Given(text.parse().unwrap());
        let secret = |name: &str| {
            let object = Named { kind: ReferenceKind::Secret, namespace: "research".into(), name: name.into() };
            UrlReference::Secret(Place { object, key: "url".into() })
        };
        let first = owner(&webhook(1), &url("https://ci.example.com/a"));
        assert_eq!(first, owner(&webhook(2), &url("https://ci.example.com/a")));
        assert_eq!(named(&first), Some((WebhookKind::Webhook, "ci")));
        let cluster = WebhookRef { kind: WebhookKind::ClusterWebhook, ..webhook(1) };
        let others = [
            owner(&webhook(1), &url("https://ci.example.com/b")),
            owner(&webhook(1), &secret("a")),
            owner(&webhook(1), &secret("b")),
            owner(&cluster, &url("https://ci.example.com/a")),
            owner(&WebhookRef { home: "other".into(), ..webhook(1) }, &url("https://ci.example.com/a")),
            owner(&WebhookRef { name: "cd".into(), ..webhook(1) }, &url("https://ci.example.com/a")),
        ];
        let distinct: std::collections::HashSet<_> = others.iter().chain([&first]).collect();
        assert_eq!(distinct.len(), 7);
        for wrong in ["", "Webhook", "Webhook/ci", "Webhook//0", "Other/ci/0", "Webhook/ci/0/1"] {
            assert_eq!(named(wrong), None, "{wrong}");
        }
    }
}
