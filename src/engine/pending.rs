//! Pending deliveries: one queue per Webhook, so that a slow endpoint delays nobody else.
//!
//! 1. At most `concurrency` attempts of a Webhook are under way.
//! 2. First attempts of one object's events to one Webhook never overlap and go in the order of the events.
//! 3. A held Webhook's deliveries wait and spend no attempts.
//! 4. A Webhook holds at most [`MAX_DELIVERIES`] and [`MAX_BYTES`], all together [`MAX_TOTAL_BYTES`].

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    sync::Arc,
};

use jiff::Timestamp;

use crate::event::{
    Event,
    id::{DeliveryId, EventId},
    object::{ObjectKey, Uid},
};

/// Pending deliveries of one Webhook.
pub const MAX_DELIVERIES: usize = 10_000;
/// Bytes of events that wait for one Webhook.
pub const MAX_BYTES: usize = 16 << 20;
/// Bytes of events that wait for any Webhook, each event counted once.
pub const MAX_TOTAL_BYTES: usize = 64 << 20;

/// An event on its way to one Webhook.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) event: Arc<Event>,
    /// Attempts that have been settled as failed.
    pub(super) failed_attempts: u32,
    /// When the next attempt is due; `None` while it is ready or under way.
    due: Option<Timestamp>,
}

/// The deliveries of one Webhook.
#[derive(Debug, Default)]
pub(super) struct Queue {
    deliveries: HashMap<DeliveryId, Delivery>,
    ready: VecDeque<DeliveryId>,
    /// Objects with a first attempt ready or under way, and their later events.
    lanes: HashMap<ObjectKey, VecDeque<DeliveryId>>,
    bytes: usize,
    in_flight: usize,
    runnable: bool,
    pub(super) concurrency: usize,
    pub(super) held: bool,
    /// The endpoint answered 410 Gone to the spec of this generation.
    pub(super) gone: Option<i64>,
}

impl Queue {
    fn can_begin(&self) -> bool {
        !self.ready.is_empty() && (self.gone.is_some() || (!self.held && self.in_flight < self.concurrency))
    }
}

/// All pending deliveries.
#[derive(Debug, Default)]
pub(super) struct Pending {
    queues: HashMap<Uid, Queue>,
    runnable: VecDeque<Uid>,
    timers: BinaryHeap<Reverse<(Timestamp, Uid, DeliveryId)>>,
    /// How many deliveries share an event, and the bytes that it was counted with.
    events: HashMap<EventId, (usize, usize)>,
    total_bytes: usize,
}

/// A delivery that may begin its next attempt now.
pub(super) struct Begin {
    pub(super) webhook: Uid,
    pub(super) delivery: DeliveryId,
    pub(super) event: Arc<Event>,
    pub(super) attempt: u32,
    /// The endpoint is gone: nothing is to be sent.
    pub(super) gone: bool,
}

impl Pending {
    pub(super) fn queue(&mut self, webhook: Uid) -> &mut Queue {
        self.queues.entry(webhook).or_default()
    }

    /// How many deliveries of this Webhook wait or are under way.
    pub(super) fn count(&self, webhook: Uid) -> usize {
        self.queues.get(&webhook).map_or(0, |queue| queue.deliveries.len())
    }

    /// Each Webhook's count of deliveries, and when its oldest event was observed.
    pub(super) fn ages(&self) -> impl Iterator<Item = (Uid, usize, Option<Timestamp>)> {
        self.queues.iter().map(|(webhook, queue)| {
            let oldest = queue.deliveries.values().map(|delivery| delivery.event.observed_at).min();
            (*webhook, queue.deliveries.len(), oldest)
        })
    }

    /// Takes a delivery in, or refuses it because a bound is reached. A delivery that is already there stays as it is.
    pub(super) fn enqueue(&mut self, webhook: Uid, event: &Arc<Event>) -> Result<(), BoundReached> {
        let size = event.body.len();
        let stored = self.events.contains_key(&event.id);
        let queue = self.queues.entry(webhook).or_default();
        if queue.deliveries.len() >= MAX_DELIVERIES
            || queue.bytes + size > MAX_BYTES
            || (!stored && self.total_bytes + size > MAX_TOTAL_BYTES)
        {
            return Err(BoundReached);
        }
        let id = DeliveryId::new(event.id, webhook);
        if queue.deliveries.contains_key(&id) {
            return Ok(());
        }
        queue.deliveries.insert(id, Delivery { event: Arc::clone(event), failed_attempts: 0, due: None });
        queue.bytes += size;
        self.events.entry(event.id).or_insert((0, size)).0 += 1;
        if !stored {
            self.total_bytes += size;
        }
        if let Some(lane) = queue.lanes.get_mut(&event.key) {
            lane.push_back(id);
        } else {
            queue.lanes.insert(event.key, VecDeque::new());
            queue.ready.push_back(id);
        }
        self.wake(webhook);
        Ok(())
    }

    /// Lets the Webhook have its turn, if it can begin an attempt.
    pub(super) fn wake(&mut self, webhook: Uid) {
        if let Some(queue) = self.queues.get_mut(&webhook)
            && !queue.runnable
            && queue.can_begin()
        {
            queue.runnable = true;
            self.runnable.push_back(webhook);
        }
    }

    /// The next delivery whose attempt may begin; Webhooks take turns.
    pub(super) fn begin(&mut self, now: Timestamp) -> Option<Begin> {
        while let Some(Reverse((due, webhook, id))) = self.timers.peek().copied() {
            if due > now {
                break;
            }
            self.timers.pop();
            if let Some(queue) = self.queues.get_mut(&webhook)
                && let Some(delivery) = queue.deliveries.get_mut(&id)
                && delivery.due == Some(due)
            {
                delivery.due = None;
                queue.ready.push_back(id);
                self.wake(webhook);
            }
        }
        while let Some(webhook) = self.runnable.pop_front() {
            let Some(queue) = self.queues.get_mut(&webhook) else { continue };
            queue.runnable = false;
            if !queue.can_begin() {
                continue;
            }
            let Some(id) = queue.ready.pop_front() else { continue };
            let Some(delivery) = queue.deliveries.get(&id) else { continue };
            queue.in_flight += 1;
            let begin = Begin {
                webhook,
                delivery: id,
                event: Arc::clone(&delivery.event),
                attempt: delivery.failed_attempts + 1,
                gone: queue.gone.is_some(),
            };
            self.wake(webhook);
            return Some(begin);
        }
        None
    }

    /// When the next retry is due.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.timers.peek().map(|Reverse((due, _, _))| *due)
    }

    /// The delivery whose attempt has ended; its place among those under way is free again. `None` where the Webhook was
    /// deleted meanwhile.
    pub(super) fn ended(&mut self, webhook: Uid, id: DeliveryId) -> Option<&mut Delivery> {
        let queue = self.queues.get_mut(&webhook)?;
        queue.in_flight = queue.in_flight.saturating_sub(1);
        queue.deliveries.get_mut(&id)
    }

    /// Ends the delivery's first attempt: the object's next event may go.
    pub(super) fn leave_lane(&mut self, webhook: Uid, key: ObjectKey) {
        if let Some(queue) = self.queues.get_mut(&webhook)
            && let Some(lane) = queue.lanes.get_mut(&key)
        {
            match lane.pop_front() {
                Some(next) => queue.ready.push_back(next),
                None => {
                    queue.lanes.remove(&key);
                }
            }
        }
        self.wake(webhook);
    }

    /// Puts a delivery back whose attempt was not made; it keeps its place.
    pub(super) fn put_back(&mut self, webhook: Uid, id: DeliveryId) {
        if let Some(queue) = self.queues.get_mut(&webhook) {
            queue.ready.push_front(id);
        }
        self.wake(webhook);
    }

    /// Lets a delivery wait for its retry.
    pub(super) fn wait(&mut self, webhook: Uid, id: DeliveryId, due: Timestamp) {
        if let Some(delivery) = self.queues.get_mut(&webhook).and_then(|queue| queue.deliveries.get_mut(&id)) {
            delivery.due = Some(due);
            self.timers.push(Reverse((due, webhook, id)));
        }
        self.wake(webhook);
    }

    /// Removes a delivery that is delivered or given up.
    pub(super) fn remove(&mut self, webhook: Uid, id: DeliveryId) {
        if let Some(queue) = self.queues.get_mut(&webhook)
            && let Some(delivery) = queue.deliveries.remove(&id)
        {
            queue.bytes -= delivery.event.body.len();
            self.release(&delivery.event);
        }
        self.wake(webhook);
    }

    /// Removes a deleted Webhook's deliveries and tells how many there were.
    pub(super) fn forget(&mut self, webhook: Uid) -> usize {
        let Some(queue) = self.queues.remove(&webhook) else { return 0 };
        for delivery in queue.deliveries.values() {
            self.release(&delivery.event);
        }
        queue.deliveries.len()
    }

    fn release(&mut self, event: &Event) {
        if let Some((count, size)) = self.events.get_mut(&event.id) {
            *count -= 1;
            if *count == 0 {
                self.total_bytes -= *size;
                self.events.remove(&event.id);
            }
        }
    }
}

/// A bound of the module's fourth statement is reached.
pub(super) struct BoundReached;
