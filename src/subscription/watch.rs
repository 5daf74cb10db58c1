//! Webhooks and `ClusterWebhooks` as they come, change and go: each is read, its Secret is fetched, and the result is handed on.
//!
//! 1. A Webhook is handed on at once, held, before its Secret is fetched: it gets the events of its time.
//! 2. One that selects Namespaces is handed on once these are listed. Until then what was handed on of it before is in force.
//! 3. [`Change::Listed`] comes once every Webhook that existed at the start has been handed on.
//! 4. A Webhook whose Secret is missing is looked after until the Secret appears.
//! 5. A Webhook that this release cannot read, such as one of a newer release, is handed on as one that holds what waits for it. What it
//!    was seen to select before goes on being selected.
//! 6. While a filter is invalid, the newest valid one stays in force, over restarts by `status.inForce`.

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

/// Secrets that are fetched at once.
const CONCURRENT_READS: usize = 16;

/// What changed about a Webhook.
pub enum WebhookChange {
    /// It is new, or its spec or its Secret has changed.
    Updated(Box<Update>),
    /// It is deleted.
    Removed(Uid),
    /// All Webhooks that existed at the start have been handed on.
    Listed,
    /// What is learned of Namespaces, while a `ClusterWebhook` selects by them.
    Namespace(namespaces::NamespaceChange),
}

/// A Webhook as it stands.
pub struct Update {
    pub webhook: WebhookRef,
    /// For the engine.
    pub subscription: Subscription,
    /// For its attempts; `None` while it has not all that they need.
    pub resolved: Option<Arc<Resolved>>,
    /// For its status; `None` while that is not known yet.
    pub standing: Option<Standing>,
    /// Its status as found in the cluster, when it is handed on for the first time.
    pub found: Option<Box<WebhookStatus>>,
    /// Who its deliveries belong to; `None` while its URL is not known.
    pub owner: Option<Arc<str>>,
}

/// How a subscription stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    pub generation: i64,
    /// Scheme, host and port.
    pub endpoint: String,
    pub readiness: Readiness,
    /// What is wrong with the spec although something older is in force.
    pub fault: Option<Fault>,
    /// The filter in force, as the status records it.
    pub in_force: Option<FilterInForce>,
    /// What the user should know, by the Event's reason.
    pub warnings: Vec<(&'static str, String)>,
}

/// A part of the spec that cannot be used, in place of which something older is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub reason: &'static str,
    pub message: String,
}

/// Whether a subscription is live.
#[derive(Clone, Debug, PartialEq)]
pub enum Readiness {
    /// It is.
    Live,
    /// It is, and holds its deliveries as told.
    Suspended,
    /// It lacks something that may yet come; `stalled` once it has been missing for a minute.
    Waiting { reason: &'static str, message: String, stalled: bool },
    /// Its spec cannot work as it stands.
    Broken { reason: &'static str, message: String },
}

/// A Webhook of whose target something was found missing when it was needed.
pub type Lost = (Uid, Arc<CachedTarget>, ReferenceError);

/// How to look after Webhooks.
pub struct Settings {
    /// One with another url cannot work.
    pub require_https: bool,
    /// Where what `ClusterWebhooks` name is.
    pub home: String,
    /// How long an apiserver that refuses to list `ClusterWebhooks`, since it does not know the kind or grants no right to it, must do
    /// so beside listing Webhooks before that is believed: one that has just begun may do so.
    pub patience: Duration,
}

/// Looks after the Webhooks of some namespaces, or of all with the `ClusterWebhooks`.
pub struct Controller {
    client: Client,
    changes: mpsc::Sender<WebhookChange>,
    entries: HashMap<Uid, SubscriptionEntry>,
    /// Those that this release cannot read, with what they were last seen to subscribe to.
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
    /// A controller that hands changes on over `changes`.
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

    /// Runs until the receiver of the changes is gone, or a watch has ended. `namespaces`: empty means all, and the cluster. Over `lost`
    /// come the Webhooks of which something was found missing when it was needed, over `asked` names of Namespaces.
    pub async fn run(
        mut self,
        namespaces: Vec<String>,
        mut lost: mpsc::UnboundedReceiver<Lost>,
        mut asked: mpsc::UnboundedReceiver<Asked>,
    ) {
        let config = Config::default().timeout(30);
        let mut webhooks = Objects::<Webhook>::watch(&self.client, &namespaces, &config);
        // Roles cannot reach what belongs to no namespace.
        let serves_cluster = namespaces.is_empty();
        let mut cluster_webhooks = serves_cluster.then(|| Objects::<ClusterWebhook>::watch_all(&self.client, &config));
        self.listing.cluster_webhooks = !serves_cluster;
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let resigned = self.listing.resigned_at(self.settings.patience);
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
                    // Nothing is cancelled, and panics are caught.
                    Err(_) => false,
                },
                () = sleep_until(resigned.unwrap_or_else(Instant::now)), if resigned.is_some() => {
                    info!("ClusterWebhooks cannot be listed; going on as if there were none, until they can");
                    self.listing.cluster_webhooks = true;
                    true
                }
                _ = tick.tick() => self.look_again().await,
            };
            if !alive || !self.tell_listed().await {
                return;
            }
        }
    }

    /// Says so once all are listed, and Namespaces where they matter.
    async fn tell_listed(&mut self) -> bool {
        let Listing { webhooks, cluster_webhooks, told, .. } = &self.listing;
        if *told || webhooks.is_none() || !cluster_webhooks {
            return true;
        }
        if !self.namespaces.are_listed() && self.entries.values().any(SubscriptionEntry::selects_namespaces) {
            return true;
        }
        self.listing.told = true;
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
            // The log says so, and it is asked again.
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

    /// The Webhook is there, and this release cannot read it. What waits for it is held, and so is what it was seen to select before.
    /// Nothing is written to its status, which could not be read either.
    async fn skipped(&mut self, webhook: WebhookRef, invalid: InvalidObject) -> bool {
        let InvalidObject { error, metadata } = invalid;
        let generation = metadata.generation.unwrap_or_default();
        let (kind, uid, namespace, name) = (webhook.kind, webhook.uid, webhook.namespace(), &webhook.name);
        if self.entries.get(&uid).is_some_and(|known| known.generation == generation) {
            warn!(
                namespace,
                webhook = name,
                error,
                "the Webhook cannot be read any more; its spec is unchanged and stays in force"
            );
            return true;
        }
        let entry = self.entries.remove(&uid);
        let known = entry.as_ref().map(SubscriptionEntry::subscription);
        let known = known.or_else(|| self.unreadable.remove(&uid).flatten());
        let known = known.map(|known| Subscription { generation, held: true, ..known });
        let consequence = if known.is_some() { "new events wait too" } else { "new events pass it by" };
        warn!(
            namespace,
            webhook = name,
            error,
            "the Webhook cannot be read: what waits for it is held, and {consequence}; correct it, or upgrade the operator to the release that it was written for"
        );
        self.unreadable.insert(uid, known.clone());
        let subscription = known.unwrap_or_else(|| Subscription::inert(&webhook, generation));
        let update = Update { webhook, subscription, resolved: None, standing: None, found: None, owner: None };
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
        let (kept, found, in_force) = if let Some(SubscriptionEntry { kept, found, in_force, .. }) = known {
            (kept, found, in_force)
        } else {
            let in_force = status.in_force.as_ref().and_then(filter::FilterInForce::recorded);
            (None, Some(Box::new(status)), in_force)
        };
        let (kind, uid) = (webhook.kind, webhook.uid);
        let mut entry = SubscriptionEntry::new(webhook, scope, generation, plan, kept, in_force, &self.reader);
        let key = entry.references().and_then(|references| references.key.as_ref());
        let told = self.sharing.names(&entry.webhook, key);
        entry.found = found;
        self.entries.insert(uid, entry);
        self.fetch(uid);
        self.publish(uid).await && self.publish_others(told, uid).await && self.follow_namespaces(kind).await
    }

    async fn deleted(&mut self, kind: WebhookKind, uid: Uid) -> bool {
        let entry = self.entries.remove(&uid);
        let known = entry.is_some() | self.unreadable.remove(&uid).is_some();
        !known
            || (self.changes.send(WebhookChange::Removed(uid)).await.is_ok()
                && self.unshare(entry).await
                && self.follow_namespaces(kind).await)
    }

    /// A Webhook is looked after no more: those that shared its key are told.
    async fn unshare(&mut self, entry: Option<SubscriptionEntry>) -> bool {
        let Some(SubscriptionEntry { webhook, .. }) = entry else { return true };
        let told = self.sharing.goes(&webhook);
        self.publish_others(told, webhook.uid).await
    }

    /// Follows Namespaces exactly while a subscription depends on their labels. `kind`: of what has changed.
    async fn follow_namespaces(&mut self, kind: WebhookKind) -> bool {
        if kind == WebhookKind::Webhook {
            return true;
        }
        let mut unreadable = self.unreadable.values().flatten();
        let wanted = self.entries.values().any(SubscriptionEntry::selects_namespaces)
            || unreadable.any(|known| matches!(&known.scope, Scope::Cluster(selector) if !selector.selects_all()));
        let ceased = self.namespaces.follow(wanted);
        !ceased || self.changes.send(WebhookChange::Namespace(namespaces::NamespaceChange::Ended)).await.is_ok()
    }

    /// Hands on what is learned of Namespaces, and the subscriptions that waited for it.
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

    /// Something was missing when it was needed. Handing the Webhook on anew releases what waits for it.
    async fn lost(&mut self, uid: Uid, target: &Arc<CachedTarget>, error: ReferenceError) -> bool {
        let Some(entry) = self.entries.get_mut(&uid) else { return true };
        entry.lose(target, error);
        self.publish(uid).await
    }

    async fn read(&mut self, uid: Uid, reading: Reading) -> bool {
        let Some(entry) = self.entries.get_mut(&uid) else { return true };
        entry.reading = false;
        match entry.take(reading) {
            Ok(()) if entry.lacks().is_some() => {
                // The spec has come to name something else.
                self.fetch(uid);
                return true;
            }
            Ok(()) => entry.missing = None,
            Err(error) => match &mut entry.missing {
                Some(missing) => {
                    missing.look_again_after(Instant::now());
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

    /// Looks again for what is missing, and marks what has been missing for a minute.
    async fn look_again(&mut self) -> bool {
        let now = Instant::now();
        let mut publish = Vec::new();
        let mut fetch = Vec::new();
        for (uid, entry) in &mut self.entries {
            if entry.has_another_bundle_warning() {
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

    /// Begins to read what is named and not at hand.
    fn fetch(&mut self, uid: Uid) {
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        let Some(references) = entry.lacks().filter(|_| !entry.reading).cloned() else { return };
        entry.reading = true;
        let (reader, permits) = (Arc::clone(&self.reader), Arc::clone(&self.permits));
        self.readings.spawn(async move {
            let _permit = permits.acquire().await;
            (uid, Reading::make(&reader, references).await)
        });
    }

    /// Hands a Webhook on as it stands, unless it waits for Namespaces to be listed.
    async fn publish(&mut self, uid: Uid) -> bool {
        let listed = self.namespaces.are_listed();
        let entry = self.entries.get_mut(&uid).filter(|entry| listed || !entry.selects_namespaces());
        let Some(entry) = entry else { return true };
        let update = entry.update(self.sharing.note(&entry.webhook));
        self.changes.send(WebhookChange::Updated(Box::new(update))).await.is_ok()
    }

    /// Hands those of these Webhooks on that are others than this one.
    async fn publish_others(&mut self, webhooks: Vec<Uid>, but: Uid) -> bool {
        for uid in webhooks.into_iter().filter(|uid| *uid != but) {
            if !self.publish(uid).await {
                return false;
            }
        }
        true
    }
}

/// The next change; never, where they are not served.
async fn next_of(objects: &mut Option<Objects<ClusterWebhook>>) -> Option<objects::ObjectChange<ClusterWebhook>> {
    match objects {
        Some(objects) => objects.next().await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
