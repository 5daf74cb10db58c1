//! The live index of subscriptions: who gets this event. Pure; owned by the engine.

use std::{collections::HashMap, time::Duration};

use kube::core::{Selector, SelectorExt};

use crate::{
    delivery::schedule::Backoff,
    event::{
        Event, EventSet,
        object::{Object, Uid},
    },
    subscription::{
        filter::{Filter, FilterError, Subject},
        resolve::WebhookRef,
    },
};

/// A Webhook as the engine sees it: whom to match, how to schedule. It exists from the moment the Webhook does, Ready or
/// not, since who gets an event is decided when the event is observed.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// The Webhook's uid.
    pub uid: Uid,
    /// Only events of this namespace match.
    pub namespace: String,
    /// The generation of the spec that this was made from.
    pub generation: i64,
    /// The events that match.
    pub events: EventSet,
    /// Labels of the object that match.
    pub selector: Selector,
    /// What must hold of the event besides.
    pub filter: Option<Filter>,
    /// Retries after a failed first attempt.
    pub max_retries: u32,
    /// The waits between attempts.
    pub backoff: Backoff,
    /// Attempts under way at once, at least 1.
    pub concurrency: usize,
    /// Suspended, or without something that it needs: deliveries wait.
    pub held: bool,
}

impl Subscription {
    /// A subscription to nothing, for a spec that cannot be read.
    #[must_use]
    pub fn inert(webhook: &WebhookRef, generation: i64) -> Self {
        let second = Duration::from_secs(1);
        Self {
            uid: webhook.uid,
            namespace: webhook.namespace.clone(),
            generation,
            events: EventSet::default(),
            selector: Selector::default(),
            filter: None,
            // An attempt under way when the spec broke must not be the last.
            max_retries: u32::MAX,
            backoff: Backoff { initial: second, factor: 1, max: second },
            concurrency: 1,
            held: true,
        }
    }

    /// The match, where the event goes to it. A filter that fails lets it pass, since it might have been wanted.
    fn admit(&self, event: &Event, subject: &Subject<'_>) -> Option<Match<'_>> {
        if !self.events.contains(event.event_type) || !self.selector.matches(&event.object.labels) {
            return None;
        }
        let unfiltered = match self.filter.as_ref().map_or(Ok(true), |filter| filter.passes(subject)) {
            Ok(true) => None,
            Ok(false) => return None,
            Err(error) => Some(error),
        };
        Some(Match { subscription: self, unfiltered })
    }

    fn reads_annotations(&self) -> bool {
        self.filter.as_ref().is_some_and(Filter::reads_annotations)
    }
}

/// All subscriptions, by uid and by namespace.
#[derive(Debug, Default)]
pub struct Index {
    subscriptions: HashMap<Uid, Subscription>,
    namespaces: HashMap<String, Vec<Uid>>,
    /// How many have a filter that reads annotations.
    annotation_readers: usize,
}

/// A subscription that an event goes to.
#[derive(Debug)]
pub struct Match<'a> {
    pub subscription: &'a Subscription,
    /// Its filter failed on the event.
    pub unfiltered: Option<FilterError>,
}

impl Index {
    /// Adds a subscription, or replaces the one of the same uid.
    pub fn insert(&mut self, subscription: Subscription) {
        let uid = subscription.uid;
        let namespace = subscription.namespace.clone();
        self.annotation_readers += usize::from(subscription.reads_annotations());
        match self.subscriptions.insert(uid, subscription) {
            Some(before) => self.annotation_readers -= usize::from(before.reads_annotations()),
            None => self.namespaces.entry(namespace).or_default().push(uid),
        }
    }

    /// Removes a subscription; `None` where there was none.
    pub fn remove(&mut self, uid: Uid) -> Option<Subscription> {
        let subscription = self.subscriptions.remove(&uid)?;
        self.annotation_readers -= usize::from(subscription.reads_annotations());
        if let Some(uids) = self.namespaces.get_mut(&subscription.namespace) {
            uids.retain(|other| *other != uid);
            if uids.is_empty() {
                self.namespaces.remove(&subscription.namespace);
            }
        }
        Some(subscription)
    }

    /// The subscription of this uid.
    #[must_use]
    pub fn get(&self, uid: Uid) -> Option<&Subscription> {
        self.subscriptions.get(&uid)
    }

    /// Whether any filter reads the annotations of objects.
    #[must_use]
    pub const fn reads_annotations(&self) -> bool {
        self.annotation_readers > 0
    }

    /// The subscriptions that this event of the observed object goes to, in the order in which they came.
    pub fn matching<'a>(&'a self, event: &'a Event, object: &'a Object) -> impl Iterator<Item = Match<'a>> {
        let uids = self.namespaces.get(&event.object.namespace).map_or(&[][..], Vec::as_slice);
        let subject = Subject::new(event, object);
        let subscriptions = uids.iter().filter_map(|uid| self.subscriptions.get(uid));
        subscriptions.filter_map(move |subscription| subscription.admit(event, &subject))
    }
}
