//! The resumable watch: a list, then a raw watch from the list's version on, for as long as the operator leads.
//!
//! It survives an apiserver that goes away and connections that go silent (no line within the server's own time limit),
//! lists anew when its version has expired (410), and hands everything on in order over one bounded channel.

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

/// How long the apiserver keeps one watch open. It sends a bookmark before it ends one.
const WATCH_SECONDS: u32 = 30;
/// A watch without a line for this long is dead: its connection has gone silent.
const IDLE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
/// The limit on one request that is no watch: a page of large objects takes a busy apiserver its time.
const REQUEST: Duration = Duration::from_secs(30);
/// Objects to a page of a list.
const PAGE: u32 = 250;
/// A resource that was installed, as far as this process or the ledger knows, must be missing for this long before that is
/// believed: an apiserver that has just begun may not know its custom resources yet, and believing it would make all their
/// objects new.
const BELIEVED_MISSING: Duration = Duration::from_secs(15);
/// The same for one that was never seen installed.
const BELIEVED_ABSENT: Duration = Duration::from_secs(3);
/// A watch is begun at most this often.
const SHORTEST_TURN: Duration = Duration::from_millis(250);
/// How often a resource that is not installed is looked for.
const NOT_INSTALLED_INTERVAL: Duration = Duration::from_secs(3);

/// No object has this name, as a rule: whether it may be asked for shows whether any may.
const PROBE: &str = "llmtune-webhooks-probe";

/// The operator's rights are what is missing.
const FORBIDDEN: &str = "Forbidden";

/// Why a list or a watch ended.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("the resourceVersion has expired")]
    Expired,
    #[error("the store is behind the watch")]
    Restored,
    #[error("the resource is not installed")]
    NotInstalled,
    #[error("there is no such object")]
    NotFound,
    #[error(
        "objects of this kind belong to no namespace, and a Webhook gets the events of its own: name a namespaced kind"
    )]
    NotNamespaced,
    #[error("the apiserver answered {0}: {text}", text = explain(*.0, .1))]
    Status(u16, String),
    #[error("nothing came for {} s", .0.as_secs())]
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

/// An answer to a GET.
struct Got<T> {
    body: T,
    /// What the apiserver knew then existed at this time, which is earlier by [`CLOCK_TOLERANCE`].
    at: Option<Timestamp>,
}

impl WatchError {
    /// The reason that a condition gives.
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
    /// Its number in the engine.
    pub id: WatchId,
    /// The namespace; `None`: all.
    pub namespace: Option<String>,
    /// The client; it must not retry on its own.
    pub client: Client,
    /// Where observations go.
    pub observations: mpsc::Sender<Observation>,
    /// How it fares.
    pub health: Arc<WatchHealth>,
    /// Objects that could not be read.
    pub malformed: IntCounter,
    /// Whether a filter reads annotations, so that objects are to keep them.
    pub keep_annotations: Arc<AtomicBool>,
    /// The Namespaces that the engine has been told of.
    pub namespaces: NamespaceBarrier,
    /// The newest version of the store that was seen; 0 where a restore has put an end to what it means.
    pub newest: AtomicU64,
    /// The source.
    pub source: S,
}

impl<S: Source> Watcher<S> {
    /// Watches and answers until the engine stops.
    pub async fn follow(self: Arc<Self>, version: Option<u64>, questions: mpsc::UnboundedReceiver<ExistenceCheck>) {
        tokio::select! {
            () = Arc::clone(&self).run(version) => {}
            () = self.answer(questions) => {}
        }
    }

    /// Watches until the engine stops. Starts after `version`, or with a list where that is `None`.
    pub async fn run(self: Arc<Self>, version: Option<u64>) {
        // Version 1 says that there is a baseline, and nothing of where in the log it was.
        let mut position = version.filter(|version| *version > 1);
        // Whether it was ever installed, as far as this process or the ledger knows.
        let mut known = version.is_some();
        // Failures since the watch last told anything.
        let mut failures = 0;
        let mut missing: Option<Instant> = None;
        loop {
            self.health.turn();
            let begun = Instant::now();
            let watching = position.is_some();
            self.newest.fetch_max(position.unwrap_or_default(), Ordering::Relaxed);
            let result = self.turn(&mut position, &mut failures).await;
            match result {
                Ok(()) => {
                    known = true;
                    missing = None;
                    if watching {
                        failures = 0;
                        // One that ends at once would be begun again at once, for ever.
                        sleep_until(begun + SHORTEST_TURN).await;
                    }
                }
                Err(WatchError::Stopped) => return,
                Err(WatchError::Expired) => {
                    info!(kind = self.source.kind(), "the watch's resourceVersion has expired; listing");
                    position = None;
                    missing = None;
                    // An apiserver that forgets faster than it lists must not be asked for lists all the time.
                    sleep_until(begun + SHORTEST_TURN.max(pause(failures))).await;
                    failures += 1;
                }
                Err(WatchError::Restored) => {
                    warn!(
                        kind = self.source.kind(),
                        ?position,
                        "the store is older than what was seen of it: it was restored from a backup; comparing what is there"
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
                    let believed = if known { BELIEVED_MISSING } else { BELIEVED_ABSENT };
                    if since.elapsed() >= believed {
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

    /// Lists, or watches to the end of one watch.
    async fn turn(&self, position: &mut Option<u64>, failures: &mut u32) -> Result<(), WatchError> {
        match within(REQUEST, self.source.locate(&self.client)).await? {
            Whereabouts::Known => {}
            Whereabouts::NotServed => return Err(WatchError::NotInstalled),
            Whereabouts::NotNamespaced => return Err(WatchError::NotNamespaced),
        }
        match position {
            None => *position = Some(self.list().await?),
            Some(version) => {
                let there = self.is_there_yet(*version).await?;
                if self.source.selector().is_some() && !self.health.is_answered() {
                    self.probe().await;
                }
                self.watch(version, there, failures).await?;
            }
        }
        Ok(())
    }

    /// Answers the engine's questions until it stops: one GET at a time, the newest question after each object. What cannot be answered
    /// is asked again after a pause, behind the others; the watch goes on meanwhile.
    pub async fn answer(self: Arc<Self>, mut questions: mpsc::UnboundedReceiver<ExistenceCheck>) {
        let mut newest: HashMap<Uid, ExistenceCheck> = HashMap::new();
        let mut turns: VecDeque<Uid> = VecDeque::new();
        let mut failures = 0;
        let mut next = Instant::now();
        loop {
            tokio::select! {
                biased;
                question = questions.recv() => match question {
                    Some(question) => {
                        let uid = question.uid;
                        if newest.insert(uid, question).is_none() {
                            turns.push_back(uid);
                        }
                    }
                    None => return,
                },
                () = sleep_until(next), if !turns.is_empty() => {
                    if !self.health.is_installed() {
                        // The engine has been told, and asks again when the kind is back.
                        newest.clear();
                        turns.clear();
                        continue;
                    }
                    let Some(question) = turns.pop_front().and_then(|uid| newest.remove(&uid)) else { continue };
                    match self.lives(&question).await {
                        Ok(living) => {
                            failures = 0;
                            self.health.answered();
                            if self.send(WatchEvent::Answer { question, living }).await.is_err() {
                                return;
                            }
                        }
                        Err(error) => {
                            next = Instant::now() + pause(failures);
                            failures += 1;
                            let ExistenceCheck { namespace, name, .. } = &question;
                            if self.unanswered(&error) {
                                warn!(kind = self.source.kind(), namespace, name, error = %ErrorChain(&error), "cannot tell whether the object lives; trying again");
                            }
                            turns.push_back(question.uid);
                            newest.insert(question.uid, question);
                        }
                    }
                }
            }
        }
    }

    /// Takes note that a question was not answered. Tells whether that is worth a line in the log: a right that is missing is so once.
    fn unanswered(&self, error: &WatchError) -> bool {
        if error.reason() != FORBIDDEN {
            return true;
        }
        let what_to_do = match self.source.grant() {
            Some(grant) => format!("apply\n\n{grant}"),
            None => "apply charts/kustomize/rbac.yaml of this release".to_owned(),
        };
        let message = format!(
            "the operator may not get objects of this kind, so it cannot tell those that are deleted from those that lost their label, \
             and sends no event when they go; {what_to_do}"
        );
        self.health.refused(Trouble { reason: FORBIDDEN, message })
    }

    /// Finds out whether questions will be answered, before the first comes.
    async fn probe(&self) {
        let namespace = self.namespace.as_deref().unwrap_or("default");
        match self.find(namespace, PROBE).await {
            Ok(_) | Err(WatchError::NotFound) => self.health.answered(),
            Err(error) if error.reason() == FORBIDDEN => {
                if self.unanswered(&error) {
                    warn!(kind = self.source.kind(), error = %ErrorChain(&error), "objects that leave the selection cannot be asked after");
                }
            }
            // The next turn asks again.
            Err(_) => {}
        }
    }

    /// The collection in this namespace, or in all.
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
        self.health.at_ease();
        if self.health.set_installed(false) {
            warn!(kind = self.source.kind(), "{} is not installed; its events begin when it is", self.source.name());
        }
        let at = self.time().await;
        self.send(WatchEvent::NotInstalled(at)).await
    }

    /// The apiserver's time, less [`CLOCK_TOLERANCE`]; `None` where it does not tell.
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

    /// Waits until the engine knows what is known of this Namespace.
    async fn wait_for_namespace(&self, namespace: &str) {
        let mut told = pin!(self.namespaces.wait_for(namespace));
        // While the apiserver is away, this turns on.
        while timeout(IDLE, &mut told).await.is_err() {
            self.health.turn();
        }
    }

    /// Reads the whole collection, as of one consistent version, in pages.
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
                // All pages are of the version of the first.
                first = at;
                // A list that broke off, or a watch that expired, may have seen a store that is no more.
                if version < self.newest.fetch_max(version, Ordering::Relaxed) {
                    warn!(
                        kind = self.source.kind(),
                        "the store is older than what was seen of it: it was restored from a backup"
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

    /// Whether the store has reached this version: a watch from the future would wait in silence. Tells the store's version, and a time:
    /// what existed then is of that version or an earlier one.
    async fn is_there_yet(&self, version: u64) -> Result<Option<(u64, Timestamp)>, WatchError> {
        let one = ListParams { limit: Some(1), ..ListParams::default() };
        let Got { body, at } = self.get(self.collection(self.namespace.as_deref())?.list(&one)?).await?;
        let page: Page<&RawValue> = serde_json::from_slice(&body)?;
        let reached = slim::version(&page.metadata.resource_version)?;
        if reached < version { Err(WatchError::Restored) } else { Ok(at.map(|at| (reached, at))) }
    }

    fn keeps_annotations(&self) -> bool {
        self.keep_annotations.load(Ordering::Relaxed)
    }

    /// Follows one watch to its end, moving `version` along. Once it has passed the version of `there`, all is seen that existed then.
    async fn watch(
        &self,
        version: &mut u64,
        mut there: Option<(u64, Timestamp)>,
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
            if let Some((_, at)) = there.take_if(|(reached, _)| *version >= *reached) {
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
                // With a selector, the label may only have gone.
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

    /// Whether the object is still there.
    async fn lives(&self, question: &ExistenceCheck) -> Result<bool, WatchError> {
        match self.find(&question.namespace, &question.name).await {
            Ok(partial) => Ok(Uid::parse(&partial.metadata.uid) == Some(question.uid)),
            Err(WatchError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn find(&self, namespace: &str, name: &str) -> Result<Partial, WatchError> {
        let request = self.collection(Some(namespace))?.get(name, &GetParams::default())?;
        Ok(serde_json::from_slice(&self.get(request).await?.body)?)
    }

    /// GETs a whole answer.
    async fn get(&self, request: Request<Vec<u8>>) -> Result<Got<Vec<u8>>, WatchError> {
        let Got { body, at } = self.open(request, REQUEST).await?;
        Ok(Got { body: within(REQUEST, read_all(body)).await?, at })
    }

    /// Begins a GET; an answer other than 200 is an error.
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

/// When the apiserver answered, by its own clock; `None` where it does not say (RFC 9110, 6.6.1).
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get(DATE)?.to_str().ok()?;
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// Reads a body into one buffer, without keeping its frames beside it.
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
