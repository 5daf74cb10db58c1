//! Dead letters: deliveries that were given up and are not stored as objects yet.

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

/// The maximum number of dead letters of one Webhook. [`MAX_BYTES`] also applies to their events.
pub const MAX_DEAD_LETTERS: usize = 1_000;

#[derive(Debug)]
pub struct DeadLetter {
    pub event: Arc<Event>,
    pub given_up: GivenUp,
}

/// The dead letters of one Webhook.
#[derive(Debug, Default)]
pub struct DeadLetters {
    deliveries: HashMap<DeliveryId, DeadLetter>,
    bytes: usize,
}

impl DeadLetters {
    /// Reports whether there is no space for an event of `size` bytes.
    pub fn is_full(&self, size: usize) -> bool {
        self.deliveries.len() >= MAX_DEAD_LETTERS || self.bytes + size > MAX_BYTES
    }

    pub fn get(&self, id: DeliveryId) -> Option<&DeadLetter> {
        self.deliveries.get(&id)
    }

    pub fn deliveries(&self) -> impl Iterator<Item = DeliveryId> {
        self.deliveries.keys().copied()
    }

    pub fn events(&self) -> impl Iterator<Item = EventId> {
        self.deliveries.values().map(|dead_letter| dead_letter.event.id)
    }

    /// Adds a dead letter. The delivery must not have one already.
    pub fn insert(&mut self, id: DeliveryId, dead_letter: DeadLetter) {
        self.bytes += dead_letter.event.body.len();
        self.deliveries.insert(id, dead_letter);
    }

    pub fn remove(&mut self, id: DeliveryId) -> Option<DeadLetter> {
        let dead_letter = self.deliveries.remove(&id)?;
        self.bytes -= dead_letter.event.body.len();
        Some(dead_letter)
    }

    pub fn iter(&self) -> impl Iterator<Item = &DeadLetter> {
        self.deliveries.values()
    }

    pub fn len(&self) -> usize {
        self.deliveries.len()
    }

    pub fn drain(&mut self) -> impl Iterator<Item = (DeliveryId, DeadLetter)> {
        self.bytes = 0;
        self.deliveries.drain()
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A dead letter that the leader must store as an object.
#[derive(Clone, Debug)]
pub struct StoreDeadLetter {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    pub event: Arc<Event>,
    pub given_up: GivenUp,
}

/// The result of adding a dead letter.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::engine) enum AddedDeadLetter {
    DeadLetter,
    /// The delivery is already pending or a dead letter.
    Known,
    /// A bound is reached and the delivery is dropped.
    Full,
}

impl Pending {
    /// Returns the next dead letter to store as an object. Each is returned once.
    pub(in crate::engine) fn next_to_store(&mut self) -> Option<StoreDeadLetter> {
        while let Some((webhook, delivery)) = self.to_store.pop_front() {
            // The dead letters of a deleted Webhook have no owner that an object could refer to.
            let queue = self.queues.get(&webhook).filter(|queue| queue.subscribed);
            if let Some(dead_letter) = queue.and_then(|queue| queue.dead_letters.get(delivery)) {
                let (event, given_up) = (Arc::clone(&dead_letter.event), dead_letter.given_up.clone());
                return Some(StoreDeadLetter { webhook, delivery, event, given_up });
            }
        }
        None
    }

    /// Makes a dead letter of a delivery. Returns false if a bound is reached and the delivery is dropped.
    pub(in crate::engine) fn give_up(&mut self, webhook: Uid, id: DeliveryId, given_up: GivenUp) -> bool {
        self.leave_lane(webhook, id);
        let mut kept = false;
        if let Some(queue) = self.queues.get_mut(&webhook)
            && let Some(delivery) = queue.deliveries.remove(&id)
        {
            let size = delivery.event.body.len();
            queue.bytes -= size;
            let event = delivery.event.id;
            kept = !delivery.again && !queue.dead_letters.is_full(size);
            if kept {
                queue.dead_letters.insert(id, DeadLetter { event: delivery.event, given_up });
                self.to_store.push_back((webhook, id));
                self.touch(event);
            } else {
                self.release(event, webhook, delivery.again);
            }
        }
        self.wake(webhook);
        kept
    }

    /// Makes a dead letter of an event that cannot be enqueued, unless its delivery exists already.
    pub(in crate::engine) fn add_dead_letter(
        &mut self,
        webhook: Uid,
        event: &Arc<Event>,
        given_up: GivenUp,
        after: Option<u64>,
    ) -> AddedDeadLetter {
        let size = event.body.len();
        let stored = self.stored(event.id).is_some();
        let total = self.total_bytes;
        let id = DeliveryId::new(event.id, webhook);
        let queue = self.queues.entry(webhook).or_default();
        if queue.knows(id) {
            return AddedDeadLetter::Known;
        }
        if queue.dead_letters.is_full(size) || (!stored && total + size > MAX_TOTAL_BYTES + MAX_BYTES) {
            return AddedDeadLetter::Full;
        }
        queue.dead_letters.insert(id, DeadLetter { event: Arc::clone(event), given_up });
        if !self.gate.hold_back(after, webhook, id) {
            self.to_store.push_back((webhook, id));
        }
        let stored = self.store(event);
        stored.to.push((webhook, id));
        stored.after = after.unwrap_or(stored.after);
        self.touch(event.id);
        AddedDeadLetter::DeadLetter
    }

    /// Removes a dead letter that is stored as an object or never will be.
    pub(in crate::engine) fn dead_letter_stored(&mut self, webhook: Uid, id: DeliveryId) {
        if let Some(queue) = self.queues.get_mut(&webhook)
            && let Some(dead_letter) = queue.dead_letters.remove(id)
        {
            self.release(dead_letter.event.id, webhook, false);
        }
    }
}
