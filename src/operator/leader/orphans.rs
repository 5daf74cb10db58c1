//! Pending deliveries of deleted Webhooks. A Webhook with the same kind, namespace, name and URL that is created within
//! [`GRACE`] takes them over, because `kubectl replace --force` and other tools delete and create. Otherwise they are
//! dropped and counted, and an Event reports them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Known, Leader};
use crate::{report::Note, subscription::owner};
use llmtune_api::webhook_delivery::WebhookKind;
use llmtune_core::{event::object::Uid, subscription::WebhookRef};

/// How long pending deliveries of a deleted Webhook wait for a successor, from its deletion or from the start of this
/// leader.
const GRACE: Duration = Duration::from_secs(60);

/// Deleted Webhooks with pending deliveries, by owner.
#[derive(Default)]
pub struct Orphans(HashMap<Arc<str>, Vec<Orphan>>);

struct Orphan {
    webhook: WebhookRef,
    until: Instant,
}

impl Orphans {
    fn add(&mut self, owner: Arc<str>, webhook: WebhookRef) {
        self.0.entry(owner).or_default().push(Orphan { webhook, until: Instant::now() + GRACE });
    }

    /// Removes and returns the Webhooks without a successor.
    fn expired(&mut self, now: Instant) -> Vec<WebhookRef> {
        let mut expired = Vec::new();
        self.0.retain(|_, orphans| {
            expired.extend(orphans.extract_if(.., |orphan| orphan.until <= now).map(|orphan| orphan.webhook));
            !orphans.is_empty()
        });
        expired
    }
}

impl Leader {
    /// Records a deleted Webhook.
    pub(super) fn orphaned(&mut self, Known { webhook, owner, .. }: Known) {
        let pending = self.engine.orphan(&webhook);
        info!(namespace = webhook.namespace(), webhook = webhook.name, pending, "the {} is deleted", webhook.kind);
        if pending == 0 {
            return;
        }
        let owner = owner.or_else(|| self.engine.owner(webhook.uid).0);
        let Some(owner) = owner else { return self.drop_orphan(&webhook) };
        self.orphans.add(Arc::clone(&owner), webhook);
        self.adopt_by_namesake(&owner);
    }

    /// Handles recovered deliveries whose Webhooks were deleted while no operator led. All Webhooks are known now.
    pub(super) fn recovered_orphans(&mut self) {
        for uid in self.engine.orphans() {
            if let (Some(owner), Some(namespace)) = self.engine.owner(uid)
                && let Some((kind, name)) = owner::named(&owner)
            {
                let home = match kind {
                    WebhookKind::Webhook => namespace,
                    WebhookKind::ClusterWebhook => self.context.args.namespace.clone(),
                };
                let webhook = WebhookRef { kind, uid, home, name: name.to_owned() };
                self.orphans.add(Arc::clone(&owner), webhook);
                self.adopt_by_namesake(&owner);
                continue;
            }
            // An earlier release did not record the owner.
            let dropped = self.engine.unsubscribe(uid);
            if dropped > 0 {
                warn!(webhook = %uid, dropped, "a Webhook was deleted while no operator ran; its pending deliveries are dropped");
                self.context.metrics.dropped_with_webhook("", dropped);
            }
        }
    }

    /// If a list shows a deletion and a creation at once, the new Webhook comes first. It takes over the deliveries of
    /// the deleted one.
    fn adopt_by_namesake(&mut self, owner: &Arc<str>) {
        let heir = self.webhooks.iter().find(|(_, known)| known.owner.as_ref() == Some(owner)).map(|(uid, _)| *uid);
        if let Some(heir) = heir {
            self.adopt(heir, owner);
        }
    }

    /// Moves the pending deliveries of a deleted Webhook with the same owner to this Webhook.
    pub(super) fn adopt(&mut self, heir: Uid, owner: &Arc<str>) {
        for Orphan { webhook, .. } in self.orphans.0.remove(owner).unwrap_or_default() {
            // A list lacked the Webhook, but it exists.
            if self.webhooks.contains_key(&webhook.uid) {
                continue;
            }
            let pending = self.engine.take_over(webhook.uid, heir);
            let (namespace, name) = (webhook.namespace(), &webhook.name);
            info!(
                namespace,
                webhook = name,
                pending,
                "the {} was created again and takes over the pending deliveries",
                webhook.kind
            );
            self.note(Note::Enqueued { webhook: heir, pending: self.engine.pending(heir) });
        }
    }

    pub(super) fn drop_expired_orphans(&mut self) {
        for webhook in self.orphans.expired(Instant::now()) {
            if !self.webhooks.contains_key(&webhook.uid) {
                self.drop_orphan(&webhook);
            }
        }
    }

    fn drop_orphan(&mut self, webhook: &WebhookRef) {
        let dropped = self.engine.unsubscribe(webhook.uid);
        if dropped == 0 {
            return;
        }
        let (namespace, name) = (webhook.namespace(), &webhook.name);
        warn!(
            namespace,
            webhook = name,
            dropped,
            "the {} was deleted; its pending deliveries are dropped",
            webhook.kind
        );
        self.context.metrics.dropped_with_webhook(namespace, dropped);
        self.note(Note::DroppedWithWebhook { webhook: webhook.clone(), dropped });
    }
}
