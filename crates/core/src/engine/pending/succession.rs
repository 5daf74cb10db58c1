//! Succession: if a Webhook is deleted and created again, the new one takes over the deliveries of the old one.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use super::Pending;
use crate::event::{
    id::{DeliveryId, EventId},
    object::Uid,
};

impl Pending {
    /// Sets the owner of a Webhook's deliveries (see `subscription::owner`).
    pub(in crate::engine) fn own(&mut self, webhook: Uid, owner: Arc<str>) {
        let queue = self.queues.entry(webhook).or_default();
        if queue.owner.as_ref() == Some(&owner) {
            return;
        }
        queue.owner = Some(owner);
        let events: Vec<EventId> = queue.deliveries.values().map(|delivery| delivery.event.id).collect();
        let dead_letters: Vec<EventId> = queue.dead_letters.events().collect();
        for event in events.into_iter().chain(dead_letters) {
            self.touch(event);
        }
    }

    /// Returns the owner of a Webhook's deliveries, if it is known.
    pub(in crate::engine) fn owner(&self, webhook: Uid) -> Option<&Arc<str>> {
        self.queues.get(&webhook)?.owner.as_ref()
    }

    /// Returns the namespace of one of the Webhook's events.
    pub(in crate::engine) fn namespace(&self, webhook: Uid) -> Option<&str> {
        let queue = self.queues.get(&webhook)?;
        let pending = queue.deliveries.values().map(|delivery| &delivery.event);
        let mut events = pending.chain(queue.dead_letters.iter().map(|dead_letter| &dead_letter.event));
        events.next().map(|event| event.object.namespace.as_str())
    }

    /// Stops all attempts of a deleted Webhook. Returns the number of its deliveries, dead letters included.
    pub(in crate::engine) fn orphan(&mut self, webhook: Uid) -> usize {
        let Some(queue) = self.queues.get_mut(&webhook) else { return 0 };
        queue.subscribed = false;
        queue.endpoint_gone = None;
        queue.deliveries.len() + queue.dead_letters.len()
    }

    /// Returns the key of the delivery after a takeover, or the same key.
    pub(in crate::engine) fn successor(&mut self, webhook: Uid, id: DeliveryId) -> (Uid, DeliveryId) {
        self.successors.remove(&(webhook, id)).unwrap_or((webhook, id))
    }

    /// Moves the deliveries of `from` to `to`, in the order of the events. Attempt counts are kept. Redeliveries are
    /// dropped. Returns the number of deliveries moved.
    pub(in crate::engine) fn take_over(&mut self, from: Uid, to: Uid) -> usize {
        if from == to {
            return 0;
        }
        self.resume(from);
        let Some(mut old) = self.queues.remove(&from) else { return 0 };
        let gated: HashMap<DeliveryId, u64> =
            self.gate.take(from).into_iter().map(|(number, id)| (id, number)).collect();
        let mut waiting: HashSet<DeliveryId> = old.ready.iter().copied().chain(gated.keys().copied()).collect();
        waiting.extend(old.lanes.values().flatten());
        let mut taken = 0;

        let mut deliveries: Vec<_> = old.deliveries.drain().collect();
        deliveries.sort_unstable_by_key(|(_, delivery)| self.order(delivery.event.id));
        for (old_id, mut delivery) in deliveries {
            let event = delivery.event.id;
            let id = DeliveryId::new(event, to);
            let known = self.queues.get(&to).is_some_and(|queue| queue.knows(id));
            if delivery.again || known {
                self.release(event, from, delivery.again);
                continue;
            }
            let object = delivery.event.object.uid;
            let in_flight = delivery.due.is_none() && !waiting.contains(&old_id);
            let first = std::mem::take(&mut delivery.in_lane);
            let (due, after, size) = (delivery.due, delivery.after, delivery.event.body.len());
            let at = self.lane_place(to, object, self.order(event));
            let queue = self.queues.entry(to).or_default();
            // A first attempt in flight also holds back the object's next event at the new Webhook, unless that has a
            // lane for the object already.
            delivery.in_lane = first && !(in_flight && queue.lanes.contains_key(&object));
            let in_lane = delivery.in_lane;
            queue.deliveries.insert(id, delivery);
            queue.bytes += size;
            if in_flight {
                queue.in_flight += 1;
                self.successors.insert((from, old_id), (to, id));
                if in_lane {
                    queue.lanes.insert(object, VecDeque::new());
                }
            } else if let Some((due, _)) = due {
                self.timers.push(Reverse((due, to, id)));
            } else if !in_lane {
                queue.ready.push_back(id);
            } else if let Some(lane) = queue.lanes.get_mut(&object) {
                lane.insert(at, id);
            } else {
                queue.lanes.insert(object, VecDeque::new());
                if !self.gate.hold_back(after, to, id) {
                    queue.ready.push_back(id);
                }
            }
            self.hand_over(event, from, to, id);
            taken += 1;
        }

        let mut dead_letters: Vec<_> = old.dead_letters.drain().collect();
        dead_letters.sort_unstable_by_key(|(_, dead_letter)| self.order(dead_letter.event.id));
        for (old_id, dead_letter) in dead_letters {
            let event = dead_letter.event.id;
            let id = DeliveryId::new(event, to);
            let queue = self.queues.entry(to).or_default();
            if queue.knows(id) {
                self.release(event, from, false);
                continue;
            }
            queue.dead_letters.insert(id, dead_letter);
            if !self.gate.hold_back(gated.get(&old_id).copied(), to, id) {
                self.to_store.push_back((to, id));
            }
            self.hand_over(event, from, to, id);
            taken += 1;
        }
        self.wake(to);
        taken
    }

    /// Returns the index at which an event of this order belongs in the object's lane.
    fn lane_place(&self, webhook: Uid, object: Uid, order: u64) -> usize {
        let lane = self.queues.get(&webhook).and_then(|queue| queue.lanes.get(&object).map(|lane| (queue, lane)));
        let Some((queue, lane)) = lane else { return 0 };
        lane.partition_point(|id| {
            queue.deliveries.get(id).is_some_and(|delivery| self.order(delivery.event.id) <= order)
        })
    }

    fn order(&self, event: EventId) -> u64 {
        self.events[event.shard(self.events.len())].get(&event).map_or(0, |stored| stored.order)
    }

    fn hand_over(&mut self, event: EventId, from: Uid, to: Uid, id: DeliveryId) {
        if let Some(stored) = self.stored(event) {
            for delivery in stored.to.iter_mut().filter(|(webhook, _)| *webhook == from) {
                *delivery = (to, id);
            }
        }
        self.touch(event);
    }
}
