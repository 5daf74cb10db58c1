//! Follows all objects of one kind, with one watch for each served namespace. Webhooks, WebhookSources,
//! UsageThresholds, `ResourceQuotas` and Namespaces are followed this way.
//!
//! 1. An object that a complete list lacks is reported as deleted.
//! 2. An object that this release cannot read is reported, and counts as existing.

use std::{
    collections::{HashSet, VecDeque},
    fmt::Debug,
    time::Duration,
};

use futures::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource,
    api::PartialObjectMeta,
    core::{DeserializeGuard, error_boundary::InvalidObject},
    runtime::watcher::{self, Config, Event, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};
use tracing::{error, warn};

use crate::calls::pause;
use llmtune_client::error_chain::ErrorChain;
use llmtune_core::event::object::Uid;

/// An unchanged error is logged again after this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// The capacity of the channel from the watches.
const CHANNEL_CAPACITY: usize = 64;

/// A change of the objects of a kind.
#[derive(Debug)]
pub enum ObjectChange<K> {
    /// An object exists, in this state or in a form that this release cannot read.
    Seen {
        uid: Uid,
        object: Result<Box<K>, Box<InvalidObject>>,
        /// True if the object is from a list. A list overrides newer versions: after a restore, etcd assigns lower
        /// ones.
        listed: bool,
    },
    /// The object was deleted, or a complete list lacked it.
    Gone(Uid),
    /// All objects that existed at the start have been reported. Sent once.
    Listed,
    /// The apiserver refuses the list: 403 if the operator lacks the right, 404 if the kind is not served. The list is
    /// retried.
    Refused,
}

/// An event of one watch, or `None` if the apiserver refuses the watch.
type WatchItem<K> = Option<Event<DeserializeGuard<K>>>;

/// Watches the objects of a kind until it is dropped.
pub struct Objects<K> {
    watches: JoinSet<()>,
    events: mpsc::Receiver<(usize, WatchItem<K>)>,
    tracker: UidTracker,
    changes: VecDeque<ObjectChange<K>>,
}

impl<K> Objects<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Watches the objects of these namespaces, or of all if the slice is empty.
    pub fn watch(client: &Client, namespaces: &[String], config: &Config) -> Self {
        if namespaces.is_empty() {
            return Self::watch_all(client, config);
        }
        Self::follow(namespaces.iter().map(|namespace| Api::namespaced(client.clone(), namespace)).collect(), config)
    }
}

impl<K> Objects<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Watches all objects of the cluster.
    pub fn watch_all(client: &Client, config: &Config) -> Self {
        Self::follow(vec![Api::all(client.clone())], config)
    }

    fn follow(apis: Vec<Api<DeserializeGuard<K>>>, config: &Config) -> Self {
        Self::pump(apis.into_iter().map(|api| watcher(api, config.clone())))
    }
}

impl<K> Objects<PartialObjectMeta<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Watches the metadata of all objects of the cluster.
    pub fn watch_metadata(client: &Client, config: &Config) -> Self {
        // `DeserializeGuard` would request full objects.
        let watch = watcher(Api::<PartialObjectMeta<K>>::all(client.clone()), config.clone());
        Self::pump([watch.map(|event| event.map(guarded))])
    }
}

impl<K> Objects<K>
where
    K: Resource<DynamicType = ()> + Debug + Send + 'static,
{
    fn pump<S>(streams: impl IntoIterator<Item = S>) -> Self
    where
        S: Stream<Item = watcher::Result<Event<DeserializeGuard<K>>>> + Send + 'static,
    {
        let (sender, events) = mpsc::channel(CHANNEL_CAPACITY);
        let mut watches = JoinSet::new();
        for (scope, stream) in streams.into_iter().enumerate() {
            watches.spawn(pump(stream, scope, sender.clone()));
        }
        let tracker = UidTracker::new(watches.len());
        Self { watches, events, tracker, changes: VecDeque::new() }
    }

    /// The next change, or `None` if a watch has ended, which happens only after a panic. Cancel safe.
    pub async fn next(&mut self) -> Option<ObjectChange<K>> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Some(change);
            }
            tokio::select! {
                Some((scope, event)) = self.events.recv() => match event {
                    Some(event) => self.tracker.apply(scope, event, &mut self.changes),
                    None => self.changes.push_back(ObjectChange::Refused),
                },
                Some(ended) = self.watches.join_next() => {
                    error!(kind = %K::kind(&()), ?ended, "a watch has ended");
                    return None;
                }
                else => return None,
            }
        }
    }
}

/// Sends the events of one watch until the receiver is dropped.
async fn pump<K: Resource<DynamicType = ()>>(
    stream: impl Stream<Item = watcher::Result<Event<DeserializeGuard<K>>>> + Send,
    scope: usize,
    events: mpsc::Sender<(usize, WatchItem<K>)>,
) {
    let mut failures = 0;
    let mut logged: Option<(String, Instant)> = None;
    let mut stream = stream.boxed();
    while let Some(item) = stream.next().await {
        match item {
            Ok(event) => {
                // `Init` precedes each attempt to list, also one that fails.
                if !matches!(event, Event::Init) {
                    failures = 0;
                }
                if events.send((scope, Some(event))).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let wait = pause(failures);
                failures += 1;
                let text = ErrorChain(&error).to_string();
                // A kind that is not installed or forbidden would log the same error every few seconds.
                if logged.as_ref().is_none_or(|(last, at)| *last != text || at.elapsed() >= LOG_INTERVAL) {
                    warn!(kind = %K::kind(&()), error = %text, ?wait, "watch interrupted; trying again");
                    logged = Some((text, Instant::now()));
                }
                if is_refusal(&error) && events.send((scope, None)).await.is_err() {
                    return;
                }
                sleep(wait).await;
            }
        }
    }
}

/// Wraps metadata, which can always be read.
fn guarded<K>(event: Event<K>) -> Event<DeserializeGuard<K>> {
    let guard = |object| DeserializeGuard(Ok(object));
    match event {
        Event::Apply(object) => Event::Apply(guard(object)),
        Event::Delete(object) => Event::Delete(guard(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(guard(object)),
        Event::InitDone => Event::InitDone,
    }
}

/// Whether the apiserver does not serve the kind, or the operator may not read it.
fn is_refusal(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(error)
    | watcher::Error::WatchStartFailed(error)
    | watcher::Error::WatchFailed(error)) = error
    else {
        return false;
    };
    matches!(error, kube::Error::Api(status) if matches!(status.code, 403 | 404))
}

/// Tracks which objects exist, to find those that a list lacks. Pure.
struct UidTracker {
    scopes: Vec<Scope>,
    /// The number of scopes that have not been listed yet.
    unlisted: usize,
}

/// The objects of one watch, including objects that cannot be read.
#[derive(Default)]
struct Scope {
    existing: HashSet<Uid>,
    /// The objects that the current list has returned so far.
    listing: Option<HashSet<Uid>>,
    listed: bool,
}

impl UidTracker {
    fn new(scopes: usize) -> Self {
        Self { scopes: (0..scopes).map(|_| Scope::default()).collect(), unlisted: scopes }
    }

    /// Applies an event of a watch and appends the resulting changes.
    fn apply<K: Resource>(
        &mut self,
        scope: usize,
        event: Event<DeserializeGuard<K>>,
        changes: &mut VecDeque<ObjectChange<K>>,
    ) {
        let Self { scopes, unlisted } = self;
        let scope = &mut scopes[scope];
        match event {
            Event::Init => scope.listing = Some(HashSet::new()),
            Event::InitApply(guard) | Event::Apply(guard) => {
                let Some(uid) = uid(&guard) else { return };
                scope.existing.insert(uid);
                let listed = scope.listing.as_mut().map(|listing| listing.insert(uid)).is_some();
                changes.push_back(ObjectChange::Seen { uid, object: guard.0.map(Box::new).map_err(Box::new), listed });
            }
            Event::Delete(guard) => {
                let Some(uid) = uid(&guard) else { return };
                scope.existing.remove(&uid);
                changes.push_back(ObjectChange::Gone(uid));
            }
            Event::InitDone => {
                let listing = scope.listing.take().unwrap_or_default();
                let gone = scope.existing.extract_if(|uid| !listing.contains(uid));
                changes.extend(gone.map(ObjectChange::Gone));
                if !std::mem::replace(&mut scope.listed, true) {
                    *unlisted -= 1;
                    if *unlisted == 0 {
                        changes.push_back(ObjectChange::Listed);
                    }
                }
            }
        }
    }
}

fn uid<K: Resource>(guard: &DeserializeGuard<K>) -> Option<Uid> {
    guard.meta().uid.as_deref().and_then(Uid::parse)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;
    use tokio::time::timeout;

    use super::*;
    use crate::fake::{Answer, apiserver};

    fn guard(number: u128) -> DeserializeGuard<ConfigMap> {
        let metadata = json!({"name": "a", "uid": Uid::from_u128(number).to_string()});
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})).unwrap()
    }

    fn unreadable(number: u128) -> DeserializeGuard<ConfigMap> {
        let metadata = json!({"name": "a", "uid": Uid::from_u128(number).to_string()});
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": "none"});
        let guard: DeserializeGuard<ConfigMap> = serde_json::from_value(object).unwrap();
        assert!(guard.0.is_err());
        guard
    }

    /// The changes that result from these events, in short form.
    fn changes_of(scopes: usize, events: Vec<(usize, Event<DeserializeGuard<ConfigMap>>)>) -> Vec<String> {
        let mut tracker = UidTracker::new(scopes);
        let mut changes = VecDeque::new();
        for (scope, event) in events {
            tracker.apply(scope, event, &mut changes);
        }
        let number = |uid: Uid| (1..100).find(|number| Uid::from_u128(*number) == uid).unwrap();
        let brief = changes.into_iter().map(|change| match change {
            ObjectChange::Seen { uid, object: Ok(_), listed: false } => format!("seen {}", number(uid)),
            ObjectChange::Seen { uid, object: Ok(_), listed: true } => format!("listed {}", number(uid)),
            ObjectChange::Seen { uid, object: Err(_), .. } => format!("unreadable {}", number(uid)),
            ObjectChange::Gone(uid) => format!("gone {}", number(uid)),
            ObjectChange::Listed => "all listed".to_owned(),
            ObjectChange::Refused => "refused".to_owned(),
        });
        brief.collect()
    }

    #[test]
    fn listed_once_every_namespace_is_listed() {
        let events = [
            (0, Event::Init),
            (1, Event::Init),
            (0, Event::InitApply(guard(1))),
            (0, Event::InitDone),
            (0, Event::Init),
        ];
        let events = events.into_iter().chain([(0, Event::InitApply(guard(1))), (0, Event::InitDone)]);
        let events = events.chain([(1, Event::InitDone), (1, Event::Init), (1, Event::InitDone)]);
        assert_eq!(changes_of(2, events.collect()), ["listed 1", "listed 1", "all listed"]);
    }

    #[test]
    fn complete_list_removes_missing_objects_but_not_unreadable_ones() {
        let events = [
            Event::Init,
            Event::InitApply(guard(1)),
            Event::InitApply(unreadable(2)),
            Event::InitApply(guard(3)),
            Event::InitDone,
            Event::Apply(guard(4)),
            // This list fails before it is complete, so it removes nothing.
            Event::Init,
            Event::InitApply(guard(5)),
            Event::Init,
            Event::InitApply(guard(1)),
            Event::InitApply(unreadable(2)),
            Event::InitApply(unreadable(4)),
            Event::InitDone,
            Event::Delete(unreadable(4)),
        ];
        let mut changes = changes_of(1, events.map(|event| (0, event)).into());
        changes[9..11].sort_unstable();
        let expected = ["listed 1", "unreadable 2", "listed 3", "all listed", "seen 4"];
        let relisted = ["listed 5", "listed 1", "unreadable 2", "unreadable 4", "gone 3", "gone 5", "gone 4"];
        assert_eq!(changes, [&expected[..], &relisted[..]].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn watch_metadata_requests_only_metadata() {
        let (asked, mut requests) = mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let watch = request.uri().to_string().contains("watch=true");
            asked.send((watch, request.headers()["accept"].to_str().unwrap().to_owned())).unwrap();
            let list = json!({"metadata": {"resourceVersion": "9"}, "items": [{"metadata": {"name": "a", "uid": Uid::from_u128(1).to_string()}}]});
            let body = if watch { Vec::new() } else { list.to_string().into_bytes() };
            async move { Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(body))) }
        });
        let client = Client::new(service, "default");
        let mut objects = Objects::<PartialObjectMeta<ConfigMap>>::watch_metadata(&client, &Config::default());
        let first = objects.next().await.unwrap();
        assert!(
            matches!(&first, ObjectChange::Seen { object: Ok(object), .. } if object.metadata.name.as_deref() == Some("a"))
        );
        for watch in [false, true] {
            let (of_watch, accepts) = requests.recv().await.unwrap();
            assert_eq!(of_watch, watch);
            assert!(accepts.contains("as=PartialObjectMetadata"), "{accepts}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failing_lists_are_retried_with_backoff() {
        let lists = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&lists);
        let client = apiserver(move |_| {
            asked.fetch_add(1, Ordering::Relaxed);
            Answer::Error(500)
        });
        let mut objects = Objects::<ConfigMap>::watch(&client, &[], &Config::default());
        assert!(timeout(Duration::from_secs(60), objects.next()).await.is_err());
        let lists = lists.load(Ordering::Relaxed);
        assert!((12..40).contains(&lists), "{lists} lists in a minute");
    }
}
