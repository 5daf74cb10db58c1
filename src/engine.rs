//! The heart: observations become events, events become deliveries, outcomes become retries. It owns the records and the
//! pending deliveries. Pure: no client, no runtime; time and randomness are arguments.
//!
//! 1. An observation that is not newer than its record is dropped.
//! 2. On a first installation the objects that are already there are a baseline: nothing is sent for their past.
//! 3. Who gets an event is decided when it is observed, by every Webhook that exists and matches then. Where that cannot be told, since
//!    nothing is known of a Namespace, the event is kept as an object.
//! 4. Absence is told by a complete list only; on a watch with a selector, by a GET in addition. A GET is never waited for: what is seen
//!    of the object before the answer voids the question.
//! 5. A position is what the engine has passed; during a list it stays.
//! 6. Nothing from a watch is attempted, or kept as an object, before its baseline is flushed; what a crash cuts off from it is void.
//! 7. What was measured has no log to be learned from again: nothing of it is attempted, or kept as an object, before a flush has
//!    landed that holds the event and its record.
//! 8. What a flush holds is complete: with its positions have landed all records and deliveries that they stand for, and it names all
//!    watches that are not withdrawn.
//! 9. A watch that is withdrawn says nothing more. One that begins later, also under its name, begins with a baseline, or empty where
//!    its kind is absent, and under an epoch of its own.
//! 10. Nothing is sent for what happened to a training before it came into view, except what an outage hid: a position tells the time at
//!     which it was current, and what existed then and is new to the watch begins where it is.
//! 11. Of a kind that is not served any more records are kept for 7 days. When it is served again, what the list lacks is forgotten in
//!     silence.

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
        filter::FilterError,
        index::{Doubt, Index, Match, Subscription},
        namespaces::Namespaces,
        resolve::WebhookRef,
    },
};
use pending::{Pending, Shelving};
use watch::{Baseline, Missing, Occurred, Watch, WatchScope};

pub use checkpoint::Unflushed;
pub use deliveries::{Due, RecordedOutcome, Verdict};
pub use pending::{MAX_BYTES, MAX_DELIVERIES, MAX_SHELVED, MAX_TOTAL_BYTES, StoreDeadLetter};

/// What an observation led to.
#[derive(Debug, Default)]
pub struct Observed {
    /// Events that occurred, in order.
    pub events: Vec<Arc<Event>>,
    /// Webhooks that got a delivery.
    pub enqueued: Vec<Uid>,
    /// Deliveries given up at once: their Webhook's bound is reached, or nothing is known of the Namespace.
    pub given_up: Vec<RecordedOutcome>,
    /// Deliveries that were made because a filter failed.
    pub unfiltered: Vec<Unfiltered>,
    /// Webhooks that have no room at all, one entry for each event that was dropped.
    pub dropped: Vec<Uid>,
    /// Questions to ask the apiserver.
    pub questions: Vec<ExistenceCheck>,
    /// After an evaluation: whose it was, and the thresholds that are reached now, as its spec writes them, ascending.
    pub reached: Option<(Uid, Vec<String>)>,
}

/// A Webhook's filter failed on an event, which it gets all the same.
#[derive(Debug)]
pub struct Unfiltered {
    pub webhook: Uid,
    pub event: Arc<Event>,
    pub error: FilterError,
}

/// How many deliveries of a Webhook are pending, since when, and whether they are paused.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    pub webhook: Uid,
    pub pending: usize,
    pub oldest: Option<Timestamp>,
    /// Whether the endpoint asked for a pause that has not ended.
    pub paused: bool,
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    cluster: Option<String>,
    shards: usize,
    /// The newest epoch given out.
    epoch: u64,
    watches: BTreeMap<WatchId, Watch>,
    remembered: Vec<RememberedWatch>,
    index: Index,
    pending: Pending,
    /// Records that have changed.
    dirty: Vec<(WatchId, Uid)>,
    /// Records that are gone, held back until a flush that holds all changes.
    gone: Vec<(WatchId, Uid)>,
    watches_changed: bool,
    moved: bool,
}

impl Engine {
    /// An engine that knows nothing. `epoch` must be newer than any that was given out before; `shards`: the parts of the
    /// ledger's snapshot.
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

    /// Makes a watch known, before anything is observed on it. `name` tells its source, namespace and selector: what is
    /// remembered under it is taken up.
    pub fn add_watch(&mut self, id: WatchId, source: &str, name: &str, selective: bool) {
        self.add(id, source, name, if selective { WatchScope::Selected } else { WatchScope::Whole });
    }

    /// Makes a watch known of what is measured, not observed: its events are in the ledger before they are attempted.
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

    /// Whether watches are remembered that have neither been made known nor forgotten. Until then nothing is flushed: a flush
    /// names all watches, and what it does not name is forgotten.
    #[must_use]
    pub fn awaits_watches(&self) -> bool {
        !self.remembered.is_empty()
    }

    /// The names of watches that are remembered and have not been made known.
    pub fn remembered_watches(&self) -> impl Iterator<Item = &str> {
        self.remembered.iter().map(|remembered| remembered.entry.watch.as_str())
    }

    /// Forgets, in silence, the records of all watches that are remembered and were not made known.
    pub fn forget_other_watches(&mut self) -> Vec<String> {
        self.watches_changed |= !self.remembered.is_empty();
        std::mem::take(&mut self.remembered).into_iter().map(|remembered| remembered.entry.watch).collect()
    }

    /// Ends a watch: its records are forgotten in silence, and what is still observed on it is dropped.
    pub fn remove_watch(&mut self, id: WatchId) {
        self.watches_changed |= self.watches.remove(&id).is_some();
    }

    fn next_epoch(&mut self) -> u64 {
        self.epoch = self.epoch.saturating_add(1);
        self.epoch
    }

    /// What was asked before a crash and not answered.
    #[must_use]
    pub fn open_questions(&self) -> Vec<ExistenceCheck> {
        let watches = self.watches.iter();
        watches
            .flat_map(|(id, watch)| watch.existence_checks().map(|(uid, record)| watch::question(*id, uid, record)))
            .flatten()
            .collect()
    }

    /// Adds or replaces a subscription. A new generation of its spec forgives a 410 and ends a pause.
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

    /// The endpoint is known to have answered 410 Gone to the spec of this generation.
    pub fn mark_gone(&mut self, webhook: Uid, generation: i64) {
        self.pending.queue(webhook).endpoint_gone = Some(generation);
        self.pending.wake(webhook);
    }

    /// Webhooks with deliveries that were recovered and that nobody has subscribed.
    #[must_use]
    pub fn orphans(&self) -> Vec<Uid> {
        self.pending.orphans()
    }

    /// Says who the deliveries of a Webhook belong to (`subscription::owner`).
    pub fn own(&mut self, webhook: Uid, owner: Arc<str>) {
        self.pending.own(webhook, owner);
    }

    /// Who the deliveries of a Webhook belong to, and a namespace that one of them is of, as far as they are known.
    #[must_use]
    pub fn owner(&self, webhook: Uid) -> (Option<Arc<str>>, Option<String>) {
        (self.pending.owner(webhook).cloned(), self.pending.namespace(webhook).map(str::to_owned))
    }

    /// A Webhook is deleted. It gets no further events, and what is pending to it waits to be taken over or to be forgotten with
    /// [`Self::unsubscribe`]. Returns how many deliveries that are; where there are none it is forgotten at once.
    pub fn orphan(&mut self, webhook: &WebhookRef) -> usize {
        let left = self.pending.orphan(webhook.uid);
        if left == 0 {
            self.unsubscribe(webhook.uid);
        } else {
            let generation = self.index.get(webhook.uid).map_or(0, |subscription| subscription.generation);
            // What is under way may still end.
            self.index.insert(Subscription::inert(webhook, generation));
        }
        left
    }

    /// Hands to a Webhook what is pending to a deleted one, in order and with the attempts that were made. Returns how many
    /// deliveries that are.
    pub fn take_over(&mut self, orphan: Uid, heir: Uid) -> usize {
        self.index.remove(orphan);
        self.pending.take_over(orphan, heir)
    }

    /// Removes a deleted Webhook with its deliveries, and tells how many those were.
    pub fn unsubscribe(&mut self, webhook: Uid) -> usize {
        self.index.remove(webhook);
        self.pending.forget(webhook)
    }

    /// The subscription of this Webhook.
    #[must_use]
    pub fn subscription(&self, webhook: Uid) -> Option<&Subscription> {
        self.index.get(webhook)
    }

    /// What is known of Namespaces, by which `ClusterWebhooks` select.
    pub const fn namespaces(&mut self) -> &mut Namespaces {
        &mut self.index.namespaces
    }

    /// Whether any filter reads annotations, so that observed objects should have theirs.
    #[must_use]
    pub fn reads_annotations(&self) -> bool {
        self.index.reads_annotations()
    }

    /// How many deliveries of this Webhook are pending.
    #[must_use]
    pub fn pending(&self, webhook: Uid) -> usize {
        self.pending.count(webhook)
    }

    /// Every Webhook's pending deliveries.
    pub fn backlogs(&self) -> impl Iterator<Item = Backlog> {
        self.pending.backlogs()
    }

    /// How many objects are remembered.
    #[must_use]
    pub fn records(&self) -> usize {
        self.watches.values().map(Watch::len).sum()
    }

    /// What the watch has passed; 0 before its first list is complete.
    #[must_use]
    pub fn position(&self, watch: WatchId) -> u64 {
        self.watches.get(&watch).map_or(0, Watch::position)
    }

    /// Takes in what a source saw. An observation of an unknown watch is dropped.
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
            // Its Namespace may be gone before the object is: then what it was last seen under counts.
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
            // Only the log reports what follows: a list that was under way has broken off.
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
                let (occurred, missed) = watch.left(*object, now, &mut dirty);
                observed.questions.extend(missed.and_then(|record| watch::question(id, uid, record)));
                self.occur(id, occurred, now, &mut observed);
            }
            WatchEvent::LeftUnread(question) => {
                self.moved |= watch.follow(question.version);
                let missed = watch.left_unread(&question, &mut dirty);
                observed.questions.extend(missed.and_then(|record| watch::question(id, question.uid, record)));
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
                    // What left before that is still to be asked after.
                    if is_back && !watch.is_missed(uid) {
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
            WatchEvent::Answer { question, living } => {
                if let Some(occurred) = watch.answer(&question, living, &mut dirty) {
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

    /// A kind is not served, and no records of it are kept any more.
    fn forget_missing(&mut self, id: WatchId) {
        let epoch = self.next_epoch();
        if let Some(watch) = self.watches.get_mut(&id) {
            watch.absent(epoch);
        }
        self.watches_changed = true;
    }

    /// A complete list lacked this object.
    fn lacked(&mut self, id: WatchId, uid: Uid, now: Timestamp, observed: &mut Observed, dirty: &mut Vec<Uid>) {
        let Some(watch) = self.watches.get_mut(&id) else { return };
        if let Some(record) = watch.begin_existence_check(uid, dirty) {
            observed.questions.extend(watch::question(id, uid, record));
        } else {
            let occurred = watch.vanished(uid, dirty);
            self.occur(id, occurred, now, observed);
        }
    }

    /// Turns occurrences into events and hands each to every Webhook that matches now.
    fn occur(&mut self, watch: WatchId, occurred: Vec<Occurred>, now: Timestamp, observed: &mut Observed) {
        let Some(known) = self.watches.get(&watch).filter(|_| !occurred.is_empty()) else { return };
        let (source, epoch) = (Arc::clone(&known.source), known.epoch());
        let after = match known.baseline {
            Baseline::Landed if known.sight != WatchScope::Measured => None,
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
                // The body has told the facts; what waits must weigh no more than the bound counts.
                object: Arc::new(object.outline()),
                observed_at: now,
                sequence,
                forms: Forms::default(),
            });
            for Match { subscription, doubt } in self.index.matching(&event, &object) {
                let webhook = subscription.uid;
                let reason = if doubt == Some(Doubt::Namespace) {
                    Reason::NamespaceUnknown
                } else {
                    if let Some(Doubt::Filter(error)) = doubt {
                        observed.unfiltered.push(Unfiltered { webhook, event: Arc::clone(&event), error });
                    }
                    if self.pending.enqueue(webhook, &event, after).is_ok() {
                        observed.enqueued.push(webhook);
                        continue;
                    }
                    Reason::BoundReached
                };
                match self.pending.shelve(webhook, &event, GivenUp::unattempted(reason, now), after) {
                    Shelving::DeadLetter => {
                        let verdict = Verdict::GivenUp(reason);
                        observed.given_up.push(self.recorded(webhook, Arc::clone(&event), 0, None, verdict));
                    }
                    Shelving::Known => {}
                    Shelving::Full => observed.dropped.push(webhook),
                }
            }
            observed.events.push(event);
        }
    }
}
