//! Usage figures, measured: PromQL queries and quotas, against the thresholds of `UsageThreshold` objects.
//!
//! 1. Nothing is measured before all `UsageThreshold` objects are listed, and the engine knows which there are.
//! 2. A query that fails, and a quota that is not there, is told to whoever reads statuses and to nobody else: it is no
//!    evaluation.
//! 3. Queries bear what their spec names in Secrets, read again every 30 s; what is from there is told nobody.
//! 4. Queries of one interval are spread over it; a spec that is new or has changed is measured at once. Of one object at most one query is
//!    under way.
//! 5. Quotas are watched while a spec names one, and measured when they change.

mod plan;
pub mod prometheus;
mod quota;
mod schedule;

use std::{
    collections::{BTreeMap, HashMap},
    future::pending,
    sync::Arc,
    time::Duration,
};

use ::prometheus::{Histogram, IntCounterVec};
use http::HeaderMap;
use jiff::Timestamp;
use kube::{Client, core::ObjectMeta, runtime::watcher::Config};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use self::{
    plan::{Meter, Plan},
    prometheus::{Asked, Prometheus},
    quota::SlimQuota,
    schedule::{Schedule, place, turn_after},
};
use crate::{
    objects::{self, Objects},
    panics::caught,
    source::{namespaces::NamespaceBarrier, slim},
    subscription::{credentials::Credentials, reader::Reader, reference::ReferenceError},
};
use llmtune_api::{UsageThreshold, usage_threshold::UsageThresholdStatus};
use llmtune_core::event::{
    object::{Facts, Object, Uid, UsageFacts, WatchId},
    observation::{Observation, WatchEvent},
};

pub use plan::{Failure, Figure, Reason};

/// `resource.group`: part of every event id, so it never changes.
pub const NAME: &str = "usagethresholds.llmtune.io";
/// At a start all queries are made within this time, or within their interval where that is shorter.
const FIRST: Duration = Duration::from_secs(10);
/// For how long what lies in Secrets is used before it is read again.
const FRESH: Duration = Duration::from_secs(30);
/// How long quotas may take to be listed before that is told.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the ledger calls the watch of one namespace, or of all.
#[must_use]
pub fn watch_name(namespace: Option<&str>) -> String {
    namespace.map_or_else(|| NAME.to_owned(), |namespace| format!("{NAME} in {namespace}"))
}

/// Which `UsageThreshold`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRef {
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
}

/// What is told of a `UsageThreshold`, for its status.
#[derive(Debug)]
pub enum UsageUpdate {
    /// It is there; `found` is the status in the cluster.
    Found { threshold: UsageRef, found: Box<UsageThresholdStatus> },
    /// It was measured, under the spec of this generation.
    Measured { uid: Uid, generation: i64, facts: Box<UsageFacts> },
    /// It was not measured, and why.
    Failed { uid: Uid, generation: i64, failure: Failure, at: Timestamp },
    /// These thresholds are reached, ascending.
    Reached { uid: Uid, thresholds: Vec<String> },
    /// It is deleted.
    Gone(Uid),
}

/// What the task is given.
pub struct Usage {
    pub client: Client,
    /// The watches of the engine, by namespace; `None`: all namespaces.
    pub scopes: Vec<(WatchId, Option<String>)>,
    pub prometheus: Arc<Prometheus>,
    /// Of the Secrets that queries name.
    pub reader: Arc<Reader>,
    /// Where evaluations go.
    pub observations: mpsc::Sender<Observation>,
    /// The Namespaces that the engine has been told of.
    pub told_namespaces: NamespaceBarrier,
    /// Where results and failures go.
    pub told: mpsc::UnboundedSender<UsageUpdate>,
    /// Evaluations by source and result.
    pub evaluations: IntCounterVec,
    /// How long queries take.
    pub query_duration: Histogram,
}

/// A `UsageThreshold` as the task knows it.
struct ThresholdEntry {
    watch: WatchId,
    threshold: UsageRef,
    generation: i64,
    labels: BTreeMap<String, String>,
    annotations: Option<BTreeMap<String, String>>,
    created_at: Option<Timestamp>,
    plan: Result<Plan, Failure>,
    /// The query that is under way.
    query: Option<AbortHandle>,
    /// The headers of queries, and when they were read.
    headers: Option<(Instant, Arc<HeaderMap>)>,
}

/// A query that has ended, made under the spec of this generation.
struct Ended {
    uid: Uid,
    generation: i64,
    asked: Asked,
    /// The headers that the query bore, and when they were read; `None` where they are to be read before the next.
    headers: Option<(Instant, Arc<HeaderMap>)>,
}

/// Quotas, while a spec names one.
struct Quotas {
    objects: Objects<SlimQuota>,
    usages: HashMap<(String, String), quota::Usage>,
    names: HashMap<Uid, (String, String)>,
    since: Instant,
    listed: bool,
    /// The operator may not list them.
    refused: bool,
}

/// The engine has stopped.
struct Stopped;

impl Usage {
    /// Measures until the engine stops, or a watch has ended.
    pub async fn run(self) {
        let namespaces: Vec<String> = self.scopes.iter().filter_map(|(_, namespace)| namespace.clone()).collect();
        let thresholds = Objects::<UsageThreshold>::watch(&self.client, &namespaces, &Config::default().timeout(30));
        let mut measuring = Measuring {
            usage: self,
            namespaces,
            entries: HashMap::new(),
            unreadable: HashMap::new(),
            listed: false,
            quotas: None,
            queries: JoinSet::new(),
            schedule: Schedule::default(),
            begun: Instant::now(),
        };
        // Either way the task has ended, which whoever started it notices.
        let _ = measuring.follow(thresholds).await;
    }
}

struct Measuring {
    usage: Usage,
    namespaces: Vec<String>,
    entries: HashMap<Uid, ThresholdEntry>,
    /// Objects that this release cannot read.
    unreadable: HashMap<Uid, WatchId>,
    listed: bool,
    quotas: Option<Quotas>,
    queries: JoinSet<Ended>,
    schedule: Schedule,
    begun: Instant,
}

impl Measuring {
    async fn follow(&mut self, mut thresholds: Objects<UsageThreshold>) -> Result<(), Stopped> {
        loop {
            let next = self.schedule.next().filter(|_| self.listed).map(|at| self.begun + at);
            tokio::select! {
                change = thresholds.next() => match change.ok_or(Stopped)? {
                    objects::ObjectChange::Seen { uid, object: Ok(object), .. } => self.applied(uid, *object),
                    objects::ObjectChange::Seen { uid, object: Err(invalid), .. } => {
                        let say = "the UsageThreshold cannot be read and is not measured: correct it, or upgrade the operator to the release that it was written for";
                        warn!(namespace = invalid.metadata.namespace, name = invalid.metadata.name, error = invalid.error, "{say}");
                        if let Some(watch) = self.watch_of(&invalid.metadata) {
                            self.unreadable.insert(uid, watch);
                        }
                        self.forget(uid);
                    }
                    objects::ObjectChange::Gone(uid) => self.gone(uid).await?,
                    objects::ObjectChange::Listed => self.all_listed().await?,
                    // The log says why; once it is not refused any more, what is there is a baseline or known.
                    objects::ObjectChange::Refused => {}
                },
                change = next_quota(&mut self.quotas) => self.quota(change.ok_or(Stopped)?).await?,
                Some(ended) = self.queries.join_next() => {
                    // What was broken off is void.
                    if let Ok(ended) = ended {
                        self.ended(ended).await?;
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            while self.listed
                && let Some(uid) = self.schedule.pop(self.begun.elapsed())
            {
                self.measure(uid).await?;
            }
        }
    }

    fn watch_of(&self, metadata: &ObjectMeta) -> Option<WatchId> {
        let of = |namespace: &Option<String>| namespace.is_none() || *namespace == metadata.namespace;
        self.usage.scopes.iter().find(|(_, namespace)| of(namespace)).map(|(watch, _)| *watch)
    }

    fn applied(&mut self, uid: Uid, object: UsageThreshold) {
        let metadata = object.metadata;
        let (Some(watch), Some(namespace), Some(name)) = (self.watch_of(&metadata), metadata.namespace, metadata.name)
        else {
            return;
        };
        let labels = metadata.labels.unwrap_or_default();
        let annotations = slim::kept_annotations(metadata.annotations.unwrap_or_default());
        let generation = metadata.generation.unwrap_or_default();
        if let Some(known) = self.entries.get_mut(&uid).filter(|known| known.generation == generation) {
            known.labels = labels;
            known.annotations = annotations;
            return;
        }
        self.unreadable.remove(&uid);
        self.forget(uid);
        let plan = Plan::read(&object.spec, self.usage.prometheus.servers(), &namespace);
        let threshold = UsageRef { uid, namespace, name };
        // At a start all come at once.
        let wait = match &plan {
            Ok(plan) if !self.listed && matches!(plan.meter, Meter::Query { .. }) => {
                place(uid, plan.interval.min(FIRST))
            }
            _ => Duration::ZERO,
        };
        let created_at = metadata.creation_timestamp.map(|time| time.0);
        self.tell(UsageUpdate::Found {
            threshold: threshold.clone(),
            found: Box::new(object.status.unwrap_or_default()),
        });
        let (query, headers) = (None, None);
        self.entries.insert(
            uid,
            ThresholdEntry { watch, threshold, generation, labels, annotations, created_at, plan, query, headers },
        );
        self.schedule.set(uid, self.begun.elapsed() + wait);
        self.follow_quotas();
    }

    /// Breaks off what was to be measured of it.
    fn forget(&mut self, uid: Uid) {
        if let Some(query) = self.entries.remove(&uid).and_then(|entry| entry.query) {
            query.abort();
        }
        self.schedule.remove(uid);
    }

    async fn gone(&mut self, uid: Uid) -> Result<(), Stopped> {
        let watch = self.entries.get(&uid).map(|entry| entry.watch).or_else(|| self.unreadable.remove(&uid));
        self.forget(uid);
        self.tell(UsageUpdate::Gone(uid));
        self.follow_quotas();
        match watch {
            Some(watch) => self.observe(watch, WatchEvent::Gone(uid)).await,
            None => Ok(()),
        }
    }

    async fn all_listed(&mut self) -> Result<(), Stopped> {
        let there = || {
            let readable = self.entries.iter().map(|(uid, entry)| (*uid, entry.watch));
            readable.chain(self.unreadable.iter().map(|(uid, watch)| (*uid, *watch)))
        };
        info!(thresholds = there().count(), "all UsageThresholds are listed");
        let of_scopes = self.usage.scopes.iter().map(|(scope, _)| {
            let mut uids: Vec<Uid> = there().filter(|(_, watch)| watch == scope).map(|(uid, _)| uid).collect();
            uids.sort_unstable();
            (*scope, uids)
        });
        for (scope, uids) in of_scopes.collect::<Vec<_>>() {
            self.observe(scope, WatchEvent::Only(uids)).await?;
        }
        self.listed = true;
        Ok(())
    }

    /// Watches quotas exactly while a spec names one.
    fn follow_quotas(&mut self) {
        let named = |entry: &ThresholdEntry| matches!(&entry.plan, Ok(Plan { meter: Meter::Quota(_), .. }));
        if !self.entries.values().any(named) {
            self.quotas = None;
        } else if self.quotas.is_none() {
            self.quotas = Some(Quotas {
                objects: Objects::watch(&self.usage.client, &self.namespaces, &Config::default().timeout(30)),
                usages: HashMap::new(),
                names: HashMap::new(),
                since: Instant::now(),
                listed: false,
                refused: false,
            });
        }
    }

    async fn quota(&mut self, change: objects::ObjectChange<SlimQuota>) -> Result<(), Stopped> {
        let Some(quotas) = &mut self.quotas else { return Ok(()) };
        let changed = match change {
            objects::ObjectChange::Seen { uid, object, .. } => {
                let (metadata, usage) = match object {
                    Ok(quota) => (quota.metadata, quota.status),
                    Err(invalid) => (invalid.metadata, quota::Usage::default()),
                };
                let (Some(namespace), Some(name)) = (metadata.namespace, metadata.name) else { return Ok(()) };
                let key = (namespace, name);
                quotas.names.insert(uid, key.clone());
                if quotas.usages.insert(key.clone(), usage.clone()) == Some(usage) {
                    return Ok(());
                }
                Some(key)
            }
            objects::ObjectChange::Gone(uid) => {
                let Some(key) = quotas.names.remove(&uid) else { return Ok(()) };
                // It may be there again already, under another uid.
                if !quotas.names.values().any(|named| *named == key) {
                    quotas.usages.remove(&key);
                }
                Some(key)
            }
            objects::ObjectChange::Listed => {
                quotas.listed = true;
                quotas.refused = false;
                None
            }
            objects::ObjectChange::Refused if quotas.refused => return Ok(()),
            objects::ObjectChange::Refused => {
                quotas.refused = true;
                None
            }
        };
        if !self.listed {
            return Ok(());
        }
        let concerned = self.entries.values().filter(|entry| {
            let Ok(Plan { meter: Meter::Quota(quota), .. }) = &entry.plan else { return false };
            changed
                .as_ref()
                .is_none_or(|(namespace, name)| (namespace, name) == (&entry.threshold.namespace, &quota.name))
        });
        for uid in concerned.map(|entry| entry.threshold.uid).collect::<Vec<_>>() {
            self.measure(uid).await?;
        }
        Ok(())
    }

    /// Measures a figure, or begins to.
    async fn measure(&mut self, uid: Uid) -> Result<(), Stopped> {
        let now = self.begun.elapsed();
        let Some(entry) = self.entries.get_mut(&uid) else { return Ok(()) };
        let generation = entry.generation;
        let plan = match &entry.plan {
            Ok(plan) => plan,
            Err(failure) => {
                let failure = failure.clone();
                return self.evaluated(uid, Err(failure)).await;
            }
        };
        match &plan.meter {
            Meter::Query { server, query, credentials } => {
                self.schedule.set(uid, turn_after(now, uid, plan.interval));
                if entry.query.is_some() {
                    return Ok(());
                }
                let (prometheus, server, query) = (Arc::clone(&self.usage.prometheus), server.clone(), query.clone());
                let (reader, credentials) = (Arc::clone(&self.usage.reader), credentials.clone());
                let known = entry.headers.clone();
                entry.query = Some(self.queries.spawn(async move {
                    let asking = async {
                        let headers = headers(&reader, &credentials, known).await?;
                        let asked = prometheus.query(&server, &query, &headers.1).await;
                        Ok::<_, ReferenceError>((asked, Some(headers)))
                    };
                    let unasked = |failure| Asked { result: Err(failure), took: Duration::ZERO, pause: None };
                    let (asked, headers) = match caught(asking).await {
                        Some(Ok(asked)) => asked,
                        Some(Err(error)) => (unasked(error.into()), None),
                        None => {
                            let say = "the operator broke off the query: please report this with its log";
                            (unasked(Failure::new(Reason::QueryFailed, say)), None)
                        }
                    };
                    // What is refused may be refused for what it bore.
                    let refused = |failure: &Failure| failure.reason == Reason::PrometheusRefused;
                    let headers = headers.filter(|_| !asked.result.as_ref().is_err_and(refused));
                    Ended { uid, generation, asked, headers }
                }));
                Ok(())
            }
            Meter::Quota(named) => {
                if let Some(pause) = plan.look_again() {
                    self.schedule.set(uid, now + pause);
                }
                let Some(quotas) = &self.quotas else { return Ok(()) };
                let usage = quotas.usages.get(&(entry.threshold.namespace.clone(), named.name.clone()));
                let result = if usage.is_some() || quotas.listed {
                    quota::figure(usage, named)
                } else if !quotas.refused && quotas.since.elapsed() < PATIENCE {
                    self.schedule.set(uid, now + PATIENCE);
                    return Ok(());
                } else {
                    let say = "the operator cannot list resourcequotas, its log says why: grant it that right, as charts/kustomize/rbac.yaml of this release does";
                    Err(Failure::new(Reason::QuotaUnavailable, say))
                };
                self.evaluated(uid, result).await
            }
        }
    }

    async fn ended(&mut self, ended: Ended) -> Result<(), Stopped> {
        let Ended { uid, generation, asked: Asked { result, took, pause }, headers } = ended;
        let current = self.entries.get_mut(&uid).filter(|entry| entry.generation == generation);
        let Some(entry) = current else { return Ok(()) };
        entry.query = None;
        entry.headers = headers;
        let now = self.begun.elapsed();
        if let (Some(pause), Ok(plan)) = (pause, &entry.plan) {
            self.schedule.set(uid, (now + pause).max(turn_after(now, uid, plan.interval)));
        }
        self.usage.query_duration.observe(took.as_secs_f64());
        self.evaluated(uid, result.map(|value| Figure { value, limit: None })).await
    }

    /// Hands an evaluation on: to the engine, and to the status; a failure to the status alone.
    async fn evaluated(&mut self, uid: Uid, result: Result<Figure, Failure>) -> Result<(), Stopped> {
        let Some(entry) = self.entries.get(&uid) else { return Ok(()) };
        let now = Timestamp::now();
        let at = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
        let source = entry.plan.as_ref().map_or("none", |plan| plan.meter.label());
        let judged = result.and_then(|figure| entry.plan.as_ref().map_err(Clone::clone)?.facts(figure, at));
        let label = judged.as_ref().map_or_else(|failure| failure.reason.name(), |_| "Measured");
        self.usage.evaluations.with_label_values(&[source, label]).inc();
        let UsageRef { namespace, name, .. } = &entry.threshold;
        let generation = entry.generation;
        let facts = match judged {
            Ok(facts) => facts,
            Err(failure) => {
                debug!(namespace, name, reason = label, message = failure.message, "not measured");
                self.tell(UsageUpdate::Failed { uid, generation, failure, at });
                return Ok(());
            }
        };
        debug!(namespace, name, value = %facts.value, "measured");
        let object = Object {
            uid,
            version: 0,
            kind: None,
            generation,
            namespace: namespace.clone(),
            name: name.clone(),
            labels: entry.labels.clone(),
            namespace_labels: None,
            annotations: entry.annotations.clone(),
            created_at: entry.created_at,
            owned: false,
            facts: Facts::Usage(facts.clone()),
        };
        let watch = entry.watch;
        self.usage.told_namespaces.wait_for(namespace).await;
        self.tell(UsageUpdate::Measured { uid, generation, facts: Box::new(facts) });
        self.observe(watch, WatchEvent::Measured(Box::new(object))).await
    }

    async fn observe(&self, watch: WatchId, change: WatchEvent) -> Result<(), Stopped> {
        self.usage.observations.send(Observation { watch, change }).await.map_err(|_| Stopped)
    }

    fn tell(&self, told: UsageUpdate) {
        // Whoever writes statuses lives as long as this task.
        let _ = self.usage.told.send(told);
    }
}

/// The headers of a query: those that are known, while they are fresh.
async fn headers(
    reader: &Reader,
    credentials: &Credentials,
    known: Option<(Instant, Arc<HeaderMap>)>,
) -> Result<(Instant, Arc<HeaderMap>), ReferenceError> {
    let fresh = known.filter(|(read, _)| !credentials.may_change() || read.elapsed() < FRESH);
    match fresh {
        Some(known) => Ok(known),
        None => Ok((Instant::now(), Arc::new(credentials.find(reader).await?))),
    }
}

/// The next change of a quota; never, while none is watched.
async fn next_quota(quotas: &mut Option<Quotas>) -> Option<objects::ObjectChange<SlimQuota>> {
    match quotas {
        Some(quotas) => quotas.objects.next().await,
        None => pending().await,
    }
}
