//! The controller of Webhooks and `ClusterWebhooks`. It follows the objects, reads their specs and the objects that
//! they reference, and publishes the results to the leader loop.
//!
//! 1. A Webhook is published immediately, held, before its references are read, so events that occur in the meantime
//!    wait for it.
//! 2. A Webhook that selects Namespaces is published once these are listed. Until then its last published state stays
//!    in force.
//! 3. [`WebhookChange::Listed`] is sent once every Webhook that existed at the start has been published.
//! 4. Missing references are read again until they exist.
//! 5. A Webhook that this release cannot read, for example one of a newer release, is published as held: its deliveries
//!    wait, and events that match its last readable spec are added to them.
//! 6. While a filter is invalid, the last valid one stays in force. `status.inForce` preserves it across restarts.

mod declared;
mod listing;
pub mod namespaces;

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use kube::{Client, api::ObjectMeta, core::error_boundary::InvalidObject, runtime::watcher::Config};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{info, warn};

use super::{
    cached_target::CachedTarget,
    entry::{Missing, Reading, SubscriptionEntry},
    reader::Reader,
    reference::ReferenceError,
    resolve::{Plan, Resolved},
    sharing::Sharing,
};
use crate::objects::{self, Objects};
use declared::{Declared, Subscribes};
use listing::Listing;
use llmtune_api::{
    ClusterWebhook, Webhook,
    webhook::{FilterInForce, WebhookStatus},
    webhook_delivery::WebhookKind,
};
use llmtune_core::event::object::Uid;
use llmtune_core::subscription::{
    WebhookRef, filter,
    index::{Scope, Subscription},
};
use namespaces::{Asked, Namespaces};

/// The maximum number of concurrent reads of targets.
const CONCURRENT_READS: usize = 16;

/// A change of the Webhooks.
pub enum WebhookChange {
    /// A Webhook is new, or its spec, references or readiness have changed.
    Updated(Box<Update>),
    /// A Webhook is deleted.
    Removed(Uid),
    /// All Webhooks that existed at the start have been published. Sent once.
    Listed,
    /// A change of the Namespaces, while a `ClusterWebhook` selects by their labels.
    Namespace(namespaces::NamespaceChange),
}

/// The current state of a Webhook.
pub struct Update {
    pub webhook: WebhookRef,
    /// For the engine.
    pub subscription: Subscription,
    /// For attempts. `None` while a reference is missing or the spec is invalid.
    pub resolved: Option<Arc<Resolved>>,
    /// For the status. `None` while it is unknown.
    pub state: Option<SubscriptionState>,
    /// The status in the cluster, in the first update of the Webhook.
    pub found: Option<Box<WebhookStatus>>,
    /// The owner of its deliveries. `None` while the spec is invalid.
    pub owner: Option<Arc<str>>,
}

/// The state of a subscription, for the status.
#[derive(Clone, Debug, PartialEq)]
pub struct SubscriptionState {
    pub generation: i64,
    /// Scheme, host and port.
    pub endpoint: String,
    pub readiness: Readiness,
    /// An error in the spec that does not stop events, because something older is in force.
    pub fault: Option<Fault>,
    /// The filter in force, as the status records it.
    pub in_force: Option<FilterInForce>,
    /// Warnings for the user, each with the reason of its Event.
    pub warnings: Vec<(&'static str, String)>,
}

/// An invalid part of the spec. Something older is in force instead.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub reason: &'static str,
    pub message: String,
}

/// Whether a subscription is live.
#[derive(Clone, Debug, PartialEq)]
pub enum Readiness {
    /// Deliveries are sent.
    Live,
    /// Live, but `spec.suspend` holds its deliveries.
    Suspended,
    /// A reference is missing, or the operator lacks a right. `stalled` after a minute.
    Waiting { reason: &'static str, message: String, stalled: bool },
    /// The spec must be changed before it can work.
    Broken { reason: &'static str, message: String },
}

/// A Webhook, and the reference of its target that an attempt found missing.
pub type Lost = (Uid, Arc<CachedTarget>, ReferenceError);

/// The settings of the controller.
pub struct Settings {
    /// Whether Webhooks with an `http://` URL are invalid.
    pub require_https: bool,
    /// The namespace of the objects that `ClusterWebhooks` reference.
    pub home: String,
    /// The time for which the apiserver must list Webhooks but refuse to list `ClusterWebhooks`, because the kind is
    /// not installed or the right is missing, before the controller continues without them. An apiserver that has just
    /// started may refuse for a short time.
    pub patience: Duration,
}

/// The controller of the Webhooks of some namespaces, or of all Webhooks and `ClusterWebhooks`.
pub struct Controller {
    client: Client,
    changes: mpsc::Sender<WebhookChange>,
    entries: HashMap<Uid, SubscriptionEntry>,
    /// Webhooks that this release cannot read, with the subscription of their last readable spec.
    unreadable: HashMap<Uid, Option<Subscription>>,
    sharing: Sharing,
    namespaces: Namespaces,
    listing: Listing,
    reader: Arc<Reader>,
    readings: JoinSet<(Uid, Reading)>,
    permits: Arc<Semaphore>,
    settings: Settings,
}

impl Controller {
    /// Creates a controller that publishes to `changes`.
    #[must_use]
    pub fn new(client: Client, changes: mpsc::Sender<WebhookChange>, settings: Settings) -> Self {
        Self {
            changes,
            entries: HashMap::new(),
            unreadable: HashMap::new(),
            sharing: Sharing::default(),
            namespaces: Namespaces::new(client.clone()),
            listing: Listing::default(),
            reader: Arc::new(Reader::new(client.clone())),
            readings: JoinSet::new(),
            permits: Arc::new(Semaphore::new(CONCURRENT_READS)),
            settings,
            client,
        }
    }

    /// Runs until the receiver of the changes is dropped or a watch has ended. If `namespaces` is empty, the controller
    /// serves all namespaces and the `ClusterWebhooks`. `lost` receives references that attempts found missing, `asked`
    /// names of Namespaces to look up.
    pub async fn run(
        mut self,
        namespaces: Vec<String>,
        mut lost: mpsc::UnboundedReceiver<Lost>,
        mut asked: mpsc::UnboundedReceiver<Asked>,
    ) {
        let config = Config::default().timeout(30);
        let mut webhooks = Objects::<Webhook>::watch(&self.client, &namespaces, &config);
        // Roles cannot grant rights on cluster-scoped objects.
        let serves_cluster = namespaces.is_empty();
        let mut cluster_webhooks = serves_cluster.then(|| Objects::<ClusterWebhook>::watch_all(&self.client, &config));
        self.listing.cluster_webhooks = !serves_cluster;
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let give_up = self.listing.give_up_at(self.settings.patience);
            let alive = tokio::select! {
                change = webhooks.next() => match change {
                    Some(objects::ObjectChange::Listed) => {
                        self.listing.webhooks = Some(Instant::now());
                        true
                    }
                    Some(change) => self.changed(change).await,
                    None => false,
                },
                change = next_of(&mut cluster_webhooks) => match change {
                    Some(objects::ObjectChange::Listed) => {
                        self.listing.cluster_webhooks = true;
                        true
                    }
                    Some(objects::ObjectChange::Refused) => {
                        self.listing.refused.get_or_insert_with(Instant::now);
                        true
                    }
                    Some(change) => self.changed(change).await,
                    None => false,
                },
                change = self.namespaces.next() => match change {
                    Some(change) => self.namespace(change).await,
                    None => false,
                },
                Some(asked) = asked.recv() => {
                    self.namespaces.ask(asked);
                    true
                }
                Some((uid, target, error)) = lost.recv() => self.lost(uid, &target, error).await,
                Some(reading) = self.readings.join_next() => match reading {
                    Ok((uid, reading)) => self.read(uid, reading).await,
                    // Unreachable: reads are not canceled, and panics are caught.
                    Err(_) => false,
                },
                () = sleep_until(give_up.unwrap_or_else(Instant::now)), if give_up.is_some() => {
                    info!("ClusterWebhooks cannot be listed; continuing without them until they can");
                    self.listing.cluster_webhooks = true;
                    true
                }
                _ = tick.tick() => self.retry().await,
            };
            if !alive || !self.publish_listed().await {
                return;
            }
        }
    }

    /// Sends [`WebhookChange::Listed`] once all Webhooks are listed, and Namespaces if a Webhook selects by them.
    async fn publish_listed(&mut self) -> bool {
        let Listing { webhooks, cluster_webhooks, published, .. } = &self.listing;
        if *published || webhooks.is_none() || !cluster_webhooks {
            return true;
        }
        if !self.namespaces.are_listed() && self.entries.values().any(SubscriptionEntry::selects_namespaces) {
            return true;
        }
        self.listing.published = true;
        info!(webhooks = self.entries.len(), unreadable = self.unreadable.len(), "all Webhooks are listed");
        self.changes.send(WebhookChange::Listed).await.is_ok()
    }

    async fn changed<K: Subscribes>(&mut self, change: objects::ObjectChange<K>) -> bool {
        match change {
            objects::ObjectChange::Seen { uid, object: Ok(object), .. } => {
                let declared = object.declared();
                match self.reference(K::KIND, uid, &declared.metadata) {
                    Some(webhook) => self.applied(webhook, declared).await,
                    None => true,
                }
            }
            objects::ObjectChange::Seen { uid, object: Err(invalid), .. } => {
                match self.reference(K::KIND, uid, &invalid.metadata) {
                    Some(webhook) => self.skipped(webhook, *invalid).await,
                    None => true,
                }
            }
            objects::ObjectChange::Gone(uid) => self.deleted(K::KIND, uid).await,
            // `Objects` logs a refusal and retries.
            objects::ObjectChange::Listed | objects::ObjectChange::Refused => true,
        }
    }

    /// `None` for a Webhook without a namespace, which no apiserver sends.
    fn reference(&self, kind: WebhookKind, uid: Uid, metadata: &ObjectMeta) -> Option<WebhookRef> {
        let home = match kind {
            WebhookKind::Webhook => metadata.namespace.clone()?,
            WebhookKind::ClusterWebhook => self.settings.home.clone(),
        };
        Some(WebhookRef { kind, uid, home, name: metadata.name.clone()? })
    }

    async fn applied(&mut self, webhook: WebhookRef, declared: Declared) -> bool {
        let uid = webhook.uid;
        let generation = declared.metadata.generation.unwrap_or_default();
        self.unreadable.remove(&uid);
        let known = self.entries.remove(&uid);
        if let Some(known) = known {
            if known.generation == generation {
                self.entries.insert(uid, known);
                return true;
            }
            return self.enter(webhook, declared, generation, Some(known)).await;
        }
        self.enter(webhook, declared, generation, None).await
    }

    /// Handles a Webhook that this release cannot read. Its pending deliveries wait, and so do new events that match
    /// its last readable spec. Its status is not written, because it could not be read either.
    async fn skipped(&mut self, webhook: WebhookRef, invalid: InvalidObject) -> bool {
        let InvalidObject { error, metadata } = invalid;
        let generation = metadata.generation.unwrap_or_default();
        let (kind, uid, namespace, name) = (webhook.kind, webhook.uid, webhook.namespace(), &webhook.name);
        if self.entries.get(&uid).is_some_and(|known| known.generation == generation) {
            warn!(
                namespace,
                webhook = name,
                error,
                "the Webhook can no longer be read; its spec is unchanged and stays in force"
            );
            return true;
        }
        let entry = self.entries.remove(&uid);
        let known = entry.as_ref().map(SubscriptionEntry::subscription);
        let known = known.or_else(|| self.unreadable.remove(&uid).flatten());
        let known = known.map(|known| Subscription { generation, held: true, ..known });
        let consequence = if known.is_some() { "new events wait too" } else { "it gets no new events" };
        warn!(
            namespace,
            webhook = name,
            error,
            "the Webhook cannot be read: its pending deliveries wait, and {consequence}; correct it, or upgrade the operator to the release that it was written for"
        );
        self.unreadable.insert(uid, known.clone());
        let subscription = known.unwrap_or_else(|| Subscription::inert(&webhook, generation));
        let update = Update { webhook, subscription, resolved: None, state: None, found: None, owner: None };
        self.changes.send(WebhookChange::Updated(Box::new(update))).await.is_ok()
            && self.unshare(entry).await
            && self.follow_namespaces(kind).await
    }

    async fn enter(
        &mut self,
        webhook: WebhookRef,
        declared: Declared,
        generation: i64,
        known: Option<SubscriptionEntry>,
    ) -> bool {
        let Declared { scope, spec, status, .. } = declared;
        let plan = Plan::read(&spec, &webhook.home, self.settings.require_https);
        let (target, found, in_force) = if let Some(SubscriptionEntry { target, found, in_force, .. }) = known {
            (target, found, in_force)
        } else {
            let in_force = status.in_force.as_ref().and_then(filter::FilterInForce::recorded);
            (None, Some(Box::new(status)), in_force)
        };
        let (kind, uid) = (webhook.kind, webhook.uid);
        let mut entry = SubscriptionEntry::new(webhook, scope, generation, plan, target, in_force, &self.reader);
        let key = entry.references().and_then(|references| references.key.as_ref());
        let changed = self.sharing.set(&entry.webhook, key);
        entry.found = found;
        self.entries.insert(uid, entry);
        self.fetch(uid);
        self.publish(uid).await && self.publish_others(changed, uid).await && self.follow_namespaces(kind).await
    }

    async fn deleted(&mut self, kind: WebhookKind, uid: Uid) -> bool {
        let entry = self.entries.remove(&uid);
        let known = entry.is_some() | self.unreadable.remove(&uid).is_some();
        !known
            || (self.changes.send(WebhookChange::Removed(uid)).await.is_ok()
                && self.unshare(entry).await
                && self.follow_namespaces(kind).await)
    }

    /// Updates the Webhooks that shared the key of a removed one.
    async fn unshare(&mut self, entry: Option<SubscriptionEntry>) -> bool {
        let Some(SubscriptionEntry { webhook, .. }) = entry else { return true };
        let changed = self.sharing.remove(&webhook);
        self.publish_others(changed, webhook.uid).await
    }

    /// Starts or stops following Namespaces, which are needed only while a subscription depends on their labels. `kind`
    /// is the kind of the changed object.
    async fn follow_namespaces(&mut self, kind: WebhookKind) -> bool {
        if kind == WebhookKind::Webhook {
            return true;
        }
        let mut unreadable = self.unreadable.values().flatten();
        let wanted = self.entries.values().any(SubscriptionEntry::selects_namespaces)
            || unreadable.any(|known| matches!(&known.scope, Scope::Cluster(selector) if !selector.selects_all()));
        let stopped = self.namespaces.follow(wanted);
        !stopped || self.changes.send(WebhookChange::Namespace(namespaces::NamespaceChange::Ended)).await.is_ok()
    }

    /// Publishes a change of the Namespaces, and then the subscriptions that waited for it.
    async fn namespace(&mut self, change: namespaces::NamespaceChange) -> bool {
        let select: Vec<Uid> = match change {
            namespaces::NamespaceChange::Listed | namespaces::NamespaceChange::Refused => {
                let select = self.entries.iter().filter(|(_, entry)| entry.selects_namespaces());
                select.map(|(uid, _)| *uid).collect()
            }
            _ => Vec::new(),
        };
        let refused = matches!(change, namespaces::NamespaceChange::Refused);
        if self.changes.send(WebhookChange::Namespace(change)).await.is_err() {
            return false;
        }
        for uid in select {
            let update = self.entries.get_mut(&uid).filter(|_| refused).and_then(SubscriptionEntry::without_namespaces);
            let alive = match update {
                Some(update) => self.changes.send(WebhookChange::Updated(Box::new(update))).await.is_ok(),
                None => self.publish(uid).await,
            };
            if !alive {
                return false;
            }
        }
        true
    }

    /// Handles a reference that an attempt found missing. Always publishes the Webhook, because the engine withholds
    /// its deliveries until the next update.
    async fn lost(&mut self, uid: Uid, target: &Arc<CachedTarget>, error: ReferenceError) -> bool {
        let Some(entry) = self.entries.get_mut(&uid) else { return true };
        entry.lose(target, error);
        self.publish(uid).await
    }

    async fn read(&mut self, uid: Uid, reading: Reading) -> bool {
        let Some(entry) = self.entries.get_mut(&uid) else { return true };
        entry.reading = false;
        match entry.take(reading) {
            Ok(()) if entry.references_to_read().is_some() => {
                // The references have changed during the read.
                self.fetch(uid);
                return true;
            }
            Ok(()) => entry.missing = None,
            Err(error) => match &mut entry.missing {
                Some(missing) => {
                    missing.retry_after(Instant::now());
                    if missing.error == error {
                        return true;
                    }
                    missing.error = error;
                }
                None => entry.missing = Some(Missing::new(error)),
            },
        }
        self.publish(uid).await
    }

    /// Reads missing references again, and marks Webhooks whose references have been missing for a minute.
    async fn retry(&mut self) -> bool {
        let now = Instant::now();
        let mut publish = Vec::new();
        let mut fetch = Vec::new();
        for (uid, entry) in &mut self.entries {
            if entry.bundle_warning_changed() {
                publish.push(*uid);
            }
            let Some(missing) = &mut entry.missing else { continue };
            if missing.stalls(now) {
                publish.push(*uid);
            }
            if missing.is_due(now) {
                fetch.push(*uid);
            }
        }
        for uid in fetch {
            self.fetch(uid);
        }
        for uid in publish {
            if !self.publish(uid).await {
                return false;
            }
        }
        true
    }

    /// Starts to read the target, unless it is present or being read.
    fn fetch(&mut self, uid: Uid) {
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        let Some(references) = entry.references_to_read().filter(|_| !entry.reading).cloned() else { return };
        entry.reading = true;
        let (reader, permits) = (Arc::clone(&self.reader), Arc::clone(&self.permits));
        self.readings.spawn(async move {
            let _permit = permits.acquire().await;
            (uid, Reading::make(&reader, references).await)
        });
    }

    /// Publishes the state of a Webhook, unless it waits for the list of Namespaces.
    async fn publish(&mut self, uid: Uid) -> bool {
        let listed = self.namespaces.are_listed();
        let entry = self.entries.get_mut(&uid).filter(|entry| listed || !entry.selects_namespaces());
        let Some(entry) = entry else { return true };
        let update = entry.update(self.sharing.note(&entry.webhook));
        self.changes.send(WebhookChange::Updated(Box::new(update))).await.is_ok()
    }

    /// Publishes these Webhooks except one.
    async fn publish_others(&mut self, webhooks: Vec<Uid>, but: Uid) -> bool {
        for uid in webhooks.into_iter().filter(|uid| *uid != but) {
            if !self.publish(uid).await {
                return false;
            }
        }
        true
    }
}

/// The next change. Never completes if `ClusterWebhooks` are not served.
async fn next_of(objects: &mut Option<Objects<ClusterWebhook>>) -> Option<objects::ObjectChange<ClusterWebhook>> {
    match objects {
        Some(objects) => objects.next().await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
