//! The deliveries of one Webhook.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use super::{MAX_BYTES, MAX_DELIVERIES, dead_letters::DeadLetters};
use crate::event::{Event, id::DeliveryId, object::Uid, unknown::Unknown};

/// An event on its way to one Webhook.
#[derive(Debug)]
pub struct Delivery {
    pub event: Arc<Event>,
    /// Attempts that have been settled as failed.
    pub failed_attempts: u32,
    /// When the next attempt is due, and the wait that it came from; `None` while it is ready or under way.
    pub due: Option<(Timestamp, Duration)>,
    /// Its first attempt is ready or under way: the object's next event waits for it.
    pub in_lane: bool,
    /// It was asked for again; the object that asks outlives a crash, so the ledger need not know.
    pub again: bool,
    /// The complete flush that its first attempt was to wait for.
    pub after: Option<u64>,
    pub unknown: Unknown,
}

impl Delivery {
    pub fn new(event: &Arc<Event>, again: bool) -> Self {
        let event = Arc::clone(event);
        Self { event, failed_attempts: 0, due: None, in_lane: !again, again, after: None, unknown: Unknown::NONE }
    }
}

/// The deliveries of one Webhook.
#[derive(Debug, Default)]
pub struct Queue {
    pub deliveries: HashMap<DeliveryId, Delivery>,
    pub ready: VecDeque<DeliveryId>,
    /// Those that were asked for again, where ready.
    pub again: VecDeque<DeliveryId>,
    /// Objects with a first attempt ready or under way, and their later events.
    pub lanes: HashMap<Uid, VecDeque<DeliveryId>>,
    pub shelf: DeadLetters,
    pub bytes: usize,
    pub in_flight: usize,
    pub runnable: bool,
    /// The Webhook is known. Until then a recovered queue waits, and so does that of a deleted one.
    pub subscribed: bool,
    /// Who its deliveries belong to.
    pub owner: Option<Arc<str>>,
    pub concurrency: usize,
    pub held: bool,
    /// No attempt begins before: the endpoint answered 429 or 503 with `Retry-After`.
    pub paused_until: Option<Timestamp>,
    /// The endpoint answered 410 Gone to the spec of this generation.
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

    /// Whether a delivery is pending or on the shelf.
    pub fn knows(&self, id: DeliveryId) -> bool {
        self.deliveries.contains_key(&id) || self.shelf.get(id).is_some()
    }

    pub fn is_full(&self, size: usize) -> bool {
        self.deliveries.len() >= MAX_DELIVERIES || self.bytes + size > MAX_BYTES
    }
}
