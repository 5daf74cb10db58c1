//! Webhooks as they come, change and go: each is read, its Secret is fetched, and the result is handed on.
//!
//! 1. A Webhook is handed on at once, held, before its Secret is fetched: it gets the events of its time.
//! 2. [`Change::Listed`] comes once every Webhook that existed at the start has been handed on.
//! 3. A Webhook whose Secret is missing is looked after until the Secret appears.
//! 4. A Webhook that this release cannot read, such as one of a newer release, is handed on as one that holds what waits for it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use kube::{
    Client, Resource,
    core::{ObjectMeta, error_boundary::InvalidObject},
    runtime::watcher::Config,
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::{
    entry::{Entry, Missing, Reading},
    index::Subscription,
    kept::Kept,
    reader::Reader,
    reference::ReferenceError,
    resolve::{Plan, Resolved, WebhookRef},
};
use crate::{
    api::{Webhook, webhook::WebhookStatus},
    event::object::Uid,
    objects::{self, Objects},
};

/// Secrets that are fetched at once.
const CONCURRENT_READS: usize = 16;

/// What changed about a Webhook.
pub enum Change {
    /// It is new, or its spec or its Secret has changed.
    Updated(Box<Update>),
    /// It is deleted.
    Removed(Uid),
    /// All Webhooks that existed at the start have been handed on.
    Listed,
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
}

/// How a subscription stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    pub generation: i64,
    /// Scheme, host and port.
    pub endpoint: String,
    pub readiness: Readiness,
    /// What the user should know, by the Event's reason.
    pub warnings: Vec<(&'static str, String)>,
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
pub type Lost = (Uid, Arc<Kept>, ReferenceError);

/// Looks after the Webhooks of some namespaces.
pub struct Controller {
    client: Client,
    changes: mpsc::Sender<Change>,
    entries: HashMap<Uid, Entry>,
    /// Those that this release cannot read.
    unreadable: HashSet<Uid>,
    reader: Arc<Reader>,
    readings: JoinSet<(Uid, Reading)>,
    permits: Arc<Semaphore>,
    require_https: bool,
}

impl Controller {
    /// A controller that hands changes on over `changes`. With `require_https` a Webhook with another url cannot work.
    #[must_use]
    pub fn new(client: Client, changes: mpsc::Sender<Change>, require_https: bool) -> Self {
        let permits = Arc::new(Semaphore::new(CONCURRENT_READS));
        let reader = Arc::new(Reader::new(client.clone()));
        let (entries, unreadable, readings) = (HashMap::new(), HashSet::new(), JoinSet::new());
        Self { client, changes, entries, unreadable, reader, readings, permits, require_https }
    }

    /// Runs until the receiver of the changes is gone, or a watch has ended. `namespaces`: empty means all. Over `lost`
    /// come the Webhooks of which something was found missing when it was needed.
    pub async fn run(mut self, namespaces: Vec<String>, mut lost: mpsc::UnboundedReceiver<Lost>) {
        let mut webhooks = Objects::<Webhook>::watch(&self.client, &namespaces, &Config::default().timeout(30));
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let alive = tokio::select! {
                change = webhooks.next() => match change {
                    Some(objects::Change::Seen { uid, object: Ok(webhook), .. }) => self.applied(uid, *webhook).await,
                    Some(objects::Change::Seen { uid, object: Err(invalid), .. }) => self.skipped(uid, *invalid).await,
                    Some(objects::Change::Gone(uid)) => self.deleted(uid).await,
                    Some(objects::Change::Listed) => {
                        info!(webhooks = self.entries.len(), unreadable = self.unreadable.len(), "all Webhooks are listed");
                        self.changes.send(Change::Listed).await.is_ok()
                    }
                    // The log says so, and it is asked again.
                    Some(objects::Change::Refused) => true,
                    None => false,
                },
                Some((uid, target, error)) = lost.recv() => self.lost(uid, &target, error).await,
                Some(reading) = self.readings.join_next() => match reading {
                    Ok((uid, reading)) => self.read(uid, reading).await,
                    // Nothing is cancelled, and panics are caught.
                    Err(_) => false,
                },
                _ = tick.tick() => self.look_again().await,
            };
            if !alive {
                return;
            }
        }
    }

    async fn applied(&mut self, uid: Uid, object: Webhook) -> bool {
        let Some(webhook) = reference(uid, object.meta()) else { return true };
        let generation = object.metadata.generation.unwrap_or_default();
        self.unreadable.remove(&uid);
        let known = self.entries.remove(&uid);
        if let Some(known) = known {
            if known.generation == generation {
                self.entries.insert(uid, known);
                return true;
            }
            return self.enter(webhook, object, generation, Some(known), None).await;
        }
        let found = Box::new(object.status.clone().unwrap_or_default());
        self.enter(webhook, object, generation, None, Some(found)).await
    }

    /// The Webhook is there, and this release cannot read it. What waits for it is held; what happens meanwhile passes it by.
    /// Nothing is written to its status, which could not be read either.
    async fn skipped(&mut self, uid: Uid, invalid: InvalidObject) -> bool {
        let InvalidObject { error, metadata } = invalid;
        let Some(webhook) = reference(uid, &metadata) else { return true };
        let generation = metadata.generation.unwrap_or_default();
        let WebhookRef { namespace, name, .. } = &webhook;
        if self.entries.get(&uid).is_some_and(|known| known.generation == generation) {
            warn!(
                namespace,
                webhook = name,
                error,
                "the Webhook cannot be read any more; its spec is unchanged and stays in force"
            );
            return true;
        }
        warn!(
            namespace,
            webhook = name,
            error,
            "the Webhook cannot be read: what waits for it is held, and new events pass it by; correct it, or upgrade the operator to the release that it was written for"
        );
        self.entries.remove(&uid);
        self.unreadable.insert(uid);
        let subscription = Subscription::inert(&webhook, generation);
        let update = Update { webhook, subscription, resolved: None, standing: None, found: None };
        self.changes.send(Change::Updated(Box::new(update))).await.is_ok()
    }

    async fn enter(
        &mut self,
        webhook: WebhookRef,
        object: Webhook,
        generation: i64,
        known: Option<Entry>,
        found: Option<Box<WebhookStatus>>,
    ) -> bool {
        let plan = Plan::read(&object.spec, &webhook.namespace, self.require_https);
        let kept = known.and_then(|known| known.kept);
        let uid = webhook.uid;
        let mut entry = Entry::new(webhook, generation, plan, kept, &self.reader);
        entry.found = found;
        self.entries.insert(uid, entry);
        self.fetch(uid);
        self.publish(uid).await
    }

    async fn deleted(&mut self, uid: Uid) -> bool {
        let known = self.entries.remove(&uid).is_some() | self.unreadable.remove(&uid);
        !known || self.changes.send(Change::Removed(uid)).await.is_ok()
    }

    /// Something was missing when it was needed. Handing the Webhook on anew releases what waits for it.
    async fn lost(&mut self, uid: Uid, target: &Arc<Kept>, error: ReferenceError) -> bool {
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

    /// Hands a Webhook on as it stands.
    async fn publish(&mut self, uid: Uid) -> bool {
        let Some(entry) = self.entries.get_mut(&uid) else { return true };
        let update = entry.update();
        self.changes.send(Change::Updated(Box::new(update))).await.is_ok()
    }
}

/// `None` for one without a namespace, which no apiserver sends.
fn reference(uid: Uid, metadata: &ObjectMeta) -> Option<WebhookRef> {
    Some(WebhookRef { uid, namespace: metadata.namespace.clone()?, name: metadata.name.clone()? })
}

#[cfg(test)]
mod tests;
