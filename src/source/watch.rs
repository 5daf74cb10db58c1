//! The resumable watch of a source: a list, then raw watches from the version of the list, while the operator leads.
//!
//! 1. A watch retries with backoff if the apiserver is unavailable. It replaces a connection on which no line has
//!    arrived within the time limit that the watch request sets.
//! 2. If its version has expired (410), the watch lists again.
//! 3. Observations go to the engine in order, over one bounded channel.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, Request, StatusCode, header::DATE};
use http_body_util::BodyExt;
use jiff::{Timestamp, fmt::rfc2822};
use kube::{
    Client,
    api::{GetParams, ListParams, WatchParams},
    client::Body,
    core::Request as Requests,
};
use prometheus::IntCounter;
use serde_json::value::RawValue;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{info, warn};

use super::{
    Malformed, Source, Whereabouts,
    frame::{self, Line, Lines, LongLine, MAX_LINE, Page, Partial, Status, Unreadable},
    health::{Trouble, WatchHealth},
    namespaces::NamespaceBarrier,
    slim,
};
use crate::calls::{pause, within};
use llmtune_client::error_chain::{ErrorChain, explain, lacks_right};
use llmtune_core::event::{
    object::{Uid, WatchId},
    observation::{CLOCK_TOLERANCE, ExistenceCheck, Observation, WatchEvent},
};

/// The time for which the apiserver keeps one watch open. It sends a bookmark before it closes the watch.
const WATCH_SECONDS: u32 = 30;
/// A watch on which nothing has arrived for this long is considered dead.
const IDLE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
/// The time limit of a request other than a watch. A busy apiserver needs long for a page of large objects.
const REQUEST: Duration = Duration::from_secs(30);
/// The number of objects in a page of a list.
const PAGE: u32 = 250;
/// A kind that was installed according to this process or the ledger counts as missing only after this time. An
/// apiserver that has just started may not serve its custom resources yet, and all their objects would then count as
/// new.
const KNOWN_KIND_MISSING_AFTER: Duration = Duration::from_secs(15);
/// The same for a kind that has never been installed.
const UNKNOWN_KIND_MISSING_AFTER: Duration = Duration::from_secs(3);
/// The minimum time between the starts of two watches.
const MIN_CYCLE: Duration = Duration::from_millis(250);
/// The interval between checks for a resource that is not installed.
const NOT_INSTALLED_INTERVAL: Duration = Duration::from_secs(3);

/// The name of an object that normally does not exist. A GET of it shows whether the operator may get objects.
const PROBE: &str = "llmtune-webhooks-probe";

/// The reason of a missing right.
const FORBIDDEN: &str = "Forbidden";

/// Why a list or a watch ended.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("the resourceVersion has expired")]
    Expired,
    #[error("etcd is older than the position of the watch")]
    Restored,
    #[error("the resource is not installed")]
    NotInstalled,
    #[error("the object does not exist")]
    NotFound,
    #[error(
        "objects of this kind are cluster-scoped, but a Webhook gets the events of its namespace: use a namespaced kind"
    )]
    NotNamespaced,
    #[error("the apiserver answered {0}: {text}", text = explain(*.0, .1))]
    Status(u16, String),
    #[error("the watch received nothing for {} s", .0.as_secs())]
    Silent(Duration),
    #[error(transparent)]
    LongLine(#[from] LongLine),
    #[error("the request failed: {0}")]
    Client(#[from] kube::Error),
    #[error("unreadable answer: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Request(#[from] kube::core::request::Error),
    #[error("unreadable answer: {0}")]
    Malformed(#[from] Malformed),
    #[error("the engine has stopped")]
    Stopped,
}

/// A response to a GET.
struct Got<T> {
    body: T,
    /// The apiserver's time of the response, minus [`CLOCK_TOLERANCE`]. The version of the response covers every object
    /// that existed at this time.
    at: Option<Timestamp>,
}

impl WatchError {
    /// The reason in a condition.
    fn reason(&self) -> &'static str {
        match self {
            Self::Status(code, message) if lacks_right(*code, message) => FORBIDDEN,
            Self::NotNamespaced => "NotNamespaced",
            _ => "Interrupted",
        }
    }
}

/// One watch of one source.
pub struct Watcher<S> {
    /// The ID of the watch in the engine.
    pub id: WatchId,
    /// The namespace, or `None` for all.
    pub namespace: Option<String>,
    /// The client. It must not retry requests.
    pub client: Client,
    /// Receives the observations.
    pub observations: mpsc::Sender<Observation>,
    /// The health of the watch.
    pub health: Arc<WatchHealth>,
    /// Counts objects that could not be read.
    pub malformed: IntCounter,
    /// Whether a filter reads annotations, so that observations must contain them.
    pub keep_annotations: Arc<AtomicBool>,
    /// Holds back observations of Namespaces that the engine does not know.
    pub namespaces: NamespaceBarrier,
    /// The newest resource version that was seen, or 0 after a restore of etcd.
    pub newest: AtomicU64,
    pub source: S,
}

impl<S: Source> Watcher<S> {
    /// Runs the watch and the existence checks until the engine stops.
    pub async fn follow(self: Arc<Self>, version: Option<u64>, checks: mpsc::UnboundedReceiver<ExistenceCheck>) {
        tokio::select! {
            () = Arc::clone(&self).run(version) => {}
            () = self.answer(checks) => {}
        }
    }

    /// Watches until the engine stops. Starts after `version`, or with a list if `version` is `None`.
    pub async fn run(self: Arc<Self>, version: Option<u64>) {
        // Version 1 means that a baseline exists, but its position is unknown.
        let mut position = version.filter(|version| *version > 1);
        // Whether the kind was ever installed according to this process or the ledger.
        let mut known = version.is_some();
        // Failures since the watch last received a line.
        let mut failures = 0;
        let mut missing: Option<Instant> = None;
        loop {
            self.health.turn();
            let begun = Instant::now();
            let watching = position.is_some();
            self.newest.fetch_max(position.unwrap_or_default(), Ordering::Relaxed);
            let result = self.cycle(&mut position, &mut failures).await;
            match result {
                Ok(()) => {
                    known = true;
                    missing = None;
                    if watching {
                        failures = 0;
                        // Without this wait, a watch that always ends immediately would restart in a busy loop.
                        sleep_until(begun + MIN_CYCLE).await;
                    }
                }
                Err(WatchError::Stopped) => return,
                Err(WatchError::Expired) => {
                    info!(kind = self.source.kind(), "the watch's resourceVersion has expired; listing");
                    position = None;
                    missing = None;
                    // Back off if versions always expire before the list is complete.
                    sleep_until(begun + MIN_CYCLE.max(pause(failures))).await;
                    failures += 1;
                }
                Err(WatchError::Restored) => {
                    warn!(
                        kind = self.source.kind(),
                        ?position,
                        "etcd was restored from a backup: it is older than versions already seen; comparing all objects"
                    );
                    if self.send(WatchEvent::Restored).await.is_err() {
                        return;
                    }
                    self.newest.store(0, Ordering::Relaxed);
                    position = None;
                    missing = None;
                }
                Err(WatchError::NotInstalled) => {
                    let since = *missing.get_or_insert_with(Instant::now);
                    let limit = if known { KNOWN_KIND_MISSING_AFTER } else { UNKNOWN_KIND_MISSING_AFTER };
                    if since.elapsed() >= limit {
                        if self.not_installed().await.is_err() {
                            return;
                        }
                        position = None;
                        known = false;
                    }
                    sleep(NOT_INSTALLED_INTERVAL).await;
                }
                Err(error) => {
                    let wait = pause(failures);
                    failures += 1;
                    missing = None;
                    self.interrupted(&error);
                    warn!(kind = self.source.kind(), namespace = self.namespace.as_deref(), error = %ErrorChain(&error), ?wait, "watch interrupted; trying again");
                    sleep(wait).await;
                }
            }
        }
    }

    /// Makes one list or one watch.
    async fn cycle(&self, position: &mut Option<u64>, failures: &mut u32) -> Result<(), WatchError> {
        match within(REQUEST, self.source.locate(&self.client)).await? {
            Whereabouts::Known => {}
            Whereabouts::NotServed => return Err(WatchError::NotInstalled),
            Whereabouts::NotNamespaced => return Err(WatchError::NotNamespaced),
        }
        match position {
            None => *position = Some(self.list().await?),
            Some(version) => {
                let current = self.require_version(*version).await?;
                if self.source.selector().is_some() && !self.health.is_answered() {
                    self.probe().await;
                }
                self.watch(version, current, failures).await?;
            }
        }
        Ok(())
    }

    /// Makes the engine's existence checks until the engine stops: one GET at a time, the newest check of each object.
    /// A check that fails is retried after a pause, behind the others. The watch does not wait for checks.
    pub async fn answer(self: Arc<Self>, mut checks: mpsc::UnboundedReceiver<ExistenceCheck>) {
        let mut newest: HashMap<Uid, ExistenceCheck> = HashMap::new();
        let mut queue: VecDeque<Uid> = VecDeque::new();
        let mut failures = 0;
        let mut next = Instant::now();
        loop {
            tokio::select! {
                biased;
                check = checks.recv() => match check {
                    Some(check) => {
                        let uid = check.uid;
                        if newest.insert(uid, check).is_none() {
                            queue.push_back(uid);
                        }
                    }
                    None => return,
                },
                () = sleep_until(next), if !queue.is_empty() => {
                    if !self.health.is_installed() {
                        // The engine knows that the kind is missing, and repeats the checks when the kind is back.
                        newest.clear();
                        queue.clear();
                        continue;
                    }
                    let Some(check) = queue.pop_front().and_then(|uid| newest.remove(&uid)) else { continue };
                    match self.exists(&check).await {
                        Ok(living) => {
                            failures = 0;
                            self.health.answered();
                            if self.send(WatchEvent::ExistenceChecked { check, exists: living }).await.is_err() {
                                return;
                            }
                        }
                        Err(error) => {
                            next = Instant::now() + pause(failures);
                            failures += 1;
                            let ExistenceCheck { namespace, name, .. } = &check;
                            if self.unanswered(&error) {
                                warn!(kind = self.source.kind(), namespace, name, error = %ErrorChain(&error), "cannot check whether the object still exists; trying again");
                            }
                            queue.push_back(check.uid);
                            newest.insert(check.uid, check);
                        }
                    }
                }
            }
        }
    }

    /// Records that an existence check failed. Returns whether to log it: a missing right is logged once.
    fn unanswered(&self, error: &WatchError) -> bool {
        if error.reason() != FORBIDDEN {
            return true;
        }
        let fix = match self.source.grant() {
            Some(grant) => format!("apply\n\n{grant}"),
            None => "apply charts/kustomize/rbac.yaml of this release".to_owned(),
        };
        let message = format!(
            "the operator may not get objects of this kind, so it cannot distinguish deleted objects from objects that lost their \
             label, and sends no event when they are deleted; {fix}"
        );
        self.health.refused(Trouble { reason: FORBIDDEN, message })
    }

    /// Finds out whether the operator may get objects, before the first existence check.
    async fn probe(&self) {
        let namespace = self.namespace.as_deref().unwrap_or("default");
        match self.find(namespace, PROBE).await {
            Ok(_) | Err(WatchError::NotFound) => self.health.answered(),
            Err(error) if error.reason() == FORBIDDEN => {
                if self.unanswered(&error) {
                    warn!(kind = self.source.kind(), error = %ErrorChain(&error), "cannot check whether objects that leave the selection still exist");
                }
            }
            // The next cycle repeats the probe.
            Err(_) => {}
        }
    }

    /// Requests for the collection in this namespace, or in all.
    fn collection(&self, namespace: Option<&str>) -> Result<Requests, WatchError> {
        self.source.path(namespace).map(Requests::new).ok_or(WatchError::NotInstalled)
    }

    fn interrupted(&self, error: &WatchError) {
        let reason = error.reason();
        let grant = self.source.grant().filter(|_| reason == FORBIDDEN);
        let message = match grant {
            Some(grant) => format!("the operator may not list and watch this kind; apply\n\n{grant}"),
            None => ErrorChain(error).to_string(),
        };
        self.health.interrupted(Trouble { reason, message });
    }

    async fn not_installed(&self) -> Result<(), WatchError> {
        self.health.touch();
        self.health.sync();
        self.health.clear_trouble();
        if self.health.set_installed(false) {
            warn!(kind = self.source.kind(), "{} is not installed; install it, and events follow", self.source.name());
        }
        let at = self.time().await;
        self.send(WatchEvent::NotInstalled(at)).await
    }

    /// The apiserver's time minus [`CLOCK_TOLERANCE`], or `None` if it is unknown.
    async fn time(&self) -> Option<Timestamp> {
        let request = Request::get("/version").body(Vec::new()).ok()?;
        within(REQUEST, self.open(request, REQUEST)).await.ok()?.at
    }

    async fn send(&self, change: WatchEvent) -> Result<(), WatchError> {
        if let WatchEvent::Seen(object) | WatchEvent::Deleted(object) | WatchEvent::Left(object) = &change
            && !self.namespaces.know(&object.namespace)
        {
            self.wait_for_namespace(&object.namespace).await;
        }
        let observation = Observation { watch: self.id, change };
        self.observations.send(observation).await.map_err(|_| WatchError::Stopped)
    }

    /// Waits until the engine knows this Namespace.
    async fn wait_for_namespace(&self, namespace: &str) {
        let mut known = pin!(self.namespaces.wait_for(namespace));
        // The wait can be long if the apiserver is unavailable. The task is not stuck, so its health must not say so.
        while timeout(IDLE, &mut known).await.is_err() {
            self.health.turn();
        }
    }

    /// Lists the whole collection in pages, at one consistent version. Returns the version.
    async fn list(&self) -> Result<u64, WatchError> {
        let mut token = None;
        let mut begun = false;
        let mut first = None;
        loop {
            let page = ListParams {
                limit: Some(PAGE),
                continue_token: token.take(),
                label_selector: self.source.selector().map(str::to_owned),
                ..ListParams::default()
            };
            let Got { body, at } = self.get(self.collection(self.namespace.as_deref())?.list(&page)?).await?;
            self.health.touch();
            let (meta, items) = frame::read_page(&self.source, &body, &self.malformed, self.keeps_annotations())?;
            let version = slim::version(&meta.resource_version)?;
            if !std::mem::replace(&mut begun, true) {
                // All pages have the version of the first.
                first = at;
                // A list that failed or a watch that expired may have seen versions from before a restore.
                if version < self.newest.fetch_max(version, Ordering::Relaxed) {
                    warn!(
                        kind = self.source.kind(),
                        "etcd was restored from a backup: it is older than versions already seen"
                    );
                    self.newest.store(version, Ordering::Relaxed);
                    self.send(WatchEvent::Restored).await?;
                }
                self.send(WatchEvent::ListBegun).await?;
            }
            for item in items {
                match item {
                    Ok(object) => self.send(WatchEvent::Seen(Box::new(object))).await?,
                    Err(Some(unreadable)) => self.send(WatchEvent::Unreadable(unreadable.uid)).await?,
                    Err(None) => {}
                }
            }
            if let Some(next) = meta.continue_token.filter(|token| !token.is_empty()) {
                token = Some(next);
                continue;
            }
            if self.health.set_installed(true) {
                info!(kind = self.source.kind(), "{} is installed now", self.source.name());
            }
            self.send(WatchEvent::ListEnded(version)).await?;
            if let Some(at) = first {
                self.send(WatchEvent::Current(at)).await?;
            }
            self.health.sync();
            return Ok(version);
        }
    }

    /// Fails if etcd has not reached this version, because a watch from a future version would stay silent. Returns the
    /// version of etcd and a time: every object that existed at this time is of that version or an earlier one.
    async fn require_version(&self, version: u64) -> Result<Option<(u64, Timestamp)>, WatchError> {
        let one = ListParams { limit: Some(1), ..ListParams::default() };
        let Got { body, at } = self.get(self.collection(self.namespace.as_deref())?.list(&one)?).await?;
        let page: Page<&RawValue> = serde_json::from_slice(&body)?;
        let reached = slim::version(&page.metadata.resource_version)?;
        if reached < version { Err(WatchError::Restored) } else { Ok(at.map(|at| (reached, at))) }
    }

    fn keeps_annotations(&self) -> bool {
        self.keep_annotations.load(Ordering::Relaxed)
    }

    /// Follows one watch to its end and advances `version`. When the watch has passed the version in `current`, it has
    /// seen every object that existed at the time in `current`.
    async fn watch(
        &self,
        version: &mut u64,
        mut current: Option<(u64, Timestamp)>,
        failures: &mut u32,
    ) -> Result<(), WatchError> {
        let params = WatchParams {
            timeout: Some(WATCH_SECONDS),
            label_selector: self.source.selector().map(str::to_owned),
            ..WatchParams::default()
        };
        let request = self.collection(self.namespace.as_deref())?.watch(&params, &version.to_string())?;
        let mut body = self.open(request, IDLE).await?.body;
        self.health.touch();
        self.health.sync();
        let mut lines = Lines::of(MAX_LINE);
        loop {
            while let Some(line) = lines.next_line()? {
                self.line(&line, version).await?;
                *failures = 0;
            }
            if let Some((_, at)) = current.take_if(|(reached, _)| *version >= *reached) {
                self.send(WatchEvent::Current(at)).await?;
            }
            match timeout(IDLE, body.frame()).await.map_err(|_| WatchError::Silent(IDLE))? {
                None => return Ok(()),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.health.touch();
                        lines.push(&data);
                    }
                }
            }
        }
    }

    async fn line(&self, line: &[u8], version: &mut u64) -> Result<(), WatchError> {
        let change = match frame::read_line(&self.source, line, &self.malformed, self.keeps_annotations())? {
            Line::Bookmark(passed) => {
                *version = passed;
                WatchEvent::Bookmark(passed)
            }
            Line::Ended(Status { code: 410, .. }) => return Err(WatchError::Expired),
            Line::Ended(Status { code, message, .. }) => return Err(WatchError::Status(code, message)),
            Line::Seen(Ok(object)) => {
                *version = object.version;
                WatchEvent::Seen(Box::new(object))
            }
            Line::Deleted(Ok(object)) => {
                *version = object.version;
                // With a selector, the object may only have lost its label.
                if self.source.selector().is_some() {
                    WatchEvent::Left(Box::new(object))
                } else {
                    WatchEvent::Deleted(Box::new(object))
                }
            }
            Line::Deleted(Err(Some(gone))) => {
                let Unreadable { uid, version: left, namespace, name } = gone;
                *version = left;
                if self.source.selector().is_some() {
                    WatchEvent::LeftUnread(ExistenceCheck { watch: self.id, uid, namespace, name, version: left })
                } else {
                    WatchEvent::Vanished(uid)
                }
            }
            Line::Seen(Err(_)) | Line::Deleted(Err(None)) => return Ok(()),
        };
        self.send(change).await
    }

    /// Whether the object still exists.
    async fn exists(&self, check: &ExistenceCheck) -> Result<bool, WatchError> {
        match self.find(&check.namespace, &check.name).await {
            Ok(partial) => Ok(Uid::parse(&partial.metadata.uid) == Some(check.uid)),
            Err(WatchError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn find(&self, namespace: &str, name: &str) -> Result<Partial, WatchError> {
        let request = self.collection(Some(namespace))?.get(name, &GetParams::default())?;
        Ok(serde_json::from_slice(&self.get(request).await?.body)?)
    }

    /// Makes a GET and reads the whole response.
    async fn get(&self, request: Request<Vec<u8>>) -> Result<Got<Vec<u8>>, WatchError> {
        let Got { body, at } = self.open(request, REQUEST).await?;
        Ok(Got { body: within(REQUEST, read_all(body)).await?, at })
    }

    /// Starts a GET. A status other than 200 is an error.
    async fn open(&self, request: Request<Vec<u8>>, limit: Duration) -> Result<Got<Body>, WatchError> {
        let response = within(limit, self.client.send(request.map(Body::from))).await?;
        let code = response.status();
        if code == StatusCode::OK {
            let at = date(response.headers()).and_then(|date| date.checked_sub(CLOCK_TOLERANCE).ok());
            return Ok(Got { body: response.into_body(), at });
        }
        let body = within(limit, read_all(response.into_body())).await?;
        let status: Status = serde_json::from_slice(&body).unwrap_or_default();
        Err(match code {
            StatusCode::GONE => WatchError::Expired,
            StatusCode::NOT_FOUND if status.names_an_object() => WatchError::NotFound,
            StatusCode::NOT_FOUND => WatchError::NotInstalled,
            code => WatchError::Status(code.as_u16(), status.message),
        })
    }
}

/// The `Date` of a response by the apiserver's clock, if it has one (RFC 9110, 6.6.1).
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get(DATE)?.to_str().ok()?;
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// Reads a body into one buffer. Each frame is freed once it is copied, to save memory.
async fn read_all(mut body: Body) -> Result<Vec<u8>, kube::Error> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
