//! Deliveries as objects: what was given up is kept, a test is asked for, a delivery is asked for again.
//!
//! 1. What the engine gives up is created before the engine forgets it, under the delivery's own name: once, however often.
//! 2. The event comes from a status that only the operator writes: a spec holds nothing that could be signed.
//! 3. A request is marked as handled with its result, so that one that a crash cut off is handled again.
//! 4. A finished delivery goes after its `spec.ttl`; a Webhook has at most [`MAX_OBJECTS`] and [`MAX_BYTES`], of which the
//!    oldest delivered makes room.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use kube::{
    Api, Client,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
    core::DeserializeGuard,
    runtime::watcher::{self, Event as Seen},
};
use serde_json::json;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, warn};

use super::writer::FIELD_MANAGER;
use crate::{
    api::{
        WebhookDelivery,
        webhook_delivery::{
            DEFAULT_TTL, DeliveredEvent, DeliveryAttempt, EventObject, REDELIVER_ANNOTATION, WebhookDeliverySpec,
            WebhookDeliveryStatus, WebhookKind, WebhookReference,
        },
    },
    calls::{pause, within},
    causes::Causes,
    engine::{Keep, MAX_BYTES},
    event::{
        Event, EventType,
        body::Opened,
        id::{DeliveryId, EventId},
        object::{Facts, Uid},
    },
    ledger::contents::Reason,
    objects::pump,
    subscription::resolve::{WebhookRef, duration},
};

/// Objects of one Webhook; also bounded by [`MAX_BYTES`] of their events.
pub const MAX_OBJECTS: usize = 1_000;
/// Calls to the apiserver at once.
const CONCURRENT: usize = 8;
const REQUEST: Duration = Duration::from_secs(10);
/// How long the last calls may take.
const LAST: Duration = Duration::from_secs(5);
/// A request longer than this is not told apart from another that begins alike.
const MAX_REQUEST: usize = 64;
/// An object that names an event and has none is given up on after this long.
const UNKNOWN_AFTER: Duration = Duration::from_secs(30);
const WEBHOOK_LABEL: &str = "llmtune.io/webhook";
const EVENT_LABEL: &str = "llmtune.io/event";

/// Which object, and what of its status the next one goes on from.
#[derive(Clone, Debug)]
pub struct DeliveryRef {
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
    /// The Webhook's name; the Webhook is in the same namespace.
    pub webhook: String,
    generation: i64,
    conditions: Vec<Condition>,
    /// The request that is answered.
    request: Option<String>,
    /// The only version of the object that an answer is for; `None`: any.
    only: Option<u64>,
}

/// What users ask for.
#[derive(Debug)]
pub enum Asked {
    /// A sample of this event.
    Test { object: DeliveryRef, event: EventType },
    /// The event once more.
    Again { object: DeliveryRef, event: Arc<Event> },
}

/// What the loop orders.
#[derive(Debug)]
pub enum Order {
    /// To keep what the engine has given up.
    Keep(WebhookRef, Keep),
    /// To tell how a delivery that was asked for ended.
    Answer(Box<Answer>),
}

/// How a delivery that was asked for ended.
#[derive(Debug)]
pub struct Answer {
    pub object: DeliveryRef,
    /// `None`: no such Webhook.
    pub webhook: Option<WebhookRef>,
    pub event: Option<Arc<Event>>,
    pub test: bool,
    pub delivered: bool,
    pub reason: &'static str,
    pub message: String,
    /// Attempts that were made.
    pub attempts: u32,
    pub status_code: Option<u16>,
    pub error: Option<String>,
    pub at: Timestamp,
}

/// An order to keep is done with.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    /// Whether there is an object now; else the delivery is dropped.
    pub landed: bool,
}

/// What comes back to the loop.
#[derive(Debug)]
pub enum FromDeliveries {
    Asked(Asked),
    Kept(Kept),
}

/// Looks after the `WebhookDelivery` objects of some namespaces.
pub struct Deliveries {
    pub client: Client,
    pub orders: mpsc::UnboundedReceiver<Order>,
    pub back: mpsc::UnboundedSender<FromDeliveries>,
    /// Asked before each write.
    pub may_write: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// What is remembered of an object.
#[derive(Debug)]
struct Entry {
    /// The newest version known: what is older says nothing any more.
    version: u64,
    namespace: String,
    name: String,
    webhook: String,
    bytes: usize,
    /// Nothing is lost with it: it is delivered, or holds no event.
    spent: bool,
    /// When it is to go.
    expires: Option<Timestamp>,
}

/// A request that is under way.
#[derive(Debug)]
struct UnderWay {
    request: Option<String>,
    /// Another has come meanwhile.
    another: bool,
}

/// An object that is being created.
#[derive(Debug)]
struct Creating {
    namespace: String,
    webhook: String,
    bytes: usize,
}

/// What a call to the apiserver came to.
enum Done {
    Kept {
        webhook: WebhookRef,
        delivery: DeliveryId,
        object: Option<(Uid, Entry)>,
    },
    /// `version`: of the object with its answer.
    Answered {
        object: Uid,
        version: u64,
    },
    Read {
        uid: Uid,
        object: Option<Box<WebhookDelivery>>,
    },
    Deleted {
        object: Uid,
    },
}

#[derive(Default)]
struct State {
    entries: HashMap<Uid, Entry>,
    expiries: BinaryHeap<Reverse<(Timestamp, Uid)>>,
    /// Objects with a request under way.
    asked: HashMap<Uid, UnderWay>,
    deleting: HashSet<Uid>,
    /// Creations under way, by the object's name.
    creating: HashMap<String, Creating>,
    /// Objects that name an event and have none, and when to give up on them.
    unknown: Vec<(Timestamp, DeliveryRef)>,
}

impl Deliveries {
    /// Runs until the loop is gone. `namespaces`: empty means all.
    pub async fn run(mut self, namespaces: Vec<String>) {
        let (events, mut incoming) = mpsc::channel(64);
        let apis: Vec<Api<DeserializeGuard<WebhookDelivery>>> = if namespaces.is_empty() {
            vec![Api::all(self.client.clone())]
        } else {
            namespaces.iter().map(|namespace| Api::namespaced(self.client.clone(), namespace)).collect()
        };
        let mut unlisted: HashSet<usize> = (0..apis.len()).collect();
        let mut early = Vec::new();
        let mut watches = JoinSet::new();
        for (scope, api) in apis.into_iter().enumerate() {
            // Each object may hold a body of 256 KiB.
            let config = watcher::Config::default().timeout(30).page_size(20);
            watches.spawn(pump(api, config, scope, events.clone()));
        }
        let call = Call {
            client: self.client.clone(),
            may_write: Arc::clone(&self.may_write),
            permits: Arc::new(Semaphore::new(CONCURRENT)),
        };
        let mut calls: JoinSet<Done> = JoinSet::new();
        let mut state = State::default();
        let mut listed: HashMap<usize, HashSet<Uid>> = HashMap::new();
        let mut scope_of: HashMap<Uid, usize> = HashMap::new();
        let mut tick = interval(Duration::from_millis(500));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some((scope, event)) = incoming.recv() => match event {
                    Seen::Init => { listed.insert(scope, HashSet::new()); }
                    Seen::InitApply(guard) | Seen::Apply(guard) => {
                        let Some(object) = read(guard) else { continue };
                        let Some(uid) = object.metadata.uid.as_deref().and_then(Uid::parse) else { continue };
                        if let Some(listed) = listed.get_mut(&scope) {
                            listed.insert(uid);
                            // A list has the last word: an etcd that was restored counts from lower on.
                            state.entries.remove(&uid);
                        }
                        scope_of.insert(uid, scope);
                        self.seen(&mut state, uid, object);
                    }
                    Seen::Delete(guard) => {
                        let uid = read(guard).and_then(|object| Uid::parse(object.metadata.uid.as_deref()?));
                        if let Some(uid) = uid {
                            state.forget(uid);
                            scope_of.remove(&uid);
                        }
                    }
                    Seen::InitDone => {
                        let there = listed.remove(&scope).unwrap_or_default();
                        scope_of.retain(|uid, of| {
                            let gone = *of == scope && !there.contains(uid);
                            if gone {
                                state.forget(*uid);
                            }
                            !gone
                        });
                        if unlisted.remove(&scope) && unlisted.is_empty() {
                            for (webhook, keep) in std::mem::take(&mut early) {
                                self.keep(&mut state, &mut calls, &call, webhook, keep);
                            }
                        }
                    }
                },
                order = self.orders.recv() => match order {
                    None => break,
                    // How many there are is known once all are listed.
                    Some(Order::Keep(webhook, keep)) if !unlisted.is_empty() => early.push((webhook, keep)),
                    Some(Order::Keep(webhook, keep)) => self.keep(&mut state, &mut calls, &call, webhook, keep),
                    Some(Order::Answer(answer)) => { calls.spawn(call.clone().answered(*answer)); }
                },
                Some(done) = calls.join_next() => match done {
                    Ok(done) => self.done(&mut state, &mut calls, &call, done),
                    Err(error) => warn!(error = %Causes(&error), "a call about a WebhookDelivery broke off"),
                },
                _ = tick.tick() => {
                    for uid in state.expired(Timestamp::now()) {
                        delete(&mut state, &mut calls, &call, uid);
                    }
                    give_up_unknown(&mut state, &mut calls, &call);
                }
            }
        }
        let ended = async { while calls.join_next().await.is_some() {} };
        if timeout(LAST, ended).await.is_err() {
            warn!(
                calls = calls.len(),
                "calls about WebhookDelivery objects did not end in time; they are made again by the next leader"
            );
        }
    }

    fn send(&self, message: FromDeliveries) {
        // The loop is gone: so is this task soon.
        let _ = self.back.send(message);
    }

    /// Takes an object in, and hands on what it asks for.
    fn seen(&self, state: &mut State, uid: Uid, object: WebhookDelivery) {
        let version = version(&object);
        if state.entries.get(&uid).is_some_and(|known| known.version > version) {
            return;
        }
        let WebhookDelivery { metadata, spec, status } = object;
        let status = status.unwrap_or_default();
        let namespace = metadata.namespace.unwrap_or_default();
        let name = metadata.name.unwrap_or_default();
        let annotation = metadata.annotations.as_ref().and_then(|annotations| annotations.get(REDELIVER_ANNOTATION));
        let request = annotation.filter(|text| !text.is_empty()).map(|text| text.chars().take(MAX_REQUEST).collect());
        let finished_at = status.finished_at.as_ref().map(|time| time.0);
        let ttl = duration("ttl", &spec.ttl).or_else(|_| duration("ttl", DEFAULT_TTL)).unwrap_or_default();
        let handled = request == status.last_handled_redeliver_at || request.is_none();
        let entry = Entry {
            version,
            namespace: namespace.clone(),
            name: name.clone(),
            webhook: spec.webhook_ref.name.clone(),
            bytes: status.event.as_ref().map_or(0, |event| event.body.len()),
            spent: status.event.is_none() || holds(&status.conditions, "Delivered"),
            // One that is asked for again does not go before it is answered.
            expires: finished_at.filter(|_| handled).and_then(|at| at.checked_add(ttl).ok()),
        };
        if let Some(expires) = entry.expires {
            state.expiries.push(Reverse((expires, uid)));
        }
        state.entries.insert(uid, entry);
        let object = DeliveryRef {
            uid,
            namespace,
            name,
            webhook: spec.webhook_ref.name,
            generation: metadata.generation.unwrap_or_default(),
            conditions: status.conditions,
            request: request.clone(),
            only: None,
        };
        let due = (spec.test.is_some() && finished_at.is_none()) || (!handled && request.is_some());
        if spec.test.is_none() && status.event.is_none() && (due || finished_at.is_none()) {
            let after = Timestamp::now().checked_add(UNKNOWN_AFTER).unwrap_or(Timestamp::MAX);
            // The event may yet come, from this leader or from one before whose write is under way.
            state.unknown.push((after, DeliveryRef { only: Some(version), ..object }));
            return;
        }
        if !due {
            return;
        }
        if spec.webhook_ref.kind != WebhookKind::Webhook {
            return;
        }
        if let Some(under_way) = state.asked.get_mut(&uid) {
            under_way.another |= under_way.request != request;
            return;
        }
        state.asked.insert(uid, UnderWay { request, another: false });
        match (spec.test.and_then(|test| EventType::parse(&test.event)), status.event) {
            (Some(event), _) => self.send(FromDeliveries::Asked(Asked::Test { object, event })),
            (None, Some(kept)) => {
                if let Some(event) = event(&object.namespace, &kept) {
                    self.send(FromDeliveries::Asked(Asked::Again { object, event: Arc::new(event) }));
                } else {
                    warn!(namespace = object.namespace, name = object.name, "a kept event cannot be read");
                }
            }
            (None, None) => {
                state.asked.remove(&uid);
            }
        }
    }

    fn keep(&self, state: &mut State, calls: &mut JoinSet<Done>, call: &Call, webhook: WebhookRef, keep: Keep) {
        let bytes = keep.event.body.len();
        let creating = Creating { namespace: webhook.namespace.clone(), webhook: webhook.name.clone(), bytes };
        match state.room(&creating) {
            Room::Enough => {}
            Room::After(uid) => delete(state, calls, call, uid),
            Room::None => {
                return self.send(FromDeliveries::Kept(Kept {
                    webhook: webhook.uid,
                    delivery: keep.delivery,
                    landed: false,
                }));
            }
        }
        state.creating.insert(keep.delivery.object_name(), creating);
        let call = call.clone();
        calls.spawn(async move {
            let object = call.keep(&webhook, &keep).await;
            Done::Kept { webhook, delivery: keep.delivery, object }
        });
    }

    fn done(&self, state: &mut State, calls: &mut JoinSet<Done>, call: &Call, done: Done) {
        match done {
            Done::Kept { webhook, delivery, object } => {
                let landed = object.is_some();
                state.creating.remove(&delivery.object_name());
                if let Some((uid, entry)) = object
                    && state.entries.get(&uid).is_none_or(|known| known.version < entry.version)
                {
                    state.entries.insert(uid, entry);
                }
                self.send(FromDeliveries::Kept(Kept { webhook: webhook.uid, delivery, landed }));
            }
            Done::Answered { object: uid, version } => {
                let Some(entry) = state.entries.get_mut(&uid) else { return };
                entry.version = entry.version.max(version);
                let another = state.asked.remove(&uid).is_some_and(|under_way| under_way.another);
                if another {
                    let (call, namespace, name) = (call.clone(), entry.namespace.clone(), entry.name.clone());
                    calls.spawn(async move { Done::Read { uid, object: call.read(&namespace, &name).await } });
                }
            }
            Done::Read { uid, object } => {
                if let Some(object) = object.filter(|object| object.metadata.uid.as_deref() == Some(&uid.to_string())) {
                    self.seen(state, uid, *object);
                }
            }
            Done::Deleted { object } => {
                state.deleting.remove(&object);
            }
        }
    }
}

/// Whether a Webhook may have another object.
enum Room {
    Enough,
    /// This delivered one makes room.
    After(Uid),
    None,
}

impl State {
    fn forget(&mut self, uid: Uid) {
        self.entries.remove(&uid);
        self.asked.remove(&uid);
        self.deleting.remove(&uid);
    }

    fn room(&self, new: &Creating) -> Room {
        let entries = self.entries.iter().filter(|(uid, entry)| {
            entry.namespace == new.namespace
                && entry.webhook == new.webhook
                && !self.deleting.contains(*uid)
                && !self.creating.contains_key(&entry.name)
        });
        let creating =
            self.creating.values().filter(|other| other.namespace == new.namespace && other.webhook == new.webhook);
        let sizes = entries.clone().map(|(_, entry)| entry.bytes).chain(creating.map(|other| other.bytes));
        let (count, bytes) = sizes.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size));
        if count < MAX_OBJECTS && bytes + new.bytes <= MAX_BYTES {
            return Room::Enough;
        }
        let oldest = entries.filter(|(_, entry)| entry.spent).filter_map(|(uid, entry)| Some((entry.expires?, *uid)));
        oldest.min().map_or(Room::None, |(_, uid)| Room::After(uid))
    }

    fn expired(&mut self, now: Timestamp) -> Vec<Uid> {
        let mut expired = Vec::new();
        while let Some(Reverse((at, uid))) = self.expiries.peek().copied() {
            if at > now {
                break;
            }
            self.expiries.pop();
            if self.entries.get(&uid).is_some_and(|entry| entry.expires == Some(at)) {
                expired.push(uid);
            }
        }
        expired
    }
}

fn delete(state: &mut State, calls: &mut JoinSet<Done>, call: &Call, uid: Uid) {
    let Some(entry) = state.entries.get(&uid) else { return };
    if !state.deleting.insert(uid) {
        return;
    }
    let (call, namespace, name) = (call.clone(), entry.namespace.clone(), entry.name.clone());
    calls.spawn(async move {
        call.delete(&namespace, &name, uid).await;
        Done::Deleted { object: uid }
    });
}

/// Says of objects that name an event which the operator does not have that nothing can come of them.
fn give_up_unknown(state: &mut State, calls: &mut JoinSet<Done>, call: &Call) {
    let now = Timestamp::now();
    let due: Vec<DeliveryRef> =
        state.unknown.extract_if(.., |(after, _)| *after <= now).map(|(_, object)| object).collect();
    for object in due {
        if state.entries.get(&object.uid).is_none_or(|entry| entry.bytes > 0) {
            continue;
        }
        let text = "the operator has no event of this id: only deliveries that it has created hold one; to test a Webhook write spec.test";
        calls.spawn(call.clone().answered(Answer {
            object,
            webhook: None,
            event: None,
            test: false,
            delivered: false,
            reason: "EventUnknown",
            message: text.into(),
            attempts: 0,
            status_code: None,
            error: None,
            at: now,
        }));
    }
}

/// Calls to the apiserver, each tried until it is answered for good. One that is to be tried again holds up no other.
#[derive(Clone)]
struct Call {
    client: Client,
    may_write: Arc<dyn Fn() -> bool + Send + Sync>,
    permits: Arc<Semaphore>,
}

impl Call {
    fn api(&self, namespace: &str) -> Api<WebhookDelivery> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Makes a request in its turn, and not before the claim holds.
    async fn request<T>(&self, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
        let _permit = loop {
            // The semaphore is never closed.
            let permit = self.permits.acquire().await;
            if (self.may_write)() {
                break permit;
            }
            drop(permit);
            sleep(Duration::from_millis(100)).await;
        };
        within(REQUEST, request).await
    }

    async fn answered(self, answer: Answer) -> Done {
        let version = self.answer(&answer).await.unwrap_or_default();
        Done::Answered { object: answer.object.uid, version }
    }

    /// The object as it is now, if it is.
    async fn read(&self, namespace: &str, name: &str) -> Option<Box<WebhookDelivery>> {
        let api = self.api(namespace);
        let mut failures = 0;
        loop {
            match self.request(api.get_opt(name)).await {
                Ok(object) => return object.map(Box::new),
                Err(error) => {
                    warn!(namespace, name, error = %Causes(&error), "a WebhookDelivery was not read; trying again");
                }
            }
            sleep(pause(failures)).await;
            failures += 1;
        }
    }

    /// Creates the object of a given-up delivery; `None` where it cannot be had, for good.
    async fn keep(&self, webhook: &WebhookRef, keep: &Keep) -> Option<(Uid, Entry)> {
        let Keep { delivery, event, given_up, .. } = keep;
        let name = delivery.object_name();
        let object = WebhookDelivery {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels(webhook, event.event_type)),
                owner_references: Some(vec![owner(webhook)]),
                ..ObjectMeta::default()
            },
            spec: WebhookDeliverySpec {
                webhook_ref: WebhookReference { kind: WebhookKind::Webhook, name: webhook.name.clone() },
                test: None,
                event_id: Some(event.id.to_string()),
                ttl: DEFAULT_TTL.to_owned(),
            },
            status: None,
        };
        let api = self.api(&webhook.namespace);
        let mut failures = 0;
        let created = loop {
            let error = match self.request(api.create(&PostParams::default(), &object)).await {
                Ok(created) => break created,
                Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                    match self.request(api.get(&name)).await {
                        Ok(found) if found.spec == object.spec || holds_event(&found, &object.spec) => break found,
                        // Somebody else's: it names another Webhook or another event, or does not last.
                        Ok(found) => {
                            let uid = found.metadata.uid.as_deref().and_then(Uid::parse)?;
                            self.delete(&webhook.namespace, &name, uid).await;
                            // It may be held by finalizers.
                            sleep(pause(failures)).await;
                            failures += 1;
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 422) => {
                    warn!(
                        namespace = webhook.namespace, webhook = webhook.name, event = %event.id, error = status.message,
                        "a WebhookDelivery was refused; the delivery is dropped"
                    );
                    return None;
                }
                Err(error) => error,
            };
            warn!(namespace = webhook.namespace, name, error = %Causes(&error), "a WebhookDelivery was not created; trying again");
            sleep(pause(failures)).await;
            failures += 1;
        };
        let uid = created.metadata.uid.as_deref().and_then(Uid::parse)?;
        let mut entry = Entry {
            version: version(&created),
            namespace: webhook.namespace.clone(),
            name: name.clone(),
            webhook: webhook.name.clone(),
            bytes: event.body.len(),
            spent: false,
            expires: None,
        };
        if holds_event(&created, &object.spec) {
            return Some((uid, entry));
        }
        let (reason, message) = match given_up.reason {
            Reason::Exhausted => ("Exhausted", "the endpoint did not acknowledge the delivery within its retries"),
            Reason::EndpointGone => ("EndpointGone", "the endpoint answered 410 Gone"),
            Reason::BoundReached => ("BoundReached", "too many deliveries were pending for another to wait"),
        };
        let object = DeliveryRef {
            uid,
            namespace: webhook.namespace.clone(),
            name,
            webhook: webhook.name.clone(),
            generation: created.metadata.generation.unwrap_or_default(),
            conditions: Vec::new(),
            request: None,
            only: None,
        };
        let answer = Answer {
            object,
            webhook: None,
            event: Some(Arc::clone(event)),
            test: false,
            delivered: false,
            reason,
            message: format!(
                "{message}; kubectl annotate whd {} {REDELIVER_ANNOTATION}=$(date -Is) --overwrite sends it again",
                delivery.object_name()
            ),
            attempts: given_up.attempts,
            status_code: given_up.status_code,
            error: given_up.error.clone(),
            at: given_up.at,
        };
        entry.version = self.answer(&answer).await?;
        Some((uid, entry))
    }

    /// Writes how a delivery ended, and tells the object's version then; `None` where the object is gone.
    async fn answer(&self, answer: &Answer) -> Option<u64> {
        let DeliveryRef { namespace, name, uid, only, .. } = &answer.object;
        let api = self.api(namespace);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let header = |mut rest: serde_json::Value| {
            rest["apiVersion"] = "llmtune.io/v1alpha1".into();
            rest["kind"] = "WebhookDelivery".into();
            rest["metadata"]["name"] = name.as_str().into();
            // With the uid an object that was deleted and created anew under this name is left alone.
            rest["metadata"]["uid"] = uid.to_string().into();
            if let Some(version) = only {
                rest["metadata"]["resourceVersion"] = version.to_string().into();
            }
            rest
        };
        let status = match serde_json::to_value(status(answer)) {
            Ok(status) => header(json!({"status": status})),
            Err(error) => {
                warn!(namespace, name, %error, "a WebhookDelivery's status cannot be written");
                return None;
            }
        };
        // A test is made by its user: its owner and its labels come with its answer.
        let marks = match (&answer.webhook, &answer.event) {
            (Some(webhook), Some(event)) if answer.test => {
                let owners = [owner(webhook)];
                Some(header(
                    json!({"metadata": {"labels": labels(webhook, event.event_type), "ownerReferences": owners}}),
                ))
            }
            _ => None,
        };
        let mut failures = 0;
        loop {
            let mut result = self.request(api.patch_status(name, &params, &Patch::Apply(&status))).await;
            if let (Ok(_), Some(marks)) = (&result, &marks) {
                result = self.request(api.patch(name, &params, &Patch::Apply(marks))).await;
            }
            let error = match result {
                Ok(object) => return Some(version(&object)),
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {
                    debug!(namespace, name, error = status.message, "a WebhookDelivery's status was refused");
                    return None;
                }
                Err(error) => error,
            };
            warn!(namespace, name, error = %Causes(&error), "a WebhookDelivery's status was not written; trying again");
            sleep(pause(failures)).await;
            failures += 1;
        }
    }

    async fn delete(&self, namespace: &str, name: &str, uid: Uid) {
        let preconditions = Preconditions { uid: Some(uid.to_string()), resource_version: None };
        let params = DeleteParams::default().preconditions(preconditions);
        let mut failures = 0;
        loop {
            match self.request(self.api(namespace).delete(name, &params)).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(error) => {
                    warn!(namespace, name, error = %Causes(&error), "a WebhookDelivery was not deleted; trying again");
                }
            }
            sleep(pause(failures)).await;
            failures += 1;
        }
    }
}

fn version(object: &WebhookDelivery) -> u64 {
    object.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// Whether it is the object of this delivery, and has its event.
fn holds_event(found: &WebhookDelivery, spec: &WebhookDeliverySpec) -> bool {
    let event = found.status.as_ref().and_then(|status| status.event.as_ref());
    found.spec.webhook_ref == spec.webhook_ref && event.is_some_and(|event| Some(&event.id) == spec.event_id.as_ref())
}

fn labels(webhook: &WebhookRef, event: EventType) -> std::collections::BTreeMap<String, String> {
    [(WEBHOOK_LABEL.to_owned(), webhook.name.clone()), (EVENT_LABEL.to_owned(), event.name().to_owned())].into()
}

fn owner(webhook: &WebhookRef) -> OwnerReference {
    OwnerReference {
        api_version: "llmtune.io/v1alpha1".into(),
        kind: "Webhook".into(),
        name: webhook.name.clone(),
        uid: webhook.uid.to_string(),
        ..OwnerReference::default()
    }
}

fn status(answer: &Answer) -> WebhookDeliveryStatus {
    let whole = |at: Timestamp| Time(Timestamp::from_second(at.as_second()).unwrap_or(at));
    let made = i32::try_from(answer.attempts).unwrap_or(i32::MAX);
    let delivered = condition(answer, "Delivered", answer.delivered, answer.reason, &answer.message);
    let finished = condition(answer, "Finished", true, answer.reason, &answer.message);
    WebhookDeliveryStatus {
        observed_generation: Some(answer.object.generation),
        conditions: vec![delivered, finished],
        event: answer.event.as_deref().map(|event| kept_event(event, answer.test)),
        attempts: Some(made),
        last_attempt: (made > 0).then(|| DeliveryAttempt {
            time: whole(answer.at),
            attempt: made,
            status_code: answer.status_code.map(i32::from),
            error: answer.error.clone(),
        }),
        finished_at: Some(whole(answer.at)),
        last_handled_redeliver_at: answer.object.request.clone(),
    }
}

fn condition(answer: &Answer, kind: &str, is: bool, reason: &str, message: &str) -> Condition {
    let status = if is { "True" } else { "False" };
    let before = answer.object.conditions.iter().find(|before| before.type_ == kind && before.status == status);
    let at = Timestamp::from_second(answer.at.as_second()).unwrap_or(answer.at);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: Some(answer.object.generation),
        last_transition_time: before.map_or(Time(at), |before| before.last_transition_time.clone()),
    }
}

fn holds(conditions: &[Condition], kind: &str) -> bool {
    conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

fn kept_event(event: &Event, test: bool) -> DeliveredEvent {
    let kind = match event.object.facts {
        Facts::Training(_) => "TrainingJob",
        Facts::Serving(_) => "Deployment",
    };
    let object = EventObject {
        kind: Some(kind.into()),
        name: Some(event.object.name.clone()),
        uid: Some(event.object.uid.to_string()),
    };
    let body: Option<serde_json::Value> = serde_json::from_str(&event.body.close(event.observed_at)).ok();
    let occurred_at = body.and_then(|body| body["occurredAt"].as_str().and_then(|text| text.parse().ok()));
    DeliveredEvent {
        id: event.id.to_string(),
        event_type: event.event_type.name().to_owned(),
        occurred_at: occurred_at.map(Time),
        sequence: i64::from(event.sequence),
        test,
        object: if test { EventObject::default() } else { object },
        body: event.body.as_str().to_owned(),
    }
}

/// The event that a status keeps.
fn event(namespace: &str, kept: &DeliveredEvent) -> Option<Event> {
    let id = EventId::parse(&kept.id)?;
    let event_type = EventType::parse(&kept.event_type)?;
    let uid = Uid::parse(kept.object.uid.as_deref()?)?;
    Some(Event {
        id,
        event_type,
        object: Arc::new(event_type.outline(uid, namespace.to_owned(), kept.object.name.clone().unwrap_or_default())),
        observed_at: Timestamp::now(),
        sequence: u32::try_from(kept.sequence).unwrap_or_default(),
        body: Opened::kept(kept.body.clone()),
    })
}

/// The object, or `None` for one that cannot be read, which is named in the log.
fn read(guard: DeserializeGuard<WebhookDelivery>) -> Option<WebhookDelivery> {
    guard
        .0
        .map_err(|invalid| {
            let (namespace, name) = (invalid.metadata.namespace.as_deref(), invalid.metadata.name.as_deref());
            warn!(kind = "WebhookDelivery", namespace, name, error = invalid.error, "skipping a malformed object");
        })
        .ok()
}
