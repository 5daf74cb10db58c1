//! What is given up, until it has become an object.

use std::{collections::HashMap, sync::Arc};

use super::{MAX_BYTES, MAX_TOTAL_BYTES, Pending};
use crate::{
    event::{
        Event,
        id::{DeliveryId, EventId},
        object::Uid,
    },
    ledger::contents::GivenUp,
};

/// Given-up deliveries of one Webhook that wait to become objects; also bounded by [`MAX_BYTES`].
pub const MAX_SHELVED: usize = 1_000;

/// A given-up delivery that waits to become an object.
#[derive(Debug)]
pub struct DeadLetter {
    pub event: Arc<Event>,
    pub given_up: GivenUp,
}

/// The given-up deliveries of one Webhook.
#[derive(Debug, Default)]
pub struct DeadLetters {
    deliveries: HashMap<DeliveryId, DeadLetter>,
    bytes: usize,
}

impl DeadLetters {
    /// Whether an event of so many bytes has no place.
    pub fn is_full(&self, size: usize) -> bool {
        self.deliveries.len() >= MAX_SHELVED || self.bytes + size > MAX_BYTES
    }

    pub fn get(&self, id: DeliveryId) -> Option<&DeadLetter> {
        self.deliveries.get(&id)
    }

    pub fn deliveries(&self) -> impl Iterator<Item = DeliveryId> {
        self.deliveries.keys().copied()
    }

    pub fn events(&self) -> impl Iterator<Item = EventId> {
        self.deliveries.values().map(|shelved| shelved.event.id)
    }

    /// Puts a delivery there that is not there yet.
    pub fn insert(&mut self, id: DeliveryId, shelved: DeadLetter) {
        self.bytes += shelved.event.body.len();
        self.deliveries.insert(id, shelved);
    }

    pub fn remove(&mut self, id: DeliveryId) -> Option<DeadLetter> {
        let shelved = self.deliveries.remove(&id)?;
        self.bytes -= shelved.event.body.len();
        Some(shelved)
    }

    pub fn iter(&self) -> impl Iterator<Item = &DeadLetter> {
        self.deliveries.values()
    }

    pub fn len(&self) -> usize {
        self.deliveries.len()
    }

    /// Empties it.
    pub fn drain(&mut self) -> impl Iterator<Item = (DeliveryId, DeadLetter)> {
        self.bytes = 0;
        self.deliveries.drain()
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A given-up delivery that is to become an object.
#[derive(Clone, Debug)]
pub struct StoreDeadLetter {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    pub event: Arc<Event>,
    pub given_up: GivenUp,
}

/// What came of putting a delivery onto the shelf.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::engine) enum Shelving {
    DeadLetter,
    /// It is pending or on the shelf already.
    Known,
    /// A bound is reached: it is thrown away.
    Full,
}

impl Pending {
    /// The next given-up delivery that is to become an object, told once.
    pub(in crate::engine) fn next_to_keep(&mut self) -> Option<StoreDeadLetter> {
        while let Some((webhook, delivery)) = self.to_keep.pop_front() {
            // What is left of a deleted Webhook has no owner that an object could have.
            let queue = self.queues.get(&webhook).filter(|queue| queue.subscribed);
            if let Some(shelved) = queue.and_then(|queue| queue.shelf.get(delivery)) {
                let (event, given_up) = (Arc::clone(&shelved.event), shelved.given_up.clone());
                return Some(StoreDeadLetter { webhook, delivery, event, given_up });
            }
        }
        None
    }

    /// Puts a delivery that is given up onto the shelf; false where that is full and it is thrown away.
    pub(in crate::engine) fn give_up(&mut self, webhook: Uid, id: DeliveryId, given_up: GivenUp) -> bool {
        self.leave_lane(webhook, id);
        let mut kept = false;
        if let Some(queue) = self.queues.get_mut(&webhook)
            && let Some(delivery) = queue.deliveries.remove(&id)
        {
            let size = delivery.event.body.len();
            queue.bytes -= size;
            let event = delivery.event.id;
            kept = !delivery.again && !queue.shelf.is_full(size);
            if kept {
                queue.shelf.insert(id, DeadLetter { event: delivery.event, given_up });
                self.to_keep.push_back((webhook, id));
                self.touch(event);
            } else {
                self.release(event, webhook, delivery.again);
            }
        }
        self.wake(webhook);
        kept
    }

    /// Puts an event that cannot wait straight onto the shelf, unless its delivery is here already.
    pub(in crate::engine) fn shelve(
        &mut self,
        webhook: Uid,
        event: &Arc<Event>,
        given_up: GivenUp,
        after: Option<u64>,
    ) -> Shelving {
        let size = event.body.len();
        let stored = self.stored(event.id).is_some();
        let total = self.total_bytes;
        let id = DeliveryId::new(event.id, webhook);
        let queue = self.queues.entry(webhook).or_default();
        if queue.knows(id) {
            return Shelving::Known;
        }
        if queue.shelf.is_full(size) || (!stored && total + size > MAX_TOTAL_BYTES + MAX_BYTES) {
            return Shelving::Full;
        }
        queue.shelf.insert(id, DeadLetter { event: Arc::clone(event), given_up });
        if !self.gate.hold_back(after, webhook, id) {
            self.to_keep.push_back((webhook, id));
        }
        let stored = self.store(event);
        stored.to.push((webhook, id));
        stored.after = after.unwrap_or(stored.after);
        self.touch(event.id);
        Shelving::DeadLetter
    }

    /// A given-up delivery has become an object, or never will.
    pub(in crate::engine) fn dead_letter_stored(&mut self, webhook: Uid, id: DeliveryId) {
        if let Some(queue) = self.queues.get_mut(&webhook)
            && let Some(shelved) = queue.shelf.remove(id)
        {
            self.release(shelved.event.id, webhook, false);
        }
    }
}
