//! Follows the objects that the page shows. The page is rendered from memory, without requests to the apiserver.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use kube::{
    Api,
    api::DynamicObject,
    core::{ApiResource, Resource},
    runtime::{
        WatchStreamExt,
        reflector::{Store, store::Writer},
        watcher,
    },
};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};

use super::history::{History, Hour};
use crate::{
    connection::Cluster,
    failure::{Failure, refusal},
    objects::name,
    selection::{self, Delivery},
    target::Target,
    trouble::Trouble,
    webhooks::Hook,
};
use llmtune_api::{ClusterWebhook, Webhook, WebhookDelivery, webhook_delivery::WebhookKind};

/// Ages grow, and the history continues even if nothing changes.
const TICK: Duration = Duration::from_secs(10);

/// Identifies a Webhook: its kind, home namespace and name.
type Key = (WebhookKind, String, String);

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchedKind {
    Webhooks,
    ClusterWebhooks,
    Deliveries,
}

/// The merged stream of all watches.
pub type News = Pin<Box<dyn Stream<Item = (WatchedKind, watcher::Result<watcher::Event<DynamicObject>>)>>>;

/// The Webhooks of a namespace, or of all namespaces with the `ClusterWebhooks`, and their deliveries.
pub struct Watched {
    pub cluster: Cluster,
    /// `None` means all namespaces.
    pub namespace: Option<String>,
    /// The operator's namespace, which holds the deliveries of `ClusterWebhooks`.
    operator: String,
    webhooks: Store<DynamicObject>,
    of_cluster: Store<DynamicObject>,
    deliveries: Store<DynamicObject>,
    state: watch::Sender<State>,
}

/// The state besides the objects.
#[derive(Default)]
struct State {
    /// The Webhooks have been listed.
    listed: bool,
    trouble: Trouble,
    /// Kinds that the apiserver refuses to list or watch, with the reason.
    refused: Vec<(WatchedKind, String)>,
    history: History<Key>,
}

impl Watched {
    /// Sets up the watches. They start when [`Self::follow`] polls the stream.
    pub async fn new(cluster: Cluster, namespace: Option<String>) -> Result<(Self, News), Failure> {
        let place = namespace.as_deref();
        let mut watches = Vec::new();
        let webhooks = reflected::<Webhook>(WatchedKind::Webhooks, cluster.api::<Webhook>(place), true, &mut watches);
        let deliveries = reflected::<WebhookDelivery>(
            WatchedKind::Deliveries,
            cluster.api::<WebhookDelivery>(place),
            true,
            &mut watches,
        );
        let all = place.is_none();
        let of_cluster = cluster.api::<ClusterWebhook>(None);
        let of_cluster = reflected::<ClusterWebhook>(WatchedKind::ClusterWebhooks, of_cluster, all, &mut watches);
        let operator = if all { cluster.operator_namespace().await? } else { String::new() };
        let state = watch::Sender::default();
        let news = Box::pin(stream::select_all(watches));
        Ok((Self { cluster, namespace, operator, webhooks, of_cluster, deliveries, state }, news))
    }

    /// Follows the watches, and calls `answered` after the apiserver's first answer. Ends if the apiserver refuses the
    /// watch of Webhooks.
    pub async fn follow(&self, mut news: News, answered: impl FnOnce()) -> Failure {
        let mut answered = Some(answered);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                heard = news.next() => {
                    let Some((kind, heard)) = heard else { return Failure::new("the watches of the cluster ended") };
                    if let Err(failure) = self.hear(kind, heard) {
                        return failure;
                    }
                }
                _ = ticks.tick() => self.tick(Timestamp::now()),
            }
            let known = {
                let state = self.state.borrow();
                state.listed || state.trouble.told().is_some()
            };
            if let Some(answered) = answered.take_if(|_| known) {
                answered();
            }
        }
    }

    fn hear(&self, kind: WatchedKind, heard: watcher::Result<watcher::Event<DynamicObject>>) -> Result<(), Failure> {
        match heard {
            Ok(watcher::Event::Init) => {}
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                let hook = self.read(kind, &object);
                self.state.send_modify(|state| {
                    state.trouble.ended();
                    if let Some(hook) = hook {
                        state.history.observe(key(&hook), &hook.status, Timestamp::now());
                    }
                });
            }
            Ok(watcher::Event::InitDone) => self.state.send_modify(|state| {
                state.listed |= kind == WatchedKind::Webhooks;
                state.trouble.ended();
                state.refused.retain(|(refused, _)| *refused != kind);
            }),
            Ok(watcher::Event::Delete(_)) => self.state.send_modify(|_| {}),
            Err(error) => match refusal(&error) {
                Some(refused) if kind == WatchedKind::Webhooks => return Err(self.cluster.failed(refused)),
                Some(refused) => {
                    let message = self.cluster.failed(refused).to_string();
                    self.state.send_modify(|state| {
                        state.refused.retain(|(refused, _)| *refused != kind);
                        state.refused.push((kind, message));
                    });
                }
                None => self.state.send_modify(|state| {
                    state.trouble.began(&error);
                }),
            },
        }
        Ok(())
    }

    fn tick(&self, now: Timestamp) {
        let hooks = self.hooks();
        self.state.send_modify(|state| {
            // Before the list is complete, an absent Webhook may still exist.
            if state.listed {
                state.history.keep(|known| hooks.iter().any(|hook| key(hook) == *known));
            }
            for hook in &hooks {
                state.history.observe(key(hook), &hook.status, now);
            }
        });
    }

    /// Problems with the data that is shown, in sentences.
    pub fn amiss(&self) -> Vec<String> {
        let state = self.state.borrow();
        let trouble = state.trouble.told().map(str::to_owned);
        let waiting =
            (!state.listed && trouble.is_none()).then(|| "waiting for the first answer of the cluster".to_owned());
        let refused = state.refused.iter().map(|(_, message)| message.clone());
        waiting.into_iter().chain(trouble).chain(refused).collect()
    }

    /// Webhooks sorted by namespace and name, then `ClusterWebhooks`.
    pub fn hooks(&self) -> Vec<Hook> {
        let read = |kind: WatchedKind, store: &Store<DynamicObject>| {
            let mut hooks: Vec<Hook> = store.state().iter().filter_map(|object| self.read(kind, object)).collect();
            hooks.sort_by(|one, other| (&one.home, &one.target.name).cmp(&(&other.home, &other.target.name)));
            hooks
        };
        let mut hooks = read(WatchedKind::Webhooks, &self.webhooks);
        hooks.extend(read(WatchedKind::ClusterWebhooks, &self.of_cluster));
        hooks
    }

    /// Finds a Webhook. `namespace` is its own; `None` for a `ClusterWebhook`.
    pub fn hook(&self, target: &Target, namespace: Option<&str>) -> Option<Hook> {
        let of =
            |object: &DynamicObject| name(object) == target.name && object.metadata.namespace.as_deref() == namespace;
        let (kind, store) = match target.kind {
            WebhookKind::Webhook => (WatchedKind::Webhooks, &self.webhooks),
            WebhookKind::ClusterWebhook => (WatchedKind::ClusterWebhooks, &self.of_cluster),
        };
        self.read(kind, &*store.find(of)?)
    }

    /// The deliveries of a Webhook, newest first.
    pub fn deliveries(&self, hook: &Hook) -> Vec<Delivery> {
        let kept = self.deliveries.state_filter(|object| {
            let reference =
                |field: &str| object.data.pointer(&format!("/spec/webhookRef/{field}")).and_then(Value::as_str);
            object.metadata.namespace.as_deref() == Some(&hook.home)
                && reference("name") == Some(&hook.target.name)
                && reference("kind") == Some(&hook.target.kind.to_string())
        });
        selection::all(kept.iter().map(|object| &**object), &hook.status.recent)
    }

    /// The last hour of a Webhook.
    pub fn hour(&self, hook: &Hook, deliveries: &[Delivery], now: Timestamp) -> Hour {
        self.state.borrow().history.hour(&key(hook), &hook.status, deliveries, now)
    }

    /// Subscribes to changes. The first one is reported immediately.
    pub fn changes(&self) -> Changes {
        let mut changes = self.state.subscribe();
        changes.mark_changed();
        Changes(changes)
    }

    /// Waits until `holds` returns true, up to the limit.
    pub async fn until(&self, limit: Duration, holds: impl Fn() -> bool) {
        let mut changes = self.changes();
        let wait = async { while !holds() && changes.next().await {} };
        // After a timeout the page shows the state at that time.
        let _ = timeout(limit, wait).await;
    }

    fn read(&self, kind: WatchedKind, object: &DynamicObject) -> Option<Hook> {
        let (kind, home) = match kind {
            WatchedKind::Webhooks => (WebhookKind::Webhook, object.metadata.namespace.clone()?),
            WatchedKind::ClusterWebhooks => (WebhookKind::ClusterWebhook, self.operator.clone()),
            WatchedKind::Deliveries => return None,
        };
        Some(Hook::read(object, Target { kind, name: name(object).to_owned() }, home))
    }
}

/// A subscription to changes.
pub struct Changes(watch::Receiver<State>);

impl Changes {
    /// Waits for the next change; several changes since the last call count as one. Returns false if no more changes
    /// will come.
    pub async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

fn key(hook: &Hook) -> Key {
    (hook.target.kind, hook.home.clone(), hook.target.name.clone())
}

/// The objects of a watch; an empty store if the watch is not wanted.
fn reflected<K: Resource<DynamicType = ()>>(
    kind: WatchedKind,
    api: Api<DynamicObject>,
    wanted: bool,
    watches: &mut Vec<News>,
) -> Store<DynamicObject> {
    let writer = Writer::new(ApiResource::erase::<K>(&()));
    let store = writer.as_reader();
    if wanted {
        let events = watcher(api, watcher::Config::default()).default_backoff().modify(slim).reflect(writer);
        watches.push(Box::pin(events.map(move |heard| (kind, heard))));
    }
    store
}

/// Removes fields that no page shows. The body is by far the largest part of a delivery.
fn slim(object: &mut DynamicObject) {
    object.metadata.managed_fields = None;
    if let Some(body) = object.data.pointer_mut("/status/event/body") {
        *body = Value::String(String::new());
    }
}
