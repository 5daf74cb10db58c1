//! The known objects, and the calls about them in flight.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::{sync::mpsc, task::JoinSet};
use tracing::{debug, warn};

use super::{
    Answer, DeadLetterStored, DeliveryRef, FromDeliveries, Request, Subject,
    call::Call,
    capacity::{Capacity, Reservations},
    object::{again, event, uid, version},
    unsent,
};
use crate::{panics::caught, report::events::Notice, subscription::resolve::duration};
use llmtune_api::{
    WebhookDelivery,
    conditions::holds,
    signature::hexadecimal,
    webhook_delivery::{DEFAULT_TTL, DeliveredEvent, REDELIVER_ANNOTATION, WebhookKind, WebhookReference},
};
use llmtune_core::{
    engine::StoreDeadLetter,
    event::{EventType, id::DeliveryId, object::Uid},
    subscription::WebhookRef,
};

/// The maximum length of a request in a status, in characters. A longer one is recorded by its beginning and its hash.
const MAX_REQUEST: usize = 64;
/// How long an object may name an event that it does not have.
const UNKNOWN_AFTER: Duration = Duration::from_secs(30);

/// What is known about an object.
#[derive(Debug)]
pub(super) struct DeliveryEntry {
    /// The newest known version. Older versions are ignored.
    pub(super) version: u64,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) webhook: WebhookReference,
    pub(super) bytes: usize,
    /// Deleting it loses nothing: it is delivered, or has no event.
    pub(super) spent: bool,
    /// When it expires; `None` also if finalizers keep it from being deleted.
    pub(super) expires: Option<Timestamp>,
    /// The request annotation is empty.
    pub(super) empty_request: bool,
}

/// A request in flight.
#[derive(Debug)]
struct UnderWay {
    request: Option<String>,
    /// Another request came while this one was in flight.
    another: bool,
}

/// The result of a call to the apiserver.
pub(super) enum Done {
    DeadLetterStored {
        webhook: WebhookRef,
        delivery: DeliveryId,
        object: Option<(Uid, Box<DeliveryEntry>)>,
    },
    /// `version` is that of the object with its outcome.
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

/// The known objects, and the calls about them in flight.
pub(super) struct State {
    back: mpsc::UnboundedSender<FromDeliveries>,
    cluster_home: Option<String>,
    call: Call,
    pub(super) calls: JoinSet<Done>,
    pub(super) entries: HashMap<Uid, DeliveryEntry>,
    reservations: Reservations,
    /// When objects expire, with one element for each entry that expires.
    expiries: BTreeSet<(Timestamp, Uid)>,
    /// Objects with a request in flight.
    in_flight: HashMap<Uid, UnderWay>,
    deleting: HashSet<Uid>,
    /// Objects that name an event that they do not have, and when they are answered.
    unknown: HashMap<Uid, (Timestamp, DeliveryRef)>,
    notices: mpsc::Sender<Notice>,
}

impl State {
    pub(super) fn new(
        back: mpsc::UnboundedSender<FromDeliveries>,
        notices: mpsc::Sender<Notice>,
        cluster_home: Option<String>,
        call: Call,
    ) -> Self {
        Self {
            back,
            cluster_home,
            call,
            calls: JoinSet::new(),
            entries: HashMap::new(),
            reservations: Reservations::default(),
            expiries: BTreeSet::new(),
            in_flight: HashMap::new(),
            deleting: HashSet::new(),
            unknown: HashMap::new(),
            notices,
        }
    }

    fn send(&self, message: FromDeliveries) {
        // If the leader loop has ended, this task ends soon too.
        let _ = self.back.send(message);
    }

    /// Starts a call. One that panics ends as `broken`, so that it is not in flight forever.
    fn begin<C>(&mut self, broken: Done, call: impl FnOnce(Call) -> C)
    where
        C: Future<Output = Done> + Send + 'static,
    {
        let call = caught(call(self.call.clone()));
        self.calls.spawn(async move { call.await.unwrap_or(broken) });
    }

    /// Records an object, and passes on its request.
    pub(super) fn seen(&mut self, uid: Uid, object: WebhookDelivery) {
        let version = version(&object.metadata);
        if self.entries.get(&uid).is_some_and(|known| known.version > version) {
            return;
        }
        let WebhookDelivery { metadata, spec, status } = object;
        let status = status.unwrap_or_default();
        let namespace = metadata.namespace.unwrap_or_default();
        let name = metadata.name.unwrap_or_default();
        let annotation = metadata.annotations.as_ref().and_then(|annotations| annotations.get(REDELIVER_ANNOTATION));
        let empty_request = annotation.is_some_and(|text| text.trim().is_empty());
        let request = annotation.filter(|_| !empty_request).map(|text| remembered(text));
        if empty_request && self.entries.get(&uid).is_none_or(|known| !known.empty_request) {
            self.refuse_empty(uid, &namespace, &name);
        }
        let finished_at = status.finished_at.as_ref().map(|time| time.0);
        let ttl = duration("ttl", &spec.ttl).or_else(|_| duration("ttl", DEFAULT_TTL)).unwrap_or_default();
        let handled = request == status.last_handled_redeliver_at || request.is_none();
        let entry = DeliveryEntry {
            version,
            namespace: namespace.clone(),
            name: name.clone(),
            webhook: spec.webhook_ref.clone(),
            bytes: status.event.as_ref().map_or(0, |event| event.body.len()),
            spent: status.event.is_none() || holds(&status.conditions, "Delivered"),
            // An object with an open request does not expire before the answer.
            expires: finished_at
                .filter(|_| handled && metadata.deletion_timestamp.is_none())
                .and_then(|at| at.checked_add(ttl).ok()),
            empty_request,
        };
        self.enter(uid, entry);
        let object = DeliveryRef {
            uid,
            namespace,
            name,
            webhook: spec.webhook_ref,
            generation: metadata.generation.unwrap_or_default(),
            conditions: status.conditions,
            request: request.clone(),
            only: None,
        };
        let due = (spec.test.is_some() && finished_at.is_none()) || (!handled && request.is_some());
        if spec.test.is_none() && status.event.is_none() && (due || finished_at.is_none()) {
            let after = Timestamp::now().checked_add(UNKNOWN_AFTER).unwrap_or(Timestamp::MAX);
            // The event may still come, from this leader or from an earlier one whose write is in flight.
            let object = DeliveryRef { only: Some(version), ..object };
            self.unknown.entry(uid).and_modify(|(_, known)| *known = object.clone()).or_insert((after, object));
            return;
        }
        self.unknown.remove(&uid);
        if !due {
            return;
        }
        if let Some(under_way) = self.in_flight.get_mut(&uid) {
            under_way.another |= under_way.request != request;
            return;
        }
        self.in_flight.insert(uid, UnderWay { request, another: false });
        self.hand_on(object, spec.test.map(|test| test.event), status.event);
    }

    /// Passes on a request: for a sample of the event `test`, otherwise for the event in the object. If that is
    /// impossible, answers the request.
    fn hand_on(&mut self, object: DeliveryRef, test: Option<String>, kept: Option<DeliveredEvent>) {
        let (reason, message) = match (self.misplaced(&object), test, &kept) {
            (Some(misplaced), ..) => misplaced,
            (None, Some(test), _) => {
                if let Some(event) = EventType::parse(&test) {
                    return self.send(FromDeliveries::Request(Request::Test { object, event }));
                }
                ("EventUnknown", format!("this release does not know the event {test}: upgrade the operator"))
            }
            (None, None, kept) => {
                if let Some(event) = kept.as_ref().and_then(|kept| event(&object.namespace, kept)) {
                    return self.send(FromDeliveries::Request(Request::Again { object, event: Arc::new(event) }));
                }
                let message = format!(
                    "this release cannot read the event in status.event: upgrade the operator to the release that wrote it, then set the annotation {REDELIVER_ANNOTATION} to a new value"
                );
                ("EventUnreadable", message)
            }
        };
        warn!(namespace = object.namespace, name = object.name, reason, message, "a request cannot be fulfilled");
        self.answer(unsent(object, Subject::Found(kept.map(Box::new)), reason, message, Timestamp::now()));
    }

    /// Returns why nothing is sent to a `ClusterWebhook` for an object in this namespace. A tenant must neither make
    /// the operator send to an endpoint of the platform team, nor learn whether it exists.
    fn misplaced(&self, object: &DeliveryRef) -> Option<(&'static str, String)> {
        if object.webhook.kind == WebhookKind::Webhook {
            return None;
        }
        match &self.cluster_home {
            Some(home) if *home == object.namespace => None,
            Some(home) => {
                let say =
                    format!("deliveries of ClusterWebhooks are in the operator's namespace: create this one in {home}");
                Some(("NotInOperatorNamespace", say))
            }
            None => {
                let say = "this operator does not serve ClusterWebhooks, because it runs with --watch-namespace: name a Webhook";
                Some(("ClusterWebhooksNotServed", say.to_owned()))
            }
        }
    }

    /// Reports that an annotation without a value requests nothing.
    fn refuse_empty(&self, uid: Uid, namespace: &str, name: &str) {
        let note = format!(
            "the annotation {REDELIVER_ANNOTATION} is empty, so nothing is sent: set it to a new value, such as the time: {}",
            again(namespace, name)
        );
        warn!(namespace, name, "{note}");
        if self.notices.try_send(Notice::about_delivery(uid, namespace, name, "EmptyRedeliverRequest", note)).is_err() {
            debug!("too many Events at once; one is not published");
        }
    }

    fn enter(&mut self, uid: Uid, entry: DeliveryEntry) {
        if !self.deleting.contains(&uid) {
            self.reservations.seen(uid, &entry);
        }
        self.expiries.extend(entry.expires.map(|at| (at, uid)));
        let expired = self.entries.insert(uid, entry).and_then(|known| known.expires);
        self.cancel_expiry(uid, expired);
    }

    /// Removes the expiry of an object if it has changed.
    fn cancel_expiry(&mut self, uid: Uid, expires: Option<Timestamp>) {
        if let Some(at) = expires
            && self.entries.get(&uid).is_none_or(|entry| entry.expires != Some(at))
        {
            self.expiries.remove(&(at, uid));
        }
    }

    pub(super) fn forget(&mut self, uid: Uid) {
        if let Some(entry) = self.entries.remove(&uid) {
            self.reservations.gone(uid, &entry);
            self.cancel_expiry(uid, entry.expires);
        }
        self.unknown.remove(&uid);
        self.in_flight.remove(&uid);
        self.deleting.remove(&uid);
    }

    pub(super) fn dead_letter(&mut self, webhook: WebhookRef, dead_letter: StoreDeadLetter) {
        let (delivery, bytes) = (dead_letter.delivery, dead_letter.event.body.len());
        let reference = WebhookReference { kind: webhook.kind, name: webhook.name.clone() };
        match self.reservations.capacity(&webhook.home, &reference, bytes) {
            Capacity::Enough => {}
            Capacity::After(uids) => uids.into_iter().for_each(|uid| self.delete(uid)),
            Capacity::None => {
                return self.send(FromDeliveries::DeadLetterStored(DeadLetterStored {
                    webhook: webhook.uid,
                    delivery,
                    exists: false,
                }));
            }
        }
        self.reservations.reserve(&webhook.home, reference, &delivery.object_name(), bytes);
        let broken = Done::DeadLetterStored { webhook: webhook.clone(), delivery, object: None };
        self.begin(broken, |call| async move {
            let object = call.store(&webhook, &dead_letter).await.map(|(uid, entry)| (uid, Box::new(entry)));
            Done::DeadLetterStored { webhook, delivery, object }
        });
    }

    pub(super) fn answer(&mut self, answer: Answer) {
        let object = answer.object.uid;
        self.begin(Done::Answered { object, version: 0 }, |call| async move {
            Done::Answered { object, version: call.answer(&answer).await.unwrap_or_default() }
        });
    }

    pub(super) fn delete(&mut self, uid: Uid) {
        let Some(entry) = self.entries.get(&uid) else { return };
        if !self.deleting.insert(uid) {
            return;
        }
        self.reservations.gone(uid, entry);
        let (namespace, name) = (entry.namespace.clone(), entry.name.clone());
        self.begin(Done::Deleted { object: uid }, |call| async move {
            call.delete(&namespace, &name, uid).await;
            Done::Deleted { object: uid }
        });
    }

    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::DeadLetterStored { webhook, delivery, object } => {
                let exists = object.is_some();
                self.reservations.release(&webhook.home, &delivery.object_name());
                if let Some((uid, entry)) = object {
                    if entry.name != delivery.object_name() {
                        self.count_again(&webhook.home, &delivery.object_name());
                    }
                    if self.entries.get(&uid).is_none_or(|known| known.version < entry.version) {
                        self.enter(uid, *entry);
                    } else if let Some(known) = self.entries.get(&uid).filter(|_| !self.deleting.contains(&uid)) {
                        self.reservations.seen(uid, known);
                    }
                }
                self.send(FromDeliveries::DeadLetterStored(DeadLetterStored {
                    webhook: webhook.uid,
                    delivery,
                    exists,
                }));
            }
            Done::Answered { object: uid, version } => {
                let Some(entry) = self.entries.get_mut(&uid) else { return };
                entry.version = entry.version.max(version);
                let (namespace, name) = (entry.namespace.clone(), entry.name.clone());
                if self.in_flight.remove(&uid).is_some_and(|under_way| under_way.another) {
                    self.begin(Done::Read { uid, object: None }, |call| async move {
                        Done::Read { uid, object: call.read(&namespace, &name).await }
                    });
                }
            }
            Done::Read { uid, object } => {
                if let Some(object) = object.filter(|object| self::uid(object) == Some(uid)) {
                    self.seen(uid, *object);
                }
            }
            Done::Deleted { object: uid } => {
                self.deleting.remove(&uid);
                // Finalizers can keep it: it counts until it is gone, and no other object replaces it.
                if let Some(entry) = self.entries.get_mut(&uid) {
                    let expires = entry.expires.take();
                    self.reservations.seen(uid, entry);
                    self.cancel_expiry(uid, expires);
                }
            }
        }
    }

    /// Counts an object that is not the operator's and whose name was reserved.
    fn count_again(&mut self, namespace: &str, name: &str) {
        let named = self.entries.iter().find(|(_, entry)| entry.namespace == namespace && entry.name == name);
        if let Some((uid, entry)) = named.filter(|(uid, _)| !self.deleting.contains(uid)) {
            self.reservations.seen(*uid, entry);
        }
    }

    /// Removes and returns the expired objects.
    pub(super) fn expired(&mut self, now: Timestamp) -> Vec<Uid> {
        let mut expired = Vec::new();
        while let Some((_, uid)) = self.expiries.first().filter(|(at, _)| *at <= now).copied() {
            self.expiries.pop_first();
            expired.push(uid);
        }
        expired
    }

    /// Answers objects that name an event that the operator does not have.
    pub(super) fn give_up_unknown(&mut self) {
        let now = Timestamp::now();
        let due: Vec<DeliveryRef> =
            self.unknown.extract_if(|_, (after, _)| *after <= now).map(|(_, (_, object))| object).collect();
        for object in due {
            if self.entries.get(&object.uid).is_none_or(|entry| entry.bytes > 0) {
                continue;
            }
            let text = "the operator has no event with this id: only deliveries that it created have one; to test a Webhook set spec.test";
            self.answer(unsent(object, Subject::Found(None), "EventUnknown", text.into(), now));
        }
    }
}

/// Returns the form of a request in the status. A hash distinguishes long requests that begin alike.
fn remembered(text: &str) -> String {
    if text.chars().nth(MAX_REQUEST).is_none() {
        return text.to_owned();
    }
    let hash = hexadecimal(&Sha256::digest(text.as_bytes())[..8]);
    let beginning: String = text.chars().take(MAX_REQUEST - 1 - hash.len()).collect();
    format!("{beginning}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{claim::Claim, report::apiserver};

    /// Creates the state of a namespace, with its messages and Events.
    fn state(call: Call) -> (State, mpsc::UnboundedReceiver<FromDeliveries>, mpsc::Receiver<Notice>) {
        let (back, from) = mpsc::unbounded_channel();
        let (notices, incoming) = mpsc::channel(16);
        (State::new(back, notices, None, call), from, incoming)
    }

    /// Builds a delivered object at this version.
    fn delivered(number: u128, version: u64, finished_at: &str) -> WebhookDelivery {
        let object = serde_json::json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery",
            "metadata": {
                "namespace": "research", "name": format!("dlv-{number}"), "uid": Uid::from_u128(number).to_string(),
                "resourceVersion": version.to_string()
            },
            "spec": {"webhookRef": {"name": "ci"}, "eventId": format!("evt_{number:032x}"), "ttl": "1h"},
            "status": {
                "finishedAt": finished_at,
                "event": {
                    "id": format!("evt_{number:032x}"), "type": "training.completed", "sequence": 1, "object": {}, "body": "{}"
                }
            }
        });
        serde_json::from_value(object).unwrap()
    }

    fn idle() -> Call {
        Call::new(apiserver(|_| panic!("nothing is requested")), Claim::unbounded())
    }

    #[tokio::test]
    async fn object_seen_twice_expires_once() {
        let (mut state, ..) = state(idle());
        let uid = Uid::from_u128(1);
        for version in 1..=1000 {
            state.seen(uid, delivered(1, version, "2026-02-03T04:05:06Z"));
        }
        assert_eq!(state.expiries.len(), 1);
        state.seen(uid, delivered(1, 1001, "2026-02-03T05:05:06Z"));
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(state.expired(at("2026-02-03T06:05:05Z")), []);
        assert_eq!(state.expired(at("2026-02-03T06:05:06Z")), [uid]);
        assert_eq!(state.expiries.len(), 0);
        state.seen(uid, delivered(1, 1002, "2026-02-03T05:05:06Z"));
        state.forget(uid);
        assert_eq!((state.expiries.len(), state.entries.len()), (0, 0));
    }

    #[tokio::test]
    async fn object_kept_by_finalizers_does_not_expire_again() {
        let (mut state, ..) = state(idle());
        let mut held = delivered(1, 5, "2026-02-03T04:05:06Z");
        held.metadata.deletion_timestamp = serde_json::from_str("\"2026-02-03T05:05:06Z\"").unwrap();
        state.seen(Uid::from_u128(1), held);
        assert_eq!(state.expiries.len(), 0);
        let reference = WebhookReference { kind: WebhookKind::Webhook, name: "ci".into() };
        assert_eq!(
            state.reservations.capacity("research", &reference, llmtune_core::engine::MAX_BYTES),
            Capacity::None,
            "it is not deleted for others"
        );
    }

    #[tokio::test]
    async fn object_without_its_event_waits_once() {
        let (mut state, ..) = state(idle());
        for version in 1..=100 {
            let mut object = delivered(1, version, "2026-02-03T04:05:06Z");
            object.status = None;
            state.seen(Uid::from_u128(1), object);
        }
        assert_eq!(state.unknown.len(), 1);
        assert_eq!(state.unknown[&Uid::from_u128(1)].1.only, Some(100), "as it was seen last");
        state.seen(Uid::from_u128(1), delivered(1, 101, "2026-02-03T04:05:06Z"));
        state.forget(Uid::from_u128(1));
        assert_eq!(state.unknown.len(), 0);
    }

    #[tokio::test]
    async fn empty_redelivery_request_is_answered_by_an_event() {
        let (mut state, _from, mut notices) = state(idle());
        let annotated = |version, value: &str| {
            let mut object = delivered(1, version, "2026-02-03T04:05:06Z");
            object.metadata.annotations = Some([(REDELIVER_ANNOTATION.to_owned(), value.to_owned())].into());
            object
        };
        for (version, value) in [(1, ""), (2, ""), (3, " ")] {
            state.seen(Uid::from_u128(1), annotated(version, value));
        }
        let notice = format!("{:?}", notices.try_recv().unwrap());
        assert!(notice.contains("EmptyRedeliverRequest") && notice.contains("date -u +"), "{notice}");
        assert!(notices.try_recv().is_err(), "once");
    }

    #[test]
    fn long_requests_with_the_same_beginning_differ() {
        let (short, long) = ("x".repeat(MAX_REQUEST), "x".repeat(MAX_REQUEST + 1));
        assert_eq!(remembered(&short), short);
        let others = [&long, &format!("{long}x"), &"\u{1f600}".repeat(100)].map(|text| remembered(text));
        assert!(others.iter().all(|text| text.chars().count() == MAX_REQUEST), "{others:?}");
        assert_ne!(others[0], others[1]);
    }

    #[tokio::test]
    async fn panicking_call_leaves_nothing_in_flight() {
        let call = Call::new(apiserver(|_| panic!("on purpose")), Claim::unbounded());
        let (mut state, mut from, _notices) = state(call);
        let object = serde_json::json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery",
            "metadata": {"namespace": "research", "name": "try", "uid": Uid::from_u128(7).to_string(), "resourceVersion": "5"},
            "spec": {"webhookRef": {"name": "ci"}, "test": {"event": "training.invented"}}
        });
        let object: WebhookDelivery = serde_json::from_value(object).unwrap();
        for _ in 0..2 {
            state.seen(Uid::from_u128(7), object.clone());
            assert_eq!(
                (state.in_flight.len(), state.calls.len()),
                (1, 1),
                "the answer is that the event does not exist"
            );
            let done = state.calls.join_next().await.unwrap().unwrap();
            state.done(done);
            assert!(state.in_flight.is_empty());
        }
        assert!(from.try_recv().is_err());
    }
}
