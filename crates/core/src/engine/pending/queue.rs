//! The queue of one Webhook.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use super::{MAX_BYTES, MAX_DELIVERIES, dead_letters::DeadLetters};
use crate::event::{Event, id::DeliveryId, object::Uid, unknown::Unknown};

/// An event that is pending for one Webhook.
#[derive(Debug)]
pub struct Delivery {
    pub event: Arc<Event>,
    /// The number of failed attempts.
    pub failed_attempts: u32,
    /// The time of the next attempt and the wait it was computed from; `None` while the delivery is ready or in flight.
    pub due: Option<(Timestamp, Duration)>,
    /// The first attempt has not ended: the object's next event waits for it.
    pub in_lane: bool,
    /// A redelivery. The object that requests it survives a crash, so the ledger does not record it.
    pub again: bool,
    /// The complete flush that the first attempt waits for.
    pub after: Option<u64>,
    pub unknown: Unknown,
}

impl Delivery {
    pub fn new(event: &Arc<Event>, again: bool) -> Self {
        let event = Arc::clone(event);
        Self { event, failed_attempts: 0, due: None, in_lane: !again, again, after: None, unknown: Unknown::NONE }
    }
}

#[derive(Debug, Default)]
pub struct Queue {
    pub deliveries: HashMap<DeliveryId, Delivery>,
    pub ready: VecDeque<DeliveryId>,
    /// Redeliveries that are ready.
    pub again: VecDeque<DeliveryId>,
    /// Per object with a first attempt that is ready or in flight: its later events.
    pub lanes: HashMap<Uid, VecDeque<DeliveryId>>,
    pub dead_letters: DeadLetters,
    pub bytes: usize,
    pub in_flight: usize,
    pub runnable: bool,
    /// The Webhook is subscribed. The queue of a recovered or deleted Webhook waits.
    pub subscribed: bool,
    /// The owner of the deliveries (see `subscription::owner`).
    pub owner: Option<Arc<str>>,
    pub concurrency: usize,
    pub held: bool,
    /// No attempt begins before this time: the endpoint answered 429 or 503 with `Retry-After`.
    pub paused_until: Option<Timestamp>,
    /// The generation of the spec to which the endpoint answered 410 Gone.
    pub endpoint_gone: Option<i64>,
}

impl Queue {
    fn is_free(&self) -> bool {
        !self.held && self.paused_until.is_none() && self.in_flight < self.concurrency
    }

    pub fn can_begin(&self) -> bool {
        if !self.subscribed {
            return false;
        }
        let free = self.is_free();
        (!self.ready.is_empty() && (self.endpoint_gone.is_some() || free)) || (!self.again.is_empty() && free)
    }

    pub fn next(&mut self) -> Option<DeliveryId> {
        if !self.subscribed {
            return None;
        }
        let free = self.is_free();
        if self.endpoint_gone.is_some() || free {
            let next = self.ready.pop_front();
            if next.is_some() {
                return next;
            }
        }
        if free { self.again.pop_front() } else { None }
    }

    /// Reports whether a delivery is pending or a dead letter.
    pub fn knows(&self, id: DeliveryId) -> bool {
        self.deliveries.contains_key(&id) || self.dead_letters.get(id).is_some()
    }

    pub fn is_full(&self, size: usize) -> bool {
        self.deliveries.len() >= MAX_DELIVERIES || self.bytes + size > MAX_BYTES
    }
}
