//! Conversion between pending deliveries and their form in the ledger.

use std::{cmp::Reverse, collections::VecDeque, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{Pending, Stored, dead_letters::DeadLetter, queue::Delivery};
use crate::{
    event::id::{DeliveryId, EventId},
    ledger::{
        contents::{DeliveryEntry, EventEntry},
        journal::RememberedEvent,
    },
};

impl Pending {
    /// Restores an event with its deliveries. The due time is at most now plus the wait it was computed from, because
    /// another clock may have set it.
    pub(in crate::engine) fn recover(&mut self, remembered: RememberedEvent, now: Timestamp) {
        let RememberedEvent { event, after: _, order, deliveries, unknown } = remembered;
        let event = Arc::new(event);
        let size = event.body.len();
        let mut to = Vec::with_capacity(deliveries.len());
        for entry in deliveries {
            let id = DeliveryId::new(event.id, entry.webhook);
            to.push((entry.webhook, id));
            let queue = self.queues.entry(entry.webhook).or_default();
            if queue.owner.is_none() {
                queue.owner = entry.owner.as_deref().map(Arc::from);
            }
            if let Some(given_up) = entry.given_up {
                queue.dead_letters.insert(id, DeadLetter { event: Arc::clone(&event), given_up });
                continue;
            }
            let first = entry.failed == 0;
            let wait = Duration::from_millis(entry.wait_millis);
            let latest = now.checked_add(wait).unwrap_or(Timestamp::MAX);
            let due = entry.due.map(|due| due.min(latest));
            let delivery = Delivery {
                event: Arc::clone(&event),
                failed_attempts: entry.failed,
                due: due.map(|due| (due, wait)),
                in_lane: first,
                again: false,
                after: None,
                unknown: entry.unknown,
            };
            queue.deliveries.insert(id, delivery);
            queue.bytes += size;
            match due {
                Some(due) => self.timers.push(Reverse((due, entry.webhook, id))),
                None if first => {
                    if let Some(lane) = queue.lanes.get_mut(&event.object.uid) {
                        lane.push_back(id);
                    } else {
                        queue.lanes.insert(event.object.uid, VecDeque::new());
                        queue.ready.push_back(id);
                    }
                }
                None => queue.ready.push_back(id),
            }
        }
        self.total_bytes += size;
        let shards = self.events.len();
        self.newest = self.newest.max(order);
        let stored = Stored { event, size, to, again: 0, after: 0, order, written: true, dirty: false, unknown };
        self.events[stored.event.id.shard(shards)].insert(stored.event.id, stored);
    }

    /// Drops a recovered event of which no attempt was ever made.
    pub(in crate::engine) fn disown(&mut self, id: EventId) {
        self.dirty.push_back((id, true));
    }

    /// Reports whether there are changes that no flush holds.
    pub(in crate::engine) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Returns changes, up to about `budget` bytes.
    pub(in crate::engine) fn changes(&mut self, budget: &mut usize) -> Vec<EventEntry> {
        let mut entries = Vec::new();
        while *budget > 0 {
            let Some((id, written)) = self.dirty.pop_front() else { break };
            let shard = id.shard(self.events.len());
            let stored = self.events[shard].get_mut(&id);
            let dirty = stored.map(|stored| std::mem::take(&mut stored.dirty));
            // For the ledger, an event with only redeliveries is removed.
            let known = self.events[shard].get_mut(&id).filter(|stored| stored.written || !stored.to.is_empty());
            let Some(stored) = known else {
                if !written {
                    continue;
                }
                entries.push(EventEntry::gone(id));
                *budget = budget.saturating_sub(64);
                continue;
            };
            if dirty != Some(true) {
                continue;
            }
            let full = !stored.written && !stored.to.is_empty();
            stored.written = !stored.to.is_empty();
            let stored = &self.events[shard][&id];
            let entry = self.entry(stored, full);
            let owner = |delivery: &DeliveryEntry| delivery.owner.as_ref().map_or(0, |owner| owner.len());
            let deliveries: usize = entry.deliveries.iter().map(|delivery| 64 + owner(delivery)).sum();
            *budget = budget.saturating_sub(128 + deliveries + if full { stored.size } else { 0 });
            entries.push(entry);
        }
        entries
    }

    /// Returns all events of one shard.
    pub(in crate::engine) fn snapshot(&self, shard: usize) -> Vec<EventEntry> {
        let stored = self.events[shard].values().filter(|stored| !stored.to.is_empty());
        stored.map(|stored| self.entry(stored, true)).collect()
    }

    fn entry(&self, stored: &Stored, full: bool) -> EventEntry {
        let deliveries = stored.to.iter().filter_map(|(webhook, id)| {
            let queue = self.queues.get(webhook)?;
            let mut entry = DeliveryEntry::new(*webhook);
            entry.owner = queue.owner.as_deref().map(Box::from);
            match queue.deliveries.get(id) {
                Some(delivery) if !delivery.again => {
                    entry.failed = delivery.failed_attempts;
                    entry.unknown = delivery.unknown.clone();
                    if let Some((due, wait)) = delivery.due {
                        entry.due = Some(due);
                        entry.wait_millis = wait.as_millis() as u64;
                    }
                }
                _ => entry.given_up = Some(queue.dead_letters.get(*id)?.given_up.clone()),
            }
            Some(entry)
        });
        EventEntry {
            id: stored.event.id,
            event: full.then(|| Arc::clone(&stored.event)),
            after: stored.after,
            order: stored.order,
            deliveries: deliveries.collect(),
            unknown: stored.unknown.clone(),
        }
    }
}
