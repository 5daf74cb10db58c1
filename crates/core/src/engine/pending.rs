//! Pending deliveries: one queue per Webhook, so that a slow endpoint delays no other. Only the engine uses this
//! module.
//!
//! 1. At most `concurrency` attempts of a Webhook are in flight.
//! 2. First attempts of one object's events to one Webhook never overlap and go in the order of the events.
//! 3. The deliveries of a held or paused Webhook wait and use up no attempts.
//! 4. A Webhook holds at most [`MAX_DELIVERIES`] and [`MAX_BYTES`], all Webhooks together [`MAX_TOTAL_BYTES`].
//! 5. A delivery that must wait for a flush begins once the flush is committed. It delays only the next event of its
//!    own object.
//! 6. A delivery that is given up is a dead letter until it is stored as an object. A Webhook holds at most
//!    [`MAX_DEAD_LETTERS`] of them.
//! 7. The deliveries of a deleted Webhook wait until another Webhook takes them over or they are dropped. They count
//!    towards [`MAX_TOTAL_BYTES`].

mod checkpoint;
mod dead_letters;
mod gate;
mod queue;
mod succession;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use super::Backlog;
use crate::event::{
    Event,
    id::{DeliveryId, EventId},
    object::Uid,
    unknown::Unknown,
};
pub(super) use dead_letters::AddedDeadLetter;
pub use dead_letters::{MAX_DEAD_LETTERS, StoreDeadLetter};
use gate::Gate;
use queue::{Delivery, Queue};

/// The maximum number of pending deliveries of one Webhook.
pub const MAX_DELIVERIES: usize = 10_000;
/// The maximum size of the events that are pending for one Webhook, in bytes.
pub const MAX_BYTES: usize = 16 << 20;
/// The maximum size of all pending events, in bytes. Each event counts once.
pub const MAX_TOTAL_BYTES: usize = 64 << 20;

/// An event with its pending deliveries.
#[derive(Debug)]
struct Stored {
    event: Arc<Event>,
    size: usize,
    /// Deliveries that the ledger records.
    to: Vec<(Uid, DeliveryId)>,
    /// The number of redeliveries that users requested.
    again: usize,
    /// The number of the flush that the event waits for, or waited for; 0 for none.
    after: u64,
    /// The position of the event in the order of all events.
    order: u64,
    /// A flush has held the event.
    written: bool,
    dirty: bool,
    unknown: Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Pending {
    queues: HashMap<Uid, Queue>,
    runnable: VecDeque<Uid>,
    timers: BinaryHeap<Reverse<(Timestamp, Uid, DeliveryId)>>,
    /// The ends of pauses, one for each paused Webhook.
    pauses: BTreeSet<(Timestamp, Uid)>,
    /// By shard of the ledger's snapshot.
    events: Vec<HashMap<EventId, Stored>>,
    total_bytes: usize,
    /// The order of the newest event.
    newest: u64,
    /// Changed events, and whether a flush has held each.
    dirty: VecDeque<(EventId, bool)>,
    pub(super) gate: Gate,
    to_store: VecDeque<(Uid, DeliveryId)>,
    /// Deliveries that were taken over during an attempt: the old key, and the new one.
    successors: HashMap<(Uid, DeliveryId), (Uid, DeliveryId)>,
}

pub(super) struct Begin {
    pub(super) webhook: Uid,
    pub(super) delivery: DeliveryId,
    pub(super) event: Arc<Event>,
    pub(super) attempt: u32,
    /// Give the delivery up instead of sending it.
    pub(super) endpoint_gone: bool,
}

impl Pending {
    /// Creates an empty set. `shards` is the number of snapshot segments in the ledger.
    pub(super) fn new(shards: usize) -> Self {
        Self { events: (0..shards).map(|_| HashMap::new()).collect(), ..Self::default() }
    }

    fn stored(&mut self, id: EventId) -> Option<&mut Stored> {
        let shards = self.events.len();
        self.events[id.shard(shards)].get_mut(&id)
    }

    fn touch(&mut self, id: EventId) {
        let Some(stored) = self.stored(id) else { return };
        if !stored.dirty {
            stored.dirty = true;
            let written = stored.written;
            self.dirty.push_back((id, written));
        }
    }

    /// Marks the Webhook as subscribed: its dead letters may be stored as objects.
    pub(super) fn subscribed(&mut self, webhook: Uid) -> &mut Queue {
        let queue = self.queues.entry(webhook).or_default();
        if !std::mem::replace(&mut queue.subscribed, true) {
            let mut dead_letters: Vec<DeliveryId> = queue.dead_letters.deliveries().collect();
            dead_letters.sort_unstable();
            self.to_store.extend(dead_letters.into_iter().map(|id| (webhook, id)));
        }
        queue
    }

    pub(super) fn queue(&mut self, webhook: Uid) -> &mut Queue {
        self.queues.entry(webhook).or_default()
    }

    /// Returns Webhooks that have deliveries but no subscription.
    pub(super) fn orphans(&self) -> Vec<Uid> {
        self.queues.iter().filter(|(_, queue)| !queue.subscribed).map(|(webhook, _)| *webhook).collect()
    }

    /// Reports whether the endpoint answered 410 Gone to the current spec.
    pub(super) fn is_endpoint_gone(&self, webhook: Uid) -> bool {
        self.queues.get(&webhook).is_some_and(|queue| queue.endpoint_gone.is_some())
    }

    /// Returns the number of deliveries of this Webhook that wait or are in flight.
    pub(super) fn count(&self, webhook: Uid) -> usize {
        self.queues.get(&webhook).map_or(0, |queue| queue.deliveries.len())
    }

    /// Returns the backlog of every Webhook.
    pub(super) fn backlogs(&self) -> impl Iterator<Item = Backlog> {
        self.queues.iter().map(|(webhook, queue)| Backlog {
            webhook: *webhook,
            pending: queue.deliveries.len(),
            oldest: queue.deliveries.values().map(|delivery| delivery.event.observed_at).min(),
            paused: queue.paused_until.is_some(),
        })
    }

    /// Adds a delivery, or fails if a bound is reached. A delivery that is already there is left unchanged.
    pub(super) fn enqueue(&mut self, webhook: Uid, event: &Arc<Event>, after: Option<u64>) -> Result<(), BoundReached> {
        let size = event.body.len();
        let stored = self.stored(event.id).is_some();
        let total = self.total_bytes;
        let queue = self.queues.entry(webhook).or_default();
        let id = DeliveryId::new(event.id, webhook);
        if queue.knows(id) {
            return Ok(());
        }
        if queue.is_full(size) || (!stored && total + size > MAX_TOTAL_BYTES) {
            return Err(BoundReached);
        }
        let delivery = Delivery { after, ..Delivery::new(event, false) };
        queue.deliveries.insert(id, delivery);
        queue.bytes += size;
        if let Some(lane) = queue.lanes.get_mut(&event.object.uid) {
            lane.push_back(id);
        } else {
            queue.lanes.insert(event.object.uid, VecDeque::new());
            if !self.gate.hold_back(after, webhook, id) {
                queue.ready.push_back(id);
            }
        }
        let stored = self.store(event);
        stored.to.push((webhook, id));
        stored.after = after.unwrap_or(stored.after);
        self.touch(event.id);
        self.wake(webhook);
        Ok(())
    }

    /// Adds a redelivery. Returns false if the delivery is already pending.
    pub(super) fn enqueue_again(&mut self, webhook: Uid, event: &Arc<Event>) -> bool {
        let id = DeliveryId::new(event.id, webhook);
        let queue = self.queues.entry(webhook).or_default();
        if queue.deliveries.contains_key(&id) {
            return false;
        }
        let delivery = Delivery::new(event, true);
        queue.deliveries.insert(id, delivery);
        queue.bytes += event.body.len();
        queue.again.push_back(id);
        self.store(event).again += 1;
        self.wake(webhook);
        true
    }

    fn store(&mut self, event: &Arc<Event>) -> &mut Stored {
        let shard = event.id.shard(self.events.len());
        let size = event.body.len();
        let (total, newest) = (&mut self.total_bytes, &mut self.newest);
        self.events[shard].entry(event.id).or_insert_with(|| {
            *total += size;
            *newest = newest.saturating_add(1);
            Stored {
                event: Arc::clone(event),
                size,
                to: Vec::new(),
                again: 0,
                after: 0,
                order: *newest,
                written: false,
                dirty: false,
                unknown: Unknown::NONE,
            }
        })
    }

    /// Releases deliveries that waited for a flush. All composed flushes are committed.
    pub(super) fn flush_committed(&mut self) {
        for (webhook, id) in self.gate.flush_committed() {
            self.release_delivery(webhook, id);
        }
    }

    fn release_delivery(&mut self, webhook: Uid, id: DeliveryId) {
        if let Some(queue) = self.queues.get_mut(&webhook) {
            if queue.deliveries.contains_key(&id) {
                queue.ready.push_back(id);
            } else if queue.dead_letters.get(id).is_some() {
                self.to_store.push_back((webhook, id));
            }
        }
        self.wake(webhook);
    }

    /// Adds the Webhook to the round robin if it can begin an attempt.
    pub(super) fn wake(&mut self, webhook: Uid) {
        if let Some(queue) = self.queues.get_mut(&webhook)
            && !queue.runnable
            && queue.can_begin()
        {
            queue.runnable = true;
            self.runnable.push_back(webhook);
        }
    }

    /// Returns the next delivery whose attempt may begin. Webhooks take turns.
    pub(super) fn begin(&mut self, now: Timestamp) -> Option<Begin> {
        while let Some(Reverse((due, webhook, id))) = self.timers.peek().copied() {
            if due > now {
                break;
            }
            self.timers.pop();
            if let Some(queue) = self.queues.get_mut(&webhook)
                && let Some(delivery) = queue.deliveries.get_mut(&id)
                && delivery.due.is_some_and(|(at, _)| at == due)
            {
                delivery.due = None;
                if delivery.again {
                    queue.again.push_back(id);
                } else {
                    queue.ready.push_back(id);
                }
                self.wake(webhook);
            }
        }
        while let Some((until, webhook)) = self.pauses.first().copied()
            && until <= now
        {
            self.resume(webhook);
        }
        while let Some(webhook) = self.runnable.pop_front() {
            let Some(queue) = self.queues.get_mut(&webhook) else { continue };
            queue.runnable = false;
            let Some(id) = queue.next() else { continue };
            let Some(delivery) = queue.deliveries.get(&id) else {
                self.wake(webhook);
                continue;
            };
            queue.in_flight += 1;
            let begin = Begin {
                webhook,
                delivery: id,
                event: Arc::clone(&delivery.event),
                attempt: delivery.failed_attempts.saturating_add(1),
                endpoint_gone: queue.endpoint_gone.is_some() && !delivery.again,
            };
            self.wake(webhook);
            return Some(begin);
        }
        None
    }

    /// Returns the time of the next retry or end of a pause.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let retry = self.timers.peek().map(|Reverse((due, _, _))| *due);
        let resumption = self.pauses.first().map(|(until, _)| *until);
        retry.into_iter().chain(resumption).min()
    }

    /// Moves all timers by `step` after the clock was set.
    pub(super) fn shift(&mut self, step: SignedDuration) {
        let moved = |at: Timestamp| at.saturating_add(step).unwrap_or(at);
        let due = self.queues.values_mut().flat_map(|queue| queue.deliveries.values_mut());
        for (at, _) in due.filter_map(|delivery| delivery.due.as_mut()) {
            *at = moved(*at);
        }
        let timers = std::mem::take(&mut self.timers).into_iter();
        self.timers = timers.map(|Reverse((at, webhook, id))| Reverse((moved(at), webhook, id))).collect();
        for until in self.queues.values_mut().filter_map(|queue| queue.paused_until.as_mut()) {
            *until = moved(*until);
        }
        self.pauses = std::mem::take(&mut self.pauses).into_iter().map(|(until, uid)| (moved(until), uid)).collect();
    }

    /// Reports whether the delivery is a redelivery.
    pub(super) fn is_again(&self, webhook: Uid, id: DeliveryId) -> bool {
        let delivery = self.queues.get(&webhook).and_then(|queue| queue.deliveries.get(&id));
        delivery.is_some_and(|delivery| delivery.again)
    }

    /// Returns the delivery whose attempt has ended, and frees its place among those in flight. Returns `None` if the
    /// Webhook was deleted during the attempt.
    pub(super) fn ended(&mut self, webhook: Uid, id: DeliveryId) -> Option<&mut Delivery> {
        let queue = self.queues.get_mut(&webhook)?;
        queue.in_flight = queue.in_flight.saturating_sub(1);
        queue.deliveries.get_mut(&id)
    }

    /// Ends the delivery's first attempt, so that the object's next event may begin.
    fn leave_lane(&mut self, webhook: Uid, id: DeliveryId) {
        if let Some(queue) = self.queues.get_mut(&webhook)
            && let Some(delivery) = queue.deliveries.get_mut(&id)
            && std::mem::take(&mut delivery.in_lane)
            && let Some(lane) = queue.lanes.get_mut(&delivery.event.object.uid)
        {
            let Some(next) = lane.pop_front() else {
                queue.lanes.remove(&delivery.event.object.uid);
                return;
            };
            let after = queue.deliveries.get(&next).and_then(|delivery| delivery.after);
            if !self.gate.hold_back(after, webhook, next) {
                queue.ready.push_back(next);
            }
        }
    }

    /// Returns a delivery whose attempt was not made to its place in the queue.
    pub(super) fn put_back(&mut self, webhook: Uid, id: DeliveryId) {
        if let Some(queue) = self.queues.get_mut(&webhook)
            && let Some(delivery) = queue.deliveries.get(&id)
        {
            if delivery.again { queue.again.push_front(id) } else { queue.ready.push_front(id) }
        }
        self.wake(webhook);
    }

    /// Begins no attempt of this Webhook before `until`. Never shortens a pause.
    pub(super) fn pause(&mut self, webhook: Uid, until: Timestamp) {
        if let Some(queue) = self.queues.get_mut(&webhook)
            && queue.paused_until.is_none_or(|before| before < until)
        {
            if let Some(before) = queue.paused_until.replace(until) {
                self.pauses.remove(&(before, webhook));
            }
            self.pauses.insert((until, webhook));
        }
    }

    /// Ends the pause of this Webhook.
    pub(super) fn resume(&mut self, webhook: Uid) {
        if let Some(until) = self.queues.get_mut(&webhook).and_then(|queue| queue.paused_until.take()) {
            self.pauses.remove(&(until, webhook));
            self.wake(webhook);
        }
    }

    /// Schedules a retry after this many failed attempts.
    pub(super) fn wait(&mut self, webhook: Uid, id: DeliveryId, failed_attempts: u32, due: Timestamp, wait: Duration) {
        self.leave_lane(webhook, id);
        let mut touched = None;
        if let Some(delivery) = self.queues.get_mut(&webhook).and_then(|queue| queue.deliveries.get_mut(&id)) {
            delivery.failed_attempts = failed_attempts;
            delivery.due = Some((due, wait));
            self.timers.push(Reverse((due, webhook, id)));
            touched = (!delivery.again).then_some(delivery.event.id);
        }
        if let Some(event) = touched {
            self.touch(event);
        }
        self.wake(webhook);
    }

    /// Removes an acknowledged delivery.
    pub(super) fn remove(&mut self, webhook: Uid, id: DeliveryId) {
        self.leave_lane(webhook, id);
        if let Some(queue) = self.queues.get_mut(&webhook)
            && let Some(delivery) = queue.deliveries.remove(&id)
        {
            queue.bytes -= delivery.event.body.len();
            self.release(delivery.event.id, webhook, delivery.again);
        }
        self.wake(webhook);
    }

    /// Removes a deleted Webhook's deliveries and dead letters. Returns their number.
    pub(super) fn forget(&mut self, webhook: Uid) -> usize {
        self.resume(webhook);
        let Some(queue) = self.queues.remove(&webhook) else { return 0 };
        let deliveries = queue.deliveries.values().map(|delivery| (delivery.event.id, delivery.again));
        let dead_letters = queue.dead_letters.events().map(|event| (event, false));
        let mut forgotten: Vec<(EventId, bool)> = deliveries.chain(dead_letters).collect();
        forgotten.sort_unstable();
        for (event, again) in &forgotten {
            self.release(*event, webhook, *again);
        }
        forgotten.len()
    }

    /// Removes one delivery of the event, and the event itself if it was the last.
    fn release(&mut self, id: EventId, webhook: Uid, again: bool) {
        let shard = id.shard(self.events.len());
        let Some(stored) = self.events[shard].get_mut(&id) else { return };
        if again {
            stored.again = stored.again.saturating_sub(1);
        } else {
            stored.to.retain(|(to, _)| *to != webhook);
        }
        if stored.to.is_empty() && stored.again == 0 {
            self.total_bytes -= stored.size;
            // The ledger needs no removal of an event that no flush has held.
            if stored.written && !stored.dirty {
                self.dirty.push_back((id, true));
            }
            self.events[shard].remove(&id);
        } else if !again {
            self.touch(id);
        }
    }
}

/// [`MAX_DELIVERIES`], [`MAX_BYTES`] or [`MAX_TOTAL_BYTES`] is reached.
pub(super) struct BoundReached;
