//! The index of subscriptions. It finds the recipients of an event. Owned by the engine. Pure.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kube_core::{Selector, SelectorExt};

use crate::{
    event::{
        Event, EventSet,
        object::{Labels, Object, Uid},
    },
    schedule::Backoff,
    subscription::{
        WebhookRef,
        filter::{Filter, FilterError, Subject},
        namespaces::Namespaces,
    },
};
use llmtune_api::webhook_delivery::WebhookKind;

/// The namespaces whose events match a subscription.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    /// This namespace.
    Namespace(String),
    /// Every namespace whose labels match.
    Cluster(Selector),
}

/// The parts of a Webhook or `ClusterWebhook` that the engine needs, to match events and to schedule attempts. A
/// subscription exists as long as its Webhook, Ready or not, because the recipients of an event are decided when the
/// event is observed.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// The Webhook's uid.
    pub uid: Uid,
    /// Only events of these namespaces match.
    pub scope: Scope,
    /// The generation of its spec.
    pub generation: i64,
    /// The events that match.
    pub events: EventSet,
    /// The labels of objects that match.
    pub selector: Selector,
    /// An additional condition on the event.
    pub filter: Option<Filter>,
    /// The number of retries after the first attempt.
    pub max_retries: u32,
    /// The waits between attempts.
    pub backoff: Backoff,
    /// The maximum number of concurrent attempts, at least 1.
    pub concurrency: usize,
    /// Whether deliveries wait, because the Webhook is suspended, invalid or lacks a reference.
    pub held: bool,
}

impl Subscription {
    /// A subscription that matches nothing, for a spec that cannot be read.
    #[must_use]
    pub fn inert(webhook: &WebhookRef, generation: i64) -> Self {
        let second = Duration::from_secs(1);
        Self {
            uid: webhook.uid,
            scope: match webhook.kind {
                WebhookKind::Webhook => Scope::Namespace(webhook.home.clone()),
                WebhookKind::ClusterWebhook => Scope::Cluster(Selector::default()),
            },
            generation,
            events: EventSet::default(),
            selector: Selector::default(),
            filter: None,
            // A failed attempt that was in flight when the spec became invalid must not be the last.
            max_retries: u32::MAX,
            backoff: Backoff { initial: second, factor: 1, max: second },
            concurrency: 1,
            held: true,
        }
    }

    /// The match, if the event matches. `namespace` contains the labels of the event's namespace. If the filter fails,
    /// the event matches, because it might be wanted.
    fn admit(&self, event: &Event, subject: &Subject<'_>, namespace: Option<&Labels>) -> Option<Match<'_>> {
        if !self.events.contains(event.event_type) || !self.selector.matches(&event.object.labels) {
            return None;
        }
        let selected = self.selected_namespaces().map(|selector| namespace.map(|labels| selector.matches(labels)));
        if selected == Some(Some(false)) {
            return None;
        }
        let uncertainty = match self.filter.as_ref().map_or(Ok(true), |filter| filter.passes(subject)) {
            Ok(false) => return None,
            _ if selected == Some(None) => Some(Uncertainty::Namespace),
            Ok(true) => None,
            Err(error) => Some(Uncertainty::Filter(error)),
        };
        Some(Match { subscription: self, uncertainty })
    }

    fn reads_annotations(&self) -> bool {
        self.filter.as_ref().is_some_and(Filter::reads_annotations)
    }

    /// The selector of namespaces, or `None` if their labels do not matter.
    fn selected_namespaces(&self) -> Option<&Selector> {
        match &self.scope {
            Scope::Cluster(selector) if !selector.selects_all() => Some(selector),
            Scope::Cluster(_) | Scope::Namespace(_) => None,
        }
    }
}

/// All subscriptions by uid and by scope, and the labels of namespaces.
#[derive(Debug, Default)]
pub struct Index {
    subscriptions: HashMap<Uid, Subscription>,
    of_namespaces: HashMap<String, Vec<Uid>>,
    of_cluster: Vec<Uid>,
    /// The number of subscriptions whose filter reads annotations.
    annotation_readers: usize,
    /// The number of subscriptions that select namespaces by labels.
    namespace_selectors: usize,
    /// The known Namespaces.
    pub namespaces: Namespaces,
}

/// A subscription that matches an event.
#[derive(Debug)]
pub struct Match<'a> {
    pub subscription: &'a Subscription,
    /// Why it is uncertain that the event is wanted. `None` if it is certain.
    pub uncertainty: Option<Uncertainty>,
}

/// Why it is uncertain whether a subscription wants an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Uncertainty {
    /// The filter failed.
    Filter(FilterError),
    /// The subscription selects namespaces, and the labels of this one are unknown.
    Namespace,
}

impl Index {
    /// Adds a subscription, or replaces the one with the same uid, which must be of the same kind.
    pub fn insert(&mut self, subscription: Subscription) {
        let uid = subscription.uid;
        let namespace = match &subscription.scope {
            Scope::Namespace(namespace) => Some(namespace.clone()),
            Scope::Cluster(_) => None,
        };
        self.annotation_readers += usize::from(subscription.reads_annotations());
        self.namespace_selectors += usize::from(subscription.selected_namespaces().is_some());
        if let Some(before) = self.subscriptions.insert(uid, subscription) {
            self.subtract_counts(&before);
        } else {
            match namespace {
                Some(namespace) => self.of_namespaces.entry(namespace).or_default().push(uid),
                None => self.of_cluster.push(uid),
            }
        }
    }

    /// Removes and returns a subscription.
    pub fn remove(&mut self, uid: Uid) -> Option<Subscription> {
        let subscription = self.subscriptions.remove(&uid)?;
        self.subtract_counts(&subscription);
        match &subscription.scope {
            Scope::Cluster(_) => self.of_cluster.retain(|other| *other != uid),
            Scope::Namespace(namespace) => {
                if let Some(uids) = self.of_namespaces.get_mut(namespace) {
                    uids.retain(|other| *other != uid);
                    if uids.is_empty() {
                        self.of_namespaces.remove(namespace);
                    }
                }
            }
        }
        Some(subscription)
    }

    fn subtract_counts(&mut self, subscription: &Subscription) {
        self.annotation_readers -= usize::from(subscription.reads_annotations());
        self.namespace_selectors -= usize::from(subscription.selected_namespaces().is_some());
    }

    /// The subscription with this uid.
    #[must_use]
    pub fn get(&self, uid: Uid) -> Option<&Subscription> {
        self.subscriptions.get(&uid)
    }

    /// Whether any filter reads the annotations of objects.
    #[must_use]
    pub const fn reads_annotations(&self) -> bool {
        self.annotation_readers > 0
    }

    /// Whether any subscription selects namespaces by their labels.
    #[must_use]
    pub const fn selects_namespaces(&self) -> bool {
        self.namespace_selectors > 0
    }

    /// The subscriptions that match this event of the observed object: first those of its namespace, then those of the
    /// cluster, each in insertion order. If the namespace is unknown, its labels are those from when the object was
    /// last observed.
    pub fn matching<'a>(&'a self, event: &'a Event, object: &'a Object) -> impl Iterator<Item = Match<'a>> {
        let namespace = &event.object.namespace;
        let of_namespace = self.of_namespaces.get(namespace).map_or(&[][..], Vec::as_slice);
        let labels = self.namespaces.labels(namespace).or(object.namespace_labels.as_ref()).map(Arc::as_ref);
        let subject = Subject::new(event, object);
        let uids = of_namespace.iter().chain(&self.of_cluster);
        let subscriptions = uids.filter_map(|uid| self.subscriptions.get(uid));
        subscriptions.filter_map(move |subscription| subscription.admit(event, &subject, labels))
    }
}

#[cfg(test)]
mod tests;
