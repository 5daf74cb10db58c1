//! Measures usage for `UsageThreshold` objects: runs their PromQL queries, watches their quotas, and sends the results
//! to the engine, which compares them with the thresholds. The leader loop starts this task.
//!
//! 1. Nothing is measured before all `UsageThreshold` objects are listed and the engine knows them.
//! 2. A failed query or a missing quota appears only in the status. It is not an evaluation, so the engine does not see
//!    it.
//! 3. Queries carry the headers that the spec takes from Secrets. Secrets are read again every 30 s, and their content
//!    appears in no log and no status.
//! 4. Queries with the same interval are spread over it. A new or changed spec is measured immediately. At most one
//!    query per object is in flight.
//! 5. Quotas are watched only while a spec names one, and measured when they change.

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
    prometheus::{Prometheus, QueryResult},
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

/// `resource.group`. It is part of every event id, so it must never change.
pub const NAME: &str = "usagethresholds.llmtune.io";
/// After a start all queries are made within this time, or within their interval if that is shorter.
const FIRST: Duration = Duration::from_secs(10);
/// The time after which Secrets are read again.
const FRESH: Duration = Duration::from_secs(30);
/// The time that the list of quotas may take before the status reports it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The name in the ledger of the watch of one namespace, or of all.
#[must_use]
pub fn watch_name(namespace: Option<&str>) -> String {
    namespace.map_or_else(|| NAME.to_owned(), |namespace| format!("{NAME} in {namespace}"))
}

/// Identifies a `UsageThreshold`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRef {
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
}

/// News about a `UsageThreshold`, for its status.
#[derive(Debug)]
pub enum UsageUpdate {
    /// It exists. `found` is the status in the cluster.
    Found { threshold: UsageRef, found: Box<UsageThresholdStatus> },
    /// It was measured, by the spec of this generation.
    Measured { uid: Uid, generation: i64, facts: Box<UsageFacts> },
    /// It could not be measured, by the spec of this generation.
    Failed { uid: Uid, generation: i64, failure: Failure, at: Timestamp },
    /// These thresholds are reached, in ascending order.
    Reached { uid: Uid, thresholds: Vec<String> },
    /// It is deleted.
    Gone(Uid),
}

/// The dependencies of the task.
pub struct Usage {
    pub client: Client,
    /// The watches of the engine by namespace. `None` means all namespaces.
    pub scopes: Vec<(WatchId, Option<String>)>,
    pub prometheus: Arc<Prometheus>,
    /// Reads the Secrets that queries need.
    pub reader: Arc<Reader>,
    /// Receives evaluations.
    pub observations: mpsc::Sender<Observation>,
    /// Holds back observations of Namespaces that the engine does not know.
    pub namespaces: NamespaceBarrier,
    /// Receives results and failures, for the status.
    pub updates: mpsc::UnboundedSender<UsageUpdate>,
    /// Counts evaluations by source and result.
    pub evaluations: IntCounterVec,
    /// The duration of queries.
    pub query_duration: Histogram,
}

/// The state of a `UsageThreshold`.
struct ThresholdEntry {
    watch: WatchId,
    threshold: UsageRef,
    generation: i64,
    labels: BTreeMap<String, String>,
    annotations: Option<BTreeMap<String, String>>,
    created_at: Option<Timestamp>,
    plan: Result<Plan, Failure>,
    /// The query in flight.
    query: Option<AbortHandle>,
    /// The headers of its queries, and when they were read.
    headers: Option<(Instant, Arc<HeaderMap>)>,
}

/// A finished query, made by the spec of this generation.
struct Ended {
    uid: Uid,
    generation: i64,
    answer: QueryResult,
    /// The headers of the query, and when they were read. `None` if they must be read again before the next query.
    headers: Option<(Instant, Arc<HeaderMap>)>,
}

/// The quotas. They are watched while a spec names one.
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
    /// Runs until the engine stops or a watch ends.
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
        // The leader loop notices that the task has ended.
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
                        let message = "the UsageThreshold cannot be read and is not measured: correct it, or upgrade the operator to the release that it was written for";
                        warn!(namespace = invalid.metadata.namespace, name = invalid.metadata.name, error = invalid.error, "{message}");
                        if let Some(watch) = self.watch_of(&invalid.metadata) {
                            self.unreadable.insert(uid, watch);
                        }
                        self.forget(uid);
                    }
                    objects::ObjectChange::Gone(uid) => self.gone(uid).await?,
                    objects::ObjectChange::Listed => self.all_listed().await?,
                    // `Objects` logs the error and retries. Objects that a later list returns are a baseline or known.
                    objects::ObjectChange::Refused => {}
                },
                change = next_quota(&mut self.quotas) => self.quota(change.ok_or(Stopped)?).await?,
                Some(ended) = self.queries.join_next() => {
                    // An aborted query has no result.
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
        let includes = |namespace: &Option<String>| namespace.is_none() || *namespace == metadata.namespace;
        self.usage.scopes.iter().find(|(_, namespace)| includes(namespace)).map(|(watch, _)| *watch)
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
        // Spread the queries after a start, when all objects are applied at once.
        let wait = match &plan {
            Ok(plan) if !self.listed && matches!(plan.meter, Meter::Query { .. }) => {
                place(uid, plan.interval.min(FIRST))
            }
            _ => Duration::ZERO,
        };
        let created_at = metadata.creation_timestamp.map(|time| time.0);
        self.notify(UsageUpdate::Found {
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

    /// Removes an object and aborts its query.
    fn forget(&mut self, uid: Uid) {
        if let Some(query) = self.entries.remove(&uid).and_then(|entry| entry.query) {
            query.abort();
        }
        self.schedule.remove(uid);
    }

    async fn gone(&mut self, uid: Uid) -> Result<(), Stopped> {
        let watch = self.entries.get(&uid).map(|entry| entry.watch).or_else(|| self.unreadable.remove(&uid));
        self.forget(uid);
        self.notify(UsageUpdate::Gone(uid));
        self.follow_quotas();
        match watch {
            Some(watch) => self.observe(watch, WatchEvent::Gone(uid)).await,
            None => Ok(()),
        }
    }

    async fn all_listed(&mut self) -> Result<(), Stopped> {
        let existing = || {
            let readable = self.entries.iter().map(|(uid, entry)| (*uid, entry.watch));
            readable.chain(self.unreadable.iter().map(|(uid, watch)| (*uid, *watch)))
        };
        info!(thresholds = existing().count(), "all UsageThresholds are listed");
        let of_scopes = self.usage.scopes.iter().map(|(scope, _)| {
            let mut uids: Vec<Uid> = existing().filter(|(_, watch)| watch == scope).map(|(uid, _)| uid).collect();
            uids.sort_unstable();
            (*scope, uids)
        });
        for (scope, uids) in of_scopes.collect::<Vec<_>>() {
            self.observe(scope, WatchEvent::Only(uids)).await?;
        }
        self.listed = true;
        Ok(())
    }

    /// Starts or stops the watch of quotas. It runs only while a spec names a quota.
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
                // A quota of the same name may already exist again, with another uid.
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
        let affected = self.entries.values().filter(|entry| {
            let Ok(Plan { meter: Meter::Quota(quota), .. }) = &entry.plan else { return false };
            changed
                .as_ref()
                .is_none_or(|(namespace, name)| (namespace, name) == (&entry.threshold.namespace, &quota.name))
        });
        for uid in affected.map(|entry| entry.threshold.uid).collect::<Vec<_>>() {
            self.measure(uid).await?;
        }
        Ok(())
    }

    /// Measures a figure, or starts a query for it.
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
                        let answer = prometheus.query(&server, &query, &headers.1).await;
                        Ok::<_, ReferenceError>((answer, Some(headers)))
                    };
                    let failed = |failure| QueryResult { result: Err(failure), took: Duration::ZERO, pause: None };
                    let (answer, headers) = match caught(asking).await {
                        Some(Ok(answer)) => answer,
                        Some(Err(error)) => (failed(error.into()), None),
                        None => {
                            let message =
                                "the query failed because of a bug in the operator: report it with the operator's log";
                            (failed(Failure::new(Reason::QueryFailed, message)), None)
                        }
                    };
                    // The server may have rejected the headers, so read them again before the next query.
                    let refused = |failure: &Failure| failure.reason == Reason::PrometheusRefused;
                    let headers = headers.filter(|_| !answer.result.as_ref().is_err_and(refused));
                    Ended { uid, generation, answer, headers }
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
                    let message = "the operator cannot list resourcequotas (see its log): grant it list and watch on resourcequotas, as charts/kustomize/rbac.yaml of this release does";
                    Err(Failure::new(Reason::QuotaUnavailable, message))
                };
                self.evaluated(uid, result).await
            }
        }
    }

    async fn ended(&mut self, ended: Ended) -> Result<(), Stopped> {
        let Ended { uid, generation, answer: QueryResult { result, took, pause }, headers } = ended;
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

    /// Sends an evaluation to the engine and to the status, or a failure to the status only.
    async fn evaluated(&mut self, uid: Uid, result: Result<Figure, Failure>) -> Result<(), Stopped> {
        let Some(entry) = self.entries.get(&uid) else { return Ok(()) };
        let now = Timestamp::now();
        let at = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
        let source = entry.plan.as_ref().map_or("none", |plan| plan.meter.label());
        let evaluation = result.and_then(|figure| entry.plan.as_ref().map_err(Clone::clone)?.facts(figure, at));
        let label = evaluation.as_ref().map_or_else(|failure| failure.reason.name(), |_| "Measured");
        self.usage.evaluations.with_label_values(&[source, label]).inc();
        let UsageRef { namespace, name, .. } = &entry.threshold;
        let generation = entry.generation;
        let facts = match evaluation {
            Ok(facts) => facts,
            Err(failure) => {
                debug!(namespace, name, reason = label, message = failure.message, "not measured");
                self.notify(UsageUpdate::Failed { uid, generation, failure, at });
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
        self.usage.namespaces.wait_for(namespace).await;
        self.notify(UsageUpdate::Measured { uid, generation, facts: Box::new(facts) });
        self.observe(watch, WatchEvent::Measured(Box::new(object))).await
    }

    async fn observe(&self, watch: WatchId, change: WatchEvent) -> Result<(), Stopped> {
        self.usage.observations.send(Observation { watch, change }).await.map_err(|_| Stopped)
    }

    fn notify(&self, update: UsageUpdate) {
        // The status writer lives as long as this task.
        let _ = self.usage.updates.send(update);
    }
}

/// The headers of a query: the known ones while they are fresh, else read again.
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

/// The next change of a quota. Never completes while no quota is watched.
async fn next_quota(quotas: &mut Option<Quotas>) -> Option<objects::ObjectChange<SlimQuota>> {
    match quotas {
        Some(quotas) => quotas.objects.next().await,
        None => pending().await,
    }
}
