//! The live index of subscriptions: who gets this event. Pure; owned by the engine.

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

/// Whose events a subscription is to.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    /// Those of this namespace.
    Namespace(String),
    /// Those of every namespace whose labels this selects.
    Cluster(Selector),
}

/// A Webhook or `ClusterWebhook` as the engine sees it: whom to match, how to schedule. It exists from the moment the Webhook does, Ready or
/// not, since who gets an event is decided when the event is observed.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// The Webhook's uid.
    pub uid: Uid,
    /// Only events of these namespaces match.
    pub scope: Scope,
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
            scope: match webhook.kind {
                WebhookKind::Webhook => Scope::Namespace(webhook.home.clone()),
                WebhookKind::ClusterWebhook => Scope::Cluster(Selector::default()),
            },
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

    /// The match, where the event goes to it. `namespace`: the labels of the event's namespace. A filter that fails lets it pass, since
    /// it might have been wanted.
    fn admit(&self, event: &Event, subject: &Subject<'_>, namespace: Option<&Labels>) -> Option<Match<'_>> {
        if !self.events.contains(event.event_type) || !self.selector.matches(&event.object.labels) {
            return None;
        }
        let selected = self.selected_namespaces().map(|selector| namespace.map(|labels| selector.matches(labels)));
        if selected == Some(Some(false)) {
            return None;
        }
        let doubt = match self.filter.as_ref().map_or(Ok(true), |filter| filter.passes(subject)) {
            Ok(false) => return None,
            _ if selected == Some(None) => Some(Doubt::Namespace),
            Ok(true) => None,
            Err(error) => Some(Doubt::Filter(error)),
        };
        Some(Match { subscription: self, doubt })
    }

    fn reads_annotations(&self) -> bool {
        self.filter.as_ref().is_some_and(Filter::reads_annotations)
    }

    /// The selector of namespaces; `None` where their labels do not matter.
    fn selected_namespaces(&self) -> Option<&Selector> {
        match &self.scope {
            Scope::Cluster(selector) if !selector.selects_all() => Some(selector),
            Scope::Cluster(_) | Scope::Namespace(_) => None,
        }
    }
}

/// All subscriptions, by uid and by scope, and the labels of namespaces that some of them select by.
#[derive(Debug, Default)]
pub struct Index {
    subscriptions: HashMap<Uid, Subscription>,
    of_namespaces: HashMap<String, Vec<Uid>>,
    of_cluster: Vec<Uid>,
    /// How many have a filter that reads annotations.
    annotation_readers: usize,
    /// How many select namespaces by their labels.
    namespace_selectors: usize,
    /// What is known of Namespaces.
    pub namespaces: Namespaces,
}

/// A subscription that an event goes to.
#[derive(Debug)]
pub struct Match<'a> {
    pub subscription: &'a Subscription,
    /// Why it might not be wanted there; `None`: it is.
    pub doubt: Option<Doubt>,
}

/// Why it cannot be told whether a subscription wants an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Its filter failed on the event.
    Filter(FilterError),
    /// It selects namespaces, and nothing is known of this one.
    Namespace,
}

impl Index {
    /// Adds a subscription, or replaces the one of the same uid, which is of the same kind.
    pub fn insert(&mut self, subscription: Subscription) {
        let uid = subscription.uid;
        let namespace = match &subscription.scope {
            Scope::Namespace(namespace) => Some(namespace.clone()),
            Scope::Cluster(_) => None,
        };
        self.annotation_readers += usize::from(subscription.reads_annotations());
        self.namespace_selectors += usize::from(subscription.selected_namespaces().is_some());
        if let Some(before) = self.subscriptions.insert(uid, subscription) {
            self.count_out(&before);
        } else {
            match namespace {
                Some(namespace) => self.of_namespaces.entry(namespace).or_default().push(uid),
                None => self.of_cluster.push(uid),
            }
        }
    }

    /// Removes a subscription; `None` where there was none.
    pub fn remove(&mut self, uid: Uid) -> Option<Subscription> {
        let subscription = self.subscriptions.remove(&uid)?;
        self.count_out(&subscription);
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

    fn count_out(&mut self, subscription: &Subscription) {
        self.annotation_readers -= usize::from(subscription.reads_annotations());
        self.namespace_selectors -= usize::from(subscription.selected_namespaces().is_some());
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

    /// Whether any subscription selects namespaces by their labels.
    #[must_use]
    pub const fn selects_namespaces(&self) -> bool {
        self.namespace_selectors > 0
    }

    /// The subscriptions that this event of the observed object goes to: those of its namespace, then those of the cluster, each in the
    /// order in which they came. Of a namespace that is not known the labels are those that the object was last seen under.
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
