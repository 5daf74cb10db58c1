//! The objects as they are known, and the calls about them that are under way.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::mpsc, task::JoinSet};
use tracing::warn;

use super::{
    Answer, Asked, DeliveryRef, FromDeliveries, Kept, Subject,
    call::Call,
    object::{event, uid, version},
    room::{Places, Room},
    unsent,
};
use crate::{
    api::{
        WebhookDelivery,
        webhook_delivery::{DEFAULT_TTL, DeliveredEvent, REDELIVER_ANNOTATION, WebhookKind, WebhookReference},
    },
    engine::Keep,
    event::{EventType, id::DeliveryId, object::Uid},
    panics::caught,
    report::conditions::holds,
    subscription::resolve::{WebhookRef, duration},
};

/// A request longer than this is not told apart from another that begins alike.
const MAX_REQUEST: usize = 64;
/// An object that names an event and has none is given up on after this long.
const UNKNOWN_AFTER: Duration = Duration::from_secs(30);

/// What is remembered of an object.
#[derive(Debug)]
pub(super) struct Entry {
    /// The newest version known: what is older says nothing any more.
    pub(super) version: u64,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) webhook: WebhookReference,
    pub(super) bytes: usize,
    /// Nothing is lost with it: it is delivered, or holds no event.
    pub(super) spent: bool,
    /// When it is to go.
    pub(super) expires: Option<Timestamp>,
}

/// A request that is under way.
#[derive(Debug)]
struct UnderWay {
    request: Option<String>,
    /// Another has come meanwhile.
    another: bool,
}

/// What a call to the apiserver came to.
pub(super) enum Done {
    Kept {
        webhook: WebhookRef,
        delivery: DeliveryId,
        object: Option<(Uid, Box<Entry>)>,
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

/// The objects as they are known, and the calls about them that are under way.
pub(super) struct State {
    back: mpsc::UnboundedSender<FromDeliveries>,
    cluster_home: Option<String>,
    call: Call,
    pub(super) calls: JoinSet<Done>,
    pub(super) entries: HashMap<Uid, Entry>,
    places: Places,
    expiries: BinaryHeap<Reverse<(Timestamp, Uid)>>,
    /// Objects with a request under way.
    asked: HashMap<Uid, UnderWay>,
    deleting: HashSet<Uid>,
    /// Objects that name an event and have none, and when to give up on them.
    unknown: Vec<(Timestamp, DeliveryRef)>,
}

impl State {
    pub(super) fn new(back: mpsc::UnboundedSender<FromDeliveries>, cluster_home: Option<String>, call: Call) -> Self {
        Self {
            back,
            cluster_home,
            call,
            calls: JoinSet::new(),
            entries: HashMap::new(),
            places: Places::default(),
            expiries: BinaryHeap::new(),
            asked: HashMap::new(),
            deleting: HashSet::new(),
            unknown: Vec::new(),
        }
    }

    fn send(&self, message: FromDeliveries) {
        // The loop is gone: so is this task soon.
        let _ = self.back.send(message);
    }

    /// Begins a call. One that panics ends as `broken`, so that what it was for is not under way for ever.
    fn begin<C>(&mut self, broken: Done, call: impl FnOnce(Call) -> C)
    where
        C: Future<Output = Done> + Send + 'static,
    {
        let call = caught(call(self.call.clone()));
        self.calls.spawn(async move { call.await.unwrap_or(broken) });
    }

    /// Takes an object in, and hands on what it asks for.
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
        let request = annotation.filter(|text| !text.is_empty()).map(|text| text.chars().take(MAX_REQUEST).collect());
        let finished_at = status.finished_at.as_ref().map(|time| time.0);
        let ttl = duration("ttl", &spec.ttl).or_else(|_| duration("ttl", DEFAULT_TTL)).unwrap_or_default();
        let handled = request == status.last_handled_redeliver_at || request.is_none();
        let entry = Entry {
            version,
            namespace: namespace.clone(),
            name: name.clone(),
            webhook: spec.webhook_ref.clone(),
            bytes: status.event.as_ref().map_or(0, |event| event.body.len()),
            spent: status.event.is_none() || holds(&status.conditions, "Delivered"),
            // One that is asked for again does not go before it is answered.
            expires: finished_at.filter(|_| handled).and_then(|at| at.checked_add(ttl).ok()),
        };
        if let Some(expires) = entry.expires {
            self.expiries.push(Reverse((expires, uid)));
        }
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
            // The event may yet come, from this leader or from one before whose write is under way.
            self.unknown.push((after, DeliveryRef { only: Some(version), ..object }));
            return;
        }
        if !due {
            return;
        }
        if let Some(under_way) = self.asked.get_mut(&uid) {
            under_way.another |= under_way.request != request;
            return;
        }
        self.asked.insert(uid, UnderWay { request, another: false });
        self.hand_on(object, spec.test.map(|test| test.event), status.event);
    }

    /// Hands on a request: for a sample of the event `test`, else for the event that the object has kept. Where that cannot be, it is answered.
    fn hand_on(&mut self, object: DeliveryRef, test: Option<String>, kept: Option<DeliveredEvent>) {
        let (reason, message) = match (self.misplaced(&object), test, &kept) {
            (Some(misplaced), ..) => misplaced,
            (None, Some(test), _) => {
                if let Some(event) = EventType::parse(&test) {
                    return self.send(FromDeliveries::Asked(Asked::Test { object, event }));
                }
                ("EventUnknown", format!("this release does not know the event {test}: upgrade the operator"))
            }
            (None, None, kept) => {
                if let Some(event) = kept.as_ref().and_then(|kept| event(&object.namespace, kept)) {
                    return self.send(FromDeliveries::Asked(Asked::Again { object, event: Arc::new(event) }));
                }
                let message = format!(
                    "this release cannot read the event in status.event: upgrade the operator to the release that kept it, then set the annotation {REDELIVER_ANNOTATION} anew"
                );
                ("EventUnreadable", message)
            }
        };
        warn!(namespace = object.namespace, name = object.name, reason, message, "a delivery cannot be made");
        self.answer(unsent(object, Subject::Found(kept.map(Box::new)), reason, message, Timestamp::now()));
    }

    /// Why nothing is sent to a `ClusterWebhook` for an object in this namespace: whoever may write here must not make the operator send
    /// to an endpoint of the platform team's, nor learn whether there is one.
    fn misplaced(&self, object: &DeliveryRef) -> Option<(&'static str, String)> {
        if object.webhook.kind == WebhookKind::Webhook {
            return None;
        }
        match &self.cluster_home {
            Some(home) if *home == object.namespace => None,
            Some(home) => {
                let say =
                    format!("deliveries of ClusterWebhooks are in the operator's namespace: make this one in {home}");
                Some(("NotInOperatorNamespace", say))
            }
            None => {
                let say =
                    "this operator serves no ClusterWebhook, since it runs with --watch-namespace: name a Webhook";
                Some(("ClusterWebhooksNotServed", say.to_owned()))
            }
        }
    }

    fn enter(&mut self, uid: Uid, entry: Entry) {
        if !self.deleting.contains(&uid) {
            self.places.seen(uid, &entry);
        }
        self.entries.insert(uid, entry);
    }

    pub(super) fn forget(&mut self, uid: Uid) {
        if let Some(entry) = self.entries.remove(&uid) {
            self.places.gone(uid, &entry);
        }
        self.asked.remove(&uid);
        self.deleting.remove(&uid);
    }

    pub(super) fn keep(&mut self, webhook: WebhookRef, keep: Keep) {
        let (delivery, bytes) = (keep.delivery, keep.event.body.len());
        let reference = WebhookReference { kind: webhook.kind, name: webhook.name.clone() };
        match self.places.room(&webhook.home, &reference, bytes) {
            Room::Enough => {}
            Room::After(uid) => self.delete(uid),
            Room::None => {
                return self.send(FromDeliveries::Kept(Kept { webhook: webhook.uid, delivery, landed: false }));
            }
        }
        self.places.reserve(&webhook.home, reference, &delivery.object_name(), bytes);
        let broken = Done::Kept { webhook: webhook.clone(), delivery, object: None };
        self.begin(broken, |call| async move {
            let object = call.keep(&webhook, &keep).await.map(|(uid, entry)| (uid, Box::new(entry)));
            Done::Kept { webhook, delivery, object }
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
        self.places.gone(uid, entry);
        let (namespace, name) = (entry.namespace.clone(), entry.name.clone());
        self.begin(Done::Deleted { object: uid }, |call| async move {
            call.delete(&namespace, &name, uid).await;
            Done::Deleted { object: uid }
        });
    }

    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Kept { webhook, delivery, object } => {
                let landed = object.is_some();
                self.places.release(&webhook.home, &delivery.object_name());
                if let Some((uid, entry)) = object {
                    let newer = self.entries.remove(&uid).filter(|known| known.version >= entry.version);
                    self.enter(uid, newer.unwrap_or(*entry));
                }
                self.send(FromDeliveries::Kept(Kept { webhook: webhook.uid, delivery, landed }));
            }
            Done::Answered { object: uid, version } => {
                let Some(entry) = self.entries.get_mut(&uid) else { return };
                entry.version = entry.version.max(version);
                let (namespace, name) = (entry.namespace.clone(), entry.name.clone());
                if self.asked.remove(&uid).is_some_and(|under_way| under_way.another) {
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
                // It may be held by finalizers.
                if let Some(entry) = self.entries.get(&uid) {
                    self.places.seen(uid, entry);
                }
            }
        }
    }

    pub(super) fn expired(&mut self, now: Timestamp) -> Vec<Uid> {
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

    /// Says of objects that name an event which the operator does not have that nothing can come of them.
    pub(super) fn give_up_unknown(&mut self) {
        let now = Timestamp::now();
        let due: Vec<DeliveryRef> =
            self.unknown.extract_if(.., |(after, _)| *after <= now).map(|(_, object)| object).collect();
        for object in due {
            if self.entries.get(&object.uid).is_none_or(|entry| entry.bytes > 0) {
                continue;
            }
            let text = "the operator has no event of this id: only deliveries that it has created hold one; to test a Webhook write spec.test";
            self.answer(unsent(object, Subject::Found(None), "EventUnknown", text.into(), now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{claim::Claim, report::apiserver};

    #[tokio::test]
    async fn a_call_that_panics_leaves_nothing_under_way() {
        let (back, mut from) = mpsc::unbounded_channel();
        let call = Call::new(apiserver(|_| panic!("as this test wants")), Claim::unbounded());
        let mut state = State::new(back, None, call);
        let object = serde_json::json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery",
            "metadata": {"namespace": "research", "name": "try", "uid": Uid::from_u128(7).to_string(), "resourceVersion": "5"},
            "spec": {"webhookRef": {"name": "ci"}, "test": {"event": "training.invented"}}
        });
        let object: WebhookDelivery = serde_json::from_value(object).unwrap();
        for _ in 0..2 {
            state.seen(Uid::from_u128(7), object.clone());
            assert_eq!((state.asked.len(), state.calls.len()), (1, 1), "it is answered that there is no such event");
            let done = state.calls.join_next().await.unwrap().unwrap();
            state.done(done);
            assert!(state.asked.is_empty());
        }
        assert!(from.try_recv().is_err());
    }
}
