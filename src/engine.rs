//! The heart: observations become events, events become deliveries, outcomes become retries. It owns the records and the
//! pending deliveries. Pure: no client, no runtime; time and randomness are arguments.
//!
//! 1. An observation that is not newer than its record is dropped.
//! 2. On a first installation the objects that are already there are a baseline: nothing is sent for their past.
//! 3. Who gets an event is decided when it is observed, by every Webhook that exists and matches then.
//! 4. Absence is told by a complete list only; on a watch with a selector, by a GET in addition.
//! 5. A position is what the engine has passed; during a list it stays.

mod pending;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    event::{
        Event,
        body::{self, Envelope},
        id::{DeliveryId, EventId},
        lifecycle::{Gone, Occurrence},
        object::{Object, ObjectKey, Uid, WatchId},
        payload,
    },
    ledger::record::{Lifecycle, Record},
    subscription::index::{Index, Subscription},
};
use pending::Pending;

pub use pending::{MAX_BYTES, MAX_DELIVERIES, MAX_TOTAL_BYTES};

/// What a source saw.
#[derive(Debug)]
pub struct Observation {
    /// The watch that saw it.
    pub watch: WatchId,
    /// What changed.
    pub change: Change,
}

/// One thing that a source can see.
#[derive(Debug)]
pub enum Change {
    /// A complete list begins.
    ListBegun,
    /// The object as it is, from a list or a watch.
    Seen(Box<Object>),
    /// The object is deleted; this was its last state.
    Deleted(Box<Object>),
    /// The object lives, but its watch no longer selects it.
    Unselected(Uid),
    /// The object is there, in a form that cannot be read.
    Unreadable(Uid),
    /// The list was complete, as of this version.
    ListEnded(u64),
    /// Everything up to this version has been seen.
    Bookmark(u64),
    /// The answer to a [`Question`].
    Answer { question: Question, living: bool },
    /// The resource is not installed: when it comes, everything of it is new.
    NotInstalled,
}

/// An object that a list lacked on a watch with a selector: does it live?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub watch: WatchId,
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
    /// The version of the list; an answer is void once the object has been seen anew.
    pub version: u64,
}

/// What an observation led to.
#[derive(Debug, Default)]
pub struct Observed {
    /// Events that occurred, in order.
    pub events: Vec<Arc<Event>>,
    /// Webhooks that got a delivery.
    pub enqueued: Vec<Uid>,
    /// Webhooks whose bound was reached, one entry for each event that was dropped.
    pub dropped: Vec<Uid>,
    /// Questions to ask the apiserver.
    pub questions: Vec<Question>,
}

/// An attempt to make.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    pub event: Arc<Event>,
    /// From 1.
    pub number: u32,
    /// The generation of the spec that it is made under.
    pub generation: i64,
}

/// What the engine wants done now.
#[derive(Debug)]
pub enum Due {
    /// An attempt is to be made; its [`Outcome`] must be settled.
    Attempt(Attempt),
    /// A delivery is given up without an attempt: its endpoint is gone.
    Exhausted(Settled),
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    /// The generation of the spec that the attempt was made under.
    pub generation: i64,
    pub result: AttemptResult,
}

/// The result of an attempt, as far as it decides what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// The endpoint acknowledged the delivery.
    Acknowledged,
    /// It did not; it may have said when to come again.
    Failed { retry_after: Option<Duration> },
    /// It answered 410 Gone.
    Gone,
    /// No attempt was made; with `hold`, none is to be begun until the subscription is given anew.
    Withheld { hold: bool },
}

/// What an outcome meant for its delivery.
#[derive(Debug)]
pub struct Settled {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    pub event: Arc<Event>,
    /// The last attempt that was made, from 1; 0 where none was.
    pub attempt: u32,
    pub verdict: Verdict,
    /// The endpoint has answered 410 Gone to the spec as it stands.
    pub gone: bool,
    /// Deliveries of this Webhook that are still pending.
    pub pending: usize,
}

/// What becomes of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Delivered,
    /// It is tried again at this time.
    Retry(Timestamp),
    /// It is given up.
    Exhausted,
    /// It waits as before.
    Withheld,
}

/// How many deliveries of a Webhook are pending, and since when.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    pub webhook: Uid,
    pub pending: usize,
    pub oldest: Option<Timestamp>,
}

/// Where a watch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    /// Nothing is known: what its first list shows is a baseline.
    Fresh,
    /// What is seen for the first time is new.
    Live,
}

/// What the engine keeps of one watch.
#[derive(Debug)]
struct Watch {
    /// The source's name, `resource.group`: part of every event id.
    source: &'static str,
    /// It has a label selector.
    selective: bool,
    stand: Stand,
    listing: u16,
    position: u64,
    records: HashMap<Uid, Record>,
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    cluster: Option<String>,
    epoch: u64,
    watches: HashMap<WatchId, Watch>,
    index: Index,
    pending: Pending,
}

impl Engine {
    /// An engine that knows nothing. `epoch` must be new whenever records are built anew, as here.
    #[must_use]
    pub fn new(cluster: Option<String>, epoch: u64) -> Self {
        Self { cluster, epoch, watches: HashMap::new(), index: Index::default(), pending: Pending::default() }
    }

    /// Makes a watch known, before anything is observed on it.
    pub fn add_watch(&mut self, watch: WatchId, source: &'static str, selective: bool) {
        let new = Watch { source, selective, stand: Stand::Fresh, listing: 0, position: 0, records: HashMap::new() };
        self.watches.entry(watch).or_insert(new);
    }

    /// Adds or replaces a subscription. A new generation of its spec forgives a 410.
    pub fn subscribe(&mut self, subscription: Subscription) {
        let queue = self.pending.queue(subscription.uid);
        queue.concurrency = subscription.concurrency.max(1);
        queue.held = subscription.held;
        queue.gone = queue.gone.filter(|generation| *generation == subscription.generation);
        let uid = subscription.uid;
        self.index.insert(subscription);
        self.pending.wake(uid);
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

    /// How many deliveries of this Webhook are pending.
    #[must_use]
    pub fn pending(&self, webhook: Uid) -> usize {
        self.pending.count(webhook)
    }

    /// Every Webhook's pending deliveries.
    pub fn backlogs(&self) -> impl Iterator<Item = Backlog> {
        self.pending.ages().map(|(webhook, pending, oldest)| Backlog { webhook, pending, oldest })
    }

    /// How many objects are remembered.
    #[must_use]
    pub fn records(&self) -> usize {
        self.watches.values().map(|watch| watch.records.len()).sum()
    }

    /// What the watch has passed; 0 before its first list is complete.
    #[must_use]
    pub fn position(&self, watch: WatchId) -> u64 {
        self.watches.get(&watch).map_or(0, |watch| watch.position)
    }

    /// Takes in what a source saw. An observation of an unknown watch is dropped.
    pub fn observe(&mut self, observation: Observation, now: Timestamp) -> Observed {
        let Observation { watch: id, change } = observation;
        let mut observed = Observed::default();
        let Some(watch) = self.watches.get_mut(&id) else { return observed };
        match change {
            Change::ListBegun => watch.listing = watch.listing.wrapping_add(1),
            Change::Seen(object) => {
                let occurred = watch.seen(*object);
                self.occur(id, occurred, now, &mut observed);
            }
            Change::Deleted(object) => {
                let occurred = watch.deleted(*object);
                self.occur(id, occurred, now, &mut observed);
            }
            Change::Unselected(uid) => watch.mute(uid),
            Change::Unreadable(uid) => {
                if let Some(record) = watch.records.get_mut(&uid) {
                    record.listing = watch.listing;
                }
            }
            Change::ListEnded(version) => {
                let absent = watch.absent();
                watch.stand = Stand::Live;
                watch.position = version;
                for uid in absent {
                    self.missed(id, uid, version, now, &mut observed);
                }
            }
            Change::Bookmark(version) => watch.position = watch.position.max(version),
            Change::Answer { question, living } => {
                let current = watch.records.get(&question.uid).filter(|record| record.version <= question.version);
                if current.is_some() && living {
                    watch.mute(question.uid);
                } else if current.is_some() {
                    let occurred = watch.vanished(question.uid);
                    self.occur(id, occurred, now, &mut observed);
                }
            }
            Change::NotInstalled => {
                watch.records.clear();
                watch.stand = Stand::Live;
            }
        }
        observed
    }

    /// A complete list lacked this object.
    fn missed(&mut self, id: WatchId, uid: Uid, version: u64, now: Timestamp, observed: &mut Observed) {
        let Some(watch) = self.watches.get_mut(&id) else { return };
        let Some(record) = watch.records.get(&uid) else { return };
        match &record.last {
            Some(object) if watch.selective => observed.questions.push(Question {
                watch: id,
                uid,
                namespace: object.namespace.clone(),
                name: object.name.clone(),
                version,
            }),
            _ => {
                let occurred = watch.vanished(uid);
                self.occur(id, occurred, now, observed);
            }
        }
    }

    /// Turns occurrences into events and hands each to every Webhook that matches now.
    fn occur(&mut self, watch: WatchId, occurred: Vec<Occurred>, now: Timestamp, observed: &mut Observed) {
        let Some(source) = self.watches.get(&watch).map(|watch| watch.source) else { return };
        for Occurred { object, occurrence, sequence } in occurred {
            let Occurrence { event, name, count, .. } = occurrence;
            let id = EventId::new(source, object.uid, event, name, count, self.epoch);
            let envelope = Envelope {
                id,
                event,
                occurred_at: payload::occurred_at(&object, &occurrence, now),
                sequence,
                cluster: self.cluster.as_deref(),
            };
            let event = Arc::new(Event {
                id,
                event_type: event,
                key: ObjectKey { watch, uid: object.uid },
                body: body::open(envelope, payload::data(&object, &occurrence)),
                // The body has told the facts; what waits must weigh no more than the bound counts.
                object: Arc::new(object.outline()),
                observed_at: now,
            });
            for subscription in self.index.matching(&event) {
                match self.pending.enqueue(subscription.uid, &event) {
                    Ok(()) => observed.enqueued.push(subscription.uid),
                    Err(pending::BoundReached) => observed.dropped.push(subscription.uid),
                }
            }
            observed.events.push(event);
        }
    }

    /// The next thing to do now; call until `None`.
    pub fn due(&mut self, now: Timestamp) -> Option<Due> {
        let pending::Begin { webhook, delivery, event, attempt, gone } = self.pending.begin(now)?;
        if !gone {
            let generation = self.index.get(webhook).map_or(0, |subscription| subscription.generation);
            return Some(Due::Attempt(Attempt { webhook, delivery, event, number: attempt, generation }));
        }
        self.pending.ended(webhook, delivery);
        let settled = self.finish(webhook, delivery, event, attempt, Verdict::Exhausted);
        // The attempt that would have been was not made.
        Some(Due::Exhausted(Settled { attempt: attempt - 1, gone, ..settled }))
    }

    /// When [`Self::due`] will have something new to do of its own accord.
    #[must_use]
    pub fn next_due(&self) -> Option<Timestamp> {
        self.pending.next_due()
    }

    /// Takes in how an attempt ended. `random` in [0, 1) varies the wait before a retry. `None` where the Webhook was
    /// deleted meanwhile.
    pub fn settle(&mut self, outcome: &Outcome, now: Timestamp, random: f64) -> Option<Settled> {
        let Outcome { webhook, delivery: id, generation, result } = *outcome;
        let delivery = self.pending.ended(webhook, id)?;
        let event = Arc::clone(&delivery.event);
        let attempt = delivery.failed_attempts + 1;
        let subscription = self.index.get(webhook)?;
        let result = match result {
            // The answer of an endpoint that the spec no longer names says nothing of the new one.
            AttemptResult::Gone if generation != subscription.generation => AttemptResult::Failed { retry_after: None },
            result => result,
        };
        match result {
            AttemptResult::Withheld { hold } => {
                self.pending.queue(webhook).held |= hold;
                self.pending.put_back(webhook, id);
                let pending = self.pending.count(webhook);
                Some(Settled {
                    webhook,
                    delivery: id,
                    event,
                    attempt: 0,
                    verdict: Verdict::Withheld,
                    gone: false,
                    pending,
                })
            }
            AttemptResult::Acknowledged => Some(self.finish(webhook, id, event, attempt, Verdict::Delivered)),
            AttemptResult::Gone => {
                self.pending.queue(webhook).gone = Some(generation);
                let settled = self.finish(webhook, id, event, attempt, Verdict::Exhausted);
                Some(Settled { gone: true, ..settled })
            }
            AttemptResult::Failed { .. } if attempt > subscription.max_retries => {
                Some(self.finish(webhook, id, event, attempt, Verdict::Exhausted))
            }
            AttemptResult::Failed { retry_after } => {
                delivery.failed_attempts = attempt;
                let due =
                    now.checked_add(subscription.backoff.wait(attempt, random, retry_after)).unwrap_or(Timestamp::MAX);
                if attempt == 1 {
                    self.pending.leave_lane(webhook, event.key);
                }
                self.pending.wait(webhook, id, due);
                let pending = self.pending.count(webhook);
                Some(Settled {
                    webhook,
                    delivery: id,
                    event,
                    attempt,
                    verdict: Verdict::Retry(due),
                    gone: false,
                    pending,
                })
            }
        }
    }

    /// Ends a delivery with this attempt.
    fn finish(&mut self, webhook: Uid, id: DeliveryId, event: Arc<Event>, attempt: u32, verdict: Verdict) -> Settled {
        self.pending.remove(webhook, id);
        if attempt == 1 {
            self.pending.leave_lane(webhook, event.key);
        }
        let pending = self.pending.count(webhook);
        Settled { webhook, delivery: id, event, attempt, verdict, gone: false, pending }
    }
}

/// An occurrence with the object it happened to.
struct Occurred {
    object: Arc<Object>,
    occurrence: Occurrence,
    sequence: u32,
}

impl Watch {
    /// The object as it is.
    fn seen(&mut self, object: Object) -> Vec<Occurred> {
        let known = self.records.get_mut(&object.uid);
        if let Some(record) = known {
            record.listing = self.listing;
            if object.version <= record.version {
                return Vec::new();
            }
            record.version = object.version;
            if object.owned {
                record.muted = true;
                record.last = None;
                return Vec::new();
            }
            record.muted = false;
        } else if object.owned {
            return Vec::new();
        } else {
            let lifecycle = match self.stand {
                Stand::Fresh => Lifecycle::baseline(&object.facts, object.generation),
                Stand::Live => Lifecycle::new(&object.facts),
            };
            let record = Record {
                version: object.version,
                generation: object.generation,
                sequence: 0,
                listing: self.listing,
                muted: false,
                lifecycle,
                last: None,
            };
            self.records.insert(object.uid, record);
        }
        self.step(object)
    }

    /// Lets the record's lifecycle judge the object's state.
    fn step(&mut self, object: Object) -> Vec<Occurred> {
        let Some(record) = self.records.get_mut(&object.uid) else { return Vec::new() };
        record.generation = object.generation;
        let lifecycle = std::mem::replace(&mut record.lifecycle, Lifecycle::new(&object.facts));
        let (occurrences, lifecycle) = lifecycle.step(&object.facts, object.generation);
        record.lifecycle = lifecycle;
        let keep = record.lifecycle.would_mind_going();
        if occurrences.is_empty() && !keep {
            record.last = None;
            return Vec::new();
        }
        let object = Arc::new(object);
        record.last = keep.then(|| Arc::clone(&object));
        record.number(&object, occurrences)
    }

    /// The object is deleted: its final state is stepped first.
    fn deleted(&mut self, object: Object) -> Vec<Occurred> {
        if self.records.get(&object.uid).is_some_and(|record| object.version <= record.version) {
            return Vec::new();
        }
        let uid = object.uid;
        let mut occurred = self.seen(object);
        occurred.extend(self.go(uid, Gone::Deleted));
        occurred
    }

    /// The object was no longer there after a gap.
    fn vanished(&mut self, uid: Uid) -> Vec<Occurred> {
        self.go(uid, Gone::Vanished)
    }

    fn go(&mut self, uid: Uid, how: Gone) -> Vec<Occurred> {
        let Some(mut record) = self.records.remove(&uid) else { return Vec::new() };
        let Some(object) = record.last.take().filter(|_| !record.muted) else { return Vec::new() };
        let lifecycle = std::mem::replace(&mut record.lifecycle, Lifecycle::new(&object.facts));
        let occurrences = lifecycle.gone(how, record.generation);
        record.number(&object, occurrences)
    }

    /// The object lives, but sends nothing until it is selected again.
    fn mute(&mut self, uid: Uid) {
        if let Some(record) = self.records.get_mut(&uid) {
            record.muted = true;
            record.listing = self.listing;
        }
    }

    /// The objects that the list which has just ended lacked.
    fn absent(&self) -> Vec<Uid> {
        let lacking = self.records.iter().filter(|(_, record)| record.listing != self.listing);
        lacking.map(|(uid, _)| *uid).collect()
    }
}

impl Record {
    fn number(&mut self, object: &Arc<Object>, occurrences: Vec<Occurrence>) -> Vec<Occurred> {
        let numbered = occurrences.into_iter().map(|occurrence| {
            self.sequence = self.sequence.saturating_add(1);
            Occurred { object: Arc::clone(object), occurrence, sequence: self.sequence }
        });
        numbered.collect()
    }
}
