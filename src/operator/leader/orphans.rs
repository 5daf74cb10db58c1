//! What was pending to deleted Webhooks. One of the same kind, namespace, name and URL that is created within [`GRACE`] takes it over, as
//! `kubectl replace --force` and some other tools delete and create; else it is dropped, counted, and an Event says so.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Known, Leader};
use crate::{report::Note, subscription::owner};
use llmtune_api::webhook_delivery::WebhookKind;
use llmtune_core::{event::object::Uid, subscription::WebhookRef};

/// How long what was pending to a deleted Webhook waits for another. Where the operator has just started, from then on.
const GRACE: Duration = Duration::from_secs(60);

/// Deleted Webhooks with pending deliveries, by whom these belong to.
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

    /// Takes out those that nobody took over in time.
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
    /// A Webhook is deleted.
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

    /// What was recovered for Webhooks that are not there: they were deleted while nobody led. All Webhooks are known now.
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
            // A release before this one did not record who it belongs to.
            let dropped = self.engine.unsubscribe(uid);
            if dropped > 0 {
                warn!(webhook = %uid, dropped, "a Webhook was deleted while no operator ran; what was pending to it is dropped");
                self.context.metrics.dropped_with_webhook("", dropped);
            }
        }
    }

    /// The Webhook that is there already takes over what belongs to it: where a list shows both changes at once, the new one comes first.
    fn adopt_by_namesake(&mut self, owner: &Arc<str>) {
        let heir = self.webhooks.iter().find(|(_, known)| known.owner.as_ref() == Some(owner)).map(|(uid, _)| *uid);
        if let Some(heir) = heir {
            self.adopt(heir, owner);
        }
    }

    /// Hands to a Webhook what was pending to a deleted one of the same owner.
    pub(super) fn adopt(&mut self, heir: Uid, owner: &Arc<str>) {
        for Orphan { webhook, .. } in self.orphans.0.remove(owner).unwrap_or_default() {
            // A list had lacked it, and it is there again.
            if self.webhooks.contains_key(&webhook.uid) {
                continue;
            }
            let pending = self.engine.take_over(webhook.uid, heir);
            let (namespace, name) = (webhook.namespace(), &webhook.name);
            info!(
                namespace,
                webhook = name,
                pending,
                "the {} was created again and takes over what was pending",
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
            "the {} was deleted; what was pending to it is dropped",
            webhook.kind
        );
        self.context.metrics.dropped_with_webhook(namespace, dropped);
        self.note(Note::DroppedWithWebhook { webhook: webhook.clone(), dropped });
    }
}
