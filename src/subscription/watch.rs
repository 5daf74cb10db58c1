//! Webhooks as they come, change and go: each is read, its Secret is fetched, and the result is handed on.
//!
//! 1. A Webhook is handed on at once, held, before its Secret is fetched: it gets the events of its time.
//! 2. [`Change::Listed`] comes once every Webhook that existed at the start has been handed on.
//! 3. A Webhook whose Secret is missing is looked after until the Secret appears.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use kube::{
    Api, Client, ResourceExt,
    core::DeserializeGuard,
    runtime::watcher::{self, Event},
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::{
    entry::{Entry, Missing},
    index::Subscription,
    resolve::{Plan, Resolved, WebhookRef},
    secret::{KeyReference, SecretError, SigningKey},
};
use crate::{
    api::{Webhook, webhook::WebhookStatus},
    calls::pump,
    event::object::Uid,
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

/// A Webhook whose key was found missing when it was needed.
pub type LostKey = (Uid, KeyReference, SecretError);

type Reading = (Uid, KeyReference, Result<SigningKey, SecretError>);

/// Looks after the Webhooks of some namespaces.
pub struct Controller {
    client: Client,
    changes: mpsc::Sender<Change>,
    entries: HashMap<Uid, Entry>,
    readings: JoinSet<Reading>,
    permits: Arc<Semaphore>,
}

impl Controller {
    /// A controller that hands changes on over `changes`.
    #[must_use]
    pub fn new(client: Client, changes: mpsc::Sender<Change>) -> Self {
        let permits = Arc::new(Semaphore::new(CONCURRENT_READS));
        Self { client, changes, entries: HashMap::new(), readings: JoinSet::new(), permits }
    }

    /// Runs until the receiver of the changes is gone. `namespaces`: empty means all. Over `lost_keys` come the Webhooks
    /// whose key was found missing when it was needed.
    pub async fn run(mut self, namespaces: Vec<String>, mut lost_keys: mpsc::UnboundedReceiver<LostKey>) {
        let (events, mut incoming) = mpsc::channel(64);
        let apis: Vec<Api<DeserializeGuard<Webhook>>> = if namespaces.is_empty() {
            vec![Api::all(self.client.clone())]
        } else {
            namespaces.iter().map(|namespace| Api::namespaced(self.client.clone(), namespace)).collect()
        };
        let scopes = apis.len();
        let mut watches = JoinSet::new();
        for (scope, api) in apis.into_iter().enumerate() {
            watches.spawn(pump(api, watcher::Config::default().timeout(30), scope, events.clone()));
        }
        let mut listings: Vec<Option<HashSet<Uid>>> = vec![None; scopes];
        let mut unlisted: HashSet<usize> = (0..scopes).collect();
        let mut scope_of: HashMap<Uid, usize> = HashMap::new();
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let alive = tokio::select! {
                Some((scope, event)) = incoming.recv() => match event {
                    Event::Init => { listings[scope] = Some(HashSet::new()); true }
                    Event::InitApply(guard) | Event::Apply(guard) => {
                        // One that cannot be read is there all the same.
                        if let (Some(listing), Some(uid)) = (&mut listings[scope], uid(&guard)) {
                            listing.insert(uid);
                        }
                        match read(guard) {
                            Some((webhook, object)) => {
                                scope_of.insert(webhook.uid, scope);
                                self.applied(webhook, object).await
                            }
                            None => true,
                        }
                    }
                    Event::Delete(guard) => match uid(&guard) {
                        Some(uid) => { scope_of.remove(&uid); self.deleted(uid).await }
                        None => true,
                    },
                    Event::InitDone => {
                        let listed = listings[scope].take().unwrap_or_default();
                        let gone: Vec<Uid> = scope_of.iter()
                            .filter(|(uid, of)| **of == scope && !listed.contains(*uid))
                            .map(|(uid, _)| *uid)
                            .collect();
                        let mut alive = true;
                        for uid in gone {
                            scope_of.remove(&uid);
                            alive &= self.deleted(uid).await;
                        }
                        if unlisted.remove(&scope) && unlisted.is_empty() {
                            info!(webhooks = self.entries.len(), "all Webhooks are listed");
                            alive &= self.changes.send(Change::Listed).await.is_ok();
                        }
                        alive
                    }
                },
                Some((uid, reference, error)) = lost_keys.recv() => self.lost(uid, &reference, error).await,
                Some(Ok((uid, reference, result))) = self.readings.join_next() => self.read(uid, &reference, result).await,
                _ = tick.tick() => self.look_again().await,
                else => false,
            };
            if !alive {
                return;
            }
        }
    }

    async fn applied(&mut self, webhook: WebhookRef, object: Webhook) -> bool {
        let generation = object.metadata.generation.unwrap_or_default();
        let known = self.entries.remove(&webhook.uid);
        if let Some(known) = known {
            if known.generation == generation {
                self.entries.insert(webhook.uid, known);
                return true;
            }
            return self.enter(webhook, object, generation, known.key, None).await;
        }
        let found = Box::new(object.status.clone().unwrap_or_default());
        self.enter(webhook, object, generation, None, Some(found)).await
    }

    async fn enter(
        &mut self,
        webhook: WebhookRef,
        object: Webhook,
        generation: i64,
        key: Option<Arc<SigningKey>>,
        found: Option<Box<WebhookStatus>>,
    ) -> bool {
        let plan = Plan::read(&object.spec);
        let reference = object.spec.secret_ref.map(|secret| KeyReference {
            namespace: webhook.namespace.clone(),
            name: secret.name,
            key: secret.key,
        });
        let key = key.filter(|key| Some(key.reference()) == reference.as_ref());
        let uid = webhook.uid;
        let entry = Entry { webhook, generation, plan, reference, key, found, missing: None, reading: false };
        self.entries.insert(uid, entry);
        self.fetch(uid);
        self.publish(uid).await
    }

    async fn deleted(&mut self, uid: Uid) -> bool {
        self.entries.remove(&uid).is_none() || self.changes.send(Change::Removed(uid)).await.is_ok()
    }

    /// The key was missing when it was needed. One that the spec no longer names is not missed; handing the Webhook on
    /// anew releases it either way.
    async fn lost(&mut self, uid: Uid, reference: &KeyReference, error: SecretError) -> bool {
        let Some(entry) = self.entries.get_mut(&uid) else { return true };
        if entry.reference.as_ref() == Some(reference) {
            entry.key = None;
            entry.missing.get_or_insert_with(|| Missing::new(error));
        }
        self.publish(uid).await
    }

    async fn read(&mut self, uid: Uid, reference: &KeyReference, result: Result<SigningKey, SecretError>) -> bool {
        let Some(entry) = self.entries.get_mut(&uid) else { return true };
        entry.reading = false;
        if entry.reference.as_ref() != Some(reference) {
            self.fetch(uid);
            return true;
        }
        match result {
            Ok(key) => {
                entry.key = Some(Arc::new(key));
                entry.missing = None;
            }
            Err(error) => match &mut entry.missing {
                Some(missing) => {
                    missing.look_again_after(Instant::now());
                    if missing.error.reason() == error.reason() {
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

    /// Begins to read the key, where one is named and not at hand.
    fn fetch(&mut self, uid: Uid) {
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        let Some(reference) = entry.reference.clone() else { return };
        if entry.key.is_some() || entry.reading || entry.plan.is_err() {
            return;
        }
        entry.reading = true;
        let (client, permits) = (self.client.clone(), Arc::clone(&self.permits));
        self.readings.spawn(async move {
            let _permit = permits.acquire().await;
            let result = SigningKey::read(client, reference.clone()).await;
            (uid, reference, result)
        });
    }

    /// Hands a Webhook on as it stands.
    async fn publish(&mut self, uid: Uid) -> bool {
        let Some(entry) = self.entries.get_mut(&uid) else { return true };
        let update = entry.update();
        self.changes.send(Change::Updated(Box::new(update))).await.is_ok()
    }
}

/// The Webhook, or `None` for one that cannot be read, which is named in the log.
fn read(guard: DeserializeGuard<Webhook>) -> Option<(WebhookRef, Webhook)> {
    match guard.0 {
        Ok(object) => {
            let uid = Uid::parse(object.metadata.uid.as_deref()?)?;
            let webhook = WebhookRef { uid, namespace: object.namespace()?, name: object.name_any() };
            Some((webhook, object))
        }
        Err(invalid) => {
            let (namespace, name) = (invalid.metadata.namespace, invalid.metadata.name);
            warn!(kind = "Webhook", ?namespace, ?name, error = invalid.error, "skipping a malformed object");
            None
        }
    }
}

fn uid(guard: &DeserializeGuard<Webhook>) -> Option<Uid> {
    let metadata = match &guard.0 {
        Ok(object) => &object.metadata,
        Err(invalid) => &invalid.metadata,
    };
    Uid::parse(metadata.uid.as_deref()?)
}
