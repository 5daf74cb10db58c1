//! The engine turns observations into events, events into deliveries, and outcomes into retries. It owns the records
//! and the pending deliveries. The leader's loop (`operator::leader`) and the simulation call it. The engine is pure:
//! it uses no client and no runtime; time and randomness are arguments.
//!
//! 1. The engine drops an observation that is not newer than its record.
//! 2. On a first installation, existing objects are a baseline: no event is sent for their past.
//! 3. The recipients of an event are decided when it is observed: every Webhook that exists and matches then. If the
//!    labels of the Namespace are unknown and a selector needs them, the event becomes a dead letter.
//! 4. Only a complete list proves that an object is absent. On a watch with a selector, a GET must confirm it. The
//!    engine never waits for a GET: an observation of the object before the answer voids the check.
//! 5. A position is the resource version up to which the engine has processed a watch. It does not move during a list.
//! 6. No event of a watch is attempted or stored as an object before the watch's baseline is flushed. Recovery drops an
//!    event that a crash separated from its baseline.
//! 7. Measured figures cannot be read again from a watch log. No event of a measured watch is attempted or stored as an
//!    object before a flush that holds both the event and its record is committed.
//! 8. A complete flush is consistent: all records and deliveries that its positions cover are committed with it or
//!    before it, and it names every watch that has not been removed.
//! 9. A removed watch emits nothing more. A watch added later, even under the same name, starts from a baseline, or
//!    empty if its kind is not installed, and gets its own epoch.
//! 10. No event is sent for the history of a training from before it came into view, except for changes that an outage
//!     hid. Each position records the time at which it was current; a training that existed then and is new to the
//!     watch starts from its present stage.
//! 11. Records of a kind that is no longer served are kept for 7 days. If the kind is served again, objects that the
//!     list lacks are removed without an event.

mod checkpoint;
mod deliveries;
pub mod flush_scheduler;
mod pending;
#[cfg(test)]
mod tests;
mod watch;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use crate::{
    event::{
        Event,
        body::{self, Envelope},
        format::Forms,
        id::EventId,
        lifecycle::Occurrence,
        object::{Uid, WatchId},
        observation::{ExistenceCheck, Observation, WatchEvent},
        payload,
    },
    ledger::{
        contents::{GivenUp, Reason},
        journal::RememberedWatch,
    },
    subscription::{
        WebhookRef,
        filter::FilterError,
        index::{Index, Match, Subscription, Uncertainty},
        namespaces::Namespaces,
    },
};
use pending::{AddedDeadLetter, Pending};
use watch::{Baseline, Missing, Occurred, Watch, WatchScope};

pub use checkpoint::Unflushed;
pub use deliveries::{Due, RecordedOutcome, Verdict};
pub use pending::{MAX_BYTES, MAX_DEAD_LETTERS, MAX_DELIVERIES, MAX_TOTAL_BYTES, StoreDeadLetter};

/// The result of an observation.
#[derive(Debug, Default)]
pub struct Observed {
    /// Events that occurred, in order.
    pub events: Vec<Arc<Event>>,
    /// Webhooks that got a delivery.
    pub enqueued: Vec<Uid>,
    /// Deliveries given up at once, because the Webhook's bound is reached or the Namespace is unknown.
    pub given_up: Vec<RecordedOutcome>,
    /// Deliveries created because a filter failed.
    pub unfiltered: Vec<Unfiltered>,
    /// Webhooks whose dead-letter bound is reached as well, one entry for each event that was dropped.
    pub dropped: Vec<Uid>,
    /// Existence checks to send to the apiserver.
    pub existence_checks: Vec<ExistenceCheck>,
    /// After an evaluation: the UID of the measured object and the thresholds that are reached, as its spec writes
    /// them, ascending.
    pub reached: Option<(Uid, Vec<String>)>,
}

/// A Webhook's filter failed on an event. The event is sent anyway.
#[derive(Debug)]
pub struct Unfiltered {
    pub webhook: Uid,
    pub event: Arc<Event>,
    pub error: FilterError,
}

/// The number of pending deliveries of a Webhook, the time of the oldest, and whether the Webhook is paused.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    pub webhook: Uid,
    pub pending: usize,
    pub oldest: Option<Timestamp>,
    /// True while a pause that the endpoint asked for lasts.
    pub paused: bool,
}

#[derive(Debug)]
pub struct Engine {
    cluster: Option<String>,
    shards: usize,
    /// The newest epoch assigned so far.
    epoch: u64,
    watches: BTreeMap<WatchId, Watch>,
    remembered: Vec<RememberedWatch>,
    index: Index,
    pending: Pending,
    /// Records that changed since they were last flushed.
    dirty: Vec<(WatchId, Uid)>,
    /// Removed records. Their removal is held back until a complete flush.
    gone: Vec<(WatchId, Uid)>,
    watches_changed: bool,
    moved: bool,
}

impl Engine {
    /// Creates an engine without state. `epoch` must be newer than any epoch assigned before. `shards` is the number of
    /// snapshot segments in the ledger.
    #[must_use]
    pub fn new(cluster: Option<String>, epoch: u64, shards: usize) -> Self {
        Self {
            cluster,
            shards,
            epoch,
            watches: BTreeMap::new(),
            remembered: Vec::new(),
            index: Index::default(),
            pending: Pending::new(shards),
            dirty: Vec::new(),
            gone: Vec::new(),
            watches_changed: false,
            moved: false,
        }
    }

    /// Registers a watch before anything is observed on it. `name` identifies its source, namespace and selector; state
    /// recovered under this name is restored.
    pub fn add_watch(&mut self, id: WatchId, source: &str, name: &str, selective: bool) {
        self.add(id, source, name, if selective { WatchScope::Selected } else { WatchScope::Whole });
    }

    /// Registers a watch whose objects are measured, not observed. Its events are in the ledger before they are
    /// attempted.
    pub fn add_measured_watch(&mut self, id: WatchId, source: &str, name: &str) {
        self.add(id, source, name, WatchScope::Measured);
    }

    fn add(&mut self, id: WatchId, source: &str, name: &str, sight: WatchScope) {
        if self.watches.contains_key(&id) {
            return;
        }
        let known = self.remembered.iter().position(|remembered| remembered.entry.watch == name);
        let watch = if let Some(at) = known {
            let remembered = self.remembered.swap_remove(at);
            let restored = remembered.restored;
            let mut watch = Watch::recover(source, sight, self.shards, remembered);
            if restored {
                let mut dirty = Vec::new();
                watch.distrust_versions(&mut dirty);
                self.dirty.extend(dirty.into_iter().map(|uid| (id, uid)));
                self.watches_changed = true;
            }
            watch
        } else {
            self.watches_changed = true;
            Watch::new(source, sight, self.shards, name, self.next_epoch())
        };
        self.watches.insert(id, watch);
    }

    /// Reports whether any recovered watch is neither registered nor forgotten yet. No flush begins until then: a flush
    /// names all watches, and recovery forgets a watch that is not named.
    #[must_use]
    pub fn awaits_watches(&self) -> bool {
        !self.remembered.is_empty()
    }

    /// Returns the names of recovered watches that are not registered.
    pub fn remembered_watches(&self) -> impl Iterator<Item = &str> {
        self.remembered.iter().map(|remembered| remembered.entry.watch.as_str())
    }

    /// Forgets all recovered watches that were not registered, with their records and without events. Returns their
    /// names.
    pub fn forget_other_watches(&mut self) -> Vec<String> {
        self.watches_changed |= !self.remembered.is_empty();
        std::mem::take(&mut self.remembered).into_iter().map(|remembered| remembered.entry.watch).collect()
    }

    /// Removes a watch. Its records are forgotten without events, and later observations on it are dropped.
    pub fn remove_watch(&mut self, id: WatchId) {
        self.watches_changed |= self.watches.remove(&id).is_some();
    }

    fn next_epoch(&mut self) -> u64 {
        self.epoch = self.epoch.saturating_add(1);
        self.epoch
    }

    /// Returns the existence checks that were open when a crash happened.
    #[must_use]
    pub fn open_checks(&self) -> Vec<ExistenceCheck> {
        let watches = self.watches.iter();
        watches
            .flat_map(|(id, watch)| {
                watch.existence_checks().map(|(uid, record)| watch::existence_check(*id, uid, record))
            })
            .flatten()
            .collect()
    }

    /// Adds or replaces a subscription. A new generation of the spec clears a 410 and ends a pause.
    pub fn subscribe(&mut self, subscription: Subscription) {
        if self.index.get(subscription.uid).is_some_and(|before| before.generation != subscription.generation) {
            self.pending.resume(subscription.uid);
        }
        let queue = self.pending.subscribed(subscription.uid);
        queue.concurrency = subscription.concurrency.max(1);
        queue.held = subscription.held;
        queue.endpoint_gone = queue.endpoint_gone.filter(|generation| *generation == subscription.generation);
        let uid = subscription.uid;
        self.index.insert(subscription);
        self.pending.wake(uid);
    }

    /// Marks the endpoint as gone: it answered 410 Gone to the spec of this generation.
    pub fn mark_gone(&mut self, webhook: Uid, generation: i64) {
        self.pending.queue(webhook).endpoint_gone = Some(generation);
        self.pending.wake(webhook);
    }

    /// Returns Webhooks that have recovered deliveries but no subscription.
    #[must_use]
    pub fn orphans(&self) -> Vec<Uid> {
        self.pending.orphans()
    }

    /// Sets the owner of a Webhook's deliveries (see `subscription::owner`).
    pub fn own(&mut self, webhook: Uid, owner: Arc<str>) {
        self.pending.own(webhook, owner);
    }

    /// Returns the owner of a Webhook's deliveries and the namespace of one of them, as far as they are known.
    #[must_use]
    pub fn owner(&self, webhook: Uid) -> (Option<Arc<str>>, Option<String>) {
        (self.pending.owner(webhook).cloned(), self.pending.namespace(webhook).map(str::to_owned))
    }

    /// Handles the deletion of a Webhook. The Webhook gets no further events. Its pending deliveries wait until another
    /// Webhook takes them over or [`Self::unsubscribe`] drops them. Returns their number; if it is 0, the Webhook is
    /// removed at once.
    pub fn orphan(&mut self, webhook: &WebhookRef) -> usize {
        let left = self.pending.orphan(webhook.uid);
        if left == 0 {
            self.unsubscribe(webhook.uid);
        } else {
            let generation = self.index.get(webhook.uid).map_or(0, |subscription| subscription.generation);
            // Attempts in flight may still end.
            self.index.insert(Subscription::inert(webhook, generation));
        }
        left
    }

    /// Moves the pending deliveries of a deleted Webhook to another one, in order and with their attempt counts.
    /// Returns the number of deliveries moved.
    pub fn take_over(&mut self, orphan: Uid, heir: Uid) -> usize {
        self.index.remove(orphan);
        self.pending.take_over(orphan, heir)
    }

    /// Removes a deleted Webhook with its deliveries. Returns the number of deliveries removed.
    pub fn unsubscribe(&mut self, webhook: Uid) -> usize {
        self.index.remove(webhook);
        self.pending.forget(webhook)
    }

    /// Returns the subscription of this Webhook.
    #[must_use]
    pub fn subscription(&self, webhook: Uid) -> Option<&Subscription> {
        self.index.get(webhook)
    }

    /// The known labels of Namespaces, by which `ClusterWebhooks` select.
    pub const fn namespaces(&mut self) -> &mut Namespaces {
        &mut self.index.namespaces
    }

    /// Reports whether any filter reads annotations. If so, sources must keep the annotations of objects.
    #[must_use]
    pub fn reads_annotations(&self) -> bool {
        self.index.reads_annotations()
    }

    /// Returns the number of pending deliveries of this Webhook.
    #[must_use]
    pub fn pending(&self, webhook: Uid) -> usize {
        self.pending.count(webhook)
    }

    /// Returns the backlog of every Webhook.
    pub fn backlogs(&self) -> impl Iterator<Item = Backlog> {
        self.pending.backlogs()
    }

    /// Returns the number of objects with a record.
    #[must_use]
    pub fn records(&self) -> usize {
        self.watches.values().map(Watch::len).sum()
    }

    /// Returns the resource version up to which the watch is processed; 0 before its first list is complete.
    #[must_use]
    pub fn position(&self, watch: WatchId) -> u64 {
        self.watches.get(&watch).map_or(0, Watch::position)
    }

    /// Processes an observation. An observation of an unknown watch is dropped.
    pub fn observe(&mut self, observation: Observation, now: Timestamp) -> Observed {
        let Observation { watch: id, mut change } = observation;
        let mut observed = Observed::default();
        let Some(watch) = self.watches.get_mut(&id) else { return observed };
        if let WatchEvent::Seen(object)
        | WatchEvent::Deleted(object)
        | WatchEvent::Left(object)
        | WatchEvent::Measured(object) = &mut change
            && self.index.selects_namespaces()
        {
            // The Namespace may be deleted before the object is. In that case the labels it had when the object was
            // last seen apply.
            let labels = self.index.namespaces.labels(&object.namespace);
            object.namespace_labels = labels.or_else(|| watch.namespace_labels(object.uid)).cloned();
        }
        let mut dirty = Vec::new();
        match change {
            WatchEvent::Restored => {
                watch.distrust_versions(&mut dirty);
                self.watches_changed = true;
            }
            WatchEvent::ListBegun => {
                if watch.has_expired(now) {
                    self.forget_missing(id);
                }
                if let Some(watch) = self.watches.get_mut(&id) {
                    watch.begin_list();
                }
            }
            WatchEvent::Seen(object) => {
                let version = object.version;
                let occurred = watch.seen(*object, now, &mut dirty);
                self.moved |= watch.pass(version);
                self.occur(id, occurred, now, &mut observed);
            }
            // Only the watch log reports these events, so a list in progress has been abandoned.
            WatchEvent::Deleted(object) => {
                self.moved |= watch.follow(object.version);
                let occurred = watch.deleted(*object, now, &mut dirty);
                self.occur(id, occurred, now, &mut observed);
            }
            WatchEvent::Vanished(uid) => {
                let occurred = watch.vanished(uid, &mut dirty);
                self.occur(id, occurred, now, &mut observed);
            }
            WatchEvent::Left(object) => {
                self.moved |= watch.follow(object.version);
                let uid = object.uid;
                let (occurred, unconfirmed) = watch.left(*object, now, &mut dirty);
                observed
                    .existence_checks
                    .extend(unconfirmed.and_then(|record| watch::existence_check(id, uid, record)));
                self.occur(id, occurred, now, &mut observed);
            }
            WatchEvent::LeftUnread(check) => {
                self.moved |= watch.follow(check.version);
                let unconfirmed = watch.left_unread(&check, &mut dirty);
                observed
                    .existence_checks
                    .extend(unconfirmed.and_then(|record| watch::existence_check(id, check.uid, record)));
            }
            WatchEvent::Unreadable(uid) => watch.listed(uid),
            WatchEvent::ListEnded(version) => {
                let began = watch.end_list(version, &mut dirty);
                self.watches_changed |= began;
                self.moved = true;
                let absent = watch.lacking();
                let is_back = watch.is_back();
                for uid in absent {
                    let Some(watch) = self.watches.get_mut(&id) else { break };
                    // An object that left its watch before the kind went missing still needs its existence check.
                    if is_back && !watch.is_unconfirmed(uid) {
                        watch.forget(uid, &mut dirty);
                    } else {
                        self.lacked(id, uid, now, &mut observed, &mut dirty);
                    }
                }
            }
            WatchEvent::Bookmark(version) => self.moved |= watch.follow(version),
            WatchEvent::Current(at) => {
                watch.current(at);
                self.moved = true;
            }
            WatchEvent::ExistenceChecked { check, exists } => {
                if let Some(occurred) = watch.answer(&check, exists, &mut dirty) {
                    self.occur(id, occurred, now, &mut observed);
                }
            }
            WatchEvent::NotInstalled(at) => match watch.missing(at, now) {
                Missing::Known => {}
                Missing::Begun => self.watches_changed = true,
                Missing::Expired => self.forget_missing(id),
            },
            WatchEvent::Only(there) => self.watches_changed |= watch.only(&there, &mut dirty),
            WatchEvent::Measured(object) => {
                let uid = object.uid;
                if let Some((occurred, reached)) = watch.measure(*object, &mut dirty) {
                    observed.reached = Some((uid, reached));
                    self.occur(id, occurred, now, &mut observed);
                }
            }
            WatchEvent::Gone(uid) => watch.forget(uid, &mut dirty),
        }
        self.dirty.extend(dirty.into_iter().map(|uid| (id, uid)));
        observed
    }

    /// Drops the records of a kind that is not served and starts a new epoch.
    fn forget_missing(&mut self, id: WatchId) {
        let epoch = self.next_epoch();
        if let Some(watch) = self.watches.get_mut(&id) {
            watch.absent(epoch);
        }
        self.watches_changed = true;
    }

    /// Handles an object that a complete list lacked: starts an existence check, or emits the end of the object.
    fn lacked(&mut self, id: WatchId, uid: Uid, now: Timestamp, observed: &mut Observed, dirty: &mut Vec<Uid>) {
        let Some(watch) = self.watches.get_mut(&id) else { return };
        if let Some(record) = watch.begin_existence_check(uid, dirty) {
            observed.existence_checks.extend(watch::existence_check(id, uid, record));
        } else {
            let occurred = watch.vanished(uid, dirty);
            self.occur(id, occurred, now, observed);
        }
    }

    /// Creates an event for each occurrence and enqueues it for every Webhook that matches now.
    fn occur(&mut self, watch: WatchId, occurred: Vec<Occurred>, now: Timestamp, observed: &mut Observed) {
        let Some(known) = self.watches.get(&watch).filter(|_| !occurred.is_empty()) else { return };
        let (source, epoch) = (Arc::clone(&known.source), known.epoch());
        let after = match known.baseline {
            Baseline::Committed if known.sight != WatchScope::Measured => None,
            Baseline::Written(flush) if known.sight != WatchScope::Measured => Some(flush),
            _ => Some(self.pending.gate.await_next_flush()),
        };
        for Occurred { object, occurrence, sequence } in occurred {
            let Occurrence { event, count, .. } = occurrence;
            let id = EventId::new(&source, object.uid, event, &occurrence.name, count, epoch);
            let envelope = Envelope {
                id,
                event,
                occurred_at: payload::occurred_at(&object, &occurrence, now),
                sequence,
                cluster: self.cluster.as_deref(),
                test: false,
            };
            let event = Arc::new(Event {
                id,
                event_type: event,
                body: body::open(envelope, payload::data(&object, &occurrence)),
                // The body already has the facts. A pending event must not hold more memory than its bound counts.
                object: Arc::new(object.outline()),
                observed_at: now,
                sequence,
                forms: Forms::default(),
            });
            for Match { subscription, uncertainty } in self.index.matching(&event, &object) {
                let webhook = subscription.uid;
                let reason = if uncertainty == Some(Uncertainty::Namespace) {
                    Reason::NamespaceUnknown
                } else {
                    if let Some(Uncertainty::Filter(error)) = uncertainty {
                        observed.unfiltered.push(Unfiltered { webhook, event: Arc::clone(&event), error });
                    }
                    if self.pending.enqueue(webhook, &event, after).is_ok() {
                        observed.enqueued.push(webhook);
                        continue;
                    }
                    Reason::BoundReached
                };
                match self.pending.add_dead_letter(webhook, &event, GivenUp::unattempted(reason, now), after) {
                    AddedDeadLetter::DeadLetter => {
                        let verdict = Verdict::GivenUp(reason);
                        observed.given_up.push(self.recorded(webhook, Arc::clone(&event), 0, None, verdict));
                    }
                    AddedDeadLetter::Known => {}
                    AddedDeadLetter::Full => observed.dropped.push(webhook),
                }
            }
            observed.events.push(event);
        }
    }
}
